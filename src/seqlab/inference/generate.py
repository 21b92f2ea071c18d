"""Sampling text from a language model, token by token.

Symbols: B batch, L length, N tokens of a text, V vocabulary size.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import takewhile
from typing import Protocol

import torch
from torch import Tensor, nn

from seqlab.errors import UserError
from seqlab.inference.captured import graphs_of
from seqlab.inference.prompt import prefill
from seqlab.inference.sampling import Sampling, uniforms
from seqlab.inference.steps import captured_step, in_step_behind

LINE_END = "\n"
INCOMPLETE = "\ufffd"
"""What bytes that are no whole character are decoded to."""
MOST_BYTES = 4
"""Of a character in UTF-8."""
LONGEST = 32
"""Tokens that are decoded together, where each holds a part of a character."""


class Text(Protocol):
    """A data object of text: what turns it into token ids and back.

    If it has ``ends``, a set of ids, a sample ends before the first of them.
    """

    def encode(self, text: str) -> Tensor:
        """The token ids of a text, (N,) int64.

        Raises:
            UserError: a symbol is not in the vocabulary.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """The text that token ids stand for; U+FFFD for the bytes of a character that is not whole."""


def generate_tokens(
    model: nn.Module, prompt: Tensor, sampling: Sampling, *, max_new_tokens: int, seed: int
) -> Iterator[Tensor]:
    """Sample the tokens that follow a prompt.

    Args:
        model: a ``SequenceModel`` over tokens, in evaluation mode.
        prompt: (B, L) token ids, L at least 1.
        sampling: how a token is drawn.
        max_new_tokens: number of tokens to sample.
        seed: of the draws, which are made on the CPU: equal logits give equal tokens on every device.

    Returns:
        An iterator over the new tokens, (B,) int64 each, on the CPU.

    Raises:
        UserError: the model has too few learned positions; raised before anything is sampled. From the iterator: there
            is nothing to draw from, since the logits are not finite.
    """
    model.check_length(prompt.shape[1] + max_new_tokens - 1)  # the last token is not fed back
    return map(partial(_refuse_none, model.embed), _tokens(model, prompt, sampling, max_new_tokens, seed))


def _refuse_none(embed: nn.Embedding, token: Tensor) -> Tensor:
    """The tokens (B,) that ``Sampling.choose`` drew, on the CPU.

    Raises:
        UserError: one is no token.
    """
    if (token >= embed.num_embeddings).any():
        half = embed.weight.dtype in (torch.bfloat16, torch.float16)
        remedy = "Use precision=float32" if half else "Name a run whose training did not diverge"
        raise UserError("logits", "NaN or infinity", "no token can be drawn from them", remedy)
    return token


def _tokens(model: nn.Module, prompt: Tensor, sampling: Sampling, max_new_tokens: int, seed: int) -> Iterator[Tensor]:
    device = model.embed.weight.device
    generator = torch.Generator().manual_seed(seed)
    logits, state = prefill(model, prompt)  # (B, V)
    rows = uniforms(max_new_tokens, len(prompt), generator, device)
    token = sampling.choose(logits, next(rows))
    graphs = graphs_of(model) if max_new_tokens > 1 else None
    if graphs is not None:
        with captured_step(model, graphs, sampling, token, state) as step:
            yield from in_step_behind(token, map(step, rows))
        return
    yield token.cpu()
    for row in rows:
        logits, state = model.step(token, state)
        token = sampling.choose(logits, row)
        yield token.cpu()


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
    """Sample the text that follows a prompt, in pieces of one token or more.

    Args:
        model: trained on ``data``, in evaluation mode.
        data: the text corpus, whose vocabulary the model uses.
        prompt: text to continue; an empty one stands for the start of a document, or of a line where data have no
            token that ends a document. A sample ends before such a token.
        sampling, max_new_tokens, seed: as for ``generate_tokens``.
        stop: text at which the sample ends; it is not returned.

    Raises:
        UserError: a symbol of the prompt is not in the vocabulary, or the model has too few learned positions.
    """
    end = getattr(data, "end_of_document", None)
    ids = data.encode(prompt)  # (L,)
    if getattr(data, "separator", None) is not None and (ids == end).any():
        ids = ids[int((ids == end).nonzero()[-1]) :]  # what is before is another document
    if not len(ids):
        ids = data.encode(LINE_END) if end is None else torch.tensor([end])
    tokens = generate_tokens(model, ids[None], sampling, max_new_tokens=max_new_tokens, seed=seed)
    ends = getattr(data, "ends", ())
    return until(stop, pieces(data, int(ids[-1]), takewhile(lambda token: token not in ends, map(int, tokens))))


def pieces(data: Text, previous: int, tokens: Iterator[int]) -> Iterator[str]:
    """The text that each token adds after the one before it; a word comes with its leading space.

    Where tokens hold parts of a character, the piece waits for the others.
    """
    seen, shown, waited = [previous], data.decode([previous]), 0
    for token in tokens:
        seen.append(token)
        text = data.decode(seen)
        if text.endswith(INCOMPLETE) and waited < MOST_BYTES - 1:
            waited += 1
            continue
        yield text[len(shown) :]
        alone, waited = data.decode([token]), 0
        begins_anew = INCOMPLETE not in alone or len(seen) > LONGEST
        seen, shown = ([token], alone) if begins_anew else (seen, text)
    if waited:
        yield data.decode(seen)[len(shown) :]


def until(stop: str | None, texts: Iterator[str]) -> Iterator[str]:
    """The pieces of a text up to the first ``stop``, which may span several pieces.

    A suffix that may be the beginning of ``stop`` is held back until the next piece decides.
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
    """Length of the longest suffix of ``text`` that is a proper prefix of ``stop``."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))
