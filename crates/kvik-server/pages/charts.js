// Charts over time, as SVG that takes its colours from the style sheet.

import { count, make } from "./dom.js";

const WIDTH = 600, HEIGHT = 150, LEFT = 44, BOTTOM = 18, TOP = 8;

function svg(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** The least of 1, 2 and 5 times a power of ten that is not below `value`. */
export function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map(step => step * power).find(end => end >= value) ?? 10 * power;
}

/**
 * Draws `series` (`[{ name, values }]`, all of one length, the latest last) over `most` places: stacked bars, or lines.
 * `null` is no measurement. `seconds` says how far the left end is back.
 */
export function timeChart(place, series, { stacked = false, most = 120, label = "" } = {}) {
  const length = Math.max(0, ...series.map(({ values }) => values.length));
  const sums = Array.from({ length }, (_, at) => {
    const column = series.map(({ values }) => values[at] ?? 0);
    return stacked ? column.reduce((sum, value) => sum + value, 0) : Math.max(...column);
  });
  const top = ceiling(Math.max(1, ...sums));
  const step = (WIDTH - LEFT) / most;
  const x = at => LEFT + (most - length + at) * step;
  const y = value => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
  const latest = series.map(({ name, values }) => `${name} ${count(Math.round(values.at(-1) ?? 0))}`).join(", ");
  const chart = svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${label}: now ${latest}` });
  for (const value of [0, top / 2, top]) {
    chart.append(svg("line", { class: "rule", x1: LEFT, x2: WIDTH, y1: y(value), y2: y(value) }));
    chart.append(svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, count(value)));
  }
  chart.append(svg("text", { x: LEFT, y: HEIGHT - 3 }, `${most} s ago`));
  chart.append(svg("text", { x: WIDTH, y: HEIGHT - 3, "text-anchor": "end" }, "now"));
  const base = new Array(length).fill(0);
  series.forEach(({ values }, index) => {
    let path = "", pen = false;
    values.forEach((value, at) => {
      if (value === null) { pen = false; return; }
      if (stacked) {
        if (value > 0) path += `M${x(at)} ${y(base[at])}V${y(base[at] + value)}h${step * 0.85}V${y(base[at])}z`;
        base[at] += value;
      } else {
        path += `${pen ? "L" : "M"}${x(at) + step / 2} ${y(value)}`;
        pen = true;
      }
    });
    chart.append(svg("path", { class: `${stacked ? "bar" : "line"} c${index % 5}`, d: path }));
  });
  place.replaceChildren(chart, legend(series.map(({ name, values }) => `${name}: ${count(Math.round(values.at(-1) ?? 0))}`)));
}

export const legend = names => make("ul", { class: "legend" },
  ...names.map((name, index) => make("li", {}, make("i", { class: `c${index % 5}` }), name)));

/** One bar of `parts` (`[{ name, value, shown }]`) of `whole`. */
export function shares(parts, whole) {
  const bar = make("div", { class: "shares", role: "img", "aria-label": parts.map(({ name, shown }) => `${name}: ${shown}`).join(", ") });
  parts.forEach(({ value }, index) => {
    const part = make("div", { class: `c${index % 5}` });
    part.style.width = `${whole > 0 ? Math.min(100, 100 * value / whole) : 0}%`;
    bar.append(part);
  });
  return make("div", {}, bar, legend(parts.map(({ name, shown }) => `${name}: ${shown}`)));
}

/** A table; numbers stand right. `head` is `[name, isNumber]` for each column. */
export function table(head, rows) {
  const kind = at => (head[at][1] ? { class: "number" } : {});
  return make("table", {},
    make("thead", {}, make("tr", {}, ...head.map(([name], at) => make("th", { scope: "col", ...kind(at) }, name)))),
    make("tbody", {}, ...rows.map(row => make("tr", {}, ...row.map((cell, at) => make("td", kind(at), String(cell)))))));
}
