"""The benchmark of the mixture of experts, at sizes that take no time."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch

from seqlab.models import auxiliary_losses

PATH = Path(__file__).parents[1] / "scripts" / "benchmark_experts.py"
TINY = ["--tokens", "16", "--width", "8", "--d-ff", "24", "--rounds", "2", "--least", "0", "--device", "cpu"]


@pytest.fixture
def benchmark() -> ModuleType:
    spec = spec_from_file_location("benchmark_experts", PATH)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_figures_and_ratios(benchmark, tmp_path, capsys, precision):
    out = tmp_path / "new" / "experts.json"
    assert benchmark.main([*TINY, "--precision", precision, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    loop, grouped = found["rows"]
    assert (loop["layer"], grouped["layer"], found["backend"]) == ("loop", "grouped", "grouped")
    assert grouped["tokens_per_second"] == pytest.approx(16 / grouped["seconds"])
    assert loop["times_the_loop"] == 1
    ratios = [slow / fast for slow, fast in zip(loop["samples"], grouped["samples"], strict=True)]
    assert min(ratios) <= grouped["times_the_loop"] <= max(ratios)
    assert "tokens/s" in capsys.readouterr().out


def test_both_compute_the_same(benchmark):
    """Else their times could not be compared."""
    x, found = torch.randn(30, 8, generator=torch.Generator().manual_seed(1)), []
    for kind in benchmark.LAYERS.values():
        torch.manual_seed(0)
        layer = kind(8, d_ff=24, dropout=0.0)
        y = layer(x)
        (y.square().sum() + auxiliary_losses(layer)).backward()
        found.append([y, *(p.grad for p in layer.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
