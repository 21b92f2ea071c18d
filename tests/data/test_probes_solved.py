"""The probes are well posed: each is solved from its inputs alone, and nothing else gives an answer away."""

import re
from collections import Counter

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from data.probe_cases import CASES, FIXED, FRESH, MIXED, PROBES, RECALLED, SMALL, TASKS, check_solved, many, solve
from seqlab.config.schema import check
from seqlab.data.probes.base import Probe, power_of_two
from seqlab.data.probes.compression import Compression
from seqlab.data.probes.copying import SelectiveCopying
from seqlab.data.probes.memorization import Memorization
from seqlab.data.probes.mqar import MQAR
from seqlab.errors import UserError
from support import built_model, compose_config, configured_data


@pytest.mark.parametrize(("task", "settings"), TASKS + MIXED)
@pytest.mark.parametrize("sizes", [FRESH, FIXED], ids=["fresh", "fixed"])
def test_every_target_follows_from_the_inputs(task, settings, sizes):
    data = task(**settings, **sizes | {"n_test": 200})
    for batch in (data.train_batch(2, 39, 1), many(data, 200), *data.evaluation_batches("validation", 4)):
        assert (batch.inputs.dtype, batch.targets.dtype) == (torch.int64 if data.tokens else torch.int8, torch.int64)
        given = batch.to("cpu").inputs  # what any model is given
        assert given.dtype == (torch.int64 if data.tokens else torch.float32) and torch.equal(given, batch.inputs)
        assert batch.inputs.shape[:2] == data.mask(batch.targets).shape
        assert batch.inputs.max() < data.d_input
        check_solved(batch, data)


@pytest.mark.parametrize("name", CASES)
def test_what_is_shipped_is_solved_in_training_and_beyond(name):
    cfg = compose_config(f"data={name}", "data.n_test=2", "data.n_further=2")
    if cfg.data.n_train:
        cfg.data.n_train = 50
    check(cfg.data)
    data = instantiate(cfg.data, _convert_="all")
    assert data.name == name
    assert data.further_tests
    check_solved(data.train_batch(0, 8, 1), data)
    for split in data.further_tests:
        (batch,) = data.evaluation_batches(split, 2)
        length = int(dict(part.split("=") for part in split.split(",")).get("length", data.length))
        assert batch.inputs.shape[:2] == (2, length)
        if length <= 2**15:
            check_solved(batch, data)


SYMBOLS = {"_": 0, ".": -100}


def drawn(task: type[Probe], last: int) -> tuple[list[int], list[int]]:
    """The example in a docstring; ``last`` is the token that ?, ! and # stand for."""
    lines = {}
    for line in task.__doc__.splitlines():
        if line.startswith("        "):
            lines.setdefault(line.split()[0], line.split()[1:])
    symbols = SYMBOLS | dict.fromkeys("?!#", last)
    inputs, targets = ([symbols.get(s) if s in symbols else int(s) for s in lines[k]] for k in ("inputs", "targets"))
    return inputs, targets


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.example])
def test_the_example_in_the_docstring(name):
    task = PROBES[name]
    data = task(**CASES[name].example, **FRESH)
    inputs, targets = drawn(task, data.d_input - 1)
    assert len(inputs) == len(targets) == data.length
    check_solved(torch.tensor([[inputs], [targets]]), data)


def test_the_other_examples_in_docstrings():
    inputs, targets = drawn(Compression, 5)
    assert targets[6:] == [token for token in inputs[:-1] if token]
    inputs, targets = drawn(Memorization, 6)
    facts = {int(key): int(value) for key, value in re.findall(r"(\d) -> (\d)", Memorization.__doc__)}
    assert inputs[1::2] == [6, 6, 6]
    assert targets[::2] == [-100, -100, -100]
    assert targets[1::2] == [facts[key] for key in inputs[::2]]


@pytest.mark.parametrize(("task", "settings"), TASKS)
def test_labels_are_uniform_and_a_guess_is_at_chance(task, settings):
    data = task(**settings, **FRESH | {"n_test": 4000})
    _, targets = many(data, 4000)
    answers = targets[data.mask(targets)].flatten().tolist()
    counts = Counter(answers)
    expected = len(answers) * data.chance
    if CASES[task.name].uneven:
        counts = dict(counts.most_common(1))
    else:
        assert len(counts) == pytest.approx(1 / data.chance)
    assert max(abs(count - expected) for count in counts.values()) < 5 * expected**0.5
    assert f"chance {data.chance:.2g}" in data.description


@pytest.mark.parametrize(("task", "settings"), RECALLED)
def test_what_stands_at_an_answer_tells_nothing_of_it(task, settings):
    """The best guess from the token at the answer and from the position is near chance, as from none."""
    data = task(**settings, **FRESH | {"n_test": 20_000})
    inputs, targets = many(data, 20_000)
    asked = data.mask(targets)
    for cue in (inputs, torch.arange(data.length).expand_as(inputs)):
        table = torch.zeros(int(cue.max()) + 1, data.d_input)
        half = len(inputs) // 2
        pairs = cue[:half][asked[:half]], targets[:half][asked[:half]]
        table.index_put_(pairs, torch.ones(len(pairs[0])), accumulate=True)
        guesses = table.argmax(dim=1)[cue[half:][asked[half:]]]
        accuracy = (guesses == targets[half:][asked[half:]]).float().mean().item()
        assert accuracy < data.chance + 5 * (data.chance / len(guesses)) ** 0.5


@pytest.mark.parametrize(("task", "settings"), RECALLED + MIXED)
def test_slices_are_the_distances_to_what_is_recalled(task, settings):
    data = task(**settings, **FRESH | {"n_test": 60})
    batch = many(data, 60)
    slices = data.slices(batch)
    for b, row in enumerate(batch.inputs.tolist()):
        answers = solve(row, data)
        for number, (t, (_, source)) in enumerate(sorted(answers.items())):
            if "distance" in slices:
                assert slices["distance"][b, t] == 2 ** (t - source - 1).bit_length()
            if "number" in slices:
                assert slices["number"][b, t] == 2 ** number.bit_length()
            if "pairs" in slices:
                n_pairs = len(answers) if isinstance(data, MQAR) else runs_of_keys(row, data) // 2
                assert slices["pairs"][b, t] == n_pairs
            if "updated" in slices:
                assert slices["updated"][b, t] == row.count(row[t]) - 2
            if "depth" in slices:
                assert slices["depth"][b, t] == 100 * source // row.index(data.vocab_size - 1) // 10 * 10
    assert all(s.shape == batch.inputs.shape and s.dtype == torch.int64 for s in slices.values())


def test_slices_of_vectors():
    data = PROBES["stacked_mqar"](**CASES["stacked_mqar"].settings, **FRESH | {"n_test": 60})
    batch = many(data, 60)
    slices = data.slices(batch)
    assert (slices["pairs"] == 4).all()
    for b, row in enumerate(batch.inputs[..., :4].tolist()):
        for t in range(13, 17):
            assert slices["distance"][b, t] == 2 ** (row[:t][::-1].index(row[t])).bit_length()


def runs_of_keys(row: list[int], data: Probe) -> int:
    is_key = [token < data.n_keys for token in row]
    return sum(now and not before for before, now in zip([False, *is_key], is_key, strict=False))


def test_powers_of_two():
    assert power_of_two(torch.tensor([1, 2, 3, 4, 5, 8, 9, 2**20])).tolist() == [1, 2, 4, 4, 8, 8, 16, 2**20]


def test_facts_are_one_to_one_and_of_the_seed():
    maps = [Memorization(**SMALL[Memorization], **FRESH | {"seed": seed}) for seed in (0, 0, 1)]
    for data in maps:
        known = {}
        for batch in (data.train_batch(0, 40, 1), many(data, 7), *data.evaluation_batches("validation", 9)):
            for key, value in zip(batch.inputs[:, ::2].flatten(), batch.targets[:, 1::2].flatten(), strict=True):
                assert known.setdefault(int(key), int(value)) == int(value)
        assert sorted(known) == list(range(10))
        assert sorted(known.values()) == list(range(10, 20))
    a, b, c = (data.facts.tolist() for data in maps)
    assert a == b != c


def test_places_of_selective_copying_are_uniform():
    data = SelectiveCopying(**SMALL[SelectiveCopying], **FRESH | {"n_test": 5000})
    inputs, _ = many(data, 5000)
    share = ((inputs > 0) & (inputs < 6)).double().mean(dim=0)[:26]
    assert abs(share - 4 / 26).max() < 5 * (4 / 26 / 5000) ** 0.5


NUMBERS = {
    "length": st.integers(1, 60),
    "vocab_size": st.integers(1, 40),
    "data_tokens": st.integers(1, 20),
    "pairs": st.integers(1, 10),
    "alpha": st.sampled_from([0.0, 0.01, 1.0, 2.5]),
    "fillers": st.integers(1, 4),
    "noise_vocab_size": st.integers(1, 4),
    "key_tokens": st.integers(1, 3),
    "value_tokens": st.integers(1, 3),
    "d_vector": st.integers(1, 40),
    "updates": st.integers(1, 4),
    "passes": st.integers(1, 3),
    "keys": st.integers(1, 6),
    "values": st.integers(1, 4),
    "queries": st.integers(1, 4),
    "seed": st.integers(-(2**40), 2**70),
}


@hypothesis_settings(max_examples=150, deadline=None, database=None)
@given(st.data())
def test_any_settings_are_refused_or_solved(draw):
    task = draw.draw(st.sampled_from(list(SMALL)))
    names = [*SMALL[task], "seed"] + ["fillers"] * issubclass(task, MQAR)
    settings = {name: draw.draw(NUMBERS.get(name, st.integers(1, 20)), label=name) for name in names}
    sizes = draw.draw(st.sampled_from([FRESH, FIXED]))
    try:
        data = configured_data(task, sizes | settings)
    except UserError:
        return
    assert many(data, 7).inputs.max() < data.d_input
    check_solved(data.train_batch(draw.draw(st.integers(0, 10**6)), 5, draw.draw(st.integers(0, 2**40))), data)
    check_solved(many(data, 7), data)
    data.slices(many(data, 7))


ENDLESS = PROBES["induction_heads"](
    length=12, vocab_size=8, n_train=None, epoch_size=10**6, n_validation=512, n_test=1, seed=0
)


def accuracy_after(model: str, steps: int, lr: float) -> float:
    """Validation accuracy of a tiny model after training."""
    size = "size=tiny", "size.d_model=32", "size.n_layers=2"
    network = built_model(f"model={model}", *size, d_input=8, length=ENDLESS.length)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    for step in range(steps):
        inputs, targets = ENDLESS.train_batch(step, 32, 1)
        loss = ENDLESS.loss(network(inputs), targets).sum() / ENDLESS.mask(targets).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    inputs, targets = next(ENDLESS.evaluation_batches("validation", 512))
    with torch.no_grad():
        right = network(inputs).argmax(dim=-1) == targets
    return right[ENDLESS.mask(targets)].float().mean().item()


def test_memory_is_what_the_probe_measures():
    assert accuracy_after("mlp", steps=200, lr=3e-3) < ENDLESS.chance + 0.08
    assert accuracy_after("mamba", steps=150, lr=7e-3) > 0.95
