"""The selective scan's reference against closed forms, and its FLOPs against its equations."""

import math

import long_scan
import numpy as np
import pytest
import torch
from comparison import assert_all_close, results
from scan_cases import OPTIONS, make_arguments
from torch import Tensor

from seqlab.ops import selective_scan, selective_scan_flops


class TestReference:
    @staticmethod
    def dense(arguments: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """The scan as one lower-triangular matrix for each channel and state, decays from differences of sums."""
        u, delta, A, B, C, D, z, bias, state = (
            arguments[name].numpy() for name in ("u", "delta", "A", "B", "C", *OPTIONS)
        )
        delta = np.log1p(np.exp(delta + bias))
        elapsed = np.cumsum(delta, axis=1)  # (Bt, L, D)
        past = elapsed[:, :, None] - elapsed[:, None]  # (Bt, L, L, D)
        causal = np.tril(np.ones((u.shape[1],) * 2))[None, :, :, None, None]
        decay = np.exp(np.minimum(past, 1e9)[..., None] * A * causal) * causal  # (Bt, L, L, D, N)
        h = np.einsum("btsdn,bsd,bsn->btdn", decay, delta * u, B)
        h += np.exp(elapsed[..., None] * A) * state[:, None]
        y = np.einsum("btdn,btn->btd", h, C) + D * u
        return y * z / (1 + np.exp(-z)), h[:, -1]

    def test_equals_the_dense_matrix(self):
        arguments = make_arguments(2, 23, 5, 3)
        y, state = selective_scan(**arguments, delta_softplus=True, return_final_state=True, backend="reference")
        expected_y, expected_state = self.dense(arguments)
        np.testing.assert_allclose(y.numpy(), expected_y, rtol=1e-11)
        np.testing.assert_allclose(state.numpy(), expected_state, rtol=1e-11)

    def test_constant_input_is_a_geometric_series(self):
        length, decay, drive = 40, 0.75, 0.5 * 2.0 * 3.0  # delta B u
        constant = torch.full((1, length, 1), 1.0, dtype=torch.float64)
        A = torch.tensor([[math.log(decay) / 0.5]], dtype=torch.float64)
        y = selective_scan(3 * constant, 0.5 * constant, A, 2 * constant, 5 * constant, backend="reference").flatten()
        t = torch.arange(1, length + 1, dtype=torch.float64)
        torch.testing.assert_close(y, 5 * drive * (1 - decay**t) / (1 - decay), rtol=1e-13, atol=0)

    def test_one_position_by_hand(self):
        def scalar(value: float, *shape: int) -> Tensor:
            return torch.full(shape, value, dtype=torch.float64)

        y, state = selective_scan(
            u=scalar(2, 1, 1, 1),
            delta=scalar(0.25, 1, 1, 1),
            A=scalar(-4, 1, 1),
            B=scalar(3, 1, 1, 1),
            C=scalar(5, 1, 1, 1),
            D=scalar(7, 1),
            z=scalar(1, 1, 1, 1),
            delta_bias=scalar(0.25, 1),
            initial_state=scalar(11, 1, 1, 1),
            return_final_state=True,
            backend="reference",
        )
        expected_state = math.exp(-2) * 11 + 0.5 * 3 * 2
        assert state.item() == pytest.approx(expected_state, rel=1e-14)
        assert y.item() == pytest.approx((5 * expected_state + 7 * 2) / (1 + math.exp(-1)), rel=1e-14)

    @pytest.mark.parametrize("steps", ["ordinary", "huge", "tiny", "mixed"])
    @pytest.mark.parametrize("delta_softplus", [False, True])
    def test_the_scan_that_long_sequences_are_held_to(self, steps, delta_softplus):
        arguments = make_arguments(2, 127, 5, 3, steps=steps)
        expected = results(selective_scan, arguments, backend="reference", delta_softplus=delta_softplus)
        actual = results(long_scan.scan, arguments, delta_softplus=delta_softplus)
        assert_all_close(actual, expected, torch.float64)


class Counted:
    """A number that counts what is done with it."""

    operations = 0

    @classmethod
    def of_operation(cls, *_) -> "Counted":
        cls.operations += 1
        return cls()

    __add__ = __mul__ = exp = of_operation


def test_flops_count_every_operation_of_the_equations(monkeypatch):
    monkeypatch.setattr(Counted, "operations", 0)
    batch, length, d_inner, d_state = 2, 3, 5, 4
    for _ in range(batch * length * d_inner):
        u, delta = Counted(), Counted()
        drive = delta * u
        products = []
        for _ in range(d_state):
            A, B, C, h = Counted(), Counted(), Counted(), Counted()
            h = (delta * A).exp() * h + drive * B
            products.append(C * h)
        y = products[0]
        for product in products[1:]:
            y = y + product
    assert selective_scan_flops(batch, length, d_inner, d_state) == Counted.operations
