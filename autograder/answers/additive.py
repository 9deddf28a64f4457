"""Other right answers to chapter `additive`, and the mistakes that people really make."""

import numpy as np
import torch
from torch import nn

from autograder.answers import alternative, edit, mistake
from solutions.additive import AdditiveAttention, softmax

# --- softmax ---------------------------------------------------------------------------------------------------------


@alternative("softmax")
def through_log_sum_exp(scores, axis=-1):
    log_total = np.logaddexp.reduce(scores, axis=axis, keepdims=True)
    return np.exp(scores - log_total)


@alternative("softmax")
def along_the_last_axis_and_back(scores, axis=-1):
    lines = np.moveaxis(scores, axis, -1).reshape(-1, scores.shape[axis])
    gaps = lines - np.max(lines, axis=1)[:, None]
    parts = np.exp(gaps)
    weights = parts / parts.sum(axis=1)[:, None]
    moved = np.moveaxis(scores, axis, -1).shape
    return np.moveaxis(weights.reshape(moved), -1, axis)


edit(
    "softmax",
    "no_max_subtraction",
    replace="np.exp(scores - scores.max(axis=axis, keepdims=True))",
    by="np.exp(scores)",
    says="You exponentiate the raw scores, so scores near 10⁴ overflow to infinity and the weights become NaN.",
    hint="Softmax stays the same when one number is taken from every score. Which number makes the largest exponent 0?",
)
edit(
    "softmax",
    "one_maximum_for_everything",
    replace="scores.max(axis=axis, keepdims=True)",
    by="scores.max()",
    says="You subtract the maximum of the whole array, so a row far below it underflows to 0 / 0.",
    hint="Every line along `axis` needs its own maximum.",
)
edit(
    "softmax",
    "subtracts_the_mean",
    replace="scores.max(axis=axis, keepdims=True)",
    by="scores.mean(axis=axis, keepdims=True)",
    says="You subtract the mean of each row; a score far above the mean still overflows.",
    hint="After the subtraction no exponent may be greater than 0.",
)
edit(
    "softmax",
    "clips_the_scores",
    replace="np.exp(scores - scores.max(axis=axis, keepdims=True))",
    by="np.exp(np.clip(scores, -700, 700))",
    says="You cut the scores off at some level, so all scores beyond it count as equal.",
    hint="Overflow can be avoided without changing any difference between scores.",
)
edit(
    "softmax",
    "ignores_the_axis",
    replace="axis=axis",
    by="axis=-1",
    count=2,
    says="You always normalise along the last axis, whatever `axis` says.",
    hint="Both reductions, maximum and sum, need the axis that was asked for.",
)
edit(
    "softmax",
    "one_sum_for_everything",
    replace="exponentials.sum(axis=axis, keepdims=True)",
    by="exponentials.sum()",
    says="You divide by the sum over the whole array, so all weights together sum to one, not each row.",
    hint="Over which axis does the sum have to run?",
)
edit(
    "softmax",
    "sum_without_keepdims",
    replace="exponentials.sum(axis=axis, keepdims=True)",
    by="exponentials.sum(axis=axis)",
    says="The sum has lost its axis, so the division lines the sums up with the wrong axis, or fails.",
    hint="`keepdims=True` keeps the summed axis with length 1, which broadcasts as it should.",
)
edit(
    "softmax",
    "powers_of_two",
    replace="np.exp(",
    by="np.exp2(",
    says="You raise 2 to the scores instead of e.",
    hint="Which base does the formula use?",
)
edit(
    "softmax",
    "returns_the_logarithm",
    replace="return exponentials / exponentials.sum(axis=axis, keepdims=True)",
    by="return scores - scores.max(axis=axis, keepdims=True) - np.log(exponentials.sum(axis=axis, keepdims=True))",
    says="You return the logarithms of the weights (log-softmax), not the weights.",
    hint="Weights are positive and sum to one.",
)
edit(
    "softmax",
    "always_float64",
    replace="np.exp(scores",
    by="np.exp(scores.astype(np.float64)",
    says="You compute in float64 and return it, also for float32 scores.",
    hint="The dtype that comes in goes out.",
)


@mistake(
    "softmax",
    says="You divide the scores themselves by their sum; without the exponential, weights can be negative.",
    hint="What makes every number positive before it is divided by the sum?",
)
def shares_without_exponential(scores, axis=-1):
    return scores / scores.sum(axis=axis, keepdims=True)


@mistake(
    "softmax",
    says="You write into the array that came in (`-=`), so the caller's scores are changed.",
    hint="Which operator makes a new array instead of changing the old one?",
)
def changes_the_scores(scores, axis=-1):
    scores -= scores.max(axis=axis, keepdims=True)
    exponentials = np.exp(scores)
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


# --- additive_scores -------------------------------------------------------------------------------------------------


@alternative("additive_scores")
def one_hidden_unit_at_a_time(queries, keys, w_q, w_k, v):
    projected_queries, projected_keys = np.matmul(queries, w_q), np.matmul(keys, w_k)
    scores = 0.0
    for unit, share in enumerate(v):
        scores = scores + share * np.tanh(projected_queries[..., unit, None] + projected_keys[..., None, :, unit])
    return scores


@alternative("additive_scores")
def by_einsum(queries, keys, w_q, w_k, v):
    hidden = np.expand_dims(np.einsum("...qi,ih->...qh", queries, w_q), -2)
    hidden = hidden + np.expand_dims(np.einsum("...kj,jh->...kh", keys, w_k), -3)
    return np.einsum("...h,h->...", np.tanh(hidden), v)


edit(
    "additive_scores",
    "no_v",
    replace="return np.tanh(query_part + key_part) @ v",
    by="return np.tanh(query_part + key_part)",
    says="You return the hidden layer itself; without v there is a vector for every pair instead of one score.",
    hint="Which vector of the formula have you not used?",
)
edit(
    "additive_scores",
    "sums_the_hidden_units",
    replace="np.tanh(query_part + key_part) @ v",
    by="np.tanh(query_part + key_part).sum(axis=-1)",
    says="You add the hidden units up with equal shares; v, which weighs them, is not used.",
    hint="Each hidden unit counts as much as its entry of v says.",
)
edit(
    "additive_scores",
    "no_tanh",
    replace="np.tanh(query_part + key_part) @ v",
    by="(query_part + key_part) @ v",
    says="There is no tanh, so the score falls apart into a part of the query and a part of the key.",
    hint="Without a non-linearity all queries prefer the same keys. Where does the formula put it?",
)
edit(
    "additive_scores",
    "tanh_of_the_score",
    replace="np.tanh(query_part + key_part) @ v",
    by="np.tanh((query_part + key_part) @ v)",
    says="tanh is applied to the finished score, not to the hidden layer.",
    hint="vᵀ tanh(…) and tanh(vᵀ …) differ: which comes first?",
)
edit(
    "additive_scores",
    "multiplies_the_projections",
    replace="query_part + key_part",
    by="query_part * key_part",
    says="You multiply the projections of query and key; this score is called additive because it adds them.",
    hint="Which operation stands between W_q q and W_k k?",
)
edit(
    "additive_scores",
    "logistic_instead_of_tanh",
    replace="np.tanh(query_part + key_part)",
    by="(1 / (1 + np.exp(-(query_part + key_part))))",
    says="The hidden layer uses the logistic function, which lies between 0 and 1, instead of tanh.",
    hint="Which function stands in the formula, and what are its limits?",
)
edit(
    "additive_scores",
    "rectifier_instead_of_tanh",
    replace="np.tanh(query_part + key_part)",
    by="np.maximum(query_part + key_part, 0)",
    says="The hidden layer uses a rectifier instead of tanh, so the score has no bound.",
    hint="Which function stands in the formula, and what are its limits?",
)
edit(
    "additive_scores",
    "queries_and_keys_swapped",
    replace="""(queries @ w_q)[..., :, None, :]  # (*batch, q_seq, 1, hidden_dim)
    key_part = (keys @ w_k)[..., None, :, :]""",
    by="""(queries @ w_q)[..., None, :, :]
    key_part = (keys @ w_k)[..., :, None, :]""",
    says="Your scores are transposed: rows belong to keys and columns to queries.",
    hint="The result is (…, q_seq, kv_seq): along which axis do the queries run?",
)
edit(
    "additive_scores",
    "only_equal_positions",
    replace="""[..., :, None, :]  # (*batch, q_seq, 1, hidden_dim)
    key_part = (keys @ w_k)[..., None, :, :]  # (*batch, 1, kv_seq, hidden_dim)""",
    by="""
    key_part = keys @ w_k""",
    says="You add query i to key i only; a score is asked for every query with every key.",
    hint="Axes of length 1, in different places, make broadcasting build all pairs.",
)
edit(
    "additive_scores",
    "matrices_transposed",
    replace="""(queries @ w_q)[..., :, None, :]  # (*batch, q_seq, 1, hidden_dim)
    key_part = (keys @ w_k)""",
    by="""(queries @ w_q.T)[..., :, None, :]
    key_part = (keys @ w_k.T)""",
    says="You use w_q and w_k the other way round; they are (in, out) here, used as `x @ w`.",
    hint="Write the shapes of `queries` and `w_q` next to each other: which axes meet?",
)
edit(
    "additive_scores",
    "normalises_the_scores",
    replace="return np.tanh(query_part + key_part) @ v",
    by="return softmax(np.tanh(query_part + key_part) @ v)",
    says="You return weights; the scores are to come out as they are, before any softmax.",
    hint="Turning scores into weights is the next step, `attend`.",
)
edit(
    "additive_scores",
    "divides_by_the_root_of_the_width",
    replace="np.tanh(query_part + key_part) @ v",
    by="np.tanh(query_part + key_part) @ v / np.sqrt(w_q.shape[-1]).astype(queries.dtype)",
    says="You divide by the root of the width, as scaled dot-product attention does; the additive score has no scale.",
    hint="tanh already keeps the score within Σ |v|. What does the formula say?",
)


@mistake(
    "additive_scores",
    says="The values are right, but a Python loop visits the queries one by one, which is slow for long inputs.",
    hint="Give the two projections axes of length 1 so that one addition makes all pairs.",
)
def loops_over_queries(queries, keys, w_q, w_k, v):
    projected_keys = keys @ w_k
    rows = []
    for position in range(queries.shape[-2]):
        query = queries[..., position, None, :] @ w_q
        rows.append(np.tanh(query + projected_keys) @ v)
    return np.stack(rows, axis=-2)


@mistake(
    "additive_scores",
    says="The values are right, but query and key are put side by side for every pair and each pair is projected anew.",
    hint="W [q; k] is W_q q + W_k k: project each token once, then add.",
)
def projects_every_pair(queries, keys, w_q, w_k, v):
    q_seq, kv_seq = queries.shape[-2], keys.shape[-2]
    left = np.repeat(queries[..., :, None, :], kv_seq, axis=-2)
    right = np.repeat(keys[..., None, :, :], q_seq, axis=-3)
    return np.tanh(np.concatenate([left, right], axis=-1) @ np.concatenate([w_q, w_k])) @ v


# --- bilinear_scores -------------------------------------------------------------------------------------------------


@alternative("bilinear_scores")
def one_einsum(queries, keys, w):
    return np.einsum("...qi,ij,...kj->...qk", queries, w, keys, optimize=True)


@alternative("bilinear_scores")
def keys_first(queries, keys, w):
    projected_keys = np.matmul(keys, w.T)
    return np.matmul(queries, np.moveaxis(projected_keys, -1, -2))


edit(
    "bilinear_scores",
    "w_transposed",
    replace="queries @ w @",
    by="queries @ w.T @",
    says="You use Wᵀ: the query has to stand on the left of W and the key on its right.",
    hint="A square W hides it. Which side of w has the length query_dim?",
)
edit(
    "bilinear_scores",
    "no_w",
    replace="queries @ w @",
    by="queries @",
    says="You take plain dot products; W is not used.",
    hint="Which argument of the function never occurs in your code?",
)
edit(
    "bilinear_scores",
    "reverses_all_axes",
    replace="keys.swapaxes(-1, -2)",
    by="keys.T",
    says="`keys.T` reverses all axes, also those of the batch.",
    hint="Swap only the last two axes.",
)
edit(
    "bilinear_scores",
    "scaled_by_the_root",
    replace="return queries @ w @ keys.swapaxes(-1, -2)",
    by="return queries @ w @ keys.swapaxes(-1, -2) / np.sqrt(keys.shape[-1]).astype(keys.dtype)",
    says="You divide by the root of a width; this score has no scale, W can learn one.",
    hint="What does the formula qᵀ W k say about a scale?",
)
edit(
    "bilinear_scores",
    "squashed_by_tanh",
    replace="return queries @ w @ keys.swapaxes(-1, -2)",
    by="return np.tanh(queries @ w @ keys.swapaxes(-1, -2))",
    says="You apply tanh; that belongs to the additive score.",
    hint="Bilinear means linear in the query and linear in the key.",
)
edit(
    "bilinear_scores",
    "normalises_the_scores",
    replace="return queries @ w @ keys.swapaxes(-1, -2)",
    by="return softmax(queries @ w @ keys.swapaxes(-1, -2))",
    says="You return weights; the scores are to come out as they are, before any softmax.",
    hint="Turning scores into weights is the next step, `attend`.",
)
edit(
    "bilinear_scores",
    "projects_both_sides",
    replace="queries @ w @ keys.swapaxes(-1, -2)",
    by="queries @ w @ (keys @ w).swapaxes(-1, -2)",
    says="You apply W to the queries and to the keys, so it counts twice.",
    hint="W occurs once in qᵀ W k.",
)
edit(
    "bilinear_scores",
    "scores_transposed",
    replace="return queries @ w @ keys.swapaxes(-1, -2)",
    by="return (queries @ w @ keys.swapaxes(-1, -2)).swapaxes(-1, -2)",
    says="Your scores are transposed: rows belong to keys and columns to queries.",
    hint="The result is (…, q_seq, kv_seq): along which axis do the queries run?",
)
edit(
    "bilinear_scores",
    "symmetric_part_only",
    replace="queries @ w @",
    by="queries @ ((w + w.T) / 2) @",
    says="You make W symmetric, which loses the difference between asking and being asked.",
    hint="W comes as it is. Nothing says that q and k may change places.",
)
edit(
    "bilinear_scores",
    "diagonal_only",
    replace="queries @ w @ keys.swapaxes(-1, -2)",
    by="(queries * np.diag(w)) @ keys.swapaxes(-1, -2)",
    says="Only the diagonal of W is used, so feature i of a query meets only feature i of a key.",
    hint="Every feature of the query may meet every feature of the key.",
)


edit(
    "bilinear_scores",
    "keys_of_the_first_example",
    replace="keys.swapaxes(-1, -2)",
    by="keys[(0,) * (keys.ndim - 2)].swapaxes(-1, -2)",
    says="You use the keys of the first example for the whole batch.",
    hint="Each example brings its own keys. What happens to the leading axes in your code?",
)


@mistake(
    "bilinear_scores",
    says="The values are right, but a Python loop visits the examples of the batch one by one.",
    hint="`@` runs over all leading axes by itself.",
)
def loops_over_examples(queries, keys, w):
    if queries.ndim == 2:
        return queries @ w @ keys.T
    return np.stack([loops_over_examples(one, other, w) for one, other in zip(queries, keys, strict=True)])


@mistake(
    "bilinear_scores",
    says="The values are right, but an array over queries, keys and features at once is formed and then summed.",
    hint="A matrix product multiplies and sums without keeping the products.",
)
def keeps_all_products(queries, keys, w):
    return ((queries @ w)[..., :, None, :] * keys[..., None, :, :]).sum(axis=-1)


# --- attend ----------------------------------------------------------------------------------------------------------


@alternative("attend")
def with_minus_infinity(scores, values, mask=None):
    if mask is not None:
        scores = np.where(mask, scores, np.array(-np.inf, dtype=scores.dtype))
    top = np.max(scores, axis=-1, keepdims=True)
    parts = np.exp(scores - np.where(np.isneginf(top), 0, top))
    total = np.sum(parts, axis=-1, keepdims=True)
    weights = np.divide(parts, total, out=np.zeros_like(parts), where=total > 0)
    return np.einsum("...qk,...kv->...qv", weights, values), weights


@alternative("attend")
def row_by_row(scores, values, mask=None):
    allowed = np.ones(scores.shape, dtype=bool) if mask is None else np.broadcast_to(mask, scores.shape)
    weights = np.zeros_like(scores)
    for row in np.ndindex(*scores.shape[:-1]):
        chosen = scores[row][allowed[row]]
        if chosen.size:
            weights[row][allowed[row]] = softmax(chosen)
    return weights @ values, weights


edit(
    "attend",
    "weights_first",
    replace="return weights @ values, weights",
    by="return weights, weights @ values",
    says="The pair comes out the wrong way round: first the context, then the weights.",
    hint="Read the order in the contract.",
)
edit(
    "attend",
    "softmax_over_queries",
    replace="softmax(np.where(mask, scores, lowest))",
    by="softmax(np.where(mask, scores, lowest), axis=-2)",
    says="You normalise over the queries: each key shares itself out among the queries, not each query among the keys.",
    hint="For which axis must the weights sum to one?",
)
edit(
    "attend",
    "mask_inverted",
    replace="weights = softmax(np.where(mask, scores, lowest)) * mask",
    by="weights = softmax(np.where(mask, lowest, scores)) * np.logical_not(mask)",
    says="You hide what the mask allows and read what it hides: True means may attend.",
    hint="What does True stand for in this course?",
)
edit(
    "attend",
    "mask_ignored",
    replace="softmax(np.where(mask, scores, lowest)) * mask",
    by="softmax(scores)",
    says="The mask has no effect on your weights.",
    hint="Where would a masked score have to change, before the softmax or after it?",
)
edit(
    "attend",
    "masked_scores_set_to_zero",
    replace="softmax(np.where(mask, scores, lowest)) * mask",
    by="softmax(np.where(mask, scores, 0).astype(scores.dtype))",
    says="You set masked scores to 0, but the exponential of 0 is 1: masked keys keep weight.",
    hint="Which score has an exponential of 0?",
)
edit(
    "attend",
    "masks_after_the_softmax",
    replace="softmax(np.where(mask, scores, lowest)) * mask",
    by="softmax(scores) * mask",
    says="You set masked weights to 0 after the softmax, so the others no longer sum to one.",
    hint="The masked keys must already be missing from the sum in the denominator.",
)
edit(
    "attend",
    "renormalises_after_the_softmax",
    replace="weights = softmax(np.where(mask, scores, lowest)) * mask",
    by="""weights = softmax(scores) * mask
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights / np.where(total > 0, total, 1)""",
    says="You mask after the softmax and divide by the new sum; beside a far higher masked score nothing is left.",
    hint="What remains of the allowed weights when the masked score lies 10⁴ above them? Mask before the softmax.",
)
edit(
    "attend",
    "pushes_masked_scores_down",
    replace="weights = softmax(np.where(mask, scores, lowest)) * mask",
    by="""lowered = np.where(mask, scores, scores - scores.dtype.type(1e4))
    exponentials = np.exp(lowered - lowered.max(axis=-1, keepdims=True)) * mask
    total = exponentials.sum(axis=-1, keepdims=True)
    weights = exponentials / np.where(total > 0, total, 1)""",
    says="You lower masked scores by a fixed amount; one that was far above the others stays above them.",
    hint="A masked score of 10⁴ may stand beside allowed ones of −10⁴. Replace it; do not subtract from it.",
)
edit(
    "attend",
    "empty_rows_uniform",
    replace="softmax(np.where(mask, scores, lowest)) * mask",
    by="softmax(np.where(mask, scores, lowest))",
    says="A row in which everything is masked gets equal weights for all keys, instead of 0.",
    hint="When all scores of a row are equally low, softmax sees equal scores. What has to happen afterwards?",
)
edit(
    "attend",
    "empty_rows_nan",
    replace="""lowest = np.finfo(scores.dtype).min
    weights = softmax(np.where(mask, scores, lowest)) * mask""",
    by="""lowest = scores.dtype.type(-np.inf)
    weights = softmax(np.where(mask, scores, lowest))""",
    says="A row in which everything is masked becomes NaN, because −∞ − (−∞) has no value.",
    hint="What is the maximum of a row of −∞, and what is left when you subtract it?",
)
edit(
    "attend",
    "masks_with_a_low_number_only",
    replace="lowest = np.finfo(scores.dtype).min",
    by="lowest = scores.dtype.type(-100)",
    says="You mask with a number that is low only among usual scores; where real scores are lower, masked keys win.",
    hint="Scores of −10⁴ are allowed. Is there a number below every float of this dtype?",
)
edit(
    "attend",
    "unstable_softmax",
    replace="weights = softmax(np.where(mask, scores, lowest)) * mask",
    by="""exponentials = np.exp(scores) * mask
    total = exponentials.sum(axis=-1, keepdims=True)
    weights = exponentials / np.where(total > 0, total, 1)""",
    says="You exponentiate without subtracting the row's maximum, so scores of ±10⁴ overflow or vanish.",
    hint="Your own `softmax` has solved this.",
)
edit(
    "attend",
    "loses_float32",
    replace="softmax(np.where(mask, scores, lowest)) * mask",
    by="softmax(np.where(mask, scores, lowest)) * mask.astype(np.float64)",
    says="float32 scores come out as float64: something in your computation is float64.",
    hint="float32 times float64 is float64. Which of your arrays or constants is float64?",
)


@mistake(
    "attend",
    says="You write the low number into the array that came in, so the caller's scores are changed.",
    hint="`np.where` makes a new array.",
)
def changes_the_scores(scores, values, mask=None):
    if mask is None:
        mask = np.ones(scores.shape, dtype=bool)
    mask = np.broadcast_to(mask, scores.shape)
    scores[~mask] = np.finfo(scores.dtype).min
    weights = softmax(scores) * mask
    return weights @ values, weights


# --- AdditiveAttention -----------------------------------------------------------------------------------------------


@alternative("AdditiveAttention")
class ExponentialsTimesMask(nn.Module):
    def __init__(self, query_dim, key_dim, hidden_dim):
        super().__init__()
        self.score_proj = nn.Linear(hidden_dim, 1, bias=False)
        self.k_proj = nn.Linear(key_dim, hidden_dim, bias=False)
        self.q_proj = nn.Linear(query_dim, hidden_dim, bias=False)

    def forward(self, queries, keys, values, lengths=None):
        pairs = self.q_proj(queries)[..., :, None, :] + self.k_proj(keys)[..., None, :, :]
        scores = torch.einsum("...h,h->...", torch.tanh(pairs), self.score_proj.weight[0])
        scores = scores - scores.amax(dim=-1, keepdim=True).detach()
        parts = torch.exp(scores)
        if lengths is not None:
            positions = torch.arange(keys.shape[-2], device=keys.device)
            parts = parts * (positions < lengths.unsqueeze(-1)).unsqueeze(-2).to(parts.dtype)
        weights = parts / parts.sum(dim=-1, keepdim=True).clamp_min(1e-30)
        return torch.matmul(weights, values), weights


edit(
    "AdditiveAttention",
    "layers_with_bias",
    replace="hidden_dim, bias=False)",
    by="hidden_dim)",
    count=2,
    says="Your projections have a bias; the contract wants Linear layers without.",
    hint="`nn.Linear` has a bias unless you say otherwise.",
)
edit(
    "AdditiveAttention",
    "other_parameter_names",
    replace="self.score_proj",
    by="self.v",
    count=2,
    says="Your last layer has another name than `score_proj`, so weights cannot be loaded into it.",
    hint="The three names are in the contract.",
)
edit(
    "AdditiveAttention",
    "no_tanh",
    replace="torch.tanh(self.q_proj(queries).unsqueeze(-2) + self.k_proj(keys).unsqueeze(-3))",
    by="self.q_proj(queries).unsqueeze(-2) + self.k_proj(keys).unsqueeze(-3)",
    says="There is no tanh; then the query's part is the same for all keys, and softmax cancels it.",
    hint="Where does the formula put its non-linearity?",
)
edit(
    "AdditiveAttention",
    "rectifier_instead_of_tanh",
    replace="torch.tanh(",
    by="torch.relu(",
    says="The hidden layer uses a rectifier instead of tanh.",
    hint="Which function stands in the formula?",
)
edit(
    "AdditiveAttention",
    "no_score",
    replace="scores = self.score_proj(hidden).squeeze(-1)",
    by="scores = 0 * self.score_proj(hidden).squeeze(-1)",
    says="Your weights are equal for all real keys: the score has no influence on them.",
    hint="Which of your lines carries vᵀ tanh(W_q q + W_k k) into the softmax?",
)
edit(
    "AdditiveAttention",
    "lengths_ignored",
    replace="        if lengths is None:\n            lengths",
    by="        if True:\n            lengths",
    says="`lengths` has no effect: padding is read like real keys.",
    hint="Compare positions with lengths, and hide what lies behind.",
)
edit(
    "AdditiveAttention",
    "reads_one_key_too_many",
    replace="< lengths[..., None, None]",
    by="<= lengths[..., None, None]",
    says="You read one key of the padding: position `length` is the first that is not real.",
    hint="Positions count from 0. Which is the last real one?",
)
edit(
    "AdditiveAttention",
    "same_length_for_all",
    replace="< lengths[..., None, None]",
    by="< lengths.max()",
    says="You use one length for the whole batch, the longest, so shorter examples read their padding.",
    hint="Each example has its own length.",
)
edit(
    "AdditiveAttention",
    "softmax_over_queries",
    replace=".softmax(dim=-1)",
    by=".softmax(dim=-2)",
    says="You normalise over the queries instead of over the keys.",
    hint="For which axis must the weights sum to one?",
)
edit(
    "AdditiveAttention",
    "masks_after_the_softmax",
    replace="scores.masked_fill(~real, torch.finfo(scores.dtype).min).softmax(dim=-1) * real",
    by="scores.softmax(dim=-1) * real",
    says="You set the weights on padding to 0 after the softmax, so the others no longer sum to one.",
    hint="The padding must already be missing from the sum in the denominator.",
)
edit(
    "AdditiveAttention",
    "padding_scores_zero",
    replace="scores.masked_fill(~real, torch.finfo(scores.dtype).min).softmax(dim=-1) * real",
    by="scores.masked_fill(~real, 0.0).softmax(dim=-1)",
    says="You set the scores on padding to 0, but the exponential of 0 is 1: padding keeps weight.",
    hint="Which score has an exponential of 0?",
)
edit(
    "AdditiveAttention",
    "empty_example_nan",
    replace="torch.finfo(scores.dtype).min).softmax(dim=-1) * real",
    by='float("-inf")).softmax(dim=-1)',
    says="An example of length 0 becomes NaN: a row of −∞ has no softmax.",
    hint="Use a very low finite number, and think of what the row's weights should be in the end.",
)
edit(
    "AdditiveAttention",
    "empty_example_uniform",
    replace=".softmax(dim=-1) * real",
    by=".softmax(dim=-1)",
    says="An example of length 0 gets equal weights on its padding, instead of 0.",
    hint="When all scores of a row are equally low, softmax sees equal scores. What has to be done with that row?",
)
edit(
    "AdditiveAttention",
    "detached_weights",
    replace="return weights @ values, weights",
    by="return weights.detach() @ values, weights",
    says="The values are right, but the weights are cut off from autograd before the average, so nothing is learned.",
    hint="Which call stops gradients (`detach`, `.data`, `no_grad`, a trip through NumPy)?",
)
edit(
    "AdditiveAttention",
    "averages_the_keys",
    replace="return weights @ values, weights",
    by="return weights @ keys, weights",
    says="You average the keys; the context is made of values.",
    hint="Keys are there to be compared with, values to be read.",
)


@mistake(
    "AdditiveAttention",
    name="loops_over_queries",
    says="The values are right, but a Python loop visits the queries one by one.",
    hint="`unsqueeze` on both projections lets one addition make all pairs.",
)
class LoopsOverQueries(nn.Module):
    def __init__(self, query_dim, key_dim, hidden_dim):
        super().__init__()
        self.q_proj = nn.Linear(query_dim, hidden_dim, bias=False)
        self.k_proj = nn.Linear(key_dim, hidden_dim, bias=False)
        self.score_proj = nn.Linear(hidden_dim, 1, bias=False)

    def forward(self, queries, keys, values, lengths=None):
        projected, rows = self.k_proj(keys), []
        for position in range(queries.shape[-2]):
            hidden = torch.tanh(self.q_proj(queries[..., position, None, :]) + projected)
            rows.append(self.score_proj(hidden).squeeze(-1))
        scores = torch.stack(rows, dim=-2)
        if lengths is None:
            lengths = torch.full(keys.shape[:-2], keys.shape[-2])
        real = torch.arange(keys.shape[-2]) < lengths[..., None, None]
        weights = scores.masked_fill(~real, torch.finfo(scores.dtype).min).softmax(dim=-1) * real
        return weights @ values, weights


# --- BahdanauDecoderStep ---------------------------------------------------------------------------------------------


@alternative("BahdanauDecoderStep")
class PartsByHand(nn.Module):
    def __init__(self, vocab_size, embed_dim, state_dim, memory_dim, hidden_dim):
        super().__init__()
        self.cell = nn.GRUCell(input_size=memory_dim + embed_dim, hidden_size=state_dim)
        self.attention = AdditiveAttention(query_dim=state_dim, key_dim=memory_dim, hidden_dim=hidden_dim)
        self.embedding = nn.Embedding(vocab_size, embed_dim)

    def forward(self, token, state, memory, lengths=None):
        _, weights = self.attention(state.unsqueeze(1), memory, memory, lengths=lengths)
        weights = weights.squeeze(1)
        context = torch.einsum("bk,bkm->bm", weights, memory)
        embedded = nn.functional.one_hot(token, self.embedding.num_embeddings).to(memory.dtype) @ self.embedding.weight
        return self.cell(torch.hstack((embedded, context)), state), weights


edit(
    "BahdanauDecoderStep",
    "attends_with_the_new_state",
    replace="""        context, weights = self.attention(state[:, None, :], memory, memory, lengths)
        read = torch.cat([self.embedding(token), context[:, 0]], dim=-1)  # the embedding first, then the context
        return self.cell(read, state), weights[:, 0]""",
    by="""        context, _ = self.attention(state[:, None, :], memory, memory, lengths)
        state = self.cell(torch.cat([self.embedding(token), context[:, 0]], dim=-1), state)
        return state, self.attention(state[:, None, :], memory, memory, lengths)[1][:, 0]""",
    says="The weights that you return belong to the new state; here the previous state asks.",
    hint="Which weights made the context that went into the cell?",
)
edit(
    "BahdanauDecoderStep",
    "context_before_embedding",
    replace="torch.cat([self.embedding(token), context[:, 0]], dim=-1)",
    by="torch.cat([context[:, 0], self.embedding(token)], dim=-1)",
    says="The cell reads the context before the embedding, so its weights meet the wrong numbers.",
    hint="The contract says which of the two comes first.",
)
edit(
    "BahdanauDecoderStep",
    "lengths_dropped",
    replace="memory, memory, lengths)",
    by="memory, memory)",
    says="`lengths` does not reach the attention, so padded encoder states are read.",
    hint="Follow `lengths` through your code.",
)
edit(
    "BahdanauDecoderStep",
    "state_not_passed_to_the_cell",
    replace="self.cell(read, state)",
    by="self.cell(read)",
    says="The cell gets no previous state and starts from zero at every step, so it remembers nothing.",
    hint="`nn.GRUCell` takes two arguments.",
)
edit(
    "BahdanauDecoderStep",
    "context_not_used",
    replace="context[:, 0]],",
    by="torch.zeros_like(context[:, 0])],",
    says="The context does not reach the cell: what was read is thrown away.",
    hint="What stands beside the embedding in what the cell reads?",
)
edit(
    "BahdanauDecoderStep",
    "mean_instead_of_context",
    replace="context[:, 0]],",
    by="memory.mean(dim=1)],",
    says="The cell reads the plain mean of the encoder states instead of the weighted one.",
    hint="The attention returns two things. What is the first one for?",
)
edit(
    "BahdanauDecoderStep",
    "last_encoder_state_only",
    replace="context[:, 0]],",
    by="memory[:, -1]],",
    says="The cell reads the last encoder state: that is the fixed vector which attention was invented to replace.",
    hint="The attention returns two things. What is the first one for?",
)
edit(
    "BahdanauDecoderStep",
    "weights_keep_the_query_axis",
    replace="weights[:, 0]",
    by="weights",
    says="Your weights are (batch, 1, kv_seq); with one query per step they should be (batch, kv_seq).",
    hint="You added an axis for the single query. Who takes it away again?",
)
edit(
    "BahdanauDecoderStep",
    "pair_swapped",
    replace="return self.cell(read, state), weights[:, 0]",
    by="return weights[:, 0], self.cell(read, state)",
    says="The pair comes out the wrong way round: first the new state, then the weights.",
    hint="Read the order in the contract.",
)
edit(
    "BahdanauDecoderStep",
    "returns_the_context",
    replace="return self.cell(read, state), weights[:, 0]",
    by="return context[:, 0], weights[:, 0]",
    says="You return the context as the new state; the cell has not been used.",
    hint="What does the GRU cell make of embedding, context and previous state?",
)
edit(
    "BahdanauDecoderStep",
    "attends_with_state_detached",
    replace="self.attention(state[:, None, :]",
    by="self.attention(state.detach()[:, None, :]",
    says="The values are right, but the query is cut off from autograd: its gradient stops before the attention.",
    hint="Look for `detach`, `.data` or `no_grad` on the way from the state to the scores.",
)
edit(
    "BahdanauDecoderStep",
    "token_zero_is_padding",
    replace="nn.Embedding(vocab_size, embed_dim)\n        self.attention",
    by="nn.Embedding(vocab_size, embed_dim, padding_idx=0)\n        self.attention",
    says="`padding_idx` keeps the gradient from token 0, which is a token like any other here.",
    hint="Which argument of `nn.Embedding` did you add to the contract's two?",
)


# --- hard_alignment --------------------------------------------------------------------------------------------------


@alternative("hard_alignment")
def row_after_row(weights, lengths=None):
    batch, q_seq = weights.shape[:-2], weights.shape[-2]
    real = np.full(batch, q_seq) if lengths is None else np.broadcast_to(lengths, batch)
    alignment, monotonicity = np.full((*batch, q_seq), -1), np.ones(batch)
    for example in np.ndindex(*batch):
        steps = []
        for row in range(int(real[example])):
            if np.any(weights[example][row]):
                alignment[example][row] = int(np.argmax(weights[example][row]))
                if row and alignment[example][row - 1] >= 0:
                    steps.append(alignment[example][row] - alignment[example][row - 1])
        if steps:
            monotonicity[example] = sum(step >= 0 for step in steps) / len(steps)
    return alignment, monotonicity


edit(
    "hard_alignment",
    "argmax_over_rows",
    replace="weights.argmax(axis=-1)",
    by="weights.argmax(axis=-2)",
    says="You look for the largest weight in each column, over the rows; an alignment asks each row for its key.",
    hint="Along which axis do the keys run?",
)
edit(
    "hard_alignment",
    "standing_still_counts_as_back",
    replace="alignment[..., 1:] >= alignment[..., :-1]",
    by="alignment[..., 1:] > alignment[..., :-1]",
    says="Two neighbouring rows that look at the same key do not go back, but you count them as if they did.",
    hint="≥ or >?",
)
edit(
    "hard_alignment",
    "counts_steps_back",
    replace="alignment[..., 1:] >= alignment[..., :-1]",
    by="alignment[..., 1:] < alignment[..., :-1]",
    says="You return the share of pairs that go back; the share of those that do not is asked for.",
    hint="A perfectly forward alignment has monotonicity 1.",
)
edit(
    "hard_alignment",
    "last_of_equal_weights",
    replace="weights.argmax(axis=-1)",
    by="weights.shape[-1] - 1 - weights[..., ::-1].argmax(axis=-1)",
    says="Of several equal weights you take the last; the contract says the first.",
    hint="What does `argmax` do by itself when there are ties?",
)
edit(
    "hard_alignment",
    "padding_pointed_at_zero",
    replace="np.where(aligned, weights.argmax(axis=-1), -1)",
    by="np.where(aligned, weights.argmax(axis=-1), 0)",
    says="Rows without an alignment get 0, which is a real position; they should get −1.",
    hint="0 is the first key. Which number cannot be mistaken for a key?",
)
edit(
    "hard_alignment",
    "lengths_ignored",
    replace="if lengths is not None:",
    by="if False:",
    says="`lengths` has no effect: rows of padding are aligned and counted like real ones.",
    hint="Which rows of an example lie behind its length?",
)
edit(
    "hard_alignment",
    "same_length_for_all",
    replace="np.asarray(lengths)[..., None]",
    by="np.max(lengths)",
    says="You use one length for the whole batch, the longest, so shorter examples count their padding.",
    hint="Each example has its own length. Which axis does `lengths` need to stand against the rows?",
)
edit(
    "hard_alignment",
    "empty_rows_aligned",
    replace="aligned = weights.max(axis=-1) > 0",
    by="aligned = weights.max(axis=-1) >= 0",
    says="A row whose weights are all 0 looks nowhere, but you align it with key 0.",
    hint="What does `argmax` say about a row of zeros?",
)
edit(
    "hard_alignment",
    "pairs_reach_into_padding",
    replace="pairs = aligned[..., 1:] & aligned[..., :-1]",
    by="pairs = aligned[..., :-1]",
    says="You count pairs whose second row is not aligned; its −1 then looks like a step back.",
    hint="Both rows of a pair must be aligned.",
)
edit(
    "hard_alignment",
    "divides_by_rows",
    replace="kept.sum(axis=-1) / np.maximum(count, 1), 1.0)",
    by="kept.sum(axis=-1) / weights.shape[-2], 1.0)",
    says="You divide by the number of rows; n rows have only n − 1 neighbouring pairs, fewer with padding.",
    hint="A share of pairs is divided by the number of pairs that count.",
)
edit(
    "hard_alignment",
    "zero_without_pairs",
    replace="np.where(count > 0, kept.sum(axis=-1) / np.maximum(count, 1), 1.0)",
    by="kept.sum(axis=-1) / np.maximum(count, 1)",
    says="An example without any pair gets monotonicity 0; nothing goes back there, so it is 1.",
    hint="What should the share be when there is nothing to count?",
)
edit(
    "hard_alignment",
    "nan_without_pairs",
    replace="np.where(count > 0, kept.sum(axis=-1) / np.maximum(count, 1), 1.0)",
    by="kept.sum(axis=-1) / count",
    says="An example without any pair gives 0 / 0, which is NaN.",
    hint="Divide by at least 1, and choose the value for that case yourself.",
)
edit(
    "hard_alignment",
    "one_share_for_the_batch",
    replace="np.where(count > 0, kept.sum(axis=-1) / np.maximum(count, 1), 1.0)",
    by="np.full(count.shape, kept.sum() / max(count.sum(), 1))",
    says="You pool the pairs of the whole batch; each example has its own share.",
    hint="Over which axis should the counts be summed?",
)
edit(
    "hard_alignment",
    "compares_with_the_furthest",
    replace="""pairs = aligned[..., 1:] & aligned[..., :-1]
    kept = pairs & (alignment[..., 1:] >= alignment[..., :-1])""",
    by="""before = np.maximum.accumulate(alignment, axis=-1)[..., :-1]
    pairs = aligned[..., 1:] & aligned[..., :-1]
    kept = pairs & (alignment[..., 1:] >= before)""",
    says="You compare each row with the furthest position so far; it should be compared with its neighbour.",
    hint="A pair is (t, t + 1) and nothing else.",
)


# --- steps_to_connect ------------------------------------------------------------------------------------------------


@alternative("steps_to_connect")
def layer_table(distance, layer, kernel_size=3, dilation=1):
    if distance < 0:
        raise ValueError("a negative distance")

    def plain(width):
        if width < 2:
            raise ValueError("a kernel that reads one position")
        layers, rest = divmod(distance, width - 1)
        return layers + (rest > 0)

    def dilated(width, base):
        if base < 1:
            raise ValueError("a dilation below 1")
        if base == 1:
            return plain(width)
        if width < 2:
            raise ValueError("a kernel that reads one position")
        layers, power = 0, 1
        while (width - 1) * (power - 1) < distance * (base - 1):
            layers, power = layers + 1, power * base
        return layers

    match layer:
        case "rnn":
            return distance
        case "attention":
            return int(distance > 0)
        case "cnn":
            return plain(kernel_size)
        case "dilated_cnn":
            return dilated(kernel_size, dilation)
    raise ValueError(f"unknown layer {layer}")


edit(
    "steps_to_connect",
    "counts_positions",
    replace='if layer == "rnn":\n        return distance',
    by='if layer == "rnn":\n        return distance + 1',
    says="For the RNN you count positions; between position i − distance and i there are `distance` steps.",
    hint="Positions 3 and 5 are two steps apart, though three positions are involved.",
)
edit(
    "steps_to_connect",
    "centred_kernel",
    replace="return -(-distance // (kernel_size - 1))",
    by="return -(-distance // max((kernel_size - 1) // 2, 1))",
    says="You let the kernel look to both sides, so it reaches back only half as far; here kernels look back.",
    hint="The kernel at i reads i − kernel_size + 1 … i.",
)
edit(
    "steps_to_connect",
    "kernel_reaches_its_width",
    replace="return -(-distance // (kernel_size - 1))",
    by="return -(-distance // kernel_size)",
    says="You let a kernel of width k reach back k positions; one of its k taps is the position itself.",
    hint="How far is the furthest tap from position i?",
)
edit(
    "steps_to_connect",
    "rounds_down",
    replace="return -(-distance // (kernel_size - 1))",
    by="return distance // (kernel_size - 1)",
    says="You round the number of layers down, so the stack may fall short of the distance.",
    hint="Two and a half layers are not enough as two.",
)
edit(
    "steps_to_connect",
    "through_floats",
    replace="return -(-distance // (kernel_size - 1))",
    by="return int(np.ceil(distance / (kernel_size - 1)))",
    says="You divide in floating point, which is not exact for large distances.",
    hint="Stay with integers: `//` rounds down, and a minus sign turns down into up.",
)
edit(
    "steps_to_connect",
    "dilation_starts_one_layer_late",
    replace="growth**layers",
    by="growth ** (layers + 1)",
    says="Your first layer is already dilated; layers count from 0, so its taps are dilation⁰ = 1 apart.",
    hint="What is `dilation**l` for the first layer?",
)
edit(
    "steps_to_connect",
    "same_dilation_in_every_layer",
    replace="    layers = reach = 0",
    by="    return -(-distance // ((kernel_size - 1) * growth))\n    layers = reach = 0",
    says="You dilate every layer alike, so the reach grows linearly; layer l is dilated by dilation**l.",
    hint="Print the reach of the first three layers.",
)
edit(
    "steps_to_connect",
    "only_the_last_layer_counts",
    replace="reach += (kernel_size - 1) * growth**layers",
    by="reach = (kernel_size - 1) * growth**layers",
    says="You look at the reach of the last layer alone; the reaches of stacked layers add up.",
    hint="A signal can travel a part of the way in every layer.",
)
edit(
    "steps_to_connect",
    "kernel_of_two_when_dilated",
    replace="reach += (kernel_size - 1) * growth**layers",
    by="reach += growth**layers",
    says="Your dilated layers reach back one tap, whatever `kernel_size` says.",
    hint="How many gaps lie between the taps of a kernel of width k?",
)
edit(
    "steps_to_connect",
    "attention_needs_a_step_for_itself",
    replace="return min(distance, 1)",
    by="return 1",
    says="At distance 0 the signal is already there: no layer is needed, also with attention.",
    hint="What should every kind of layer answer for distance 0?",
)
edit(
    "steps_to_connect",
    "distance_zero_before_the_checks",
    replace="    growth = dilation if",
    by="    if distance == 0:\n        return 0\n    growth = dilation if",
    says="At distance 0 you answer before you check the arguments; a kernel below 2 is refused there too.",
    hint="Which comes first in the contract, the check of the arguments or the count?",
)
edit(
    "steps_to_connect",
    "accepts_nonsense",
    replace="""    if layer not in ("rnn", "cnn", "dilated_cnn", "attention") or distance < 0:
        raise ValueError(f"no way to connect distance {distance} by {layer!r}")
""",
    by="",
    says="An unknown layer or a negative distance gets an answer; it should raise ValueError.",
    hint="Which arguments make no sense, and what does the contract want then?",
)
edit(
    "steps_to_connect",
    "checks_what_is_not_read",
    replace="""or distance < 0:
""",
    by="""or distance < 0 or kernel_size < 2 or dilation < 1:
""",
    says="You refuse a kernel or dilation that the layer does not even read.",
    hint="The RNN and attention have no kernel, and a plain convolution has no dilation.",
)


@mistake(
    "steps_to_connect",
    says="You solve for the number of dilated layers with a logarithm; rounding makes it wrong by one at some edges.",
    hint="Add up the reaches with integers until they are enough.",
)
def logarithm_for_the_dilated_stack(distance, layer, kernel_size=3, dilation=1):
    if layer not in ("rnn", "cnn", "dilated_cnn", "attention") or distance < 0:
        raise ValueError("no way to connect")
    if layer == "rnn":
        return distance
    if layer == "attention":
        return min(distance, 1)
    growth = dilation if layer == "dilated_cnn" else 1
    if kernel_size < 2 or growth < 1:
        raise ValueError("a kernel that never reaches back")
    if growth == 1:
        return -(-distance // (kernel_size - 1))
    return int(np.ceil(np.log(distance * (growth - 1) / (kernel_size - 1) + 1) / np.log(growth)))
