"""A precision that torch has no recurrent kernel for is refused before training, whatever this machine's CPU has."""

import pytest
import torch
from torch import nn

from seqlab.errors import UserError
from seqlab.training.precision import check_precision

CPU = torch.device("cpu")
FORWARD = {kind: kind.forward for kind in (nn.LSTM, nn.GRU)}


def has_none(self, *arguments):
    """A CPU whose library lacks the kernel; its message as oneDNN's."""
    if torch.is_autocast_enabled("cpu"):
        raise RuntimeError("could not create a primitive descriptor for the LSTM forward primitive. Run with\nmore")
    return FORWARD[type(self)](self, *arguments)


def has_all(self, *arguments):
    """A CPU that computes it in any precision."""
    with torch.autocast("cpu", enabled=False):
        return FORWARD[type(self)](self, *arguments)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(
    ("kind", "model"),
    [
        (nn.LSTM, ["model=lstm"]),
        (nn.GRU, ["model=gru"]),
        (nn.LSTM, ["model=hybrid", "model.pattern=[mamba,lstm]", "size.n_layers=2"]),
    ],
)
class TestARun:
    settings = ("size=tiny", "device=cpu", "trainer.steps=1")

    def test_is_refused_where_there_is_no_kernel(self, kind, model, precision, train, capsys, monkeypatch):
        monkeypatch.setattr(kind, "forward", has_none)
        job = train(*model, *self.settings, f"trainer.precision={precision}")
        said = capsys.readouterr().err.strip()
        assert job.status == 2
        assert (
            f"trainer.precision={precision}: torch cannot compute {kind.__name__} layers in {precision} on this cpu"
            in said
        )
        assert said.endswith("Use trainer.precision=float32.")
        assert len(said.splitlines()) == 2
        assert not job.folder.exists()

    def test_goes_ahead_where_there_is_one(self, kind, model, precision, train, monkeypatch):
        monkeypatch.setattr(kind, "forward", has_all)
        job = train(*model, *self.settings, f"trainer.precision={precision}")
        assert job.status == 0 and job.summary["status"] == "completed"
        assert job.summary["precision"] == precision


def test_float32_and_models_without_recurrence_are_not_probed(monkeypatch):
    monkeypatch.setattr(nn.LSTM, "forward", has_none)
    check_precision(nn.LSTM(3, 3), CPU, "float32")
    check_precision(nn.Linear(3, 3), CPU, "bf16")
    with pytest.raises(UserError, match="LSTM"):
        check_precision(nn.Sequential(nn.LSTM(3, 3)), CPU, "bf16")


def test_the_probe_leaves_no_trace():
    layer, state = nn.GRU(3, 3), torch.get_rng_state()
    check_precision(layer, CPU, "bf16")
    assert all(p.grad is None for p in layer.parameters())
    assert torch.equal(torch.get_rng_state(), state)
