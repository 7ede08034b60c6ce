"use strict";
// Sorts and filters the tables. Without JavaScript the page shows every row, best first.

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const numbers = head.classList.contains("n");
      const before = head.getAttribute("aria-sort");
      // The first click sorts numbers downwards and text upwards.
      const rising = before ? before === "descending" : !numbers;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [keyOf(row.cells[column]), row]);
      rows.sort(([a], [b]) => compare(a, b, rising));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

function keyOf(cell) {
  const value = cell.dataset.value;
  if (value !== undefined) return value === "" ? null : Number(value);
  return cell.textContent.trim().toLowerCase();
}

// Unknown values come last in either direction.
function compare(a, b, rising) {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = a < b ? -1 : a > b ? 1 : 0;
  return rising ? order : -order;
}

const filters = document.getElementById("filters");
if (filters) {
  filters.hidden = false;
  filters.addEventListener("input", apply);
  filters.addEventListener("submit", (event) => event.preventDefault());
}

function apply() {
  const words = filters.elements.agent.value.trim().toLowerCase();
  const environment = filters.elements.environment?.value ?? "";
  const kinds = new Set([...filters.querySelectorAll("input[name=kind]:checked")].map((box) => box.value));
  let shown = 0;
  for (const section of document.querySelectorAll("section[data-environment]")) {
    section.hidden = environment !== "" && section.dataset.environment !== environment;
    for (const row of section.querySelectorAll("tr[data-kind]")) {
      const name = row.cells[0].textContent.toLowerCase();
      row.hidden = !kinds.has(row.dataset.kind) || !name.includes(words);
      if (!row.hidden && !section.hidden) shown += 1;
    }
  }
  document.getElementById("shown").textContent = `${shown} rows`;
}
