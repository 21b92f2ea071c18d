"""Which steps and prompts become CUDA graphs, and whose memory they use; here a plain call stands in for a graph."""

import pytest
import torch
from torch import Tensor

from seqlab.inference import captured, prompt, steps
from seqlab.inference.captured import MOST_GRAPHS, copy_into, graphs_of
from seqlab.inference.generate import generate_tokens
from seqlab.inference.prompt import prefill
from seqlab.inference.sampling import Sampling
from seqlab.models import SequenceModel
from seqlab.models.counting import tensors_of
from support import built_model

VOCABULARY = 23
CAPTURED = ["mamba", "mamba2", "min_gru", "lstm", "mlp"]
GREEDY, DRAWN = Sampling(0), Sampling(0.9, top_k=9)


def build(name: str = "mamba") -> SequenceModel:
    sizes = "size.d_model=16", "size.n_heads=2", "size.d_ff=40", "size.n_layers=2", "model.embedding_std=1.0"
    return built_model(f"model={name}", *sizes, d_input=VOCABULARY, length=40).eval()


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def captures(monkeypatch) -> list[str]:
    """What was captured, a name each. As in a graph, nothing is computed before the first replay."""
    found = []

    def recorded(function, inputs):
        found.append(function.func.__name__.strip("_"))
        outputs = function(*inputs)
        for tensor in tensors_of(outputs):
            tensor.fill_(torch.nan)
        return lambda: copy_into(tensors_of(outputs), tensors_of(function(*inputs))), outputs

    monkeypatch.setattr(captured, "recorded", recorded)
    monkeypatch.setattr(captured, "why_not_captured", lambda model: None)
    monkeypatch.setattr(steps, "sent", Tensor.clone)
    monkeypatch.setattr(steps, "arrived", lambda token: token)
    return found


def same(found: tuple, expected: tuple) -> bool:
    """Whether outputs and states are equal bit for bit."""
    assert found[1].position == expected[1].position
    return all(map(torch.equal, tensors_of(found), tensors_of(expected)))


def read(model: SequenceModel, x: Tensor) -> tuple:
    return model.prefill(x, model.initial_state(len(x)))


def generated(model: SequenceModel, x: Tensor, sampling: Sampling, count: int, seed: int) -> list[Tensor]:
    """Token for token by the model's own prefill and steps."""
    generator, found = torch.Generator().manual_seed(seed), []
    logits, state = read(model, x)
    for _ in range(count):
        found.append(sampling.draw(logits, generator))
        logits, state = model.step(found[-1], state)
    return found


class TestPrompts:
    @pytest.mark.parametrize("name", CAPTURED)
    def test_are_captured_the_second_time(self, captures, name):
        model = build(name)
        for seed, count in enumerate((0, 1, 1, 1)):
            x = tokens(3, 7, seed)
            assert same(prefill(model, x), read(model, x))
            assert captures == ["read"] * count

    def test_keep_what_they_gave(self, captures):
        model = build()
        given = [prefill(model, tokens(1, 7, seed)) for seed in range(4)]
        assert all(same(found, read(model, tokens(1, 7, seed))) for seed, found in enumerate(given))
        places = [tensor.data_ptr() for found in given for tensor in tensors_of(found)]
        assert len(set(places)) == len(places)

    def test_of_each_shape_on_its_own(self, captures):
        model, shapes = build(), [(1, 7), (1, 8), (3, 7), (7, 1)]
        for _ in range(3):
            for shape in shapes:
                assert same(prefill(model, tokens(*shape)), read(model, tokens(*shape)))
        assert len(captures) == len(shapes)

    def test_the_least_recently_read_goes_first(self, captures):
        model, favourite = build(), tokens(1, 1)
        for length in range(2, 30):  # each once
            prefill(model, tokens(1, length))
            prefill(model, favourite)
        assert len(captures) == 1
        for length in (*range(2, 2 + MOST_GRAPHS), 1):
            prefill(model, tokens(1, length))
        assert len(captures) == 1  # it came too long ago, and so did all others

    def test_long_ones_are_read_as_they_are(self, captures, monkeypatch):
        monkeypatch.setattr(prompt, "MOST_TOKENS", 21)
        model = build()
        for _ in range(3):
            prefill(model, tokens(2, 11))
        assert not captures
        for _ in range(3):
            prefill(model, tokens(3, 7))
        assert len(captures) == 1

    def test_of_weights_elsewhere_are_captured_anew(self, captures):
        model, x = build(), tokens(1, 7)
        for count in (1, 2):
            model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
            for _ in range(3):
                assert same(prefill(model, x), read(model, x))
            assert len(captures) == count

    def test_features(self, captures):
        torch.manual_seed(0)
        sizes = {"tokens": False, "d_input": 3, "d_output": 2, "max_length": 9, "d_model": 4, "n_layers": 0}
        model = SequenceModel(**sizes, pattern=[], mixers={}).eval()
        for _ in range(3):
            x = torch.randn(2, 5, 3)
            assert same(prefill(model, x), read(model, x))
        assert len(captures) == 1

    def test_of_inference_mode_go_on_outside_of_it(self, captures):
        model, x = build(), tokens(1, 7)
        with torch.inference_mode():
            for _ in range(2):
                first = list(generate_tokens(model, x, GREEDY, max_new_tokens=5, seed=0))
        assert sorted(captures) == ["advance", "read"]
        assert first == list(generate_tokens(model, x, GREEDY, max_new_tokens=5, seed=0))
        assert len(captures) == 2


class TestSteps:
    @pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
    @pytest.mark.parametrize("name", CAPTURED)
    def test_one_graph_after_another_prompt(self, captures, name, sampling):
        model = build(name)
        for seed in range(3):
            x = tokens(3, 7 + seed, seed)
            found = list(generate_tokens(model, x, sampling, max_new_tokens=9, seed=seed))
            assert all(map(torch.equal, found, generated(model, x, sampling, 9, seed)))
        assert captures == ["advance"]

    @pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
    def test_generations_in_turn_do_not_meet(self, captures, sampling):
        """Three at a time, a token each, and three more; one graph is kept for those who come later."""
        model = build()
        for _ in range(2):
            prompts = [tokens(1, 7, seed) for seed in range(3)]
            together = [generate_tokens(model, x, sampling, max_new_tokens=9, seed=i) for i, x in enumerate(prompts)]
            found = zip(*zip(*together, strict=True), strict=True)
            for i, (x, row) in enumerate(zip(prompts, found, strict=True)):
                assert all(map(torch.equal, row, generated(model, x, sampling, 9, i)))
        assert captures.count("read") == 1 and captures.count("advance") == 3 + 2

    def test_one_that_is_left_gives_its_graph_back(self, captures):
        model, x = build(), tokens(1, 7)
        for _ in range(3):
            begun = generate_tokens(model, x, GREEDY, max_new_tokens=9, seed=0)
            next(begun)
            del begun
        assert captures.count("advance") == 1

    def test_one_token_needs_none(self, captures):
        assert len(list(generate_tokens(build(), tokens(1, 7), GREEDY, max_new_tokens=1, seed=0))) == 1
        assert not captures


def test_none_on_a_cpu_and_under_autocast(captures, monkeypatch):
    model = build()
    assert graphs_of(model) is graphs_of(model) is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert graphs_of(model) is None
    monkeypatch.undo()
    assert graphs_of(build()) is None


def test_a_model_takes_its_graphs_along(captures):
    model = build()
    graphs_of(model)
    before = len(captured._graphs)
    del model
    assert len(captured._graphs) == before - 1
