"""The operation with its gradient: the Triton kernels of convolution, scan and norm, and PyTorch's product.

Symbols as in ``__init__.py``. Saved are the arguments and the norm's scale; of a slice of
sequences (``seqlab.ops.context``) also what came from other processes.
"""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from seqlab.ops.context import ContextGroup
from seqlab.ops.derivatives import FirstDerivative
from seqlab.ops.mamba_inner.operator import kernels, rows
from seqlab.ops.ssd.interface import Inputs
from seqlab.ops.ssd.sliced import ends

PARTS = "causal_conv1d", "ssd", "rms_norm"


def _by_head(xBC: Tensor, n_heads: int, n_groups: int, d_inner: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (Bt, L, H, P), B and C (Bt, L, G, N), views of xBC (Bt, L, E + 2 G N)."""
    width = (xBC.shape[2] - d_inner) // 2
    x, B, C = xBC.split((d_inner, width, width), dim=2)
    return x.unflatten(2, (n_heads, -1)), B.unflatten(2, (n_groups, -1)), C.unflatten(2, (n_groups, -1))


class Mamba2Inner(FirstDerivative):
    """The output (Bt, L, M) and the last state from zxBCdt (Bt, L, 2 E + 2 G N + H), the weight in zxBCdt's dtype."""

    operation = "ssd"  # the part that has backends to choose from

    @override
    @staticmethod
    def forward(
        ctx: Any,
        zxBCdt: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor | None,
        dt_bias: Tensor | None,
        A_log: Tensor,
        D: Tensor | None,
        norm_weight: Tensor,
        out_weight: Tensor,
        n_groups: int,
        eps: float,
        context: ContextGroup | None,
        before: Tensor | None,
        state: Tensor | None,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        conv, scan, norm = kernels(*PARTS)
        A = -torch.exp(A_log.float())
        sizes = norm_weight.shape[0], conv_weight.shape[0], A.shape[0]
        z, xBC, dt = zxBCdt.split(sizes, dim=2)
        if context is not None:
            before = context.gather_before(xBC, conv_weight.shape[1] - 1)
        mixed = conv.forward(xBC, conv_weight, conv_bias, "silu", before, None)
        x, B, C = _by_head(mixed, A.shape[0], n_groups, sizes[0])
        inputs = Inputs(x, dt, A, B, C, D, dt_bias, None, True)
        state, decays = (state, None) if context is None else context.enter(*ends(inputs, "triton"))
        y, final = scan.forward(inputs, state)
        _, normal, scale = norm.forward(y.flatten(2), None, z, norm_weight, eps, n_groups, y.dtype)
        parameters = conv_weight, conv_bias, dt_bias, A, D, norm_weight, out_weight
        ctx.save_for_backward(zxBCdt, *parameters, scale, before, state, decays)
        ctx.context, ctx.dtype, ctx.n_groups, ctx.sizes, ctx.backend = context, A_log.dtype, n_groups, sizes, backend
        ctx.mark_non_differentiable(final)
        ctx.set_materialize_grads(False)
        return torch.mm(rows(normal), out_weight.t()).view(*zxBCdt.shape[:2], -1), final

    @override
    @staticmethod
    def differentiate(ctx: Any, d_out: Tensor, _: None) -> tuple:
        conv, scan, norm = kernels(*PARTS)
        zxBCdt, *parameters, scale, before, state, decays = ctx.saved_tensors
        conv_weight, conv_bias, dt_bias, A, D, norm_weight, out_weight = parameters
        d_zxBCdt = zxBCdt.new_empty(zxBCdt.shape)
        (z, xBC, dt), (dz, d_xBC, d_dt) = (tensor.split(ctx.sizes, dim=2) for tensor in (zxBCdt, d_zxBCdt))
        heads = A.shape[0], ctx.n_groups, ctx.sizes[0]

        mixed = conv.forward(xBC, conv_weight, conv_bias, "silu", before, None)
        x, B, C = _by_head(mixed, *heads)
        inputs = Inputs(x, dt, A, B, C, D, dt_bias, None, True)
        y, _, states = scan.forward_with_states(inputs, state)
        d_out = d_out.reshape(-1, d_out.shape[2])
        d_normal = torch.mm(d_out, out_weight).view(*zxBCdt.shape[:2], -1)
        normal, dy = d_normal, y  # each over what it is computed from, which nobody reads again
        into = norm.Out(dy.flatten(2), dz, normal)
        *_, d_norm_weight = norm.backward(d_normal, None, y.flatten(2), z, norm_weight, scale, ctx.n_groups, None, into)
        d_out_weight = torch.mm(d_out.t(), rows(normal))
        del normal, d_normal, into  # the scan's backward pass takes most memory
        d_mixed = mixed.new_empty(mixed.shape)
        dx, dB, dC = _by_head(d_mixed, *heads)
        after = decays if decays is None else ctx.context.leave(decays, scan.start_gradient(inputs, dy))
        by_scan = scan.backward(inputs, state, dy, after, scan.Out(dx, d_dt, dB, dC), states)
        by_conv = conv.backward(d_mixed, xBC, conv_weight, conv_bias, "silu", before, None, d_xBC)
        if ctx.context is not None:
            ctx.context.add_to_tail(d_xBC, by_conv.initial_state)
        of_scan = by_scan.dt_bias, (by_scan.A * A).to(ctx.dtype), by_scan.D
        return d_zxBCdt, by_conv.weight, by_conv.bias, *of_scan, d_norm_weight, d_out_weight, *[None] * 6
