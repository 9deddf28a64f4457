"""Hidden suite of chapter `linear`.

Linear attention is expected from the quadratic form that it replaces, recurrences token by token, random features
feature by feature, all in float64; costs from what was held and multiplied, and how both grow with the length.
"""

import math

import numpy as np
import torch

from autograder.sandbox.protocol import Generator
from autograder.suites.kit import (
    at_least,
    at_most,
    at_most_seconds,
    close,
    hidden,
    parts,
    raises,
    require,
    strided,
    tensor,
)

MIB = 2**20
DOUBLE = torch.float64
EXACT = 1e-10  # forms of one computation agree to this in float64


def phi(x):
    """elu(x) + 1, exact far below 0."""
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


def draw(rng, *batch, q_seq, kv_seq=None, head_dim=4, v_dim=6, dtype=DOUBLE):
    """Queries, keys and values."""
    kv_seq = q_seq if kv_seq is None else kv_seq
    return [
        tensor(rng, *batch, *shape, dtype=dtype) for shape in ((q_seq, head_dim), (kv_seq, head_dim), (kv_seq, v_dim))
    ]


def quotient(above, below):
    """above / below, and 0 where below is 0."""
    return torch.where(below == 0, torch.zeros_like(above), above / below.masked_fill(below == 0, 1))


def compare_gradients(found, inputs, names, upstream, definition):
    """Fail unless each gradient has arrived and is the definition's; `upstream` has one entry an output, or None."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = definition(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum((out * up).sum() for out, up in zip(outputs, upstream, strict=True) if up is not None)
    for name, one, other in zip(names, found, torch.autograd.grad(total, leaves), strict=True):
        require(one is not None, f"No gradient reaches {name}.")
        close(one, other, what=f"gradient of {name}", rtol=1e-8)


def unchanged(before, after):
    """Fail if a call changed one of its tensors."""
    for old, new in zip(before, after, strict=True):
        if isinstance(old, tuple):
            unchanged(old, new)
        elif isinstance(old, torch.Tensor):
            require(torch.equal(old, new), "An argument was changed in place.")


def grows_linearly(readings, lengths, what):
    """Fail if a reading grows faster than the length; a reading of 0 tells nothing."""
    if min(readings) > 0:
        power = math.log(readings[-1] / readings[0]) / math.log(lengths[-1] / lengths[0])
        require(power < 1.4, f"The {what} grow with the length to the power of {power:.1f}; 1 is linear.")


def likely(measured, limit, what):
    """Fail if a statistic lies where chance does not bring it; how unlikely that is stands beside each limit."""
    require(measured <= limit, f"{what}: {measured:.3g}, and chance brings it to {limit:.3g} at most")


def traced_attention(student, name, definition, draw_inputs):
    """A function of the length: a call's trace, some of its rows compared with the definition."""

    def traced(length):
        inputs = draw_inputs(length)
        trace = student.trace(name, *inputs)
        rows = torch.arange(0, length, length // 8)
        expected = definition(inputs[0][rows].double(), *(x.double() for x in inputs[1:])).float()
        shape = (length, inputs[2].shape[-1])
        require(
            isinstance(trace.result, torch.Tensor) and trace.result.shape == shape, "The output has the shape of v."
        )
        close(trace.result[rows], expected, what="some rows of a long sequence", rtol=1e-3)
        return trace

    return traced


LENGTHS = (64, 128, 256)


def holds_no_pairs(traced):
    """Fail if memory grows faster than the length, seen from inside and from outside."""
    grows_linearly([traced(length).largest for length in LENGTHS], LENGTHS, "elements of the largest tensor")
    trace = traced(4096)
    at_most(trace.largest, 2**20, what="elements of the largest tensor at 4,096 tokens")
    at_most(trace.outside_bytes, 24 * MIB, what="growth of the process's memory at 4,096 tokens, in bytes")


def computes_no_pairs(traced):
    """Fail if work grows faster than the length: products as counted inside, CPU time as read from outside."""
    grows_linearly([traced(length).flops for length in LENGTHS], LENGTHS, "multiplications")
    at_most_seconds(lambda: traced(4096).outside_seconds, 0.04, what="CPU time at 4,096 tokens")


# --- elu_feature_map -------------------------------------------------------------------------------------------------


@hidden("elu_feature_map", weight=2, hint="Above 0 a straight line, below 0 an exponential; where do they meet?")
def test_elu_map_has_two_branches(student, rng):
    """x + 1 above 0 and exp(x) below."""
    x = torch.from_numpy(np.concatenate([rng.uniform(0.1, 6, 9), rng.uniform(-6, -0.1, 9)]))
    expected = torch.tensor([n + 1 if n > 0 else math.exp(n) for n in x.tolist()], dtype=DOUBLE)
    close(student.elu_feature_map(x), expected, what="features")


@hidden("elu_feature_map", weight=1, hint="Every entry by itself, whatever the shape.")
def test_elu_map_of_any_shape(student, rng):
    """Any number of axes, a single number and no number at all."""
    for shape in ((3, 5, 2), (7, 4), (), (0, 3)):
        x = tensor(rng, *shape, dtype=DOUBLE)
        close(student.elu_feature_map(x), phi(x), what=f"features with {len(shape)} axes")


@hidden("elu_feature_map", kind="property", weight=1, hint="A weight must not be negative, nor 0 for a whole branch.")
def test_elu_map_is_positive_and_rising(student, rng):
    """Always positive, strictly rising, 1 at 0, and smooth there."""
    x = torch.from_numpy(np.sort(rng.uniform(-8, 8, 60)))
    found = student.elu_feature_map(x)
    close(found, phi(x), what="features of sorted numbers")
    require(bool((found > 0).all()) and bool((found.diff() > 0).all()), "It should be positive and rise everywhere.")
    near = student.elu_feature_map(torch.tensor([-1e-6, 0.0, 1e-6], dtype=DOUBLE))
    close((near[2] - near[0]) / 2e-6, torch.tensor(1.0, dtype=DOUBLE), what="slope at 0", atol=1e-5)
    close(near[1], torch.tensor(1.0, dtype=DOUBLE), what="feature of 0")


@hidden("elu_feature_map", kind="edge", weight=1, hint="What does 1 + (exp(−50) − 1) round to, and what is exp(−50)?")
def test_elu_map_far_from_zero(student, rng):
    """Far below 0 it is exp(x) to full precision, and so never 0 as long as exp(x) is not; far above, x + 1."""
    for dtype, lowest in ((DOUBLE, 700), (torch.float32, 80)):
        x = torch.from_numpy(-rng.uniform(20, lowest, 12)).to(dtype)
        found = student.elu_feature_map(x)
        require(isinstance(found, torch.Tensor) and found.shape == x.shape, "A tensor of the shape of x is asked for.")
        close(
            found.double().log(), x.double(), what=f"logarithm of features far below 0 in {str(dtype)[6:]}", rtol=1e-6
        )
        x = torch.from_numpy(10 ** rng.uniform(3, 12, 12)).to(dtype)
        close(student.elu_feature_map(x), x + 1, what="features far above 0")


@hidden("elu_feature_map", kind="gradient", weight=1, hint="0 · ∞ is NaN: does a branch that is not taken overflow?")
def test_elu_map_gradients(student, rng):
    """1 above 0, exp(x) below, finite everywhere."""
    x = torch.from_numpy(np.concatenate([rng.uniform(-5, 5, 12), [900.0, 5e4, -900.0, -5e4]]))
    upstream = tensor(rng, 16, dtype=DOUBLE)
    _, (found,) = student.vjp("elu_feature_map", x, upstream=upstream)
    require(found is not None, "No gradient reaches x.")
    close(found, upstream * x.clamp(max=0).exp(), what="gradient")


@hidden("elu_feature_map", kind="edge", weight=1, hint="What comes in keeps its dtype and its values.")
def test_elu_map_keeps_dtype_and_argument(student, rng):
    """float32 and float64 stay what they are, tensors with gaps in memory work, x is left as it was."""
    for dtype in (torch.float32, DOUBLE):
        x = strided(tensor(rng, 3, 6, dtype=dtype))
        found, after = student.after("elu_feature_map", x)
        close(found, phi(x.double()).to(dtype), what="features")
        unchanged((x,), after)


# --- linear_attention ------------------------------------------------------------------------------------------------


def by_pairs(q, k, v, eps=1e-6):
    """Linear attention in the quadratic form."""
    weights = phi(q) @ phi(k).mT
    return weights @ v / (weights.sum(dim=-1, keepdim=True) + eps)


@hidden(
    "linear_attention", weight=2, hint="Write it with all pairs first: weights φ(q)·φ(k), each row divided by its sum."
)
def test_linear_attention_equals_the_quadratic_form(student, rng):
    """What the weights φ(q)·φ(k), normalised over the keys, make of the values."""
    for batch, q_seq, kv_seq in (((), 7, 11), ((2, 3), 9, 5)):
        inputs = draw(rng, *batch, q_seq=q_seq, kv_seq=kv_seq)
        found = student.linear_attention(*inputs)
        close(found, by_pairs(*inputs), what=f"output of {q_seq} queries and {kv_seq} keys", rtol=EXACT)


@hidden("linear_attention", weight=1, hint="To which number is eps added, and how large is it by default?")
def test_linear_attention_adds_eps_to_the_normaliser(student, rng):
    """eps is added to the sum of weights, and is 1e-6 by default."""
    q, k, v = draw(rng, 2, q_seq=6, kv_seq=8)
    eps = float(rng.uniform(2, 9))
    close(student.linear_attention(q, k, v, eps), by_pairs(q, k, v, eps), what="output with a large eps")
    close(student.linear_attention(q, k - 14, v), by_pairs(q, k - 14, v), what="output where all weights are tiny")


@hidden("linear_attention", kind="property", weight=1, hint="An average of equal values is that value.")
def test_linear_attention_averages(student, rng):
    """Equal values come back as they are, and the order of the keys does not matter."""
    q, k, v = draw(rng, 2, q_seq=5, kv_seq=9)
    close(
        student.linear_attention(q, k, v[:, :1].expand(-1, 9, -1), 0.0), v[:, :1].expand(-1, 5, -1), what="equal values"
    )
    order = torch.from_numpy(rng.permutation(9))
    found = student.linear_attention(q, k[:, order], v[:, order])
    close(found, by_pairs(q, k, v), what="output with the keys in another order")


@hidden(
    "linear_attention", kind="edge", weight=1, hint="Nothing here needs to overflow: there is no exp of anything large."
)
def test_linear_attention_of_large_numbers_and_few_keys(student, rng):
    """Queries and keys of any size, a single key, and no key at all, which gives 0."""
    q, k, v = draw(rng, q_seq=6, kv_seq=7)
    q, k = 3000 * q, 3000 * k
    close(student.linear_attention(q, k, v), by_pairs(q, k, v), what="output of large queries and keys")
    close(student.linear_attention(q, k[:1], v[:1]), by_pairs(q, k[:1], v[:1]), what="output of one key")
    close(student.linear_attention(q, k[:0], v[:0]), torch.zeros(6, 6, dtype=DOUBLE), what="output of no key")


@hidden("linear_attention", kind="gradient", weight=1, hint="The normaliser depends on queries and keys too.")
def test_linear_attention_gradients(student, rng):
    """Gradients of queries, keys and values are those of the quadratic form."""
    inputs = draw(rng, 2, q_seq=5, kv_seq=7)
    upstream = tensor(rng, 2, 5, 6, dtype=DOUBLE)
    _, found = student.vjp("linear_attention", *inputs, upstream=upstream, wrt=(0, 1, 2))
    compare_gradients(found, inputs, "qkv", [upstream], by_pairs)


@hidden("linear_attention", kind="edge", weight=1, hint="What comes in keeps its dtype and its values.")
def test_linear_attention_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, tensors with gaps in memory work, no argument is changed."""
    inputs = [strided(x) for x in draw(rng, 2, q_seq=6, kv_seq=9, dtype=torch.float32)]
    found, after = student.after("linear_attention", *inputs)
    close(found, by_pairs(*(x.double() for x in inputs)).float(), what="output in float32")
    unchanged(inputs, after)


def long_and_linear(student, rng):
    """Traces of linear attention by length."""
    return traced_attention(
        student, "linear_attention", by_pairs, lambda n: draw(rng, q_seq=n, v_dim=3, dtype=torch.float32)
    )


@hidden(
    "linear_attention", kind="cost", weight=1, hint="Products of matrices may be bracketed otherwise. What is small?"
)
def test_linear_attention_holds_no_pairs(student, rng):
    """Nothing of size q_seq × kv_seq is held: memory grows linearly."""
    holds_no_pairs(long_and_linear(student, rng))


@hidden("linear_attention", kind="cost", weight=1, hint="What can be summed before any query is read?")
def test_linear_attention_computes_no_pairs(student, rng):
    """No pair of query and key is computed, not even for a moment: work grows linearly."""
    computes_no_pairs(long_and_linear(student, rng))


# --- causal_linear_recurrent -----------------------------------------------------------------------------------------


def causal(q, k, v, state=None):
    """The pair (out, state) of causal linear attention in the quadratic form."""
    weights = (q @ k.mT).tril()
    above, below = weights @ v, weights.sum(dim=-1, keepdim=True)
    S, z = k.mT @ v, k.sum(dim=-2)
    if state is not None:
        above, below = above + q @ state[0], below + q @ state[1].unsqueeze(-1)
        S, z = S + state[0], z + state[1]
    return quotient(above, below), (S, z)


def draw_mapped(rng, *batch, seq, head_dim=4, v_dim=6, dtype=DOUBLE):
    """Mapped queries and keys, and values."""
    q, k, v = draw(rng, *batch, q_seq=seq, head_dim=head_dim, v_dim=v_dim)
    return [x.to(dtype) for x in (phi(q), phi(k), v)]


def draw_state(rng, *batch, head_dim=4, v_dim=6, dtype=DOUBLE):
    """The pair (S, z) after tokens that nobody has seen."""
    return causal(*draw_mapped(rng, *batch, seq=5, head_dim=head_dim, v_dim=v_dim, dtype=dtype))[1]


def states_agree(answer, expected, what, rtol=EXACT):
    """Fail unless (out, (S, z)) is as expected."""
    out, state = parts(answer, "out", "the state")
    S, z = parts(state, "S", "z")
    close(out, expected[0], what=f"out {what}", rtol=rtol)
    close(S, expected[1][0], what=f"S {what}", rtol=rtol)
    close(z, expected[1][1], what=f"z {what}", rtol=rtol)


def in_pieces(call, inputs, cuts, state=None):
    """What a stateful function returns when a sequence is handed over in pieces."""
    outs = []
    for first, last in zip([0, *cuts], [*cuts, inputs[0].shape[-2]], strict=True):
        out, state = parts(call(*(x[..., first:last, :] for x in inputs), state), "out", "the state")
        require(isinstance(out, torch.Tensor) and out.ndim == inputs[2].ndim, "out should be a tensor shaped like v.")
        outs.append(out)
    return torch.cat(outs, dim=-2), state


@hidden("causal_linear_recurrent", weight=2, hint="Compare with the lower triangle of all weights, row by row.")
def test_recurrent_equals_the_quadratic_form(student, rng):
    """Each token reads itself and what came before, normalised."""
    for batch, seq in (((), 9), ((2, 3), 7)):
        inputs = draw_mapped(rng, *batch, seq=seq)
        out, _ = parts(student.causal_linear_recurrent(*inputs), "out", "the state")
        close(out, causal(*inputs)[0], what=f"out of {seq} tokens", rtol=EXACT)


@hidden("causal_linear_recurrent", weight=1, hint="What does the next token need to know of all those before it?")
def test_recurrent_returns_its_state(student, rng):
    """The state is the pair (S, z) after the last token."""
    inputs = draw_mapped(rng, 2, seq=8)
    states_agree(student.causal_linear_recurrent(*inputs), causal(*inputs), "of 8 tokens")


@hidden(
    "causal_linear_recurrent",
    weight=2,
    hint="Both parts of the state continue: the sum of products, and the sum of keys.",
)
def test_recurrent_continues_a_state(student, rng):
    """A state that is handed in is where the sums begin."""
    for batch in ((), (2, 3)):
        inputs, state = draw_mapped(rng, *batch, seq=6), draw_state(rng, *batch)
        states_agree(student.causal_linear_recurrent(*inputs, state), causal(*inputs, state), "after a state")


@hidden("causal_linear_recurrent", kind="property", weight=1, hint="The state is all that one call knows of another.")
def test_recurrent_in_pieces(student, rng):
    """A sequence in pieces, the state handed on, gives what the whole sequence gives."""
    inputs = draw_mapped(rng, 2, seq=12)
    cut = int(rng.integers(2, 9))
    found = in_pieces(student.causal_linear_recurrent, inputs, [cut, cut + 1])
    states_agree(found, causal(*inputs), "of a sequence in three pieces")


@hidden("causal_linear_recurrent", kind="property", weight=1, hint="Which tokens may a token's answer depend on?")
def test_recurrent_does_not_see_the_future(student, rng):
    """Later tokens never change what earlier ones get."""
    q, k, v = draw_mapped(rng, seq=10)
    before, _ = parts(student.causal_linear_recurrent(q, k, v), "out", "the state")
    k[6:], v[6:] = 50 * k[6:], v[6:] - 80
    after, _ = parts(student.causal_linear_recurrent(q, k, v), "out", "the state")
    close(after[:6], before[:6], what="out of the first tokens after the others changed")
    close(after[6:], causal(q, k, v)[0][6:], what="out of the tokens that changed")


def without_weight(rng, seq=9):
    """Mapped inputs where some queries find no weight, as no key so far has their features, and one finds little."""
    q, k, v = draw_mapped(rng, seq=seq)
    k[:4, :2] = 0
    q[1, 2:], q[3, 2:] = 0, 0
    q[6], q[7] = 0, 1e-20 * q[7]
    return q, k, v


@hidden("causal_linear_recurrent", kind="edge", weight=1, hint="What is 0 / 0, and what should come out instead?")
def test_recurrent_without_weight(student, rng):
    """Where all weights are 0, out is 0; the tokens around are as they should be."""
    inputs = without_weight(rng)
    states_agree(student.causal_linear_recurrent(*inputs), causal(*inputs), "where some queries find no weight")


@hidden("causal_linear_recurrent", kind="edge", weight=1, hint="Does the loop write into the state that it was given?")
def test_recurrent_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, gaps in memory work, and arguments stay as they were, the state among them."""
    inputs = [strided(x) for x in draw_mapped(rng, 2, seq=7, dtype=torch.float32)]
    state = tuple(strided(x) for x in draw_state(rng, 2, dtype=torch.float32))
    found, after = student.after("causal_linear_recurrent", *inputs, state)
    out, (S, z) = causal(*(x.double() for x in inputs), tuple(x.double() for x in state))
    states_agree(found, (out.float(), (S.float(), z.float())), "in float32", rtol=2e-5)
    unchanged((*inputs, state), after)


@hidden("causal_linear_recurrent", kind="edge", weight=1, hint="A sequence may be one token long, or empty.")
def test_recurrent_of_short_sequences(student, rng):
    """One token returns its value; no token returns nothing and leaves the state as it is."""
    q, k, v = draw_mapped(rng, 2, seq=1)
    states_agree(student.causal_linear_recurrent(q, k, v), (v, causal(q, k, v)[1]), "of one token")
    state = draw_state(rng, 2)
    empty = [x[:, :0] for x in (q, k, v)]
    states_agree(student.causal_linear_recurrent(*empty, state), (empty[2], state), "of no token")


@hidden("causal_linear_recurrent", kind="gradient", weight=1, hint="Through the state, late answers teach early keys.")
def test_recurrent_gradients(student, rng):
    """Gradients of queries, keys and values are those of the quadratic form, through all steps."""
    inputs = draw_mapped(rng, 2, seq=7)
    upstream = tensor(rng, 2, 7, 6, dtype=DOUBLE)
    _, found = student.vjp("causal_linear_recurrent", *inputs, upstream=(upstream, None), wrt=(0, 1, 2))
    compare_gradients(found, inputs, "qkv", [upstream], lambda *leaves: causal(*leaves)[0])


@hidden("causal_linear_recurrent", kind="cost", weight=2, hint="What does one step need besides the state?")
def test_recurrent_holds_no_pairs(student, rng):
    """Nothing of size seq × seq is held."""
    inputs = draw_mapped(rng, 160, seq=160, head_dim=2, v_dim=3)
    trace = student.trace("causal_linear_recurrent", *inputs)
    out, _ = parts(trace.result, "out", "the state")
    require(isinstance(out, torch.Tensor) and out.shape == inputs[2].shape, "out has the shape of v.")
    close(out[:3], causal(*(x[:3] for x in inputs))[0], what="out of some of many sequences", rtol=EXACT)
    at_most(trace.largest, 160 * 160 * 24, what="elements of the largest tensor")
    at_most(trace.outside_bytes, 24 * MIB, what="growth of the process's memory in bytes")


@hidden("causal_linear_recurrent", kind="cost", weight=1, hint="Does a later token cost more than an earlier one?")
def test_recurrent_goes_through_the_past_once(student, rng):
    """Every token costs the same, however many came before it: products grow linearly with the length."""
    lengths, readings = (12, 24, 48), []
    for seq in lengths:
        inputs = draw_mapped(rng, seq=seq)
        trace = student.trace("causal_linear_recurrent", *inputs)
        states_agree(trace.result, causal(*inputs), f"of {seq} tokens")
        readings.append(trace.flops)
    grows_linearly(readings, lengths, "multiplications")


# --- causal_linear_chunked -------------------------------------------------------------------------------------------


@hidden("causal_linear_chunked", weight=2, hint="Inside a chunk a triangle of scores; before it, one state.")
def test_chunked_equals_the_quadratic_form(student, rng):
    """What the recurrence gives, out and state, where the chunk divides the length."""
    for batch, seq, chunk in (((), 12, 4), ((2, 3), 10, 5), ((2,), 9, 9)):
        inputs = draw_mapped(rng, *batch, seq=seq)
        states_agree(
            student.causal_linear_chunked(*inputs, chunk), causal(*inputs), f"of {seq} tokens in chunks of {chunk}"
        )


@hidden("causal_linear_chunked", weight=2, hint="The last chunk may be shorter, and the only one too.")
def test_chunked_with_a_shorter_last_chunk(student, rng):
    """Chunks that do not divide the length, chunks of 1, and chunks longer than the sequence."""
    for seq, chunk in ((11, 4), (7, 1), (5, 8), (int(rng.integers(13, 17)), 6)):
        inputs = draw_mapped(rng, 2, seq=seq)
        states_agree(
            student.causal_linear_chunked(*inputs, chunk), causal(*inputs), f"of {seq} tokens in chunks of {chunk}"
        )


@hidden("causal_linear_chunked", weight=2, hint="The first chunk, too, may have a state before it.")
def test_chunked_continues_a_state(student, rng):
    """A state that is handed in is read by all chunks, and is part of the one that comes back."""
    for batch, seq in (((), 8), ((2, 3), 7)):
        inputs, state = draw_mapped(rng, *batch, seq=seq), draw_state(rng, *batch)
        states_agree(student.causal_linear_chunked(*inputs, 4, state), causal(*inputs, state), "after a state")


@hidden("causal_linear_chunked", kind="property", weight=1, hint="Where a sequence is cut must not matter.")
def test_chunked_in_pieces(student, rng):
    """A sequence in pieces, the state handed on, gives what the whole sequence gives."""
    inputs = draw_mapped(rng, 2, seq=14)
    cut = int(rng.integers(2, 11))
    found = in_pieces(lambda q, k, v, state: student.causal_linear_chunked(q, k, v, 3, state), inputs, [cut, cut + 1])
    states_agree(found, causal(*inputs), "of a sequence in three pieces")


@hidden("causal_linear_chunked", kind="property", weight=1, hint="Inside a chunk, too, the future is hidden.")
def test_chunked_does_not_see_the_future(student, rng):
    """Later tokens never change what earlier ones get, inside a chunk and across chunks."""
    q, k, v = draw_mapped(rng, seq=12)
    before, _ = parts(student.causal_linear_chunked(q, k, v, 5), "out", "the state")
    k[7:], v[7:] = 50 * k[7:], v[7:] - 80
    after, _ = parts(student.causal_linear_chunked(q, k, v, 5), "out", "the state")
    close(after[:7], before[:7], what="out of the first tokens after the others changed")
    close(after[7:], causal(q, k, v)[0][7:], what="out of the tokens that changed")


@hidden("causal_linear_chunked", kind="edge", weight=1, hint="What is 0 / 0, and what should come out instead?")
def test_chunked_without_weight(student, rng):
    """Where all weights are 0, out is 0; the tokens around are as they should be; no token at all works too."""
    inputs = without_weight(rng)
    for chunk in (3, 4):
        states_agree(
            student.causal_linear_chunked(*inputs, chunk), causal(*inputs), "where some queries find no weight"
        )
    state, empty = draw_state(rng), [x[:0] for x in inputs]
    states_agree(student.causal_linear_chunked(*empty, 4, state), (empty[2], state), "of no token")


@hidden("causal_linear_chunked", kind="edge", weight=1, hint="What comes in keeps its dtype and its values.")
def test_chunked_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, gaps in memory work, and arguments stay as they were, the state among them."""
    inputs = [strided(x) for x in draw_mapped(rng, 2, seq=7, dtype=torch.float32)]
    state = tuple(strided(x) for x in draw_state(rng, 2, dtype=torch.float32))
    found, after = student.after("causal_linear_chunked", *inputs, 3, state)
    out, (S, z) = causal(*(x.double() for x in inputs), tuple(x.double() for x in state))
    states_agree(found, (out.float(), (S.float(), z.float())), "in float32", rtol=2e-5)
    unchanged((*inputs, 3, state), after)


@hidden("causal_linear_chunked", kind="gradient", weight=1, hint="Gradients flow through states, from chunk to chunk.")
def test_chunked_gradients(student, rng):
    """Gradients of queries, keys and values are those of the quadratic form, across chunks."""
    inputs = draw_mapped(rng, 2, seq=11)
    upstream = tensor(rng, 2, 11, 6, dtype=DOUBLE)
    _, found = student.vjp("causal_linear_chunked", *inputs, 4, upstream=(upstream, None), wrt=(0, 1, 2))
    compare_gradients(found, inputs, "qkv", [upstream], lambda *leaves: causal(*leaves)[0])


@hidden(
    "causal_linear_chunked", kind="cost", weight=2, hint="What is done for one token can be done for a chunk at once."
)
def test_chunked_has_no_loop_over_tokens(student, rng):
    """Twice as many tokens in the same chunks take hardly more Python steps, and no more time than products take."""

    def traced(seq, chunk):
        inputs = draw_mapped(rng, seq=seq, v_dim=3)
        trace = student.trace("causal_linear_chunked", *inputs, chunk)
        states_agree(trace.result, causal(*inputs), "of a long sequence")
        require({"mul", "mm", "bmm", "add"} & set(trace.calls), "It should be computed by torch's operations.")
        return trace

    steps = [traced(seq, 64).steps for seq in (128, 256)]
    at_most(steps[1] - steps[0], 6_000, what="Python steps for 128 tokens more")
    at_most_seconds(lambda: traced(1024, 256).outside_seconds, 0.06, what="CPU time for 1,024 tokens")


@hidden("causal_linear_chunked", kind="cost", weight=2, hint="How many scores does a token have inside its chunk?")
def test_chunked_cost_is_linear(student, rng):
    """Scores are made inside chunks only: work and memory grow linearly with the length."""

    def traced(seq, chunk):
        inputs = draw_mapped(rng, seq=seq, v_dim=3)
        trace = student.trace("causal_linear_chunked", *inputs, chunk)
        out, _ = parts(trace.result, "out", "the state")
        require(isinstance(out, torch.Tensor) and out.shape == (seq, 3), "out has the shape of v.")
        close(out[:64], causal(*(x[:64] for x in inputs))[0], what="out of the first tokens", rtol=EXACT)
        return trace

    lengths = (128, 256, 512)
    traces = [traced(seq, 32) for seq in lengths]
    grows_linearly([trace.flops for trace in traces], lengths, "multiplications")
    grows_linearly([trace.largest for trace in traces], lengths, "elements of the largest tensor")
    trace = traced(2048, 64)
    at_most(trace.largest, 2**20, what="elements of the largest tensor at 2,048 tokens")
    at_most(trace.outside_bytes, 16 * MIB, what="growth of the process's memory at 2,048 tokens, in bytes")


@hidden("causal_linear_chunked", kind="cost", weight=1, hint="How many states are there at the ends of chunks?")
def test_chunked_holds_a_state_for_each_chunk(student, rng):
    """One state a chunk is held, not one a token."""
    inputs = draw_mapped(rng, seq=1024, head_dim=64, v_dim=63)
    trace = student.trace("causal_linear_chunked", *inputs, 32)
    out, _ = parts(trace.result, "out", "the state")
    require(isinstance(out, torch.Tensor) and out.shape == (1024, 63), "out has the shape of v.")
    close(out[:64], causal(*(x[:64] for x in inputs))[0], what="out of the first tokens", rtol=EXACT)
    at_most(trace.largest, 3 * 2**17, what="elements of the largest tensor for 32 states of 64 × 64")
    at_most(trace.outside_bytes, 24 * MIB, what="growth of the process's memory in bytes")


@hidden("causal_linear_chunked", kind="cost", weight=1, hint="Where does `chunk` enter?")
def test_chunk_sets_the_work(student, rng):
    """Short chunks make few scores, long chunks many."""
    inputs = draw_mapped(rng, seq=256)
    flops = []
    for chunk in (8, 128):
        trace = student.trace("causal_linear_chunked", *inputs, chunk)
        states_agree(trace.result, causal(*inputs), f"in chunks of {chunk}")
        flops.append(trace.flops)
    require(min(flops) == 0 or 3 * flops[0] < flops[1], "The work is the same for short chunks and for long ones.")


# --- orthogonal_random_features --------------------------------------------------------------------------------------


def directions(student, rng, head_dim, features):
    """Rows drawn by the submission in double precision; fails unless they have shape and dtype of the contract."""
    rows = student.orthogonal_random_features(head_dim, features, Generator(int(rng.integers(2**31))))
    require(isinstance(rows, torch.Tensor), "The result should be a torch tensor.")
    require(
        tuple(rows.shape) == (features, head_dim),
        f"(features, head_dim) = {(features, head_dim)} was asked for, and {tuple(rows.shape)} came.",
    )
    require(rows.dtype == torch.float32, "The rows should have torch's default dtype, float32.")
    require(bool(rows.isfinite().all()), "Some entries are not finite.")
    return rows.double()


def cosines(rows):
    """Cosines between the rows of blocks (…, rows, head_dim)."""
    units = rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    return units @ units.mT


@hidden("orthogonal_random_features", weight=2, hint="Multiply the rows of one block with each other.")
def test_rows_are_orthogonal_in_blocks(student, rng):
    """Rows of one block of head_dim are orthogonal, in whole and in incomplete blocks; none is 0."""
    for head_dim, features in ((6, 18), (5, 13), (7, 3), (8, 8)):
        rows = directions(student, rng, head_dim, features)
        # Far below any length that is drawn: a row may be short, and only 0 has no direction.
        at_least(float(rows.norm(dim=-1).min()), 1e-7, what="length of the shortest row")
        for block in rows.split(head_dim):
            off = cosines(block) - torch.eye(len(block), dtype=DOUBLE)
            at_most(float(off.abs().max()), 2e-5, what="largest cosine between two rows of a block")


def ecdf_distance(sample, cdf):
    """The largest distance between a sample's distribution and a continuous one."""
    expected = cdf(sample.sort().values)
    n = len(sample)
    steps = torch.arange(n + 1, dtype=DOUBLE) / n
    return float(torch.maximum((steps[1:] - expected).abs().max(), (expected - steps[:-1]).abs().max()))


@hidden(
    "orthogonal_random_features",
    weight=2,
    hint="How long is a vector of independent standard normal numbers? Always the same?",
)
def test_lengths_are_those_of_gaussian_vectors(student, rng):
    """|w|² follows the chi-squared distribution with head_dim degrees of freedom, independently from row to row."""
    # For 4,000 independent rows a distance of 0.09 has probability below 2·exp(−2·4000·0.09²) = 1e-28.
    for head_dim in (4, 3):
        rows = directions(student, rng, head_dim, 4000 - 4000 % head_dim)
        squares = rows.square().sum(dim=-1)
        found = ecdf_distance(
            squares, lambda x, d=head_dim: torch.special.gammainc(torch.tensor(d / 2, dtype=DOUBLE), x / 2)
        )
        likely(found, 0.09, "distance of the distribution of |w|² from that of Gaussian vectors")
        # Rows in a block share no length: a correlation of 0.25 is eight standard deviations, 1/√1000 each.
        together = torch.corrcoef(squares.unflatten(0, (-1, head_dim)).T)
        likely(float(together.triu(1).abs().max()), 0.25, "correlation between the lengths in a block")


@hidden(
    "orthogonal_random_features",
    kind="property",
    weight=2,
    hint="A QR decomposition prefers some signs. Which does it fix?",
)
def test_directions_are_uniform(student, rng):
    """Every row of a block points everywhere alike: its mean is 0, and its second moments are those of a sphere."""
    head_dim, blocks = 4, 1000
    units = directions(student, rng, head_dim, head_dim * blocks)
    units = (units / units.norm(dim=-1, keepdim=True)).unflatten(0, (blocks, head_dim))
    # The mean of a coordinate has the standard deviation 1/√(4·1000) = 0.016, that of its square 0.25/√1000 = 0.008.
    likely(float(units.mean(dim=0).abs().max()), 0.16, "mean coordinate of a direction")
    squares = units.square().mean(dim=0) - 1 / head_dim
    likely(float(squares.abs().max()), 0.07, "distance of a mean squared coordinate from 1 / head_dim")


@hidden(
    "orthogonal_random_features", kind="property", weight=1, hint="Which distribution is the same in all directions?"
)
def test_rows_know_no_axis(student, rng):
    """No axis is preferred: fourth moments of directions in the plane, second moments of rows in space."""
    units = directions(student, rng, 2, 8000)
    units = (units / units.norm(dim=-1, keepdim=True))[::2]
    # cos⁴ + sin⁴ of a uniform angle is 3/4 on average, with the standard deviation 0.177/√4000 = 0.0028.
    found = float((units.pow(4).sum(dim=-1).mean() - 0.75).abs())
    likely(found, 0.018, "distance of a mean fourth moment from that of the circle")
    rows = directions(student, rng, 4, 16_000).unflatten(0, (4000, 4))
    # The square of a normal number has the standard deviation √2, the mean of 4,000 of them 0.022.
    found = float((rows.square().mean(dim=0) - 1).abs().max())
    likely(found, 0.15, "distance of a mean squared entry from 1")


@hidden("orthogonal_random_features", kind="property", weight=1, hint="Which directions may the second block have?")
def test_blocks_are_independent(student, rng):
    """One block tells nothing of the next: the squared cosine between their rows is 1 / head_dim on average."""
    head_dim, blocks = 4, 1000
    units = directions(student, rng, head_dim, head_dim * blocks)
    units = (units / units.norm(dim=-1, keepdim=True)).unflatten(0, (blocks, head_dim))
    squares = (units[1:] @ units[:-1].mT).square()
    # A squared cosine in four dimensions has the standard deviation 0.25, its mean 0.25/√999 = 0.008.
    found = float((squares.mean(dim=0) - 1 / head_dim).abs().max())
    likely(found, 0.08, "distance of a mean squared cosine from 1 / head_dim")


@hidden("orthogonal_random_features", kind="property", weight=1, hint="Which generator draws?")
def test_rows_repeat_with_their_generator(student, rng):
    """The same generator gives the same rows, another one others."""
    first, second = (int(rng.integers(2**31)) for _ in range(2))
    a, b, c = (student.orthogonal_random_features(5, 12, Generator(seed)) for seed in (first, first, second))
    close(a, b, what="rows drawn again from the same generator")
    require(not torch.equal(a, c), "Two generators gave the same rows.")


@hidden(
    "orthogonal_random_features", kind="edge", weight=1, hint="With one column, what is a direction, and what a length?"
)
def test_rows_with_one_column(student, rng):
    """With head_dim = 1 the rows are standard normal numbers, of both signs."""
    rows = directions(student, rng, 1, 4000)[:, 0]
    found = ecdf_distance(rows, torch.special.ndtr)
    likely(found, 0.09, "distance of the distribution from the standard normal one")


# --- favor_features --------------------------------------------------------------------------------------------------


def exponents(x, projection):
    """w·y − |y|²/2 with y = x / head_dim^¼, one entry at a time from its definition."""
    y = x / math.sqrt(math.sqrt(x.shape[-1]))
    return torch.einsum("...d,fd->...f", y, projection) - torch.einsum("...d,...d->...", y, y)[..., None] / 2


def positive_features(x, projection, is_query, constant=True):
    """Positive random features by their definition."""
    found = exponents(x, projection)
    largest = found.amax(dim=-1, keepdim=True) if is_query else found.flatten(-2).amax(dim=-1)[..., None, None]
    return (found - (largest.detach() if constant else largest)).exp() / math.sqrt(len(projection))


@hidden("favor_features", weight=2, hint="Scale, project, take half the squared length off, then the row's maximum.")
def test_favor_features_of_queries(student, rng):
    """Queries: the exponent of each feature, its row's maximum taken off."""
    for batch, head_dim in (((), 3), ((2, 3), 5)):
        x, w = tensor(rng, *batch, 6, head_dim, dtype=DOUBLE), tensor(rng, 8, head_dim, dtype=DOUBLE)
        close(student.favor_features(x, w, True), positive_features(x, w, True), what="features of queries")


@hidden("favor_features", weight=2, hint="Keys are compared with each other: what may be taken off their exponents?")
def test_favor_features_of_keys(student, rng):
    """Keys: one maximum for all tokens and features of a sequence."""
    for batch, head_dim in (((), 3), ((2, 3), 5)):
        x, w = tensor(rng, *batch, 7, head_dim, dtype=DOUBLE), tensor(rng, 8, head_dim, dtype=DOUBLE)
        close(student.favor_features(x, w, False), positive_features(x, w, False), what="features of keys")


@hidden("favor_features", kind="property", weight=1, hint="E exp(w·x) = exp(|x|²/2) for a standard Gaussian w.")
def test_favor_kernel_is_unbiased(student, rng):
    """Up to the factor taken off, φ(q)·φ(k) is exp(q·k / √head_dim) on average over the projections."""
    features, head_dim = 4096, 4
    w = tensor(rng, features, head_dim, dtype=DOUBLE)
    q, k = 0.5 * tensor(rng, 3, head_dim, dtype=DOUBLE), 0.5 * tensor(rng, 5, head_dim, dtype=DOUBLE)
    off_q = exponents(q, w).amax(dim=-1, keepdim=True)
    off_k = exponents(k, w).amax()
    found = student.favor_features(q, w, True), student.favor_features(k, w, False)
    require(all(isinstance(x, torch.Tensor) and x.ndim == 2 for x in found), "The features are (seq, features).")
    estimate = found[0] @ found[1].T * (off_q + off_k).exp()
    both = (q[:, None] + k).square().sum(dim=-1) / math.sqrt(head_dim)
    exact = (q @ k.T / math.sqrt(head_dim)).exp()
    # One feature has the variance exact² (exp(|y_q + y_k|²) − 1); beyond ten deviations of 4,096 lies less than 1e-20.
    deviation = exact * ((both.exp() - 1) / features).sqrt()
    found = float(((estimate - exact) / deviation).abs().max())
    likely(found, 10, "standard deviations between estimate and kernel")


@hidden("favor_features", kind="edge", weight=1, hint="exp overflows near 710 in float64, near 88 in float32.")
def test_favor_features_of_large_inputs(student, rng):
    """Inputs a hundred times as large overflow nowhere; the largest feature is 1 / √features."""
    for factor in (30, 1000):
        x, w = factor * tensor(rng, 2, 5, 4, dtype=DOUBLE), 3 * tensor(rng, 6, 4, dtype=DOUBLE)
        for is_query in (True, False):
            found = student.favor_features(x, w, is_query)
            expected = positive_features(x, w, is_query)
            close(found, expected, what="features of large inputs", rtol=1e-7)
            some = expected > 1e-250
            close(found[some].log(), expected[some].log(), what="logarithms of features of large inputs", rtol=1e-7)


@hidden("favor_features", kind="gradient", weight=1, hint="The exponent depends on x twice.")
def test_favor_gradients(student, rng):
    """Gradients are those of the features, the maximum counted as a constant or not."""
    for is_query in (True, False):
        x, w = tensor(rng, 2, 5, 3, dtype=DOUBLE), tensor(rng, 7, 3, dtype=DOUBLE)
        upstream = tensor(rng, 2, 5, 7, dtype=DOUBLE)
        _, found = student.vjp("favor_features", x, w, is_query, upstream=upstream, wrt=(0, 1))
        wanted = []
        for constant in (True, False):
            leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
            out = positive_features(*leaves, is_query, constant)
            wanted.append(torch.autograd.grad(out, leaves, upstream))
        for index, name in enumerate(("x", "the projection")):
            require(isinstance(found[index], torch.Tensor), f"No gradient reaches {name}.")
            near = [float((found[index] - want[index]).abs().max()) for want in wanted]
            nearest = wanted[near.index(min(near))][index]
            close(found[index], nearest, what=f"gradient of {name}", rtol=1e-8)


@hidden("favor_features", kind="edge", weight=1, hint="What comes in keeps its dtype and its values.")
def test_favor_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, tensors with gaps in memory work, no argument is changed."""
    x, w = strided(tensor(rng, 2, 6, 3)), strided(tensor(rng, 5, 3))
    for is_query in (True, False):
        found, after = student.after("favor_features", x, w, is_query)
        close(found, positive_features(x.double(), w.double(), is_query).float(), what="features in float32")
        unchanged((x, w, is_query), after)


# --- performer_attention ---------------------------------------------------------------------------------------------


def estimated(q, k, v, projection):
    """Attention with the weights that random features estimate, from logarithms, so that no size overflows."""
    pairs = exponents(q, projection).unsqueeze(-2) + exponents(k, projection).unsqueeze(-3)
    return pairs.logsumexp(dim=-1).softmax(dim=-1) @ v


@hidden("performer_attention", weight=2, hint="Linear attention with another feature map, normalised.")
def test_performer_equals_the_estimated_weights(student, rng):
    """What the estimated weights, normalised over the keys, make of the values."""
    for batch, q_seq, kv_seq in (((), 7, 11), ((2, 3), 9, 5)):
        inputs, w = draw(rng, *batch, q_seq=q_seq, kv_seq=kv_seq), tensor(rng, 10, 4, dtype=DOUBLE)
        found = student.performer_attention(*inputs, w)
        close(found, estimated(*inputs, w), what=f"output of {q_seq} queries and {kv_seq} keys")


@hidden("performer_attention", weight=1, hint="Which projection, and how many features, are you given?")
def test_performer_reads_its_projection(student, rng):
    """One feature weighs all keys by their own, and any number of features works."""
    for features in (1, 3, 17):
        inputs, w = draw(rng, 2, q_seq=5, kv_seq=6, head_dim=3), tensor(rng, features, 3, dtype=DOUBLE)
        close(student.performer_attention(*inputs, w), estimated(*inputs, w), what=f"output with {features} features")


@hidden("performer_attention", kind="property", weight=1, hint="An average of equal values is that value.")
def test_performer_averages(student, rng):
    """Equal values come back as they are, and the order of the keys does not matter."""
    (q, k, v), w = draw(rng, 2, q_seq=5, kv_seq=9), tensor(rng, 8, 4, dtype=DOUBLE)
    close(
        student.performer_attention(q, k, v[:, :1].expand(-1, 9, -1), w),
        v[:, :1].expand(-1, 5, -1),
        what="equal values",
    )
    order = torch.from_numpy(rng.permutation(9))
    found = student.performer_attention(q, k[:, order], v[:, order], w)
    close(found, estimated(q, k, v, w), what="output with the keys in another order")


@hidden("performer_attention", kind="property", weight=1, hint="With ever more features the weights become softmax's.")
def test_performer_estimates_softmax_attention(student, rng):
    """With many features it comes as close to softmax attention as its variance says."""
    (q, k, v), w = draw(rng, q_seq=4, kv_seq=6, v_dim=2), tensor(rng, 4096, 4, dtype=DOUBLE)
    q, k = q / 2, k / 2
    found = student.performer_attention(q, k, v, w)
    exact = (q @ k.T / 2).softmax(dim=-1) @ v
    close(found, estimated(q, k, v, w), what="output with 4,096 features")
    # The quotient's deviation, to first order, is that of Σ weights · (v − output), feature by feature.
    weights = (exponents(q, w).unsqueeze(-2) + exponents(k, w)).exp()  # (q_seq, kv_seq, features)
    spread = torch.einsum("qkf,qkv->qvf", weights, v - exact[:, None])
    deviation = spread.std(dim=-1) / math.sqrt(4096) / weights.sum(dim=1).mean(dim=-1)[:, None]
    require(isinstance(found, torch.Tensor) and found.shape == exact.shape, "The output has the shape of v.")
    likely(float(((found - exact) / deviation).abs().max()), 10, "standard deviations from softmax attention")


@hidden(
    "performer_attention",
    kind="edge",
    weight=2,
    hint="Large and small queries side by side: does each keep its weights?",
)
def test_performer_of_large_inputs(student, rng):
    """Queries and keys far from 0 overflow nowhere, and no query is lost beside another."""
    (q, k, v), w = draw(rng, 2, q_seq=6, kv_seq=7), tensor(rng, 8, 4, dtype=DOUBLE)
    sizes = torch.tensor([2.0, 62.0, 3.0, 60.0, 1.0, 64.0], dtype=DOUBLE)
    q = q / q.norm(dim=-1, keepdim=True) * sizes[:, None]
    k = k / k.norm(dim=-1, keepdim=True) * torch.from_numpy(rng.uniform((69, 2), (70, 3), (7, 1, 2))).permute(2, 0, 1)
    w = w / w.norm(dim=-1, keepdim=True) * 5
    close(student.performer_attention(q, k, v, w), estimated(q, k, v, w), what="output of large inputs", rtol=1e-7)


@hidden("performer_attention", kind="edge", weight=1, hint="What is 0 / 0, and what should come out instead?")
def test_performer_without_weight(student, rng):
    """Where the normaliser rounds to 0, the output is 0 and not NaN; the other queries are as they should be."""
    (q, k, v), w = draw(rng, q_seq=5, kv_seq=6, head_dim=2), 60 * torch.eye(2, dtype=DOUBLE)
    k[:, 0], k[:, 1] = 0, 40 + k[:, 1]
    q[:, 0], q[:, 1] = 0, 40
    q[2, 0], q[2, 1] = 40, 0
    expected = estimated(q, k, v, w)
    expected[2] = 0
    close(student.performer_attention(q, k, v, w), expected, what="output", rtol=1e-7)


@hidden(
    "performer_attention", kind="gradient", weight=1, hint="Every part of the quotient depends on queries and keys."
)
def test_performer_gradients(student, rng):
    """Gradients of queries, keys and values are those of attention with the estimated weights."""
    inputs, w = draw(rng, 2, q_seq=5, kv_seq=7), tensor(rng, 6, 4, dtype=DOUBLE)
    upstream = tensor(rng, 2, 5, 6, dtype=DOUBLE)
    _, found = student.vjp("performer_attention", *inputs, w, upstream=upstream, wrt=(0, 1, 2))
    compare_gradients(found, inputs, "qkv", [upstream], lambda *leaves: estimated(*leaves, w))


@hidden("performer_attention", kind="edge", weight=1, hint="What comes in keeps its dtype and its values.")
def test_performer_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, tensors with gaps in memory work, no argument is changed."""
    inputs = [strided(x) for x in (*draw(rng, 2, q_seq=6, kv_seq=9, dtype=torch.float32), tensor(rng, 5, 4))]
    found, after = student.after("performer_attention", *inputs)
    close(found, estimated(*(x.double() for x in inputs)).float(), what="output in float32")
    unchanged(inputs, after)


def long_performer(student, rng):
    """Traces of the Performer by length."""
    w = tensor(rng, 8, 4)
    return traced_attention(
        student, "performer_attention", estimated, lambda n: [*draw(rng, q_seq=n, v_dim=3, dtype=torch.float32), w]
    )


@hidden(
    "performer_attention", kind="cost", weight=1, hint="Products of matrices may be bracketed otherwise. What is small?"
)
def test_performer_holds_no_pairs(student, rng):
    """Nothing of size q_seq × kv_seq is held: memory grows linearly."""
    holds_no_pairs(long_performer(student, rng))


@hidden("performer_attention", kind="cost", weight=1, hint="Sum over the keys before any query is read.")
def test_performer_computes_no_pairs(student, rng):
    """No pair of query and key is computed, not even for a moment: work grows linearly."""
    computes_no_pairs(long_performer(student, rng))


# --- linformer_attention ---------------------------------------------------------------------------------------------


def by_mixtures(q, k, v, e_proj, f_proj):
    """Attention to mixtures of keys and values."""
    keys, values = torch.einsum("rs,...sd->...rd", e_proj, k), torch.einsum("rs,...sd->...rd", f_proj, v)
    return (torch.einsum("...qd,...rd->...qr", q, keys) / math.sqrt(q.shape[-1])).softmax(dim=-1) @ values


def draw_linformer(rng, *batch, q_seq, kv_seq, rank, dtype=DOUBLE, **sizes):
    """Queries, keys, values and the two projections."""
    return [
        *draw(rng, *batch, q_seq=q_seq, kv_seq=kv_seq, dtype=dtype, **sizes),
        *(tensor(rng, rank, kv_seq, dtype=dtype) for _ in range(2)),
    ]


@hidden(
    "linformer_attention", weight=2, hint="Mix the keys with one matrix and the values with the other, then attend."
)
def test_linformer_attends_to_mixtures(student, rng):
    """Softmax attention to mixtures of keys and of values, each with its own matrix."""
    for batch, q_seq, kv_seq, rank in (((), 7, 11, 3), ((2, 3), 9, 6, 4)):
        inputs = draw_linformer(rng, *batch, q_seq=q_seq, kv_seq=kv_seq, rank=rank)
        close(
            student.linformer_attention(*inputs),
            by_mixtures(*inputs),
            what=f"output of {q_seq} queries and {kv_seq} keys",
        )


@hidden("linformer_attention", weight=1, hint="How many weights does a query have, and what do they sum to?")
def test_linformer_of_any_rank(student, rng):
    """With rank 1 every query gets the one mixture of values; a rank above the length works too."""
    for rank in (1, 13):
        inputs = draw_linformer(rng, 2, q_seq=5, kv_seq=8, rank=rank)
        close(student.linformer_attention(*inputs), by_mixtures(*inputs), what=f"output of rank {rank}")


@hidden("linformer_attention", kind="property", weight=1, hint="What do the projections do when they are the identity?")
def test_linformer_with_identities_is_attention(student, rng):
    """With the identity for both matrices it is softmax attention."""
    q, k, v = draw(rng, 2, q_seq=5, kv_seq=7)
    eye = torch.eye(7, dtype=DOUBLE)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    close(student.linformer_attention(q, k, v, eye, eye), expected, what="output with identities")


@hidden("linformer_attention", kind="property", weight=1, hint="A mixture holds something of every token.")
def test_linformer_hears_the_last_token_everywhere(student, rng):
    """The last key and value change the first query's output: it cannot be causal."""
    q, k, v, e_proj, f_proj = draw_linformer(rng, q_seq=6, kv_seq=6, rank=3)
    moved = v.clone()
    moved[-1] += 10
    before, after = (student.linformer_attention(q, k, values, e_proj, f_proj) for values in (v, moved))
    close(before, by_mixtures(q, k, v, e_proj, f_proj), what="output")
    require(bool(((after - before).abs().amax(dim=-1) > 1e-6).all()), "Every query should hear of the last token.")


@hidden("linformer_attention", kind="edge", weight=1, hint="A projection is made for one number of keys.")
def test_linformer_refuses_another_length(student, rng):
    """ValueError where one of the projections was made for fewer or for more keys."""
    q, k, v, e_proj, f_proj = draw_linformer(rng, q_seq=4, kv_seq=7, rank=3)
    more = tensor(rng, 3, 9, dtype=DOUBLE)
    for one, other in ((more, more), (e_proj[:, :5], f_proj[:, :5]), (e_proj, more), (f_proj[:, :5], f_proj)):
        raises(ValueError, student, "linformer_attention", q, k, v, one, other)
    one_key = k[:1], v[:1]
    raises(ValueError, student, "linformer_attention", q, *one_key, e_proj, f_proj)
    raises(ValueError, student, "linformer_attention", q, k, v, e_proj[:, :1], f_proj[:, :1])


@hidden("linformer_attention", kind="edge", weight=1, hint="exp overflows near 710 in float64, near 88 in float32.")
def test_linformer_survives_large_scores(student, rng):
    """Scores in the thousands leave no NaN."""
    inputs = draw_linformer(rng, 2, q_seq=5, kv_seq=7, rank=3)
    inputs[0], inputs[1] = 60 * inputs[0], 60 * inputs[1]
    close(student.linformer_attention(*inputs), by_mixtures(*inputs), what="output at large scores", rtol=1e-8)


@hidden("linformer_attention", kind="gradient", weight=1, hint="Five inputs learn, the two projections among them.")
def test_linformer_gradients(student, rng):
    """Gradients reach queries, keys, values and both projections."""
    inputs = draw_linformer(rng, 2, q_seq=5, kv_seq=7, rank=3)
    upstream = tensor(rng, 2, 5, 6, dtype=DOUBLE)
    _, found = student.vjp("linformer_attention", *inputs, upstream=upstream, wrt=(0, 1, 2, 3, 4))
    compare_gradients(found, inputs, ("q", "k", "v", "e_proj", "f_proj"), [upstream], by_mixtures)


@hidden("linformer_attention", kind="edge", weight=1, hint="What comes in keeps its dtype and its values.")
def test_linformer_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, tensors with gaps in memory work, no argument is changed."""
    inputs = [strided(x) for x in draw_linformer(rng, 2, q_seq=6, kv_seq=9, rank=4, dtype=torch.float32)]
    found, after = student.after("linformer_attention", *inputs)
    close(found, by_mixtures(*(x.double() for x in inputs)).float(), what="output in float32")
    unchanged(inputs, after)


def long_linformer(student, rng):
    """Traces of Linformer by length."""
    return traced_attention(
        student,
        "linformer_attention",
        by_mixtures,
        lambda n: draw_linformer(rng, q_seq=n, kv_seq=n, rank=5, v_dim=3, dtype=torch.float32),
    )


@hidden("linformer_attention", kind="cost", weight=1, hint="Which two of three matrices should be multiplied first?")
def test_linformer_holds_no_pairs(student, rng):
    """Nothing of size q_seq × kv_seq is held: memory grows linearly."""
    holds_no_pairs(long_linformer(student, rng))


@hidden("linformer_attention", kind="cost", weight=1, hint="Mix the keys before there are scores.")
def test_linformer_computes_no_pairs(student, rng):
    """No pair of query and key is computed, not even for a moment: work grows linearly."""
    computes_no_pairs(long_linformer(student, rng))


# --- attention_spectrum ----------------------------------------------------------------------------------------------


def with_spectrum(rng, q_seq, kv_seq, values):
    """A matrix with these singular values, in directions drawn at random."""
    u, w = (np.linalg.qr(rng.normal(size=(n, len(values))))[0] for n in (q_seq, kv_seq))
    return torch.from_numpy((u * np.asarray(values)) @ w.T)


def rank_for(values, energy):
    """How many of the largest values it takes, one after the other."""
    squares = sorted((value * value for value in values), reverse=True)
    reached = count = 0
    while reached < energy * sum(squares):
        reached, count = reached + squares[count], count + 1
    return count


def counted(answer, expected, what):
    """Fail unless the answer holds these integers, of whichever integer dtype."""
    require(
        isinstance(answer, torch.Tensor) and not (answer.is_floating_point() or answer.dtype == torch.bool),
        f"{what}: a tensor of integers was expected.",
    )
    close(answer.to(torch.int64), expected, what=what)


@hidden("attention_spectrum", weight=2, hint="Take the largest singular values one by one, and add up their squares.")
def test_spectrum_of_known_singular_values(student, rng):
    """The least number of singular values whose squares reach the share, for matrices of known spectrum."""
    for q_seq, kv_seq in ((8, 8), (6, 9), (11, 5)):
        values = rng.permutation([9.0, 6.0, 4.0, 2.5, 1.5])
        matrix = with_spectrum(rng, q_seq, kv_seq, values)
        for energy in (0.3, 0.5, 0.78, 0.9, 0.97, 0.995):
            found = student.attention_spectrum(matrix, energy)
            counted(found, torch.tensor(rank_for(values, energy)), f"rank for {energy} of a {q_seq} × {kv_seq} matrix")


@hidden("attention_spectrum", weight=2, hint="Each matrix has a rank of its own.")
def test_spectrum_of_a_batch(student, rng):
    """Leading axes stay: one number for each matrix of a batch."""
    rows = [[rng.uniform(0.2, 5, size=4) ** 2 for _ in range(3)] for _ in range(2)]
    matrices = torch.stack([torch.stack([with_spectrum(rng, 7, 5, values) for values in row]) for row in rows])
    for energy in (0.6, 0.93):
        expected = torch.tensor([[rank_for(values, energy) for values in row] for row in rows])
        counted(student.attention_spectrum(matrices, energy), expected, f"ranks for {energy} of a batch")


@hidden("attention_spectrum", kind="property", weight=1, hint="What do rotating, transposing and stretching change?")
def test_spectrum_is_about_directions_only(student, rng):
    """Transposing or stretching a matrix changes nothing, and a larger share takes no fewer values."""
    weights = (2 * tensor(rng, 9, 12, dtype=DOUBLE)).softmax(dim=-1)
    values = np.linalg.svd(weights.numpy(), compute_uv=False)
    for energy in np.sort(rng.uniform(0.5, 0.999, 4)).tolist():
        expected = torch.tensor(rank_for(values, energy))
        for matrix in (weights, weights.T.contiguous(), 1e-3 * weights, 500 * weights):
            counted(student.attention_spectrum(matrix, energy), expected, "rank of softmax weights")


@hidden(
    "attention_spectrum", kind="edge", weight=1, hint="Reaching the share is enough; going beyond is not asked for."
)
def test_spectrum_where_the_share_is_met_exactly(student, rng):
    """At least the share: where it is met exactly, no further value is taken; all of it takes the whole rank."""
    flat = torch.diag(torch.from_numpy(rng.permutation([2.0, 2.0, 2.0, 2.0])))
    for energy, expected in ((0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)):
        counted(student.attention_spectrum(flat, energy), torch.tensor(expected), "rank where the share is met exactly")
    short = torch.zeros(5, 7, dtype=DOUBLE)
    short[0, 3], short[4, 1] = 4.0, 2.0
    counted(student.attention_spectrum(short, 1.0), torch.tensor(2), "rank for all of a matrix of rank 2")


@hidden("attention_spectrum", kind="edge", weight=1, hint="How many values does it take to hold nothing?")
def test_spectrum_of_nothing(student, rng):
    """A matrix of zeros, also beside others, and a share of 0 take no value."""
    matrices = torch.stack([torch.zeros(4, 6, dtype=DOUBLE), with_spectrum(rng, 4, 6, [3.0, 1.0])])
    counted(student.attention_spectrum(matrices, 0.95), torch.tensor([0, 2]), "ranks, one of a matrix of zeros")
    counted(student.attention_spectrum(matrices, 0.0), torch.tensor([0, 0]), "ranks for a share of 0")


@hidden("attention_spectrum", kind="edge", weight=1, hint="float32 in, integers out; nothing is changed in place.")
def test_spectrum_of_float32(student, rng):
    """float32 matrices with gaps in memory work, and stay as they were."""
    values = [7.0, 5.0, 3.0, 1.0]
    matrix = strided(with_spectrum(rng, 6, 8, values).float())
    for energy in (0.5, 0.8, 0.95):
        found, after = student.after("attention_spectrum", matrix, energy)
        counted(found, torch.tensor(rank_for(values, energy)), "rank of a matrix in float32")
        unchanged((matrix, energy), after)


# --- gated_linear_attention ------------------------------------------------------------------------------------------


def gated(q, k, v, decay, state=None):
    """The pair (out, state), token by token: weaken, write, read."""
    decay = decay.expand(*k.shape)
    S = torch.zeros(*k.shape[:-2], k.shape[-1], v.shape[-1], dtype=k.dtype) if state is None else state
    out = []
    for t in range(k.shape[-2]):
        S = decay[..., t, :, None] * S + k[..., t, :, None] * v[..., t, None, :]
        out.append((S * q[..., t, :, None]).sum(dim=-2))
    return torch.stack(out, dim=-2), S


def draw_decay(rng, *shape, lowest=0.3):
    """Decays between `lowest` and 1."""
    return torch.from_numpy(rng.uniform(lowest, 1, size=shape))


def memory_agrees(answer, expected, what, rtol=EXACT):
    """Fail unless (out, state) is as expected."""
    out, state = parts(answer, "out", "the state")
    close(out, expected[0], what=f"out {what}", rtol=rtol)
    close(state, expected[1], what=f"the state {what}", rtol=rtol)


@hidden(
    "gated_linear_attention",
    weight=2,
    hint="First weaken, then write, then read. Which axis of S does a decay belong to?",
)
def test_gated_with_a_decay_for_each_channel(student, rng):
    """One decay a token and key channel: out and state of the recurrence."""
    for batch in ((), (2, 3)):
        inputs, decay = draw(rng, *batch, q_seq=9), draw_decay(rng, *batch, 9, 4)
        memory_agrees(
            student.gated_linear_attention(*inputs, decay), gated(*inputs, decay), "with a decay for each channel"
        )


@hidden(
    "gated_linear_attention", weight=2, hint="A last axis of 1 serves all channels, two of them all tokens as well."
)
def test_gated_with_shared_decays(student, rng):
    """One decay a token, one for everything, one for each head, none at all: decays broadcast."""
    inputs = draw(rng, 2, 3, q_seq=7)
    for shape in ((2, 3, 7, 1), (1, 1), (3, 1, 1), (7, 4), (2, 1, 7, 1)):
        decay = draw_decay(rng, *shape)
        memory_agrees(student.gated_linear_attention(*inputs, decay), gated(*inputs, decay), f"with decays {shape}")
    ones = torch.ones(1, 1, dtype=DOUBLE)
    memory_agrees(student.gated_linear_attention(*inputs, ones), gated(*inputs, ones), "without decay")


@hidden(
    "gated_linear_attention",
    weight=2,
    hint="What has a key lost when its chunk ends, and the state when a query reads it?",
)
def test_gated_in_chunks(student, rng):
    """Chunks of every size give the recurrence: dividing the length or not, of 1, longer than the sequence, and 64."""
    for seq, chunk in ((12, 4), (11, 4), (7, 1), (5, 9)):
        inputs, decay = draw(rng, 2, q_seq=seq), draw_decay(rng, 2, seq, 4)
        found = student.gated_linear_attention(*inputs, decay, chunk=chunk)
        memory_agrees(found, gated(*inputs, decay), f"of {seq} tokens in chunks of {chunk}")
    inputs, decay = draw(rng, q_seq=70), draw_decay(rng, 70, 1, lowest=0.9)
    memory_agrees(student.gated_linear_attention(*inputs, decay), gated(*inputs, decay), "of 70 tokens")


@hidden("gated_linear_attention", weight=2, hint="The first token weakens the state that was handed in.")
def test_gated_continues_a_state(student, rng):
    """A state that is handed in decays and is read, by every chunk."""
    inputs, decay = draw(rng, 2, q_seq=8), draw_decay(rng, 2, 8, 4)
    state = tensor(rng, 2, 4, 6, dtype=DOUBLE)
    for chunk in (64, 3):
        found = student.gated_linear_attention(*inputs, decay, state, chunk)
        memory_agrees(found, gated(*inputs, decay, state), f"after a state, in chunks of {chunk}")


def without_tokens(student, rng, name, *inputs):
    """Fail unless no token leaves the state as it is, zeros where there was none, and gives an empty out."""
    decays = draw_decay(rng, 2, 0, 4), draw_decay(rng, 1, 1)
    empty = torch.zeros(2, 0, 6, dtype=DOUBLE)
    for decay, state in zip(decays, (tensor(rng, 2, 4, 6, dtype=DOUBLE), None), strict=True):
        kept = torch.zeros(2, 4, 6, dtype=DOUBLE) if state is None else state
        memory_agrees(student.call(name, *inputs, decay, state), (empty, kept), "without any token")


def stateful_in_pieces(student, name, inputs, cuts, chunk):
    """What a function of (…, seq, width) tensors, `state` and `chunk` returns for a sequence in pieces."""
    outs, state = [], None
    for first, last in zip([0, *cuts], [*cuts, inputs[0].shape[-2]], strict=True):
        pieces = [x[..., first:last, :] if x.ndim == inputs[0].ndim else x[..., first:last] for x in inputs]
        out, state = parts(student.call(name, *pieces, state=state, chunk=chunk), "out", "the state")
        require(isinstance(out, torch.Tensor) and out.ndim == inputs[0].ndim, "out should be a tensor shaped like v.")
        outs.append(out)
    return torch.cat(outs, dim=-2), state


@hidden("gated_linear_attention", kind="property", weight=1, hint="Where a sequence is cut must not matter.")
def test_gated_in_pieces(student, rng):
    """A sequence in pieces, the state handed on, gives what the whole sequence gives."""
    inputs = [*draw(rng, 2, q_seq=12), draw_decay(rng, 2, 12, 4)]
    cut = int(rng.integers(2, 9))
    found = stateful_in_pieces(student, "gated_linear_attention", inputs, [cut, cut + 1], 4)
    memory_agrees(found, gated(*inputs), "of a sequence in three pieces")


@hidden("gated_linear_attention", kind="property", weight=1, hint="Nothing divides here, and nothing scales.")
def test_gated_is_linear(student, rng):
    """Linear in queries, in keys and in values; later tokens change nothing that came before."""
    (q, k, v), decay = draw(rng, q_seq=10), draw_decay(rng, 10, 4)
    out, state = gated(q, k, v, decay)
    memory_agrees(
        student.gated_linear_attention(3 * q, -2 * k, v, decay), (-6 * out, -2 * state), "of stretched inputs"
    )
    v[6:], k[6:] = v[6:] + 70, -k[6:]
    found, _ = parts(student.gated_linear_attention(q, k, v, decay, chunk=4), "out", "the state")
    close(found[:6], out[:6], what="out of the first tokens after the others changed")


@hidden(
    "gated_linear_attention", kind="edge", weight=2, hint="1 / (a product of many decays) overflows. What does not?"
)
def test_gated_with_strong_decays(student, rng):
    """Decays whose product over a chunk rounds to 0, beside channels that forget nothing."""
    inputs = draw(rng, 2, q_seq=40)
    decay = torch.from_numpy(10 ** -rng.uniform(8, 20, size=(2, 40, 4)))
    decay[..., 1], decay[..., 20:, 2] = 1, 1
    memory_agrees(student.gated_linear_attention(*inputs, decay), gated(*inputs, decay), "with strong decays")
    scalar = torch.from_numpy(10 ** -rng.uniform(8, 20, size=(2, 40, 1)))
    memory_agrees(student.gated_linear_attention(*inputs, scalar), gated(*inputs, scalar), "with a strong decay")


@hidden("gated_linear_attention", kind="edge", weight=1, hint="No token: nothing decays, and nothing is written.")
def test_gated_without_tokens(student, rng):
    """An empty sequence gives an empty out and the state that was handed in."""
    without_tokens(student, rng, "gated_linear_attention", *draw(rng, 2, q_seq=0))


@hidden("gated_linear_attention", kind="edge", weight=1, hint="What comes in keeps its dtype and its values.")
def test_gated_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, gaps in memory work, and arguments stay as they were, the state among them."""
    inputs = [*draw(rng, 2, q_seq=7), draw_decay(rng, 2, 7, 4), tensor(rng, 2, 4, 6)]
    inputs = [strided(x.float()) for x in inputs]
    out, state = gated(*(x.double() for x in inputs))
    for chunk in (3, 1):
        found, after = student.after("gated_linear_attention", *inputs, chunk)
        memory_agrees(found, (out.float(), state.float()), "in float32", rtol=2e-5)
        unchanged((*inputs, chunk), after)


@hidden("gated_linear_attention", kind="gradient", weight=1, hint="Decays learn too, and so does what came before.")
def test_gated_gradients(student, rng):
    """Gradients reach queries, keys, values, decays and the state handed in, from out and state."""
    inputs = [*draw(rng, 2, q_seq=7), draw_decay(rng, 2, 7, 4), tensor(rng, 2, 4, 6, dtype=DOUBLE)]
    upstream = tensor(rng, 2, 7, 6, dtype=DOUBLE), tensor(rng, 2, 4, 6, dtype=DOUBLE)
    _, found = student.vjp("gated_linear_attention", *inputs, chunk=3, upstream=upstream, wrt=(0, 1, 2, 3, 4))
    compare_gradients(found, inputs, ("q", "k", "v", "decay", "state"), upstream, gated)


def chunks_at_once(student, rng, name, draw_inputs):
    """Fail if a Python loop runs over tokens, seen in steps from inside and in CPU time from outside."""

    def traced(seq, chunk):
        inputs = draw_inputs(seq)
        trace = student.trace(name, *inputs, chunk=chunk)
        out, _ = parts(trace.result, "out", "the state")
        require(isinstance(out, torch.Tensor) and out.shape == (seq, 3), "out has the shape of v.")
        definition = gated if name == "gated_linear_attention" else delta
        close(out[:20], definition(*(x[:20] for x in inputs))[0], what="out of the first tokens", rtol=EXACT)
        require({"mul", "mm", "bmm", "add"} & set(trace.calls), "It should be computed by torch's operations.")
        return trace

    steps = [traced(seq, 64).steps for seq in (128, 256)]
    at_most(steps[1] - steps[0], 6_000, what="Python steps for 128 tokens more")
    at_most_seconds(lambda: traced(1024, 256).outside_seconds, 0.15, what="CPU time for 1,024 tokens")


def chunks_hold_little(student, rng, name, draw_inputs):
    """Fail if anything grows faster than the length."""

    def traced(seq, chunk):
        inputs = draw_inputs(seq)
        trace = student.trace(name, *inputs, chunk=chunk)
        out, _ = parts(trace.result, "out", "the state")
        require(isinstance(out, torch.Tensor) and out.shape == (seq, 3), "out has the shape of v.")
        definition = gated if name == "gated_linear_attention" else delta
        close(out[:20], definition(*(x[:20] for x in inputs))[0], what="out of the first tokens", rtol=EXACT)
        return trace

    traces = [traced(seq, 64) for seq in LENGTHS]
    grows_linearly([trace.flops for trace in traces], LENGTHS, "multiplications")
    grows_linearly([trace.largest for trace in traces], LENGTHS, "elements of the largest tensor")
    trace = traced(1024, 64)
    at_most(trace.largest, 2 * 1024 * 64 * 2, what="elements of the largest tensor at 1,024 tokens")
    at_most(trace.outside_bytes, 16 * MIB, what="growth of the process's memory at 1,024 tokens, in bytes")


def draw_gated(rng, width):
    """Inputs of a length, with two key channels and `width` decays a token."""
    return lambda seq: [*draw(rng, q_seq=seq, head_dim=2, v_dim=3), draw_decay(rng, seq, width, lowest=0.9)]


@hidden(
    "gated_linear_attention", kind="cost", weight=2, hint="What is done for one token can be done for a chunk at once."
)
def test_gated_has_no_loop_over_tokens(student, rng):
    """Twice as many tokens in the same chunks take one step a chunk more, not one a token."""
    chunks_at_once(student, rng, "gated_linear_attention", draw_gated(rng, 1))


@hidden(
    "gated_linear_attention",
    kind="cost",
    weight=2,
    hint="Which keys does a query meet in person, and which in the state?",
)
def test_gated_cost_is_linear(student, rng):
    """Scores are made inside chunks only: work and memory grow linearly with the length."""
    chunks_hold_little(student, rng, "gated_linear_attention", draw_gated(rng, 2))


# --- delta_rule ------------------------------------------------------------------------------------------------------


def delta(q, k, v, beta, decay=None, state=None):
    """The pair (out, state), token by token: weaken, recall, write the difference, read."""
    decay = torch.ones(1, 1, dtype=k.dtype).expand(*k.shape) if decay is None else decay.expand(*k.shape)
    S = torch.zeros(*k.shape[:-2], k.shape[-1], v.shape[-1], dtype=k.dtype) if state is None else state
    out = []
    for t in range(k.shape[-2]):
        S = decay[..., t, :, None] * S
        missing = v[..., t, :] - (S * k[..., t, :, None]).sum(dim=-2)
        S = S + (beta[..., t, None] * k[..., t, :])[..., None] * missing[..., None, :]
        out.append((S * q[..., t, :, None]).sum(dim=-2))
    return torch.stack(out, dim=-2), S


def draw_delta(rng, *batch, seq, head_dim=4, v_dim=6, stretch=1.0):
    """Queries, keys of length `stretch`, values, and how strongly each is written."""
    q, k, v = draw(rng, *batch, q_seq=seq, head_dim=head_dim, v_dim=v_dim)
    return [q, stretch * k / k.norm(dim=-1, keepdim=True), v, torch.from_numpy(rng.uniform(0.2, 1, size=(*batch, seq)))]


@hidden("delta_rule", weight=2, hint="What does the memory answer to k before it is written to?")
def test_delta_writes_what_is_missing(student, rng):
    """Without decay: out and state of the recurrence, for unit keys and for shorter ones."""
    for batch, stretch in (((), 1.0), ((2, 3), 0.7)):
        inputs = draw_delta(rng, *batch, seq=9, stretch=stretch)
        memory_agrees(student.delta_rule(*inputs), delta(*inputs), f"with keys of length {stretch}")


@hidden("delta_rule", weight=2, hint="The state decays first. What is then missing?")
def test_delta_with_decays(student, rng):
    """With a decay for each channel, for each token, or for all: the state decays before it is asked and written."""
    inputs = draw_delta(rng, 2, 3, seq=7)
    for shape in ((2, 3, 7, 4), (2, 3, 7, 1), (1, 1), (3, 1, 1)):
        decay = draw_decay(rng, *shape)
        memory_agrees(student.delta_rule(*inputs, decay), delta(*inputs, decay), f"with decays {shape}")


@hidden("delta_rule", weight=2, hint="Inside a chunk, what a token writes depends on what those before it wrote.")
def test_delta_in_chunks(student, rng):
    """Chunks of every size give the recurrence: dividing the length or not, of 1, longer than the sequence, and 64."""
    for seq, chunk, width in ((12, 4, 4), (11, 4, 1), (7, 1, 4), (5, 9, 1)):
        inputs, decay = draw_delta(rng, 2, seq=seq), draw_decay(rng, 2, seq, width)
        found = student.delta_rule(*inputs, decay, chunk=chunk)
        memory_agrees(found, delta(*inputs, decay), f"of {seq} tokens in chunks of {chunk}")
    inputs = draw_delta(rng, seq=70)
    memory_agrees(student.delta_rule(*inputs), delta(*inputs), "of 70 tokens")


@hidden("delta_rule", weight=2, hint="What does the state that was handed in already answer?")
def test_delta_continues_a_state(student, rng):
    """A state that is handed in decays, answers, and is corrected, by every chunk."""
    inputs, decay = draw_delta(rng, 2, seq=8), draw_decay(rng, 2, 8, 4)
    state = tensor(rng, 2, 4, 6, dtype=DOUBLE)
    for chunk in (64, 3):
        found = student.delta_rule(*inputs, decay, state, chunk)
        memory_agrees(found, delta(*inputs, decay, state), f"after a state, in chunks of {chunk}")


@hidden("delta_rule", kind="property", weight=1, hint="With β = 1 and a unit key, the old answer is replaced.")
def test_delta_replaces_old_answers(student, rng):
    """With β = 1 and unit keys, what was written is read back at once, whatever was there and however it decays."""
    _, k, v, beta = draw_delta(rng, 2, seq=9)
    k[:, 4:] = k[:, 3:4]  # one key, written over and over
    decay, state = draw_decay(rng, 2, 9, 4), tensor(rng, 2, 4, 6, dtype=DOUBLE)
    for chunk in (64, 4):
        out, _ = parts(student.delta_rule(k, k, v, torch.ones_like(beta), decay, state, chunk), "out", "the state")
        close(out, v, what="values read back")


@hidden("delta_rule", kind="property", weight=1, hint="What is left of the formula when β is 0?")
def test_delta_with_beta_zero_writes_nothing(student, rng):
    """With β = 0 the state only decays."""
    q, k, v, beta = draw_delta(rng, 2, seq=6)
    decay, state = draw_decay(rng, 2, 6, 4), tensor(rng, 2, 4, 6, dtype=DOUBLE)
    kept = decay.cumprod(dim=-2)
    out = torch.einsum("bsd,bdv->bsv", q * kept, state)
    found = student.delta_rule(q, k, v, torch.zeros_like(beta), decay, state, 4)
    memory_agrees(found, (out, kept[:, -1, :, None] * state), "where nothing is written")


@hidden("delta_rule", kind="property", weight=1, hint="Where a sequence is cut must not matter.")
def test_delta_in_pieces(student, rng):
    """A sequence in pieces, the state handed on, gives what the whole sequence gives."""
    inputs = [*draw_delta(rng, 2, seq=12), draw_decay(rng, 2, 12, 4)]
    cut = int(rng.integers(2, 9))
    found = stateful_in_pieces(student, "delta_rule", inputs, [cut, cut + 1], 4)
    memory_agrees(found, delta(*inputs), "of a sequence in three pieces")


@hidden("delta_rule", kind="edge", weight=1, hint="1 / (a product of many decays) overflows. What does not?")
def test_delta_with_strong_decays(student, rng):
    """Decays whose product over a chunk rounds to 0, beside channels that forget nothing."""
    inputs = draw_delta(rng, 2, seq=40)
    decay = torch.from_numpy(10 ** -rng.uniform(8, 20, size=(2, 40, 4)))
    decay[..., 1], decay[..., 20:, 2] = 1, 1
    memory_agrees(student.delta_rule(*inputs, decay), delta(*inputs, decay), "with strong decays")


@hidden("delta_rule", kind="edge", weight=1, hint="No token: nothing decays, and nothing is corrected.")
def test_delta_without_tokens(student, rng):
    """An empty sequence gives an empty out and the state that was handed in."""
    without_tokens(student, rng, "delta_rule", *draw_delta(rng, 2, seq=0))


@hidden("delta_rule", kind="edge", weight=1, hint="What comes in keeps its dtype and its values.")
def test_delta_keeps_dtype_and_arguments(student, rng):
    """float32 stays float32, gaps in memory work, and arguments stay as they were, the state among them."""
    inputs = [*draw_delta(rng, 2, seq=7), draw_decay(rng, 2, 7, 4), tensor(rng, 2, 4, 6)]
    inputs = [strided(x.float()) for x in inputs]
    out, state = delta(*(x.double() for x in inputs))
    for chunk in (3, 1):
        found, after = student.after("delta_rule", *inputs, chunk)
        memory_agrees(found, (out.float(), state.float()), "in float32", rtol=2e-5)
        unchanged((*inputs, chunk), after)


@hidden("delta_rule", kind="gradient", weight=1, hint="Six inputs learn, through every correction.")
def test_delta_gradients(student, rng):
    """Gradients reach queries, keys, values, β, decays and the state handed in, from out and state."""
    inputs = [*draw_delta(rng, 2, seq=7), draw_decay(rng, 2, 7, 4), tensor(rng, 2, 4, 6, dtype=DOUBLE)]
    upstream = tensor(rng, 2, 7, 6, dtype=DOUBLE), tensor(rng, 2, 4, 6, dtype=DOUBLE)
    _, found = student.vjp("delta_rule", *inputs, chunk=3, upstream=upstream, wrt=(0, 1, 2, 3, 4, 5))
    compare_gradients(found, inputs, ("q", "k", "v", "beta", "decay", "state"), upstream, delta)


def draw_delta_rule(rng, width):
    """Inputs of a length, with two key channels and `width` decays a token."""
    return lambda seq: [*draw_delta(rng, seq=seq, head_dim=2, v_dim=3), draw_decay(rng, seq, width, lowest=0.9)]


@hidden("delta_rule", kind="cost", weight=2, hint="The corrections of a chunk solve one triangular system.")
def test_delta_has_no_loop_over_tokens(student, rng):
    """Twice as many tokens in the same chunks take one step a chunk more, not one a token."""
    chunks_at_once(student, rng, "delta_rule", draw_delta_rule(rng, 1))


@hidden("delta_rule", kind="cost", weight=2, hint="Which keys does a query meet in person, and which in the state?")
def test_delta_cost_is_linear(student, rng):
    """Corrections are solved inside chunks only: work and memory grow linearly with the length."""
    chunks_hold_little(student, rng, "delta_rule", draw_delta_rule(rng, 2))


# --- decoding_state_bytes --------------------------------------------------------------------------------------------


def model(rng, **more):
    """Sizes of a model, all of them different."""
    layers, heads, head_dim = (int(n) for n in rng.choice([3, 5, 7, 11, 13, 17, 19], 3, replace=False))
    return {"layers": layers, "heads": heads, "head_dim": head_dim, **more}


@hidden("decoding_state_bytes", weight=2, hint="Keys and values, for every token, layer and head that has its own.")
def test_state_of_caches_of_keys_and_values(student, rng):
    """mha: keys and values of all heads. gqa: of `kv_heads` heads."""
    sizes = model(rng)
    seq, kv_heads = int(rng.integers(20, 90)), 2
    each = 2 * seq * sizes["head_dim"] * sizes["layers"] * 2
    found = student.decoding_state_bytes("mha", seq, **sizes, kv_heads=kv_heads)
    close(found, each * sizes["heads"], what="bytes of mha")
    close(student.decoding_state_bytes("gqa", seq, **sizes, kv_heads=kv_heads), each * kv_heads, what="bytes of gqa")
    close(
        student.decoding_state_bytes("gqa", seq, **sizes), each, what="bytes of gqa with the kv_heads of the signature"
    )


@hidden("decoding_state_bytes", weight=2, hint="One latent serves keys and values of all heads.")
def test_state_of_latent_attention(student, rng):
    """mla: one latent and one rotary key a token and layer."""
    sizes, seq = model(rng), int(rng.integers(20, 90))
    found = student.decoding_state_bytes("mla", seq, **sizes, kv_heads=3, latent_dim=23, rope_dim=6)
    close(found, 29 * seq * sizes["layers"] * 2, what="bytes of mla")


@hidden("decoding_state_bytes", weight=2, hint="How many tokens does a window remember?")
def test_state_of_a_window(student, rng):
    """window: keys and values of all heads, for as many tokens as fit into it, and no more than there are."""
    sizes = model(rng)
    for seq, window in ((50, 12), (9, 40), (25, 25)):
        each = 2 * sizes["heads"] * sizes["head_dim"] * sizes["layers"] * 2
        found = student.decoding_state_bytes("window", seq, **sizes, kv_heads=2, window=window)
        close(found, each * min(seq, window), what=f"bytes of {seq} tokens with a window of {window}")


@hidden("decoding_state_bytes", weight=2, hint="What does one head of linear attention carry from token to token?")
def test_state_of_linear_attention(student, rng):
    """linear: a matrix and a normaliser a head and layer, whatever the length."""
    sizes = model(rng)
    expected = sizes["heads"] * (sizes["head_dim"] ** 2 + sizes["head_dim"]) * sizes["layers"] * 2
    for seq in (1, 77, 10**6):
        close(student.decoding_state_bytes("linear", seq, **sizes), expected, what=f"bytes after {seq} tokens")


KINDS = ("mha", "gqa", "mla", "window", "linear")
REST = {"kv_heads": 3, "latent_dim": 24, "rope_dim": 8, "window": 16}


@hidden("decoding_state_bytes", kind="property", weight=1, hint="Every sequence of a batch has a state of its own.")
def test_state_scales_with_batch_and_precision(student, rng):
    """Bytes follow the batch, the width of a number and the layers, for every kind."""
    sizes, batch = model(rng), int(rng.integers(3, 9))
    for kind, width in zip(KINDS * 2, (1, 4) * 5, strict=True):
        one = student.decoding_state_bytes(kind, 31, **sizes, **REST)
        many = student.decoding_state_bytes(kind, 31, **sizes, **REST, batch=batch, bytes_per_element=width)
        require(isinstance(one, (int, np.integer)), "The result should be an integer.")
        close(many * 2, one * batch * width, what=f"bytes of {kind} for a batch in another precision")
        deep = student.decoding_state_bytes(kind, 31, **(sizes | {"layers": 3 * sizes["layers"]}), **REST)
        close(deep, 3 * one, what=f"bytes of {kind} with three times the layers")


@hidden("decoding_state_bytes", kind="property", weight=1, hint="Which kinds grow for ever, and which stop?")
def test_state_grows_where_it_should(student, rng):
    """Caches double with the length, a full window stops, a linear state never moves."""
    sizes = model(rng)
    for kind, growth in (("mha", 2), ("gqa", 2), ("mla", 2), ("window", 1), ("linear", 1)):
        short, long = (student.decoding_state_bytes(kind, seq, **sizes, **REST) for seq in (64, 128))
        require(isinstance(short, (int, np.integer)) and short > 0, "The result should be a positive integer.")
        close(long, growth * short, what=f"bytes of {kind} for twice the length")


@hidden("decoding_state_bytes", kind="edge", weight=1, hint="Before the first token, which kinds carry anything?")
def test_state_of_no_token_and_of_very_many(student, rng):
    """No token: 0 bytes, but for the linear state. Very many: still an exact integer."""
    sizes = model(rng)
    for kind in KINDS[:4]:
        close(student.decoding_state_bytes(kind, 0, **sizes, **REST), 0, what=f"bytes of {kind} before the first token")
    expected = sizes["heads"] * sizes["head_dim"] * (sizes["head_dim"] + 1) * sizes["layers"] * 2
    close(student.decoding_state_bytes("linear", 0, **sizes), expected, what="bytes of linear before the first token")
    seq = 10**12 + int(rng.integers(1, 99))
    found = student.decoding_state_bytes("mha", seq, layers=97, heads=101, head_dim=103)
    require(isinstance(found, int), "The result should be an exact integer, and Python has them.")
    require(found == 4 * 97 * 101 * 103 * seq, "The bytes of very many tokens are not exact.")


@hidden("decoding_state_bytes", kind="edge", weight=1, hint="Better an error than a number that means nothing.")
def test_state_of_an_unknown_kind(student, rng):
    """ValueError for a kind that is none of the five."""
    for kind in ("lstm", "MHA", "", "mqa"):
        raises(ValueError, student, "decoding_state_bytes", kind, 10, **model(rng), **REST)
