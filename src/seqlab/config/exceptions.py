"""What an exception means to the user: each foreseen one becomes a message of a line or two."""

import errno
import logging
import os
import re
import shlex
import sys
from pathlib import Path

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

from seqlab.config.mistakes import composition_error
from seqlab.errors import Diverged, Interrupted, UserError

log = logging.getLogger("seqlab")

DENIED = "this account has no permission for that", "Change its permissions, or name another place"
A_FILE = "a file is there, or in its path, and a folder is needed", "Move that file away, or name another place"
FULL = (
    "there is no space left to write",
    "Free some; a sweep then goes on with the same command, a run that has a checkpoint with resume=<run folder>, "
    "and any other is started again",
)
REFUSALS = {
    errno.EACCES: DENIED,
    errno.EPERM: DENIED,
    errno.EROFS: ("that file system is read-only", "Name another place, or go on in a copy of the folder"),
    errno.EEXIST: A_FILE,
    errno.ENOTDIR: A_FILE,
    errno.EISDIR: ("a folder is there, and a file is needed", "Move that folder away, or name another place"),
    errno.ENAMETOOLONG: ("the name is too long for a file or folder", "Shorten it"),
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: FULL,
}
"""What the system's refusals of a path mean, and what helps."""

PLACES = ("resume", "run", "hydra.sweep.dir", "hydra.run.dir", "data.cache_dir", "data.dir")
"""Settings that name a folder; ``run`` is that of ``scripts/generate.py``."""

NAMES = ("name", "data_name", "hydra.sweep.subdir")
"""Settings that a run's folder is called by."""


def message_of(error: BaseException) -> str:
    """What to tell of an exception, for a person."""
    return str(translate(error) or f"{type(error).__name__}: {error}")


def report(error: Exception, *, debug: bool) -> int:
    """Say what went wrong, with the traceback for faults of ours and for debugging. Returns the exit status."""
    ending = translate(error)
    level = logging.WARNING if isinstance(ending, Interrupted) else logging.ERROR
    log.log(level, "%s", ending or error, exc_info=error if debug or ending is None else None)
    return 1 if ending is None else ending.exit_status


def translate(error: BaseException) -> UserError | Diverged | Interrupted | None:
    """The user's own mistake, or another foreseen ending, behind an exception; ``None`` if it is neither."""
    chain = [error]
    while (error := error.__cause__ or error.__context__) is not None:
        chain.append(error)
    endings = [e for e in chain if isinstance(e, UserError | Diverged | Interrupted)]
    return endings[0] if endings else next(filter(None, map(translate_foreign, chain)), None)


def translate_foreign(error: BaseException) -> UserError | None:
    """What a library's exception means to the user, if it is one that a setting or the machine causes."""
    if isinstance(error, OSError) and error.errno in REFUSALS:
        return refused_path(error)
    if is_out_of_memory(error):
        return out_of_memory(error)
    if type(error).__module__.partition(".")[0] in ("submitit", "joblib"):  # packages that may not be here
        rule = "a job's process ended without a result, killed perhaps because memory ran out"
        return UserError("launcher", type(error).__name__, rule, "The same command goes on with what is left")
    if isinstance(error, InstantiationException):
        refused = isinstance(error.__cause__, ValueError | TypeError)
        return refused_setting(str(error), error.__cause__) if refused else None
    if isinstance(error, HydraException | OmegaConfBaseException) or str(error).startswith(
        "Config group override must"
    ):
        return composition_error(str(error))
    return None


def refused_path(error: OSError) -> UserError | None:
    """A place that the system does not let be used, with the setting that it comes from."""
    rule, remedy = REFUSALS[error.errno]
    path = error.filename2 or error.filename
    if not isinstance(path, str | os.PathLike):  # what is open already, of which the system does not say where it is
        return UserError("disk", "full", rule, remedy) if rule == FULL[0] else None
    if error.errno != errno.ENAMETOOLONG:
        return UserError(setting_of(Path(path)), path, rule, remedy)
    part, typed = max(Path(path).parts, key=len, default=""), typed_settings()
    named = [key for key in NAMES if typed.get(key) and typed[key] in part]
    return UserError(named[0] if named else setting_of(Path(path)), part, rule, remedy)


def setting_of(path: Path) -> str:
    """The setting of the command line that a path comes from, or the one that would change it."""
    typed = typed_settings()
    swept = not typed.keys().isdisjoint(("-m", "--multirun")) or typed.get("hydra.mode") == "MULTIRUN"
    typed.setdefault("hydra.sweep.dir" if swept else "hydra.run.dir", "outputs")
    path = path.absolute()
    for key in filter(typed.get, PLACES):
        place = Path(typed[key]).absolute()
        if path.is_relative_to(place) or place.is_relative_to(path):
            return key
    return "file"


def typed_settings() -> dict[str, str]:
    """What was typed, by key, for a job in a process of its own too."""
    command = shlex.split(os.environ.get("SEQLAB_COMMAND", "")) or sys.argv
    return {argument.lstrip("+~").partition("=")[0]: argument.partition("=")[2].strip("'\"") for argument in command}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU or the machine had no more memory to give; on a CPU, PyTorch says so in words alone."""
    by_torch = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return by_torch or isinstance(error, MemoryError) or is_of_a_gpu(error)


def is_of_a_gpu(error: BaseException) -> bool:
    """Whether a GPU had no more memory; torch is not imported for errors that come without it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def out_of_memory(error: BaseException) -> UserError:
    """No more memory, with what was asked for where the error says it."""
    on_gpu = is_of_a_gpu(error)
    asked = re.search(r"allocate ([\d.]+ ?\w+)", str(error))
    rule = f"there is not enough{f' for another {asked[1]}' if asked else ''}"
    remedy = (
        "Raise trainer.accumulate (the same batch in smaller parts), lower trainer.evaluation_batch_size or "
        "trainer.batch_size, or use trainer.precision=bf16"
    ) + (", or trainer.cuda_graph=false" if on_gpu else "")
    return UserError("memory", "the GPU's" if on_gpu else "this machine's", rule, remedy)


def refused_setting(message: str, cause: Exception) -> UserError:
    """What a part's constructor said of its settings, with the part's place."""
    found = re.search(r"full_key: ([\w.]+)", message)
    target = re.search(r"Error in call to target '([^']+)'", message)
    remedy = "Change its settings (debug=true shows where it failed)"
    return UserError(
        found.group(1) if found else "configuration", target.group(1) if target else "", str(cause), remedy
    )
