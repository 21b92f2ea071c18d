"""The benchmark of the mixture of experts, at sizes that take no time."""

import json

import pytest
import torch

from seqlab.benchmarks import experts
from seqlab.commands import benchmark_experts as benchmark
from seqlab.models import auxiliary_losses
from seqlab.models.mixture_of_experts import MixtureOfExperts

TINY = ["--tokens", "16", "--width", "8", "--d-ff", "24", "--rounds", "2", "--least", "0", "--device", "cpu"]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_figures_and_ratios(tmp_path, capsys, precision):
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


def test_both_compute_the_same():
    """Else their times could not be compared."""
    x, found = torch.randn(30, 8, generator=torch.Generator().manual_seed(1)), []
    for kind in experts.LAYERS.values():
        torch.manual_seed(0)
        layer = kind(8, d_ff=24, dropout=0.0)
        y = layer(x)
        (y.square().sum() + auxiliary_losses(layer)).backward()
        found.append([y, *(p.grad for p in layer.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_whole_step_of_a_model(tmp_path, capsys):
    out = tmp_path / "step.json"
    arguments = ["--tokens", "8", "--rounds", "1", "--least", "0", "--device", "cpu"]
    assert benchmark.main([*arguments, "--model", "mamba_moe", "--size", "tiny", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["settings"] == {"tokens": 8, "model": "mamba_moe", "size": "tiny", "precision": "float32"}
    assert [row["layer"] for row in found["rows"]] == ["loop", "grouped"]
    assert "mamba_moe, size tiny" in " ".join(capsys.readouterr().out.split())


def test_both_models_compute_the_same():
    args = benchmark.parse(["--model", "transformer_moe", "--size", "tiny"])
    args.device = torch.device("cpu")
    tokens, outputs = torch.randint(10_000, (2, 9)), []
    for kind in experts.LAYERS.values():
        torch.manual_seed(0)
        model = experts.model_of(kind, args).eval()
        assert {type(part) for part in model.modules() if isinstance(part, MixtureOfExperts)} == {kind}
        outputs.append(model(tokens))
    torch.testing.assert_close(*outputs)
