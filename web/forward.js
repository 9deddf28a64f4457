// The forward passes of the models that run in the page, by kind. A chapter that exports a new kind of model adds it here.
//
// An entry has `controls(settings)`, what the reader may switch (see web/live.js), and `run(tensors, settings, text,
// switches)`, which gives `output`, `logits`, `weights` (a matrix), `rows` and `columns` (their names) and `note`.

import { beside, embed, gru, gruCell, linear, matmul, matrix, row, scores, softmax } from "./tensor.js";

/** The place of the largest number. */
const largest = (numbers) => numbers.reduce((best, x, k) => (x > numbers[best] ? k : best), 0);

/**
 * A translator from characters to characters: bidirectional GRU, attention, GRU decoder that writes what is likeliest.
 * settings: `source` and `target` (alphabets; index 0 is padding and start), `length` of the output, `longest` input,
 * `models`, each with `name`, `prefix` of its tensors, `score` and, for dot products, `scale`.
 */
const translator = {
  controls: ({ models }) => [
    { key: "model", label: "score", names: models.map(({ name }) => name) },
    { key: "scaled", label: "divide dot products by √d", value: true, only: ({ model }) => "scale" in models[model] },
    { key: "even", label: "attention off (the same weight for every character)", value: false },
  ],
  run(tensors, settings, text, { model = 0, scaled = true, even = false } = {}) {
    const { prefix, score, scale } = settings.models[model];
    const at = (name) => tensors[prefix + name];
    const all = [...text.toLowerCase()];
    const characters = all.filter((one) => settings.source.includes(one)).slice(0, settings.longest);
    const note = characters.length < all.length
      ? "Some characters were left out: the model does not know them, or the text is too long." : "";
    const columns = characters.map((one) => (one === " " ? "␣" : one));
    if (!characters.length) return { output: "", logits: matrix(0, 0), weights: matrix(0, 0), rows: [], columns, note };

    const read = embed(at("embedding.weight"), characters.map((one) => 1 + settings.source.indexOf(one)));
    const memory = beside(
      gru(read, (name) => at(`encoder.${name}_l0`)), gru(read, (name) => at(`encoder.${name}_l0_reverse`), true));
    const step = (name) => at(`decoder.step.${name}`);
    const keys = linear(memory, step("attention.k_proj.weight"));
    const logits = matrix(settings.length, settings.target.length + 1);
    const weights = matrix(settings.length, characters.length);
    const options = { v: step("attention.score_proj.weight"), scale: scaled ? scale : 1 };
    let state = matrix(1, step("cell.weight_hh").cols), token = 0;
    const rows = [];
    for (let t = 0; t < settings.length; t++) {
      const query = linear(state, step("attention.q_proj.weight"));
      const shares = even
        ? matrix(1, memory.rows, new Float32Array(memory.rows).fill(1 / memory.rows))
        : softmax(scores[score](query, keys, options));
      const input = beside(embed(step("embedding.weight"), [token]), matmul(shares, memory));
      state = gruCell(input, state, (name) => step(`cell.${name}`));
      row(weights, t).set(shares.data);
      row(logits, t).set(linear(state, at("decoder.read.weight"), at("decoder.read.bias")).data);
      token = largest(row(logits, t));
      rows.push(token ? settings.target[token - 1] : "·");
    }
    return { output: rows.join(""), logits, weights, rows, columns, note };
  },
};

/** Columns `from` … `to` − 1 of a matrix. */
const columnsOf = (m, from, to) => {
  const y = matrix(m.rows, to - from);
  for (let i = 0; i < m.rows; i++) row(y, i).set(row(m, i).subarray(from, to));
  return y;
};

/**
 * A causal layer of multi-head attention that says, at every pronoun, which name it stands for.
 * settings: `words` (the vocabulary, in the order of the embedding), `names` (the classes), `pronouns`, `heads`, `longest`
 * (positions that the model knows), `letters` (the longest text).
 */
const referent = {
  controls: ({ heads }) => [
    { key: "head", label: "head", names: Array.from({ length: heads }, (_, h) => `head ${h}`) },
    { key: "silent", label: "silence this head", value: false },
  ],
  run(tensors, settings, text, { head = 0, silent = false } = {}) {
    const { words, names, pronouns, heads, longest } = settings;
    const all = text.toLowerCase().split(/[^a-z]+/).filter(Boolean);
    const known = all.filter((word) => words.includes(word)).slice(0, longest);
    const note = known.length < all.length
      ? "Some words were left out: the model does not know them, or the text is too long." : "";
    if (!known.length) return { output: "", logits: matrix(0, 0), weights: matrix(0, 0), rows: [], columns: [], note };
    const at = (name) => tensors[`referent.${name}`];
    const x = embed(at("embedding.weight"), known.map((word) => words.indexOf(word)));
    const places = at("positions.weight");
    x.data.forEach((_, k) => { x.data[k] += places.data[k]; });
    const part = (name) => linear(x, at(`attention.${name}_proj.weight`), at(`attention.${name}_proj.bias`));
    const [query, key, value] = ["q", "k", "v"].map(part);
    const size = x.cols / heads, joined = [];
    let weights = null;
    for (let h = 0; h < heads; h++) {
      const [q, k, v] = [query, key, value].map((m) => columnsOf(m, h * size, (h + 1) * size));
      const s = scores.dot(q, k, { scale: 1 / Math.sqrt(size) });
      for (let i = 0; i < s.rows; i++) row(s, i).fill(-Infinity, i + 1);
      const shares = softmax(s);
      if (h === head) weights = shares;
      joined.push(h === head && silent ? matrix(x.rows, size) : matmul(shares, v));
    }
    const mixed = linear(beside(...joined), at("attention.out_proj.weight"), at("attention.out_proj.bias"));
    mixed.data.forEach((_, k) => { mixed.data[k] += x.data[k]; });
    const logits = linear(mixed, at("read.weight"), at("read.bias"));
    const said = known.map((word, i) =>
      (pronouns.includes(word) ? `${word} → ${names[largest(row(logits, i))]}` : "")).filter(Boolean);
    return { output: said.join(", "), logits, weights, rows: known, columns: known, note };
  },
};

export const forwards = { translator, referent };
