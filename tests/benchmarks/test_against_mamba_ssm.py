"""The benchmark beside mamba_ssm: its options, table and picture. Measuring needs a GPU and the package."""

import json
import sys
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from seqlab.benchmarks import peer, peer_tasks, report
from seqlab.benchmarks.peer_tasks import LENGTHS, SIZES, TOKENS, Task
from seqlab.benchmarks.session import Measurement
from seqlab.commands import benchmark_against_mamba_ssm as script
from seqlab.errors import UserError

NOTHING = [
    word for part in ("sizes", "lengths", "mamba2", "mamba3", "prompts", "batch") for word in (f"--{part}", "none")
]


@pytest.fixture
def can_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(script, "find_spec", lambda name: name)


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(peer, "CUDA", torch.device("cpu"))
    monkeypatch.setattr(peer_tasks, "CUDA", torch.device("cpu"))
    monkeypatch.setattr(peer, "LEAST", 1e-4)


def tasks_of(*options: str) -> list[Task]:
    return peer_tasks.tasks(script.parse([*NOTHING, *options]))


def failing() -> None:
    raise ValueError("no such layout\nand more")


def results_of(tasks: list[Task], device: str = "a GPU", mine: float = 0.002) -> dict:
    """Invented results: ours take ``mine`` seconds and 1 GB, theirs 30 ms and 2 GB."""
    pair = Measurement(samples=[mine], peak_bytes=10**9), Measurement(samples=[0.03], peak_bytes=2 * 10**9)
    rows = [peer.row_of(task, *pair) for task in tasks]
    return {"device_name": device, "date": "2026-11-29T12:00", "versions": {"mamba_ssm": "2.3"}} | {
        "interrupted": False,
        "rows": rows,
    }


def merge(*paths: Path, out: Path) -> dict:
    assert script.main(["--merge", *map(str, paths), "--out", str(out)]) == 0
    return json.loads(out.read_text())


class TestOptions:
    def test_needs_a_gpu_and_the_package(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setitem(sys.modules, "mamba_ssm", None)
        with pytest.raises(UserError, match="mamba_ssm=none: is not installed"):
            script.parse([])
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UserError, match="needs a CUDA device"):
            script.parse([])

    def test_tasks(self, can_run):
        chosen = ["--sizes", "small", "--lengths", "512,2048", "--mamba2", "deep", "--batch", "64", "--new", "9"]
        chosen += ["--mamba3", "96"]
        assert [task.name for task in tasks_of(*chosen)] == [
            "training step, small, 32 x 256",
            "training step, small, 8 x 2,048",  # over length too, once
            "training step, small, 32 x 512",
            "9 tokens after 128, batch 64",
            "training step of mamba2, deep, 8 x 2,048",
            "layer of mamba3, width 96, 8 x 2,048",
        ]
        assert tasks_of() == []
        assert tasks_of("--prompts", "7")[0].labels == {
            "task": "prefill of 7",
            "what": "prefill",
            "model": "mamba",
            "size": "768 x 24",
            "batch": 1,
            "length": 7,
            "tokens": 7,
        }

    def test_everything(self, can_run):
        found = peer_tasks.tasks(script.parse([]))
        assert len(found) == 2 * 5 + (7 - 1) + 3 + 2 + 5 + 1
        assert {task.length for task in found if (task.size, task.tokens) == ("small", TOKENS)} == set(LENGTHS)

    def test_a_length_divides_the_tokens(self, can_run):
        with pytest.raises(UserError, match="--lengths=300: must divide the 16,384 tokens"):
            script.parse(["--lengths", "256,300"])

    def test_a_mistake_is_among_the_arguments_given_and_not_the_programs(self):
        with pytest.raises(UserError, match="arguments=--mamba4 96: unrecognized arguments: --mamba4 96"):
            script.parse(["--mamba4", "96"])

    def test_a_width_has_whole_heads_of_mamba3(self, can_run):
        with pytest.raises(UserError, match="--mamba3=100: must be a multiple of 32"):
            script.parse(["--mamba3", "64,100"])


class TestModels:
    @pytest.mark.parametrize("size", SIZES)
    def test_their_mamba2_has_our_sizes(self, on_cpu, size):
        """Widths as ``mamba_ssm.modules.mamba2.Mamba2`` computes them from its arguments."""
        overrides = "model=mamba2", f"size={size}"
        layer = peer_tasks.their_layer(overrides)
        mixer = peer_tasks.ours(overrides, 16).layers[0].mixer.inner
        d_model = mixer.out_proj.out_features
        inner, maps = layer["expand"] * d_model, layer["ngroups"] * layer["d_state"]
        assert layer["layer"] == "Mamba2" and inner % layer["headdim"] == 0
        heads = inner // layer["headdim"]
        assert mixer.in_proj.weight.shape == (2 * inner + 2 * maps + heads, d_model)
        assert mixer.conv_weight.shape == (inner + 2 * maps, layer["d_conv"])
        assert mixer.A_log.shape == (heads,)
        assert (inner + 2 * maps) % 8 == 0  # as its convolution demands

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.skipif(find_spec("mamba_ssm") is None, reason="needs mamba_ssm")
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("model", ["mamba", "mamba2"])
    def test_both_have_parameters_of_the_same_sizes(self, model, size):
        overrides, vocabulary = (f"model={model}", f"size={size}"), 10_000
        both = peer_tasks.ours(overrides, vocabulary), peer_tasks.theirs(overrides, vocabulary)
        mine, other = (sorted(p.numel() for p in found.parameters()) for found in both)
        assert mine == other

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.skipif(find_spec("mamba_ssm") is None, reason="needs mamba_ssm")
    @pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning")  # the first of autograd's thread
    def test_both_layers_of_mamba3_are_the_same(self):
        """In bf16 ours is as near to float64 as theirs is: outputs, and gradients of the input and of the weights."""
        torch.manual_seed(0)
        theirs = peer_tasks.their_mamba3(512)
        ours = peer_tasks.with_their_weights(peer_tasks.our_mamba3(512), theirs)
        exact = deepcopy(ours).double()
        x, dy = torch.randn(2, 2, 1000, 512, device="cuda")
        expected = passes(exact, x.double(), dy)
        for what, mine, other, right in zip(
            ("y", "dx", "in_proj", "out_proj"), passes(ours, x, dy), passes(theirs, x, dy), expected, strict=True
        ):
            error, its = (float((found.double() - right).norm() / right.norm()) for found in (mine, other))
            assert its < 0.02 and error <= 1.2 * its, (what, error, its)


def passes(layer: torch.nn.Module, x: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
    """A layer's output and the gradients of its input and projections, under autocast unless it is in float64."""
    x = x.clone().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype != torch.float64):
        y = layer(x)
    y.backward(dy.to(y.dtype))
    return [y.detach(), x.grad, layer.in_proj.weight.grad, layer.out_proj.weight.grad]


class TestMeasuring:
    def test_both_passes_of_a_layer(self, on_cpu, monkeypatch):
        monkeypatch.setattr(peer_tasks, "SHAPES", ((1, 2), (1, 3)))
        layer = peer_tasks.our_mamba3(32)
        step = peer_tasks.both_passes(lambda width: layer, 32)
        step()
        once = layer.in_proj.weight.grad.clone()
        step()
        torch.testing.assert_close(layer.in_proj.weight.grad, once, rtol=0, atol=0)  # of one call alone
        assert once.abs().max() > 0

    def test_samples(self, on_cpu):
        calls = []
        found = peer.alone(lambda: lambda: calls.append(1))
        assert len(found.samples) == peer.SAMPLES and found.median > 0
        assert len(calls) >= peer.WARM_UP + peer.SAMPLES

    def test_their_failure_is_a_result_and_ours_an_error(self, on_cpu):
        found = peer.alone(lambda: failing, ours=False)
        assert (found.status, found.reason) == ("failed", "ValueError: no such layout")
        with pytest.raises(ValueError, match="no such layout"):
            peer.alone(lambda: failing)

    def test_results_are_written_after_every_task(self, on_cpu, can_run, monkeypatch, tmp_path):
        def stop_at_the_second(prepare, ours=True):
            if path.exists():
                raise KeyboardInterrupt
            return Measurement(samples=[1.0], peak_bytes=1)

        path = tmp_path / "deeper" / "peer.json"
        monkeypatch.setattr(peer, "alone", stop_at_the_second)
        monkeypatch.setattr(peer, "facts", lambda *_: {"device_name": "a GPU", "versions": {}, "date": ""})
        assert script.main([*NOTHING, "--prompts", "5,6", "--out", str(path)]) == 130
        written = json.loads(path.read_text())
        assert [row["task"] for row in written["rows"]] == ["prefill of 5"] and written["interrupted"]


class TestResults:
    def test_the_table(self, can_run):
        made = peer.results_table(results_of(tasks_of("--prompts", "128")))
        cells = [next(column.cells).plain for column in made.columns]
        assert cells == ["prefill of 128", "2.00", "30.0", "64.0", "4.27", "15.0", "1,000", "2,000", "0.500"]

    def test_a_failure_is_named_below(self, can_run):
        (task,) = tasks_of("--mamba2", "small")
        row = peer.row_of(task, Measurement(samples=[0.1], peak_bytes=5), Measurement("failed", "out of memory"))
        made = peer.results_table({"rows": [row], "device_name": "a GPU"})
        assert made.caption == "training step of mamba2, small, 8 x 2,048, mamba_ssm: out of memory"
        assert next(made.columns[5].cells).plain == "-"

    def test_merged(self, can_run, tmp_path, capsys):
        first, second = tmp_path / "1.json", tmp_path / "2.json"
        first.write_text(json.dumps(results_of(tasks_of("--prompts", "5,6"))))
        second.write_text(json.dumps(results_of(tasks_of("--prompts", "6,7"), mine=0.003)))
        found = merge(first, second, out=tmp_path / "both.json")
        names = [(row["task"], row["seqlab"]["seconds"]) for row in found["rows"]]
        assert names == [("prefill of 5", 0.002), ("prefill of 6", 0.003), ("prefill of 7", 0.003)]
        assert "prefill of 7" in (tmp_path / "both.md").read_text()
        assert not (tmp_path / "both.png").exists()  # no training

    def test_only_results_of_one_device_are_merged(self, can_run, tmp_path, capsys):
        first, second, other = (tmp_path / name for name in ("1.json", "2.json", "other.json"))
        first.write_text(json.dumps(results_of(tasks_of("--prompts", "5"))))
        second.write_text(json.dumps(results_of(tasks_of("--prompts", "6"), device="another")))
        other.write_text(json.dumps({"rows": [{"ms": 1}]}))
        for paths, message in (
            ([first, second], "is from another, the files before it are from a GPU"),
            ([other], "holds no results of this benchmark"),
            ([tmp_path / "none.json"], "holds no results of this benchmark"),
        ):
            assert script.main(["--merge", *map(str, paths)]) == 2
            assert message in capsys.readouterr().err


class TestPicture:
    @pytest.fixture
    def results(self, can_run) -> dict:
        return results_of(tasks_of("--sizes", "small,deep", "--lengths", "256,1024"))

    @pytest.mark.skipif(not find_spec("matplotlib"), reason="needs matplotlib")
    def test_is_drawn_beside_the_results(self, results, tmp_path):
        (tmp_path / "1.json").write_text(json.dumps(results))
        out = tmp_path / "peer.json"
        merge(tmp_path / "1.json", out=out)
        text = out.with_suffix(".svg").read_text()
        assert out.with_suffix(".png").stat().st_size > 5_000
        assert "16,384 tokens a step" in text

    @pytest.mark.skipif(not find_spec("matplotlib"), reason="needs matplotlib")
    def test_what_was_not_measured_is_left_out(self, results, tmp_path):
        for row in results["rows"][1:]:
            row["mamba_ssm"]["seconds"] = row["times_the_tokens"] = None
        assert peer.write_picture(tmp_path / "a.json", results) == ["a.png", "a.svg"]

    def test_needs_values_in_both_panels(self, can_run, results, tmp_path, monkeypatch, capsys):
        assert peer.write_picture(tmp_path / "a.json", results_of(tasks_of("--sizes", "deep"))) == []
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(report, "find_spec", lambda name: None)
        assert peer.write_picture(tmp_path / "a.json", results) == []
        assert "pip install 'seqlab[plots]'" in capsys.readouterr().err
