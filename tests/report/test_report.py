import base64
import hashlib
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_runs import MODELS, first_comparison, grid_sweep, made_run

from seqlab.errors import UserError
from seqlab.report import page as report_page
from seqlab.report import write_tables
from seqlab.report.compare import compare
from seqlab.report.formats import NONE, mean_and_std
from seqlab.report.groups import flatten
from seqlab.report.page.cells import sort_key
from seqlab.report.page.payload import payload
from seqlab.report.page.settings import as_text
from seqlab.report.runs import Skipped
from seqlab.report.statistics import INTERVAL
from seqlab.report.tables import tables_of

pytest.importorskip("plotly")

HOSTILE = [
    "</script><script>window.hacked = true</script>",
    "<img src=x onerror='window.hacked = true'>",
    "<!-- <script>",
    "]]>\u2028\u2029\x00\x1b",
    "%{x} &lt; &amp;",
    "__proto__",
    "\ud800 lone",
]


class Page(HTMLParser):
    """A page's elements with their attributes, what its scripts hold, and its tables' texts and cells by id."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.scripts, self.inside = [], [], False
        self.tables, self.cells, self.table, self.in_cell = {}, {}, None, False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append((attributes, ""))
        if tag == "table":
            self.table = attributes.get("id")
            self.tables[self.table], self.cells[self.table] = [], []
        if tag == "tr":
            self.tables[self.table].append([])
            self.cells[self.table].append([])
        self.in_cell = self.in_cell or tag in ("th", "td")
        if tag in ("th", "td"):
            self.tables[self.table][-1].append("")
            self.cells[self.table][-1].append(attributes)

    def handle_endtag(self, tag):
        self.inside = False
        self.in_cell = self.in_cell and tag not in ("th", "td")

    def handle_data(self, data):
        if self.inside:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        elif self.in_cell:
            self.tables[self.table][-1][-1] += data.strip()


def written(runs, folder, **more) -> tuple[Page, dict]:
    page = Page(report_page.write(compare(runs, **more), folder).read_text(encoding="utf-8"))
    (data,) = (text for attributes, text in page.scripts if attributes.get("type") == "application/json")
    return page, json.loads(data)


def test_the_page_is_one_file_that_fetches_nothing(tmp_path):
    page, _ = written(first_comparison((1,)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "srcset", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    (policy,) = (a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "connect-src" not in policy and "http" not in policy
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    run = [text for attributes, text in page.scripts if "type" not in attributes]
    assert {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run} == allowed
    assert "unsafe-eval" not in policy and "script-src 'unsafe-inline'" not in policy


def test_the_interval_has_one_name_in_tables_and_page(tmp_path):
    comparison = compare([made_run(seed=seed) for seed in (1, 2)])
    page = unescape(report_page.write(comparison, tmp_path).read_text(encoding="utf-8"))
    assert f"bars: {INTERVAL}." in page  # of the charts
    texts = [
        payload(comparison)["note"],
        write_tables.markdown(comparison),
        write_tables.latex(comparison).replace("\\%", "%"),
    ]
    texts += [tables_of(comparison)[0].notes[0]]  # which the screen shows
    assert all(f"in brackets: {INTERVAL}." in text for text in texts)
    assert not any("bootstrap" in text.replace(INTERVAL, "") for text in [*texts, page.split("<script")[0]])


def test_every_row_and_curve_is_in_the_page(tmp_path):
    comparison = compare(first_comparison())
    page, data = written(first_comparison(), tmp_path)
    assert {group["label"] for group in data["groups"]} == set(MODELS)
    headings, *lines = page.tables["results"]
    assert headings[:3] == ["model", "data", "seeds"]
    place = headings.index("test loss")
    assert [line[0] for line in lines] == [row.group.label for row in comparison.rows]
    assert [line[place] for line in lines] == [mean_and_std(row.test["loss"]) for row in comparison.rows]
    keys = [float(row[place]["data-sort"]) for row in page.cells["results"][1:]]
    assert keys == [row.test["loss"].mean for row in comparison.rows]
    place = next(i for i, group in enumerate(data["groups"]) if group["model"] == "mamba")
    charts = {one["title"]: one["panels"] for one in data["charts"]["tiny_shakespeare"]}
    runs = [run for run in first_comparison() if run.summary["model"] == "mamba"]
    losses = [run.curves["validation"]["loss"] for run in runs]
    curve = {axis: band_of(data, panel, place) for axis, panel in charts["Validation loss"].items()}
    for axis in ("step", "tokens", "flops"):
        x, *extent = curve[axis]
        np.testing.assert_allclose(x, runs[0].curves["validation"][axis], rtol=1e-5)
        expected = [np.mean(losses, axis=0), np.min(losses, axis=0), np.max(losses, axis=0)]
        np.testing.assert_allclose(extent, expected, rtol=1e-5)
    assert curve["seconds"][0][-1] == pytest.approx(min(run.curves["validation"]["seconds"][-1] for run in runs))
    _, mean, low, high = band_of(data, charts["Test loss and what it cost"]["parameters"], place)
    assert low < mean < high


def band_of(data: dict, panel: dict, group: int) -> list[list[float]]:
    """The places, means, low and high ends of a group's line."""
    (line,) = (one for one in panel["lines"] if one["groups"] == [group])
    return [data["arrays"][place] for place in line["band"]]


def test_a_grid_has_a_panel_for_each_data_setting():
    runs = [run for run in grid_sweep() if run.config["data"]["length"] != 128 or run.config["size"]["d_model"] != 64]
    known = payload(compare(runs))
    panels = {one["title"]: one["panels"][""] for one in known["charts"]["mqar"] if "Sweep" in one["title"]}
    titles = ["length 64, pairs 4", "length 128, pairs 8", "length 256, pairs 16"]
    assert list(panels) == [f"Sweep at {title}" for title in titles]
    panel = panels["Sweep at length 128, pairs 8"]
    assert (panel.x.title, panel.x.places, panel.y) == ("width (d_model)", (32, 64, 128), "accuracy")
    lines = {known["groups"][line.groups[0]]["model"]: line.band for line in panel.lines}
    assert [band.x.tolist() for band in lines.values()] == [[32, 128], [32, 128]]
    assert lines["mamba"].mean == pytest.approx([0.115, 0.999])


def test_each_runs_configuration_can_be_read_back():
    runs = [
        made_run("mamba", **{"model.mixers.mamba.d_state": 8}),
        made_run("mamba", seed=2, **{"only.here": [1, None, True]}),
        made_run("transformer", "ptb"),
    ]
    known = payload(compare(runs))
    by_folder = {str(run.folder): run for run in runs}
    assert len(known["runs"]) == 3
    for place, (folder, group, seed) in enumerate(known["runs"]):
        read = {one["key"]: one["values"][one["of"][place] if "of" in one else 0] for one in known["settings"]}
        config = {key: value for key, value in read.items() if not key.startswith("result: ") and value is not None}
        run = by_folder[folder]
        assert config == {key: as_text(value) for key, value in flatten(run.config).items()}
        assert seed == run.summary["seed"]
        assert read["result: command"] == run.summary["command"]
        assert known["groups"][group]["model"] == run.summary["model"]
    constant = next(one for one in known["settings"] if one["key"] == "trainer.batch_size")
    assert constant == {"key": "trainer.batch_size", "values": ["64"]}


def test_hostile_text_stays_text(tmp_path):
    runs = [made_run(text, text, **{"some.setting": text, text: 1}) for text in HOSTILE]
    page, data = written(runs, tmp_path, skipped=[Skipped(Path(HOSTILE[0]), HOSTILE[1])])
    assert len(page.scripts) == 3
    assert sum(tag == "img" for tag, _ in page.elements) == 0
    assert sorted(group["label"] for group in data["groups"]) == sorted(HOSTILE)
    assert page.tables["skipped-folders"][1] == [HOSTILE[0], HOSTILE[1]]
    drawn = {line[0] for line in page.tables["results"][1:]}  # what UTF-8 or HTML cannot hold is replaced
    assert drawn >= {text for text in HOSTILE if text.isprintable()}
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    embedded = text[text.index('id="data"') :].split("</script>")[0].partition(">")[2]
    assert not set("<>&") & set(embedded)


def test_warnings_and_skipped_folders_are_passed_on():
    runs = [made_run("mamba", steps=1000), made_run("lstm", steps=500)]
    known = payload(compare(runs, [Skipped(Path("outputs/empty"), "no summary.json")]))
    assert any("tokens" in line for line in known["warnings"])
    assert known["skipped"] == [["outputs/empty", "no summary.json"]]


def test_a_budget_and_the_differences_are_shown():
    known = payload(compare(first_comparison(), at=("tokens", 4e6)))
    assert any("4.00 M tokens" in heading for heading in known["table"]["headings"])
    assert [sheet["title"] for sheet in known["extra"]] == ["Paired differences"]
    assert all(isinstance(line[4][1], float) for line in known["extra"][0]["lines"])


def test_cells_are_sorted_by_their_numbers():
    texts = {"-0.012": -0.012, "+1.5": 1.5, "3": 3.0, "1,234,567": 1234567.0, NONE: None, "": None, "mamba": "mamba"}
    assert {text: sort_key(text) for text in texts} == texts
    assert sort_key("nan") == "nan"


def test_a_thousand_runs_stay_below_eight_megabytes(tmp_path):
    runs = [
        made_run(model, seed=seed, steps=2000, evaluate_every=20, loss_change=dropout, **{"model.dropout": dropout})
        for model in MODELS
        for dropout in np.linspace(0, 0.9, 48).round(3).tolist()
        for seed in (1, 2, 3)
    ]
    assert len(runs) > 1000
    path = report_page.write(compare(runs), tmp_path)
    assert path.stat().st_size < 8e6


def test_without_plotly_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(report_page, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        report_page.write(compare([made_run()]), tmp_path)
