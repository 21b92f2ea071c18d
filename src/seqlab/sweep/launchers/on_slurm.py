"""The jobs of a sweep as an array of a SLURM cluster: submitit submits them, and queues those again that it must.

What is known of a job is that SLURM lists it or does not. submitit itself asks ``sacct``, which not every cluster has,
and gives up the others at the first job that died.
"""

import getpass
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from seqlab.errors import UserError
from seqlab.formatting import counted
from seqlab.jsonio import dump, load
from seqlab.sweep.launchers.packed import composed

log = logging.getLogger("seqlab")

QUEUED = "queued.json"  # beside submitit's own files: SLURM's id of each job, by its overrides
PATIENCE = 20.0  # seconds between two questions to SLURM
INTERVAL = 1.0  # seconds between two looks for results


def launch(launcher: Launcher, jobs: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Submit the jobs that SLURM does not have yet, and wait for all.

    Jobs outlive this process. The same sweep, started again while some are queued or running, waits for these.

    Args:
        launcher: Hydra's, with the settings of ``submitit_slurm``.
        jobs: the overrides of each.
        first: the number of the first one.

    Raises:
        UserError: there is no SLURM here, or it refuses the jobs.
    """
    if shutil.which("sbatch") is None or shutil.which("squeue") is None:
        remedy = "Start the sweep where sbatch works, or take launcher=local_gpus, joblib or ray"
        raise UserError("launcher", "slurm", "there is no SLURM here (sbatch and squeue)", remedy)
    packed = [composed(launcher, overrides, first + place) for place, overrides in enumerate(jobs)]
    file = Path(launcher.settings["submitit_folder"].partition("%")[0]) / QUEUED
    known, keys = load(file), [json.dumps(list(job)) for job in jobs]
    queue = {number for number in listed() or () if not result(file.parent, number).exists()}
    ids = {key: known[key] for key in keys if known.get(key) in queue}
    if ids:
        log.warning("With SLURM from before, and not submitted again: %s.", counted(len(ids), "job"))
        packed = [job.shown() if key in ids else job for key, job in zip(keys, packed, strict=True)]
    new = [place for place, key in enumerate(keys) if key not in ids]
    if new:
        submitted = submit(launcher, [jobs[place] for place in new], [first + place for place in new])
        ids |= zip((keys[place] for place in new), submitted, strict=True)
    dump(file, known | ids)
    wait(ids.values(), file.parent)
    return [job.over(file.parent) for job in packed]


def submit(launcher: Launcher, jobs: Sequence[Sequence[str]], numbers: Sequence[int]) -> list[str]:
    """Submit jobs as one array, by the launcher of Hydra and submitit. Returns SLURM's id of each.

    Raises:
        UserError: a job would start several tasks on a node, or SLURM refuses the jobs.
    """
    import submitit
    from hydra.core.singleton import Singleton
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    inner = SlurmLauncher(**launcher.settings)
    inner.setup(
        hydra_context=launcher.hydra_context, task_function=launcher.task_function, config=launcher.config
    )  # it is what submitit calls in the job, and what it queues again
    settings = dict(inner.params)
    if settings["tasks_per_node"] != 1:
        rule = "a job is one task on each node, which starts its other processes by torchrun"
        remedy = "Leave it out, and give hydra.launcher.gpus_per_node or sweep.processes"
        raise UserError("hydra.launcher.tasks_per_node", settings["tasks_per_node"], rule, remedy)
    folder, requeues = settings.pop("submitit_folder"), settings.pop("max_num_timeout")
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=requeues)
    plain = BaseQueueConf.__dataclass_fields__
    executor.update_parameters(**{key if key in plain else f"slurm_{key}": settings[key] for key in settings})
    given = [
        (list(job), "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state())
        for job, number in zip(jobs, numbers, strict=True)
    ]
    try:
        return [job.job_id for job in executor.map_array(inner, *zip(*given, strict=True))]
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        said = [line for line in str(error).splitlines() if "error:" in line] or [str(error)]
        rule = said[-1].partition("error:")[2].strip() or said[-1]
        remedy = "Change hydra.launcher.partition, timeout_min, mem_gb, cpus_per_task or gpus_per_node"
        raise UserError("launcher", "slurm", f"sbatch refuses the jobs: {rule}", remedy) from error


def wait(ids: Iterable[str], folder: Path) -> None:
    """Wait until every job has left its result, or SLURM lists it no more."""
    left, asked = set(ids), time.monotonic()
    try:
        while left:
            left -= {number for number in left if result(folder, number).exists()}
            if left and time.monotonic() - asked > PATIENCE:
                present, asked = listed(), time.monotonic()
                left &= left if present is None else present
            if left:
                time.sleep(INTERVAL)
    finally:
        if left:
            arrays = " ".join(sorted({number.partition("_")[0] for number in left}))
            log.warning("%s left with SLURM, which goes on; scancel %s ends it.", counted(len(left), "job"), arrays)


def result(folder: Path, number: str) -> Path:
    """The file with which submitit ends a job, whatever became of it."""
    return folder / number / f"{number}_0_result.pkl"


def listed() -> set[str] | None:
    """SLURM's ids of this user's jobs that wait or run, ``None`` if it does not answer now."""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={getpass.getuser()}"]
    answer: Any = subprocess.run(command, capture_output=True, text=True, check=False)
    return set(answer.stdout.split()) if answer.returncode == 0 else None


def preempted() -> bool:
    """Whether this process is in a job of SLURM's that has to make place for another.

    SLURM queues it again if it has to kill it; one that ends by itself within its time of grace has failed.
    """
    if "SLURM_JOB_ID" not in os.environ or shutil.which("scontrol") is None:
        return False
    command = ["scontrol", "show", "job", os.environ["SLURM_JOB_ID"], "--oneliner"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return " PreemptTime=" in answer and " PreemptTime=None" not in answer
