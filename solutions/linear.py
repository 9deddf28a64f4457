"""Linear attention, kernels, low rank and state: the reference solutions of chapter `linear`.

Softmax forces attention to look at every pair. Replace exp(q·k) by a product of features φ(q)·φ(k), and the sum over
keys can be done first: φ(q) (φ(k)ᵀ v) costs as much per token at the end of a book as on its first page. Read from left
to right, the same sum is a recurrent network whose state is a matrix; gates and the delta rule teach it to forget.

Papers:
    Katharopoulos, Vyas, Pappas, Fleuret (2020), Transformers are RNNs, 2006.16236
    Wang et al. (2020), Linformer: Self-Attention with Linear Complexity, 2006.04768
    Choromanski et al. (2020), Rethinking Attention with Performers, 2009.14794
    Schlag, Irie, Schmidhuber (2021), Linear Transformers Are Secretly Fast Weight Programmers, 2102.11174
    Sun et al. (2023), Retentive Network, 2307.08621
    Yang et al. (2023), Gated Linear Attention Transformers with Hardware-Efficient Training, 2312.06635
    Dao, Gu (2024), Transformers are SSMs (Mamba-2), 2405.21060
    Yang et al. (2024), Parallelizing Linear Transformers with the Delta Rule over Sequence Length, 2406.06484
    Yang, Kautz, Hatamizadeh (2024), Gated Delta Networks, 2412.06464
    DeepSeek-AI (2024), DeepSeek-V2, 2405.04434 (section 2.1, the cache of latent attention)

Glossary:
    q_seq, kv_seq, seq  how many queries; how many keys and values; both, where they are the same tokens
    φ                   a feature map: turns a query or key into features that are not negative
    features            how many random features a Performer has
    rank                how many summaries of the sequence Linformer keeps
    state               what is carried along a sequence: S (head_dim, v_dim), and z (head_dim) where it is normalised
    chunk               how many tokens are handled at once between two states
    decay               how much of the state each step keeps, in (0, 1]

A query whose weights are all 0 gets output 0.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def decayed_products(
    x: Float[Tensor, "*batch chunk head_dim"],
    k: Float[Tensor, "*batch chunk head_dim"],
    log_decay: Float[Tensor, "*batch chunk #head_dim"],
) -> Float[Tensor, "*batch chunk chunk"]:
    """Products of every x with the keys up to it, each channel weakened by the decays in between; lower triangular.

    Args:
        x: (*batch, chunk, head_dim).
        k: (*batch, chunk, head_dim).
        log_decay: (*batch, chunk, head_dim), or (*batch, chunk, 1) for one decay for all channels; logarithms summed
            from the start of the chunk.

    Returns:
        (*batch, chunk, chunk): Σ_c x[i, c] · k[j, c] · exp(log_decay[i, c] − log_decay[j, c]) for j ≤ i, else 0. No
        exponent is positive, so nothing overflows, however strong the decay.

    Example:
        >>> log_decay = torch.tensor([[0.5], [0.5], [0.5]]).log().cumsum(0)
        >>> decayed_products(torch.ones(3, 2), torch.ones(3, 2), log_decay)
        tensor([[2.0000, 0.0000, 0.0000],
                [1.0000, 2.0000, 0.0000],
                [0.5000, 1.0000, 2.0000]])
    """
    gap = log_decay.unsqueeze(-2) - log_decay.unsqueeze(-3)  # (*batch, chunk, chunk, head_dim or 1)
    future = torch.ones(gap.shape[-3:-1], dtype=torch.bool, device=x.device).triu(1)
    kept = gap.masked_fill(future[..., None], -torch.inf).exp()
    if kept.shape[-1] == 1:
        return x @ k.mT * kept[..., 0]
    return (kept * k.unsqueeze(-3) @ x.unsqueeze(-1)).squeeze(-1)


def elu_feature_map(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The feature map elu(x) + 1: x + 1 above 0, exp(x) below; always positive.

    Args:
        x: (*shape), any size of number.

    Returns:
        (*shape), in the dtype of x. Far below 0 it is exp(x) to full precision, not the 0 that 1 + (exp(x) − 1) rounds
        to; values and gradients are finite everywhere.

    Source: Katharopoulos et al. (2020), section 3.2.1, equation 7.

    Example:
        >>> elu_feature_map(torch.tensor([-2.0, 0.0, 3.0]))
        tensor([0.1353, 1.0000, 4.0000])
    """
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


def linear_attention(
    q: Float[Tensor, "*batch q_seq head_dim"],
    k: Float[Tensor, "*batch kv_seq head_dim"],
    v: Float[Tensor, "*batch kv_seq v_dim"],
    eps: float = 1e-6,
) -> Float[Tensor, "*batch q_seq v_dim"]:
    """Attention with φ(q)·φ(k) in place of exp(q·k), keys and values summed before any query is read.

    Args:
        q: (*batch, q_seq, head_dim), not yet mapped.
        k: (*batch, kv_seq, head_dim), not yet mapped.
        v: (*batch, kv_seq, v_dim).
        eps: added to the normaliser.

    Returns:
        (*batch, q_seq, v_dim): φ(q) (φ(k)ᵀ v) / (φ(q) · Σ φ(k) + eps) with φ = elu + 1 and no scaling. Nothing of size
        q_seq × kv_seq is formed.

    Source: Katharopoulos et al. (2020), section 3.2, equations 5 to 7.

    Example:
        >>> linear_attention(torch.zeros(1, 1), torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [8.0]]))
        tensor([[7.0000]])
    """
    q, k = elu_feature_map(q), elu_feature_map(k)
    total = q @ k.sum(dim=-2).unsqueeze(-1)
    return q @ (k.mT @ v) / (total + eps)


def causal_linear_recurrent(
    q: Float[Tensor, "*batch seq head_dim"],
    k: Float[Tensor, "*batch seq head_dim"],
    v: Float[Tensor, "*batch seq v_dim"],
    state: tuple[Float[Tensor, "*batch head_dim v_dim"], Float[Tensor, "*batch head_dim"]] | None = None,
) -> tuple[
    Float[Tensor, "*batch seq v_dim"],
    tuple[Float[Tensor, "*batch head_dim v_dim"], Float[Tensor, "*batch head_dim"]],
]:
    """The pair (out, state) of causal linear attention, token by token: a recurrent network with a matrix as state.

    Args:
        q: (*batch, seq, head_dim), already mapped to features that are not negative.
        k: (*batch, seq, head_dim), already mapped.
        v: (*batch, seq, v_dim).
        state: the pair (S, z) that an earlier call returned; None: zeros.

    Returns:
        out: (*batch, seq, v_dim), q_i S_i / (q_i · z_i) with S_i = Σ_{j ≤ i} k_j v_jᵀ and z_i = Σ_{j ≤ i} k_j; 0 where
            the normaliser is 0.
        state: the pair S (*batch, head_dim, v_dim) and z (*batch, head_dim) after the last token. The one passed in is
            left as it was. Without a token out is empty and the state the one passed in. Nothing of size seq × seq is
            formed.

    Source: Katharopoulos et al. (2020), section 3.4, equations 16 to 20.

    Example:
        >>> q, k, v = torch.ones(3, 1), torch.tensor([[1.0], [1.0], [2.0]]), torch.tensor([[2.0], [4.0], [9.0]])
        >>> out, (S, z) = causal_linear_recurrent(q, k, v)
        >>> out.flatten(), S, z
        (tensor([2., 3., 6.]), tensor([[24.]]), tensor([4.]))
    """
    if state is None:
        state = k.new_zeros(*k.shape[:-2], k.shape[-1], v.shape[-1]), k.new_zeros(*k.shape[:-2], k.shape[-1])
    S, z = state
    out = []
    for q_t, k_t, v_t in zip(q.unbind(-2), k.unbind(-2), v.unbind(-2), strict=True):
        S, z = S + k_t[..., None] * v_t[..., None, :], z + k_t
        total = (q_t * z).sum(dim=-1, keepdim=True)
        out.append((q_t[..., None, :] @ S).squeeze(-2) / total.masked_fill(total == 0, 1))
    return torch.stack(out, dim=-2) if out else torch.zeros_like(v), (S, z)


def causal_linear_chunked(
    q: Float[Tensor, "*batch seq head_dim"],
    k: Float[Tensor, "*batch seq head_dim"],
    v: Float[Tensor, "*batch seq v_dim"],
    chunk: int,
    state: tuple[Float[Tensor, "*batch head_dim v_dim"], Float[Tensor, "*batch head_dim"]] | None = None,
) -> tuple[
    Float[Tensor, "*batch seq v_dim"],
    tuple[Float[Tensor, "*batch head_dim v_dim"], Float[Tensor, "*batch head_dim"]],
]:
    """The pair (out, state) of causal linear attention in matrix products: scores inside chunks, states between them.

    Args:
        q: (*batch, seq, head_dim), already mapped to features that are not negative.
        k: (*batch, seq, head_dim), already mapped.
        v: (*batch, seq, v_dim).
        chunk: how many tokens a chunk has; the last may be shorter.
        state: the pair (S, z) that an earlier call returned; None: zeros.

    Returns:
        out: (*batch, seq, v_dim), what `causal_linear_recurrent` returns.
        state: the pair (S, z) after the last token, likewise. The one passed in is left as it was. No Python loop runs
            over tokens, and nothing larger is formed than seq × chunk scores and one state a chunk.

    Source: Yang et al. (2023), section 3 (the chunkwise form); Sun et al. (2023), section 2.3.

    Example:
        >>> q, k, v = torch.ones(3, 1), torch.tensor([[1.0], [1.0], [2.0]]), torch.tensor([[2.0], [4.0], [9.0]])
        >>> out, (S, z) = causal_linear_chunked(q, k, v, chunk=2)
        >>> out.flatten(), S, z
        (tensor([2., 3., 6.]), tensor([[24.]]), tensor([4.]))
    """
    seq = q.shape[-2]
    v = F.pad(v, (0, 1), value=1)  # a value that is always 1 adds up the weights: its column of S is z
    q, k, v = (F.pad(x, (0, 0, 0, -seq % chunk)).unflatten(-2, (-1, chunk)) for x in (q, k, v))
    states = F.pad(k.mT @ v, (0, 0, 0, 0, 1, 0))  # (*batch, 1 + chunks, head_dim, v_dim + 1)
    if state is not None:
        states[..., 0, :, :] = torch.cat([state[0], state[1][..., None]], dim=-1)
    states = states.cumsum(dim=-3)
    summed = q @ states[..., :-1, :, :] + (q @ k.mT).tril() @ v
    out, total = summed.flatten(-3, -2)[..., :seq, :].split([v.shape[-1] - 1, 1], dim=-1)
    last = states[..., -1, :, :]
    return out / total.masked_fill(total == 0, 1), (last[..., :-1], last[..., -1])


def orthogonal_random_features(
    head_dim: int, features: int, generator: torch.Generator
) -> Float[Tensor, "features head_dim"]:
    """Random directions, each as a Gaussian vector would be, orthogonal to each other within blocks of head_dim.

    Args:
        head_dim: width of a query and of a key.
        features: how many directions; the last block may be incomplete.
        generator: the generator that draws.

    Returns:
        (features, head_dim), in torch's default dtype. Rows of one block are orthogonal; each row by itself is
        distributed as a standard Gaussian vector: its direction uniform, its length that of another Gaussian vector.
        The lengths are independent of each other, and so are the blocks.

    Source: Choromanski et al. (2020), section 2.4 and appendix (orthogonal random features, regularised).

    Example:
        >>> rows = orthogonal_random_features(3, 5, torch.Generator().manual_seed(0))
        >>> rows.shape, bool((rows[0] @ rows[1]).abs() < 1e-5)
        (torch.Size([5, 3]), True)
    """
    blocks = -(-features // head_dim)
    q, r = torch.linalg.qr(torch.randn(blocks, head_dim, head_dim, generator=generator))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]  # QR fixes signs; only with R's taken back is q uniform
    lengths = torch.randn(features, head_dim, generator=generator).norm(dim=-1, keepdim=True)
    return q.mT.reshape(-1, head_dim)[:features] * lengths


def favor_features(
    x: Float[Tensor, "*batch seq head_dim"], projection: Float[Tensor, "features head_dim"], is_query: bool
) -> Float[Tensor, "*batch seq features"]:
    """Positive random features of the softmax kernel: φ(q)·φ(k) is exp(q·k / √head_dim) on average, up to a factor.

    Args:
        x: (*batch, seq, head_dim), queries or keys, not yet scaled.
        projection: (features, head_dim), random directions w.
        is_query: whether x are queries; it decides which maximum is taken off before exp.

    Returns:
        (*batch, seq, features): exp(w·y − |y|²/2 − c) / √features with y = x / head_dim^¼. c keeps exp from
        overflowing: for queries the maximum over the features of each row of w·y − |y|²/2, for keys one maximum over
        all tokens and features of a sequence. The factor exp(−c) falls out of normalised attention, so gradients may
        treat c as a constant.

    Source: Choromanski et al. (2020), section 2.3, lemma 1.

    Example:
        >>> favor_features(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0]]), is_query=True)
        tensor([[0.2601, 0.7071],
                [0.0957, 0.7071]])
    """
    y = x * x.shape[-1] ** -0.25
    exponent = y @ projection.mT - y.square().sum(dim=-1, keepdim=True) / 2
    largest = exponent.detach().amax(dim=-1 if is_query else (-2, -1), keepdim=True)
    return (exponent - largest).exp() * len(projection) ** -0.5


def performer_attention(
    q: Float[Tensor, "*batch q_seq head_dim"],
    k: Float[Tensor, "*batch kv_seq head_dim"],
    v: Float[Tensor, "*batch kv_seq v_dim"],
    projection: Float[Tensor, "features head_dim"],
) -> Float[Tensor, "*batch q_seq v_dim"]:
    """Softmax attention estimated by random features, in time and memory linear in the length.

    Args:
        q: (*batch, q_seq, head_dim), not yet scaled.
        k: (*batch, kv_seq, head_dim).
        v: (*batch, kv_seq, v_dim).
        projection: (features, head_dim), as `orthogonal_random_features` draws it.

    Returns:
        (*batch, q_seq, v_dim): φ(q) (φ(k)ᵀ v) / (φ(q) · Σ φ(k)) with φ = `favor_features`, 0 where the normaliser is 0.
        Numerator and normaliser are unbiased, up to one common factor; their ratio is not.

    Source: Choromanski et al. (2020), section 2.1 and algorithm 1.

    Example:
        >>> projection = orthogonal_random_features(2, 4096, torch.Generator().manual_seed(0))
        >>> k = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # softmax attention gives the weights 0.6698 and 0.3302
        >>> out = performer_attention(k[:1], k, torch.eye(2), projection)
        >>> bool((out - torch.tensor([[0.6698, 0.3302]])).abs().max() < 0.02)
        True
    """
    q, k = favor_features(q, projection, is_query=True), favor_features(k, projection, is_query=False)
    total = q @ k.sum(dim=-2).unsqueeze(-1)
    return q @ (k.mT @ v) / total.masked_fill(total == 0, 1)


def linformer_attention(
    q: Float[Tensor, "*batch q_seq head_dim"],
    k: Float[Tensor, "*batch kv_seq head_dim"],
    v: Float[Tensor, "*batch kv_seq v_dim"],
    e_proj: Float[Tensor, "rank kv_seq"],
    f_proj: Float[Tensor, "rank kv_seq"],
) -> Float[Tensor, "*batch q_seq v_dim"]:
    """Softmax attention to `rank` mixtures of all keys and values instead of to each of them.

    Every mixture holds a share of every token, the future among them: no mask over keys can make this causal.

    Args:
        q: (*batch, q_seq, head_dim).
        k: (*batch, kv_seq, head_dim).
        v: (*batch, kv_seq, v_dim).
        e_proj: (rank, kv_seq), mixes keys along the sequence: `e_proj @ k`.
        f_proj: (rank, kv_seq), mixes values.

    Returns:
        (*batch, q_seq, v_dim): softmax(q (e_proj k)ᵀ / √head_dim) (f_proj v). Nothing of size q_seq × kv_seq is formed.

    Raises:
        ValueError: if the projections were made for another number of keys.

    Source: Wang et al. (2020), section 4, equation 7.

    Example:
        >>> x, mean = torch.tensor([[0.0], [1.0], [2.0], [9.0]]), torch.full((1, 4), 0.25)
        >>> linformer_attention(x[:1], x, x, mean, mean)
        tensor([[3.]])
    """
    kv_seq = k.shape[-2]
    if not e_proj.shape[-1] == f_proj.shape[-1] == kv_seq:
        raise ValueError(f"made for {e_proj.shape[-1]} keys and {f_proj.shape[-1]} values, but there are {kv_seq}")
    scores = q @ (e_proj @ k).mT * q.shape[-1] ** -0.5  # (*batch, q_seq, rank)
    return scores.softmax(dim=-1) @ (f_proj @ v)


def attention_spectrum(weights: Float[Tensor, "*batch q_seq kv_seq"], energy: float) -> Int[Tensor, "*batch"]:
    """The rank that holds a share of a matrix: how many of the largest singular values it takes.

    Args:
        weights: (*batch, q_seq, kv_seq).
        energy: from 0 to 1, the share of the sum of squared singular values to be reached.

    Returns:
        (*batch) integers: the least number of singular values, largest first, whose squares add up to at least
        `energy` of the whole sum; 0 where `energy` is 0, and for a matrix of zeros.

    Source: Wang et al. (2020), section 3, figure 1.

    Example:
        >>> attention_spectrum(torch.diag(torch.tensor([3.0, 2.0, 1.0])), energy=0.9)  # 9 + 4 of 14 are 0.93
        tensor(2)
    """
    squares = torch.linalg.svdvals(weights).square()
    sums = squares.cumsum(dim=-1)
    return (sums - squares < energy * sums[..., -1:]).sum(dim=-1)


def gated_linear_attention(
    q: Float[Tensor, "*batch seq head_dim"],
    k: Float[Tensor, "*batch seq head_dim"],
    v: Float[Tensor, "*batch seq v_dim"],
    decay: Float[Tensor, "*#batch #seq #head_dim"],
    state: Float[Tensor, "*batch head_dim v_dim"] | None = None,
    chunk: int = 64,
) -> tuple[Float[Tensor, "*batch seq v_dim"], Float[Tensor, "*batch head_dim v_dim"]]:
    """The pair (out, state) of linear attention that forgets: S_t = decay_t S_{t−1} + k_t v_tᵀ, out_t = S_tᵀ q_t.

    Args:
        q: (*batch, seq, head_dim), neither scaled nor mapped.
        k: (*batch, seq, head_dim).
        v: (*batch, seq, v_dim).
        decay: broadcasts to (*batch, seq, head_dim), in (0, 1]: one number a key channel (GLA), one a token with a last
            axis of 1 (Mamba-2), one for all tokens with two axes of 1 (RetNet). It weakens the state before the write.
        state: what an earlier call returned; None: zeros.
        chunk: how many tokens are handled at once; 1 is the recurrence itself. It changes cost, not the result.

    Returns:
        out: (*batch, seq, v_dim), without any normaliser.
        state: S after the last token; without any token, the one passed in, which is left as it was in any case. A
            Python loop may run over chunks, not over tokens, and nothing larger is formed than seq × chunk × head_dim
            numbers. Nothing overflows where the product of decays over a chunk rounds to 0; the result is exact to ten
            digits in float64, and to about four in float32.

    Source: Yang et al. (2023), sections 2 to 4; Sun et al. (2023), section 2; Dao and Gu (2024), section 6.

    Example:
        >>> x = torch.ones(3, 1)
        >>> out, state = gated_linear_attention(x, x, torch.tensor([[8.0], [0.0], [4.0]]), torch.full((1, 1), 0.5))
        >>> out.flatten(), state
        (tensor([8., 4., 6.]), tensor([[6.]]))
    """
    log_decay = decay.log().expand(*k.shape[:-1], decay.shape[-1])
    state = k.new_zeros(*k.shape[:-2], k.shape[-1], v.shape[-1]) if state is None else state
    if k.shape[-2] == 0:
        return torch.zeros_like(v), state
    out = []
    for q_c, k_c, v_c, log_c in zip(*(x.split(chunk, dim=-2) for x in (q, k, v, log_decay)), strict=True):
        log_c = log_c.cumsum(dim=-2)  # from the start of the chunk
        out.append(q_c * log_c.exp() @ state + decayed_products(q_c, k_c, log_c) @ v_c)
        to_end = (log_c[..., -1:, :] - log_c).exp()
        state = log_c[..., -1, :, None].exp() * state + (k_c * to_end).mT @ v_c
    return torch.cat(out, dim=-2), state


def delta_rule(
    q: Float[Tensor, "*batch seq head_dim"],
    k: Float[Tensor, "*batch seq head_dim"],
    v: Float[Tensor, "*batch seq v_dim"],
    beta: Float[Tensor, "*batch seq"],
    decay: Float[Tensor, "*#batch #seq #head_dim"] | None = None,
    state: Float[Tensor, "*batch head_dim v_dim"] | None = None,
    chunk: int = 64,
) -> tuple[Float[Tensor, "*batch seq v_dim"], Float[Tensor, "*batch head_dim v_dim"]]:
    """The pair (out, state) of a memory that corrects itself: it writes only what it does not already answer.

    S ← decay_t S_{t−1};  S_t = S + β_t k_t (v_t − Sᵀ k_t)ᵀ;  out_t = S_tᵀ q_t.

    Args:
        q: (*batch, seq, head_dim), neither scaled nor mapped.
        k: (*batch, seq, head_dim), usually of unit norm; then β = 1 replaces the old answer to k by v.
        v: (*batch, seq, v_dim).
        beta: (*batch, seq), how strongly each token is written, in [0, 1].
        decay: as in `gated_linear_attention`; None: nothing is forgotten.
        state: what an earlier call returned; None: zeros.
        chunk: how many tokens are handled at once; 1 is the recurrence itself. It changes cost, not the result.

    Returns:
        out: (*batch, seq, v_dim).
        state: S after the last token, or the one passed in if there is none, at the cost and with the precision of
            `gated_linear_attention`.

    Source: Schlag et al. (2021), section 4.2; Yang et al. (2024, delta rule), section 3 (the WY form of a chunk); Yang,
        Kautz, Hatamizadeh (2024), section 3.

    Example:
        >>> k = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> out, state = delta_rule(k, k, torch.tensor([[3.0], [5.0], [4.0]]), torch.ones(3))
        >>> out.flatten(), state.flatten()  # the second write to the first key replaces 3 by 4
        (tensor([3., 5., 4.]), tensor([4., 5.]))
    """
    decay = k.new_ones(1, 1) if decay is None else decay
    log_decay = decay.log().expand(*k.shape[:-1], decay.shape[-1])
    state = k.new_zeros(*k.shape[:-2], k.shape[-1], v.shape[-1]) if state is None else state
    if k.shape[-2] == 0:
        return torch.zeros_like(v), state
    out = []
    parts = (x.split(chunk, dim=-2) for x in (q, k, v, beta.unsqueeze(-1), log_decay))
    for q_c, k_c, v_c, beta_c, log_c in zip(*parts, strict=True):
        log_c = log_c.cumsum(dim=-2)  # from the start of the chunk
        # What token i writes depends on what the tokens before it wrote: a triangular system, solved at once.
        surprise = beta_c * (v_c - k_c * log_c.exp() @ state)
        overlap = beta_c * decayed_products(k_c, k_c, log_c)
        written = torch.linalg.solve_triangular(overlap, surprise, upper=False, unitriangular=True)
        out.append(q_c * log_c.exp() @ state + decayed_products(q_c, k_c, log_c) @ written)
        to_end = (log_c[..., -1:, :] - log_c).exp()
        state = log_c[..., -1, :, None].exp() * state + (k_c * to_end).mT @ written
    return torch.cat(out, dim=-2), state


def decoding_state_bytes(
    kind: str,
    seq: int,
    layers: int,
    heads: int,
    head_dim: int,
    kv_heads: int = 1,
    latent_dim: int = 0,
    rope_dim: int = 0,
    window: int = 1,
    batch: int = 1,
    bytes_per_element: int = 2,
) -> int:
    """How many bytes a decoder carries from token to token after `seq` tokens.

    Args:
        kind: "mha" and "gqa": keys and values of all tokens, for `heads` and for `kv_heads` heads. "mla": one latent
            and one rotary key a token, shared by all heads. "window": keys and values of all heads, for the last
            `window` tokens. "linear": one state S (head_dim, head_dim) and one normaliser z (head_dim) a head.
        seq: tokens so far, 0 or more.
        layers: how many layers.
        heads: how many query heads.
        head_dim: width of a head, for keys and for values.
        kv_heads: read only by "gqa".
        latent_dim, rope_dim: widths of the latent and of the rotary key; read only by "mla".
        window: read only by "window".
        batch: how many sequences are decoded side by side.
        bytes_per_element: 2 for bfloat16 and float16.

    Returns:
        An exact integer.

    Raises:
        ValueError: for another kind.

    Source: DeepSeek-AI (2024), section 2.1.4, table 1; Katharopoulos et al. (2020), section 3.4.

    Example:
        >>> [decoding_state_bytes(kind, 8192, layers=32, heads=32, head_dim=128, kv_heads=8, window=4096) // 2**20
        ...  for kind in ("mha", "gqa", "window", "linear")]
        [4096, 1024, 2048, 32]
    """
    elements = {
        "mha": 2 * heads * head_dim * seq,
        "gqa": 2 * kv_heads * head_dim * seq,
        "mla": (latent_dim + rope_dim) * seq,
        "window": 2 * heads * head_dim * min(seq, window),
        "linear": heads * head_dim * (head_dim + 1),
    }
    if kind not in elements:
        raise ValueError(f"kind must be one of {', '.join(elements)}, not {kind!r}")
    return elements[kind] * layers * batch * bytes_per_element
