// The charts, drawn anew by plotly.js whenever a choice changes what they show.

const charts = [
  { title: "Training loss", build: () => curvesChart("train") },
  { title: "Validation loss", build: () => curvesChart("validation") },
  { title: "Test loss and what it cost", build: costChart },
  { title: "Test loss by position in the context", build: positionChart },
  ...known.sweeps.map((sweep) => {
    return { title: `Sweep: ${sweep.parameter}`, small: true, build: () => sweepChart(sweep) };
  }),
  ...known.grids.map((panel) => {
    const title = several ? `Sweep at ${panel.title} (${panel.data})` : `Sweep at ${panel.title}`;
    return { title, small: true, build: () => gridChart(panel) };
  }),
  ...known.difficulties.map((one) => {
    const title = several ? `Accuracy ${one.title} (${one.data})` : `Accuracy ${one.title}`;
    return { title, small: true, build: () => difficultyChart(one) };
  }),
];

function buildCharts() {
  for (const chart of charts) {
    chart.place = make("div", { class: "chart", role: "img" });
    chart.figure = make("figure", chart.small ? { class: "small" } : {}, make("figcaption", {}, chart.title), chart.place);
    find("charts").append(chart.figure);
  }
}

function drawCharts() {
  find("charts-data").textContent = several ? `of ${chartData()}` : "";
  for (const chart of charts) {
    const { traces, layout, count } = chart.build();
    const hasAny = count > 0 || !chart.small;
    chart.figure.hidden = !hasAny;
    if (hasAny) {
      const axis = layout.xaxis.title.text.replaceAll("<br>", " ");
      const label = `${chart.title} against ${axis}: ${count} shown; the table holds the results.`;
      chart.place.setAttribute("aria-label", label);
      Plotly.react(chart.place, traces, layout, CONFIG);
    }
  }
}
