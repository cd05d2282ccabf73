// Both tables sort and filter; of all rows it is said how many are shown, and where their order is no ranking.
{
  const listed = document.getElementById("listed");
  sortable(document.getElementById("experiments"), document.getElementById("find"), ({ kept, total }) => {
    listed.textContent = kept.length < total ? `${kept.length} of ${total} experiments` : "";
  });
  const table = document.getElementById("rows"), heads = [...table.tHead.rows[0].cells];
  const status = document.getElementById("status"), mixed = document.getElementById("mixed");
  const place = title => heads.findIndex(head => head.textContent === title);
  sortable(table, document.getElementById("filter"), ({ kept, total, column, by }) => {
    const images = new Set(kept.map(one => one.cells[place("data")] + ", n = " + one.cells[place("n")]));
    const ranked = column >= place("Prec@1") && images.size > 1;
    status.textContent = `${kept.length} of ${total} rows, by ${by || "experiment"}.`;
    mixed.textContent = ranked ? `These rows are of ${images.size} different data or n: their order is no ranking. Filter by data and n first.` : "";
  });
  document.querySelectorAll(".controls").forEach(one => { one.hidden = false; });
}
