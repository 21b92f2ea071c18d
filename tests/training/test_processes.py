"""Two processes give what one does with the same batch: every kind of mixer, weights whole and shared out."""

import shutil
import socket
from functools import cache

import pytest
import torch
from fits import config_of
from together import (
    ROWS,
    Words,
    built,
    by_soap,
    every_mixer,
    go_on,
    gone_on,
    killed,
    resumed,
    settings_of,
    train_all,
    trained,
)

from forks import as_torchrun
from seqlab.errors import UserError
from seqlab.experiment import refuse_unlike
from seqlab.models.protocols import share_positions
from seqlab.training import checkpoint
from seqlab.training.optim import sgd
from seqlab.training.parallel import Processes, World, joined
from seqlab.training.regularisation import Regularisation


@cache
def hybrid():
    return settings_of("hybrid", "size.n_layers=2", "model.pattern=[mamba,attention]")


@cache
def mixture():
    return settings_of("transformer_moe", "size.n_layers=2", "model.softmaxes=3")


@cache
def perceptrons():
    return settings_of("mlp", "size.n_layers=2")


@cache
def mambas():
    model = settings_of("mamba")
    mixers = model["mixers"] | settings_of("mamba2")["mixers"]
    pattern = ["mamba", "mamba2", "mamba+mamba2"]
    return model | {"mixers": mixers, "pattern": pattern, "n_layers": 3, "positions": "learned"}


GIVEN = {"optimizer": sgd, "regularisation": Regularisation(ar=2.0, tar=1.0)}  # masks are each process's own
LORA = {"rank": 2, "alpha": 4.0, "on": ["in_proj", "out_proj"]}
CASES = {
    "ddp": (every_mixer, {"parallel": "ddp", "accumulate": 2, "checkpoint_layers": True, **GIVEN}),
    "fsdp": (every_mixer, {"parallel": "fsdp", "checkpoint_layers": 2, **GIVEN}),
    "fsdp in pieces": (hybrid, {"parallel": "fsdp", "offload": True, "freeze": ["embed", "layers.1"]}),
    "slices": (mambas, {"context_parallel": 2, "accumulate": 2, "checkpoint_layers": True}),
    "slices and fsdp": (mambas, {"context_parallel": 2, "parallel": "fsdp"}),
    "softmaxes in parts": (mixture, {"parallel": "fsdp", "accumulate": 2, "skips": True}),
    "averages": (hybrid, {"ema": 0.5, "freeze": ["in_proj"]}),
    "averages in parts": (hybrid, {"ema": 0.5, "freeze": ["in_proj"], "parallel": "fsdp", "accumulate": 2}),
    "carried": (hybrid, {"carries": True, "accumulate": 2, "checkpoint_layers": True}),
    "lora": (hybrid, {"lora": LORA, "accumulate": 2}),
    "lora in parts": (hybrid, {"lora": LORA, "ema": 0.5, "parallel": "fsdp", "accumulate": 2}),
    "fp16 in parts": (hybrid, {"precision": "fp16", "parallel": "fsdp"}),
    "compiled": (perceptrons, {"compile": True, "parallel": "ddp"}),
    "compiled in parts": (perceptrons, {"compile": True, "parallel": "fsdp", "ema": 0.5}),
}


def own(settings):
    """Of one process: what changes the result."""
    without = "parallel", "compile", "offload", "context_parallel", "accumulate", "checkpoint_layers", "skips"
    return {name: value for name, value in settings.items() if name not in without}


KEPT = {"parallel": "fsdp", "freeze": ["layers.1"], "ema": 0.5}
"""Of the run whose checkpoint is written in the midst of updates."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def found(folder):
    """What both processes found; those of the small model go on from what one process has saved, too."""
    cases = {
        name: (make(), settings, by_one(name) if make is hybrid else None) for name, (make, settings) in CASES.items()
    }
    torch.save(cases, folder / "cases.pt")
    return by(2, folder, train_all, (hybrid(), KEPT), folder)


def by(size, folder, task, *arguments):
    """What so many processes leave in a folder."""
    ended = as_torchrun(folder, task, *arguments, size=size)
    assert not any(status for status, _ in ended), "".join(said for _, said in ended)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


@cache
def by_one(name):
    """Some cases differ in nothing that changes the result."""
    if name in (same := {"fsdp": "ddp", "slices and fsdp": "slices"}):
        return by_one(same[name])
    make, settings = CASES[name]
    return trained(make(), own(settings))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(case, found):
    first, second = (results[case] for results in found)
    one, bound = by_one(case), 1e-12 if case.startswith("slices") else 1e-9
    torch.testing.assert_close(first["values"], one["values"], rtol=1e-6, atol=0)
    for kind in ("gradients", "weights"):
        assert first[kind].keys() == one[kind].keys()
        for name, expected in one[kind].items():
            assert torch.equal(first[kind][name], second[kind][name])
            assert (first[kind][name] - expected).norm() <= bound * expected.norm(), name
    assert first["losses"] == second["losses"] == pytest.approx(one["losses"], rel=1e-6)
    assert first["scale"] == second["scale"] == one["scale"]
    assert first["load"] == second["load"]
    assert (first["load"] is None) == (one["load"] is None)
    if one["load"]:
        torch.testing.assert_close(first["load"].shares, one["load"].shares, rtol=1e-12, atol=0)
    assert first["evaluation"] == second["evaluation"]
    for ours, theirs in zip(first["evaluation"], one["evaluation"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_soap_of_parts(found):
    """The gradients are the same bits; those of several processes are so within rounding, which SOAP makes more of."""
    pytest.importorskip("pytorch_optimizer")
    one = by_soap(hybrid())
    for ours in found:
        torch.testing.assert_close(ours["soap"], one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", [name for name, (make, _) in CASES.items() if make is hybrid])
def test_a_run_goes_on_with_another_number_of_processes(case, found):
    """From what one has saved, two go on as one does, and the other way round; reading a state changes nothing."""
    settings = own(CASES[case][1])
    expected = resumed(hybrid(), settings, by_one(case))
    by_two, back = found[0][case]["resumed"], resumed(hybrid(), settings, found[0][case])
    for one, saved in ((expected, by_one(case)), (by_two, by_one(case)), (back, found[0][case])):
        exactly = {"rtol": 0, "atol": 0}
        torch.testing.assert_close(one["fresh"]["weights"], expected["fresh"]["weights"], **exactly)
        torch.testing.assert_close(one["fresh again"], one["fresh"], **exactly)
        for kind in ("weights", "state"):
            torch.testing.assert_close(one["read"][kind], saved[kind], **exactly)
    for other in (by_two, back):
        assert other["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        torch.testing.assert_close(other["weights"], expected["weights"], rtol=1e-6, atol=1e-9)


def check_kept(found, folder):
    """Of processes with shared-out weights: they go on from a checkpoint bit for bit, and otherwise within rounding."""
    for ours in found:
        kept, by_parts = ours["kept"], ours["gone on"]["fsdp"]
        torch.testing.assert_close(by_parts, {name: kept[name] for name in by_parts}, rtol=0, atol=0)
        assert "refusal" in kept
        for name, expected in by_parts["weights"].items():
            assert (ours["gone on"]["ddp"]["weights"][name] - expected).norm() <= 1e-9 * expected.norm(), name
    refusal = found[0]["kept"]["refusal"].splitlines()
    assert refusal[0] == "disk=full: there is no space left to write."
    assert len(refusal) == 2
    (only,) = (folder / "checkpoints").iterdir()
    assert only.name == "step-00000001"
    assert len(list((only / checkpoint.PARTS).iterdir())) == len(found)
    one = gone_on(hybrid(), own(KEPT), folder / "checkpoints")
    assert one["losses"] == pytest.approx(found[0]["kept"]["losses"], rel=1e-6)
    for name, expected in one["weights"].items():
        assert (found[0]["kept"]["weights"][name] - expected).norm() <= 1e-9 * expected.norm(), name


def test_a_checkpoint_is_written_while_training_goes_on(found, folder):
    check_kept(found, folder)


def test_a_damaged_part_is_found(found, folder, tmp_path):
    path = tmp_path / "step-00000001"
    shutil.copytree(folder / "checkpoints" / path.name, path)
    assert checkpoint.damage(path) is None
    part = next((path / checkpoint.PARTS).iterdir())
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    assert checkpoint.damage(path) == f"it cannot be used (optimizer/{part.name} changed after it was written)"
    part.unlink()
    assert "No such file" in checkpoint.damage(path)


def test_a_process_is_killed_while_it_writes(tmp_path):
    ended = as_torchrun(tmp_path, killed, hybrid(), KEPT, tmp_path)
    assert [status for status, _ in ended] == [1, -9]
    assert "Connection" in ended[0][1]
    assert checkpoint.latest(tmp_path / "checkpoints").name == "step-00000001"
    assert gone_on(hybrid(), own(KEPT), tmp_path / "checkpoints")["losses"]


@pytest.mark.slow
def test_four_write_what_eight_four_two_and_one_read(tmp_path):
    torch.save({}, tmp_path / "cases.pt")
    found = by(4, tmp_path, train_all, (hybrid(), KEPT), tmp_path)
    check_kept(found, tmp_path)
    for size in (2, 8):
        folder = tmp_path / f"by_{size}"
        for ours in by(size, folder, go_on, hybrid(), KEPT, tmp_path / "checkpoints", folder):
            for way in ("fsdp", "ddp"):
                assert ours[way]["losses"] == pytest.approx(found[0]["kept"]["losses"], rel=1e-6)
                for name, expected in found[0]["kept"]["weights"].items():
                    assert (ours[way]["weights"][name] - expected).norm() <= 1e-9 * expected.norm(), name


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 9}, "batch_size=9: is the batch of all together, and does not divide evenly among 2 processes"),
        ({"accumulate": 3, "batch_size": 9}, "Start another number of processes, or a new run with batch_size=12"),
        ({"context_parallel": 2, "batch_size": 9, "size": 4}, "evenly among 2 groups of processes"),
        ({"context_parallel": 3}, "3: so many processes share a sequence, and they do not divide the 2 there are"),
        ({"context_parallel": 2, "length": 13}, "must divide the length of the sequences, 13,"),
        ({"context_parallel": 2, "compile": True}, "compile=True: does not compile what"),
        ({"parallel": "ddp", "offload": True}, "offload=True: moves the parts of weights that several processes hold"),
        ({"parallel": "fsdp", "offload": True, "size": 1}, "offload=True: moves the parts of weights"),
        ({"parallel": "fsdp", "regularisation": Regularisation(weights=0.5)}, "weights=0.5: needs whole weights"),
    ],
)
def test_what_processes_cannot_do_together(settings, said):
    world, data = World(), Words()
    settings = dict(settings)
    world.size, data.length = settings.pop("size", 2), settings.pop("length", Words.length)
    with pytest.raises(UserError) as refusal:
        config_of(**settings).check(data, world)
    assert said in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "context_parallel=2: Attention does not pass its state from process to process"),
        ({"separator": 3}, "context_parallel=2: processes that share a sequence do not keep its documents apart"),
        ({"negative_eigenvalues": True}, "negative_eigenvalues=True: processes that share a sequence do not pass on"),
    ],
)
def test_models_whose_sequences_processes_cannot_share(change, said, second):
    model = built(mambas() if change else hybrid())
    for name, value in change.items():
        setattr(model if hasattr(model, name) else model.layers[1].mixer.inner, name, value)
    second.size = 2
    with pytest.raises(UserError) as refusal:
        share_positions(model, second)
    assert said in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 2


@pytest.mark.parametrize("context", [1, 2, 4])
def test_every_position_of_every_row_is_somebody_s(context, second):
    batch = Words().train_batch(0, ROWS, 1)
    shares = []
    for second.rank in range(8):
        second.size = 8
        shares.append(second.share(batch, context))
    for part in (0, 1):
        rows = [torch.cat([share[part] for share in shares[i : i + context]], dim=1) for i in range(0, 8, context)]
        assert torch.equal(torch.cat(rows), batch[part])


@pytest.fixture
def second(monkeypatch):
    """The second of two processes, which have not joined."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    return Processes(1, 2)


def test_more_processes_than_gpus(second, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    with pytest.raises(
        UserError, match=r"torch sees 1 on this machine\.\nStart as many \(torchrun --nproc-per-node=1\)"
    ):
        second.take(torch.device("cuda"))


def test_torch_without_nccl(second, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(
        UserError, match=r"device=cuda: processes exchange tensors on GPUs through NCCL.*\.\nSet device=cpu"
    ):
        second.take(torch.device("cuda"))


def test_a_port_that_is_taken(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        given = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=rf"torchrun=127\.0\.0\.1:{port}: the processes cannot join"), joined(0, 2):
            pass


def test_what_is_wrong_in_another_process_alone(second):
    second.gather = lambda value: [value, UserError("device", "cuda", "torch sees none here", "Set device=cpu")]
    second.rank = 0
    with pytest.raises(UserError, match=r"device=cuda: torch sees none here \(in process 1\)\.\n"), second.agreed():
        pass


def test_what_is_not_the_same_everywhere():
    world = World()
    world.gather = lambda value: [value, "another"]
    with pytest.raises(UserError, match="device=cpu: it is another in process 1, perhaps of another machine"):
        refuse_unlike(world, "device", "cpu", "Set device=cpu")
