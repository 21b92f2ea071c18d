"""Capturing kernels as a CUDA graph."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


def side_stream() -> torch.cuda.Stream:
    """The current device's stream for captures and their warm-up; the default one cannot be captured.

    Always the same one: the libraries keep a workspace (cuBLAS 32 MB) for each stream that they have been called on.
    """
    return _stream_of(torch.cuda.current_device())


@cache
def _stream_of(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextmanager
def on_side_stream() -> Iterator[None]:
    """Launch on ``side_stream``, in order with the current stream, where kernels are to be captured later."""
    current, side = torch.cuda.current_stream(), side_stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        yield
    current.wait_stream(side)


@contextmanager
def capture(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """Capture what is launched in this context; other threads may use the device meanwhile.

    Python's garbage collector waits until the end: if it frees another graph, such as that of a trainer which is part
    of a cycle of references, CUDA declares the capture invalid.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, stream=side_stream(), capture_error_mode="thread_local"):
            yield
    finally:
        if collecting:
            gc.enable()
