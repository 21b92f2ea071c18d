"""A job of a sweep in several processes: torchrun starts them, on this node and on the others that the job has."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from seqlab.invocation import SWEEP, in_worker, under_torchrun
from seqlab.training.signals import StopRequest

JOB = "seqlab.commands.job"
INTERVAL = 0.2  # seconds between two looks
PORTS = range(10_000, 30_000)  # below those that systems give out themselves; a job of SLURM has that of its id


def wanted(cfg: DictConfig) -> bool:
    """Whether a job has several processes, and this is none of them."""
    return not under_torchrun() and processes(cfg) * nodes() > 1


def processes(cfg: DictConfig) -> int:
    """A job's processes on each node."""
    return OmegaConf.select(cfg, "sweep.processes") or 1


def nodes() -> int:
    """The nodes of a job, each of which runs this; one but for SLURM."""
    return OmegaConf.select(HydraConfig.get(), "launcher.nodes") or 1


def node() -> int:
    """The number of this node within the job."""
    return int(os.environ.get("SLURM_NODEID", 0))


def arguments(cfg: DictConfig) -> list[str]:
    """Of torchrun. The processes of several nodes meet at the one whose batch script called srun, the first."""
    if nodes() == 1:
        return ["--standalone", f"--nproc-per-node={processes(cfg)}"]
    job, host = int(os.environ["SLURM_JOB_ID"]), os.environ["SLURM_LAUNCH_NODE_IPADDR"]
    return [
        f"--nnodes={nodes()}",
        f"--nproc-per-node={processes(cfg)}",
        f"--rdzv-id={job}.{os.environ.get('SLURM_RESTART_COUNT', 0)}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={host}:{PORTS[job % len(PORTS)]}",
    ]


def run(packed: bytes, cfg: DictConfig, log: Path) -> tuple[int, int | None]:
    """Run a packed job (``seqlab.sweep.launchers.packed``) in its processes, and wait for their end.

    A signal to stop reaches them as SIGTERM through torchrun, which waits for their checkpoint.

    Args:
        packed: the job.
        cfg: its configuration.
        log: the file for what the processes write to their streams.

    Returns:
        torchrun's exit status, and the number of the signal that asked this process to stop.
    """
    stopping = StopRequest(patient=in_worker())
    with tempfile.NamedTemporaryFile(prefix="seqlab_job_") as file, log.open("ab") as output, stopping as stop:
        file.write(packed)
        file.flush()
        command = [sys.executable, "-m", "torch.distributed.run", *arguments(cfg), "-m", JOB, file.name]
        own = {SWEEP: str(os.getpid()), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        child = subprocess.Popen(
            command,
            env={**os.environ, **own},
            stdout=output,
            stderr=output,
            start_new_session=True,  # a Ctrl-C comes from here, once
            preexec_fn=ignore_requeue,
        )
        told = False
        while child.poll() is None:
            if stop.signal is not None and not told:
                child.terminate()
                told = True
            time.sleep(INTERVAL)
        return child.returncode, stop.signal


def ignore_requeue() -> None:
    """SLURM sends SIGUSR2 to every process of a job: this one answers it for all."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
