"""What is the parallel scan's own: its chunks and its memory."""

import weakref

import pytest
import torch
from scan_cases import compare, make_arguments, set_chunk
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from seqlab.ops import selective_scan
from seqlab.ops.selective_scan import parallel


class StorageCounter(TorchDispatchMode):
    """Counts the bytes of all storages that operations allocate: alive together at most, and the largest."""

    def __init__(self, known: list[Tensor]):
        super().__init__()
        self.alive = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.peak = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.alive:
            return
        self.alive[storage._cdata] = storage.nbytes()
        weakref.finalize(storage, self.alive.pop, storage._cdata)
        self.peak = max(self.peak, sum(self.alive.values()))
        self.largest = max(self.largest, storage.nbytes())


class TestParallel:
    @pytest.mark.parametrize("chunk", [1, 2, 3, 16, 17, 18, 33, 50, 64, 100, 131, 200])
    @pytest.mark.usefixtures("nan_memory")
    def test_every_chunk_length_gives_the_same(self, chunk, monkeypatch):
        monkeypatch.setattr(parallel, "SHORTEST_CHUNK", 1)
        set_chunk(monkeypatch, chunk * 2 * 5 * 3)
        compare(make_arguments(2, 131, 5, 3), "parallel", delta_softplus=True)

    @pytest.mark.parametrize("steps", ["huge", "tiny", "mixed"])
    @pytest.mark.usefixtures("nan_memory")
    def test_pairs_survive_adversarial_steps(self, steps):
        compare(make_arguments(2, 301, 5, 3, dtype=torch.float32, steps=steps), "parallel")

    def test_memory_is_that_of_boundaries_and_one_chunk(self):
        batch, d_inner, d_state, chunk = 2, 32, 16, 256
        chunk_elements = chunk * batch * d_inner * d_state
        peaks = {}
        for length in (1024, 2048):
            with pytest.MonkeyPatch.context() as patch:
                set_chunk(patch, chunk_elements)
                arguments = make_arguments(batch, length, d_inner, d_state, dtype=torch.float32)
                leaves = {name: tensor.requires_grad_() for name, tensor in arguments.items()}
                with StorageCounter(list(leaves.values())) as counter:
                    selective_scan(**leaves, delta_softplus=True, backend="parallel").sum().backward()
            expansion = 4 * batch * length * d_inner * d_state
            boundaries = expansion // chunk
            linear = 4 * batch * length * d_inner
            assert counter.peak <= 8 * linear + boundaries + 5 * 4 * chunk_elements
            assert counter.largest <= max(2.1 * 4 * chunk_elements, linear)
            peaks[length] = counter.peak
        growth = 8 * linear // 2 + boundaries // 2
        assert 0 < peaks[2048] - peaks[1024] <= growth

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("gate", [False, True])
    def test_saves_its_arguments_and_boundaries(self, dtype, gate, monkeypatch):
        set_chunk(monkeypatch, 16 * 2 * 5 * 3)
        options = ("D", "z", "delta_bias") if gate else ()
        arguments = make_arguments(2, 64, 5, 3, dtype=dtype, options=options)
        leaves = {name: tensor.requires_grad_() for name, tensor in arguments.items()}
        saved: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            saved.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            selective_scan(**leaves, delta_softplus=True, backend="parallel")
        given = {tensor.data_ptr() for tensor in leaves.values()}
        new = sorted((tuple(t.shape), t.dtype) for t in saved if t.data_ptr() not in given)
        assert new == [((4, 2, 3, 5), torch.float32)]

    def test_needs_no_matrix_product(self):
        leaves = {name: tensor.requires_grad_() for name, tensor in make_arguments(2, 40, 5, 3).items()}
        with FlopCounterMode(display=False) as counter:
            selective_scan(**leaves, backend="parallel").sum().backward()
        assert counter.get_total_flops() == 0
