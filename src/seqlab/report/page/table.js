// Tables that are sorted by a click or the Enter key on a heading.

const ORDERS = { none: "ascending", ascending: "descending", descending: "ascending" };

// Numbers by size, then text by its letters, then what is missing, whichever way round.
function compareCells(a, b, sign) {
  if (a === null || b === null) {
    return (a === null) - (b === null);
  }
  if (typeof a !== typeof b) {
    return typeof a === "number" ? -1 : 1;
  }
  return sign * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
}

function buildTable(table, content, firstCell) {
  const numeric = content.headings.map((_, column) =>
    content.rows.every(({ cells }) => cells[column][1] === null || typeof cells[column][1] === "number"));
  const lines = content.rows.map((row, place) => ({ row, place, element: tableLine(row, numeric, firstCell) }));
  const body = make("tbody", {}, ...lines.map((line) => line.element));
  const headings = content.headings.map((name, column) => {
    const button = make("button", { type: "button" }, name || "verdict");
    const heading = make("th", { scope: "col", "aria-sort": "none" }, button);
    heading.classList.toggle("number", numeric[column]);
    button.addEventListener("click", () => {
      const order = ORDERS[heading.getAttribute("aria-sort")];
      headings.forEach((other) => other.setAttribute("aria-sort", other === heading ? order : "none"));
      const sign = order === "ascending" ? 1 : -1;
      lines.sort((a, b) => compareCells(a.row.cells[column][1], b.row.cells[column][1], sign) || a.place - b.place);
      body.append(...lines.map((line) => line.element));
    });
    return heading;
  });
  table.replaceChildren(make("thead", {}, make("tr", {}, ...headings)), body);
  return lines;
}

function tableLine(row, numeric, firstCell) {
  const cells = row.cells.map(([text], column) => {
    if (column === 0) {
      return make("th", { scope: "row", title: text }, ...firstCell(row, text));
    }
    return make("td", numeric[column] ? { class: "number" } : {}, text);
  });
  return make("tr", {}, ...cells);
}

let resultLines = [];

function buildResults() {
  resultLines = buildTable(find("results"), known.table, (row, text) => [swatch(groups[row.group]), text]);
}

function filterResults() {
  const words = chosen.text.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const { row, element } of resultLines) {
    const text = row.cells.map((cell) => cell[0]).join(" ").toLowerCase();
    element.hidden = !(passes(groups[row.group]) && words.every((word) => text.includes(word)));
    count += !element.hidden;
  }
  find("count").textContent = `${count} of ${resultLines.length} rows`;
}

function buildExtra() {
  for (const sheet of known.extra) {
    const table = make("table");
    buildTable(table, sheet, (_, text) => [text]);
    const scroll = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": sheet.title }, table);
    const notes = sheet.notes.map((note) => make("p", { class: "quiet" }, note));
    find("extra").append(make("section", {}, make("h2", {}, sheet.title), ...notes, scroll));
  }
}
