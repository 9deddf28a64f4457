"""Right alternatives and named mistakes of chapter `flash_gpu`.

Most mistakes are edits of a kernel. Some of grouped heads and windows are made in the forward kernel, but only seen
where it is launched with a group or a window.
"""

import torch

from autograder.sandbox import kernels  # isort: skip  # chooses Triton's interpreter, before Triton is imported
import triton
import triton.language as tl

from autograder.answers import alternative, edit, mistake

assert kernels.FOUND, "the answers of this chapter need Triton"

# vector_scale


@triton.jit
def _scale_by_rows(x, out, factor, size, BLOCK: tl.constexpr):
    start = tl.program_id(axis=0) * BLOCK
    offsets = start + tl.arange(0, BLOCK)
    inside = offsets < size
    tile = tl.load(x + offsets, mask=inside, other=0.0)
    tl.store(out + offsets, (tile.to(tl.float32) * factor).to(out.dtype.element_ty), mask=inside)


@alternative("vector_scale", kernels=[_scale_by_rows])
def flattened_in_small_blocks(x, factor):
    flat = x.reshape(-1).contiguous()
    out = torch.empty_like(flat)
    if flat.numel():
        _scale_by_rows[lambda meta: (triton.cdiv(flat.numel(), meta["BLOCK"]),)](
            flat, out, factor, flat.numel(), BLOCK=256
        )
    return out.view(x.shape)


edit(
    "vector_scale",
    "every_program_does_the_first_block",
    replace="tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)",
    by="tl.arange(0, BLOCK)",
    says="Every program works on the first block; what comes after it is never written.",
    hint="Where does the block of program i begin?",
)
edit(
    "vector_scale",
    "programs_one_element_apart",
    replace="tl.program_id(0).to(tl.int64) * BLOCK",
    by="tl.program_id(0).to(tl.int64)",
    says="Your programs begin one element apart instead of one block.",
    hint="How many elements come before the block of program 2?",
)
edit(
    "vector_scale",
    "store_without_a_mask",
    replace="* factor, mask=at < size)",
    by="* factor)",
    says="The last program writes past the end of out: its store has no mask.",
    hint="The last block is longer than what is left. Who keeps tl.store from writing the rest?",
)
edit(
    "vector_scale",
    "load_without_a_mask",
    replace="tl.load(x + at, mask=at < size)",
    by="tl.load(x + at)",
    says="The last program reads past the end of x: its load has no mask.",
    hint="The last block is longer than what is left. Who keeps tl.load from reading the rest?",
)
edit(
    "vector_scale",
    "mask_one_short",
    replace="mask=at < size",
    by="mask=at < size - 1",
    count=2,
    says="Your mask leaves out the last element.",
    hint="Elements are counted from 0 to size − 1. Which of them satisfy your comparison?",
)
edit(
    "vector_scale",
    "written_back_into_x",
    replace="tl.store(out + at",
    by="tl.store(x + at",
    says="Your kernel writes its result over x, and leaves out as it was.",
    hint="Which pointer does the store begin with?",
)
edit(
    "vector_scale",
    "added_instead_of_multiplied",
    replace="mask=at < size) * factor",
    by="mask=at < size) + factor",
    says="You add the factor.",
    hint="What should a factor of 1 do?",
)
edit(
    "vector_scale",
    "too_few_programs",
    replace="triton.cdiv(x.numel(), 1024)",
    by="max(1, x.numel() // 1024)",
    says="The grid is rounded down, so that the last, shorter block has no program.",
    hint="How many blocks of 1024 does it take to cover 1500 elements?",
)
edit(
    "vector_scale",
    "whole_factor",
    replace="float(factor)",
    by="int(factor)",
    says="You cut the factor down to a whole number.",
    hint="What does a factor of 1.5 become on its way to the kernel?",
)


@mistake(
    "vector_scale",
    says="torch multiplies here, and no kernel runs; the point is to write the kernel.",
    hint="The function given under your kernel launches it. What should the kernel do?",
)
def torch_multiplies(x, factor):
    return x * factor


# row_softmax


@triton.jit
def _softmax_in_pieces(x, out, columns, PIECE: tl.constexpr):
    x += tl.program_id(0).to(tl.int64) * columns
    out += tl.program_id(0).to(tl.int64) * columns
    at = tl.arange(0, PIECE)
    peak = float("-inf")
    total = 0.0
    for start in tl.range(0, columns, PIECE):
        part = tl.load(x + start + at, mask=start + at < columns, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(part, 0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(peak - base) + tl.sum(tl.exp(part - base), 0)
        peak = higher
    base = tl.where(peak == float("-inf"), 0.0, peak)
    for start in tl.range(0, columns, PIECE):
        part = tl.load(x + start + at, mask=start + at < columns, other=float("-inf")).to(tl.float32)
        weights = tl.exp(part - base) / tl.where(total == 0.0, 1.0, total)
        tl.store(out + start + at, weights.to(out.dtype.element_ty), mask=start + at < columns)


@alternative("row_softmax", kernels=[_softmax_in_pieces])
def online_in_pieces(x):
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        _softmax_in_pieces[(x.numel() // x.shape[-1],)](x, out, x.shape[-1], PIECE=512)
    return out


edit(
    "row_softmax",
    "no_maximum",
    replace='weights = tl.exp(row - tl.where(peak == float("-inf"), 0.0, peak))',
    by="weights = tl.exp(row)",
    says="You take exp of the scores as they are; large ones overflow.",
    hint="Softmax does not change when the same number is subtracted from a whole row. Which number?",
)
edit(
    "row_softmax",
    "outside_counts_as_zero",
    replace='other=float("-inf")',
    by="other=0.0",
    says="Places past the end of a row are loaded as 0, and exp(0) = 1 counts in the sum.",
    hint="Which number has the exponential 0?",
)
edit(
    "row_softmax",
    "reads_into_the_next_row",
    replace='mask=inside, other=float("-inf")).to(tl.float32)',
    by="mask=at >= 0).to(tl.float32)",
    says="The load has no mask: a block that is longer than its row reads on, past the end of the tensor.",
    hint="columns is 5 and BLOCK is 8. What do the last three places load?",
)
edit(
    "row_softmax",
    "empty_rows_are_nan",
    replace='tl.where(peak == float("-inf"), 0.0, peak)',
    by="peak",
    says="In a row of nothing but −∞ you subtract −∞ from −∞, which is NaN.",
    hint="Which number can stand in for a maximum of −∞?",
)
edit(
    "row_softmax",
    "not_normalised",
    replace="weights / tl.where(total == 0.0, 1.0, total)",
    by="weights",
    says="Your weights are not divided by their sum.",
    hint="What should a row of weights sum to?",
)
edit(
    "row_softmax",
    "logarithms_of_weights",
    replace="weights / tl.where(total == 0.0, 1.0, total)",
    by="row - peak - tl.log(total)",
    says="You return the logarithms of the weights.",
    hint="Can a weight be negative?",
)
edit(
    "row_softmax",
    "base_two",
    replace="weights = tl.exp(",
    by="weights = tl.exp2(",
    says="You take powers of 2; softmax takes powers of e, unless the scores were multiplied by log2(e) before.",
    hint="What is the weight of a score that is 1 higher than another?",
)
edit(
    "row_softmax",
    "rows_a_block_apart",
    replace="tl.program_id(0).to(tl.int64) * columns + tl.arange(0, BLOCK)",
    by="tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)",
    says="Your rows begin BLOCK elements apart; in memory they lie columns apart.",
    hint="The second row of 5 columns begins at element 5, not 8.",
)


@mistake(
    "row_softmax",
    says="torch computes the softmax here, and no kernel runs; the point is to write the kernel.",
    hint="The function given under your kernel launches it. What should the kernel do?",
)
def torch_makes_the_softmax(x):
    weights = (x.float() - x.float().amax(-1, keepdim=True).clamp_min(-1e30)).exp()
    return (weights / weights.sum(-1, keepdim=True).clamp_min(1e-30)).to(x.dtype)


# scores_kernel


@triton.jit
def _scores_along_keys(q, k, out, scale, q_seq, kv_seq, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr,
                       PRECISION: tl.constexpr):  # fmt: skip
    head, start = tl.program_id(1), tl.program_id(0) * 16
    q_tile = q.load([head, start, 0]).reshape(16, WIDTH)
    for j in tl.range(0, kv_seq, 32):
        k_tile = k.load([head, j, 0]).reshape(32, WIDTH)
        tile = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * scale
        rows, cols = start + tl.arange(0, 16)[:, None], j + tl.arange(0, 32)[None, :]
        place = out + (head.to(tl.int64) * q_seq + rows) * kv_seq + cols
        tl.store(place, tile.to(out.dtype.element_ty), mask=(rows < q_seq) & (cols < kv_seq))


@alternative("scores_kernel", kernels=[_scores_along_keys])
def descriptors_and_a_loop(q, k, scale=None):
    _check(q, k)
    out = q.new_empty(*q.shape[:-1], k.shape[-2])
    if out.numel():
        q_rows, k_rows = _rows(q), _rows(k)
        scale = scale if scale is not None else 1 / q.shape[-1] ** 0.5
        _scores_along_keys[(triton.cdiv(q.shape[-2], 16), len(q_rows))](
            _tiles(q_rows, 16), _tiles(k_rows, 32), out, scale, q.shape[-2], k.shape[-2],
            WIDTH=_tile_dim(q.shape[-1]), HEAD_DIM=q.shape[-1], PRECISION=_precision(q))  # fmt: skip
    return out


edit(
    "scores_kernel",
    "scale_forgotten",
    replace="input_precision=PRECISION) * scale",
    by="input_precision=PRECISION)",
    says="Your scores are not scaled.",
    hint="Which argument of the kernel is not used?",
)
edit(
    "scores_kernel",
    "scaled_by_head_dim",
    replace="head_dim**-0.5",
    by="head_dim**-1.0",
    says="You divide by head_dim instead of its square root.",
    hint="Which power of head_dim keeps the variance of a score at 1?",
)
edit(
    "scores_kernel",
    "rows_and_columns_swapped",
    replace="rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)\n    cols = tl.program_id(1)",
    by="rows = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)\n    cols = tl.program_id(0)",
    says="Program (i, j) writes tile (j, i): with more keys than queries some tiles are never written.",
    hint="Which axis of the grid counts tiles of queries?",
)
edit(
    "scores_kernel",
    "heads_of_k_as_long_as_those_of_q",
    replace="(head * kv_seq + cols[:, None]) * HEAD_DIM",
    by="(head * q_seq + cols[:, None]) * HEAD_DIM",
    says="The heads of k begin kv_seq rows apart, not q_seq.",
    hint="Where does head 1 of k begin if there are more keys than queries?",
)
edit(
    "scores_kernel",
    "first_head_only",
    replace="head = tl.program_id(2).to(tl.int64)",
    by="head = tl.program_id(2).to(tl.int64) * 0",
    says="All programs work on the first head.",
    hint="What does the third axis of the grid count?",
)
edit(
    "scores_kernel",
    "rows_of_out_as_long_as_q",
    replace="rows[:, None]) * kv_seq + cols[None, :]",
    by="rows[:, None]) * q_seq + cols[None, :]",
    says="A row of out holds kv_seq elements; you place rows q_seq apart.",
    hint="out has the shape (heads, q_seq, kv_seq). How far apart are two of its rows?",
)
edit(
    "scores_kernel",
    "wide_tiles_read_the_next_row",
    replace="    scores = tl.dot(q_tile",
    by="    # A tile that is loaded without a look at its columns, as far as there is anything to load.\n"
    "    in_q = (rows[:, None] * HEAD_DIM + dims[None, :]) < q_seq * HEAD_DIM\n"
    "    in_k = (cols[:, None] * HEAD_DIM + dims[None, :]) < kv_seq * HEAD_DIM\n"
    "    q_tile = tl.load(q + (head * q_seq + rows[:, None]) * HEAD_DIM + dims[None, :], mask=in_q, other=0.0)\n"
    "    k_tile = tl.load(k + (head * kv_seq + cols[:, None]) * HEAD_DIM + dims[None, :], mask=in_k, other=0.0)\n"
    "    scores = tl.dot(q_tile",
    says="Where a tile is wider than head_dim, its last columns hold the beginning of the next row.",
    hint="HEAD_DIM is 24 and DIM is 32. What do the last eight columns load?",
)
edit(
    "scores_kernel",
    "loads_past_the_last_query",
    replace="in_q = (rows[:, None] < q_seq) & (dims[None, :] < HEAD_DIM)",
    by="in_q = (rows[:, None] >= 0) & (dims[None, :] < HEAD_DIM)",
    says="The mask of q does not end at q_seq: the last tile reads past the end.",
    hint="The last tile of queries is not full. Which of its rows exist?",
)
edit(
    "scores_kernel",
    "writes_past_the_last_key",
    replace="in_out = (rows[:, None] < q_seq) & (cols[None, :] < kv_seq)",
    by="in_out = rows[:, None] < q_seq + 0 * cols[None, :]",
    says="The mask of the store does not end at kv_seq: a tile runs on into the next row, and past the end of out.",
    hint="What lies in memory behind the last key of a row?",
)


@mistake(
    "scores_kernel",
    says="torch multiplies here, and no kernel runs; the point is to write the kernel.",
    hint="The function given under your kernel launches it. What should the kernel do?",
)
def torch_multiplies_and_sums(q, k, scale=None):
    _check(q, k)
    products = q.unsqueeze(-2).float() * k.unsqueeze(-3).float()
    return (products.sum(-1) * (q.shape[-1] ** -0.5 if scale is None else scale)).to(q.dtype)


# flash_forward


@triton.jit
def _forward_by_pointers(q, k, v, out, lse, scale, q_seq, kv_seq, head_dim, v_dim, group, back, ahead,
                         DIM: tl.constexpr, V_DIM: tl.constexpr, PRECISION: tl.constexpr,
                         ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i = block * ROWS + tl.arange(0, ROWS)
    position = i + kv_seq - q_seq
    d, e = tl.arange(0, DIM), tl.arange(0, V_DIM)
    queries = tl.load(q + (head * q_seq + i[:, None]) * head_dim + d[None, :],
                      mask=(i[:, None] < q_seq) & (d[None, :] < head_dim), other=0.0)  # fmt: skip
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, V_DIM], tl.float32)
    first = block * ROWS + kv_seq - q_seq
    begin = tl.maximum(first - back, 0) // COLS * COLS
    end = tl.minimum(first + ROWS + ahead, kv_seq)
    for start in tl.range(begin, end, COLS):
        j = start + tl.arange(0, COLS)
        rows = head // group * kv_seq + j[:, None]
        keys = tl.load(k + rows * head_dim + d[None, :],
                       mask=(j[:, None] < kv_seq) & (d[None, :] < head_dim), other=0.0)  # fmt: skip
        values = tl.load(v + rows * v_dim + e[None, :],
                         mask=(j[:, None] < kv_seq) & (e[None, :] < v_dim), other=0.0)  # fmt: skip
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        gap = position[:, None] - j[None, :]
        scores = tl.where((gap <= back) & (gap >= -ahead) & (j[None, :] < kv_seq), scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp(scores - safe[:, None])
        fade = tl.exp(peak - safe)
        total = total * fade + tl.sum(weights, 1)
        acc = acc * fade[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
        peak = higher
    some = tl.where(total > 0, total, 1.0)
    tl.store(out + (head * q_seq + i[:, None]) * v_dim + e[None, :], (acc / some[:, None]).to(out.dtype.element_ty),
             mask=(i[:, None] < q_seq) & (e[None, :] < v_dim))  # fmt: skip
    tl.store(lse + head * q_seq + i, peak + tl.log(some), mask=i < q_seq)


@alternative("flash_forward", kernels=[_forward_by_pointers])
def pointers_and_powers_of_e(q, k, v, causal=False, scale=None):
    _check(q, k, v)
    q_seq, kv_seq, head_dim, v_dim = q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1]
    out, lse = q.new_zeros(*q.shape[:-1], v_dim), torch.full(q.shape[:-1], -math.inf, device=q.device)
    if lse.numel() and kv_seq:
        _forward_by_pointers[(triton.cdiv(q_seq, 16), lse.numel() // q_seq)](
            q.contiguous(), k.contiguous(), v.contiguous(), out, lse, _scale(q, scale), q_seq, kv_seq, head_dim, v_dim,
            1, 1 << 29, 0 if causal else 1 << 29, DIM=_tile_dim(head_dim), V_DIM=_tile_dim(v_dim),
            PRECISION=_precision(q), ROWS=16, COLS=32)  # fmt: skip
    return out, lse


edit(
    "flash_forward",
    "no_running_maximum",
    replace="new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)",
    by="new_peak = tl.zeros_like(peak)",
    says="You subtract no maximum: exp2 of large scores overflows.",
    hint="The softmax of a row does not change when its largest score is subtracted. How is that known tile by tile?",
)
edit(
    "flash_forward",
    "maximum_of_the_tile_alone",
    replace="tl.maximum(peak, tl.max(scores, 1) * scale_log2)",
    by="tl.max(scores, 1) * scale_log2",
    says="Your maximum is that of the last tile; when it falls, what was summed before overflows.",
    hint="The running maximum never falls.",
)
edit(
    "flash_forward",
    "accumulator_not_rescaled",
    replace="acc * shrink[:, None]",
    by="acc",
    says="When the maximum rises, the accumulator keeps its old scale.",
    hint="acc was summed relative to the old maximum. By what factor is that too large now?",
)
edit(
    "flash_forward",
    "total_not_rescaled",
    replace="total * shrink + tl.sum",
    by="total + tl.sum",
    says="When the maximum rises, the sum of the weights keeps its old scale.",
    hint="total was summed relative to the old maximum, as acc was.",
)
edit(
    "flash_forward",
    "scale_forgotten",
    replace="* scale_log2",
    by="* 1.4426950408889634",
    count=2,
    says="Your scores are turned to base 2, but not scaled.",
    hint="scale_log2 is scale · log2(e). Which of the two is missing?",
)
edit(
    "flash_forward",
    "powers_of_e_of_base_two_scores",
    replace="tl.exp2(",
    by="tl.exp(",
    count=2,
    says="scale_log2 has log2(e) inside, so the scores want powers of 2, and you take powers of e.",
    hint="2^(x · log2 e) = e^x. Where do you pay for log2(e) twice?",
)
edit(
    "flash_forward",
    "unseen_rows_are_nan",
    replace='base = tl.where(new_peak == float("-inf"), 0.0, new_peak) if MASKED else new_peak',
    by="base = new_peak",
    says="While a row has seen nothing, you subtract −∞ from −∞, which is NaN.",
    hint="Which number can stand in for a maximum of −∞?",
)
edit(
    "flash_forward",
    "causal_ignored",
    replace="UNBOUNDED, 0 if causal else UNBOUNDED",
    by="UNBOUNDED, UNBOUNDED",
    says="Your output is that of full attention whatever `causal` says.",
    hint="How far ahead may a causal query see?",
)
edit(
    "flash_forward",
    "diagonal_hidden",
    replace="rows[:, None] + shift + ahead, kv_seq - 1)",
    by="rows[:, None] + shift + ahead - 1, kv_seq - 1)",
    says="A causal query does not see its own position.",
    hint="Is key p hidden from the query at position p?",
)
edit(
    "flash_forward",
    "sees_one_ahead",
    replace="rows[:, None] + shift + ahead, kv_seq - 1)",
    by="rows[:, None] + shift + ahead + 1, kv_seq - 1)",
    says="A causal query sees one key after its own position.",
    hint="Is key p + 1 hidden from the query at position p?",
)
edit(
    "flash_forward",
    "top_left_causal",
    replace="shift = kv_seq - q_seq",
    by="shift = 0",
    says="You place query i at position i; with fewer queries than keys the last query stands beside the last key.",
    hint="At which position does query 0 stand if 4 new tokens follow 100 old ones?",
)
edit(
    "flash_forward",
    "tail_of_zeros_attended",
    replace="tl.minimum(rows[:, None] + shift + ahead, kv_seq - 1)",
    by="rows[:, None] + shift + ahead",
    says="The last tile of keys is not full: its missing rows arrive as zeros, and you let queries attend to them.",
    hint="A score of 0 is not a weight of 0. Which keys of the last tile exist?",
)
edit(
    "flash_forward",
    "mask_never_applied",
    replace="if MASKED:\n        scores",
    by="if False:\n        scores",
    says="The mask is computed and never applied to the scores.",
    hint="What should a hidden score be before the maximum is taken?",
)
edit(
    "flash_forward",
    "lse_in_base_two",
    replace="(peak + tl.log2(total)) * LN_2",
    by="peak + tl.log2(total)",
    says="Your lse is a logarithm to base 2; the contract asks for the natural one.",
    hint="ln x = log2 x · ln 2.",
)
edit(
    "flash_forward",
    "lse_without_the_maximum",
    replace="(peak + tl.log2(total)) * LN_2",
    by="tl.log2(total) * LN_2",
    says="Your lse leaves the running maximum out.",
    hint="The weights were summed relative to the maximum. What was divided out comes back into the logarithm.",
)
edit(
    "flash_forward",
    "not_normalised",
    replace="(acc / total[:, None])",
    by="acc",
    says="The output is not divided by the sum of its weights.",
    hint="What should the output be if all values are 1?",
)
edit(
    "flash_forward",
    "visits_skipped_tiles",
    replace="edges = _visible(start + shift, start + shift + BLOCK - 1, back, ahead, kv_seq, STEP)",
    by="edges = (0, 0, 0, kv_seq)",
    says="Your loop visits every tile of keys and masks those that nobody sees: right values, twice the work.",
    hint="Where may the loop of a causal block end? `_visible` knows.",
)
edit(
    "flash_forward",
    "skipped_tiles_read_and_cleaned",
    replace="        for j in tl.range(edges[part], edges[part + 1], STEP):\n"
    "            k_tile = k.load([head // GROUP, j, 0]).reshape(STEP, HEAD_DIM)\n"
    "            v_tile = v.load([head // GROUP, j, 0]).reshape(STEP, V_DIM)\n",
    by="        for j in tl.range(0, kv_seq if part == 2 else 0, STEP):\n"
    "            k_tile = k.load([head // GROUP, j, 0]).reshape(STEP, HEAD_DIM)\n"
    "            v_tile = v.load([head // GROUP, j, 0]).reshape(STEP, V_DIM)\n"
    "            v_tile = tl.where(v_tile == v_tile, v_tile, 0.0)\n",
    says="Your loop reads every tile of keys and cleans out what spoils the result, where it should skip the tile.",
    hint="What is never read needs no cleaning. Where may the loop of a causal block end?",
)


@mistake(
    "flash_forward",
    says="You write all scores, and all weights, to memory, as attention without FlashAttention does.",
    hint="One kernel can do all of it, tile by tile, and keep the scores for itself.",
)
def three_kernels(q, k, v, causal=False, scale=None):
    _check(q, k, v)
    if not k.shape[-2]:
        return q.new_zeros(*q.shape[:-1], v.shape[-1]), torch.full(q.shape[:-1], -math.inf)
    scores = scores_kernel(q.float(), k.float(), _scale(q, scale))
    if causal:
        gap = torch.arange(q.shape[-2])[:, None] + k.shape[-2] - q.shape[-2] - torch.arange(k.shape[-2])
        scores = scores.masked_fill(gap < 0, -math.inf)
    peak = scores.amax(-1, keepdim=True).clamp_min(-1e30)
    weights = row_softmax(scores)
    best = weights.amax(-1)
    lse = torch.where(best > 0, peak[..., 0] - best.log(), -math.inf)
    return scores_kernel(weights, v.mT.float().contiguous(), 1.0).to(q.dtype), lse


@mistake(
    "flash_forward",
    says="torch computes the attention here, and no kernel runs; the point is to write the kernel.",
    hint="The function given under your kernels launches them. What should they do?",
)
def plain_attention_in_torch(q, k, v, causal=False, scale=None):
    _check(q, k, v)
    if not k.shape[-2]:
        return q.new_zeros(*q.shape[:-1], v.shape[-1]), torch.full(q.shape[:-1], -math.inf)
    scores = (q.unsqueeze(-2).float() * k.unsqueeze(-3).float()).sum(-1) * _scale(q, scale)
    if causal:
        gap = torch.arange(q.shape[-2])[:, None] + k.shape[-2] - q.shape[-2] - torch.arange(k.shape[-2])
        scores = scores.masked_fill(gap < 0, -math.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.clamp_min(-1e30)[..., None]).exp()
    return (weights.unsqueeze(-1) * v.unsqueeze(-3).float()).sum(-2).to(q.dtype), lse


# flash_forward_gqa

FORWARD = ("_forward", "flash_forward")


@alternative("flash_forward_gqa")
def the_forward_kernel_knows_groups(q, k, v, causal=False, scale=None):
    group, rest = divmod(q.shape[-3], k.shape[-3])
    if rest or not group:
        raise ValueError("heads must be a multiple of kv_heads")
    return flash_forward(q, k, v, causal=causal, scale=scale)


@mistake(
    "flash_forward_gqa",
    says="You repeat k and v in memory for all query heads, which is what grouping should save.",
    hint="The kernel can read one head of k and v for several query heads.",
)
def keys_repeated_in_memory(q, k, v, causal=False, scale=None):
    if q.shape[-3] % k.shape[-3]:
        raise ValueError("heads must be a multiple of kv_heads")
    group = q.shape[-3] // k.shape[-3]
    k, v = (x.repeat_interleave(group, -3) for x in (k, v))
    return _forward(q, k, v, scale, UNBOUNDED, 0 if causal else UNBOUNDED)


@mistake(
    "flash_forward_gqa",
    says="You launch a kernel for every query head, one after the other.",
    hint="One grid can hold the programs of all heads.",
)
def one_launch_a_head(q, k, v, causal=False, scale=None):
    if q.shape[-3] % k.shape[-3]:
        raise ValueError("heads must be a multiple of kv_heads")
    group = q.shape[-3] // k.shape[-3]
    found = [
        _forward(q[..., h, :, :], k[..., h // group, :, :], v[..., h // group, :, :], scale, UNBOUNDED,
                 0 if causal else UNBOUNDED)
        for h in range(q.shape[-3])
    ]  # fmt: skip
    return torch.stack([out for out, _ in found], -3), torch.stack([lse for _, lse in found], -2)


edit(
    "flash_forward_gqa",
    "kernel_deals_heads_out",
    helpers=FORWARD,
    replace="head // GROUP",
    by="head % (tl.num_programs(1) // GROUP)",
    count=2,
    says="Your kernel deals query heads out in turn; neighbours should share a key head.",
    hint="Of 6 heads over 2, which read key head 0: the even ones, or the first three?",
)
edit(
    "flash_forward_gqa",
    "kernel_ignores_the_group",
    helpers=FORWARD,
    replace="head // GROUP",
    by="head",
    count=2,
    says="Your kernel reads head h of k and v for query head h; beyond the last key head it reads nothing but zeros.",
    hint="Which head of k does query head 5 of 6 read, if there are 2?",
)
edit(
    "flash_forward_gqa",
    "values_ignore_the_group",
    helpers=FORWARD,
    replace="v_tile = v.load([head // GROUP, j, 0])",
    by="v_tile = v.load([head, j, 0])",
    says="Your kernel shares the keys of a group, but not its values.",
    hint="k and v have the same number of heads.",
)
edit(
    "flash_forward_gqa",
    "all_read_the_first_head",
    replace="return _forward(q, k, v, scale",
    by="return _forward(q, k[..., :1, :, :], v[..., :1, :, :], scale",
    says="All query heads read the first key head.",
    hint="That is multi-query attention. How many key heads are there here?",
)
edit(
    "flash_forward_gqa",
    "groups_averaged",
    replace="return _forward(q, k, v, scale",
    by="return _forward(q, k.mean(-3, keepdim=True), v.mean(-3, keepdim=True), scale",
    says="You average the key heads; each group should read its own.",
    hint="Averaging turns a trained multi-head model into a grouped one, once. Here the groups exist already.",
)
edit(
    "flash_forward_gqa",
    "uneven_heads_accepted",
    replace="if q.shape[-3] % k.shape[-3]:",
    by="if q.shape[-3] < k.shape[-3]:",
    says="5 heads over 2 key heads should be a ValueError.",
    hint="What does the contract say of heads that do not share evenly?",
)
edit(
    "flash_forward_gqa",
    "causal_ignored",
    replace="0 if causal else UNBOUNDED",
    by="UNBOUNDED",
    says="Your output is that of full attention whatever `causal` says.",
    hint="How far ahead may a causal query see?",
)
edit(
    "flash_forward_gqa",
    "scale_forgotten",
    replace="_forward(q, k, v, scale,",
    by="_forward(q, k, v, None,",
    says="A scale that is given is not used.",
    hint="Which of your arguments goes nowhere?",
)
edit(
    "flash_forward_gqa",
    "lse_left_out",
    replace="0 if causal else UNBOUNDED)",
    by="0 if causal else UNBOUNDED)[0]",
    says="You return the output alone, without lse.",
    hint="What does flash_forward return?",
)

# flash_forward_window


@alternative("flash_forward_window", kernels=[_forward_by_pointers])
def by_pointers(q, k, v, window, causal=True, scale=None):
    _check(q, k, v)
    q_seq, kv_seq, head_dim, v_dim = q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1]
    out, lse = q.new_zeros(*q.shape[:-1], v_dim), torch.full(q.shape[:-1], -math.inf, device=q.device)
    ahead = 0 if causal else window // 2
    _forward_by_pointers[(triton.cdiv(q_seq, 16), lse.numel() // q_seq)](
        q.contiguous(), k.contiguous(), v.contiguous(), out, lse, _scale(q, scale), q_seq, kv_seq, head_dim, v_dim,
        1, window - 1 if causal else window // 2, ahead, DIM=_tile_dim(head_dim), V_DIM=_tile_dim(v_dim),
        PRECISION=_precision(q), ROWS=16, COLS=32)  # fmt: skip
    return out, lse


edit(
    "flash_forward_window",
    "causal_sees_one_more",
    replace="(window - 1, 0)",
    by="(window, 0)",
    says="Your causal window holds window + 1 keys.",
    hint="The query's own position is one of the `window` keys.",
)
edit(
    "flash_forward_window",
    "causal_sees_half",
    replace="(window - 1, 0)",
    by="(window // 2, 0)",
    says="Your causal window looks back half a window.",
    hint="All of a causal window lies behind the query.",
)
edit(
    "flash_forward_window",
    "symmetric_reaches_a_whole_window",
    replace="(window // 2, window // 2)",
    by="(window, window)",
    says="Your symmetric window reaches `window` to either side; it is almost twice as wide.",
    hint="`window` is the width of the whole band, not of one side.",
)
edit(
    "flash_forward_window",
    "even_windows_lose_both_ends",
    replace="(window // 2, window // 2)",
    by="((window - 1) // 2, (window - 1) // 2)",
    says="In your symmetric window an even `window` reaches one key less to either side; odd ones are right.",
    hint="By the contract, how far does a window of 4 reach to each side? Which of your numbers says so?",
)
edit(
    "flash_forward_window",
    "odd_windows_are_rounded_up",
    replace="(window // 2, window // 2)",
    by="((window + 1) // 2, (window + 1) // 2)",
    says="In your symmetric window an odd `window` reaches one key more to either side; even ones are right.",
    hint="How many keys does a window of 5 hold, the query's own position included?",
)
edit(
    "flash_forward_window",
    "even_windows_are_lopsided",
    replace="(window // 2, window // 2)",
    by="(window // 2, window - 1 - window // 2)",
    says="You gave even windows exactly `window` positions, one less ahead; here 4 and 5 are the same.",
    hint="The course's window is |p − j| ≤ window // 2 when it is not causal.",
)
edit(
    "flash_forward_window",
    "never_looks_ahead",
    replace="(window // 2, window // 2)",
    by="(window // 2, 0)",
    says="Your symmetric window has only its left half.",
    hint="Not causal: what about the keys after the query?",
)
edit(
    "flash_forward_window",
    "causal_ignored",
    replace="(window - 1, 0) if causal else (window // 2, window // 2)",
    by="(window // 2, window // 2)",
    says="You use the symmetric window whatever `causal` says.",
    hint="What may a causal query see of what comes after it?",
)
edit(
    "flash_forward_window",
    "always_causal",
    replace="(window - 1, 0) if causal else (window // 2, window // 2)",
    by="(window - 1, 0)",
    says="You use the causal window whatever `causal` says.",
    hint="Which keys does a window see when it is not causal?",
)
edit(
    "flash_forward_window",
    "scale_forgotten",
    replace="_forward(q, k, v, scale,",
    by="_forward(q, k, v, None,",
    says="A scale that is given is not used.",
    hint="Which of your arguments goes nowhere?",
)
edit(
    "flash_forward_window",
    "lower_edge_not_masked",
    helpers=FORWARD,
    replace="seen = (seen_from <= cols) & (cols <= seen_to)",
    by="seen = cols <= seen_to",
    says="Your kernel masks the upper edge of the band only: old keys in the first tile are still seen.",
    hint="The first tile of a window is cut at both ends. By which two numbers?",
)
edit(
    "flash_forward_window",
    "tiles_at_the_lower_edge_left_out",
    helpers=FORWARD,
    replace="0 if WINDOWED else 1, 3",
    by="1, 3",
    says="Your kernel begins at the first tile that is seen whole, and leaves out the tiles at the lower edge.",
    hint="`_visible` returns four edges, so three parts. Which of them has keys that only some queries see?",
)
edit(
    "flash_forward_window",
    "visits_tiles_outside_the_window",
    helpers=FORWARD,
    replace="edges = _visible(start + shift, start + shift + BLOCK - 1, back, ahead, kv_seq, STEP)",
    by="edges = (0, 0, 0, kv_seq)",
    says="Your kernel visits every tile and masks what lies outside of the window: right values, and nothing saved.",
    hint="Where may the loop of a block begin? `_visible` knows.",
)
edit(
    "flash_forward_window",
    "tiles_outside_read_and_cleaned",
    helpers=FORWARD,
    replace="        for j in tl.range(edges[part], edges[part + 1], STEP):\n"
    "            k_tile = k.load([head // GROUP, j, 0]).reshape(STEP, HEAD_DIM)\n"
    "            v_tile = v.load([head // GROUP, j, 0]).reshape(STEP, V_DIM)\n",
    by="        for j in tl.range(0, kv_seq if part == 2 else 0, STEP):\n"
    "            k_tile = k.load([head // GROUP, j, 0]).reshape(STEP, HEAD_DIM)\n"
    "            v_tile = v.load([head // GROUP, j, 0]).reshape(STEP, V_DIM)\n"
    "            v_tile = tl.where(v_tile == v_tile, v_tile, 0.0)\n",
    says="Your kernel reads every tile and cleans out what spoils the result, where it should skip the tile.",
    hint="What is never read needs no cleaning. Where may the loop of a block begin?",
)


@mistake(
    "flash_forward_window",
    says="torch computes the attention here, and no kernel runs; the point is that a kernel skips.",
    hint="Your forward kernel takes two numbers that describe the window.",
)
def plain_attention_in_torch(q, k, v, window, causal=True, scale=None):
    _check(q, k, v)
    scores = (q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1) * _scale(q, scale)
    gap = torch.arange(q.shape[-2])[:, None] + k.shape[-2] - q.shape[-2] - torch.arange(k.shape[-2])
    seen = (gap >= 0) & (gap < window) if causal else gap.abs() <= window // 2
    scores = scores.masked_fill(~seen, -math.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.clamp_min(-1e30)[..., None]).exp()
    return (weights.unsqueeze(-1) * v.unsqueeze(-3)).sum(-2), lse


# flash_backward


@triton.jit
def _row_statistics(out, d_out, lse, clean, delta, rows_total, v_dim, V_DIM: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, V_DIM)
    at = row[:, None] * v_dim + e[None, :]
    there = (row[:, None] < rows_total) & (e[None, :] < v_dim)
    a = tl.load(out + at, mask=there, other=0.0).to(tl.float32)
    b = tl.load(d_out + at, mask=there, other=0.0).to(tl.float32)
    tl.store(delta + row, tl.sum(a * b, 1), mask=row < rows_total)
    log_sum = tl.load(lse + row, mask=row < rows_total, other=0.0)
    tl.store(clean + row, tl.where(log_sum == float("-inf"), float("inf"), log_sum), mask=row < rows_total)


@triton.jit
def _all_gradients(q, k, v, d_out, clean, delta, d_q, d_k, d_v, scale, q_seq, kv_seq, ahead, BY_KEYS: tl.constexpr,
                   HEAD_DIM: tl.constexpr, V_DIM: tl.constexpr, PRECISION: tl.constexpr,
                   TILE: tl.constexpr):  # fmt: skip
    # One kernel for both sides: a program owns keys or queries, and walks along the others.
    own, head = tl.program_id(0) * TILE, tl.program_id(1)
    shift = kv_seq - q_seq
    dq = tl.zeros([TILE, HEAD_DIM], tl.float32)
    dk = tl.zeros([TILE, HEAD_DIM], tl.float32)
    dv = tl.zeros([TILE, V_DIM], tl.float32)
    if BY_KEYS:
        begin, end = tl.maximum(own - shift - ahead, 0) // TILE * TILE, q_seq
    else:
        begin, end = 0, tl.minimum(own + shift + TILE + ahead, kv_seq)
    for other in tl.range(begin, end, TILE):
        i0, j0 = (other, own) if BY_KEYS else (own, other)
        i, j = i0 + tl.arange(0, TILE), j0 + tl.arange(0, TILE)
        queries, keys = q.load([head, i0, 0]).reshape(TILE, HEAD_DIM), k.load([head, j0, 0]).reshape(TILE, HEAD_DIM)
        up, values = d_out.load([head, i0, 0]).reshape(TILE, V_DIM), v.load([head, j0, 0]).reshape(TILE, V_DIM)
        log_sum = tl.load(clean + head * q_seq + i, mask=i < q_seq, other=float("inf"))
        mean = tl.load(delta + head * q_seq + i, mask=i < q_seq, other=0.0)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        seen = (j[None, :] <= i[:, None] + shift + ahead) & (j[None, :] < kv_seq)
        weights = tl.where(seen, tl.exp(scores - log_sum[:, None]), 0.0)
        slopes = weights * (tl.dot(up, tl.trans(values), input_precision=PRECISION) - mean[:, None])
        if BY_KEYS:
            dv += tl.dot(tl.trans(weights).to(up.dtype), up, input_precision=PRECISION)
            dk += tl.dot(tl.trans(slopes).to(queries.dtype), queries, input_precision=PRECISION)
        else:
            dq += tl.dot(slopes.to(keys.dtype), keys, input_precision=PRECISION)
    if BY_KEYS:
        d_k.store([head, own, 0], (dk * scale).to(d_k.dtype).reshape(1, TILE, HEAD_DIM))
        d_v.store([head, own, 0], dv.to(d_v.dtype).reshape(1, TILE, V_DIM))
    else:
        d_q.store([head, own, 0], (dq * scale).to(d_q.dtype).reshape(1, TILE, HEAD_DIM))


@alternative("flash_backward", kernels=[_row_statistics, _all_gradients])
def one_kernel_two_sides(q, k, v, out, lse, d_out, causal=False, scale=None):
    _check(q, k, v, out, d_out)
    if not (lse.numel() and k.shape[-2]):
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    q_seq, kv_seq = q.shape[-2], k.shape[-2]
    rows = [_rows(x) for x in (q, k, v, d_out)]
    found = [torch.empty_like(x) for x in rows[:3]]
    clean, delta = (torch.empty(lse.numel(), device=q.device) for _ in range(2))
    _row_statistics[(triton.cdiv(lse.numel(), 32),)](
        out.contiguous(), d_out.contiguous(), lse.contiguous(), clean, delta, lse.numel(), v.shape[-1],
        V_DIM=_tile_dim(v.shape[-1]), ROWS=32)  # fmt: skip
    for by_keys, seq in ((True, kv_seq), (False, q_seq)):
        _all_gradients[(triton.cdiv(seq, 32), len(rows[0]))](
            *(_tiles(x, 32) for x in rows), clean, delta, *(_tiles(x, 32) for x in found), _scale(q, scale), q_seq,
            kv_seq, 0 if causal else UNBOUNDED // 2, BY_KEYS=by_keys, HEAD_DIM=_tile_dim(q.shape[-1]),
            V_DIM=_tile_dim(v.shape[-1]), PRECISION=_precision(q), TILE=32)  # fmt: skip
    return tuple(d[..., : x.shape[-1]].reshape(x.shape) for d, x in zip(found, (q, k, v), strict=True))


edit(
    "flash_backward",
    "delta_missing",
    replace="weights * (d_weights - tl.load(delta + at)[None, :])",
    by="weights * d_weights",
    says="d_k comes from d_scores without delta: softmax also pushes all other weights down.",
    hint="The gradient of a softmax is weights · (d_weights − Σ weights · d_weights).",
)
edit(
    "flash_backward",
    "delta_missing_for_queries",
    replace="weights * (d_weights - row_delta[:, None])",
    by="weights * d_weights",
    says="d_q comes from d_scores without delta: softmax also pushes all other weights down.",
    hint="The gradient of a softmax is weights · (d_weights − Σ weights · d_weights).",
)
edit(
    "flash_backward",
    "scale_missing_in_d_k",
    replace="(dk * scale)",
    by="dk",
    says="d_k does not carry the scale.",
    hint="Scores are scale · q kᵀ. What is their derivative with respect to k?",
)
edit(
    "flash_backward",
    "scale_missing_in_d_q",
    replace="(dq * scale)",
    by="dq",
    says="d_q does not carry the scale.",
    hint="Scores are scale · q kᵀ. What is their derivative with respect to q?",
)
edit(
    "flash_backward",
    "scale_in_d_v",
    replace="dv.to(d_v.dtype)",
    by="(dv * scale).to(d_v.dtype)",
    says="d_v carries a scale that belongs to the scores.",
    hint="Output is weights · v. Where is a scale in that?",
)
edit(
    "flash_backward",
    "lse_in_the_wrong_base",
    replace="log_sum / LN_2",
    by="log_sum",
    says="Your weights come from scores in base 2 and an lse in base e.",
    hint="log2 x = ln x / ln 2.",
)
edit(
    "flash_backward",
    "empty_rows_explode",
    replace='tl.where(log_sum == float("-inf"), float("inf"), log_sum / LN_2)',
    by="log_sum / LN_2",
    says="Rows that see nothing have lse −∞; recomputed from that, their weights are infinite.",
    hint="Which lse makes every recomputed weight 0?",
)
edit(
    "flash_backward",
    "causal_ignored",
    replace="0 if causal else UNBOUNDED",
    by="UNBOUNDED",
    says="Your gradients are those of full attention whatever `causal` says.",
    hint="How far ahead may a causal query see?",
)
edit(
    "flash_backward",
    "diagonal_hidden_from_keys",
    replace="cols <= rows[None, :] + shift + ahead",
    by="cols < rows[None, :] + shift + ahead",
    says="In d_k and d_v a key is not seen by the query at its own position.",
    hint="Is key p hidden from the query at position p?",
)
edit(
    "flash_backward",
    "keys_not_masked",
    replace="if part == 0:",
    by="if part == 2:",
    says="In d_k and d_v, queries before a key contribute in the tiles on the diagonal.",
    hint="Which of your tiles are seen only in part?",
)
edit(
    "flash_backward",
    "queries_not_masked",
    replace="if part == 2:",
    by="if part == 3:",
    says="In d_q, keys after a query contribute in the tiles on the diagonal.",
    hint="Which of your tiles are seen only in part?",
)
edit(
    "flash_backward",
    "statistics_of_the_first_head",
    replace="head.to(tl.int64) * padded + rows",
    by="rows + 0 * head.to(tl.int64) * padded",
    count=4,
    says="All heads use lse and delta of one head.",
    hint="Where do the statistics of head h begin?",
)
edit(
    "flash_backward",
    "d_v_from_d_scores",
    replace="dv = tl.dot(weights.to(do_tile.dtype), do_tile, dv, input_precision=PRECISION)\n"
    "            d_weights = tl.dot(v_tile, do_tile.T, input_precision=PRECISION)\n"
    "            d_scores = weights * (d_weights - tl.load(delta + at)[None, :])\n",
    by="d_weights = tl.dot(v_tile, do_tile.T, input_precision=PRECISION)\n"
    "            d_scores = weights * (d_weights - tl.load(delta + at)[None, :])\n"
    "            dv = tl.dot(d_scores.to(do_tile.dtype), do_tile, dv, input_precision=PRECISION)\n",
    says="d_v sums d_scores instead of the weights.",
    hint="Output is weights · v. What multiplies d_out in the gradient of v?",
)
edit(
    "flash_backward",
    "gradients_swapped",
    replace="zip((d_q, d_k, d_v), (q, k, v), strict=True))",
    by="zip((d_q, d_k, d_v), (q, k, v), strict=True))[::-1]",
    says="The gradients come back in the wrong order.",
    hint="The contract says d_q, d_k, d_v.",
)
edit(
    "flash_backward",
    "visits_queries_that_see_nothing",
    replace="edges = (begin, whole, end)",
    by="edges = (0, end, end)",
    says="d_k and d_v visit every tile of queries and mask those that see nothing: right values, twice the work.",
    hint="Where may the loop over queries begin for the last keys?",
)
edit(
    "flash_backward",
    "visits_keys_that_are_not_seen",
    replace="edges = _visible(start + shift, start + shift + BLOCK - 1, FAR, ahead, kv_seq, STEP)",
    by="edges = (0, 0, 0, kv_seq)",
    says="d_q visits every tile of keys and masks those that are not seen: right values, twice the work.",
    hint="Where may the loop over keys end for the first queries?",
)
edit(
    "flash_backward",
    "keys_not_seen_read_and_cleaned",
    replace="        for j in tl.range(edges[part], edges[part + 1], STEP):\n"
    "            k_tile = k.load([head, j, 0]).reshape(STEP, HEAD_DIM)\n"
    "            v_tile = v.load([head, j, 0]).reshape(STEP, V_DIM)\n",
    by="        for j in tl.range(0, kv_seq if part == 2 else 0, STEP):\n"
    "            k_tile = k.load([head, j, 0]).reshape(STEP, HEAD_DIM)\n"
    "            v_tile = v.load([head, j, 0]).reshape(STEP, V_DIM)\n"
    "            v_tile = tl.where(v_tile == v_tile, v_tile, 0.0)\n",
    says="d_q reads every tile of keys and cleans out what spoils the result, where it should skip the tile.",
    hint="What is never read needs no cleaning. Where may the loop over keys end for the first queries?",
)


@mistake(
    "flash_backward",
    says="You recompute all weights at once and hold them in memory, as attention without FlashAttention does.",
    hint="In the backward pass too, weights need to live for one tile only.",
)
def weights_saved_whole(q, k, v, out, lse, d_out, causal=False, scale=None):
    _check(q, k, v, out, d_out)
    scale = _scale(q, scale)
    if not (lse.numel() and k.shape[-2]):
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    q_, k_, v_, up = (x.float().contiguous() for x in (q, k, v, d_out))
    scores = scores_kernel(q_, k_, scale)
    seen = torch.ones_like(scores, dtype=torch.bool).tril(k.shape[-2] - q.shape[-2] if causal else k.shape[-2])
    sees = lse > -math.inf
    scores = (scores - lse.masked_fill(~sees, 0.0)[..., None]).masked_fill(~seen, -math.inf)
    weights = row_softmax(scores)
    d_weights = scores_kernel(up, v_, 1.0)
    delta = (out.float() * up).sum(-1, keepdim=True)
    d_scores = weights * (d_weights - delta)

    def product(a, b):
        return scores_kernel(a.contiguous(), b.mT.contiguous(), 1.0)

    d_q, d_k, d_v = product(d_scores, k_) * scale, product(d_scores.mT, q_) * scale, product(weights.mT, up)
    return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype)


@mistake(
    "flash_backward",
    says="torch computes the gradients here, and no kernel runs; the point is to write the kernels.",
    hint="The function given under your kernels launches them. What should they do?",
)
def autograd_in_torch(q, k, v, out, lse, d_out, causal=False, scale=None):
    _check(q, k, v, out, d_out)
    scale = _scale(q, scale)
    leaves = [x.detach().double().requires_grad_() for x in (q, k, v)]
    with torch.enable_grad():
        scores = (leaves[0].unsqueeze(-2) * leaves[1].unsqueeze(-3)).sum(-1) * scale
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(
            k.shape[-2] - q.shape[-2] if causal else k.shape[-2]
        )
        weights = scores.masked_fill(~seen, -1e300)
        weights = (weights - weights.logsumexp(-1, keepdim=True)).exp() * seen.any(-1, keepdim=True)
        full = (weights.unsqueeze(-1) * leaves[2].unsqueeze(-3)).sum(-2)
    return tuple(g.to(q.dtype) for g in torch.autograd.grad(full, leaves, d_out.double()))


# flash_decode


@triton.jit
def _parts_of_the_cache(q, k, v, acc, peak, total, scale, group, kv_seq, share, HEAD_DIM: tl.constexpr,
                        V_DIM: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    part, head = tl.program_id(0), tl.program_id(1)
    queries = q.load([head, 0, 0]).reshape(16, HEAD_DIM)
    best = tl.full([16], float("-inf"), tl.float32)
    mass = tl.zeros([16], tl.float32)
    sums = tl.zeros([16, V_DIM], tl.float32)
    for start in tl.range(part * share, tl.minimum(part * share + share, kv_seq), 16):
        j = start + tl.arange(0, 16)
        keys = k.load([head, start, 0]).reshape(16, HEAD_DIM)
        values = v.load([head, start, 0]).reshape(16, V_DIM)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        scores = tl.where(j[None, :] < kv_seq, scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        weights, fade = tl.exp(scores - higher[:, None]), tl.exp(best - higher)
        mass = mass * fade + tl.sum(weights, 1)
        sums = sums * fade[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
        best = higher
    # Sums are left as they are; who joins them divides once.
    row, e = tl.arange(0, 16), tl.arange(0, V_DIM)
    place = (head * tl.num_programs(0) + part) * group + row
    tl.store(acc + place[:, None] * V_DIM + e[None, :], sums, mask=row[:, None] < group)
    tl.store(peak + place, best, mask=row < group)
    tl.store(total + place, mass, mask=row < group)


@triton.jit
def _joined(acc, peak, total, out, lse, parts, group, v_dim, V_DIM: tl.constexpr):
    head, row = tl.program_id(0), tl.program_id(1)
    e = tl.arange(0, V_DIM)
    best, mass = float("-inf"), 0.0
    sums = tl.zeros([V_DIM], tl.float32)
    for part in tl.range(0, parts):
        place = (head * parts + part) * group + row
        higher = tl.maximum(best, tl.load(peak + place))
        ours, theirs = tl.exp(best - higher), tl.exp(tl.load(peak + place) - higher)
        mass = mass * ours + tl.load(total + place) * theirs
        sums = sums * ours + tl.load(acc + place * V_DIM + e) * theirs
        best = higher
    at = head * group + row
    tl.store(out + at * v_dim + e, (sums / mass).to(out.dtype.element_ty), mask=e < v_dim)
    tl.store(lse + at, best + tl.log(mass))


@alternative("flash_decode", kernels=[_parts_of_the_cache, _joined])
def sums_joined_before_dividing(q, k, v, splits=None, scale=None):
    _check(q, k, v)
    kv_seq, v_dim = k.shape[-2], v.shape[-1]
    group, rest = divmod(q.shape[-3], k.shape[-3])
    if rest or q.shape[-2] != 1:
        raise ValueError("one query a head, and heads a multiple of kv_heads")
    keys, values = _rows(k), _rows(v)
    queries = _rows(q.reshape(len(keys), group, q.shape[-1]))
    share = triton.cdiv(triton.cdiv(kv_seq, splits or 4), 16) * 16
    parts = triton.cdiv(kv_seq, share)
    width = _tile_dim(v_dim)
    acc = torch.empty(len(keys), parts, group, width, device=q.device)
    peak, total = torch.empty(2, len(keys), parts, group, device=q.device)
    out, lse = q.new_empty(*q.shape[:-1], v_dim), torch.empty(q.shape[:-1], device=q.device)
    _parts_of_the_cache[(parts, len(keys))](
        _tiles(queries, 16), _tiles(keys, 16), _tiles(values, 16), acc, peak, total, _scale(q, scale), group, kv_seq,
        share, HEAD_DIM=_tile_dim(q.shape[-1]), V_DIM=width, PRECISION=_precision(q))  # fmt: skip
    _joined[(len(keys), group)](acc, peak, total, out, lse, parts, group, v_dim, V_DIM=width)
    return out, lse


edit(
    "flash_decode",
    "parts_averaged",
    replace='shares = tl.exp2(logs - tl.where(peak == float("-inf"), 0.0, peak))',
    by="shares = tl.where(parts < splits, 1.0, 0.0)",
    says="You average the parts; a part with larger scores has the larger share.",
    hint="Each part left its lse. What share of all weights lies in it?",
)
edit(
    "flash_decode",
    "shares_in_the_wrong_base",
    replace="shares = tl.exp2(",
    by="shares = tl.exp(",
    says="The parts left their lse in base 2, and you take powers of e of it.",
    hint="peak + log2(total) is a logarithm to base 2.",
)
edit(
    "flash_decode",
    "lse_of_the_largest_part",
    replace="(peak + tl.log2(total)) * LN_2",
    by="peak * LN_2",
    says="Your lse is that of the largest part alone.",
    hint="Shares were taken relative to the largest part. What do they sum to?",
)
edit(
    "flash_decode",
    "lse_in_base_two",
    replace="(peak + tl.log2(total)) * LN_2",
    by="peak + tl.log2(total)",
    says="Your lse is a logarithm to base 2; the contract asks for the natural one.",
    hint="ln x = log2 x · ln 2.",
)
edit(
    "flash_decode",
    "shares_not_normalised",
    replace="tl.sum(tile * shares[:, None], 0) / total",
    by="tl.sum(tile * shares[:, None], 0)",
    says="The shares of the parts are not divided by their sum.",
    hint="What should the shares of all parts sum to?",
)
edit(
    "flash_decode",
    "parts_not_normalised",
    replace="partial.store([slot, 0, 0], (acc / total[:, None])",
    by="partial.store([slot, 0, 0], acc",
    says="The parts leave sums that are not divided by their weights, and the merge takes them for outputs.",
    hint="What does `_merge_kernel` expect to find in partial?",
)
edit(
    "flash_decode",
    "every_part_starts_at_the_beginning",
    replace="tl.range(split * share, tl.minimum(",
    by="tl.range(0, tl.minimum(",
    says="Every part begins at the first key, so early keys count several times.",
    hint="Which keys belong to part s?",
)
edit(
    "flash_decode",
    "parts_overlap_by_a_tile",
    replace="tl.minimum((split + 1) * share, kv_seq)",
    by="tl.minimum((split + 1) * share + STEP, kv_seq)",
    says="Every part takes in the first tile of the next one, whose keys then count twice.",
    hint="Where does part s end, and part s + 1 begin?",
)
edit(
    "flash_decode",
    "tail_of_zeros_attended",
    replace="seen, True, PRECISION)",
    by="seen, False, PRECISION)",
    says="The last tile of keys is not full: its missing rows arrive as zeros, and you let queries attend to them.",
    hint="A score of 0 is not a weight of 0. Which keys of the last tile exist?",
)
edit(
    "flash_decode",
    "parts_of_all_groups_in_one_place",
    replace="slot = head * tl.num_programs(0) + split",
    by="slot = split",
    says="The parts of all groups are written to the same place.",
    hint="How many parts were written before the first one of group h?",
)
edit(
    "flash_decode",
    "scale_forgotten",
    replace="_scale(q, scale) * LOG2_E",
    by="q.shape[-1] ** -0.5 * LOG2_E",
    says="A scale that is given is not used.",
    hint="Which of your arguments goes nowhere?",
)
edit(
    "flash_decode",
    "splits_ignored",
    replace="    if splits is None:\n        splits =",
    by="    if splits != 0:\n        splits = 1\n    else:\n        splits =",
    says="One program walks through the whole cache, whatever `splits` says: right, and as slow as without splitting.",
    hint="How many programs run side by side for one group?",
)


@mistake(
    "flash_decode",
    says="You repeat the cache in memory for every query head, so that it is read again for each.",
    hint="The heads of a group can be the rows of one tile of queries.",
)
def cache_repeated_for_every_head(q, k, v, splits=None, scale=None):
    _check(q, k, v)
    group, rest = divmod(q.shape[-3], k.shape[-3])
    if rest or q.shape[-2] != 1:
        raise ValueError("one query a head, and heads a multiple of kv_heads")
    k, v = (x.repeat_interleave(group, -3) for x in (k, v))
    kv_seq, v_dim = k.shape[-2], v.shape[-1]
    q_rows, k_rows, v_rows = _rows(q), _rows(k), _rows(v)
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    share = triton.cdiv(triton.cdiv(kv_seq, splits or 4), 16) * 16
    splits = triton.cdiv(kv_seq, share)
    partial = lse.new_empty(len(k_rows) * splits, 1, triton.cdiv(v_dim, 4) * 4)
    partial_lse = lse.new_empty(partial.shape[:2])
    out = q.new_empty(len(k_rows), 1, partial.shape[-1])
    _decode_kernel[(splits, len(k_rows))](
        _tiles(q_rows, 16), _tiles(k_rows, 16), _tiles(v_rows, 16), _tiles(partial, 16), partial_lse,
        _scale(q, scale) * LOG2_E, kv_seq, share, 1, HEAD_DIM=_tile_dim(q.shape[-1]), V_DIM=_tile_dim(v_dim),
        PRECISION=_precision(q), BLOCK=16, STEP=16)  # fmt: skip
    _merge_kernel[(len(k_rows), 1)](partial, partial_lse, out, lse, splits, 1, partial.shape[-1],
                                    SPLITS=triton.next_power_of_2(splits), V_DIM=_tile_dim(v_dim))  # fmt: skip
    return out[..., :v_dim].reshape(*q.shape[:-1], v_dim), lse


@mistake(
    "flash_decode",
    says="torch computes the attention here, and no kernel runs; the point is to write the kernels.",
    hint="The function given under your kernels launches them. What should they do?",
)
def plain_attention_in_torch(q, k, v, splits=None, scale=None):
    _check(q, k, v)
    group, rest = divmod(q.shape[-3], k.shape[-3])
    if rest or q.shape[-2] != 1:
        raise ValueError("one query a head, and heads a multiple of kv_heads")
    k, v = (x.repeat_interleave(group, -3).float() for x in (k, v))
    scores = (q.float() * k).sum(-1) * _scale(q, scale)
    lse = scores.logsumexp(-1, keepdim=True)
    out = ((scores - lse).exp().unsqueeze(-1) * v).sum(-2, keepdim=True)
    return out.to(q.dtype), lse


# linear_attention_chunk_kernel


@triton.jit
def _chunks_by_pointers(q, k, v, out, seq, head_dim, v_dim, DIM: tl.constexpr, V_DIM: tl.constexpr,
                        PRECISION: tl.constexpr, CHUNK: tl.constexpr):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    d, e, n = tl.arange(0, DIM), tl.arange(0, V_DIM), tl.arange(0, CHUNK)
    memory = tl.zeros([DIM, V_DIM], tl.float32)
    seen = tl.zeros([DIM], tl.float32)
    lower = n[:, None] >= n[None, :]
    for start in tl.range(0, seq, CHUNK):
        row = start + n
        at_d = (head * seq + row[:, None]) * head_dim + d[None, :]
        at_e = (head * seq + row[:, None]) * v_dim + e[None, :]
        there_d = (row[:, None] < seq) & (d[None, :] < head_dim)
        there_e = (row[:, None] < seq) & (e[None, :] < v_dim)
        queries = tl.load(q + at_d, mask=there_d, other=0.0).to(tl.float32)
        keys = tl.load(k + at_d, mask=there_d, other=0.0).to(tl.float32)
        values = tl.load(v + at_e, mask=there_e, other=0.0).to(tl.float32)
        inside = tl.where(lower, tl.dot(queries, tl.trans(keys), input_precision=PRECISION), 0.0)
        below = tl.sum(inside, 1) + tl.sum(queries * seen[None, :], 1)
        above = tl.dot(inside, values, input_precision=PRECISION) + tl.dot(queries, memory, input_precision=PRECISION)
        result = tl.where(below[:, None] == 0.0, 0.0, above / tl.where(below == 0.0, 1.0, below)[:, None])
        tl.store(out + at_e, result.to(out.dtype.element_ty), mask=there_e)
        memory += tl.dot(tl.trans(keys), values, input_precision=PRECISION)
        seen += tl.sum(keys, 0)


@alternative("linear_attention_chunk_kernel", kernels=[_chunks_by_pointers])
def pointers_and_float32(q, k, v, chunk=64):
    _check(q, k, v)
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    if q.numel() and v.numel():
        heads = q.shape[:-2].numel()
        _chunks_by_pointers[(heads,)](
            q.contiguous(), k.contiguous(), v.contiguous(), out, q.shape[-2], q.shape[-1], v.shape[-1],
            DIM=_tile_dim(q.shape[-1]), V_DIM=_tile_dim(v.shape[-1]), PRECISION="tf32x3", CHUNK=chunk)  # fmt: skip
    return out


edit(
    "linear_attention_chunk_kernel",
    "not_causal_inside_a_chunk",
    replace="tl.where(past, tl.dot(q_tile, k_tile.T, input_precision=PRECISION), 0.0)",
    by="tl.dot(q_tile, k_tile.T, input_precision=PRECISION)",
    says="Inside a chunk, tokens read what comes after them.",
    hint="Which half of the scores of a chunk lies in the future?",
)
edit(
    "linear_attention_chunk_kernel",
    "own_position_hidden",
    replace="[:, None] >= tl.arange",
    by="[:, None] > tl.arange",
    says="Tokens do not read themselves.",
    hint="The sums go over j ≤ i.",
)
edit(
    "linear_attention_chunk_kernel",
    "no_normaliser",
    replace="acc / tl.where(total == 0.0, 1.0, total)[:, None]",
    by="acc",
    says="You leave out the denominator.",
    hint="What should the output be if all values are 1?",
)
edit(
    "linear_attention_chunk_kernel",
    "normaliser_of_the_chunk_alone",
    replace="tl.sum(scores, 1) + tl.sum(q_wide * key_sum[None, :], 1)",
    by="tl.sum(scores, 1)",
    says="Your denominator counts the own chunk only; earlier chunks are in the numerator.",
    hint="What does the sum of all earlier keys bring to a query?",
)
edit(
    "linear_attention_chunk_kernel",
    "state_never_read",
    replace="acc = tl.dot(q_wide, state, input_precision=PRECISION)",
    by="acc = tl.zeros([CHUNK, V_BLOCK], tl.float32)",
    says="Earlier chunks are in the denominator, but not in the numerator.",
    hint="What does the state hold, and who should meet it?",
)
edit(
    "linear_attention_chunk_kernel",
    "state_of_the_last_chunk_alone",
    replace="state = tl.dot(k_tile.T, v_tile, state, input_precision=PRECISION)",
    by="state = tl.dot(k_tile.T, v_tile, input_precision=PRECISION)",
    says="Your state forgets all chunks but the last.",
    hint="What must a state remember from the third chunk on?",
)
edit(
    "linear_attention_chunk_kernel",
    "key_sum_of_the_last_chunk_alone",
    replace="key_sum += tl.sum",
    by="key_sum = tl.sum",
    says="Your sum of keys forgets all chunks but the last.",
    hint="The denominator grows with every chunk.",
)
edit(
    "linear_attention_chunk_kernel",
    "chunk_counted_twice",
    replace="        acc = tl.dot(q_wide, state, input_precision=PRECISION)\n",
    by="        full = tl.dot(k_tile.T, v_tile, state, input_precision=PRECISION)\n"
    "        acc = tl.dot(q_wide, full, input_precision=PRECISION)\n",
    says="The state already holds the chunk when its queries read it, so the chunk counts twice, its future included.",
    hint="In which order does a chunk read the state and enter it?",
)
edit(
    "linear_attention_chunk_kernel",
    "state_in_half_precision",
    replace="        acc = tl.dot(q_wide, state, input_precision=PRECISION)\n",
    by="        acc = tl.dot(q_tile, state.to(q_tile.dtype), input_precision=PRECISION)\n",
    says="The state meets the queries in float16, and is too large for it.",
    hint="float16 ends at 65504. How large is a sum over all keys?",
)
edit(
    "linear_attention_chunk_kernel",
    "zero_divided_by_zero",
    replace="tl.where(total == 0.0, 1.0, total)",
    by="total",
    says="Where a query is 0, you divide 0 by 0.",
    hint="By what can a zero be divided without harm?",
)
edit(
    "linear_attention_chunk_kernel",
    "columns_of_the_first_program",
    replace="column, head = tl.program_id(0) * V_BLOCK, tl.program_id(1)",
    by="column, head = tl.program_id(0) * 0, tl.program_id(1)",
    says="All programs of a head work on the first columns of v; the others are never written.",
    hint="What does the first axis of the grid count?",
)


@mistake(
    "linear_attention_chunk_kernel",
    says="torch sums up a state for every position, and no kernel runs; the point is to write the kernel.",
    hint="The function given under your kernel launches it. What should the kernel do?",
)
def a_state_for_every_position(q, k, v, chunk=64):
    _check(q, k, v)
    if not (q.numel() and v.numel()):
        return q.new_zeros(*q.shape[:-1], v.shape[-1])
    states = (k.float().unsqueeze(-1) * v.float().unsqueeze(-2)).cumsum(-3)
    total = (q.float() * k.float().cumsum(-2)).sum(-1, keepdim=True)
    out = (q.float().unsqueeze(-1) * states).sum(-2)
    return (out / total.masked_fill(total == 0, 1.0)).to(q.dtype)


# block_sparse_kernel


@triton.jit
def _rows_of_a_layout(q, k, v, out, layout, scale, kv_seq, kv_blocks, HEAD_DIM: tl.constexpr, V_DIM: tl.constexpr,
                      PRECISION: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    queries = q.load([head, row * BLOCK, 0]).reshape(BLOCK, HEAD_DIM)
    peak = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    acc = tl.zeros([BLOCK, V_DIM], tl.float32)
    for column in tl.range(0, kv_blocks):
        if tl.load(layout + row * kv_blocks + column):
            j = column * BLOCK + tl.arange(0, BLOCK)
            keys = k.load([head, column * BLOCK, 0]).reshape(BLOCK, HEAD_DIM)
            values = v.load([head, column * BLOCK, 0]).reshape(BLOCK, V_DIM)
            scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
            scores = tl.where(j[None, :] < kv_seq, scores, float("-inf"))
            higher = tl.maximum(peak, tl.max(scores, 1))
            weights, fade = tl.exp(scores - higher[:, None]), tl.exp(peak - higher)
            total = total * fade + tl.sum(weights, 1)
            acc = acc * fade[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
            peak = higher
    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    out.store([head, row * BLOCK, 0], acc.to(out.dtype).reshape(1, BLOCK, V_DIM))


@alternative("block_sparse_kernel", kernels=[_rows_of_a_layout])
def asks_the_layout(q, k, v, layout, block, scale=None):
    _check(q, k, v)
    q_blocks, kv_blocks = triton.cdiv(q.shape[-2], block), triton.cdiv(k.shape[-2], block)
    if tuple(layout.shape) != (q_blocks, kv_blocks):
        raise ValueError("a layout of another size")
    rows = [_rows(x) for x in (q, k, v)]
    out = q.new_empty(len(rows[0]), q.shape[-2], rows[2].shape[-1])
    _rows_of_a_layout[(q_blocks, len(rows[0]))](
        *(_tiles(x, block) for x in (*rows, out)), layout.to(torch.int32).contiguous(), _scale(q, scale), k.shape[-2],
        kv_blocks, HEAD_DIM=_tile_dim(q.shape[-1]), V_DIM=_tile_dim(v.shape[-1]), PRECISION=_precision(q),
        BLOCK=block)  # fmt: skip
    return out[..., : v.shape[-1]].reshape(*q.shape[:-1], v.shape[-1])


edit(
    "block_sparse_kernel",
    "columns_count_keys",
    replace="n) * BLOCK",
    by="n)",
    says="The list counts blocks, and you take its numbers for keys.",
    hint="Where does the third block of keys begin?",
)
edit(
    "block_sparse_kernel",
    "list_of_the_first_row",
    replace="columns + block * kv_blocks + n",
    by="columns + n",
    says="All rows walk the list of the first row of blocks.",
    hint="Where does the list of row `block` begin?",
)
edit(
    "block_sparse_kernel",
    "blocks_in_a_row_instead_of_the_list",
    replace="j = tl.load(columns + block * kv_blocks + n) * BLOCK",
    by="j = n * BLOCK",
    says="You visit the first blocks of keys, as many as are listed, instead of those that are listed.",
    hint="Which block is the n-th in the list of your row?",
)
edit(
    "block_sparse_kernel",
    "last_block_left_out",
    replace="for part in tl.static_range(2):",
    by="for part in tl.static_range(1):",
    says="You leave out the last block of keys where it is cut short.",
    hint="`ends` holds two numbers for each row. What lies between them?",
)
edit(
    "block_sparse_kernel",
    "tail_of_zeros_attended",
    replace="part == 1, PRECISION",
    by="False, PRECISION",
    says="The last block of keys is cut short: its missing rows arrive as zeros, and you let queries attend to them.",
    hint="A score of 0 is not a weight of 0. Which keys of the last block exist?",
)
edit(
    "block_sparse_kernel",
    "empty_rows_are_nan",
    replace="tl.where(total == 0.0, 1.0, total)",
    by="total",
    says="In a row of blocks without any entry you divide 0 by 0.",
    hint="By what can a zero be divided without harm?",
)
edit(
    "block_sparse_kernel",
    "written_in_the_order_of_starting",
    replace="out.store([head, block * BLOCK, 0]",
    by="out.store([head, tl.program_id(1) * BLOCK, 0]",
    says="You write a row of blocks where it was started, not where it belongs.",
    hint="`order` says which row of blocks is yours. Where does its output lie?",
)
edit(
    "block_sparse_kernel",
    "ends_of_another_row",
    replace="tl.load(ends + 2 * block), tl.load(ends + 2 * block + 1)",
    by="tl.load(ends + block), tl.load(ends + block + 1)",
    says="You read the ends of another row: each row has two of them.",
    hint="`ends` has the shape (q_blocks, 2). Where does row `block` begin in memory?",
)
edit(
    "block_sparse_kernel",
    "layout_transposed",
    replace="layout = layout.to(device=q.device, dtype=torch.bool)\n    if layout.shape != (q_blocks, kv_blocks):",
    by="given, layout = layout.shape, layout.to(device=q.device, dtype=torch.bool)\n"
    "    layout = layout.T[:q_blocks, :kv_blocks]\n"
    "    layout = F.pad(layout, (0, kv_blocks - layout.shape[1], 0, q_blocks - layout.shape[0]))\n"
    "    if given != (q_blocks, kv_blocks):",
    says="You read the layout as (blocks of keys, blocks of queries).",
    hint="Which axis of the layout counts blocks of queries?",
)
edit(
    "block_sparse_kernel",
    "scale_forgotten",
    replace="_scale(q, scale) * LOG2_E",
    by="q.shape[-1] ** -0.5 * LOG2_E",
    says="A scale that is given is not used.",
    hint="Which of your arguments goes nowhere?",
)
edit(
    "block_sparse_kernel",
    "visits_all_blocks",
    replace="edges = (0, tl.load(ends + 2 * block), tl.load(ends + 2 * block + 1))\n"
    "    for part in tl.static_range(2):\n"
    "        for n in tl.range(edges[part], edges[part + 1]):\n"
    "            j = tl.load(columns + block * kv_blocks + n) * BLOCK\n"
    "            k_tile = k.load([head, j, 0]).reshape(BLOCK, HEAD_DIM)\n"
    "            v_tile = v.load([head, j, 0]).reshape(BLOCK, V_DIM)\n"
    "            seen = j + tl.arange(0, BLOCK)[None, :] < kv_seq",
    by="listed = tl.load(ends + 2 * block + 1)\n"
    "    for part in tl.static_range(1, 2):\n"
    "        for n in tl.range(0, kv_blocks):\n"
    "            j = tl.load(columns + block * kv_blocks + n) * BLOCK\n"
    "            k_tile = k.load([head, j, 0]).reshape(BLOCK, HEAD_DIM)\n"
    "            v_tile = v.load([head, j, 0]).reshape(BLOCK, V_DIM)\n"
    "            seen = (n < listed) & (j + tl.arange(0, BLOCK)[None, :] < kv_seq)",
    says="You visit every block and mask those that are not listed: right values, and nothing saved.",
    hint="How far does the list of your row go?",
)
edit(
    "block_sparse_kernel",
    "unlisted_blocks_read_and_cleaned",
    replace="        for n in tl.range(edges[part], edges[part + 1]):\n"
    "            j = tl.load(columns + block * kv_blocks + n) * BLOCK\n"
    "            k_tile = k.load([head, j, 0]).reshape(BLOCK, HEAD_DIM)\n"
    "            v_tile = v.load([head, j, 0]).reshape(BLOCK, V_DIM)\n"
    "            seen = j + tl.arange(0, BLOCK)[None, :] < kv_seq\n",
    by="        for n in tl.range(0, kv_blocks if part == 1 else 0):\n"
    "            j = tl.load(columns + block * kv_blocks + n) * BLOCK\n"
    "            k_tile = k.load([head, j, 0]).reshape(BLOCK, HEAD_DIM)\n"
    "            v_tile = v.load([head, j, 0]).reshape(BLOCK, V_DIM)\n"
    "            v_tile = tl.where(v_tile == v_tile, v_tile, 0.0)\n"
    "            seen = (n < edges[2]) & (j + tl.arange(0, BLOCK)[None, :] < kv_seq)\n",
    says="You read every block and clean out what spoils the result, where you should skip what is not listed.",
    hint="What is never read needs no cleaning. How far does the list of your row go?",
)


@mistake(
    "block_sparse_kernel",
    says="torch computes the attention under a mask, and no kernel runs; the point is a kernel that skips.",
    hint="The function given under your kernel launches it. What should the kernel do?",
)
def masked_attention_in_torch(q, k, v, layout, block, scale=None):
    _check(q, k, v)
    if tuple(layout.shape) != (triton.cdiv(q.shape[-2], block), triton.cdiv(k.shape[-2], block)):
        raise ValueError("a layout of another size")
    seen = layout.repeat_interleave(block, 0).repeat_interleave(block, 1)[: q.shape[-2], : k.shape[-2]]
    scores = (q.unsqueeze(-2).float() * k.unsqueeze(-3).float()).sum(-1) * _scale(q, scale)
    scores = scores.masked_fill(~seen, -math.inf)
    weights = (scores - scores.logsumexp(-1, keepdim=True).clamp_min(-1e30)).exp()
    return (weights.unsqueeze(-1) * v.unsqueeze(-3).float()).sum(-2).to(q.dtype)


# autotune_space


@alternative("autotune_space")
def loops_and_a_budget(head_dim, device, resident=1, bytes_per_element=2):
    if not isinstance(device, int):
        device = torch.device(device)
        if device.type == "cpu":
            return [triton.Config({"BLOCK": 32, "STEP": 16}, num_warps=4, num_stages=1)]
        device = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    width = 16
    while width < head_dim:
        width *= 2
    found = []
    for block, stages in ((64, 2), (64, 3), (128, 3)):
        for step in (64, 128):
            rows = resident * block + stages * (step + step)
            if bytes_per_element <= 2 and rows * width * bytes_per_element <= device:
                found.append(triton.Config({"STEP": step, "BLOCK": block}, num_stages=stages, num_warps=block // 16))
    return found or [triton.Config({"BLOCK": 64, "STEP": 32}, num_warps=4, num_stages=1)]


edit(
    "autotune_space",
    "resident_tiles_forgotten",
    replace="(resident * b + 2 * n * s)",
    by="(2 * n * s)",
    says="You count the streamed tiles only; the tiles that a program keeps take room too.",
    hint="Which tiles does a program hold from its beginning to its end?",
)
edit(
    "autotune_space",
    "one_resident_tile",
    replace="resident * b + 2",
    by="b + 2",
    says="You count one resident tile, whatever `resident` says.",
    hint="A backward kernel keeps two tiles.",
)
edit(
    "autotune_space",
    "keys_without_values",
    replace="+ 2 * n * s",
    by="+ n * s",
    says="You count one streamed tile a stage; keys and values travel in pairs.",
    hint="What does the forward kernel load in every step?",
)
edit(
    "autotune_space",
    "stages_forgotten",
    replace="+ 2 * n * s",
    by="+ 2 * s",
    says="You count one stage, however many are in flight.",
    hint="A pipeline of three stages holds three pairs of tiles.",
)
edit(
    "autotune_space",
    "rows_as_wide_as_the_head",
    replace="_tile_dim(head_dim) * bytes_per_element",
    by="head_dim * bytes_per_element",
    says="Your rows are head_dim wide; a tile is as wide as the next power of two.",
    hint="How much room does a tile for head_dim 40 take?",
)
edit(
    "autotune_space",
    "elements_instead_of_bytes",
    replace="_tile_dim(head_dim) * bytes_per_element",
    by="_tile_dim(head_dim)",
    says="You compare a number of elements with a number of bytes.",
    hint="How many bytes does an element take?",
)
edit(
    "autotune_space",
    "exact_fits_left_out",
    replace="row_bytes <= device",
    by="row_bytes < device",
    says="You leave out what fits exactly.",
    hint="May tiles take all of the shared memory?",
)
edit(
    "autotune_space",
    "two_stages_with_large_blocks",
    replace=" if (b, n) != (128, 2)]",
    by="]",
    says="BLOCK 128 comes with 3 stages only: with one program on it, a short pipeline hides nothing.",
    hint="Read the candidates in the docstring again.",
)
edit(
    "autotune_space",
    "always_four_warps",
    replace="num_warps=w,",
    by="num_warps=4,",
    says="You use 4 warps whatever the block.",
    hint="A warpgroup of 4 warps belongs to 64 rows.",
)
edit(
    "autotune_space",
    "large_tiles_for_float32",
    replace="if bytes_per_element > 2 or not fitting:",
    by="if not fitting:",
    says="You offer large tiles for float32 too; its threefold products need their registers.",
    hint="What does the docstring say of float32?",
)
edit(
    "autotune_space",
    "nothing_fits",
    replace="if bytes_per_element > 2 or not fitting:",
    by="if bytes_per_element > 2:",
    says="Where nothing fits, your list is empty, and a kernel cannot be launched without a configuration.",
    hint="Which configuration is small enough to be worth a try anywhere?",
)
edit(
    "autotune_space",
    "a_cpu_like_a_gpu",
    replace="return [triton.Config(dict(SMALLEST), num_warps=4, num_stages=1)]",
    by="device = 1 << 20",
    says="A CPU gets the configurations of a GPU; the interpreter takes one, with small tiles.",
    hint="What does the docstring say of a CPU?",
)
