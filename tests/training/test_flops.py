"""Counted training FLOPs against closed formulas, for each mixer and feed-forward.

A product of an (m, k) with a (k, n) matrix is 2 m k n; a linear map costs it once forward and twice backward, except
that nothing asks for the gradient of the data itself.
"""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from seqlab.models.counting import training_flops
from seqlab.models.mixers.mlstm_cell import mlstm_flops
from seqlab.ops import delta_rule_flops, m2rnn_flops, selective_scan_flops, ssd_flops
from support import built_model, depth

D, D_FF, LAYERS, HEADS, VOCABULARY = 32, 96, 3, 4, 50


class Tokens:
    """As much of a data object as counting needs."""

    tokens, d_input, d_output = True, VOCABULARY, VOCABULARY

    def __init__(self, length: int):
        self.length = length

    def train_batch(self, index, batch_size, seed):
        tokens = torch.zeros(batch_size, self.length, dtype=torch.int64)
        return tokens, tokens

    def loss(self, outputs, targets):
        return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none")


def counted(name: str, length: int) -> int:
    size = [
        f"size.d_model={D}",
        f"size.n_layers={max(LAYERS, depth(name))}",
        f"size.n_heads={HEADS}",
        f"size.d_ff={D_FF}",
    ]
    model = built_model(f"model={name}", *size, d_input=VOCABULARY, length=length)
    return training_flops(model, Tokens(length))


def linear(length: int, d_in: int, d_out: int) -> int:
    return 3 * 2 * length * d_in * d_out


def attention(length: int) -> int:
    """Projections, and two products over the square of positions, each with two more backward."""
    return linear(length, D, 3 * D) + linear(length, D, D) + 2 * 3 * 2 * length * length * D


def mamba(length: int) -> int:
    e, n, k, r = 2 * D, 16, 4, 2
    products = linear(length, D, 2 * e) + linear(length, e, r + 2 * n) + linear(length, r, e) + linear(length, e, D)
    convolution = 3 * 2 * length * e * k
    return products + convolution + 3 * selective_scan_flops(1, length, e, n)


def half_attention_beside_mamba2(length: int) -> int:
    """Attention of half the width, and Mamba-2 of the whole one, whose convolution B and C pass too."""
    n, k = 64, 4
    heads = linear(length, D, 3 * D // 2) + linear(length, D // 2, D) + 2 * 3 * 2 * length * length * D // 2
    products = linear(length, D, 2 * D + 2 * n + HEADS) + linear(length, D, D)
    return heads + products + 3 * 2 * length * (D + 2 * n) * k + 3 * ssd_flops(1, length, HEADS, D // HEADS, n)


def lstm(length: int) -> int:
    """Four gates from the input and four from the hidden state, which at the start is data and asks no gradient."""
    return linear(length, D, 4 * D) + linear(length, D, 4 * D) - 2 * D * 4 * D


def gru(length: int) -> int:
    """Three gates from the input and three from the hidden state."""
    return linear(length, D, 3 * D) + linear(length, D, 3 * D) - 2 * D * 3 * D


def min_gru(length: int) -> int:
    """Gate and candidate from the input, a scan with one state a channel, and the way back."""
    return linear(length, D, 4 * D) + linear(length, 2 * D, D) + 3 * selective_scan_flops(1, length, 2 * D, 1)


def gated_delta_net(length: int) -> int:
    """Queries and keys of 6, values and gates of 12, for each of 4 heads; beta, the decay, a convolution of width 4."""
    products = linear(length, D, 4 * (6 + 6 + 12 + 12 + 1 + 1)) + linear(length, 4 * 12, D)
    return products + 3 * 2 * length * 4 * (6 + 6 + 12) * 4 + 3 * delta_rule_flops(1, length, HEADS, 6, 12, 1)


def kimi_delta(length: int) -> int:
    """Queries, keys and values of 8 for each of 4 heads; beta; decays and gates by way of 8 numbers."""
    products = linear(length, D, 4 * (8 + 8 + 8 + 1) + 8 + 8) + 2 * linear(length, 8, D) + linear(length, D, D)
    return products + 3 * 2 * length * 4 * (8 + 8 + 8) * 4 + 3 * delta_rule_flops(1, length, HEADS, 8, 8, 8)


def gated_delta_net2(length: int) -> int:
    """As Kimi delta attention, with a share erased of 8 and a share written of 8 for each head, not one beta."""
    more = linear(length, D, 4 * (8 + 8 - 1)) + 3 * length * HEADS * 8  # the key that erases
    return kimi_delta(length) + more


def mlstm(length: int) -> int:
    """Queries and keys of 4, values and output gates of 8, two gates for each of 4 heads."""
    return linear(length, D, 4 * (4 + 4 + 8 + 8 + 2)) + linear(length, D, D) + 3 * mlstm_flops(1, length, HEADS, 4, 8)


def m2rnn(length: int) -> int:
    """Queries and keys of 64, 3 heads with values and gates of 16 and a decay, a convolution of width 4."""
    products = linear(length, D, 2 * 64 + 3 * (16 + 16 + 1)) + linear(length, 3 * 16, D)
    return products + 3 * 2 * length * (2 * 64 + 3 * 16) * 4 + 3 * m2rnn_flops(1, length, 3, 64, 16)


def swiglu(length: int) -> int:
    return linear(length, D, 2 * 64) + linear(length, 64, D)


def mixture(length: int, experts: int = 8, top_k: int = 2) -> int:
    """The router, and as many feed-forwards as a token visits, however many there are."""
    return linear(length, D, experts) + top_k * swiglu(length)


def mlp(length: int) -> int:
    return linear(length, D, D_FF) + linear(length, D_FF, D)


FORMULAS = {
    "mamba": lambda n: LAYERS * mamba(n),
    "transformer": lambda n: LAYERS * (attention(n) + swiglu(n)),
    "transformer_vanilla": lambda n: LAYERS * (attention(n) + mlp(n)),
    "mamba_moe": lambda n: LAYERS * (mamba(n) + mixture(n)),
    "transformer_moe": lambda n: LAYERS * (attention(n) + mixture(n)),
    "self_attention": attention,
    "hybrid": lambda n: 3 * mamba(n) + attention(n),
    "lstm": lambda n: LAYERS * lstm(n),
    "gru": lambda n: LAYERS * gru(n),
    "min_gru": lambda n: LAYERS * min_gru(n),
    "gated_delta_net": lambda n: LAYERS * (gated_delta_net(n) + swiglu(n)),
    "kimi_delta": lambda n: LAYERS * (kimi_delta(n) + swiglu(n)),
    "gated_delta_net2": lambda n: LAYERS * (gated_delta_net2(n) + swiglu(n)),
    "mlstm": lambda n: LAYERS * (mlstm(n) + swiglu(n)),
    "m2rnn": lambda n: LAYERS * (m2rnn(n) + swiglu(n)),
    "hybrid_qwen": lambda n: 3 * gated_delta_net(n) + attention(n) + 4 * swiglu(n),
    "hybrid_falcon": lambda n: LAYERS * (half_attention_beside_mamba2(n) + swiglu(n)),
    "mlp": lambda n: LAYERS * linear(n, D, D),
    "linear": lambda n: 0,
}


@pytest.mark.parametrize("length", [8, 33])
@pytest.mark.parametrize("name", FORMULAS)
def test_closed_formula(name, length):
    expected = FORMULAS[name](length) + linear(length, D, VOCABULARY)
    assert counted(name, length) == expected


def test_six_times_parameters_times_tokens_in_the_limit():
    """Kaplan et al. 2020, section 2.1: where the width is far above the length, 6 N FLOPs a token."""
    model_parameters = LAYERS * (4 * D * D + 3 * D * 64) + D * VOCABULARY
    assert counted("transformer", 1) == pytest.approx(6 * model_parameters, rel=0.01)


def test_the_model_is_left_alone():
    model = built_model("model=mamba", f"size.d_model={D}", d_input=VOCABULARY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training_flops(model, Tokens(8))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_recurrence_is_counted_as_torch_runs_it(name, monkeypatch):
    """Position by position, as it is not on the meta device."""
    expected = counted(name, 9)
    monkeypatch.setattr("seqlab.models.mixers.recurrent.products_alone", lambda layer, x: layer(x)[0])
    assert counted(name, 9) == expected


class Operations(TorchDispatchMode):
    """How many operations reach torch's dispatcher."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["lstm", "gru", "mamba", "m2rnn", "transformer"])
def test_a_longer_window_is_counted_as_soon(name):
    def operations(length: int) -> int:
        with Operations() as seen:
            counted(name, length)
        return seen.count

    assert operations(64) < 1.5 * operations(16)
