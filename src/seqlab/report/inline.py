"""The tables of a comparison as HTML to be put into another page, such as a notebook's."""

from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from html import escape

from seqlab.report.compare import Comparison, warnings_of
from seqlab.report.tables import Table, tables_of


def html(comparison: Comparison, pictures: Mapping[str, bytes]) -> str:
    """Warnings, tables, what was passed over, and pictures (PNG files by name)."""
    parts = [f"<p><b>{escape(line)}</b></p>" for line in warnings_of(comparison)]
    parts += map(table, tables_of(comparison))
    if comparison.skipped:
        lines = "".join(f"<li>{escape(str(one.folder))}: {escape(one.why)}</li>" for one in comparison.skipped)
        parts.append(f"<details><summary>Passed over: {len(comparison.skipped)}</summary><ul>{lines}</ul></details>")
    parts += (picture(name, png) for name, png in pictures.items())
    return "\n".join(parts)


def table(one: Table) -> str:
    """A table with its title above and its notes below; numbers are aligned right."""
    sides = ["left" if is_text else "right" for is_text in one.is_text]

    def row(cells: Iterable[str], tag: str) -> str:
        styled = zip(cells, sides, strict=True)
        inner = "".join(f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>' for cell, side in styled)
        return f"<tr>{inner}</tr>"

    def lines() -> Iterator[str]:
        yield f"<h4>{escape(one.title)}</h4>"
        yield f"<table><thead>{row(one.headings, 'th')}</thead>"
        yield f"<tbody>{''.join(row(line, 'td') for line in one.lines)}</tbody></table>"
        if one.notes:
            yield f"<p><small>{escape(' '.join(one.notes))}</small></p>"

    return "\n".join(lines())


def picture(name: str, png: bytes) -> str:
    """A picture that needs no file beside the page."""
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{b64encode(png).decode()}">'
