"""What an exception means to the user: each foreseen one becomes a message of a line or two."""

import errno
import re
import shlex
import sys
from pathlib import Path

import torch
from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

from seqlab.config import CONFIG_FOLDER, known_settings, wanted_form
from seqlab.errors import Diverged, Interrupted, UserError, nearest
from seqlab.resume import CHANGEABLE


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
        remedy = "Name the jobs' folders yourself, for example hydra.sweep.subdir='${hydra:job.num}'"
        return UserError("hydra.sweep.subdir", Path(error.filename or "").name, "the name is too long", remedy)
    if is_out_of_memory(error):
        return out_of_memory(error)
    if type(error).__module__.partition(".")[0] in ("submitit", "joblib"):  # packages that may not be here
        rule = "a job's process ended without a result, killed perhaps because memory ran out"
        return UserError("launcher", type(error).__name__, rule, "The same command goes on with what is left")
    if isinstance(error, InstantiationException):
        refused = isinstance(error.__cause__, ValueError | TypeError)
        return refused_setting(str(error), error.__cause__) if refused else None
    if isinstance(error, HydraException | OmegaConfBaseException):
        return composition_error(str(error))
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU or the machine had no more memory to give; on a CPU, PyTorch says so in words alone."""
    by_torch = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return by_torch or isinstance(error, torch.OutOfMemoryError | MemoryError)


def out_of_memory(error: BaseException) -> UserError:
    """No more memory, with what was asked for where the error says it."""
    on_gpu = isinstance(error, torch.OutOfMemoryError)
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


def composition_error(message: str) -> UserError:
    """Hydra's complaint about the command line, with the nearest name."""
    arguments = dict(argument.lstrip("+~").partition("=")[::2] for argument in sys.argv[1:])
    if found := re.search(r"Could not find 'hydra/([^']+)/([^'/]*)'", message):
        plugin = found[2].partition("_")[0]  # submitit_local and submitit_slurm come together
        ours = plugin in ("joblib", "submitit")
        package = f"'seqlab[{plugin}]'" if ours else f"the plugin that brings it (hydra-{plugin}-...)"
        rule = "is not among Hydra's plugins here"
        return UserError(f"hydra/{found[1]}", found[2], rule, f"Install it with pip install {package}")
    if found := re.search(r"Could not find '(\w+)/([^']*)'", message):
        group, option = found.groups()
        options = [path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml")]
        return UserError(group, option, f"is no option of {group}", nearest(option, sorted(options)))
    if found := re.search(r"Could not override '([^']+)'", message):
        key = found.group(1)
        if "resume" in arguments and key in CHANGEABLE:  # composed are the usual parts, and not those of the run
            rule = "is no setting of the parts that the command line begins with"
            return UserError(key, arguments[key], rule, f"Write '+{key}={arguments[key]}'")
        rule, remedy = "is no setting", nearest(key, known_settings(sys.argv[1:]))
        return UserError(key, arguments.get(key, ""), rule, f"{remedy} (python train.py --cfg job lists all)")
    if found := re.search(r"Error merging override \+*(?!hydra\.)([^=]+)=(.*)", message):
        key, value = found.groups()
        remedy = f"Give it {wanted_form(key, sys.argv[1:])}"
        return UserError(key, value, "does not have the form that it takes", remedy)
    remedy = "Write settings as key=value, and quote what the shell would take for itself"
    return UserError("command line", shlex.join(sys.argv[1:]), message.splitlines()[0], remedy)
