"""Hidden suite of chapter `additive`: scores, read-out, the decoder of 2014, and two instruments."""

import itertools
import math
from functools import reduce
from operator import or_

import numpy as np
import torch

from autograder.sandbox.student import Call
from autograder.suites.kit import at_most, at_most_seconds, close, each_raises, hidden, raises, require, strided, tensor

MIB = 2**20


def two(answer, first, second):
    """The two parts of a pair, or a message that says what should have come."""
    require(
        isinstance(answer, (tuple, list)) and len(answer) == 2,
        f"The result should be a pair: first {first}, then {second}.",
    )
    return answer


# --- softmax ---------------------------------------------------------------------------------------------------------


def softmax_by_loop(scores, axis):
    """Softmax of one line at a time with Python's own exponential."""
    result = np.empty_like(scores)
    lines, out = np.moveaxis(scores, axis, -1), np.moveaxis(result, axis, -1)
    for index in np.ndindex(lines.shape[:-1]):
        line = lines[index].tolist()
        top = max(line)
        parts = [math.exp(score - top) for score in line]
        total = math.fsum(parts)
        out[index] = [part / total for part in parts]
    return result


@hidden("softmax", kind="value", weight=2, hint="Along which axis do the weights have to sum to one?")
def test_softmax_matches_the_definition_on_any_axis(student, rng):
    """Equals exp(s) / Σ exp(s) along the axis asked for."""
    scores = 2 * rng.normal(size=(3, 5, 7))
    axes = (-1, 0, 1)
    calls = [Call(scores, axis=axis) for axis in axes]
    for axis, weights in zip(axes, student.each("softmax", calls), strict=True):
        close(weights, softmax_by_loop(scores, axis), what=f"softmax(axis={axis})")


@hidden("softmax", kind="value", weight=1, hint="What does a reduction do to the axis it runs over?")
def test_softmax_of_a_vector_and_of_a_square_array(student, rng):
    """Works for a single vector and for an array with as many rows as columns."""
    cases = [(rng.normal(size=9),), (rng.normal(size=(6, 6)),)]
    for (scores,), weights in zip(cases, student.each("softmax", cases), strict=True):
        close(weights, softmax_by_loop(scores, -1), what=f"softmax of shape {scores.shape}")


@hidden("softmax", kind="property", weight=1, hint="Only differences between scores count.")
def test_softmax_ignores_a_shift_of_each_row(student, rng):
    """Adding a number to all scores of a row leaves its weights as they were."""
    scores = rng.normal(size=(4, 7))
    shift = rng.uniform(-300, 300, size=(4, 1))
    close(student.softmax(scores + shift), softmax_by_loop(scores, -1), what="softmax of shifted scores", rtol=1e-8)


@hidden(
    "softmax", kind="edge", weight=2, hint="Which number, taken from every score of a row, makes overflow impossible?"
)
def test_softmax_survives_scores_of_ten_thousand(student, rng):
    """Rows at +10⁴, rows at −10⁴ and rows that span both, in one array, give finite and right weights."""
    noise = rng.normal(size=(3, 6))
    scores = noise + np.array([[1e4], [-1e4], [0.0]])
    scores[2] = rng.permutation([1e4, 1e4 - 1.0, 5e3, 0.0, -5e3, -1e4])
    close(student.softmax(scores), softmax_by_loop(scores, -1), what="softmax of large scores", rtol=1e-8)


@hidden("softmax", kind="edge", weight=1, hint="exp(−∞) is 0: nothing special has to be done for it.")
def test_softmax_gives_minus_infinity_no_weight(student, rng):
    """A score of −∞ has weight exactly 0, and the others share what is left."""
    scores = rng.normal(size=(5, 6))
    scores[np.arange(5), rng.integers(0, 6, size=5)] = -np.inf
    weights = student.softmax(scores)
    close(weights, softmax_by_loop(scores, -1), what="softmax with −∞ among the scores")
    require((weights[np.isneginf(scores)] == 0).all(), "The weight of a score of −∞ should be exactly 0.")


@hidden("softmax", kind="edge", weight=1, hint="What is the dtype of what you return?")
def test_softmax_keeps_float32(student, rng):
    """float32 scores give float32 weights."""
    scores = rng.normal(size=(4, 5)).astype(np.float32)
    close(student.softmax(scores), softmax_by_loop(scores, -1), what="softmax in float32")


@hidden("softmax", kind="edge", weight=1, hint="Which of your lines writes into the array that came in?")
def test_softmax_leaves_its_argument_alone(student, rng):
    """The scores that came in, also a strided view, are unchanged afterwards."""
    scores = strided(rng.normal(size=(4, 6)))
    weights, after = student.after("softmax", scores)
    close(weights, softmax_by_loop(scores, -1), what="softmax of a strided array")
    close(after[0], scores, what="scores after the call")


# --- additive_scores -------------------------------------------------------------------------------------------------


def additive_by_loops(queries, keys, w_q, w_k, v):
    """The additive score of one query and one key at a time."""
    batch, q_seq, kv_seq = queries.shape[:-2], queries.shape[-2], keys.shape[-2]
    scores = np.empty((*batch, q_seq, kv_seq), dtype=queries.dtype)
    for index in np.ndindex(batch):
        for i, j in itertools.product(range(q_seq), range(kv_seq)):
            scores[index][i, j] = v.dot(np.tanh(w_q.T.dot(queries[index][i]) + w_k.T.dot(keys[index][j])))
    return scores


@hidden("additive_scores", kind="value", weight=2, hint="Write the shapes of the two projections next to each other.")
def test_additive_scores_match_a_loop_over_pairs(student, rng):
    """Every pair scores vᵀ tanh(W_q q + W_k k), with all axes of different length."""
    queries, keys = rng.normal(size=(2, 4, 5)), rng.normal(size=(2, 6, 3))
    w_q, w_k, v = 0.6 * rng.normal(size=(5, 8)), 0.6 * rng.normal(size=(3, 8)), rng.normal(size=8)
    expected = additive_by_loops(queries, keys, w_q, w_k, v)
    close(student.additive_scores(queries, keys, w_q, w_k, v), expected, what="additive scores")


@hidden(
    "additive_scores", kind="value", weight=1, hint="Equal sizes hide mix-ups: which matrix belongs to which input?"
)
def test_additive_scores_when_all_widths_agree(student, rng):
    """With equal widths and as many queries as keys, each input still meets its own matrix."""
    queries, keys = rng.normal(size=(5, 4)), rng.normal(size=(5, 4))
    w_q, w_k, v = 0.6 * rng.normal(size=(4, 4)), 0.6 * rng.normal(size=(4, 4)), rng.normal(size=4)
    expected = additive_by_loops(queries, keys, w_q, w_k, v)
    close(student.additive_scores(queries, keys, w_q, w_k, v), expected, what="additive scores of equal widths")


@hidden("additive_scores", kind="property", weight=1, hint="tanh lies between −1 and 1, so how large can the score be?")
def test_additive_scores_are_bounded_by_v(student, rng):
    """However large the inputs, the score stays within Σ |v|; saturated units count ±v."""
    queries, keys = rng.choice([-1e4, 1e4], size=(3, 1)), rng.choice([-1e2, 1e2], size=(5, 1))
    w_q, w_k, v = rng.uniform(1, 2, size=(1, 6)), rng.uniform(1, 2, size=(1, 6)), rng.normal(size=6)
    expected = np.sign(queries) * v.sum() * np.ones((3, 5))
    close(student.additive_scores(queries, keys, w_q, w_k, v), expected, what="scores of saturated units")


@hidden("additive_scores", kind="edge", weight=1, hint="Do you count axes from the front or from the back?")
def test_additive_scores_with_two_leading_axes_and_strides(student, rng):
    """Any number of leading axes, strided inputs, float32: same rule, same dtype, arguments unchanged."""
    queries = strided(rng.normal(size=(2, 3, 4, 5)).astype(np.float32))
    keys = strided(rng.normal(size=(2, 3, 7, 6)).astype(np.float32))
    w_q, w_k = (rng.normal(size=(width, 4)).astype(np.float32) / 2 for width in (5, 6))
    v = rng.normal(size=4).astype(np.float32)
    scores, after = student.after("additive_scores", queries, keys, w_q, w_k, v)
    close(scores, additive_by_loops(queries, keys, w_q, w_k, v), what="additive scores in float32")
    for name, before, now in zip(
        ("queries", "keys", "w_q", "w_k", "v"), (queries, keys, w_q, w_k, v), after, strict=True
    ):
        close(now, before, what=f"{name} after the call")


@hidden("additive_scores", kind="cost", weight=2, hint="Broadcasting visits all pairs at once, without `for`.")
def test_additive_scores_do_not_loop_over_positions(student, rng):
    """About as many Python steps for 160 queries, or for 200 keys, as for 4 and 5."""
    w_q, w_k, v = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), rng.normal(size=4)
    cases = [
        (rng.normal(size=(q_seq, 3)), rng.normal(size=(kv_seq, 3)), w_q, w_k, v)
        for q_seq, kv_seq in ((4, 5), (160, 5), (4, 200))
    ]
    steps = []
    for (queries, keys, *_), (scores, count) in zip(cases, student.each_counted("additive_scores", cases), strict=True):
        close(scores, np.tanh((queries @ w_q)[:, None] + keys @ w_k) @ v, what="additive scores")
        steps.append(count)
    at_most(max(steps), 2 * steps[0] + 40, what="Python steps for forty times as many positions")

    def on_many_queries():
        queries, keys = rng.random((6_000, 3)), rng.random((2, 3))
        call = student.pace("additive_scores", queries, keys, w_q, w_k, v)
        some = rng.choice(len(queries), 8)
        close(call.result[some], additive_by_loops(queries[some], keys, w_q, w_k, v), what="additive scores")
        return call.outside_seconds

    at_most_seconds(on_many_queries, 0.0055, what="CPU time for 6,000 queries")


@hidden("additive_scores", kind="cost", weight=1, hint="How often does one token meet its projection matrix?")
def test_additive_scores_project_each_token_once(student, rng):
    """Apart from the hidden layer of all pairs nothing of that size is formed: pairs are made after projecting."""
    queries, keys = rng.random((136, 120)), rng.random((128, 130))
    w_q, w_k, v = rng.normal(size=(120, 2)) / 10, rng.normal(size=(130, 2)) / 10, rng.normal(size=2)
    trace = student.trace("additive_scores", queries, keys, w_q, w_k, v)
    require(np.shape(trace.result) == (136, 128), "The result should hold a score for each query and each key.")
    some = rng.choice(len(queries), 24)
    expected = np.tanh((queries[some] @ w_q)[:, None] + keys @ w_k) @ v
    close(trace.result[some], expected, what="additive scores")
    at_most(trace.peak_bytes, 4 * MIB, what="bytes in use at the same time")
    at_most(trace.outside_bytes, 12 * MIB, what="growth of the process")


# --- bilinear_scores -------------------------------------------------------------------------------------------------


def bilinear_by_loops(queries, keys, w):
    """The bilinear score of one query and one key at a time."""
    batch, q_seq, kv_seq = queries.shape[:-2], queries.shape[-2], keys.shape[-2]
    scores = np.empty((*batch, q_seq, kv_seq), dtype=queries.dtype)
    for index in np.ndindex(batch):
        for i, j in itertools.product(range(q_seq), range(kv_seq)):
            scores[index][i, j] = queries[index][i].dot(w.dot(keys[index][j]))
    return scores


@hidden(
    "bilinear_scores", kind="value", weight=2, hint="Write q_seq×query_dim, query_dim×key_dim, … and see what meets."
)
def test_bilinear_scores_match_a_loop_over_pairs(student, rng):
    """Every pair scores qᵀ W k, with all axes of different length."""
    queries, keys, w = rng.normal(size=(2, 4, 5)), rng.normal(size=(2, 6, 3)), rng.normal(size=(5, 3))
    close(student.bilinear_scores(queries, keys, w), bilinear_by_loops(queries, keys, w), what="bilinear scores")


@hidden("bilinear_scores", kind="value", weight=1, hint="Is W used the right way round, and all of it?")
def test_bilinear_scores_with_a_square_matrix(student, rng):
    """With a square W that is not symmetric, the query still stands on its left and the key on its right."""
    queries, keys, w = rng.normal(size=(5, 4)), rng.normal(size=(5, 4)), rng.normal(size=(4, 4))
    close(student.bilinear_scores(queries, keys, w), bilinear_by_loops(queries, keys, w), what="scores by a square W")


@hidden("bilinear_scores", kind="property", weight=1, hint="Two projections and a dot product are one bilinear score.")
def test_bilinear_scores_are_dot_products_of_projections(student, rng):
    """With W = W_q W_kᵀ the scores are the dot products of the projected inputs."""
    queries, keys = rng.normal(size=(3, 6, 5)), rng.normal(size=(3, 7, 4))
    w_q, w_k = rng.normal(size=(5, 2)), rng.normal(size=(4, 2))
    expected = np.einsum("bqr,bkr->bqk", queries @ w_q, keys @ w_k)
    close(student.bilinear_scores(queries, keys, w_q @ w_k.T), expected, what="scores by a W of rank 2")


@hidden("bilinear_scores", kind="edge", weight=1, hint="Do you count axes from the front or from the back?")
def test_bilinear_scores_with_two_leading_axes_and_strides(student, rng):
    """Any number of leading axes, strided inputs, float32: same rule, same dtype, arguments unchanged."""
    queries = strided(rng.normal(size=(2, 3, 4, 5)).astype(np.float32))
    keys = strided(rng.normal(size=(2, 3, 7, 6)).astype(np.float32))
    w = rng.normal(size=(5, 6)).astype(np.float32)
    scores, after = student.after("bilinear_scores", queries, keys, w)
    close(scores, bilinear_by_loops(queries, keys, w), what="bilinear scores in float32")
    for name, before, now in zip(("queries", "keys", "w"), (queries, keys, w), after, strict=True):
        close(now, before, what=f"{name} after the call")


@hidden("bilinear_scores", kind="cost", weight=1, hint="Matrix products run over examples and positions by themselves.")
def test_bilinear_scores_do_not_loop(student, rng):
    """About as many Python steps for forty times as many examples, queries and keys."""
    w, steps = rng.normal(size=(3, 2)), []
    cases = [
        (rng.normal(size=(batch, q_seq, 3)), rng.normal(size=(batch, kv_seq, 2)), w)
        for batch, q_seq, kv_seq in ((3, 2, 1), (120, 2, 1), (3, 80, 1), (3, 2, 40))
    ]
    for (queries, keys, _), (scores, count) in zip(cases, student.each_counted("bilinear_scores", cases), strict=True):
        close(scores, np.einsum("bqi,ij,bkj->bqk", queries, w, keys), what="bilinear scores")
        steps.append(count)
    at_most(max(steps), 2 * steps[0] + 40, what="Python steps for forty times as many positions")

    def on_many_examples():
        queries, keys = rng.random((10_000, 1, 3)), rng.random((10_000, 1, 2))
        call = student.pace("bilinear_scores", queries, keys, w)
        some = rng.choice(len(queries), 8)
        close(call.result[some], bilinear_by_loops(queries[some], keys[some], w), what="bilinear scores")
        return call.outside_seconds

    at_most_seconds(on_many_examples, 0.0055, what="CPU time for 10,000 examples")


@hidden(
    "bilinear_scores", kind="cost", weight=1, hint="A matrix product sums while it multiplies; `*` and `sum` do not."
)
def test_bilinear_scores_form_nothing_larger_than_the_scores(student, rng):
    """No array over queries, keys and features at once is formed."""
    queries, keys, w = rng.random((144, 120)), rng.random((136, 110)), rng.normal(size=(120, 110)) / 110
    trace = student.trace("bilinear_scores", queries, keys, w)
    close(trace.result, (queries @ w) @ keys.T, what="bilinear scores")
    at_most(trace.peak_bytes, 4 * MIB, what="bytes in use at the same time")
    at_most(trace.outside_bytes, 8 * MIB, what="growth of the process")


# --- attend ----------------------------------------------------------------------------------------------------------


def attend_by_loops(scores, values, mask):
    """Context and weights, one row at a time, over the allowed keys alone."""
    weights = np.zeros(scores.shape)
    mask = np.broadcast_to(mask, scores.shape)
    for row in np.ndindex(scores.shape[:-1]):
        allowed = {key: score for key, score in enumerate(scores[row].tolist()) if mask[row][key]}
        top = max(allowed.values(), default=0.0)
        parts = {key: math.exp(score - top) for key, score in allowed.items()}
        total = math.fsum(parts.values())
        for key, part in parts.items():
            weights[row][key] = part / total
    context = np.einsum("...qk,...kv->...qv", weights, values)
    return context.astype(scores.dtype), weights.astype(scores.dtype)


def random_mask(rng, *shape):
    """A mask in which every row allows at least one key and hides at least one."""
    mask = rng.random(shape) < 0.6
    rows = np.indices(shape[:-1])
    chosen = rng.integers(0, shape[-1], size=shape[:-1])
    mask[(*rows, chosen)] = True
    mask[(*rows, (chosen + 1) % shape[-1])] = False
    return mask


def same_pair(answer, expected, what):
    """Context and weights both agree."""
    context, weights = two(answer, "context", "weights")
    close(weights, expected[1], what=f"weights {what}")
    close(context, expected[0], what=f"context {what}")
    return context, weights


@hidden("attend", kind="value", weight=1, hint="Each row of weights belongs to one query, each column to one key.")
def test_attend_without_a_mask(student, rng):
    """Softmax over the keys, then the weighted mean of the values; the context comes first."""
    scores, values = rng.normal(size=(2, 3, 4, 6)), rng.normal(size=(2, 3, 6, 5))
    same_pair(student.attend(scores, values), attend_by_loops(scores, values, True), "without a mask")


@hidden(
    "attend", kind="value", weight=2, hint="True means: may attend. What would the row be if the others did not exist?"
)
def test_attend_with_a_mask(student, rng):
    """Masked keys are as if they did not exist: weight exactly 0, the others sum to one."""
    scores, values, mask = rng.normal(size=(3, 5, 5)), rng.normal(size=(3, 5, 5)), random_mask(rng, 3, 5, 5)
    _, weights = same_pair(student.attend(scores, values, mask), attend_by_loops(scores, values, mask), "with a mask")
    require((weights[~mask] == 0).all(), "A masked weight should be exactly 0.")


@hidden(
    "attend", kind="property", weight=1, hint="Is anything that you compute from the masked scores left in the result?"
)
def test_attend_never_looks_at_masked_scores(student, rng):
    """Whatever stands at a masked score, up to ±10⁴, changes nothing; and one mask may serve all queries."""
    scores, values = rng.normal(size=(2, 4, 7)), rng.normal(size=(2, 7, 3))
    mask = random_mask(rng, 2, 1, 7)
    expected = attend_by_loops(scores, values, mask)
    levels = (1e4, -1e4)
    cases = [(np.where(mask, scores, level), values, mask) for level in levels]
    for level, answer in zip(levels, student.each("attend", cases), strict=True):
        same_pair(answer, expected, f"with {level:g} at the masked scores")


@hidden(
    "attend", kind="edge", weight=2, hint="What is softmax of a row in which nothing is allowed, and what should it be?"
)
def test_attend_rows_with_nothing_to_attend_to(student, rng):
    """Rows without an allowed key have weights 0 and context 0, never NaN; their neighbours are untouched."""
    scores, values = rng.normal(size=(2, 6, 5)), rng.normal(size=(2, 5, 3))
    mask = random_mask(rng, 2, 6, 5)
    mask[0, rng.integers(0, 6)] = False
    mask[1] = False
    same_pair(student.attend(scores, values, mask), attend_by_loops(scores, values, mask), "with empty rows")


@hidden(
    "attend", kind="edge", weight=1, hint="Is the number that you put at masked positions low enough for any score?"
)
def test_attend_with_scores_of_ten_thousand(student, rng):
    """Rows at +10⁴ and at −10⁴ give the weights of rows near 0, also with the masked scores at the other end."""
    near, values, mask = rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 6, 4)), random_mask(rng, 2, 3, 6)
    levels = (1e4, -1e4)
    together = [near + level for level in levels]
    apart = [np.where(mask, near + level, -level) for level in levels]
    answers = student.each("attend", [(scores, values, mask) for scores in together + apart])
    for level, scores in zip(levels, together, strict=True):
        expected = attend_by_loops(scores, values, mask)
        _, weights = same_pair(next(answers), expected, f"at a level of {level:g}")
        require((weights[~mask] == 0).all(), "A masked weight should be exactly 0, also when all scores are very low.")
    for level, scores in zip(levels, apart, strict=True):
        expected = attend_by_loops(scores, values, mask)
        _, weights = same_pair(next(answers), expected, f"at {level:g}, masked at {-level:g}")
        require((weights[~mask] == 0).all(), "A masked weight should be exactly 0, however high the masked score.")


@hidden("attend", kind="edge", weight=1, hint="What is the dtype of the mask, of the low number, of the product?")
def test_attend_keeps_float32(student, rng):
    """float32 in, float32 out, with a mask and without."""
    scores, values = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=(6, 3)).astype(np.float32)
    mask = random_mask(rng, 4, 6)
    with_mask, without = student.each("attend", [(scores, values, mask), (scores, values)])
    same_pair(with_mask, attend_by_loops(scores, values, mask), "in float32, with a mask")
    same_pair(without, attend_by_loops(scores, values, True), "in float32, without a mask")


@hidden("attend", kind="edge", weight=1, hint="Which of your lines writes into an array that came in?")
def test_attend_leaves_its_arguments_alone(student, rng):
    """Scores, values and mask, also strided ones, are unchanged afterwards."""
    scores, values = strided(rng.normal(size=(4, 6))), strided(rng.normal(size=(6, 3)))
    mask = random_mask(rng, 4, 6)
    answer, after = student.after("attend", scores, values, mask)
    same_pair(answer, attend_by_loops(scores, values, mask), "of strided arrays")
    for name, before, now in zip(("scores", "values", "mask"), (scores, values, mask), after, strict=True):
        close(now, before, what=f"{name} after the call")


# --- AdditiveAttention -----------------------------------------------------------------------------------------------


def additive_attention(queries, keys, values, w_q, w_k, v, lengths=None):
    """Context and weights in torch, as shares of exponentials from which padding is left out."""
    pairs = torch.einsum("...qi,hi->...qh", queries, w_q).unsqueeze(-2) + (keys @ w_k.T).unsqueeze(-3)
    exponentials = torch.einsum("...qkh,h->...qk", pairs.tanh(), v[0]).exp()
    if lengths is not None:
        exponentials = exponentials * (torch.arange(keys.shape[-2]) < lengths[..., None, None])
    weights = exponentials / exponentials.sum(dim=-1, keepdim=True).clamp(min=1e-30)
    return weights @ values, weights


def attention_weights(rng, query_dim, key_dim, hidden_dim):
    """A state for AdditiveAttention, with scores far from uniform and far from saturated."""
    return {
        "q_proj.weight": tensor(rng, hidden_dim, query_dim) * 0.5,
        "k_proj.weight": tensor(rng, hidden_dim, key_dim) * 0.5,
        "score_proj.weight": tensor(rng, 1, hidden_dim),
    }


def loaded(student, rng, query_dim, key_dim, hidden_dim):
    """A student's module with a random state, and that state in the order of `additive_attention`."""
    state = attention_weights(rng, query_dim, key_dim, hidden_dim)
    module = student.make("AdditiveAttention", query_dim, key_dim, hidden_dim)
    module.load_state_dict(state)
    return module, list(state.values())


@hidden(
    "AdditiveAttention", kind="value", weight=2, hint="Compare with your NumPy functions, fed with the same weights."
)
def test_additive_attention_matches_the_formula(student, rng):
    """vᵀ tanh(W_q q + W_k k), softmax over keys, mean of the values as they come."""
    module, state = loaded(student, rng, 5, 7, 11)
    inputs = tensor(rng, 2, 3, 5), tensor(rng, 2, 4, 7), tensor(rng, 2, 4, 6)
    same_pair(module(*inputs), additive_attention(*inputs, *state), "without lengths")


@hidden("AdditiveAttention", kind="value", weight=2, hint="Key j is real if j < length. Which axis of the scores is j?")
def test_additive_attention_with_lengths(student, rng):
    """Each example attends to its own real keys alone; a weight on padding is exactly 0."""
    module, state = loaded(student, rng, 5, 5, 8)
    inputs = tensor(rng, 3, 6, 5), tensor(rng, 3, 6, 5), tensor(rng, 3, 6, 5)
    lengths = torch.as_tensor(rng.permutation([2, 4, 6]))
    expected = additive_attention(*inputs, *state, lengths)
    _, weights = same_pair(module(*inputs, lengths), expected, "with lengths")
    require((weights[expected[1] == 0] == 0).all(), "The weights on padding should be exactly 0.")


@hidden(
    "AdditiveAttention", kind="property", weight=1, hint="Three Linear layers without bias, named as in the contract."
)
def test_additive_attention_has_exactly_three_parameters(student, rng):
    """The parameters are q_proj, k_proj and score_proj, without bias, in the shapes of nn.Linear."""
    names = student.make("AdditiveAttention", 5, 7, 11).state_dict()
    shapes = {name: tuple(value.shape) for name, value in names.items()}
    wanted = {"q_proj.weight": (11, 5), "k_proj.weight": (11, 7), "score_proj.weight": (1, 11)}
    require(shapes == wanted, f"The parameters should be {wanted}.")


@hidden(
    "AdditiveAttention", kind="edge", weight=1, hint="Count axes from the back, and give `lengths` as many as it needs."
)
def test_additive_attention_with_other_leading_axes(student, rng):
    """No leading axis or two of them, with and without lengths: same rule."""
    module, state = loaded(student, rng, 3, 4, 6)
    one = tensor(rng, 5, 3), tensor(rng, 7, 4), tensor(rng, 7, 2)
    many = tensor(rng, 2, 3, 5, 3), tensor(rng, 2, 3, 7, 4), tensor(rng, 2, 3, 7, 2)
    lengths = torch.as_tensor(rng.integers(1, 8, size=(2, 3)))
    of_one, of_many = module.each([one, (*many, lengths)])
    same_pair(of_one, additive_attention(*one, *state), "of a single example")
    same_pair(of_many, additive_attention(*many, *state, lengths), "with two leading axes")


@hidden(
    "AdditiveAttention", kind="edge", weight=1, hint="What does softmax make of a row in which every score is masked?"
)
def test_additive_attention_of_an_empty_example(student, rng):
    """An example of length 0 has weights 0 and context 0; large padding changes nothing anywhere."""
    module, state = loaded(student, rng, 5, 7, 9)
    queries, keys, values = tensor(rng, 3, 4, 5), tensor(rng, 3, 6, 7), tensor(rng, 3, 6, 2)
    lengths = torch.as_tensor(rng.permutation([0, 1, 5]))
    expected = additive_attention(queries, keys, values, *state, lengths)
    padding = torch.arange(6) >= lengths[:, None]
    keys[padding] *= 100
    values[padding] *= 100
    same_pair(module(queries, keys, values, lengths), expected, "with an example of length 0")


@hidden(
    "AdditiveAttention",
    kind="gradient",
    weight=2,
    hint="Does the whole path from inputs to result stay inside autograd?",
)
def test_additive_attention_gradients(student, rng):
    """Gradients reach queries, keys, values and all three parameters, and stay finite with an example of length 0."""
    module, state = loaded(student, rng, 4, 6, 5)
    inputs = [tensor(rng, 3, 2, 4), tensor(rng, 3, 5, 6), tensor(rng, 3, 5, 3)]
    upstream = tensor(rng, 3, 2, 3), tensor(rng, 3, 2, 5)
    lengths = torch.as_tensor(rng.permutation([0, 3, 5]))
    leaves = [leaf.double().requires_grad_() for leaf in (*inputs, *state)]
    outputs = additive_attention(*leaves, lengths)
    sum((out * up).sum() for out, up in zip(outputs, upstream, strict=True)).backward()
    expected = [leaf.grad.float() for leaf in leaves]
    _, input_grads, parameter_grads = module.vjp(*inputs, lengths, upstream=upstream, wrt=(0, 1, 2))
    for name, grad, want in zip(("queries", "keys", "values"), input_grads, expected[:3], strict=True):
        close(grad, want, what=f"gradient of {name}", rtol=1e-4)
    for name, want in zip(("q_proj.weight", "k_proj.weight", "score_proj.weight"), expected[3:], strict=True):
        require(parameter_grads.get(name) is not None, f"No gradient reaches {name}.")
        close(parameter_grads[name], want, what=f"gradient of {name}", rtol=1e-4)


@hidden("AdditiveAttention", kind="cost", weight=1, hint="Broadcasting visits all pairs at once, without `for`.")
def test_additive_attention_does_not_loop_over_positions(student, rng):
    """About as many Python steps for 160 queries, or for 200 keys, as for 4 and 5."""
    module, state = loaded(student, rng, 3, 3, 4)
    cases, steps = [], []
    for q_seq, kv_seq in ((4, 5), (160, 5), (4, 200)):
        inputs = tensor(rng, 1, q_seq, 3), tensor(rng, 1, kv_seq, 3), tensor(rng, 1, kv_seq, 3)
        cases.append((*inputs, torch.tensor([kv_seq * 3 // 5])))
    for (*inputs, lengths), (answer, count) in zip(cases, module.each_counted(cases), strict=True):
        same_pair(answer, additive_attention(*inputs, *state, lengths), "of a counted call")
        steps.append(count)
    at_most(max(steps), 2 * steps[0] + 40, what="Python steps for forty times as many positions")

    def on_many_queries():
        queries, keys, values = tensor(rng, 1, 2_500, 3), tensor(rng, 1, 2, 3), tensor(rng, 1, 2, 3)
        call = module.pace(queries, keys, values)
        context, weights = two(call.result, "the context", "the weights")
        some = torch.from_numpy(rng.choice(queries.shape[1], 8))
        found = context[:, some], weights[:, some]
        same_pair(found, additive_attention(queries[:, some], keys, values, *state), "for many queries")
        return call.outside_seconds

    at_most_seconds(on_many_queries, 0.005, what="CPU time for 2,500 queries")


# --- BahdanauDecoderStep ---------------------------------------------------------------------------------------------

VOCAB, EMBED, STATE, MEMORY, HIDDEN = 13, 4, 6, 6, 5  # STATE = MEMORY, so that mix-ups run and can be recognised


def decoder_state(rng):
    """A state for BahdanauDecoderStep with clearly uneven attention."""
    cell = {"weight_ih": (EMBED + MEMORY,), "weight_hh": (STATE,), "bias_ih": (), "bias_hh": ()}
    return {
        "embedding.weight": tensor(rng, VOCAB, EMBED),
        **{f"attention.{name}": value for name, value in attention_weights(rng, STATE, MEMORY, HIDDEN).items()},
        **{f"cell.{name}": tensor(rng, 3 * STATE, *width) * 0.4 for name, width in cell.items()},
    }


def decoder_step(parts, token, state, memory, lengths=None):
    """The new state and the weights, with the GRU's gates written out (torch's order: reset, update, new)."""
    names = ("attention.q_proj.weight", "attention.k_proj.weight", "attention.score_proj.weight")
    context, weights = additive_attention(state[:, None], memory, memory, *(parts[name] for name in names), lengths)
    read = torch.cat([parts["embedding.weight"][token], context[:, 0]], dim=-1)
    from_read = (read @ parts["cell.weight_ih"].T + parts["cell.bias_ih"]).chunk(3, dim=-1)
    from_state = (state @ parts["cell.weight_hh"].T + parts["cell.bias_hh"]).chunk(3, dim=-1)
    reset, update = (torch.sigmoid(a + b) for a, b in zip(from_read[:2], from_state[:2], strict=True))
    new = torch.tanh(from_read[2] + reset * from_state[2])
    return (1 - update) * new + update * state, weights[:, 0]


def decoder(student, rng):
    """A student's step with a random state, and that state."""
    parts = decoder_state(rng)
    module = student.make("BahdanauDecoderStep", VOCAB, EMBED, STATE, MEMORY, HIDDEN)
    module.load_state_dict(parts)
    return module, parts


def decoder_inputs(rng, batch=4, kv_seq=7):
    """Tokens, previous states and encoder states."""
    token = torch.as_tensor(rng.integers(0, VOCAB, size=batch))
    return token, tensor(rng, batch, STATE), tensor(rng, batch, kv_seq, MEMORY)


def same_step(answer, expected, what):
    """New state and weights both agree."""
    state, weights = two(answer, "the new state", "the weights")
    close(weights, expected[1], what=f"weights {what}")
    close(state, expected[0], what=f"new state {what}")
    return state, weights


@hidden(
    "BahdanauDecoderStep", kind="value", weight=2, hint="Go through the three points of the contract in their order."
)
def test_decoder_step_matches_the_formula(student, rng):
    """Attend with the previous state, then s = GRU([embedding; context], previous state)."""
    module, parts = decoder(student, rng)
    inputs = decoder_inputs(rng)
    same_step(module(*inputs), decoder_step(parts, *inputs), "of one step")


@hidden("BahdanauDecoderStep", kind="value", weight=1, hint="Where should `lengths` go?")
def test_decoder_step_with_lengths_over_three_steps(student, rng):
    """Three steps in a row, each fed with the state of the one before, and with padded encoder states."""
    module, parts = decoder(student, rng)
    _, state, memory = decoder_inputs(rng)
    lengths = torch.as_tensor(rng.permutation([1, 3, 5, 7]))
    expected = state
    for number in (1, 2, 3):
        token = torch.as_tensor(rng.integers(0, VOCAB, size=4))
        expected, weights = decoder_step(parts, token, expected, memory, lengths)
        state, _ = same_step(module(token, state, memory, lengths), (expected, weights), f"of step {number}")


@hidden("BahdanauDecoderStep", kind="property", weight=1, hint="The question is asked before the token is read.")
def test_decoder_weights_do_not_depend_on_the_token(student, rng):
    """Another token changes the new state, but not where the step looks."""
    module, parts = decoder(student, rng)
    token, state, memory = decoder_inputs(rng)
    other = (token + torch.as_tensor(rng.integers(1, VOCAB, size=4))) % VOCAB
    cases = [(tokens, state, memory) for tokens in (token, other)]
    for name, case, answer in zip("AB", cases, module.each(cases), strict=True):
        same_step(answer, decoder_step(parts, *case), f"with token {name}")


@hidden(
    "BahdanauDecoderStep",
    kind="property",
    weight=1,
    hint="The names embedding, attention and cell are in the contract.",
)
def test_decoder_step_has_the_named_parts(student, rng):
    """The parameters are those of embedding, attention (three matrices) and cell."""
    state = student.make("BahdanauDecoderStep", 9, 3, 4, 5, 7).state_dict()
    wanted = {
        "embedding.weight": (9, 3),
        "attention.q_proj.weight": (7, 4),
        "attention.k_proj.weight": (7, 5),
        "attention.score_proj.weight": (1, 7),
        "cell.weight_ih": (12, 8),
        "cell.weight_hh": (12, 4),
        "cell.bias_ih": (12,),
        "cell.bias_hh": (12,),
    }
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    require(shapes == wanted, f"With (9, 3, 4, 5, 7) the parameters should be {wanted}.")


@hidden("BahdanauDecoderStep", kind="edge", weight=1, hint="What is the context when there is nothing to read?")
def test_decoder_step_without_any_encoder_state(student, rng):
    """An example of length 0 reads a context of 0; the padding's content has no influence on any example."""
    module, parts = decoder(student, rng)
    token, state, memory = decoder_inputs(rng)
    lengths = torch.as_tensor(rng.permutation([0, 2, 4, 7]))
    expected = decoder_step(parts, token, state, memory, lengths)
    memory[torch.arange(7) >= lengths[:, None]] = 50.0
    same_step(module(token, state, memory, lengths), expected, "with an example of length 0")


@hidden(
    "BahdanauDecoderStep", kind="gradient", weight=2, hint="Every part must stay inside autograd, the attention too."
)
def test_decoder_step_gradients(student, rng):
    """Gradients reach the previous state, the encoder states and every parameter."""
    module, parts = decoder(student, rng)
    token, state, memory = decoder_inputs(rng)
    token[0] = 0
    upstream = tensor(rng, 4, STATE), tensor(rng, 4, 7)
    leaves = {name: value.double().requires_grad_() for name, value in parts.items()}
    ends = [state.double().requires_grad_(), memory.double().requires_grad_()]
    outputs = decoder_step(leaves, token, *ends)
    sum((out * up).sum() for out, up in zip(outputs, upstream, strict=True)).backward()
    _, input_grads, parameter_grads = module.vjp(token, state, memory, upstream=upstream, wrt=(1, 2))
    for name, grad, leaf in zip(("state", "memory"), input_grads, ends, strict=True):
        close(grad, leaf.grad.float(), what=f"gradient of {name}", rtol=1e-4)
    for name, leaf in leaves.items():
        require(parameter_grads.get(name) is not None, f"No gradient reaches {name}.")
        close(parameter_grads[name], leaf.grad.float(), what=f"gradient of {name}", rtol=1e-4)


# --- hard_alignment --------------------------------------------------------------------------------------------------


def weights_along(rng, path, kv_seq):
    """Rows of weights whose largest entry stands where the path says; the row of a −1 is all zero."""
    path = np.asarray(path)
    raw = rng.uniform(0.1, 1.0, size=(*path.shape, kv_seq))
    np.put_along_axis(raw, np.maximum(path, 0)[..., None], 1.6, axis=-1)
    return np.where(path[..., None] < 0, 0.0, raw / raw.sum(axis=-1, keepdims=True))


def winding_path(rng, rows, kv_seq):
    """A path that stands still, goes forwards and goes back, in an order of chance; never all of one kind."""
    moves = np.array([0, 0, 1, 2, 1, -1, -2] + [int(rng.integers(-2, 3)) for _ in range(rows - 8)])
    path = [kv_seq // 2]
    for move in rng.permutation(moves):
        step = int(move) if 0 <= path[-1] + move < kv_seq else -int(move)
        path.append(path[-1] + step)
    return path


def alignment_by_loops(path, lengths=None):
    """Alignment and share from the path itself, counted pair by pair."""
    path = np.asarray(path)
    alignment, shares = path.copy(), np.ones(path.shape[:-1])
    for index in np.ndindex(path.shape[:-1]):
        rows = path.shape[-1] if lengths is None else int(np.asarray(lengths)[index])
        alignment[index][rows:] = -1
        pairs = [(a, b) for a, b in itertools.pairwise(alignment[index]) if a >= 0 and b >= 0]
        if pairs:
            shares[index] = sum(b >= a for a, b in pairs) / len(pairs)
    return alignment, shares


def same_alignment(answer, expected, what):
    """Alignment and monotonicity both agree."""
    alignment, share = two(answer, "the alignment", "the monotonicity")
    kind = getattr(getattr(alignment, "dtype", None), "kind", None)
    require(kind is not None, "The alignment should be a NumPy array.")
    require(kind in "iu", f"The alignment should hold integers, not {alignment.dtype}.")
    close(alignment, expected[0], what=f"alignment {what}", dtype=False)
    require(
        isinstance(share, (float, np.floating, np.ndarray)), "The monotonicity should be a float or an array of floats."
    )
    close(np.asarray(share), np.asarray(expected[1]), what=f"monotonicity {what}", dtype=False)


@hidden("hard_alignment", kind="value", weight=2, hint="One key for each row, one share for each example.")
def test_hard_alignment_of_a_batch(student, rng):
    """The position of each row's largest weight, and for each example the share of pairs that do not go back."""
    paths = [winding_path(rng, 12, 12) for _ in range(3)]
    paths[1] = sorted(paths[1])
    paths[2] = list(range(12))[::-1]
    weights = weights_along(rng, paths, 12)
    same_alignment(student.hard_alignment(weights), alignment_by_loops(paths), "of a batch of three")


@hidden(
    "hard_alignment", kind="value", weight=1, hint="`lengths` counts rows: padding is −1, and no pair reaches into it."
)
def test_hard_alignment_with_lengths(student, rng):
    """Rows behind the length are −1 and belong to no pair."""
    paths = [winding_path(rng, 14, 9) for _ in range(3)]
    weights = weights_along(rng, paths, 9)
    lengths = rng.permutation([5, 9, 13])
    same_alignment(student.hard_alignment(weights, lengths), alignment_by_loops(paths, lengths), "with lengths")


@hidden("hard_alignment", kind="edge", weight=1, hint="Which of several equal maxima does `argmax` return?")
def test_hard_alignment_takes_the_first_of_equal_weights(student, rng):
    """Where several weights are the largest, the first of them counts."""
    paths = [winding_path(rng, 10, 6), winding_path(rng, 10, 6)]
    weights = weights_along(rng, paths, 6)
    for index, first in np.ndenumerate(np.array(paths)):
        if first < 5:
            weights[index][int(rng.integers(first + 1, 6))] = weights[index][first]
    same_alignment(student.hard_alignment(weights), alignment_by_loops(paths), "with ties")


@hidden("hard_alignment", kind="edge", weight=1, hint="A row of zeros looks nowhere, so no pair may use it.")
def test_hard_alignment_of_rows_that_look_nowhere(student, rng):
    """A row of zeros is −1, and the two pairs that it would belong to do not count."""
    paths = np.array([winding_path(rng, 12, 7), winding_path(rng, 12, 7)])
    for example in paths:
        example[rng.choice(np.arange(1, 11), size=3, replace=False)] = -1
    weights = weights_along(rng, paths, 7)
    same_alignment(student.hard_alignment(weights), alignment_by_loops(paths), "with rows of zeros")


@hidden("hard_alignment", kind="edge", weight=1, hint="How many pairs has an example with one real row?")
def test_hard_alignment_without_any_pair(student, rng):
    """With no real row or only one there is no pair: the share is 1.0, and no warning or NaN appears."""
    paths = [winding_path(rng, 9, 5)[::-1] for _ in range(3)]
    weights = weights_along(rng, paths, 5)
    lengths = rng.permutation([0, 1, 9])
    same_alignment(student.hard_alignment(weights, lengths), alignment_by_loops(paths, lengths), "of short examples")


@hidden("hard_alignment", kind="edge", weight=1, hint="Count axes from the back.")
def test_hard_alignment_with_other_leading_axes(student, rng):
    """A single example gives one share; two leading axes give a share for each of their entries."""
    path = winding_path(rng, 11, 8)
    paths = np.array([[winding_path(rng, 10, 8) for _ in range(3)] for _ in range(2)])
    lengths = rng.integers(3, 11, size=(2, 3))
    cases = [(weights_along(rng, path, 8),), (strided(weights_along(rng, paths, 8)), lengths)]
    of_one, of_many = student.each("hard_alignment", cases)
    same_alignment(of_one, alignment_by_loops(path), "of a single example")
    same_alignment(of_many, alignment_by_loops(paths, lengths), "with two leading axes")


# --- steps_to_connect ------------------------------------------------------------------------------------------------


def steps_by_spreading(distance, layer, kernel_size, dilation):
    """Spread the positions that have heard of position 0, as bits of one number, layer by layer up to `distance`."""
    reached, layers = 1, 0
    while not reached >> distance & 1:
        if layer == "attention":
            offsets = range(distance + 1)
        elif layer == "rnn":
            offsets = range(2)
        else:
            offsets = [tap * (dilation**layers if layer == "dilated_cnn" else 1) for tap in range(kernel_size)]
        spread = reduce(or_, (reached << offset for offset in offsets))
        reached = spread & ((2 << distance) - 1)
        layers += 1
    return layers


LAYERS = ("rnn", "cnn", "dilated_cnn", "attention")


def same_count(answer, expected, what):
    """The very integer, not a float near it."""
    whole = isinstance(answer, (int, np.integer)) and not isinstance(answer, bool)
    require(whole, f"{what}: the result should be an integer.")
    require(answer == expected, f"{what}: the count is too {'large' if answer > expected else 'small'}.")


@hidden("steps_to_connect", kind="value", weight=2, hint="Draw eight positions and follow the arrows of each layer.")
def test_steps_agree_with_spreading_a_signal(student, rng):
    """The count is that of a signal spread layer by layer, for every kind of layer at the default kernel."""
    distances = (1, 2, 3, *(int(d) for d in rng.integers(10, 60, size=3)))
    cases = list(itertools.product(distances, LAYERS))
    calls = [Call(*case, dilation=2) for case in cases]
    for (distance, layer), answer in zip(cases, student.each("steps_to_connect", calls), strict=True):
        same_count(answer, steps_by_spreading(distance, layer, 3, 2), what=f"{layer} steps")


@hidden(
    "steps_to_connect", kind="value", weight=2, hint="How far back does one layer reach, and how far the whole stack?"
)
def test_steps_for_other_kernels_and_dilations(student, rng):
    """Other widths of the kernel and other bases of the dilation, also base 1."""
    growing = ((2, 2), (5, 2), (4, 3), (5, 4))
    for stacks in (growing, ((6, 1),)):
        cases = [
            (int(distance), layer, kernel_size, dilation)
            for kernel_size, dilation in stacks
            for distance in rng.integers(20, 120, size=2)
            for layer in ("cnn", "dilated_cnn")
        ]
        calls = [Call(*case[:2], kernel_size=case[2], dilation=case[3]) for case in cases]
        for case, answer in zip(cases, student.each("steps_to_connect", calls), strict=True):
            what = f"{case[1]} layers with kernel {case[2]} and dilation {case[3]}"
            same_count(answer, steps_by_spreading(*case), what=what)


@hidden(
    "steps_to_connect", kind="edge", weight=1, hint="Test the distance that a stack just reaches, and the next one."
)
def test_steps_at_the_edge_of_a_stack(student, rng):
    """The distance that L layers just reach needs L layers, one position more needs L + 1."""
    kernel_size, layers = int(rng.integers(3, 6)), int(rng.integers(3, 9))
    dilation = int(rng.integers(2, kernel_size + 1))
    plain = (kernel_size - 1) * layers
    grown = (kernel_size - 1) * (dilation**layers - 1) // (dilation - 1)
    edges = (("cnn", plain), ("dilated_cnn", grown))
    cases = [(edge + more, layer, kernel_size, dilation) for more in (0, 1) for layer, edge in edges]
    wanted = [layers, layers, layers + 1, layers + 1]
    for case, count, answer in zip(cases, wanted, student.each("steps_to_connect", cases), strict=True):
        same_count(answer, count, what=f"{case[1]} layers at the edge")


@hidden("steps_to_connect", kind="edge", weight=1, hint="Where is position i already, before any layer?")
def test_steps_for_distance_zero(student, rng):
    """Distance 0 needs no step, whatever the layer."""
    kernel_size = int(rng.integers(2, 9))
    dilation = int(rng.integers(1, kernel_size + 1))
    cases = [(0, layer, kernel_size, dilation) for layer in LAYERS]
    for layer, answer in zip(LAYERS, student.each("steps_to_connect", cases), strict=True):
        same_count(answer, 0, what=f"{layer} steps at distance 0")


@hidden(
    "steps_to_connect", kind="edge", weight=1, hint="A float has 53 bits; integers in Python have as many as they need."
)
def test_steps_are_exact_for_enormous_distances(student, rng):
    """Exact for distances near 10¹⁸, and without walking through them."""
    layers, kernel_size = int(rng.integers(3, 10)) * 10**16 + 1, int(rng.integers(3, 8))
    # One by one: who walks through the distance would hide, in the call that never ends, what was wrong before.
    same_count(student.steps_to_connect(layers, "rnn"), layers, what="rnn steps")
    distance = layers * (kernel_size - 1)
    same_count(student.steps_to_connect(distance + 1, "cnn", kernel_size), layers + 1, what="cnn layers")
    same_count(student.steps_to_connect(distance, "dilated_cnn", kernel_size, 1), layers, what="layers with dilation 1")
    cases, depths = [], []
    for dilation, depth in ((2, 58), (3, 36)):
        reach = (kernel_size - 1) * (dilation**depth - 1) // (dilation - 1)
        cases += [(reach + more, "dilated_cnn", kernel_size, dilation) for more in (0, 1)]
        depths += [depth, depth + 1]
    for case, depth, answer in zip(cases, depths, student.each("steps_to_connect", cases), strict=True):
        same_count(answer, depth, what=f"layers with dilation {case[3]}")


@hidden("steps_to_connect", kind="edge", weight=1, hint="Check the arguments that this layer reads, and only those.")
def test_steps_refuse_what_cannot_be(student, rng):
    """ValueError for nonsense that matters; numbers that a layer does not read are not looked at."""
    distance = int(rng.integers(5, 50))
    each_raises(
        ValueError, student, "steps_to_connect", [(distance, "pigeon"), *((-distance, layer) for layer in LAYERS)]
    )
    # One by one: a stack of such layers reaches no distance, and who looks for the layer that does never ends.
    for layer in ("cnn", "dilated_cnn"):
        raises(ValueError, student, "steps_to_connect", distance, layer, kernel_size=1)
    raises(ValueError, student, "steps_to_connect", distance, "dilated_cnn", dilation=0)
    for layer in ("cnn", "dilated_cnn"):
        raises(ValueError, student, "steps_to_connect", 0, layer, kernel_size=1)
    words = ("rnn steps", "attention layers", "cnn layers")
    calls = [
        Call(distance, "rnn", kernel_size=0, dilation=0),
        Call(distance, "attention", kernel_size=0, dilation=0),
        Call(distance, "cnn", kernel_size=distance + 1, dilation=0),
    ]
    for what, count, answer in zip(words, (distance, 1, 1), student.each("steps_to_connect", calls), strict=True):
        same_count(answer, count, what=what)
