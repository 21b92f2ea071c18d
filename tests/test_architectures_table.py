"""The README's table of architectures is what scripts/architectures.py makes of conf/model."""

import importlib.util

import pytest

from support import CONF, models

ROOT = CONF.parent


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("architectures", ROOT / "scripts" / "architectures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(script):
    _, _, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition(script.BEGIN)
    lines = rest.partition(script.END)[0].splitlines()[2:]
    return {line.split("`")[1]: line for line in lines}


def test_it_has_every_architecture_and_what_its_yaml_says(script, rows):
    listed = script.architectures()
    assert [path.stem for path in listed] == list(rows)
    for path in listed:
        assert f"| {script.first_comment(path)} |" in rows[path.stem]


def test_only_models_at_a_size_are_left_out(script):
    left_out = set(models()) - {path.stem for path in script.architectures()}
    assert left_out == {f"mamba_{size}" for size in ("small", "medium", "large", "wide", "deep")}


@pytest.mark.parametrize("name", ["mamba", "transformer_moe", "linear"])
def test_its_figures_are_the_models(script, rows, name):
    assert script.row(CONF / "model" / f"{name}.yaml") == rows[name]
