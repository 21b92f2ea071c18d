"""Perplexity of a text against ``transformers``' own loop, one pass over the whole text, and closed formulas."""

import math

import pytest
import torch
from torch import nn

from seqlab import pretrained
from seqlab.errors import UserError
from seqlab.evaluation.perplexity import carried, sliding, windows
from seqlab.evaluation.texts import OfRun, OfTokenizer, tokens_of_split
from seqlab.training.evaluate import evaluate
from seqlab.training.precision import autocast
from support import LINES, built_model

CPU = torch.device("cpu")
V = 7


def some_tokens(count: int, vocabulary: int = V) -> torch.Tensor:
    return torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def loop_of_the_guide(model: nn.Module, tokens: torch.Tensor, max_length: int, stride: int) -> float:
    """The loop of the guide of ``transformers`` to perplexity: the sum of the losses, each window's by its mean.

    From the second window on, the guide counts one token less than the mean is over; here all are counted.
    """
    total, end_before = 0.0, 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + max_length, len(tokens))
        labels = tokens[begin:end].clone()
        labels[: -(end - end_before)] = -100
        loss = model(tokens[None, begin:end], labels=labels[None]).loss
        total += loss.double().item() * (labels[1:] != -100).sum().item()
        end_before = end
        if end == len(tokens):
            break
    return total


@pytest.mark.parametrize(("length", "stride"), [(12, 5), (12, 12), (63, 63), (40, 30)])
def test_sliding_windows_are_those_of_transformers(checkpoint, length, stride):
    other, folder = checkpoint("GPT2")
    tokens = torch.from_numpy(OfTokenizer(folder, 270).encode(LINES[:400]))
    found = sliding(pretrained.load(folder), tokens, length=length, stride=stride, batch_size=3)
    assert found.nats == pytest.approx(loop_of_the_guide(other, tokens, length + 1, stride), rel=1e-5)
    assert found.predicted == len(tokens) - 1


@pytest.mark.parametrize(("count", "length", "stride"), [(1, 5, 2), (5, 5, 2), (6, 5, 5), (17, 5, 2), (17, 5, 1)])
def test_every_token_is_predicted_once_with_the_context_that_is_stated(count, length, stride):
    predicted = {}
    for window in windows(count, length, stride):
        for place in range(window.size - window.new, window.size):
            predicted.setdefault(window.begin + place, []).append(place + 1)
    assert sorted(predicted) == list(range(count))
    assert all(len(contexts) == 1 for contexts in predicted.values())
    assert all(predicted[place] == [place + 1] for place in range(min(count, length)))
    assert {c[0] for place, c in predicted.items() if place >= length} <= set(range(length - stride + 1, length + 1))


@pytest.mark.parametrize("model", ["mamba", "mamba2", "lstm"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_a_carried_state_is_one_pass_over_the_whole_text(model, dtype, tolerance):
    model = built_model(f"model={model}", "size=tiny").to(dtype).eval()
    tokens = some_tokens(90)
    with torch.no_grad():
        logits = model(tokens[None, :-1])[0].double()
        whole = nn.functional.cross_entropy(logits, tokens[1:], reduction="sum").item()
    for length in (7, 89):
        assert carried(model, tokens, length=length).nats == pytest.approx(whole, rel=tolerance)
    cut = sliding(model, tokens, length=7, stride=7, batch_size=4).nats
    assert cut != pytest.approx(whole, rel=1e-5)  # what is before a window matters
    assert sliding(model, tokens, length=89, stride=1, batch_size=4).nats == pytest.approx(whole, rel=tolerance)


@pytest.mark.parametrize(("model", "apart"), [("mamba", False), ("transformer", False), ("mamba", True)])
def test_windows_end_to_end_are_the_test_of_a_run(word_data, model, apart):
    model = built_model(f"model={model}", "size=tiny", d_input=word_data.d_input, length=word_data.length).eval()
    if apart:
        model.separate(word_data.vocabulary.index("<eos>"))
    own = evaluate(model, word_data, "test", batch_size=4, device=CPU, autocast=lambda: autocast(CPU, "float32"))
    tokens = tokens_of_split(word_data, "test")
    found = sliding(model, tokens, length=word_data.length, stride=word_data.length, batch_size=5)
    assert found.nats / found.predicted == pytest.approx(own.metrics["loss"], rel=1e-6)
    assert found.context.endswith("none of another document") == apart
    if apart:
        with pytest.raises(UserError, match=r"^window=carried: nothing flows from one document to the next"):
            carried(model, tokens, length=8)


def test_figures_of_a_model_that_knows_nothing(word_data):
    """Each of V words is as likely: perplexity V, whatever the text; the first word is not predicted, nor counted."""
    model = built_model("model=mamba", "size=tiny", d_input=word_data.d_input).eval()
    nn.init.zeros_(model.head.weight)
    texts, text = OfRun(word_data), "the cat sat on a strange mat\n"
    tokens = torch.from_numpy(texts.encode(text))
    for score in (
        sliding(model, tokens, length=4, stride=2, batch_size=2),
        carried(model, tokens, length=4),
    ):
        figures = score.figures(texts, tokens, text)
        assert (figures["tokens"], figures["words"], figures["bytes"]) == (7, 6, len(text) - 3)
        assert figures["unknown_tokens"] == 2
        assert figures["perplexity_per_token"] == pytest.approx(word_data.d_input, rel=1e-6)
        assert figures["perplexity_per_word"] == pytest.approx(word_data.d_input ** (7 / 6), rel=1e-6)
        assert figures["bits_per_byte"] == pytest.approx(7 * math.log2(word_data.d_input) / (len(text) - 3), rel=1e-6)


def test_what_cannot_be_measured_is_refused():
    attention = built_model("model=transformer", "size=tiny").eval()
    with pytest.raises(UserError, match="window=carried: the state of this model grows"):
        carried(attention, some_tokens(30), length=8)
    with pytest.raises(UserError, match="stride=9: must lie between 1 and length=8"):
        sliding(attention, some_tokens(30), length=8, stride=9, batch_size=1)
    learned = built_model("model=transformer_vanilla", "size=tiny", length=16).eval()
    with pytest.raises(UserError, match="a sequence of 20 is past the 16 positions"):
        sliding(learned, some_tokens(30), length=20, stride=10, batch_size=1)
    windowed = built_model("model=transformer_window", "size=tiny", "model.mixers.attention.window=4").eval()
    carried(windowed, some_tokens(30), length=8)
