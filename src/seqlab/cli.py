"""The command line around Hydra: mistakes become messages of a line or two, and each ending has its exit status."""

import errno
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from seqlab.config import CONFIG_FOLDER, known_settings, nearest
from seqlab.errors import Diverged, Interrupted, UserError

log = logging.getLogger("seqlab")


class Reported(Exception):
    """A job of a sweep failed and has said so; the sweep goes on and ends with its status."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


def run(main: Callable[[], None]) -> NoReturn:
    """Call a ``hydra.main`` function and exit with 0, or with a message and the status of what went wrong."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would have printed
    try:
        main()
    except Reported as job:
        sys.exit(job.status)
    except Exception as error:
        sys.exit(report(error, debug="debug=true" in map(str.lower, sys.argv)))
    except KeyboardInterrupt:
        log.error("Stopped at once; a run that had begun continues from its last checkpoint with resume=<run folder>.")
        sys.exit(130)
    sys.exit(0)


def job(task: Callable[[DictConfig], float], cfg: DictConfig) -> float:
    """Run one job. In a sweep a failure is left to Hydra, which goes on with the next job; a wish to stop is not.

    A job alone ends the process itself, before Hydra adds a line of its own to a mistake's message.
    """
    try:
        return task(cfg)
    except Exception as error:
        status = report(error, debug=cfg.debug is True)
        if HydraConfig.get().mode is RunMode.MULTIRUN and not isinstance(error, Interrupted):
            raise Reported(status) from None
        sys.exit(status)


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
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "Free some, then continue with resume=<run folder>; what was written before is whole"
        return UserError(error.filename or "disk", "full", "there is no space left to write", remedy)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        remedy = "Name the jobs' folders yourself, for example hydra.sweep.subdir='${hydra:job.num}'"
        return UserError("hydra.sweep.subdir", Path(error.filename or "").name, "the name is too long", remedy)
    if isinstance(error, InstantiationException):
        refused = isinstance(error.__cause__, ValueError | TypeError)
        return refused_setting(str(error), error.__cause__) if refused else None
    if isinstance(error, HydraException | OmegaConfBaseException):
        return composition_error(str(error))
    return None


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
        rule, remedy = (
            "is not among Hydra's plugins here",
            f"pip install the plugin that brings it (hydra-{found[2]}-...)",
        )
        return UserError(f"hydra/{found[1]}", found[2], rule, remedy)
    if found := re.search(r"Could not find '(\w+)/([^']*)'", message):
        group, option = found.groups()
        options = [path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml")]
        return UserError(group, option, f"is no option of {group}", nearest(option, sorted(options)))
    if found := re.search(r"Could not override '([^']+)'", message):
        key = found.group(1)
        rule, remedy = "is no setting", nearest(key, known_settings(sys.argv[1:]))
        return UserError(key, arguments.get(key, ""), rule, f"{remedy} (python train.py --cfg job lists all)")
    remedy = "Write settings as key=value, and quote what the shell would take for itself"
    return UserError("command line", shlex.join(sys.argv[1:]), message.splitlines()[0], remedy)
