"""Other right answers to chapter `positions`, and the mistakes that people really make."""

import math

import torch
from torch import nn

from autograder.answers import alternative, edit

# --- sinusoidal_encoding ---------------------------------------------------------------------------------------------


@alternative("sinusoidal_encoding")
def table_filled_by_columns(seq, d_model, base=10000.0, offset=0):
    table = torch.zeros(seq, d_model, dtype=torch.float64)
    p = torch.arange(seq, dtype=torch.float64) + offset
    for k in range(0, d_model, 2):
        angle = p * math.exp(-math.log(base) * k / d_model)
        table[:, k] = torch.sin(angle)
        if k + 1 < d_model:
            table[:, k + 1] = torch.cos(angle)
    return table


@alternative("sinusoidal_encoding")
def pairs_stacked(seq, d_model, base=10000.0, offset=0):
    rates = torch.pow(
        torch.tensor(base, dtype=torch.float64), -torch.arange(0, d_model, 2) / torch.tensor(d_model).double()
    )
    angles = torch.outer(torch.arange(seq).double() + offset, rates)
    return torch.stack((torch.sin(angles), torch.cos(angles)), dim=2).flatten(1)[:, :d_model]


RATES = "base ** (-(columns - columns % 2).double() / d_model)"
WAVES = "torch.where(columns % 2 == 0, angles.sin(), angles.cos())"
ROWS = "torch.arange(offset, offset + seq).double()[:, None]"
edit(
    "sinusoidal_encoding",
    "cosine_first",
    replace=WAVES,
    by="torch.where(columns % 2 == 0, angles.cos(), angles.sin())",
    says="Your even columns hold cosines and your odd ones sines; it is the other way round.",
    hint="Position 0 has sin 0 = 0 in its first column.",
)
edit(
    "sinusoidal_encoding",
    "frequency_for_each_column",
    replace=RATES,
    by="base ** (-columns.double() / d_model)",
    says="Each of your columns has a frequency of its own; a sine and its cosine must share one.",
    hint="Columns 2k and 2k + 1 have the same exponent.",
)
edit(
    "sinusoidal_encoding",
    "exponent_halved",
    replace=RATES,
    by="base ** (-(columns // 2).double() / d_model)",
    says="Your exponent is k / d_model, so the frequencies fall half as fast as they should.",
    hint="The exponent is the number of the even column over the width.",
)
edit(
    "sinusoidal_encoding",
    "exponent_doubled",
    replace=RATES,
    by="base ** (-2 * (columns - columns % 2).double() / d_model)",
    says="You double a column number that is even already: the exponent is 4k / d_model.",
    hint="For column 2k the exponent is 2k / d_model. Do your columns count pairs, or columns?",
)
edit(
    "sinusoidal_encoding",
    "frequencies_grow",
    replace=RATES,
    by="base ** ((columns - columns % 2).double() / d_model)",
    says="Your angles are multiplied by base^(2k/d) instead of divided: later pairs turn faster, not slower.",
    hint="Which of the pairs is the second hand of the clock?",
)
edit(
    "sinusoidal_encoding",
    "halves_instead_of_pairs",
    replace=WAVES,
    by="torch.cat([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1)",
    says="All sines stand in the first half and all cosines in the second; here they alternate.",
    hint="Both layouts exist. Which columns does the contract name?",
)
edit(
    "sinusoidal_encoding",
    "odd_width_loses_its_last_column",
    replace="columns = torch.arange(d_model)",
    by="columns = torch.arange(d_model - d_model % 2)",
    says="An odd width comes out one column short: the last sine is missing.",
    hint="How many sines has d_model = 7?",
)
edit(
    "sinusoidal_encoding",
    "offset_ignored",
    replace=ROWS,
    by="torch.arange(seq).double()[:, None]",
    says="`offset` has no effect: your first row always stands at position 0.",
    hint="Where does the first row stand?",
)
edit(
    "sinusoidal_encoding",
    "base_ignored",
    replace=RATES,
    by="10000.0 ** (-(columns - columns % 2).double() / d_model)",
    says="`base` has no effect: you always use 10000.",
    hint="Which arguments does your result depend on?",
)
edit(
    "sinusoidal_encoding",
    "positions_from_one",
    replace=ROWS,
    by="torch.arange(offset + 1, offset + seq + 1).double()[:, None]",
    says="Your positions start at 1; the first row stands at `offset` itself.",
    hint="The first row of the worked example is sin 0, cos 0, …",
)
edit(
    "sinusoidal_encoding",
    "angles_in_float32",
    replace="angles = torch.arange(offset, offset + seq).double()[:, None] * rates",
    by="angles = (torch.arange(offset, offset + seq).float()[:, None] * rates.float()).double()",
    says="You compute the angles in float32, which has seven digits: far out the waves are noise.",
    hint="How many digits does an angle of 10⁷ need, if its fraction is to count?",
)
edit(
    "sinusoidal_encoding",
    "width_rounded_up_in_the_exponent",
    replace=RATES,
    by="base ** (-(columns - columns % 2).double() / (d_model + d_model % 2))",
    says="For an odd width you divide by the width rounded up to an even number.",
    hint="The formula divides by d_model, whatever it is.",
)

# --- shift_matrix ----------------------------------------------------------------------------------------------------


@alternative("shift_matrix")
def block_diagonal(offset, d_model, base=10000.0):
    if d_model % 2 == 1:
        raise ValueError("pairs are needed")
    blocks = []
    for pair in range(d_model // 2):
        angle = offset * base ** (-2 * pair / d_model)
        c, s = math.cos(angle), math.sin(angle)
        blocks.append(torch.tensor([[c, s], [-s, c]], dtype=torch.float64))
    return torch.block_diag(*blocks)


SINES = """    matrix[even, even + 1] = sines
    matrix[even + 1, even] = -sines
"""
edit(
    "shift_matrix",
    "turned_backwards",
    replace=SINES,
    by="    matrix[even, even + 1] = -sines\n    matrix[even + 1, even] = sines\n",
    says="Your matrix turns the other way: it moves positions back by `offset`.",
    hint="sin(a + b) = sin a cos b + cos a sin b. The sine stands first in each pair.",
)
edit(
    "shift_matrix",
    "no_sign",
    replace="= -sines",
    by="= sines",
    says="Both sines have the same sign; the matrix of a rotation has one of each.",
    hint="Expand cos(a + b).",
)
edit(
    "shift_matrix",
    "sines_forgotten",
    replace=SINES,
    by="",
    says="Only the diagonal is filled: sine and cosine of a pair have to be mixed.",
    hint="Does sin(p + k) follow from sin(p) alone?",
)
edit(
    "shift_matrix",
    "cosines_on_the_sides",
    replace="""    matrix[even, even] = cosines
    matrix[even, even + 1] = sines
    matrix[even + 1, even] = -sines
    matrix[even + 1, even + 1] = cosines
""",
    by="""    matrix[even, even] = sines
    matrix[even, even + 1] = cosines
    matrix[even + 1, even] = -cosines
    matrix[even + 1, even + 1] = sines
""",
    says="Sines and cosines have changed places in your blocks.",
    hint="What must the block be for an offset of 0?",
)
edit(
    "shift_matrix",
    "accepts_odd_widths",
    replace="if d_model % 2:",
    by="if d_model < 0:",
    says="An odd width gets another error, or none; it should raise ValueError.",
    hint="Check the width before anything else.",
)
edit(
    "shift_matrix",
    "base_ignored",
    replace="sinusoidal_encoding(1, d_model, base, offset)",
    by="sinusoidal_encoding(1, d_model, offset=offset)",
    says="`base` has no effect: you always use 10000.",
    hint="Hand every argument on.",
)
edit(
    "shift_matrix",
    "sign_of_the_offset_lost",
    replace="sinusoidal_encoding(1, d_model, base, offset)",
    by="sinusoidal_encoding(1, d_model, base, abs(offset))",
    says="A negative offset moves forwards: you lost its sign.",
    hint="What is the matrix of a step back?",
)
edit(
    "shift_matrix",
    "halves_instead_of_pairs",
    replace="""    matrix[even, even] = cosines
    matrix[even, even + 1] = sines
    matrix[even + 1, even] = -sines
    matrix[even + 1, even + 1] = cosines
""",
    by="""    half = torch.arange(d_model // 2)
    matrix[half, half] = cosines
    matrix[half, half + d_model // 2] = sines
    matrix[half + d_model // 2, half] = -sines
    matrix[half + d_model // 2, half + d_model // 2] = cosines
""",
    says="You pair column i with column i + d_model/2; in this encoding a sine stands next to its cosine.",
    hint="Which two columns share a frequency?",
)
edit(
    "shift_matrix",
    "one_angle_for_all_pairs",
    replace="sines, cosines = turn[0::2], turn[1::2]",
    by="sines, cosines = turn[0].expand(d_model // 2), turn[1].expand(d_model // 2)",
    says="All your blocks turn by the angle of the first pair; each pair has its own frequency.",
    hint="The hands of a clock do not turn equally fast.",
)
edit(
    "shift_matrix",
    "in_float32",
    replace="    return matrix",
    by="    return matrix.float()",
    says="The matrix comes out in float32; the contract asks for float64.",
    hint="What is the dtype of your matrix?",
)

# --- LearnedPositions ------------------------------------------------------------------------------------------------


@alternative("LearnedPositions")
class LookedUp(nn.Module):
    def __init__(self, max_seq, d_model):
        super().__init__()
        self.max_seq = max_seq
        self.table = nn.Embedding(max_seq, d_model)
        with torch.no_grad():
            self.table.weight.normal_(0.0, 0.02)

    def forward(self, x, offset=0):
        ids = torch.arange(offset, offset + x.size(-2), device=x.device)
        if len(ids) and (ids[0] < 0 or ids[-1] >= self.max_seq):
            raise ValueError("too far")
        return self.table(ids) + x


CHECK = "if offset < 0 or end > self.table.num_embeddings:"
ADDED = "x + self.table.weight[offset:end]"
edit(
    "LearnedPositions",
    "offset_ignored",
    replace=ADDED,
    by="x + self.table.weight[: x.shape[-2]]",
    says="`offset` has no effect: you always add the first rows of the table.",
    hint="Which row belongs to the first position of x?",
)
edit(
    "LearnedPositions",
    "no_error_past_the_end",
    replace=CHECK,
    by="if offset < 0:",
    says="Past the end of the table another error comes out of torch's depths, or none; it should be a ValueError.",
    hint="Compare the last position with the table before you read.",
)
edit(
    "LearnedPositions",
    "one_position_too_few",
    replace=CHECK,
    by="if offset < 0 or end >= self.table.num_embeddings:",
    says="You refuse the last row of the table, which is a position like any other.",
    hint="> or ≥? A table of 8 rows knows 8 positions.",
)
edit(
    "LearnedPositions",
    "length_checked_without_offset",
    replace=CHECK,
    by="if offset < 0 or x.shape[-2] > self.table.num_embeddings:",
    says="You compare the length with the table and forget the offset.",
    hint="Where does the last position of x stand?",
)
edit(
    "LearnedPositions",
    "negative_offset_accepted",
    replace=CHECK,
    by="if end > self.table.num_embeddings:",
    says="A negative offset is not refused; Python reads such a slice from the other end.",
    hint="Which positions lie outside the table?",
)
edit(
    "LearnedPositions",
    "clamped_to_the_last_row",
    replace="""        if offset < 0 or end > self.table.num_embeddings:
            raise ValueError(f"positions {offset} to {end - 1}, but the table ends at {self.table.num_embeddings - 1}")
        return x + self.table.weight[offset:end]
""",
    by="""        ids = torch.arange(offset, end).clamp(0, self.table.num_embeddings - 1)
        return x + self.table.weight[ids]
""",
    says="Positions past the table share its last row, in silence; they should raise ValueError.",
    hint="A model that has never seen position 600 should say so.",
)
edit(
    "LearnedPositions",
    "positions_wrap_around",
    replace="""        if offset < 0 or end > self.table.num_embeddings:
            raise ValueError(f"positions {offset} to {end - 1}, but the table ends at {self.table.num_embeddings - 1}")
        return x + self.table.weight[offset:end]
""",
    by="""        ids = torch.arange(offset, end) % self.table.num_embeddings
        return x + self.table.weight[ids] + 0.0
""",
    says="Past the end of the table you begin again at its start; it should raise ValueError.",
    hint="Two positions with the same vector are the same to attention.",
)
edit(
    "LearnedPositions",
    "only_the_positions",
    replace=ADDED,
    by="self.table.weight[offset:end].expand_as(x)",
    says="You return the vectors of the positions without x.",
    hint="Added to what?",
)
edit(
    "LearnedPositions",
    "sequence_is_axis_one",
    replace="end = offset + x.shape[-2]",
    by="end = offset + x.shape[1]",
    says="You take axis 1 for the sequence, which holds for one batch axis only.",
    hint="Count axes from the back.",
)
edit(
    "LearnedPositions",
    "table_from_torchs_default",
    replace="nn.init.normal_(self.table.weight, std=0.02)",
    by="",
    says="Your table starts with standard deviation 1, which drowns the tokens; 0.02 is asked for.",
    hint="How does nn.Embedding draw its numbers?",
)
edit(
    "LearnedPositions",
    "sinusoids_in_the_table",
    replace="nn.init.normal_(self.table.weight, std=0.02)",
    by="self.table.weight.data.copy_(sinusoidal_encoding(max_seq, d_model))",
    says="You fill the table with sinusoids; it starts with small random numbers.",
    hint="What does the contract say about a fresh table?",
)
edit(
    "LearnedPositions",
    "table_detached",
    replace=ADDED,
    by="x + self.table.weight.data[offset:end]",
    says="The values are right, but the table is cut off from autograd: it never learns.",
    hint="Look for `.data`, `detach` or `no_grad`.",
)
edit(
    "LearnedPositions",
    "adds_in_place",
    replace="return " + ADDED,
    by="x += self.table.weight[offset:end]\n        return x",
    says="You add into x itself, which belongs to the caller (and autograd refuses it).",
    hint="`+=` writes, `+` makes something new.",
)

# --- TokenEmbedding --------------------------------------------------------------------------------------------------


@alternative("TokenEmbedding")
class OneHotProduct(nn.Module):
    def __init__(self, vocab, d_model, tied=True):
        super().__init__()
        self.table = nn.Embedding(vocab, d_model)
        nn.init.normal_(self.table.weight, 0.0, 1 / math.sqrt(d_model))
        if not tied:
            self.head = nn.Linear(d_model, vocab, bias=False)
        self.tied = tied
        self.vocab, self.scale = vocab, d_model**0.5

    def forward(self, ids):
        one_hot = nn.functional.one_hot(ids, self.vocab).to(self.table.weight.dtype)
        return one_hot @ (self.table.weight * self.scale)

    def logits(self, hidden):
        if self.tied:
            return nn.functional.linear(hidden, self.table.weight)
        return self.head(hidden)


SCALED = "self.table(ids) * math.sqrt(self.table.embedding_dim)"
edit(
    "TokenEmbedding",
    "not_scaled",
    replace=SCALED,
    by="self.table(ids)",
    says="You do not multiply by √d_model.",
    hint="Section 3.4 of the paper ends with a factor.",
)
edit(
    "TokenEmbedding",
    "divided_by_the_root",
    replace=SCALED,
    by="self.table(ids) / math.sqrt(self.table.embedding_dim)",
    says="You divide by √d_model; the embedding is made larger, not smaller.",
    hint="Scores are divided by a root. What happens to embeddings?",
)
edit(
    "TokenEmbedding",
    "scaled_by_the_width",
    replace=SCALED,
    by="self.table(ids) * self.table.embedding_dim",
    says="You multiply by d_model, not by its square root.",
    hint="A vector of d numbers of size 1/√d: what brings each to size 1?",
)
edit(
    "TokenEmbedding",
    "scaled_by_the_vocabulary",
    replace=SCALED,
    by="self.table(ids) * math.sqrt(self.table.num_embeddings)",
    says="You multiply by the root of the vocabulary's size; it should be the root of d_model.",
    hint="Which of the two sizes belongs to a single vector?",
)
edit(
    "TokenEmbedding",
    "scaled_head",
    replace="return hidden @ weight.T",
    by="return hidden @ weight.T * math.sqrt(self.table.embedding_dim)",
    says="You scale the logits too; the factor belongs to the embedding alone.",
    hint="Which of the two methods is scaled?",
)
edit(
    "TokenEmbedding",
    "head_divided_by_the_root",
    replace="return hidden @ weight.T",
    by="return hidden @ weight.T / math.sqrt(self.table.embedding_dim)",
    says="You divide the logits by √d_model; they are plain dot products.",
    hint="Is there a scale in the contract of `logits`?",
)
edit(
    "TokenEmbedding",
    "table_not_transposed",
    replace="return hidden @ weight.T",
    by="return hidden @ weight",
    says="You multiply by the table as it is; each logit is the dot product with one of its rows.",
    hint="Write the shapes of hidden and table next to each other.",
)
edit(
    "TokenEmbedding",
    "never_tied",
    replace="None if tied else nn.Linear(d_model, vocab, bias=False)",
    by="nn.Linear(d_model, vocab, bias=False)",
    says="Your head has a matrix of its own, also where it should share the table.",
    hint="Which parameters should a tied embedding have?",
)
edit(
    "TokenEmbedding",
    "always_tied",
    replace="None if tied else nn.Linear(d_model, vocab, bias=False)",
    by="None",
    says="`tied=False` has no effect: there is no `head`.",
    hint="What is `tied` for?",
)
edit(
    "TokenEmbedding",
    "head_not_used",
    replace="self.table.weight if self.head is None else self.head.weight",
    by="self.table.weight",
    says="There is an untied head, and `logits` does not use it.",
    hint="Which matrix makes the logits when tied is False?",
)
edit(
    "TokenEmbedding",
    "head_with_bias",
    replace="nn.Linear(d_model, vocab, bias=False)",
    by="nn.Linear(d_model, vocab)",
    says="Your head has a bias; the contract wants it without.",
    hint="`nn.Linear` has a bias unless you say otherwise.",
)
edit(
    "TokenEmbedding",
    "torchs_default_size",
    replace="nn.init.normal_(self.table.weight, std=d_model**-0.5)",
    by="",
    says="Your table starts with standard deviation 1, so the factor makes vectors of size √d_model.",
    hint="The factor √d_model presumes numbers of size 1/√d_model.",
)
edit(
    "TokenEmbedding",
    "head_teaches_nobody",
    replace="return hidden @ weight.T",
    by="return hidden @ weight.T.detach()",
    says="The logits are right, but no gradient reaches the matrix that made them.",
    hint="Look for `detach`, `.data` or `no_grad`.",
)

# --- shaw_relative_attention -----------------------------------------------------------------------------------------


@alternative("shaw_relative_attention")
def one_distance_after_the_other(q, k, v, rel_k, rel_v, max_distance):
    q_seq, kv_seq = q.size(-2), k.size(-2)
    positions = torch.arange(q_seq, device=q.device).unsqueeze(1) + (kv_seq - q_seq)
    away = torch.arange(kv_seq, device=q.device).unsqueeze(0) - positions
    away = torch.clamp(away, min=-max_distance, max=max_distance)
    scores = torch.einsum("...id,...jd->...ij", q, k)
    for d in range(-max_distance, max_distance + 1):
        here = (away == d).to(q.dtype)
        scores = scores + torch.einsum("...id,d->...i", q, rel_k[d + max_distance]).unsqueeze(-1) * here
    weights = torch.softmax(scores * q.size(-1) ** -0.5, dim=-1)
    output = torch.einsum("...ij,...jd->...id", weights, v)
    for d in range(-max_distance, max_distance + 1):
        share = (weights * (away == d).to(q.dtype)).sum(dim=-1, keepdim=True)
        output = output + share * rel_v[d + max_distance]
    return output, weights


AWAY = "keys - torch.arange(kv_seq - q_seq, kv_seq, device=q.device)[:, None]"
edit(
    "shaw_relative_attention",
    "query_minus_key",
    replace=AWAY,
    by="torch.arange(kv_seq - q_seq, kv_seq, device=q.device)[:, None] - keys",
    says="You take the query's position minus the key's; the tables count the other way round.",
    hint="A key one step ahead has distance +1.",
)
edit(
    "shaw_relative_attention",
    "aligned_top_left",
    replace=AWAY,
    by="keys - torch.arange(q_seq, device=q.device)[:, None]",
    says="You let query i stand at i; with other lengths it stands at i + kv_seq − q_seq.",
    hint="The last query stands at the last key.",
)
edit(
    "shaw_relative_attention",
    "distances_without_sign",
    replace=AWAY,
    by="(keys - torch.arange(kv_seq - q_seq, kv_seq, device=q.device)[:, None]).abs()",
    says="Behind and ahead share a row in your tables: you dropped the sign of the distance.",
    hint="The tables have 2 · max_distance + 1 rows. Which ones do you never read?",
)
edit(
    "shaw_relative_attention",
    "wrapped_instead_of_clipped",
    replace="away.clamp(-max_distance, max_distance) + max_distance",
    by="(away + max_distance) % (2 * max_distance + 1)",
    says="Distances beyond max_distance wrap around to the other end; they should be clipped.",
    hint="Everything far away shares the outermost row.",
)
edit(
    "shaw_relative_attention",
    "row_zero_for_distance_zero",
    replace="away.clamp(-max_distance, max_distance) + max_distance",
    by="away.clamp(-max_distance, max_distance) % (2 * max_distance + 1)",
    says="Distance 0 reads row 0 of your tables; it belongs in the middle.",
    hint="Row d + max_distance belongs to distance d.",
)
edit(
    "shaw_relative_attention",
    "keys_without_distances",
    replace=" + (q @ rel_k.T).gather(-1, rows)",
    by="",
    says="`rel_k` has no effect on your weights.",
    hint="Distances enter twice: into the keys and into the values.",
)
edit(
    "shaw_relative_attention",
    "values_without_distances",
    replace=" + by_distance @ rel_v",
    by="",
    says="`rel_v` has no effect on your output.",
    hint="Distances enter twice: into the keys and into the values.",
)
edit(
    "shaw_relative_attention",
    "distances_not_scaled",
    replace="""    scores = q @ k.mT + (q @ rel_k.T).gather(-1, rows)
    weights = (scores / math.sqrt(q.shape[-1])).softmax(dim=-1)
""",
    by="""    scores = q @ k.mT / math.sqrt(q.shape[-1]) + (q @ rel_k.T).gather(-1, rows)
    weights = scores.softmax(dim=-1)
""",
    says="You divide the scores of the contents by √head_dim, but not those of the distances.",
    hint="The distance is added to the key, and the whole is divided.",
)
edit(
    "shaw_relative_attention",
    "no_scale",
    replace="(scores / math.sqrt(q.shape[-1])).softmax(dim=-1)",
    by="scores.softmax(dim=-1)",
    says="You do not divide the scores by √head_dim.",
    hint="What stands below the fraction line of equation 4?",
)
edit(
    "shaw_relative_attention",
    "distances_meet_the_keys",
    replace="(q @ rel_k.T).gather(-1, rows)",
    by="(k @ rel_k.T).gather(-1, rows.mT).mT if q.shape == k.shape else (q @ rel_k.T).gather(-1, rows)",
    says="You multiply the distances with the keys; it is the query that meets them.",
    hint="q · (k + r) = q · k + q · r.",
)
edit(
    "shaw_relative_attention",
    "tables_swapped",
    replace="by_distance @ rel_v",
    by="by_distance @ (rel_k if rel_k.shape == rel_v.shape else rel_v.flip(0))",
    says="Your values read the wrong rows of the table, or the wrong table.",
    hint="Which table belongs to the values, and which of its rows to a distance?",
)
edit(
    "shaw_relative_attention",
    "a_vector_for_each_pair",
    replace="(q @ rel_k.T).gather(-1, rows)",
    by="(q.unsqueeze(-2) * rel_k[rows]).sum(dim=-1)",
    says="The values are right, but you write a vector for every pair: q_seq · kv_seq · head_dim numbers.",
    hint="The query meets only 2 · max_distance + 1 different vectors. Score those first.",
)
edit(
    "shaw_relative_attention",
    "weights_detached",
    replace="scatter_add(-1, rows, weights)",
    by="scatter_add(-1, rows, weights.detach())",
    says="The values are right, but the weights are cut off from autograd on their way to rel_v.",
    hint="Look for `detach`, `.data` or `no_grad`.",
)

# --- relative_shift --------------------------------------------------------------------------------------------------


@alternative("relative_shift")
def through_strides(x):
    *lead, rows, columns = x.shape
    flat = nn.functional.pad(x, (0, rows)).reshape(*lead, rows * (columns + rows))
    flat = flat[..., rows - 1 :]
    length = columns + rows - 1
    flat = nn.functional.pad(flat, (0, max(0, rows * length - flat.shape[-1])))[..., : rows * length]
    return flat.reshape(*lead, rows, length)[..., :columns].tril(columns - rows)


SKEWED = "padded.reshape(*batch, kv_seq + 1, q_seq)[..., 1:, :].reshape(*batch, q_seq, kv_seq)"
edit(
    "relative_shift",
    "nothing_shifted",
    replace="return skewed.tril(kv_seq - q_seq)",
    by="return x.tril(kv_seq - q_seq)",
    says="Your rows have not moved.",
    hint="Row i moves left by q_seq − 1 − i.",
)
edit(
    "relative_shift",
    "future_left_in",
    replace="return skewed.tril(kv_seq - q_seq)",
    by="return skewed",
    says="Behind the diagonal stand numbers of the next row; the future should be 0.",
    hint="Which entries belong to keys that the query has not reached?",
)
edit(
    "relative_shift",
    "shifted_right",
    replace="return skewed.tril(kv_seq - q_seq)",
    by="""out = torch.zeros_like(x)
    for i in range(q_seq):
        out[..., i, q_seq - 1 - i :] = x[..., i, : kv_seq - (q_seq - 1 - i)]
    return out.tril(kv_seq - q_seq)""",
    says="Your rows move right; distance 0 stands in the last column and has to move left to the diagonal.",
    hint="Where does distance 0 of row 0 have to end up?",
)
edit(
    "relative_shift",
    "shifted_by_the_row",
    replace="return skewed.tril(kv_seq - q_seq)",
    by="""out = torch.zeros_like(x)
    for i in range(q_seq):
        out[..., i, : kv_seq - i] = x[..., i, i:]
    return out""",
    says="You move row i by i; the last row is the one that stays.",
    hint="For the last query, distances and keys have the same order already.",
)
edit(
    "relative_shift",
    "padded_behind",
    replace="torch.cat([x.new_zeros(*batch, q_seq, 1), x], dim=-1)",
    by="torch.cat([x, x.new_zeros(*batch, q_seq, 1)], dim=-1)",
    says="You pad on the right, so every row is off by one after the change of shape.",
    hint="On which side does the column of zeros belong?",
)
edit(
    "relative_shift",
    "first_row_kept",
    replace=SKEWED,
    by="padded.reshape(*batch, kv_seq + 1, q_seq)[..., :-1, :].reshape(*batch, q_seq, kv_seq)",
    says="You cut off the last row after the change of shape; it is the first that must go.",
    hint="Write the padded numbers in one line. Where does the result begin?",
)
edit(
    "relative_shift",
    "transposed_instead_of_reshaped",
    replace="padded.reshape(*batch, kv_seq + 1, q_seq)",
    by="padded.mT",
    says="You transpose where the same numbers should be read with another row length.",
    hint="A reshape leaves the order in memory alone.",
)
edit(
    "relative_shift",
    "future_of_a_square",
    replace="return skewed.tril(kv_seq - q_seq)",
    by="return skewed.tril()",
    says="With a memory you set too much to 0: query i stands at i + kv_seq − q_seq.",
    hint="How far may the first query look when there are more keys than queries?",
)
edit(
    "relative_shift",
    "future_multiplied_away",
    replace="return skewed.tril(kv_seq - q_seq)",
    by="return skewed * torch.ones(q_seq, kv_seq, dtype=x.dtype).tril(kv_seq - q_seq)",
    says="You multiply the future by 0, and an infinite score times 0 is NaN.",
    hint="Replace what is not wanted instead of multiplying it.",
)
edit(
    "relative_shift",
    "rows_in_a_loop",
    replace="return skewed.tril(kv_seq - q_seq)",
    by="""out = torch.zeros_like(x)
    for i in range(q_seq):
        out[..., i, : kv_seq - q_seq + 1 + i] = x[..., i, q_seq - 1 - i :]
    return out""",
    says="The values are right, but you visit the rows one by one in Python.",
    hint="All numbers already stand in the right order, if you read them with another row length.",
)
edit(
    "relative_shift",
    "gathered",
    replace="return skewed.tril(kv_seq - q_seq)",
    by="""rows = torch.arange(q_seq)[:, None]
    columns = (torch.arange(kv_seq) + q_seq - 1 - rows).clamp(max=kv_seq - 1)
    return x[..., rows, columns].tril(kv_seq - q_seq)""",
    says="The values are right, but you build a table of indices and look every entry up.",
    hint="All numbers already stand in the right order, if you read them with another row length.",
)

# --- transformer_xl_scores -------------------------------------------------------------------------------------------


@alternative("transformer_xl_scores")
def four_terms_by_distance(q, k, r, u, v):
    q_seq, kv_seq, width = q.shape[-2], k.shape[-2], q.shape[-1]
    here = torch.arange(q_seq).unsqueeze(1) + kv_seq - q_seq
    distance = here - torch.arange(kv_seq)
    column = (kv_seq - 1 - distance).clamp(0, kv_seq - 1)
    a = torch.einsum("...hid,...hjd->...hij", q, k)
    b = torch.einsum("...hid,hcd->...hic", q, r)
    c = torch.einsum("hd,...hjd->...hj", u, k).unsqueeze(-2)
    d = torch.einsum("hd,hcd->hc", v, r).unsqueeze(-2).expand(r.shape[0], q_seq, kv_seq)
    b = torch.gather(b, -1, column.expand(b.shape))
    d = torch.gather(d, -1, column.expand(d.shape))
    scores = (a + b + c + d) / width**0.5
    return torch.where(distance >= 0, scores, torch.full((), float("-inf"), dtype=scores.dtype))


edit(
    "transformer_xl_scores",
    "biases_swapped",
    replace="""    content = (q + u[:, None]) @ k.mT
    position = relative_shift((q + v[:, None]) @ r.mT)
""",
    by="""    content = (q + v[:, None]) @ k.mT
    position = relative_shift((q + u[:, None]) @ r.mT)
""",
    says="u and v have changed places: u meets the keys, v meets the distances.",
    hint="Which bias says how much a key matters by itself?",
)
edit(
    "transformer_xl_scores",
    "no_content_bias",
    replace="(q + u[:, None])",
    by="q",
    says="The term u · k is missing.",
    hint="Count your terms. There should be four.",
)
edit(
    "transformer_xl_scores",
    "no_position_bias",
    replace="(q + v[:, None])",
    by="q",
    says="The term v · r is missing.",
    hint="Count your terms. There should be four.",
)
edit(
    "transformer_xl_scores",
    "not_shifted",
    replace="relative_shift((q + v[:, None]) @ r.mT)",
    by="(q + v[:, None]) @ r.mT",
    says="The position terms are still sorted by distance, not by key.",
    hint="Which exercise puts them in order?",
)
edit(
    "transformer_xl_scores",
    "distances_reversed",
    replace="relative_shift((q + v[:, None]) @ r.mT)",
    by="relative_shift((q + v[:, None]) @ r.flip(-2).mT)",
    says="You read r from the wrong end: its last row belongs to distance 0.",
    hint="Row c belongs to distance kv_seq − 1 − c.",
)
edit(
    "transformer_xl_scores",
    "no_scale",
    replace="((content + position) / math.sqrt(q.shape[-1]))",
    by="(content + position)",
    says="You do not divide by √head_dim.",
    hint="All four terms are dot products of head_dim numbers.",
)
edit(
    "transformer_xl_scores",
    "only_content_scaled",
    replace="((content + position) / math.sqrt(q.shape[-1]))",
    by="(content / math.sqrt(q.shape[-1]) + position)",
    says="You scale the contents but not the positions.",
    hint="The scale belongs to the sum of all four terms.",
)
edit(
    "transformer_xl_scores",
    "future_visible",
    replace=".masked_fill(future, -torch.inf)",
    by="",
    says="Keys in the future keep a score; they should be −∞.",
    hint="What score has a softmax weight of 0?",
)
edit(
    "transformer_xl_scores",
    "future_is_zero",
    replace=".masked_fill(future, -torch.inf)",
    by=".masked_fill(future, 0.0)",
    says="Keys in the future have score 0, which the softmax turns into weight.",
    hint="What score has a softmax weight of 0?",
)
edit(
    "transformer_xl_scores",
    "future_of_a_square",
    replace="triu(kv_seq - q_seq + 1)",
    by="triu(1)",
    says="With a memory you hide keys that lie in the past: query i stands at i + kv_seq − q_seq.",
    hint="How far may the first query look when there are more keys than queries?",
)
edit(
    "transformer_xl_scores",
    "own_position_hidden",
    replace="triu(kv_seq - q_seq + 1)",
    by="triu(kv_seq - q_seq)",
    says="You hide a query's own position; only what lies behind it in time is the future.",
    hint="Distance 0 may be read.",
)
edit(
    "transformer_xl_scores",
    "one_bias_for_all_heads",
    replace="(q + u[:, None])",
    by="(q + u[:1, None])",
    says="All heads share the first head's u.",
    hint="Which axis of u counts the heads, and where does it stand in q?",
)
edit(
    "transformer_xl_scores",
    "shifts_the_sum",
    replace="""    position = relative_shift((q + v[:, None]) @ r.mT)
""",
    by="""    position = (q + v[:, None]) @ r.mT
    content, position = relative_shift(content + position), 0.0
""",
    says="You shift the sum; the content terms are sorted by key already.",
    hint="Which of the products has a column for each distance?",
)
edit(
    "transformer_xl_scores",
    "biases_do_not_learn",
    replace="(q + u[:, None])",
    by="(q + u.detach()[:, None])",
    says="The values are right, but no gradient reaches u.",
    hint="Look for `detach`, `.data` or `no_grad`.",
)

# --- t5_relative_buckets ---------------------------------------------------------------------------------------------


@alternative("t5_relative_buckets")
def boundaries_in_integers(q_seq, kv_seq, num_buckets=32, max_distance=128, bidirectional=True):
    count = num_buckets // 2 if bidirectional else num_buckets
    exact, far = count // 2, count - count // 2
    of_distance = []
    for distance in range(max(q_seq, kv_seq) + 1):
        bucket = min(distance, exact)
        while bucket < count - 1 and distance >= exact:
            step = bucket - exact + 1
            if distance**far * exact**step < max_distance**step * exact**far:
                break
            bucket += 1
        of_distance.append(bucket)
    lookup = torch.tensor(of_distance)
    ahead = torch.arange(kv_seq).unsqueeze(0) - torch.arange(q_seq).unsqueeze(1) - (kv_seq - q_seq)
    if bidirectional:
        return lookup[ahead.abs()] + torch.where(ahead > 0, count, 0)
    return lookup[torch.maximum(-ahead, torch.tensor(0))]


@alternative("t5_relative_buckets")
def as_released(q_seq, kv_seq, num_buckets=32, max_distance=128, bidirectional=True):
    context = torch.arange(q_seq)[:, None] + kv_seq - q_seq
    relative = torch.arange(kv_seq)[None, :] - context
    result = 0
    if bidirectional:
        num_buckets //= 2
        result = result + (relative > 0).long() * num_buckets
        relative = relative.abs()
    else:
        relative = -torch.min(relative, torch.zeros_like(relative))
    exact = num_buckets // 2
    large = (
        exact
        + (
            torch.log(relative.float().clamp(min=1e-3) / exact) / math.log(max_distance / exact) * (num_buckets - exact)
        ).long()
    )
    large = torch.min(large, torch.full_like(large, num_buckets - 1))
    return result + torch.where(relative < exact, relative, large)


edit(
    "t5_relative_buckets",
    "directions_swapped",
    replace="first, distance = count * (ahead > 0), ahead.abs()",
    by="first, distance = count * (ahead < 0), ahead.abs()",
    says="Keys behind the query use the second half of your buckets; that half is for keys ahead.",
    hint="Which sign has a key that lies ahead?",
)
edit(
    "t5_relative_buckets",
    "zero_counts_as_ahead",
    replace="count * (ahead > 0)",
    by="count * (ahead >= 0)",
    says="A query's own position falls into the second half of the buckets; it belongs to the first.",
    hint="Distance 0 has bucket 0.",
)
edit(
    "t5_relative_buckets",
    "directions_not_told_apart",
    replace="first, distance = count * (ahead > 0), ahead.abs()",
    by="first, distance = 0 * ahead, ahead.abs()",
    says="Behind and ahead share their buckets, and half of the table is never read.",
    hint="What does bidirectional add to the bucket of a key ahead?",
)
edit(
    "t5_relative_buckets",
    "buckets_not_halved",
    replace="count = num_buckets // 2\n",
    by="count = num_buckets\n",
    says="Each direction uses all buckets; the two have to share them.",
    hint="What is the largest id that num_buckets allows?",
)
edit(
    "t5_relative_buckets",
    "future_by_its_distance",
    replace="(-ahead).clamp(min=0)",
    by="ahead.abs()",
    says="Without bidirectional, keys ahead count by their distance; they should count as distance 0.",
    hint="A decoder cannot see them: they need no bucket of their own.",
)
edit(
    "t5_relative_buckets",
    "past_and_future_exchanged",
    replace="(-ahead).clamp(min=0)",
    by="ahead.clamp(min=0)",
    says="Without bidirectional your buckets count keys ahead, and the past has distance 0.",
    hint="The distance of a key behind the query is positive.",
)
edit(
    "t5_relative_buckets",
    "aligned_top_left",
    replace="torch.arange(kv_seq - q_seq, kv_seq)[:, None]",
    by="torch.arange(q_seq)[:, None]",
    says="You let query i stand at i; with other lengths it stands at i + kv_seq − q_seq.",
    hint="The last query stands at the last key.",
)
edit(
    "t5_relative_buckets",
    "rounded_to_the_nearest",
    replace="(growth * (count - exact)).long()",
    by="(growth * (count - exact)).round().long()",
    says="You round the far buckets to the nearest; they are rounded down.",
    hint="⌊…⌋ in the contract means what?",
)
edit(
    "t5_relative_buckets",
    "no_last_bucket",
    replace=".clamp(max=count - 1)",
    by="",
    says="Beyond max_distance the ids run on past the last bucket.",
    hint="What is the largest id of a direction?",
)
edit(
    "t5_relative_buckets",
    "everything_exact",
    replace="torch.where(distance < exact, distance, far)",
    by="distance.clamp(max=count - 1)",
    says="You give every distance its own bucket until they run out; the second half grows with the logarithm.",
    hint="How do distances between half the buckets and max_distance share the rest?",
)
edit(
    "t5_relative_buckets",
    "everything_logarithmic",
    replace="torch.where(distance < exact, distance, far)",
    by="far.clamp(min=0)",
    says="You use the logarithm for near distances too; each of them has a bucket of its own.",
    hint="Below which distance is the id the distance itself?",
)
edit(
    "t5_relative_buckets",
    "logarithm_of_the_distance",
    replace="torch.log(distance.clamp(min=1).double() / exact) / math.log(max_distance / exact)",
    by="torch.log(distance.clamp(min=1).double()) / math.log(max_distance)",
    says="Your logarithm starts at distance 1; it starts where the exact buckets end.",
    hint="At distance e the far part of the formula must be 0.",
)

# --- apply_rope ------------------------------------------------------------------------------------------------------


@alternative("apply_rope")
def complex_numbers(x, positions, base=10000.0, interleaved=True, frequencies=None):
    half, rest = divmod(x.shape[-1], 2)
    if rest:
        raise ValueError("odd")
    if frequencies is None:
        frequencies = torch.tensor([base ** (-i / half) for i in range(half)], dtype=torch.float64)
    angle = positions.unsqueeze(-1).to(torch.float64) * frequencies.to(torch.float64)
    if interleaved:
        pairs = x.unflatten(-1, (half, 2)).double()
    else:
        pairs = x.unflatten(-1, (2, half)).transpose(-1, -2).double()
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angle), angle))
    if not interleaved:
        turned = turned.transpose(-1, -2)
    return turned.flatten(-2).to(x.dtype)


@alternative("apply_rope")
def rotate_half(x, positions, base=10000.0, interleaved=True, frequencies=None):
    if x.shape[-1] % 2 != 0:
        raise ValueError(x.shape[-1])
    if frequencies is None:
        frequencies = 1.0 / base ** (torch.arange(0, x.shape[-1], 2, dtype=torch.float64) / x.shape[-1])
    angle = positions[..., None].to(torch.float64) * frequencies
    if interleaved:
        angle = angle.repeat_interleave(2, dim=-1)
        other = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).reshape(x.shape)
    else:
        angle = torch.cat([angle, angle], dim=-1)
        other = torch.cat([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], dim=-1)
    return (x.double() * angle.cos() + other.double() * angle.sin()).to(x.dtype)


TURNED = "a * cos - b * sin, a * sin + b * cos"
THETA = "base ** (-torch.arange(0, head_dim, 2, device=x.device).double() / head_dim)"
edit(
    "apply_rope",
    "turned_backwards",
    replace=TURNED,
    by="a * cos + b * sin, b * cos - a * sin",
    says="You turn the other way. Scores stay the same, but the numbers are not those of the contract.",
    hint="A quarter turn takes (1, 0) to (0, 1).",
)
edit(
    "apply_rope",
    "wrong_sign",
    replace=TURNED,
    by="a * cos + b * sin, a * sin + b * cos",
    says="Both products have a plus: that is no rotation, and the norm is not kept.",
    hint="One of the four terms of a rotation has a minus.",
)
edit(
    "apply_rope",
    "layouts_exchanged",
    replace="(x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)",
    by="(x[..., 0::2], x[..., 1::2]) if not interleaved else x.chunk(2, dim=-1)",
    says="You pair halves where neighbours are asked for, and neighbours where halves are.",
    hint="Interleaved: columns 2i and 2i + 1.",
)
edit(
    "apply_rope",
    "halves_not_implemented",
    replace="""    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    turned = a * cos - b * sin, a * sin + b * cos
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
""",
    by="""    a, b = x[..., 0::2], x[..., 1::2]
    turned = a * cos - b * sin, a * sin + b * cos
    return torch.stack(turned, dim=-1).flatten(-2)
""",
    says="`interleaved=False` has no effect: you always pair neighbours.",
    hint="Which argument does your function never read?",
)
edit(
    "apply_rope",
    "neighbours_not_implemented",
    replace="""    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    turned = a * cos - b * sin, a * sin + b * cos
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
""",
    by="""    a, b = x.chunk(2, dim=-1)
    turned = a * cos - b * sin, a * sin + b * cos
    return torch.cat(turned, dim=-1)
""",
    says="You always pair column i with column i + head_dim/2, also where neighbours are asked for.",
    hint="Which argument does your function never read?",
)
edit(
    "apply_rope",
    "not_put_back",
    replace="torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)",
    by="torch.cat(turned, dim=-1)",
    says="You read neighbours and write halves: the columns come back in another order.",
    hint="Each result belongs in the column it came from.",
)
edit(
    "apply_rope",
    "exponent_halved",
    replace=THETA,
    by="base ** (-torch.arange(head_dim // 2, device=x.device).double() / head_dim)",
    says="Your exponent is −i/head_dim; for pair i it is −2i/head_dim.",
    hint="Which frequency should the last pair have, nearly?",
)
edit(
    "apply_rope",
    "positions_counted_not_read",
    replace="positions[..., None].double() * frequencies.double()",
    by="torch.arange(x.shape[-2])[:, None].double() * frequencies.double()",
    says="You number the rows from 0 and never read `positions`.",
    hint="A row may stand anywhere.",
)
edit(
    "apply_rope",
    "frequencies_ignored",
    replace="if frequencies is None:",
    by="if True:",
    says="`frequencies` has no effect.",
    hint="When are the frequencies made from the base?",
)
edit(
    "apply_rope",
    "base_ignored",
    replace=THETA,
    by="10000.0 ** (-torch.arange(0, head_dim, 2, device=x.device).double() / head_dim)",
    says="`base` has no effect: you always use 10000.",
    hint="Which arguments does your result depend on?",
)
edit(
    "apply_rope",
    "angles_in_float32",
    replace="positions[..., None].double() * frequencies.double()",
    by="positions[..., None].float() * frequencies.float()",
    says="You compute the angles in float32: far out they are noise.",
    hint="How many digits does an angle of 10⁷ need, if its fraction is to count?",
)
edit(
    "apply_rope",
    "angles_in_the_dtype_of_x",
    replace="positions[..., None].double() * frequencies.double()",
    by="positions[..., None].to(x.dtype) * frequencies.to(x.dtype)",
    says="You compute the angles in the dtype of x: for float32 they are noise far out.",
    hint="The result has the dtype of x. How many digits does an angle of 10⁷ need on the way there?",
)
edit(
    "apply_rope",
    "frequencies_in_float32",
    replace="positions[..., None].double() * frequencies.double()",
    by="positions[..., None].double() * frequencies.float().double()",
    says="Your angles are float64, but their frequencies were rounded to float32, and far out that counts.",
    hint="By how much is an angle off if its frequency is off in the eighth digit, at position 10⁷?",
)
edit(
    "apply_rope",
    "one_angle_for_all_pairs",
    replace="positions[..., None].double() * frequencies.double()",
    by="positions[..., None].double() * frequencies.double()[:1].expand(head_dim // 2)",
    says="All pairs turn at the speed of the first.",
    hint="The hands of a clock do not turn equally fast.",
)
edit(
    "apply_rope",
    "odd_width_accepted",
    replace='    if head_dim % 2:\n        raise ValueError(f"columns turn in pairs, and {head_dim} is odd")\n',
    by="    if head_dim % 2:\n        x, head_dim = x[..., :-1], head_dim - 1\n",
    says="You drop the last column of an odd width; it should raise ValueError.",
    hint="What does the contract say about an odd head_dim?",
)
edit(
    "apply_rope",
    "cut_from_autograd",
    replace="(x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)",
    by="(x[..., 0::2], x[..., 1::2].detach()) if interleaved else x.chunk(2, dim=-1)",
    says="The values are right, but half of the columns are cut off from autograd.",
    hint="Look for `detach`, `.data` or `no_grad`.",
)

# --- rope_frequencies ------------------------------------------------------------------------------------------------


@alternative("rope_frequencies")
def by_wavelengths(head_dim, base=10000.0, scaling=None):
    if head_dim % 2:
        raise ValueError("odd")
    plain = [base ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    table = torch.tensor(plain, dtype=torch.float64)
    if scaling is None:
        return table, 1.0
    kind, s = scaling["type"], scaling["factor"]
    if kind == "linear":
        return table / s, 1.0
    if kind == "ntk":
        slower = [s ** (-2 * i / (head_dim - 2)) for i in range(head_dim // 2)]
        return table * torch.tensor(slower, dtype=torch.float64), 1.0
    if kind == "yarn":
        low, high = scaling.get("beta_slow", 1), scaling.get("beta_fast", 32)
    elif kind == "llama3":
        low, high = scaling.get("low_freq_factor", 1), scaling.get("high_freq_factor", 4)
    else:
        raise ValueError(kind)
    wavelengths = [2 * math.pi / theta for theta in plain]
    length = scaling["original_max"]
    out = []
    for theta, wavelength in zip(plain, wavelengths, strict=True):
        if wavelength < length / high:
            out.append(theta)
        elif wavelength > length / low:
            out.append(theta / s)
        else:
            smooth = (length / wavelength - low) / (high - low)
            out.append((1 - smooth) * theta / s + smooth * theta)
    return torch.tensor(out, dtype=torch.float64), 0.1 * math.log(s) + 1.0 if kind == "yarn" else 1.0


edit(
    "rope_frequencies",
    "linear_multiplies",
    replace="return frequencies / factor, 1.0",
    by="return frequencies * factor, 1.0",
    says="Your linear scaling makes all pairs faster; positions are to be squeezed, so they must slow down.",
    hint="A text of length 4L has to turn no further than one of length L did.",
)
edit(
    "rope_frequencies",
    "base_times_factor",
    replace="base = base * factor ** (head_dim / (head_dim - 2))",
    by="base = base * factor",
    says="You multiply the base by the factor itself, so the slowest pair slows down by less than the factor.",
    hint="The exponent makes the last pair come out at exactly θ / s.",
)
edit(
    "rope_frequencies",
    "ntk_exponent_upside_down",
    replace="factor ** (head_dim / (head_dim - 2))",
    by="factor ** ((head_dim - 2) / head_dim)",
    says="The exponent of the factor stands upside down.",
    hint="Compute the last frequency: it should be θ / s.",
)
edit(
    "rope_frequencies",
    "blend_reversed",
    replace="(1 - kept) * frequencies / factor + kept * frequencies",
    by="kept * frequencies / factor + (1 - kept) * frequencies",
    says="You slow the fast pairs down and keep the slow ones; it is the other way round.",
    hint="Which pairs have never finished a turn during training?",
)
edit(
    "rope_frequencies",
    "turns_without_two_pi",
    replace='scaling["original_max"] * frequencies / (2 * math.pi)',
    by='scaling["original_max"] * frequencies',
    says="You count radians where turns are meant: 2π is missing.",
    hint="One turn is 2π radians.",
)
edit(
    "rope_frequencies",
    "blend_not_clipped",
    replace="((turns - low) / (high - low)).clamp(0, 1)",
    by="(turns - low) / (high - low)",
    says="Your share runs below 0 and above 1 outside the two thresholds.",
    hint="Between which numbers does a share lie?",
)
edit(
    "rope_frequencies",
    "cut_instead_of_blend",
    replace="((turns - low) / (high - low)).clamp(0, 1)",
    by="(turns > (low + high) / 2).double()",
    says="You switch from one rule to the other at once; between the thresholds the two are blended.",
    hint="γ grows from 0 to 1 between the two thresholds.",
)
edit(
    "rope_frequencies",
    "blend_of_wavelengths",
    replace="(1 - kept) * frequencies / factor + kept * frequencies",
    by="1 / ((1 - kept) * factor / frequencies + kept / frequencies)",
    says="You blend the wavelengths; it is the frequencies that are blended.",
    hint="Of which two quantities does the formula take a share each?",
)
edit(
    "rope_frequencies",
    "attention_factor_forgotten",
    replace='0.1 * math.log(factor) + 1 if kind == "yarn" else 1.0',
    by="1.0",
    says="The attention factor of YaRN is missing: it is 0.1 ln s + 1.",
    hint="What comes beside the frequencies?",
)
edit(
    "rope_frequencies",
    "attention_factor_squared",
    replace='0.1 * math.log(factor) + 1 if kind == "yarn" else 1.0',
    by='(0.1 * math.log(factor) + 1) ** 2 if kind == "yarn" else 1.0',
    says="You return the factor of the scores; queries and keys are each multiplied by its root.",
    hint="A factor on q and the same on k meet in the score.",
)
edit(
    "rope_frequencies",
    "attention_factor_for_all",
    replace='0.1 * math.log(factor) + 1 if kind == "yarn" else 1.0',
    by="0.1 * math.log(factor) + 1",
    says="Llama 3's scaling gets YaRN's attention factor; its own is 1.",
    hint="Which of the kinds changes the scores?",
)
edit(
    "rope_frequencies",
    "thresholds_of_yarn_for_all",
    replace='("beta_slow", "beta_fast") if kind == "yarn" else ("low_freq_factor", "high_freq_factor")',
    by='("beta_slow", "beta_fast")',
    says="You read YaRN's thresholds for Llama 3 as well; it names its own.",
    hint="What are the two thresholds of Llama 3 called?",
)
edit(
    "rope_frequencies",
    "wrong_default_threshold",
    replace='32.0 if kind == "yarn" else 4.0',
    by="32.0",
    says="The upper threshold of Llama 3 defaults to 4, not to YaRN's 32.",
    hint="Each kind has defaults of its own.",
)
edit(
    "rope_frequencies",
    "unknown_kind_ignored",
    replace='if head_dim % 2 or kind not in ("none", "linear", "ntk", "yarn", "llama3"):',
    by='kind = kind if kind in ("linear", "ntk", "yarn", "llama3") else "none"\n    if head_dim % 2:',
    says="A type that does not exist is treated as no scaling; it should raise ValueError.",
    hint="A typing error in a configuration should not pass in silence.",
)

# --- alibi_bias ------------------------------------------------------------------------------------------------------


@alternative("alibi_bias")
def recursive_slopes(heads, q_seq, kv_seq):
    def steps(n):
        if n & (n - 1) == 0:
            start = 2.0 ** (-8.0 / n)
            return [start ** (h + 1) for h in range(n)]
        below = 1 << (n.bit_length() - 1)
        return steps(below) + steps(2 * below)[0::2][: n - below]

    slope = torch.tensor(steps(heads), dtype=torch.float64)
    here = torch.arange(q_seq).double() + (kv_seq - q_seq)
    away = torch.abs(here[:, None] - torch.arange(kv_seq).double()[None, :])
    return torch.einsum("h,ij->hij", slope, away).neg()


DISTANCE = "(torch.arange(kv_seq) - torch.arange(kv_seq - q_seq, kv_seq)[:, None]).abs()"
LOWER = "2 ** int(math.log2(heads))"
edit(
    "alibi_bias",
    "bonus_instead_of_penalty",
    replace="-slopes[:, None, None]",
    by="slopes[:, None, None]",
    says="Your bias grows with the distance: it rewards what lies far away.",
    hint="What should happen to the weight of a distant key?",
)
edit(
    "alibi_bias",
    "aligned_top_left",
    replace=DISTANCE,
    by="(torch.arange(kv_seq) - torch.arange(q_seq)[:, None]).abs()",
    says="You let query i stand at i; with other lengths it stands at i + kv_seq − q_seq.",
    hint="The last query stands at the last key.",
)
edit(
    "alibi_bias",
    "no_absolute_value",
    replace=DISTANCE,
    by="(torch.arange(kv_seq - q_seq, kv_seq)[:, None] - torch.arange(kv_seq))",
    says="Keys ahead of the query get a bonus: the absolute value is missing.",
    hint="A distance has no sign.",
)
edit(
    "alibi_bias",
    "future_without_penalty",
    replace=DISTANCE,
    by="(torch.arange(kv_seq - q_seq, kv_seq)[:, None] - torch.arange(kv_seq)).clamp(min=0)",
    says="Keys ahead of the query have a bias of 0: you count distances into the past only.",
    hint="How far is it from a query to a key that comes after it?",
)
edit(
    "alibi_bias",
    "same_slope_for_all",
    replace="slopes[:, None, None]",
    by="slopes[:1, None, None].expand(heads, 1, 1)",
    says="All heads have the slope of the first.",
    hint="The slopes form a sequence in which each is a fixed share of the one before.",
)
edit(
    "alibi_bias",
    "slopes_from_one",
    replace="exponents = [8 * (h + 1) / lower for h in range(lower)]",
    by="exponents = [8 * h / lower for h in range(lower)]",
    says="Your first slope is 1; the sequence starts with 2^(−8/heads).",
    hint="For 8 heads the slopes are 1/2, 1/4, …",
)
edit(
    "alibi_bias",
    "slopes_for_eight_heads",
    replace="exponents = [8 * (h + 1) / lower for h in range(lower)]",
    by="exponents = [float(h + 1) for h in range(lower)]",
    says="Your slopes are 1/2, 1/4, 1/8, … for any number of heads; that is right for eight.",
    hint="The last slope is 2^(−8), however many heads there are.",
)
edit(
    "alibi_bias",
    "formula_for_powers_of_two_only",
    replace=LOWER,
    by="heads",
    says="You use the formula for powers of two for every number of heads.",
    hint="What does the contract say about 6 heads?",
)
edit(
    "alibi_bias",
    "rest_from_the_second",
    replace="4 * (2 * h + 1) / lower",
    by="4 * (2 * h + 2) / lower",
    says="The remaining heads repeat slopes that are there already: you take every second one from the second.",
    hint="Of the next higher power, every other slope is new.",
)
edit(
    "alibi_bias",
    "rest_in_a_row",
    replace="4 * (2 * h + 1) / lower",
    by="4 * (h + 1) / lower",
    says="The remaining heads take the first slopes of the next higher power in a row; it is every second one.",
    hint="Some of those slopes are in your list already.",
)
edit(
    "alibi_bias",
    "slopes_sorted",
    replace="-slopes[:, None, None]",
    by="-slopes.sort(descending=True).values[:, None, None]",
    says="You sort all slopes; those of the lower power of two come first, then the rest.",
    hint="In which order does the contract list them?",
)
edit(
    "alibi_bias",
    "next_higher_power",
    replace=LOWER,
    by="2 ** math.ceil(math.log2(heads))",
    says="You start from the next higher power of two, so the list of slopes has another length or other values.",
    hint="Which power of two comes first: the one below the number of heads, or above?",
)

# --- sincos_2d -------------------------------------------------------------------------------------------------------


@alternative("sincos_2d")
def cell_by_cell(height, width, d_model):
    if d_model % 4 != 0:
        raise ValueError("d_model")
    half = d_model // 2
    rates = torch.tensor([10000.0 ** (-2 * k / half) for k in range(half // 2)], dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    out = torch.empty(height, width, d_model, dtype=torch.float64)
    for start, coordinate in ((0, y), (half, x)):
        angles = coordinate[..., None] * rates
        out[..., start : start + half : 2] = angles.sin()
        out[..., start + 1 : start + half : 2] = angles.cos()
    return out


edit(
    "sincos_2d",
    "column_half_first",
    replace="torch.cat([rows, columns], dim=-1)",
    by="torch.cat([columns, rows], dim=-1)",
    says="Your first half encodes the column; the row comes first.",
    hint="Row half first.",
)
edit(
    "sincos_2d",
    "halves_added",
    replace="torch.cat([rows, columns], dim=-1)",
    by="torch.cat([rows + columns, rows + columns], dim=-1)",
    says="You add the two encodings, so that (1, 2) and (2, 1) look alike; they stand side by side.",
    hint="How can a vector say two things without mixing them?",
)
edit(
    "sincos_2d",
    "cells_numbered",
    replace="return torch.cat([rows, columns], dim=-1)",
    by="return sinusoidal_encoding(height * width, d_model).reshape(height, width, d_model)",
    says="You number the cells in one line: the cell below looks far away.",
    hint="The first half must depend on the row alone.",
)
edit(
    "sincos_2d",
    "full_width_cut",
    replace="""sinusoidal_encoding(height, d_model // 2)[:, None]""",
    by="""sinusoidal_encoding(height, d_model)[:, None, : d_model // 2]""",
    says="You cut the row's encoding out of one of full width, whose frequencies are others.",
    hint="Each half is an encoding of width d_model / 2.",
)
edit(
    "sincos_2d",
    "both_halves_rows",
    replace="torch.cat([rows, columns], dim=-1)",
    by="torch.cat([rows, rows], dim=-1)",
    says="Both halves encode the row; the column is lost.",
    hint="Are two cells of one row told apart?",
)
edit(
    "sincos_2d",
    "height_and_width_swapped",
    replace="torch.cat([rows, columns], dim=-1)",
    by="torch.cat([rows, columns], dim=-1).transpose(0, 1).reshape(height, width, d_model)",
    says="Your grid is read along the wrong axis: entry [y, x] holds another cell.",
    hint="Which axis of the result counts rows?",
)
edit(
    "sincos_2d",
    "flattened",
    replace="torch.cat([rows, columns], dim=-1)",
    by="torch.cat([rows, columns], dim=-1).flatten(0, 1)",
    says="You return a list of cells; the contract asks for (height, width, d_model).",
    hint="Look at the shape of the result.",
)
edit(
    "sincos_2d",
    "even_is_enough",
    replace="if d_model % 4:",
    by="if d_model % 2:",
    says="You accept widths that are even but no multiple of 4: then a half ends on a sine without its cosine.",
    hint="How many columns has each half, and how many does a pair need?",
)
edit(
    "sincos_2d",
    "interleaved_halves",
    replace="torch.cat([rows, columns], dim=-1)",
    by="torch.stack([rows, columns], dim=-1).flatten(-2)",
    says="Row and column numbers alternate; the contract wants one half after the other.",
    hint="The first half, then the second.",
)

# --- relative_bias_2d ------------------------------------------------------------------------------------------------


@alternative("relative_bias_2d")
def as_a_grid_of_offsets(table, window):
    height, width = window
    grid = table.reshape(2 * height - 1, 2 * width - 1, -1)
    y = torch.arange(height).repeat_interleave(width)
    x = torch.arange(width).repeat(height)
    picked = grid[y[:, None] - y[None, :] + height - 1, x[:, None] - x[None, :] + width - 1]
    return picked.movedim(-1, 0).contiguous()


INDEX = "(dy + height - 1) * (2 * width - 1) + dx + width - 1"
edit(
    "relative_bias_2d",
    "key_minus_query",
    replace="cells[:, None] - cells[None]",
    by="cells[None] - cells[:, None]",
    says="You take the key's cell minus the query's; the table counts the other way round.",
    hint="The offset is query minus key.",
)
edit(
    "relative_bias_2d",
    "stride_of_the_height",
    replace="(2 * width - 1)",
    by="(2 * height - 1)",
    says="A row of offsets has 2 · width − 1 entries; you use the height.",
    hint="How many different dx are there for each dy?",
)
edit(
    "relative_bias_2d",
    "stride_too_short",
    replace="(2 * width - 1)",
    by="width",
    says="You step by the window's width from one dy to the next; there are 2 · width − 1 different dx.",
    hint="dx runs from −(width − 1) to width − 1.",
)
edit(
    "relative_bias_2d",
    "negative_rows",
    replace=INDEX,
    by="dy * (2 * width - 1) + dx",
    says="Your numbers start below 0, and Python reads those from the end of the table.",
    hint="Shift both offsets so that the smallest becomes 0.",
)
edit(
    "relative_bias_2d",
    "offsets_without_sign",
    replace=INDEX,
    by="(dy.abs() + height - 1) * (2 * width - 1) + dx.abs() + width - 1",
    says="Up and down, left and right share a bias: you dropped the signs.",
    hint="Which rows of the table do you never read?",
)
edit(
    "relative_bias_2d",
    "rows_and_columns_swapped",
    replace=INDEX,
    by="(dx + width - 1) * (2 * height - 1) + dy + height - 1",
    says="You number the offsets column by column; dy is the one that steps over whole rows.",
    hint="Which of dy and dx is multiplied in the contract?",
)
edit(
    "relative_bias_2d",
    "heads_last",
    replace=".permute(2, 0, 1)",
    by="",
    says="Heads are the last axis of your result; they come first.",
    hint="Scores have shape (…, heads, queries, keys).",
)
edit(
    "relative_bias_2d",
    "cells_column_by_column",
    replace="torch.cartesian_prod(torch.arange(height), torch.arange(width))",
    by="torch.cartesian_prod(torch.arange(width), torch.arange(height)).flip(-1)",
    says="You count the cells column by column; they are counted row by row.",
    hint="Which coordinate changes from one cell to the next?",
)
edit(
    "relative_bias_2d",
    "by_rows_alone",
    replace=INDEX,
    by="(dy + height - 1) * (2 * width - 1) + width - 1",
    says="dx has no effect: all cells of a row share a bias.",
    hint="An offset has two numbers.",
)
edit(
    "relative_bias_2d",
    "table_does_not_learn",
    replace="return table[",
    by="return table.detach()[",
    says="The values are right, but no gradient reaches the table.",
    hint="Look for `detach`, `.data` or `no_grad`.",
)
