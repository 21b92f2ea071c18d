"""The linear cross-entropy on a CUDA device: in half precision, at the sizes of models, captured."""

import pytest
import torch
from comparison import HALF, assert_replays, nothing_may_wait
from test_linear_cross_entropy import half, hold, make_arguments, results, set_rows
from torch import Tensor

from seqlab.ops import linear_cross_entropy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@half
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("vocabulary", "width"), [(10_000, 256), (50_277, 768), (1003, 24)])
def test_values_and_gradients(dtype, bias, vocabulary, width, monkeypatch, nan_memory):
    set_rows(monkeypatch, 384)
    arguments = make_arguments((5, 300), width, vocabulary, bias=bias, dtype=dtype, device="cuda")
    arguments["weight"] /= width**0.5
    hold("chunked", arguments | {"scale": arguments["scale"] / 1500}, factor=2.0**14)


@half
def test_the_same_from_run_to_run(dtype, monkeypatch):
    set_rows(monkeypatch, 384)
    arguments = make_arguments((1000,), 256, 10_000, dtype=dtype, device="cuda")
    first, second = (results(linear_cross_entropy, arguments) for _ in range(2))
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("vocabulary", [10_000, 50_277])
def test_memory(vocabulary, monkeypatch):
    """At its peak there are a chunk of logits, the weight in halves, both gradients, and some numbers a row."""
    set_rows(monkeypatch, 512)
    rows, width = 16_384, 256
    arguments = make_arguments((rows,), width, vocabulary, bias=False, dtype=torch.bfloat16, device="cuda")
    leaves = [arguments[name].requires_grad_() for name in ("x", "weight")]
    for _ in range(2):  # cuBLAS takes its workspace in the first
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        found = torch.autograd.grad(linear_cross_entropy(**arguments) * 2.0, leaves)
        added = torch.cuda.max_memory_allocated() - before
        del found
    filled = vocabulary + -vocabulary % 16
    expected = 2 * 512 * filled + (2 + 4) * filled * width + 2 * rows * width
    assert added <= expected + 32 * rows + 5 * 2 * 2**20  # a large block is a multiple of 2 MiB


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_nothing_waits_for_the_device(dtype, monkeypatch):
    set_rows(monkeypatch, 16)
    arguments = make_arguments((70,), 32, 1003, dtype=dtype, device="cuda")
    results(linear_cross_entropy, arguments)
    with nothing_may_wait():
        results(linear_cross_entropy, arguments)


@half
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # of the leaf, used on three streams here
def test_cuda_graph_capture(dtype, monkeypatch):
    set_rows(monkeypatch, 128)
    arguments = make_arguments((300,), 64, 10_000, dtype=dtype, device="cuda")
    leaves = [arguments[name].requires_grad_() for name in ("x", "weight", "bias")]

    def step() -> list[Tensor]:
        loss = linear_cross_entropy(**arguments)
        return [loss, *torch.autograd.grad(loss, leaves, loss.detach())]

    assert_replays(step, leaves)
