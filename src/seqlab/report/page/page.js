// The page's data, the reader's choices, and helpers that every part uses.

const known = JSON.parse(document.getElementById("data").textContent);
const { groups } = known;
const isSeveral = Object.keys(known.charts).length > 1; // data sets

const find = (id) => document.getElementById(id);
const isOn = (id) => find(id).checked;
const boxes = [...find("curve-list").querySelectorAll("input")]; // one for each group

// An element with text and children. Text is only ever set as text, so that no name can become markup.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const passes = ({ model, data }) => [model, ""].includes(find("filter-model").value) &&
  [data, ""].includes(find("filter-data").value);

// The data set of the charts: losses on two of them have no common axis.
const chartData = () => find("filter-data").value || find("chart-data").value;

const isOffered = (group) => passes(group) && group.data === chartData();

const shownGroups = () => groups.filter((group, i) => boxes[i].checked && isOffered(group));

// Everything that depends on what was chosen.
function refresh() {
  find("data-choice").hidden = !isSeveral || find("filter-data").value !== "";
  boxes.forEach((box, i) => { box.parentElement.hidden = !isOffered(groups[i]); });
  filterResults();
  drawCharts();
}

function showOnly(isWanted) {
  groups.forEach((group, i) => { boxes[i].checked = isOffered(group) ? isWanted(group) : boxes[i].checked; });
  drawCharts();
}

document.addEventListener("DOMContentLoaded", () => {
  makeSortable();
  fillRuns();
  showConfigurations();
  refresh();
  const listen = (id, event, action) => find(id).addEventListener(event, action);
  listen("filters", "submit", (event) => event.preventDefault());
  listen("filters", "change", refresh);
  listen("filter-text", "input", filterResults);
  listen("choices", "change", refresh);
  listen("curve-list", "change", drawCharts);
  listen("show-all", "click", () => showOnly(() => true));
  listen("show-none", "click", () => showOnly(() => false));
  listen("show-best", "click", () => showOnly((group) => group.best));
  for (const id of ["run-a", "run-b", "only-different"]) {
    listen(id, "change", showConfigurations);
  }
  for (const event of ["beforeprint", "afterprint"]) {
    window.addEventListener(event, () => drawCharts(event === "beforeprint"));
  }
});
