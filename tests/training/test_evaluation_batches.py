"""A split of which only the first batches are read."""

import pytest
import torch

from seqlab.training.evaluate import evaluate
from support import Echo
from training.fits import build


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
