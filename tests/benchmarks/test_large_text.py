"""The benchmark of large text, at a size of nothing."""

import json

from seqlab.benchmarks import text
from seqlab.commands import benchmark_text
from support import LINES


def test_a_measurement(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text, "MB", 10**5)
    monkeypatch.setattr(text, "BATCHES", 3)

    def here(path, cache, args):
        text.measured(str(path), str(cache), args.vocabulary)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    monkeypatch.setattr(text, "measured_apart", here)  # not in a process of its own
    out, given = tmp_path / "results.json", tmp_path / "given.txt"
    given.write_text(LINES)
    arguments = ["--sizes", "1,2", "--vocabulary", "300", "--sample", "1", "--rounds", "1", "--out", str(out)]
    assert benchmark_text.main([*arguments, "--work", str(tmp_path), "--text", str(given)]) == 0
    found = json.loads(out.read_text())
    assert [row["size_mb"] for row in found["sizes"]] == [1, 2]
    assert 1.9 < found["sizes"][1]["tokens"] / found["sizes"][0]["tokens"] < 2.1
    assert found["sizes"][0]["times_the_first"] == 1 and found["sizes"][1]["peak_bytes"] > 1e8
    assert set(found["mb_per_second"]) == {"seqlab", "tokenizers, encode_batch", "tokenizers, encode_batch_fast"}
    assert not list(tmp_path.glob("seqlab-text-*"))


def test_texts_are_of_the_size_asked_for(tmp_path):
    (tmp_path / "own.txt").write_text("a line\n")
    text.write_text(tmp_path / "a.txt", 50, tmp_path / "own.txt")
    assert (tmp_path / "a.txt").read_text() == "a line\n" * 8
    text.write_text(tmp_path / "b.txt", 10**6, None)
    assert 10**6 <= (tmp_path / "b.txt").stat().st_size < 1.2 * 10**6
