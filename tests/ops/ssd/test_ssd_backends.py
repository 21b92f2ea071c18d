"""State-space duality: the reference against closed forms, every backend against the reference."""

import itertools

import numpy as np
import pytest
import torch
from comparison import (
    assert_all_close,
    backends_in,
    doubled,
    named_gradients,
    numbered,
    results,
    skip_unless_available,
    weighted_sum,
)
from ssd_cases import (
    ALONG_TIME,
    OPTIONS,
    PACKAGE,
    afford,
    compare,
    every_backend,
    every_device,
    every_fused_backend,
    kernel_test,
    make_arguments,
    size,
    ssd_separately,
)

from seqlab.ops import selective_scan, ssd, ssd_update
from seqlab.ops.ssd import BACKENDS


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
    def test_the_order_lists_every_file(self):
        assert sorted(BACKENDS) == sorted(backends_in(PACKAGE))

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
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
    @kernel_test
    def test_dtypes(self, backend, device, dtype):
        compare(make_arguments(*size(backend, device), dtype=dtype, device=device), backend, dt_softplus=True)

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

    @every_device
    @every_backend
    @pytest.mark.parametrize("cut", [1, 32, 39])
    @kernel_test
    def test_a_cut_with_the_state_carried_changes_nothing(self, backend, device, cut):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        afford(backend, device, unless=cut != 32)
        arguments = make_arguments(*size(backend, device), device=device)
        settings = {"dt_softplus": True, "backend": backend}
        whole = results(ssd, arguments, **settings)
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in arguments.items()}
        state, outputs = leaves["initial_state"], []
        for span in (slice(0, cut), slice(cut, None)):
            part = {name: leaf[:, span] if name in ALONG_TIME else leaf for name, leaf in leaves.items()}
            part["initial_state"] = state
            y, state = ssd(**part, return_final_state=True, **settings)
            outputs.append(y)
        y = torch.cat(outputs, dim=1)
        gradients = torch.autograd.grad(weighted_sum((y, state)), list(leaves.values()))
        halves = {"y": y, "state": state, **named_gradients(leaves, gradients)}
        assert_all_close(halves, whole, torch.float32)

    @every_device
    @every_backend
    @kernel_test
    def test_packed_sequences_are_those_one_by_one(self, backend, device):
        """Among them sequences that begin where a chunk does, on either side of it, and right after one another."""
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        arguments = make_arguments(*size(backend, device), device=device)
        batch, length = arguments["x"].shape[:2]
        cuts = [{cut for cut in row if cut < length} for row in ({1, 2, 3, 32, 35, 64}, {31, 33, 65, 70})][:batch]
        expected = results(ssd_separately, doubled(arguments), cuts=cuts, dt_softplus=True)
        seq_idx = numbered(cuts, length).to(device)
        actual = results(ssd, arguments, seq_idx=seq_idx, backend=backend, dt_softplus=True)
        assert_all_close(actual, expected, torch.float32)

    @every_device
    @every_backend
    @pytest.mark.parametrize("output", [0, 1], ids=["y", "state"])
    @kernel_test
    def test_gradient_of_one_output_alone(self, backend, device, output):
        skip_unless_available(PACKAGE, backend, device, torch.float32)

        def gradients(arguments, backend):
            leaves = {name: tensor.requires_grad_() for name, tensor in arguments.items()}
            out = ssd(**leaves, return_final_state=True, backend=backend)[output]
            found = torch.autograd.grad(out.sum(), list(leaves.values()), allow_unused=True)
            return {
                name: torch.zeros_like(leaf) if gradient is None else gradient
                for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
            }

        arguments = make_arguments(1, 33, 1, 3, 1, 4, device=device)
        expected = gradients(doubled(arguments), "reference")
        assert_all_close(gradients(arguments, backend), expected, torch.float32)

    @every_device
    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @kernel_test
    def test_steps_follow_the_whole(self, backend, device, dtype):
        skip_unless_available(PACKAGE, backend, device, dtype)
        arguments = make_arguments(*size(backend, device), dtype=dtype, device=device)
        expected_y, expected_state = ssd(**arguments, dt_softplus=True, return_final_state=True, backend=backend)
        state, outputs = arguments.pop("initial_state"), []
        for t in range(arguments["x"].shape[1]):
            part = {name: value[:, t] if name in ALONG_TIME else value for name, value in arguments.items()}
            before = state.clone()
            y, after = ssd_update(state, **part, dt_softplus=True)
            assert torch.equal(state, before)
            assert y.dtype == dtype
            outputs.append(y)
            state = after
        actual = {"y": torch.stack(outputs, dim=1), "state": state}
        assert_all_close(actual, {"y": expected_y, "state": expected_state}, dtype)

    @every_device
    @every_fused_backend
    @kernel_test
    def test_the_same_bit_by_bit_from_run_to_run(self, backend, device):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        arguments = make_arguments(*size(backend, device), device=device)
        first, second = (results(ssd, arguments, backend=backend) for _ in range(2))
        for name in first:
            assert torch.equal(first[name], second[name]), name

    @every_backend
    def test_autocast_changes_nothing(self, backend):
        skip_unless_available(PACKAGE, backend, "cpu", torch.float32)
        arguments = make_arguments(1, 9, 2, 3, 1, 4)
        expected = results(ssd, arguments, backend=backend)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = results(ssd, arguments, backend=backend)
        for name in expected:
            assert torch.equal(actual[name], expected[name]), name
