"""State-space duality: the reference against closed forms, every backend against the reference."""

import itertools

import numpy as np
import pytest
import torch
from comparison import assert_all_close, assert_same_bits, numbered, results, skip_unless_available
from ssd_cases import (
    OPTIONS,
    PACKAGE,
    SSD,
    afford,
    compare,
    every_backend,
    every_device,
    every_fused_backend,
    kernel_test,
    make_arguments,
    size,
)

from seqlab.ops import selective_scan, ssd


class TestReference:
    def test_equals_the_dense_matrix(self):
        """The paper's dual form: y = (C B^T * decays) dt x, decays from differences of sums (equation 6)."""
        a = {name: tensor.numpy() for name, tensor in make_arguments(2, 23, 4, 3, 2, 5, dtype=torch.float64).items()}
        dt = np.log1p(np.exp(a["dt"] + a["dt_bias"]))
        B, C = (a[name].repeat(2, axis=2) for name in ("B", "C"))  # (Bt, L, H, N)
        s = np.cumsum(dt * a["A"], axis=1)  # (Bt, L, H)
        decay = np.exp(np.minimum(s[:, :, None] - s[:, None], 0)) * np.tril(np.ones((23, 23)))[:, :, None]
        u = dt[..., None] * a["x"]  # (Bt, L, H, P)
        expected = np.einsum("btsh,bthn,bshn,bshp->bthp", decay, C, B, u)
        expected += np.einsum("bth,bthn,bhpn->bthp", np.exp(s), C, a["initial_state"]) + a["D"][:, None] * a["x"]
        final = np.einsum("bsh,bshn,bshp->bhpn", decay[:, -1], B, u)
        final += np.exp(s[:, -1])[..., None, None] * a["initial_state"]

        tensors = {name: torch.from_numpy(value) for name, value in a.items()}
        y, state = ssd(**tensors, dt_softplus=True, return_final_state=True, backend="reference")
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-10)
        np.testing.assert_allclose(state.numpy(), final, rtol=1e-10)

    @pytest.mark.parametrize("backend", ["reference", "parallel"])
    def test_is_the_selective_scan_with_one_decay_a_head(self, backend):
        """Mamba-1's operator with A, dt and D the same for all channels and states of a head."""
        a = make_arguments(2, 70, 3, 4, 1, 5, dtype=torch.float64)
        scanned = {
            "u": a["x"].flatten(2),
            "delta": a["dt"].repeat_interleave(4, dim=2),
            "A": a["A"].repeat_interleave(4)[:, None].expand(12, 5),
            "B": a["B"].squeeze(2),
            "C": a["C"].squeeze(2),
            "D": a["D"].repeat_interleave(4),
            "delta_bias": a["dt_bias"].repeat_interleave(4),
            "initial_state": a["initial_state"].flatten(1, 2),
        }
        y, state = selective_scan(**scanned, delta_softplus=True, return_final_state=True, backend="reference")
        actual_y, actual_state = ssd(**a, dt_softplus=True, return_final_state=True, backend=backend)
        assert_all_close(
            {"y": actual_y.flatten(2), "state": actual_state.flatten(1, 2)}, {"y": y, "state": state}, torch.float64
        )


class TestEveryBackend:
    @every_device
    @every_backend
    @pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 64, 65, 131])
    @kernel_test
    def test_lengths(self, backend, device, length):
        """Eight heads: with three, one draw's dA cancels to a thousandth of its size, less than float32 products in
        three parts resolve."""
        afford(backend, device, unless=length not in (1, 65))
        compare(make_arguments(1, length, 8, 5, 1, 4, device=device), backend, dt_softplus=True)

    @every_device
    @every_backend
    @pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (6, 3, 2, 16), (4, 33, 4, 20), (1, 64, 1, 64), (2, 70, 2, 130)])
    @kernel_test
    def test_sizes(self, backend, device, sizes):
        """Heads, channels, groups and states: one each, powers of two and none, more than one tile."""
        afford(backend, device, unless=sizes == (6, 3, 2, 16))
        compare(make_arguments(1, 20, *sizes, device=device), backend, dt_softplus=True)

    @every_device
    @every_backend
    @pytest.mark.parametrize("dt_softplus", [False, True])
    @pytest.mark.parametrize(
        "options", [chosen for n in range(4) for chosen in itertools.combinations(OPTIONS, n)], ids="+".join
    )
    @kernel_test
    def test_options(self, backend, device, options, dt_softplus):
        afford(backend, device, unless=len(options) > 0)
        compare(make_arguments(1, 33, 1, 3, 1, 4, options=options, device=device), backend, dt_softplus=dt_softplus)

    @every_device
    @every_backend
    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("steps", ["huge", "tiny", "mixed"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @kernel_test
    def test_adversarial_steps(self, backend, device, steps, dtype, packed):
        afford(backend, device, unless=packed or dtype == torch.bfloat16)
        arguments = make_arguments(*size(backend, device), dtype=dtype, steps=steps, device=device)
        arguments["dt_bias"].zero_()
        batch, length = arguments["x"].shape[:2]
        seq_idx = numbered([{20, 21, 64}, {32}][:batch], length).to(device) if packed else None
        compare(arguments, backend, seq_idx=seq_idx)

    @every_device
    @every_backend
    @kernel_test
    def test_mixed_dtypes_and_layouts(self, backend, device):
        """As under autocast, and parts of one projection that are not side by side in memory."""
        arguments = make_arguments(*size(backend, device), dtype=torch.bfloat16, device=device)
        arguments["dt"] = arguments["dt"].float().transpose(1, 2).contiguous().transpose(1, 2)
        arguments["B"] = arguments["B"].transpose(1, 3).contiguous().transpose(1, 3)
        x = arguments["x"]
        arguments["x"] = torch.cat([x.flatten(2)] * 2, dim=2)[..., : x[0, 0].numel()].unflatten(2, x.shape[2:])
        compare(arguments, backend, dt_softplus=True)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs everything")
    @kernel_test
    def test_a_cut_with_the_state_carried_changes_nothing_interpreted(self):
        """Of the size that the interpreter can take; the others are in ``test_every_operator``."""
        SSD.hold_cut(SSD.usual("triton", torch.float32, "cpu"), "triton", 32)

    @every_device
    @every_backend
    @kernel_test
    def test_packed_sequences_are_those_one_by_one(self, backend, device):
        """Among them sequences that begin where a chunk does, on either side of it, and right after one another."""
        arguments = SSD.usual(backend, torch.float32, device)
        batch, length = arguments["x"].shape[:2]
        cuts = [{cut for cut in row if cut < length} for row in ({1, 2, 3, 32, 35, 64}, {31, 33, 65, 70})][:batch]
        SSD.hold_packed(arguments, cuts, backend, dt_softplus=True)

    @every_device
    @every_fused_backend
    @kernel_test
    def test_the_same_bit_by_bit_from_run_to_run(self, backend, device):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        arguments = make_arguments(*size(backend, device), device=device)
        first, second = (results(ssd, arguments, backend=backend) for _ in range(2))
        assert_same_bits(first, second)
