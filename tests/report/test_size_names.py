"""Labels by the names of sizes, where a run has the numbers of the file of that name."""

from pathlib import Path

import pytest
import yaml
from made_runs import made_run

from seqlab.report import groups
from seqlab.report.groups import group, named_sizes, size_name
from seqlab.report.runs import Run
from support import CONF, compose_config, options

SIZES = {path.stem: yaml.safe_load(path.read_text()) for path in (CONF / "size").glob("*.yaml")}


def sized(name: str, *, seed: int = 1, **changes) -> Run:
    """A run at the size of a file, whose numbers may be changed."""
    return made_run(seed=seed, **({f"size.{key}": value for key, value in SIZES[name].items()} | changes))


def labels(*runs: Run) -> set[str]:
    return {one.label for one in group(runs)}


def test_a_size_is_named_and_its_numbers_stay_among_the_settings():
    found = group([sized(name, seed=seed) for name in ("small", "large") for seed in (1, 2)])
    assert {one.label for one in found} == {"mamba, size=small", "mamba, size=large"}
    assert {one.settings["size.d_model"] for one in found} == {256, 768}


def test_what_else_varies_stays_in_the_label():
    changed = sized("large", **{"trainer.batch_size": 8})
    assert labels(sized("small"), sized("large"), changed) == {
        "mamba, size=small, batch_size=64",
        "mamba, size=large, batch_size=64",
        "mamba, size=large, batch_size=8",
    }


@pytest.mark.parametrize("key", ["size.d_model", "size.n_layers", "size.n_heads", "size.d_ff"])
def test_a_size_of_which_anything_was_changed_has_no_name(key):
    found = labels(sized("small"), sized("large"), sized("large", **{key: 16, "trainer.batch_size": 8}))
    assert len(found) == 3
    assert all("d_model=" in label and "size=s" not in label and "size=l" not in label for label in found)


def test_numbers_that_an_experiment_sets_are_not_of_the_size_that_was_chosen():
    """``experiment=induction_heads`` leaves ``size: tiny`` chosen and sets eight heads."""
    numbers = dict(compose_config("experiment=induction_heads").size)
    experiment = made_run(**{f"size.{key}": value for key, value in numbers.items()})
    assert numbers != SIZES["tiny"]
    assert size_name(experiment) is None
    assert size_name(sized("tiny")) == "tiny"


def test_a_run_that_says_nothing_of_its_size_has_no_name():
    run = sized("small")
    del run.config["size"]
    assert size_name(run) is None


def test_every_size_is_another():
    assert set(named_sizes(groups.SIZES)) == set(options("size"))
    assert all(size_name(sized(name)) == name for name in SIZES)


def test_without_the_files_there_are_no_names(monkeypatch, tmp_path):
    monkeypatch.setattr(groups, "SIZES", Path(tmp_path))
    assert all("d_model=" in label for label in labels(sized("small"), sized("large")))
