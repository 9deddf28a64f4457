// <aid-frames>: a line or bar chart with a slider through its frames, and a second one that reads values off.

import { Widget, draw, el, number, reading, slider } from "./kit.js";

const COLOURS = ["blue", "orange", "green", "pink", "red", "cyan", "olive", "grey"];
const WIDTH = 640, HEIGHT = 320, LEFT = 64, RIGHT = 12, TOP = 12;

/** Round numbers that cover the range, four to seven of them. */
function ticks(low, high) {
  const rough = (high - low || 1) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough);
  const marks = [];
  for (let x = Math.ceil(low / step) * step; x <= high + step * 1e-6; x += step) marks.push(Number(x.toPrecision(10)));
  return marks;
}

/** Powers of ten that cover the range, at most eight of them. */
function decades(low, high) {
  const step = Math.ceil((high - low) / 8) || 1;
  const marks = [];
  for (let power = low; power <= high; power += step) marks.push(10 ** power);
  return marks;
}

customElements.define("aid-frames", class extends Widget {
  build(data, body) {
    const { x, frames } = data;
    const bars = data.kind === "bar";
    const names = [...new Set(frames.flatMap((frame) => frame.series.map((one) => one.name)))];
    const log = data.scale === "log";
    const all = frames.flatMap((frame) => frame.series.flatMap((one) => one.values)).filter((y) => y !== null);
    const on = (y) => (log ? Math.log10(y) : y);
    let low = on(Math.min(...all)), high = on(Math.max(...all));
    if (log) { low = Math.floor(low + 1e-9); high = Math.max(Math.ceil(high - 1e-9), low + 1); }
    else {
      if (bars || (low > 0 && low < high / 3)) low = Math.min(0, low);
      if (low === high) high = low + 1;
      if (!bars) high += (high - low) * 0.04;
    }
    const numeric = !bars && x.every((value) => typeof value === "number");
    const spot = (k) => numeric && x.length > 1
      ? LEFT + ((x[k] - x[0]) / (x.at(-1) - x[0])) * (WIDTH - LEFT - RIGHT)
      : LEFT + ((k + 0.5) / x.length) * (WIDTH - LEFT - RIGHT);
    // Names that would run into each other are written aslant, all of them.
    const room = (WIDTH - LEFT - RIGHT) / x.length;
    const slanted = !numeric && x.some((name) => String(name).length * 7 > room);
    const BOTTOM = slanted ? 96 : 46;
    const level = (y) => HEIGHT - BOTTOM - ((on(y) - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    const ground = Math.min(HEIGHT - BOTTOM, level(log ? 10 ** low : Math.max(0, low)));
    const colour = (name) => `var(--aid-${COLOURS[names.indexOf(name) % COLOURS.length]})`;
    let frame = 0, at = 0;

    const marked = (most) => {
      const many = Math.min(x.length, most);
      return [...new Set(Array.from({ length: many }, (_, k) => Math.round((k * (x.length - 1)) / Math.max(1, many - 1))))];
    };
    const label = (text, attributes) => draw("text", { class: "aid-tick", ...attributes }, String(text));
    const axes = draw("g", {},
      ...(log ? decades : ticks)(low, high).flatMap((y) => [
        draw("line", { class: "aid-gridline", x1: LEFT, x2: WIDTH - RIGHT, y1: level(y), y2: level(y) }),
        label(number(y), { x: LEFT - 8, y: level(y) + 4, "text-anchor": "end" })]),
      ...marked(slanted ? x.length : 7).map((k) => label(typeof x[k] === "number" ? number(x[k]) : x[k], slanted
        ? { transform: `translate(${spot(k) + 4} ${HEIGHT - BOTTOM + 14}) rotate(-35)`, "text-anchor": "end" }
        : { x: spot(k), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" })),
      draw("line", { class: "aid-axisline", x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }),
      label(data.x_title ?? "", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 8, "text-anchor": "middle" }),
      label(data.y_title ?? "", {
        transform: `translate(14 ${(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle" }));
    const marks = draw("g");
    const cursor = draw("line", { class: "aid-cursor", y1: TOP, y2: HEIGHT - BOTTOM });
    const chart = draw("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": this.getAttribute("aria-label"),
      onpointermove: (event) => follow(event), onpointerdown: (event) => follow(event),
    }, axes, cursor, marks);
    const follow = (event) => {
      const box = chart.getBoundingClientRect();
      const place = ((event.clientX - box.left) / box.width) * WIDTH;
      const near = x.reduce((best, _, k) => (Math.abs(spot(k) - place) < Math.abs(spot(best) - place) ? k : best), 0);
      if (near !== at) { at = near; pick.show(at); read(); }
    };
    const legend = el("ul", { class: "aid-legend" }, ...names.map((name) =>
      el("li", {}, el("span", { class: "aid-swatch", style: `background: ${colour(name)}`, "aria-hidden": "true" }), name)));
    const line = reading();

    const paint = () => {
      const wide = room * 0.8;
      marks.replaceChildren(...frames[frame].series.flatMap((one) => {
        if (bars) {
          const many = frames[frame].series.length;
          const k0 = frames[frame].series.indexOf(one);
          return one.values.map((y, k) => y === null ? null : draw("rect", {
            fill: colour(one.name), x: spot(k) - wide / 2 + (k0 * wide) / many, width: Math.max(1, wide / many - 1),
            y: Math.min(level(y), ground), height: Math.abs(level(y) - ground) })).filter(Boolean);
        }
        let pen = "M";
        const path = one.values.map((y, k) => {
          if (y === null) { pen = "M"; return ""; }
          const part = `${pen}${spot(k).toFixed(1)} ${level(y).toFixed(1)}`;
          pen = "L";
          return part;
        }).join("");
        return [draw("path", { d: path, class: "aid-line", stroke: colour(one.name) })];
      }));
    };
    const read = () => {
      cursor.setAttribute("x1", spot(at));
      cursor.setAttribute("x2", spot(at));
      const parts = frames[frame].series.map((one) => `${one.name} ${number(one.values[at])}`);
      line.textContent = `${frames[frame].name}, ${data.x_title ?? "x"} ${x[at]}: ${parts.join(", ")}`;
    };
    const pick = slider({
      label: `read off at ${data.x_title ?? "x"}`, min: 0, max: x.length - 1, step: 1, value: 0,
      text: (k) => String(x[k]), change: (k) => { at = k; read(); },
    });
    if (frames.length > 1) {
      body.append(slider({
        label: data.slider_title ?? "frame", min: 0, max: frames.length - 1, step: 1, value: 0,
        text: (k) => frames[k].name, change: (k) => { frame = k; paint(); read(); },
      }).node);
    }
    body.append(legend, chart, pick.node, line);
    paint();
    read();
  }
});
