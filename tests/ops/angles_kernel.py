"""A kernel around the device code for Mamba-3's angles; imported where Triton is at hand."""

import triton
import triton.language as tl

from seqlab.ops.mamba3_inner.triton_angles import cos_sin, tanh, turned


@triton.jit
def angles_kernel(delta_ptr, angle_ptr, out_ptr, T: tl.constexpr, S: tl.constexpr):
    """Of steps (T,) and angles (T, S) before the tangent: that, the cosine and sine of all turns so far (3, T, S)."""
    t, i = tl.arange(0, T), tl.arange(0, S)
    place = t[:, None] * S + i[None, :]
    turn = tanh(tl.load(angle_ptr + place))
    cos, sin = cos_sin(tl.cumsum(turned(tl.load(delta_ptr + t), turn), axis=0))
    tl.store(out_ptr + place, turn)
    tl.store(out_ptr + T * S + place, cos)
    tl.store(out_ptr + 2 * T * S + place, sin)
