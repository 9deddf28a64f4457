"""Hidden suite of chapter `flash_gpu`.

Expected values come from attention by its definition, in float64. Kernels run in Triton's interpreter, a few
milliseconds a tile, so sizes are small: two or three tiles either way, the last of them cut short. Tiles that a kernel
must not visit hold NaN, which no weight of 0 can hide.
"""

import math

import torch

from autograder.suites.kit import at_most, close, hidden, parts, raises, require, strided, tensor

# What nobody needs who leaves the work to a kernel.
TORCH_WORK = {
    *("mm", "bmm", "addmm", "baddbmm", "mv", "dot", "_softmax", "_safe_softmax", "_log_softmax", "logsumexp"),
    *("exp", "exp2", "pow", "sigmoid", "tanh", "cumsum", "_scaled_dot_product_attention_math", "log_softmax"),
    *("_scaled_dot_product_flash_attention_for_cpu", "_fused_sdp_choice"),
}


def by_kernels(trace, launches, what):
    """Fail unless kernels did the work, in at most so many launches."""
    require(trace.launches > 0, f"{what}: no kernel was launched")
    shortcuts = sorted(TORCH_WORK & set(trace.calls))
    require(not shortcuts, f"{what}: torch itself computes here ({', '.join(shortcuts)}), where a kernel should")
    require(trace.launches <= launches, f"{what}: {trace.launches} kernels were launched, where {launches} will do")


def draw(rng, *shapes, dtype=torch.float32):
    """Standard normal tensors."""
    return [tensor(rng, *shape, dtype=dtype) for shape in shapes]


def band(q_seq, kv_seq, causal=False, window=None):
    """(q_seq, kv_seq) mask, True = may attend."""
    gap = torch.arange(q_seq)[:, None] + kv_seq - q_seq - torch.arange(kv_seq)
    mask = torch.ones(q_seq, kv_seq, dtype=torch.bool)
    if causal:
        mask &= gap >= 0
    if window is not None:
        mask &= gap < window if causal else gap.abs() <= window // 2
    return mask


def attend(q, k, v, mask, scale=None):
    """Attention by its definition in float64: (out, lse); a query that sees nothing gets 0 and -inf."""
    scores = q.double() @ k.double().mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v.double(), scores.logsumexp(-1)


def same(answer, expected, dtype, what, **tolerance):
    """Fail unless out and lse are those expected, out in this dtype and lse in float32."""
    out, lse = parts(answer, "out", "lse")
    close(out, expected[0].to(dtype), what=f"out {what}", **tolerance)
    # lse is a float32 whatever comes in; what float16 inputs lose, they lost before.
    close(lse, expected[1].float(), what=f"lse {what}", **tolerance)


# vector_scale


@hidden(
    "vector_scale", weight=2, hint="Program i owns elements i · BLOCK … i · BLOCK + BLOCK − 1, as far as they exist."
)
def test_every_element_is_scaled_once(student, rng):
    """Every element is multiplied by the factor, for sizes that no block divides; x stays as it was."""
    for size in (2048 + int(rng.integers(1, 200)), int(rng.integers(3, 900)), int(rng.integers(1030, 1500))):
        x, factor = tensor(rng, size), float(rng.uniform(1.2, 1.8))
        found, after = student.after("vector_scale", x, factor)
        close(found, x * factor, what=f"x · factor for {size} elements")
        require(torch.equal(after[0], x), "x itself was changed")


@hidden(
    "vector_scale", hint="A tensor with gaps in memory has to be made contiguous before flat offsets mean anything."
)
def test_scale_keeps_shape_and_dtype(student, rng):
    """Any shape and float dtype come back, also from memory with gaps."""
    factor = float(rng.uniform(-3, -2)) + 0.25
    for x in (strided(tensor(rng, 5, 7, 3)), tensor(rng, 33, 40, dtype=torch.float16)):
        close(student.vector_scale(x, factor), (x.double() * factor).to(x.dtype), what="x · factor")


@hidden("vector_scale", kind="edge", hint="The grid must not be empty, and a block may hold a single element.")
def test_scale_of_little(student, rng):
    """One element, and none, come back scaled."""
    close(student.vector_scale(torch.tensor([2.0]), -1.5), torch.tensor([-3.0]), what="one element")
    close(student.vector_scale(torch.empty(0, 3), 2.0), torch.empty(0, 3), what="no element")


@hidden("vector_scale", kind="cost", hint="One launch; the multiplication belongs into the kernel.")
def test_a_kernel_scales(student, rng):
    """One launch of a kernel does the multiplication, and torch none of it."""
    x = tensor(rng, 1500)
    trace = student.trace("vector_scale", x, 3.0)
    close(trace.result, x * 3.0, what="x · 3")
    by_kernels(trace, 1, "vector_scale")
    require(not {"mul", "mul_"} & set(trace.calls), "vector_scale: torch itself multiplies, where a kernel should")


# row_softmax


def softmax(x):
    """Softmax by its definition in float64, in the dtype of x."""
    return x.double().softmax(-1).nan_to_num(0.0).to(x.dtype)


@hidden("row_softmax", weight=2, hint="What must the places past the end of a row hold, so that max and sum skip them?")
def test_rows_are_softmax(student, rng):
    """Every row is its softmax, for row lengths that are no powers of two."""
    for columns in (int(rng.integers(5, 8)), int(rng.integers(17, 31)), 64):
        x = tensor(rng, 2, 3, columns) - 2.0  # below 0, where a 0 from outside would count most
        close(student.row_softmax(x), softmax(x), what=f"softmax over {columns} columns")


@hidden("row_softmax", hint="exp of a large number overflows; subtract the row's maximum first.")
def test_large_scores_do_not_overflow(student, rng):
    """Scores in the ten thousands neither overflow nor vanish."""
    x = tensor(rng, 4, 21)
    x += torch.tensor([1e4, -1e4, 300.0, -300.0])[:, None]
    close(student.row_softmax(x), softmax(x), what="softmax of large scores")


@hidden("row_softmax", hint="Convert to float32 after the load, and to the dtype of out before the store.")
def test_half_precision_is_computed_in_single(student, rng):
    """Float16 rows are computed in float32, so that long ones keep their digits."""
    x = 0.01 * tensor(rng, 1, 70000)  # whose weights sum to more than float16 can hold
    x[0, int(rng.integers(70000))] = 5.0
    close(student.row_softmax(x.half()), softmax(x.half()), what="softmax of a long row in float16")


@hidden("row_softmax", kind="edge", hint="−∞ − (−∞) is NaN. What can be subtracted from a row that is all −∞?")
def test_rows_of_minus_infinity(student, rng):
    """Masked places get weight 0, and a row of nothing but −∞ gives zeros."""
    x = tensor(rng, 3, 11)
    x[1] = -math.inf
    x[0, 3:] = -math.inf
    close(student.row_softmax(x), softmax(x), what="softmax of masked rows")


@hidden("row_softmax", kind="edge", hint="Rows may lie apart in memory, or have a single column.")
def test_softmax_of_any_layout(student, rng):
    """A single column gives 1; memory with gaps does not matter."""
    close(student.row_softmax(tensor(rng, 3, 1)), torch.ones(3, 1), what="softmax of one column")
    x = tensor(rng, 1, 5)
    close(student.row_softmax(x), softmax(x), what="softmax of one row")
    x = strided(tensor(rng, 3, 5))
    close(student.row_softmax(x), softmax(x), what="softmax of rows with gaps")


@hidden("row_softmax", kind="cost", hint="One launch, one program a row; exp and sum belong into the kernel.")
def test_a_kernel_makes_the_softmax(student, rng):
    """One launch does it, a program for each row, and torch computes nothing."""
    x = tensor(rng, 5, 19)
    trace = student.trace("row_softmax", x)
    close(trace.result, softmax(x), what="softmax")
    by_kernels(trace, 1, "row_softmax")
    require(trace.programs <= 5, f"row_softmax: {trace.programs} programs for 5 rows")


# scores_kernel


def scores(q, k, scale=None):
    """q kᵀ · scale in float64, in the dtype of q."""
    return (q.double() @ k.double().mT * (q.shape[-1] ** -0.5 if scale is None else scale)).to(q.dtype)


@hidden("scores_kernel", weight=2, hint="Which rows of q and of k belong to tile (i, j) of head h?")
def test_tiles_make_the_whole_product(student, rng):
    """q kᵀ / √head_dim for several heads and lengths that no tile divides."""
    q_seq, kv_seq = int(rng.integers(20, 30)), int(rng.integers(34, 48))
    q, k = draw(rng, (2, q_seq, 24), (2, kv_seq, 24))
    close(student.scores_kernel(q, k), scores(q, k), what="scores")


@hidden("scores_kernel", hint="The scale multiplies scores after the product; unless given it is 1 / √head_dim.")
def test_scores_take_a_scale(student, rng):
    """A given scale replaces 1 / √head_dim."""
    q, k = draw(rng, (1, 33, 20), (1, 20, 20))
    scale = float(rng.uniform(0.3, 0.9))
    close(student.scores_kernel(q, k, scale), scores(q, k, scale), what="scores with a scale")
    close(student.scores_kernel(q, k), scores(q, k), what="scores without a scale")


@hidden("scores_kernel", hint="Products of float16 tiles accumulate in float32; only the store rounds.")
def test_scores_in_half_precision(student, rng):
    """Float16 comes back as float16, rounded once."""
    q, k = draw(rng, (1, 35, 40), (1, 18, 40), dtype=torch.float16)
    close(student.scores_kernel(q, k), scores(q, k), what="scores in float16", rtol=2e-3)


@hidden("scores_kernel", kind="edge", hint="Leading axes may be missing, axes may lie in memory in any order.")
def test_scores_of_any_layout(student, rng):
    """No leading axes, several of them, a single query, memory with gaps."""
    q, k = draw(rng, (1, 16), (9, 16))
    close(student.scores_kernel(q, k), scores(q, k), what="scores of one query")
    q, k = (strided(x) for x in draw(rng, (2, 2, 5, 17), (2, 2, 7, 17)))
    close(student.scores_kernel(q, k), scores(q, k), what="scores of tensors with gaps")


@hidden("scores_kernel", kind="edge", hint="The given `_check` refuses what the interpreter cannot multiply.")
def test_scores_refuse_bfloat16(student, rng):
    """The interpreter multiplies bfloat16 wrongly, so here it is a TypeError."""
    raises(TypeError, student, "scores_kernel", *draw(rng, (1, 4, 16), (1, 4, 16), dtype=torch.bfloat16))


@hidden("scores_kernel", kind="cost", hint="One launch; products belong into the kernel, as tl.dot.")
def test_a_kernel_makes_the_scores(student, rng):
    """One launch multiplies, and torch does not."""
    q, k = draw(rng, (1, 40, 16), (1, 36, 16))
    trace = student.trace("scores_kernel", q, k)
    close(trace.result, scores(q, k), what="scores")
    by_kernels(trace, 1, "scores_kernel")
    at_most(trace.largest, 2.5 * 40 * 36, what="elements of the largest tensor")


# flash_forward


@hidden("flash_forward", weight=3, hint="Compare one tile by hand: maximum, weights, and how what came before shrinks.")
def test_forward_is_attention(student, rng):
    """Full attention and its lse, for lengths that no tile divides and a v_dim of its own."""
    q_seq, kv_seq = int(rng.integers(20, 30)), int(rng.integers(34, 47))
    q, k, v = draw(rng, (2, q_seq, 32), (2, kv_seq, 32), (2, kv_seq, 24))
    same(student.flash_forward(q * 2, k, v), attend(q * 2, k, v, band(q_seq, kv_seq)), torch.float32, "of attention")


@hidden("flash_forward", weight=2, hint="The last query stands beside the last key, and each sees itself.")
def test_causal_forward_sees_the_past(student, rng):
    """Causal attention with as many, fewer and more queries than keys; queries before all keys get 0 and −∞."""
    for heads, q_seq, kv_seq in ((2, 40, 40), (1, int(rng.integers(18, 30)), 45), (1, 50, int(rng.integers(9, 15)))):
        q, k, v = draw(rng, (heads, q_seq, 16), (heads, kv_seq, 16), (heads, kv_seq, 16))
        found = student.flash_forward(q, k, v, causal=True)
        what = f"of causal attention, {q_seq} queries and {kv_seq} keys"
        same(found, attend(q, k, v, band(q_seq, kv_seq, True)), torch.float32, what)


@hidden("flash_forward", hint="Accumulate in float32; round weights to the dtype of v just before the product.")
def test_forward_in_half_precision(student, rng):
    """Float16 inputs give a float16 output and a float32 lse."""
    q, k, v = draw(rng, (1, 20, 40), (1, 37, 40), (1, 37, 16), dtype=torch.float16)
    found = student.flash_forward(q, k, v, causal=True)
    same(found, attend(q, k, v, band(20, 37, True)), torch.float16, "in float16", rtol=4e-3)


@hidden("flash_forward", kind="property", hint="Only differences from the running maximum may reach exp2.")
def test_forward_survives_large_scores(student, rng):
    """Scores in the hundreds, the largest in the last tile, neither overflow nor lose the result."""
    q, k, v = draw(rng, (1, 20, 16), (1, 50, 16), (1, 50, 16))
    k[:, 1::2] = k[:, ::2] + 0.01 * k[:, 1::2]  # two keys share each query, by shares that hang on the scale
    k[:, 40:] *= 3
    expected = attend(q * 100, k, v, band(20, 50))
    same(student.flash_forward(q * 100, k, v), expected, torch.float32, "of large scores", rtol=1e-3)


@hidden("flash_forward", kind="property", hint="`scale_log2` holds the scale; lse is of the scaled scores.")
def test_forward_takes_a_scale(student, rng):
    """A given scale replaces 1 / √head_dim, in out and in lse."""
    q, k, v = draw(rng, (1, 20, 16), (1, 21, 16), (1, 21, 16))
    scale = float(rng.uniform(0.5, 0.9))
    found = student.flash_forward(q, k, v, False, scale)
    same(found, attend(q, k, v, band(20, 21), scale), torch.float32, "with a scale")


@hidden(
    "flash_forward", kind="edge", hint="Leading axes, gaps in memory, odd widths: `_rows` and `_tiles` know them all."
)
def test_forward_of_any_layout(student, rng):
    """No leading axes, two of them, widths that are no powers of two, memory with gaps, no keys at all."""
    q, k, v = draw(rng, (17, 20), (9, 20), (9, 33))
    same(student.flash_forward(q, k, v), attend(q, k, v, band(17, 9)), torch.float32, "without leading axes")
    q, k, v = (strided(x) for x in draw(rng, (2, 1, 5, 16), (2, 1, 18, 16), (2, 1, 18, 16)))
    same(student.flash_forward(q, k, v, True), attend(q, k, v, band(5, 18, True)), torch.float32, "with gaps in memory")
    empty = student.flash_forward(tensor(rng, 3, 16), torch.empty(0, 16), torch.empty(0, 16))
    same(empty, (torch.zeros(3, 16), torch.full((3,), -math.inf)), torch.float32, "without keys")


@hidden("flash_forward", kind="edge", hint="The given `_check` refuses what the interpreter cannot multiply.")
def test_forward_refuses_bfloat16(student, rng):
    """The interpreter multiplies bfloat16 wrongly, so here it is a TypeError."""
    raises(TypeError, student, "flash_forward", *draw(rng, *[(4, 16)] * 3, dtype=torch.bfloat16))


@hidden(
    "flash_forward", kind="cost", weight=2, hint="Between which edges must the loop run? A mask alone saves nothing."
)
def test_causal_forward_skips_tiles(student, rng):
    """Tiles that no query of a block may see are not visited: NaN in them never reaches the output."""
    q, k, v = draw(rng, *[(1, 70, 16)] * 3)
    expected = attend(q, k, v, band(70, 70, True))
    v[:, 64:] = math.nan
    out, lse = parts(student.flash_forward(q, k, v, True), "out", "lse")
    rows = slice(0, 64)
    require(isinstance(out, torch.Tensor) and out.shape == q.shape, "out has the shape of q here")
    require(isinstance(lse, torch.Tensor) and lse.shape == q.shape[:-1], "lse has the shape of q without its last axis")
    close(out[:, rows], expected[0][:, rows].float(), what="out of the first queries, with NaN in tiles after them")


@hidden("flash_forward", kind="cost", hint="Scores live for one tile, and tiles that nobody sees are not computed.")
def test_forward_never_holds_the_scores(student, rng):
    """One launch, no product in torch, nothing of the size of the score matrix, and no work for tiles in the future."""
    q, k, v = draw(rng, (1, 320, 16), (1, 64, 16), (1, 64, 16))
    trace = student.trace("flash_forward", q, k, v, True)
    same(trace.result, attend(q, k, v, band(320, 64, True)), torch.float32, "of causal attention")
    at_most(trace.largest, 2.0 * 320 * 16, what="elements of the largest tensor")
    by_kernels(trace, 1, "flash_forward")
    # The last two blocks of 32 queries see 32 and 64 keys, the eight before them none.
    at_most(trace.multiplications, 2.2 * 2 * 32 * (32 + 64) * 16, what="multiplications")


# flash_forward_gqa


def grouped(q, k, v, causal, scale=None):
    """Attention with every head of k and v repeated for its group."""
    k, v = (x.repeat_interleave(q.shape[-3] // k.shape[-3], -3) for x in (k, v))
    return attend(q, k, v, band(q.shape[-2], k.shape[-2], causal), scale)


@hidden("flash_forward_gqa", weight=2, hint="Which head of k and v does query head h read?")
def test_groups_read_their_head(student, rng):
    """Query head h reads key head h // (heads / kv_heads), with and without causal."""
    q_seq, kv_seq = int(rng.integers(5, 9)), int(rng.integers(11, 16))
    q, k, v = draw(rng, (6, q_seq, 16), (2, kv_seq, 16), (2, kv_seq, 24))
    for causal in (False, True):
        found = student.flash_forward_gqa(q, k, v, causal)
        same(found, grouped(q, k, v, causal), torch.float32, f"of 6 heads over 2, causal={causal}")


@hidden("flash_forward_gqa", hint="kv_heads may be 1, and it may be heads.")
def test_one_head_for_all_and_one_for_each(student, rng):
    """Multi-query and multi-head attention are the two ends."""
    q, k, v = draw(rng, (2, 3, 5, 16), (2, 1, 9, 16), (2, 1, 9, 16))
    same(student.flash_forward_gqa(q, k, v), grouped(q, k, v, False), torch.float32, "of one key head")
    q, k, v = draw(rng, (3, 5, 16), (3, 17, 16), (3, 17, 16))
    same(student.flash_forward_gqa(q, k, v, True), grouped(q, k, v, True), torch.float32, "of as many key heads")


@hidden("flash_forward_gqa", kind="property", hint="A scale goes the same way as in flash_forward.")
def test_grouped_forward_takes_a_scale(student, rng):
    """A given scale replaces 1 / √head_dim."""
    q, k, v = draw(rng, (4, 3, 16), (2, 9, 16), (2, 9, 16))
    scale = float(rng.uniform(0.5, 0.9))
    found = student.flash_forward_gqa(q, k, v, False, scale)
    same(found, grouped(q, k, v, False, scale), torch.float32, "with a scale")


@hidden("flash_forward_gqa", kind="edge", hint="5 heads cannot share 2 key heads evenly.")
def test_uneven_groups_are_refused(student, rng):
    """heads that is no multiple of kv_heads is a ValueError."""
    raises(ValueError, student, "flash_forward_gqa", *draw(rng, (5, 3, 16), (2, 9, 16), (2, 9, 16)))


@hidden("flash_forward_gqa", kind="cost", weight=2, hint="Repeated keys would be as large as those of all query heads.")
def test_groups_share_without_copies(student, rng):
    """One launch for all heads, and k and v are not repeated in memory."""
    q, k, v = draw(rng, (4, 3, 16), (1, 16, 16), (1, 16, 16))
    trace = student.trace("flash_forward_gqa", q, k, v)
    same(trace.result, grouped(q, k, v, False), torch.float32, "of 4 heads over 1")
    at_most(trace.largest, 2.0 * 16 * 16, what="elements of the largest tensor")
    by_kernels(trace, 1, "flash_forward_gqa")


# flash_forward_window


@hidden("flash_forward_window", weight=2, hint="A causal window of w holds the query itself and w − 1 keys before it.")
def test_causal_window(student, rng):
    """Causal: 0 ≤ p − j < window, for odd and even windows and q_seq ≠ kv_seq."""
    for q_seq, kv_seq, window in ((50, 50, int(rng.integers(5, 9))), (40, 70, 20), (1, 30, int(rng.integers(9, 15)))):
        q, k, v = draw(rng, (1, q_seq, 16), (1, kv_seq, 16), (1, kv_seq, 24))
        expected = attend(q, k, v, band(q_seq, kv_seq, True, window))
        same(student.flash_forward_window(q, k, v, window), expected, torch.float32, f"of a causal window of {window}")


@hidden("flash_forward_window", weight=2, hint="window // 2 keys to either side.")
def test_symmetric_window(student, rng):
    """Not causal: |p − j| ≤ window // 2, for odd and even windows and q_seq ≠ kv_seq."""
    for q_seq, kv_seq, window in ((50, 50, 2 * int(rng.integers(1, 3)) + 1), (36, 50, 2 * int(rng.integers(4, 7)))):
        q, k, v = draw(rng, (1, q_seq, 16), (1, kv_seq, 16), (1, kv_seq, 16))
        expected = attend(q, k, v, band(q_seq, kv_seq, False, window))
        found = student.flash_forward_window(q, k, v, window, False)
        same(found, expected, torch.float32, f"of a symmetric window of {window}")


@hidden("flash_forward_window", kind="property", hint="A scale goes the same way as in flash_forward.")
def test_window_takes_a_scale(student, rng):
    """A given scale replaces 1 / √head_dim."""
    q, k, v = draw(rng, *[(1, 20, 16)] * 3)
    scale = float(rng.uniform(0.5, 0.9))
    found = student.flash_forward_window(q, k, v, 5, True, scale)
    same(found, attend(q, k, v, band(20, 20, True, 5), scale), torch.float32, "with a scale")


@hidden(
    "flash_forward_window", kind="edge", hint="A window of 1 is the query's own position; a huge one hides nothing."
)
def test_window_of_one_and_of_everything(student, rng):
    """A window of 1 returns v itself; one larger than the sequence is plain causal attention."""
    q, k, v = draw(rng, *[(1, 35, 16)] * 3)
    for window in (1, 100):
        expected = attend(q, k, v, band(35, 35, True, window))
        same(student.flash_forward_window(q, k, v, window), expected, torch.float32, f"of a window of {window}")


@hidden(
    "flash_forward_window", kind="cost", weight=2, hint="Where does the loop of a block begin and end? See `_visible`."
)
def test_window_skips_tiles(student, rng):
    """Tiles outside the band are not visited: NaN in them never reaches the output."""
    q, k, v = draw(rng, (1, 32, 16), (1, 192, 16), (1, 192, 16))
    for causal in (True, False):
        expected = attend(q, k, v, band(32, 192, causal, 20))
        poisoned = v.clone()
        poisoned[:, :96] = math.nan
        out, _ = parts(student.flash_forward_window(q, k, poisoned, 20, causal), "out", "lse")
        close(out, expected[0].float(), what="out, with NaN in tiles outside of the window")


@hidden("flash_forward_window", kind="cost", hint="One launch, no mask in memory, and no work outside of the band.")
def test_a_kernel_masks_the_window(student, rng):
    """One launch, no product in torch, nothing of the size of the score matrix, and no work outside of the band."""
    q, k, v = draw(rng, (1, 64, 16), (1, 320, 16), (1, 320, 16))
    trace = student.trace("flash_forward_window", q, k, v, 9)
    same(trace.result, attend(q, k, v, band(64, 320, True, 9)), torch.float32, "of a window")
    at_most(trace.largest, 2.0 * 320 * 16, what="elements of the largest tensor")
    by_kernels(trace, 1, "flash_forward_window")
    at_most(trace.multiplications, 2.2 * 2 * 64 * 48 * 16, what="multiplications, for 48 keys that a block may see")


# flash_backward


def backward(rng, student, q_seq, kv_seq, causal, what, *, heads=1, dtype=torch.float32, scale=None, v_dim=24, **limit):
    """Compare the three gradients with autograd's, in float64."""
    q, k, v, d_out = draw(rng, (heads, q_seq, 16), (heads, kv_seq, 16), (heads, kv_seq, v_dim), (heads, q_seq, v_dim),
                          dtype=dtype)  # fmt: skip
    mask = band(q_seq, kv_seq, causal)
    out, lse = attend(q, k, v, mask, scale)
    arguments = (q, k, v, out.to(dtype), lse.float(), d_out, causal, *([] if scale is None else [scale]))
    found = parts(student.flash_backward(*arguments), "d_q", "d_k", "d_v")
    for name, one, other in zip(("d_q", "d_k", "d_v"), found, gradients(q, k, v, d_out, mask, scale), strict=True):
        close(one, other.to(dtype), what=f"{name} {what}", **limit)
    return arguments, found


def gradients(q, k, v, d_out, mask, scale=None):
    """Gradients of attention by torch's autograd, in float64."""
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    scores = leaves[0] @ leaves[1].mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    weights = scores.masked_fill(~mask, -1e300).softmax(-1) * mask.any(-1, keepdim=True)
    return torch.autograd.grad(weights @ leaves[2], leaves, d_out.double())


@hidden("flash_backward", weight=3, hint="Recompute weights from lse; then d_scores = weights · (d_out vᵀ − delta).")
def test_backward_is_autograd(student, rng):
    """d_q, d_k and d_v of full attention, for lengths that no tile divides."""
    backward(rng, student, int(rng.integers(20, 25)), int(rng.integers(26, 31)), False, "of attention")


@hidden("flash_backward", weight=2, hint="Seen from a key, the band is mirrored: which queries see it?")
def test_causal_backward_is_autograd(student, rng):
    """Causal, with fewer and with more queries than keys, and two heads; queries that see nothing bring nothing."""
    backward(rng, student, int(rng.integers(20, 30)), 45, True, "of causal attention, fewer queries than keys")
    backward(rng, student, 45, int(rng.integers(9, 15)), True, "of causal attention, more queries than keys", heads=2)


@hidden("flash_backward", hint="Accumulate in float32 and round once, at the store.")
def test_backward_in_half_precision(student, rng):
    """Float16 inputs give float16 gradients."""
    backward(rng, student, 33, 20, True, "in float16", dtype=torch.float16, rtol=8e-3)


@hidden("flash_backward", kind="property", hint="Scores are scaled, so d_q and d_k carry the scale once; d_v does not.")
def test_backward_takes_a_scale(student, rng):
    """A given scale replaces 1 / √head_dim."""
    backward(rng, student, 20, 21, False, "with a scale", scale=float(rng.uniform(0.5, 0.9)))


@hidden(
    "flash_backward", kind="property", hint="Atomic additions come in any order; a program that owns its sum does not."
)
def test_backward_repeats_itself(student, rng):
    """A second call gives the same gradients bit for bit, and memory with gaps gives them too."""
    arguments, found = backward(rng, student, 20, 27, True, "of causal attention", v_dim=16)
    again = parts(student.flash_backward(*arguments), "d_q", "d_k", "d_v")
    for name, one, other in zip(("d_q", "d_k", "d_v"), again, found, strict=True):
        require(torch.equal(one, other), f"{name} is another one on a second call")
    gaps = [strided(x) if isinstance(x, torch.Tensor) else x for x in arguments]
    close(parts(student.flash_backward(*gaps), "d_q", "d_k", "d_v"), found, what="gradients from memory with gaps")


@hidden("flash_backward", kind="edge", hint="Without keys there is nothing to launch.")
def test_backward_of_nothing(student, rng):
    """Without keys all gradients are 0."""
    q, none = tensor(rng, 3, 16), torch.empty(0, 16)
    found = student.flash_backward(q, none, none, torch.zeros(3, 16), torch.full((3,), -math.inf), q)
    close(found, (torch.zeros(3, 16), none, none), what="gradients without keys")


@hidden("flash_backward", kind="cost", weight=2, hint="Both loops begin or end at an edge of `_visible`.")
def test_causal_backward_skips_tiles(student, rng):
    """Tiles that see nothing of each other are not visited: NaN in them never reaches the gradients."""
    q, k, v, d_out = draw(rng, (1, 134, 16), (1, 70, 16), (1, 70, 16), (1, 134, 16))
    mask = band(134, 70, True)
    out, lse = attend(q, k, v, mask)
    expected = gradients(q, k, v, d_out, mask)
    # Query i stands at i − 64: the first 64 are seen by no key, and the next 64 do not see the last keys.
    d_out[:, :64], v[:, 64:] = math.nan, math.nan
    found = parts(student.flash_backward(q, k, v, out.float(), lse.float(), d_out, True), "d_q", "d_k", "d_v")
    kept = slice(64, 128), slice(0, 64), slice(0, 64)
    for name, one, other, rows in zip(("d_q", "d_k", "d_v"), found, expected, kept, strict=True):
        require(isinstance(one, torch.Tensor) and one.shape == other.shape, f"{name} has the wrong shape")
        close(one[:, rows], other[:, rows].float(), what=f"{name}, with NaN in tiles that must not be visited")


@hidden("flash_backward", kind="cost", hint="Weights live for one tile, and no kernel visits what is not seen.")
def test_backward_never_holds_the_weights(student, rng):
    """Four launches at most, no product in torch, nothing as large as the scores, no work for tiles in the future."""
    q, k, v, d_out = draw(rng, (1, 512, 16), (1, 64, 16), (1, 64, 16), (1, 512, 16))
    mask = band(512, 64, True)
    out, lse = attend(q, k, v, mask)
    trace = student.trace("flash_backward", q, k, v, out.float(), lse.float(), d_out, True)
    expected = tuple(x.float() for x in gradients(q, k, v, d_out, mask))
    close(parts(trace.result, "d_q", "d_k", "d_v"), expected, what="gradients")
    at_most(trace.largest, 2.0 * 512 * 16, what="elements of the largest tensor")
    by_kernels(trace, 4, "flash_backward")
    # The last two blocks of 32 queries see 32 and 64 keys: four products for the keys' side, three for the queries'.
    at_most(trace.multiplications, 2.2 * 7 * 32 * (32 + 64) * 16, what="multiplications")


# flash_decode


@hidden(
    "flash_decode", weight=3, hint="Each part gives a normalised output and its lse; shares are exp2(lse − largest)."
)
def test_decode_is_attention(student, rng):
    """One query a head against a long cache, for one, several and more splits than parts."""
    kv_seq = int(rng.integers(36, 47))
    q, k, v = draw(rng, (6, 1, 32), (2, kv_seq, 32), (2, kv_seq, 20))
    for splits in (1, 2, 50):
        found = student.flash_decode(q * 2, k, v, splits)
        same(found, grouped(q * 2, k, v, False), torch.float32, f"of {splits} splits")


@hidden("flash_decode", hint="Without `splits` the function chooses; the result is the same.")
def test_decode_chooses_splits(student, rng):
    """Without splits, with leading axes and as many key heads as heads."""
    q, k, v = draw(rng, (2, 2, 1, 16), (2, 2, 21, 16), (2, 2, 21, 16))
    same(student.flash_decode(q, k, v), grouped(q, k, v, False), torch.float32, "of a batch")


@hidden("flash_decode", hint="Partial outputs are float32, whatever comes in.")
def test_decode_in_half_precision(student, rng):
    """Float16 inputs give a float16 output and a float32 lse."""
    q, k, v = draw(rng, (4, 1, 16), (1, 53, 16), (1, 53, 16), dtype=torch.float16)
    same(student.flash_decode(q, k, v, 2), grouped(q, k, v, False), torch.float16, "in float16", rtol=4e-3)


@hidden(
    "flash_decode", kind="property", hint="Scores in the hundreds: shares must be taken relative to the largest lse."
)
def test_decode_survives_large_scores(student, rng):
    """Large scores and a given scale keep the result, whatever the splits."""
    q, k, v = draw(rng, (2, 1, 16), (1, 50, 16), (1, 50, 16))
    expected = grouped(q * 100, k, v, False, 0.4)
    for splits in (1, 3):
        found = student.flash_decode(q * 100, k, v, splits, 0.4)
        out, lse = parts(found, "out", "lse")
        close(out, expected[0].float(), what=f"out of large scores, {splits} splits", rtol=1e-3)
        close(lse, expected[1].float(), what=f"lse of large scores, {splits} splits", rtol=3e-5)


@hidden("flash_decode", kind="edge", hint="A short cache, a single key: parts may be empty or cut short.")
def test_decode_of_a_short_cache(student, rng):
    """Fewer keys than a tile; two queries, or heads that do not share evenly, are a ValueError."""
    q, k, v = draw(rng, (1, 1, 16), (1, 5, 16), (1, 5, 33))
    same(student.flash_decode(q, k, v, 2), grouped(q, k, v, False), torch.float32, "of five keys")
    raises(ValueError, student, "flash_decode", *draw(rng, (1, 2, 16), (1, 5, 16), (1, 5, 16)))
    raises(ValueError, student, "flash_decode", *draw(rng, (3, 1, 16), (2, 5, 16), (2, 5, 16)))


@hidden("flash_decode", kind="cost", weight=2, hint="The heads of a group are the rows of one tile of queries.")
def test_decode_reads_the_cache_once(student, rng):
    """Two launches, each key read once for its whole group, nothing repeated in memory, and no merging in torch."""
    q, k, v = draw(rng, (8, 1, 16), (1, 64, 16), (1, 64, 16))
    trace = student.trace("flash_decode", q, k, v, 2)
    same(trace.result, grouped(q, k, v, False), torch.float32, "of 8 heads over 1")
    by_kernels(trace, 2, "flash_decode")
    at_most(trace.multiplications, 2.2 * 2 * 16 * 64 * 16, what="multiplications, for 16 rows a tile")
    at_most(trace.largest, 2.5 * 64 * 16, what="elements of the largest tensor")


@hidden("flash_decode", kind="cost", hint="What is not split does not run side by side: a program for each part.")
def test_decode_splits_the_cache(student, rng):
    """As many programs as splits share the cache of one group."""
    q, k, v = draw(rng, (2, 1, 16), (1, 64, 16), (1, 64, 16))
    trace = student.trace("flash_decode", q, k, v, 4)
    same(trace.result, grouped(q, k, v, False), torch.float32, "of 4 splits")
    require(trace.programs > 4, "flash_decode: there are fewer programs than parts, so they do not run side by side")


# linear_attention_chunk_kernel


def linear(q, k, v):
    """Causal linear attention by its quadratic form, in float64; 0 where the denominator is 0."""
    weights = (q.double() @ k.double().mT).tril()
    return (weights @ v.double() / weights.sum(-1, keepdim=True)).nan_to_num(0.0)


def features(rng, *shapes, dtype=torch.float32):
    """Positive features for q and k, and any v."""
    q, k, v = draw(rng, *shapes)
    return [(q.abs() + 0.1).to(dtype), (k.abs() + 0.1).to(dtype), v.to(dtype)]


@hidden("linear_attention_chunk_kernel", weight=3, hint="Inside a chunk: masked scores. Before it: the state.")
def test_chunks_make_linear_attention(student, rng):
    """The quadratic form, for a length that no chunk divides, two heads and a v_dim of its own."""
    seq = int(rng.integers(35, 46))
    q, k, v = features(rng, (2, seq, 24), (2, seq, 24), (2, seq, 72))
    found = student.linear_attention_chunk_kernel(q, k, v, 16)
    close(found, linear(q, k, v).float(), what="output with chunks of 16")


@hidden("linear_attention_chunk_kernel", hint="Any length of a chunk gives the same result.")
def test_chunk_length_does_not_matter(student, rng):
    """Chunks of 32 and of 64, the default, give the same result."""
    q, k, v = features(rng, *[(70, 16)] * 3)
    for chunk in ((32,), ()):
        found = student.linear_attention_chunk_kernel(q, k, v, *chunk)
        close(found, linear(q, k, v).float(), what=f"output with chunks of {(*chunk, 64)[0]}")


@hidden("linear_attention_chunk_kernel", hint="The state outgrows float16: keep it, and its products, in float32.")
def test_linear_in_half_precision(student, rng):
    """Float16 inputs whose state leaves float16's range give a finite float16 output."""
    q, k, v = features(rng, *[(1, 40, 16)] * 3, dtype=torch.float16)
    k, v = k * 60, v.abs() * 60
    found = student.linear_attention_chunk_kernel(q, k, v, 16)
    close(found, linear(q, k, v).half(), what="output in float16", rtol=6e-3)


@hidden("linear_attention_chunk_kernel", kind="property", hint="Does a token read anything that comes after it?")
def test_linear_attention_is_causal(student, rng):
    """What comes later changes nothing before it, inside a chunk and across chunks."""
    q, k, v = features(rng, *[(1, 40, 16)] * 3)
    at = int(rng.integers(18, 30))
    before = student.linear_attention_chunk_kernel(q, k, v, 16)
    k[:, at:], v[:, at:] = 5.0, -9.0
    after = student.linear_attention_chunk_kernel(q, k, v, 16)
    close(after[:, :at], before[:, :at], what="output before a changed position")


@hidden("linear_attention_chunk_kernel", kind="edge", hint="0 / 0 is NaN; divide by 1 where the denominator is 0.")
def test_linear_attention_to_nothing(student, rng):
    """A query of zeros gives 0; fewer tokens than a chunk, and none, are no special case."""
    q, k, v = features(rng, *[(1, 9, 16)] * 3)
    q[:, 4] = 0.0
    close(student.linear_attention_chunk_kernel(q, k, v, 16), linear(q, k, v).float(), what="output with a zero query")
    none = torch.empty(1, 0, 16)
    close(student.linear_attention_chunk_kernel(none, none, none, 16), none, what="output without tokens")


@hidden(
    "linear_attention_chunk_kernel", kind="cost", weight=2, hint="Work and memory grow with the length, not its square."
)
def test_linear_attention_is_linear(student, rng):
    """One launch, no product in torch, nothing larger than the inputs, and work in proportion to the length."""
    q, k, v = features(rng, *[(1, 160, 16)] * 3)
    trace = student.trace("linear_attention_chunk_kernel", q, k, v, 16)
    close(trace.result, linear(q, k, v).float(), what="output")
    at_most(trace.largest, 2.5 * 160 * 16, what="elements of the largest tensor")
    by_kernels(trace, 1, "linear_attention_chunk_kernel")
    at_most(trace.multiplications, 2.2 * 4 * 160 * 16 * 16, what="multiplications")


# block_sparse_kernel


def spread(layout, block, q_seq, kv_seq):
    """The mask that a layout of blocks stands for."""
    return layout.repeat_interleave(block, 0).repeat_interleave(block, 1)[:q_seq, :kv_seq]


def some_layout(rng, rows, columns):
    """A random layout: one empty row, one full, and the last block of keys in a third."""
    layout = torch.from_numpy(rng.random((rows, columns)) < 0.4)
    layout[1], layout[2], layout[0, 0], layout[0, -1] = False, True, False, True
    return layout


@hidden("block_sparse_kernel", weight=3, hint="Which block of keys is the n-th in the list of your row?")
def test_listed_blocks_attend(student, rng):
    """Attention under the layout, with an empty row, for lengths that no block divides."""
    q_seq, kv_seq = int(rng.integers(50, 63)), int(rng.integers(35, 46))
    q, k, v = draw(rng, (2, q_seq, 24), (2, kv_seq, 24), (2, kv_seq, 40))
    layout = some_layout(rng, 4, 3)
    expected = attend(q * 2, k, v, spread(layout, 16, q_seq, kv_seq))[0]
    close(student.block_sparse_kernel(q * 2, k, v, layout, 16), expected.float(), what="output under a layout")


@hidden("block_sparse_kernel", hint="The block is a parameter: 16 … 128.")
def test_larger_blocks_and_a_full_layout(student, rng):
    """Blocks of 32; a full layout is plain attention."""
    q, k, v = draw(rng, *[(70, 16)] * 3)
    expected = attend(q, k, v, band(70, 70))[0].float()
    found = student.block_sparse_kernel(q, k, v, torch.ones(3, 3, dtype=torch.bool), 32)
    close(found, expected, what="output under a full layout")


@hidden("block_sparse_kernel", hint="Accumulate in float32, return the dtype of q.")
def test_block_sparse_in_half_precision(student, rng):
    """Float16 inputs give a float16 output."""
    q, k, v = draw(rng, *[(1, 48, 16)] * 3, dtype=torch.float16)
    layout = some_layout(rng, 3, 3)
    expected = attend(q, k, v, spread(layout, 16, 48, 48))[0].half()
    close(student.block_sparse_kernel(q, k, v, layout, 16), expected, what="output in float16")


@hidden("block_sparse_kernel", kind="property", hint="Scores in the hundreds need the running maximum, and the scale.")
def test_block_sparse_large_scores(student, rng):
    """Large scores and a given scale keep the result."""
    q, k, v = draw(rng, *[(1, 40, 16)] * 3)
    k[:, 1::2] = k[:, ::2] + 0.01 * k[:, 1::2]  # two keys share each query, by shares that hang on the scale
    layout = torch.tensor([[True, False, True], [False, True, False], [True, True, True]])
    expected = attend(q * 100, k, v, spread(layout, 16, 40, 40), 0.4)[0].float()
    found = student.block_sparse_kernel(q * 100, k, v, layout, 16, 0.4)
    close(found, expected, what="output of large scores", rtol=1e-3)


@hidden("block_sparse_kernel", kind="edge", hint="Nothing listed: 0, never NaN. A layout of another size is an error.")
def test_empty_layouts(student, rng):
    """An empty layout gives 0; a layout of the wrong shape is a ValueError."""
    q, k, v = draw(rng, *[(20, 16)] * 3)
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    close(student.block_sparse_kernel(q, k, v, nothing, 16), torch.zeros(20, 16), what="output of an empty layout")
    raises(ValueError, student, "block_sparse_kernel", q, k, v, torch.ones(3, 2, dtype=torch.bool), 16)


@hidden(
    "block_sparse_kernel",
    kind="cost",
    weight=2,
    hint="Walk the list up to its end; a mask over all blocks saves nothing.",
)
def test_unlisted_blocks_are_not_visited(student, rng):
    """Blocks that are not listed are not visited: NaN in them never reaches the output."""
    q, k, v = draw(rng, (1, 48, 16), (1, 96, 16), (1, 96, 16))
    layout = torch.zeros(3, 6, dtype=torch.bool)
    layout[:, [1, 4]] = True
    layout[1, 4] = False
    expected = attend(q, k, v, spread(layout, 16, 48, 96))[0].float()
    for start in (0, 32, 48, 80):
        v[:, start : start + 16] = math.nan
    found = student.block_sparse_kernel(q, k, v, layout, 16)
    close(found, expected, what="output, with NaN in blocks that are not listed")


@hidden("block_sparse_kernel", kind="cost", hint="One launch; work in proportion to the listed blocks.")
def test_block_sparse_work_follows_the_layout(student, rng):
    """One launch, no product in torch, no mask in memory, and work in proportion to the listed blocks."""
    q, k, v = draw(rng, *[(1, 80, 16)] * 3)
    layout = torch.eye(5, dtype=torch.bool)
    trace = student.trace("block_sparse_kernel", q, k, v, layout, 16)
    close(trace.result, attend(q, k, v, spread(layout, 16, 80, 80))[0].float(), what="output of a diagonal layout")
    by_kernels(trace, 1, "block_sparse_kernel")
    at_most(trace.largest, 2.5 * 80 * 16, what="elements of the largest tensor")
    at_most(trace.multiplications, 2.2 * 2 * 5 * 16 * 16 * 16, what="multiplications")


# autotune_space

KIB = 1024


def space(head_dim, limit, resident=1, bytes_per_element=2):
    """What must come out: (BLOCK, STEP, warps, stages)."""
    row = max(16, 1 << (head_dim - 1).bit_length()) * bytes_per_element
    found = set()
    for block in (64, 128):
        for step in (64, 128):
            for stages in (2, 3):
                fits = (resident * block + 2 * stages * step) * row <= limit
                if fits and (block, stages) != (128, 2) and bytes_per_element == 2:
                    found.add((block, step, block // 16, stages))
    return found or {(64, 32, 4, 1)}


def configurations(student, *arguments):
    """What came back, as (BLOCK, STEP, warps, stages)."""
    answer = student.autotune_space(*arguments)
    require(isinstance(answer, (list, tuple)), "The result should be a list of triton.Config.")
    require(len(answer) > 0, "The list is empty, and a kernel needs at least one configuration.")
    found = []
    for config in answer:
        kwargs = config.call("all_kwargs") if hasattr(config, "handle") else None
        require(isinstance(kwargs, dict), "Every element of the list should be a triton.Config.")
        found.append(tuple(kwargs.get(name) for name in ("BLOCK", "STEP", "num_warps", "num_stages")))
    return found


def exactly(found, expected, what):
    """Fail unless the configurations are these, each once."""
    missing, strange = expected - set(found), set(found) - expected
    require(not strange, f"{what}: {len(strange)} configurations should not be there")
    require(not missing, f"{what}: {len(missing)} configurations are missing")
    require(len(found) == len(set(found)), f"{what}: a configuration stands twice")


@hidden("autotune_space", weight=2, hint="(resident · BLOCK + 2 · stages · STEP) rows, each as wide as a tile.")
def test_configurations_fit_shared_memory(student, rng):
    """Exactly those candidates whose tiles fit, for several widths and sizes of shared memory."""
    for head_dim, kib in ((64, 36), (128, 72), (64, 99), (128, 163), (64, 64), (128, 227)):
        exactly(
            configurations(student, head_dim, kib * KIB), space(head_dim, kib * KIB), f"{kib} KiB, width {head_dim}"
        )


@hidden("autotune_space", hint="The backward kernels keep two tiles of BLOCK rows.")
def test_resident_tiles_count(student, rng):
    """With two resident tiles less fits."""
    for head_dim, kib in ((128, 163), (64, 80), (128, 112)):
        exactly(configurations(student, head_dim, kib * KIB, 2), space(head_dim, kib * KIB, 2), "two resident tiles")


@hidden(
    "autotune_space", kind="edge", hint="A tile is as wide as the next power of two, and its size may equal the limit."
)
def test_odd_widths_and_exact_limits(student, rng):
    """head_dim 40 takes the room of 64, and what fits exactly, fits."""
    for head_dim, limit in ((40, 65536), (72, 131072), (16, 16 * KIB)):
        exactly(configurations(student, head_dim, limit), space(head_dim, limit), f"width {head_dim}")


@hidden("autotune_space", kind="edge", hint="Never an empty list. A CPU may be named by a string or a torch.device.")
def test_small_memory_float32_and_cpu(student, rng):
    """Where nothing fits, and for float32, the small configuration; on a CPU the interpreter's."""
    exactly(configurations(student, 128, 4 * KIB), {(64, 32, 4, 1)}, "4 KiB")
    exactly(configurations(student, 64, 227 * KIB, 1, 4), {(64, 32, 4, 1)}, "float32")
    exactly(configurations(student, 64, "cpu"), {(32, 16, 4, 1)}, "a CPU")


@hidden("autotune_space", kind="property", hint="More room never makes a choice impossible.")
def test_more_memory_never_takes_a_choice_away(student, rng):
    """With more shared memory, what fitted before still does."""
    small, large = (set(configurations(student, 64, kib * KIB)) for kib in (100, 200))
    require(small <= large, "a configuration that fits 100 KiB is missing at 200 KiB")
