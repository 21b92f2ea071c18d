"""The selective scan's kernels in Triton's interpreter, and on a GPU at the shapes that are measured there."""

import pytest
import torch
import torch.nn.functional as F
from comparison import HALF, assert_all_close, doubled, restrided, skip_unless_available
from scan_cases import OPTIONS, PACKAGE, SCAN, make_arguments

from seqlab.benchmarks.scan_shapes import ODD
from seqlab.ops import selective_scan
from seqlab.ops.selective_scan import triton


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs everything")
@pytest.mark.usefixtures("nan_memory")
class TestTritonInterpreted:
    """What the kernels are held to where there is no GPU: each way through them once, over few positions."""

    @pytest.fixture(autouse=True)
    def _available(self):
        skip_unless_available(PACKAGE, "triton", "cpu", torch.float32)

    @pytest.mark.parametrize("length", [1, 2, 9])
    def test_lengths(self, length):
        SCAN.hold(make_arguments(1, length, 5, 3, dtype=torch.float32), "triton", **SCAN.settings)

    def test_segments(self, monkeypatch):
        monkeypatch.setattr(triton.triton_plan, "SEGMENT", 4)
        arguments = make_arguments(1, 10, 5, 3, dtype=torch.float32)
        assert triton.plan(arguments["u"], 3, "backward").n_chunks == 1
        SCAN.hold(arguments, "triton", **SCAN.settings)

    @pytest.mark.parametrize("d_state", [1, 16, 33, 129])
    def test_state_sizes(self, d_state):
        """Of 8 channels, which lanes could copy as they lie; the other odd numbers here are of padded rows.

        The backward pass takes 33 and 129 states in parts, of which the last has one.
        """
        SCAN.hold(make_arguments(1, 5, 8, d_state, dtype=torch.float32), "triton")

    @pytest.mark.parametrize("d_inner", [1, 32, 70])
    def test_channels(self, d_inner):
        SCAN.hold(make_arguments(2, 3, d_inner, 16, dtype=torch.float32), "triton")

    @pytest.mark.parametrize("option", [None, *OPTIONS])
    def test_options(self, option):
        options = () if option is None else (option,)
        SCAN.hold(make_arguments(1, 5, 5, 3, dtype=torch.float32, options=options), "triton")

    @pytest.mark.parametrize("dtype", HALF, ids=str)
    def test_dtypes(self, dtype):
        SCAN.hold(make_arguments(1, 9, 7, 4, dtype=dtype), "triton", **SCAN.settings)

    @pytest.mark.parametrize("layout", ["interleaved", "transposed", "expanded"])
    def test_strided_arguments(self, layout):
        arguments = make_arguments(2, 3, 5, 3, dtype=torch.float32)
        SCAN.hold({name: restrided(tensor, layout) for name, tensor in arguments.items()}, "triton")

    @pytest.mark.parametrize(
        ("width", "columns", "padded"),
        [(16, slice(8), 0), (17, slice(8), 1), (16, slice(2, 10), 1), (16, slice(0, 16, 2), 1), (8, slice(7), 3)],
        ids=["as it lies", "rows apart", "start", "every other", "width"],
    )
    def test_only_rows_that_lanes_cannot_copy_are_padded(self, width, columns, padded, monkeypatch):
        """Lanes copy 16 bytes at once, here four numbers. u is a view, and delta and z lie by themselves."""
        u = torch.randn(1, 9, width)[:, :2, columns]
        copies, pad = [], triton._padded

        def kept(call, tensors):
            found = pad(call, tensors)
            copies.extend(zip(tensors, found, strict=True))
            return found

        monkeypatch.setattr(triton, "_padded", kept)
        arguments = make_arguments(1, 2, u.shape[2], 3, dtype=torch.float32) | {"u": u}
        y = selective_scan(**arguments, backend="triton")
        assert len(copies) == padded
        for tensor, copy in copies:
            assert torch.equal(copy, F.pad(tensor, (0, 16 - tensor.shape[2])))
        assert_all_close({"y": y}, {"y": selective_scan(**doubled(arguments), backend="reference")}, torch.float32)

    @pytest.mark.parametrize("steps", ["huge", "tiny", "mixed"])
    def test_adversarial_steps(self, steps):
        arguments = make_arguments(1, 7, 5, 3, dtype=torch.float32, steps=steps)
        SCAN.hold(arguments | {"delta_bias": torch.zeros_like(arguments["delta_bias"])}, "triton")

    def test_packed_sequences(self):
        SCAN.hold_packed(
            make_arguments(2, 9, 5, 3, dtype=torch.float32), [{1, 2, 6}, {8}], "triton", delta_softplus=True
        )

    def test_a_cut_with_the_state_carried_changes_nothing(self):
        SCAN.hold_cut(make_arguments(1, 9, 5, 3, dtype=torch.float32), "triton", cut=5)

    @pytest.mark.parametrize(
        ("packed", "segment", "d_state"), [(False, 4, 3), (False, 8, 16), (True, 4, 3), (True, 8, 16), (True, 8, 33)]
    )
    def test_chunks(self, segment, d_state, packed, monkeypatch):
        """The state is handed from chunk to chunk, two segments each; one packed sequence begins where a chunk does.

        With 3 states positions go one by one, with 16 four at a time: a segment is several such groups.
        """
        monkeypatch.setattr(triton.triton_plan, "SEGMENT", segment)
        monkeypatch.setattr(triton.triton_plan, "SHORTEST_CHUNK", 2 * segment)
        length = 4 * segment + segment // 2 + 1
        arguments = make_arguments(1, length, 5, d_state, dtype=torch.float32)
        assert triton.plan(arguments["u"], d_state, "forward").n_chunks == 3
        if packed:
            SCAN.hold_packed(
                arguments, [{segment + 2, 4 * segment, length - 1}], "triton", **SCAN.settings, deterministic=True
            )
        else:
            SCAN.hold(arguments, "triton", **SCAN.settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [shape for shape in ODD if shape.length < 2**12], ids=str)
def test_prime_lengths_odd_widths_and_other_states(shape, dtype):
    """What the benchmark measures, of two sequences: the reference keeps every state, in float64."""
    arguments = make_arguments(2, *shape[1:], dtype=dtype, device="cuda")
    SCAN.hold(arguments, "triton", **SCAN.settings)


@pytest.mark.parametrize("item", [2, 4], ids=["half", "float32"])
@pytest.mark.parametrize("tensors", [2, 3, 4])
@pytest.mark.parametrize("d_state", [4, 8, 16, 32, 64, 128, 256])
def test_a_ring_and_a_reduction_fit_into_shared_memory(d_state, tensors, item):
    """48 KB is what a kernel gets without asking; a launch with more is an invalid argument."""
    lanes, tiles = triton.triton_plan.lanes_of(d_state)
    for channels in triton.triton_plan.CHANNELS.get(tiles, (1,)):
        cut = triton.triton_plan.Plan(lanes, tiles, channels, 128, 4)
        ring = triton.triton_plan._forward_ring(cut, tensors, item, True)
        slot = triton.triton_plan._slot_bytes(cut, tensors, item, 0)
        assert ring.stages * slot * 4 + 16 <= 48 * 1024
        assert ring.stages or 2 * slot * 4 + 16 > 48 * 1024


@pytest.mark.parametrize("d_state", [64, 100, 128, 256])
def test_the_work_of_a_backward_program_does_not_grow_with_its_states(d_state):
    """As many channels as with 16 states, so as many bytes of B, C and their gradients for a channel and a state."""
    few, many = (triton.triton_plan._plan(16, 1024, 1024, n, "backward", 132) for n in (16, d_state))
    assert (many.lanes, many.tiles, many.channels) == (few.lanes, few.tiles, few.channels)
    assert many.parts == -(-d_state // 16)
    for item in (2, 4):
        assert triton.triton_plan._backward_ring(many, 4, item).sums
