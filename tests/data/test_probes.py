"""The probes as data objects: the same bytes everywhere, streams and splits, further tests, loss, refusals."""

import hashlib
import tracemalloc

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate

from data.probe_cases import CASES, FIXED, FRESH, MIXED, PROBES, PUBLISHED, RECALLED, SMALL, TASKS, many
from seqlab.data.probes.compression import Compression, token_accuracy
from seqlab.data.probes.copying import Copying, SelectiveCopying
from seqlab.data.probes.induction_heads import InductionHeads
from seqlab.data.probes.memorization import Memorization
from seqlab.data.probes.mqar import MQAR, CompositionalMQAR, ForgettingMQAR
from seqlab.data.probes.needle import Needle
from seqlab.data.probes.recall import FuzzyRecall, NoisyRecall
from seqlab.data.probes.stacked_mqar import StackedMQAR
from seqlab.errors import UserError
from support import compose_config, configured_data


def test_the_published_settings():
    induction, copying, mqar = (
        instantiate(compose_config(f"data={name}").data, _convert_="all")
        for name in ("induction_heads", "selective_copying", "mqar")
    )
    experiment = instantiate(compose_config("experiment=induction_heads").data, _convert_="all")
    assert experiment.further_tests == tuple(f"length={2**i}" for i in range(6, 21))
    assert induction.further_tests == experiment.further_tests[:9]  # what a CPU can do as well
    assert (induction.length, induction.d_input, induction.train_size) == (256, 16, 8 * 8192)
    assert (copying.length, copying.d_input, copying.data_tokens) == (4096, 16, 16)
    assert (mqar.d_input, mqar.n_train, mqar.n_test, mqar.alpha) == (8192, 100_000, 3000, 0.01)
    assert (mqar.length, mqar.pairs) == (64, 4)


def test_every_probe_has_a_case():
    for name, kind in PROBES.items():
        assert name in CASES or name in PUBLISHED, f"add {name!r}: Case(...) to CASES in tests/data/probe_cases.py"
        assert kind.name == name, f"conf/data/{name}.yaml is found by its file's name: set {kind.__name__}.name to it"
    assert PROBES.keys() == CASES.keys() | PUBLISHED, "a case is of a probe in conf/data"


@pytest.mark.parametrize(("task", "settings"), TASKS)
def test_the_bytes_are_the_same_on_every_machine(task, settings):
    digest = hashlib.sha256()
    for sizes in (FRESH, FIXED):
        data = task(**settings, **sizes)
        for batch in (data.train_batch(3, 5, 7), *data.evaluation_batches("validation", 9), many(data, 7)):
            for part in batch:
                digest.update(part.numpy().astype("<i8"))
    assert digest.hexdigest()[:12] == CASES[task.name].digest


@pytest.mark.parametrize(("task", "settings"), TASKS + MIXED)
def test_a_batch_depends_on_its_number_alone(task, settings):
    for sizes in (FRESH, FIXED):
        data, again = task(**settings, **sizes), task(**settings, **sizes)
        forwards = [data.train_batch(i, 4, 1) for i in range(12)]
        backwards = [again.train_batch(i, 4, 1) for i in reversed(range(12))][::-1]
        for a, b in zip(forwards, backwards, strict=True):
            assert a.inputs.equal(b.inputs)
            assert a.targets.equal(b.targets)
        larger = torch.cat([again.train_batch(i, 12, 1).inputs for i in range(4)])
        assert torch.cat([batch.inputs for batch in forwards]).equal(larger)
        assert not forwards[0].inputs.equal(data.train_batch(0, 4, 2).inputs)


@pytest.mark.parametrize(("task", "settings"), TASKS + MIXED)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_evaluation_hands_out_a_split_once_and_in_order(task, settings, size):
    data = task(**settings, **FRESH)
    batches = list(data.evaluation_batches("validation", size))
    assert len(batches) == data.evaluation_size("validation", size) == -(-9 // size)
    whole = next(data.evaluation_batches("validation", 9))
    assert torch.cat([batch.inputs for batch in batches]).equal(whole.inputs)
    assert torch.cat([batch.targets for batch in batches]).equal(whole.targets)


def test_streams_share_no_example():
    seen = []
    for seed in (0, 1):
        for sizes in (FRESH, FIXED):
            data = InductionHeads(length=64, vocab_size=16, tests=[{"length": 64}], **sizes | {"seed": seed})
            seen += [data.train_batch(0, 40, run).inputs for run in ((1, 2) if sizes is FRESH else (1,))]
        seen += [next(data.evaluation_batches(split, 99)).inputs for split in ("validation", "test", "length=64")]
    whole = torch.cat(seen)
    assert len(whole) == 2 * (3 * 40 + 9 + 7 + 7)
    assert len(whole.unique(dim=0)) == len(whole)


def test_evaluation_is_the_same_however_one_trains():
    fresh, fixed = (InductionHeads(length=64, vocab_size=16, **sizes) for sizes in (FRESH, FIXED))
    for split in ("validation", "test"):
        a, b = (next(data.evaluation_batches(split, 99)).inputs for data in (fresh, fixed))
        assert a.equal(b)
    fresh.train_batch(0, 4, 123)
    assert next(fresh.evaluation_batches("test", 99)).inputs.equal(a)


def test_a_fixed_training_set_comes_once_an_epoch_in_another_order():
    data = InductionHeads(length=64, vocab_size=16, **FIXED)
    epochs = [torch.cat([data.train_batch(10 * e + i, 4, 5).inputs for i in range(10)]) for e in range(3)]
    assert epochs[0].unique(dim=0).equal(epochs[1].unique(dim=0))
    assert len(epochs[0].unique(dim=0)) == 40
    assert not epochs[0].equal(epochs[1])
    whole = data.train_batch(0, 40, 1).inputs.unique(dim=0)
    assert whole.equal(epochs[2].unique(dim=0)), "the run's seed orders the examples and does not change them"


def test_mixtures_take_turns():
    data = Copying(**SMALL[Copying], mixture=[{"data_tokens": n} for n in (1, 7, 3)], **FRESH)
    counts = torch.cat([data.mask(data.train_batch(i, 4, 1).targets).sum(dim=1) for i in range(3)])
    assert counts.tolist() == [1, 7, 3] * 4


def test_further_tests_and_their_batches():
    tests = [{"length": 256}, {"length": 2**20}, {"length": 2**24}]
    data = InductionHeads(length=256, vocab_size=16, tests=tests, n_further=3, **FRESH)
    assert data.further_tests == ("length=256", "length=1048576", "length=16777216")
    assert [data.evaluation_size(split, 2) for split in data.further_tests] == [2, 2, 2]
    assert [data.largest_batch(s, 8) for s in ("validation", *data.further_tests)] == [8, 8, 1, 1]
    assert data.largest_batch("length=1048576", 8192) == 2  # 8192 x 256 tokens fit, so as many do
    wide = MQAR(length=64, pairs=4, vocab_size=8192, alpha=0.01, tests=[{"length": 1024, "pairs": 128}], **FRESH)
    assert wide.further_tests == ("length=1024,pairs=128",)
    assert wide.largest_batch("length=1024,pairs=128", 512) == 32
    with pytest.raises(KeyError):
        next(data.evaluation_batches("length=64", 2))


def test_a_million_positions_take_little_memory():
    data = InductionHeads(length=256, vocab_size=16, tests=[{"length": 2**20}], **FRESH)
    tracemalloc.start()
    batch = next(data.evaluation_batches("length=1048576", 1))
    data.slices(batch)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 48 * 2**20
    inputs = batch.inputs[0]
    (places,) = (inputs == 15).nonzero(as_tuple=True)
    assert places[-1] == 2**20 - 1
    assert batch.targets[0, -1] == inputs[places[0] + 1]


@pytest.mark.parametrize(("task", "settings"), RECALLED + MIXED)
def test_the_loss_is_cross_entropy_at_the_answers(task, settings):
    data = task(**settings, **FRESH)
    _, targets = data.train_batch(0, 5, 1)
    outputs = torch.randn(*targets.shape, data.d_output, generator=torch.Generator().manual_seed(0))
    a, b = (outputs.clone().requires_grad_() for _ in range(2))
    expected = F.cross_entropy(a.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100)
    expected = expected.view_as(targets)
    loss = data.loss(b, targets)
    torch.testing.assert_close(loss, expected)
    assert (loss[~data.mask(targets)] == 0).all()
    expected.sum().backward()
    loss.sum().backward()
    torch.testing.assert_close(b.grad, a.grad)
    assert data.loss(outputs.bfloat16(), targets).dtype == torch.float32


def test_the_loss_and_accuracy_of_compression():
    data = Compression(**SMALL[Compression], **FRESH)
    _, targets = data.train_batch(0, 5, 1)
    outputs = torch.randn(5, 12, data.d_output, generator=torch.Generator().manual_seed(0))
    loss, mask = data.loss(outputs, targets), data.mask(targets)
    assert mask.sum() == 5
    assert (loss[~mask] == 0).all()
    for b in range(5):
        each = [F.cross_entropy(outputs[b, -1, 7 * i : 7 * i + 7], targets[b, -1, i]) for i in range(6)]
        assert loss[b, -1] == pytest.approx(sum(each).item() / 6, rel=1e-5)
    logits = F.one_hot(targets[mask], 7).float()  # (5, n, V)
    logits[0, 0] = logits[0, 0].roll(1)
    assert token_accuracy(logits.flatten(), targets[mask].flatten()).tolist() == [False] + [True] * 29


def test_the_fingerprint_is_of_the_data():
    data = MQAR(**SMALL[MQAR], **FRESH)
    same = MQAR(**SMALL[MQAR], **FRESH, tests=[{"pairs": 2}], n_further=3, metrics={"m": 1})
    assert data.fingerprint == same.fingerprint
    for change in ({"seed": 1}, {"pairs": 3}, {"alpha": 0.2}, {"n_test": 8}, {"mixture": [{"pairs": 2}]}):
        assert MQAR(**SMALL[MQAR] | FRESH | change).fingerprint != data.fingerprint


def test_the_description():
    assert (
        MQAR(**SMALL[MQAR], **FRESH).description
        == "mqar: fresh (40 an epoch) + 9 + 7 examples, length 30, pairs 4, vocabulary 21, seed 0, chance 0.1"
    )


def test_vectors_with_tokens_as_answers_train(train):
    sizes = ["size.d_model=16", "size.n_layers=1", "data.n_train=16", "data.n_validation=8", "data.n_test=8"]
    tests = ["data.n_further=4", "data.tests=[{length: 512, pairs: 256}]", "trainer.epochs=null", "trainer.steps=1"]
    job = train("data=stacked_mqar", "model=linear", *sizes, *tests, "trainer.batch_size=4", small=False)
    assert job.status == 0
    assert set(job.summary["test_slices"]["pairs"]) == {"4", "8", "16", "32", "64"}
    assert "length=512,pairs=256" in job.summary["further_tests"]


REFUSED = [
    (InductionHeads, {"length": 2}, r"data\.length=2: must be at least 3"),
    (
        InductionHeads,
        {"vocab_size": 2},
        r"data\.vocab_size=2: input should be greater than or equal to 3\..*\n.* of at least 3",
    ),
    (
        InductionHeads,
        {"n_train": 0},
        r"data\.n_train=0: input should be greater than 0\.\nGive it a whole number above 0 or null",
    ),
    (InductionHeads, {"epoch_size": 0}, r"data\.epoch_size=0: input should be greater than 0"),
    (InductionHeads, {"n_validation": 0}, r"data\.n_validation=0: input should be greater than 0"),
    (InductionHeads, {"tests": [{"length": 64}, {"length": 2}]}, r"data\.tests\.1\.length=2: must be at least 3"),
    (InductionHeads, {"tests": [{"pairs": 2}]}, r"data\.tests\.0\.pairs=2: is no difficulty.*\nIt may change length"),
    (InductionHeads, {"tests": [{}]}, r"data\.tests\.0=\{\}: changes nothing.*\nIt may change length"),
    (InductionHeads, {"mixture": [{"length": 8}]}, r"data\.mixture\.0\.length=8: all examples .* length 12"),
    (Copying, {"data_tokens": 8}, r"data\.data_tokens=8: 8 data tokens and 8 markers do not fit into length 14"),
    (Copying, {"data_tokens": 0}, r"data\.data_tokens=0: input should be greater than 0"),
    (SelectiveCopying, {"vocab_size": 3}, r"data\.vocab_size=3: input should be greater than or equal to 4"),
    (MQAR, {"pairs": 8}, r"data\.pairs=8: pairs and queries take 32 positions.*\nSet data\.length=32 or more"),
    (MQAR, {"vocab_size": 8}, r"data\.pairs=4: there are 3 keys .*\nSet data\.vocab_size=9 or more"),
    (MQAR, {"fillers": 0}, r"data\.fillers=0: input should be greater than 0"),
    (MQAR, {"alpha": -0.5}, r"data\.alpha=-0\.5: input should be greater than or equal to 0"),
    (CompositionalMQAR, {"pairs": 8}, r"data\.pairs=8: must be a square.*\nSet data\.pairs=4 or data\.pairs=9"),
    (CompositionalMQAR, {"vocab_size": 22}, r"data\.pairs=9: .* 7 keys and 7 values .* 3 and 9"),
    (ForgettingMQAR, {"updates": 6}, r"data\.updates=6: each key changes once at most, and there are 5\."),
    (ForgettingMQAR, {"vocab_size": 15}, r"data\.pairs=5: there are 7 keys and 7 values .* 5 and 8 are needed"),
    (StackedMQAR, {"pairs": 6}, r"data\.pairs=6: pairs and queries take 18 positions"),
    (StackedMQAR, {"vocab_size": 7}, r"data\.pairs=4: there are 3 keys .*\nSet data\.vocab_size=8 or more"),
    (StackedMQAR, {"d_vector": 3}, r"data\.d_vector=3: has fewer than 11 .*\nSet data\.d_vector=4 or more"),
    (Needle, {"queries": 5}, r"data\.queries=5: there are 4 keys to ask for"),
    (Needle, {"length": 22}, r"data\.keys=4: needles, marker and queries take 23 positions"),
    (Needle, {"vocab_size": 20}, r"data\.keys=4: .* has 7 keys and 7 values, and 4 and 8 .*\nSet data\.vocab_size=22"),
    (FuzzyRecall, {"pairs": 5}, r"data\.pairs=5: each takes 10 positions.*\nSet data\.length=50 or more"),
    (FuzzyRecall, {"key_tokens": 1, "pairs": 5}, r"data\.key_tokens=1: 1 tokens of 4 give 4 keys"),
    (NoisyRecall, {"noise_vocab_size": 0}, r"data\.noise_vocab_size=0: input should be greater than 0"),
    (NoisyRecall, {"vocab_size": 3}, r"data\.vocab_size=3: input should be greater than or equal to 4"),
    (Compression, {"length": 6}, r"data\.length=6: must leave room for 6 data tokens"),
    (Compression, {"data_tokens": 0}, r"data\.data_tokens=0: input should be greater than 0"),
    (Memorization, {"length": 7}, r"data\.length=7: must be even"),
    (Memorization, {"vocab_size": 4}, r"data\.vocab_size=4: input should be greater than or equal to 5"),
]


@pytest.mark.parametrize(("task", "change", "message"), REFUSED)
def test_settings_that_cannot_be_are_refused(task, change, message):
    with pytest.raises(UserError, match=f"^{message}") as caught:
        configured_data(task, SMALL[task] | FRESH | change)
    assert len(str(caught.value).splitlines()) == 2


def test_a_batch_larger_than_an_epoch_is_refused():
    data = InductionHeads(**SMALL[InductionHeads], **FRESH)
    data.check_batch_size(40)
    with pytest.raises(UserError, match=r"^batch_size=41: .* 40 examples"):
        data.train_batch(0, 41, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("task", "settings"), TASKS + MIXED)
def test_loss_and_slices_on_the_gpu_are_those_of_the_cpu(task, settings):
    data = task(**settings, **FRESH)
    batch = data.train_batch(0, 5, 1)
    outputs = torch.randn(*data.mask(batch.targets).shape, data.d_output, generator=torch.Generator().manual_seed(0))
    there = type(batch)(*(part.cuda() for part in batch))
    torch.testing.assert_close(data.loss(outputs.cuda(), there.targets).cpu(), data.loss(outputs, batch.targets))
    for name, expected in data.slices(batch).items():
        asked = data.mask(batch.targets)
        assert data.slices(there)[name].cpu()[asked].equal(expected[asked])
