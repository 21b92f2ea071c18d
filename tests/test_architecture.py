"""The house's walls: imports run one way, and only the upper house knows Hydra."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "seqlab"
FILES = sorted(SOURCE.rglob("*.py"))

# Every room and every root module, with the others that it may use. A new one has to be named here.
ALLOWED = {
    "__init__": set(),
    "formatting": set(),
    "jsonio": set(),
    "errors": {"formatting"},
    "console": {"errors"},
    "ops": set(),
    "data": {"errors"},
    "models": {"errors", "ops"},
    "inference": {"errors"},
    "training": {"errors", "jsonio", "console", "models", "data"},
    "config": {"errors"},
    "runs": {"errors", "formatting", "jsonio", "config", "models", "data", "training"},
    "match": {"errors", "config", "models", "data", "training", "runs"},
    "experiment": {"errors", "jsonio", "config", "models", "data", "training", "runs", "match"},
    "sweep": {"errors", "formatting", "jsonio", "console", "config", "runs"},
    "report": {"errors", "formatting", "config", "runs"},
    "benchmarks": {
        "errors",
        "formatting",
        "jsonio",
        "console",
        "ops",
        "models",
        "training",
        "config",
        "runs",
        "report",
    },
    "cli": {"errors", "formatting", "console", "config", "runs", "sweep", "report"},
}
HYDRA = {"cli", "config", "match", "runs", "experiment", "sweep"}


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
    assert ours - {room(path)} <= ALLOWED[room(path)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_the_upper_house_knows_hydra(path):
    if room(path) not in HYDRA:
        assert not any(name.split(".")[0] in ("hydra", "omegaconf") for name in imports(path))


def test_rooms_use_one_another_in_one_direction():
    graph = TopologicalSorter(ALLOWED)
    assert list(graph.static_order())  # raises CycleError


def test_the_entry_point_stays_a_doormat():
    assert len((ROOT / "train.py").read_text(encoding="utf-8").splitlines()) <= 25


def test_the_trainer_stays_readable():
    assert len((SOURCE / "training" / "trainer.py").read_text(encoding="utf-8").splitlines()) <= 250
