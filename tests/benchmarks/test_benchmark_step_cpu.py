"""The benchmark of a training step, at sizes that take no time."""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "scripts" / "benchmark_step_cpu.py"
TINY = ["--batch", "2", "--length", "8", "--width", "16", "--rounds", "2", "--least", "0"]


@pytest.fixture
def benchmark():
    spec = spec_from_file_location("benchmark_step_cpu", PATH)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_and_ratios(benchmark, tmp_path, capsys):
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


def test_mambapy_is_left_out_where_it_is_missing(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "find_spec", lambda name: None)
    assert benchmark.main([*TINY, "--models", "mamba,mambapy"]) == 0
    shown = capsys.readouterr()
    assert "mambapy left out: it is not installed (pip install mambapy)" in shown.out + shown.err


def test_an_unknown_model_is_refused(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--models", "mamba3"])
    assert "'mamba3' is none of mamba, mambapy, transformer" in capsys.readouterr().err


def test_the_profile_names_operations(benchmark, capsys):
    if sys.platform == "win32":
        pytest.skip("the profiler needs Linux or macOS")
    assert benchmark.main([*TINY, "--models", "mamba", "--profile"]) == 0
    assert "aten::" in capsys.readouterr().out
