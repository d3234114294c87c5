"use strict";
// The page is complete without this. It adds a filter, opens what a link leads
// to, and lets arrow keys walk through the matrix.
(() => {
  const form = document.getElementById("filter");
  const query = document.getElementById("query");
  const radios = [...form.elements.status];
  const output = form.querySelector("output");
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const number = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
  const fewResults = 150; // up to which the details open by themselves

  const target = (link) => document.getElementById(link.getAttribute("href").slice(1));
  const headline = (group) => all("h4, p", group).map((e) => e.textContent).join(" ");

  // The model of all matrices, made when there is time or it is first needed.
  let matrices;
  function read() {
    const heads = new Map();
    const about = (item) => {
      const group = item.closest("section");
      if (!heads.has(group)) heads.set(group, headline(group));
      return `${heads.get(group)} ${item.textContent}`;
    };
    return all(".matrix").map((section) => {
      const table = section.querySelector("table");
      const columns = [...table.tHead.rows[0].cells].slice(1).map((head) => ({ name: head.textContent, cells: [head] }));
      const rows = all("tbody tr:not(.flavour)", table).map((element) => {
        const [head, ...cells] = element.cells;
        return { element, cells: cells.map((td, i) => {
          columns[i].cells.push(td);
          const link = td.firstElementChild;
          const item = link && target(link);
          return { td, item, status: td.className || "untried",
            text: `${columns[i].name} ${head.textContent} ${item ? about(item) : ""}`.toLowerCase() };
        }) };
      });
      return { section, table, columns, rows };
    });
  }

  const wasOpen = new Map();
  function filter() {
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    const status = radios.find((r) => r.checked).value;
    const active = words.length > 0 || status !== "";
    document.body.classList.toggle("untried", status === "untried");
    matrices ??= read();
    let cells = 0, shown = 0, items = 0, modules = 0, kernels = 0;
    for (const { section, table, columns, rows } of matrices) {
      const used = new Set();
      for (const row of rows) {
        let any = false;
        row.cells.forEach((cell, i) => {
          cells++;
          const match = (!status || cell.status === status) && words.every((w) => cell.text.includes(w));
          cell.td.classList.toggle("off", !match);
          if (cell.item) cell.item.hidden = !match;
          if (!match) return;
          any = true;
          shown++;
          if (cell.item) items++;
          used.add(i);
        });
        row.element.hidden = !any;
        if (any) kernels++;
      }
      modules += used.size;
      columns.forEach((column, i) => {
        const hidden = !used.has(i);
        if (column.cells[0].hidden !== hidden) for (const cell of column.cells) cell.hidden = hidden;
      });
      for (const body of table.tBodies) body.hidden = !all("tr:not(.flavour)", body).some((r) => !r.hidden);
      section.hidden = used.size === 0;
      rove(table);
    }
    for (const module of all(".details > details")) {
      let any = false;
      for (const group of all("section", module)) {
        group.hidden = !all("li[id]", group).some((li) => !li.hidden);
        any ||= !group.hidden;
      }
      module.hidden = !any;
      if (!wasOpen.has(module)) wasOpen.set(module, module.open);
      if (active && items <= fewResults) module.open = any;
      else module.open = wasOpen.get(module);
    }
    for (const section of all(".details")) section.hidden = !section.querySelector("details:not([hidden])");
    if (!active) wasOpen.clear();
    output.textContent = !active ? "" : shown === 0 ? "Nothing matches." :
      `${shown} of ${cells} match: ${number(modules, "module")}, ${number(kernels, "kernel")}.`;
    return active && new URLSearchParams({ ...(query.value && { q: query.value }), ...(status && { status }) }).toString();
  }

  let state = "";
  function change() {
    state = filter() || "";
    history.replaceState(null, "", "#" + state);
  }

  // Where the address leads: to a filter, or to something on the page.
  function follow() {
    const hash = location.hash.slice(1);
    const params = new URLSearchParams(hash);
    if (params.has("q") || params.has("status")) {
      if (hash === state) return;
      query.value = params.get("q") ?? "";
      for (const r of radios) r.checked = r.value === (params.get("status") ?? "");
      if (!radios.some((r) => r.checked)) radios[0].checked = true;
      state = filter() || "";
      return;
    }
    const element = hash && document.getElementById(hash);
    if (!element) return;
    if (element.closest("[hidden]")) {
      form.reset();
      state = filter() || "";
    }
    const closed = element.closest("details:not([open])");
    if (closed) closed.open = true;
    if (element.closest("#details") && element.id !== "details") element.scrollIntoView();
  }

  // One cell of a matrix is a tab stop; arrow keys lead to the others.
  const links = (table) => all("td > a", table);
  function rove(table) {
    const visible = (a) => !a.parentElement.hidden && !a.closest("[hidden]") && !a.parentElement.classList.contains("off");
    let stop = links(table).find((a) => a.tabIndex === 0);
    if (stop && visible(stop)) return;
    if (stop) stop.tabIndex = -1;
    stop = links(table).find(visible);
    if (stop) stop.tabIndex = 0;
  }
  function next(td, key) {
    const row = td.parentElement;
    const good = (cell) => cell?.firstElementChild && cell.tagName === "TD" && !cell.hidden && !cell.classList.contains("off") && !cell.parentElement.hidden;
    const across = [...row.cells];
    const down = all("tbody tr:not(.flavour)", row.closest("table")).map((r) => r.cells[td.cellIndex]);
    const list = key === "ArrowUp" || key === "ArrowDown" ? down : across;
    const ahead = list.slice(list.indexOf(td) + 1), behind = list.slice(0, list.indexOf(td)).reverse();
    switch (key) {
      case "ArrowRight": case "ArrowDown": return ahead.find(good);
      case "ArrowLeft": case "ArrowUp": return behind.find(good);
      case "Home": return across.find(good);
      case "End": return across.reverse().find(good);
    }
  }
  for (const table of all(".matrix table")) {
    for (const link of links(table)) link.tabIndex = -1;
    rove(table);
    table.addEventListener("keydown", (event) => {
      const td = event.target.closest("td");
      if (!td || event.ctrlKey || event.altKey || event.metaKey || !/^(Arrow|Home$|End$)/.test(event.key)) return;
      event.preventDefault();
      next(td, event.key)?.firstElementChild.focus();
    });
    table.addEventListener("focusin", (event) => {
      if (!event.target.closest("td")) return;
      for (const link of all('td > a[tabindex="0"]', table)) link.tabIndex = -1;
      event.target.tabIndex = 0;
    });
    table.addEventListener("mouseover", (event) => {
      const link = event.target.closest("td > a");
      if (!link || link.title) return;
      const item = target(link), module = table.tHead.rows[0].cells[link.parentElement.cellIndex].textContent;
      link.title = `${module} for ${item.querySelector("b").textContent}\n${headline(item.closest("section"))}`;
    });
  }

  const later = window.requestIdleCallback ?? setTimeout; // Safari has none
  later(() => { matrices ??= read(); });
  document.body.classList.add("live");
  for (const e of [...radios, query.parentElement]) e.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", change);
  addEventListener("hashchange", follow);
  follow();
})();
