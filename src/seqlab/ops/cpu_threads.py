"""Parallel work on the threads that PyTorch has already.

After a matrix product PyTorch's threads spin for some milliseconds, waiting for more to do. Threads of our own would
share their cores with them and gain nothing. So the work goes to PyTorch's threads, through the OpenMP library that it
has loaded. Where that library lacks the entry point, and in a forked process, which has none of its parent's threads, a
thread pool is used instead.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import torch

_PROCESS = os.getpid()
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_SUBNORMAL = 2.0**-1040


def on_threads(count: int, work: Callable[[], None]) -> None:
    """Call ``work`` on up to ``count`` threads, this one included; raises its first error.

    ``work`` should take tasks one by one from a common iterator, since any thread may be delayed by other processes.
    """
    errors = []

    def guarded(_: object = None) -> None:
        try:
            with _subnormals_flushed():
                work()
        except BaseException as error:  # an exception cannot pass through OpenMP
            errors.append(error)

    fork_join = _fork_join() if os.getpid() == _PROCESS else None
    if count == 1:
        guarded()
    elif fork_join is not None:
        fork_join(_CALLBACK(guarded), None, count, 0)
    else:
        others = [_pool(os.getpid(), count - 1).submit(guarded) for _ in range(1, count)]
        guarded()
        for other in others:
            other.result()
    if errors:
        raise errors[0]


@contextmanager
def _subnormals_flushed() -> Iterator[None]:
    """Flush numbers below 1e-38 to 0 in this thread: arithmetic with them is up to ten times slower, and gradients that
    vanish backwards in time reach them."""
    already = _SUBNORMAL * 1.0 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already)


@cache
def _fork_join() -> Callable | None:
    """The entry point of GNU's OpenMP, which LLVM's and Intel's also have on Linux; None if there is none."""
    try:
        call = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (AttributeError, OSError):
        return None
    call.argtypes, call.restype = [_CALLBACK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return call


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix=f"seqlab_{process}")
