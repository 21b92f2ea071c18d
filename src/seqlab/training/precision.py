"""The floating-point precision of training, and whether torch has a model's recurrent layers in it."""

from typing import Literal

import torch
from torch import nn

from seqlab.errors import UserError

Precision = Literal["float32", "bf16", "fp16"]
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision, *, cache: bool = True) -> torch.autocast:
    """The context in which a model computes in a precision; parameters stay float32.

    With ``cache`` rounded weights are kept to its end, for layers that use them again.
    """
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "float32", cache_enabled=cache)


def check_precision(model: nn.Module, device: torch.device, precision: Precision) -> None:
    """Check that torch has kernels for the model's recurrent layers in this precision, which some CPUs lack.

    Raises:
        UserError: it has not.
    """
    if precision == "float32" or device.type == "meta":
        return
    kinds = {type(part).__name__: part for part in model.modules() if isinstance(part, nn.RNNBase)}
    for name, part in kinds.items():
        why = obstacle(part, device, precision)
        if why is not None:
            rule = f"torch cannot compute {name} layers in {precision} on this {device.type} ({why})"
            raise UserError("precision", precision, rule, "Use precision=float32")


def obstacle(layer: nn.RNNBase, device: torch.device, precision: Precision) -> str | None:
    """Torch's error message for a training and an evaluation step of a layer; ``None`` if both work.

    Raises:
        torch.OutOfMemoryError: the device's memory is full.
    """
    try:
        with autocast(device, precision), torch.random.fork_rng([device] if device.type == "cuda" else []):
            x = torch.zeros(1, 2, layer.input_size, device=device, requires_grad=True)
            torch.autograd.grad(layer(x)[0].float().sum(), x)
            with torch.no_grad():
                layer(x)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return str(error).partition(".")[0].splitlines()[0]
    return None
