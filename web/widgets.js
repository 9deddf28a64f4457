// Loads the module of each widget that stands on this page, and no other; makes wide figures reachable.

const kinds = [
  "matrix", "attention", "softmax", "frames", "mask", "stepper", "hands", "patterns", "live", "costs", "filter",
];

const load = (kind) => import(new URL(`./${kind}.js`, import.meta.url));
const here = kinds.filter((kind) => document.querySelector(`aid-${kind}`));

// Setting a page full of formulas keeps the browser busy for a while. A model that somebody waits for goes first, unless
// the network is so slow that the formulas would have to wait for it.
if (here.includes("live") && !window.MathJax?.version) {
  const models = load("live").then(() => Promise.all([...document.querySelectorAll("aid-live")].map((one) => one.ready)));
  const soon = Promise.race([models.catch(() => null), new Promise((done) => setTimeout(done, 600))]);
  const config = (window.MathJax ??= {});
  config.startup = { ...config.startup, pageReady: () => soon.then(() => window.MathJax.startup.defaultPageReady()) };
  soon.then(() => here.forEach(load));
} else {
  here.forEach(load);
}

// A figure that is wider than the page scrolls; the keyboard must be able to reach it then.
for (const box of document.querySelectorAll(".aid-plot")) if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
