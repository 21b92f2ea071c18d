"""The inside of a Mamba block: against its parts called one after the other, in float64 and by the same kernels."""

from contextlib import AbstractContextManager, nullcontext
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from comparison import DEVICES, assert_all_close, assert_same_bits, skip_unless_available, weighted_sum
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.flop_counter import FlopCounterMode

from seqlab.models.linear import Linear
from seqlab.models.mixers.mamba import Mamba, State
from seqlab.models.norms import RMSNorm
from seqlab.ops import causal_conv1d, selective_scan
from seqlab.ops.decoding import Block
from seqlab.ops.mamba_inner import can_run, mamba_inner
from seqlab.ops.selective_scan import triton as scan
from seqlab.ops.selective_scan.interface import Inputs, Out

every_device = pytest.mark.parametrize("device", DEVICES)
kernel_test = pytest.mark.usefixtures("nan_memory", "short_chunks")
OPTIONS = ("conv_bias", "dt_bias", "D")
TRITON = ("triton", "triton")  # the backends of both parts


def make_arguments(
    batch: int,
    length: int,
    d_inner: int,
    *,
    d_state: int = 3,
    d_conv: int = 4,
    rank: int = 2,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    without: tuple[str, ...] = (),
) -> tuple[Tensor, Block]:
    """xz and the parameters, float32 unless everything is float64; all dtypes and devices get the same numbers."""
    skip_unless_available("seqlab.ops.selective_scan", "triton", device, torch.float32)
    torch.manual_seed(0)
    shapes = {
        "in_weight": (2 * d_inner, 1),
        "x_weight": (rank + 2 * d_state, d_inner),
        "dt_weight": (d_inner, rank),
        "dt_bias": (d_inner,),
        "out_weight": (d_inner // 2, d_inner),
        "conv_weight": (d_inner, d_conv),
        "conv_bias": (d_inner,),
        "A_log": (d_inner, d_state),
        "D": (d_inner,),
    }
    block = Block(
        *(None if name in without else torch.randn(shape) * shape[-1] ** -0.5 for name, shape in shapes.items())
    )
    xz = torch.randn(batch, length, 2 * d_inner).bfloat16()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return xz.to(device, dtype), Block(*(None if part is None else part.to(device, wide) for part in block))


def doubled(xz: Tensor, block: Block) -> tuple[Tensor, Block]:
    return xz.double(), Block(*(None if part is None else part.double() for part in block))


def parts(xz: Tensor, block: Block, conv: str = "reference", scanned: str = "reference") -> Tensor:
    """What the operation is, in operations with tests of their own."""
    x, z = xz.chunk(2, dim=2)
    u = causal_conv1d(x, block.conv_weight, block.conv_bias, activation="silu", backend=conv)
    d_state = block.A_log.shape[1]
    dt, B, C = F.linear(u, block.x_weight).split((block.dt_weight.shape[1], d_state, d_state), dim=2)
    delta, A = F.linear(dt, block.dt_weight), -block.A_log.exp()
    settings = {"delta_softplus": True, "backend": scanned}
    return F.linear(selective_scan(u, delta, A, B, C, block.D, z, block.dt_bias, **settings), block.out_weight)


def results(operation, xz: Tensor, block: Block, *settings) -> dict[str, Tensor]:
    """The output and the gradients of a random combination of it."""
    given = {"xz": xz, **{name: part for name, part in block._asdict().items() if part is not None}}
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}
    y = operation(leaves["xz"], Block(*(leaves.get(name) for name in Block._fields)), *settings)
    wanted = {name: leaf for name, leaf in leaves.items() if name != "in_weight"}
    gradients = torch.autograd.grad(weighted_sum((y,)), list(wanted.values()))
    for leaf, gradient in zip(wanted.values(), gradients, strict=True):
        assert (gradient.dtype, gradient.shape) == (leaf.dtype, leaf.shape)
    return dict(zip(("y", *wanted), (y.detach(), *gradients), strict=True))


def hold(xz: Tensor, block: Block, tolerance: float | None = None) -> None:
    actual = results(mamba_inner, xz, block)
    assert actual["y"].dtype == xz.dtype
    assert_all_close(actual, results(parts, *doubled(xz, block)), xz.dtype, tolerance)


def deterministic() -> AbstractContextManager:
    """As ``torch.use_deterministic_algorithms``, for our kernels alone: PyTorch's products would need a setting."""
    return mock.patch.object(torch, "are_deterministic_algorithms_enabled", lambda: True)


def kept_bytes(operation, xz: Tensor, block: Block, *settings) -> int:
    """Bytes that a forward pass keeps for the backward pass, besides the arguments; views of one memory count once."""
    leaves = xz.detach().requires_grad_(), Block(*(part.detach().requires_grad_() for part in block))
    given = {tensor.untyped_storage().data_ptr() for tensor in (leaves[0], *leaves[1])}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = operation(*leaves, *settings)
    assert y.requires_grad
    return sum(kept.values())


def hold_in_place(batch: int, length: int, width: int, d_state: int, dtype: torch.dtype, device: str) -> None:
    """Hold the scan's gradients and y in the memory of dy, delta, u and z to the bits of those in memory of their own.

    And y, of the backward pass, to that of the forward pass.
    """
    skip_unless_available("seqlab.ops.selective_scan", "triton", device, torch.float32)
    torch.manual_seed(0)
    dy, z, u, delta = (
        t for _ in range(2) for t in torch.randn(batch, length, 2 * width).to(device, dtype).chunk(2, dim=2)
    )
    B, C = torch.randn(batch, length, 2 * d_state).to(device, dtype).chunk(2, dim=2)
    A, (D, bias) = -torch.rand(width, d_state).to(device) - 0.1, torch.randn(2, width).to(device)
    inputs = Inputs(u, delta, A, B, C, D, z, bias, None, True)
    y, _, saved = scan.forward(inputs, None, True)
    again = torch.empty_like(y)
    expected = scan.backward(inputs, saved, dy, None, True, Out(again))
    found = scan.backward(inputs, saved, dy, None, True, Out(delta, u, dy, z))
    assert torch.equal(delta, again)
    assert_same_bits(found._asdict(), expected._asdict())
    assert [part.data_ptr() for part in (found.u, found.delta, found.z)] == [part.data_ptr() for part in (u, dy, z)]
    assert_all_close({"y": again}, {"y": y}, dtype)
    assert dtype == torch.float32 or (again == y).double().mean() > 0.999


@kernel_test
@every_device
class TestAgainstTheParts:
    @pytest.mark.parametrize("length", [1, 2, 5])
    def test_values_and_gradients(self, length, device):
        hold(*make_arguments(2, length, 5, device=device))

    @pytest.mark.parametrize(
        "sizes", [{"d_conv": 1}, {"d_state": 1, "rank": 1}, {"d_state": 5, "rank": 4, "d_conv": 2}], ids=str
    )
    def test_other_sizes(self, sizes, device):
        hold(*make_arguments(1, 3, 4, **sizes, device=device))

    @pytest.mark.parametrize("without", [*((name,) for name in OPTIONS), OPTIONS], ids=str)
    def test_without_what_is_optional(self, without, device):
        hold(*make_arguments(2, 3, 5, device=device, without=without))

    def test_the_bits_of_the_same_kernels(self, device):
        """The output, and the gradients that no product rounded otherwise reaches; y is computed twice."""
        arguments = make_arguments(2, 5, 5, device=device)
        with deterministic():
            actual, expected = results(mamba_inner, *arguments), results(parts, *arguments, *TRITON)
        for found in (actual, expected):
            found["z"] = found.pop("xz")[..., 5:]
        exact = ("y", "z", "dt_bias", "A_log", "D") + (("out_weight",) if device == "cpu" else ())
        assert_same_bits({name: actual[name] for name in exact}, {name: expected[name] for name in exact})
        assert_all_close(actual, expected, torch.float32)

    def test_other_layouts(self, device):
        xz, block = make_arguments(2, 4, 6, device=device)
        for view in (
            torch.cat((xz, xz), 2)[..., 1:13],
            xz.transpose(0, 1),
            xz.mT.contiguous().mT,
            xz[:1].expand(2, -1, -1),
        ):
            hold(view, block)

    def test_a_gradient_that_is_the_same_for_all(self, device):
        xz, block = make_arguments(2, 3, 5, device=device)
        found = []
        for operation, (first, others) in ((mamba_inner, (xz, block)), (parts, doubled(xz, block))):
            leaf = first.clone().requires_grad_()
            found.append({"xz": torch.autograd.grad(operation(leaf, others).sum(), leaf)[0]})
        assert_all_close(*found, torch.float32)

    @pytest.mark.parametrize(("width", "d_state"), [(8, 1), (5, 5), (8, 20)])
    def test_the_scan_writes_over_what_it_has_read(self, width, d_state, device):
        """At width 8 it reads what is given, at width 5 padded copies; positions go by one, by two and by four."""
        hold_in_place(2, 7, width, d_state, torch.float32, device)

    def test_the_backward_pass_again(self, device):
        xz, block = make_arguments(1, 3, 5, device=device)
        leaves = [xz.requires_grad_(), block.out_weight.requires_grad_()]
        with deterministic():
            out = mamba_inner(xz, block)
            first, second = (torch.autograd.grad(out.sum(), leaves, retain_graph=True) for _ in range(2))
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))

    def test_some_gradients_alone(self, device):
        xz, block = make_arguments(1, 3, 5, device=device)
        expected = results(mamba_inner, xz, block)
        weight = block.x_weight.clone().requires_grad_()
        (found,) = torch.autograd.grad(weighted_sum((mamba_inner(xz, block._replace(x_weight=weight)),)), weight)
        assert torch.equal(found, expected["x_weight"])


@every_device
class TestCosts:
    def test_keeps_one_thin_product_and_the_states(self, device):
        """Of what is as long as the sequence and not given; the parts keep u, delta and y too, and A in two forms."""
        xz, block = make_arguments(1, 8, 64, d_state=4, rank=4, device=device)
        states = 4 * (8 * 2 * 4 + 64 * 4)  # B and C, and a state for each 64 positions
        assert kept_bytes(mamba_inner, xz, block) == 4 * (8 * 12 + 64 * 4) + states
        assert kept_bytes(parts, xz, block, *TRITON) == 4 * (8 * 12 + 2 * 64 * 4 + 3 * 8 * 64) + states

    def test_flops_are_those_of_the_parts_and_one_product(self, device):
        xz, block = make_arguments(2, 3, 5, device=device)
        counts = []
        for operation in (mamba_inner, parts):
            with FlopCounterMode(display=False) as counter:
                results(operation, xz, block, *(TRITON if operation is parts else ()))
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] + 2 * (2 * 3) * 2 * 5
        assert counts[1] == 3 * 2 * (2 * 3) * 5 * (8 + 2 + 2)


@pytest.mark.parametrize("asked", [False, True])
def test_the_scan_hears_of_the_setting_of_pytorch(asked, monkeypatch):
    """As it was in the forward pass."""
    xz, block = make_arguments(1, 2, 3)
    heard, backward = [], scan.backward
    monkeypatch.setattr(scan, "backward", lambda *given: heard.append(given[4]) or backward(*given))
    with deterministic() if asked else nullcontext():
        out = mamba_inner(xz.requires_grad_(), block)
    out.sum().backward()
    assert heard == [asked]


@every_device
class TestDerivatives:
    def test_second_derivatives_are_refused(self, device):
        xz, block = make_arguments(1, 2, 3, device=device)
        xz.requires_grad_()
        (gradient,) = torch.autograd.grad(mamba_inner(xz, block).sum(), xz, create_graph=True)
        with pytest.raises(NotImplementedError, match="selective_scan backend='triton' has no second derivative"):
            gradient.sum().backward()

    def test_other_derivatives_are_refused(self, device):
        xz, block = make_arguments(1, 2, 3, device=device)
        with pytest.raises(NotImplementedError, match=r"does not go through torch\.func"):
            torch.func.grad(lambda x: mamba_inner(x, block).sum())(xz)
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
            mamba_inner(forward_ad.make_dual(xz, xz), block)


class Normed(Mamba):
    """As Jamba's, with one of the parts of its own."""

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        delta, B, C = super()._select(u)
        return delta, F.rms_norm(B, B.shape[-1:]), C


def replaced(layer: Mamba, name: str, part: nn.Module) -> Mamba:
    setattr(layer, name, part)
    return layer


def watched(layer: Mamba) -> Mamba:
    layer.out_proj.register_forward_hook(lambda part, inputs, output: 2 * output)
    return layer


CHANGES = {
    "a subclass": lambda _: Normed(8, d_state=3),
    "a bias": lambda layer: replaced(layer, "out_proj", Linear(16, 8)),
    "an adapter": lambda layer: replaced(layer, "out_proj", nn.Sequential(layer.out_proj, nn.Linear(8, 8))),
    "weights of another form": lambda layer: replaced(layer, "x_proj", weight_norm(layer.x_proj)),
    "a hook": watched,
}


class TestWhereItRuns:
    def test_not_on_a_cpu(self):
        xz, block = make_arguments(1, 2, 3)
        assert not can_run(xz.requires_grad_(), block)
        assert not can_run(xz.detach().to("meta").requires_grad_(), block)

    @pytest.mark.parametrize("carried", [False, True])
    def test_a_layer_by_the_operation_is_the_layer_by_parts(self, carried, monkeypatch):
        """From zeros, or from a state, which another follows."""
        skip_unless_available("seqlab.ops.selective_scan", "triton", "cpu", torch.float32)
        torch.manual_seed(0)
        layer, x = Mamba(6, d_state=3), torch.randn(2, 5, 6)
        found = []
        for operation in (False, True):
            monkeypatch.setattr("seqlab.models.mixers.mamba.can_run", lambda *_, answer=operation: answer)
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
        layer = CHANGES[change](Mamba(8, d_state=3))
        expected = layer(torch.ones(1, 2, 8))
        monkeypatch.setattr("seqlab.models.mixers.mamba.can_run", lambda *_: True)
        monkeypatch.setattr("seqlab.models.mixers.mamba.mamba_inner", None)
        assert torch.equal(layer(torch.ones(1, 2, 8)), expected)
        monkeypatch.setattr("seqlab.ops.decoding.can_run", lambda *_: True)
        assert layer.step_in_residual(torch.ones(1, 8), RMSNorm(8, eps=1e-5), layer.initial_state(1)) is None

    def test_a_layer_on_a_cpu_calls_the_parts(self, monkeypatch):
        monkeypatch.setattr("seqlab.models.mixers.mamba.mamba_inner", None)
        Mamba(8, scan_backend="triton")(torch.randn(1, 2, 8)).sum().backward()
