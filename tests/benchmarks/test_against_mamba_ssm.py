"""The benchmark beside mamba_ssm: its options and its table. Measuring needs a GPU and the package."""

import sys

import pytest
import torch

import benchmark_against_mamba_ssm as script
from seqlab.benchmarks import peer
from seqlab.benchmarks.peer import Result
from seqlab.errors import UserError


@pytest.fixture
def with_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_needs_a_gpu_and_the_package(monkeypatch, with_gpu):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    with pytest.raises(UserError, match="mamba_ssm=none: is not installed"):
        script.parse([])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs a CUDA device"):
        script.parse([])


def test_tasks(monkeypatch, with_gpu):
    monkeypatch.setattr(script, "find_spec", lambda name: name)
    names = list(peer.tasks(script.parse(["--sizes", "small", "--prompts", "none", "--batch", "64", "--new", "9"])))
    assert names == [
        "training step, small, 32 x 256",
        "training step, small, 8 x 2,048",
        "9 tokens after 128, batch 64",
    ]
    assert len(peer.tasks(script.parse([]))) == 2 * 5 + 3 + 2


def test_the_table():
    row = peer.as_dict("prefill of 128", 128, Result(0.002, 10**9), Result(0.03, 2 * 10**9))
    made = peer.results_table({"rows": [row], "device_name": "a GPU"})
    cells = [next(column.cells).plain for column in made.columns]
    assert cells == ["prefill of 128", "2.00", "30.0", "64.0", "4.27", "15.0", "1,000", "2,000", "0.500"]
