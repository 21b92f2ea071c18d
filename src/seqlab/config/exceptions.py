"""Error messages for exceptions: each foreseen one becomes a message of one or two lines."""

import errno
import logging
import os
import re
import sys
from pathlib import Path

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

from seqlab.config.command_line import typed_settings
from seqlab.config.hydra_errors import composition_error
from seqlab.errors import Diverged, FailedElsewhere, Interrupted, UserError, is_late, is_out_of_touch
from seqlab.places import check_place

log = logging.getLogger("seqlab")

DENIED = "this account has no permission for that", "Change its permissions, or name another place"
A_FILE = "a file is there, or in its path, and a folder is needed", "Move that file away, or name another place"
FULL = (
    "there is no space left to write",
    "Free some; a sweep then goes on with the same command, a run that has a checkpoint with resume=<run folder>, "
    "and any other is started again",
)
REFUSALS = {
    errno.ENOENT: ("nothing can be made there", "Name another place"),
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
"""Rule and remedy for each error number with which the system refuses a path."""

OF_RUST = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust, safetensors and tokenizers, say the number of the system's error."""

PLACES = ("resume", "run", "hydra.sweep.dir", "hydra.run.dir", "data.cache_dir", "data.dir", "out", "to")
"""Settings that name a folder; ``run``, ``out`` and ``to`` are those of the commands that read a run."""

NAMES = ("name", "data_name", "hydra.sweep.subdir")
"""Settings that a run's folder is named by."""

GPU_IS_FULL = "CUDA error: out of memory", "Triton Error [CUDA]: out of memory", "STATUS_ALLOC_FAILED"
"""How the driver, Triton, cuBLAS and cuDNN say that they want memory beside what PyTorch holds."""


def message_of(error: BaseException) -> str:
    """An exception as a message to the user."""
    return str(translate(error) or f"{type(error).__name__}: {error}")


def report(error: Exception, *, debug: bool) -> int:
    """Log what went wrong, with the traceback for faults of ours and for debugging. Returns the exit status."""
    ending = translate(error)
    level = logging.WARNING if isinstance(ending, Interrupted) else logging.ERROR
    log.log(level, "%s", ending or error, exc_info=error if debug or ending is None else None)
    return 1 if ending is None else ending.exit_status


def translate(error: BaseException) -> UserError | Diverged | Interrupted | FailedElsewhere | None:
    """The user's mistake or other foreseen ending that caused an exception; ``None`` if there is none."""
    chain = [error]
    while (error := error.__cause__ or error.__context__) is not None:
        chain.append(error)
    endings = [e for e in chain if isinstance(e, UserError | Diverged | Interrupted | FailedElsewhere)]
    return endings[0] if endings else next(filter(None, map(translate_foreign, chain)), None)


def translate_foreign(error: BaseException) -> UserError | None:
    """The error to report for a library's exception, if a setting or the machine causes it."""
    if isinstance(error, OSError) and error.errno in REFUSALS and not is_only_missing(error):
        return refused_path(error)
    if (number := OF_RUST.search(str(error))) and REFUSALS.get(int(number[1])) is FULL:
        return UserError("disk", "full", *FULL)
    if found := out_of_memory(error):
        return found
    if is_out_of_touch(error) or is_late(error):
        rule = "it has ended or cannot be reached, and the run cannot go on without it; torchrun says which it was"
        remedy = "resume=<run folder> goes on from its last checkpoint, with any number of processes"
        return UserError("torchrun", "a process of this run", rule, remedy)
    if type(error).__module__.partition(".")[0] in ("submitit", "joblib"):  # packages that may not be here
        rule = "a job's process ended without a result, killed perhaps because memory ran out"
        return UserError("launcher", type(error).__name__, rule, "The same command goes on with what is left")
    if isinstance(error, InstantiationException):
        return refused_setting(error) if isinstance(error.__cause__, ValueError | TypeError) else None
    if isinstance(error, HydraException | OmegaConfBaseException) or str(error).startswith(
        "Config group override must"
    ):
        return composition_error(str(error))
    return None


def is_only_missing(error: OSError) -> bool:
    """Whether a path does not exist, and could; ``/proc`` refuses a new one in the same words."""
    if error.errno != errno.ENOENT or not isinstance(error.filename, str | os.PathLike):
        return error.errno == errno.ENOENT
    try:
        check_place("file", Path(error.filename).parent)
    except UserError:
        return False
    return True


def refused_path(error: OSError) -> UserError | None:
    """A path that the system refuses, with the setting that it comes from."""
    rule, remedy = REFUSALS[error.errno]
    path = error.filename2 or error.filename
    if not isinstance(path, str | os.PathLike):  # of an open file, whose path the system does not name
        return UserError("disk", "full", rule, remedy) if rule == FULL[0] else None
    if error.errno != errno.ENAMETOOLONG:
        return UserError(setting_of(Path(path)), path, rule, remedy)
    part, typed = max(Path(path).parts, key=len, default=""), typed_settings()
    named = [key for key in NAMES if typed.get(key) and typed[key].strip("'\"") in part]
    return UserError(named[0] if named else setting_of(Path(path)), part, rule, remedy)


def setting_of(path: Path) -> str:
    """The setting of the command line that a path comes from, or the one that would change it."""
    typed = typed_settings()
    swept = not typed.keys().isdisjoint(("-m", "--multirun")) or typed.get("hydra.mode") == "MULTIRUN"
    typed.setdefault("hydra.sweep.dir" if swept else "hydra.run.dir", "outputs")
    path = path.absolute()
    for key in filter(typed.get, PLACES):
        place = Path(typed[key].strip("'\"")).absolute()
        if path.is_relative_to(place) or place.is_relative_to(path):
            return key
    return "file"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU or the machine had no more memory."""
    return out_of_memory(error) is not None


def out_of_memory(error: BaseException) -> UserError | None:
    """The error to report when the GPU or the machine is out of memory, with the requested size if it is known."""
    torch = sys.modules.get("torch")  # before its import no error comes from a GPU
    said = str(error) if isinstance(error, RuntimeError) else ""
    full = any(text in said for text in GPU_IS_FULL)
    on_gpu = torch is not None and (full or isinstance(error, torch.OutOfMemoryError))
    on_cpu = "can't allocate memory" in said  # PyTorch has no type for it
    if not (on_gpu or on_cpu or isinstance(error, MemoryError)):
        return None
    asked = re.search(r"allocate ([\d.]+ ?\w+)", str(error))
    rule = f"there is not enough{f' for another {asked[1]}' if asked else ''}"
    remedy = (
        "Raise trainer.accumulate (the same batch in smaller parts), lower trainer.evaluation_batch_size or "
        "trainer.batch_size, or use trainer.precision=bf16"
    ) + (", or trainer.cuda_graph=false" if on_gpu else "")
    return UserError("memory", "the GPU's" if on_gpu else "this machine's", rule, remedy)


def refused_setting(error: InstantiationException) -> UserError:
    """The error to report when a part's constructor rejects its settings, with the part's key."""
    key = re.search(r"full_key: ([\w.]+)", str(error))
    target = re.search(r"Error in call to target '([^']+)'", str(error))
    remedy = "Change its settings (debug=true shows where it failed)"
    return UserError(key[1] if key else "configuration", target[1] if target else "", str(error.__cause__), remedy)
