"""What a model costs, counted on its modules: parameters, training FLOPs, the bytes of its state, its backends.

FLOPs and state are counted on the ``meta`` device: shapes alone, no memory and no arithmetic.
"""

import copy
from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from seqlab.errors import UserError
from seqlab.models.layer import prefill_mixer
from seqlab.models.sequence_model import SequenceModel


def count_parameters(model: nn.Module) -> dict[str, int]:
    """All parameters, those that a token uses, and those that are no lookup table.

    A token uses only some of a mixture's experts; a tied head counts as the matrix that it is.
    """
    total = sum(p.numel() for p in model.parameters())
    head = getattr(model, "head", None)
    lookups = {
        id(m.weight): m.weight.numel()
        for m in model.modules()
        if isinstance(m, nn.Embedding) and (head is None or m.weight is not head.weight)
    }
    inactive = sum(m.inactive_parameters() for m in model.modules() if hasattr(m, "inactive_parameters"))
    return {
        "parameters": total,
        "parameters_without_embeddings": total - sum(lookups.values()),
        "active_parameters": total - inactive,
    }


Shape = tuple[int, ...]


def convolution_backward_flops(
    grad_out: Shape, x: Shape, weight: Shape, *settings: Any, out_shape: tuple[Shape | None, ...]
) -> int:
    """Each gradient of a convolution costs what the convolution costs (torch's own count forgets the groups)."""
    gradients = sum(shape is not None for shape in out_shape[:2])  # by the input, by the weight
    return gradients * 2 * prod(grad_out) * prod(weight[1:])


FORMULAS = {torch.ops.aten.convolution_backward: convolution_backward_flops}


def training_flops(model: nn.Module, data: Any) -> int:
    """FLOPs of one forward and backward pass over one window of ``data.length`` positions.

    Matrix products, convolutions and attention are counted by torch as one forward and one backward pass run through
    its dispatcher, on the ``meta`` device: shapes alone, no memory and no arithmetic. A recurrence is elementwise work
    which torch's counter does not see, so a mixer states its own (``uncounted_flops``), backward as twice forward.
    Norms, activations and the loss are left out, as in the published counts; attention counts the whole square of
    positions although half of it is masked (Chowdhery et al. 2022, appendix B).
    """
    model = copy.deepcopy(model).to("meta").train()
    inputs, targets = (part.to("meta") for part in data.train_batch(0, 1, seed=0))
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        data.loss(model(inputs), targets).sum().backward()
    hidden = sum(m.uncounted_flops(1, data.length) for m in model.modules() if hasattr(m, "uncounted_flops"))
    return counter.get_total_flops() + 3 * hidden


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


def scan_backend(model: nn.Module, device: torch.device) -> str | None:
    """The backends that the model's scans run on, ``None`` for a model without one."""
    return chosen_backends(model, device, "scan_backend", "scan_backend")


def experts_backend(model: nn.Module, device: torch.device) -> str | None:
    """The backends that the model's mixtures of experts run on, ``None`` for a model without one."""
    return chosen_backends(model, device, "experts_backend", "model.feedforward.backend")


def backends(model: nn.Module, device: torch.device) -> dict[str, str | None]:
    """What the model's parts run on; raises UserError for a backend that cannot run there."""
    experts = experts_backend(model, device)
    return {"scan_backend": scan_backend(model, device)} | ({"experts_backend": experts} if experts else {})


def chosen_backends(model: nn.Module, device: torch.device, attribute: str, key: str) -> str | None:
    """What the backends that the model's parts have in ``attribute`` come to on a device; ``key`` is the setting's."""
    parts = [m for m in model.modules() if hasattr(m, attribute)]
    asked = [getattr(m, attribute) for m in parts]
    try:
        names = {m.resolve_backend(name, device, torch.float32) for m, name in zip(parts, asked, strict=True)}
    except ValueError as error:
        remedy = f"Use {key}=auto, which picks the fastest that can run"
        raise UserError(key, ", ".join(sorted(set(asked))), str(error), remedy) from error
    return ", ".join(sorted(names)) or None
