// <aid-matrix>: a matrix of numbers to be read with pointer or arrow keys; a choice switches between its layers.

import { Widget, brief, choice, el, grid, number, reading, shade } from "./kit.js";

customElements.define("aid-matrix", class extends Widget {
  build(data, body) {
    const { rows, columns, layers } = data;
    const value = data.value_title ?? "value";
    let layer = 0;
    let place = null;
    const all = layers.flatMap((one) => one.values.flat()).filter((x) => x !== null).map(Math.abs);
    const largest = Math.max(...all, 1e-12);
    const roomy = columns.length <= 10;
    const line = reading("Point at a cell, or move through the cells with the arrow keys.");
    const tell = () => {
      if (!place) return;
      const [i, j] = place;
      line.textContent = `${data.row_title ?? "row"} ${rows[i]}, ${data.column_title ?? "column"} ${columns[j]}: `
        + `${value} ${number(layers[layer].values[i][j])}`;
    };
    const view = grid({
      rows, columns, rowTitle: data.row_title, columnTitle: data.column_title,
      title: this.getAttribute("aria-label"),
      paint: (i, j, cell) => {
        const x = layers[layer].values[i][j];
        cell.style.background = x === null ? "none" : shade(x / largest);
        cell.replaceChildren(el("span", { class: roomy ? "" : "aid-hidden" }, brief(x)));
      },
      visit: (i, j) => { place = [i, j]; tell(); },
    });
    if (layers.length > 1) {
      body.append(choice({
        label: data.layer_title ?? "Show", names: layers.map((one) => one.name),
        change: (k) => { layer = k; view.repaint(); tell(); },
      }));
    }
    body.append(view.node, line);
  }
});
