"""Packed sequences are scanned as each would be by itself."""

import math
from functools import partial

import pytest
import torch
from comparison import DEVICES, POISONS, backends_in, hold_apart, skip_unless_available
from scan_cases import PACKAGE, compare_packed, every_backend, every_device, interpreted, kernel_test, make_arguments

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
    @kernel_test
    def test_over_tiles_and_segments(self, backend, device):
        """Sequences that begin where a tile or a segment of a fused scan does, and on either side."""
        cuts = [{31, 32, 33, 64, 65}, {63, 128, 255, 256}]
        compare_packed(make_arguments(2, 300, 70, 16, dtype=torch.float32, device=device), cuts, backend)

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
        """Of three, of four positions each: the second sequence begins in the one between, which the state passes."""
        skip_unless_available(PACKAGE, "triton", "cpu", torch.float32)
        monkeypatch.setattr(triton.triton_plan, "SEGMENT", 4)
        cut = triton.Plan(lanes=1, tiles=1, channels=1, chunk=4, n_chunks=3)
        chosen = triton.plan
        monkeypatch.setattr(triton, "plan", lambda u, n, way: cut if way == direction else chosen(u, n, way))
        arguments = make_arguments(1, 12, 1, 2, dtype=torch.float32, options=())
        hold_apart(partial(selective_scan, backend="triton"), arguments, ("u", "C"), math.inf, {5})
