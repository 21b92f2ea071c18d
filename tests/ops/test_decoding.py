"""A Mamba layer's step in three kernels, and a norm with its projection: against the layer's parts in float64."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from comparison import DEVICES, assert_all_close, assert_same_bits
from torch import Tensor, nn

from seqlab.benchmarks.timing import captured
from seqlab.models.mixers.mamba import Mamba, State
from seqlab.models.norms import RMSNorm
from seqlab.ops import decoding
from seqlab.ops.decoding import triton as fused

every_device = pytest.mark.parametrize("device", DEVICES)
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
NORMS = {
    "rms": lambda d_model: nn.RMSNorm(d_model, eps=1e-5),
    "our rms": lambda d_model: RMSNorm(d_model, eps=1e-5),
    "layer": nn.LayerNorm,
    "no bias": lambda d_model: nn.LayerNorm(d_model, bias=False),
}
SIZES = {  # batch, d_model, d_state, d_conv: one sequence, two, and tiles; widths that fill no tile
    "one": (1, 24, 16, 4),
    "two": (2, 20, 5, 3),
    "no convolution": (1, 20, 3, 1),
    "tile": (3, 24, 16, 4),
    "part of a tile": (17, 20, 5, 2),
    "tiles": (70, 16, 8, 4),
    "large tiles": (130, 20, 5, 3),
    "row in pieces": (3, 40, 3, 2),
    "x_proj in pieces": (3, 200, 70, 4),
}
# Each norm over a row whole and in pieces; one with a mean and a bias at every size.
NORMED = [(size, norm) for size in ("one", "two", "row in pieces") for norm in NORMS]
NORMED += [(size, "layer") for size in SIZES if (size, "layer") not in NORMED]


class Layer(NamedTuple):
    """A mixer with its norm, what enters it, and a head."""

    mixer: Mamba
    norm: nn.Module
    head: nn.Linear
    x: Tensor  # (B, D)
    state: State

    def to(self, device: str, dtype: torch.dtype) -> "Layer":
        modules = (copy.deepcopy(module).to(device, dtype) for module in self[:3])
        of_state = self.state.ssm.to(device, torch.promote_types(dtype, torch.float32), copy=True)
        return Layer(*modules, self.x.to(device, dtype), State(self.state.conv.to(device, dtype, copy=True), of_state))


def layer(size: tuple[int, int, int, int], norm: str = "rms") -> Layer:
    """One whose every parameter tells, rounded to bfloat16 so that all dtypes get the same numbers."""
    torch.manual_seed(0)
    batch, d_model, d_state, d_conv = size
    mixer, normal = Mamba(d_model, d_state=d_state, d_conv=d_conv), NORMS[norm](d_model)
    head = nn.Linear(d_model, 37)
    for parameter in (*normal.parameters(), mixer.D):
        nn.init.uniform_(parameter, 0.5, 1.5)
    state = State(*(torch.randn_like(part) for part in mixer.initial_state(batch)))
    return Layer(mixer, normal, head, 3 * torch.randn(batch, d_model), state).to("cpu", torch.bfloat16)


@torch.no_grad()
def by_parts(given: Layer) -> dict[str, Tensor]:
    y, state = given.mixer.step(given.norm(given.x), given.state)
    return {"x": given.x + y, "conv": state.conv, "ssm": state.ssm, "head": given.head(given.norm(given.x))}


@torch.no_grad()
def by_kernels(given: Layer) -> dict[str, Tensor]:
    norm, state = decoding.norm_of(given.norm), State(*(part.clone() for part in given.state))
    x = decoding.mamba_step(given.x, norm, given.mixer.block, *state)
    head = decoding.norm_linear(given.x, norm, given.head.weight, given.head.bias)
    return {"x": x, "conv": state.conv, "ssm": state.ssm, "head": head}


@every_device
@pytest.mark.parametrize(("size", "norm"), NORMED)
@pytest.mark.usefixtures("nan_memory")
def test_is_the_parts_in_float64(size, norm, device):
    given = layer(SIZES[size], norm)
    expected = by_parts(given.to("cpu", torch.float64))
    found = {name: tensor.cpu() for name, tensor in by_kernels(given.to(device, torch.float32)).items()}
    assert_all_close(found, expected, torch.float32)


@pytest.mark.parametrize(("size", "limit", "value"), [("tile", "MOST_SHARES", 0), ("one", "WIDEST_ROW", 16)])
@pytest.mark.usefixtures("nan_memory")
def test_results_are_the_same_beyond_a_limit(monkeypatch, size, limit, value):
    """Shares added once in place of by each program; rows too wide for a program."""
    given = layer(SIZES[size]).to("cpu", torch.float32)
    expected = by_kernels(given)
    monkeypatch.setattr(fused, limit, value)
    assert_all_close(by_kernels(given), expected, torch.float32)


@every_device
@pytest.mark.parametrize("columns", [1, 7, 2048, 2049, 20_001])
def test_likeliest(columns, device):
    """The first of equals, and NaN before all, as torch's argmax on a CPU."""
    torch.manual_seed(0)
    logits = torch.randint(9, (5, columns)).float()
    logits[1] = 0.0
    logits[2, columns // 2] = torch.nan
    logits[3] = -torch.inf
    assert torch.equal(fused.likeliest(logits.to(device)).cpu(), logits.argmax(dim=-1))
    assert torch.equal(decoding.likeliest(logits.to(device)).cpu(), logits.argmax(dim=-1))


def test_what_the_kernels_cannot_take_goes_by_parts():
    given = layer(SIZES["one"])
    assert given.mixer.step_in_residual(given.x, given.norm, given.state) is None  # on a CPU
    for norm in (nn.Identity(), nn.RMSNorm(24, elementwise_affine=False), nn.LayerNorm((1, 24)), nn.BatchNorm1d(24)):
        assert decoding.norm_of(norm) is None
    double = torch.empty(2, 4, dtype=torch.float64)
    assert not decoding.can_run(double)


class TestOnTheGPU:
    pytestmark = on_gpu

    @pytest.mark.parametrize(
        ("batch", "d_model", "dtype"),
        [
            *((batch, 768, torch.bfloat16) for batch in (1, 2, 3, 16, 17, 64, 100, 256)),
            *((batch, 203, torch.bfloat16) for batch in (1, 2, 3, 17, 64, 100, 256)),
            *((batch, 200, torch.float16) for batch in (2, 3, 64, 100, 256)),
        ],
        ids=str,
    )
    def test_rounds_no_more_than_the_parts(self, batch, d_model, dtype):
        """Of both, the distance from float64; thrice, since lanes of a program could get in one another's way.

        The roundings are as many and as large, but others: of a hundred numbers that alone is 15 % more or less.
        """
        given = layer((batch, d_model, 16, 4))
        exact = by_parts(given.to("cuda", torch.float64))
        parts = by_parts(given.to("cuda", dtype))
        runs = [by_kernels(given.to("cuda", dtype)) for _ in range(3)]
        for name, tensor in runs[0].items():
            error, usual = ((one.double() - exact[name]).norm() for one in (tensor, parts[name]))
            assert error <= 1.5 * usual + 1e-6 * exact[name].norm(), name
        for run in runs[1:]:
            assert_same_bits(run, runs[0])

    @pytest.mark.parametrize("batch", [1, 2, 3, 16, 64])
    def test_kernels_that_overlap_wait_for_one_another(self, batch, monkeypatch):
        """Twelve layers as a CUDA graph: as without overlaps, and the same bits each time."""
        layers = [layer((batch, 768, 16, 4)).to("cuda", torch.bfloat16) for _ in range(12)]
        states = [part for one in layers for part in one.state]
        before, kept = [part.clone() for part in states], []

        @torch.no_grad()
        def through() -> None:
            x = layers[0].x
            for one in layers:
                x = decoding.mamba_step(x, decoding.norm_of(one.norm), one.mixer.block, *one.state)
            kept[:] = [x]

        def outcome(run: Callable[[], None]) -> dict[str, Tensor]:
            for part, value in zip(states, before, strict=True):
                part.copy_(value)
            torch.cuda.synchronize()
            run()
            return {str(place): tensor.clone() for place, tensor in enumerate([*kept, *states])}

        replay = captured(through, torch.device("cuda"))
        first = outcome(replay)
        for _ in range(50):
            assert_same_bits(outcome(replay), first)
        monkeypatch.setattr(fused, "can_overlap", lambda device: False)
        assert_all_close(first, outcome(through), torch.bfloat16)

    def test_a_step_takes_them(self):
        """The layer's own step in a model in evaluation, and not in training, where dropout may be."""
        given = layer(SIZES["one"]).to("cuda", torch.bfloat16)
        found = given.mixer.step_in_residual(given.x, given.norm, given.state)
        assert found is not None and found[1].ssm is given.state.ssm
