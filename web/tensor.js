// The arithmetic of a small network: matrices in Float32Array, sums in double. Reads safetensors files.

/** A matrix of `rows` × `cols`, filled with zeros unless data is given. */
export const matrix = (rows, cols, data = new Float32Array(rows * cols)) => ({ rows, cols, data });

/** Row `i`, as a view. */
export const row = (m, i) => m.data.subarray(i * m.cols, (i + 1) * m.cols);

/** The number that 16 bits stand for. */
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, power = (bits >> 10) & 31, rest = bits & 1023;
  if (power === 0) return sign * rest * 2 ** -24;
  return power === 31 ? (rest ? NaN : sign * Infinity) : sign * (1 + rest / 1024) * 2 ** (power - 15);
}

/** What a safetensors file holds: `tensors`, matrices by name (a vector is one row), and its `settings`. */
export function readTensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const { __metadata__: meta, ...entries } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [start, end] }] of Object.entries(entries)) {
    const bytes = buffer.slice(8 + length + start, 8 + length + end);
    if (dtype !== "F16" && dtype !== "F32") throw new Error(`${name}: cannot read ${dtype}`);
    const data = dtype === "F32" ? new Float32Array(bytes) : Float32Array.from(new Uint16Array(bytes), half);
    const cols = shape.at(-1) ?? 1;
    tensors[name] = matrix(data.length / cols, cols, data);
  }
  return { tensors, settings: JSON.parse(meta?.settings ?? "{}") };
}

/** x Wᵀ + b for every row of x; `weight` as torch keeps it, (out, in). */
export function linear(x, weight, bias = null) {
  const y = matrix(x.rows, weight.rows);
  for (let i = 0; i < x.rows; i++) {
    for (let o = 0; o < weight.rows; o++) {
      let sum = bias ? bias.data[o] : 0;
      for (let k = 0, a = i * x.cols, b = o * weight.cols; k < x.cols; k++) sum += x.data[a + k] * weight.data[b + k];
      y.data[i * y.cols + o] = sum;
    }
  }
  return y;
}

/** a b. */
export function matmul(a, b) {
  const y = matrix(a.rows, b.cols);
  for (let i = 0; i < a.rows; i++) {
    for (let j = 0; j < b.cols; j++) {
      let sum = 0;
      for (let k = 0; k < a.cols; k++) sum += a.data[i * a.cols + k] * b.data[k * b.cols + j];
      y.data[i * y.cols + j] = sum;
    }
  }
  return y;
}

/** One row of a table for each index. */
export function embed(table, indices) {
  const y = matrix(indices.length, table.cols);
  indices.forEach((index, i) => row(y, i).set(row(table, index)));
  return y;
}

/** Matrices with equally many rows, side by side. */
export function beside(...parts) {
  const y = matrix(parts[0].rows, parts.reduce((sum, part) => sum + part.cols, 0));
  for (let i = 0; i < y.rows; i++) {
    let at = 0;
    for (const part of parts) { row(y, i).set(row(part, i), at); at += part.cols; }
  }
  return y;
}

/** Softmax of every row, with the maximum taken out; −∞ gets weight 0. */
export function softmax(scores) {
  const y = matrix(scores.rows, scores.cols);
  for (let i = 0; i < y.rows; i++) {
    const from = row(scores, i), to = row(y, i), top = Math.max(...from);
    let sum = 0;
    from.forEach((s) => { sum += Math.exp(s - top); });
    from.forEach((s, j) => { to[j] = Math.exp(s - top) / sum; });
  }
  return y;
}

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

/** The next state of a GRU cell from what its input and its state contribute, each (1, 3·width): reset, update, new. */
function gated(fromInput, fromState, state) {
  const width = state.cols, next = matrix(1, width);
  for (let k = 0; k < width; k++) {
    const reset = sigmoid(fromInput[k] + fromState[k]);
    const keep = sigmoid(fromInput[width + k] + fromState[width + k]);
    const fresh = Math.tanh(fromInput[2 * width + k] + reset * fromState[2 * width + k]);
    next.data[k] = (1 - keep) * fresh + keep * state.data[k];
  }
  return next;
}

/** One step of a GRU cell; `part(name)` gives weight_ih, weight_hh, bias_ih and bias_hh. */
export const gruCell = (x, state, part) => gated(
  linear(x, part("weight_ih"), part("bias_ih")).data, linear(state, part("weight_hh"), part("bias_hh")).data, state);

/** All states of a GRU over the rows of x, from the first to the last or, `backwards`, from the last to the first. */
export function gru(x, part, backwards = false) {
  const inputs = linear(x, part("weight_ih"), part("bias_ih"));
  const width = inputs.cols / 3, states = matrix(x.rows, width);
  let state = matrix(1, width);
  for (let t = 0; t < x.rows; t++) {
    const i = backwards ? x.rows - 1 - t : t;
    state = gated(row(inputs, i), linear(state, part("weight_hh"), part("bias_hh")).data, state);
    row(states, i).set(state.data);
  }
  return states;
}

/** The scores of attention, (q_seq, kv_seq), of projected queries and keys. */
export const scores = {
  /** vᵀ tanh(q + k); `v` is one row. */
  additive(queries, keys, { v }) {
    const y = matrix(queries.rows, keys.rows);
    for (let i = 0; i < y.rows; i++) {
      const q = row(queries, i);
      for (let j = 0; j < y.cols; j++) {
        const k = row(keys, j);
        let sum = 0;
        for (let d = 0; d < q.length; d++) sum += v.data[d] * Math.tanh(q[d] + k[d]);
        y.data[i * y.cols + j] = sum;
      }
    }
    return y;
  },
  /** scale · q·k. */
  dot(queries, keys, { scale = 1 }) {
    const y = linear(queries, keys);
    return matrix(y.rows, y.cols, y.data.map((s) => s * scale));
  },
};
