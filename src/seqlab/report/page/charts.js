// The charts, drawn by plotly.js whenever a choice changes what they show.

const CONFIG = {
  responsive: true,
  displaylogo: false,
  displayModeBar: "hover",
  modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]], // none asks a server
  toImageButtonOptions: { format: "svg", filename: "comparison" },
};
const LAYOUT = {
  showlegend: false,
  hovermode: "closest",
  margin: { l: 55, r: 12, t: 8, b: 45 },
  paper_bgcolor: "rgba(0,0,0,0)",
  plot_bgcolor: "rgba(0,0,0,0)",
  font: { color: "#1b1f24", size: 12 },
  hoverlabel: { align: "left" },
  modebar: { bgcolor: "rgba(0,0,0,0)", color: "#57606a", activecolor: "#0b5cad" },
};
const AXIS = { gridcolor: "#d0d7de", linecolor: "#57606a", zeroline: false, automargin: true };
const START = 0.02; // of training, whose losses do not set a chart's range
const PRINTED = { width: 330, height: 240 }; // pixels: two on a page of paper

// The choices that select a chart's panel, and the checkboxes that make its horizontal axis logarithmic.
const CHOICES = { axis: () => document.querySelector("input[name=x]:checked").value, cost: () => find("cost").value };
const LOGARITHMIC = { axis: "log-x", cost: "log-cost" };

// Plotly interprets some HTML in texts; names must be shown as they are.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

const SYMBOLS = {
  o: "circle", s: "square", "^": "triangle-up", D: "diamond", v: "triangle-down", P: "cross", X: "x",
  "<": "triangle-left", ">": "triangle-right", "*": "star", p: "pentagon", h: "hexagon",
};

// The lines of a panel that a chart shows, with their arrays and styles, which encoding.py stores once for all lines.
// A line of several groups is shown whole if any group of its model is shown.
function shownLines(chart, found, isLogX) {
  const shown = new Set(shownGroups());
  const models = new Set([...shown].map((group) => group.model));
  const isShown = (group) => chart.of_models ? passes(group) && models.has(group.model) : shown.has(group);
  const offset = groups.findIndex((group) => group.data === chartData());
  const lines = found.filter((line) => isShown(groups[offset + line.groups[0]]));
  return lines.map(({ groups: places, style, band }) => {
    const kept = known.arrays[band[0]].map((x) => !isLogX || x > 0);
    const [x, y, low, high] = band.map((place) => known.arrays[place].filter((_, i) => kept[i]));
    return { groups: places.map((place) => groups[offset + place]), ...known.styles[style], x, y, low, high };
  }).filter((line) => line.x.length);
}

// Plotly's traces of a line: the line with its band beneath it, or its points with bars. A fitted line is one model's.
function tracesOf({ groups: [first, ...others], x, y, low, high, colour, line, marker }, panel, hasBars, isFitted = false) {
  const labels = [first, ...others].map((group) => plain(isFitted ? group.model : group.label));
  const label = (i) => (others.length && !isFitted ? labels[i] : labels[0]);
  const hasSpread = (i) => (isFitted || first.seeds > 1) && low[i] !== null;
  const over = isFitted ? ", 95 % interval" : hasBars ? "" : " over seeds";
  const spread = (i) => hasSpread(i) ? `${low[i].toPrecision(5)} to ${high[i].toPrecision(5)}${over}` : "one seed";
  const place = hasBars ? "" : `%{x:.4~s} ${panel.x.title}<br>`;
  const trace = {
    x,
    y,
    name: labels[0],
    customdata: x.map((_, i) => [label(i), spread(i)]),
    mode: x.length === 1 || line === "none" ? "markers" : hasBars ? "lines+markers" : "lines",
    line: { color: colour, width: 2, dash: line === "none" ? "solid" : line },
    marker: { color: colour, size: x.length === 1 ? 9 : 7, symbol: SYMBOLS[marker] },
    hovertemplate: `<b>%{customdata[0]}</b><br>${place}${panel.y} %{y:.4~f} (%{customdata[1]})<extra></extra>`,
  };
  if (hasBars) {
    const bars = (ends) => y.map((mean, i) => (ends[i] === null ? 0 : Math.abs(ends[i] - mean)));
    const look = { color: colour, thickness: 1.2, width: 3, visible: isOn("bands") };
    return [{ ...trace, error_y: { type: "data", symmetric: false, array: bars(high), arrayminus: bars(low), ...look } }];
  }
  const edges = { x: [...x, ...x.toReversed()], y: [...high, ...low.toReversed()] };
  const band = { ...edges, mode: "lines", line: { width: 0 }, fill: "toself", fillcolor: colour, opacity: 0.18 };
  return hasSpread(0) && isOn("bands") ? [{ ...band, hoverinfo: "skip" }, trace] : [trace];
}

// The points that no other beats at the same cost or less.
function paretoFront(lines) {
  const front = [];
  for (const { x: [x], y: [y] } of lines.toSorted((a, b) => a.x[0] - b.x[0] || a.y[0] - b.y[0])) {
    if (!front.length || y < front.at(-1)[1]) {
      front.push([x, y]);
    }
  }
  const line = { color: "#57606a", width: 1.2, shape: "hv" };
  return { x: front.map(([x]) => x), y: front.map(([, y]) => y), mode: "lines", line, hoverinfo: "skip" };
}

// The range of the vertical axis without the first steps, whose losses would flatten everything after them.
function rangeOf(lines, isLog) {
  const late = ({ x, high }) => {
    const start = x.length > 2 ? x[0] + START * (x.at(-1) - x[0]) : x[0]; // of two points neither is a mere start
    return high.filter((_, i) => x[i] >= start);
  };
  const low = Math.min(...lines.map((line) => Math.min(...line.low)));
  const high = Math.max(...lines.map((line) => Math.max(...late(line))));
  const [from, to] = isLog ? [Math.log10(low), Math.log10(high)] : [low, high];
  const margin = 0.04 * (to - from);
  return margin > 0 && Number.isFinite(margin) ? [from - margin, to + margin] : undefined;
}

function drawChart(chart, isPrinted) {
  const key = chart.by ? CHOICES[chart.by]() : "";
  const panel = chart.panels[key];
  const isLogX = chart.by ? isOn(LOGARITHMIC[chart.by]) : panel.x.log;
  const lines = shownLines(chart, panel.lines, isLogX);
  const fitted = shownLines(chart, panel.fitted, isLogX);
  const isLogY = isOn("log-y") && !panel.is_share && !fitted.some((line) => line.low.some((y) => y <= 0));
  chart.figure.hidden = chart.small && !lines.length;
  if (chart.figure.hidden) {
    return;
  }
  const hasBars = chart.small || chart.by === "cost" || fitted.length > 0;
  const traces = fitted.flatMap((line) => tracesOf(line, panel, false, true));
  traces.push(...lines.flatMap((line) => tracesOf(line, panel, hasBars)));
  const range = panel.is_share ? [-0.03, 1.03] : chart.by === "axis" ? rangeOf(lines, isLogY) : undefined;
  const layout = {
    ...LAYOUT,
    ...(isPrinted ? PRINTED : {}),
    xaxis: axisOf(panel.x.title, isLogX, { exponentformat: "SI", ...namesOf(panel.x) }),
    yaxis: axisOf(panel.y, isLogY, { exponentformat: "none", range }),
    uirevision: [key, isLogX, isLogY].join(), // a change of any resets the zoom
  };
  const label = `${chart.title} against ${panel.x.title}: ${lines.length || fitted.length} shown; the table holds the results.`;
  chart.place.setAttribute("aria-label", label);
  Plotly.react(chart.place, chart.by === "cost" ? [paretoFront(lines), ...traces] : traces, layout, CONFIG);
}

function axisOf(title, isLog, more) {
  const text = plain(title).replace("\n", "<br>");
  return { ...AXIS, type: isLog ? "log" : "linear", title: { text, standoff: 8 }, ...more };
}

const namesOf = ({ places, names }) => (names.length ? { tickvals: places, ticktext: names.map(plain) } : {});

function drawCharts(isPrinted = false) {
  const data = chartData();
  const charts = known.charts[data];
  find("charts-data").textContent = isSeveral ? `of ${data}` : "";
  for (const chart of charts.filter((one) => !one.figure)) {
    chart.place = make("div", { class: "chart", role: "img" });
    chart.figure = make("figure", chart.small ? { class: "small" } : {}, make("figcaption", {}, chart.title), chart.place);
  }
  if (find("charts").firstElementChild !== charts[0].figure) {
    find("charts").replaceChildren(...charts.map((chart) => chart.figure));
  }
  charts.forEach((chart) => drawChart(chart, isPrinted === true));
}
