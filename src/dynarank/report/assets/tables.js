// Sorting by any column: numbers by value, words by the reader's alphabet, what is missing always last.
function cellValue(row, column) {
  const cell = row.cells[column];
  const shown = cell.dataset.value ?? cell.textContent.trim();
  const value = Number(shown);
  if (shown === "" || shown === "-" || shown === "nan") return null;
  return Number.isNaN(value) ? shown : value;
}

function compareValues(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sortBy(table, heading) {
  const column = heading.cellIndex;
  const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  const sign = direction === "ascending" ? 1 : -1;
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [cellValue(row, column), row]);
  rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * compareValues(a, b)));
  body.append(...rows.map(([, row]) => row));
  for (const other of table.tHead.rows[0].cells) {
    if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", other === heading ? direction : "none");
  }
  say(`Sorted by ${heading.textContent.trim()}, ${direction}`);
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const button of table.querySelectorAll("button.sort")) {
    button.addEventListener("click", () => sortBy(table, button.closest("th")));
  }
}

get("filter")?.addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  let left = 0;
  for (const row of get("runs-table").tBodies[0].rows) {
    const name = data.runs[Number(row.querySelector("button.details").dataset.run)].name.toLowerCase();
    row.hidden = !words.every((word) => name.includes(word));
    left += !row.hidden;
  }
  say(`${left} runs`);
});
