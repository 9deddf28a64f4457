"""Hidden suite of chapter `self_attention`: the layer, its relatives, two instruments, and what it costs."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from autograder.suites.kit import at_most, close, hidden, parts, raises, require, same, strided, tensor

MIB = 2**20
DOUBLE = torch.float64


PAIR = ("output", "weights")


def attention_by_rows(query, key, value, mask=None):
    """Output and weights, one query at a time, over the keys that it may read and no others."""
    lead = query.shape[:-2]
    full = torch.ones(*lead, query.shape[-2], key.shape[-2], dtype=torch.bool)
    allowed = full if mask is None else mask.expand_as(full)
    outputs, maps = [], []
    for index in np.ndindex(*lead, query.shape[-2]):
        batch = index[:-1]
        keys = torch.nonzero(allowed[index]).flatten()
        row = torch.zeros(key.shape[-2], dtype=query.dtype)
        read = torch.zeros(value.shape[-1], dtype=query.dtype)
        if len(keys):
            scores = (key[batch][keys] * query[index]).sum(dim=-1) / query.shape[-1] ** 0.5
            shares = torch.exp(scores - scores.max())
            shares = shares / shares.sum()
            row = row.index_put((keys,), shares)
            read = (shares[:, None] * value[batch][keys]).sum(dim=0)
        outputs.append(read)
        maps.append(row)
    size = (*lead, query.shape[-2])
    return torch.stack(outputs).reshape(*size, -1), torch.stack(maps).reshape(*size, -1)


def with_gradients(function, leaves, upstream):
    """The gradients of a function of float64 leaves, for upstream gradients of its outputs."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    outputs = function(*leaves)
    sum((out * up.double()).sum() for out, up in zip(outputs, upstream, strict=True)).backward()
    return [leaf.grad for leaf in leaves]


# --- project_qkv -----------------------------------------------------------------------------------------------------

TRIPLE = ("query", "key", "value")


def projected(x, *weights):
    """The three projections through einsum in float64."""
    return tuple(torch.einsum("...i,io->...o", x.double(), w.double()).to(x.dtype) for w in weights)


@hidden(
    "project_qkv", weight=2, hint="Which weight belongs to which of the three, and on which side of x does it stand?"
)
def test_projections_of_a_batch(student, rng):
    """query = x w_q, key = x w_k, value = x w_v, in this order; the value may have a width of its own."""
    x, weights = tensor(rng, 2, 5, 4), (tensor(rng, 4, 3), tensor(rng, 4, 3), tensor(rng, 4, 7))
    same(student.project_qkv(x, *weights), projected(x, *weights), TRIPLE, "of a batch")


@hidden("project_qkv", weight=1, hint="With all axes equal, shapes no longer tell you on which side the weight stands.")
def test_projections_with_equal_axes(student, rng):
    """The same when batch, seq, d_model and head_dim are all equal, so that no shape gives a slip away."""
    x, weights = tensor(rng, 4, 4, 4), tuple(tensor(rng, 4, 4) for _ in range(3))
    same(student.project_qkv(x, *weights), projected(x, *weights), TRIPLE, "with equal axes")


@hidden("project_qkv", kind="edge", weight=1, hint="`@` takes any number of leading axes.")
def test_projections_with_other_leading_axes(student, rng):
    """No leading axis or two of them, also where memory is not contiguous."""
    weights = tensor(rng, 3, 5), tensor(rng, 3, 5), strided(tensor(rng, 3, 2))
    for x in (tensor(rng, 6, 3), strided(tensor(rng, 2, 3, 6, 3))):
        same(student.project_qkv(x, *weights), projected(x, *weights), TRIPLE, f"with {x.ndim - 2} leading axes")


@hidden("project_qkv", kind="edge", weight=1, hint="Does something in your function choose a dtype?")
def test_projections_keep_the_dtype(student, rng):
    """float64 goes in and float64 comes out, in full precision."""
    x = tensor(rng, 3, 4, 6, dtype=DOUBLE)
    weights = tuple(tensor(rng, 6, 5, dtype=DOUBLE) for _ in range(3))
    same(student.project_qkv(x, *weights), projected(x, *weights), TRIPLE, "in float64")


@hidden(
    "project_qkv", kind="gradient", weight=1, hint="All three weights must be reached, and x through all three ways."
)
def test_projection_gradients(student, rng):
    """x receives the sum of three gradients, each weight its own."""
    inputs = [tensor(rng, 2, 5, 4), tensor(rng, 4, 3), tensor(rng, 4, 3), tensor(rng, 4, 6)]
    upstream = tensor(rng, 2, 5, 3), tensor(rng, 2, 5, 3), tensor(rng, 2, 5, 6)
    expected = [sum(up @ w.T for up, w in zip(upstream, inputs[1:], strict=True))]
    expected += [torch.einsum("bsi,bso->io", inputs[0], up) for up in upstream]
    _, grads = student.vjp("project_qkv", *inputs, upstream=upstream, wrt=(0, 1, 2, 3))
    for name, grad, want in zip(("x", "w_q", "w_k", "w_v"), grads, expected, strict=True):
        close(grad, want, what=f"gradient of {name}", rtol=1e-4)


# --- SelfAttention ---------------------------------------------------------------------------------------------------


def head(rng, d_model, head_dim, memory_dim=None):
    """A state for one head, with scores far from uniform and far from saturated."""
    widths = {"q_proj": d_model, "k_proj": memory_dim or d_model, "v_proj": memory_dim or d_model}
    return {f"{name}.weight": tensor(rng, head_dim, width) * 1.2 / width**0.5 for name, width in widths.items()}


def self_attention(x, w_q, w_k, w_v, mask=None):
    """Output and weights by rows; weights laid out as in nn.Linear."""
    return attention_by_rows(x @ w_q.T, x @ w_k.T, x @ w_v.T, mask)


def expected_of(function, inputs, state, *mask):
    """A float32 expectation computed in float64."""
    outputs = function(*(x.double() for x in inputs), *(w.double() for w in state.values()), *mask)
    return tuple(out.float() for out in outputs)


def one_head(student, rng, d_model, head_dim):
    """A student's SelfAttention with a random state, and that state."""
    state = head(rng, d_model, head_dim)
    module = student.SelfAttention(d_model, head_dim)
    module.load_state_dict(state)
    return module, state


@hidden("SelfAttention", weight=2, hint="Compare with F.scaled_dot_product_attention, fed with your projections.")
def test_self_attention_agrees_with_torch(student, rng):
    """Scaled dot-product attention of x with itself: output as torch's own function, weights as the rows say."""
    module, state = one_head(student, rng, 6, 5)
    x = tensor(rng, 3, 7, 6)
    found = same(module(x), expected_of(self_attention, [x], state), PAIR, "without a mask")
    query, key, value = (x @ w.T for w in state.values())
    close(found[0], F.scaled_dot_product_attention(query, key, value), what="output, beside torch's", rtol=1e-4)


@hidden("SelfAttention", weight=2, hint="True means: may attend. Row i of the mask belongs to query i.")
def test_self_attention_with_a_mask(student, rng):
    """A mask of its own for each example, not symmetric; a masked weight is exactly 0, the others sum to one."""
    module, state = one_head(student, rng, 5, 5)
    x, mask = tensor(rng, 3, 5, 5), torch.from_numpy(rng.random((3, 5, 5)) < 0.6) | torch.eye(5, dtype=torch.bool)
    mask[:, 0, 1], mask[:, 1, 0] = True, False
    _, weights = same(module(x, mask), expected_of(self_attention, [x], state, mask), PAIR, "with a mask")
    require((weights[~mask] == 0).all(), "A masked weight should be exactly 0.")


@hidden("SelfAttention", kind="property", weight=1, hint="Three Linear layers without bias, named as in the contract.")
def test_self_attention_has_exactly_three_parameters(student, rng):
    """The parameters are q_proj, k_proj and v_proj, without bias, in the shapes of nn.Linear."""
    shapes = {name: tuple(value.shape) for name, value in student.SelfAttention(7, 3).state_dict().items()}
    wanted = {f"{name}.weight": (3, 7) for name in ("q_proj", "k_proj", "v_proj")}
    require(shapes == wanted, f"With (7, 3) the parameters should be {wanted}.")


@hidden("SelfAttention", kind="property", weight=1, hint="Nothing in the layer may know where a position stands.")
def test_self_attention_is_permutation_equivariant(student, rng):
    """Permuting the positions permutes output and weights, and changes nothing else."""
    module, _ = one_head(student, rng, 6, 4)
    x, order = tensor(rng, 2, 9, 6), torch.as_tensor(rng.permutation(9))
    output, weights = parts(module(x), *PAIR)
    expected = output[:, order], weights[:, order][:, :, order]
    same(module(x[:, order]), expected, PAIR, "after a permutation", rtol=1e-4)


@hidden("SelfAttention", kind="property", weight=1, hint="Is there anything random in your layer while it trains?")
def test_self_attention_is_the_same_in_training_and_evaluation(student, rng):
    """`train()` and `eval()` give the same result, every time."""
    module, state = one_head(student, rng, 4, 6)
    x = tensor(rng, 2, 8, 4)
    expected = expected_of(self_attention, [x], state)
    for mode in ("train", "eval"):
        module.call(mode)
        same(module(x), expected, PAIR, f"after {mode}()")


@hidden("SelfAttention", kind="edge", weight=1, hint="What are weights and output of a row with nothing to attend to?")
def test_self_attention_of_an_empty_row(student, rng):
    """A row without any allowed position has weights 0 and output 0, also beside scores in the hundreds."""
    module, state = one_head(student, rng, 6, 4)
    module.call("double")
    x, mask = tensor(rng, 2, 6, 6, dtype=DOUBLE), torch.from_numpy(rng.random((2, 6, 6)) < 0.7)
    mask[0, int(rng.integers(6))] = False
    mask[1, :, 3] = False
    mask[1, int(rng.integers(3))] = False
    x[1, 3] *= 300.0
    expected = self_attention(x, *(w.double() for w in state.values()), mask)
    same(module(x, mask), expected, PAIR, "with empty rows")


@hidden("SelfAttention", kind="edge", weight=1, hint="Count axes from the back.")
def test_self_attention_with_other_leading_axes(student, rng):
    """No leading axis or two of them; one mask for all examples."""
    module, state = one_head(student, rng, 3, 4)
    mask = torch.from_numpy(rng.random((5, 5)) < 0.5) | torch.eye(5, dtype=torch.bool)
    for x in (tensor(rng, 5, 3), strided(tensor(rng, 2, 3, 5, 3))):
        expected = expected_of(self_attention, [x], state, mask)
        same(module(x, mask), expected, PAIR, f"with {x.ndim - 2} leading axes")


@hidden(
    "SelfAttention", kind="gradient", weight=2, hint="Does the whole path from x to the result stay inside autograd?"
)
def test_self_attention_gradients(student, rng):
    """Gradients reach x and all three parameters, from output and weights, and stay finite with an empty row."""
    module, state = one_head(student, rng, 4, 5)
    x, mask = tensor(rng, 2, 6, 4), torch.from_numpy(rng.random((2, 6, 6)) < 0.7)
    mask[:, int(rng.integers(6))] = False
    upstream = tensor(rng, 2, 6, 5), tensor(rng, 2, 6, 6)
    expected = with_gradients(lambda *leaves: self_attention(*leaves, mask), [x, *state.values()], upstream)
    _, (x_grad,), by_name = module.vjp(x, mask, upstream=upstream, wrt=(0,))
    require(x_grad is not None, "No gradient reaches x.")
    close(x_grad, expected[0].float(), what="gradient of x", rtol=1e-4)
    for name, want in zip(state, expected[1:], strict=True):
        require(by_name.get(name) is not None, f"No gradient reaches {name}.")
        close(by_name[name], want.float(), what=f"gradient of {name}", rtol=1e-4)


@hidden(
    "SelfAttention", kind="cost", weight=1, hint="A matrix product sums over head_dim without writing all pairs down."
)
def test_self_attention_forms_no_pair_vectors(student, rng):
    """The largest tensor is the (seq, seq) map: no (seq, seq, head_dim), seen inside and from outside."""
    module, _ = one_head(student, rng, 8, 64)
    trace = module.trace(tensor(rng, 640, 8))
    at_most(trace.largest, 2.5 * 640 * 640, what="elements of the largest tensor for 640 positions")
    at_most(trace.outside_bytes / MIB, 48, what="MiB for 640 positions")


# --- CrossAttention --------------------------------------------------------------------------------------------------


def cross_attention(x, memory, w_q, w_k, w_v, lengths=None):
    """Output and weights by rows, over the real part of each memory."""
    mask = None if lengths is None else (torch.arange(memory.shape[-2]) < lengths[..., None])[..., None, :]
    return attention_by_rows(x @ w_q.T, memory @ w_k.T, memory @ w_v.T, mask)


def one_crossing(student, rng, d_model, memory_dim, head_dim):
    """A student's CrossAttention with a random state, and that state."""
    state = head(rng, d_model, head_dim, memory_dim)
    module = student.CrossAttention(d_model, memory_dim, head_dim)
    module.load_state_dict(state)
    return module, state


@hidden(
    "CrossAttention", weight=2, hint="Who asks, and who answers? Write the shapes of queries, keys and values down."
)
def test_cross_attention_agrees_with_torch(student, rng):
    """Queries from x, keys and values from the memory, whose width and length differ from those of x."""
    module, state = one_crossing(student, rng, 6, 4, 5)
    x, memory = tensor(rng, 3, 2, 6), tensor(rng, 3, 7, 4)
    found = same(module(x, memory), expected_of(cross_attention, [x, memory], state), PAIR, "of two sequences")
    w_q, w_k, w_v = state.values()
    torchs = F.scaled_dot_product_attention(x @ w_q.T, memory @ w_k.T, memory @ w_v.T)
    close(found[0], torchs, what="output, beside torch's", rtol=1e-4)


@hidden("CrossAttention", weight=2, hint="Position j of a memory is real if j < its length. Which axis is j?")
def test_cross_attention_with_lengths(student, rng):
    """Each example reads the real part of its own memory, also where all axes are equal; padding has weight 0."""
    module, state = one_crossing(student, rng, 5, 5, 5)
    x, memory = tensor(rng, 5, 5, 5), tensor(rng, 5, 5, 5)
    lengths = torch.as_tensor(rng.permutation([1, 2, 3, 4, 5]))
    expected = expected_of(cross_attention, [x, memory], state, lengths)
    _, weights = same(module(x, memory, lengths), expected, PAIR, "with lengths")
    require((weights[expected[1] == 0] == 0).all(), "The weights on padding should be exactly 0.")


@hidden("CrossAttention", kind="property", weight=1, hint="Which of the layers read x, and which read the memory?")
def test_cross_attention_has_exactly_three_parameters(student, rng):
    """q_proj reads d_model numbers, k_proj and v_proj read memory_dim; no bias."""
    shapes = {name: tuple(value.shape) for name, value in student.CrossAttention(7, 4, 3).state_dict().items()}
    wanted = {"q_proj.weight": (3, 7), "k_proj.weight": (3, 4), "v_proj.weight": (3, 4)}
    require(shapes == wanted, f"With (7, 4, 3) the parameters should be {wanted}.")


@hidden(
    "CrossAttention", kind="property", weight=1, hint="The memory is read as a set: nothing may depend on its order."
)
def test_cross_attention_does_not_see_the_order_of_the_memory(student, rng):
    """Permuting the memory leaves the output as it was and permutes the columns of the weights."""
    module, _ = one_crossing(student, rng, 3, 6, 4)
    x, memory, order = tensor(rng, 2, 4, 3), tensor(rng, 2, 8, 6), torch.as_tensor(rng.permutation(8))
    output, weights = parts(module(x, memory), *PAIR)
    same(module(x, memory[:, order]), (output, weights[..., order]), PAIR, "with the memory permuted", rtol=1e-4)


@hidden("CrossAttention", kind="edge", weight=1, hint="What is read from an empty memory?")
def test_cross_attention_of_an_empty_memory(student, rng):
    """A memory of length 0 gives weights 0 and output 0; large numbers in the padding change nothing."""
    module, state = one_crossing(student, rng, 5, 3, 4)
    x, memory = tensor(rng, 3, 4, 5), tensor(rng, 3, 6, 3)
    lengths = torch.as_tensor(rng.permutation([0, 2, 5]))
    expected = expected_of(cross_attention, [x, memory], state, lengths)
    memory[torch.arange(6) >= lengths[:, None]] *= 200
    for mode in ("train", "eval"):
        module.call(mode)
        same(module(x, memory, lengths), expected, PAIR, f"with an empty memory, after {mode}()")


@hidden("CrossAttention", kind="edge", weight=1, hint="`lengths` needs two more axes, however many it has.")
def test_cross_attention_with_other_leading_axes(student, rng):
    """No leading axis or two of them, with and without lengths."""
    module, state = one_crossing(student, rng, 3, 4, 6)
    inputs = tensor(rng, 5, 3), tensor(rng, 7, 4)
    same(module(*inputs), expected_of(cross_attention, inputs, state), PAIR, "of a single example")
    inputs = strided(tensor(rng, 2, 3, 5, 3)), strided(tensor(rng, 2, 3, 7, 4))
    lengths = torch.as_tensor(rng.integers(1, 8, size=(2, 3)))
    same(module(*inputs, lengths), expected_of(cross_attention, inputs, state, lengths), PAIR, "with two leading axes")


@hidden(
    "CrossAttention", kind="gradient", weight=2, hint="Gradients go two ways: through the query and into the memory."
)
def test_cross_attention_gradients(student, rng):
    """Gradients reach x, memory and all three parameters, and stay finite with an empty memory."""
    module, state = one_crossing(student, rng, 4, 6, 5)
    inputs = [tensor(rng, 3, 2, 4), tensor(rng, 3, 5, 6)]
    lengths = torch.as_tensor(rng.permutation([0, 3, 5]))
    upstream = tensor(rng, 3, 2, 5), tensor(rng, 3, 2, 5)
    expected = with_gradients(lambda *leaves: cross_attention(*leaves, lengths), [*inputs, *state.values()], upstream)
    _, by_input, by_name = module.vjp(*inputs, lengths, upstream=upstream, wrt=(0, 1))
    for name, grad, want in zip(("x", "memory"), by_input, expected[:2], strict=True):
        require(grad is not None, f"No gradient reaches {name}.")
        close(grad, want.float(), what=f"gradient of {name}", rtol=1e-4)
    for name, want in zip(state, expected[2:], strict=True):
        require(by_name.get(name) is not None, f"No gradient reaches {name}.")
        close(by_name[name], want.float(), what=f"gradient of {name}", rtol=1e-4)


# --- graph_attention -------------------------------------------------------------------------------------------------


def graph(rng, *lead, nodes, share=0.35):
    """A directed graph without self-loops that is surely not symmetric, and some of whose nodes have neighbours."""
    adjacency = torch.from_numpy(rng.random((*lead, nodes, nodes)) < share)
    adjacency = adjacency & ~torch.eye(nodes, dtype=torch.bool)
    adjacency[..., 0, 1:3], adjacency[..., 1:3, 0] = True, False
    return adjacency


def attention_on_a_graph(x, adjacency, w_q, w_k, w_v):
    """Output and weights by rows, over each node's neighbours and itself."""
    allowed = adjacency.clone()
    for node in range(adjacency.shape[-1]):
        allowed[..., node, node] = True
    return attention_by_rows(x @ w_q, x @ w_k, x @ w_v, allowed)


def projections(rng, d_model, head_dim, v_dim, dtype=DOUBLE):
    """Three weights laid out as (in, out), with scores far from uniform and far from saturated."""
    sizes = (head_dim, head_dim, v_dim)
    return [tensor(rng, d_model, size, dtype=dtype) * 1.3 / d_model**0.5 for size in sizes]


@hidden("graph_attention", weight=2, hint="Which scores must be missing from the softmax of row i?")
def test_graph_attention_on_a_directed_graph(student, rng):
    """Node i reads the nodes j with adjacency[i, j], and itself, by scaled dot-product attention."""
    x, weights, adjacency = tensor(rng, 7, 5, dtype=DOUBLE), projections(rng, 5, 3, 4), graph(rng, nodes=7)
    expected = attention_on_a_graph(x, adjacency, *weights)
    _, found = same(student.graph_attention(x, adjacency, *weights), expected, PAIR, "on a directed graph")
    require((found[expected[1] == 0] == 0).all(), "A weight where no edge is should be exactly 0.")


@hidden("graph_attention", weight=2, hint="Every example has its own graph.")
def test_graph_attention_on_a_batch_of_graphs(student, rng):
    """A graph of its own for each example, also where all axes are equal; some diagonals hold a self-loop already."""
    x, weights, adjacency = tensor(rng, 4, 4, 4), projections(rng, 4, 4, 4, torch.float32), graph(rng, 4, nodes=4)
    adjacency[:2, 1, 1] = True
    expected = attention_on_a_graph(x.double(), adjacency, *(w.double() for w in weights))
    expected = tuple(part.float() for part in expected)
    same(student.graph_attention(x, adjacency, *weights), expected, PAIR, "on a batch of graphs")


@hidden("graph_attention", kind="property", weight=1, hint="With every edge there, nothing is left to mask.")
def test_graph_attention_on_the_complete_graph(student, rng):
    """On the complete graph it is plain self-attention, whether or not the diagonal is given."""
    x, weights = tensor(rng, 2, 6, 5, dtype=DOUBLE), projections(rng, 5, 3, 4)
    plain = F.scaled_dot_product_attention(*(x @ w for w in weights))
    for adjacency in (torch.ones(6, 6, dtype=torch.bool), ~torch.eye(6, dtype=torch.bool)):
        output, _ = parts(student.graph_attention(x, adjacency, *weights), *PAIR)
        close(output, plain, what="output on the complete graph")


@hidden("graph_attention", kind="edge", weight=1, hint="Self-loops let a node without any edge read something.")
def test_graph_attention_of_isolated_nodes(student, rng):
    """Without any edge every node reads itself alone: the output is x w_v and the weights are the identity."""
    x, weights = tensor(rng, 5, 4, dtype=DOUBLE), projections(rng, 4, 3, 6)
    expected = x @ weights[2], torch.eye(5, dtype=DOUBLE)
    same(student.graph_attention(x, torch.zeros(5, 5, dtype=torch.bool), *weights), expected, PAIR, "without edges")


@hidden("graph_attention", kind="edge", weight=1, hint="A stranger's score may be far above those of all neighbours.")
def test_graph_attention_does_not_hear_loud_strangers(student, rng):
    """A node with very large numbers changes nothing for those who may not read it, in either direction."""
    x, weights, adjacency = tensor(rng, 6, 4, dtype=DOUBLE), projections(rng, 4, 4, 3), graph(rng, nodes=6)
    adjacency[:, 5], adjacency[5, :] = False, False
    stranger = (x[0] @ weights[0]) @ (x[5] @ weights[1])
    x[5] *= 4000.0 / stranger  # a score of 2000 for node 0, which may not read it
    expected = attention_on_a_graph(x, adjacency, *weights)
    same(student.graph_attention(x, adjacency, *weights), expected, PAIR, "with a loud stranger")


@hidden("graph_attention", kind="edge", weight=1, hint="Which of your lines writes into what came in?")
def test_graph_attention_leaves_the_graph_alone(student, rng):
    """`adjacency` is not changed, and one graph serves examples with two leading axes."""
    weights, adjacency = projections(rng, 3, 5, 2), graph(rng, nodes=5)
    x = strided(tensor(rng, 2, 3, 5, 3, dtype=DOUBLE))
    result, after = student.after("graph_attention", x, adjacency, *weights)
    same(result, attention_on_a_graph(x, adjacency.expand(2, 3, 5, 5), *weights), PAIR, "with one graph for all")
    require(bool((after[1] == adjacency).all()), "`adjacency` came back changed.")


@hidden("graph_attention", kind="gradient", weight=1, hint="Does the whole path stay inside autograd?")
def test_graph_attention_gradients(student, rng):
    """Gradients reach x and the three weights, and none flows from a node to a stranger."""
    x, weights, adjacency = tensor(rng, 6, 4, dtype=DOUBLE), projections(rng, 4, 3, 5), graph(rng, nodes=6)
    upstream = tensor(rng, 6, 5, dtype=DOUBLE), tensor(rng, 6, 6, dtype=DOUBLE)
    expected = with_gradients(lambda x, *weights: attention_on_a_graph(x, adjacency, *weights), [x, *weights], upstream)
    _, grads = student.vjp("graph_attention", x, adjacency, *weights, upstream=upstream, wrt=(0, 2, 3, 4))
    for name, grad, want in zip(("x", "w_q", "w_k", "w_v"), grads, expected, strict=True):
        require(grad is not None, f"No gradient reaches {name}.")
        close(grad, want, what=f"gradient of {name}", rtol=1e-7)


# --- convolution_as_attention ----------------------------------------------------------------------------------------

CONVOLUTION = ("relative", "w_v")


def run_heads(x, relative, w_v):
    """What the heads make of x together: scores by distance, softmax over all keys, sum over heads."""
    place = torch.arange(x.shape[0], dtype=x.dtype)
    distance = place[None, :] - place[:, None]
    scores = relative @ torch.stack([torch.ones_like(distance), distance, distance**2]).reshape(3, -1)
    weights = scores.reshape(-1, *distance.shape).softmax(dim=-1)
    return (weights @ (x @ w_v)).sum(dim=0)


def as_tables(answer, kernel):
    """The two parts of the answer, once their shapes and dtypes are known to be right."""
    relative, w_v = parts(answer, *CONVOLUTION)
    out_channels, in_channels, taps = kernel.shape
    close(relative, relative, what="relative")
    for name, part, wanted in (("relative", relative, (taps, 3)), ("w_v", w_v, (taps, in_channels, out_channels))):
        require(isinstance(part, torch.Tensor), f"{name} should be a tensor.")
        require(tuple(part.shape) == wanted, f"{name} should have the shape {wanted} here.")
        require(part.dtype == kernel.dtype, f"{name} should have the dtype of the kernel.")
    return relative, w_v


@hidden("convolution_as_attention", weight=2, hint="Tap h of a kernel of 5 reads at offset h − 2, as nn.Conv1d does.")
def test_the_heads_reproduce_the_convolution(student, rng):
    """With a large strength the heads together are F.conv1d with "same" padding, to the last digits."""
    kernel, x = tensor(rng, 4, 3, 5, dtype=DOUBLE), tensor(rng, 11, 3, dtype=DOUBLE)
    strength = float(rng.uniform(60, 90))
    relative, w_v = as_tables(student.convolution_as_attention(kernel, strength), kernel)
    padded = torch.cat([torch.zeros(2, 3, dtype=DOUBLE), x, torch.zeros(2, 3, dtype=DOUBLE)])
    expected = F.conv1d(x.T[None], kernel, padding="same")[0].T
    close(run_heads(padded, relative, w_v)[2:-2], expected, what="the heads beside the convolution")


@hidden("convolution_as_attention", weight=2, hint="Expand the square: which number stands before 1, δ and δ²?")
def test_the_weights_of_each_head_at_low_strength(student, rng):
    """With a small strength each head's softmax over distances is a bell around its offset, as wide as α says."""
    for taps in (3, 6):
        kernel, strength = tensor(rng, 2, 5, taps, dtype=DOUBLE), float(rng.uniform(0.1, 0.4))
        relative, _ = as_tables(student.convolution_as_attention(kernel, strength), kernel)
        rows = []
        for tap in range(taps):
            bell = [math.exp(-strength * (delta - tap + (taps - 1) // 2) ** 2) for delta in range(-8, 9)]
            rows.append([height / sum(bell) for height in bell])
        delta = torch.arange(-8, 9, dtype=DOUBLE)
        found = (relative @ torch.stack([delta**0, delta, delta**2])).softmax(dim=-1)
        close(found, torch.tensor(rows, dtype=DOUBLE), what=f"weights over distances for {taps} taps")


@hidden("convolution_as_attention", kind="property", weight=1, hint="What is (δ − Δ)² at δ = Δ?")
def test_the_best_score_is_zero(student, rng):
    """At its own offset a head scores 0, and −α one step beside it."""
    kernel, strength = tensor(rng, 3, 2, 5, dtype=DOUBLE), float(rng.uniform(1, 9))
    relative, _ = as_tables(student.convolution_as_attention(kernel, strength), kernel)
    for tap in range(5):
        for step in (-1.0, 0.0, 1.0):
            delta = tap - 2 + step
            score = relative[tap] @ torch.tensor([1.0, delta, delta**2], dtype=DOUBLE)
            close(score, torch.tensor(-strength * abs(step), dtype=DOUBLE), what="score beside the offset", atol=1e-9)


@hidden(
    "convolution_as_attention", kind="edge", weight=1, hint='With an even kernel, "same" puts the odd zero at the end.'
)
def test_kernels_of_even_and_of_single_width(student, rng):
    """Kernels of width 1, 2 and 6 too, and channels of equal number."""
    for taps in (1, 2, 6):
        kernel, x = tensor(rng, 3, 3, taps, dtype=DOUBLE), tensor(rng, 9, 3, dtype=DOUBLE)
        relative, w_v = as_tables(student.convolution_as_attention(kernel, 70.0), kernel)
        before, after = (taps - 1) // 2, taps // 2
        padded = F.pad(x.T, (before, after))
        expected = F.conv1d(padded[None], kernel)[0].T
        found = run_heads(padded.T, relative, w_v)[before : before + 9]
        close(found, expected, what=f"a kernel of width {taps}")


@hidden("convolution_as_attention", kind="edge", weight=1, hint="The dtype of the kernel is the dtype of everything.")
def test_both_tables_keep_the_dtype(student, rng):
    """A float32 kernel gives float32 tables, a float64 kernel float64 ones; the kernel need not be contiguous."""
    for dtype in (torch.float32, DOUBLE):
        kernel = strided(tensor(rng, 2, 4, 3, dtype=dtype))
        _, w_v = as_tables(student.convolution_as_attention(kernel, 3.0), kernel)
        for tap in range(3):
            close(w_v[tap], kernel[:, :, tap].T.clone(), what="w_v of a tap")


@hidden("convolution_as_attention", kind="gradient", weight=1, hint="The taps themselves become w_v, inside autograd.")
def test_gradients_reach_the_kernel(student, rng):
    """What flows into w_v flows on into the kernel, tap by tap."""
    kernel, upstream = tensor(rng, 4, 2, 3, dtype=DOUBLE), tensor(rng, 3, 2, 4, dtype=DOUBLE)
    _, (grad,) = student.vjp("convolution_as_attention", kernel, 5.0, upstream=(None, upstream), wrt=(0,))
    require(grad is not None, "No gradient reaches the kernel.")
    close(grad, torch.einsum("hio->oih", upstream).contiguous(), what="gradient of the kernel")


# --- attention_rollout -----------------------------------------------------------------------------------------------


def maps(rng, *shape):
    """Rows of weights, clearly uneven."""
    raw = rng.uniform(0.0, 1.0, size=shape) ** 3
    return torch.from_numpy(raw / raw.sum(axis=-1, keepdims=True))


def rollout_by_paths(layers):
    """Rollout of one example: every path from input to output, followed from the output downwards."""
    seq = layers[0].shape[-1]
    result = np.zeros((seq, seq))
    for output in range(seq):
        here = np.zeros(seq)
        here[output] = 1.0
        for layer in reversed(layers):
            average = np.zeros((seq, seq))
            for one in layer.numpy():
                average += one / len(layer)
            there = np.zeros(seq)
            for position in range(seq):
                row = average[position] / 2
                row[position] += 0.5
                there += here[position] * row / row.sum()
            here = there
        result[output] = here
    return torch.from_numpy(result)


@hidden("attention_rollout", weight=2, hint="Follow one path by hand: through the residual, then through a head.")
def test_rollout_agrees_with_following_paths(student, rng):
    """Entry (i, j) is the weight of all paths from input j to output i, half of each step through the residual."""
    layers = [maps(rng, 3, 5, 5) for _ in range(4)]
    close(student.attention_rollout(layers), rollout_by_paths(layers), what="rollout of four layers")


@hidden("attention_rollout", weight=1, hint="Which axis holds the heads, and which the examples?")
def test_rollout_of_a_batch(student, rng):
    """Each example by itself, also where batch, heads and seq are equal in number."""
    layers = [maps(rng, 4, 4, 4, 4) for _ in range(3)]
    expected = torch.stack([rollout_by_paths([layer[index] for layer in layers]) for index in range(4)])
    close(student.attention_rollout(layers), expected, what="rollout of a batch")


@hidden("attention_rollout", kind="property", weight=1, hint="Averages of rows that sum to one sum to one.")
def test_rollout_of_causal_layers(student, rng):
    """Rows sum to one, and causal layers give a causal rollout."""
    layers = []
    for _ in range(3):
        raw = maps(rng, 2, 7, 7).tril()
        layers.append(raw / raw.sum(dim=-1, keepdim=True))
    found = student.attention_rollout(layers)
    close(found, rollout_by_paths(layers), what="rollout of causal layers")
    require(bool((found.triu(1) == 0).all()), "Nothing may come from the future.")


@hidden(
    "attention_rollout", kind="edge", weight=1, hint="What reaches the output of a position that attends to nothing?"
)
def test_rollout_of_rows_without_weights(student, rng):
    """A position that attends to nothing in a layer passes itself on, with all of its weight."""
    layers = [maps(rng, 2, 6, 6) for _ in range(3)]
    layers[0][:, 2], layers[1][:, 4] = 0.0, 0.0
    close(student.attention_rollout(layers), rollout_by_paths(layers), what="rollout with empty rows")


@hidden("attention_rollout", kind="edge", weight=1, hint="Stacking layers needs equal shapes. Is that promised?")
def test_rollout_of_layers_with_unequal_heads(student, rng):
    """Layers may have different numbers of heads; one layer is enough; two leading axes and float32 are kept."""
    layers = [maps(rng, 3, 5, 5), maps(rng, 1, 5, 5), maps(rng, 2, 5, 5)]
    close(student.attention_rollout(layers), rollout_by_paths(layers), what="rollout with unequal heads")
    single = strided(maps(rng, 2, 2, 3, 4, 4).float())
    rows = [rollout_by_paths([single[index].double()]) for index in np.ndindex(2, 2)]
    close(student.attention_rollout([single]), torch.stack(rows).reshape(2, 2, 4, 4).float(), what="one layer")


@hidden("attention_rollout", kind="edge", weight=1, hint="Which of your lines writes into the weights that came in?")
def test_rollout_leaves_the_weights_alone(student, rng):
    """The weights are not changed."""
    layers = [maps(rng, 2, 5, 5) for _ in range(2)]
    result, after = student.after("attention_rollout", layers)
    close(result, rollout_by_paths(layers), what="rollout")
    for one, other in zip(after[0], layers, strict=True):
        require(bool((one == other).all()), "A layer's weights came back changed.")


# --- value_weighted_attribution --------------------------------------------------------------------------------------


def shares_by_loops(weights, values):
    """Norm of every single contribution, then each row over its sum."""
    result = torch.zeros_like(weights)
    for index in np.ndindex(*weights.shape):
        contribution = weights[index].item() * values[(*index[:-2], index[-1])].numpy()
        result[index] = math.sqrt(float((contribution.astype(float) ** 2).sum()))
    sums = result.sum(dim=-1, keepdim=True)
    return torch.where(sums > 0, result / torch.where(sums > 0, sums, 1.0), 0.0)


def unequal_values(rng, *shape, dtype=DOUBLE):
    """Values whose norms differ widely."""
    sizes = torch.from_numpy(np.exp(rng.normal(scale=1.2, size=(*shape[:-1], 1)))).to(dtype)
    return tensor(rng, *shape, dtype=dtype) * sizes


@hidden("value_weighted_attribution", weight=2, hint="Length of each contribution, over the sum of lengths of its row.")
def test_shares_of_a_batch(student, rng):
    """‖a_ij v_j‖ over the sum of its row, for more queries than keys and values of another width."""
    weights, values = maps(rng, 2, 5, 4), unequal_values(rng, 2, 4, 3)
    expected = shares_by_loops(weights, values)
    close(student.value_weighted_attribution(weights, values), expected, what="shares of a batch", rtol=1e-6)


@hidden("value_weighted_attribution", weight=1, hint="With square maps a slip of axes has no shape to give it away.")
def test_shares_with_equal_axes(student, rng):
    """The same where all axes are equal."""
    weights, values = maps(rng, 4, 4, 4), unequal_values(rng, 4, 4, 4)
    expected = shares_by_loops(weights, values)
    close(student.value_weighted_attribution(weights, values), expected, what="shares with equal axes", rtol=1e-6)


@hidden("value_weighted_attribution", kind="property", weight=1, hint="A norm forgets signs and directions.")
def test_shares_know_norms_only(student, rng):
    """Values of equal norm leave the weights as they are, whatever their directions; scaling all changes nothing."""
    weights, values = maps(rng, 3, 4, 6), tensor(rng, 3, 6, 5, dtype=DOUBLE)
    values = values / values.norm(dim=-1, keepdim=True)
    for factor in (1.0, -1.0, 1e-3, 1e4):
        found = student.value_weighted_attribution(weights, factor * values)
        close(found, weights, what="shares of values with equal norms")


@hidden("value_weighted_attribution", kind="edge", weight=1, hint="When nothing is added up, nobody has a share.")
def test_shares_of_nothing(student, rng):
    """A row of zeros, and a row that reads only values of zero, have shares 0, never NaN; tiny values count fully."""
    weights, values = maps(rng, 3, 5, 6), unequal_values(rng, 3, 6, 2)
    weights[0, 2] = 0.0
    values[1, 1:] = 0.0
    weights[1, 3] = torch.tensor([0.0, 0.5, 0.5, 0.0, 0.0, 0.0])
    values[2] *= 1e-20
    expected = shares_by_loops(weights, values)
    close(student.value_weighted_attribution(weights, values), expected, what="shares with empty rows")


@hidden("value_weighted_attribution", kind="edge", weight=1, hint="Count axes from the back.")
def test_shares_with_other_leading_axes(student, rng):
    """No leading axis or two of them, memory with gaps, and float32 stays float32."""
    weights, values = maps(rng, 3, 5), unequal_values(rng, 5, 2)
    expected = shares_by_loops(weights, values)
    close(student.value_weighted_attribution(weights, values), expected, what="one example", rtol=1e-6)
    weights, values = strided(maps(rng, 2, 3, 4, 5).float()), strided(unequal_values(rng, 2, 3, 5, 6).float())
    expected = shares_by_loops(weights, values)
    close(student.value_weighted_attribution(weights, values), expected, what="two leading axes")


@hidden("value_weighted_attribution", kind="gradient", weight=1, hint="Norms and quotients have gradients; keep them.")
def test_gradients_of_shares(student, rng):
    """Gradients reach weights and values, as finite differences say."""
    weights, values, upstream = maps(rng, 4, 3), unequal_values(rng, 3, 2), tensor(rng, 4, 3, dtype=DOUBLE)
    # Far from 0, where a norm has a kink: the two ends of a difference must not lie on either side of it.
    weights = (weights + 0.05) / 1.15
    _, grads = student.vjp("value_weighted_attribution", weights, values, upstream=upstream, wrt=(0, 1))
    for number, (name, array) in enumerate((("weights", weights), ("values", values))):
        require(grads[number] is not None, f"No gradient reaches the {name}.")
        expected = torch.zeros_like(array)
        for index in np.ndindex(*array.shape):
            step = 1e-5 * max(abs(array[index].item()), 1e-2)
            ends = []
            for sign in (1, -1):
                inputs = [weights.clone(), values.clone()]
                inputs[number][index] += sign * step
                ends.append((shares_by_loops(*inputs) * upstream).sum())
            expected[index] = (ends[0] - ends[1]) / (2 * step)
        close(grads[number], expected, what=f"gradient of {name}", rtol=1e-4)


@hidden("value_weighted_attribution", kind="cost", weight=1, hint="‖a v‖ = a ‖v‖ for a number a ≥ 0.")
def test_shares_form_no_contributions(student, rng):
    """The norm is taken of each value once: no (q_seq, kv_seq, v_dim) array, seen inside and from outside."""
    trace = student.trace("value_weighted_attribution", maps(rng, 400, 500).float(), tensor(rng, 500, 128))
    at_most(trace.largest, 2.5 * 400 * 500, what="elements of the largest tensor for 400 queries and 500 keys")
    at_most(trace.outside_bytes / MIB, 40, what="MiB for 400 queries and 500 keys")


# --- layer_costs -----------------------------------------------------------------------------------------------------

COSTS = ("multiplications", "sequential steps", "path length")


def counted(kind, seq, d_model, kernel_size, r):
    """Multiplications counted one position at a time; steps and path by spreading."""
    if kind == "self_attention":
        return sum(d_model for _ in range(seq) for _ in range(seq)), 1, 1
    if kind == "recurrent":
        return sum(d_model * d_model for _ in range(seq)), seq, seq
    if kind == "convolutional":
        reach, layers = kernel_size, 1
        while reach < seq:
            reach, layers = reach * kernel_size, layers + 1
        return sum(d_model * d_model for _ in range(seq) for _ in range(kernel_size)), 1, layers
    covered, hops = r, 1
    while covered < seq:
        covered, hops = covered + r, hops + 1
    return sum(d_model for _ in range(seq) for _ in range(r)), 1, hops


def same_costs(answer, expected, what):
    """Three integers, each the very one."""
    for name, found, want in zip(COSTS, parts(answer, *COSTS), expected, strict=True):
        whole = isinstance(found, (int, np.integer)) and not isinstance(found, bool)
        require(whole, f"{name} of {what}: it should be an integer.")
        require(int(found) == want, f"{name} of {what}: the count is too {'large' if found > want else 'small'}.")


KINDS = ("self_attention", "recurrent", "convolutional", "restricted")


@hidden("layer_costs", weight=2, hint="Draw the four layers for six positions and count.")
def test_costs_agree_with_counting(student, rng):
    """All three counts of all four kinds, for small sizes of chance."""
    for _ in range(4):
        seq, d_model = int(rng.integers(20, 90)), int(rng.integers(5, 20))
        r = int(rng.integers(3, seq // 3))
        for kind in KINDS:
            more = {"r": r} if kind == "restricted" else {}
            same_costs(student.layer_costs(kind, seq, d_model, **more), counted(kind, seq, d_model, 3, r), kind)


@hidden("layer_costs", weight=2, hint="Which of the three numbers depend on the width of the kernel?")
def test_costs_with_other_kernels(student, rng):
    """Kernels of other widths, and r beside them."""
    for kernel_size in (2, 5, 7):
        seq, d_model, r = int(rng.integers(100, 400)), int(rng.integers(3, 9)), int(rng.integers(9, 30))
        for kind in ("convolutional", "restricted"):
            answer = student.layer_costs(kind, seq, d_model, kernel_size=kernel_size, r=r)
            same_costs(answer, counted(kind, seq, d_model, kernel_size, r), f"{kind}, kernel {kernel_size}")


@hidden("layer_costs", kind="edge", weight=1, hint="Test the length that L layers just connect, and the next one.")
def test_costs_at_the_edge_of_a_stack(student, rng):
    """kᴸ positions need L layers, one more needs L + 1; r · m positions need m hops, one more needs m + 1."""
    for kernel_size in (3, 5, 10):
        layers, hops = int(rng.integers(3, 6)), int(rng.integers(2, 9))
        r = int(rng.integers(2, 9))
        for more in (0, 1):
            seq = kernel_size**layers + more
            answer = student.layer_costs("convolutional", seq, 2, kernel_size)
            same_costs(answer, (kernel_size * seq * 4, 1, layers + more), "convolutional at the edge")
            seq = r * hops + more
            same_costs(student.layer_costs("restricted", seq, 3, r=r), (r * seq * 3, 1, hops + more), "restricted")


@hidden("layer_costs", kind="edge", weight=1, hint="One position has no distance to cross, but a layer is a layer.")
def test_costs_of_a_single_position(student, rng):
    """With one position every kind has path 1 and one step."""
    d_model = int(rng.integers(2, 30))
    for kind in KINDS:
        product = d_model if kind in ("self_attention", "restricted") else d_model**2
        factor = 4 if kind == "convolutional" else 1
        answer = student.layer_costs(kind, 1, d_model, 4, 1)
        same_costs(answer, (factor * product, 1, 1), f"{kind} with one position")


@hidden("layer_costs", kind="edge", weight=1, hint="A float has 53 bits; Python's integers have as many as they need.")
def test_costs_are_exact_for_enormous_lengths(student, rng):
    """Exact for 10¹⁷ positions, as long as the counts fit into 64 bits, and without walking through them."""
    for kernel_size, depth in ((3, 37), (10, 17), (2, 59)):
        for more in (0, 1):
            seq = kernel_size**depth + more
            answer = student.layer_costs("convolutional", seq, 1, kernel_size)
            same_costs(answer, (kernel_size * seq, 1, depth + more), "convolutional, enormous")
    r = int(rng.integers(3, 9))
    seq = r * int(rng.integers(10**15, 10**16)) + 1
    same_costs(student.layer_costs("restricted", seq, 3, r=r), (r * seq * 3, 1, seq // r + 1), "restricted, enormous")
    same_costs(student.layer_costs("recurrent", seq, 5), (seq * 25, seq, seq), "recurrent, enormous")
    seq = 2 * int(rng.integers(10**8, 10**9)) + 1
    same_costs(student.layer_costs("self_attention", seq, 1), (seq * seq, 1, 1), "self_attention, enormous")


@hidden("layer_costs", kind="edge", weight=1, hint="Check the arguments that this kind reads, and only those.")
def test_costs_refuse_what_cannot_be(student, rng):
    """ValueError for nonsense that matters; numbers that a kind does not read are not looked at."""
    seq = int(rng.integers(10, 50))
    raises(ValueError, student, "layer_costs", "telepathy", seq, 8)
    for kind in KINDS:
        raises(ValueError, student, "layer_costs", kind, 0, 8, r=1)
        raises(ValueError, student, "layer_costs", kind, seq, 0, r=1)
    raises(ValueError, student, "layer_costs", "convolutional", seq, 8, kernel_size=1)
    raises(ValueError, student, "layer_costs", "restricted", seq, 8)
    raises(ValueError, student, "layer_costs", "restricted", seq, 8, r=0)
    raises(ValueError, student, "layer_costs", "restricted", seq, 8, r=seq + 1)
    same_costs(student.layer_costs("self_attention", seq, 8, 0, 0), (seq * seq * 8, 1, 1), "self_attention")
    same_costs(student.layer_costs("recurrent", seq, 8, 0, seq + 1), (seq * 64, seq, seq), "recurrent")
    same_costs(student.layer_costs("restricted", seq, 8, 0, seq), (seq * seq * 8, 1, 1), "restricted with r = seq")
