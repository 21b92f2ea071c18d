"""The inside of a Mamba-3 block: a layer by the operation against the layer by its parts, in float64; its angles."""

import copy
import math

import pytest
import torch
from comparison import (
    HALF,
    assert_all_close,
    assert_replays,
    assert_same_bits,
    skip_unless_available,
    weighted_sum,
)
from torch import Tensor, nn

from seqlab.models.linear import Linear
from seqlab.models.mixers import Mamba3
from seqlab.ops.mamba3_inner import can_run, mamba3_inner

MIXER = "seqlab.models.mixers.mamba3"
KERNELS = "seqlab.ops.mamba3_inner.triton"
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def drawn(d_model: int, n_heads: int, d_state: int, device: str = "cpu", **settings) -> Mamba3:
    """A layer whose every parameter matters, in float32.

    Projections stay as they begin: ten times their size, outputs and gradients would leave float16's range.
    """
    skip_unless_available("seqlab.ops.ssd", "triton", device, torch.float32)
    torch.manual_seed(0)
    layer = Mamba3(d_model, n_heads=n_heads, d_state=d_state, dt_min=0.1, dt_max=0.5, **settings)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name in ("norm_weight", "map_bias", "D"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return layer.to(device)


def inputs(layer: Mamba3, batch: int, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(batch, length, layer.in_proj.in_features, generator=torch.Generator().manual_seed(1))
    return x.bfloat16().to(layer.D.device, dtype)


def doubled(layer: Mamba3) -> Mamba3:
    return copy.deepcopy(layer).double()


def results(layer: Mamba3, x: Tensor) -> dict[str, Tensor]:
    """The output and the gradients of a random combination of it."""
    leaves = {"x": x.detach().requires_grad_(), **dict(layer.named_parameters())}
    y = layer(leaves["x"])
    gradients = torch.autograd.grad(weighted_sum((y,)), list(leaves.values()))
    return dict(zip(("y", *leaves), (y.detach(), *gradients), strict=True))


@pytest.mark.parametrize(
    ("sizes", "length", "recompute", "dtype", "settings"),
    [
        ((6, 2, 10), 65, True, torch.float32, {"n_groups": 2}),  # a second chunk, which is a segment of its own
        # three blocks of channels, the last of few pairs
        ((3, 1, 71), 3, False, torch.float32, {"rope_fraction": 1.0, "act": "softplus"}),
        ((3, 1, 16), 3, True, torch.float16, {}),
    ],
    ids=str,
)
def test_a_layer_by_the_operation_is_the_layer_by_parts(
    sizes, length, recompute, dtype, settings, monkeypatch, nan_memory
):
    monkeypatch.setattr(f"{KERNELS}.PROGRAMS", 1000)
    monkeypatch.setattr(f"{KERNELS}.LEAST_SEGMENT", 1)
    layer = drawn(*sizes, recompute=recompute, **settings)
    x = inputs(layer, 1, length, dtype)
    monkeypatch.setattr(f"{MIXER}.can_run", lambda *_: False)
    expected = results(doubled(layer), x.double())
    monkeypatch.setattr(f"{MIXER}.can_run", lambda *_: True)
    with torch.autocast("cpu", dtype, enabled=dtype in HALF):
        assert_all_close(results(layer, x), expected, dtype)


def test_keeps_its_arguments_alone():
    layer = drawn(6, 1, 4, recompute=True)
    projected = layer.in_proj(inputs(layer, 1, 1)).detach().requires_grad_()
    given = {tensor.data_ptr() for tensor in (projected, *layer.block)}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        mamba3_inner(projected, layer.block, layer.settings)
    assert set(kept) == given


def test_angles_are_those_of_exact_sums():
    """Of steps of all sizes: sums of hundreds of turns in float32 would be 1e-4 off."""
    skip_unless_available("seqlab.ops.ssd", "triton", "cpu", torch.float32)
    from angles_kernel import angles_kernel

    torch.manual_seed(0)
    delta, angle = 10 ** (5 * torch.rand(128) - 3), torch.randn(128, 16) * 10 ** (4 * torch.rand(128, 16) - 3)
    found = torch.full((3, 128, 16), math.nan)
    angles_kernel[(1,)](delta, angle, found, 128, 16)
    torch.testing.assert_close(found[0].double(), angle.double().tanh(), rtol=3e-7, atol=0)
    turned = delta[:, None] * found[0]  # half turns, as float32 has them: what is tested is the sum
    theta = (math.pi * turned.double()).cumsum(dim=0)
    torch.testing.assert_close(found[1:].double(), torch.stack((theta.cos(), theta.sin())), rtol=0, atol=1e-6)


class Doubled(Mamba3):
    """As another model's, with one of the parts of its own."""

    def _leave(self, y: Tensor, z: Tensor) -> Tensor:
        return 2 * super()._leave(y, z)


def replaced(layer: Mamba3) -> Mamba3:
    layer.out_proj = Linear(16, 8)
    return layer


def watched(layer: Mamba3) -> Mamba3:
    layer.in_proj.register_forward_hook(lambda part, inputs, output: 2 * output)
    return layer


CHANGES = {
    "a subclass": lambda _: Doubled(8, n_heads=2, d_state=4),
    "several ranks": lambda _: Mamba3(8, n_heads=2, d_state=4, mimo_rank=2),
    "a bias": replaced,
    "a hook": watched,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_that_is_no_longer_the_block_calls_its_parts(change, monkeypatch):
    layer = CHANGES[change](Mamba3(8, n_heads=2, d_state=4))
    expected = layer(torch.ones(1, 2, 8))
    monkeypatch.setattr(f"{MIXER}.can_run", lambda *_: True)
    monkeypatch.setattr(f"{MIXER}.mamba3_inner", None)
    assert torch.equal(layer(torch.ones(1, 2, 8)), expected)


def test_not_on_a_cpu():
    layer = Mamba3(8, n_heads=2, d_state=4)
    assert not can_run(torch.zeros(1, 2, 47), layer.block, layer.settings)
    assert not can_run(torch.zeros(1, 2, 47, device="meta"), layer.block, layer.settings)


class TestOnAGPU:
    """At a model's sizes: (d_model, heads, states), batch and length."""

    pytestmark = on_gpu
    sizes = pytest.mark.parametrize(
        ("sizes", "batch", "length", "settings"),
        [
            ((192, 6, 128), 2, 1000, {}),
            ((96, 4, 64), 3, 65, {"n_groups": 2, "rope_fraction": 1.0, "act": "softplus"}),
            ((30, 5, 21), 2, 129, {}),
            ((24, 2, 71), 1, 65, {}),  # three blocks of channels, in one tile
            ((16, 2, 16), 2, 1, {}),
        ],
        ids=str,
    )

    @sizes
    @pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
    def test_rounds_no_more_than_the_parts(self, sizes, batch, length, settings, dtype, monkeypatch, nan_memory):
        """Distances from float64; equal bits from run to run."""
        layer = drawn(*sizes, device="cuda", **settings)
        x = inputs(layer, batch, length, dtype)
        monkeypatch.setattr(f"{MIXER}.can_run", lambda *_: False)
        exact = results(doubled(layer), x.double())
        with torch.autocast("cuda", dtype, enabled=dtype in HALF):
            usual = results(layer, x)
            monkeypatch.setattr(f"{MIXER}.can_run", can_run)
            found, again = results(layer, x), results(layer, x)
            layer.recompute = True
            recomputed = results(layer, x)
        assert all(tensor.isfinite().all() for tensor in usual.values()), "out of range"  # a NaN equals nothing
        assert_same_bits(found, again)
        least = 1e-2 if dtype in HALF else 5e-6
        for name in found:
            *errors, others = ((one[name].double() - exact[name]).norm() for one in (found, recomputed, usual))
            assert max(errors) <= 1.5 * max(others, least * exact[name].norm()), name

    def test_a_layer_keeps_its_projection_alone(self):
        layer = Mamba3(768, n_heads=24, d_state=128, recompute=True).cuda()
        x = torch.randn(8, 2048, 768, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            layer(x)  # loads what stays
            before = torch.cuda.memory_allocated()
            y = layer(x)
        width = layer.in_proj.out_features + 768  # and the output
        assert torch.cuda.memory_allocated() - before < 2 * 8 * 2048 * (width + 768 + 64) + y.numel()

    @pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # of the leaves, used on three streams here
    def test_cuda_graph_capture(self):
        layer = drawn(64, 2, 64, device="cuda").bfloat16()
        x = inputs(layer, 2, 300, torch.bfloat16).requires_grad_()
        leaves = [x, *layer.parameters()]

        def step() -> list[Tensor]:
            out = layer(x)
            return [out, *torch.autograd.grad(out, leaves, out.detach())]

        assert_replays(step, leaves)

    def test_where_it_runs(self):
        layer = Mamba3(8, n_heads=2, d_state=4).cuda()
        projected = torch.zeros(1, 2, 47, device="cuda")
        rest = layer.block, layer.settings
        assert can_run(projected, *rest) and can_run(projected, *rest, "triton")
        assert not can_run(projected, *rest, "parallel")
        assert not can_run(projected.bfloat16(), *rest)
        with torch.autocast("cuda", torch.bfloat16):
            assert can_run(projected.bfloat16(), *rest) and not can_run(projected, *rest)
        with torch.autocast("cuda", torch.float16):
            assert can_run(projected.half(), *rest)
        assert not can_run(projected, nn.Module.double(Mamba3(8, n_heads=2, d_state=4).cuda()).block, layer.settings)
        with pytest.raises(ValueError, match="projected has shape"):
            can_run(projected[..., 1:], *rest)
        with pytest.raises(ValueError, match="2 heads in n_groups=3 do not divide 16 channels"):
            can_run(torch.zeros(1, 2, 63, device="cuda"), layer.block, layer.settings._replace(n_groups=3))
