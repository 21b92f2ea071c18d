// One run's configuration, or two beside each other.

const valueOf = (setting, run) => setting.values[setting.of ? setting.of[run] : 0];

function groupName(place) {
  const { label, data } = groups[place];
  return several ? `${label} (${data})` : label;
}

const runName = ([, group, seed]) => `${groupName(group)}, seed ${seed}`;

function fillRuns() {
  for (const id of ["run-a", "run-b"]) {
    const sets = groups.map((_, group) => make("optgroup", { label: groupName(group) }));
    known.runs.forEach((run, i) => sets[run[1]].append(make("option", { value: i }, `${runName(run)}: ${run[0]}`)));
    find(id).replaceChildren(...(id === "run-b" ? [make("option", { value: "" }, "no other")] : []), ...sets);
  }
  const other = known.runs.findIndex(([, group]) => group !== known.runs[0][1]);
  find("run-a").value = "0";
  find("run-b").value = known.runs.length > 1 ? String(other < 0 ? 1 : other) : "";
}

function showConfigurations() {
  const first = Number(find("run-a").value);
  const alone = find("run-b").value === "";
  const runs = alone ? [first] : [first, Number(find("run-b").value)];
  const onlyDifferent = !alone && find("only-different").checked;
  const body = make("tbody");
  let differences = 0;
  for (const setting of known.settings) {
    const values = runs.map((run) => valueOf(setting, run));
    const different = values.some((value) => value !== values[0]);
    differences += different;
    if (values.every((value) => value === null) || (onlyDifferent && !different)) {
      continue;
    }
    const cells = values.map((value) => make("td", {}, value === null ? "not set" : value));
    const attributes = different && !onlyDifferent ? { class: "different" } : {};
    body.append(make("tr", attributes, make("th", { scope: "row" }, setting.key), ...cells));
  }
  const folder = ([name]) => make("div", { class: "quiet" }, name);
  const names = runs.map((i) => make("th", { scope: "col" }, runName(known.runs[i]), folder(known.runs[i])));
  const head = make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "setting"), ...names));
  find("configuration").replaceChildren(head, body);
  const count = differences === 1 ? "1 setting or fact differs." : `${differences} settings and facts differ.`;
  find("difference-count").textContent = alone ? "All settings of one run." : count;
  find("only-different").disabled = alone;
}
