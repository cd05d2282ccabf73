"use strict";
const table = document.getElementById("rows"), body = table.tBodies[0], filter = document.getElementById("filter");
const heads = [...table.tHead.rows[0].cells], status = document.getElementById("status"), mixed = document.getElementById("mixed");
const place = title => heads.findIndex(head => head.textContent === title);
const rows = [...body.rows].map(row => ({ row, cells: [...row.cells].map(cell => cell.textContent) }));
for (const one of rows) one.text = one.cells.join(" ").toLowerCase();
let column = -1, falling = false; // -1: by experiment, as the page was written

function compare(first, second) {
  const numeric = heads[column].classList.contains("number");
  const [a, b] = [first, second].map(one => numeric ? parseFloat(one.cells[column]) : one.cells[column].toLowerCase());
  const [noA, noB] = [a, b].map(value => value === "" || Number.isNaN(value));
  if (noA || noB) return noA - noB; // what has no value stands below, whichever the order
  return (a < b ? -1 : a > b ? 1 : 0) * (falling ? -1 : 1);
}

function show() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(word => word);
  const kept = rows.filter(one => words.every(word => one.text.includes(word)));
  body.replaceChildren(...(column < 0 ? kept : [...kept].sort(compare)).map(one => one.row));
  heads.forEach((head, number) => {
    if (number === column) head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
  const images = new Set(kept.map(one => one.cells[place("data")] + ", n = " + one.cells[place("n")]));
  const by = column < 0 ? "experiment" : heads[column].textContent;
  status.textContent = `${kept.length} of ${rows.length} rows, by ${by}.`;
  const ranked = column >= place("Prec@1") && images.size > 1;
  mixed.textContent = ranked ? `These rows are of ${images.size} different data or n: their order is no ranking. Filter by data and n first.` : "";
}

heads.forEach((head, number) => head.firstElementChild.addEventListener("click", () => {
  const again = number === column; // rising, falling, by experiment again
  [column, falling] = again && falling ? [-1, false] : [number, again];
  show();
}));
filter.addEventListener("input", show);
document.getElementById("controls").hidden = false;
show();
