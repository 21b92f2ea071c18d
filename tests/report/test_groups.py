"""Which runs belong together, and what their groups are called."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqlab.benchmarks.run_trees import write_run
from seqlab.report.groups import group, labels_of
from seqlab.report.runs import read


def groups_of(root):
    runs, skipped = read([root])
    assert not skipped
    return group(runs)


def labels(root):
    return [one.label for one in groups_of(root)]


def test_seeds_of_one_configuration_are_one_group_in_their_order(tmp_path):
    for seed in (10, 2, 1):
        write_run(tmp_path / str(seed), seed=seed)
    (one,) = groups_of(tmp_path)
    assert (one.label, one.model, one.data, one.settings, one.seeds) == ("mamba", "mamba", "synthetic", {}, (1, 2, 10))


@pytest.mark.parametrize(
    "settings",
    [
        {"device": "cuda"},
        {"debug": True},
        {"trainer.log_every": 7},
        {"trainer.checkpoint_every": 7},
        {"trainer.evaluation_batch_size": 512},
        {"data.dir": "/elsewhere"},
        {"data.cache_dir": "/elsewhere"},
        {"logger._target_": "seqlab.training.loggers.WandB"},
        {"n_layers.mamba": 4},
        {"model.dropout": None},
        {"trainer.steps": 100.0},
        {"trainer.regularisation._target_": "seqlab.training.regularisation.Regularisation"}
        | {"trainer.regularisation.words": 0.0, "trainer.regularisation.weights_on": None},
        {"model.softmaxes": 1, "model.mixers.mamba.negative_eigenvalues": False, "trainer.freeze": []},
    ],
)
def test_settings_that_change_nothing_do_not_part_seeds(tmp_path, settings):
    write_run(tmp_path / "1", seed=1)
    write_run(tmp_path / "2", seed=2, settings=settings)
    assert labels(tmp_path) == ["mamba"]


def test_a_mixer_that_the_pattern_leaves_out_does_not_part_runs(tmp_path):
    """So that runs of a hybrid stay together when its file comes to describe one mixer more."""
    hybrid = {"model.pattern": ["mamba+gru", "mamba"], "model.mixers.gru.bias": True}
    write_run(tmp_path / "1", settings=hybrid, seed=1)
    write_run(tmp_path / "2", settings=hybrid | {"model.mixers.lstm.bias": True}, seed=2)
    assert labels(tmp_path) == ["mamba"]
    write_run(tmp_path / "3", settings=hybrid | {"model.mixers.gru.bias": False}, seed=2)
    assert labels(tmp_path) == ["mamba, bias=false", "mamba, bias=true"]


def test_a_label_says_nothing_of_a_mixer_that_is_in_its_pattern_alone(tmp_path):
    for number, pattern in enumerate((["mamba"], ["mamba", "gru"], ["mamba+gru"])):
        write_run(tmp_path / str(number), settings={"model.pattern": pattern, "model.mixers.gru.bias": True})
    assert sorted(labels(tmp_path)) == [f"mamba, pattern={text}" for text in ("(mamba+gru)", "mamba", "mamba+gru")]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"optimizer.lr": 0.01}, ["mamba, lr=0.001", "mamba, lr=0.01"]),
        ({"size.d_model": 128}, ["mamba, d_model=64", "mamba, d_model=128"]),
        ({"model.mixers.mamba.d_state": 8}, ["mamba, d_state=8", "mamba, d_state=16"]),
        ({"trainer.precision": "bf16"}, ["mamba, precision=bf16", "mamba, precision=none"]),
        ({"data.length": 64}, ["mamba, length=32", "mamba, length=64"]),
        ({"data.seed": 1}, ["mamba, data.seed=0", "mamba, data.seed=1"]),
        ({"optimizer._target_": "torch.optim.SGD"}, ["mamba, optimizer=SGD", "mamba, optimizer=adamw"]),
        ({"optimizer.betas": [0.9, 0.99]}, ["mamba, betas=0.9+0.95", "mamba, betas=0.9+0.99"]),
        ({"model.softmaxes": 3}, ["mamba, softmaxes=1", "mamba, softmaxes=3"]),
        ({"model.tie_embeddings": True}, ["mamba, tie_embeddings=none", "mamba, tie_embeddings=true"]),
    ],
)
def test_a_label_names_what_differs_by_the_name_a_person_would_set(tmp_path, settings, names):
    write_run(tmp_path / "1")
    write_run(tmp_path / "2", settings=settings)
    assert sorted(labels(tmp_path)) == sorted(names)
    for one in groups_of(tmp_path):
        assert list(one.settings) == list(settings)


def test_runs_on_other_data_or_another_kind_of_device_are_never_averaged(tmp_path):
    write_run(tmp_path / "1", seed=1)
    write_run(tmp_path / "2", seed=2, data_fingerprint="other")
    write_run(tmp_path / "3", seed=3, device="cuda", device_name="NVIDIA H100")
    assert labels(tmp_path) == [
        "mamba, device=cpu, fingerprint=bc137cedff9a",
        "mamba, device=cpu, fingerprint=other",
        "mamba, device=cuda, fingerprint=bc137cedff9a",
    ]


def test_threads_and_machines_of_one_kind_stay_together(tmp_path):
    write_run(tmp_path / "1", seed=1, device_name="x86_64, 2 threads")
    write_run(tmp_path / "2", seed=2, device_name="x86_64, 8 threads")
    assert labels(tmp_path) == ["mamba"]


def test_settings_are_those_that_vary_within_one_model_and_data(tmp_path):
    for i, (model, width, data) in enumerate(
        [("mamba", 64, "synthetic"), ("mamba", 128, "synthetic"), ("lstm", 256, "synthetic"), ("mamba", 512, "ptb")]
    ):
        write_run(tmp_path / str(i), model=model, data=data, settings={"size.d_model": width})
    assert [(one.data, one.label, one.settings) for one in groups_of(tmp_path)] == [
        ("ptb", "mamba", {}),
        ("synthetic", "lstm", {}),
        ("synthetic", "mamba, d_model=64", {"size.d_model": 64}),
        ("synthetic", "mamba, d_model=128", {"size.d_model": 128}),
    ]


def test_names_alike_at_their_end_are_told_apart(tmp_path):
    for i, (rate, momentum) in enumerate([(1, 2), (3, 4)]):
        settings = {"trainer.first.lr": rate, "model.second.lr": momentum}
        write_run(tmp_path / str(i), settings=settings)
    assert labels(tmp_path) == ["mamba, second.lr=2, first.lr=1", "mamba, second.lr=4, first.lr=3"]


def test_of_many_settings_a_label_names_as_many_as_tell_the_groups_apart(tmp_path):
    for i in range(3):
        many = {f"trainer.setting{j}": i // 2 for j in range(6)} | {"optimizer.lr": 0.1 * (1 + i % 2)}
        write_run(tmp_path / str(i), settings=many)
    found = labels(tmp_path)
    assert len(set(found)) == 3
    assert all(label.endswith(", ...") and label.count("=") == 2 for label in found)
    assert all(len(one.settings) == 7 for one in groups_of(tmp_path))


def write_each(root, every):
    for i, settings in enumerate(every):
        write_run(root / str(i), settings=settings)


def test_settings_that_are_different_in_every_group_all_stand_in_its_label(tmp_path):
    """As a random search draws them: one of them would tell the groups apart, and say nothing of the others."""
    keys = (
        "optimizer.lr",
        "optimizer.weight_decay",
        "size.d_model",
        "trainer.clip_norm",
        "model.dropout",
        "data.length",
    )
    write_each(tmp_path, [{key: (1 + i) * 2**j for j, key in enumerate(keys)} for i in range(5)])
    for i, label in enumerate(
        sorted(labels(tmp_path), key=lambda label: float(label.partition("lr=")[2].split(",")[0]))
    ):
        for j, key in enumerate(keys):
            assert f"{key.rpartition('.')[2]}={(1 + i) * 2**j}" in label.split(", ")


def test_a_label_leaves_out_values_that_most_groups_share_and_never_those_that_differ(tmp_path):
    keys = [f"trainer.setting{j}" for j in range(6)]
    base = dict.fromkeys(keys, 0)
    write_each(tmp_path, [base, *(base | {key: value} for key in keys for value in (1, 2)), dict.fromkeys(keys, 3)])
    found = labels(tmp_path)
    single = [f"mamba, setting{j}={value}, ..." for j in range(6) for value in (1, 2)]
    assert sorted(found) == sorted(["mamba, ...", *single, "mamba, " + ", ".join(f"setting{j}=3" for j in range(6))])


def test_many_settings_without_a_usual_value_all_stand_in_the_label(tmp_path):
    keys = [f"trainer.setting{j}" for j in range(5)]
    write_each(tmp_path, [{key: i >> j & 1 for j, key in enumerate(keys)} for i in range(32)])
    found = labels(tmp_path)
    assert len(set(found)) == 32
    assert all(label.count("=") == 5 and "..." not in label for label in found)


@given(st.lists(st.lists(st.sampled_from([None, 0, 1, "x"]), min_size=7, max_size=7), min_size=2, max_size=9))
def test_no_two_groups_have_the_same_label(rows):
    settings = [
        {f"a.key{j}": value for j, value in enumerate(row)} for row in {tuple(row): row for row in rows}.values()
    ]
    assert len(set(labels_of("mamba", settings))) == len(settings)


def test_of_the_same_group_and_seed_the_newest_counts_and_the_others_are_known(tmp_path):
    for i, name in enumerate(("first", "last", "middle")):
        folder = write_run(tmp_path / name, seed=4, loss=float(i))
        time = 1_000_000 + {"first": 0, "middle": 60, "last": 120}[name]
        os.utime(folder / "summary.json", (time, time))
    write_run(tmp_path / "other", seed=5)
    runs, _ = read([tmp_path])
    (one,) = group(runs)
    assert [run.folder.name for run in one.runs] == ["last", "other"]
    assert [(older.folder.name, newer.folder.name) for older, newer in one.repeated] == [
        ("middle", "last"),
        ("first", "last"),
    ]
