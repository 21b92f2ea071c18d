"""The fused duality as an operator of PyTorch, its chunks, and sizes of models on a GPU."""

from functools import partial

import numpy as np
import pytest
import torch
from comparison import POISONS, hold_apart, numbered
from ssd_cases import ALONG_TIME, SIZE, compare, kernel_test, make_arguments

from seqlab.ops import ssd
from seqlab.ops.ssd import parallel


class TestParallel:
    @pytest.mark.parametrize("most", [2, 5, 64])
    @pytest.mark.parametrize("packed", [False, True])
    def test_chunks_in_groups(self, most, packed, monkeypatch):
        """Chunks of four positions, walked in groups of groups."""
        monkeypatch.setattr(parallel, "CHUNK", 4)
        monkeypatch.setattr(parallel, "MOST_STEPS", most)
        seq_idx = numbered([{20, 21, 64}, {63}], SIZE[1]) if packed else None
        compare(make_arguments(*SIZE), "parallel", dt_softplus=True, seq_idx=seq_idx)

    @pytest.mark.parametrize("most", [2, 64])
    @pytest.mark.parametrize("poison", POISONS)
    def test_what_is_not_finite_stays_apart_across_groups(self, most, poison, monkeypatch):
        monkeypatch.setattr(parallel, "CHUNK", 4)
        monkeypatch.setattr(parallel, "MOST_STEPS", most)
        operation = partial(ssd, dt_softplus=True, backend="parallel")
        hold_apart(operation, make_arguments(*SIZE), ("x", "B"), poison, {2, 20, 21, 64})


class TestOperator:
    def test_keeps_its_arguments_alone(self):
        """What is held for the backward pass are the arguments themselves."""
        leaves = {name: tensor.requires_grad_() for name, tensor in make_arguments(*SIZE).items()}
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda kept: kept):
            ssd(**leaves, backend="parallel")
        assert {tensor.data_ptr() for tensor in kept} == {leaf.data_ptr() for leaf in leaves.values()}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnGPU:
    """The sizes that models have."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize(
        "sizes",
        [
            *[(8, 64, 1, 64), (4, 128, 2, 128), (2, 96, 1, 256), (3, 200, 1, 16), (4, 16, 1, 64), (4, 32, 1, 128)],
            *[(5, 12, 5, 21), (4, 32, 2, 33), (2, 64, 1, 255)],  # of odd numbers of states
        ],
    )
    @kernel_test
    def test_sizes_of_models(self, dtype, sizes):
        compare(make_arguments(2, 333, *sizes, dtype=dtype, device="cuda"), "triton", dt_softplus=True)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("poison", [np.inf, 3.4e38])
    @pytest.mark.parametrize("name", ALONG_TIME)
    @kernel_test
    def test_what_is_not_finite_stays_in_its_sequence(self, name, poison, dtype):
        """In one element of heads and states of more than one tile; tensor cores round 3.4e38 up to infinity."""
        arguments = make_arguments(1, 333, 4, 128, 2, 256, dtype=dtype, device="cuda")
        operation = partial(ssd, dt_softplus=True, backend="triton")
        hold_apart(operation, arguments, (name,), poison, {5, 100, 128, 300})

    @kernel_test
    def test_more_than_two_to_the_31_bytes_away(self):
        """Offsets past 32 bits: the last row of a tensor that large is what it is by itself."""
        arguments = make_arguments(1, 65_536, 48, 64, 1, 64, dtype=torch.bfloat16, options=(), device="cuda")
        for name in ALONG_TIME:
            arguments[name] = arguments[name].repeat(12, *[1] * (arguments[name].dim() - 1))
        arguments["x"] *= torch.arange(1, 13, device="cuda").view(12, 1, 1, 1)  # no row is like another
        with torch.no_grad():
            whole = ssd(**arguments, backend="triton")
            last = {name: value[-1:] if name in ALONG_TIME else value for name, value in arguments.items()}
            assert torch.equal(whole[-1:], ssd(**last, backend="triton"))
