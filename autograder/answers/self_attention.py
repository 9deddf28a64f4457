"""Other right answers to chapter `self_attention`, and the mistakes that people really make."""

import math

import torch
from torch import nn

from autograder.answers import alternative, edit

# --- project_qkv -----------------------------------------------------------------------------------------------------


@alternative("project_qkv")
def one_product_for_all(x, w_q, w_k, w_v):
    together = torch.cat([w_q, w_k, w_v], dim=1)
    return torch.split(x @ together, [w_q.shape[1], w_k.shape[1], w_v.shape[1]], dim=-1)


@alternative("project_qkv")
def through_linear(x, w_q, w_k, w_v):
    views = []
    for weight in (w_q, w_k, w_v):
        views.append(nn.functional.linear(x, weight.t()))
    return tuple(views)


PROJECTIONS = "return x @ w_q, x @ w_k, x @ w_v"
edit(
    "project_qkv",
    "key_first",
    replace=PROJECTIONS,
    by="return x @ w_k, x @ w_q, x @ w_v",
    says="The key comes out where the query should be: the order is query, key, value.",
    hint="Read the order of the triple in the contract.",
)
edit(
    "project_qkv",
    "value_first",
    replace=PROJECTIONS,
    by="return x @ w_v, x @ w_k, x @ w_q",
    says="The triple comes out backwards: the order is query, key, value.",
    hint="Read the order of the triple in the contract.",
)
edit(
    "project_qkv",
    "weights_transposed",
    replace=PROJECTIONS,
    by="return x @ w_q.T, x @ w_k.T, x @ w_v.T",
    says="You transpose the weights; here they are (in, out) and are used as they are. (nn.Linear stores (out, in).)",
    hint="Which axis of the weight has to meet the last axis of x?",
)
edit(
    "project_qkv",
    "value_not_projected",
    replace="x @ w_v",
    by="x",
    says="The value is x itself: `w_v` is not used.",
    hint="There are three weights, and each has a job.",
)
edit(
    "project_qkv",
    "one_weight_for_query_and_key",
    replace="x @ w_k",
    by="x @ w_q",
    says="Query and key are projected by the same matrix, so the scores become symmetric.",
    hint="Which weight makes the key?",
)
edit(
    "project_qkv",
    "one_weight_for_key_and_value",
    replace="x @ w_v",
    by="x @ w_k",
    says="Key and value are projected by the same matrix: `w_v` is not used.",
    hint="What a position answers to and what it hands over are two things.",
)
edit(
    "project_qkv",
    "scaled_here",
    replace="x @ w_q,",
    by="x @ w_q / math.sqrt(w_q.shape[-1]),",
    says="You divide the query by √head_dim here; the projection is plain, the scale belongs to the scores.",
    hint="Where does the formula put √d_k?",
)
edit(
    "project_qkv",
    "rectified",
    replace=PROJECTIONS,
    by="return torch.relu(x @ w_q), torch.relu(x @ w_k), torch.relu(x @ w_v)",
    says="You apply a rectifier after the projection; the three views are linear.",
    hint="Is there any function between x w and the result in the contract?",
)
edit(
    "project_qkv",
    "equal_thirds",
    replace=PROJECTIONS,
    by="return torch.chunk(x @ torch.cat([w_q, w_k, w_v], dim=1), 3, dim=-1)",
    says="You cut the joint product into equal thirds, but the value may be wider than query and key.",
    hint="Cut where the widths of the three weights say, not in three equal parts.",
)
edit(
    "project_qkv",
    "three_axes_only",
    replace=PROJECTIONS,
    by='return tuple(torch.einsum("bsi,io->bso", x, w) for w in (w_q, w_k, w_v))',
    says="Your formula names three axes of x; with other leading axes it fails.",
    hint='In `einsum`, "..." stands for any number of axes; `@` needs no letters at all.',
)
edit(
    "project_qkv",
    "always_float32",
    replace=PROJECTIONS,
    by="x = x.float()\n    return x @ w_q.float(), x @ w_k.float(), x @ w_v.float()",
    says="You compute in float32 whatever comes in.",
    hint="Let the dtype of what comes in decide, not a dtype of your choice.",
)
edit(
    "project_qkv",
    "value_detached",
    replace="x @ w_v",
    by="x.detach() @ w_v",
    says="The value is cut off from x in autograd: x gets no gradient through what it hands over.",
    hint="Look for `detach`, `.data` or `no_grad`.",
)

# --- SelfAttention ---------------------------------------------------------------------------------------------------


@alternative("SelfAttention")
class ScaledQueryAndEinsum(nn.Module):
    def __init__(self, d_model, head_dim):
        super().__init__()
        self.v_proj, self.k_proj, self.q_proj = (nn.Linear(d_model, head_dim, bias=False) for _ in range(3))
        self.scale = head_dim**-0.5

    def forward(self, x, mask=None):
        scores = torch.einsum("...id,...jd->...ij", self.q_proj(x) * self.scale, self.k_proj(x))
        if mask is None:
            mask = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device)
        scores = torch.where(mask, scores, scores.new_full((), -torch.inf))
        top = scores.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min).detach()
        parts = torch.where(mask, torch.exp(scores - top), 0.0)
        weights = parts / parts.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
        return torch.einsum("...ij,...jd->...id", weights, self.v_proj(x)), weights


SCORES = "query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])"
edit(
    "SelfAttention",
    "layers_with_bias",
    replace="head_dim, bias=False)",
    by="head_dim)",
    count=3,
    says="Your projections have a bias; the contract wants Linear layers without.",
    hint="`nn.Linear` has a bias unless you say otherwise.",
)
edit(
    "SelfAttention",
    "other_parameter_names",
    replace="self.q_proj",
    by="self.query",
    count=2,
    says="A layer has another name than in the contract, so weights cannot be loaded into it.",
    hint="The three names end in `_proj`.",
)
edit(
    "SelfAttention",
    "no_scale",
    replace=" / math.sqrt(query.shape[-1])",
    by="",
    says="You do not divide the scores by √head_dim.",
    hint="Chapter 2 measured what happens to the softmax without it.",
)
edit(
    "SelfAttention",
    "scale_of_d_model",
    replace="math.sqrt(query.shape[-1])",
    by="math.sqrt(x.shape[-1])",
    says="You divide by √d_model; the sum in a score runs over head_dim numbers.",
    hint="Over how many numbers does the dot product of a query and a key run?",
)
edit(
    "SelfAttention",
    "divided_by_the_width",
    replace="math.sqrt(query.shape[-1])",
    by="query.shape[-1]",
    says="You divide by head_dim, not by its square root.",
    hint="Which power of head_dim is the standard deviation of the scores?",
)
edit(
    "SelfAttention",
    "roles_swapped",
    replace=SCORES,
    by="key @ query.transpose(-2, -1) / math.sqrt(query.shape[-1])",
    says="Keys ask and queries answer: your scores are transposed.",
    hint="Row i of the scores belongs to the query of position i.",
)
edit(
    "SelfAttention",
    "no_projections_in_the_scores",
    replace="query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)",
    by="query, key, value = self.q_proj(x), self.q_proj(x), self.v_proj(x)",
    says="Query and key come from the same layer, so the scores are symmetric: j means to i what i means to j.",
    hint="`k_proj` has no influence on your result.",
)
edit(
    "SelfAttention",
    "softmax_over_queries",
    replace="masked_softmax(scores, mask)",
    by="masked_softmax(scores.transpose(-2, -1), None if mask is None else mask.transpose(-2, -1)).transpose(-2, -1)",
    says="You normalise over the queries: columns sum to one instead of rows.",
    hint="Along which axis do the keys run?",
)
edit(
    "SelfAttention",
    "mask_ignored",
    replace="masked_softmax(scores, mask)",
    by="masked_softmax(scores)",
    says="`mask` has no effect.",
    hint="Which line of yours reads the mask?",
)
edit(
    "SelfAttention",
    "mask_inverted",
    replace="masked_softmax(scores, mask)",
    by="masked_softmax(scores, None if mask is None else ~mask)",
    says="You hide what may be read and read what is hidden. In this course True means: may attend.",
    hint="`nn.MultiheadAttention` uses the opposite meaning. Which one does the contract use?",
)
edit(
    "SelfAttention",
    "mask_transposed",
    replace="masked_softmax(scores, mask)",
    by="masked_softmax(scores, None if mask is None else mask.transpose(-2, -1))",
    says="You read the mask the wrong way round: entry (i, j) says whether i may read j.",
    hint="Which axis of the mask belongs to the queries?",
)
edit(
    "SelfAttention",
    "masked_scores_are_zero",
    replace="masked_softmax(scores, mask)",
    by="(scores if mask is None else scores * mask).softmax(dim=-1)",
    says="You set masked scores to 0, but the exponential of 0 is 1, so masked positions keep weight.",
    hint="Which score has an exponential of 0?",
)
edit(
    "SelfAttention",
    "masked_after_the_softmax",
    replace="masked_softmax(scores, mask)",
    by="scores.softmax(dim=-1) * (1 if mask is None else mask)",
    says="You mask after the softmax, so the weights that remain no longer sum to one.",
    hint="What is masked must already be missing from the denominator.",
)
edit(
    "SelfAttention",
    "renormalised_after_the_softmax",
    replace="weights = masked_softmax(scores, mask)",
    by="""weights = scores.softmax(dim=-1) * (1 if mask is None else mask)
        weights = weights / weights.sum(dim=-1, keepdim=True)""",
    says="You mask after the softmax and divide again: an empty row, or a loud masked score, makes that 0 / 0.",
    hint="Hide before the softmax, then nothing has to be repaired.",
)
edit(
    "SelfAttention",
    "empty_row_is_nan",
    replace="masked_softmax(scores, mask)",
    by='(scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(dim=-1)',
    says="A row with nothing to attend to becomes NaN: a row of −∞ has no softmax.",
    hint="The helper `masked_softmax` in the given cell knows what to do with such a row.",
)
edit(
    "SelfAttention",
    "empty_row_is_uniform",
    replace="masked_softmax(scores, mask)",
    by="(scores if mask is None else scores.masked_fill(~mask, torch.finfo(scores.dtype).min)).softmax(dim=-1)",
    says="A row with nothing to attend to gets equal weights, instead of 0.",
    hint="When all scores are equally low, softmax sees equal scores.",
)
edit(
    "SelfAttention",
    "averages_x",
    replace="weights @ value, weights",
    by="weights @ x, weights",
    says="You average x, not the values: `v_proj` has no influence on your output.",
    hint="What does a position hand over: itself, or a projection of itself?",
)
edit(
    "SelfAttention",
    "averages_the_keys",
    replace="weights @ value, weights",
    by="weights @ key, weights",
    says="You average the keys; the output is made of values.",
    hint="Keys are there to be compared with, values to be read.",
)
edit(
    "SelfAttention",
    "residual_added",
    replace="weights @ value, weights",
    by="weights @ value + value, weights",
    says="You add each position's own value on top; the residual connection belongs to the block, not to the head.",
    hint="The output is the weighted mean and nothing else.",
)
edit(
    "SelfAttention",
    "returns_the_scores",
    replace="weights @ value, weights",
    by="weights @ value, scores",
    says="You return the scores where the weights should be.",
    hint="Rows of weights sum to one.",
)
edit(
    "SelfAttention",
    "drops_weights_in_training",
    replace="weights = masked_softmax(scores, mask)",
    by="weights = nn.functional.dropout(masked_softmax(scores, mask), 0.1, self.training)",
    says="You drop weights while training; the contract has no dropout.",
    hint="Call your layer twice with the same x. Is the result the same?",
)
edit(
    "SelfAttention",
    "weights_detached",
    replace="weights @ value, weights",
    by="weights.detach() @ value, weights",
    says="The values are right, but the weights are cut off from autograd before the average.",
    hint="Look for `detach`, `.data` or `no_grad` between scores and output.",
)
edit(
    "SelfAttention",
    "scores_through_all_pairs",
    replace="query @ key.transpose(-2, -1)",
    by="(query.unsqueeze(-2) * key.unsqueeze(-3)).sum(dim=-1)",
    says="The values are right, but you write a vector for every pair before you sum it: seq · seq · head_dim numbers.",
    hint="A matrix product sums while it multiplies.",
)
edit(
    "SelfAttention",
    "batch_of_matrices_only",
    replace="key.transpose(-2, -1)",
    by="key.transpose(1, 2)",
    says="You count axes from the front, which works for one batch axis only.",
    hint="Count axes from the back.",
)

# --- CrossAttention --------------------------------------------------------------------------------------------------


@alternative("CrossAttention")
class OnlyRealKeysCount(nn.Module):
    def __init__(self, d_model, memory_dim, head_dim):
        super().__init__()
        self.k_proj = nn.Linear(memory_dim, head_dim, bias=False)
        self.v_proj = nn.Linear(memory_dim, head_dim, bias=False)
        self.q_proj = nn.Linear(d_model, head_dim, bias=False)

    def forward(self, x, memory, memory_lengths=None):
        question = self.q_proj(x)
        scores = torch.matmul(question, self.k_proj(memory).mT) * question.size(-1) ** -0.5
        real = torch.ones(memory.shape[:-1], dtype=torch.bool, device=memory.device)
        if memory_lengths is not None:
            real = torch.arange(memory.size(-2), device=memory.device).lt(memory_lengths.unsqueeze(-1))
        real = real.unsqueeze(-2)
        scores = scores.masked_fill(~real, -torch.inf)
        nothing = ~real.any(dim=-1, keepdim=True)
        weights = scores.masked_fill(nothing, 0.0).softmax(dim=-1).masked_fill(nothing, 0.0)
        return torch.matmul(weights, self.v_proj(memory)), weights


edit(
    "CrossAttention",
    "layers_with_bias",
    replace="head_dim, bias=False)",
    by="head_dim)",
    count=3,
    says="Your projections have a bias; the contract wants Linear layers without.",
    hint="`nn.Linear` has a bias unless you say otherwise.",
)
edit(
    "CrossAttention",
    "memory_asks",
    replace="self.q_proj(x), self.k_proj(memory), self.v_proj(memory)",
    by="self.q_proj(memory), self.k_proj(x), self.v_proj(x)",
    says="The memory asks and x answers; it is the other way round.",
    hint="The output has one row for each position of x. Whose are the queries, then?",
)
edit(
    "CrossAttention",
    "values_from_x",
    replace="self.v_proj(memory)",
    by="self.v_proj(x)",
    says="Your values come from x; what is read stands in the memory.",
    hint="Keys and values belong together: position j of the memory has one of each.",
)
edit(
    "CrossAttention",
    "widths_swapped",
    replace="""self.q_proj = nn.Linear(d_model, head_dim, bias=False)
        self.k_proj = nn.Linear(memory_dim, head_dim, bias=False)""",
    by="""self.q_proj = nn.Linear(memory_dim, head_dim, bias=False)
        self.k_proj = nn.Linear(d_model, head_dim, bias=False)""",
    says="`q_proj` reads memory_dim and `k_proj` d_model numbers; it is the other way round.",
    hint="Which sequence does each layer read?",
)
edit(
    "CrossAttention",
    "no_scale",
    replace=" / math.sqrt(query.shape[-1])",
    by="",
    says="You do not divide the scores by √head_dim.",
    hint="The formula is that of self-attention.",
)
edit(
    "CrossAttention",
    "scale_of_the_memory",
    replace="math.sqrt(query.shape[-1])",
    by="math.sqrt(memory.shape[-1])",
    says="You divide by √memory_dim; the sum in a score runs over head_dim numbers.",
    hint="Over how many numbers does the dot product of a query and a key run?",
)
edit(
    "CrossAttention",
    "softmax_over_queries",
    replace="weights = masked_softmax(scores, mask)",
    by="""weights = scores.softmax(dim=-2)
        weights = weights if mask is None else weights * mask""",
    says="You normalise over the queries instead of over the memory.",
    hint="Every position of x spreads one unit of weight over the memory.",
)
edit(
    "CrossAttention",
    "lengths_ignored",
    replace="masked_softmax(scores, mask)",
    by="masked_softmax(scores)",
    says="`memory_lengths` has no effect: padding is read like the real memory.",
    hint="Which line of yours keeps the padding out of the softmax?",
)
edit(
    "CrossAttention",
    "lengths_along_the_queries",
    replace="positions < memory_lengths[..., None, None]",
    by="(torch.arange(x.shape[-2]) < memory_lengths[..., None])[..., None]",
    says="You cut off queries instead of memory: the lengths count positions of the memory.",
    hint="Which axis of the scores belongs to the memory?",
)
edit(
    "CrossAttention",
    "lengths_against_the_wrong_axis",
    replace="memory_lengths[..., None, None]",
    by="memory_lengths[..., None]",
    says="You compare the lengths with one new axis only, so example and query are mixed up.",
    hint="Scores are (*batch, q_seq, kv_seq). How many axes come after those of the lengths?",
)
edit(
    "CrossAttention",
    "reads_one_too_many",
    replace="positions < memory_lengths",
    by="positions <= memory_lengths",
    says="You read one position of the padding: position `length` is the first that is not real.",
    hint="Positions count from 0. Which is the last real one?",
)
edit(
    "CrossAttention",
    "same_length_for_all",
    replace="memory_lengths[..., None, None]",
    by="memory_lengths.max()",
    says="You use one length for the whole batch, the longest.",
    hint="Each example has its own length.",
)
edit(
    "CrossAttention",
    "padding_set_to_zero",
    replace="query, key, value = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)",
    by="""if memory_lengths is not None:
            memory = memory * (torch.arange(memory.shape[-2]) < memory_lengths[..., None])[..., None]
            memory_lengths = None
        query, key, value = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)""",
    says="You set the padding to 0, but a key of zeros scores 0, and the exponential of 0 is 1: it keeps weight.",
    hint="Padding must be missing from the softmax, whatever stands in it.",
)
edit(
    "CrossAttention",
    "padding_zeroed_after_the_softmax",
    replace="masked_softmax(scores, mask)",
    by="scores.softmax(dim=-1) * (1 if mask is None else mask)",
    says="You set the weights on padding to 0 after the softmax, so the others no longer sum to one.",
    hint="What is padding must already be missing from the denominator.",
)
edit(
    "CrossAttention",
    "empty_memory_nan",
    replace="masked_softmax(scores, mask)",
    by='(scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(dim=-1)',
    says="An empty memory becomes NaN: a row of −∞ has no softmax.",
    hint="The helper `masked_softmax` in the given cell knows what to do with such a row.",
)
edit(
    "CrossAttention",
    "averages_the_keys",
    replace="weights @ value, weights",
    by="weights @ key, weights",
    says="You average the keys; the output is made of values.",
    hint="Keys are there to be compared with, values to be read.",
)
edit(
    "CrossAttention",
    "memory_detached",
    replace="self.k_proj(memory), self.v_proj(memory)",
    by="self.k_proj(memory.detach()), self.v_proj(memory.detach())",
    says="The values are right, but the memory is cut off from autograd: an encoder behind it would never learn.",
    hint="Look for `detach`, `.data` or `no_grad`.",
)

# --- graph_attention -------------------------------------------------------------------------------------------------


@alternative("graph_attention")
def with_exponentials(x, adjacency, w_q, w_k, w_v):
    nodes = x.shape[-2]
    scores = torch.einsum("...id,...jd->...ij", x @ w_q, x @ w_k) / w_q.shape[1] ** 0.5
    may_read = torch.logical_or(adjacency, torch.arange(nodes)[:, None] == torch.arange(nodes))
    scores = scores.masked_fill(may_read.logical_not(), -math.inf)
    parts = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
    weights = parts / parts.sum(dim=-1, keepdim=True)
    return torch.einsum("...ij,...jd->...id", weights, x @ w_v), weights


EDGES = "masked_softmax(scores, adjacency | itself)"
edit(
    "graph_attention",
    "scores_set_to_zero",
    replace=EDGES,
    by="(scores * (adjacency | itself)).softmax(dim=-1)",
    says="You set the scores of strangers to 0, but the exponential of 0 is 1, so strangers keep weight.",
    hint="Which score has an exponential of 0?",
)
edit(
    "graph_attention",
    "zeroed_after_the_softmax",
    replace=EDGES,
    by="scores.softmax(dim=-1) * (adjacency | itself)",
    says="You set the weights of strangers to 0 after the softmax, so the rows no longer sum to one.",
    hint="Strangers must already be missing from the denominator.",
)
edit(
    "graph_attention",
    "renormalised_after_the_softmax",
    replace="weights = masked_softmax(scores, adjacency | itself)",
    by="""weights = scores.softmax(dim=-1) * (adjacency | itself)
    weights = weights / weights.sum(dim=-1, keepdim=True)""",
    says="You mask after the softmax and divide again; beside a loud stranger the neighbours' weights round to 0 / 0.",
    hint="Mask before the softmax, then nothing has to be repaired.",
)
edit(
    "graph_attention",
    "no_self_loops",
    replace="adjacency | itself",
    by="adjacency",
    says="You add no self-loops: a node cannot read itself, and an isolated one reads nothing.",
    hint="What does the contract add to the graph?",
)
edit(
    "graph_attention",
    "self_loops_for_isolated_nodes_only",
    replace="adjacency | itself",
    by="adjacency | (itself & ~adjacency.any(dim=-1, keepdim=True))",
    says="You add a self-loop only where a node has no neighbour; every node reads itself.",
    hint="Does a node with neighbours read itself in your version?",
)
edit(
    "graph_attention",
    "self_loops_along_the_first_axes",
    replace="weights = masked_softmax(scores, adjacency | itself)",
    by="""edges = adjacency.clone()
    edges.diagonal().fill_(True)
    weights = masked_softmax(scores, edges)""",
    says="`diagonal()` runs along the first two axes: with a graph for every example, your self-loops land elsewhere.",
    hint="Which two axes of (batch, nodes, nodes) hold a node beside itself?",
)
edit(
    "graph_attention",
    "edges_reversed",
    replace="adjacency | itself",
    by="adjacency.transpose(-2, -1) | itself",
    says="You read the edges backwards: adjacency[i, j] says that i may read j.",
    hint="Which node asks along an edge (i, j), and which one answers?",
)
edit(
    "graph_attention",
    "edges_made_symmetric",
    replace="adjacency | itself",
    by="adjacency | adjacency.transpose(-2, -1) | itself",
    says="You make every edge go both ways; the graph may be directed.",
    hint="If i may read j, may j read i?",
)
edit(
    "graph_attention",
    "edges_as_a_bias",
    replace=EDGES,
    by="(scores + (adjacency | itself)).softmax(dim=-1)",
    says="You add the edges to the scores, which makes neighbours more likely but leaves strangers in.",
    hint="Without an edge the weight is exactly 0.",
)
edit(
    "graph_attention",
    "graph_ignored",
    replace=EDGES,
    by="scores.softmax(dim=-1)",
    says="The graph has no effect: every node reads every other.",
    hint="Which line of yours uses `adjacency`?",
)
edit(
    "graph_attention",
    "mask_inverted",
    replace=EDGES,
    by="masked_softmax(scores, ~(adjacency | itself))",
    says="You read the strangers and hide the neighbours: True means there is an edge.",
    hint="Print the weights of a graph with a single edge.",
)
edit(
    "graph_attention",
    "mean_of_neighbours",
    replace=EDGES,
    by="masked_softmax(0 * scores, adjacency | itself)",
    says="All neighbours get the same weight; that is a graph convolution, not attention.",
    hint="What do query and key decide in your version?",
)
edit(
    "graph_attention",
    "no_scale",
    replace=" / math.sqrt(query.shape[-1])",
    by="",
    says="You do not divide the scores by √head_dim.",
    hint="The scores are those of self-attention.",
)
edit(
    "graph_attention",
    "scale_of_the_values",
    replace="math.sqrt(query.shape[-1])",
    by="math.sqrt(value.shape[-1])",
    says="You divide by √v_dim; the sum in a score runs over head_dim numbers.",
    hint="Whose width is summed over in a dot product of query and key?",
)
edit(
    "graph_attention",
    "softmax_over_queries",
    replace=EDGES,
    by="masked_softmax(scores.mT, (adjacency | itself).mT).mT",
    says="You normalise over the readers of a node, not over what a node reads.",
    hint="Rows sum to one.",
)
edit(
    "graph_attention",
    "writes_into_the_graph",
    replace="weights = masked_softmax(scores, adjacency | itself)",
    by="""adjacency |= itself
    weights = masked_softmax(scores, adjacency)""",
    says="You write the self-loops into the caller's graph.",
    hint="Which operator makes a new tensor instead of changing the old one?",
)
edit(
    "graph_attention",
    "scores_detached",
    replace="weights = masked_softmax(scores, adjacency | itself)",
    by="weights = masked_softmax(scores, adjacency | itself).detach()",
    says="The values are right, but the weights are cut off from autograd, so w_q and w_k never learn.",
    hint="Look for `detach`, `.data` or `no_grad`.",
)

# --- convolution_as_attention ----------------------------------------------------------------------------------------


@alternative("convolution_as_attention")
def tap_by_tap(kernel, strength):
    taps = kernel.shape[2]
    rows, tables = [], []
    for tap in range(taps):
        offset = tap - (taps - 1) // 2
        rows.append([-strength * offset * offset, 2.0 * strength * offset, -1.0 * strength])
        tables.append(kernel.select(2, tap).t())
    return torch.tensor(rows, dtype=kernel.dtype), torch.stack(tables)


OFFSETS = "- (kernel_size - 1) // 2"
STACKED = "torch.stack([offsets**2, -2 * offsets, torch.ones_like(offsets)], dim=-1)"
edit(
    "convolution_as_attention",
    "offsets_from_zero",
    replace=OFFSETS,
    by="- 0",
    says="Your offsets start at 0, so every head reads ahead; the kernel stands centred on its position.",
    hint="Which tap of a kernel of 5 reads the position itself?",
)
edit(
    "convolution_as_attention",
    "looks_back_only",
    replace=OFFSETS,
    by="- (kernel_size - 1)",
    says="Your kernel looks back only; that is a causal convolution, and here it stands centred.",
    hint="Which tap of a kernel of 5 reads the position itself?",
)
edit(
    "convolution_as_attention",
    "even_kernels_shifted",
    replace=OFFSETS,
    by="- kernel_size // 2",
    says="Kernels of even width are shifted by one: with four taps, offsets run from −1 to 2.",
    hint="Rounding decides on which side the odd position of an even kernel lies.",
)
edit(
    "convolution_as_attention",
    "kernel_flipped",
    replace="kernel.permute(2, 1, 0)",
    by="kernel.flip(-1).permute(2, 1, 0)",
    says="You flip the kernel, as in the textbook definition; nn.Conv1d does not.",
    hint="Which tap multiplies x[i + 1] in nn.Conv1d?",
)
edit(
    "convolution_as_attention",
    "offsets_negated",
    replace="offsets = torch.arange(kernel_size, dtype=kernel.dtype, device=kernel.device)",
    by="offsets = -torch.arange(kernel_size, dtype=kernel.dtype, device=kernel.device) + 2 * ((kernel_size - 1) // 2)",
    says="Your heads look to the wrong side: tap h reads at h − (kernel_size − 1) // 2, where δ = j − i.",
    hint="Is the position after i at δ = +1 or at δ = −1?",
)
edit(
    "convolution_as_attention",
    "attracted_to_the_far_end",
    replace="-strength * torch.stack",
    by="strength * torch.stack",
    says="Your score grows with the distance from the offset, so a head picks the farthest position.",
    hint="Where should the parabola have its top?",
)
edit(
    "convolution_as_attention",
    "strength_ignored",
    replace="-strength * torch.stack",
    by="-60.0 * torch.stack",
    says="`strength` has no effect on your scores.",
    hint="α stands in front of the whole square.",
)
edit(
    "convolution_as_attention",
    "strength_squared",
    replace="-strength * torch.stack",
    by="-(strength**2) * torch.stack",
    says="You square the strength; α stands in front of the square, not inside it.",
    hint="At distance 1 from its offset a head scores −α.",
)
edit(
    "convolution_as_attention",
    "half_the_linear_term",
    replace="-2 * offsets",
    by="-offsets",
    says="The number before δ lacks its factor 2, so the top of the parabola lies halfway.",
    hint="(a − b)² = a² − 2ab + b².",
)
edit(
    "convolution_as_attention",
    "no_constant",
    replace="[offsets**2, -2",
    by="[0 * offsets, -2",
    says="You left out the constant −α Δ²: softmax does not see it, but the best score is then not 0.",
    hint="Which term of the expanded square does not depend on δ?",
)
edit(
    "convolution_as_attention",
    "powers_in_reverse",
    replace=STACKED,
    by="torch.stack([torch.ones_like(offsets), -2 * offsets, offsets**2], dim=-1)",
    says="Your three numbers stand in reverse order; the contract has 1, δ, δ².",
    hint="Which column is multiplied by δ²?",
)
edit(
    "convolution_as_attention",
    "heads_last",
    replace=STACKED,
    by="torch.stack([offsets**2, -2 * offsets, torch.ones_like(offsets)], dim=0)",
    says="Your first table is (3, heads); it should be (heads, 3).",
    hint="One row for each head.",
)
edit(
    "convolution_as_attention",
    "channels_not_swapped",
    replace="kernel.permute(2, 1, 0)",
    by="kernel.permute(2, 0, 1)",
    says="Input and output channels are swapped: nn.Conv1d stores (out, in, tap), and `x @ w_v[h]` needs (in, out).",
    hint="Which axis of w_v[h] has to meet the channels of x?",
)
edit(
    "convolution_as_attention",
    "heads_averaged",
    replace="kernel.permute(2, 1, 0)",
    by="kernel.permute(2, 1, 0) / kernel_size",
    says="You divide the taps by the number of heads; the heads' outputs are added, not averaged.",
    hint="A convolution is a sum over its taps.",
)
edit(
    "convolution_as_attention",
    "always_float64",
    replace="dtype=kernel.dtype, device",
    by="dtype=torch.float64, device",
    says="Your first table is float64 whatever the kernel is.",
    hint="Let the dtype of what comes in decide, not a dtype of your choice.",
)
edit(
    "convolution_as_attention",
    "kernel_detached",
    replace="kernel.permute(2, 1, 0)",
    by="kernel.detach().clone().permute(2, 1, 0) + 0 * kernel.sum()",
    says="The values are right, but w_v is cut off from the kernel in autograd.",
    hint="Look for `detach`, `clone` of `.data`, or a trip through NumPy.",
)

# --- attention_rollout -----------------------------------------------------------------------------------------------


@alternative("attention_rollout")
def from_the_top_down(weights_per_layer):
    seq = weights_per_layer[0].shape[-1]
    result = None
    for weights in reversed(weights_per_layer):
        average = weights.sum(dim=-3) / weights.shape[-3]
        share = average.sum(dim=-1, keepdim=True)
        step = average + torch.diag(torch.ones(seq, dtype=weights.dtype))
        step = step / (share + 1)
        result = step if result is None else torch.matmul(result, step)
    return result


MIXED = "mixed = weights.mean(dim=-3) + itself"
SCALED = "mixed / mixed.sum(dim=-1, keepdim=True) @ rollout"
edit(
    "attention_rollout",
    "layers_in_reverse",
    replace=SCALED,
    by="rollout @ (mixed / mixed.sum(dim=-1, keepdim=True))",
    says="You multiply the layers in reverse: the first layer must stand on the right, next to the input.",
    hint="Which matrix touches the input first?",
)
edit(
    "attention_rollout",
    "no_residual",
    replace=MIXED,
    by="mixed = weights.mean(dim=-3)",
    says="You leave out the residual connection, so nothing can stay where it is.",
    hint="What is added to the average of the heads?",
)
edit(
    "attention_rollout",
    "residual_without_scaling",
    replace=SCALED,
    by="mixed @ rollout",
    says="You add the identity but do not scale the rows back, so each layer doubles them.",
    hint="Rows of every layer sum to one.",
)
edit(
    "attention_rollout",
    "empty_rows_lose_half",
    replace=SCALED,
    by="mixed / 2 @ rollout",
    says="You take halves of both parts without scaling: a row that attends to nothing then sums to ½.",
    hint="What is left of a position's own weight when its row of attention is 0?",
)
edit(
    "attention_rollout",
    "residual_once",
    replace="rollout = mixed / mixed.sum(dim=-1, keepdim=True) @ rollout\n    return rollout",
    by="rollout = weights.mean(dim=-3) @ rollout\n    return (rollout + itself) / 2",
    says="You add the residual once, at the end; there is one around every layer.",
    hint="How many residual connections does a stack of three layers have?",
)
edit(
    "attention_rollout",
    "last_layer_only",
    replace=SCALED,
    by="mixed / mixed.sum(dim=-1, keepdim=True) @ itself",
    says="You return the last layer alone: its inputs are mixtures already, made by the layers below.",
    hint="What became of the rollout of the layers below?",
)
edit(
    "attention_rollout",
    "mean_of_layers",
    replace="rollout = mixed / mixed.sum(dim=-1, keepdim=True) @ rollout\n    return rollout",
    by="""rollout = rollout + mixed / mixed.sum(dim=-1, keepdim=True)
    return (rollout - itself) / len(weights_per_layer)""",
    says="You average the layers; paths run through all of them, one after the other.",
    hint="Which operation follows a path through two layers?",
)
edit(
    "attention_rollout",
    "product_of_entries",
    replace="keepdim=True) @ rollout",
    by="keepdim=True) * (rollout if rollout is not itself else 1)",
    says="You multiply entry by entry; a path may change its position in every layer.",
    hint="The way from j to i may lead through any position in between.",
)
edit(
    "attention_rollout",
    "largest_head",
    replace="weights.mean(dim=-3)",
    by="weights.amax(dim=-3)",
    says="You take the largest weight over the heads; rollout averages them.",
    hint="How does the paper put the heads of a layer together?",
)
edit(
    "attention_rollout",
    "heads_summed",
    replace="weights.mean(dim=-3)",
    by="weights.sum(dim=-3)",
    says="You add the heads up, so attention outweighs the residual by their number.",
    hint="Attention as a whole and the residual get one half each.",
)
edit(
    "attention_rollout",
    "first_head_only",
    replace="weights.mean(dim=-3)",
    by="weights[..., 0, :, :]",
    says="You look at the first head only.",
    hint="Which axis holds the heads, and what happens along it?",
)
edit(
    "attention_rollout",
    "averages_the_batch",
    replace="weights.mean(dim=-3)",
    by="weights.mean(dim=0)",
    says="You average over the first axis, which is the batch when there is one; heads stand third from the back.",
    hint="Count axes from the back.",
)
edit(
    "attention_rollout",
    "columns_scaled",
    replace="mixed.sum(dim=-1, keepdim=True)",
    by="mixed.sum(dim=-2, keepdim=True)",
    says="You scale columns to sum to one; it is the rows that are shares.",
    hint="Row i says where output i comes from.",
)
edit(
    "attention_rollout",
    "rows_to_columns",
    replace="return rollout",
    by="return rollout.transpose(-2, -1)",
    says="Your result is transposed: row i belongs to output i.",
    hint="Which of the two axes sums to one?",
)
edit(
    "attention_rollout",
    "needs_equal_heads",
    replace="for weights in weights_per_layer:",
    by="for weights in torch.stack(weights_per_layer):",
    says="You stack the layers into one tensor, which fails when they differ in their number of heads.",
    hint="A loop over layers asks for no common shape.",
)
edit(
    "attention_rollout",
    "writes_into_the_weights",
    replace=MIXED,
    by="mixed = weights.add_(itself).mean(dim=-3)",
    says="You add the identity into the caller's weights.",
    hint="A method that ends in an underscore changes its tensor.",
)

# --- value_weighted_attribution --------------------------------------------------------------------------------------


@alternative("value_weighted_attribution")
def by_columns(weights, values):
    lengths = values.pow(2).sum(dim=-1).sqrt()
    sizes = torch.einsum("...ij,...j->...ij", weights, lengths)
    total = sizes.sum(dim=-1)
    return (sizes / total.masked_fill(total == 0, 1.0).unsqueeze(-1)).to(weights.dtype)


NORMS = "torch.linalg.vector_norm(values, dim=-1)[..., None, :]"
edit(
    "value_weighted_attribution",
    "weights_alone",
    replace=f"weights * {NORMS}",
    by="weights",
    says="You return the weights: the values have no influence on your shares.",
    hint="A large weight on a short value adds little.",
)
edit(
    "value_weighted_attribution",
    "norms_alone",
    replace="sizes = weights * torch",
    by="sizes = torch.ones_like(weights) * torch",
    says="You look at the values' norms alone; the weights have no influence.",
    hint="What is added up is a_ij v_j, a product.",
)
edit(
    "value_weighted_attribution",
    "not_shares_yet",
    replace="return sizes / total.where(total > 0, 1.0)",
    by="return sizes",
    says="You return the lengths of the contributions; shares are those lengths over their sum.",
    hint="A row of shares sums to one.",
)
edit(
    "value_weighted_attribution",
    "squared_norms",
    replace=NORMS,
    by="(values**2).sum(dim=-1)[..., None, :]",
    says="You use squared norms, which favours long values twice.",
    hint="A root is missing.",
)
edit(
    "value_weighted_attribution",
    "sum_of_magnitudes",
    replace=NORMS,
    by="values.abs().sum(dim=-1)[..., None, :]",
    says="You add up magnitudes; the Euclidean norm is the root of the sum of squares.",
    hint="How long is the vector (3, 4)?",
)
edit(
    "value_weighted_attribution",
    "largest_entry",
    replace=NORMS,
    by="values.abs().amax(dim=-1)[..., None, :]",
    says="You take each value's largest entry for its length.",
    hint="How long is the vector (3, 4)?",
)
edit(
    "value_weighted_attribution",
    "signed_sum",
    replace=NORMS,
    by="values.sum(dim=-1)[..., None, :]",
    says="You add up the entries of a value, so positive and negative ones cancel.",
    hint="A norm forgets signs.",
)
edit(
    "value_weighted_attribution",
    "norms_along_the_queries",
    replace=NORMS,
    by="torch.linalg.vector_norm(values, dim=-1)[..., :, None]",
    says="You multiply row i by the norm of value i, which the division then cancels; the norm belongs to column j.",
    hint="Which axis of the weights do the values belong to?",
)
edit(
    "value_weighted_attribution",
    "shares_of_columns",
    replace="sizes.sum(dim=-1, keepdim=True)",
    by="sizes.sum(dim=-2, keepdim=True)",
    says="Your columns sum to one; a share compares the positions that one query reads.",
    hint="Over which axis does the sum in the formula run?",
)
edit(
    "value_weighted_attribution",
    "length_of_the_sum",
    replace="total = sizes.sum(dim=-1, keepdim=True)",
    by="total = torch.linalg.vector_norm(weights @ values, dim=-1, keepdim=True)",
    says="You divide by the length of the sum, not by the sum of the lengths; contributions may cancel.",
    hint="Shares of a row sum to one. Do yours?",
)
edit(
    "value_weighted_attribution",
    "empty_rows_nan",
    replace="total.where(total > 0, 1.0)",
    by="total",
    says="A row in which nothing is added up becomes 0 / 0, which is NaN.",
    hint="What should the shares of nothing be?",
)
edit(
    "value_weighted_attribution",
    "small_number_in_the_denominator",
    replace="total.where(total > 0, 1.0)",
    by="(total + 1e-8)",
    says="You add a small number to every denominator, so rows of tiny values no longer sum to one.",
    hint="Only a sum of exactly 0 needs care.",
)
edit(
    "value_weighted_attribution",
    "softmax_of_sizes",
    replace="return sizes / total.where(total > 0, 1.0)",
    by="return sizes.softmax(dim=-1)",
    says="You put a softmax over the lengths; they are divided by their sum.",
    hint="Doubling all values must change nothing.",
)
edit(
    "value_weighted_attribution",
    "through_all_contributions",
    replace=f"sizes = weights * {NORMS}",
    by="sizes = torch.linalg.vector_norm(weights[..., None] * values[..., None, :, :], dim=-1)",
    says="The values are right, but you write down every contribution: q_seq · kv_seq · v_dim numbers.",
    hint="What is the length of a number times a vector?",
)
edit(
    "value_weighted_attribution",
    "values_detached",
    replace="vector_norm(values, dim=-1)",
    by="vector_norm(values.detach() + 0 * values, dim=-1)",
    says="The shares are right, but the values are cut off from autograd.",
    hint="Look for `detach`, `.data` or `no_grad`.",
)

# --- layer_costs -----------------------------------------------------------------------------------------------------


@alternative("layer_costs")
def one_table(kind, seq, d_model, kernel_size=3, r=None):
    if min(seq, d_model) < 1 or kind not in ("self_attention", "recurrent", "convolutional", "restricted"):
        raise ValueError(kind)
    if kind == "convolutional" and kernel_size < 2:
        raise ValueError(kernel_size)
    if kind == "restricted" and (r is None or r < 1 or r > seq):
        raise ValueError(r)
    if kind == "self_attention":
        return (seq * seq * d_model, 1, 1)
    if kind == "recurrent":
        return (seq * d_model * d_model, seq, seq)
    if kind == "restricted":
        full, rest = divmod(seq, r)
        return (r * seq * d_model, 1, full + bool(rest))
    layers, left = 0, seq
    while left > 1 or layers == 0:
        left = (left + kernel_size - 1) // kernel_size
        layers += 1
    return (kernel_size * seq * d_model * d_model, 1, layers)


edit(
    "layer_costs",
    "width_and_length_swapped",
    replace="return seq**2 * d_model, 1, 1",
    by="return seq * d_model**2, 1, 1",
    says="For self-attention you square the width; it is the length that is squared.",
    hint="How many pairs are there, and how many multiplications does one pair take?",
)
edit(
    "layer_costs",
    "both_products_counted",
    replace="return seq**2 * d_model, 1, 1",
    by="return 2 * seq**2 * d_model, 1, 1",
    says="You count scores and average, which is what happens; table 1 gives the leading term without its factor.",
    hint="Read the entry of the table as it stands.",
)
edit(
    "layer_costs",
    "recurrent_squares_the_length",
    replace="return seq * d_model**2, seq, seq",
    by="return seq**2 * d_model, seq, seq",
    says="For the recurrent layer you square the length; each of its n steps multiplies a state by a d × d matrix.",
    hint="What does one step of an RNN cost?",
)
edit(
    "layer_costs",
    "recurrent_in_one_step",
    replace="return seq * d_model**2, seq, seq",
    by="return seq * d_model**2, 1, seq",
    says="Your recurrent layer takes one step; each state needs the one before.",
    hint="How many things have to happen one after the other?",
)
edit(
    "layer_costs",
    "recurrent_counts_gaps",
    replace="return seq * d_model**2, seq, seq",
    by="return seq * d_model**2, seq, seq - 1",
    says="You count the gaps between first and last position; table 1 gives the path as n.",
    hint="Read the entry of the table as it stands.",
)
edit(
    "layer_costs",
    "kernel_not_counted",
    replace="return kernel_size * seq * d_model**2, 1, layers",
    by="return seq * d_model**2, 1, layers",
    says="You count one tap of the kernel; each output reads k positions, with a matrix for each.",
    hint="How many d × d matrices has a kernel of width k?",
)
edit(
    "layer_costs",
    "steps_for_layers",
    replace="return kernel_size * seq * d_model**2, 1, layers",
    by="return kernel_size * seq * d_model**2, layers, layers",
    says="You give the convolution as many steps as layers of a stack; the table's step count is that of one layer.",
    hint="In one layer, does any output wait for another?",
)
edit(
    "layer_costs",
    "contiguous_kernels",
    replace="""        layers = 1
        while kernel_size**layers < seq:
            layers += 1
""",
    by="        layers = -(-seq // kernel_size)\n",
    says="You stack plain kernels, whose reach adds up; here they are dilated and the reach multiplies.",
    hint="By which factor does each dilated layer widen the view?",
)
edit(
    "layer_costs",
    "path_through_floats",
    replace="""        layers = 1
        while kernel_size**layers < seq:
            layers += 1
""",
    by="        layers = max(1, math.ceil(math.log(seq) / math.log(kernel_size)))\n",
    says="You take a quotient of logarithms; rounding makes it wrong by one at some powers of k.",
    hint="Multiply integers until they are enough.",
)
edit(
    "layer_costs",
    "path_rounded_down",
    replace="while kernel_size**layers < seq:",
    by="while kernel_size ** (layers + 1) <= seq:",
    says="You round the number of dilated layers down, so the stack may fall short of the length.",
    hint="Two and a half layers are not enough as two.",
)
edit(
    "layer_costs",
    "one_layer_too_many",
    replace="while kernel_size**layers < seq:",
    by="while kernel_size**layers <= seq:",
    says="When kᴸ is exactly the length, L layers are enough, but you ask for one more.",
    hint="< or ≤?",
)
edit(
    "layer_costs",
    "no_layer_for_one_position",
    replace="        layers = 1\n",
    by="        layers = 0\n",
    says="For a single position your convolution has path 0; a layer is one step at least.",
    hint="What is the least number of layers in the contract?",
)
edit(
    "layer_costs",
    "restricted_as_full",
    replace="return r * seq * d_model, 1, -(-seq // r)",
    by="return seq**2 * d_model, 1, -(-seq // r)",
    says="You count all pairs for restricted attention; each position reads r others.",
    hint="How many pairs remain?",
)
edit(
    "layer_costs",
    "restricted_path_of_one",
    replace="return r * seq * d_model, 1, -(-seq // r)",
    by="return r * seq * d_model, 1, 1",
    says="You give restricted attention a path of 1; a signal has to hop from neighbourhood to neighbourhood.",
    hint="How far does one hop carry?",
)
edit(
    "layer_costs",
    "restricted_rounds_down",
    replace="return r * seq * d_model, 1, -(-seq // r)",
    by="return r * seq * d_model, 1, seq // r",
    says="You round n / r down; the last hop counts although it is short.",
    hint="How many hops of 3 cover 10?",
)
edit(
    "layer_costs",
    "accepts_nonsense",
    replace="""    if seq < 1 or d_model < 1:
        raise ValueError(f"a layer needs at least one position and one number, not {seq} and {d_model}")
""",
    by="",
    says="A length or width below 1 gets an answer; it should raise ValueError.",
    hint="Which arguments make no sense, and what does the contract want then?",
)
edit(
    "layer_costs",
    "restricted_without_limit",
    replace="r is None or not 1 <= r <= seq",
    by="r is None or r < 1",
    says="You accept an r above the length: nobody can read more positions than there are.",
    hint="Between which two numbers does r lie?",
)
