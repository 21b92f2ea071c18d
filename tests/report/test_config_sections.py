"""``config.yaml`` section by section: what a whole parse says, whatever the file holds."""

import pytest
import yaml

from seqlab.report.runs import LOADER, BySection, parse_config

PLAIN = {
    "name": "mamba",
    "seed": 1,
    "data": {"tests": [1, {"a": "b: c"}]},
    "text": "# no comment\n---\nx: 1\n",
    "e": {},
}
FILES = [
    yaml.safe_dump(PLAIN, sort_keys=False),
    yaml.safe_dump(PLAIN, sort_keys=False, default_flow_style=True),
    "a: &shared\n  b: 1\nc: *shared\n",
    "base: &base {x: 1}\nc:\n  <<: *base\n  y: 2\n",
    "# a comment\na: 1\n",
    "a: 1\n# a comment\nb:\n- 2\n- c: 3\n",
    "a: |\n  x: 1\n\n  y\nb: >-\n  folded\n  text\n",
    "a: 1\na: 2\nb: 3\n",
    "a:\n  x\n\nb: 'over\n\n  lines'\n? c\n: d\n",
    "%YAML 1.1\n---\na: 1\n",
    "a: 1\n...\n",
    "a: 1\r\nb:\r\n  c: 2\r\n",
    "- a\n- b\n",
    "a",
    "",
    "\ufeffa: 1\n",
    "a: 1_000\nb: 2026-01-31\nc: ~\nd: yes\n",
]
DAMAGED = [
    "a: 1\n---\nb: 2\n",
    "a: 1\n...\nb: 2\n",
    "a: {\nb: 1\n",
    "a: 'x\nb: 1\n",
    "a: *nothing\n",
    "a: 1\n b: 2\n",
    "a: \x00\n",
    "a: !!python/object:x {}\n",
    "a: [1\nb: 2]]\n",
]


@pytest.mark.parametrize("text", FILES)
def test_sections_add_up_to_the_whole(text):
    content = text.encode()
    assert parse_config(content) == yaml.load(content, LOADER)


@pytest.mark.parametrize("text", DAMAGED)
def test_a_mistake_is_told_as_of_the_whole(text):
    content = text.encode()
    with pytest.raises(yaml.YAMLError) as expected:
        yaml.load(content, LOADER)
    with pytest.raises(yaml.YAMLError) as actual:
        parse_config(content)
    assert str(actual.value) == str(expected.value)


def test_each_different_section_is_parsed_once(monkeypatch):
    parsed = []
    load_whole = yaml.load
    monkeypatch.setattr(yaml, "load", lambda content, loader: parsed.append(content) or load_whole(content, loader))
    configs = [parse_config(b"counted_in_this_test: [1, 2]\nseed_of_this_test: %d\n" % seed) for seed in range(5)]
    assert [config["seed_of_this_test"] for config in configs] == list(range(5))
    assert len(parsed) == 1 + 5


def test_work_by_section_is_done_once_and_never_for_another_one():
    done = []
    keys = BySection(lambda name, section: done.append(name) or sorted(section))
    shared = {"b": 1, "a": 2}
    assert [keys("data", shared) for _ in range(3)] == 3 * [["a", "b"]]
    assert keys("model", shared) == ["a", "b"]
    assert done == ["data", "model"]
    assert [keys("data", {str(i): 0}) for i in range(100)] == [[str(i)] for i in range(100)]  # ids are used again
