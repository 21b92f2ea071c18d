// Tables that are sorted by a click or the Enter key on a heading, and filtered by words.

// What a cell is sorted by: its number, its text, or nothing.
function sortKey(cell) {
  const { sort = cell.textContent.trim() } = cell.dataset;
  return sort === "" || sort === "–" ? null : "sort" in cell.dataset ? Number(sort) : sort;
}

// Numbers by size, then text by its letters, then what is missing, whichever way round.
function compareKeys(a, b, sign) {
  if (a === null || b === null) {
    return (a === null) - (b === null);
  }
  if (typeof a !== typeof b) {
    return typeof a === "number" ? -1 : 1;
  }
  return sign * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
}

function sortBy(heading) {
  const order = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const other of heading.parentElement.cells) {
    other.setAttribute("aria-sort", other === heading ? order : "none");
  }
  const [body] = heading.closest("table").tBodies;
  const sign = order === "ascending" ? 1 : -1;
  const keys = new Map([...body.rows].map((row) => [row, sortKey(row.cells[heading.cellIndex])]));
  body.append(...[...body.rows].sort((a, b) => compareKeys(keys.get(a), keys.get(b), sign)));
}

function makeSortable() {
  for (const button of document.querySelectorAll("table.sortable thead button")) {
    button.addEventListener("click", () => sortBy(button.parentElement));
  }
}

function filterResults() {
  const words = find("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...find("results").tBodies[0].rows];
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !(passes(groups[row.dataset.group]) && words.every((word) => text.includes(word)));
  }
  find("count").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
}
