"use strict";
// Tables whose titles sort, rising, falling and as written again, and whose rows words filter. Used by the index and by every page.
const LEAST_ROWS = 9, LEAST_COLUMNS = 7; // from which on a table has a filter, and its columns can be chosen
const NUMBER = /^(exact$|[<>]?\s*[+-]?(\.?\d|nan|inf))/;

function element(tag, values = {}, ...children) {
  const made = Object.assign(document.createElement(tag), values);
  made.append(...children);
  return made;
}

const IN_ORDER = new Intl.Collator("en", { numeric: true }); // `layer2` before `layer10`, and days of one year by their months

// What a cell is in order: `0.288 MiB` is its number, `3-6, mean 4.0` its mean, `exact` is a noise of minus infinity dB and stands above all.
function number(text) {
  const bare = text.replace(/^.*, mean |^[<>]\s*/, "");
  if (/^([+-]?inf|exact$)/.test(bare)) return bare[0] === "-" ? -Infinity : Infinity;
  return parseFloat(bare);
}

// `told` is called with { kept, total, column, by } whenever rows are shown anew; column is -1 for the order of the page.
function sortable(table, filter, told) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows].map(row => ({ row, cells: [...row.cells].map(cell => cell.textContent.trim()) }));
  for (const one of rows) one.text = one.cells.join(" ").toLowerCase();
  const numeric = heads.map((_, at) => rows.every(({ cells }) => cells[at] === "" || NUMBER.test(cells[at])));
  let column = -1, falling = false;

  function compare(first, second) {
    const texts = [first, second].map(one => one.cells[column]);
    const [a, b] = texts.map(text => numeric[column] ? number(text) : 0);
    const [noA, noB] = texts.map((text, at) => text === "" || Number.isNaN([a, b][at]));
    if (noA || noB) return noA - noB; // what has no value stands below, whichever the order
    return (a < b ? -1 : a > b ? 1 : IN_ORDER.compare(...texts)) * (falling ? -1 : 1); // the number that a text begins with is not all of it
  }

  function show() {
    const words = filter ? filter.value.toLowerCase().split(/\s+/).filter(word => word) : [];
    const kept = rows.filter(one => words.every(word => one.text.includes(word)));
    body.replaceChildren(...(column < 0 ? kept : [...kept].sort(compare)).map(one => one.row));
    heads.forEach((head, at) => {
      if (at === column) head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    told?.({ kept, total: rows.length, column, by: column < 0 ? "" : heads[column].textContent });
  }

  heads.forEach((head, at) => {
    if (head.textContent.trim() === "") return;
    const button = element("button", { type: "button" });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const again = at === column;
      [column, falling] = again && falling ? [-1, false] : [at, again];
      show();
    });
  });
  filter?.addEventListener("input", show);
  show();
}
