"""A run folder that an earlier version wrote, with its checkpoints: it resumes, compares and generates.

``folders_from_before/mamba`` is what this left at commit eff77a6, with the machine's paths written over:

    SEQLAB_DATA_DIR=data python train.py model=mamba size.d_model=8 size.n_layers=1 size.d_ff=16 \\
        data=tiny_shakespeare '~data.download' data.folder=words data.files.all.file=all.txt \\
        data.files.all.sha256=null data.files.all.tokens=null data.vocab_size=null data.length=16 \\
        data.windows=contiguous trainer.steps=12 trainer.epochs=null trainer.batch_size=4 trainer.evaluate_every=6 \\
        trainer.log_every=2 hydra.run.dir=mamba
"""

import csv
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from support import ROOT, Job

BEFORE = Path(__file__).parent / "folders_from_before"


@pytest.fixture
def job(tmp_path, monkeypatch) -> Job:
    """A copy to go on with, where the relative path of its data leads to them."""
    shutil.copytree(BEFORE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Job(tmp_path / "mamba", 0)


@pytest.fixture
def script(monkeypatch):
    def run(name: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
        assert ending.value.code == 0

    return run


def losses(job: Job, split: str) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in job.records if record["split"] == split}


def test_goes_on_from_an_earlier_checkpoint_to_the_same_end(job, train):
    before, validation, training = job.summary, losses(job, "validation"), losses(job, "train")
    shutil.rmtree(job.folder / "checkpoints" / "step-00000012")
    assert train(f"resume={job.folder}").status == 0
    assert losses(job, "validation") == pytest.approx(validation, rel=1e-4)
    assert losses(job, "train") == pytest.approx(training, rel=1e-4)
    after = job.summary
    assert after["test"]["loss"] == pytest.approx(before["test"]["loss"], rel=1e-4)
    same = ("parameters", "flops", "flops_per_token", "state_bytes", "data_fingerprint", "tokens", "best_step")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}


def test_goes_on_to_a_larger_budget(job, train):
    validation = losses(job, "validation")
    assert train(f"resume={job.folder}", "trainer.steps=18").status == 0
    assert job.summary["steps"] == 18
    assert losses(job, "validation").items() > validation.items()
    assert losses(job, "validation")[18] < validation[12]


def test_is_compared_with_a_fresh_one(job, train, script, tmp_path):
    settings = yaml.safe_load((job.folder / ".hydra" / "overrides.yaml").read_text())
    fresh = [setting for setting in settings if not setting.startswith("data.dir")]
    other = train(*fresh, "data.dir=data", "seed=2", folder="fresh", small=False)
    script("compare.py", job.folder, other.folder, "--out", tmp_path / "compared")
    with (tmp_path / "compared" / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["data"], row["model"], row["data_fingerprint"]) for row in rows} == {
        ("tiny_shakespeare", "mamba", "97f2651ef534")
    }
    found = sorted(float(row["test_loss_mean"]) for row in rows)  # apart: which tables decay is a setting since then
    assert found == sorted(one.summary["test"]["loss"] for one in (job, other))


def test_generates(job, script, capsys):
    script("generate.py", f"run={job.folder}", "prompt=the cat ", "max_new_tokens=12", "temperature=0")
    text = capsys.readouterr().out
    assert text.startswith("the cat ")
    assert len(text.rstrip("\n")) == len("the cat ") + 12
