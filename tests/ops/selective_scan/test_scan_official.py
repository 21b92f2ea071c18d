"""The selective scan as mamba_ssm calls it, held to a loop over positions and channels of the equations."""

import pytest
import torch
from comparison import assert_all_close, named_gradients, skip_unless_available, step_sizes, weighted_sum
from scan_cases import PACKAGE
from torch import Tensor

from seqlab.ops import selective_scan, selective_scan_fn

BATCH, CHANNELS, LENGTH, STATES = 2, 6, 13, 3
MAPS = {
    "every channel": (BATCH, STATES, LENGTH),
    "one group": (BATCH, 1, STATES, LENGTH),
    "three groups": (BATCH, 3, STATES, LENGTH),
    "a group each": (BATCH, CHANNELS, STATES, LENGTH),
    "constant": (CHANNELS, STATES),
}
CASES = [
    ("every channel", "every channel", torch.float32, "cpu"),
    ("every channel", "every channel", torch.bfloat16, "cpu"),
    ("every channel", "one group", torch.float64, "parallel"),
    ("three groups", "every channel", torch.float32, "cpu"),
    ("three groups", "three groups", torch.float64, "parallel"),
    ("three groups", "three groups", torch.float16, "cpu"),
    ("a group each", "a group each", torch.float64, "reference"),
    ("constant", "constant", torch.float32, "cpu"),
    ("constant", "every channel", torch.float64, "parallel"),
    ("three groups", "constant", torch.float64, "parallel"),
    ("three groups", "constant", torch.bfloat16, "cpu"),
]


def drawn(B: str, C: str, dtype: torch.dtype, options: bool, *, length: int = LENGTH) -> dict[str, Tensor]:
    torch.manual_seed(0)
    whole = BATCH, CHANNELS, length
    arguments = {"u": torch.randn(whole), "delta": step_sizes("ordinary", *whole)}
    shapes = {"B": MAPS[B], "C": MAPS[C]}
    maps = {name: torch.randn(*shape[:-1], length if len(shape) > 2 else STATES) for name, shape in shapes.items()}
    arguments = {name: tensor.to(dtype) for name, tensor in (arguments | maps).items()}
    wide = torch.promote_types(dtype, torch.float32)
    arguments["A"] = -torch.rand(CHANNELS, STATES, dtype=wide) - 0.5
    if options:
        arguments["D"], arguments["delta_bias"] = torch.randn(2, CHANNELS, dtype=wide).unbind()
        arguments["z"] = torch.randn(whole).to(dtype)
    return arguments


def by_the_equations(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, starts=(0,)
) -> tuple[Tensor, Tensor]:
    """h_t = exp(dt A) h_{t-1} + dt B u and y = C h + D u, gated by z: a channel and a position at a time."""
    (batch, channels, length), states = u.shape, A.shape[1]

    def at(map_: Tensor, b: int, d: int, t: int) -> Tensor:
        if map_.dim() == 2:
            return map_[d]
        return map_[b, :, t] if map_.dim() == 3 else map_[b, d * map_.shape[1] // channels, :, t]

    ys, lasts = [], []
    for b in range(batch):
        for d in range(channels):
            h = u.new_zeros(states)
            for t in range(length):
                dt = delta[b, d, t] + (0 if delta_bias is None else delta_bias[d])
                dt = torch.log1p(dt.exp()) if delta_softplus else dt
                h = torch.zeros_like(h) if t in starts else h
                h = (dt * A[d]).exp() * h + dt * at(B, b, d, t) * u[b, d, t]
                y = at(C, b, d, t) @ h + (0 if D is None else D[d] * u[b, d, t])
                ys.append(y if z is None else y * z[b, d, t] / (1 + (-z[b, d, t]).exp()))
            lasts.append(h)
    return torch.stack(ys).view(batch, channels, length), torch.stack(lasts).view(batch, channels, states)


def with_gradients(function, arguments: dict[str, Tensor], **settings) -> dict[str, Tensor]:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in arguments.items()}
    y, state = function(**leaves, **settings)
    gradients = torch.autograd.grad(weighted_sum((y, state)), list(leaves.values()))
    assert all(gradient.dtype == leaf.dtype for gradient, leaf in zip(gradients, leaves.values(), strict=True))
    return {"y": y, "state": state, **named_gradients(leaves, gradients)}


def hold(arguments: dict[str, Tensor], backend: str, *, options: bool, cuts: tuple[int, ...] = ()) -> None:
    dtype, length = arguments["u"].dtype, arguments["u"].shape[2]
    doubled = {name: tensor.double() for name, tensor in arguments.items()}
    expected = with_gradients(by_the_equations, doubled, delta_softplus=options, starts=(0, *cuts))
    packed = torch.tensor([0, *cuts, length], dtype=torch.int32) if cuts else None
    settings = {"delta_softplus": options, "return_last_state": True, "cu_seqlens": packed, "backend": backend}
    actual = with_gradients(selective_scan_fn, arguments, **settings)
    assert (actual["y"].dtype, actual["state"].dtype) == (dtype, torch.promote_types(dtype, torch.float32))
    assert actual["y"].is_contiguous()
    assert_all_close(actual, expected, dtype)


@pytest.mark.parametrize(("B", "C", "dtype", "backend"), CASES)
def test_equals_the_equations(B, C, dtype, backend):
    hold(drawn(B, C, dtype, options=True), backend, options=True, cuts=(4, 9))


def test_equals_the_equations_without_options_and_in_triton():
    hold(drawn("three groups", "three groups", torch.float32, options=False), "cpu", options=False)
    skip_unless_available(PACKAGE, "triton", "cpu", torch.float32)
    hold(drawn("three groups", "constant", torch.float32, options=False, length=2), "triton", options=False)


def test_one_group_is_the_scan_itself():
    """Positional as in mamba_ssm, and the same numbers as with channels last, to the bit."""
    given = drawn("every channel", "every channel", torch.float32, options=True)
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    y, state = selective_scan_fn(*map(given.get, names), True, True)
    last = {name: tensor.transpose(1, 2) if tensor.dim() == 3 else tensor for name, tensor in given.items()}
    expected, expected_state = selective_scan(**last, delta_softplus=True, return_final_state=True)
    assert torch.equal(y, expected.transpose(1, 2))
    assert torch.equal(state, expected_state)
    assert torch.equal(selective_scan_fn(**given, delta_softplus=True), y)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"u": (2, 13, 6)}, r"delta has shape \(2, 6, 13\), expected \(batch, d_inner, length\) = \(2, 13, 6\)"),
        ({"B": (2, 13, 3)}, r"B has shape \(2, 13, 3\), expected \(batch, d_state, length\) = \(2, 3, 13\)"),
        ({"B": (2, 4, 3, 13)}, r"B and C have 4 groups, which do not divide d_inner = 6"),
        ({"B": (2, 2, 3, 13), "C": (2, 3, 3, 13)}, r"C has shape .* = \(2, 2, 3, 13\)"),
        ({"C": (3,)}, r"C has shape \(3,\), expected \(d_inner, d_state\) or \(batch, d_state, length\) or"),
    ],
)
def test_refusals_say_the_shapes_of_this_layout(changed, message):
    given = drawn("every channel", "every channel", torch.float32, options=True)
    with pytest.raises(ValueError, match=f"^{message}"):
        selective_scan_fn(**given | {name: torch.zeros(shape) for name, shape in changed.items()})


def test_complex_parameters_are_refused():
    given = drawn("every channel", "every channel", torch.float32, options=False)
    with pytest.raises(ValueError, match=r"^A is torch.complex64, expected one of"):
        selective_scan_fn(**given | {"A": given["A"].to(torch.complex64)})
