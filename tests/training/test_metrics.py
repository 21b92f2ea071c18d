"""Metrics against their definitions, written out in numpy."""

import math

import numpy as np
import pytest
import torch
import torchmetrics
from torch.nn import functional as F

from seqlab.data.protocol import TextBytes
from seqlab.training import metrics
from seqlab.training.evaluate import LossByPosition, at_every_position, at_places
from support import Echo

POSITIONS, CLASSES = 200, 9
CPU = torch.device("cpu")


@pytest.fixture
def language():
    generator = torch.Generator().manual_seed(0)
    preds = 3 * torch.randn(POSITIONS, CLASSES, generator=generator)
    target = torch.randint(CLASSES, (POSITIONS,), generator=generator)
    return {"preds": preds, "target": target, "loss": F.cross_entropy(preds, target, reduction="none")}


def in_batches(collection, parts, size=37):
    """Update in pieces, as evaluation does."""
    for start in range(0, POSITIONS, size):
        collection.update(**{name: part[start : start + size] for name, part in parts.items()})
    return collection.compute()


def probabilities(preds):
    e = np.exp(preds.double().numpy())
    return e / e.sum(axis=1, keepdims=True)


def test_language(language):
    kinds = {
        "perplexity": metrics.Perplexity(),
        "bits_per_character": metrics.BitsPerCharacter(),
        "bits_per_byte": metrics.BitsPerByte(),
        "top1_accuracy": lambda preds, target: metrics.top_k_accuracy(preds, target, k=1),
        "top5_accuracy": lambda preds, target: metrics.top_k_accuracy(preds, target, k=5),
    }
    collection = metrics.Metrics(kinds, CPU)
    for start in range(0, POSITIONS, 37):
        collection.update(
            **{name: part[start : start + 37] for name, part in language.items()}, text_bytes=TextBytes(2.5, 0.1)
        )
    measured = collection.compute()
    p, t = probabilities(language["preds"]), language["target"].numpy()
    nats = -np.log(p[np.arange(POSITIONS), t]).mean()
    order = np.argsort(-p, axis=1)
    expected = {
        "loss": nats,
        "perplexity": math.exp(nats),
        "bits_per_character": nats / math.log(2),
        "bits_per_byte": (nats * POSITIONS / math.log(2) + 8 * 0.1 * 2.5 * POSITIONS) / (2.5 * POSITIONS),
        "top1_accuracy": (order[:, 0] == t).mean(),
        "top5_accuracy": (order[:, :5] == t[:, None]).any(axis=1).mean(),
    }
    assert measured == pytest.approx(expected, rel=1e-5)


def test_calibration_error(language):
    measured = in_batches(metrics.Metrics({"error": metrics.CalibrationError(n_bins=10)}, CPU), language)["error"]
    p, t = probabilities(language["preds"]), language["target"].numpy()
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == t
    expected = 0.0
    for low in np.arange(10) / 10:
        inside = (confidence > low) & (confidence <= low + 0.1)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert measured == pytest.approx(expected, rel=1e-4)


def test_a_calibrated_model_has_no_calibration_error():
    """Targets drawn from the model's own probabilities: the error is sampling noise."""
    generator = torch.Generator().manual_seed(0)
    preds = torch.randn(200_000, 4, generator=generator)
    target = torch.multinomial(preds.softmax(-1), 1, generator=generator)[:, 0]
    error = metrics.CalibrationError()
    error.update(preds, target, F.cross_entropy(preds, target, reduction="none"))
    assert error.compute() < 0.01
    error = metrics.CalibrationError()
    sure = 5 * preds  # the same order, five times too sure
    error.update(sure, target, F.cross_entropy(sure, target, reduction="none"))
    assert error.compute() > 0.2


def test_regression():
    """The same as torchmetrics, whose classes serve as well."""
    generator = torch.Generator().manual_seed(0)
    target = 5 + torch.randn(POSITIONS, generator=generator)
    preds = target + 0.3 * torch.randn(POSITIONS, generator=generator)
    parts = {"preds": preds, "target": target, "loss": (preds - target).square()}
    kinds = {"mse": ("MeanSquaredError", {}), "rmse": ("MeanSquaredError", {"squared": False})}
    kinds |= {"mae": ("MeanAbsoluteError", {}), "r2": ("R2Score", {})}

    def measured(module):
        built = {key: getattr(module, name)(**given) for key, (name, given) in kinds.items()}
        return in_batches(metrics.Metrics(built, CPU), parts)

    ours, theirs = measured(metrics), measured(torchmetrics)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_more_places_than_classes():
    assert metrics.top_k_accuracy(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), k=5).item()


def test_within_tolerance():
    preds, target = torch.tensor([0.0, 0.25, 1.0]), torch.tensor([0.25, 0.0, 1.5])
    assert metrics.within_tolerance(preds, target, tolerance=0.25).tolist() == [True, True, False]


def test_each_evaluation_starts_from_nothing(language):
    kinds = {"perplexity": metrics.Perplexity()}
    first = in_batches(metrics.Metrics(kinds, CPU), language)
    assert in_batches(metrics.Metrics(kinds, CPU), language) == first


def test_masked_positions_do_not_count():
    outputs = torch.arange(42.0).view(2, 3, 7).sin()
    targets = torch.tensor([[0, -100, 2], [-100, 1, 3]])
    places = torch.tensor([0, 2, 4, 5])
    counted = targets.flatten()[places]
    expected = -outputs.flatten(0, 1)[places].log_softmax(-1)[range(4), counted]
    whole, every = at_every_position(Echo(), outputs, targets, targets != -100)
    apart, few = at_places(Echo(), outputs.flatten(0, 1)[places], targets, places)
    for loss, seen in ((whole, every), (apart, few)):
        assert seen["target"].tolist() == [0, 2, 1, 3]
        torch.testing.assert_close(seen["preds"], outputs.flatten(0, 1)[places])
        torch.testing.assert_close(seen["loss"], expected)
        torch.testing.assert_close(loss.flatten()[places], expected)
        assert loss.count_nonzero() == 4


def test_loss_by_position_with_a_shorter_last_window():
    by_position = LossByPosition(torch.device("cpu"))
    by_position.update(torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool), 0)
    by_position.update(torch.tensor([[3.0, 4.0, 5.0]]), torch.ones(1, 3, dtype=torch.bool), 0)
    assert by_position.compute() == [2.0, 3.0, 5.0]


class Quantiles:
    """As a class of torchmetrics that computes several values."""

    def update(self, preds):
        self.seen = preds

    def compute(self):
        return {"p50": self.seen.quantile(0.5), "p90": self.seen.quantile(0.9)}


def test_a_metric_may_have_several_values():
    both = metrics.Metrics({"q": Quantiles()}, torch.device("cpu"))
    both.update(preds=torch.arange(11.0), loss=torch.ones(3))
    assert both.compute() == {"loss": 1.0, "p50": 5.0, "p90": 9.0}
