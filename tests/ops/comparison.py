"""How backends are found and held to their reference."""

import itertools
import math
import pkgutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import Tensor

from seqlab.ops.cuda_graph import capture, on_side_stream

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Largest relative error, norm(actual - expected) / norm(expected), by the dtype of the input."""

HALF = (torch.bfloat16, torch.float16)
DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]


def backends_in(package: str) -> list[str]:
    """The names of the backends of an operation: the files of its package that say where they can run."""
    names = [module.name for module in pkgutil.iter_modules(import_module(package).__path__)]
    return [name for name in names if hasattr(import_module(f"{package}.{name}"), "why_unavailable")]


def skip_unless_available(package: str, backend: str, device: str, dtype: torch.dtype) -> None:
    reason = import_module(f"{package}.{backend}").why_unavailable(torch.device(device), dtype)
    if reason is not None:
        pytest.skip(reason)


def assert_all_close(
    actual: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype, tolerance: float | None = None
) -> None:
    """Hold each tensor to the tolerance of ``dtype``, unless another is given; a zero has to be met exactly."""
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].shape == expected[name].shape, name
        difference = torch.linalg.vector_norm(actual[name].double() - expected[name].double()).item()
        norm = torch.linalg.vector_norm(expected[name].double()).item()
        assert difference <= tolerance * norm, f"{name}: relative error {difference / (norm or 1):.1e}"


INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of an element."""


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Hold each tensor to the same bits: NaN is equal to itself, and 0 is not -0."""
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].dtype == expected[name].dtype, name
        bits = (tensor.detach().view(INTEGERS[tensor.element_size()]) for tensor in (actual[name], expected[name]))
        assert torch.equal(*bits), name


def drawn_as(
    drawn: dict[str, Tensor], dtype: torch.dtype, *, device: str, wide: set[str], left_out: set[str]
) -> dict[str, Tensor]:
    """Drawn arguments in ``dtype``, but for those of ``left_out``; those of ``wide`` in float32 at least."""
    at_least = torch.float32 if dtype in HALF else dtype
    kept = {name: tensor for name, tensor in drawn.items() if name not in left_out}
    return {name: tensor.to(at_least if name in wide else dtype).to(device) for name, tensor in kept.items()}


def step_sizes(kind: str, *shape: int) -> Tensor:
    """Step sizes as a model has them, or such as break quotients of decays and differences of their logarithms."""
    if kind == "huge":  # every decay underflows, in float64 too
        return 1e4 * (1 + torch.rand(shape))
    if kind == "tiny":  # no decay is told from one
        return 1e-7 * (1 + torch.rand(shape))
    if kind == "mixed":
        return 10 ** (torch.rand(shape) * 8 - 6)
    return torch.rand(shape)


def weighted_sum(outputs: Iterable[Tensor]) -> Tensor:
    """A random combination of all elements of all outputs, its weights the same in every dtype and on every device."""
    generator = torch.Generator().manual_seed(1)
    terms = [(out * torch.randn(out.shape, generator=generator).bfloat16().to(out)).sum() for out in outputs]
    return sum(terms)


def results(
    operation: Callable[..., tuple[Tensor, Tensor]], arguments: dict[str, Tensor], **settings
) -> dict[str, Tensor]:
    """y, the final state and the gradient of a random combination of both by every argument; checks their dtypes."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in arguments.items()}
    y, state = operation(**leaves, return_final_state=True, **settings)
    gradients = torch.autograd.grad(weighted_sum((y, state)), list(leaves.values()))
    assert y.dtype == next(iter(arguments.values())).dtype
    for leaf, gradient in zip(leaves.values(), gradients, strict=True):
        assert gradient.dtype == leaf.dtype
    return {"y": y, "state": state, **named_gradients(leaves, gradients)}


def named_gradients(leaves: dict[str, Tensor], gradients: Iterable[Tensor]) -> dict[str, Tensor]:
    return dict(zip(("d" + name for name in leaves), gradients, strict=True))


def doubled(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in arguments.items()}


def restrided(tensor: Tensor, layout: str) -> Tensor:
    """The same shape in another memory layout."""
    if layout == "interleaved":
        return torch.stack([tensor, tensor], dim=-1)[..., 0]
    if layout == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    return tensor[:1].expand_as(tensor)


def numbered(cuts: list[set[int]], length: int) -> Tensor:
    """seq_idx (batch, length): 0 and 1 in turn, a new sequence at each cut."""
    return torch.tensor([[sum(cut <= t for cut in row) % 2 for t in range(length)] for row in cuts])


POISONS = [math.inf, math.nan, 3e38]
"""The last is finite, and overflows in the first product."""


def hold_apart(
    operation: Callable[..., Tensor],
    arguments: dict[str, Tensor],
    names: tuple[str, ...],
    poison: float,
    cuts: set[int],
) -> None:
    """Put ``poison`` into each of packed sequences in turn: the others' outputs and gradients stay as they are without
    it, and the poisoned one's are not all finite."""
    length = arguments[names[0]].shape[1]
    sequences = [slice(begin, end) for begin, end in itertools.pairwise([0, *sorted(cuts), length])]
    along_time = [name for name, tensor in arguments.items() if tensor.dim() > 1 and tensor.shape[1] == length]
    seq_idx = numbered([cuts] * len(arguments[names[0]]), length).to(arguments[names[0]].device)

    def outcome(given: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = {name: tensor.detach().requires_grad_(name in along_time) for name, tensor in given.items()}
        y = operation(**leaves, seq_idx=seq_idx)
        wanted = [leaves[name] for name in along_time]
        return {"y": y, **dict(zip(along_time, torch.autograd.grad(weighted_sum([y]), wanted), strict=True))}

    clean = outcome(arguments)
    for bad in sequences:
        changed = {name: tensor.clone() if name in names else tensor for name, tensor in arguments.items()}
        for name in names:
            changed[name][:, (bad.start + bad.stop - 1) // 2] = poison
        with np.errstate(all="ignore"):  # of Triton's interpreter, within the poisoned sequence
            found = outcome(changed)
        assert not all(tensor[:, bad].isfinite().all() for tensor in found.values())
        for good in sequences:
            if good != bad:
                apart = {name: tensor[:, good] for name, tensor in found.items()}
                expected = {name: tensor[:, good] for name, tensor in clean.items()}
                assert_all_close(apart, expected, clean["y"].dtype)


@contextmanager
def nothing_may_wait() -> Iterator[None]:
    """Fail where the CPU waits for the CUDA device, as far as torch notices it."""
    mode = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def assert_replays(step: Callable[[], list[Tensor]], static: Iterable[Tensor]) -> None:
    """Capture ``step`` as a CUDA graph, change what it reads, and hold the replay to a step made anew, bit by bit."""
    with on_side_stream():
        step()
    graph = torch.cuda.CUDAGraph()
    with capture(graph):
        captured = step()
    with torch.no_grad():
        for tensor in static:
            tensor.mul_(0.5)
    graph.replay()
    for actual, expected in zip(captured, step(), strict=True):
        assert torch.equal(actual, expected)
