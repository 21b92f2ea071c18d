"""M²RNN: heads and rows in several programs, gradients that are clipped, what is not finite, its FLOPs."""

import math
from importlib import import_module

import pytest
import torch
from comparison import (
    assert_all_close,
    assert_same_bits,
    backends_in,
    doubled,
    hold_apart,
    numbered,
    results,
    skip_unless_available,
)
from m2rnn_cases import M2RNN, make_arguments

from seqlab.ops import backends, m2rnn, m2rnn_flops
from seqlab.ops.m2rnn import resolve_backend
from seqlab.ops.m2rnn.operator import FUSED

every_backend = pytest.mark.parametrize("backend", backends_in(M2RNN.package))
every_fused_backend = pytest.mark.parametrize("backend", FUSED)
kernel_test = pytest.mark.usefixtures("nan_memory")


@pytest.fixture(autouse=True)
def short_spans(monkeypatch):
    for backend in FUSED:
        monkeypatch.setattr(import_module(f"{M2RNN.package}.{backend}"), "SPAN", 3)


@every_fused_backend
@kernel_test
def test_rows_of_two_programs_packed_and_clipped(backend):
    arguments = make_arguments(1, 7, 2, 17, 5)
    M2RNN.compare(arguments, backend, seq_idx=numbered([{1, 5}], 7), gradient_clip=0.2)


@every_backend
@pytest.mark.parametrize(("clip", "expected"), [(None, 10.0), (100.0, 10.0), (2.5, 2.5)])
def test_the_gradient_by_each_state_is_clipped(backend, clip, expected):
    """One number a state, of which none is forgotten or entered: without a bound the first gets 1 + 1 + ... + 1."""
    skip_unless_available(M2RNN.package, backend, "cpu", torch.float32)
    ones, W = torch.ones(1, 10, 1), torch.ones(1, 1, 1)
    state = torch.full((1, 1, 1, 1), 0.5, requires_grad=True)
    settings = {"initial_state": state, "gradient_clip": clip, "backend": backend}
    y = m2rnn(ones, 0 * ones, ones[..., None], ones, W, **settings)
    (gradient,) = torch.autograd.grad(y.sum(), state)
    assert gradient.item() == expected


@every_fused_backend
@kernel_test
def test_what_is_not_finite_stays_in_its_sequence(backend):
    def operation(**arguments: torch.Tensor) -> torch.Tensor:
        return m2rnn(**arguments, gradient_clip=1.0, backend=backend)

    skip_unless_available(M2RNN.package, backend, "cpu", torch.float32)
    hold_apart(operation, make_arguments(1, 5, 1, 3, 4, options=()), ("k", "v"), math.nan, {2, 3})


@every_fused_backend
def test_without_a_gradient_nothing_is_kept(backend, monkeypatch):
    skip_unless_available(M2RNN.package, backend, "cpu", torch.float32)
    module, kept = import_module(f"{M2RNN.package}.{backend}"), []
    forward = module.forward

    def noticed(*given: object) -> tuple[torch.Tensor, ...]:
        kept.append(forward(*given)[2])
        return forward(*given)

    monkeypatch.setattr(module, "forward", noticed)
    m2rnn(**make_arguments(1, 2, 1, 3, 4), backend=backend)
    assert [starts.numel() for starts in kept] == [0]


def test_values_that_do_not_fit_a_program(monkeypatch):
    with pytest.raises(ValueError, match="takes d_value up to 128, not 129"):
        m2rnn(**make_arguments(1, 1, 1, 1, 129), backend="triton")
    monkeypatch.setattr(backends, "resolve", lambda package, order, *_: order[0])
    assert [resolve_backend("auto", "cuda", torch.float32, d_value) for d_value in (128, 129)] == ["triton", "spans"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(10, 64, 16), (4, 32, 32), (3, 48, 64), (2, 128, 128), (2, 100, 33)])
@kernel_test
def test_sizes_of_models_on_a_gpu(dtype, sizes):
    """Values and gradients, the same bit by bit from run to run."""
    arguments = make_arguments(2, 77, *sizes, dtype=dtype, device="cuda")
    settings = {"seq_idx": numbered([{5, 40}, {16}], 77).cuda(), "gradient_clip": 1.0}
    expected = results(m2rnn, doubled(arguments), backend="spans", **settings)
    first, second = (results(m2rnn, arguments, backend="triton", **settings) for _ in range(2))
    assert_all_close(first, expected, dtype)
    assert_same_bits(first, second)


def test_flops_of_one_position_by_hand():
    """K = 2, V = 3: H W 18 and 12, k v^T, + and tanh 18, 1 - f, two products and + 19, H^T q 6 and 3."""
    assert m2rnn_flops(1, 1, 1, 2, 3) == 30 + 18 + 19 + 9
    assert m2rnn_flops(3, 5, 7, 2, 3) == 3 * 5 * 7 * 76


def test_without_memory_it_has_shapes_alone():
    """On the meta device, where FLOPs are counted: nothing is computed that a counter could see."""
    from torch.utils.flop_counter import FlopCounterMode

    drawn = make_arguments(2, 3, 2, 5, 7)
    arguments = {name: tensor.to("meta").requires_grad_() for name, tensor in drawn.items()}
    with FlopCounterMode(display=False) as counter:
        y, state = m2rnn(**arguments, return_final_state=True)
        (y.sum() + state.sum()).backward()
    assert counter.get_total_flops() == 0
    assert y.shape == arguments["v"].shape
    assert state.shape == arguments["initial_state"].shape
    assert all(tensor.grad.shape == tensor.shape for tensor in arguments.values())
