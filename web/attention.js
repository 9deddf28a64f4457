// <aid-attention>: the weights of a model, explored: layer and head, one query's gaze over the tokens, temperature, mask.
//
// The page gives weights; the scores behind them are their logarithms up to a constant for each row, which softmax does
// not see. So weights at temperature T are w^(1/T), made to sum to one, and a mask takes weights out before that.

import { Widget, choice, el, grid, number, reading, shade, slider } from "./kit.js";

const MASKS = [
  ["none", () => true], ["causal", (back) => back >= 0], ["not itself", (back) => back !== 0],
];

/** The row at temperature T over the keys that are open; all 0 where none is. */
export function temper(weights, temperature, open) {
  const parts = weights.map((w, j) => (open(j) && w > 0 ? Math.log(w) / temperature : -Infinity));
  const top = Math.max(...parts);
  if (top === -Infinity) return weights.map(() => 0);
  const powers = parts.map((s) => Math.exp(s - top));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((p) => p / sum);
}

customElements.define("aid-attention", class extends Widget {
  build(data, body) {
    const { queries, keys, layers } = data;
    const state = { layer: 0, head: 0, temperature: 1, mask: 0, query: 0, key: null };
    const dense = keys.length > 10;
    const shift = keys.length - queries.length; // masks are aligned bottom-right, as everywhere in the course
    const line = reading("Point at a square, or move through the squares with the arrow keys.");
    const strip = el("p", { class: "aid-strip" });
    let now = [];
    const tell = () => {
      const { query: i, key: j } = state;
      const top = now[i].indexOf(Math.max(...now[i]));
      const entropy = -now[i].reduce((sum, w) => sum + (w > 0 ? w * Math.log(w) : 0), 0);
      line.textContent = `${data.row_title ?? "query"} ${queries[i]}: `
        + (j === null ? `most on ${keys[top]}, ${number(now[i][top], 3)}` : `weight of ${keys[j]} ${number(now[i][j], 3)}`)
        + ` · effective support ${number(Math.exp(Math.max(0, entropy)), 3)} of ${keys.length}`;
      strip.replaceChildren(el("span", { class: "aid-axis" }, `${queries[i]} looks at `), ...keys.map((name, k) =>
        el("span", { class: "aid-token", style: `background: ${shade(now[i][k])}` }, String(name))));
    };
    const view = grid({
      rows: queries, columns: keys, rowTitle: data.row_title ?? "query", columnTitle: data.column_title ?? "key",
      title: this.getAttribute("aria-label"),
      paint: (i, j, cell) => {
        if (!now.length) return;
        cell.style.background = shade(now[i][j]);
        cell.setAttribute("aria-label", number(now[i][j], 3));
        cell.textContent = dense ? "" : now[i][j].toFixed(2);
      },
      visit: (i, j) => { state.query = i; state.key = j; tell(); },
    });
    const update = () => {
      const { weights } = layers[state.layer].heads[state.head];
      const open = MASKS[state.mask][1];
      now = weights.map((one, i) => temper(one, state.temperature, (j) => open(i + shift - j)));
      view.repaint();
      tell();
    };
    const set = (key) => (value) => { state[key] = value; update(); };
    const names = (list) => list.map(({ name }) => name);
    if (layers.length > 1) body.append(choice({ label: data.layer_title ?? "layer", names: names(layers), change: set("layer") }));
    if (layers[0].heads.length > 1) body.append(choice({ label: "head", names: names(layers[0].heads), change: set("head") }));
    if (data.masks) body.append(choice({ label: "mask", names: MASKS.map(([name]) => name), change: set("mask") }));
    if (dense) view.node.classList.add("aid-dense");
    body.append(slider({
      label: "temperature", min: -2, max: 2, step: 0.1, value: 0, text: (x) => (2 ** x).toFixed(2),
      change: (x) => { state.temperature = 2 ** x; update(); },
    }).node, view.node, strip, line);
    update();
  }
});
