"""Tables for the screen; JSON and a picture for the folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.table import Table

from seqlab.benchmarks.inference.results import COLUMNS, Curve, Exponent
from seqlab.report.plots.style import architecture, colours

MARKERS = "os^DvPX"
"""Tell curves of one colour apart."""

PANELS = (  # column, a second one that is drawn dashed, title, unit
    ("prefill_ms", None, "Prefill: reading the whole context", "milliseconds"),
    ("token_ms", "graph_token_ms", "One token more", "milliseconds"),
    ("state_bytes", None, "State, or keys and values, of one sequence", "bytes"),
    ("peak_bytes", None, "Peak memory of both, beyond the weights", "bytes"),
)


def results_table(curves: Sequence[Curve], title: str) -> Table:
    """A line for each model, batch and context."""
    graphs = any(point.graph_token_ms is not None for curve in curves for point in curve.points)
    table = Table(title=title, title_justify="left")
    table.add_column("model", overflow="fold")
    headings = ["batch", "context", "prefill\nms", "read\ntokens/s", "token\nms", *["graph\nms"] * graphs]
    for heading in (*headings, "new\ntokens/s", "state", "peak"):
        table.add_column(heading, justify="right")
    for curve in curves:
        for place, point in enumerate(curve.points):
            graph = [digits(point.graph_token_ms)] * graphs
            table.add_row(
                curve.model if place == 0 else "",
                str(curve.batch) if place == 0 else "",
                f"{point.context:,}",
                digits(point.prefill_ms),
                digits(point.prefill_tokens_per_second),
                digits(point.token_ms),
                *graph,
                digits(point.graph_tokens_per_second or point.tokens_per_second),
                size(point.state_bytes),
                size(point.peak_bytes),
            )
        table.add_section()
    return table


def exponents_table(curves: Sequence[Curve]) -> Table:
    """By which power of the context each cost grows."""
    shown = [name for name in COLUMNS if any(curve.exponents[name] for curve in curves)]
    caption = (
        "cost ~ context^exponent over the contexts named, with its standard error: 0 constant, 1 linear, 2 quadratic"
    )
    table = Table(title="Exponents", title_justify="left", caption=caption, caption_justify="left")
    for heading in ("model", "batch", "contexts"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name in shown:
        table.add_column(COLUMNS[name].replace(" ", "\n", 1), justify="right")
    for curve in curves:
        fits = curve.exponents
        found = next((fit for fit in fits.values() if fit), None)
        span = f"{found.shortest:,} to {found.longest:,}" if found else "too few"
        table.add_row(curve.model, str(curve.batch), span, *(said(fits[name]) for name in shown))
    return table


def endings(curves: Sequence[Curve]) -> list[str]:
    """A line for each curve that ends early, and for each step that could not be a CUDA graph."""
    lines = []
    for curve in curves:
        name = f"{curve.model}, batch {curve.batch}"
        if curve.ended is not None:
            last = f"ends at {curve.points[-1].context:,}" if curve.points else "has no point"
            lines.append(f"{name}, {last}: {curve.ended}")
        if curve.no_graph is not None:
            lines.append(f"{name}, without a CUDA graph: {curve.no_graph}")
    return lines


def said(exponent: Exponent | None) -> str:
    return "-" if exponent is None else str(exponent)


def digits(value: float | None) -> str:
    """Three significant digits, or all of a whole number."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def size(value: int | None) -> str:
    """Bytes with a binary prefix."""
    if value is None:
        return "-"
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if value >= 2**power:
            return f"{digits(value / 2**power)} {unit}"
    return f"{value} B"


def as_dict(curve: Curve) -> dict[str, Any]:
    exponents = {name: asdict(fit) if fit else None for name, fit in curve.exponents.items()}
    return asdict(curve) | {"exponents": exponents}


def write_json(path: Path, facts: dict[str, Any], curves: Sequence[Curve]) -> None:
    results = facts | {"curves": [as_dict(curve) for curve in curves]}
    path.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_png(path: Path, curves: Sequence[Curve], title: str) -> bool:
    """Four panels against the context, on logarithmic axes. False if there is no matplotlib."""
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 9), layout="constrained")
    figure.suptitle(title)
    looks = looks_of(curves)
    for axes, (column, dashed, heading, unit) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for curve, look in zip(curves, looks, strict=True):
            draw(axes, curve, column, look)
            if dashed is not None:
                draw(axes, curve, dashed, look | {"linestyle": "--"})
        axes.set(title=heading, ylabel=unit, xlabel="context, tokens")
        finish(axes, unit)
    figure.savefig(path, dpi=110)
    return True


def finish(axes: Any, unit: str) -> None:
    """Logarithmic axes with plain numbers on them."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.grid(alpha=0.3)
    if not axes.lines:
        axes.text(0.5, 0.5, "not known on this device", ha="center", transform=axes.transAxes)
        return
    in_bytes = unit == "bytes"
    plain = FuncFormatter(lambda value, _: size(int(value)) if in_bytes else f"{value:g}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2 if in_bytes else 10)
    low, high = axes.get_ylim()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(int(value))))
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain if high < 10 * low else NullFormatter())  # else no tick might have a number
    place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}  # beside the panel: there may be many
    axes.legend(fontsize=8, title="exponent of the context", title_fontsize=8, **place)


def thousands(context: int) -> str:
    """A power of two as people write it: 8192 is 8k, 1048576 is 1M."""
    for power, prefix in ((20, "M"), (10, "k")):
        if context >= 2**power:
            return f"{context / 2**power:g}{prefix}"
    return str(context)


def looks_of(curves: Sequence[Curve]) -> list[dict[str, str]]:
    """A colour for each architecture, a marker for each of its curves."""
    by_architecture = colours([curve.architecture for curve in curves])
    several = len({curve.batch for curve in curves}) > 1
    seen: dict[str, int] = {}
    looks = []
    for curve in curves:
        kind = architecture(curve.architecture)
        place = seen.setdefault(kind, 0)
        seen[kind] += 1
        label = f"{curve.model}, batch {curve.batch}" if several else curve.model
        looks.append({"color": by_architecture[kind], "marker": MARKERS[place % len(MARKERS)], "label": label})
    return looks


def draw(axes: Any, curve: Curve, column: str, look: dict[str, str]) -> None:
    """One curve, with its exponent in the legend."""
    pairs = [(point.context, getattr(point, column)) for point in curve.points]
    pairs = [(context, value) for context, value in pairs if value]  # there is no zero on a logarithmic axis
    if pairs:
        graph = ", CUDA graph" if column == "graph_token_ms" else ""
        label = f"{look['label']}{graph}: {said(curve.exponents[column])}"
        axes.plot(*zip(*pairs, strict=True), markersize=4, **(look | {"label": label}))
