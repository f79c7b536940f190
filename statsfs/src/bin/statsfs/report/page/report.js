"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const { start, end, reasons, bounds, parts } = data;
const columns = start.length, from = start[0], to = end[columns - 1];
const seconds = start.map((s, n) => Math.max(end[n] - s, 1e-9));
const isGap = new Set(data.gaps);
const state = { part: 0, metric: 0, hidden: new Set() };
const HEATS = 10;

// ---- Numbers for people.
const digits = (n) => (n >= 99.95 || n === Math.trunc(n) ? 0 : n >= 9.995 ? 1 : 2);
const thousands = (n) => n.toLocaleString("en-US", { maximumFractionDigits: n < 9.995 ? 2 : 0 });
const time = (ns) => {
  const names = ["ns", "µs", "ms", "s"];
  let n = 0;
  while (ns >= 999.5 && n < 3) { ns /= 1000; n++; }
  return ns.toFixed(digits(ns)) + " " + names[n];
};
const short = (n) => n >= 1e9 ? +(n / 1e9).toPrecision(3) + "G" : n >= 1e6 ? +(n / 1e6).toPrecision(3) + "M" : n >= 1e4 ? +(n / 1e3).toPrecision(3) + "k" : +n.toPrecision(3) + "";
const perSecond = (n) => thousands(n) + "/s";
const cpus = (n) => n.toFixed(n < 10 ? 3 : 1) + (n === 1 ? " CPU" : " CPUs");
const clock = (s) => {
  const at = new Date((data.begin + s) * 1000);
  return at.toISOString().slice(11, to - from < 30 ? 21 : 19);
};
const span = (n) => `${clock(start[n])} – ${clock(end[n])} UTC`;
const sum = (all) => all.reduce((a, b) => a + b, 0);
const steps = (max, most) => {
  const raw = max / most, power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw * 0.999);
};

// ---- Making elements. Text is never taken as HTML.
const SVG = "http://www.w3.org/2000/svg";
const fill = (element, attributes, children) => {
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
};
const s = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
const h = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);

// ---- What is shown of a part.
const rate = (line, scale = 1) => line.map((n, c) => n * scale / seconds[c]);
const metrics = [
  { name: "Exits", title: "Exits to user space, by reason", unit: "exits/s", tell: perSecond, series: (p) => byReason(p.exits, 1) },
  { name: "Time", title: "Handling exits, by reason", unit: "CPUs", tell: cpus, series: (p) => byReason(p.time, 1e-9) },
  { name: "KVM", title: "What KVM counts", unit: "times/s, not stacked", tell: perSecond, lines: true,
    series: (p) => Object.entries(p.kvm).map(([name, line], n) => ({ name, color: n % 8, values: rate(line) })) },
  { name: `By ${data.unit}`, title: `Exits to user space, by ${data.unit}`, unit: "exits/s", tell: perSecond, series: byPart },
];
function byReason(lines, scale) {
  return reasons.map((name, n) => ({ name, color: name === "others" ? 7 : n % 8, values: lines[n] && rate(lines[n], scale) })).filter((one) => one.values);
}
function exitsOf(part) {
  const all = new Array(columns).fill(0);
  for (const line of part.exits) if (line) line.forEach((n, c) => { all[c] += n; });
  return all;
}
function byPart() {
  const own = parts.slice(1), shown = own.slice(0, 7), rest = own.slice(7);
  const series = shown.map((part, n) => ({ name: part.name, color: n, values: rate(exitsOf(part)) }));
  if (rest.length) {
    const all = new Array(columns).fill(0);
    for (const part of rest) exitsOf(part).forEach((n, c) => { all[c] += n; });
    series.push({ name: rest.length === 1 ? rest[0].name : `${rest.length} more`, color: 7, values: rate(all) });
  }
  return series.filter((one) => one.values.some((n) => n > 0));
}
const CPU = { guest: ["in the guest, and KVM", 0], handling: ["handling exits", 5], waiting: ["waiting for a CPU (steal)", 1], halted: ["halted", 7] };
const cpuSeries = (p) => Object.keys(CPU).filter((name) => p.cpu[name])
  .map((name) => ({ name: CPU[name][0], color: CPU[name][1], values: rate(p.cpu[name], 1e-9) }));

// ---- Charts. Each has a frame, and tells what is at a place.
const MARGIN = { left: 52, right: 8, top: 8, bottom: 20 };
function frame(host, height, marginLeft = MARGIN.left) {
  const width = Math.max(host.clientWidth, 200);
  const inner = { x: marginLeft, y: MARGIN.top, w: width - marginLeft - MARGIN.right, h: height - MARGIN.top - MARGIN.bottom };
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, height, "aria-hidden": "true" });
  const x = (t) => inner.x + (t - from) / (to - from || 1) * inner.w;
  const step = steps(to - from || 1, Math.max(2, inner.w / 90));
  const hatch = `hatch-${host.parentElement.id}`;
  svg.append(s("defs", {}, s("pattern", { id: hatch, class: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse" }, s("path", { d: "M-1,1 l2,-2 M0,6 l6,-6 M5,7 l2,-2" }))));
  for (let t = Math.ceil(from / step) * step; t <= to + step * 1e-6; t += step) {
    const at = x(t), anchor = at > width - 24 ? "end" : "middle";
    svg.append(s("line", { class: "grid", x1: at, x2: at, y1: inner.y, y2: inner.y + inner.h }), s("text", { x: at, y: height - 5, "text-anchor": anchor }, `${+t.toFixed(3)} s`));
  }
  return { host, svg, inner, x, width, height, hatch };
}
function showGaps({ svg, inner, x, hatch }) {
  for (const c of data.gaps) svg.append(s("rect", { class: "gap", style: `fill:url(#${hatch})`, x: x(start[c]), width: Math.max(1, x(end[c]) - x(start[c])), y: inner.y, height: inner.h }));
}
function columnAt(chart, px) {
  const t = from + (px - chart.inner.x) / chart.inner.w * (to - from);
  let low = 0, high = columns - 1;
  while (low < high) { const middle = (low + high) >> 1; if (end[middle] <= t) low = middle + 1; else high = middle; }
  return low;
}
function put(host, svg, label) {
  host.replaceChildren(svg);
  host.setAttribute("role", "img");
  host.setAttribute("aria-label", label);
}
function nothing(host, why) {
  const chart = frame(host, 80);
  chart.svg.append(s("text", { class: "none", x: chart.width / 2, y: 36, "text-anchor": "middle" }, why));
  put(host, chart.svg, why);
  host.look = null;
}

/// Series over time: on top of each other, or as lines.
function drawSeries(card, series, { unit, tell, lines, height, most }) {
  const host = card.querySelector(".chart"), legend = card.querySelector(".legend");
  const key = (one) => `${card.id}/${one.name}`;
  legend.replaceChildren(...series.map((one) => {
    const button = h("button", { type: "button", "aria-pressed": String(!state.hidden.has(key(one))) }, h("i", { class: `f${one.color}` }), one.name);
    button.onclick = () => { if (!state.hidden.delete(key(one))) state.hidden.add(key(one)); draw(); legend.children[series.indexOf(one)].focus(); };
    return button;
  }));
  const shown = series.filter((one) => !state.hidden.has(key(one)));
  if (!series.length) return nothing(host, "Nothing of this was counted.");
  const totals = start.map((_, c) => sum(shown.map((one) => one.values[c])));
  const max = (lines ? Math.max(...shown.map((one) => Math.max(...one.values)), 0) : Math.max(...totals)) || 1;
  const chart = frame(host, height), { svg, inner, x } = chart;
  const step = steps(max * 1.04, 5), top = Math.max(step, Math.ceil(max * 1.0001 / step) * step);
  const y = (n) => inner.y + inner.h - n / top * inner.h;
  for (let n = 0; n <= top * 1.0001; n += step) {
    svg.append(s("line", { class: n ? "grid" : "axis", x1: inner.x, x2: inner.x + inner.w, y1: y(n), y2: y(n) }), s("text", { x: inner.x - 6, y: y(n) + 4, "text-anchor": "end" }, short(n)));
  }
  const below = new Array(columns).fill(0), f = (n) => n.toFixed(1);
  shown.forEach((one) => {
    let path = "", back = "";
    for (let c = 0; c < columns; c++) {
      const [a, b, n] = [f(x(start[c])), f(x(end[c])), one.values[c]];
      const isNew = c === 0 || start[c] > end[c - 1] + 0.002;
      if (isNew && back) { path += back + "Z"; back = ""; }
      path += `${isNew ? "M" : "L"}${a},${f(y(below[c] + n))}L${b},${f(y(below[c] + n))}`;
      if (!lines) back = `L${b},${f(y(below[c]))}L${a},${f(y(below[c]))}` + back;
      if (!lines) below[c] += n;
    }
    svg.append(lines ? s("path", { class: `step s${one.color}`, d: path }) : s("path", { class: `area f${one.color}`, d: path + back + "Z" }));
  });
  if (most) svg.append(s("line", { class: "cursor", "stroke-dasharray": "4 3", x1: inner.x, x2: inner.x + inner.w, y1: y(Math.min(most, top)), y2: y(Math.min(most, top)) }));
  showGaps(chart);
  const cursor = s("line", { class: "cursor", y1: inner.y, y2: inner.y + inner.h, visibility: "hidden" });
  svg.append(cursor);
  const mean = totals.reduce((all, n, c) => all + n * seconds[c], 0) / sum(seconds);
  put(host, svg, lines ? `${series.length} lines of ${unit}` : `On average ${tell(mean)}. Arrow keys move a cursor.`);
  host.look = (c) => {
    const middle = (x(start[c]) + x(end[c])) / 2;
    fill(cursor, { x1: middle, x2: middle, visibility: "visible" }, []);
    const rows = shown.map((one) => [one.color, one.name, tell(one.values[c])]).reverse();
    if (!lines && shown.length > 1) rows.push([null, "all", tell(totals[c])]);
    return { x: middle, y: inner.y + 10, title: span(c), rows, note: isGap.has(c) ? "Nothing was seen for a while: an average." : "" };
  };
  host.unlook = () => cursor.setAttribute("visibility", "hidden");
  host.place = (px) => [columnAt(chart, px), 0];
  host.move = (at, dx) => [Math.min(columns - 1, Math.max(0, at[0] + dx)), 0];
}

/// Time by how long it took.
function drawHeat(card, part) {
  const host = card.querySelector(".chart"), legend = card.querySelector(".legend");
  const rows = Object.keys(part.heat).map(Number);
  legend.replaceChildren();
  if (!rows.length) return nothing(host, "No times of handling were recorded.");
  const low = Math.min(...rows), high = Math.max(...rows), count = high - low + 1;
  const cells = rows.flatMap((b) => rate(part.heat[b]).map((n, c) => ({ b, c, n }))).filter((cell) => cell.n > 0);
  const max = Math.max(...cells.map((cell) => cell.n)), min = Math.min(...cells.map((cell) => cell.n));
  const level = (n) => max === min ? HEATS - 1 : Math.min(HEATS - 1, Math.floor(Math.log(n / min) / Math.log(max / min) * HEATS));
  const chart = frame(host, 240, 58), { svg, inner, x } = chart;
  const size = inner.h / count, y = (b) => inner.y + inner.h - (b - low + 1) * size;
  const lower = (b) => b === 0 ? 0 : bounds[b - 1];
  const every = Math.ceil(14 / size);
  for (let b = low; b <= high + 1; b++) {
    if ((b - low) % every) continue;
    const at = y(b) + size;
    svg.append(s("text", { x: inner.x - 6, y: at + 4, "text-anchor": "end" }, time(lower(b))));
    svg.append(s("line", { class: "grid", x1: inner.x - 3, x2: inner.x + inner.w, y1: at, y2: at }));
  }
  for (const { b, c, n } of cells) {
    svg.append(s("rect", { class: `h${level(n)}`, x: x(start[c]).toFixed(2), y: y(b).toFixed(2), width: Math.max(0.5, x(end[c]) - x(start[c]) + 0.15).toFixed(2), height: Math.max(0.5, size - 0.6).toFixed(2) }));
  }
  showGaps(chart);
  const mark = s("rect", { class: "cell", visibility: "hidden" });
  svg.append(mark);
  legend.append(h("span", { class: "scale" }, h("span", {}, perSecond(min)), ...Array.from({ length: HEATS }, (_, n) => h("i", { class: `h${n}` })), h("span", {}, perSecond(max))));
  put(host, svg, `Half of the exits were handled in ${part.p50 == null ? "an unknown time" : time(part.p50)}, 99 of 100 in ${part.p99 == null ? "an unknown time" : time(part.p99)}. Arrow keys move a cursor.`);
  host.look = (c, b) => {
    const line = part.heat[b], n = line ? line[c] : 0, all = sum(rows.map((row) => part.heat[row][c]));
    fill(mark, { x: x(start[c]), y: y(b), width: Math.max(1, x(end[c]) - x(start[c])), height: size, visibility: "visible" }, []);
    const range = bounds[b] == null ? `${time(lower(b))} or more` : `${time(lower(b))} – ${time(bounds[b])}`;
    return { x: (x(start[c]) + x(end[c])) / 2, y: y(b), title: span(c), rows: [[null, "handled in", range], [null, "exits", `${thousands(n)} of ${thousands(all)}`], [null, "rate", perSecond(n / seconds[c])]], note: isGap.has(c) ? "Nothing was seen for a while: an average." : "" };
  };
  host.unlook = () => mark.setAttribute("visibility", "hidden");
  host.place = (px, py) => [columnAt(chart, px), Math.min(high, Math.max(low, low + Math.floor((inner.y + inner.h - py) / size)))];
  host.move = (at, dx, dy) => [Math.min(columns - 1, Math.max(0, at[0] + dx)), Math.min(high, Math.max(low, at[1] + dy))];
}

// ---- The cursor of charts.
const tip = $("tip");
function tell(host, at) {
  if (!host.look) return;
  host.at = at;
  const { x, y, title, rows, note } = host.look(...at);
  tip.replaceChildren(h("b", {}, title), h("table", {}, ...rows.map(([color, name, text]) =>
    h("tr", { class: name === "all" ? "sum" : "" }, h("td", {}, ...(color === null ? [] : [h("i", { class: `f${color}` })]), name), h("td", {}, text)))), ...(note ? [h("div", {}, note)] : []));
  tip.hidden = false;
  const box = host.getBoundingClientRect(), wide = document.documentElement.clientWidth, own = tip.getBoundingClientRect();
  const right = box.left + x + 14, left = right + own.width > wide - 6 ? box.left + x - 14 - own.width : right;
  tip.style.left = `${Math.max(6, Math.min(left, wide - own.width - 6)) + scrollX}px`;
  tip.style.top = `${box.top + y + scrollY}px`;
}
function untell(host) { tip.hidden = true; if (host.unlook) host.unlook(); }
for (const host of document.querySelectorAll(".chart")) {
  const point = (event) => { const box = host.getBoundingClientRect(); if (host.place) tell(host, host.place(event.clientX - box.left, event.clientY - box.top)); };
  host.addEventListener("pointermove", point);
  host.addEventListener("pointerdown", point);
  host.addEventListener("pointerleave", () => untell(host));
  host.addEventListener("blur", () => untell(host));
  host.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1], PageUp: [-10, 0], PageDown: [10, 0], Home: [-columns, 0], End: [columns, 0] }[event.key];
    if (event.key === "Escape") return untell(host);
    if (!move || !host.move) return;
    event.preventDefault();
    tell(host, host.move(host.at || host.place(0, 0), ...move));
  });
}

// ---- Tables.
function sortable(table) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, n) => {
    const button = h("button", { type: "button" }, ...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const isNumber = head.classList.contains("n");
      const was = head.getAttribute("aria-sort"), down = was ? was === "ascending" : isNumber;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => { const cell = row.cells[n]; return isNumber ? (cell.dataset.v === undefined ? -Infinity : +cell.dataset.v) : cell.textContent; };
      const order = (a, b) => isNumber ? key(a) - key(b) || 0 : key(a).localeCompare(key(b), "en", { numeric: true });
      const rows = [...body.rows].sort((a, b) => down ? order(b, a) : order(a, b));
      body.append(...rows);
    };
  });
  for (const row of body.rows) {
    const cell = row.cells[0], button = h("button", { type: "button" }, ...cell.childNodes);
    button.onclick = () => { select(+row.dataset.part); };
    cell.append(button);
  }
}
document.querySelectorAll("main table").forEach(sortable);

// ---- All of it.
function tiles(part) {
  const there = seconds.slice(part.from, part.to), whole = sum(there) || 1;
  const mean = (line, scale = 1) => sum(line) * scale / whole;
  const all = [["Exits/s to user", thousands(mean(exitsOf(part)))]];
  if (part.kvm.exits) all.push(["KVM exits/s", thousands(mean(part.kvm.exits))]);
  if (part.vcpus) all.push(["vCPUs", thousands(part.vcpus)]);
  for (const [name, title] of [["guest", "In the guest"], ["handling", "Handling"], ["waiting", "Steal"], ["halted", "Halted"]])
    if (part.cpu[name]) all.push([`${title}, CPUs`, mean(part.cpu[name], 1e-9).toFixed(2)]);
  if (part.p50 != null) all.push(["Handling, p50", time(part.p50)], ["Handling, p99", time(part.p99)]);
  $("tiles").replaceChildren(...all.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}
let width = 0;
function draw() {
  width = $("rates").clientWidth;
  tip.hidden = true;
  const part = parts[state.part], metric = metrics[state.metric];
  tiles(part);
  $("rates-title").replaceChildren(metric.title, h("small", {}, metric.unit));
  drawSeries($("rates"), metric.series(part), { ...metric, height: 250 });
  drawSeries($("cpu"), cpuSeries(part), { unit: "CPUs", tell: cpus, height: 240, most: part.vcpus });
  drawHeat($("heat"), part);
  [...$("metric").children].forEach((button, n) => button.setAttribute("aria-pressed", String(n === state.metric)));
}
function select(part) {
  state.part = part;
  $("part").value = part;
  if (part !== 0 && state.metric === 3) state.metric = 0;
  for (const row of document.querySelectorAll("main tbody tr")) {
    const isOverview = row.closest("table").id === "overview", isOwn = +row.dataset.part === part;
    row.classList.toggle("on", isOverview && isOwn && part !== 0);
    row.hidden = !isOverview && part !== 0 && !isOwn;
  }
  draw();
}
document.documentElement.classList.add("scripted");
$("metric").append(...metrics.slice(0, parts.length > 2 ? 4 : 3).map((metric, n) => {
  const button = h("button", { type: "button" }, metric.name);
  button.onclick = () => { state.metric = n; if (n === 3) select(0); else draw(); };
  return button;
}));
$("part").onchange = (event) => select(+event.target.value);
select(0);
// Also for the scroll bar that comes with the charts.
new ResizeObserver(() => { if ($("rates").clientWidth !== width) draw(); }).observe($("rates"));
addEventListener("beforeprint", draw);
})();
