// <aid-done>: a box to tick off one exercise. <aid-progress>: how many of a list are ticked off.
// What is ticked stays in this browser (localStorage) and is sent nowhere.

import { el, unique } from "./kit.js";

const KEY = "attention-in-depth:done";
const boards = new Set();

/** The exercises that are done, each with its day; empty where the browser keeps nothing or something else. */
function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY));
    return kept && typeof kept === "object" && !Array.isArray(kept) ? kept : {};
  } catch {
    return {};
  }
}

/** Keeps what is done; false where the browser does not allow it. */
function write(done) {
  try {
    localStorage.setItem(KEY, JSON.stringify(done));
    return true;
  } catch {
    return false;
  } finally {
    refresh();
  }
}

const refresh = () => boards.forEach((board) => board.refresh());
// Another tab of the book, or a page that the browser brings back as it was.
addEventListener("storage", (event) => { if (event.key === KEY || event.key === null) refresh(); });
addEventListener("pageshow", refresh);

class Board extends HTMLElement {
  connectedCallback() {
    if (!boards.has(this)) this.build();
    boards.add(this);
    this.refresh();
  }

  disconnectedCallback() { boards.delete(this); }
}

customElements.define("aid-done", class extends Board {
  build() {
    const id = unique("done");
    this.box = el("input", { type: "checkbox", id, onchange: () => this.tick() });
    this.append(this.box, el("label", { for: id }, "done", el("span", { class: "aid-unseen" }, `: ${this.getAttribute("name")}`)));
  }

  tick() {
    const done = read();
    const exercise = this.getAttribute("exercise");
    if (this.box.checked) done[exercise] = new Date().toISOString().slice(0, 10);
    else delete done[exercise];
    if (!write(done)) this.querySelector("label").textContent = "this browser does not keep it";
  }

  refresh() { this.box.checked = Object.hasOwn(read(), this.getAttribute("exercise")); }
});

customElements.define("aid-progress", class extends Board {
  build() {
    this.exercises = this.getAttribute("exercises").split(" ").filter(Boolean);
    this.words = el("span", { class: "aid-howfar" });
    this.bar = el("progress", { max: this.exercises.length, value: 0, "aria-label": "exercises done" });
    this.append(this.bar, this.words);
    if (this.hasAttribute("keep")) this.append(this.keeping());
  }

  keeping() {
    this.news = el("span", { class: "aid-news", role: "status" });
    const file = el("input", { type: "file", accept: ".json,application/json", "aria-label": "a file of progress", hidden: true,
      onchange: () => this.restore(file) });
    return el("div", { class: "aid-keep" },
      el("button", { type: "button", onclick: () => this.save() }, "Save to a file"),
      el("button", { type: "button", onclick: () => file.click() }, "Restore from a file"),
      el("button", { type: "button", onclick: () => this.forget() }, "Start over"), file, this.news);
  }

  save() {
    const content = JSON.stringify({ schema: 1, course: "attention-in-depth", done: read() }, null, 1);
    const address = URL.createObjectURL(new Blob([content], { type: "application/json" }));
    el("a", { href: address, download: "attention-in-depth-progress.json" }).click();
    URL.revokeObjectURL(address);
  }

  async restore(file) {
    let found = null;
    try {
      found = JSON.parse(await file.files[0].text());
    } catch { /* said below */ }
    file.value = "";
    if (found?.course !== "attention-in-depth" || typeof found.done !== "object" || !found.done) {
      this.news.textContent = "This is no file of progress from this book.";
      return;
    }
    const days = Object.entries(found.done).filter(([, day]) => typeof day === "string");
    this.news.textContent = write({ ...read(), ...Object.fromEntries(days) }) ? `Restored ${days.length}.` : "This browser does not keep it.";
  }

  forget() {
    if (!confirm("Forget which exercises you have ticked off in this browser?")) return;
    this.news.textContent = write({}) ? "Forgotten." : "This browser does not keep it.";
  }

  refresh() {
    const done = read();
    const count = this.exercises.filter((exercise) => Object.hasOwn(done, exercise)).length;
    this.bar.value = count;
    this.words.textContent = `${count} of ${this.exercises.length} done`;
  }
});
