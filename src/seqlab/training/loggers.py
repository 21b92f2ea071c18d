"""Experiment trackers that get the records of metrics besides ``metrics.jsonl``.

A logger inherits from ``NoLogger``. A run that is resumed after a kill repeats the steps since its last checkpoint, and
their records.
"""

import hashlib
import importlib
import re
import secrets
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal

from filelock import FileLock
from typing_extensions import override

from seqlab.errors import UserError
from seqlab.jsonio import Record, write_whole


def require(module: str, *, extra: str) -> Any:
    """Import the package of an optional tracker.

    Raises:
        UserError: it cannot be imported; the remedy names the extra to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        remedy = f"Install it with pip install 'seqlab[{extra}]', or use logger=none"
        raise UserError("logger", extra, f"its package cannot be imported ({error})", remedy) from error


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a record except the step, named ``split/metric``."""
    return {
        f"{record['split']}/{key}": value
        for key, value in record.items()
        if key not in ("step", "split") and isinstance(value, int | float)
    }


class NoLogger:
    """No tracker; the base class of all loggers."""

    def start(self, folder: Path, config: Record, step: int) -> None:
        """Open the tracker for a run in ``folder`` with this configuration, which starts or resumes at ``step``."""

    def log(self, record: Record) -> None:
        """Log one record of metrics."""

    def close(self, status: str) -> None:
        """Close the tracker; ``status`` is completed, interrupted, diverged or failed."""


class TensorBoard(NoLogger):
    """Event files in the run folder, for ``tensorboard --logdir outputs``."""

    @override
    def start(self, folder: Path, config: Record, step: int) -> None:
        writer = require("torch.utils.tensorboard", extra="tensorboard")
        self.writer = writer.SummaryWriter(folder / "tensorboard", purge_step=step + 1 if step else None)

    @override
    def log(self, record: Record) -> None:
        for name, value in scalars(record).items():
            self.writer.add_scalar(name, value, record["step"])

    @override
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

    @override
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

    @override
    def log(self, record: Record) -> None:
        self.run.log(scalars(record), step=record["step"])

    @override
    def close(self, status: str) -> None:
        self.run.finish(exit_code=0 if status == "completed" else 1)


class MLflow(NoLogger):
    """An MLflow run in the tracking store of ``tracking_uri`` or the environment; a resumed run continues it."""

    STATUS: ClassVar = {"completed": "FINISHED", "interrupted": "KILLED"}

    def __init__(self, *, experiment: str = "seqlab", tracking_uri: str | None = None):
        self.experiment, self.tracking_uri = experiment, tracking_uri

    @override
    def start(self, folder: Path, config: Record, step: int) -> None:
        self.mlflow = require("mlflow", extra="mlflow")
        if self.tracking_uri is not None:
            self.mlflow.set_tracking_uri(self.tracking_uri)
        uri = self.mlflow.get_tracking_uri()
        try:
            with only_process_at(uri):  # the first process creates the tables; two at once fail
                self._start_run(folder)
        except self.mlflow.MlflowException as error:
            rule = f"MLflow refuses it ({error})"
            remedy = "Name another store, for example tracking_uri=sqlite:///mlflow.db, or use logger=none"
            raise UserError("tracking_uri", re.sub("//[^/]*@", "//...@", uri), rule, remedy) from error
        self.mlflow.log_dict(config, "config.json")

    def _start_run(self, folder: Path) -> None:
        """Create or continue the run; its experiment is created if it does not exist."""
        experiment = self.mlflow.set_experiment(self.experiment).experiment_id

        def new_run() -> str:
            return self.mlflow.MlflowClient().create_run(experiment, run_name=folder.name).info.run_id

        self.mlflow.start_run(run_id=remembered(folder / "mlflow_id", new_run))

    @override
    def log(self, record: Record) -> None:
        self.mlflow.log_metrics(scalars(record), step=record["step"])

    @override
    def close(self, status: str) -> None:
        self.mlflow.end_run(self.STATUS.get(status, "FAILED"))


def only_process_at(uri: str) -> AbstractContextManager[Any]:
    """A lock among this user's processes on this machine that open the same store; none for a server."""
    if uri.startswith(("http:", "https:", "databricks")):
        return nullcontext()
    name = hashlib.sha256(f"{Path.home()} {uri}".encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"seqlab-{name}.lock")


def remembered(path: Path, make: Callable[[], str]) -> str:
    """The tracker's id of a run, made once and then read from a file in the run folder."""
    if not path.exists():
        write_whole(path, make())
    return path.read_text()
