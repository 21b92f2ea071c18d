"""The fused CPU scan's threads, and its compilation in a process and the next."""

import hashlib
import importlib
import os
import sys
import threading
import time
import warnings
from pathlib import Path

import numba
import pytest
import torch
from comparison import assert_same_bits
from cpu_scan_cases import W, fused, inputs_of
from scan_cases import make_arguments

import forks
from seqlab.ops import causal_conv1d, cpu_threads, selective_scan
from seqlab.ops.causal_conv1d import cpu_kernels as conv_kernels
from seqlab.ops.selective_scan import cpu
from seqlab.ops.selective_scan import cpu_kernels as scan_kernels


class TestThreads:
    @pytest.mark.parametrize("threads", [1, 2, 3, 7])
    def test_their_number_changes_no_bit(self, threads):
        before = torch.get_num_threads()
        arguments = make_arguments(3, 70, 9 * W, 5, dtype=torch.float32)
        reference_run = fused(arguments)
        try:
            torch.set_num_threads(threads)
            run = fused(arguments)
        finally:
            torch.set_num_threads(before)
        assert_same_bits(run, reference_run)

    def test_without_openmp(self, monkeypatch):
        arguments = make_arguments(3, 70, 9 * W, 5, dtype=torch.float32)
        with_openmp = fused(arguments)
        before = torch.get_num_threads()
        monkeypatch.setattr(cpu_threads, "_fork_join", lambda: None)
        try:
            torch.set_num_threads(3)
            assert_same_bits(fused(arguments), with_openmp)
        finally:
            torch.set_num_threads(before)

    def test_calls_from_many_threads_at_once(self):
        arguments = make_arguments(3, 70, 5 * W, 5, dtype=torch.float32)
        alone, together = fused(arguments), []
        callers = [threading.Thread(target=lambda: together.append(fused(arguments))) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert len(together) == 4
        for run in together:
            assert_same_bits(run, alone)

    def test_an_error_in_a_thread_is_raised(self, monkeypatch):
        def failing(*_):
            raise ZeroDivisionError

        kernels = cpu._kernels()
        monkeypatch.setattr(kernels, "forward_task", failing)
        monkeypatch.setattr(cpu, "_compile", lambda *_: None)
        with pytest.raises(ZeroDivisionError):
            cpu.forward(inputs_of(make_arguments(3, 5, 3, 2, dtype=torch.float32)), None, keep=False)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_forked_process_has_threads_too(self, tmp_path):
        assert forks.finish(tmp_path / "screen", scan_in_a_fork) == (0, "")


def scan_in_a_fork() -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
    inputs = inputs_of(make_arguments(4, 40, 64, 16, dtype=torch.float32))
    torch.set_num_threads(2)
    cpu.forward(inputs, None, keep=True)
    child = os.fork()
    if child == 0:
        cpu.forward(inputs, None, keep=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def compute(cache: Path) -> None:
    """Print the CPU seconds and the results of kernels that keep what is compiled in a folder of their own."""
    numba.config.CACHE_DIR = str(cache)
    for kernels in (scan_kernels, conv_kernels):
        importlib.reload(kernels)
    start = time.process_time()
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 70, 70)] * 3 + [(70, 16)] + [(3, 70, 16)] * 2 + [(70,)] * 2 + [(70, 4)]
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    u, delta, z, A, B, C, D, bias, taps = leaves
    convolved = causal_conv1d(u, taps, bias, activation="silu", backend="cpu")
    y = selective_scan(convolved, delta, -A.exp(), B, C, D, z, bias, delta_softplus=True, backend="cpu")
    found = (convolved, y, *torch.autograd.grad((y * y).sum(), leaves))
    print(time.process_time() - start)
    for result in found:
        print(hashlib.sha256(result.detach().numpy().tobytes()).hexdigest())


class TestCompilation:
    @pytest.mark.slow
    def test_the_next_process_finds_it_done_and_computes_the_same_bits(self, tmp_path):
        cache, said, kept = tmp_path / "cache", [], []
        for name in ("cold", "warm"):
            status, lines = forks.finish(tmp_path / name, compute, cache)
            assert status == 0, lines
            said.append(lines.splitlines())
            kept.append(sorted(cache.rglob("*.nb*")))
        (compiled, *cold), (found, *warm) = said
        assert kept[0] == kept[1]
        assert any(path.suffix == ".nbc" for path in kept[0])
        assert float(found) < float(compiled) / 2
        assert warm == cold

    def test_without_numba_it_says_so(self, monkeypatch):
        cpu._kernels.cache_clear()
        monkeypatch.delitem(sys.modules, "seqlab.ops.selective_scan.cpu_kernels")
        monkeypatch.delattr(sys.modules["seqlab.ops.selective_scan"], "cpu_kernels")
        monkeypatch.setitem(sys.modules, "numba", None)
        reason = cpu.why_unavailable(torch.device("cpu"), torch.float32)
        monkeypatch.undo()
        cpu._kernels.cache_clear()
        assert reason.startswith("numba cannot be imported (")
        assert cpu.why_unavailable(torch.device("cpu"), torch.float32) is None

    def test_other_devices_and_dtypes_are_refused(self):
        assert cpu.why_unavailable(torch.device("cuda"), torch.float32) == "it runs on the CPU, not on cuda"
        assert "float64" in cpu.why_unavailable(torch.device("cpu"), torch.float64)
