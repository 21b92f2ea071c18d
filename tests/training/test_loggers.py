"""Trackers: what several jobs at once do to a store that is not there yet, and what a tracker may not spoil."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from seqlab.errors import UserError, under
from seqlab.training.loggers import MLflow, NoLogger, only_process_at
from seqlab.training.trainer import Trainer


class Store:
    """Stands in for ``mlflow``: its tables are made by whoever finds none, and twice at once is an error."""

    MlflowException = ArithmeticError

    def __init__(self, uri: str):
        self.uri, self.tables, self.runs = uri, False, []
        self.making = threading.Lock()

    def get_tracking_uri(self) -> str:
        return self.uri

    def set_experiment(self, name: str) -> SimpleNamespace:
        if not self.tables:
            assert self.making.acquire(blocking=False), "duplicate column name"
            time.sleep(0.05)
            self.making.release()
            self.tables = True
        return SimpleNamespace(experiment_id="1")

    def MlflowClient(self) -> SimpleNamespace:  # noqa: N802 (mlflow's name)
        return SimpleNamespace(create_run=lambda *_, run_name: SimpleNamespace(info=SimpleNamespace(run_id=run_name)))

    def start_run(self, run_id: str) -> None:
        self.runs.append(run_id)

    def log_dict(self, config: dict, name: str) -> None:
        pass


def test_jobs_that_begin_together_make_the_tables_once(tmp_path, monkeypatch):
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setitem(sys.modules, "mlflow", store)
    folders = [tmp_path / name for name in "abcd"]
    with ThreadPoolExecutor(len(folders)) as pool:
        for folder in folders:
            folder.mkdir()
        list(pool.map(lambda folder: MLflow().start(folder, {}, 0), folders))
    assert sorted(store.runs) == ["a", "b", "c", "d"]


def test_a_store_that_mlflow_refuses_is_named_without_its_password(tmp_path, monkeypatch):
    store = Store("postgresql://me:secret@host/runs")
    monkeypatch.setitem(sys.modules, "mlflow", store)
    monkeypatch.setattr(store, "set_experiment", lambda name: 1 / 0)
    message = r"logger\.tracking_uri=postgresql://\.\.\.@host/runs: MLflow refuses it \(div"
    with pytest.raises(UserError, match=message), under("logger", ["tracking_uri"]):
        MLflow().start(tmp_path, {}, 0)


def test_a_store_is_anothers_business_only_if_it_is_the_same(tmp_path):
    with only_process_at(f"sqlite:///{tmp_path}/one"), only_process_at(f"sqlite:///{tmp_path}/two"):
        pass
    with only_process_at("https://server"), only_process_at("https://server"):
        pass


class FailsToClose(NoLogger):
    def close(self, status: str) -> None:
        raise RuntimeError("the tracker is gone")


def test_one_that_cannot_be_closed_takes_no_result_away(train, capsys):
    job = train("model=linear", "logger._target_=test_loggers.FailsToClose")
    assert (job.status, job.summary["status"]) == (0, "completed")
    assert "The tracker was not closed in order: RuntimeError: the tracker is gone" in capsys.readouterr().err


def test_one_that_cannot_be_closed_hides_no_error_before_it(train, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "test", lambda self: 1 / 0)
    job = train("model=linear", "logger._target_=test_loggers.FailsToClose")
    assert (job.status, job.summary["status"]) == (1, "failed")
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said
    assert "the tracker is gone" not in said
