"""Steps that the device decides on: those that Python would have taken, captured or not, in one go or resumed."""

import copy
import io

import pytest
import torch
from fits import config_of, weights
from torch import nn

from seqlab.data import Batch
from seqlab.training.captured import EAGER
from seqlab.training.device_step import DeviceStep, can_step
from seqlab.training.optim import adam, adamw, muon, sgd
from seqlab.training.update import Update

CPU, GPU = torch.device("cpu"), torch.device("cuda")
STEPS, UNSOUND = 20, (0, 9, 10)  # the first, when there are no moments yet, and some among those replayed
BASE = 2.0**-6  # that and its products with the rates are float32 numbers, so that no rounding can differ
MAKERS = {
    "adamw": lambda model, lr=BASE: adamw(model, lr=lr),
    "adam": lambda model, lr=BASE: adam(model, lr=lr),
    "sgd": lambda model, lr=BASE: sgd(model, lr=lr, weight_decay=0.1),
    "plain_sgd": lambda model, lr=BASE: sgd(model, lr=lr, momentum=0.0),
    "muon": lambda model, lr=BASE: muon(model, lr=lr),
}
LORA = {"rank": 2, "alpha": 4.0, "on": ["layers"]}
FOLLOWED = {"average": {"ema": 0.9}, "lora": {"lora": LORA}, "both": {"ema": 0.9, "lora": LORA}}
ON_DEVICE = [name for name in MAKERS if name != "muon"]


def falling(step):
    return 1 - step / 32


class Net(nn.Module):
    """Two maps, whose gradients a GPU sums in one order, and a parameter that has none."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(6, 16), nn.Linear(16, 3)])
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x):
        first, second = self.layers
        return second(first(x).tanh())


class Points:
    """What an update needs of a data set."""

    carries = False

    def mask(self, targets):
        return torch.ones_like(targets[..., 0])

    def loss(self, outputs, targets):
        return (outputs - targets).square().sum(dim=-1)


def batch(step):
    x, y = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(step))
    return Batch(x, y[..., :3] * (float("inf") if step in UNSOUND else 1))


class TestDecision:
    @pytest.mark.parametrize("name", MAKERS)
    def test_which_optimizers(self, name):
        assert all(map(can_step, MAKERS[name](Net()))) == (name in ON_DEVICE)

    def test_not_those_without_such_a_kernel(self):
        weight = [nn.Parameter(torch.ones(2))]
        assert not can_step(torch.optim.AdamW(weight))
        assert not can_step(torch.optim.SGD(weight, lr=0.1, momentum=0.9, dampening=0.1))
        assert not can_step(type("Mine", (torch.optim.SGD,), {})(weight, lr=0.1))

    def test_not_where_python_goes_with_each_step(self):
        """As a count of steps or a mean of the weights would: a replay would leave it out."""
        for watch in (
            lambda optimizer: optimizer.register_step_pre_hook(lambda *_: None),
            lambda optimizer: optimizer.register_step_post_hook(lambda *_: None),
            lambda optimizer: setattr(optimizer, "step", optimizer.step),
        ):
            (optimizer,) = MAKERS["adamw"](Net())
            watch(optimizer)
            assert not can_step(optimizer)

    @pytest.mark.parametrize("name", ON_DEVICE)
    def test_it_is_the_optimizers_own_step_or_none(self, name):
        """On a CPU, where the fused kernels know the flag too."""
        plain, decided = Net(), Net()
        (own,), (other,) = MAKERS[name](plain), MAKERS[name](decided)
        step = DeviceStep([other], CPU)
        for number in range(STEPS):
            for net in (plain, decided):
                inputs, targets = batch(number)
                Points().loss(net(inputs), targets).mean().backward()
            own.param_groups[0]["lr"] = other.param_groups[0]["lr"] = BASE * falling(number)
            if number not in UNSOUND:
                own.step()
            own.zero_grad()
            step.set_rates()
            step(torch.tensor([1.0, float("nan") if number in UNSOUND else 1.0]))
            assert decided.layers[0].weight.grad is None
            exact = "sgd" not in name  # whose usual kernels round at other places
            torch.testing.assert_close(weights(decided), weights(plain), **({"rtol": 0, "atol": 0} if exact else {}))
        assert repr(own.state_dict()["param_groups"]) == repr(other.state_dict()["param_groups"])
        for mine, theirs in zip(own.state.values(), other.state.values(), strict=True):
            assert mine.keys() == theirs.keys()
            torch.testing.assert_close(mine, theirs)

    @pytest.mark.parametrize("settings", FOLLOWED.values(), ids=FOLLOWED)
    def test_what_follows_a_step_follows_those_that_are_taken(self, settings):
        config = config_of(optimizer=MAKERS["adamw"], **settings)
        updates = [Update(config, Net(), Points(), device=CPU) for _ in range(2)]
        by_python, by_device = updates
        by_device.device_step = DeviceStep(by_device.optimizers, CPU)
        for step in range(STEPS):
            outcome = by_python(batch(step), 1.0)
            by_device.device_step.set_rates()
            by_device._gradient_and_step(*batch(step))
            assert outcome.taken == (step not in UNSOUND)
            for of in (lambda update: update.model, lambda update: update.evaluated):
                assert torch.equal(*(weights(of(update)) for update in updates))

    def test_on_a_cpu_nothing_is_late(self):
        for name, maker in MAKERS.items():
            update = Update(config_of(optimizer=maker), Net(), Points(), device=CPU)
            assert not update.late, name
            assert update.launch(batch(1), 1.0)().taken


def on_gpu(name, *, cuda_graph=True, net=None, lr=BASE, **settings):
    net = (net or Net()).to(GPU)
    config = config_of(optimizer=lambda model: MAKERS[name](model, lr=lr), **settings)
    return net, Update(config, net, Points(), device=GPU, cuda_graph=cuda_graph)


def trained(net, update, steps=range(STEPS), rate=falling):
    """The outcomes, each read after the next launch, and the weights."""
    pending, outcomes = [], []
    for step in steps:
        pending.append(update.launch(Batch(*(part.pin_memory() for part in batch(step))), rate(step)))
        if len(pending) > 1:
            outcomes.append(pending.pop(0)())
    outcomes.append(pending.pop()())
    return repr(outcomes), weights(net)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnAGpu:
    @pytest.mark.parametrize("name", MAKERS)
    def test_captured_is_eager_is_pythons_bit_for_bit(self, name):
        """SGD's usual kernels, which Python's decision leaves in place, round at other places than its fused ones."""
        captured, eager, decided = on_gpu(name), on_gpu(name, cuda_graph=False), on_gpu(name, cuda_graph=False)
        assert captured[1].late == eager[1].late == (name != "muon")
        decided[1].device_step, decided[1].change = None, decided[1]._gradient
        (told, found), (told_eagerly, expected) = trained(*captured), trained(*eager)
        told_by_python, by_python = trained(*decided)
        assert captured[1].change.graph is not None
        assert torch.equal(found, expected)
        assert told == told_eagerly
        exact = "sgd" not in name
        torch.testing.assert_close(found, by_python, **({"rtol": 0, "atol": 0} if exact else {}))
        assert (told == told_by_python) or not exact
        assert told.count("taken=False, hopeless=True") == len(UNSOUND)
        assert found.isfinite().all()
        steps = {int(state["step"]) for o in captured[1].optimizers for state in o.state.values() if "step" in state}
        assert steps <= {STEPS - len(UNSOUND)}

    @pytest.mark.parametrize("settings", FOLLOWED.values(), ids=FOLLOWED)
    @pytest.mark.parametrize("name", ["adamw", "muon"])
    def test_what_follows_a_step_is_replayed_with_it(self, name, settings):
        found = []
        for captured in (True, False):
            net, update = on_gpu(name, cuda_graph=captured, **settings)
            trained(net, update)
            found.append(torch.cat([weights(net), weights(update.evaluated)]))
            assert not captured or update.change.graph is not None
        assert found[0].isfinite().all()
        assert torch.equal(*found)

    def test_every_replay_has_its_own_rate(self):
        """A rate of 0 leaves the weights, and without moments a rate twice as large moves them twice as far."""
        net, update = on_gpu("plain_sgd")
        trained(net, update, range(1, EAGER + 3), rate=lambda step: 0.0)
        start, moves = weights(net), []
        assert update.change.graph is not None
        assert torch.equal(start, weights(Net().to(GPU)))
        for factor in (1.0, 2.0):
            moves.append(trained(net, update, [1], rate=lambda step, factor=factor: factor)[1] - start)
            trained(net, update, [1], rate=lambda step: 0.0)
            with torch.no_grad():
                for p, first in zip(net.parameters(), Net().parameters(), strict=True):
                    p.copy_(first)
        assert moves[0].abs().max() > 1e-4
        torch.testing.assert_close(moves[1], 2 * moves[0], rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("same", [False, True])
    @pytest.mark.parametrize("name", MAKERS)
    def test_a_resumed_run_is_the_whole_run_bit_for_bit(self, name, same):
        """It takes eagerly what the whole run replayed; with ``same`` it loads into an update that has captured."""
        lr, rate = 1e-2, lambda step: 1 / (1 + step)  # no float32 numbers
        whole = trained(*on_gpu(name, lr=lr), rate=rate)[1]
        net, update = on_gpu(name, lr=lr)
        trained(net, update, range(11), rate=rate)
        file = io.BytesIO()
        torch.save(update.state_dict(), file)
        saved = torch.load(io.BytesIO(file.getvalue()), map_location="cpu", weights_only=True)
        for group in (group for optimizer in saved["optimizers"] for group in optimizer["param_groups"]):
            assert type(group["lr"]) is float
            assert not group.get("capturable")
        kept = copy.deepcopy(net.state_dict())
        if same:
            trained(net, update, range(11, 14), rate=rate)
        else:
            net, update = on_gpu(name, lr=lr)
        net.load_state_dict(kept)
        update.load_state_dict(saved)
        assert torch.equal(trained(net, update, range(11, STEPS), rate=rate)[1], whole)

    def test_a_run_records_what_it_would_if_each_outcome_were_waited_for(self, train, monkeypatch):
        settings = "device=cuda", "model=transformer", "trainer.steps=14", "trainer.log_every=4", "optimizer.lr=1e-4"
        late = train(*settings, "trainer.evaluate_every=5", folder="late")
        monkeypatch.setattr("seqlab.training.update.can_step", lambda optimizer: False)
        at_once = train(*settings, "trainer.evaluate_every=5", folder="at_once")
        assert late.summary["cuda_graph"]
        for a, b in zip(late.records, at_once.records, strict=True):
            assert a.keys() == b.keys()
            assert all(a[key] == b[key] for key in a.keys() & {"step", "split", "tokens", "lr", "skipped"})
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)  # sums on a GPU are in no order

    @pytest.mark.parametrize("name", ON_DEVICE)
    def test_a_state_that_python_stepped_to_is_taken_over(self, name):
        """As a checkpoint of a CPU, or one from before the device decided: the same groups, the same state."""
        before = Net()
        old = Update(config_of(optimizer=MAKERS[name]), before, Points(), device=CPU)
        for step in range(1, 9):
            old(batch(step), 1.0)
        on_cpu, (net, update) = copy.deepcopy(before), on_gpu(name)
        net.load_state_dict(before.state_dict())
        update.load_state_dict(copy.deepcopy(old.state_dict()))
        assert update.late
        going_on = Update(config_of(optimizer=MAKERS[name]), on_cpu, Points(), device=CPU)
        going_on.load_state_dict(old.state_dict())
        for step in range(9, STEPS):
            going_on(batch(step), falling(step))
        _, found = trained(net, update, range(9, STEPS))
        torch.testing.assert_close(found.cpu(), weights(on_cpu), rtol=1e-3, atol=5e-4)
