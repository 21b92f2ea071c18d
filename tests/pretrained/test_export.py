"""Runs as folders that ``transformers`` loads: the same logits, tokens and texts there, the same weights back here."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from seqlab import pretrained
from seqlab.commands import export as command
from seqlab.data.encoding import Vocabulary, plain
from seqlab.errors import UserError
from seqlab.pretrained import export
from seqlab.pretrained.card import Exported, card
from seqlab.pretrained.counterpart import counterpart
from seqlab.pretrained.tokenizer import tokenizer_of
from seqlab.runs.load import Trained, load_run
from support import Echo, built_model

VOCABULARY, LENGTH = 37, 11
SIZE = ("size.d_model=24", "size.n_layers=2", "size.n_heads=4", "size.d_ff=36")
ATTENTION = "model.mixers.attention"
MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "MambaForCausalLM": ("mamba", ("model.mixers.mamba.d_state=5", "model.mixers.mamba.expand=3")),
    "MambaForCausalLM, untied": ("mamba", ("model.tie_embeddings=false", "+model.head_bias=false")),
    "Mamba2ForCausalLM": ("mamba2", ("model.mixers.mamba2.n_groups=2", "model.mixers.mamba2.d_state=5")),
    "LlamaForCausalLM": ("transformer", (f"{ATTENTION}.n_kv_heads=2", f"{ATTENTION}.rotary_base=500")),
    "LlamaForCausalLM, biased": ("transformer", (f"{ATTENTION}.bias=true", f"{ATTENTION}.d_inner=40")),
    "MistralForCausalLM": ("transformer_window", (f"{ATTENTION}.window=3",)),
    "GPT2LMHeadModel": (
        "transformer_vanilla",
        ("model.tie_embeddings=true", "+model.feedforward.activation=gelu_tanh"),
    ),
    "GPT2LMHeadModel, untied": ("transformer_vanilla", ("+model.head_bias=false",)),
}


def written(model: torch.nn.Module, folder: Path) -> Path:
    """A model in a folder, with weights of which none is 0, 1 or alike."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    folder.mkdir()
    export.write_model(model, counterpart(model), folder)
    return folder


def tokens(vocabulary: int = VOCABULARY, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(vocabulary, (2, length), generator=torch.Generator().manual_seed(1))


def assert_close(ours: torch.Tensor, other: torch.Tensor) -> None:
    assert ours.shape == other.shape
    assert (ours - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_transformers_computes_the_same(name, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SHARD", "10KB" if "tied" in name else "5GB")
    model, overrides = MODELS[name]
    ours = built_model(f"model={model}", *SIZE, *overrides, d_input=VOCABULARY, length=LENGTH + 5).eval()
    folder = written(ours, tmp_path / "out")
    assert (folder / "model.safetensors.index.json").exists() == ("tied" in name)
    other = AutoModelForCausalLM.from_pretrained(folder)
    assert type(other).__name__ == name.partition(",")[0]
    assert other.dtype == torch.float32
    assert_close(ours(tokens()), other(tokens(), use_cache=False).logits)

    generated = other.generate(tokens(), max_new_tokens=5, do_sample=False)
    assert torch.equal(ours(generated)[:, LENGTH - 1 : -1].argmax(-1), generated[:, LENGTH:])

    weights, again = ours.state_dict(), pretrained.load(folder).state_dict()
    assert weights.keys() == again.keys()
    assert all(torch.equal(value, again[key]) for key, value in weights.items())


REFUSED = {
    "another mixer": (("delta_net",), "layers=DeltaNet and SwiGLU: no class of transformers that is known here has"),
    "no layers": (("linear",), "layers=none: no class of transformers"),
    "a mixer among others": (("hybrid", "size.n_layers=4"), "layers.3.mixer.inner=Attention: MambaForCausalLM, the "),
    "experts": (("transformer_moe",), "layers=Attention and MixtureOfExperts: no class"),
    "a bias of the head": (("transformer_vanilla",), r"head.bias=\(37,\): GPT2LMHeadModel, .*\nTrain it with "),
    "signs": (("mamba", "model.mixers.mamba.negative_eigenvalues=true"), "layers.0.mixer.inner.negative_eigenvalues="),
    "a part of a width": (
        ("mamba", "model.mixers.mamba.d_inner=36"),
        "layers.0.mixer.inner.d_inner=36: MambaFor",
    ),
    "the same of Mamba-2": (
        ("mamba2", "model.mixers.mamba2.d_inner=36"),
        "num_heads=4: Mamba2ForCausalLM of ",
    ),
    "less than a width": (
        ("transformer", "size.n_heads=5", f"{ATTENTION}.d_inner=30"),
        "num_attention_heads=5: Lla",
    ),
    "sines": (("transformer", "model.positions=sinusoidal"), "positions=SinusoidalPositions: LlamaForCausalLM, the ne"),
    "no residuals": (("transformer", "model.residual=false"), "layers.0.mixer.residual=False: LlamaForCausalLM, the"),
    "biases and a window": (("transformer_window", f"{ATTENTION}.bias=true"), "layers.0.mixer.inner.*Mistral"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_a_model_without_a_counterpart_is_refused(overrides, message):
    name, *others = overrides
    size = [setting for setting in SIZE if not any(other.startswith(setting.split("=")[0]) for other in others)]
    model = built_model(f"model={name}", *size, *others, d_input=VOCABULARY)
    with pytest.raises(UserError, match=f"^{message}") as refused:
        counterpart(model)
    assert len(str(refused.value).splitlines()) == 2


def test_what_a_parametrisation_set_is_seen():
    model = built_model("model=transformer", *SIZE)
    model.layers[1].mixer.inner.sharpness = 0.5
    with pytest.raises(UserError, match=r"^layers\.1\.mixer\.inner\.sharpness=0\.5: Llama.* has 1\.0 there"):
        counterpart(model)


def test_features_are_refused():
    with pytest.raises(UserError, match="model=features of a position and no tokens: no class of transformers"):
        counterpart(built_model("model=mamba", *SIZE, tokens=False))


def exported(job, to: Path, capsys) -> str:
    """Export a run by the command; returns what it said."""
    capsys.readouterr()
    assert command.main([f"run={job.folder}", f"to={to}"]) == 0
    return capsys.readouterr().err


@pytest.mark.parametrize(("data", "model"), [("tiny_shakespeare", "mamba"), ("ptb", "transformer_window")])
@torch.no_grad()
def test_a_run(trained, capsys, tmp_path, data, model):
    job, to = trained(data, model), tmp_path / "deep" / "out"
    assert f"{to} has the M" in exported(job, to, capsys)
    names = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in to.iterdir()} == names
    assert list(to.parent.iterdir()) == [to]
    assert len({path.stat().st_mode for path in to.iterdir()}) == 1

    ours, tokenizer = load_run(job.folder, torch.device("cpu")), AutoTokenizer.from_pretrained(to)
    text = "the dog sat on\nthe cat ."
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert torch.equal(ids[0], ours.data.encode(text))
    assert tokenizer.decode(ids[0]) == ours.data.decode(ids[0])
    assert_close(ours.model(ids), AutoModelForCausalLM.from_pretrained(to)(ids).logits)

    text, summary = (to / "README.md").read_text(), job.summary
    for figure in (summary["data_description"], summary["command"], f"| test loss | {summary['test']['loss']:.4f} |"):
        assert figure in text
    assert f"| parameters | {summary['parameters']:,} |\n| budget | 3 steps of " in text

    weights, again = ours.model.state_dict(), pretrained.load(to).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


TEXTS = {
    "character": "The cat\tsat, on\r\nthe mat.\né中😀 \u0301x  \ufeff ##a\r",
    "word": "the <unk> sat . <eos> ##x a<eos>b\n dog's\u00a0x n't , <unk>x\n\n\n the end \ufeff ' s",
}
WHITE = ["\r\n", "\n", " ", "  ", "\t", "\u00a0", "\x1d", "\x85", "\u2028", "\r", "new"]


@pytest.mark.parametrize("unit", TEXTS)
def test_the_tokenizer_is_the_vocabulary(unit, tmp_path):
    vocabulary = Vocabulary.of({"train": plain(TEXTS[unit])}, unit)
    tokenizer = tokenizer_of(vocabulary.symbols, unit)
    pieces = [*vocabulary.symbols, "\r\n"] if unit == "character" else [*vocabulary.symbols, *WHITE]

    @settings(max_examples=50, deadline=None, database=None)
    @given(st.lists(st.sampled_from(pieces)).map("".join), st.sampled_from(["", "\ufeff"]))
    def check(text, mark):
        ids = tokenizer.encode(mark + text, add_special_tokens=False).ids
        assert ids == vocabulary.encode(plain(mark + text)).tolist()
        assert tokenizer.decode(ids, skip_special_tokens=True) == vocabulary.decode(ids)

    check()
    assert tokenizer.get_vocab_size() == len(vocabulary.symbols)
    if unit == "character":
        with pytest.raises(Exception, match="Missing"):
            tokenizer.encode("Ж")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run=here", "to=missing: names the folder to write."),
        ("to=new", "run=missing: names the run whose model is exported."),
        ("run=here to=new into=x", "arguments=into=x: is no setting."),
        ("run=here to=full", "to=full: something is there already."),
        ("run=here to=full/file", "to=full/file: something is there already."),
        ("run=here to=full/file/new", "to=full/file/new: no file can be written there ("),
        ("run=here to=/proc/x", "to=/proc/x: no file can be written there ("),
        ("run=here to=new", "run=here: is no run folder: there is no such folder."),
    ],
)
def test_mistakes(monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert command.main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert len(error.splitlines()) == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("there", [True, False])
def test_what_fails_leaves_nothing(tmp_path, there):
    folder = tmp_path / "out"
    if there:
        folder.mkdir()
    with pytest.raises(KeyboardInterrupt), export.new_folder(folder) as temporary:
        (temporary / "file").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [folder] * there


def test_a_tokenizer_of_the_datas_own_is_copied(tmp_path, capsys):
    (tmp_path / "given.json").write_text("{}")
    data = SimpleNamespace(tokenizer_file=tmp_path / "given.json", unit="character")
    model = built_model("model=mamba", *SIZE)
    assert export.write_tokenizer(data, model, counterpart(model), tmp_path) == "AutoTokenizer"
    assert (tmp_path / "tokenizer.json").read_text() == "{}"


def test_bytes_and_the_end_of_a_document(tmp_path):
    """Byte number i of UTF-8 is token i, and the last one ends a document."""
    data = SimpleNamespace(unit="byte", vocabulary=[*map(chr, range(256)), "<|endoftext|>"], end_of_document=256)
    model = built_model("model=mamba", *SIZE, d_input=257)
    model.separate(256)
    trained = Trained(OmegaConf.create({}), data, model, 3)
    export.export(trained, tmp_path / "run", to := tmp_path / "out")
    tokenizer, text = AutoTokenizer.from_pretrained(to), TEXTS["character"]
    ids = tokenizer(text).input_ids
    assert "| documents | apart in training" in (to / "README.md").read_text()
    assert ids == [*plain(text).encode()]
    assert tokenizer.decode([*ids, 256], skip_special_tokens=True) == plain(text)
    assert tokenizer.decode(ids[-1:] + [*"é".encode()][:1]) == "\r\ufffd"
    assert tokenizer.eos_token_id == json.loads((to / "config.json").read_text())["eos_token_id"] == 256


def test_without_text_there_is_no_tokenizer(tmp_path, caplog):
    model = built_model("model=mamba", *SIZE)
    assert export.write_tokenizer(Echo(), model, counterpart(model), tmp_path) is None
    assert caplog.messages == ["There is no tokenizer in it: echo is no text whose tokens tokenizers has."]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("summary", "lines"),
    [
        ({"best_step": 7, "best_validation_loss": 2.5}, ["| test | not measured: the run is interrupted |"]),
        ({"best_step": 9}, ["| weights | of step 7; the figures of this run are those of step 9 |"]),
        ({"best_step": 7, "best_validation_loss": 1, "test": {"loss": None, "top1": 0.5}}, ["| test top1 | 0.5000 |"]),
        ({"data_description": "a|b"}, ["a\\|b (fingerprint None)", "nothing was measured"]),
        ({"command": "seqlab train 'x\ny'"}, ["\n    seqlab train 'x\n    y'\n"]),
    ],
)
def test_a_card_has_the_figures_that_there_are(summary, lines):
    text = card(Exported("MambaForCausalLM", 7, "a/b", None), {"status": "interrupted"} | summary)
    assert all(line in text for line in [*lines, "| started from | a/b |"])
    assert "Tokenizer" not in text
