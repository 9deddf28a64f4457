"""Self-attention: the reference solutions of chapter `self_attention`.

One sequence asks, answers and hands over: queries, keys and values are three projections of the same x. This module
builds that layer, lets another sequence answer (cross-attention), lets a graph say who may read whom, and shows that a
convolution is a special case. Two instruments read the weights afterwards, with care, and a last function counts what
self-attention costs beside its rivals. From here on the course is written in torch.

Papers:
    Cheng, Dong, Lapata (2016), Long Short-Term Memory-Networks for Machine Reading, 1601.06733
    Vaswani et al. (2017), Attention Is All You Need, 1706.03762 (section 3.2 and table 1)
    Veličković et al. (2017), Graph Attention Networks, 1710.10903
    Cordonnier, Loukas, Jaggi (2019), On the Relationship between Self-Attention and Convolutional Layers, 1911.03584
    Abnar, Zuidema (2020), Quantifying Attention Flow in Transformers, 2005.00928
    Kobayashi et al. (2020), Attention is Not Only a Weight, 2004.10102

Glossary:
    seq, q_seq, kv_seq    length of the sequence; how many positions ask; how many can be read
    d_model, memory_dim   width of x; width of the other sequence, called memory
    head_dim, v_dim       width of queries and keys; width of values
    nodes                 how many nodes a graph has; they stand where positions stood
    kernel_size           how many positions a convolution reads; here also the number of heads
    strength              how sharply a head selects its offset, written α
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import nn


def masked_softmax(
    scores: Float[torch.Tensor, "*batch q_seq kv_seq"],
    mask: Bool[torch.Tensor, "*#batch #q_seq #kv_seq"] | None = None,
) -> Float[torch.Tensor, "*batch q_seq kv_seq"]:
    """Rows of weights from rows of scores, as `attend` of chapter 1 makes them; given here, in torch.

    Args:
        scores: (*batch, q_seq, kv_seq), finite.
        mask: broadcasts against `scores`; True = may attend. None: everything may be read.

    Returns:
        (*batch, q_seq, kv_seq). Masked weights are exactly 0, the others of the row sum to one; a row with nothing to
        attend to is 0 throughout, and its gradient is finite.
    """
    if mask is None:
        return scores.softmax(dim=-1)
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(dim=-1) * mask


def project_qkv(
    x: Float[torch.Tensor, "*batch seq d_model"],
    w_q: Float[torch.Tensor, "d_model head_dim"],
    w_k: Float[torch.Tensor, "d_model head_dim"],
    w_v: Float[torch.Tensor, "d_model v_dim"],
) -> tuple[
    Float[torch.Tensor, "*batch seq head_dim"],
    Float[torch.Tensor, "*batch seq head_dim"],
    Float[torch.Tensor, "*batch seq v_dim"],
]:
    """The triple (query, key, value): three linear views of one sequence.

    Args:
        x: (*batch, seq, d_model), any number of leading axes, also none.
        w_q: (d_model, head_dim), used as `x @ w_q`; no weight has a batch axis.
        w_k: (d_model, head_dim).
        w_v: (d_model, v_dim); v_dim may differ from head_dim.

    Returns:
        query: (*batch, seq, head_dim).
        key: (*batch, seq, head_dim).
        value: (*batch, seq, v_dim). All keep dtype and device of `x`.

    Source: Vaswani et al. (2017), section 3.2.2.

    Example:
        >>> x, one = torch.tensor([[1.0, 2.0]]), torch.ones(2, 1)
        >>> [part.tolist() for part in project_qkv(x, one, 2 * one, torch.eye(2))]
        [[[3.0]], [[6.0]], [[1.0, 2.0]]]
    """
    return x @ w_q, x @ w_k, x @ w_v


class SelfAttention(nn.Module):
    """One head of self-attention: every position asks all positions of the same sequence.

    Parameters (all without bias): `q_proj.weight`, `k_proj.weight` and `v_proj.weight`, each (head_dim, d_model).

    Source: Vaswani et al. (2017), sections 3.2.1 and 3.2.3.

    Example:
        >>> attention = SelfAttention(d_model=6, head_dim=4)
        >>> output, weights = attention(torch.zeros(2, 4, 6))
        >>> output.shape, weights[0, 0].tolist()
        (torch.Size([2, 4, 4]), [0.25, 0.25, 0.25, 0.25])
    """

    def __init__(self, d_model: int, head_dim: int) -> None:
        """Three linear layers without bias: `q_proj`, `k_proj` and `v_proj`.

        Args:
            d_model: width of a position.
            head_dim: width of queries, keys and values.
        """
        super().__init__()
        self.q_proj = nn.Linear(d_model, head_dim, bias=False)
        self.k_proj = nn.Linear(d_model, head_dim, bias=False)
        self.v_proj = nn.Linear(d_model, head_dim, bias=False)

    def forward(
        self,
        x: Float[torch.Tensor, "*batch seq d_model"],
        mask: Bool[torch.Tensor, "*#batch #seq #seq"] | None = None,
    ) -> tuple[Float[torch.Tensor, "*batch seq head_dim"], Float[torch.Tensor, "*batch seq seq"]]:
        """The pair (output, weights) of scaled dot-product attention of x with itself.

        Args:
            x: (*batch, seq, d_model).
            mask: broadcasts against (*batch, seq, seq); entry (i, j) True: position i may read position j. None: all.

        Returns:
            output: (*batch, seq, head_dim).
            weights: (*batch, seq, seq), exactly 0 where masked; a row with nothing to attend to has weights 0 and
                output 0, never NaN. Nothing larger than (*batch, seq, seq) or the projections is formed.
        """
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        weights = masked_softmax(scores, mask)
        return weights @ value, weights


class CrossAttention(nn.Module):
    """One head of cross-attention: x asks, another sequence answers.

    Parameters (all without bias): `q_proj.weight` (head_dim, d_model), `k_proj.weight` and `v_proj.weight`, both
    (head_dim, memory_dim).

    Source: Vaswani et al. (2017), section 3.2.3, "encoder-decoder attention".

    Example:
        >>> attention = CrossAttention(d_model=6, memory_dim=3, head_dim=4)
        >>> output, weights = attention(torch.zeros(2, 5, 6), torch.zeros(2, 4, 3), torch.tensor([4, 2]))
        >>> output.shape, weights[:, 0].tolist()
        (torch.Size([2, 5, 4]), [[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]])
    """

    def __init__(self, d_model: int, memory_dim: int, head_dim: int) -> None:
        """Three linear layers without bias: `q_proj` for x, `k_proj` and `v_proj` for the memory.

        Args:
            d_model: width of a position of x.
            memory_dim: width of a position of the memory.
            head_dim: width of queries, keys and values.
        """
        super().__init__()
        self.q_proj = nn.Linear(d_model, head_dim, bias=False)
        self.k_proj = nn.Linear(memory_dim, head_dim, bias=False)
        self.v_proj = nn.Linear(memory_dim, head_dim, bias=False)

    def forward(
        self,
        x: Float[torch.Tensor, "*batch q_seq d_model"],
        memory: Float[torch.Tensor, "*batch kv_seq memory_dim"],
        memory_lengths: Int[torch.Tensor, "*batch"] | None = None,
    ) -> tuple[Float[torch.Tensor, "*batch q_seq head_dim"], Float[torch.Tensor, "*batch q_seq kv_seq"]]:
        """The pair (output, weights): queries from x, keys and values from the memory.

        Args:
            x: (*batch, q_seq, d_model).
            memory: (*batch, kv_seq, memory_dim).
            memory_lengths: (*batch,) integers, how many positions of each memory are real; the rest is padding.
                None: all.

        Returns:
            output: (*batch, q_seq, head_dim).
            weights: (*batch, q_seq, kv_seq), exactly 0 on padding; with a length of 0, weights 0 and output 0.
        """
        query, key, value = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        mask = None
        if memory_lengths is not None:
            positions = torch.arange(memory.shape[-2], device=memory.device)
            mask = positions < memory_lengths[..., None, None]  # (*batch, 1, kv_seq): the same for every query
        weights = masked_softmax(scores, mask)
        return weights @ value, weights


def graph_attention(
    x: Float[torch.Tensor, "*batch nodes d_model"],
    adjacency: Bool[torch.Tensor, "*#batch nodes nodes"],
    w_q: Float[torch.Tensor, "d_model head_dim"],
    w_k: Float[torch.Tensor, "d_model head_dim"],
    w_v: Float[torch.Tensor, "d_model v_dim"],
) -> tuple[Float[torch.Tensor, "*batch nodes v_dim"], Float[torch.Tensor, "*batch nodes nodes"]]:
    """The pair (output, weights) of self-attention in which node i reads its neighbours and itself, and nobody else.

    Args:
        x: (*batch, nodes, d_model).
        adjacency: boolean, broadcasts against (*batch, nodes, nodes); entry (i, j) True: there is an edge along which
            i may read j. It need not be symmetric. Self-loops are added here; `adjacency` itself is left as it was.
        w_q: (d_model, head_dim), used as `x @ w_q`.
        w_k: (d_model, head_dim).
        w_v: (d_model, v_dim).

    Returns:
        output: (*batch, nodes, v_dim).
        weights: (*batch, nodes, nodes), scaled dot-product attention; exactly 0 without an edge, every row sums to
            one. An isolated node reads itself alone.

    Source: Veličković et al. (2017), section 2.1, with dot products in place of their additive score.

    Example:
        >>> x, eye = torch.tensor([[1.0], [2.0], [3.0]]), torch.eye(1)
        >>> edges = torch.tensor([[False, True, False], [False, False, False], [False, False, False]])
        >>> graph_attention(x, edges, 0 * eye, eye, eye)[0].tolist()
        [[1.5], [2.0], [3.0]]
    """
    query, key, value = x @ w_q, x @ w_k, x @ w_v
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    itself = torch.eye(x.shape[-2], dtype=torch.bool, device=x.device)
    weights = masked_softmax(scores, adjacency | itself)
    return weights @ value, weights


def convolution_as_attention(
    kernel: Float[torch.Tensor, "out_channels in_channels kernel_size"], strength: float
) -> tuple[Float[torch.Tensor, "heads 3"], Float[torch.Tensor, "heads in_channels out_channels"]]:
    """The pair (relative, w_v): attention heads, one for each tap, that together are a 1-D convolution.

    Head h scores the pair of a query i and a key j by their distance δ = j − i alone: −strength · (δ − Δ_h)², where
    Δ_h = h − (kernel_size − 1) // 2 is the offset at which tap h of the kernel reads. A quadratic in δ is a dot
    product with (1, δ, δ²), so three numbers say it all.

    Args:
        kernel: (out_channels, in_channels, kernel_size), laid out as the weight of nn.Conv1d.
        strength: α > 0; the larger, the closer is a head's softmax to picking one position.

    Returns:
        relative: (kernel_size, 3); relative[h] @ (1, δ, δ²) is the score of head h at distance δ, and its largest
            value over all δ is exactly 0.
        w_v: (kernel_size, in_channels, out_channels); the heads' outputs Σ_h softmax(score_h) @ (x @ w_v[h]) tend to
            the convolution of x with "same" padding, where x has been padded with zeros at both ends.

    Source: Cordonnier et al. (2019), theorem 1 and the quadratic encoding of section 3, in one dimension.

    Example:
        >>> relative, w_v = convolution_as_attention(torch.tensor([[[5.0, 6.0, 7.0]]]), strength=2.0)
        >>> relative.tolist(), w_v.flatten().tolist()
        ([[-2.0, -4.0, -2.0], [0.0, 0.0, -2.0], [-2.0, 4.0, -2.0]], [5.0, 6.0, 7.0])
    """
    kernel_size = kernel.shape[-1]
    offsets = torch.arange(kernel_size, dtype=kernel.dtype, device=kernel.device) - (kernel_size - 1) // 2
    relative = -strength * torch.stack([offsets**2, -2 * offsets, torch.ones_like(offsets)], dim=-1)
    return relative + 0.0, kernel.permute(2, 1, 0)  # + 0.0 turns −0 into 0


def attention_rollout(
    weights_per_layer: list[Float[torch.Tensor, "*batch heads seq seq"]],
) -> Float[torch.Tensor, "*batch seq seq"]:
    """How much of each input position reaches each output position, if weights were all that mattered.

    Args:
        weights_per_layer: the attention weights of each layer, the layer next to the input first; each
            (*batch, heads, seq, seq), not negative. The heads may differ in number from layer to layer. A row sums to
            one, or is 0 throughout where nothing was attended to.

    Returns:
        (*batch, seq, seq), rows sum to one. In each layer the heads are averaged, half the identity is added to half
        of that average for the residual connection, and rows are scaled to sum to one again; then the layers are
        multiplied, so that entry (i, j) follows all paths from input j to output i.

    Source: Abnar and Zuidema (2020), section 3, "attention rollout".

    Example:
        >>> first_token = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
        >>> attention_rollout([first_token, first_token]).tolist()
        [[1.0, 0.0], [0.75, 0.25]]
    """
    first = weights_per_layer[0]
    rollout = itself = torch.eye(first.shape[-1], dtype=first.dtype, device=first.device)
    for weights in weights_per_layer:
        mixed = weights.mean(dim=-3) + itself  # the halves cancel when rows are scaled
        rollout = mixed / mixed.sum(dim=-1, keepdim=True) @ rollout
    return rollout


def value_weighted_attribution(
    weights: Float[torch.Tensor, "*batch q_seq kv_seq"],
    values: Float[torch.Tensor, "*batch kv_seq v_dim"],
) -> Float[torch.Tensor, "*batch q_seq kv_seq"]:
    """Each position's share of what is added up: ‖a_ij v_j‖ / Σ_j' ‖a_ij' v_j'‖, with the Euclidean norm.

    Args:
        weights: (*batch, q_seq, kv_seq), not negative.
        values: (*batch, kv_seq, v_dim).

    Returns:
        (*batch, q_seq, kv_seq). A row sums to one; a row in which nothing is added up, because all weights or all
        values read are 0, is 0 throughout. No array of (*batch, q_seq, kv_seq, v_dim) is formed.

    Source: Kobayashi et al. (2020), section 3, without the output projection.

    Example:
        >>> weights, values = torch.tensor([[0.6, 0.4]]), torch.tensor([[1.0, 0.0], [6.0, 8.0]])
        >>> [round(share, 3) for share in value_weighted_attribution(weights, values)[0].tolist()]
        [0.13, 0.87]
    """
    sizes = weights * torch.linalg.vector_norm(values, dim=-1)[..., None, :]
    total = sizes.sum(dim=-1, keepdim=True)
    return sizes / total.where(total > 0, 1.0)


def layer_costs(kind: str, seq: int, d_model: int, kernel_size: int = 3, r: int | None = None) -> tuple[int, int, int]:
    """The triple (multiplications, sequential steps, path length) of one layer, by the leading terms of table 1.

    Args:
        kind: "self_attention": n²·d multiplications, 1 step, path 1. "recurrent": n·d², n, n. "convolutional": k·n·d²,
            1, and the least number L ≥ 1 of layers with kᴸ ≥ n (they are dilated, so the reach multiplies).
            "restricted", self-attention in which a position reads r others: r·n·d, 1, and n/r rounded up.
        seq: n ≥ 1, how many positions; it may be enormous, 10**17 and more.
        d_model: d ≥ 1, width of the layer.
        kernel_size: k ≥ 2, read only by "convolutional".
        r: 1 ≤ r ≤ seq, read only by "restricted", which needs it.

    Returns:
        Three exact integers, in this order.

    Raises:
        ValueError: for another `kind`, and where seq, d_model, or a number that this kind reads is out of range.

    Source: Vaswani et al. (2017), section 4 and table 1.

    Example:
        >>> layer_costs("self_attention", 10, 4), layer_costs("recurrent", 10, 4), layer_costs("convolutional", 10, 4)
        ((400, 1, 1), (160, 10, 10), (480, 1, 3))
        >>> layer_costs("restricted", 10, 4, r=3)
        (120, 1, 4)
    """
    if seq < 1 or d_model < 1:
        raise ValueError(f"a layer needs at least one position and one number, not {seq} and {d_model}")
    if kind == "self_attention":
        return seq**2 * d_model, 1, 1
    if kind == "recurrent":
        return seq * d_model**2, seq, seq
    if kind == "convolutional":
        if kernel_size < 2:
            raise ValueError(f"a kernel of {kernel_size} connects nothing")
        layers = 1
        while kernel_size**layers < seq:
            layers += 1
        return kernel_size * seq * d_model**2, 1, layers
    if kind == "restricted":
        if r is None or not 1 <= r <= seq:
            raise ValueError(f"restricted attention reads between 1 and {seq} positions, not {r}")
        return r * seq * d_model, 1, -(-seq // r)
    raise ValueError(f"no layer of kind {kind!r}")
