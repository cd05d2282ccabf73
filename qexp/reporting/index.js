// The table of all rows: how many are shown, and a warning where their order is no ranking.
{
  const table = document.getElementById("rows"), heads = [...table.tHead.rows[0].cells];
  const status = document.getElementById("status"), mixed = document.getElementById("mixed");
  const place = title => heads.findIndex(head => head.textContent === title);
  sortable(table, document.getElementById("filter"), ({ kept, total, column, by }) => {
    const images = new Set(kept.map(one => one.cells[place("data")] + ", n = " + one.cells[place("n")]));
    const ranked = column >= place("Prec@1") && images.size > 1;
    status.textContent = `${kept.length} of ${total} rows, by ${by || "experiment"}.`;
    mixed.textContent = ranked ? `These rows are of ${images.size} different data or n: their order is no ranking. Filter by data and n first.` : "";
  });
  document.getElementById("controls").hidden = false;
}
