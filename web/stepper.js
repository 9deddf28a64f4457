// <aid-stepper>: forwards and back through a recorded run of an algorithm, with matrices and counters at each step.

import { Widget, el, number, shade } from "./kit.js";

customElements.define("aid-stepper", class extends Widget {
  build(data, body) {
    const { steps } = data;
    let at = 0;
    const title = el("h4", { class: "aid-steptitle" });
    const text = el("div", { class: "aid-steptext" });
    const stage = el("div", { class: "aid-stage" });
    const counts = el("dl", { class: "aid-counters" });
    const most = Math.max(1, ...steps.flatMap((step) => Object.values(step.counters ?? {})));
    const where = el("span", { class: "aid-where" });
    const back = el("button", { type: "button", onclick: () => go(at - 1) }, "← back");
    const next = el("button", { type: "button", onclick: () => go(at + 1) }, "next →");
    const first = el("button", { type: "button", onclick: () => go(0) }, "start again");

    const matrix = (one) => {
      const rows = Array.isArray(one.values[0]) ? one.values : [one.values];
      const lit = new Set((one.highlight ?? []).map(([i, j]) => `${i},${j}`));
      const largest = one.shade ? Math.max(1e-12, ...rows.flat().map(Math.abs)) : null;
      const head = one.columns
        ? el("thead", {}, el("tr", {}, one.rows ? el("td") : null,
          ...one.columns.map((name) => el("th", { scope: "col" }, String(name)))))
        : null;
      return el("div", { class: "aid-matrixbox", role: "group", tabindex: "0", "aria-label": one.name }, el("table", { class: "aid-numbers" },
        el("caption", {}, one.name), head,
        el("tbody", {}, ...rows.map((line, i) => el("tr", {},
          one.rows ? el("th", { scope: "row" }, String(one.rows[i])) : null,
          ...line.map((x, j) => el("td", {
            class: lit.has(`${i},${j}`) ? "aid-lit" : null,
            style: one.shade ? `background: ${shade((0.7 * x) / largest)}` : null,
          }, typeof x === "string" ? x : number(x, 3))))))));
    };
    const go = (k) => {
      at = Math.max(0, Math.min(steps.length - 1, k));
      const step = steps[at];
      title.textContent = step.title;
      text.innerHTML = step.text; // escaped by the lesson kit, which is its only writer
      stage.replaceChildren(...(step.matrices ?? []).map(matrix));
      counts.replaceChildren(...Object.entries(step.counters ?? {}).flatMap(([name, value]) => [el("dt", {}, name),
        el("dd", {}, el("span", { class: "aid-bartrack", "aria-hidden": "true" },
          el("span", { class: "aid-bar", style: `width: ${(100 * value) / most}%` })), number(value))]));
      where.textContent = `step ${at + 1} of ${steps.length}`;
      back.disabled = first.disabled = at === 0;
      next.disabled = at === steps.length - 1;
      this.typeset(text);
    };
    const controls = el("div", {
      class: "aid-controls",
      onkeydown: (event) => {
        const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!move) return;
        event.preventDefault();
        go(at + move);
        // A button that has just been switched off loses the focus; keep it among the controls.
        if (document.activeElement === document.body || document.activeElement?.disabled) (move < 0 ? next : back).focus();
      },
    }, back, next, first, where);
    body.append(controls, el("div", { class: "aid-step", "aria-live": "polite" }, title, text, counts), stage);
    go(0);
  }
});
