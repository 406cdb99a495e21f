"use strict";
// Without this script the page is complete; with it, tables can be sorted and only overflowing boxes take the focus.

const NUMBER = /^[-−]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?/i;

function number(text) {
  const match = NUMBER.exec(text);
  return match ? Number(match[0].replaceAll(",", "").replace("−", "-")) : NaN;
}

function compare(one, other) {
  // Empty cells and dashes stay at the end in both directions.
  const [first, second] = [number(one), number(other)];
  return isNaN(first) || isNaN(second) ? one.localeCompare(other, "en", { numeric: true }) : first - second;
}

function sort(table, header) {
  const body = table.tBodies[0];
  const order = { ascending: "descending", descending: null }[header.ariaSort] ?? (header.ariaSort ? null : "ascending");
  for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
  const rows = [...body.rows].sort((one, other) => one.dataset.row - other.dataset.row);
  if (order) {
    header.ariaSort = order;
    const sign = order === "ascending" ? 1 : -1;
    const text = (row) => row.cells[header.cellIndex].textContent.trim();
    const absent = (row) => ["", "-"].includes(text(row));
    rows.sort((one, other) => absent(one) - absent(other) || sign * compare(text(one), text(other)));
  }
  body.append(...rows);
}

// Numbers of several units, such as seconds and hours, have no order that their digits tell.
function sortable(table, column) {
  const texts = [...table.tBodies[0].rows].map((row) => row.cells[column].textContent.trim());
  const units = texts.filter((text) => NUMBER.test(text)).map((text) => /[a-zµ%]*/i.exec(text.replace(NUMBER, "").trim())[0]);
  return new Set(units).size <= 1;
}

for (const table of document.querySelectorAll("table")) {
  [...table.tBodies[0].rows].forEach((row, place) => (row.dataset.row = place));
  if (table.tBodies[0].rows.length < 3) continue;
  for (const header of table.tHead.rows[0].cells) {
    if (!sortable(table, header.cellIndex)) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(table, header));
    header.append(button);
  }
}

const overflowing = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const scrolls = target.scrollWidth > target.clientWidth || target.scrollHeight > target.clientHeight;
    scrolls ? (target.tabIndex = 0) : target.removeAttribute("tabindex");
  }
});
document.querySelectorAll(".scroll").forEach((box) => overflowing.observe(box));

addEventListener("beforeprint", () => document.querySelectorAll("header details").forEach((each) => (each.open = true)));
