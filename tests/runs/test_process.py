"""What a job changes in its process."""

import os
import resource
import sys
from pathlib import Path

import pytest
import torch

import forks
from seqlab.runs.process import default_threads, free_memory, keep_memory


def resident() -> int:
    """Pages of the process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1])


def faults_of(steps: int) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        tensors = [torch.zeros(10 * 2**20) for _ in range(4)]  # 40 MiB each
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def print_faults(kept: bool) -> None:
    """Of some steps, and how many pages are given back at the end."""
    if kept:
        keep_memory()
    faults_of(3)
    faults = faults_of(5)
    held = resident()
    free_memory()
    print(faults, held - resident())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts page faults as Linux does")
def test_memory_is_kept_from_step_to_step_and_given_back_after_the_job(tmp_path):
    def run(kept: bool) -> list[int]:
        status, said = forks.finish(tmp_path / f"kept {kept}", print_faults, kept)
        assert status == 0, said
        return list(map(int, said.split()))

    faults, given_back = run(kept=True)
    assert 5 * faults < run(kept=False)[0]
    assert given_back > 0.9 * 160 * 2**20 / os.sysconf("SC_PAGE_SIZE")


def test_threads_are_no_more_than_openmp_is_given(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)  # as in joblib's processes, from MKL_NUM_THREADS
    assert [default_threads(given) for given in ("1", "3,2", "16", "", "all", "0")] == [1, 3, 5, 5, 5, 5]
