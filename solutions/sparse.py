"""Sparse attention, fixed and content-based patterns: the reference solutions of chapter `sparse`.

Full attention scores every pair of tokens. Most pairs matter little, and a sparse mechanism decides beforehand which
ones to score: by where they stand (windows, strides, blocks, a few global tokens) or by what they say (hashing,
clustering). A mask alone saves nothing; the functions that compute here never form the scores they leave out.

Papers:
    Child, Gray, Radford, Sutskever (2019), Generating Long Sequences with Sparse Transformers, 1904.10509
    Qiu et al. (2019), Blockwise Self-Attention for Long Document Understanding, 1911.02972
    Kitaev, Kaiser, Levskaya (2020), Reformer: The Efficient Transformer, 2001.04451
    Roy et al. (2020), Efficient Content-Based Sparse Attention with Routing Transformers, 2003.05997
    Beltagy, Peters, Cohan (2020), Longformer: The Long-Document Transformer, 2004.05150
    Zaheer et al. (2020), Big Bird: Transformers for Longer Sequences, 2007.14062
    Dao et al. (2022), FlashAttention, 2205.14135 (section 3.3, block-sparse attention)

Glossary:
    q_seq, kv_seq, seq  how many queries; how many keys and values; both, where they are the same tokens
    window              how wide a band is: causal 0 ≤ i − j < window, otherwise |i − j| ≤ window // 2
    block, blocks       how many neighbouring tokens form a block; how many blocks there are
    layout              which blocks of keys a block of queries reads, as booleans (q_blocks, kv_blocks)
    rounds, half        how many times tokens are hashed; half the number of buckets
    clusters            how many centroids tokens are routed to

Masks are boolean and True means "may attend". Where q_seq ≠ kv_seq, query i stands at position i + kv_seq − q_seq.
A query with nothing to attend to gets output 0. Scores are scaled by 1/√head_dim.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def masked_softmax(scores: Float[Tensor, "*shape"], mask: Bool[Tensor, "..."]) -> Float[Tensor, "*shape"]:
    """Softmax along the last axis over the entries where `mask` is True; weights 0 where a row has none.

    Args:
        scores: (*shape).
        mask: True where an entry counts, broadcastable to (*shape).

    Returns:
        (*shape), in the dtype of `scores`; never NaN, and neither is its gradient.

    Example:
        >>> masked_softmax(torch.zeros(2, 3), torch.tensor([[True, True, False], [False, False, False]]))
        tensor([[0.5000, 0.5000, 0.0000],
                [0.0000, 0.0000, 0.0000]])
    """
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return weights * mask.any(dim=-1, keepdim=True)


def sliding_window_mask(q_seq: int, kv_seq: int, window: int, causal: bool) -> Bool[Tensor, "q_seq kv_seq"]:
    """A band around the diagonal: each query sees the keys near its own position.

    Args:
        q_seq: how many queries; query i stands at i + kv_seq − q_seq.
        kv_seq: how many keys.
        window: 1 or more. Causal: the query's own position and the window − 1 before it. Otherwise: window // 2
            positions to either side, and its own.
        causal: whether the future is hidden.

    Returns:
        (q_seq, kv_seq), True = may attend.

    Source: Beltagy et al. (2020), section 3.1.

    Example:
        >>> sliding_window_mask(3, 4, window=2, causal=True).int()
        tensor([[1, 1, 0, 0],
                [0, 1, 1, 0],
                [0, 0, 1, 1]], dtype=torch.int32)
    """
    distance = torch.arange(kv_seq - q_seq, kv_seq)[:, None] - torch.arange(kv_seq)
    return (distance >= 0) & (distance < window) if causal else distance.abs() <= window // 2


def dilated_mask(q_seq: int, kv_seq: int, window: int, causal: bool, dilation: int) -> Bool[Tensor, "q_seq kv_seq"]:
    """A window with gaps: as many keys as without dilation, `dilation` times as far apart.

    Args:
        q_seq: how many queries; query i stands at i + kv_seq − q_seq.
        kv_seq: how many keys.
        window: 1 or more; how wide the window is, counted in steps of `dilation`.
        causal: whether the future is hidden.
        dilation: 1 or more; only distances that are multiples of it are seen. With 1 this is the sliding window.

    Returns:
        (q_seq, kv_seq), True = may attend.

    Source: Beltagy et al. (2020), section 3.1, "Dilated Sliding Window".

    Example:
        >>> dilated_mask(2, 6, window=3, causal=True, dilation=2).int()
        tensor([[1, 0, 1, 0, 1, 0],
                [0, 1, 0, 1, 0, 1]], dtype=torch.int32)
    """
    distance = torch.arange(kv_seq - q_seq, kv_seq)[:, None] - torch.arange(kv_seq)
    steps = distance // dilation
    near = (steps >= 0) & (steps < window) if causal else steps.abs() <= window // 2
    return near & (distance % dilation == 0)


def strided_mask(seq: int, stride: int) -> Bool[Tensor, "seq seq"]:
    """The strided pattern: the last `stride` positions, and every position whole strides back; causal.

    Args:
        seq: how many tokens.
        stride: 1 or more; about √seq makes both factors equally long.

    Returns:
        (seq, seq), True = may attend: the union of both factors. Two layers of it connect every causal pair.

    Source: Child et al. (2019), section 4.3, the strided pattern.

    Example:
        >>> strided_mask(5, stride=2).int()
        tensor([[1, 0, 0, 0, 0],
                [1, 1, 0, 0, 0],
                [1, 1, 1, 0, 0],
                [0, 1, 1, 1, 0],
                [1, 0, 1, 1, 1]], dtype=torch.int32)
    """
    distance = torch.arange(seq)[:, None] - torch.arange(seq)
    return (distance >= 0) & ((distance < stride) | (distance % stride == 0))


def fixed_mask(seq: int, stride: int, summary: int) -> Bool[Tensor, "seq seq"]:
    """The fixed pattern: the own block of `stride` positions, and the last `summary` positions of every block; causal.

    Args:
        seq: how many tokens.
        stride: 1 or more; how many positions a block has.
        summary: 1 to stride; how many positions at the end of each block every later position sees.

    Returns:
        (seq, seq), True = may attend: the union of both factors.

    Source: Child et al. (2019), section 4.3, the fixed pattern, where `summary` is called c.

    Example:
        >>> fixed_mask(5, stride=2, summary=1).int()
        tensor([[1, 0, 0, 0, 0],
                [1, 1, 0, 0, 0],
                [0, 1, 1, 0, 0],
                [0, 1, 1, 1, 0],
                [0, 1, 0, 1, 1]], dtype=torch.int32)
    """
    query, key = torch.arange(seq)[:, None], torch.arange(seq)
    own_block = query // stride == key // stride
    return (key <= query) & (own_block | (key % stride >= stride - summary))


def banded_attention(
    q: Float[Tensor, "*batch q_seq head_dim"],
    k: Float[Tensor, "*batch kv_seq head_dim"],
    v: Float[Tensor, "*batch kv_seq v_dim"],
    window: int,
    causal: bool = False,
) -> Float[Tensor, "*batch q_seq v_dim"]:
    """Sliding-window attention in O(q_seq · window): what the band leaves out is never computed.

    Queries are cut into blocks of half a window. A block needs the keys of its own stretch and of one window around
    it, so it computes three scores for every two that the band keeps, whatever the length.

    Args:
        q: (*batch, q_seq, head_dim); query i stands at i + kv_seq − q_seq.
        k: (*batch, kv_seq, head_dim).
        v: (*batch, kv_seq, v_dim).
        window: 1 or more, as in `sliding_window_mask`.
        causal: whether the future is hidden.

    Returns:
        (*batch, q_seq, v_dim), in the dtype of q. Nothing of size q_seq × kv_seq is formed; with as many
        queries as keys, and a window of at most a quarter of the sequence, the two products take at most twice the
        FLOPs of the pairs inside the band.

    Source: Beltagy et al. (2020), sections 3.1 and 3.2 and appendix A ("sliding chunks").

    Example:
        >>> x = torch.zeros(5, 1)
        >>> banded_attention(x, x, torch.tensor([[0.0], [3.0], [6.0], [9.0], [12.0]]), window=2).squeeze(-1)
        tensor([ 1.5000,  3.0000,  6.0000,  9.0000, 10.5000])
    """
    q_seq, kv_seq = q.shape[-2], k.shape[-2]
    back, ahead = (window - 1, 0) if causal else (window // 2, window // 2)
    block = max(1, window // 2)
    spare = -q_seq % block
    span = back + block + ahead
    ends = (back - (kv_seq - q_seq), ahead + spare)  # what the first and the last block lack; negative: cut off

    q_blocks = F.pad(q * q.shape[-1] ** -0.5, (0, 0, 0, spare)).unflatten(-2, (-1, block))
    k_near, v_near = (F.pad(x, (0, 0, *ends)).unfold(-2, span, block) for x in (k, v))  # (…, blocks, dim, span)
    real = F.pad(torch.ones(kv_seq, dtype=torch.bool, device=q.device), ends).unfold(-1, span, block)
    distance = torch.arange(block, device=q.device)[:, None] + back - torch.arange(span, device=q.device)
    seen = (distance >= -ahead) & (distance <= back) & real[:, None, :]
    weights = masked_softmax(q_blocks @ k_near, seen)  # (…, blocks, block, span)
    return (weights @ v_near.mT).flatten(-3, -2)[..., :q_seq, :]


def longformer_attention(
    q: Float[Tensor, "*batch seq head_dim"],
    k: Float[Tensor, "*batch seq head_dim"],
    v: Float[Tensor, "*batch seq v_dim"],
    q_g: Float[Tensor, "*batch seq head_dim"],
    k_g: Float[Tensor, "*batch seq head_dim"],
    v_g: Float[Tensor, "*batch seq v_dim"],
    window: int,
    global_positions: Int[Tensor, " count"],
) -> Float[Tensor, "*batch seq v_dim"]:
    """Window attention with a few global tokens, which see everything and are seen by everything.

    Args:
        q, k, v: projections for ordinary attention, (*batch, seq, head_dim) twice and (*batch, seq, v_dim).
        q_g, k_g, v_g: projections for the global rows, in the same shapes.
        window: 1 or more; an ordinary token sees window // 2 positions to either side.
        global_positions: (count,), the global tokens, each once; there may be none.

    Returns:
        (*batch, seq, v_dim). An ordinary row is one softmax of q over the keys k in its window and of all global
        tokens, a key that is both counted once. A global row is attention of q_g over all k_g, v_g. Nothing of size
        seq × seq is formed.

    Source: Beltagy et al. (2020), section 3.1, "Global Attention" and "Linear Projections for Global Attention".

    Example:
        >>> x, values = torch.zeros(5, 1), torch.tensor([[0.0], [3.0], [6.0], [9.0], [12.0]])
        >>> longformer_attention(x, x, values, x, x, values, window=2, global_positions=torch.tensor([0])).squeeze(-1)
        tensor([6.0000, 3.0000, 4.5000, 6.7500, 7.0000])
    """
    seq, half = q.shape[-2], window // 2
    block = max(1, half)
    spare = -seq % block
    span, ends = half + block + half, (half, half + spare)
    scale = q.shape[-1] ** -0.5

    q_blocks = F.pad(q * scale, (0, 0, 0, spare)).unflatten(-2, (-1, block))
    k_near, v_near = (F.pad(x, (0, 0, *ends)).unfold(-2, span, block) for x in (k, v))  # (…, blocks, dim, span)
    k_all, v_all = (x[..., None, global_positions, :] for x in (k, v))  # (…, 1, count, dim)

    ordinary = torch.ones(seq, dtype=torch.bool, device=q.device)
    ordinary[global_positions] = False  # global keys are read once, by themselves
    distance = torch.arange(block, device=q.device)[:, None] + half - torch.arange(span, device=q.device)
    in_window = (distance.abs() <= half) & F.pad(ordinary, ends).unfold(-1, span, block)[:, None, :]
    seen = F.pad(in_window, (0, len(global_positions)), value=True)

    weights = masked_softmax(torch.cat([q_blocks @ k_near, q_blocks @ k_all.mT], dim=-1), seen)
    out = weights[..., :span] @ v_near.mT + weights[..., span:] @ v_all
    rows = (q_g[..., global_positions, :] * scale @ k_g.mT).softmax(dim=-1) @ v_g
    return out.flatten(-3, -2)[..., :seq, :].index_copy(-2, global_positions, rows)


def bigbird_layout(
    blocks: int, window: int, global_blocks: int, random_blocks: int, rng: np.random.Generator
) -> Bool[Tensor, "blocks blocks"]:
    """Which blocks read which: neighbours, a few global blocks, and a few drawn at random.

    Args:
        blocks: how many blocks the sequence has.
        window: how many neighbouring blocks a block reads, its own among them: window // 2 to either side.
        global_blocks: the first so many blocks read all blocks and are read by all.
        random_blocks: how many further blocks each other row reads, drawn without replacement, all equally likely,
            from those it does not read yet; all of them where fewer are left.
        rng: the generator that draws.

    Returns:
        (blocks, blocks), True = the queries of this block read the keys of that one.

    Source: Zaheer et al. (2020), section 2 and appendix D.

    Example:
        >>> layout = bigbird_layout(8, window=3, global_blocks=1, random_blocks=2, rng=np.random.default_rng(0))
        >>> layout.sum(dim=-1).tolist()
        [8, 5, 6, 6, 6, 6, 6, 5]
    """
    layout = sliding_window_mask(blocks, blocks, window, causal=False)
    layout[:global_blocks] = True
    layout[:, :global_blocks] = True
    for row in layout:
        free = (~row).nonzero().flatten().numpy()
        row[rng.choice(free, size=min(random_blocks, len(free)), replace=False)] = True
    return layout


def block_sparse_attention(
    q: Float[Tensor, "*batch q_seq head_dim"],
    k: Float[Tensor, "*batch kv_seq head_dim"],
    v: Float[Tensor, "*batch kv_seq v_dim"],
    layout: Bool[Tensor, "q_blocks kv_blocks"],
    block: int,
) -> Float[Tensor, "*batch q_seq v_dim"]:
    """Attention over the listed blocks only: work and memory follow their number, whatever the pattern.

    Args:
        q: (*batch, q_seq, head_dim).
        k: (*batch, kv_seq, head_dim).
        v: (*batch, kv_seq, v_dim).
        layout: (⌈q_seq / block⌉, ⌈kv_seq / block⌉), True = the queries of this block read the keys of that one.
        block: how many tokens a block has; the last block of queries, and of keys, may be shorter.

    Returns:
        (*batch, q_seq, v_dim), in the dtype of q; 0 for the queries of a block that reads none. Exactly one product of
        block × block scores is computed for each listed pair of blocks.

    Source: Child et al. (2019), section 5.4; Dao et al. (2022), section 3.3.

    Example:
        >>> x, values = torch.zeros(4, 1), torch.tensor([[1.0], [3.0], [5.0], [7.0]])
        >>> block_sparse_attention(x, x, values, torch.tensor([[True, True], [False, True]]), block=2).squeeze(-1)
        tensor([4., 4., 6., 6.])
    """
    q_seq, kv_seq = q.shape[-2], k.shape[-2]
    rows, columns = layout.nonzero(as_tuple=True)  # one entry for each listed pair of blocks
    q_blocks, k_blocks, v_blocks = (
        F.pad(x, (0, 0, 0, -x.shape[-2] % block)).unflatten(-2, (-1, block)) for x in (q * q.shape[-1] ** -0.5, k, v)
    )
    key = columns[:, None] * block + torch.arange(block, device=q.device)
    scores = q_blocks[..., rows, :, :] @ k_blocks[..., columns, :, :].mT  # (*batch, listed, block, block)
    scores = scores.masked_fill((key >= kv_seq)[:, None, :], -torch.inf)

    # The softmax of a query runs over several entries of the list: its maximum and its sums are gathered by row.
    largest = scores.detach().amax(dim=-1)
    peak = torch.full_like(q_blocks[..., 0], -torch.inf).scatter_reduce(
        -2, rows[:, None].expand_as(largest), largest, "amax"
    )
    weights = (scores - peak[..., rows, :, None]).exp()
    total = torch.zeros_like(q_blocks[..., 0]).index_add(-2, rows, weights.sum(dim=-1))
    summed = v.new_zeros(*q_blocks.shape[:-1], v.shape[-1]).index_add(-3, rows, weights @ v_blocks[..., columns, :, :])
    out = summed / total.masked_fill(total == 0, 1)[..., None]
    return out.flatten(-3, -2)[..., :q_seq, :]


def chunked_block_local_attention(
    q: Float[Tensor, "*batch seq head_dim"],
    k: Float[Tensor, "*batch seq head_dim"],
    v: Float[Tensor, "*batch seq v_dim"],
    block: int,
    causal: bool = False,
) -> Float[Tensor, "*batch seq v_dim"]:
    """Attention inside blocks: every query reads its own block and the one before.

    Args:
        q: (*batch, seq, head_dim).
        k: (*batch, seq, head_dim).
        v: (*batch, seq, v_dim).
        block: how many tokens a block has; the last may be shorter.
        causal: whether the future is hidden.

    Returns:
        (*batch, seq, v_dim), in the dtype of q; at most 2 · block scores a query.

    Source: Qiu et al. (2019), section 3; Kitaev et al. (2020), section 2, for the block before.

    Example:
        >>> x, values = torch.zeros(5, 1), torch.tensor([[0.0], [2.0], [4.0], [6.0], [8.0]])
        >>> chunked_block_local_attention(x, x, values, block=2).squeeze(-1)
        tensor([1., 1., 3., 3., 6.])
    """
    seq = q.shape[-2]
    q_blocks, k_blocks, v_blocks = (
        F.pad(x, (0, 0, 0, -seq % block)).unflatten(-2, (-1, block)) for x in (q * q.shape[-1] ** -0.5, k, v)
    )
    k_near, v_near = (torch.cat([F.pad(x, (0, 0, 0, 0, 1, -1)), x], dim=-2) for x in (k_blocks, v_blocks))
    query = torch.arange(q_blocks.shape[-3] * block, device=q.device).unflatten(0, (-1, block))
    key = torch.cat([query - block, query], dim=-1)[:, None, :]  # (blocks, 1, 2 · block)
    seen = (key >= 0) & (key < seq)
    if causal:
        seen = seen & (key <= query[..., None])
    return (masked_softmax(q_blocks @ k_near.mT, seen) @ v_near).flatten(-3, -2)[..., :seq, :]


def lsh_buckets(
    x: Float[Tensor, "*batch seq head_dim"], rotations: Float[Tensor, "rounds head_dim half"]
) -> Int[Tensor, "*batch rounds seq"]:
    """The bucket of every token in every round: which of 2 · half random directions it points to most.

    Args:
        x: (*batch, seq, head_dim); only the direction of a token matters.
        rotations: (rounds, head_dim, half), one random matrix R a round.

    Returns:
        (*batch, rounds, seq) integers from 0 to 2 · half − 1: the argmax of [xR; −xR].

    Source: Kitaev et al. (2020), section 2, after Andoni et al. (2015).

    Example:
        >>> lsh_buckets(torch.tensor([[3.0, 1.0], [-3.0, 1.0], [0.0, -2.0]]), torch.eye(2)[None])
        tensor([[0, 2, 3]])
    """
    projected = x.unsqueeze(-3) @ rotations  # (*batch, rounds, seq, half)
    return torch.cat([projected, -projected], dim=-1).argmax(dim=-1)


def lsh_attention(
    qk: Float[Tensor, "*batch seq head_dim"],
    v: Float[Tensor, "*batch seq v_dim"],
    rotations: Float[Tensor, "rounds head_dim half"],
    chunk: int,
) -> Float[Tensor, "*batch seq v_dim"]:
    """Causal attention among tokens that hash alike: the Reformer's sort, cut into chunks, read one chunk back.

    In each round tokens are sorted by bucket (equal buckets by position) and cut into chunks. Query i meets key j ≤ i
    in a round if both lie in the same bucket, and j in the chunk of i or in the one before. i attends to every key
    that it meets in any round, however often; to itself only if it meets no other.

    Args:
        qk: (*batch, seq, head_dim), queries and keys at once; as keys they are brought to unit norm.
        v: (*batch, seq, v_dim).
        rotations: (rounds, head_dim, half), as in `lsh_buckets`.
        chunk: how many sorted tokens form a chunk; the last may be shorter.

    Returns:
        (*batch, seq, v_dim), in the dtype of qk. Scores take O(rounds · seq · chunk).

    Source: Kitaev et al. (2020), section 2 and appendix A (multi-round attention, equation 7 on).

    Example:
        >>> qk = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [3.0, 0.1]])
        >>> lsh_attention(qk, torch.tensor([[1.0], [2.0], [3.0], [7.0]]), torch.eye(2)[None], chunk=4).squeeze(-1)
        tensor([1., 2., 1., 2.])
    """
    seq, rounds = qk.shape[-2], len(rotations)
    length = seq + -seq % chunk
    qk, v = (F.pad(x, (0, 0, 0, length - seq)) for x in (qk, v))  # padding stands last, where no real query looks
    bucket = lsh_buckets(qk, rotations)  # (*batch, rounds, length)
    bucket[..., seq:] = 2 * rotations.shape[-1]
    order = bucket.argsort(dim=-1, stable=True)
    rank = order.argsort(dim=-1)
    position = torch.arange(length, device=qk.device).expand_as(bucket[..., :1, :])
    tags = torch.cat([position, bucket, rank // chunk], dim=-2).mT  # (*batch, length, 1 + 2 · rounds)

    outs, logs = [], []
    for own in range(rounds):
        query, key, value, at = (
            x.take_along_dim(order[..., own, :, None], dim=-2).unflatten(-2, (-1, chunk))
            for x in (qk * qk.shape[-1] ** -0.5, F.normalize(qk, dim=-1), v, tags)
        )
        key, value = (torch.cat([F.pad(x, (0, 0, 0, 0, 1, -1)), x], dim=-2) for x in (key, value))
        near = torch.cat([F.pad(at, (0, 0, 0, 0, 1, -1), value=length), at], dim=-2)  # chunk 0 has nothing before it
        i, *of_query = at.unsqueeze(-2).unbind(dim=-1)  # each (…, chunks, chunk, 1)
        j, *of_key = near.unsqueeze(-3).unbind(dim=-1)  # each (…, chunks, 1, 2 · chunk)
        met = [
            (of_query[r] == of_key[r]) & (of_query[rounds + r] <= of_key[rounds + r] + 1) for r in range(rounds)
        ]  # a bucket is sorted by position, so that a key before the query never lies in a later chunk
        times = sum(met).clamp(min=1).to(qk.dtype)
        scores = (query @ key.mT - times.log()).masked_fill(i == j, torch.finfo(qk.dtype).min)
        scores = scores.masked_fill(~met[own] | (j > i), -torch.inf)
        log = scores.logsumexp(dim=-1, keepdim=True)
        out = (scores - log).exp() @ value
        outs.append(out.flatten(-3, -2).take_along_dim(rank[..., own, :, None], dim=-2))
        logs.append(log.flatten(-3, -2).take_along_dim(rank[..., own, :, None], dim=-2))
    shares = torch.cat(logs, dim=-1).softmax(dim=-1)
    return (torch.stack(outs, dim=-1) * shares.unsqueeze(-2)).sum(dim=-1)[..., :seq, :]


def routing_attention(
    q: Float[Tensor, "*batch heads seq head_dim"],
    k: Float[Tensor, "*batch heads seq head_dim"],
    v: Float[Tensor, "*batch heads seq v_dim"],
    centroids: Float[Tensor, "heads clusters head_dim"],
    window: int,
    decay: float = 0.999,
) -> tuple[Float[Tensor, "*batch heads seq v_dim"], Float[Tensor, "heads clusters head_dim"]]:
    """The pair (output, new centroids): queries and keys near the same centroid attend to each other.

    Queries and keys are normalised (LayerNorm without gain and bias). Every centroid takes the `window` queries and
    the `window` keys with the largest dot products with it, and attention runs inside this cluster, scaled by
    1/√head_dim.

    Args:
        q: (*batch, heads, seq, head_dim).
        k: (*batch, heads, seq, head_dim).
        v: (*batch, heads, seq, v_dim).
        centroids: (heads, clusters, head_dim); about √seq clusters give O(seq^1.5).
        window: how many queries, and keys, a cluster has; seq where that is less.
        decay: how much of a centroid is kept.

    Returns:
        output: (*batch, heads, seq, v_dim), the mean over the clusters that took the query, 0 where none did.
        centroids: (heads, clusters, head_dim), decay · old + (1 − decay) · mean of the normalised queries and keys
            (of the whole batch) whose largest dot product is with this centroid; unchanged where there are none.
            No gradient flows through them.

    Source: Roy et al. (2020), section 4.1 and algorithm 1. The paper adds up the tokens of a centroid; its code takes
        their mean, as here.

    Example:
        >>> x = torch.tensor([[[3.0, 1.0], [1.0, 3.0], [2.0, 1.0]]])
        >>> out, centroids = routing_attention(x, x, torch.tensor([[[1.0], [2.0], [3.0]]]), x[:, :1], window=2)
        >>> out.flatten(), centroids.flatten()
        (tensor([2.0000, 0.0000, 2.0000]), tensor([2.9973, 0.9987]))
    """
    q, k = (F.layer_norm(x, x.shape[-1:]) for x in (q, k))
    window = min(window, q.shape[-2])
    with torch.no_grad():
        q_at, k_at = ((centroids @ x.mT).topk(window, dim=-1).indices for x in (q, k))  # (…, clusters, window)
    query, key, value = (
        x.unsqueeze(-3).take_along_dim(at[..., None], dim=-2) for x, at in ((q, q_at), (k, k_at), (v, k_at))
    )
    answers = (query @ key.mT * q.shape[-1] ** -0.5).softmax(dim=-1) @ value  # (…, clusters, window, v_dim)
    place = q_at.flatten(-2)[..., None]
    summed = torch.zeros_like(v).scatter_add(-2, place.expand(*place.shape[:-1], v.shape[-1]), answers.flatten(-3, -2))
    count = torch.zeros_like(v[..., :1]).scatter_add(-2, place, torch.ones_like(answers.flatten(-3, -2)[..., :1]))

    with torch.no_grad():
        tokens = torch.cat([q, k], dim=-2)
        nearest = (tokens @ centroids.mT).argmax(dim=-1)
        member = F.one_hot(nearest, centroids.shape[-2]).to(q.dtype)  # (…, 2 · seq, clusters)
        total, size = (x.reshape(-1, *x.shape[-3:]).sum(0) for x in (member.mT @ tokens, member.sum(-2)[..., None]))
        moved = torch.where(size > 0, decay * centroids + (1 - decay) * total / size.clamp(min=1), centroids)
    return summed / count.clamp(min=1), moved


def reachability(mask: Bool[Tensor, "*batch seq seq"], layers: int) -> Bool[Tensor, "*batch seq seq"]:
    """Who can influence whom after some layers: True where output i may depend on input j.

    Args:
        mask: (*batch, seq, seq), True where a query i may attend to a key j, the same in every layer.
        layers: how many layers stand on each other, 0 or more. Each has a residual connection, so a token always
            reaches itself.

    Returns:
        (*batch, seq, seq): True where a path of at most `layers` hops leads from j to i.

    Source: Child et al. (2019), section 4.2 (a path between every pair of positions).

    Example:
        >>> reachability(torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]]).bool(), layers=2).int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [1, 1, 1]], dtype=torch.int32)
    """
    reached = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device).expand_as(mask)
    hop = (mask | reached).float()
    for _ in range(layers):
        reached = hop @ reached.float() > 0
    return reached


def mask_cost(mask: Bool[Tensor, "*batch q_seq kv_seq"], block: int) -> tuple[float, float]:
    """The pair (density, block density): the share of pairs a mask keeps, and the share a kernel must compute.

    Args:
        mask: (*batch, q_seq, kv_seq), True = may attend.
        block: a kernel works on whole block × block tiles; those at the ends may be smaller.

    Returns:
        density: kept pairs over all pairs.
        block density: tiles with at least one kept pair over all tiles.

    Source: Child et al. (2019), section 5.4; Dao et al. (2022), section 3.3.

    Example:
        >>> mask_cost(torch.eye(8, dtype=torch.bool), block=4)
        (0.125, 0.5)
    """
    q_seq, kv_seq = mask.shape[-2:]
    tiles = F.pad(mask, (0, -kv_seq % block, 0, -q_seq % block)).unflatten(-1, (-1, block)).unflatten(-3, (-1, block))
    return mask.double().mean().item(), tiles.any(dim=-1).any(dim=-2).double().mean().item()
