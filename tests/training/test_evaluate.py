"""One pass over a split: slices by difficulty, long sequences in pieces, nothing that waits for the device."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from fits import build
from hydra.utils import instantiate
from torch import nn

from seqlab.data import Batch
from seqlab.data.probes.induction_heads import InductionHeads
from seqlab.training import evaluate as module
from seqlab.training.evaluate import evaluate
from seqlab.training.metrics import ExactSequences, top_k_accuracy
from seqlab.training.update import autocast
from support import Echo, built_model, compose_config, skip_where_refused

CPU = torch.device("cpu")


def accuracy(preds, target):
    return top_k_accuracy(preds, target, k=1)


def measured(model, data, split="test", *, batch_size=4, device=CPU, precision="float32"):
    return evaluate(
        model, data, split, batch_size=batch_size, device=device, autocast=lambda: autocast(device, precision)
    )


class Sliced(Echo):
    """Two difficulties: the token, and the place in the window rounded down to even numbers."""

    def __init__(self):
        super().__init__({"accuracy": accuracy, "exact": ExactSequences()})

    def slices(self, batch):
        places = torch.arange(batch.inputs.shape[1]).expand_as(batch.inputs)
        return {"token": batch.inputs, "place": places // 2 * 2}

    def evaluation_batches(self, split, batch_size):
        tokens = torch.randint(7, (10, 8), generator=torch.Generator().manual_seed(3))
        targets = tokens.where(torch.arange(8) > 0, -100)
        targets[4] = -100  # a sequence without an answer
        yield from map(Batch, tokens.split(batch_size), targets.split(batch_size))


class OftenRight(nn.Module):
    """Logits that are right where the token times the place is even; which is often enough for whole sequences."""

    def forward(self, inputs):
        place = torch.arange(inputs.shape[1], device=inputs.device)
        said = torch.where((inputs * place) % 10 < 8, inputs, (inputs + 1) % 7)
        return 3.0 * nn.functional.one_hot(said, 7).float()


def by_hand(data, model):
    """Loss and accuracy by slice, and the share of exact sequences, answer by answer in float64."""
    found, exact = defaultdict(list), []
    for inputs, targets in data.evaluation_batches("test", 100):
        values = data.slices(Batch(inputs, targets))
        for b, t in np.ndindex(*targets.shape):
            if targets[b, t] != -100:
                logits = model(inputs)[b, t].double().numpy()
                loss = np.log(np.exp(logits).sum()) - logits[targets[b, t]]
                for name, value in values.items():
                    found[name, str(int(value[b, t]))].append((loss, logits.argmax() == int(targets[b, t])))
        right = (model(inputs).argmax(-1) == targets) | (targets == -100)
        exact += [bool(row.all()) for row, asked in zip(right, targets != -100, strict=True) if asked.any()]
    return found, float(np.mean(exact))


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_slices_are_the_means_over_their_answers(batch_size):
    data, model = Sliced(), OftenRight()
    result = measured(model, data, batch_size=batch_size)
    expected, exact = by_hand(data, model)
    assert 0 < exact < 1
    assert result.metrics["exact"] == pytest.approx(exact)
    assert {(n, v) for n, values in result.slices.items() for v in values} == set(expected)
    for (name, value), rows in expected.items():
        got = result.slices[name][value]
        assert got["count"] == len(rows)
        assert got["loss"] == pytest.approx(np.mean([loss for loss, _ in rows]), rel=1e-6)
        assert got["accuracy"] == pytest.approx(np.mean([right for _, right in rows]), rel=1e-12)
    assert list(result.slices["place"]) == ["0", "2", "4", "6"]
    total = sum(row["count"] * row["accuracy"] for row in result.slices["token"].values())
    assert total / sum(row["count"] for row in result.slices["token"].values()) == pytest.approx(
        result.metrics["accuracy"]
    )


def test_data_without_difficulties_has_no_slices():
    assert measured(OftenRight(), Echo()).slices == {}


def probe(length=60):
    return InductionHeads(
        length=length,
        vocab_size=7,
        n_train=64,
        epoch_size=64,
        n_validation=8,
        n_test=6,
        seed=1,
        tests=[{"length": 100}, {"length": 6}],
        metrics={"accuracy": accuracy},
    )


def model_of(name, max_length):
    size = "size=tiny", "size.d_model=16", "size.n_heads=2", "size.d_ff=32"
    return built_model(f"model={name}", *size, length=max_length, seed=1)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", ["mamba", "transformer", "transformer_vanilla", "lstm"])
def test_a_long_sequence_in_pieces_is_the_whole(monkeypatch, name, precision):
    """The piece of 6 positions is as long as a whole example of another test, which has but one answer."""
    data, model = probe(), model_of(name, 100)
    skip_where_refused(model, precision)
    whole = [measured(model, data, split, precision=precision) for split in ("test", "length=100")]
    monkeypatch.setattr(module, "LONG", 50)
    monkeypatch.setattr(module, "PIECE_ON_CPU", 24)
    monkeypatch.setattr(model, "forward", lambda *_: pytest.fail("the whole sequence at once"))
    pieces = [measured(model, data, split, precision=precision) for split in ("test", "length=100")]
    rel = 1e-5 if precision == "float32" else 2e-2
    for one, other in zip(whole, pieces, strict=True):
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=rel)
        assert one.loss_by_position == pytest.approx(other.loss_by_position, rel=rel, nan_ok=True)
        assert one.slices["distance"].keys() == other.slices["distance"].keys()
        for value, row in one.slices["distance"].items():
            assert row["count"] == other.slices["distance"][value]["count"]
            assert row["loss"] == pytest.approx(other.slices["distance"][value]["loss"], rel=10 * rel)


class Plain(nn.Module):
    """A model that cannot leave out positions."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return self.model(inputs)


@pytest.mark.parametrize("name", ["mamba", "transformer"])
def test_outputs_are_made_where_they_count(monkeypatch, name):
    """One answer in 60 positions: the head sees the answers alone, and everything measured is the same."""
    data, model = probe(), model_of(name, 100)
    every = measured(Plain(model), data, batch_size=3)
    seen = []
    model.head.register_forward_hook(lambda head, inputs, outputs: seen.append(inputs[0].shape))
    few = measured(model, data, batch_size=3)
    assert seen == [(3, 16), (3, 16)]
    assert few.metrics == pytest.approx(every.metrics, rel=1e-6)
    assert few.loss_by_position == pytest.approx(every.loss_by_position, rel=1e-6, nan_ok=True)
    for name, rows in every.slices.items():
        assert few.slices[name] == {value: pytest.approx(row, rel=1e-6) for value, row in rows.items()}


class Dense(Echo):
    """Every position but the first is an answer, in a window that takes several pieces."""

    def evaluation_batches(self, split, batch_size):
        tokens = torch.randint(7, (3, 23), generator=torch.Generator().manual_seed(5))
        yield Batch(tokens, tokens.roll(1, 1).where(torch.arange(23) > 0, -100))


def test_pieces_with_many_answers(monkeypatch):
    data, model = Dense({"accuracy": accuracy, "exact": ExactSequences()}), model_of("mamba", 23)
    whole = measured(model, data)
    monkeypatch.setattr(module, "LONG", 8)
    monkeypatch.setattr(module, "PIECE_ON_CPU", 15)
    pieces = measured(model, data)
    assert pieces.metrics == pytest.approx(whole.metrics, rel=1e-5)
    assert pieces.loss_by_position == pytest.approx(whole.loss_by_position, rel=1e-4, nan_ok=True)


@pytest.mark.parametrize("name", ["mamba", "lstm"])
def test_values_in_pieces(monkeypatch, name):
    """A regression, whose metrics take its values one by one."""
    data = instantiate(compose_config("data=synthetic", "data.length=23", "data.n_test=6").data, _convert_="all")
    widths = {"tokens": False, "d_input": data.d_input, "d_output": data.d_output, "length": 23}
    model = built_model(f"model={name}", "size=tiny", **widths, seed=1)
    whole = measured(model, data)
    monkeypatch.setattr(module, "LONG", 8)
    monkeypatch.setattr(module, "PIECE_ON_CPU", 15)
    pieces = measured(model, data)
    assert set(pieces.metrics) > {"loss"}
    assert pieces.metrics == pytest.approx(whole.metrics, rel=1e-5)
    assert pieces.loss_by_position == pytest.approx(whole.loss_by_position, rel=1e-4)


def test_a_wish_to_stop_is_heard_between_the_pieces_of_a_batch(monkeypatch):
    """One batch of 23 positions in pieces of 5; without pieces, once a batch."""
    heard = []

    def stop():
        heard.append(None)
        if len(heard) == 2:
            raise KeyboardInterrupt

    model = model_of("mamba", 23)
    settings = {"batch_size": 4, "device": CPU, "autocast": lambda: autocast(CPU, "float32")}
    evaluate(model, Dense(), "test", on_piece=stop, **settings)
    assert len(heard) == 1
    monkeypatch.setattr(module, "LONG", 8)
    monkeypatch.setattr(module, "PIECE_ON_CPU", 15)
    monkeypatch.setattr(model, "prefill", counted(model.prefill, calls := []))
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, Dense(), "test", on_piece=stop, **settings)
    assert calls == [5]
    assert model.training


def counted(prefill, calls):
    """A model's ``prefill`` that notes how many positions it is given."""

    def noted(inputs, state, **settings):
        calls.append(inputs.shape[1])
        return prefill(inputs, state, **settings)

    return noted


def test_a_model_that_could_only_step_goes_whole(monkeypatch):
    monkeypatch.setattr(module, "LONG", 4)
    monkeypatch.setattr(module, "PIECE_ON_CPU", 4)
    assert measured(OftenRight(), Sliced()).metrics["loss"] > 0


@pytest.mark.parametrize(("most", "read"), [(1, 1), (2, 2), (9, 2), (None, 2)])
def test_no_more_batches_are_read_than_asked_for(tmp_path, most, read):
    trainer = build(tmp_path, evaluation_batches=most)
    seen = []

    class Bar:
        def begin_evaluation(self, split, batches):
            seen.append(batches)

        def evaluated_batch(self):
            seen.append("read")

        def end_evaluation(self):
            pass

    trainer.stop = type("Stop", (), {"signal": None})()
    found = trainer.evaluate("validation", Bar()).metrics["loss"]
    assert seen == [read] + ["read"] * read
    data = Echo()
    data.evaluation_batches = lambda split, size: list(Echo().evaluation_batches(split, size))[:read]
    settings = {"batch_size": 4, "device": torch.device("cpu"), "autocast": torch.no_grad}
    assert found == evaluate(trainer.model, data, "validation", **settings).metrics["loss"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_nothing_waits_for_the_device_before_the_end(monkeypatch):
    """Pinned batches, so that only a real wait is seen; the warm-up fills the allocator's caches."""
    data, device = Sliced(), torch.device("cuda")
    batches = [Batch(*(part.pin_memory() for part in batch)) for batch in data.evaluation_batches("test", 5)]

    def watched(split, batch_size):
        torch.cuda.set_sync_debug_mode("error")
        yield from batches
        torch.cuda.set_sync_debug_mode("default")

    expected = measured(OftenRight(), data, device=device)
    monkeypatch.setattr(data, "evaluation_batches", watched)
    try:
        result = measured(OftenRight().to(device), data, device=device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.metrics == pytest.approx(expected.metrics)
