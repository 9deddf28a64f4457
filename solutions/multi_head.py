"""Many heads, fewer keys and values: the reference solutions of chapter `multi_head`.

One attention map has to average where it would like to look in two directions. Several narrow maps side by side cost no
more and need not agree. This module builds them, then makes the keys and values fewer (shared by groups, or squeezed
into a latent), keeps them in a cache while a model writes, lets heads talk to each other, drops and judges them, and
counts what all of it costs.

Papers:
    Vaswani et al. (2017), Attention Is All You Need, 1706.03762 (section 3.2.2)
    Shazeer (2019), Fast Transformer Decoding: One Write-Head is All You Need, 1911.02150
    Michel, Levy, Neubig (2019), Are Sixteen Heads Really Better than One?, 1905.10650
    Shazeer et al. (2020), Talking-Heads Attention, 2003.02436
    Zhou et al. (2020), Scheduled DropHead, 2004.13342
    Ainslie et al. (2023), GQA, 2305.13245
    DeepSeek-AI (2024), DeepSeek-V2, 2405.04434 (section 2.1)
    Gemma Team (2024), Gemma 2, 2408.00118; Qwen Team (2025), Qwen3, 2505.09388; OpenAI (2025), gpt-oss, 2508.10925

Glossary:
    d_model               width of a position
    heads, kv_heads       how many heads ask; how many sets of keys and values there are (`heads` is a multiple of it)
    head_dim              width of one head, d_model / heads
    q_seq, kv_seq         how many positions ask; how many can be read
    new                   how many positions are decoded in one call
    latent_dim, rope_dim  width of the latent that is cached; width of the part of query and key that is rotated
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import nn


def masked_softmax(
    scores: Float[torch.Tensor, "*batch heads q_seq kv_seq"],
    mask: Bool[torch.Tensor, "*#shape"] | None = None,
) -> Float[torch.Tensor, "*batch heads q_seq kv_seq"]:
    """Rows of weights from rows of scores; given here, as in chapter 3, and with the head axis looked after.

    Args:
        scores: (*batch, heads, q_seq, kv_seq), finite.
        mask: True = may attend. A mask with three axes, (batch, q_seq, kv_seq), gains a head axis against scores with
            four; every other mask broadcasts as it is. None: everything may be read.

    Returns:
        (*batch, heads, q_seq, kv_seq). Masked weights are exactly 0, the others of the row sum to one; a row with
        nothing to attend to is 0 throughout, and its gradient is finite.
    """
    if mask is None:
        return scores.softmax(dim=-1)
    if mask.ndim == 3 and scores.ndim == 4:
        mask = mask[:, None]
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(dim=-1) * mask


def rotate(
    x: Float[torch.Tensor, "*batch seq rope_dim"], positions: Int[torch.Tensor, " seq"]
) -> Float[torch.Tensor, "*batch seq rope_dim"]:
    """Rotary positions, given here and built in chapter 5: at position p, pair i is turned by p / 10000^(2i/d).

    Args:
        x: (*batch, seq, rope_dim), with an even rope_dim.
        positions: (seq,) integers.

    Returns:
        (*batch, seq, rope_dim). Norms are kept, and the dot product of two rows depends on the distance of their
        positions only.
    """
    even = torch.arange(0, x.shape[-1], 2, dtype=x.dtype, device=x.device)
    angles = positions.to(x.dtype)[:, None] * 10000.0 ** (-even / x.shape[-1])
    first, second = x[..., 0::2], x[..., 1::2]
    pairs = first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()
    return torch.stack(pairs, dim=-1).flatten(-2)


def torch_layer(d_model: int, heads: int, bias: bool, state: dict[str, torch.Tensor] | None = None) -> nn.Module:
    """PyTorch's own multi-head attention with `batch_first=True`, to compare with; given here.

    Args:
        d_model: width of a position.
        heads: number of heads.
        bias: whether its projections have a bias.
        state: its parameters, by their names in PyTorch. None: as PyTorch draws them.

    Returns:
        An nn.MultiheadAttention, in the dtype of `state`.
    """
    layer = nn.MultiheadAttention(d_model, heads, bias=bias, batch_first=True)
    if state is not None:
        layer.to(state["in_proj_weight"].dtype).load_state_dict(state)
    return layer


def split_heads(
    x: Float[torch.Tensor, "*batch seq d_model"], heads: int
) -> Float[torch.Tensor, "*batch heads seq head_dim"]:
    """The heads of x: head h holds columns h · head_dim … (h + 1) · head_dim − 1 of every position.

    Args:
        x: (*batch, seq, d_model), any number of leading axes, also none.
        heads: how many heads, ≥ 1; divides d_model.

    Returns:
        (*batch, heads, seq, head_dim) with head_dim = d_model / heads.

    Raises:
        ValueError: if `heads` is less than 1 or does not divide d_model.

    Source: Vaswani et al. (2017), section 3.2.2.

    Example:
        >>> split_heads(torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]), heads=2).tolist()
        [[[1.0, 2.0], [5.0, 6.0]], [[3.0, 4.0], [7.0, 8.0]]]
    """
    if heads < 1 or x.shape[-1] % heads:
        raise ValueError(f"a width of {x.shape[-1]} cannot be split into {heads} heads")
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(-3, -2)


def merge_heads(
    x: Float[torch.Tensor, "*batch heads seq head_dim"],
) -> Float[torch.Tensor, "*batch seq d_model"]:
    """The heads of every position side by side again: what `split_heads` took apart.

    Args:
        x: (*batch, heads, seq, head_dim), any number of leading axes, also none.

    Returns:
        (*batch, seq, d_model) with d_model = heads · head_dim.

    Source: Vaswani et al. (2017), section 3.2.2, "Concat".

    Example:
        >>> merge_heads(torch.tensor([[[1.0, 2.0], [5.0, 6.0]], [[3.0, 4.0], [7.0, 8.0]]])).tolist()
        [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]
    """
    return x.transpose(-3, -2).flatten(-2)


class MultiHeadAttention(nn.Module):
    """Multi-head attention: every head projects all of the input, attends by itself, and the last layer mixes them.

    Parameters: linear layers `q_proj`, `k_proj`, `v_proj`, `out_proj`, each (d_model, d_model), with or without bias.

    Source: Vaswani et al. (2017), section 3.2.2.

    Example:
        >>> attention = MultiHeadAttention(d_model=6, heads=2)
        >>> x = torch.zeros(3, 4, 6)
        >>> output, weights = attention(x, x, x, need_weights=True)
        >>> output.shape, weights.shape
        (torch.Size([3, 4, 6]), torch.Size([3, 2, 4, 4]))
    """

    def __init__(self, d_model: int, heads: int, bias: bool = True) -> None:
        """Four linear layers `q_proj`, `k_proj`, `v_proj` and `out_proj`.

        Args:
            d_model: width of a position.
            heads: number of heads; divides d_model.
            bias: whether all four layers have a bias.

        Raises:
            ValueError: if `heads` does not divide d_model.
        """
        super().__init__()
        if d_model % heads:
            raise ValueError(f"a width of {d_model} cannot be split into {heads} heads")
        self.heads = heads
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)

    def forward(
        self,
        query: Float[torch.Tensor, "*batch q_seq d_model"],
        key: Float[torch.Tensor, "*batch kv_seq d_model"],
        value: Float[torch.Tensor, "*batch kv_seq d_model"],
        mask: Bool[torch.Tensor, "*#shape"] | None = None,
        need_weights: bool = False,
    ) -> tuple[Float[torch.Tensor, "*batch q_seq d_model"], Float[torch.Tensor, "*batch heads q_seq kv_seq"] | None]:
        """The pair (output, weights) of scaled dot-product attention in every head.

        Args:
            query: (*batch, q_seq, d_model).
            key: (*batch, kv_seq, d_model).
            value: (*batch, kv_seq, d_model).
            mask: True = may attend; (q_seq, kv_seq), (batch, q_seq, kv_seq) or (batch, heads, q_seq, kv_seq), with
                axes of length 1 where nothing differs. None: everything may be read.
            need_weights: whether weights come out.

        Returns:
            output: (*batch, q_seq, d_model).
            weights: (*batch, heads, q_seq, kv_seq), one map for each head, exactly 0 where masked; None unless
                `need_weights`. A query with nothing to attend to has weights 0, and its heads' outputs are 0.
        """
        q = split_heads(self.q_proj(query), self.heads)
        k = split_heads(self.k_proj(key), self.heads)
        v = split_heads(self.v_proj(value), self.heads)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        weights = masked_softmax(scores, mask)
        output = self.out_proj(merge_heads(weights @ v))
        return output, weights if need_weights else None

    @classmethod
    def from_torch(cls, layer: nn.Module) -> "MultiHeadAttention":
        """A layer of ours with the parameters of an nn.MultiheadAttention, so that outputs and gradients are equal.

        Args:
            layer: an nn.MultiheadAttention for queries, keys and values of one width, without `add_bias_kv` and
                `add_zero_attn`. Its `dropout` and `batch_first` are not taken over.

        Returns:
            A MultiHeadAttention with copies of its parameters, in their dtype, with a bias where it has one.

        Raises:
            ValueError: for a layer with other widths of keys or values, with `add_bias_kv` or with `add_zero_attn`.
        """
        if layer.in_proj_weight is None or layer.bias_k is not None or layer.add_zero_attn:
            raise ValueError("only a layer of one width, without bias_kv and zero_attn, can be taken over")
        bias = layer.in_proj_bias is not None
        ours = cls(layer.embed_dim, layer.num_heads, bias=bias).to(layer.in_proj_weight)
        state = {f"out_proj.{name}": tensor for name, tensor in layer.out_proj.state_dict().items()}
        for row, name in enumerate(("q_proj", "k_proj", "v_proj")):
            state[f"{name}.weight"] = layer.in_proj_weight.chunk(3)[row]
            if bias:
                state[f"{name}.bias"] = layer.in_proj_bias.chunk(3)[row]
        ours.load_state_dict(state)
        return ours


class GroupedQueryAttention(nn.Module):
    """Grouped-query attention: `heads` ask, and groups of consecutive heads share one set of keys and values.

    Parameters (all without bias): `q_proj.weight` and `out_proj.weight` (d_model, d_model), `k_proj.weight` and
    `v_proj.weight` (kv_heads · head_dim, d_model). The attributes `heads` and `kv_heads` keep the two numbers.

    Source: Ainslie et al. (2023), section 2.2; Shazeer (2019) for kv_heads = 1.

    Example:
        >>> attention = GroupedQueryAttention(d_model=8, heads=4, kv_heads=2)
        >>> output, weights = attention(torch.zeros(3, 5, 8))
        >>> output.shape, weights.shape, attention.k_proj.weight.shape
        (torch.Size([3, 5, 8]), torch.Size([3, 4, 5, 5]), torch.Size([4, 8]))
    """

    def __init__(self, d_model: int, heads: int, kv_heads: int) -> None:
        """Four linear layers without bias: `q_proj`, `k_proj`, `v_proj` and `out_proj`.

        Args:
            d_model: width of a position.
            heads: number of query heads; divides d_model.
            kv_heads: number of key and value heads; divides `heads`.

        Raises:
            ValueError: if `heads` does not divide d_model or `kv_heads` does not divide `heads`.
        """
        super().__init__()
        if d_model % heads or heads % kv_heads:
            raise ValueError(f"{heads} heads over {kv_heads} sets of keys do not fit a width of {d_model}")
        self.heads, self.kv_heads = heads, kv_heads
        kv_dim = kv_heads * (d_model // heads)
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, kv_dim, bias=False)
        self.v_proj = nn.Linear(d_model, kv_dim, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def attend(
        self,
        query: Float[torch.Tensor, "*batch heads q_seq head_dim"],
        key: Float[torch.Tensor, "*batch kv_heads kv_seq head_dim"],
        value: Float[torch.Tensor, "*batch kv_heads kv_seq head_dim"],
        mask: Bool[torch.Tensor, "*#shape"] | None = None,
    ) -> tuple[Float[torch.Tensor, "*batch heads q_seq head_dim"], Float[torch.Tensor, "*batch heads q_seq kv_seq"]]:
        """The pair (head outputs, weights) of heads that are projected already; keys and values are never copied.

        Args:
            query: (*batch, heads, q_seq, head_dim).
            key: (*batch, kv_heads, kv_seq, head_dim); query head h reads key head h // (heads / kv_heads).
            value: (*batch, kv_heads, kv_seq, head_dim).
            mask: True = may attend, against (*batch, heads, q_seq, kv_seq), as in `masked_softmax`.

        Returns:
            head outputs: (*batch, heads, q_seq, head_dim).
            weights: (*batch, heads, q_seq, kv_seq).
        """
        lead, q_seq, head_dim = query.shape[:-2], query.shape[-2], query.shape[-1]
        rows = query.reshape(*key.shape[:-2], -1, head_dim)  # the queries of a group stand below each other
        scores = (rows @ key.transpose(-2, -1) / math.sqrt(head_dim)).reshape(*lead, q_seq, -1)
        weights = masked_softmax(scores, mask)
        outputs = weights.reshape(*key.shape[:-2], -1, key.shape[-2]) @ value
        return outputs.reshape(query.shape), weights

    def forward(
        self,
        x: Float[torch.Tensor, "*batch seq d_model"],
        mask: Bool[torch.Tensor, "*#shape"] | None = None,
    ) -> tuple[Float[torch.Tensor, "*batch seq d_model"], Float[torch.Tensor, "*batch heads seq seq"]]:
        """The pair (output, weights) of x attending to itself.

        Args:
            x: (*batch, seq, d_model).
            mask: True = may attend; (seq, seq), (batch, seq, seq) or (batch, heads, seq, seq). None: everything.

        Returns:
            output: (*batch, seq, d_model).
            weights: (*batch, heads, seq, seq), one map for every *query* head.
        """
        q = split_heads(self.q_proj(x), self.heads)
        k = split_heads(self.k_proj(x), self.kv_heads)
        v = split_heads(self.v_proj(x), self.kv_heads)
        outputs, weights = self.attend(q, k, v, mask)
        return self.out_proj(merge_heads(outputs)), weights


def mha_to_gqa(
    k_weight: Float[torch.Tensor, "d_model d_in"],
    v_weight: Float[torch.Tensor, "d_model d_in"],
    heads: int,
    kv_heads: int,
) -> tuple[Float[torch.Tensor, "kv_dim d_in"], Float[torch.Tensor, "kv_dim d_in"]]:
    """The pair (k_weight, v_weight) with fewer heads: each new head is the mean of a group of consecutive old ones.

    Args:
        k_weight: (heads · head_dim, d_in), laid out as in nn.Linear; rows h · head_dim … belong to head h.
        v_weight: (heads · head_dim, d_in).
        heads: number of heads that the weights hold.
        kv_heads: number of heads that are wanted; divides `heads`.

    Returns:
        Both weights as (kv_heads · head_dim, d_in).

    Raises:
        ValueError: if `heads` does not divide the rows of the weights, or `kv_heads` does not divide `heads`.

    Source: Ainslie et al. (2023), section 2.1, figure 1.

    Example:
        >>> weight = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
        >>> [part.tolist() for part in mha_to_gqa(weight, -weight, heads=4, kv_heads=2)]
        [[[1.5], [4.5]], [[-1.5], [-4.5]]]
    """
    if len(k_weight) % heads or heads % kv_heads:
        raise ValueError(f"{len(k_weight)} rows of {heads} heads cannot become {kv_heads} heads")
    k_groups, v_groups = (
        weight.unflatten(0, (kv_heads, heads // kv_heads, len(weight) // heads)) for weight in (k_weight, v_weight)
    )
    return k_groups.mean(dim=1).flatten(0, 1), v_groups.mean(dim=1).flatten(0, 1)


class KVCache:
    """Keys and values of the positions so far, in memory that is allocated once.

    The attribute `length` counts all positions that were ever appended.

    Source: Shazeer (2019), section 2.4 (the incremental form of attention).

    Example:
        >>> cache = KVCache(capacity=4, window=2)
        >>> for number in (1.0, 2.0, 3.0):
        ...     cache.append(torch.full((1, 1, 1, 1), number), torch.full((1, 1, 1, 1), -number))
        >>> keys, values = cache.read()
        >>> cache.length, keys.flatten().tolist(), values.flatten().tolist()
        (3, [2.0, 3.0], [-2.0, -3.0])
    """

    def __init__(self, capacity: int, window: int | None = None) -> None:
        """An empty cache of fixed size; its memory is allocated at the first `append`.

        Args:
            capacity: how many positions the memory holds.
            window: how many positions a query may see, its own included. None: all, and then `capacity` ends the text.

        Raises:
            ValueError: if `window` is less than 1 or larger than `capacity`.
        """
        if window is not None and not 1 <= window <= capacity:
            raise ValueError(f"a window of {window} does not fit into {capacity} positions")
        self.capacity, self.window = capacity, window
        self.length = 0  # positions ever appended
        self.start = self.end = 0  # where in memory the readable ones stand

    def append(
        self,
        k: Float[torch.Tensor, "batch kv_heads new head_dim"],
        v: Float[torch.Tensor, "batch kv_heads new v_dim"],
    ) -> None:
        """Take in the keys and values of the next positions.

        Without a window nothing that is there already is copied. With one, memory that is full is emptied by moving
        the window − 1 latest positions to its front, which happens rarely if `capacity` is much larger than `window`.

        Args:
            k: (batch, kv_heads, new, head_dim), new ≥ 1. The first call decides batch, heads, widths, dtype and device.
            v: (batch, kv_heads, new, v_dim).

        Raises:
            ValueError: if they do not fit: more than `capacity` positions in all, or, with a window, if the new ones
                and the window − 1 before them (fewer at first) are more than `capacity`. The cache stays as it was.
        """
        new = k.shape[-2]
        kept = self.end if self.window is None else min(self.end, self.window - 1)
        if kept + new > self.capacity:
            raise ValueError(f"{new} positions do not fit behind {kept} in a cache for {self.capacity}")
        if self.length == 0:
            self.keys = k.new_zeros(*k.shape[:2], self.capacity, k.shape[-1])
            self.values = v.new_zeros(*v.shape[:2], self.capacity, v.shape[-1])
        if self.end + new > self.capacity:
            for memory in (self.keys, self.values):
                memory[:, :, :kept] = memory[:, :, self.end - kept : self.end].clone()
            self.end = kept
        self.start, self.end = self.end - kept, self.end + new
        self.keys[:, :, self.end - new : self.end] = k
        self.values[:, :, self.end - new : self.end] = v
        self.length += new

    def read(
        self,
    ) -> tuple[Float[torch.Tensor, "batch kv_heads kept head_dim"], Float[torch.Tensor, "batch kv_heads kept v_dim"]]:
        """The pair (keys, values) that the positions of the last `append` may see, oldest first.

        Returns:
            (batch, kv_heads, kept, head_dim) and (batch, kv_heads, kept, v_dim), views of the cache's memory. Without a
            window, kept = length; with one, at most the window − 1 positions before the last `append` and those that it
            brought.
        """
        return self.keys[:, :, self.start : self.end], self.values[:, :, self.start : self.end]


def decode_step(
    module: nn.Module, x_t: Float[torch.Tensor, "batch new d_model"], cache: KVCache
) -> Float[torch.Tensor, "batch new d_model"]:
    """The layer's outputs for the next positions of a text, each from itself and what the cache still shows it.

    Args:
        module: a GroupedQueryAttention; its projections, `heads`, `kv_heads` and `attend` may be used.
        x_t: (batch, new, d_model), the next positions, one or several.
        cache: what came before; it takes in the new keys and values, once each.

    Returns:
        (batch, new, d_model): what the causal layer gives at these positions, if it runs over the whole text. With a
        window in the cache, position i sees the positions j with 0 ≤ i − j < window.

    Source: Shazeer (2019), sections 2.4 and 3.1.

    Example:
        >>> layer, cache = GroupedQueryAttention(4, 2, 1), KVCache(capacity=8)
        >>> x = torch.ones(1, 3, 4)
        >>> first, rest = decode_step(layer, x[:, :1], cache), decode_step(layer, x[:, 1:], cache)
        >>> first.shape, rest.shape, cache.length
        (torch.Size([1, 1, 4]), torch.Size([1, 2, 4]), 3)
    """
    query = split_heads(module.q_proj(x_t), module.heads)
    cache.append(split_heads(module.k_proj(x_t), module.kv_heads), split_heads(module.v_proj(x_t), module.kv_heads))
    keys, values = cache.read()
    new, kept = x_t.shape[1], keys.shape[-2]
    age = torch.arange(kept - new, kept, device=x_t.device)[:, None] - torch.arange(kept, device=x_t.device)
    mask = age >= 0
    if cache.window is not None:
        mask = mask & (age < cache.window)
    outputs, _ = module.attend(query, keys, values, mask)
    return module.out_proj(merge_heads(outputs))


class TalkingHeadsAttention(nn.Module):
    """Multi-head attention whose heads exchange scores before the softmax and weights after it.

    Parameters (all without bias): `q_proj`, `k_proj`, `v_proj`, `out_proj` with weights (d_model, d_model), and two
    matrices `pre_mix` and `post_mix` (heads, heads), which start as the identity.

    Source: Shazeer et al. (2020), section 4.

    Example:
        >>> attention = TalkingHeadsAttention(d_model=6, heads=3)
        >>> output, weights = attention(torch.zeros(2, 4, 6))
        >>> output.shape, weights.shape, attention.pre_mix[0].tolist()
        (torch.Size([2, 4, 6]), torch.Size([2, 3, 4, 4]), [1.0, 0.0, 0.0])
    """

    def __init__(self, d_model: int, heads: int) -> None:
        """Four linear layers without bias and the parameters `pre_mix` and `post_mix`.

        Args:
            d_model: width of a position.
            heads: number of heads; divides d_model.

        Raises:
            ValueError: if `heads` does not divide d_model.
        """
        super().__init__()
        if d_model % heads:
            raise ValueError(f"a width of {d_model} cannot be split into {heads} heads")
        self.heads = heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        self.pre_mix = nn.Parameter(torch.eye(heads))
        self.post_mix = nn.Parameter(torch.eye(heads))

    def forward(
        self,
        x: Float[torch.Tensor, "*batch seq d_model"],
        mask: Bool[torch.Tensor, "*#shape"] | None = None,
    ) -> tuple[Float[torch.Tensor, "*batch seq d_model"], Float[torch.Tensor, "*batch heads seq seq"]]:
        """The pair (output, weights) of x attending to itself with heads that talk.

        Args:
            x: (*batch, seq, d_model).
            mask: True = may attend, as in `masked_softmax`; it acts between the two mixes. None: everything.

        Returns:
            output: (*batch, seq, d_model).
            weights: (*batch, heads, seq, seq), the weights that meet the values: those after the second mix. New head
                h is Σ_g mix[h, g] · old head g, of scaled scores in the first mix, of weights in the second. Rows need
                not sum to one.
        """
        q = split_heads(self.q_proj(x), self.heads)
        k = split_heads(self.k_proj(x), self.heads)
        v = split_heads(self.v_proj(x), self.heads)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        mixed = torch.einsum("hg,...gij->...hij", self.pre_mix, scores)
        weights = torch.einsum("hg,...gij->...hij", self.post_mix, masked_softmax(mixed, mask))
        return self.out_proj(merge_heads(weights @ v)), weights


class MultiHeadLatentAttention(nn.Module):
    """Multi-head latent attention: keys and values are made from one narrow latent, and only that is cached.

    Parameters (all without bias), with head_dim = d_model / heads: `q_proj` (heads · head_dim, d_model), `q_rope_proj`
    (heads · rope_dim, d_model), `kv_down_proj` (latent_dim, d_model), `k_rope_proj` (rope_dim, d_model), `k_up_proj`
    and `v_up_proj` (heads · head_dim, latent_dim), `out_proj` (d_model, heads · head_dim).

    Source: DeepSeek-AI (2024), DeepSeek-V2, section 2.1 and appendix C, without the compression of queries.

    Example:
        >>> attention = MultiHeadLatentAttention(d_model=8, heads=2, latent_dim=3, rope_dim=2)
        >>> x = torch.ones(1, 5, 8)
        >>> output, (latent, k_rope) = attention.decode(x)
        >>> output.shape, latent.shape, k_rope.shape, torch.allclose(output, attention(x), atol=1e-6)
        (torch.Size([1, 5, 8]), torch.Size([1, 5, 3]), torch.Size([1, 5, 2]), True)
    """

    def __init__(self, d_model: int, heads: int, latent_dim: int, rope_dim: int) -> None:
        """Seven linear layers without bias.

        Args:
            d_model: width of a position.
            heads: number of heads; divides d_model.
            latent_dim: width of the latent from which keys and values are made.
            rope_dim: width of the rotated part of queries and keys; even.

        Raises:
            ValueError: if `heads` does not divide d_model or `rope_dim` is odd.
        """
        super().__init__()
        if d_model % heads or rope_dim % 2:
            raise ValueError("heads must divide d_model, and rope_dim must be even")
        self.heads = heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.q_rope_proj = nn.Linear(d_model, heads * rope_dim, bias=False)
        self.kv_down_proj = nn.Linear(d_model, latent_dim, bias=False)
        self.k_rope_proj = nn.Linear(d_model, rope_dim, bias=False)
        self.k_up_proj = nn.Linear(latent_dim, d_model, bias=False)
        self.v_up_proj = nn.Linear(latent_dim, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Float[torch.Tensor, "batch seq d_model"]) -> Float[torch.Tensor, "batch seq d_model"]:
        """The causal layer over a whole text, in the expanded form: every head has its own keys and values.

        Args:
            x: (batch, seq, d_model).

        Returns:
            (batch, seq, d_model). The score of head h for positions i ≥ j is (q_h,i · k_h,j + q^R_h,i · k^R_j) /
            √(head_dim + rope_dim), where k = k_up_proj(latent), and q^R and k^R are rotated to their positions.
        """
        positions = torch.arange(x.shape[1], device=x.device)
        latent = self.kv_down_proj(x)
        q, q_rope = split_heads(self.q_proj(x), self.heads), split_heads(self.q_rope_proj(x), self.heads)
        k, v = split_heads(self.k_up_proj(latent), self.heads), split_heads(self.v_up_proj(latent), self.heads)
        k_rope = rotate(self.k_rope_proj(x), positions)[:, None]  # one for all heads
        scores = q @ k.transpose(-2, -1) + rotate(q_rope, positions) @ k_rope.transpose(-2, -1)
        scores = scores / math.sqrt(q.shape[-1] + q_rope.shape[-1])
        weights = masked_softmax(scores, positions[:, None] >= positions)
        return self.out_proj(merge_heads(weights @ v))

    def decode(
        self,
        x_t: Float[torch.Tensor, "batch new d_model"],
        cache: tuple[Float[torch.Tensor, "batch past latent_dim"], Float[torch.Tensor, "batch past rope_dim"]]
        | None = None,
    ) -> tuple[
        Float[torch.Tensor, "batch new d_model"],
        tuple[Float[torch.Tensor, "batch kv_seq latent_dim"], Float[torch.Tensor, "batch kv_seq rope_dim"]],
    ]:
        """The pair (output, cache) for the next positions, in the absorbed form: keys and values are never made.

        Since q · (U c) = (Uᵀ q) · c, the query is carried into the space of the latent; the weighted mean is taken of
        latents, and only the result is carried up.

        Args:
            x_t: (batch, new, d_model), the next positions, one or several.
            cache: the pair (latent, k_rope) of the positions before: (batch, past, latent_dim) and (batch, past,
                rope_dim), the latter rotated. None: nothing came before. It is left as it was.

        Returns:
            output: (batch, new, d_model), what `forward` gives at these positions of the whole text.
            cache: the pair (latent, k_rope) with the new positions behind the old ones.
        """
        past = 0 if cache is None else cache[0].shape[1]
        positions = torch.arange(past + x_t.shape[1], device=x_t.device)
        latent, k_rope = self.kv_down_proj(x_t), rotate(self.k_rope_proj(x_t), positions[past:])
        if cache is not None:
            latent, k_rope = torch.cat([cache[0], latent], dim=1), torch.cat([cache[1], k_rope], dim=1)
        q = split_heads(self.q_proj(x_t), self.heads)
        q_rope = rotate(split_heads(self.q_rope_proj(x_t), self.heads), positions[past:])
        k_up = self.k_up_proj.weight.unflatten(0, (self.heads, -1))  # (heads, head_dim, latent_dim)
        v_up = self.v_up_proj.weight.unflatten(0, (self.heads, -1))
        carried = torch.einsum("bhnd,hdc->bhnc", q, k_up)
        scores = torch.einsum("bhnc,bjc->bhnj", carried, latent) + torch.einsum("bhnr,bjr->bhnj", q_rope, k_rope)
        scores = scores / math.sqrt(q.shape[-1] + q_rope.shape[-1])
        weights = masked_softmax(scores, positions[past:, None] >= positions)
        read = torch.einsum("bhnj,bjc->bhnc", weights, latent)
        return self.out_proj(merge_heads(torch.einsum("bhnc,hdc->bhnd", read, v_up))), (latent, k_rope)


def drop_heads(
    head_outputs: Float[torch.Tensor, "*batch heads seq head_dim"], p: float, generator: torch.Generator
) -> Float[torch.Tensor, "*batch heads seq head_dim"]:
    """Whole heads set to zero by chance, in every example by itself, and the rest scaled up to make good for them.

    Args:
        head_outputs: (*batch, heads, seq, head_dim), before they are merged.
        p: share of heads to drop, 0 ≤ p < 1.
        generator: source of chance. One number is drawn for every example and head, by
            `torch.rand(*batch, heads, generator=generator)`; a head is dropped where its number is less than p.

    Returns:
        (*batch, heads, seq, head_dim). Dropped heads are 0; the others are multiplied by heads / (heads kept in this
        example). Where all heads of an example would go, the one with the largest number stays.

    Raises:
        ValueError: unless 0 ≤ p < 1.

    Source: Zhou et al. (2020), section 3.1, "DropHead"; that one head always stays is our addition.

    Example:
        >>> drop_heads(torch.ones(4, 1, 1), 0.5, torch.Generator().manual_seed(0)).flatten().tolist()
        [0.0, 4.0, 0.0, 0.0]
    """
    if not 0 <= p < 1:
        raise ValueError(f"p is a share below 1, not {p}")
    chance = torch.rand(head_outputs.shape[:-2], generator=generator)
    kept = chance >= chance.amax(dim=-1, keepdim=True).clamp(max=p)
    kept = kept.to(head_outputs)
    scale = kept.shape[-1] * kept / kept.sum(dim=-1, keepdim=True)
    return head_outputs * scale[..., None, None]


def head_importance(
    head_outputs: Float[torch.Tensor, "*batch heads seq head_dim"],
    upstream: Float[torch.Tensor, "*batch heads seq head_dim"],
) -> Float[torch.Tensor, " heads"]:
    """How much the loss would feel it if a head went missing: the mean over examples of |⟨head, ∂L/∂head⟩|.

    Args:
        head_outputs: (*batch, heads, seq, head_dim), with at least one batch axis.
        upstream: (*batch, heads, seq, head_dim), the gradient of the loss with respect to `head_outputs`.

    Returns:
        (heads,), not negative: inside one example products are summed over positions and columns, then the absolute
        value is taken, then the mean over all examples.

    Source: Michel, Levy and Neubig (2019), section 2.2, equation 2.

    Example:
        >>> outputs = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]], [[[1.0, 1.0]], [[1.0, 1.0]]]])
        >>> upstream = torch.tensor([[[[1.0, -1.0]], [[1.0, 1.0]]], [[[2.0, 1.0]], [[-1.0, -1.0]]]])
        >>> head_importance(outputs, upstream).tolist()
        [2.0, 2.5]
    """
    felt = (head_outputs * upstream).sum(dim=(-2, -1)).abs()
    return felt.flatten(0, -2).mean(dim=0)


def qk_norm(
    q: Float[torch.Tensor, "*batch q_seq head_dim"],
    k: Float[torch.Tensor, "*other kv_seq head_dim"],
    q_gain: Float[torch.Tensor, " head_dim"],
    k_gain: Float[torch.Tensor, " head_dim"],
    eps: float = 1e-6,
) -> tuple[Float[torch.Tensor, "*batch q_seq head_dim"], Float[torch.Tensor, "*other kv_seq head_dim"]]:
    """The pair (q, k), every row divided by its root mean square and then multiplied by a learned gain.

    Args:
        q: (*batch, q_seq, head_dim), queries of all heads.
        k: (*other, kv_seq, head_dim), keys; they may have other leading axes (fewer heads).
        q_gain: (head_dim,), shared by all heads.
        k_gain: (head_dim,).
        eps: added to the mean of squares, under the root.

    Returns:
        Both in the shapes and the dtype they came in. Scores are bounded by head_dim · max|q_gain · k_gain|.

    Source: Qwen Team (2025), Qwen3, section 2; Zhang and Sennrich (2019) for the norm.

    Example:
        >>> one = torch.ones(2)
        >>> q, k = qk_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, -9.0]]), one, 2 * one)
        >>> [round(number, 3) for number in q[0].tolist() + k[0].tolist()]
        [0.849, 1.131, 0.0, -2.828]
    """
    q = q * (q.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    k = k * (k.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    return q * q_gain, k * k_gain


def softcap(scores: Float[torch.Tensor, "*shape"], cap: float) -> Float[torch.Tensor, "*shape"]:
    """Scores pressed smoothly between −cap and cap: cap · tanh(s / cap). It comes before the mask.

    Args:
        scores: (*shape), finite.
        cap: bound, > 0.

    Returns:
        (*shape), close to `scores` where they are small beside the cap.

    Raises:
        ValueError: unless cap > 0.

    Source: Gemma Team (2024), Gemma 2, section 2, "logit soft-capping".

    Example:
        >>> [round(score, 2) for score in softcap(torch.tensor([1.0, 50.0, -500.0]), 50.0).tolist()]
        [1.0, 38.08, -50.0]
    """
    if not cap > 0:
        raise ValueError(f"the cap must be positive, not {cap}")
    return cap * torch.tanh(scores / cap)


def sink_softmax(
    scores: Float[torch.Tensor, "*batch heads q_seq kv_seq"],
    sink: Float[torch.Tensor, " heads"],
    mask: Bool[torch.Tensor, "*#shape"] | None = None,
) -> Float[torch.Tensor, "*batch heads q_seq kv_seq"]:
    """Weights of a softmax with one more term in its denominator: exp(s_j) / (exp(sink_h) + Σ exp(s_j')).

    Args:
        scores: (*batch, heads, q_seq, kv_seq), from −10⁴ to 10⁴.
        sink: (heads,), a learned logit for each head, from −10⁴ to 10⁴; it has no key and no value.
        mask: True = may attend; a mask with three axes gains a head axis against scores with four. None: everything.

    Returns:
        (*batch, heads, q_seq, kv_seq). Masked weights are exactly 0, as is a row with nothing to attend to; a row sums
        to less than one, by the share that the sink took.

    Source: OpenAI (2025), gpt-oss model card, section 2; Xiao et al. (2023) for attention sinks.

    Example:
        >>> sink_softmax(torch.zeros(1, 1, 3), torch.zeros(1)).tolist()
        [[[0.25, 0.25, 0.25]]]
    """
    column = sink[:, None, None].expand(*scores.shape[:-1], 1)
    every = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device) if mask is None else mask
    every = every[:, None] if every.ndim == 3 and scores.ndim == 4 else every
    hidden = scores.masked_fill(~every, torch.finfo(scores.dtype).min)
    return torch.cat([hidden, column], dim=-1).softmax(dim=-1)[..., :-1] * every


def attention_parameters(d_model: int, heads: int, kv_heads: int, bias: bool) -> int:
    """How many numbers a grouped-query attention layer learns.

    Args:
        d_model: width of a position.
        heads: number of query heads; divides d_model.
        kv_heads: number of key and value heads; divides `heads` (equal to it: multi-head; 1: multi-query).
        bias: whether the four projections have a bias.

    Returns:
        An exact integer: the parameters of the query, key, value and output projections.

    Raises:
        ValueError: if `heads` does not divide d_model or `kv_heads` does not divide `heads`.

    Source: Vaswani et al. (2017), section 3.2.2; Ainslie et al. (2023), section 2.2.

    Example:
        >>> attention_parameters(512, 8, 8, True), attention_parameters(768, 12, 1, False)
        (1050624, 1277952)
    """
    if d_model % heads or heads % kv_heads:
        raise ValueError(f"{heads} heads over {kv_heads} sets of keys do not fit a width of {d_model}")
    kv_dim = d_model // heads * kv_heads
    return 2 * (d_model + kv_dim) * (d_model + bool(bias))


def attention_multiplications(seq: int, d_model: int, heads: int) -> tuple[int, int, int]:
    """The triple (projections, scores, weighted sum): multiplications of one multi-head self-attention layer.

    Args:
        seq: number of positions.
        d_model: width of a position.
        heads: number of heads; divides d_model.

    Returns:
        projections: those of the four projections together, biases not counted.
        scores: those of all dot products of queries and keys, in all heads; the scale is not counted.
        weighted sum: those of weights and values, in all heads.

    Raises:
        ValueError: if `heads` does not divide d_model.

    Source: Vaswani et al. (2017), section 3.2.2 and table 1: an (m, n) by (n, k) product takes m·n·k.

    Example:
        >>> attention_multiplications(256, 768, 12)
        (603979776, 50331648, 50331648)
    """
    if d_model % heads:
        raise ValueError(f"a width of {d_model} cannot be split into {heads} heads")
    return 4 * seq * d_model**2, seq**2 * d_model, seq**2 * d_model


def kv_cache_bytes(layers: int, kv_heads: int, head_dim: int, seq: int, batch: int, bytes_per_element: int) -> int:
    """How many bytes the keys and values of all layers take while a model writes.

    Args:
        layers: number of layers.
        kv_heads: key and value heads in each layer.
        head_dim: width of a key, and of a value.
        seq: positions in the cache.
        batch: texts written at the same time.
        bytes_per_element: 4 for float32, 2 for float16 and bfloat16, 1 for int8.

    Returns:
        An exact integer.

    Source: Shazeer (2019), section 2.4; Ainslie et al. (2023), section 1.

    Example:
        >>> kv_cache_bytes(32, 32, 128, 4096, 1, 2) / 2**30  # Llama 2 7B, in GiB
        2.0
    """
    return 2 * layers * kv_heads * head_dim * seq * batch * bytes_per_element
