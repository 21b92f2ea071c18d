"""The published generators' distributions: against closed formulas, and against simulations that draw one by one."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from data.probe_cases import solve_mqar
from seqlab.data.probes.compression import Compression
from seqlab.data.probes.copying import SelectiveCopying
from seqlab.data.probes.mad_recall import MADFuzzyRecall, MADRecall
from seqlab.data.probes.mqar import MQAR
from seqlab.errors import UserError
from support import compose_config, configured_data, options

FRESH = {"n_train": None, "epoch_size": 4000, "n_validation": 9, "n_test": 4000, "seed": 0}
COUNT = 4000
MAD = [name for name in options("experiment") if name.startswith("mad_")]


def published(experiment: str, *overrides: str):
    sizes = [f"data.n_test={COUNT}", "data.n_train=null", f"data.epoch_size={COUNT}"]
    return instantiate(compose_config(f"experiment={experiment}", *sizes, *overrides).data, _convert_="all")


def drawn(experiment: str, *overrides: str):
    """The data, an epoch of training and the test split."""
    data = published(experiment, *overrides)
    return data, data.train_batch(0, COUNT, 1), next(data.evaluation_batches("test", COUNT))


def scored(targets) -> float:
    return (targets != -100).sum().item() / len(targets)


def assert_means(found, expected, *, spread: float, count: int = COUNT) -> None:
    """Within five standard errors."""
    assert abs(found - expected) < 5 * spread / count**0.5, (found, expected)


@pytest.mark.parametrize("experiment", MAD)
def test_the_published_sizes_and_that_each_runs(train, experiment):
    small = ["size.d_model=16", "data.n_validation=8", "data.n_test=8", "trainer.epochs=null", "trainer.steps=1"]
    more = ["trainer.batch_size=4", "trainer.precision=float32", "size.n_layers=1"]
    job = train(f"experiment={experiment}", "model=linear", *small, *more, small=False)
    assert job.status == 0 and 0 <= job.summary["test"]["accuracy"] <= 1
    cfg = compose_config(f"experiment={experiment}")
    n_train = 256 if experiment == "mad_memorization" else 12800
    assert (cfg.data.n_train, cfg.data.n_test, cfg.trainer.batch_size, cfg.trainer.epochs) == (n_train, 1280, 128, 200)


@pytest.mark.parametrize("experiment, noise", [("mad_in_context_recall", 0.0), ("mad_noisy_recall", 0.2)])
def test_recall_against_closed_formulas(experiment, noise):
    data, training, test = drawn(experiment)
    assert data.d_input == (32 if noise else 16) and data.chance == 1 / 8
    assert training.inputs.shape == test.inputs.shape == (COUNT, 127)
    assert scored(training.targets) == 127
    assert training.targets[:, :-1].equal(training.inputs[:, 1:])
    pairs = 63 * (1 - noise) + noise * 63 / 64  # one of 64 places is exempt from noise; the last is never noise
    keys = 8 * (1 - (1 - (1 - noise) / 8) ** 63)
    assert_means(scored(test.targets), pairs - keys + 1, spread=4)
    inputs, first = test.inputs.numpy(), test.inputs.numpy()[:, 0:126:2]
    assert_means((inputs >= 16).mean(), noise * (126 - 126 / 64) / 127, spread=0.1)
    assert (first < 8).mean() == pytest.approx(1 - noise + noise / 64, abs=0.01)
    for token in range(8):  # keys evenly, values evenly but the same all over a sequence
        assert_means((first == token).sum(axis=1).mean(), (63 * (1 - noise) + noise * 63 / 64) / 8, spread=4)
    assert np.bincount(test.targets[test.targets >= 0], minlength=16)[:8].sum() == 0
    assert np.bincount(inputs[:, -1], minlength=8).min() > COUNT / 8 - 5 * (COUNT / 8) ** 0.5  # the last asks evenly


@pytest.mark.parametrize("experiment", ["mad_in_context_recall", "mad_noisy_recall"])
def test_every_answer_of_recall_stands_before(experiment):
    _, _, (inputs, targets) = drawn(experiment)
    for row, answers in zip(inputs[:300].tolist(), targets[:300].tolist(), strict=True):
        known, expected = {}, [-100] * 127
        for i in range(0, 127, 2):
            key = row[i]
            if key < 8:
                if key in known:
                    expected[i] = known[key]
                if i < 126:
                    assert known.setdefault(key, row[i + 1]) == row[i + 1]
                    assert 8 <= row[i + 1] < 16
        assert answers == expected and answers[-1] >= 0


def fuzzy_by_hand(rng: random.Random, training: bool) -> tuple[list[int], list[bool]]:
    """One example token by token: 129 tokens with padding, and which of them evaluation asks for."""

    def motif(tokens: range, sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(rng.sample(tokens, rng.choice(sizes)))

    def key() -> tuple[int, ...]:
        return motif(range(7), (1, 2, 3) if training else (3,))

    def value() -> tuple[int, ...]:
        return motif(range(7, 15), (1, 2, 3))

    probe, answer = key(), value()
    width = len(probe) + len(answer)
    place, facts, tokens, asked = rng.randrange(128 - 2 * width), {}, [], []
    while len(tokens) < 128 - width - 6:
        now = probe if len(tokens) >= place and probe not in facts else key()
        told = facts.get(now)
        facts[now] = answer if now == probe else told or value()
        tokens += [*now, *facts[now]]
        asked += [False] * len(now) + [told is not None] * len(facts[now])
    tokens += [*probe, *answer]
    asked += [False] * len(probe) + [True] * len(answer)
    missing = 129 - len(tokens)
    return [15] * missing + tokens, [False] * missing + asked


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_fuzzy_recall_against_a_simulation(training):
    data, *splits = drawn("mad_fuzzy_recall")
    inputs, targets = splits[0 if training else 1]
    rng = random.Random(1)
    tokens, asked = (np.array(part) for part in zip(*(fuzzy_by_hand(rng, training) for _ in range(COUNT)), strict=True))
    assert data.d_input == 16 and inputs.shape == (COUNT, 128)
    if training:
        assert scored(targets) == 128 and targets[:, :-1].equal(inputs[:, 1:])
    else:
        assert scored(targets) == pytest.approx(4.3, abs=0.15)
        by_hand = asked.sum(axis=1)
        assert_means(scored(targets), by_hand.mean(), spread=2**0.5 * by_hand.std())
        at = (targets >= 0).double().mean(dim=0).numpy()  # where what is asked for stands
        assert abs(at - asked[:, 1:].mean(axis=0)).max() < 5 * (2 * 0.25 / COUNT) ** 0.5
    ours = inputs.numpy()
    for token in range(16):  # marginals of each token: all, at the places of the end, and beside one another
        ours_each, theirs_each = (ours == token).sum(axis=1), (tokens[:, :-1] == token).sum(axis=1)
        assert_means(ours_each.mean(), theirs_each.mean(), spread=2**0.5 * theirs_each.std())
    for last in (1, 2, 3, 4, 5, 6, 20, 64):
        a, b = (np.bincount(part[:, -last], minlength=16) for part in (ours, tokens[:, :-1]))
        assert abs(a - b).max() < 5 * (2 * COUNT * 0.25) ** 0.5
    for kind in ("kk", "kv", "vk", "vv"):  # how long keys and values are
        a, b = (pairs_of_kinds(part, kind) for part in (ours, tokens[:, :-1]))
        assert_means(a.mean(), b.mean(), spread=2**0.5 * b.std())
    assert len({tuple(row) for row in ours.tolist()}) == COUNT


def pairs_of_kinds(tokens: np.ndarray, kind: str) -> np.ndarray:
    """How often a token of one kind follows one of another in each example: (N,)."""
    kinds = np.digitize(tokens, [7, 15])
    first, second = ("kv".index(one) for one in kind)
    return ((kinds[:, :-1] == first) & (kinds[:, 1:] == second)).sum(axis=1)


def test_fuzzy_recall_answers_stand_before():
    """Evaluation's keys have three tokens, so that where they are is known from the kinds of tokens alone."""
    _, _, (inputs, targets) = drawn("mad_fuzzy_recall")
    open_answers = 0
    for row, answers in zip(inputs[:300].tolist(), targets[:300].tolist(), strict=True):
        last = next(token for token in reversed(answers))
        tokens = [*row, last]
        starts = [t for t in range(129) if tokens[t] < 7 and (t == 0 or tokens[t - 1] >= 7)]
        known, expected = {}, [-100] * 128
        for begin, end in pairwise([*starts, 129]):
            key, value = tuple(tokens[begin : begin + 3]), tokens[begin + 3 : end]
            assert len(set(key)) == 3 and 1 <= len(set(value)) == len(value) <= 3
            if key in known or end == 129:
                open_answers += key not in known
                assert known.get(key, value) == value
                expected[begin + 2 : end - 1] = value
            known[key] = value
        assert answers == expected
    assert open_answers < 0.1 * 300  # mad-lab's place of the probe may be later than its last pair


def test_selective_copying():
    data, training, test = drawn("mad_selective_copying")
    assert (data.length, data.d_input, data.chance) == (256, 16, 1 / 14)
    for inputs, targets in (training, test):
        assert scored(targets) == 16
        assert (inputs[:, 239] == 15).all() and (inputs == 15).sum() == COUNT  # one marker
        assert (inputs[:, 240:] == 0).all() and (targets[:, 240:] > 0).all()
        for row, answers in zip(inputs[:200].tolist(), targets[:200].tolist(), strict=True):
            assert [token for token in row[:239] if token] == answers[240:]
    is_data = test.inputs[:, :239].numpy() > 0
    assert is_data[:, -1].all()  # blanks stand before a data token
    places = is_data.nonzero()[1].reshape(COUNT, 16)
    gaps = np.diff(places, axis=1, prepend=-1) - 1  # (N, 16): 223 blanks, each before one of 16 tokens
    assert (gaps.sum(axis=1) == 223).all()
    for i in range(16):
        assert_means(gaps[:, i].mean(), 223 / 16, spread=(223 * 15) ** 0.5 / 16)
        assert gaps[:, i].var() == pytest.approx(223 * 15 / 256, rel=0.15)  # binomial; even places would give 169
    symbols = np.bincount(test.targets[test.targets > 0], minlength=15)[1:]
    assert abs(symbols - 16 * COUNT / 14).max() < 5 * (16 * COUNT / 14) ** 0.5
    answers = torch.stack([data.slices(test)[name][:, 240:] for name in ("number", "distance")])
    assert answers[0, 0].tolist() == [2 ** i.bit_length() for i in range(16)]
    settings = {"length": 12, "vocab_size": 6, "data_tokens": 6, "variant": "mad"}
    with pytest.raises(UserError, match=r"^data\.length=12: must leave room for the marker.*\nSet data\.length=14"):
        configured_data(SelectiveCopying, settings | FRESH)
    with pytest.raises(UserError, match=r"^data\.length=13"):
        configured_data(SelectiveCopying, settings | {"length": 13} | FRESH)


def test_compression():
    data, training, test = drawn("mad_compression")
    assert (data.d_input, data.d_output, data.chance) == (16, 32 * 16, 1 / 15)
    for inputs, targets in (training, test):
        assert inputs.shape == (COUNT, 32) and (inputs[:, -1] == 15).all()
        assert targets[:, -1].equal(inputs) and (targets[:, :-1] == -100).all()
        symbols = np.bincount(inputs[:, :-1].flatten(), minlength=16)
        assert (symbols > 0).sum() == 15
        assert abs(symbols[:15] - 31 * COUNT / 15).max() < 5 * (31 * COUNT / 15) ** 0.5
    outputs = torch.randn(2, 32, data.d_output, generator=torch.Generator().manual_seed(0))
    logits, expected = outputs[:, -1].view(2, 32, 16), test.inputs[:2]
    loss = -logits.log_softmax(dim=-1).gather(2, expected[..., None])[..., 0].mean(dim=1)
    torch.testing.assert_close(data.loss(outputs, test.targets[:2])[:, -1], loss)
    with pytest.raises(UserError, match=r"^data\.length=33: has no blanks to fill.*\nSet data\.length=32"):
        configured_data(Compression, {"length": 33, "data_tokens": 31, "vocab_size": 16, "variant": "mad"} | FRESH)


def test_memorization():
    cfg = compose_config("experiment=mad_memorization")
    assert (cfg.data.length, cfg.data.n_train) == (32, 256)
    data, training, test = drawn("mad_memorization")
    assert data.d_input == 256 and data.n_facts == len(set(data.facts.tolist())) == 127
    for inputs, targets in (training, test):
        assert scored(targets) == 16
        assert (inputs[:, 1::2] == 255).all()
        keys = np.bincount(inputs[:, ::2].flatten(), minlength=127)
        assert len(keys) == 127 and abs(keys - 16 * COUNT / 127).max() < 5 * (16 * COUNT / 127) ** 0.5
        assert targets[:, 1::2].equal(torch.from_numpy(data.facts)[inputs[:, ::2]])


def test_mqar_filled_with_random_words():
    settings = {"length": 64, "pairs": 4, "vocab_size": 8192, "alpha": 0.01, **FRESH}
    filled, plain = MQAR(**settings, fill="random"), MQAR(**settings)
    (inputs, targets), (zeros, same) = (next(data.evaluation_batches("test", COUNT)) for data in (filled, plain))
    assert targets.equal(same)  # only what is no pair and no query is another
    free = zeros == 0
    assert inputs[~free].equal(zeros[~free]) and free.sum() == COUNT * (64 - 3 * 4)
    words = inputs[free].double()
    assert_means(words.mean() / 8192, 0.5 - 0.5 / 8192, spread=12**-0.5, count=len(words))
    assert_means((words < 1024).double().mean(), 1 / 8, spread=0.34, count=len(words))
    distinct = 8192 * (1 - math.exp(-len(words) / 8192))
    assert len(words.unique()) == pytest.approx(distinct, rel=0.01)
    found = filled.slices(type(filled.train_batch(0, 1, 1))(inputs, targets))
    for row, distances, asked in zip(zeros[:50].tolist(), found["distance"], targets >= 0, strict=False):
        sources = {t: source for t, (_, source) in solve_mqar(row, plain).items()}
        for t in asked.nonzero()[:, 0].tolist():
            assert distances[t] == 2 ** (t - sources[t] - 1).bit_length()


def test_experiment_mqar_takes_it_in_a_word():
    cfg = compose_config("experiment=mqar", "data.fill=random", "data.n_train=50", "data.n_test=50")
    data = instantiate(cfg.data, _convert_="all")
    inputs, _ = data.train_batch(0, 50, 1)
    assert (inputs == 0).sum() < 5
    assert compose_config("experiment=mqar").data.fill is None


def test_what_came_later_leaves_fingerprints_as_they_were():
    before = {"mqar": "9d1285779a37", "selective_copying": "b69245fe172c", "compression": "3b9d9b4c6d5b"}
    for name, fingerprint in before.items():
        assert instantiate(compose_config(f"data={name}").data, _convert_="all").fingerprint == fingerprint
    assert published("mqar", "data.fill=random").fingerprint != published("mqar").fingerprint


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        (MADRecall, {"length": 12}, r"data\.length=12: must be odd.*\nSet data\.length=13"),
        (MADRecall, {"vocab_size": 3}, r"data\.vocab_size=3: leaves fewer than four tokens"),
        (MADRecall, {"noise": 0.2}, r"data\.noise=0\.2: must be 0, or below 1 with noise tokens"),
        (
            MADRecall,
            {"noise": 1.0, "noise_vocab_size": 2, "vocab_size": 9},
            r"data\.noise=1\.0: input should be less than 1",
        ),
        (MADFuzzyRecall, {"length": 11}, r"data\.length=11: must be at least 12"),
        (MADFuzzyRecall, {"key_tokens": 4}, r"data\.key_tokens=4: must lie between 1 and the 3 different tokens"),
    ],
)
def test_settings_that_cannot_be_are_refused(task, settings, message):
    most = {"key_tokens": 2, "value_tokens": 2} if task is MADFuzzyRecall else {}
    with pytest.raises(UserError, match=f"^{message}") as caught:
        configured_data(task, {"length": 17, "vocab_size": 8} | most | settings | FRESH)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("experiment", ["mad_noisy_recall", "mad_fuzzy_recall"])
def test_examples_depend_on_their_numbers_alone(experiment):
    data = published(experiment)
    whole = next(data.evaluation_batches("test", 60))
    parts = [batch for batch, _ in zip(data.evaluation_batches("test", 7), range(8), strict=False)]
    for name in ("inputs", "targets"):
        assert torch.cat([getattr(part, name) for part in parts]).equal(getattr(whole, name)[:56])
    outputs = torch.randn(60, data.length, data.d_output, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.cross_entropy(outputs.mT, whole.targets, reduction="none")
    torch.testing.assert_close(data.loss(outputs, whole.targets), expected)
