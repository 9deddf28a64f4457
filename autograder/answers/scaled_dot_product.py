"""Other right answers to chapter `scaled_dot_product`, and the mistakes people really make."""

import numpy as np

from autograder.answers import alternative, edit, mistake
from solutions.scaled_dot_product import softmax_vjp

# scaled_dot_product_attention


@alternative("scaled_dot_product_attention")
def einsum_and_masked_exponentials(query, key, value, mask=None, scale=None):
    factor = 1 / float(np.sqrt(query.shape[-1])) if scale is None else float(scale)
    scores = factor * np.einsum("...qd,...kd->...qk", query, key)
    allowed = np.ones(scores.shape, dtype=bool)
    if mask is not None:
        allowed = np.broadcast_to(mask[:, None] if (mask.ndim, scores.ndim) == (3, 4) else mask, scores.shape)
    lowest = np.finfo(scores.dtype).min
    top = np.max(scores, axis=-1, keepdims=True, where=allowed, initial=lowest)
    exps = np.exp(scores - top, where=allowed, out=np.zeros_like(scores))
    sums = np.einsum("...k->...", exps)[..., None]
    weights = np.divide(exps, sums, out=np.zeros_like(exps), where=sums > 0)
    return np.einsum("...qk,...kv->...qv", weights, value), weights


@alternative("scaled_dot_product_attention")
def one_query_at_a_time(query, key, value, mask=None, scale=None):
    lead, (q_seq, head_dim), (kv_seq, v_dim) = query.shape[:-2], query.shape[-2:], value.shape[-2:]
    if mask is None:
        mask = np.ones((q_seq, kv_seq), dtype=bool)
    if mask.ndim == 3 and len(lead) == 2:
        mask = np.expand_dims(mask, 1)
    mask = np.broadcast_to(mask, (*lead, q_seq, kv_seq))
    weights = np.zeros((*lead, q_seq, kv_seq), dtype=query.dtype)
    output = np.zeros((*lead, q_seq, v_dim), dtype=value.dtype)
    for index in np.ndindex(*lead, q_seq):
        seen = np.flatnonzero(mask[index])
        if seen.size:
            scores = key[index[:-1]][seen] @ query[index] * (head_dim**-0.5 if scale is None else scale)
            exps = np.exp(scores - scores.max())
            weights[index][seen] = exps / exps.sum()
            output[index] = weights[index][seen] @ value[index[:-1]][seen]
    return output, weights


edit(
    "scaled_dot_product_attention",
    "no_scale",
    replace="scale = query.shape[-1] ** -0.5",
    by="scale = 1.0",
    says="You take the softmax of the raw dot products; without the factor 1/√head_dim they are too far apart.",
    hint="By which factor does the spread of q·k grow with the width of a head?",
)
edit(
    "scaled_dot_product_attention",
    "divides_by_width",
    replace="scale = query.shape[-1] ** -0.5",
    by="scale = 1 / query.shape[-1]",
    says="You divide the scores by head_dim, and not by its square root.",
    hint="The variance of q·k is head_dim. Which factor brings the standard deviation back to 1?",
)
edit(
    "scaled_dot_product_attention",
    "multiplies_by_root",
    replace="scale = query.shape[-1] ** -0.5",
    by="scale = query.shape[-1] ** 0.5",
    says="You multiply the scores by √head_dim where they should be divided by it.",
    hint="Should the scores get larger or smaller by the scaling?",
)
edit(
    "scaled_dot_product_attention",
    "scale_from_value_width",
    replace="scale = query.shape[-1] ** -0.5",
    by="scale = value.shape[-1] ** -0.5",
    says="You take the scale from the width of the values; the scores are sums over the width of queries and keys.",
    hint="Over which axis does q·k sum? That axis's length is what the scale makes up for.",
)
edit(
    "scaled_dot_product_attention",
    "scale_from_key_count",
    replace="scale = query.shape[-1] ** -0.5",
    by="scale = key.shape[-2] ** -0.5",
    says="You take the scale from the number of keys; it belongs to the width of a head.",
    hint="Which axis of the key is summed over in q·k?",
)
edit(
    "scaled_dot_product_attention",
    "numpy_root_promotes",
    replace="scale = query.shape[-1] ** -0.5",
    by="scale = 1 / np.sqrt(query.shape[-1])",
    says="np.sqrt of an int is a NumPy float64, and multiplying float32 scores by it makes everything float64.",
    hint="A plain Python float leaves the dtype of an array alone; a NumPy float64 does not.",
)
edit(
    "scaled_dot_product_attention",
    "scale_ignored",
    replace="""    if scale is None:
        scale = query.shape[-1] ** -0.5
""",
    by="""    scale = query.shape[-1] ** -0.5
""",
    says="You always use 1/√head_dim, also when the caller gives a scale of their own.",
    hint="What is the argument `scale` for, when it is not None?",
)
edit(
    "scaled_dot_product_attention",
    "scale_on_top",
    replace="key.swapaxes(-1, -2) * scale",
    by="key.swapaxes(-1, -2) * (scale if scale == query.shape[-1] ** -0.5 else scale * query.shape[-1] ** -0.5)",
    says="You multiply a given scale on top of 1/√head_dim; it should stand in its place.",
    hint="With scale=1 the softmax should see the raw dot products.",
)
edit(
    "scaled_dot_product_attention",
    "zero_scale_means_none",
    replace="if scale is None:",
    by="if not scale:",
    says="`not scale` is true for a scale of 0 as well, so you replace a scale that was really given.",
    hint="Ask whether the argument is None, not whether it is false.",
)
edit(
    "scaled_dot_product_attention",
    "softmax_over_queries",
    replace="axis=-1",
    by="axis=-2",
    count=2,
    says="You normalise over the queries: each column sums to 1, where each row should.",
    hint="For one query, over what should its weights sum to 1? On which axis of the scores do those stand?",
)
edit(
    "scaled_dot_product_attention",
    "mask_inverted",
    replace="np.where(mask, scores, -np.inf)",
    by="np.where(mask, -np.inf, scores)",
    says="You hide what may be read: in this course True means may attend.",
    hint="Which entries keep their score, those where the mask is True or those where it is False?",
)
edit(
    "scaled_dot_product_attention",
    "mask_with_zero",
    replace="np.where(mask, scores, -np.inf)",
    by="np.where(mask, scores, 0.0)",
    says="You set hidden scores to 0, but a score of 0 still gets the weight e⁰/Z.",
    hint="Which score has an exponential of exactly 0?",
)
edit(
    "scaled_dot_product_attention",
    "mask_with_big_number",
    replace="np.where(mask, scores, -np.inf)",
    by="np.where(mask, scores, -1e9)",
    says="You hide keys with a large negative number, so a row in which all are hidden spreads its weight evenly.",
    hint="What does a softmax make of a row in which all scores are equal, however low?",
)
edit(
    "scaled_dot_product_attention",
    "mask_after_softmax",
    replace="""        scores = np.where(mask, scores, -np.inf)
    largest = scores.max(axis=-1, keepdims=True)
    exps = np.exp(scores - np.where(largest == -np.inf, 0, largest))
    total = exps.sum(axis=-1, keepdims=True)
    weights = exps / np.where(total == 0, 1, total)
""",
    by="""    exps = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = exps / exps.sum(axis=-1, keepdims=True)
    if mask is not None:
        weights = np.where(mask, weights, 0)
""",
    says="You set weights to 0 after the softmax, so what is left of a row no longer sums to 1.",
    hint="The hidden keys have taken their share before you remove them. When must they be gone?",
)
edit(
    "scaled_dot_product_attention",
    "renormalises_too_late",
    replace="""        scores = np.where(mask, scores, -np.inf)
    largest = scores.max(axis=-1, keepdims=True)
    exps = np.exp(scores - np.where(largest == -np.inf, 0, largest))
    total""",
    by="""    exps = np.exp(scores - scores.max(axis=-1, keepdims=True))
    if mask is not None:
        exps = np.where(mask, exps, 0)
    total""",
    says="You mask after the exponentials, which were taken relative to a hidden key: when that key scores far above "
    "the others, theirs are all rounded to 0.",
    hint="The largest score that you subtract should be the largest of those that may be read.",
)
edit(
    "scaled_dot_product_attention",
    "no_max_subtraction",
    replace="""    largest = scores.max(axis=-1, keepdims=True)
    exps = np.exp(scores - np.where(largest == -np.inf, 0, largest))
""",
    by="""    exps = np.exp(scores)
""",
    says="You exponentiate the raw scores, and beyond 709 their exponentials are infinite and the weights NaN.",
    hint="Softmax does not change when the same number is taken from every score of a row: which one helps?",
)
edit(
    "scaled_dot_product_attention",
    "empty_row_nan",
    replace="""np.exp(scores - np.where(largest == -np.inf, 0, largest))
    total = exps.sum(axis=-1, keepdims=True)
    weights = exps / np.where(total == 0, 1, total)
""",
    by="""np.exp(scores - largest)
    weights = exps / exps.sum(axis=-1, keepdims=True)
""",
    says="A row in which everything is hidden has largest score −∞, and −∞ − (−∞) is NaN.",
    hint="Give such a row a harmless number to subtract, and its sum of 0 a harmless divisor.",
)
edit(
    "scaled_dot_product_attention",
    "mask_without_head_axis",
    replace="""        if mask.ndim == 3 and scores.ndim == 4:
            mask = mask[:, None]
""",
    by="",
    says="A 3-D mask meets 4-D scores without a head axis, so its batch axis lands on the heads.",
    hint="NumPy lines axes up from the right. What stands above batch in a (batch, heads, q_seq, kv_seq) array then?",
)
edit(
    "scaled_dot_product_attention",
    "head_axis_in_any_mask",
    replace="if mask.ndim == 3 and scores.ndim == 4:",
    by="if scores.ndim == 4:",
    says="You give every mask a head axis, also a 4-D one that has it already.",
    hint="Which masks lack a head axis? Look at their number of axes.",
)
edit(
    "scaled_dot_product_attention",
    "returns_scores",
    replace="return weights @ value, weights",
    by="return weights @ value, scores",
    says="You return the scores as the second value; the weights are what the softmax makes of them.",
    hint="The second value should sum to 1 along the keys.",
)
edit(
    "scaled_dot_product_attention",
    "transposes_all_axes",
    replace="key.swapaxes(-1, -2)",
    by="key.T",
    says="`.T` reverses all axes of an array, the batch axes too; only the last two should change places.",
    hint="Which NumPy method swaps two given axes?",
)


edit(
    "scaled_dot_product_attention",
    "scales_the_query_in_place",
    replace="    scores = query @ key.swapaxes(-1, -2) * scale",
    by="    query *= scale\n    scores = query @ key.swapaxes(-1, -2)",
    says="`query *= scale` changes the caller's array: the second call with the same query sees another one.",
    hint="Make the scaled query a new array, or scale the scores.",
)


# softmax_with_temperature


@alternative("softmax_with_temperature")
def through_logsumexp(scores, temperature):
    if temperature < 0:
        raise ValueError("a temperature cannot be negative")
    largest = np.max(scores, axis=-1, keepdims=True)
    if temperature == 0:
        winners = np.equal(scores, largest)
        return np.divide(winners, np.count_nonzero(winners, axis=-1, keepdims=True)).astype(scores.dtype)
    with np.errstate(over="ignore"):
        logits = np.divide(scores - largest, temperature).astype(scores.dtype)
    return np.exp(logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True)))


edit(
    "softmax_with_temperature",
    "multiplies_by_temperature",
    replace="gaps / temperature",
    by="gaps * temperature",
    says="You multiply by the temperature, so that hotter gets sharper; the scores are divided by it.",
    hint="Which way should a high temperature push the weights: together or apart?",
)
edit(
    "softmax_with_temperature",
    "temperature_ignored",
    replace="gaps / temperature",
    by="gaps",
    says="Your weights do not depend on the temperature once it is above 0.",
    hint="Where does T stand in the formula?",
)
edit(
    "softmax_with_temperature",
    "temperature_after_softmax",
    replace="    return exps / exps.sum(axis=-1, keepdims=True)",
    by="    if temperature == 0:\n        return exps / exps.sum(axis=-1, keepdims=True)\n"
    "    exps = np.exp(gaps)\n    return exps / exps.sum(axis=-1, keepdims=True) / temperature",
    says="You divide the weights by the temperature, and not the scores: the rows no longer sum to 1.",
    hint="The temperature acts inside the exponential.",
)
edit(
    "softmax_with_temperature",
    "root_of_temperature",
    replace="gaps / temperature",
    by="gaps / temperature**0.5",
    says="You divide the scores by the square root of the temperature.",
    hint="√ belongs to the width of a head. Here the divisor is T itself.",
)
edit(
    "softmax_with_temperature",
    "no_max_subtraction",
    replace="np.exp(gaps / temperature)",
    by="np.exp(scores / temperature)",
    says="You exponentiate scores / T without taking the largest away, and large ones overflow.",
    hint="Which number can be subtracted from all scores of a row without changing the result?",
)
edit(
    "softmax_with_temperature",
    "divides_before_subtracting",
    replace="np.exp(gaps / temperature)",
    by="np.exp(scores / temperature - (scores / temperature).max(axis=-1, keepdims=True))",
    says="You divide first and subtract then: at a tiny temperature several quotients are infinite, and ∞ − ∞ is NaN.",
    hint="Change the order of the two steps: a gap of 0 stays 0 whatever you divide it by.",
)
edit(
    "softmax_with_temperature",
    "normalises_over_everything",
    replace="exps.sum(axis=-1, keepdims=True)",
    by="exps.sum()",
    says="You normalise over the whole array, so that all rows together sum to 1.",
    hint="Each row should sum to 1 by itself.",
)
edit(
    "softmax_with_temperature",
    "normalises_over_rows",
    replace="axis=-1",
    by="axis=0",
    count=2,
    says="You normalise along the first axis; the scores of one row stand along the last.",
    hint="Which axis is the last one, for any number of axes?",
)
edit(
    "softmax_with_temperature",
    "first_winner_takes_all",
    replace="exps = (gaps == 0).astype(scores.dtype)",
    by="exps = np.eye(scores.shape[-1], dtype=scores.dtype)[scores.argmax(axis=-1)]",
    says="At T = 0 the first of several equal largest scores takes everything; they should share.",
    hint="argmax returns one index. How would you find all places where the largest score stands?",
)
edit(
    "softmax_with_temperature",
    "winners_do_not_share",
    replace="        exps = (gaps == 0).astype(scores.dtype)",
    by="        return (gaps == 0).astype(scores.dtype)",
    says="At T = 0 each of several equal largest scores gets weight 1, so the row sums to more than 1.",
    hint="Divide by the number of winners in the row.",
)
edit(
    "softmax_with_temperature",
    "zero_as_small_number",
    replace="    if temperature == 0:",
    by="    temperature = max(temperature, 1e-9)\n    if temperature == 0:",
    says="You replace T = 0 by a small number, so scores closer than that still share the weight.",
    hint="At T = 0 only exactly equal scores share. Which comparison finds them?",
)
edit(
    "softmax_with_temperature",
    "zero_refused",
    replace="if temperature < 0:",
    by="if temperature <= 0:",
    says="You refuse T = 0, which is allowed and means argmax.",
    hint="Only a negative temperature is an error.",
)
edit(
    "softmax_with_temperature",
    "negative_allowed",
    replace="""    if temperature < 0:
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
""",
    by="",
    says="You accept a negative temperature, which would favour the lowest score.",
    hint="Raise ValueError before anything is computed.",
)
edit(
    "softmax_with_temperature",
    "infinity_refused",
    replace="if temperature < 0:",
    by="if temperature < 0 or temperature == float('inf'):",
    says="You refuse an infinite temperature, which is allowed and gives uniform weights.",
    hint="A finite gap divided by infinity is 0, and the formula needs no special case.",
)
edit(
    "softmax_with_temperature",
    "zero_forgets_dtype",
    replace="(gaps == 0).astype(scores.dtype)",
    by="(gaps == 0).astype(float)",
    says="At T = 0 your weights are float64, also for float32 scores.",
    hint="A comparison gives booleans. Which dtype should they become?",
)


# softmax_jacobian


@alternative("softmax_jacobian")
def diagonal_minus_outer(probs):
    n = probs.shape[-1]
    jacobian = -np.einsum("...i,...j->...ij", probs, probs)
    jacobian[..., np.arange(n), np.arange(n)] += probs
    return jacobian


edit(
    "softmax_jacobian",
    "outer_product_only",
    replace="(delta - probs[..., None, :])",
    by="(0 * delta - probs[..., None, :])",
    says="You have −p pᵀ, but the diagonal lacks the term pᵢ.",
    hint="What is δᵢⱼ on the diagonal, and what does it multiply?",
)
edit(
    "softmax_jacobian",
    "diagonal_only",
    replace="probs[..., :, None] * (delta - probs[..., None, :])",
    by="probs[..., :, None] * (1 - probs[..., :, None]) * delta",
    says="You have only the diagonal p(1 − p), as for a sigmoid; raising one score also lowers the other weights.",
    hint="Push one score up: which weights change?",
)
edit(
    "softmax_jacobian",
    "sign_flipped",
    replace="(delta - probs[..., None, :])",
    by="(probs[..., None, :] - delta)",
    says="All your signs are flipped: raising a score must raise its own weight.",
    hint="The diagonal pᵢ(1 − pᵢ) is positive.",
)
edit(
    "softmax_jacobian",
    "identity_minus_outer",
    replace="probs[..., :, None] * (delta - probs[..., None, :])",
    by="delta - probs[..., :, None] * probs[..., None, :]",
    says="You have I − p pᵀ; the first term should be diag(p).",
    hint="Does pᵢ multiply both terms of the bracket?",
)
edit(
    "softmax_jacobian",
    "plus_outer",
    replace="(delta - probs[..., None, :])",
    by="(delta + probs[..., None, :])",
    says="You add p pᵀ where it is to be subtracted, so your rows do not sum to 0.",
    hint="Raising one score lowers the other weights: which sign have the entries off the diagonal?",
)
edit(
    "softmax_jacobian",
    "wrong_index",
    replace="probs[..., :, None] * (delta - probs[..., None, :])",
    by="probs[..., :, None] * (delta - probs[..., :, None])",
    says="Both factors use pᵢ; the one in the bracket should be pⱼ.",
    hint="A symmetric matrix needs one factor along its rows and one along its columns.",
)
edit(
    "softmax_jacobian",
    "softmax_twice",
    replace="    delta = np.eye",
    by="    probs = np.exp(probs) / np.exp(probs).sum(axis=-1, keepdims=True)\n    delta = np.eye",
    says="You take the softmax of probs, which already is the output of one.",
    hint="The formula needs nothing but p. What is passed in?",
)
edit(
    "softmax_jacobian",
    "batch_summed",
    replace="    delta = np.eye",
    by="    probs = probs.reshape(-1, probs.shape[-1]).mean(axis=0)\n    delta = np.eye",
    says="You make one matrix for the whole batch; each row has its own.",
    hint="Let the leading axes stand, and add one axis at the end.",
)
edit(
    "softmax_jacobian",
    "one_row_only",
    replace="probs[..., :, None] * (delta - probs[..., None, :])",
    by="np.diag(probs) - np.outer(probs, probs)",
    says="np.diag and np.outer know a single row only; for a batch they do something else.",
    hint="Replace the outer product by two views of probs with an axis of length 1 each.",
)
edit(
    "softmax_jacobian",
    "identity_promotes",
    replace="np.eye(probs.shape[-1], dtype=probs.dtype)",
    by="np.eye(probs.shape[-1])",
    says="np.eye makes float64, and so your Jacobian of float32 weights is float64.",
    hint="np.eye takes a dtype.",
)
edit(
    "softmax_jacobian",
    "last_score_dropped",
    replace="    return probs[..., :, None] * (delta - probs[..., None, :])",
    by="    return (probs[..., :, None] * (delta - probs[..., None, :]))[..., :-1]",
    says="Your matrix has one column too few; the rank is n − 1, but there are n scores.",
    hint="n outputs and n inputs make an n × n matrix, even if its columns depend on each other.",
)


# softmax_vjp


@alternative("softmax_vjp")
def einsum_row_means(probs, upstream):
    mean = np.einsum("...n,...n->...", probs, upstream)
    return np.multiply(probs, upstream) - probs * mean[..., np.newaxis]


edit(
    "softmax_vjp",
    "elementwise_derivative",
    replace="""    expected = (probs * upstream).sum(axis=-1, keepdims=True)
    return probs * (upstream - expected)""",
    by="""    return probs * (1 - probs) * upstream""",
    says="You use p(1 − p), the slope of a sigmoid; each score also moves all other weights of its row.",
    hint="The terms with i ≠ j are missing from Σᵢ gᵢ J[i, j].",
)
edit(
    "softmax_vjp",
    "forgets_the_coupling",
    replace="probs * (upstream - expected)",
    by="probs * upstream",
    says="You have the term with δ only; that the weights of a row sum to 1 is not in it.",
    hint="Your result should not change when a constant is added to g.",
)
edit(
    "softmax_vjp",
    "plain_mean",
    replace="(probs * upstream).sum(axis=-1, keepdims=True)",
    by="upstream.mean(axis=-1, keepdims=True)",
    says="You subtract the plain mean of g; it should be its mean under the weights p.",
    hint="Where does pᵢ stand in Σᵢ gᵢ pᵢ pⱼ?",
)
edit(
    "softmax_vjp",
    "mean_of_products",
    replace="(probs * upstream).sum(axis=-1, keepdims=True)",
    by="(probs * upstream).mean(axis=-1, keepdims=True)",
    says="You divide Σ p g by n; the weights p sum to 1 already.",
    hint="A mean under weights that sum to 1 is just the sum.",
)
edit(
    "softmax_vjp",
    "unweighted_sum",
    replace="(probs * upstream).sum(axis=-1, keepdims=True)",
    by="upstream.sum(axis=-1, keepdims=True)",
    says="You subtract the plain sum of g; each gᵢ should be weighted by pᵢ.",
    hint="Where does pᵢ stand in Σᵢ gᵢ pᵢ pⱼ?",
)
edit(
    "softmax_vjp",
    "missing_outer_factor",
    replace="return probs * (upstream - expected)",
    by="return upstream - expected",
    says="The factor pⱼ in front is missing: keys of weight 0 must get no gradient.",
    hint="Both sums in Jᵀg contain pⱼ.",
)
edit(
    "softmax_vjp",
    "sign_flipped",
    replace="(upstream - expected)",
    by="(expected - upstream)",
    says="Your gradient points the other way.",
    hint="If only g of one key is positive, raising that key's score must help.",
)
edit(
    "softmax_vjp",
    "mean_over_everything",
    replace="(probs * upstream).sum(axis=-1, keepdims=True)",
    by="(probs * upstream).sum()",
    says="You sum p g over the whole array; every row has a mean of its own.",
    hint="Sum along the last axis and keep that axis.",
)
edit(
    "softmax_vjp",
    "mean_over_rows",
    replace="(probs * upstream).sum(axis=-1, keepdims=True)",
    by="(probs * upstream).sum(axis=0, keepdims=True)",
    says="You sum p g along the first axis; the weights of one softmax stand along the last.",
    hint="Along which axis does probs sum to 1?",
)
edit(
    "softmax_vjp",
    "softmax_twice",
    replace="    expected = (probs",
    by="    probs = np.exp(probs) / np.exp(probs).sum(axis=-1, keepdims=True)\n    expected = (probs",
    says="You take the softmax of probs, which already is the output of one.",
    hint="Nothing but p and g is needed.",
)
edit(
    "softmax_vjp",
    "changes_upstream",
    replace="return probs * (upstream - expected)",
    by="upstream -= expected\n    return probs * upstream",
    says="`-=` changes the caller's gradient, which may be used elsewhere.",
    hint="Make the difference a new array.",
)
edit(
    "softmax_vjp",
    "through_the_jacobian",
    replace="""    expected = (probs * upstream).sum(axis=-1, keepdims=True)
    return probs * (upstream - expected)""",
    by="""    jacobian = softmax_jacobian(probs)
    return (jacobian.swapaxes(-1, -2) @ upstream[..., None])[..., 0]""",
    says="Your values are right, but you build the n × n Jacobian, which for long rows takes gigabytes.",
    hint="Multiply the formula out before you compute it: one of its two sums is a single number for each row.",
)


@mistake(
    "softmax_vjp",
    says="Your values are right, but you go along the row in Python and do n² work.",
    hint="The sum over i is the same for every j: compute it once.",
)
def column_by_column(probs, upstream):
    result = np.zeros_like(probs)
    for j in range(probs.shape[-1]):
        column = -probs * probs[..., j : j + 1]
        column[..., j] += probs[..., j]
        result[..., j] = (column * upstream).sum(axis=-1)
    return result


# causal_mask


@alternative("causal_mask")
def triangle_of_ones(q_seq, kv_seq):
    return np.tri(q_seq, kv_seq, kv_seq - q_seq, dtype=bool)


edit(
    "causal_mask",
    "top_left_aligned",
    replace="np.arange(q_seq) + kv_seq - q_seq",
    by="np.arange(q_seq)",
    says="You put the first query at the first key; the queries are the last positions, so the last query stands at "
    "the last key.",
    hint="A single new token must be able to read the whole cache. At which position does query i stand?",
)
edit(
    "causal_mask",
    "inverted",
    replace="<= positions",
    by="> positions",
    says="Your mask is True where the key lies in the future; in this course True means may attend.",
    hint="Which side of the diagonal may be read?",
)
edit(
    "causal_mask",
    "not_oneself",
    replace="<= positions",
    by="< positions",
    says="You hide the query's own position, and so leave the very first token with nothing to read.",
    hint="At or before, or only before?",
)
edit(
    "causal_mask",
    "one_step_ahead",
    replace="<= positions",
    by="<= 1 + positions",
    says="Each query sees one key of the future, which is the token that it has to predict.",
    hint="What does the first of three queries see among three keys?",
)
edit(
    "causal_mask",
    "transposed",
    replace="    return np.arange(kv_seq) <= positions[:, None]",
    by="    return np.arange(kv_seq)[:, None] <= positions",
    says="Rows and columns have changed places: rows are queries, columns are keys.",
    hint="Which of the two position vectors needs the extra axis?",
)
edit(
    "causal_mask",
    "square",
    replace="    positions = np.arange(q_seq) + kv_seq - q_seq\n    return np.arange(kv_seq)",
    by="    positions = np.arange(q_seq)\n    return np.arange(q_seq)",
    says="Your mask is always square; there may be more keys than queries.",
    hint="The shape is (q_seq, kv_seq).",
)
edit(
    "causal_mask",
    "offset_never_negative",
    replace="np.arange(q_seq) + kv_seq - q_seq",
    by="np.arange(q_seq) + max(kv_seq - q_seq, 0)",
    says="With more queries than keys you fall back to top-left alignment; the first rows should be empty.",
    hint="The formula i + kv_seq − q_seq holds for a negative offset as well.",
)
edit(
    "causal_mask",
    "distance_for_offset",
    replace="np.arange(q_seq) + kv_seq - q_seq",
    by="np.arange(q_seq) + abs(kv_seq - q_seq)",
    says="You shift by the absolute difference of the lengths, which is wrong when there are more queries than keys.",
    hint="Where does the first of five queries stand when there are three keys?",
)
edit(
    "causal_mask",
    "numbers_for_booleans",
    replace="    return np.arange(kv_seq) <= positions[:, None]",
    by="    return (np.arange(kv_seq) <= positions[:, None]).astype(float)",
    says="Your mask holds numbers; a mask is boolean, so that it can be combined with & and inverted with ~.",
    hint="A comparison of two arrays already is what is asked for.",
)
edit(
    "causal_mask",
    "additive_bias",
    replace="    return np.arange(kv_seq) <= positions[:, None]",
    by="    return np.where(np.arange(kv_seq) <= positions[:, None], 0.0, -np.inf)",
    says="You return a bias of 0 and −∞ to be added to scores; the contract asks for a boolean mask.",
    hint="Leave −∞ to the function that uses the mask.",
)


# padding_mask


@alternative("padding_mask")
def filled_row_by_row(lengths, kv_seq):
    mask = np.zeros((len(lengths), 1, kv_seq), dtype=bool)
    for row, length in zip(mask, lengths.tolist(), strict=True):
        if not 0 <= length <= kv_seq:
            raise ValueError(f"no sequence of {length} fits into {kv_seq} keys")
        row[0, :length] = True
    return mask


edit(
    "padding_mask",
    "no_query_axis",
    replace="lengths[:, None, None]",
    by="lengths[:, None]",
    says="Your mask is (batch, kv_seq); against (q_seq, kv_seq) its batch axis would land on the queries.",
    hint="An axis of length 1 between batch and keys stands for all queries.",
)
edit(
    "padding_mask",
    "head_axis_too",
    replace="lengths[:, None, None]",
    by="lengths[:, None, None, None]",
    says="Your mask has four axes; the head axis is added by the function that needs it.",
    hint="The contract says (batch, 1, kv_seq).",
)
edit(
    "padding_mask",
    "query_axis_last",
    replace="    return np.arange(kv_seq) < lengths[:, None, None]",
    by="    return (np.arange(kv_seq) < lengths[:, None])[..., None]",
    says="Your mask is (batch, kv_seq, 1), which hides queries and not keys.",
    hint="Keys stand along the last axis of the scores.",
)
edit(
    "padding_mask",
    "inverted",
    replace="    return np.arange(kv_seq) < lengths[:, None, None]",
    by="    return np.arange(kv_seq) >= lengths[:, None, None]",
    says="Your mask is True at the padding; in this course True means may attend.",
    hint="nn.MultiheadAttention's key_padding_mask means the opposite of ours.",
)
edit(
    "padding_mask",
    "one_too_many",
    replace="np.arange(kv_seq) < lengths",
    by="np.arange(kv_seq) <= lengths",
    says="You let one key of padding through: positions are counted from 0.",
    hint="At which position does the last real key of a sequence of length 3 stand?",
)
edit(
    "padding_mask",
    "pads_on_the_left",
    replace="    return np.arange(kv_seq) < lengths[:, None, None]",
    by="    return np.arange(kv_seq) >= kv_seq - lengths[:, None, None]",
    says="You keep the last keys of each row; the real ones come first and the padding follows.",
    hint="On which side is the padding?",
)
edit(
    "padding_mask",
    "same_length_for_all",
    replace="np.arange(kv_seq) < lengths[:, None, None]",
    by="np.arange(kv_seq) < np.full_like(lengths, lengths.max())[:, None, None]",
    says="You use the longest length for every sequence.",
    hint="Each sequence of the batch has its own length.",
)
edit(
    "padding_mask",
    "numbers_for_booleans",
    replace="    return np.arange(kv_seq) < lengths[:, None, None]",
    by="    return (np.arange(kv_seq) < lengths[:, None, None]).astype(float)",
    says="Your mask holds numbers; a mask is boolean, so that it can be combined with &.",
    hint="A comparison of two arrays already is what is asked for.",
)
edit(
    "padding_mask",
    "lengths_unchecked",
    replace="""    if (lengths < 0).any() or (lengths > kv_seq).any():
        raise ValueError(f"every length must lie between 0 and kv_seq = {kv_seq}")
""",
    by="",
    says="You accept lengths that cannot be: below 0 or above kv_seq. A mask made of them hides an error made earlier.",
    hint="Check both ends before you compare, and raise ValueError.",
)
edit(
    "padding_mask",
    "negative_unchecked",
    replace="(lengths < 0).any() or ",
    by="",
    says="You refuse lengths above kv_seq, but accept negative ones.",
    hint="A length has two limits.",
)
edit(
    "padding_mask",
    "too_long_unchecked",
    replace=" or (lengths > kv_seq).any()",
    by="",
    says="You refuse negative lengths, but accept those above kv_seq.",
    hint="A length has two limits.",
)
edit(
    "padding_mask",
    "full_sequence_refused",
    replace="(lengths > kv_seq)",
    by="(lengths >= kv_seq)",
    says="You refuse a sequence that fills all keys; it just has no padding.",
    hint="Length kv_seq is allowed.",
)
edit(
    "padding_mask",
    "empty_sequence_refused",
    replace="(lengths < 0)",
    by="(lengths <= 0)",
    says="You refuse a sequence of length 0; its row is all False.",
    hint="Length 0 is allowed.",
)


# attention_vjp


@alternative("attention_vjp")
def einsum_with_delta(query, key, value, upstream, mask=None):
    scale = 1.0 / float(query.shape[-1]) ** 0.5
    scores = np.einsum("...qd,...kd->...qk", query, key) * scale
    if mask is not None:
        allowed = mask[:, None] if mask.ndim == 3 and scores.ndim == 4 else mask
        scores = np.where(allowed, scores, -np.inf)
    top = np.maximum(scores.max(axis=-1, keepdims=True), np.finfo(scores.dtype).min)
    probs = np.exp(scores - top)
    probs /= np.maximum(probs.sum(axis=-1, keepdims=True), np.finfo(scores.dtype).tiny)
    delta = np.einsum("...qv,...qk,...kv->...q", upstream, probs, value, optimize=True)[..., None]
    scores_grad = probs * (np.einsum("...qv,...kv->...qk", upstream, value) - delta)
    return (
        np.einsum("...qk,...kd->...qd", scores_grad, key) * scale,
        np.einsum("...qk,...qd->...kd", scores_grad, query) * scale,
        np.einsum("...qk,...qv->...kv", probs, upstream),
    )


edit(
    "attention_vjp",
    "no_scale_backwards",
    replace="softmax_vjp(weights, weights_grad) * query.shape[-1] ** -0.5",
    by="softmax_vjp(weights, weights_grad)",
    says="The factor 1/√head_dim is missing on the way back: query and key gradients are √head_dim times too large.",
    hint="The scores are q·k times a constant. What does a constant factor do to a derivative?",
)
edit(
    "attention_vjp",
    "scale_twice",
    replace="softmax_vjp(weights, weights_grad) * query.shape[-1] ** -0.5",
    by="softmax_vjp(weights, weights_grad) / query.shape[-1]",
    says="The scale enters twice on the way back; the scores contain it once.",
    hint="Count how often the factor stands between the score and q·k.",
)
edit(
    "attention_vjp",
    "scale_on_the_query_only",
    replace="key_grad = scores_grad.swapaxes(-1, -2) @ query",
    by="key_grad = scores_grad.swapaxes(-1, -2) @ query * query.shape[-1] ** 0.5",
    says="Your key gradient lacks the scale; the scores are scaled for both factors.",
    hint="Scale the gradient of the scores once, before it is sent to the query and to the key.",
)
edit(
    "attention_vjp",
    "scale_on_the_value",
    replace="value_grad = weights.swapaxes(-1, -2) @ upstream",
    by="value_grad = weights.swapaxes(-1, -2) @ upstream * query.shape[-1] ** -0.5",
    says="You scale the value gradient as well; the values never met the scale.",
    hint="output = weights @ value. Is there a scale in it?",
)
edit(
    "attention_vjp",
    "order_of_results",
    replace="return query_grad, key_grad, value_grad",
    by="return value_grad, key_grad, query_grad",
    says="Your three gradients come in the wrong order: query, key, value is asked for.",
    hint="Compare the shape of each result with its input.",
)
edit(
    "attention_vjp",
    "softmax_skipped",
    replace="softmax_vjp(weights, weights_grad)",
    by="weights_grad",
    says="You pass the gradient of the weights on as if it were that of the scores; the softmax lies between them.",
    hint="Which function of this chapter goes back through a softmax?",
)
edit(
    "attention_vjp",
    "elementwise_softmax",
    replace="softmax_vjp(weights, weights_grad)",
    by="weights * (1 - weights) * weights_grad",
    says="You go back through the softmax with p(1 − p) alone, as if each weight depended on its own score only.",
    hint="The weights of a row are coupled. Use the function that you wrote for that.",
)
edit(
    "attention_vjp",
    "coupling_forgotten",
    replace="softmax_vjp(weights, weights_grad)",
    by="weights * weights_grad",
    says="You multiply by the weights, but leave out what the other scores of the row do.",
    hint="With equal values no score matters, so the gradients of query and key must vanish. Do yours?",
)
edit(
    "attention_vjp",
    "plain_mean_subtracted",
    replace="softmax_vjp(weights, weights_grad)",
    by="weights * (weights_grad - weights_grad.mean(axis=-1, keepdims=True))",
    says="You subtract the plain mean along the keys; the mean under the weights is needed.",
    hint="Σᵢ pᵢ gᵢ, with the weights of the row as p.",
)
edit(
    "attention_vjp",
    "mask_ignored",
    replace="scaled_dot_product_attention(query, key, value, mask)",
    by="scaled_dot_product_attention(query, key, value)",
    says="You take the forward pass without the mask, so hidden keys receive gradient.",
    hint="The weights on the way back must be those of the way forth.",
)
edit(
    "attention_vjp",
    "mask_as_scale",
    replace="    value_grad = weights",
    by="    weights = scaled_dot_product_attention(query, key, value)[1] if mask is None else (\n"
    "        scaled_dot_product_attention(query, key, value)[1] * (mask[:, None] if mask.ndim < query.ndim else mask)\n"
    "    )\n    value_grad = weights",
    says="You multiply the unmasked weights by the mask; the visible ones then do not sum to 1.",
    hint="Hand the mask to the forward pass.",
)
edit(
    "attention_vjp",
    "batch_summed",
    replace="return query_grad, key_grad, value_grad",
    by="return tuple(g.sum(axis=tuple(range(g.ndim - 2))) for g in (query_grad, key_grad, value_grad))",
    says="You add up the gradients over the batch; every sequence has its own queries, keys and values.",
    hint="A gradient has the shape of its input.",
)
edit(
    "attention_vjp",
    "weights_not_transposed",
    replace="value_grad = weights.swapaxes(-1, -2) @ upstream",
    by="value_grad = weights @ upstream",
    says="You multiply upstream by the weights as in the forward pass; on the way back they are transposed.",
    hint="Each value collects from all queries that read it. Which axis is summed?",
)
edit(
    "attention_vjp",
    "through_the_jacobian",
    replace="softmax_vjp(weights, weights_grad)",
    by="np.einsum('...qij,...qi->...qj', softmax_jacobian(weights), weights_grad)",
    says="Your values are right, but you build a Jacobian for every query: kv_seq times the memory of the weights.",
    hint="You have written the product with the Jacobian without the Jacobian.",
)


@mistake(
    "attention_vjp",
    says="A query that may attend to nothing gives NaN: your own forward pass divides 0 by 0 there.",
    hint="Use the forward pass of the first exercise, or guard the empty row as you did there.",
)
def empty_row_nan(query, key, value, upstream, mask=None):
    scale = query.shape[-1] ** -0.5
    scores = query @ key.swapaxes(-1, -2) * scale
    if mask is not None:
        scores = np.where(mask[:, None] if mask.ndim == 3 and scores.ndim == 4 else mask, scores, -np.inf)
    with np.errstate(invalid="ignore"):
        exps = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = exps / exps.sum(axis=-1, keepdims=True)
        scores_grad = softmax_vjp(weights, upstream @ value.swapaxes(-1, -2)) * scale
        return scores_grad @ key, scores_grad.swapaxes(-1, -2) @ query, weights.swapaxes(-1, -2) @ upstream


@mistake(
    "attention_vjp",
    says="Your own forward pass exponentiates raw scores, which overflow when they are large.",
    hint="Use the forward pass of the first exercise, or subtract the largest score of each row.",
)
def no_max_subtraction(query, key, value, upstream, mask=None):
    scale = query.shape[-1] ** -0.5
    with np.errstate(all="ignore"):
        exps = np.exp(query @ key.swapaxes(-1, -2) * scale)
        if mask is not None:
            exps = np.where(mask[:, None] if mask.ndim == 3 and exps.ndim == 4 else mask, exps, 0)
        total = exps.sum(axis=-1, keepdims=True)
        weights = exps / np.where(total == 0, 1, total)
        scores_grad = softmax_vjp(weights, upstream @ value.swapaxes(-1, -2)) * scale
        return scores_grad @ key, scores_grad.swapaxes(-1, -2) @ query, weights.swapaxes(-1, -2) @ upstream


# cross_entropy_grad


@alternative("cross_entropy_grad")
def flattened_and_subtracted_in_place(logits, targets, label_smoothing=0.0):
    rows = logits.reshape(-1, logits.shape[-1]).copy()
    count, classes = rows.shape
    rows -= rows.max(axis=1, keepdims=True)
    grad = np.exp(rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)))
    grad[np.arange(count), np.ravel(targets)] -= 1 - label_smoothing
    grad -= label_smoothing / classes
    return (grad / count).reshape(logits.shape)


edit(
    "cross_entropy_grad",
    "sum_not_mean",
    replace="(probs - wanted) / targets.size",
    by="probs - wanted",
    says="You give the gradient of the summed loss; the loss is a mean over the rows.",
    hint="How many rows share the loss?",
)
edit(
    "cross_entropy_grad",
    "sign_flipped",
    replace="(probs - wanted)",
    by="(wanted - probs)",
    says="You have y − p, which is the direction to walk in; the gradient is p − y.",
    hint="Raising the logit of a wrong class must raise the loss.",
)
edit(
    "cross_entropy_grad",
    "divides_by_everything",
    replace="/ targets.size",
    by="/ logits.size",
    says="You divide by the number of logits; the mean is over rows, not over rows and classes.",
    hint="How many losses are averaged?",
)
edit(
    "cross_entropy_grad",
    "divides_by_classes",
    replace="/ targets.size",
    by="/ classes",
    says="You divide by the number of classes; the mean is over the rows.",
    hint="How many losses are averaged?",
)
edit(
    "cross_entropy_grad",
    "counts_the_first_axis_only",
    replace="/ targets.size",
    by="/ len(targets)",
    says="You divide by the length of the first axis; with more leading axes there are more rows than that.",
    hint="How many rows have targets of shape (2, 3)?",
)
edit(
    "cross_entropy_grad",
    "smoothing_ignored",
    replace="(1 - label_smoothing) * right + label_smoothing / classes",
    by="right",
    says="You ignore label_smoothing.",
    hint="The target distribution is a mixture of two. Which weights do they have?",
)
edit(
    "cross_entropy_grad",
    "smoothing_on_wrong_classes",
    replace="(1 - label_smoothing) * right + label_smoothing / classes",
    by="(1 - label_smoothing) * right + label_smoothing / (classes - 1) * (1 - right)",
    says="You spread ε over the wrong classes only; in this contract (and in torch) every class gets ε/classes.",
    hint="What is y at the right class: 1 − ε, or a little more?",
)
edit(
    "cross_entropy_grad",
    "smoothing_added",
    replace="(1 - label_smoothing) * right + label_smoothing / classes",
    by="right + label_smoothing / classes",
    says="You add ε/classes everywhere without taking ε from the right class, so y sums to more than 1.",
    hint="y is a distribution, and the rows of p − y sum to 0.",
)
edit(
    "cross_entropy_grad",
    "no_max_subtraction",
    replace="np.exp(logits - logits.max(axis=-1, keepdims=True))",
    by="np.exp(logits)",
    says="You exponentiate the raw logits, and large ones overflow to inf and NaN.",
    hint="Subtract from each row the number that makes its largest exponential 1.",
)
edit(
    "cross_entropy_grad",
    "softmax_over_the_batch",
    replace="exps.sum(axis=-1, keepdims=True)",
    by="exps.sum(axis=0, keepdims=True)",
    says="You normalise along the first axis; the classes stand along the last.",
    hint="For each row, the probabilities of the classes sum to 1.",
)
edit(
    "cross_entropy_grad",
    "squared_error",
    replace="    return (probs - wanted) / targets.size",
    by="    return softmax_vjp(probs, 2 * (probs - wanted)) / targets.size",
    says="That is the gradient of the squared error on the probabilities; cross-entropy removes the softmax Jacobian.",
    hint="Multiply the Jacobian diag(p) − p pᵀ by the gradient −y/p of the cross-entropy and simplify.",
)
edit(
    "cross_entropy_grad",
    "right_class_only",
    replace="(probs - wanted)",
    by="(right * (probs - wanted))",
    says="You keep the entry of the right class only; the logits of the wrong classes get gradients too.",
    hint="What pushes the wrong logits down?",
)
edit(
    "cross_entropy_grad",
    "probabilities_only",
    replace="(probs - wanted)",
    by="(probs)",
    says="You return p without subtracting y.",
    hint="Surely right means gradient 0.",
)
edit(
    "cross_entropy_grad",
    "identity_promotes",
    replace="np.eye(classes, dtype=logits.dtype)",
    by="np.eye(classes)",
    says="np.eye makes float64, and so your gradient of float32 logits is float64.",
    hint="np.eye takes a dtype.",
)
edit(
    "cross_entropy_grad",
    "changes_the_logits",
    replace="    exps = np.exp(logits - logits.max(axis=-1, keepdims=True))",
    by="    logits -= logits.max(axis=-1, keepdims=True)\n    exps = np.exp(logits)",
    says="`-=` changes the caller's logits.",
    hint="Make the shifted logits a new array.",
)


# effective_support


@alternative("effective_support")
def product_of_powers(weights):
    powers = np.power(weights, -weights, where=weights > 0, out=np.ones_like(weights))
    return np.prod(powers, axis=-1) * (weights.max(axis=-1) > 0)


edit(
    "effective_support",
    "entropy_itself",
    replace="np.exp(entropy)",
    by="entropy",
    says="You return the entropy; the support is its exponential.",
    hint="Weight spread evenly over k keys should give k, and not log k.",
)
edit(
    "effective_support",
    "mixed_bases",
    replace="np.log(np.where(weights > 0, weights, 1))",
    by="np.log2(np.where(weights > 0, weights, 1))",
    says="You take the logarithm to base 2 and the exponential to base e.",
    hint="Logarithm and exponential must undo each other.",
)
edit(
    "effective_support",
    "participation_ratio",
    replace="np.exp(entropy)",
    by="1 / np.where(weights.any(axis=-1), (weights**2).sum(axis=-1), 1)",
    says="1/Σw² is another measure of spread; the contract asks for the exponential of the entropy.",
    hint="Both give k for k equal weights. Which one is built from w log w?",
)
edit(
    "effective_support",
    "counts_nonzero",
    replace="np.exp(entropy)",
    by="(weights > 0).sum(axis=-1).astype(weights.dtype)",
    says="You count the weights above 0; a tiny weight should count for almost nothing.",
    hint="The entropy knows how unequal the weights are.",
)
edit(
    "effective_support",
    "epsilon_in_the_log",
    replace="np.log(np.where(weights > 0, weights, 1))",
    by="np.log(weights + 1e-6)",
    says="You add a small number inside the logarithm to keep it finite, which bends every row a little.",
    hint="Change the argument of the logarithm only where the weight is exactly 0.",
)
edit(
    "effective_support",
    "zero_times_log_zero",
    replace="np.log(np.where(weights > 0, weights, 1))",
    by="np.log(weights)",
    says="0 · log 0 is NaN in NumPy, and one weight of 0 spoils the whole row.",
    hint="Give the logarithm another argument where the weight is 0; the product is 0 anyway.",
)
edit(
    "effective_support",
    "empty_row_counts_one",
    replace="np.where(weights.any(axis=-1), np.exp(entropy), 0)",
    by="np.exp(entropy)",
    says="A row of zeros has entropy 0 and comes out as 1 key; it reads none.",
    hint="Which rows hold no weight at all?",
)
edit(
    "effective_support",
    "sign_forgotten",
    replace="-(weights * logs)",
    by="(weights * logs)",
    says="The minus sign of the entropy is missing, so you return 1/support.",
    hint="log w is negative for w < 1, and entropy is not.",
)
edit(
    "effective_support",
    "one_number_for_all_rows",
    replace="np.where(weights.any(axis=-1), np.exp(entropy), 0)",
    by="np.where(weights.any(axis=-1), np.exp(entropy), 0).mean()",
    says="You average over the rows; each row has its own support.",
    hint="(..., n) goes in and (...) comes out.",
)
edit(
    "effective_support",
    "mean_for_sum",
    replace="(weights * logs).sum(axis=-1)",
    by="(weights * logs).mean(axis=-1)",
    says="You take the mean of w log w along the row; the entropy is its sum.",
    hint="The weights w already average.",
)
edit(
    "effective_support",
    "axis_kept",
    replace="    return np.where(weights.any(axis=-1), np.exp(entropy), 0)",
    by="    return np.where(weights.any(axis=-1), np.exp(entropy), 0)[..., None]",
    says="Your result has a last axis of length 1 too many.",
    hint="(..., n) goes in and (...) comes out.",
)
edit(
    "effective_support",
    "sum_over_first_axis",
    replace="axis=-1",
    by="axis=0",
    count=2,
    says="You sum along the first axis; a row's weights stand along the last.",
    hint="Along which axis do the weights sum to 1?",
)
