// <aid-live>: a model that the page's own cells trained, running in the reader's browser. The reader types; output and
// weights follow. The model is a file beside the page, its arithmetic is in tensor.js, its forward pass in forward.js.

import { Widget, choice, el, grid, number, reading, shade, toggle, unique } from "./kit.js";
import { forwards } from "./forward.js";
import { readTensors, row } from "./tensor.js";

customElements.define("aid-live", class extends Widget {
  async build(data, body) {
    // The page's head has begun to fetch its models (ext/live.py); where it has not, this does.
    const { [data.file]: content = fetch(data.file).then((answer) => answer.arrayBuffer()) } = window.aidFiles ?? {};
    const { tensors, settings } = readTensors(await content);
    const { controls, run } = forwards[data.kind];
    const switches = {};
    const id = unique("live");
    const input = el("input", {
      id, type: "text", value: data.examples[0], autocomplete: "off", autocapitalize: "off", spellcheck: "false",
      maxlength: settings.letters ?? settings.longest ?? null, oninput: () => later(),
    });
    const output = el("output", { for: id, class: "aid-output", "aria-live": "polite" });
    const note = el("p", { class: "aid-said", "aria-live": "polite" });
    const line = reading("Point at a square, or move through the squares with the arrow keys.");
    const time = el("span", { class: "aid-where" });
    const stage = el("div", { class: "aid-dense" });
    let due = 0;
    // One computation for all keystrokes of a frame.
    const later = () => { cancelAnimationFrame(due); due = requestAnimationFrame(update); };

    const update = () => {
      const begin = performance.now();
      const { output: text, weights, rows, columns, note: said } = run(tensors, settings, input.value, switches);
      const took = performance.now() - begin;
      output.textContent = text || "–";
      note.textContent = said;
      time.textContent = `computed in your browser in ${number(took, 2)} ms`;
      stage.replaceChildren(grid({
        rows, columns, rowTitle: data.row_title, columnTitle: data.column_title, title: "Weights of the attention",
        paint: (i, j, cell) => {
          cell.style.background = shade(row(weights, i)[j]);
          cell.setAttribute("aria-label", number(row(weights, i)[j], 2));
        },
        visit: (i, j) => {
          line.textContent = `writing ${rows[i]} (place ${i + 1}), looking at ${columns[j]} (place ${j + 1}): `
            + `weight ${number(row(weights, i)[j], 3)}`;
        },
      }).node);
      performance.clearMeasures("aid-live");
      performance.measure("aid-live", { start: begin, end: performance.now() });
    };

    const switched = [];
    const refresh = () => {
      for (const { node, only } of switched) node.hidden = !(only?.(switches) ?? true);
      update();
    };
    const nodes = controls(settings).map(({ key, label, names, value, only }) => {
      switches[key] = names ? 0 : value;
      const change = (now) => { switches[key] = now; refresh(); };
      const node = names ? choice({ label, names, change }) : toggle({ label, checked: value, change });
      switched.push({ node, only });
      return node;
    });
    body.append(
      el("div", { class: "aid-typing" }, el("label", { for: id }, data.input_title), input,
        el("span", { class: "aid-outtitle" }, data.output_title), output),
      el("div", { class: "aid-controls" }, el("span", {}, "try"), ...data.examples.map((text) =>
        el("button", { type: "button", onclick: () => { input.value = text; update(); } }, text))),
      ...nodes.filter((node) => node.matches("fieldset")),
      el("div", { class: "aid-controls" }, ...nodes.filter((node) => !node.matches("fieldset"))),
      stage, line, note, time);
    refresh();
    performance.mark("aid-live-first");
  }
});
