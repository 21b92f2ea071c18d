"""Prefill and steps give what the whole gives, for every model found by glob; what a state weighs."""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from seqlab.errors import UserError
from seqlab.models import SequenceModel, state_bytes
from seqlab.models.counting import bytes_of, tensors_of
from seqlab.models.layer import prefill_mixer
from seqlab.models.mixers import Attention, softmax
from seqlab.models.mixers import cache as kv_cache
from seqlab.models.sequence_model import chunk_length
from support import architectures, compose_config, depth, skip_where_refused

MODELS = architectures()
D_MODEL, LAYERS, LENGTH, D_INPUT = 16, 2, 41, 11
SMALLEST = [f"size.d_model={D_MODEL}", "size.n_heads=2", "size.d_ff=40"]


@cache
def config(name: str, *overrides: str) -> DictConfig:
    own = [f"model={name}", f"size.n_layers={depth(name)}", "model.embedding_std=1.0"]
    return compose_config(*own, *SMALLEST, *overrides)


def build(name: str, *overrides: str, tokens: bool = True) -> SequenceModel:
    torch.manual_seed(0)
    cfg = config(name, *overrides)
    model = instantiate(cfg.model, tokens=tokens, d_input=D_INPUT, d_output=D_INPUT, max_length=LENGTH, _convert_="all")
    return model.eval()


def inputs(*, tokens: bool = True, length: int = LENGTH) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if tokens:
        return torch.randint(D_INPUT, (3, length), generator=generator)
    return torch.randn(3, length, D_INPUT, generator=generator)


def close(actual: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    """Within rounding of the largest number about."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("name", MODELS)
class TestEveryModel:
    def test_pieces_and_steps_give_what_the_whole_gives(self, name, tokens):
        """A prompt in pieces of odd sizes, steps after it, then a piece and steps again."""
        model, x = build(name, tokens=tokens), inputs(tokens=tokens)
        state, outputs = model.initial_state(len(x)), []
        for start, end in ((0, 1), (1, 14), (14, 16)):
            y, state = model.prefill(x[:, start:end], state, every=True)
            outputs.append(y)
        for position in range(16, 25):
            y, state = model.step(x[:, position], state)
            outputs.append(y[:, None])
        y, state = model.prefill(x[:, 25:40], state, every=True)
        outputs.append(y)
        y, state = model.step(x[:, 40], state)
        outputs.append(y[:, None])
        assert state.position == LENGTH
        with torch.no_grad():
            close(torch.cat(outputs, dim=1), model(x))

    def test_the_last_outputs_alone(self, name, tokens):
        model, x = build(name, tokens=tokens), inputs(tokens=tokens)
        with torch.no_grad():
            whole = model(x)
        for chunk, read in ((4096, 40), (8, 40), (1, 7)):
            last, state = model.prefill(x[:, :read], model.initial_state(3), chunk=chunk)
            after, _ = model.step(x[:, read], state)
            close(torch.stack([last, after], dim=1), whole[:, read - 1 : read + 1])

    @torch.no_grad()
    def test_outputs_at_some_places(self, name, tokens):
        model, x = build(name, tokens=tokens), inputs(tokens=tokens)
        places = torch.tensor([3, LENGTH - 1, LENGTH, 2 * LENGTH + 5])
        expected = model(x).flatten(0, 1)[places]
        close(model(x, places), expected)
        close(model.prefill(x, model.initial_state(3), places=places, chunk=8)[0], expected)

    def test_under_autocast(self, name, tokens):
        """The precision of a bf16 run: what the whole gives there, as near as it comes to float32."""
        model, x = build(name, tokens=tokens), inputs(tokens=tokens)
        skip_where_refused(model, "bf16")
        with torch.no_grad():
            exact = model(x)
            with torch.autocast("cpu", torch.bfloat16):
                whole = model(x).float()
                first, state = model.prefill(x[:, :20], model.initial_state(3), every=True)
                outputs = [first.float()]
                for position in range(20, LENGTH):
                    y, state = model.step(x[:, position], state)
                    outputs.append(y[:, None].float())
        error = (whole - exact).abs().max()
        assert (torch.cat(outputs, dim=1) - exact).abs().max() <= 2 * error


@pytest.mark.parametrize("name", MODELS)
def test_windows_that_carry_the_state_are_the_whole(name):
    """Values, and gradients of the second window with the state before it held as it is, by differences."""
    without = [] if config(name).model.positions == "none" else ["model.positions=none"]
    model, x = build(name, *without).double(), inputs(length=14)
    first, state = model.carry(x[:, :7], model.carried_state(3, 7))
    second, after = model.carry(x[:, 7:], state)
    y = torch.cat((first, second), dim=1).detach()
    close(y, model.hidden(x).detach(), tolerance=2e-7)  # cosines of rotary positions are float32
    assert not any(tensor.requires_grad for tensor in tensors_of((state, after)))
    parameters = [*model.embed.parameters(), *model.layers.parameters()]
    random = torch.Generator().manual_seed(2)
    directions = [torch.randn(p.shape, dtype=p.dtype, generator=random) for p in parameters]
    weights = torch.randn(second.shape, dtype=y.dtype, generator=random) / second.numel()
    gradients = torch.autograd.grad((second * weights).sum(), parameters)
    slope, values = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)), []
    with torch.no_grad():
        for shift in (1e-6, -2e-6):
            for p, d in zip(parameters, directions, strict=True):
                p += shift * d
            values.append((model.carry(x[:, 7:], state)[0] * weights).sum())
    close((values[0] - values[1]) / 2e-6, slope, tolerance=1e-8)
    before = tensors_of(model.carried_state(3, 7))
    assert [tensor.shape for tensor in tensors_of(after)] == [tensor.shape for tensor in before]
    assert all(len(tensor) == 3 for tensor in before)


@pytest.mark.parametrize("name", MODELS)
def test_prefill_keeps_no_graph(name):
    model, x = build(name), inputs()
    y, state = model.prefill(x, model.initial_state(3))
    after, _ = model.step(x[:, 0], model.initial_state(3))
    assert not any(tensor.requires_grad for tensor in (y, after, *tensors_of(state)))


@pytest.mark.parametrize("name", MODELS)
def test_a_long_prompt_is_read_in_pieces(name):
    """No part of the model sees more positions at once, and the head sees the last alone."""
    model, x = build(name), inputs()
    seen = {"embed": [], "head": []}
    for part, lengths in seen.items():
        getattr(model, part).register_forward_hook(
            lambda module, args, output, lengths=lengths: lengths.append(output.shape[1:-1].numel())
        )
    model.prefill(x, model.initial_state(3), chunk=16)
    assert seen == {"embed": [16, 16, 9], "head": [1]}


def test_pieces_are_of_so_many_tokens_on_a_gpu():
    """As many in all sequences together."""
    assert [chunk_length(batch, torch.device("cuda", 1)) for batch in (1, 3, 64, 100_000)] == [32_768, 10_922, 512, 1]
    assert chunk_length(1, torch.device("cpu")) == chunk_length(64, torch.device("cpu")) == 4096


class TestAttention:
    """The cache grows in place."""

    def mixer(self) -> Attention:
        torch.manual_seed(0)
        return Attention(D_MODEL, n_heads=2).eval()

    @pytest.mark.parametrize("spare", [1, 3, 256])
    @torch.no_grad()
    def test_growing_changes_nothing(self, monkeypatch, spare):
        monkeypatch.setattr(kv_cache, "SPARE", spare)
        mixer, x = self.mixer(), torch.randn(2, 60, D_MODEL)
        state, outputs = mixer.initial_state(2), []
        for position in x.unbind(dim=1):
            y, state = mixer.step(position, state)
            outputs.append(y)
        close(torch.stack(outputs, dim=1), mixer(x))

    @torch.no_grad()
    def test_a_step_copies_no_cache(self):
        """2,000 steps move it a few times, and the room in it stays a small part."""
        mixer = self.mixer()
        _, state = mixer.prefill(torch.randn(1, 3000, D_MODEL), mixer.initial_state(1))
        assert state.k.shape[2] == 3000  # no more than there is, while nothing was continued
        places = []
        for _ in range(2000):
            _, state = mixer.step(torch.randn(1, D_MODEL), state)
            places.append(state.k.data_ptr())
        assert state.length == 5000
        assert sum(a != b for a, b in pairwise(places)) <= 5
        assert state.k.shape[2] <= 5000 * 1.2

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_the_last_positions_against_a_mask(self, dtype):
        """Against attention written out with an explicit mask, in float64."""
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(2, 3, n, 8, generator=generator, dtype=torch.float64) for n in (5, 12, 12))
        scores = (q @ k.mT / 8**0.5).masked_fill(~torch.ones(5, 12, dtype=torch.bool).tril(7), -torch.inf)
        y = softmax.attend_last(*(part.to(dtype) for part in (q, k, v)))
        assert y.dtype == dtype
        tolerance = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2e-2}[dtype]
        close(y.double(), scores.softmax(dim=-1) @ v, tolerance)

    def test_a_long_prompt_in_blocks(self, monkeypatch):
        """Of 64, 64 and 22 positions, in place of one call that nothing could interrupt."""
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(2, 3, n, 8, generator=generator) for n in (150, 220, 220))
        whole, calls = softmax.attend_last(q, k, v), []
        one_call = softmax.attend_last
        monkeypatch.setattr(softmax, "PAIRS", 1)
        monkeypatch.setattr(softmax, "attend_last", lambda q, k, v: calls.append(q.shape[2]) or one_call(q, k, v))
        close(softmax.attend_last(q, k, v), whole, 1e-6)
        assert calls == [150, 64, 64, 22]


class RunningSum(nn.Module):
    """A mixer that has ``step`` alone, as in the README's example."""

    def __init__(self, d_model: int):
        super().__init__()
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(x.cumsum(dim=1))

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        return {"total": self.out_proj.weight.new_zeros(batch_size, self.out_proj.in_features)}

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        total = state["total"] + x
        return self.out_proj(total), {"total": total}


def hybrid() -> SequenceModel:
    """A mixer without ``prefill`` between two others."""
    torch.manual_seed(0)
    mixers = {"sum": RunningSum, "attention": lambda d_model: Attention(d_model, n_heads=2)}
    settings = {"d_model": D_MODEL, "n_layers": 3, "pattern": ["attention", "sum", "attention"], "mixers": mixers}
    return SequenceModel(tokens=True, d_input=D_INPUT, d_output=D_INPUT, max_length=LENGTH, **settings).eval()


class TestAMixerWithoutPrefill:
    @torch.no_grad()
    def test_takes_steps(self):
        mixer, x = RunningSum(4), torch.randn(2, 7, 4)
        y, state = prefill_mixer(mixer, x, mixer.initial_state(2))
        close(y, mixer(x))
        close(state["total"], x.sum(dim=1))

    @torch.no_grad()
    def test_in_a_hybrid(self):
        model, x = hybrid(), inputs()
        y, _ = model.prefill(x, model.initial_state(3), every=True, chunk=10)
        close(y, model(x))
        attention_bytes, sum_bytes = 2 * 100 * D_MODEL * 4, D_MODEL * 4
        assert state_bytes(model, 100) == 2 * attention_bytes + sum_bytes


@pytest.mark.parametrize("watches", [False, True])
def test_a_head_of_another_kind_or_with_a_hook_is_called(monkeypatch, watches):
    model, token = build("mamba"), inputs()[:, 0]
    if watches:
        model.head.register_forward_hook(lambda head, given, output: output.exp())
    else:
        model.head = nn.Sequential(model.head, nn.LogSoftmax(-1))
    expected = model(token[:, None])[:, 0].detach()
    monkeypatch.setattr("seqlab.ops.decoding.can_run", lambda *_: True)
    monkeypatch.setattr("seqlab.ops.decoding.norm_linear", None)
    for layer in model.layers:
        monkeypatch.setattr(layer.mixer.inner, "step_in_residual", lambda *_: None)
    close(model.step(token, model.initial_state(len(token)))[0], expected)


def test_learned_positions_end():
    model, x = build("transformer_vanilla"), inputs(length=LENGTH + 1)
    with pytest.raises(UserError, match=rf"sequence of {LENGTH + 1} is past the {LENGTH} positions"):
        model.prefill(x, model.initial_state(3))
    _, state = model.prefill(x[:, :-1], model.initial_state(3))
    with pytest.raises(UserError, match=rf"sequence of {LENGTH + 1} is past"):
        model.step(x[:, -1], state)


def test_sinusoidal_positions_do_not_end():
    """At a place past the longest window they are the formula, and steps go on counting where prefill stopped."""
    model = build("transformer_vanilla", "model.positions=sinusoidal")
    angles = [(LENGTH + 3) / 10_000 ** (i / D_MODEL) for i in range(0, D_MODEL, 2)]
    expected = torch.tensor([2**0.5 * f(angle) for angle in angles for f in (math.sin, math.cos)])
    close(model.positions.at(LENGTH + 3, LENGTH + 4, model.embed.weight)[0], expected, tolerance=1e-5)
    x = inputs(length=LENGTH + 5)
    y, state = model.prefill(x[:, :-1], model.initial_state(3), every=True)
    last, _ = model.step(x[:, -1], state)
    close(torch.cat((y, last[:, None]), dim=1), model(x).detach())


def mamba_bytes(size: int, layers: int = LAYERS) -> int:
    """E N numbers of the scan, in float32, and the K - 1 last inputs of the convolution."""
    inner, d_state, d_conv = 2 * D_MODEL, 16, 4
    return layers * (inner * d_state * 4 + inner * (d_conv - 1) * size)


BYTES = {  # by hand: of one sequence, for numbers of this size, after n positions
    "mamba": lambda size, n: mamba_bytes(size),
    "transformer": lambda size, n: LAYERS * 2 * n * D_MODEL * size,
    "transformer_vanilla": lambda size, n: LAYERS * 2 * n * D_MODEL * size,
    "self_attention": lambda size, n: 2 * n * D_MODEL * size,
    "transformer_window": lambda size, n: LAYERS * 2 * min(n, 64) * D_MODEL * size,
    "hybrid": lambda size, n: mamba_bytes(size, 3) + 2 * n * D_MODEL * size,
    "lstm": lambda size, n: LAYERS * 2 * D_MODEL * size,
    "gru": lambda size, n: LAYERS * D_MODEL * size,
    "min_gru": lambda size, n: LAYERS * 2 * D_MODEL * 4,
    "delta_net": lambda size, n: LAYERS * (2 * 8 * 8 * 4 + 3 * 48 * size),
    "gated_delta_net": lambda size, n: LAYERS * (2 * 6 * 12 * 4 + 3 * 48 * size),
    "kimi_delta": lambda size, n: LAYERS * (2 * 8 * 8 * 4 + 3 * 48 * size),
    "gated_delta_net2": lambda size, n: LAYERS * (2 * 8 * 8 * 4 + 3 * 48 * size),
    "mlstm": lambda size, n: LAYERS * 2 * (4 * 8 + 4 + 1) * 4,
    "m2rnn": lambda size, n: LAYERS * (64 * 16 * 4 + 3 * 144 * size),
    "mlp": lambda size, n: 0,
    "linear": lambda size, n: 0,
}


class TestStateBytes:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("name", sorted(BYTES))
    def test_by_hand(self, name, dtype):
        model = build(name).to(dtype)
        for length in (1, 5, 40, 100):
            assert state_bytes(model, length) == BYTES[name](dtype.itemsize, length)

    @pytest.mark.parametrize("name", MODELS)
    def test_is_what_the_tensors_hold(self, name):
        model = build(name)
        _, state = model.prefill(inputs(), model.initial_state(3))
        assert bytes_of(state) == 3 * state_bytes(model, LENGTH)

    def test_leaves_the_model_alone(self):
        model = build("lstm")
        before = {name: (p.data_ptr(), p.device.type) for name, p in model.named_parameters()}
        state_bytes(model, 1000)
        assert before == {name: (p.data_ptr(), p.device.type) for name, p in model.named_parameters()}

    def test_of_another_kind_of_model(self):
        assert state_bytes(nn.Linear(2, 2), 8) is None
