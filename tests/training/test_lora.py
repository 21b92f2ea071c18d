"""Low-rank changes of weights: gradients by autograd through W + alpha / r B A, and what is left alone."""

import pytest
import torch
from fits import build, run, transformer
from torch.func import functional_call

from seqlab.errors import UserError
from seqlab.models.parametrisation import Rates
from seqlab.training.lora import Lora
from seqlab.training.optim import adamw, muon, trainable
from support import built_model

SIZE = ("size.d_model=16", "size.n_heads=2", "size.d_ff=32")
SETTINGS = {"rank": 2, "alpha": 3.0, "on": ["in_proj", "out_proj"]}
TOKENS = torch.arange(14).view(2, 7) % 7
ADAPTED = {
    "transformer": ["in_proj", "embed"],  # the embedding is the head's matrix too
    "mamba": ["in_proj", "x_proj", "layers.*.conv_weight", "A_log"],
    "mamba_moe": ["layers.0.feedforward"],  # the router's matrix and stacks of experts'
    "lstm": ["weight_ih_l0"],
}


@pytest.mark.parametrize(("name", "on"), ADAPTED.items(), ids=ADAPTED)
def test_factors_have_the_gradient_of_autograd(name, on):
    model = built_model(f"model={name}", *SIZE).eval()  # without dropout
    base = {key: p.detach().clone() for key, p in model.named_parameters()}
    names = {p: key for key, p in model.named_parameters()}
    lora = Lora(model, SETTINGS | {"on": on})
    for W in lora.weights:
        torch.nn.init.normal_(W.factors[0], std=0.1)  # B is zero at the start, and A has no gradient then
    lora.merge()
    for _ in range(2):  # as in two parts of a batch
        model(TOKENS).square().mean().backward()
    factors = [[f.detach().clone().requires_grad_() for f in W.factors] for W in lora.weights]
    changed = {
        names[W]: base[names[W]] + 1.5 * torch.einsum("...or,...ri->...oi", B, A)
        for W, (B, A) in zip(lora.weights, factors, strict=True)
    }
    (2 * functional_call(model, changed, (TOKENS,)).square().mean()).backward()
    for W, expected in zip(lora.weights, factors, strict=True):
        assert W.grad is None
        for ours, theirs in zip(W.factors, expected, strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_a_run_changes_the_chosen_weights_by_their_factors(tmp_path):
    settings = SETTINGS | {"on": ["in_proj"]}
    trainer = build(tmp_path, model=transformer(), lora=settings, freeze=["layers.1.mixer"])
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    run(trainer)
    changed = {name for name, p in trainer.update.model.named_parameters() if not torch.equal(p, before[name])}
    chosen = {f"layers.{where}.inner.in_proj.weight" for where in ("0.mixer", "0.feedforward", "1.feedforward")}
    assert changed == chosen
    for name in chosen:
        W = trainer.update.model.get_parameter(name)
        change = (W - before[name]).detach()
        B, A = W.factors
        torch.testing.assert_close(change, 1.5 * (B @ A).detach(), rtol=1e-4, atol=1e-6)
        assert torch.linalg.matrix_rank(change, rtol=1e-3) == 2
    assert trainer.update.parameters == trainable(trainer.update.model)
    assert sum(p.numel() for p in trainer.update.parameters) == sum(2 * sum(before[name].shape) for name in chosen)


@pytest.mark.parametrize("optimizer", [adamw, muon])
def test_optimizers_take_the_factors_alone(optimizer):
    model = built_model("model=mamba_moe", *SIZE)
    Lora(model, SETTINGS)
    found = [p for each in optimizer(model, layer_decay=0.5) for group in each.param_groups for p in group["params"]]
    assert sorted(map(id, found)) == sorted(map(id, trainable(model)))
    rates = {group["lr"] for each in optimizer(model, layer_decay=0.5) for group in each.param_groups}
    assert rates == {5e-4, 2.5e-4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"on": ["in_prj"]}, r"lora\.on=in_prj: is of no parameter of this model\.\nDid you mean 'in_proj'"),
        ({"on": ["out_proj", "norm"]}, r"lora\.on=norm: is of vectors alone"),
        ({"on": ["embed"]}, r"lora\.on=\['embed'\]: names nothing that is not frozen"),
        ({"on": []}, r"lora\.on=\[\]: names nothing"),
        ({"rank": 16}, r"lora\.rank=16: must be below the 16 rows or columns of layers\.0\.mixer\.inner\.in_proj\."),
    ],
)
def test_a_mistake_is_refused(change, message):
    model = transformer()
    model.embed.weight.requires_grad_(False)
    with pytest.raises(UserError, match=message):
        Lora(model, SETTINGS | change)


def test_rates_by_width_are_refused():
    model = transformer()
    model.layers[0].mixer.inner.in_proj.weight.rates = Rates()
    with pytest.raises(UserError, match=r"parametrisation=mup: .* none for the factors"):
        Lora(model, SETTINGS)


def test_an_optimizer_of_whole_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"lora=set: the optimizer takes whole weights"):
        build(tmp_path, lora=SETTINGS, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
