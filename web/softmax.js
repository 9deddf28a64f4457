// <aid-softmax>: sliders for the scores and the temperature; weights, entropy and effective support follow at once.

import { Widget, el, number, reading, slider } from "./kit.js";

/** Softmax with the maximum taken out; temperature 0 shares the weight among the largest. */
function softmax(scores, temperature) {
  const top = Math.max(...scores);
  const parts = scores.map((s) => (temperature === 0 ? Number(s === top) : Math.exp((s - top) / temperature)));
  const sum = parts.reduce((a, b) => a + b);
  return parts.map((part) => part / sum);
}

customElements.define("aid-softmax", class extends Widget {
  build(data, body) {
    const scores = [...data.scores];
    let temperature = data.temperature ?? 1;
    const reach = Math.max(5, Math.ceil(Math.max(...scores.map(Math.abs)) * 1.5));
    const bars = data.labels.map(() => el("span", { class: "aid-bar" }));
    const numbers = data.labels.map(() => el("span", { class: "aid-barvalue" }));
    const line = reading();
    const update = () => {
      const weights = softmax(scores, temperature);
      weights.forEach((w, k) => {
        bars[k].style.width = `${100 * w}%`;
        numbers[k].textContent = w < 0.0005 && w > 0 ? "< 0.001" : w.toFixed(3);
      });
      const entropy = -weights.reduce((sum, w) => sum + (w > 0 ? w * Math.log(w) : 0), 0);
      line.textContent = `entropy ${number(Math.max(0, entropy), 3)} nats · `
        + `effective support ${number(Math.exp(entropy), 3)} of ${weights.length}`;
    };
    const tenth = (x) => x.toFixed(1).replace("-", "−");
    const lines = data.labels.map((label, k) => el("div", { class: "aid-softmaxrow" },
      slider({
        label: `score of ${label}`, min: -reach, max: reach, step: 0.1, value: scores[k], text: tenth,
        change: (x) => { scores[k] = x; update(); },
      }).node,
      el("span", { class: "aid-bartrack", "aria-hidden": "true" }, bars[k]), numbers[k]));
    const heat = slider({
      label: "temperature", min: 0, max: Math.max(5, temperature * 2), step: 0.05, value: temperature,
      text: (x) => x.toFixed(2), change: (x) => { temperature = x; update(); },
    });
    heat.node.classList.add("aid-heat");
    body.append(heat.node, ...lines, line);
    update();
  }
});
