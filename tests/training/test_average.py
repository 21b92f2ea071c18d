"""The moving average of the weights: its values, and that it is what is evaluated, kept and tested."""

import torch
from fits import build, run, transformer, weights
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from seqlab.training import checkpoint
from seqlab.training.average import Average, NonMonotonic, copy_of
from seqlab.training.optim import adamw


def test_its_values_are_torchs():
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    ours, theirs = Average(model, copy_of(model), 0.7), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7))
    theirs.update_parameters(model)  # the first time it copies, and ours has begun with the same
    for seed in range(4):
        with torch.no_grad():
            for p in (*model.parameters(), model[1].running_mean):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
        theirs.update_parameters(model)
        ours.update(torch.tensor(1.0))
        ours.update(torch.tensor(0.0))  # of a step that was not taken
    for a, b in zip(ours.model.state_dict().values(), theirs.module.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_it_is_what_is_evaluated_kept_and_tested(tmp_path):
    """From the weights after each step, by the equation in float64."""
    records, seen = [], []
    trainer = build(tmp_path, steps=6, evaluate_every=2, ema=0.8)
    trained, launch = trainer.update.model, trainer.update.launch
    start = weights(trained).double()
    trainer.update.launch = lambda *given: (launch(*given), seen.append(weights(trained).double()))[0]
    run(trainer, records.append)
    average, expected = start, {}
    for step, now in enumerate(seen, start=1):
        average = expected[step] = 0.8 * average + 0.2 * now
    kept, fresh = trainer.counters.best_step, transformer()
    checkpoint.load_weights(trainer.best_checkpoint, fresh)
    for found in (fresh, trainer.model):
        torch.testing.assert_close(weights(found).double(), expected[kept], rtol=1e-5, atol=1e-6)
    assert (weights(trained).double() - expected[6]).abs().max() > 1e-3
    plain = build(tmp_path / "plain", model=fresh)
    plain.record, plain.stop = records.append, trainer.stop
    assert plain.test().metrics == trainer.test().metrics
    assert [r["loss"] for r in records if r["split"] == "validation"][kept // 2 - 1] == trainer.counters.best_loss


def test_training_goes_as_without(tmp_path):
    losses = []
    for ema in (None, 0.9):
        records = []
        run(build(tmp_path / str(ema), model=transformer(), ema=ema), records.append)
        losses.append([r["loss"] for r in records if r["split"] == "train"])
    assert losses[0] == losses[1]


def test_frozen_weights_are_held_once(tmp_path):
    trainer = build(tmp_path, freeze=["layers.0"], ema=0.9)
    shared = set(trainer.model.parameters()) & set(trainer.update.model.parameters())
    assert shared == set(trainer.update.model.layers[0].parameters())
    state = trainer.update.state_dict()["average"]["weights"]
    assert len(state) == len(trainer.update.parameters)


def settled(model: nn.Module, losses: list[float], patience: int) -> int:
    """The number of the evaluation after which the mean begins, by algorithm 1 of the paper, word for word."""
    average, logs, ours = NonMonotonic(model, copy_of(model), patience), [], None
    for t, v in enumerate(losses):
        average.validated(v, t)
        if ours is None and average.counts:
            ours = t
    theirs = None
    for t, v in enumerate(losses):
        if theirs is None and t > patience and v > min(logs[i] for i in range(t - patience)):
            theirs = t
        logs.append(v)
    assert ours == theirs
    return ours


def test_the_mean_begins_where_validation_no_longer_improves():
    model = nn.Linear(2, 1)
    assert settled(model, [5, 4, 3, 2, 1], 1) is None
    assert settled(model, [5, 4, 3, 3.5, 3.2, 2.9, 3.3], 2) == 6
    assert settled(model, [5, 6, 7, 8, 9, 10], 3) == 4
    assert settled(model, [5, 6], 5) is None


def test_the_mean_is_that_of_torchs_asgd():
    """With ``lambd=0``, which has no decay of the rate; its first weights are those of the second step after t0."""
    torch.manual_seed(0)
    model, start, steps = nn.Linear(5, 3), 6, 15
    asgd = torch.optim.ASGD(model.parameters(), lr=0.1, lambd=0.0, t0=start - 2)
    average = NonMonotonic(model, copy_of(model), 1)
    for step in range(1, steps + 1):
        model(torch.randn(8, 5)).square().sum().backward()
        asgd.step()
        asgd.zero_grad()
        average.update(torch.tensor(1.0))
        average.update(torch.tensor(0.0))  # of a step that was not taken
        if step < start:
            assert all(torch.equal(a, w) for a, w in zip(average.averages, average.weights, strict=True))
        if step == start:
            for loss in (1.0, 1.0, 2.0):
                average.validated(loss, step)
    assert average.count == steps - start + 1
    for a, w in zip(average.averages, model.parameters(), strict=True):
        torch.testing.assert_close(a, asgd.state[w]["ax"])
        assert not torch.allclose(a, w)


def test_a_run_evaluates_the_mean_from_the_trigger_on(tmp_path):
    """By the losses and weights of the run itself, in float64."""
    records, seen, evaluated = [], [], []
    trainer = build(tmp_path, steps=8, evaluate_every=1, nt_asgd=1, optimizer=lambda model: adamw(model, lr=3.0))
    trained, launch, validated = trainer.update.model, trainer.update.launch, trainer.update.validated
    trainer.update.launch = lambda *given: (launch(*given), seen.append(weights(trained).double()))[0]
    trainer.update.validated = lambda *given: (evaluated.append(weights(trainer.model).double()), validated(*given))
    run(trainer, records.append)
    losses = [record["loss"] for record in records if record["split"] == "validation"]
    start = next(i for i in range(2, 8) if losses[i] > min(losses[: i - 1]))
    assert start < 6
    for i, average in enumerate(evaluated):
        expected = torch.stack(seen[min(i, start) : i + 1]).mean(0)
        torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-6)
