"""Regularisation: what each mask leaves out, that evaluation sees none, and its losses by their formulas."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from fits import build, config_of
from torch import nn

from seqlab.data import of_cross_entropy
from seqlab.errors import UserError
from seqlab.models import auxiliary_losses
from seqlab.models.dropouts import Dropouts, LastOutput, WordDropout
from seqlab.models.layer import Branch
from seqlab.training.optim import sgd
from seqlab.training.parallel import ALONE
from seqlab.training.regularisation import Regularisation
from seqlab.training.update import Update
from support import Echo, architectures, built_model, depth

CPU = torch.device("cpu")


def small(name: str, *overrides: str, **widths) -> nn.Module:
    size = "size.d_model=16", "size.n_heads=2", "size.d_ff=24", f"size.n_layers={depth(name)}"
    return built_model(f"model={name}", *size, *overrides, **widths)


def tokens(rows: int = 4, length: int = 8, vocabulary: int = 7) -> torch.Tensor:
    return torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))


def about(found: torch.Tensor, p: float) -> bool:
    """Whether the mean of independent masks, of which each number is 0 or 1 / (1 - p), is 1 within five deviations."""
    return abs(found.mean().item() - 1) < 5 * (p / (1 - p) / found.numel()) ** 0.5


class TestMasks:
    def test_channels_of_a_sequence_at_all_its_positions(self):
        torch.manual_seed(1)
        y = Dropouts(0.0, channels=0.3).train()(torch.ones(200, 5, 30))
        assert (y == y[:, :1]).all()
        assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
        assert about(y[:, 0], 0.3)

    def test_whole_sequences(self):
        torch.manual_seed(1)
        y = Dropouts(0.0, sequences=0.3).train()(torch.ones(4000, 2, 3))
        assert (y == y[:, :1, :1]).all()
        assert about(y[:, 0, 0], 0.3)

    def test_a_word_wherever_it_stands(self):
        torch.manual_seed(1)
        ids = tokens(50, 40, 3000)
        y = WordDropout(0.3, 3000).train()(torch.ones(50, 40, 6), ids)
        assert (y == y[..., :1]).all()
        left = torch.full((3000,), -1.0).scatter(0, ids.flatten(), y[..., 0].flatten())
        assert torch.equal(left[ids], y[..., 0])
        assert about(left[left >= 0], 0.3)

    def test_in_half_precision_it_keeps_the_dtype(self):
        x, ids = torch.ones(4, 8, 6, dtype=torch.bfloat16), tokens()
        assert Dropouts(0.1, channels=0.5, sequences=0.5).train()(x).dtype == torch.bfloat16
        assert WordDropout(0.5, 7).train()(x, ids).dtype == torch.bfloat16

    def test_depth_grows_linearly_to_what_is_set(self):
        model = small("transformer", "model.dropout=0.1")
        Regularisation(depth=0.4).apply(model)
        halves = [part for part in model.modules() if isinstance(part, Branch)]
        assert [half.dropout.sequences for half in halves] == pytest.approx([0.1, 0.2, 0.3, 0.4])
        assert {half.dropout.p for half in halves} == {0.1}

    @pytest.mark.parametrize("name", ["lstm", "mamba"])
    def test_between_layers_is_every_half_layer_but_the_last(self, name):
        model = small(name, "size.n_layers=3")
        Regularisation(layers=0.25).apply(model)
        assert [layer.mixer.dropout.channels for layer in model.layers] == [0.25, 0.25, 0.0]


@pytest.mark.parametrize("name", [name for name in architectures() if not name.startswith("hybrid_")])
def test_every_model_trains_with_all_of_it_and_is_evaluated_without(name):
    """Evaluation is that of the model without, to the last bit; every parameter has a gradient."""
    model = small(name).eval()
    plain, inputs = model(tokens()), tokens()
    names, on = list(model.state_dict()), "weight_hh_l0" if name in ("lstm", "gru") else "out_proj"
    weights = 0.5 if any(f".{on}" in key for key in names) else 0.0
    residual = all(part.residual for part in model.modules() if isinstance(part, Branch))
    how = {"words": 0.2, "inputs": 0.4, "layers": 0.25, "output": 0.4, "weights": weights, "weights_on": [on]}
    Regularisation(**how, depth=0.2 * residual, ar=2.0, tar=1.0).apply(model)
    assert torch.equal(model(inputs), plain)
    assert list(model.state_dict()) == names
    torch.manual_seed(1)
    outputs = model.train()(inputs)
    assert not torch.allclose(outputs, plain)
    loss = outputs.square().mean() + auxiliary_losses(model)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(
        isinstance(p, nn.Parameter) for part in model.modules() for p in part._parameters.values() if p is not None
    )


@pytest.mark.parametrize(("name", "on"), [("lstm", "weight_hh_l0"), ("gru", "weight_hh_l0"), ("mamba", "in_proj")])
def test_dropped_weights_are_those_of_a_model_without_them(name, on):
    """Outputs and gradients of one whose weights are multiplied by the masks, at all positions of all sequences."""
    model = small(name).double().train()
    other = copy.deepcopy(model)
    Regularisation(weights=0.5, weights_on=[on]).apply(model)
    torch.manual_seed(3)
    model(tokens()).square().sum().backward()
    torch.manual_seed(3)
    chosen = {key: p for key, p in other.named_parameters() if f".{on}" in key}
    masks = {key: F.dropout(torch.ones_like(p), 0.5) for key, p in chosen.items()}
    with torch.no_grad():
        for key, mask in masks.items():
            assert set(mask.unique().tolist()) == {0.0, 2.0}
            chosen[key] *= mask
    other(tokens()).square().sum().backward()
    for (key, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad * masks.get(key, 1.0))


class Words(Echo):
    @of_cross_entropy
    def loss(self, outputs, targets):
        return super().loss(outputs, targets)


def stepped(how: Regularisation, **settings):
    """The outcome and the gradient of a step of a Transformer on a batch, beside that batch and the same model."""
    data, net = Words(), small("transformer").train()
    before = copy.deepcopy(net)
    config = config_of(clip_norm=None, regularisation=how, optimizer=plain_descent, **settings)
    config.check(data, ALONE)
    update, batch = Update(config, net, data, device=CPU), data.train_batch(0, 4, 1)
    outcome = update(batch, 1.0)
    gradient = torch.cat(
        [(a - b.detach()).flatten() for a, b in zip(before.parameters(), net.parameters(), strict=True)]
    )
    return outcome, gradient, batch, before


def plain_descent(model):
    return sgd(model, lr=1.0, momentum=0.0, nesterov=False)


def gradient_of(loss: torch.Tensor, model: nn.Module) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_has_the_smoothed_loss_and_the_losses_of_the_last_output(accumulate):
    """By torch's ``label_smoothing`` and the two formulas, on the whole batch."""
    how = Regularisation(ar=2.0, tar=3.0, label_smoothing=0.1)
    outcome, gradient, batch, model = stepped(how, accumulate=accumulate)
    h = model.hidden(batch.inputs)
    loss = F.cross_entropy(model.head(h).transpose(1, 2), batch.targets, label_smoothing=0.1)
    added = 2 * (h**2).mean() + 3 * ((h[:, 1:] - h[:, :-1]) ** 2).mean()
    assert outcome.loss == pytest.approx(loss.item(), rel=1e-5)
    assert outcome.auxiliary_loss == pytest.approx(added.item(), rel=1e-5)
    torch.testing.assert_close(gradient, gradient_of(loss + added, model), rtol=1e-3, atol=1e-5)


def test_what_is_evaluated_is_not_smoothed(tmp_path):
    plain, smooth = (
        build(tmp_path / str(e), data=Words(), regularisation=Regularisation(label_smoothing=e)) for e in (0.0, 0.5)
    )
    smooth.model.load_state_dict(plain.model.state_dict())
    for trainer in (plain, smooth):
        trainer.record, trainer.stop = lambda record: None, type("Never", (), {"signal": 0})
    assert plain.test().metrics == smooth.test().metrics


def test_the_size_is_of_what_is_left_and_the_change_of_all():
    """As AWD-LSTM has them: AR of the dropped output, TAR of the one before."""
    torch.manual_seed(2)
    h, part = torch.randn(3, 5, 8), LastOutput(0.5, 2.0, 1.0).train()
    dropped = part(h)
    expected = 2 * (dropped**2).mean() + ((h[:, 1:] - h[:, :-1]) ** 2).mean()
    assert auxiliary_losses(part).item() == pytest.approx(expected.item(), rel=1e-6)
    assert part(h[:, :1]).isfinite().all() and auxiliary_losses(part).isfinite()


REFUSED = [
    ("transformer", {"weights": 0.5}, "regularisation.weights_on=weight_hh_l0: is of no parameter", "Did you mean"),
    ("lstm", {"weights": 0.5, "weights_on": ["embed"]}, "is of embed.weight, which is in no mixer", "Name weights"),
    ("self_attention", {"depth": 0.1}, "regularisation.depth=0.1: leaves out half layers", "Leave it out"),
]


@pytest.mark.parametrize(("name", "how", "rule", "remedy"), REFUSED)
def test_what_a_model_does_not_have_is_refused(name, how, rule, remedy):
    with pytest.raises(UserError, match=rf"{re.escape(rule)}.*\n{remedy}"):
        Regularisation(**how).apply(small(name))


def test_other_data_and_models_are_refused():
    with pytest.raises(UserError, match=r"words=0.1: leaves out words, and .*\nSet regularisation.inputs"):
        Regularisation(words=0.1).apply(small("lstm", tokens=False))
    with pytest.raises(UserError, match=r"inputs=0.1: is for seqlab's own SequenceModel, and this is Linear"):
        Regularisation(inputs=0.1).apply(nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"regularisation.label_smoothing=0.1: is for a loss that is the cross-entropy"):
        config_of(regularisation=Regularisation(label_smoothing=0.1)).check(Echo(), ALONE)
    with pytest.raises(UserError, match=r"compile=True: does not compile weights that are dropped"):
        config_of(compile=True, regularisation=Regularisation(weights=0.1))
    with pytest.raises(UserError, match=r"nt_asgd=5: is one average, and ema=0.9 another"):
        config_of(ema=0.9, nt_asgd=5)


def test_a_bad_value_is_refused_in_two_lines(train, capsys):
    assert train("regularisation.words=1.0").status == 2
    said = capsys.readouterr().err
    assert (
        said == "regularisation.words=1.0: input should be less than 1.\nGive it a number of at least 0 and below 1.\n"
    )
