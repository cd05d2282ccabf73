// A page works without this: all sections below each other, tables as written, titles of points as the browser shows them.

// On a phone, of fewer CSS pixels, columns that are chosen away, and can be chosen back.
const NARROW = 544, SPARED = ["bits", "mode", "policy", "quant", "granularity", "Prec@5"];

// What does not fit says that it scrolls.
const scrolls = new ResizeObserver(entries => {
  for (const { target } of entries) target.classList.toggle("broad", target.scrollWidth > target.clientWidth + 1);
});
document.querySelectorAll(".scroll").forEach(place => scrolls.observe(place));

// Every table sorts; a long one has a filter, a broad one a choice of columns.
for (const table of document.querySelectorAll(".scroll > table")) {
  const heads = [...table.tHead.rows[0].cells], rows = [...table.rows], tools = element("div", { className: "tools" });
  const long = table.tBodies[0].rows.length >= LEAST_ROWS, status = element("span", { className: "soft" });
  const filter = long ? element("input", { type: "search", autocomplete: "off", placeholder: "filter: all of these words" }) : null;
  status.setAttribute("role", "status");
  if (filter) {
    filter.setAttribute("aria-label", "Filter: rows that have all of these words");
    tools.append(filter, status);
  }
  if (heads.length >= LEAST_COLUMNS) {
    const boxes = heads.slice(1).map((head, number) => {
      const box = element("input", { type: "checkbox", checked: innerWidth >= NARROW || !SPARED.includes(head.textContent.trim()) });
      const choose = () => {
        for (const row of rows) row.cells[number + 1].hidden = !box.checked; // those too that a filter keeps away
      };
      box.addEventListener("change", choose);
      choose();
      return element("label", {}, box, head.textContent);
    });
    tools.append(element("details", { className: "columns" }, element("summary", { textContent: "Choose columns" }), element("div", {}, ...boxes)));
  }
  if (tools.childNodes.length) table.parentElement.before(tools);
  sortable(table, filter, ({ kept, total }) => { status.textContent = kept.length < total ? `${kept.length} of ${total} rows` : ""; });
}

// Sections are tabs. One that is not shown is still found by the browser's search, and opened by a link into it.
{
  const tabs = [...document.querySelectorAll("nav.tabs a")], all = document.getElementById("everything");
  const sections = tabs.filter(tab => tab !== all).map(tab => document.querySelector(tab.getAttribute("href")));
  const open = shown => {
    sections.forEach(section => { section.hidden = shown && section !== shown ? "until-found" : false; });
    tabs.forEach(tab => tab.setAttribute("aria-selected", shown ? tab.getAttribute("href") === "#" + shown.id : tab === all));
  };
  const follow = () => {
    const target = document.querySelector(":target");
    if (target === all) open(null);
    else if (target) open(target.closest("section"));
    if (target && target !== all && !sections.includes(target)) target.scrollIntoView();
  };
  tabs.forEach(tab => tab.addEventListener("click", event => {
    event.preventDefault();
    history.replaceState(null, "", tab.getAttribute("href"));
    open(sections.find(section => "#" + section.id === tab.getAttribute("href")));
  }));
  tabs.forEach(tab => tab.setAttribute("role", "tab"));
  document.querySelector("nav.tabs").setAttribute("role", "tablist");
  all.hidden = false;
  open(sections[0]);
  addEventListener("hashchange", follow);
  addEventListener("beforeprint", () => open(null));
  for (const section of sections) section.addEventListener("beforematch", () => open(section));
  follow();
}

// Points of figures tell what they are beside the pointer; a click brings out all that belongs to one, in every figure.
{
  const tip = element("div", { className: "tip", hidden: true }), NEAR = 14; // CSS pixels
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);
  const of = node => node.closest("[data-series]")?.dataset.series;
  let picked = null;

  const pick = series => {
    picked = series === picked ? null : series;
    for (const svg of document.querySelectorAll(".figure svg")) {
      const own = [...svg.querySelectorAll("[data-series]")];
      const any = picked !== null && own.some(node => node.dataset.series === picked);
      own.forEach(node => node.classList.toggle("dim", any && node.dataset.series !== picked && !node.querySelector("[data-series]")));
    }
  };

  for (const svg of document.querySelectorAll(".figure svg")) {
    const points = [...svg.querySelectorAll("[data-series] title, title")].filter(title => of(title)).map(title => {
      const point = title.parentElement, text = title.textContent;
      title.remove(); // or the browser would show it as well
      return { point, text };
    }).filter(({ point }) => within(point));
    const nearest = event => {
      let best = null, least = NEAR;
      for (const one of points) {
        const box = one.point.getBoundingClientRect();
        const away = Math.hypot(event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2);
        if (away <= least) [best, least] = [one, away];
      }
      return best;
    };
    let pointed = null;
    svg.addEventListener("pointermove", event => {
      pointed = nearest(event);
      tip.hidden = !pointed;
      svg.classList.toggle("pointing", Boolean(pointed));
      if (!pointed) return;
      tip.textContent = pointed.text;
      tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
      tip.style.top = `${event.clientY + (event.clientY > innerHeight / 2 ? -tip.offsetHeight - 12 : 16)}px`;
    });
    svg.addEventListener("pointerleave", () => { tip.hidden = true; pointed = null; });
    svg.addEventListener("click", event => {
      if (svg.classList.contains("dragged")) return;
      const best = pointed ?? nearest(event); // a finger points at nothing before it taps
      pick(best ? of(best.point) : picked);
    });
    zoomable(svg);
  }
  addEventListener("keydown", event => { if (event.key === "Escape" && picked !== null) pick(picked); });
}

// A magnified axis has points beyond its edges, which are not drawn.
function within(point) {
  const name = point.closest("[clip-path]")?.getAttribute("clip-path").match(/#([^)"']+)/)?.[1];
  const frame = name && document.getElementById(name)?.querySelector("rect");
  if (!frame || !point.hasAttribute("x")) return true;
  const [x, y] = ["x", "y"].map(key => Number(point.getAttribute(key)));
  const [left, top, width, height] = ["x", "y", "width", "height"].map(key => Number(frame.getAttribute(key)));
  return x >= left - 1 && x <= left + width + 1 && y >= top - 1 && y <= top + height + 1;
}

// Buttons enlarge a figure around its middle, and a drag moves what is enlarged.
function zoomable(svg) {
  const full = box(svg);
  let drag = null;
  const view = (x, y, width, height) => {
    const bound = (value, least, most) => Math.min(Math.max(value, least), most);
    svg.setAttribute("viewBox", [
      bound(x, full.x, full.x + full.width - width), bound(y, full.y, full.y + full.height - height), width, height].join(" "));
    svg.classList.toggle("zoomed", width < full.width);
    reset.disabled = smaller.disabled = width >= full.width;
  };
  const scale = factor => {
    const now = svg.viewBox.baseVal, width = Math.min(now.width / factor, full.width), height = Math.min(now.height / factor, full.height);
    view(now.x + (now.width - width) / 2, now.y + (now.height - height) / 2, width, height);
  };
  const button = (text, label, act) => {
    const made = element("button", { type: "button", textContent: text, title: label });
    made.setAttribute("aria-label", label);
    made.addEventListener("click", act);
    return made;
  };
  const smaller = button("\u2212", "smaller", () => scale(1 / 1.5)), reset = button("1:1", "whole figure", () => view(full.x, full.y, full.width, full.height));
  const bar = element("div", { className: "zoom" }, button("+", "larger", () => scale(1.5)), smaller, reset);
  reset.disabled = smaller.disabled = true;
  svg.closest(".scroll").before(bar);
  svg.addEventListener("pointerdown", event => {
    svg.classList.remove("dragged");
    if (svg.classList.contains("zoomed")) drag = { x: event.clientX, y: event.clientY, box: box(svg) };
  });
  addEventListener("pointermove", event => {
    if (!drag) return;
    if (Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 4) svg.classList.add("dragged"); // so that its end is no click
    const pixels = svg.getBoundingClientRect().width / drag.box.width;
    view(drag.box.x - (event.clientX - drag.x) / pixels, drag.box.y - (event.clientY - drag.y) / pixels, drag.box.width, drag.box.height);
  });
  addEventListener("pointerup", () => { drag = null; });
}

function box(svg) {
  const { x, y, width, height } = svg.viewBox.baseVal;
  return { x, y, width, height };
}
