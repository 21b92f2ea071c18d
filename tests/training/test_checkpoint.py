"""Checkpoints are whole or absent, and the one before the last is a place to go back to."""

import json
import resource
import signal

import pytest
import torch
from torch import nn

from seqlab.errors import UserError
from seqlab.training import checkpoint


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def save(folder, step, model, best=None):
    checkpoint.save(folder, step, checkpoint.weights_of(model), {"step": step}, best_step=best)


def steps(folder):
    return [checkpoint.step_of(path) for path in checkpoint.existing(folder)]


def test_there_and_back(tmp_path, model):
    save(tmp_path, 7, model)
    other = nn.Linear(3, 2)
    path = checkpoint.latest(tmp_path)
    checkpoint.load_weights(path, other)
    assert torch.equal(other.weight, model.weight)
    assert checkpoint.load_state(path) == {"step": 7}


def test_tied_weights_stay_tied(tmp_path):
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))
    model[1].weight = model[0].weight
    save(tmp_path, 1, model)
    before = model[0].weight.detach().clone()
    nn.init.zeros_(model[0].weight)
    checkpoint.load_weights(checkpoint.latest(tmp_path), model)
    assert torch.equal(model[1].weight, before)
    assert model[1].weight is model[0].weight


def test_the_last_two_and_the_best_of_each_are_kept(tmp_path, model):
    for step, best in [(0, None), (10, 10), (20, 20), (30, 20), (40, 20), (50, 50)]:
        save(tmp_path, step, model, best)
    assert steps(tmp_path) == [20, 40, 50]
    save(tmp_path, 60, model, 50)
    assert steps(tmp_path) == [50, 60]


def test_weights_that_share_a_storage(tmp_path, model):
    """As cuDNN lays out an LSTM's on a GPU: views of one flat tensor, each to be saved for itself."""
    flat = torch.randn(8)
    model.weight = nn.Parameter(flat[:6].view(2, 3))
    model.bias = nn.Parameter(flat[6:])
    save(tmp_path, 1, model)
    other = nn.Linear(3, 2)
    checkpoint.load_weights(checkpoint.latest(tmp_path), other)
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(other.bias, model.bias)


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.STATE, checkpoint.MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_checkpoint_is_passed_over_aloud(tmp_path, model, caplog, name, damage):
    save(tmp_path, 1, model)
    save(tmp_path, 2, model)
    file = checkpoint.path_of(tmp_path, 2) / name
    content = bytearray(file.read_bytes())
    if damage == "delete":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        middle = content.index(b"sha256") if name == checkpoint.MANIFEST else len(content) // 2
        content[middle] ^= 1
        file.write_bytes(content)
    assert checkpoint.latest(tmp_path) == checkpoint.path_of(tmp_path, 1)
    assert "step-00000002 cannot be used" in caplog.text
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["damaged-step-00000002", "step-00000001"]
    with pytest.raises(UserError, match="it cannot be used"):
        checkpoint.load_weights(tmp_path / "damaged-step-00000002", model)


def test_one_whose_best_is_damaged_is_passed_over(tmp_path, model):
    for step, best in [(0, None), (10, 10), (20, 10)]:
        save(tmp_path, step, model, best)
    (checkpoint.path_of(tmp_path, 10) / checkpoint.WEIGHTS).unlink()
    assert steps(tmp_path) == [10, 20]
    with pytest.raises(UserError, match="no whole checkpoint"):
        checkpoint.latest(tmp_path)


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(UserError, match="no whole checkpoint"):
        checkpoint.latest(tmp_path / "checkpoints")


def test_no_space_left_leaves_what_was_there(tmp_path, model):
    save(tmp_path, 1, model)

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # past the limit a write then fails, as on a full disk
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(tmp_path, 2, model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.damage(checkpoint.latest(tmp_path)) is None


def test_what_a_crash_left_half_written_is_cleared_and_never_read(tmp_path, model):
    half = tmp_path / ".step-00000009.tmp"
    half.mkdir()
    (half / checkpoint.WEIGHTS).write_bytes(b"half")
    with pytest.raises(UserError):
        checkpoint.latest(tmp_path)
    save(tmp_path, 1, model)
    assert not half.exists()


@pytest.mark.parametrize(
    "manifest",
    [
        [],
        {"step": 2, "best_step": "../../elsewhere"},
        {"step": 2, "best_step": -1},
        {"step": 2, "best_step": 1.5},
        {"step": 2, "sha256": {"../../elsewhere": "0"}},
        {"step": 2, "sha256": {checkpoint.STATE: "0"}},
        {"step": 2, "sha256": "0"},
    ],
)
def test_a_manifest_that_nobody_here_writes(tmp_path, model, manifest):
    """It names other files, or a step that is none: as good as no manifest."""
    for step in (1, 2):
        save(tmp_path, step, model)
    path = checkpoint.path_of(tmp_path, 2)
    (path / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    assert "manifest.json is missing or damaged" in checkpoint.damage(path)
    with pytest.raises(UserError, match="it cannot be used"):
        checkpoint.load_weights(path, model)
    assert checkpoint.latest(tmp_path) == checkpoint.path_of(tmp_path, 1)
