"""The adapter for flash-linear-attention's layers: against a small library of the same shape, and against the real one.

The stand-in has the real library's calling conventions, one layer (linear attention behind a short convolution, by
plain loops) and a cache; the real one is tested where it is installed.
"""

import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from seqlab.errors import UserError
from seqlab.models import SequenceModel, state_bytes
from seqlab.models.counting import bytes_of, mixer_state_bytes, training_flops
from seqlab.models.mixers.fla import FlaLayer
from support import built_model, compose_config, options

D_MODEL, HEADS, LENGTH, VOCABULARY = 16, 2, 23, 11
NAMES = [name for name in options("model") if name.startswith("fla_")]


class ToyCache:
    """A list of dictionaries, one a layer."""

    def __init__(self, seen_tokens: int):
        self.states, self.seen = [], seen_tokens

    @classmethod
    def from_legacy_cache(cls, past_key_values=None, seen_tokens=0):
        cache = cls(seen_tokens)
        cache.states = [dict(state) for state in past_key_values or ()]
        return cache

    def __len__(self):
        return len(self.states)

    def __getitem__(self, layer_idx):
        return self.states[layer_idx]

    def update(self, layer_idx=0, offset=1, **parts):
        if len(self) <= layer_idx:
            self.states.append({})
        self.states[layer_idx].update(parts)
        self.seen += offset


class ToyAttention(nn.Module):
    """S_t = S_{t-1} + k_t v_t', o_t = S_t' q_t, of inputs that a convolution of width 3 went over."""

    def __init__(self, hidden_size=8, head_dim=4, num_heads=2, mode="chunk", layer_idx=None, **kwargs):
        super().__init__()
        if mode == "broken":
            raise AssertionError("Not supported mode `broken`.")
        self.num_heads, self.head_k_dim, self.head_v_dim, self.layer_idx = num_heads, head_dim, head_dim, layer_idx
        self.mode = mode
        self.conv = nn.Conv1d(hidden_size, hidden_size, 3, groups=hidden_size, bias=False)
        self.in_proj = nn.Linear(hidden_size, 3 * num_heads * head_dim)
        self.scale = nn.Parameter(torch.ones(1))
        self.scale._no_weight_decay = True
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size)

    def forward(self, hidden_states, attention_mask=None, past_key_values=None, use_cache=False, **kwargs):
        chunks = hidden_states.shape[1] > 64
        assert self.mode != "half" or not chunks or hidden_states.dtype != torch.float32, "float32 is not supported"
        if self.mode == "kernel":
            raise RuntimeError("0 active drivers")
        batch, length, width = hidden_states.shape
        last = past_key_values[self.layer_idx] if past_key_values else None
        tail = last["conv_state"][0] if last else hidden_states.new_zeros(batch, width, 3)
        padded = torch.cat([tail[:, :, -2:], hidden_states.mT], dim=2)
        x = sum(self.conv.weight[:, 0, i, None] * padded[:, :, i : i + length] for i in range(3)).mT
        q, k, v = self.in_proj(x).unflatten(-1, (3, self.num_heads, -1)).unbind(dim=2)
        S = last["recurrent_state"] if last else torch.zeros(batch, self.num_heads, q.shape[-1], v.shape[-1])
        outputs = []
        for t in range(length):
            S = S + k[:, t, :, :, None] * v[:, t, :, None, :]
            outputs.append((S * q[:, t, :, :, None]).sum(dim=2))
        if use_cache:
            past_key_values.update(
                layer_idx=self.layer_idx,
                recurrent_state=S,
                conv_state=(torch.cat([tail, hidden_states.mT], dim=2)[:, :, -3:],),
                offset=length,
            )
        return self.o_proj(self.scale * torch.stack(outputs, dim=1).flatten(2)), None, past_key_values


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library of one layer in the place of the real one."""
    modules = {name: ModuleType(name) for name in ("fla", "fla.layers", "fla.models", "fla.models.utils")}
    modules["fla.layers"].__all__ = ["ToyAttention"]
    modules["fla.layers"].ToyAttention = ToyAttention
    modules["fla.models.utils"].Cache = ToyCache
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def adapter(**settings) -> FlaLayer:
    torch.manual_seed(0)
    settings = {"num_heads": HEADS} | settings
    return FlaLayer(D_MODEL, layer="ToyAttention", settings=settings, shares={"head_dim": 0.75})


def sequence_model(n_layers: int = 2, **settings) -> SequenceModel:
    widths = {"tokens": True, "d_input": VOCABULARY, "d_output": VOCABULARY, "max_length": LENGTH}
    build = {"pattern": ["toy"], "mixers": {"toy": lambda d_model: adapter(**settings)}}
    return SequenceModel(**widths, d_model=D_MODEL, n_layers=n_layers, **build)


class Tokens:
    """As much of a data object as counting needs."""

    length = LENGTH

    def train_batch(self, index, batch_size, seed):
        tokens = torch.zeros(batch_size, LENGTH, dtype=torch.int64)
        return tokens, tokens

    def loss(self, outputs, targets):
        return outputs.sum()


@pytest.mark.usefixtures("toy")
class TestTheAdapter:
    def test_gives_the_layer_its_width_and_settings(self):
        layer = adapter(mode="other").layer
        assert (layer.head_k_dim, layer.num_heads, layer.mode, layer.layer_idx) == (6, HEADS, "other", 0)
        assert layer.o_proj.out_features == D_MODEL

    @torch.no_grad()
    def test_forward_is_the_layers_own(self):
        mixer, x = adapter(), torch.randn(3, LENGTH, D_MODEL)
        assert torch.equal(mixer(x), mixer.layer(x)[0])

    @torch.no_grad()
    def test_pieces_and_steps_give_what_the_whole_gives(self):
        mixer, x = adapter(), torch.randn(3, LENGTH, D_MODEL)
        first, state = mixer.prefill(x[:, :7], mixer.initial_state(3))
        outputs = [first]
        for position in range(7, 12):
            y, state = mixer.step(x[:, position], state)
            outputs.append(y[:, None])
        last, state = mixer.prefill(x[:, 12:], state)
        torch.testing.assert_close(torch.cat([*outputs, last], dim=1), mixer(x))
        assert state.length == LENGTH

    @torch.no_grad()
    def test_what_refuses_float32_over_chunks_prefills_in_short_pieces(self):
        """As a run that was trained in bf16 does where it goes on in float32."""
        x = torch.randn(2, 150, D_MODEL)
        y, state = adapter(mode="half").prefill(x, adapter().initial_state(2))
        torch.testing.assert_close(y, adapter()(x))
        assert state.length == 150

    @torch.no_grad()
    def test_a_state_can_be_continued_again(self):
        mixer, x = adapter(), torch.randn(3, LENGTH, D_MODEL)
        _, state = mixer.prefill(x[:, :7], mixer.initial_state(3))
        assert torch.equal(mixer.step(x[:, 7], state)[0], mixer.step(x[:, 7], state)[0])

    def test_what_the_library_spares_is_spared(self):
        spared = [name for name, p in adapter().named_parameters() if getattr(p, "no_weight_decay", False)]
        assert spared == ["layer.scale"]

    def test_its_last_map_is_rescaled_as_ours_are(self):
        alone, four = (sequence_model(n).layers[0].mixer.inner.layer.o_proj.weight for n in (1, 4))
        torch.testing.assert_close(alone, 2 * four)

    def test_flops_are_counted_without_running_a_kernel(self):
        inner = HEADS * 6
        maps = D_MODEL * 3 * inner + inner * D_MODEL
        recurrence = 5 * HEADS * 6 * 6 + 2 * 3 * D_MODEL
        head = 2 * D_MODEL * VOCABULARY
        expected = 3 * LENGTH * (2 * (2 * maps + recurrence) + head)
        assert training_flops(sequence_model(mode="kernel"), Tokens()) == expected

    @torch.no_grad()
    def test_state_bytes_are_those_of_the_state(self):
        model = sequence_model().eval()
        _, state = model.prefill(torch.zeros(1, LENGTH, dtype=torch.int64), model.initial_state(1))
        assert bytes_of([layer.parts for layer in state.layers]) == state_bytes(model, LENGTH)

    def test_trains_in_a_model(self):
        model = sequence_model()
        model(torch.randint(VOCABULARY, (3, LENGTH))).square().sum().backward()
        assert all(p.grad.any() for p in model.parameters())

    @pytest.mark.parametrize(
        ("layer", "settings", "message"),
        [
            ("ToyAttentoin", {}, r"layer=ToyAttentoin: .* no such layer.*\nDid you mean 'ToyAttention'\?"),
            ("Mystery", {}, r"layer=Mystery: .*\nThere are: ToyAttention\."),
            ("ToyAttention", {"expand": 2}, r"settings\.expand=2: .* no setting 'expand'.*\nThere are: head_dim, num_"),
            ("ToyAttention", {"mode": "broken"}, r"settings=.*: refused by ToyAttention \(Not supported mode"),
        ],
    )
    def test_what_cannot_be_built(self, layer, settings, message):
        with pytest.raises(UserError) as caught:
            FlaLayer(D_MODEL, layer=layer, settings={"num_heads": HEADS} | settings)
        assert re.search(message, str(caught.value))

    @pytest.mark.parametrize(
        ("mode", "message"),
        [
            ("kernel", r"device=cpu: the kernels of .* ToyAttention need a GPU \(0 active drivers\)\.\nUse a machine"),
            ("half", r"trainer\.precision=float32: float32 is not supported\.\nUse trainer\.precision=bf16\."),
        ],
    )
    def test_what_cannot_run(self, mode, message):
        with pytest.raises(UserError) as caught:
            adapter(mode=mode)(torch.randn(1, 65, D_MODEL))
        assert re.search(message, str(caught.value))


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "fla", None)
    monkeypatch.setitem(sys.modules, "fla.layers", None)
    with pytest.raises(UserError) as caught:
        FlaLayer(D_MODEL, layer="GatedDeltaNet", settings={})
    message = (
        r"layer=GatedDeltaNet: is a layer of flash-.*cannot be imported.*\nInstall it with pip install 'seqlab\[fla\]'"
    )
    assert re.search(message, str(caught.value))


def real_mixer(name: str, d_model: int, n_heads: int) -> FlaLayer:
    torch.manual_seed(0)
    cfg = compose_config(f"model={name}", "size=small", f"size.d_model={d_model}", f"size.n_heads={n_heads}")
    mixers = instantiate(cfg.model.mixers, _convert_="all")
    return mixers[cfg.model.pattern[0]](d_model)


def real_model(name: str) -> SequenceModel:
    return built_model(f"model={name}", "size=small", d_input=VOCABULARY, length=200)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library's kernels on the CPU, each in its first configuration: the interpreter cannot time them."""
    pytest.importorskip("triton", minversion="3.9")  # an earlier one takes no computed bound of a loop
    from triton.runtime import autotuner, interpreter

    class Index(int):
        """A loop's variable, which the compiler makes a scalar that has ``to``, and the interpreter a plain number."""

        def to(self, dtype: Any) -> Any:
            return interpreter._implicit_cvt(int(self)).to(dtype)

    call = interpreter.GridExecutor.__call__

    def launch(self, *args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setitem(self.fn.__globals__, "range", lambda *bounds: map(Index, range(*bounds)))
            return call(self, *args, **kwargs)

    def run_first(self, *args, **kwargs):
        return self.fn.run(*args, **kwargs, **self.configs[0].all_kwargs())

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
    monkeypatch.setattr(autotuner.Autotuner, "run", run_first)
    with torch.compiler.set_stance("force_eager"), torch.autocast("cpu", torch.float16):  # it has no bfloat16
        yield


@pytest.mark.skipif(find_spec("fla") is None, reason="needs the extra fla")
@pytest.mark.filterwarnings("ignore")  # the library's own
@pytest.mark.parametrize("name", NAMES)
class TestTheLibrary:
    def test_counts(self, name):
        """The shapes of the recurrent state are known, so its work is counted."""
        model = real_model(name)
        assert all(layer.mixer.inner.uncounted_flops(1, 1) > 0 for layer in model.layers)
        assert training_flops(model, Tokens()) > 0
        assert state_bytes(model, 10) == state_bytes(model, 1000) > 0

    @pytest.mark.slow
    @pytest.mark.skipif(torch.cuda.is_available(), reason="Triton compiles where there is a GPU")
    @pytest.mark.usefixtures("interpreted")
    def test_trains_and_steps_in_the_interpreter(self, name):
        """Beyond 64 positions the layers take their kernels over chunks, below them those that go step by step."""
        mixer = real_mixer(name, 32, 2)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter += 0.1 * torch.randn_like(parameter)  # some start at zero and would hide others
        x = torch.randn(1, 66, 32, requires_grad=True)
        before = x.detach().clone()
        y = mixer(x)
        (y.float() * torch.randn_like(y.float())).sum().backward()
        assert torch.equal(x, before)
        assert [key for key, p in mixer.named_parameters() if not (p.grad.isfinite().all() and p.grad.any())] == []
        x = torch.randn(1, 66, 32)
        mixer.eval()
        with torch.no_grad():
            whole = mixer(x).float()
            first, state = mixer.prefill(x[:, :33], mixer.initial_state(1))
            second, state = mixer.step(x[:, 33], state)
            third, state = mixer.step(x[:, 34], state)
            last, state = mixer.prefill(x[:, 35:], state)
            got = torch.cat([first, second[:, None], third[:, None], last], dim=1).float()
            assert state.length == 66
            assert (got - whole).abs().max() <= 1e-2 * whole.abs().max()
            with torch.autocast("cpu", enabled=False):
                _, state = mixer.prefill(x[:, :5], mixer.initial_state(1))
        assert bytes_of(state.parts) == mixer_state_bytes(mixer.to("meta"), 32, 5)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_trains_and_steps(self, name):
        model = real_model(name).cuda()
        tokens = torch.randint(VOCABULARY, (2, 150), device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(tokens).float().flatten(0, 1), tokens.flatten())
        try:
            loss.backward()
        except RuntimeError as error:  # the library refuses the versions that it knows to miscompile
            if "Please upgrade Triton" not in str(error):
                raise
            pytest.skip(str(error))
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        model.eval()
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            whole = model(tokens).float()
            _, state = model.prefill(tokens[:, :100], model.initial_state(2), chunk=70)
            outputs: list[Tensor] = []
            for position in range(100, 150):
                y, state = model.step(tokens[:, position], state)
                outputs.append(y.float())
        error = (torch.stack(outputs, dim=1) - whole[:, 100:]).abs().max()
        assert error <= 5e-2 * whole.abs().max()
