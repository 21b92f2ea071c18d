"""The operation with its gradient: the Triton kernels of convolution and scan around PyTorch's products.

Symbols as in ``__init__.py``. Saved are the arguments, W_x u and the scan's states; of a slice
of sequences (``seqlab.ops.context``) also what came from other processes.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from seqlab.ops import backends
from seqlab.ops.context import ContextGroup
from seqlab.ops.derivatives import FirstDerivative
from seqlab.ops.selective_scan.interface import Inputs, Out

PARTS = "causal_conv1d", "selective_scan"


def kernels(*parts: str) -> tuple[ModuleType, ...]:
    """Of these operations, imported at the first call: they bring Triton."""
    return tuple(backends.load(f"seqlab.ops.{name}", "triton") for name in parts)


def rows(tensor: Tensor) -> Tensor:
    """(Bt, L, columns) as a matrix (Bt L, columns), a view."""
    return tensor.view(-1, tensor.shape[2])


class MambaInner(FirstDerivative):
    """The output (Bt, L, M) and the scan's last state from xz (Bt, L, 2 E), the products' weights in xz's dtype."""

    operation = "selective_scan"  # the part that has backends to choose from

    @override
    @staticmethod
    def forward(
        ctx: Any,
        xz: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor | None,
        x_weight: Tensor,
        dt_weight: Tensor,
        dt_bias: Tensor | None,
        A_log: Tensor,
        D: Tensor | None,
        out_weight: Tensor,
        context: ContextGroup | None,
        before: Tensor | None,
        state: Tensor | None,
        deterministic: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        conv, scan = kernels(*PARTS)
        A = -torch.exp(A_log.float())
        splits = dt_weight.shape[1], A.shape[1], A.shape[1]
        x, z = xz.chunk(2, dim=2)  # (Bt, L, E) each
        if context is not None:
            before = context.gather_before(x, conv_weight.shape[1] - 1)
        u = conv.forward(x, conv_weight, conv_bias, "silu", before, None)
        dtBC = torch.mm(rows(u), x_weight.t()).view(*xz.shape[:2], -1)  # (Bt, L, R + 2 N)
        dt, B, C = dtBC.split(splits, dim=2)
        delta = torch.mm(rows(dt), dt_weight.t()).view(u.shape)
        inputs = Inputs(u, delta, A, B, C, D, z, dt_bias, None, True)
        state, decays = (state, None) if context is None else context.enter(*scan.ends(inputs))
        y, final, states = scan.forward(inputs, state, True)
        parameters = conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D, out_weight
        ctx.save_for_backward(xz, *parameters, dtBC, states, before, decays)
        ctx.context, ctx.dtype, ctx.deterministic, ctx.backend = context, A_log.dtype, deterministic, backend
        ctx.mark_non_differentiable(final)
        ctx.set_materialize_grads(False)
        return torch.mm(rows(y), out_weight.t()).view(*xz.shape[:2], -1), final

    @override
    @staticmethod
    def differentiate(ctx: Any, d_out: Tensor, _: None) -> tuple:
        conv, scan = kernels(*PARTS)
        xz, *parameters, dtBC, states, before, decays = ctx.saved_tensors
        conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D, out_weight = parameters
        splits = dt_weight.shape[1], A.shape[1], A.shape[1]
        x, z = xz.chunk(2, dim=2)
        dt, B, C = dtBC.split(splits, dim=2)
        d_dtBC = torch.empty_like(dtBC)
        d_dt, dB, dC = d_dtBC.split(splits, dim=2)
        # Four halves of two wide tensors, since the scan writes all its rows of E equally far apart: dy, d_delta and
        # dx in turn, dz; du; delta and y in turn.
        d_xz, wide = xz.new_empty(xz.shape), xz.new_empty(xz.shape)
        dx, dz = d_xz.chunk(2, dim=2)
        du, delta = wide.chunk(2, dim=2)
        dy, d_delta, y = dx, dx, delta

        u = conv.forward(x, conv_weight, conv_bias, "silu", before, None)
        torch.mm(rows(dt), dt_weight.t(), out=rows(delta))
        d_out = d_out.reshape(-1, d_out.shape[2])
        torch.mm(d_out, out_weight, out=rows(dy))
        inputs, out = Inputs(u, delta, A, B, C, D, z, dt_bias, None, True), Out(y, du, d_delta, dz, dB, dC)
        after = decays if decays is None else ctx.context.leave(decays, scan.start_gradient(inputs, states, dy))
        by_scan = scan.backward(inputs, states, dy, after, ctx.deterministic, out)
        d_out_weight = torch.mm(d_out.t(), rows(y))
        torch.mm(rows(d_delta), dt_weight, out=rows(d_dt))
        d_dt_weight = torch.mm(rows(d_delta).t(), rows(dt))
        d_x_weight = torch.mm(rows(d_dtBC).t(), rows(u))
        torch.addmm(rows(du), rows(d_dtBC), x_weight, out=rows(du))
        by_conv = conv.backward(du, x, conv_weight, conv_bias, "silu", before, None, dx)
        if ctx.context is not None:
            ctx.context.add_to_tail(dx, by_conv.initial_state)
        of_scan = by_scan.delta_bias, (by_scan.A * A).to(ctx.dtype), by_scan.D
        return d_xz, by_conv.weight, by_conv.bias, d_x_weight, d_dt_weight, *of_scan, d_out_weight, *[None] * 5
