"""The house's walls: imports run one way, and only the top floor knows Hydra."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "seqlab"
FILES = sorted(SOURCE.rglob("*.py"))

# Each room may use its own and the rooms named here; whatever is not listed is the top floor, which may use all.
ALLOWED = {
    "ops": set(),
    "errors": {"formatting"},
    "jsonio": set(),
    "formatting": set(),
    "console": {"errors"},
    "data": {"errors"},
    "models": {"ops", "errors"},
    "training": {"models", "data", "ops", "errors", "jsonio", "console"},
    "inference": {"models", "data", "ops", "errors", "console"},
    "analysis": {"models", "data", "ops", "errors", "jsonio", "console", "formatting"},
}
# All that knows Hydra.
TOP = {
    "cli",
    "config",
    "experiment",
    "flags",
    "launching",
    "loading",
    "matching",
    "messages",
    "model_choice",
    "resolvers",
    "resume",
    "schema",
    "sweep",
    "trust",
    "typed",
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_one_way(path):
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("seqlab.")}
    ours = {name for name in ours if (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").is_file()}
    allowed = ALLOWED.get(room(path))
    if allowed is not None:
        assert ours - {room(path)} <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_the_top_floor_knows_hydra(path):
    if room(path) not in TOP:
        assert not any(name.split(".")[0] in ("hydra", "omegaconf") for name in imports(path))


def test_the_entry_point_stays_a_doormat():
    assert len((ROOT / "train.py").read_text(encoding="utf-8").splitlines()) <= 25


def test_the_trainer_stays_readable():
    assert len((SOURCE / "training" / "trainer.py").read_text(encoding="utf-8").splitlines()) <= 250
