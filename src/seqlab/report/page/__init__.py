"""One self-contained HTML page for a comparison: table, interactive charts, configurations and their differences.

Jinja2 fills in the tables, and plotly.js, which is part of the plotly package, draws the charts. Nothing is fetched:
scripts and styles are in the page, and its content security policy forbids every request.
"""

import base64
import hashlib
from importlib import resources
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from seqlab.errors import UserError
from seqlab.report.compare import Comparison
from seqlab.report.curves import AXES
from seqlab.report.page.encoding import Encoder, as_json
from seqlab.report.page.payload import payload
from seqlab.report.statistics import INTERVAL

SCRIPTS = ("page.js", "tables.js", "charts.js", "configurations.js")
IN_SCRIPT = ("groups", "charts", "runs", "settings")
"""The parts of the payload that the scripts read; the template shows the others."""


def write(comparison: Comparison, folder: Path) -> Path:
    """Write ``index.html`` into the folder and return its path.

    Raises:
        UserError: plotly is not installed.
    """
    if find_spec("plotly") is None:
        raise UserError("report", "none", "plotly is not installed", "pip install -e '.[plots]'")
    from jinja2 import Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    known = payload(comparison)
    encoder = Encoder()
    data = {name: encoder.encode(known[name]) for name in IN_SCRIPT}
    scripts = [get_plotlyjs(), our_script()]
    recorded = {name for group in comparison.groups for run in group.runs for name in chain(*run.curves.values())}
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    page = environment.from_string(part("page.html")).render(
        **known,
        policy=" ".join(f"'sha256-{fingerprint(script)}'" for script in scripts),
        style=part("page.css"),
        scripts=scripts,
        axes={axis: title for axis, title in AXES.items() if axis in recorded},
        interval=INTERVAL,
        data=as_json(data | {"arrays": encoder.arrays, "styles": list(map(vars, encoder.styles))}),
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8", errors="xmlcharrefreplace", newline="\n")  # a lone surrogate has no UTF-8
    return path


def part(name: str) -> str:
    """One of the files beside this one."""
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def our_script() -> str:
    """The page's own scripts as one function, so that their names are not global."""
    body = "\n".join(part(name) for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{body}}})();'


def fingerprint(text: str) -> str:
    """The hash by which a content security policy allows an inline script."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
