"""What the folders of a sweep's jobs are called, and that a job finds the one it had."""

import json
import shutil

from hydra.core.override_parser.overrides_parser import OverridesParser

from seqlab.sweep import entries
from seqlab.sweep.entries import Entry
from seqlab.sweep.jobs import varying
from seqlab.sweep.naming import LONGEST, job_folder
from seqlab.sweep.points import union
from support import SMALL

SHARED = (
    "trainer.log_every=1",
    "trainer.evaluation_batch_size=8",
    "trainer.batch_size=8",
    "trainer.checkpoint_every=2",
    "trainer.evaluate_every=2",
    "optimizer.weight_decay=0.05",
    "data.marker_probability=0.25",
    "model=linear",
)


def names(tmp_path, jobs: list[list[str]]) -> list[str]:
    keys = varying(jobs)
    return [job_folder(str(tmp_path), job, "", keys) for job in jobs]


def test_what_varies_is_the_name_in_whatever_order_it_is_typed(tmp_path):
    shared = ["experiment=mqar", "device=cpu", "trainer.steps=2"]
    jobs = [[*shared, f"seed={seed}", f"model={model}"] for seed in (1, 2) for model in ("mamba", "lstm")]
    found = names(tmp_path, jobs)
    assert found == ["model=mamba,seed=1", "model=lstm,seed=1", "model=mamba,seed=2", "model=lstm,seed=2"]
    assert names(tmp_path, [job[::-1] for job in jobs]) == found


def test_points_are_named_by_the_settings_that_they_have(tmp_path):
    given = OverridesParser.create().parse_overrides(["trainer.steps=2", "seed=1,2"])
    jobs = union(["model=mlp", "model=mamba model.mixers.mamba.d_state=8"], given)
    assert names(tmp_path, jobs) == [
        "model=mlp,seed=1",
        "model=mlp,seed=2",
        "model.mixers.mamba.d_state=8,model=mamba,seed=1",
        "model.mixers.mamba.d_state=8,model=mamba,seed=2",
    ]


def test_a_job_alone_is_named_by_all_that_was_typed(tmp_path):
    assert names(tmp_path, [["model=mlp", "seed=1", "threads=2", "device=cpu"]]) == ["model=mlp,seed=1"]
    assert len(names(tmp_path, [[]])[0]) == 8  # nothing was: a name all the same


def test_devices_that_are_compared_have_folders_of_their_own(tmp_path):
    assert names(tmp_path, [["device=cpu"], ["device=cuda"]]) == ["device=cpu", "device=cuda"]


def test_a_name_that_a_folder_cannot_have_ends_in_a_mark(tmp_path):
    """As long as it may be, without what leads to other folders, and still one for each job."""
    long = [f"data.tests=[{','.join(f'{{length:{n + i}}}' for n in range(60))}]" for i in (0, 1)]
    jobs = [[f"model={m}", tests, "logger.dir=a/b"] for m in ("mamba", "lstm") for tests in long]
    jobs += [["model=mamba", long[0], "logger.dir=c/b"]]
    found = names(tmp_path, jobs)
    assert len(set(found)) == 5
    for name, job in zip(found, jobs, strict=True):
        assert name.startswith(f"{job[0]},")
        assert len(name.encode()) <= LONGEST
        assert "/" not in name
    assert names(tmp_path, jobs) == found


def test_a_job_keeps_the_folder_that_it_has_and_leaves_others_theirs(tmp_path):
    def written(number: int, folder: str, *overrides: str) -> None:
        (tmp_path / folder).mkdir()
        Entry(number, folder, list(overrides)).write(tmp_path)

    written(0, "seed=1", "model=mlp", "seed=1")
    written(1, "anything", "seed=2", "model=mlp", "device=cuda")
    (tmp_path / "model=mlp,seed=3").mkdir()  # named as it was before there were records
    assert job_folder(str(tmp_path), ["model=mlp", "seed=1"], "model=mlp,seed=1", ["model", "seed"]) == "seed=1"
    assert job_folder(str(tmp_path), ["model=mlp", "seed=2"], "model=mlp,seed=2", ["seed"]) == "anything"
    assert job_folder(str(tmp_path), ["model=mlp", "seed=3"], "model=mlp,seed=3", ["seed"]) == "model=mlp,seed=3"
    another = job_folder(str(tmp_path), ["model=lstm", "seed=1"], "model=lstm,seed=1", ["seed"])
    assert another.startswith("seed=1,")


def test_the_folders_of_many_jobs_are_found_by_reading_each_record_once(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(entries, "load", lambda path: opened.append(path) or json.loads(path.read_text()))
    jobs = [["model=mlp", f"seed={seed}"] for seed in range(60)]
    found = []
    for number, job in enumerate(jobs):
        found.append(job_folder(str(tmp_path), job, "", ["seed"]))
        (tmp_path / found[-1]).mkdir()
        Entry(number, found[-1], job).write(tmp_path)
    assert found == [f"seed={seed}" for seed in range(60)]
    assert [job_folder(str(tmp_path), job, "", ["seed"]) for job in jobs] == found
    assert len(opened) == len(set(opened)) <= len(jobs)


def test_records_that_come_and_go_are_seen(tmp_path):
    def folder() -> str:
        return job_folder(str(tmp_path), ["seed=1"], "", ["seed"])

    assert folder() == "seed=1"
    (tmp_path / "another").mkdir()
    Entry(0, "another", ["seed=1"]).write(tmp_path)
    assert folder() == "another"
    (tmp_path / "first").mkdir()
    Entry(-1, "first", ["seed=1"]).write(tmp_path)
    assert folder() == "first"
    (tmp_path / "first").rmdir()
    assert folder() == "another"
    shutil.rmtree(tmp_path / ".jobs")
    assert folder() == "seed=1"


def folders(tmp_path) -> set[str]:
    return {path.parent.name for path in tmp_path.glob("sweep/*/summary.json")}


def test_a_sweep_of_many_settings(sweep, tmp_path):
    assert len(",".join([*SMALL, *SHARED, "seed=1"])) > 255  # more than a folder's name can hold
    status, out, error = sweep(*SHARED, "seed=1,2")
    assert status == 0, out + error
    assert folders(tmp_path) == {"seed=1", "seed=2"}


def test_a_sweep_goes_on_in_folders_named_the_old_way(sweep, tmp_path):
    assert sweep("model=linear", "seed=1,2")[0] == 0
    shutil.rmtree(tmp_path / "sweep/.jobs")
    for seed in (1, 2):
        old = ",".join(sorted([*SMALL, "model=linear", f"seed={seed}"]))
        (tmp_path / f"sweep/seed={seed}").rename(tmp_path / "sweep" / old)
    old = folders(tmp_path)
    status, out, error = sweep("model=linear", "seed=1,2")
    assert status == 0, out + error
    assert "2 kept" in out
    assert folders(tmp_path) == old
