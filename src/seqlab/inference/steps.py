"""A token's whole step on a GPU, with the draw of the next one, as one CUDA graph.

Symbols: B batch.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from seqlab.inference.captured import Captured, copy_into, filled
from seqlab.inference.sampling import Sampling
from seqlab.models.counting import tensors_of
from seqlab.models.sequence_model import ModelState
from seqlab.ops.recent import Recent

Step = Callable[[Tensor], Tensor]
"""From the numbers (B,) that decide a draw to the tokens (B,) drawn, on the device."""


@contextmanager
def captured_step(
    model: nn.Module, graphs: Recent, sampling: Sampling, token: Tensor, state: ModelState
) -> Iterator[Step]:
    """The step of a model after ``token`` (B,) and the state before it, captured once for a batch size and a sampling.

    ``graphs`` are the model's. While it is in use, another generation alike captures a step of its own.
    """
    key = "step", len(token), sampling
    step = graphs.take(key) or CapturedStep(model, sampling, token, state)
    try:
        step.begin(token, state)
        yield step
    finally:
        graphs.keep(key, step)


class CapturedStep:
    """One step after another of a model, replayed; ``begin`` says from where."""

    def __init__(self, model: nn.Module, sampling: Sampling, token: Tensor, state: ModelState):
        uniforms = torch.zeros(len(token), dtype=torch.float64, device=token.device)  # (B,)
        self.draws = not sampling.greedy
        self.graph = Captured(partial(_advance, model, sampling, state), uniforms, token, *tensors_of(state))
        self.uniforms, self.token, *self.state = self.graph.inputs

    def begin(self, token: Tensor, state: ModelState) -> None:
        """Continue from a token (B,) and the state before it."""
        copy_into((self.token, *self.state), (token, *tensors_of(state)))

    def __call__(self, uniforms: Tensor) -> Tensor:
        """Read the last token and draw the next by ``uniforms`` (B,) float64: (B,), which the next call overwrites."""
        if self.draws:
            self.uniforms.copy_(uniforms)
        self.graph.replay()
        return self.token


def _advance(
    model: nn.Module, sampling: Sampling, layout: ModelState, uniforms: Tensor, token: Tensor, *state: Tensor
) -> None:
    """Overwrite the token (B,) with the next one, and the state's tensors, in the order of ``layout``."""
    if not sampling.greedy:
        token.clamp_(max=model.embed.num_embeddings - 1)  # V where there was nothing to draw from
    logits, after = model.step(token, filled(layout, iter(state)))
    copy_into(state, tensors_of(after))  # some mixers write into their state themselves
    token.copy_(sampling.choose(logits, uniforms))


def in_step_behind(first: Tensor, following: Iterable[Tensor]) -> Iterator[Tensor]:
    """Tokens (B,) on the CPU, each once the step after it has been given to the device, which so never waits for us."""
    waiting = sent(first)
    for token in following:
        ahead = sent(token)
        yield arrived(waiting)
        waiting = ahead
    yield arrived(waiting)


def sent(token: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    """A copy of a token (B,) on its way to the CPU, and the event of its arrival."""
    there = torch.empty(token.shape, dtype=token.dtype, pin_memory=True)
    there.copy_(token, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return there, event


def arrived(copy: tuple[Tensor, torch.cuda.Event]) -> Tensor:
    """The token (B,) once it is on the CPU."""
    copy[1].synchronize()
    return copy[0]
