// What happens when: filling the page, and answering its controls.

function showHead() {
  const counts = `${counted(known.runs.length, "run")} in ${counted(groups.length, "group")}`;
  const runs = `${counts} (a group's runs differ in the seed alone)`;
  find("about").textContent = `${runs}. Written ${known.written} by seqlab ${known.version}.`;
  find("note").textContent = known.note;
  find("warnings").hidden = !known.warnings.length;
  find("warnings").firstElementChild.replaceChildren(...known.warnings.map((line) => make("li", {}, line)));
  const { skipped } = known;
  find("skipped").hidden = !skipped.length;
  find("skipped").querySelector("summary").textContent = `Passed over: ${skipped.length}`;
  const lines = skipped.map((cells) => make("tr", {}, ...cells.map((text) => make("td", {}, text))));
  find("skipped").querySelector("tbody").replaceChildren(...lines);
}

function buildFilters() {
  const options = (values, all) => [["", all], ...values.toSorted().map((value) => [value, value])];
  const data = distinct(groups.map((group) => group.data));
  fillSelect(find("filter-model"), options(distinct(groups.map((group) => group.model)), "all models"), "");
  fillSelect(find("filter-data"), options(data, "all data"), "");
  const sizes = data.map((value) => groups.filter((group) => group.data === value).length);
  fillSelect(find("chart-data"), data.map((value) => [value, value]), data[sizes.indexOf(Math.max(...sizes))]);
  fillSelect(find("cost"), Object.entries(known.costs), "parameters");
}

function buildCurveList() {
  find("curve-list").replaceChildren(...groups.map((group, i) => {
    const box = make("input", { type: "checkbox", "data-group": i });
    return make("label", {}, box, swatch(group), group.label);
  }));
}

// Everything that depends on what was chosen.
function refresh() {
  find("data-choice").hidden = !several || Boolean(chosen.data);
  find("curve-list").querySelectorAll("input").forEach((box, i) => {
    box.checked = chosen.shown[i];
    box.parentElement.hidden = !passes(groups[i]) || groups[i].data !== chartData();
  });
  filterResults();
  drawCharts();
}

function showOnly(wanted) {
  groups.forEach((group, i) => {
    if (passes(group) && group.data === chartData()) {
      chosen.shown[i] = wanted(group);
    }
  });
  refresh();
}

function answer() {
  find("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const key of ["model", "data"]) {
    find(`filter-${key}`).addEventListener("change", (event) => {
      chosen[key] = event.target.value;
      refresh();
    });
  }
  find("filter-text").addEventListener("input", (event) => {
    chosen.text = event.target.value;
    filterResults();
  });
  find("chart-data").addEventListener("change", refresh);
  find("axes").addEventListener("change", (event) => event.target.id !== "chart-data" && drawCharts());
  find("curve-list").addEventListener("change", (event) => {
    chosen.shown[Number(event.target.dataset.group)] = event.target.checked;
    drawCharts();
  });
  find("show-all").addEventListener("click", () => showOnly(() => true));
  find("show-none").addEventListener("click", () => showOnly(() => false));
  find("show-best").addEventListener("click", () => showOnly((group) => group.best));
  for (const id of ["run-a", "run-b", "only-different"]) {
    find(id).addEventListener("change", showConfigurations);
  }
}

function answerTheLight() {
  const repaint = () => {
    repaintSwatches();
    drawCharts();
  };
  dark.addEventListener("change", repaint);
  for (const [event, value] of [["beforeprint", true], ["afterprint", false]]) {
    window.addEventListener(event, () => {
      printing = value;
      repaint();
    });
  }
}

showHead();
buildFilters();
buildResults();
buildCurveList();
find("log-y").checked = spansDecades();
buildCharts();
buildExtra();
fillRuns();
showConfigurations();
answer();
answerTheLight();
refresh();
