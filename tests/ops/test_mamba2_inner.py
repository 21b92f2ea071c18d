"""The inside of a Mamba-2 block: against its parts called one after the other, in float64 and by the same kernels."""

import pytest
import torch
import torch.nn.functional as F
from comparison import (
    DEVICES,
    HALF,
    assert_all_close,
    assert_replays,
    assert_same_bits,
    skip_unless_available,
    weighted_sum,
)
from torch import Tensor, nn

from seqlab.models.linear import Linear
from seqlab.models.mixers import Mamba2
from seqlab.models.mixers.mamba2 import GatedRMSNorm, State
from seqlab.ops import causal_conv1d, gated_rms_norm, ssd
from seqlab.ops.mamba2_inner import Block, can_run, mamba2_inner

EPS = 1e-5
OPTIONS = ("conv_bias", "dt_bias", "D")
every_device = pytest.mark.parametrize("device", DEVICES)
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def make_arguments(
    batch: int = 2,
    length: int = 5,
    n_heads: int = 2,
    d_head: int = 3,
    n_groups: int = 1,
    d_state: int = 4,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    without: tuple[str, ...] = (),
) -> tuple[Tensor, Block]:
    """zxBCdt and the parameters, in float32; all dtypes and devices get the same numbers."""
    skip_unless_available("seqlab.ops.ssd", "triton", device, torch.float32)
    torch.manual_seed(0)
    d_inner, channels = n_heads * d_head, 2 * n_groups * d_state
    shapes = {
        "conv_weight": (d_inner + channels, 4),
        "conv_bias": (d_inner + channels,),
        "dt_bias": (n_heads,),
        "A_log": (n_heads,),
        "D": (n_heads,),
        "norm_weight": (d_inner,),
        "out_weight": (d_inner // 2, d_inner),
    }
    drawn = {name: 0.5 * torch.randn(shape) for name, shape in shapes.items()}
    block = Block(**{name: None if name in without else tensor.to(device) for name, tensor in drawn.items()})
    return torch.randn(batch, length, 2 * d_inner + channels + n_heads).bfloat16().to(device, dtype), block


def parts(zxBCdt: Tensor, block: Block, n_groups: int, eps: float, backend: str = "triton") -> Tensor:
    """What the operation is, in operations with tests of their own."""
    (d_inner,), (n_heads,), mixed = block.norm_weight.shape, block.A_log.shape, block.conv_weight.shape[0]
    z, xBC, dt = zxBCdt.split((d_inner, mixed, n_heads), dim=2)
    xBC = causal_conv1d(xBC, block.conv_weight, block.conv_bias, activation="silu", backend=backend)
    x, B, C = xBC.tensor_split((d_inner, (d_inner + mixed) // 2), dim=2)
    x, B, C = x.unflatten(2, (n_heads, -1)), B.unflatten(2, (n_groups, -1)), C.unflatten(2, (n_groups, -1))
    A = -block.A_log.exp()
    y = ssd(x, dt, A, B, C, block.D, block.dt_bias, dt_softplus=True, backend=backend).flatten(2)
    return F.linear(gated_rms_norm(y, z, block.norm_weight, eps, n_groups, backend=backend), block.out_weight)


def reference(zxBCdt: Tensor, block: Block, n_groups: int, eps: float) -> Tensor:
    return parts(zxBCdt, block, n_groups, eps, "reference")


def results(operation, zxBCdt: Tensor, block: Block, n_groups: int = 1) -> dict[str, Tensor]:
    """The output and the gradients of a random combination of it."""
    given = {"zxBCdt": zxBCdt, **{name: part for name, part in block._asdict().items() if part is not None}}
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}
    y = operation(leaves["zxBCdt"], Block(*(leaves.get(name) for name in Block._fields)), n_groups, EPS)
    gradients = torch.autograd.grad(weighted_sum((y,)), list(leaves.values()))
    for leaf, gradient in zip(leaves.values(), gradients, strict=True):
        assert (gradient.dtype, gradient.shape) == (leaf.dtype, leaf.shape)
    return dict(zip(("y", *leaves), (y.detach(), *gradients), strict=True))


def doubled(zxBCdt: Tensor, block: Block) -> tuple[Tensor, Block]:
    return zxBCdt.double(), Block(*(None if part is None else part.double() for part in block))


@every_device
class TestAgainstTheParts:
    @pytest.mark.parametrize(
        ("sizes", "without"),
        [({"length": 70, "batch": 1}, ()), ({"n_heads": 4, "n_groups": 2}, OPTIONS)],
        ids=str,
    )
    def test_values_and_gradients(self, sizes, without, device, nan_memory):
        arguments = make_arguments(**sizes, without=without, device=device)
        groups = sizes.get("n_groups", 1)
        expected = results(reference, *doubled(*arguments), groups)
        assert_all_close(results(mamba2_inner, *arguments, groups), expected, torch.float32)

    def test_the_bits_of_the_same_kernels(self, device):
        arguments = make_arguments(device=device)
        actual, expected = (results(operation, *arguments) for operation in (mamba2_inner, parts))
        exact = actual.keys() if device == "cpu" else ("y",)  # a GPU's products may be rounded otherwise
        assert_same_bits({name: actual[name] for name in exact}, {name: expected[name] for name in exact})

    def test_keeps_its_arguments_and_a_number_a_row(self, device):
        zxBCdt, block = make_arguments(n_heads=4, n_groups=2, device=device)
        leaves = zxBCdt.requires_grad_(), Block(*(part.requires_grad_() for part in block))
        given = {tensor.untyped_storage().data_ptr() for tensor in (leaves[0], *leaves[1])}
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            mamba2_inner(*leaves, 2, EPS)
        others = [tuple(t.shape) for t in kept if t.untyped_storage().data_ptr() not in given]
        assert others == [(4,), (2 * 5 * 2,)]  # A and the norm's scale


class Doubled(Mamba2):
    """As another model's, with one of the parts of its own."""

    def _leave(self, y: Tensor, z: Tensor) -> Tensor:
        return 2 * super()._leave(y, z)


def replaced(layer: Mamba2, name: str, part: nn.Module) -> Mamba2:
    setattr(layer, name, part)
    return layer


def watched(layer: Mamba2, name: str) -> Mamba2:
    getattr(layer, name).register_forward_hook(lambda part, inputs, output: 2 * output)
    return layer


class OtherNorm(GatedRMSNorm):
    """The norm before the gate."""

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:]) * F.silu(z)


CHANGES = {
    "a subclass": lambda _: Doubled(8, n_heads=2, d_state=3),
    "decays of either sign": lambda _: Mamba2(8, n_heads=2, d_state=3, negative_eigenvalues=True),
    "a bias": lambda layer: replaced(layer, "out_proj", Linear(16, 8)),
    "another norm": lambda layer: replaced(layer, "norm", OtherNorm(16, 1, EPS)),
    "a hook": lambda layer: watched(layer, "out_proj"),
    "a hook of the norm": lambda layer: watched(layer, "norm"),
}


class TestWhereItRuns:
    def test_not_on_a_cpu(self):
        zxBCdt, block = make_arguments()
        assert not can_run(zxBCdt.requires_grad_(), block, 1)
        assert not can_run(zxBCdt.detach().to("meta").requires_grad_(), block, 1)

    @pytest.mark.parametrize("carried", [False, True])
    def test_a_layer_by_the_operation_is_the_layer_by_parts(self, carried, monkeypatch):
        """From zeros, or from a state, which another follows."""
        skip_unless_available("seqlab.ops.ssd", "triton", "cpu", torch.float32)
        torch.manual_seed(0)
        layer, x = Mamba2(6, n_heads=4, n_groups=2, d_state=3), torch.randn(2, 5, 6)
        nn.init.uniform_(layer.norm.weight, 0.5, 1.5)
        found = []
        for operation in (False, True):
            monkeypatch.setattr("seqlab.models.mixers.mamba2.can_run", lambda *_, answer=operation: answer)
            torch.manual_seed(1)
            state = State(*map(torch.randn_like, layer.initial_state(2)))
            y, after = layer.prefill(x, state) if carried else (layer(x), ())
            gradients = torch.autograd.grad(weighted_sum((y,)), list(layer.parameters()))
            names = [name for name, _ in layer.named_parameters()]
            states = dict(zip(("conv", "ssm"), (part.detach() for part in after), strict=False))
            found.append({"y": y.detach(), **states, **dict(zip(names, gradients, strict=True))})
        assert_all_close(found[1], found[0], torch.float32)

    @pytest.mark.parametrize("change", CHANGES)
    def test_a_layer_that_is_no_longer_the_block_calls_its_parts(self, change, monkeypatch):
        layer = CHANGES[change](Mamba2(8, n_heads=2, d_state=3))
        expected = layer(torch.ones(1, 2, 8))
        monkeypatch.setattr("seqlab.models.mixers.mamba2.can_run", lambda *_: True)
        monkeypatch.setattr("seqlab.models.mixers.mamba2.mamba2_inner", None)
        assert torch.equal(layer(torch.ones(1, 2, 8)), expected)


class TestOnAGPU:
    """At a model's sizes."""

    pytestmark = on_gpu
    sizes = pytest.mark.parametrize(
        "sizes", [(2, 1000, 12, 128, 1, 64), (3, 129, 6, 20, 3, 16), (8, 256, 4, 64, 1, 64)], ids=str
    )

    @sizes
    @pytest.mark.parametrize("dtype", HALF, ids=str)
    def test_rounds_no_more_than_the_parts(self, sizes, dtype, nan_memory):
        """The output is theirs to the bit; of all gradients the distance from float64."""
        arguments, groups = make_arguments(*sizes, dtype=dtype, device="cuda"), sizes[4]

        def by_parts(*given) -> Tensor:
            with torch.autocast("cuda", dtype):
                return parts(*given)

        exact = results(lambda *given: parts(*given, "reference"), *doubled(*arguments), groups)
        found, usual = (results(operation, *arguments, groups) for operation in (mamba2_inner, by_parts))
        assert torch.equal(found["y"], usual["y"])
        for name, tensor in found.items():
            error, others = ((one.double() - exact[name]).norm() for one in (tensor, usual[name]))
            assert error <= 1.2 * others + 1e-6 * exact[name].norm(), name
        assert_same_bits(results(mamba2_inner, *arguments, groups), found)

    def test_a_layer_keeps_three_tensors_fewer(self, monkeypatch):
        """Of E numbers a position, under autocast: what the convolution, the scan and the norm give."""
        layer, x = Mamba2(768, n_heads=12).cuda(), torch.randn(8, 2048, 768, device="cuda")
        kept = []
        for choose in (can_run, lambda *_: False):
            monkeypatch.setattr("seqlab.models.mixers.mamba2.can_run", choose)
            for _ in range(2):  # the first may load what stays
                before = torch.cuda.memory_allocated()
                with torch.autocast("cuda", torch.bfloat16):
                    y = layer(x)
                kept.append(torch.cuda.memory_allocated() - before)
                del y
        assert kept[3] - kept[1] > 2.9 * (2 * 8 * 2048 * 1536)

    @pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # of the leaves, used on three streams here
    def test_cuda_graph_capture(self):
        zxBCdt, block = make_arguments(2, 300, 4, 64, 1, 64, dtype=torch.bfloat16, device="cuda")
        leaves = [tensor.requires_grad_() for tensor in (zxBCdt, *block)]

        def step() -> list[Tensor]:
            out = mamba2_inner(leaves[0], Block(*leaves[1:]), 1, EPS)
            return [out, *torch.autograd.grad(out, leaves, out.detach())]

        assert_replays(step, leaves)

    def test_where_the_kernels_are_the_parts(self):
        zxBCdt, block = make_arguments(device="cuda")
        zxBCdt.requires_grad_()
        assert can_run(zxBCdt, block, 1) and can_run(zxBCdt, block, 1, "triton")
        assert not can_run(zxBCdt, block, 1, "parallel")
        assert not can_run(*doubled(zxBCdt, block), 1)
        assert not can_run(zxBCdt.bfloat16(), block, 1)
        with torch.autocast("cuda", torch.bfloat16):
            assert can_run(zxBCdt.bfloat16(), block, 1) and not can_run(zxBCdt, block, 1)
        with torch.no_grad():
            assert not can_run(zxBCdt, block, 1)
        with pytest.raises(ValueError, match="out_weight has shape"):
            can_run(zxBCdt, block._replace(out_weight=block.conv_weight), 1)
        with pytest.raises(ValueError, match="2 heads in n_groups=3 do not divide 6 and 8 channels"):
            can_run(zxBCdt, block, 3)
