"""FlashAttention on a CPU, from online softmax to forward and backward: the reference solutions of chapter `flash`.

Exact attention is quadratic in work, but it need not be quadratic in memory. A softmax can be taken piece by piece, if
its running maximum and its running sum travel along; so scores may be made one tile at a time, used, and thrown away.
What is left to count is traffic: elements moved between a large slow memory (HBM) and a small fast one (SRAM).

Papers:
    Micikevicius et al. (2017), Mixed Precision Training, 1710.03740
    Milakov, Gimelshein (2018), Online Normalizer Calculation for Softmax, 1805.02867
    Rabe, Staats (2021), Self-attention Does Not Need O(n²) Memory, 2112.05682
    Dao, Fu, Ermon, Rudra, Ré (2022), FlashAttention, 2205.14135
    Dao (2023), FlashAttention-2, 2307.08691
    Dao, Haziza, Massa, Sizov (2023), Flash-Decoding for Long-Context Inference

Glossary:
    q_seq, kv_seq, seq  how many queries; how many keys and values; both, where they are the same tokens
    block_q, block_k    how many queries, and how many keys, a tile of scores has; the last tiles may be smaller
    lse                 natural logarithm of the sum of exp(scaled scores) of a query; −∞ where it attends to nothing
    maximum, total      the largest score so far, and the sum of exp(score − maximum) so far
    sram                how many elements (in `choose_blocks`: bytes) the fast memory holds

Scores are scaled by 1/√head_dim. With `causal`, query i stands at i + kv_seq − q_seq and attends to no later key. A
query with nothing to attend to gets output 0 and lse −∞, never NaN.
"""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Measures memory: inside `with LargestTensor() as made:`, `made.numbers` is the size of the largest tensor made.

    Example:
        >>> with LargestTensor() as made:
        ...     total = (torch.ones(3, 1) * torch.ones(1, 5)).sum()
        >>> made.numbers
        15
    """

    def __init__(self):
        super().__init__()
        self.numbers = 0

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # or torch would import its compiler, many seconds for something not used here

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        """Run one operation of torch and note the size of what it makes."""
        result = operation(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(one, Tensor):
                self.numbers = max(self.numbers, one.numel())
        return result


def online_softmax(
    chunks: Iterable[Float[Tensor, "*batch chunk"]],
) -> tuple[Float[Tensor, " *batch"], Float[Tensor, " *batch"]]:
    """The pair (maximum, total) of a row of scores that arrives in chunks, each of them read once.

    With it the softmax of the whole row is exp(score − maximum) / total, and lse = maximum + log(total).

    Args:
        chunks: one or more tensors (*batch, chunk) of scores, in any widths, also 0. Scores may be −∞ (masked).

    Returns:
        maximum: (*batch), the largest score of all chunks; −∞ where all are −∞ or there is none.
        total: (*batch), the sum of exp(score − maximum) over all chunks; 0 where maximum is −∞. In the dtype of the
            scores; nothing wider than the widest chunk and one column is ever held.

    Source: Milakov and Gimelshein (2018), algorithm 3.

    Example:
        >>> online_softmax([torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0]])])
        (tensor([3.]), tensor([1.1851]))
    """
    maximum = total = None
    for chunk in chunks:
        if maximum is None or total is None:
            maximum = chunk.new_full(chunk.shape[:-1], -torch.inf)
            total = chunk.new_zeros(chunk.shape[:-1])
        larger = torch.cat([maximum.unsqueeze(-1), chunk], dim=-1).amax(dim=-1)
        base = larger.masked_fill(larger == -torch.inf, 0)  # −∞ − (−∞) would be NaN
        total = total * (maximum - base).exp() + (chunk - base.unsqueeze(-1)).exp().sum(dim=-1)
        maximum = larger
    if maximum is None or total is None:
        raise ValueError("at least one chunk is needed, even if it is empty")
    return maximum, total


def merge_partials(
    out_a: Float[Tensor, "*batch q_seq v_dim"],
    lse_a: Float[Tensor, "*batch q_seq"],
    out_b: Float[Tensor, "*batch q_seq v_dim"],
    lse_b: Float[Tensor, "*batch q_seq"],
) -> tuple[Float[Tensor, "*batch q_seq v_dim"], Float[Tensor, "*batch q_seq"]]:
    """The pair (out, lse) over the union of two disjoint sets of keys, from the pairs over each.

    Args:
        out_a, out_b: (*batch, q_seq, v_dim), softmax averages of values; 0 where a set is empty.
        lse_a, lse_b: (*batch, q_seq); −∞ where a set is empty.

    Returns:
        out: (*batch, q_seq, v_dim), the averages weighted by exp(lse).
        lse: (*batch, q_seq), log(exp(lse_a) + exp(lse_b)). An empty part changes nothing, and two of them give 0 and
            −∞. Merging is commutative and associative: parts may come in any order.

    Source: Rabe and Staats (2021), section 2; Dao et al. (2022), section 3.1; Dao et al. (2023), Flash-Decoding.

    Example:
        >>> two, six = torch.tensor([[2.0]]), torch.tensor([[6.0]])
        >>> out, lse = merge_partials(two, torch.zeros(1), six, torch.tensor([3.0]).log())
        >>> out, lse.exp()
        (tensor([[5.]]), tensor([4.]))
    """
    lse = torch.logaddexp(lse_a, lse_b)
    base = lse.masked_fill(lse == -torch.inf, 0)  # both parts empty: exp(−∞ − 0) is 0
    share_a, share_b = (lse_a - base).exp().unsqueeze(-1), (lse_b - base).exp().unsqueeze(-1)
    return share_a * out_a + share_b * out_b, lse


def causal_block_schedule(
    q_blocks: int, k_blocks: int, block_q: int, block_k: int, shift: int = 0
) -> Int[Tensor, "q_blocks k_blocks"]:
    """What a causal kernel does with each tile of scores: skip it, mask it, or compute it without a mask.

    Args:
        q_blocks: how many blocks of queries there are.
        k_blocks: how many blocks of keys there are.
        block_q: queries in a block; query i of the sequence stands at position i + shift.
        block_k: keys in a block.
        shift: kv_seq − q_seq; it may be negative.

    Returns:
        (q_blocks, k_blocks) integers (int64): 0 skipped, no query of the block attends to any key of it; 2 full, every
        query attends to every key; 1 partial, the diagonal passes through. All blocks count as whole ones.

    Source: Dao (2023), section 3.1, "Causal masking".

    Example:
        >>> causal_block_schedule(2, 4, block_q=4, block_k=2)
        tensor([[1, 1, 0, 0],
                [2, 2, 1, 1]])
    """
    first_query = torch.arange(q_blocks)[:, None] * block_q + shift
    first_key = torch.arange(k_blocks) * block_k
    reached = first_key <= first_query + block_q - 1
    whole = first_key + block_k - 1 <= first_query
    return reached.long() + whole.long()


def blockwise_attention(
    q: Float[Tensor, "*batch q_seq head_dim"],
    k: Float[Tensor, "*batch kv_seq head_dim"],
    v: Float[Tensor, "*batch kv_seq v_dim"],
    block_q: int,
    block_k: int,
    causal: bool = False,
) -> tuple[Float[Tensor, "*batch q_seq v_dim"], Float[Tensor, "*batch q_seq"]]:
    """The pair (out, lse) of exact attention, one tile of block_q × block_k scores at a time.

    The outer loop goes over queries, as in FlashAttention-2: the output of a block of queries is divided and written
    once, at the end.

    Args:
        q: (*batch, q_seq, head_dim).
        k: (*batch, kv_seq, head_dim).
        v: (*batch, kv_seq, v_dim).
        block_q: queries in a tile; the last tile may have fewer.
        block_k: keys in a tile; the last tile may have fewer.
        causal: whether the future is hidden; tiles that lie in it altogether are not computed.

    Returns:
        out: (*batch, q_seq, v_dim); 0 for a query that sees no key.
        lse: (*batch, q_seq); −∞ for such a query. Both in the dtype of q. Nothing larger than the inputs, the output
            and one tile is formed.

    Source: Dao (2023), algorithm 1.

    Example:
        >>> x = torch.zeros(4, 1)
        >>> out, lse = blockwise_attention(x, x, torch.tensor([[1.0], [3.0], [5.0], [7.0]]), 2, 2, causal=True)
        >>> out.squeeze(-1), lse.exp()
        (tensor([1., 2., 3., 4.]), tensor([1., 2., 3., 4.]))
    """
    q_seq, kv_seq, scale = q.shape[-2], k.shape[-2], q.shape[-1] ** -0.5
    shift = kv_seq - q_seq
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    lse = q.new_full(q.shape[:-1], -torch.inf)
    for i in range(0, q_seq, block_q):
        rows = slice(i, min(i + block_q, q_seq))
        q_tile = q[..., rows, :] * scale
        acc, total = torch.zeros_like(out[..., rows, :]), torch.zeros_like(lse[..., rows])
        maximum = torch.full_like(total, -torch.inf)
        for j in range(0, rows.stop + shift if causal else kv_seq, block_k):
            columns = slice(j, j + block_k)
            scores = q_tile @ k[..., columns, :].mT
            if causal:
                seen = torch.ones_like(scores, dtype=torch.bool).tril(i + shift - j)
                scores = scores.masked_fill(~seen, -torch.inf)
            larger = torch.maximum(maximum, scores.amax(dim=-1))
            base = larger.masked_fill(larger == -torch.inf, 0)  # a row that has seen nothing yet
            weights, shrink = (scores - base.unsqueeze(-1)).exp(), (maximum - base).exp()
            acc = acc * shrink.unsqueeze(-1) + weights @ v[..., columns, :]
            total = total * shrink + weights.sum(dim=-1)
            maximum = larger
        out[..., rows, :] = acc / total.masked_fill(total == 0, 1).unsqueeze(-1)
        lse[..., rows] = maximum + total.log()
    return out, lse


def flash_attention_backward(
    q: Float[Tensor, "*batch q_seq head_dim"],
    k: Float[Tensor, "*batch kv_seq head_dim"],
    v: Float[Tensor, "*batch kv_seq v_dim"],
    out: Float[Tensor, "*batch q_seq v_dim"],
    lse: Float[Tensor, "*batch q_seq"],
    d_out: Float[Tensor, "*batch q_seq v_dim"],
    block_q: int,
    block_k: int,
    causal: bool = False,
) -> tuple[
    Float[Tensor, "*batch q_seq head_dim"],
    Float[Tensor, "*batch kv_seq head_dim"],
    Float[Tensor, "*batch kv_seq v_dim"],
]:
    """The gradients (dq, dk, dv) of attention, from its inputs, its output and lse: weights are computed again.

    The weights of a tile are exp(scores − lse), and the softmax needs of all other tiles one number a query:
    delta = Σ weights · (their gradients) = ⟨out, d_out⟩.

    Args:
        q: (*batch, q_seq, head_dim).
        k: (*batch, kv_seq, head_dim).
        v: (*batch, kv_seq, v_dim).
        out: (*batch, q_seq, v_dim), what the forward pass returned.
        lse: (*batch, q_seq), what the forward pass returned; −∞ for a query that sees no key.
        d_out: (*batch, q_seq, v_dim), the gradient of the loss with respect to out.
        block_q: queries in a tile; the last tile may have fewer.
        block_k: keys in a tile; the last tile may have fewer.
        causal: whether the future is hidden; tiles that lie in it altogether are not computed.

    Returns:
        dq, dk, dv in the shapes and dtypes of q, k, v; a query that sees no key adds nothing to them. Five products a
        tile; nothing larger than the inputs and one tile is formed.

    Source: Dao (2023), algorithm 2; Dao et al. (2022), appendix B.2 and algorithm 4.

    Example:
        >>> x, v, d_out = torch.tensor([[1.0]]), torch.tensor([[3.0]]), torch.ones(1, 1)
        >>> flash_attention_backward(x, x, v, out=v, lse=torch.tensor([1.0]), d_out=d_out, block_q=1, block_k=1)
        (tensor([[0.]]), tensor([[0.]]), tensor([[1.]]))
    """
    q_seq, kv_seq, scale = q.shape[-2], k.shape[-2], q.shape[-1] ** -0.5
    shift = kv_seq - q_seq
    delta = (out * d_out).sum(dim=-1, keepdim=True)
    lse = lse.masked_fill(lse == -torch.inf, torch.inf).unsqueeze(-1)  # weights of empty rows: exp(score − ∞) = 0
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for j in range(0, kv_seq, block_k):
        columns = slice(j, j + block_k)
        k_tile, v_tile = k[..., columns, :], v[..., columns, :]
        first = max(0, j - shift) // block_q * block_q if causal else 0  # the first block that sees key j
        for i in range(first, q_seq, block_q):
            rows = slice(i, i + block_q)
            q_tile, d_tile = q[..., rows, :], d_out[..., rows, :]
            scores = q_tile @ k_tile.mT * scale
            if causal:
                seen = torch.ones_like(scores, dtype=torch.bool).tril(i + shift - j)
                scores = scores.masked_fill(~seen, -torch.inf)
            weights = (scores - lse[..., rows, :]).exp()
            d_scores = weights * (d_tile @ v_tile.mT - delta[..., rows, :]) * scale
            dq[..., rows, :] += d_scores @ k_tile
            dk[..., columns, :] += d_scores.mT @ q_tile
            dv[..., columns, :] += weights.mT @ d_tile
    return dq, dk, dv


class FlashAttention(torch.autograd.Function):
    """Attention that autograd knows how to differentiate without keeping a single score.

    Called as `FlashAttention.apply(q, k, v, causal, block_q, block_k)`. For the backward pass it saves q, k, v, out and
    lse, and no other tensor.

    Source: Dao et al. (2022), section 3.1, "Recomputation"; Dao (2023), algorithms 1 and 2.

    Example:
        >>> x = torch.zeros(2, 1, requires_grad=True)
        >>> FlashAttention.apply(x, x, torch.tensor([[2.0], [4.0]]), True, 1, 1)
        tensor([[2.],
                [3.]], grad_fn=<FlashAttentionBackward>)
    """

    @staticmethod
    def forward(ctx, q, k, v, causal=False, block_q=64, block_k=64):
        """The output of attention.

        Args:
            ctx: keeps what `backward` needs: tensors by `ctx.save_for_backward`, numbers as attributes.
            q: (*batch, q_seq, head_dim).
            k: (*batch, kv_seq, head_dim).
            v: (*batch, kv_seq, v_dim).
            causal: whether the future is hidden.
            block_q: queries in a tile.
            block_k: keys in a tile.

        Returns:
            (*batch, q_seq, v_dim), in the dtype of q.
        """
        out, lse = blockwise_attention(q, k, v, block_q, block_k, causal)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.block_q, ctx.block_k, ctx.causal = block_q, block_k, causal
        return out

    @staticmethod
    def backward(ctx, d_out):
        """One gradient for each argument of `forward`.

        Args:
            ctx: what `forward` kept; `ctx.saved_tensors` are the tensors in the order in which they were saved.
            d_out: (*batch, q_seq, v_dim), the gradient of the loss with respect to the output.

        Returns:
            (dq, dk, dv, None, None, None).
        """
        q, k, v, out, lse = ctx.saved_tensors
        gradients = flash_attention_backward(q, k, v, out, lse, d_out, ctx.block_q, ctx.block_k, ctx.causal)
        return *gradients, None, None, None


def hbm_accesses(algorithm: str, seq: int, head_dim: int, sram: int) -> int:
    """How many elements the forward pass of one head moves between slow and fast memory, reads and writes together.

    Queries, keys, values and outputs are seq × head_dim each. Counted is what the lines of the algorithms move:

    "standard" (Dao et al. 2022, algorithm 0): read Q and K, write S = QKᵀ; read S, write P = softmax(S); read P and V,
    write O. Each step moves each of its matrices once.

    "flash_1" (Dao et al. 2022, algorithm 1): write the initial O, ℓ and m (ℓ and m are seq numbers each). For each
    block of keys: read its K and V once; for each block of queries read its Q, O, ℓ, m, and write O, ℓ, m back. A block
    of keys has ⌈sram / (4 · head_dim)⌉ rows; the last may have fewer.

    "flash_2" (Dao 2023, algorithm 1): for each block of queries: read its Q once; for each block of keys read its K and
    V; at the end write O and lse (one number a query). The paper leaves the sizes of blocks open; here, as above, a
    block of the outer loop has ⌈sram / (4 · head_dim)⌉ rows.

    The size of the inner loop's blocks, min(⌈sram / (4 · head_dim)⌉, head_dim), does not change a count: the inner
    loop passes over all rows, however it cuts them.

    Args:
        algorithm: "standard", "flash_1" or "flash_2".
        seq: how many queries, and keys.
        head_dim: width of queries, keys and values.
        sram: how many elements the fast memory holds; not read by "standard".

    Returns:
        An exact integer.

    Raises:
        ValueError: for another algorithm.

    Source: Dao et al. (2022), algorithms 0 and 1 and theorem 2; Dao (2023), algorithm 1.

    Example:
        >>> [hbm_accesses(algorithm, 1024, head_dim=64, sram=24576) for algorithm in ("standard", "flash_1", "flash_2")]
        [4456448, 2406400, 1573888]
    """
    matrix, outer_blocks = seq * head_dim, math.ceil(seq / math.ceil(sram / (4 * head_dim)))
    if algorithm == "standard":
        return 4 * matrix + 4 * seq**2
    if algorithm == "flash_1":
        return 3 * matrix + 2 * seq + outer_blocks * (3 * matrix + 4 * seq)
    if algorithm == "flash_2":
        return 2 * matrix + seq + outer_blocks * 2 * matrix
    raise ValueError(f"algorithm must be standard, flash_1 or flash_2, not {algorithm!r}")


def choose_blocks(sram_bytes: int, head_dim: int, bytes_per_element: int) -> tuple[int, int]:
    """The pair (block_q, block_k) with which `blockwise_attention` moves least through a fast memory of this size.

    At once it holds: tiles of Q (block_q × head_dim), K and V (block_k × head_dim each) in `bytes_per_element`; and, in
    float32 of 4 bytes, all that adds up: the output (block_q × head_dim), the scores (block_q × block_k), a maximum and
    a sum for each query.

    Args:
        sram_bytes: size of the fast memory in bytes.
        head_dim: width of queries, keys and values.
        bytes_per_element: of queries, keys and values; 2 for float16 and bfloat16.

    Returns:
        Two multiples of 16 that fit. K and V are read once for every block of queries, so block_q is the largest that
        fits with some block_k, and block_k the largest that fits with this block_q.

    Raises:
        ValueError: if not even (16, 16) fits.

    Source: Dao et al. (2022), algorithm 1, line 1, and theorem 2; Dao (2023), section 3.3 ("Tuning block sizes").

    Example:
        >>> choose_blocks(100 * 1024, head_dim=64, bytes_per_element=2)
        (208, 16)
    """
    each_query = head_dim * bytes_per_element + 4 * (head_dim + 2)
    each_key = 2 * head_dim * bytes_per_element
    block_q = (sram_bytes - 16 * each_key) // (each_query + 4 * 16) // 16 * 16
    if block_q < 16:
        raise ValueError(f"{sram_bytes} bytes do not hold tiles of 16 queries and 16 keys of width {head_dim}")
    block_k = (sram_bytes - block_q * each_query) // (each_key + 4 * block_q) // 16 * 16
    return block_q, block_k


def split_kv_decode(
    q: Float[Tensor, "*batch 1 head_dim"],
    k: Float[Tensor, "*batch kv_seq head_dim"],
    v: Float[Tensor, "*batch kv_seq v_dim"],
    splits: int,
) -> tuple[Float[Tensor, "*batch 1 v_dim"], Float[Tensor, "*batch splits v_dim"], Float[Tensor, "*batch splits"]]:
    """The triple (out, partial_out, partial_lse): one query against a long cache, cut into parts that need no other.

    Args:
        q: (*batch, 1, head_dim), the query of the newest token.
        k: (*batch, kv_seq, head_dim), the cache; it may be empty.
        v: (*batch, kv_seq, v_dim).
        splits: 1 or more parts. Part n holds the keys from n · size on, size = ⌈kv_seq / splits⌉ of them; the last
            parts may have fewer, or none.

    Returns:
        out: (*batch, 1, v_dim), attention over the whole cache, merged from the parts; 0 for an empty cache.
        partial_out: (*batch, splits, v_dim), attention over each part alone; 0 for an empty part.
        partial_lse: (*batch, splits); −∞ for an empty part.

    Source: Dao et al. (2023), Flash-Decoding for Long-Context Inference.

    Example:
        >>> q, k, v = torch.zeros(1, 1), torch.zeros(3, 1), torch.tensor([[2.0], [4.0], [9.0]])
        >>> out, partial_out, partial_lse = split_kv_decode(q, k, v, splits=2)
        >>> round(out.item(), 4), partial_out.flatten(), partial_lse.exp()
        (5.0, tensor([3., 9.]), tensor([2., 1.]))
    """
    size = math.ceil(k.shape[-2] / splits)
    outs, logs = [], []
    for n in range(splits):
        part = slice(n * size, (n + 1) * size)
        scores = q @ k[..., part, :].mT * q.shape[-1] ** -0.5  # (*batch, 1, size), of no part's concern but its own
        lse = scores.logsumexp(dim=-1)
        outs.append((scores - lse.unsqueeze(-1)).exp() @ v[..., part, :])
        logs.append(lse)
    partial_out, partial_lse = torch.cat(outs, dim=-2), torch.cat(logs, dim=-1)
    lse = partial_lse.logsumexp(dim=-1, keepdim=True)
    shares = (partial_lse - lse.masked_fill(lse == -torch.inf, 0)).exp()
    return shares.unsqueeze(-2) @ partial_out, partial_out, partial_lse


def accumulated_product(
    a: Float[Tensor, "*batch rows inner"], b: Float[Tensor, "*batch inner columns"], accumulate: torch.dtype
) -> Float[Tensor, "*batch rows columns"]:
    """The matrix product a @ b as hardware adds it up: exact products, each sum rounded to `accumulate`.

    A CPU's own product of bfloat16 matrices adds in float32 whatever it is asked for; this one does what it says.

    Args:
        a: (*batch, rows, inner).
        b: (*batch, inner, columns).
        accumulate: dtype of the running sum; the products are added one after another, first to last.

    Returns:
        (*batch, rows, columns), in `accumulate`.

    Source: Micikevicius et al. (2017), section 3.3.

    Example:
        >>> ones = torch.ones(1, 300, dtype=torch.bfloat16)
        >>> accumulated_product(ones, ones.mT, torch.float32), accumulated_product(ones, ones.mT, torch.bfloat16)
        (tensor([[300.]]), tensor([[256.]], dtype=torch.bfloat16))
    """
    a, b = a.double(), b.double()
    total = torch.zeros_like(a[..., :1] * b[..., :1, :]).to(accumulate)
    for n in range(a.shape[-1]):
        total = (total.double() + a[..., n, None] * b[..., None, n, :]).to(accumulate)
    return total


def mixed_precision_attention(
    q: Float[Tensor, "*batch q_seq head_dim"],
    k: Float[Tensor, "*batch kv_seq head_dim"],
    v: Float[Tensor, "*batch kv_seq v_dim"],
    compute: torch.dtype,
    accumulate: torch.dtype,
) -> Float[Tensor, "*batch q_seq v_dim"]:
    """Attention whose products read one dtype and add up in another.

    Args:
        q: (*batch, q_seq, head_dim).
        k: (*batch, kv_seq, head_dim), one key or more.
        v: (*batch, kv_seq, v_dim).
        compute: dtype to which everything that a product multiplies is rounded: q, k, v, and the weights.
        accumulate: dtype of everything that adds up: both products and the sum of the weights, each by
            `accumulated_product`; and of what is done to the scores in between: scale, maximum, exp, division.

    Returns:
        (*batch, q_seq, v_dim), in `accumulate`. The weights that are rounded to `compute` are exp(score − maximum), not
        yet divided; the sum is taken of the weights before they are rounded; the division comes last.

    Source: Micikevicius et al. (2017), section 3.3; Dao (2023), algorithm 1.

    Example:
        >>> q, k, v = torch.zeros(1, 1), torch.zeros(300, 1), torch.full((300, 1), 2.0)
        >>> mixed_precision_attention(q, k, v, torch.bfloat16, torch.float32)
        tensor([[2.]])
    """
    q, k, v = q.to(compute), k.to(compute), v.to(compute)
    scores = accumulated_product(q, k.mT, accumulate) * q.shape[-1] ** -0.5
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    total = accumulated_product(weights, torch.ones_like(k[..., :1]), accumulate)
    return accumulated_product(weights.to(compute), v, accumulate) / total


def chunked_lazy_attention(
    q: Float[Tensor, "*batch q_seq head_dim"],
    k: Float[Tensor, "*batch kv_seq head_dim"],
    v: Float[Tensor, "*batch kv_seq v_dim"],
    chunk: int,
) -> Float[Tensor, "*batch q_seq v_dim"]:
    """Exact attention by chunks that know nothing of each other; the softmax's division waits until all are done.

    A chunk of keys gives three things for a chunk of queries: its own maximum, the sum of exp(score − maximum), and the
    values summed with these weights. Only then are the chunks brought to one maximum, added, and divided.

    Args:
        q: (*batch, q_seq, head_dim).
        k: (*batch, kv_seq, head_dim), one key or more.
        v: (*batch, kv_seq, v_dim).
        chunk: queries, and keys, in a chunk; the last chunks may have fewer.

    Returns:
        (*batch, q_seq, v_dim), in the dtype of q, differentiable. Nothing larger than the inputs, the output, a
            chunk × chunk tile and one chunk's sums for all chunks of keys is formed.

    Source: Rabe and Staats (2021), sections 2 and 3 and figure 1.

    Example:
        >>> x = torch.zeros(3, 1)
        >>> chunked_lazy_attention(x, x, torch.tensor([[1.0], [3.0], [8.0]]), chunk=2).squeeze(-1)
        tensor([4., 4., 4.])
    """
    out = []
    for q_chunk in (q * q.shape[-1] ** -0.5).split(chunk, dim=-2):
        maxima, totals, sums = [], [], []
        for k_chunk, v_chunk in zip(k.split(chunk, dim=-2), v.split(chunk, dim=-2), strict=True):
            scores = q_chunk @ k_chunk.mT
            maximum = scores.detach().amax(dim=-1, keepdim=True)  # it cancels, so no gradient belongs to it
            weights = (scores - maximum).exp()
            maxima.append(maximum)
            totals.append(weights.sum(dim=-1, keepdim=True))
            sums.append(weights @ v_chunk)
        peaks = torch.stack(maxima)
        shares = (peaks - peaks.amax(dim=0)).exp()
        out.append((torch.stack(sums) * shares).sum(dim=0) / (torch.stack(totals) * shares).sum(dim=0))
    return torch.cat(out, dim=-2)
