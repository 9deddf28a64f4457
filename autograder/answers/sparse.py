"""Other right answers to chapter `sparse`, and the mistakes people really make."""

import numpy as np
import torch
import torch.nn.functional as F

from autograder.answers import alternative, edit, mistake
from solutions.sparse import lsh_buckets, masked_softmax, sliding_window_mask

# sliding_window_mask


@alternative("sliding_window_mask")
def by_triangles(q_seq, kv_seq, window, causal):
    shift = kv_seq - q_seq
    back, ahead = (window - 1, 0) if causal else (window // 2, window // 2)
    everything = torch.ones(q_seq, kv_seq, dtype=torch.bool)
    return everything.tril(shift + ahead).triu(shift - back)


edit(
    "sliding_window_mask",
    "top_left",
    replace="torch.arange(kv_seq - q_seq, kv_seq)",
    by="torch.arange(q_seq)",
    says="You place query i at position i, which is right only where there are as many queries as keys.",
    hint="The last query stands beside the last key. Where does query 0 stand?",
)
edit(
    "sliding_window_mask",
    "causal_sees_one_more",
    replace="distance < window",
    by="distance <= window",
    says="Your causal window holds window + 1 positions: the own one and `window` before it.",
    hint="Count the keys of a row with window = 1.",
)
edit(
    "sliding_window_mask",
    "causal_without_itself",
    replace="(distance >= 0) & (distance < window)",
    by="(distance > 0) & (distance <= window)",
    says="Your causal window leaves out the position of the query itself.",
    hint="With window = 1, what should a token see?",
)
edit(
    "sliding_window_mask",
    "causal_is_half_as_wide",
    replace="distance < window)",
    by="distance <= window // 2)",
    says="Your causal window is the past half of the symmetric one; it should hold `window` positions.",
    hint="A causal window spends all of its positions on the past.",
)
edit(
    "sliding_window_mask",
    "symmetric_reaches_a_whole_window",
    replace="distance.abs() <= window // 2",
    by="distance.abs() < window",
    says="Your symmetric window reaches a whole window to either side, so that it is almost twice as wide.",
    hint="`window` is the width of the whole band, not of one side.",
)
edit(
    "sliding_window_mask",
    "symmetric_short_of_one",
    replace="distance.abs() <= window // 2",
    by="distance.abs() < window // 2",
    says="Your symmetric window misses the outermost position on either side.",
    hint="With window = 3, how far to the left does a token see?",
)
edit(
    "sliding_window_mask",
    "symmetric_even_windows_are_lopsided",
    replace="distance.abs() <= window // 2",
    by="(distance <= window // 2) & (distance > window // 2 - window)",
    says="You gave even windows exactly `window` positions, one less back; here 4 and 5 are the same.",
    hint="The course's window is |i − j| ≤ window // 2 when it is not causal.",
)
edit(
    "sliding_window_mask",
    "causal_ignored",
    replace="return (distance >= 0) & (distance < window) if causal else distance.abs() <= window // 2",
    by="return distance.abs() <= window // 2",
    says="You return the symmetric window whatever `causal` says.",
    hint="What may a causal query see of what comes after it?",
)
edit(
    "sliding_window_mask",
    "future_instead_of_past",
    replace="distance = torch.arange(kv_seq - q_seq, kv_seq)[:, None] - torch.arange(kv_seq)",
    by="distance = torch.arange(kv_seq) - torch.arange(kv_seq - q_seq, kv_seq)[:, None]",
    says="Your causal window looks ahead: the distance has the wrong sign.",
    hint="Is i − j positive for a key in the past, or for one in the future?",
)
edit(
    "sliding_window_mask",
    "true_means_hidden",
    replace="return (distance >= 0) & (distance < window) if causal else distance.abs() <= window // 2",
    by="return ~((distance >= 0) & (distance < window) if causal else distance.abs() <= window // 2)",
    says="Your mask is True where a query may not attend.",
    hint="In this course True means may attend.",
)

# dilated_mask


@alternative("dilated_mask")
def pair_by_pair(q_seq, kv_seq, window, causal, dilation):
    offsets = range(window) if causal else range(-(window // 2), window // 2 + 1)
    mask = torch.zeros(q_seq, kv_seq, dtype=torch.bool)
    for i in range(q_seq):
        for n in offsets:
            j = i + kv_seq - q_seq - n * dilation
            if 0 <= j < kv_seq:
                mask[i, j] = True
    return mask


edit(
    "dilated_mask",
    "dilation_does_not_stretch",
    replace="steps = distance // dilation",
    by="steps = distance",
    says="You keep every n-th key of the old window; a dilated window keeps as many keys and spreads them wider.",
    hint="How many keys does a causal window of 3 with dilation 2 hold?",
)
edit(
    "dilated_mask",
    "stretched_without_gaps",
    replace="return near & (distance % dilation == 0)",
    by="return near",
    says="You stretch the window and keep all that is inside; the positions between the steps belong to nobody.",
    hint="Which distances are whole multiples of the dilation?",
)
edit(
    "dilated_mask",
    "gaps_on_a_fixed_grid",
    replace="(distance % dilation == 0)",
    by="(torch.arange(kv_seq) % dilation == 0)",
    says="You keep the keys at multiples of the dilation, the same for every query; the gaps count from the query.",
    hint="Does every token see itself?",
)
edit(
    "dilated_mask",
    "top_left",
    replace="torch.arange(kv_seq - q_seq, kv_seq)",
    by="torch.arange(q_seq)",
    says="You place query i at position i, which is right only where there are as many queries as keys.",
    hint="The last query stands beside the last key. Where does query 0 stand?",
)
edit(
    "dilated_mask",
    "causal_sees_one_more",
    replace="steps < window",
    by="steps <= window",
    says="Your causal window holds window + 1 keys.",
    hint="The own position is one of the `window` keys.",
)
edit(
    "dilated_mask",
    "symmetric_reaches_a_whole_window",
    replace="steps.abs() <= window // 2",
    by="steps.abs() < window",
    says="Your symmetric window takes window − 1 steps to either side instead of window // 2.",
    hint="`window` is the width of the whole band, not of one side.",
)
edit(
    "dilated_mask",
    "dilation_is_the_gap",
    replace="    steps = distance // dilation",
    by="    dilation = dilation + 1\n    steps = distance // dilation",
    says="You leave `dilation` positions between neighbours; dilation 1 should be the plain window.",
    hint="Dilation is the distance between neighbours, not how many positions lie between them.",
)
edit(
    "dilated_mask",
    "causal_ignored",
    replace="near = (steps >= 0) & (steps < window) if causal else steps.abs() <= window // 2",
    by="near = steps.abs() <= window // 2",
    says="You return the symmetric pattern whatever `causal` says.",
    hint="What may a causal query see of what comes after it?",
)

# strided_mask


@alternative("strided_mask")
def row_by_row(seq, stride):
    mask = torch.zeros(seq, seq, dtype=torch.bool)
    for i in range(seq):
        mask[i, max(0, i - stride + 1) : i + 1] = True
        mask[i, i % stride : i + 1 : stride] = True
    return mask


edit(
    "strided_mask",
    "both_instead_of_either",
    replace="(distance < stride) | (distance % stride == 0)",
    by="(distance < stride) & (distance % stride == 0)",
    says="You ask for both factors at once, which leaves only the diagonal; the pattern is their union.",
    hint="A key is seen if it is recent or whole strides away.",
)
edit(
    "strided_mask",
    "columns_instead_of_strides",
    replace="(distance % stride == 0)",
    by="(torch.arange(seq) % stride == 0)",
    says="You let all rows read the same columns; in the strided pattern the strides count back from each query.",
    hint="Is it j that the stride divides, or i − j?",
)
edit(
    "strided_mask",
    "not_causal",
    replace="(distance >= 0) & ((distance < stride)",
    by="((distance.abs() < stride)",
    says="Your pattern also looks ahead.",
    hint="What is the sign of i − j for a key in the future?",
)
edit(
    "strided_mask",
    "local_factor_missing",
    replace="((distance < stride) | (distance % stride == 0))",
    by="(distance % stride == 0)",
    says="You left out the local factor: the last `stride` positions.",
    hint="Through which positions does a token a few steps back reach a query?",
)
edit(
    "strided_mask",
    "strided_factor_missing",
    replace="((distance < stride) | (distance % stride == 0))",
    by="(distance < stride)",
    says="You left out the strided factor, so nothing older than a stride is ever seen.",
    hint="The second factor jumps back in whole strides, to the beginning.",
)
edit(
    "strided_mask",
    "local_reaches_two_strides",
    replace="distance < stride",
    by="distance < 2 * stride",
    says="Your local factor is twice as long as the stride.",
    hint="How long is the gap that the local factor has to fill?",
)
edit(
    "strided_mask",
    "local_by_blocks",
    replace="(distance < stride)",
    by="(torch.arange(seq)[:, None] // stride == torch.arange(seq) // stride)",
    says="You cut the sequence into fixed blocks; the local factor of the strided pattern slides with the query.",
    hint="How many keys of the recent past does the first query of a block see?",
)
edit(
    "strided_mask",
    "everything_causal",
    replace="(distance >= 0) & ((distance < stride) | (distance % stride == 0))",
    by="distance >= 0",
    says="You return the whole causal mask: nothing is left out, so nothing is saved.",
    hint="A late row keeps about 2 · stride keys.",
)

# fixed_mask


@alternative("fixed_mask")
def one_row_after_another(seq, stride, summary):
    mask = torch.zeros(seq, seq, dtype=torch.bool)
    for i in range(seq):
        mask[i, i - i % stride : i + 1] = True
        for end in range(stride, i + 1, stride):
            mask[i, end - summary : end] = True
    return mask & torch.ones(seq, seq, dtype=torch.bool).tril()


edit(
    "fixed_mask",
    "summary_at_the_start",
    replace="key % stride >= stride - summary",
    by="key % stride < summary",
    says="You take the first positions of a block as its summary; only its last ones have seen all of it.",
    hint="Which position of a block has read the whole block?",
)
edit(
    "fixed_mask",
    "summary_is_always_one",
    replace="key % stride >= stride - summary",
    by="key % stride == stride - 1",
    says="You let only the last position of a block be seen, whatever `summary` says.",
    hint="`summary` positions at the end of each block are seen by all later ones.",
)
edit(
    "fixed_mask",
    "summary_one_longer",
    replace="key % stride >= stride - summary",
    by="key % stride >= stride - summary - 1",
    says="Your summaries are one position too long.",
    hint="With summary = 1, which remainders of j by the stride are seen?",
)
edit(
    "fixed_mask",
    "block_slides",
    replace="query // stride == key // stride",
    by="query - key < stride",
    says="Your local part slides with the query; in the fixed pattern blocks stand still.",
    hint="What does the first query of a block see of the block before?",
)
edit(
    "fixed_mask",
    "not_causal",
    replace="(key <= query) & (own_block",
    by="(own_block",
    says="Your pattern also looks ahead.",
    hint="Both factors hold only for keys at or before the query.",
)
edit(
    "fixed_mask",
    "own_block_missing",
    replace="(own_block | (key % stride >= stride - summary))",
    by="(key % stride >= stride - summary)",
    says="You left out the own block.",
    hint="What does a query see of the positions just before it?",
)
edit(
    "fixed_mask",
    "summaries_missing",
    replace="(own_block | (key % stride >= stride - summary))",
    by="own_block",
    says="You left out the summaries: no block ever hears of another.",
    hint="The second factor is what joins blocks.",
)
edit(
    "fixed_mask",
    "both_instead_of_either",
    replace="own_block | (key",
    by="own_block & (key",
    says="You ask for both factors at once; the pattern is their union.",
    hint="A key is seen if it lies in the own block or is part of a summary.",
)

# banded_attention


@alternative("banded_attention")
def a_slice_for_each_block(q, k, v, window, causal=False):
    shift = k.shape[-2] - q.shape[-2]
    back, ahead = (window - 1, 0) if causal else (window // 2, window // 2)
    out = []
    for rows in torch.arange(q.shape[-2]).split(max(1, window // 4)):
        first, last = int(rows[0]) + shift - back, int(rows[-1]) + shift + ahead
        keys = torch.arange(max(first, 0), max(min(last + 1, k.shape[-2]), max(first, 0)))
        distance = rows[:, None] + shift - keys
        seen = (distance <= back) & (distance >= -ahead)
        scores = q[..., rows, :] @ k[..., keys, :].mT / q.shape[-1] ** 0.5
        scores = scores.masked_fill(~seen, torch.finfo(q.dtype).min)
        weights = scores.softmax(-1).masked_fill(~seen, 0)
        out.append(weights @ v[..., keys, :])
    return torch.cat(out, dim=-2)


@alternative("banded_attention")
def products_of_elements(q, k, v, window, causal=False):
    q_seq, kv_seq = q.shape[-2], k.shape[-2]
    back, ahead = (window - 1, 0) if causal else (window // 2, window // 2)
    key = torch.arange(q_seq)[:, None] + (kv_seq - q_seq) + torch.arange(-back, ahead + 1)
    near = key.clamp(0, kv_seq - 1)
    scores = (q[..., None, :] * k[..., near, :]).sum(-1) / q.shape[-1] ** 0.5
    weights = masked_softmax(scores, (key >= 0) & (key < kv_seq))
    return (weights[..., None] * v[..., near, :]).sum(-2)


edit(
    "banded_attention",
    "no_scale",
    replace="q * q.shape[-1] ** -0.5",
    by="q",
    says="You forgot the factor 1/√head_dim.",
    hint="By which factor does the spread of q·k grow with the width of a head?",
)
edit(
    "banded_attention",
    "top_left",
    replace="ends = (back - (kv_seq - q_seq), ahead + spare)",
    by="ends = (back, ahead + spare + q_seq - kv_seq)",
    says="You place query i at position i, which is right only where there are as many queries as keys.",
    hint="The last query stands beside the last key.",
)
edit(
    "banded_attention",
    "padding_is_attended",
    replace=" & real[:, None, :]",
    by=" & torch.ones_like(real)[:, None, :]",
    says="Queries near the ends also attend to the padding: zero keys get a score of 0, and a share of the weight.",
    hint="Which keys of the first and of the last block exist at all?",
)
edit(
    "banded_attention",
    "whole_neighbourhood",
    replace="seen = (distance >= -ahead) & (distance <= back) & real[:, None, :]",
    by="seen = real[:, None, :]",
    says="Every query of a block attends to all keys gathered for the block; the band inside it is missing.",
    hint="Do the first and the last query of a block see the same keys?",
)
edit(
    "banded_attention",
    "causal_ignored",
    replace="(window - 1, 0) if causal else (window // 2, window // 2)",
    by="(window // 2, window // 2)",
    says="You compute the symmetric band whatever `causal` says.",
    hint="A causal window looks back window − 1 positions and never ahead.",
)
edit(
    "banded_attention",
    "causal_is_half_as_wide",
    replace="(window - 1, 0) if causal",
    by="(window // 2, 0) if causal",
    says="Your causal band is the past half of the symmetric one; it should hold `window` positions.",
    hint="A causal window spends all of its positions on the past.",
)
edit(
    "banded_attention",
    "softmax_without_maximum",
    replace="weights = masked_softmax(q_blocks @ k_near, seen)",
    by="""weights = (q_blocks @ k_near).exp() * seen
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)""",
    says="You exponentiate raw scores, so large ones overflow to inf and the output becomes NaN.",
    hint="Which number can be taken from all scores of a row without changing its softmax?",
)
edit(
    "banded_attention",
    "blocks_of_whole_windows",
    replace="block = max(1, window // 2)",
    by="block = max(1, 3 * window)",
    says="Your blocks are longer than the window, so most of what you compute lies outside the band.",
    hint="A block of B queries needs B + window keys for each query, of which a window counts.",
)


@mistake(
    "banded_attention",
    says="You compute all scores and mask most of them: the pattern is right, but time and memory stay quadratic.",
    hint="A mask alone saves nothing. Which keys can one block of queries see at all?",
)
def masks_the_whole_matrix(q, k, v, window, causal=False):
    mask = sliding_window_mask(q.shape[-2], k.shape[-2], window, causal)
    return masked_softmax(q @ k.mT * q.shape[-1] ** -0.5, mask) @ v


@mistake(
    "banded_attention",
    says="You go through the queries block by block and score every key for each: memory is small, work quadratic.",
    hint="Which stretch of keys can one block of queries see at all? Score no other.",
)
def every_key_block_by_block(q, k, v, window, causal=False):
    shift, out = k.shape[-2] - q.shape[-2], q.new_zeros(*q.shape[:-1], v.shape[-1])
    for rows in torch.arange(q.shape[-2]).split(64):
        distance = rows[:, None] + shift - torch.arange(k.shape[-2])
        seen = (distance >= 0) & (distance < window) if causal else distance.abs() <= window // 2
        out[..., rows, :] = masked_softmax(q[..., rows, :] @ k.mT * q.shape[-1] ** -0.5, seen) @ v
    return out


@mistake(
    "banded_attention",
    says="You score every key for each query and mask most of it: without a product of matrices that is quadratic too.",
    hint="Multiplying element by element is no less work. Which stretch of keys can a query see at all?",
)
def every_key_by_products_of_elements(q, k, v, window, causal=False):
    shift, out = k.shape[-2] - q.shape[-2], q.new_zeros(*q.shape[:-1], v.shape[-1])
    for rows in torch.arange(q.shape[-2]).split(32):
        distance = rows[:, None] + shift - torch.arange(k.shape[-2])
        seen = (distance >= 0) & (distance < window) if causal else distance.abs() <= window // 2
        scores = (q[..., rows, None, :] * k[..., None, :, :]).sum(-1) * q.shape[-1] ** -0.5
        out[..., rows, :] = (masked_softmax(scores, seen)[..., None] * v[..., None, :, :]).sum(-2)
    return out


@mistake(
    "banded_attention",
    says="You fill hidden scores with −∞, so a query that sees no key becomes NaN.",
    hint="What is the softmax of a row in which every score is −∞?",
)
def empty_rows_are_nan(q, k, v, window, causal=False):
    shift = k.shape[-2] - q.shape[-2]
    back, ahead = (window - 1, 0) if causal else (window // 2, window // 2)
    out = []
    for rows in torch.arange(q.shape[-2]).split(max(1, window // 4)):
        first, last = int(rows[0]) + shift - back, int(rows[-1]) + shift + ahead
        keys = torch.arange(max(first, 0), max(min(last + 1, k.shape[-2]), max(first, 0)))
        distance = rows[:, None] + shift - keys
        seen = (distance <= back) & (distance >= -ahead)
        scores = q[..., rows, :] @ k[..., keys, :].mT / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out.append(
            weights @ v[..., keys, :] if len(keys) else torch.full_like(q[..., rows, :1] * v[..., :1, :], np.nan)
        )
    return torch.cat(out, dim=-2)


# longformer_attention


@alternative("longformer_attention")
def a_block_at_a_time(q, k, v, q_g, k_g, v_g, window, global_positions):
    seq, half, scale = q.shape[-2], window // 2, 1 / q.shape[-1] ** 0.5
    is_global = torch.zeros(seq, dtype=torch.bool)
    is_global[global_positions] = True
    out = []
    for rows in torch.arange(seq).split(max(1, half)):
        near = torch.arange(max(0, int(rows[0]) - half), min(seq, int(rows[-1]) + half + 1))
        keys = torch.cat([near, global_positions])
        seen = ((rows[:, None] - near).abs() <= half) & ~is_global[near]
        seen = torch.cat([seen, torch.ones(len(rows), len(global_positions), dtype=torch.bool)], dim=-1)
        scores = (q[..., rows, :] @ k[..., keys, :].mT) * scale
        out.append(scores.masked_fill(~seen, -1e30).softmax(-1) @ v[..., keys, :])
    out = torch.cat(out, dim=-2)
    for row in global_positions.tolist():
        weights = (q_g[..., row : row + 1, :] @ k_g.mT * scale).softmax(-1)
        out = torch.cat([out[..., :row, :], weights @ v_g, out[..., row + 1 :, :]], dim=-2)
    return out


edit(
    "longformer_attention",
    "global_keys_counted_twice",
    replace="    ordinary[global_positions] = False  # global keys are read once, by themselves\n",
    by="",
    says="A global token inside the window is counted twice, once by the window and once as a global key.",
    hint="Which local keys have to be left out because they come again?",
)
edit(
    "longformer_attention",
    "global_rows_with_ordinary_projections",
    replace="rows = (q_g[..., global_positions, :] * scale @ k_g.mT).softmax(dim=-1) @ v_g",
    by="rows = (q[..., global_positions, :] * scale @ k.mT).softmax(dim=-1) @ v",
    says="Your global rows use q, k, v; they have projections of their own.",
    hint="What are q_g, k_g and v_g for?",
)
edit(
    "longformer_attention",
    "global_keys_with_global_projections",
    replace="for x in (k, v))  # (…, 1, count, dim)",
    by="for x in (k_g, v_g))  # (…, 1, count, dim)",
    says="Ordinary rows read global tokens through k_g and v_g; they use k and v for all keys.",
    hint="One softmax compares scores of one query: which projection made them?",
)
edit(
    "longformer_attention",
    "two_softmaxes",
    replace="weights = masked_softmax(torch.cat([q_blocks @ k_near, q_blocks @ k_all.mT], dim=-1), seen)",
    by="""apart = masked_softmax(q_blocks @ k_near, in_window), (q_blocks @ k_all.mT).softmax(dim=-1)
    weights = torch.cat(apart, dim=-1)""",
    says="You normalise the window and the global keys apart and add the outputs, so the weights of a row sum to 2.",
    hint="An ordinary row has one softmax over everything it sees.",
)
edit(
    "longformer_attention",
    "global_rows_are_windows",
    replace="return out.flatten(-3, -2)[..., :seq, :].index_copy(-2, global_positions, rows)",
    by="return out.flatten(-3, -2)[..., :seq, :]",
    says="Global tokens are seen by all, but themselves see only their window.",
    hint="Attention with global tokens is symmetric: what is seen by everything also sees everything.",
)
edit(
    "longformer_attention",
    "global_keys_are_not_seen",
    replace="seen = F.pad(in_window, (0, len(global_positions)), value=True)",
    by="seen = F.pad(in_window, (0, len(global_positions)), value=False)",
    says="Ordinary tokens do not see the global ones outside their window.",
    hint="Which columns of the pattern are full?",
)
edit(
    "longformer_attention",
    "no_scale_in_global_rows",
    replace="q_g[..., global_positions, :] * scale @ k_g.mT",
    by="q_g[..., global_positions, :] @ k_g.mT",
    says="Your global rows forget the factor 1/√head_dim.",
    hint="Which of your two kinds of scores is scaled?",
)
edit(
    "longformer_attention",
    "no_scale_in_global_columns",
    replace="q_blocks @ k_all.mT",
    by="q_blocks / scale @ k_all.mT",
    says="Ordinary rows scale the scores of their window, but not those of the global keys.",
    hint="One softmax compares all scores of a row. Which factor has each of your two kinds of scores had?",
)
edit(
    "longformer_attention",
    "window_to_either_side",
    replace="seq, half = q.shape[-2], window // 2",
    by="seq, half = q.shape[-2], window",
    says="Your window reaches `window` positions to either side instead of window // 2.",
    hint="`window` is the width of the whole band.",
)


@mistake(
    "longformer_attention",
    says="You compute all scores and mask most of them: the pattern is right, but time and memory stay quadratic.",
    hint="Only the global rows and columns may be as long as the sequence.",
)
def masks_the_whole_matrix_too(q, k, v, q_g, k_g, v_g, window, global_positions):
    mask = sliding_window_mask(q.shape[-2], q.shape[-2], window, causal=False)
    mask[:, global_positions] = True
    out = masked_softmax(q @ k.mT * q.shape[-1] ** -0.5, mask) @ v
    rows = (q_g[..., global_positions, :] @ k_g.mT * q.shape[-1] ** -0.5).softmax(-1) @ v_g
    return out.index_copy(-2, global_positions, rows)


@mistake(
    "longformer_attention",
    says="You go through the queries block by block and score every key for each: memory is small, work quadratic.",
    hint="An ordinary query needs the scores of its window and of the global tokens.",
)
def every_key_block_by_block_too(q, k, v, q_g, k_g, v_g, window, global_positions):
    at, out = torch.arange(q.shape[-2]), q.new_zeros(*q.shape[:-1], v.shape[-1])
    for rows in at.split(64):
        seen = ((rows[:, None] - at).abs() <= window // 2).index_fill(-1, global_positions, True)
        out[..., rows, :] = masked_softmax(q[..., rows, :] @ k.mT * q.shape[-1] ** -0.5, seen) @ v
    rows = (q_g[..., global_positions, :] @ k_g.mT * q.shape[-1] ** -0.5).softmax(-1) @ v_g
    return out.index_copy(-2, global_positions, rows)


@mistake(
    "longformer_attention",
    says="You score every key for each query and mask most of it: without a product of matrices that is quadratic too.",
    hint="Multiplying element by element is no less work. Which keys does an ordinary query see at all?",
)
def every_key_by_products_of_elements_too(q, k, v, q_g, k_g, v_g, window, global_positions):
    at, out = torch.arange(q.shape[-2]), q.new_zeros(*q.shape[:-1], v.shape[-1])
    for rows in at.split(32):
        seen = ((rows[:, None] - at).abs() <= window // 2).index_fill(-1, global_positions, True)
        scores = (q[..., rows, None, :] * k[..., None, :, :]).sum(-1) * q.shape[-1] ** -0.5
        out[..., rows, :] = (masked_softmax(scores, seen)[..., None] * v[..., None, :, :]).sum(-2)
    rows = (q_g[..., global_positions, :] @ k_g.mT * q.shape[-1] ** -0.5).softmax(-1) @ v_g
    return out.index_copy(-2, global_positions, rows)


# bigbird_layout


@alternative("bigbird_layout")
def shuffles_the_free_blocks(blocks, window, global_blocks, random_blocks, rng):
    layout = np.zeros((blocks, blocks), dtype=bool)
    for i in range(blocks):
        for j in range(blocks):
            layout[i, j] = abs(i - j) <= window // 2 or min(i, j) < global_blocks
        free = np.flatnonzero(~layout[i])
        layout[i, rng.permutation(free)[:random_blocks]] = True
    return torch.from_numpy(layout)


edit(
    "bigbird_layout",
    "draws_from_all_blocks",
    replace="free = (~row).nonzero().flatten().numpy()",
    by="free = np.arange(blocks)",
    says="You draw from all blocks, so some draws fall on blocks that the row reads anyway and are lost.",
    hint="Which blocks does a row not read yet?",
)
edit(
    "bigbird_layout",
    "draws_with_replacement",
    replace="replace=False)] = True",
    by="replace=True) if len(free) else free] = True",
    says="You draw with replacement, so the same block may be drawn twice.",
    hint="How many different blocks should a row gain?",
)
edit(
    "bigbird_layout",
    "global_columns_missing",
    replace="    layout[:, :global_blocks] = True\n",
    by="",
    says="Global blocks read everything, but nobody reads them.",
    hint="Global means both: a full row and a full column.",
)
edit(
    "bigbird_layout",
    "global_rows_missing",
    replace="    layout[:global_blocks] = True\n",
    by="",
    says="Global blocks are read by all, but do not read all themselves.",
    hint="Global means both: a full row and a full column.",
)
edit(
    "bigbird_layout",
    "window_to_either_side",
    replace="sliding_window_mask(blocks, blocks, window, causal=False)",
    by="sliding_window_mask(blocks, blocks, 2 * window, causal=False)",
    says="Your window reaches `window` blocks to either side instead of window // 2.",
    hint="`window` counts the own block and both sides.",
)
edit(
    "bigbird_layout",
    "causal_window",
    replace="causal=False",
    by="causal=True",
    says="Your window looks back only; BigBird's looks to both sides.",
    hint="BigBird is an encoder.",
)
edit(
    "bigbird_layout",
    "own_generator",
    replace="    for row in layout:",
    by="    rng = np.random.default_rng(0)\n    for row in layout:",
    says="You draw from a generator of your own, so every layout is the same, whatever generator was given.",
    hint="What is the argument `rng` for?",
)
edit(
    "bigbird_layout",
    "first_free_blocks",
    replace="rng.choice(free, size=min(random_blocks, len(free)), replace=False)",
    by="free[:random_blocks]",
    says="You take the first free blocks of each row; nothing is drawn.",
    hint="All free blocks should be equally likely.",
)
edit(
    "bigbird_layout",
    "fails_when_few_are_free",
    replace="size=min(random_blocks, len(free))",
    by="size=random_blocks",
    says="Where fewer blocks are free than should be drawn, in global rows above all, your draw raises an error.",
    hint="How many can be drawn at most?",
)

# block_sparse_attention


@alternative("block_sparse_attention")
def row_of_blocks_by_row(q, k, v, layout, block):
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    for row, listed in enumerate(layout):
        keys = torch.cat([torch.arange(block) + j * block for j in listed.nonzero().flatten().tolist()] or [listed[:0]])
        keys = keys[keys < k.shape[-2]].long()
        rows = slice(row * block, (row + 1) * block)
        if len(keys):
            weights = (q[..., rows, :] @ k[..., keys, :].mT / q.shape[-1] ** 0.5).softmax(dim=-1)
            out[..., rows, :] = weights @ v[..., keys, :]
    return out


edit(
    "block_sparse_attention",
    "no_scale",
    replace="(q * q.shape[-1] ** -0.5, k, v)",
    by="(q, k, v)",
    says="You forgot the factor 1/√head_dim.",
    hint="By which factor does the spread of q·k grow with the width of a head?",
)
edit(
    "block_sparse_attention",
    "padding_is_attended",
    replace="    scores = scores.masked_fill((key >= kv_seq)[:, None, :], -torch.inf)\n",
    by="",
    says="The padding of the last block of keys takes part in the softmax.",
    hint="Which keys of the last block exist?",
)
edit(
    "block_sparse_attention",
    "softmax_within_each_block",
    replace="weights = (scores - peak[..., rows, :, None]).exp()",
    by="weights = scores.softmax(dim=-1)",
    says="You normalise inside each block apart and average the blocks, as if all of them held the same share.",
    hint="The softmax of a query runs over all keys of all its blocks.",
)
edit(
    "block_sparse_attention",
    "softmax_without_maximum",
    replace="weights = (scores - peak[..., rows, :, None]).exp()",
    by="weights = scores.exp()",
    says="You exponentiate raw scores, so large ones overflow to inf and the output becomes NaN.",
    hint="Which number can be taken from all scores of a row without changing its softmax?",
)
edit(
    "block_sparse_attention",
    "maximum_of_each_block",
    replace="weights = (scores - peak[..., rows, :, None]).exp()",
    by="weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()",
    says="You take off each block's own maximum, so blocks of one row are no longer comparable.",
    hint="All blocks of a row have to be lowered by the same number.",
)
edit(
    "block_sparse_attention",
    "one_maximum_for_all_queries",
    replace="(scores - peak[..., rows, :, None]).exp()",
    by="(scores - peak.amax(dim=(-1, -2), keepdim=True)[..., None]).exp()",
    says=(
        "You take one maximum off the scores of all queries: where a query's own scores lie far below it, all of its "
        "weights round to 0."
    ),
    hint="Which number has to be 0 at the top of every row, so that each row keeps at least one weight of 1?",
)
edit(
    "block_sparse_attention",
    "one_maximum_for_a_block_of_queries",
    replace="(scores - peak[..., rows, :, None]).exp()",
    by="(scores - peak.amax(dim=-1, keepdim=True)[..., rows, :, None]).exp()",
    says=(
        "The queries of a block share one maximum: where a query's own scores lie far below it, all of its weights "
        "round to 0."
    ),
    hint="Whose scores does a row of weights compare? Whose maximum belongs to it?",
)
edit(
    "block_sparse_attention",
    "empty_rows_are_nan",
    replace="total.masked_fill(total == 0, 1)[..., None]",
    by="total[..., None]",
    says="A query whose block reads nothing becomes 0 / 0.",
    hint="What is the sum of no weights, and what should the output be?",
)
edit(
    "block_sparse_attention",
    "layout_transposed",
    replace="rows, columns = layout.nonzero(as_tuple=True)",
    by="columns, rows = layout.nonzero(as_tuple=True)",
    says="You read the layout the wrong way round: its rows are blocks of queries.",
    hint="layout[i, j] is True where the queries of block i read the keys of block j.",
)


@mistake(
    "block_sparse_attention",
    says="You compute all scores and mask most of them: the pattern is right, but time and memory stay quadratic.",
    hint="A mask alone saves nothing. Work on a list of the listed blocks.",
)
def masks_the_whole_matrix_by_blocks(q, k, v, layout, block):
    mask = layout.repeat_interleave(block, 0)[: q.shape[-2]].repeat_interleave(block, 1)[:, : k.shape[-2]]
    return masked_softmax(q @ k.mT * q.shape[-1] ** -0.5, mask) @ v


@mistake(
    "block_sparse_attention",
    says="You give every row as many blocks as the fullest has, so one full row makes all of them dense.",
    hint="How many products are needed in all? As many as there are True entries.",
)
def padded_to_the_fullest_row(q, k, v, layout, block):
    q_seq, kv_seq, most = q.shape[-2], k.shape[-2], max(1, int(layout.sum(-1).max()))
    columns = layout.int().argsort(dim=-1, descending=True, stable=True)[:, :most]
    used = layout.gather(1, columns)
    padded = [torch.nn.functional.pad(x, (0, 0, 0, -x.shape[-2] % block)).unflatten(-2, (-1, block)) for x in (q, k, v)]
    near_k, near_v = (x[..., columns, :, :].flatten(-3, -2) for x in padded[1:])
    key = (columns[..., None] * block + torch.arange(block)).flatten(-2)
    seen = used.repeat_interleave(block, -1) & (key < kv_seq)
    weights = masked_softmax(padded[0] @ near_k.mT * q.shape[-1] ** -0.5, seen[:, None, :])
    return (weights @ near_v).flatten(-3, -2)[..., :q_seq, :]


@mistake(
    "block_sparse_attention",
    says="You score every key for each query and mask most of it: without a product of matrices that is quadratic too.",
    hint="Multiplying element by element is no less work. Work on a list of the listed blocks.",
)
def every_key_by_products_of_elements_of_blocks(q, k, v, layout, block):
    mask, out = layout.repeat_interleave(block, 1)[:, : k.shape[-2]], q.new_zeros(*q.shape[:-1], v.shape[-1])
    for number, rows in enumerate(torch.arange(q.shape[-2]).split(block)):
        scores = (q[..., rows, None, :] * k[..., None, :, :]).sum(-1) * q.shape[-1] ** -0.5
        out[..., rows, :] = (masked_softmax(scores, mask[number])[..., None] * v[..., None, :, :]).sum(-2)
    return out


# chunked_block_local_attention


@alternative("chunked_block_local_attention")
def block_after_block(q, k, v, block, causal=False):
    seq, out = q.shape[-2], []
    for start in range(0, seq, block):
        stop, first = min(start + block, seq), max(start - block, 0)
        scores = q[..., start:stop, :] @ k[..., first:stop, :].mT / q.shape[-1] ** 0.5
        if causal:
            future = torch.arange(first, stop) > torch.arange(start, stop)[:, None]
            scores = scores.masked_fill(future, -torch.inf)
        out.append(scores.softmax(dim=-1) @ v[..., first:stop, :])
    return torch.cat(out, dim=-2)


edit(
    "chunked_block_local_attention",
    "no_scale",
    replace="(q * q.shape[-1] ** -0.5, k, v)",
    by="(q, k, v)",
    says="You forgot the factor 1/√head_dim.",
    hint="By which factor does the spread of q·k grow with the width of a head?",
)
edit(
    "chunked_block_local_attention",
    "padding_before_the_first_block",
    replace="seen = (key >= 0) & (key < seq)",
    by="seen = key < seq",
    says="The first block attends to the zeros that stand in for the block before it.",
    hint="What is before the first block?",
)
edit(
    "chunked_block_local_attention",
    "padding_after_the_last_token",
    replace="seen = (key >= 0) & (key < seq)",
    by="seen = key >= 0",
    says="The last block attends to the zeros that fill it up.",
    hint="Which keys of the last block exist?",
)
edit(
    "chunked_block_local_attention",
    "own_block_only",
    replace="seen = (key >= 0) & (key < seq)",
    by="seen = (key >= query[:, None, :1]) & (key < seq)",
    says="Every query reads its own block only; the one before belongs to it as well.",
    hint="What does the first query of a block see of the tokens just before it?",
)
edit(
    "chunked_block_local_attention",
    "causal_ignored",
    replace="    if causal:\n        seen = seen & (key <= query[..., None])\n",
    by="",
    says="You compute the same with and without `causal`.",
    hint="Which keys of the own block come after the query?",
)
edit(
    "chunked_block_local_attention",
    "always_causal",
    replace="    if causal:\n        seen = seen & (key <= query[..., None])\n",
    by="    seen = seen & (key <= query[..., None])\n",
    says="You hide the future also where `causal` is False.",
    hint="Without `causal` a query reads all of its block.",
)
edit(
    "chunked_block_local_attention",
    "causal_hides_itself",
    replace="key <= query[..., None]",
    by="key < query[..., None]",
    says="With `causal` a query does not see itself.",
    hint="The own position is not the future.",
)
edit(
    "chunked_block_local_attention",
    "window_instead_of_blocks",
    replace="seen = (key >= 0) & (key < seq)",
    by="seen = (key >= 0) & (key < seq) & (query[..., None] - key < block)",
    says="You read the last `block` positions before the query; block-local attention reads all of the block before.",
    hint="Do all queries of a block see the same keys (without `causal`)?",
)


@mistake(
    "chunked_block_local_attention",
    says="You compute all scores and mask most of them: the pattern is right, but time and memory stay quadratic.",
    hint="Stack each block of keys with the one before, and multiply with one block of queries.",
)
def masks_the_whole_matrix_by_pairs_of_blocks(q, k, v, block, causal=False):
    at = torch.arange(q.shape[-2])
    gap = at[:, None] // block - at // block
    mask = (gap == 0) | (gap == 1)
    if causal:
        mask &= at <= at[:, None]
    return masked_softmax(q @ k.mT * q.shape[-1] ** -0.5, mask) @ v


# lsh_buckets


@alternative("lsh_buckets")
def largest_magnitude_and_its_sign(x, rotations):
    projected = torch.einsum("...nd,rdh->...rnh", x, rotations)
    winner = projected.abs().argmax(dim=-1, keepdim=True)
    negative = projected.gather(-1, winner) < 0
    return (winner + negative * rotations.shape[-1]).squeeze(-1)


edit(
    "lsh_buckets",
    "opposites_missing",
    replace="torch.cat([projected, -projected], dim=-1).argmax(dim=-1)",
    by="projected.argmax(dim=-1)",
    says="You take the largest projection only; the opposite directions are buckets of their own.",
    hint="How many buckets do `half` directions make?",
)
edit(
    "lsh_buckets",
    "opposite_share_a_bucket",
    replace="torch.cat([projected, -projected], dim=-1).argmax(dim=-1)",
    by="projected.abs().argmax(dim=-1)",
    says="You take the largest magnitude, so that opposite tokens fall into one bucket.",
    hint="Would a query attend to a key that points away from it?",
)
edit(
    "lsh_buckets",
    "negatives_first",
    replace="[projected, -projected]",
    by="[-projected, projected]",
    says="You number the opposite directions first; the order is [xR; −xR].",
    hint="Which bucket belongs to a token that points along the first direction?",
)
edit(
    "lsh_buckets",
    "interleaved",
    replace="torch.cat([projected, -projected], dim=-1).argmax(dim=-1)",
    by="torch.stack([projected, -projected], dim=-1).flatten(-2).argmax(dim=-1)",
    says="You put each direction beside its opposite; the order is all of xR, then all of −xR.",
    hint="By how much do the buckets of x and −x differ?",
)
edit(
    "lsh_buckets",
    "signs_as_bits",
    replace="torch.cat([projected, -projected], dim=-1).argmax(dim=-1)",
    by="((projected > 0) * 2 ** torch.arange(projected.shape[-1])).sum(-1)",
    says="You read the signs of the projections as bits, which is another hash, with 2^half buckets.",
    hint="The Reformer asks which direction is nearest, not on which side of each plane a token lies.",
)
edit(
    "lsh_buckets",
    "rounds_after_tokens",
    replace=".argmax(dim=-1)",
    by=".argmax(dim=-1).mT",
    says="You return (*batch, seq, rounds); the axis of rounds stands before the one of tokens.",
    hint="Which of the two axes is the last one?",
)
edit(
    "lsh_buckets",
    "first_round_only",
    replace="x.unsqueeze(-3) @ rotations",
    by="x.unsqueeze(-3) @ rotations[:1].expand_as(rotations)",
    says="You hash every round with the first rotation, so all rounds agree.",
    hint="What are several rounds good for?",
)

# lsh_attention


@alternative("lsh_attention")
def bucket_by_bucket(qk, v, rotations, chunk):
    *batch, seq, head_dim = qk.shape
    flat, values = qk.reshape(-1, seq, head_dim), v.reshape(-1, seq, v.shape[-1])
    keys = flat / flat.norm(dim=-1, keepdim=True)
    buckets = lsh_buckets(flat, rotations).tolist()
    out = []
    for b, rounds in enumerate(buckets):
        met = [set() for _ in range(seq)]
        for bucket in rounds:
            order = sorted(range(seq), key=lambda i, bucket=bucket: (bucket[i], i))
            for start in range(0, seq, chunk):
                own, near = order[start : start + chunk], order[max(0, start - chunk) : start + chunk]
                for i in own:
                    met[i].update(j for j in near if j < i and bucket[i] == bucket[j])
        rows = []
        for i, seen in enumerate(met):
            index = torch.tensor(sorted(seen) or [i])
            weights = (keys[b, index] @ flat[b, i] / head_dim**0.5).softmax(0)
            rows.append(weights @ values[b, index])
        out.append(torch.stack(rows))
    return torch.stack(out).reshape(*batch, seq, v.shape[-1])


edit(
    "lsh_attention",
    "keys_not_normalised",
    replace="F.normalize(qk, dim=-1)",
    by="qk",
    says="You use the tokens themselves as keys; they have to be of unit norm.",
    hint="With shared queries and keys, which key would a token otherwise prefer?",
)
edit(
    "lsh_attention",
    "queries_normalised_too",
    replace="for x in (qk * qk.shape[-1] ** -0.5,",
    by="for x in (F.normalize(qk, dim=-1) * qk.shape[-1] ** -0.5,",
    says="You bring queries to unit norm as well; only keys are.",
    hint="Whose length decides how sharp a row of weights is?",
)
edit(
    "lsh_attention",
    "no_scale",
    replace="for x in (qk * qk.shape[-1] ** -0.5,",
    by="for x in (qk,",
    says="You forgot the factor 1/√head_dim.",
    hint="Scores of the course are scaled unless a contract says otherwise.",
)
edit(
    "lsh_attention",
    "self_like_any_other",
    replace="(query @ key.mT - times.log()).masked_fill(i == j, torch.finfo(qk.dtype).min)",
    by="query @ key.mT - times.log()",
    says="Tokens attend to themselves like to any other key, and with shared queries and keys that takes most weight.",
    hint="When may a token attend to itself?",
)
edit(
    "lsh_attention",
    "keys_counted_in_every_round",
    replace="(query @ key.mT - times.log())",
    by="(query @ key.mT)",
    says="A key that several rounds meet is counted once in each of them.",
    hint="What has to be taken from a score so that r copies of it weigh as much as one?",
)
edit(
    "lsh_attention",
    "rounds_averaged",
    replace="shares = torch.cat(logs, dim=-1).softmax(dim=-1)",
    by="shares = torch.full_like(torch.cat(logs, dim=-1), 1 / rounds)",
    says="You average the rounds; each counts by the sum of its exponentials.",
    hint="How are two softmaxes over different keys joined into one?",
)
edit(
    "lsh_attention",
    "across_buckets",
    replace="~met[own] | (j > i)",
    by="(i < 0) | (j > i)",
    says="Tokens of a chunk attend to each other whatever their bucket.",
    hint="A chunk may hold the end of one bucket and the beginning of the next.",
)
edit(
    "lsh_attention",
    "not_causal",
    replace="~met[own] | (j > i)",
    by="~met[own] | (j == length)",
    says="Tokens also attend to later ones of their bucket.",
    hint="Sorting mixes the order; positions have to travel along.",
)
edit(
    "lsh_attention",
    "own_chunk_only",
    replace="F.pad(at, (0, 0, 0, 0, 1, -1), value=length)",
    by="torch.full_like(at, length)",
    says="You do not read the chunk before: a bucket that crosses a border is cut in two.",
    hint="What stands in front of a chunk after sorting?",
)
edit(
    "lsh_attention",
    "result_left_sorted",
    replace="outs.append(out.flatten(-3, -2).take_along_dim(rank[..., own, :, None], dim=-2))",
    by="outs.append(out.flatten(-3, -2))",
    says="You leave the output in sorted order.",
    hint="What undoes a sort?",
)


@mistake(
    "lsh_attention",
    says="You compute all scores and mask most of them: the pattern is right, but time and memory stay quadratic.",
    hint="After sorting, a chunk needs the scores of two chunks only.",
)
def masks_the_whole_matrix_by_buckets(qk, v, rotations, chunk):
    seq = qk.shape[-2]
    bucket = lsh_buckets(qk, rotations)
    place = bucket.argsort(dim=-1, stable=True).argsort(dim=-1) // chunk
    met = (bucket[..., None] == bucket[..., None, :]) & (place[..., None] <= place[..., None, :] + 1)
    mask = met.any(dim=-3).tril(-1)
    mask = mask | (torch.eye(seq, dtype=torch.bool) & ~mask.any(-1, keepdim=True))
    return masked_softmax(qk @ F.normalize(qk, dim=-1).mT * qk.shape[-1] ** -0.5, mask) @ v


@mistake(
    "lsh_attention",
    says="You go through the tokens block by block and score every key for each: memory is small, work quadratic.",
    hint="What is the sorting for? A chunk meets two chunks.",
)
def every_key_block_by_block_after_hashing(qk, v, rotations, chunk):
    at, out = torch.arange(qk.shape[-2]), torch.zeros_like(v)
    bucket = lsh_buckets(qk, rotations)
    place = bucket.argsort(dim=-1, stable=True).argsort(dim=-1) // chunk
    for rows in at.split(64):
        met = bucket[..., rows, None] == bucket[..., None, :]
        met = met & (place[..., rows, None] <= place[..., None, :] + 1)
        seen = met.any(dim=-3) & (at < rows[:, None])
        seen = seen | ((at == rows[:, None]) & ~seen.any(-1, keepdim=True))
        scores = qk[..., rows, :] @ F.normalize(qk, dim=-1).mT * qk.shape[-1] ** -0.5
        out[..., rows, :] = masked_softmax(scores, seen) @ v
    return out


@mistake(
    "lsh_attention",
    says="You score every key for each token and mask most of it: without a product of matrices that is quadratic too.",
    hint="Multiplying element by element is no less work. A chunk meets two chunks.",
)
def every_key_by_products_of_elements_after_hashing(qk, v, rotations, chunk):
    at, key, out = torch.arange(qk.shape[-2]), F.normalize(qk, dim=-1), torch.zeros_like(v)
    bucket = lsh_buckets(qk, rotations)
    place = bucket.argsort(dim=-1, stable=True).argsort(dim=-1) // chunk
    for rows in at.split(64):
        met = bucket[..., rows, None] == bucket[..., None, :]
        met = met & (place[..., rows, None] <= place[..., None, :] + 1)
        seen = met.any(dim=-3) & (at < rows[:, None])
        seen = seen | ((at == rows[:, None]) & ~seen.any(-1, keepdim=True))
        scores = (qk[..., rows, None, :] * key[..., None, :, :]).sum(-1) * qk.shape[-1] ** -0.5
        out[..., rows, :] = (masked_softmax(scores, seen)[..., None] * v[..., None, :, :]).sum(-2)
    return out


# routing_attention


@alternative("routing_attention")
def cluster_by_cluster(q, k, v, centroids, window, decay=0.999):
    def normal(x):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    q, k = normal(q), normal(k)
    clusters = centroids.shape[-2]
    total, count = torch.zeros_like(v), torch.zeros_like(v[..., :1])
    moved = centroids.clone()
    tokens = torch.cat([q, k], dim=-2)
    nearest = torch.einsum("...hnd,hcd->...hnc", tokens, centroids).argmax(-1)
    for c in range(clusters):
        centroid = centroids[:, c, :, None]
        rows = (q @ centroid).squeeze(-1).argsort(dim=-1, descending=True)[..., :window, None]
        columns = (k @ centroid).squeeze(-1).argsort(dim=-1, descending=True)[..., :window, None]
        query, key, value = q.take_along_dim(rows, -2), k.take_along_dim(columns, -2), v.take_along_dim(columns, -2)
        answer = (query @ key.mT / q.shape[-1] ** 0.5).softmax(-1) @ value
        total = total.scatter_add(-2, rows.expand_as(answer), answer)
        count = count.scatter_add(-2, rows, torch.ones_like(answer[..., :1]))
        ours = (nearest == c)[..., None]
        size = ours.sum(-2).flatten(0, -3).sum(0) if ours.ndim > 3 else ours.sum(-2)
        mass = (tokens * ours).sum(-2)
        mass = mass.flatten(0, -3).sum(0) if mass.ndim > 2 else mass
        target = decay * centroids[:, c] + (1 - decay) * mass / size.clamp(min=1)
        moved[:, c] = torch.where(size > 0, target, centroids[:, c]).detach()
    return torch.where(count > 0, total / count.clamp(min=1), 0), moved


edit(
    "routing_attention",
    "not_normalised",
    replace="q, k = (F.layer_norm(x, x.shape[-1:]) for x in (q, k))",
    by="q, k = (x for x in (q, k))",
    says="You route and score queries and keys as they come; they have to be normalised first.",
    hint="Which token would every centroid take if lengths counted?",
)
edit(
    "routing_attention",
    "unit_norm_instead_of_layer_norm",
    replace="F.layer_norm(x, x.shape[-1:])",
    by="F.normalize(x, dim=-1)",
    says="You bring tokens to unit length; LayerNorm also takes out their mean, and leaves length √head_dim.",
    hint="Which normalisation does the contract name?",
)
edit(
    "routing_attention",
    "no_scale",
    replace="(query @ key.mT * q.shape[-1] ** -0.5)",
    by="(query @ key.mT)",
    says="You forgot the factor 1/√head_dim.",
    hint="Scores of the course are scaled unless a contract says otherwise.",
)
edit(
    "routing_attention",
    "all_pairs_scored_first",
    replace="(query @ key.mT * q.shape[-1] ** -0.5)",
    by="""(q @ k.mT * q.shape[-1] ** -0.5).unsqueeze(-3).take_along_dim(q_at[..., None], -2).take_along_dim(
        k_at.unsqueeze(-2), -1
    )""",
    says="You score all pairs and then pick those inside clusters, so that nothing is saved.",
    hint="Gather the members of a cluster before you multiply.",
)
edit(
    "routing_attention",
    "all_pairs_multiplied_first",
    replace="(query @ key.mT * q.shape[-1] ** -0.5)",
    by="""torch.cat(
        [
            (q[..., None, :] * some[..., None, :, :]).sum(-1).unsqueeze(-3).take_along_dim(q_at[..., None], -2)
            for some in (k * q.shape[-1] ** -0.5).split(64, -2)
        ],
        dim=-1,
    ).take_along_dim(k_at.unsqueeze(-2), -1)""",
    says="You score all pairs, element by element, and then pick those inside clusters: that is quadratic too.",
    hint="Gather the members of a cluster before you multiply, whatever you multiply with.",
)
edit(
    "routing_attention",
    "summed_over_clusters",
    replace="return summed / count.clamp(min=1), moved",
    by="return summed, moved",
    says="You add up what a query gets from several clusters; the mean is asked for.",
    hint="What should a query in two clusters get, compared with one in a single cluster?",
)
edit(
    "routing_attention",
    "nan_where_in_none",
    replace="count.clamp(min=1), moved",
    by="count, moved",
    says="A query that no cluster took becomes 0 / 0.",
    hint="What is the output of a query that attends to nothing?",
)
edit(
    "routing_attention",
    "keys_of_the_queries",
    replace="(v, k_at)",
    by="(v, q_at)",
    says="You gather the values at the places of the queries instead of those of the keys.",
    hint="A value belongs to its key.",
)
edit(
    "routing_attention",
    "centroids_not_moved",
    replace="return summed / count.clamp(min=1), moved",
    by="return summed / count.clamp(min=1), centroids",
    says="You return the centroids as they came.",
    hint="Centroids follow their tokens, a little at every call.",
)
edit(
    "routing_attention",
    "centroids_summed",
    replace="total / size.clamp(min=1)",
    by="total",
    says="You move centroids towards the sum of their tokens; the mean is asked for.",
    hint="How large would a centroid get in a long sequence?",
)
edit(
    "routing_attention",
    "decay_swapped",
    replace="decay * centroids + (1 - decay) * total",
    by="(1 - decay) * centroids + decay * total",
    says="You swapped the shares: `decay` is how much of the old centroid is kept.",
    hint="With decay = 0.999, does a centroid move fast or slowly?",
)
edit(
    "routing_attention",
    "unvisited_centroids_shrink",
    replace="torch.where(size > 0, decay * centroids + (1 - decay) * total / size.clamp(min=1), centroids)",
    by="decay * centroids + (1 - decay) * total / size.clamp(min=1)",
    says="A centroid without tokens is pulled to zero.",
    hint="To which mean should it move, when there is none?",
)
edit(
    "routing_attention",
    "centroids_follow_queries_only",
    replace="tokens = torch.cat([q, k], dim=-2)",
    by="tokens = q",
    says="Your centroids follow the queries only; keys count as well.",
    hint="Which tokens are routed?",
)

# reachability


@alternative("reachability")
def by_repeated_squaring(mask, layers):
    hop = mask | torch.eye(mask.shape[-1], dtype=torch.bool)
    reached = torch.eye(mask.shape[-1], dtype=torch.bool).expand_as(mask).clone()
    while layers:
        if layers % 2:
            reached = (hop.unsqueeze(-1) & reached.unsqueeze(-3)).any(-2)
        hop = (hop.unsqueeze(-1) & hop.unsqueeze(-3)).any(-2)
        layers //= 2
    return reached


edit(
    "reachability",
    "one_hop_too_many",
    replace="for _ in range(layers):",
    by="for _ in range(layers + 1):",
    says="You make one hop more than there are layers.",
    hint="What does one layer reach? Exactly the mask, and every token itself.",
)
edit(
    "reachability",
    "one_hop_too_few",
    replace="for _ in range(layers):",
    by="for _ in range(layers - 1):",
    says="You make one hop less than there are layers.",
    hint="What does one layer reach? Exactly the mask, and every token itself.",
)
edit(
    "reachability",
    "no_residual",
    replace="hop = (mask | reached).float()",
    by="hop = mask.float()",
    says="You count paths of exactly `layers` hops; a residual connection lets information stay where it is.",
    hint="What does a token know of itself in a layer that hides it from itself?",
)
edit(
    "reachability",
    "wrong_direction",
    replace="return reached",
    by="return reached.mT",
    says="You return who is influenced by whom the other way round.",
    hint="The row of the result is the token whose output depends on others, as in the mask.",
)
edit(
    "reachability",
    "symmetric",
    replace="hop = (mask | reached).float()",
    by="hop = (mask | mask.mT | reached).float()",
    says="You let information flow both ways along each pair; a query learns of a key, not the key of the query.",
    hint="Is the causal mask symmetric?",
)
edit(
    "reachability",
    "counts_overflow",
    replace="        reached = hop @ reached.float() > 0\n    return reached",
    by="""        reached = hop @ reached.float()
    return (reached > 0) & (reached < torch.inf)""",
    says="You multiply numbers of paths, which overflow after many layers.",
    hint="Only whether a path exists matters; turn counts into booleans at every hop.",
)
edit(
    "reachability",
    "mask_of_one_layer",
    replace="    for _ in range(layers):\n        reached = hop @ reached.float() > 0\n    return reached",
    by="    return mask | reached",
    says="You return what one layer reaches, however many there are.",
    hint="In the second layer the keys have heard of others already.",
)

# mask_cost


@alternative("mask_cost")
def by_max_pooling(mask, block):
    padded = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    tiles = torch.nn.functional.max_pool2d(padded, block, ceil_mode=True)
    return float(mask.sum()) / mask.numel(), float(tiles.double().mean())


edit(
    "mask_cost",
    "full_tiles_only",
    replace="tiles.any(dim=-1).any(dim=-2)",
    by="tiles.all(dim=-1).all(dim=-2)",
    says="You count tiles that are full; a tile with a single pair has to be computed too.",
    hint="When may a kernel skip a tile?",
)
edit(
    "mask_cost",
    "tiles_rounded_down",
    replace="F.pad(mask, (0, -kv_seq % block, 0, -q_seq % block))",
    by="mask[..., : q_seq // block * block, : kv_seq // block * block]",
    says="You cut off the smaller tiles at the ends.",
    hint="How many tiles does a mask of 10 columns have, in tiles of 4?",
)
edit(
    "mask_cost",
    "swapped",
    replace="return mask.double().mean().item(), tiles.any(dim=-1).any(dim=-2).double().mean().item()",
    by="return tiles.any(dim=-1).any(dim=-2).double().mean().item(), mask.double().mean().item()",
    says="You return the two densities in the other order.",
    hint="The exact density comes first.",
)
edit(
    "mask_cost",
    "pairs_of_padded_tiles",
    replace="tiles.any(dim=-1).any(dim=-2).double().mean().item()",
    by="(tiles.any(dim=-1).any(dim=-2).sum() * block**2 / mask.numel()).item()",
    says="You count the padding of the smaller tiles as pairs, so the density can exceed 1.",
    hint="The block density is a share of tiles.",
)
edit(
    "mask_cost",
    "counts_instead_of_shares",
    replace="return mask.double().mean().item(), tiles.any(dim=-1).any(dim=-2).double().mean().item()",
    by="return mask.double().sum().item(), tiles.any(dim=-1).any(dim=-2).double().sum().item()",
    says="You return how many there are, not which share.",
    hint="A density lies between 0 and 1.",
)
edit(
    "mask_cost",
    "hidden_instead_of_kept",
    replace="mask.double().mean().item(), tiles",
    by="(~mask).double().mean().item(), tiles",
    says="Your first number is the share of hidden pairs.",
    hint="True means may attend.",
)
edit(
    "mask_cost",
    "tensors_instead_of_numbers",
    replace="return mask.double().mean().item(), tiles.any(dim=-1).any(dim=-2).double().mean().item()",
    by="return mask.double().mean(), tiles.any(dim=-1).any(dim=-2).double().mean()",
    says="You return tensors where plain numbers are asked for.",
    hint="A tensor of one number has a method that gives the number.",
)
