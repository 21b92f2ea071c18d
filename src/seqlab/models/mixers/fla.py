"""Any layer of flash-linear-attention as a mixer (Yang and Zhang 2024, github.com/fla-org/flash-linear-attention).

The library is an extra, ``pip install 'seqlab[fla]'``, imported when the first of its layers is built; its kernels need
a GPU. Its layers map (B, L, D) to (output, attention weights, cache) and keep their state in its ``Cache``.

Symbols: B batch, L length, D model width, H heads, K and V width of a head's keys and values.
"""

import difflib
import importlib
import inspect
from types import ModuleType
from typing import Any, NamedTuple

import torch
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from seqlab.errors import UserError

OURS = ("self", "hidden_size", "layer_idx")
"""A layer's arguments that the adapter sets itself."""

HEADS, KEY, VALUE = ("num_v_heads", "num_heads"), ("head_k_dim", "head_f_dim", "head_dim"), ("head_v_dim", "head_i_dim")
"""The names of H, K and V in the library's layers; the first that a layer has is used."""

SHORT = 64
"""Up to so many positions the library's layers use their recurrent kernels when no gradient is needed."""


class State(NamedTuple):
    """The state of one layer."""

    parts: dict[str, Any] | None  # of the library's own cache; None before the first position
    length: int  # positions so far


class FlaLayer(nn.Module):
    """One layer of the library, built with ``layer_idx`` 0, since each has a cache of its own.

    Args:
        d_model: width D.
        layer: name of a class in ``fla.layers``.
        settings: its keyword arguments, except the width.
        shares: further keyword arguments, integers given as a fraction of D / ``num_heads``.
        recurrence_flops: FLOPs of the recurrence for one position and element of the recurrent state; torch counts the
            linear maps.

    Raises:
        UserError: the library is not installed, or has no such layer or setting.
    """

    def __init__(
        self,
        d_model: int,
        *,
        layer: str,
        settings: dict[str, Any],
        shares: dict[str, PositiveFloat] | None = None,
        recurrence_flops: NonNegativeInt = 5,
    ):
        super().__init__()
        self.recurrence_flops = recurrence_flops
        self.name = layer
        self.layer = built(layer, d_model, settings, shares or {})
        for parameter in self.layer.parameters():
            if getattr(parameter, "_no_weight_decay", False):  # the library's name for it
                parameter.no_weight_decay = True

    @property
    def out_proj(self) -> nn.Module:
        """The projection into the residual stream, under the name by which the model rescales it."""
        return self.layer.o_proj

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D); on the ``meta`` device the linear maps alone."""
        return self._maps_alone(x) if x.is_meta else self._run(x)

    def initial_state(self, batch_size: int) -> State:
        """A state without a cache, which the first position creates."""
        return State(None, 0)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, D) to (B, D)."""
        y, state = self.prefill(x[:, None], state)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, L, D) to (B, L, D).

        Raises:
            UserError: the library's kernels cannot run on this device or in this precision.
        """
        length = state.length + x.shape[1]
        if x.is_meta:
            return self._maps_alone(x), State(self._parts_alone(x), length)
        before = None if state.parts is None else (state.parts,)
        cache = library("fla.models.utils", self.name).Cache.from_legacy_cache(before, seen_tokens=state.length)
        try:
            y = self._run(x, past_key_values=cache, use_cache=True)
        except UserError:
            if x.shape[1] <= SHORT:
                raise
            return self._prefill_short(x, state)  # the recurrent kernels take float32, which chunked ones may refuse
        return y, State(dict(cache[0]), length)

    def _prefill_short(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        outputs = []
        for piece in x.split(SHORT, dim=1):
            y, state = self.prefill(piece, state)
            outputs.append(y)
        return torch.cat(outputs, dim=1), state

    def why_not_captured(self, device: torch.device) -> str:
        """A reason always: the library does not promise that its layers never wait for the device."""
        return f"flash-linear-attention's {self.name} may wait for the device"

    def _run(self, x: Tensor, **arguments: Any) -> Tensor:
        if x.requires_grad:
            x = x.clone()  # RWKV-7's backward pass overwrites its input with the gradient
        try:
            return self.layer(x, **arguments)[0]
        except AssertionError as error:
            if "float32" not in str(error):
                raise
            rule = str(error).splitlines()[0]
            raise UserError("trainer.precision", "float32", rule, "Use trainer.precision=bf16") from error
        except RuntimeError as error:
            if x.device.type != "cpu":
                raise
            rule = f"the kernels of flash-linear-attention's {self.name} need a GPU ({error})"
            raise UserError("device", "cpu", rule, "Use a machine with a GPU, or another model") from error

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """H, K and V of the recurrent state; 0 for those that the layer has under another name."""
        groups = [[getattr(self.layer, name, None) for name in names] for names in (HEADS, KEY, VALUE)]
        return tuple(next(filter(None, group), 0) for group in groups)

    def _convolutions(self) -> list[nn.Conv1d]:
        return [module for module in self.layer.modules() if isinstance(module, nn.Conv1d)]

    def _maps_alone(self, x: Tensor) -> Tensor:
        """Every linear map once, (B, L, D) to (B, L, D), to count on the ``meta`` device, where Triton cannot run."""
        y = x
        for linear in (module for module in self.layer.modules() if isinstance(module, nn.Linear)):
            inputs = x.new_empty(*x.shape[:-1], linear.in_features).requires_grad_(x.requires_grad)
            y = y + linear(inputs).sum()
        return y

    def _parts_alone(self, x: Tensor) -> dict[str, Any]:
        """The shapes of the layer's state, on the ``meta`` device."""
        heads, key, value = self.state_shape
        before = [x.new_empty(len(x), m.in_channels, m.kernel_size[0]) for m in self._convolutions()]  # (B, C, width)
        if hasattr(self.layer, "time_shift"):  # RWKV's, which looks one position back
            before.append(x.new_empty(len(x), x.shape[-1]))
        return {
            "recurrent_state": x.new_empty(len(x), heads, key, value, dtype=torch.float32),
            "conv_state": tuple(before),
        }

    def uncounted_flops(self, batch_size: int, length: int) -> int:
        """Forward FLOPs of the recurrence and the short convolutions."""
        heads, key, value = self.state_shape
        convolutions = sum(2 * module.weight.numel() for module in self._convolutions())
        return batch_size * length * (self.recurrence_flops * heads * key * value + convolutions)


def library(module: str, layer: str) -> ModuleType:
    """Import a module of flash-linear-attention, which the mixer ``layer`` needs.

    Raises:
        UserError: the library cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        rule = f"is a layer of flash-linear-attention, which cannot be imported ({error})"
        raise UserError("layer", layer, rule, "Install it with pip install 'seqlab[fla]'") from error


def built(name: str, d_model: int, settings: dict[str, Any], shares: dict[str, float]) -> nn.Module:
    """Build a layer of the library.

    Raises:
        UserError: there is no such layer, or it has no such setting or refuses its value.
    """
    layers = library("fla.layers", name)
    if name not in layers.__all__:
        near = difflib.get_close_matches(name, layers.__all__, n=1, cutoff=0.4)
        remedy = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(layers.__all__)}"
        raise UserError("layer", name, "flash-linear-attention has no such layer", remedy)
    layer = getattr(layers, name)
    known = [key for key in inspect.signature(layer.__init__).parameters if key not in (*OURS, "kwargs")]
    for key in (*settings, *shares):
        if key not in known:  # most layers would ignore it silently
            rule, remedy = f"{name} has no setting {key!r}", f"There are: {', '.join(known)}"
            raise UserError(f"settings.{key}", (settings | shares)[key], rule, remedy)
    widths = {key: round(share * d_model / settings["num_heads"]) for key, share in shares.items()}
    try:
        return layer(hidden_size=d_model, layer_idx=0, **settings, **widths)
    except (AssertionError, ValueError, ZeroDivisionError) as error:
        rule = f"refused by {name} ({str(error).splitlines()[0]})"
        raise UserError("settings", settings | widths, rule, "Change them, or the size") from error
