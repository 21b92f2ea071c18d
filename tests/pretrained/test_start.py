"""Runs that start from a checkpoint, and checkpoints that are refused in two lines."""

import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from seqlab import pretrained
from seqlab.benchmarks import inference
from seqlab.commands import generate
from seqlab.config.without_effect import refuse_beside_checkpoint
from seqlab.errors import UserError
from seqlab.pretrained import files
from seqlab.pretrained.checkpoint import Checkpoint
from seqlab.pretrained.families import FAMILIES
from seqlab.pretrained.fields import Fields
from seqlab.pretrained.start import refuse_other_data, with_architecture
from seqlab.pretrained.tokenizer import by_characters
from seqlab.runs.load import TokenWidths
from support import LINES, final_weights

VOCABULARY, WIDTH, POSITIONS = len(set(LINES)), 8, 19
SMALLEST = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 1, "n_head": 2, "n_positions": POSITIONS}
BLOCK = {
    **{f"ln_{i}.{kind}": (WIDTH,) for i in (1, 2) for kind in ("weight", "bias")},
    **{"attn.c_attn.weight": (WIDTH, 3 * WIDTH), "attn.c_attn.bias": (3 * WIDTH,)},
    **{"attn.c_proj.weight": (WIDTH, WIDTH), "attn.c_proj.bias": (WIDTH,)},
    **{"mlp.c_fc.weight": (WIDTH, 4 * WIDTH), "mlp.c_fc.bias": (4 * WIDTH,)},
    **{"mlp.c_proj.weight": (4 * WIDTH, WIDTH), "mlp.c_proj.bias": (WIDTH,)},
}
OUTER = {"wte.weight": (VOCABULARY, WIDTH), "wpe.weight": (POSITIONS, WIDTH)}
OUTER |= {"ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,)}


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A checkpoint of GPT-2 in two files, over the corpus's characters."""
    folder = tmp_path / "gpt2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALLEST | {"architectures": ["GPT2LMHeadModel"]}))
    index = {}
    for shapes, prefix, number in ((OUTER, "transformer", 1), (BLOCK, "transformer.h.0", 2)):
        name = f"model-{number:05}-of-00002.safetensors"
        tensors = {f"{prefix}.{key}": torch.randn(shape) for key, shape in shapes.items()}
        save_file(tensors, folder / name)
        index |= dict.fromkeys(tensors, name)
    (folder / files.INDEX).write_text(json.dumps({"weight_map": index}))
    return folder


TUNED = ("trainer.lora={rank: 2, alpha: 4, on: [in_proj]}", "trainer.ema=0.9", "optimizer.layer_decay=0.9")


@pytest.mark.parametrize("tuning", [(), TUNED], ids=["all", "tuned"])
def test_a_run_starts_from_a_checkpoint_and_goes_on_without_it(gpt2, train, corpus, capsys, tuning):
    begin = pretrained.load(gpt2).state_dict()
    settings = ["trainer=smoke", "trainer.steps=2", "optimizer.lr=1e-12", "model.dropout=0.1", *tuning]
    job = train(f"init_from={gpt2}", *corpus["tiny_shakespeare"], *settings, small=False)
    assert job.status == 0
    assert job.summary["model"] == "gpt2"
    assert (job.summary["trainable_parameters"] < job.summary["parameters"]) == bool(tuning)
    trained = final_weights(job.folder)
    assert len(trained["positions.weight"]) == 19  # all that the checkpoint has, though windows are of 16
    for name, weight in trained.items():
        torch.testing.assert_close(weight, begin[name], rtol=0, atol=1e-10)

    shutil.rmtree(gpt2)
    again = train(f"resume={job.folder}", "trainer.steps=3")
    assert again.status == 0
    assert again.summary["steps"] == 3
    capsys.readouterr()
    assert generate.main([f"run={job.folder}", "prompt=the cat", "max_new_tokens=8"]) == 0
    assert len(capsys.readouterr().out.strip("\n")) >= 8


@pytest.fixture
def with_tokenizer(gpt2) -> Path:
    """The checkpoint with a tokenizer of the corpus's characters."""
    by_characters(sorted(set(LINES))).save(str(gpt2 / "tokenizer.json"))
    return gpt2


def generated(capsys, *arguments: str) -> str:
    assert generate.main([*arguments, "max_new_tokens=8", "temperature=0"]) == 0
    return capsys.readouterr().out


@torch.no_grad()
def test_text_from_a_checkpoint_itself(with_tokenizer, capsys):
    model, text = pretrained.load(with_tokenizer), generate.CheckpointText(str(with_tokenizer), None, VOCABULARY)
    ids = text.encode("the cat")
    for _ in range(8):
        ids = torch.cat((ids, model(ids[None])[0, -1:].argmax(dim=-1)))
    said = generated(capsys, f"init_from={with_tokenizer}", "prompt=the cat")
    assert said == f"{text.decode(ids.tolist())}\n"

    end = ids[9].item()
    first = ids[7:].tolist().index(end)
    field(eos_token_id=[VOCABULARY + 5, end])(with_tokenizer)
    ended = generated(capsys, f"init_from={with_tokenizer}", "prompt=the cat")
    assert ended == f"{text.decode(ids[: 7 + first].tolist())}\n"


def larger(folder: Path) -> None:
    by_characters(sorted({*LINES, "z"})).save(str(folder / "tokenizer.json"))


NO_TEXT: dict[str, tuple[Callable[[Path], Any], list[str], str]] = {
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), [], "holds no tokenizer.json"),
    "a broken one": (
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        [],
        "tokenizer.json: is no tokenizer.json (",
    ),
    "a larger one": (larger, [], f"has {VOCABULARY + 1} tokens, and the model's vocabulary {VOCABULARY}"),
    "no such character": (
        lambda _: None,
        ["prompt=zebra"],
        "prompt=zebra: the checkpoint's tokenizer cannot encode it",
    ),
    "a run too": (lambda _: None, ["run=outputs/x"], "names what run=outputs/x has of its own"),
}


@pytest.mark.parametrize(("change", "more", "message"), NO_TEXT.values(), ids=NO_TEXT)
def test_a_checkpoint_without_its_text(with_tokenizer, capsys, change, more, message):
    change(with_tokenizer)
    assert generate.main([f"init_from={with_tokenizer}", *more]) == 2
    *before, refusal, _ = capsys.readouterr().err.strip().splitlines()
    assert message in refusal
    assert not any("init_from" in line for line in before)


def test_inference_of_a_checkpoint_is_measured(gpt2):
    options = Namespace(contexts=[4], device=torch.device("cpu"), dtype=torch.bfloat16)
    label, kind, model = inference.contestant(str(gpt2), options)
    assert label == kind == "gpt2"
    assert model.max_length == POSITIONS and model.embed.weight.dtype == torch.bfloat16


def test_text_takes_the_checkpoints_tokenizer(gpt2, train, tmp_path, capsys):
    """With as many ids as the model has embeddings, which are often more than tokens."""
    (tmp_path / "my.txt").write_text(LINES)
    given = [f"init_from={gpt2}", "data=text", f"data.files={tmp_path / 'my.txt'}", "data.length=16", "trainer=smoke"]
    assert train(*given, small=False).status == 2
    assert "data.tokens=auto: there is no tokenizer.json in" in capsys.readouterr().err

    words = dict.fromkeys([*LINES.split(), "</s>"])
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(gpt2 / "tokenizer.json"))
    job = train(*given, "trainer.steps=1", small=False)
    assert job.status == 0
    assert (job.folder / "tokenizer.json").read_text() == (gpt2 / "tokenizer.json").read_text()
    assert len(words) < len(final_weights(job.folder)["embed.weight"]) == VOCABULARY

    tokenizer.add_tokens([f"more{i}" for i in range(20)])
    tokenizer.save(str(gpt2 / "tokenizer.json"))
    assert train(*given, small=False, folder="more").status == 2
    said = capsys.readouterr().err
    assert f"data.tokens={gpt2}/tokenizer.json: has {len(words) + 20} tokens, and the model {VOCABULARY} (by" in said


def damaged(folder: Path) -> list[str]:
    path = max(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-4])
    return ["data=tiny_shakespeare"]


REFUSED: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "another model": (lambda _: ["model=lstm"], "model=lstm: the model and its size are those of init_from="),
    "a damaged file": (damaged, "is no whole safetensors file"),
}


@pytest.mark.parametrize(("prepare", "message"), REFUSED.values(), ids=REFUSED)
def test_a_refused_run_leaves_nothing(gpt2, train, corpus, capsys, caplog, prepare, message):
    overrides = [part for one in prepare(gpt2) for part in corpus.get(one.removeprefix("data="), [one])]
    job = train(f"init_from={gpt2}", *overrides, small="data=tiny_shakespeare" not in overrides)
    error = capsys.readouterr().err or caplog.messages[-1]
    assert job.status == 2
    assert message in error
    assert len(error.strip().splitlines()) == 2
    assert not job.folder.exists()


@pytest.mark.parametrize("override", ["size.d_model=8", "size=small", "model.mixers.attention.window=3"])
def test_an_architecture_beside_a_checkpoint_is_refused(override):
    cfg = OmegaConf.create({"init_from": "gpt2"})
    with pytest.raises(UserError, match=f"^{override}: the model and its size are those of init_from=gpt2"):
        refuse_beside_checkpoint(cfg, [override])
    refuse_beside_checkpoint(cfg, ["model.dropout=0.1"])
    refuse_beside_checkpoint(OmegaConf.create({"init_from": None}), [override])


@pytest.mark.parametrize("group", ["match", "parametrisation"])
def test_what_changes_widths_or_weights_is_refused(group):
    with pytest.raises(UserError, match=f"^{group}=set: chooses widths or scales weights"):
        with_architecture(OmegaConf.create({"init_from": "gpt2", group: {"reference": "mamba"}}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": False, "d_input": 4}, f"its vocabulary has {VOCABULARY} tokens, and the data are 4 features"),
        ({"d_input": 21}, f"its vocabulary has {VOCABULARY} tokens, and the data have 21"),
        ({"d_output": 21}, f"its vocabulary has {VOCABULARY} tokens"),
        ({"length": 20}, r"data\.length=20: the model in .* has learned 19 positions"),
    ],
)
def test_data_of_another_shape_are_refused(gpt2, changes, message):
    checkpoint = Checkpoint.read(str(gpt2))
    fits = TokenWidths(VOCABULARY, VOCABULARY, 19)
    refuse_other_data(checkpoint, fits)
    with pytest.raises(UserError, match=message):
        refuse_other_data(checkpoint, fits._replace(**changes))


def field(**values: Any) -> Callable[[Path], None]:
    """Change fields of a checkpoint's ``config.json``."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def without_first_shard(folder: Path) -> None:
    min(folder.glob("*.safetensors")).unlink()


def pickled(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALLEST | {"architectures": ["GPT2LMHeadModel"]}))
    (folder / "pytorch_model.bin").touch()


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "there is no such folder"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "a broken config": (lambda folder: (folder / "config.json").write_text("{"), "its config.json cannot be read"),
    "a shard less": (without_first_shard, "lacks model-00001-of-"),
    "a shard elsewhere": (
        lambda folder: (folder / files.INDEX).write_text('{"weight_map": {"a": "../b"}}'),
        "does not list the files beside it",
    ),
    "pickles": (pickled, "holds its weights as pickles"),
    "another architecture": (
        field(architectures=["BloomForCausalLM"]),
        "architecture=BloomForCausalLM: .* known are MambaForCausalLM, ",
    ),
    "another activation": (field(activation_function="mish"), "activation_function=mish: .* here is gelu_new or "),
    "another attention": (field(scale_attn_by_inverse_layer_idx=True), "inverse_layer_idx=True: .* here is False"),
    "quantised": (field(quantization_config={"bits": 4}), "quantization_config={'bits': 4}: .* here is None"),
    "no width": (field(n_embd=None), "n_embd=missing: "),
    "a width of nothing": (field(n_embd=0), "n_embd=0: .* a whole number of at least 1"),
    "heads": (field(n_head=3), r"n_heads=3: must divide d_model=8"),
    "a layer more": (field(n_layer=2), r"it lacks transformer\.h\.1\.attn\.c_attn\.bias, .* and 9 more"),
    "another width of the file's": (field(n_inner=16), r"mlp\.c_fc\.weight \(8, 32\) of .* the \(16, 8\) that its"),
    "no positions": (field(n_positions=18), r"wpe\.weight \(19, 8\) of torch.float32 does not make the \(18, 8\)"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_checkpoint_that_cannot_be_used(gpt2, damage, message):
    damage(gpt2)
    with pytest.raises(UserError, match=message) as refused:
        pretrained.load(gpt2)
    assert len(str(refused.value).splitlines()) == 2


MAMBA = {"hidden_size": 8, "num_hidden_layers": 1}
LLAMA = MAMBA | {"num_attention_heads": 2, "intermediate_size": 8}
HYBRID = LLAMA | {"mamba_n_heads": 2, "mamba_d_ssm": 16}
ROPE = {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}, "max_position_embeddings": 9, "low_freq_factor": 0.5}
ROPE |= {"high_freq_factor": 4.0}
LONGROPE = LLAMA | {"rope_parameters": {"rope_type": "longrope"}, "max_position_embeddings": 9, "factor": 2.0}
LONGROPE |= {"long_factor": [2.0, 3.0], "short_factor": [2.0, 3.0]}
INEXPRESSIBLE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "a bias": ("MambaForCausalLM", MAMBA, {"use_bias": True}),
    "no bias of the convolution": ("FalconMambaForCausalLM", MAMBA, {"use_conv_bias": False}),
    "bounded steps": ("Mamba2ForCausalLM", MAMBA | {"num_heads": 2, "head_dim": 8}, {"time_step_limit": [0.0, 1.0]}),
    "heads that do not fit": ("Mamba2ForCausalLM", MAMBA | {"num_heads": 2, "head_dim": 8}, {"num_heads": 3}),
    "an activation": ("LlamaForCausalLM", LLAMA, {"hidden_act": "gelu"}),
    "frequencies by length": ("LlamaForCausalLM", LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "frequencies by layer": ("LlamaForCausalLM", LLAMA, {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}),
    "a part of each head": ("Qwen2ForCausalLM", LLAMA, {"partial_rotary_factor": 0.5}),
    "a window": ("Qwen2ForCausalLM", LLAMA, {"use_sliding_window": True}),
    "a base that is no number": ("LlamaForCausalLM", LLAMA, {"rope_theta": "1e4"}),
    "divisors by length": ("LlamaForCausalLM", LONGROPE, {"short_factor": [1.0]}),
    "bounds that cross": ("LlamaForCausalLM", LLAMA | ROPE | {"high_freq_factor": 1.0}, {"low_freq_factor": 1.0}),
    "a bias of Jamba": ("JambaForCausalLM", LLAMA, {"mamba_proj_bias": True}),
    "an offset beyond the period": ("JambaForCausalLM", LLAMA, {"attn_layer_offset": 8}),
    "a layer that is not there": ("BambaForCausalLM", HYBRID, {"attn_layer_indices": [1]}),
    "heads of another width": ("BambaForCausalLM", HYBRID, {"mamba_d_head": 4}),
    "an unknown layer": ("GraniteMoeHybridForCausalLM", HYBRID, {"layer_types": ["conv"]}),
    "other positions": ("GraniteMoeHybridForCausalLM", HYBRID, {"position_embedding_type": "alibi"}),
    "one expert a token": ("GraniteMoeHybridForCausalLM", HYBRID, {"num_experts_per_tok": 1}),
    "a bias of Falcon": ("FalconH1ForCausalLM", HYBRID, {"projectors_bias": True}),
}


@pytest.mark.parametrize(("architecture", "fields", "change"), INEXPRESSIBLE.values(), ids=INEXPRESSIBLE)
def test_a_field_that_cannot_be_expressed_is_named(architecture, fields, change):
    settings = FAMILIES[architecture].settings
    settings(Fields(fields, architecture, Path("folder")))
    [(name, value)] = change.items()
    with pytest.raises(UserError, match="and what can be expressed here is ") as refused:
        settings(Fields(fields | change, architecture, Path("folder")))
    assert str(refused.value).startswith(f"init_from: {name}={value}: {architecture} in folder has it")


def test_a_tensor_too_many(gpt2):
    path = min(gpt2.glob("*.safetensors"))
    save_file(load_file(path) | {"score.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"it has, and has no use for, score\.weight"):
        pretrained.load(gpt2)


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_of_an_earlier_version(gpt2, tied):
    """The one of GPT-2 on the hub: names without the body's, masks beside the weights, and a head that is the tied."""
    expected = pretrained.load(gpt2).state_dict()
    tensors = {}
    for path in gpt2.glob("*.safetensors"):
        tensors |= {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
        path.unlink()
    head = tensors["wte.weight"].clone() if tied else tensors["wte.weight"] + 1
    save_file(tensors | {"h.0.attn.bias": torch.ones(1, 1, 19, 19), "lm_head.weight": head}, gpt2 / files.WEIGHTS)
    if tied:
        model = pretrained.load(gpt2)
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    else:
        with pytest.raises(UserError, match=r"its lm_head\.weight is not transformer\.wte\.weight"):
            pretrained.load(gpt2)


def test_without_a_network_a_name_is_refused(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="and the hub does not give it") as refused:
        pretrained.load("seqlab-nobody/nothing")
    assert len(str(refused.value).splitlines()) == 2
