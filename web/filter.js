// <aid-filter>: controls above a long table, which hide the lines that do not fit.
// A line says what it is in data-… attributes; the element's own `keys` names those to filter by.

import { el, unique } from "./kit.js";

customElements.define("aid-filter", class extends HTMLElement {
  connectedCallback() {
    if (this.ready) return;
    this.ready = true;
    const lines = [...this.querySelectorAll("tbody tr")];
    const chosen = {};
    let words = [];
    const count = el("p", { class: "aid-count", "aria-live": "polite" });
    const update = () => {
      let open = 0;
      for (const line of lines) {
        const text = line.textContent.toLowerCase();
        const fits = Object.entries(chosen).every(([key, value]) => !value || line.dataset[key] === value)
          && words.every((word) => text.includes(word));
        line.hidden = !fits;
        open += fits;
      }
      count.textContent = `${open} of ${lines.length} lines`;
    };
    const controls = el("form", { class: "aid-controls", role: "search", onsubmit: (event) => event.preventDefault() });
    for (const key of this.getAttribute("keys").split(" ")) {
      const values = [...new Set(lines.map((line) => line.dataset[key]))];
      const id = unique("filter");
      const select = el("select", { id, onchange: () => { chosen[key] = select.value; update(); } },
        el("option", { value: "" }, "all"), ...values.map((value) => el("option", { value }, value)));
      controls.append(el("span", {}, el("label", { for: id }, key), select));
    }
    const id = unique("filter");
    const box = el("input", {
      type: "search", id, oninput: () => { words = box.value.toLowerCase().split(/\s+/).filter(Boolean); update(); },
    });
    controls.append(el("span", {}, el("label", { for: id }, "words"), box));
    this.prepend(controls, count);
    update();
    // A link to a line that is there must find it, whatever is chosen.
    if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
  }
});
