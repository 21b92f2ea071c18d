"""The arguments that the convolution over a sequence and its single step have in common."""

from torch import Tensor

from seqlab.ops.contract import check_dtypes, check_given, check_shapes


def check_arguments(x_axes: tuple[str, ...], tensors: dict[str, Tensor | None], activation: str | None) -> None:
    """Check the shapes of x, weight, bias and the state, the last of ``tensors``, their dtypes and the activation.

    Raises:
        ValueError: one does not fit.
    """
    check_given(tensors, "x", "weight")
    state = list(tensors)[-1]
    sizes: dict[str, int] = {}
    check_shapes({"x": x_axes, "weight": ("d_inner", "d_conv"), "bias": ("d_inner",)}, tensors, sizes)
    sizes["d_conv - 1"] = sizes["d_conv"] - 1
    check_shapes({state: ("batch", "d_conv - 1", "d_inner")}, tensors, sizes)
    check_dtypes(tensors)
    if activation not in (None, "silu"):
        raise ValueError(f"activation is {activation!r}, expected None or 'silu'")
