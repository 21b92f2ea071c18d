"""The benchmark of several GPUs: efficiencies, processes that fail, rings on paper against closed formulas."""

import json
import os
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from forks import as_torchrun
from seqlab.benchmarks import scaling
from seqlab.benchmarks.scaling_on_paper import Collective, Links, built_of, context, ddp, fsdp, shape_of, step
from seqlab.benchmarks.scaling_points import BARE, GRAPH, NO_GRAPH, OURS, Case, Point, as_dict, panels, series, tables
from seqlab.benchmarks.scaling_step import Trained, batch_of, prepare
from seqlab.commands import benchmark_scaling as benchmark
from seqlab.errors import UserError
from seqlab.invocation import processes
from seqlab.training.parallel import joined

P = 129_135_360
"""Parameters of state-spaces/mamba-130m on the hub; those of mamba-1.4b are 1,372,178,432."""

LINKS = Links(inside=400e9, between=20e9, latency=1e-5, host=4)
SMALL = ["--device", "cpu", "--models", "transformer", "--size", "tiny", "--length", "16", "--batch", "4"]


def point(gpus: int, rows: int, *seconds: float, by: str = OURS) -> Point:
    return Point("m", by, gpus, rows, 100, samples=list(seconds), peak_bytes=2 * 10**9)


class TestPoints:
    def test_efficiencies(self):
        """Twice the time for four times the tokens is half; 2 s for a quarter each is an eighth of 1 s alone."""
        points = [point(4, 8, 2.0), point(1, 8, 1.0, 1.0, 4.0), point(1, 8, 2.0, by=NO_GRAPH), point(4, 2, 2.0)]
        weak, bare, strong, _ = map(as_dict, series([*points, point(1, 8, 3.0, by=BARE)], 8, 8))
        assert (weak["scaling"], strong["scaling"], bare["contestant"]) == ("weak", "strong", BARE)
        assert (weak["gpus"], weak["by"]) == ([1, 1, 4], [OURS, NO_GRAPH, OURS])
        assert weak["tokens_per_second"] == [800, 400, 1600]
        assert weak["efficiency"] == [1, 0.5, 0.5]
        assert strong["efficiency"] == [1, 0.5, 0.125]

    def test_beside_the_fewest_that_were_measured(self):
        failed = Point("m", OURS, 1, 8, 100, status="failed", reason="out of memory")
        (one,) = series([failed, point(2, 8, 1.0), point(4, 8, 1.25)], 8, 3)
        assert one.efficiencies == [None, 1, 0.8]
        assert [line.points for panel in panels([one]) for line in panel.lines] == [[(2, 1), (4, 0.8)]]

    def test_tables(self):
        (made,) = tables(series([point(2, 8, 1.0, 2.0, 3.0)], 8, 1), {"m": "ddp"}, "here")
        cells = [next(column.cells).plain for column in made.columns]
        assert made.title == "m, weak scaling; ddp; here"
        assert cells == [OURS, "2", "2 x 8 x 100", "0.800", "2,000", "1,500 to 2,500", "2.00", "1.00"]


def options(*arguments: str) -> Namespace:
    args = benchmark.parse([*SMALL, *arguments])
    args.trained = {name: scaling.trained_of(name, args) for name in args.models}
    return args


class TestCases:
    def test_what_belongs_to_both_scalings_is_measured_once(self):
        args = options("--gpus", "1,2", "--global-batch", "4")
        assert scaling.cases_of(args, 1) == [Case("transformer", by, 1, 4) for by in (OURS, BARE)]
        assert scaling.cases_of(args, 2) == [Case("transformer", by, 2, n) for n in (4, 2) for by in (OURS, BARE)]
        assert [case.rows for case in scaling.cases_of(args, 3)] == [4, 4]  # 4 sequences do not divide by 3

    def test_on_gpus_also_the_other_way_to_launch(self):
        """By default one process replays a graph and several do not."""
        args = options("--gpus", "1,2")
        args.device = torch.device("cuda")
        assert [case.contestant for case in scaling.cases_of(args, 1)] == [OURS, NO_GRAPH, BARE]
        assert [case.contestant for case in scaling.cases_of(args, 2) if case.rows == 4] == [OURS, GRAPH, BARE]
        args.trained = {name: trained._replace(parallel="fsdp") for name, trained in args.trained.items()}
        assert {case.contestant for case in scaling.cases_of(args, 2)} == {OURS, BARE}  # it has none

    def test_models(self):
        args = options("--parallel", "fsdp")
        assert args.trained["transformer"] == Trained(["model=transformer", "size=tiny"], 10_000, "fsdp")
        args.parallel = None
        assert [scaling.trained_of(name, args).parallel for name in scaling.MODELS] == ["ddp", "ddp", "fsdp"]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--gpus", "1,4096"], "--gpus=4096: this machine has no more cores than "),
            (["--gpus", "0"], "--gpus=0: has to be a whole number from 1 on."),
            (["--models", "130M"], "--models=130M: is not among the names it takes."),
            (["--paper", "1.5"], "--paper=1.5: is more than all of a GPU's peak."),
            (
                ["--paper", "nowhere.json"],
                "--paper=nowhere.json: has to be a file, or a share of a GPU's peak above 0.",
            ),
        ],
    )
    def test_mistakes(self, arguments, said):
        with pytest.raises(UserError) as refusal:
            benchmark.parse([*SMALL, *arguments])
        assert str(refusal.value).startswith(said)
        assert len(str(refusal.value).splitlines()) == 2


class Torchrun:
    """In the place of torchrun: measures the cases that it is given until one fails."""

    fails: tuple[str, ...] = ()
    started = 0

    def __init__(self, command: list[str], **_: object):
        type(self).started += 1
        settings = json.loads(Path(command[-1]).read_text())
        with Path(settings["results"]).open("a") as results:
            for place, given in enumerate(settings["cases"]):
                found = Point(*given, settings["length"], samples=[1.0])
                if found.contestant in self.fails:
                    found = Point(*given, settings["length"], status="failed", reason=self.fails[-1])
                for _ in "of two processes" if found.reason else "1":
                    results.write(json.dumps([place, asdict(found)]) + "\n")
                if found.reason:
                    return

    def poll(self) -> int:
        return 1

    wait = terminate = poll


class TestProcesses:
    @pytest.fixture
    def run(self, monkeypatch, tmp_path):
        def main(torchrun: type, *arguments: str, draws: bool = False) -> tuple[int, dict]:
            monkeypatch.setattr(scaling.report, "can_draw", lambda: draws)
            monkeypatch.setattr(torchrun, "started", 0)
            monkeypatch.setattr(scaling, "subprocess", Namespace(Popen=torchrun))
            status = benchmark.main([*SMALL, "--gpus", "1,2", *arguments, "--out", str(tmp_path)])
            path = tmp_path / scaling.FILE
            return status, json.loads(path.read_text()) if path.exists() else {}

        return main

    def test_all_is_measured_and_left(self, run, tmp_path, capsys):
        status, results = run(Torchrun, draws=True)
        assert (status, Torchrun.started, results["interrupted"]) == (0, 2, False)
        assert [(row["contestant"], row["gpus"], row["rows"]) for row in results["points"]] == [
            *((by, 1, 4) for by in (OURS, BARE)),
            *((by, 2, n) for n in (4, 2) for by in (OURS, BARE)),
        ]
        assert [one["efficiency"] for one in results["series"]] == [[1, 1], [1, 1], [1, 0.5], [1, 0.5]]
        assert "transformer, strong scaling; ddp, vocabulary 10,000; " in (tmp_path / "scaling.md").read_text()
        assert "scaling.json, scaling.md, scaling.png" in capsys.readouterr().out

    def test_after_a_failure_they_start_again(self, run, capsys):
        class Fails(Torchrun):
            fails = OURS, "out of memory"

        status, results = run(Fails)
        assert (status, Fails.started) == (0, 5)  # again after each of three, the rest with the first of its number
        assert [row["status"] for row in results["points"]] == ["failed", "measured"] * 3
        assert "transformer, ours, 2 x 2 x 16: out of memory" in capsys.readouterr().out

    def test_processes_that_end_without_a_word(self, run, capsys):
        class Dies(Torchrun):
            def __init__(self, command: list[str], **_: object):
                type(self).started += 1

        status, results = run(Dies)
        assert (status, Dies.started, len(results["points"])) == (1, 2, 6)
        assert "processes-2.log says why" in capsys.readouterr().out

    def test_a_model_that_cannot_be_built_starts_nothing(self, run, capsys):
        assert run(Torchrun, "--models", "transformer,hybrid") == (2, {})  # four mixers in two layers
        assert len(capsys.readouterr().err.splitlines()) == 2
        assert Torchrun.started == 0

    def test_ctrl_c_leaves_what_was_measured(self, run, capsys):
        class Stopped(Torchrun):
            def __init__(self, command: list[str], **_: object):
                super().__init__(command)
                if self.started == 2:
                    raise KeyboardInterrupt

        status, results = run(Stopped)
        assert (status, results["interrupted"], len(results["points"])) == (130, True, 2)


class TestOnPaper:
    @pytest.mark.parametrize("gpus", [1, 2, 8, 1024])
    def test_bytes_of_a_ring(self, gpus):
        (reduced,), gathered = ddp(P, gpus), fsdp(P, gpus, 24)
        assert reduced.bytes == pytest.approx(2 * (gpus - 1) / gpus * 4 * P)
        assert [one.bytes for one in gathered] == pytest.approx([(gpus - 1) / gpus * 4 * P] * 3)
        assert (reduced.hops, gathered[0].hops) == (2 * (gpus - 1), gpus - 1)
        assert reduced.pieces == 20  # of 516.5 MB, 26.2 MB each

    def test_what_is_outside_of_layers_is_gathered_once(self):
        first, again, scattered = fsdp(100, 4, 5, outside=40)
        assert (first.bytes, again.bytes, scattered.bytes) == (300, 180, 300)
        assert (first.pieces, again.pieces, scattered.pieces) == (6, 5, 6)

    def test_context_parallel_is_the_table_of_the_guide(self):
        """For a sequence and a layer of the 130 M Mamba 197 and 98 kB, and twice 18 kB; to each of three others."""
        (slices,) = context(rows=1, layers=1, channels=1536, group=4)
        assert slices.bytes == 3 * (196_608 + 98_304 + 2 * 18_432)

    def test_links(self):
        """Inside a host the pace of NVLink; between hosts that of the cards of all its GPUs."""
        assert [LINKS.bandwidth(gpus) for gpus in (1, 4, 8)] == [400e9, 400e9, 80e9]
        one = Collective("", 8e9, pieces=3, hops=7, behind=None)
        assert one.seconds(LINKS, 8) == pytest.approx(0.1 + 21e-5)

    def test_what_hides(self):
        """Of an all-reduce of 0.1 s in ten pieces the last shows behind a long pass; a pass of 0.06 s hides so much."""
        links = LINKS._replace(latency=0)
        reduced = [Collective("all-reduce", 8e9, 10, 14, "backward")]
        assert step(reduced, 8, 0.3, links).exposed == pytest.approx(0.01)
        found = step(reduced, 8, 0.09, links)
        assert (found.exposed, found.breaks) == (pytest.approx(0.04), ["all-reduce: bytes"])
        assert found.efficiency == pytest.approx(0.09 / 0.13)
        waits = [reduced[0]._replace(behind=None)]
        assert step(waits, 8, 0.3, links).exposed == pytest.approx(0.1)
        slow = step(reduced, 8, 0.09, LINKS._replace(latency=1e-3))
        assert slow.breaks == ["all-reduce: latency"]
        assert slow.exposed == pytest.approx(0.1 + 140e-3 - 0.06)

    def test_one_gpu_exchanges_nothing(self):
        for collectives in (ddp(P, 1), fsdp(P, 1, 24)):
            assert step(collectives, 1, 0.1, LINKS) == (0.1, 0, [])

    @pytest.mark.parametrize(("name", "parameters", "layers"), [("130m", P, 24), ("1.4b", 1_372_178_432, 48)])
    def test_the_models_are_the_papers(self, name, parameters, layers):
        trained = scaling.MODELS[name]
        shape = shape_of(trained, built_of(trained, 4))
        width = int(trained.overrides[1].partition("=")[2])
        assert (shape.parameters, shape.layers) == (parameters, layers)
        assert shape.outside == (50_280 + 1) * width  # the embedding, which is the head's matrix too, and the last norm

    def test_from_what_was_measured(self, tmp_path, capsys):
        path, found = tmp_path / "scaling.json", Point("transformer", OURS, 1, 4, 16)
        path.write_text(json.dumps({"points": [asdict(found)]}))
        assert benchmark.main([*SMALL, "--paper", str(path), "--out", str(tmp_path)]) == 2
        assert "has no step of transformer with 4 x 16 on one GPU" in capsys.readouterr().err
        found.samples = [0.5, 0.25, 1.0]
        path.write_text(json.dumps({"points": [asdict(found)]}))
        assert benchmark.main([*SMALL, "--paper", str(path), "--out", str(tmp_path)]) == 0
        assert "computing takes 500 ms: as measured on one GPU" in capsys.readouterr().out
        made = json.loads((tmp_path / "scaling_on_paper.json").read_text())["tables"]
        assert [len(rows) for rows in made.values()] == [5, 5]
        assert list(made)[1] == "transformer, fsdp, 4 x 16 a GPU, on paper"


TINY = Trained(["model=transformer", "size=tiny"], 97)


def count(folder: Path) -> None:
    """Leave the numbers of floats that each collective of a step gathers or scatters, by its name."""
    settings, cpu, found = {"seed": 0, "length": 8, "precision": "float32"}, torch.device("cpu"), {}
    with joined(*processes()) as world:
        update, _ = prepare(Case("", OURS, 2, 1), TINY._replace(parallel="fsdp"), settings, world, cpu)
        with torch.profiler.profile(record_shapes=True) as record:
            update(world.share(batch_of(0, 2, 8, 97)), 1.0)
    for event in record.events():
        if event.name in ("c10d::_allgather_base_", "c10d::_reduce_scatter_base_"):
            found.setdefault(event.name, []).append(max(shape[0] for shape in event.input_shapes if shape))
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_fsdp_exchanges_what_is_on_paper(tmp_path):
    """Twice the layers and once the rest, but for what torch fills up so that parts are alike."""
    ended = as_torchrun(tmp_path, count, tmp_path)
    assert not any(status for status, _ in ended), ended
    found, shape = json.loads((tmp_path / "1.json").read_text()), shape_of(TINY, built_of(TINY, 8))
    first, again, scattered = fsdp(shape.parameters, 2, shape.layers, shape.outside)
    gathered, reduced = found["c10d::_allgather_base_"], found["c10d::_reduce_scatter_base_"]
    assert len(gathered) == first.pieces + again.pieces
    assert len(reduced) == scattered.pieces
    assert 4 * sum(gathered) / 2 == pytest.approx(first.bytes + again.bytes, rel=5e-3)
    assert 4 * sum(reduced) / 2 == pytest.approx(scattered.bytes, rel=5e-3)


@pytest.mark.slow
def test_two_processes_on_a_cpu(tmp_path):
    """Losses tell that all contestants, whatever their number, train the same model on the same tokens."""
    options = ["--gpus", "1,2", "--steps", "2", "--parallel", "fsdp", "--out", str(tmp_path)]
    assert benchmark.main([*SMALL, *options]) == 0
    results = json.loads((tmp_path / scaling.FILE).read_text())
    losses = {(row["contestant"], row["gpus"], row["rows"]): row["first_loss"] for row in results["points"]}
    assert len(losses) == 6
    for by in (OURS, BARE):
        assert losses[by, 2, 2] == pytest.approx(losses[OURS, 1, 4], rel=1e-6)  # one batch, shared
        assert losses[by, 2, 4] == pytest.approx(losses[OURS, 2, 4], rel=1e-6)
    assert losses[OURS, 2, 4] != losses[OURS, 1, 4]
    assert all(len(row["samples"]) == 2 and row["peak_bytes"] for row in results["points"])
    assert all(value > 0 for one in results["series"] for value in one["efficiency"])
