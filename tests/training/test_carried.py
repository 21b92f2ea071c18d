"""A state that goes on from one window of a text to the next: in training, evaluation and a run that is resumed."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from fits import build, config_of, run, stop_at, weights
from torch import nn

from seqlab.data.encoding import Vocabulary
from seqlab.data.windows import TextWindows
from seqlab.errors import Interrupted, UserError
from seqlab.models.counting import tensors_of, training_flops
from seqlab.training.carried import CarriedState
from seqlab.training.evaluate import evaluate
from seqlab.training.optim import sgd
from seqlab.training.parallel import ALONE, World
from seqlab.training.update import Update
from support import Echo, built_model

CPU, LENGTH, ROWS = torch.device("cpu"), 6, 4
RECURRENT, EVERY = "[mamba,lstm]", "[mamba,attention,lstm]"


class Text(TextWindows):
    """Random tokens; an epoch is two steps, or as many as are asked for."""

    fingerprint = "0" * 12

    def __init__(self, windows="carried", steps=2):
        super().__init__("text", Vocabulary([*"abcdefg"], "character"), LENGTH, windows, None)
        sizes = {"train": steps * ROWS * LENGTH + 5, "validation": 5 * LENGTH + 3, "test": 2 * LENGTH + 1}
        draw = np.random.default_rng(0)
        self._splits = {split: draw.integers(7, size=size) for split, size in sizes.items()}
        self._bytes = {split: len(tokens) for split, tokens in self._splits.items()}


def model_of(pattern, *overrides):
    given = "model=hybrid", f"size.n_layers={pattern.count(',') + 1}", f"model.pattern={pattern}", *overrides
    return built_model(*given, "size.d_model=16", "size.n_heads=2", "size.d_ff=32", "model.embedding_std=1.0")


def update_of(model, data, **settings):
    config = config_of(batch_size=ROWS, clip_norm=None, optimizer=lambda m: sgd(m, lr=0.1), **settings)
    return Update(config, model, data, device=CPU)


def steps(update, numbers, rate=0.0):
    return [update(update.data.train_batch(number, ROWS, 1), rate).loss for number in numbers]


def loss_of(data, model, inputs, targets):
    with torch.no_grad():
        return data.loss(model(inputs), targets)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_read_on_to_the_end_of_an_epoch(accumulate):
    """Two windows are one of twice the length, then the state begins anew; its memory stays where it is."""
    data, model = Text(), model_of(EVERY)
    update = update_of(model, data, accumulate=accumulate)
    places = [tensor.data_ptr() for part in update.carried.parts for tensor in tensors_of(part)]
    assert len(set(places)) == accumulate * 7
    found, expected = steps(update, range(4)), []
    for first in (0, 2):
        pair = data.train_batch(first, ROWS, 1), data.train_batch(first + 1, ROWS, 1)
        joined = (torch.cat(parts, dim=1) for parts in zip(*pair, strict=True))
        expected += [part.mean().item() for part in loss_of(data, model, *joined).chunk(2, dim=1)]
    assert found == pytest.approx(expected, rel=1e-5)
    apart = steps(update_of(model, Text("contiguous")), range(2))
    assert abs(apart[1] - found[1]) > 1e-3
    assert places == [tensor.data_ptr() for part in update.carried.parts for tensor in tensors_of(part)]


def test_no_gradient_flows_into_the_window_before():
    """That of a step is what differences of the loss say with the state before held as it is."""
    data, model = Text(), model_of(EVERY).double()
    update = update_of(model, data)
    steps(update, [0])
    batch = data.train_batch(1, ROWS, 1)
    state = model.carried_state(ROWS, LENGTH)
    for ours, kept in zip(tensors_of(state), tensors_of(update.carried.parts[0]), strict=True):
        ours.copy_(kept)
    update._gradient(*batch)
    direction = [torch.randn_like(p) for p in update.parameters]
    slope = sum((p.grad * d).sum() for p, d in zip(update.parameters, direction, strict=True)).item()
    losses = []
    with torch.no_grad():
        for shift in (1e-5, -2e-5):
            for p, d in zip(update.parameters, direction, strict=True):
                p += shift * d
            logits = model.head(model.carry(batch.inputs, state)[0])
            losses.append(nn.functional.cross_entropy(logits.mT, batch.targets).item())
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(slope, rel=1e-5)


def test_a_loss_that_is_not_finite_leaves_the_state_as_it_was():
    update = update_of(model_of(EVERY), Text(steps=3))
    steps(update, [0])
    before = [tensor.clone() for tensor in tensors_of(update.carried.parts[0])]
    original, update.data.loss = update.data.loss, lambda *given: original(*given) * torch.nan
    assert not update(update.data.train_batch(1, ROWS, 1), 1.0).taken
    assert all(map(torch.equal, before, tensors_of(update.carried.parts[0])))
    update.data.loss = original
    steps(update, [2])
    assert not any(map(torch.equal, before[:2], tensors_of(update.carried.parts[0])))


@pytest.mark.parametrize(("pattern", "split"), [(RECURRENT, "validation"), (EVERY, "test")])
def test_a_split_is_read_as_one_text(pattern, split):
    """Whatever the windows at a time; the attention sees two windows whole. Each token but the first counts once."""
    data, model = Text(), model_of(pattern)
    tokens = torch.from_numpy(data._splits[split])[None]
    expected = loss_of(data, model, tokens[:, :-1], tokens[:, 1:])
    for size in (1, 2, 5):
        found = evaluate(model, data, split, batch_size=size, device=CPU, autocast=nullcontext)
        assert found.metrics["loss"] == pytest.approx(expected.mean().item(), rel=1e-6)
        assert found.loss_by_position[-1] == pytest.approx(expected[0, LENGTH - 1 :: LENGTH].mean().item(), rel=1e-6)


def test_attention_sees_the_window_before_whatever_is_read_at_a_time():
    data, model = Text(), model_of(EVERY)
    found = [
        evaluate(model, data, "validation", batch_size=size, device=CPU, autocast=nullcontext).metrics["loss"]
        for size in (1, 2, 5)
    ]
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


def test_a_resumed_run_goes_on_with_the_same_state(tmp_path):
    """Bit for bit, from the midst of an epoch."""

    def trainer(folder):
        settings = {"batch_size": ROWS, "steps": 7, "evaluate_every": 7, "accumulate": 2}
        model = model_of(EVERY, "model.dropout=0.1")
        return build(tmp_path / folder, model=model, data=Text(steps=3), **settings)

    whole, cut, again = trainer("whole"), trainer("cut"), trainer("cut")
    torch.manual_seed(1)
    run(whole)
    stop_at(cut, 5)
    torch.manual_seed(1)
    with pytest.raises(Interrupted):
        run(cut)
    again.restore()
    assert again.counters.step == again.update.carried.number == 5
    run(again)
    assert torch.equal(weights(whole.model), weights(again.model))
    assert whole.counters.best_loss == again.counters.best_loss
    states = [tensors_of(one.update.carried.parts) for one in (whole, again)]
    assert all(map(torch.equal, *states))


def test_flops_count_the_window_before():
    """L more keys for each of L queries: 12 L L D more, forward and backward, in the layer of attention."""
    model, before = model_of(EVERY), training_flops(model_of(EVERY), Text("contiguous"))
    assert training_flops(model, Text()) - before == 12 * LENGTH * LENGTH * 16


class Forgets(nn.Module):
    """A mixer without a state that can be carried."""

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: setattr(model.layers[0].mixer, "inner", Forgets()), "Forgets in this model cannot"),
        (lambda model: setattr(model, "positions", nn.Embedding(1, 1)), "Embedding in this model begin anew with each"),
        (lambda model: model.separate(3), "would flow from one document to the next"),
    ],
)
def test_models_that_cannot_carry_their_state(change, said):
    model = model_of("[mamba]")
    change(model)
    with pytest.raises(UserError, match=said) as refusal:
        CarriedState(model, Text(), config_of(), ALONE)
    assert len(str(refusal.value).splitlines()) == 2
    with pytest.raises(UserError, match="Linear is no SequenceModel"):
        CarriedState(nn.Linear(1, 1), Text(), config_of(), ALONE)


@pytest.mark.parametrize("settings", [{"compile": True}, {"context_parallel": 2}, {"parallel": "fsdp"}])
def test_settings_that_do_not_carry_a_state(settings):
    world, (name, value) = World(), *settings.items()
    world.size = 2
    config_of(**settings | {"compile": False}).check(Echo(), world)
    with pytest.raises(UserError, match=f"{name}={value}: does not carry a state") as refusal:
        config_of(**settings).check(Text(), world)
    assert len(str(refusal.value).splitlines()) == 2
