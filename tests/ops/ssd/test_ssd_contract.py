"""What state-space duality refuses, which backend it chooses, and its FLOPs."""

import itertools

import pytest
import torch
from comparison import skip_unless_available
from ssd_cases import PACKAGE, SIZE, make_arguments

from seqlab.ops import ssd, ssd_flops
from seqlab.ops.ssd import triton


class TestContract:
    def test_a_backend_asked_for_by_name_is_not_replaced(self):
        with pytest.raises(ValueError, match="sums in float32, not enough for torch"):
            ssd(**make_arguments(1, 2, 2, 2, 1, 2, dtype=torch.float64), backend="triton")

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("B", lambda t: t.expand(1, 4, 2, 2), r"C has shape"),
            ("initial_state", lambda t: t.bfloat16(), "initial_state is torch.bfloat16, expected torch.float32"),
        ],
    )
    def test_what_does_not_fit_is_named(self, name, change, message):
        arguments = make_arguments(1, 4, 3, 2, 1, 2)
        arguments[name] = change(arguments[name])
        with pytest.raises(ValueError, match=message):
            ssd(**arguments)

    def test_groups_have_to_divide_the_heads(self):
        message = "B has 2 groups, expected a divisor of x's 3 heads"
        arguments = make_arguments(1, 4, 3, 2, 1, 2)
        arguments["B"], arguments["C"] = (arguments[name].expand(1, 4, 2, 2) for name in ("B", "C"))
        with pytest.raises(ValueError, match=message):
            ssd(**arguments)

    def test_states_that_do_not_fit_a_program(self):
        skip_unless_available(PACKAGE, "triton", "cpu", torch.float32)
        with pytest.raises(ValueError, match="takes d_state up to 256, not 257"):
            ssd(**make_arguments(1, 1, 1, 1, 1, triton.MOST_STATES + 1), backend="triton")

    @pytest.mark.parametrize("narrow", [False, True])
    @pytest.mark.parametrize("kernel", ["states", "outputs", "inputs", "projections"])
    def test_a_tile_is_one_that_the_kernels_can_run(self, kernel, narrow, monkeypatch):
        """tile_of holds its tiles to what the kernels assume: for heads of all sizes, and whatever the table says."""
        for d_head, d_state in itertools.product((1, 5, 16, 17, 32, 64, 200), (1, 16, 17, 64, 128, triton.MOST_STATES)):
            tile = triton.tile_of(kernel, narrow, d_head, d_state)
            assert max(d_head, 4 * tile.warps, 16) > tile.P // 2  # no more is padded than has to be
            if narrow and kernel == "outputs":  # 4 warps multiply by ``wgmma``
                assert (tile.warps < 4) == (d_state % 2 == 1 or d_head <= 16)
        for wrong in (triton.Tile(16, 256, 8, 1), triton.Tile(48, 256, 4, 1), triton.Tile(64, 24, 4, 1)):
            monkeypatch.setitem(triton.NARROW if narrow else triton.WIDE, kernel, wrong)
            with pytest.raises(AssertionError, match=kernel):
                triton.tile_of(kernel, narrow, 64, 64)

    def test_flops_of_one_position_by_hand(self):
        """P = 2, N = 3: exp(dt A) 2, dt x 2, times B 6, a h + x 12, C h 6 products and 4 sums."""
        assert ssd_flops(1, 1, 1, 2, 3) == 2 + 2 + 6 + 12 + 10
        assert ssd_flops(3, 5, 7, 2, 3) == 3 * 5 * 7 * 32

    def test_without_memory_it_has_shapes_alone(self):
        """On the meta device, where FLOPs are counted: nothing is computed that a counter could see."""
        from torch.utils.flop_counter import FlopCounterMode

        arguments = {name: tensor.to("meta").requires_grad_() for name, tensor in make_arguments(*SIZE).items()}
        with FlopCounterMode(display=False) as counter:
            y, state = ssd(**arguments, return_final_state=True)
            (y.sum() + state.sum()).backward()
        assert counter.get_total_flops() == 0
        assert y.shape == arguments["x"].shape
        assert all(tensor.grad.shape == tensor.shape for tensor in arguments.values())
