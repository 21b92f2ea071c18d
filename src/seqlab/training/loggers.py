"""Where the numbers go: ``metrics.jsonl`` always, and one optional tracker.

A logger has ``log(record)``, a flat dictionary with ``step`` and ``split``, and ``close()``.
"""

import importlib
import json
import math
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from seqlab.errors import UserError

Record = dict[str, Any]


def require(module: str, *, extra: str) -> Any:
    """Import an optional tracker, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        remedy = f"Install it with pip install 'seqlab[{extra}]', or use logger=none"
        raise UserError("logger", extra, f"its package cannot be imported ({error})", remedy) from error


def scalars(record: Record) -> dict[str, float]:
    """The measured numbers of a record, named ``split/metric``."""
    return {
        f"{record['split']}/{key}": value
        for key, value in record.items()
        if key not in ("step", "split") and isinstance(value, int | float)
    }


class NoLogger:
    """Nothing besides ``metrics.jsonl``, and what every logger has."""

    def start(self, folder: Path, config: Record, step: int) -> None:
        """Open the tracker for a run in ``folder`` that goes on from ``step``."""

    def log(self, record: Record) -> None:
        """Pass on one record of metrics."""

    def close(self, status: str) -> None:
        """Close the tracker; the run is completed, interrupted, diverged or failed."""


class TensorBoard(NoLogger):
    """Event files in the run folder, for ``tensorboard --logdir outputs``."""

    def start(self, folder: Path, config: Record, step: int) -> None:
        writer = require("torch.utils.tensorboard", extra="tensorboard")
        self.writer = writer.SummaryWriter(folder / "tensorboard", purge_step=step + 1 if step else None)

    def log(self, record: Record) -> None:
        for name, value in scalars(record).items():
            self.writer.add_scalar(name, value, record["step"])

    def close(self, status: str) -> None:
        self.writer.close()


class WandB(NoLogger):
    """A Weights & Biases run; a resumed run continues it."""

    def __init__(
        self,
        *,
        project: str = "seqlab",
        entity: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
    ):
        self.project, self.entity, self.mode = project, entity, mode

    def start(self, folder: Path, config: Record, step: int) -> None:
        wandb = require("wandb", extra="wandb")
        self.run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            dir=folder,
            name=folder.name,
            id=remembered(folder / "wandb_id", lambda: secrets.token_hex(6)),
            resume="allow",
            config=config,
        )

    def log(self, record: Record) -> None:
        self.run.log(scalars(record), step=record["step"])

    def close(self, status: str) -> None:
        self.run.finish(exit_code=0 if status == "completed" else 1)


class MLflow(NoLogger):
    """An MLflow run in the tracking store that ``tracking_uri`` or the environment names; a resumed one continues."""

    STATUS: ClassVar = {"completed": "FINISHED", "interrupted": "KILLED"}

    def __init__(self, *, experiment: str = "seqlab", tracking_uri: str | None = None):
        self.experiment, self.tracking_uri = experiment, tracking_uri

    def start(self, folder: Path, config: Record, step: int) -> None:
        self.mlflow = require("mlflow", extra="mlflow")
        if self.tracking_uri is not None:
            self.mlflow.set_tracking_uri(self.tracking_uri)
        experiment = self.mlflow.set_experiment(self.experiment).experiment_id

        def new_run() -> str:
            return self.mlflow.MlflowClient().create_run(experiment, run_name=folder.name).info.run_id

        self.mlflow.start_run(run_id=remembered(folder / "mlflow_id", new_run))
        self.mlflow.log_dict(config, "config.json")

    def log(self, record: Record) -> None:
        self.mlflow.log_metrics(scalars(record), step=record["step"])

    def close(self, status: str) -> None:
        self.mlflow.end_run(self.STATUS.get(status, "FAILED"))


def remembered(path: Path, make: Callable[[], str]) -> str:
    """The tracker's name for a run, made once and kept in its folder."""
    if not path.exists():
        path.write_text(make())
    return path.read_text()


class MetricsFile:
    """``metrics.jsonl``: one record a line, each line whole on the disk before the next begins."""

    def __init__(self, path: Path, *, keep: Callable[[Record], bool]):
        """Open for appending; records that ``keep`` refuses, which a resumed run makes again, are dropped."""
        kept = "".join(json.dumps(record) + "\n" for record in lines_of(path) if keep(record))
        temporary = path.with_suffix(".tmp")
        temporary.write_text(kept, encoding="utf-8")
        temporary.replace(path)
        self.file = path.open("a", encoding="utf-8")

    def log(self, record: Record) -> None:
        self.file.write(json.dumps({k: finite(v) for k, v in record.items()}) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def finite(value: Any) -> Any:
    """JSON has no word for numbers that are not finite: they become null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def lines_of(path: Path) -> list[Record]:
    """The whole records of a metrics file; a last line that a crash cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
