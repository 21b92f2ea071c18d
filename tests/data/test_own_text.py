"""One's own text: which documents are in which split, what their tokens are, and what is refused."""

import csv
import json
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from own_texts import documents_of, stream, text_of
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from seqlab.data import documents, own_corpus
from seqlab.data.documents import Record, TextPart, cut, documents_in, last_cut
from seqlab.data.splitting import split_by_hash
from seqlab.data.subwords import Subwords, interruptible, train_bpe
from seqlab.errors import UserError
from seqlab.inference.generate import pieces
from support import LINES

SPLITS = ("train", "validation", "test")
KINDS = ("character", "byte", "word", "bpe")
SHARES = {"validation": 0.2, "test": 0.1}


@pytest.fixture
def records(tmp_path) -> dict[str, Path]:
    """The same sixty documents as records of each kind."""
    import pyarrow
    from pyarrow.parquet import write_table

    texts = [text_of(i) for i in range(60)]
    paths = {kind: tmp_path / f"many.{kind}" for kind in ("jsonl", "csv", "parquet")}
    paths["jsonl"].write_text("".join(json.dumps({"id": i, "body": text}) + "\n" for i, text in enumerate(texts)))
    with paths["csv"].open("w", newline="") as file:
        csv.writer(file).writerows([["id", "body"], *enumerate(texts)])
    write_table(pyarrow.table({"id": list(range(60)), "body": texts}), paths["parquet"])
    return paths


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_every_document_is_in_one_split_by_its_hash(own, records, kind):
    data = own(str(records[kind]), field="body", tokens="byte")
    expected = {
        split: [t for t in map(text_of, range(60)) if split_by_hash(Record(t), SHARES) == split] for split in SPLITS
    }
    assert {split: documents_of(data, split) for split in SPLITS} == expected
    assert min(map(len, expected.values())) >= 3


def test_the_hash_does_not_depend_on_pieces_and_gives_the_shares(monkeypatch):
    texts = [Record(text_of(i) * 9) for i in range(2000)]
    found = [split_by_hash(text, SHARES) for text in texts]
    assert all(abs(found.count(split) / 2000 - share) < 0.03 for split, share in SHARES.items())  # 3 deviations
    monkeypatch.setattr(documents, "PIECE", 50)
    assert [split_by_hash(text, SHARES) for text in texts[:99]] == found[:99]


def test_a_single_text_is_cut_by_position_at_the_ends_of_lines(own, tmp_path):
    path = tmp_path / "my.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "".join(map(text_of, range(50))).encode().replace(b"\n", b"\r\n"))
    data = own(str(path), tokens="character")
    parts = {split: documents_of(data, split) for split in SPLITS}
    assert all(len(part) == 1 and part[0].endswith("\n") for part in parts.values())
    assert "".join(part[0] for part in parts.values()) == "".join(map(text_of, range(50)))
    size = sum(len(part[0].encode()) for part in parts.values())
    assert len(parts["train"][0].encode()) / size == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("text", ["日" * 50000, "日" * 90 + "\n"])
def test_a_line_without_an_end_is_cut_between_characters(tmp_path, text):
    path = tmp_path / "line.txt"
    path.write_text(text)
    parts = ["".join(part) for part in cut(path, [0.5, 0.3, 0.2])]
    assert all(parts)
    assert "".join(parts) == text


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a/train.txt", "a/valid.txt", "test.txt"], ["a/train.txt", "a/valid.txt", "test.txt"]),
        (["train-0.txt", "dev/1.txt", "TEST.txt"], ["train-0.txt", "dev/1.txt", "TEST.txt"]),
    ],
)
def test_files_that_are_named_for_splits_are_those(own, tmp_path, names, expected):
    for name in names:
        path = tmp_path / "given" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"this is {name}, which has words\n")
    data = own(str(tmp_path / "given"), tokens="byte")
    assert [documents_of(data, split) for split in SPLITS] == [[f"this is {n}, which has words\n"] for n in expected]


def test_names_of_splits_that_are_not_taken_are_said(own, tmp_path, caplog):
    (tmp_path / "given").mkdir()
    for name in ("train.txt", "test.txt", "about.txt"):
        (tmp_path / "given" / name).write_text("".join(map(text_of, range(20))) + name)
    with pytest.raises(UserError, match="no document of it is in the"):
        own(str(tmp_path / "given"), tokens="byte")
    assert "about.txt is not named for a split" in caplog.text


def test_what_is_not_given_is_cut_from_training(own, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("".join(map(text_of, range(40))))
    data = own({"train": str(tmp_path / "a.txt"), "test": str(tmp_path / "b.txt")}, tokens="byte")
    [train], [validation], [test] = (documents_of(data, split) for split in SPLITS)
    assert train + validation == test
    assert len(train) / len(test) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_the_text_and_bytes_are_counted(own, records, kind):
    data = own(str(records["jsonl"]), field="body", tokens=kind, vocab_size=300 if kind == "bpe" else None)
    train = [text_of(i) for i in range(60) if split_by_hash(Record(text_of(i)), SHARES) == "train"]
    assert documents_of(data, "train") == train
    size = sum(len(text.encode()) for text in train)
    assert data.text_bytes("train").per_token * (len(stream(data, "train")) - 1) == pytest.approx(size, rel=1e-12)
    assert data.d_input == len(data.vocabulary) == len(set(data.vocabulary))
    assert (data.tokenizer_file is None) == (kind != "bpe")
    assert data.encode(train[0]).tolist() == stream(data, "train")[1 : len(data.encode(train[0])) + 1]


def test_a_word_that_the_vocabulary_lacks_is_counted(own, tmp_path):
    (tmp_path / "my.txt").write_text("the cat saw naïve\nthe cat saw\n" * 20 + "zebra the\n" * 20)
    data = own(str(tmp_path / "my.txt"), tokens="word", vocab_size=6)  # 4 of the most frequent
    assert set(data.vocabulary) == {"the", "cat", "saw", "<eos>", "<unk>", "<|endoftext|>"}
    train = documents_of(data, "train")[0]
    size, hidden = (
        data.text_bytes("train").per_token * (len(stream(data, "train")) - 1),
        train.count("<unk>") * len("naïve".encode()),
    )
    assert data.text_bytes("train").unknown == pytest.approx(hidden / size)
    assert hidden / size > 0.1
    assert data.text_bytes("test").unknown == pytest.approx(5 / 10)  # zebra


def test_bpe_is_that_of_the_library_on_the_training_split(own, records):
    data = own(str(records["jsonl"]), field="body", vocab_size=300)
    train = [text_of(i) for i in range(60) if split_by_hash(Record(text_of(i)), SHARES) == "train"]
    content = train_bpe(iter(train), 300)
    assert data.tokenizer_file.read_text() == content == train_bpe(iter(train), 300)
    tokenizer = Tokenizer.from_str(content)
    expected = [0, *(i for text in train for i in [*tokenizer.encode(text).ids, 0])]
    assert stream(data, "train") == expected
    assert data.d_input == tokenizer.get_vocab_size() == 300


PATTERNS = {
    "gpt2": None,
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+",
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pieces_have_the_tokens_of_the_whole(monkeypatch, pattern):
    """Wherever the text can be cut: every place that could be the last one is tried."""
    rng = random.Random(1)
    parts = ["word", "don't", "Ω", " ", "  ", "\n", "\n", "\n ", ".", "!\n", "12", "\t", " \n = A"]
    text = "".join(rng.choices(parts, k=4000))
    tokenizer = Tokenizer(models.BPE())
    own = pre_tokenizers.Split(Regex(PATTERNS[pattern] or ""), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *([own] if PATTERNS[pattern] else []),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern == "gpt2"),
        ]
    )
    tokenizer.train_from_iterator([text] * 9, trainers.BpeTrainer(vocab_size=600, show_progress=False))
    whole = tokenizer.encode(text).ids
    monkeypatch.setattr(documents, "PIECE", 100)
    cuts = list(documents.pieces(text[i : i + 7] for i in range(0, len(text), 7)))
    assert "".join(cuts) == text and len(cuts) > 20
    assert [i for piece in cuts for i in tokenizer.encode(piece).ids] == whole


def test_a_text_without_lines_is_cut_somewhere():
    assert last_cut("a" * (4 * documents.PIECE)) == 4 * documents.PIECE
    assert last_cut("a.\nb") == 3


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_text_comes_in_whole_characters(own, tmp_path, kind):
    (tmp_path / "my.txt").write_text(LINES)
    data = own(str(tmp_path / "my.txt"), tokens=kind, **({"vocab_size": 260} if kind == "bpe" else {}))
    text = "naïve 日本 🙂!"
    first, *ids = data.encode(f"a{text}").tolist()
    given = list(pieces(data, first, iter(ids)))
    assert "".join(given) == text and all(given) and "\ufffd" not in "".join(given)
    assert "".join(pieces(data, first, iter(ids[:-2]))) == data.decode([first, *ids[:-2]])[1:]


def test_a_text_is_encoded_once_and_anew_when_it_changes(own, tmp_path, monkeypatch):
    path = tmp_path / "my.txt"
    path.write_text(LINES)
    first = own(str(path))
    with monkeypatch.context() as patch:
        for name in ("encode", "train_bpe"):
            patch.setattr(own_corpus, name, lambda *_: pytest.fail("made again"))
        assert own(str(path), length=4).fingerprint == first.fingerprint
    [tokens] = (tmp_path / "cache" / "text").glob("*/train.tokens")
    tokens.write_bytes(tokens.read_bytes()[:-2])
    assert stream(own(str(path)), "test") == stream(first, "test")
    path.write_text(LINES + "one more line\n")
    assert own(str(path)).fingerprint != first.fingerprint
    assert own(str(path), tokens="byte").fingerprint != first.fingerprint


def tokenizer_json(folder: Path, **special: str) -> str:
    """A ``tokenizer.json`` of another library's making, with three words."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special.values()))
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def test_any_tokenizer_json(own, tmp_path):
    (tmp_path / "my.txt").write_text(LINES)
    folder = tokenizer_json(tmp_path, end="</s>")
    assert own(str(tmp_path / "my.txt"), tokens=folder).d_input == 4
    padded = own(str(tmp_path / "my.txt"), tokens=folder, vocab_size=8)
    assert padded.d_input == len(padded.vocabulary) == 8
    assert (padded.end_of_document, padded.tokenizer_file) == (3, tmp_path / "tokenizer.json")


def binary(folder: Path) -> dict[str, Any]:
    (folder / "my.txt").write_bytes(b"a\n" * 40000 + b"\x89PNG\r\n")
    return {}


def utf16(folder: Path) -> dict[str, Any]:
    (folder / "my.txt").write_bytes("text".encode("utf-16-le"))
    return {}


def record(name: str, content: str, **settings: Any) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        (folder / name).write_text(content)
        return {"files": str(folder / name)} | settings

    return write


def parquet(folder: Path) -> dict[str, Any]:
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.table({"body": ["a"], "id": [1]}), folder / "a.parquet")
    return {"files": str(folder / "a.parquet")}


REFUSED: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "no files": (lambda _: {"files": None}, "data.files=null: is the text to train on"),
    "no such file": (lambda _: {"files": "nowhere.txt"}, "data.files=nowhere.txt: there is no such file or folder"),
    "an empty folder": (
        lambda folder: {"files": str(folder / "cache")},
        "data.files=.*cache: there is no such|holds no",
    ),
    "no training": (lambda _: {"files": {"test": "a"}}, "data.files=test: must name train"),
    "binary": (binary, r"data\.files=.*my\.txt: is not UTF-8 text \(byte 80,000\)"),
    "utf-16": (utf16, r"data\.files=.*my\.txt: is not UTF-8 text \(it holds bytes of value 0\)"),
    "a parquet without the field": (parquet, r"data\.field=text: .*a\.parquet has body, id.\n.*data\.field="),
    "a csv without the field": (record("a.csv", "body,id\nx,1\n"), r"data\.field=text: .*a\.csv has body, id"),
    "numbers": (record("a.jsonl", '{"text": 3}\n'), r"data\.field=text: in .*a\.jsonl it holds int and no text"),
    "no record": (
        record("a.jsonl", '{"text": "a"}\n[1]\n'),
        r"data\.files=.*a\.jsonl: cannot be read \(line 2: no record",
    ),
    "broken": (
        record("a.jsonl", '\n{"text": \n'),
        r"data\.files=.*a\.jsonl: cannot be read \(line 2: Expecting value, column",
    ),
    "half a surrogate pair": (
        record("a.jsonl", '{"text": "a"}\n{"text": "\\ud83d"}\n'),
        r"data\.files=.*a\.jsonl: cannot be read \(line 2: .* surrogates not allowed",
    ),
    "an array": (record("a.json", '[\n{"text": "a"}]'), r"data\.files=.*a\.json: cannot be read \(line 1: Expecting"),
    "a comma without quotes": (
        record("a.csv", "text\nwell\nwell, well\n"),
        r"data\.files=.*a\.csv: cannot be read \(line 3: more values than the first line names",
    ),
    "too few columns": (
        record("a.csv", "id,text\n1\n"),
        r"data\.files=.*a\.csv: cannot be read \(line 2: fewer values than the first line names",
    ),
    "a quote without an end": (
        record("a.csv", 'text\n"a\nb\n'),
        r"data\.files=.*a\.csv: cannot be read \(after line 1: unexpected end of data",
    ),
    "an empty name": (lambda _: {"files": ""}, r"data\.files=: a name in it is empty"),
    "an empty list": (lambda _: {"files": []}, r"data\.files=\[\]: a name in it is empty"),
    "too few for words": (lambda _: {"tokens": "word", "vocab_size": 2}, "data.vocab_size=2: a vocabulary of words"),
    "a broken parquet": (record("a.parquet", "PAR1"), r"data\.files=.*a\.parquet: cannot be read \("),
    "one document": (
        record("a.jsonl", '{"text": "a b c"}\n'),
        r"data\.files=.*a\.jsonl: no document of it is in the ",
    ),
    "too short": (record("my.txt", "a b\n" * 12), r"data\.length=8: the (test|validation) split of .* holds \d tokens"),
    "fractions": (
        lambda _: {"fractions": [0.9, 0.1]},
        r"data\.fractions=\[0\.9, 0\.1\]: must be three positive shares",
    ),
    "no tokenizer": (
        lambda _: {"tokens": "subword"},
        "data.tokens=subword: there is no such file.\nTake character, byte",
    ),
    "no json": (lambda folder: {"tokens": str(folder / "my.txt")}, r"data\.tokens=.*my\.txt: is no tokenizer\.json \("),
    "too small a vocabulary": (
        lambda folder: {"tokens": tokenizer_json(folder, end="</s>"), "vocab_size": 3},
        r"data\.tokens=.*tokenizer\.json: has 4 tokens, and the model 3 .*\n.* needs no data\.vocab_size=3",
    ),
    "another vocabulary": (
        lambda folder: {"tokens": tokenizer_json(folder, end="</s>"), "vocab_size": 50280},
        r"data\.tokens=.*tokenizer\.json: has 4 tokens, and the model 50,280 ",
    ),
    "no end": (lambda folder: {"tokens": tokenizer_json(folder)}, r"data\.end_token=null: .*json has none of"),
    "another end": (
        lambda folder: {"tokens": tokenizer_json(folder), "end_token": "<x>"},
        r"data\.end_token=<x>: .*json has no such token",
    ),
    "too few for bytes": (lambda _: {"vocab_size": 99}, "data.vocab_size=99: BPE has all bytes in it"),
    "a size of characters": (lambda _: {"tokens": "byte", "vocab_size": 9}, "data.vocab_size=9: a vocabulary of bytes"),
}


@pytest.mark.parametrize(("prepare", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_refused_and_leaves_nothing(own, tmp_path, prepare, message):
    (tmp_path / "my.txt").write_text(LINES)
    settings = {"files": str(tmp_path / "my.txt")} | prepare(tmp_path)
    with pytest.raises(UserError, match=f"^{message}") as refused:
        own(**settings)
    assert len(str(refused.value).splitlines()) == 2
    whole = {path.name.split("-")[0] for path in (tmp_path / "cache").glob("text/*")}
    assert whole <= {"my", "a"}, "a folder that was begun"


def test_a_part_of_a_character_at_the_end_of_a_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes("naï".encode()[:-1])
    [document] = documents_in(tmp_path / "a.txt", "text")
    assert isinstance(document, TextPart)
    with pytest.raises(UserError, match=r"not UTF-8 text \(byte 2\)"):
        list(document)


def test_a_kept_tokenizer_needs_no_text(own, tmp_path):
    (tmp_path / "my.txt").write_text(LINES)
    data = own(str(tmp_path / "my.txt"), vocab_size=280)
    again = own("moved away.txt", vocab_size=280, tokenizer=str(data.tokenizer_file))
    assert again.encode("the cat").equal(data.encode("the cat"))
    with pytest.raises(UserError, match=r"^data\.files=moved away\.txt: there is no such file"):
        again.train_batch(0, 1, 0)
    kept = own(str(tmp_path / "my.txt"), vocab_size=280, tokenizer=str(data.tokenizer_file))
    assert kept.fingerprint == data.fingerprint


def test_special_tokens_are_read_and_none_is_added(tmp_path):
    tokens = Subwords(Path(tokenizer_json(tmp_path, end="</s>"), "tokenizer.json"))
    assert tokens.encode("b</s>").tolist() == [1, 3] and tokens.decode([1, 3]) == "b"


def test_work_can_be_interrupted_before_it_ends():
    let, done = threading.Event(), []

    def work():
        os.kill(os.getpid(), signal.SIGINT)
        done.append(let.wait(60))

    with pytest.raises(KeyboardInterrupt):
        interruptible(work)
    assert not done
    let.set()
    with pytest.raises(UserError):
        interruptible(lambda: Subwords(Path("nowhere")))
