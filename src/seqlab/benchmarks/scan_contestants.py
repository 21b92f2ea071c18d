"""What ``scan`` measures: the backends of the selective scan, other packages' scans, and causal attention.

Symbols: B sequences of length L, D channels (``d_inner``), N states of a channel (``d_state``).
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.benchmarks.scan_shapes import Shape
from seqlab.ops.selective_scan import selective_scan

HEAD = 64
"""Width of a head of attention."""

MAMBA_SSM_STATES, GRID_ROWS = 256, 65_535
"""The most states that mamba_ssm's kernel takes; the most blocks of a CUDA grid along its second axis."""


class Inputs(NamedTuple):
    """The arguments of one scan, leaves that require gradients, and the gradient ``dy`` of the loss by its output."""

    u: Tensor  # (B, L, D)
    delta: Tensor  # (B, L, D)
    A: Tensor  # (D, N)
    B: Tensor  # (B, L, N)
    C: Tensor  # (B, L, N)
    D: Tensor  # (D,)
    z: Tensor  # (B, L, D)
    delta_bias: Tensor  # (D,)
    dy: Tensor  # (B, L, D)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The arguments without ``dy``, shaped as above."""
        return self[:-1]


class Operation(NamedTuple):
    """A function, the tensors that it is differentiated by, and the gradient ``dy`` of its output, shaped as that."""

    run: Callable[[], Tensor]
    tensors: Sequence[Tensor]
    dy: Tensor

    def forward(self) -> Tensor:
        """The output, without gradients; shaped as ``dy``."""
        with torch.no_grad():
            return self.run()

    def forward_backward(self) -> tuple[Tensor, ...]:
        """The output, and the gradients, each of its tensor's shape."""
        y = self.run()
        return y, *torch.autograd.grad(y, self.tensors, self.dy)


class Contestant(NamedTuple):
    """Something to measure.

    Args:
        name: in tables.
        prepare: makes the operation from the inputs.
        ours: whether it is a backend of this package.
        expands: whether it stores states (B, L, D, N).
        quadratic: whether its time grows with L squared.
        modules: of another package, which must be importable.
        cannot: why it cannot take a shape in a dtype; ``None`` if it can.
    """

    name: str
    prepare: Callable[[Inputs], Operation]
    ours: bool = False
    expands: bool = False  # stores states (B, L, D, N)
    quadratic: bool = False  # its time grows with L squared
    modules: tuple[str, ...] = ()  # of another package
    cannot: Callable[[Shape, torch.dtype], str | None] = lambda shape, dtype: None

    def function(self, x: Inputs, passes: str) -> Callable[[], object]:
        """The function to time for ``forward`` or ``forward+backward``."""
        operation = self.prepare(x)
        return operation.forward if passes == "forward" else operation.forward_backward


def make_inputs(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Random activations, and parameters as Mamba initialises them (Gu and Dao 2023, section 3.6).

    A is -1 to -N; the softplus of ``delta_bias``, the step size, is log-uniform from 0.001 to 0.1.
    """
    generator = torch.Generator(device).manual_seed(seed)
    batch, length, d_inner, d_state = shape

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device, dtype=dtype)

    A = -torch.arange(1, d_state + 1, device=device, dtype=torch.float32).repeat(d_inner, 1)
    step = 10 ** (2 * torch.rand(d_inner, generator=generator, device=device) - 3)
    tensors = (
        normal(batch, length, d_inner),  # u
        normal(batch, length, d_inner) / 2,  # delta
        A,
        normal(batch, length, d_state),  # B
        normal(batch, length, d_state),  # C
        torch.ones(d_inner, device=device),  # D
        normal(batch, length, d_inner),  # z
        torch.log(torch.expm1(step)),  # delta_bias, whose softplus is the step
    )
    return Inputs(*(tensor.requires_grad_() for tensor in tensors), normal(batch, length, d_inner))


def ours(backend: str) -> Contestant:
    """A backend of this package."""
    return Contestant(backend, partial(prepare_ours, backend), ours=True, expands=backend == "reference")


def prepare_ours(backend: str, x: Inputs) -> Operation:
    """The selective scan by a backend of this package."""

    def run() -> Tensor:
        return selective_scan(*x.tensors, delta_softplus=True, backend=backend)

    return Operation(run, x.tensors, x.dy)


def prepare_mamba_ssm(x: Inputs) -> Operation:
    """The CUDA kernel of mamba_ssm, whose layout is (B, D, L); inputs are transposed here, outside of what is timed."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def transposed(tensor: Tensor) -> Tensor:
        return tensor.detach().transpose(1, 2).contiguous()  # (B, D, L)

    u, delta, B, C, z = (transposed(tensor).requires_grad_() for tensor in (x.u, x.delta, x.B, x.C, x.z))

    def run() -> Tensor:
        return selective_scan_fn(u, delta, x.A, B, C, x.D, z=z, delta_bias=x.delta_bias, delta_softplus=True)

    return Operation(run, (u, delta, x.A, B, C, x.D, z, x.delta_bias), transposed(x.dy))


def mamba_ssm_cannot(shape: Shape, dtype: torch.dtype) -> str | None:
    """What the checks in ``csrc/selective_scan/selective_scan.cpp`` of mamba_ssm 2.3.2 refuse, and CUDA's grid."""
    if shape.d_state > MAMBA_SSM_STATES:
        return f"its kernel takes at most {MAMBA_SSM_STATES} states"
    if shape.d_inner > GRID_ROWS:
        return f"its kernel starts a block for each channel, of which a grid has at most {GRID_ROWS:,}"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"its kernel takes no {dtype}"
    return None


def prepare_mambapy(x: Inputs) -> Operation:
    """The parallel scan of mamba.py's MambaBlock, with the softplus before it and the gate after it.

    Its parameters are in the activations' dtype, except A, as after ``model.to(dtype)``.
    """
    from mambapy.mamba import MambaBlock

    def run() -> Tensor:
        delta = F.softplus(x.delta + x.delta_bias.to(x.u.dtype))
        y = MambaBlock.selective_scan(None, x.u, delta, x.A, x.B, x.C, x.D.to(x.u.dtype))
        return y * F.silu(x.z)

    return Operation(run, x.tensors, x.dy)


def prepare_attention(x: Inputs) -> Operation:
    """Causal attention as wide as the model around the scan: a Mamba block expands by 2."""
    batch, length, d_inner = x.u.shape
    heads = max(1, d_inner // 2 // HEAD)
    q, k, v, dy = torch.randn(4, batch, heads, length, HEAD, device=x.u.device, dtype=x.u.dtype)
    tensors = [tensor.clone().requires_grad_() for tensor in (q, k, v)]

    def run() -> Tensor:
        return F.scaled_dot_product_attention(*tensors, is_causal=True)

    return Operation(run, tensors, dy.clone())


OTHERS = {
    "mamba_ssm": Contestant(
        "mamba_ssm",
        prepare_mamba_ssm,
        # selective_scan_cuda is built with the package, or not
        modules=("mamba_ssm.ops.selective_scan_interface", "selective_scan_cuda"),
        cannot=mamba_ssm_cannot,
    ),
    "mambapy": Contestant("mambapy", prepare_mambapy, expands=True, modules=("mambapy.mamba",)),
    "attention": Contestant("attention", prepare_attention, quadratic=True),
}


def why_other_is_out(name: str, device: torch.device) -> str | None:
    """Why a contestant of another package cannot run here; ``None`` if it can."""
    modules = OTHERS[name].modules
    if modules and find_spec(name) is None:
        return f"the package {name} is not installed"
    if name == "mamba_ssm" and device.type != "cuda":
        return "its kernel runs on CUDA devices only"
    try:
        for module in modules:
            import_module(module)
    except Exception as error:  # a package built for another torch fails in many ways
        return f"it cannot be imported ({type(error).__name__}: {error})".splitlines()[0]
    return None
