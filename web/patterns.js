// <aid-patterns>: a gallery of sparse patterns: who may read whom, what it costs, how many layers until a token reaches
// another. The page's cell made the masks; the lesson kit counted the layers, one character a pair ("." for never).

import { Widget, choice, el, grid, number, reading, slider } from "./kit.js";

customElements.define("aid-patterns", class extends Widget {
  build(data, body) {
    const { patterns, sizes, windows } = data;
    const state = { pattern: 0, size: 0, window: 0, reach: 0 };
    const layers = () => patterns[state.pattern].layers[state.size][state.window];
    const hops = (i, j) => (layers()[i][j] === "." ? Infinity : parseInt(layers()[i][j], 36));
    const says = el("p", { class: "aid-says" });
    const count = el("p", { class: "aid-count", "aria-live": "polite" });
    const line = reading("Point at a square, or move through the squares with the arrow keys.");
    const stage = el("div", { class: "aid-fine" });
    const tell = (i, j) => {
      const far = hops(i, j);
      line.textContent = `query ${i}, key ${j}: `
        + (far === 1 ? "read directly" : far === Infinity ? "never reached" : `not read; reached after ${far} layers`);
    };
    const update = () => {
      const n = sizes[state.size];
      const places = Array.from({ length: n }, (_, i) => i);
      const all = places.flatMap((i) => places.map((j) => hops(i, j)));
      const direct = all.filter((far) => far === 1).length;
      const deepest = Math.max(...all.filter(Number.isFinite));
      const never = all.filter((far) => far === Infinity).length;
      says.textContent = patterns[state.pattern].says;
      count.textContent = `${number(direct)} of ${number(n * n)} pairs (${number((100 * direct) / (n * n), 2)} %), `
        + `at most ${Math.max(...places.map((i) => all.slice(i * n, i * n + n).filter((far) => far === 1).length))} keys for a query; `
        + `${deepest} ${deepest === 1 ? "layer reaches" : "layers reach"} ${never ? `all but ${number(never)} pairs` : "every pair"}.`;
      stage.replaceChildren(grid({
        rows: places, columns: places, rowTitle: "query", columnTitle: "key", headings: false,
        title: `${patterns[state.pattern].name}: ${n} queries, ${n} keys`,
        paint: (i, j, cell) => {
          const far = hops(i, j);
          const share = far === 1 ? 85 : !state.reach || far === Infinity ? 0 : Math.max(8, 60 / (far - 0.5));
          cell.style.background = share
            ? `color-mix(in srgb, var(--aid-${far === 1 ? "blue" : "green"}) ${Math.round(share)}%, transparent)` : "none";
          cell.setAttribute("aria-label", far === 1 ? "read" : far === Infinity ? "never" : `${far} layers`);
        },
        visit: tell,
      }).node);
    };
    const set = (key) => (value) => { state[key] = value; update(); };
    body.append(choice({ label: "pattern", names: patterns.map(({ name }) => name), change: set("pattern") }), says);
    for (const [key, label, values] of [["size", "tokens", sizes], ["window", data.window_title ?? "window", windows]]) {
      if (values.length > 1) {
        body.append(slider({
          label, min: 0, max: values.length - 1, step: 1, value: 0, text: (k) => String(values[k]), change: set(key),
        }).node);
      }
    }
    body.append(choice({ label: "show", names: ["who reads whom", "and after how many layers"], change: set("reach") }),
      el("p", { class: "aid-axis", "aria-hidden": "true" }, "one row a query, one column a key"), stage, count, line);
    update();
  }
});
