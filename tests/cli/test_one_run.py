"""What one run leaves and prints, through the real entry point."""

import sys

import pytest

import forks
from support import assert_same_run


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


def test_the_default_folder_is_named_by_model_data_and_time(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said = forks.finish(tmp_path / "screen", forks.train, *train.small, "model=linear")
    assert status == 0, said
    (run,) = (tmp_path / "outputs").glob("linear_synthetic_*")
    assert (run / "summary.json").is_file()
