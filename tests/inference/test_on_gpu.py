"""On a CUDA device: prefill and steps in every precision, a step as a CUDA graph, the benchmark."""

import json
import runpy
import sys

import pytest
import torch

from seqlab.benchmarks.timing import captured
from seqlab.inference.captured import why_not_captured
from seqlab.inference.generate import generate_tokens
from seqlab.inference.sampling import Sampling
from seqlab.models.counting import tensors_of
from seqlab.models.mixture_of_experts import MixtureOfExperts
from seqlab.runs.load import fresh_model
from seqlab.runs.process import reset_global_state
from support import ROOT, architectures, depth

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MODELS = architectures()
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Of the largest output: the whole and the steps round at other places. Where a router's second and third choice are
as near as that, a few tokens visit another expert."""
CUDA = torch.device("cuda")


def build(name: str, dtype: torch.dtype):
    reset_global_state(0)  # cuDNN's recurrent layers would take float32 for TensorFloat32
    return fresh_model(name, "tiny" if depth(name) == 2 else None, vocabulary=97, max_length=400).to(CUDA, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_pieces_and_steps_give_what_the_whole_gives(name, dtype):
    model = build(name, dtype)
    x = torch.randint(97, (2, 400), generator=torch.Generator().manual_seed(1)).to(CUDA)
    whole = model(x).float()
    y, state = model.prefill(x[:, :380], model.initial_state(2), every=True, chunk=100)
    outputs = [y]
    for position in range(380, 400):
        y, state = model.step(x[:, position], state)
        outputs.append(y[:, None])
    error = (torch.cat(outputs, dim=1).float() - whole).abs().amax(dim=-1)  # (B, L)
    within = (error <= TOLERANCE[dtype] * whole.abs().max()).float().mean()
    routed = any(isinstance(module, MixtureOfExperts) for module in model.modules())
    assert within >= (0.98 if routed and dtype != torch.float32 else 1.0), f"{1 - within:.1%} of the positions differ"


@pytest.mark.parametrize("name", ["mamba", "lstm", "transformer"])
@torch.no_grad()
def test_a_captured_step_is_the_step(name):
    """Replayed, it gives what the step gives from the state that it reads."""
    model = build(name, torch.bfloat16)
    x = torch.randint(97, (2, 33), device=CUDA)
    _, state = model.prefill(x, model.initial_state(2))
    _, state = model.step(x[:, 0], state)  # makes room
    kept = []

    def step() -> None:
        kept[:] = [model.step(x[:, 1], state)[0]]

    before = [tensor.clone() for tensor in tensors_of(state)]

    def begin() -> None:  # a step may write into its state
        for tensor, value in zip(tensors_of(state), before, strict=True):
            tensor.copy_(value)

    expected, _ = model.step(x[:, 1], state)
    replay = captured(step, CUDA)
    kept[0].fill_(torch.nan)
    begin()
    replay()
    torch.testing.assert_close(kept[0], expected)


@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(0.9, top_k=20, top_p=0.9)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["mamba", "mamba2", "min_gru", "lstm", "mlp", "transformer"])
@torch.no_grad()
def test_tokens_of_a_graph_are_those_of_steps(name, dtype, sampling):
    """Of three prompts one after the other, the last with another batch size; a graph serves the first two."""
    model = build(name, dtype)
    assert (why_not_captured(model) is None) == (name != "transformer")
    for batch, seed in ((2, 1), (2, 2), (3, 3)):
        prompt = torch.randint(97, (batch, 9), generator=torch.Generator().manual_seed(seed))
        found = torch.stack(list(generate_tokens(model, prompt, sampling, max_new_tokens=40, seed=seed)))
        generator = torch.Generator().manual_seed(seed)
        logits, state = model.prefill(prompt.to(CUDA), model.initial_state(batch))
        for token in found:
            assert torch.equal(token, sampling.draw(logits, generator).cpu())
            logits, state = model.step(token.to(CUDA), state)


@torch.no_grad()
def test_a_graph_is_of_the_weights_as_they_are():
    """Weights loaded in place are read; a model moved to another dtype gets a graph of its own."""
    model, prompt = build("mamba", torch.float32), torch.zeros(1, 3, dtype=torch.int64)

    def greedy() -> list[int]:
        return [int(token) for token in generate_tokens(model, prompt, Sampling(0), max_new_tokens=30, seed=0)]

    first = greedy()
    reset_global_state(1)
    other = fresh_model("mamba", "tiny", vocabulary=97, max_length=400)
    model.load_state_dict(other.state_dict())
    assert greedy() != first
    model.load_state_dict(build("mamba", torch.float32).state_dict())
    assert greedy() == first
    model.to(torch.bfloat16)
    assert len(greedy()) == 30


def test_the_benchmark(monkeypatch, tmp_path, capsys):
    script = ROOT / "scripts" / "benchmark_inference.py"
    arguments = ["--device", "cuda", "--contexts", "64:512", "--size", "tiny", "--budget", "0.01"]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(script), run_name="__main__")
    assert exit_info.value.code == 0
    results = json.loads((tmp_path / "inference.json").read_text())
    assert [curve["model"] for curve in results["curves"]] == ["mamba", "transformer", "lstm"]
    for curve in results["curves"]:
        assert curve["ended"] is None and curve["no_graph"] is None
        for point in curve["points"]:
            assert 0 < point["graph_token_ms"] < point["token_ms"]
            assert point["peak_bytes"] > point["state_bytes"]
    assert "graph" in capsys.readouterr().out
