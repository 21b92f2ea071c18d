"""What a model remembers of one sequence, in bytes."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from seqlab.models.layer import prefill_mixer
from seqlab.models.sequence_model import SequenceModel


def tensors_of(state: Any) -> Iterator[Tensor]:
    """Every tensor in a state, however it is nested."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, list | tuple):
        for part in state:
            yield from tensors_of(part)
    elif isinstance(state, dict):
        yield from tensors_of(list(state.values()))


def bytes_of(state: Any) -> int:
    """Bytes of a state's tensors."""
    return sum(tensor.nbytes for tensor in tensors_of(state))


def state_bytes(model: nn.Module, length: int) -> int | None:
    """Bytes of recurrent state or of keys and values that a model holds for one sequence after ``length`` positions.

    In the dtype of its parameters, counted on the ``meta`` device: shapes alone, no memory and no arithmetic. ``None``
    for a model that is no ``SequenceModel``.
    """
    if not isinstance(model, SequenceModel):
        return None
    placeholders = {id(p): nn.Parameter(p.detach().to("meta")) for p in model.parameters()}
    placeholders |= {id(b): b.to("meta") for b in model.buffers()}
    layers = copy.deepcopy(model.layers, placeholders)
    return sum(mixer_state_bytes(layer.mixer.inner, model.head.in_features, length) for layer in layers)


@torch.no_grad()
def mixer_state_bytes(mixer: nn.Module, d_model: int, length: int) -> int:
    """Bytes of one mixer's state after ``length`` positions; one that the first step leaves at its size keeps it."""
    dtype = next((p.dtype for p in mixer.parameters()), torch.float32)
    x = torch.empty(1, length, d_model, dtype=dtype, device="meta")
    start = bytes_of(mixer.initial_state(1))
    _, state = mixer.step(x[:, 0], mixer.initial_state(1))
    if bytes_of(state) == start:
        return start
    _, state = prefill_mixer(mixer, x, mixer.initial_state(1))
    return bytes_of(state)
