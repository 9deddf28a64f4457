"""Hidden suite of chapter `flash`: exact attention by tiles, forward and backward, and what its traffic costs.

Outputs are expected from attention that holds all scores at once, in float64; counts from loops that move elements one
block at a time; memory from what was held, read inside and outside of the process.
"""

import math
import warnings

import numpy as np
import torch

from autograder.sandbox.protocol import Stream
from autograder.sandbox.student import Module
from autograder.suites.kit import at_most, close, hidden, raises, require, same, strided, tensor

MIB = 2**20
DOUBLE = torch.float64


def dense(q, k, v, causal=False):
    """Attention with all scores at once: the pair (out, lse)."""
    seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool)
    seen = seen.tril(k.shape[-2] - q.shape[-2]) if causal else seen
    scores = torch.where(seen, q @ k.mT / math.sqrt(q.shape[-1]), -torch.inf)
    lse = scores.logsumexp(dim=-1)
    weights = torch.where(seen, (scores - lse.masked_fill(lse == -torch.inf, 0.0).unsqueeze(-1)).exp(), 0.0)
    return weights @ v, lse


def draw(rng, *batch, q_seq, kv_seq=None, head_dim=4, v_dim=6, dtype=DOUBLE):
    """Queries, keys and values."""
    kv_seq = q_seq if kv_seq is None else kv_seq
    shapes = (q_seq, head_dim), (kv_seq, head_dim), (kv_seq, v_dim)
    return [tensor(rng, *batch, *shape, dtype=dtype) for shape in shapes]


def gradients(inputs, upstream, definition):
    """Gradients of a definition by torch's autograd."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(definition(*leaves), leaves, upstream)


def unchanged(before, after, what):
    """Fail if a call changed one of its tensors."""
    for old, new in zip(before, after, strict=True):
        old, new = (x if isinstance(x, list) else [x] for x in (old, new))
        for one, other in zip(old, new, strict=True):
            if isinstance(one, torch.Tensor):
                require(torch.equal(one, other), f"{what}: an argument was changed in place.")


# online_softmax

MAX_AND_SUM = ("maximum", "total")


def max_and_sum(chunks):
    """What one pass should end with, from the whole row."""
    row = torch.cat(list(chunks), dim=-1)
    lse = row.logsumexp(dim=-1)
    maximum = row.amax(dim=-1) if row.shape[-1] else lse
    return maximum, torch.where(lse == -torch.inf, 0.0, (lse - maximum).exp())


def pieces(rng, *widths, batch=(2, 3)):
    """Chunks of scores, in float64."""
    return [2 * tensor(rng, *batch, width, dtype=DOUBLE) for width in widths]


def ends_with(student, chunks, what, **tolerance):
    """Fail unless the pair is that of the whole row."""
    return same(student.online_softmax(chunks), max_and_sum(chunks), MAX_AND_SUM, what, **tolerance)


@hidden("online_softmax", weight=2, hint="Follow two numbers by hand through two chunks. Which of them has to shrink?")
def test_one_pass_over_chunks(student, rng):
    """The largest score, and the sum of exp(score − maximum), of a row in chunks of unequal widths."""
    ends_with(student, pieces(rng, 4, 1, int(rng.integers(3, 8))), "of three chunks")
    ends_with(student, pieces(rng, *[1] * 6, batch=(2,)), "of six chunks of one score")
    ends_with(student, pieces(rng, 7, batch=()), "of one chunk without leading axes")


@hidden(
    "online_softmax", weight=2, hint="What was summed before a new maximum was found was measured from the old one."
)
def test_maximum_at_either_end(student, rng):
    """Right whether the largest scores come first or last, and where all scores are below zero."""
    rising = [chunk + 3.0 * n for n, chunk in enumerate(pieces(rng, 3, 4, 2))]
    ends_with(student, rising, "of rising chunks")
    ends_with(student, rising[::-1], "of falling chunks")
    ends_with(student, [chunk - 40 for chunk in rising], "of negative scores")


@hidden("online_softmax", kind="edge", hint="−∞ − (−∞) is NaN. What should be subtracted while nothing was seen?")
def test_masked_scores_and_empty_chunks(student, rng):
    """Chunks of −∞ and of no width change nothing; where nothing was seen the answer is (−∞, 0)."""
    first, second = pieces(rng, 3, 4)
    masked, empty = torch.full_like(first, -torch.inf), first[..., :0]
    for chunks in ([masked, first, empty, second], [empty, first, masked, second], [first, second, masked, empty]):
        ends_with(student, chunks, "with masked and empty chunks")
    second = second.clone()
    first, second[0, 1], second[1, 2, 0] = masked, -torch.inf, -torch.inf
    for chunks in ([first, second], [second, first], [masked, masked], [empty]):
        ends_with(student, chunks, "of rows that are masked altogether")


@hidden("online_softmax", kind="edge", hint="exp overflows near 710 in float64. No exponent need be positive.")
def test_scores_far_from_zero(student, rng):
    """Scores of ±10⁴ neither overflow nor vanish."""
    for size in (1e4, -1e4):
        ends_with(student, [chunk + size for chunk in pieces(rng, 3, 5, 2)], "of scores far from zero")
    ends_with(student, [3e3 * chunk for chunk in pieces(rng, 3, 5, 2)], "of scores far apart")


@hidden("online_softmax", kind="property", hint="Chunks are only a way to read; the row they make up is what counts.")
def test_chunks_in_any_order_and_any_cut(student, rng):
    """Neither the order of the chunks nor where the row is cut changes the pair."""
    chunks = pieces(rng, 2, 5, 1, 4)
    expected = max_and_sum(chunks)
    order = [chunks[n] for n in rng.permutation(4)]
    same(student.online_softmax(order), expected, MAX_AND_SUM, "in another order")
    again = list(torch.cat(chunks, dim=-1).split(int(rng.integers(2, 6)), dim=-1))
    same(student.online_softmax(again), expected, MAX_AND_SUM, "cut in other places")


@hidden(
    "online_softmax",
    kind="property",
    weight=2,
    hint="Whatever a piece has to tell is taken from it before the next one is asked for.",
)
def test_each_chunk_is_read_once(student, rng):
    """The pair of a stream that can be read once, and in which each chunk is overwritten when the next one is read."""
    chunks = pieces(rng, 3, 5, 0, 2, 4)
    found = student.online_softmax(Stream(tuple(chunks)))
    same(found, max_and_sum(chunks), MAX_AND_SUM, "of a stream")


@hidden("online_softmax", kind="edge", hint="Make new tensors with the dtype of the ones you were given.")
def test_online_softmax_keeps_dtype_and_chunks(student, rng):
    """float32 stays float32, tensors with gaps in memory work, no chunk is changed."""
    chunks = [strided(chunk.float()) for chunk in pieces(rng, 3, 2, 4)]
    result, after = student.after("online_softmax", chunks)
    expected = tuple(x.float() for x in max_and_sum([chunk.double() for chunk in chunks]))
    same(result, expected, MAX_AND_SUM, "in float32")
    unchanged((chunks,), after, "float32 chunks")


@hidden("online_softmax", kind="cost", weight=4, hint="Keep two numbers a row, not the row.")
def test_online_softmax_holds_one_chunk(student, rng):
    """Of a row in 64 chunks, no more than a few chunks' worth is ever held at once."""
    chunks = [tensor(rng, 8, 32) for _ in range(64)]
    trace = student.trace("online_softmax", chunks)
    same(trace.result, tuple(x.float() for x in max_and_sum([c.double() for c in chunks])), MAX_AND_SUM, "of 64 chunks")
    at_most(trace.largest, 3 * 8 * 32, what="elements of the largest tensor made from chunks of 256")


# merge_partials

OUT_LSE = ("out", "lse")
STEPS_A_TILE = 1250  # lines of Python, torch's own among them: a tile takes 200 to 500


def halves(rng, *batch, keys=(4, 7)):
    """Attention of five queries over each of several sets of keys, and over all of them."""
    q, k, v = draw(rng, *batch, q_seq=5, kv_seq=sum(keys))
    parts = [dense(q, *pair) for pair in zip(k.split(keys, dim=-2), v.split(keys, dim=-2), strict=True)]
    return parts, dense(q, k, v)


@hidden("merge_partials", weight=2, hint="How much of the sum of exponentials does each part hold?")
def test_merged_parts_are_attention_over_both(student, rng):
    """Attention over two sets of keys, merged, is attention over their union."""
    for keys in ((4, 7), (1, 9), (6, 6)):
        (a, b), whole = halves(rng, 2, 3, keys=keys)
        same(student.merge_partials(*a, *b), whole, OUT_LSE, f"of {keys[0]} and {keys[1]} keys")


@hidden("merge_partials", weight=2, hint="exp(lse) is a sum of exponentials. Its logarithm is taken again at the end.")
def test_merged_parts_of_unequal_weight(student, rng):
    """Right where one part outweighs the other, whichever it is, with and without leading axes."""
    for gap in (-3.0, 2.0, float(rng.uniform(4, 6))):
        out_a, out_b = tensor(rng, 4, 3, dtype=DOUBLE), tensor(rng, 4, 3, dtype=DOUBLE)
        lse_a = tensor(rng, 4, dtype=DOUBLE)
        lse_b = lse_a + gap
        share = (1 / (1 + math.exp(gap)), 1 / (1 + math.exp(-gap)))
        expected = share[0] * out_a + share[1] * out_b, lse_a + math.log1p(math.exp(gap))
        same(student.merge_partials(out_a, lse_a, out_b, lse_b), expected, OUT_LSE, f"of parts {abs(gap):.2g} apart")


@hidden("merge_partials", kind="property", hint="Three parts can be merged in twelve ways, and all must agree.")
def test_merging_in_any_order(student, rng):
    """Commutative and associative."""
    (a, b, c), whole = halves(rng, 2, keys=(3, 5, 2))
    same(student.merge_partials(*b, *a), student.merge_partials(*a, *b), OUT_LSE, "with the parts exchanged")
    left = student.merge_partials(
        *same(student.merge_partials(*a, *b), dense_pair(a, b), OUT_LSE, "of the first two"), *c
    )
    right = student.merge_partials(*a, *student.merge_partials(*b, *c))
    same(left, whole, OUT_LSE, "of (a, b) and c")
    same(right, whole, OUT_LSE, "of a and (b, c)")


def dense_pair(a, b):
    """Two parts merged by hand."""
    lse = torch.logaddexp(a[1], b[1])
    return sum(out * (own - lse).exp().unsqueeze(-1) for out, own in (a, b)), lse


@hidden("merge_partials", kind="edge", hint="What is the weight of a part whose lse is −∞? And if both are?")
def test_empty_parts_change_nothing(student, rng):
    """An empty part leaves the other as it is, on either side, row by row; two empty ones give 0 and −∞."""
    (a, b), _ = halves(rng, 2, 3)
    nothing = torch.zeros_like(a[0]), torch.full_like(a[1], -torch.inf)
    same(student.merge_partials(*a, *nothing), a, OUT_LSE, "with an empty second part")
    same(student.merge_partials(*nothing, *a), a, OUT_LSE, "with an empty first part")
    same(student.merge_partials(*nothing, *nothing), nothing, OUT_LSE, "of two empty parts")
    gone = torch.from_numpy(rng.random((2, 3, 5)) < 0.5)
    gone[0, 0, 0], gone[1, 1, 1] = True, False
    some = torch.where(gone.unsqueeze(-1), 0.0, b[0]), torch.where(gone, -torch.inf, b[1])
    whole = dense_pair(a, b)
    mixed = torch.where(gone.unsqueeze(-1), a[0], whole[0]), torch.where(gone, a[1], whole[1])
    same(student.merge_partials(*a, *some), mixed, OUT_LSE, "with some empty rows")


@hidden("merge_partials", kind="edge", hint="exp(800) is inf. Only the difference of the two logarithms matters.")
def test_merging_far_from_zero(student, rng):
    """lse of ±10⁴, and parts thousands apart, give finite answers."""
    (a, b), whole = halves(rng, 2)
    for shift in (1e4, -1e4):
        moved = student.merge_partials(a[0], a[1] + shift, b[0], b[1] + shift)
        same(moved, (whole[0], whole[1] + shift), OUT_LSE, "of parts far from zero")
    far = a[0], a[1] + 3e3
    for pair in ((*far, *b), (*b, *far)):
        same(student.merge_partials(*pair), far, OUT_LSE, "of parts far apart")


@hidden("merge_partials", kind="gradient", hint="The shares depend on both lse; gradients must reach them.")
def test_merge_gradients(student, rng):
    """Gradients of out for both outputs and both lse are those of the definition, also where one part is empty."""
    (a, b), _ = halves(rng, 2)
    for part, rows in ((a, [0, 3]), (b, [1])):
        part[0][:, rows], part[1][:, rows] = 0.0, -torch.inf
    inputs, upstream = [*a, *b], tensor(rng, 2, 5, 6, dtype=DOUBLE)
    _, found = student.vjp("merge_partials", *inputs, upstream=upstream, wrt=(0, 1, 2, 3))
    expected = gradients(inputs, upstream, lambda *x: dense_pair(x[:2], x[2:])[0])
    for name, grad, want in zip(("out_a", "lse_a", "out_b", "lse_b"), found, expected, strict=True):
        require(grad is not None, f"No gradient reaches {name}.")
        close(grad, want, what=f"gradient of {name}", rtol=1e-7)


@hidden("merge_partials", kind="edge", hint="Make new tensors with the dtype of the ones you were given.")
def test_merge_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, tensors with gaps in memory work, no argument is changed."""
    (a, b), whole = halves(rng, 2, 3)
    single = [strided(x.float()) for x in (*a, *b)]
    result, after = student.after("merge_partials", *single)
    same(result, tuple(x.float() for x in whole), OUT_LSE, "in float32")
    unchanged(single, after, "float32 inputs")


# causal_block_schedule


def schedule(q_blocks, k_blocks, block_q, block_k, shift):
    """Codes from the pairs that each tile holds."""
    codes = torch.zeros(q_blocks, k_blocks, dtype=torch.int64)
    for i, j in np.ndindex(q_blocks, k_blocks):
        pairs = [(i * block_q + r + shift, j * block_k + c) for r, c in np.ndindex(block_q, block_k)]
        codes[i, j] = any(key <= query for query, key in pairs) + all(key <= query for query, key in pairs)
    return codes


@hidden(
    "causal_block_schedule", weight=2, hint="A tile has four corners. Which one decides whether it is reached at all?"
)
def test_schedule_of_a_square(student, rng):
    """Square tiles, as many queries as keys: full below the diagonal, partial on it, skipped above."""
    for blocks, block in ((4, 3), (int(rng.integers(5, 8)), 2)):
        found = student.causal_block_schedule(blocks, blocks, block, block)
        close(found, schedule(blocks, blocks, block, block, 0), what=f"the schedule of {blocks} blocks of {block}")


@hidden("causal_block_schedule", weight=2, hint="Count in positions, not in blocks, when the two sizes differ.")
def test_schedule_of_unequal_blocks(student, rng):
    """Blocks of queries larger, and smaller, than blocks of keys: the diagonal passes through several tiles."""
    for block_q, block_k in ((4, 2), (2, 5), (int(rng.integers(6, 9)), 3)):
        q_blocks, k_blocks = 30 // block_q, 30 // block_k
        found = student.causal_block_schedule(q_blocks, k_blocks, block_q, block_k)
        close(found, schedule(q_blocks, k_blocks, block_q, block_k, 0), what=f"tiles of {block_q} × {block_k}")


@hidden(
    "causal_block_schedule", weight=2, hint="shift moves the queries along the keys: query 0 stands at position shift."
)
def test_schedule_of_shifted_queries(student, rng):
    """Query i stands at i + shift, with more keys than queries and with fewer."""
    for shift in (5, -4, int(rng.integers(6, 12))):
        found = student.causal_block_schedule(4, 6, 3, 4, shift)
        close(found, schedule(4, 6, 3, 4, shift), what=f"the schedule with shift {shift}")


@hidden("causal_block_schedule", kind="property", hint="A tile of one pair is either seen or not.")
def test_schedule_of_single_pairs(student, rng):
    """Tiles of one pair are full or skipped: twice the causal mask."""
    q_seq, kv_seq = int(rng.integers(4, 7)), int(rng.integers(7, 10))
    found = student.causal_block_schedule(q_seq, kv_seq, 1, 1, kv_seq - q_seq)
    close(found, 2 * torch.ones(q_seq, kv_seq).tril(kv_seq - q_seq).long(), what="the schedule of single pairs")


@hidden("causal_block_schedule", kind="edge", hint="Queries may stand before all keys, or behind them all.")
def test_schedule_at_its_ends(student, rng):
    """A shift before all keys skips everything; one behind them leaves everything full."""
    shift = int(rng.integers(30, 40))
    close(student.causal_block_schedule(3, 4, 2, 3, shift), torch.full((3, 4), 2), what="the schedule far behind")
    close(student.causal_block_schedule(3, 4, 2, 3, -shift), torch.zeros(3, 4).long(), what="the schedule far before")


# blockwise_attention


def some_rows(rng, found, inputs, causal=False):
    """Fail unless a few of many rows are right; the rest was looked at where sequences are short."""
    q, k, v = inputs
    shift = k.shape[-2] - q.shape[-2]
    out = found[0] if isinstance(found, (tuple, list)) else found
    require(
        isinstance(out, torch.Tensor) and out.shape == (*q.shape[:-1], v.shape[-1]), "the shape of the output is off."
    )
    for row in rng.choice(q.shape[-2], size=4, replace=False):
        last = row + shift + 1 if causal else k.shape[-2]
        close(out[row], dense(q[row : row + 1], k[:last], v[:last])[0][0], what="one row of many")


@hidden("blockwise_attention", weight=2, hint="Compare one row with softmax(q kᵀ / √head_dim) v by hand, tile by tile.")
def test_blockwise_equals_attention(student, rng):
    """Without causal: exact attention and its lse, for lengths that the blocks divide."""
    for block_q, block_k in ((4, 4), (6, 3), (2, 12)):
        inputs = draw(rng, 2, 3, q_seq=12, kv_seq=12)
        found = student.blockwise_attention(*inputs, block_q, block_k)
        same(found, dense(*inputs), OUT_LSE, f"with tiles of {block_q} × {block_k}")


@hidden("blockwise_attention", weight=2, hint="What is in the last tile when the block does not divide the length?")
def test_blockwise_with_smaller_last_tiles(student, rng):
    """Lengths that no block divides, more queries than keys and fewer, blocks larger than the sequence."""
    for q_seq, kv_seq, block_q, block_k in ((11, 7, 4, 3), (5, 13, 3, 8), (6, 9, 32, 64)):
        inputs = draw(rng, 2, q_seq=q_seq, kv_seq=kv_seq)
        found = student.blockwise_attention(*inputs, block_q, block_k)
        same(found, dense(*inputs), OUT_LSE, f"of {q_seq} queries and {kv_seq} keys in tiles of {block_q} × {block_k}")


@hidden("blockwise_attention", weight=2, hint="Mask each pair by its positions: j ≤ i + kv_seq − q_seq.")
def test_blockwise_causal(student, rng):
    """With causal=True the future is hidden, with tiles of unequal sides too."""
    for seq, block_q, block_k in ((12, 4, 4), (13, 5, 2), (int(rng.integers(14, 18)), 3, 6)):
        inputs = draw(rng, 2, q_seq=seq)
        found = student.blockwise_attention(*inputs, block_q, block_k, True)
        same(found, dense(*inputs, True), OUT_LSE, f"of {seq} causal tokens in tiles of {block_q} × {block_k}")


@hidden("blockwise_attention", weight=2, hint="The last query stands beside the last key. Some queries may see no key.")
def test_blockwise_causal_with_unequal_lengths(student, rng):
    """Causal with q_seq ≠ kv_seq: query i stands at i + kv_seq − q_seq; one that sees no key gets 0 and −∞."""
    for q_seq, kv_seq, block_q, block_k in ((5, 12, 2, 4), (11, 6, 4, 3), (9, 4, 3, 8)):
        inputs = draw(rng, 2, q_seq=q_seq, kv_seq=kv_seq)
        found = student.blockwise_attention(*inputs, block_q, block_k, causal=True)
        same(found, dense(*inputs, True), OUT_LSE, f"of {q_seq} queries and {kv_seq} keys")


@hidden("blockwise_attention", kind="property", hint="Tiles are only a way to compute; no number depends on them.")
def test_blockwise_tiles_do_not_matter(student, rng):
    """Every size of tile gives the same."""
    inputs, causal = draw(rng, q_seq=10, kv_seq=14), bool(rng.integers(2))
    expected = dense(*inputs, causal)
    for block_q, block_k in ((1, 1), (3, 14), (10, 5), (4, 1)):
        found = student.blockwise_attention(*inputs, block_q, block_k, causal)
        same(found, expected, OUT_LSE, f"with tiles of {block_q} × {block_k}")


@hidden("blockwise_attention", kind="edge", hint="Each tile has a maximum of its own; all must be measured from one.")
def test_blockwise_survives_large_scores(student, rng):
    """Scores in the thousands, of very different size from tile to tile, agree with the definition."""
    q, k, v = draw(rng, 8, q_seq=8, kv_seq=12)  # in many examples some row surely looks at what it must not see
    for sizes in ((300.0, 1.0, 30.0), (1.0, 30.0, 300.0)):
        wide = k * torch.tensor(sizes, dtype=DOUBLE).repeat_interleave(4)[:, None]
        for causal in (False, True):
            found = student.blockwise_attention(30 * q, wide, v, 4, 4, causal)
            same(found, dense(30 * q, wide, v, causal), OUT_LSE, "at large scores", rtol=1e-8)


@hidden("blockwise_attention", kind="edge", hint="Make new tensors with the dtype of the ones you were given.")
def test_blockwise_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, tensors with gaps in memory work, no argument is changed."""
    single = [strided(x.float()) for x in draw(rng, 2, 3, q_seq=9, kv_seq=11)]
    result, after = student.after("blockwise_attention", *single, 4, 3, True)
    expected = tuple(x.float() for x in dense(*(x.double() for x in single), True))
    same(result, expected, OUT_LSE, "in float32")
    unchanged([*single, 4, 3, True], after, "float32 inputs")


@hidden("blockwise_attention", kind="cost", weight=6, hint="Loop over blocks of queries and over blocks of keys.")
def test_blockwise_memory_is_one_tile(student, rng):
    """At 2,560 causal tokens in tiles of 256 × 256 nothing near the 6.6 million scores is ever held."""
    inputs = draw(rng, q_seq=2560, head_dim=8, v_dim=8, dtype=torch.float32)
    first = (x[:256] for x in inputs)
    student.trace("blockwise_attention", *first, 256, 256, True)  # what a first trace sets up is no cost
    trace = student.trace("blockwise_attention", *inputs, 256, 256, True)
    some_rows(rng, trace.result, inputs, causal=True)
    at_most(trace.largest, 2.5 * 256 * 256, what="elements of the largest tensor at 2,560 tokens")
    at_most(trace.outside_bytes, 18 * MIB, what="growth of the process's memory in bytes")


@hidden("blockwise_attention", kind="cost", weight=3, hint="Which tiles hold not one pair that may be seen?")
def test_blockwise_skips_the_future(student, rng):
    """Two products for each tile; causal, for each tile that reaches the past, and none for the others."""
    inputs = draw(rng, q_seq=256, head_dim=4, v_dim=4, dtype=torch.float32)
    trace = student.trace("blockwise_attention", *inputs, 128, 128)
    require(0 < trace.flops <= 1.02 * 256**2 * 2 * 8, "more was multiplied than two products a tile need.")
    for q_seq, kv_seq, block, tiles in ((256, 256, 64, 10), (64, 128, 32, 7)):
        inputs = draw(rng, q_seq=q_seq, kv_seq=kv_seq, head_dim=4, v_dim=4, dtype=torch.float32)
        trace = student.trace("blockwise_attention", *inputs, block, block, True)
        some_rows(rng, trace.result, inputs, causal=True)
        require(0 < trace.flops <= 1.02 * tiles * block**2 * 2 * 8, "tiles that lie in the future were computed.")


@hidden(
    "blockwise_attention",
    kind="cost",
    weight=2,
    hint="How many tiles are there? Each takes a few lines, whatever it holds.",
)
def test_blockwise_steps_are_those_of_tiles(student, rng):
    """512 queries and 64 keys in tiles of 128 × 32 take as many steps as 8 tiles do, not as many as rows."""
    inputs = draw(rng, q_seq=512, kv_seq=64, head_dim=2, v_dim=2, dtype=torch.float32)
    trace = student.trace("blockwise_attention", *inputs, 128, 32)
    some_rows(rng, trace.result, inputs)
    at_most(trace.steps, STEPS_A_TILE * 8, what="lines of Python run for 8 tiles")


# flash_attention_backward

GRADIENTS = ("dq", "dk", "dv")


def backward_of(inputs, d_out, causal=False):
    """The arguments of the backward pass, and what it should return."""
    out, lse = dense(*inputs, causal)
    return (*inputs, out, lse, d_out), gradients(inputs, d_out, lambda *x: dense(*x, causal)[0])


def draw_backward(rng, *batch, causal=False, **sizes):
    """Inputs with an upstream gradient."""
    inputs = draw(rng, *batch, **sizes)
    return backward_of(inputs, tensor(rng, *inputs[0].shape[:-1], inputs[2].shape[-1], dtype=DOUBLE), causal)


@hidden("flash_attention_backward", weight=2, hint="Write the backward pass of softmax(S) V once with whole matrices.")
def test_backward_equals_autograd(student, rng):
    """Without causal: the gradients that autograd finds through attention with all its scores."""
    for block_q, block_k in ((4, 4), (6, 3), (12, 12)):
        args, expected = draw_backward(rng, 2, 3, q_seq=12)
        same(
            student.flash_attention_backward(*args, block_q, block_k), expected, GRADIENTS, "without causal", rtol=1e-8
        )


@hidden("flash_attention_backward", weight=2, hint="Which tiles add to one row of dk, and which to one row of dq?")
def test_backward_with_smaller_last_tiles(student, rng):
    """Lengths that no block divides, more queries than keys and fewer, blocks larger than the sequence."""
    for q_seq, kv_seq, block_q, block_k in ((11, 7, 4, 3), (5, 13, 3, 8), (6, 9, 32, 64)):
        args, expected = draw_backward(rng, 2, q_seq=q_seq, kv_seq=kv_seq)
        found = student.flash_attention_backward(*args, block_q, block_k)
        same(found, expected, GRADIENTS, f"of {q_seq} queries and {kv_seq} keys", rtol=1e-8)


@hidden("flash_attention_backward", weight=2, hint="The backward pass needs the mask of the forward pass.")
def test_backward_causal(student, rng):
    """With causal=True, also where there are more queries than keys or fewer; empty rows add nothing."""
    for q_seq, kv_seq, block_q, block_k in ((13, 13, 5, 2), (5, 12, 2, 4), (11, 6, 4, 3)):
        args, expected = draw_backward(rng, 2, q_seq=q_seq, kv_seq=kv_seq, causal=True)
        found = student.flash_attention_backward(*args, block_q, block_k, causal=True)
        same(found, expected, GRADIENTS, f"of {q_seq} causal queries and {kv_seq} keys", rtol=1e-8)


@hidden("flash_attention_backward", kind="property", hint="Adding one number to all scores of a row changes nothing.")
def test_backward_knows_what_does_not_matter(student, rng):
    """A vector added to all keys moves no weight: the rows of dk add up to 0. Twice d_out gives twice the gradients."""
    args, expected = draw_backward(rng, 2, q_seq=9, kv_seq=7)
    found = same(student.flash_attention_backward(*args, 4, 3), expected, GRADIENTS, "of one d_out", rtol=1e-8)
    at_most(float(found[1].sum(dim=-2).abs().max()), 1e-10, what="the sum of dk over all keys")
    twice = student.flash_attention_backward(*args[:-1], 2 * args[-1], 4, 3)
    same(twice, tuple(2 * x for x in expected), GRADIENTS, "of twice this d_out", rtol=1e-8)


@hidden("flash_attention_backward", kind="edge", hint="Weights are exp(score − lse): neither is small by itself.")
def test_backward_survives_large_scores(student, rng):
    """Scores in the hundreds give the gradients of the definition."""
    q, k, v = draw(rng, 2, q_seq=8, kv_seq=12)
    near = (
        k[:, ::2].repeat_interleave(2, dim=-2) + 1e-3 * k
    )  # two keys share each row, or nothing would be left to learn
    args, expected = backward_of([30 * q, 30 * near, v], tensor(rng, 2, 8, 6, dtype=DOUBLE), True)
    found = student.flash_attention_backward(*args, 4, 4, True)
    same(found, expected, GRADIENTS, "at large scores", rtol=1e-7)


@hidden("flash_attention_backward", kind="edge", hint="Make new tensors with the dtype of the ones you were given.")
def test_backward_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, tensors with gaps in memory work, no argument is changed."""
    args, expected = draw_backward(rng, 2, 3, q_seq=9, kv_seq=11, causal=True)
    single = [strided(x.float()) for x in args]
    result, after = student.after("flash_attention_backward", *single, 4, 3, True)
    same(result, tuple(x.float() for x in expected), GRADIENTS, "in float32", rtol=1e-4)
    unchanged([*single, 4, 3, True], after, "float32 inputs")


def large_backward(rng, q_seq, kv_seq, width):
    """Causal float32 arguments of a long sequence; out and lse from blocks of rows, so that nothing here is large."""
    q, k, v = draw(rng, q_seq=q_seq, kv_seq=kv_seq, head_dim=width, v_dim=width, dtype=torch.float32)
    ends = range(256 + kv_seq - q_seq, kv_seq + 256, 256)
    parts = [dense(rows, k[:end], v[:end], True) for rows, end in zip(q.split(256), ends, strict=True)]
    out, lse = (torch.cat(x) for x in zip(*parts, strict=True))
    return q, k, v, out, lse, tensor(rng, q_seq, width)


@hidden(
    "flash_attention_backward", kind="cost", weight=6, hint="Recompute the weights of one tile, use them, and go on."
)
def test_backward_memory_is_one_tile(student, rng):
    """At 3,072 causal tokens in tiles of 256 × 256 nothing near the 9.4 million weights is ever held."""
    args = large_backward(rng, 3072, 3072, 8)
    first = (x[:512] for x in args)
    student.trace("flash_attention_backward", *first, 256, 256, True)  # what a first trace sets up is no cost
    trace = student.trace("flash_attention_backward", *args, 256, 256, True)
    some_gradients(rng, trace.result, *args[:3], args[-1], causal=True)
    at_most(trace.largest, 2.5 * 256 * 256, what="elements of the largest tensor at 3,072 tokens")
    at_most(trace.outside_bytes, 28 * MIB, what="growth of the process's memory in bytes")


def some_gradients(rng, found, q, k, v, d_out, causal=False):
    """Fail unless a few rows of dq are right, first some early ones, in which each key has a large share."""
    require(isinstance(found, (tuple, list)) and len(found) >= 3, "the result should be a tuple: dq, dk, dv.")
    require(isinstance(found[0], torch.Tensor) and found[0].shape == q.shape, "dq should have the shape of q.")
    for row in (*rng.choice(16, size=2, replace=False), *rng.choice(len(q), size=2, replace=False)):
        end = row + 1 + len(k) - len(q) if causal else len(k)
        own = q[row : row + 1], k[:end], v[:end]
        want = gradients(own, d_out[row : row + 1], lambda *x: dense(*x)[0])[0][0]
        close(found[0][row], want, what="one row of dq of many", rtol=1e-3, atol=1e-5)


@hidden("flash_attention_backward", kind="cost", weight=3, hint="Five products a tile, and no tile of the future.")
def test_backward_work_is_five_products_a_tile(student, rng):
    """Five products for each tile; causal, for each tile that reaches the past, and none for the others."""
    q, k, v = draw(rng, q_seq=256, head_dim=4, v_dim=4, dtype=torch.float32)
    args = (q, k, v, *dense(q, k, v), tensor(rng, 256, 4))
    trace = student.trace("flash_attention_backward", *args, 128, 128)
    require(0 < trace.flops <= 1.02 * 256**2 * 2 * 4 * 5, "more was multiplied than five products a tile need.")
    for q_seq, kv_seq, block, tiles in ((256, 256, 64, 10), (64, 128, 32, 7)):
        args = large_backward(rng, q_seq, kv_seq, 4)
        trace = student.trace("flash_attention_backward", *args, block, block, True)
        some_gradients(rng, trace.result, *args[:3], args[-1], causal=True)
        most = 1.02 * tiles * block**2 * 2 * 4 * 5
        require(0 < trace.flops <= most, "tiles that lie in the future were computed.")


@hidden("flash_attention_backward", kind="cost", weight=2, hint="A tile takes a few lines, however many rows it holds.")
def test_backward_steps_are_those_of_tiles(student, rng):
    """512 queries and 64 keys in tiles of 128 × 32 take as many steps as 8 tiles do, not as many as rows."""
    q, k, v = draw(rng, q_seq=512, kv_seq=64, head_dim=2, v_dim=2, dtype=torch.float32)
    args = (q, k, v, *dense(q, k, v), tensor(rng, 512, 2))
    trace = student.trace("flash_attention_backward", *args, 128, 32)
    at_most(trace.steps, STEPS_A_TILE * 8, what="lines of Python run for 8 tiles")


# FlashAttention

ON_CTX = ("int", "float", "bool", "str", "NoneType")


def made(student):
    """An instance of the submission's class.

    It is what older versions of torch used as ctx: `apply` is reached through it, and what `forward` saves can be seen.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        instance = student.FlashAttention()
    require(isinstance(instance, Module), "FlashAttention is a class made from torch.autograd.Function.")
    return instance


def applied(student):
    """The submission's `apply`."""
    apply = made(student).call("__getattribute__", "apply")
    require(isinstance(apply, Module), "apply is what torch.autograd.Function brings along.")
    return apply


def forward_on(ctx, *args):
    """What `forward` returns, the tensors it gives to `save_for_backward`, and what else it keeps on ctx."""
    out, saved, others = ctx.call("forward", ctx, *args), ctx.call("to_save"), ctx.call("__dict__")
    require(saved is None or isinstance(saved, (tuple, list)), "save_for_backward takes tensors, one beside the other.")
    require(isinstance(others, dict), "ctx is not what torch made it.")
    return out, tuple(saved or ()), others


def backward_trace(ctx, tensors, others, d_out):
    """The cost of `backward` by itself, on a stand-in for ctx that has saved these tensors."""
    stand_in = ctx.call("__getattribute__", "forward")  # a function: an object that takes attributes
    kept = {**others, "saved_tensors": tensors, "needs_input_grad": (True, True, True, False, False, False)}
    for name, value in kept.items():
        stand_in.call("__setattr__", name, value)
    return ctx.trace_call("backward", stand_in, d_out)


def plain(value):
    """Whether a value holds no tensor, and nothing that could."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return all(plain(one) for one in value)
    return type(value).__name__ in ON_CTX


def compare_applied(student, rng, inputs, rest, what):
    """Fail unless the output and the gradients are those of attention."""
    causal = bool(rest and rest[0])
    out = dense(*inputs, causal)[0]
    upstream = torch.from_numpy(rng.normal(size=tuple(out.shape)))
    found, grads, _ = applied(student).vjp(*inputs, *rest, upstream=upstream, wrt=(0, 1, 2))
    close(found, out, what=f"output {what}")
    for name, grad, want in zip(
        "qkv", grads, gradients(inputs, upstream, lambda *x: dense(*x, causal)[0]), strict=True
    ):
        require(grad is not None, f"No gradient reaches {name}.")
        close(grad, want, what=f"gradient of {name} {what}", rtol=1e-8)


@hidden("FlashAttention", weight=2, hint="forward is one call; what does it have to hand on to ctx?")
def test_function_output(student, rng):
    """`apply` returns the output of attention, with and without causal, for all lengths."""
    for q_seq, kv_seq, causal in ((9, 9, False), (6, 11, True), (8, 5, True)):
        inputs = draw(rng, 2, q_seq=q_seq, kv_seq=kv_seq)
        found = applied(student)(*inputs, causal, 4, 3)
        close(found, dense(*inputs, causal)[0], what=f"output of {q_seq} queries and {kv_seq} keys")


@hidden("FlashAttention", weight=3, hint="backward returns one gradient for each argument of forward, in their order.")
def test_function_gradients(student, rng):
    """The gradients of q, k and v, in this order, without causal."""
    compare_applied(student, rng, draw(rng, 2, 3, q_seq=9, kv_seq=7), (False, 4, 3), "without causal")
    compare_applied(student, rng, draw(rng, q_seq=5), (), "with the defaults")


@hidden("FlashAttention", weight=2, hint="What does backward need to know beside five tensors?")
def test_function_causal_gradients(student, rng):
    """The gradients with causal=True, with fewer queries than keys and with more."""
    for q_seq, kv_seq in ((6, 11), (8, 5)):
        compare_applied(student, rng, draw(rng, 2, q_seq=q_seq, kv_seq=kv_seq), (True, 4, 3), "with causal")


@hidden("FlashAttention", kind="gradient", hint="Move along one direction: does the output change as backward says?")
def test_function_agrees_with_finite_differences(student, rng):
    """The gradient along a random direction is what two nearby outputs differ by."""
    inputs, causal = draw(rng, q_seq=6, kv_seq=8), bool(rng.integers(2))
    direction = [torch.from_numpy(rng.normal(size=tuple(x.shape))) for x in inputs]
    upstream, step = tensor(rng, 6, 6, dtype=DOUBLE), 1e-5
    function = applied(student)
    _, grads, _ = function.vjp(*inputs, causal, 2, 3, upstream=upstream, wrt=(0, 1, 2))
    there, back = (
        function(*(x + sign * step * d for x, d in zip(inputs, direction, strict=True)), causal, 2, 3)
        for sign in (1, -1)
    )
    require(all(isinstance(x, torch.Tensor) and x.shape == upstream.shape for x in (there, back)), "its shape is off.")
    require(all(grad is not None for grad in grads), "No gradient reaches an argument.")
    slope = float(((there - back) * upstream).sum()) / (2 * step)
    along = float(sum((g * d).sum() for g, d in zip(grads, direction, strict=True)))
    close(along, slope, what="the slope along a direction", rtol=1e-6, atol=1e-6)


@hidden(
    "FlashAttention", kind="cost", weight=4, hint="Weights can be computed again from q, k and lse. What else is kept?"
)
def test_function_saves_five_tensors(student, rng):
    """Of one forward pass nothing is kept but q, k, v, out, lse and plain numbers."""
    inputs, causal = draw(rng, 2, q_seq=7, kv_seq=10), bool(rng.integers(2))
    out, tensors, others = forward_on(made(student), *inputs, causal, 4, 3)
    expected, lse = dense(*inputs, causal)
    close(out, expected, what="output of forward")
    require(len(tensors) <= 5, "More than five tensors are saved.")
    for kept in tensors:
        known = any(
            kept.shape == one.shape and torch.allclose(kept, one, rtol=1e-6, atol=1e-9)
            for one in (*inputs, expected, lse)
            if isinstance(kept, torch.Tensor)
        )
        require(known, "A tensor is saved that is none of q, k, v, out and lse.")
    require(plain(others), "ctx keeps more than plain numbers beside the saved tensors.")


@hidden("FlashAttention", kind="cost", weight=4, hint="Neither pass may hold what grows with the square of the length.")
def test_function_memory(student, rng):
    """At 2,560 causal tokens neither pass holds anything near the 6.6 million weights."""
    inputs = draw(rng, q_seq=2560, head_dim=8, v_dim=8, dtype=torch.float32)
    function = applied(student)
    function.trace(*(x[:256] for x in inputs), True, 256, 256)  # what a first trace sets up is no cost
    forward = function.trace(*inputs, True, 256, 256)
    some_rows(rng, forward.result, inputs, causal=True)
    at_most(forward.largest, 2.5 * 256 * 256, what="elements of the largest tensor of the forward pass")
    d_out, ctx = tensor(rng, 2560, 8), made(student)
    _, tensors, others = forward_on(ctx, *inputs, True, 256, 256)
    at_most(forward.outside_bytes, 18 * MIB, what="growth of the process's memory in the forward pass, in bytes")
    require(plain(others), "ctx keeps more than plain numbers beside the saved tensors.")
    backward = backward_trace(ctx, tensors, others, d_out)
    some_gradients(rng, backward.result, *inputs, d_out, causal=True)
    at_most(backward.largest, 2.5 * 256 * 256, what="elements of the largest tensor of the backward pass")
    at_most(backward.outside_bytes, 18 * MIB, what="growth of the process's memory in the backward pass, in bytes")


# hbm_accesses


def lengths(seq, block):
    """The rows of each block."""
    return [min(block, seq - start) for start in range(0, seq, block)]


def counted(algorithm, seq, head_dim, sram):
    """The elements that the loops of the paper's listings move."""
    outer = -(-sram // (4 * head_dim))
    matrix, inner = seq * head_dim, min(outer, head_dim)
    if algorithm == "standard":
        steps = (2 * matrix, seq**2), (seq**2, seq**2), (seq**2 + matrix, matrix)  # (read, written) by each
        return sum(map(sum, steps))
    moved = 0
    if algorithm == "flash_1":
        moved += matrix + 2 * seq
        for columns in lengths(seq, outer):
            moved += 2 * columns * head_dim
            for rows in lengths(seq, inner):
                moved += 2 * rows * head_dim + 2 * rows  # Q, O, ℓ, m
                moved += rows * head_dim + 2 * rows  # O, ℓ, m
        return moved
    for rows in lengths(seq, outer):
        moved += rows * head_dim
        for columns in lengths(seq, inner):
            moved += 2 * columns * head_dim
        moved += rows * head_dim + rows  # O, lse
    return moved


def accesses(student, algorithm, seq, head_dim, sram):
    """Fail unless the count is exact."""
    found = student.hbm_accesses(algorithm, seq, head_dim, sram)
    whole = isinstance(found, (int, np.integer)) and not isinstance(found, bool)
    require(whole, f"{algorithm}: the count should be an integer.")
    expected = counted(algorithm, seq, head_dim, sram)
    require(int(found) == expected, f"{algorithm}: the count is too {'large' if found > expected else 'small'}.")


@hidden("hbm_accesses", weight=2, hint="Three steps; two matrices of seq × seq are made, and each is written and read.")
def test_accesses_of_standard_attention(student, rng):
    """Standard attention: each step reads its operands and writes its result, once."""
    for seq, head_dim in ((64, 8), (int(rng.integers(30, 90)), 5), (1000, 64)):
        accesses(student, "standard", seq, head_dim, int(rng.integers(100, 1000)))


@hidden("hbm_accesses", weight=2, hint="Each block of keys passes over all queries: what is read and written there?")
def test_accesses_of_flash_1(student, rng):
    """FlashAttention: for each block of keys, Q, O, ℓ and m of all queries are read, and O, ℓ and m written back."""
    for blocks, head_dim in ((4, 8), (3, 16), (int(rng.integers(5, 9)), 4)):
        block = int(rng.integers(3, 8))
        accesses(student, "flash_1", blocks * block, head_dim, 4 * head_dim * block)


@hidden("hbm_accesses", weight=2, hint="A block of queries stays until it is done; what passes by?")
def test_accesses_of_flash_2(student, rng):
    """FlashAttention-2: for each block of queries, K and V are read once; O and lse are written once in all."""
    for blocks, head_dim in ((4, 8), (3, 16), (int(rng.integers(5, 9)), 4)):
        block = int(rng.integers(3, 8))
        accesses(student, "flash_2", blocks * block, head_dim, 4 * head_dim * block)


@hidden(
    "hbm_accesses", kind="edge", hint="Both divisions round up, and the last block has only the rows that are left."
)
def test_accesses_of_lengths_that_no_block_divides(student, rng):
    """Sizes that do not divide: blocks round up, the last one is smaller, a large sram holds everything at once."""
    for algorithm in ("flash_1", "flash_2"):
        for seq, head_dim, sram in ((50, 4, 100), (33, 6, 100), (int(rng.integers(40, 60)), 3, 77), (20, 4, 10_000)):
            accesses(student, algorithm, seq, head_dim, sram)


@hidden("hbm_accesses", kind="property", hint="Theorem 2: Θ(seq² · head_dim² / sram).")
def test_accesses_fall_with_the_fast_memory(student, rng):
    """At long sequences twice the fast memory halves the traffic of FlashAttention, and leaves the standard's alone."""
    seq, sram = 2**17, 2 ** int(rng.integers(14, 16))
    for algorithm, factor in (("flash_1", 2.0), ("flash_2", 2.0), ("standard", 1.0)):
        small, large = (student.hbm_accesses(algorithm, seq, 64, size) for size in (sram, 2 * sram))
        require(all(isinstance(x, (int, float)) and x > 0 for x in (small, large)), "the count is a positive number.")
        at_most(abs(small / large - factor), 0.05, what=f"{algorithm}: distance of the ratio from {factor:g}")


@hidden("hbm_accesses", kind="edge", hint="Which names are there? Anything else is a mistake of the caller.")
def test_accesses_of_an_unknown_algorithm(student, rng):
    """Another name raises ValueError."""
    raises(ValueError, student, "hbm_accesses", "flash_3", int(rng.integers(10, 99)), 8, 256)


# choose_blocks


def held(block_q, block_k, head_dim, size):
    """Bytes of all that is in the fast memory at once."""
    tiles = (block_q + 2 * block_k) * head_dim * size
    return tiles + 4 * (block_q * head_dim + block_q * block_k + 2 * block_q)


def best_blocks(sram, head_dim, size):
    """The largest pair that fits, found by trying."""
    fitting = [(16 * n, 16) for n in range(1, sram // 256) if held(16 * n, 16, head_dim, size) <= sram]
    block_q = max(fitting)[0]
    return block_q, max(16 * n for n in range(1, sram // 256) if held(block_q, 16 * n, head_dim, size) <= sram)


def an_sram(rng, block_q, block_k, head_dim, size):
    """Bytes that hold this pair with little to spare."""
    return held(block_q, block_k, head_dim, size) + int(rng.integers(0, 4 * head_dim))


@hidden("choose_blocks", weight=2, hint="List what is in the fast memory while one tile is worked on, in bytes.")
def test_blocks_of_half_precision(student, rng):
    """With 2 bytes an element: the most queries that fit, then the most keys."""
    for head_dim in (64, 128, int(rng.integers(2, 7)) * 16):
        sram = an_sram(rng, 16 * int(rng.integers(4, 12)), 48, head_dim, 2)
        close(student.choose_blocks(sram, head_dim, 2), best_blocks(sram, head_dim, 2), what="(block_q, block_k)")


@hidden("choose_blocks", weight=2, hint="The size of an element counts for q, k and v. What adds up is float32.")
def test_blocks_of_other_precisions(student, rng):
    """With 1 and 4 bytes an element; what adds up takes 4 bytes each way."""
    for size in (1, 4):
        for head_dim in (32, 80):
            sram = an_sram(rng, 16 * int(rng.integers(3, 9)), 32, head_dim, size)
            close(
                student.choose_blocks(sram, head_dim, size),
                best_blocks(sram, head_dim, size),
                what=f"(block_q, block_k) for {size} bytes",
            )


@hidden("choose_blocks", hint="What is left when no 16 further queries fit may still hold further keys.")
def test_blocks_leave_nothing_unused(student, rng):
    """What is left beside block_q goes to block_k."""
    for head_dim, size, block_q in ((128, 1, 64), (64, 2, 32), (96, 1, 48)):
        sram = held(block_q, 32, head_dim, size) + int(rng.integers(1000))
        close(student.choose_blocks(sram, head_dim, size), (block_q, 32), what="(block_q, block_k) with keys to spare")


@hidden("choose_blocks", kind="property", hint="Put your pair back into the sum of bytes.")
def test_blocks_fit_and_no_more_do(student, rng):
    """Both are multiples of 16 and fit; 16 more of either do not."""
    # Room for two to six queries more, where rounding up shows; then much, where forgotten statistics show.
    little = held(16 * int(rng.integers(6, 16)), 16, 64, 2) + int(rng.integers(700, 3000))
    cases = [(64, 2, little), (64, 2, 2**22 + int(rng.integers(2**18)))]
    for _ in range(8):
        head_dim, size = int(rng.integers(1, 17)) * 8, int(rng.choice([1, 2, 4]))
        cases.append((head_dim, size, held(16, 16, head_dim, size) + int(rng.integers(0, 200_000))))
    for head_dim, size, sram in cases:
        found = student.choose_blocks(sram, head_dim, size)
        require(isinstance(found, (tuple, list)) and len(found) == 2, "the result is a pair of integers.")
        block_q, block_k = found
        whole = all(isinstance(x, (int, np.integer)) and x > 0 and x % 16 == 0 for x in found)
        require(whole, "a block is not a positive multiple of 16.")
        require(held(block_q, block_k, head_dim, size) <= sram, "the tiles do not fit.")
        require(held(block_q + 16, 16, head_dim, size) > sram, "more queries would fit.")
        require(held(block_q, block_k + 16, head_dim, size) > sram, "more keys would fit.")


@hidden("choose_blocks", kind="edge", hint="What if one byte is missing for 16 queries and 16 keys?")
def test_blocks_of_the_smallest_memory(student, rng):
    """Exactly enough for (16, 16) gives (16, 16); a byte less raises ValueError."""
    for size in (1, 2, 4):
        head_dim = int(rng.integers(2, 17)) * 8
        smallest = held(16, 16, head_dim, size)
        close(student.choose_blocks(smallest, head_dim, size), (16, 16), what="the blocks of the smallest memory")
        raises(ValueError, student, "choose_blocks", smallest - 1, head_dim, size)


# split_kv_decode

SPLIT = ("out", "partial_out", "partial_lse")


def split(q, k, v, splits):
    """Attention over the whole cache and over each part."""
    size = -(-k.shape[-2] // splits)
    parts = [dense(q, *(x[..., n * size : (n + 1) * size, :] for x in (k, v))) for n in range(splits)]
    outs, logs = zip(*parts, strict=True)
    return dense(q, k, v)[0], torch.cat(outs, dim=-2), torch.cat(logs, dim=-1)


@hidden("split_kv_decode", weight=2, hint="A part is attention over its own keys; its lse says how much it counts.")
def test_split_decode_in_even_parts(student, rng):
    """The output over the whole cache, and output and lse of each part by itself."""
    for splits, size in ((3, 4), (2, 7), (1, 9)):
        inputs = draw(rng, 2, 3, q_seq=1, kv_seq=splits * size)
        same(student.split_kv_decode(*inputs, splits), split(*inputs, splits), SPLIT, f"in {splits} parts")


@hidden("split_kv_decode", weight=2, hint="Every part but the last has ⌈kv_seq / splits⌉ keys.")
def test_split_decode_with_a_shorter_last_part(student, rng):
    """Part n begins at key n · ⌈kv_seq / splits⌉; the last may have fewer, or none."""
    for kv_seq, splits in ((11, 3), (int(rng.integers(21, 25)), 5), (9, 4)):
        inputs = draw(rng, 2, q_seq=1, kv_seq=kv_seq)
        what = f"of {kv_seq} keys in {splits} parts"
        same(student.split_kv_decode(*inputs, splits), split(*inputs, splits), SPLIT, what)


@hidden("split_kv_decode", kind="edge", hint="What do the outputs and the weights of a part without keys have to be?")
def test_split_decode_with_empty_parts(student, rng):
    """More parts than keys, and an empty cache: 0 and −∞, never NaN."""
    for kv_seq, splits in ((3, 8), (1, 2), (0, 3)):
        inputs = draw(rng, 2, q_seq=1, kv_seq=kv_seq)
        what = f"of {kv_seq} keys in {splits} parts"
        same(student.split_kv_decode(*inputs, splits), split(*inputs, splits), SPLIT, what)


@hidden("split_kv_decode", kind="edge", hint="exp overflows near 710 in float64. Merge by differences of lse.")
def test_split_decode_survives_large_scores(student, rng):
    """Scores in the thousands, of very different size from part to part."""
    q, k, v = draw(rng, 2, q_seq=1, kv_seq=12)
    k = k * torch.from_numpy(rng.permutation([1.0, 300.0, 1000.0])).repeat_interleave(4)[:, None]
    same(student.split_kv_decode(30 * q, k, v, 3), split(30 * q, k, v, 3), SPLIT, "at large scores", rtol=1e-8)


@hidden("split_kv_decode", kind="property", hint="Each part is a softmax of its own, merged by its lse.")
def test_split_decode_does_not_depend_on_the_cut(student, rng):
    """The output is the same for every number of parts."""
    inputs = draw(rng, q_seq=1, kv_seq=int(rng.integers(13, 19)))
    for splits in (1, 2, 4, 6):
        same(student.split_kv_decode(*inputs, splits), split(*inputs, splits), SPLIT, f"in {splits} parts")


@hidden("split_kv_decode", kind="edge", hint="Make new tensors with the dtype of the ones you were given.")
def test_split_decode_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, tensors with gaps in memory work, no argument is changed."""
    single = [strided(x.float()) for x in draw(rng, 2, 3, q_seq=1, kv_seq=10)]
    result, after = student.after("split_kv_decode", *single, 3)
    expected = tuple(x.float() for x in split(*(x.double() for x in single), 3))
    same(result, expected, SPLIT, "in float32")
    unchanged([*single, 3], after, "float32 inputs")


@hidden("split_kv_decode", kind="cost", weight=3, hint="The whole answer can be had from the parts. What is merged?")
def test_split_decode_scores_each_key_once(student, rng):
    """Every key is scored once and every value used once: the parts are merged, not computed again."""
    inputs = draw(rng, q_seq=1, kv_seq=4096, head_dim=16, v_dim=16, dtype=torch.float32)
    trace = student.trace("split_kv_decode", *inputs, 8)
    expected = tuple(x.float() for x in split(*(x.double() for x in inputs), 8))
    same(trace.result, expected, SPLIT, "of a long cache", rtol=1e-4)
    require(trace.flops <= 1.1 * 2 * 4096 * 32, "keys are scored, or values summed, more than once.")


# mixed_precision_attention


def rounded_product(a, b, accumulate):
    """a @ b with exact products, each sum rounded to `accumulate`, first to last."""
    a, b = a.double(), b.double()
    total = (a[..., :1] * b[..., :1, :]).to(accumulate)
    for n in range(1, a.shape[-1]):
        total = (total.double() + a[..., n, None] * b[..., None, n, :]).to(accumulate)
    return total


def in_mixed_precision(q, k, v, compute, accumulate):
    """The definition, step by step."""
    q, k, v = (x.to(compute) for x in (q, k, v))
    scores = rounded_product(q, k.mT, accumulate) / math.sqrt(q.shape[-1])
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    total = rounded_product(weights, torch.ones_like(v[..., :1]), accumulate)
    return rounded_product(weights.to(compute), v, accumulate) / total


def mixed(student, inputs, compute, accumulate, budget, what):
    """Fail unless the output's mean distance from the definition's is within a share of the mean magnitude."""
    found = student.mixed_precision_attention(*inputs, compute, accumulate)
    expected = in_mixed_precision(*inputs, compute, accumulate)
    require(isinstance(found, torch.Tensor) and found.shape == expected.shape, f"{what}: its shape is off.")
    require(found.dtype == accumulate, f"{what}: it should come in the dtype that adds up.")
    require(bool(found.isfinite().all()), f"{what}: some values are not finite.")
    distance = (found.double() - expected.double()).abs().mean() / expected.double().abs().mean()
    at_most(float(distance), budget, what=f"{what}: mean distance from the definition")


@hidden("mixed_precision_attention", weight=2, hint="Four operands are rounded to `compute`. Which is the fourth?")
def test_sixteen_bits_added_in_float32(student, rng):
    """bfloat16 and float16 operands, added up in float32."""
    inputs = draw(rng, 2, q_seq=12, kv_seq=17, head_dim=24, v_dim=8, dtype=torch.float32)
    inputs[2] = inputs[2] + 1.0
    mixed(student, inputs, torch.bfloat16, torch.float32, 1e-4, "bfloat16 in float32")
    mixed(student, inputs, torch.float16, torch.float32, 3e-5, "float16 in float32")


@hidden("mixed_precision_attention", weight=2, hint="`accumulated_product` rounds after each addition, as asked.")
def test_added_up_in_sixteen_bits(student, rng):
    """bfloat16 all the way: both products, and the sum of the weights, lose what their accumulator cannot hold."""
    inputs = draw(rng, q_seq=24, kv_seq=300, head_dim=16, v_dim=4, dtype=torch.float32)
    inputs = [0.3 * inputs[0], inputs[1], inputs[2] + 2.0]
    mixed(student, inputs, torch.bfloat16, torch.bfloat16, 0.004, "bfloat16 in bfloat16")


@hidden("mixed_precision_attention", hint="Neither dtype need be one of sixteen bits.")
def test_wider_dtypes(student, rng):
    """float32 operands added up in float64, and float64 in float64, are as exact as they can be."""
    inputs = draw(rng, 8, q_seq=7, kv_seq=11, head_dim=8)
    mixed(student, inputs, torch.float32, torch.float64, 2e-9, "float32 in float64")
    exact = dense(*inputs)[0]
    close(student.mixed_precision_attention(*inputs, DOUBLE, DOUBLE), exact, what="float64 in float64")


@hidden(
    "mixed_precision_attention",
    kind="property",
    weight=2,
    hint="Ten bits beat seven, and a wide sum beats a narrow one.",
)
def test_error_budget(student, rng):
    """Against float64: float16 in float32 is good to 6e-4, bfloat16 in float32 to 1e-2; in bfloat16 it is not."""
    inputs = draw(rng, q_seq=8, kv_seq=200, head_dim=32, v_dim=8)
    inputs[2] = inputs[2] + 1.0
    exact = dense(*inputs)[0]
    errors = {}
    for compute, accumulate in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ):
        found = student.mixed_precision_attention(*inputs, compute, accumulate)
        require(isinstance(found, torch.Tensor) and found.shape == exact.shape, "the shape of the output is off.")
        errors[compute, accumulate] = float((found.double() - exact).abs().mean())
    at_most(errors[torch.float16, torch.float32], 6e-4, what="mean error of float16 added up in float32")
    at_most(errors[torch.bfloat16, torch.float32], 1e-2, what="mean error of bfloat16 added up in float32")
    narrow, wide = errors[torch.bfloat16, torch.bfloat16], errors[torch.bfloat16, torch.float32]
    require(narrow > 2 * wide, "adding up in bfloat16 should cost far more than reading bfloat16.")


@hidden("mixed_precision_attention", kind="edge", hint="float16 ends at 65,504: exp(12) is more.")
def test_mixed_precision_survives_large_scores(student, rng):
    """Scores in the hundreds do not overflow in float16."""
    q, k, v = draw(rng, 2, q_seq=6, kv_seq=9, head_dim=16, dtype=torch.float32)
    inputs = 8 * q, 8 * k, v
    found = student.mixed_precision_attention(*inputs, torch.float16, torch.float16)
    expected = in_mixed_precision(*inputs, torch.float16, torch.float16)
    require(isinstance(found, torch.Tensor) and found.shape == expected.shape, "the shape of the output is off.")
    require(bool(found.isfinite().all()), "some values are not finite.")
    # That the result is precise is asked elsewhere; here a row may hang on two scores that all but tie.
    far = float((found.double() - expected.double()).abs().mean())
    require(far <= 0.1, "the output is far from attention at large scores.")


@hidden(
    "mixed_precision_attention", kind="edge", hint="Rounding makes a new tensor; the old one belongs to the caller."
)
def test_mixed_precision_leaves_its_arguments(student, rng):
    """Tensors with gaps in memory work, and no argument is changed."""
    inputs = [strided(x) for x in draw(rng, 2, 3, q_seq=5, kv_seq=7, head_dim=8, dtype=torch.float32)]
    result, after = student.after("mixed_precision_attention", *inputs, torch.bfloat16, torch.float32)
    unchanged([*inputs, None, None], after, "float32 inputs")
    expected = in_mixed_precision(*inputs, torch.bfloat16, torch.float32)
    require(isinstance(result, torch.Tensor) and result.shape == expected.shape, "the shape of the output is off.")
    at_most(float((result.double() - expected.double()).abs().mean()), 0.02, what="mean distance from the definition")


# chunked_lazy_attention


@hidden(
    "chunked_lazy_attention", weight=2, hint="A chunk gives a maximum, a sum, and values summed. Divide at the end."
)
def test_lazy_equals_attention(student, rng):
    """Exact attention, for chunks that divide the lengths."""
    for chunk in (4, 3, 12):
        inputs = draw(rng, 2, 3, q_seq=12)
        close(student.chunked_lazy_attention(*inputs, chunk), dense(*inputs)[0], what=f"output with chunks of {chunk}")


@hidden("chunked_lazy_attention", weight=2, hint="The last chunk may be shorter, of queries and of keys.")
def test_lazy_with_shorter_last_chunks(student, rng):
    """Lengths that the chunk does not divide, more queries than keys and fewer, one chunk for all."""
    for q_seq, kv_seq, chunk in ((11, 7, 4), (5, 13, 3), (6, 9, 32), (4, 5, 1)):
        inputs = draw(rng, 2, q_seq=q_seq, kv_seq=kv_seq)
        out = student.chunked_lazy_attention(*inputs, chunk)
        close(out, dense(*inputs)[0], what=f"output of {q_seq} queries and {kv_seq} keys in chunks of {chunk}")


@hidden("chunked_lazy_attention", kind="edge", hint="Each chunk has a maximum of its own; when are they made one?")
def test_lazy_survives_large_scores(student, rng):
    """Scores in the thousands, of very different size from chunk to chunk."""
    q, k, v = draw(rng, 2, q_seq=6, kv_seq=12)
    k = k * torch.from_numpy(rng.permutation([1.0, 300.0, 1000.0])).repeat_interleave(4)[:, None]
    out = student.chunked_lazy_attention(30 * q, k, v, 4)
    close(out, dense(30 * q, k, v)[0], what="output at large scores", rtol=1e-8)


@hidden("chunked_lazy_attention", kind="gradient", hint="Detached or overwritten tensors stop gradients.")
def test_lazy_gradients(student, rng):
    """Gradients of queries, keys and values are those of attention."""
    inputs = draw(rng, 2, q_seq=9, kv_seq=7)
    upstream = tensor(rng, 2, 9, 6, dtype=DOUBLE)
    _, found = student.vjp("chunked_lazy_attention", *inputs, int(rng.integers(2, 5)), upstream=upstream, wrt=(0, 1, 2))
    for name, grad, want in zip("qkv", found, gradients(inputs, upstream, lambda *x: dense(*x)[0]), strict=True):
        require(grad is not None, f"No gradient reaches {name}.")
        close(grad, want, what=f"gradient of {name}", rtol=1e-7)


@hidden("chunked_lazy_attention", kind="edge", hint="Make new tensors with the dtype of the ones you were given.")
def test_lazy_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, tensors with gaps in memory work, no argument is changed."""
    single = [strided(x.float()) for x in draw(rng, 2, 3, q_seq=9, kv_seq=11)]
    result, after = student.after("chunked_lazy_attention", *single, 4)
    close(result, dense(*(x.double() for x in single))[0].float(), what="output in float32")
    unchanged([*single, 4], after, "float32 inputs")


@hidden("chunked_lazy_attention", kind="cost", weight=5, hint="Cut the queries into chunks as well as the keys.")
def test_lazy_memory_is_one_chunk(student, rng):
    """At 2,560 tokens in chunks of 256 nothing near the 6.6 million scores is ever held."""
    inputs = draw(rng, q_seq=2560, head_dim=8, v_dim=8, dtype=torch.float32)
    student.trace("chunked_lazy_attention", *(x[:256] for x in inputs), 256)  # what a first trace sets up is no cost
    trace = student.trace("chunked_lazy_attention", *inputs, 256)
    some_rows(rng, trace.result, inputs)
    at_most(trace.largest, 2.5 * 256 * 256, what="elements of the largest tensor at 2,560 tokens")
    some_rows(rng, student.chunked_lazy_attention(*(x[:300] for x in inputs), 64), [x[:300] for x in inputs])
    at_most(trace.outside_bytes, 24 * MIB, what="growth of the process's memory in bytes")


@hidden("chunked_lazy_attention", kind="cost", weight=2, hint="A chunk takes a few lines, however many rows it holds.")
def test_lazy_steps_are_those_of_chunks(student, rng):
    """512 queries and 64 keys in chunks of 128 take as many steps as 4 pairs of chunks do, not as many as rows."""
    inputs = draw(rng, q_seq=512, kv_seq=64, head_dim=2, v_dim=2, dtype=torch.float32)
    trace = student.trace("chunked_lazy_attention", *inputs, 128)
    some_rows(rng, trace.result, inputs)
    at_most(trace.steps, STEPS_A_TILE * 4, what="lines of Python run for 4 pairs of chunks")


@hidden("chunked_lazy_attention", kind="cost", hint="A few queries against very many keys: what is the longest tensor?")
def test_lazy_memory_of_few_queries(student, rng):
    """For 32 queries and 16,384 keys in chunks of 512, and for small chunks, nothing near all scores is ever held."""
    q, k, v = draw(rng, q_seq=32, kv_seq=16384, head_dim=2, v_dim=2, dtype=torch.float32)
    inputs = q, k, v + 1  # a mean far from 0: rounding is held against its size
    trace = student.trace("chunked_lazy_attention", *inputs, 512)
    some_rows(rng, trace.result, inputs)
    at_most(trace.largest, 5 * 512 * 32, what="elements of the largest tensor of 32 queries and 16,384 keys")
    inputs = draw(rng, q_seq=32, kv_seq=64, head_dim=2, v_dim=2, dtype=torch.float32)
    trace = student.trace("chunked_lazy_attention", *inputs, 8)
    at_most(trace.largest, 4.5 * 2 * 64, what="elements of the largest tensor in chunks of 8")
