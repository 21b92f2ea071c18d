"""Who decays, who is served by which optimizer, and that every optimizer descends."""

import itertools
import sys

import fits
import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from seqlab.errors import UserError
from seqlab.models.parametrisation import Rates
from seqlab.training.muon_of_stacks import MuonOfStacks
from seqlab.training.optim import adamw, decayed_share, muon, soap
from support import built_model, compose_config, models, optimizers

SIZE = ["size.d_model=16", "size.n_heads=2", "size.d_ff=32"]


def model(name: str = "mamba", *overrides: str) -> nn.Module:
    return built_model(f"model={name}", *SIZE, *overrides)


def names_of(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    ids = {id(p) for p in parameters}
    return {
        name.split(".", 3)[-1] if "layers" in name else name for name, p in model.named_parameters() if id(p) in ids
    }


def test_decay_is_for_matrices_alone():
    mamba = model()
    decayed, spared = (names_of(mamba, group["params"]) for group in adamw(mamba)[0].param_groups)
    assert decayed == {
        "embed.weight",  # tied: it is the head's matrix
        "inner.in_proj.weight",
        "inner.conv_weight",
        "inner.x_proj.weight",
        "inner.dt_proj.weight",
        "inner.out_proj.weight",
    }
    assert spared == {"norm.weight", "inner.A_log", "inner.D", "inner.conv_bias", "inner.dt_proj.bias"}


NAMES = "adamw", "muon", "sgd"
OPTIMIZERS = [compose_config(f"optimizer={name}", "optimizer.weight_decay=0.1").optimizer for name in NAMES]


@pytest.mark.parametrize("name", models())
def test_one_rule_for_every_model(name):
    """Tying decides nothing: every matrix decays but what exempts itself, and no vector does, as the YAMLs have it."""
    nets, shares = [model(name, f"model.tie_embeddings={tied}") for tied in (False, True)], []
    for net, cfg in itertools.product(nets, OPTIMIZERS):
        optimizers = instantiate(cfg, _convert_="all")(net)
        groups = [group for each in optimizers for group in each.param_groups]
        decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        exempt = {id(p) for p in net.parameters() if p.ndim < 2 or getattr(p, "no_weight_decay", False)}
        assert decayed == {id(p) for p in net.parameters()} - exempt
        assert {id(net.embed.weight), id(net.head.weight)} <= decayed
        n_decayed = sum(p.numel() for p in net.parameters() if id(p) in decayed)
        assert decayed_share(optimizers) == n_decayed / sum(p.numel() for p in net.parameters())
        shares.append(decayed_share(optimizers))
    assert 0 < min(shares) < 1


def test_without_decay_the_share_is_none():
    assert decayed_share(adamw(model(), weight_decay=0.0)) == 0


@pytest.mark.parametrize("build", [adamw, muon])
def test_the_former_rule_spares_untied_lookup_tables(build):
    vanilla = model("transformer_vanilla")
    spared = names_of(vanilla, build(vanilla)[0].param_groups[1]["params"])
    assert {"embed.weight", "positions.weight"} <= spared


def test_a_run_from_before_goes_on_under_the_former_rule(train):
    """Its configuration has no ``decay_lookups`` and its optimizer's state has the former groups."""
    usual = ("model=transformer_vanilla", "size=tiny", "schedule=constant", "optimizer.weight_decay=1.0")
    former = (*usual, "~optimizer.decay_lookups")
    whole = train(*former, "trainer.steps=4", folder="whole")
    cut = train(*former, "trainer.steps=2", folder="cut")
    train(f"resume='{cut.folder}'", "trainer.steps=4")
    assert cut.summary["best_validation_loss"] == whole.summary["best_validation_loss"]
    assert cut.summary["steps"] == 4
    now = train(*usual, "trainer.steps=2", folder="now")
    assert now.summary["decayed_share"] > cut.summary["decayed_share"] > 0


@pytest.mark.parametrize("name", ["adamw", "adam", "muon"])
@pytest.mark.parametrize("betas", ["[0,0.95]", "[0.9,0]", "[0,0]"])
def test_whole_numbers_among_betas(name, betas):
    net = model("transformer")
    cfg = compose_config(f"optimizer={name}", f"optimizer.betas={betas}").optimizer
    found = instantiate(cfg, _convert_="all")(net)[0].param_groups[0]["betas"]
    assert list(found) == list(cfg.betas) and {type(beta) for beta in found} == {float}


@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("build", [adamw, muon])
def test_every_parameter_is_served_once(name, build):
    net = model(name)
    served = [id(p) for optimizer in build(net) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(served) == sorted(id(p) for p in net.parameters())


def test_muon_takes_the_linear_maps_of_the_layers():
    mamba = model()
    _, hidden = muon(mamba)
    names = names_of(mamba, hidden.param_groups[0]["params"])
    assert names == {f"inner.{name}.weight" for name in ("in_proj", "x_proj", "dt_proj", "out_proj")}


@pytest.mark.parametrize("shape", [(3, 6, 10), (2, 10, 6)])
def test_muon_takes_each_expert_by_itself(shape):
    """Three steps on a stack are three steps of torch's Muon on each of its matrices."""
    settings = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    stack = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    single = [nn.Parameter(matrix.detach().clone()) for matrix in stack]
    optimizers = MuonOfStacks([stack], **settings), torch.optim.Muon(single, **settings, adjust_lr_fn="match_rms_adamw")
    for seed in (1, 2, 3):
        stack.grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        for matrix, grad in zip(single, stack.grad, strict=True):
            matrix.grad = grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(stack, torch.stack(single), rtol=1e-3, atol=3e-4)  # in bfloat16, the update some 0.01


def test_muon_serves_experts_with_their_own():
    stacks = muon(model("mamba_moe"))[2]
    assert {tuple(p.shape) for p in stacks.param_groups[0]["params"]} == {(8, 16, 48), (8, 24, 16)}


def test_soap_is_adam_in_the_eigenbases_of_shampoo():
    """Three steps from the paper's equations in float64; the first one only finds the bases, which stay for ten."""
    pytest.importorskip("pytorch_optimizer")
    lr, beta, decay, eps = 0.01, 0.9, 0.1, 1e-8
    net = model("transformer", "size.n_layers=1")
    _, ours = soap(net, lr=lr, betas=[beta, beta], weight_decay=decay)
    p = next(p for p in ours.param_groups[0]["params"] if p.shape == (16, 16))
    weight, gradients = p.detach().double(), [torch.randn(16, 16, dtype=torch.float64) for _ in range(4)]
    left, right = (torch.linalg.eigh(g)[1] for g in (gradients[0] @ gradients[0].T, gradients[0].T @ gradients[0]))
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, gradient in enumerate(gradients):
        p.grad = gradient.float()
        ours.step()
        if step:
            first = beta * first + (1 - beta) * gradient
            second = beta * second + (1 - beta) * (left.T @ gradient @ right) ** 2
            corrected = (left.T @ first @ right) / (1 - beta**step), (second / (1 - beta**step)).sqrt()
            weight = (weight - lr * left @ (corrected[0] / (corrected[1] + eps)) @ right.T) * (1 - lr * decay)
        torch.testing.assert_close(p.double(), weight, rtol=1e-4, atol=1e-5)


def test_soap_has_no_rates_of_a_parametrisation():
    pytest.importorskip("pytorch_optimizer")
    net = model()
    net.norm.weight.rates = Rates()
    with pytest.raises(UserError, match="none for SOAP"):
        soap(net)


def test_soap_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    monkeypatch.delitem(sys.modules, "seqlab.training.soap_of_parts", raising=False)
    with pytest.raises(UserError, match=r"pip install 'seqlab\[soap\]'"):
        soap(model())


@pytest.mark.parametrize("name", optimizers())
@pytest.mark.parametrize("mup", [False, True], ids=["standard", "mup"])
def test_rates_fall_towards_the_embedding(name, mup):
    """Of three layers by 0.9, 0.81 and 0.729, of what is before them by 0.6561; what decays falls with the rate."""

    def by_name(layer_decay):
        cfg = compose_config(f"optimizer={name}", f"optimizer.layer_decay={layer_decay}").optimizer
        groups = [group for each in instantiate(cfg, _convert_="all")(net) for group in each.param_groups]
        return {id(p): (g["lr"], g["lr"] / g.get("factor", 1), g["weight_decay"]) for g in groups for p in g["params"]}

    net = model("transformer_vanilla", "size.n_layers=3", "model.tie_embeddings=false")
    if mup and name == "soap":
        return  # it has no rates of a parametrisation
    for i, p in enumerate(net.parameters() if mup else ()):
        p.rates = Rates(*[1 / (2 + i % 3)] * 3)
    plain, falling = by_name("null"), by_name(0.9)
    for place, p in net.named_parameters():
        part, _, rest = place.partition(".")
        power = {"embed": 4, "positions": 4, "layers": 3 - int(rest[0]) if part == "layers" else 0}.get(part, 0)
        (rate, base, decay), (before, _, decay_before) = falling[id(p)], plain[id(p)]
        assert rate == pytest.approx(before * 0.9**power)
        assert base == pytest.approx({"sgd": 0.1, "soap": 3e-3}.get(name, 1e-3))
        assert decay == decay_before
    assert len(falling) == len(list(net.parameters()))


def test_rates_by_depth_need_layers():
    with pytest.raises(UserError, match=r"optimizer\.layer_decay=0\.9: is for a model of layers"):
        adamw(nn.Linear(2, 2), layer_decay=0.9)


@pytest.mark.parametrize("name", optimizers())
def test_descends(name):
    net = model("transformer")
    optimizers = instantiate(compose_config(f"optimizer={name}", "optimizer.lr=0.01").optimizer, _convert_="all")(net)
    tokens = torch.randint(7, (4, 8), generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_an_optimizer_may_be_given_without_a_list(tmp_path):
    trainer = fits.build(tmp_path, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    fits.run(trainer)
    assert trainer.counters.step == 6
