"""The benchmark of the scan, through its script: what it leaves, what it counts, and messages for mistakes."""

import csv
import json
import math
import runpy
import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch

from seqlab.benchmarks import report, roofline, scan, scan_contestants
from seqlab.benchmarks.roofline import DeviceLimits
from seqlab.benchmarks.scan import PASSES, Row, compare, roofline_ms, scan_bytes, scan_exponentials
from seqlab.benchmarks.scan_contestants import Contestant, Operation, make_inputs, ours
from seqlab.benchmarks.scan_shapes import ODD, OFFICIAL, Shape
from seqlab.benchmarks.session import Measurement
from seqlab.ops.selective_scan import BACKENDS, selective_scan
from support import ROOT

SCRIPT = ROOT / "scripts" / "benchmark_scan.py"
CPU = torch.device("cpu")
TINY = Shape(2, 6, 4, 3)


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """Run the script with arguments in this process, on a small copy bandwidth; returns its exit status and results."""

    def run(*arguments: str, out: bool = True) -> tuple[int, dict]:
        folder = tmp_path / "out"
        given = ("--out", str(folder)) if out else ()
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--device", "cpu", *given, *arguments])
        monkeypatch.setitem(roofline.COPY_BYTES, "cpu", 2**20)
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        path = folder / "scan.json"
        return exit_info.value.code, json.loads(path.read_text()) if path.exists() else {}

    run.folder = tmp_path / "out"
    return run


def assert_measured(rows: list[dict]) -> None:
    for row in rows:
        assert row["status"] == "measured", row
        for key in ("ms", "ms_min", "repetitions", "first_call_s"):
            assert math.isfinite(row[key]) and row[key] > 0


def png_size(path) -> tuple[int, int]:
    """Width and height, from a PNG's header."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


class TestTheScript:
    def test_end_to_end(self, benchmark, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        arguments = ["--lengths", "5,8", "--batch", "2", "--d-inner", "8", "--d-state", "3", "--limit", "0.05"]
        status, _ = benchmark(*arguments, "--against", "mamba_ssm,attention", out=False)
        out, err = capsys.readouterr()
        assert status == 0, err
        (folder,) = (tmp_path / "outputs" / "benchmarks").iterdir()
        assert folder.name.startswith("scan-")
        results = json.loads((folder / "scan.json").read_text())

        expected = {name for name in BACKENDS if name not in results["left_out"]} | {"attention"}
        keys = {(row["backend"], row["length"], row["passes"]) for row in results["rows"]}
        first = [row for row in results["rows"] if row["length"] == 5]
        assert keys >= {(name, 5, passes) for name in expected for passes in PASSES}
        assert len(results["rows"]) == 2 * len(first)
        assert_measured(first)
        assert {"parallel", "reference"} <= expected
        assert "triton" not in expected
        assert set(results["versions"]) >= {"python", "torch", "triton", "numba", "seqlab"}
        assert results["command"].endswith("--against mamba_ssm,attention")
        assert results["roofline"]["copy_bytes_per_second"] > 1e6
        assert results["device_name"] and results["date"]

        with (folder / "scan.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        assert len(lines) == len(results["rows"])
        assert [float(line["ms"]) for line in lines if line["ms"]] == [
            row["ms"] for row in results["rows"] if row["ms"] is not None
        ]
        assert (folder / "scan.png").exists() == ("No picture without matplotlib" not in err)
        reasons = [line for line in err.splitlines() if line.startswith("mamba_ssm left out")]
        assert len(reasons) == 1
        assert "2x5x8x3" in out and "attention / this" in out

    def test_shapes_in_place_of_the_sweep(self, benchmark, capsys):
        status, results = benchmark(
            "--shapes", "1x3x2,2x4x2", "--backends", "reference", "--against", "none", "--dtype", "bf16", "--limit", "1"
        )
        assert status == 0
        assert [(row["batch"], row["length"]) for row in results["rows"]] == [(1, 3), (1, 3), (2, 4), (2, 4)]
        assert {row["dtype"] for row in results["rows"]} == {"bfloat16"}
        assert_measured(results["rows"])
        assert all(row["over_roofline"] > 0 and row["official_ms"] is None for row in results["rows"])
        assert "attention" not in capsys.readouterr().out
        if find_spec("matplotlib"):
            assert min(png_size(benchmark.folder / "scan.png")) > 300

    def test_each_shape_has_its_state_size(self, benchmark):
        both = ("--backends", "reference", "--against", "none", "--limit", "0.01")
        _, results = benchmark("--shapes", "1x3x2,1x2x2x5,1x3x2x4", "--d-state", "4", *both)
        assert [row["d_state"] for row in results["rows"][::2]] == [4, 5]
        assert_measured(results["rows"])

    def test_without_matplotlib(self, benchmark, monkeypatch, capsys):
        monkeypatch.setattr(report, "find_spec", lambda name: None)
        status, _ = benchmark("--shapes", "1x2x2", "--backends", "reference", "--against", "none", "--limit", "0.01")
        assert status == 0
        assert not (benchmark.folder / "scan.png").exists()
        assert "pip install 'seqlab[plots]'" in capsys.readouterr().err

    def test_leaves_out_what_would_take_too_long(self, benchmark, capsys):
        status, results = benchmark(
            "--lengths", "4,4096", "--batch", "1", "--d-inner", "4", "--backends", "reference", "--against", "none",
            "--limit", "0.02",
        )  # fmt: skip
        assert status == 0
        assert [row["status"] for row in results["rows"]] == ["measured", "measured", "skipped", "skipped"]
        assert "reference, forward, skipped at 1x4096x4x16: about" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
            (["--device", "tpu"], "--device=tpu"),
            (["--device", "cuda:99"], "--device=cuda:99"),
            (["--lengths", "16,0"], "--lengths=0"),
            (["--shapes", "3x4"], "--shapes=3x4"),
            (["--shapes", "3x4x5x6x7"], "--shapes=3x4x5x6x7"),
            (["--shapes", "2x3x0"], "--shapes=0"),
            (["--shapes", "targets", "--batch", "2"], "Give the one or the other"),
            (["--shapes", "odd,2x3x4x5", "--d-state", "8"], "--d-state=8: every shape of --shapes has"),
            (["--backends", "cuda"], f"Choose from {', '.join(BACKENDS)}"),
            (["--against", "attention,rwkv"], "--against=rwkv"),
            (["--limit", "soon"], "--limit=soon"),
            (["--seed", "x"], "--seed=x"),
            (["--device", "cpu", "--captured"], "--captured=cpu"),
            (["--batches", "2"], "unrecognized arguments"),
            (["--out", str(SCRIPT)], "a file is in the way"),
        ],
    )
    def test_mistakes(self, benchmark, capsys, arguments, message):
        status, _ = benchmark(*arguments)
        err = capsys.readouterr().err
        assert status == 2
        assert message in err
        assert len(err.strip().splitlines()) <= 2


class TestRoofline:
    @pytest.mark.parametrize(
        ("shape", "floor_ms"), list(zip(OFFICIAL, (0.011, 0.045, 0.067, 0.134, 0.089, 0.268), strict=True)), ids=str
    )
    def test_published_floor_of_bytes(self, shape, floor_ms):
        """The published column, at 3.00 TB/s, leaves out B and C: up to 1 % less."""
        assert scan_bytes(shape, 2, "forward") / 3.00e9 == pytest.approx(floor_ms, rel=0.01, abs=6e-4)

    def test_counts_by_hand(self):
        shape = Shape(2, 3, 5, 7)  # 30 numbers in u; 2 x 3 x 7 = 42 in B for N = 7
        assert scan_bytes(shape, 4, "forward") == 4 * (4 * 30 + 2 * 42)
        assert scan_bytes(shape, 4, "forward+backward") == 4 * (11 * 30 + 6 * 42)
        assert scan_exponentials(shape, "forward") == 30 * (7 + 4)
        assert scan_exponentials(shape, "forward+backward") == 2 * 30 * (7 + 4)

    def test_is_the_larger_of_the_two(self):
        shape, slow = Shape(1, 1000, 10), 1e3
        exponentials = DeviceLimits(1e12, slow)
        assert roofline_ms(shape, 2, "forward", exponentials) == pytest.approx(1e3 * 200_000 / slow)
        for others in (1e15, None):
            copies = DeviceLimits(slow, others)
            assert roofline_ms(shape, 2, "forward", copies) == pytest.approx(1e3 * 144_000 / slow)


class TestComparison:
    LIMITS = DeviceLimits(3e12)

    def rows(self, backend: str, shape: Shape, forward: float, both: float, peak: float) -> list[Row]:
        return [
            Row(backend, *shape, "bfloat16", passes, ms=ms, peak_mib=peak)
            for passes, ms in zip(PASSES, (forward, both), strict=True)
        ]

    def test_ratios(self):
        rows = self.rows("triton", TINY, 2.0, 6.0, 1) + self.rows("attention", TINY, 1.0, 12.0, 1)
        compare(rows, self.LIMITS, 2, with_official=False)
        assert [row.times_attention for row in rows] == [0.5, 2.0, None, None]
        assert rows[0].times_mambapy is None
        assert rows[0].over_roofline == pytest.approx(2.0 / rows[0].roofline_ms)
        assert rows[2].roofline_ms is None

    def test_published_figures(self):
        rows = self.rows("triton", Shape(32, 256, 512), 0.042, 0.2, 44.5)
        compare(rows, self.LIMITS, 2, with_official=True)
        assert [row.target_met for row in rows] == [True, False]
        assert rows[1].times_official == pytest.approx(2.38)
        assert (rows[0].peak_met, rows[1].peak_met) == (None, False)
        assert scan.targets_table(rows, "a device").row_count == 1

    def test_what_was_not_measured_is_neither_met_nor_missed(self):
        rows = [
            Row("triton", 32, 256, 512, 16, "bfloat16", passes, status="skipped", reason="slow") for passes in PASSES
        ]
        compare(rows, self.LIMITS, 2, with_official=True)
        assert {row.target_met for row in rows} == {None}
        assert scan.gaps(rows)[0] == "triton, forward, skipped at 32x256x512x16: slow"

    def test_each_launch_is_compared_with_its_like(self):
        rows = []
        for launch, ours_ms, other_ms in (("eager", 4.0, 2.0), ("captured", 1.0, 3.0)):
            for backend, ms in (("triton", ours_ms), ("mamba_ssm", other_ms)):
                rows += [Row(backend, *TINY, "bfloat16", passes, launch, ms=ms) for passes in PASSES]
        compare(rows, self.LIMITS, 2, with_official=True)
        assert [row.times_mamba_ssm for row in rows if row.backend == "triton"] == [0.5, 0.5, 3.0, 3.0]
        table = scan.results_table(rows, "")
        assert [column.header for column in table.columns][:3] == ["B x L x D x N", "backend", "launch"]
        labels = [line.label for line in scan.panels(rows, sweep=False)[0][0].lines]
        assert "triton, forward" in labels and "triton, captured, forward" in labels


class TestContestants:
    def test_what_mamba_ssm_cannot_take(self):
        cannot = scan_contestants.OTHERS["mamba_ssm"].cannot
        assert [shape for shape in (*OFFICIAL, *ODD) if cannot(shape, torch.bfloat16)] == []
        assert cannot(Shape(1, 2, 3, 257), torch.float32) == "its kernel takes at most 256 states"
        assert "65,535" in cannot(Shape(1, 2, 70_000), torch.float32)
        assert "float64" in cannot(Shape(1, 2, 3), torch.float64)

    def test_ours_gives_every_gradient(self):
        x = make_inputs(TINY, torch.float32, CPU, seed=0)
        y, *gradients = ours("reference").prepare(x).forward_backward()
        assert y.shape == TINY[:3]
        assert [g.shape for g in gradients] == [t.shape for t in x.tensors]
        assert (x.A < 0).all()

    def test_mamba_ssm_gets_its_own_layout(self, monkeypatch):
        def selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
            wide = (t.transpose(1, 2) for t in (u, delta, B, C, z))
            u, delta, B, C, z = wide
            y = selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus=delta_softplus, backend="reference")
            return y.transpose(1, 2)

        interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
        interface.selective_scan_fn = selective_scan_fn
        for name in ("mamba_ssm", "mamba_ssm.ops"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, interface.__name__, interface)
        x = make_inputs(TINY, torch.float32, CPU, seed=0)
        theirs = scan_contestants.OTHERS["mamba_ssm"].prepare(x).forward_backward()
        mine = ours("reference").prepare(x).forward_backward()
        for a, b in zip(theirs, mine, strict=True):
            torch.testing.assert_close(a.transpose(1, 2) if a.ndim == 3 else a, b)

    @pytest.mark.skipif(not find_spec("mambapy"), reason="mambapy is not installed")
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_mambapy_computes_the_same(self, dtype):
        x = make_inputs(TINY, dtype, CPU, seed=0)
        theirs = scan_contestants.OTHERS["mambapy"].prepare(x).forward_backward()
        mine = ours("reference").prepare(x).forward_backward()
        for a, b in zip(theirs, mine, strict=True):
            error = (a - b).norm() / b.norm()
            assert error < (1e-5 if dtype == torch.float32 else 0.1)

    def test_attention_is_half_as_wide(self):
        x = make_inputs(Shape(1, 5, 512), torch.float32, CPU, seed=0)
        y, *gradients = scan_contestants.OTHERS["attention"].prepare(x).forward_backward()
        assert y.shape == (1, 4, 5, 64)
        assert len(gradients) == 3


class TestRows:
    ARGS = Namespace(device=CPU, dtype=torch.float32, seed=0, limit=0.01, launches=["eager"])

    def rows_at(self, shape: Shape, contestant: Contestant, before: Sequence[Row] = ()) -> list[Row]:
        rows = scan.rows_at(shape, [contestant], before, self.ARGS, lambda what: None)
        assert [row.passes for row in rows] == list(PASSES)
        return rows

    def raising(self, error: Exception, is_ours: bool) -> Contestant:
        def run():
            raise error

        return Contestant("name", lambda x: Operation(run, (), x.dy), ours=is_ours)

    @pytest.mark.parametrize("is_ours", [True, False])
    def test_out_of_memory_is_a_result(self, is_ours):
        contestant = self.raising(torch.OutOfMemoryError("no more"), is_ours)
        rows = self.rows_at(TINY, contestant)
        assert [(row.status, row.reason) for row in rows] == [("failed", "out of memory")] * 2
        larger = self.rows_at(Shape(2, 7, 4, 3), contestant, rows)  # is not even tried
        assert [(row.status, row.reason) for row in larger] == [("skipped", "it failed at 2x6x4x3 already")] * 2

    def test_what_a_contestant_cannot_take_is_left_out(self):
        rows = self.rows_at(TINY, ours("reference")._replace(cannot=lambda shape, dtype: f"no {shape} in {dtype}"))
        assert {(row.status, row.reason) for row in rows} == {("skipped", "no 2x6x4x3 in torch.float32")}

    def test_what_does_not_fit_is_left_out(self):
        rows = self.rows_at(Shape(2**20, 2**20, 2**10), ours("reference"))
        assert {row.status for row in rows} == {"skipped"}
        assert "GiB of memory" in rows[0].reason

    def test_on_a_gpu_each_call_is_measured_alone(self, monkeypatch):
        """The way that is taken there, with tensors on the CPU and given times."""

        def measured(call, device, *, budget, as_graph):
            assert (device.type, budget, as_graph) == ("cuda", 0.01, True)
            calls.append(call.prepare()())
            return Measurement(first_call=2.0, samples=[0.003, 0.001, 0.002], peak_bytes=2**21)

        calls, shown = [], []
        monkeypatch.setattr(scan, "measure_alone", measured)
        monkeypatch.setattr(scan, "release", lambda device: None)
        monkeypatch.setattr(scan, "lacks_memory", lambda needed, device: None)
        monkeypatch.setattr(scan, "make_inputs", lambda *sizes: make_inputs(*sizes[:2], CPU, seed=0))
        args = Namespace(**vars(self.ARGS) | {"device": torch.device("cuda"), "launches": ["captured"]})
        rows = scan.rows_at(TINY, [ours("reference")], [], args, shown.append)
        assert shown == [f"2x6x4x3, reference, {passes}, captured" for passes in PASSES]
        assert calls[0].shape == TINY[:3] and len(calls[1]) == 1 + 8
        for row in rows:
            assert (row.ms, row.ms_min, row.repetitions, row.first_call_s, row.peak_mib) == (2.0, 1.0, 3, 2.0, 2.0)

    def test_rows_of_a_shape_that_is_cut_short_do_not_count(self, benchmark, monkeypatch):
        measure = scan.measure

        def stop_at_the_second(calls, *args, **settings):
            if next(iter(calls))[0].name == "reference" and stop_at_the_second.calls:
                raise KeyboardInterrupt
            stop_at_the_second.calls += 1
            return measure(calls, *args, **settings)

        stop_at_the_second.calls = 0
        monkeypatch.setattr(scan, "measure", stop_at_the_second)
        status, results = benchmark(
            "--shapes", "1x3x2,2x4x2", "--backends", "reference", "--against", "none", "--limit", "0.01"
        )
        assert status == 130 and results["interrupted"]
        assert [row["length"] for row in results["rows"]] == [3, 3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # a capture has a stream of its own
@pytest.mark.parametrize("launch", [[], ["--captured"], ["--eager", "--captured"]])
def test_on_a_gpu(benchmark, launch):
    sizes = ("--lengths", "64,256", "--d-inner", "64", "--backends", "triton,parallel")
    status, results = benchmark("--device", "cuda", *sizes, "--against", "attention", *launch)
    assert {row["launch"] for row in results["rows"]} == ({name[2:] for name in launch} or {"eager"})
    assert status == 0
    assert_measured(results["rows"])
    assert all(row["peak_mib"] > 0 for row in results["rows"])
    assert results["roofline"]["exponentials_per_second"] > 1e11
    assert results["roofline"]["clock_source"]
    assert all(row["over_roofline"] > 1 for row in results["rows"] if row["backend"] != "attention")
