"""What an exception means to the user: each foreseen one becomes a message of a line or two."""

import errno
import re
import sys
from pathlib import Path

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

from seqlab.errors import Diverged, Interrupted, UserError
from seqlab.typed import composition_error


def message_of(error: BaseException) -> str:
    """What to tell of an exception, for a person."""
    return str(translate(error) or f"{type(error).__name__}: {error}")


def translate(error: BaseException) -> UserError | Diverged | Interrupted | None:
    """The user's own mistake, or another foreseen ending, behind an exception; ``None`` if it is neither."""
    chain = [error]
    while (error := error.__cause__ or error.__context__) is not None:
        chain.append(error)
    endings = [e for e in chain if isinstance(e, UserError | Diverged | Interrupted)]
    return endings[0] if endings else next(filter(None, map(translate_foreign, chain)), None)


def translate_foreign(error: BaseException) -> UserError | None:
    """What a library's exception means to the user, if it is one that a setting or the machine causes."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "Free some, then continue with resume=<run folder>; what was written before is whole"
        return UserError(error.filename or "disk", "full", "there is no space left to write", remedy)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return too_long(str(error.filename or ""))
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


NAMES = ("name", "data_name")
"""Settings that a run's folder is called by."""


def too_long(path: str) -> UserError:
    """A name that the file system does not take, with the setting that it came from."""
    given = (argument.lstrip("+~").partition("=")[0] for argument in sys.argv[1:])
    keys = [
        key for key in given if key in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "data.dir", *NAMES)
    ]
    name = max(Path(path).parts, key=len, default="")
    return UserError(keys[-1] if keys else "file", name, "the name is too long for a file or folder", "Shorten it")


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
