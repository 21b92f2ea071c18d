"""The moving average of the weights: its values, and that it is what is evaluated, kept and tested."""

import torch
from fits import build, run, transformer, weights
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from seqlab.training import checkpoint
from seqlab.training.average import Average


def test_its_values_are_torchs():
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    ours, theirs = Average(model, 0.7), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7))
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
