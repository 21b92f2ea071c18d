"""Perplexity of one long text: by windows that slide over it, or with the model's state carried on.

The first token of a text is context alone. What the others are predicted from differs, and decides the figure:

- ``sliding``: windows of ``length`` tokens, each ``stride`` further than the one before, predict what none before has:
  all but the first ``stride`` tokens each, after at least ``length - stride + 1`` others. With a stride of ``length``
  windows lie end to end, as in a run's own test. The windows of M tokens in the guide of ``transformers`` to
  perplexity, with the predicted tokens in them, are those of ``length`` M - 1.
- ``carried``: every token after all that are before it. Windows follow one another and the state goes from each to the
  next, so their length changes nothing but rounding.

Symbols: N tokens of the text, L length of a window, P predicted tokens.
"""

import math
from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqlab.errors import UserError
from seqlab.evaluation.scoring import LOGITS, losses_of_logits, token_losses
from seqlab.evaluation.texts import Texts
from seqlab.models.counting import state_bytes

Progress = Callable[[int], None]
"""Told of the number of tokens newly predicted."""


class Window(NamedTuple):
    """Inputs from ``begin`` on, of which the last ``new`` predict tokens for the first time."""

    begin: int
    size: int
    new: int


class TextScore(NamedTuple):
    """The loss of a text in nats, of how many tokens it is the sum, and in words after how many others each came."""

    nats: float
    predicted: int
    context: str

    def figures(self, texts: Texts, tokens: Tensor, text: str, size: int | None = None) -> dict[str, float]:
        """The figures that are quoted.

        Args:
            texts: made the tokens.
            tokens: (N,) int64.
            text: what they stand for. Its bytes and words are counted without those of the first token.
            size: its bytes without these, if the tokens do not stand for every byte.
        """
        rest = text.removeprefix(texts.decode(tokens[:1].tolist()))
        size, words = len(rest.encode()) if size is None else size, len(rest.split())
        unknown = 0 if texts.unknown is None else int((tokens[1:] == texts.unknown).sum())
        return {
            "perplexity_per_token": _perplexity(self.nats, self.predicted),
            "perplexity_per_word": _perplexity(self.nats, words),
            "bits_per_byte": self.nats / math.log(2) / size if size else math.nan,
            "loss": self.nats / self.predicted,
            "tokens": self.predicted,
            "words": words,
            "bytes": size,
            "unknown_tokens": unknown,
        }


def _perplexity(nats: float, count: int) -> float:
    try:
        return math.exp(nats / count)
    except (OverflowError, ZeroDivisionError):
        return math.inf


def windows(count: int, length: int, stride: int) -> list[Window]:
    """The windows in which each of ``count`` tokens after the first is predicted once."""
    found, done, begin = [], 0, 0
    while done < count:
        end = min(begin + length, count)
        found.append(Window(begin, end - begin, end - done))
        done, begin = end, begin + stride
    return found


def sliding(
    model: nn.Module,
    tokens: Tensor,
    *,
    length: int,
    stride: int,
    batch_size: int,
    on_tokens: Progress = lambda count: None,
) -> TextScore:
    """The loss of a text by sliding windows.

    Args:
        model: a ``SequenceModel`` over tokens, in evaluation mode.
        tokens: (N,) int64, at least two.
        length: tokens in a window.
        stride: how far each window is from the one before, 1 to ``length``.
        batch_size: windows at a time; it changes the speed alone.
        on_tokens: called after each batch.

    Raises:
        UserError: ``stride`` or ``length`` does not fit, or the model has too few learned positions.
    """
    if not 1 <= stride <= length:
        rule = f"must lie between 1 and length={length}, so that no token is left out"
        raise UserError("stride", stride, rule, f"For example stride={max(1, length // 2)}")
    model.check_length(min(length, len(tokens) - 1))
    device = model.embed.weight.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    every = windows(len(tokens) - 1, length, stride)
    for (size, new), alike in groupby(every, key=lambda window: window[1:]):
        begins = torch.tensor([window.begin for window in alike])
        for some in begins.split(batch_size):
            places = some[:, None] + torch.arange(size + 1)  # (B, L + 1)
            piece = tokens[places].to(device)
            ends = torch.arange(len(some))[:, None] * size + torch.arange(size - new, size)  # (B, new)
            losses, _ = token_losses(model, piece[:, :-1], ends.flatten().to(device), piece[:, -new:].flatten())
            total += losses.sum(dtype=torch.float64)
            on_tokens(new * len(some))
    apart = "; none of another document" if joins_documents(model, tokens) else ""
    return TextScore(total.item(), len(tokens) - 1, _of_windows(every, length, stride) + apart)


def joins_documents(model: nn.Module, tokens: Tensor) -> bool:
    """Whether tokens (N,) are several documents for a model that keeps documents apart."""
    separator = getattr(model, "separator", None)
    return separator is not None and bool((tokens[1:-1] == separator).any())


def _of_windows(every: list[Window], length: int, stride: int) -> str:
    first, rest = every[0].new, sum(window.new for window in every[1:])
    if not rest:
        return f"{first:,} tokens after 1 to {first:,} others, in one window"
    least = length - stride + 1
    others = f"{rest:,} after {least:,} to {length:,}"
    return f"{first:,} tokens after 1 to {first:,} others, {others} (windows of {length:,}, stride {stride:,})"


def carried(model: nn.Module, tokens: Tensor, *, length: int, on_tokens: Progress = lambda count: None) -> TextScore:
    """The loss of a text with the state carried on from one window to the next.

    Args:
        model: a ``SequenceModel`` over tokens whose state stops growing, in evaluation mode.
        tokens: (N,) int64, at least two.
        length: tokens in a window; fewer are read at a time where the vocabulary is large.
        on_tokens: called after each window.

    Raises:
        UserError: as ``refuse_carrying``.
    """
    refuse_carrying(model, tokens)
    device = model.embed.weight.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    state = model.initial_state(1)
    size = max(1, min(length, LOGITS // model.head.out_features))
    with torch.inference_mode():
        for inputs, targets in zip(tokens[:-1].split(size), tokens[1:].split(size), strict=True):
            logits, state = model.prefill(inputs[None].to(device), state, every=True)  # (1, L, V)
            total += losses_of_logits(logits[0], targets.to(device))[0].sum(dtype=torch.float64)
            on_tokens(len(inputs))
    predicted = len(tokens) - 1
    context = f"{predicted:,} tokens after 1 to {predicted:,} others (state carried on, windows of {size:,})"
    return TextScore(total.item(), predicted, context)


def refuse_carrying(model: nn.Module, tokens: Tensor) -> None:
    """Refuse to carry on a state that tokens (N,) enlarge, as attention's cache, or that documents begin anew.

    Raises:
        UserError: they do.
    """
    if joins_documents(model, tokens):
        rule = "nothing flows from one document to the next in this model, and a state that is carried on would"
        raise UserError("window", "carried", rule, "Set window=sliding")
    count = len(tokens) - 1
    size = state_bytes(model, count)
    if size is None or size != state_bytes(model, 2 * count):
        rule = "the state of this model grows with the text, so that nothing of constant size can be carried on"
        raise UserError("window", "carried", rule, f"Set window=sliding; length={count} reads all of it as one window")
