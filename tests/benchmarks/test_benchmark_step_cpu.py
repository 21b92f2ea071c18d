"""The benchmark of a training step, at sizes that take no time."""

import json
import sys

import pytest

from seqlab.benchmarks import step
from seqlab.commands import benchmark_step_cpu as benchmark

TINY = ["--batch", "2", "--length", "8", "--width", "16", "--rounds", "2", "--least", "0"]


def test_figures_and_ratios(tmp_path, capsys):
    out = tmp_path / "new" / "step.json"
    assert benchmark.main([*TINY, "--models", "mamba,transformer", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    mamba, transformer = found["rows"]
    assert [row["model"] for row in found["rows"]] == ["mamba", "transformer"]
    assert mamba["tokens_per_second"] == pytest.approx(16 / mamba["seconds"])
    assert mamba["mamba_is_faster_by"] == 1
    ratios = [slow / fast for slow, fast in zip(transformer["samples"], mamba["samples"], strict=True)]
    assert min(ratios) <= transformer["mamba_is_faster_by"] <= max(ratios)
    assert "tokens/s" in capsys.readouterr().out


def test_mambapy_is_left_out_where_it_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(step, "find_spec", lambda name: None)
    assert benchmark.main([*TINY, "--models", "mamba,mambapy"]) == 0
    shown = capsys.readouterr()
    assert "mambapy left out: it is not installed (pip install mambapy)" in shown.out + shown.err


def test_an_unknown_model_is_refused(capsys):
    assert benchmark.main(["--models", "mamba3"]) == 2
    assert "--models=mamba3: is not among the names" in (err := capsys.readouterr().err)
    assert "Choose from mamba, mambapy, transformer" in err


def test_the_profile_names_operations(capsys):
    if sys.platform == "win32":
        pytest.skip("the profiler needs Linux or macOS")
    assert benchmark.main([*TINY, "--models", "mamba", "--profile"]) == 0
    assert "aten::" in capsys.readouterr().out
