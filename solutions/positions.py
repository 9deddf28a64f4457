"""Positional encoding: the reference solutions of chapter `positions`.

Attention reads a set: whatever order its input has, it does not know. This module holds the ways to tell it. Absolute
positions are added to the embedding (sinusoids, a learned table); relative ones enter the scores (Shaw, Transformer-XL,
the buckets of T5, ALiBi); rotary ones turn queries and keys; two small functions carry the idea to the plane.

Papers:
    Vaswani et al. (2017), Attention Is All You Need, 1706.03762 (sections 3.4 and 3.5)
    Gehring et al. (2017), Convolutional Sequence to Sequence Learning, 1705.03122
    Press, Wolf (2016), Using the Output Embedding to Improve Language Models, 1608.05859
    Shaw, Uszkoreit, Vaswani (2018), Self-Attention with Relative Position Representations, 1803.02155
    Dai et al. (2019), Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context, 1901.02860
    Raffel et al. (2019), Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, 1910.10683
    Su et al. (2021), RoFormer: Enhanced Transformer with Rotary Position Embedding, 2104.09864
    Press, Smith, Lewis (2021), Train Short, Test Long: Attention with Linear Biases, 2108.12409
    Chen et al. (2023), Extending Context Window of Large Language Models via Positional Interpolation, 2306.15595
    Peng et al. (2023), YaRN: Efficient Context Window Extension of Large Language Models, 2309.00071
    Liu et al. (2021), Swin Transformer, 2103.14030 (section 3.2)

Glossary:
    seq, q_seq, kv_seq    how many positions; how many ask; how many can be read
    query position        query i stands at i + kv_seq − q_seq: the last query at the last key
    distance              how far the key lies behind the query; negative in the future
    pair                  two neighbouring columns that share a frequency: one hand of a clock
    max_distance          where a relative encoding stops telling distances apart
    base                  how much slower the slowest hand is than the fastest, nearly
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import nn


def sinusoidal_encoding(
    seq: int, d_model: int, base: float = 10000.0, offset: int = 0
) -> Float[torch.Tensor, "seq d_model"]:
    """One row for each position: sines in the even columns, cosines in the odd ones, slower from pair to pair.

    Args:
        seq: how many positions, ≥ 0.
        d_model: width of a row, ≥ 1; an odd width ends on a sine.
        base: wavelengths grow from 2π towards base · 2π.
        offset: position of the first row; it may be negative.

    Returns:
        (seq, d_model) in float64. Row r stands for position p = offset + r; column 2k holds sin(p / base^(2k/d_model)),
        column 2k + 1 the cosine of the same angle.

    Source: Vaswani et al. (2017), section 3.5.

    Example:
        >>> sinusoidal_encoding(2, 4, offset=1).round(decimals=3).tolist()
        [[0.841, 0.54, 0.01, 1.0], [0.909, -0.416, 0.02, 1.0]]
    """
    columns = torch.arange(d_model)
    rates = base ** (-(columns - columns % 2).double() / d_model)
    angles = torch.arange(offset, offset + seq).double()[:, None] * rates
    return torch.where(columns % 2 == 0, angles.sin(), angles.cos())


def shift_matrix(offset: int, d_model: int, base: float = 10000.0) -> Float[torch.Tensor, "d_model d_model"]:
    """The matrix M that moves every position by `offset`: PE(p + offset) = M PE(p), the same for all p.

    Args:
        offset: how far to move; it may be negative.
        d_model: an even width.
        base: as in `sinusoidal_encoding`.

    Returns:
        (d_model, d_model) in float64: a block of 2 × 2 for each pair, 0 elsewhere. It acts on columns: M @ PE(p).

    Raises:
        ValueError: for an odd d_model, whose last sine has no cosine to turn with.

    Source: Vaswani et al. (2017), section 3.5, where it is said and not written down.

    Example:
        >>> shift_matrix(1, 2).round(decimals=3).tolist()
        [[0.54, 0.841], [-0.841, 0.54]]
    """
    if d_model % 2:
        raise ValueError(f"a sine without its cosine cannot be turned: d_model is {d_model}")
    turn = sinusoidal_encoding(1, d_model, base, offset)[0]
    sines, cosines = turn[0::2], turn[1::2]
    even = torch.arange(0, d_model, 2)
    matrix = torch.zeros(d_model, d_model, dtype=turn.dtype)
    matrix[even, even] = cosines
    matrix[even, even + 1] = sines
    matrix[even + 1, even] = -sines
    matrix[even + 1, even + 1] = cosines
    return matrix


class LearnedPositions(nn.Module):
    """A learned vector for each of `max_seq` positions, added to what stands there.

    Parameters: `table.weight` (max_seq, d_model).

    Source: Gehring et al. (2017), section 3.1; BERT and GPT-2 use it.

    Example:
        >>> positions = LearnedPositions(max_seq=4, d_model=2)
        >>> positions(torch.zeros(3, 2), offset=1).shape
        torch.Size([3, 2])
    """

    def __init__(self, max_seq: int, d_model: int) -> None:
        """An embedding `table`, drawn with mean 0 and standard deviation 0.02.

        Args:
            max_seq: how many positions the table knows.
            d_model: width of a position.
        """
        super().__init__()
        self.table = nn.Embedding(max_seq, d_model)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(
        self, x: Float[torch.Tensor, "*batch seq d_model"], offset: int = 0
    ) -> Float[torch.Tensor, "*batch seq d_model"]:
        """x plus the vectors of positions offset, offset + 1, …

        Args:
            x: (*batch, seq, d_model); left as it was.
            offset: position of the first row, for reading a text piece by piece.

        Returns:
            (*batch, seq, d_model).

        Raises:
            ValueError: if a position lies before 0 or past the table.
        """
        end = offset + x.shape[-2]
        if offset < 0 or end > self.table.num_embeddings:
            raise ValueError(f"positions {offset} to {end - 1}, but the table ends at {self.table.num_embeddings - 1}")
        return x + self.table.weight[offset:end]


class TokenEmbedding(nn.Module):
    """Tokens to vectors at the foot of a model, and vectors to vocabulary scores at its head.

    Parameters: `table.weight` (vocab, d_model); with `tied=False` also `head.weight` (vocab, d_model).

    Source: Vaswani et al. (2017), section 3.4; Press and Wolf (2016).

    Example:
        >>> embedding = TokenEmbedding(vocab=5, d_model=4)
        >>> embedding(torch.tensor([[0, 3, 3]])).shape, embedding.logits(torch.zeros(2, 4)).shape
        (torch.Size([1, 3, 4]), torch.Size([2, 5]))
    """

    def __init__(self, vocab: int, d_model: int, tied: bool = True) -> None:
        """An embedding `table`, drawn with mean 0 and standard deviation 1/√d_model.

        Args:
            vocab: how many tokens there are.
            d_model: width of a token's vector.
            tied: whether `logits` uses the table; otherwise a linear layer `head` without bias does the work.
        """
        super().__init__()
        self.table = nn.Embedding(vocab, d_model)
        nn.init.normal_(self.table.weight, std=d_model**-0.5)
        self.head = None if tied else nn.Linear(d_model, vocab, bias=False)

    def forward(self, ids: Int[torch.Tensor, "*batch seq"]) -> Float[torch.Tensor, "*batch seq d_model"]:
        """Each token's row of the table, times √d_model.

        Args:
            ids: (*batch, seq) integers from 0 to vocab − 1.

        Returns:
            (*batch, seq, d_model).
        """
        return self.table(ids) * math.sqrt(self.table.embedding_dim)

    def logits(self, hidden: Float[torch.Tensor, "*batch d_model"]) -> Float[torch.Tensor, "*batch vocab"]:
        """One score for each token of the vocabulary: the dot product with its row, without any scale.

        Args:
            hidden: (*batch, d_model).

        Returns:
            (*batch, vocab).
        """
        weight = self.table.weight if self.head is None else self.head.weight
        return hidden @ weight.T


def shaw_relative_attention(
    q: Float[torch.Tensor, "*batch q_seq head_dim"],
    k: Float[torch.Tensor, "*batch kv_seq head_dim"],
    v: Float[torch.Tensor, "*batch kv_seq v_dim"],
    rel_k: Float[torch.Tensor, "distances head_dim"],
    rel_v: Float[torch.Tensor, "distances v_dim"],
    max_distance: int,
) -> tuple[Float[torch.Tensor, "*batch q_seq v_dim"], Float[torch.Tensor, "*batch q_seq kv_seq"]]:
    """The pair (output, weights) of attention in which keys and values know where they stand, seen from the query.

    Args:
        q: (*batch, q_seq, head_dim); query i stands at i + kv_seq − q_seq.
        k: (*batch, kv_seq, head_dim).
        v: (*batch, kv_seq, v_dim).
        rel_k: (2 · max_distance + 1, head_dim), added to the key; row d + max_distance belongs to d, the key's position
            minus the query's, clipped to −max_distance … max_distance.
        rel_v: (2 · max_distance + 1, v_dim), added to the value in the same way.
        max_distance: beyond it distances are not told apart; ≥ 0.

    Returns:
        output: (*batch, q_seq, v_dim), Σ_j a_ij (v_j + rel_v[…]).
        weights: (*batch, q_seq, kv_seq), softmax over the keys of q_i · (k_j + rel_k[…]) / √head_dim. No array with an
            axis q_seq, an axis kv_seq and a width is formed.

    Source: Shaw et al. (2018), equations 3 to 5.

    Example:
        >>> zeros, table = torch.zeros(3, 1), torch.tensor([[10.0], [20.0], [30.0]])
        >>> output, weights = shaw_relative_attention(zeros, zeros, zeros, 0 * table, table, max_distance=1)
        >>> [round(x, 3) for x in output.flatten().tolist()]
        [26.667, 20.0, 13.333]
    """
    q_seq, kv_seq = q.shape[-2], k.shape[-2]
    keys = torch.arange(kv_seq, device=q.device)
    away = keys - torch.arange(kv_seq - q_seq, kv_seq, device=q.device)[:, None]
    rows = (away.clamp(-max_distance, max_distance) + max_distance).expand(*q.shape[:-1], kv_seq)
    scores = q @ k.mT + (q @ rel_k.T).gather(-1, rows)
    weights = (scores / math.sqrt(q.shape[-1])).softmax(dim=-1)
    by_distance = weights.new_zeros(*q.shape[:-1], len(rel_v)).scatter_add(-1, rows, weights)
    return weights @ v + by_distance @ rel_v, weights


def relative_shift(x: Float[torch.Tensor, "*batch q_seq kv_seq"]) -> Float[torch.Tensor, "*batch q_seq kv_seq"]:
    """Scores sorted by distance become scores sorted by key: row i moves left by q_seq − 1 − i.

    Args:
        x: (*batch, q_seq, kv_seq) with q_seq ≤ kv_seq; column c of every row belongs to distance kv_seq − 1 − c, so
            that the last column is distance 0.

    Returns:
        (*batch, q_seq, kv_seq): entry (i, j) is x[i, j + q_seq − 1 − i], the score of the distance between query i,
        at i + kv_seq − q_seq, and key j; 0 where the key lies in the query's future.

    Source: Dai et al. (2019), appendix B.

    Example:
        >>> relative_shift(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).tolist()
        [[2.0, 3.0, 0.0], [4.0, 5.0, 6.0]]
    """
    *batch, q_seq, kv_seq = x.shape
    padded = torch.cat([x.new_zeros(*batch, q_seq, 1), x], dim=-1)
    skewed = padded.reshape(*batch, kv_seq + 1, q_seq)[..., 1:, :].reshape(*batch, q_seq, kv_seq)
    return skewed.tril(kv_seq - q_seq)


def transformer_xl_scores(
    q: Float[torch.Tensor, "*batch heads q_seq head_dim"],
    k: Float[torch.Tensor, "*batch heads kv_seq head_dim"],
    r: Float[torch.Tensor, "heads kv_seq head_dim"],
    u: Float[torch.Tensor, "heads head_dim"],
    v: Float[torch.Tensor, "heads head_dim"],
) -> Float[torch.Tensor, "*batch heads q_seq kv_seq"]:
    """Causal scores made of four terms: content and position of the key, each met by the query and by a bias.

    Args:
        q: (*batch, heads, q_seq, head_dim), q_seq ≤ kv_seq; query i stands at i + kv_seq − q_seq.
        k: (*batch, heads, kv_seq, head_dim).
        r: (heads, kv_seq, head_dim), the projected encodings of distances; row c belongs to distance kv_seq − 1 − c.
        u: (heads, head_dim), how much each key matters by itself.
        v: (heads, head_dim), how much each distance matters by itself.

    Returns:
        (*batch, heads, q_seq, kv_seq): (q_i·k_j + u·k_j + q_i·r_δ + v·r_δ) / √head_dim with δ the distance of j from i,
        and −∞ where the key lies in the future, ready for a softmax.

    Source: Dai et al. (2019), section 3.3.

    Example:
        >>> one = torch.ones(1, 2, 1)
        >>> r = torch.tensor([[[10.0], [20.0]]])
        >>> transformer_xl_scores(one, one, r, torch.zeros(1, 1), torch.zeros(1, 1)).tolist()
        [[[21.0, -inf], [11.0, 21.0]]]
    """
    content = (q + u[:, None]) @ k.mT
    position = relative_shift((q + v[:, None]) @ r.mT)
    q_seq, kv_seq = content.shape[-2:]
    future = torch.ones(q_seq, kv_seq, dtype=torch.bool, device=q.device).triu(kv_seq - q_seq + 1)
    return ((content + position) / math.sqrt(q.shape[-1])).masked_fill(future, -torch.inf)


def t5_relative_buckets(
    q_seq: int, kv_seq: int, num_buckets: int = 32, max_distance: int = 128, bidirectional: bool = True
) -> Int[torch.Tensor, "q_seq kv_seq"]:
    """Which row of a learned bias table belongs to each pair: near distances have their own, far ones share.

    Args:
        q_seq: how many queries; query i stands at i + kv_seq − q_seq.
        kv_seq: how many keys.
        num_buckets: rows of the table; a multiple of 4 if bidirectional, else of 2.
        max_distance: from here on all distances share the last bucket; more than half the buckets of one direction.
        bidirectional: True: keys behind the query use the first half of the buckets, keys ahead of it the second.
            False: keys ahead count as distance 0.

    Returns:
        (q_seq, kv_seq) int64. With n buckets for a direction and e = n / 2, a distance below e is its own bucket; a
        larger one has e + ⌊(n − e) · log(distance / e) / log(max_distance / e)⌋, at most n − 1.

    Source: Raffel et al. (2019), section 2.1, and its released code.

    Example:
        >>> t5_relative_buckets(1, 7, num_buckets=8, max_distance=6, bidirectional=False).tolist()
        [[7, 6, 4, 3, 2, 1, 0]]
    """
    ahead = torch.arange(kv_seq) - torch.arange(kv_seq - q_seq, kv_seq)[:, None]
    if bidirectional:
        count = num_buckets // 2
        first, distance = count * (ahead > 0), ahead.abs()
    else:
        count = num_buckets
        first, distance = torch.zeros_like(ahead), (-ahead).clamp(min=0)
    exact = count // 2
    growth = torch.log(distance.clamp(min=1).double() / exact) / math.log(max_distance / exact)
    far = (exact + (growth * (count - exact)).long()).clamp(max=count - 1)
    return first + torch.where(distance < exact, distance, far)


def apply_rope(
    x: Float[torch.Tensor, "*batch seq head_dim"],
    positions: Int[torch.Tensor, "*#batch seq"],
    base: float = 10000.0,
    interleaved: bool = True,
    frequencies: Float[torch.Tensor, " pairs"] | None = None,
) -> Float[torch.Tensor, "*batch seq head_dim"]:
    """Queries or keys, each pair of columns turned by an angle that is the position times the pair's frequency.

    Args:
        x: (*batch, seq, head_dim), an even head_dim.
        positions: (seq,), or any shape that broadcasts against (*batch, seq); any integers.
        base: pair i turns by base^(−2i/head_dim) for each step, if no `frequencies` are given.
        interleaved: True: pair i is columns 2i and 2i + 1. False: columns i and i + head_dim/2.
        frequencies: (head_dim / 2,), angle of each pair for one step.

    Returns:
        (*batch, seq, head_dim): (a, b) becomes (a cos φ − b sin φ, a sin φ + b cos φ), in the same columns.

    Raises:
        ValueError: for an odd head_dim.

    Source: Su et al. (2021), section 3.4.2; halves as in the released code of Llama for Hugging Face.

    Example:
        >>> apply_rope(torch.tensor([[1.0, 0.0, 1.0, 0.0]]), torch.tensor([100])).numpy().round(3)
        array([[ 0.862, -0.506,  0.54 ,  0.841]], dtype=float32)
    """
    head_dim = x.shape[-1]
    if head_dim % 2:
        raise ValueError(f"columns turn in pairs, and {head_dim} is odd")
    if frequencies is None:
        frequencies = base ** (-torch.arange(0, head_dim, 2, device=x.device).double() / head_dim)
    angles = positions[..., None].double() * frequencies.double()  # a large position times a frequency needs 53 bits
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    turned = a * cos - b * sin, a * sin + b * cos
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)


def rope_frequencies(
    head_dim: int, base: float = 10000.0, scaling: dict[str, Any] | None = None
) -> tuple[Float[torch.Tensor, " pairs"], float]:
    """The pair (frequencies, attention factor) with which a model reads further than it was trained to.

    Args:
        head_dim: an even width.
        base: pair i turns by θ_i = base^(−2i/head_dim) before scaling.
        scaling: None, or a dictionary with a "type" and numbers; s is its "factor" ≥ 1, L its "original_max", the
            length of the training texts, and r_i = L θ_i / 2π counts the turns of pair i over L.
            "linear": θ_i / s.
            "ntk": θ_i with the base times s^(head_dim / (head_dim − 2)); for head_dim > 2.
            "yarn": (1 − γ_i) θ_i / s + γ_i θ_i with γ_i = (r_i − "beta_slow") / ("beta_fast" − "beta_slow"), clipped to
            0 … 1; the two default to 1 and 32.
            "llama3": the same with "low_freq_factor" and "high_freq_factor", which default to 1 and 4.

    Returns:
        frequencies: (head_dim / 2,) in float64.
        attention factor: queries and keys are to be multiplied by it; 0.1 ln s + 1 for "yarn", else 1.0.

    Raises:
        ValueError: for another type, and for an odd head_dim.

    Source: Chen et al. (2023), section 3.2; Peng et al. (2023), sections 3.1 to 3.4; the released code of Llama 3.1.

    Example:
        >>> rope_frequencies(4, 100.0, {"type": "linear", "factor": 4.0})[0].tolist()
        [0.25, 0.025]
    """
    scaling = scaling or {"type": "none"}
    kind = scaling["type"]
    if head_dim % 2 or kind not in ("none", "linear", "ntk", "yarn", "llama3"):
        raise ValueError(f"no frequencies of kind {kind!r} for head_dim {head_dim}")
    factor = scaling.get("factor", 1.0)
    if kind == "ntk":
        base = base * factor ** (head_dim / (head_dim - 2))
    frequencies = base ** (-torch.arange(0, head_dim, 2).double() / head_dim)
    if kind == "linear":
        return frequencies / factor, 1.0
    if kind in ("none", "ntk"):
        return frequencies, 1.0
    slow, fast = ("beta_slow", "beta_fast") if kind == "yarn" else ("low_freq_factor", "high_freq_factor")
    low, high = scaling.get(slow, 1.0), scaling.get(fast, 32.0 if kind == "yarn" else 4.0)
    turns = scaling["original_max"] * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    mixed = (1 - kept) * frequencies / factor + kept * frequencies
    return mixed, 0.1 * math.log(factor) + 1 if kind == "yarn" else 1.0


def alibi_bias(heads: int, q_seq: int, kv_seq: int) -> Float[torch.Tensor, "heads q_seq kv_seq"]:
    """A penalty that grows with the distance, steep in the first heads and flat in the last; added to the scores.

    Args:
        heads: how many heads, ≥ 1.
        q_seq: how many queries; query i stands at i + kv_seq − q_seq.
        kv_seq: how many keys.

    Returns:
        (heads, q_seq, kv_seq) in float64: −slope · |distance|. For 2^m heads the slopes are 2^(−8/heads), its square,
        its cube, … For other numbers they are those of the next lower power of two, then every second one, from the
        first, of the next higher power, until there are enough.

    Source: Press et al. (2021), section 3, and their released code.

    Example:
        >>> alibi_bias(2, 1, 3).tolist()
        [[[-0.125, -0.0625, -0.0]], [[-0.0078125, -0.00390625, -0.0]]]
    """
    lower = 2 ** int(math.log2(heads))
    exponents = [8 * (h + 1) / lower for h in range(lower)]
    exponents += [4 * (2 * h + 1) / lower for h in range(heads - lower)]
    slopes = 2.0 ** -torch.tensor(exponents, dtype=torch.float64)
    distance = (torch.arange(kv_seq) - torch.arange(kv_seq - q_seq, kv_seq)[:, None]).abs()
    return -slopes[:, None, None] * distance


def sincos_2d(height: int, width: int, d_model: int) -> Float[torch.Tensor, "height width d_model"]:
    """One vector for each cell of a grid: the first half encodes its row, the second half its column.

    Args:
        height: number of rows.
        width: number of columns.
        d_model: a multiple of 4, so that both halves are made of whole pairs.

    Returns:
        (height, width, d_model) in float64; each half is a `sinusoidal_encoding` of width d_model / 2, base 10000.

    Raises:
        ValueError: if d_model is not a multiple of 4.

    Source: Dosovitskiy et al. (2020), appendix D.4, for the layout; He et al. (2021), 2111.06377, for fixed sines.

    Example:
        >>> sincos_2d(2, 3, 4)[1, 2].round(decimals=3).tolist()
        [0.841, 0.54, 0.909, -0.416]
    """
    if d_model % 4:
        raise ValueError(f"two halves of whole pairs need a multiple of 4, not {d_model}")
    rows = sinusoidal_encoding(height, d_model // 2)[:, None].expand(height, width, -1)
    columns = sinusoidal_encoding(width, d_model // 2)[None].expand(height, width, -1)
    return torch.cat([rows, columns], dim=-1)


def relative_bias_2d(
    table: Float[torch.Tensor, "offsets heads"], window: tuple[int, int]
) -> Float[torch.Tensor, "heads cells cells"]:
    """A bias for each pair of cells of a window, read from a table by how far apart they lie in rows and in columns.

    Args:
        table: ((2 · height − 1) · (2 · width − 1), heads); the offset (dy, dx), query minus key, has the row
            (dy + height − 1) · (2 · width − 1) + dx + width − 1.
        window: (height, width) of the window; its cells are counted row by row.

    Returns:
        (heads, height · width, height · width), queries before keys; in the dtype of `table`, with gradients into it.

    Source: Liu et al. (2021), section 3.2, equation 4, in the layout of the released code.

    Example:
        >>> relative_bias_2d(torch.arange(3.0)[:, None], (1, 2)).tolist()
        [[[1.0, 0.0], [2.0, 1.0]]]
    """
    height, width = window
    cells = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    dy, dx = (cells[:, None] - cells[None]).unbind(dim=-1)
    return table[(dy + height - 1) * (2 * width - 1) + dx + width - 1].permute(2, 0, 1)
