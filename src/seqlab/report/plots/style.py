"""The style of lines: a colour for each architecture, a dash for each of its settings."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

from seqlab.report.groups import architecture

# Distinguishable with each of the common kinds of colour blindness, and visible on white and on black.
COLOURS = {
    "mamba": "#0072B2",
    "transformer": "#D55E00",
    "lstm": "#009E73",
    "transformer_vanilla": "#E69F00",
    "self_attention": "#CC79A7",
    "mlp": "#56B4E9",
    "linear": "#606060",
    "mamba2": "#5D4FC4",
    "hybrid": "#7A0F2E",
    "mamba_moe": "#5B4A00",
    "mamba3": "#8080F0",
    "gated_delta_net": "#D01030",
    "kimi_delta": "#408040",
    "min_gru": "#204080",
    "hybrid_qwen": "#2A2AE0",
}
OTHERS = ("#B8860B", "#00868B", "#A0522D", "#8E44AD", "#8FB84F", "#C71585", "#2F6F8F", "#B09878")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h")
LINES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


@dataclass(frozen=True)
class Style:
    """The look of a line: a colour in hexadecimal, a dash by plotly's name, a marker by matplotlib's."""

    colour: str
    line: str
    marker: str


def colours(models: Sequence[str]) -> dict[str, str]:
    """The colour of each architecture: fixed for those in ``COLOURS``, chosen among ``OTHERS`` for the rest.

    The choice depends on the name, so that it is the same in every comparison unless another name has taken the colour.
    """
    chosen = {}
    free = list(OTHERS)
    for name in sorted({architecture(model) for model in models}):
        if name in COLOURS:
            chosen[name] = COLOURS[name]
            continue
        free = free or list(OTHERS)
        wish = OTHERS[crc32(name.encode("utf-8", "replace")) % len(OTHERS)]
        chosen[name] = wish if wish in free else free[0]
        free.remove(chosen[name])
    return chosen


def styles(models: Sequence[str], everyone: Sequence[str]) -> list[Style]:
    """A style for each model, in order: the architecture's colour, a dash for each of its settings, a marker.

    Args:
        models: of one data set; a name occurs as often as it has settings.
        everyone: all models of the comparison, among which the colours are chosen.
    """
    by_architecture = colours(everyone)
    seen: Counter[str] = Counter()
    found = []
    for place, model in enumerate(models):
        kind = architecture(model)
        found.append(Style(by_architecture[kind], LINES[seen[kind] % len(LINES)], MARKERS[place % len(MARKERS)]))
        seen[kind] += 1
    return found
