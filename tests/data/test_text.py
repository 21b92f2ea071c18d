"""Language-modelling windows: what each epoch and each evaluation covers, and what is refused."""

import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from seqlab.data import Batch
from seqlab.data.text import TextData
from seqlab.errors import UserError
from seqlab.training.evaluate import evaluate
from seqlab.training.metrics import BitsPerByte
from support import configured_data


def stream(data: TextData, split: str) -> torch.Tensor:
    """All tokens of a split, from its evaluation windows of length 1."""
    batches = list(data.evaluation_batches(split, 10**6))
    targets = [batch.targets.flatten() for batch in batches]
    return torch.cat([batches[0].inputs.flatten()[:1], *targets])


def epoch(data: TextData, number: int, seed: int = 0) -> Batch:
    """All windows of an epoch, (n, L) twice."""
    size = data.train_size
    return Batch(
        *map(torch.cat, zip(*(data.train_batch(number * size + i, 1, seed) for i in range(size)), strict=True))
    )


@pytest.fixture
def numbered(words, tmp_path):
    """Builds a corpus of words that are all different in training: word number i is 'w<i>' but for the last, <eos>."""

    def build(size: int, **overrides) -> TextData:
        texts = {"train": " ".join(f"w{i}" for i in range(size - 1)), "validation": "w0 " * 40, "test": "w0 " * 40}
        for split, text in texts.items():
            (tmp_path / "data" / "toy" / f"{split}.txt").write_text(text)
        return TextData(**words(**overrides))

    return build


@pytest.mark.parametrize("unit", ["word", "character", "byte"])
def test_the_bytes_that_are_predicted_are_those_of_the_file_but_for_its_first_token(words, unit):
    """Bits per byte of a uniform guess are the number of tokens times the vocabulary's logarithm by the bytes."""
    settings = words(unit=unit, metrics={"bits_per_byte": BitsPerByte()})
    text = " the naïve <unk> cat\n" * 30 + "old bird and"
    for path in (Path(settings["dir"]) / "toy").iterdir():
        path.write_text(text)
    content = (text + "\n" * (unit == "word")).encode()  # of words, the last line ends
    data = TextData(**settings)
    first = {"word": len(" the"), "character": 1, "byte": 1}[unit]

    def uniform(inputs):
        return torch.zeros(*inputs.shape, data.d_input)

    model = torch.nn.Module()
    model.forward = uniform
    found = evaluate(model, data, "test", batch_size=3, device=torch.device("cpu"), autocast=nullcontext)
    tokens = sum(batch.targets.numel() for batch in data.evaluation_batches("test", 1))
    expected = tokens * math.log2(data.d_input) / (len(content) - first)
    assert found.metrics["bits_per_byte"] == pytest.approx(expected, rel=1e-6)
    if unit == "byte":
        assert tokens == len(content) - first


def test_the_interface(words):
    data = TextData(**words(metrics={"m": 1}))
    assert data.tokens
    assert data.d_input == data.d_output == len(data.vocabulary) == 14
    assert (data.length, data.unit, data.metrics) == (16, "word", {"m": 1})
    sizes = [len(stream(data, split)) for split in ("train", "validation", "test")]
    assert data.train_size == sizes[0] // 16
    assert data.description == (
        f"toy: {sizes[0]:,} + {sizes[1]} + {sizes[2]} words, vocabulary 14, contiguous windows of 16"
    )


@pytest.mark.parametrize("windows", ["sampled", "contiguous", "carried"])
def test_batches_hold_tokens_and_the_tokens_that_follow(words, characters, windows):
    for settings in (words, characters):
        data = TextData(**settings(windows=windows))
        inputs, targets = data.train_batch(7, 5, 1)
        assert inputs.shape == targets.shape == (5, 16)
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs[:, 1:].equal(targets[:, :-1])
        text = data.decode(stream(data, "train"))
        assert sum(data.decode(row) in text + text for row in inputs) == 5


@pytest.mark.parametrize("windows", ["sampled", "contiguous", "carried"])
def test_a_batch_depends_on_index_size_and_seed_alone(words, windows):
    data, again = TextData(**words(windows=windows)), TextData(**words(windows=windows))
    indices = list(range(40))
    forwards = [data.train_batch(i, 6, 3).inputs for i in indices]
    backwards = [again.train_batch(i, 6, 3).inputs for i in reversed(indices)]
    assert all(a.equal(b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert not forwards[0].equal(data.train_batch(0, 6, 4).inputs)
    assert not forwards[0].equal(forwards[1])


@pytest.mark.parametrize("size, length", [(160, 16), (161, 16), (175, 16), (23, 12), (100, 1)])
def test_contiguous_windows_predict_every_token_at_most_once_an_epoch(numbered, size, length):
    data = numbered(size, length=length)
    counts = np.zeros(size, dtype=int)
    for number in range(3):
        targets = epoch(data, number).targets.flatten().numpy()
        seen = np.bincount(targets, minlength=size)
        assert seen.max() == 1
        assert size - seen.sum() == size % length
        counts += seen
    assert data.train_size == size // length


@pytest.mark.parametrize("size, rows", [(161, 3), (192, 3), (96, 3), (100, 6)])
def test_carried_windows_read_on_from_batch_to_batch(numbered, size, rows):
    """Rows are streams of one length, each token is predicted at most once an epoch, and epochs begin elsewhere."""
    data, counts, starts = numbered(size, length=16, windows="carried"), np.zeros(size, dtype=int), set()
    steps = size // rows // 16
    assert steps == data.train_size // rows
    for number in range(3):
        batches = [data.train_batch(number * steps + step, rows, 5) for step in range(steps)]
        assert [data.begins(number * steps + step, rows) for step in range(steps)] == [True] + [False] * (steps - 1)
        inputs, targets = (torch.cat(parts, dim=1) for parts in zip(*batches, strict=True))  # (rows, steps 16)
        assert inputs[:, 1:].equal(targets[:, :-1])
        assert (inputs[1:] - inputs[:-1]).remainder(size).eq(size // rows).all()
        counts += np.bincount(targets.flatten().numpy(), minlength=size)
        assert counts.max() <= number + 1
        starts.add(inputs[0, 0].item())
    assert counts.sum() == 3 * steps * rows * 16
    assert len(starts) == 3


def test_contiguous_windows_follow_the_text_around(numbered):
    data = numbered(100, length=9)
    inputs, targets = epoch(data, 0)
    assert targets.equal((inputs + 1) % 100)


def test_contiguous_windows_start_at_another_phase_and_in_another_order_each_epoch(numbered):
    data = numbered(160, length=16)
    starts = [epoch(data, number).inputs[:, 0] for number in range(40)]
    assert len({int(start.min()) for start in starts}) > 10
    orders = {tuple(start.argsort().tolist()) for start in starts}
    assert len(orders) == 40


def test_batches_straddle_epochs(numbered):
    data = numbered(100, length=10)
    targets = torch.cat([data.train_batch(i, 7, 0).targets for i in range(10)])  # seven epochs of ten windows
    for number in range(7):
        assert targets[10 * number : 10 * number + 10].unique().numel() == 100


def test_sampled_windows_start_anywhere_with_the_same_probability(numbered):
    data = numbered(60, length=12, windows="sampled")
    starts = torch.cat([data.train_batch(i, 5, 0).inputs[:, 0] for i in range(2000)])
    counts = np.bincount(starts.numpy(), minlength=48)
    assert counts.size == 48
    expected = 10_000 / 48
    assert ((counts - expected) ** 2 / expected).sum() < 82.7  # chi-squared, 47 degrees of freedom, p = 0.001


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
@pytest.mark.parametrize("length", [1, 7, 16, 43])
def test_evaluation_predicts_every_token_but_the_first_once(words, length, batch_size):
    data = TextData(**words(length=length))
    whole = TextData(**words(length=1))
    for split in ("validation", "test"):
        tokens = stream(whole, split)
        batches = list(data.evaluation_batches(split, batch_size))
        assert len(batches) == data.evaluation_size(split, batch_size)
        assert torch.cat([batch.inputs.flatten() for batch in batches]).equal(tokens[:-1])
        assert torch.cat([batch.targets.flatten() for batch in batches]).equal(tokens[1:])
        assert all(batch.inputs.shape[1] == length for batch in batches[:-1])
        assert all(len(batch.inputs) <= batch_size for batch in batches)


def test_a_single_file_is_split_in_order(characters, tmp_path):
    data = TextData(**characters(length=1))
    text = (tmp_path / "data" / "letters" / "all.txt").read_bytes().decode()
    pieces = [data.decode(stream(data, split)) for split in ("train", "validation", "test")]
    assert "".join(pieces) == text
    assert len(pieces[0]) == int(len(text) * 0.8)
    assert data.decode(data.encode(text)) == text


def test_the_loss_is_the_negative_log_probability_and_0_where_masked(words):
    data = TextData(**words())
    outputs = torch.randn(2, 5, 14, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, 2, -100, 13], [-100, 3, 3, 3, 3]])
    loss, mask = data.loss(outputs, targets), data.mask(targets)
    assert loss.shape == mask.shape == (2, 5)
    assert mask.tolist() == [[True, True, True, False, True], [False, True, True, True, True]]
    for b, t in np.ndindex(2, 5):
        row = outputs[b, t].double().exp()
        expected = -math.log(row[targets[b, t]] / row.sum()) if mask[b, t] else 0.0
        assert loss[b, t].item() == pytest.approx(expected, abs=1e-6)


def test_the_loss_is_float32_whatever_the_logits(words):
    data = TextData(**words())
    targets = torch.zeros(1, 3, dtype=torch.int64)
    assert data.loss(torch.zeros(1, 3, 14, dtype=torch.bfloat16), targets).dtype == torch.float32


@pytest.mark.parametrize("length", [0, -1, 10**6])
def test_a_window_that_no_split_could_hold_is_refused(words, length):
    size = len(stream(TextData(**words(length=1)), "validation"))
    with pytest.raises(UserError) as info:
        configured_data(TextData, words(length=length))
    assert str(info.value) == (
        f"data.length={length}: the validation split of toy holds {size} words.\nTake a length from 1 to {size - 1}."
    )
    assert TextData(**words(length=size - 1)).evaluation_size("validation", 1) == 1


def test_an_empty_split_is_refused(words, tmp_path):
    (tmp_path / "data" / "toy" / "test.txt").write_text("")
    with pytest.raises(UserError, match=r"data\.length=16: the test split of toy holds 0 words\.\nGive it more text"):
        configured_data(TextData, words())


def test_a_batch_larger_than_an_epoch_is_refused(words):
    data = TextData(**words())
    most = data.train_size
    data.check_batch_size(most)
    for refuse in (data.check_batch_size, lambda size: data.train_batch(0, size, 0)):
        with pytest.raises(UserError, match=rf"^batch_size={most + 1}: .* the {most} windows"):
            refuse(most + 1)
