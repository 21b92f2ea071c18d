"""The RMSNorm of the models: torch's own on a CPU to the last bit, on a GPU its numbers within rounding."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqlab.models import SequenceModel
from seqlab.models.layer import Branch
from seqlab.models.mixers.dense import Dense
from seqlab.models.norms import RMSNorm, add_norm
from seqlab.ops import decoding
from support import architectures, built_model, depth

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def with_torchs_norms(model: SequenceModel) -> SequenceModel:
    """A copy of the model in which every RMSNorm is torch's, with the same parameters."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) is RMSNorm:
            module.__class__ = nn.RMSNorm
    return model


def gradients(model: SequenceModel, tokens: Tensor) -> dict[str, Tensor]:
    """The logits and every gradient of a step in bfloat16."""
    with torch.autocast(tokens.device.type, torch.bfloat16):
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()))
    return {"logits": logits.detach(), **dict(zip(named, found, strict=True))}


class TestOnACPU:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    def test_is_torchs_to_the_last_bit(self, dtype):
        torch.manual_seed(0)
        ours, theirs = RMSNorm(24, eps=1e-5, dtype=dtype), nn.RMSNorm(24, eps=1e-5, dtype=dtype)
        nn.init.uniform_(ours.weight)
        assert theirs.load_state_dict(ours.state_dict())
        x = torch.randn(2, 5, 24, dtype=dtype, requires_grad=True)
        assert torch.equal(ours(x), theirs(x))
        found = [torch.autograd.grad(norm(x).sum(), (x, norm.weight)) for norm in (ours, theirs)]
        assert all(map(torch.equal, *found))

    @pytest.mark.parametrize("settings", [{}, {"eps": 1e-5, "elementwise_affine": False}], ids=str)
    def test_without_eps_or_weights(self, settings):
        x = torch.randn(3, 24)
        assert torch.equal(RMSNorm(24, **settings)(x), nn.RMSNorm(24, **settings)(x))

    def test_a_step_in_bfloat16_is_that_of_torchs_norms(self):
        model = built_model("model=mamba", "size=tiny", "size.n_layers=2")
        tokens = torch.randint(7, (2, 9))
        actual, expected = (gradients(one, tokens) for one in (model, with_torchs_norms(model)))
        assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("model", architectures())
def test_rounds_where_what_follows_does_so_anyway(model):
    """A part that rounds its input gives the same for an input that is rounded already."""
    built = built_model(f"model={model}", "size=tiny", f"size.n_layers={depth(model)}").eval()
    branches = [module for module in built.modules() if isinstance(module, Branch) and type(module.norm) is RMSNorm]
    for branch in branches:
        if branch.norm.rounds:
            x = torch.randn(2, 8, built.head.in_features)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(branch.inner(x), branch.inner(x.bfloat16()))
    assert not isinstance(built.norm, RMSNorm) or built.norm.rounds


def test_a_subclass_says_anew_that_its_input_may_be_rounded():
    class Another(Dense):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x

    found = [Branch(part(24), RMSNorm(24), residual=True, dropout=0.0).norm.rounds for part in (Dense, Another)]
    assert found == [True, False]


def test_a_router_gets_all_digits():
    model = built_model("model=mamba_moe", "size=tiny", "size.n_layers=4")
    branches = [module for module in model.modules() if isinstance(module, Branch)]
    rounds = {type(branch.inner).__name__: branch.norm.rounds for branch in branches}
    assert rounds == {"Mamba": True, "MixtureOfExperts": False}


class Doubled(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_kernels_for_single_positions_know_it_but_no_class_made_of_it():
    assert decoding.norm_of(RMSNorm(24, eps=1e-5)).rms
    assert decoding.norm_of(Doubled(24, eps=1e-5)) is None


def test_a_sum_is_taken_with_the_norm_unless_that_is_another_or_watched(monkeypatch):
    """With a kernel for both, what a subclass or a hook does would be left out."""
    watched, seen = RMSNorm(24, eps=1e-5), []
    watched.register_forward_hook(lambda *_: seen.append(True))
    monkeypatch.setattr(RMSNorm, "add", lambda self, x, update: (x, "both"))
    x = torch.randn(3, 24)
    assert add_norm(RMSNorm(24, eps=1e-5), x, x)[1] == "both"
    for norm in (Doubled(24, eps=1e-5), watched):
        stream, y = add_norm(norm, x, x)
        assert torch.equal(stream, 2 * x)
        assert torch.equal(y, norm(2 * x))
    assert len(seen) == 2


class TestOnTheGPU:
    pytestmark = on_gpu

    @pytest.mark.parametrize("rounds", [False, True])
    @pytest.mark.parametrize("enabled", [False, True])
    def test_dtypes(self, enabled, rounds):
        norm, x = RMSNorm(24, eps=1e-5, device="cuda"), torch.randn(2, 24, device="cuda", requires_grad=True)
        norm.rounds = rounds
        with torch.autocast("cuda", torch.bfloat16, enabled=enabled):
            y = norm(x)
            assert y.dtype == (torch.bfloat16 if enabled and rounds else torch.float32)
        y.sum().backward()
        assert (x.grad.dtype, norm.weight.grad.dtype) == (torch.float32, torch.float32)

    @pytest.mark.parametrize("model", ["mamba", "mamba2", "transformer", "lstm", "min_gru"])
    def test_a_step_in_bfloat16_agrees_with_torchs_norms(self, model):
        """Not so a mixture of experts, whose router may decide otherwise for a token."""
        built = built_model(f"model={model}", "size.d_model=256", f"size.n_layers={depth(model)}", length=128).cuda()
        tokens = torch.randint(7, (4, 129), device="cuda")
        actual, expected = (gradients(one, tokens) for one in (built, with_torchs_norms(built)))
        for name in expected:
            distance = torch.linalg.vector_norm((actual[name] - expected[name]).double())
            assert distance <= 0.03 * torch.linalg.vector_norm(expected[name].double()), name

    def test_logits_in_float32_agree_with_torchs_norms(self):
        built = built_model("model=mamba", "size.d_model=256", "size.n_layers=4", length=128).cuda()
        tokens = torch.randint(7, (4, 128), device="cuda")
        torch.testing.assert_close(built(tokens), with_torchs_norms(built)(tokens), rtol=1e-4, atol=1e-4)
