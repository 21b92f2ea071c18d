"""Rotary positions as ``config.json`` has them, as settings of ``Attention``.

Where a model's context was extended, the frequency of each pair of channels is divided by a number of its own. Symbols:
P rotated channels of a head, i pair, base of the frequencies, factor of the extension, length of the context before it.
"""

import math
from collections.abc import Callable

from seqlab.models.mixers import Attention
from seqlab.pretrained.families.family import Settings
from seqlab.pretrained.fields import NEEDED, Fields
from seqlab.pretrained.sources import Values

Scaling = tuple[list[float], float]
"""The pairs' divisors, and what rotated queries and keys are multiplied by."""


def rotary(fields: Fields, d_head: int, *, share: float = 1.0) -> Settings:
    """The settings of rotary positions: of version 5 in ``rope_parameters``, before in ``rope_scaling`` and beside it.

    Args:
        fields: of the checkpoint.
        d_head: width of a head.
        share: of its channels that are rotated, the one that the architecture has.

    Raises:
        UserError: the frequencies depend on the sequence's length, or are scaled in a way that is not known.
    """
    name = "rope_scaling" if fields.values.get("rope_scaling") else "rope_parameters"
    rope = fields.values.get(name) or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        fields.refuse(name, rope, "one mapping for all layers")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" and kind not in SCALINGS:
        fields.refuse(name, rope, f"rope_type default, {', '.join(SCALINGS)}")
    fields = Fields(fields.values | rope, fields.architecture, fields.folder)
    fields.only(partial_rotary_factor=share)
    base, width = fields.number("rope_theta", 10_000.0), int(d_head * share)
    settings = {"rotary": True, "rotary_base": base} | ({} if share == 1 else {"rotary_width": width})
    if kind == "default":
        return settings
    divisors, factor = SCALINGS[kind](fields, base, width)
    return settings | {"rotary_divisors": divisors, "rotary_factor": factor}


def rotary_fields(attention: Attention, length: int) -> Values:
    """What ``rope_parameters`` has of attention with rotary positions: any divisors are those of ``longrope``.

    Args:
        attention: of the model.
        length: the most positions that the model is for, which changes nothing.
    """
    fields: Values = {"rope_type": "default", "rope_theta": attention.rotary_base}
    if attention.rotary_width < attention.d_head:
        fields |= {"partial_rotary_factor": attention.rotary_width / attention.d_head}
    if not attention.rotary_divisors and attention.rotary_factor == 1:
        return fields
    divisors = list(attention.rotary_divisors) or [1.0] * (attention.rotary_width // 2)
    fields |= {"rope_type": "longrope", "short_factor": divisors, "long_factor": divisors, "factor": 1.0}
    return fields | {"attention_factor": attention.rotary_factor, "original_max_position_embeddings": length}


def linear(fields: Fields, base: float, width: int) -> Scaling:
    """Positions divided by the factor (Chen et al. 2023, arXiv:2306.15595)."""
    return [fields.number("factor", NEEDED)] * (width // 2), 1.0


def llama3(fields: Fields, base: float, width: int) -> Scaling:
    """Wavelengths beyond ``length / low`` times the factor, those up to ``length / high`` kept (Llama 3.1)."""
    factor, length = fields.number("factor", NEEDED), original_length(fields)
    low, high = fields.number("low_freq_factor", NEEDED), fields.number("high_freq_factor", NEEDED)
    if low >= high:
        fields.refuse("low_freq_factor", low, f"a number below high_freq_factor={high}")
    turns = (length * base ** (-2 * i / width) / (2 * math.pi) for i in range(width // 2))  # in the old context
    kept = (min(max((n - low) / (high - low), 0.0), 1.0) for n in turns)
    return [1 / (share + (1 - share) / factor) for share in kept], 1.0


def yarn(fields: Fields, base: float, width: int) -> Scaling:
    """YaRN (Peng et al. 2023, arXiv:2309.00071, section 3): pairs that turn often are kept, others divided."""
    length = original_length(fields)
    factor = extension(fields, length)

    def pair(turns: float) -> float:
        """Which pair turns so many times in the old context, of which there is a part."""
        return width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

    first = pair(fields.number("beta_fast", 32.0))
    last = pair(fields.number("beta_slow", 1.0))
    if fields.flag("truncate", default=True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    divided = (min(max((i - first) / ((last - first) or 1e-3), 0.0), 1.0) for i in range(width // 2))
    return [1 / (share / factor + 1 - share) for share in divided], yarn_factor(fields, factor)


def yarn_factor(fields: Fields, factor: float) -> float:
    """What rotated queries and keys are multiplied by: equation 22's square root, unless the fields say it."""

    def usual(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    of_one, of_all = fields.values.get("mscale"), fields.values.get("mscale_all_dim")
    if of_one and of_all:
        suggested = usual(fields.number("mscale", NEEDED)) / usual(fields.number("mscale_all_dim", NEEDED))
    else:
        suggested = usual(1.0)
    return fields.number("attention_factor", suggested)


def longrope(fields: Fields, base: float, width: int) -> Scaling:
    """LongRoPE (Ding et al. 2024, arXiv:2402.13753) with the same divisors at every length."""
    divisors, length = fields.values.get("long_factor"), original_length(fields)
    if not isinstance(divisors, list) or not all(type(one) in (int, float) and one > 0 for one in divisors):
        fields.refuse("long_factor", divisors, "a list of numbers above 0")
    fields.only(short_factor=(divisors,))
    factor = extension(fields, length)
    suggested = math.sqrt(1 + math.log(factor) / math.log(length)) if factor > 1 else 1.0
    return [float(one) for one in divisors], fields.number("attention_factor", suggested)


def original_length(fields: Fields) -> int:
    """Positions that the model was trained with before its context was extended."""
    return fields.whole("original_max_position_embeddings", None) or fields.whole("max_position_embeddings")


def extension(fields: Fields, length: int) -> float:
    """By what the context of ``length`` was extended."""
    given = fields.values.get("factor")
    return fields.whole("max_position_embeddings") / length if given is None else fields.number("factor", NEEDED)


SCALINGS: dict[str, Callable[[Fields, float, int], Scaling]] = {
    "linear": linear,
    "llama3": llama3,
    "yarn": yarn,
    "longrope": longrope,
}
