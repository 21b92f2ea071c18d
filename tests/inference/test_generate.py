"""Sampling token by token equals the full pass; text comes in pieces and ends at the stop string."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqlab.data.encoding import Vocabulary
from seqlab.errors import UserError
from seqlab.inference.generate import generate_text, generate_tokens, pieces, until
from seqlab.inference.sampling import Sampling
from seqlab.models import SequenceModel
from support import architectures, built_model, depth

VOCABULARY, LONGEST = 23, 40
SMALLEST = ["size.d_model=16", "size.n_heads=2", "size.d_ff=40"]
GREEDY = Sampling(temperature=0)


def build(name: str, vocabulary: int = VOCABULARY) -> SequenceModel:
    """A small model whose likeliest token depends on what came before: a tied head would repeat its input."""
    own = f"size.n_layers={depth(name)}", "model.embedding_std=1.0", "model.tie_embeddings=false"
    return built_model(f"model={name}", *SMALLEST, *own, d_input=vocabulary, length=LONGEST).eval()


def prompt(length: int = 7, batch: int = 3) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


def sampled(model: SequenceModel, count: int, sampling: Sampling = GREEDY, seed: int = 0) -> torch.Tensor:
    return torch.stack(list(generate_tokens(model, prompt(), sampling, max_new_tokens=count, seed=seed)), dim=1)


@pytest.mark.parametrize("name", architectures())
@torch.no_grad()
def test_greedy_is_the_full_passs_argmax(name):
    """Token for token, the whole text through the model at once."""
    model, text = build(name), prompt()
    tokens = sampled(model, 24)
    assert len(tokens.unique()) > 1
    logits = model(torch.cat([text, tokens], dim=1))[:, text.shape[1] - 1 : -1]
    best = logits.topk(2).values
    assert (best[..., 0] - best[..., 1]).min() > 1e-4  # so that rounding decides nothing
    assert torch.equal(tokens, logits.argmax(dim=-1))


@torch.no_grad()
def test_draws_follow_the_full_passs_probabilities():
    """With the same generator, a token at a time."""
    model, text, sampling = build("transformer"), prompt(), Sampling(0.9, top_k=9, top_p=0.9)
    generator = torch.Generator().manual_seed(4)
    for token in sampled(model, 20, sampling, seed=4).unbind(dim=1):
        assert torch.equal(token, sampling.draw(model(text)[:, -1], generator))
        text = torch.cat([text, token[:, None]], dim=1)


def test_the_seed_decides():
    model = build("mamba")
    a, b, c = (sampled(model, 20, Sampling(), seed) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_learned_positions_end_before_anything_is_generated():
    """The last token needs no position: nothing is read after it."""
    model = build("transformer_vanilla")
    assert sampled(model, LONGEST - 7 + 1).shape == (3, LONGEST - 7 + 1)
    with pytest.raises(UserError, match=f"sequence of {LONGEST + 1} is past the {LONGEST} positions"):
        generate_tokens(model, prompt(), GREEDY, max_new_tokens=LONGEST - 7 + 2, seed=0)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.5, top_k=3, top_p=0.9)], ids=["all", "some"])
def test_logits_that_are_not_finite_are_refused(sampling):
    model = build("mamba").bfloat16()
    tokens = generate_tokens(model, prompt(), sampling, max_new_tokens=3, seed=0)
    next(tokens)
    with torch.no_grad():
        model.embed.weight[:, 0] = torch.nan
    with pytest.raises(UserError, match=r"^logits=NaN or infinity: .*\nUse precision=float32"):
        next(tokens)


class TestText:
    def test_is_the_tokens_as_text(self, word_data):
        model = build("lstm", word_data.d_input)
        ids = word_data.encode("the cat")
        tokens = torch.cat(list(generate_tokens(model, ids[None], Sampling(), max_new_tokens=30, seed=3)))
        text = "".join(generate_text(model, word_data, "the cat", Sampling(), max_new_tokens=30, seed=3))
        assert "the cat" + text == word_data.decode(torch.cat([ids, tokens]))
        assert "\n" in text and " " in text

    def test_stops(self, word_data):
        model = build("lstm", word_data.d_input)
        whole, stopped = (
            "".join(generate_text(model, word_data, "the", Sampling(), max_new_tokens=60, seed=3, stop=stop))
            for stop in (None, "\n")
        )
        assert whole.count("\n") >= 1
        assert stopped == whole.partition("\n")[0]

    @pytest.mark.parametrize("empty", ["", "  "])
    def test_nothing_is_the_start_of_a_line(self, word_data, empty):
        model = build("lstm", word_data.d_input)
        start, line = (
            "".join(generate_text(model, word_data, text, GREEDY, max_new_tokens=9)) for text in (empty, "\n")
        )
        assert start == line

    def test_unknown_symbols(self, corpus, word_data):
        model = build("lstm", word_data.d_input)
        unknown, zebra = (
            "".join(generate_text(model, word_data, text, GREEDY, max_new_tokens=9)) for text in ("<unk>", "zebra")
        )
        assert unknown == zebra


class Documents:
    """Bytes, of which 22 ends a document."""

    end_of_document = separator = 22
    ends = frozenset({22})

    def encode(self, text):
        return torch.tensor([ord(symbol) % VOCABULARY for symbol in text], dtype=torch.int64)

    def decode(self, ids):
        return "".join(chr(97 + i) for i in ids)


def test_a_sample_is_of_one_document():
    """It ends before the token that ends one, and sees of the prompt what follows the last of them."""
    model, data = build("lstm"), Documents()
    start = "".join(generate_text(model, data, "", GREEDY, max_new_tokens=9))
    end = chr(22 + 4 * VOCABULARY)
    assert start == "".join(generate_text(model, data, f"ab{end}", GREEDY, max_new_tokens=9)) != ""
    with torch.no_grad():
        model.head.bias[22] = 1e3
    assert "".join(generate_text(model, data, "ab", GREEDY, max_new_tokens=9)) == ""


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 11))
def test_pieces_add_up(ids, cut):
    """Words one space apart, line ends without spaces, wherever the prompt ends."""

    class Data:
        decode = Vocabulary(["a", "bc", "<eos>", "<unk>", "."], "word").decode

    before, after = ids[:cut], ids[cut:]
    assert Data.decode(before) + "".join(pieces(Data, before[-1], iter(after))) == Data.decode(ids)


@pytest.mark.parametrize("together", [False, True], ids=["each alone", "all or none"])
def test_pieces_are_whole_characters(together):
    """Tokens of one byte; where bytes are no text, libraries replace each of them, or all of a row of tokens."""
    text = "aé€😀😀éb"

    class Data:
        @staticmethod
        def decode(ids):
            whole = bytes(ids).decode(errors="replace")
            return "\ufffd" * len(ids) if together and "\ufffd" in whole else whole

    found = list(pieces(Data, ord(" "), iter(text.encode())))
    assert "".join(found) == text
    assert found == list(text)
    cut = list(pieces(Data, ord(" "), iter(text.encode()[:2])))
    assert cut[0] == "a" and set(cut[1]) == {"\ufffd"}  # what ends within a character is shown


TEXTS = st.text("ab\n", max_size=14)


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=8), st.text("ab\n", min_size=1, max_size=4))
def test_until_ends_where_the_stop_begins(texts, stop):
    assert "".join(until(stop, iter(texts))) == "".join(texts).partition(stop)[0]


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=8), st.text("ab\n", min_size=1, max_size=4))
def test_until_holds_back_no_more_than_it_must(texts, stop):
    """All is out but an ending that may still become the stop."""
    given_so_far, out = "", ""

    def source():
        nonlocal given_so_far
        for text in texts:
            given_so_far += text
            yield text
            held = given_so_far.removeprefix(out)
            assert stop.startswith(held) and held != stop

    for piece in until(stop, source()):
        out += piece


def test_until_reads_no_token_after_the_stop():
    source = iter(["a", "b", "c"])
    assert list(until("b", source)) == ["a"]
    assert next(source) == "c"
    assert list(until(None, iter(["a", "", "b"]))) == ["a", "b"]
