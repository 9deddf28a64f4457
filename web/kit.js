// What the widgets share: building elements, reading their data, writing numbers, a grid that the keyboard can walk.

const SVG = "http://www.w3.org/2000/svg";
let count = 0;

/** A name that is unique on the page. */
export const unique = (stem) => `aid-${stem}-${++count}`;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "html") node.innerHTML = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** An HTML element with attributes, listeners (`onclick`, ...) and children. */
export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** The same for SVG. */
export const draw = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

/** A number for people: four digits that matter, a true minus sign, powers of ten beyond the usual sizes. */
export function number(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e15)) {
    const [mantissa, power] = value.toExponential(2).split("e");
    return `${mantissa}·10^${Number(power)}`.replaceAll("-", "−");
  }
  const text = Number.isInteger(value)
    ? value.toLocaleString("en", { useGrouping: "min2" })
    : value.toLocaleString("en", { maximumSignificantDigits: Math.max(digits, String(Math.trunc(size)).length) });
  return text.replaceAll(",", "\u202f").replace("-", "−");
}

/** A number for a small square: two decimals, no more. */
export function brief(value) {
  if (value === null) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1000) return String(value).replace("-", "−");
  return (size < 10 ? value.toFixed(2) : size < 100 ? value.toFixed(1) : number(value, 2)).replace("-", "−");
}

/** A custom element whose data stands in a JSON script inside it. What it shows without JavaScript stays on error. */
export class Widget extends HTMLElement {
  async connectedCallback() {
    if (this.ready) return;
    this.ready = true;
    const data = JSON.parse(this.querySelector('script[type="application/json"]').textContent);
    const body = el("div", { class: "aid-widget" });
    await this.build(data, body);
    this.querySelector(".aid-static")?.remove();
    this.append(body);
    this.typeset(body);
  }

  /** Set the maths that has just come onto the page, if MathJax is there. */
  typeset(node) {
    if (node.querySelector(".math") && window.MathJax?.typesetPromise) window.MathJax.typesetPromise([node]);
  }
}

/** A labelled slider: `change(value)` is called while it moves; `show(value)` moves it from outside, calling nothing. */
export function slider({ label, min, max, step, value, change, text = number }) {
  const id = unique("slider");
  const shown = el("output", { for: id }, text(value));
  const say = (now) => {
    shown.textContent = text(now);
    input.setAttribute("aria-valuetext", text(now));
  };
  const input = el("input", {
    type: "range", id, min, max, step, value, "aria-valuetext": text(value),
    oninput: () => { say(Number(input.value)); change(Number(input.value)); },
  });
  const show = (now) => { input.value = now; say(now); };
  return { node: el("div", { class: "aid-slider" }, el("label", { for: id }, label), input, shown), input, show };
}

/** A choice among a few: radio buttons in a row. */
export function choice({ label, names, change }) {
  const group = unique("choice");
  return el("fieldset", { class: "aid-choice" }, el("legend", {}, label), ...names.map((name, k) => {
    const id = `${group}-${k}`;
    return el("span", {},
      el("input", { type: "radio", name: group, id, checked: k === 0, onchange: () => change(k) }),
      el("label", { for: id }, name));
  }));
}

/** A switch that is on or off. */
export function toggle({ label, checked, change }) {
  const id = unique("toggle");
  const input = el("input", { type: "checkbox", id, checked, onchange: () => change(input.checked) });
  return el("span", { class: "aid-toggle" }, input, el("label", { for: id }, label));
}

/** The shade of a value in [-1, 1]: blue above zero, orange below, clear at zero. Text stays readable on all of it. */
export function shade(share) {
  const strength = Math.round(Math.min(1, Math.abs(share)) * 70);
  return `color-mix(in srgb, var(${share < 0 ? "--aid-orange" : "--aid-blue"}) ${strength}%, transparent)`;
}

/**
 * A table whose cells the pointer and the arrow keys can visit; one stop for the Tab key.
 * `visit(i, j)` tells what the cell says, `paint(i, j, cell)` gives it its look.
 */
export function grid({ rows, columns, rowTitle = "", columnTitle = "", title, paint, visit, headings = true }) {
  const cells = rows.map((_, i) => columns.map((_, j) => el("td", { role: "gridcell", tabindex: i || j ? -1 : 0 })));
  const go = (i, j) => {
    cells.flat().forEach((cell) => cell.setAttribute("tabindex", -1));
    cells[i][j].setAttribute("tabindex", 0);
    cells[i][j].focus();
  };
  const keys = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  cells.forEach((line, i) => line.forEach((cell, j) => {
    cell.addEventListener("pointerenter", () => visit(i, j));
    cell.addEventListener("pointerdown", () => visit(i, j));
    cell.addEventListener("focus", () => visit(i, j));
    cell.addEventListener("keydown", (event) => {
      const [down, right] = keys[event.key] ?? [0, 0];
      let place = null;
      if (event.key in keys) place = [i + down, j + right];
      else if (event.key === "Home") place = [i, 0];
      else if (event.key === "End") place = [i, columns.length - 1];
      if (!place) return;
      event.preventDefault();
      if (cells[place[0]]?.[place[1]]) go(...place);
    });
  }));
  const head = headings
    ? el("thead", { role: "rowgroup" }, el("tr", { role: "row" },
      el("th", { role: "columnheader", class: "aid-corner" },
        el("span", { class: "aid-axis" }, rowTitle || columnTitle ? `${rowTitle} ↓  ${columnTitle} →` : "\u00a0")),
      ...columns.map((name) => el("th", { role: "columnheader", scope: "col" }, el("span", {}, String(name))))))
    : null;
  const body = el("tbody", { role: "rowgroup" }, ...rows.map((name, i) => el("tr", { role: "row" },
    headings ? el("th", { role: "rowheader", scope: "row" }, String(name)) : null, ...cells[i])));
  const long = columns.some((name) => String(name).length > 3);
  const table = el("table", { class: `aid-grid${long ? " aid-long" : ""}`, role: "grid", "aria-label": title }, head, body);
  const repaint = () => cells.forEach((line, i) => line.forEach((cell, j) => paint(i, j, cell)));
  repaint();
  return { node: el("div", { class: "aid-gridwrap" }, table), repaint };
}

/** The line under a widget that says what is under the pointer; screen readers hear it. */
export const reading = (text = "\u00a0") => el("p", { class: "aid-reading", "aria-live": "polite" }, text);
