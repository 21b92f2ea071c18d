"""The mixture of experts: against every expert on every token in float64, its losses against their equations."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqlab.errors import UserError
from seqlab.models import auxiliary_losses, expert_load
from seqlab.models.counting import backends
from seqlab.models.feedforward import SwiGLU
from seqlab.models.mixture_of_experts import MixtureOfExperts, balance_loss, z_loss
from support import compose_config

D, D_FF, H = 12, 24, 16


def build(dtype: torch.dtype = torch.float32, **settings) -> MixtureOfExperts:
    torch.manual_seed(0)
    return MixtureOfExperts(D, d_ff=D_FF, **{"dropout": 0.0} | settings).to(dtype)


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(1)).to(dtype)


def dense(layer: MixtureOfExperts, x: Tensor) -> Tensor:
    """Softmax of the k largest logits as weights, every expert a whole feed-forward on every token (Mixtral)."""
    logits = x @ layer.router.weight.T
    kept = torch.full_like(logits, -math.inf).scatter(-1, logits.topk(layer.top_k).indices, 0.0)
    weights = (logits + kept).softmax(dim=-1)  # (B, L, E), zero where a token does not go
    outputs = []
    for w_in, w_out in zip(layer.in_proj.weight, layer.out_proj.weight, strict=True):
        a, b = (x @ w_in).split(H, dim=-1)
        outputs.append((a * torch.sigmoid(a) * b) @ w_out)
    return torch.einsum("ble,blde->bld", weights, torch.stack(outputs, dim=-1))


@pytest.mark.parametrize(("n_experts", "top_k"), [(8, 2), (3, 3), (5, 4)])
@pytest.mark.parametrize("shape", [(2, 9), (1, 1), (3, 33)])
def test_values_and_every_gradient(n_experts, top_k, shape):
    """The router's too, which has none but through the gates."""
    layer, x = build(torch.float64, n_experts=n_experts, top_k=top_k), inputs(*shape, dtype=torch.float64)
    leaves = [x.requires_grad_(), *layer.parameters()]
    outputs = [f(x) for f in (layer, lambda x: dense(layer, x))]
    direction = torch.randn_like(x)
    found, expected = (torch.autograd.grad((y * direction).sum(), leaves) for y in outputs)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-12, atol=1e-12)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    assert found[1].any()


def test_one_expert_is_a_feed_forward():
    layer, plain = build(n_experts=1, top_k=1), SwiGLU(D, d_ff=D_FF)
    with torch.no_grad():
        plain.in_proj.weight.copy_(layer.in_proj.weight[0].T)
        plain.out_proj.weight.copy_(layer.out_proj.weight[0].T)
    x = inputs(2, 7)
    torch.testing.assert_close(layer(x), plain(x))


def test_the_only_visited_expert_counts_by_its_probability():
    """With k = 1 the gate is p itself, so that the router learns."""
    layer, x = build(n_experts=4, top_k=1), inputs(1, 6)
    p, e = layer.router(x).softmax(dim=-1).max(dim=-1)
    alone = build(n_experts=4, top_k=1)
    for t in range(6):
        a, b = (x[0, t] @ alone.in_proj.weight[e[0, t]]).split(H)
        torch.testing.assert_close(layer(x)[0, t], p[0, t] * ((F.silu(a) * b) @ alone.out_proj.weight[e[0, t]]))
    layer(x).sum().backward()
    assert layer.router.weight.grad.any()


def test_no_token_is_dropped_at_the_worst_balance():
    """Every token to the same two of eight experts, on which a capacity would have closed."""
    layer, x = build(torch.float64), inputs(4, 50, dtype=torch.float64).abs()
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[2], layer.router.weight[5] = 2.0, 1.0
    layer.train()
    y = layer(x)
    torch.testing.assert_close(y, dense(layer, x), rtol=1e-12, atol=1e-12)
    assert y.abs().sum(dim=-1).min() > 0
    load = expert_load(layer)
    assert load.shares == [[0, 0, 0.5, 0, 0, 0.5, 0, 0]]
    assert (load.largest_share, load.dead) == (0.5, 6)


def test_positions_alone_give_what_the_whole_gives():
    layer, x = build().eval(), inputs(3, 20)
    with torch.no_grad():
        steps = torch.stack([layer(position) for position in x.unbind(dim=1)], dim=1)
        torch.testing.assert_close(steps, layer(x), rtol=1e-5, atol=1e-6)


def test_half_precision_routes_in_float32():
    """Under autocast the router sees what it sees without; the experts are within bfloat16's rounding."""
    layer, x = build().eval(), inputs(2, 64).bfloat16().float()
    with torch.no_grad():
        exact = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
            logits = layer._route(x.flatten(0, 1))[0]
    assert y.dtype == torch.bfloat16
    assert torch.equal(logits, layer.router(x.flatten(0, 1)))
    assert (y.float() - exact).norm() < 1e-2 * exact.norm()


class TestLosses:
    def test_balance_is_one_at_perfect_balance(self):
        assert balance_loss(torch.full((40, 8), 0.125), torch.full((8,), 0.125)) == pytest.approx(1)

    def test_balance_is_the_number_of_experts_at_the_worst(self):
        p = F.one_hot(torch.full((40,), 3), 8).float()
        assert balance_loss(p, p.mean(dim=0)) == pytest.approx(8)

    @pytest.mark.parametrize("top_k", [1, 2])
    def test_what_a_layer_leaves(self, top_k):
        """Against the sums of the papers, expert by expert."""
        layer, x = build(top_k=top_k, balance_weight=0.01, z_weight=0.001).train(), inputs(2, 30)
        layer(x)
        logits = layer.router(x).flatten(0, 1).double()
        visits = logits.topk(top_k).indices.flatten().tolist()
        p = logits.softmax(dim=-1)
        balance = 8 * sum(visits.count(e) / len(visits) * p[:, e].mean().item() for e in range(8))
        z = sum(math.log(sum(map(math.exp, row))) ** 2 for row in logits.tolist()) / 60
        assert auxiliary_losses(layer).item() == pytest.approx(0.01 * balance + 0.001 * z, rel=1e-5)
        assert layer.expert_share.tolist() == pytest.approx([visits.count(e) / len(visits) for e in range(8)])

    def test_z_is_the_square_of_the_log_of_the_sum(self):
        assert z_loss(torch.full((5, 8), 2.0)) == pytest.approx((2 + math.log(8)) ** 2, rel=1e-6)

    def test_the_share_is_a_constant_to_the_gradient(self):
        """E sum_e f_e P_e pulls a token away from the busy experts: its gradient by the logits is E p (f - f.p) / T."""
        layer, x = build(torch.float64, balance_weight=1.0).train(), inputs(1, 11, dtype=torch.float64)
        layer(x)
        (found,) = torch.autograd.grad(auxiliary_losses(layer), layer.router.weight)
        p, share = layer.router(x[0]).softmax(dim=-1), layer.expert_share
        by_logits = 8 * p * (share - (p @ share)[:, None]) / 11
        torch.testing.assert_close(found, by_logits.T @ x[0], rtol=1e-10, atol=1e-12)

    def test_are_taken_once_and_left_in_training_alone(self):
        model, x = nn.Sequential(build(), build()), inputs(2, 5)
        model.eval()(x)
        assert auxiliary_losses(model) is None
        model.train()(x)
        each = [layer.auxiliary_loss for layer in model]
        assert auxiliary_losses(model).item() == pytest.approx(sum(loss.item() for loss in each))
        assert auxiliary_losses(model) is None
        with torch.no_grad():
            model(x)
        assert auxiliary_losses(model) is None

    def test_a_model_without_experts_has_none(self):
        model = nn.Linear(3, 3)
        assert auxiliary_losses(model) is None
        assert expert_load(model) is None

    def test_a_model_is_copied_between_forward_and_backward(self):
        layer = build().train()
        layer(inputs(1, 4))
        assert copy.deepcopy(layer).auxiliary_loss is None
        assert layer.auxiliary_loss is not None


def test_load_of_several_layers():
    model = nn.Sequential(build(n_experts=4, top_k=1), build(n_experts=2, top_k=1))
    model[0].expert_share = torch.tensor([0.5, 0.25, 0.25, 0.0])
    model[1].expert_share = torch.tensor([0.75, 0.25])
    assert expert_load(model) == (0.75, 1, [[0.5, 0.25, 0.25, 0.0], [0.75, 0.25]])


def test_inactive_parameters():
    layer = build(n_experts=8, top_k=2)
    assert layer.inactive_parameters() == 6 * 3 * D * H
    assert sum(p.numel() for p in layer.parameters()) == 8 * 3 * D * H + 8 * D


def test_dropout_is_on_the_sum():
    layer, x = build(dropout=0.5), inputs(4, 50)
    whole = layer.eval()(x)
    part = layer.train()(x)
    kept = part != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(part[kept], 2 * whole[kept])


def test_every_expert_starts_as_a_linear_map_does():
    layer = build()
    for maps, d_in in ((layer.in_proj, D), (layer.out_proj, H)):
        assert maps.weight.abs().max() <= d_in**-0.5
        assert maps.weight.std().item() == pytest.approx((3 * d_in) ** -0.5, rel=0.05)


def test_more_visits_than_experts_are_refused():
    with pytest.raises(UserError, match=r"top_k=3: a token cannot visit more than the n_experts=2"):
        build(n_experts=2, top_k=3)


class TestBackendOfARun:
    """It is in the summary as it came out, and one that cannot run is refused before there is a trainer."""

    def test_is_recorded(self):
        model = nn.Sequential(build(), build(backend="reference"), nn.Linear(3, 3))
        assert backends(model, torch.device("cpu"))["experts_backend"] == "grouped, reference"
        assert backends(model[2], torch.device("cpu")) == {"scan_backend": None}

    def test_that_cannot_run_is_refused(self, train, capsys, monkeypatch):
        monkeypatch.setattr("seqlab.ops.triton_support.interpreted", lambda: False)
        job = train("model=hybrid_nemotron", "size.n_layers=4", "model.feedforward.1.backend=triton", "device=cpu")
        said = capsys.readouterr().err
        assert job.status == 2
        assert "model.feedforward.1.backend=triton: routed_experts backend='triton' cannot run on cpu" in said
        assert "Use model.feedforward.1.backend=auto" in said
        assert "Traceback" not in said
        assert not job.folder.exists()


def test_compiles():
    """Forward, backward, the auxiliary loss and the load, in one graph."""
    torch.compiler.reset()
    plain, x = build(torch.float64).train(), inputs(2, 9, dtype=torch.float64)
    layer = build(torch.float64).train()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for model, call in ((plain, plain), (layer, compiled)):
        for _ in range(2):
            model.zero_grad()
            (call(x).square().mean() + auxiliary_losses(model)).backward()
    assert torch.equal(plain.expert_share, layer.expert_share)
    for a, b in zip(plain.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-14)


def against(block: nn.Module, router: nn.Linear, **settings) -> None:
    """The sparse block of a model of transformers on the same weights, in float64."""
    block, layer = block.double().eval(), build(torch.float64, n_experts=6, **settings).eval()
    with torch.no_grad():
        router.weight.copy_(layer.router.weight)
        block.experts.gate_up_proj.copy_(layer.in_proj.weight.mT)
        block.experts.down_proj.copy_(layer.out_proj.weight.mT)
        x = inputs(2, 13, dtype=torch.float64)
        y = block(x)
    torch.testing.assert_close(layer(x), y[0] if isinstance(y, tuple) else y, rtol=1e-5, atol=1e-6)


def test_against_mixtral():
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    from transformers import MixtralConfig

    config = MixtralConfig(
        hidden_size=D, intermediate_size=H, num_local_experts=6, num_experts_per_tok=2, router_jitter_noise=0.0
    )
    config._experts_implementation = "eager"
    block = mixtral.MixtralSparseMoeBlock(config)
    against(block, block.gate)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_against_jamba(top_k):
    """With the settings that model=hybrid_jamba has, but for the sizes."""
    jamba = pytest.importorskip("transformers.models.jamba.modeling_jamba")
    from transformers import JambaConfig

    config = JambaConfig(hidden_size=D, intermediate_size=H, num_experts=6, num_experts_per_tok=top_k)
    config._experts_implementation = "eager"
    block = jamba.JambaSparseMoeBlock(config)
    ours = compose_config("model=hybrid_jamba").model.feedforward[1]
    against(block, block.router, top_k=top_k, renormalise=ours.renormalise)


def test_gates_of_one_or_of_what_the_experts_hold():
    """Renormalised or not, the same experts: the outputs differ by the probability that those hold."""
    (one, held), x = (build(renormalise=renormalise).eval() for renormalise in (True, False)), inputs(3, 20)
    p = one.router(x).softmax(dim=-1).topk(2).values.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(held(x), p * one(x), rtol=1e-5, atol=1e-6)
