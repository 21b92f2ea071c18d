"""Packed sequences are scanned as each would be by itself."""

import math
from functools import partial

import pytest
import torch
from comparison import (
    DEVICES,
    POISONS,
    assert_all_close,
    backends_in,
    hold_apart,
    numbered,
    skip_unless_available,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scan_cases import (
    ALONG_TIME,
    OPTIONS,
    PACKAGE,
    compare_packed,
    every_backend,
    every_device,
    every_fast_backend,
    interpreted,
    kernel_test,
    make_arguments,
    ready,
)

from seqlab.ops import selective_scan
from seqlab.ops.selective_scan import triton


class TestPackedSequences:
    @every_device
    @every_backend
    @pytest.mark.parametrize("d_state", [1, 3, 16])
    @kernel_test
    def test_short_and_long_ones(self, backend, device, d_state):
        """Among them sequences that begin where a chunk of the parallel scan does, at 13 and 26."""
        cuts = [{1, 2, 3, 20}, {13, 26, 39}]
        compare_packed(make_arguments(2, 41, 5, d_state, dtype=torch.float32, device=device), cuts, backend)

    @every_device
    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
    @kernel_test
    def test_dtypes(self, backend, device, dtype):
        compare_packed(make_arguments(2, 40, 7, 4, dtype=dtype, device=device), [{1, 3, 20}, {38}], backend)

    @every_device
    @every_backend
    @kernel_test
    def test_over_tiles_and_segments(self, backend, device):
        """Sequences that begin where a tile or a segment of a fused scan does, and on either side."""
        cuts = [{31, 32, 33, 64, 65}, {63, 128, 255, 256}]
        compare_packed(make_arguments(2, 300, 70, 16, dtype=torch.float32, device=device), cuts, backend)

    @every_fast_backend
    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(data=st.data(), sizes=st.tuples(st.integers(1, 2), st.integers(2, 40), st.integers(3, 6), st.integers(1, 6)))
    @kernel_test
    def test_any_packing(self, backend, data, sizes):
        batch, length = sizes[:2]
        cuts = data.draw(st.lists(st.sets(st.integers(1, length - 1)), min_size=batch, max_size=batch))
        options = data.draw(st.sets(st.sampled_from(OPTIONS)))
        compare_packed(make_arguments(*sizes, dtype=torch.float32, options=tuple(options)), cuts, backend)

    @every_fast_backend
    def test_the_final_state_continues_the_last_sequence(self, backend):
        ready(backend, "cpu", torch.float32)
        arguments = make_arguments(2, 12, 5, 3, dtype=torch.float32)
        settings = {"return_final_state": True, "backend": backend}
        seq_idx = numbered([{6}, {3, 9}], 12)
        y, state = selective_scan(**arguments, seq_idx=seq_idx, **settings)
        parts = []
        for span in (slice(0, 8), slice(8, None)):
            part = {name: tensor[:, span] if name in ALONG_TIME else tensor for name, tensor in arguments.items()}
            parts.append(selective_scan(**part, seq_idx=seq_idx[:, span], **settings))
            arguments["initial_state"] = parts[-1][1]
        actual = {"y": torch.cat([part[0] for part in parts], dim=1), "state": parts[-1][1]}
        assert_all_close(actual, {"y": y, "state": state}, torch.float32)

    @every_backend
    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
    def test_any_integers_serve(self, backend, dtype):
        ready(backend, "cpu", torch.float32)
        arguments, seq_idx = make_arguments(1, 4, 3, 2, dtype=torch.float32), numbered([{1, 3}], 4)
        expected = selective_scan(**arguments, seq_idx=seq_idx, backend=backend)
        strided = torch.stack([seq_idx * 100, seq_idx], dim=2).to(dtype)[..., 0]
        assert torch.equal(selective_scan(**arguments, seq_idx=strided, backend=backend), expected)

    PAIRED = ((("u",), 3e38), (("delta",), math.inf), (("B", "C"), math.nan))
    """Each argument with one of the poisons, for the interpreter, which takes seconds for one."""

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("poison", POISONS)
    @pytest.mark.parametrize("names", [("u",), ("delta",), ("B", "C")])
    @pytest.mark.parametrize("backend", backends_in(PACKAGE))
    def test_what_is_not_finite_stays_in_its_sequence(self, backend, names, poison, device):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        if interpreted(backend, device) and (names, poison) not in self.PAIRED:
            pytest.skip("too slow in Triton's interpreter")
        length, cuts = (6, {1, 4}) if interpreted(backend, device) else (300, {40, 41, 190})
        arguments = make_arguments(2, length, 3, 5, dtype=torch.float32, device=device)
        hold_apart(partial(selective_scan, delta_softplus=True, backend=backend), arguments, names, poison, cuts)

    @pytest.mark.parametrize("direction", ["forward", "backward"])
    def test_it_stays_there_across_chunks_of_the_kernels(self, monkeypatch, direction):
        skip_unless_available(PACKAGE, "triton", "cpu", torch.float32)
        cut = triton.Plan(lanes=1, tiles=1, channels=1, chunk=64, n_chunks=2)
        chosen = triton.plan
        monkeypatch.setattr(triton, "plan", lambda u, n, way: cut if way == direction else chosen(u, n, way))
        arguments = make_arguments(1, 68, 1, 2, dtype=torch.float32, options=())
        hold_apart(partial(selective_scan, backend="triton"), arguments, ("u", "C"), math.inf, {65})
