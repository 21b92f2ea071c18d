"""The page in a real browser: Chromium without a window, driven by selenium, with the network watched."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from made_runs import MODELS, budget_sweep, first_comparison, grid_sweep, made_run

from seqlab.report import page as report_page
from seqlab.report.compare import compare
from seqlab.report.runs import Skipped

pytest.importorskip("plotly")
pytest.importorskip("selenium", reason="selenium drives the browser: pip install selenium")

from browser import BROWSER, DRIVER, Browser, start
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER),
    reason="needs a Chromium and its driver (Debian: apt-get install chromium chromium-driver)",
)
HOSTILE = [
    "~%{x} <b>&lt;",
    "</script><script>window.hacked = true</script>",
    "<img src=x onerror='window.hacked = true'>",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    driver = start(tmp_path_factory.mktemp("profile"))
    yield Browser(driver)
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven models over three seeds, a sweep of one of them, and another data set."""
    runs = first_comparison()
    runs += [made_run(seed=seed, **{"model.mixers.mamba.d_state": n}) for n in (8, 32) for seed in (1, 2, 3)]
    runs += [made_run(model, "ptb", seed) for model in ("mamba", "transformer") for seed in (1, 2)]
    skipped = [Skipped(Path("outputs/broken"), "damaged: summary.json is no mapping")]
    return report_page.write(compare(runs, skipped), tmp_path_factory.mktemp("page"))


@pytest.fixture
def shown(browser: Browser, page: Path) -> Iterator[Browser]:
    """The page, freshly opened; whatever a test does with it, it complains of nothing and asks nobody."""
    browser.open(page)
    yield browser
    assert browser.complaints() == []
    assert browser.requests() == {page.as_uri()}


def test_the_page_shows_what_was_compared(shown):
    assert shown.find("#count").text == "11 of 11 rows"
    assert "The runs differ in data" in shown.find("#warnings").text
    shown.click("#skipped summary")
    assert "outputs/broken" in shown.find("#skipped").text
    assert shown.run("return document.querySelectorAll('figure:not([hidden]) .main-svg').length") >= 5
    assert len(shown.chart("Validation loss")["lines"]) == len(MODELS) + 2


def test_a_heading_sorts_the_table_by_mouse_and_by_key(shown):
    numbers = [float(text.split(" ")[0]) for text in shown.column("test loss")]
    button = "#results thead th:nth-child(5) button"
    assert shown.find(button).text.strip() == "test loss"
    shown.click(button)
    heading = shown.find("#results thead th:nth-child(5)")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(text.split(" ")[0]) for text in shown.column("test loss")] == sorted(numbers)
    shown.find(button).send_keys(Keys.ENTER)
    assert heading.get_attribute("aria-sort") == "descending"
    assert [float(text.split(" ")[0]) for text in shown.column("test loss")] == sorted(numbers, reverse=True)
    shown.click("#results thead th:nth-child(7) button")  # 98,625 before 1,195,776: by size, not by letters
    sizes = [int(text.replace(",", "")) for text in shown.column("parameters")]
    assert sizes == sorted(sizes) and len(set(sizes)) > 5
    assert heading.get_attribute("aria-sort") == "none"


def test_filters_act_on_the_table_and_the_charts(shown):
    shown.select("#filter-model", "mamba")
    assert set(shown.column("data")) == {"tiny_shakespeare", "ptb"}
    assert shown.find("#count").text == "4 of 11 rows"
    assert len(shown.chart("Validation loss")["lines"]) == 3
    shown.select("#filter-data", "ptb")
    assert shown.column("model") == ["mamba"]
    assert len(shown.chart("Validation loss")["lines"]) == 1
    shown.select("#filter-model", "all models")
    shown.select("#filter-data", "all data")
    shown.find("#filter-text").send_keys("d_state=8")
    assert shown.column("model") == ["mamba, d_state=8"]


def test_curves_are_toggled(shown):
    names = [line["name"] for line in shown.chart("Training loss")["lines"]]
    box = shown.run(
        """return [...document.querySelectorAll("#curve-list label")]
        .find((label) => label.innerText.trim() === "lstm").querySelector("input")"""
    )
    shown.run("arguments[0].scrollIntoView({block: 'center'})", box)
    box.send_keys(Keys.SPACE)
    for title in ("Training loss", "Validation loss"):
        assert [line["name"] for line in shown.chart(title)["lines"]] == [name for name in names if name != "lstm"]
    assert shown.chart("Test loss and what it cost")["points"] == len(names) - 1
    shown.click("#show-none")
    assert shown.chart("Training loss")["lines"] == []
    shown.click("#show-best")
    assert sorted(line["name"].split(",")[0] for line in shown.chart("Training loss")["lines"]) == sorted(MODELS)
    shown.click("#show-all")
    assert len(shown.chart("Training loss")["lines"]) == len(names)


def test_the_axis_is_switched(shown):
    before = shown.chart("Validation loss")
    titles = {"tokens": "tokens", "flops": "training FLOPs", "seconds": "seconds of training", "step": "steps"}
    for value, title in titles.items():
        shown.click(f"input[name=x][value={value}]")
        chart = shown.chart("Validation loss")
        assert (chart["x"], chart["type"], chart["y"]) == (title, "linear", "linear")
        expected = {"tokens": 64 * 128 * 1000, "step": 1000}.get(value)
        if expected:
            assert {line["x"][-1] for line in chart["lines"]} == {expected}
    assert chart == before
    shown.click("#log-x")
    shown.click("#log-y")
    chart = shown.chart("Validation loss")
    assert (chart["type"], chart["y"]) == ("log", "log")
    assert all(line["x"][0] > 0 for line in chart["lines"])
    assert chart["bands"] == len(chart["lines"])
    shown.click("#bands")
    assert shown.chart("Validation loss")["bands"] == 0
    shown.select("#cost", "training FLOPs")
    assert shown.chart("Test loss and what it cost")["x"] == "training FLOPs"


def test_a_grid_shows_accuracy_against_the_size_and_budgets_a_fitted_curve(browser, tmp_path):
    path = report_page.write(compare(grid_sweep() + budget_sweep(seeds=(1,))), tmp_path)
    browser.open(path)
    chart = browser.chart("Sweep at length 128, pairs 8")
    assert (chart["x"], chart["type"], chart["y"]) == ("width (d_model)", "log", "linear")
    assert chart["points"] == 2
    spreads = browser.run(
        """const figure = [...document.querySelectorAll("figure")].find((one) => one.innerText.includes("pairs 8"));
        return figure.querySelector(".chart").data.map((one) => one.customdata.map(([, spread]) => spread));"""
    )
    assert spreads[0][1:] == spreads[1][1:] == ["0.99900 to 0.99900"] * 2  # two seeds, though they agree
    browser.select("#filter-model", "mamba")
    assert browser.chart("Sweep at length 128, pairs 8")["points"] == 1
    browser.select("#filter-model", "all models")
    browser.select("#filter-data", "tiny_shakespeare")
    browser.click("#log-y")
    losses, gaps = browser.chart("Fitted test loss"), browser.chart("Difference of the fitted test losses")
    assert (losses["y"], losses["points"], losses["bands"], len(losses["lines"])) == ("log", 2, 4, 6)
    assert (gaps["y"], gaps["points"], gaps["bands"], len(gaps["lines"])) == ("linear", 0, 1, 1)
    assert ", 95 % interval" in browser.hover("Fitted test loss", "lstm", 30)
    browser.select("#filter-model", "lstm")
    assert {line["name"].split(",")[0] for line in browser.chart("Fitted test loss")["lines"]} == {"lstm"}
    assert browser.complaints() == []


def places_in(browser, title: str) -> list[list[float]]:
    """Where every point of a chart's lines is drawn, from 0 to 1 across its area and down."""
    return browser.run(
        """const figures = [...document.querySelectorAll("figure")];
        const chart = figures.find((one) => one.innerText.startsWith(arguments[0])).querySelector(".chart");
        const {xaxis, yaxis} = chart._fullLayout;
        return chart.data.filter((one) => one.name).flatMap((one) => one.x.map((x, i) =>
          [xaxis.d2p(x) / xaxis._length, yaxis.d2p(one.y[i]) / yaxis._length]));""",
        title,
    )


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("evaluate_every", [50, 100])
def test_curves_of_two_points_and_of_one_lie_inside_the_axes(browser, tmp_path, evaluate_every, logarithmic):
    """Evaluated at the start and the end alone, or the end alone: neither is the fall that a chart may leave out."""
    runs = [made_run(model, seed=1, steps=99, log_every=evaluate_every, evaluate_every=99) for model in MODELS]
    browser.open(report_page.write(compare(runs), tmp_path))
    for box in ("log-x", "log-y") if logarithmic else ():
        if not browser.find(f"#{box}").is_selected():
            browser.click(f"#{box}")
    for title, count in (("Validation loss", 1 if logarithmic else 2), ("Training loss", 1)):
        if title == "Training loss" and evaluate_every == 100:
            continue
        places = places_in(browser, title)
        assert len(places) == count * len(MODELS)
        assert all(-1e-6 <= share <= 1 + 1e-6 for place in places for share in place), title
    assert browser.complaints() == []


def test_a_long_label_is_shown_whole(browser, tmp_path):
    """Its end tells it from the others as often as its beginning."""
    keys = [f"trainer.a_setting_of_many_words_{i}" for i in range(9)]
    runs = [made_run(seed=1, **dict.fromkeys(keys, n) | {"optimizer.lr": 0.5 * n}) for n in (1, 2)]
    browser.open(report_page.write(compare(runs), tmp_path))
    hidden = browser.run(
        """return [...document.querySelectorAll("#results tbody th")]
        .map((cell) => cell.scrollWidth > cell.clientWidth || getComputedStyle(cell).textOverflow === "ellipsis")"""
    )
    assert hidden == [False, False]


def test_hovering_tells_a_point_and_dragging_zooms(shown):
    text = shown.hover("Validation loss", "lstm", 5)
    assert "lstm" in text and "500 steps" in text and "over seeds" in text
    chart, layer = shown.chart_parts("Validation loss")
    width = layer.size["width"]
    actions = ActionChains(shown.driver).move_to_element_with_offset(layer, -width // 4, -40).click_and_hold()
    actions.move_by_offset(width // 2, 80).release().perform()
    low, high = shown.run("return arguments[0].layout.xaxis.range", chart)
    assert 200 < low < 300 and 700 < high < 800


def test_two_configurations_are_compared(shown):
    def choose(place: str, label: str, number: int) -> None:
        group = next(
            one
            for one in shown.find(place).find_elements(By.TAG_NAME, "optgroup")
            if one.get_attribute("label") == label
        )
        Select(shown.find(place)).select_by_value(
            group.find_elements(By.TAG_NAME, "option")[number].get_attribute("value")
        )

    def rows() -> dict[str, list[str]]:
        lines = shown.run(
            """return [...document.querySelectorAll("#configuration tbody tr")]
            .map((row) => [...row.cells].map((cell) => cell.innerText))"""
        )
        return {key: values for key, *values in lines}

    choose("#run-a", "mamba, d_state=8 (tiny_shakespeare)", 0)
    choose("#run-b", "mamba, d_state=32 (tiny_shakespeare)", 0)
    assert {key: values for key, values in rows().items() if not key.startswith("result: ")} == {
        "model.mixers.mamba.d_state": ["8", "32"]
    }
    choose("#run-b", "mamba, d_state=8 (tiny_shakespeare)", 2)
    assert {key: values for key, values in rows().items() if not key.startswith("result: ")} == {"seed": ["1", "3"]}
    shown.click("#only-different")
    assert rows()["trainer.batch_size"] == ["64", "64"]
    Select(shown.find("#run-b")).select_by_value("")
    assert rows()["trainer.batch_size"] == ["64"]
    assert shown.find("#difference-count").text == "All settings of one run."


def test_hostile_names_do_nothing(browser, tmp_path):
    runs = [made_run(text, seed=seed, **{"some.setting": text, text: 1}) for text in HOSTILE for seed in (1, 2)]
    runs += [made_run("mamba", **{"model.pattern": [text]}) for text in HOSTILE]
    path = report_page.write(compare(runs, [Skipped(Path(HOSTILE[0]), HOSTILE[1])]), tmp_path)
    browser.open(path)
    assert set(browser.column("model")) >= set(HOSTILE)
    browser.click("#show-none")
    browser.click("#curve-list label:last-child input")
    (line,) = browser.chart("Validation loss")["lines"]
    label = browser.find("#curve-list label:last-child").text.strip()
    assert label in HOSTILE
    assert label in browser.hover("Validation loss", line["name"], 5)
    assert browser.run("return window.hacked === undefined && !document.querySelector('main img, svg img, svg b')")
    assert browser.complaints() == []
    assert browser.requests() == {path.as_uri()}


def luminance(colour: str) -> float:
    parts = np.array([float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]])
    return float(np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 420])
def test_the_page_can_be_read_in_every_light_and_width(browser, page, tmp_path, scheme, width):
    browser.open(page, width=width, scheme=scheme)
    ground = luminance(browser.run("return getComputedStyle(document.body).backgroundColor"))
    assert (ground < 0.1) == (scheme == "dark")
    for selector in ("body", "#note", "#warnings", "thead button", "select", "figcaption"):
        text, behind = browser.run(
            """let one = document.querySelector(arguments[0]);
            const colour = getComputedStyle(one).color;
            while (getComputedStyle(one).backgroundColor === "rgba(0, 0, 0, 0)") one = one.parentElement;
            return [colour, getComputedStyle(one).backgroundColor]""",
            selector,
        )
        dark, bright = sorted([luminance(text), luminance(behind)])
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, selector
    assert browser.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    browser.run("document.getElementById('charts').scrollIntoView()")
    picture = browser.screenshot(tmp_path / "page.png")
    assert picture.shape[1] == width
    assert len(np.unique(picture[::3, ::3].reshape(-1, 3), axis=0)) > 50
    assert browser.complaints() == []


def test_a_dark_page_turns_light_when_the_system_does(shown):
    shown.click("#results thead th:nth-child(7) button")
    order = shown.column("model")
    colour = "return getComputedStyle(document.querySelector('figure .xtick text')).fill"
    light = shown.run(colour)
    shown.media("dark")
    WebDriverWait(shown.driver, 5).until(lambda _: shown.run(colour) != light)
    shown.media("light")
    WebDriverWait(shown.driver, 5).until(lambda _: shown.run(colour) == light)
    assert shown.column("model") == order  # as the reader had sorted it


def test_the_page_can_be_printed(shown):
    pdf = shown.driver.execute_cdp_cmd("Page.printToPDF", {"landscape": True})
    assert len(pdf["data"]) > 50_000
