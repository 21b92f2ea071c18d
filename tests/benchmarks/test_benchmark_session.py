"""Timing calls in turn, faults of one of them, and what results look like."""

from pathlib import Path

import pytest
import torch

import forks
from seqlab.benchmarks import report, session, timing
from seqlab.benchmarks.results import speed_up, step_row, step_table
from seqlab.benchmarks.roofline import copy_bandwidth
from seqlab.benchmarks.session import Call, measure, measure_alone, measure_whole

CPU = torch.device("cpu")


class TestTiming:
    def test_interleaves_and_stops(self):
        calls = []
        samples = timing.in_turn({name: lambda name=name: calls.append(name) for name in "ab"}, CPU, budget=10.0)
        assert calls[:4] == ["a", "b", "a", "b"]
        assert {name: len(values) for name, values in samples.items()} == dict.fromkeys("ab", timing.REPETITIONS)

    def test_a_long_call_runs_once(self):
        assert len(timing.in_turn({"": lambda: None}, CPU, budget=0.0)[""]) == 1

    def test_a_sample_is_the_mean_of_as_many_calls_as_fill_it(self, monkeypatch):
        clock = iter(range(1000))  # each call of the clock is a second after the last
        monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
        calls = []
        samples = timing.in_turn({"": lambda: calls.append(1)}, CPU, rounds=3, least=4.0)
        assert samples[""] == [0.25] * 3
        assert len(calls) == 1 + 3 * 4

    def test_bandwidth(self):
        assert 1e6 < copy_bandwidth(CPU, 2**20) < 1e14


def raising(error: Exception):
    def run():
        raise error

    return run


def hold_whole_memory() -> None:
    needs = iter([2**25, *[2**23] * 100])  # numbers, of 4 bytes

    def prepare():
        kept = torch.ones(2**24)
        return lambda: (kept, torch.ones(next(needs)))

    found = measure_whole(Call(prepare), CPU, warm_up=2, rounds=3, least=0.0)
    assert found.status == "measured" and len(found.samples) == 3 and found.first_call > 0
    assert 0.9 * (2**26 + 2**25) < found.peak_bytes < 1.3 * (2**26 + 2**25)


class TestMeasure:
    def test_every_call_is_warm_before_the_first_round(self):
        order = []
        calls = {name: Call(lambda name=name: lambda: order.append(name)) for name in "ab"}
        found = measure(calls, CPU, rounds=2, warm_up=3)
        assert "".join(order) == "aaabbbabab"
        assert all(len(one.samples) == 2 and one.first_call > 0 for one in found.values())
        assert found["a"].peak_bytes is None

    @pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
    def test_a_call_alone_has_its_peak_memory(self, monkeypatch):
        """As on a GPU, whose clock is replaced."""
        monkeypatch.setattr(session, "gpu_samples", lambda function, device, budget: [1.0, 3.0, 2.0])
        found = measure_alone(Call(lambda: lambda: torch.ones(2**24)), CPU, budget=1.0)
        assert found.status == "measured" and found.median == 2.0 and found.first_call > 0
        assert 0.9 * 2**26 < found.peak_bytes < 1.5 * 2**26

    @pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
    def test_the_whole_memory_of_a_call_is_what_is_prepared_and_what_it_needs_from_the_second_time_on(self, tmp_path):
        """In a process of its own: one that has trained keeps what is freed."""
        status, said = forks.finish(tmp_path / "screen", hold_whole_memory)
        assert status == 0, said

    @pytest.mark.parametrize(("long", "calls"), [(0.0, 2), (9.0, 4 + 3)])
    def test_a_long_call_is_made_twice(self, long, calls):
        made = []
        call = Call(lambda: lambda: made.append(1))
        found = measure_whole(call, CPU, warm_up=4, rounds=3, least=0.0, long=long)
        assert (len(made), len(found.samples)) == (calls, calls - 4 if long else 1)

    @pytest.mark.parametrize("ours", [True, False])
    def test_out_of_memory_is_a_result(self, ours):
        calls = {"large": Call(lambda: raising(torch.OutOfMemoryError("no more")), ours), "small": Call(lambda: list)}
        found = measure(calls, CPU, rounds=1)
        assert (found["large"].status, found["large"].reason) == ("failed", "out of memory")
        assert found["large"].median is None and found["small"].median > 0
        assert measure_alone(calls["large"], CPU, budget=1.0) == found["large"]
        assert measure_whole(calls["large"], CPU, warm_up=1, rounds=1, least=0.0) == found["large"]

    def test_a_fault_of_another_package_is_its_own_and_one_of_ours_is_loud(self):
        theirs = Call(lambda: raising(ValueError("odd\nlines")), ours=False)
        found = measure({"theirs": theirs, "mine": Call(lambda: list)}, CPU, rounds=1)
        assert found["theirs"].reason == "ValueError: odd" and found["mine"].samples
        assert measure_alone(theirs, CPU, budget=1.0).reason == "ValueError: odd"
        mine = theirs._replace(ours=True)
        for run in (lambda: measure({"": mine}, CPU), lambda: measure_alone(mine, CPU, budget=1.0)):
            with pytest.raises(ValueError, match="odd"):
                run()


class TestResults:
    def test_ratios_are_medians_of_rounds(self):
        assert speed_up([2.0, 6.0, 8.0], [1.0, 1.0, 2.0]) == 4.0
        assert speed_up([], [1.0]) is None

    def test_a_contestant_that_failed_has_a_row_and_its_reason(self):
        calls = {"a": Call(lambda: list), "b": Call(lambda: raising(ValueError("odd")), ours=False)}
        found = measure(calls, CPU, rounds=1)
        rows = [{"model": name, "times": None} | step_row(one, 8) for name, one in found.items()]
        table = step_table("title", rows, "model", "a step", "times")
        assert table.row_count == 2 and table.caption == "b failed: ValueError: odd"

    def test_numbers(self):
        assert [report.number(n) for n in (None, 0, 0.01234, 1.234, 12345)] == ["-", "0", "0.0123", "1.23", "12,345"]
        assert report.number(0.5, 1e3) == "500"
        assert [report.thousands(n) for n in (512, 1024, 131072, 2**20)] == ["512", "1k", "128k", "1M"]

    def test_tables_in_markdown(self, tmp_path):
        rows = [{"shape": "1x2", "backend": "cpu", "ms": "1.0"}, {"shape": "1x2", "backend": "gpu", "ms": "0.5"}]
        report.write_markdown(tmp_path / "t.md", [report.table("title", rows * 2, names=2, caption="below")])
        lines = [line.strip() for line in (tmp_path / "t.md").read_text().splitlines()]
        assert lines[0] == "title" and lines[-1] == "below"
        cells = [line.replace(" ", "") for line in lines if line.startswith("|")]
        assert cells[0] == "|shape|backend|ms|" and set(cells[1]) == {"|", "-"}
        assert cells[2:] == ["|1x2|cpu|1.0|", "|1x2|gpu|0.5|"] * 2

    def test_a_table_without_rows(self):
        assert report.table("nothing was measured", []).row_count == 0
