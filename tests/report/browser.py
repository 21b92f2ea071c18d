"""Chromium without a window, driven by selenium, with the network watched."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


class Browser:
    """What the tests ask of a browser that shows a page."""

    def __init__(self, driver: webdriver.Chrome):
        self.driver = driver

    def open(self, path: Path, *, width: int = 1300, height: int = 1000, scheme: str = "light") -> None:
        """Show a file and wait until its charts are drawn."""
        self.media(scheme)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for log in ("browser", "performance"):
            self.driver.get_log(log)  # what came before is not this page's
        self.driver.get(path.as_uri())
        WebDriverWait(self.driver, 30).until(lambda _: self.run("return document.querySelectorAll('.main-svg').length"))

    def media(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        element = self.find(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def select(self, selector: str, text: str) -> None:
        Select(self.find(selector)).select_by_visible_text(text)

    def column(self, heading: str) -> list[str]:
        """The texts of a column of the results, of the rows that are shown."""
        return self.run(
            """const {tHead: {rows: [head]}, tBodies: [body]} = document.getElementById("results");
            const place = [...head.cells].findIndex((cell) => cell.innerText.trim().startsWith(arguments[0]));
            const rows = [...body.rows].filter((row) => !row.hidden);
            return rows.map((row) => row.cells[place].innerText.trim());""",
            heading,
        )

    def chart(self, title: str) -> dict:
        """What a chart shows: its axes and its lines."""
        return self.run(
            """const figures = [...document.querySelectorAll("figure")];
            const figure = figures.find((one) => one.innerText.startsWith(arguments[0]));
            const {data, layout} = figure.querySelector(".chart");
            return {
              x: layout.xaxis.title.text, type: layout.xaxis.type, y: layout.yaxis.type,
              lines: data.filter((one) => one.name).map((one) => ({name: one.name, x: one.x, y: one.y})),
              bands: data.filter((one) => one.fill === "toself").length,
              points: data.filter((one) => one.error_y).length,
            };""",
            title,
        )

    def chart_parts(self, title: str):
        """A chart's element, and within it the one that the mouse acts on; scrolled into view."""
        chart = self.run(
            """const figures = [...document.querySelectorAll("figure")];
            const chart = figures.find((one) => one.innerText.startsWith(arguments[0])).querySelector(".chart");
            chart.scrollIntoView({block: "center"});
            return chart;""",
            title,
        )
        return chart, chart.find_element(By.CSS_SELECTOR, ".nsewdrag")

    def hover(self, title: str, name: str, point: int) -> str:
        """What a chart says of a point under the mouse."""
        chart, layer = self.chart_parts(title)
        place = self.run(
            """const [chart, layer, name, point] = arguments, {xaxis, yaxis} = chart._fullLayout;
            const box = chart.getBoundingClientRect(), area = layer.getBoundingClientRect();
            const line = chart.data.find((one) => one.name === name);
            return [box.left + xaxis._offset + xaxis.c2p(line.x[point]) - area.left - area.width / 2,
                    box.top + yaxis._offset + yaxis.c2p(line.y[point]) - area.top - area.height / 2];""",
            chart,
            layer,
            name,
            point,
        )
        ActionChains(self.driver).move_to_element_with_offset(layer, *map(round, place)).perform()
        wait = WebDriverWait(self.driver, 5, ignored_exceptions=[NoSuchElementException])
        label = wait.until(lambda _: chart.find_element(By.CSS_SELECTOR, ".hovertext"))
        return label.get_attribute("textContent")

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> set[str]:
        """Addresses asked for, besides what a page holds itself."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
        urls = {one["request"]["url"] for one in sent}
        return {url for url in urls if not url.startswith(("data:", "blob:", "chrome:"))}

    def screenshot(self, path: Path) -> np.ndarray:
        path.write_bytes(self.driver.get_screenshot_as_png())
        return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))


def start(profile: Path) -> webdriver.Chrome:
    """A browser whose own settings go into a folder; what it logs and asks for can be read."""
    options = webdriver.ChromeOptions()
    for switch in (*SWITCHES, f"--user-data-dir={profile}", "about:blank"):
        options.add_argument(switch)
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER, log_output=os.devnull))
