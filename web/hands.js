// <aid-hands>: rotary position embedding as clock hands. Each pair of dimensions is a dial; position turns its hands, the
// score is the sum over the dials of |q| |k| cos(angle between the hands), and so depends on the distance alone.

import { Widget, draw, el, number, reading, slider, toggle } from "./kit.js";

const RADIUS = 44, WIDTH = 460, HEIGHT = 160, LEFT = 46, RIGHT = 10, TOP = 12, BOTTOM = 46;

customElements.define("aid-hands", class extends Widget {
  build(data, body) {
    const { thetas, query, key, positions } = data;
    const last = positions - 1;
    const polar = (v) => thetas.map((_, p) => [Math.hypot(v[2 * p], v[2 * p + 1]), Math.atan2(v[2 * p + 1], v[2 * p])]);
    const q = polar(query), k = polar(key);
    const longest = Math.max(...[...q, ...k].map(([size]) => size));
    const part = (p, back) => q[p][0] * k[p][0] * Math.cos(q[p][1] - k[p][1] + back * thetas[p]);
    const score = (back) => thetas.reduce((sum, _, p) => sum + part(p, back), 0);
    let m = data.query_position ?? Math.min(4, last), n = data.key_position ?? 0, together = false;

    const hand = (name) => draw("line", { class: `aid-hand aid-${name}hand`, x1: 0, y1: 0 });
    const dials = thetas.map((theta) => {
      const one = hand("query"), two = hand("key"), says = el("span");
      const face = draw("svg", { viewBox: "-50 -50 100 100", "aria-hidden": "true" },
        draw("circle", { class: "aid-dial", r: RADIUS }), two, one, draw("circle", { class: "aid-pin", r: 2.5 }));
      return { one, two, says, node: el("figure", { class: "aid-clock" }, face,
        el("figcaption", {}, `θ = ${number(theta, 3)}`, el("br"), says)) };
    });
    const point = (line, size, angle) => {
      line.setAttribute("x2", (RADIUS * 0.94 * size / longest * Math.cos(angle)).toFixed(2));
      line.setAttribute("y2", (-RADIUS * 0.94 * size / longest * Math.sin(angle)).toFixed(2)); // up is positive
    };

    const backs = Array.from({ length: 2 * last + 1 }, (_, i) => i - last);
    const all = backs.map(score);
    const low = Math.min(...all), high = Math.max(...all, low + 1e-9);
    const x = (back) => LEFT + ((back + last) / (2 * last || 1)) * (WIDTH - LEFT - RIGHT);
    const y = (s) => HEIGHT - BOTTOM - ((s - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    const dot = draw("circle", { class: "aid-spot", r: 5.5 });
    const text = (words, attributes) => draw("text", { class: "aid-tick", ...attributes }, words);
    const chart = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "aid-distances", "aria-hidden": "true" },
      draw("line", { class: "aid-axisline", x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }),
      ...[low, high].map((s) => text(number(s, 2), { x: LEFT - 6, y: y(s) + 4, "text-anchor": "end" })),
      ...[-last, 0, last].map((back) => text(number(back), { x: x(back), y: HEIGHT - BOTTOM + 18, "text-anchor": back < 0 ? "start" : back ? "end" : "middle" })),
      text("query's position − key's position", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }),
      draw("path", { class: "aid-line", stroke: "var(--aid-green)", d: `M${backs.map((back, i) => `${x(back).toFixed(1)} ${y(all[i]).toFixed(1)}`).join("L")}` }),
      dot);
    const line = reading();

    const update = () => {
      dials.forEach(({ one, two, says }, p) => {
        point(one, q[p][0], q[p][1] + m * thetas[p]);
        point(two, k[p][0], k[p][1] + n * thetas[p]);
        says.textContent = number(part(p, m - n), 2);
      });
      dot.setAttribute("cx", x(m - n));
      dot.setAttribute("cy", y(score(m - n)));
      line.textContent = `query at ${m}, key at ${n}, distance ${number(m - n)}: score ${number(score(m - n), 4)}`;
    };
    // While the two move together, one that is stopped by the end of the text stops the other.
    const place = (to, isQuery) => {
      const other = isQuery ? n : m, was = isQuery ? m : n;
      const shift = together ? Math.max(-other, Math.min(last - other, to - was)) : 0;
      const mine = together ? was + shift : to;
      if (isQuery) { m = mine; n += shift; } else { n = mine; m += shift; }
      if (together) { ask.show(m); answer.show(n); }
      update();
    };
    const position = (label, value, isQuery) => slider({
      label, min: 0, max: last, step: 1, value, change: (to) => place(to, isQuery),
    });
    const ask = position("position of the query", m, true), answer = position("position of the key", n, false);
    body.append(ask.node, answer.node,
      el("div", { class: "aid-controls" }, toggle({
        label: "move both together", checked: false, change: (on) => { together = on; },
      })),
      el("ul", { class: "aid-legend" }, ...[["query", "blue"], ["key", "orange"]].map(([name, colour]) =>
        el("li", {}, el("span", { class: "aid-swatch", style: `background: var(--aid-${colour})`, "aria-hidden": "true" }), name))),
      el("div", { class: "aid-clocks" }, ...dials.map(({ node }) => node)), line, chart);
    update();
  }
});
