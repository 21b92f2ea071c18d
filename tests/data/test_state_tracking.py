"""State tracking: groups and their axioms, products of prefixes, what a longer test scores, chance, and learning it."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate

from data.probe_cases import CASES, FRESH, GROUPS, PROBES, check_solved
from seqlab.data.probes.base import Probe
from seqlab.data.probes.finite_groups import cyclic, prefix_products
from seqlab.data.probes.state_tracking import ModularArithmetic, Parity
from seqlab.errors import UserError
from support import built_model, compose_config, configured_data

TASKS = [*GROUPS, "modular_arithmetic"]
ORDERS = {"parity": 2, "s3": 6, "s5": 120, "a5": 60}


def small(name: str, **settings) -> Probe:
    return PROBES[name](**CASES[name].settings | FRESH | settings)


@pytest.mark.parametrize("name", TASKS)
def test_the_shipped_settings(name):
    data = instantiate(compose_config(f"data={name}").data, _convert_="all")
    assert data.length == 40
    assert data.further_tests == tuple(f"length={n}" for n in (64, 128, 256, 512))
    assert (data.d_input, data.d_output) == (8, 5) if name == "modular_arithmetic" else (ORDERS[name],) * 2
    assert data.n_train is None


@pytest.mark.parametrize("name", GROUPS)
def test_the_table_is_of_a_group(name):
    table = small(name).table
    order = len(table)
    assert table.shape == (order, order)
    assert order == ORDERS[name] == small(name).vocab_size == len(GROUPS[name])
    assert (table[0] == np.arange(order)).all()
    assert (table[:, 0] == np.arange(order)).all()
    assert (np.sort(table, axis=0) == np.arange(order)[:, None]).all()
    assert (np.sort(table, axis=1) == np.arange(order)).all()
    assert (table[table] == table[:, table]).all(), "(a b) c = a (b c)"
    assert (table == table.T).all() == (name == "parity")


@pytest.mark.parametrize("name", GROUPS)
def test_the_table_is_composition_of_permutations(name):
    group, table = GROUPS[name], small(name).table
    for (a, first), (b, then) in product(enumerate(group), repeat=2):
        assert group[table[a, b]] == tuple(then[image] for image in first)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 33])
@pytest.mark.parametrize("name", TASKS)
def test_products_of_prefixes_are_those_of_a_loop(name, length):
    data = small(name)
    table = data._terms if name == "modular_arithmetic" else data.table
    elements = np.random.default_rng(length).integers(len(table), size=(5, length))
    given = elements.copy()
    found = prefix_products(table, elements)
    assert (elements == given).all()
    for row, products in zip(elements, found, strict=True):
        state = row[0]
        assert products[0] == state
        for t in range(1, length):
            state = table[state, row[t]]
            assert products[t] == state


def test_addition_modulo():
    assert cyclic(7)[5].tolist() == [5, 6, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", TASKS)
def test_a_longer_test_scores_what_training_never_reached(name):
    tests = [{"length": n} for n in (3, 12, 13, 14, 31)]
    data = small(name, length=12, tests=tests, n_further=5)
    period = 2 if name == "modular_arithmetic" else 1
    for n, split in zip((3, 12, 13, 14, 31), data.further_tests, strict=True):
        (batch,) = data.evaluation_batches(split, 5)
        check_solved(batch, data)
        asked = data.mask(batch.targets)
        (places,) = asked[0].nonzero(as_tuple=True)
        assert (asked == asked[0]).all()
        assert places.tolist() == list(range(12 if n > 12 else 0, n, period))
        assert len(places) == data.answers({"length": n})


def test_a_test_without_an_answer_is_refused():
    settings = CASES["modular_arithmetic"].settings | FRESH | {"length": 11, "tests": [{"length": 12}]}
    with pytest.raises(UserError, match=r"^data\.tests\.0\.length=12: has no answer .* 11.*\nSet .*=13 or more"):
        configured_data(ModularArithmetic, settings)
    with pytest.raises(UserError, match=r"^data\.modulus=1: input should be greater than or equal to 2"):
        configured_data(ModularArithmetic, CASES["modular_arithmetic"].settings | FRESH | {"modulus": 1})


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_is_cross_entropy_at_the_answers(name):
    data = small(name, tests=[{"length": 20}])
    for split in ("validation", "length=20"):
        batch = next(data.evaluation_batches(split, 5))
        outputs = torch.randn(*batch.targets.shape, data.d_output, generator=torch.Generator().manual_seed(0))
        expected = F.cross_entropy(outputs.transpose(1, 2), batch.targets, reduction="none")
        torch.testing.assert_close(data.loss(outputs, batch.targets), expected)
        assert data.slices(batch)["prefix"][0, :5].tolist() == [1, 2, 4, 4, 8]


@pytest.mark.parametrize("modulus", [2, 3, 4])
@pytest.mark.parametrize("length", [1, 4, 5])
def test_chance_in_modular_arithmetic_is_that_over_all_expressions(modulus, length):
    counts = torch.zeros(-(-length // 2), modulus)
    for symbols in product(*(range(modulus) if t % 2 == 0 else "+-*" for t in range(length))):
        for k in range(len(counts)):
            counts[k, eval("".join(map(str, symbols[: 2 * k + 1]))) % modulus] += 1
    best = counts.max(dim=1).values / counts.sum(dim=1)
    data = small("modular_arithmetic", length=length, modulus=modulus)
    assert data.chance == pytest.approx(best.mean().item(), rel=1e-6)
    assert (counts.argmax(dim=1) == 0).all()


@pytest.mark.parametrize("name", ["parity", "s3", "a5", "modular_arithmetic"])
def test_the_last_tokens_alone_are_at_chance_beyond_training(name):
    """The best guess from position, from the last token or from the last two; a window of more would need more data."""
    data = small(name, length=8, tests=[{"length": 20}], n_further=20_000)
    (batch,) = data.evaluation_batches("length=20", 20_000)
    inputs, asked = batch.inputs, data.mask(batch.targets)
    chance = 1 / data.d_output
    pairs = inputs + data.d_input * inputs.roll(1, dims=1)
    for cue in (torch.arange(20).expand_as(inputs), inputs, pairs):
        table = torch.zeros(int(cue.max()) + 1, data.d_output)
        seen = cue[:10_000][asked[:10_000]], batch.targets[:10_000][asked[:10_000]]
        table.index_put_(seen, torch.ones(len(seen[0])), accumulate=True)
        guesses = table.argmax(dim=1)[cue[10_000:][asked[10_000:]]]
        accuracy = (guesses == batch.targets[10_000:][asked[10_000:]]).float().mean().item()
        assert accuracy < chance + 5 * (chance / len(guesses)) ** 0.5


def accuracies_after(model: str, steps: int) -> tuple[float, float]:
    """Accuracy on parity at the training length and beyond it, of a tiny model after training."""
    data = Parity(**FRESH | {"length": 12, "epoch_size": 10**6, "n_test": 256, "tests": [{"length": 96}]})
    network = built_model(f"model={model}", "size=tiny", "size.d_model=32", d_input=2, length=12)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(steps):
        inputs, targets = data.train_batch(step, 64, 1)
        optimizer.zero_grad()
        data.loss(network(inputs), targets).mean().backward()
        optimizer.step()
    found = []
    for split in ("test", "length=96"):
        inputs, targets = next(data.evaluation_batches(split, 256))
        with torch.no_grad():
            right = network(inputs).argmax(dim=-1) == targets
        found.append(right[data.mask(targets)].float().mean().item())
    return tuple(found)


def test_a_recurrent_network_learns_parity_and_carries_it_on():
    assert min(accuracies_after("gru", 150)) > 0.99


def test_a_network_without_memory_stays_at_chance():
    within, beyond = accuracies_after("mlp", 100)
    assert within < 0.6  # the first of twelve positions is its token
    assert beyond < 0.52
