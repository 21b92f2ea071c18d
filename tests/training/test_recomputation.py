"""Layers that compute their activations again: the same gradients, and of each layer only its inputs are kept."""

import pytest
import torch
from fits import config_of
from omegaconf import OmegaConf
from together import CPU, LENGTH, ROWS, VOCABULARY, Words, every_mixer
from torch import nn
from torch.utils.checkpoint import checkpoint

from seqlab.errors import UserError
from seqlab.models.layer import recompute
from seqlab.models.mixture_of_experts import MixtureOfExperts, expert_load
from seqlab.models.protocols import parts
from seqlab.models.recomputation import contexts
from seqlab.runs.build import build_model
from seqlab.runs.load import TokenWidths
from seqlab.training.optim import sgd
from seqlab.training.regularisation import Regularisation
from seqlab.training.update import Update
from support import built_model

MASKS = Regularisation(words=0.1, layers=0.1, depth=0.1, weights=0.1, weights_on=["in_proj", "weight_hh_l0"])


def differentiated(precision, **settings):
    """All that one batch leaves, in parts, of a model of every mixer with experts and all kinds of masks."""
    torch.manual_seed(0)
    widths = TokenWidths(VOCABULARY, VOCABULARY, LENGTH, True)
    model, data = build_model(OmegaConf.create({"model": every_mixer() | {"dropout": 0.1}}), widths, CPU), Words()
    update = Update(
        config_of(batch_size=ROWS, accumulate=2, optimizer=sgd, precision=precision, regularisation=MASKS, **settings),
        model,
        data,
        device=CPU,
    )
    torch.manual_seed(1)
    found = {"values": update._gradient(*data.train_batch(0, ROWS, 1))}
    found |= {name: p.grad for name, p in model.named_parameters()}
    experts = parts(model, MixtureOfExperts)
    assert experts
    assert not any(part.auxiliary_loss is not None or part.loss_by_share is not None for part in experts)
    return found, expert_load(model), torch.get_rng_state()


@pytest.mark.parametrize(("precision", "every"), [("float32", True), ("bf16", 2)])
def test_bit_for_bit_the_same(precision, every):
    ours, expected = differentiated(precision, checkpoint_layers=every), differentiated(precision)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def kept(every):
    """Bytes kept for the backward pass, besides parameters, of four layers; and those of the residual stream."""
    model = built_model("model=mamba", "size.d_model=32", "size.n_layers=4", length=64)
    recompute(model, every)
    own, found = {p.data_ptr() for p in model.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.randint(7, (4, 64))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.hidden(tokens)
    return sum(found.values()), hidden.nbytes


def test_of_each_layer_only_its_inputs_are_kept():
    (whole, stream), (half, _), (inputs, _) = map(kept, (0, 2, 1))
    assert inputs < (2 * 4 + 3) * stream  # x and what is still to be added to it; embedding and last norm
    assert whole > 4 * inputs
    assert whole / 2 < half < 0.7 * whole


def test_masks_that_are_kept():
    """As in a capture, where no random state can be saved: those of a GPU's dropout, at a rate of no exact float."""

    def forward(x):
        y, _ = torch.native_dropout(torch.sin(x), 0.1, True)
        z, _ = torch.native_dropout(torch.cos(y), 0.3, True)
        return z.exp()

    def gradient(run):
        torch.manual_seed(0)
        x = torch.linspace(-1, 1, 10_000, requires_grad=True)
        y = run(x)
        torch.manual_seed(2)
        return y.detach(), *torch.autograd.grad(y.sum(), x)

    again = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": lambda: contexts(None, masks=True)}
    torch.testing.assert_close(gradient(lambda x: checkpoint(forward, x, **again)), gradient(forward), rtol=0, atol=0)


def test_a_model_without_layers():
    recompute(nn.Linear(2, 2), 0)
    with pytest.raises(UserError, match="checkpoint_layers=True: Linear has no layers"):
        recompute(nn.Linear(2, 2), 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("model", ["mamba", "mamba2", "mamba3", "gated_delta_net", "m2rnn", "transformer_moe"])
@pytest.mark.parametrize("cuda_graph", ["false", "true"])
def test_on_a_gpu(train, model, cuda_graph):
    """With dropout, whose masks a replayed step keeps and any other draws again."""
    settings = f"model={model}", f"trainer.cuda_graph={cuda_graph}", "model.dropout=0.2", "device=cuda"
    settings = *settings, "trainer.steps=12", "schedule=constant", "optimizer.lr=1e-4"
    whole, again = (train(*settings, f"trainer.checkpoint_layers={on}", folder=on) for on in ("false", "true"))
    assert whole.status == again.status == 0
    for a, b in zip(whole.records, again.records, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
