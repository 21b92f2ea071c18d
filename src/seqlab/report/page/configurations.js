// One run's configuration, or two beside each other.

const valueOf = (setting, run) => setting.values[setting.of ? setting.of[run] : 0];
const groupName = ({ label, data }) => (isSeveral ? `${label} (${data})` : label);
const runName = ([, group, seed]) => `${groupName(groups[group])}, seed ${seed}`;

function fillRuns() {
  for (const id of ["run-a", "run-b"]) {
    const sets = groups.map((group) => make("optgroup", { label: groupName(group) }));
    known.runs.forEach((run, i) => sets[run[1]].append(make("option", { value: i }, `${runName(run)}: ${run[0]}`)));
    find(id).replaceChildren(...(id === "run-b" ? [make("option", { value: "" }, "no other")] : []), ...sets);
  }
  const other = known.runs.findIndex(([, group]) => group !== known.runs[0][1]);
  find("run-a").value = "0";
  find("run-b").value = known.runs.length > 1 ? String(other < 0 ? 1 : other) : "";
}

function showConfigurations() {
  const isAlone = find("run-b").value === "";
  const runs = (isAlone ? ["run-a"] : ["run-a", "run-b"]).map((id) => Number(find(id).value));
  const isShort = !isAlone && isOn("only-different");
  const body = make("tbody");
  let differences = 0;
  for (const setting of known.settings) {
    const values = runs.map((run) => valueOf(setting, run));
    const isDifferent = values.some((value) => value !== values[0]);
    differences += isDifferent;
    if (isShort ? isDifferent : values.some((value) => value !== null)) {
      const cells = values.map((value) => make("td", {}, value ?? "not set"));
      const attributes = isDifferent && !isShort ? { class: "different" } : {};
      body.append(make("tr", attributes, make("th", { scope: "row" }, setting.key), ...cells));
    }
  }
  const folder = ([name]) => make("div", { class: "quiet" }, name);
  const names = runs.map((i) => make("th", { scope: "col" }, runName(known.runs[i]), folder(known.runs[i])));
  const head = make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "setting"), ...names));
  find("configuration").replaceChildren(head, body);
  const count = differences === 1 ? "1 setting or fact differs." : `${differences} settings and facts differ.`;
  find("difference-count").textContent = isAlone ? "All settings of one run." : count;
  find("only-different").disabled = isAlone;
}
