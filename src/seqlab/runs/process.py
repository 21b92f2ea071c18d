"""The state of a job's process: global state is reset between jobs, and jobs side by side share CPUs and GPUs.

Only this and the files in ``conf/launcher`` depend on the launcher; what a job computes does not.
"""

import ctypes
import gc
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from seqlab.invocation import processes
from seqlab.models.mixers.rotary import kept_turns
from seqlab.runs.environment import reset_peak_memory

SEQUENTIAL = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def default_threads(given: str) -> int:
    """CPU threads of a job: the machine's cores or what a launcher says, and no more than ``given``, OMP_NUM_THREADS.

    joblib sets MKL_NUM_THREADS in its processes whatever that says, and torch takes it.
    """
    first = given.partition(",")[0].strip()
    return min(torch.get_num_threads(), int(first)) if first.isdecimal() and int(first) else torch.get_num_threads()


DEFAULT_THREADS = default_threads(os.environ.get("OMP_NUM_THREADS", ""))


DETERMINISTIC = torch.get_deterministic_debug_mode()  # 0 off, 1 warns of other algorithms, 2 refuses them
CUDNN = {name: getattr(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
PARTS = (
    torch.backends,  # first: it sets those below
    torch.backends.cuda.matmul,
    torch.backends.cudnn.conv,
    torch.backends.cudnn.rnn,
    torch.backends.mkldnn.matmul,
    torch.backends.mkldnn.conv,
    torch.backends.mkldnn.rnn,
)


def reset_global_state(seed: int) -> None:
    """Reset global state that an earlier job of this process may have changed, and seed all random number generators.

    The number of threads is set for every job in ``take_share``.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    torch.autograd.set_detect_anomaly(False)
    set_deterministic(DETERMINISTIC)
    for name, value in CUDNN.items():
        setattr(torch.backends.cudnn, name, value)
    torch.set_float32_matmul_precision("highest")
    for part in PARTS:  # float32 is float32 for every model, in cuDNN too
        part.fp32_precision = "ieee"
    if "torch._inductor.compile_fx" in sys.modules:  # otherwise nothing was compiled, and resetting would import it
        torch.compiler.reset()
    reset_peak_memory()


def set_deterministic(mode: int) -> None:
    """Set how torch treats algorithms that are not deterministic, unless that is so already."""
    if torch.get_deterministic_debug_mode() != mode:  # setting it imports torch's compiler, which takes a second
        torch.use_deterministic_algorithms(mode > 0, warn_only=mode == 1)


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Put back at the end what a job changes in its process, for a caller that goes on in it.

    That is random numbers and what ``reset_global_state`` and ``take_share`` set; what ``keep_memory`` asked of the C
    library cannot be read, and stays.
    """
    before = global_state()
    try:
        yield
    finally:
        for put, value in before:
            put(value)


def global_state() -> list[tuple[Callable[[Any], Any], Any]]:
    """The global state that a job may change: functions that set a part of it, each with the present value."""
    device = torch.get_default_device()
    state = [
        (torch.set_default_device, None if device.type == "cpu" else device),
        (torch.set_default_dtype, torch.get_default_dtype()),
        (torch.set_grad_enabled, torch.is_grad_enabled()),
        (torch.autograd.set_detect_anomaly, torch.is_anomaly_enabled()),
        (set_deterministic, torch.get_deterministic_debug_mode()),
        (torch.set_num_threads, torch.get_num_threads()),
        (torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()),
        *((partial(setattr, part, "fp32_precision"), part.fp32_precision) for part in PARTS),
        *((partial(setattr, torch.backends.cudnn, name), getattr(torch.backends.cudnn, name)) for name in CUDNN),
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),
        (torch.set_rng_state, torch.get_rng_state()),
    ]
    if torch.cuda.is_initialized():
        state.append((torch.cuda.set_device, torch.cuda.current_device()))
        state.append((torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    return state


def keep_memory() -> None:
    """Let the C library keep what is freed for what comes next, until ``free_memory``; GNU's alone can be asked.

    Otherwise it returns a large tensor's pages to the system when the tensor is freed, and each step faults all of them
    in again: a hundred thousand faults of 1.3 us in a step of 0.8 s.
    """
    if sys.platform == "linux":
        allow = getattr(ctypes.CDLL(None), "mallopt", None)
        if allow is not None:
            trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
            if not allow(mmap_threshold, 2**30):
                allow(mmap_threshold, 2**25)  # the most before version 2.35
            allow(trim_threshold, 2**31 - 1)


def free_memory() -> None:
    """Free the memory of an ended job: cycles among its objects, the GPU's cached blocks, the heap's free pages.

    An exception that is still being handled holds the job's frames, and they its tensors, so call this after it.
    """
    kept_turns.cache_clear()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # GNU's C library has it
        if trim is not None:
            trim(0)


def take_share(device: torch.device, threads: int | None) -> None:
    """Set the number of CPU threads, and select a GPU where jobs run side by side: each the next, round robin.

    On a cluster a job sees only its own GPU.

    Args:
        device: of the job.
        threads: of torch and of the CPU kernels; ``None`` for the number that this process started with.
    """
    torch.set_num_threads(threads or DEFAULT_THREADS)
    if processes()[0]:  # of several, the first alone has composed a configuration
        return
    hydra = HydraConfig.get()
    side_by_side = hydra.mode is RunMode.MULTIRUN and hydra.launcher._target_ != SEQUENTIAL
    if device.type == "cuda" and side_by_side:
        torch.cuda.set_device(hydra.job.num % torch.cuda.device_count())
