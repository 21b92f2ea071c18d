"""What people meet: the table, the run folder, resuming, and messages for mistakes, through the real entry point."""

import gc
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from seqlab.cli import main
from seqlab.config.command_line import in_order, quoted_path
from seqlab.config.exceptions import message_of
from seqlab.config.options import path_part
from seqlab.errors import resume_command
from seqlab.training import checkpoint
from support import ROOT, Job, assert_same_run, final_weights, script


class TestARun:
    def test_leaves_its_files(self, train):
        job = train()
        assert job.status == 0
        names = {path.name for path in job.folder.iterdir()}
        assert names == {".hydra", "config.yaml", "metrics.jsonl", "summary.json", "checkpoints", "train.log", ".lock"}
        assert "validation loss" in (job.folder / "train.log").read_text()

    def test_summary_has_all_of_the_table_and_where_it_came_from(self, train):
        summary = train("seed=7", "trainer.steps=3").summary
        assert summary["status"] == "completed"
        assert (summary["model"], summary["data"], summary["seed"]) == ("mamba", "synthetic", 7)
        assert (summary["steps"], summary["samples"], summary["tokens"]) == (3, 24, 24 * 16)
        assert summary["scan_backend"] == "cpu"
        assert summary["device"] == "cpu"
        assert set(summary["versions"]) == {"python", "torch", "triton", "seqlab"}
        assert summary["flops"] > 6 * 0.5 * summary["parameters"] * summary["tokens"]
        assert summary["command"].startswith("python ")
        assert set(summary["test"]) == set(summary["best_validation"])
        assert len(summary["test_loss_by_position"]) == 16
        for key in ("parameters", "wall_seconds", "tokens_per_second", "peak_memory_bytes", "git_commit", "folder"):
            assert key in summary

    def test_prints_the_table_and_the_folder_in_one_line(self, train, capsys):
        job = train(folder="a_long_name_" * 8)
        out = capsys.readouterr().out
        assert f"\nRun folder: {job.summary['folder']}\n" in out
        for name in (
            "parameters",
            "training FLOPs",
            "steps",
            "seen",
            "wall time",
            "throughput",
            "scan backend",
            "best validation",
        ):
            assert name in out

    def test_records(self, train):
        records = train().records
        assert [record["split"] for record in records] == ["train", "train", "validation", "test"]
        assert {"step", "tokens", "flops", "seconds", "loss", "lr", "grad_norm"} <= set(records[0])

    def test_is_repeatable_bitwise(self, train):
        assert_same_run(train(folder="a"), train(folder="b"))

    def test_another_seed_is_another_run(self, train):
        a, b = train("seed=1", folder="a"), train("seed=2", folder="b")
        assert a.records[0]["loss"] != b.records[0]["loss"]

    @pytest.mark.filterwarnings("ignore")  # the trackers' own
    @pytest.mark.parametrize("logger", ["wandb", "mlflow"])
    def test_optional_loggers(self, train, monkeypatch, tmp_path, logger):
        pytest.importorskip(logger)
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
        job = train(f"logger={logger}")
        assert job.status == 0
        assert train(f"resume={job.folder}", "trainer.steps=3").status == 0

    @pytest.mark.parametrize("logger", ["wandb", "mlflow"])
    def test_a_logger_that_is_not_installed(self, train, capsys, monkeypatch, logger):
        monkeypatch.setitem(sys.modules, logger, None)
        assert train(f"logger={logger}").status == 2
        assert f"pip install 'seqlab[{logger}]'" in capsys.readouterr().err

    def test_tensorboard(self, train):
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        job = train("logger=tensorboard")
        events = EventAccumulator(str(job.folder / "tensorboard"))
        events.Reload()
        assert events.Scalars("train/loss")[0].value == pytest.approx(job.records[0]["loss"], rel=1e-5)


class TestResume:
    LONG = (
        "trainer.steps=12",
        "trainer.evaluate_every=4",
        "trainer.checkpoint_every=3",
        "model=transformer",
        "model.dropout=0.1",
    )

    def test_a_killed_run_continues_to_the_same_end(self, train, tmp_path, environment):
        """kill -9 in the middle, then ``resume=``: bitwise the weights and metrics of a run never touched."""
        whole = train(*self.LONG, folder="whole")
        folder = tmp_path / "killed"
        arguments = [*train.small, *self.LONG, f"hydra.run.dir={folder}"]
        code = (
            "import os, signal, sys; from seqlab.training.trainer import Trainer; step = Trainer._train_step\n"
            "def mortal(self, bar):\n"
            "    step(self, bar)\n"
            "    if self.counters.step == 8: os.kill(os.getpid(), signal.SIGKILL)\n"
            "Trainer._train_step = mortal\n"
            f"sys.argv = ['train.py', *{arguments!r}]\n"
            f"import runpy; runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
        )
        killed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, cwd=tmp_path)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
        records = Job(folder, 0).records
        assert records[-1]["step"] == 8
        assert train(f"resume={folder}").status == 0
        assert_same_run(Job(folder, 0), whole)

    def test_from_the_checkpoint_before_a_damaged_one(self, train, capsys):
        whole = train(*self.LONG, folder="whole")
        job = train(*self.LONG)
        last = checkpoint.existing(job.folder / "checkpoints")[-1]
        (last / checkpoint.WEIGHTS).write_bytes(b"damaged")
        assert train(f"resume={job.folder}").status == 0
        assert f"{last} cannot be used" in capsys.readouterr().err
        assert_same_run(job, whole)

    def test_with_a_larger_budget(self, train):
        job = train("schedule=constant", "trainer.steps=4")
        assert "earlier_budgets" not in job.summary
        assert train(f"resume={job.folder}", "trainer.steps=6").status == 0
        assert job.summary["steps"] == 6
        log = (job.folder / "train.log").read_text()
        assert "The budget was 4 steps and is 6 now; the test split was read after 4 steps and is read again" in log

    def test_with_a_larger_budget_and_a_schedule_that_ends(self, train):
        """What is stretched and read again is said, and kept over a further change."""
        job = train("schedule=cosine", "trainer.steps=3", "model=linear")
        assert train(f"resume={job.folder}", "trainer.steps=5").status == 0
        log = (job.folder / "train.log").read_text()
        assert "is 5 now; the schedule spans all of them, from 0.1 of the full learning rate to 0.23 now; the" in log
        assert train(f"resume={job.folder}", "trainer.steps=6").status == 0
        first = {"total_steps": 3, "steps": 3, "test_read": True}
        assert job.summary["earlier_budgets"] == [first, {"total_steps": 5, "steps": 5, "test_read": True}]

    def test_keeps_what_hydra_composed_first(self, train):
        job = train("model=mlp")
        before = (job.folder / ".hydra" / "config.yaml").read_text()
        train(f"resume={job.folder}")
        assert (job.folder / ".hydra" / "config.yaml").read_text() == before
        assert job.summary["model"] == "mlp"

    def test_refuses_to_change_the_model(self, train, capsys):
        job = train()
        assert train(f"resume={job.folder}", "model=lstm").status == 2
        assert "a resumed run keeps its model" in capsys.readouterr().err

    def test_of_no_run_folder(self, train, capsys, caplog, tmp_path):
        assert train(f"resume={tmp_path / 'nothing'}").status == 2
        error = capsys.readouterr().err or caplog.messages[-1]  # before Hydra sets up its own log, or after
        assert re.search(r"resume=.*nothing: is no run folder.*\nName a folder", error)
        assert not (tmp_path / "nothing").exists()

    @pytest.mark.parametrize(
        ("left", "why"),
        [
            ({"config.yaml": "defaults: [size]\nname: x\n"}, "its config.yaml describes no run"),
            ({"config.yaml": "a: [\n"}, "config.yaml cannot be read"),
            ({"sweep.json": "{}"}, "it is a whole sweep's"),
            ({"notes.txt": ""}, "there is no config.yaml in it"),
        ],
    )
    def test_of_a_folder_that_is_no_runs(self, left, why, train, capsys, caplog, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()
        for name, text in left.items():
            (folder / name).write_text(text)
        assert train(f"resume={folder}").status == 2
        error = capsys.readouterr().err or caplog.messages[-1]
        assert f"resume={folder}: is no run folder: {why}" in error
        assert {path.name for path in folder.iterdir()} == set(left)  # nothing is written into it

    @pytest.mark.parametrize(
        "override", ["trainer=default", "trainer.batch_size=4", "trainer.precision=bf16", "seed=9"]
    )
    def test_refuses_what_would_make_it_another_run(self, train, capsys, override):
        job = train()
        assert train(f"resume={job.folder}", override).status == 2
        assert "a resumed run keeps" in capsys.readouterr().err

    def test_of_a_run_before_settings_that_came_later(self, train):
        job = train("model=linear")
        path = job.folder / "config.yaml"
        saved = yaml.safe_load(path.read_text())
        for key in ("threads", "debug", "sweep", "target"):
            del saved[key]
        path.write_text(yaml.safe_dump(saved))
        assert train(f"resume={job.folder}", "trainer.steps=3").status == 0

    def test_with_a_change_that_its_part_refuses(self, train, capsys):
        job = train("model=linear")
        for override, message in {
            "trainer.steps=soon": "trainer.steps=soon: input should be a valid integer",
            "device=tpu": "device=tpu: input should be 'auto', 'cpu' or 'cuda'",
            "+data.tests=[]": "data.tests=[]: seqlab.data.synthetic.Regression has no setting 'tests'",
        }.items():
            assert train(f"resume={job.folder}", override).status == 2
            assert message in capsys.readouterr().err

    def test_that_is_refused_leaves_the_run_as_it_was(self, train):
        job = train("trainer.steps=2")
        before = (job.folder / "config.yaml").read_text()
        assert train(f"resume={job.folder}", "trainer.epochs=1").status == 2
        assert (job.folder / "config.yaml").read_text() == before
        assert job.summary["status"] == "completed"
        assert train(f"resume={job.folder}", "trainer.steps=3").status == 0

    def test_a_fresh_run_leaves_another_alone(self, train, capsys):
        job = train("seed=1")
        before = final_weights(job.folder)
        assert train("seed=2").status == 2
        assert "holds a run already" in capsys.readouterr().err
        after = final_weights(job.folder)
        assert all(torch.equal(before[name], after[name]) for name in before)


def stopped(arguments, metrics, number, environment, tmp_path):
    """Exit status and messages of a run that gets a signal once it has recorded its first steps."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # whoever runs the tests may ignore it, as nohup does
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(number)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, error


ENDLESS = ("trainer.steps=100000", "trainer.log_every=1")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_signals(train, tmp_path, environment, number, status):
    """A checkpoint first, then how to go on, then the status that shells expect."""
    folder = tmp_path / "run"
    arguments = [*train.small, *ENDLESS, f"hydra.run.dir={folder}"]
    code, error = stopped(arguments, folder / "metrics.jsonl", number, environment, tmp_path)
    assert code == status, error
    step = int(re.search(r"Stopped at step (\d+)", error).group(1))
    assert f"python train.py 'resume=\"{folder}\"'" in error
    assert checkpoint.latest(folder / "checkpoints") == checkpoint.path_of(folder / "checkpoints", step)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("interrupted", step)


def test_a_signal_ends_the_whole_sweep(train, tmp_path, environment):
    arguments = ["-m", *train.small, *ENDLESS, "seed=1,2", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${seed}"]
    code, error = stopped(arguments, tmp_path / "1" / "metrics.jsonl", signal.SIGINT, environment, tmp_path)
    assert code == 130, error
    assert "Stopped at step" in error
    assert not (tmp_path / "2").exists()


def test_a_stopped_sweep_goes_on_with_the_command_that_was_printed(train, tmp_path, environment):
    arguments = [
        "-m",
        *train.small,
        *ENDLESS,
        "seed=1,2",
        f"hydra.sweep.dir={tmp_path}",
        "hydra.sweep.subdir='s=${seed}'",
    ]
    folder = tmp_path / "s=1"
    code, error = stopped(arguments, folder / "metrics.jsonl", signal.SIGTERM, environment, tmp_path)
    assert code == 143, error
    before = json.loads((folder / "summary.json").read_text())
    printed = shlex.split(re.search(r"python \S*train.py (.*)", error).group(1))
    (folder / "metrics.jsonl").rename(tmp_path / "seen")
    assert stopped(printed, folder / "metrics.jsonl", signal.SIGTERM, environment, tmp_path)[0] == 143
    after = json.loads((folder / "summary.json").read_text())
    assert before["status"] == after["status"] == "interrupted"
    assert after["steps"] > before["steps"]
    assert "Continuing from" in (folder / "train.log").read_text()


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
    "unknown backend": (
        ["model.mixers.mamba.scan_backend=cude"],
        r"scan_backend=cude: .*auto, cpu, triton, parallel, reference",
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


def test_how_to_resume_is_typed_as_it_is_printed():
    for folder in ("outputs/a b", "it's", 'say "it"', "a=1,b=2"):
        printed = shlex.split(resume_command(folder))[2]
        from hydra.core.override_parser.overrides_parser import OverridesParser

        (argument,) = in_order([printed])
        assert OverridesParser.create().parse_override(argument).value() == folder


def test_a_name_that_is_too_long_is_that_of_its_setting(monkeypatch, tmp_path):
    folder = tmp_path / ("a" * 300)
    monkeypatch.setattr(sys, "argv", ["train.py", "model=mlp", f"hydra.run.dir={folder}"])
    with pytest.raises(OSError, match="too long") as error:
        folder.mkdir()
    assert message_of(error.value).startswith(f"hydra.run.dir={'a' * 300}: the name is too long")


def test_the_m_may_stand_anywhere():
    """Hydra itself takes it in front and at the end."""
    for given in (["a=1", "-m", "b=2"], ["--multirun", "a=1", "b=2"], ["a=1", "b=2", "-m"]):
        assert in_order(given) == ["-m", "a=1", "b=2"]
    assert in_order(["a=1", "--cfg", "job"]) == ["a=1", "--cfg", "job"]
    assert in_order(["--cfg", "job", "a=1", "-m"]) == ["-m", "a=1", "--cfg", "job"]


def test_debug_shows_the_traceback(train, capsys):
    assert train("trainer.steps=soon", "debug=true").status == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_fault_of_ours_shows_its_traceback(train, capsys, monkeypatch):
    from seqlab.training.trainer import Trainer

    monkeypatch.setattr(Trainer, "_train_step", lambda self, bar: 1 / 0)
    assert train().status == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_no_space_left(train, environment, tmp_path):
    """A limit on the size of files, which the weights of the first checkpoint pass: writing fails as on a full disk."""
    folder = tmp_path / "run"
    arguments = [*train.small, f"hydra.run.dir={folder}"]
    code = (
        "import resource, signal, sys, runpy\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"sys.argv = ['train.py', *{arguments!r}]\n"
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, cwd=tmp_path, text=True)
    assert ended.returncode == 2, ended.stderr
    assert "no space left" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"
    assert not list((folder / "checkpoints").iterdir())


def test_divergence_is_said(train, capsys):
    job = train(
        "optimizer=sgd", "optimizer.lr=1.0e+30", "trainer.steps=40", "trainer.clip_norm=null", "schedule.warmup=0"
    )
    assert job.status == 1
    assert "not finite" in capsys.readouterr().err
    assert job.summary["status"] == "diverged"


def test_help_and_cfg(environment, tmp_path):
    shown = script("--help", environment=environment, folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"^model=\n", shown.stdout, re.MULTILINE)
    assert re.search(r"^  mamba +Mamba-1", shown.stdout, re.MULTILINE)
    composed = script("model=lstm", "--cfg", "job", environment=environment, folder=tmp_path)
    assert composed.returncode == 0, composed.stderr
    assert "seqlab.models.mixers.LSTM" in composed.stdout


def imported(source: str, environment: dict[str, str], *arguments: str) -> set[str]:
    """Every module that a Python process imports."""
    told = environment | {"PYTHONPROFILEIMPORTTIME": "1"}  # on standard error
    command = [sys.executable, *(["-c", source] if source else []), *arguments]
    ended = subprocess.run(command, env=told, capture_output=True, text=True)
    return set(re.findall(r"^import time:.*\| +(\S+)$", ended.stderr, re.MULTILINE))


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["optimizer.lrr=1"], ["model=mamab"]])
def test_what_needs_no_torch_waits_for_none(arguments, environment):
    names = imported("", environment, str(ROOT / "train.py"), *arguments)
    assert "hydra" in names
    assert not names & {"torch", "numpy", "pydantic", "joblib", "submitit", "optuna"}


def test_what_a_run_needs_is_all_that_it_imports(environment):
    names = imported("import seqlab.experiment", environment)
    assert "torch" in names
    slow = {"torchmetrics", "matplotlib", "transformers", "datasets", "pandas", "optuna", "torch._dynamo"}
    assert not names & slow, "everybody would wait for it at every start"


def test_what_is_imported_is_not_looked_through_for_garbage(monkeypatch):
    with main.importing():
        assert gc.isenabled(), "a later job of a sweep leaves garbage"
    monkeypatch.delitem(sys.modules, "torch")
    before = gc.get_freeze_count()
    try:
        with main.importing():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(("rank", "said"), [("0", "torchrun=2 processes: a run trains in one process"), ("1", "")])
def test_copies_of_torchrun_are_refused(rank, said, train, monkeypatch, caplog):
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": rank}.items():
        monkeypatch.setenv(name, value)
    job = train()
    told = [record.getMessage() for record in caplog.records]
    assert job.status == 2
    assert not job.folder.exists()
    assert [message.partition(",")[0] for message in told] == ([said] if said else [])


def test_one_process_of_torchrun_is_a_run(train, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert train("model=linear").status == 0


def test_the_folder_of_a_sweeps_job_is_typed_as_it_is_called(train):
    first = train("model=linear", folder="model=linear,seed=1")
    assert first.status == 0
    assert train(f"resume={first.folder}", "trainer.steps=3").status == 0
    assert first.summary["steps"] == 3


@pytest.mark.parametrize("path", ["a b/model=x,seed=1", 'say "it"', 'back\\"slash,', "plain", "'quoted=1'"])
def test_a_path_reaches_hydra_as_it_was_typed(path):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    argument = quoted_path(f"resume={path}")
    value = OverridesParser.create().parse_override(argument).value()
    assert value == path.strip("'")
    assert quoted_path("resume=${other},x") == "resume=${other},x"
    assert quoted_path(f"prompt={path}") == f"prompt={path}"
    assert quoted_path("data.dir=one,two", swept=True) == "data.dir=one,two"


def test_help_that_nobody_reads_to_its_end(environment, tmp_path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, str(ROOT / "train.py"), "--help"]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_sweep(train, environment, tmp_path):
    """One folder with a folder a job, named by its overrides; a job that fails is said and does not stop the others."""
    sweep = ("-m", *train.small, "model=mlp,linear", "trainer.batch_size=64,8")
    swept = script(*sweep, environment=environment, folder=tmp_path)
    assert swept.returncode == 1, swept.stderr
    assert swept.stderr.count("trainer.batch_size=64: must lie") == 2
    assert "Traceback" not in swept.stderr
    (folder,) = (tmp_path / "outputs").glob("sweep_*")
    status = {}
    for path in folder.rglob("summary.json"):
        name = re.search(r"model=\w+,.*trainer.batch_size=\d+", path.parent.name).group()
        status[name.split(",")[0], name[-2:]] = json.loads(path.read_text())["status"]
        assert (path.parent / "train.log").stat().st_size
    assert status == {
        ("model=mlp", "64"): "failed",
        ("model=linear", "64"): "failed",
        ("model=mlp", "=8"): "completed",
        ("model=linear", "=8"): "completed",
    }


def test_the_default_folder_is_named_by_model_data_and_time(train, environment, tmp_path):
    alone = script(*train.small, "model=linear", environment=environment, folder=tmp_path)
    assert alone.returncode == 0, alone.stderr
    (run,) = (tmp_path / "outputs").glob("linear_synthetic_*")
    assert (run / "summary.json").is_file()
