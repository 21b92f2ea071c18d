from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import made_run
from matplotlib.colors import to_rgb

from seqlab.report.groups import group
from seqlab.report.plots.labels import plain, shortened
from seqlab.report.plots.panels import short_number
from seqlab.report.plots.style import COLOURS, OTHERS, architecture, colours, styles


def colour_blind(colour: str, kind: str) -> np.ndarray:
    """A colour as seen with a common blindness (Machado, Oliveira and Fernandes 2009, whole), in CIELAB."""
    matrix = {
        "none": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    }[kind]
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(matrix) @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ seen / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", ["none", "protan", "deutan"])
def test_the_known_architectures_are_told_apart_by_everyone(kind):
    seen = {name: colour_blind(colour, kind) for name, colour in COLOURS.items()}
    for one, other in combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 15, (one, other)


def test_the_other_colours_are_none_of_the_known():
    known = {name: colour_blind(colour, "none") for name, colour in COLOURS.items()}
    for other, (name, colour) in product(OTHERS, known.items()):
        assert np.linalg.norm(colour_blind(other, "none") - colour) > 15, (other, name)


def test_an_architecture_keeps_its_colour():
    assert colours(["mamba", "lstm"])["mamba"] == colours(["mamba_deep", "other"])["mamba"] == COLOURS["mamba"]
    assert colours(["mine"])["mine"] == colours(["mine", "mamba"])["mine"]
    unknown = [f"mine{i}" for i in range(len(OTHERS))]
    assert len(set(colours(unknown).values())) == len(OTHERS)
    assert architecture("transformer_vanilla") == "transformer_vanilla"
    assert architecture("mamba_small") == "mamba" and architecture("_small") == "_small"


def test_lines_tell_settings_of_one_model_apart():
    groups = group([made_run(**{"model.mixers.mamba.d_state": n}) for n in (8, 16, 32)] + [made_run("lstm")])
    found = dict(
        zip([one.label for one in groups], styles([one.model for one in groups], ["mamba", "lstm"]), strict=True)
    )
    assert len({style.line for name, style in found.items() if name.startswith("mamba")}) == 3
    assert len({style.colour for name, style in found.items() if name.startswith("mamba")}) == 1
    assert found["lstm"].line == "solid"


def test_ticks_are_named_in_short():
    named = {0: "0", 0.001: "0.001", 2.5: "2.5", 999: "999", 1000: "1k", 2_500_000: "2.5M", 1e12: "1T"}
    assert {value: short_number(value) for value in named} == named


def test_nothing_of_a_long_label_is_cut_off():
    """Its end may be what tells it from another."""
    labels = [f"mamba, {', '.join(f'a_long_setting_{i}=0.001' for i in range(6))}, lr={rate}" for rate in (1, 2)]
    for label in labels:
        shown = plain(label)
        assert shown.replace("\n", " ") == label
        assert max(map(len, shown.split("\n"))) <= 70


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["8", "16"], ["8", "16"]),
        (["torch.optim.AdamW", "torch.optim.Adam"], ["…W", "…"]),
        (["a_transformer_of_8", "a_transformer_of_16"], ["…8", "…16"]),
        (["first_of_all_settings", "second_of_all_settings"], ["first_of_al…", "second_of_a…"]),
        (["ab" + "c" * 20 + "d", "ab" + "c" * 20 + "e", "x"], ["ab" + "c" * 20 + "d", "ab" + "c" * 20 + "e", "x"]),
        (["x" * 300], ["x" * 11 + "…"]),
    ],
)
def test_names_are_shortened_where_they_do_not_differ(names, shown):
    assert shortened(names, 12) == shown


@given(st.lists(st.text("ab", max_size=30), unique=True, min_size=1), st.integers(3, 20))
def test_names_stay_different(names, longest):
    assert len(set(shortened(names, longest))) == len(names)
