"""Mixers and feed-forwards that repeat over the depth, and the hybrids that are shipped."""

import re
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf

from seqlab.errors import UserError, under
from seqlab.models import SequenceModel, state_bytes
from seqlab.models.feedforward import MLP, SwiGLU
from seqlab.models.mixers import Attention, Dense, Mamba
from seqlab.models.mixers.attention import Cache
from seqlab.models.mixers.mamba import State
from seqlab.runs.build import shared_settings
from support import built_model, compose_config

D_MODEL, VOCABULARY = 16, 11
MIXERS = {"dense": Dense, "attention": partial(Attention, n_heads=2), "mamba": Mamba}


def build(pattern: list[str], feedforward, n_layers: int) -> SequenceModel:
    torch.manual_seed(0)
    widths = {"tokens": True, "d_input": VOCABULARY, "d_output": VOCABULARY, "max_length": 64, "d_model": D_MODEL}
    return SequenceModel(**widths, n_layers=n_layers, pattern=pattern, mixers=MIXERS, feedforward=feedforward).eval()


def halves(model: SequenceModel) -> list[tuple[str, str | None]]:
    """The kinds of mixer and feed-forward in each layer."""
    return [
        (type(layer.mixer.inner).__name__, layer.feedforward and type(layer.feedforward.inner).__name__)
        for layer in model.layers
    ]


MLP_16, SWIGLU_16 = partial(MLP, d_ff=16), partial(SwiGLU, d_ff=16)


class TestFeedforwards:
    def test_repeat_over_the_depth_beside_the_mixers(self):
        model = build(["mamba", "attention", "dense"], [None, MLP_16], 5)
        assert halves(model) == [
            ("Mamba", None),
            ("Attention", "MLP"),
            ("Dense", None),
            ("Mamba", "MLP"),
            ("Attention", None),
        ]

    def test_of_two_kinds_train(self):
        model = build(["dense"], [SWIGLU_16, MLP_16], 3)
        assert [kind for _, kind in halves(model)] == ["SwiGLU", "MLP", "SwiGLU"]
        model(torch.randint(VOCABULARY, (2, 5))).square().sum().backward()
        assert all(p.grad.any() for p in model.parameters())

    def test_what_they_add_is_divided_by_how_many_add(self):
        """Three mixers and one feed-forward: GPT-2's scale counts the four that there are."""
        alone, deep = build(["attention"], None, 1), build(["attention"], [MLP_16, None, None], 3)
        first, fourth = (model.layers[0].mixer.inner.out_proj.weight for model in (alone, deep))
        torch.testing.assert_close(first, 2 * fourth)

    def test_one_for_all_is_a_list_of_one(self):
        tokens = torch.randint(VOCABULARY, (2, 5))
        assert torch.equal(build(["dense"], MLP_16, 3)(tokens), build(["dense"], [MLP_16], 3)(tokens))

    @pytest.mark.parametrize(
        ("feedforward", "message"),
        [
            (
                [MLP_16, None, SWIGLU_16],
                r"model\.feedforward=\['MLP', None, 'SwiGLU'\]: 3 .* n_layers=2.*\n.*size\.n_layers=3 ",
            ),
            ([], r"model\.feedforward=\[\]: .*\nWrite null"),
        ],
    )
    def test_that_cannot_be(self, feedforward, message):
        cfg = OmegaConf.create({"size": {"n_layers": 2}, "model": {"n_layers": 2, "feedforward": None}})
        with pytest.raises(UserError, match=message), shared_settings(cfg), under("model", cfg.model):
            build(["dense"], feedforward, 2)

    @pytest.mark.parametrize("name", ["mamba", "transformer_moe", "lstm", "hybrid_jamba", "min_gru"])
    def test_no_layer_is_no_model_of_that_name(self, name):
        with pytest.raises(UserError) as caught:
            built_model(f"model={name}", "size.n_layers=0")
        assert re.fullmatch(r"size\.n_layers=0: leaves no layer.*\nSet size\.n_layers=1 or more.*", str(caught.value))

    def test_a_model_without_layers_has_none(self):
        assert halves(build([], [MLP_16, None], 0)) == []


class TestStates:
    """A recurrent state beside keys and values."""

    @torch.no_grad()
    def test_stand_side_by_side(self):
        model = build(["mamba", "attention"], None, 4)
        _, state = model.prefill(torch.randint(VOCABULARY, (3, 20)), model.initial_state(3))
        _, state = model.step(torch.randint(VOCABULARY, (3,)), state)
        assert [type(layer) for layer in state.layers] == [State, Cache, State, Cache]
        assert [layer.length for layer in state.layers[1::2]] == [21, 21]
        assert state.layers[0].ssm.shape == (3, 2 * D_MODEL, 16)

    def test_only_the_attention_grows(self):
        model = build(["mamba", "mamba", "attention"], None, 3)
        assert state_bytes(model, 60) - state_bytes(model, 20) == 40 * 2 * D_MODEL * 4


DELTA_RULES = "delta_net", "gated_delta_net", "kimi_delta", "gated_delta_net2"
EACH = {name: name for name in ("mamba", "mamba2", "mamba3", "gru", "lstm", "min_gru", "mlstm", "m2rnn", *DELTA_RULES)}
PATTERNS = [
    *("mamba2,mamba3,attention", "gru,min_gru,mamba", "attention,lstm,mamba2"),
    *("gated_delta_net,mamba3,kimi_delta+attention", "delta_net,m2rnn+mlstm,gated_delta_net2"),
]


class TestWhatIsShipped:
    def test_hybrid_is_mamba_with_another_mixer_in_four(self):
        hybrid, mamba = compose_config("model=hybrid").model, compose_config("model=mamba", "size=small").model
        assert hybrid.pattern == ["mamba", "mamba", "mamba", "attention"]
        hybrid.pattern, hybrid.mixers = ["mamba"], {"mamba": hybrid.mixers.mamba}
        assert hybrid == mamba

    def test_hybrid_describes_each_mixer_as_its_own_model_does(self):
        mixers = compose_config("model=hybrid").model.mixers
        assert set(mixers) == {"attention", *EACH}
        for name, model in {"attention": "transformer", **EACH}.items():
            assert mixers[name] == compose_config(f"model={model}", "size=small").model.mixers[name]

    @pytest.mark.parametrize("pattern", PATTERNS)
    def test_any_pattern_of_them_trains_and_generates(self, pattern):
        smallest = ["size.d_model=16", "size.n_heads=2", "size.n_layers=3"]
        own = f"model.pattern=[{pattern}]", "model.embedding_std=1.0"
        model = built_model("model=hybrid", *own, *smallest, d_input=VOCABULARY, length=32).eval()
        tokens = torch.randint(VOCABULARY, (2, 32))
        whole = model(tokens)
        whole.square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())
        first, state = model.prefill(tokens[:, :20], model.initial_state(2), every=True)
        outputs = [first]
        for position in range(20, 32):
            y, state = model.step(tokens[:, position], state)
            outputs.append(y[:, None])
        difference = torch.cat(outputs, dim=1) - whole
        assert difference.abs().max() <= 4e-6 * whole.abs().max()

    def test_hybrid_fits_by_itself(self):
        assert compose_config("model=hybrid").size.n_layers == 4
        assert compose_config("model=hybrid", "size=deep").size.n_layers == 12
        assert compose_config("model=hybrid_jamba").size.n_layers == 8

    def test_jamba_is_laid_out_as_its_authors_have_it(self):
        """Against the configuration that transformers gives a Jamba: its kinds of layers, and its experts."""
        from transformers import JambaConfig

        theirs, ours = JambaConfig(num_hidden_layers=8), compose_config("model=hybrid_jamba").model
        assert list(ours.pattern) == theirs.layers_block_type
        experts = [int(getattr(feedforward, "n_experts", 1)) for feedforward in ours.feedforward]
        assert experts * 4 == theirs.layers_num_experts
        assert ours.feedforward[1].top_k == theirs.num_experts_per_tok
        assert not ours.mixers.attention.rotary

    def test_nemotron_is_laid_out_as_its_authors_have_it(self):
        """Against the pattern in the configuration of Nemotron 3 Nano, in the words that transformers has for it."""
        from transformers import NemotronHConfig

        published = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
        theirs = NemotronHConfig(hybrid_override_pattern=published).layers_block_type
        ours = compose_config("model=hybrid_nemotron").model
        words = {"mamba2": "linear_attention", "attention": "full_attention"}
        halves = []
        for mixer, experts in zip(ours.pattern, ours.feedforward, strict=True):
            halves += [words[mixer], *(["moe"] if experts else [])]
        assert theirs[: 5 * len(halves)] == 5 * halves
        assert not ours.mixers.attention.rotary

    def test_qwen_is_laid_out_as_its_authors_have_it(self):
        """Against the kinds of layers that transformers gives a Qwen3-Next by default."""
        from transformers import Qwen3NextConfig

        words = {"gated_delta_net": "linear_attention", "attention": "full_attention"}
        ours = [words[name] for name in compose_config("model=hybrid_qwen").model.pattern]
        theirs = Qwen3NextConfig().layer_types
        assert theirs == ours * (len(theirs) // len(ours))

    def test_a_size_that_is_too_shallow_is_refused(self, train, capsys):
        assert train("model=hybrid", "size=tiny").status == 2
        assert "4 mixers do not fit into n_layers=2" in capsys.readouterr().err
