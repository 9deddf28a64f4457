"""Alignment, additive and bilinear attention: the reference solutions of chapter `additive`.

Attention began as a question that a translator asks while it writes: which source words matter for the next word?
Three steps answer it: score every pair, turn each row of scores into weights that sum to one, average the values.
This module builds the three steps in NumPy, then the module and the decoder step of 2014 in torch, and two small
instruments: one reads an alignment off a weight matrix, one counts how far apart two positions are in a network.

Papers:
    Bahdanau, Cho, Bengio (2014), Neural Machine Translation by Jointly Learning to Align and Translate, 1409.0473
    Luong, Pham, Manning (2015), Effective Approaches to Attention-based Neural Machine Translation, 1508.04025
    Vaswani et al. (2017), Attention Is All You Need, 1706.03762 (sections 3.2.1 and 4)

Glossary:
    q_seq, kv_seq         how many queries ask; how many keys and values can be read
    query_dim, key_dim    widths of a query and of a key; they may differ
    hidden_dim            width of the hidden layer inside the additive score
    v_dim                 width of a value, and so of a context
    state_dim, memory_dim widths of a decoder state and of an encoder state
    embed_dim             width of a token's embedding
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import nn


def softmax(scores: Float[np.ndarray, "*shape"], axis: int = -1) -> Float[np.ndarray, "*shape"]:
    """Weights that are not negative and sum to one along `axis`: exp(s) / Σ exp(s), without overflow.

    Args:
        scores: (*shape), floats with at least one axis, from −10⁴ to 10⁴; an entry may be −∞ (weight 0) if not all
            along the axis are.
        axis: the axis along which the weights sum to one; it is not empty.

    Returns:
        (*shape), in the dtype of `scores`; `scores` itself is left as it was.

    Source: Bridle (1990); subtracting the maximum is standard practice and changes nothing in exact arithmetic.

    Example:
        >>> softmax(np.array([1000.0, 1000.0, 1000.0])).round(4)
        array([0.3333, 0.3333, 0.3333])
    """
    exponentials = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def additive_scores(
    queries: Float[np.ndarray, "*batch q_seq query_dim"],
    keys: Float[np.ndarray, "*batch kv_seq key_dim"],
    w_q: Float[np.ndarray, "query_dim hidden_dim"],
    w_k: Float[np.ndarray, "key_dim hidden_dim"],
    v: Float[np.ndarray, " hidden_dim"],
) -> Float[np.ndarray, "*batch q_seq kv_seq"]:
    """One number per pair: vᵀ tanh(W_q q + W_k k), a network with one hidden layer that all pairs share.

    Args:
        queries: (*batch, q_seq, query_dim).
        keys: (*batch, kv_seq, key_dim), with the same leading axes.
        w_q: (query_dim, hidden_dim), used as `queries @ w_q`.
        w_k: (key_dim, hidden_dim), used as `keys @ w_k`.
        v: (hidden_dim,), turns the hidden layer into one number.

    Returns:
        (*batch, q_seq, kv_seq) raw scores, not yet weights. No Python loop runs over positions, and each token is
        projected once, not once per pair.

    Source: Bahdanau et al. (2014), section 3.1 and appendix A.1.2.

    Example:
        >>> one = np.ones((1, 1))
        >>> additive_scores(np.array([[0.0], [1.0]]), np.array([[0.0], [1.0], [2.0]]), one, one, np.ones(1)).round(3)
        array([[0.   , 0.762, 0.964],
               [0.762, 0.964, 0.995]])
    """
    query_part = (queries @ w_q)[..., :, None, :]  # (*batch, q_seq, 1, hidden_dim)
    key_part = (keys @ w_k)[..., None, :, :]  # (*batch, 1, kv_seq, hidden_dim)
    return np.tanh(query_part + key_part) @ v


def bilinear_scores(
    queries: Float[np.ndarray, "*batch q_seq query_dim"],
    keys: Float[np.ndarray, "*batch kv_seq key_dim"],
    w: Float[np.ndarray, "query_dim key_dim"],
) -> Float[np.ndarray, "*batch q_seq kv_seq"]:
    """One number per pair: qᵀ W k, a dot product between a query and a key of another width.

    Args:
        queries: (*batch, q_seq, query_dim).
        keys: (*batch, kv_seq, key_dim), with the same leading axes.
        w: (query_dim, key_dim).

    Returns:
        (*batch, q_seq, kv_seq) raw scores, without any scale. Apart from the projected queries (or keys), nothing
        larger than the inputs and the scores is formed.

    Source: Luong et al. (2015), section 3.1, the score called "general".

    Example:
        >>> bilinear_scores(np.array([[1.0, 2.0]]), np.array([[1.0, 0.0, 1.0]]), np.array([[1.0, 2, 3], [4, 5, 6]]))
        array([[24.]])
    """
    return queries @ w @ keys.swapaxes(-1, -2)


def attend(
    scores: Float[np.ndarray, "*batch q_seq kv_seq"],
    values: Float[np.ndarray, "*batch kv_seq v_dim"],
    mask: Bool[np.ndarray, "*#batch #q_seq #kv_seq"] | None = None,
) -> tuple[Float[np.ndarray, "*batch q_seq v_dim"], Float[np.ndarray, "*batch q_seq kv_seq"]]:
    """The pair (context, weights): each row of scores becomes weights, each context is a weighted mean of values.

    Args:
        scores: (*batch, q_seq, kv_seq), from −10⁴ to 10⁴, with kv_seq ≥ 1.
        values: (*batch, kv_seq, v_dim), finite, in the dtype of `scores`.
        mask: broadcasts against `scores`; True = may attend. None: every query may read every key.

    Returns:
        context: (*batch, q_seq, v_dim).
        weights: (*batch, q_seq, kv_seq). A masked weight is exactly 0 and the others of its row sum to one; a row
            with nothing to attend to has weights 0 and context 0, never NaN. Both keep the dtype of `scores`.

    Source: Bahdanau et al. (2014), equations 5 and 6; Vaswani et al. (2017), section 3.2.1.

    Example:
        >>> context, weights = attend(np.array([[0.0, 0.0, 9.0]]), np.array([[2.0], [4.0], [100.0]]),
        ...                           mask=np.array([[True, True, False]]))
        >>> context, weights
        (array([[3.]]), array([[0.5, 0.5, 0. ]]))
    """
    if mask is None:
        mask = np.ones(scores.shape, dtype=bool)
    lowest = np.finfo(scores.dtype).min
    weights = softmax(np.where(mask, scores, lowest)) * mask  # the product empties rows where nothing may be read
    return weights @ values, weights


class AdditiveAttention(nn.Module):
    """Additive attention with learned projections, for queries and keys of different widths.

    Parameters (all without bias): `q_proj.weight` (hidden_dim, query_dim), `k_proj.weight` (hidden_dim, key_dim),
    `score_proj.weight` (1, hidden_dim).

    Source: Bahdanau et al. (2014), section 3.1 and appendix A.1.2.

    Example:
        >>> attention = AdditiveAttention(query_dim=5, key_dim=7, hidden_dim=11)
        >>> context, weights = attention(torch.zeros(2, 3, 5), torch.zeros(2, 4, 7), torch.ones(2, 4, 6),
        ...                              lengths=torch.tensor([4, 2]))
        >>> context.shape, weights[:, 0].tolist()
        (torch.Size([2, 3, 6]), [[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]])
    """

    def __init__(self, query_dim: int, key_dim: int, hidden_dim: int) -> None:
        """Three linear layers without bias: `q_proj`, `k_proj` and `score_proj`.

        Args:
            query_dim: width of a query.
            key_dim: width of a key.
            hidden_dim: width of the hidden layer in which query and key are added.
        """
        super().__init__()
        self.q_proj = nn.Linear(query_dim, hidden_dim, bias=False)
        self.k_proj = nn.Linear(key_dim, hidden_dim, bias=False)
        self.score_proj = nn.Linear(hidden_dim, 1, bias=False)

    def forward(
        self,
        queries: Float[torch.Tensor, "*batch q_seq query_dim"],
        keys: Float[torch.Tensor, "*batch kv_seq key_dim"],
        values: Float[torch.Tensor, "*batch kv_seq v_dim"],
        lengths: Int[torch.Tensor, "*batch"] | None = None,
    ) -> tuple[Float[torch.Tensor, "*batch q_seq v_dim"], Float[torch.Tensor, "*batch q_seq kv_seq"]]:
        """The pair (context, weights) of additive attention.

        Args:
            queries: (*batch, q_seq, query_dim).
            keys: (*batch, kv_seq, key_dim).
            values: (*batch, kv_seq, v_dim).
            lengths: (*batch,), how many keys of each example are real; the keys behind them are padding. None: all.

        Returns:
            context: (*batch, q_seq, v_dim).
            weights: (*batch, q_seq, kv_seq), exactly 0 on padding; a row without any real key has weights 0 and
                context 0, never NaN.
        """
        hidden = torch.tanh(self.q_proj(queries).unsqueeze(-2) + self.k_proj(keys).unsqueeze(-3))
        scores = self.score_proj(hidden).squeeze(-1)  # (*batch, q_seq, kv_seq)
        if lengths is None:
            lengths = torch.full(keys.shape[:-2], keys.shape[-2], device=keys.device)
        real = torch.arange(keys.shape[-2], device=keys.device) < lengths[..., None, None]  # (*batch, 1, kv_seq)
        weights = scores.masked_fill(~real, torch.finfo(scores.dtype).min).softmax(dim=-1) * real
        return weights @ values, weights


class BahdanauDecoderStep(nn.Module):
    """One step of the decoder of 2014: look where the previous state points, then read token and context.

    Parts: `embedding`, an nn.Embedding(vocab_size, embed_dim); `attention`, an AdditiveAttention(state_dim,
    memory_dim, hidden_dim); `cell`, an nn.GRUCell(embed_dim + memory_dim, state_dim).

    Source: Bahdanau et al. (2014), section 3.1 and appendix A.2.2.

    Example:
        >>> step = BahdanauDecoderStep(vocab_size=10, embed_dim=4, state_dim=6, memory_dim=8, hidden_dim=5)
        >>> state, weights = step(torch.tensor([3, 7]), torch.zeros(2, 6), torch.ones(2, 9, 8))
        >>> state.shape, weights.shape, round(weights.sum().item(), 4)
        (torch.Size([2, 6]), torch.Size([2, 9]), 2.0)
    """

    def __init__(self, vocab_size: int, embed_dim: int, state_dim: int, memory_dim: int, hidden_dim: int) -> None:
        """The three parts `embedding`, `attention` and `cell`.

        Args:
            vocab_size: how many tokens there are.
            embed_dim: width of a token's embedding.
            state_dim: width of the decoder state.
            memory_dim: width of the encoder states, which serve as keys and as values.
            hidden_dim: width of the hidden layer inside the additive score.
        """
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.attention = AdditiveAttention(state_dim, memory_dim, hidden_dim)
        self.cell = nn.GRUCell(embed_dim + memory_dim, state_dim)

    def forward(
        self,
        token: Int[torch.Tensor, " batch"],
        state: Float[torch.Tensor, "batch state_dim"],
        memory: Float[torch.Tensor, "batch kv_seq memory_dim"],
        lengths: Int[torch.Tensor, " batch"] | None = None,
    ) -> tuple[Float[torch.Tensor, "batch state_dim"], Float[torch.Tensor, "batch kv_seq"]]:
        """The pair (new state, weights): s_t = GRU([embedding(y_{t−1}); c_t], s_{t−1}), with c_t found from s_{t−1}.

        Args:
            token: (batch,), the token written last.
            state: (batch, state_dim), the previous state s_{t−1}; it is the query.
            memory: (batch, kv_seq, memory_dim), the encoder states; they are keys and values.
            lengths: (batch,), how many encoder states of each example are real. None: all.

        Returns:
            state: (batch, state_dim), the new state s_t.
            weights: (batch, kv_seq), how much of each encoder state went into the context.
        """
        context, weights = self.attention(state[:, None, :], memory, memory, lengths)
        read = torch.cat([self.embedding(token), context[:, 0]], dim=-1)  # the embedding first, then the context
        return self.cell(read, state), weights[:, 0]


def hard_alignment(
    weights: Float[np.ndarray, "*batch q_seq kv_seq"],
    lengths: Int[np.ndarray, "*batch"] | None = None,
) -> tuple[Int[np.ndarray, "*batch q_seq"], Float[np.ndarray, "*batch"]]:
    """The pair (alignment, monotonicity): where each row looks most, and how often the gaze does not go back.

    Args:
        weights: (*batch, q_seq, kv_seq), rows of attention weights.
        lengths: (*batch,), how many rows (target tokens) of each example are real; the rows behind them are padding.
            None: all.

    Returns:
        alignment: (*batch, q_seq) integers, the key with the largest weight; of equal weights the first counts.
            A row of padding and a row whose weights are all 0 are not aligned: −1.
        monotonicity: (*batch,) float64. Among the pairs of neighbouring rows (t, t + 1) that are both aligned, the
            share with alignment[t + 1] ≥ alignment[t]; 1.0 where there is no such pair.

    Source: the reading of figure 3 in Bahdanau et al. (2014), section 5.2.1.

    Example:
        >>> weights = np.array([[0.9, 0.1, 0.0], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1], [0.0, 0.3, 0.7]])
        >>> alignment, monotonicity = hard_alignment(weights)
        >>> alignment.tolist(), round(float(monotonicity), 3)
        ([0, 2, 1, 2], 0.667)
    """
    aligned = weights.max(axis=-1) > 0
    if lengths is not None:
        aligned = aligned & (np.arange(weights.shape[-2]) < np.asarray(lengths)[..., None])
    alignment = np.where(aligned, weights.argmax(axis=-1), -1)
    pairs = aligned[..., 1:] & aligned[..., :-1]
    kept = pairs & (alignment[..., 1:] >= alignment[..., :-1])
    count = pairs.sum(axis=-1)
    return alignment, np.where(count > 0, kept.sum(axis=-1) / np.maximum(count, 1), 1.0)


def steps_to_connect(distance: int, layer: str, kernel_size: int = 3, dilation: int = 1) -> int:
    """The least number of layers (or, for "rnn", of time steps) that carries a signal from position i − distance to i.

    Args:
        distance: how many positions lie between source and target, ≥ 0; it may be as large as 10**18.
        layer: "rnn": one step hands the state to the next position. "cnn": a kernel at i reads i − kernel_size + 1
            … i. "dilated_cnn": the same, but layer l = 0, 1, 2, … reads every `dilation ** l`-th position.
            "attention": every position reads every position before it.
        kernel_size: width of the kernel, ≥ 2; read only by the two kinds of convolution.
        dilation: base of the dilation, 1 ≤ dilation ≤ kernel_size (a larger one would leave holes between the taps);
            read only by "dilated_cnn", where 1 is a plain convolution.

    Returns:
        An exact integer; 0 for distance 0, because a position need not be told about itself.

    Raises:
        ValueError: for another `layer`, a negative distance, and, where they are read, kernel_size < 2 or
            dilation < 1; for distance 0 too.

    Source: Vaswani et al. (2017), section 4 and table 1 (maximum path length).

    Example:
        >>> [steps_to_connect(511, layer) for layer in ("rnn", "cnn", "attention")]
        [511, 256, 1]
        >>> steps_to_connect(511, "dilated_cnn", kernel_size=3, dilation=3)
        6
    """
    if layer not in ("rnn", "cnn", "dilated_cnn", "attention") or distance < 0:
        raise ValueError(f"no way to connect distance {distance} by {layer!r}")
    if layer == "rnn":
        return distance
    if layer == "attention":
        return min(distance, 1)
    growth = dilation if layer == "dilated_cnn" else 1
    if kernel_size < 2 or growth < 1:
        raise ValueError(f"kernel_size {kernel_size} with dilation {growth} never reaches back")
    if growth == 1:
        return -(-distance // (kernel_size - 1))  # integer division, rounded up
    layers = reach = 0
    while reach < distance:
        reach += (kernel_size - 1) * growth**layers
        layers += 1
    return layers
