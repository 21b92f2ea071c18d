"""Overrides and settings by key, as every room reads them."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from seqlab.config.overrides import as_override, flatten, parse, parse_all, sets_any


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("seed=1", "seed", "1"),
        ("+a.b='c=d'", "a.b", "'c=d'"),
        ("++a=", "a", ""),
        ("~data.download", "data.download", ""),
        ("model@other=gru", "model@other", "gru"),
    ],
)
def test_an_override_is_a_key_and_a_value(override, key, value):
    assert parse(override) == (key, value)
    assert parse_all(["x=1", override])[key] == value


@pytest.mark.parametrize(
    ("override", "sets"),
    [("a=1", True), ("+a.b=1", True), ("~a", True), ("a@b=1", True), ("ab=1", False), ("b.a=1", False)],
)
def test_an_override_sets_a_key_or_something_beneath_it(override, sets):
    assert sets_any(override, ["x", "a"]) is sets


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -1e-05,
        "mamba",
        "a=b, 'c' \\ \"d\"\\",
        "",
        "[x]",
        "my model",
        [1, "a, b"],
        {"a": {"b": [None, "}"]}},
        Path("a b/="),
    ],
)
def test_values_of_python_are_overrides(value):
    override = OverridesParser.create().parse_override(as_override("a.b", value))
    assert override.key_or_group == "a.b"
    assert override.value() == (str(value) if isinstance(value, Path) else value)


def test_settings_by_their_keys():
    node = {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": {}, "f": [1, 2]}
    assert flatten(node) == {"a.b": 1, "a.c": [1, {"d": 2}], "e": {}, "f": [1, 2]}
    assert flatten(node, into_lists=True) == {"a.b": 1, "a.c.0": 1, "a.c.1.d": 2, "e": {}, "f": [1, 2]}
    assert flatten(3, "a") == {"a": 3}
