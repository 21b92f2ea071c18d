"""Steps replayed as a CUDA graph: where they may be, and that they are the steps that they replace."""

import subprocess
import sys

import pytest
import torch
from fits import config_of

from seqlab.errors import UserError
from seqlab.models.mixture_of_experts import MixtureOfExperts
from seqlab.training.captured import EAGER, CapturedGradient, captures
from seqlab.training.counters import STARTING
from seqlab.training.parallel import World
from support import architectures, depth

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Plain(torch.nn.Linear):
    """A model of one part."""

    def __init__(self):
        super().__init__(5, 3)


class Waits(Plain):
    def why_not_captured(self, device):
        return "it asks the device how it went"


class TestWhere:
    @pytest.mark.parametrize(
        "device, precision, compile", [(CPU, "bf16", False), (GPU, "fp16", False), (GPU, "bf16", True)]
    )
    def test_what_cannot_be_captured_is_left_by_auto_and_refused_if_asked_for(self, device, precision, compile):
        how = {"precision": precision, "compile": compile}
        assert captures(config_of(**how), Plain(), device) is False
        assert captures(config_of(cuda_graph=False, **how), Plain(), device) is False
        with pytest.raises(UserError, match=r"^cuda_graph=True"):
            captures(config_of(cuda_graph=True, **how), Plain(), device)

    @pytest.mark.parametrize("precision", ["float32", "bf16"])
    def test_the_rest_is_captured_unless_told_not_to(self, precision):
        configs = [config_of(cuda_graph=setting, precision=precision) for setting in ("auto", True, False)]
        choices = [captures(config, Plain(), GPU) for config in configs]
        assert choices == [True, True, False]

    @pytest.mark.parametrize(
        ("settings", "asked"), [({}, True), ({"parallel": "fsdp"}, False), ({"context_parallel": 2}, False)]
    )
    def test_several_processes_are_captured_if_asked_to_and_have_whole_weights(self, settings, asked):
        world = World()
        world.size = 2
        assert captures(config_of(**settings), Plain(), GPU, world) is False
        how = config_of(cuda_graph=True, **settings)
        if asked:
            assert captures(how, Plain(), GPU, world) is True
        else:
            with pytest.raises(UserError, match=r"^cuda_graph=True: the processes"):
                captures(how, Plain(), GPU, world)

    def test_a_part_that_waits_for_the_device_keeps_the_model_from_it(self):
        model = torch.nn.Sequential(Plain(), Waits())
        assert captures(config_of(precision="bf16"), model, GPU) is False
        with pytest.raises(UserError, match="it asks the device how it went"):
            captures(config_of(precision="bf16", cuda_graph=True), model, GPU)

    @pytest.mark.parametrize("backend, captured", [("grouped", False), ("reference", False), ("triton", True)])
    def test_experts_wait_unless_on_triton(self, monkeypatch, backend, captured):
        monkeypatch.setattr("seqlab.ops.backends.resolve", lambda package, order, backend, device, dtype: backend)
        model = MixtureOfExperts(8, d_ff=16, backend=backend)
        assert captures(config_of(precision="bf16"), model, GPU) is captured

    def test_throughput_leaves_the_capture_out(self):
        assert EAGER + 1 <= STARTING

    def test_a_run_says_what_it_did(self, train):
        assert train("device=cpu", "model=linear").summary["cuda_graph"] is False


MASKS = [f"regularisation.{name}=0.3" for name in ("inputs", "layers", "output", "weights", "depth")]
LOSSES = ["regularisation.ar=2", "regularisation.tar=1"]
RANDOM = {
    "nothing random": [],
    "dropout": ["model.dropout=0.1"],
    "masks of an LSTM": ["model=lstm", *MASKS, *LOSSES, "trainer.nt_asgd=1", "trainer.evaluate_every=1"],
    "masks of Mamba": ["model=mamba", *MASKS, "regularisation.weights_on=[in_proj,out_proj]", "trainer.accumulate=2"],
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnAGpu:
    @pytest.mark.parametrize(
        "model, precision",
        [
            (name, precision)
            for name in architectures()
            for precision in ("float32", "bf16")
            # in bf16 a router near a tie sends a token elsewhere for a difference in the last bit
            if precision == "float32" or not ("moe" in name or "jamba" in name)
        ],
    )
    def test_every_model_takes_the_same_steps(self, train, model, precision):
        """Validation too, in whose midst graphs are not used and before whose end the weights have to be there.

        Sums on a GPU are in no order. In bf16 a gradient off by a millionth makes the hybrid's losses differ by 4e-3 at
        the usual rate, and by 9e-4 at this one; a gradient that is wrong makes them differ by 0.18.
        """
        settings = f"model={model}", f"size.n_layers={depth(model)}", f"trainer.precision={precision}"
        budget = "device=cuda", "trainer.steps=12", "trainer.evaluate_every=5", "schedule=constant", "optimizer.lr=1e-4"
        eager, replayed = (
            train(*budget, *settings, f"trainer.cuda_graph={value}", folder=f"graph_{value}")
            for value in ("false", "true")
        )
        assert [job.summary["cuda_graph"] for job in (eager, replayed)] == [False, True]
        assert len(replayed.records) == len(eager.records) > 12
        for a, b in zip(eager.records, replayed.records, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-4 if precision == "float32" else 2e-3)

    @pytest.mark.parametrize("precision", ["float32", "bf16"])
    def test_a_carried_state_goes_on_in_replays(self, train, corpus, precision):
        """Over two epochs, with each of which it begins anew."""
        given = "trainer=smoke", "trainer.steps=12", "trainer.log_every=1", "device=cuda", *corpus["ptb"]
        given += f"trainer.precision={precision}", "trainer.batch_size=8", "schedule=constant", "optimizer.lr=1e-4"
        given += "model=hybrid", "size.n_layers=5", "model.pattern=[mamba,attention,lstm,mamba2,gru]", "size=tiny"
        given += "data.windows=carried", "trainer.evaluate_every=5"
        jobs = [train(*given, f"trainer.cuda_graph={graph}", folder=graph, small=False) for graph in ("false", "true")]
        assert [job.summary["cuda_graph"] for job in jobs] == [False, True]
        assert all(job.summary["state_carried"] for job in jobs)
        for a, b in zip(*(job.records for job in jobs), strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-4 if precision == "float32" else 2e-3)

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_it_is_the_gradient_of_the_batch_that_it_is_given(self, accumulate):
        layer = Plain().to(GPU)
        layer.unused = unused = torch.nn.Parameter(torch.zeros(2, device=GPU))

        def gradient(x, y):
            total = torch.zeros((), device=GPU)
            for part, target in zip(x.chunk(accumulate), y.chunk(accumulate), strict=True):
                loss = (layer(part) - target).square().sum()
                total += loss.detach()
                loss.backward()
            return torch.stack((total, total))

        captured = CapturedGradient(gradient, layer)
        sizes = [4] * (EAGER + 3) + [2, 4]  # the last batch but one is of another shape
        for seed, size in enumerate(sizes):
            x, y = torch.randn(2, size, 5, device=GPU, generator=torch.Generator(GPU).manual_seed(seed))
            values = captured(x, y[:, :3].contiguous())
            with torch.no_grad():
                off = layer(x) - y[:, :3]
            torch.testing.assert_close(values, off.square().sum().expand(2))
            torch.testing.assert_close(layer.weight.grad, 2 * off.T @ x)
            assert unused.grad is None
            with torch.no_grad():
                layer.weight -= 0.01 * layer.weight.grad
            layer.zero_grad(set_to_none=True)
        assert captured.graph is not None

    def test_dropout_differs_from_step_to_step(self):
        captured = CapturedGradient(lambda x, y: torch.nn.functional.dropout(x, 0.5), Plain().to(GPU))
        x = torch.ones(1000, device=GPU)
        masks = [captured(x, x).clone() for _ in range(EAGER + 3)]
        assert captured.graph is not None
        assert all(not torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])

    def test_a_model_that_puts_another_tensor_in_a_buffers_place_is_refused(self):
        model = Plain().to(GPU)
        model.register_buffer("mean", torch.zeros(5, device=GPU))

        def gradient(x, y):
            model.mean = 0.9 * model.mean + 0.1 * x.mean(dim=0)
            return x.sum()

        captured = CapturedGradient(gradient, model)
        x = torch.ones(4, 5, device=GPU)
        for _ in range(EAGER):
            captured(x, x)
        with pytest.raises(UserError, match=r"in the place of mean\.\nUse trainer\.cuda_graph=false"):
            captured(x, x)

    def test_a_step_that_waits_for_the_device_is_refused_with_its_reason(self):
        """In a process of its own: PyTorch may be unusable after a capture that failed."""
        code = (
            "import torch; from seqlab.training.captured import CapturedGradient\n"
            "captured = CapturedGradient(lambda x, y: x * x.sum().item(), torch.nn.Linear(1, 1).cuda())\n"
            "x = torch.ones(1, device='cuda')\n"
            "for _ in range(9): captured(x, x)\n"
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "a step cannot be captured" in ended.stderr
        assert "Use trainer.cuda_graph=false" in ended.stderr

    @pytest.mark.parametrize("more", RANDOM.values(), ids=RANDOM)
    def test_a_run_continues_as_it_would_have_gone_on(self, train, more):
        settings = "device=cuda", "schedule=constant", "trainer.evaluate_every=6", *more
        whole = train(*settings, "trainer.steps=12", folder="whole")
        cut = train(*settings, "trainer.steps=6", folder="cut")
        assert train(f"resume={cut.folder}", "device=cuda", "trainer.steps=12").status == 0
        assert cut.summary["cuda_graph"]
        for a, b in zip(whole.records, cut.records, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
