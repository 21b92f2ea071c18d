// Charts of results: test losses against what they cost, losses or accuracies against swept parameters and difficulty.

const MEASURES = { test: "test loss", accuracy: "accuracy" };

function errorBars([mean, low, high]) {
  return low === null || !isOn("bands") ? null : [high - mean, mean - low];
}

function pointTrace(items, colour, more, measure = "test") {
  const bars = items.map(({ group }) => errorBars(group[measure]));
  const label = ({ group }) => {
    const [, low, high] = group[measure];
    return [plain(group.label), low === null ? "one seed" : `${low.toPrecision(5)} to ${high.toPrecision(5)}`];
  };
  return {
    x: items.map((item) => item.x),
    y: items.map(({ group }) => group[measure][0]),
    customdata: items.map(label),
    error_y: {
      type: "data",
      symmetric: false,
      array: bars.map((bar) => (bar ? bar[0] : 0)),
      arrayminus: bars.map((bar) => (bar ? bar[1] : 0)),
      color: colour,
      thickness: 1.2,
      width: 3,
      visible: bars.some(Boolean),
    },
    hovertemplate: `<b>%{customdata[0]}</b><br>${MEASURES[measure]} %{y:.4~f} (%{customdata[1]})<extra></extra>`,
    ...more,
  };
}

function measureAxis(measure) {
  const share = measure === "accuracy";
  const more = { exponentformat: "none", ...(share ? { range: [-0.03, 1.03] } : {}) };
  return axisLayout(MEASURES[measure], isOn("log-y") && !share, more);
}

// The points that no other beats at the same cost or less.
function paretoFront(items) {
  const front = [];
  for (const item of items.toSorted((a, b) => a.x - b.x || a.group.test[0] - b.group.test[0])) {
    if (!front.length || item.group.test[0] < front.at(-1).group.test[0]) {
      front.push(item);
    }
  }
  return front;
}

function costChart() {
  const key = find("cost").value;
  const items = shownGroups().map((i) => ({ group: groups[i], x: groups[i].costs[key] })).filter(({ x }) => x !== null);
  const front = paretoFront(items);
  const line = {
    x: front.map((item) => item.x),
    y: front.map(({ group }) => group.test[0]),
    mode: "lines",
    line: { color: ink("quiet"), width: 1.2, shape: "hv" },
    hoverinfo: "skip",
  };
  const traces = items.map((item) => {
    const colour = visible(item.group.colour);
    const marker = { color: colour, size: 9, symbol: SYMBOLS[item.group.marker] };
    return pointTrace([item], colour, { mode: "markers", marker });
  });
  const log = isOn("log-cost");
  const x = axisLayout(known.costs[key], log);
  const y = axisLayout("test loss", isOn("log-y"), { exponentformat: "none" });
  return { traces: [line, ...traces], layout: layoutOf(x, y, [key, log].join()), count: items.length };
}

function sweepChart(sweep) {
  const shown = new Set(shownGroups());
  const data = chartData();
  const measure = known.measures[data];
  // A series is one thing: it is shown whole if any of its groups' models passes, so that no value is left out.
  const series = sweep.series.filter((one) => one.data === data && passes(groups[one.base]) &&
    groups.some((group, i) => shown.has(i) && group.model === one.model));
  const values = distinct(sweep.series.filter((one) => one.data === data).flatMap((one) => one.values));
  const numeric = values.every((value) => typeof value === "number");
  values.sort(numeric ? (a, b) => a - b : undefined);
  const log = numeric && values[0] > 0 && values.at(-1) >= 4 * values[0];
  const traces = series.map((one) => {
    const x = one.values.map((value) => (numeric ? value : values.indexOf(value)));
    const items = one.groups.map((i, place) => ({ group: groups[i], x: x[place] }));
    const colour = visible(groups[one.base].colour);
    const marker = { color: colour, size: 7, symbol: SYMBOLS[groups[one.base].marker] };
    return pointTrace(items, colour, { mode: "lines+markers", line: { color: colour, width: 2 }, marker }, measure);
  });
  const follows = distinct(series.flatMap((one) => one.follows));
  const title = plain(sweep.title) + (follows.length ? `<br>with ${plain(follows.join(", "))}` : "");
  const places = numeric ? values : values.map((_, i) => i);
  const every = { tickvals: places, ticktext: values.map((value) => plain(String(value))) };
  const ticks = numeric && values.length > 10 ? {} : every;
  const layout = layoutOf(axisLayout(title, log, ticks), measureAxis(measure), sweep.parameter);
  return { traces, layout, count: series.length };
}

// One data setting of a sweep over several. Like a series, a model's line is shown whole.
function gridChart(panel) {
  const models = new Set(shownGroups().map((i) => groups[i].model));
  const lines = panel.lines.filter((line) => panel.data === chartData() &&
    line.some((i) => i !== null && passes(groups[i]) && models.has(groups[i].model)));
  const measure = known.measures[panel.data];
  const traces = lines.map((line) => {
    const items = line.map((i, at) => ({ group: groups[i], x: panel.sizes[at] })).filter(({ group }) => group);
    const colour = visible(items[0].group.colour);
    const marker = { color: colour, size: 7, symbol: SYMBOLS[items[0].group.marker] };
    return pointTrace(items, colour, { mode: "lines+markers", line: { color: colour, width: 2 }, marker }, measure);
  });
  const ticks = { tickvals: panel.sizes, ticktext: panel.sizes.map(String) };
  const x = axisLayout(plain(panel.axis), panel.sizes[0] > 0, panel.sizes.length > 10 ? {} : ticks);
  return { traces, layout: layoutOf(x, measureAxis(measure), panel.title), count: lines.length };
}

function difficultyChart(one) {
  const numeric = one.values.every((value) => typeof value === "number");
  const log = numeric && one.values[0] > 0 && one.values.at(-1) >= 4 * one.values[0];
  const places = numeric ? one.values : one.values.map((_, i) => i);
  const shown = shownGroups().filter((i) => groups[i].data === one.data && one.points[i]);
  const traces = shown.map((i) => {
    const group = groups[i];
    const points = places.map((x, at) => ({ x, estimate: one.points[i][at] })).filter(({ estimate }) => estimate);
    const colour = visible(group.colour);
    const bar = (estimate, end) => (estimate[end] === null || !isOn("bands") ? 0 : Math.abs(estimate[end] - estimate[0]));
    const above = points.map(({ estimate }) => bar(estimate, 2));
    return {
      x: points.map(({ x }) => x),
      y: points.map(({ estimate }) => estimate[0]),
      customdata: points.map(() => [plain(group.label)]),
      mode: "lines+markers",
      line: { color: colour, width: 2, dash: group.line.replace("dashed", "dash").replace("dotted", "dot") },
      marker: { color: colour, size: 7, symbol: SYMBOLS[group.marker] },
      error_y: {
        type: "data",
        symmetric: false,
        array: above,
        arrayminus: points.map(({ estimate }) => bar(estimate, 1)),
        color: colour,
        thickness: 1.2,
        width: 3,
        visible: above.some(Boolean),
      },
      hovertemplate: "<b>%{customdata[0]}</b><br>accuracy %{y:.4~f}<extra></extra>",
    };
  });
  const every = { tickvals: places, ticktext: one.values.map((value) => plain(String(value))) };
  const ticks = numeric && places.length > 10 ? {} : every;
  const x = axisLayout(plain(one.title.replace(/^(by|at) /, "")), log, ticks);
  const y = axisLayout("accuracy", false, { range: [-0.03, 1.03], exponentformat: "none" });
  return { traces, layout: layoutOf(x, y, one.title), count: shown.length };
}
