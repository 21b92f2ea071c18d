"""The generated regression task: its definition, its provable ceilings and its bytes."""

import numpy as np
import pytest
import torch

from seqlab.data.synthetic import Regression
from seqlab.errors import UserError
from support import configured_data

SMALL = {
    "length": 12,
    "d_input": 4,
    "d_output": 2,
    "n_train": 30,
    "n_validation": 7,
    "n_test": 5,
    "marker_probability": 0.25,
    "noise": 0.0,
    "seed": 0,
}
LARGE = SMALL | {"length": 64, "n_train": 4096, "n_validation": 512, "n_test": 512, "marker_probability": 0.125}


def train_set(data: Regression) -> tuple[np.ndarray, np.ndarray]:
    """The training samples as one batch, in float64."""
    inputs, targets = data.train_batch(0, data.train_size, 0)
    return inputs.double().numpy(), targets.double().numpy()


def r2(targets: np.ndarray, predictions: np.ndarray) -> float:
    return 1 - ((targets - predictions) ** 2).sum() / ((targets - targets.mean()) ** 2).sum()


def test_the_example_in_the_docstring():
    lines = {line.split()[0]: line.split() for line in Regression.__doc__.splitlines() if line.strip()}
    marker, v_0, v_1, y = (np.array(lines[name][1:7], dtype=float) for name in ("marker", "v_0", "v_1", "y"))
    held = 0.0
    for t in range(6):
        held = v_0[t] if marker[t] else held
        assert held * (2 - abs(held)) * v_1[t] == pytest.approx(y[t], abs=1e-9)


def test_outputs_follow_from_the_last_marked_position():
    inputs, targets = train_set(Regression(**SMALL))
    assert inputs.shape == (30, 12, 4)
    assert targets.shape == (30, 12, 2)
    for b in range(30):
        for t in range(12):
            r = max(s for s in range(t + 1) if inputs[b, s, 0] == 1)
            for k in range(2):
                held, partner = inputs[b, r, 1 + k], inputs[b, t, 1 + (k + 1) % 3]
                assert targets[b, t, k] == pytest.approx(held * (2 - abs(held)) * partner, abs=1e-7)


def test_the_last_output_counts_its_values_in_a_circle():
    inputs, targets = train_set(Regression(**SMALL | {"d_input": 3}))
    held, partner = inputs[:, 0, 2], inputs[:, 0, 1]
    assert np.allclose(targets[:, 0, 1], held * (2 - abs(held)) * partner)


def test_inputs_are_markers_and_uniform_values():
    inputs, _ = train_set(Regression(**LARGE))
    marker, values = inputs[..., 0], inputs[..., 1:]
    assert set(np.unique(marker)) == {0.0, 1.0}
    assert marker[:, 0].all()
    assert marker[:, 1:].mean() == pytest.approx(0.125, abs=0.003)
    assert abs(values).max() <= 1
    assert values.mean() == pytest.approx(0, abs=0.005)
    assert values.var() == pytest.approx(1 / 3, abs=0.005)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_no_model_per_position_passes_its_ceiling(noise):
    data = Regression(**LARGE | {"noise": noise})
    inputs, targets = train_set(data)
    marked, values = inputs[..., :1] == 1, inputs[..., 1:]
    partner = np.roll(values, -1, axis=-1)[..., :2]
    own = values[..., :2] * (2 - abs(values[..., :2])) * partner
    assert r2(targets, np.where(marked, own, 0)) == pytest.approx(data.per_position_r2, abs=0.01)
    # Away from the markers nothing is left to explain: no bin of any input has a mean apart from 0.
    rest = ~marked[..., 0]
    for channel in range(3):
        bins = np.digitize(values[rest][:, channel], np.linspace(-1, 1, 9)[1:-1])
        for b in range(8):
            sample = targets[rest][bins == b]
            assert abs(sample.mean(axis=0)).max() < 5 * sample.std() / np.sqrt(len(sample) / 16)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
def test_the_function_itself_reaches_the_best_r2(noise):
    data = Regression(**LARGE | {"noise": noise})
    _, targets = train_set(data)
    _, clean = train_set(Regression(**LARGE))
    assert (targets - clean).std() == pytest.approx(noise, abs=0.002)
    assert r2(targets, clean) == pytest.approx(data.best_r2, abs=0.005)


def test_the_bytes_are_the_same_on_every_machine():
    assert Regression(**SMALL).fingerprint == "d5f184d59ac3"
    assert Regression(**SMALL | {"noise": 0.02, "seed": 1}).fingerprint == "a12aca707304"


def test_seeds_and_splits_share_nothing():
    values = [
        tensor
        for seed in (0, 1)
        for split in ("train", "validation", "test")
        for tensor in [Regression(**SMALL | {"seed": seed})._splits[split].inputs[..., 1:].flatten()]
    ]
    assert torch.cat(values).unique().numel() >= sum(map(len, values)) - 2
    assert Regression(**SMALL).fingerprint == Regression(**SMALL).fingerprint


def test_more_samples_begin_with_the_fewer():
    few, many = Regression(**SMALL), Regression(**SMALL | {"n_validation": 9})
    (a,), (b,) = few.evaluation_batches("validation", 99), many.evaluation_batches("validation", 99)
    assert a.inputs.equal(b.inputs[:7])
    assert a.targets.equal(b.targets[:7])


def test_every_sample_comes_once_an_epoch_in_another_order():
    data = Regression(**SMALL)
    inputs = torch.cat([data.train_batch(i, 12, 5).inputs for i in range(10)])  # four epochs of 30
    assert inputs.dtype == torch.float32
    keys = inputs[:, 0, 1].view(4, 30)
    assert keys.sort(dim=1).values.equal(keys[:1].sort(dim=1).values.expand(4, 30))
    assert len({tuple(order.tolist()) for order in keys}) == 4


def test_a_batch_depends_on_index_size_and_seed_alone():
    data, again = Regression(**SMALL), Regression(**SMALL)
    forwards = [data.train_batch(i, 4, 1).targets for i in range(20)]
    backwards = [again.train_batch(i, 4, 1).targets for i in reversed(range(20))]
    assert all(a.equal(b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert not forwards[0].equal(data.train_batch(0, 4, 2).targets)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_evaluation_hands_out_a_split_once_and_in_order(batch_size):
    data = Regression(**SMALL)
    batches = list(data.evaluation_batches("validation", batch_size))
    assert len(batches) == data.evaluation_size("validation", batch_size)
    whole = next(data.evaluation_batches("validation", 7))
    assert torch.cat([batch.inputs for batch in batches]).equal(whole.inputs)
    assert torch.cat([batch.targets for batch in batches]).equal(whole.targets)


def test_the_interface():
    data = Regression(**SMALL, metrics={"m": 1})
    assert not data.tokens
    assert (data.d_input, data.d_output, data.length, data.items, data.train_size) == (4, 2, 12, "samples", 30)
    assert data.metrics == {"m": 1}
    assert data.description == "regression: 30 + 7 + 5 samples of 12 positions, 4 features to 2 outputs, seed 0"


def test_the_loss_is_the_mean_squared_error_of_a_position():
    data = Regression(**SMALL)
    outputs, targets = torch.tensor([[[1.0, 2.0], [0.5, 0.5]]]), torch.tensor([[[0.0, 0.0], [0.5, 1.5]]])
    assert data.loss(outputs, targets).tolist() == [[2.5, 0.5]]
    assert data.loss(outputs.bfloat16(), targets).dtype == torch.float32
    assert data.mask(targets).tolist() == [[True, True]]


@pytest.mark.parametrize(
    "key, value",
    [
        ("length", 0),
        ("d_input", 2),
        ("n_train", 0),
        ("n_test", -1),
        ("noise", -0.1),
        ("d_output", 4),
        ("d_output", 0),
        ("marker_probability", 1.5),
    ],
)
def test_settings_out_of_range_are_refused(key, value):
    with pytest.raises(UserError, match=rf"^data\.{key}={value}: (must|input should) be "):
        configured_data(Regression, SMALL | {key: value})


def test_a_batch_larger_than_the_training_set_is_refused():
    data = Regression(**SMALL)
    data.check_batch_size(30)
    with pytest.raises(UserError, match=r"^batch_size=31: .* 30 samples"):
        data.train_batch(0, 31, 0)
