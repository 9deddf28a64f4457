"""Other right answers to chapter `flash`, and the mistakes people really make."""

import math

import torch

from autograder.answers import alternative, edit, mistake
from solutions.flash import blockwise_attention, flash_attention_backward, merge_partials

# online_softmax


@alternative("online_softmax")
def by_logarithms(chunks):
    peaks, logs = [], []
    for chunk in chunks:
        never = chunk.new_full((*chunk.shape[:-1], 1), -math.inf)
        peaks.append(torch.cat([chunk, never], dim=-1).amax(dim=-1))
        logs.append(chunk.logsumexp(dim=-1))
        if len(logs) == 2:
            peaks, logs = [torch.maximum(*peaks)], [torch.logaddexp(*logs)]
    maximum, lse = peaks[0], logs[0]
    return maximum, torch.where(lse > -math.inf, lse - maximum, -math.inf).exp()


edit(
    "online_softmax",
    "sum_not_rescaled",
    replace="total = total * (maximum - base).exp() + (chunk",
    by="total = total + (chunk",
    says="When the maximum rises, the sum so far stays as it was; it was measured from the old maximum.",
    hint="By which factor does exp(score − old maximum) become exp(score − new maximum)?",
)
edit(
    "online_softmax",
    "rescaled_the_wrong_way",
    replace="(maximum - base).exp() + (chunk",
    by="(base - maximum).exp() + (chunk",
    says="You scale the old sum by exp(new − old), which makes it larger; a larger maximum makes every term smaller.",
    hint="Should the old sum shrink or grow when the maximum rises?",
)
edit(
    "online_softmax",
    "no_maximum_taken_off",
    replace="total = total * (maximum - base).exp() + (chunk - base.unsqueeze(-1)).exp().sum(dim=-1)",
    by="total = total + chunk.exp().sum(dim=-1)",
    says="You add raw exponentials: they overflow, and they are not what is asked for, exp(score − maximum).",
    hint="What is the largest number that you ever put into exp?",
)
edit(
    "online_softmax",
    "raw_sum_divided_at_the_end",
    replace="total = total * (maximum - base).exp() + (chunk - base.unsqueeze(-1)).exp().sum(dim=-1)",
    by="total = (total * maximum.exp() if maximum.isfinite().all() else total) + chunk.exp().sum(-1)\n"
    "        total = total * (-larger).exp()",
    says="You go by way of raw exponentials; what is right for small scores overflows or vanishes for large ones.",
    hint="Never form exp(score) itself. Which difference is never positive?",
)
edit(
    "online_softmax",
    "maximum_of_the_last_chunk",
    replace="torch.cat([maximum.unsqueeze(-1), chunk], dim=-1)",
    by="torch.cat([torch.full_like(maximum, -torch.inf).unsqueeze(-1), chunk], dim=-1)",
    says="You take the maximum of the newest chunk and forget the ones before.",
    hint="The running maximum never falls.",
)
edit(
    "online_softmax",
    "each_chunk_from_its_own_maximum",
    replace="total = total * (maximum - base).exp() + (chunk - base.unsqueeze(-1)).exp().sum(dim=-1)",
    by="own = torch.cat([chunk, torch.full_like(base, -1e300).unsqueeze(-1)], dim=-1).amax(dim=-1)\n"
    "        total = total + (chunk - own.unsqueeze(-1)).exp().sum(dim=-1)",
    says="You add up sums that are measured each from its own chunk's maximum; such sums cannot be added.",
    hint="Bring two sums to the same maximum before you add them.",
)
edit(
    "online_softmax",
    "maximum_starts_at_zero",
    replace="maximum = chunk.new_full(chunk.shape[:-1], -torch.inf)",
    by="maximum = chunk.new_zeros(chunk.shape[:-1])",
    says="Your maximum starts at 0, so that a row of negative scores ends with 0.",
    hint="Which number is smaller than every score?",
)
edit(
    "online_softmax",
    "nan_from_masked_chunks",
    replace="base = larger.masked_fill(larger == -torch.inf, 0)",
    by="base = larger",
    says="While a row has seen nothing but −∞, you compute −∞ − (−∞), which is NaN.",
    hint="What may be taken off instead while the maximum is −∞?",
)
edit(
    "online_softmax",
    "lse_instead_of_the_sum",
    replace="return maximum, total",
    by="return maximum, maximum + total.log()",
    says="You return maximum + log(total); asked for is the sum itself.",
    hint="The logarithm comes later, in the functions that need lse.",
)
edit(
    "online_softmax",
    "mean_instead_of_sum",
    replace=".exp().sum(dim=-1)",
    by=".exp().mean(dim=-1)",
    says="You average inside a chunk; the denominator of a softmax is a sum.",
    hint="Do wide and narrow chunks count alike in yours?",
)
edit(
    "online_softmax",
    "empty_chunks_fail",
    replace="larger = torch.cat([maximum.unsqueeze(-1), chunk], dim=-1).amax(dim=-1)",
    by="larger = torch.maximum(maximum, chunk.amax(dim=-1))",
    says="A chunk without scores raises an error: it has no maximum of its own.",
    hint="Take one maximum over the chunk and the running maximum together.",
)
edit(
    "online_softmax",
    "chunks_changed_in_place",
    replace="(chunk - base.unsqueeze(-1)).exp().sum",
    by="chunk.sub_(base.unsqueeze(-1)).exp().sum",
    says="You subtract the maximum in the caller's chunk itself.",
    hint="Which of your operations end with an underscore, or write with `-=`?",
)


edit(
    "online_softmax",
    "starts_at_a_large_negative_number",
    replace="maximum = chunk.new_full(chunk.shape[:-1], -torch.inf)",
    by="maximum = chunk.new_full(chunk.shape[:-1], -1e9)",
    says="Your maximum starts at a large negative number instead of −∞; a row that is masked altogether ends with it.",
    hint="What is the maximum of no scores?",
)
edit(
    "online_softmax",
    "masked_rows_sum_to_one",
    replace="    return maximum, total",
    by="    return maximum, total.masked_fill(maximum == -torch.inf, 1)",
    says="For a row in which all is masked you return a sum of 1; nothing was seen, so the sum is 0.",
    hint="How many terms does the sum of such a row have?",
)


@mistake(
    "online_softmax",
    says="You go through the chunks twice, for the maximum and for the sum; what streams by can be read only once.",
    hint="Take both numbers of a chunk while you have it. What must happen to the old sum if its maximum is larger?",
)
def two_passes(chunks):
    maximum = total = None
    for chunk in chunks:
        own = torch.cat([chunk, chunk.new_full((*chunk.shape[:-1], 1), -math.inf)], dim=-1).amax(dim=-1)
        maximum = own if maximum is None else torch.maximum(maximum, own)
    total = torch.zeros_like(maximum)
    base = maximum.masked_fill(maximum == -math.inf, 0)
    for chunk in chunks:
        total = total + (chunk - base.unsqueeze(-1)).exp().sum(dim=-1)
    return maximum, total


@mistake(
    "online_softmax",
    says="You keep all chunks in a list and go through them twice; a chunk may be overwritten when the next one comes.",
    hint="After a chunk, only two numbers a row are needed of it. Which, and measured from where?",
)
def chunks_kept_for_a_second_pass(chunks):
    chunks = list(chunks)
    maximum = None
    for chunk in chunks:
        own = torch.cat([chunk, chunk.new_full((*chunk.shape[:-1], 1), -math.inf)], dim=-1).amax(dim=-1)
        maximum = own if maximum is None else torch.maximum(maximum, own)
    total = torch.zeros_like(maximum)
    base = maximum.masked_fill(maximum == -math.inf, 0)
    for chunk in chunks:
        total = total + (chunk - base.unsqueeze(-1)).exp().sum(dim=-1)
    return maximum, total


@mistake(
    "online_softmax",
    says="You put all chunks together: the result is right, but the whole row is what should not be held.",
    hint="After a chunk, only two numbers a row are needed of it.",
)
def chunks_put_together(chunks):
    row = torch.cat(list(chunks), dim=-1)
    lse = row.logsumexp(dim=-1)
    maximum = row.amax(dim=-1) if row.shape[-1] else lse
    return maximum, torch.where(lse == -torch.inf, 0.0, (lse - maximum).exp())


# merge_partials


@alternative("merge_partials")
def by_a_softmax_of_both(out_a, lse_a, out_b, lse_b):
    logs = torch.stack([lse_a, lse_b], dim=-1)
    shares = (logs - logs.amax(-1, keepdim=True).clamp(min=torch.finfo(logs.dtype).min)).exp()
    total = shares.sum(-1, keepdim=True)
    shares = shares / torch.where(total > 0, total, 1.0)
    return shares[..., :1] * out_a + shares[..., 1:] * out_b, logs.logsumexp(dim=-1)


MERGED = "return share_a * out_a + share_b * out_b, lse"
edit(
    "merge_partials",
    "plain_average",
    replace=MERGED,
    by="return (out_a + out_b) / 2, lse",
    says="You average the two outputs as if both parts held the same share.",
    hint="How much of the sum of exponentials does each part hold?",
)
edit(
    "merge_partials",
    "added_up",
    replace=MERGED,
    by="return out_a + out_b, lse",
    says="You add the two outputs. Each is an average already, so the sum is twice too large.",
    hint="What should come out if both parts have the same output?",
)
edit(
    "merge_partials",
    "weighted_by_lse_itself",
    replace=MERGED,
    by="return (lse_a.unsqueeze(-1) * out_a + lse_b.unsqueeze(-1) * out_b) / (lse_a + lse_b).unsqueeze(-1), lse",
    says="You weight by lse; a part counts by the sum of exponentials, of which lse is the logarithm.",
    hint="Can your weights be negative?",
)
edit(
    "merge_partials",
    "raw_exponentials",
    replace="    lse = torch.logaddexp(lse_a, lse_b)\n",
    by="    lse = (lse_a.exp() + lse_b.exp()).log()\n",
    says="You exponentiate lse itself, which overflows for large scores and vanishes for very negative ones.",
    hint="Take the larger of the two off first, and add it again after the logarithm.",
)
edit(
    "merge_partials",
    "nan_from_two_empty_parts",
    replace="base = lse.masked_fill(lse == -torch.inf, 0)",
    by="base = lse",
    says="Where both parts are empty you compute −∞ − (−∞), which is NaN.",
    hint="What should the share of an empty part be when the whole is empty too?",
)
edit(
    "merge_partials",
    "larger_lse_kept",
    replace=MERGED,
    by="return share_a * out_a + share_b * out_b, torch.maximum(lse_a, lse_b)",
    says="You return the larger lse; the union holds both sums of exponentials.",
    hint="What is the lse of two parts with the same lse?",
)
edit(
    "merge_partials",
    "lse_added",
    replace=MERGED,
    by="return share_a * out_a + share_b * out_b, lse_a + lse_b",
    says="You add the two logarithms, which multiplies the sums; it is the sums that add up.",
    hint="log(a) + log(b) is the logarithm of what?",
)
edit(
    "merge_partials",
    "not_divided_by_the_total",
    replace="base = lse.masked_fill(lse == -torch.inf, 0)",
    by="base = torch.maximum(lse_a, lse_b).masked_fill(lse == -torch.inf, 0)",
    says="Your shares are measured from the larger lse, so they add up to more than 1.",
    hint="Shares should sum to 1 wherever anything was seen.",
)
edit(
    "merge_partials",
    "shares_exchanged",
    replace=MERGED,
    by="return share_b * out_a + share_a * out_b, lse",
    says="Each output gets the other part's share.",
    hint="Which part counts more, the one with the larger or the smaller lse?",
)
edit(
    "merge_partials",
    "powers_of_two",
    replace="(lse_a - base).exp().unsqueeze(-1), (lse_b - base).exp().unsqueeze(-1)",
    by="(lse_a - base).exp2().unsqueeze(-1), (lse_b - base).exp2().unsqueeze(-1)",
    says="You raise 2 to the power of lse; in this course lse is a natural logarithm.",
    hint="Kernels work in base 2 inside, and scale by log₂ e. Do you?",
)
edit(
    "merge_partials",
    "shares_detached",
    replace="(lse_a - base).exp().unsqueeze(-1), (lse_b - base).exp().unsqueeze(-1)",
    by="(lse_a - base).detach().exp().unsqueeze(-1), (lse_b - base).detach().exp().unsqueeze(-1)",
    says="No gradient reaches lse: the shares are detached.",
    hint="A maximum may be detached, because it cancels. Does a share?",
)
edit(
    "merge_partials",
    "gradient_of_the_branch_not_taken",
    replace="    lse = torch.logaddexp(lse_a, lse_b)\n",
    by="    first = lse_a + (lse_b - lse_a).exp().log1p()\n"
    "    second = lse_b + (lse_a - lse_b).exp().log1p()\n"
    "    lse = torch.where(lse_a > lse_b, first, second).masked_fill((lse_a == lse_b) & lse_a.isinf(), -torch.inf)\n",
    says="The branch that torch.where does not take overflows for an empty part, and its gradient, 0 · ∞, is NaN.",
    hint="torch.where hides a bad value from the result, not from autograd. Which form never overflows on either side?",
)
edit(
    "merge_partials",
    "empty_part_takes_all",
    replace="    lse = torch.logaddexp(lse_a, lse_b)\n",
    by="    lse_a, lse_b = (x.masked_fill(x == -torch.inf, 0) for x in (lse_a, lse_b))\n"
    "    lse = torch.logaddexp(lse_a, lse_b)\n",
    says="You replace an lse of −∞ by 0, and exp(0) = 1: an empty part counts like a key of score 0.",
    hint="Which number leaves a sum of exponentials as it is?",
)

edit(
    "merge_partials",
    "winner_takes_all",
    replace=MERGED,
    by="return torch.where((lse_a >= lse_b).unsqueeze(-1), out_a, out_b), lse",
    says="You keep the output of the part with the larger lse and drop the other; both count by their shares.",
    hint="What should come out if both parts have the same lse?",
)
edit(
    "merge_partials",
    "measured_from_the_first_part",
    replace="    lse = torch.logaddexp(lse_a, lse_b)\n",
    by="    lse = lse_a + (1 + (lse_b - lse_a).exp()).log()\n",
    says="You measure from the first part even where it is the smaller, or empty: exp(lse_b − lse_a) overflows.",
    hint="From which of the two should the difference be taken so that no exponent is positive?",
)

edit(
    "merge_partials",
    "nan_to_num_on_everything",
    replace="    base = lse.masked_fill(lse == -torch.inf, 0)",
    by="    lse = lse.nan_to_num()\n    base = lse.masked_fill(lse == -torch.inf, 0)",
    says="nan_to_num also turns −∞ into a huge negative number; the lse of two empty parts is −∞.",
    hint="Which values does nan_to_num replace, beside NaN?",
)
edit(
    "merge_partials",
    "lse_clamped",
    replace="    lse = torch.logaddexp(lse_a, lse_b)\n",
    by="    lse_a, lse_b = lse_a.clamp(min=-700), lse_b.clamp(min=-700)\n    lse = torch.logaddexp(lse_a, lse_b)\n",
    says="You clamp lse so that no −∞ is left; very negative values change as well, and empty parts are not empty.",
    hint="Leave lse as it is. Which single subtraction makes NaN?",
)
edit(
    "merge_partials",
    "output_changed_in_place",
    replace=MERGED,
    by="out_a *= share_a\n    return out_a + share_b * out_b, lse",
    says="You scale the caller's out_a in place; it is changed for the caller too, and autograd refuses it.",
    hint="Which of your operations end with an underscore, or write with `*=`?",
)

# causal_block_schedule


@alternative("causal_block_schedule")
def corner_by_corner(q_blocks, k_blocks, block_q, block_k, shift=0):
    def seen(i, j):
        top, bottom = i * block_q + shift, (i + 1) * block_q - 1 + shift
        left, right = j * block_k, (j + 1) * block_k - 1
        if left > bottom:
            return 0
        return 2 if right <= top else 1

    return torch.tensor([[seen(i, j) for j in range(k_blocks)] for i in range(q_blocks)])


edit(
    "causal_block_schedule",
    "shift_ignored",
    replace="torch.arange(q_blocks)[:, None] * block_q + shift",
    by="torch.arange(q_blocks)[:, None] * block_q",
    says="You place query i at position i, whatever `shift` says.",
    hint="With more keys than queries, where does the first query stand?",
)
edit(
    "causal_block_schedule",
    "shift_the_wrong_way",
    replace="torch.arange(q_blocks)[:, None] * block_q + shift",
    by="torch.arange(q_blocks)[:, None] * block_q - shift",
    says="You move the queries back by `shift`; they stand at i + shift.",
    hint="shift is kv_seq − q_seq. Is it positive when there are more keys?",
)
edit(
    "causal_block_schedule",
    "skipped_by_the_first_query",
    replace="first_key <= first_query + block_q - 1",
    by="first_key <= first_query",
    says="You skip a tile when its first query sees nothing of it, and lose what the later queries of the block see.",
    hint="Which query of a block sees furthest?",
)
edit(
    "causal_block_schedule",
    "blocks_compared_instead_of_positions",
    replace="    reached = first_key <= first_query + block_q - 1\n"
    "    whole = first_key + block_k - 1 <= first_query\n",
    by="    reached = torch.arange(k_blocks) <= torch.arange(q_blocks)[:, None] + shift\n"
    "    whole = torch.arange(k_blocks) < torch.arange(q_blocks)[:, None] + shift\n",
    says="You compare numbers of blocks; that is right only for square tiles without shift.",
    hint="Multiply by the size of a block before you compare.",
)
edit(
    "causal_block_schedule",
    "partial_counted_as_full",
    replace="return reached.long() + whole.long()",
    by="return 2 * reached.long()",
    says="You call every tile full that is reached at all, so the diagonal would go unmasked.",
    hint="When may a kernel leave out the mask of a tile?",
)
edit(
    "causal_block_schedule",
    "full_counted_as_partial",
    replace="return reached.long() + whole.long()",
    by="return reached.long()",
    says="No tile is full in yours: every one that is reached would be masked.",
    hint="Below the diagonal a kernel can do without the mask. Which pair of a tile tells?",
)
edit(
    "causal_block_schedule",
    "full_by_the_last_query",
    replace="whole = first_key + block_k - 1 <= first_query\n",
    by="whole = first_key + block_k - 1 <= first_query + block_q - 1\n",
    says="You call a tile full when its last query sees all of it; the first one may not.",
    hint="Which query of a block sees least?",
)
edit(
    "causal_block_schedule",
    "full_short_of_one",
    replace="first_key + block_k - 1 <= first_query\n",
    by="first_key + block_k <= first_query\n",
    says="A tile whose last key stands at its first query's own position is full, and yours calls it partial.",
    hint="A query sees the key at its own position. Try tiles of one pair.",
)
edit(
    "causal_block_schedule",
    "reached_one_too_far",
    replace="first_key <= first_query + block_q - 1",
    by="first_key <= first_query + block_q",
    says="You reach one key too far: a tile that begins right after the last query is skipped.",
    hint="At which position does the last query of block i stand?",
)
edit(
    "causal_block_schedule",
    "codes_reversed",
    replace="return reached.long() + whole.long()",
    by="return 2 - reached.long() - whole.long()",
    says="Your codes run the other way: 0 is skipped, 2 is full.",
    hint="The code counts how much of a tile there is to see.",
)
edit(
    "causal_block_schedule",
    "keys_in_rows",
    replace="return reached.long() + whole.long()",
    by="return (reached.long() + whole.long()).mT",
    says="You return (k_blocks, q_blocks); rows are blocks of queries.",
    hint="Which axis is first in a matrix of scores?",
)
edit(
    "causal_block_schedule",
    "block_sizes_exchanged",
    replace="    first_query = torch.arange",
    by="    block_q, block_k = block_k, block_q\n    first_query = torch.arange",
    says="Queries are cut by block_k and keys by block_q in yours.",
    hint="Try tiles that are taller than wide.",
)

edit(
    "causal_block_schedule",
    "negative_shift_ignored",
    replace="    first_query = torch.arange",
    by="    shift = max(shift, 0)\n    first_query = torch.arange",
    says="You take a negative shift for 0; with more queries than keys the first ones stand before all keys.",
    hint="Which queries see nothing when there are more of them than keys?",
)
edit(
    "causal_block_schedule",
    "not_integers",
    replace="return reached.long() + whole.long()",
    by="return reached.float() + whole.float()",
    says="Your codes are floating-point numbers; they should be integers (int64).",
    hint="Which dtype has torch.arange?",
)

edit(
    "causal_block_schedule",
    "int32_codes",
    replace="return reached.long() + whole.long()",
    by="return reached.int() + whole.int()",
    says="Your codes are int32; asked for is torch's usual integer, int64.",
    hint="Which dtype has torch.arange?",
)

# blockwise_attention


@alternative("blockwise_attention")
def tiles_merged_as_partials(q, k, v, block_q, block_k, causal=False):
    shift = k.shape[-2] - q.shape[-2]
    outs, logs = [], []
    for start in range(0, q.shape[-2], block_q):
        rows = q[..., start : start + block_q, :]
        position = torch.arange(start, start + rows.shape[-2])[:, None] + shift
        out, lse = torch.zeros_like(rows[..., :1] * v[..., :1, :]), torch.full_like(rows[..., 0], -torch.inf)
        for first in range(0, k.shape[-2], block_k):
            keys, values = (x[..., first : first + block_k, :] for x in (k, v))
            if causal and first > position.max():
                break
            scores = rows @ keys.mT / math.sqrt(q.shape[-1])
            if causal:
                scores = torch.where(torch.arange(first, first + keys.shape[-2]) <= position, scores, -torch.inf)
            log = scores.logsumexp(dim=-1)
            weights = (scores - log.clamp(min=torch.finfo(log.dtype).min).unsqueeze(-1)).exp()
            out, lse = merge_partials(out, lse, weights @ values, log)
        outs.append(out)
        logs.append(lse)
    return torch.cat(outs, dim=-2), torch.cat(logs, dim=-1)


edit(
    "blockwise_attention",
    "accumulator_not_rescaled",
    replace="acc = acc * shrink.unsqueeze(-1) + weights",
    by="acc = acc + weights",
    says="When the maximum rises, the sum of weights shrinks and the accumulated output does not.",
    hint="Both running sums are measured from the same maximum.",
)
edit(
    "blockwise_attention",
    "total_not_rescaled",
    replace="total = total * shrink + weights",
    by="total = total + weights",
    says="When the maximum rises, the accumulated output shrinks and the sum of weights does not.",
    hint="Both running sums are measured from the same maximum.",
)
edit(
    "blockwise_attention",
    "nothing_rescaled",
    replace="weights, shrink = (scores - base.unsqueeze(-1)).exp(), (maximum - base).exp()",
    by="weights, shrink = (scores - base.unsqueeze(-1)).exp(), torch.ones_like(base)",
    says="Every tile is measured from the maximum at its time, and earlier sums are never brought to the new one.",
    hint="What does a new, larger maximum do to the two sums so far?",
)
UPDATE = """            acc = acc * shrink.unsqueeze(-1) + weights @ v[..., columns, :]
            total = total * shrink + weights.sum(dim=-1)
            maximum = larger
        out[..., rows, :] = acc / total.masked_fill(total == 0, 1).unsqueeze(-1)
"""
edit(
    "blockwise_attention",
    "softmax_of_each_tile_added_up",
    replace=UPDATE,
    by="""            acc = acc + scores.softmax(dim=-1).nan_to_num() @ v[..., columns, :]
            total = total * shrink + weights.sum(dim=-1)
            maximum = larger
        out[..., rows, :] = acc
""",
    says="You add up the softmax of each tile, as FlashAttention is often retold: each counts like a whole row.",
    hint="The softmax of a row runs over all of its tiles. What do its weights sum to in yours?",
)
edit(
    "blockwise_attention",
    "softmax_of_each_tile_averaged",
    replace=UPDATE,
    by="""            acc = acc + scores.softmax(dim=-1).nan_to_num() @ v[..., columns, :]
            total = total * shrink + weights.sum(dim=-1)
            maximum = larger
        out[..., rows, :] = acc / max(1, math.ceil((rows.stop + shift if causal else kv_seq) / block_k))
""",
    says="You average the tiles' own results, as if every tile held the same share of a row.",
    hint="A tile counts by its sum of exponentials, measured from a maximum that all tiles share.",
)
edit(
    "blockwise_attention",
    "divided_in_every_tile",
    replace=UPDATE,
    by="""            total = total * shrink + weights.sum(dim=-1)
            acc = (acc * shrink.unsqueeze(-1) + weights @ v[..., columns, :]) / total.clamp(min=1e-30).unsqueeze(-1)
            maximum = larger
        out[..., rows, :] = acc
""",
    says="You divide by the running sum after every tile, so the earlier tiles are divided again and again.",
    hint="Either undo the last division before the next, or divide once, at the end.",
)
edit(
    "blockwise_attention",
    "no_running_maximum",
    replace="base = larger.masked_fill(larger == -torch.inf, 0)  # a row that has seen nothing yet\n",
    by="larger = base = torch.zeros_like(maximum)\n            maximum = base\n",
    says="You exponentiate raw scores, without a running maximum: large scores overflow.",
    hint="Which number can be taken off all scores of a row without changing its softmax?",
)
edit(
    "blockwise_attention",
    "maximum_of_the_whole_tile",
    replace="scores.amax(dim=-1))",
    by="scores.amax(dim=(-2, -1)).unsqueeze(-1))",
    says="You take one maximum for all rows of a tile; a row whose scores are much smaller loses all of its weights.",
    hint="Every query has a softmax, and a maximum, of its own.",
)
edit(
    "blockwise_attention",
    "no_scale",
    replace="q_tile = q[..., rows, :] * scale",
    by="q_tile = q[..., rows, :]",
    says="You forgot the factor 1/√head_dim.",
    hint="By which factor does the spread of q·k grow with the width of a head?",
)
edit(
    "blockwise_attention",
    "causal_ignored",
    replace="            if causal:\n                seen",
    by="            if False:\n                seen",
    says="Beyond skipping tiles you do not mask: inside a tile on the diagonal the future is seen.",
    hint="Which pairs of a tile on the diagonal may be seen?",
)
edit(
    "blockwise_attention",
    "top_left",
    replace="shift = kv_seq - q_seq",
    by="shift = 0",
    says="You place query i at position i, which is right only where there are as many queries as keys.",
    hint="The last query stands beside the last key. Where does query 0 stand?",
)
edit(
    "blockwise_attention",
    "causal_hides_itself",
    replace=".tril(i + shift - j)",
    by=".tril(i + shift - j - 1)",
    says="With `causal` a query does not see the key at its own position.",
    hint="The own position is not the future.",
)
edit(
    "blockwise_attention",
    "causal_sees_one_more",
    replace=".tril(i + shift - j)",
    by=".tril(i + shift - j + 1)",
    says="With `causal` every query also sees the key right after its own position.",
    hint="Which is the last key that query i may see?",
)
edit(
    "blockwise_attention",
    "masked_by_tile_not_by_position",
    replace=".tril(i + shift - j)",
    by=".tril(0 if i == j else (kv_seq if j < i else -q_seq))",
    says="You mask by where tiles begin, which is right only for square tiles and as many queries as keys.",
    hint="Row r and column c of a tile stand at positions i + r + kv_seq − q_seq and j + c.",
)
edit(
    "blockwise_attention",
    "last_tile_dropped",
    replace="for j in range(0, rows.stop + shift if causal else kv_seq, block_k):",
    by="for j in range(0, (rows.stop + shift if causal else kv_seq) - block_k + 1, block_k):",
    says="You leave out the last keys where they do not fill a tile.",
    hint="How many tiles does it take to hold all keys? Round up.",
)
edit(
    "blockwise_attention",
    "padding_is_attended",
    replace="    shift = kv_seq - q_seq\n    out = ",
    by="""    shift = kv_seq - q_seq
    k, v = (torch.nn.functional.pad(x, (0, 0, 0, -kv_seq % block_k)) for x in (k, v))
    kv_seq = k.shape[-2]
    out = """,
    says="You fill up the last tile with zeros and let them take part: a key of zeros has score 0, and exp(0) = 1.",
    hint="Which columns of the last tile exist?",
)
edit(
    "blockwise_attention",
    "empty_rows_are_nan",
    replace="base = larger.masked_fill(larger == -torch.inf, 0)",
    by="base = larger",
    says="A row that has seen nothing yet has maximum −∞, and −∞ − (−∞) is NaN.",
    hint="Which queries of a block see no key of its first tile, or none at all?",
)
edit(
    "blockwise_attention",
    "lse_without_the_maximum",
    replace="lse[..., rows] = maximum + total.log()",
    by="lse[..., rows] = total.log()",
    says="Your lse is the logarithm of the sum alone; that sum was measured from the maximum.",
    hint="log Σ exp(s) = m + log Σ exp(s − m).",
)
edit(
    "blockwise_attention",
    "lse_in_base_two",
    replace="lse[..., rows] = maximum + total.log()",
    by="lse[..., rows] = maximum / math.log(2) + total.log2()",
    says="Your lse is a logarithm to base 2, as kernels keep it inside; what is returned is the natural one.",
    hint="By which number do the two logarithms differ?",
)
edit(
    "blockwise_attention",
    "sum_instead_of_lse",
    replace="lse[..., rows] = maximum + total.log()",
    by="lse[..., rows] = total",
    says="You return the running sum instead of its logarithm with the maximum added.",
    hint="log Σ exp(s) = m + log Σ exp(s − m).",
)
edit(
    "blockwise_attention",
    "future_tiles_are_computed",
    replace="rows.stop + shift if causal else kv_seq, block_k",
    by="kv_seq, block_k",
    says="You compute the tiles of the future and mask them away: right, at twice the work.",
    hint="At which key can the loop of a block of queries stop?",
)
edit(
    "blockwise_attention",
    "all_keys_at_once",
    replace="        for j in range(0, rows.stop + shift if causal else kv_seq, block_k):\n"
    "            columns = slice(j, j + block_k)\n",
    by="        end = rows.stop + shift if causal else kv_seq\n"
    "        for j in range(0, min(end, 1)):\n            columns = slice(0, max(end, 0))\n",
    says="You cut the queries into blocks and take all keys at once: memory still grows with kv_seq for every query.",
    hint="The keys need a loop too, and with it the running maximum and sum.",
)


edit(
    "blockwise_attention",
    "masked_by_a_large_negative_number",
    replace="scores = scores.masked_fill(~seen, -torch.inf)",
    by="scores = scores.masked_fill(~seen, -1e9)",
    says="You mask with a large negative number: a query that sees no key averages the keys it must not see.",
    hint="What remains of such a row when its maximum, that very number, is taken off?",
)
edit(
    "blockwise_attention",
    "skipped_by_number_of_block",
    replace="rows.stop + shift if causal else kv_seq, block_k",
    by="min(kv_seq, (i // block_q + 1) * block_k) if causal else kv_seq, block_k",
    says="You skip tiles by number of block, which is right only for square tiles and as many queries as keys.",
    hint="At which position does the last query of a block stand?",
)
edit(
    "blockwise_attention",
    "loop_runs_past_the_keys",
    replace="rows.stop + shift if causal else kv_seq, block_k",
    by="i + block_q + shift if causal else kv_seq, block_k",
    says="In the last block of queries your loop may run past the last key, to a tile with nothing in it.",
    hint="Where does the last query of a shorter block stand?",
)


edit(
    "blockwise_attention",
    "bound_instead_of_maximum",
    replace="larger = torch.maximum(maximum, scores.amax(dim=-1))",
    by="larger = q_tile.norm(dim=-1) * k.norm(dim=-1).amax(dim=-1, keepdim=True)",
    says="You take off a bound, |q|·|k|, in place of the maximum: where no score comes near it, all weights vanish.",
    hint="The largest weight of a row should be exp(0) = 1.",
)
edit(
    "blockwise_attention",
    "maximum_of_the_first_tile",
    replace="larger = torch.maximum(maximum, scores.amax(dim=-1))",
    by="larger = torch.where(maximum == -torch.inf, scores.amax(dim=-1), maximum)",
    says="You keep the maximum of the first tile; later scores may be so much larger that exp overflows.",
    hint="The running maximum rises whenever a tile brings a larger score.",
)
edit(
    "blockwise_attention",
    "scores_multiplied_by_the_mask",
    replace="scores = scores.masked_fill(~seen, -torch.inf)",
    by="scores = scores * seen",
    says="You multiply scores by the mask: a hidden key gets score 0, and exp(0) = 1.",
    hint="Which score makes a weight 0?",
)
edit(
    "blockwise_attention",
    "lse_of_raw_scores",
    replace="lse[..., rows] = maximum + total.log()",
    by="lse[..., rows] = (maximum + total.log()) / scale",
    says="You undo the scale in lse; it is the logarithm over the scaled scores.",
    hint="The backward pass computes exp(score · scale − lse). Does that fit?",
)
edit(
    "blockwise_attention",
    "tiles_of_its_own",
    replace="    q_seq, kv_seq, scale = ",
    by="    block_q = block_k = 64\n    q_seq, kv_seq, scale = ",
    says="You take tiles of a size of your own, whatever block_q and block_k say.",
    hint="Whoever calls knows how much fast memory there is.",
)


@mistake(
    "blockwise_attention",
    says="You go over the keys twice, once for lse and once for the output: every score is computed two times.",
    hint="With a running maximum and a running sum one pass is enough.",
)
def scores_computed_twice(q, k, v, block_q, block_k, causal=False):
    shift, outs, logs = k.shape[-2] - q.shape[-2], [], []
    for i in range(0, q.shape[-2], block_q):
        rows = q[..., i : i + block_q, :] * q.shape[-1] ** -0.5
        end = i + rows.shape[-2] + shift if causal else k.shape[-2]
        for again in (False, True):
            if not again:
                lse = torch.full_like(rows[..., 0], -torch.inf)
                out = torch.zeros_like(rows[..., :1] * v[..., :1, :])
            base = lse.masked_fill(lse == -torch.inf, 0).unsqueeze(-1)
            for j in range(0, end, block_k):
                scores = rows @ k[..., j : j + block_k, :].mT
                if causal:
                    seen = torch.ones_like(scores, dtype=torch.bool).tril(i + shift - j)
                    scores = scores.masked_fill(~seen, -torch.inf)
                if again:
                    out = out + (scores - base).exp() @ v[..., j : j + block_k, :]
                else:
                    lse = torch.logaddexp(lse, scores.logsumexp(dim=-1))
        outs.append(out)
        logs.append(lse)
    return torch.cat(outs, dim=-2), torch.cat(logs, dim=-1)


@mistake(
    "blockwise_attention",
    says="You take one query after another with all of its keys: no online softmax, and a step for every row.",
    hint="A tile holds block_q queries and block_k keys, and takes a few lines.",
)
def row_by_row(q, k, v, block_q, block_k, causal=False):
    out, lse = torch.zeros_like(q[..., :1] * v[..., :1, :]), torch.zeros_like(q[..., 0])
    for i in range(q.shape[-2]):
        end = max(0, i + k.shape[-2] - q.shape[-2] + 1) if causal else k.shape[-2]
        scores = q[..., i : i + 1, :] @ k[..., :end, :].mT * q.shape[-1] ** -0.5
        lse[..., i] = scores.logsumexp(dim=-1).squeeze(-1)
        out[..., i, :] = (scores.softmax(dim=-1) @ v[..., :end, :]).squeeze(-2)
    return out, lse


@mistake(
    "blockwise_attention",
    says="You compute all scores at once: the result is right, and the memory is what tiles were to save.",
    hint="Two loops: blocks of queries, and for each of them blocks of keys.",
)
def in_one_go(q, k, v, block_q, block_k, causal=False):
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(k.shape[-2] - q.shape[-2])
        scores = scores.masked_fill(~seen, -torch.inf)
    lse = scores.logsumexp(dim=-1)
    return (scores - lse.masked_fill(lse == -torch.inf, 0).unsqueeze(-1)).exp() @ v, lse


# flash_attention_backward


@alternative("flash_attention_backward")
def one_block_of_queries_after_another(q, k, v, out, lse, d_out, block_q, block_k, causal=False):
    shift, scale = k.shape[-2] - q.shape[-2], 1 / math.sqrt(q.shape[-1])
    dq, dk, dv = [], torch.zeros_like(k), torch.zeros_like(v)
    for start in range(0, q.shape[-2], block_q):
        rows = slice(start, start + block_q)
        queries, d_rows = q[..., rows, :] * scale, d_out[..., rows, :]
        delta = torch.einsum("...v,...v->...", d_rows, out[..., rows, :])
        log = lse[..., rows]
        position = torch.arange(start, start + queries.shape[-2])[:, None] + shift
        d_queries = torch.zeros_like(queries)
        for first in range(0, k.shape[-2], block_k):
            if causal and first > position.max():
                break
            columns = slice(first, first + block_k)
            scores = queries @ k[..., columns, :].mT
            seen = torch.arange(first, first + scores.shape[-1]) <= position if causal else torch.tensor(True)
            weights = torch.where(seen, (scores - log.unsqueeze(-1)).exp(), 0.0)
            weights = torch.where((log == -torch.inf).unsqueeze(-1), 0.0, weights)
            d_scores = weights * (d_rows @ v[..., columns, :].mT - delta.unsqueeze(-1))
            d_queries += d_scores @ k[..., columns, :]
            dk[..., columns, :] += d_scores.mT @ queries
            dv[..., columns, :] += weights.mT @ d_rows
        dq.append(d_queries * scale)
    return torch.cat(dq, dim=-2), dk, dv


D_SCORES = "d_scores = weights * (d_tile @ v_tile.mT - delta[..., rows, :]) * scale"
edit(
    "flash_attention_backward",
    "delta_missing",
    replace=D_SCORES,
    by="d_scores = weights * (d_tile @ v_tile.mT) * scale",
    says="The term delta is missing: raising one score lowers all other weights of its row.",
    hint="The softmax's Jacobian is diag(p) − p pᵀ. Which part of it does yours hold?",
)
edit(
    "flash_attention_backward",
    "delta_added",
    replace=D_SCORES,
    by="d_scores = weights * (d_tile @ v_tile.mT + delta[..., rows, :]) * scale",
    says="You add delta; it has to be taken off.",
    hint="What should the gradients of the scores of a row sum to?",
)
edit(
    "flash_attention_backward",
    "delta_without_d_out",
    replace="delta = (out * d_out).sum",
    by="delta = (out * out).sum",
    says="Your delta is ⟨out, out⟩; it is the product of the output with its gradient.",
    hint="Σ_j p_j ⟨d_out, v_j⟩ = ⟨d_out, …⟩?",
)
edit(
    "flash_attention_backward",
    "delta_of_each_tile",
    replace=D_SCORES,
    by="d_weights = d_tile @ v_tile.mT\n"
    "            own = (weights * d_weights).sum(dim=-1, keepdim=True)\n"
    "            d_scores = weights * (d_weights - own) * scale",
    says="You take delta from one tile alone; it is a sum over all keys of a row.",
    hint="out and d_out know the sum over all tiles before the first is computed.",
)
edit(
    "flash_attention_backward",
    "scale_forgotten_in_dq",
    replace="dq[..., rows, :] += d_scores @ k_tile",
    by="dq[..., rows, :] += d_scores @ k_tile / scale",
    says="The factor 1/√head_dim is missing in dq.",
    hint="Scores are q·k times a factor. By what does a change of q change them?",
)
edit(
    "flash_attention_backward",
    "scale_forgotten_in_dk",
    replace="dk[..., columns, :] += d_scores.mT @ q_tile",
    by="dk[..., columns, :] += d_scores.mT @ q_tile / scale",
    says="The factor 1/√head_dim is missing in dk.",
    hint="Scores are q·k times a factor. By what does a change of k change them?",
)
edit(
    "flash_attention_backward",
    "scale_forgotten_in_both",
    replace=D_SCORES,
    by="d_scores = weights * (d_tile @ v_tile.mT - delta[..., rows, :])",
    says="The factor 1/√head_dim stands in the scores, and is missing in dq and dk.",
    hint="Scores are q·k times a factor. By what does a change of q change them?",
)
edit(
    "flash_attention_backward",
    "scores_not_scaled",
    replace="scores = q_tile @ k_tile.mT * scale",
    by="scores = q_tile @ k_tile.mT",
    says="You recompute the scores without 1/√head_dim, so exp(scores − lse) are no weights.",
    hint="Do the rows of your recomputed weights sum to 1?",
)
edit(
    "flash_attention_backward",
    "softmax_of_each_tile",
    replace="weights = (scores - lse[..., rows, :]).exp()",
    by="weights = scores.softmax(dim=-1).nan_to_num()",
    says="You take the softmax inside each tile; lse is what makes the weights those of the whole row.",
    hint="What is the softmax of a whole row, written with lse?",
)
edit(
    "flash_attention_backward",
    "exponentials_without_lse",
    replace="weights = (scores - lse[..., rows, :]).exp()",
    by="weights = scores.exp() * (lse[..., rows, :] != torch.inf)",
    says="Your recomputed weights are exp(scores), not divided by anything.",
    hint="What does lse stand for, and what is exp(−lse)?",
)
edit(
    "flash_attention_backward",
    "causal_ignored",
    replace="            if causal:\n                seen",
    by="            if False:\n                seen",
    says="Beyond skipping tiles you do not mask: inside a tile on the diagonal the future gets gradients.",
    hint="The backward pass needs the same mask as the forward pass.",
)
edit(
    "flash_attention_backward",
    "top_left",
    replace="shift = kv_seq - q_seq",
    by="shift = 0",
    says="You place query i at position i, which is right only where there are as many queries as keys.",
    hint="The last query stands beside the last key. Where does query 0 stand?",
)
edit(
    "flash_attention_backward",
    "causal_hides_itself",
    replace=".tril(i + shift - j)",
    by=".tril(i + shift - j - 1)",
    says="With `causal` a query does not see the key at its own position.",
    hint="The own position is not the future.",
)
edit(
    "flash_attention_backward",
    "dq_of_the_last_tile_only",
    replace="dq[..., rows, :] += d_scores @ k_tile",
    by="dq[..., rows, :] = d_scores @ k_tile",
    says="Every tile overwrites dq: what remains is the share of the last block of keys.",
    hint="Which tiles add to the gradient of one query?",
)
edit(
    "flash_attention_backward",
    "dk_and_dv_of_the_last_tile_only",
    replace="dk[..., columns, :] += d_scores.mT @ q_tile\n            dv[..., columns, :] += weights.mT @ d_tile",
    by="dk[..., columns, :] = d_scores.mT @ q_tile\n            dv[..., columns, :] = weights.mT @ d_tile",
    says="Every tile overwrites dk and dv: what remains is the share of the last block of queries.",
    hint="Which tiles add to the gradient of one key?",
)
edit(
    "flash_attention_backward",
    "dv_from_the_scores",
    replace="dv[..., columns, :] += weights.mT @ d_tile",
    by="dv[..., columns, :] += d_scores.mT @ d_tile",
    says="You take the gradients of the scores for dv; values are summed with the weights.",
    hint="out = weights @ v. What is the gradient with respect to v?",
)
edit(
    "flash_attention_backward",
    "empty_rows_are_nan",
    replace="lse = lse.masked_fill(lse == -torch.inf, torch.inf).unsqueeze(-1)",
    by="lse = lse.unsqueeze(-1)",
    says="For a query that sees no key you compute −∞ − (−∞), which is NaN, and NaN spreads to dk and dv.",
    hint="Which value of lse makes exp(score − lse) vanish?",
)
edit(
    "flash_attention_backward",
    "future_tiles_are_computed",
    replace="max(0, j - shift) // block_q * block_q if causal else 0",
    by="0",
    says="You compute the tiles of the future and mask them away: right, at twice the work.",
    hint="From which block of queries on is a block of keys seen?",
)


edit(
    "flash_attention_backward",
    "tiles_of_its_own",
    replace="    q_seq, kv_seq, scale = ",
    by="    block_q = block_k = 64\n    q_seq, kv_seq, scale = ",
    says="You take tiles of a size of your own, whatever block_q and block_k say.",
    hint="Whoever calls knows how much fast memory there is.",
)


@mistake(
    "flash_attention_backward",
    says="You take a few queries at a time with all of their keys: a step for every few rows, not for every tile.",
    hint="A tile holds block_q queries and block_k keys, and takes a few lines.",
)
def few_rows_at_a_time(q, k, v, out, lse, d_out, block_q, block_k, causal=False):
    shift, scale = k.shape[-2] - q.shape[-2], q.shape[-1] ** -0.5
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for i in range(0, q.shape[-2], 4):
        rows = slice(i, min(i + 4, q.shape[-2]))
        end = max(0, rows.stop + shift) if causal else k.shape[-2]
        keys, d_rows, log = k[..., :end, :], d_out[..., rows, :], lse[..., rows, None]
        scores = q[..., rows, :] @ keys.mT * scale
        if causal:
            seen = torch.ones_like(scores, dtype=torch.bool).tril(i + shift)
            scores = scores.masked_fill(~seen, -torch.inf)
        weights = (scores - log.masked_fill(log == -torch.inf, torch.inf)).exp()
        delta = (out[..., rows, :] * d_rows).sum(-1, keepdim=True)
        d_scores = weights * (d_rows @ v[..., :end, :].mT - delta) * scale
        dq[..., rows, :] = d_scores @ keys
        dk[..., :end, :] += d_scores.mT @ q[..., rows, :]
        dv[..., :end, :] += weights.mT @ d_rows
    return dq, dk, dv


@mistake(
    "flash_attention_backward",
    says="You compute lse and out once more instead of using those that were saved: two products a tile too many.",
    hint="What did the forward pass hand over beside q, k and v?",
)
def forward_run_again(q, k, v, out, lse, d_out, block_q, block_k, causal=False):
    out, lse = blockwise_attention(q, k, v, block_q, block_k, causal)
    shift, scale = k.shape[-2] - q.shape[-2], q.shape[-1] ** -0.5
    delta = (out * d_out).sum(dim=-1, keepdim=True)
    lse = lse.masked_fill(lse == -torch.inf, torch.inf).unsqueeze(-1)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for j in range(0, k.shape[-2], block_k):
        columns = slice(j, j + block_k)
        for i in range(max(0, j - shift) // block_q * block_q if causal else 0, q.shape[-2], block_q):
            rows = slice(i, i + block_q)
            scores = q[..., rows, :] @ k[..., columns, :].mT * scale
            if causal:
                seen = torch.ones_like(scores, dtype=torch.bool).tril(i + shift - j)
                scores = scores.masked_fill(~seen, -torch.inf)
            weights = (scores - lse[..., rows, :]).exp()
            d_scores = weights * (d_out[..., rows, :] @ v[..., columns, :].mT - delta[..., rows, :]) * scale
            dq[..., rows, :] += d_scores @ k[..., columns, :]
            dk[..., columns, :] += d_scores.mT @ q[..., rows, :]
            dv[..., columns, :] += weights.mT @ d_out[..., rows, :]
    return dq, dk, dv


@mistake(
    "flash_attention_backward",
    says="You compute all weights at once: the gradients are right, and the memory is what recomputation was to save.",
    hint="Recompute the weights of one tile, add its share to dq, dk and dv, and forget it.",
    name="in_one_go",
)
def backward_in_one_go(q, k, v, out, lse, d_out, block_q, block_k, causal=False):
    scale, empty = q.shape[-1] ** -0.5, (lse == -torch.inf).unsqueeze(-1)
    scores = q @ k.mT * scale
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(k.shape[-2] - q.shape[-2])
        scores = scores.masked_fill(~seen, -torch.inf)
    weights = (scores - lse.unsqueeze(-1)).exp().masked_fill(empty, 0)
    d_scores = weights * (d_out @ v.mT - (out * d_out).sum(-1, keepdim=True)) * scale
    return d_scores @ k, d_scores.mT @ q, weights.mT @ d_out


# FlashAttention


@alternative("FlashAttention")
class keeps_its_settings_together(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal=False, block_q=64, block_k=64):
        settings = {"block_q": block_q, "block_k": block_k, "causal": bool(causal)}
        out, lse = blockwise_attention(q, k, v, **settings)
        ctx.save_for_backward(out, lse, q, k, v)
        ctx.settings = settings
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out):
        out, lse, *inputs = ctx.saved_tensors
        return (*flash_attention_backward(*inputs, out, lse, d_out, **ctx.settings), None, None, None)


SAVE = "        ctx.save_for_backward(q, k, v, out, lse)\n"
RECALL = "        q, k, v, out, lse = ctx.saved_tensors\n"
BACKWARD = "flash_attention_backward(q, k, v, out, lse, d_out, ctx.block_q, ctx.block_k, ctx.causal)"
edit(
    "FlashAttention",
    "causal_forgotten_in_backward",
    replace=BACKWARD,
    by="flash_attention_backward(q, k, v, out, lse, d_out, ctx.block_q, ctx.block_k)",
    says="backward does not know that forward was causal, so the future gets gradients.",
    hint="What beside tensors does backward need to know of forward?",
)
edit(
    "FlashAttention",
    "causal_forgotten_in_forward",
    replace="blockwise_attention(q, k, v, block_q, block_k, causal)",
    by="blockwise_attention(q, k, v, block_q, block_k)",
    says="forward does not pass `causal` on.",
    hint="Does your output change with `causal`?",
)
edit(
    "FlashAttention",
    "dq_and_dk_exchanged",
    replace="return *gradients, None, None, None",
    by="return gradients[1], gradients[0], gradients[2], None, None, None",
    says="You return dk where dq belongs.",
    hint="One gradient for each argument of forward, in their order.",
)
edit(
    "FlashAttention",
    "gradients_only",
    replace="return *gradients, None, None, None",
    by="return gradients",
    says="forward has six arguments, and backward returns three gradients.",
    hint="What is returned for an argument that has no gradient?",
)
edit(
    "FlashAttention",
    "d_out_ignored",
    replace="out, lse, d_out, ctx",
    by="out, lse, torch.ones_like(d_out), ctx",
    says="You differentiate the sum of the outputs: d_out, the gradient that comes from above, is not used.",
    hint="backward multiplies what comes in by the Jacobian; it does not choose what comes in.",
)
edit(
    "FlashAttention",
    "inputs_saved_in_another_order",
    replace=RECALL,
    by="        k, q, v, out, lse = ctx.saved_tensors\n",
    says="You take the saved tensors out in another order than you put them in: queries and keys are exchanged.",
    hint="ctx.saved_tensors comes in the order of save_for_backward.",
)
edit(
    "FlashAttention",
    "no_gradient_of_v",
    replace="return *gradients, None, None, None",
    by="return *gradients[:2], None, None, None, None",
    says="v gets no gradient.",
    hint="Three of the six arguments have gradients.",
)
edit(
    "FlashAttention",
    "tensors_as_attributes",
    replace=SAVE,
    by="        ctx.kept = (q, k, v, out, lse)\n        ctx.save_for_backward(q, k, v, out, lse)\n",
    says="You keep tensors as attributes of ctx: autograd cannot free them, nor see when they were changed.",
    hint="Tensors go to save_for_backward, and only there.",
)


@mistake(
    "FlashAttention",
    says="You save the weights for the backward pass: a matrix of q_seq × kv_seq, for every layer.",
    hint="From which tensors can a weight be computed again?",
)
class weights_saved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal=False, block_q=64, block_k=64):
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if causal:
            seen = torch.ones_like(scores, dtype=torch.bool).tril(k.shape[-2] - q.shape[-2])
            scores = scores.masked_fill(~seen, -torch.inf)
        weights = scores.softmax(dim=-1).nan_to_num()
        ctx.save_for_backward(q, k, v, weights)
        return weights @ v

    @staticmethod
    def backward(ctx, d_out):
        q, k, v, weights = ctx.saved_tensors
        d_weights = d_out @ v.mT
        d_scores = weights * (d_weights - (weights * d_weights).sum(dim=-1, keepdim=True)) * q.shape[-1] ** -0.5
        return d_scores @ k, d_scores.mT @ q, weights.mT @ d_out, None, None, None


edit(
    "FlashAttention",
    "tiles_of_weights_kept",
    replace=SAVE,
    by="        ctx.save_for_backward(q, k, v, out, lse)\n"
    "        scores = [rows @ k.mT * q.shape[-1] ** -0.5 for rows in q.split(block_q, dim=-2)]\n"
    "        ctx.weights = [(s - log.unsqueeze(-1)).exp() for s, log in zip(scores, lse.split(block_q, dim=-1))]\n",
    says="You keep the weights in pieces; together they are still the whole matrix of q_seq × kv_seq.",
    hint="How many numbers does ctx hold in all?",
)
edit(
    "FlashAttention",
    "forward_in_one_go",
    replace="out, lse = blockwise_attention(q, k, v, block_q, block_k, causal)",
    by="out, lse = blockwise_attention(q, k, v, max(1, q.shape[-2]), max(1, k.shape[-2]), causal)",
    says="Your forward pass holds all scores at once, whatever block_q and block_k say.",
    hint="What do the last two arguments of forward stand for?",
)
edit(
    "FlashAttention",
    "backward_in_one_go",
    replace=BACKWARD,
    by="flash_attention_backward(\n"
    "            q, k, v, out, lse, d_out, max(1, q.shape[-2]), max(1, k.shape[-2]), ctx.causal\n        )",
    says="Your forward pass works by tiles; your backward pass holds all weights at once.",
    hint="backward should use tiles of the same size. How does it learn of it?",
)


@mistake(
    "FlashAttention",
    says="You keep tensors as attributes instead of saving them: autograd cannot free them, nor see them changed.",
    hint="Tensors go to save_for_backward, and only there.",
)
class attributes_instead_of_saving(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal=False, block_q=64, block_k=64):
        out, lse = blockwise_attention(q, k, v, block_q, block_k, causal)
        ctx.tensors = q, k, v, out, lse
        ctx.settings = block_q, block_k, causal
        return out

    @staticmethod
    def backward(ctx, d_out):
        return *flash_attention_backward(*ctx.tensors, d_out, *ctx.settings), None, None, None


# hbm_accesses


@alternative("hbm_accesses")
def loop_by_loop(algorithm, seq, head_dim, sram):
    def sizes(block):
        return [min(block, seq - start) for start in range(0, seq, block)]

    outer = -(-sram // (4 * head_dim))
    if algorithm == "standard":
        return sum((2 * seq * head_dim + seq * seq, 2 * seq * seq, seq * seq + 2 * seq * head_dim))
    if algorithm == "flash_1":
        total = seq * head_dim + seq + seq
        for rows in sizes(outer):
            total += 2 * rows * head_dim + 3 * seq * head_dim + 4 * seq
        return total
    if algorithm == "flash_2":
        return sum(2 * rows * head_dim + rows + 2 * seq * head_dim for rows in sizes(outer))
    raise ValueError(algorithm)


edit(
    "hbm_accesses",
    "matrices_moved_once",
    replace="return 4 * matrix + 4 * seq**2",
    by="return 4 * matrix + 2 * seq**2",
    says="You count S and P once each; both are written and read again.",
    hint="Between two steps a matrix goes out to slow memory and comes back.",
)
edit(
    "hbm_accesses",
    "one_square_matrix",
    replace="return 4 * matrix + 4 * seq**2",
    by="return 4 * matrix + seq**2",
    says="You count one matrix of seq × seq, moved once; standard attention makes two, and moves each twice.",
    hint="Go through the three steps: what does each read, what does it write?",
)
edit(
    "hbm_accesses",
    "inputs_and_output_forgotten",
    replace="return 4 * matrix + 4 * seq**2",
    by="return 4 * seq**2",
    says="You count the square matrices only; Q, K, V and O move as well.",
    hint="Θ(seq · head_dim + seq²): where does the first term come from?",
)
edit(
    "hbm_accesses",
    "first_values_not_written",
    replace="return 3 * matrix + 2 * seq + outer_blocks",
    by="return 2 * matrix + outer_blocks",
    says="In FlashAttention you leave out that O, ℓ and m are first written, as zeros and −∞.",
    hint="Line 2 of the algorithm writes to slow memory.",
)
edit(
    "hbm_accesses",
    "output_not_read_back",
    replace="outer_blocks * (3 * matrix + 4 * seq)",
    by="outer_blocks * (2 * matrix + 2 * seq)",
    says="In FlashAttention O, ℓ and m are read again for every block of keys; you count only that they are written.",
    hint="To add to an output that lies in slow memory, what has to happen first?",
)
edit(
    "hbm_accesses",
    "statistics_forgotten",
    replace="3 * matrix + 2 * seq + outer_blocks * (3 * matrix + 4 * seq)",
    by="3 * matrix + outer_blocks * 3 * matrix",
    says="In FlashAttention you leave out ℓ and m, the running sum and maximum of each query.",
    hint="What beside Q and O does the inner loop read and write?",
)
edit(
    "hbm_accesses",
    "keys_read_again_in_the_inner_loop",
    replace="return 3 * matrix + 2 * seq + outer_blocks * (3 * matrix + 4 * seq)",
    by="return matrix + 2 * seq + outer_blocks * (5 * matrix + 4 * seq)",
    says="You read K and V again for each block of queries; in FlashAttention they stay while the queries pass by.",
    hint="Which loop is the outer one?",
)
edit(
    "hbm_accesses",
    "flash_2_as_flash_1",
    replace="return 2 * matrix + seq + outer_blocks * 2 * matrix",
    by="return 2 * matrix + outer_blocks * (3 * matrix + seq)",
    says="You let FlashAttention-2 write its output for every block of keys; it writes it once, at the end.",
    hint="Which block stays in fast memory through the whole inner loop?",
)
edit(
    "hbm_accesses",
    "lse_not_written",
    replace="return 2 * matrix + seq + outer_blocks",
    by="return 2 * matrix + outer_blocks",
    says="In FlashAttention-2 you leave out lse: one number a query is written for the backward pass.",
    hint="What does the forward pass leave behind beside O?",
)
edit(
    "hbm_accesses",
    "block_not_divided_by_four",
    replace="math.ceil(sram / (4 * head_dim))",
    by="math.ceil(sram / head_dim)",
    says="You give one block all of the fast memory; four tiles share it.",
    hint="How many tiles of block × head_dim are held at once?",
)
edit(
    "hbm_accesses",
    "block_rounded_down",
    replace="math.ceil(sram / (4 * head_dim))",
    by="max(1, sram // (4 * head_dim))",
    says="You round the size of a block down; the algorithm rounds up.",
    hint="Line 1 of the algorithm: ⌈M / 4d⌉.",
)
edit(
    "hbm_accesses",
    "blocks_not_rounded_up",
    replace="math.ceil(seq / math.ceil(sram / (4 * head_dim)))",
    by="max(1, seq // math.ceil(sram / (4 * head_dim)))",
    says="You lose the last, smaller block: the number of blocks has to be rounded up.",
    hint="How many blocks of 4 hold 9 rows?",
)
edit(
    "hbm_accesses",
    "last_block_counted_whole",
    replace='    if algorithm == "standard":\n',
    by='    if algorithm != "standard":\n'
    "        size = math.ceil(sram / (4 * head_dim))\n"
    "        seq = outer_blocks * size\n        matrix = seq * head_dim\n"
    '    if algorithm == "standard":\n',
    says="You count the last block as a whole one; only the rows that exist are moved.",
    hint="How many rows does the last of ⌈seq / block⌉ blocks have?",
)
edit(
    "hbm_accesses",
    "bytes_instead_of_elements",
    replace='    if algorithm == "standard":\n        return 4 * matrix + 4 * seq**2\n',
    by='    if algorithm == "standard":\n        return 4 * (4 * matrix + 4 * seq**2)\n'
    '    if algorithm in ("flash_1", "flash_2"):\n'
    '        first = algorithm == "flash_1"\n'
    "        once = 3 * matrix + 2 * seq if first else 2 * matrix + seq\n"
    "        return 4 * (once + outer_blocks * (3 * matrix + 4 * seq if first else 2 * matrix))\n",
    says="You multiply by four bytes; counted are elements.",
    hint="Elements, whatever their size.",
)
edit(
    "hbm_accesses",
    "unknown_names_pass",
    replace='    raise ValueError(f"algorithm must be standard, flash_1 or flash_2, not {algorithm!r}")\n',
    by="    return 0\n",
    says="An unknown algorithm is not refused with a ValueError.",
    hint='What should happen for "flash_3"?',
)

edit(
    "hbm_accesses",
    "number_of_blocks_as_a_fraction",
    replace="math.ceil(seq / math.ceil(sram / (4 * head_dim)))",
    by="seq / math.ceil(sram / (4 * head_dim))",
    says="Your number of blocks is a fraction; a loop runs a whole number of times.",
    hint="How many blocks of 4 hold 9 rows?",
)
edit(
    "hbm_accesses",
    "theorem_instead_of_count",
    replace='    if algorithm == "flash_1":\n',
    by='    if algorithm in ("flash_1", "flash_2"):\n        return seq**2 * head_dim**2 // sram\n'
    '    if algorithm == "flash_1":\n',
    says="You return seq² · head_dim² / sram, which says how the count grows; asked for is the count.",
    hint="A Θ hides constant factors and smaller terms. Follow the loops.",
)
edit(
    "hbm_accesses",
    "outer_block_capped_by_head_dim",
    replace="math.ceil(seq / math.ceil(sram / (4 * head_dim)))",
    by="math.ceil(seq / min(math.ceil(sram / (4 * head_dim)), head_dim))",
    says="You cap the block of the outer loop by head_dim; it is the inner loop's block that is capped.",
    hint="Which of the two sizes of line 1 belongs to the outer loop?",
)

# choose_blocks


@alternative("choose_blocks")
def by_trying(sram_bytes, head_dim, bytes_per_element):
    def fits(block_q, block_k):
        inputs = (block_q + 2 * block_k) * head_dim * bytes_per_element
        return inputs + 4 * (block_q * head_dim + block_q * block_k + 2 * block_q) <= sram_bytes

    if not fits(16, 16):
        raise ValueError("too small")
    block_q = block_k = 16
    while fits(block_q + 16, 16):
        block_q += 16
    while fits(block_q, block_k + 16):
        block_k += 16
    return block_q, block_k


BLOCK_Q = "block_q = (sram_bytes - 16 * each_key) // (each_query + 4 * 16) // 16 * 16"
BLOCK_K = "block_k = (sram_bytes - block_q * each_query) // (each_key + 4 * block_q) // 16 * 16"
edit(
    "choose_blocks",
    "scores_forgotten",
    replace=BLOCK_Q + "\n",
    by="block_q = (sram_bytes - 16 * each_key) // each_query // 16 * 16\n",
    says="You leave no room for the tile of scores when you choose block_q.",
    hint="block_q × block_k numbers are in fast memory as well.",
)
edit(
    "choose_blocks",
    "scores_forgotten_for_the_keys",
    replace=BLOCK_K,
    by="block_k = (sram_bytes - block_q * each_query) // each_key // 16 * 16",
    says="You leave no room for the tile of scores when you choose block_k.",
    hint="Every further key brings a score for each of the block_q queries.",
)
edit(
    "choose_blocks",
    "output_forgotten",
    replace="4 * (head_dim + 2)",
    by="4 * 2",
    says="You leave no room for the output that accumulates.",
    hint="One row of head_dim numbers grows beside each query.",
)
edit(
    "choose_blocks",
    "statistics_forgotten",
    replace="4 * (head_dim + 2)",
    by="4 * head_dim",
    says="You leave no room for the maximum and the sum of each query.",
    hint="What has an online softmax to remember of each row?",
)
edit(
    "choose_blocks",
    "sums_in_the_size_of_the_inputs",
    replace="    each_query = head_dim * bytes_per_element + 4 * (head_dim + 2)\n",
    by="    each_query = (2 * head_dim + 2) * bytes_per_element\n",
    says="You keep the output, the maximum and the sum in the precision of the inputs; what adds up is float32.",
    hint="Which numbers take 4 bytes whatever bytes_per_element says?",
)
edit(
    "choose_blocks",
    "elements_taken_for_bytes",
    replace="    each_query = head_dim * bytes_per_element + 4 * (head_dim + 2)\n"
    "    each_key = 2 * head_dim * bytes_per_element\n",
    by="    each_query = head_dim + 4 * (head_dim + 2)\n    each_key = 2 * head_dim\n",
    says="You count queries, keys and values as if they took one byte an element.",
    hint="What is bytes_per_element for?",
)
edit(
    "choose_blocks",
    "values_forgotten",
    replace="each_key = 2 * head_dim * bytes_per_element",
    by="each_key = head_dim * bytes_per_element",
    says="You count one tile of block_k rows; there are two, keys and values.",
    hint="What is multiplied by the weights?",
)
edit(
    "choose_blocks",
    "most_keys_first",
    replace=BLOCK_Q + "\n",
    by="block_k = (sram_bytes - 16 * each_query) // (each_key + 4 * 16) // 16 * 16\n"
    "    block_q = (sram_bytes - block_k * each_key) // (each_query + 4 * max(block_k, 1)) // 16 * 16\n",
    says="You make block_k as large as can be; it is block_q that decides how often K and V are read.",
    hint="How often are K and V read in all, if the queries stand in n blocks?",
)
edit(
    "choose_blocks",
    "square_tiles",
    replace="    if block_q < 16:\n",
    by="    block_q = next((b for b in range(sram_bytes // 256 * 16, 0, -16)\n"
    "                    if b * (each_query + each_key + 4 * b) <= sram_bytes), 0)\n"
    "    if block_q < 16:\n",
    says="You choose square tiles; a taller one moves less.",
    hint="Traffic falls with block_q alone.",
)
edit(
    "choose_blocks",
    "sixteen_keys_always",
    replace=BLOCK_K,
    by="block_k = 16",
    says="You always take 16 keys, also where more would fit beside the queries.",
    hint="What is left of the fast memory when block_q is chosen?",
)
edit(
    "choose_blocks",
    "powers_of_two",
    replace="    return block_q, block_k",
    by="    return 1 << block_q.bit_length() - 1, 1 << block_k.bit_length() - 1",
    says="You round down to powers of two; multiples of 16 are enough.",
    hint="Is 48 a size that is allowed?",
)
edit(
    "choose_blocks",
    "not_multiples_of_sixteen",
    replace="// (each_query + 4 * 16) // 16 * 16",
    by="// (each_query + 4 * 16)",
    says="Your block_q is not rounded down to a multiple of 16.",
    hint="Tensor cores work on tiles of 16.",
)
edit(
    "choose_blocks",
    "rounded_up",
    replace="// (each_query + 4 * 16) // 16 * 16",
    by="// (each_query + 4 * 16) // -16 * -16",
    says="You round block_q up to the next multiple of 16, which does not fit.",
    hint="In which direction may you round if the tiles have to fit?",
)
edit(
    "choose_blocks",
    "too_small_is_not_refused",
    replace="    if block_q < 16:\n",
    by="    block_q = max(block_q, 16)\n    if block_q < 16:\n",
    says="A memory that does not hold (16, 16) is not refused with a ValueError.",
    hint="What does your function return when nothing fits?",
)

edit(
    "choose_blocks",
    "pair_reversed",
    replace="    return block_q, block_k",
    by="    return block_k, block_q",
    says="You return (block_k, block_q).",
    hint="Which of the two is named first?",
)
edit(
    "choose_blocks",
    "no_room_for_the_keys",
    replace="(sram_bytes - 16 * each_key) // (each_query",
    by="sram_bytes // (each_query",
    says="You choose block_q as if keys and values took no room at all; 16 of them have to fit beside it.",
    hint="With which block_k does the largest block_q fit?",
)

# split_kv_decode


@alternative("split_kv_decode")
def padded_and_all_at_once(q, k, v, splits):
    size = max(1, -(-k.shape[-2] // splits))
    spare = size * splits - k.shape[-2]
    keys, values = (
        torch.cat([x, x.new_zeros(*x.shape[:-2], spare, x.shape[-1])], dim=-2).unflatten(-2, (splits, size))
        for x in (k, v)
    )
    real = (torch.arange(size * splits) < k.shape[-2]).reshape(splits, size)
    scores = (keys @ (q / math.sqrt(q.shape[-1])).unsqueeze(-3).mT).squeeze(-1)
    scores = torch.where(real, scores, -torch.inf)
    logs = scores.logsumexp(dim=-1)
    never = torch.finfo(logs.dtype).min
    outs = ((scores - logs.clamp(min=never).unsqueeze(-1)).exp().unsqueeze(-2) @ values).squeeze(-2)
    out, lse = outs[..., :1, :], logs[..., :1]
    for n in range(1, splits):
        out, lse = merge_partials(out, lse, outs[..., n : n + 1, :], logs[..., n : n + 1])
    return out, outs, logs


MERGE = "return shares.unsqueeze(-2) @ partial_out, partial_out, partial_lse"
edit(
    "split_kv_decode",
    "plain_average",
    replace=MERGE,
    by="return partial_out.mean(dim=-2, keepdim=True), partial_out, partial_lse",
    says="You average the parts as if each held the same share of the weights.",
    hint="A part counts by exp(lse).",
)
edit(
    "split_kv_decode",
    "parts_counted_by_their_keys",
    replace=MERGE,
    by="keys = torch.tensor([k[..., n * size : (n + 1) * size, :].shape[-2] for n in range(splits)]).to(q.dtype)\n"
    "    return (keys / keys.sum().clamp(min=1)) @ partial_out.unsqueeze(-3), partial_out, partial_lse",
    says="You weight the parts by how many keys they hold; one key with a large score may outweigh all others.",
    hint="A part counts by exp(lse).",
)
edit(
    "split_kv_decode",
    "parts_added_up",
    replace=MERGE,
    by="return partial_out.sum(dim=-2, keepdim=True), partial_out, partial_lse",
    says="You add the outputs of the parts; each is an average already.",
    hint="What should come out if all values are the same?",
)
CUT = """    size = math.ceil(k.shape[-2] / splits)
    outs, logs = [], []
    for n in range(splits):
        part = slice(n * size, (n + 1) * size)
"""
edit(
    "split_kv_decode",
    "parts_cut_evenly",
    replace=CUT,
    by="""    size, more = divmod(k.shape[-2], splits)
    outs, logs = [], []
    for n in range(splits):
        part = slice(n * size + min(n, more), (n + 1) * size + min(n + 1, more))
""",
    says="You spread the keys so that parts differ by one at most; here all parts but the last have ⌈kv_seq / splits⌉.",
    hint="At which key does part n begin?",
)
edit(
    "split_kv_decode",
    "last_keys_dropped",
    replace=CUT,
    by="""    size = max(1, k.shape[-2] // splits)
    outs, logs = [], []
    for n in range(splits):
        part = slice(n * size, (n + 1) * size)
""",
    says="You round the size of a part down, so the last keys belong to no part.",
    hint="How large must 4 parts be to hold 9 keys?",
)
edit(
    "split_kv_decode",
    "last_part_takes_the_rest",
    replace=CUT,
    by="""    size = k.shape[-2] // splits
    outs, logs = [], []
    for n in range(splits):
        part = slice(n * size, (n + 1) * size if n < splits - 1 else k.shape[-2])
""",
    says="You round the size of a part down and leave the rest to the last one; it is rounded up here.",
    hint="Which part should be the smallest?",
)
edit(
    "split_kv_decode",
    "every_nth_key",
    replace=CUT,
    by="""    outs, logs = [], []
    for n in range(splits):
        part = slice(n, None, splits)
""",
    says="You deal the keys out to the parts like cards; a part should be a stretch of the cache.",
    hint="Which keys lie side by side in memory?",
)
edit(
    "split_kv_decode",
    "no_scale",
    replace=".mT * q.shape[-1] ** -0.5",
    by=".mT",
    says="You forgot the factor 1/√head_dim.",
    hint="By which factor does the spread of q·k grow with the width of a head?",
)
edit(
    "split_kv_decode",
    "parts_not_normalised",
    replace="outs.append((scores - lse.unsqueeze(-1)).exp()",
    by="outs.append(scores.exp()",
    says="partial_out holds plain sums of exponentials; each part should be attention of its own, an average.",
    hint="What do the weights of one part sum to?",
)
edit(
    "split_kv_decode",
    "parts_share_one_maximum_only",
    replace="    shares = (partial_lse - lse.masked_fill(lse == -torch.inf, 0)).exp()\n",
    by="    shares = (partial_lse - partial_lse.amax(-1, keepdim=True).clamp(min=-1e300)).exp()\n",
    says="Your shares are measured from the largest lse and not divided by their sum.",
    hint="Shares should sum to 1.",
)
edit(
    "split_kv_decode",
    "raw_exponentials",
    replace="        lse = scores.logsumexp(dim=-1)\n",
    by="        lse = scores.exp().sum(dim=-1).log()\n",
    says="You exponentiate raw scores, so large ones overflow.",
    hint="Which number can be taken off all scores of a part, if it is added to the logarithm again?",
)
edit(
    "split_kv_decode",
    "nan_from_an_empty_cache",
    replace="lse.masked_fill(lse == -torch.inf, 0)",
    by="lse",
    says="For an empty cache you compute −∞ − (−∞), which is NaN.",
    hint="What are the shares of parts that are all empty?",
)
edit(
    "split_kv_decode",
    "logarithm_to_base_two",
    replace=MERGE,
    by="return shares.unsqueeze(-2) @ partial_out, partial_out, partial_lse / math.log(2)",
    says="Your partial_lse is a logarithm to base 2; what is returned is the natural one.",
    hint="Kernels work in base 2 inside. By which number do the two logarithms differ?",
)
edit(
    "split_kv_decode",
    "empty_parts_left_out",
    replace=MERGE,
    by="full = max(1, math.ceil(k.shape[-2] / max(size, 1)))\n"
    "    return shares.unsqueeze(-2) @ partial_out, partial_out[..., :full, :], partial_lse[..., :full]",
    says="Parts without keys are missing from your result; there are always `splits` of them.",
    hint="How many parts does torch.split make of 3 keys, if 8 are asked for?",
)
edit(
    "split_kv_decode",
    "whole_cache_read_again",
    replace=MERGE,
    by="scores = q @ k.mT * q.shape[-1] ** -0.5\n"
    "    lse = scores.logsumexp(dim=-1, keepdim=True)\n"
    "    return (scores - lse).exp() @ v, partial_out, partial_lse",
    says="You compute the output from the whole cache once more instead of merging the parts.",
    hint="partial_out and partial_lse hold all that is needed.",
)

edit(
    "split_kv_decode",
    "parts_already_weighted",
    replace=MERGE,
    by="return shares.unsqueeze(-2) @ partial_out, shares.unsqueeze(-1) * partial_out, partial_lse",
    says="Your partial_out is weighted by the part's share already; a part is attention over its own keys alone.",
    hint="What can one part know of the others?",
)

# mixed_precision_attention


@alternative("mixed_precision_attention")
def one_key_after_another(q, k, v, compute, accumulate):
    def added(a, b):
        a, b = a.double(), b.double()
        total = a.new_zeros(*a.shape[:-1], b.shape[-1], dtype=accumulate)
        for left, right in zip(a.split(1, dim=-1), b.split(1, dim=-2), strict=True):
            total = (total + left @ right).to(accumulate)
        return total

    scores = added(q.to(compute), k.to(compute).mT) / math.sqrt(q.shape[-1])
    weights = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)
    sums = torch.zeros_like(weights[..., :1])
    for column in weights.split(1, dim=-1):
        sums = sums + column
    return added(weights.to(compute), v.to(compute)) / sums


ROUND = "q, k, v = q.to(compute), k.to(compute), v.to(compute)"
edit(
    "mixed_precision_attention",
    "accumulated_in_compute",
    replace="    " + ROUND,
    by="    accumulate = compute\n    " + ROUND,
    says="You add up in the dtype of the operands: partial sums lose what sixteen bits cannot hold.",
    hint="Which of the two dtypes does a running sum have?",
)
edit(
    "mixed_precision_attention",
    "operands_not_rounded",
    replace=ROUND,
    by="q, k, v = q.to(accumulate), k.to(accumulate), v.to(accumulate)",
    says="You compute on operands in the dtype of the sums; they should first be rounded to `compute`.",
    hint="What do sixteen-bit inputs cost? Yours cost nothing.",
)
edit(
    "mixed_precision_attention",
    "weights_not_rounded",
    replace="accumulated_product(weights.to(compute), v, accumulate)",
    by="accumulated_product(weights, v, accumulate)",
    says="The weights meet v unrounded; both operands of the second product are in `compute`.",
    hint="A product on hardware reads two operands of the same dtype.",
)
edit(
    "mixed_precision_attention",
    "values_not_rounded",
    replace=ROUND,
    by="q, k = q.to(compute), k.to(compute)",
    says="v is not rounded to `compute`.",
    hint="Which operands does the second product read?",
)
edit(
    "mixed_precision_attention",
    "sum_of_rounded_weights",
    replace="    total = accumulated_product(weights, torch",
    by="    weights = weights.to(compute)\n    total = accumulated_product(weights, torch",
    says="You sum the weights after they were rounded; the sum is taken before.",
    hint="Where are the weights rounded, and for which product?",
)
edit(
    "mixed_precision_attention",
    "divided_before_rounding",
    replace="return accumulated_product(weights.to(compute), v, accumulate) / total",
    by="return accumulated_product((weights / total).to(compute), v, accumulate)",
    says="You divide first and round the quotients; here exp(score − maximum) is rounded, and the division comes last.",
    hint="FlashAttention cannot divide before the last tile is known.",
)
edit(
    "mixed_precision_attention",
    "scores_rounded_too",
    replace="    weights = (scores",
    by="    scores = scores.to(compute).to(accumulate)\n    weights = (scores",
    says="You round the scores to `compute`; between the two products everything stays in `accumulate`.",
    hint="Which dtype does the first product come out in, and who rounds it?",
)
edit(
    "mixed_precision_attention",
    "result_in_compute",
    replace="v, accumulate) / total",
    by="v, accumulate).div(total).to(compute)",
    says="You return the dtype of the operands; the result comes in `accumulate`.",
    hint="Rounding the output is left to the caller.",
)
edit(
    "mixed_precision_attention",
    "no_scale",
    replace="accumulated_product(q, k.mT, accumulate) * q.shape[-1] ** -0.5",
    by="accumulated_product(q, k.mT, accumulate)",
    says="You forgot the factor 1/√head_dim.",
    hint="By which factor does the spread of q·k grow with the width of a head?",
)
edit(
    "mixed_precision_attention",
    "no_maximum_taken_off",
    replace="(scores - scores.amax(dim=-1, keepdim=True)).exp()",
    by="scores.exp()",
    says="You exponentiate raw scores: float16 ends at 65,504, and exp(12) is more.",
    hint="Which number can be taken off all scores of a row without changing its softmax?",
)
edit(
    "mixed_precision_attention",
    "sum_left_to_torch",
    replace="total = accumulated_product(weights, torch.ones_like(k[..., :1]), accumulate)",
    by="total = weights.sum(dim=-1, keepdim=True)",
    says="The sum of the weights is torch's own, which adds in float32 inside; `accumulate` should round each step.",
    hint="A sum is a product with a column of ones.",
)
edit(
    "mixed_precision_attention",
    "products_left_to_torch",
    replace="    scores = accumulated_product(q, k.mT, accumulate) * q",
    by="    accumulated_product = lambda a, b, dtype: (a.to(dtype) @ b.to(dtype))  # noqa: E731\n"
    "    scores = accumulated_product(q, k.mT, accumulate) * q",
    says="Your products are torch's own, which add up in float32 inside whatever dtype is asked for.",
    hint="Compare 300 ones added up in bfloat16 with torch's product of two vectors of ones.",
)

edit(
    "mixed_precision_attention",
    "only_the_result_is_rounded",
    replace="    " + ROUND,
    by="    exact = (q.double() @ k.double().mT * q.shape[-1] ** -0.5).softmax(dim=-1) @ v.double()\n"
    "    return exact.to(compute).to(accumulate)\n    " + ROUND,
    says="You compute in float64 and round the result; what is asked for is the error that the products make.",
    hint="Round the operands before each product, and the sums within it.",
)
edit(
    "mixed_precision_attention",
    "exponentials_in_compute",
    replace="weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()",
    by="weights = (scores - scores.amax(dim=-1, keepdim=True)).to(compute).exp().to(accumulate)",
    says="You take exp in `compute`; between the two products everything stays in `accumulate`.",
    hint="Which two roundings to `compute` are left when q, k and v are rounded?",
)

edit(
    "mixed_precision_attention",
    "bfloat16_always",
    replace=ROUND,
    by="q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()",
    says="You round the operands to bfloat16, whatever `compute` says.",
    hint="`compute` may also be float16, or float32.",
)
edit(
    "mixed_precision_attention",
    "added_in_float32_always",
    replace="    " + ROUND,
    by="    accumulate = torch.float32\n    " + ROUND,
    says="You add up in float32, whatever `accumulate` says.",
    hint="`accumulate` may also be bfloat16, or float64.",
)

# chunked_lazy_attention


@alternative("chunked_lazy_attention")
def numerators_and_denominators(q, k, v, chunk):
    def one(queries):
        running = None
        for start in range(0, k.shape[-2], chunk):
            scores = queries @ k[..., start : start + chunk, :].mT / math.sqrt(q.shape[-1])
            log = scores.logsumexp(dim=-1)
            part = (scores - log.unsqueeze(-1)).exp() @ v[..., start : start + chunk, :], log
            running = part if running is None else merge_partials(*running, *part)
        return running[0]

    return torch.cat([one(queries) for queries in torch.split(q, chunk, dim=-2)], dim=-2)


LAZY = "out.append((torch.stack(sums) * shares).sum(dim=0) / (torch.stack(totals) * shares).sum(dim=0))"
edit(
    "chunked_lazy_attention",
    "maxima_never_made_one",
    replace=LAZY,
    by="out.append(torch.stack(sums).sum(dim=0) / torch.stack(totals).sum(dim=0))",
    says="You add sums that are measured each from its own chunk's maximum; such sums cannot be added.",
    hint="Scale each chunk by exp(its maximum − the largest) before you add.",
)
edit(
    "chunked_lazy_attention",
    "sums_scaled_totals_not",
    replace="(torch.stack(totals) * shares).sum(dim=0)",
    by="torch.stack(totals).sum(dim=0)",
    says="You bring the summed values to one maximum, and forget the sums of the weights.",
    hint="Numerator and denominator have to be measured from the same maximum.",
)
edit(
    "chunked_lazy_attention",
    "chunks_averaged",
    replace=LAZY,
    by="out.append((torch.stack(sums) / torch.stack(totals)).mean(dim=0))",
    says="You divide in every chunk and average the results, as if every chunk held the same share.",
    hint="The division has to wait until all chunks are done: that is what is lazy here.",
)
edit(
    "chunked_lazy_attention",
    "chunks_added_up",
    replace=LAZY,
    by="out.append((torch.stack(sums) / torch.stack(totals)).sum(dim=0))",
    says="You divide in every chunk and add the results, so that the weights of a row sum to the number of chunks.",
    hint="The division has to wait until all chunks are done: that is what is lazy here.",
)
edit(
    "chunked_lazy_attention",
    "shares_without_the_totals",
    replace=LAZY,
    by="out.append((torch.stack(sums) / torch.stack(totals) * shares).sum(dim=0) / shares.sum(dim=0))",
    says="You weight each chunk's average by exp(maximum) alone; how many scores come near it counts as well.",
    hint="What is the sum of exponentials of a chunk, from its maximum and its total?",
)
edit(
    "chunked_lazy_attention",
    "no_maximum",
    replace="scores.detach().amax(dim=-1, keepdim=True)",
    by="torch.zeros_like(scores[..., :1])",
    says="You exponentiate raw scores, so large ones overflow.",
    hint="Which number can be taken off all scores of a chunk, if it is remembered?",
)
edit(
    "chunked_lazy_attention",
    "one_maximum_for_all_queries",
    replace="scores.detach().amax(dim=-1, keepdim=True)",
    by="scores.detach().amax(dim=(-2, -1), keepdim=True).expand_as(scores[..., :1])",
    says="You take one maximum for all queries of a chunk: a query with much smaller scores ends as 0 / 0.",
    hint="Every query has a softmax, and a maximum, of its own.",
)
edit(
    "chunked_lazy_attention",
    "no_scale",
    replace="(q * q.shape[-1] ** -0.5).split",
    by="q.split",
    says="You forgot the factor 1/√head_dim.",
    hint="By which factor does the spread of q·k grow with the width of a head?",
)
edit(
    "chunked_lazy_attention",
    "last_chunk_of_keys_dropped",
    replace="            scores = q_chunk @ k_chunk.mT\n",
    by="            if k_chunk.shape[-2] < min(chunk, k.shape[-2]):\n                continue\n"
    "            scores = q_chunk @ k_chunk.mT\n",
    says="You leave out the last keys where they do not fill a chunk.",
    hint="How many chunks does it take to hold all keys? Round up.",
)
edit(
    "chunked_lazy_attention",
    "padding_is_attended",
    replace="    out = []\n",
    by="    k, v = (torch.nn.functional.pad(x, (0, 0, 0, -x.shape[-2] % chunk)) for x in (k, v))\n    out = []\n",
    says="You fill up the last chunk with zeros and let them take part: a key of zeros has score 0, and exp(0) = 1.",
    hint="Which keys of the last chunk exist?",
)
edit(
    "chunked_lazy_attention",
    "weights_detached",
    replace="weights = (scores - maximum).exp()",
    by="weights = (scores - maximum).detach().exp()",
    says="The weights are detached, so no gradient reaches queries and keys.",
    hint="Which of your tensors may be detached because it cancels in the end?",
)
edit(
    "chunked_lazy_attention",
    "queries_not_chunked",
    replace=".split(chunk, dim=-2):\n        maxima",
    by=".split(max(1, q.shape[-2]), dim=-2):\n        maxima",
    says="You cut the keys into chunks and take all queries at once: memory still grows with q_seq for every key.",
    hint="Nothing of q_seq × chunk need be held either.",
)


@mistake(
    "chunked_lazy_attention",
    says="You compute all scores at once: the result is right, and the memory is what chunks were to save.",
    hint="Take one chunk of queries against one chunk of keys at a time.",
    name="in_one_go",
)
def lazy_in_one_go(q, k, v, chunk):
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1) @ v


edit(
    "chunked_lazy_attention",
    "chunks_of_its_own",
    replace="    out = []\n",
    by="    chunk = 128\n    out = []\n",
    says="You take chunks of a size of your own, whatever `chunk` says.",
    hint="Whoever calls knows how much memory there is.",
)


@mistake(
    "chunked_lazy_attention",
    says="You take one query after another with all of its keys: no lazy softmax, and a step for every row.",
    hint="A pair of chunks holds chunk × chunk scores, and takes a few lines.",
    name="row_by_row",
)
def lazy_row_by_row(q, k, v, chunk):
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    for i in range(q.shape[-2]):
        weights = (q[..., i : i + 1, :] @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
        out[..., i : i + 1, :] = weights @ v
    return out
