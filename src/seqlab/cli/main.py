"""The command line around Hydra: mistakes become messages of a line or two, and each ending has its exit status."""

import atexit
import gc
import logging
import math
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import rich
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from seqlab import console
from seqlab.cli import result_table
from seqlab.config.command_line import in_order, parse_flags
from seqlab.config.exceptions import message_of, report, translate
from seqlab.config.options import help_text
from seqlab.errors import Absent, Diverged, Foreseen, Interrupted, Pruned, UserError, is_out_of_touch
from seqlab.invocation import SWEEP, processes, remember, under_torchrun
from seqlab.jsonio import load
from seqlab.runs import leftovers
from seqlab.sweep import orphans, stopping, watch
from seqlab.sweep.entries import Entry
from seqlab.sweep.search.pruning import reporter

log = logging.getLogger("seqlab")


def run(main: Callable[[], None], command: Sequence[str] | None = None) -> NoReturn:
    """Call a ``hydra.main`` function and exit with status 0, or print what went wrong and exit with its status.

    Args:
        main: the function.
        command: the words that were typed; those of a script if ``None``.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would have printed
    remember(command or ["python", *sys.argv])
    os.environ[SWEEP] = str(os.getpid())
    status: Any = 0
    try:
        sys.argv[1:] = in_order(sys.argv[1:])
        if parse_flags(sys.argv[1:]).help:
            print(help_text(), flush=True)  # Hydra would list all groups of its own twice first
        else:
            refuse_sweep()
            main()
    except SystemExit as ending:
        status = ending.code or 0
    except BrokenPipeError:  # the reader closed the pipe, as in --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
        status = 128 + signal.SIGPIPE
    except Exception as error:
        status = report(error, debug="debug=true" in map(str.lower, sys.argv))
    except KeyboardInterrupt:
        if not watch.watching():
            log.error("Stopped at once; a run that has a checkpoint goes on from it with resume=<run folder>.")
        status = 130
    status = watch.finish(status)
    leftovers.clear(refused=status not in (0, 1))  # a fault of ours is left as it is
    end(status)


def end(status: Any) -> NoReturn:
    """Exit; one of several processes does so without Python's finalisation.

    A thread of gloo may ask for the interpreter then, which ends the process by SIGABRT: once in eight times on a busy
    machine.
    """
    if processes()[1] > 1:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)
    sys.exit(status)


def followed(follow: Callable[[], None]) -> NoReturn:
    """Take part in a run as another process of torchrun than the first, which says what happens in all.

    An error that the first process cannot know of is said here.

    Args:
        follow: ``experiment.follow``.
    """
    logging.disable()
    warnings.simplefilter("ignore")
    rich.get_console().quiet = True
    try:
        follow()
    except Foreseen as error:
        if isinstance(error, Absent) and error.teller == processes()[0]:  # the first has not come
            print(error, file=sys.stderr)
        elif error.__cause__ is not None and translate(error.__cause__) is None:  # a fault of ours, in this process
            traceback.print_exception(error.__cause__)
        end(getattr(error, "exit_status", 1))
    except Exception as error:
        if not is_out_of_touch(error):
            print(f"Rank {processes()[0]} failed, and with it the run: {message_of(error)}", file=sys.stderr)
        end(1)
    end(0)


def refuse_sweep() -> None:
    """Refuse a sweep under torchrun: its processes train one run together.

    Raises:
        UserError: in the first process; the others exit with the same status and no message.
    """
    rank, size = processes()
    typed = parse_flags(sys.argv[1:])
    swept = typed.multirun or any(setting.startswith(("search=", "hydra.mode=")) for setting in typed.overrides)
    if size == 1 or not swept:
        return
    if rank:
        time.sleep(5)  # torchrun stops all as soon as one fails, and the first has to say why
        sys.exit(UserError.exit_status)
    rule = "they train one run together, and this is a sweep"
    remedy = "Start it with python; -m launcher=joblib runs its jobs side by side, on several GPUs too"
    raise UserError("torchrun", f"{size} processes", rule, remedy)


@contextmanager
def importing() -> Iterator[None]:
    """Import with the garbage collector off, and exempt all objects so far from it: start-up takes a seventh less time.

    They become collectable again at exit, or Triton's binding would report them as leaks.
    """
    if "torch" in sys.modules:  # a later job of a sweep
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)


Task = Callable[..., dict[str, Any]]
"""``experiment.run``: given the configuration, and a reporter of metrics, trains and returns the summary."""


def job(task: Task, cfg: DictConfig) -> float:
    """Run one job, alone or in a sweep; show the table of one alone.

    A job alone exits here on an error, before Hydra adds a line of its own to the message.

    Returns:
        The best validation loss, a mean per position, which a hyper-parameter search may minimise.
    """
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        return swept_job(task, cfg)
    try:
        summary = task(cfg)
    except Exception as error:
        sys.exit(report(error, debug=cfg.debug is True))
    result_table.show(console.output(), summary)
    return best_loss(summary)


def best_loss(summary: dict[str, Any]) -> float:
    """The best validation loss; infinite where it was not finite, which JSON keeps as null."""
    loss = summary["best_validation_loss"]
    return math.inf if loss is None else loss


def swept_job(task: Task, cfg: DictConfig) -> float:
    """Run one job of a sweep. A failure is reported and does not stop the others; a signal to stop ends the process.

    Returns:
        The best validation loss; NaN if the job failed, since on an exception Hydra would stop at the end of a batch,
        and keep the job's stack frames, which hold its memory.
    """
    if not watch.watching():
        rich.get_console().quiet = True  # the screen belongs to the process that shows the sweep
    watch.leave_if_asked()
    from seqlab.runs import torchrun  # imports torch, which the job's task has done by now

    hydra = HydraConfig.get()
    sweep = Path(hydra.sweep.dir)
    folder = os.path.relpath(hydra.runtime.output_dir, sweep)
    entry = Entry(hydra.job.num, folder, OmegaConf.to_container(hydra.overrides.task), process=process_to_signal())
    launcher = hydra.launcher._target_
    with stopping.noted(launcher, sweep, entry):
        try:
            with orphans.ends_with_sweep(launcher):
                entry.write(sweep)
                if torchrun.wanted(cfg):
                    return in_processes(cfg, entry)
                value = best_loss(task(cfg, reporter))
            entry.end(sweep, "completed")
            return value
        except Pruned as pruned:
            log.info("%s", pruned)
            entry.end(sweep, "pruned")
            return pruned.loss
        except Exception as error:
            ending = translate(error)
            if isinstance(ending, Interrupted):
                log.warning("Stopped at step %d; the checkpoint is written.", ending.step)
                entry.interrupted(sweep)
                leave(ending.signal)
            report(error, debug=cfg.debug is True)
            entry.end(sweep, "diverged" if isinstance(ending, Diverged) else "failed", message_of(error))
            return math.nan
        finally:
            from seqlab.runs.process import free_memory  # imports torch, which the job has done by now

            free_memory()


def process_to_signal() -> int:
    """The id of the process that passes a signal on to the whole job: of torchrun's, the one that started them."""
    return int(os.environ[SWEEP]) if under_torchrun() else os.getpid()


def in_processes(cfg: DictConfig, entry: Entry) -> float:
    """Have torchrun run a job of a sweep. Each of its processes comes to ``swept_job``; the first writes the entry.

    Returns:
        The best validation loss; NaN if the job failed, or this is not its first node.
    """
    from seqlab.runs import torchrun
    from seqlab.sweep.launchers.packed import Packed

    hydra = HydraConfig.get()
    job, sweep = Packed(OmegaConf.merge(HydraConfig.instance().cfg, cfg)), Path(hydra.sweep.dir)
    status, stopped_by = torchrun.run(job.pack(), cfg, job.log)
    if stopped_by is not None:
        leave(stopped_by)
    if torchrun.node() > 0:
        return math.nan
    if status and entry.now(sweep).outcome not in ("failed", "diverged", "pruned", "completed"):
        rule = f"torchrun ended with status {status}, and the run had not"
        error = UserError("sweep.processes", cfg.sweep.processes, rule, f"{job.log} says what its processes did")
        log.error("%s", error)
        entry.end(sweep, "failed", str(error))
    return best_loss({"best_validation_loss": None} | load(Path(hydra.runtime.output_dir) / "summary.json"))


def leave(number: int) -> NoReturn:
    """End this process as a signal asked it to; submitit, which handles SIGUSR2, queues the job again."""
    from seqlab.sweep.launchers.on_slurm import preempted

    if number == signal.SIGUSR2 or preempted():
        signal.raise_signal(signal.SIGUSR2)
    sys.exit(128 + number)
