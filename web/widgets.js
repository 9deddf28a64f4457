// Loads the module of each widget that stands on this page, and no other; makes wide figures reachable.

const kinds = [
  "matrix", "attention", "softmax", "frames", "mask", "stepper", "hands", "patterns", "live", "costs", "filter",
];

for (const kind of kinds) {
  if (document.querySelector(`aid-${kind}`)) import(new URL(`./${kind}.js`, import.meta.url));
}

if (document.querySelector("aid-done, aid-progress")) import(new URL("./progress.js", import.meta.url));

// The map of the chapters begins in its middle, which a narrow screen would not show.
for (const box of document.querySelectorAll(".aid-map")) box.scrollLeft = (box.scrollWidth - box.clientWidth) / 2;

// A figure that is wider than the page scrolls; the keyboard must be able to reach it then.
for (const box of document.querySelectorAll(".aid-plot")) if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
