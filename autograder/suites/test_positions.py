"""Hidden suite of chapter `positions`: absolute, relative and rotary encodings, linear biases, and the plane."""

import math
from functools import cache

import numpy as np
import torch

from autograder.sandbox.errors import Raised
from autograder.suites.kit import (
    Wrong,
    at_most,
    at_most_seconds,
    close,
    hidden,
    parts,
    raises,
    require,
    same,
    strided,
    tensor,
)

MIB = 2**20
DOUBLE = torch.float64


def gradients_of(function, leaves, upstream):
    """The gradients of a function of float64 leaves, for an upstream gradient of its output, or of each of them."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    outputs = function(*leaves)
    if not isinstance(outputs, tuple):
        outputs, upstream = (outputs,), (upstream,)
    total = sum((out * up.double()).sum() for out, up in zip(outputs, upstream, strict=True))
    return torch.autograd.grad(total, leaves)


def same_gradients(found, expected, names, **tolerance):
    """Each gradient has arrived and agrees."""
    for name, one, other in zip(names, found, expected, strict=True):
        require(one is not None, f"No gradient reaches {name}.")
        close(one, other.to(one.dtype), what=f"gradient of {name}", **tolerance)


# --- sinusoidal_encoding ---------------------------------------------------------------------------------------------


def waves(positions, d_model, base=10000.0):
    """Sines and cosines, one number at a time with Python's floats."""
    rows = []
    for p in positions:
        row = []
        for c in range(d_model):
            angle = p / base ** ((c - c % 2) / d_model)
            row.append(math.cos(angle) if c % 2 else math.sin(angle))
        rows.append(row)
    return torch.tensor(rows, dtype=DOUBLE).reshape(len(rows), d_model)


@hidden("sinusoidal_encoding", weight=2, hint="Compute the row of position 1 by hand for d_model = 6.")
def test_sinusoids_match_the_formula(student, rng):
    """sin and cos of p / base^(2k/d_model) in columns 2k and 2k + 1, for an even width."""
    seq, d_model = int(rng.integers(9, 14)), 2 * int(rng.integers(3, 8))
    close(student.sinusoidal_encoding(seq, d_model), waves(range(seq), d_model), what="encoding")


@hidden("sinusoidal_encoding", weight=1, hint="Which of the two arguments scales the wavelengths?")
def test_sinusoids_of_another_base_and_offset(student, rng):
    """The base sets the longest wavelength, and the first row stands at the offset."""
    base, offset = float(rng.uniform(50, 900)), int(rng.integers(5, 40))
    found = student.sinusoidal_encoding(7, 10, base=base, offset=offset)
    close(found, waves(range(offset, offset + 7), 10, base), what="encoding with a base and an offset")


@hidden("sinusoidal_encoding", kind="property", weight=1, hint="sin² + cos² = 1 in every pair.")
def test_sinusoids_have_a_constant_norm(student, rng):
    """Every row has norm √(d_model/2), and the dot product of two rows depends on their distance only."""
    d_model = 2 * int(rng.integers(4, 20))
    found = student.sinusoidal_encoding(30, d_model)
    close(found.norm(dim=-1), torch.full((30,), math.sqrt(d_model / 2), dtype=DOUBLE), what="norms of the rows")
    products = found @ found.T
    close(products[:-5, :-5], products[5:, 5:], what="dot products five positions later")


@hidden("sinusoidal_encoding", kind="edge", weight=1, hint="How many sines and how many cosines have seven columns?")
def test_sinusoids_of_an_odd_width(student, rng):
    """An odd width ends on a sine; one column is a sine alone; no row is fine too."""
    d_model = 2 * int(rng.integers(3, 8)) + 1
    close(student.sinusoidal_encoding(8, d_model), waves(range(8), d_model), what="encoding of an odd width")
    close(student.sinusoidal_encoding(8, 1), waves(range(8), 1), what="encoding of width 1")
    close(student.sinusoidal_encoding(0, 6), waves([], 6), what="encoding of no position")


@hidden("sinusoidal_encoding", kind="edge", weight=1, hint="How many digits has a float32, and how many has 10⁷?")
def test_sinusoids_far_out(student, rng):
    """Before position 0 and millions of positions out, the angles are still exact."""
    for offset in (-int(rng.integers(10, 90)), int(rng.integers(10**6, 10**7))):
        found = student.sinusoidal_encoding(5, 8, offset=offset)
        close(
            found,
            waves(range(offset, offset + 5), 8),
            what=f"encoding far {'out' if offset > 0 else 'back'}",
            atol=1e-8,
        )


# --- shift_matrix ----------------------------------------------------------------------------------------------------


@hidden("shift_matrix", weight=2, hint="Expand sin(pω + kω) and cos(pω + kω) for one pair.")
def test_shift_moves_every_position(student, rng):
    """M PE(p) = PE(p + offset), for many p at once."""
    offset, d_model = int(rng.integers(1, 12)), 2 * int(rng.integers(2, 7))
    matrix = student.shift_matrix(offset, d_model)
    require(isinstance(matrix, torch.Tensor), "The result should be a torch tensor.")
    close(torch.as_tensor(matrix.shape), torch.tensor([d_model, d_model]), what="shape of the matrix")
    before, after = waves(range(40), d_model), waves(range(offset, offset + 40), d_model)
    close(before @ matrix.T, after, what="positions after the shift")


@hidden("shift_matrix", weight=1, hint="Each pair turns by itself: what stands outside the 2 × 2 blocks?")
def test_shift_is_made_of_rotations(student, rng):
    """Blocks of cosines and sines along the diagonal, 0 everywhere else, also for another base."""
    offset, base = int(rng.integers(1, 30)), float(rng.uniform(20, 300))
    expected = torch.zeros(8, 8, dtype=DOUBLE)
    for pair in range(4):
        angle = offset / base ** (2 * pair / 8)
        block = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        expected[2 * pair : 2 * pair + 2, 2 * pair : 2 * pair + 2] = torch.tensor(block, dtype=DOUBLE)
    close(student.shift_matrix(offset, 8, base=base), expected, what="matrix")


@hidden("shift_matrix", kind="property", weight=1, hint="Two steps, then three, are five.")
def test_shifts_add_up(student, rng):
    """M_a M_b = M_(a+b); a step back undoes a step; offset 0 is the identity."""
    a, b = int(rng.integers(1, 50)), int(rng.integers(1, 50))
    first, second = student.shift_matrix(a, 6), student.shift_matrix(b, 6)
    close(first @ second, student.shift_matrix(a + b, 6), what="product of two shifts")
    close(student.shift_matrix(-a, 6), first.T.contiguous(), what="shift backwards")
    close(student.shift_matrix(0, 6), torch.eye(6, dtype=DOUBLE), what="shift by nothing")


@hidden("shift_matrix", kind="edge", weight=1, hint="The last sine of an odd width has no partner.")
def test_shift_refuses_an_odd_width(student, rng):
    """ValueError for an odd d_model."""
    for d_model in (1, 2 * int(rng.integers(1, 9)) + 1):
        raises(ValueError, student, "shift_matrix", 3, d_model)


@hidden("shift_matrix", kind="edge", weight=1, hint="How exact is the angle of a shift by a million?")
def test_shift_by_a_million(student, rng):
    """A far shift is as exact as a near one."""
    offset = int(rng.integers(10**6, 10**7))
    found = waves(range(5), 8) @ student.shift_matrix(offset, 8).T
    close(found, waves(range(offset, offset + 5), 8), what="positions after a far shift", atol=1e-8)


# --- LearnedPositions ------------------------------------------------------------------------------------------------


def learned(student, rng, max_seq, d_model):
    """A student's table with known vectors, and those."""
    module = student.LearnedPositions(max_seq, d_model)
    weight = tensor(rng, max_seq, d_model)
    module.load_state_dict({"table.weight": weight})
    return module, weight


@hidden("LearnedPositions", weight=2, hint="Row p of the table belongs to position p, in every example alike.")
def test_learned_positions_are_added(student, rng):
    """x plus the first rows of the table, the same for all examples."""
    module, weight = learned(student, rng, 9, 4)
    x = tensor(rng, 3, 7, 4)
    close(module(x), x + weight[:7], what="x with positions")


@hidden("LearnedPositions", weight=1, hint="With an offset, which row belongs to the first position of x?")
def test_learned_positions_from_an_offset(student, rng):
    """With an offset the rows offset, offset + 1, … are added; square shapes too."""
    module, weight = learned(student, rng, 12, 5)
    offset = int(rng.integers(2, 7))
    x = tensor(rng, 5, 5, 5)
    close(module(x, offset=offset), x + weight[offset : offset + 5], what="x with positions from an offset")


@hidden("LearnedPositions", kind="edge", weight=2, hint="How many positions does the table know?")
def test_learned_positions_end(student, rng):
    """The last row is used; one position more is a ValueError, and so is a position before 0."""
    module, weight = learned(student, rng, 8, 3)
    full, x = tensor(rng, 2, 8, 3), tensor(rng, 2, 3, 3)
    close(module(full), full + weight, what="x as long as the table")
    close(module(x, offset=5), x + weight[5:], what="x up to the end of the table")
    for length, offset in ((9, 0), (3, 6), (1, 8), (2, -1), (8, -8)):
        try:
            module(tensor(rng, 2, length, 3), offset=offset)
        except Raised as error:
            require("ValueError" in error.bases, "A position outside the table should raise ValueError.")
        else:
            raise Wrong("A position outside the table should raise ValueError, and a value came back.")


@hidden("LearnedPositions", kind="edge", weight=1, hint="What stands before seq is none of this layer's business.")
def test_learned_positions_with_other_leading_axes(student, rng):
    """No leading axis or two of them, the same in training and in evaluation."""
    module, weight = learned(student, rng, 9, 4)
    for mode, x in (("train", tensor(rng, 6, 4)), ("eval", strided(tensor(rng, 2, 3, 6, 4)))):
        module.call(mode)
        close(module(x), x + weight[:6], what=f"x with {x.ndim - 2} leading axes, after {mode}()")


@hidden("LearnedPositions", kind="property", weight=1, hint="One table, one name, and small numbers to start with.")
def test_learned_positions_start_small(student, rng):
    """One parameter, table.weight, drawn with mean 0 and standard deviation 0.02."""
    state = student.LearnedPositions(400, 64).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    require(
        shapes == {"table.weight": (400, 64)}, "The only parameter should be table.weight of shape (max_seq, d_model)."
    )
    weight = state["table.weight"].double()
    at_most(abs(weight.std().item() / 0.02 - 1), 0.05, what="how far the standard deviation is from 0.02, relatively")
    at_most(abs(weight.mean().item()), 0.002, what="size of the mean of a fresh table")


@hidden("LearnedPositions", kind="gradient", weight=1, hint="Each row learns from all examples; unused rows do not.")
def test_learned_positions_gradients(student, rng):
    """x receives the upstream gradient, a used row the sum over the examples, an unused row 0."""
    module, _ = learned(student, rng, 9, 4)
    upstream = tensor(rng, 3, 5, 4)
    _, (x_grad,), by_name = module.vjp(tensor(rng, 3, 5, 4), offset=2, upstream=upstream, wrt=(0,))
    expected = torch.zeros(9, 4)
    expected[2:7] = upstream.sum(dim=0)
    same_gradients([x_grad, by_name.get("table.weight")], [upstream, expected], ["x", "table.weight"], rtol=1e-5)


# --- TokenEmbedding --------------------------------------------------------------------------------------------------


def tokens(student, rng, vocab, d_model, tied=True):
    """A student's embedding with a known state, and that state."""
    state = {"table.weight": tensor(rng, vocab, d_model)}
    if not tied:
        state["head.weight"] = tensor(rng, vocab, d_model)
    module = student.TokenEmbedding(vocab, d_model, tied=tied)
    module.load_state_dict(state)
    return module, state


@hidden("TokenEmbedding", weight=2, hint="Row `id` of the table, times the root of what?")
def test_embedding_is_scaled(student, rng):
    """Each id gives its row of the table times √d_model."""
    module, state = tokens(student, rng, 11, 6)
    ids = torch.from_numpy(rng.integers(0, 11, size=(3, 7)))
    one_hot = torch.eye(11)[ids]
    close(module(ids), one_hot @ state["table.weight"] * 6**0.5, what="embedded ids")


@hidden("TokenEmbedding", weight=2, hint="The head is a product with the table, and the scale belongs to the foot.")
def test_tied_head(student, rng):
    """logits(hidden) is hidden @ tableᵀ, without a scale."""
    module, state = tokens(student, rng, 7, 7)
    hidden = tensor(rng, 2, 5, 7)
    close(module.call("logits", hidden), torch.einsum("bsd,vd->bsv", hidden, state["table.weight"]), what="tied logits")


@hidden("TokenEmbedding", weight=1, hint="What does tied=False ask for?")
def test_untied_head(student, rng):
    """With tied=False the head has a matrix of its own, and the foot keeps the table."""
    module, state = tokens(student, rng, 9, 5, tied=False)
    hidden, ids = tensor(rng, 4, 5), torch.from_numpy(rng.integers(0, 9, size=(2, 3)))
    close(module.call("logits", hidden), hidden @ state["head.weight"].T, what="logits of an untied head")
    close(module(ids), state["table.weight"][ids] * 5**0.5, what="embedded ids beside an untied head")


@hidden("TokenEmbedding", kind="property", weight=1, hint="What is stored once should be saved once.")
def test_embedding_parameters(student, rng):
    """Tied: table.weight alone. Untied: head.weight too, without bias."""
    for tied in (True, False):
        state = student.TokenEmbedding(9, 5, tied=tied).state_dict()
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        wanted = {"table.weight": (9, 5)} | ({} if tied else {"head.weight": (9, 5)})
        require(shapes == wanted, f"With (9, 5) and tied={tied} the parameters should be {wanted}.")


@hidden("TokenEmbedding", kind="property", weight=1, hint="Which size does √d_model bring to 1?")
def test_embeddings_start_with_size_one(student, rng):
    """A fresh table has standard deviation 1/√d_model, so that what comes out has size 1; the same in both modes."""
    d_model = int(rng.integers(40, 120))
    module = student.TokenEmbedding(500, d_model)
    ids = torch.arange(500)
    for mode in ("train", "eval"):
        module.call(mode)
        out = module(ids)
        require(isinstance(out, torch.Tensor), "The result should be a torch tensor.")
        at_most(abs(out.double().square().mean().sqrt().item() - 1), 0.06, what="how far the size is from 1")


@hidden("TokenEmbedding", kind="gradient", weight=1, hint="A token that occurs twice learns twice.")
def test_embedding_gradients(student, rng):
    """A row receives √d_model times the sum over its occurrences; a token that does not occur receives 0."""
    module, _ = tokens(student, rng, 8, 5)
    ids, upstream = torch.tensor([[3, 0, 3], [5, 3, 0]]), tensor(rng, 2, 3, 5)
    expected = torch.zeros(8, 5).index_add(0, ids.flatten(), upstream.flatten(0, 1)) * 5**0.5
    _, _, by_name = module.vjp(ids, upstream=upstream, wrt=())
    same_gradients([by_name.get("table.weight")], [expected], ["table.weight"], rtol=1e-5)


@hidden("TokenEmbedding", kind="gradient", weight=1, hint="Tied means: the head teaches the table too.")
def test_head_gradients(student, rng):
    """From the logits, gradients reach the hidden vectors and the matrix that made the logits."""
    for tied in (True, False):
        module, state = tokens(student, rng, 6, 4, tied=tied)
        name = "table.weight" if tied else "head.weight"
        hidden, upstream = tensor(rng, 3, 5, 4), tensor(rng, 3, 5, 6)
        # Calling the module now calls its head, so that the gradients of its parameters come along.
        module.call("__setattr__", "forward", module.call("__getattribute__", "logits"))
        _, (grad,), by_name = module.vjp(hidden, upstream=upstream, wrt=(0,))
        expected = upstream @ state[name], torch.einsum("bsv,bsd->vd", upstream, hidden)
        same_gradients([grad, by_name.get(name)], expected, ["the hidden vectors", name], rtol=1e-4)


@hidden("TokenEmbedding", kind="edge", weight=1, hint="Ids may come in any shape, and the head may too.")
def test_embedding_with_other_leading_axes(student, rng):
    """Ids with one axis or three, hidden vectors without a leading axis, float64."""
    module, state = tokens(student, rng, 8, 3)
    for shape in ((6,), (2, 3, 4)):
        ids = torch.from_numpy(rng.integers(0, 8, size=shape))
        close(module(ids), state["table.weight"][ids] * 3**0.5, what=f"embedded ids with {len(shape)} axes")
    module.call("double")
    hidden = tensor(rng, 3, dtype=DOUBLE)
    close(module.call("logits", hidden), state["table.weight"].double() @ hidden, what="logits of one vector")


# --- shaw_relative_attention -----------------------------------------------------------------------------------------

PAIR = ("output", "weights")


def shaw(q, k, v, rel_k, rel_v, max_distance):
    """Output and weights of one pair at a time, keys and values with their distances written out."""
    q_seq, kv_seq = q.shape[-2], k.shape[-2]
    rows = torch.zeros(q_seq, kv_seq, dtype=torch.int64)
    for i in range(q_seq):
        for j in range(kv_seq):
            rows[i, j] = max(-max_distance, min(max_distance, j - (i + kv_seq - q_seq))) + max_distance
    scores = (q[..., :, None, :] * (k[..., None, :, :] + rel_k[rows])).sum(dim=-1) / q.shape[-1] ** 0.5
    weights = scores.softmax(dim=-1)
    return (weights[..., None] * (v[..., None, :, :] + rel_v[rows])).sum(dim=-2), weights


def shaw_inputs(rng, lead, q_seq, kv_seq, head_dim, v_dim, max_distance, dtype=DOUBLE):
    """Queries, keys, values and the two tables."""
    return [
        tensor(rng, *lead, q_seq, head_dim, dtype=dtype),
        tensor(rng, *lead, kv_seq, head_dim, dtype=dtype),
        tensor(rng, *lead, kv_seq, v_dim, dtype=dtype),
        tensor(rng, 2 * max_distance + 1, head_dim, dtype=dtype),
        tensor(rng, 2 * max_distance + 1, v_dim, dtype=dtype),
    ]


@hidden("shaw_relative_attention", weight=2, hint="Write the table of distances for three positions down.")
def test_shaw_agrees_with_loops(student, rng):
    """Keys and values with their distances added, one sequence, values of another width."""
    inputs = shaw_inputs(rng, (2, 3), 7, 7, 4, 5, 2)
    same(student.shaw_relative_attention(*inputs, 2), shaw(*inputs, 2), PAIR, "of a sequence")


@hidden("shaw_relative_attention", weight=1, hint="The last query stands at the last key.")
def test_shaw_with_fewer_queries(student, rng):
    """Fewer queries than keys: query i stands at i + kv_seq − q_seq; and more queries than keys."""
    for q_seq, kv_seq in ((3, 8), (6, 4)):
        inputs = shaw_inputs(rng, (2,), q_seq, kv_seq, 5, 3, 3)
        same(student.shaw_relative_attention(*inputs, 3), shaw(*inputs, 3), PAIR, "with unequal lengths")


@hidden("shaw_relative_attention", kind="property", weight=1, hint="Only the distance may enter.")
def test_shaw_knows_distances_only(student, rng):
    """With all keys and values alike, a row depends on what lies around it and not on where it stands."""
    inputs = shaw_inputs(rng, (), 9, 9, 4, 4, 2)
    for index in range(3):
        inputs[index] = inputs[index][:1].expand(9, -1).contiguous()
    output, weights = parts(student.shaw_relative_attention(*inputs, 2), *PAIR)
    ratio = (weights[3, 3:] / weights[3, 3]).log()
    close((weights[5, 5:] / weights[5, 5]).log(), ratio[:4].clone(), what="weights relative to one's own, two rows on")
    same((output, weights), shaw(*inputs, 2), PAIR, "of equal tokens")


@hidden("shaw_relative_attention", kind="edge", weight=1, hint="Clip the distance first, then count rows from 0.")
def test_shaw_clips(student, rng):
    """max_distance of 0 (one row for all) and one far beyond the sequence; memory with gaps; float32."""
    for max_distance in (0, 12):
        inputs = [strided(x) for x in shaw_inputs(rng, (2, 2), 4, 5, 3, 6, max_distance, dtype=torch.float32)]
        expected = shaw(*(x.double() for x in inputs), max_distance)
        expected = tuple(x.float() for x in expected)
        answer = student.shaw_relative_attention(*inputs, max_distance)
        same(answer, expected, PAIR, f"with max_distance {max_distance}")


@hidden("shaw_relative_attention", kind="gradient", weight=1, hint="Five inputs learn, the two tables among them.")
def test_shaw_gradients(student, rng):
    """Gradients reach queries, keys, values and both tables, from output and weights."""
    inputs = shaw_inputs(rng, (2,), 4, 6, 3, 5, 2)
    upstream = tensor(rng, 2, 4, 5, dtype=DOUBLE), tensor(rng, 2, 4, 6, dtype=DOUBLE)
    expected = gradients_of(lambda *leaves: shaw(*leaves, 2), inputs, upstream)
    _, found = student.vjp("shaw_relative_attention", *inputs, 2, upstream=upstream, wrt=(0, 1, 2, 3, 4))
    same_gradients(found, expected, ("q", "k", "v", "rel_k", "rel_v"), rtol=1e-7)


@hidden("shaw_relative_attention", kind="cost", weight=1, hint="Score the few rows of the table, then sort the scores.")
def test_shaw_forms_no_vector_for_each_pair(student, rng):
    """No (q_seq, kv_seq, head_dim) array: seen inside, and from outside."""
    inputs = shaw_inputs(rng, (), 500, 520, 128, 64, 5, dtype=torch.float32)
    trace = student.trace("shaw_relative_attention", *inputs, 5)
    output, _ = parts(trace.result, *PAIR)
    few = [inputs[0][-2:], *inputs[1:]]
    close(output[-2:], shaw(*few, 5)[0], what="output for the last of 500 queries", rtol=1e-4)
    at_most(trace.largest, 3 * 500 * 520, what="elements of the largest tensor for 500 queries and 520 keys")
    at_most(trace.outside_bytes / MIB, 48, what="MiB for 500 queries and 520 keys")


# --- relative_shift --------------------------------------------------------------------------------------------------


def shifted(x):
    """Row i moved left by q_seq − 1 − i, the future 0, one row at a time."""
    q_seq, kv_seq = x.shape[-2:]
    out = torch.zeros_like(x)
    for i in range(q_seq):
        known = kv_seq - (q_seq - 1 - i)
        out[..., i, :known] = x[..., i, q_seq - 1 - i :]
    return out


@hidden("relative_shift", weight=2, hint="Write a 3 × 3 example with numbers like 21 for row 2, column 1.")
def test_shift_of_a_square(student, rng):
    """Row i moves left by q_seq − 1 − i, and the future is 0."""
    x = tensor(rng, 6, 6, dtype=DOUBLE)
    close(student.relative_shift(x), shifted(x), what="shifted scores")


@hidden("relative_shift", weight=1, hint="A memory makes kv_seq larger than q_seq: by how much does row 0 move then?")
def test_shift_with_a_memory(student, rng):
    """More keys than queries, and a batch with heads."""
    x = tensor(rng, 2, 3, 4, 9, dtype=DOUBLE)
    close(student.relative_shift(x), shifted(x), what="shifted scores with a memory")


@hidden("relative_shift", kind="property", weight=1, hint="What do all entries of a diagonal have in common?")
def test_shift_makes_diagonals(student, rng):
    """Rows that are all alike become diagonals: one number for each distance."""
    row = tensor(rng, 8, dtype=DOUBLE)
    found = student.relative_shift(row.expand(5, 8).contiguous())
    close(found, shifted(row.expand(5, 8)), what="shifted equal rows")


@hidden("relative_shift", kind="edge", weight=1, hint="Is one query at a time a special case for your code?")
def test_shift_of_a_single_query(student, rng):
    """One query: nothing moves. One pair; memory with gaps; float32; x stays as it was."""
    x = tensor(rng, 2, 1, 7)
    close(student.relative_shift(x), x, what="shift of one query")
    close(student.relative_shift(x[..., :1].contiguous()), x[..., :1].clone(), what="shift of one pair")
    x = strided(tensor(rng, 3, 5, 6))
    found, after = student.after("relative_shift", x)
    close(found, shifted(x), what="shift of strided scores")
    close(after[0], x, what="x after the call")


@hidden("relative_shift", kind="edge", weight=1, hint="0 · ∞ is NaN: keep what you throw away from being multiplied.")
def test_shift_with_infinite_scores(student, rng):
    """Infinite scores move like others, and none of them spoils the zeros of the future."""
    x = tensor(rng, 4, 6, dtype=DOUBLE)
    x[1, 1], x[2, 0], x[3, 2] = -torch.inf, torch.inf, torch.inf
    close(student.relative_shift(x), shifted(x), what="shift of infinite scores")


@hidden("relative_shift", kind="gradient", weight=1, hint="Each score that is used goes to one place, and comes back.")
def test_shift_gradients(student, rng):
    """The gradient takes the same way back."""
    x, upstream = tensor(rng, 2, 4, 6, dtype=DOUBLE), tensor(rng, 2, 4, 6, dtype=DOUBLE)
    expected = gradients_of(shifted, [x], upstream)
    _, found = student.vjp("relative_shift", x, upstream=upstream, wrt=(0,))
    same_gradients(found, expected, ["x"])


@hidden("relative_shift", kind="cost", weight=2, hint="Pad, read the same numbers with another row length, cut.")
def test_shift_without_loop_or_index(student, rng):
    """No loop over rows and no table of indices, inside and from outside: a pad and two changes of shape do it."""
    steps = []
    for size in (6, 240):
        trace = student.trace("relative_shift", tensor(rng, size, size + 2))
        steps.append(trace.steps)
        require(
            not {"gather", "index", "take", "index_select", "scatter"} & set(trace.calls),
            "You look every entry up by an index; the numbers already stand in the right order.",
        )
    at_most(steps[1], 2 * steps[0] + 40, what="Python steps for forty times as many rows")

    def on_many_rows():
        x = torch.from_numpy(rng.random((500, 500), dtype=np.float32))
        trace = student.trace("relative_shift", x)
        row = int(rng.integers(1, 400))
        close(trace.result[row, :9], shifted_row(x, row), what="a row")
        return trace.outside_seconds

    at_most_seconds(on_many_rows, 0.03, what="CPU time for 500 rows")


def shifted_row(x, i):
    """The first nine entries of row i after the shift."""
    out = torch.zeros(9)
    start = x.shape[-2] - 1 - i
    known = x[i, start : start + 9]
    out[: len(known)] = known
    return out


# --- transformer_xl_scores -------------------------------------------------------------------------------------------


def xl_scores(q, k, r, u, v):
    """The four terms of one pair at a time; the future −∞."""
    q_seq, kv_seq = q.shape[-2], k.shape[-2]
    rows = []
    for i in range(q_seq):
        here = i + kv_seq - q_seq
        row = []
        for j in range(kv_seq):
            if j > here:
                row.append(torch.full(q.shape[:-2], -torch.inf, dtype=q.dtype))
                continue
            content, position = k[..., j, :], r[:, kv_seq - 1 - (here - j)]
            terms = q[..., i, :] * content + u * content + q[..., i, :] * position + v * position
            row.append(terms.sum(dim=-1) / q.shape[-1] ** 0.5)
        rows.append(torch.stack(row, dim=-1))
    return torch.stack(rows, dim=-2)


def xl_inputs(rng, lead, heads, q_seq, kv_seq, head_dim, dtype=DOUBLE):
    """q, k, r, u and v."""
    return [
        tensor(rng, *lead, heads, q_seq, head_dim, dtype=dtype),
        tensor(rng, *lead, heads, kv_seq, head_dim, dtype=dtype),
        tensor(rng, heads, kv_seq, head_dim, dtype=dtype),
        tensor(rng, heads, head_dim, dtype=dtype),
        tensor(rng, heads, head_dim, dtype=dtype),
    ]


@hidden("transformer_xl_scores", weight=2, hint="Compute one pair by its four terms and compare.")
def test_xl_scores_of_a_sequence(student, rng):
    """All four terms, scaled, in a causal square."""
    inputs = xl_inputs(rng, (2,), 3, 5, 5, 4)
    close(student.transformer_xl_scores(*inputs), xl_scores(*inputs), what="scores of a sequence")


@hidden("transformer_xl_scores", weight=2, hint="With a memory, the first query already looks back.")
def test_xl_scores_with_a_memory(student, rng):
    """More keys than queries, as when an earlier segment is kept; each head has its own u, v and r."""
    inputs = xl_inputs(rng, (2,), 4, 3, 7, 4)
    close(student.transformer_xl_scores(*inputs), xl_scores(*inputs), what="scores with a memory")


@hidden("transformer_xl_scores", kind="property", weight=1, hint="The softmax comes next: what must the future hold?")
def test_xl_scores_without_content(student, rng):
    """With equal tokens a score depends on the distance alone; the future is −∞."""
    inputs = xl_inputs(rng, (), 2, 6, 6, 4)
    for index in (0, 1):
        inputs[index] = inputs[index][:, :1].expand(-1, 6, -1).contiguous()
    found = student.transformer_xl_scores(*inputs)
    close(found, xl_scores(*inputs), what="scores of equal tokens")
    close(found[:, 5, 2:6], found[:, 4, 1:5], what="scores of equal distances, one row on")


@hidden("transformer_xl_scores", kind="edge", weight=1, hint="Heads are the third axis from the back.")
def test_xl_scores_with_other_leading_axes(student, rng):
    """No batch axis or two of them; one query against many keys; memory with gaps; float32."""
    for lead, q_seq in (((), 4), ((2, 2), 1)):
        inputs = [strided(x) for x in xl_inputs(rng, lead, 2, q_seq, 5, 6, dtype=torch.float32)]
        expected = xl_scores(*(x.double() for x in inputs)).float()
        close(student.transformer_xl_scores(*inputs), expected, what=f"scores with {len(lead)} batch axes")


@hidden("transformer_xl_scores", kind="gradient", weight=2, hint="u and v are parameters: both must learn.")
def test_xl_gradients(student, rng):
    """Gradients reach q, k, r, u and v through the softmax that follows."""
    inputs = xl_inputs(rng, (2,), 2, 3, 5, 4)
    upstream = tensor(rng, 2, 2, 3, 5, dtype=DOUBLE).tril(2)
    visible = torch.ones(3, 5, dtype=torch.bool).tril(2)

    def finite(*leaves):
        return xl_scores(*leaves).masked_fill(~visible, 0.0)

    expected = gradients_of(finite, inputs, upstream)
    _, found = student.vjp("transformer_xl_scores", *inputs, upstream=upstream, wrt=(0, 1, 2, 3, 4))
    same_gradients(found, expected, ("q", "k", "r", "u", "v"), rtol=1e-7)


@hidden("transformer_xl_scores", kind="cost", weight=1, hint="One product scores all distances; then they are shifted.")
def test_xl_scores_form_no_vector_for_each_pair(student, rng):
    """No (q_seq, kv_seq, head_dim) array: seen inside, and from outside."""
    inputs = xl_inputs(rng, (), 1, 500, 520, 64, dtype=torch.float32)
    trace = student.trace("transformer_xl_scores", *inputs)
    some = [inputs[0][:, -1:], *inputs[1:]]
    close(trace.result[:, -1:], xl_scores(*some), what="scores of the last of 500 queries", rtol=1e-4)
    at_most(trace.largest, 3 * 500 * 522, what="elements of the largest tensor for 500 queries and 520 keys")
    at_most(trace.outside_bytes / MIB, 48, what="MiB for 500 queries and 520 keys")


# --- t5_relative_buckets ---------------------------------------------------------------------------------------------


@cache
def bucket_of(distance, exact, far, max_distance):
    """The bucket of one distance in integers alone: b of the far buckets are passed when (d/e)^n ≥ (max/e)^b."""
    passed = 0
    while passed < far and distance**far * exact ** (passed + 1) >= max_distance ** (passed + 1) * exact**far:
        passed += 1
    return distance if distance < exact else min(exact + passed, exact + far - 1)


def buckets(q_seq, kv_seq, num_buckets, max_distance, bidirectional):
    """Bucket ids, pair by pair."""
    count = num_buckets // 2 if bidirectional else num_buckets
    exact, far = count // 2, count - count // 2
    rows = []
    for i in range(q_seq):
        aheads = range(q_seq - kv_seq - i, q_seq - i)
        rows.append([])
        for ahead in aheads:
            distance = abs(ahead) if bidirectional else max(-ahead, 0)
            rows[-1].append(
                bucket_of(distance, exact, far, max_distance) + (count if bidirectional and ahead > 0 else 0)
            )
    return torch.tensor(rows, dtype=torch.int64)


SETTINGS = ((32, 128), (16, 128), (32, 100), (20, 50), (12, 40), (24, 77))


@hidden("t5_relative_buckets", weight=2, hint="Take one distance below half the buckets and one above, by hand.")
def test_buckets_of_both_directions(student, rng):
    """The ids of T5's encoder, near and far, behind and ahead."""
    for num_buckets, max_distance in rng.permutation(SETTINGS)[:3].tolist():
        found = student.t5_relative_buckets(60, 60, num_buckets, max_distance, True)
        close(found, buckets(60, 60, num_buckets, max_distance, True), what="buckets of both directions")


@hidden(
    "t5_relative_buckets", weight=2, hint="A decoder looks back only: how many buckets does that leave for the past?"
)
def test_buckets_of_one_direction(student, rng):
    """The ids of T5's decoder: all buckets for the past, the future counts as distance 0."""
    for num_buckets, max_distance in rng.permutation(SETTINGS)[:3].tolist():
        found = student.t5_relative_buckets(50, 70, num_buckets, max_distance, False)
        close(found, buckets(50, 70, num_buckets, max_distance, False), what="buckets of one direction")


@hidden("t5_relative_buckets", kind="property", weight=1, hint="A bucket may know the distance, and nothing else.")
def test_buckets_are_constant_along_diagonals(student, rng):
    """Equal distances share a bucket, farther ones never have a smaller id."""
    table = student.t5_relative_buckets(40, 90, 32, 128, False)
    close(table, buckets(40, 90, 32, 128, False), what="buckets with more keys")
    require(bool((table[1:, 1:] == table[:-1, :-1]).all()), "Two pairs of equal distance have different buckets.")


@hidden("t5_relative_buckets", kind="edge", weight=1, hint="Query i stands at i + kv_seq − q_seq.")
def test_buckets_with_unequal_lengths(student, rng):
    """One query against a cache; fewer and more queries than keys."""
    for q_seq, kv_seq in ((1, 45), (7, 30), (30, 8)):
        for bidirectional in (True, False):
            found = student.t5_relative_buckets(q_seq, kv_seq, 20, 50, bidirectional)
            close(found, buckets(q_seq, kv_seq, 20, 50, bidirectional), what=f"buckets for {q_seq} and {kv_seq}")


@hidden("t5_relative_buckets", kind="edge", weight=1, hint="What happens to a distance beyond max_distance?")
def test_buckets_far_beyond(student, rng):
    """Beyond max_distance everything shares the last bucket; the defaults are those of T5."""
    far = int(rng.integers(300, 500))
    close(student.t5_relative_buckets(1, far, 32, 60, True), buckets(1, far, 32, 60, True), what="buckets far behind")
    close(student.t5_relative_buckets(3, 200), buckets(3, 200, 32, 128, True), what="buckets by default")


# --- apply_rope ------------------------------------------------------------------------------------------------------


def turned(x, positions, thetas, interleaved=True):
    """Each pair as a complex number, multiplied by e^(i p θ)."""
    half = x.shape[-1] // 2
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    angles = positions.double()[..., None] * torch.as_tensor(thetas, dtype=DOUBLE)
    product = torch.complex(a.double(), b.double()) * torch.polar(torch.ones_like(angles), angles)
    out = torch.empty((*product.shape[:-1], 2 * half), dtype=DOUBLE)
    if interleaved:
        out[..., 0::2], out[..., 1::2] = product.real, product.imag
    else:
        out[..., :half], out[..., half:] = product.real, product.imag
    return out.to(x.dtype)


RTOL = {torch.float32: 2e-5, DOUBLE: 1e-8}  # a float64 angle of 10⁷ has nine digits behind the point


def thetas(head_dim, base=10000.0):
    """base^(−2i/head_dim), one at a time."""
    return [base ** (-2 * i / head_dim) for i in range(head_dim // 2)]


@hidden("apply_rope", weight=2, hint="Turn the pair (1, 0) by a quarter: which of the two becomes 1?")
def test_rope_turns_neighbours(student, rng):
    """Columns 2i and 2i + 1 turn by position times base^(−2i/head_dim)."""
    x, positions = tensor(rng, 2, 7, 6), torch.arange(7)
    close(student.apply_rope(x, positions), turned(x, positions, thetas(6)), what="turned neighbours")


@hidden("apply_rope", weight=2, hint="Which two columns form a pair when `interleaved` is False?")
def test_rope_turns_halves(student, rng):
    """With interleaved=False columns i and i + head_dim/2 turn; another base; positions in any order."""
    x, positions = tensor(rng, 3, 5, 8), torch.from_numpy(rng.permutation(40)[:5])
    base = float(rng.uniform(100, 900))
    found = student.apply_rope(x, positions, base=base, interleaved=False)
    close(found, turned(x, positions, thetas(8, base), interleaved=False), what="turned halves")


@hidden("apply_rope", weight=1, hint="Where frequencies are given, the base has no say.")
def test_rope_with_given_frequencies(student, rng):
    """The frequencies that come in are used, in both layouts."""
    x, positions = tensor(rng, 4, 6), torch.arange(3, 7)
    given = torch.from_numpy(rng.uniform(0.01, 1.5, size=3))
    for interleaved in (True, False):
        found = student.apply_rope(x, positions, interleaved=interleaved, frequencies=given)
        close(found, turned(x, positions, given, interleaved), what="turned by given frequencies")


@hidden(
    "apply_rope", kind="property", weight=1, hint="A rotation keeps lengths; two of them subtract in a dot product."
)
def test_rope_scores_depend_on_the_distance(student, rng):
    """Norms are kept, and q·k depends on the difference of positions only."""
    q, k = tensor(rng, 1, 10), tensor(rng, 1, 10)
    m, n, far = (int(x) for x in rng.integers(3, 60, size=3))
    for interleaved in (True, False):
        near = [student.apply_rope(x, torch.tensor([p]), interleaved=interleaved) for x, p in ((q, m), (k, n))]
        away = [student.apply_rope(x, torch.tensor([p + far]), interleaved=interleaved) for x, p in ((q, m), (k, n))]
        close(near[0].norm(), q.norm(), what="norm after turning")
        # A float32 angle is good enough for this: how exact angles have to be is what `test_rope_far_out` asks.
        close((near[0] * near[1]).sum(), (away[0] * away[1]).sum(), what="score further on", atol=1e-3)
        require(bool((near[0] - q).abs().max() > 1e-3), "Nothing has turned.")


@hidden(
    "apply_rope", kind="edge", weight=1, hint="Each example may stand somewhere else, and a head axis may lie between."
)
def test_rope_with_positions_for_each_example(student, rng):
    """Positions with a batch axis, shared by the heads; negative ones; memory with gaps; float32."""
    x = strided(tensor(rng, 2, 3, 5, 4))
    positions = torch.from_numpy(rng.integers(-30, 30, size=(2, 1, 5)))
    close(student.apply_rope(x, positions), turned(x, positions, thetas(4)), what="turned, positions for each example")


@hidden("apply_rope", kind="edge", weight=1, hint="In which dtype is a large angle computed, and its frequency?")
def test_rope_far_out(student, rng):
    """At positions in the millions the angle is still exact, for float32 inputs too."""
    start = int(rng.integers(10**6, 10**7))
    for dtype in (DOUBLE, torch.float32):
        x, positions = tensor(rng, 6, 4, dtype=dtype), torch.arange(start, start + 6)
        close(
            student.apply_rope(x, positions), turned(x, positions, thetas(4)), what="turned far out", rtol=RTOL[dtype]
        )


@hidden("apply_rope", kind="edge", weight=1, hint="A column without a partner cannot turn.")
def test_rope_refuses_an_odd_width(student, rng):
    """ValueError for an odd head_dim; x is left as it was."""
    raises(ValueError, student, "apply_rope", tensor(rng, 4, 2 * int(rng.integers(1, 5)) + 1), torch.arange(4))
    x = tensor(rng, 4, 6)
    found, after = student.after("apply_rope", x, torch.arange(4))
    close(found, turned(x, torch.arange(4), thetas(6)), what="turned")
    close(after[0], x, what="x after the call")


@hidden("apply_rope", kind="gradient", weight=1, hint="The gradient turns back.")
def test_rope_gradients(student, rng):
    """The gradient is the upstream gradient turned by the opposite angle."""
    x, upstream, positions = tensor(rng, 2, 5, 6), tensor(rng, 2, 5, 6), torch.arange(5)
    for interleaved in (True, False):
        expected = turned(upstream, -positions, thetas(6), interleaved)
        _, found = student.vjp("apply_rope", x, positions, interleaved=interleaved, upstream=upstream, wrt=(0,))
        same_gradients(found, [expected], ["x"])


# --- rope_frequencies ------------------------------------------------------------------------------------------------

SCALED = ("frequencies", "attention factor")


def by_parts(head_dim, base, factor, original_max, low, high):
    """Fast pairs kept, slow pairs divided by the factor, those between blended; one pair at a time."""
    mixed = []
    for theta in thetas(head_dim, base):
        turns = original_max / (2 * math.pi / theta)
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        mixed.append(share * theta + (1 - share) * theta / factor)
    return torch.tensor(mixed, dtype=DOUBLE)


def same_frequencies(answer, expected, factor, what):
    """Frequencies as a tensor, the factor as a number."""
    found = parts(answer, *SCALED)
    close(found[0], expected, what=f"frequencies, {what}")
    close(found[1], float(factor), what=f"attention factor, {what}")


@hidden("rope_frequencies", weight=1, hint="The first pair turns by one radian a step.")
def test_frequencies_unscaled_and_linear(student, rng):
    """Without scaling base^(−2i/head_dim); linear divides all of them by the factor."""
    head_dim, base, factor = 2 * int(rng.integers(3, 30)), float(rng.uniform(500, 20000)), float(rng.uniform(2, 9))
    plain = torch.tensor(thetas(head_dim, base), dtype=DOUBLE)
    same_frequencies(student.rope_frequencies(head_dim, base, None), plain, 1, "without scaling")
    linear = {"type": "linear", "factor": factor}
    same_frequencies(student.rope_frequencies(head_dim, base, linear), plain / factor, 1, "linear")


@hidden("rope_frequencies", weight=1, hint="The slowest pair should slow down by the factor, the fastest not at all.")
def test_frequencies_ntk(student, rng):
    """The base grows so that the slowest pair slows down by exactly the factor and the fastest stays."""
    head_dim, base, factor = 2 * int(rng.integers(4, 30)), float(rng.uniform(500, 20000)), float(rng.uniform(2, 9))
    plain = thetas(head_dim, base)
    pairs = head_dim // 2
    expected = torch.tensor([t * factor ** (-i / (pairs - 1)) for i, t in enumerate(plain)], dtype=DOUBLE)
    answer = student.rope_frequencies(head_dim, base, {"type": "ntk", "factor": factor})
    same_frequencies(answer, expected, 1, "NTK-aware")


@hidden("rope_frequencies", weight=2, hint="Count the turns of each pair over the training length.")
def test_frequencies_yarn(student, rng):
    """Pairs with many turns stay, pairs with few are divided, the rest blended; the factor is 0.1 ln s + 1."""
    factor, length = float(rng.uniform(2, 30)), int(rng.integers(2000, 6000))
    low, high = float(rng.uniform(0.5, 2)), float(rng.uniform(20, 50))
    scaling = {"type": "yarn", "factor": factor, "original_max": length, "beta_slow": low, "beta_fast": high}
    expected = by_parts(64, 10000.0, factor, length, low, high)
    answer = student.rope_frequencies(64, 10000.0, scaling)
    same_frequencies(answer, expected, 0.1 * math.log(factor) + 1, "YaRN")


@hidden("rope_frequencies", weight=2, hint="Llama 3 blends between its two factors, and leaves the scores alone.")
def test_frequencies_llama3(student, rng):
    """The same blend between low_freq_factor and high_freq_factor turns; the attention factor stays 1."""
    factor, length = float(rng.uniform(2, 16)), int(rng.integers(4000, 10000))
    low, high = float(rng.uniform(0.5, 2)), float(rng.uniform(3, 7))
    scaling = {
        "type": "llama3",
        "factor": factor,
        "original_max": length,
        "low_freq_factor": low,
        "high_freq_factor": high,
    }
    expected = by_parts(128, 500000.0, factor, length, low, high)
    same_frequencies(student.rope_frequencies(128, 500000.0, scaling), expected, 1, "Llama 3")


@hidden("rope_frequencies", kind="property", weight=1, hint="A factor of 1 asks for nothing.")
def test_frequencies_with_factor_one(student, rng):
    """With factor 1 every kind gives the plain frequencies and the attention factor 1."""
    head_dim = 2 * int(rng.integers(3, 30))
    plain = torch.tensor(thetas(head_dim), dtype=DOUBLE)
    for kind in ("linear", "ntk", "yarn", "llama3"):
        scaling = {"type": kind, "factor": 1.0, "original_max": 4096}
        same_frequencies(student.rope_frequencies(head_dim, 10000.0, scaling), plain, 1, f"{kind} with factor 1")


@hidden("rope_frequencies", kind="edge", weight=1, hint="What do the contract's defaults say?")
def test_frequencies_by_default(student, rng):
    """Thresholds that are not named are 1 and 32 for YaRN, 1 and 4 for Llama 3; the dictionary is not changed."""
    length = int(rng.integers(2000, 9000))
    for kind, high, attention in (("yarn", 32.0, 0.1 * math.log(8) + 1), ("llama3", 4.0, 1.0)):
        scaling = {"type": kind, "factor": 8.0, "original_max": length}
        answer, after = student.after("rope_frequencies", 96, 10000.0, scaling)
        same_frequencies(answer, by_parts(96, 10000.0, 8.0, length, 1.0, high), attention, f"{kind} by default")
        require(after[2] == scaling, "The dictionary `scaling` came back changed.")


@hidden("rope_frequencies", kind="edge", weight=1, hint="Which kinds are there?")
def test_frequencies_refuse_the_unknown(student, rng):
    """ValueError for an unknown type and for an odd head_dim."""
    raises(ValueError, student, "rope_frequencies", 8, 10000.0, {"type": "elastic", "factor": 2.0})
    raises(ValueError, student, "rope_frequencies", 2 * int(rng.integers(2, 9)) + 1, 10000.0, None)


# --- alibi_bias ------------------------------------------------------------------------------------------------------


def slopes(heads):
    """Slopes by halving: the powers of two first, then every second of the next."""
    lower = 1
    while 2 * lower <= heads:
        lower *= 2
    found = [0.5 ** (8 * (h + 1) / lower) for h in range(lower)]
    between = [0.5 ** (8 * (h + 1) / (2 * lower)) for h in range(2 * lower)]
    return found + between[::2][: heads - lower]


def linear_bias(heads, q_seq, kv_seq):
    """−slope · distance, one entry at a time."""
    rows = [
        [[-slope * abs(i + kv_seq - q_seq - j) for j in range(kv_seq)] for i in range(q_seq)] for slope in slopes(heads)
    ]
    return torch.tensor(rows, dtype=DOUBLE)


@hidden("alibi_bias", weight=2, hint="For 8 heads the slopes are 1/2, 1/4, …, 1/256.")
def test_alibi_of_powers_of_two(student, rng):
    """Slopes 2^(−8/heads), its square, … for powers of two."""
    for heads in (2 ** int(rng.integers(1, 3)), 8, 16):
        close(student.alibi_bias(heads, 6, 6), linear_bias(heads, 6, 6), what=f"bias of {heads} heads")


@hidden("alibi_bias", weight=2, hint="The next lower power of two first; then every second slope of the next higher.")
def test_alibi_of_other_numbers(student, rng):
    """Numbers of heads that are no power of two take the rest from the next higher power, in its order."""
    for heads in (3, 6, int(rng.integers(9, 16)), 12):
        close(student.alibi_bias(heads, 5, 5), linear_bias(heads, 5, 5), what=f"bias of {heads} heads")


@hidden("alibi_bias", kind="edge", weight=1, hint="Where does query 0 stand when there are more keys than queries?")
def test_alibi_with_unequal_lengths(student, rng):
    """Query i stands at i + kv_seq − q_seq: one query against a cache, fewer and more queries than keys."""
    for q_seq, kv_seq in ((1, int(rng.integers(9, 20))), (3, 8), (7, 4)):
        close(
            student.alibi_bias(4, q_seq, kv_seq), linear_bias(4, q_seq, kv_seq), what=f"bias for {q_seq} and {kv_seq}"
        )


@hidden("alibi_bias", kind="property", weight=1, hint="Added to scores, the bias must push distant keys down.")
def test_alibi_is_a_penalty(student, rng):
    """Nothing is above 0, the diagonal is 0, both sides fall alike, and one head is fine."""
    for heads in (1, int(rng.integers(2, 33))):
        bias = student.alibi_bias(heads, 7, 7)
        close(bias, linear_bias(heads, 7, 7), what=f"bias of {heads} heads")
        require(bool((bias <= 0).all()), "A bias above 0 would reward distance.")
        close(bias, bias.transpose(-2, -1).contiguous(), what="bias seen from the other side")


# --- sincos_2d -------------------------------------------------------------------------------------------------------


def plane(height, width, d_model):
    """Row half first, one cell at a time."""
    rows, columns = waves(range(height), d_model // 2), waves(range(width), d_model // 2)
    return torch.stack([torch.stack([torch.cat([rows[y], columns[x]]) for x in range(width)]) for y in range(height)])


@hidden("sincos_2d", weight=2, hint="Cell (y, x): the first half knows y alone.")
def test_plane_of_a_rectangle(student, rng):
    """Row half first, column half second, for a grid that is no square."""
    height, d_model = int(rng.integers(3, 6)), 4 * int(rng.integers(2, 6))
    close(student.sincos_2d(height, 7, d_model), plane(height, 7, d_model), what="encoding of a rectangle")


@hidden("sincos_2d", weight=1, hint="With a square grid, shapes no longer tell rows from columns.")
def test_plane_of_a_square(student, rng):
    """The same for a square grid as wide as the encoding."""
    size = 4 * int(rng.integers(1, 3))
    close(student.sincos_2d(size, size, size), plane(size, size, size), what="encoding of a square")


@hidden("sincos_2d", kind="property", weight=1, hint="Each half moves with its own coordinate.")
def test_plane_knows_offsets(student, rng):
    """The dot product of two cells depends on how far apart they lie in rows and columns."""
    found = student.sincos_2d(6, 8, 12)
    products = torch.einsum("yxd,vud->yxvu", found, found)
    close(products[:4, :5, :4, :5], products[2:, 3:, 2:, 3:], what="dot products two rows and three columns on")
    close(found, plane(6, 8, 12), what="encoding")


@hidden("sincos_2d", kind="edge", weight=1, hint="One row is a line; three columns make no whole pair.")
def test_plane_of_a_line(student, rng):
    """One row, one column, one cell; ValueError where the halves hold no whole pairs."""
    length = int(rng.integers(3, 9))
    for height, width in ((1, length), (length, 1), (1, 1)):
        close(student.sincos_2d(height, width, 8), plane(height, width, 8), what=f"encoding of {height} × {width}")
    for d_model in (6, 10, 4 * int(rng.integers(1, 9)) + 1):
        raises(ValueError, student, "sincos_2d", 3, 4, d_model)


# --- relative_bias_2d ------------------------------------------------------------------------------------------------


def window_bias(table, window):
    """The bias of one pair of cells at a time."""
    height, width = window
    cells = [(y, x) for y in range(height) for x in range(width)]
    rows = []
    for y, x in cells:
        for v, u in cells:
            rows.append(table[(y - v + height - 1) * (2 * width - 1) + (x - u + width - 1)])
    return torch.stack(rows).reshape(len(cells), len(cells), -1).movedim(-1, 0)


def bias_table(rng, window, heads, dtype=DOUBLE):
    """One row for each offset."""
    return tensor(rng, (2 * window[0] - 1) * (2 * window[1] - 1), heads, dtype=dtype)


@hidden("relative_bias_2d", weight=2, hint="Number the offsets of a 2 × 3 window by hand.")
def test_bias_of_a_rectangular_window(student, rng):
    """Read by the offset of query and key, for a window that is no square."""
    for window in ((2, 3), (4, int(rng.integers(2, 4)))):
        table = bias_table(rng, window, 3)
        close(student.relative_bias_2d(table, window), window_bias(table, window), what="bias of a rectangle")


@hidden("relative_bias_2d", weight=1, hint="With a square window, rows and columns are easily swapped.")
def test_bias_of_a_square_window(student, rng):
    """The same for a square window, with as many heads as cells."""
    table = bias_table(rng, (3, 3), 9)
    close(student.relative_bias_2d(table, (3, 3)), window_bias(table, (3, 3)), what="bias of a square")


@hidden("relative_bias_2d", kind="property", weight=1, hint="Two pairs at the same offset share one number.")
def test_bias_is_equal_for_equal_offsets(student, rng):
    """With the row numbers as table, every number of the table is used, as often as its offset occurs."""
    height, width = int(rng.integers(2, 5)), int(rng.integers(2, 5))
    table = torch.arange((2 * height - 1) * (2 * width - 1), dtype=DOUBLE)[:, None]
    found = student.relative_bias_2d(table, (height, width))
    close(found, window_bias(table, (height, width)), what="numbers of the rows that are read")


@hidden("relative_bias_2d", kind="edge", weight=1, hint="A window of one row is one-dimensional.")
def test_bias_of_a_line(student, rng):
    """One row, one column, one cell; float32 stays float32, and the table stays as it was."""
    for window in ((1, int(rng.integers(3, 7))), (int(rng.integers(3, 7)), 1), (1, 1)):
        table = strided(bias_table(rng, window, 2, torch.float32))
        found, after = student.after("relative_bias_2d", table, window)
        close(found, window_bias(table, window), what="bias of a line")
        close(after[0], table, what="table after the call")


@hidden("relative_bias_2d", kind="gradient", weight=1, hint="The table is learned: does your result lead back to it?")
def test_bias_gradients(student, rng):
    """A row of the table receives the sum over all pairs that read it."""
    table, upstream = bias_table(rng, (2, 3), 2), tensor(rng, 2, 6, 6, dtype=DOUBLE)
    expected = gradients_of(lambda leaf: window_bias(leaf, (2, 3)), [table], upstream)
    _, found = student.vjp("relative_bias_2d", table, (2, 3), upstream=upstream, wrt=(0,))
    same_gradients(found, expected, ["table"])
