"""Hidden suite of chapter `scaled_dot_product`.

Expected values come from loops over single pairs, from torch's autograd, or from a law; the reference is asked only
where the point of a test is another one.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from autograder.suites.kit import at_most, at_most_seconds, close, hidden, raises, require, shape_of, strided
from solutions import scaled_dot_product as reference

MIB = 2**20


def attend_by_loops(query, key, value, allowed=None, scale=None):
    """Attention pair by pair over any leading axes; `allowed` broadcasts to the scores."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    *batch, q_seq, _ = query.shape
    kv_seq, v_dim = value.shape[-2:]
    allowed = np.broadcast_to(True if allowed is None else allowed, (*batch, q_seq, kv_seq))
    weights, output = np.zeros((*batch, q_seq, kv_seq)), np.zeros((*batch, q_seq, v_dim))
    for row in np.ndindex(*batch, q_seq):
        lead = row[:-1]
        scores = {j: scale * math.fsum(query[row] * key[(*lead, j)]) for j in range(kv_seq) if allowed[(*row, j)]}
        exps = {j: math.exp(score - max(scores.values())) for j, score in scores.items()}
        for j, one in exps.items():
            weights[(*row, j)] = one / math.fsum(exps.values())
            output[row] += weights[(*row, j)] * value[(*lead, j)]
    return output, weights


def draw(rng, *batch, q_seq=5, kv_seq=7, head_dim=4, v_dim=6):
    """Queries, keys and values whose every axis has its own length."""
    return (
        rng.normal(size=(*batch, q_seq, head_dim)),
        rng.normal(size=(*batch, kv_seq, head_dim)),
        rng.normal(size=(*batch, kv_seq, v_dim)),
    )


def draw_mask(rng, *shape):
    """A random mask in which every row allows key 1, hides key 0, and is undecided about the rest."""
    mask = rng.random(shape) < 0.6
    mask[..., 0], mask[..., 1] = False, True
    return mask


def draw_weights(rng, *shape, sharpness=1.0):
    """Rows of softmax weights, none of them saturated."""
    exps = np.exp(sharpness * rng.uniform(-1.5, 1.5, size=shape))
    return exps / exps.sum(axis=-1, keepdims=True)


def unchanged(before, after, what):
    """Fail if a call changed one of its arguments."""
    for old, new in zip(before, after, strict=True):
        if isinstance(old, np.ndarray):
            require(np.array_equal(old, new), f"{what}: an argument was changed in place")


def shaped(value, shape, what):
    """The value, if it is a finite floating-point array of this shape; otherwise the test fails."""
    require(isinstance(value, np.ndarray), f"{what}: it is no NumPy array")
    require(value.shape == shape, f"{what}: its shape is {shape_of(value)}, where {shape} was expected")
    require(value.dtype.kind == "f", f"{what}: its dtype is {value.dtype}, where floating point was expected")
    require(bool(np.isfinite(value).all()), f"{what}: not all values are finite")
    return value


# scaled_dot_product_attention


@hidden(
    "scaled_dot_product_attention",
    weight=2,
    hint="Follow the three steps for one query: a score for each key, softmax over the keys, mean of the values.",
)
def test_attention_is_score_normalise_average(student, rng):
    """Equals the definition written pair by pair, for unequal lengths and widths and a batch axis."""
    query, key, value = draw(rng, 3)
    close(
        student.scaled_dot_product_attention(query, key, value),
        attend_by_loops(query, key, value),
        what="(output, weights)",
    )


@hidden(
    "scaled_dot_product_attention",
    weight=2,
    hint="A hidden key must be out before the softmax is taken, so that the others share all of the weight.",
)
def test_attention_reads_only_what_the_mask_allows(student, rng):
    """True means may attend: hidden keys have weight 0 and the others are normalised among themselves."""
    query, key, value = draw(rng, 2)
    mask = draw_mask(rng, 5, 7)
    close(
        student.scaled_dot_product_attention(query, key, value, mask=mask),
        attend_by_loops(query, key, value, mask),
        what="(output, weights) under a mask",
    )


@hidden("scaled_dot_product_attention", hint="Which factor multiplies the scores when a scale is given?")
def test_attention_uses_the_scale_it_is_given(student, rng):
    """A given scale replaces 1/√head_dim."""
    query, key, value = draw(rng)
    for scale in (0.31, 1.7):
        close(
            student.scaled_dot_product_attention(query, key, value, scale=scale),
            attend_by_loops(query, key, value, scale=scale),
            what="(output, weights) with a scale of its own",
        )


@hidden(
    "scaled_dot_product_attention",
    kind="property",
    hint="Against 4-D scores (batch, heads, q_seq, kv_seq), what are the axes of a 3-D mask, and of a 4-D one?",
)
def test_attention_masks_find_their_axes(student, rng):
    """A 3-D mask gains a head axis against 4-D scores, also when batch = heads; a 4-D mask passes as it is."""
    for batch, heads in ((3, 3), (2, 3)):
        query, key, value = draw(rng, batch, heads)
        mask = draw_mask(rng, batch, 5, 7)
        mask[0, 2, 3], mask[1, 2, 3] = True, False
        close(
            student.scaled_dot_product_attention(query, key, value, mask=mask),
            attend_by_loops(query, key, value, mask[:, None]),
            what="(output, weights) of 4-D inputs under a 3-D mask",
        )
    per_head = draw_mask(rng, 2, 3, 5, 7)
    close(
        student.scaled_dot_product_attention(query, key, value, mask=per_head),
        attend_by_loops(query, key, value, per_head),
        what="(output, weights) of 4-D inputs under a 4-D mask",
    )


@hidden(
    "scaled_dot_product_attention",
    kind="edge",
    hint="What are the largest score and the sum of exponentials of a row in which everything is hidden?",
)
def test_attention_of_an_empty_row_is_zero(student, rng):
    """A query that may attend to nothing has weights 0 and output 0, and its neighbours are as always."""
    query, key, value = draw(rng, 2)
    mask = draw_mask(rng, 2, 5, 7)
    mask[0, 3], mask[1, 0] = False, False
    output, weights = attend_by_loops(query, key, value, mask)
    close(
        student.scaled_dot_product_attention(query, key, value, mask=mask),
        (output, weights),
        what="(output, weights) with empty rows",
    )


@hidden(
    "scaled_dot_product_attention",
    kind="edge",
    hint="exp overflows near 710. Which number can be taken from all scores of a row without changing its softmax?",
)
def test_attention_survives_large_scores(student, rng):
    """Scores of ±10⁴ give finite weights that agree with the definition."""
    query, key, value = draw(rng)
    query, key = np.sign(query) * 100 + query, np.sign(key) * 100 + key
    close(
        student.scaled_dot_product_attention(query, key, value),
        attend_by_loops(query, key, value),
        what="(output, weights) at large scores",
        rtol=1e-7,
    )


@hidden(
    "scaled_dot_product_attention",
    kind="property",
    hint="A hidden key may score far above the visible ones. Does it still leave no trace?",
)
def test_attention_hidden_keys_leave_no_trace(student, rng):
    """Whatever stands at hidden keys, however large, the result is the one without them."""
    query, key, value = draw(rng, 2)
    query[..., 0] = rng.uniform(1, 2, size=query.shape[:-1])
    mask = draw_mask(rng, 5, 7)
    mask[:, 4:] = False
    key[:, 4:, 0], value[:, 4:] = 5e3, 1e3
    output, shares = attend_by_loops(query, key[:, :4], value[:, :4], mask[:, :4])
    close(
        student.scaled_dot_product_attention(query, key, value, mask=mask),
        (output, np.concatenate([shares, np.zeros((2, 5, 3))], axis=-1)),
        what="(output, weights) beside large hidden keys",
    )


@hidden("scaled_dot_product_attention", kind="edge", hint="A scale of 0 is a scale. How does your code ask for None?")
def test_attention_with_scale_zero_is_the_mean(student, rng):
    """Scale 0 makes all scores equal: the output is the plain mean of the values."""
    query, key, value = draw(rng, 2)
    mean = np.repeat(value.mean(axis=-2, keepdims=True), 5, axis=-2)
    close(
        student.scaled_dot_product_attention(query, key, value, scale=0.0),
        (mean, np.full((2, 5, 7), 1 / 7)),
        what="(output, weights) with scale 0",
    )


@hidden(
    "scaled_dot_product_attention",
    kind="edge",
    hint="Which of your numbers is a NumPy float64? One of them turns float32 arrays into float64.",
)
def test_attention_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, arrays with gaps in memory work, no argument is changed."""
    arrays = tuple(strided(array.astype(np.float32)) for array in draw(rng, 2))
    mask = draw_mask(rng, 5, 7)
    result, after = student.after("scaled_dot_product_attention", *arrays, mask)
    expected = attend_by_loops(*(array.astype(np.float64) for array in arrays), mask)
    close(result, tuple(array.astype(np.float32) for array in expected), what="(output, weights) in float32")
    unchanged((*arrays, mask), after, "float32 inputs")


# softmax_with_temperature


def temper_by_loops(scores, temperature):
    """Softmax of each row of scores / temperature, number by number."""
    result = np.empty(scores.shape)
    for row in np.ndindex(*scores.shape[:-1]):
        largest = max(scores[row])
        exps = [math.exp((score - largest) / temperature) for score in scores[row]]
        result[row] = [one / math.fsum(exps) for one in exps]
    return result


@hidden(
    "softmax_with_temperature",
    weight=2,
    hint="Divide the differences of scores by the temperature, exponentiate, normalise along the last axis.",
)
def test_temperature_divides_the_scores(student, rng):
    """Equals exp(s/T) / Σ exp(s/T) along the last axis, for temperatures below and above 1."""
    scores = rng.normal(size=(2, 3, 5))
    for temperature in (0.3, 1.0, 2.5):
        close(
            student.softmax_with_temperature(scores, temperature),
            temper_by_loops(scores, temperature),
            what="weights at a finite temperature",
        )


@hidden("softmax_with_temperature", hint="A single row is an array with one axis; its last axis is that one.")
def test_temperature_works_on_one_row(student, rng):
    """One row of scores gives one row of weights, as torch's softmax of s/T does."""
    scores = rng.normal(size=11)
    temperature = float(rng.uniform(0.5, 0.8))
    expected = torch.softmax(torch.from_numpy(scores) / temperature, dim=0).numpy()
    close(student.softmax_with_temperature(scores, temperature), expected, what="weights of one row")


@hidden(
    "softmax_with_temperature",
    kind="property",
    hint="Hotter is flatter. Compare the entropy of your weights at two temperatures.",
)
def test_temperature_flattens(student, rng):
    """The entropy rises with T, the order of the weights stays, and scaling scores and T together changes nothing."""
    scores = np.cumsum(rng.uniform(0.3, 1.0, size=(4, 6)), axis=-1)
    entropies = []
    for temperature in (0.25, 1.0, 4.0):
        weights = shaped(student.softmax_with_temperature(scores, temperature), scores.shape, "the weights")
        close(
            student.softmax_with_temperature(3 * scores + 50, 3 * temperature),
            temper_by_loops(scores, temperature),
            what="weights of 3s + 50 at 3T",
        )
        require(bool((weights > 0).all()), "at T > 0 every weight is positive")
        require(bool((np.diff(weights, axis=-1) > 0).all()), "a higher score must have a higher weight at every T > 0")
        entropies.append(-(weights * np.log(weights)).sum(axis=-1))
    require(bool((np.diff(entropies, axis=0) > 0).all()), "the entropy must rise with the temperature")


@hidden(
    "softmax_with_temperature",
    kind="edge",
    hint="At T = 0, which gaps to the largest score are exactly 0, and how many are there in the row?",
)
def test_temperature_zero_is_argmax(student, rng):
    """T = 0 gives all weight to the largest score; only exactly equal largest scores share, and equally."""
    scores = rng.normal(size=(3, 6))
    top = scores.max(axis=-1) + 1
    scores[0, 2], scores[1, [0, 3]], scores[2, [1, 4, 5]] = top[0], top[1], top[2]
    expected = np.zeros((3, 6))
    expected[0, 2], expected[1, [0, 3]], expected[2, [1, 4, 5]] = 1, 1 / 2, 1 / 3
    close(student.softmax_with_temperature(scores, 0), expected, what="weights at temperature 0")
    near = np.array([[1.0, 1.0 - 1e-12, 0.5]])
    close(
        student.softmax_with_temperature(near, 0.0),
        np.array([[1.0, 0.0, 0.0]]),
        what="weights at temperature 0 of two scores that are almost equal",
    )


@hidden("softmax_with_temperature", kind="edge", hint="What is any finite number divided by infinity?")
def test_temperature_infinity_is_uniform(student, rng):
    """T = ∞ gives 1/n everywhere."""
    scores = 10 * rng.normal(size=(2, 7))
    close(
        student.softmax_with_temperature(scores, float("inf")), np.full((2, 7), 1 / 7), what="weights at temperature ∞"
    )


@hidden(
    "softmax_with_temperature", kind="edge", hint="What would a negative temperature do to the order of the scores?"
)
def test_temperature_below_zero_is_refused(student, rng):
    """A negative temperature raises ValueError."""
    raises(ValueError, student, "softmax_with_temperature", rng.normal(size=(2, 5)), -0.7)


@hidden(
    "softmax_with_temperature",
    kind="edge",
    hint="Take the largest score away first, then divide: a gap of 0 stays 0 at any temperature.",
)
def test_temperature_survives_large_and_tiny_numbers(student, rng):
    """Scores of ±10⁴ and temperatures so small that s/T overflows give the right, finite weights."""
    scores = 1e4 * rng.permutation(np.linspace(-1, 1, 6)).reshape(2, 3)
    close(student.softmax_with_temperature(scores, 2e3), temper_by_loops(scores, 2e3), what="weights of large scores")
    close(
        student.softmax_with_temperature(scores, 1.0),
        (scores == scores.max(axis=-1, keepdims=True)).astype(float),
        what="weights of large scores at temperature 1",
    )
    scores = rng.permutation(np.arange(1.0, 7.0)).reshape(2, 3)
    close(
        student.softmax_with_temperature(scores, 1e-308),
        (scores == scores.max(axis=-1, keepdims=True)).astype(float),
        what="weights at a tiny temperature",
    )


@hidden("softmax_with_temperature", kind="edge", hint="Check the dtype on every path, T = 0 included.")
def test_temperature_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32 at every temperature, arrays with gaps in memory work, the scores are not changed."""
    scores = strided(rng.normal(size=(3, 4)).astype(np.float32))
    result, after = student.after("softmax_with_temperature", scores, 0.7)
    close(result, temper_by_loops(scores.astype(np.float64), 0.7).astype(np.float32), what="weights in float32")
    unchanged((scores,), after[:1], "float32 scores")
    close(
        student.softmax_with_temperature(scores, 0.0),
        (scores == scores.max(axis=-1, keepdims=True)).astype(np.float32),
        what="weights in float32 at temperature 0",
    )


# softmax_jacobian


@hidden("softmax_jacobian", weight=2, hint="Evaluate pᵢ(δᵢⱼ − pⱼ) for each row alone; i is the row of J, j its column.")
def test_jacobian_is_the_kronecker_form(student, rng):
    """J[i, j] = pᵢ(δᵢⱼ − pⱼ), one matrix for each row of a batch."""
    probs = draw_weights(rng, 2, 3, 5)
    expected = np.zeros((2, 3, 5, 5))
    for b, r, i, j in np.ndindex(2, 3, 5, 5):
        expected[b, r, i, j] = probs[b, r, i] * ((i == j) - probs[b, r, j])
    close(student.softmax_jacobian(probs), expected, what="J of a batch")


@hidden(
    "softmax_jacobian", hint="Diagonal and off-diagonal entries have different formulas. Which terms does each have?"
)
def test_jacobian_agrees_with_autograd(student, rng):
    """J of one row is what autograd finds for softmax at the scores behind it."""
    scores = torch.from_numpy(rng.uniform(-1.5, 1.5, size=6))
    expected = torch.autograd.functional.jacobian(lambda z: torch.softmax(z, dim=0), scores)
    close(student.softmax_jacobian(torch.softmax(scores, dim=0).numpy()), expected.numpy(), what="J of one row")


@hidden(
    "softmax_jacobian",
    kind="property",
    hint="A common shift of the scores changes nothing, and softmax is the slope of a convex function.",
)
def test_jacobian_is_symmetric_with_rank_one_less(student, rng):
    """J is symmetric, its rows sum to 0, it has no negative eigenvalue, and its rank is n − 1."""
    jacobian = shaped(student.softmax_jacobian(draw_weights(rng, 7)), (7, 7), "J")
    close(jacobian, jacobian.T.copy(), what="J against its transpose", atol=1e-12)
    close(jacobian.sum(axis=-1), np.zeros(7), what="row sums of J", atol=1e-12)
    eigenvalues = np.linalg.eigvalsh(jacobian)
    at_most(-eigenvalues[0], 1e-12, what="the most negative eigenvalue of J, negated")
    require(bool(eigenvalues[1] > 1e-4), "J must have rank n − 1: only one eigenvalue is 0")


@hidden("softmax_jacobian", kind="edge", hint="What is p(1 − p) for p = 0 and for p = 1?")
def test_jacobian_of_a_saturated_row_is_zero(student, rng):
    """One-hot rows and rows of zeros have Jacobian 0; uniform rows have (I − 1/n)/n."""
    probs = np.zeros((4, 5))
    probs[0, rng.integers(5)] = 1
    probs[1, rng.integers(5)] = 1
    probs[3] = 0.2
    expected = np.zeros((4, 5, 5))
    expected[3] = (np.eye(5) - 0.2) / 5
    close(student.softmax_jacobian(probs), expected, what="J of saturated, empty and uniform rows")


@hidden("softmax_jacobian", kind="edge", hint="np.eye makes float64 unless it is told otherwise.")
def test_jacobian_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, arrays with gaps in memory work, probs is not changed."""
    probs = strided(draw_weights(rng, 3, 4).astype(np.float32))
    result, after = student.after("softmax_jacobian", probs)
    close(result, reference.softmax_jacobian(probs.astype(np.float64)).astype(np.float32), what="J in float32")
    unchanged((probs,), after, "float32 probs")


# softmax_vjp


@hidden("softmax_vjp", weight=2, hint="Write Σᵢ gᵢ pᵢ(δᵢⱼ − pⱼ) as two sums, row by row.")
def test_softmax_vjp_is_the_jacobian_times_upstream(student, rng):
    """Equals Σᵢ gᵢ J[i, j], summed entry by entry, for every row of a batch."""
    probs, upstream = draw_weights(rng, 2, 3, 5), rng.normal(size=(2, 3, 5))
    expected = np.zeros((2, 3, 5))
    for b, r, i, j in np.ndindex(2, 3, 5, 5):
        expected[b, r, j] += upstream[b, r, i] * probs[b, r, i] * ((i == j) - probs[b, r, j])
    close(student.softmax_vjp(probs, upstream), expected, what="Jᵀg")


@hidden("softmax_vjp", hint="For one row the gradient is what autograd gives for softmax at the scores behind it.")
def test_softmax_vjp_agrees_with_autograd(student, rng):
    """For one row, equals the gradient that torch finds at the scores."""
    scores = torch.from_numpy(rng.uniform(-1.5, 1.5, size=9)).requires_grad_(True)
    upstream = rng.normal(size=9)
    probs = torch.softmax(scores, dim=0)
    (expected,) = torch.autograd.grad(probs, scores, torch.from_numpy(upstream))
    close(student.softmax_vjp(probs.detach().numpy(), upstream), expected.numpy(), what="Jᵀg of one row")


@hidden("softmax_vjp", kind="property", hint="What does J do to a vector of ones, and what do its columns sum to?")
def test_softmax_vjp_ignores_a_constant_and_sums_to_zero(student, rng):
    """A constant added to g changes nothing, the result of each row sums to 0, and it is linear in g."""
    probs, first, second = draw_weights(rng, 4, 6), rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    one, two = (shaped(student.softmax_vjp(probs, g), (4, 6), "Jᵀg") for g in (first, second))
    close(student.softmax_vjp(probs, first + 3.5), one, what="Jᵀ(g + constant)")
    close(one.sum(axis=-1), np.zeros(4), what="row sums of Jᵀg", atol=1e-12)
    close(student.softmax_vjp(probs, 2 * first - second), 2 * one - two, what="Jᵀ(2g − h)")


@hidden("softmax_vjp", kind="edge", hint="Weights of 0 let nothing through, whatever g says.")
def test_softmax_vjp_of_saturated_and_empty_rows_is_zero(student, rng):
    """One-hot rows and rows of zeros give 0; entries of weight 0 get 0 in any row."""
    probs, upstream = np.zeros((3, 5)), 100 * rng.normal(size=(3, 5))
    probs[0, rng.integers(5)] = 1
    probs[2, :3] = draw_weights(rng, 3)
    expected = np.zeros((3, 5))
    expected[2, :3] = probs[2, :3] * (upstream[2, :3] - probs[2, :3] @ upstream[2, :3])
    close(student.softmax_vjp(probs, upstream), expected, what="Jᵀg of saturated, empty and partly empty rows")


@hidden("softmax_vjp", kind="edge", hint="Work on new arrays: the gradient that came in belongs to the caller.")
def test_softmax_vjp_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, arrays with gaps in memory work, no argument is changed."""
    probs = strided(draw_weights(rng, 3, 4).astype(np.float32))
    upstream = strided(rng.normal(size=(3, 4)).astype(np.float32))
    result, after = student.after("softmax_vjp", probs, upstream)
    p, g = probs.astype(np.float64), upstream.astype(np.float64)
    expected = np.einsum("rij,ri->rj", reference.softmax_jacobian(p), g)
    close(result, expected.astype(np.float32), what="Jᵀg in float32")
    unchanged((probs, upstream), after, "float32 inputs")


@hidden(
    "softmax_vjp",
    kind="cost",
    weight=2,
    hint="Of the two sums in Jᵀg, one has a single term left and the other is one number for the whole row.",
)
def test_softmax_vjp_never_forms_the_jacobian(student, rng):
    """On a row of 4,001 weights the memory stays linear in n: no array of n × n."""
    n = 4001
    probs, upstream = draw_weights(rng, 1, n), rng.normal(size=(1, n))
    trace = student.trace("softmax_vjp", probs, upstream)
    at_most(trace.peak_bytes, 40 * probs.nbytes, what="bytes held at once for one row of 4,001 weights")
    at_most(trace.outside_bytes, 32 * MIB, what="growth of the process's memory in bytes")


@hidden("softmax_vjp", kind="cost", hint="The work is linear in n as well. Let NumPy sum along the row.")
def test_softmax_vjp_has_no_loop_along_the_row(student, rng):
    """The number of Python steps does not grow with n."""
    probs, upstream = draw_weights(rng, 2, 1001), rng.normal(size=(2, 1001))
    trace = student.trace("softmax_vjp", probs, upstream)
    expected = probs * (upstream - np.einsum("rj,rj->r", probs, upstream)[:, None])
    close(trace.result, expected, what="Jᵀg for rows of 1,001 weights")
    at_most(trace.steps, 400, what="Python steps for rows of 1,001 weights")
    # What fills memory must not come to the large case, which mistakes are replayed on in the grader's own process.
    at_most(trace.peak_bytes, 20 * probs.nbytes, what="bytes held at once for rows of 1,001 weights")

    def on_long_rows():
        probs, upstream = rng.random((12, 40_001), np.float32), rng.random((12, 40_001), np.float32) - 0.5
        probs /= probs.sum(axis=-1, keepdims=True)
        trace = student.trace("softmax_vjp", probs, upstream)
        some = rng.choice(len(probs), 4)
        p, g = probs[some].astype(float), upstream[some].astype(float)
        expected = p * (g - np.einsum("rj,rj->r", p, g)[:, None])
        close(trace.result[some], expected.astype(np.float32), what="Jᵀg on long rows")
        return trace.outside_seconds

    at_most_seconds(on_long_rows, 0.05, what="CPU time for rows of 40,001 weights")


# causal_mask


def causal_by_loops(q_seq, kv_seq):
    """Bottom-right aligned causal mask, entry by entry."""
    mask = np.zeros((q_seq, kv_seq), dtype=bool)
    for i, j in np.ndindex(q_seq, kv_seq):
        mask[i, j] = j <= i + kv_seq - q_seq
    return mask


@hidden("causal_mask", hint="Each token sees itself and everything before it. Rows are queries, columns are keys.")
def test_causal_mask_of_a_square_is_lower_triangular(student, rng):
    """With as many queries as keys, True exactly on and below the diagonal."""
    for seq in (5, int(rng.integers(6, 12))):
        close(student.causal_mask(seq, seq), causal_by_loops(seq, seq), what="the mask of a square")


@hidden("causal_mask", weight=2, hint="The queries are the last positions: at which key does the last query stand?")
def test_causal_mask_is_aligned_bottom_right(student, rng):
    """With more keys than queries, query i stands at i + kv_seq − q_seq."""
    for q_seq, extra in ((3, 4), (int(rng.integers(2, 6)), int(rng.integers(2, 9)))):
        close(student.causal_mask(q_seq, q_seq + extra), causal_by_loops(q_seq, q_seq + extra), what="the mask")


@hidden("causal_mask", kind="edge", hint="With more queries than keys, the first query stands before the first key.")
def test_causal_mask_with_more_queries_than_keys(student, rng):
    """With more queries than keys, the first q_seq − kv_seq rows are empty."""
    kv_seq, extra = int(rng.integers(3, 7)), int(rng.integers(1, 4))
    close(student.causal_mask(kv_seq + extra, kv_seq), causal_by_loops(kv_seq + extra, kv_seq), what="the mask")


@hidden("causal_mask", kind="property", hint="Decoding in chunks must see what decoding at once sees.")
def test_causal_mask_of_a_chunk_is_the_end_of_the_whole(student, rng):
    """The mask of the last q_seq queries is the last q_seq rows of the square mask; one new token sees everything."""
    kv_seq = int(rng.integers(6, 12))
    whole = student.causal_mask(kv_seq, kv_seq)
    close(whole, causal_by_loops(kv_seq, kv_seq), what="the mask of the whole")
    for q_seq in (1, 2, kv_seq - 1):
        close(student.causal_mask(q_seq, kv_seq), whole[kv_seq - q_seq :].copy(), what="the mask of a chunk")
    close(student.causal_mask(1, kv_seq), np.ones((1, kv_seq), dtype=bool), what="the mask of one new token")


# padding_mask


def padding_by_loops(lengths, kv_seq):
    """Padding mask with a query axis of 1, entry by entry."""
    mask = np.zeros((len(lengths), 1, kv_seq), dtype=bool)
    for b, j in np.ndindex(len(lengths), kv_seq):
        mask[b, 0, j] = j < lengths[b]
    return mask


@hidden("padding_mask", weight=2, hint="One row for each sequence, and an axis of 1 between batch and keys.")
def test_padding_mask_shows_the_first_keys(student, rng):
    """True at the first lengths[b] keys of sequence b; shape (batch, 1, kv_seq)."""
    lengths = 1 + rng.permutation(6)[:4]
    close(student.padding_mask(lengths, 9), padding_by_loops(lengths, 9), what="the mask")


@hidden("padding_mask", hint="Combine it with a (q_seq, kv_seq) mask by & and look at the shape.")
def test_padding_mask_combines_with_a_causal_mask(student, rng):
    """`padding & causal` is (batch, q_seq, kv_seq), and allows what both allow."""
    lengths = 2 + rng.permutation(5)[:3]
    padding = student.padding_mask(lengths, 7)
    require(isinstance(padding, np.ndarray) and padding.dtype == bool, "the mask must be a boolean NumPy array")
    require(padding.ndim == 3, f"the mask has {padding.ndim} axes, and 3 are asked for")
    require(padding.shape[-1] == 7 and padding.shape[1] == 1, "its axes must be (batch, 1, kv_seq)")
    expected = np.zeros((3, 4, 7), dtype=bool)
    for b, i, j in np.ndindex(3, 4, 7):
        expected[b, i, j] = j < lengths[b] and j <= i + 3
    close(padding & causal_by_loops(4, 7), expected, what="padding & causal")


@hidden(
    "padding_mask", kind="edge", hint="Length 0 hides every key, length kv_seq none. And one sequence is a batch too."
)
def test_padding_mask_of_empty_and_full_sequences(student, rng):
    """Length 0 is a row of False, length kv_seq a row of True; any integer dtype; lengths are not changed."""
    full = np.array([3, 6, 6])
    close(student.padding_mask(full, 6), padding_by_loops(full, 6), what="the mask of full sequences")
    lengths = np.array([0, 6, 3, 6, 0], dtype=np.int32)
    result, after = student.after("padding_mask", lengths, 6)
    close(result, padding_by_loops(lengths, 6), what="the mask of empty and full sequences")
    unchanged((lengths,), after[:1], "lengths")
    close(student.padding_mask(lengths[2:3], 6), padding_by_loops(lengths[2:3], 6), what="the mask of one sequence")


@hidden("padding_mask", kind="edge", hint="A sequence cannot be longer than the keys that there are.")
def test_padding_mask_refuses_too_long_sequences(student, rng):
    """A length above kv_seq raises ValueError."""
    raises(ValueError, student, "padding_mask", np.array([2, 6 + int(rng.integers(5)), 1]), 5)


@hidden("padding_mask", kind="edge", hint="A length below 0 comes from an error made earlier; say so.")
def test_padding_mask_refuses_negative_lengths(student, rng):
    """A length below 0 raises ValueError."""
    raises(ValueError, student, "padding_mask", np.array([2, -1 - int(rng.integers(5)), 1]), 5)


# attention_vjp


def attention_grads_by_autograd(query, key, value, upstream, mask=None):
    """Gradients that torch finds for attention; `mask` broadcasts to the scores and has no empty row."""
    tensors = [torch.from_numpy(array.copy()).requires_grad_(True) for array in (query, key, value)]
    scores = tensors[0] @ tensors[1].transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~torch.from_numpy(np.broadcast_to(mask, scores.shape).copy()), -math.inf)
    output = torch.softmax(scores, dim=-1) @ tensors[2]
    grads = torch.autograd.grad(output, tensors, torch.from_numpy(upstream))
    return tuple(grad.numpy() for grad in grads)


def draw_four(rng, *batch):
    """Queries, keys, values and an upstream gradient."""
    query, key, value = draw(rng, *batch)
    return query, key, value, rng.normal(size=(*batch, 5, 6))


@hidden(
    "attention_vjp", weight=2, hint="Go back through one step at a time and compare the shapes with the forward pass."
)
def test_attention_vjp_agrees_with_autograd(student, rng):
    """The three gradients equal torch's, for unequal lengths and widths and two batch axes."""
    arrays = draw_four(rng, 2, 3)
    close(
        student.attention_vjp(*arrays),
        attention_grads_by_autograd(*arrays),
        what="(query_grad, key_grad, value_grad)",
    )


@hidden("attention_vjp", weight=2, hint="Take the forward pass with the mask; its zeros then hold the gradient back.")
def test_attention_vjp_under_a_mask(student, rng):
    """The same under a mask, of 2-D and of 3-D shape."""
    arrays = draw_four(rng, 2)
    for mask in (draw_mask(rng, 5, 7), draw_mask(rng, 2, 5, 7)):
        close(
            student.attention_vjp(*arrays, mask=mask),
            attention_grads_by_autograd(*arrays, mask),
            what="(query_grad, key_grad, value_grad) under a mask",
        )


@hidden("attention_vjp", kind="gradient", hint="Move one input a little and see by how much upstream · output changes.")
def test_attention_vjp_predicts_small_changes(student, rng):
    """Along a random direction, gradients predict the change that the forward pass shows."""
    query, key, value, upstream = draw_four(rng, 2)
    grads = student.attention_vjp(query, key, value, upstream)
    directions = [rng.normal(size=array.shape) for array in (query, key, value)]

    def loss(step):
        moved = [array + step * direction for array, direction in zip((query, key, value), directions, strict=True)]
        return float((attend_by_loops(*moved)[0] * upstream).sum())

    step = 1e-5
    measured = (loss(step) - loss(-step)) / (2 * step)
    require(isinstance(grads, tuple) and len(grads) == 3, "three gradients are asked for")
    for grad, array in zip(grads, (query, key, value), strict=True):
        shaped(grad, array.shape, "a gradient")
    predicted = sum(float((grad * direction).sum()) for grad, direction in zip(grads, directions, strict=True))
    size = sum(float(np.linalg.norm(grad)) for grad in grads)
    close(predicted, measured, what="the predicted change", atol=1e-6 * max(size, 1.0))


@hidden("attention_vjp", kind="property", hint="If all values are equal, does it matter where a query looks?")
def test_attention_vjp_of_equal_values_moves_no_score(student, rng):
    """With equal values, query and key gradients are 0, and the value gradients sum to the sum of upstream."""
    query, key, _, upstream = draw_four(rng, 2)
    value = np.repeat(rng.normal(size=(2, 1, 6)), 7, axis=1)
    grads = student.attention_vjp(query, key, value, upstream)
    require(isinstance(grads, tuple) and len(grads) == 3, "three gradients are asked for")
    query_grad, key_grad, value_grad = grads
    close(query_grad, np.zeros(query.shape), what="query_grad for equal values", atol=1e-11)
    close(key_grad, np.zeros(key.shape), what="key_grad for equal values", atol=1e-11)
    close(
        shaped(value_grad, value.shape, "value_grad").sum(axis=1),
        upstream.sum(axis=1),
        what="sum of value_grad over the keys",
    )


@hidden(
    "attention_vjp", kind="edge", hint="Rows and keys that are hidden get exactly 0. Where does your NaN come from?"
)
def test_attention_vjp_of_empty_rows_is_zero(student, rng):
    """An empty row has query gradient 0, a key hidden from all has key and value gradient 0; the rest is as always."""
    query, key, value, upstream = draw_four(rng, 2)
    mask = draw_mask(rng, 5, 7)
    mask[2], mask[:, 5] = False, False
    expected = [np.zeros(array.shape) for array in (query, key, value)]
    rows, columns = [0, 1, 3, 4], [0, 1, 2, 3, 4, 6]
    some = attention_grads_by_autograd(
        query[:, rows], key[:, columns], value[:, columns], upstream[:, rows], mask[np.ix_(rows, columns)]
    )
    expected[0][:, rows], expected[1][:, columns], expected[2][:, columns] = some
    close(
        student.attention_vjp(query, key, value, upstream, mask=mask),
        tuple(expected),
        what="(query_grad, key_grad, value_grad) with an empty row",
    )


@hidden("attention_vjp", kind="edge", hint="As in the forward pass: a 3-D mask gains a head axis against 4-D scores.")
def test_attention_vjp_masks_find_their_axes(student, rng):
    """4-D inputs take a 3-D mask with a new head axis, also when batch = heads, and a 4-D mask as it is."""
    arrays = draw_four(rng, 3, 3)
    mask = draw_mask(rng, 3, 5, 7)
    mask[0, 2, 3], mask[1, 2, 3] = True, False
    close(
        student.attention_vjp(*arrays, mask=mask),
        attention_grads_by_autograd(*arrays, mask[:, None]),
        what="gradients under a 3-D mask",
    )
    per_head = draw_mask(rng, 3, 3, 5, 7)
    close(
        student.attention_vjp(*arrays, mask=per_head),
        attention_grads_by_autograd(*arrays, per_head),
        what="gradients under a 4-D mask",
    )


@hidden("attention_vjp", kind="edge", hint="Is your forward pass stable, and does each gradient keep the dtype?")
def test_attention_vjp_keeps_dtype_and_survives_large_scores(student, rng):
    """float32 stays float32, no argument is changed, and scores of ±10⁴ give the right, finite gradients."""
    arrays = tuple(strided(array.astype(np.float32)) for array in draw_four(rng, 2))
    result, after = student.after("attention_vjp", *arrays)
    expected = attention_grads_by_autograd(*(array.astype(np.float64) for array in arrays))
    close(result, tuple(grad.astype(np.float32) for grad in expected), what="gradients in float32", rtol=1e-4)
    unchanged(arrays, after, "float32 inputs")
    query, key, value, upstream = draw_four(rng, 2)
    query, key = np.sign(query) * 100 + query, np.sign(key) * 100 + key
    expected = attention_grads_by_autograd(query, key, value, upstream)
    close(student.attention_vjp(query, key, value, upstream), expected, what="gradients at large scores", atol=1e-6)


@hidden("attention_vjp", kind="cost", hint="You have a function that goes back through softmax without its Jacobian.")
def test_attention_vjp_forms_no_jacobian(student, rng):
    """Nothing larger than a few times the weights is held: no (q_seq, kv_seq, kv_seq)."""
    seq = 256
    query, key, value = (rng.normal(size=(seq, 8)) for _ in range(3))
    trace = student.trace("attention_vjp", query, key, value, rng.normal(size=(seq, 8)))
    at_most(trace.peak_bytes, 24 * 8 * seq * seq, what="bytes held at once at 256 queries and keys")
    at_most(trace.outside_bytes, 40 * MIB, what="growth of the process's memory in bytes")


# cross_entropy_grad


def cross_entropy_grad_by_autograd(logits, targets, label_smoothing=0.0):
    """Gradient of torch's mean cross-entropy."""
    rows = torch.from_numpy(logits.reshape(-1, logits.shape[-1]).copy()).requires_grad_(True)
    loss = F.cross_entropy(
        rows, torch.from_numpy(targets.reshape(-1).astype(np.int64)), label_smoothing=label_smoothing
    )
    (grad,) = torch.autograd.grad(loss, rows)
    return grad.numpy().reshape(logits.shape)


@hidden("cross_entropy_grad", weight=2, hint="p − y, and the loss is a mean over the rows.")
def test_cross_entropy_grad_is_p_minus_y(student, rng):
    """Equals torch's gradient of the mean loss."""
    logits, targets = 1.5 * rng.normal(size=(7, 5)), rng.integers(5, size=7)
    close(
        student.cross_entropy_grad(logits, targets),
        cross_entropy_grad_by_autograd(logits, targets),
        what="the gradient",
    )


@hidden("cross_entropy_grad", hint="y mixes one-hot with the uniform distribution over all classes, and sums to 1.")
def test_cross_entropy_grad_smooths_labels(student, rng):
    """The same with label smoothing, for two values of ε."""
    logits, targets = rng.normal(size=(6, 4)), rng.integers(4, size=6)
    for epsilon in (0.1, 0.35):
        close(
            student.cross_entropy_grad(logits, targets, label_smoothing=epsilon),
            cross_entropy_grad_by_autograd(logits, targets, epsilon),
            what="the gradient with smoothed labels",
        )


@hidden("cross_entropy_grad", kind="edge", hint="How many rows are there when the logits are (2, 3, classes)?")
def test_cross_entropy_grad_takes_any_leading_axes(student, rng):
    """Logits (2, 3, classes) with targets (2, 3): the mean is over all six rows; a single row works too."""
    logits, targets = rng.normal(size=(2, 3, 5)), rng.integers(5, size=(2, 3))
    close(
        student.cross_entropy_grad(logits, targets),
        cross_entropy_grad_by_autograd(logits, targets),
        what="the gradient of six rows",
    )
    close(
        student.cross_entropy_grad(logits[:1, 0], targets[:1, 0]),
        cross_entropy_grad_by_autograd(logits[:1, 0], targets[:1, 0]),
        what="the gradient of one row",
    )


@hidden(
    "cross_entropy_grad", kind="gradient", hint="Move the logits a little and compare with the change of the mean loss."
)
def test_cross_entropy_grad_predicts_small_changes(student, rng):
    """Along a random direction, the gradient predicts the change of the loss."""
    logits, targets, direction = rng.normal(size=(5, 6)), rng.integers(6, size=5), rng.normal(size=(5, 6))

    def loss(step):
        moved = logits + step * direction
        picked = [math.log(sum(math.exp(z) for z in row)) - row[t] for row, t in zip(moved, targets, strict=True)]
        return math.fsum(picked) / 5

    gradient = student.cross_entropy_grad(logits, targets)
    shaped(gradient, logits.shape, "the gradient")
    measured = (loss(1e-5) - loss(-1e-5)) / 2e-5
    close(float((gradient * direction).sum()), measured, what="the predicted change of the loss", atol=1e-7)


@hidden("cross_entropy_grad", kind="property", hint="The gradient of one row is a difference of two distributions.")
def test_cross_entropy_grad_never_vanishes_when_wrong(student, rng):
    """Rows sum to 0; a row that is surely wrong has norm √2/rows, one that is surely right 0, at logits of ±10⁴."""
    logits = rng.normal(size=(4, 5))
    logits[:, 2] += np.array([40.0, 40.0, 1e4, 1e4])
    logits[3, 0] -= 1e4
    targets = np.array([2, 4, 2, 0])
    gradient = student.cross_entropy_grad(logits, targets)
    shaped(gradient, logits.shape, "the gradient")
    close(gradient.sum(axis=-1), np.zeros(4), what="row sums of the gradient", atol=1e-12)
    norms = np.array([0.0, math.sqrt(2) / 4, 0.0, math.sqrt(2) / 4])
    close(np.linalg.norm(gradient, axis=-1), norms, what="norms of the rows", atol=1e-6)


@hidden("cross_entropy_grad", kind="edge", hint="Which array in your code is float64 whatever comes in?")
def test_cross_entropy_grad_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, any integer dtype indexes, arrays with gaps work, the logits are not changed."""
    logits = strided(rng.normal(size=(6, 4)).astype(np.float32))
    targets = rng.integers(4, size=6).astype(np.int32)
    result, after = student.after("cross_entropy_grad", logits, targets)
    expected = cross_entropy_grad_by_autograd(logits.astype(np.float64), targets)
    close(result, expected.astype(np.float32), what="the gradient in float32")
    unchanged((logits, targets), after, "float32 logits")


# effective_support


def support_by_loops(weights):
    """exp(entropy) of each row, number by number; 0 for a row of zeros."""
    result = np.zeros(weights.shape[:-1])
    for row in np.ndindex(*weights.shape[:-1]):
        positive = [w for w in weights[row] if w > 0]
        result[row] = math.exp(-math.fsum(w * math.log(w) for w in positive)) if positive else 0.0
    return result


@hidden("effective_support", weight=2, hint="Entropy of each row with the natural logarithm, then its exponential.")
def test_support_is_the_exponential_of_the_entropy(student, rng):
    """Equals exp(−Σ w log w) for every row of a batch."""
    weights = draw_weights(rng, 2, 3, 6)
    close(student.effective_support(weights), support_by_loops(weights), what="the support")


@hidden("effective_support", hint="Weight spread evenly over k keys counts as k, wherever the other keys are 0.")
def test_support_of_k_equal_weights_is_k(student, rng):
    """Weight spread evenly over k of n keys has support k; one-hot has 1."""
    weights, counts = np.zeros((4, 9)), np.array([1, 3, 5, 9])
    for row, count in zip(weights, counts, strict=True):
        row[rng.permutation(9)[:count]] = 1 / count
    close(student.effective_support(weights), counts.astype(float), what="the support of even weights")


@hidden("effective_support", kind="edge", hint="A row of zeros reads no key. What does your formula make of it?")
def test_support_of_an_empty_row_is_zero(student, rng):
    """A row of zeros has support 0, and its neighbours, zeros among them, are as always."""
    weights = draw_weights(rng, 4, 6)
    weights[1] = 0
    weights[2, [0, 4]] = 0
    weights[2] /= weights[2].sum()
    close(student.effective_support(weights), support_by_loops(weights), what="the support with an empty row")


@hidden(
    "effective_support", kind="property", hint="Entropies of independent choices add; other measures of spread do not."
)
def test_support_multiplies_for_independent_choices(student, rng):
    """The support of a product distribution is the product of the supports, and order does not matter."""
    first, second = draw_weights(rng, 4, sharpness=1.4), draw_weights(rng, 5, sharpness=1.4)
    joint = np.outer(first, second).reshape(1, 20)
    expected = support_by_loops(first[None]) * support_by_loops(second[None])
    close(student.effective_support(joint), expected, what="the support of a product")
    close(student.effective_support(joint[:, rng.permutation(20)]), expected, what="the support after a permutation")


@hidden("effective_support", kind="edge", hint="Check the dtype, the arguments, and the shape with more batch axes.")
def test_support_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, arrays with gaps in memory work, the weights are not changed."""
    weights = draw_weights(rng, 2, 3, 4, 5).astype(np.float32)
    weights[0, 0, 0] = np.array([0.5, 0, 0.5, 0, 0])
    weights = strided(weights)
    result, after = student.after("effective_support", weights)
    close(result, support_by_loops(weights.astype(np.float64)).astype(np.float32), what="the support in float32")
    unchanged((weights,), after, "float32 weights")
