"""What a model costs, counted on its modules: parameters, training FLOPs, bytes of state; and its backends.

FLOPs and state are counted on the ``meta`` device: shapes alone, no memory and no arithmetic.

Symbols: B batch, L length.
"""

import copy
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from seqlab.errors import UserError
from seqlab.models.layer import prefill_mixer, recompute
from seqlab.models.mixture_of_experts import MixtureOfExperts
from seqlab.models.protocols import CountsFlops, CountsInactive, Mixer, Scans, parts
from seqlab.models.sequence_model import SequenceModel
from seqlab.models.without_compiler import without_compiler

Shape = tuple[int, ...]


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Number of parameters: all, those not in an embedding, and those active for one token.

    Of a mixture's experts a token uses only ``top_k``. A tied embedding counts as the head's matrix.
    """
    total = sum(p.numel() for p in model.parameters())
    head = model.head.weight if isinstance(model, SequenceModel) else None
    lookups = {m.weight: m.weight.numel() for m in parts(model, nn.Embedding) if m.weight is not head}
    return {
        "parameters": total,
        "parameters_without_embeddings": total - sum(lookups.values()),
        "active_parameters": total - sum(part.inactive_parameters() for part in parts(model, CountsInactive)),
    }


class Examples(Protocol):
    """What counting FLOPs needs of a data object: the window's length L, a batch and the loss."""

    length: int

    def train_batch(self, index: int, batch_size: int, seed: int) -> tuple[Tensor, Tensor]:
        """A batch: inputs and targets, (B, L) or (B, L, width) each."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each position, (B, L)."""


def training_flops(model: nn.Module, data: Examples) -> int:
    """FLOPs of one forward and backward pass over one window of ``data.length`` positions.

    Torch counts matrix products, convolutions and attention in its dispatcher, during one forward and backward pass. A
    recurrence is elementwise work, which torch does not count, so a mixer states its own (``CountsFlops``); its
    backward pass counts as twice the forward, and as nothing where all up to there is frozen. Norms, activations and
    the loss are left out, as in published counts.
    Attention counts the whole square of positions although half of it is masked (Chowdhery et al. 2022, appendix B).
    Where a state is carried on, that of the window before is read too.
    """
    model = copy.deepcopy(model).to("meta").train()
    recompute(model, 0)  # what a layer computes again is no other work than that of a model that keeps it
    inputs, targets = (part.to("meta") for part in data.train_batch(0, 1, seed=0))
    inputs = inputs.float() if inputs.dtype == torch.int8 else inputs  # as training gives features to a model
    formulas = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    passes = dict.fromkeys(parts(model, CountsFlops), 3)
    for part in passes:
        part.register_forward_hook(lambda part, _, y: passes.update({part: 3 if y.requires_grad else 1}))
    state = None
    if getattr(data, "carries", False):
        state = model.carried_state(1, data.length)
        with without_compiler(*model.modules()):
            model(inputs)  # for the hooks, which ``carry`` does not call
    with without_compiler(*model.modules()), counter:
        outputs = model(inputs) if state is None else model.head(model.carry(inputs, state)[0])
        data.loss(outputs, targets).sum().backward()
    hidden = sum(count * part.uncounted_flops(1, data.length) for part, count in passes.items())
    return counter.get_total_flops() + hidden


def convolution_backward_flops(
    grad_out: Shape, x: Shape, weight: Shape, *settings: Any, out_shape: tuple[Shape | None, ...]
) -> int:
    """FLOPs of a convolution's backward pass: those of the forward for each gradient (torch's own ignore groups)."""
    gradients = sum(shape is not None for shape in out_shape[:2])  # by the input, by the weight
    return gradients * 2 * prod(grad_out) * prod(weight[1:])


def state_bytes(model: nn.Module, length: int) -> int | None:
    """Bytes of recurrent state, or of cached keys and values, of one sequence after ``length`` positions.

    In the dtype of the model's parameters. ``None`` for a model that is no ``SequenceModel``.
    """
    if not isinstance(model, SequenceModel):
        return None
    placeholders = {id(p): nn.Parameter(p.detach().to("meta")) for p in model.parameters()}
    placeholders |= {id(b): b.to("meta") for b in model.buffers()}
    layers = copy.deepcopy(model.layers, placeholders)
    with without_compiler(*layers.modules()):
        return sum(mixer_state_bytes(layer.mixer.inner, model.head.in_features, length) for layer in layers)


@torch.no_grad()
def mixer_state_bytes(mixer: Mixer, d_model: int, length: int) -> int:
    """Bytes of one mixer's state after ``length`` positions; a state that one step does not enlarge never grows."""
    dtype = next((p.dtype for p in mixer.parameters()), torch.float32)
    width, _ = getattr(mixer, "io_widths", (d_model, d_model))
    x = torch.empty(1, length, width, dtype=dtype, device="meta")
    start = bytes_of(mixer.initial_state(1))
    _, state = mixer.step(x[:, 0], mixer.initial_state(1))
    if bytes_of(state) != start:
        _, state = prefill_mixer(mixer, x, mixer.initial_state(1))
    return bytes_of(state)


def tensors_of(state: Any) -> list[Tensor]:
    """The tensors in a state, of any shape, in nested lists, tuples and dictionaries."""
    if isinstance(state, Tensor):
        return [state]
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for part in inner for tensor in tensors_of(part)]


def bytes_of(state: Any) -> int:
    """Bytes of all tensors in a state."""
    return sum(tensor.nbytes for tensor in tensors_of(state))


def backends(model: nn.Module, device: torch.device) -> dict[str, str | None]:
    """The backends that a model runs on: ``scan_backend``, and with experts ``experts_backend``.

    Raises:
        UserError: a backend cannot run there.
    """
    experts = [(part, part.experts_backend) for part in parts(model, MixtureOfExperts)]
    chosen = {"experts_backend": chosen_backends(experts, device, "backend")} if experts else {}
    return {"scan_backend": scan_backend(model, device)} | chosen


def scan_backend(model: nn.Module, device: torch.device) -> str | None:
    """The backends that the model's scans run on, ``None`` for a model without one."""
    return chosen_backends([(part, part.scan_backend) for part in parts(model, Scans)], device, "scan_backend")


def chosen_backends(settings: list[tuple[Scans | MixtureOfExperts, str]], device: torch.device, key: str) -> str | None:
    """The backends that parts' settings, named ``key``, resolve to on a device in float32.

    Raises:
        UserError: a backend cannot run there.
    """
    chosen = set()
    for part, name in settings:
        try:
            chosen.add(part.resolve_backend(name, device, torch.float32))
        except ValueError as error:
            key = ".".join(filter(None, (getattr(part, "settings_key", None), key)))
            raise UserError(key, name, str(error), f"Use {key}=auto, which picks the fastest that can run") from error
    return ", ".join(sorted(chosen)) or None
