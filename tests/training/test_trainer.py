"""The loop: budgets, accumulation, selection, skipped steps, precision, and stopping."""

import math
import signal
from functools import partial

import pytest
import torch
from fits import build, run, stop_at, transformer, weights
from torch import nn

from seqlab.errors import Diverged, Interrupted, UserError
from seqlab.training import checkpoint
from seqlab.training.optim import adamw, muon, sgd
from seqlab.training.regularisation import Regularisation
from support import Echo


class Broken(Echo):
    """Some training losses are not a number."""

    def __init__(self, bad):
        super().__init__()
        self.bad, self.calls = bad, 0

    def loss(self, outputs, targets):
        loss = super().loss(outputs, targets)
        if not torch.is_grad_enabled() or outputs.is_meta:  # an evaluation, or the count of FLOPs
            return loss
        self.calls += 1
        return loss * math.nan if self.calls - 1 in self.bad else loss


class TestBudget:
    @pytest.mark.parametrize(
        ("budget", "steps"),
        [
            ({"steps": 5}, 5),
            ({"steps": None, "epochs": 2}, 32),
            ({"steps": None, "epochs": 0.1}, 2),
            ({"steps": None, "tokens": 100}, 4),
        ],
    )
    def test_steps(self, tmp_path, budget, steps):
        assert build(tmp_path, **budget).total == steps

    @pytest.mark.parametrize("budget", [{"epochs": 1}, {"steps": None}, {"tokens": 9, "epochs": 1}])
    def test_exactly_one(self, tmp_path, budget):
        with pytest.raises(UserError, match="exactly one of steps, epochs and tokens"):
            build(tmp_path, **budget)


class TestGradient:
    def test_accumulation_is_the_whole_batch(self, tmp_path):
        whole, parts = (
            build(tmp_path / str(n), optimizer=lambda m: sgd(m, lr=0.1), accumulate=n, clip_norm=None) for n in (1, 4)
        )
        for trainer in (whole, parts):
            run(trainer)
        torch.testing.assert_close(weights(whole.model), weights(parts.model), rtol=1e-4, atol=1e-6)

    def test_accumulate_must_divide(self, tmp_path):
        with pytest.raises(UserError, match=r"accumulate=3: must divide batch_size=4"):
            build(tmp_path, accumulate=3)

    def test_the_norm_is_clipped(self, tmp_path):
        trainer = build(
            tmp_path, optimizer=lambda m: sgd(m, lr=1.0, momentum=0.0, nesterov=False), clip_norm=0.01, steps=1
        )
        before = weights(trainer.model)
        run(trainer)
        assert (weights(trainer.model) - before).norm() == pytest.approx(0.01, rel=1e-3)

    def test_a_batch_gives_the_mean_over_what_counts(self, tmp_path):
        records, trainer = [], build(tmp_path, steps=1)
        data, model = trainer.data, trainer.model
        batch = data.train_batch(0, 4, 1)
        expected = data.loss(model(batch.inputs), batch.targets)[:, 1:].mean().item()
        run(trainer, records.append)
        assert records[0]["loss"] == pytest.approx(expected, rel=1e-5)


class TestRecords:
    def test_what_is_recorded(self, tmp_path):
        records, trainer = [], build(tmp_path, log_every=2)
        run(trainer, records.append)
        assert [(r["step"], r["split"]) for r in records] == [
            (2, "train"),
            (3, "validation"),
            (4, "train"),
            (6, "train"),
            (6, "validation"),
        ]
        last = records[-1]
        assert last["tokens"] == 6 * 4 * 8
        assert last["flops"] == 6 * trainer.flops_per_step
        assert last["seconds"] > 0
        assert {"loss", "lr", "grad_norm", "skipped"} <= set(records[0])

    def test_the_schedule_is_run(self, tmp_path):
        records = []
        trainer = build(tmp_path, schedule=lambda step, total: (step + 1) / total, optimizer=lambda m: adamw(m, lr=0.6))
        run(trainer, records.append)
        rates = [r["lr"] for r in records if r["split"] == "train"]
        assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])

    def test_the_order_of_data_does_not_depend_on_the_model(self, tmp_path):
        seen = []
        for model in (None, nn.Embedding(7, 7)):
            data = Echo()
            original, batches = data.train_batch, []
            data.train_batch = lambda *args, o=original, b=batches, **kw: b.append(o(*args, **kw)) or b[-1]
            optimizer = adamw if model is None else lambda m: [torch.optim.SGD(m.parameters(), lr=0.1)]
            run(build(tmp_path / str(len(seen)), model=model, data=data, optimizer=optimizer))
            seen.append(torch.stack([batch.inputs for batch in batches if len(batch.inputs) == 4]))
        assert torch.equal(*seen)


class TestSelection:
    def losses(self, trainer, values):
        """Let validation find these losses, one after the other."""
        values = iter(values)

        class Result:
            def __init__(self, loss):
                self.metrics, self.loss_by_position = {"loss": loss}, []

        trainer.evaluate = lambda split, bar: Result(next(values))
        return trainer

    def test_the_best_weights_are_kept(self, tmp_path):
        trainer = self.losses(build(tmp_path, steps=5, evaluate_every=1), [3, 1, 2, 2, 2])
        seen = {}
        original = trainer._save_if_due
        trainer._save_if_due = lambda: (seen.setdefault(trainer.counters.step, weights(trainer.model)), original())
        run(trainer)
        assert trainer.counters.best_step == 2
        assert torch.equal(weights(trainer.model), seen[2])

    @pytest.mark.parametrize("losses, read", [([3, 2, 1], 0), ([3, 1, 2], 1)], ids=["last", "earlier"])
    def test_the_best_are_read_back_unless_they_are_the_last(self, tmp_path, monkeypatch, losses, read):
        original, loaded = checkpoint.load_weights, []
        monkeypatch.setattr(checkpoint, "load_weights", lambda *given: loaded.append(given[0]) or original(*given))
        trainer = self.losses(build(tmp_path, steps=3, evaluate_every=1), losses)
        run(trainer)
        assert len(loaded) == read
        again = transformer()
        original(trainer.best_checkpoint, again)
        assert torch.equal(weights(trainer.model), weights(again))

    def test_patience(self, tmp_path):
        trainer = self.losses(build(tmp_path, steps=9, evaluate_every=1, patience=2), [3, 2, 2, 1, 2, 2, 0])
        run(trainer)
        assert trainer.stop_reason is not None
        assert (trainer.counters.step, trainer.counters.best_step) == (6, 4)

    def test_a_validation_that_is_no_number_never_wins(self, tmp_path):
        trainer = self.losses(build(tmp_path, steps=3, evaluate_every=1), [math.nan, 5, math.nan])
        run(trainer)
        assert (trainer.counters.best_step, trainer.counters.best_loss) == (2, 5)


class TestUnsoundSteps:
    def test_are_skipped_and_counted(self, tmp_path):
        trainer = build(tmp_path, data=Broken({1, 2}), steps=4)
        run(trainer)
        assert trainer.counters.skipped == 2
        assert torch.isfinite(weights(trainer.model)).all()

    def test_change_no_weight(self, tmp_path):
        trainer = build(tmp_path, data=Broken({0, 1}), steps=2, max_skipped=9)
        before = weights(trainer.model)
        run(trainer)
        assert torch.equal(weights(trainer.model), before)

    def test_several_in_a_row_stop_the_run_with_a_checkpoint(self, tmp_path):
        trainer = build(tmp_path, data=Broken({4, 5, 6}), steps=20, max_skipped=3)
        with pytest.raises(Diverged, match="3 steps in a row, up to step 7"):
            run(trainer)
        again = build(tmp_path, data=Echo(), steps=20)
        again.restore()
        assert torch.isfinite(weights(again.model)).all()
        assert again.counters.step in (3, 6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains_and_keeps_float32_parameters(tmp_path, precision):
    records, trainer = (
        [],
        build(tmp_path, precision=precision, steps=40, evaluate_every=40, optimizer=lambda m: adamw(m, lr=1e-2)),
    )
    run(trainer, records.append)
    assert all(p.dtype is torch.float32 for p in trainer.model.parameters())
    train = [r["loss"] for r in records if r["split"] == "train"]
    assert train[-1] < 0.6 * train[0]


@pytest.mark.parametrize("optimizer", [adamw, muon])
def test_a_gradient_past_fp16_changes_no_weight_of_any_optimizer(tmp_path, optimizer):
    trainer = build(tmp_path, precision="fp16", optimizer=optimizer, steps=2, clip_norm=None)
    trainer.update.scaler._init_scale = 2.0**60  # the first scaled gradients overflow, and the scale comes down
    before = weights(trainer.model)
    run(trainer)
    assert torch.equal(weights(trainer.model), before)
    assert (trainer.counters.skipped, trainer.counters.skipped_in_a_row) == (2, 0)


def test_a_budget_lowered_below_where_the_run_stands(tmp_path):
    trainer = build(tmp_path, steps=9, evaluate_every=9)
    stop_at(trainer, 4)
    with pytest.raises(Interrupted):
        run(trainer)
    records, again = [], build(tmp_path, steps=3, evaluate_every=9)
    again.restore()
    run(again, records.append)
    assert [(r["step"], r["split"]) for r in records] == [(4, "validation")]
    assert again.counters.best_step == 4


@pytest.mark.slow
def test_compile_trains_the_same(tmp_path):
    plain, compiled = [], []
    run(build(tmp_path / "a", steps=3), plain.append)
    run(build(tmp_path / "b", steps=3, compile=True), compiled.append)
    for a, b in zip(plain, compiled, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


LORA = {"rank": 3, "alpha": 6.0, "on": ["in_proj", "out_proj"]}
MASKS = Regularisation(words=0.2, inputs=0.3, layers=0.3, output=0.3, weights=0.5, weights_on=["out_proj"], depth=0.2)
RESUMED = {
    "all": ((1, 4, 6, 9), {}),
    "average beside what is frozen": ((4,), {"ema": 0.7, "freeze": ["embed", "layers.0"]}),
    "lora": ((4,), {"lora": LORA, "accumulate": 2}),
    "masks, and the mean of the weights from the third evaluation on": (
        (6,),
        {"regularisation": MASKS, "nt_asgd": 1, "evaluate_every": 1, "optimizer": partial(adamw, lr=3.0)},
    ),
    "average of lora": ((4,), {"lora": LORA, "ema": 0.7, "optimizer": partial(adamw, layer_decay=0.8)}),
}


class TestStopping:
    @pytest.mark.parametrize(("stops", "settings"), RESUMED.values(), ids=RESUMED)
    def test_a_stopped_run_continues_bitwise(self, tmp_path, stops, settings):
        def fresh(folder):
            torch.manual_seed(0)
            model = transformer("model.dropout=0.1")
            return build(folder, model=model, **{"steps": 9} | settings)

        whole = fresh(tmp_path / "whole")
        run(whole)
        for step in stops:
            folder = tmp_path / str(step)
            stopped = fresh(folder)
            stop_at(stopped, step)
            with pytest.raises(Interrupted) as ending:
                run(stopped)
            assert ending.value.exit_status == 143
            assert ending.value.step == step
            torch.manual_seed(99)
            again = fresh(folder)
            again.restore()
            run(again)
            assert torch.equal(weights(again.model), weights(whole.model))
            assert torch.equal(weights(again.update.model), weights(whole.update.model))

    def test_within_an_evaluation(self, tmp_path):
        trainer = build(tmp_path)
        original = trainer.data.evaluation_batches

        def stopping(split, batch_size):
            for batch in original(split, batch_size):
                trainer.stop.signal = signal.SIGINT
                yield batch

        trainer.data.evaluation_batches = stopping
        with pytest.raises(Interrupted) as ending:
            run(trainer)
        assert ending.value.exit_status == 130
        again = build(tmp_path)
        again.restore()
        assert (again.counters.step, again.counters.evaluated_step) == (3, 0)

    def test_in_the_test_split_the_checkpoint_stays_the_last(self, tmp_path):
        trainer = build(tmp_path, steps=6)
        run(trainer)
        trainer.stop.signal = signal.SIGTERM
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(Interrupted):
            trainer.test()
        assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
