// What the page knows and what its reader has chosen; small helpers that every part uses.

const known = JSON.parse(document.getElementById("data").textContent);
const groups = known.groups;
const chosen = {
  model: "",
  data: "",
  text: "",
  shown: groups.map((group) => group.first),
};

const find = (id) => document.getElementById(id);

// An element with text and children. Text is only ever set as text, so that no name can become markup.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function fillSelect(select, options, value) {
  select.replaceChildren(...options.map(([key, text]) => make("option", { value: key }, text)));
  select.value = value;
}

const counted = (number, thing) => `${number} ${thing}${number === 1 ? "" : "s"}`;

const distinct = (values) => [...new Set(values)];

const several = distinct(groups.map((group) => group.data)).length > 1; // data sets

const passes = (group) =>
  (!chosen.model || group.model === chosen.model) && (!chosen.data || group.data === chosen.data);

// The data set of the charts: losses on two of them have no common axis.
function chartData() {
  return chosen.data || find("chart-data").value;
}

function shownGroups() {
  const data = chartData();
  return groups.map((group, i) => i).filter((i) => chosen.shown[i] && passes(groups[i]) && groups[i].data === data);
}

const dark = window.matchMedia("(prefers-color-scheme: dark)");
let printing = false;
const isDark = () => dark.matches && !printing;

// On a dark page the same hue, lighter.
function visible(colour) {
  if (!isDark()) {
    return colour;
  }
  const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return `rgb(${parts.map((part) => Math.round(part + (255 - part) * 0.3)).join(",")})`;
}

const DASHES = {
  solid: "none",
  dashed: "6 3",
  dotted: "2 2",
  dashdot: "6 2 2 2",
  longdash: "10 3",
  longdashdot: "10 3 2 3",
};

function swatch(group) {
  const namespace = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(namespace, "svg");
  const line = document.createElementNS(namespace, "line");
  const look = { x1: 1, x2: 33, y1: 6, y2: 6, stroke: visible(group.colour), "stroke-width": 2.5 };
  for (const [name, value] of Object.entries({ ...look, "stroke-dasharray": DASHES[group.line] })) {
    line.setAttribute(name, value);
  }
  svg.setAttribute("class", "swatch");
  svg.setAttribute("viewBox", "0 0 34 12");
  svg.setAttribute("aria-hidden", "true");
  svg.dataset.colour = group.colour;
  svg.append(line);
  return svg;
}

function repaintSwatches() {
  for (const svg of document.querySelectorAll("svg.swatch")) {
    svg.firstElementChild.setAttribute("stroke", visible(svg.dataset.colour));
  }
}
