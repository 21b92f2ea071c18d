"""What is not alike in a comparison, in words: it stands above the tables."""

from collections.abc import Sequence

from seqlab.formatting import counted
from seqlab.report.compare import Comparison


def warnings_of(comparison: Comparison) -> list[str]:
    """What is not alike, a line for each thing, and what cannot be read at the budget."""
    lines = mismatches_in_words(comparison)
    return lines + ([] if comparison.at is None else comparison.at.notes)


def mismatches_in_words(comparison: Comparison, most: int = 8) -> list[str]:
    """A line for each thing in which runs side by side differ: the values, and who has which."""
    lines = []
    for name, holders in comparison.mismatches.items():
        each = max(2, 12 // len(holders))
        values = "; ".join(f"{value}: {in_row(labels, each)}" for value, labels in holders[:most])
        rest = f"; and {counted(len(holders) - most, 'more value')}" if len(holders) > most else ""
        lines.append(f"Not alike: {name}. {values}{rest}")
    return lines


def in_row(labels: Sequence[str], most: int) -> str:
    """Labels in a row, which have commas themselves; of many the first."""
    rest = len(labels) - most
    return " / ".join(labels[:most]) + (f" and {rest} more" if rest > 0 else "")
