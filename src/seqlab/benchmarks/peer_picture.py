"""The picture of training beside ``mamba_ssm``: tokens a second over size, and over length."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqlab.benchmarks.peer_tasks import LENGTHENED, SHAPES, SIZES, TOKENS
from seqlab.benchmarks.report import can_draw, thousands
from seqlab.report.plots.style import MARKERS, Style, colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = ("seqlab", "mamba_ssm")
LOOKS = {
    "seqlab": Style(colours(["mamba"])["mamba"], "solid", MARKERS[0]),
    "mamba_ssm": Style("#7f7f7f", "dash", MARKERS[1]),
}
PALE, FULL = 0.5, 1.0
"""Opacity of the bars at the first and at the second shape."""

Row = Mapping[str, Any]


def write_picture(out: Path, results: Mapping[str, Any]) -> list[str]:
    """Draw the training steps of Mamba beside a file; returns the names of the files.

    Nothing is drawn without matplotlib, or where one of the panels would have no values.

    Args:
        out: the JSON file of the results, whose name with other endings the picture gets.
        results: as ``peer`` writes them.
    """
    steps = [row for row in results["rows"] if (row["what"], row["model"]) == ("training step", "mamba")]
    sized = {(row["size"], row["batch"], row["length"]): row for row in steps}
    long = [row for row in steps if row["size"] == LENGTHENED and row["tokens"] == TOKENS]
    sizes = [size for size in SIZES if any((size, *shape) in sized for shape in SHAPES)]
    if not sizes or len(long) < 2 or not can_draw():
        return []
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from seqlab.report.plots import drawing

    with rc_context(drawing.SETTINGS):
        figure = Figure(figsize=(drawing.WIDTH, 2.9), layout="constrained")
        version, day = results["versions"]["mamba_ssm"], results["date"][:10]
        title = f"Training Mamba: seqlab beside mamba_ssm {version}\n{results['device_name']}, bf16, {day}"
        figure.suptitle(title, fontsize=9)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        draw_sizes(left, sizes, sized)
        draw_lengths(right, long)
        left.set_ylabel("million tokens/s")
        left.set_ylim(0, 1.22 * left.get_ylim()[1])  # room for the legend
        caption = (
            "Training steps with a vocabulary of 10,000; sequences x tokens. Numbers: how many times as many "
            f"tokens a second seqlab trains. Right: size {LENGTHENED}, {TOKENS:,} tokens a step at every length."
        )
        picture = drawing.Picture(figure, [], caption)
        drawing.finish(picture)
        return [path.name for path in drawing.save(picture, out.parent, out.stem)]


def millions(row: Row, name: str) -> float | None:
    """Million tokens a second; ``None`` where it was not measured."""
    taken = row[name]["seconds"]
    return None if taken is None else row["tokens"] / taken / 1e6


def label(axes: "Axes", x: float, row: Row) -> None:
    """Write how many times as many tokens above the higher value."""
    if row["times_the_tokens"] is not None:
        y = max(filter(None, (millions(row, name) for name in NAMES)))
        text = f"{row['times_the_tokens']:.1f}x"
        axes.annotate(text, (x, y), (0, 3), textcoords="offset points", ha="center", fontsize=6.5)


def draw_sizes(axes: "Axes", sizes: Sequence[str], sized: Mapping[tuple[str, int, int], Row]) -> None:
    """A group of bars for each size: at each shape ours and theirs."""
    from matplotlib.patches import Patch

    width = 0.2
    for place, size in enumerate(sizes):
        for (shape, alpha), start in zip(zip(SHAPES, (PALE, FULL), strict=True), (-1.5, 0.5), strict=True):
            row = sized.get((size, *shape))
            if row is None:
                continue
            for beside, name in enumerate(NAMES):
                if (height := millions(row, name)) is not None:
                    x = place + (start + beside) * width
                    axes.bar(x, height, 0.92 * width, color=LOOKS[name].colour, alpha=alpha, linewidth=0, zorder=2)
            label(axes, place + (start + 0.5) * width, row)
    axes.set_xticks(range(len(sizes)), sizes)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("size")
    entries = [
        Patch(color=LOOKS[name].colour, alpha=alpha, linewidth=0, label=f"{name}, {batch} x {length:,}")
        for (batch, length), alpha in zip(SHAPES, (PALE, FULL), strict=True)
        for name in NAMES
    ]
    axes.legend(handles=entries, ncols=2, frameon=False, loc="upper right")


def draw_lengths(axes: "Axes", rows: Iterable[Row]) -> None:
    """Lines over the length of a sequence."""
    from matplotlib.ticker import NullLocator

    from seqlab.report.plots.drawing import linestyle

    rows = sorted(rows, key=lambda row: row["length"])
    lengths = [row["length"] for row in rows]
    for name in NAMES:
        look = LOOKS[name]
        points = [(row["length"], y) for row in rows if (y := millions(row, name)) is not None]
        style = {"color": look.colour, "linestyle": linestyle(look), "marker": look.marker}
        axes.plot([x for x, _ in points], [y for _, y in points], label=name, **style)
    for row in rows:
        label(axes, row["length"], row)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, list(map(thousands, lengths)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.08)
    axes.set_xlabel("length of a sequence, tokens")
    axes.legend(frameon=False, loc="center left")
