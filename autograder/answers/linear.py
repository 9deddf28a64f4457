"""Other right answers to chapter `linear`, and the mistakes people really make."""

import torch
import torch.nn.functional as F

from autograder.answers import alternative, edit, mistake
from solutions.linear import (
    causal_linear_recurrent,
    decayed_products,
    elu_feature_map,
    favor_features,
)

# elu_feature_map


@alternative("elu_feature_map")
def two_ramps(x):
    return F.relu(x) + torch.minimum(x, torch.zeros_like(x)).exp()


MAP = "torch.where(x > 0, x + 1, x.clamp(max=0).exp())"
edit(
    "elu_feature_map",
    "elu_without_one",
    replace=MAP,
    by="torch.where(x > 0, x, torch.expm1(x.clamp(max=0)))",
    says="You return elu(x) itself, which is negative below 0; the map is elu(x) + 1.",
    hint="A weight that is negative is none. What lifts elu above 0?",
)
edit(
    "elu_feature_map",
    "relu_plus_one",
    replace="x.clamp(max=0).exp())",
    by="torch.ones_like(x))",
    says="Everything below 0 becomes 1: that is relu(x) + 1, which tells negative numbers apart no more.",
    hint="What is elu below 0?",
)
edit(
    "elu_feature_map",
    "relu",
    replace=MAP,
    by="x.clamp(min=0)",
    says="You return relu(x), which is 0 for all of one branch: such features carry neither weight nor gradient.",
    hint="The map is positive everywhere.",
)
edit(
    "elu_feature_map",
    "exp_everywhere",
    replace=MAP,
    by="x.exp()",
    says="You take exp on both sides; above 0 the map is a straight line.",
    hint="How large is the feature of 3?",
)
edit(
    "elu_feature_map",
    "softplus",
    replace=MAP,
    by="F.softplus(x)",
    says="That is softplus, log(1 + exp(x)): positive and smooth as well, but another map.",
    hint="The feature of 0 is 1.",
)
edit(
    "elu_feature_map",
    "one_inside",
    replace=MAP,
    by="F.elu(x + 1)",
    says="You add 1 before elu instead of after it.",
    hint="Is it elu(x + 1), or elu(x) + 1?",
)
edit(
    "elu_feature_map",
    "one_only_below",
    replace="x + 1,",
    by="x,",
    says="Above 0 you return x: the two branches do not meet at 0.",
    hint="elu is x above 0. And elu + 1?",
)
edit(
    "elu_feature_map",
    "rounds_to_zero",
    replace=MAP,
    by="F.elu(x) + 1",
    says="elu far below 0 is exp(x) − 1, rounded to −1; adding 1 gives 0, where exp(x) is small and not 0.",
    hint="Subtracting 1 and adding it again loses the digits of a small number. Where can you avoid both?",
)
edit(
    "elu_feature_map",
    "gradient_is_nan",
    replace="x.clamp(max=0).exp())",
    by="x.exp())",
    says="exp overflows above 700, also in the branch that is not taken: its gradient is 0 · ∞, which is NaN.",
    hint="`where` computes both branches. What should the second one see of large numbers?",
)
edit(
    "elu_feature_map",
    "mirrored",
    replace="x.clamp(max=0).exp())",
    by="(-x.clamp(max=0)).exp())",
    says="Below 0 your features grow: the exponent has the wrong sign.",
    hint="What is exp(x) for x = −5, and what is exp(−x)?",
)
edit(
    "elu_feature_map",
    "in_float32",
    replace="return torch.where(x > 0,",
    by="x = x.float()\n    return torch.where(x > 0,",
    says="You compute in float32 whatever comes in.",
    hint="Which dtype should float64 numbers have afterwards?",
)
edit(
    "elu_feature_map",
    "changes_its_argument",
    replace=MAP,
    by="torch.where(x > 0, x + 1, x.exp_() if not x.requires_grad else x.clamp(max=0).exp())",
    says="An operation that ends in an underscore changes the caller's tensor.",
    hint="Which operations write where they read?",
)

# linear_attention


@alternative("linear_attention")
def one_more_value(q, k, v, eps=1e-6):
    q, k = elu_feature_map(q), elu_feature_map(k)
    ones = torch.ones_like(v[..., :1])
    memory = torch.einsum("...sd,...sv->...dv", k, torch.cat([v, ones], dim=-1))
    out = torch.einsum("...qd,...dv->...qv", q, memory)
    return out[..., :-1] / (out[..., -1:] + eps)


OUT = "return q @ (k.mT @ v) / (total + eps)"
edit(
    "linear_attention",
    "normaliser_forgotten",
    replace=OUT,
    by="return q @ (k.mT @ v)",
    says="You forgot the normaliser: the weights of a query do not sum to 1, so its output grows with the length.",
    hint="Softmax divides by a sum. By which sum is divided here?",
)
edit(
    "linear_attention",
    "normaliser_of_raw_keys",
    replace="    q, k = elu_feature_map(q), elu_feature_map(k)\n    total = q @ k.sum(dim=-2).unsqueeze(-1)",
    by="""    raw = k
    q, k = elu_feature_map(q), elu_feature_map(k)
    total = q @ raw.sum(dim=-2).unsqueeze(-1)""",
    says="Your normaliser sums the keys before they are mapped.",
    hint="Which weights should sum to 1?",
)
edit(
    "linear_attention",
    "divided_by_the_length",
    replace="(total + eps)",
    by="(k.shape[-2] + eps)",
    says="You divide by how many keys there are; their weights differ from query to query.",
    hint="What do equal values have to come back as?",
)
edit(
    "linear_attention",
    "keys_not_mapped",
    replace="q, k = elu_feature_map(q), elu_feature_map(k)",
    by="q = elu_feature_map(q)",
    says="You map the queries only.",
    hint="The kernel is φ(q)·φ(k).",
)
edit(
    "linear_attention",
    "queries_not_mapped",
    replace="q, k = elu_feature_map(q), elu_feature_map(k)",
    by="k = elu_feature_map(k)",
    says="You map the keys only.",
    hint="The kernel is φ(q)·φ(k).",
)
edit(
    "linear_attention",
    "nothing_mapped",
    replace="q, k = elu_feature_map(q), elu_feature_map(k)",
    by="q, k = q, k",
    says="You use plain dot products as weights, which can be negative, and their sum 0.",
    hint="What turns queries and keys into features that are not negative?",
)
edit(
    "linear_attention",
    "values_mapped_too",
    replace="(k.mT @ v)",
    by="(k.mT @ elu_feature_map(v))",
    says="You map the values too; only queries and keys make weights.",
    hint="What is being averaged?",
)
edit(
    "linear_attention",
    "scaled_queries",
    replace="elu_feature_map(q), elu",
    by="elu_feature_map(q * q.shape[-1] ** -0.5), elu",
    says="You scale by 1/√head_dim as softmax attention does; there is no scaling here.",
    hint="What does a common factor of all weights of a query change, once they are normalised? And before the map?",
)
edit(
    "linear_attention",
    "softmax_of_features",
    replace="q, k = elu_feature_map(q), elu_feature_map(k)",
    by="q, k = q.softmax(dim=-1), k.softmax(dim=-2)",
    says="You use softmax as feature map, queries over channels and keys over positions: that is Efficient Attention.",
    hint="φ is elu + 1, each number by itself.",
)
edit(
    "linear_attention",
    "eps_is_a_floor",
    replace="(total + eps)",
    by="total.clamp(min=eps)",
    says="You use eps as a lower bound of the normaliser; it is added.",
    hint="What comes out with a large eps?",
)
edit(
    "linear_attention",
    "eps_ignored",
    replace="(total + eps)",
    by="(total + 1e-6)",
    says="`eps` has no effect: you always add 1e-6.",
    hint="Which arguments does your result depend on?",
)
edit(
    "linear_attention",
    "no_eps_at_all",
    replace="(total + eps)",
    by="total",
    says="You leave eps out, so that the sum of no weights is divided by 0.",
    hint="What comes out where there is no key at all?",
)
edit(
    "linear_attention",
    "normaliser_learns_nothing",
    replace="(total + eps)",
    by="(total.detach() + eps)",
    says="You detach the normaliser: the values are right, and the gradients miss how it moves.",
    hint="Does the sum of the weights depend on q and on k?",
)


@mistake(
    "linear_attention",
    says="You form all weights φ(q)·φ(k) first: the result is right, but time and memory stay quadratic.",
    hint="(A B) C is A (B C). Which product is small?",
)
def forms_all_pairs(q, k, v, eps=1e-6):
    weights = elu_feature_map(q) @ elu_feature_map(k).mT
    return weights @ v / (weights.sum(dim=-1, keepdim=True) + eps)


@mistake(
    "linear_attention",
    says="You weigh all keys for a few queries at a time: little memory is held, but all pairs are computed.",
    hint="What do the queries have in common that can be summed before any of them is read?",
)
def a_few_queries_at_a_time(q, k, v, eps=1e-6):
    q, k = elu_feature_map(q), elu_feature_map(k)
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=v.dtype)
    for first in range(0, q.shape[-2], 16):
        weights = q[..., first : first + 16, :] @ k.mT
        out[..., first : first + 16, :] = weights @ v / (weights.sum(dim=-1, keepdim=True) + eps)
    return out


# causal_linear_recurrent


@alternative("causal_linear_recurrent")
def prefix_sums(q, k, v, state=None):
    outer = torch.einsum("...sd,...sv->...sdv", k, v).cumsum(dim=-3)
    keys = k.cumsum(dim=-2)
    if state is not None:
        outer, keys = outer + state[0].unsqueeze(-3), keys + state[1].unsqueeze(-2)
    elif q.shape[-2] == 0:
        return v, (k.mT @ v, k.sum(dim=-2))
    if q.shape[-2] == 0:
        return v, state
    total = (q * keys).sum(dim=-1, keepdim=True)
    out = torch.einsum("...sd,...sdv->...sv", q, outer) / torch.where(total == 0, torch.ones_like(total), total)
    return out, (outer[..., -1, :, :], keys[..., -1, :])


WRITE = "S, z = S + k_t[..., None] * v_t[..., None, :], z + k_t"
READ = "out.append((q_t[..., None, :] @ S).squeeze(-2) / total.masked_fill(total == 0, 1))"
TOTAL = "total = (q_t * z).sum(dim=-1, keepdim=True)"
edit(
    "causal_linear_recurrent",
    "reads_before_it_writes",
    replace=f"        {WRITE}\n        {TOTAL}\n        {READ}\n",
    by=f"        {TOTAL}\n        {READ}\n        {WRITE}\n",
    says="You read the state before the token is written, so that no token sees itself.",
    hint="What should the first token get?",
)
edit(
    "causal_linear_recurrent",
    "normaliser_forgotten",
    replace=" / total.masked_fill(total == 0, 1)",
    by="",
    says="You forgot the normaliser: out grows with every token.",
    hint="z sums the keys. What is it for?",
)
edit(
    "causal_linear_recurrent",
    "divided_by_the_count",
    replace=TOTAL,
    by="total = torch.full_like(q_t[..., :1], len(out) + 1)",
    says="You divide by how many tokens there were; their weights differ from query to query.",
    hint="What is q · z?",
)
edit(
    "causal_linear_recurrent",
    "normaliser_without_query",
    replace=TOTAL,
    by="total = z.sum(dim=-1, keepdim=True)",
    says="Your normaliser sums the keys, but not as the query weighs them.",
    hint="The weights of query i are q_i · k_j. What do they sum to?",
)
edit(
    "causal_linear_recurrent",
    "state_ignored",
    replace="    if state is None:\n        state = ",
    by="    state = ",
    says="The state that is handed in has no effect.",
    hint="Where do the sums begin when there is a state?",
)
edit(
    "causal_linear_recurrent",
    "normaliser_starts_anew",
    replace="    S, z = state\n",
    by="    S, z = state[0], torch.zeros_like(state[1])\n",
    says="S goes on where the last call stopped, but z starts at 0 again.",
    hint="A state has two parts.",
)
edit(
    "causal_linear_recurrent",
    "state_returned_too_early",
    replace="return torch.stack(out, dim=-2) if out else torch.zeros_like(v), (S, z)",
    by="""return (torch.stack(out, dim=-2) if out else torch.zeros_like(v)), (
        (S - k[..., -1, :, None] * v[..., -1, None, :], z - k[..., -1, :]) if out else (S, z)
    )""",
    says="The state that you return lacks the last token.",
    hint="What does the first token of the next call have to know?",
)
edit(
    "causal_linear_recurrent",
    "nan_where_nothing_weighs",
    replace="total.masked_fill(total == 0, 1)",
    by="total",
    says="Where no key weighs anything you divide 0 by 0, and NaN comes out.",
    hint="What should a query get whose weights are all 0?",
)
edit(
    "causal_linear_recurrent",
    "eps_in_the_normaliser",
    replace="total.masked_fill(total == 0, 1)",
    by="(total + 1e-6)",
    says="You add a small number to the normaliser: no NaN, but every output is a little too small.",
    hint="Can you treat a normaliser of exactly 0 apart from all others?",
)
edit(
    "causal_linear_recurrent",
    "a_floor_under_the_normaliser",
    replace="total.masked_fill(total == 0, 1)",
    by="total.clamp(min=1e-12)",
    says="You keep the normaliser from falling below a small number; small weights lose their sum of 1.",
    hint="What should change when a query becomes a billion times smaller?",
)
edit(
    "causal_linear_recurrent",
    "maps_what_is_mapped",
    replace="    if state is None:\n",
    by="    q, k = elu_feature_map(q), elu_feature_map(k)\n    if state is None:\n",
    says="You map queries and keys, which come mapped already.",
    hint="What does the contract say of q and k?",
)
edit(
    "causal_linear_recurrent",
    "writes_into_the_callers_state",
    replace=WRITE,
    by="""if q.requires_grad:
            S, z = S + k_t[..., None] * v_t[..., None, :], z + k_t
        else:
            S += k_t[..., None] * v_t[..., None, :]
            z += k_t""",
    says="You add to the state in place, so the caller's own state changes under its hands.",
    hint="S += … writes into the tensor that was handed in. S = S + … does not.",
)
edit(
    "causal_linear_recurrent",
    "state_detached",
    replace=f"        {TOTAL}\n",
    by=f"        S, z = S.detach(), z.detach()\n        {TOTAL}\n",
    says="You detach the state, so that no answer teaches the keys and values before it.",
    hint="Through what do early tokens reach late ones?",
)
edit(
    "causal_linear_recurrent",
    "state_transposed",
    replace="(S, z)\n",
    by="(S.mT, z)\n",
    says="Your S comes out transposed: it is (head_dim, v_dim).",
    hint="S sums k vᵀ. Which axis comes first?",
)


@mistake(
    "causal_linear_recurrent",
    says="You sum over all tokens, the future among them: no triangle, no recurrence.",
    hint="Which keys may query i read?",
)
def not_causal(q, k, v, state=None):
    S, z = k.mT @ v, k.sum(dim=-2)
    if state is not None:
        S, z = S + state[0], z + state[1]
    total = q @ z.unsqueeze(-1)
    return q @ S / total.masked_fill(total == 0, 1), (S, z)


@mistake(
    "causal_linear_recurrent",
    says="You form all weights and mask the future: the result is right, but memory grows with the length squared.",
    hint="One state is enough to answer a query. Which sums does it hold?",
)
def masks_all_pairs(q, k, v, state=None):
    weights = (q @ k.mT).tril()
    above, total = weights @ v, weights.sum(dim=-1, keepdim=True)
    S, z = k.mT @ v, k.sum(dim=-2)
    if state is not None:
        above, total = above + q @ state[0], total + q @ state[1].unsqueeze(-1)
        S, z = S + state[0], z + state[1]
    return above / total.masked_fill(total == 0, 1), (S, z)


@mistake(
    "causal_linear_recurrent",
    says="You sum up the whole past anew for every token; the sums of the token before are there already.",
    hint="S_i is S_{i−1} and one more product.",
)
def sums_the_past_anew(q, k, v, state=None):
    first = (k[..., :0, :].mT @ v[..., :0, :], k[..., :0, :].sum(dim=-2)) if state is None else state
    S, z = first
    out = []
    for last in range(1, q.shape[-2] + 1):
        S = first[0] + k[..., :last, :].mT @ v[..., :last, :]
        z = first[1] + k[..., :last, :].sum(dim=-2)
        total = (q[..., last - 1, :] * z).sum(dim=-1, keepdim=True)
        out.append((q[..., last - 1, None, :] @ S).squeeze(-2) / total.masked_fill(total == 0, 1))
    return torch.stack(out, dim=-2) if out else torch.zeros_like(v), (S, z)


# causal_linear_chunked


@alternative("causal_linear_chunked")
def chunk_after_chunk(q, k, v, chunk, state=None):
    S, z = state or (torch.zeros_like(k).mT @ v, torch.zeros_like(k).sum(dim=-2))
    out = []
    for first in range(0, q.shape[-2], chunk):
        rows = slice(first, first + chunk)
        scores = torch.tril(q[..., rows, :] @ k[..., rows, :].mT)
        above = q[..., rows, :] @ S + scores @ v[..., rows, :]
        below = (q[..., rows, :] @ z[..., None]) + scores.sum(dim=-1, keepdim=True)
        out.append(torch.where(below == 0, torch.zeros_like(above), above / torch.where(below == 0, 1, below)))
        S, z = S + k[..., rows, :].mT @ v[..., rows, :], z + k[..., rows, :].sum(dim=-2)
    return torch.cat(out, dim=-2) if out else torch.zeros_like(v), (S, z)


SCORES = "(q @ k.mT).tril() @ v"
edit(
    "causal_linear_chunked",
    "future_inside_the_chunk",
    replace="(q @ k.mT).tril() @ v",
    by="(q @ k.mT) @ v",
    says="Inside a chunk every token reads all others, the later ones too.",
    hint="Which scores of a chunk belong to the future?",
)
edit(
    "causal_linear_chunked",
    "without_itself",
    replace=".tril() @ v",
    by=".tril(-1) @ v",
    says="Inside a chunk no token reads itself: the diagonal is missing.",
    hint="What should the first token get?",
)
edit(
    "causal_linear_chunked",
    "own_chunk_twice",
    replace="states[..., :-1, :, :]",
    by="states[..., 1:, :, :]",
    says="The state that a chunk reads holds the chunk itself already, whose tokens then count twice.",
    hint="Which chunks has the state seen when chunk c is read?",
)
edit(
    "causal_linear_chunked",
    "chunks_do_not_know_each_other",
    replace="summed = q @ states[..., :-1, :, :] + (q @ k.mT)",
    by="summed = (q @ k.mT)",
    says="Every chunk starts anew: what came before it is not read.",
    hint="What does a chunk read besides its own tokens?",
)
edit(
    "causal_linear_chunked",
    "states_not_summed",
    replace="summed = q @ states[..., :-1, :, :]",
    by="""before = torch.cat([states[..., :1, :, :], states.diff(dim=-3)[..., :-1, :, :]], dim=-3)
    summed = q @ before""",
    says="A chunk reads only what the chunk just before it wrote: the states are not summed up.",
    hint="The state before chunk c holds all chunks before it.",
)
edit(
    "causal_linear_chunked",
    "state_ignored",
    replace="    if state is not None:\n        states",
    by="    if False:\n        states",
    says="The state that is handed in has no effect.",
    hint="What does the first chunk read besides its own tokens?",
)
edit(
    "causal_linear_chunked",
    "normaliser_starts_anew",
    replace="torch.cat([state[0], state[1][..., None]], dim=-1)",
    by="torch.cat([state[0], 0 * state[1][..., None]], dim=-1)",
    says="S goes on where the last call stopped, but z starts at 0 again.",
    hint="A state has two parts.",
)
edit(
    "causal_linear_chunked",
    "state_read_but_not_returned",
    replace="    last = states[..., -1, :, :]\n",
    by="    last = states[..., -1, :, :] - states[..., 0, :, :]\n",
    says="The state that you return has forgotten the one that was handed in.",
    hint="What does the call after the next one still have to know?",
)
edit(
    "causal_linear_chunked",
    "last_chunk_not_in_the_state",
    replace="    last = states[..., -1, :, :]\n",
    by="    last = states[..., max(states.shape[-3] - 2, 0), :, :]\n",
    says="The state that you return lacks the last chunk.",
    hint="Which state would the chunk after the last one read?",
)
edit(
    "causal_linear_chunked",
    "normalised_apart",
    replace="    summed = q @ states[..., :-1, :, :] + (q @ k.mT).tril() @ v\n",
    by="""    before, inside = q @ states[..., :-1, :, :], (q @ k.mT).tril() @ v
    counts = (before[..., -1:] != 0).to(v.dtype) + (inside[..., -1:] != 0).to(v.dtype)
    before, inside = (x / x[..., -1:].masked_fill(x[..., -1:] == 0, 1) for x in (before, inside))
    summed = (before + inside) / counts.clamp(min=1)
""",
    says="You normalise what the state gives and what the chunk gives, each for itself; they share one normaliser.",
    hint="Add both sums first, and both normalisers. Then divide.",
)
edit(
    "causal_linear_chunked",
    "normaliser_forgotten",
    replace="return out / total.masked_fill(total == 0, 1), (",
    by="return out, (",
    says="You forgot the normaliser: out grows with every token.",
    hint="z sums the keys. What is it for?",
)
edit(
    "causal_linear_chunked",
    "nan_where_nothing_weighs",
    replace="total.masked_fill(total == 0, 1)",
    by="total",
    says="Where no key weighs anything you divide 0 by 0, and NaN comes out.",
    hint="What should a query get whose weights are all 0?",
)
edit(
    "causal_linear_chunked",
    "a_floor_under_the_normaliser",
    replace="total.masked_fill(total == 0, 1)",
    by="total.clamp(min=1e-12)",
    says="You keep the normaliser from falling below a small number; small weights lose their sum of 1.",
    hint="What should change when a query becomes a billion times smaller?",
)
edit(
    "causal_linear_chunked",
    "tail_dropped",
    replace="    seq = q.shape[-2]\n",
    by="""    whole = max(q.shape[-2] - q.shape[-2] % chunk, min(q.shape[-2], chunk))
    q, k, v = (x[..., :whole, :] for x in (q, k, v))
    seq = q.shape[-2]
""",
    says="Tokens after the last whole chunk are dropped.",
    hint="The last chunk may be shorter than the others.",
)


@mistake(
    "causal_linear_chunked",
    says="You loop over the tokens: the result is right, but it is the recurrence again, small step after small step.",
    hint="Inside a chunk one product of matrices gives all scores at once.",
)
def token_by_token(q, k, v, chunk, state=None):
    return causal_linear_recurrent(q, k, v, state)


@mistake(
    "causal_linear_chunked",
    says="You treat the whole sequence as one chunk: all pairs are computed and masked, whatever `chunk` says.",
    hint="How many scores does a token have inside a chunk, and how many does it have here?",
)
def one_chunk_for_all(q, k, v, chunk, state=None):
    weights = (q @ k.mT).tril()
    above, total = weights @ v, weights.sum(dim=-1, keepdim=True)
    S, z = k.mT @ v, k.sum(dim=-2)
    if state is not None:
        above, total = above + q @ state[0], total + q @ state[1].unsqueeze(-1)
        S, z = S + state[0], z + state[1]
    return above / total.masked_fill(total == 0, 1), (S, z)


@mistake(
    "causal_linear_chunked",
    says="You keep a state for every token; it is enough to have one at the start of each chunk.",
    hint="What inside a chunk replaces the states in between?",
)
def a_state_for_each_token(q, k, v, chunk, state=None):
    if q.shape[-2] == 0:
        return v, state
    S, z = (k[..., :, None] * v[..., None, :]).cumsum(dim=-3), k.cumsum(dim=-2)
    if state is not None:
        S, z = S + state[0].unsqueeze(-3), z + state[1].unsqueeze(-2)
    total = (q * z).sum(dim=-1, keepdim=True)
    out = (q[..., None, :] @ S).squeeze(-2) / total.masked_fill(total == 0, 1)
    return out, (S[..., -1, :, :], z[..., -1, :])


edit(
    "causal_linear_chunked",
    "chunk_ignored",
    replace="    seq = q.shape[-2]\n",
    by="    seq, chunk = q.shape[-2], 64\n",
    says="`chunk` has no effect: your chunks always have 64 tokens.",
    hint="Which arguments does the work depend on?",
)


# orthogonal_random_features


@alternative("orthogonal_random_features")
def gram_schmidt(head_dim, features, generator):
    blocks = -(-features // head_dim)
    drawn = torch.randn(blocks, head_dim, head_dim, generator=generator, dtype=torch.float64)
    units = []
    for row in drawn.unbind(dim=1):
        for other in (*units, *units):
            row = row - (row * other).sum(dim=-1, keepdim=True) * other
        units.append(row / row.norm(dim=-1, keepdim=True))
    lengths = torch.randn(blocks, head_dim, head_dim, generator=generator, dtype=torch.float64).norm(dim=-1)
    return (torch.stack(units, dim=1) * lengths[..., None]).flatten(0, 1)[:features].float()


LENGTHS = "lengths = torch.randn(features, head_dim, generator=generator).norm(dim=-1, keepdim=True)"
edit(
    "orthogonal_random_features",
    "unit_rows",
    replace=LENGTHS,
    by="lengths = 1",
    says="Your rows have length 1; those of a Gaussian matrix are about √head_dim long, and not all alike.",
    hint="QR gives directions. How long should each row be?",
)
edit(
    "orthogonal_random_features",
    "all_of_one_length",
    replace=LENGTHS,
    by="lengths = head_dim**0.5",
    says="All your rows have length √head_dim, which is right on average; but fixed lengths bias the kernel.",
    hint="Draw the lengths too. What distribution do they have?",
)
edit(
    "orthogonal_random_features",
    "length_of_one_number",
    replace=LENGTHS,
    by="lengths = torch.randn(features, 1, generator=generator).abs()",
    says="Your lengths are single normal numbers; a Gaussian row has head_dim of them, and the length is their norm.",
    hint="How long is a vector of head_dim standard normal numbers, on average?",
)
edit(
    "orthogonal_random_features",
    "squared_lengths",
    replace=".norm(dim=-1, keepdim=True)",
    by=".square().sum(dim=-1, keepdim=True)",
    says="Your lengths are squared norms: the root is missing.",
    hint="The length of a row is about √head_dim, not head_dim.",
)
edit(
    "orthogonal_random_features",
    "one_length_a_block",
    replace=LENGTHS,
    by="""lengths = torch.randn(blocks, 1, head_dim, generator=generator).norm(dim=-1)
    lengths = lengths.repeat_interleave(head_dim, dim=0)[:features]""",
    says="All rows of a block have the same length; each should have its own.",
    hint="How many lengths have to be drawn?",
)
edit(
    "orthogonal_random_features",
    "columns_stretched",
    replace="return q.mT.reshape(-1, head_dim)[:features] * lengths",
    by="""lengths = torch.randn(blocks, head_dim, head_dim, generator=generator).norm(dim=-1)
    return (q.mT * lengths[:, None, :]).reshape(-1, head_dim)[:features]""",
    says="You stretch the columns instead of the rows, which spoils the right angles between the rows.",
    hint="A row is a direction. Which axis does its length multiply?",
)
edit(
    "orthogonal_random_features",
    "signs_of_qr_kept",
    replace="q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]",
    by="q",
    says="A QR decomposition fixes the signs of its own accord, so that your directions prefer one half of the space.",
    hint="Average many first rows. Where does their mean point? The diagonal of R tells the signs.",
)
edit(
    "orthogonal_random_features",
    "one_block_over_and_over",
    replace="    q = q * r.diag",
    by="    q, r = q[:1].expand(blocks, -1, -1), r[:1].expand(blocks, -1, -1)\n    q = q * r.diag",
    says="Every block has the same directions: more features bring new lengths, but nothing new to see.",
    hint="Draw a matrix of its own for each block.",
)
edit(
    "orthogonal_random_features",
    "own_generator",
    replace="generator=generator",
    by="generator=None",
    count=2,
    says="You draw from torch's global generator instead of the one that you are given.",
    hint="What should happen when the same generator is handed in twice?",
)


@mistake(
    "orthogonal_random_features",
    says="The last, incomplete block is missing, so that fewer rows come out than were asked for.",
    hint="How many blocks do 5 features of head_dim 3 need?",
)
def incomplete_block_dropped(head_dim, features, generator):
    blocks = features // head_dim
    q, r = torch.linalg.qr(torch.randn(blocks, head_dim, head_dim, generator=generator))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    lengths = torch.randn(blocks * head_dim, head_dim, generator=generator).norm(dim=-1, keepdim=True)
    return q.mT.reshape(-1, head_dim) * lengths


@mistake(
    "orthogonal_random_features",
    says="You return independent Gaussian rows; nothing makes them orthogonal.",
    hint="Which decomposition turns the columns of a random matrix into orthogonal ones?",
)
def plain_gaussian(head_dim, features, generator):
    return torch.randn(features, head_dim, generator=generator)


@mistake(
    "orthogonal_random_features",
    says="You decompose the tall matrix as a whole: its columns come out orthogonal, but its rows do not.",
    hint="At most head_dim rows can be orthogonal. Work in blocks of head_dim rows.",
)
def columns_of_the_tall_matrix(head_dim, features, generator):
    q, _ = torch.linalg.qr(torch.randn(max(features, head_dim), head_dim, generator=generator))
    lengths = torch.randn(features, head_dim, generator=generator).norm(dim=-1, keepdim=True)
    return q[:features] / q[:features].norm(dim=-1, keepdim=True) * lengths


QR = "torch.linalg.qr(torch.randn(blocks, head_dim, head_dim, generator=generator))"
edit(
    "orthogonal_random_features",
    "uniform_numbers",
    replace=QR,
    by="torch.linalg.qr(torch.rand(blocks, head_dim, head_dim, generator=generator))",
    says="You start from numbers between 0 and 1, so that your directions gather around the diagonal.",
    hint="rand or randn: which of them is the same in all directions?",
)
edit(
    "orthogonal_random_features",
    "uniform_numbers_around_zero",
    replace=QR,
    by="torch.linalg.qr(torch.rand(blocks, head_dim, head_dim, generator=generator) - 0.5)",
    says="You start from numbers between −½ and ½, which fill a cube: directions towards its corners come too often.",
    hint="rand or randn: which of them is the same in all directions?",
)
edit(
    "orthogonal_random_features",
    "lengths_from_the_same_matrix",
    replace="    return q.mT",
    by="    lengths = (q @ r).norm(dim=-1).reshape(-1, 1)[:features]\n    return q.mT",
    says="You take row lengths of the matrix that gave the directions; its long rows pull the directions with them.",
    hint="A length must tell nothing about its direction. Draw once more.",
)
edit(
    "orthogonal_random_features",
    "lengths_from_r",
    replace=" * lengths",
    by=" * r.diagonal(dim1=-2, dim2=-1).abs().reshape(-1, 1)[:features]",
    says="You take the diagonal of R as lengths: what is left of each vector once the earlier ones are taken out.",
    hint="How long is the last vector of a block after all others were projected out of it?",
)


# favor_features


@alternative("favor_features")
def completed_square(x, projection, is_query):
    y = x / x.shape[-1] ** 0.25
    # w·y − |y|²/2 = |w|²/2 − |w − y|²/2
    distance = (projection - y.unsqueeze(-2)).square().sum(dim=-1)
    exponent = (projection.square().sum(dim=-1) - distance) / 2
    if is_query:
        exponent = exponent - exponent.max(dim=-1, keepdim=True).values
    else:
        exponent = exponent - exponent.flatten(-2).max(dim=-1).values[..., None, None]
    return torch.exp(exponent) / len(projection) ** 0.5


Y = "y = x * x.shape[-1] ** -0.25"
EXPONENT = "exponent = y @ projection.mT - y.square().sum(dim=-1, keepdim=True) / 2"
edit(
    "favor_features",
    "not_scaled",
    replace=Y,
    by="y = x",
    says="You forgot to scale x: the kernel is exp(q·k) instead of exp(q·k / √head_dim).",
    hint="Queries and keys share the factor 1/√head_dim. How much of it belongs to each?",
)
edit(
    "favor_features",
    "scaled_twice",
    replace="** -0.25",
    by="** -0.5",
    says="You divide queries and keys by √head_dim each, so that their product is divided by head_dim.",
    hint="Queries and keys share the factor 1/√head_dim. How much of it belongs to each?",
)
edit(
    "favor_features",
    "square_forgotten",
    replace=" - y.square().sum(dim=-1, keepdim=True) / 2",
    by="",
    says="You left −|y|²/2 out: the average of exp(w·y) is exp(|y|²/2), which has to be taken back.",
    hint="What is the mean of exp(w·x) for a Gaussian w?",
)
edit(
    "favor_features",
    "square_of_the_unscaled",
    replace="y.square().sum",
    by="x.square().sum",
    says="You subtract |x|²/2 where the scaled y is projected.",
    hint="Both terms of the exponent belong to the same vector.",
)
edit(
    "favor_features",
    "square_not_halved",
    replace="keepdim=True) / 2",
    by="keepdim=True)",
    says="You subtract |y|², twice as much as there is to take back.",
    hint="E exp(w·y) = exp(|y|²/2).",
)
edit(
    "favor_features",
    "norm_instead_of_its_square",
    replace="y.square().sum(dim=-1, keepdim=True) / 2",
    by="y.norm(dim=-1, keepdim=True) / 2",
    says="You subtract half the length of y instead of half its square.",
    hint="E exp(w·y) = exp(|y|²/2).",
)
edit(
    "favor_features",
    "no_stabiliser",
    replace="(exponent - largest).exp()",
    by="exponent.exp()",
    says="You take no maximum off, so that large inputs overflow, or all features round to 0.",
    hint="Which factor falls out of normalised attention?",
)
edit(
    "favor_features",
    "keys_as_if_queries",
    replace="-1 if is_query else (-2, -1)",
    by="-1",
    says="You take a maximum of its own off every key, which weighs each key by another factor.",
    hint="A factor falls out of the quotient only if all keys share it.",
)
edit(
    "favor_features",
    "queries_as_if_keys",
    replace="-1 if is_query else (-2, -1)",
    by="(-2, -1)",
    says="You take one maximum off all queries; each may have its own, and small ones round to 0 beside large ones.",
    hint="What does `is_query` decide?",
)
edit(
    "favor_features",
    "the_other_way_round",
    replace="if is_query",
    by="if not is_query",
    says="Queries and keys are exchanged: each key loses a factor of its own, and all queries share one.",
    hint="A factor falls out of the quotient if it belongs to one query, or to all keys.",
)
edit(
    "favor_features",
    "one_maximum_for_the_batch",
    replace="exponent.detach().amax(dim=-1 if is_query else (-2, -1), keepdim=True)",
    by="exponent.detach().amax(dim=-1, keepdim=True) if is_query else exponent.detach().max()",
    says="You take one maximum off all keys of the batch; sequences have nothing to do with each other.",
    hint="Over which axes do the keys of one sequence lie?",
)
edit(
    "favor_features",
    "maximum_for_each_feature",
    replace="(-2, -1), keep",
    by="-2, keep",
    says="For keys you take a maximum off each feature, over the tokens; features then count differently.",
    hint="The sum over features must keep their sizes relative to each other.",
)
edit(
    "favor_features",
    "maximum_of_the_projection_alone",
    replace="largest = exponent.detach()",
    by="largest = (y @ projection.mT).detach()",
    says="You take the maximum of w·y; it should be the maximum of the whole exponent, with −|y|²/2 in it.",
    hint="The largest feature is 1/√features. Is yours?",
)
edit(
    "favor_features",
    "not_divided_by_the_features",
    replace=" * len(projection) ** -0.5",
    by="",
    says="You left out 1/√features, so that φ(q)·φ(k) is a sum and not a mean.",
    hint="A mean of m products: which share of 1/m belongs to each factor?",
)
edit(
    "favor_features",
    "divided_by_all_features",
    replace="** -0.5",
    by="** -1.0",
    says="You divide queries and keys by the number of features each; together they would count it twice.",
    hint="A mean of m products: which share of 1/m belongs to each factor?",
)
edit(
    "favor_features",
    "a_little_added",
    replace="(exponent - largest).exp()",
    by="((exponent - largest).exp() + 1e-4)",
    says="You add a small number to every feature, for safety as many do: the kernel is no longer unbiased.",
    hint="What does the smallest feature do to a sum of thousands of keys?",
)


@mistake(
    "favor_features",
    says="Sines and cosines estimate the kernel too, but they can be negative, and with them the normaliser.",
    hint="The features asked for are exponentials.",
)
def sines_and_cosines(x, projection, is_query):
    y = x * x.shape[-1] ** -0.25
    angle = y @ projection.mT
    exponent = y.square().sum(dim=-1, keepdim=True) / 2
    largest = exponent.amax(dim=-1 if is_query else (-2, -1), keepdim=True)
    return torch.cat([angle.sin(), angle.cos()], dim=-1) * (exponent - largest).exp() * len(projection) ** -0.5


edit(
    "favor_features",
    "a_floor_under_features",
    replace="(exponent - largest).exp()",
    by="(exponent - largest).clamp(min=-30).exp()",
    says="You keep exponents from falling below −30, so that features which should be smaller are not.",
    hint="A feature may be as small as it likes. Which keys would otherwise weigh too much?",
)


# performer_attention


@alternative("performer_attention")
def with_logarithms(q, k, v, projection):
    def logs(x):
        y = x / x.shape[-1] ** 0.25
        return y @ projection.mT - (y * y).sum(dim=-1, keepdim=True) / 2

    of_q, of_k = logs(q), logs(k)
    of_q = (of_q - of_q.amax(dim=-1, keepdim=True)).exp()
    of_k = (of_k - of_k.amax(dim=(-2, -1), keepdim=True)).exp()
    sums = of_q @ torch.cat([of_k.mT @ v, of_k.sum(dim=-2).unsqueeze(-1)], dim=-1)
    return torch.where(sums[..., -1:] > 0, sums[..., :-1] / sums[..., -1:].clamp(min=1e-300), 0.0).to(v.dtype)


FEATURES = "q, k = favor_features(q, projection, is_query=True), favor_features(k, projection, is_query=False)"
edit(
    "performer_attention",
    "normaliser_forgotten",
    replace=" / total.masked_fill(total == 0, 1)",
    by="",
    says="You forgot the normaliser: the weights of a query do not sum to 1, and the factors taken off stay in.",
    hint="Softmax divides by a sum. By which sum is divided here?",
)
edit(
    "performer_attention",
    "all_as_queries",
    replace="is_query=False",
    by="is_query=True",
    says="You make the keys' features as if they were queries, so that each key loses a factor of its own.",
    hint="A factor falls out of the quotient only if all keys share it.",
)
edit(
    "performer_attention",
    "all_as_keys",
    replace="is_query=True",
    by="is_query=False",
    says="You make the queries' features as if they were keys: small ones round to 0 beside large ones.",
    hint="Which maximum may be taken off a query?",
)
edit(
    "performer_attention",
    "roles_exchanged",
    replace=FEATURES,
    by="q, k = favor_features(q, projection, is_query=False), favor_features(k, projection, is_query=True)",
    says="You say `is_query` of the keys and not of the queries.",
    hint="Which of the two may have a factor for each row?",
)
edit(
    "performer_attention",
    "scaled_before",
    replace="favor_features(q, projection",
    by="favor_features(q * q.shape[-1] ** -0.5, projection",
    says="You scale the queries by 1/√head_dim; the features scale already.",
    hint="What does `favor_features` say of the scale of its argument?",
)
edit(
    "performer_attention",
    "divided_by_the_length",
    replace="total.masked_fill(total == 0, 1)",
    by="k.shape[-2]",
    says="You divide by how many keys there are; their weights differ from query to query.",
    hint="What do equal values have to come back as?",
)
edit(
    "performer_attention",
    "nan_where_nothing_weighs",
    replace="total.masked_fill(total == 0, 1)",
    by="total",
    says="Where all weights round to 0 you divide 0 by 0, and NaN comes out.",
    hint="What should a query get whose normaliser is 0?",
)
edit(
    "performer_attention",
    "eps_in_the_normaliser",
    replace="total.masked_fill(total == 0, 1)",
    by="(total + 1e-6)",
    says="You add a small number to the normaliser; where the weights are as small themselves, that is a lot.",
    hint="Can you treat a normaliser of exactly 0 apart from all others?",
)
edit(
    "performer_attention",
    "normaliser_learns_nothing",
    replace="total = q @ k.sum(dim=-2).unsqueeze(-1)",
    by="total = (q @ k.sum(dim=-2).unsqueeze(-1)).detach()",
    says="You detach the normaliser: the values are right, and the gradients miss how it moves.",
    hint="Does the sum of the weights depend on q and on k?",
)


@mistake(
    "performer_attention",
    says="You return softmax attention itself; it should be estimated with the random features.",
    hint="What is the projection for?",
)
def exact_softmax(q, k, v, projection):
    return F.scaled_dot_product_attention(q, k, v)


@mistake(
    "performer_attention",
    says="You use elu + 1 as feature map and no projection: that is linear attention, not the softmax kernel.",
    hint="Which features have exp(q·k / √head_dim) as their product on average?",
)
def elu_features(q, k, v, projection):
    q, k = elu_feature_map(q), elu_feature_map(k)
    total = q @ k.sum(dim=-2).unsqueeze(-1)
    return q @ (k.mT @ v) / total.masked_fill(total == 0, 1)


@mistake(
    "performer_attention",
    says="You take no maximum off before exp, so that far from 0 all features round to 0, or overflow.",
    hint="Which factors fall out of the quotient?",
)
def without_maximum(q, k, v, projection):
    def features(x):
        y = x * x.shape[-1] ** -0.25
        return (y @ projection.mT - y.square().sum(dim=-1, keepdim=True) / 2).exp()

    q, k = features(q), features(k)
    total = q @ k.sum(dim=-2).unsqueeze(-1)
    return q @ (k.mT @ v) / total.masked_fill(total == 0, 1)


@mistake(
    "performer_attention",
    says="You form the weights of all pairs: the result is right, but time and memory stay quadratic.",
    hint="(A B) C is A (B C). Which product is small?",
)
def forms_all_pairs_of_features(q, k, v, projection):
    weights = favor_features(q, projection, True) @ favor_features(k, projection, False).mT
    total = weights.sum(dim=-1, keepdim=True)
    return weights @ v / total.masked_fill(total == 0, 1)


@mistake(
    "performer_attention",
    says="You weigh all keys for a few queries at a time: little memory is held, but all pairs are computed.",
    hint="What do the queries have in common that can be summed before any of them is read?",
)
def some_queries_at_a_time(q, k, v, projection):
    q, k = favor_features(q, projection, is_query=True), favor_features(k, projection, is_query=False)
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=v.dtype)
    for first in range(0, q.shape[-2], 16):
        weights = q[..., first : first + 16, :] @ k.mT
        total = weights.sum(dim=-1, keepdim=True)
        out[..., first : first + 16, :] = weights @ v / total.masked_fill(total == 0, 1)
    return out


@mistake(
    "performer_attention",
    says="You take one maximum off the keys of all sequences of the batch; beside a loud one a quiet one rounds to 0.",
    hint="Over which axes do the keys of one sequence lie?",
)
def one_maximum_for_all_sequences(q, k, v, projection):
    def exponent(x):
        y = x * x.shape[-1] ** -0.25
        return y @ projection.mT - y.square().sum(dim=-1, keepdim=True) / 2

    q, k = exponent(q), exponent(k)
    q, k = (q - q.amax(dim=-1, keepdim=True)).exp(), (k - k.max()).exp()
    total = q @ k.sum(dim=-2).unsqueeze(-1)
    return q @ (k.mT @ v) / total.masked_fill(total == 0, 1)


# linformer_attention


@alternative("linformer_attention")
def by_torch_attention(q, k, v, e_proj, f_proj):
    if e_proj.size(1) != k.size(-2) or f_proj.size(1) != v.size(-2):
        raise ValueError("another length")
    keys = torch.tensordot(k.movedim(-2, -1), e_proj, dims=([-1], [1])).movedim(-1, -2)
    values = torch.tensordot(v.movedim(-2, -1), f_proj, dims=([-1], [1])).movedim(-1, -2)
    scores = torch.einsum("...qd,...rd->...qr", q, keys) / q.size(-1) ** 0.5
    scores = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return scores @ values / scores.sum(dim=-1, keepdim=True)


LINFORMER = "scores = q @ (e_proj @ k).mT * q.shape[-1] ** -0.5  # (*batch, q_seq, rank)"
GUARD = """    if not e_proj.shape[-1] == f_proj.shape[-1] == kv_seq:
        raise ValueError(f"made for {e_proj.shape[-1]} keys and {f_proj.shape[-1]} values, but there are {kv_seq}")
"""
edit(
    "linformer_attention",
    "projections_exchanged",
    replace=f"    {LINFORMER}\n    return scores.softmax(dim=-1) @ (f_proj @ v)",
    by="    scores = q @ (f_proj @ k).mT * q.shape[-1] ** -0.5\n    return scores.softmax(dim=-1) @ (e_proj @ v)",
    says="E and F are exchanged: you mix the keys with f_proj and the values with e_proj.",
    hint="E belongs to the keys.",
)
edit(
    "linformer_attention",
    "one_projection_for_both",
    replace="(f_proj @ v)",
    by="(e_proj @ v)",
    says="You mix keys and values with e_proj alike; f_proj has no effect.",
    hint="Which arguments does your result depend on?",
)
edit(
    "linformer_attention",
    "no_scale",
    replace=" * q.shape[-1] ** -0.5",
    by="",
    says="You forgot the factor 1/√head_dim.",
    hint="By which factor does the spread of q·k grow with the width of a head?",
)
edit(
    "linformer_attention",
    "scaled_by_the_rank",
    replace="q.shape[-1] ** -0.5",
    by="len(e_proj) ** -0.5",
    says="You scale by 1/√rank; the scores are still sums over head_dim channels.",
    hint="How many products does one score sum?",
)
edit(
    "linformer_attention",
    "softmax_over_queries",
    replace="softmax(dim=-1)",
    by="softmax(dim=-2)",
    says="Your softmax runs over the queries.",
    hint="Whose weights sum to 1?",
)
edit(
    "linformer_attention",
    "no_softmax",
    replace="scores.softmax(dim=-1)",
    by="scores",
    says="You left the softmax out.",
    hint="Linformer is linear in the length and still softmax attention.",
)
edit(
    "linformer_attention",
    "softmax_without_maximum",
    replace="scores.softmax(dim=-1)",
    by="(scores.exp() / scores.exp().sum(dim=-1, keepdim=True))",
    says="You exponentiate raw scores, so large ones overflow to inf and the output becomes NaN.",
    hint="Which number can be taken from all scores of a row without changing its softmax?",
)
edit(
    "linformer_attention",
    "projections_made_into_averages",
    replace="    kv_seq = k.shape[-2]\n",
    by="    e_proj, f_proj = e_proj.softmax(dim=-1), f_proj.softmax(dim=-1)\n    kv_seq = k.shape[-2]\n",
    says="You turn the rows of the projections into averages; they are learned matrices, used as they are.",
    hint="What does `e_proj @ k` say?",
)
edit(
    "linformer_attention",
    "projections_cut_to_length",
    replace=GUARD,
    by="""    if min(e_proj.shape[-1], f_proj.shape[-1]) < kv_seq:
        raise ValueError("too short")
    e_proj, f_proj = e_proj[:, :kv_seq], f_proj[:, :kv_seq]
""",
    says="You cut projections that were made for more keys; a projection is learned for one length.",
    hint="Which error does the contract ask for, and when?",
)
edit(
    "linformer_attention",
    "length_not_checked",
    replace=GUARD,
    by="",
    says="A projection made for another length is not refused with a ValueError.",
    hint="Compare the last axes of both projections with the number of keys.",
)
edit(
    "linformer_attention",
    "only_one_length_checked",
    replace="if not e_proj.shape[-1] == f_proj.shape[-1] == kv_seq:",
    by="if e_proj.shape[-1] != kv_seq:",
    says="You check the length of e_proj only.",
    hint="There are two projections.",
)


@mistake(
    "linformer_attention",
    says="You attend first and mix afterwards: the softmax runs over all keys, and nothing is saved.",
    hint="Mix the keys before there are scores.",
)
def mixes_the_weights(q, k, v, e_proj, f_proj):
    if not e_proj.shape[-1] == f_proj.shape[-1] == k.shape[-2]:
        raise ValueError("another length")
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
    return weights @ e_proj.mT @ (f_proj @ v)


@mistake(
    "linformer_attention",
    says="You compute the scores of all pairs and mix those: the result is right, but time and memory stay quadratic.",
    hint="q kᵀ Eᵀ is q (E k)ᵀ. Which product is small?",
)
def mixes_the_scores(q, k, v, e_proj, f_proj):
    if not e_proj.shape[-1] == f_proj.shape[-1] == k.shape[-2]:
        raise ValueError("another length")
    scores = q @ k.mT @ e_proj.mT * q.shape[-1] ** -0.5
    return scores.softmax(dim=-1) @ (f_proj @ v)


@mistake(
    "linformer_attention",
    says="You score all keys for a few queries at a time: little memory is held, but all pairs are computed.",
    hint="q kᵀ Eᵀ is q (E k)ᵀ. Which product is small?",
)
def mixes_scores_piece_by_piece(q, k, v, e_proj, f_proj):
    if not e_proj.shape[-1] == f_proj.shape[-1] == k.shape[-2]:
        raise ValueError("another length")
    values = f_proj @ v
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=v.dtype)
    for first in range(0, q.shape[-2], 16):
        scores = q[..., first : first + 16, :] @ k.mT @ e_proj.mT * q.shape[-1] ** -0.5
        out[..., first : first + 16, :] = scores.softmax(dim=-1) @ values
    return out


# attention_spectrum


@alternative("attention_spectrum")
def from_the_tail(weights, energy):
    squares = torch.linalg.svdvals(weights) ** 2
    needed = energy * squares.cumsum(dim=-1)[..., -1:]
    reached = squares.cumsum(dim=-1)
    before = torch.cat([torch.zeros_like(needed), reached[..., :-1]], dim=-1)
    return torch.where(before < needed, 1, 0).sum(dim=-1)


@alternative("attention_spectrum")
def one_by_one(weights, energy):
    ranks = []
    for matrix in weights.detach().double().reshape(-1, *weights.shape[-2:]):
        squares = [value.item() ** 2 for value in torch.linalg.svd(matrix).S]
        total = sum(squares)
        reached, count = 0.0, 0
        while reached < energy * total:
            reached, count = reached + squares[count], count + 1
        ranks.append(count)
    return torch.tensor(ranks).reshape(weights.shape[:-2])


SQUARES = "squares = torch.linalg.svdvals(weights).square()"
COUNT = "(sums - squares < energy * sums[..., -1:])"
edit(
    "attention_spectrum",
    "not_squared",
    replace=SQUARES,
    by="squares = torch.linalg.svdvals(weights)",
    says="You add up the singular values themselves; the share is one of their squares.",
    hint="The squares of the singular values add up to the squares of the entries.",
)
edit(
    "attention_spectrum",
    "squared_twice",
    replace=SQUARES,
    by="squares = torch.linalg.svdvals(weights.mT @ weights).square()",
    says="You square the eigenvalues of WᵀW, which are squares already.",
    hint="How are the eigenvalues of WᵀW and the singular values of W related?",
)
edit(
    "attention_spectrum",
    "more_than_the_share",
    replace=COUNT,
    by="(sums - squares <= energy * sums[..., -1:])",
    says="You go on where the share is met exactly; meeting it is enough.",
    hint="At least, or more than?",
)
edit(
    "attention_spectrum",
    "one_too_few",
    replace=COUNT,
    by="(sums < energy * sums[..., -1:])",
    says="You count the values that do not reach the share yet; the one that reaches it is missing.",
    hint="With one value that holds everything, what is the rank?",
)
edit(
    "attention_spectrum",
    "always_at_least_one",
    replace=COUNT + ".sum(dim=-1)",
    by="(sums < energy * sums[..., -1:]).sum(dim=-1) + 1",
    says="You always count one value; a matrix of zeros, and a share of 0, need none.",
    hint="How many values does it take to hold nothing?",
)
edit(
    "attention_spectrum",
    "smallest_first",
    replace=SQUARES,
    by="squares = torch.linalg.svdvals(weights).square().flip(-1)",
    says="You start with the smallest singular values.",
    hint="The least number takes the largest first.",
)
edit(
    "attention_spectrum",
    "share_of_the_length",
    replace=COUNT,
    by="(torch.cumsum(torch.ones_like(squares), -1) - 1 < energy * squares.shape[-1])",
    says="You take a share of how many singular values there are, whatever their size.",
    hint="What is summed: numbers of values, or their squares?",
)
edit(
    "attention_spectrum",
    "energy_is_a_threshold",
    replace=COUNT,
    by="(squares > (1 - energy) * squares[..., :1])",
    says="You count the values above a share of the largest one.",
    hint="A share of the sum is asked for.",
)
edit(
    "attention_spectrum",
    "share_of_the_root",
    replace="energy * sums[..., -1:]",
    by="energy**2 * sums[..., -1:]",
    says="You ask for a share of the Frobenius norm, the root of the sum of squares.",
    hint="Is energy compared with a sum of squares, or with its root?",
)
edit(
    "attention_spectrum",
    "one_rank_for_the_batch",
    replace=SQUARES,
    by="""squares = torch.linalg.svdvals(weights).square()
    squares = squares.reshape(-1, squares.shape[-1]).mean(dim=0).expand(squares.shape)""",
    says="All matrices of a batch get the rank of their average spectrum.",
    hint="Each matrix has singular values of its own.",
)
edit(
    "attention_spectrum",
    "mean_taken_off",
    replace=SQUARES,
    by="squares = torch.linalg.svdvals(weights - weights.mean(dim=-2, keepdim=True)).square()",
    says="You take the mean row off first, as principal component analysis does; here the matrix is taken as it is.",
    hint="What is the largest singular value of a matrix whose rows are all alike?",
)


@mistake(
    "attention_spectrum",
    says="You divide by the sum of squares; for a matrix of zeros that is 0 / 0, and the comparison with NaN is false.",
    hint="Multiply the share with the sum instead of dividing by it, and think of a sum of 0.",
)
def nothing_divided_by_nothing(weights, energy):
    squares = torch.linalg.svdvals(weights).square()
    share = squares.cumsum(dim=-1) / squares.cumsum(dim=-1)[..., -1:]
    return squares.shape[-1] - (share - squares / squares.cumsum(dim=-1)[..., -1:] >= energy).sum(dim=-1)


# gated_linear_attention


@alternative("gated_linear_attention")
def all_chunks_side_by_side(q, k, v, decay, state=None, chunk=64):
    seq = q.shape[-2]
    if not seq:
        return torch.zeros_like(v), torch.zeros_like(k).mT @ v if state is None else state
    logs = decay.log().expand(*k.shape)
    q, k, v, logs = (F.pad(x, (0, 0, 0, -seq % chunk)).unflatten(-2, (-1, chunk)) for x in (q, k, v, logs))
    logs = logs.cumsum(dim=-2)
    ends = logs[..., -1, :]
    written = (k * (ends.unsqueeze(-2) - logs).exp()).mT @ v
    S = torch.zeros_like(written[..., 0, :, :]) if state is None else state
    before = []
    for index in range(written.shape[-3]):
        before.append(S)
        S = ends[..., index, :, None].exp() * S + written[..., index, :, :]
    gap = (logs.unsqueeze(-2) - logs.unsqueeze(-3)).clamp(max=0).exp()
    scores = torch.einsum("...id,...jd,...ijd->...ij", q, k, gap).tril()
    out = (q * logs.exp()) @ torch.stack(before, dim=-3) + scores @ v
    return out.flatten(-3, -2)[..., :seq, :], S


GATED_OUT = "out.append(q_c * log_c.exp() @ state + decayed_products(q_c, k_c, log_c) @ v_c)"
GATED_STATE = "state = log_c[..., -1, :, None].exp() * state + (k_c * to_end).mT @ v_c"
edit(
    "gated_linear_attention",
    "nothing_is_forgotten",
    replace="log_decay = decay.log().expand",
    by="log_decay = decay.new_zeros(decay.shape).expand",
    says="The decay has no effect: nothing is ever forgotten.",
    hint="What multiplies the state before each write?",
)
edit(
    "gated_linear_attention",
    "state_not_decayed_between_chunks",
    replace="state = log_c[..., -1, :, None].exp() * state + ",
    by="state = state + ",
    says="From chunk to chunk the old state is carried on without any decay.",
    hint="By how much has a state decayed at the end of a chunk?",
)
edit(
    "gated_linear_attention",
    "keys_not_decayed_to_the_end",
    replace="(k_c * to_end).mT",
    by="k_c.mT",
    says="What a chunk adds to the state has not decayed: its early keys count at the end as if just written.",
    hint="How many decays lie between the write of a key and the end of its chunk?",
)
edit(
    "gated_linear_attention",
    "state_read_without_decay",
    replace="q_c * log_c.exp() @ state",
    by="q_c @ state",
    says="Queries read the state of the chunk before as if nothing had decayed since.",
    hint="How many decays lie between the start of the chunk and the query?",
)
edit(
    "gated_linear_attention",
    "no_decay_inside_chunks",
    replace="decayed_products(q_c, k_c, log_c) @ v_c",
    by="(q_c @ k_c.mT).tril() @ v_c",
    says="Inside a chunk nothing decays; only the state from before does.",
    hint="Which decays lie between token j and token i of one chunk?",
)
edit(
    "gated_linear_attention",
    "normalised",
    replace="return torch.cat(out, dim=-2), state",
    by="""z = k.cumsum(dim=-2)
    total = (q * z).sum(dim=-1, keepdim=True)
    return torch.cat(out, dim=-2) / total.masked_fill(total == 0, 1), state""",
    says="You divide by a sum of weights; gated linear attention has no normaliser.",
    hint="q and k may be negative here. What could a sum of such weights be?",
)
edit(
    "gated_linear_attention",
    "scaled",
    replace="    log_decay = ",
    by="    q = q * q.shape[-1] ** -0.5\n    log_decay = ",
    says="You scale the queries by 1/√head_dim; there is no scaling here.",
    hint="The worked example has no factor.",
)
edit(
    "gated_linear_attention",
    "state_ignored",
    replace="k.new_zeros(*k.shape[:-2], k.shape[-1], v.shape[-1]) if state is None else state",
    by="k.new_zeros(*k.shape[:-2], k.shape[-1], v.shape[-1])",
    says="The state that is handed in has no effect.",
    hint="What does the first chunk read besides its own tokens?",
)
edit(
    "gated_linear_attention",
    "first_token_does_not_decay",
    replace="log_c = log_c.cumsum(dim=-2)  # from the start of the chunk",
    by="log_c = log_c.cumsum(dim=-2) - log_c[..., :1, :]  # from the first token of the chunk",
    says="The first token of each chunk does not weaken the state that it finds.",
    hint="A decay comes before the write of its own token, also of the first one.",
)


@mistake(
    "gated_linear_attention",
    says="You weaken the state after the write, so that a token's own value has decayed before it is read.",
    hint="First weaken, then write, then read. What does the first token get?",
)
def decay_after_the_write(q, k, v, decay, state=None, chunk=64):
    log_decay = decay.log().expand(*k.shape[:-1], decay.shape[-1])
    state = k.new_zeros(*k.shape[:-2], k.shape[-1], v.shape[-1]) if state is None else state
    if k.shape[-2] == 0:
        return torch.zeros_like(v), state
    k = k * decay
    out = []
    for q_c, k_c, v_c, log_c in zip(*(x.split(chunk, dim=-2) for x in (q, k, v, log_decay)), strict=True):
        log_c = log_c.cumsum(dim=-2)
        out.append(q_c * log_c.exp() @ state + decayed_products(q_c, k_c, log_c) @ v_c)
        to_end = (log_c[..., -1:, :] - log_c).exp()
        state = log_c[..., -1, :, None].exp() * state + (k_c * to_end).mT @ v_c
    return torch.cat(out, dim=-2), state


@mistake(
    "gated_linear_attention",
    says="You read the state before the token is written, so that no token sees itself.",
    hint="First weaken, then write, then read. What does the first token get?",
)
def reads_before_the_write(q, k, v, decay, state=None, chunk=64):
    log_decay = decay.log().expand(*k.shape[:-1], decay.shape[-1])
    state = k.new_zeros(*k.shape[:-2], k.shape[-1], v.shape[-1]) if state is None else state
    if k.shape[-2] == 0:
        return torch.zeros_like(v), state
    out = []
    for q_c, k_c, v_c, log_c in zip(*(x.split(chunk, dim=-2) for x in (q, k, v, log_decay)), strict=True):
        log_c = log_c.cumsum(dim=-2)
        out.append(q_c * log_c.exp() @ state + decayed_products(q_c, k_c, log_c).tril(-1) @ v_c)
        to_end = (log_c[..., -1:, :] - log_c).exp()
        state = log_c[..., -1, :, None].exp() * state + (k_c * to_end).mT @ v_c
    return torch.cat(out, dim=-2), state


@mistake(
    "gated_linear_attention",
    says="You weigh the write with 1 − decay, as in a moving average; a key is written in full.",
    hint="Only what was there before is weakened.",
)
def moving_average(q, k, v, decay, state=None, chunk=64):
    log_decay = decay.log().expand(*k.shape[:-1], decay.shape[-1])
    state = k.new_zeros(*k.shape[:-2], k.shape[-1], v.shape[-1]) if state is None else state
    if k.shape[-2] == 0:
        return torch.zeros_like(v), state
    k = k * (1 - decay)
    out = []
    for q_c, k_c, v_c, log_c in zip(*(x.split(chunk, dim=-2) for x in (q, k, v, log_decay)), strict=True):
        log_c = log_c.cumsum(dim=-2)
        out.append(q_c * log_c.exp() @ state + decayed_products(q_c, k_c, log_c) @ v_c)
        to_end = (log_c[..., -1:, :] - log_c).exp()
        state = log_c[..., -1, :, None].exp() * state + (k_c * to_end).mT @ v_c
    return torch.cat(out, dim=-2), state


@mistake(
    "gated_linear_attention",
    says="You divide keys by the product of all decays so far; where that rounds to 0, ∞ and NaN come out.",
    hint="Only quotients of two products are needed, and those are never above 1. Work with differences of logarithms.",
)
def divides_by_vanishing_products(q, k, v, decay, state=None, chunk=64):
    decay = decay.expand(*k.shape[:-1], decay.shape[-1])
    state = k.new_zeros(*k.shape[:-2], k.shape[-1], v.shape[-1]) if state is None else state
    if k.shape[-2] == 0:
        return torch.zeros_like(v), state
    out = []
    for q_c, k_c, v_c, decay_c in zip(*(x.split(chunk, dim=-2) for x in (q, k, v, decay)), strict=True):
        kept = decay_c.cumprod(dim=-2)
        scores = (q_c * kept) @ (k_c / kept).mT
        out.append(q_c * kept @ state + scores.tril() @ v_c)
        state = kept[..., -1, :, None] * (state + (k_c / kept).mT @ v_c)
    return torch.cat(out, dim=-2), state


@mistake(
    "gated_linear_attention",
    says="You loop over the tokens, whatever `chunk` says: the result is right, but it is small step after small step.",
    hint="Inside a chunk one product of matrices gives all scores at once.",
)
def token_after_token(q, k, v, decay, state=None, chunk=64):
    decay = decay.expand(*k.shape)
    S = k.new_zeros(*k.shape[:-2], k.shape[-1], v.shape[-1]) if state is None else state
    if k.shape[-2] == 0:
        return torch.zeros_like(v), S
    out = []
    for t in range(k.shape[-2]):
        S = decay[..., t, :, None] * S + k[..., t, :, None] * v[..., t, None, :]
        out.append((q[..., t, None, :] @ S).squeeze(-2))
    return torch.stack(out, dim=-2), S


edit(
    "gated_linear_attention",
    "no_token_crashes",
    replace="    if k.shape[-2] == 0:\n        return torch.zeros_like(v), state\n",
    by="",
    says="An empty sequence raises an error: no chunk is left to be put together, or to have a last token.",
    hint="A stream may have nothing new. What does the contract say comes back then?",
)
edit(
    "gated_linear_attention",
    "no_token_forgets_the_state",
    replace="return torch.zeros_like(v), state\n",
    by="return torch.zeros_like(v), torch.zeros_like(state)\n",
    says="After an empty sequence the state is gone: zeros come back in its place.",
    hint="Which step of the recurrence changes the state, and how many steps are there without a token?",
)
edit(
    "gated_linear_attention",
    "one_chunk_for_everything",
    replace="    out = []\n",
    by="    out, chunk = [], max(1, q.shape[-2])\n",
    says="You treat the whole sequence as one chunk: all pairs are computed, whatever `chunk` says.",
    hint="How many scores does a token have inside a chunk, and how many does it have here?",
)

# delta_rule


@alternative("delta_rule")
def inverse_of_the_chunk(q, k, v, beta, decay=None, state=None, chunk=64):
    seq = k.shape[-2]
    logs = torch.zeros_like(k) if decay is None else decay.log().expand(*k.shape)
    S = torch.zeros_like(k).mT @ v if state is None else state
    out = [v[..., :0, :]]
    for first in range(0, seq, chunk):
        rows = slice(first, first + chunk)
        q_c, k_c, v_c, b = q[..., rows, :], k[..., rows, :], v[..., rows, :], beta[..., rows, None]
        logs_c = logs[..., rows, :].cumsum(dim=-2)
        gap = (logs_c.unsqueeze(-2) - logs_c.unsqueeze(-3)).clamp(max=0).exp()
        among = torch.einsum("...id,...jd,...ijd->...ij", k_c, k_c, gap).tril(-1)
        T = torch.linalg.inv(torch.eye(k_c.shape[-2], dtype=k.dtype) + b * among)
        W, U = T @ (b * k_c * logs_c.exp()), T @ (b * v_c)
        new = U - W @ S
        scores = torch.einsum("...id,...jd,...ijd->...ij", q_c, k_c, gap).tril()
        out.append((q_c * logs_c.exp()) @ S + scores @ new)
        end = logs_c[..., -1:, :]
        S = end.mT.exp() * S + (k_c * (end - logs_c).exp()).mT @ new
    return torch.cat(out, dim=-2), S


SURPRISE = "surprise = beta_c * (v_c - k_c * log_c.exp() @ state)"
OVERLAP = "overlap = beta_c * decayed_products(k_c, k_c, log_c)"
WRITTEN = "written = torch.linalg.solve_triangular(overlap, surprise, upper=False, unitriangular=True)"
DELTA_OUT = "out.append(q_c * log_c.exp() @ state + decayed_products(q_c, k_c, log_c) @ written)"
DELTA_STATE = "state = log_c[..., -1, :, None].exp() * state + (k_c * to_end).mT @ written"
edit(
    "delta_rule",
    "old_answer_not_subtracted",
    replace=f"        {SURPRISE}\n        {OVERLAP}\n        {WRITTEN}\n",
    by="        written = beta_c * v_c\n",
    says="You write the value itself; the delta rule writes only what the memory does not already answer.",
    hint="Ask the state with k before you write. What is still missing?",
)
edit(
    "delta_rule",
    "beta_forgotten",
    replace="beta_c * ",
    by="",
    count=2,
    says="`beta` has no effect: every token is written in full.",
    hint="Which arguments does your result depend on?",
)
edit(
    "delta_rule",
    "beta_on_the_value_only",
    replace="beta_c * (v_c - k_c * log_c.exp() @ state)\n        overlap = beta_c * ",
    by="beta_c * v_c - k_c * log_c.exp() @ state\n        overlap = ",
    says="β scales the new value, but the old answer is taken off in full.",
    hint="β multiplies the difference.",
)
edit(
    "delta_rule",
    "beta_on_the_old_answer_only",
    replace="beta_c * (v_c - k_c * log_c.exp() @ state)",
    by="v_c - beta_c * (k_c * log_c.exp() @ state)",
    says="β scales the old answer, but the new value is written in full.",
    hint="β multiplies the difference.",
)
edit(
    "delta_rule",
    "decay_ignored",
    replace="decay = k.new_ones(1, 1) if decay is None else decay",
    by="decay = k.new_ones(1, 1)",
    says="The decay has no effect: nothing is ever forgotten.",
    hint="What multiplies the state before each token?",
)
edit(
    "delta_rule",
    "asks_before_the_decay",
    replace=f"        {SURPRISE}\n        {OVERLAP}\n",
    by="""        before = log_c - log_c.diff(dim=-2, prepend=torch.zeros_like(log_c[..., :1, :]))
        surprise = beta_c * (v_c - k_c * before.exp() @ state)
        gap = (before.unsqueeze(-2) - log_c.unsqueeze(-3)).clamp(max=0).exp()
        overlap = beta_c * (k_c.unsqueeze(-2) * k_c.unsqueeze(-3) * gap).sum(dim=-1).tril()
""",
    says="You ask the state before it has decayed, so that more is taken off than there still is.",
    hint="First weaken the state, then ask it.",
)
edit(
    "delta_rule",
    "asks_with_the_query",
    replace=f"        {SURPRISE}\n        {OVERLAP}\n",
    by="""        surprise = beta_c * (v_c - q_c * log_c.exp() @ state)
        overlap = beta_c * decayed_products(q_c, k_c, log_c)
""",
    says="You take off what the memory answers to the query; it is the key's old answer that is replaced.",
    hint="With which vector is the state asked before a write?",
)
edit(
    "delta_rule",
    "one_answer_for_the_chunk",
    replace=WRITTEN,
    by="written = surprise",
    says="Inside a chunk every token asks the state at the chunk's start and does not notice the tokens between.",
    hint="What token i writes depends on what the tokens before it wrote.",
)
edit(
    "delta_rule",
    "first_correction_only",
    replace=WRITTEN,
    by="written = surprise - overlap.tril(-1) @ surprise",
    says="You correct the chunk's writes once; the corrections need corrections too: (I + A)⁻¹ is not I − A.",
    hint="The writes of a chunk solve a triangular system.",
)
edit(
    "delta_rule",
    "diagonal_in_the_system",
    replace="torch.linalg.solve_triangular(overlap, surprise, upper=False, unitriangular=True)",
    by="torch.linalg.solve_triangular(overlap + torch.eye(k_c.shape[-2], dtype=k.dtype), surprise, upper=False)",
    says="Your system holds each token's overlap with itself; a token asks before it writes.",
    hint="Which tokens have written when token i asks? What stands on the diagonal?",
)
edit(
    "delta_rule",
    "sign_of_the_overlap",
    replace="solve_triangular(overlap,",
    by="solve_triangular(-overlap,",
    says="The tokens of a chunk add where they should take off: the overlap has the wrong sign.",
    hint="Write the second token's write out in terms of the first one's.",
)
edit(
    "delta_rule",
    "overlap_without_beta",
    replace=OVERLAP,
    by="overlap = decayed_products(k_c, k_c, log_c)",
    says="Inside a chunk the old answers are taken off without β.",
    hint="β multiplies the whole difference, also the part that the chunk itself has written.",
)
edit(
    "delta_rule",
    "overlap_with_the_other_beta",
    replace=OVERLAP,
    by="overlap = decayed_products(k_c, k_c, log_c) * beta_c.mT",
    says="The overlap of tokens i and j is weighed with β of j; it is token i that writes.",
    hint="Which token's β multiplies a row of the system?",
)
edit(
    "delta_rule",
    "overlap_without_decay",
    replace=OVERLAP,
    by="overlap = beta_c * (k_c @ k_c.mT).tril()",
    says="Between the tokens of a chunk nothing decays when they ask each other.",
    hint="What token j wrote has decayed by the time that token i asks.",
)
edit(
    "delta_rule",
    "state_ignored",
    replace="k.new_zeros(*k.shape[:-2], k.shape[-1], v.shape[-1]) if state is None else state",
    by="k.new_zeros(*k.shape[:-2], k.shape[-1], v.shape[-1])",
    says="The state that is handed in has no effect.",
    hint="What does the first chunk find before itself?",
)
edit(
    "delta_rule",
    "keys_normalised",
    replace="    log_decay = decay.log()",
    by="    k = k / k.norm(dim=-1, keepdim=True)\n    log_decay = decay.log()",
    says="You bring keys to length 1; they are used as they come.",
    hint="The contract says what is usual of keys, and not that it is done here.",
)
edit(
    "delta_rule",
    "keys_not_decayed_to_the_end",
    replace="(k_c * to_end).mT",
    by="k_c.mT",
    says="What a chunk adds to the state has not decayed: its early keys count at the end as if just written.",
    hint="How many decays lie between the write of a key and the end of its chunk?",
)
edit(
    "delta_rule",
    "no_token_crashes",
    replace="    if k.shape[-2] == 0:\n        return torch.zeros_like(v), state\n",
    by="",
    says="An empty sequence raises an error: no chunk is left to be put together, or to have a last token.",
    hint="A stream may have nothing new. What does the contract say comes back then?",
)
edit(
    "delta_rule",
    "no_token_forgets_the_state",
    replace="return torch.zeros_like(v), state\n",
    by="return torch.zeros_like(v), torch.zeros_like(state)\n",
    says="After an empty sequence the state is gone: zeros come back in its place.",
    hint="Which step of the recurrence changes the state, and how many steps are there without a token?",
)
edit(
    "delta_rule",
    "one_chunk_for_everything",
    replace="    out = []\n",
    by="    out, chunk = [], max(1, q.shape[-2])\n",
    says="You treat the whole sequence as one chunk: all pairs are computed, whatever `chunk` says.",
    hint="How large is the triangular system, and how large should it be?",
)


@mistake(
    "delta_rule",
    says="You read the state before the token is written.",
    hint="First weaken, then correct, then read. With β = 1, what should reading with k give?",
)
def reads_before_the_correction(q, k, v, beta, decay=None, state=None, chunk=64):
    decay = k.new_ones(1, 1) if decay is None else decay
    log_decay = decay.log().expand(*k.shape[:-1], decay.shape[-1])
    state = k.new_zeros(*k.shape[:-2], k.shape[-1], v.shape[-1]) if state is None else state
    if k.shape[-2] == 0:
        return torch.zeros_like(v), state
    out = []
    parts = (x.split(chunk, dim=-2) for x in (q, k, v, beta.unsqueeze(-1), log_decay))
    for q_c, k_c, v_c, beta_c, log_c in zip(*parts, strict=True):
        log_c = log_c.cumsum(dim=-2)
        surprise = beta_c * (v_c - k_c * log_c.exp() @ state)
        overlap = beta_c * decayed_products(k_c, k_c, log_c)
        written = torch.linalg.solve_triangular(overlap, surprise, upper=False, unitriangular=True)
        out.append(q_c * log_c.exp() @ state + decayed_products(q_c, k_c, log_c).tril(-1) @ written)
        to_end = (log_c[..., -1:, :] - log_c).exp()
        state = log_c[..., -1, :, None].exp() * state + (k_c * to_end).mT @ written
    return torch.cat(out, dim=-2), state


@mistake(
    "delta_rule",
    says="You weaken the state after the write, so that what was just written has decayed before it is read.",
    hint="First weaken, then correct, then read. With β = 1, what should reading with k give?",
)
def decay_after_the_correction(q, k, v, beta, decay=None, state=None, chunk=64):
    decay = torch.ones_like(k) if decay is None else decay.expand(*k.shape)
    S = k.new_zeros(*k.shape[:-2], k.shape[-1], v.shape[-1]) if state is None else state
    if k.shape[-2] == 0:
        return torch.zeros_like(v), S
    out = []
    for t in range(k.shape[-2]):
        missing = v[..., t, :] - (k[..., t, None, :] @ S).squeeze(-2)
        S = S + (beta[..., t, None] * k[..., t, :])[..., None] * missing[..., None, :]
        S = decay[..., t, :, None] * S
        out.append((q[..., t, None, :] @ S).squeeze(-2))
    return torch.stack(out, dim=-2), S


@mistake(
    "delta_rule",
    says="You loop over the tokens, whatever `chunk` says: the result is right, but it is small step after small step.",
    hint="The writes of a chunk solve one triangular system.",
)
def token_after_token_corrected(q, k, v, beta, decay=None, state=None, chunk=64):
    decay = torch.ones_like(k) if decay is None else decay.expand(*k.shape)
    S = k.new_zeros(*k.shape[:-2], k.shape[-1], v.shape[-1]) if state is None else state
    if k.shape[-2] == 0:
        return torch.zeros_like(v), S
    out = []
    for t in range(k.shape[-2]):
        S = decay[..., t, :, None] * S
        missing = v[..., t, :] - (k[..., t, None, :] @ S).squeeze(-2)
        S = S + (beta[..., t, None] * k[..., t, :])[..., None] * missing[..., None, :]
        out.append((q[..., t, None, :] @ S).squeeze(-2))
    return torch.stack(out, dim=-2), S


@mistake(
    "delta_rule",
    says="You divide keys by the product of all decays so far; where that rounds to 0, ∞ and NaN come out.",
    hint="Only quotients of two products are needed, and those are never above 1. Work with differences of logarithms.",
)
def divides_by_vanishing_decays(q, k, v, beta, decay=None, state=None, chunk=64):
    decay = torch.ones_like(k) if decay is None else decay.expand(*k.shape)
    state = k.new_zeros(*k.shape[:-2], k.shape[-1], v.shape[-1]) if state is None else state
    if k.shape[-2] == 0:
        return torch.zeros_like(v), state
    out = []
    parts = (x.split(chunk, dim=-2) for x in (q, k, v, beta.unsqueeze(-1), decay))
    for q_c, k_c, v_c, beta_c, decay_c in zip(*parts, strict=True):
        kept = decay_c.cumprod(dim=-2)
        raised = k_c / kept
        surprise = beta_c * (v_c - k_c * kept @ state)
        overlap = beta_c * ((k_c * kept) @ raised.mT)
        written = torch.linalg.solve_triangular(overlap.tril(), surprise, upper=False, unitriangular=True)
        out.append(q_c * kept @ state + ((q_c * kept) @ raised.mT).tril() @ written)
        state = kept[..., -1, :, None] * (state + raised.mT @ written)
    return torch.cat(out, dim=-2), state


# decoding_state_bytes


@alternative("decoding_state_bytes")
def case_by_case(
    kind,
    seq,
    layers,
    heads,
    head_dim,
    kv_heads=1,
    latent_dim=0,
    rope_dim=0,
    window=1,
    batch=1,
    bytes_per_element=2,
):
    match kind:
        case "linear":
            numbers = heads * (head_dim**2 + head_dim)
        case "mla":
            numbers = seq * (latent_dim + rope_dim)
        case "mha" | "gqa" | "window":
            sharing = kv_heads if kind == "gqa" else heads
            length = min(window, seq) if kind == "window" else seq
            numbers = sum(length * sharing * head_dim for _ in "kv")
        case _:
            raise ValueError(kind)
    return batch * layers * numbers * bytes_per_element


edit(
    "decoding_state_bytes",
    "keys_only",
    replace="2 * heads * head_dim * seq",
    by="heads * head_dim * seq",
    says="For mha you count keys only; values are kept too.",
    hint="Which two tensors does attention read of every earlier token?",
)
edit(
    "decoding_state_bytes",
    "groups_ignored",
    replace="2 * kv_heads * head_dim * seq",
    by="2 * heads * head_dim * seq",
    says="gqa is counted with all query heads; keys and values exist once a group.",
    hint="How many heads of keys are there?",
)
edit(
    "decoding_state_bytes",
    "latent_counted_twice",
    replace="(latent_dim + rope_dim) * seq",
    by="2 * (latent_dim + rope_dim) * seq",
    says="You count the latent once for keys and once for values; both are made from the same one.",
    hint="What is the point of a latent that keys and values share?",
)
edit(
    "decoding_state_bytes",
    "latent_for_each_head",
    replace="(latent_dim + rope_dim) * seq",
    by="heads * (latent_dim + rope_dim) * seq",
    says="You count a latent for each head; one serves all of them.",
    hint="The latent stands before the heads are split.",
)
edit(
    "decoding_state_bytes",
    "rotary_key_forgotten",
    replace="(latent_dim + rope_dim) * seq",
    by="latent_dim * seq",
    says="You forgot the rotary key, which is kept beside the latent.",
    hint="Which part of a key depends on its position, and cannot come out of the latent?",
)
edit(
    "decoding_state_bytes",
    "rotary_key_for_each_head",
    replace="(latent_dim + rope_dim) * seq",
    by="(latent_dim + heads * rope_dim) * seq",
    says="You count a rotary key for each head; one serves all of them.",
    hint="Only queries have a rotary part for each head.",
)
edit(
    "decoding_state_bytes",
    "window_counts_everything",
    replace="min(seq, window)",
    by="seq",
    says="The window's cache grows for ever; it keeps the last `window` tokens.",
    hint="What may be dropped once it has left the window?",
)
edit(
    "decoding_state_bytes",
    "window_always_full",
    replace="min(seq, window)",
    by="window",
    says="You count a full window before there are that many tokens.",
    hint="How many tokens are kept after the third one?",
)
edit(
    "decoding_state_bytes",
    "normaliser_not_counted",
    replace="head_dim * (head_dim + 1)",
    by="head_dim * head_dim",
    says="You count the matrix S of linear attention and forget its normaliser z.",
    hint="The state is a pair.",
)
edit(
    "decoding_state_bytes",
    "linear_grows",
    replace="head_dim * (head_dim + 1)",
    by="head_dim * (head_dim + 1) * seq",
    says="You count a state for every token; linear attention keeps one.",
    hint="What does the state after 1,000 tokens hold that the one after 10 does not?",
)
edit(
    "decoding_state_bytes",
    "layers_forgotten",
    replace=" * layers * batch",
    by=" * batch",
    says="You count one layer; each has a state of its own.",
    hint="How often does a model attend for one token?",
)
edit(
    "decoding_state_bytes",
    "batch_forgotten",
    replace=" * layers * batch",
    by=" * layers",
    says="You count one sequence; those decoded side by side have a state each.",
    hint="Can two sequences share a cache?",
)
edit(
    "decoding_state_bytes",
    "always_two_bytes",
    replace="* bytes_per_element",
    by="* 2",
    says="You always count two bytes a number.",
    hint="Which arguments does your result depend on?",
)
edit(
    "decoding_state_bytes",
    "not_an_integer",
    replace="elements[kind] * layers",
    by="elements[kind] * 1.0 * layers",
    says="A floating-point number comes out, which is not exact when it is large.",
    hint="Which operation turns integers into floats?",
)
edit(
    "decoding_state_bytes",
    "unknown_kind_is_a_key_error",
    replace="""    if kind not in elements:
        raise ValueError(f"kind must be one of {', '.join(elements)}, not {kind!r}")
""",
    by="",
    says="An unknown kind ends in a KeyError; the contract asks for a ValueError.",
    hint="Check the kind before you look it up.",
)
edit(
    "decoding_state_bytes",
    "unknown_kind_is_nothing",
    replace="""    if kind not in elements:
        raise ValueError(f"kind must be one of {', '.join(elements)}, not {kind!r}")
""",
    by="    elements.setdefault(kind, 0)\n",
    says="An unknown kind gives 0 bytes instead of an error.",
    hint="Better an error than a number that means nothing.",
)
