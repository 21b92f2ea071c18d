"""Reading runs back: what a run left comes back as it was, and no folder is ever fatal."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqlab.benchmarks.run_trees import records_of, to_lines, write_run
from seqlab.errors import UserError
from seqlab.report import curves, runs
from seqlab.report.runs import Run, Skipped, read, read_folder


def why(skipped: list[Skipped], root: Path) -> dict[str, str]:
    return {str(one.folder.relative_to(root)): one.why for one in skipped}


def test_a_run_comes_back_as_the_trainer_left_it(train):
    job = train("model=mlp", "seed=3")
    (run,), skipped = read([job.folder])
    assert not skipped
    assert run.folder == job.folder
    assert run.summary == job.summary
    assert (run.config["name"], run.config["seed"], run.config["model"]["d_model"]) == ("mlp", 3, 64)
    for split in ("train", "validation", "test"):
        records = [record for record in job.records if record["split"] == split]
        assert set(run.curves[split]) == set(records[0]) - {"split"}
        for name, values in run.curves[split].items():
            assert values.dtype == np.float64
            assert values.tolist() == [record[name] for record in records]


def test_null_and_missing_numbers_become_nan():
    records = [{"step": 1, "split": "train", "loss": None}, {"step": 2, "split": "train", "loss": 1.5, "lr": 0.1}]
    train = curves.read_curves(to_lines(records).encode())["train"]
    assert np.isnan(train["loss"]).tolist() == [True, False]
    assert np.isnan(train["lr"]).tolist() == [True, False]


def test_records_that_a_resumed_run_wrote_again_stand_in_the_order_of_steps():
    records = [{"step": step, "split": "train", "loss": step / 2} for step in (1, 3, 2)]
    assert curves.read_curves(to_lines(records).encode())["train"]["loss"].tolist() == [0.5, 1.0, 1.5]


@pytest.mark.parametrize("steps", [1999, 2000, 4500, 10_000])
def test_a_long_run_is_thinned_and_its_evaluations_are_not(steps):
    records = records_of(steps=steps, loss=2.0, flops_per_step=1000, evaluate_every=7)
    read = curves.read_curves(to_lines(records).encode())
    by_step = {record["step"]: record for record in records if record["split"] == "train"}
    kept = read["train"]["step"]
    assert curves.POINTS <= len(kept) <= 2 * curves.POINTS + 1
    assert kept[-1] == steps
    assert np.ptp(np.diff(kept)[:-1]) == 0
    for name in ("loss", "tokens", "lr", "grad_norm"):
        assert read["train"][name].tolist() == [by_step[step][name] for step in kept]
    for split in ("validation", "test"):
        whole = [record for record in records if record["split"] == split]
        assert read[split]["loss"].tolist() == [record["loss"] for record in whole]
        assert read[split]["step"].tolist() == [record["step"] for record in whole]


@pytest.mark.parametrize("bad", [b'{"step": 4001, "split": "tra', b"\x00\xff\xfe", b"", b"[1, 2]", b'"text"', b"}{"])
def test_a_bad_line_in_a_long_file_is_found_wherever_it_stands(bad):
    records = records_of(steps=5000, loss=2.0, flops_per_step=1000, evaluate_every=100)
    lines = to_lines(records).encode().splitlines()
    for place in (0, 1233, 3001, len(lines) - 2):
        with pytest.raises(curves.Damaged):
            curves.read_curves(b"\n".join([*lines[:place], bad, *lines[place + 1 :]]))


def test_sweeps_runs_and_globs_are_found_and_each_run_is_read_once(tmp_path):
    for name in ("sweep/model=[a,b],seed=1", "sweep/seed=2", "deep/er/sweep/seed=1", "alone"):
        write_run(tmp_path / name)
    (tmp_path / "sweep" / "multirun.yaml").write_text("hydra: {}\n")
    (tmp_path / "again").symlink_to(tmp_path / "alone")
    everything, skipped = read([tmp_path])
    assert {run.folder.resolve() for run in everything} == {path.parent for path in tmp_path.rglob("summary.json")}
    assert len(everything) == 4
    assert not skipped
    arguments = [tmp_path / "sweep", tmp_path / "sweep" / "seed=2", tmp_path / "sweep" / "*", tmp_path / "s*"]
    assert len(read(arguments)[0]) == 2
    assert [run.folder.name for run in read([tmp_path / "sweep" / "model=[a,b],seed=1"])[0]] == ["model=[a,b],seed=1"]
    assert len(read([tmp_path / "**" / "seed=*"])[0]) == 2


def test_a_relative_glob_is_taken_from_here(tmp_path, monkeypatch):
    write_run(tmp_path / "outputs" / "one")
    monkeypatch.chdir(tmp_path)
    assert [run.folder for run in read([Path("outputs/o*")])[0]] == [Path("outputs/one")]


@pytest.mark.parametrize("name", ["nowhere", "no*where", "one/nowhere"])
def test_a_name_that_leads_nowhere_is_a_mistake(tmp_path, name):
    write_run(tmp_path / "one")
    with pytest.raises(UserError, match=r"nowhere|no\*where"):
        read([tmp_path / name])


def damage(folder: Path, name: str, content: str | bytes) -> None:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def change(folder: Path, **values: object) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    damage(folder, "summary.json", json.dumps(summary | values))


def metrics(folder: Path) -> str:
    return (folder / "metrics.jsonl").read_text()


NO_LOSS = "damaged: summary.json: test.loss is null, not a valid number"

# Each kind of damage: what is done to a good run's folder, and what the list must say of it.
DAMAGE = {
    "summary cut": (lambda f: damage(f, "summary.json", (f / "summary.json").read_text()[:200]), "damaged: summary"),
    "summary empty": (lambda f: damage(f, "summary.json", ""), "damaged: summary.json"),
    "summary rubbish": (lambda f: damage(f, "summary.json", os.urandom(999)), "damaged: summary.json"),
    "summary deep": (lambda f: damage(f, "summary.json", "[" * 100_000), "damaged: summary.json"),
    "summary a list": (lambda f: damage(f, "summary.json", "[1, 2]"), "damaged: summary.json is no mapping"),
    "summary gone": (lambda f: (f / "summary.json").unlink(), "damaged: there is no summary.json"),
    "summary a folder": (
        lambda f: ((f / "summary.json").unlink(), (f / "summary.json").mkdir()),
        "damaged: summary.json cannot be read",
    ),
    "summary a loop": (
        lambda f: ((f / "summary.json").unlink(), (f / "summary.json").symlink_to(f / "summary.json")),
        "damaged: ",
    ),
    "seed text": (lambda f: change(f, seed="one"), "damaged: summary.json: seed"),
    "seed a flag": (lambda f: change(f, seed=True), "damaged: summary.json: seed"),
    "model null": (lambda f: change(f, model=None), "damaged: summary.json: model"),
    "status a number": (lambda f: change(f, status=7), "damaged: summary.json: status"),
    "parameters text": (lambda f: change(f, parameters="many"), "damaged: summary.json: parameters"),
    "flops a list": (lambda f: change(f, flops=[1]), "damaged: summary.json: flops"),
    "device a number": (lambda f: change(f, device_name=3), "damaged: summary.json: device_name"),
    "state text": (lambda f: change(f, state_bytes="big"), "damaged: summary.json: state_bytes"),
    "test a list": (lambda f: change(f, test=[2.0]), "damaged: summary.json: test"),
    "test text": (lambda f: change(f, test={"loss": "low"}), "damaged: summary.json: test"),
    "test null": (
        lambda f: change(f, test={"loss": None}),
        "damaged: summary.json: test.loss is null, not a valid number",
    ),
    "test infinite": (
        lambda f: change(f, test={"loss": float("inf")}),
        "damaged: summary.json: test.loss is null, not a valid number",
    ),
    "validation gone": (lambda f: change(f, best_validation=None), "damaged: summary.json: best_validation"),
    "positions text": (lambda f: change(f, test_loss_by_position=["a"]), "test_loss_by_position"),
    "config cut": (lambda f: damage(f, "config.yaml", "name: mamba\nmodel: {a: "), "damaged: config.yaml"),
    "config rubbish": (lambda f: damage(f, "config.yaml", b"\x00\x01\xff" * 50), "damaged: config.yaml"),
    "config a list": (lambda f: damage(f, "config.yaml", "- 1\n- 2\n"), "damaged: config.yaml is no mapping"),
    "config text": (lambda f: damage(f, "config.yaml", "data: words\nmodel: 3\n"), "damaged: config.yaml: data"),
    "config gone": (lambda f: (f / "config.yaml").unlink(), "damaged: there is no config.yaml"),
    "metrics gone": (lambda f: (f / "metrics.jsonl").unlink(), "damaged: there is no metrics.jsonl"),
    "metrics empty": (lambda f: damage(f, "metrics.jsonl", ""), "damaged: metrics.jsonl"),
    "metrics cut": (lambda f: damage(f, "metrics.jsonl", metrics(f)[:-30]), "damaged: metrics.jsonl"),
    "metrics half": (
        lambda f: damage(f, "metrics.jsonl", "".join(metrics(f).splitlines(keepends=True)[:50])),
        "damaged: metrics.jsonl ends at step 40 of 100",
    ),
    "metrics rubbish": (lambda f: damage(f, "metrics.jsonl", os.urandom(5000)), "damaged: metrics.jsonl"),
    "metrics words": (
        lambda f: damage(f, "metrics.jsonl", '{"step": 1, "split": "train", "loss": "low"}\n'),
        "damaged: metrics.jsonl: loss is no number",
    ),
    "metrics without split": (lambda f: damage(f, "metrics.jsonl", '{"step": 1}\n'), "no step and split"),
    "metrics of NaN": (
        lambda f: damage(f, "metrics.jsonl", metrics(f).replace('"loss": ', '"loss": NaN, "was": ')),
        "damaged: metrics.jsonl: no validation loss is a number",
    ),
    "running": (lambda f: change(f, status="running"), "still running, or killed"),
    "failed": (lambda f: change(f, status="failed", error="out of memory\nmore"), "failed: out of memory"),
    "failed at once": (
        lambda f: (change(f, status="failed", error="model.pattern=[x]: no"), (f / "config.yaml").unlink()),
        "failed: model.pattern=[x]: no",
    ),
    "diverged": (lambda f: change(f, status="diverged", error="The loss"), "diverged: The loss"),
    "interrupted": (lambda f: change(f, status="interrupted"), "interrupted"),
    "not begun": (
        lambda f: [(f / name).unlink() for name in ("summary.json", "metrics.jsonl", "config.yaml")],
        "no summary.json",
    ),
    "foreign summary": (lambda f: damage(f, "summary.json", '{"coverage": 87}'), "another project's"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_kind_of_damage_is_listed_and_never_fatal(tmp_path, kind):
    spoil, message = DAMAGE[kind]
    write_run(tmp_path / "good")
    spoil(write_run(tmp_path / "bad", seed=2))
    found, skipped = read([tmp_path])
    assert [run.folder.name for run in found] == ["good"]
    assert list(why(skipped, tmp_path)) == ["bad"]
    assert message in skipped[0].why
    assert "\n" not in skipped[0].why


def test_a_tree_with_all_of_it_at_once(tmp_path):
    write_run(tmp_path / "good")
    for kind, (spoil, _) in DAMAGE.items():
        spoil(write_run(tmp_path / "sweep" / kind))
    (tmp_path / "empty").mkdir()
    (tmp_path / "sweep" / "empty job").mkdir()
    project = tmp_path / "foreign" / "src" / "deep"
    project.mkdir(parents=True)
    (project / "main.py").write_text("print()\n")
    (tmp_path / "foreign" / "config.yaml").write_text("title: something else\n")
    (tmp_path / "good" / "inside").mkdir()
    (tmp_path / "foreign" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "comparisons" / "now" / "x").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("a file among the folders\n")
    found, skipped = read([tmp_path])
    reasons = why(skipped, tmp_path)
    assert [run.folder.name for run in found] == ["good"]
    assert {f"sweep/{kind}" for kind in DAMAGE} <= set(reasons)
    rest = {name: reason for name, reason in reasons.items() if name.removeprefix("sweep/") not in DAMAGE}
    assert rest == {
        "empty": "empty",
        "sweep/empty job": "empty",
        "foreign/src": "no run folder, and none below it",
        "foreign/up": "a link to a folder above it",
        "self": "a link that leads nowhere",
        "gone": "a link that leads nowhere",
    }


def test_a_foreign_tree_is_told_of_in_one_line(tmp_path):
    for name in ("a/b/c", "a/d", "e"):
        (tmp_path / "project" / name).mkdir(parents=True)
        (tmp_path / "project" / name / "file.txt").write_text("x")
    write_run(tmp_path / "good")
    assert why(read([tmp_path])[1], tmp_path) == {"project": "no run folder, and none below it"}
    assert why(read([tmp_path / "project"])[1], tmp_path) == {"project": "no run folder, and none below it"}


def test_a_file_in_place_of_a_folder(tmp_path):
    folder = write_run(tmp_path / "sweep" / "good")
    (tmp_path / "sweep" / "multirun.yaml").write_text("hydra: {}\n")
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").write_text("a file")
    (tmp_path / "sweep" / "file").write_text("a file")
    found, skipped = read([tmp_path / "sweep" / "*"])
    assert len(found) == 1
    assert why(skipped, tmp_path) == {"sweep/file": "a file, no folder"}


def test_folders_and_files_that_may_not_be_read(tmp_path, monkeypatch):
    write_run(tmp_path / "good")
    closed, half = write_run(tmp_path / "closed"), write_run(tmp_path / "half")
    closed.chmod(0)
    (half / "metrics.jsonl").chmod(0)
    if os.access(closed, os.R_OK):  # for root nothing is closed: let the system's answer be what others get
        for name, refused in (("scandir", closed), ("open", half / "metrics.jsonl")):
            module = os if name == "scandir" else __import__("io")
            monkeypatch.setattr(module, name, refusing(getattr(module, name), refused))
    found, skipped = read([tmp_path])
    closed.chmod(0o700)
    assert [run.folder.name for run in found] == ["good"]
    reasons = why(skipped, tmp_path)
    assert set(reasons) == {"closed", "half"}
    assert all("cannot be read (Permission denied)" in reason for reason in reasons.values())


def refusing(function, refused: Path):
    """The function as it is for somebody who may not read ``refused``."""

    def call(path, *arguments, **names):
        if not isinstance(path, int) and Path(path) == refused:
            raise PermissionError(13, "Permission denied", str(path))
        return function(path, *arguments, **names)

    return call


NAMES = ("summary.json", "metrics.jsonl", "config.yaml")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(NAMES), at=st.floats(0, 1), length=st.integers(0, 60), rubbish=st.binary(max_size=40))
def test_no_change_of_any_bytes_is_fatal(tmp_path, name, at, length, rubbish):
    folder = tmp_path / "run"
    if not folder.exists():
        write_run(folder, steps=20)
    whole = (folder / name).read_bytes()
    place = int(at * len(whole))
    (folder / name).write_bytes(whole[:place] + rubbish + whole[place + length :])
    result = read_folder(folder)
    (folder / name).write_bytes(whole)
    assert isinstance(result, Run | Skipped)
    assert isinstance(read_folder(folder), Run)


@pytest.mark.parametrize("large", [0, 2**60])
def test_runs_are_read_in_the_order_of_their_folders_with_progress(tmp_path, monkeypatch, large):
    monkeypatch.setattr(runs, "LARGE", large)
    for seed in range(1, 20):
        write_run(tmp_path / f"seed={seed:02}", seed=seed)
    damage(tmp_path / "seed=04", "summary.json", "{")
    advances = []
    found, skipped = read([tmp_path], lambda done, total: advances.append((done, total)))
    assert advances == [(i, 19) for i in range(1, 20)]
    assert [run.summary["seed"] for run in found] == [seed for seed in range(1, 20) if seed != 4]
    assert list(why(skipped, tmp_path)) == ["seed=04"]
