"""Training a model from Python, through the same composition, checks and run folder as the command line."""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from seqlab import console, experiment
from seqlab.api.run import Run
from seqlab.config import CONFIG_FOLDER
from seqlab.config.command_line import in_order
from seqlab.config.exceptions import translate
from seqlab.config.overrides import as_override
from seqlab.errors import UserError, in_quotes
from seqlab.invocation import processes, typed_as
from seqlab.runs import leftovers
from seqlab.runs.process import free_memory, process_state_kept
from seqlab.runs.trust import named_packages

log = logging.getLogger("seqlab")

_training = threading.Lock()


def train(
    model: str | None = None,
    data: str | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    config_dir: str | Path | None = None,
    **settings: Any,
) -> Run:
    """Train one model, select on validation, test once: what ``seqlab train`` does, from Python.

    The run is that of the command line, to the bit, and its folder too (``outputs/...`` where you stand). What it
    changes in the process is put back: random numbers, torch's threads and precision, Hydra, logging. While it trains,
    Ctrl-C (a notebook's stop button) writes a checkpoint first and raises ``Interrupted``.

        seqlab.train(model="mamba", data="tiny_shakespeare", size="small", seed=2, overrides={"trainer.steps": 500})
        seqlab.train(resume=run.folder, overrides={"trainer.steps": 1000})

    Args:
        model, data: options of these groups (``seqlab train --help`` lists them); None is the default.
        overrides: settings as the command line takes them (``["trainer.steps=500"]``), or values by key.
        config_dir: a folder with models, data sets, ... of your own, as ``--config-dir`` has it.
        settings: other groups and settings without a dot in their names, such as ``size``, ``seed`` or ``resume``.

    Returns:
        The completed run.

    Raises:
        UserError: a setting, file or folder cannot be used, another run trains in this process, or torchrun started it
            as one of several.
        Diverged: the loss or gradient was not finite in too many steps.
        Interrupted: a signal asked the run to stop.
    """
    chosen = {"model": model, "data": data}
    typed = [as_override(key, value) for key, value in ({k: v for k, v in chosen.items() if v} | settings).items()]
    if isinstance(overrides, Mapping):
        typed += [as_override(key, value) for key, value in overrides.items()]
    else:
        typed += [overrides] if isinstance(overrides, str) else list(map(str, overrides))
    for setting in typed:
        if setting.startswith("-"):
            remedy = "Write settings as key=value; a folder of your own configurations is config_dir=..."
            raise UserError("overrides", setting, "is a flag of the command line", remedy)
    typed += own_folder(config_dir)
    if (size := processes()[1]) > 1:
        remedy = "Use the command: torchrun ... -m seqlab train"
        raise UserError("torchrun", f"{size} processes", "a call from Python trains in one process", remedy)
    if not _training.acquire(blocking=False):
        remedy = "Wait for its end, or train side by side in processes: seqlab train -m launcher=joblib"
        raise UserError("train", "running", "another run trains in this process, whose state both would change", remedy)
    try:
        with typed_as(["seqlab", "train"], typed), process_state_kept():
            folder, trust = trained(in_order(typed))
    finally:
        _training.release()
        free_memory()
    return Run(folder, trust=trust)


def own_folder(config_dir: str | Path | None) -> list[str]:
    """The override with which Hydra also looks into a folder.

    Raises:
        UserError: there is none.
    """
    if config_dir is None:
        return []
    if not Path(config_dir).is_dir():
        remedy = "Name a folder with groups in it, as conf/ has (model/, data/, ...)"
        raise UserError("config_dir", config_dir, "there is no such folder", remedy)
    return [f"hydra.searchpath=[{in_quotes(f'file://{Path(config_dir).absolute()}')}]"]


def trained(settings: list[str]) -> tuple[Path, list[str]]:
    """Run one job as ``hydra.main`` would; the run's folder, and the packages whose code its configuration names.

    Raises:
        UserError: a setting, file or folder cannot be used.
    """
    result: tuple[Path, list[str]] | Exception

    def job(cfg: DictConfig) -> None:
        nonlocal result
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            with logged(folder):
                experiment.run(cfg)
            result = folder, named_packages(cfg)
        except Exception as error:  # from here Hydra would write a line of its own about it
            result = error

    refused = True
    try:
        with hydra_alone():
            hydra = GlobalHydra.instance().hydra
            with one_run(settings):
                hydra.run("config", job, settings, with_log_configuration=False)
        if isinstance(result, Exception):
            raise result
        return result
    except Exception as error:
        ending = translate(error)
        refused = ending is not None and ending.exit_status not in (0, 1)
        if ending is None or "debug=true" in settings:
            raise
    finally:
        leftovers.clear(refused=refused)
    ending.__cause__ = ending.__context__ = None  # a notebook keeps its last error, and frames hold the run's memory
    raise ending.with_traceback(None)


@contextmanager
def one_run(settings: list[str]) -> Iterator[None]:
    """Refuse settings that ask for many runs, of which Hydra only asserts that there are none.

    Raises:
        UserError: an option such as ``search=rates`` does.
        AssertionError: another one.
    """
    try:
        yield
    except AssertionError:
        if GlobalHydra.instance().hydra.get_mode("config", settings) is not RunMode.MULTIRUN:
            raise
        remedy = "Call seqlab.train in a loop, or seqlab train -m in a shell"
        raise UserError("overrides", " ".join(settings), "asks for a sweep, and train makes one run", remedy) from None


@contextmanager
def hydra_alone() -> Iterator[None]:
    """Hydra with seqlab's configuration; what else the process does with Hydra is put back."""
    instance = GlobalHydra.instance()
    before = instance.hydra
    instance.clear()
    try:
        with initialize_config_dir(str(CONFIG_FOLDER), job_name="train", version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = before


@contextmanager
def logged(folder: Path) -> Iterator[None]:
    """Messages of a run to ``train.log``, and to the process's own handlers at their level, or else to the screen.

    In a notebook, which has the progress bar, the screen gets warnings alone.
    """
    file = console.LogFile(folder / "train.log", delay=True)
    file.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
    if log.hasHandlers():
        shown = logging.Handler(log.getEffectiveLevel())
        shown.emit = log.parent.callHandlers
    else:
        shown = console.ConsoleHandler(logging.WARNING if console.in_notebook() else logging.INFO)
    level, propagate = log.level, log.propagate
    log.propagate = False
    log.setLevel(logging.INFO)
    for handler in (file, shown):
        log.addHandler(handler)
    try:
        yield
    finally:
        log.propagate = propagate
        log.setLevel(level)
        for handler in (file, shown):
            log.removeHandler(handler)
            handler.close()
