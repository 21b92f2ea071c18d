"""Compiling kernels side by side, ahead of the launches that need them.

Triton compiles a kernel where it is first launched, and its caller waits: the kernels of a first training step, one
after the other, take half a minute. Within ``only_compiled`` a launch starts nothing. Its kernel is handed to a thread,
and what it would have written stays as it was, so that the calls to come can be made once for their kernels alone.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from typing_extensions import override

_ONLY_COMPILED = ContextVar("only_compiled", default=False)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **named: Any) -> Any | None:
    """Launch a Triton kernel; ``named`` are compile-time parameters and Triton's options.

    Returns:
        The compiled kernel; None within ``only_compiled``, and from Triton's interpreter.
    """
    if _ONLY_COMPILED.get():
        kernel.warmup(*arguments, grid=grid, **named)
        return None
    return kernel[grid](*arguments, **named)


class _Threads(ThreadPoolExecutor):
    """One for each core; they compile kernels for the current GPU."""

    def __init__(self):
        super().__init__(os.cpu_count(), "compile", torch.cuda.set_device, (torch.cuda.current_device(),))
        self.kernels: list[Future] = []

    @override
    def submit(self, compile: Callable[[], Any]) -> Future:
        future = super().submit(_compiled, compile)
        self.kernels.append(future)
        return future


def _compiled(compile: Callable[[], Any]) -> Any | None:
    """The kernel; None if it cannot be had, so that its launch compiles it and raises the error there.

    Up to 3.6 Triton compiles a launcher in C for each kernel too. Here that only fills Triton's cache, and the kernel
    is loaded where it is launched: a launcher that one of several threads loads may turn into another kernel's
    (findings/triton_launchers_loaded_again_share_one_module.sh).
    """
    from triton.runtime import driver

    try:
        kernel = compile()
        driver.active.launcher_cls(kernel.src, kernel.metadata)
    except Exception:
        return None
    return kernel


@contextmanager
def only_compiled() -> Iterator[list[Future]]:
    """Have kernels compiled for the current GPU instead of launched by this thread; at the end, wait for all of them.

    Yields:
        The kernels so far.
    """
    from triton import AsyncCompileMode

    with _Threads() as threads, AsyncCompileMode(threads):
        before = _ONLY_COMPILED.set(True)
        try:
            yield threads.kernels
        finally:
            _ONLY_COMPILED.reset(before)
