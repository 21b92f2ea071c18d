"""Sampling text from a language model, token by token."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from seqlab.inference.sampling import Sampling

LINE_END = "\n"


class Text(Protocol):
    """A data object of text: what turns it into token ids and back."""

    def encode(self, text: str) -> Tensor:
        """The token ids of a text, (N,) int64; UserError for a symbol that the vocabulary lacks."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text that token ids stand for."""


def generate_tokens(
    model: nn.Module, prompt: Tensor, sampling: Sampling, *, max_new_tokens: int, seed: int
) -> Iterator[Tensor]:
    """The tokens that follow a prompt, one after the other.

    Args:
        model: a ``SequenceModel`` over tokens, in evaluation mode.
        prompt: (B, L) at least one token each.
        sampling: how a token is drawn.
        max_new_tokens: how many follow.
        seed: of the draws, which are made on the CPU: the same on every device, as far as the logits are.

    Returns:
        One (B,) on the CPU after the other.

    Raises:
        UserError: the model's learned positions end before the last token; nothing is generated then.
    """
    model.check_length(prompt.shape[1] + max_new_tokens - 1)  # the last one is never read
    return _tokens(model, prompt, sampling, max_new_tokens, seed)


def _tokens(model: nn.Module, prompt: Tensor, sampling: Sampling, max_new_tokens: int, seed: int) -> Iterator[Tensor]:
    device = model.embed.weight.device
    generator = torch.Generator().manual_seed(seed)
    logits, state = model.prefill(prompt.to(device), model.initial_state(len(prompt)))  # (B, V)
    for count in range(1, max_new_tokens + 1):
        token = sampling.draw(logits, generator)
        yield token
        if count < max_new_tokens:
            logits, state = model.step(token.to(device), state)


def generate_text(
    model: nn.Module,
    data: Text,
    prompt: str,
    sampling: Sampling,
    *,
    max_new_tokens: int = 200,
    seed: int = 0,
    stop: str | None = None,
) -> Iterator[str]:
    """The text that follows a prompt, in pieces as they are sampled.

    Args:
        model: trained on ``data``, in evaluation mode.
        data: a text corpus, whose vocabulary the model has.
        prompt: what to continue; an empty one is the start of a line.
        sampling, max_new_tokens, seed: as for ``generate_tokens``.
        stop: text that ends the sample, which it is not part of.

    Raises:
        UserError: the prompt holds a symbol that the vocabulary lacks, or more positions than the model has.
    """
    ids = data.encode(prompt)  # (L,)
    if not len(ids):
        ids = data.encode(LINE_END)
    tokens = generate_tokens(model, ids[None], sampling, max_new_tokens=max_new_tokens, seed=seed)
    return until(stop, pieces(data, int(ids[-1]), (int(token) for token in tokens)))


def pieces(data: Text, previous: int, tokens: Iterator[int]) -> Iterator[str]:
    """What each token adds to the text that came before it, a word with the space that parts it from the last."""
    for token in tokens:
        yield data.decode([previous, token])[len(data.decode([previous])) :]
        previous = token


def until(stop: str | None, texts: Iterator[str]) -> Iterator[str]:
    """A text in pieces up to where ``stop`` begins, whether that lies in one piece or across several.

    What may be the beginning of ``stop`` is held back until it is known.
    """
    held = ""
    for text in texts:
        held += text
        if stop and stop in held:
            held = held[: held.index(stop)]
            break
        sure = len(held) - (overlap(held, stop) if stop else 0)
        if sure:
            yield held[:sure]
            held = held[sure:]
    if held:
        yield held


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of ``stop``."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))
