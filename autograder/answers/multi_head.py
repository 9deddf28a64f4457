"""Other right answers to chapter `multi_head`, and the mistakes that people really make."""

import math

import torch
from torch import nn

from autograder.answers import alternative, edit
from solutions.multi_head import masked_softmax, merge_heads, rotate, split_heads

# --- split_heads -----------------------------------------------------------------------------------------------------


@alternative("split_heads")
def slices_stacked(x, heads):
    size, rest = divmod(x.shape[-1], max(heads, 1))
    if heads < 1 or rest:
        raise ValueError("heads must divide the width")
    return torch.stack([x[..., head * size : (head + 1) * size] for head in range(heads)], dim=-3)


SPLIT = "x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(-3, -2)"
edit(
    "split_heads",
    "reshape_without_transpose",
    replace=SPLIT,
    by="x.reshape(*x.shape[:-2], heads, x.shape[-2], x.shape[-1] // heads)",
    says=(
        "You reshape straight to (heads, seq, head_dim): the shape is right, but head 0 gets the first "
        "positions with all of their columns."
    ),
    hint="A reshape keeps the order in memory. Split the last axis first; moving an axis is another operation.",
)
edit(
    "split_heads",
    "heads_interleaved",
    replace=SPLIT,
    by="x.unflatten(-1, (x.shape[-1] // heads, heads)).movedim(-1, -3)",
    says="You deal the columns out to the heads like cards; head h should get a run of neighbouring columns.",
    hint="Which of the two new axes varies slowest, the head or the column inside it?",
)
edit(
    "split_heads",
    "heads_not_moved",
    replace=".transpose(-3, -2)",
    by="",
    says="The head axis stands behind the positions: you return (seq, heads, head_dim).",
    hint="After splitting the last axis, which two axes have to change places?",
)
edit(
    "split_heads",
    "last_two_axes_swapped",
    replace=".transpose(-3, -2)",
    by=".transpose(-3, -2).transpose(-2, -1)",
    says="Your heads come out transposed, (heads, head_dim, seq).",
    hint="Inside a head, rows are positions.",
)
edit(
    "split_heads",
    "head_size_taken_for_heads",
    replace=SPLIT,
    by="x.unflatten(-1, (x.shape[-1] // heads, heads)).transpose(-3, -2)",
    says="You make head_dim heads of width `heads`: the two numbers are exchanged.",
    hint="`heads` is how many there are, not how wide they are.",
)
edit(
    "split_heads",
    "axes_counted_from_the_front",
    replace=".transpose(-3, -2)",
    by=".transpose(1, 2)",
    says="You count axes from the front, which works for one batch axis only.",
    hint="Count axes from the back.",
)
edit(
    "split_heads",
    "no_check_of_heads",
    replace="heads < 1 or x.shape[-1] % heads",
    by="heads < 1",
    says="A number of heads that does not divide the width is not refused with a ValueError.",
    hint="What is the remainder of d_model by heads?",
)
edit(
    "split_heads",
    "cuts_what_is_left_over",
    replace="""    if heads < 1 or x.shape[-1] % heads:
        raise ValueError(f"a width of {x.shape[-1]} cannot be split into {heads} heads")
    return x.unflatten""",
    by="""    if heads < 1 or heads > x.shape[-1]:
        raise ValueError("heads")
    x = x[..., : x.shape[-1] // heads * heads]
    return x.unflatten""",
    says="Columns that are left over are thrown away in silence; they should raise ValueError.",
    hint="What is the remainder of d_model by heads?",
)
edit(
    "split_heads",
    "positions_split",
    replace=SPLIT,
    by="x.unflatten(-2, (-1, 1)).repeat_interleave(heads, dim=-2).transpose(-3, -2)[..., : x.shape[-1] // heads]",
    says="All heads get the first columns; head h has columns of its own.",
    hint="Where do the columns of head 1 begin?",
)
edit(
    "split_heads",
    "heads_in_reverse",
    replace=".transpose(-3, -2)",
    by=".transpose(-3, -2).flip(-3)",
    says="The heads come out in reverse: head 0 has the last columns.",
    hint="Head 0 holds columns 0 … head_dim − 1.",
)
edit(
    "split_heads",
    "detached",
    replace="return x.unflatten",
    by="return x.detach().unflatten",
    says="The values are right, but x is cut off from autograd.",
    hint="Look for `detach`, `.data` or `no_grad`.",
)

# --- merge_heads -----------------------------------------------------------------------------------------------------


@alternative("merge_heads")
def side_by_side(x):
    return torch.cat(list(x.unbind(dim=-3)), dim=-1)


MERGE = "x.transpose(-3, -2).flatten(-2)"
edit(
    "merge_heads",
    "reshape_without_transpose",
    replace=MERGE,
    by="x.reshape(*x.shape[:-3], x.shape[-2], x.shape[-3] * x.shape[-1])",
    says="You reshape without moving the head axis back: rows are filled with other positions of the same head.",
    hint="Undo the two steps of `split_heads` in reverse order.",
)
edit(
    "merge_heads",
    "heads_interleaved",
    replace=MERGE,
    by="x.movedim(-3, -1).flatten(-2)",
    says="You mix the columns of the heads like cards; each head's columns should stay together.",
    hint="Which axis stands last when the two are joined: the heads or their columns?",
)
edit(
    "merge_heads",
    "heads_added",
    replace=MERGE,
    by="x.sum(dim=-3).repeat_interleave(x.shape[-3], dim=-1)",
    says="You add the heads up; they should stand side by side.",
    hint="Concatenation keeps every number.",
)
edit(
    "merge_heads",
    "heads_in_reverse",
    replace=MERGE,
    by="x.flip(-3).transpose(-3, -2).flatten(-2)",
    says="The heads stand in reverse order.",
    hint="Head 0 comes first.",
)
edit(
    "merge_heads",
    "view_after_transpose",
    replace=MERGE,
    by="x.transpose(-3, -2).view(*x.shape[:-3], x.shape[-2], x.shape[-3] * x.shape[-1])",
    says=(
        "`view` fails after a transpose: it only reads memory in the order it has, and a transpose has "
        "changed that order."
    ),
    hint="`reshape` and `flatten` copy where they must; `view` never does.",
)
edit(
    "merge_heads",
    "axes_counted_from_the_front",
    replace=MERGE,
    by="x.transpose(1, 2).flatten(2)",
    says="You count axes from the front, which works for one batch axis only.",
    hint="Count axes from the back.",
)
edit(
    "merge_heads",
    "positions_merged",
    replace=MERGE,
    by="x.flatten(-3, -2)",
    says="You join heads and positions; heads and their columns should be joined.",
    hint="How many rows does the result have?",
)
edit(
    "merge_heads",
    "result_transposed",
    replace=MERGE,
    by="x.transpose(-2, -1).flatten(-3, -2)",
    says="Your result is transposed: (d_model, seq).",
    hint="Rows are positions.",
)
edit(
    "merge_heads",
    "detached",
    replace=MERGE,
    by="x.detach().transpose(-3, -2).flatten(-2)",
    says="The values are right, but x is cut off from autograd.",
    hint="Look for `detach`, `.data` or `no_grad`.",
)

# --- MultiHeadAttention ----------------------------------------------------------------------------------------------


@alternative("MultiHeadAttention")
class HeadsByEinsum(nn.Module):
    def __init__(self, d_model, heads, bias=True):
        super().__init__()
        if d_model % heads != 0:
            raise ValueError("heads must divide d_model")
        self.shape = (heads, d_model // heads)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.add_module(name, nn.Linear(d_model, d_model, bias=bias))

    def forward(self, query, key, value, mask=None, need_weights=False):
        q = self.q_proj(query).unflatten(-1, self.shape) * self.shape[1] ** -0.5
        k, v = self.k_proj(key).unflatten(-1, self.shape), self.v_proj(value).unflatten(-1, self.shape)
        weights = masked_softmax(torch.einsum("...ihd,...jhd->...hij", q, k), mask)
        output = self.out_proj(torch.einsum("...hij,...jhd->...ihd", weights, v).flatten(-2))
        return (output, weights) if need_weights else (output, None)

    @classmethod
    def from_torch(cls, layer):
        if layer.in_proj_weight is None or layer.bias_k is not None or layer.add_zero_attn:
            raise ValueError("this layer cannot be taken over")
        ours = cls(layer.embed_dim, layer.num_heads, bias=layer.in_proj_bias is not None)
        ours = ours.to(layer.in_proj_weight.dtype)
        size = layer.embed_dim
        with torch.no_grad():
            for row, own in enumerate((ours.q_proj, ours.k_proj, ours.v_proj)):
                own.weight.copy_(layer.in_proj_weight[row * size : (row + 1) * size])
                if layer.in_proj_bias is not None:
                    own.bias.copy_(layer.in_proj_bias[row * size : (row + 1) * size])
            ours.out_proj.weight.copy_(layer.out_proj.weight)
            if layer.in_proj_bias is not None:
                ours.out_proj.bias.copy_(layer.out_proj.bias)
        return ours


M = "MultiHeadAttention"
edit(
    M,
    "scale_of_d_model",
    replace="math.sqrt(q.shape[-1])",
    by="math.sqrt(query.shape[-1])",
    says="You divide by √d_model; a score of one head sums over head_dim numbers.",
    hint="How wide is a query inside its head?",
)
edit(
    M,
    "no_scale",
    replace=" / math.sqrt(q.shape[-1])",
    by="",
    says="You do not divide the scores by √head_dim.",
    hint="Chapter 2 measured what happens to the softmax without it.",
)
edit(
    M,
    "heads_not_merged_in_order",
    replace="merge_heads(weights @ v)",
    by="(weights @ v).reshape(query.shape)",
    says="You reshape the head outputs without moving the head axis back.",
    hint="What `split_heads` took apart, `merge_heads` puts together.",
)
edit(
    M,
    "heads_cut_from_positions",
    replace="split_heads(self.q_proj(query), self.heads)",
    by="self.q_proj(query).reshape(*query.shape[:-2], self.heads, query.shape[-2], -1)",
    says="Your query heads are made by a reshape alone, so positions and columns are mixed up.",
    hint="A reshape keeps the order in memory; an axis has to be moved as well.",
)
edit(
    M,
    "one_head_only",
    replace="self.heads = heads",
    by="self.heads = 1",
    says="You compute one wide head; `heads` has no effect.",
    hint="How many maps does your layer make?",
)
edit(
    M,
    "no_output_projection",
    replace="self.out_proj(merge_heads(weights @ v))",
    by="merge_heads(weights @ v)",
    says="The heads are joined, but `out_proj` is not used.",
    hint="What mixes the heads?",
)
edit(
    M,
    "values_not_projected",
    replace="split_heads(self.v_proj(value), self.heads)",
    by="split_heads(value, self.heads)",
    says="You cut the input itself into heads for the values: `v_proj` is not used.",
    hint="Every head projects all of the input.",
)
edit(
    M,
    "values_from_keys",
    replace="self.v_proj(value)",
    by="self.v_proj(key)",
    says="Your values come from the keys' input.",
    hint="Three inputs come in. Which one is not read?",
)
edit(
    M,
    "queries_for_everything",
    replace="self.k_proj(key)",
    by="self.k_proj(query)",
    says="Your keys come from the queries' input, so cross-attention looks at itself.",
    hint="Three inputs come in. Which one is not read?",
)
edit(
    M,
    "softmax_over_heads",
    replace="masked_softmax(scores, mask)",
    by="masked_softmax(scores.transpose(-3, -1), None).transpose(-3, -1)",
    says="You normalise over the heads; each row over the keys should sum to one.",
    hint="Along which axis do the keys run?",
)
edit(
    M,
    "mask_inverted",
    replace="masked_softmax(scores, mask)",
    by="masked_softmax(scores, None if mask is None else ~mask)",
    says=(
        "You hide what may be read. In this course True means: may attend; in nn.MultiheadAttention it means "
        "the opposite."
    ),
    hint="What does True mean in the contract?",
)
edit(
    M,
    "mask_ignored",
    replace="masked_softmax(scores, mask)",
    by="scores.softmax(dim=-1)",
    says="`mask` has no effect.",
    hint="Which line of yours reads the mask?",
)
edit(
    M,
    "mask_without_head_axis",
    replace="masked_softmax(scores, mask)",
    by="masked_softmax(scores, None if mask is None else mask.expand(scores.shape[-4:]))",
    says="A 3-D mask of the examples is read as one mask for each head.",
    hint="Between which two of its axes does a 3-D mask gain one?",
)
edit(
    M,
    "empty_row_is_nan",
    replace="masked_softmax(scores, mask)",
    by="""(
            scores
            if mask is None
            else scores.masked_fill(~(mask[:, None] if mask.ndim == 3 else mask), float("-inf"))
        ).softmax(dim=-1)""",
    says="A query with nothing to attend to becomes NaN: a row of −∞ has no softmax.",
    hint="The helper `masked_softmax` in the given cell knows what to do with such a row.",
)
edit(
    M,
    "weights_averaged",
    replace="weights if need_weights else None",
    by="weights.mean(dim=-3) if need_weights else None",
    says="You return the mean over the heads, as PyTorch does by default; the contract wants one map for each head.",
    hint="How many axes should the weights have?",
)
edit(
    M,
    "weights_always",
    replace="weights if need_weights else None",
    by="weights",
    says="The weights come out although nobody asked for them: without `need_weights` there should be None.",
    hint="What is `need_weights` for?",
)
edit(
    M,
    "output_without_bias",
    replace="self.out_proj = nn.Linear(d_model, d_model, bias=bias)",
    by="self.out_proj = nn.Linear(d_model, d_model, bias=False)",
    says="`out_proj` has no bias; with bias=True all four layers have one.",
    hint="Hand `bias` on to all four layers.",
)
edit(
    M,
    "narrow_projections",
    replace="self.v_proj = nn.Linear(d_model, d_model, bias=bias)",
    by="self.v_proj = nn.Linear(d_model, d_model // heads, bias=bias)",
    says="Your value layer is as wide as one head; it makes the values of all heads at once.",
    hint="All heads together are d_model wide.",
)
edit(
    M,
    "no_check_of_heads",
    replace="if d_model % heads:",
    by="if False:",
    says="A number of heads that does not divide d_model is not refused.",
    hint="When should __init__ raise ValueError?",
)
edit(
    M,
    "torch_rows_interleaved",
    replace=".chunk(3)[row]",
    by="[row::3]",
    count=2,
    says="You take every third row of in_proj_weight; the three projections stand below each other in it.",
    hint="The first d_model rows are the query projection.",
)
edit(
    M,
    "torch_order_wrong",
    replace='enumerate(("q_proj", "k_proj", "v_proj"))',
    by='enumerate(("k_proj", "q_proj", "v_proj"))',
    says="Query and key projections of PyTorch's layer change places.",
    hint="In which order does in_proj_weight hold them?",
)
edit(
    M,
    "torch_bias_forgotten",
    replace="""            if bias:
                state[f"{name}.bias"] = layer.in_proj_bias.chunk(3)[row]
        ours.load_state_dict(state)""",
    by="        ours.load_state_dict(state, strict=False)",
    says="`from_torch` leaves the biases of the three input projections behind.",
    hint="in_proj_bias is cut like in_proj_weight.",
)
edit(
    M,
    "torch_biases_exchanged",
    replace="layer.in_proj_bias.chunk(3)[row]",
    by="layer.in_proj_bias.chunk(3)[(1, 0, 2)[row]]",
    says="The weights of PyTorch's layer arrive where they belong, but the biases of queries and keys change places.",
    hint="Weights and biases stand in the same order. Compare each with PyTorch's, one projection at a time.",
)
edit(
    M,
    "torch_layer_never_refused",
    replace="layer.in_proj_weight is None or layer.bias_k is not None or layer.add_zero_attn",
    by="layer.in_proj_weight is None",
    says="`from_torch` takes over layers that do more than ours, and would give other results.",
    hint="What do add_bias_kv and add_zero_attn do?",
)
edit(
    M,
    "torch_parameters_shared",
    replace="ours.load_state_dict(state)",
    by="""ours.load_state_dict(state)
        ours.out_proj = layer.out_proj""",
    says="Your layer and PyTorch's share parameters: what one learns changes the other.",
    hint="Copy, do not borrow.",
)
edit(
    M,
    "weights_detached",
    replace="weights @ v",
    by="weights.detach() @ v",
    says="The values are right, but the weights are cut off from autograd.",
    hint="Look for `detach`, `.data` or `no_grad`.",
)
edit(
    M,
    "drops_weights_in_training",
    replace="weights = masked_softmax(scores, mask)",
    by="weights = nn.functional.dropout(masked_softmax(scores, mask), 0.1, self.training)",
    says="You drop weights while training; the contract has no dropout.",
    hint="Call your layer twice with the same x.",
)
edit(
    M,
    "axes_counted_from_the_front",
    replace="k.transpose(-2, -1)",
    by="k.transpose(2, 3)",
    says="You count axes from the front, which works for one batch axis only.",
    hint="Count axes from the back.",
)

# --- GroupedQueryAttention -------------------------------------------------------------------------------------------


@alternative("GroupedQueryAttention")
class GroupsByEinsum(nn.Module):
    def __init__(self, d_model, heads, kv_heads):
        super().__init__()
        if d_model % heads != 0 or heads % kv_heads != 0:
            raise ValueError("these numbers do not divide")
        self.heads, self.kv_heads, size = heads, kv_heads, d_model // heads
        self.q_proj, self.out_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(d_model, kv_heads * size, bias=False) for _ in range(2))

    def attend(self, query, key, value, mask=None):
        grouped = query.unflatten(-3, (self.kv_heads, -1)) * query.shape[-1] ** -0.5
        scores = torch.einsum("...gnid,...gjd->...gnij", grouped, key).flatten(-4, -3)
        weights = masked_softmax(scores, mask)
        read = torch.einsum("...gnij,...gjd->...gnid", weights.unflatten(-3, (self.kv_heads, -1)), value)
        return read.flatten(-4, -3), weights

    def forward(self, x, mask=None):
        shapes = (self.heads, self.kv_heads, self.kv_heads)
        q, k, v = (
            layer(x).unflatten(-1, (number, -1)).transpose(-3, -2)
            for layer, number in zip((self.q_proj, self.k_proj, self.v_proj), shapes, strict=True)
        )
        outputs, weights = self.attend(q, k, v, mask)
        return self.out_proj(outputs.transpose(-3, -2).flatten(-2)), weights


G = "GroupedQueryAttention"
ROWS = "rows = query.reshape(*key.shape[:-2], -1, head_dim)  # the queries of a group stand below each other"
edit(
    G,
    "keys_repeated",
    replace=ROWS,
    by="""group = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(group, dim=-3), value.repeat_interleave(group, dim=-3)
        rows = query""",
    says="The values are right, but you copy keys and values for every query head: the saving is gone.",
    hint="The queries of a group can stand below each other in one product.",
)
edit(
    G,
    "keys_tiled",
    replace=ROWS,
    by="""group = query.shape[-3] // key.shape[-3]
        key = torch.cat([key] * group, dim=-3)
        value = torch.cat([value] * group, dim=-3)
        rows = query""",
    says="You lay the key heads out one after the other, so neighbouring query heads read different keys.",
    hint="Query heads 0 … heads / kv_heads − 1 all read key head 0.",
)
edit(
    G,
    "always_the_first_key_head",
    replace=ROWS,
    by="""key, value = key[..., :1, :, :], value[..., :1, :, :]
        rows = query.reshape(*key.shape[:-2], -1, head_dim)""",
    says="All query heads read key head 0.",
    hint="Which key head does the last query head read?",
)
edit(
    G,
    "groups_share_queries",
    replace=ROWS,
    by="""group = query.shape[-3] // key.shape[-3]
        query = query[..., ::group, :, :].repeat_interleave(group, dim=-3)
        rows = query.reshape(*key.shape[:-2], -1, head_dim)""",
    says=(
        "The heads of a group share their queries too, so all of them make the same map. Only keys and "
        "values are shared."
    ),
    hint="How many different maps do your heads make?",
)
edit(
    G,
    "scale_of_d_model",
    replace="math.sqrt(head_dim)",
    by="math.sqrt(head_dim * query.shape[-3])",
    says="You divide by √d_model; a score of one head sums over head_dim numbers.",
    hint="How wide is one head?",
)
edit(
    G,
    "no_scale",
    replace=" / math.sqrt(head_dim)",
    by="",
    says="You do not divide the scores by √head_dim.",
    hint="Chapter 2 measured what happens to the softmax without it.",
)
edit(
    G,
    "full_keys",
    replace="kv_dim = kv_heads * (d_model // heads)",
    by="kv_dim = d_model",
    says="Your key and value layers are as wide as all query heads, so nothing is saved.",
    hint="How wide are kv_heads heads together?",
)
edit(
    G,
    "layers_with_bias",
    replace="bias=False)",
    by="bias=True)",
    count=4,
    says="Your projections have a bias; the contract wants Linear layers without.",
    hint="`nn.Linear` has a bias unless you say otherwise.",
)
edit(
    G,
    "mask_ignored",
    replace="masked_softmax(scores, mask)",
    by="scores.softmax(dim=-1)",
    says="`mask` has no effect.",
    hint="Which line of yours reads the mask?",
)
edit(
    G,
    "mask_inverted",
    replace="masked_softmax(scores, mask)",
    by="masked_softmax(scores, None if mask is None else ~mask)",
    says="You hide what may be read. True means: may attend.",
    hint="What does True mean in the contract?",
)
edit(
    G,
    "mask_not_handed_on",
    replace="self.attend(q, k, v, mask)",
    by="self.attend(q, k, v)",
    says="`attend` knows the mask, but `forward` does not hand it on.",
    hint="Follow the mask from forward to the softmax.",
)
edit(
    G,
    "no_output_projection",
    replace="self.out_proj(merge_heads(outputs))",
    by="merge_heads(outputs)",
    says="`out_proj` is not used.",
    hint="What mixes the heads?",
)
edit(
    G,
    "heads_merged_by_reshape",
    replace="merge_heads(outputs)",
    by="outputs.reshape(x.shape)",
    says="You reshape the head outputs without moving the head axis back.",
    hint="What `split_heads` took apart, `merge_heads` puts together.",
)
edit(
    G,
    "no_check_of_groups",
    replace="if d_model % heads or heads % kv_heads:",
    by="if d_model % heads:",
    says="A number of key heads that does not divide the heads is not refused.",
    hint="When should __init__ raise ValueError?",
)
edit(
    G,
    "keys_detached",
    replace="k = split_heads(self.k_proj(x), self.kv_heads)",
    by="k = split_heads(self.k_proj(x), self.kv_heads).detach()",
    says="The values are right, but the keys are cut off from autograd.",
    hint="Look for `detach`, `.data` or `no_grad`.",
)

# --- mha_to_gqa ------------------------------------------------------------------------------------------------------


@alternative("mha_to_gqa")
def averaging_matrix(k_weight, v_weight, heads, kv_heads):
    if k_weight.shape[0] % heads or heads % kv_heads:
        raise ValueError("these numbers do not divide")
    group = heads // kv_heads
    share = torch.zeros(kv_heads, heads, dtype=k_weight.dtype, device=k_weight.device)
    for head in range(heads):
        share[head // group, head] = 1 / group
    size = k_weight.shape[0] // heads
    pooled = [torch.einsum("gh,hsi->gsi", share, w.reshape(heads, size, -1)) for w in (k_weight, v_weight)]
    return tuple(part.reshape(kv_heads * size, -1) for part in pooled)


P = "mha_to_gqa"
UNFLATTEN = "weight.unflatten(0, (kv_heads, heads // kv_heads, len(weight) // heads))"
edit(
    P,
    "first_head_of_each_group",
    replace="k_groups.mean(dim=1).flatten(0, 1), v_groups.mean(dim=1).flatten(0, 1)",
    by="k_groups[:, 0].flatten(0, 1), v_groups[:, 0].flatten(0, 1)",
    says="You keep the first head of each group; the paper found the mean of all to be better.",
    hint="What happens to the other heads of the group?",
)
edit(
    P,
    "summed",
    replace=".mean(dim=1)",
    by=".sum(dim=1)",
    count=2,
    says="You add the heads of a group; their mean is asked for.",
    hint="Copies of one head should pool to that head.",
)
edit(
    P,
    "strided_groups",
    replace=UNFLATTEN,
    by="weight.unflatten(0, (heads // kv_heads, kv_heads, len(weight) // heads)).transpose(0, 1)",
    says="You pool every kv_heads-th head; a group is a run of neighbouring heads.",
    hint="Which query heads read key head 0 in `GroupedQueryAttention`?",
)
edit(
    P,
    "rows_pooled",
    replace=UNFLATTEN,
    by="weight.unflatten(0, (kv_heads, len(weight) // heads, heads // kv_heads)).transpose(1, 2)",
    says="You average neighbouring rows, so one head's rows are mixed with each other.",
    hint="Row r of the new head comes from row r of each old head.",
)
edit(
    P,
    "columns_pooled",
    replace="k_groups.mean(dim=1).flatten(0, 1), v_groups.mean(dim=1).flatten(0, 1)",
    by=(
        "tuple(w.unflatten(1, (-1, heads // kv_heads)).mean(-1) if w.shape[1] % heads == 0 else w for w in "
        "(k_weight, v_weight))"
    ),
    says="You pool columns; in nn.Linear the heads are rows of the weight.",
    hint="nn.Linear stores (out, in). Which of them holds the heads?",
)
edit(
    P,
    "values_not_pooled",
    replace="v_groups.mean(dim=1)",
    by="v_groups[:, -1]",
    says="The values are not averaged: you keep one head of each group.",
    hint="Keys and values are treated alike.",
)
edit(
    P,
    "values_of_keys",
    replace="v_groups.mean(dim=1)",
    by="k_groups.mean(dim=1)",
    says="Both results are made from the keys.",
    hint="Where is `v_weight` used?",
)
edit(
    P,
    "order_swapped",
    replace="k_groups.mean(dim=1).flatten(0, 1), v_groups.mean(dim=1).flatten(0, 1)",
    by="v_groups.mean(dim=1).flatten(0, 1), k_groups.mean(dim=1).flatten(0, 1)",
    says="The values come out first.",
    hint="Read the order of the pair in the contract.",
)
edit(
    P,
    "head_axis_left",
    replace=".flatten(0, 1)",
    by="",
    count=2,
    says="Your weights have three axes; a Linear layer wants (kv_heads · head_dim, d_in).",
    hint="One axis too many is left.",
)
edit(
    P,
    "no_check",
    replace="if len(k_weight) % heads or heads % kv_heads:",
    by="if len(k_weight) % heads:",
    says="A number of key heads that does not divide the heads is not refused with a ValueError.",
    hint="Two divisions have to come out even.",
)
edit(
    P,
    "repeated_to_full_size",
    replace="k_groups.mean(dim=1).flatten(0, 1), v_groups.mean(dim=1).flatten(0, 1)",
    by="""tuple(
        g.mean(dim=1, keepdim=True).expand_as(g).flatten(0, 2) for g in (k_groups, v_groups)
    )""",
    says="You copy the means back to all heads, so the weights are as large as before.",
    hint="How many rows should be left?",
)

# --- KVCache ---------------------------------------------------------------------------------------------------------


@alternative("KVCache", name="TwoMemoriesInOne")
class TwoMemoriesInOne:
    def __init__(self, capacity, window=None):
        if window is not None and (window < 1 or window > capacity):
            raise ValueError("the window must fit")
        self.capacity, self.window, self.length = capacity, window, 0
        self.memory, self.shown = None, slice(0, 0)

    def append(self, k, v):
        new = k.shape[2]
        before = self.shown.stop if self.window is None else min(self.shown.stop, self.window - 1)
        if before + new > self.capacity:
            raise ValueError("full")
        if self.memory is None:
            self.memory = [torch.empty(*t.shape[:2], self.capacity, t.shape[3], dtype=t.dtype) for t in (k, v)]
        stop = self.shown.stop
        if stop + new > self.capacity:
            for memory in self.memory:
                memory.narrow(2, 0, before).copy_(memory.narrow(2, stop - before, before).clone())
            stop = before
        for memory, tensor in zip(self.memory, (k, v), strict=True):
            memory.narrow(2, stop, new).copy_(tensor)
        self.shown = slice(stop - before, stop + new)
        self.length += new

    def read(self):
        return tuple(memory[:, :, self.shown] for memory in self.memory)


C = "KVCache"
MEMORY = """        self.keys[:, :, self.end - new : self.end] = k
        self.values[:, :, self.end - new : self.end] = v"""
edit(
    C,
    "joined_anew",
    replace="""        if self.length == 0:
            self.keys = k.new_zeros(*k.shape[:2], self.capacity, k.shape[-1])
            self.values = v.new_zeros(*v.shape[:2], self.capacity, v.shape[-1])
        if self.end + new > self.capacity:
            for memory in (self.keys, self.values):
                memory[:, :, :kept] = memory[:, :, self.end - kept : self.end].clone()
            self.end = kept
        self.start, self.end = self.end - kept, self.end + new
"""
    + MEMORY,
    by="""        if self.length == 0:
            self.keys, self.values = k.clone(), v.clone()
        else:
            self.keys = torch.cat([self.keys[:, :, self.keys.shape[2] - kept :], k], dim=2)
            self.values = torch.cat([self.values[:, :, self.values.shape[2] - kept :], v], dim=2)
        self.start, self.end = 0, kept + new""",
    says=(
        "The values are right, but every append joins old and new into a new tensor, so all of the past is "
        "copied each time."
    ),
    hint="Allocate once; then write the new positions into their place.",
)
edit(
    C,
    "values_are_keys",
    replace="self.values[:, :, self.end - new : self.end] = v",
    by="self.values[:, :, self.end - new : self.end, : k.shape[-1]] = k",
    says="The keys are written into both memories.",
    hint="Where is `v` used?",
)
edit(
    C,
    "whole_memory_read",
    replace="return self.keys[:, :, self.start : self.end], self.values[:, :, self.start : self.end]",
    by="return self.keys, self.values",
    says="`read` returns all of the memory, also the part that holds nothing yet.",
    hint="How much of the memory is in use?",
)
edit(
    C,
    "overwrites_the_first",
    replace="self.start, self.end = self.end - kept, self.end + new",
    by="self.start, self.end = 0, new",
    says="Every append starts at the beginning of the memory again.",
    hint="Where do the next positions go?",
)
edit(
    C,
    "window_of_what_was_before",
    replace="min(self.end, self.window - 1)",
    by="min(self.end, self.window)",
    says="You keep `window` positions before the new ones; a query sees itself and window − 1 before it.",
    hint="Is the position itself part of its window?",
)
edit(
    C,
    "window_counts_the_new",
    replace="self.start, self.end = self.end - kept, self.end + new",
    by=(
        "self.start, self.end = self.end - kept, self.end + new\n"
        "        if self.window is not None:\n"
        "            self.start = max(self.start, self.end - self.window)"
    ),
    says="You show `window` positions in all, so the first positions of a chunk miss what their own windows hold.",
    hint="What may the first of several new positions see?",
)
edit(
    C,
    "window_ignored",
    replace="kept = self.end if self.window is None else min(self.end, self.window - 1)",
    by="kept = self.end",
    says="`window` has no effect: the cache fills up.",
    hint="Which positions will nobody see again?",
)
edit(
    C,
    "no_check_of_room",
    replace="if kept + new > self.capacity:",
    by="if self.window is None and kept + new > self.capacity + new:",
    says="More positions than there is room for are not refused with a ValueError.",
    hint="What happens when the memory is full?",
)
edit(
    C,
    "refuses_the_last_place",
    replace="if kept + new > self.capacity:",
    by="if kept + new >= self.capacity:",
    says="The last free place cannot be used: a cache for n positions takes n.",
    hint="Check the comparison at its edge.",
)
edit(
    C,
    "length_counts_appends",
    replace="self.length += new",
    by="self.length += 1",
    says="`length` counts calls of append; it should count positions.",
    hint="How many positions can one append bring?",
)
edit(
    C,
    "length_is_what_is_kept",
    replace="self.length += new",
    by="self.length = self.end - self.start",
    says="With a window `length` stops growing; it should count all positions ever appended.",
    hint="The length of the text and the part of it that is kept are two numbers.",
)
edit(
    C,
    "always_float32",
    replace="k.new_zeros(*k.shape[:2], self.capacity, k.shape[-1])",
    by="torch.zeros(*k.shape[:2], self.capacity, k.shape[-1])",
    says="Your keys are kept in float32 whatever comes in.",
    hint="What decides the dtype of the memory?",
)
edit(
    C,
    "newest_first",
    replace="return self.keys[:, :, self.start : self.end], self.values[:, :, self.start : self.end]",
    by="return self.keys[:, :, self.start : self.end].flip(2), self.values[:, :, self.start : self.end].flip(2)",
    says="The newest position comes out first; the oldest should.",
    hint="In which order did the text come in?",
)
edit(
    C,
    "window_not_checked",
    replace="if window is not None and not 1 <= window <= capacity:",
    by="if False:",
    says="A window that is 0 or larger than the memory is not refused.",
    hint="When should __init__ raise ValueError?",
)

# --- decode_step -----------------------------------------------------------------------------------------------------


@alternative("decode_step")
def one_query_after_the_other(module, x_t, cache):
    new = x_t.shape[1]
    cache.append(*(split_heads(layer(x_t), module.kv_heads) for layer in (module.k_proj, module.v_proj)))
    keys, values = cache.read()
    questions = split_heads(module.q_proj(x_t), module.heads)
    outputs = []
    for number in range(new):
        stop = keys.shape[2] - new + number + 1
        start = 0 if cache.window is None else max(0, stop - cache.window)
        seen = keys[:, :, start:stop], values[:, :, start:stop]
        outputs.append(module.attend(questions[:, :, number : number + 1], *seen)[0])
    return module.out_proj(merge_heads(torch.cat(outputs, dim=2)))


D = "decode_step"
edit(
    D,
    "no_mask_in_the_chunk",
    replace="mask = age >= 0",
    by="mask = age > -kept",
    says="Inside a chunk every new position sees those behind it.",
    hint="A chunk has a future too.",
)
edit(
    D,
    "top_left_mask",
    replace="torch.arange(kept - new, kept, device=x_t.device)",
    by="torch.arange(new, device=x_t.device)",
    says="Your causal mask starts at the top left, so new positions see only the beginning of the text.",
    hint="Which row of the whole text's mask does the first new position have?",
)
edit(
    D,
    "not_itself",
    replace="age >= 0",
    by="age > 0",
    says="A position does not see itself.",
    hint="Is the diagonal allowed?",
)
edit(
    D,
    "window_ignored_in_the_chunk",
    replace="mask = mask & (age < cache.window)",
    by="pass",
    says="In a chunk all new positions see what the cache shows, but the later ones have windows that begin later.",
    hint="The cache shows what *some* new position may see.",
)
edit(
    D,
    "window_one_too_long",
    replace="age < cache.window",
    by="age <= cache.window",
    says="The window is one position too long: a position itself belongs to its window.",
    hint="0 ≤ i − j < window.",
)
edit(
    D,
    "window_one_too_short",
    replace="age < cache.window",
    by="age < cache.window - 1",
    says="The window is one position too short.",
    hint="0 ≤ i − j < window.",
)
edit(
    D,
    "cache_not_read",
    replace="keys, values = cache.read()",
    by=(
        "keys, values = split_heads(module.k_proj(x_t), module.kv_heads), split_heads(module.v_proj(x_t), "
        "module.kv_heads)"
    ),
    says="The new positions see only each other: what the cache holds is not used.",
    hint="What does `read` return?",
)
edit(
    D,
    "appended_twice",
    replace="    keys, values = cache.read()",
    by=(
        "    if cache.length + x_t.shape[1] <= cache.capacity and cache.window is None:\n"
        "        cache.append("
        "split_heads(module.k_proj(x_t), module.kv_heads), split_heads(module.v_proj(x_t), module.kv_heads))\n"
        "    keys, values = cache.read()"
    ),
    says="The new positions go into the cache twice.",
    hint="Each position has one key.",
)
edit(
    D,
    "full_heads_into_the_cache",
    replace="split_heads(module.k_proj(x_t), module.kv_heads)",
    by="split_heads(module.k_proj(x_t), module.heads)",
    says="You split the keys into `heads` heads; there are only kv_heads of them.",
    hint="How many key heads does the layer have?",
)
edit(
    D,
    "no_output_projection",
    replace="module.out_proj(merge_heads(outputs))",
    by="merge_heads(outputs)",
    says="`out_proj` is not used.",
    hint="What does the layer do after its heads?",
)
edit(
    D,
    "heads_merged_by_reshape",
    replace="merge_heads(outputs)",
    by="outputs.reshape(x_t.shape)",
    says="You reshape the head outputs without moving the head axis back.",
    hint="It goes unnoticed with one new position only.",
)
edit(
    D,
    "values_before_keys",
    replace="keys, values = cache.read()",
    by="values, keys = cache.read()",
    says="Keys and values change places when they are read.",
    hint="In which order does `read` return them?",
)
edit(
    D,
    "appended_after_reading",
    replace="""    cache.append(split_heads(module.k_proj(x_t), module.kv_heads), \
split_heads(module.v_proj(x_t), module.kv_heads))
    keys, values = cache.read()
    new, kept = x_t.shape[1], keys.shape[-2]""",
    by="""    layers = module.k_proj, module.v_proj
    new_parts = tuple(split_heads(layer(x_t), module.kv_heads) for layer in layers)
    keys, values = new_parts if cache.length == 0 else cache.read()
    cache.append(*new_parts)
    new, kept = x_t.shape[1], keys.shape[-2]""",
    says="You read the cache before the new positions are in it, so they do not see themselves.",
    hint="A position sees itself: first append, then read.",
)

edit(
    D,
    "detached",
    replace="return module.out_proj(merge_heads(outputs))",
    by="return module.out_proj(merge_heads(outputs)).detach()",
    says="The values are right, but the output is cut off from autograd.",
    hint="Look for `detach`, `.data` or `no_grad`.",
)

# --- TalkingHeadsAttention -------------------------------------------------------------------------------------------


@alternative("TalkingHeadsAttention")
class HeadsLast(nn.Module):
    def __init__(self, d_model, heads):
        super().__init__()
        if d_model % heads != 0:
            raise ValueError("heads must divide d_model")
        self.heads, self.scale = heads, (d_model // heads) ** -0.5
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )
        self.pre_mix, self.post_mix = nn.Parameter(torch.eye(heads)), nn.Parameter(torch.eye(heads))

    def forward(self, x, mask=None):
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        scores = torch.einsum("...ihd,...jhd->...ijh", q * self.scale, k) @ self.pre_mix.T
        maps = masked_softmax(scores.movedim(-1, -3), mask)
        weights = (maps.movedim(-3, -1) @ self.post_mix.T).movedim(-1, -3)
        return self.out_proj(torch.einsum("...hij,...jhd->...ihd", weights, v).flatten(-2)), weights


T = "TalkingHeadsAttention"
PRE = 'torch.einsum("hg,...gij->...hij", self.pre_mix, scores)'
POST = 'torch.einsum("hg,...gij->...hij", self.post_mix, masked_softmax(mixed, mask))'
edit(
    T,
    "no_first_mix",
    replace=PRE,
    by="scores",
    says="The scores are not mixed: `pre_mix` is not used.",
    hint="Heads talk twice.",
)
edit(
    T,
    "no_second_mix",
    replace=POST,
    by="masked_softmax(mixed, mask)",
    says="The weights are not mixed: `post_mix` is not used.",
    hint="Heads talk twice.",
)
edit(
    T,
    "mixes_transposed",
    replace='"hg,...gij->...hij"',
    by='"gh,...gij->...hij"',
    count=2,
    says="Both mixes are read the wrong way round: row h of the mix makes new head h.",
    hint="Which index of the mix is summed over?",
)
edit(
    T,
    "first_mix_transposed",
    replace=PRE,
    by=PRE.replace('"hg,', '"gh,'),
    says="The second mix is right, but the first is read the wrong way round: row h of `pre_mix` makes new head h.",
    hint="Set one entry of `pre_mix` beside the diagonal to 1: which head's scores change, and by which head's?",
)
edit(
    T,
    "second_mix_transposed",
    replace=POST,
    by=POST.replace('"hg,', '"gh,'),
    says="The first mix is right, but the second is read the wrong way round: row h of `post_mix` makes new head h.",
    hint="Set one entry of `post_mix` beside the diagonal to 1: which head's weights change, and by which head's?",
)
edit(
    T,
    "both_mixes_before_the_softmax",
    replace=POST,
    by='masked_softmax(torch.einsum("hg,...gij->...hij", self.post_mix, mixed), mask)',
    says="Both mixes come before the softmax.",
    hint="One mix is of scores, the other of weights.",
)
edit(
    T,
    "both_mixes_after_the_softmax",
    replace="""mixed = torch.einsum("hg,...gij->...hij", self.pre_mix, scores)
        weights = torch.einsum("hg,...gij->...hij", self.post_mix, masked_softmax(mixed, mask))""",
    by="""mixed = torch.einsum("hg,...gij->...hij", self.pre_mix, masked_softmax(scores, mask))
        weights = torch.einsum("hg,...gij->...hij", self.post_mix, mixed)""",
    says="Both mixes come after the softmax.",
    hint="One mix is of scores, the other of weights.",
)
edit(
    T,
    "mixes_exchanged",
    replace="self.post_mix, masked",
    by="self.pre_mix, masked",
    says="The first mix is used twice.",
    hint="There are two matrices, and each has a job.",
)
edit(
    T,
    "outputs_mixed",
    replace="""weights = torch.einsum("hg,...gij->...hij", self.post_mix, masked_softmax(mixed, mask))
        return self.out_proj(merge_heads(weights @ v)), weights""",
    by="""weights = masked_softmax(mixed, mask)
        outputs = torch.einsum("hg,...gid->...hid", self.post_mix, weights @ v)
        return self.out_proj(merge_heads(outputs)), weights""",
    says="You mix the heads' outputs; what is mixed are the weights, before they meet the values.",
    hint="`out_proj` could do what your second mix does. What can it not do?",
)
edit(
    T,
    "weights_before_the_mix",
    replace="""weights = torch.einsum("hg,...gij->...hij", self.post_mix, masked_softmax(mixed, mask))
        return self.out_proj(merge_heads(weights @ v)), weights""",
    by="""weights = masked_softmax(mixed, mask)
        return self.out_proj(merge_heads(torch.einsum("hg,...gij->...hij", self.post_mix, weights) @ v)), weights""",
    says="The output is right, but the weights that you return are those before the second mix.",
    hint="Which weights met the values?",
)
edit(
    T,
    "softmax_of_the_mix",
    replace="masked_softmax(mixed, mask))",
    by="masked_softmax(mixed, mask)).softmax(dim=-1)",
    says="You normalise once more after the second mix; its rows need not sum to one.",
    hint="How many softmaxes are there?",
)
edit(
    T,
    "random_mixes",
    replace="torch.eye(heads)",
    by="torch.randn(heads, heads) / math.sqrt(heads)",
    count=2,
    says=(
        "The mixes start at random; they should start as the identity, so that the layer starts as plain "
        "multi-head attention."
    ),
    hint="Which matrix changes nothing?",
)
edit(
    T,
    "mixes_not_learned",
    replace="nn.Parameter(torch.eye(heads))",
    by="torch.eye(heads)",
    count=2,
    says="The mixes are no parameters: nothing can be loaded into them, and they never learn.",
    hint="What makes a tensor a parameter?",
)
edit(
    T,
    "mask_before_the_mix",
    replace=PRE,
    by=(
        'torch.einsum("hg,...gij->...hij", self.pre_mix, '
        "scores if mask is None else scores * (mask[:, None] if mask.ndim == 3 else mask))\n"
        "        mask = None"
    ),
    says="The mask comes before the first mix, so hidden keys keep weight.",
    hint="Hide right before the softmax.",
)
edit(
    T,
    "mask_inverted",
    replace="masked_softmax(mixed, mask)",
    by="masked_softmax(mixed, None if mask is None else ~mask)",
    says="You hide what may be read. True means: may attend.",
    hint="What does True mean in the contract?",
)
edit(
    T,
    "no_scale",
    replace=" / math.sqrt(q.shape[-1])",
    by="",
    says="You do not divide the scores by √head_dim.",
    hint="Chapter 2 measured what happens to the softmax without it.",
)

# --- MultiHeadLatentAttention ----------------------------------------------------------------------------------------


@alternative("MultiHeadLatentAttention")
class OneConcatenatedKey(nn.Module):
    def __init__(self, d_model, heads, latent_dim, rope_dim):
        super().__init__()
        if d_model % heads != 0 or rope_dim % 2 != 0:
            raise ValueError("these numbers do not fit")
        self.heads, self.rope_dim = heads, rope_dim
        self.head_dim = d_model // heads
        shapes = {
            "q_proj": (d_model, d_model),
            "q_rope_proj": (d_model, heads * rope_dim),
            "kv_down_proj": (d_model, latent_dim),
            "k_rope_proj": (d_model, rope_dim),
            "k_up_proj": (latent_dim, d_model),
            "v_up_proj": (latent_dim, d_model),
            "out_proj": (d_model, d_model),
        }
        for name, (wide, out) in shapes.items():
            self.add_module(name, nn.Linear(wide, out, bias=False))
        self.scale = (self.head_dim + rope_dim) ** -0.5

    def forward(self, x):
        seq = x.shape[1]
        where = torch.arange(seq)
        latent = self.kv_down_proj(x)
        turned = rotate(self.q_rope_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2), where)
        query = torch.cat([self.q_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2), turned], dim=-1)
        own = self.k_up_proj(latent).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        shared = rotate(self.k_rope_proj(x), where).unsqueeze(1).expand(-1, self.heads, -1, -1)
        key = torch.cat([own, shared], dim=-1)
        value = self.v_up_proj(latent).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = (query * self.scale) @ key.mT
        scores = scores.masked_fill(torch.ones(seq, seq, dtype=torch.bool).triu(1), -torch.inf)
        return self.out_proj((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))

    def decode(self, x_t, cache=None):
        batch, new, _ = x_t.shape
        past = cache[0].shape[1] if cache is not None else 0
        where = torch.arange(past, past + new)
        memory = torch.cat([self.kv_down_proj(x_t), rotate(self.k_rope_proj(x_t), where)], dim=-1)
        if cache is not None:
            memory = torch.cat([torch.cat(cache, dim=-1), memory], dim=1)
        rank = memory.shape[-1] - self.rope_dim
        rows = self.q_proj(x_t).view(batch, new, self.heads, self.head_dim)
        carried = torch.stack(
            [
                rows[:, :, head] @ self.k_up_proj.weight[head * self.head_dim : (head + 1) * self.head_dim]
                for head in range(self.heads)
            ],
            dim=1,
        )
        turned = rotate(self.q_rope_proj(x_t).view(batch, new, self.heads, -1).transpose(1, 2), where)
        query = torch.cat([carried, turned], dim=-1).flatten(1, 2) * self.scale
        scores = (query @ memory.mT).view(batch, self.heads, new, -1)
        late = torch.arange(past + new) > where[:, None]
        weights = scores.masked_fill(late, -torch.inf).softmax(dim=-1)
        read = (weights.flatten(1, 2) @ memory[..., :rank]).view(batch, self.heads, new, rank)
        up = self.v_up_proj.weight.view(self.heads, self.head_dim, rank)
        result = torch.cat([read[:, head] @ up[head].T for head in range(self.heads)], dim=-1)
        return self.out_proj(result), (memory[..., :rank], memory[..., rank:])


L = "MultiHeadLatentAttention"
edit(
    L,
    "scale_without_the_rotated_part",
    replace="math.sqrt(q.shape[-1] + q_rope.shape[-1])",
    by="math.sqrt(q.shape[-1])",
    count=2,
    says="You divide by √head_dim; a score sums over head_dim + rope_dim numbers.",
    hint="How long is the query with its rotated part?",
)
edit(
    L,
    "keys_not_rotated",
    replace="rotate(self.k_rope_proj(x), positions)[:, None]",
    by="self.k_rope_proj(x)[:, None]",
    says="The shared key of `forward` is not rotated to its position.",
    hint="Both sides of the dot product have to turn.",
)
edit(
    L,
    "queries_not_rotated",
    replace="rotate(q_rope, positions) @",
    by="q_rope @",
    says="The queries of `forward` are not rotated to their positions.",
    hint="Both sides of the dot product have to turn.",
)
edit(
    L,
    "no_rotated_part",
    replace=" + rotate(q_rope, positions) @ k_rope.transpose(-2, -1)",
    by="",
    says="The rotated part of the score is missing in `forward`.",
    hint="A score is the sum of two dot products.",
)
edit(
    L,
    "not_causal",
    replace="positions[:, None] >= positions)",
    by="positions[:, None] >= 0 * positions)",
    says="`forward` sees the future.",
    hint="Which positions may position i read?",
)
edit(
    L,
    "positions_start_anew",
    replace="positions[past:])",
    by="positions[: x_t.shape[1]])",
    count=2,
    says="New positions are rotated as if the text began with them.",
    hint="At which position does the first new token stand?",
)
edit(
    L,
    "cached_key_not_rotated",
    replace="rotate(self.k_rope_proj(x_t), positions[past:])",
    by="self.k_rope_proj(x_t)",
    says="`decode` caches the shared key without rotating it.",
    hint="The cache holds rotated keys.",
)
edit(
    L,
    "future_seen_while_decoding",
    replace="positions[past:, None] >= positions)",
    by="positions[past:, None] >= 0 * positions)",
    says="Inside a chunk, `decode` lets positions see those behind them.",
    hint="A chunk has a future too.",
)
edit(
    L,
    "top_left_mask",
    replace="positions[past:, None] >= positions)",
    by="positions[: x_t.shape[1], None] >= positions)",
    says="The mask of `decode` starts at the top left: new positions see only the beginning of the text.",
    hint="Which rows of the whole text's mask belong to the new positions?",
)
edit(
    L,
    "keys_expanded_while_decoding",
    replace="""        carried = torch.einsum("bhnd,hdc->bhnc", q, k_up)
        scores = torch.einsum("bhnc,bjc->bhnj", carried, latent) +""",
    by="""        keys = torch.einsum("bjc,hdc->bhjd", latent, k_up)
        scores = q @ keys.transpose(-2, -1) +""",
    says="The values are right, but `decode` makes the keys of all heads for all of the past at every step.",
    hint="Move the up-projection to the other side of the dot product.",
)
edit(
    L,
    "values_from_the_key_layer",
    replace="split_heads(self.v_up_proj(latent), self.heads)",
    by="split_heads(self.k_up_proj(latent), self.heads)",
    says="`forward` makes its values with `k_up_proj`.",
    hint="Keys and values share the latent, not the way up.",
)
edit(
    L,
    "only_new_positions_cached",
    replace="(latent, k_rope)\n",
    by="(latent[:, past:], k_rope[:, past:])\n",
    says="`decode` returns the new positions only; the old ones are lost.",
    hint="What will the next call need?",
)
edit(
    L,
    "cache_put_behind",
    replace="torch.cat([cache[0], latent], dim=1), torch.cat([cache[1], k_rope], dim=1)",
    by="torch.cat([latent, cache[0]], dim=1), torch.cat([k_rope, cache[1]], dim=1)",
    says="New positions are put in front of the old ones.",
    hint="In which order does the text run?",
)
edit(
    L,
    "latent_detached",
    replace="latent = self.kv_down_proj(x)",
    by="latent = self.kv_down_proj(x).detach()",
    says="The values are right, but the latent of `forward` is cut off from autograd.",
    hint="Look for `detach`, `.data` or `no_grad`.",
)
edit(
    L,
    "odd_rope_dim_accepted",
    replace="if d_model % heads or rope_dim % 2:",
    by="if d_model % heads:",
    says="An odd rope_dim is not refused.",
    hint="Rotation turns pairs.",
)

# --- drop_heads ------------------------------------------------------------------------------------------------------


@alternative("drop_heads")
def example_by_example(head_outputs, p, generator):
    if p < 0 or p >= 1:
        raise ValueError("p must lie in [0, 1)")
    *lead, heads, seq, size = head_outputs.shape
    numbers = torch.rand(*lead, heads, generator=generator).reshape(-1, heads)
    flat = head_outputs.reshape(-1, heads, seq, size)
    results = []
    for row, example in zip(numbers, flat, strict=True):
        kept = row >= p
        if not kept.any():
            kept[row.argmax()] = True
        results.append(torch.where(kept[:, None, None], example * (heads / int(kept.sum())), 0.0))
    return torch.stack(results).reshape(head_outputs.shape)


H = "drop_heads"
KEPT = "kept = chance >= chance.amax(dim=-1, keepdim=True).clamp(max=p)"
edit(
    H,
    "not_rescaled",
    replace="kept.shape[-1] * kept / kept.sum(dim=-1, keepdim=True)",
    by="1.0 * kept",
    says="The heads that stay are not scaled up, so the sum shrinks with every head dropped.",
    hint="By which factor has the number of heads shrunk?",
)
edit(
    H,
    "rescaled_by_the_share",
    replace="kept.shape[-1] * kept / kept.sum(dim=-1, keepdim=True)",
    by="kept / (1 - p)",
    says="You scale by 1 / (1 − p), as dropout does; here it is heads over heads kept, example by example.",
    hint="How many heads *were* kept in this example?",
)
edit(
    H,
    "all_heads_may_go",
    replace=KEPT,
    by="kept = chance >= p",
    says="An example can lose all of its heads, and then the factor is infinite or everything is 0.",
    hint="What stays when every number is below p?",
)
edit(
    H,
    "smallest_number_stays",
    replace=KEPT,
    by=(
        "kept = chance >= p\n"
        "    kept = kept | (~kept.any(dim=-1, keepdim=True) & (chance == chance.amin(dim=-1, keepdim=True)))"
    ),
    says="Where all heads would go, you keep the one with the smallest number; the contract says the largest.",
    hint="Which head was nearest to staying?",
)
edit(
    H,
    "first_head_stays",
    replace=KEPT,
    by="kept = chance >= p\n    kept[..., 0] = kept[..., 0] | ~kept.any(dim=-1)",
    says="Where all heads would go, you keep head 0; the contract says the one with the largest number.",
    hint="Which head was nearest to staying?",
)
edit(
    H,
    "share_inverted",
    replace=KEPT,
    by="kept = chance <= chance.amin(dim=-1, keepdim=True).clamp(min=p)",
    says="You keep where the number is small: p is the share to drop, and a head goes where its number is less than p.",
    hint="With p = 0 nothing is dropped.",
)
edit(
    H,
    "same_heads_for_all",
    replace="chance = torch.rand(head_outputs.shape[:-2], generator=generator)",
    by="chance = torch.rand(head_outputs.shape[-3], generator=generator).expand(head_outputs.shape[:-2])",
    says="The same heads are dropped in every example; each example draws for itself.",
    hint="How many numbers does the contract draw?",
)
edit(
    H,
    "elements_dropped",
    replace="""    kept = kept.to(head_outputs)
    scale = kept.shape[-1] * kept / kept.sum(dim=-1, keepdim=True)
    return head_outputs * scale[..., None, None]""",
    by="    return nn.functional.dropout(head_outputs, p)",
    says="You drop single numbers, as plain dropout does; whole heads should go.",
    hint="One number decides about a whole head.",
)
edit(
    H,
    "positions_drawn_too",
    replace="""chance = torch.rand(head_outputs.shape[:-2], generator=generator)
    kept = chance >= chance.amax(dim=-1, keepdim=True).clamp(max=p)
    kept = kept.to(head_outputs)
    scale = kept.shape[-1] * kept / kept.sum(dim=-1, keepdim=True)
    return head_outputs * scale[..., None, None]""",
    by="""chance = torch.rand(head_outputs.shape[:-1], generator=generator)
    kept = chance >= chance.amax(dim=-2, keepdim=True).clamp(max=p)
    kept = kept.to(head_outputs)
    scale = kept.shape[-2] * kept / kept.sum(dim=-2, keepdim=True)
    return head_outputs * scale[..., None]""",
    says="You draw for every position; a head goes or stays with all of its positions.",
    hint="How many numbers does the contract draw?",
)
edit(
    H,
    "generator_ignored",
    replace="head_outputs.shape[:-2], generator=generator)",
    by="head_outputs.shape[:-2])",
    says="You draw from the global source of chance, so a run cannot be repeated with the generator.",
    hint="Where do you use `generator`?",
)
edit(
    H,
    "p_of_one_accepted",
    replace="if not 0 <= p < 1:",
    by="if not 0 <= p <= 1:",
    says="p = 1 would drop everything and is not refused.",
    hint="p is a share below 1.",
)
edit(
    H,
    "factors_in_float32",
    replace="scale = kept.shape[-1] * kept / kept.sum(dim=-1, keepdim=True)",
    by="scale = kept.shape[-1] * kept.float() / kept.float().sum(dim=-1, keepdim=True)",
    says="The right heads stay, but your factors are float32 numbers: float64 outputs keep seven digits only.",
    hint="Divide two integer tensors and look at the dtype of the quotient. Which dtype do the head outputs have?",
)
edit(
    H,
    "written_in_place",
    replace="return head_outputs * scale[..., None, None]",
    by="return head_outputs.data.mul_(scale[..., None, None])",
    says="You write into what came in.",
    hint="An operation that ends with _ changes its tensor.",
)

# --- head_importance -------------------------------------------------------------------------------------------------


@alternative("head_importance")
def products_by_einsum(head_outputs, upstream):
    felt = torch.einsum("...hsd,...hsd->...h", head_outputs, upstream)
    return felt.abs().reshape(-1, felt.shape[-1]).mean(0)


J = "head_importance"
FELT = "felt = (head_outputs * upstream).sum(dim=(-2, -1)).abs()"
edit(
    J,
    "absolute_value_first",
    replace=FELT,
    by="felt = (head_outputs * upstream).abs().sum(dim=(-2, -1))",
    says="You take absolute values before the sum; inside one example, gains and losses may cancel.",
    hint="What happens to one example's loss if the whole head goes?",
)
edit(
    J,
    "absolute_value_last",
    replace="""felt = (head_outputs * upstream).sum(dim=(-2, -1)).abs()
    return felt.flatten(0, -2).mean(dim=0)""",
    by="""felt = (head_outputs * upstream).sum(dim=(-2, -1))
    return felt.flatten(0, -2).mean(dim=0).abs()""",
    says="You average over the examples before the absolute value, so that examples cancel each other.",
    hint="A head that helps one example and harms another matters to both.",
)
edit(
    J,
    "no_absolute_value",
    replace=".sum(dim=(-2, -1)).abs()",
    by=".sum(dim=(-2, -1))",
    says="The absolute value is missing.",
    hint="An importance is not negative.",
)
edit(
    J,
    "mean_over_positions",
    replace=".sum(dim=(-2, -1))",
    by=".mean(dim=(-2, -1))",
    says="You average over positions and columns; the inner product sums.",
    hint="⟨a, b⟩ = Σ a b.",
)
edit(
    J,
    "sum_over_examples",
    replace=".mean(dim=0)",
    by=".sum(dim=0)",
    says="You sum over the examples; their mean is asked for.",
    hint="Does your number grow with the batch?",
)
edit(
    J,
    "columns_only",
    replace=FELT,
    by="felt = (head_outputs * upstream).sum(dim=-1).abs().sum(dim=-1)",
    says="You take the absolute value at each position; the sum runs over positions too.",
    hint="A head goes as a whole, with all positions.",
)
edit(
    J,
    "gradient_only",
    replace="(head_outputs * upstream)",
    by="upstream",
    says="Only the gradient counts in your result; a head that hands over nothing would seem important.",
    hint="The change of the loss is gradient times change of the output.",
)
edit(
    J,
    "size_of_the_head",
    replace="(head_outputs * upstream)",
    by="(head_outputs * head_outputs)",
    says="You measure how large the head is, not what the loss feels.",
    hint="Where is `upstream` used?",
)
edit(
    J,
    "per_position",
    replace=FELT + "\n    return felt.flatten(0, -2).mean(dim=0)",
    by="felt = (head_outputs * upstream).sum(dim=(-3, -1)).abs()\n    return felt.flatten(0, -2).mean(dim=0)",
    says="You sum over the heads and keep the positions.",
    hint="Which axis should be left?",
)
edit(
    J,
    "one_batch_axis_only",
    replace="felt.flatten(0, -2).mean(dim=0)",
    by="felt.mean(dim=0)",
    says="With two batch axes one of them is left over.",
    hint="All axes before the heads hold examples.",
)
edit(
    J,
    "normalised",
    replace="return felt.flatten(0, -2).mean(dim=0)",
    by="felt = felt.flatten(0, -2).mean(dim=0)\n    return felt / felt.sum()",
    says="You scale the importances to sum to one; the contract does not.",
    hint="What does the formula divide by?",
)

# --- qk_norm ---------------------------------------------------------------------------------------------------------


@alternative("qk_norm")
def by_vector_norm(q, k, q_gain, k_gain, eps=1e-6):
    def one(x, gain):
        power = torch.linalg.vector_norm(x, dim=-1, keepdim=True) ** 2 / x.shape[-1]
        return gain * x / torch.sqrt(power + eps)

    return one(q, q_gain), one(k, k_gain)


N = "qk_norm"
edit(
    N,
    "euclidean_norm",
    replace=".square().mean(",
    by=".square().sum(",
    count=2,
    says="You divide by the Euclidean norm; the root *mean* square is √head_dim times smaller.",
    hint="Is it the sum or the mean of squares?",
)
edit(
    N,
    "layer_norm",
    replace="q = q * (",
    by="q, k = q - q.mean(dim=-1, keepdim=True), k - k.mean(dim=-1, keepdim=True)\n    q = q * (",
    says="You take the mean out first, as LayerNorm does; RMS norm does not.",
    hint="Which of the two steps of LayerNorm is left out?",
)
edit(
    N,
    "no_gain",
    replace="return q * q_gain, k * k_gain",
    by="return q, k",
    says="The gains are not used.",
    hint="Two arguments have no influence on your result.",
)
edit(
    N,
    "one_gain_for_both",
    replace="k * k_gain",
    by="k * q_gain",
    says="Queries and keys get the same gain.",
    hint="Where is `k_gain` used?",
)
edit(
    N,
    "gain_plus_one",
    replace="q * q_gain, k * k_gain",
    by="q * (1 + q_gain), k * (1 + k_gain)",
    says="You multiply by 1 + gain, as Gemma does; here the gain is the factor itself.",
    hint="With a gain of 1 the norm is plain.",
)
edit(
    N,
    "eps_outside_the_root",
    replace="(q.square().mean(dim=-1, keepdim=True) + eps).rsqrt()",
    by="(1 / (q.square().mean(dim=-1, keepdim=True).sqrt() + eps))",
    says="For the queries eps stands outside the root.",
    hint="Small rows feel the difference.",
)
edit(
    N,
    "eps_ignored",
    replace=" + eps)",
    by=" + 1e-6)",
    count=2,
    says="`eps` has no effect.",
    hint="Call your function with a large eps.",
)
edit(
    N,
    "no_eps",
    replace=" + eps)",
    by=")",
    count=2,
    says="Without eps a row of zeros becomes NaN.",
    hint="0 / 0 is NaN.",
)
edit(
    N,
    "over_positions",
    replace="dim=-1",
    by="dim=-2",
    count=2,
    says="You take the mean over positions; each row is normed by itself.",
    hint="Along which axis do the columns of a head run?",
)
edit(
    N,
    "over_heads_too",
    replace=".mean(dim=-1, keepdim=True)",
    by=".mean(dim=tuple(range(1, q.ndim)) if q.ndim > 2 and q.ndim == k.ndim else -1, keepdim=True)",
    count=2,
    says="You norm all heads and positions of an example together.",
    hint="Each row of each head is normed by itself.",
)
edit(
    N,
    "keys_not_normed",
    replace="k = k * (k.square().mean(dim=-1, keepdim=True) + eps).rsqrt()",
    by="k = k",
    says="The keys are not normed.",
    hint="The norm is called QK norm.",
)
edit(
    N,
    "norm_detached",
    replace="q.square()",
    by="q.detach().square()",
    says="The values are right, but the norm of the queries is cut off from autograd.",
    hint="Look for `detach`.",
)

# --- softcap ---------------------------------------------------------------------------------------------------------


@alternative("softcap")
def through_sigmoid(scores, cap):
    if cap <= 0:
        raise ValueError("cap")
    return cap * (2 * torch.sigmoid(2 * scores / cap) - 1)


S = "softcap"
edit(
    S,
    "clamped",
    replace="cap * torch.tanh(scores / cap)",
    by="scores.clamp(-cap, cap)",
    says="You clip: above the cap all scores become equal and their gradient is 0.",
    hint="The bend should be smooth.",
)
edit(
    S,
    "not_divided",
    replace="scores / cap",
    by="scores",
    says="tanh sees the raw scores, so everything above 2 is as good as saturated.",
    hint="What should small scores become?",
)
edit(
    S,
    "not_multiplied",
    replace="cap * torch.tanh",
    by="torch.tanh",
    says="Your scores end between −1 and 1.",
    hint="What should small scores become?",
)
edit(
    S,
    "multiplied_inside",
    replace="scores / cap",
    by="scores * cap",
    says="You multiply inside tanh where the formula divides.",
    hint="A score equal to the cap has tanh(1).",
)
edit(
    S,
    "sigmoid_for_tanh",
    replace="torch.tanh(scores / cap)",
    by="torch.sigmoid(scores / cap)",
    says="You use the sigmoid: all scores become positive.",
    hint="What should a score of 0 become?",
)
edit(
    S,
    "softsign_for_tanh",
    replace="cap * torch.tanh(scores / cap)",
    by="scores / (1 + scores.abs() / cap)",
    says="You bend with s / (1 + |s| / cap), which starts to bend much earlier than tanh.",
    hint="Which function does the contract name?",
)
edit(
    S,
    "arctan_for_tanh",
    replace="torch.tanh(scores / cap)",
    by="torch.atan(scores / cap)",
    says="You bend with arctan, which ends at π/2 · cap.",
    hint="Which function does the contract name?",
)
edit(
    S,
    "negative_cap_accepted",
    replace="if not cap > 0:",
    by="if cap == 0:",
    says="A negative cap is not refused.",
    hint="Which caps make no sense?",
)
edit(
    S,
    "zero_cap_accepted",
    replace="if not cap > 0:",
    by="if cap < 0:",
    says="A cap of 0 is not refused.",
    hint="Which caps make no sense?",
)
edit(
    S,
    "by_exponentials",
    replace="cap * torch.tanh(scores / cap)",
    by="cap * (torch.exp(2 * scores / cap) - 1) / (torch.exp(2 * scores / cap) + 1)",
    says="You write tanh as a quotient of exponentials, which overflow for large scores.",
    hint="∞ / ∞ is NaN.",
)
edit(
    S,
    "in_place",
    replace="torch.tanh(scores / cap)",
    by="scores.data.div_(cap).tanh()",
    says="You write into the scores that came in.",
    hint="An operation that ends with _ changes its tensor.",
)
edit(
    S,
    "detached",
    replace="torch.tanh(scores / cap)",
    by="torch.tanh(scores.detach() / cap)",
    says="The values are right, but the scores are cut off from autograd.",
    hint="Look for `detach`.",
)

# --- sink_softmax ----------------------------------------------------------------------------------------------------


@alternative("sink_softmax")
def softmax_times_a_share(scores, sink, mask=None):
    if mask is not None:
        mask = mask.unsqueeze(1) if (mask.ndim, scores.ndim) == (3, 4) else mask
        scores = torch.where(mask, scores, -torch.inf)
    own = sink[:, None, None]
    top = torch.maximum(scores.amax(dim=-1, keepdim=True), own).detach()
    parts = torch.exp(scores - top)
    return parts / (parts.sum(dim=-1, keepdim=True) + torch.exp(own - top))


K = "sink_softmax"
LAST = "torch.cat([hidden, column], dim=-1).softmax(dim=-1)[..., :-1] * every"
edit(
    K,
    "sink_ignored",
    replace=LAST,
    by="hidden.softmax(dim=-1) * every",
    says="This is the plain softmax: the sink has no effect.",
    hint="What else stands in the denominator?",
)
edit(
    K,
    "sink_column_returned",
    replace="[..., :-1] * every",
    by="",
    says="The sink's own weight comes out as one more column.",
    hint="How many keys are there?",
)
edit(
    K,
    "sink_first_last_dropped",
    replace="torch.cat([hidden, column], dim=-1)",
    by="torch.cat([column, hidden], dim=-1)",
    says="You put the sink in front and cut off the last column, so everything is shifted by one.",
    hint="Cut off the column that you have added.",
)
edit(
    K,
    "renormalised",
    replace="    return " + LAST,
    by="    weights = " + LAST + "\n    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-30)",
    says="You divide by the sum of the row again, and that takes the sink out once more.",
    hint="Should rows sum to one?",
)
edit(
    K,
    "sink_not_exponentiated",
    replace="    return " + LAST,
    by=(
        "    terms = torch.exp(hidden - hidden.amax(dim=-1, keepdim=True)) * every\n"
        "    return terms / (terms.sum(dim=-1, keepdim=True) + sink[:, None, None].abs())"
    ),
    says="The sink itself, not its exponential, stands in your denominator.",
    hint="The sink is a logit.",
)
edit(
    K,
    "one_is_added",
    replace="column = sink[:, None, None]",
    by="column = (0 * sink)[:, None, None]",
    says="You add exp(0) = 1 for every head; each head has a learned logit.",
    hint="Where is `sink` used?",
)
edit(
    K,
    "sink_along_the_queries",
    replace="sink[:, None, None].expand(*scores.shape[:-1], 1)",
    by="(sink[:, None] if scores.shape[-2] == len(sink) else sink[:, None, None]).expand(*scores.shape[:-1], 1)",
    says="Where there are as many queries as heads, your sinks run along the queries.",
    hint="Which axis of the scores holds the heads?",
)
edit(
    K,
    "overflows",
    replace="    return " + LAST,
    by=(
        "    terms = torch.exp(hidden) * every\n"
        "    return terms / (terms.sum(dim=-1, keepdim=True) + torch.exp(column))"
    ),
    says="You exponentiate raw scores, which overflow.",
    hint="Which number, taken from all terms, makes the largest exponent 0?",
)
edit(
    K,
    "masked_after_the_softmax",
    replace="hidden = scores.masked_fill(~every, torch.finfo(scores.dtype).min)",
    by="hidden = scores",
    says="You mask after the softmax, so hidden scores still stand in the denominator.",
    hint="What is hidden must be missing from the denominator as well.",
)
edit(
    K,
    "mask_inverted",
    replace="scores.masked_fill(~every, torch.finfo(scores.dtype).min)\n    return " + LAST,
    by="""scores if mask is None else scores.masked_fill(every, torch.finfo(scores.dtype).min)
    every = every if mask is None else ~every
    return """
    + LAST,
    says="You hide what may be read. True means: may attend.",
    hint="What does True mean in the contract?",
)
edit(
    K,
    "mask_ignored",
    replace="torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device) if mask is None else mask",
    by="torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)",
    says="`mask` has no effect.",
    hint="Which line of yours reads the mask?",
)
edit(
    K,
    "mask_without_head_axis",
    replace="every[:, None] if every.ndim == 3 and scores.ndim == 4 else every",
    by="every",
    says="A 3-D mask of the examples is read as one mask for each head.",
    hint="Between which two of its axes does a 3-D mask gain one?",
)
edit(
    K,
    "sink_detached",
    replace="column = sink[:, None, None]",
    by="column = sink.detach()[:, None, None]",
    says="The values are right, but the sink gets no gradient, so it cannot be learned.",
    hint="Look for `detach`.",
)

# --- attention_parameters --------------------------------------------------------------------------------------------


@alternative("attention_parameters")
def layer_by_layer(d_model, heads, kv_heads, bias):
    size, rest = divmod(d_model, heads)
    if rest or heads % kv_heads:
        raise ValueError("these numbers do not divide")
    total = 0
    for out in (heads * size, kv_heads * size, kv_heads * size, d_model):
        total += d_model * out + (out if bias else 0)
    return total


A = "attention_parameters"
TOTAL = "2 * (d_model + kv_dim) * (d_model + bool(bias))"
edit(
    A,
    "keys_as_wide_as_queries",
    replace=TOTAL,
    by="4 * d_model * (d_model + bool(bias))",
    says="You count four full layers; keys and values of fewer heads are narrower.",
    hint="How wide are kv_heads heads together?",
)
edit(
    A,
    "no_output_projection",
    replace=TOTAL,
    by="(d_model + 2 * kv_dim) * (d_model + bool(bias))",
    says="The output projection is missing.",
    hint="There are four layers.",
)
edit(
    A,
    "bias_ignored",
    replace=TOTAL,
    by="2 * (d_model + kv_dim) * d_model",
    says="Biases are not counted.",
    hint="A bias is as long as the output of its layer.",
)
edit(A, "bias_always", replace="bool(bias)", by="1", says="Biases are always counted.", hint="What is `bias` for?")
edit(
    A,
    "bias_as_wide_as_the_input",
    replace=TOTAL,
    by="2 * (d_model + kv_dim) * d_model + (4 * d_model if bias else 0)",
    says="You count d_model for each bias; those of keys and values are shorter.",
    hint="A bias is as long as the output of its layer.",
)
edit(
    A,
    "output_without_bias",
    replace=TOTAL,
    by="2 * (d_model + kv_dim) * d_model + ((d_model + 2 * kv_dim) if bias else 0)",
    says="The bias of the output projection is missing.",
    hint="Four layers have a bias.",
)
edit(
    A,
    "times_the_heads",
    replace=TOTAL,
    by=TOTAL + " * heads",
    says="You multiply by the number of heads once more; the heads are inside the width.",
    hint="How wide is one head?",
)
edit(
    A,
    "one_key_head",
    replace="d_model // heads * kv_heads",
    by="d_model // heads",
    says="You count one key head whatever kv_heads says.",
    hint="How wide are kv_heads heads together?",
)
edit(
    A,
    "only_keys_shared",
    replace=TOTAL,
    by="(3 * d_model + kv_dim) * (d_model + bool(bias))",
    says="Only one of keys and values becomes narrower in your count; both do.",
    hint="Which two layers are shared?",
)
edit(
    A,
    "through_floats",
    replace="return " + TOTAL,
    by="return int(2.0 * (d_model + kv_dim) * (d_model + bool(bias)))",
    says="Your count goes through a float, which has only 16 digits.",
    hint="Stay with integers.",
)
edit(
    A,
    "no_check",
    replace="if d_model % heads or heads % kv_heads:",
    by="if d_model % heads:",
    says="A number of key heads that does not divide the heads is not refused.",
    hint="Two divisions have to come out even.",
)

# --- attention_multiplications ---------------------------------------------------------------------------------------


@alternative("attention_multiplications")
def head_by_head(seq, d_model, heads):
    size, rest = divmod(d_model, heads)
    if rest:
        raise ValueError("heads must divide d_model")
    return seq * d_model * d_model * 4, heads * (seq * size * seq), heads * (seq * seq * size)


X = "attention_multiplications"
COUNTS = "4 * seq * d_model**2, seq**2 * d_model, seq**2 * d_model"
edit(
    X,
    "three_projections",
    replace="4 * seq",
    by="3 * seq",
    says="The output projection is missing.",
    hint="There are four projections.",
)
edit(
    X,
    "times_the_heads",
    replace=COUNTS,
    by="4 * seq * d_model**2, heads * seq**2 * d_model, heads * seq**2 * d_model",
    says="You count full width for each head; a head is only d_model / heads wide.",
    hint="How wide is a query inside its head?",
)
edit(
    X,
    "one_head_only",
    replace=COUNTS,
    by="4 * seq * d_model**2, seq**2 * (d_model // heads), seq**2 * (d_model // heads)",
    says="You count the scores of one head only.",
    hint="How many maps are there?",
)
edit(
    X,
    "projections_per_head",
    replace="4 * seq * d_model**2",
    by="4 * seq * d_model**2 // heads",
    says="You count the projections of one head only.",
    hint="All heads together are d_model wide.",
)
edit(
    X,
    "operations_for_multiplications",
    replace=COUNTS,
    by="8 * seq * d_model**2, 2 * seq**2 * d_model, 2 * seq**2 * d_model",
    says="You count additions too: an (m, n) by (n, k) product takes m·n·k multiplications.",
    hint="Operations are twice the multiplications.",
)
edit(
    X,
    "scores_of_the_weights",
    replace="seq**2 * d_model, seq**2 * d_model",
    by="seq * d_model**2, seq**2 * d_model",
    says="Your scores cost seq · d_model²; they compare every position with every other.",
    hint="Write the shapes of Q and Kᵀ side by side.",
)
edit(
    X,
    "weighted_sum_counts_scores",
    replace=COUNTS,
    by="4 * seq * d_model**2, seq**2 * d_model, heads * seq**2",
    says="Your weighted sum forgets the width of the values.",
    hint="(seq, seq) by (seq, head_dim), for every head.",
)
edit(
    X,
    "summed_up",
    replace="return " + COUNTS,
    by="return 4 * seq * d_model**2 + 2 * seq**2 * d_model",
    says="You return the sum; the three parts are asked for.",
    hint="Read what comes out in the contract.",
)
edit(
    X,
    "scale_counted",
    replace="seq**2 * d_model, seq**2 * d_model",
    by="seq**2 * d_model + heads * seq**2, seq**2 * d_model",
    says="You count the scale too; the contract leaves it out.",
    hint="Only products of matrices are counted.",
)
edit(
    X,
    "through_floats",
    replace=COUNTS,
    by="int(4.0 * seq * d_model**2), int(1.0 * seq**2 * d_model), int(1.0 * seq**2 * d_model)",
    says="Your count goes through a float, which has only 16 digits.",
    hint="Stay with integers.",
)
edit(
    X,
    "no_check",
    replace="if d_model % heads:",
    by="if False:",
    says="A number of heads that does not divide d_model is not refused.",
    hint="When should ValueError be raised?",
)

# --- kv_cache_bytes --------------------------------------------------------------------------------------------------


@alternative("kv_cache_bytes")
def as_a_product(layers, kv_heads, head_dim, seq, batch, bytes_per_element):
    return math.prod((2, layers, kv_heads, head_dim, seq, batch, bytes_per_element))


B = "kv_cache_bytes"
BYTES = "2 * layers * kv_heads * head_dim * seq * batch * bytes_per_element"
edit(
    B,
    "keys_only",
    replace="2 * layers",
    by="layers",
    says="You count keys without values, or the other way round.",
    hint="What does the cache keep for each position?",
)
edit(
    B, "one_layer", replace="2 * layers *", by="2 *", says="You count one layer.", hint="Which number do you leave out?"
)
edit(
    B, "batch_forgotten", replace=" * batch", by="", says="`batch` has no effect.", hint="Every text has its own past."
)
edit(
    B,
    "head_width_forgotten",
    replace=" * head_dim",
    by="",
    says="`head_dim` has no effect.",
    hint="Which number do you leave out?",
)
edit(
    B,
    "heads_forgotten",
    replace=" * kv_heads",
    by="",
    says="`kv_heads` has no effect.",
    hint="Which number do you leave out?",
)
edit(
    B,
    "elements_for_bytes",
    replace=" * bytes_per_element",
    by="",
    says="You count numbers, not bytes.",
    hint="How many bytes does one number take?",
)
edit(
    B,
    "seq_squared",
    replace=" * seq *",
    by=" * seq**2 *",
    says="Your cache grows with the square of the length; the *scores* do that.",
    hint="What is kept for each position?",
)
edit(
    B,
    "always_two_bytes",
    replace=" * bytes_per_element",
    by=" * 2",
    says="You always count two bytes for a number.",
    hint="Where is `bytes_per_element` used?",
)
edit(
    B,
    "bits_for_bytes",
    replace=" * bytes_per_element",
    by=" * 8 * bytes_per_element",
    says="You count bits.",
    hint="What does the name of the function say?",
)
edit(
    B,
    "through_floats",
    replace="return " + BYTES,
    by="return int(2.0 * layers * kv_heads * head_dim * seq * batch * bytes_per_element)",
    says="Your count goes through a float, which has only 16 digits.",
    hint="Stay with integers.",
)
