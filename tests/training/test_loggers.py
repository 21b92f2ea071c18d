"""Trackers: what several jobs at once do to a store that is not there yet, and what a tracker may not spoil."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from seqlab.training.loggers import MLflow, NoLogger, only_process_at


class Store:
    """Stands in for ``mlflow``: its tables are made by whoever finds none, and twice at once is an error."""

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


def test_a_store_is_anothers_business_only_if_it_is_the_same(tmp_path):
    with only_process_at(f"sqlite:///{tmp_path}/one"), only_process_at(f"sqlite:///{tmp_path}/two"):
        pass
    with only_process_at("https://server"), only_process_at("https://server"):
        pass


class FailsToClose(NoLogger):
    def close(self, status: str) -> None:
        raise RuntimeError("the tracker is gone")


@pytest.mark.parametrize(
    ("overrides", "status", "said"), [((), 0, "completed"), (("optimizer.lr=1e30",), 1, "diverged")]
)
def test_one_that_cannot_be_closed_changes_no_end_of_a_run(overrides, status, said, train, capsys):
    diverges = ("optimizer=sgd", "trainer.steps=40", "trainer.clip_norm=null", "schedule.warmup=0") if status else ()
    job = train("model=linear", "logger._target_=test_loggers.FailsToClose", *diverges, *overrides)
    assert (job.status, job.summary["status"]) == (status, said)
    assert ("The tracker was not closed in order: RuntimeError: the tracker is gone" in capsys.readouterr().err) == (
        status == 0
    )
