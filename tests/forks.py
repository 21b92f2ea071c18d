"""Runs in processes of their own, forked from one that has imported all that a run needs: it takes two seconds."""

import gc
import multiprocessing
import os
import runpy
import signal
import socket
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing import connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest

from support import ROOT

IMPORTED = [
    *("seqlab.experiment", "seqlab.cli.main", "seqlab.models.mixers", "seqlab.data.synthetic"),
    *("hydra_plugins.hydra_joblib_launcher.joblib_launcher", "hydra_plugins.hydra_submitit_launcher.submitit_launcher"),
    *("seqlab.ops.selective_scan.cpu_kernels", "seqlab.ops.causal_conv1d.cpu_kernels", "seqlab.sweep.callback"),
    *("torch.utils.flop_counter", "sympy", "torch.distributed.fsdp", "torch.distributed.checkpoint", "forks", "warmed"),
]
"""Before the first fork, once; a part that is not installed is passed over. Nothing here imports torch's compiler."""


@cache
def server() -> ForkServerContext:
    """The process to fork, after its imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # which the server would not have, and say nothing
        first = context.Process(target=_has_imported, args=("warmed",))
        first.start()
        first.join()
    assert first.exitcode == 0
    return context


def _has_imported(name: str) -> None:
    sys.exit(name not in sys.modules)


def start(screen: Path, task: Callable[..., None], *arguments: object) -> ForkServerProcess:
    """Begin ``task(*arguments)`` in a process whose two streams go to the end of the file ``screen``.

    Both it and its arguments are pickled. Signals have their usual effect, whatever they have for the tests.
    """
    given = (screen, dict(os.environ), Path.cwd(), task, arguments)
    process = server().Process(target=_begin, args=given)
    process.start()
    return process


def finish(screen: Path, task: Callable[..., None], *arguments: object) -> tuple[int, str]:
    """``start``, and wait for the end: the exit status, as that of ``subprocess``, and what was written."""
    process = start(screen, task, *arguments)
    process.join(300)
    assert process.exitcode is not None, screen.read_text()
    return process.exitcode, screen.read_text()


def free_port() -> str:
    """The number of a port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launched(
    folder: Path, launch: dict[str, str], task: Callable[..., None], *arguments: object, size: int = 2
) -> list[ForkServerProcess]:
    """Processes, as torchrun starts them; what each writes goes to the end of ``screen0``, ``screen1`` and so on."""
    same = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"} | launch
    folder.mkdir(exist_ok=True)
    server()  # which would keep the environment of below for all that are forked from it later
    started = []
    for rank in map(str, range(size)):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (same | {"RANK": rank, "LOCAL_RANK": rank}).items():
                patch.setenv(name, value)
            started.append(start(folder / f"screen{rank}", task, *arguments))
    return started


def as_torchrun(folder: Path, task: Callable[..., None], *arguments: object, size: int = 2) -> list[tuple[int, str]]:
    """``finish`` processes, as torchrun starts them; for each its exit status and what was written."""
    started = launched(folder, {"MASTER_PORT": free_port()}, task, *arguments, size=size)
    for process in started:
        process.join(120)
    return [(process.exitcode, (folder / f"screen{rank}").read_text()) for rank, process in enumerate(started)]


def _begin(screen: Path, environment: dict[str, str], folder: Path, task: Callable[..., None], given: tuple) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = os.open(screen, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    os.chdir(folder)
    gc.freeze()  # what was imported need not be looked through again after each job
    task(*given)


def train(*arguments: str) -> None:
    """``python train.py``, for a process of its own."""
    sys.argv = ["train.py", *arguments]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def train_until(job: str, step: int, *arguments: str) -> None:
    """``train``, and kill -9 behind this step of the run whose folder is called ``job``."""
    from seqlab.training.trainer import Trainer

    whole = Trainer._train_step

    def mortal(self: Trainer, bar: object) -> None:
        whole(self, bar)
        if self.folder.name == job and self.counters.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer._train_step = mortal
    train(*arguments)


class Torchrun:
    """Starts two processes again and again, as ``torchrun --max-restarts`` does, and has their store meanwhile."""

    def __init__(self, folder: Path):
        from torch.distributed import TCPStore

        self.folder, self.starts = folder, 0
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def start(self, task: Callable[..., None], *arguments: object) -> list[ForkServerProcess]:
        """Begin ``task(*arguments)`` in both once more."""
        own = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": str(self.starts)}
        self.starts += 1
        return launched(self.folder, own | {"MASTER_PORT": str(self.store.port)}, task, *arguments)

    def screen(self, rank: int) -> str:
        """What the processes of this rank have written."""
        return (self.folder / f"screen{rank}").read_text()


def wait(processes: list[ForkServerProcess], patience: float = 30) -> list[int]:
    """Wait for all, or until one fails, and then end the others, as torchrun does; their exit statuses."""
    waited_for = {process.sentinel for process in processes}
    while waited_for and all(process.exitcode in (None, 0) for process in processes):
        waited_for -= set(connection.wait(list(waited_for)))
    for process in processes:
        if process.exitcode is None:
            process.terminate()
    for process in processes:
        process.join(patience)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]
