"""What the choice of a model brings besides the model: settings that reach nothing, a size of its own."""

import pytest
from omegaconf import OmegaConf

from seqlab.config.without_effect import differences, idle_note, own_size, reaches_nothing, size_note, window_note
from support import compose_config

MAMBA_ALONE = ["model=hybrid", "model.pattern=[mamba]", "size=tiny"]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ([*MAMBA_ALONE, "model.mixers.attention.window=8"], "model.mixers.attention.window=8"),
        (["model=min_gru", "model.mixers.mamba.d_state=8"], "model.mixers.mamba.d_state=8"),
        (
            ["model=mamba", "+model.mixers.lstm={_target_: seqlab.models.mixers.LSTM, _partial_: true}"],
            "model.mixers.lstm=",
        ),
    ],
)
def test_a_setting_of_a_mixer_that_the_pattern_leaves_out_is_refused(train, capsys, overrides, key):
    job = train(*overrides)
    said = capsys.readouterr().err
    assert job.status == 2
    assert said.startswith(key)
    assert "changes nothing, as model.pattern=" in said
    assert len(said.strip().splitlines()) == 2


def test_so_is_one_of_an_experiment(train, capsys, tmp_path):
    folder = tmp_path / "experiment"
    folder.mkdir()
    settings = {"model": {"pattern": ["mamba"], "mixers": {"attention": {"bias": True}}}}
    (folder / "mine.yaml").write_text("# @package _global_\n" + OmegaConf.to_yaml(OmegaConf.create(settings)))
    searched = f"hydra.searchpath=[file://{tmp_path}]"
    assert train("model=hybrid", "size=tiny", "experiment=mine", searched).status == 2
    assert "model.mixers.attention.bias=True: changes nothing" in capsys.readouterr().err


def test_a_model_of_a_persons_own_folder(train, tmp_path):
    (tmp_path / "model").mkdir()
    lstm = "{_target_: seqlab.models.mixers.LSTM, _partial_: true}"
    (tmp_path / "model" / "mine.yaml").write_text(f"defaults: [mamba]\nmixers:\n  spare: {lstm}\n")
    searched = f"hydra.searchpath=[file://{tmp_path}]"
    assert train("model=mine", searched, "size=tiny", "model.dropout=0.1", "trainer.steps=1").status == 0


def test_what_the_pattern_uses_is_set_and_what_it_leaves_out_may_stay(train):
    used = ["model.mixers.mamba.d_state=4", "model.mixers.attention.window=null"]
    assert train(*MAMBA_ALONE, *used, "trainer.steps=1").status == 0


def test_a_search_leaves_out_what_the_pattern_leaves_out():
    pytest.importorskip("optuna")
    from seqlab.sweep.search.space import has

    cfg = compose_config(*MAMBA_ALONE)
    assert has(cfg, "model.mixers.mamba.d_state")
    assert not has(cfg, "model.mixers.attention.window")


def test_differences():
    node, other = {"a": {"b": 1, "c": [1, 2]}, "d": None}, {"a": {"b": 1, "c": [1]}}
    assert list(differences(node, other, "x")) == [("x.a.c", [1, 2]), ("x.d", None)]


def test_a_new_setting_that_another_refers_to(train):
    assert train("+mine.depth=1", "size.n_layers=${mine.depth}", "trainer.steps=1").summary["steps"] == 1


def test_sizes_that_a_model_does_not_have_are_told(train, capsys):
    assert train("model=linear", "size.n_heads=2", "trainer.steps=1").status == 0
    assert capsys.readouterr().err.startswith("size.n_heads=2: changes nothing, as model=linear does not read it.\n")
    cfg = compose_config("model=transformer", "size.n_heads=2")
    assert idle_note(cfg, "transformer", ["size.n_heads=2", "seed=1", "size=tiny"]) is None


def test_a_size_reaches_what_reads_it():
    found = {}
    for model in ("mamba", "transformer", "hybrid"):
        cfg = compose_config(f"model={model}")
        found[model] = [
            key for key in ("size.n_heads", "size.d_ff", "size.d_model", "seed") if reaches_nothing(cfg, key)
        ]
    assert found == {"mamba": ["size.n_heads", "size.d_ff"], "transformer": [], "hybrid": ["size.d_ff"]}
    assert reaches_nothing(compose_config(*MAMBA_ALONE), "size.n_heads")
    assert not reaches_nothing(compose_config(), "size.n_headss")  # which is no setting at all


class TestWindow:
    """A position sees ``window`` ones, its own among them, so that as many as there are is all of them."""

    @pytest.mark.parametrize(("length", "told"), [(63, True), (64, True), (65, False)])
    def test_that_covers_the_sequence_is_told(self, length, told):
        note = window_note(compose_config("model=transformer_window", f"data.length={length}"))
        assert bool(note) is told
        assert not told or f"model.mixers.attention.window=64 covers all of data.length={length}" in note

    def test_of_a_mixer_that_the_pattern_leaves_out_is_nobodys(self):
        window = "+model.mixers.attention.window=8"
        assert window_note(compose_config(*MAMBA_ALONE, window, "data.length=4")) is None
        assert window_note(compose_config("model=hybrid", window, "data.length=4"))
        assert window_note(compose_config("model=hybrid", "model.pattern=[mamba+attention]", window, "data.length=4"))

    def test_is_told_when_the_run_begins(self, train, capsys):
        assert train("model=transformer_window", "trainer.steps=1").status == 0
        assert capsys.readouterr().err.splitlines()[0].startswith("model.mixers.attention.window=64 covers all")


class TestSize:
    def test_of_a_model_is_what_its_file_chooses(self):
        sizes = {"hybrid": "small", "hybrid_jamba": "tall", "mamba_deep": "deep", "mamba": None, "somebody_elses": None}
        assert {name: own_size(name) for name in sizes} == sizes

    def test_is_told_unless_the_user_or_the_name_says_it(self):
        assert size_note(["mamba", "hybrid", "mamba_deep"], ["model=hybrid"]).startswith(
            "model=hybrid chose size=small;"
        )
        assert size_note(["hybrid"], ["size=small"]) is None
        assert size_note(["mamba", "mamba_deep", "somebody_elses"], []) is None

    def test_is_told_when_the_run_begins(self, train, capsys):
        assert train("model=hybrid", "size.d_model=16", "size.n_heads=2", "trainer.steps=1").status == 0
        assert capsys.readouterr().err.splitlines()[0].startswith("model=hybrid chose size=small; size=...")
