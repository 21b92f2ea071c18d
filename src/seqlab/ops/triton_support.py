"""What the launches of Triton kernels have in common: where they run, and how tensors are laid out for them."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a kernel that sums in float32 cannot run there, or None.

    It runs on NVIDIA GPUs from compute capability 8.0 on, and for tests on a CPU in Triton's interpreter.
    """
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if dtype not in DTYPES:
        return f"sums in float32, not enough for {dtype}"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return None if major >= 8 else f"needs compute capability 8.0 or later, the device has {major}.{minor}"
    if device.type == "cpu" and interpreted():
        return None
    return "needs a CUDA device" + (", or TRITON_INTERPRET=1" if device.type == "cpu" else "")


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter. Triton is imported here, since that takes a while."""
    import triton

    return triton.knobs.runtime.interpret


@cache
def multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors of a GPU; 1 for the interpreter on a CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def ceil(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor, of any shape, with its last axis contiguous in memory; a slice of a wider one is not copied."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
