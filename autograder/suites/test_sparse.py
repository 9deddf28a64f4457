"""Hidden suite of chapter `sparse`.

Patterns are expected pair by pair, from loops that follow the definition; outputs from torch's own attention under such
a pattern, in float64; costs from what was multiplied and held.
"""

import numpy as np
import torch
import torch.nn.functional as F

from autograder.sandbox.protocol import Generator
from autograder.suites.kit import at_most, close, hidden, require, strided, tensor

MIB = 2**20


def pattern(q_seq, kv_seq, sees):
    """The mask of a rule for pairs: `sees(position of the query, position of the key)`."""
    rows = [[bool(sees(i + kv_seq - q_seq, j)) for j in range(kv_seq)] for i in range(q_seq)]
    return torch.tensor(rows, dtype=torch.bool).reshape(q_seq, kv_seq)


def in_window(window, causal, dilation=1):
    """The rule of a window."""

    def sees(i, j):
        steps, rest = divmod(i - j, dilation)
        return rest == 0 and (0 <= steps < window if causal else abs(steps) <= window // 2)

    return sees


def attend(q, k, v, mask):
    """Attention under a mask by torch's own, in the inputs' dtype; a query that sees nothing gets 0."""
    empty = ~mask.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask | empty)
    return out.masked_fill(empty, 0.0)


def draw(rng, *batch, q_seq, kv_seq=None, head_dim=4, v_dim=6, dtype=torch.float64):
    """Queries, keys and values."""
    kv_seq = q_seq if kv_seq is None else kv_seq
    return [
        tensor(rng, *batch, *shape, dtype=dtype) for shape in ((q_seq, head_dim), (kv_seq, head_dim), (kv_seq, v_dim))
    ]


def gradients(inputs, upstream, definition):
    """Gradients of a definition by torch's autograd."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(definition(*leaves), leaves, upstream)


def compare_gradients(student, rng, name, inputs, rest, definition):
    """Fail unless the gradients with respect to all inputs are those of the definition."""
    upstream = torch.from_numpy(rng.normal(size=tuple(definition(*inputs).shape)))
    _, grads = student.vjp(name, *inputs, *rest, upstream=upstream, wrt=tuple(range(len(inputs))))
    for index, (grad, want) in enumerate(zip(grads, gradients(inputs, upstream, definition), strict=True)):
        require(grad is not None, f"No gradient reaches argument {index + 1}.")
        close(grad, want, what=f"gradient of argument {index + 1}", rtol=1e-7)


def unchanged(before, after, what):
    """Fail if a call changed one of its tensors."""
    for old, new in zip(before, after, strict=True):
        if isinstance(old, torch.Tensor):
            require(torch.equal(old, new), f"{what}: an argument was changed in place")


def keeps_dtype_and_arguments(student, name, inputs, rest, definition):
    """Fail unless float32 tensors with gaps in memory give a float32 answer and are left as they were."""
    single = [strided(x.float()) for x in inputs]
    result, after = student.after(name, *single, *rest)
    close(result, definition(*(x.double() for x in single)).float(), what="the output in float32", rtol=2e-5)
    unchanged([*single, *rest], after, "float32 inputs")


def work(trace):
    """Multiplications in products of matrices, and whatever else was written: products of elements count too."""
    return trace.flops / 2 + trace.elements


def by_torch(trace, least):
    """Fail if torch did less than the answer takes, in whatever way: somebody else has computed it then."""
    require(work(trace) >= least, "scores and outputs should be computed by torch's operations")


def both(rng, *shape):
    """Random booleans, both kinds among them in every row."""
    mask = rng.random(shape) < 0.5
    mask[..., 0], mask[..., -1] = True, False
    return rng.permuted(mask, axis=-1)


# sliding_window_mask


@hidden(
    "sliding_window_mask", weight=2, hint="A causal window of w holds the position of the query and w − 1 before it."
)
def test_causal_window_holds_itself_and_what_came_before(student, rng):
    """Causal: True exactly where 0 ≤ i − j < window, for windows of every size."""
    for window in (1, 2, int(rng.integers(3, 6)), 9):
        seq = int(rng.integers(6, 9))
        close(
            student.sliding_window_mask(seq, seq, window, True),
            pattern(seq, seq, in_window(window, True)),
            what=f"the causal mask of window {window}",
        )


@hidden("sliding_window_mask", weight=2, hint="How far does a window of 5 reach to either side, and one of 4?")
def test_symmetric_window_reaches_half_to_either_side(student, rng):
    """Not causal: True exactly where |i − j| ≤ window // 2, for odd and even windows."""
    for window in (2, 3, 4, 7):
        seq = int(rng.integers(6, 9))
        close(
            student.sliding_window_mask(seq, seq, window, False),
            pattern(seq, seq, in_window(window, False)),
            what=f"the symmetric mask of window {window}",
        )


@hidden("sliding_window_mask", hint="Where does the last query stand among the keys when there are fewer queries?")
def test_window_follows_the_last_positions(student, rng):
    """Query i stands at i + kv_seq − q_seq, with fewer and with more queries than keys."""
    for q_seq, kv_seq in ((3, 8), (8, 5)):
        for causal in (True, False):
            window = int(rng.integers(2, 5))
            close(
                student.sliding_window_mask(q_seq, kv_seq, window, causal),
                pattern(q_seq, kv_seq, in_window(window, causal)),
                what=f"the mask of {q_seq} queries and {kv_seq} keys",
            )


@hidden("sliding_window_mask", kind="edge", hint="Windows may be larger than the sequence, or hold one position.")
def test_window_of_one_and_of_everything(student, rng):
    """A window of 1 is the diagonal; one larger than the sequence hides nothing but the future."""
    seq = int(rng.integers(4, 8))
    for causal in (True, False):
        close(student.sliding_window_mask(seq, seq, 1, causal), torch.eye(seq).bool(), what="the mask of window 1")
        whole = torch.ones(seq, seq).bool()
        wide = student.sliding_window_mask(seq, seq, 2 * seq + 1, causal)
        close(wide, whole.tril() if causal else whole, what="the mask of a window beyond the sequence")


# dilated_mask


@hidden("dilated_mask", weight=2, hint="Which distances does a causal window of 3 with dilation 2 see: 0, 2 and …?")
def test_dilated_causal_window_takes_every_nth(student, rng):
    """Causal: as many keys as the window, `dilation` apart, the own position first."""
    for window, dilation in ((3, 2), (2, int(rng.integers(3, 5))), (4, 3)):
        close(
            student.dilated_mask(13, 13, window, True, dilation),
            pattern(13, 13, in_window(window, True, dilation)),
            what=f"the causal mask of window {window}, dilation {dilation}",
        )


@hidden("dilated_mask", weight=2, hint="To either side stand window // 2 keys, each `dilation` further than the last.")
def test_dilated_symmetric_window_takes_every_nth(student, rng):
    """Not causal: window // 2 keys to either side, `dilation` apart."""
    for window, dilation in ((3, 2), (4, int(rng.integers(3, 5))), (5, 2)):
        close(
            student.dilated_mask(13, 13, window, False, dilation),
            pattern(13, 13, in_window(window, False, dilation)),
            what=f"the symmetric mask of window {window}, dilation {dilation}",
        )


@hidden("dilated_mask", hint="The gaps count from the position of the query, wherever it stands.")
def test_dilated_window_follows_the_last_positions(student, rng):
    """Query i stands at i + kv_seq − q_seq."""
    for q_seq, kv_seq in ((4, 11), (11, 8)):
        for causal in (True, False):
            window, dilation = int(rng.integers(2, 4)), int(rng.integers(2, 4))
            close(
                student.dilated_mask(q_seq, kv_seq, window, causal, dilation),
                pattern(q_seq, kv_seq, in_window(window, causal, dilation)),
                what=f"the mask of {q_seq} queries and {kv_seq} keys",
            )


@hidden("dilated_mask", kind="property", hint="Without gaps it is the sliding window.")
def test_dilation_one_is_the_sliding_window(student, rng):
    """With dilation 1 nothing is left out."""
    window = int(rng.integers(2, 6))
    for causal in (True, False):
        close(
            student.dilated_mask(7, 9, window, causal, 1),
            pattern(7, 9, in_window(window, causal)),
            what="the mask with dilation 1",
        )


# strided_mask


@hidden("strided_mask", weight=2, hint="Two rules joined by `or`: recently, or whole strides ago. Never in the future.")
def test_strided_sees_the_recent_and_every_stride(student, rng):
    """True where j ≤ i and (i − j < stride or stride divides i − j)."""
    for stride in (2, int(rng.integers(3, 5)), 5):
        seq = int(rng.integers(14, 18))
        close(
            student.strided_mask(seq, stride),
            pattern(seq, seq, lambda i, j, s=stride: j <= i and (i - j < s or (i - j) % s == 0)),
            what=f"the mask of stride {stride}",
        )


@hidden("strided_mask", kind="property", hint="From any earlier token: first whole strides, then a short step.")
def test_two_strided_layers_connect_every_causal_pair(student, rng):
    """Every token is reached from every earlier one in at most two hops, and none from a later one."""
    stride = int(rng.integers(3, 7))
    mask = student.strided_mask(stride**2 + 2, stride)
    require(isinstance(mask, torch.Tensor) and mask.shape == (stride**2 + 2,) * 2, "the mask is (seq, seq)")
    close((mask.double() @ mask.double()) > 0, torch.ones(mask.shape).tril().bool(), what="pairs joined by two hops")


@hidden("strided_mask", kind="edge", hint="What does stride 1 leave out? And a stride longer than the sequence?")
def test_strided_at_the_ends_of_its_range(student, rng):
    """Stride 1, and a stride of the whole sequence, hide nothing but the future."""
    seq = int(rng.integers(4, 9))
    for stride in (1, seq, 3 * seq):
        close(
            student.strided_mask(seq, stride), torch.ones(seq, seq).tril().bool(), what=f"the mask of stride {stride}"
        )


@hidden("strided_mask", kind="property", hint="How many keys does a row far from the start see?")
def test_strided_rows_are_short(student, rng):
    """A late row keeps about 2 · stride of stride² keys."""
    stride = int(rng.integers(5, 9))
    mask = student.strided_mask(stride**2, stride)
    require(isinstance(mask, torch.Tensor) and mask.ndim == 2, "the mask is (seq, seq)")
    close(int(mask[-1].sum()), 2 * stride - 1, what="keys seen by the last row")


# fixed_mask


def fixed(stride, summary):
    """The rule of the fixed pattern."""
    return lambda i, j: j <= i and (i // stride == j // stride or j % stride >= stride - summary)


@hidden("fixed_mask", weight=2, hint="A block is fixed in place: positions 0 … stride − 1, the next stride, and so on.")
def test_fixed_sees_its_block_and_one_summary_a_block(student, rng):
    """With summary 1: the own block so far, and the last position of every earlier block."""
    for stride in (2, int(rng.integers(3, 5)), 5):
        seq = int(rng.integers(14, 18))
        close(
            student.fixed_mask(seq, stride, 1), pattern(seq, seq, fixed(stride, 1)), what=f"the mask of stride {stride}"
        )


@hidden("fixed_mask", weight=2, hint="The summary is the end of a block, `summary` positions long.")
def test_fixed_sees_longer_summaries(student, rng):
    """With a longer summary: the last `summary` positions of every earlier block."""
    for stride, summary in ((4, 2), (5, 3), (6, int(rng.integers(2, 6)))):
        seq = int(rng.integers(17, 21))
        close(
            student.fixed_mask(seq, stride, summary),
            pattern(seq, seq, fixed(stride, summary)),
            what=f"the mask of stride {stride}, summary {summary}",
        )


@hidden("fixed_mask", kind="edge", hint="A summary as long as the block leaves nothing out.")
def test_fixed_with_whole_blocks_as_summary(student, rng):
    """summary = stride, and a stride beyond the sequence, hide nothing but the future."""
    stride = int(rng.integers(2, 5))
    everything = torch.ones(11, 11).tril().bool()
    close(student.fixed_mask(11, stride, stride), everything, what="the mask with whole blocks as summary")
    close(student.fixed_mask(11, 12, 1), everything, what="the mask of one block")


@hidden("fixed_mask", kind="property", hint="Is every position that all see at the end of its block?")
def test_fixed_summaries_are_the_columns_all_later_rows_see(student, rng):
    """In the last row of many blocks, what lies outside the own block is exactly the summaries."""
    stride, blocks = int(rng.integers(3, 6)), int(rng.integers(4, 6))
    mask = student.fixed_mask(stride * blocks, stride, 1)
    require(isinstance(mask, torch.Tensor) and mask.ndim == 2, "the mask is (seq, seq)")
    seen = mask[-1, : stride * (blocks - 1)].nonzero().flatten()
    close(seen, torch.arange(1, blocks) * stride - 1, what="columns outside the own block that the last row sees")


# banded_attention


def banded(window, causal):
    """Banded attention by its definition."""
    return lambda q, k, v: attend(q, k, v, pattern(q.shape[-2], k.shape[-2], in_window(window, causal)))


@hidden("banded_attention", weight=2, hint="Compare with masked attention under sliding_window_mask, row by row.")
def test_banded_equals_attention_under_the_window(student, rng):
    """Without causal: attention under the symmetric window, for lengths that no block divides."""
    for window in (3, 4, int(rng.integers(5, 9))):
        inputs = draw(rng, 2, 3, q_seq=int(rng.integers(19, 26)))
        close(
            student.banded_attention(*inputs, window), banded(window, False)(*inputs), what=f"output, window {window}"
        )


@hidden("banded_attention", weight=2, hint="A causal window looks back window − 1 positions, and never ahead.")
def test_banded_equals_attention_under_the_causal_window(student, rng):
    """With causal=True: attention under the causal window."""
    for window in (2, 3, int(rng.integers(5, 9))):
        inputs = draw(rng, 2, q_seq=int(rng.integers(19, 26)))
        out = student.banded_attention(*inputs, window, causal=True)
        close(out, banded(window, True)(*inputs), what=f"causal output, window {window}")


@hidden(
    "banded_attention", weight=2, hint="The last query stands beside the last key, also when there are fewer queries."
)
def test_banded_places_fewer_queries_at_the_end(student, rng):
    """Query i stands at i + kv_seq − q_seq; queries that see no key get 0."""
    for q_seq, kv_seq in ((5, 23), (22, 9)):
        for causal in (True, False):
            window = int(rng.integers(4, 7))
            inputs = draw(rng, 2, q_seq=q_seq, kv_seq=kv_seq)
            out = student.banded_attention(*inputs, window, causal)
            close(out, banded(window, causal)(*inputs), what=f"output of {q_seq} queries and {kv_seq} keys")


@hidden("banded_attention", kind="gradient", hint="Detached or overwritten tensors stop gradients.")
def test_banded_gradients(student, rng):
    """Gradients of queries, keys and values are those of masked attention."""
    inputs, window, causal = draw(rng, 2, q_seq=13, kv_seq=17), int(rng.integers(4, 7)), bool(rng.integers(2))
    compare_gradients(student, rng, "banded_attention", inputs, (window, causal), banded(window, causal))


@hidden("banded_attention", kind="edge", hint="A window of 1 is the token itself; a large one hides nothing.")
def test_banded_window_of_one_and_of_everything(student, rng):
    """Window 1 returns the values; a window beyond the sequence is full attention."""
    q, k, v = draw(rng, 2, q_seq=7)
    for causal in (True, False):
        close(student.banded_attention(q, k, v, 1, causal), v, what="output of window 1")
        close(student.banded_attention(q, k, v, 40, causal), banded(40, causal)(q, k, v), what="output of window 40")


@hidden("banded_attention", kind="edge", hint="exp overflows near 710 in float64, near 88 in float32.")
def test_banded_survives_large_scores(student, rng):
    """Scores in the thousands, and what lies outside the band, however large, leave no NaN and no trace."""
    q, k, v = draw(rng, q_seq=17)
    window = int(rng.integers(4, 7))
    close(student.banded_attention(60 * q, 60 * k, v, window), banded(window, False)(60 * q, 60 * k, v), what="output")


@hidden("banded_attention", kind="edge", hint="Make new tensors with the dtype of the ones you were given.")
def test_banded_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, tensors with gaps in memory work, no argument is changed."""
    window = int(rng.integers(4, 7))
    keeps_dtype_and_arguments(student, "banded_attention", draw(rng, 2, q_seq=15), (window,), banded(window, False))


@hidden("banded_attention", kind="cost", weight=2, hint="Cut queries into blocks. Which keys can one block see?")
def test_banded_work_follows_the_band(student, rng):
    """The two products take at most twice the multiplications of the pairs inside the band."""
    for causal in (True, False):
        q, k, v = draw(rng, q_seq=1024, head_dim=8, v_dim=8, dtype=torch.float32)
        trace = student.trace("banded_attention", q, k, v, 64, causal)
        pairs = sum(min(i + 1, 64) if causal else min(i, 32) + 1 + min(1023 - i, 32) for i in range(1024))
        by_torch(trace, 2 * pairs)
        require(trace.flops <= 2 * 32 * pairs, "more than twice the products that the band needs were computed")


@hidden("banded_attention", kind="cost", weight=2, hint="No tensor may have an entry for every pair of positions.")
def test_banded_memory_follows_the_band(student, rng):
    """At 8,192 tokens nothing near the 67 million pairs is ever held."""
    q, k, v = draw(rng, q_seq=8192, head_dim=4, v_dim=4, dtype=torch.float32)
    trace = student.trace("banded_attention", q, k, v, 16)
    at_most(trace.largest, 2**21, what="elements of the largest tensor at 8,192 tokens")
    at_most(trace.outside_bytes, 100 * MIB, what="growth of the process's memory in bytes")


@hidden("banded_attention", kind="cost", hint="Does a query still meet every key, if only a block at a time?")
def test_banded_work_grows_with_the_length(student, rng):
    """Eight times the length takes about eight times the work, not sixty-four times."""
    short, long = (draw(rng, q_seq=seq, head_dim=4, v_dim=4, dtype=torch.float32) for seq in (512, 4096))
    traces = [student.trace("banded_attention", *inputs, 16) for inputs in (short, long)]
    by_torch(traces[0], 512 * 16)
    at_most(work(traces[1]) / work(traces[0]), 20, what="work at 4,096 tokens over work at 512")


# longformer_attention


def longformer_pattern(seq, window, positions):
    """Which pairs count: windows, global columns and global rows."""
    at = torch.arange(seq)
    mask = (at[:, None] - at).abs() <= window // 2
    mask[:, positions] = True
    mask[positions] = True
    return mask


def longformer(window, positions):
    """Longformer's attention by its definition."""

    def definition(q, k, v, q_g, k_g, v_g):
        seq, is_global = q.shape[-2], set(positions.tolist())
        mask = pattern(seq, seq, lambda i, j: abs(i - j) <= window // 2 or j in is_global)
        rows = torch.tensor([i in is_global for i in range(seq)])[:, None]
        return torch.where(rows, attend(q_g, k_g, v_g, torch.ones_like(mask)), attend(q, k, v, mask))

    return definition


def draw_longformer(rng, seq, *batch, count=3):
    """Six projections and some global positions in no order, neighbours among them."""
    inputs = [*draw(rng, *batch, q_seq=seq), *draw(rng, *batch, q_seq=seq)]
    first = int(rng.integers(1, seq - 1))
    others = rng.choice([i for i in range(seq) if i not in (first, first + 1)], size=max(count - 2, 0), replace=False)
    return inputs, torch.from_numpy(rng.permutation([first, first + 1, *others])[:count].astype(np.int64))


@hidden("longformer_attention", weight=2, hint="Write the mask of an ordinary row: its window, and the global columns.")
def test_longformer_ordinary_rows(student, rng):
    """Ordinary rows: one softmax of q over the keys k in the window and of all global tokens, each counted once."""
    inputs, positions = draw_longformer(rng, 21, 2)
    expected = longformer(5, positions)(*inputs)
    out = student.longformer_attention(*inputs, 5, positions)
    require(isinstance(out, torch.Tensor) and out.shape == expected.shape, "the output has the shape of v")
    ordinary = [i for i in range(21) if i not in positions.tolist()]
    close(out[:, ordinary], expected[:, ordinary], what="the ordinary rows")


@hidden("longformer_attention", weight=2, hint="A global row has projections of its own, and no window.")
def test_longformer_global_rows(student, rng):
    """Global rows: attention of q_g over all tokens with k_g and v_g."""
    inputs, positions = draw_longformer(rng, 18, 2, 2)
    expected = longformer(4, positions)(*inputs)
    out = student.longformer_attention(*inputs, 4, positions)
    require(isinstance(out, torch.Tensor) and out.shape == expected.shape, "the output has the shape of v")
    close(out[..., positions, :], expected[..., positions, :], what="the global rows")


@hidden("longformer_attention", hint="Try windows that are even, odd, and larger than the sequence.")
def test_longformer_windows_of_every_size(student, rng):
    """All rows agree with the definition for small, odd and very large windows."""
    for window in (1, 3, 8, 60):
        inputs, positions = draw_longformer(rng, int(rng.integers(15, 20)), count=int(rng.integers(2, 5)))
        out = student.longformer_attention(*inputs, window, positions)
        close(out, longformer(window, positions)(*inputs), what=f"output, window {window}")


@hidden("longformer_attention", kind="edge", hint="A softmax over no global keys is a softmax over the window alone.")
def test_longformer_without_global_tokens(student, rng):
    """No global token: a sliding window. Every token global: full attention of q_g, k_g, v_g."""
    inputs, _ = draw_longformer(rng, 14)
    for positions in (torch.zeros(0, dtype=torch.int64), torch.from_numpy(rng.permutation(14))):
        out = student.longformer_attention(*inputs, 4, positions)
        close(out, longformer(4, positions)(*inputs), what=f"output with {len(positions)} of 14 tokens global")


@hidden("longformer_attention", kind="gradient", hint="Writing into a tensor in place can cut gradients off.")
def test_longformer_gradients(student, rng):
    """Gradients of all six projections are those of the definition."""
    inputs, positions = draw_longformer(rng, 12)
    compare_gradients(student, rng, "longformer_attention", inputs, (4, positions), longformer(4, positions))


@hidden("longformer_attention", kind="edge", hint="Make new tensors with the dtype of the ones you were given.")
def test_longformer_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, tensors with gaps in memory work, no argument is changed."""
    inputs, positions = draw_longformer(rng, 15, 2)
    definition = longformer(4, positions)
    keeps_dtype_and_arguments(student, "longformer_attention", inputs, (4, positions), definition)


@hidden(
    "longformer_attention", kind="cost", weight=2, hint="Only global rows and columns may be as long as the sequence."
)
def test_longformer_memory_follows_window_and_globals(student, rng):
    """At 8,192 tokens nothing near the 67 million pairs is ever held."""
    inputs = [tensor(rng, 8192, 4) for _ in range(6)]
    positions = torch.from_numpy(rng.choice(8192, size=4, replace=False))
    trace = student.trace("longformer_attention", *inputs, 16, positions)
    at_most(trace.largest, 2**21, what="elements of the largest tensor at 8,192 tokens")
    at_most(trace.outside_bytes, 100 * MIB, what="growth of the process's memory in bytes")


@hidden("longformer_attention", kind="cost", hint="Does an ordinary query still meet every key, a block at a time?")
def test_longformer_work_follows_window_and_globals(student, rng):
    """The products take at most twice the multiplications of the pairs that count."""
    inputs = [tensor(rng, 1024, 8) for _ in range(6)]
    positions = torch.from_numpy(rng.choice(1024, size=4, replace=False))
    seen = longformer_pattern(1024, 64, positions)
    trace = student.trace("longformer_attention", *inputs, 64, positions)
    needed = 32 * int(seen.sum())
    by_torch(trace, 2 * int(seen.sum()))
    require(trace.flops <= 2 * needed, "more than twice the products that the pattern needs were computed")


@hidden("longformer_attention", kind="cost", hint="What is written for every pair, product of matrices or not?")
def test_longformer_writes_little_beside_its_products(student, rng):
    """Scores are not written for all pairs by other means than products of matrices, nor a few at a time."""
    inputs = [tensor(rng, 1024, 4) for _ in range(6)]
    positions = torch.from_numpy(rng.choice(1024, size=4, replace=False))
    trace = student.trace("longformer_attention", *inputs, 16, positions)
    at_most(trace.elements / 1024, 1500, what="elements written a token, at 1,024 tokens")


# bigbird_layout


def bigbird(blocks, window, global_blocks):
    """The part of BigBird's layout that is not drawn."""
    return pattern(blocks, blocks, lambda i, j: abs(i - j) <= window // 2 or i < global_blocks or j < global_blocks)


def layout_of(student, rng, blocks, window, global_blocks, random_blocks):
    """A drawn layout; fails unless it is a boolean (blocks, blocks)."""
    generator = Generator(int(rng.integers(2**31)), "numpy")
    layout = student.bigbird_layout(blocks, window, global_blocks, random_blocks, generator)
    require(isinstance(layout, torch.Tensor), "the layout is a torch tensor")
    require(layout.dtype == torch.bool and layout.shape == (blocks, blocks), "the layout is boolean (blocks, blocks)")
    return layout


@hidden("bigbird_layout", weight=2, hint="Start without random blocks: neighbours, then global rows and columns.")
def test_bigbird_neighbours_and_globals(student, rng):
    """Without random blocks: window // 2 neighbours to either side, and the first blocks' rows and columns."""
    for window, global_blocks in ((3, 1), (5, 2), (1, int(rng.integers(1, 4))), (3, 0)):
        blocks = int(rng.integers(9, 13))
        close(
            layout_of(student, rng, blocks, window, global_blocks, 0),
            bigbird(blocks, window, global_blocks),
            what="the layout without random blocks",
        )


@hidden("bigbird_layout", weight=2, hint="Draw from the blocks that the row does not read yet, without replacement.")
def test_bigbird_random_blocks_are_new_ones(student, rng):
    """Every other row reads exactly `random_blocks` further blocks, none of them twice, none listed before."""
    for random_blocks in (1, 2, 3):
        base = bigbird(16, 3, 2)
        layout = layout_of(student, rng, 16, 3, 2, random_blocks)
        require(bool((layout & base == base).all()), "a neighbour or a global block is missing")
        extra = (layout ^ base).sum(-1)
        close(extra, torch.tensor([0, 0] + [random_blocks] * 14), what="how many blocks each row reads beyond the rest")


@hidden("bigbird_layout", kind="property", hint="Each row draws for itself, and from the generator that it is given.")
def test_bigbird_draws_are_even_and_its_own(student, rng):
    """Over many draws every free block is chosen about equally often, also in the last row; rows differ."""
    base, count = bigbird(10, 3, 1), torch.zeros(10, 10)
    draws = 160  # the standard deviation of a frequency is √(p(1 − p)/160) < 0.04, so 0.3 is more than seven of them
    for _ in range(draws):
        layout = layout_of(student, rng, 10, 3, 1, 2)
        count += layout ^ base
        require(len({tuple(row) for row in (layout ^ base)[2:].int().tolist()}) > 1, "all rows drew the same blocks")
    for row in (5, 9):
        free = int((~base[row]).sum())
        share = count[row][~base[row]] / draws
        at_most(float((share - 2 / free).abs().max()), 0.3, what="distance of a block's frequency from the even one")


@hidden("bigbird_layout", kind="property", hint="Use `rng`, not a generator of your own.")
def test_bigbird_repeats_with_its_generator(student, rng):
    """The same generator gives the same layout, another one another."""
    seeds = [int(rng.integers(2**31)) for _ in range(2)]
    a, b, c = (student.bigbird_layout(24, 3, 1, 3, Generator(seed, "numpy")) for seed in (seeds[0], seeds[0], seeds[1]))
    close(a, b, what="the layout drawn again from the same seed")
    require(not np.array_equal(np.asarray(a), np.asarray(c)), "two seeds gave the same layout")


@hidden("bigbird_layout", kind="edge", hint="What if fewer blocks are free than should be drawn?")
def test_bigbird_takes_what_is_left(student, rng):
    """Where fewer blocks are free than asked for, all are read."""
    blocks = int(rng.integers(4, 7))
    close(layout_of(student, rng, blocks, 3, 1, 9), torch.ones(blocks, blocks).bool(), what="the layout of few blocks")


# block_sparse_attention


def by_blocks(layout, block):
    """Block-sparse attention by its definition."""

    def definition(q, k, v):
        mask = layout.repeat_interleave(block, 0)[: q.shape[-2]].repeat_interleave(block, 1)[:, : k.shape[-2]]
        return attend(q, k, v, mask)

    return definition


@hidden("block_sparse_attention", weight=2, hint="A query reads all keys of all blocks listed in the row of its block.")
def test_block_sparse_equals_attention_under_the_layout(student, rng):
    """Attention under the layout stretched to tokens, with different numbers of queries and keys."""
    for block in (2, 4):
        inputs = draw(rng, 2, 3, q_seq=3 * block, kv_seq=5 * block)
        layout = torch.from_numpy(both(rng, 3, 5))
        out = student.block_sparse_attention(*inputs, layout, block)
        close(out, by_blocks(layout, block)(*inputs), what=f"output with blocks of {block}")


@hidden("block_sparse_attention", weight=2, hint="Does padding in the last block of keys take part in the softmax?")
def test_block_sparse_with_shorter_last_blocks(student, rng):
    """The last block of queries, and of keys, may be shorter than the others."""
    for q_seq, kv_seq in ((10, 13), (3, 7), (9, 1)):
        inputs = draw(rng, 2, q_seq=q_seq, kv_seq=kv_seq)
        shape = -(-q_seq // 4), -(-kv_seq // 4)
        layout = torch.from_numpy(rng.random(shape) < 0.6)
        layout[:, -1] = True
        out = student.block_sparse_attention(*inputs, layout, 4)
        close(out, by_blocks(layout, 4)(*inputs), what=f"output of {q_seq} queries and {kv_seq} keys")


@hidden("block_sparse_attention", kind="edge", hint="A row of the layout may be empty: what is the sum of no weights?")
def test_block_sparse_empty_rows_are_zero(student, rng):
    """A block of queries that reads nothing gets 0; a layout that lists nothing gives 0 everywhere."""
    inputs = draw(rng, 2, q_seq=12, kv_seq=8)
    layout = torch.from_numpy(both(rng, 3, 2))
    layout[int(rng.integers(3))] = False
    for one in (layout, torch.zeros(3, 2, dtype=torch.bool)):
        close(
            student.block_sparse_attention(*inputs, one, 4), by_blocks(one, 4)(*inputs), what="output with empty rows"
        )


@hidden(
    "block_sparse_attention", kind="edge", hint="The softmax of a row runs over several blocks; whose maximum counts?"
)
def test_block_sparse_survives_large_scores(student, rng):
    """Scores in the thousands, of very different size in different blocks, agree with the definition."""
    q, k, v = draw(rng, q_seq=12, kv_seq=16)
    k = k * torch.from_numpy(rng.permutation([1.0, 30.0, 300.0, 1000.0])).repeat_interleave(4)[:, None]
    layout = torch.from_numpy(both(rng, 3, 4))
    out = student.block_sparse_attention(30 * q, k, v, layout, 4)
    close(out, by_blocks(layout, 4)(30 * q, k, v), what="output at large scores", rtol=1e-8)


@hidden("block_sparse_attention", kind="gradient", hint="Detached or overwritten tensors stop gradients.")
def test_block_sparse_gradients(student, rng):
    """Gradients of queries, keys and values are those of masked attention."""
    inputs, layout = draw(rng, 2, q_seq=10, kv_seq=15), torch.from_numpy(both(rng, 3, 4))
    compare_gradients(student, rng, "block_sparse_attention", inputs, (layout, 4), by_blocks(layout, 4))


@hidden("block_sparse_attention", kind="edge", hint="Make new tensors with the dtype of the ones you were given.")
def test_block_sparse_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, tensors with gaps in memory work, no argument is changed."""
    layout = torch.from_numpy(both(rng, 3, 4))
    inputs = draw(rng, 2, q_seq=11, kv_seq=14)
    keeps_dtype_and_arguments(student, "block_sparse_attention", inputs, (layout, 4), by_blocks(layout, 4))


def draw_layout(rng, blocks, each):
    """A few blocks in every row."""
    layout = torch.zeros(blocks, blocks, dtype=torch.bool)
    for row in layout:
        row[torch.from_numpy(rng.choice(blocks, size=each, replace=False))] = True
    return layout


@hidden(
    "block_sparse_attention", kind="cost", weight=2, hint="Make a list of the listed pairs of blocks, and work on it."
)
def test_block_sparse_work_follows_the_list(student, rng):
    """As many products as the listed blocks need, though one row reads everything."""
    layout = draw_layout(rng, 64, 2)
    layout[int(rng.integers(64))] = True
    q, k, v = draw(rng, q_seq=512, head_dim=4, v_dim=4, dtype=torch.float32)
    trace = student.trace("block_sparse_attention", q, k, v, layout, 8)
    needed = 2 * 2 * 4 * 64 * int(layout.sum())
    by_torch(trace, 2 * 64 * int(layout.sum()))
    require(trace.flops <= 1.1 * needed, "more products were computed than the listed blocks need")


@hidden("block_sparse_attention", kind="cost", hint="What is written for every pair, product of matrices or not?")
def test_block_sparse_writes_little_beside_its_products(student, rng):
    """Scores are not written for all pairs by other means than products of matrices, nor a few at a time."""
    q, k, v = draw(rng, q_seq=1024, head_dim=4, v_dim=4, dtype=torch.float32)
    trace = student.trace("block_sparse_attention", q, k, v, draw_layout(rng, 128, 2), 8)
    at_most(trace.elements / 1024, 1500, what="elements written a token, at 1,024 tokens")


@hidden(
    "block_sparse_attention", kind="cost", weight=2, hint="No tensor may have an entry for every pair of positions."
)
def test_block_sparse_memory_follows_the_list(student, rng):
    """At 8,192 tokens nothing near the 67 million pairs is ever held."""
    layout = draw_layout(rng, 512, 2)
    q, k, v = draw(rng, q_seq=8192, head_dim=4, v_dim=4, dtype=torch.float32)
    trace = student.trace("block_sparse_attention", q, k, v, layout, 16)
    at_most(trace.largest, 2**21, what="elements of the largest tensor at 8,192 tokens")
    at_most(trace.outside_bytes, 100 * MIB, what="growth of the process's memory in bytes")


# chunked_block_local_attention


def block_local(block, causal):
    """Block-local attention by its definition."""

    def definition(q, k, v):
        seq = q.shape[-2]
        mask = pattern(seq, seq, lambda i, j: i // block - j // block in (0, 1) and (j <= i or not causal))
        return attend(q, k, v, mask)

    return definition


@hidden("chunked_block_local_attention", weight=2, hint="Queries of block b read the keys of blocks b and b − 1.")
def test_block_local_reads_its_block_and_the_one_before(student, rng):
    """Not causal: all of the own block, and all of the one before."""
    for block, blocks in ((3, 4), (5, 3), (int(rng.integers(2, 7)), 3)):
        inputs = draw(rng, 2, 3, q_seq=block * blocks)
        out = student.chunked_block_local_attention(*inputs, block)
        close(out, block_local(block, False)(*inputs), what=f"output with blocks of {block}")


@hidden(
    "chunked_block_local_attention", weight=2, hint="Causal hides later keys of the own block; the one before stays."
)
def test_block_local_causal(student, rng):
    """With causal=True the future inside the own block is hidden."""
    for block, blocks in ((3, 4), (5, 3), (int(rng.integers(2, 7)), 3)):
        inputs = draw(rng, 2, q_seq=block * blocks)
        out = student.chunked_block_local_attention(*inputs, block, causal=True)
        close(out, block_local(block, True)(*inputs), what=f"causal output with blocks of {block}")


@hidden("chunked_block_local_attention", weight=2, hint="Pad the last block, and keep its padding out of the softmax.")
def test_block_local_with_a_shorter_last_block(student, rng):
    """Lengths that the block does not divide, and sequences shorter than a block."""
    for seq, block in ((11, 4), (3, 5), (int(rng.integers(13, 16)), 6), (6, 1)):
        inputs = draw(rng, 2, q_seq=seq)
        for causal in (True, False):
            out = student.chunked_block_local_attention(*inputs, block, causal)
            close(out, block_local(block, causal)(*inputs), what=f"output of {seq} tokens in blocks of {block}")


@hidden("chunked_block_local_attention", kind="gradient", hint="Detached or overwritten tensors stop gradients.")
def test_block_local_gradients(student, rng):
    """Gradients of queries, keys and values are those of masked attention."""
    inputs, causal = draw(rng, 2, q_seq=11), bool(rng.integers(2))
    compare_gradients(student, rng, "chunked_block_local_attention", inputs, (4, causal), block_local(4, causal))


@hidden("chunked_block_local_attention", kind="edge", hint="What does the first block find before itself? Not zeros.")
def test_block_local_first_block_has_nothing_before_it(student, rng):
    """Negative scores everywhere: padding with score 0 would take most of the weight."""
    q, k, v = draw(rng, q_seq=10)
    q, k = q.abs() * 3, -k.abs() * 3
    out = student.chunked_block_local_attention(q, k, v, 4)
    close(out, block_local(4, False)(q, k, v), what="output where all scores are negative")


@hidden(
    "chunked_block_local_attention", kind="edge", hint="Make new tensors with the dtype of the ones you were given."
)
def test_block_local_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, tensors with gaps in memory work, no argument is changed."""
    definition = block_local(4, False)
    keeps_dtype_and_arguments(student, "chunked_block_local_attention", draw(rng, 2, q_seq=11), (4,), definition)


@hidden("chunked_block_local_attention", kind="cost", weight=2, hint="2 · block scores a query are enough.")
def test_block_local_cost_is_linear(student, rng):
    """At 8,192 tokens: at most 2 · block scores a query are computed, and nothing near all pairs is held."""
    q, k, v = draw(rng, q_seq=8192, head_dim=4, v_dim=4, dtype=torch.float32)
    trace = student.trace("chunked_block_local_attention", q, k, v, 16)
    by_torch(trace, 2 * 8192 * 32)
    require(trace.flops <= 1.1 * 2 * 2 * 4 * 8192 * 32, "more scores were computed than 2 · block a query")
    at_most(trace.elements / 8192, 4000, what="elements written a token, at 8,192 tokens")
    at_most(trace.largest, 2**21, what="elements of the largest tensor at 8,192 tokens")
    at_most(trace.outside_bytes, 100 * MIB, what="growth of the process's memory in bytes")


# lsh_buckets


def buckets_by_loops(x, rotations):
    """The bucket of every token, one at a time."""
    *batch, seq, _ = x.shape
    rounds, _, half = rotations.shape
    out = torch.zeros(*batch, rounds, seq, dtype=torch.int64)
    for index in np.ndindex(*batch, rounds, seq):
        *lead, r, i = index
        projections = [float(x[(*lead, i)] @ rotations[r, :, h]) for h in range(half)]
        projections += [-p for p in projections]
        out[index] = max(range(2 * half), key=projections.__getitem__)
    return out


@hidden(
    "lsh_buckets", weight=2, hint="Project on all directions, then on their opposites; the index of the largest wins."
)
def test_buckets_are_the_argmax_of_both_directions(student, rng):
    """Equals argmax([xR; −xR]) for every token and every round."""
    x, rotations = tensor(rng, 17, 5, dtype=torch.float64), tensor(rng, 3, 5, 4, dtype=torch.float64)
    close(student.lsh_buckets(x, rotations), buckets_by_loops(x, rotations), what="the buckets")


@hidden("lsh_buckets", hint="The axis of rounds stands before the axis of tokens: (*batch, rounds, seq).")
def test_buckets_with_leading_axes(student, rng):
    """Leading batch axes stay in front: (*batch, rounds, seq), also with one round and one direction."""
    for rounds, half in ((2, 3), (1, 1)):
        x, rotations = tensor(rng, 2, 3, 7, 4, dtype=torch.float64), tensor(rng, rounds, 4, half, dtype=torch.float64)
        close(student.lsh_buckets(x, rotations), buckets_by_loops(x, rotations), what=f"buckets of {rounds} rounds")


@hidden("lsh_buckets", kind="property", hint="Only the direction counts, and opposite directions share no bucket.")
def test_buckets_depend_on_direction_only(student, rng):
    """Longer or shorter tokens keep their bucket; −x falls half of all buckets further."""
    x, rotations = tensor(rng, 19, 6, dtype=torch.float64), tensor(rng, 2, 6, 5, dtype=torch.float64)
    buckets = buckets_by_loops(x, rotations)
    stretched = x * torch.from_numpy(rng.uniform(0.1, 9.0, size=(19, 1)))
    close(student.lsh_buckets(stretched, rotations), buckets, what="buckets of stretched tokens")
    close(student.lsh_buckets(-x, rotations), (buckets + 5) % 10, what="buckets of opposite tokens")


@hidden("lsh_buckets", kind="edge", hint="float32 in, integers out; nothing is changed in place.")
def test_buckets_of_float32(student, rng):
    """float32 tensors with gaps in memory give int64 buckets, and stay as they were."""
    x, rotations = strided(tensor(rng, 2, 9, 4)), strided(tensor(rng, 2, 4, 3))
    result, after = student.after("lsh_buckets", x, rotations)
    close(result, buckets_by_loops(x, rotations), what="buckets of float32 tokens")
    unchanged((x, rotations), after, "float32 tokens")


# lsh_attention


def met_in(bucket, chunk):
    """Whether i meets j < i in one round, from that round's buckets (seq,)."""
    seq = len(bucket)
    order = sorted(range(seq), key=lambda i: (int(bucket[i]), i))
    place = {token: rank // chunk for rank, token in enumerate(order)}
    return pattern(seq, seq, lambda i, j: j < i and bucket[i] == bucket[j] and place[i] - place[j] in (0, 1))


def reformer(rotations, chunk):
    """Hashed attention by its definition: the union of what each round meets, self only where that is empty."""

    def definition(qk, v):
        buckets = buckets_by_loops(qk.detach().double(), rotations.double())
        lead = buckets.shape[:-2]
        seq, rounds = buckets.shape[-1], len(rotations)
        met = torch.stack([met_in(one, chunk) for one in buckets.reshape(-1, seq)])
        mask = met.reshape(*lead, rounds, seq, seq).any(-3)
        mask = mask | (torch.eye(seq).bool() & ~mask.any(-1, keepdim=True))
        return attend(qk, qk / qk.norm(dim=-1, keepdim=True), v, mask)

    return definition


def draw_lsh(rng, *batch, seq, rounds, half):
    """Tokens, values and rotations."""
    return (
        [tensor(rng, *batch, seq, 4, dtype=torch.float64), tensor(rng, *batch, seq, 6, dtype=torch.float64)],
        tensor(rng, rounds, 4, half, dtype=torch.float64),
    )


@hidden("lsh_attention", weight=2, hint="Start with one round, and with a chunk as long as the sequence.")
def test_lsh_in_one_chunk_is_attention_inside_buckets(student, rng):
    """With one round and one chunk: causal attention among the earlier tokens of the same bucket."""
    for half in (1, 2):
        inputs, rotations = draw_lsh(rng, 2, seq=19, rounds=1, half=half)
        out = student.lsh_attention(*inputs, rotations, 19)
        close(out, reformer(rotations, 19)(*inputs), what=f"output of one round with {2 * half} buckets")


@hidden("lsh_attention", weight=2, hint="Sort by bucket, and inside a bucket by position; read one chunk back.")
def test_lsh_reads_its_chunk_and_the_one_before(student, rng):
    """With one round and short chunks: only keys of the own chunk and the one before, in sorted order."""
    for chunk in (4, 5):
        inputs, rotations = draw_lsh(rng, 2, seq=int(rng.integers(22, 27)), rounds=1, half=1)
        out = student.lsh_attention(*inputs, rotations, chunk)
        close(out, reformer(rotations, chunk)(*inputs), what=f"output of one round in chunks of {chunk}")


@hidden("lsh_attention", weight=2, hint="If r rounds meet the same key, its exp(score) must not count r times.")
def test_lsh_joins_rounds_without_counting_twice(student, rng):
    """With several rounds: one softmax over all keys met in any round, each counted once."""
    for rounds in (2, 3):
        inputs, rotations = draw_lsh(rng, 2, seq=int(rng.integers(22, 27)), rounds=rounds, half=2)
        out = student.lsh_attention(*inputs, rotations, 5)
        close(out, reformer(rotations, 5)(*inputs), what=f"output of {rounds} rounds")


@hidden("lsh_attention", kind="property", hint="Which tokens may a token's answer depend on?")
def test_lsh_does_not_see_the_future(student, rng):
    """Later values never change what earlier tokens get."""
    (qk, v), rotations = draw_lsh(rng, seq=20, rounds=2, half=2)
    before = student.lsh_attention(qk, v, rotations, 4)
    later = v.clone()
    later[12:] += 100
    after = student.lsh_attention(qk, later, rotations, 4)
    require(isinstance(before, torch.Tensor) and before.shape == v.shape, "the output has the shape of v")
    require(isinstance(after, torch.Tensor) and after.shape == v.shape, "the output has the shape of v")
    close(after[:12], before[:12], what="the first 12 tokens after the others changed")


@hidden("lsh_attention", kind="edge", hint="A token that meets no other attends to itself, with all of its weight.")
def test_lsh_lonely_tokens_keep_their_value(student, rng):
    """The first token, and every token alone in its buckets, gets its own value; chunks of 1 work."""
    (qk, v), rotations = draw_lsh(rng, seq=11, rounds=2, half=2)
    for chunk in (1, 3):
        close(student.lsh_attention(qk, v, rotations, chunk), reformer(rotations, chunk)(qk, v), what="output")
    alone = torch.eye(4, dtype=torch.float64) * 3
    values = tensor(rng, 4, 5, dtype=torch.float64)
    close(
        student.lsh_attention(alone, values, torch.eye(4, dtype=torch.float64)[None], 2), values, what="lonely tokens"
    )


@hidden("lsh_attention", kind="gradient", hint="Buckets carry no gradient; tokens do, as queries and as unit keys.")
def test_lsh_gradients(student, rng):
    """Gradients of tokens and values are those of the definition, through the unit norm of keys."""
    inputs, rotations = draw_lsh(rng, 2, seq=14, rounds=2, half=1)
    compare_gradients(student, rng, "lsh_attention", inputs, (rotations, 4), reformer(rotations, 4))


@hidden("lsh_attention", kind="edge", hint="Make new tensors with the dtype of the ones you were given.")
def test_lsh_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, tensors with gaps in memory work, no argument is changed."""
    inputs, rotations = draw_lsh(rng, 2, seq=13, rounds=2, half=1)
    rotations = rotations.float()
    keeps_dtype_and_arguments(student, "lsh_attention", inputs, (rotations, 4), reformer(rotations, 4))


@hidden(
    "lsh_attention", kind="cost", weight=2, hint="After sorting, a chunk is multiplied with two chunks, not with all."
)
def test_lsh_memory_follows_the_chunks(student, rng):
    """At 4,096 tokens nothing near the 17 million pairs is ever held."""
    qk, v, rotations = tensor(rng, 4096, 4), tensor(rng, 4096, 4), tensor(rng, 2, 4, 8)
    trace = student.trace("lsh_attention", qk, v, rotations, 16)
    at_most(trace.largest, 2**21, what="elements of the largest tensor at 4,096 tokens")
    at_most(trace.outside_bytes, 48 * MIB, what="growth of the process's memory in bytes")


@hidden("lsh_attention", kind="cost", hint="Does a token still meet all others, if only a chunk at a time?")
def test_lsh_work_follows_the_chunks(student, rng):
    """At most twice the multiplications of hashing and of two chunks a token and round."""
    qk, v, rotations = tensor(rng, 1024, 8), tensor(rng, 1024, 8), tensor(rng, 2, 8, 8)
    trace = student.trace("lsh_attention", qk, v, rotations, 16)
    needed = 2 * 1024 * (2 * 8 * 8 + 2 * 16 * 32)
    at_most(trace.flops, 2 * needed, what="FLOPs of matrix products at 1,024 tokens")


@hidden("lsh_attention", kind="cost", hint="What is written for every pair, product of matrices or not?")
def test_lsh_writes_little_beside_its_products(student, rng):
    """Scores are not written for all pairs by other means than products of matrices, nor a few at a time."""
    qk, v, rotations = tensor(rng, 1024, 4), tensor(rng, 1024, 4), tensor(rng, 1, 4, 8)
    trace = student.trace("lsh_attention", qk, v, rotations, 8)
    at_most(trace.elements / 1024, 1500, what="elements written a token, at 1,024 tokens")


# routing_attention


def routing(q, k, v, centroids, window, decay=0.999):
    """Routing attention by its definition, one cluster at a time: (output, centroids)."""
    q, k = ((x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() for x in (q, k))
    *batch, heads, seq, head_dim = q.shape
    window = min(window, seq)
    out = torch.zeros_like(v)
    count = torch.zeros(*batch, heads, seq, 1, dtype=v.dtype)
    for index in np.ndindex(*batch, heads):
        for centroid in centroids[index[-1]]:
            rows, columns = ((x[index] @ centroid).argsort(descending=True)[:window] for x in (q, k))
            scores = q[index][rows] @ k[index][columns].T / head_dim**0.5
            out[index] = out[index].index_add(0, rows, torch.softmax(scores, -1) @ v[index][columns])
            count[index][rows] += 1
    moved = centroids.clone()
    for h in range(heads):
        tokens = torch.cat([q[..., h, :, :].reshape(-1, head_dim), k[..., h, :, :].reshape(-1, head_dim)])
        nearest = (tokens @ centroids[h].T).argmax(-1)
        for c in set(nearest.tolist()):
            moved[h, c] = decay * centroids[h, c] + (1 - decay) * tokens[nearest == c].mean(0)
    return out / count.clamp(min=1), moved


def draw_routing(rng, *batch, heads=2, seq=17, clusters=3, head_dim=4):
    """Queries, keys, values and centroids."""
    return [
        *draw(rng, *batch, heads, q_seq=seq, head_dim=head_dim),
        tensor(rng, heads, clusters, head_dim, dtype=torch.float64),
    ]


def routed(student, *args, **kwargs):
    """The pair that the submission returns."""
    result = student.routing_attention(*args, **kwargs)
    require(isinstance(result, tuple) and len(result) == 2, "the pair (output, centroids) is asked for")
    return result


@hidden("routing_attention", weight=2, hint="Each centroid takes its `window` queries and its `window` keys.")
def test_routing_attends_inside_clusters(student, rng):
    """One cluster that takes everything is full attention of normalised queries and keys; else only its members."""
    for window in (17, 6):
        inputs = draw_routing(rng, 2, clusters=1)
        out, _ = routed(student, *inputs, window)
        close(out, routing(*inputs, window)[0], what=f"output of one cluster of {window}")


@hidden("routing_attention", weight=2, hint="A query may be in several clusters, or in none.")
def test_routing_averages_over_clusters(student, rng):
    """A query's output is the mean over the clusters that took it, and 0 where none did."""
    for clusters, window in ((3, 7), (5, 4)):
        inputs = draw_routing(rng, 2, clusters=clusters)
        out, _ = routed(student, *inputs, window)
        close(out, routing(*inputs, window)[0], what=f"output of {clusters} clusters of {window}")


@hidden("routing_attention", weight=2, hint="Which tokens does a centroid follow: those nearest to it. And how fast?")
def test_routing_moves_centroids_towards_their_tokens(student, rng):
    """Centroids become decay · old + (1 − decay) · mean of the nearest normalised queries and keys of the batch."""
    inputs = draw_routing(rng, 3, clusters=4)
    decay = float(rng.uniform(0.3, 0.7))
    _, moved = routed(student, *inputs, 5, decay=decay)
    close(moved, routing(*inputs, 5, decay)[1], what="the centroids")
    _, moved = routed(student, *inputs, 5)
    close(moved, routing(*inputs, 5)[1], what="the centroids with the decay of the signature")


@hidden("routing_attention", kind="edge", hint="A centroid to which no token is nearest has no mean to move to.")
def test_routing_leaves_unvisited_centroids(student, rng):
    """A centroid without tokens stays where it was; a window beyond the sequence takes all tokens."""
    inputs = draw_routing(rng, clusters=3)
    inputs[3][:, 1] = inputs[3][:, 0] / 2  # whichever way a token points, one of the other two is nearer
    inputs[3][:, 2] = -inputs[3][:, 0]
    close(routed(student, *inputs, 40, decay=0.5), routing(*inputs, 40, 0.5), what="(output, centroids)")


@hidden("routing_attention", kind="property", hint="Normalising takes mean and length out of a token.")
def test_routing_ignores_shift_and_length_of_tokens(student, rng):
    """Adding a number to all channels of a query or key, and stretching it, changes nothing."""
    q, k, v, centroids = draw_routing(rng, head_dim=8)
    expected = routed(student, q, k, v, centroids, 6)
    shift, stretch = (torch.from_numpy(rng.uniform(2, 4, size=(2, 17, 1))) for _ in range(2))
    out, _ = routed(student, 1e3 * stretch * (q + shift), 1e3 * stretch * (k - shift), v, centroids, 6)
    want, _ = routed(student, 1e3 * q, 1e3 * k, v, centroids, 6)
    close(out, want, what="output of shifted and stretched tokens", rtol=1e-5)
    close(want, expected[0], what="output of stretched tokens", rtol=1e-3)


@hidden(
    "routing_attention", kind="gradient", hint="The choice of members carries no gradient, and neither do centroids."
)
def test_routing_gradients(student, rng):
    """Gradients of queries, keys and values are those of the definition, through the normalisation."""
    inputs = draw_routing(rng, seq=11)
    upstream = torch.from_numpy(rng.normal(size=tuple(inputs[2].shape)))
    want = gradients(inputs[:3], upstream, lambda q, k, v: routing(q, k, v, inputs[3], 5)[0])
    _, grads = student.vjp("routing_attention", *inputs, 5, upstream=(upstream, None), wrt=(0, 1, 2))
    for name, grad, expected in zip("qkv", grads, want, strict=True):
        require(grad is not None, f"No gradient reaches {name}.")
        close(grad, expected, what=f"gradient of {name}", rtol=1e-7)


@hidden("routing_attention", kind="cost", weight=2, hint="Gather the members of a cluster first, and score them only.")
def test_routing_memory_follows_the_clusters(student, rng):
    """At 4,096 tokens nothing near the 17 million pairs is ever held."""
    q, k, v = draw(rng, 1, q_seq=4096, head_dim=4, v_dim=4, dtype=torch.float32)
    centroids = tensor(rng, 1, 32, 4)
    trace = student.trace("routing_attention", q, k, v, centroids, 32)
    at_most(trace.largest, 2**21, what="elements of the largest tensor at 4,096 tokens")
    at_most(trace.outside_bytes, 48 * MIB, what="growth of the process's memory in bytes")


@hidden("routing_attention", kind="cost", hint="Does a query still meet keys outside its cluster?")
def test_routing_work_follows_the_clusters(student, rng):
    """At most twice the multiplications of clusters and centroids."""
    q, k, v = draw(rng, 1, q_seq=1024, head_dim=8, v_dim=8, dtype=torch.float32)
    centroids = tensor(rng, 1, 32, 8)
    trace = student.trace("routing_attention", q, k, v, centroids, 32)
    needed = 32 * 32 * 32 * 32 + 3 * 2 * 1024 * 32 * 16
    by_torch(trace, 2 * 32 * 32 * 32)
    at_most(trace.flops, 2 * needed, what="FLOPs of matrix products at 1,024 tokens")


@hidden("routing_attention", kind="cost", hint="What is written for every pair, product of matrices or not?")
def test_routing_writes_little_beside_its_products(student, rng):
    """Scores are not written for all pairs by other means than products of matrices, nor a few at a time."""
    q, k, v = draw(rng, 1, q_seq=1024, head_dim=4, v_dim=4, dtype=torch.float32)
    trace = student.trace("routing_attention", q, k, v, tensor(rng, 1, 8, 4), 16)
    at_most(trace.elements / 1024, 1500, what="elements written a token, at 1,024 tokens")


# reachability


def reach_by_search(mask, layers):
    """Breadth-first search from every token, hop by hop."""
    out = torch.zeros_like(mask)
    for i in range(len(mask)):
        known, front = {i}, {i}
        for _ in range(layers):
            front = {j for node in front for j in range(len(mask)) if mask[node, j]} - known
            known |= front
        out[i, list(known)] = True
    return out


@hidden("reachability", weight=2, hint="Two layers: i attends to m, and m attended to j before. Three: once more.")
def test_reachability_follows_paths(student, rng):
    """True where at most `layers` hops lead from query to key, for random patterns that are not symmetric."""
    for layers in (1, 2, 3):
        mask = torch.from_numpy(rng.random((9, 9)) < 0.15)
        close(student.reachability(mask, layers), reach_by_search(mask, layers), what=f"reach of {layers} layers")


@hidden("reachability", hint="A window of w carries information how far in L layers?")
def test_reachability_of_a_window_grows_with_depth(student, rng):
    """A causal window of w reaches layers · (w − 1) positions back."""
    window, layers = int(rng.integers(2, 5)), int(rng.integers(3, 6))
    mask = pattern(30, 30, in_window(window, True))
    expected = pattern(30, 30, lambda i, j: 0 <= i - j <= layers * (window - 1))
    close(student.reachability(mask, layers), expected, what="reach of a causal window")


@hidden("reachability", kind="property", hint="Information also stays where it is: there is a residual connection.")
def test_reachability_keeps_every_token_itself(student, rng):
    """A token reaches itself, also where the mask hides it; 0 layers reach nothing else."""
    mask = torch.from_numpy(rng.random((8, 8)) < 0.3) & ~torch.eye(8).bool()
    close(student.reachability(mask, 0), torch.eye(8).bool(), what="reach of no layer")
    close(student.reachability(mask, 2), reach_by_search(mask, 2), what="reach where no token sees itself")


@hidden(
    "reachability", kind="edge", hint="How many paths join two tokens after 200 layers? Only whether one does counts."
)
def test_reachability_of_many_layers_and_batches(student, rng):
    """Leading axes work, a few hundred layers too, and the mask is left as it was."""
    masks = torch.from_numpy(rng.random((2, 3, 12, 12)) < 0.5)
    result, after = student.after("reachability", masks, 200)
    expected = torch.stack([reach_by_search(one, 12) for one in masks.reshape(-1, 12, 12)]).reshape(masks.shape)
    close(result, expected, what="reach of 200 layers")
    unchanged((masks, 200), after, "masks")


# mask_cost


def tiles_by_loops(mask, block):
    """Share of block × block tiles with at least one True."""
    q_seq, kv_seq = mask.shape
    tiles = [mask[i : i + block, j : j + block].any() for i in range(0, q_seq, block) for j in range(0, kv_seq, block)]
    return sum(map(bool, tiles)) / len(tiles)


@hidden("mask_cost", weight=2, hint="Count pairs for the first number, and tiles with any pair for the second.")
def test_cost_counts_pairs_and_tiles(student, rng):
    """The share of kept pairs, and the share of tiles with at least one."""
    for block in (2, 4):
        mask = torch.from_numpy(rng.random((3 * block, 5 * block)) < 0.12)
        mask[0, 0] = True
        expected = mask.double().mean().item(), tiles_by_loops(mask, block)
        close(student.mask_cost(mask, block), expected, what=f"(density, block density) for tiles of {block}")


@hidden("mask_cost", hint="A tile at the end may be smaller, and still is one tile.")
def test_cost_with_smaller_tiles_at_the_ends(student, rng):
    """Sizes that the block does not divide: the tiles at the ends count like any other."""
    for q_seq, kv_seq, block in ((7, 10, 4), (5, 3, 4), (int(rng.integers(9, 12)), 13, 5)):
        mask = torch.from_numpy(rng.random((q_seq, kv_seq)) < 0.15)
        mask[-1, -1] = True
        expected = mask.double().mean().item(), tiles_by_loops(mask, block)
        close(student.mask_cost(mask, block), expected, what=f"(density, block density) of {q_seq} × {kv_seq} pairs")


@hidden("mask_cost", kind="property", hint="With tiles of one pair there is nothing to round.")
def test_cost_of_single_pairs_and_of_scattered_ones(student, rng):
    """Tiles of 1 round nothing; one pair in each tile costs as much as all pairs."""
    mask = torch.from_numpy(rng.random((6, 7)) < 0.4)
    density = mask.double().mean().item()
    close(student.mask_cost(mask, 1), (density, density), what="cost in tiles of 1")
    scattered = torch.zeros(12, 12, dtype=torch.bool)
    for i, j in np.ndindex(3, 3):
        scattered[4 * i + int(rng.integers(4)), 4 * j + int(rng.integers(4))] = True
    close(student.mask_cost(scattered, 4), (9 / 144, 1.0), what="cost of one pair in each tile")


@hidden("mask_cost", kind="edge", hint="A batch of masks is one larger mask; an empty one costs nothing.")
def test_cost_of_batches_and_of_nothing(student, rng):
    """Leading axes are averaged over; a mask without any pair costs 0; the mask is left as it was."""
    masks = torch.from_numpy(rng.random((2, 3, 9, 8)) < 0.1)
    tiles = np.mean([tiles_by_loops(one, 4) for one in masks.reshape(-1, 9, 8)])
    result, after = student.after("mask_cost", masks, 4)
    close(result, (masks.double().mean().item(), float(tiles)), what="cost of a batch")
    unchanged((masks, 4), after, "masks")
    close(student.mask_cost(torch.zeros(5, 6, dtype=torch.bool), 4), (0.0, 0.0), what="cost of no pair")
