"""Mamba-3's scan against its reference: values, every gradient, states, packed sequences, dtypes, smallest steps."""

import pytest
import torch
from torch import Tensor

from seqlab.models.mixers.trapezoid import Inputs, ScanState, reference, trapezoidal_scan, trapezoidal_update

BATCH, HEADS, CHANNELS, D_STATE = 2, 3, 5, 7
LENGTHS = pytest.mark.parametrize("length", [1, 2, 37, 131])


def drawn(length: int, dtype: torch.dtype = torch.float64) -> tuple[Inputs, ScanState]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    per_head = BATCH, length, HEADS
    step, decay, right = normal(*per_head).exp() / 10, -normal(*per_head).exp(), normal(*per_head).sigmoid()
    maps = normal(*per_head, D_STATE), normal(*per_head, D_STATE)
    inputs = Inputs(normal(*per_head, CHANNELS), step, decay, right, *maps, normal(HEADS))
    state = ScanState(
        normal(BATCH, HEADS, CHANNELS, D_STATE), normal(BATCH, HEADS, D_STATE), normal(BATCH, HEADS, CHANNELS)
    )
    return inputs, state


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
@pytest.mark.parametrize("goes_on", [False, True])
def test_values_states_and_gradients(length, goes_on):
    inputs, state = drawn(length)
    state = state if goes_on else None
    close(results(trapezoidal_scan, inputs, state), results(reference, inputs, state))


def test_pieces_and_steps_give_what_the_whole_gives():
    inputs, state = drawn(37)
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


class TestPackedSequences:
    LENGTH = 37
    SEQ_IDX = torch.tensor([[3] * 5 + [0] + [1] * 31, [2] * 37])

    def test_against_the_reference(self):
        inputs, state = drawn(self.LENGTH)
        settings = {"seq_idx": self.SEQ_IDX}
        close(results(trapezoidal_scan, inputs, state, **settings), results(reference, inputs, state, **settings))

    def test_are_as_each_alone(self):
        inputs, state = drawn(self.LENGTH)
        y, _ = trapezoidal_scan(inputs, state, seq_idx=self.SEQ_IDX)
        alone, _ = trapezoidal_scan(cut(inputs, 6, self.LENGTH))
        close([y[0, 6:]], [alone[0]])

    @pytest.mark.parametrize("name", ["x", "delta", "lam", "k", "q"])
    def test_what_is_not_finite_stays_in_its_sequence(self, name):
        inputs, _ = drawn(self.LENGTH)
        expected, _ = trapezoidal_scan(inputs, seq_idx=self.SEQ_IDX)
        getattr(inputs, name)[0, 4] = torch.nan
        y, _ = trapezoidal_scan(inputs, seq_idx=self.SEQ_IDX)
        close([y[0, 5:], y[1]], [expected[0, 5:], expected[1]])


def test_steps_of_all_sizes():
    """The input of ``ssd`` is divided by a step, which may be 0 beside one of 1."""
    inputs, state = drawn(37)
    inputs.delta[:, ::3], inputs.delta[:, 1::6] = 0, 1e-300
    inputs.A[:, 2::3] = -1e-4
    found, expected = (results(scan, inputs, state) for scan in (trapezoidal_scan, reference))
    close(found[:4], expected[:4])
    assert all(t.isfinite().all() for t in found)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_in_other_dtypes(dtype, tolerance):
    """x in the dtype, what decides the steps and the state in float32, as in a model; the result within rounding."""
    inputs, state = drawn(37, torch.float32)
    inputs.A[:, 2::3] = -1e-4  # divided by it, an input of 10 is past the largest float16
    inputs.x[:, 3] *= 10
    inputs = inputs._replace(x=inputs.x.to(dtype))
    state = state._replace(x=state.x.to(dtype).float())
    y, after = trapezoidal_scan(inputs, state)
    assert y.dtype == dtype
    assert {t.dtype for t in after} == {torch.float32}
    expected, _ = reference(inputs, state)
    close([y.double()], [expected], tolerance)
