"""The benchmark of growth: exponents and marks against known powers, curves that end, merging, and the script."""

import json
import signal
import subprocess
import sys
from argparse import Namespace

import pytest
import torch

from seqlab.benchmarks import growth, growth_curves, memory
from seqlab.benchmarks.growth_curves import AXES, Point, Sizes, curves
from seqlab.commands import benchmark_growth as benchmark

BASE = Sizes(2, 8, 16, 4, 32)
BASE_OPTION = ["--base", "batch=2,length=8,width=16,depth=4,vocabulary=32"]


def options(*arguments: str) -> Namespace:
    return benchmark.parse(["--device", "cpu", *BASE_OPTION, *arguments])


def point(axis: str, value: int, seconds: float, flops: int, model: str = "m", **settings) -> Point:
    return Point(model, *BASE._replace(**{axis: value}), flops, seconds=seconds, peak_bytes=8 * flops, **settings)


def power_of_length(time: float, work: float) -> list[Point]:
    """Points at lengths 8 to 64: time and FLOPs of these powers, memory as the FLOPs."""
    return [point("length", n, 1e-3 * n**time, round(1000 * n**work)) for n in (8, 16, 32, 64)]


class TestCurves:
    @pytest.mark.parametrize(("time", "work", "mark"), [(1, 1, "+0.00"), (2, 1, "+1.00 grows"), (1, 2, "-1.00")])
    def test_exponents_of_powers(self, time, work, mark):
        (curve,) = curves(power_of_length(time, work), BASE)
        assert (curve.axis, curve.model, curve.values) == ("length", "m", [8, 16, 32, 64])
        assert curve.exponent("seconds").value == pytest.approx(time)
        assert curve.exponent("flops").value == pytest.approx(work)
        assert curve.exponent("peak_bytes").value == pytest.approx(work)
        assert curve.relative == pytest.approx([(n / 8) ** (time - work) for n in (8, 16, 32, 64)])
        assert curve.grows == [False] + [time > work] * 3
        assert growth_curves.beyond(curve.exponent("seconds"), curve.exponent("flops")) == mark

    def test_an_excess_within_its_error_is_no_growth(self):
        points = power_of_length(1, 1)
        for one, noise in zip(points, (1.0, 0.7, 1.0, 1.3), strict=True):
            one.seconds *= noise
        (curve,) = curves(points, BASE)
        assert growth_curves.beyond(curve.exponent("seconds"), curve.exponent("flops")) == "+0.17"

    def test_a_point_grows_beside_the_best_smaller_one(self):
        points = power_of_length(1, 1)
        for one, factor in zip(points, (3.0, 1.0, 1.04, 1.08), strict=True):
            one.seconds *= factor
        (curve,) = curves(points, BASE)
        assert curve.grows == [False, False, False, True]

    def test_axes_share_the_base_point(self):
        points = [point("batch", 2, 1.0, 10), point("width", 32, 2.0, 40), point("batch", 4, 2.0, 20)]
        points += [point("batch", 2, 1.0, 10, "n"), point("batch", 8, 1.0, 10, status="failed", reason="why")]
        found = [(curve.axis, curve.model, curve.values) for curve in curves(points, BASE)]
        assert found == [("batch", "m", [2, 4]), ("width", "m", [16, 32])]
        assert growth_curves.endings(points, BASE) == ["m, batch 8: why"]

    def test_tables(self):
        of_lengths, exponents = growth_curves.tables(curves(power_of_length(2, 1), BASE), BASE, "here")
        assert of_lengths.title == "A training step against length; batch 2, width 16, depth 4, vocabulary 32; here"
        rows = [[cell.plain for cell in column.cells] for column in of_lengths.columns]
        assert rows[1:3] == [["8", "16", "32", "64"], ["64.0", "256", "1,024", "4,096"]]
        assert rows[3] == ["0.250", "0.125", "0.0625", "0.0312"]  # 16 tokens in 64 ms, ...
        assert rows[5] == ["1.00", "2.00 grows", "4.00 grows", "8.00 grows"]
        cells = [next(column.cells).plain for column in exponents.columns]
        assert cells == ["length", "m", "8 to 64", "2.00 ± 0.00", "1.00", "+1.00 grows", "1.00 ± 0.00"]

    def test_colours_and_markers_are_those_of_every_picture(self):
        points = [point("batch", n, 1.0, 10, name) for name in ("mamba", "transformer") for n in (2, 4)]
        time, peak = growth_curves.panels(curves(points, BASE))
        assert [line.look for line in time.lines] == [line.look for line in peak.lines]
        assert time.lines[0].look == {"color": "#0072B2", "marker": "o"}
        assert time.lines[1].look == {"color": "#D55E00", "marker": "s"}


class TestMeasuring:
    def test_flops_are_those_of_the_head_where_there_is_nothing_else(self):
        """A product of (B L, D) and (D, V) forward, and two of its size backward."""
        found = growth.measured_point("linear", Sizes(3, 5, 8, 1, 11), None, options())
        assert found.flops == 3 * 2 * (3 * 5) * 8 * 11
        assert found.seconds > 0 and found.status == "measured"

    def test_sizes_of_a_model(self):
        model = growth.model_of("transformer_vanilla", Sizes(1, 8, 256, 3, 7), torch.device("meta"))
        assert (len(model.layers), model.embed.weight.shape) == (3, (7, 256))
        assert model.layers[0].mixer.inner.n_heads == 4
        assert model.layers[0].feedforward.inner.out_proj.weight.shape == (256, 1024)

    def test_ends_at_the_limit(self):
        args, large = options("--limit", "1"), point("batch", 64, None, 600)
        assert growth.why_not(large, point("batch", 32, 0.4, 300), args) is None
        why = growth.why_not(large, point("batch", 32, 0.6, 300), args)
        assert why == "a step would take about 1.2 s, and --limit is 1 s"

    def test_ends_before_a_cpus_memory_does(self, monkeypatch):
        monkeypatch.setattr(memory, "available_memory", lambda device: 2**30)
        below = point("batch", 32, 1e-3, 2**27)  # and a GiB
        why = growth.why_not(point("batch", 64, None, 2**28), below, options())
        assert why == "needs about 2.0 GiB of memory, 1.0 are free"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the script in this process, each step once; returns its exit status and results."""
    monkeypatch.setattr(growth, "LEAST", 0.0)
    monkeypatch.setattr(growth, "ROUNDS", 1)

    def main(*arguments: str, out: str = "out") -> tuple[int, dict]:
        status = benchmark.main(["--device", "cpu", *BASE_OPTION, *arguments, "--out", str(tmp_path / out)])
        path = tmp_path / out / "growth.json"
        return status, json.loads(path.read_text()) if path.exists() else {}

    main.folder = tmp_path
    return main


def values(results: dict, axis: str, model: str = "mamba") -> list[int]:
    """The measured sizes along an axis, without the base's."""
    rows = (row for row in results["points"] if row["model"] == model and row["status"] == "measured")
    return [row[axis] for row in rows if row[axis] != getattr(BASE, axis)]


def failing_from(monkeypatch, batch: int, error: BaseException) -> None:
    """Make each step of at least so many sequences fail."""
    step = growth.training_step

    def fails(model, vocabulary, size, length, **settings):
        if size >= batch:
            raise error
        return step(model, vocabulary, size, length, **settings)

    monkeypatch.setattr(growth, "training_step", fails)


class TestTheScript:
    def test_end_to_end(self, run, capsys):
        axes = ["--axes", "batch,depth", "--batch", "1:4", "--depth", "2:8"]
        status, results = run("--models", "mamba,hybrid", *axes)
        assert status == 0 and not results["interrupted"] and results["precision"] == "float32"
        assert [(row["model"], *(row[axis] for axis in AXES)) for row in results["points"]] == [
            ("mamba", 2, 8, 16, 4, 32),
            ("hybrid", 2, 8, 16, 4, 32),
            *((model, batch, 8, 16, 4, 32) for model in ("mamba", "hybrid") for batch in (1, 4)),
            *((model, 2, 8, 16, depth, 32) for model in ("mamba", "hybrid") for depth in (2, 8)),
        ]
        assert values(results, "depth", "hybrid") == [8]
        for row in results["points"]:
            if row["status"] == "measured":
                assert row["seconds"] > 0 and row["samples"] and row["flops"] > 0
        batch = results["curves"][0]
        assert (batch["axis"], batch["model"], batch["values"]) == ("batch", "mamba", [1, 2, 4])
        assert batch["exponents"]["flops"]["value"] == pytest.approx(1)
        assert (run.folder / "out" / "growth.png").read_bytes()[:4] == b"\x89PNG"
        written = (run.folder / "out" / "growth.md").read_text()
        assert written.count("A training step against") == 2 and "Exponents of a training step" in written
        assert "hybrid, depth 2: 4 mixers do not fit into n_layers=2" in capsys.readouterr().out

    def test_a_curve_ends_out_of_memory_and_the_others_go_on(self, run, monkeypatch, capsys):
        failing_from(monkeypatch, 4, torch.OutOfMemoryError("CUDA out of memory"))
        axes = ["--axes", "batch,vocabulary", "--batch", "2:16", "--vocabulary", "32:64"]
        status, results = run("--models", "mamba", *axes)
        assert status == 0
        assert (values(results, "batch"), values(results, "vocabulary")) == ([], [64])
        assert len(results["points"]) == 3  # 8 and 16 are not tried
        assert "mamba, batch 4: out of memory" in capsys.readouterr().out

    def test_another_fault_is_loud_and_loses_nothing(self, run, monkeypatch, capsys):
        failing_from(monkeypatch, 4, RuntimeError("odd shapes\nin detail"))
        status, results = run("--models", "mamba", "--axes", "batch,vocabulary", "--batch", "4", "--vocabulary", "64")
        assert status == 1
        assert values(results, "vocabulary") == [64]
        shown = capsys.readouterr()
        assert "Traceback" in shown.err and "in detail" in shown.err
        assert "mamba, batch 4: RuntimeError: odd shapes" in shown.out

    def test_sigterm_keeps_what_was_measured(self, run, monkeypatch):
        """As Ctrl-C does; ``timeout`` and schedulers send it."""
        point = growth.measured_point

        def stopped_at_four(model, sizes, *others):
            if sizes.batch == 4:
                signal.raise_signal(signal.SIGTERM)
            return point(model, sizes, *others)

        monkeypatch.setattr(growth, "measured_point", stopped_at_four)
        status, results = run("--models", "mamba", "--axes", "batch", "--batch", "1:8")
        assert status == 130 and results["interrupted"]
        assert values(results, "batch") == [1]

    def test_points_are_written_as_they_come(self, run, monkeypatch):
        seen = []
        step = growth.measured_step

        def watched(*args):
            path = run.folder / "out" / "growth.json"
            seen.append(len(json.loads(path.read_text())["points"]) if path.exists() else 0)
            return step(*args)

        monkeypatch.setattr(growth, "measured_step", watched)
        run("--models", "linear", "--axes", "batch", "--batch", "1:8")
        assert seen == [0, 0, 1, 2, 3]  # the first step warms up

    def test_reports_of_processes_become_one(self, run, capsys):
        _, first = run("--models", "linear", "--axes", "batch", "--batch", "2:8", out="a")
        _, second = run("--models", "linear,lstm", "--axes", "length", "--length", "8:16", out="b")
        paths = [run.folder / name / "growth.json" for name in "ab"]
        capsys.readouterr()
        status, results = run("--merge", *map(str, paths))
        assert status == 0
        assert results["points"] == second["points"][:1] + first["points"][1:] + second["points"][1:]  # one base point
        assert [part["settings"]["axes"] for part in results["parts"]] == [["batch"], ["length"]]
        shown = capsys.readouterr().out
        assert "against batch" in shown and "against length" in shown and "growth.png" in shown

    def test_a_point_that_failed_is_replaced_by_one_that_was_measured(self, run, monkeypatch):
        with monkeypatch.context() as broken:
            failing_from(broken, 4, RuntimeError("odd"))
            assert run("--models", "linear", "--axes", "batch", "--batch", "2:8", out="a")[0] == 1
        _, again = run("--models", "linear", "--axes", "batch", "--batch", "2:8", out="b")
        status, results = run("--merge", *(str(run.folder / name / "growth.json") for name in "ab"))
        assert status == 0 and results["points"][1:] == again["points"][1:]

    def test_what_was_measured_otherwise_is_not_merged(self, run, capsys):
        run("--models", "linear", "--axes", "batch", "--batch", "2:4", out="a")
        run("--models", "linear", "--axes", "batch", "--batch", "2:4", "--precision", "bf16", out="b")
        paths = [str(run.folder / name / "growth.json") for name in "ab"]
        assert run("--merge", *paths) == (2, {})
        assert "has precision bf16, and" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--models", "mambo"], "--models=mambo: is not among the names it takes"),
            (["--axes", "heads"], "--axes=heads: is not among the names it takes"),
            (["--batch", "8:4"], "--batch=8:4: ends before it begins"),
            (["--base", "heads=4"], "--base=heads=4: is not one of batch, length, width, depth, vocabulary and its"),
            (["--base", "batch=two"], "--base batch=two: has to be a whole number from 1 on"),
            (["--limit", "-1"], "--limit=-1: has to be a number of seconds above 0"),
            (["--merge", "nowhere.json"], "--merge=nowhere.json: is no growth.json"),
            (["--out", __file__], "a file is in the way"),
        ],
    )
    def test_mistakes(self, capsys, tmp_path, monkeypatch, arguments, message):
        monkeypatch.chdir(tmp_path)
        assert benchmark.main(["--device", "cpu", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err and "Traceback" not in err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_memory_grows_with_the_tokens(tmp_path):
    """Every model's step: what twice the batch adds, twice the length adds too, and four times adds thrice."""
    axes = ["--axes", "batch,length", "--batch", "8:32", "--length", "1024:2048"]
    # A process of its own: what other tests leave in memory, and give back some time later, counts as peak memory too.
    command = [sys.executable, "-m", "seqlab", "benchmark", "growth", "--device", "cuda", *axes, "--out", str(tmp_path)]
    subprocess.run(command, check=True)
    points = [Point(**row) for row in json.loads((tmp_path / "growth.json").read_text())["points"]]
    assert len(points) == 4 * (1 + 2 + 1)
    peaks = {(p.model, p.batch, p.length): p.peak_bytes for p in points}
    for model in ("mamba", "mamba2", "transformer", "hybrid"):
        base = peaks[model, 8, 1024]
        added = peaks[model, 16, 1024] - base
        assert peaks[model, 32, 1024] - base == pytest.approx(3 * added, rel=0.2)
        assert peaks[model, 8, 2048] - base == pytest.approx(added, rel=0.2)
