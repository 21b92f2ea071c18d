"""The shapes at which the scan is measured, and what was published of the official kernel.

Symbols: B sequences of length L, D channels (``d_inner``), N states of a channel (``d_state``).
"""

from typing import NamedTuple

STATES = 16
"""N where nothing else is said."""


class Shape(NamedTuple):
    """The sizes B, L, D and N of a scan, printed as ``BxLxDxN``."""

    batch: int
    length: int
    d_inner: int
    d_state: int = STATES

    def __str__(self) -> str:
        return "x".join(map(str, self))


class Published(NamedTuple):
    """The official kernel's published times in milliseconds and its peak memory in MiB at one shape."""

    forward_ms: float
    both_ms: float
    peak_mib: float


OFFICIAL_SOURCE = "mamba_ssm 2.3.2's CUDA kernel (selective_scan_fn), H100 80GB HBM3, bf16, N = 16"
OFFICIAL = {
    Shape(32, 256, 512): Published(0.084, 0.476, 44),
    Shape(16, 1024, 1024): Published(0.296, 1.556, 165),
    Shape(8, 2048, 1536): Published(0.453, 2.325, 245),
    Shape(64, 512, 1536): Published(0.801, 4.088, 498),
    Shape(2, 8192, 2048): Published(0.755, 3.402, 325),
    Shape(1, 65536, 1536): Published(2.227, 10.020, 978),
}
ODD = (
    Shape(32, 257, 512),
    Shape(32, 256, 511),
    Shape(64, 31, 769),
    Shape(8, 2039, 1531),
    Shape(1, 65521, 1533),
    Shape(16, 1024, 1024, 8),
    Shape(16, 1024, 1024, 64),
    Shape(16, 1024, 1024, 128),
    Shape(8, 2039, 1531, 8),
    Shape(8, 1021, 1023, 64),
    Shape(8, 1021, 1023, 128),
)
"""Prime lengths, odd widths, and states of 8, 64 and 128, alone and together."""

LISTS = {"targets": tuple(OFFICIAL), "odd": ODD}
"""Shapes by name for --shapes."""

TARGETS = {"forward": 2.0, "forward+backward": 3.0}
"""How many times faster than the published figure a backend should be, with no more memory."""
