// <aid-mask>: which query may attend to which key, when causal, padding and window masks are put together.

import { Widget, el, grid, reading, slider, toggle } from "./kit.js";

customElements.define("aid-mask", class extends Widget {
  build(data, body) {
    const { q_seq, kv_seq } = data;
    const state = {
      causal: data.causal ?? true, padding: data.padding ?? false, windowed: data.windowed ?? false,
      lengths: data.lengths ?? kv_seq, window: data.window ?? 3,
    };
    // Query i stands at i + kv_seq − q_seq, so every mask is aligned bottom-right.
    const why = (i, j) => {
      const back = i + kv_seq - q_seq - j;
      if (state.causal && back < 0) return "the key lies in the future";
      if (state.padding && j >= state.lengths) return "the key is padding";
      if (state.windowed && (state.causal ? back >= state.window : Math.abs(back) > Math.floor(state.window / 2))) {
        return "the key lies outside the window";
      }
      return null;
    };
    const names = (word, n) => Array.from({ length: n }, (_, k) => k);
    const line = reading();
    const count = el("p", { class: "aid-count", "aria-live": "polite" });
    const view = grid({
      rows: names("q", q_seq), columns: names("k", kv_seq), rowTitle: "query", columnTitle: "key",
      title: this.getAttribute("aria-label"),
      paint: (i, j, cell) => {
        const open = why(i, j) === null;
        cell.className = open ? "aid-open" : "aid-shut";
        cell.replaceChildren(el("span", {}, open ? "●" : "·"));
        cell.setAttribute("aria-label", open ? "may attend" : "masked");
      },
      visit: (i, j) => {
        const reason = why(i, j);
        line.textContent = `query ${i} (at position ${i + kv_seq - q_seq}), key ${j}: ${reason ? `masked, ${reason}` : "may attend"}`;
      },
    });
    const update = () => {
      view.repaint();
      let open = 0, empty = [];
      for (let i = 0; i < q_seq; i++) {
        const here = names("k", kv_seq).filter((j) => why(i, j) === null).length;
        open += here;
        if (here === 0) empty.push(i);
      }
      const rest = empty.length ? ` Nothing to attend to for query ${empty.join(", ")}: weights 0, output 0.` : "";
      count.textContent = `${open} of ${q_seq * kv_seq} pairs remain (${Math.round((100 * open) / (q_seq * kv_seq))} %).${rest}`;
    };
    const set = (key) => (value) => { state[key] = value; update(); };
    body.append(
      el("div", { class: "aid-controls" },
        toggle({ label: "causal", checked: state.causal, change: set("causal") }),
        toggle({ label: "padding", checked: state.padding, change: set("padding") }),
        toggle({ label: "window", checked: state.windowed, change: set("windowed") })),
      slider({ label: "valid keys", min: 0, max: kv_seq, step: 1, value: state.lengths, change: set("lengths") }).node,
      slider({ label: "window width", min: 1, max: kv_seq, step: 1, value: state.window, change: set("window") }).node,
      view.node, count, line);
    update();
  }
});
