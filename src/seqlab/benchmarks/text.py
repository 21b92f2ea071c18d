"""Encoding large text: resident memory against the text's size, and speed beside ``tokenizers``' own batches.

Each size is a process of its own, since a process's peak memory never falls. It trains BPE, encodes the text into the
cache, and reads batches and the validation split from there, as training does.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.table import Table

from seqlab import console
from seqlab.benchmarks import report
from seqlab.benchmarks.results import facts, ratio
from seqlab.data.documents import Files, TextPart
from seqlab.data.own_corpus import OwnCorpus
from seqlab.data.own_text import OwnText
from seqlab.data.subwords import Subwords
from seqlab.errors import UserError

MB = 10**6
FRACTIONS = (0.9, 0.05, 0.05)
BATCHES, BATCH = 500, 32
PEAK_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes of ``ru_maxrss``."""

AT_ONCE = 16
"""Pieces of 65,536 characters in a batch of the library: a million characters, as are encoded here at a time."""


def run(args: argparse.Namespace) -> int:
    """Measure and show what the options ask for. Returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="seqlab-text-", dir=args.work) as name:
        work = Path(name)
        rows = []
        for size in args.sizes:
            path = work / f"{size}.txt"
            console.say(f"Writing {size:,} MB of text ...")
            write_text(path, size * MB, args.text)
            rows.append({"size_mb": size} | measured_apart(path, work / f"cache-{size}", args))
            path.unlink()
        speeds = {} if args.rounds == 0 else beside_the_library(work, args)
    rows = [row | {"times_the_first": ratio(row["peak_bytes"], rows[0]["peak_bytes"])} for row in rows]
    tables = [sizes_table(rows, args.vocabulary), *([speeds_table(speeds, args)] if speeds else [])]
    settings = {"vocabulary": args.vocabulary, "sample_mb": args.sample, "text": str(args.text), "rounds": args.rounds}
    found = {"settings": settings, "sizes": rows, "mb_per_second": speeds}
    report.finish(args.out, facts(torch.device("cpu"), ("tokenizers",)) | found, tables)
    return 0


def sizes_table(rows: list[dict[str, Any]], vocabulary: int) -> Table:
    """A line for each size of text."""
    cores = f"{os.cpu_count()} cores"
    title = f"BPE of {vocabulary:,} tokens, {cores}: encoding, then {BATCHES} batches and validation"
    lines = [
        {
            "text": f"{row['size_mb']:,} MB",
            "tokens": f"{row['tokens']:,}",
            "training BPE": f"{row['bpe_seconds']:.1f} s",
            "encoding": f"{row['mb_per_second']:.2f} MB/s",
            "reading": f"{row['read_ms']:.2f} ms a batch",
            "peak encoding": f"{row['encoding_bytes'] / 2**20:,.0f} MiB",
            "peak at the end": f"{row['peak_bytes'] / 2**20:,.0f} MiB",
            "of the first": f"{row['times_the_first']:.3f}",
        }
        for row in rows
    ]
    return report.table(title, lines)


def speeds_table(speeds: dict[str, dict[str, float]], args: argparse.Namespace) -> Table:
    """A line for each contestant, by each clock."""
    lines = [
        {"what": what}
        | {f"MB/s, {clock}": f"{rate:.2f}" for clock, rate in rates.items()}
        | {f"seqlab's of it, {clock}": f"{speeds['seqlab'][clock] / rate:.2f}" for clock, rate in rates.items()}
        for what, rates in speeds.items()
    ]
    return report.table(f"Speed on {args.sample} MB, median of {args.rounds} rounds in turn", lines)


def write_text(path: Path, size: int, given: Path | None) -> None:
    """Write a text of ``size`` bytes or a little more: a given file again and again, or words drawn at random.

    Raises:
        UserError: the given file cannot be read.
    """
    if given is not None:
        try:
            content = given.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError("--text", given, f"cannot be read ({error})", "Name a text file in UTF-8") from error
    texts = drawn_texts(0) if given is None else (content for _ in iter(int, 1))
    with path.open("w", encoding="utf-8") as file:
        written = 0
        while written < size:
            written += file.write(next(texts))


def drawn_texts(seed: int) -> Iterator[str]:
    """Lines of words, without end: word number r of 50,000 is drawn with a probability that falls as 1 / r (Zipf)."""
    random = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    spelled = random.choice(letters, (50_000, 10), p=zipf(len(letters)))
    lengths = random.integers(2, 11, len(spelled))
    words = np.array(["".join(row[:n]) for row, n in zip(spelled, lengths, strict=True)], dtype=object)
    probabilities = zipf(len(words))
    while True:
        lines = random.choice(words, (500, 12), p=probabilities)
        yield "".join(" ".join(line).capitalize() + " .\n" for line in lines)


def zipf(count: int) -> np.ndarray:
    """Probabilities (count,) that fall as 1 / rank."""
    falling = 1 / np.arange(1, count + 1)
    return falling / falling.sum()


def measured_apart(path: Path, cache: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What ``measured`` finds, in a process of its own.

    Raises:
        RuntimeError: the process failed.
    """
    call = f"from seqlab.benchmarks.text import measured; measured({str(path)!r}, {str(cache)!r}, {args.vocabulary})"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the process for {path.name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(path: str, cache: str, vocabulary: int) -> None:
    """Encode a file and read from it; print what that took as JSON."""
    corpus = OwnCorpus(Files(path, "text"), FRACTIONS, Path(cache))
    before = time.perf_counter()
    tokenizer = corpus.bpe(vocabulary)
    trained = time.perf_counter()
    corpus.by(Subwords(tokenizer))
    encoded = time.perf_counter()
    found = {
        "bpe_seconds": trained - before,
        "mb_per_second": Path(path).stat().st_size / MB / (encoded - trained),
        "encoding_bytes": peak(),
    }
    where = {"files": path, "cache_dir": cache, "fractions": list(FRACTIONS)}
    data = OwnText(length=256, windows="sampled", vocab_size=vocabulary, **where)
    before = time.perf_counter()
    for index in range(BATCHES):
        data.train_batch(index, BATCH, 0)
    found |= {"read_ms": (time.perf_counter() - before) / BATCHES * 1e3}
    tokens = sum(batch.targets.numel() for batch in data.evaluation_batches("validation", BATCH))
    print(json.dumps(found | {"tokens": data.train_size * 256 + 2 * tokens, "peak_bytes": peak()}))


def peak() -> int:
    """The process's largest resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT


def beside_the_library(work: Path, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """MB/s of a text that is in memory through the library's batches, and of its file into the cache, in turn.

    By the clock on the wall, and by the processors' time, which other load on the machine changes less.
    """
    path = work / "sample.txt"
    write_text(path, args.sample * MB, args.text)
    corpus = OwnCorpus(Files(str(path), "text"), FRACTIONS, work / "sample")
    tokens = Subwords(corpus.bpe(args.vocabulary))
    pieces = list(TextPart(path))

    def library(encode: Callable[..., Any]) -> None:
        for first in range(0, len(pieces), AT_ONCE):
            encode(pieces[first : first + AT_ONCE], add_special_tokens=False)

    def ours(number: Iterator[int]) -> None:
        OwnCorpus(corpus.source, FRACTIONS, work / f"round-{next(number)}").by(tokens)

    batch, fast = tokens.batches
    contestants = {
        "seqlab": partial(ours, iter(range(args.rounds + 1))),
        "tokenizers, encode_batch": partial(library, batch),
        "tokenizers, encode_batch_fast": partial(library, fast),
    }
    clocks = {"elapsed": time.perf_counter, "processor": time.process_time}
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    with suppress(KeyboardInterrupt):
        for _ in range(args.rounds):
            for name, call in contestants.items():
                before = {clock: read() for clock, read in clocks.items()}
                call()
                seconds[name].append({clock: read() - before[clock] for clock, read in clocks.items()})
    size = path.stat().st_size / MB
    return {
        name: {clock: size / median(sample[clock] for sample in samples) for clock in clocks}
        for name, samples in seconds.items()
    }
