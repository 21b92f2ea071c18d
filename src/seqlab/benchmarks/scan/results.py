"""A row for each backend, shape and pass, with the roofline and the figures that it is compared with."""

from dataclasses import dataclass
from typing import NamedTuple

from seqlab.benchmarks.scan.contestants import OTHERS, Shape
from seqlab.benchmarks.timing import DeviceLimits

PASSES = ("forward", "forward+backward")

EXTRA_EXPONENTIALS = 4
"""For each (b, l, d), besides its N decays: softplus takes an exponential and a logarithm, the gate an exponential
and a reciprocal, all on the same unit."""


class Published(NamedTuple):
    """The official kernel's figures at one shape."""

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
TARGETS = {"forward": 2.0, "forward+backward": 3.0}
"""How many times faster than the published figure, with no more memory."""


@dataclass
class Row:
    """One backend, shape and pass. What was not measured, or has no meaning, is None."""

    backend: str
    batch: int
    length: int
    d_inner: int
    d_state: int
    dtype: str
    passes: str
    status: str  # measured, skipped or failed
    reason: str | None = None
    ms: float | None = None  # median
    ms_min: float | None = None
    repetitions: int | None = None
    first_call_s: float | None = None  # compiles what was not compiled before
    peak_mib: float | None = None
    roofline_ms: float | None = None
    over_roofline: float | None = None
    # other's time / this one's
    times_mamba_ssm: float | None = None
    times_mambapy: float | None = None
    times_attention: float | None = None
    # published figures, with --shapes targets
    official_ms: float | None = None
    times_official: float | None = None
    target_times: float | None = None
    target_met: bool | None = None
    official_peak_mib: float | None = None
    peak_met: bool | None = None

    @property
    def shape(self) -> Shape:
        return Shape(self.batch, self.length, self.d_inner)


def scan_bytes(shape: Shape, d_state: int, itemsize: int, passes: str) -> int:
    """Bytes that have to move at least: each input read once, each output written once, parameters not counted.

    Forward: u, delta, z, B, C in; y out. Backward: the same and dy in; du, ddelta, dz, dB, dC out.
    """
    wide, narrow = (4, 2) if passes == "forward" else (4 + 7, 2 + 4)  # (B, L, D) and (B, L, N) tensors
    return shape.batch * shape.length * (wide * shape.d_inner + narrow * d_state) * itemsize


def scan_exponentials(shape: Shape, d_state: int, passes: str) -> int:
    """Results of the exponential unit. The backward pass computes them again: to store them is N times the input."""
    once = shape.batch * shape.length * shape.d_inner * (d_state + EXTRA_EXPONENTIALS)
    return once if passes == "forward" else 2 * once


def roofline_ms(shape: Shape, d_state: int, itemsize: int, passes: str, limits: DeviceLimits) -> float:
    """The time that no scan can beat on this device: bytes or exponentials, whichever takes longer."""
    floor = scan_bytes(shape, d_state, itemsize, passes) / limits.copy_bytes_per_second
    if limits.exponentials_per_second is not None:
        floor = max(floor, scan_exponentials(shape, d_state, passes) / limits.exponentials_per_second)
    return floor * 1e3


def compare(rows: list[Row], limits: DeviceLimits, itemsize: int, with_official: bool) -> None:
    """Fill in the ratios: to the roofline, to the others, to the published figures."""
    times = {(row.backend, row.shape, row.passes): row.ms for row in rows}
    for row in rows:
        if row.backend != "attention":  # other work, other limits
            row.roofline_ms = roofline_ms(row.shape, row.d_state, itemsize, row.passes, limits)
            row.over_roofline = ratio(row.ms, row.roofline_ms)
        for other in OTHERS:
            if row.backend != other:
                setattr(row, f"times_{other}", ratio(times.get((other, row.shape, row.passes)), row.ms))
        if with_official and row.backend != "attention":
            compare_with_official(row, OFFICIAL[row.shape])


def compare_with_official(row: Row, official: Published) -> None:
    forward = row.passes == "forward"
    row.official_ms = official.forward_ms if forward else official.both_ms
    row.target_times = TARGETS[row.passes]
    row.times_official = ratio(row.official_ms, row.ms)
    row.target_met = None if row.ms is None else row.times_official >= row.target_times
    if not forward:
        row.official_peak_mib = official.peak_mib
        row.peak_met = None if row.peak_mib is None else row.peak_mib <= official.peak_mib


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or denominator is None else numerator / denominator
