// Charts of losses over training and over the context, and what every chart shares.

const AXIS_TITLES = { step: "steps", tokens: "tokens", flops: "training FLOPs", seconds: "seconds of training" };
const SYMBOLS = {
  o: "circle", s: "square", "^": "triangle-up", D: "diamond", v: "triangle-down", P: "cross", X: "x",
  "<": "triangle-left", ">": "triangle-right", "*": "star", p: "pentagon", h: "hexagon",
};
const CONFIG = {
  responsive: true,
  displaylogo: false,
  displayModeBar: "hover",
  modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]], // none asks a server
  toImageButtonOptions: { format: "svg", filename: "comparison" },
};
const START = 0.02; // of training, whose losses do not set a chart's range

// Plotly reads a little HTML in its texts; a name shall not be any.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

// As in page.css; not read from there, where a page about to be printed still has the colours of the screen.
const INKS = {
  light: { text: "#1b1f24", quiet: "#57606a", line: "#d0d7de", accent: "#0b5cad" },
  dark: { text: "#e4e8ec", quiet: "#9aa5b1", line: "#363d46", accent: "#6cb2f5" },
};
const ink = (name) => INKS[isDark() ? "dark" : "light"][name];
const PRINTED = { width: 330, height: 240 }; // pixels: two on a page of paper

const isOn = (id) => find(id).checked;
const curveAxis = () => document.querySelector("input[name=x]:checked").value;

function curveOf(group, split, axis) {
  const curves = group.curves[split];
  const curve = curves[axis];
  if (curve && curve.factor !== undefined) {
    return { ...curves.step, x: curves.step.x.map((step) => step * curve.factor) };
  }
  return curve || null;
}

function cut(curve, logX) {
  const kept = logX ? curve.x.map((x) => x > 0) : null;
  const part = (values) => values && (kept ? values.filter((_, i) => kept[i]) : values);
  return { x: part(curve.x), y: part(curve.y), low: part(curve.low), high: part(curve.high) };
}

// A group's line, and its band beneath it.
function lineTraces(group, whole, { logX, unit }) {
  const curve = cut(whole, logX);
  const colour = visible(group.colour);
  const traces = [];
  if (curve.low && isOn("bands")) {
    traces.push({
      x: [...curve.x, ...curve.x.toReversed()],
      y: [...curve.high, ...curve.low.toReversed()],
      mode: "lines",
      line: { width: 0 },
      fill: "toself",
      fillcolor: colour,
      opacity: 0.18,
      hoverinfo: "skip",
    });
  }
  const extent = curve.low ? "<br>%{customdata[0]:.4~f} to %{customdata[1]:.4~f} over seeds" : "";
  traces.push({
    x: curve.x,
    y: curve.y,
    customdata: curve.low && curve.low.map((low, i) => [low, curve.high[i]]),
    name: plain(group.label),
    mode: curve.x.length === 1 ? "markers" : "lines",
    line: { color: colour, width: 2, dash: group.line.replace("dashed", "dash").replace("dotted", "dot") },
    marker: { color: colour, symbol: SYMBOLS[group.marker] },
    hovertemplate: `<b>%{fullData.name}</b><br>%{x:.4~s} ${unit}<br>loss %{y:.4~f}${extent}<extra></extra>`,
  });
  return traces;
}

// What the later part of the curves needs; the first steps' losses would flatten everything after them.
function rangeOf(curves, logY) {
  let low = Infinity;
  let high = -Infinity;
  for (const { x, y, low: lows = y, high: highs = y } of curves) {
    const late = x.length > 2 ? x[0] + START * (x.at(-1) - x[0]) : x[0]; // of two points neither is a mere start
    low = lows.reduce((a, b) => Math.min(a, b), low);
    high = highs.reduce((a, b, i) => (x[i] >= late ? Math.max(a, b) : a), high);
  }
  if (!(high > low) || (logY && low <= 0)) {
    return undefined;
  }
  const [from, to] = logY ? [Math.log10(low), Math.log10(high)] : [low, high];
  return [from - 0.04 * (to - from), to + 0.04 * (to - from)];
}

// Whether the losses span so much that only a logarithmic axis shows them all.
function spansDecades() {
  const curves = shownGroups().map((i) => curveOf(groups[i], "validation", "step")).filter(Boolean);
  const range = rangeOf(curves, true);
  return range !== undefined && range[1] - range[0] > Math.log10(20);
}

function axisLayout(title, log, more = {}) {
  return {
    title: { text: title, standoff: 8 },
    type: log ? "log" : "linear",
    exponentformat: "SI",
    gridcolor: ink("line"),
    linecolor: ink("quiet"),
    zeroline: false,
    automargin: true,
    ...more,
  };
}

function layoutOf(x, y, revision) {
  return {
    xaxis: x,
    yaxis: y,
    showlegend: false,
    hovermode: "closest",
    margin: { l: 55, r: 12, t: 8, b: 45 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink("text"), size: 12 },
    hoverlabel: { align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: ink("quiet"), activecolor: ink("accent") },
    uirevision: revision,
    ...(printing ? PRINTED : {}),
  };
}

function curvesChart(split) {
  const axis = curveAxis();
  const logX = isOn("log-x");
  const logY = isOn("log-y");
  const unit = { step: "steps", tokens: "tokens", flops: "FLOPs", seconds: "s" }[axis];
  const found = shownGroups().map((i) => [groups[i], curveOf(groups[i], split, axis)]).filter(([, curve]) => curve);
  const traces = found.flatMap(([group, curve]) => lineTraces(group, curve, { logX, unit }));
  const y = axisLayout("loss", logY, { range: rangeOf(found.map(([, curve]) => curve), logY), exponentformat: "none" });
  const revision = [axis, logX, logY, chartData()].join();
  return { traces, layout: layoutOf(axisLayout(AXIS_TITLES[axis], logX), y, revision), count: found.length };
}

function positionChart() {
  const found = shownGroups().map((i) => groups[i]).filter((group) => group.position && group.position.x.length > 1);
  const traces = found.flatMap((group) => lineTraces(group, group.position, { logX: true, unit: "th position" }));
  const x = axisLayout("position in the context", true, { exponentformat: "none", dtick: 1 });
  const y = axisLayout("test loss", isOn("log-y"), { exponentformat: "none" });
  return { traces, layout: layoutOf(x, y, `${isOn("log-y")}`), count: found.length };
}
