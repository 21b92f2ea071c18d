"""Which mixer and which feed-forward each layer has: lists that repeat over the depth."""

from torch import nn

from seqlab.errors import UserError, nearest
from seqlab.models.protocols import Factory, Mixer


def names_in(entry: str) -> list[str]:
    """The mixers of one layer, which its entry in a pattern joins with plus signs."""
    return entry.split("+")


def check_pattern(pattern: list[str], n_layers: int, mixers: dict[str, Factory]) -> None:
    """Check that a pattern names known mixers and fits into the depth.

    Raises:
        UserError: it names an unknown mixer, or its length does not go with ``n_layers``.
    """
    names = ", ".join(map(repr, mixers)) or "a mixer"
    unknown = next((name for entry in pattern for name in names_in(entry) if name not in mixers), None)
    if unknown == "":
        rule = "a plus sign joins the names of two mixers, and one is missing"
        raise UserError("pattern", list(pattern), rule, f"Write two, each of {names}")
    if unknown is not None:
        remedy = nearest(unknown, mixers)
        if not remedy.startswith("Did you mean"):
            remedy = f"Use {names}, or describe {unknown!r} there, as model=hybrid does each mixer of ours"
        raise UserError("pattern", list(pattern), f"{unknown!r} is not under model.mixers", remedy)
    if n_layers > 0 and not pattern:
        rule = f"needs at least one mixer, as n_layers={n_layers} repeats it"
        raise UserError("pattern", [], rule, f"Name {names}, or set n_layers=0")
    if n_layers == 0 and pattern:
        rule = f"leaves no layer, so that nothing of pattern={list(pattern)} would be in the model"
        raise UserError("n_layers", 0, rule, "Set n_layers=1 or more, or take model=linear, which has none")
    check_fits("pattern", list(pattern), "mixers", n_layers)


def check_mixer(name: str, mixer: nn.Module) -> None:
    """Check that a mixer has all that generation needs.

    Raises:
        UserError: it lacks ``initial_state`` or ``step``.
    """
    if not isinstance(mixer, Mixer):
        rule = "has no initial_state and step, by which a model generates"
        raise UserError(f"mixers.{name}", type(mixer).__name__, rule, "Write them (seqlab.models.protocols.Mixer)")


def check_widths(layers: list[list[nn.Module]], d_model: int, *, alone: bool, ends_so: bool = True) -> int:
    """Check that each layer's mixers take what the layer before gives, and the head what the last one does.

    Args:
        layers: the mixers of each layer; one may have ``io_widths``, of its input and its output.
        d_model: the width of the embedding, of the head, and of parts without ``io_widths``.
        alone: whether a layer is a mixer by itself, with no norm, feed-forward or residual connection at ``d_model``.
        ends_so: whether the head takes ``d_model`` alone.

    Returns:
        The width that comes to the head.

    Raises:
        UserError: two widths differ.
    """
    width = d_model
    for i, mixers in enumerate(layers):
        for mixer in mixers:
            d_in, d_out = getattr(mixer, "io_widths", (d_model, d_model))
            if (d_in, d_out) != (d_model, d_model) and not (alone and len(mixers) == 1):
                rule = f"other widths than d_model={d_model} need a model whose layers are a mixer alone"
                remedy = "Set residual=false norm=null feedforward=null, or leave d_in and d_out out"
                raise UserError("mixers", f"{type(mixer).__name__} of {d_in} to {d_out}", rule, remedy)
            if d_in != width:
                rule = f"layer {i} takes {d_in} channels, and {width} come to it"
                raise UserError("mixers", f"{type(mixer).__name__} of {d_in} to {d_out}", rule, f"Set its d_in={width}")
        width = d_out
    if width != d_model and ends_so:
        rule = f"the last layer gives {width} channels, and the head takes d_model={d_model}"
        raise UserError("mixers", f"{type(mixer).__name__} of {d_in} to {d_out}", rule, f"Set its d_out={d_model}")
    return width


def feedforward_pattern(feedforward: Factory | list[Factory | None] | None, n_layers: int) -> list[Factory | None]:
    """The feed-forwards as a list that repeats over the depth.

    Raises:
        UserError: the list is empty, or longer than the depth.
    """
    if not isinstance(feedforward, list):
        return [feedforward]
    if not feedforward:
        raise UserError("feedforward", [], "an empty list has nothing to repeat", "Write null for none at all")
    shown = [None if factory is None else getattr(factory, "func", factory).__name__ for factory in feedforward]
    check_fits("feedforward", shown, "feed-forwards", n_layers)
    return feedforward


def check_fits(key: str, value: list, things: str, n_layers: int) -> None:
    """Check that a list is not longer than the depth, which would silently leave out its last entries.

    Raises:
        UserError: it is.
    """
    if len(value) > n_layers > 0:
        raise UserError(
            key,
            value,
            f"{len(value)} {things} do not fit into n_layers={n_layers}, so the last would never be built",
            f"Set n_layers={len(value)} or more, or shorten the list",
        )
