"""Hidden suite of chapter `multi_head`: heads, shared keys, caches, heads that talk, and what all of it costs."""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from autograder.sandbox.errors import Raised
from autograder.sandbox.protocol import Generator
from autograder.suites.kit import Wrong, at_most, close, hidden, parts, raises, require, same, strided, tensor

MIB = 2**20
DOUBLE = torch.float64
PAIR = ("output", "weights")


def refused(module, method, *args):
    """Fail unless the method raises ValueError."""
    try:
        module.call(method, *args)
    except Raised as error:
        require("ValueError" in error.bases, "it should raise ValueError here, and raised something else")
        return
    raise Wrong("it should raise ValueError here, and returned a value")


def whole(found, expected, what):
    """One exact integer."""
    right_kind = isinstance(found, (int, np.integer)) and not isinstance(found, bool)
    require(right_kind, f"{what}: it should be an integer.")
    require(int(found) == expected, f"{what}: the count is too {'large' if found > expected else 'small'}.")


def one_map(scores, allowed=None):
    """Weights from scores, by exponentials of the allowed ones."""
    allowed = torch.ones_like(scores, dtype=torch.bool) if allowed is None else allowed.expand_as(scores)
    top = scores.masked_fill(~allowed, -torch.inf).amax(dim=-1, keepdim=True)
    parts = torch.where(allowed, torch.exp(scores - torch.where(top.isfinite(), top, 0.0)), 0.0)
    total = parts.sum(dim=-1, keepdim=True)
    return parts / torch.where(total > 0, total, 1.0)


def by_heads(query, key, value, weights, heads, kv_heads=None, mask=None, biases=None):
    """Output and maps, one head at a time; each head's part of the output goes through its own columns of out_proj."""
    w_q, w_k, w_v, w_o = weights
    biases = biases or [0.0] * 4
    size, group = w_q.shape[0] // heads, heads // (kv_heads or heads)
    q, k, v = (x @ w.T + b for x, w, b in zip((query, key, value), (w_q, w_k, w_v), biases[:3], strict=True))
    output, maps = biases[3], []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        shared = slice(head // group * size, (head // group + 1) * size)
        allowed = mask
        if mask is not None and mask.ndim == 4:
            allowed = mask[:, head % mask.shape[1]]
        maps.append(one_map(torch.einsum("...id,...jd->...ij", q[..., own], k[..., shared]) / size**0.5, allowed))
        output = output + maps[-1] @ v[..., shared] @ w_o[:, own].T
    return output, torch.stack(maps, dim=-3)


def layers(rng, d_model, kv_dim=None, bias=False, dtype=torch.float32):
    """A state of four projections, with scores far from uniform and far from saturated."""
    state = {}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        rows = kv_dim if kv_dim and name in ("k_proj", "v_proj") else d_model
        state[f"{name}.weight"] = tensor(rng, rows, d_model, dtype=dtype) * 1.4 / d_model**0.5
        if bias:
            state[f"{name}.bias"] = tensor(rng, rows, dtype=dtype)
    return state


def doubles(state):
    """Weights and biases of a state in float64, in the order q, k, v, out."""
    return [[t.double() for name, t in state.items() if name.endswith(end)] for end in ("weight", "bias")]


def loaded(student, name, state, *args, **kwargs):
    """A module of the submission with these parameters."""
    module = getattr(student, name)(*args, **kwargs)
    module.load_state_dict(state)
    return module


def with_gradients(function, leaves, upstream):
    """The gradients of a function of float64 leaves, for upstream gradients of its outputs."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    outputs = function(*leaves)
    sum((out * up.double()).sum() for out, up in zip(outputs, upstream, strict=True)).backward()
    return [leaf.grad for leaf in leaves]


def gradients_agree(found, expected, names):
    """Every gradient is there and right."""
    for name, grad, want in zip(names, found, expected, strict=True):
        require(grad is not None, f"No gradient reaches {name}.")
        close(grad, want.float(), what=f"gradient of {name}", rtol=1e-4)


# --- split_heads -----------------------------------------------------------------------------------------------------


def heads_by_loops(x, heads):
    """Column by column: column c belongs to head c // head_dim."""
    size = x.shape[-1] // heads
    result = torch.empty(*x.shape[:-2], heads, x.shape[-2], size, dtype=x.dtype)
    for column in range(x.shape[-1]):
        result[..., column // size, :, column % size] = x[..., column]
    return result


@hidden("split_heads", weight=2, hint="Which columns of a position belong to head 1?")
def test_heads_of_a_batch(student, rng):
    """Head h holds columns h·head_dim … (h+1)·head_dim − 1 of every position."""
    x = tensor(rng, 2, 5, 12)
    close(student.split_heads(x, 3), heads_by_loops(x, 3), what="heads of a batch")


@hidden("split_heads", weight=1, hint="When seq, heads and head_dim are equal, only the numbers tell you.")
def test_heads_with_equal_axes(student, rng):
    """The same where batch, seq, heads and head_dim are equal, so that no shape gives a slip away."""
    x = tensor(rng, 4, 4, 16)
    close(student.split_heads(x, 4), heads_by_loops(x, 4), what="heads with equal axes")


@hidden("split_heads", kind="edge", weight=1, hint="Count axes from the back.")
def test_heads_with_other_leading_axes(student, rng):
    """No leading axis or two of them, memory with gaps, float64."""
    for x in (tensor(rng, 5, 6, dtype=DOUBLE), strided(tensor(rng, 2, 3, 5, 6, dtype=DOUBLE))):
        close(student.split_heads(x, 2), heads_by_loops(x, 2), what=f"heads with {x.ndim - 2} leading axes")


@hidden("split_heads", kind="edge", weight=1, hint="What if the width is no multiple of the number of heads?")
def test_heads_of_every_number(student, rng):
    """One head, and as many heads as columns, are fine; a number that does not divide the width is a ValueError."""
    x = tensor(rng, 2, 3, 10)
    for heads in (1, 10):
        close(student.split_heads(x, heads), heads_by_loops(x, heads), what=f"split into {heads}")
    for heads in (3, 4, 0, 20):
        raises(ValueError, student, "split_heads", x, heads)


@hidden("split_heads", kind="gradient", weight=1, hint="Every number of x has one place in the result.")
def test_gradient_of_split(student, rng):
    """The gradient goes back to where each number came from."""
    x, upstream = tensor(rng, 3, 4, 6), tensor(rng, 3, 2, 4, 3)
    _, (grad,) = student.vjp("split_heads", x, 2, upstream=upstream)
    gradients_agree([grad], with_gradients(lambda x: [heads_by_loops(x, 2)], [x], [upstream]), ["x"])


# --- merge_heads -----------------------------------------------------------------------------------------------------


def merged_by_loops(x):
    """Column by column, the other way round."""
    heads, seq, size = x.shape[-3:]
    result = torch.empty(*x.shape[:-3], seq, heads * size, dtype=x.dtype)
    for column in range(heads * size):
        result[..., column] = x[..., column // size, :, column % size]
    return result


@hidden("merge_heads", weight=2, hint="Where do the numbers of head 1 stand in the row of a position?")
def test_merged_batch(student, rng):
    """The heads of each position stand side by side, head 0 first."""
    x = tensor(rng, 2, 3, 5, 4)
    close(student.merge_heads(x), merged_by_loops(x), what="merged heads of a batch")


@hidden("merge_heads", weight=1, hint="When seq, heads and head_dim are equal, only the numbers tell you.")
def test_merged_with_equal_axes(student, rng):
    """The same where all axes are equal."""
    x = tensor(rng, 4, 4, 4, 4)
    close(student.merge_heads(x), merged_by_loops(x), what="merged heads with equal axes")


@hidden("merge_heads", kind="property", weight=1, hint="Undo what splitting did, step by step, in reverse order.")
def test_merge_undoes_split(student, rng):
    """Merging what was split gives x back, for every number of heads, also of a strided x."""
    x = strided(tensor(rng, 3, 5, 12))
    for heads in (1, 2, 4, 12):
        close(student.merge_heads(heads_by_loops(x, heads)), x, what=f"merging {heads} heads")


@hidden("merge_heads", kind="edge", weight=1, hint="`view` needs memory without gaps. Is that promised?")
def test_merged_with_other_leading_axes(student, rng):
    """No leading axis or two of them, memory with gaps, float64."""
    for x in (tensor(rng, 3, 5, 2, dtype=DOUBLE), strided(tensor(rng, 2, 4, 3, 5, 2, dtype=DOUBLE))):
        close(student.merge_heads(x), merged_by_loops(x), what=f"merged with {x.ndim - 3} leading axes")


@hidden("merge_heads", kind="gradient", weight=1, hint="Every number of x has one place in the result.")
def test_gradient_of_merge(student, rng):
    """The gradient goes back to where each number came from."""
    x, upstream = tensor(rng, 3, 2, 4, 3), tensor(rng, 3, 4, 6)
    _, (grad,) = student.vjp("merge_heads", x, upstream=upstream)
    gradients_agree([grad], with_gradients(lambda x: [merged_by_loops(x)], [x], [upstream]), ["x"])


# --- MultiHeadAttention ----------------------------------------------------------------------------------------------


def expected_of(inputs, state, heads, kv_heads=None, mask=None):
    """A float32 expectation computed in float64."""
    weights, biases = doubles(state)
    found = by_heads(*(x.double() for x in inputs), weights, heads, kv_heads, mask, biases)
    return tuple(part.float() for part in found)


@hidden("MultiHeadAttention", weight=2, hint="Do it for one head on paper, with its rows of the three weights.")
def test_multi_head_self_attention(student, rng):
    """Equals attention one head at a time, with maps of all heads on request."""
    state, x = layers(rng, 12, bias=True), tensor(rng, 2, 5, 12)
    module = loaded(student, "MultiHeadAttention", state, 12, 3)
    same(module(x, x, x, need_weights=True), expected_of([x] * 3, state, 3), PAIR, "of self-attention")


@hidden("MultiHeadAttention", weight=2, hint="Three inputs, and each has its own projection.")
def test_multi_head_cross_attention(student, rng):
    """Keys and values may be other inputs, of another length; without `need_weights` the weights are None."""
    state = layers(rng, 8)
    inputs = [tensor(rng, 3, 4, 8), tensor(rng, 3, 7, 8), tensor(rng, 3, 7, 8)]
    module = loaded(student, "MultiHeadAttention", state, 8, 2, bias=False)
    expected = expected_of(inputs, state, 2)
    output, weights = parts(module(*inputs), *PAIR)
    close(output, expected[0], what="output of cross-attention")
    require(weights is None, "Without `need_weights`, None stands where the weights would be.")
    same(module(*inputs, need_weights=True), expected, PAIR, "of cross-attention")


@hidden("MultiHeadAttention", weight=2, hint="in_proj_weight holds the three projections below each other.")
def test_multi_head_agrees_with_pytorch(student, rng):
    """`from_torch` gives a layer whose outputs and maps are PyTorch's, with and without bias, in float64."""
    for bias in (True, False):
        layer = nn.MultiheadAttention(8, 4, bias=bias, batch_first=True).double()
        state = {name: tensor(rng, *t.shape, dtype=DOUBLE) / 2 for name, t in layer.state_dict().items()}
        layer.load_state_dict(state)
        inputs = [tensor(rng, 2, size, 8, dtype=DOUBLE) for size in (5, 6, 6)]
        hidden_pairs = torch.from_numpy(rng.random((5, 6)) < 0.3)
        hidden_pairs[:, 0] = False
        expected = layer(*inputs, attn_mask=hidden_pairs, average_attn_weights=False)
        module = student.MultiHeadAttention(8, 4, bias=bias)
        ours = module.call("from_torch", student.torch_layer(8, 4, bias, state))
        answer = ours(*inputs, mask=~hidden_pairs, need_weights=True)
        same(answer, tuple(part.detach() for part in expected), PAIR, f"beside PyTorch's, bias={bias}")


@hidden("MultiHeadAttention", kind="property", weight=1, hint="Four linear layers, and `bias` is for all of them.")
def test_multi_head_parameters(student, rng):
    """Four layers by the names of the contract, all with a bias or all without; the heads must divide the width."""
    for bias in (True, False):
        heads = int(rng.choice([1, 2, 5]))
        state = dict(student.MultiHeadAttention(10, heads, bias=bias).state_dict())
        expected = {name: tuple(t.shape) for name, t in layers(rng, 10, bias=bias).items()}
        require({n: tuple(t.shape) for n, t in state.items()} == expected, f"The parameters differ, bias={bias}.")
    raises(ValueError, student, "MultiHeadAttention", 10, 3)


@hidden("MultiHeadAttention", kind="edge", weight=2, hint="A 3-D mask has no head axis yet: where does it belong?")
def test_multi_head_masks(student, rng):
    """Masks of two, three and four axes mean what the contract says, also where batch and heads are equal in number."""
    state, x = layers(rng, 9, bias=True), tensor(rng, 3, 5, 9)
    module = loaded(student, "MultiHeadAttention", state, 9, 3)
    for shape in ((5, 5), (3, 5, 5), (3, 1, 5), (3, 3, 5, 5), (3, 1, 5, 5)):
        mask = torch.from_numpy(rng.random(shape) < 0.6)
        mask[..., 0] = True
        answer = module(x, x, x, mask=mask, need_weights=True)
        same(answer, expected_of([x] * 3, state, 3, mask=mask), PAIR, f"with a mask of {len(shape)} axes")


@hidden("MultiHeadAttention", kind="edge", weight=1, hint="A query that reads nothing: what do its heads hand over?")
def test_multi_head_empty_rows(student, rng):
    """A query with nothing to attend to has weights 0, and its output is the bias of `out_proj`; train() or eval()."""
    state, x = layers(rng, 8, bias=True), 3 * tensor(rng, 2, 6, 8)
    module = loaded(student, "MultiHeadAttention", state, 8, 2)
    mask = torch.from_numpy(rng.random((2, 6, 6)) < 0.5)
    mask[0, 2] = mask[1, 4] = False
    expected = expected_of([x] * 3, state, 2, mask=mask)
    for mode in ("train", "eval"):
        module.call(mode)
        same(module(x, x, x, mask=mask, need_weights=True), expected, PAIR, f"with empty rows, after {mode}()")


@hidden("MultiHeadAttention", kind="edge", weight=1, hint="Count axes from the back.")
def test_multi_head_with_other_leading_axes(student, rng):
    """No leading axis or two of them, with memory that has gaps."""
    state = layers(rng, 6, bias=True)
    module = loaded(student, "MultiHeadAttention", state, 6, 2)
    for shape in ((5, 6), (2, 3, 5, 6)):
        x = strided(tensor(rng, *shape))
        answer = module(x, x, x, need_weights=True)
        same(answer, expected_of([x] * 3, state, 2), PAIR, f"with {len(shape) - 2} leading axes")


@hidden("MultiHeadAttention", kind="edge", weight=1, hint="Which settings of PyTorch's layer has ours no place for?")
def test_from_torch_copies_and_refuses(student, rng):
    """`from_torch` copies: later changes of one layer leave the other alone; what it cannot take over is refused."""
    layer = student.torch_layer(6, 3, True)
    before = layer.state_dict()
    ours = student.MultiHeadAttention(6, 3).call("from_torch", layer)
    ours.load_state_dict({name: torch.zeros_like(t) for name, t in ours.state_dict().items()})
    for name, was in before.items():
        close(layer.state_dict()[name], was, what="PyTorch's layer after a change of ours")
    layer.call("__setattr__", "add_zero_attn", True)
    refused(student.MultiHeadAttention(6, 3), "from_torch", layer)


@hidden("MultiHeadAttention", kind="gradient", weight=2, hint="Look for `detach`, `no_grad`, or a layer made anew.")
def test_multi_head_gradients(student, rng):
    """Gradients reach all three inputs and all parameters, through output and weights, and are finite on empty rows."""
    state = layers(rng, 6, bias=True)
    module = loaded(student, "MultiHeadAttention", state, 6, 3)
    inputs = [tensor(rng, 2, size, 6) for size in (4, 5, 5)]
    mask = torch.from_numpy(rng.random((2, 4, 5)) < 0.7)
    mask[:, 1] = False
    upstream = tensor(rng, 2, 4, 6), tensor(rng, 2, 3, 4, 5)

    def plain(query, key, value, *flat):
        return by_heads(query, key, value, flat[::2], 3, mask=mask, biases=list(flat[1::2]))

    expected = with_gradients(plain, [*inputs, *state.values()], upstream)
    _, by_input, by_name = module.vjp(*inputs, mask=mask, need_weights=True, upstream=upstream, wrt=(0, 1, 2))
    gradients_agree(by_input, expected[:3], ("query", "key", "value"))
    # The bias of the keys shifts all scores of a row alike, so its gradient is 0 but for rounding.
    names = [name for name in state if name != "k_proj.bias"]
    wanted = dict(zip(state, expected[3:], strict=True))
    gradients_agree([by_name.get(name) for name in names], [wanted[name] for name in names], names)


# --- GroupedQueryAttention -------------------------------------------------------------------------------------------


@hidden("GroupedQueryAttention", weight=2, hint="Which key head does query head 3 of 6 read, if there are two?")
def test_grouped_heads_share_consecutively(student, rng):
    """Consecutive query heads share one key and value head."""
    state, x = layers(rng, 12, 4), tensor(rng, 2, 5, 12)
    module = loaded(student, "GroupedQueryAttention", state, 12, 6, 2)
    same(module(x), expected_of([x] * 3, state, 6, 2), PAIR, "of six heads over two")


@hidden("GroupedQueryAttention", weight=1, hint="The two ends of the scale need no special case.")
def test_grouped_ends_are_mha_and_mqa(student, rng):
    """With kv_heads = heads it is multi-head, with kv_heads = 1 multi-query attention."""
    for heads, kv_heads in ((4, 4), (4, 1)):
        state, x = layers(rng, 8, 2 * kv_heads), tensor(rng, 4, 4, 8)
        module = loaded(student, "GroupedQueryAttention", state, 8, heads, kv_heads)
        same(module(x), expected_of([x] * 3, state, heads, kv_heads), PAIR, f"with kv_heads={kv_heads}")


@hidden("GroupedQueryAttention", weight=1, hint="`attend` gets heads that are split already, and returns heads.")
def test_grouped_attend_agrees_with_pytorch(student, rng):
    """`attend` equals PyTorch's attention with `enable_gqa=True`, for more keys than queries and with a mask."""
    q, k, v = (tensor(rng, 3, heads, seq, 4, dtype=DOUBLE) for heads, seq in ((6, 5), (3, 7), (3, 7)))
    mask = torch.from_numpy(rng.random((3, 1, 5, 7)) < 0.6)
    mask[..., 0] = True
    outputs, weights = parts(student.GroupedQueryAttention(24, 6, 3).call("attend", q, k, v, mask), *PAIR)
    close(outputs, F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True), what="head outputs of attend")
    close(weights.sum(dim=-1), torch.ones(3, 6, 5, dtype=DOUBLE), what="row sums of the weights of attend")


@hidden("GroupedQueryAttention", kind="property", weight=1, hint="What shrinks when heads share keys and values?")
def test_grouped_parameters(student, rng):
    """Four layers without bias, keys and values narrower; numbers that do not divide are refused."""
    for kv_heads in (1, 3, 6):
        state = student.GroupedQueryAttention(12, 6, kv_heads).state_dict()
        expected = {name: tuple(t.shape) for name, t in layers(rng, 12, 2 * kv_heads).items()}
        require({n: tuple(t.shape) for n, t in state.items()} == expected, f"The parameters differ, {kv_heads=}.")
    raises(ValueError, student, "GroupedQueryAttention", 12, 5, 1)
    raises(ValueError, student, "GroupedQueryAttention", 12, 6, 4)


@hidden("GroupedQueryAttention", kind="edge", weight=1, hint="One map for every query head: masks see all of them.")
def test_grouped_masks(student, rng):
    """Masks of two, three and four axes; rows with nothing to attend to are 0; train() or eval()."""
    state, x = layers(rng, 8, 4), tensor(rng, 4, 5, 8)
    module = loaded(student, "GroupedQueryAttention", state, 8, 4, 2)
    for mode, shape in (("train", (5, 5)), ("eval", (4, 5, 5)), ("train", (4, 4, 5, 5))):
        module.call(mode)
        mask = torch.from_numpy(rng.random(shape) < 0.5)
        mask[..., 3, :] = False
        answer = module(x, mask)
        same(answer, expected_of([x] * 3, state, 4, 2, mask), PAIR, f"with a mask of {len(shape)} axes")


@hidden("GroupedQueryAttention", kind="edge", weight=1, hint="Count axes from the back.")
def test_grouped_with_other_leading_axes(student, rng):
    """No leading axis or two of them, with memory that has gaps."""
    state = layers(rng, 8, 4)
    module = loaded(student, "GroupedQueryAttention", state, 8, 4, 2)
    for shape in ((5, 8), (2, 3, 5, 8)):
        x = strided(tensor(rng, *shape))
        same(module(x), expected_of([x] * 3, state, 4, 2), PAIR, f"with {len(shape) - 2} leading axes")


@hidden("GroupedQueryAttention", kind="gradient", weight=1, hint="A shared key head hears from all heads that read it.")
def test_grouped_gradients(student, rng):
    """Gradients reach x and all parameters; shared ones gather from every head of their group."""
    state, x = layers(rng, 8, 4), tensor(rng, 2, 5, 8)
    module = loaded(student, "GroupedQueryAttention", state, 8, 4, 2)
    upstream = tensor(rng, 2, 5, 8), tensor(rng, 2, 4, 5, 5)
    expected = with_gradients(lambda x, *w: by_heads(x, x, x, w, 4, 2), [x, *state.values()], upstream)
    _, (by_input,), by_name = module.vjp(x, upstream=upstream)
    gradients_agree([by_input, *(by_name.get(n) for n in state)], expected, ["x", *state])


@hidden("GroupedQueryAttention", kind="cost", weight=2, hint="Let the queries of a group stand below each other.")
def test_grouped_keys_are_not_copied(student, rng):
    """Keys and values are read where they are: nothing of size heads · kv_seq · head_dim is made."""
    q, k, v = tensor(rng, 1, 32, 1, 64), tensor(rng, 1, 1, 12000, 64), tensor(rng, 1, 1, 12000, 64)
    trace = student.GroupedQueryAttention(2048, 32, 1).trace_call("attend", q, k, v)
    outputs, _ = parts(trace.result, *PAIR)
    close(outputs, F.scaled_dot_product_attention(q, k, v, enable_gqa=True), what="head outputs of attend", rtol=1e-4)
    at_most(trace.largest, 4 * 12000 * 64, what="elements of the largest tensor for 12000 keys")
    at_most(trace.outside_bytes / MIB, 50, what="MiB for 12000 keys")


# --- mha_to_gqa ------------------------------------------------------------------------------------------------------

TWO_WEIGHTS = ("k_weight", "v_weight")


def pooled(weight, heads, kv_heads):
    """Row r of new head g is the mean of row r of the old heads of its group."""
    size, group = len(weight) // heads, heads // kv_heads
    rows = []
    for head in range(kv_heads):
        for row in range(size):
            rows.append(sum(weight[(head * group + one) * size + row] for one in range(group)) / group)
    return torch.stack(rows)


@hidden("mha_to_gqa", weight=2, hint="Which rows of the weight belong to head 2?")
def test_pooled_weights(student, rng):
    """Every new head is the mean of a group of consecutive heads."""
    weights = tensor(rng, 12, 7, dtype=DOUBLE), tensor(rng, 12, 7, dtype=DOUBLE)
    expected = tuple(pooled(weight, 6, 2) for weight in weights)
    same(student.mha_to_gqa(*weights, 6, 2), expected, TWO_WEIGHTS, "of six heads made two")


@hidden("mha_to_gqa", weight=1, hint="With equal numbers everywhere, only the values tell you which axis was pooled.")
def test_pooled_weights_with_equal_axes(student, rng):
    """The same where the number of groups, the size of a group and head_dim are equal."""
    weights = tensor(rng, 8, 8), tensor(rng, 8, 8)
    expected = tuple(pooled(weight, 4, 2) for weight in weights)
    same(student.mha_to_gqa(*weights, 4, 2), expected, TWO_WEIGHTS, "of four heads made two")


@hidden("mha_to_gqa", kind="property", weight=1, hint="Nothing to pool, or everything: no special case is needed.")
def test_pooled_at_both_ends(student, rng):
    """kv_heads = heads changes nothing; kv_heads = 1 is the mean of all; copies of one head pool to that head."""
    weights = tensor(rng, 10, 4), tensor(rng, 10, 4)
    same(student.mha_to_gqa(*weights, 5, 5), weights, TWO_WEIGHTS, "left as they are")
    expected = tuple(pooled(weight, 5, 1) for weight in weights)
    same(student.mha_to_gqa(*weights, 5, 1), expected, TWO_WEIGHTS, "of one head")
    heads = tuple(tensor(rng, 3, 4) for _ in range(2))
    tiled = tuple(torch.cat([head] * 4) for head in heads)
    same(student.mha_to_gqa(*tiled, 4, 1), heads, TWO_WEIGHTS, "of copies")


@hidden("mha_to_gqa", kind="edge", weight=1, hint="Two divisions have to come out even.")
def test_pooled_refuses(student, rng):
    """ValueError where heads do not divide the rows, or kv_heads the heads."""
    weight = tensor(rng, 12, 5)
    for heads, kv_heads in ((5, 1), (6, 4), (4, 3)):
        raises(ValueError, student, "mha_to_gqa", weight, weight, heads, kv_heads)


@hidden("mha_to_gqa", kind="edge", weight=1, hint="Does one of your lines write into what came in?")
def test_pooled_leaves_the_weights_alone(student, rng):
    """Weights with gaps in memory are read as they are, and not changed; float64 stays."""
    weights = strided(tensor(rng, 12, 5, dtype=DOUBLE)), strided(tensor(rng, 12, 5, dtype=DOUBLE))
    expected = tuple(pooled(weight, 4, 2) for weight in weights)
    result, after = student.after("mha_to_gqa", *weights, 4, 2)
    same(result, expected, TWO_WEIGHTS, "of strided weights")
    for one, other in zip(after, weights, strict=False):
        close(one, other, what="a weight after the call")


# --- KVCache ---------------------------------------------------------------------------------------------------------

TWO_MEMORIES = ("keys", "values")


def filled(rng, *shape):
    """New keys and new values."""
    return tensor(rng, *shape), tensor(rng, *shape)


@hidden("KVCache", weight=2, hint="Where does the next position go, and how much of the memory is in use?")
def test_cache_gives_back_what_came(student, rng):
    """After each append, one position or several, keys and values of all positions so far come out in order."""
    cache = student.KVCache(10)
    keys, values = filled(rng, 2, 3, 9, 4)
    at = 0
    for new in rng.permutation([1, 3, 1, 2, 2]).tolist():
        cache.call("append", keys[:, :, at : at + new], values[:, :, at : at + new])
        at += new
        expected = keys[:, :, :at], values[:, :, :at]
        same(cache.call("read"), expected, TWO_MEMORIES, "after an append")
        whole(cache.call("length"), at, "length")


@hidden("KVCache", weight=2, hint="Which positions may the first and the last of the new ones see?")
def test_cache_with_a_window(student, rng):
    """With a window, what comes out is the new positions and at most window − 1 before them, however long the text."""
    window = int(rng.integers(3, 6))
    cache = student.KVCache(11, window=window)
    keys, values = filled(rng, 2, 1, 60, 3)
    at, found, expected = 0, [], []
    for new in rng.permutation([1, 2, 3, 5] * 4 + [1] * 5).tolist():
        cache.call("append", keys[:, :, at : at + new], values[:, :, at : at + new])
        start, at = max(0, at - window + 1), at + new
        found.append((cache.call("read"), cache.call("length")))
        expected.append((keys[:, :, start:at], values[:, :, start:at], at))
    for (answer, length), (*pair, count) in zip(found, expected, strict=True):
        same(answer, pair, TWO_MEMORIES, "with a window")
        whole(length, count, "length with a window")


@hidden("KVCache", kind="property", weight=1, hint="The cache keeps numbers, not the tensors that brought them.")
def test_caches_are_independent(student, rng):
    """Two caches do not share memory, and a text can be read twice without harm."""
    first, second = student.KVCache(5), student.KVCache(5)
    one, two = filled(rng, 1, 2, 4, 3), filled(rng, 1, 2, 2, 3)
    first.call("append", *one)
    second.call("append", *two)
    for _ in range(2):
        same(first.call("read"), one, TWO_MEMORIES, "of the first cache")
        same(second.call("read"), two, TWO_MEMORIES, "of the second cache")


@hidden("KVCache", kind="edge", weight=1, hint="When is there room, and what has changed when there was none?")
def test_cache_refuses_too_much(student, rng):
    """The last free place can be used; one more is a ValueError that leaves the cache as it was; so are bad windows."""
    cache = student.KVCache(6)
    one, two = filled(rng, 1, 1, 4, 2), filled(rng, 1, 1, 2, 2)
    cache.call("append", *one)
    refused(cache, "append", *filled(rng, 1, 1, 3, 2))
    cache.call("append", *two)
    expected = tuple(torch.cat(pair, dim=2) for pair in zip(one, two, strict=True))
    same(cache.call("read"), expected, TWO_MEMORIES, "after a refusal")
    whole(cache.call("length"), 6, "length after a refusal")
    refused(cache, "append", *filled(rng, 1, 1, 1, 2))
    for window in (0, 7):
        raises(ValueError, student, "KVCache", 6, window)


@hidden("KVCache", kind="edge", weight=1, hint="A window of 3 keeps 2 positions before the new ones, not more.")
def test_cache_with_a_window_refuses_too_much(student, rng):
    """With a window, new positions fit if they and the window − 1 before them do; otherwise nothing changes."""
    cache = student.KVCache(6, window=3)
    keys, values = filled(rng, 1, 1, 13, 2)
    cache.call("append", keys[:, :, :5], values[:, :, :5])
    refused(cache, "append", keys[:, :, 5:10], values[:, :, 5:10])
    same(cache.call("read"), (keys[:, :, :5], values[:, :, :5]), TWO_MEMORIES, "after a refusal")
    cache.call("append", keys[:, :, 5:9], values[:, :, 5:9])
    same(cache.call("read"), (keys[:, :, 3:9], values[:, :, 3:9]), TWO_MEMORIES, "of a large append")
    whole(cache.call("length"), 9, "length with a window")


@hidden("KVCache", kind="edge", weight=1, hint="Who decides about the dtype of the memory?")
def test_cache_takes_the_kind_of_what_comes(student, rng):
    """float64 stays float64, values may be wider than keys, and memory with gaps is read as it is."""
    cache = student.KVCache(7)
    keys, values = strided(tensor(rng, 2, 2, 5, 3, dtype=DOUBLE)), strided(tensor(rng, 2, 2, 5, 4, dtype=DOUBLE))
    cache.call("append", keys[:, :, :3], values[:, :, :3])
    cache.call("append", keys[:, :, 3:], values[:, :, 3:])
    same(cache.call("read"), (keys, values), TWO_MEMORIES, "in float64")


@hidden("KVCache", kind="cost", weight=2, hint="What is there already should stay where it is.")
def test_cache_does_not_copy_what_it_has(student, rng):
    """One more position costs as much as that position, however long the text: nothing is joined."""
    cache = student.KVCache(28_000)
    for _ in range(2):
        cache.call("append", *[torch.full((1, 4, 13_000, 64), float(rng.normal())) for _ in range(2)])
    trace = cache.trace_call("append", *filled(rng, 1, 4, 1, 64))
    at_most(trace.outside_bytes / MIB, 11, what="MiB for one more position behind 26000")
    joined = {"cat", "stack", "concat", "concatenate", "hstack", "roll", "constant_pad_nd", "pad"} & set(trace.calls)
    require(not joined, "append joins what is there with what is new, so all of it is copied.")


# --- decode_step -----------------------------------------------------------------------------------------------------


def causal(seq, window=None):
    """0 ≤ i − j < window."""
    age = torch.arange(seq)[:, None] - torch.arange(seq)
    return (age >= 0) & (age < (window or seq))


def decoded(student, state, x, heads, kv_heads, chunks, capacity, window=None):
    """The outputs of decoding in chunks, put together."""
    d_model = x.shape[-1]
    module = loaded(student, "GroupedQueryAttention", state, d_model, heads, kv_heads)
    cache = student.KVCache(capacity, window)
    outputs, at = [], 0
    for new in chunks:
        outputs.append(student.decode_step(module, x[:, at : at + new], cache))
        at += new
        require(isinstance(outputs[-1], torch.Tensor), "decode_step returns the output, a tensor.")
        wanted = (len(x), new, d_model)
        require(tuple(outputs[-1].shape) == wanted, f"for {new} new positions the output should have shape {wanted}")
    return torch.cat(outputs, dim=1), cache


@hidden("decode_step", weight=2, hint="One new position sees everything that came before, and itself.")
def test_decoding_token_by_token(student, rng):
    """One position after the other gives what the causal layer gives over the whole text."""
    state, x = layers(rng, 8, 4), tensor(rng, 2, 7, 8)
    output, _ = decoded(student, state, x, 4, 2, [1] * 7, 7)
    close(output, expected_of([x] * 3, state, 4, 2, causal(7))[0], what="output, token by token")


@hidden("decode_step", weight=2, hint="Inside a chunk, the first new position must not see the last.")
def test_decoding_in_chunks(student, rng):
    """Chunks of any size give the same: inside a chunk, nobody sees the future."""
    state, x = layers(rng, 12, 4), tensor(rng, 3, 11, 12)
    output, _ = decoded(student, state, x, 3, 1, rng.permutation([4, 1, 3, 2, 1]).tolist(), 16)
    close(output, expected_of([x] * 3, state, 3, 1, causal(11))[0], what="output in chunks")


@hidden("decode_step", kind="property", weight=1, hint="The whole text at once is a chunk too.")
def test_prefill_then_tokens(student, rng):
    """A long first chunk, then single positions, as a chat does it; the cache counts every position once."""
    state, x = layers(rng, 8, 8), tensor(rng, 2, 9, 8)
    output, cache = decoded(student, state, x, 2, 2, [6, 1, 1, 1], 9)
    close(output, expected_of([x] * 3, state, 2, 2, causal(9))[0], what="output after a prefill")
    whole(cache.call("length"), 9, "length of the cache afterwards")


@hidden("decode_step", kind="edge", weight=2, hint="In a chunk every position has a window of its own.")
def test_decoding_with_a_window(student, rng):
    """With a window, position i sees the window − 1 before it and itself, token by token and in chunks."""
    window = int(rng.integers(2, 5))
    state, x = layers(rng, 8, 4), tensor(rng, 2, 14, 8)
    expected = expected_of([x] * 3, state, 4, 2, causal(14, window))[0]
    for chunks in ([1] * 14, [3, 1, 4, 2, 1, 3]):
        output, _ = decoded(student, state, x, 4, 2, chunks, 9, window)
        close(output, expected, what=f"output with a window, {len(chunks)} chunks")


@hidden("decode_step", kind="gradient", weight=1, hint="Look for `detach` or `no_grad`.")
def test_decoding_gradients(student, rng):
    """The gradient reaches the new positions."""
    state, x = layers(rng, 8, 4), tensor(rng, 2, 3, 8)
    module, cache = loaded(student, "GroupedQueryAttention", state, 8, 4, 2), student.KVCache(3)
    upstream = tensor(rng, 2, 3, 8)
    weights, _ = doubles(state)
    expected = with_gradients(lambda x: by_heads(x, x, x, weights, 4, 2, causal(3))[:1], [x], [upstream])
    _, (_, grad) = student.vjp("decode_step", module, x, cache, upstream=upstream, wrt=(1, 1))
    gradients_agree([grad], expected, ["x_t"])


@hidden("decode_step", kind="cost", weight=1, hint="What was computed for earlier positions stands in the cache.")
def test_decoding_does_not_compute_the_past_again(student, rng):
    """One position behind 400 takes the products of one position, and needs only what the cache holds of them."""
    state, x = layers(rng, 64, 16), tensor(rng, 1, 401, 64)
    module, cache = loaded(student, "GroupedQueryAttention", state, 64, 8, 2), student.KVCache(500)
    # The submission never meets the 400 positions themselves: there is nothing to compute their keys from again.
    past = [x[:, :400] @ state[f"{part}_proj.weight"].T for part in "kv"]
    cache.call("append", *[one.unflatten(-1, (2, 8)).transpose(1, 2) for one in past])
    trace = student.trace("decode_step", module, x[:, 400:], cache)
    close(trace.result, expected_of([x] * 3, state, 8, 2, causal(401))[0][:, 400:], what="output behind a filled cache")
    ideal = 2 * (64 * 64 * 2 + 2 * 64 * 16 + 2 * 401 * 64)
    at_most(trace.flops, 2.5 * ideal, what="operations for one position behind 400")


# --- TalkingHeadsAttention -------------------------------------------------------------------------------------------


def talking(x, w_q, w_k, w_v, w_o, pre, post, heads, mask=None):
    """Every pair of heads by itself."""
    size = w_q.shape[0] // heads
    own = [slice(head * size, (head + 1) * size) for head in range(heads)]
    q, k, v = (x @ w.T for w in (w_q, w_k, w_v))
    scores = [torch.einsum("...id,...jd->...ij", q[..., s], k[..., s]) / size**0.5 for s in own]
    maps = []
    for head in range(heads):
        allowed = mask[:, head % mask.shape[1]] if mask is not None and mask.ndim == 4 else mask
        maps.append(one_map(sum(pre[head, other] * scores[other] for other in range(heads)), allowed))
    mixed = [sum(post[head, other] * maps[other] for other in range(heads)) for head in range(heads)]
    output = sum(mixed[head] @ v[..., own[head]] @ w_o[:, own[head]].T for head in range(heads))
    return output, torch.stack(mixed, dim=-3)


def talking_state(rng, d_model, heads):
    """Four projections and two mixes that are far from the identity and not symmetric."""
    state = layers(rng, d_model)
    for name in ("pre_mix", "post_mix"):
        state[name] = torch.eye(heads) / 2 + 0.6 * tensor(rng, heads, heads)
    return state


def talking_expected(x, state, heads, mask=None):
    """A float32 expectation computed in float64."""
    return tuple(part.float() for part in talking(x.double(), *(t.double() for t in state.values()), heads, mask))


@hidden("TalkingHeadsAttention", weight=2, hint="Which axis of the mix belongs to the new heads?")
def test_talking_heads(student, rng):
    """Scores are mixed before the softmax and weights after it; new head h takes row h of the mix."""
    state, x = talking_state(rng, 12, 3), tensor(rng, 2, 5, 12)
    module = loaded(student, "TalkingHeadsAttention", state, 12, 3)
    same(module(x), talking_expected(x, state, 3), PAIR, "of three heads that talk")


@hidden("TalkingHeadsAttention", weight=1, hint="Where all axes are equal, a mix along the wrong axis still fits.")
def test_talking_heads_with_equal_axes(student, rng):
    """The same where batch, heads, seq and head_dim are equal in number."""
    state, x = talking_state(rng, 16, 4), tensor(rng, 4, 4, 16)
    module = loaded(student, "TalkingHeadsAttention", state, 16, 4)
    same(module(x), talking_expected(x, state, 4), PAIR, "with equal axes")


@hidden("TalkingHeadsAttention", kind="property", weight=1, hint="Heads that do not talk are plain heads.")
def test_silent_heads_are_multi_head_attention(student, rng):
    """A new module starts with identity mixes, and is multi-head attention then."""
    module, x = student.TalkingHeadsAttention(10, 5), tensor(rng, 2, 6, 10)
    state = module.state_dict()
    names = [f"{name}_proj.weight" for name in ("q", "k", "v", "out")]
    require(set(state) == {*names, "pre_mix", "post_mix"}, "The parameters are not those of the contract.")
    for name in ("pre_mix", "post_mix"):
        close(state[name], torch.eye(5), what=f"{name} of a new module")
    same(module(x), expected_of([x] * 3, {name: state[name] for name in names}, 5), PAIR, "of silent heads", rtol=1e-4)
    raises(ValueError, student, "TalkingHeadsAttention", 10, 4)


@hidden("TalkingHeadsAttention", kind="edge", weight=1, hint="The mask comes when the first mix is done.")
def test_talking_heads_with_masks(student, rng):
    """The mask acts between the mixes; a row with nothing to attend to is 0; train() or eval()."""
    state, x = talking_state(rng, 8, 4), tensor(rng, 4, 5, 8)
    module = loaded(student, "TalkingHeadsAttention", state, 8, 4)
    for mode, shape in (("train", (5, 5)), ("eval", (4, 5, 5)), ("train", (4, 4, 5, 5))):
        module.call(mode)
        mask = torch.from_numpy(rng.random(shape) < 0.5)
        mask[..., 2, :] = False
        same(module(x, mask), talking_expected(x, state, 4, mask), PAIR, f"with a mask of {len(shape)} axes")


@hidden("TalkingHeadsAttention", kind="edge", weight=1, hint="Count axes from the back.")
def test_talking_heads_with_other_leading_axes(student, rng):
    """No leading axis or two of them, with memory that has gaps."""
    state = talking_state(rng, 6, 3)
    module = loaded(student, "TalkingHeadsAttention", state, 6, 3)
    for shape in ((5, 6), (2, 2, 5, 6)):
        x = strided(tensor(rng, *shape))
        same(module(x), talking_expected(x, state, 3), PAIR, f"with {len(shape) - 2} leading axes")


@hidden("TalkingHeadsAttention", kind="gradient", weight=1, hint="Both mixes are parameters, and both learn.")
def test_talking_heads_gradients(student, rng):
    """Gradients reach x, the four layers and both mixes."""
    state, x = talking_state(rng, 6, 3), tensor(rng, 2, 4, 6)
    module = loaded(student, "TalkingHeadsAttention", state, 6, 3)
    upstream = tensor(rng, 2, 4, 6), tensor(rng, 2, 3, 4, 4)
    expected = with_gradients(lambda x, *s: talking(x, *s, 3), [x, *state.values()], upstream)
    _, (by_input,), by_name = module.vjp(x, upstream=upstream)
    gradients_agree([by_input, *(by_name.get(n) for n in state)], expected, ["x", *state])


# --- MultiHeadLatentAttention ----------------------------------------------------------------------------------------

LATENT_LAYERS = ("q_proj", "q_rope_proj", "kv_down_proj", "k_rope_proj", "k_up_proj", "v_up_proj", "out_proj")


def latent_state(rng, d_model, heads, latent_dim, rope_dim):
    """Seven weights, with scores far from uniform."""
    shapes = {
        "q_proj": (d_model, d_model),
        "q_rope_proj": (heads * rope_dim, d_model),
        "kv_down_proj": (latent_dim, d_model),
        "k_rope_proj": (rope_dim, d_model),
        "k_up_proj": (d_model, latent_dim),
        "v_up_proj": (d_model, latent_dim),
        "out_proj": (d_model, d_model),
    }
    return {f"{name}.weight": tensor(rng, *shape) * 1.3 / shape[1] ** 0.5 for name, shape in shapes.items()}


def turned(x):
    """Rows as complex numbers, turned by their positions."""
    seq, size = x.shape[-2:]
    rates = 10000.0 ** (-torch.arange(0, size, 2, dtype=DOUBLE) / size)
    angles = torch.arange(seq, dtype=DOUBLE)[:, None] * rates
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def latent_attention(x, q_w, q_rope_w, down_w, k_rope_w, k_up_w, v_up_w, out_w, heads):
    """The causal layer, one head at a time, and what it would cache."""
    size, rope = q_w.shape[0] // heads, k_rope_w.shape[0]
    latent, k_rope = x @ down_w.T, turned(x @ k_rope_w.T)
    output = 0.0
    for head in range(heads):
        own, own_rope = slice(head * size, (head + 1) * size), slice(head * rope, (head + 1) * rope)
        query = torch.cat([x @ q_w[own].T, turned(x @ q_rope_w[own_rope].T)], dim=-1)
        key = torch.cat([latent @ k_up_w[own].T, k_rope], dim=-1)
        scores = torch.einsum("bid,bjd->bij", query, key) / (size + rope) ** 0.5
        weights = one_map(scores, causal(x.shape[1]))
        output = output + weights @ (latent @ v_up_w[own].T) @ out_w[:, own].T
    return output, latent, k_rope


def latent_expected(x, state, heads):
    """A float32 expectation computed in float64."""
    found = latent_attention(x.double(), *(t.double() for t in state.values()), heads)
    return tuple(part.float() for part in found)


@hidden("MultiHeadLatentAttention", weight=2, hint="A score is the sum of two dot products, over one root.")
def test_latent_attention_over_a_text(student, rng):
    """`forward` is the causal layer of the contract, rotated part included."""
    state, x = latent_state(rng, 12, 3, 5, 2), tensor(rng, 2, 6, 12)
    module = loaded(student, "MultiHeadLatentAttention", state, 12, 3, 5, 2)
    close(module(x), latent_expected(x, state, 3)[0], what="output over a text", rtol=1e-4)


@hidden("MultiHeadLatentAttention", weight=2, hint="Carry the query into the space of the latent; then compare there.")
def test_latent_decoding_of_a_text(student, rng):
    """`decode` without a cache gives the same outputs, and the pair (latent, rotated key) to be cached."""
    state, x = latent_state(rng, 16, 2, 6, 4), tensor(rng, 3, 5, 16)
    module = loaded(student, "MultiHeadLatentAttention", state, 16, 2, 6, 4)
    output, cache = parts(module.call("decode", x), "output", "cache")
    expected = latent_expected(x, state, 2)
    close(output, expected[0], what="output of decode", rtol=1e-4)
    same(cache, expected[1:], ("latent", "k_rope"), "of decode", rtol=1e-4)


@hidden("MultiHeadLatentAttention", weight=2, hint="At which position does a new token stand?")
def test_latent_decoding_with_a_cache(student, rng):
    """Position by position and in chunks, `decode` gives what `forward` gives; the old cache is left as it was."""
    state, x = latent_state(rng, 12, 3, 5, 4), tensor(rng, 2, 9, 12)
    module = loaded(student, "MultiHeadLatentAttention", state, 12, 3, 5, 4)
    expected = latent_expected(x, state, 3)
    cache, at = None, 0
    for new in rng.permutation([1, 1, 2, 4, 1]).tolist():
        before = cache
        result, after = student_after(module, x[:, at : at + new], cache)
        output, cache = parts(result, "output", "cache")
        close(output, expected[0][:, at : at + new], what="output of decode with a cache", rtol=1e-4)
        at += new
        same(cache, tuple(p[:, :at] for p in expected[1:]), ("latent", "k_rope"), "after decode", rtol=1e-4)
        if before is not None:
            same(after, before, ("latent", "k_rope"), "of the old cache")


def student_after(module, x, cache):
    """What decode returns, and the cache that went in as it is afterwards."""
    return module.call("decode", x, cache), cache


@hidden("MultiHeadLatentAttention", kind="property", weight=1, hint="Seven layers, all of them without bias.")
def test_latent_parameters(student, rng):
    """Seven layers by the names of the contract; numbers that do not fit are refused."""
    state = student.MultiHeadLatentAttention(12, 4, 5, 6).state_dict()
    expected = {name: tuple(t.shape) for name, t in latent_state(rng, 12, 4, 5, 6).items()}
    require({n: tuple(t.shape) for n, t in state.items()} == expected, "The parameters are not those of the contract.")
    raises(ValueError, student, "MultiHeadLatentAttention", 12, 5, 4, 2)
    raises(ValueError, student, "MultiHeadLatentAttention", 12, 4, 4, 3)


@hidden("MultiHeadLatentAttention", kind="property", weight=1, hint="Rotation makes order count; a cache must not.")
def test_latent_attention_is_causal(student, rng):
    """Later positions change nothing before them, in train() and in eval()."""
    state, x = latent_state(rng, 8, 2, 3, 2), tensor(rng, 2, 6, 8)
    module = loaded(student, "MultiHeadLatentAttention", state, 8, 2, 3, 2)
    expected = latent_expected(x, state, 2)[0][:, :4]
    other = torch.cat([x[:, :4], 9 * tensor(rng, 2, 2, 8)], dim=1)
    for mode in ("train", "eval"):
        module.call(mode)
        close(module(other)[:, :4], expected, what=f"output before a changed end, after {mode}()", rtol=1e-4)


@hidden("MultiHeadLatentAttention", kind="gradient", weight=1, hint="Look for `detach`, `.data` or `no_grad`.")
def test_latent_gradients(student, rng):
    """Gradients reach x and all seven parameters."""
    state, x = latent_state(rng, 8, 2, 3, 2), tensor(rng, 2, 4, 8)
    module = loaded(student, "MultiHeadLatentAttention", state, 8, 2, 3, 2)
    upstream = tensor(rng, 2, 4, 8)
    expected = with_gradients(lambda x, *s: latent_attention(x, *s, 2)[:1], [x, *state.values()], [upstream])
    _, (by_input,), by_name = module.vjp(x, upstream=upstream)
    gradients_agree([by_input, *(by_name.get(n) for n in state)], expected, ["x", *state])


@hidden("MultiHeadLatentAttention", kind="cost", weight=2, hint="Neither k_up_proj nor v_up_proj meets the cache.")
def test_latent_decoding_makes_no_keys(student, rng):
    """One position behind 12000: keys and values of all heads are never made, seen from inside and outside."""
    state = latent_state(rng, 1024, 16, 16, 8)
    module = loaded(student, "MultiHeadLatentAttention", state, 1024, 16, 16, 8)
    cache = tensor(rng, 1, 12_000, 16), tensor(rng, 1, 12_000, 8)
    trace = module.trace_call("decode", tensor(rng, 1, 1, 1024), cache)
    at_most(trace.flops / 1e6, 60, what="million operations for one position behind 12000")
    at_most(trace.outside_bytes / MIB, 40, what="MiB for one position behind 12000")


# --- drop_heads ------------------------------------------------------------------------------------------------------


def dropped(head_outputs, p, seed):
    """One example after the other, by the numbers that the contract prescribes."""
    numbers = torch.rand(head_outputs.shape[:-2], generator=torch.Generator().manual_seed(seed))
    result = torch.zeros_like(head_outputs)
    for index in np.ndindex(*head_outputs.shape[:-3]):
        row = numbers[index].tolist()
        kept = [head for head, number in enumerate(row) if number >= p] or [row.index(max(row))]
        for head in kept:
            result[(*index, head)] = head_outputs[(*index, head)] * (len(row) / len(kept))
    return result


def seed_of(rng):
    """A seed and the generator that is made from it on the other side."""
    seed = int(rng.integers(2**31))
    return seed, Generator(seed, "torch")


@hidden("drop_heads", weight=2, hint="One number decides about a head of an example, with all its positions.")
def test_dropped_heads(student, rng):
    """Heads go or stay as a whole, in every example by itself, and the rest makes good for them."""
    for p in (0.3, 0.6):
        x, (seed, generator) = tensor(rng, 12, 5, 3, 4), seed_of(rng)
        close(student.drop_heads(x, p, generator), dropped(x, p, seed), what=f"head outputs with {p=}")


@hidden("drop_heads", weight=1, hint="How many heads were kept in *this* example?")
def test_dropped_heads_with_equal_axes(student, rng):
    """The same where examples, heads and positions are equal in number."""
    x, (seed, generator) = tensor(rng, 6, 6, 6, 6), seed_of(rng)
    close(student.drop_heads(x, 0.5, generator), dropped(x, 0.5, seed), what="head outputs with equal axes")


@hidden("drop_heads", kind="edge", weight=2, hint="What if every number is below p?")
def test_one_head_always_stays(student, rng):
    """Where all heads would go, the one with the largest number stays, at full weight."""
    x, (seed, generator) = tensor(rng, 40, 3, 2, 2), seed_of(rng)
    found = student.drop_heads(x, 0.9, generator)
    close(found, dropped(x, 0.9, seed), what="head outputs with p=0.9")
    require(bool((found != 0).any(dim=-1).any(dim=-1).any(dim=-1).all()), "An example has lost all of its heads.")


@hidden("drop_heads", kind="edge", weight=1, hint="Nothing dropped means nothing scaled.")
def test_nothing_dropped(student, rng):
    """With p = 0 nothing changes; shares outside [0, 1) are a ValueError."""
    x, (_, generator) = tensor(rng, 3, 4, 2, 5), seed_of(rng)
    close(student.drop_heads(x, 0.0, generator), x, what="head outputs with p=0")
    for p in (-0.1, 1.0, 1.5):
        raises(ValueError, student, "drop_heads", x, p, generator)


@hidden("drop_heads", kind="edge", weight=1, hint="The numbers have one axis for every leading axis, and the heads.")
def test_dropped_heads_with_other_leading_axes(student, rng):
    """No leading axis or two of them; what came in is not changed."""
    for shape in ((5, 3, 2), (3, 4, 5, 3, 2)):
        x, (seed, generator) = strided(tensor(rng, *shape)), seed_of(rng)
        result, after = student.after("drop_heads", x, 0.5, generator)
        close(result, dropped(x, 0.5, seed), what=f"head outputs with {len(shape) - 3} leading axes")
        close(after[0], x, what="head outputs after the call")


@hidden("drop_heads", kind="edge", weight=1, hint="In which dtype are your factors computed?")
def test_dropped_heads_in_float64(student, rng):
    """float64 head outputs keep all of their digits."""
    # However factors of 8 heads are computed in float32, they round alike, and so have one name.
    x, (seed, generator) = tensor(rng, 24, 8, 2, 1, dtype=DOUBLE), seed_of(rng)
    close(student.drop_heads(x, 0.5, generator), dropped(x, 0.5, seed), what="head outputs in float64")


@hidden("drop_heads", kind="gradient", weight=1, hint="Dropping is a product, and a product has a gradient.")
def test_gradient_of_dropped_heads(student, rng):
    """The gradient is the upstream one, dropped and scaled alike."""
    x, upstream, (seed, generator) = tensor(rng, 6, 4, 3, 2), tensor(rng, 6, 4, 3, 2), seed_of(rng)
    _, (grad,) = student.vjp("drop_heads", x, 0.5, generator, upstream=upstream)
    gradients_agree([grad], [dropped(upstream, 0.5, seed)], ["the head outputs"])


# --- head_importance -------------------------------------------------------------------------------------------------


def importance_by_loops(outputs, upstream):
    """Example by example and head by head."""
    heads, lead = outputs.shape[-3], outputs.shape[:-3]
    totals = [0.0] * heads
    for index in np.ndindex(*lead):
        for head in range(heads):
            totals[head] += abs(float((outputs[index][head].double() * upstream[index][head].double()).sum()))
    return torch.tensor([total / math.prod(lead) for total in totals], dtype=DOUBLE)


@hidden("head_importance", weight=2, hint="In which order: sum, absolute value, mean?")
def test_importance_of_heads(student, rng):
    """The mean over examples of |Σ head · gradient|, the sum over positions and columns."""
    outputs, upstream = (tensor(rng, 7, 3, 5, 4, dtype=DOUBLE) for _ in range(2))
    close(student.head_importance(outputs, upstream), importance_by_loops(outputs, upstream), what="importance")


@hidden("head_importance", weight=1, hint="Which axis holds the heads?")
def test_importance_with_equal_axes(student, rng):
    """The same where all axes are equal."""
    outputs, upstream = (tensor(rng, 4, 4, 4, 4, dtype=DOUBLE) for _ in range(2))
    close(student.head_importance(outputs, upstream), importance_by_loops(outputs, upstream), what="importance")


@hidden("head_importance", kind="property", weight=1, hint="The sign of an example's sum does not count.")
def test_importance_forgets_signs(student, rng):
    """Turning all signs of an example changes nothing; a head without gradient has importance 0."""
    outputs, upstream = (tensor(rng, 6, 4, 3, 2, dtype=DOUBLE) for _ in range(2))
    upstream[:, 2] = 0.0
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], size=(6, 1, 1, 1)))
    expected = importance_by_loops(outputs, upstream)
    close(student.head_importance(outputs, signs * upstream), expected, what="importance with other signs")


@hidden("head_importance", kind="edge", weight=1, hint="All axes before the heads hold examples.")
def test_importance_with_other_leading_axes(student, rng):
    """Two batch axes, memory with gaps, float32 stays float32; nothing that came in is changed."""
    outputs, upstream = (strided(tensor(rng, 2, 3, 4, 5, 2)) for _ in range(2))
    result, after = student.after("head_importance", outputs, upstream)
    close(result, importance_by_loops(outputs, upstream).float(), what="importance with two batch axes")
    close(after[0], outputs, what="head outputs after the call")


@hidden("head_importance", kind="edge", weight=1, hint="One example, one position: the formula has no special case.")
def test_importance_of_single_ones(student, rng):
    """One example, one position, one column."""
    for shape in ((1, 3, 5, 2), (5, 3, 1, 1), (1, 1, 1, 1)):
        outputs, upstream = (tensor(rng, *shape, dtype=DOUBLE) for _ in range(2))
        close(student.head_importance(outputs, upstream), importance_by_loops(outputs, upstream), what="importance")


# --- qk_norm ---------------------------------------------------------------------------------------------------------

QK = ("q", "k")


def normed(x, gain, eps=1e-6):
    """PyTorch's own norm."""
    return F.rms_norm(x, (x.shape[-1],), gain, eps)


@hidden("qk_norm", weight=2, hint="Mean of squares, over the columns of one row.")
def test_normed_queries_and_keys(student, rng):
    """Each row over its root mean square, times the gain; q and k each have their own."""
    q, k = tensor(rng, 2, 6, 5, 4, dtype=DOUBLE), tensor(rng, 2, 3, 7, 4, dtype=DOUBLE)
    gains = tensor(rng, 4, dtype=DOUBLE), tensor(rng, 4, dtype=DOUBLE)
    same(student.qk_norm(q, k, *gains), (normed(q, gains[0]), normed(k, gains[1])), QK, "normed")


@hidden("qk_norm", weight=1, hint="The gain has one number for each column.")
def test_normed_with_equal_axes(student, rng):
    """The same where all axes are equal."""
    q, k = tensor(rng, 4, 4, 4, 4, dtype=DOUBLE), tensor(rng, 4, 4, 4, 4, dtype=DOUBLE)
    gains = tensor(rng, 4, dtype=DOUBLE), tensor(rng, 4, dtype=DOUBLE)
    same(student.qk_norm(q, k, *gains), (normed(q, gains[0]), normed(k, gains[1])), QK, "with equal axes")


@hidden("qk_norm", kind="property", weight=1, hint="Of a row, only the direction is left.")
def test_normed_rows_forget_their_length(student, rng):
    """However large the rows, the result is the same, and scores are bounded."""
    q, k = tensor(rng, 3, 5, 8, dtype=DOUBLE), tensor(rng, 3, 6, 8, dtype=DOUBLE)
    gain = torch.ones(8, dtype=DOUBLE)
    expected = normed(q, gain, 0.0), normed(k, gain, 0.0)
    sizes = torch.from_numpy(10.0 ** rng.integers(4, 8, size=(3, 1, 1)))
    same(student.qk_norm(sizes * q, sizes * k, gain, gain), expected, QK, "of large rows", rtol=1e-7)


@hidden("qk_norm", kind="edge", weight=1, hint="Where does eps stand: inside the root or outside?")
def test_normed_rows_of_nothing(student, rng):
    """Rows of 0 stay 0; small rows feel eps, which stands under the root, and can be chosen."""
    q, k = 1e-3 * tensor(rng, 2, 4, 6, dtype=DOUBLE), 1e-2 * tensor(rng, 2, 4, 6, dtype=DOUBLE)
    q[0, 1], k[1, 2] = 0.0, 0.0
    gain = tensor(rng, 6, dtype=DOUBLE)
    for eps in (1e-6, 1e-3):
        same(student.qk_norm(q, k, gain, gain, eps), (normed(q, gain, eps), normed(k, gain, eps)), QK, "of small rows")


@hidden("qk_norm", kind="edge", weight=1, hint="Does one of your lines write into what came in?")
def test_normed_other_shapes(student, rng):
    """No leading axis, memory with gaps, float32 stays float32; nothing that came in is changed."""
    q, k, gain = strided(tensor(rng, 5, 6)), strided(tensor(rng, 2, 3, 6)), tensor(rng, 6)
    result, after = student.after("qk_norm", q, k, gain, gain)
    same(result, (normed(q, gain), normed(k, gain)), QK, "of other shapes")
    close(after[0], q, what="q after the call")


@hidden("qk_norm", kind="gradient", weight=1, hint="The norm has a gradient too; keep it.")
def test_normed_gradients(student, rng):
    """Gradients reach q, k and both gains."""
    inputs = [tensor(rng, 3, 5, 4), tensor(rng, 3, 2, 4), tensor(rng, 4), tensor(rng, 4)]
    upstream = tensor(rng, 3, 5, 4), tensor(rng, 3, 2, 4)
    expected = with_gradients(lambda q, k, a, b: (normed(q, a), normed(k, b)), inputs, upstream)
    _, grads = student.vjp("qk_norm", *inputs, upstream=upstream, wrt=(0, 1, 2, 3))
    gradients_agree(grads, expected, ("q", "k", "q_gain", "k_gain"))


# --- softcap ---------------------------------------------------------------------------------------------------------


def capped_by_loops(scores, cap):
    """Number by number with Python's own tanh."""
    return torch.tensor([cap * math.tanh(s / cap) for s in scores.flatten().tolist()], dtype=DOUBLE).reshape(
        scores.shape
    )


@hidden("softcap", weight=2, hint="The score is divided by the cap before tanh, and multiplied after.")
def test_capped_scores(student, rng):
    """cap · tanh(s / cap), for small and large scores and several caps."""
    scores = tensor(rng, 2, 3, 4, 5, dtype=DOUBLE) * torch.tensor([0.1, 1.0, 10.0, 50.0, 200.0], dtype=DOUBLE)
    for cap in (0.5, 30.0, 50.0):
        close(student.softcap(scores, cap), capped_by_loops(scores, cap), what=f"scores under a cap of {cap:g}")


@hidden("softcap", kind="property", weight=1, hint="Near 0 tanh is the identity; far away it is flat.")
def test_capped_scores_at_both_ends(student, rng):
    """Small scores pass almost unchanged, enormous ones end at the cap, signs stay, nothing overflows."""
    cap = float(rng.uniform(20, 60))
    small, signs = 1e-3 * tensor(rng, 50, dtype=DOUBLE), torch.from_numpy(rng.choice([-1.0, 1.0], size=50))
    close(student.softcap(small, cap), small, what="small scores", rtol=1e-6)
    close(student.softcap(1e9 * signs, cap), cap * signs, what="enormous scores")


@hidden("softcap", kind="edge", weight=1, hint="Which caps make no sense?")
def test_capped_scores_refuse(student, rng):
    """A cap that is not positive is a ValueError."""
    for cap in (0.0, -1.0, -50.0):
        raises(ValueError, student, "softcap", tensor(rng, 3), cap)


@hidden("softcap", kind="edge", weight=1, hint="Does one of your lines write into what came in, or choose a dtype?")
def test_capped_scores_keep_their_kind(student, rng):
    """float32 stays float32, memory with gaps is read as it is, and nothing that came in is changed."""
    scores = strided(20 * tensor(rng, 3, 4, 2))
    result, after = student.after("softcap", scores, 15.0)
    close(result, capped_by_loops(scores, 15.0).float(), what="scores in float32")
    close(after[0], scores, what="scores after the call")


@hidden("softcap", kind="gradient", weight=1, hint="A clamp has gradient 0 outside; tanh has not.")
def test_capped_gradient(student, rng):
    """The gradient is 1 − tanh²(s / cap), everywhere."""
    scores, upstream = 8 * tensor(rng, 4, 6), tensor(rng, 4, 6)
    expected = upstream.double() * (1 - torch.tanh(scores.double() / 5) ** 2)
    _, (grad,) = student.vjp("softcap", scores, 5.0, upstream=upstream)
    gradients_agree([grad], [expected], ["scores"])


# --- sink_softmax ----------------------------------------------------------------------------------------------------


def sunk(scores, sink, mask=None):
    """Row by row, with the largest exponent taken out."""
    result = torch.zeros_like(scores)
    allowed = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.expand_as(scores)
    for index in np.ndindex(*scores.shape[:-1]):
        row = [s if ok else -math.inf for s, ok in zip(scores[index].tolist(), allowed[index].tolist(), strict=True)]
        own = sink[index[-2]].item()
        top = max([own, *row])
        terms = [math.exp(s - top) for s in row]
        total = math.fsum([math.exp(own - top), *terms])
        result[index] = torch.tensor([term / total for term in terms], dtype=scores.dtype)
    return result


@hidden("sink_softmax", weight=2, hint="One more term below the line, and each head has its own.")
def test_weights_with_a_sink(student, rng):
    """exp(s) over exp(sink) + Σ exp(s), with one sink for each head."""
    scores, sink = 2 * tensor(rng, 2, 3, 4, 5, dtype=DOUBLE), tensor(rng, 3, dtype=DOUBLE)
    close(student.sink_softmax(scores, sink), sunk(scores, sink), what="weights with a sink")


@hidden("sink_softmax", weight=1, hint="Which axis of the scores do the sinks run along?")
def test_weights_with_a_sink_and_equal_axes(student, rng):
    """The same where all axes are equal."""
    scores, sink = 2 * tensor(rng, 4, 4, 4, 4, dtype=DOUBLE), 2 * tensor(rng, 4, dtype=DOUBLE)
    close(student.sink_softmax(scores, sink), sunk(scores, sink), what="weights with equal axes")


@hidden("sink_softmax", kind="property", weight=1, hint="A sink far below all scores takes nothing.")
def test_weights_with_extreme_sinks(student, rng):
    """A sink of −10⁴ leaves the plain softmax, one of 10⁴ takes everything, and scores of ±10⁴ stay finite."""
    scores = tensor(rng, 2, 3, 4, 5, dtype=DOUBLE)
    low = torch.full((3,), -1e4, dtype=DOUBLE)
    close(student.sink_softmax(scores, low), scores.softmax(dim=-1), what="weights beside a low sink")
    close(student.sink_softmax(scores, -low), torch.zeros_like(scores), what="weights beside a high sink")
    loud = scores + torch.from_numpy(rng.choice([-1e4, 1e4], size=(2, 3, 4, 1)))
    sink = 1e4 * torch.ones(3, dtype=DOUBLE)
    close(student.sink_softmax(loud, sink), sunk(loud, sink), what="weights of loud scores", rtol=1e-7)


@hidden("sink_softmax", kind="edge", weight=2, hint="Hide before the softmax; the sink itself is never hidden.")
def test_weights_with_a_sink_and_masks(student, rng):
    """Masked weights are exactly 0, empty rows are 0, and a 3-D mask belongs to the examples."""
    scores, sink = tensor(rng, 3, 3, 4, 5, dtype=DOUBLE), tensor(rng, 3, dtype=DOUBLE)
    for shape in ((4, 5), (3, 4, 5), (3, 3, 4, 5), (3, 1, 5)):
        mask = torch.from_numpy(rng.random(shape) < 0.6)
        mask[0] = False
        full = mask[:, None] if len(shape) == 3 else mask
        loud = scores.masked_fill(~full, 4.0)
        found = student.sink_softmax(loud, sink, mask)
        close(found, sunk(loud, sink, full), what=f"weights with a mask of {len(shape)} axes")
        require(bool((found[~full.expand_as(scores)] == 0).all()), "A masked weight should be exactly 0.")


@hidden("sink_softmax", kind="edge", weight=1, hint="Count axes from the back.")
def test_weights_with_a_sink_and_other_leading_axes(student, rng):
    """No leading axis or two of them, memory with gaps, float32 stays float32."""
    for shape in ((3, 4, 5), (2, 2, 3, 4, 5)):
        scores, sink = strided(tensor(rng, *shape)), tensor(rng, 3)
        close(
            student.sink_softmax(scores, sink), sunk(scores, sink), what=f"weights with {len(shape) - 3} leading axes"
        )


@hidden("sink_softmax", kind="gradient", weight=1, hint="The sink is learned: it needs a gradient.")
def test_gradients_of_weights_with_a_sink(student, rng):
    """Gradients reach scores and sinks."""
    scores, sink, upstream = tensor(rng, 2, 3, 4, 5), tensor(rng, 3), tensor(rng, 2, 3, 4, 5)

    def plain(scores, sink):
        terms = scores.exp()
        return [terms / (terms.sum(dim=-1, keepdim=True) + sink.exp()[:, None, None])]

    _, grads = student.vjp("sink_softmax", scores, sink, upstream=upstream, wrt=(0, 1))
    gradients_agree(grads, with_gradients(plain, [scores, sink], [upstream]), ("scores", "sink"))


# --- attention_parameters --------------------------------------------------------------------------------------------


def learned(d_model, heads, kv_heads, bias):
    """Counted on four layers."""
    kv_dim = kv_heads * (d_model // heads)
    shapes = ((d_model, d_model), (d_model, kv_dim), (d_model, kv_dim), (d_model, d_model))
    return sum(p.numel() for i, o in shapes for p in nn.Linear(i, o, bias=bias).parameters())


@hidden("attention_parameters", weight=2, hint="Four layers: which of them become narrower?")
def test_parameters_agree_with_layers(student, rng):
    """Counted on real layers, for groups of all sizes, without a bias."""
    for _ in range(4):
        kv_heads, group, size = (int(n) for n in rng.integers(2, 6, size=3))
        heads = kv_heads * group
        found = student.attention_parameters(heads * size, heads, kv_heads, False)
        whole(found, learned(heads * size, heads, kv_heads, False), "parameters without bias")


@hidden("attention_parameters", weight=2, hint="A bias is as long as the output of its layer.")
def test_parameters_with_bias(student, rng):
    """The same with a bias; for plain multi-head attention it is what PyTorch's layer has."""
    for kv_heads in (1, 2, 6):
        size = int(rng.integers(3, 9))
        found = student.attention_parameters(6 * size, 6, kv_heads, True)
        whole(found, learned(6 * size, 6, kv_heads, True), "parameters with bias")
    d_model = 4 * int(rng.integers(3, 20))
    layer = nn.MultiheadAttention(d_model, 4)
    whole(student.attention_parameters(d_model, 4, 4, True), sum(p.numel() for p in layer.parameters()), "PyTorch's")


@hidden("attention_parameters", kind="property", weight=1, hint="h heads of width d / h: what is their product?")
def test_parameters_do_not_know_the_number_of_heads(student, rng):
    """In multi-head attention the number of heads changes nothing."""
    d_model = 24 * int(rng.integers(2, 9))
    for heads in (1, 2, 8, 24):
        found = student.attention_parameters(d_model, heads, heads, False)
        whole(found, 4 * d_model**2, f"parameters of {heads} heads")


@hidden("attention_parameters", kind="edge", weight=1, hint="Python's integers have as many digits as they need.")
def test_parameters_are_exact(student, rng):
    """Exact for enormous widths, and ValueError where numbers do not divide."""
    size = 2 * int(rng.integers(5 * 10**7, 2 * 10**8)) + 1
    d_model = 3 * size
    whole(student.attention_parameters(d_model, 3, 1, False), 2 * d_model * (d_model + size), "an enormous layer")
    for sizes in ((10, 3, 1), (12, 6, 4), (12, 4, 3)):
        raises(ValueError, student, "attention_parameters", *sizes, True)


# --- attention_multiplications ---------------------------------------------------------------------------------------

THREE_COUNTS = ("projections", "scores", "weighted sum")


def same_counts(answer, expected, what):
    """Three exact integers."""
    for name, found, want in zip(THREE_COUNTS, parts(answer, *THREE_COUNTS), expected, strict=True):
        whole(found, want, f"{name} {what}")


def products(seq, d_model, heads):
    """(m, n) by (n, k) takes m·n·k: summed over four projections, and over the heads."""
    size = d_model // heads
    projections = sum(seq * d_model * d_model for _ in range(4))
    scores = sum(seq * size * seq for _ in range(heads))
    return projections, scores, sum(seq * seq * size for _ in range(heads))


@hidden("attention_multiplications", weight=2, hint="Write down the shapes of every product.")
def test_multiplications_agree_with_products(student, rng):
    """Product by product, for sizes of chance."""
    for _ in range(4):
        heads, size, seq = int(rng.integers(2, 8)), int(rng.integers(3, 30)), int(rng.integers(5, 300))
        answer = student.attention_multiplications(seq, heads * size, heads)
        same_counts(answer, products(seq, heads * size, heads), "of a layer")


@hidden("attention_multiplications", weight=1, hint="One head is a case like any other.")
def test_multiplications_of_one_head(student, rng):
    """One head, one position, and as many heads as columns."""
    for seq, d_model, heads in ((7, 5, 1), (1, 6, 3), (9, 8, 8)):
        seq += 10 * int(rng.integers(1, 4))
        same_counts(
            student.attention_multiplications(seq, d_model, heads), products(seq, d_model, heads), "at the ends"
        )


@hidden("attention_multiplications", kind="property", weight=1, hint="More heads are narrower heads.")
def test_multiplications_do_not_know_the_number_of_heads(student, rng):
    """The number of heads changes none of the three."""
    seq = int(rng.integers(20, 60))
    for heads in (1, 3, 24):
        same_counts(student.attention_multiplications(seq, 24, heads), products(seq, 24, 1), f"with {heads} heads")


@hidden("attention_multiplications", kind="edge", weight=1, hint="Python's integers have as many digits as they need.")
def test_multiplications_are_exact(student, rng):
    """Exact for enormous sizes, and ValueError where the heads do not divide the width."""
    seq = 2 * int(rng.integers(10**7, 10**8)) + 1
    expected = 4 * seq * 9801, seq * seq * 99, seq * seq * 99
    same_counts(student.attention_multiplications(seq, 99, 11), expected, "of an enormous text")
    raises(ValueError, student, "attention_multiplications", 10, 12, 5)


# --- kv_cache_bytes --------------------------------------------------------------------------------------------------


@hidden("kv_cache_bytes", weight=2, hint="Keys *and* values, in every layer, at every position.")
def test_bytes_agree_with_tensors(student, rng):
    """Counted on real tensors, for sizes of chance."""
    for dtype in (torch.float32, torch.float16, torch.int8):
        layers, kv_heads, size, seq, batch = (int(n) for n in rng.permutation([3, 4, 5, 6, 7]))
        tensors = [torch.zeros(batch, kv_heads, seq, size, dtype=dtype) for _ in range(2 * layers)]
        found = student.kv_cache_bytes(layers, kv_heads, size, seq, batch, tensors[0].element_size())
        whole(found, sum(t.nbytes for t in tensors), f"bytes in {dtype}")


@hidden("kv_cache_bytes", weight=2, hint="Try one number at a time: which of them do you leave out?")
def test_bytes_grow_with_every_number(student, rng):
    """Proportional to each of the six numbers."""
    sizes = [int(n) for n in rng.integers(2, 9, size=6)]
    for index in range(6):
        larger = [n * (3 if i == index else 1) for i, n in enumerate(sizes)]
        whole(student.kv_cache_bytes(*larger), 2 * math.prod(larger), "bytes with one number larger")


@hidden("kv_cache_bytes", kind="edge", weight=1, hint="Python's integers have as many digits as they need.")
def test_bytes_are_exact(student, rng):
    """Exact for enormous caches; an empty cache has 0 bytes."""
    seq = 2 * int(rng.integers(10**12, 10**13)) + 1
    whole(student.kv_cache_bytes(61, 3, 129, seq, 1, 1), 2 * 61 * 3 * 129 * seq, "bytes of an enormous cache")
    whole(student.kv_cache_bytes(4, 2, 64, 0, 3, 2), 0, "bytes of an empty cache")


@hidden("kv_cache_bytes", kind="property", weight=1, hint="What is the ratio of their numbers of key heads?")
def test_bytes_of_published_models(student, rng):
    """Sharing keys among h / g heads makes the cache h / g times smaller."""
    seq = 1024 * int(rng.integers(1, 100))
    for heads, kv_heads in ((64, 8), (32, 2), (48, 1)):
        full = student.kv_cache_bytes(80, heads, 128, seq, 1, 2)
        shared = student.kv_cache_bytes(80, kv_heads, 128, seq, 1, 2)
        whole(full, 2 * 80 * heads * 128 * seq * 2, "bytes of all heads")
        whole(shared, full * kv_heads // heads, "bytes of shared heads")
