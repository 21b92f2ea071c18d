"""The jobs of a sweep as tasks of a Ray cluster, or of one that is started on this machine for the sweep."""

import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

from seqlab.errors import UserError
from seqlab.invocation import SWEEP, TYPED
from seqlab.runs.lock import PATIENCE
from seqlab.sweep.launchers.local_gpus import INTERVAL, stop
from seqlab.sweep.launchers.packed import COMMAND, Packed, composed, environment

log = logging.getLogger("seqlab")


def launch(launcher: Launcher, jobs: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Run the jobs where and when Ray has a place; one whose machine is lost is begun again, and so goes on.

    Args:
        launcher: Hydra's, with the settings of ``conf/hydra/launcher/ray.yaml``.
        jobs: the overrides of each.
        first: the number of the first one.

    Raises:
        UserError: Ray is not installed, its cluster cannot be reached, or no machine of it has what a job asks for.
    """
    ray = connected(launcher.settings["address"])
    packed = [composed(launcher, overrides, first + place) for place, overrides in enumerate(jobs)]
    work = ray.remote(in_a_process)
    tasks = []
    for job in packed:
        needs = needs_of(job, launcher.settings, ray)
        tasks.append(work.options(**needs).remote(job.pack(), Path.cwd(), job.log))
    left = tasks
    try:
        while left:
            ended, left = ray.wait(left, num_returns=len(left), timeout=0)
            for task in ended:
                try:
                    ray.get(task)
                except ray.exceptions.RayError as error:  # of this job alone; its table shows it as cut off
                    log.warning("Ray lost a job: %s", str(error).splitlines()[-1])
            time.sleep(INTERVAL)  # here, and not in Ray, signals have their usual effect
    except BaseException:
        for task in left:
            ray.cancel(task)
        ray.wait(left, num_returns=len(left), timeout=PATIENCE)  # for their checkpoints
        raise
    return [job.over() for job in packed]


def connected(address: str | None) -> Any:
    """The module ``ray``, connected to the cluster, or to a new one on this machine if ``address`` is ``None``.

    Raises:
        UserError: it is not installed, or there is no cluster.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a job without a GPU sees what is there
    try:
        import ray
    except ImportError:
        remedy = "Install it with pip install 'seqlab[ray]'"
        raise UserError("launcher", "ray", "Ray is not installed", remedy) from None
    if not ray.is_initialized():
        own = {name: os.environ[name] for name in (TYPED, "SEQLAB_DATA_DIR", "SEQLAB_CACHE_DIR") if name in os.environ}
        own["PYTHONPATH"] = environment()["PYTHONPATH"]
        before = signal.getsignal(signal.SIGTERM)
        try:
            if found := re.fullmatch(r"([\w.-]+):(\d+)", address or ""):  # Ray would try for minutes, and say much
                socket.create_connection((found[1], int(found[2])), timeout=10).close()
            ray.init(address=address or "local", include_dashboard=False if address is None else None,
                     log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": own})  # fmt: skip
        except (OSError, RuntimeError, ValueError) as error:
            remedy = "Name the address that ray start printed, or null for a cluster of this machine alone"
            raise UserError("hydra.launcher.address", address, str(error).splitlines()[0], remedy) from error
        if callable(before):
            signal.signal(signal.SIGTERM, before)  # Ray has put its own in the place of the sweep's
    return ray


def needs_of(job: Packed, settings: dict[str, Any], ray: Any) -> dict[str, Any]:
    """What a job asks Ray for.

    Raises:
        UserError: no machine of the cluster has as much, so that it would wait for ever.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = settings["num_gpus"]
    if gpus is None:
        there_are = any(machine.get("GPU") for machine in machines) and job.config.device != "cpu"
        gpus = job.processes if there_are else 0
    others = OmegaConf.to_container(settings["resources"]) if settings["resources"] else {}
    wanted = {"CPU": settings["num_cpus"], "GPU": gpus, **others}
    if not any(all(machine.get(key, 0) >= value for key, value in wanted.items()) for machine in machines):
        asked = ", ".join(f"{value} {key}" for key, value in wanted.items() if value)
        most = {key: max((machine.get(key, 0) for machine in machines), default=0) for key in wanted}
        rule = f"no machine of the cluster has that; the most are {', '.join(f'{v:g} {k}' for k, v in most.items())}"
        remedy = "Lower hydra.launcher.num_cpus or num_gpus"
        raise UserError("a job's needs", asked, rule, remedy)
    return {
        "num_cpus": settings["num_cpus"],
        "num_gpus": gpus,
        "resources": others or None,
        "max_retries": settings["max_retries"],
    }


def in_a_process(packed: bytes, folder: Path, log: Path) -> int:
    """Run a packed job in a process that ends with Ray's worker and its machine's Ray. Returns its exit status."""
    its_ray = os.getppid()
    variables = {**os.environ, SWEEP: str(its_ray)}
    with log.open("ab") as file:
        streams = {"stdin": subprocess.PIPE, "stdout": file, "stderr": file}
        process = subprocess.Popen([sys.executable, *COMMAND], env=variables, cwd=folder, **streams)
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin:  # it may have died at once
            process.stdin.write(packed)
        while process.poll() is None:
            time.sleep(INTERVAL)  # Ray cannot interrupt a wait in the system
    except BaseException:  # the task is cancelled
        stop([process])
        raise
    if os.getppid() != its_ray:
        os._exit(1)  # which Ray takes for what it is, a lost machine, and begins the job elsewhere
    return process.returncode
