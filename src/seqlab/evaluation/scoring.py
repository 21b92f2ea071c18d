"""How likely a language model finds tokens that are given.

Symbols: B batch, L length, P chosen positions of the flattened batch, V vocabulary size.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqlab.errors import UserError

LOGITS = 2**27
"""The largest number of logits at once: 0.5 GB in float32."""

Tokens = Sequence[int]


class Answer(NamedTuple):
    """How a continuation fared: the log of its probability, and whether each token was the likeliest."""

    log_likelihood: float
    greedy: bool


class Row(NamedTuple):
    """One sequence that a model reads, and the continuations that end in it.

    Several continuations of a context share one if they differ in the last token alone.
    """

    inputs: tuple[int, ...]
    asked: list[tuple[int, tuple[int, ...]]]  # the number of the pair, and its continuation


@torch.inference_mode()
def token_losses(model: nn.Module, inputs: Tensor, places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of tokens at chosen positions, and whether each was the likeliest.

    Args:
        model: a ``SequenceModel`` over tokens, in evaluation mode.
        inputs: (B, L) tokens, on the model's device.
        places: (P,) indices into the flattened batch.
        targets: (P,) the tokens that follow there.

    Returns:
        Losses (P,) in nats, float32 or float64 as the model is, and (P,) bool.
    """
    hidden = model.hidden(inputs, places)  # (P, D)
    rows = max(1, LOGITS // model.head.out_features)
    parts = [
        losses_of_logits(model.head(some), wanted)
        for some, wanted in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    losses, greedy = zip(*parts, strict=True)
    return torch.cat(losses), torch.cat(greedy)


def losses_of_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """As ``token_losses``, from logits (P, V) and targets (P,)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return nn.functional.cross_entropy(logits, targets, reduction="none"), logits.argmax(dim=-1) == targets


def answers(
    model: nn.Module,
    pairs: Sequence[tuple[Tokens, Tokens]],
    *,
    length: int,
    batch_size: int,
    on_answers: Callable[[int], None] = lambda count: None,
) -> list[Answer]:
    """How likely each continuation is after its context.

    The longest sequences come first, so that those in a batch are of similar lengths and want of memory shows at once.
    They are padded on the right, which a causal model does not see.

    Args:
        model: a ``SequenceModel`` over tokens, in evaluation mode.
        pairs: contexts of at least one token, and continuations.
        length: tokens that the model reads at most; of longer contexts the beginning is left out.
        batch_size: sequences at a time.
        on_answers: called with the number of new answers.

    Raises:
        UserError: a continuation is longer than ``length``.
    """
    longest = max((len(continuation) for _, continuation in pairs), default=0)
    if longest > length:
        rule = f"a continuation of {longest} tokens does not fit, and all of it is to be predicted"
        raise UserError("length", length, rule, f"Set length={longest} or more")
    device = model.embed.weight.device
    found = {number: Answer(0.0, True) for number, (_, continuation) in enumerate(pairs) if not continuation}
    rows = rows_of(pairs, length)
    for batch in (rows[first : first + batch_size] for first in range(0, len(rows), batch_size)):
        inputs = torch.zeros(len(batch), len(batch[0].inputs), dtype=torch.int64)  # (B, L)
        places, targets, sizes = [], [], []
        for number, row in enumerate(batch):
            inputs[number, : len(row.inputs)] = torch.tensor(row.inputs)
            end = number * inputs.shape[1] + len(row.inputs)
            for _, continuation in row.asked:
                places += range(end - len(continuation), end)
                targets += continuation
                sizes.append(len(continuation))
        places, targets = torch.tensor(places).to(device), torch.tensor(targets).to(device)  # (P,)
        losses, greedy = token_losses(model, inputs.to(device), places, targets)
        each = zip(losses.double().cpu().split(sizes), greedy.cpu().split(sizes), strict=True)
        numbers = [pair for row in batch for pair, _ in row.asked]
        found |= {
            pair: Answer(-loss.sum().item(), bool(best.all())) for pair, (loss, best) in zip(numbers, each, strict=True)
        }
        on_answers(len(numbers))
    return [found[number] for number in range(len(pairs))]


def rows_of(pairs: Sequence[tuple[Tokens, Tokens]], length: int) -> list[Row]:
    """The different sequences that pairs of context and continuation make, the longest first; none of an empty one."""
    rows: dict[tuple[int, ...], Row] = {}
    for number, (context, continuation) in enumerate(pairs):
        if continuation:
            inputs = (*context, *continuation)[-(length + 1) : -1]
            rows.setdefault(inputs, Row(inputs, [])).asked.append((number, tuple(continuation)))
    return sorted(rows.values(), key=lambda row: (-len(row.inputs), row.inputs))
