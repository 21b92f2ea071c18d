"""Losses of a model's parts in training: differentiated beside the data's loss, logged apart from it."""

import pytest
import torch
from fits import config_of
from torch import nn

from seqlab.errors import UserError
from seqlab.models import auxiliary_losses, expert_load
from seqlab.ops.routed_experts import resolve_backend
from seqlab.training.captured import captures
from seqlab.training.optim import adamw, sgd
from seqlab.training.update import Update
from support import Echo, built_model

CPU = torch.device("cpu")


def model(name: str = "transformer_moe", weight: float = 1.0) -> nn.Module:
    size = ["size.d_model=16", "size.n_heads=2", "size.d_ff=24", "size.n_layers=2"]
    routing = [f"model.feedforward.balance_weight={weight}", "model.feedforward.dropout=0"] if "moe" in name else []
    return built_model(f"model={name}", *size, *routing).train()


def update_of(net: nn.Module, **settings) -> Update:
    """Plain descent of rate 1, whose step is the gradient."""
    usual = {"clip_norm": None, "optimizer": lambda m: sgd(m, lr=1.0, momentum=0.0, nesterov=False)}
    return Update(config_of(batch_size=12, **usual | settings), net, Echo(), device=CPU)


def routers(net: nn.Module) -> torch.Tensor:
    return torch.stack([layer.feedforward.inner.router.weight.detach().clone() for layer in net.layers])


@pytest.mark.parametrize(
    ("precision", "accumulate", "compiled"),
    [("float32", 1, False), ("float32", 4, False), ("fp16", 2, False), ("float32", 2, True)],
)
def test_the_gradient_is_that_of_both(precision, accumulate, compiled, monkeypatch):
    """The data's loss and the auxiliary loss, of the whole batch, at any loss scale, in any number of parts."""
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

    data = Echo().loss(by_hand(batch.inputs), batch.targets).sum() / (batch.targets != -100).sum()
    auxiliary = auxiliary_losses(by_hand)
    (data + auxiliary).backward()
    expected = torch.stack([layer.feedforward.inner.router.weight.grad for layer in by_hand.layers])
    tolerance = {"rtol": 2e-2, "atol": 2e-4} if precision == "fp16" else {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(before - routers(net), expected, **tolerance)
    assert outcome.loss == pytest.approx(data.item(), rel=2e-3)
    assert outcome.auxiliary_loss == pytest.approx(auxiliary.item(), rel=2e-3)
    assert auxiliary_losses(net) is None


def gradients(net: nn.Module, batch, **settings) -> tuple[torch.Tensor, Update]:
    """All gradients of a step, as what plain descent of rate 1 took from the weights, in the model's own precision."""
    update = update_of(net, **settings)
    before = [p.detach().clone() for p in net.parameters()]
    update(batch, 1.0)
    return torch.cat([(a - b.detach()).flatten() for a, b in zip(before, net.parameters(), strict=True)]), update


@pytest.mark.parametrize("name", ["transformer_moe", "mamba_moe"])
@pytest.mark.parametrize("accumulate", [2, 3, 12])
def test_parts_give_the_gradient_of_the_whole(name, accumulate):
    """In float64 to its rounding: the visits that balance the experts are those of the whole batch."""
    batch = Echo().train_batch(0, 12, 1)
    whole, at_once = gradients(model(name).double(), batch)
    parts, cut = gradients(model(name).double(), batch, accumulate=accumulate)
    assert (parts - whole).norm() < 1e-12 * whole.norm()
    loads = [expert_load(update.model) for update in (at_once, cut)]
    assert loads[0].dead == loads[1].dead
    torch.testing.assert_close(torch.tensor(loads[0].shares), torch.tensor(loads[1].shares))


def test_parts_without_balancing_give_the_load_of_the_whole():
    batch, nets = Echo().train_batch(0, 12, 1), [model(weight=0.0) for _ in range(2)]
    for net, accumulate in zip(nets, (1, 4), strict=True):
        gradients(net, batch, accumulate=accumulate)
    assert expert_load(nets[0]).shares == [pytest.approx(shares) for shares in expert_load(nets[1]).shares]


def test_counting_draws_the_random_numbers_of_the_parts():
    """With dropout: the parts by hand, each under the numbers it had, balanced by what all of them together chose."""
    batch, accumulate = Echo().train_batch(0, 8, 1), 4
    net, by_hand = model().double(), model().double()
    for part in (*net.modules(), *by_hand.modules()):
        if isinstance(part, nn.Dropout):
            part.p = 0.3
    torch.manual_seed(5)
    found, _ = gradients(net, batch, accumulate=accumulate)
    after = torch.get_rng_state()

    torch.manual_seed(5)
    layers = [layer.feedforward.inner for layer in by_hand.layers]
    data, visits, pulls = 0.0, [0.0 for _ in layers], [0.0 for _ in layers]
    for inputs, targets in zip(batch.inputs.chunk(accumulate), batch.targets.chunk(accumulate), strict=True):
        data = data + Echo().loss(by_hand(inputs), targets).double().sum() / (batch.targets != -100).sum()
        for i, layer in enumerate(layers):
            visits[i] = visits[i] + layer.expert_share.clone() / accumulate
            pulls[i] = pulls[i] + layer.loss_by_share / accumulate
    (data + sum(torch.dot(*pair) for pair in zip(visits, pulls, strict=True))).backward()
    expected = torch.cat([p.grad.flatten() for p in by_hand.parameters()])
    assert (found - expected).norm() < 1e-6 * expected.norm()  # Echo's loss is in float32
    assert torch.equal(after, torch.get_rng_state())


def test_a_capture_cannot_count_first():
    """Of a part of its own whose numbers are drawn twice, on a GPU as on a machine without one."""
    cuda = torch.device("cuda")
    net = model("transformer_moe")
    for layer in net.layers:
        layer.feedforward.inner.why_not_captured = lambda device: None  # as with the kernels of a GPU
    assert captures(config_of(), net, cuda)
    assert not captures(config_of(accumulate=2), net, cuda)
    with pytest.raises(UserError, match=r"^cuda_graph=True: the visits of experts are counted before"):
        captures(config_of(cuda_graph=True, accumulate=2), net, cuda)
    assert captures(config_of(accumulate=2), model("transformer"), cuda)


def test_the_logged_loss_does_not_know_the_weight():
    batch = Echo().train_batch(0, 8, 1)
    light, heavy = (update_of(model(weight=weight))(batch, 1.0) for weight in (0.01, 10.0))
    assert light.loss == heavy.loss
    assert heavy.auxiliary_loss == pytest.approx(1000 * light.auxiliary_loss, rel=1e-5)


def test_what_is_logged():
    net = model()
    update = update_of(net)
    values = update.values_to_log(update(Echo().train_batch(0, 8, 1), 1.0))
    load = expert_load(net)
    assert values["largest_expert_share"] == max(max(share) for share in load.shares)
    assert values["dead_experts"] == load.dead
    assert 2 <= values["auxiliary_loss"] < 16  # a layer's is 1 at perfect balance and 8 at the worst
    plain = update_of(model("transformer"))
    assert plain.values_to_log(plain(Echo().train_batch(0, 8, 1), 1.0)) == {}


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


class Squared(nn.Linear):
    """A part of a user's own, which leaves a loss without inheriting anything from here."""

    def forward(self, x):
        y = super().forward(x)
        self.auxiliary_loss = y.square().mean()
        return y


def test_any_part_may_leave_a_loss():
    model, x = nn.Sequential(Squared(3, 3), nn.Linear(3, 3)), torch.ones(2, 3)
    expected = model[0](x).square().mean()
    model(x)
    assert torch.equal(auxiliary_losses(model), expected)
    assert auxiliary_losses(model) is None
