"""Steps that never hold all logits: where they are taken, and that they are the steps that they replace."""

import pytest
import torch
from fits import config_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from seqlab.data import Batch, of_cross_entropy
from seqlab.data.probes.mqar import MQAR
from seqlab.data.protocol import IGNORED
from seqlab.data.text import TextData
from seqlab.models.head_loss import skips_logits
from seqlab.models.sequence_model import SequenceModel
from seqlab.ops import cross_entropy
from seqlab.ops.linear_cross_entropy import chunked
from seqlab.training.captured import EAGER
from seqlab.training.optim import sgd
from seqlab.training.regularisation import Regularisation
from seqlab.training.update import Update
from support import architectures, built_model, configured_data, depth

CPU = torch.device("cpu")
B, L, V = 4, 9, 50
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Of seven rows, in every precision."""
    monkeypatch.setattr(chunked, "chunk_rows", lambda *_: 7)
    monkeypatch.setattr("seqlab.models.head_loss.pays", lambda rows, *_: rows > 7)


class Words:
    """As much of a data object as an update needs, with a mask."""

    carries = False

    def mask(self, targets):
        return targets != IGNORED

    @of_cross_entropy
    def loss(self, outputs, targets):
        return cross_entropy(outputs, targets)


class PlainWords(Words):
    """The same loss, which does not say so."""

    def loss(self, outputs, targets):
        return super().loss(outputs, targets)


class LargestTensor(TorchDispatchMode):
    """The most elements of any result, or of those whose rows are so wide."""

    def __init__(self, width=None):
        super().__init__()
        self.width, self.elements = width, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and self.width in (None, *tensor.shape[-1:]):
                self.elements = max(self.elements, tensor.numel())
        return result


def batch(seed=0, rows=B, vocabulary=V):
    inputs, targets = torch.randint(vocabulary, (2, rows, L), generator=torch.Generator().manual_seed(seed))
    targets[:, :2] = IGNORED
    return Batch(inputs, targets)


def model(name="mamba", *overrides):
    size = "size.d_model=16", "size.n_heads=2", "size.d_ff=24", f"size.n_layers={depth(name)}"
    return built_model(f"model={name}", *size, *overrides, d_input=V, length=L).train()


def step(data, net, device=CPU, **settings):
    """Plain descent of rate 1, whose step is the gradient: the outcome and the weights after it."""
    usual = {"clip_norm": None, "optimizer": lambda m: sgd(m, lr=1.0, momentum=0.0, nesterov=False)}
    update = Update(config_of(**usual | settings), net.to(device), data, device=device)
    return update(batch(), 1.0), {name: p.detach().clone() for name, p in net.named_parameters()}


def assert_same_steps(name, device=CPU, overrides=(), **settings):
    """With and without all logits; in halves the two round differently, and a GPU's sums are in no order."""
    (outcome, after), (expected, expected_after) = (
        step(data, model(name, *overrides), device, **settings) for data in (Words(), PlainWords())
    )
    exact, loose = settings.get("precision", "float32") == "float32", 10 if device.type == "cuda" else 1
    assert outcome.taken
    found, known = ([value for value in one if value is not None] for one in (outcome, expected))
    assert found == pytest.approx(known, rel=loose * 1e-5 if exact else 1e-2)
    tolerance = {"rtol": loose * 1e-4, "atol": loose * 1e-6} if exact else {"rtol": 2e-2, "atol": 4e-3}
    torch.testing.assert_close(after, expected_after, **tolerance)


class TestTheSameStep:
    @pytest.mark.parametrize("name", architectures())
    def test_of_every_model(self, name):
        assert skips_logits(model(name), batch().inputs, B * L)
        assert_same_steps(name, regularisation=Regularisation(label_smoothing=0.2 * (name == "mamba")))

    @pytest.mark.parametrize("name", ["mamba", "transformer_vanilla", "transformer_moe"])
    @pytest.mark.parametrize(
        "settings", [{"accumulate": 2}, {"precision": "bf16"}, {"precision": "fp16", "accumulate": 2}], ids=str
    )
    def test_in_parts_and_in_every_precision(self, name, settings):
        assert_same_steps(name, **settings)

    @pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
    def test_of_a_mixture_of_softmaxes(self, precision, label_smoothing):
        """The smoothed loss has log p at all words."""
        mixture = "model.softmaxes=3", "model.embedding_std=0.5"
        net, inputs = model("mamba", *mixture), batch(rows=1).inputs[:, :7]
        assert skips_logits(net, inputs, 7)
        assert not skips_logits(net, inputs, 7, label_smoothing=0.1)
        how = Regularisation(label_smoothing=label_smoothing)
        assert_same_steps("mamba", overrides=mixture, precision=precision, regularisation=how)

    @pytest.mark.parametrize("name", ["transformer", "transformer_moe", "mixture"])
    @pytest.mark.parametrize("settings", [{}, {"accumulate": 2, "precision": "bf16"}], ids=str)
    @pytest.mark.parametrize("pays", [True, False])
    def test_of_a_probe_with_few_answers(self, name, settings, pays, monkeypatch):
        """Of mixed difficulty, so that some rows have fewer than the most; beside the loss of all positions' logits.

        A mixture drops the same channels of its latents at all positions of a sequence, and draws the same masks.
        """
        overrides = []
        if name == "mixture":
            name, overrides, pays = "transformer", ["model.softmaxes=3", "model.embedding_std=0.5"], True
            settings = settings | {"regularisation": Regularisation(latents=0.5)}
        data = configured_data(
            MQAR,
            {"length": L, "pairs": 2, "vocab_size": V, "alpha": 0.1, "n_train": None, "epoch_size": B, "seed": 0}
            | {"n_validation": B, "n_test": B, "mixture": [{"pairs": 1}, {"pairs": 2}]},
        )
        monkeypatch.setattr("seqlab.models.head_loss.pays", lambda *_: pays)
        losses, largest = [], []
        for most in (data.most_labels, None):
            data.most_labels, net = most, model(name, *overrides)
            update = Update(config_of(optimizer=lambda m: sgd(m, lr=1.0), **settings), net, data, device=CPU)
            with LargestTensor(V) as seen:
                losses.append([update(data.train_batch(n, B, seed=1), 1.0).loss for n in range(3)])
            largest.append(seen.elements)
        assert losses[0] == pytest.approx(losses[1], rel=5e-3 if settings else 1e-5)
        assert pays or largest[0] < largest[1] == B * L * V // settings.get("accumulate", 1)

    def test_a_batch_without_a_target_is_skipped(self):
        update = Update(config_of(), model(), Words(), device=CPU)
        inputs, targets = batch()
        outcome = update((inputs, torch.full_like(targets, IGNORED)), 1.0)
        assert not outcome.taken
        assert update(batch(), 1.0).taken

    @pytest.mark.parametrize("softmaxes", [1, 3])
    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_no_tensor_is_as_large_as_the_logits(self, accumulate, softmaxes):
        """Those of the embedding and of a part's positions aside; experts are counted before without them."""
        net = built_model("model=transformer_moe", "size.d_model=4", "size.n_layers=1", "size.n_heads=1",
                          "size.d_ff=4", f"model.softmaxes={softmaxes}", d_input=1000, length=L)  # fmt: skip
        for data, held in ((Words(), False), (PlainWords(), True)):
            update = Update(config_of(accumulate=accumulate), net, data, device=CPU)
            with LargestTensor() as seen:
                update._gradient(*batch())
            assert (seen.elements >= B * L * 1000 // accumulate) == held


class TestWhere:
    def test_large_logits_of_tokens(self, word_data):
        assert word_data.loss.is_cross_entropy
        assert skips_logits(model(), batch().inputs, B * L)
        assert not skips_logits(model(), batch(rows=1).inputs[:, :7], 7)

    def test_not_a_loss_that_somebody_else_defines(self, word_data):
        class Smoothed(TextData):
            def loss(self, outputs, targets):
                return 2 * super().loss(outputs, targets)

        smoothed = object.__new__(Smoothed)
        smoothed.windows = "contiguous"
        update = Update(config_of(), model(), smoothed, device=CPU)
        assert not update.objective.skips_logits(batch().inputs, B * L)

    def test_not_an_output_that_somebody_else_defines(self):
        class Tempered(SequenceModel):
            def forward(self, inputs):
                return 2 * super().forward(inputs)

        other = model()
        other.__class__ = Tempered
        patched = model()
        patched.forward = lambda inputs: 2 * SequenceModel.forward(patched, inputs)
        headless = model()
        headless.head = nn.Identity()
        hooked, watched = model(), model()
        hooked.head.register_forward_hook(lambda head, inputs, outputs: 2 * outputs)
        watched.register_full_backward_hook(lambda *_: None)
        foreign = nn.Sequential(nn.Embedding(V, 4), nn.Linear(4, V))
        compiled = torch.compile(model(), backend="eager")
        for net in (other, patched, headless, hooked, watched, foreign, compiled, model().double()):
            assert not skips_logits(net, batch().inputs, B * L)


class TestOnTheGPU:
    pytestmark = on_gpu

    @pytest.mark.parametrize("name", ["mamba", "transformer_vanilla", "transformer_moe"])
    @pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
    def test_the_same_step(self, name, precision):
        assert_same_steps(name, torch.device("cuda"), precision=precision)

    @pytest.mark.parametrize("precision", ["float32", "bf16"])
    def test_replayed_as_launched(self, precision):
        losses = []
        for graph in (False, True):
            net = model("mamba").to("cuda")
            config = config_of(precision=precision, optimizer=lambda m: sgd(m, lr=0.1, momentum=0.0, nesterov=False))
            update = Update(config, net, Words(), device=torch.device("cuda"), cuda_graph=graph)
            losses.append([update(batch(seed), 1.0).loss for seed in range(EAGER + 4)])
        assert losses[1] == pytest.approx(losses[0], rel=1e-5 if precision == "float32" else 2e-3)

    def test_memory(self, monkeypatch):
        """A step with a large vocabulary takes less than its logits would."""
        monkeypatch.undo()
        monkeypatch.setattr(chunked, "LOGITS", 2**24)
        vocabulary, rows, length = 50_277, 64, 128
        size = "size.d_model=64", "size.n_layers=1"
        net = built_model("model=mamba", *size, d_input=vocabulary, length=length).train().to("cuda")
        update = Update(config_of(precision="bf16"), net, Words(), device=torch.device("cuda"))
        for seed in range(3):
            torch.manual_seed(seed)
            tokens = torch.randint(vocabulary, (2, rows, length))
            torch.cuda.reset_peak_memory_stats()
            update(Batch(*tokens), 1.0)
        assert torch.cuda.max_memory_allocated() < 2 * rows * length * vocabulary
