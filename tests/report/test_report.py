import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_runs import MODELS, first_comparison, grid_sweep, made_run

from seqlab.errors import UserError
from seqlab.report import page as report_page
from seqlab.report import write_tables as tables
from seqlab.report.compare import compare
from seqlab.report.formats import NONE
from seqlab.report.groups import flatten
from seqlab.report.page.cells import sort_key
from seqlab.report.page.payload import as_text, payload
from seqlab.report.runs import Skipped
from seqlab.report.statistics import INTERVAL
from seqlab.report.tables import tables_of as sheets_of

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
    """A page's elements with their attributes, and what its scripts hold."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.scripts, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append((dict(attributes), ""))

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data


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
    page = report_page.write(comparison, tmp_path).read_text(encoding="utf-8")
    assert f"bars: {INTERVAL}." in page  # of the charts
    texts = [payload(comparison)["note"], tables.markdown(comparison), tables.latex(comparison).replace("\\%", "%")]
    texts += [sheets_of(comparison)[0].notes[0]]  # which the screen shows
    assert all(f"in brackets: {INTERVAL}." in text for text in texts)
    assert not any("bootstrap" in text.replace(INTERVAL, "") for text in [*texts, page.split("<script")[0]])


def test_every_row_and_curve_is_in_the_page(tmp_path):
    comparison = compare(first_comparison())
    _, data = written(first_comparison(), tmp_path)
    assert {group["label"] for group in data["groups"]} == set(MODELS)
    assert data["table"]["headings"][:3] == ["model", "data", "seeds"]
    place = data["table"]["headings"].index("test loss")
    for row, line in zip(comparison.rows, data["table"]["rows"], strict=True):
        assert data["groups"][line["group"]]["label"] == line["cells"][0][0] == row.group.label
        assert line["cells"][place][1] == row.test["loss"].mean
    mamba = next(group for group in data["groups"] if group["model"] == "mamba")
    runs = [run for run in first_comparison() if run.summary["model"] == "mamba"]
    curve = mamba["curves"]["validation"]
    losses = np.mean([run.curves["validation"]["loss"] for run in runs], axis=0)
    np.testing.assert_allclose(curve["step"]["y"], losses, rtol=1e-4)
    for axis in ("tokens", "flops"):
        x = curve["tokens"]["factor"] if axis == "tokens" else curve["flops"]["factor"]
        np.testing.assert_allclose(np.multiply(curve["step"]["x"], x), runs[0].curves["validation"][axis], rtol=1e-5)
    assert curve["seconds"].keys() == {"x", "y", "low", "high"}
    assert mamba["test"][1] < mamba["test"][0] < mamba["test"][2]


def test_a_grid_has_a_panel_for_each_data_setting():
    runs = [run for run in grid_sweep() if run.config["data"]["length"] != 128 or run.config["size"]["d_model"] != 64]
    known = payload(compare(runs))
    assert known["measures"] == {"mqar": "accuracy"} and known["sweeps"] == []
    titles = ["length 64, pairs 4", "length 128, pairs 8", "length 256, pairs 16"]
    assert [panel["title"] for panel in known["grids"]] == titles
    panel = known["grids"][1]
    assert (panel["data"], panel["axis"], panel["sizes"]) == ("mqar", "width (d_model)", [32, 64, 128])
    lines = {known["groups"][line[0]]["model"]: line for line in panel["lines"]}
    assert [line[1] for line in lines.values()] == [None, None]
    means = [known["groups"][i]["accuracy"][0] for i in (lines["mamba"][0], lines["mamba"][2])]
    assert means == pytest.approx([0.115, 0.999])


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
    assert data["skipped"] == [[HOSTILE[0], HOSTILE[1]]]
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
    assert all(isinstance(row["cells"][4][1], float) for row in known["extra"][0]["rows"])


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
