"""Scaled dot-product attention: scores, softmax, scaling, masks, and every gradient by hand (NumPy).

Attention is three steps: score every key against every query, turn each row of scores into weights that sum
to one, average the values with those weights,

    A = softmax(Q Kᵀ / √d_k),    O = A V.

Papers:
    Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762, §3.2.1 (the formula, and footnote 4 on √d_k).
    Luong, Pham, Manning, Effective Approaches to Attention-based NMT, 2015, arXiv:1508.04025 (the unscaled dot).
    Bridle, Probabilistic Interpretation of Feedforward Classification Network Outputs, 1990 (softmax).
    Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531 (temperature).
    Szegedy et al., Rethinking the Inception Architecture, 2015, arXiv:1512.00567 (label smoothing).

Letters:
    q_seq      n    how many queries
    kv_seq     m    how many keys, and values
    head_dim   d_k  width of a query and of a key
    v_dim      d_v  width of a value
    classes    K    how many classes a classifier chooses from
    probs      p    a row of weights: softmax of a row of scores z
    upstream   g    the gradient of the loss with respect to a function's output

Masks are boolean and True means "may attend". A row with nothing to attend to gets weights 0 and output 0.
"""

import numpy as np
from jaxtyping import Bool, Float, Int


def scaled_dot_product_attention(
    query: Float[np.ndarray, "*batch q_seq head_dim"],
    key: Float[np.ndarray, "*batch kv_seq head_dim"],
    value: Float[np.ndarray, "*batch kv_seq v_dim"],
    mask: Bool[np.ndarray, "..."] | None = None,
    scale: float | None = None,
) -> tuple[Float[np.ndarray, "*batch q_seq v_dim"], Float[np.ndarray, "*batch q_seq kv_seq"]]:
    """Weighted mean of the values for every query, and the weights.

    Args:
        query: what is asked, (..., q_seq, head_dim).
        key: what each position offers to be found by, (..., kv_seq, head_dim), with the same leading axes.
        value: what each position hands over, (..., kv_seq, v_dim), with the same leading axes.
        mask: True where a query may attend, broadcastable to (..., q_seq, kv_seq). Against 4-D scores a 3-D mask
            is always read as (batch, q_seq, kv_seq), never as (heads, ...), and gains a head axis; a 4-D mask
            passes as it is.
        scale: factor on the scores; 1/√head_dim if None.

    Returns:
        The output (..., q_seq, v_dim) and the weights (..., q_seq, kv_seq), in the dtype of the inputs. A query
        that may attend to nothing has weights 0 and output 0.

    Source: Vaswani et al. 2017, §3.2.1, equation 1.

    Example:
        >>> query, key = np.array([[2.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> output, weights = scaled_dot_product_attention(query, key, np.array([[10.0], [20.0]]))
        >>> weights.round(4), output.round(3)           # scores 2 and 0, divided by √2
        (array([[0.8044, 0.1956]]), array([[11.956]]))
    """
    if scale is None:
        scale = query.shape[-1] ** -0.5
    scores = query @ key.swapaxes(-1, -2) * scale
    if mask is not None:
        if mask.ndim == 3 and scores.ndim == 4:
            mask = mask[:, None]
        scores = np.where(mask, scores, -np.inf)
    largest = scores.max(axis=-1, keepdims=True)
    exps = np.exp(scores - np.where(largest == -np.inf, 0, largest))
    total = exps.sum(axis=-1, keepdims=True)
    weights = exps / np.where(total == 0, 1, total)
    return weights @ value, weights


def softmax_with_temperature(
    scores: Float[np.ndarray, "*batch n"], temperature: float
) -> Float[np.ndarray, "*batch n"]:
    """Softmax of scores / temperature along the last axis, from argmax (0) to uniform (infinity).

    Args:
        scores: finite scores, (..., n).
        temperature: 0 or more. At 0 the largest score takes everything and equal largest scores share it; at
            infinity all weights are equal.

    Returns:
        Weights (..., n) in the dtype of the scores; each row sums to 1.

    Raises:
        ValueError: if the temperature is negative.

    Source: Hinton, Vinyals, Dean 2015, §2, equation 1.

    Example:
        >>> softmax_with_temperature(np.array([2.0, 1.0, 0.1]), 1.0).round(3)
        array([0.659, 0.242, 0.099])
        >>> softmax_with_temperature(np.array([2.0, 1.0, 0.1]), 10.0).round(3)
        array([0.366, 0.331, 0.303])
    """
    if temperature < 0:
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    gaps = scores - scores.max(axis=-1, keepdims=True)
    if temperature == 0:
        exps = (gaps == 0).astype(scores.dtype)
    else:
        with np.errstate(over="ignore"):  # a gap of minus infinity is fine: its weight is 0
            exps = np.exp(gaps / temperature)
    return exps / exps.sum(axis=-1, keepdims=True)


def softmax_jacobian(probs: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch n n"]:
    """Jacobian of softmax, written in its own output: J[i, j] = ∂pᵢ/∂zⱼ = pᵢ(δᵢⱼ − pⱼ).

    Args:
        probs: outputs p of a softmax over the last axis, (..., n).

    Returns:
        One matrix diag(p) − p pᵀ per row of probs, (..., n, n), in the dtype of probs.

    Source: Goodfellow, Bengio, Courville, Deep Learning, 2016, §6.2.2.

    Example:
        >>> softmax_jacobian(np.array([0.5, 0.25, 0.25]))
        array([[ 0.25  , -0.125 , -0.125 ],
               [-0.125 ,  0.1875, -0.0625],
               [-0.125 , -0.0625,  0.1875]])
    """
    delta = np.eye(probs.shape[-1], dtype=probs.dtype)
    return probs[..., :, None] * (delta - probs[..., None, :])


def softmax_vjp(
    probs: Float[np.ndarray, "*batch n"], upstream: Float[np.ndarray, "*batch n"]
) -> Float[np.ndarray, "*batch n"]:
    """Gradient with respect to the scores of a softmax, in time and memory linear in n.

    Args:
        probs: outputs p of a softmax over the last axis, (..., n).
        upstream: gradient g of the loss with respect to p, (..., n).

    Returns:
        Jᵀ g for every row, (..., n), in the dtype of the inputs. The n×n Jacobian is never formed.

    Source: Goodfellow, Bengio, Courville, Deep Learning, 2016, §6.2.2 and §6.5.

    Example:
        >>> softmax_vjp(np.array([0.5, 0.25, 0.25]), np.array([1.0, 0.0, 0.0]))
        array([ 0.25 , -0.125, -0.125])
    """
    expected = (probs * upstream).sum(axis=-1, keepdims=True)
    return probs * (upstream - expected)


def causal_mask(q_seq: int, kv_seq: int) -> Bool[np.ndarray, "q_seq kv_seq"]:
    """Boolean mask that hides the future: True where the key stands at or before the query.

    Args:
        q_seq: how many queries; they are the last q_seq positions of the sequence.
        kv_seq: how many keys.

    Returns:
        Mask (q_seq, kv_seq), aligned bottom-right: query i stands at position i + kv_seq − q_seq, so the last
        query sees every key. If q_seq > kv_seq the first rows see nothing.

    Source: Vaswani et al. 2017, §3.2.3; the alignment is the one of decoding with cached keys.

    Example:
        >>> causal_mask(2, 4).astype(int)
        array([[1, 1, 1, 0],
               [1, 1, 1, 1]])
    """
    positions = np.arange(q_seq) + kv_seq - q_seq
    return np.arange(kv_seq) <= positions[:, None]


def padding_mask(lengths: Int[np.ndarray, " batch"], kv_seq: int) -> Bool[np.ndarray, "batch 1 kv_seq"]:
    """Boolean mask that hides padding: True at the first `lengths[b]` keys of sequence b.

    Args:
        lengths: how many keys of each sequence are real, (batch,).
        kv_seq: how many keys there are with the padding.

    Returns:
        Mask (batch, 1, kv_seq). Its middle axis broadcasts over the queries, so `padding_mask(...) &
        causal_mask(...)` is (batch, q_seq, kv_seq).

    Raises:
        ValueError: if a length is negative or larger than kv_seq.

    Source: Vaswani et al. 2017, §3.2.3 (illegal connections are masked out before the softmax).

    Example:
        >>> padding_mask(np.array([1, 3]), 4).astype(int)
        array([[[1, 0, 0, 0]],
        <BLANKLINE>
               [[1, 1, 1, 0]]])
    """
    if (lengths < 0).any() or (lengths > kv_seq).any():
        raise ValueError(f"every length must lie between 0 and kv_seq = {kv_seq}")
    return np.arange(kv_seq) < lengths[:, None, None]


def attention_vjp(
    query: Float[np.ndarray, "*batch q_seq head_dim"],
    key: Float[np.ndarray, "*batch kv_seq head_dim"],
    value: Float[np.ndarray, "*batch kv_seq v_dim"],
    upstream: Float[np.ndarray, "*batch q_seq v_dim"],
    mask: Bool[np.ndarray, "..."] | None = None,
) -> tuple[
    Float[np.ndarray, "*batch q_seq head_dim"],
    Float[np.ndarray, "*batch kv_seq head_dim"],
    Float[np.ndarray, "*batch kv_seq v_dim"],
]:
    """Gradients of scaled dot-product attention with respect to query, key and value, by hand.

    Args:
        query: (..., q_seq, head_dim).
        key: (..., kv_seq, head_dim), with the same leading axes.
        value: (..., kv_seq, v_dim), with the same leading axes.
        upstream: gradient of the loss with respect to the output, (..., q_seq, v_dim).
        mask: as in scaled_dot_product_attention; the scale is 1/√head_dim.

    Returns:
        (query_grad, key_grad, value_grad), each in the shape and dtype of its input. What may not be attended
        to gets gradient 0. No array has more than one q_seq × kv_seq per head; no Jacobian is formed.

    Source: Vaswani et al. 2017, §3.2.1, differentiated; the same steps as Dao et al. 2022 (FlashAttention), App. B.2.

    Example:
        >>> query, key = np.array([[2.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> grads = attention_vjp(query, key, np.array([[10.0], [20.0]]), np.array([[1.0]]))
        >>> [grad.round(3).tolist() for grad in grads]
        [[[-1.112, 1.112]], [[-2.225, 0.0], [2.225, 0.0]], [[0.804], [0.196]]]
    """
    _, weights = scaled_dot_product_attention(query, key, value, mask)
    value_grad = weights.swapaxes(-1, -2) @ upstream
    weights_grad = upstream @ value.swapaxes(-1, -2)
    scores_grad = softmax_vjp(weights, weights_grad) * query.shape[-1] ** -0.5
    query_grad = scores_grad @ key
    key_grad = scores_grad.swapaxes(-1, -2) @ query
    return query_grad, key_grad, value_grad


def cross_entropy_grad(
    logits: Float[np.ndarray, "*batch classes"],
    targets: Int[np.ndarray, "*batch"],
    label_smoothing: float = 0.0,
) -> Float[np.ndarray, "*batch classes"]:
    """Gradient of the mean cross-entropy with respect to the logits: (p − y) / number of rows.

    Args:
        logits: scores before the softmax, (..., classes).
        targets: the right class of each row, from 0 to classes − 1, (...).
        label_smoothing: ε between 0 and 1; the target distribution y is 1 − ε at the right class plus ε/classes
            at every class.

    Returns:
        Gradient (..., classes) in the dtype of the logits. The number of rows is counted over all leading axes.

    Source: Goodfellow, Bengio, Courville 2016, §6.2.2; smoothing: Szegedy et al. 2015, §7.

    Example:
        >>> cross_entropy_grad(np.array([[0.0, 0.0], [0.0, 0.0]]), np.array([0, 1]))
        array([[-0.25,  0.25],
               [ 0.25, -0.25]])
    """
    classes = logits.shape[-1]
    exps = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probs = exps / exps.sum(axis=-1, keepdims=True)
    right = np.eye(classes, dtype=logits.dtype)[targets]
    wanted = (1 - label_smoothing) * right + label_smoothing / classes
    return (probs - wanted) / targets.size


def effective_support(weights: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch"]:
    """How many keys a row of weights really spreads over: exp(entropy), between 1 and n.

    Args:
        weights: rows that sum to 1, or that are all 0 where there was nothing to attend to, (..., n).

    Returns:
        exp(−Σ w log w) for every row with 0·log 0 = 0, (...), in the dtype of the weights; 0 for a row of zeros.

    Source: Hill, Diversity and Evenness, 1973 (the number of order 1).

    Example:
        >>> effective_support(np.array([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]))
        array([4., 2., 1.])
    """
    logs = np.log(np.where(weights > 0, weights, 1))
    entropy = -(weights * logs).sum(axis=-1)
    return np.where(weights.any(axis=-1), np.exp(entropy), 0)
