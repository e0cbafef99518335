"use strict";
// Sorting, tooltips and the choice of light or dark. The page says everything without it too.
(() => {
  const all = (selector, under = document) => [...under.querySelectorAll(selector)];
  const root = document.documentElement;
  const said = document.getElementById("said");

  // Light or dark
  const theme = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const other = () => (chosen() === "dark" ? "light" : "dark");
  const name = () => { theme.textContent = `Switch to ${other()}`; };
  try { root.dataset.theme = localStorage.getItem("edgekit-theme") || ""; } catch { /* not allowed */ }
  theme.addEventListener("click", () => {
    root.dataset.theme = other();
    try { localStorage.setItem("edgekit-theme", root.dataset.theme); } catch { /* not allowed */ }
    name();
  });
  dark.addEventListener("change", name);
  theme.hidden = false;
  name();

  // Sorting: a button in each header; empty cells stay last
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.sort === undefined ? cell.textContent.trim() : cell.dataset.sort;
  };
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    if (Number.isNaN(x) || Number.isNaN(y)) return a.localeCompare(b, "en", { numeric: true });
    return x < y ? -1 : Number(x > y);
  };
  const sort = (table, header) => {
    const up = header.getAttribute("aria-sort") !== "ascending";
    for (const each of all("thead th", table)) each.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const column = header.cellIndex;
    const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
    rows.sort(([a], [b]) => {
      if (a === "" || b === "") return Number(a === "") - Number(b === "");
      return up ? compare(a, b) : compare(b, a);
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
    said.textContent = `Sorted by ${header.innerText.trim()}, ${up ? "ascending" : "descending"}`;
  };
  for (const table of all("table.sortable")) {
    for (const header of all("thead th", table)) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      if (header.dataset.tip) {
        button.dataset.tip = header.dataset.tip;
        header.removeAttribute("data-tip");
      }
      header.append(button);
      button.addEventListener("click", () => sort(table, header));
    }
  }

  // Tooltips: by pointer or focus; Escape closes; the pointer may go over them
  const tip = document.getElementById("tip");
  let shown = null;
  let waiting = 0;
  const hide = () => {
    clearTimeout(waiting);
    if (shown) shown.removeAttribute("aria-describedby");
    shown = null;
    tip.hidden = true;
  };
  const show = (target) => {
    hide();
    shown = target;
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    if (target.getAttribute("aria-label") !== target.dataset.tip) target.setAttribute("aria-describedby", "tip");
    place(target);
  };
  const place = (target) => {
    const at = target.getBoundingClientRect();
    const size = tip.getBoundingClientRect();
    const left = Math.min(at.left + at.width / 2 - size.width / 2, innerWidth - size.width - 8);
    const above = at.top - size.height - 8;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above > 8 ? above : at.bottom + 8}px`;
  };
  const later = () => { waiting = setTimeout(hide, 200); };
  for (const target of all("[data-tip]")) {
    target.addEventListener("pointerenter", () => show(target));
    target.addEventListener("pointerleave", later);
    target.addEventListener("focus", () => show(target));
    target.addEventListener("blur", hide);
  }
  tip.addEventListener("pointerenter", () => clearTimeout(waiting));
  tip.addEventListener("pointerleave", later);
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  // Focus itself scrolls to what lies off the screen: its tooltip goes along
  const follow = () => { if (shown) shown === document.activeElement ? place(shown) : hide(); };
  addEventListener("scroll", follow, { passive: true });

  // Charts: one stop of the tab key, arrow keys within; their title is no tooltip
  for (const chart of all("svg.chart")) {
    const title = chart.querySelector("title");
    chart.setAttribute("aria-label", title.textContent);
    chart.removeAttribute("aria-labelledby");
    title.remove();
    const marks = all(".mark", chart);
    const go = (to) => {
      for (const mark of marks) mark.setAttribute("tabindex", "-1");
      marks[to].setAttribute("tabindex", "0");
      marks[to].focus();
    };
    chart.addEventListener("keydown", (event) => {
      const at = marks.indexOf(document.activeElement);
      const last = marks.length - 1;
      const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last }[event.key];
      if (at < 0 || to === undefined) return;
      event.preventDefault();
      go(Math.min(Math.max(to, 0), last));
    });
  }

  // Printing shows what is folded, but for the raw data
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all("details:not(.raw):not([open])");
    for (const each of opened) each.open = true;
  });
  addEventListener("afterprint", () => { for (const each of opened) each.open = false; });
})();
