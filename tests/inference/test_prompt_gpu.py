"""On a CUDA device: prompts and steps as graphs are what they are without, and long prompts take linear memory."""

import gc
import weakref

import pytest
import torch
from torch import Tensor

from seqlab.inference.captured import Captured, graphs_of
from seqlab.inference.generate import generate_tokens
from seqlab.inference.prompt import prefill
from seqlab.inference.sampling import Sampling
from seqlab.models import SequenceModel
from seqlab.models.counting import tensors_of
from seqlab.models.sequence_model import TOKENS
from seqlab.runs.load import fresh_model
from seqlab.runs.process import reset_global_state
from support import depth

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")


def build(name: str, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> SequenceModel:
    reset_global_state(seed)
    return fresh_model(name, "tiny" if depth(name) == 2 else None, vocabulary=97, max_length=400).to(CUDA, dtype)


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(97, (batch, length), generator=torch.Generator().manual_seed(seed))


def read(model: SequenceModel, x: Tensor) -> tuple:
    """Without a graph."""
    return model.prefill(x.to(CUDA), model.initial_state(len(x)))


def differing(found: tuple, expected: tuple) -> list[int]:
    """Which of the tensors, outputs first, are not equal bit for bit."""
    pairs = zip(tensors_of(found), tensors_of(expected), strict=True)
    return [i for i, (a, b) in enumerate(pairs) if not torch.equal(a, b)]


def captured_prompts(model: SequenceModel) -> int:
    return sum(isinstance(graph, Captured) for graph in graphs_of(model)._values.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["mamba", "mamba2", "min_gru", "lstm", "gru", "mlp", "mamba_moe"])
@torch.no_grad()
def test_a_prompt_of_a_graph_is_the_prompt(name, dtype):
    """Lengths one apart, one sequence and three, four prompts of each; what they gave stays as it was."""
    model, given = build(name, dtype), []
    for seed in range(4):
        for batch, length in ((1, 1), (1, 127), (1, 128), (3, 128), (3, 65)):
            x = tokens(batch, length, seed)
            given.append((x, prefill(model, x)))
    assert captured_prompts(model) == 5
    for x, found in given:
        assert found[1].position == x.shape[1]
        assert not differing(found, read(model, x))


@torch.no_grad()
def test_models_whose_steps_differ_are_read_as_they_are():
    model, x = build("transformer"), tokens(1, 33)
    assert graphs_of(model) is None
    for _ in range(3):
        torch.testing.assert_close(prefill(model, x)[0], read(model, x)[0])


@torch.no_grad()
def test_a_prompts_graph_is_of_the_weights_as_they_are():
    model, x = build("mamba"), tokens(1, 50)
    for _ in range(3):
        before = prefill(model, x)
    model.load_state_dict(build("mamba", seed=1).state_dict())  # in place: the graph reads them
    assert differing(before, read(model, x)) and not differing(prefill(model, x), read(model, x))
    assert captured_prompts(model) == 1
    model.load_state_dict(build("mamba", seed=2).state_dict(), assign=True)
    assert captured_prompts(model) == 0
    for _ in range(3):
        assert not differing(prefill(model, x), read(model, x))
    model.to(torch.float32)
    for _ in range(3):
        assert not differing(prefill(model, x), read(model, x))
    with torch.autocast("cuda", torch.bfloat16):
        assert not differing(prefill(model, x), read(model, x))


@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(0.9, top_k=20)], ids=["greedy", "drawn"])
@torch.no_grad()
def test_generations_in_turn_do_not_meet(sampling):
    model = build("mamba", torch.float32)
    prompts = [tokens(1, length, seed) for seed, length in enumerate((9, 9, 10, 9))]

    def begun() -> list:
        return [generate_tokens(model, x, sampling, max_new_tokens=40, seed=i) for i, x in enumerate(prompts)]

    alone = [torch.cat(list(generation)) for generation in begun()]
    for _ in range(2):
        together = torch.stack([torch.cat(row) for row in zip(*begun(), strict=True)], dim=1)  # (generation, token)
        assert all(map(torch.equal, together, alone))
    assert len({tuple(row.tolist()) for row in alone}) > 1


@torch.no_grad()
def test_a_model_takes_its_graphs_along():
    model = build("mamba")
    for _ in range(3):
        prefill(model, tokens(1, 64))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["mamba", "mamba2", "transformer", "transformer_window", "transformer_moe"])
@torch.no_grad()
def test_a_long_prompt_takes_linear_memory(name, dtype):
    """One piece of as many tokens as are read at a time, a second behind it, and a quarter of one."""
    model = build(name, dtype)

    def peak(length: int) -> int:
        x = torch.zeros(1, length, dtype=torch.int64, device=CUDA)
        state = model.initial_state(1)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model.prefill(x, state)
        return torch.cuda.max_memory_allocated() - before

    peak(2 * TOKENS)  # tables of positions
    quarter, one, two = peak(TOKENS // 4), peak(TOKENS), peak(2 * TOKENS)
    assert one < 4.5 * quarter
    assert two < 2 * one  # the pieces share memory for activations, not the keys and values


@pytest.mark.parametrize("dtype, width", [(torch.float64, 8), (torch.float32, 6)])
@torch.no_grad()
def test_attention_without_a_fused_kernel_holds_few_scores(monkeypatch, dtype, width):
    from seqlab.models.mixers import softmax

    generator = torch.Generator(CUDA).manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 700, width, generator=generator, device=CUDA, dtype=dtype)
    for before in (0, 300):
        whole = softmax.attend_last(q[:, :, before:], k, v)
        with monkeypatch.context() as fewer:
            fewer.setattr(softmax, "PAIRS", 2 * 2 * 700 * 100)
            torch.testing.assert_close(softmax.attend_last(q[:, :, before:], k, v), whole)
