"""The README's table of architectures is what scripts/architectures.py makes of conf/model."""

import importlib.util

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

from seqlab.models.feedforward import swiglu_width
from seqlab.report.formats import scaled_bytes
from support import CONF, ROOT, architectures, compose_config, models


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


def parameters_left_out(cfg: DictConfig) -> int:
    """Of the experts that a token does not visit: three matrices each."""
    feedforwards = cfg.model.feedforward if isinstance(cfg.model.feedforward, ListConfig) else [cfg.model.feedforward]
    left_out = 0
    for i in range(cfg.model.n_layers):
        experts = feedforwards[i % len(feedforwards)]
        if experts and "n_experts" in experts:
            expert = 3 * cfg.size.d_model * swiglu_width(experts.d_ff)
            left_out += (experts.n_experts - experts.top_k) * expert
    return left_out


def numbers_remembered(cfg: DictConfig, name: str, length: int) -> int:
    """How many numbers one layer keeps of a sequence."""
    if "+" in name:
        return sum(numbers_remembered(cfg, part, length) for part in name.split("+"))
    d, mixer = cfg.size.d_model, cfg.model.mixers[name]
    if name == "attention":
        return 2 * min(length, mixer.window or length) * int(mixer.get("expand", 1) * d)  # keys and values
    if name == "mamba":
        return 2 * d * (3 + 16)  # inputs of the convolution, and the states of its E = 2 D channels
    if name == "mamba2":
        e = mixer.expand * d
        return 3 * (e + 2 * 64) + e * 64  # B and C pass the convolution too
    if name in ("delta_net", "kimi_delta", "gated_delta_net2"):
        return 3 * 3 * d + d * d // 4  # inputs of the convolution, and the square of each of 4 heads
    if name == "gated_delta_net":
        return 3 * 3 * d + 4 * 48 * 96
    if name == "mlstm":
        return 4 * (32 * 64 + 32 + 1)  # its memory, what that is divided by, and the largest gate
    if name == "m2rnn":
        return 3 * (2 * 64 + 21 * 16) + 21 * 64 * 16  # inputs of the convolution; heads of 16 for 1.3125 times D
    if name == "mamba3":
        angles = 2 * cfg.size.n_heads * 64 // 4  # in float64
        return 2 * d * 64 + mixer.mimo_rank * (cfg.size.n_heads * 64 + 2 * d) + angles
    if name not in (others := {"gru": d, "lstm": 2 * d, "min_gru": 2 * d, "dense": 0}):
        pytest.skip(f"nobody has worked out by hand yet what {name} remembers")
    return others[name]


@pytest.mark.parametrize("name", architectures())
def test_every_row_against_a_count(rows, name):
    """The parameters of the model as it is built, each once, and what closed formulas say of experts and states."""
    own = {"hybrid_jamba": "tall", "hybrid_mamba3": "medium"}
    cfg = compose_config(f"model={name}", f"size={own.get(name, 'small')}")
    with torch.device("meta"):
        model = instantiate(cfg.model, tokens=True, d_input=256, d_output=256, max_length=1024, _convert_="all")
    total = sum({id(p): p.numel() for part in model.modules() for p in part.parameters(recurse=False)}.values())
    left_out = parameters_left_out(cfg)
    pattern = cfg.model.pattern
    near, far = (
        scaled_bytes(4 * sum(numbers_remembered(cfg, pattern[i % len(pattern)], n) for i in range(cfg.model.n_layers)))
        for n in (1024, 65536)
    )
    *_, parameters, state, _ = (cell.strip() for cell in rows[name].split("|"))
    assert parameters == (f"{total:,} ({total - left_out:,} active)" if left_out else f"{total:,}")
    assert state == (near if near == far else f"{near} to {far}")
