"""A job's share of the machine where several run side by side: its CPU threads and its GPU.

This and the files in ``conf/launcher`` are all that knows of launchers; what a job computes does not depend on them.
"""

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

SEQUENTIAL = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
DEFAULT_THREADS = torch.get_num_threads()  # the machine's cores, or what OMP_NUM_THREADS or a launcher says


def take_share(device: torch.device, threads: int | None) -> None:
    """Set the number of CPU threads, and turn to this job's GPU where jobs run beside each other.

    The jobs of a sweep take the GPUs in turn, and several may be on one. On a cluster a job sees its own alone.

    Args:
        device: what the job runs on.
        threads: of torch and of the CPU kernels; ``None`` is what this process began with.
    """
    torch.set_num_threads(threads or DEFAULT_THREADS)
    hydra = HydraConfig.get()
    side_by_side = hydra.mode is RunMode.MULTIRUN and hydra.launcher._target_ != SEQUENTIAL
    if device.type == "cuda" and side_by_side:
        torch.cuda.set_device(hydra.job.num % torch.cuda.device_count())
