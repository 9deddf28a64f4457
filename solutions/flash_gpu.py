"""FlashAttention in Triton: reference kernels of the chapter `flash_gpu`.

Sources: Dao et al. 2022 (FlashAttention), Dao 2023 (FlashAttention-2), Dao et al. 2023 (Flash-Decoding),
Yang et al. 2024 (chunked linear attention), Tillet et al. 2019 (Triton).

Three ideas carry the whole file:

* A program owns `BLOCK` rows of its own axis and streams the other axis past them, `STEP` rows at a time.
* What a query at position p may see is a band of keys, p - back <= j <= p + ahead. Full attention, causal attention and
  sliding windows differ only in these two numbers, so one kernel serves them all and skips what lies outside the band.
* Tiles travel through tensor descriptors (the copy engine, on Hopper): rows past the end arrive as zeros, and are never
  written, so lengths that are no multiple of a tile need no masks on loads and stores.

On a machine without a GPU the kernels run in Triton's interpreter, as they do anywhere when TRITON_INTERPRET=1 is set
before Triton is imported.
"""

import math
import os

import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

INTERPRETED = bool(triton.knobs.runtime.interpret)
UNBOUNDED = 1 << 30
LOG2_E = math.log2(math.e)
PAD = 128
SMALLEST = {"BLOCK": 32, "STEP": 16}
# Kernels may read a global only if it is a compile-time constant.
FAR = tl.constexpr(UNBOUNDED)
LN_2 = tl.constexpr(math.log(2))

# ---------------------------------------------------------------------------------------------------------------------
# Triton basics
# ---------------------------------------------------------------------------------------------------------------------


@triton.jit
def _vector_scale_kernel(x, out, factor, size, BLOCK: tl.constexpr):
    """Program i writes out[at] = x[at] · factor for at = i · BLOCK … i · BLOCK + BLOCK − 1, as far as at < size.

    Args:
        x, out: pointers to the first of `size` elements, in one dtype.
        factor: number.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < size) * factor, mask=at < size)


def vector_scale(x, factor):
    """x · factor, elementwise.

    Args:
        x: any shape, floating point.
        factor: Python number.
    Returns:
        The shape and dtype of x.
    Source: Tillet et al. 2019 (Triton), §3.

    Example:
        >>> vector_scale(torch.tensor([1.0, -2.0]), 0.5)
        tensor([ 0.5000, -1.0000])
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        _vector_scale_kernel[(triton.cdiv(x.numel(), 1024),)](x, out, float(factor), x.numel(), BLOCK=1024)
    return out


@triton.jit
def _row_softmax_kernel(x, out, columns, BLOCK: tl.constexpr):
    """Program i writes the softmax of row i, computed in float32; a row of nothing but −inf gives zeros.

    Args:
        x, out: pointers to contiguous rows of `columns` elements, columns <= BLOCK (a power of two).
    """
    at = tl.program_id(0).to(tl.int64) * columns + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < columns
    row = tl.load(x + at, mask=inside, other=float("-inf")).to(tl.float32)
    peak = tl.max(row, 0)
    # A row of -inf has no finite peak to subtract; with 0 in its place every weight becomes exp(-inf) = 0.
    weights = tl.exp(row - tl.where(peak == float("-inf"), 0.0, peak))
    total = tl.sum(weights, 0)
    tl.store(out + at, (weights / tl.where(total == 0.0, 1.0, total)).to(out.dtype.element_ty), mask=inside)


def row_softmax(x):
    """Softmax over the last axis, each row read once and written once.

    Args:
        x: (..., columns). A row of nothing but -inf gives weights 0.
    Returns:
        (..., columns), dtype of x.
    Source: Milakov & Gimelshein 2018, §2 (safe softmax); Triton's fused softmax.

    Example:
        >>> row_softmax(torch.tensor([[0.0, math.log(3.0)]]))
        tensor([[0.2500, 0.7500]])
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        block = triton.next_power_of_2(x.shape[-1])
        rows = x.numel() // x.shape[-1]
        _row_softmax_kernel[(rows,)](x, out, x.shape[-1], BLOCK=block, num_warps=min(16, max(1, block // 256)))
    return out


@triton.jit
def _scores_kernel(q, k, out, scale, q_seq, kv_seq, HEAD_DIM: tl.constexpr, DIM: tl.constexpr,
                   BLOCK: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Program (i, j, h) writes tile (i, j) of head h: BLOCK queries times BLOCK keys, as far as they exist.

    Args:
        q, k, out: pointers to contiguous (heads, q_seq, HEAD_DIM), (heads, kv_seq, HEAD_DIM), (heads, q_seq, kv_seq).
        scale: number.
        DIM: power of two, at least HEAD_DIM and 16: the width of a tile.
        PRECISION: input_precision of tl.dot.
    """
    head = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    dims = tl.arange(0, DIM)
    in_q = (rows[:, None] < q_seq) & (dims[None, :] < HEAD_DIM)
    in_k = (cols[:, None] < kv_seq) & (dims[None, :] < HEAD_DIM)
    q_tile = tl.load(q + (head * q_seq + rows[:, None]) * HEAD_DIM + dims[None, :], mask=in_q, other=0.0)
    k_tile = tl.load(k + (head * kv_seq + cols[:, None]) * HEAD_DIM + dims[None, :], mask=in_k, other=0.0)
    scores = tl.dot(q_tile, k_tile.T, input_precision=PRECISION) * scale
    in_out = (rows[:, None] < q_seq) & (cols[None, :] < kv_seq)
    tl.store(
        out + (head * q_seq + rows[:, None]) * kv_seq + cols[None, :], scores.to(out.dtype.element_ty), mask=in_out
    )


def scores_kernel(q, k, scale=None):
    """q kᵀ · scale, one tile a program: the matrix that the kernels below never write.

    Args:
        q: (..., q_seq, head_dim), head_dim up to 128.
        k: (..., kv_seq, head_dim).
        scale: 1 / sqrt(head_dim) unless given.
    Returns:
        (..., q_seq, kv_seq), dtype of q.
    Source: Vaswani et al. 2017, eq. 1.

    Example:
        >>> scores_kernel(torch.ones(1, 16), torch.ones(2, 16))
        tensor([[4., 4.]])
    """
    _check(q, k)
    head_dim, q_seq, kv_seq = q.shape[-1], q.shape[-2], k.shape[-2]
    out = q.new_empty(*q.shape[:-1], kv_seq)
    heads = q.shape[:-2].numel()
    if out.numel():
        block = 32 if INTERPRETED else 64
        grid = (triton.cdiv(q_seq, block), triton.cdiv(kv_seq, block), heads)
        _scores_kernel[grid](q.contiguous(), k.contiguous(), out, head_dim**-0.5 if scale is None else scale, q_seq,
                             kv_seq, HEAD_DIM=head_dim, DIM=_tile_dim(head_dim), BLOCK=block,
                             PRECISION=_precision(q))  # fmt: skip
    return out


# ---------------------------------------------------------------------------------------------------------------------
# What every attention kernel shares
# ---------------------------------------------------------------------------------------------------------------------


def _check(*tensors):
    for x in tensors:
        if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise TypeError(f"the kernels take float16, bfloat16 or float32, not {x.dtype}")
        if x.dtype != tensors[0].dtype or x.device != tensors[0].device:
            raise TypeError("all inputs must have one dtype and lie on one device")
        if INTERPRETED and x.dtype == torch.bfloat16:
            raise TypeError(
                "Triton's interpreter multiplies bfloat16 wrongly without a word: use float32 or float16 there"
            )


def _scale(q, scale):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if not scale > 0:
        raise ValueError("scale must be positive: the running maximum is taken before scaling")
    return scale


def _precision(x):
    # Float32 inputs ask for float32 answers: one TF32 product, Triton's default, keeps 10 bits, three keep nearly all.
    return "tf32x3" if x.dtype == torch.float32 else "tf32"


def _multiprocessors(x):
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1


def _tile_dim(dim):
    return max(16, triton.next_power_of_2(dim))


def _rows(x):
    """(..., seq, dim) as (heads, seq, dim) that a descriptor can address: contiguous, rows of whole 16-byte units."""
    spare = -x.shape[-1] % (16 // x.element_size())
    x = F.pad(x, (0, spare)) if spare else x
    x = x.reshape(-1, *x.shape[-2:]).contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _tiles(rows, block=1):
    return TensorDescriptor.from_tensor(rows, [1, block, _tile_dim(rows.shape[-1])])


def autotune_space(head_dim, device, resident=1, bytes_per_element=2):
    """Configurations worth timing: those whose tiles fit the shared memory of one program.

    A program keeps `resident` tiles of BLOCK rows and `num_stages` pairs of streamed tiles of STEP rows. A warpgroup
    (4 warps) per 64 rows keeps the accumulator in registers. With 8 warps one program fills a multiprocessor, and only
    a deeper pipeline hides its loads; several small programs hide each other's.

    Candidates: BLOCK and STEP 64 or 128; BLOCK / 16 warps; 2 or 3 stages, with BLOCK = 128 only 3. Where nothing fits,
    and for float32, the one configuration BLOCK 64, STEP 32, 4 warps, 1 stage.

    Args:
        head_dim: 16 … 128; a row of a tile is as wide as the next power of two, at least 16.
        device: torch device or its name, or shared-memory bytes per program. A CPU gets the interpreter's single one:
            BLOCK 32, STEP 16, 4 warps, 1 stage.
        resident: tiles held for the whole program: 1 in the forward (q), 2 in each backward kernel.
        bytes_per_element: 2, or 4 for float32, whose threefold products need the registers of larger tiles.
    Returns:
        Non-empty list of triton.Config with BLOCK, STEP, num_warps, num_stages.
    Source: Dao 2023 (FlashAttention-2), §3.3.

    Example:
        >>> [c.kwargs["STEP"] for c in autotune_space(64, 99 * 1024) if c.kwargs["BLOCK"] == 128]
        [64]
    """
    if not isinstance(device, int) and torch.device(device).type == "cpu":
        return [triton.Config(dict(SMALLEST), num_warps=4, num_stages=1)]
    if not isinstance(device, int):
        device = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    row_bytes = _tile_dim(head_dim) * bytes_per_element
    shapes = [(b, s, b // 16, n) for b in (64, 128) for s in (64, 128) for n in (2, 3) if (b, n) != (128, 2)]
    fitting = [(b, s, w, n) for b, s, w, n in shapes if (resident * b + 2 * n * s) * row_bytes <= device]
    if bytes_per_element > 2 or not fitting:
        fitting = [(64, 32, 4, 1)]
    return [triton.Config({"BLOCK": b, "STEP": s}, num_warps=w, num_stages=n) for b, s, w, n in fitting]


def _autotuned(own, streamed, resident, key=()):
    """Autotune a kernel that keeps the descriptors `own` (BLOCK rows) and streams `streamed` (STEP rows).

    The first call of each kind decides, for the life of the process: make it one of the size that matters.
    Which configurations are timed says autotune_space; until that is written, one that fits everywhere has to do.
    """

    def shape_tiles(args):
        for name in (*own, *streamed):
            args[name].block_shape[1] = args["BLOCK"] if name in own else args["STEP"]

    def hooked(configs):
        for config in configs:
            config.pre_hook = shape_tiles
        return configs

    def fitting(configs, args, **meta):
        base = args[own[0]].base
        try:
            return hooked(autotune_space(meta["HEAD_DIM"], base.device, resident, base.element_size()))
        except (NameError, NotImplementedError):
            return configs[:1]

    # A single configuration is never pruned, and the interpreter takes no more than one.
    stages = (1,) if INTERPRETED else (1, 2)
    return triton.autotune(
        hooked([triton.Config(dict(SMALLEST), num_warps=4, num_stages=n) for n in stages]),
        key=["ahead", "HEAD_DIM", "V_DIM", "PRECISION", *key],
        prune_configs_by=None if INTERPRETED else {"early_config_prune": fitting},
    )


@triton.jit
def _visible(first, last, back, ahead, limit, STEP: tl.constexpr):
    """Where the band of positions first … last begins, is seen whole by all of them, stops being so, and ends.

    Position p sees p − back … p + ahead, within 0 … limit − 1. The first three edges are multiples of STEP. Tiles from
    the second to the third need no mask; nobody sees those before the first edge or from the fourth on.
    """
    begin = tl.maximum(first - back, 0) // STEP * STEP
    end = tl.minimum(last + ahead + 1, limit)
    whole_begin = tl.minimum(tl.cdiv(tl.maximum(last - back, 0), STEP), tl.cdiv(tl.maximum(end, 0), STEP)) * STEP
    whole_end = tl.maximum(tl.minimum(first + ahead + 1, limit), 0) // STEP * STEP
    return begin, whole_begin, tl.maximum(whole_begin, whole_end), end


# ---------------------------------------------------------------------------------------------------------------------
# Forward
# ---------------------------------------------------------------------------------------------------------------------


def _forward(q, k, v, scale, back, ahead):
    _check(q, k, v)
    scale = _scale(q, scale)
    q_seq, kv_seq, v_dim = q.shape[-2], k.shape[-2], v.shape[-1]
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    if not (lse.numel() and kv_seq):
        return q.new_zeros(*q.shape[:-1], v_dim), lse.fill_(-math.inf)
    q_rows, k_rows, v_rows = _rows(q), _rows(k), _rows(v)
    out = q.new_empty(len(q_rows), q_seq, v_rows.shape[-1])
    _forward_kernel[lambda meta: (triton.cdiv(q_seq, meta["BLOCK"]), len(q_rows))](
        _tiles(q_rows), _tiles(k_rows), _tiles(v_rows), _tiles(out), lse, scale * LOG2_E, back, ahead, q_seq, kv_seq,
        GROUP=len(q_rows) // len(k_rows), WINDOWED=back < UNBOUNDED,
        HEAD_DIM=_tile_dim(q.shape[-1]), V_DIM=_tile_dim(v_dim), PRECISION=_precision(q),
    )  # fmt: skip
    return out[..., :v_dim].reshape(*q.shape[:-1], v_dim), lse


@triton.jit
def _online_softmax(acc, total, peak, q, k, v, scale_log2, seen, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """One step of the online softmax, in base 2: exp2 is one instruction, log2(e) costs nothing inside the scale.

    Args:
        acc: (BLOCK, V_DIM), float32: sum of weights times values so far, relative to the running maximum.
        total: (BLOCK,): sum of weights so far, relative to the same.
        peak: (BLOCK,): largest scaled score so far, in base 2; -inf while a row has seen nothing.
        q, k, v: (BLOCK, HEAD_DIM), (STEP, HEAD_DIM) and (STEP, V_DIM) tiles.
        scale_log2: scale · log2(e), positive.
        seen: (BLOCK, STEP): True = may attend; to be read only where MASKED.
    Returns:
        acc, total, peak: with the tile of keys taken in.
    """
    scores = tl.dot(q, k.T, input_precision=PRECISION)
    if MASKED:
        scores = tl.where(seen, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
    # While a row has seen nothing its peak is -inf, and -inf - -inf would be NaN.
    base = tl.where(new_peak == float("-inf"), 0.0, new_peak) if MASKED else new_peak
    weights = tl.exp2(scores * scale_log2 - base[:, None])
    shrink = tl.exp2(peak - base)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return acc, total * shrink + tl.sum(weights, 1), new_peak


@_autotuned(own=("q", "out"), streamed=("k", "v"), resident=1, key=("WINDOWED",))
@triton.jit
def _forward_kernel(q, k, v, out, lse, scale_log2, back, ahead, q_seq, kv_seq, GROUP: tl.constexpr,
                    WINDOWED: tl.constexpr, HEAD_DIM: tl.constexpr, V_DIM: tl.constexpr, PRECISION: tl.constexpr,
                    BLOCK: tl.constexpr, STEP: tl.constexpr):  # fmt: skip
    """A program owns BLOCK queries of one head and streams the keys and values of their band past them.

    Args:
        q, k, v, out: descriptors of (heads, seq, dim); q and out are cut in tiles of BLOCK rows, k and v of STEP rows.
        lse: pointer to contiguous (heads, q_seq), float32, natural logarithm.
        scale_log2: scale · log2(e).
        back, ahead: the query at position p = i + kv_seq − q_seq sees keys p − back … p + ahead.
        GROUP: query head h reads head h // GROUP of k and v.
        WINDOWED: whether back hides anything; if not, the tiles at the lower edge need no mask.
    """
    # Causal blocks grow towards the end of the sequence: the longest start, the short ones fill the gaps at the end.
    start = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK
    head = tl.program_id(1)
    shift = kv_seq - q_seq
    rows = start + tl.arange(0, BLOCK)
    seen_from, seen_to = rows[:, None] + shift - back, tl.minimum(rows[:, None] + shift + ahead, kv_seq - 1)
    edges = _visible(start + shift, start + shift + BLOCK - 1, back, ahead, kv_seq, STEP)
    q_tile = q.load([head, start, 0]).reshape(BLOCK, HEAD_DIM)
    acc = tl.zeros([BLOCK, V_DIM], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    peak = tl.full([BLOCK], float("-inf"), tl.float32)
    # Three loops, masked, unmasked, masked: a comparison for every score would cost 15–20 %.
    for part in tl.static_range(0 if WINDOWED else 1, 3):
        for j in tl.range(edges[part], edges[part + 1], STEP):
            k_tile = k.load([head // GROUP, j, 0]).reshape(STEP, HEAD_DIM)
            v_tile = v.load([head // GROUP, j, 0]).reshape(STEP, V_DIM)
            cols = j + tl.arange(0, STEP)[None, :]
            seen = (seen_from <= cols) & (cols <= seen_to)
            acc, total, peak = _online_softmax(
                acc, total, peak, q_tile, k_tile, v_tile, scale_log2, seen, part != 1, PRECISION
            )
    total = tl.where(total == 0.0, 1.0, total)
    out.store([head, start, 0], (acc / total[:, None]).to(out.dtype).reshape(1, BLOCK, V_DIM))
    tl.store(lse + head.to(tl.int64) * q_seq + rows, (peak + tl.log2(total)) * LN_2, mask=rows < q_seq)


def flash_forward(q, k, v, causal=False, scale=None):
    """Exact attention without the score matrix.

    Args:
        q: (..., q_seq, head_dim), head_dim 16 … 128.
        k: (..., kv_seq, head_dim).
        v: (..., kv_seq, v_dim).
        causal: query i sees key j <= i + kv_seq - q_seq.
        scale: positive; 1 / sqrt(head_dim) unless given.
    Returns:
        out: (..., q_seq, v_dim), dtype of q; 0 for a query that sees nothing.
        lse: (..., q_seq), float32, natural logarithm of the sum of exp(scaled scores); -inf for such a query.
    Source: Dao 2023 (FlashAttention-2), Algorithm 1.

    Example:
        >>> flash_forward(torch.zeros(1, 16), torch.ones(2, 16), torch.ones(2, 16))[1]
        tensor([0.6931])
    """
    return _forward(q, k, v, scale, UNBOUNDED, 0 if causal else UNBOUNDED)


def flash_forward_gqa(q, k, v, causal=False, scale=None):
    """Grouped-query attention; k and v are shared inside a group, never repeated in memory.

    Args:
        q: (..., heads, q_seq, head_dim).
        k: (..., kv_heads, kv_seq, head_dim), heads a multiple of kv_heads; query head h reads h // (heads / kv_heads).
        v: (..., kv_heads, kv_seq, v_dim).
        causal, scale: as in flash_forward.
    Returns:
        out (..., heads, q_seq, v_dim) and lse (..., heads, q_seq).
    Raises:
        ValueError: heads is no multiple of kv_heads.
    Source: Ainslie et al. 2023, §2.2.

    Example:
        >>> flash_forward_gqa(torch.zeros(4, 1, 16), torch.ones(2, 3, 16), torch.ones(2, 3, 16))[0].shape
        torch.Size([4, 1, 16])
    """
    if q.shape[-3] % k.shape[-3]:
        raise ValueError(f"{q.shape[-3]} heads cannot share {k.shape[-3]} kv_heads evenly")
    return _forward(q, k, v, scale, UNBOUNDED, 0 if causal else UNBOUNDED)


def flash_forward_window(q, k, v, window, causal=True, scale=None):
    """Sliding-window attention that visits only the tiles of its band.

    Args:
        q, k, v, scale: as in flash_forward; p = i + kv_seq - q_seq is the position of query i.
        window: causal: 0 <= p - j < window; otherwise |p - j| <= window // 2.
    Returns:
        out (..., q_seq, v_dim) and lse (..., q_seq).
    Source: Beltagy et al. 2020 (Longformer), §3.1.

    Example:
        >>> flash_forward_window(torch.zeros(4, 16), torch.ones(4, 16), torch.ones(4, 16), window=2)[1]
        tensor([0.0000, 0.6931, 0.6931, 0.6931])
    """
    back, ahead = (window - 1, 0) if causal else (window // 2, window // 2)
    return _forward(q, k, v, scale, back, ahead)


# ---------------------------------------------------------------------------------------------------------------------
# Backward
# ---------------------------------------------------------------------------------------------------------------------


@triton.jit
def _delta_kernel(out, d_out, lse, lse_log2, delta, q_seq, padded, V_DIM: tl.constexpr, BLOCK: tl.constexpr):
    """delta = rowsum(out · d_out), and lse in base 2: +inf, so weight 0, for rows that see nothing or do not exist.

    Args:
        out, d_out: descriptors of (heads, q_seq, V_DIM), cut in tiles of BLOCK rows.
        lse: pointer to contiguous (heads, q_seq), natural logarithm.
        lse_log2, delta: pointers to contiguous (heads, padded), written whole; padded is q_seq rounded up to BLOCK.
    """
    start, head = tl.program_id(0) * BLOCK, tl.program_id(1)
    rows = start + tl.arange(0, BLOCK)
    product = out.load([head, start, 0]).to(tl.float32) * d_out.load([head, start, 0]).to(tl.float32)
    log_sum = tl.load(lse + head.to(tl.int64) * q_seq + rows, mask=rows < q_seq, other=float("-inf"))
    at = head.to(tl.int64) * padded + rows
    tl.store(delta + at, tl.sum(product.reshape(BLOCK, V_DIM), 1))
    tl.store(lse_log2 + at, tl.where(log_sum == float("-inf"), float("inf"), log_sum / LN_2))


@_autotuned(own=("k", "v", "d_k", "d_v"), streamed=("q", "d_out"), resident=2)
@triton.jit
def _dkdv_kernel(q, k, v, d_out, d_k, d_v, lse_log2, delta, scale, scale_log2, ahead, q_seq, kv_seq, padded,
                 HEAD_DIM: tl.constexpr, V_DIM: tl.constexpr, PRECISION: tl.constexpr,
                 BLOCK: tl.constexpr, STEP: tl.constexpr):  # fmt: skip
    """A program owns BLOCK keys of one head and streams the queries that see them past.

    Args:
        q, k, v, d_out, d_k, d_v: descriptors; k, v, d_k, d_v are cut in tiles of BLOCK rows, q and d_out of STEP rows.
        lse_log2, delta: pointers to contiguous (heads, padded), as _delta_kernel wrote them.
        scale, scale_log2: scale, and scale · log2(e).
        ahead: the query at position p = i + kv_seq − q_seq sees keys up to p + ahead.
    """
    start, head = tl.program_id(0) * BLOCK, tl.program_id(1)
    shift = kv_seq - q_seq
    cols = start + tl.arange(0, BLOCK)[:, None]
    # Seen from a key, the band is mirrored: the queries from `ahead` before it to the end.
    begin, whole, _, end = _visible(start - shift, start - shift + BLOCK - 1, ahead, FAR, padded, STEP)
    edges = (begin, whole, end)
    k_tile = k.load([head, start, 0]).reshape(BLOCK, HEAD_DIM)
    v_tile = v.load([head, start, 0]).reshape(BLOCK, V_DIM)
    dk = tl.zeros([BLOCK, HEAD_DIM], tl.float32)
    dv = tl.zeros([BLOCK, V_DIM], tl.float32)
    for part in tl.static_range(2):
        for i in tl.range(edges[part], edges[part + 1], STEP):
            rows = i + tl.arange(0, STEP)
            at = head.to(tl.int64) * padded + rows
            q_tile = q.load([head, i, 0]).reshape(STEP, HEAD_DIM)
            do_tile = d_out.load([head, i, 0]).reshape(STEP, V_DIM)
            # Transposed tiles (keys × queries) leave the weights in registers, ready as left operand of both products.
            scores = tl.dot(k_tile, q_tile.T, input_precision=PRECISION)
            weights = tl.exp2(scores * scale_log2 - tl.load(lse_log2 + at)[None, :])
            if part == 0:
                weights = tl.where(cols <= rows[None, :] + shift + ahead, weights, 0.0)
            dv = tl.dot(weights.to(do_tile.dtype), do_tile, dv, input_precision=PRECISION)
            d_weights = tl.dot(v_tile, do_tile.T, input_precision=PRECISION)
            d_scores = weights * (d_weights - tl.load(delta + at)[None, :])
            dk = tl.dot(d_scores.to(q_tile.dtype), q_tile, dk, input_precision=PRECISION)
    d_k.store([head, start, 0], (dk * scale).to(d_k.dtype).reshape(1, BLOCK, HEAD_DIM))
    d_v.store([head, start, 0], dv.to(d_v.dtype).reshape(1, BLOCK, V_DIM))


@_autotuned(own=("q", "d_out", "d_q"), streamed=("k", "v"), resident=2)
@triton.jit
def _dq_kernel(q, k, v, d_out, d_q, lse_log2, delta, scale, scale_log2, ahead, q_seq, kv_seq, padded,
               HEAD_DIM: tl.constexpr, V_DIM: tl.constexpr, PRECISION: tl.constexpr,
               BLOCK: tl.constexpr, STEP: tl.constexpr):  # fmt: skip
    """A program owns BLOCK queries of one head and streams the keys that they see past.

    Args:
        q, k, v, d_out, d_q: descriptors; q, d_out, d_q are cut in tiles of BLOCK rows, k and v of STEP rows.
        The rest is as in _dkdv_kernel.
    """
    start = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK
    head = tl.program_id(1)
    shift = kv_seq - q_seq
    rows = start + tl.arange(0, BLOCK)
    seen_to = tl.minimum(rows[:, None] + shift + ahead, kv_seq - 1)
    edges = _visible(start + shift, start + shift + BLOCK - 1, FAR, ahead, kv_seq, STEP)
    q_tile = q.load([head, start, 0]).reshape(BLOCK, HEAD_DIM)
    do_tile = d_out.load([head, start, 0]).reshape(BLOCK, V_DIM)
    log_sum = tl.load(lse_log2 + head.to(tl.int64) * padded + rows)
    row_delta = tl.load(delta + head.to(tl.int64) * padded + rows)
    dq = tl.zeros([BLOCK, HEAD_DIM], tl.float32)
    for part in tl.static_range(1, 3):
        for j in tl.range(edges[part], edges[part + 1], STEP):
            k_tile = k.load([head, j, 0]).reshape(STEP, HEAD_DIM)
            v_tile = v.load([head, j, 0]).reshape(STEP, V_DIM)
            scores = tl.dot(q_tile, k_tile.T, input_precision=PRECISION)
            d_weights = tl.dot(do_tile, v_tile.T, input_precision=PRECISION)
            weights = tl.exp2(scores * scale_log2 - log_sum[:, None])
            if part == 2:
                weights = tl.where(j + tl.arange(0, STEP)[None, :] <= seen_to, weights, 0.0)
            d_scores = weights * (d_weights - row_delta[:, None])
            dq = tl.dot(d_scores.to(k_tile.dtype), k_tile, dq, input_precision=PRECISION)
    d_q.store([head, start, 0], (dq * scale).to(d_q.dtype).reshape(1, BLOCK, HEAD_DIM))


def flash_backward(q, k, v, out, lse, d_out, causal=False, scale=None):
    """Gradients of flash_forward, weights recomputed from lse.

    dQ has a kernel of its own: it repeats two of the seven products, but needs no atomic additions, so the result is
    the same bit for bit on every run.

    Args:
        q, k, v, causal, scale: as in flash_forward.
        out: (..., q_seq, v_dim) and lse: (..., q_seq), as it returned them.
        d_out: (..., q_seq, v_dim), gradient of the loss with respect to out.
    Returns:
        d_q, d_k, d_v: shapes and dtypes of q, k, v.
    Source: Dao 2023 (FlashAttention-2), Algorithm 2.

    Example:
        >>> q, k, v = torch.zeros(1, 16), torch.zeros(2, 16), torch.zeros(2, 16)
        >>> flash_backward(q, k, v, *flash_forward(q, k, v), torch.ones(1, 16))[2][:, 0]
        tensor([0.5000, 0.5000])
    """
    _check(q, k, v, out, d_out)
    scale = _scale(q, scale)
    if not (lse.numel() and k.shape[-2]):
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    rows = [_rows(x) for x in (q, k, v, d_out)]
    d_q, d_k, d_v = (torch.empty_like(x) for x in rows[:3])
    heads, q_seq, kv_seq = len(rows[0]), q.shape[-2], k.shape[-2]
    dims = {"HEAD_DIM": _tile_dim(q.shape[-1]), "V_DIM": _tile_dim(v.shape[-1])}
    padded = triton.cdiv(q_seq, PAD) * PAD
    lse_log2, delta = lse.new_empty(2, heads, padded)
    _delta_kernel[(padded // PAD, heads)](
        _tiles(_rows(out), PAD), _tiles(rows[3], PAD), lse.contiguous(), lse_log2, delta, q_seq, padded,
        V_DIM=dims["V_DIM"], BLOCK=PAD)  # fmt: skip
    shared = (lse_log2, delta, scale, scale * LOG2_E, 0 if causal else UNBOUNDED, q_seq, kv_seq, padded)
    for kernel, grads, seq in ((_dkdv_kernel, (d_k, d_v), kv_seq), (_dq_kernel, (d_q,), q_seq)):
        kernel[lambda meta, seq=seq: (triton.cdiv(seq, meta["BLOCK"]), heads)](
            *map(_tiles, rows), *map(_tiles, grads), *shared, **dims, PRECISION=_precision(q))  # fmt: skip
    return tuple(d[..., : x.shape[-1]].reshape(x.shape) for d, x in zip((d_q, d_k, d_v), (q, k, v), strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Decoding
# ---------------------------------------------------------------------------------------------------------------------


@triton.jit
def _decode_kernel(q, k, v, partial, partial_lse, scale_log2, kv_seq, share, rows_total, HEAD_DIM: tl.constexpr,
                   V_DIM: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr):  # fmt: skip
    """Program (s, h) lets all queries of group h attend to part s of their keys: s · share … (s + 1) · share − 1.

    Args:
        q: descriptor of (kv_heads, rows_total, HEAD_DIM): the heads of a group are the rows of one tile of BLOCK rows.
        k, v: descriptors of (kv_heads, kv_seq, dim), cut in tiles of STEP rows; share is a multiple of STEP.
        partial: descriptor of (kv_heads · splits, rows_total, V_DIM), float32: output of each part, normalised.
        partial_lse: pointer to contiguous (kv_heads · splits, rows_total), in base 2.
        scale_log2: scale · log2(e).
    """
    split, head = tl.program_id(0), tl.program_id(1)
    rows = tl.arange(0, BLOCK)
    q_tile = q.load([head, 0, 0]).reshape(BLOCK, HEAD_DIM)
    acc = tl.zeros([BLOCK, V_DIM], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    peak = tl.full([BLOCK], float("-inf"), tl.float32)
    for j in tl.range(split * share, tl.minimum((split + 1) * share, kv_seq), STEP):
        k_tile = k.load([head, j, 0]).reshape(STEP, HEAD_DIM)
        v_tile = v.load([head, j, 0]).reshape(STEP, V_DIM)
        seen = j + tl.arange(0, STEP)[None, :] < kv_seq
        acc, total, peak = _online_softmax(acc, total, peak, q_tile, k_tile, v_tile, scale_log2, seen, True, PRECISION)
    slot = head * tl.num_programs(0) + split
    total = tl.where(total == 0.0, 1.0, total)
    partial.store([slot, 0, 0], (acc / total[:, None]).reshape(1, BLOCK, V_DIM))
    tl.store(partial_lse + slot.to(tl.int64) * rows_total + rows, peak + tl.log2(total), mask=rows < rows_total)


@triton.jit
def _merge_kernel(partial, partial_lse, out, lse, splits, rows_total, DIM, SPLITS: tl.constexpr, V_DIM: tl.constexpr):
    """Program (h, r) joins the parts of row r of group h, each with the share of its exp2(lse).

    Args:
        partial, partial_lse: pointers to what _decode_kernel wrote; a row of partial holds DIM elements.
        out: pointer to contiguous (kv_heads, rows_total, DIM).
        lse: pointer to contiguous (kv_heads, rows_total), natural logarithm.
        SPLITS, V_DIM: powers of two, at least `splits` and DIM.
    """
    head, row = tl.program_id(0).to(tl.int64), tl.program_id(1)
    parts, dims = tl.arange(0, SPLITS), tl.arange(0, V_DIM)
    slot = (head * splits + parts) * rows_total + row
    logs = tl.load(partial_lse + slot, mask=parts < splits, other=float("-inf"))
    peak = tl.max(logs, 0)
    shares = tl.exp2(logs - tl.where(peak == float("-inf"), 0.0, peak))
    total = tl.sum(shares, 0)
    total = tl.where(total == 0.0, 1.0, total)
    inside = (parts[:, None] < splits) & (dims[None, :] < DIM)
    tile = tl.load(partial + slot[:, None] * DIM + dims[None, :], mask=inside, other=0.0)
    merged = tl.sum(tile * shares[:, None], 0) / total
    tl.store(out + (head * rows_total + row) * DIM + dims, merged.to(out.dtype.element_ty), mask=dims < DIM)
    tl.store(lse + head * rows_total + row, (peak + tl.log2(total)) * LN_2)


def flash_decode(q, k, v, splits=None, scale=None):
    """One query against a long cache: the cache is split among programs, a second kernel merges.

    Args:
        q: (..., heads, 1, head_dim).
        k: (..., kv_heads, kv_seq, head_dim); the heads of a group are the rows of one tile, so the cache is read once.
        v: (..., kv_heads, kv_seq, v_dim).
        splits: parts of the cache; chosen to fill the device unless given.
        scale: as in flash_forward.
    Returns:
        out (..., heads, 1, v_dim) and lse (..., heads, 1).
    Source: Dao et al. 2023 (Flash-Decoding).

    Example:
        >>> flash_decode(torch.zeros(1, 1, 16), torch.ones(1, 8, 16), torch.ones(1, 8, 16), splits=2)[1]
        tensor([[2.0794]])
    """
    _check(q, k, v)
    kv_seq, v_dim = k.shape[-2], v.shape[-1]
    group = q.shape[-3] // k.shape[-3]
    if q.shape[-2] != 1 or q.shape[-3] != group * k.shape[-3]:
        raise ValueError("flash_decode takes one query a head, and heads a multiple of kv_heads")
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    if not (lse.numel() and kv_seq):
        return q.new_zeros(*q.shape[:-1], v_dim), lse.fill_(-math.inf)
    k_rows, v_rows = _rows(k), _rows(v)
    q_rows = _rows(q.reshape(len(k_rows), group, q.shape[-1]))
    step = 16 if INTERPRETED else 64
    if splits is None:
        splits = min(triton.cdiv(4 * _multiprocessors(q), len(k_rows)), triton.cdiv(kv_seq, 4 * step), 128)
    share = triton.cdiv(triton.cdiv(kv_seq, splits), step) * step
    splits = triton.cdiv(kv_seq, share)
    partial = lse.new_empty(len(k_rows) * splits, group, triton.cdiv(v_dim, 4) * 4)
    partial_lse = lse.new_empty(partial.shape[:2])
    out = q.new_empty(len(k_rows), group, partial.shape[-1])
    block = max(16, triton.next_power_of_2(group))
    _decode_kernel[(splits, len(k_rows))](
        _tiles(q_rows, block), _tiles(k_rows, step), _tiles(v_rows, step),
        _tiles(partial, block), partial_lse,
        _scale(q, scale) * LOG2_E, kv_seq, share, group,
        HEAD_DIM=_tile_dim(q.shape[-1]), V_DIM=_tile_dim(v_dim), PRECISION=_precision(q), BLOCK=block, STEP=step,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    _merge_kernel[(len(k_rows), group)](partial, partial_lse, out, lse, splits, group, partial.shape[-1],
                                        SPLITS=triton.next_power_of_2(splits), V_DIM=_tile_dim(v_dim))  # fmt: skip
    return out[..., :v_dim].reshape(*q.shape[:-1], v_dim), lse


# ---------------------------------------------------------------------------------------------------------------------
# Linear and block-sparse attention
# ---------------------------------------------------------------------------------------------------------------------


@triton.jit
def _linear_kernel(q, k, v, out, seq, HEAD_DIM: tl.constexpr, V_BLOCK: tl.constexpr, CHUNK: tl.constexpr,
                   PRECISION: tl.constexpr):  # fmt: skip
    """Program (c, h) walks along head h, chunk by chunk, and writes columns c · V_BLOCK … of its output.

    Args:
        q, k: descriptors of (heads, seq, HEAD_DIM), cut in tiles of CHUNK rows.
        v, out: descriptors of (heads, seq, v_dim), cut in tiles of CHUNK rows and V_BLOCK columns.
    """
    column, head = tl.program_id(0) * V_BLOCK, tl.program_id(1)
    state = tl.zeros([HEAD_DIM, V_BLOCK], tl.float32)
    key_sum = tl.zeros([HEAD_DIM], tl.float32)
    past = tl.arange(0, CHUNK)[:, None] >= tl.arange(0, CHUNK)[None, :]
    for i in tl.range(0, seq, CHUNK):
        q_tile = q.load([head, i, 0]).reshape(CHUNK, HEAD_DIM)
        k_tile = k.load([head, i, 0]).reshape(CHUNK, HEAD_DIM)
        v_tile = v.load([head, i, column]).reshape(CHUNK, V_BLOCK)
        scores = tl.where(past, tl.dot(q_tile, k_tile.T, input_precision=PRECISION), 0.0)
        # The state grows with the sequence, out of float16's range: it meets the queries in (tensor) float32.
        q_wide = q_tile.to(tl.float32)
        acc = tl.dot(q_wide, state, input_precision=PRECISION)
        acc = tl.dot(scores.to(v_tile.dtype), v_tile, acc, input_precision=PRECISION)
        total = tl.sum(scores, 1) + tl.sum(q_wide * key_sum[None, :], 1)
        out.store(
            [head, i, column],
            (acc / tl.where(total == 0.0, 1.0, total)[:, None]).to(out.dtype).reshape(1, CHUNK, V_BLOCK),
        )
        state = tl.dot(k_tile.T, v_tile, state, input_precision=PRECISION)
        key_sum += tl.sum(k_tile.to(tl.float32), 0)


def linear_attention_chunk_kernel(q, k, v, chunk=64):
    """Causal linear attention, quadratic inside a chunk, a running state between chunks.

    out_i = q_i · Σ_{j<=i} k_j v_jᵀ / (q_i · Σ_{j<=i} k_j).

    Args:
        q, k: (..., seq, head_dim), already mapped to positive features.
        v: (..., seq, v_dim).
        chunk: power of two, 16 or more.
    Returns:
        (..., seq, v_dim), dtype of q.
    Source: Yang et al. 2024 (gated linear attention), §3.

    Example:
        >>> linear_attention_chunk_kernel(torch.ones(3, 16), torch.ones(3, 16), torch.eye(3, 16), 16)[2, :3]
        tensor([0.3333, 0.3333, 0.3333])
    """
    _check(q, k, v)
    v_dim = v.shape[-1]
    if not (q.numel() and v.numel()):
        return q.new_zeros(*q.shape[:-1], v_dim)
    q_rows, k_rows, v_rows = _rows(q), _rows(k), _rows(v)
    out = torch.empty_like(v_rows)
    # Columns of v are independent. Splitting them gives more programs, and reads q and k once more for each part.
    v_block = min(64 if len(q_rows) >= _multiprocessors(q) else 32, _tile_dim(v_dim))
    _linear_kernel[(triton.cdiv(v_dim, v_block), len(q_rows))](
        _tiles(q_rows, chunk), _tiles(k_rows, chunk), TensorDescriptor.from_tensor(v_rows, [1, chunk, v_block]),
        TensorDescriptor.from_tensor(out, [1, chunk, v_block]), q.shape[-2], HEAD_DIM=_tile_dim(q.shape[-1]),
        V_BLOCK=v_block, CHUNK=chunk, PRECISION=_precision(q), num_warps=4, num_stages=3,
    )  # fmt: skip
    return out[..., :v_dim].reshape(*q.shape[:-1], v_dim)


@triton.jit
def _block_sparse_kernel(q, k, v, out, order, columns, ends, scale_log2, kv_seq, kv_blocks, HEAD_DIM: tl.constexpr,
                         V_DIM: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Program (h, n) lets the n-th longest row of blocks attend, for head h, to the blocks that are listed for it.

    Args:
        q, k, v, out: descriptors of (heads, seq, dim), cut in tiles of BLOCK rows.
        order: pointer to (q_blocks,): rows of blocks by falling length.
        columns: pointer to contiguous (q_blocks, kv_blocks): each row lists its blocks of keys first, in rising order.
        ends: pointer to contiguous (q_blocks, 2): how many listed blocks are whole, and how many there are; only a last
            block of keys that ends beyond kv_seq is not whole, and needs a mask.
        scale_log2: scale · log2(e).
    """
    # A global row has as many blocks as a hundred others: rows start by falling length, all heads of a row together.
    head, block = tl.program_id(0), tl.load(order + tl.program_id(1))
    q_tile = q.load([head, block * BLOCK, 0]).reshape(BLOCK, HEAD_DIM)
    acc = tl.zeros([BLOCK, V_DIM], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    peak = tl.full([BLOCK], float("-inf"), tl.float32)
    edges = (0, tl.load(ends + 2 * block), tl.load(ends + 2 * block + 1))
    for part in tl.static_range(2):
        for n in tl.range(edges[part], edges[part + 1]):
            j = tl.load(columns + block * kv_blocks + n) * BLOCK
            k_tile = k.load([head, j, 0]).reshape(BLOCK, HEAD_DIM)
            v_tile = v.load([head, j, 0]).reshape(BLOCK, V_DIM)
            seen = j + tl.arange(0, BLOCK)[None, :] < kv_seq
            acc, total, peak = _online_softmax(
                acc, total, peak, q_tile, k_tile, v_tile, scale_log2, seen, part == 1, PRECISION
            )
    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    out.store([head, block * BLOCK, 0], result.to(out.dtype).reshape(1, BLOCK, V_DIM))


def block_sparse_kernel(q, k, v, layout, block, scale=None):
    """Attention over the listed blocks only; time follows their number.

    Args:
        q: (..., q_seq, head_dim).
        k: (..., kv_seq, head_dim).
        v: (..., kv_seq, v_dim).
        layout: bool (ceil(q_seq / block), ceil(kv_seq / block)); True = the queries of that block see its keys.
        block: power of two, 16 … 128.
        scale: as in flash_forward.
    Returns:
        (..., q_seq, v_dim), dtype of q; 0 where a row of the layout is empty.
    Source: Dao et al. 2022 (FlashAttention), §3.3.

    Example:
        >>> layout = torch.tensor([[True, False]])
        >>> block_sparse_kernel(torch.zeros(1, 16), torch.ones(32, 16), torch.eye(32, 16), layout, 16)[0, :2]
        tensor([0.0625, 0.0625])
    """
    _check(q, k, v)
    q_seq, kv_seq, v_dim = q.shape[-2], k.shape[-2], v.shape[-1]
    q_blocks, kv_blocks = triton.cdiv(q_seq, block), triton.cdiv(kv_seq, block)
    layout = layout.to(device=q.device, dtype=torch.bool)
    if layout.shape != (q_blocks, kv_blocks):
        raise ValueError(f"layout must be ({q_blocks}, {kv_blocks}), not {tuple(layout.shape)}")
    if not (q.numel() and v.numel()):
        return q.new_zeros(*q.shape[:-1], v_dim)
    columns = torch.argsort(layout.int(), dim=-1, descending=True, stable=True).to(torch.int32)
    count = layout.sum(-1)
    # Only the last block of keys can be partial; being the last of its row, it alone is masked.
    partial_blocks = layout[:, -1].long() * int(kv_seq % block != 0)
    ends = torch.stack([count - partial_blocks, count], -1).to(torch.int32)
    q_rows, k_rows, v_rows = _rows(q), _rows(k), _rows(v)
    out = q.new_empty(len(q_rows), q_seq, v_rows.shape[-1])
    order = count.argsort(descending=True).to(torch.int32)
    _block_sparse_kernel[(len(q_rows), q_blocks)](
        *(_tiles(x, block) for x in (q_rows, k_rows, v_rows, out)), order, columns, ends,
        _scale(q, scale) * LOG2_E, kv_seq, kv_blocks, HEAD_DIM=_tile_dim(q.shape[-1]),
        V_DIM=_tile_dim(v_dim), PRECISION=_precision(q), BLOCK=block, num_warps=8 if block == 128 else 4, num_stages=3,
    )  # fmt: skip
    return out[..., :v_dim].reshape(*q.shape[:-1], v_dim)
