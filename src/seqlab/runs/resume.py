"""Continuing an earlier run: its folder, and the settings that may differ from those that it was started with."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seqlab.config.influence import CHANGEABLE, MOVABLE, OF_STEPS
from seqlab.config.overrides import flatten, parse_all
from seqlab.config.renamed import RENAMED, up_to_date
from seqlab.data import DataSet
from seqlab.errors import Diverged, NoResult, UserError, resume_command
from seqlab.formatting import counted
from seqlab.jsonio import load, write_whole
from seqlab.runs.folder import CONFIG, SWEEP
from seqlab.runs.trust import packages, refuse_links, refuse_tracker, trusted
from seqlab.training import checkpoint, meeting
from seqlab.training.parallel import World
from seqlab.training.trainer import Trainer

log = logging.getLogger(__name__)


def folder_to_continue(resume: str) -> str:
    """The folder that ``resume`` names; refused if it is no run's."""
    refuse_links(Path(str(resume)))
    saved_in(Path(str(resume)))
    return resume


def saved_in(folder: Path, key: str = "resume") -> DictConfig:
    """The configuration in a run folder as it was written: nothing in it is resolved.

    Args:
        folder: of the run.
        key: the setting that names the folder.

    Raises:
        UserError: it is not a run's folder.
    """
    remedy = "Name a folder that a run left in outputs/"
    try:
        cfg = OmegaConf.load(folder / CONFIG)
        if OmegaConf.is_dict(cfg) and {"model", "data"} <= cfg.keys():
            return up_to_date(cfg)
        why = f"its {CONFIG} describes no run"
    except FileNotFoundError:
        why = f"there is no {CONFIG} in it" if folder.is_dir() else "there is no such folder"
        if (folder / SWEEP).is_file():
            why = "it is a whole sweep's"
            remedy = "Name one of the folders in it; the sweep itself goes on with the command that began it"
    except NotADirectoryError:
        why = "it is a file"
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        why = f"{CONFIG} cannot be read ({type(error).__name__})"
    raise UserError(key, folder, f"is no run folder: {why}", remedy)


def keep(cfg: DictConfig, folder: Path) -> None:
    """Write the configuration to the run folder, whole or not at all."""
    write_whole(folder / CONFIG, OmegaConf.to_yaml(cfg))


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """Every setting by its dotted key, resolved."""
    return flatten(OmegaConf.to_container(cfg, resolve=True), into_lists=True)


def pinned(cfg: DictConfig) -> dict[str, Any]:
    """The settings that may not change while a run lasts, by dotted key."""
    free = tuple(f"{name}." for name in (*CHANGEABLE, "logger", "sweep", "resume", "trust"))
    return {key: value for key, value in settings_of(cfg).items() if not f"{key}.".startswith(free)}


def refuse_used_folder(folder: Path) -> None:
    """Refuse to write a new run into the folder of another.

    Raises:
        UserError: the folder holds a run, or files that a run would overwrite.
    """
    saved = (folder / CONFIG).exists()
    if saved or (folder / "checkpoints").exists():
        remedy = f"Continue it with {resume_command(folder)}, or name another folder" if saved else "Name another one"
        raise UserError("run folder", folder, "holds a run already", remedy)
    for path in (folder / "metrics.jsonl", folder / "summary.json"):
        if path.exists() and path.stat().st_size and load(path).get("status") != "failed":
            rule = f"holds a {path.name} of something else"
            raise UserError("run folder", folder, rule, "Move it away, or name another folder")


def begun_by_torchrun() -> str | None:
    """The folder of the run that torchrun has started before, if it starts it again (``--max-restarts``)."""
    return meeting.begun_in()


def started_again(folder: Path, world: World) -> bool:
    """Whether torchrun starts the processes of this folder's run again.

    Where it keeps no store for them (``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1``), any run in the folder is taken for it.

    Raises:
        UserError: it may do so, and they would not find their folder.
    """
    if meeting.outlives_processes() or not meeting.may_restart():
        return begun_by_torchrun() == str(folder)
    if not any(setting.startswith("hydra.run.dir=") for setting in HydraConfig.get().overrides.hydra):
        rule = "torchrun, which may start this run again, keeps no store where it would find the folder of now"
        raise UserError("hydra.run.dir", "outputs/...", rule, "Name a folder, such as hydra.run.dir=outputs/mine")
    return max(world.restarts, meeting.restarts()) > 0 and (folder / CONFIG).exists()


def refuse_another_job(cfg: DictConfig, folder: Path) -> None:
    """Refuse to go on with a job of a sweep that was started with other settings.

    A setting that the folder lacks and the command line does not name was added by a later version, whose default is
    what earlier versions did.

    Raises:
        UserError: names the first setting that differs.
    """
    saved, asked = flatten(OmegaConf.to_container(saved_in(folder)), into_lists=True), settings_of(cfg)
    hydra = HydraConfig.get()
    named = parse_all(hydra.overrides.task).keys() - hydra.runtime.choices.keys()
    for key in sorted(saved.keys() | asked.keys()):
        if key not in saved and not any(f"{key}.".startswith(f"{name}.") for name in named):
            continue
        then, now = saved.get(key, "missing"), asked.get(key, "missing")
        if then != now and key not in MOVABLE and key.split(".")[0] not in ("logger", "sweep", "target"):
            rule = f"the run in {folder} was started {f'with {then}' if key in saved else 'without it'}"
            same = f"Set {key}={then}" if key in saved else f"Leave {key} out"
            remedy = f"{same}, delete that folder, or use another (sweep.resume=false, or hydra.sweep.dir)"
            raise UserError(key, now, rule, remedy)


def result_of(cfg: DictConfig, folder: Path) -> dict[str, Any] | None:
    """The summary of a job that an earlier sweep completed; ``None`` if there is still something to do.

    Args:
        cfg: the job's, resolved.
        folder: its run folder.

    Raises:
        UserError: the folder holds another job.
        Diverged: the job diverged before, and would again.
        NoResult: its updates were mostly skipped before, and would be again.
    """
    if not (folder / CONFIG).exists():
        return None
    refuse_links(folder)
    refuse_another_job(cfg, folder)
    summary = load(folder / "summary.json")
    if summary.get("status") == "diverged":
        if error := summary.get("error"):
            raise NoResult(error)
        raise Diverged(summary["steps"], cfg.trainer.max_skipped, folder)
    return summary if summary.get("status") == "completed" else None


def never_began(folder: Path) -> bool:
    """Whether a run ended before its first checkpoint, so that it begins again at step 0."""
    checkpoints = [path for pattern in ("step-*", "damaged-*") for path in (folder / "checkpoints").glob(pattern)]
    if checkpoints or load(folder / "summary.json").get("steps"):
        return False
    log.info("The run in %s has no checkpoint yet; it begins at step 0.", folder)
    return True


def can_go_on(folder: Path) -> bool:
    """Whether a job that was cut off left an undamaged checkpoint; one without begins at step 0."""
    if not checkpoint.existing(folder / "checkpoints"):
        return False
    try:
        checkpoint.latest(folder / "checkpoints")
    except UserError:
        return False  # the log says of each checkpoint what is wrong with it
    return True


def as_begun(cfg: DictConfig, folder: Path) -> DictConfig:
    """A job's configuration without the settings that a later version added to parts that the job began with.

    Without them the parts do what they did then; with them it would be another run from here on.
    """
    return OmegaConf.create(without_later(OmegaConf.to_container(cfg), OmegaConf.to_container(saved_in(folder))))


def without_later(now: Any, then: Any) -> Any:
    """``now`` without the settings that the same part (a mapping with a ``_target_``) does not have in ``then``."""
    if isinstance(now, dict) and isinstance(then, dict):
        kept = {name: item for name, item in now.items() if name in then or "_target_" not in then}
        return {name: without_later(item, then.get(name)) for name, item in kept.items()}
    if isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        return [without_later(*pair) for pair in zip(now, then, strict=True)]
    return now


def continued(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration of the run that ``resume`` names, with the changes that the command line may make to it.

    Args:
        cfg: as composed from the command line.
        overrides: the command line's.

    Raises:
        UserError: the command line changes another setting than a resumed run may.
    """
    folder, changes = Path(cfg.resume), parse_all(overrides)
    saved = saved_in(folder)
    for key, value in changes.items():
        if key not in CHANGEABLE | {"resume", "trust", "logger"} and not key.startswith("logger."):
            rule = "a resumed run keeps its model, data, optimizer, batch and seed"
            remedy = f"Leave it out; what may change is {', '.join(sorted(CHANGEABLE))} and logger"
            raise UserError(key, value, rule, remedy)
    own_logger = any(key.startswith("logger") for key in changes)
    if own_logger and OmegaConf.is_dict(saved):
        saved.pop("logger", None)
    saved = trusted(saved, packages(cfg.trust))
    refuse_edited(saved, folder)
    if own_logger:
        saved.logger = cfg.logger
    else:
        refuse_tracker(saved)
    for key in CHANGEABLE & changes.keys():
        OmegaConf.update(saved, key, OmegaConf.select(cfg, key), merge=False)
    return saved


def refuse_edited(saved: DictConfig, folder: Path) -> None:
    """Refuse a configuration that was edited by hand; settings that only one side has are of another version.

    Raises:
        UserError: names the first setting that was edited.
    """
    then, now = checkpoint.origin_of(folder / "checkpoints").get("settings") or {}, pinned(saved)
    for key in sorted(then.keys() & now.keys()):
        before = RENAMED.get(then[key], then[key]) if key.endswith("_target_") else then[key]
        if json.dumps(before) != json.dumps(now[key]):
            rule = f"{CONFIG} was edited: the run's steps were made with {before}"
            raise UserError(key, now[key], rule, f"Set it back in {folder / CONFIG}, or start another run")


def refuse_other_data(data: DataSet, folder: Path) -> None:
    """Refuse other data than the run began with; of generated real numbers, whose rounding may differ, only warn.

    Raises:
        UserError: the fingerprints of tokens differ.
    """
    then = checkpoint.origin_of(folder / "checkpoints") or load(folder / "summary.json")
    fingerprint = then.get("data_fingerprint")
    if fingerprint in (None, data.fingerprint):
        return
    if not data.tokens:
        log.warning("The data are not bit for bit those of before (fingerprint %s).", fingerprint)
        return
    rule = f"the data have changed: the run's steps were made with those of fingerprint {fingerprint}"
    raise UserError("data", data.fingerprint, rule, "Put them back as they were, or start another run")


def refuse_empty_changes(cfg: DictConfig, folder: Path, trainer: Trainer) -> None:
    """Refuse changes without effect: a budget below the steps made, or settings of steps when none is left.

    Args:
        cfg: the configuration with the changes.
        folder: the run folder, with the configuration and the summary of before.
        trainer: restored.

    Raises:
        UserError: names the changed setting.
    """
    done = trainer.counters.step
    if trainer.total < done:
        remedy = f"Leave it as it was, give {done} or more, or start another run with this budget"
        raise UserError("trainer.steps", trainer.total, f"the run has made {counted(done, 'step')} already", remedy)
    if not trainer.is_over or load(folder / "summary.json").get("status") != "completed":
        return
    then = saved_in(folder)
    for key in OF_STEPS:
        before, now = (OmegaConf.select(each, key, default="missing") for each in (then, cfg))
        if before not in ("missing", now):
            rule = f"the run is completed with {before}, and no step is left that could be made otherwise"
            raise UserError(key, now, rule, "Leave it out, or raise the budget with it (trainer.steps)")


def earlier_budgets(folder: Path, step: int, total: int, schedule: Callable[[int, int], float]) -> list[dict[str, Any]]:
    """The budgets that a run had before its present one; logs the last of them if the present one differs.

    Args:
        folder: the run folder, with the summary of before.
        step: updates made so far.
        total: updates that the present budget allows.
        schedule: the factor on the learning rate, of an update's number and the total.

    Returns:
        For each ``total_steps``, ``steps``, at which it ended, and ``test_read``, whether the test split was read then.
    """
    summary = load(folder / "summary.json")
    known, before = summary.get("earlier_budgets") or [], summary.get("total_steps")
    if not step or before in (None, total):
        return known if step else []
    said = [f"The budget was {counted(before, 'step')} and is {total:,} now"]
    if any(schedule(at, before) != schedule(at, total) for at in {0, step - 1, before - 1}):
        last, following = schedule(step - 1, before), schedule(step, total)
        said.append(f"the schedule spans all of them, from {last:.2g} of the full learning rate to {following:.2g} now")
    if read := summary.get("test") is not None:
        said.append(f"the test split was read after {counted(summary['steps'], 'step')} and is read again at the end")
    log.info("%s.", "; ".join(said))
    return [*known, {"total_steps": before, "steps": summary.get("steps"), "test_read": read}]
