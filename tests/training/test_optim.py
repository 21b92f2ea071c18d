"""Who decays, who is served by which optimizer, and that every optimizer descends."""

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from seqlab.training.muon_of_stacks import MuonOfStacks
from seqlab.training.optim import adamw, muon
from support import compose_config, models, options

SIZE = ["size.d_model=16", "size.n_heads=2", "size.d_ff=32"]


def model(name: str = "mamba") -> nn.Module:
    torch.manual_seed(0)
    cfg = compose_config(f"model={name}", *SIZE)
    return instantiate(cfg.model, tokens=True, d_input=7, d_output=7, max_length=8, _convert_="all")


def names_of(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    ids = {id(p) for p in parameters}
    return {
        name.split(".", 3)[-1] if "layers" in name else name for name, p in model.named_parameters() if id(p) in ids
    }


def test_decay_is_for_matrices_alone():
    mamba = model()
    decayed, spared = (names_of(mamba, group["params"]) for group in adamw(mamba)[0].param_groups)
    assert decayed == {
        "embed.weight",  # tied: it is the head's matrix
        "inner.in_proj.weight",
        "inner.conv_weight",
        "inner.x_proj.weight",
        "inner.dt_proj.weight",
        "inner.out_proj.weight",
    }
    assert spared == {"norm.weight", "inner.A_log", "inner.D", "inner.conv_bias", "inner.dt_proj.bias"}


def test_lookup_tables_do_not_decay():
    vanilla = model("transformer_vanilla")
    spared = names_of(vanilla, adamw(vanilla)[0].param_groups[1]["params"])
    assert {"embed.weight", "positions.weight"} <= spared


@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("build", [adamw, muon])
def test_every_parameter_is_served_once(name, build):
    net = model(name)
    served = [id(p) for optimizer in build(net) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(served) == sorted(id(p) for p in net.parameters())


def test_muon_takes_the_linear_maps_of_the_layers():
    mamba = model()
    _, hidden = muon(mamba)
    names = names_of(mamba, hidden.param_groups[0]["params"])
    assert names == {f"inner.{name}.weight" for name in ("in_proj", "x_proj", "dt_proj", "out_proj")}


@pytest.mark.parametrize("shape", [(3, 6, 10), (2, 10, 6)])
def test_muon_takes_each_expert_by_itself(shape):
    """Three steps on a stack are three steps of torch's Muon on each of its matrices."""
    settings = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    stack = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    single = [nn.Parameter(matrix.detach().clone()) for matrix in stack]
    optimizers = MuonOfStacks([stack], **settings), torch.optim.Muon(single, **settings, adjust_lr_fn="match_rms_adamw")
    for seed in (1, 2, 3):
        stack.grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        for matrix, grad in zip(single, stack.grad, strict=True):
            matrix.grad = grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(stack, torch.stack(single), rtol=1e-3, atol=3e-4)  # in bfloat16, the update some 0.01


def test_muon_serves_experts_with_their_own():
    stacks = muon(model("mamba_moe"))[2]
    assert {tuple(p.shape) for p in stacks.param_groups[0]["params"]} == {(8, 16, 48), (8, 24, 16)}


@pytest.mark.parametrize("name", options("optimizer"))
def test_descends(name):
    net = model("transformer")
    optimizers = instantiate(compose_config(f"optimizer={name}", "optimizer.lr=0.01").optimizer, _convert_="all")(net)
    tokens = torch.randint(7, (4, 8), generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
