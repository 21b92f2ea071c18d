"""``scripts/generate.py`` on the folders that runs leave, and its messages for mistakes."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from seqlab.inference.sampling import Sampling
from seqlab.runs.load import load_run
from seqlab.training import checkpoint
from support import ROOT

SCRIPT = ROOT / "scripts" / "generate.py"
CPU = torch.device("cpu")
STATE_BYTES = {  # of one sequence at the length of training: 2 layers, width 64, 16 positions, float32
    "mamba": 2 * 128 * (16 + 3) * 4,
    "transformer": 2 * 2 * 16 * 64 * 4,
    "lstm": 2 * 2 * 64 * 4,
}


@pytest.fixture
def generate(monkeypatch, capsys):
    """Run the script in this process; returns its exit status and what it wrote on both streams."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return exit_info.value.code, *capsys.readouterr()

    return run


def greedy(folder, prompt: str, count: int) -> str:
    """The prompt and what follows it, through the full pass again for each token."""
    trained = load_run(folder, CPU)
    ids = trained.data.encode(prompt)
    with torch.no_grad():
        for _ in range(count):
            token = Sampling(temperature=0).draw(trained.model(ids[None])[:, -1], torch.Generator())
            ids = torch.cat([ids, token])
    return trained.data.decode(ids)


@pytest.mark.parametrize(
    ("data", "model"), [("tiny_shakespeare", "mamba"), ("tiny_shakespeare", "transformer"), ("ptb", "lstm")]
)
def test_greedy_from_a_run(generate, trained, data, model):
    job = trained(data, model)
    assert job.summary["state_bytes"] == STATE_BYTES[model]
    folder = job.folder
    status, out, err = generate(f"run={folder}", "prompt=the cat", "temperature=0", "max_new_tokens=12")
    assert status == 0 and not err
    assert out == greedy(folder, "the cat", 12) + "\n"


def test_samples(generate, trained):
    """Number i of several is the one of seed + i; the seed alone decides."""
    run = f"run={trained('tiny_shakespeare').folder}"
    one, two, other = (generate(run, "max_new_tokens=30", f"seed={seed}")[1] for seed in (5, 6, 7))
    assert len({one, two, other}) == 3
    status, out, _ = generate(run, "max_new_tokens=30", "seed=5", "n=2", "top_k=null")
    assert status == 0
    assert out == f"--- 1 of 2\n{one}--- 2 of 2\n{two}"


def test_precision(generate, trained):
    """Half precision samples a text of its own; float32 is what there is without the setting."""
    run = f"run={trained('tiny_shakespeare').folder}"
    usual, full, half = (
        generate(run, "max_new_tokens=30", "device=cpu", *precision)[:2]
        for precision in ((), ("precision=float32",), ("precision=bf16",))
    )
    assert usual == full
    assert half[0] == 0 and len(half[1]) >= 30


def test_streams(trained, environment):
    """A reader has the beginning long before the end is sampled, and may leave when it has enough."""
    arguments = [f"run={trained('tiny_shakespeare').folder}", "prompt=the", "max_new_tokens=100000000", "device=cpu"]
    command, pipe = [sys.executable, SCRIPT, *arguments], subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe) as process:
        assert process.stdout.read(50).startswith(b"the")
        process.stdout.close()
        assert (process.wait(timeout=60), process.stderr.read()) == (0, b"")


def test_a_terminal_gets_no_commands(generate, trained, monkeypatch, tmp_path):
    """A corpus may hold any character; a file gets the text as it is."""
    text = tmp_path / "corpora" / "tiny_shakespeare" / "input.txt"
    text.write_text("\x1b[2J\x9b\n" * 200)
    folder = trained("tiny_shakespeare", "linear").folder
    asked = f"run={folder}", "prompt=\x1b[2J\x9b", "temperature=0", "max_new_tokens=1"
    assert generate(*asked)[1].startswith("\x1b[2J\x9b")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert generate(*asked)[1].startswith(r"\x1b[2J\x9b")


def test_stop(generate, trained):
    run = f"run={trained('ptb', 'lstm').folder}"
    whole = generate(run, "prompt=the", "max_new_tokens=40", "seed=3")[1]
    stop = " ".join(max(whole.splitlines(), key=len).split()[-2:])  # across two tokens
    assert generate(run, "prompt=the", "max_new_tokens=40", "seed=3", f"stop={stop}")[1] == (
        "the" + whole.removeprefix("the").partition(stop)[0] + "\n"
    )


def test_the_best_weights_are_taken(trained):
    """Which are not the last ones at a rate like this."""
    job = trained("tiny_shakespeare", "linear", "trainer.evaluate_every=1", "schedule=constant", "optimizer.lr=9.0")
    best = job.summary["best_step"]
    assert best < 3
    loaded, saved = load_run(job.folder, CPU), checkpoint.path_of(job.folder / "checkpoints", best)
    assert loaded.step == best
    weights = load_file(saved / checkpoint.WEIGHTS)
    assert all(torch.equal(value, weights[name]) for name, value in loaded.model.state_dict().items())


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.MANIFEST])
def test_a_damaged_checkpoint_is_passed_over_aloud(generate, trained, name):
    """And left where it is: this only reads."""
    job = trained("tiny_shakespeare", "linear", "trainer.evaluate_every=1")
    last = checkpoint.existing(job.folder / "checkpoints")[-1]
    assert load_run(job.folder, CPU).step == checkpoint.step_of(last) == 3
    (last / name).write_bytes(b"")
    assert load_run(job.folder, CPU).step == 2
    assert last.is_dir()
    status, _, err = generate(f"run={job.folder}", "max_new_tokens=1")
    first, second = err.strip().splitlines()
    assert status == 0 and f"{last}: it cannot be used ({name}" in first and "step 2 are used" in second


def test_untrained_weights_are_asked_for(generate, trained):
    """Those of step 0 are all that is left when the others are damaged."""
    folder = trained("tiny_shakespeare", "linear").folder
    first, last = checkpoint.existing(folder / "checkpoints")
    (last / checkpoint.WEIGHTS).write_bytes(b"")
    status, out, err = generate(f"run={folder}", "max_new_tokens=1")
    assert (status, out) == (2, "")
    assert "step 0, which nothing has trained" in err and "untrained=true" in err.splitlines()[-1]
    status, _, err = generate(f"run={folder}", "max_new_tokens=1", "untrained=true")
    assert status == 0 and "step 0 are used" in err
    assert load_run(folder, CPU, untrained=True).step == checkpoint.step_of(first) == 0


def test_a_run_that_goes_on(trained, monkeypatch):
    """And deletes the checkpoint that was chosen, having written another."""
    folder = trained("tiny_shakespeare", "linear").folder / "checkpoints"
    last, usual = checkpoint.existing(folder)[-1], checkpoint.whole_weights

    def deleted(path):
        if path == last:
            manifest = json.loads((last / checkpoint.MANIFEST).read_text())
            (last / checkpoint.MANIFEST).write_text(json.dumps(manifest | {"step": 4, "best_step": 4}))
            last.rename(checkpoint.path_of(folder, 4))
        return usual(path)

    monkeypatch.setattr(checkpoint, "whole_weights", deleted)
    assert load_run(folder.parent, CPU).step == 4


def test_weights_are_read_once(trained, monkeypatch):
    """The bytes that are held against the manifest are those that are used; nothing else of a checkpoint is needed."""
    folder = trained("tiny_shakespeare", "linear").folder
    for path in (folder / "checkpoints").glob(f"*/{checkpoint.STATE}"):
        path.unlink()
    opened = []
    usual = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *args, **kw: (opened.append(path.name), usual(path, *args, **kw))[1])
    assert load_run(folder, CPU).step == 3
    assert opened.count(checkpoint.WEIGHTS) == 1


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "run=missing: names the model"),
            (["run=/nowhere"], "run=/nowhere: is no run folder: there is no such folder"),
            (["run={empty}"], "is no run folder: there is no config.yaml in it"),
            (["run={foreign}"], "is no run folder: its config.yaml describes no run"),
            (["run={broken}"], "is no run folder: config.yaml cannot be read"),
            (["run={empty}", "temprature=1"], "temprature=1: is no setting.\nDid you mean 'temperature'?"),
            (["run={empty}", "hello"], "arguments=hello: is not of the form key=value"),
            (["run={empty}", "temperature=warm"], "temperature=warm: input should be a valid number"),
            (["run={empty}", "temperature=-1"], "temperature=-1.0: must be 0 or more"),
            (["run={empty}", "n=0"], "n=0: input should be greater than 0"),
            (["run={empty}", "seed=-1"], "seed=-1: input should be greater than or equal to 0"),
            (["run={empty}", "device=tpu"], "device=tpu: input should be 'auto', 'cpu' or 'cuda'"),
        ],
    )
    def test_without_a_run(self, generate, tmp_path, arguments, message):
        for name, text in {"empty": None, "foreign": "a: 1", "broken": "a: [1"}.items():
            (tmp_path / name).mkdir()
            if text is not None:
                (tmp_path / name / "config.yaml").write_text(text)
        folders = {name: tmp_path / name for name in ("empty", "foreign", "broken")}
        status, out, err = generate(*(argument.format(**folders) for argument in arguments))
        assert (status, out) == (2, "")
        assert message in err
        assert "Traceback" not in err

    def test_on_a_run(self, generate, trained, tmp_path):
        folder = trained("tiny_shakespeare", "transformer_vanilla").folder
        for arguments, message in (
            (["prompt=ö"], "prompt='ö': holds the character 'ö', which is not in the vocabulary"),
            (["prompt=the", "max_new_tokens=15"], "a sequence of 17 is past the 16 positions that this model has"),
            (["data.dir=/nowhere", "data.cache_dir=/nowhere"], "tiny_shakespeare/input.txt not found in /nowhere"),
        ):
            status, out, err = generate(f"run={folder}", *arguments)
            assert (status, out) == (2, "")
            assert message in err
        assert generate(f"run={folder}", "prompt=the", "max_new_tokens=14")[0] == 0

        elsewhere = tmp_path / "moved"
        shutil.move(tmp_path / "corpora", elsewhere)
        status, out, _ = generate(f"run={folder}", f"data.dir={elsewhere}", "prompt=the", "max_new_tokens=3")
        assert status == 0 and out.startswith("the")

        shutil.rmtree(folder / "checkpoints")
        assert "has no whole checkpoint" in generate(f"run={folder}", f"data.dir={elsewhere}")[2]

    def test_a_model_of_another_task(self, generate, train):
        folder = train().folder
        status, _, err = generate(f"run={folder}")
        assert status == 2
        assert "was trained on regression" in err and "no text" in err


def test_help(generate):
    status, out, _ = generate("--help")
    assert status == 0
    assert "top_p" in out
