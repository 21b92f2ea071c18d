"""Losses of a model's parts in training: differentiated beside the data's loss, recorded apart from it."""

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from seqlab.models import auxiliary_losses, expert_load
from seqlab.ops.routed_experts import resolve_backend
from seqlab.training.optim import adamw, sgd
from seqlab.training.update import Update
from support import Echo, compose_config

CPU = torch.device("cpu")


def model(name: str = "transformer_moe", weight: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    size = ["size.d_model=16", "size.n_heads=2", "size.d_ff=24", "size.n_layers=2"]
    routing = [f"model.feedforward.balance_weight={weight}", "model.feedforward.dropout=0"] if "moe" in name else []
    cfg = compose_config(f"model={name}", *size, *routing)
    return instantiate(cfg.model, tokens=True, d_input=7, d_output=7, max_length=8, _convert_="all").train()


def update_of(net: nn.Module, **settings) -> Update:
    """Plain descent of rate 1, whose step is the gradient."""
    usual = {"precision": "float32", "accumulate": 1, "clip_norm": None, "compile": False, "device": CPU}
    optimizer = settings.pop("optimizer", lambda m: sgd(m, lr=1.0, momentum=0.0, nesterov=False))
    return Update(net, Echo(), optimizer=optimizer, **(usual | settings))


def routers(net: nn.Module) -> torch.Tensor:
    return torch.stack([layer.feedforward.inner.router.weight.detach().clone() for layer in net.layers])


@pytest.mark.parametrize(
    ("precision", "accumulate", "compiled"),
    [("float32", 1, False), ("float32", 4, False), ("fp16", 2, False), ("float32", 2, True)],
)
def test_the_gradient_is_that_of_both(precision, accumulate, compiled, monkeypatch):
    """The data's loss over the whole batch plus the mean auxiliary loss of its parts, at any loss scale."""
    if compiled:
        torch.compiler.reset()
        monkeypatch.setattr(torch, "compile", lambda net, original=torch.compile: original(net, backend="aot_eager"))
    net, by_hand = model(), model()
    batch = Echo().train_batch(0, 8, 1)
    update, before = update_of(net, precision=precision, accumulate=accumulate, compile=compiled), routers(net)
    for _ in range(20):  # fp16's loss scale comes down until the gradient fits
        outcome = update(batch, 1.0)
        if outcome.taken:
            break

    data, auxiliary = 0.0, 0.0
    for inputs, targets in zip(batch.inputs.chunk(accumulate), batch.targets.chunk(accumulate), strict=True):
        data = data + Echo().loss(by_hand(inputs), targets).sum() / (batch.targets != -100).sum()
        auxiliary = auxiliary + auxiliary_losses(by_hand) / accumulate
    (data + auxiliary).backward()
    expected = torch.stack([layer.feedforward.inner.router.weight.grad for layer in by_hand.layers])
    tolerance = {"rtol": 2e-2, "atol": 2e-4} if precision == "fp16" else {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(before - routers(net), expected, **tolerance)
    assert outcome.loss == pytest.approx(data.item(), rel=2e-3)
    assert outcome.auxiliary_loss == pytest.approx(auxiliary.item(), rel=2e-3)
    assert auxiliary_losses(net) is None


def test_the_recorded_loss_does_not_know_the_weight():
    batch = Echo().train_batch(0, 8, 1)
    light, heavy = (update_of(model(weight=weight))(batch, 1.0) for weight in (0.01, 10.0))
    assert light.loss == heavy.loss
    assert heavy.auxiliary_loss == pytest.approx(1000 * light.auxiliary_loss, rel=1e-5)


def test_what_is_recorded():
    net = model()
    update = update_of(net)
    figures = update.figures(update(Echo().train_batch(0, 8, 1), 1.0))
    load = expert_load(net)
    assert figures["largest_expert_share"] == max(max(share) for share in load.shares)
    assert figures["dead_experts"] == load.dead
    assert 2 <= figures["auxiliary_loss"] < 16  # a layer's is 1 at perfect balance and 8 at the worst
    plain = update_of(model("transformer"))
    assert plain.figures(plain(Echo().train_batch(0, 8, 1), 1.0)) == {}


def test_the_weight_balances_the_experts():
    """The same model trained with and without, from routers that send every token to the same two."""
    loads = {}
    for weight in (0.0, 0.1):
        net = model(weight=weight)
        with torch.no_grad():
            net.embed.weight += 0.1  # what all tokens have in common
            for layer in net.layers:
                layer.feedforward.inner.router.weight[:2] += 0.5
        update = update_of(net, optimizer=lambda m: adamw(m, lr=5e-3))
        for step in range(80):
            update(Echo().train_batch(step, 8, 1), 1.0)
        loads[weight] = expert_load(net)
    assert loads[0.1].largest_share < 0.25
    assert loads[0.0].largest_share > 0.35
    assert loads[0.1].dead == 0 < loads[0.0].dead


def test_a_run_tells_the_load(train):
    job = train("model=mamba_moe", "size=tiny")
    trained = [record for record in job.records if record["split"] == "train"]
    assert all(record["auxiliary_loss"] == pytest.approx(0.02, abs=0.02) for record in trained)
    assert all(0.125 <= record["largest_expert_share"] <= 0.5 for record in trained)
    assert job.summary["experts_backend"] == resolve_backend("auto", job.summary["device"], torch.float32)
    load = job.summary["expert_load"]
    assert [len(share) for share in load["shares"]] == [8, 8]
    assert all(sum(share) == pytest.approx(1) for share in load["shares"])
    assert job.summary["active_parameters"] < job.summary["parameters"]
