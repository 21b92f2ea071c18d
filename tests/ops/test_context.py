"""Slices of sequences, each scanned by a process of its own (here a thread), are the whole sequences.

Outputs and gradients are held to those of one call on everything; gradients of what all slices read are sums.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier, Lock

import pytest
import scan_cases
import ssd_cases
import torch
from comparison import assert_all_close
from test_mamba2_inner import make_arguments as mamba2_arguments
from test_mamba_inner import make_arguments as mamba_arguments
from torch import Tensor

from seqlab.ops import causal_conv1d, selective_scan, ssd
from seqlab.ops.context import ContextGroup
from seqlab.ops.mamba2_inner import mamba2_inner
from seqlab.ops.mamba_inner import mamba_inner
from seqlab.ops.selective_scan import triton_plan

Results = dict[str, Tensor]


class Threads(ContextGroup):
    """As processes would, but one runs at a time, and the others wait in ``gather``."""

    def __init__(self, rank: int, found: list, one_at_a_time: Lock, all_there: Barrier):
        self.rank, self.size, self.found = rank, len(found), found
        self.one_at_a_time, self.all_there = one_at_a_time, all_there

    def gather(self, tensor: Tensor) -> Tensor:
        self.found[self.rank] = tensor.clone()
        self._wait()
        found = torch.stack(self.found)
        self._wait()
        return found

    def _wait(self) -> None:
        self.one_at_a_time.release()
        try:
            self.all_there.wait(60)
        finally:
            self.one_at_a_time.acquire()


def by_slices(task: Callable[[Threads], Results], size: int) -> list[Results]:
    found, one_at_a_time, all_there = [None] * size, Lock(), Barrier(size)

    def run(rank: int) -> Results:
        with one_at_a_time:
            try:
                return task(Threads(rank, found, one_at_a_time, all_there))
            except BaseException:
                all_there.abort()
                raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


def results(operation: Callable[..., Tensor], given: Results, weight: Tensor) -> Results:
    """y (Bt, L, ...) and the gradients of its product with ``weight``."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in given.items()}
    y = operation(**leaves)
    return {"y": y.detach()} | dict(
        zip(leaves, torch.autograd.grad((y * weight).sum(), list(leaves.values())), strict=True)
    )


def hold(operation: Callable[..., Tensor], given: Results, size: int) -> None:
    """``operation`` takes ``given`` by name, and a ``context``; what has three axes or more is (Bt, L, ...)."""
    rows = {"y"} | {name for name, tensor in given.items() if tensor.ndim > 2}
    weight = torch.randn_like(operation(**given))
    expected = results(operation, given, weight)

    def one(context: Threads) -> Results:
        def own(tensor: Tensor) -> Tensor:
            return tensor.chunk(size, dim=1)[context.rank]

        mine = {name: own(tensor) if name in rows else tensor for name, tensor in given.items()}
        return results(partial(operation, context=context), mine, own(weight))

    slices = by_slices(one, size)
    found = {name: [of_one[name] for of_one in slices] for name in expected}
    actual = {name: torch.cat(of_all, dim=1) if name in rows else sum(of_all) for name, of_all in found.items()}
    assert_all_close(actual, expected, weight.dtype)


def convolved(x: Tensor, weight: Tensor, context: ContextGroup | None = None) -> Tensor:
    before = None if context is None else context.inputs_before(x, weight.shape[1] - 1)
    return causal_conv1d(x, weight, initial_state=before, backend="reference")


@pytest.mark.parametrize(("size", "length", "taps"), [(2, 8, 4), (4, 4, 4), (3, 6, 6), (2, 6, 1)])
def test_the_convolution_looks_back_over_one_slice_or_several(size, length, taps):
    torch.manual_seed(0)
    hold(convolved, {"x": torch.randn(2, length, 3).double(), "weight": torch.randn(3, taps).double()}, size)


@pytest.mark.parametrize(
    ("backend", "dtype", "size", "length"),
    [("parallel", torch.float64, 3, 21), ("cpu", torch.float32, 2, 14), ("triton", torch.float32, 2, 10)],
)
def test_selective_scan(backend, dtype, size, length, monkeypatch):
    scan_cases.shorten_chunks(monkeypatch)
    monkeypatch.setattr(triton_plan, "_plan", triton_plan._plan.__wrapped__)
    monkeypatch.setattr(triton_plan, "SEGMENT", 4)
    monkeypatch.setattr(triton_plan, "SHORTEST_CHUNK", 4)  # of 5 positions, two chunks
    given = scan_cases.make_arguments(1, length, 3, 2, dtype=dtype, options=("D", "z", "delta_bias"))
    hold(partial(selective_scan, delta_softplus=True, backend=backend), given, size)


def test_ssd():
    given = ssd_cases.make_arguments(2, 21, 2, 3, 1, 4, dtype=torch.float64, options=("D", "dt_bias"))
    hold(partial(ssd, dt_softplus=True, backend="parallel"), given, 3)


def test_mamba_inner():
    xz, block = mamba_arguments(1, 4, 4)
    given = {"xz": xz, **{name: part for name, part in block._asdict().items() if name != "in_weight"}}

    def inner(xz: Tensor, context: ContextGroup | None = None, **parts: Tensor) -> Tensor:
        return mamba_inner(xz, block._replace(**parts), context)

    hold(inner, given, 2)


def test_mamba2_inner():
    zxBCdt, block = mamba2_arguments(1, 4, d_head=4)

    def inner(zxBCdt: Tensor, context: ContextGroup | None = None, **parts: Tensor) -> Tensor:
        return mamba2_inner(zxBCdt, block._replace(**parts), 1, 1e-5, context)

    hold(inner, {"zxBCdt": zxBCdt, **block._asdict()}, 2)


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"backend": "reference"}, "does not take a context"), ({"return_final_state": True}, "goes with neither")],
)
def test_what_slices_do_not_go_with(asked, said):
    given = scan_cases.make_arguments(1, 2, 3, 2, options=())
    with pytest.raises(ValueError, match=said):
        selective_scan(**given, context=Threads(0, [None], Lock(), Barrier(1)), **asked)
