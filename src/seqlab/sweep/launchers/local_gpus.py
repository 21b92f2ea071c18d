"""The jobs of a sweep, dealt to this machine's GPUs by free memory, each in a process of its own."""

import contextlib
import math
import os
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from seqlab.config.schema import cores
from seqlab.errors import UserError
from seqlab.formatting import counted
from seqlab.runs.lock import GRACE
from seqlab.sweep.launchers.packed import COMMAND, Packed, composed, environment
from seqlab.sweep.stopping import announce

INTERVAL = 0.5  # seconds between two looks
QUERY = ("nvidia-smi", "--query-gpu=index,uuid,memory.free,memory.total", "--format=csv,noheader,nounits")


def launch(launcher: Launcher, jobs: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Run the jobs, each as soon as there is a place for it.

    Args:
        launcher: Hydra's, with the settings ``jobs_per_gpu`` and ``memory_gb``.
        jobs: the overrides of each.
        first: the number of the first one.

    Raises:
        UserError: there is no GPU, or none that a job would ever get.
    """
    packed = [composed(launcher, overrides, first + place) for place, overrides in enumerate(jobs)]
    table = Table(**{key: launcher.settings[key] for key in ("jobs_per_gpu", "memory_gb")})
    table.refuse_what_never_fits(max(job.processes for job in packed))
    waiting, running = deque(packed), {}
    try:
        while waiting or running:
            for process in [process for process in running if process.poll() is not None]:
                table.busy.subtract(running.pop(process))
            while waiting and (gpus := table.deal(waiting[0].processes)):
                running[start(waiting.popleft(), gpus, table.threads)] = gpus
            time.sleep(INTERVAL)
    finally:
        if running:
            announce(len(running))
        stop(running, patience=math.inf)
    return [job.over() for job in packed]


def start(job: Packed, gpus: Sequence[str], threads: int) -> subprocess.Popen:
    """Begin a job that sees these GPUs alone.

    It has a session of its own: a Ctrl-C comes from ``stop``, once, and not from the terminal as well.
    """
    own = {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    with job.log.open("wb") as log:
        streams = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log}
        command = [sys.executable, *COMMAND]
        process = subprocess.Popen(command, env=environment(**own), start_new_session=True, **streams)
    with contextlib.suppress(BrokenPipeError), process.stdin:  # it may have died at once
        process.stdin.write(job.pack())
    return process


def stop(processes: Iterable[subprocess.Popen], patience: float = GRACE) -> None:
    """Let jobs write their checkpoints and end; what has not ended after ``patience`` seconds is killed."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + patience
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


@dataclass
class Table:
    """The GPUs, and how many of this sweep's jobs are on each.

    Args:
        jobs_per_gpu: the most that are side by side on a GPU.
        memory_gb: free memory that a job waits for, in GiB.
        busy: the jobs on each GPU, by its UUID.
        before: free memory of each GPU when none of this sweep's jobs was on it, in GiB.
    """

    jobs_per_gpu: int
    memory_gb: float
    busy: Counter[str] = field(default_factory=Counter)
    before: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.total = {uuid: total for uuid, (_, total) in memory().items()}

    @property
    def threads(self) -> int:
        """CPU threads of a job, if all places are taken."""
        return max(1, cores() // (len(self.total) * self.jobs_per_gpu))

    def refuse_what_never_fits(self, processes: int) -> None:
        """Refuse jobs that would wait for ever.

        Raises:
            UserError: a job has more processes than there are GPUs of that size.
        """
        for key, value, least in (("jobs_per_gpu", self.jobs_per_gpu, 1), ("memory_gb", self.memory_gb, 0)):
            if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
                raise UserError(f"hydra.launcher.{key}", value, f"is a number, {least} or more", "Give it one")
        fitting = sum(total >= self.memory_gb for total in self.total.values())
        if processes > fitting:
            sizes = ", ".join(f"{total:.0f}" for total in self.total.values())
            if not fitting:
                rule = f"a job would wait for ever: the GPUs here have {sizes} GiB"
                raise UserError("hydra.launcher.memory_gb", self.memory_gb, rule, "Give it less")
            rule = f"a job takes a GPU for each process, and this machine has {counted(fitting, 'GPU')} for it"
            raise UserError("sweep.processes", processes, rule, f"Give it {fitting} or fewer")

    def deal(self, processes: int) -> list[str]:
        """The GPUs for a job with so many processes, by UUID, which are busy from now on; none if it has to wait."""
        free = {uuid: free for uuid, (free, _) in memory().items()}
        gpus = chosen(self.left(free), self.busy, processes, self.jobs_per_gpu, self.memory_gb)
        self.busy.update(gpus)
        return gpus

    def left(self, free: Mapping[str, float]) -> dict[str, float]:
        """Free memory less what our jobs, which may have begun a moment ago, are still to take."""
        self.before |= {uuid: value for uuid, value in free.items() if not self.busy[uuid]}
        kept = {uuid: self.before.get(uuid, 0.0) - self.memory_gb * self.busy[uuid] for uuid in free}
        return {uuid: min(value, kept[uuid]) for uuid, value in free.items()}


def chosen(
    free: Mapping[str, float], busy: Mapping[str, int], processes: int, jobs_per_gpu: int, memory_gb: float
) -> list[str]:
    """The GPUs with the fewest jobs, among those the ones with the most free memory; none if there are too few."""
    fit = [uuid for uuid, value in free.items() if busy[uuid] < jobs_per_gpu and value >= memory_gb]
    best = sorted(fit, key=lambda uuid: (busy[uuid], -free[uuid]))[:processes]
    return best if len(best) == processes else []


def memory() -> dict[str, tuple[float, float]]:
    """Free and total memory in GiB of each GPU that this process may use, by UUID: as the driver's own tool tells it.

    PyTorch could tell as well, and would take half a gigabyte of each GPU to do so.

    Raises:
        UserError: there is none.
    """
    try:
        lines = subprocess.run(QUERY, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        lines = []
    rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [name.strip() for name in visible.split(",") if name.strip()]
        rows = [row for row in rows if any(name == row[0] or row[1].startswith(name) for name in named)]
    if not rows:
        rule = "this machine has no GPU" if visible is None else f"none is left by CUDA_VISIBLE_DEVICES={visible}"
        remedy = "Take launcher=joblib for its cores, or launcher=slurm or launcher=ray for other machines"
        raise UserError("launcher", "local_gpus", rule, remedy)
    return {uuid: (as_gib(free), as_gib(total)) for _, uuid, free, total in rows}


def as_gib(mebibytes: Any) -> float:
    """GiB of a number of MiB; of a GPU that does not tell (``[N/A]``), no bound."""
    try:
        return float(mebibytes) / 1024
    except ValueError:
        return float("inf")
