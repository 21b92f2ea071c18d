"""What a job changes in its process."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from seqlab.runs.process import free_memory, keep_memory

if {kept}:
    keep_memory()

def faults_of(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        tensors = [torch.zeros(10 * 2**20) for _ in range(4)]  # 40 MiB each
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

faults_of(3)
faults = faults_of(5)
held = resident()
free_memory()
print(faults, held - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts page faults as Linux does")
def test_memory_is_kept_from_step_to_step_and_given_back_after_the_job():
    def run(kept: bool) -> list[int]:
        command = [sys.executable, "-c", FAULTS.format(kept=kept)]
        return list(map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()))

    faults, given_back = run(kept=True)
    assert 5 * faults < run(kept=False)[0]
    assert given_back > 0.9 * 160 * 2**20 / os.sysconf("SC_PAGE_SIZE")
