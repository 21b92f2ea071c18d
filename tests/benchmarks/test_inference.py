"""The benchmark of inference: exponents against known powers, curves that end, and the script."""

import json
import runpy
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seqlab.benchmarks import inference, memory, report
from seqlab.benchmarks.exponents import fit
from seqlab.benchmarks.inference_curves import Curve, Point
from seqlab.benchmarks.memory import PeakMemory
from seqlab.errors import UserError
from seqlab.models.counting import tensors_of
from seqlab.models.sequence_model import SequenceModel
from seqlab.runs.load import fresh_model
from support import ROOT, architectures, depth

SCRIPT = ROOT / "scripts" / "benchmark_inference.py"
CPU = torch.device("cpu")
CONTEXTS = [2**n for n in range(4, 12)]


class TestExponents:
    @pytest.mark.parametrize("power", [0, 1, 2, 0.37])
    def test_of_a_power(self, power):
        found = fit(CONTEXTS, [3.5 * c**power for c in CONTEXTS])
        assert found.value == pytest.approx(power, abs=1e-9)
        assert found.standard_error < 1e-9
        assert (found.first, found.last, found.points) == (256, 2048, 4)

    def test_slope_and_error_are_numpys(self):
        noise = np.random.default_rng(0).lognormal(sigma=0.3, size=len(CONTEXTS))
        values = [float(c**1.5 * factor) for c, factor in zip(CONTEXTS, noise, strict=True)]
        found = fit(CONTEXTS, values)
        (slope, _), covariance = np.polyfit(np.log(CONTEXTS[-4:]), np.log(values[-4:]), 1, cov=True)
        assert found.value == pytest.approx(slope)
        assert found.standard_error == pytest.approx(covariance[0, 0] ** 0.5)

    def test_fixed_costs_at_short_contexts_weigh_nothing(self):
        short = [100.0] * 4
        assert fit(CONTEXTS, [*short, *(c**2 for c in CONTEXTS[4:])]).value == pytest.approx(2)

    def test_where_there_is_none(self):
        assert fit(CONTEXTS[:2], [1.0, 2.0]) is None
        assert fit([1, 64], [1.0, 2.0]) is None
        assert fit(CONTEXTS, [0] * 8) is None
        assert fit(CONTEXTS, [None] * 8) is None


def model_of(name: str, max_length: int = 100) -> SequenceModel:
    torch.manual_seed(0)
    return fresh_model(name, "tiny" if depth(name) == 2 else None, vocabulary=11, max_length=max_length)


def options(limit: float = 10.0) -> Namespace:
    return Namespace(device=CPU, dtype=torch.float32, seed=0, limit=limit, budget=1e-3)


def curve_of(name: str, contexts: list[int], *, batch: int = 2, limit: float = 10.0, max_length: int = 100) -> Curve:
    """Measure one curve, as short as it goes; every context is named before it is measured."""
    curve = Curve(name, name, batch)
    begun = list(inference.measure(curve, model_of(name, max_length), contexts, options(limit)))
    assert begun == contexts[: len(curve.points) + (curve.ended is not None)]
    return curve


class TestCurves:
    @pytest.mark.parametrize("name", architectures())
    def test_every_model(self, name, monkeypatch):
        monkeypatch.setattr(memory, "gc", SimpleNamespace(collect=lambda: None))  # for peaks, which are not looked at
        curve = curve_of(name, [4, 8, 16, 32])
        assert curve.ended is None
        assert [point.context for point in curve.points] == [4, 8, 16, 32]
        for point in curve.points:
            assert point.prefill_ms > 0 and point.token_ms > 0
            assert point.prefill_tokens_per_second == pytest.approx(2 * point.context / point.prefill_ms * 1e3)
            assert point.tokens_per_second == pytest.approx(2 / point.token_ms * 1e3)
            assert point.graph_token_ms is None
        growth = curve.exponents["state_bytes"]
        if name in ("mlp", "linear"):
            assert growth is None and curve.points[0].state_bytes == 0
        elif "hybrid" in name:
            assert 0 < growth.value < 1  # beside a state that stays as it is
        else:
            expected = 1.0 if "former" in name or "attention" in name else 0.0
            assert (growth.value, growth.standard_error) == pytest.approx((expected, 0.0), abs=1e-9)

    def test_reads_the_context_and_steps_behind_it(self, monkeypatch):
        """What is timed is what is said: prefill of the whole context, steps right after it."""
        lengths, positions = [], []
        prefill, step = SequenceModel.prefill, SequenceModel.step
        monkeypatch.setattr(
            SequenceModel, "prefill", lambda self, x, state: (lengths.append(x.shape), prefill(self, x, state))[1]
        )
        monkeypatch.setattr(
            SequenceModel, "step", lambda self, x, state: (positions.append(state.position), step(self, x, state))[1]
        )
        curve_of("transformer", [8, 16], batch=3)
        assert set(lengths) == {(3, 8), (3, 16)}
        assert set(positions) == {8, 9, 16, 17}

    def test_ends_where_learned_positions_do(self):
        curve = curve_of("transformer_vanilla", [8, 16, 32, 64], max_length=20)
        assert [point.context for point in curve.points] == [8, 16]
        assert curve.ended == "its learned positions end at 20"

    def test_ends_at_the_limit(self):
        curve = curve_of("lstm", [8, 64, 10**9], limit=0.5)
        assert [point.context for point in curve.points] == [8, 64]
        assert "would take about" in curve.ended and "--limit is 0.5 s" in curve.ended

    def test_expects_the_growth_that_it_saw(self):
        """Twice the context after quadratic growth is four times as long."""
        curve = Curve("m", "m", 1, [point_at(1000, 100.0), point_at(2000, 400.0)])
        assert "would take about 1.6 s" in inference.why_not(model_of("lstm"), curve, 4000, options(limit=1.5))
        curve.points[0].prefill_ms = 250.0
        assert inference.why_not(model_of("lstm"), curve, 4000, options(limit=1.5)) is None

    @pytest.mark.parametrize(
        "error",
        [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    )
    def test_ends_out_of_memory(self, monkeypatch, error):
        prefill = SequenceModel.prefill

        def too_long(self, x, state):
            if x.shape[1] > 8:
                raise error
            return prefill(self, x, state)

        monkeypatch.setattr(SequenceModel, "prefill", too_long)
        curve = curve_of("mamba", [4, 8, 16, 32])
        assert [point.context for point in curve.points] == [4, 8]
        assert curve.ended == "out of memory at 16"

    def test_ends_before_a_cpus_memory_does(self, monkeypatch):
        monkeypatch.setattr(memory, "available_memory", lambda device: 1000)
        curve = Curve("m", "m", 1, [point_at(8, 0.1)])
        why = inference.why_not(model_of("lstm"), curve, 16, options())
        assert "16 needs about" in why

    def test_a_step_as_a_graph_leaves_its_state_where_the_next_begins(self, monkeypatch):
        """The way that is taken on a GPU, with the step itself in place of a graph."""
        monkeypatch.setattr(inference, "captured", lambda step, device: step)
        monkeypatch.setattr(inference, "in_turn", lambda steps, *args, **settings: {"": [steps[""]() or 0.5]})
        args = Namespace(**vars(options()) | {"device": torch.device("cuda")})
        model, curve, x = model_of("mamba"), Curve("m", "m", 2), torch.randint(11, (2, 7))
        with torch.no_grad():
            _, state = model.prefill(x[:, :4], model.initial_state(2))
            _, after = model.prefill(x[:, [0, 1, 2, 3, 4, 4]], model.initial_state(2))
            assert inference.graph_step_seconds(model, x[:, 4], state, curve, args) == 0.5
        for found, expected in zip(tensors_of(state), tensors_of(after), strict=True):
            torch.testing.assert_close(found, expected)

        def refused(step, device):
            raise RuntimeError("cannot be captured\nin detail")

        monkeypatch.setattr(inference, "captured", refused)
        assert inference.graph_step_seconds(model, x[:, 4], state, curve, args) is None
        assert curve.no_graph == "RuntimeError: cannot be captured"

    def test_another_fault_is_loud(self, monkeypatch):
        def broken(self, x, state):
            raise RuntimeError("shapes do not fit")

        monkeypatch.setattr(SequenceModel, "prefill", broken)
        with pytest.raises(RuntimeError, match="shapes do not fit"):
            curve_of("mamba", [4])


def point_at(context: int, milliseconds: float) -> Point:
    return Point(context, milliseconds, 1, 1.0, 0.5, 1, 2.0, None, None, 64, 2**20)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_of_a_cpu():
    """64 MiB that come and go are seen; a second watch begins anew."""
    peak = PeakMemory(CPU)
    torch.ones(2**24)
    assert 0.9 * 2**26 < peak.bytes() < 1.5 * 2**26
    assert PeakMemory(CPU).bytes() < 2**25


class TestReport:
    def test_colours_are_those_of_every_picture(self):
        curves = [Curve(name, name, 1, [point_at(8, 0.1)]) for name in ("mamba_deep", "mamba", "x")]
        prefill, *_ = inference.panels(curves)
        looks = [line.look for line in prefill.lines]
        assert looks[0]["color"] == looks[1]["color"] != looks[2]["color"]
        assert looks[0]["marker"] != looks[1]["marker"]


class TestFreshModels:
    def test_sizes(self):
        sizes = {
            ("mamba", None): 256,  # the usual one
            ("mamba_deep", None): 384,  # its own
            ("mamba_deep", "tiny"): 64,
        }
        for (name, size), d_model in sizes.items():
            assert fresh_model(name, size, vocabulary=7, max_length=5).embed.embedding_dim == d_model

    def test_mistakes(self):
        with pytest.raises(UserError, match=r"--model=mambo: is no option of model\.\nDid you mean 'mamba'"):
            fresh_model("mambo", None, vocabulary=7, max_length=5)
        with pytest.raises(UserError, match="--size=huge: is no option of size"):
            fresh_model("mamba", "huge", vocabulary=7, max_length=5)


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """Run the script in this process; returns its exit status and results."""

    def run(*arguments: str) -> tuple[int, dict]:
        folder = tmp_path / "out"
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--device", "cpu", "--out", str(folder), *arguments])
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        path = folder / "inference.json"
        return exit_info.value.code, json.loads(path.read_text()) if path.exists() else {}

    run.folder = tmp_path / "out"
    return run


class TestTheScript:
    def test_end_to_end(self, benchmark, trained, capsys):
        run = trained("ptb", "transformer_vanilla").folder
        settings = ["--contexts", "4:40", "--batch", "1,2", "--size", "tiny", "--vocabulary", "50", "--budget", "0.002"]
        status, results = benchmark("--models", "mamba,transformer", str(run), *settings)
        assert status == 0
        curves = {(curve["model"], curve["batch"]): curve for curve in results["curves"]}
        label = f"transformer_vanilla ({run.name})"
        assert set(curves) == {(name, batch) for name in ("mamba", "transformer", label) for batch in (1, 2)}
        for (name, _), curve in curves.items():
            contexts = [4, 8] if name == label else [4, 8, 16, 32]
            assert [point["context"] for point in curve["points"]] == contexts
        assert curves["transformer", 2]["exponents"]["state_bytes"]["value"] == pytest.approx(1)
        assert curves["mamba", 2]["exponents"]["state_bytes"]["value"] == pytest.approx(0, abs=1e-12)
        assert results["models"]["mamba"]["scan_backend"] == "cpu"
        assert results["settings"]["contexts"] == [4, 8, 16, 32]
        assert results["device_name"] and results["date"] and not results["interrupted"]
        assert (benchmark.folder / "inference.png").read_bytes()[:4] == b"\x89PNG"
        out = capsys.readouterr().out
        assert f"{label}, batch 2, ends at 8: its learned positions end at 16" in out
        assert "Exponents" in out and "1.00 ± 0.00" in out

    def test_without_matplotlib_and_in_half_precision(self, benchmark, monkeypatch, capsys):
        monkeypatch.setattr(report, "find_spec", lambda name: None)
        small = ["--contexts", "2,3", "--size", "tiny", "--vocabulary", "9", "--budget", "0.001"]
        status, results = benchmark("--models", "lstm", "--dtype", "bf16", *small)
        assert status == 0
        assert results["settings"]["dtype"] == "bfloat16"
        assert results["curves"][0]["points"][0]["state_bytes"] == 2 * 2 * 64 * 2
        assert not (benchmark.folder / "inference.png").exists()
        assert "pip install 'seqlab[plots]'" in capsys.readouterr().err

    def test_ctrl_c_keeps_what_was_measured(self, benchmark, monkeypatch):
        point = inference.measured_point

        def stop_at_eight(model, curve, context, args):
            if context == 8:
                raise KeyboardInterrupt
            return point(model, curve, context, args)

        monkeypatch.setattr(inference, "measured_point", stop_at_eight)
        small = ["--contexts", "4:16", "--size", "tiny", "--vocabulary", "9", "--budget", "0.001"]
        status, results = benchmark("--models", "mamba,lstm", *small)
        assert status == 130 and results["interrupted"]
        assert [[point["context"] for point in curve["points"]] for curve in results["curves"]] == [[4]]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--models", "mambo"], "--models=mambo: is no option of model.\nDid you mean 'mamba'"),
            (["--size", "huge"], "--size=huge: is no option of size"),
            (["--models", "outputs/nothing"], "--models=outputs/nothing: there is no such folder, and the hub"),
            (["--contexts", "8:4"], "--contexts=8:4: ends before it begins"),
            (["--contexts", "8:x"], "--contexts=x: has to be a whole number from 1 on"),
            (["--contexts", "0,4"], "--contexts=0: has to be a whole number from 1 on"),
            (["--batch", "two"], "--batch=two"),
            (["--limit", "-1"], "--limit=-1: has to be a number of seconds above 0"),
            (["--dtype", "int8"], "invalid choice: 'int8'"),
            (["--vocabulary", "0"], "--vocabulary=0: has to be a whole number from 1 on"),
            (["--device", "tpu"], "invalid choice: 'tpu'"),
            (["--out", str(SCRIPT)], "no file can be written there (a file is in the way)"),
        ],
    )
    def test_mistakes(self, benchmark, capsys, arguments, message):
        status, results = benchmark(*arguments)
        err = capsys.readouterr().err
        assert (status, results) == (2, {})
        assert message in err
        assert "Traceback" not in err
