"""Messages of a line or two for what was mistyped, for a full disk and for a loss that diverges."""

import json
import re
import resource
import runpy
import signal
import sys

import pytest

import forks
from seqlab.config.exceptions import message_of
from seqlab.config.options import path_part
from support import ROOT

MISTAKES = {
    "unknown option": (["model=mambo"], r"model=mambo: is no option of model\.\n.*'mamba'"),
    "unknown group": (["modle=mamba"], r"modle=mamba: .*\n.*'model'"),
    "unknown setting": (["trainer.stepz=3"], r"trainer\.stepz=3: .*\n.*'trainer\.steps'"),
    "unknown setting, new": (["+trainer.stepz=3"], r"trainer\.stepz=3: .*\n.*'steps'"),
    "wrong type": (["trainer.steps=soon"], r"trainer\.steps=soon: input should be a valid integer"),
    "bad syntax": (["trainer.steps=["], r"command line.*trainer\.steps=\["),
    "two budgets": (["trainer.epochs=1"], r"trainer\.steps, trainer\.epochs=2, 1: .*exactly one"),
    "heads": (["model=transformer", "size.n_heads=5"], r"size\.n_heads=5: must divide d_model=64"),
    "pattern longer than depth": (
        ["model.pattern=[mamba,mamba,mamba]"],
        r"model\.pattern=.*do not fit into n_layers=2",
    ),
    "batch larger than the data": (["trainer.batch_size=64"], r"trainer\.batch_size=64: .*32"),
    "a mapping for a list": (
        ["data=copying", "data.tests={length:64}"],
        r"data\.tests=\{length:64\}: .*\nGive it a list, .* for example \[\{length: 512\}, \{length: 1024\}\]\.",
    ),
    "a mapping for the list of a part": (["model.pattern={a:1}"], r"model\.pattern=\{a:1\}: .*\nGive it a list"),
    "a list for a mapping": (["data.metrics=[1]"], r"data\.metrics=\[1\]: .*\nGive it a mapping or null"),
    "no such device": (["device=tpu"], r"device=tpu: .*'auto', 'cpu' or 'cuda'"),
    "no number": (["seed=abc"], r"seed=abc: input should be a valid integer.*\nGive it a whole number of at least 0\."),
    "a width of nothing": (["size.d_model=0"], r"size\.d_model=0: input should be greater than 0"),
    "a negative rate": (["optimizer.lr=-1"], r"optimizer\.lr=-1: .* greater than 0\.\nGive it a number above 0\."),
    "a share of all": (["model.dropout=1"], r"model\.dropout=1: .*\nGive it a number of at least 0 and below 1\."),
    "several values": (["seed=1,2"], r"seed=1,2: is several values, .*\nAdd -m .* 'seed=\[1,2\]' for a list"),
    "a space too many": (["model=mamba,", "lstm"], r"command line=model=mamba,: cannot be read\.\n.*without spaces"),
    "an option by itself": (["lstm"], r"command line=lstm: is no setting with a value\.\nDid you mean model=lstm\?"),
    "a setting by another name": (["trainer.early_stopping=3"], r"no setting\.\nDid you mean 'trainer\.patience'\?"),
    "a new setting": (["+optimiser.lr=3"], r"\+optimiser\.lr=3: .*nothing reads\.\nDid you mean 'optimizer\.lr'\?"),
    "a dash": (["-model=lstm"], r"-model=lstm: a setting is written without dashes\.\nWrite model=lstm"),
    "dashes": (["--model=lstm"], r"--model=lstm: a setting is written without dashes\.\nWrite model=lstm"),
    "a plus too many": (["+model=lstm"], r"model=lstm: is chosen already.*\n.*model=\.\.\., without a \+"),
    "no option at all": (["model="], r"model=: is no option of model\.\npython train.py --help lists all"),
    "a setting of another part": (["data.fractions=[1]"], r"data\.fractions=\[1\]: is no setting\.\ndata has length, "),
    "a setting of another mixer": (
        ["model.mixers.attention.window=3"],
        r"window=3: is no setting\.\nmodel\.mixers has mamba ",
    ),
    "Hydra's own": (["hydra.sweep.dirr=x"], r"hydra\.sweep\.dirr=x: is no setting of Hydra's\.\n.*--cfg hydra"),
    "a round number": (["trainer.steps=1e4"], r"trainer\.steps=10000\.0: .*\n.*, for example 10000\."),
    "a name for a list": (["model.pattern=mamba"], r"model\.pattern=mamba: .*\n.*, for example \[mamba\]\."),
    "a missing setting": (["~data.length"], r"data\.length=missing: seqlab\.data\.synthetic\.Regression needs it"),
    "a mixer that is built too early": (
        ["model.mixers.mamba._partial_=false"],
        r"model\.mixers\.mamba\.d_model=missing: .*needs it\.\nWrite _partial_: true beside its _target_",
    ),
    "a target that is none": (["target=foo"], r"target=foo: must be a mapping of a path .*\nFor example target: "),
    "a launcher that is not installed": (["hydra/launcher=ray"], r"hydra/launcher=ray: .*plugin"),
    "a launcher's name": (["hydra/launcher=joblibb"], r"hydra/launcher=joblibb: .*plugin.*\nDid you mean 'joblib'\?"),
    "a number for an option": (["optimizer=1"], r"optimizer=1: is no option of optimizer\.\nThere are: adam, "),
    "options in a list": (
        ["model=[gru,lstm]"],
        r"model=\[gru,lstm\]: is no option of model\.\n.*-m .*model=gru,lstm\.",
    ),
    "no option where one is needed": (["model=null"], r"model=null: is no option of model\."),
    "an option taken away": (["~model"], r"command line=~model: a run needs one\.\nChoose another: model="),
    "a setting taken away": (["~seed"], r"seed=missing: a run needs it\.\nSet seed="),
    "what is not there taken away": (
        ["~sead"],
        r"command line=~sead: takes away what is not there\.\nDid you mean 'seed'",
    ),
    "a setting added": (["+seed=1"], r"\+seed=1: is a setting already\.\nWrite seed=1, without the \+"),
    "no key": (["=x"], r"command line==x: cannot be read\."),
    "a group of settings": (["sweep=1"], r"sweep=1: is a group of settings\.\nSet sweep\.resume="),
    "Hydra's own, of a wrong form": (["hydra.mode=x"], r"hydra\.mode=x: does not have the form that it takes\."),
    "a configuration": (["--config-name", "nope"], r"^--config-name=nope: there is no configuration"),
    "a folder in place of ours": (["--config-path=nope"], r"^--config-path=/.*/nope: there is no such folder\."),
    "a folder of configurations": (["--config-dir", "/nope"], r"^--config-dir=/nope: there is no such folder\."),
    "a flag": (["--config-naem=x"], r"command line=--config-naem=x: is no flag\.\nDid you mean --config-name\?"),
    "a flag's value": (["--cfg", "jobs"], r"command line=.*--cfg jobs.*: argument --cfg/-c: invalid choice"),
    "a flag without another": (["--resolve"], r"command line=.*--resolve.*: --resolve .* goes with --cfg job"),
    "a target that is not there": (["model._target_=x"], r"^model\._target_=x: cannot be used"),
    "too many threads": (["threads=5000"], r"threads=5000: this machine has \d+ cores\.\nGive it \d+ or fewer"),
    "a name that leads elsewhere": (["name=../../x"], r"name=\.\./\.\./x: .* cannot have / or .*\n.*name=mamba_2\."),
    "a name that hides": (["name=.x"], r"name=\.x: .* cannot begin with a dot\."),
    "no name": (["name="], r"name=: .* cannot be empty\."),
    "a name of characters that nobody sees": (["name='a\tb'"], r"name=a\\x09b: .* characters in it that nobody sees\."),
    "a number for a name": (["name=5"], r"name=5: .*string\.\nGive it text"),
    "a name of the data that leads elsewhere": (["data_name=a/b"], r"data_name=a/b: .* cannot have / or "),
    "no folder": (["data.dir="], r"data\.dir=: names no folder\."),
    "no data files": (["data=ptb", "data.dir=/nowhere", "data.download=null"], r"data\.dir=/nowhere: ptb/ptb\.train"),
    "a share that cannot be rotated": (
        ["model=mamba3", "model.mixers.mamba3.rope_fraction=0"],
        r"^model\.mixers\.mamba3\.rope_fraction=0: must be 0\.5 or 1\.\nChoose one",
    ),
    "unknown backend": (
        ["model=hybrid_falcon", "model.mixers.mamba2.scan_backend=cude"],
        r"model\.mixers\.mamba2\.scan_backend=cude: .*auto, triton, parallel, reference\."
        r"\nUse model\.mixers\.mamba2\.scan_backend=auto",
    ),
    "a setting of one feed-forward of several": (
        ["model=hybrid_nemotron", "model.feedforward.1.backend=cude"],
        r"^model\.feedforward\.1\.backend=cude: .*\nGive it auto or triton",
    ),
}


@pytest.mark.parametrize(("overrides", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_get_a_message(train, capsys, caplog, overrides, message):
    job = train(*overrides, small="data=ptb" not in overrides)
    error = capsys.readouterr().err or caplog.messages[-1]  # before Hydra sets up its own log, or after
    assert job.status == 2, error
    assert re.search(message, error)
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) <= 2


@pytest.mark.parametrize("name", ["../../x", "'a b/c'", ".x", "''", "5", "null", "[a]"])
def test_a_name_leads_to_no_other_folder(name, train, monkeypatch, capsys, caplog, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *train.small, f"name={name}"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    assert ended.value.code == 2
    said = capsys.readouterr().err or caplog.messages[-1]
    assert re.search(r"^name=.*: is part of the name of the run's folder, and .*\nGive it a plain name", said)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_name_is_one_part_of_a_path():
    assert path_part("name", "a b", "mamba") == "a b"
    assert (
        path_part("name", "mine/deep", "mine/deep") == "mine_deep"
    )  # model=mine/deep, an option in a folder of its own


def test_a_name_that_is_too_long_is_that_of_its_setting(monkeypatch, tmp_path):
    folder = tmp_path / ("a" * 300)
    monkeypatch.setattr(sys, "argv", ["train.py", "model=mlp", f"hydra.run.dir={folder}"])
    with pytest.raises(OSError, match="too long") as error:
        folder.mkdir()
    assert message_of(error.value).startswith(f"hydra.run.dir={'a' * 300}: the name is too long")


def test_debug_shows_the_traceback(train, capsys):
    assert train("trainer.steps=soon", "debug=true").status == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_fault_of_ours_shows_its_traceback(train, capsys, monkeypatch):
    from seqlab.training.trainer import Trainer

    monkeypatch.setattr(Trainer, "_train_step", lambda self, bar: 1 / 0)
    assert train().status == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def train_on_a_small_disk(*arguments: str) -> None:
    """A limit on the size of files, which the weights of the first checkpoint pass: writing fails as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    forks.train(*arguments)


def test_no_space_left(train, tmp_path):
    folder = tmp_path / "run"
    arguments = [*train.small, f"hydra.run.dir={folder}"]
    status, said = forks.finish(tmp_path / "screen", train_on_a_small_disk, *arguments)
    assert status == 2, said
    assert "no space left" in said
    assert "Traceback" not in said
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"
    assert not list((folder / "checkpoints").iterdir())


def test_divergence_is_said(train, capsys):
    job = train(
        "optimizer=sgd", "optimizer.lr=1.0e+30", "trainer.steps=40", "trainer.clip_norm=null", "schedule.warmup=0"
    )
    assert job.status == 1
    assert "not finite" in capsys.readouterr().err
    assert job.summary["status"] == "diverged"
