"""What several tests need: composed configurations, a toy data set, what a run left."""

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from seqlab.config import CONFIG_FOLDER
from seqlab.config.schema import check
from seqlab.data import Batch, DataSet
from seqlab.errors import UserError
from seqlab.models import SequenceModel
from seqlab.runs.build import build_data, build_model
from seqlab.runs.load import TokenWidths
from seqlab.training import checkpoint
from seqlab.training.precision import Precision, check_precision

ROOT = Path(__file__).parents[1]
CONF = CONFIG_FOLDER

# A corpus of a few words.
LINES = "the cat sat on the mat .\nthe dog <unk> the cat , and the cat ran .\n" * 40

# A job small enough to run hundreds of: the main job's data, less of it.
SMALL = [
    "trainer=smoke",
    "trainer.steps=2",
    "data.length=16",
    "data.n_train=32",
    "data.n_validation=8",
    "data.n_test=8",
]


class Job(NamedTuple):
    """What a run left."""

    folder: Path
    status: int

    @property
    def summary(self) -> dict:
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


def options(group: str) -> list[str]:
    """The names of a configuration group's options, found by glob."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def optimizers() -> list[str]:
    """The optimizers whose packages are installed; ``dev`` has all."""
    return [name for name in options("optimizer") if name != "soap" or find_spec("pytorch_optimizer")]


def models() -> list[str]:
    """The models that run on a CPU as they are installed: all but the layers of another library."""
    return [name for name in options("model") if not name.startswith("fla_")]


def architectures() -> list[str]:
    """The models without those that are another at a size of its own (``mamba_small``)."""
    return [name for name in models() if name.rpartition("_")[2] not in options("size")]


def skip_where_refused(model: nn.Module, precision: Precision) -> None:
    """Leave a test of a precision out where a run in it is refused: on CPUs without an LSTM in bf16, for one."""
    try:
        check_precision(model, torch.device("cpu"), precision)
    except UserError as refusal:
        pytest.skip(str(refusal))


@cache
def depth(model: str) -> int:
    """The fewest layers, from two, that hold a model's patterns whole."""
    model = compose_config(f"model={model}", "size=tiny").model
    feedforwards = model.feedforward if isinstance(model.feedforward, ListConfig) else []
    return max(2, len(model.pattern), len(feedforwards))


def compose_config(*overrides: str) -> DictConfig:
    """A composed configuration whose ``hydra:`` interpolations resolve, as they do under ``hydra.main``."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def run_sweep(folder: Path | None, *overrides: str) -> int:
    """``python train.py -m`` in this process, on the small data; returns the exit status."""
    named = [] if folder is None else [f"hydra.sweep.dir={folder}"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        for name in ("HYDRA_FULL_ERROR", "SEQLAB_COMMAND", "SEQLAB_SWEEP"):  # which cli.run sets; put back afterwards
            patch.setenv(name, "1")
        patch.setattr(sys, "argv", [str(ROOT / "train.py"), "-m", *SMALL, *overrides, *named])
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    return ended.value.code


def final_weights(folder: Path) -> dict[str, Tensor]:
    """Of the newest checkpoint of a run folder."""
    return load_file(checkpoint.latest(folder / "checkpoints") / checkpoint.WEIGHTS)


def timeless(records: list[dict]) -> list[dict]:
    """Records without what two runs of the same job may differ in."""
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def assert_same_run(a: Job, b: Job) -> None:
    """Two runs have the same metrics and end with the same weights, to the last bit."""
    assert timeless(a.records) == timeless(b.records)
    assert a.summary["test"] == b.summary["test"]
    ours, theirs = final_weights(a.folder), final_weights(b.folder)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def script(*arguments: str, environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess:
    """``python train.py`` in a process of its own."""
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)


def built_model(
    *overrides: str, d_input: int = 7, d_output: int | None = None, length: int = 8, tokens: bool = True, seed: int = 0
) -> SequenceModel:
    """The model of a command line at these widths, on the CPU."""
    torch.manual_seed(seed)
    widths = TokenWidths(d_input, d_output or d_input, length, tokens)
    return build_model(composed(*overrides), widths, torch.device("cpu"))


@cache
def composed(*overrides: str) -> DictConfig:
    """As ``compose_config``, which takes longer than to build a small model; resolved, and nobody may change it."""
    cfg = compose_config(*overrides)
    OmegaConf.resolve(cfg)
    OmegaConf.set_readonly(cfg, True)
    return cfg


def configured_data(kind: type[DataSet], settings: dict[str, Any]) -> DataSet:
    """A data object as the command line makes it: its settings are checked, and errors name their keys."""
    node = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **settings}
    check(node, key="data")
    return build_data(OmegaConf.create({"data": node}))


class Echo(DataSet):
    """The smallest data object: the target is the input token, one in eight is masked."""

    tokens, d_input, d_output, length, train_size = True, 7, 7, 8, 64
    fingerprint, description = "0" * 12, "echo"

    def __init__(self, metrics: dict | None = None):
        self.metrics = metrics or {}

    def _batch(self, seed: int, batch_size: int) -> Batch:
        tokens = torch.randint(7, (batch_size, 8), generator=torch.Generator().manual_seed(seed))
        return Batch(tokens, tokens.where(torch.arange(8) > 0, -100))

    def train_batch(self, index: int, batch_size: int, seed: int) -> Batch:
        return self._batch(1000 * seed + index, batch_size)

    def evaluation_size(self, split: str, batch_size: int) -> int:
        return 2

    def evaluation_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        return (self._batch(-seed - (split == "test"), batch_size) for seed in (10, 20))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs.float().transpose(1, 2), targets, reduction="none")
