"""Frozen parameters: which a pattern names, that they stay as they are, and what of their cost is left."""

import pytest
import torch
from fits import build, run

from seqlab.errors import UserError
from seqlab.models.counting import training_flops
from seqlab.training.freezing import freeze, is_of, matching
from support import Echo, architectures, built_model

SIZE = ("size.d_model=16", "size.n_heads=2", "size.d_ff=32")


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("embed*", "embed.weight", True),
        ("layers.0.*", "layers.0.mixer.inner.A_log", True),
        ("layers.1", "layers.1.mixer.norm.weight", True),
        ("layers.1", "layers.10.mixer.norm.weight", False),
        ("in_proj", "layers.3.feedforward.inner.in_proj.weight", True),
        ("in_proj", "layers.3.mixer.inner.x_in_proj.weight", False),
        ("layers.[01].*.bias", "layers.1.mixer.inner.dt_proj.bias", True),
        ("layers.*.norm", "norm.weight", False),
        ("D", "layers.0.mixer.inner.dt_bias", False),
    ],
)
def test_what_a_pattern_is_of(pattern, name, expected):
    assert is_of(pattern, name) is expected


def test_a_shared_matrix_goes_by_both_names():
    model = built_model("model=mamba", *SIZE)
    assert model.head.weight is model.embed.weight
    for pattern in ("head", "embed"):
        assert {id(p) for p in matching(model, [pattern], "freeze").values()} == {id(model.embed.weight)}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["layer.0.*"], r"freeze=layer\.0\.\*: is of no parameter of this model\.\nDid you mean 'layers\.0'\?"),
        (["embed", "outproj"], r"freeze=outproj: .*\nDid you mean 'out_proj'\?"),
        (["rope"], r"freeze=rope: .*\nIts parts are: embed, weight, layers, mixer, norm, inner, .*, out_proj, head"),
        (["*"], r"freeze=\['\*'\]: leaves nothing to train\.\nLeave a part"),
    ],
)
def test_a_mistake_is_refused(patterns, message):
    with pytest.raises(UserError, match=message):
        freeze(built_model("model=mamba", *SIZE), patterns)


@pytest.mark.parametrize("name", architectures())
def test_the_others_have_the_gradient_that_they_had(name):
    """With every second parameter frozen, within each operator too."""

    def gradients(every):
        torch.manual_seed(0)
        model.zero_grad(set_to_none=True)
        for i, p in enumerate(model.parameters()):
            p.requires_grad_(i % every == 0)
        model(tokens).square().mean().backward()
        return [p.grad for p in model.parameters()]

    model, tokens = built_model(f"model={name}", *SIZE), torch.arange(14).view(2, 7) % 7
    whole, half = gradients(1), gradients(2)
    assert all(gradient is None for gradient in half[1::2])
    torch.testing.assert_close(half[::2], whole[::2])


def test_a_run_leaves_them_alone(tmp_path):
    trainer = build(tmp_path, model=built_model("model=mamba", *SIZE), freeze=["embed*", "layers.0.*"])
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    run(trainer)
    frozen = {name for name in before if name.startswith(("embed", "layers.0."))}
    assert {name for name, p in trainer.model.named_parameters() if torch.equal(p, before[name])} == frozen
    (optimizer,) = trainer.update.optimizers
    trained = {id(p) for name, p in trainer.model.named_parameters() if name not in frozen}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == set(map(id, optimizer.state))
    assert set(map(id, optimizer.state)) == trained


def test_what_is_counted_is_the_work_that_is_left():
    """A layer frozen with all below it costs its forward pass, a third; one above it leaves out its weights' gradient.

    The head shares the embedding's matrix, so that nothing else costs but the layers and the head.
    """
    data = Echo()

    def count(*patterns):
        model = built_model("model=mamba", *SIZE)
        freeze(model, patterns)
        return training_flops(model, data)

    everything, none = count(), built_model("model=mamba", *SIZE, "size.n_layers=0", "model.pattern=[]")
    forward = (everything - training_flops(none, data)) / 6  # of one of two layers, scan included
    assert everything - count("embed", "layers.0") == 2 * forward + training_flops(none, data) / 3
