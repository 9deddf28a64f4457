// <aid-costs>: what a mechanism costs at the sizes chosen. Formulas stand in the page's data, so that the table without
// JavaScript, the tests and this calculator work from the same text.

import { Widget, el, number, slider, unique } from "./kit.js";

const CALLS = { min: Math.min, max: Math.max, ceil: Math.ceil, floor: Math.floor, log2: Math.log2, sqrt: Math.sqrt };
const RANK = { "+": 1, "-": 1, "*": 2, "/": 2, "**": 3 };
const APPLY = {
  "+": (a, b) => a + b, "-": (a, b) => a - b, "*": (a, b) => a * b, "/": (a, b) => a / b, "**": (a, b) => a ** b,
};

/** The value of an arithmetic expression over named numbers: a small parser instead of `eval`. */
export function evaluate(text, names) {
  const tokens = text.match(/\*\*|[-+*/(),]|[A-Za-z_]\w*|\d+(?:\.\d+)?(?:e\d+)?/g);
  let at = 0;
  const atom = () => {
    const token = tokens[at++];
    if (token === "-") return -atom();
    if (token === "(") { const value = sum(0); at++; return value; }
    if (!/^[A-Za-z_]/.test(token)) return Number(token);
    if (tokens[at] !== "(") {
      if (!(token in names)) throw new Error(`unknown name ${token} in ${text}`);
      return names[token];
    }
    const values = [];
    do { at++; values.push(sum(0)); } while (tokens[at] === ",");
    at++;
    return CALLS[token](...values);
  };
  const sum = (floor) => {
    let left = atom();
    while (RANK[tokens[at]] > floor) {
      const operator = tokens[at++];
      left = APPLY[operator](left, sum(operator === "**" ? RANK[operator] - 1 : RANK[operator]));
    }
    return left;
  };
  return sum(0);
}

/** Bytes in the unit that reads best. */
function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let k = 0;
  while (value >= 1024 && k < units.length - 1) { value /= 1024; k++; }
  return `${number(value, 3)} ${units[k]}`;
}

/** Counts in thousands, millions, ... */
function counted(value) {
  const units = ["", " thousand", " million", " billion", " trillion", "·10¹⁵", "·10¹⁸"];
  let k = 0;
  while (value >= 1000 && k < units.length - 1) { value /= 1000; k++; }
  return `${number(value, 3)}${units[k]}`;
}

customElements.define("aid-costs", class extends Widget {
  build(data, body) {
    const sizes = Object.fromEntries(data.sizes.map((size) => [size.name, size.value]));
    const table = el("tbody");
    const detail = el("div", { class: "aid-detail" });
    let chosen = 0;
    const cost = (one, what) => (one[what] ? evaluate(one[what], sizes) : null);
    const update = () => {
      const best = Object.fromEntries(data.columns.map(({ key }) =>
        [key, Math.max(...data.mechanisms.map((one) => cost(one, key)))]));
      table.replaceChildren(...data.mechanisms.map((one, k) => el("tr", { class: k === chosen ? "aid-chosen" : null },
        el("th", { scope: "row" }, one.name),
        ...data.columns.map(({ key, unit }) => {
          const value = cost(one, key);
          if (value === null) return el("td", { class: "aid-number" }, "–");
          return el("td", { class: "aid-number" }, unit === "bytes" ? bytes(value) : counted(value),
            el("span", { class: "aid-meter", "aria-hidden": "true" },
              el("span", { style: `width: ${best[key] ? (100 * value) / best[key] : 0}%` })));
        }))));
      const one = data.mechanisms[chosen];
      detail.replaceChildren(el("p", {}, one.says),
        el("dl", {}, ...data.columns.filter(({ key }) => one[key]).flatMap(({ key, name, unit }) => [el("dt", {}, name),
          el("dd", {}, el("code", {}, one[key]), ` = ${unit === "bytes" ? bytes(cost(one, key)) : counted(cost(one, key))}`)])));
    };
    const controls = data.sizes.map((size) => {
      // Sizes go up in powers of two, so that one slider spans a word and a book.
      const places = size.options;
      return slider({
        label: size.label, min: 0, max: places.length - 1, step: 1, value: places.indexOf(size.value),
        text: (k) => number(places[k]), change: (k) => { sizes[size.name] = places[k]; update(); },
      });
    });
    const id = unique("mechanism");
    const select = el("select", { id, onchange: () => { chosen = select.selectedIndex; update(); } },
      ...data.mechanisms.map((one) => el("option", {}, one.name)));
    body.append(
      el("div", { class: "aid-sizes" }, ...controls.map(({ node }) => node)),
      el("div", { class: "aid-scroll", role: "region", tabindex: 0, "aria-label": "Costs of all mechanisms" },
        el("table", { class: "aid-table" },
          el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "mechanism"),
            ...data.columns.map(({ name }) => el("th", { scope: "col", class: "aid-number" }, name)))), table)),
      el("div", { class: "aid-controls" }, el("span", {}, el("label", { for: id }, "formulas of"), select)), detail);
    update();
  }
});
