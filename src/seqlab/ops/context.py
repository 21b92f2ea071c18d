"""Sequences of which several processes hold a slice each, and what passes between them (context parallelism).

The state h of a recurrence that is linear in it passes through a slice as

    h_out = P h_in + s            P the product of the slice's decays, elementwise, s its final state from zeros
    g_in = P g_out + r            the gradient of h, backwards; r is that of h_in if no later slice asks for any

so every process computes its own P and s at once, one all-gather brings those of all, and each combines what lies
before it. The backward pass does the same with r, from the other end.

Symbols: W processes, Bt batch, L positions of a slice, D channels, K - 1 inputs that a convolution looks back.
"""

from typing import Any

import torch
from torch import Tensor


class ContextGroup:
    """The processes that hold consecutive slices of the same sequences, equally long, in the order of their ranks.

    All of them call the same methods in the same order, and wait in them for the others.

    Args:
        group: of torch.distributed; None for all processes.

    Attributes:
        rank: the number of this process's slice.
        size: the number of slices, W.
    """

    def __init__(self, group: "torch.distributed.ProcessGroup | None" = None):
        self.group = group
        self.rank, self.size = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)

    def __deepcopy__(self, memo: dict) -> None:
        """A copy of a model, to count its operations or to average its weights, is given whole sequences."""

    def gather(self, tensor: Tensor) -> Tensor:
        """The processes' tensors of one shape, (W, ...)."""
        found = tensor.new_empty(self.size, *tensor.shape)
        if tensor.numel():
            torch.distributed.all_gather(list(found), tensor.contiguous(), group=self.group)
        return found

    def enter(self, decay: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        """The state before this slice, from what every slice does to a state.

        Args:
            decay: P (Bt, ...), with as many axes as ``added`` and of its size or of size 1 in each.
            added: s (Bt, ...).

        Returns:
            The state, like ``added``, and the decays of all slices (W, Bt, ...), which ``leave`` takes.
        """
        found = self.gather(torch.cat((decay.flatten(1), added.flatten(1)), dim=1))  # (W, Bt, numbers)
        decays, every = found.split((decay[0].numel(), added[0].numel()), dim=2)
        decays, every = decays.unflatten(2, decay.shape[1:]), every.unflatten(2, added.shape[1:])
        state = torch.zeros_like(added)
        for slice_ in range(self.rank):
            state = decays[slice_] * state + every[slice_]
        return state, decays.contiguous()

    def leave(self, decays: Tensor, start: Tensor) -> Tensor:
        """The gradient of the state after this slice, from that of the state before each slice.

        Args:
            decays: of all slices, as ``enter`` returned them.
            start: r (Bt, ...).
        """
        every, gradient = self.gather(start), torch.zeros_like(start)
        for slice_ in range(self.size - 1, self.rank, -1):
            gradient = decays[slice_] * gradient + every[slice_]
        return gradient

    def inputs_before(self, x: Tensor, count: int) -> Tensor:
        """The ``count`` inputs (Bt, count, D) before this slice x (Bt, L, D); zeros before the first. Differentiable.

        They may come from several slices where these are shorter.
        """
        return _InputsBefore.apply(x[:, max(x.shape[1] - count, 0) :], count, self)

    def gather_before(self, x: Tensor, count: int) -> Tensor:
        """As ``inputs_before``, of x (Bt, L, D) to (Bt, count, D), which autograd does not see through."""
        tail = x[:, max(x.shape[1] - count, 0) :]
        none = x.new_zeros(len(x), count, x.shape[2])
        seen = torch.cat((none, *self.gather(tail)[: self.rank]), dim=1)
        return seen[:, seen.shape[1] - count :]

    def gradient_of_tail(self, before: Tensor, length: int) -> Tensor:
        """The gradient through ``gather_before``, which reaches the last inputs (Bt, n, D) of this slice alone.

        Args:
            before: that of the inputs before this slice (Bt, count, D).
            length: L, or ``count`` where that is less; then n is the smaller.
        """
        found, count = self.gather(before), before.shape[1]
        length = min(length, count)
        gradient = before.new_zeros(len(before), length, before.shape[2])
        for slice_ in range(self.rank + 1, self.size):
            end = count - (slice_ - self.rank - 1) * length  # behind this slice's inputs in what that one looked at
            if end <= 0:
                break
            seen = found[slice_, :, max(end - length, 0) : end]
            gradient[:, length - seen.shape[1] :] += seen
        return gradient

    def add_to_tail(self, gradient: Tensor, before: Tensor) -> None:
        """Add to the gradient of this slice's inputs (Bt, L, D), in place, that through ``gather_before``."""
        tail = self.gradient_of_tail(before, gradient.shape[1])
        gradient[:, gradient.shape[1] - tail.shape[1] :] += tail


def check_alone(
    backend: str, fused: tuple[str, ...], initial_state: Tensor | None, seq_idx: Tensor | None, final: bool
) -> None:
    """Check what a scan over slices goes with: a backend of ``fused``, and neither states nor packed sequences.

    Args:
        backend: the one that was chosen.
        fused: those with a gradient of their own.
        initial_state, seq_idx: of any shapes.
        final: whether the final state is asked for.

    Raises:
        ValueError: something else is asked for.
    """
    if backend not in fused:
        raise ValueError(f'backend="{backend}" does not take a context; choose one of {", ".join(fused)}')
    if initial_state is not None or seq_idx is not None or final:
        raise ValueError("a context goes with neither initial_state, return_final_state nor seq_idx")


class _InputsBefore(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tail: Tensor, count: int, context: ContextGroup) -> Tensor:
        ctx.context, ctx.length = context, tail.shape[1]
        return context.gather_before(tail, count)

    @staticmethod
    def backward(ctx: Any, before: Tensor) -> tuple[Tensor, None, None]:
        return ctx.context.gradient_of_tail(before, ctx.length), None, None
