"""One self-contained HTML page for a comparison: table, interactive charts, configurations and their differences.

Nothing is fetched: scripts and styles are in the page, and its content security policy forbids every request. The
charts are drawn by plotly.js, which the plotly package brings along.
"""

import base64
import hashlib
import json
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

from seqlab.errors import UserError
from seqlab.report.compare import Comparison
from seqlab.report.page.payload import payload
from seqlab.report.statistics import INTERVAL

SCRIPTS = ("settings.js", "table.js", "curves.js", "points.js", "charts.js", "configurations.js", "page.js")


def write(comparison: Comparison, folder: Path) -> Path:
    """Write ``index.html`` into the folder and return its path.

    Raises:
        UserError: plotly is not installed.
    """
    if find_spec("plotly") is None:
        raise UserError("report", "none", "plotly is not installed", "pip install -e '.[plots]'")
    from plotly.offline import get_plotlyjs

    library, ours = get_plotlyjs(), script()
    page = Template(part("page.html")).substitute(
        policy=f"'sha256-{fingerprint(library)}' 'sha256-{fingerprint(ours)}'",
        style=part("page.css"),
        library=library,
        script=ours,
        interval=INTERVAL,
        data=as_json(payload(comparison)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8", newline="\n")
    return path


def part(name: str) -> str:
    """One of the files beside this one."""
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def script() -> str:
    """Our own scripts as one, with nothing of it visible outside."""
    body = "\n".join(part(name) for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{body}}})();'


def fingerprint(text: str) -> str:
    """What a content security policy names an inline script by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def as_json(value: Any) -> str:
    """JSON that can stand in a script element whatever its strings hold: no ``<`` can end it or open a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII, so no surrogate can break the file
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
