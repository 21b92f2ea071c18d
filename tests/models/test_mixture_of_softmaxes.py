"""The mixture of softmaxes: its equations in float64, what a model with it computes and costs, and what is refused."""

import re

import pytest
import torch

from seqlab.errors import UserError
from seqlab.models.counting import count_parameters, training_flops
from seqlab.models.dropouts import Dropouts
from seqlab.models.linear import Linear
from seqlab.models.mixture_of_softmaxes import MixtureOfSoftmaxes
from seqlab.models.parametrisation import parametrise
from seqlab.ops.linear_cross_entropy import chunked
from seqlab.pretrained.counterpart import counterpart
from seqlab.runs.build import build_model
from seqlab.training.regularisation import Regularisation
from support import Echo, built_model, composed

B, L, D, D_IN, K, V = 3, 5, 4, 6, 3, 11
LENGTH, SIZE = 8, ("size.d_model=16", "size.n_heads=2", "size.d_ff=24", "size.n_layers=2")


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Of two positions, the last not full."""
    monkeypatch.setattr(chunked, "chunk_rows", lambda *_: 2 * K + 1)


def head(bias: bool = True) -> MixtureOfSoftmaxes:
    torch.manual_seed(0)
    return MixtureOfSoftmaxes(D_IN, D, V, K, bias=bias)


def hidden(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, D_IN, generator=torch.Generator().manual_seed(1))


def formula(head: MixtureOfSoftmaxes, h: torch.Tensor) -> torch.Tensor:
    """The sum of probabilities as it is written, softmax by softmax."""
    V_k, c = head.latent.weight.view(K, D, D_IN), head.latent.bias.view(K, D)
    pi = torch.softmax(h @ head.prior.weight.T, -1)
    p = torch.zeros(*h.shape[:-1], V, dtype=h.dtype)
    for k in range(K):
        logits = torch.tanh(h @ V_k[k].T + c[k]) @ head.weight.T + (0 if head.bias is None else head.bias)
        p = p + pi[..., k, None] * torch.softmax(logits, -1)
    return p.log()


def model(*overrides: str, name: str = "mamba", **widths) -> torch.nn.Module:
    widths = {"d_input": V, "length": LENGTH} | widths
    return built_model(f"model={name}", *SIZE, f"model.softmaxes={K}", *overrides, **widths)


def tokens() -> torch.Tensor:
    return torch.randint(V, (B, LENGTH), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(B, L), (7,), (0, L)])
def test_the_equations(shape, bias):
    """Log p and all gradients, in float64, of positions in chunks."""
    part, h = head(bias).double(), hidden(*shape).double().requires_grad_()
    factors, found = torch.randn(*shape, V, dtype=torch.float64), []
    for log_p in (part(h), formula(part, h)):
        found.append([log_p, *torch.autograd.grad((log_p * factors).sum(), [h, *part.parameters()])])
    torch.testing.assert_close(*found)
    with torch.no_grad():
        torch.testing.assert_close(part(h), found[1][0])


def test_gradcheck():
    part = head().double()
    names, values = zip(*part.named_parameters(), strict=True)

    def log_p(h, *parameters):
        return torch.func.functional_call(part, dict(zip(names, parameters, strict=True)), h)

    assert torch.autograd.gradcheck(log_p, [hidden(3).double().requires_grad_(), *values])


def test_its_sums_are_in_float32_under_autocast():
    part, h = head(), hidden(B, L)
    with torch.autocast("cpu", torch.bfloat16):
        log_p = part(h)
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(B, L), rtol=0, atol=1e-6)
    torch.testing.assert_close(log_p, formula(part, h), rtol=0.03, atol=0.03)


def test_the_logits_of_one_chunk_are_all_that_the_backward_pass_keeps():
    """Nothing that is kept is as large as the K logits of all positions."""
    part, h, kept = head(), hidden(B, L).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        part(h).sum()
    assert max(kept) <= max(B * L * K * D, part.latent.weight.numel()) < B * L * K * V


def test_one_softmax_is_the_head_that_was():
    plain = built_model("model=mamba", *SIZE, d_input=V, length=LENGTH)
    assert type(plain.head) is Linear
    assert [name for name in plain.state_dict() if name.startswith("head")] == ["head.weight"]


@pytest.mark.parametrize("name", ["mamba", "transformer", "lstm"])
def test_steps_and_carried_windows_are_the_whole(name):
    net = model(name=name).eval()
    assert net.head.weight is net.embed.weight
    whole = net(tokens())
    state, found = net.initial_state(B), []
    for token in tokens().T:
        log_p, state = net.step(token, state)
        found.append(log_p)
    torch.testing.assert_close(torch.stack(found, 1), whole, rtol=1e-4, atol=1e-5)
    state, found = net.carried_state(B, 4), []
    for window in tokens().split(4, 1):
        h, state = net.carry(window, state)
        found.append(net.head(h))
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-4, atol=1e-5)


class Tokens:
    length = LENGTH

    def train_batch(self, *_, **__):
        return tokens()[:1], tokens()[:1]

    def loss(self, outputs, targets):
        return torch.nn.functional.cross_entropy(outputs.transpose(1, 2), targets, reduction="none")


def test_what_it_costs():
    """K latents and a prior more, and K products with the vocabulary for one; forward once, backward twice."""
    plain, net = built_model("model=mamba", *SIZE, d_input=V, length=LENGTH), model()
    more = count_parameters(net)["parameters"] - count_parameters(plain)["parameters"]
    assert more == K * 16 * 16 + K * 16 + K * 16
    flops = training_flops(net, Tokens()) - training_flops(plain, Tokens())
    assert flops == 3 * 2 * LENGTH * (K * 16 * 16 + K * 16 + (K - 1) * 16 * V)


def test_latents_are_dropped_alike_at_all_positions():
    net = model()
    plain = net.eval()(tokens())
    Regularisation(latents=0.5).apply(net)
    assert torch.equal(net(tokens()), plain)
    assert isinstance(net.head.dropout, Dropouts)
    torch.manual_seed(3)
    z, _ = net.train().head.latents(torch.ones(B, L, 16))
    assert (z == z[:, :1]).all()
    assert 0.3 < (z == 0).float().mean() < 0.7


def test_the_last_layer_may_be_of_another_width():
    overrides = "model.norm=null", "model.residual=false", "model.mixers.lstm.d_out=24", "size.n_layers=1"
    net = model(*overrides, name="lstm")
    assert net(tokens()).shape == (B, LENGTH, V)
    assert net.head.latent.weight.shape == (K * 16, 24)
    with pytest.raises(UserError, match=r"the last layer gives 24 channels, and the head takes d_model=16"):
        model(*overrides, "model.softmaxes=1", name="lstm")


REFUSED = {
    "latents of one softmax": (
        lambda: Regularisation(latents=0.1).apply(model("model.softmaxes=1")),
        "regularisation.latents=0.1: is of a mixture of softmaxes, and this model has one.\nSet model.softmaxes",
    ),
    "muP": (
        lambda: parametrise(model(), model()),
        "model.softmaxes=3: makes a head for which muP has no rule here.\nSet parametrisation=standard",
    ),
    "other data": (
        lambda: build_model(composed("model=mamba", "model.softmaxes=3"), Echo(), torch.device("cpu")),
        "model.softmaxes=3: is for a loss that is the cross-entropy of each position's logits, and",
    ),
    "export": (lambda: counterpart(model(name="transformer")), "Linear there.\nTrain it with model.softmaxes=1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_be_combined_with(case):
    refused, said = REFUSED[case]
    with pytest.raises(UserError, match=re.escape(said)):
        refused()
