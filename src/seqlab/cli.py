"""The command line around Hydra: mistakes become messages of a line or two, and each ending has its exit status."""

import errno
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from seqlab.config import CONFIG_FOLDER, known_settings, nearest
from seqlab.errors import Diverged, Interrupted, UserError

log = logging.getLogger("seqlab")


def run(main: Callable[[], None]) -> NoReturn:
    """Call a ``hydra.main`` function and exit with 0, or with a message and the status of what went wrong."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would have printed
    try:
        main()
    except Exception as error:
        sys.exit(report(error))
    except KeyboardInterrupt:
        log.error("Stopped before the first checkpoint.")
        sys.exit(130)
    sys.exit(0)


def job(task: Callable[[DictConfig], float], cfg: DictConfig) -> float:
    """Run one job. Alone, it ends the process itself, before Hydra adds a line of its own to a mistake's message."""
    try:
        return task(cfg)
    except Exception as error:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            raise
        sys.exit(report(error))


def report(error: Exception) -> int:
    """Say what went wrong; the traceback only for faults of ours and with ``debug=true``. Returns the exit status."""
    ending = translate(error)
    if ending is None or "debug=true" in sys.argv:
        traceback.print_exception(error)
    if ending is None:
        return 1
    log.log(logging.WARNING if isinstance(ending, Interrupted) else logging.ERROR, "%s", ending)
    return ending.exit_status


def translate(error: BaseException | None) -> UserError | Diverged | Interrupted | None:
    """The user's own mistake, or another foreseen ending, behind an exception; ``None`` if it is neither."""
    while error is not None:
        if isinstance(error, UserError | Diverged | Interrupted):
            return error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "Free some, then continue with resume=<run folder>; what was written before is whole"
            return UserError(error.filename or "disk", "full", "there is no space left to write", remedy)
        if isinstance(error, HydraException | OmegaConfBaseException) and not isinstance(error, InstantiationException):
            return composition_error(str(error))
        error = error.__cause__ or error.__context__
    return None


def composition_error(message: str) -> UserError:
    """Hydra's complaint about the command line, with the nearest name."""
    arguments = dict(argument.lstrip("+~").partition("=")[::2] for argument in sys.argv[1:])
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
