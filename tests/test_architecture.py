"""The house's walls: imports run one way, and only the upper house knows Hydra."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "seqlab"
FILES = sorted(SOURCE.rglob("*.py"))

# The modules at the root, and what each may use.
ROOT_MODULES = {
    "__init__": {"api", "errors"},
    "formatting": set(),
    "jsonio": set(),
    "invocation": set(),
    "errors": {"formatting", "invocation"},
    "places": {"errors"},
    "console": {"errors"},
    "__main__": {"errors", "invocation", "console", "cli"},
    "experiment": {
        "errors",
        "invocation",
        "jsonio",
        "config",
        "models",
        "data",
        "training",
        "runs",
        "match",
        "pretrained",
    },
}
# Every room: what it may use besides itself, and its modules. Only the families of FAMILIES may grow unnamed.
ROOMS = {
    "ops": (
        "",
        "backends compiling context contract cpu_threads cuda_graph derivatives launch recent triton_support",
    ),
    "data": (
        "errors ops",
        "cache corpora documents download encoding hub_documents own_corpus own_text protocol splitting streams "
        "subwords synthetic text token_files windows",
    ),
    "models": (
        "errors ops",
        "counting dropouts feedforward head_loss hooks layer linear mixture_of_experts mixture_of_softmaxes norms "
        "parametrisation pattern positions protocols recomputation sequence_model without_compiler",
    ),
    "inference": (
        "errors models ops",
        "captured generate prompt sampling steps",
    ),
    "training": (
        "errors invocation jsonio console models data ops",
        "ahead average captured carried checkpoint compile_ahead counters device_step evaluate freezing "
        "lean_optimizers loggers lora meeting metrics metrics_file muon_of_stacks objective optim parallel precision "
        "prefetch progress regularisation saving schedule settings sharded_files sharding signals soap_of_parts "
        "trainer update",
    ),
    "config": (
        "errors places invocation",
        "command_line exceptions hydra_errors influence options overrides renamed schema suggestions without_effect",
    ),
    "runs": (
        "errors invocation formatting jsonio config models data training",
        "build environment extra_tests folder leftovers load lock process resume summary targets torchrun trust",
    ),
    "pretrained": (
        "errors places formatting jsonio config data models runs",
        "card checkpoint counterpart export fields files sources start state_spaces tokenizer",
    ),
    "evaluation": (
        "errors places jsonio data models inference",
        "harness perplexity results scoring texts",
    ),
    "match": (
        "errors config models data training runs",
        "flops overlay parameters width_search",
    ),
    "sweep": (
        "errors invocation formatting jsonio console config pretrained runs",
        "callback display duplicates entries jobs launchers/local_gpus launchers/on_ray launchers/on_slurm "
        "launchers/packed naming orphans points rates search/pruning search/space search/studies shared_mistakes "
        "stopping watch workers",
    ),
    "report": (
        "errors formatting config runs",
        "budgets compare curves difficulty find_runs fits formats grids groups inline page/cells page/charts "
        "page/encoding page/payload page/settings plots/bands plots/captions plots/cost plots/dataset "
        "plots/drawing plots/fits plots/labels plots/losses plots/panels plots/style plots/sweeps plots/values "
        "power_law print_tables rows runs statistics tables write_tables",
    ),
    "benchmarks": (
        "errors places invocation formatting jsonio console ops data models inference training config runs pretrained "
        "report",
        "coordinates experts exponents growth growth_curves inference inference_curves memory peer peer_picture "
        "peer_tasks report results roofline run_trees scaling scaling_on_paper scaling_points scaling_step scan "
        "scan_contestants scan_shapes session step text timing training_step",
    ),
    "cli": (
        "errors invocation formatting jsonio console config runs sweep report",
        "main resolvers result_table",
    ),
    "commands": (
        "errors places invocation formatting jsonio console config data ops models training inference evaluation runs "
        "pretrained sweep report benchmarks cli experiment",
        "benchmark_against_mamba_ssm benchmark_commands benchmark_coordinates benchmark_experts benchmark_growth "
        "benchmark_inference benchmark_scaling benchmark_scan benchmark_step_cpu benchmark_text compare evaluate "
        "export generate job options settings train trained",
    ),
    "api": (
        "errors places invocation jsonio console config data runs report cli commands experiment",
        "comparison run train",
    ),
}
FAMILIES = ("ops/*/", "models/mixers/", "data/probes/", "pretrained/families/")
ALLOWED = ROOT_MODULES | {room: set(uses.split()) for room, (uses, _) in ROOMS.items()}
HYDRA = {"api", "cli", "commands", "config", "match", "runs", "experiment", "pretrained", "sweep"}


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


def test_every_module_has_its_place():
    """A file of its own is a decision: whoever adds one says here which room it is in."""
    named = {f"{room}/{module}" for room, (_, modules) in ROOMS.items() for module in modules.split()}
    paths = {path.relative_to(SOURCE).with_suffix("") for path in FILES if path.stem != "__init__"}
    grown = {path for path in paths if any(path.match(f"{family}*") for family in FAMILIES)}
    assert {str(path) for path in paths - grown} == named | ROOT_MODULES.keys() - {"__init__"}


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda path: path.stem)
def test_no_file_is_long(path):
    """Beyond 400 lines a file holds more than one thing; kernels are programs of one piece."""
    if "kernels" not in path.stem and path.stem != "triton_lanes":
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_rooms_use_one_another_in_one_direction():
    graph = TopologicalSorter(ALLOWED)
    assert list(graph.static_order())  # raises CycleError


def test_the_entry_point_stays_a_doormat():
    assert len((ROOT / "train.py").read_text(encoding="utf-8").splitlines()) <= 25


def test_the_trainer_stays_readable():
    assert len((SOURCE / "training" / "trainer.py").read_text(encoding="utf-8").splitlines()) <= 250
