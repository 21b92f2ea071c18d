"""Mamba-3's scan against its reference: values, every gradient, states, packed sequences, dtypes, smallest steps.

At rank 1, which is SISO, and at rank 3.
"""

import pytest
import torch
from torch import Tensor

from seqlab.models.mixers.trapezoid import Inputs, ScanState, reference, trapezoidal_scan, trapezoidal_update

BATCH, HEADS, CHANNELS, D_STATE = 2, 3, 5, 7
LENGTHS = pytest.mark.parametrize("length", [1, 2, 37, 131])
RANKS = pytest.mark.parametrize("rank", [1, 3])


def drawn(length: int, rank: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Inputs, ScanState]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    per_head = BATCH, length, HEADS
    step, decay, right = normal(*per_head).exp() / 10, -normal(*per_head).exp(), normal(*per_head).sigmoid()
    of_ranks = rank, HEADS
    maps = (normal(BATCH, length, *of_ranks, D_STATE) for _ in range(2))
    inputs = Inputs(normal(BATCH, length, *of_ranks, CHANNELS), step, decay, right, *maps, normal(HEADS))
    h, k, x = (HEADS, CHANNELS, D_STATE), (*of_ranks, D_STATE), (*of_ranks, CHANNELS)
    return inputs, ScanState(*(normal(BATCH, *shape) for shape in (h, k, x)))


def cut(inputs: Inputs, start: int, end: int) -> Inputs:
    return Inputs(*(t[:, start:end] for t in inputs[:-1]), inputs.D)


def results(scan, inputs: Inputs, state: ScanState | None, **settings) -> list[Tensor]:
    """y, the state after it, and the gradient of all of these along one direction by every tensor."""
    inputs = Inputs(*(t.clone().requires_grad_() for t in inputs))
    state = state and ScanState(*(t.clone().requires_grad_() for t in state))
    y, after = scan(inputs, state, **settings)
    outputs = [y, *after]
    loss = sum((t * torch.linspace(-1, 2, t.numel(), dtype=t.dtype).view_as(t)).sum() for t in outputs)
    return [t.detach() for t in outputs] + list(torch.autograd.grad(loss, [*inputs, *(state or ())]))


def close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-11) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * max(1.0, float(other.abs().max()))


@LENGTHS
@RANKS
@pytest.mark.parametrize("goes_on", [False, True])
def test_values_states_and_gradients(length, rank, goes_on):
    inputs, state = drawn(length, rank)
    state = state if goes_on else None
    close(results(trapezoidal_scan, inputs, state), results(reference, inputs, state))


@RANKS
def test_pieces_and_steps_give_what_the_whole_gives(rank):
    inputs, state = drawn(37, rank)
    whole, expected = reference(inputs, state)
    outputs = []
    for start, end in ((0, 1), (1, 20)):
        y, state = trapezoidal_scan(cut(inputs, start, end), state)
        outputs.append(y)
    for t in range(20, 30):
        y, state = trapezoidal_update(Inputs(*(part[:, t] for part in inputs[:-1]), inputs.D), state)
        outputs.append(y[:, None])
    y, state = trapezoidal_scan(cut(inputs, 30, 37), state)
    close([torch.cat([*outputs, y], dim=1), *state], [whole, *expected])


@RANKS
class TestPackedSequences:
    LENGTH = 37
    SEQ_IDX = torch.tensor([[3] * 5 + [0] + [1] * 31, [2] * 37])

    def test_against_the_reference(self, rank):
        inputs, state = drawn(self.LENGTH, rank)
        settings = {"seq_idx": self.SEQ_IDX}
        close(results(trapezoidal_scan, inputs, state, **settings), results(reference, inputs, state, **settings))

    def test_are_as_each_alone(self, rank):
        inputs, state = drawn(self.LENGTH, rank)
        y, _ = trapezoidal_scan(inputs, state, seq_idx=self.SEQ_IDX)
        alone, _ = trapezoidal_scan(cut(inputs, 6, self.LENGTH))
        close([y[0, 6:]], [alone[0]])

    @pytest.mark.parametrize("name", ["x", "delta", "lam", "k", "q"])
    def test_what_is_not_finite_stays_in_its_sequence(self, rank, name):
        inputs, _ = drawn(self.LENGTH, rank)
        expected, _ = trapezoidal_scan(inputs, seq_idx=self.SEQ_IDX)
        getattr(inputs, name)[0, 4] = torch.nan
        y, _ = trapezoidal_scan(inputs, seq_idx=self.SEQ_IDX)
        close([y[0, 5:], y[1]], [expected[0, 5:], expected[1]])


@RANKS
def test_steps_of_all_sizes(rank):
    """The input of ``ssd`` is divided by a step, which may be 0 beside one of 1."""
    inputs, state = drawn(37, rank)
    inputs.delta[:, ::3], inputs.delta[:, 1::6] = 0, 1e-300
    inputs.A[:, 2::3] = -1e-4
    found, expected = (results(scan, inputs, state) for scan in (trapezoidal_scan, reference))
    close(found[:4], expected[:4])
    assert all(t.isfinite().all() for t in found)


@RANKS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_in_other_dtypes(rank, dtype, tolerance):
    """x in the dtype, what decides the steps and the state in float32, as in a model; the result within rounding."""
    inputs, state = drawn(37, rank, torch.float32)
    inputs.A[:, 2::3] = -1e-4  # divided by it, an input of 10 is past the largest float16
    inputs.x[:, 3] *= 10
    inputs = inputs._replace(x=inputs.x.to(dtype))
    state = state._replace(x=state.x.to(dtype).float())
    y, after = trapezoidal_scan(inputs, state)
    assert y.dtype == dtype
    assert {t.dtype for t in after} == {torch.float32}
    expected, _ = reference(inputs, state)
    close([y.double()], [expected], tolerance)
