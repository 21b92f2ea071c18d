"""Labels by the names of sizes, where those tell as much as the numbers."""

from dataclasses import replace

import pytest
import yaml
from made_runs import made_run

from seqlab.analysis.groups import group
from seqlab.analysis.runs import Run

SIZES = {"small": (64, 2), "large": (256, 8)}


def sized(folder, name: str, *overrides: str, seed: int = 1, **changes) -> Run:
    """A run as Hydra leaves it behind, with the size that was chosen."""
    width, layers = SIZES.get(name, (512, 4))
    run = made_run(seed=seed, **({"size.d_model": width, "size.n_layers": layers} | changes))
    place = folder / f"{name}_{seed}_{len(list(folder.iterdir()))}"
    (place / ".hydra").mkdir(parents=True)
    choices = {"hydra": {"runtime": {"choices": {"size": name, "model": "mamba"}}}}
    (place / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(choices))
    (place / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([f"size={name}", f"seed={seed}", *overrides]))
    return replace(run, folder=place)


def labels(*runs: Run) -> set[str]:
    return {one.label for one in group(runs)}


def test_a_size_is_named_and_its_numbers_stay_among_the_settings(tmp_path):
    groups = group([sized(tmp_path, name, seed=seed) for name in SIZES for seed in (1, 2)])
    assert {one.label for one in groups} == {"mamba, size=small", "mamba, size=large"}
    assert {one.settings["size.d_model"] for one in groups} == {64, 256}


def test_what_else_varies_stays_in_the_label(tmp_path):
    changed = sized(tmp_path, "large", **{"trainer.batch_size": 8})
    assert labels(sized(tmp_path, "small"), sized(tmp_path, "large"), changed) == {
        "mamba, size=small, batch_size=64",
        "mamba, size=large, batch_size=64",
        "mamba, size=large, batch_size=8",
    }


@pytest.mark.parametrize("how", ["override", "other numbers", "other name", "no files", "damaged"])
def test_a_name_that_does_not_tell_all_is_not_used(tmp_path, how):
    runs = [sized(tmp_path, "small"), sized(tmp_path, "large")]
    more = {
        "override": lambda: sized(tmp_path, "wide", "size.d_model=512"),
        "other numbers": lambda: sized(tmp_path, "large", **{"size.d_model": 512}),
        "other name": lambda: sized(
            tmp_path, "wide", **{"size.d_model": 256, "size.n_layers": 8, "trainer.batch_size": 8}
        ),
        "no files": lambda: made_run(**{"size.d_model": 512}),
        "damaged": lambda: sized(tmp_path, "wide"),
    }[how]()
    if how == "damaged":
        (more.folder / ".hydra" / "hydra.yaml").write_text("hydra: [runtime")
    found = labels(*runs, more)
    assert len(found) == 3
    assert all("d_model=" in label and ", size=" not in label for label in found)
