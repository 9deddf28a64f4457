// Loads the module of each widget that stands on this page, and no other.

const kinds = ["matrix", "softmax", "frames", "mask", "stepper", "costs", "filter"];

for (const kind of kinds) {
  if (document.querySelector(`aid-${kind}`)) import(new URL(`./${kind}.js`, import.meta.url));
}
