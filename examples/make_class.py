"""Makes the sample class of `examples/submitted/`, and the table of what must come out in `examples/README.md`.

    python examples/make_class.py            write what is out of date
    python examples/make_class.py --check    write nothing; exit 1 if a file is out of date

The notebooks are made from the released ones, the reference solutions, the other right answers and the named mistakes,
so the class follows the course when it changes. What must come out is written here by hand, as plain numbers.
A second run changes no byte.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autograder import course
from autograder.answers import Answer, shelf

HERE = Path(__file__).resolve().parent
SUBMITTED, README = HERE / "submitted", HERE / "README.md"
BEGIN, END = "<!-- class: made by make_class.py -->", "<!-- class: end -->"
STUB = "raise NotImplementedError"
ADDITIVE, SCALED, SELF, POSITIONS, LINEAR = "additive", "scaled_dot_product", "self_attention", "positions", "linear"
HEADS = "multi_head"
SPARSE = "sparse"
FLASH = "flash"
FLASH_GPU = "flash_gpu"


# ------------------------------------------------------------------------------------------------- a notebook


class Paper:
    """One student's notebook, on its way from the released one to what is handed in."""

    def __init__(self, slug: str) -> None:
        released = (course.CHAPTERS / slug / "exercises.ipynb").read_text(encoding="utf-8")
        self.slug = slug
        self.notebook: dict[str, Any] = json.loads(released)
        for cell in self.cells:
            cell["source"] = "".join(cell["source"])

    @property
    def cells(self) -> list[dict[str, Any]]:
        """The cells, in order; their sources are plain strings."""
        return self.notebook["cells"]

    def index(self, name: str, suffix: str = "") -> int:
        """Where the exercise's solution cell stands (or, with ``-tests``, its visible checks)."""
        wanted = f"{self.slug}-{name}{suffix}"
        return next(i for i, cell in enumerate(self.cells) if grade_id(cell) == wanted)

    def __getitem__(self, name: str) -> str:
        return self.cells[self.index(name)]["source"]

    def __setitem__(self, name: str, source: str) -> None:
        self.cells[self.index(name)]["source"] = source.strip("\n")

    def body(self, name: str, body: str) -> Paper:
        """Write an exercise by hand: these lines stand where the stub stood."""
        self[name] = grafted(stub(self.slug, name), textwrap.dedent(body).strip("\n"))
        return self

    def write(self, name: str, source: str) -> Paper:
        """Replace an exercise's whole cell."""
        self[name] = textwrap.dedent(source)
        return self

    def insert(self, position: int, source: str, kind: str = "code") -> Paper:
        """Put in a cell of the student's own."""
        cell: dict[str, Any] = {"cell_type": kind, "metadata": {}, "source": textwrap.dedent(source).strip("\n")}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cell["id"] = hashlib.sha256(f"{position} {source}".encode()).hexdigest()[:8]
        self.cells.insert(position, cell)
        return self

    def bytes(self) -> bytes:
        """The file, written as Jupyter writes it."""
        notebook = copy.deepcopy(self.notebook)
        for cell in notebook["cells"]:
            cell["source"] = cell["source"].splitlines(keepends=True)
        return (json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def grade_id(cell: dict[str, Any]) -> str:
    """The name under which nbgrader knows a cell; empty for all others."""
    return cell["metadata"].get("nbgrader", {}).get("grade_id", "")


def stub(slug: str, name: str) -> str:
    """The exercise's cell as it was released."""
    paper = Paper(slug)
    return paper[name]


def reference(slug: str, name: str) -> str:
    """The reference's definition."""
    return course.solution(slug).definitions[name].source


def named(slug: str, kind: str, exercise: str, name: str) -> str:
    """A mistake or an alternative as a student would have written it into the released cell.

    Raises:
        SystemExit: the chapter has no answer of that name any more.
    """
    known: list[Answer] = getattr(shelf(slug), kind).get(exercise, [])
    answer = next((answer for answer in known if answer.name == name), None)
    if answer is None:
        names = ", ".join(answer.name for answer in known)
        sys.exit(f"{slug}: {exercise} has no {name} among its {kind} any more; choose another one of: {names}")
    *kernels, node = ast.parse(answer.source).body
    released = ast.parse(stub(slug, exercise)).body[-1]
    if kernels or ast.get_docstring(node) is not None or not isinstance(node, ast.FunctionDef):
        return answer.source  # an edit of the reference, or a class: the student's cell is all of it
    assert isinstance(released, ast.FunctionDef)
    if [a.arg for a in node.args.args] != [a.arg for a in released.args.args]:
        return answer.source
    return grafted(stub(slug, exercise), "\n".join(ast.unparse(line) for line in node.body))


def grafted(released: str, body: str) -> str:
    """The released cell with these lines in place of the stub."""
    assert released.count(STUB) == 1, "only a cell with one stub can be filled in"
    return released.replace(f"    {STUB}", textwrap.indent(body, "    "))


# ------------------------------------------------------------------------------------------ kinds of students


def solved(slug: str) -> Paper:
    """Every exercise as the reference has it."""
    paper = Paper(slug)
    for name in names(slug):
        paper[name] = reference(slug, name)
    return paper


def names(slug: str) -> list[str]:
    """The chapter's exercises, in order."""
    return [exercise.name for exercise in course.sheet(slug).exercises]


def with_alternatives(slug: str, **chosen: str) -> Paper:
    """Right throughout, but written in another way: the first alternative of each exercise, or the one chosen."""
    paper = Paper(slug)
    for name in names(slug):
        first = shelf(slug).alternatives[name][0].name
        paper[name] = named(slug, "alternatives", name, chosen.get(name, first))
    return paper


def with_slips(slug: str, **slips: str) -> Paper:
    """The reference, but for the named mistakes."""
    paper = solved(slug)
    for name, mistake in slips.items():
        paper[name] = named(slug, "mistakes", name, mistake)
    return paper


def mixed_additive() -> bytes:
    """A good student of a style of their own, who trips once."""
    paper = with_alternatives(ADDITIVE, softmax="along_the_last_axis_and_back", attend="row_by_row")
    paper["softmax"] = reference(ADDITIVE, "softmax")
    paper["hard_alignment"] = named(ADDITIVE, "mistakes", "hard_alignment", "standing_still_counts_as_back")
    paper.body(
        "additive_scores",
        """
        q = queries @ w_q   # (..., n, h)
        k = keys @ w_k      # (..., m, h)
        # every query next to every key, numpy broadcasts the rest
        pairs = np.expand_dims(q, -2) + np.expand_dims(k, -3)
        return (np.tanh(pairs) * v).sum(-1)
        """,
    )
    return paper.bytes()


def mixed_scaled() -> bytes:
    """The same student, one chapter later."""
    paper = with_alternatives(SCALED)
    for name in ("softmax_vjp", "attention_vjp"):
        paper[name] = reference(SCALED, name)
    paper.body(
        "causal_mask",
        """
        mask = np.zeros((q_seq, kv_seq), dtype=bool)
        for i in range(q_seq):
            mask[i, : max(0, i + kv_seq - q_seq + 1)] = True
        return mask
        """,
    )
    paper["effective_support"] = named(SCALED, "mistakes", "effective_support", "participation_ratio")
    return paper.bytes()


def half_finished() -> bytes:
    """Four exercises done, the fifth begun, the rest as released."""
    paper = Paper(SCALED)
    for name in names(SCALED)[:4]:
        paper[name] = reference(SCALED, name)
    paper.body(
        "causal_mask",
        """
        # the last query is the last key, so shift by the difference
        offset = kv_seq - q_seq
        mask = np.tril(np.ones((q_seq, kv_seq)), k=offset)
        # TODO: has to be boolean, go on here tomorrow
        """,
    )
    return paper.bytes()


def syntax_error() -> bytes:
    """A bracket that nobody closed."""
    paper = solved(ADDITIVE)
    paper["bilinear_scores"] = paper["bilinear_scores"].replace("return queries @ w @", "return (queries @ w @")
    return paper.bytes()


def exception_in_a_cell() -> bytes:
    """A line above the function uses a name that does not exist, so the function is never defined."""
    paper = solved(SCALED)
    paper["padding_mask"] = "lengths = np.array([1, 3])\nprint(lenghts.shape)\n\n\n" + paper["padding_mask"]
    return paper.bytes()


def endless_function() -> bytes:
    """A loop whose condition never changes."""
    paper = solved(ADDITIVE)
    paper.body(
        "steps_to_connect",
        """
        if layer not in ("rnn", "cnn", "dilated_cnn", "attention") or distance < 0:
            raise ValueError(layer)
        if layer == "rnn":
            return distance
        if layer == "attention":
            return min(distance, 1)
        if kernel_size < 2:
            raise ValueError("kernel_size")
        if layer == "cnn":
            return -(-distance // (kernel_size - 1))
        if dilation < 1:
            raise ValueError("dilation")
        layers = 0
        reach = 0
        while reach < distance:
            step = (kernel_size - 1) * dilation ** layers
            layers += 1
        return layers
        """,
    )
    return paper.bytes()


def endless_cell() -> bytes:
    """The function is right; the trial below it in the same cell never ends."""
    paper = solved(SCALED)
    paper["causal_mask"] += textwrap.dedent(
        """

        # how small does the temperature have to get?
        t = 1.0
        while t != 0.05:
            t -= 0.1
        """
    )
    return paper.bytes()


def memory_hog() -> bytes:
    """Keeps everything and never lets go."""
    paper = solved(ADDITIVE)
    paper.body(
        "hard_alignment",
        """
        # keep the whole history, I want to plot it later
        history = []
        row = 0
        while row < 1_000_000:
            history.append(np.zeros((len(weights), 64, 1024, 1024)))
            row += 1
        return history[-1].argmax(-1), 1.0
        """,
    )
    return paper.bytes()


def endless_recursion() -> bytes:
    """Asks for the slopes of twice as many heads, which asks for those of twice as many, and so on."""
    paper = solved(POSITIONS)
    paper.body(
        "alibi_bias",
        """
        def slopes(n):
            # every second one of the next higher power
            return slopes(2 * n)[::2]

        distance = (torch.arange(kv_seq) - torch.arange(kv_seq - q_seq, kv_seq)[:, None]).abs()
        return -torch.tensor(slopes(heads))[:, None, None] * distance
        """,
    )
    return paper.bytes()


def kills_its_process() -> bytes:
    """Ends the process that is asked for an answer."""
    paper = solved(ADDITIVE)
    paper.body("hard_alignment", "import os\n\nos._exit(0)  # nothing to see here, all tests passed")
    return paper.bytes()


def exits_a_cell() -> bytes:
    """A habit from scripts."""
    paper = solved(SCALED)
    paper["softmax_jacobian"] += "\n\nimport sys\nsys.exit(0)  # done for today"
    return paper.bytes()


def renamed_function() -> bytes:
    """The function is right and has another name, under which the student's next one calls it."""
    paper = solved(SCALED)
    paper["softmax_vjp"] = paper["softmax_vjp"].replace("def softmax_vjp(", "def softmax_gradient(")
    paper["attention_vjp"] = paper["attention_vjp"].replace(" softmax_vjp(", " softmax_gradient(")
    return paper.bytes()


def not_a_notebook() -> bytes:
    """A printout, renamed so that the upload form takes it."""
    lines = ["%PDF-1.4", "% exercises_additive_final_v2.pdf", "1 0 obj", "<< /Type /Catalog /Pages 2 0 R >>", "endobj"]
    return "\n".join([*lines, "trailer", "<< /Root 1 0 R >>", "%%EOF", ""]).encode()


def without_metadata() -> bytes:
    """Written in a tool that throws away all metadata, nbgrader's included."""
    paper = solved(ADDITIVE)
    paper.notebook["metadata"] = {}
    for cell in paper.cells:
        cell["metadata"] = {}
    return paper.bytes()


def extra_cells() -> bytes:
    """Scratch work everywhere: magics, installs, plots, notes."""
    paper = solved(SCALED)
    paper.insert(paper.index("attention_vjp") + 1, "softmax_vjp?")
    paper.insert(paper.index("causal_mask") + 1, "%%time\nm = causal_mask(200, 200)\nm.sum()")
    paper.insert(
        paper.index("softmax_jacobian"),
        """
        import matplotlib.pyplot as plt
        plt.plot(np.linspace(-3, 3), np.exp(np.linspace(-3, 3)))
        plt.title("exp grows fast")
        plt.show()
        """,
    )
    paper.insert(2, "!pip install numpy matplotlib\n%matplotlib inline")
    paper.insert(2, "**My notes:** a row of weights sums to 1, a column does not.", "markdown")
    paper.insert(len(paper.cells), "assert 1 == 2, 'check tomorrow'")
    return paper.bytes()


def deleted_cells() -> bytes:
    """Only answers are left: no prose, no checks, no given cell, and one answer went with them."""
    paper = solved(ADDITIVE)
    kept = {f"{ADDITIVE}-{name}" for name in names(ADDITIVE)} - {f"{ADDITIVE}-bilinear_scores"}
    paper.notebook["cells"] = [cell for cell in paper.cells if grade_id(cell) in kept]
    return paper.bytes()


def moved_cells() -> bytes:
    """Cells in another order, one answer split over two cells, one written at the end instead of in its place."""
    paper = solved(SCALED)
    paper["attention_vjp"] = stub(SCALED, "attention_vjp")
    paper.body(
        "softmax_with_temperature",
        """
        if temperature < 0:
            raise ValueError("temperature")
        if temperature == 0:
            best = scores == scores.max(-1, keepdims=True)
            return (best / best.sum(-1, keepdims=True)).astype(scores.dtype)
        return stable_softmax(scores, temperature)
        """,
    )
    helper = """
    def stable_softmax(z, t):
        with np.errstate(over="ignore"):
            e = np.exp((z - z.max(-1, keepdims=True)) / t)
        return e / e.sum(-1, keepdims=True)
    """
    paper.insert(paper.index("softmax_with_temperature"), helper)
    effective = paper.cells.pop(paper.index("effective_support"))
    paper.cells.insert(2, effective)
    paper.insert(len(paper.cells), reference(SCALED, "attention_vjp"))
    return paper.bytes()


def wrong_kernel() -> bytes:
    """Written with an environment that exists on one laptop only."""
    paper = with_slips(ADDITIVE, additive_scores="no_tanh")
    paper.notebook["metadata"]["kernelspec"] = {
        "display_name": "Python [conda env:deep-learning-2]",
        "language": "python",
        "name": "conda-env-deep-learning-2-py",
    }
    return paper.bytes()


def talkative() -> bytes:
    """Every function prints, warns and writes to stderr."""
    paper = solved(SCALED)
    for name in names(SCALED):
        tree = ast.parse(paper[name]).body[0]
        assert isinstance(tree, ast.FunctionDef)
        lines = paper[name].splitlines()
        chatter = [
            f'    print("in {name}")',
            f'    print("{name} called", file=sys.stderr)',
            f'    warnings.warn("{name}: am I doing this right?")',
        ]
        lines[tree.body[1].lineno - 1 : tree.body[1].lineno - 1] = chatter
        paper[name] = "\n".join(lines)
    paper.insert(
        2, 'import logging\nimport sys\nimport warnings\n\nlogging.warning("here we go")\nprint("x" * 100_000)'
    )
    return paper.bytes()


def calls_the_library() -> bytes:
    """Asks torch for what was to be written."""
    paper = solved(ADDITIVE)
    paper.body("softmax", "t = torch.from_numpy(scores)\nreturn torch.softmax(t, dim=axis).numpy()")
    return paper.bytes()


def calls_the_library_through_a_helper() -> bytes:
    """The same, one function further away and under another name."""
    paper = solved(SCALED)
    helper = """
    import torch as t

    def lower_triangle(rows, columns):
        return t.tril(t.ones(rows, columns), columns - rows).bool().numpy()
    """
    paper.insert(2, helper)
    paper.body("causal_mask", "return lower_triangle(q_seq, kv_seq)")
    return paper.bytes()


def from_windows() -> bytes:
    """A byte order mark, and both kinds of line ends: those of the file and those inside the cells."""
    paper = solved(ADDITIVE)
    for cell in paper.cells:
        cell["source"] = cell["source"].replace("\n", "\r\n")
    return b"\xef\xbb\xbf" + paper.bytes().replace(b"\n", b"\r\n")


def from_an_old_jupyter() -> bytes:
    """nbformat 4.2, from before cells had ids."""
    paper = with_slips(SCALED, cross_entropy_grad="sum_not_mean")
    paper.notebook["nbformat_minor"] = 2
    for cell in paper.cells:
        cell.pop("id", None)
    return paper.bytes()


def crashes_on_a_list() -> bytes:
    """Takes the list of layers for one tensor."""
    paper = solved(SELF)
    paper.body(
        "attention_rollout",
        """
        layers = torch.tensor(weights_per_layer).mean(dim=-3)
        layers = (layers + torch.eye(layers.shape[-1])) / 2
        return torch.linalg.multi_dot(list(layers.flip(0)))
        """,
    )
    return paper.bytes()


def other_kernels() -> bytes:
    """Other kernels throughout, but for the forward one, which grouped heads and windows launch."""
    paper = with_alternatives(FLASH_GPU)
    paper["flash_forward"] = reference(FLASH_GPU, "flash_forward")
    return paper.bytes()


def loops_of_their_own() -> bytes:
    """Plain loops and sets where they are allowed, and one slip at the end of a block."""
    paper = solved(SPARSE)
    paper.body(
        "reachability",
        """
        *batch, n, _ = mask.shape
        out = torch.zeros(*batch, n, n, dtype=torch.bool)
        for b, one in enumerate(mask.reshape(-1, n, n).tolist()):
            reads = [{j for j in range(n) if row[j]} | {i} for i, row in enumerate(one)]
            for i in range(n):
                known = {i}
                for _ in range(layers):
                    more = set().union(*(reads[m] for m in known))
                    if more == known:
                        break
                    known = more
                out.view(-1, n, n)[b, i, sorted(known)] = True
        return out
        """,
    )
    paper.body(
        "mask_cost",
        """
        *_, n, m = mask.shape
        tiles = [
            bool(one[i : i + block, j : j + block].any())
            for one in mask.reshape(-1, n, m)
            for i in range(0, n - block + 1, block)  # whole tiles only
            for j in range(0, m - block + 1, block)
        ]
        return float(mask.float().mean()), sum(tiles) / max(1, len(tiles))
        """,
    )
    return paper.bytes()


def numpy_where_torch_is_asked_for() -> bytes:
    """A right layout of the wrong kind, and a function that was never begun."""
    paper = solved(SPARSE)
    paper.body(
        "bigbird_layout",
        """
        rows, columns = np.indices((blocks, blocks))
        layout = abs(rows - columns) <= window // 2
        layout[:global_blocks] = layout[:, :global_blocks] = True
        for row in layout:
            free = np.flatnonzero(~row)
            row[rng.choice(free, min(random_blocks, len(free)), replace=False)] = True
        return layout
        """,
    )
    paper["lsh_attention"] = stub(SPARSE, "lsh_attention")
    return paper.bytes()


def without_a_decoder() -> bytes:
    """The decoder was never begun, and the sink knows no mask."""
    paper = solved(HEADS)
    paper["decode_step"] = stub(HEADS, "decode_step")
    paper.body(
        "sink_softmax",
        """
        # one more column, softmax over it, take it off again
        heads, kv_seq = scores.shape[-3], scores.shape[-1]
        extra = sink.reshape(heads, 1, 1).expand(scores.shape[0], heads, scores.shape[2], 1)
        return torch.cat([scores, extra], dim=-1).softmax(-1)[..., :kv_seq]
        """,
    )
    return paper.bytes()


# -------------------------------------------------------------------------------------------------- the class


@dataclass(frozen=True)
class Expected:
    """What must come out of one exercise."""

    outcome: str
    score: float
    mistake: str | None = None


@dataclass(frozen=True)
class Entry:
    """One submission: what it is, how it is made, and what must come out.

    Exercises that ``but`` leaves out get ``rest``: all points for ``passed``, none for anything else.
    """

    student: str
    slug: str
    what: str
    make: Callable[[], bytes]
    score: float
    but: dict[str, Expected] = field(default_factory=dict)
    rest: str = "passed"
    outcome: str = "ok"

    @property
    def path(self) -> Path:
        """Where the notebook lies."""
        return SUBMITTED / self.student / self.slug / "exercises.ipynb"

    def expected(self) -> dict[str, Expected]:
        """What must come out of each exercise, by the exercise's name."""
        every = {}
        for exercise in course.sheet(self.slug).exercises:
            full = exercise.points if self.rest == "passed" else 0.0
            every[exercise.name] = self.but.get(exercise.name, Expected(self.rest, full))
        return every


def failed(score: float, mistake: str | None = None) -> Expected:
    """A wrong answer, the points that it keeps, and the mistake's name if it has one."""
    return Expected("failed", score, mistake)


NOT_ATTEMPTED = Expected("not_attempted", 0.0)
FIRST_FOUR = {
    "scaled_dot_product_attention": 4,
    "softmax_with_temperature": 3,
    "softmax_jacobian": 2,
    "softmax_vjp": 3,
}

CLASS = (
    Entry("s001", ADDITIVE, "Everything right, as the reference has it.", lambda: solved(ADDITIVE).bytes(), 32),
    Entry("s001", SCALED, "Everything right, as the reference has it.", lambda: solved(SCALED).bytes(), 26),
    Entry("s001", POSITIONS, "Everything right, as the reference has it.", lambda: solved(POSITIONS).bytes(), 48),
    Entry("s001", HEADS, "Everything right, as the reference has it.", lambda: solved(HEADS).bytes(), 62),
    Entry("s001", LINEAR, "Everything right, as the reference has it.", lambda: solved(LINEAR).bytes(), 46),
    Entry("s002", ADDITIVE, "Everything right, in other ways.", lambda: with_alternatives(ADDITIVE).bytes(), 32),
    Entry("s002", SCALED, "Everything right, in other ways.", lambda: with_alternatives(SCALED).bytes(), 26),
    Entry("s002", POSITIONS, "Everything right, in other ways.", lambda: with_alternatives(POSITIONS).bytes(), 48),
    Entry("s002", HEADS, "Everything right, in other ways.", lambda: with_alternatives(HEADS).bytes(), 62),
    Entry("s002", LINEAR, "Everything right, in other ways.", lambda: with_alternatives(LINEAR).bytes(), 46),
    Entry(
        "s003",
        ADDITIVE,
        "Good, in a style of its own, with one slip.",
        mixed_additive,
        28,
        {"hard_alignment": failed(0, "standing_still_counts_as_back")},
    ),
    Entry(
        "s003",
        SCALED,
        "Good, in a style of its own, with one slip.",
        mixed_scaled,
        24.3333,
        {"effective_support": failed(0.3333, "participation_ratio")},
    ),
    Entry(
        "s004",
        ADDITIVE,
        "Normalises along the wrong axis.",
        lambda: with_slips(ADDITIVE, attend="softmax_over_queries", AdditiveAttention="softmax_over_queries").bytes(),
        16,
        {
            "attend": failed(0, "softmax_over_queries"),
            "AdditiveAttention": failed(0, "softmax_over_queries"),
            "BahdanauDecoderStep": failed(0),
        },
    ),
    Entry(
        "s004",
        SCALED,
        "Normalises along the wrong axis; the gradient that builds on it suffers too.",
        lambda: with_slips(
            SCALED,
            scaled_dot_product_attention="softmax_over_queries",
            softmax_with_temperature="normalises_over_rows",
            cross_entropy_grad="softmax_over_the_batch",
        ).bytes(),
        11.3333,
        {
            "scaled_dot_product_attention": failed(0, "softmax_over_queries"),
            "softmax_with_temperature": failed(0.3333, "normalises_over_rows"),
            "attention_vjp": failed(0),
            "cross_entropy_grad": failed(0, "softmax_over_the_batch"),
        },
    ),
    Entry(
        "s004",
        POSITIONS,
        "Lets query i stand at position i, however many keys there are.",
        lambda: with_slips(
            POSITIONS,
            shaw_relative_attention="aligned_top_left",
            t5_relative_buckets="aligned_top_left",
            alibi_bias="aligned_top_left",
        ).bytes(),
        41.0714,
        {
            "shaw_relative_attention": failed(1.4286, "aligned_top_left"),
            "t5_relative_buckets": failed(1.1429, "aligned_top_left"),
            "alibi_bias": failed(2.5, "aligned_top_left"),
        },
    ),
    Entry(
        "s004",
        HEADS,
        "Cuts heads by a bare reshape, and everything that splits heads suffers.",
        lambda: with_slips(HEADS, split_heads="reshape_without_transpose").bytes(),
        28.8111,
        {
            "split_heads": failed(0, "reshape_without_transpose"),
            "MultiHeadAttention": failed(0),
            "GroupedQueryAttention": failed(0.7),
            "decode_step": failed(1.1111),
            "TalkingHeadsAttention": failed(0),
            "MultiHeadLatentAttention": failed(0),
        },
    ),
    Entry(
        "s006",
        HEADS,
        "Leaves the decoder out; one answer forgets the mask.",
        without_a_decoder,
        55.5,
        {"decode_step": NOT_ATTEMPTED, "sink_softmax": failed(2.5)},
    ),
    Entry(
        "s007",
        HEADS,
        "Right values at the wrong price: copies keys and values for every head, joins the cache anew for every token.",
        lambda: with_slips(
            HEADS, GroupedQueryAttention="keys_repeated", KVCache="joined_anew", softcap="clamped"
        ).bytes(),
        57.6,
        {
            "GroupedQueryAttention": failed(5.6, "keys_repeated"),
            "KVCache": failed(4, "joined_anew"),
            "softcap": failed(0, "clamped"),
        },
    ),
    Entry(
        "s004",
        LINEAR,
        "Forgets the normaliser wherever there is one.",
        lambda: with_slips(
            LINEAR,
            linear_attention="normaliser_forgotten",
            causal_linear_recurrent="normaliser_forgotten",
            causal_linear_chunked="normaliser_forgotten",
            performer_attention="normaliser_forgotten",
        ).bytes(),
        30,
        {
            "linear_attention": failed(0, "normaliser_forgotten"),
            "causal_linear_recurrent": failed(0, "normaliser_forgotten"),
            "causal_linear_chunked": failed(0, "normaliser_forgotten"),
            "performer_attention": failed(0, "normaliser_forgotten"),
        },
    ),
    Entry(
        "s005",
        ADDITIVE,
        "Gets masks the wrong way round, or forgets them.",
        lambda: with_slips(ADDITIVE, attend="mask_inverted", AdditiveAttention="reads_one_key_too_many").bytes(),
        18.5,
        {
            "attend": failed(0, "mask_inverted"),
            "AdditiveAttention": failed(1, "reads_one_key_too_many"),
            "BahdanauDecoderStep": failed(1.5),
        },
    ),
    Entry(
        "s005",
        SCALED,
        "Gets masks the wrong way round.",
        lambda: with_slips(
            SCALED, scaled_dot_product_attention="mask_inverted", causal_mask="inverted", padding_mask="inverted"
        ).bytes(),
        15.0909,
        {
            "scaled_dot_product_attention": failed(1.0909, "mask_inverted"),
            "causal_mask": failed(0, "inverted"),
            "padding_mask": failed(0, "inverted"),
            "attention_vjp": failed(1),
        },
    ),
    Entry(
        "s006",
        ADDITIVE,
        "Exponentiates raw scores: right on small numbers only.",
        lambda: with_slips(ADDITIVE, softmax="no_max_subtraction").bytes(),
        29.6667,
        {
            "softmax": failed(2.3333, "no_max_subtraction"),
            "attend": failed(3.3333),
        },
    ),
    Entry(
        "s006",
        SCALED,
        "Exponentiates raw scores: right on small numbers only.",
        lambda: with_slips(
            SCALED,
            scaled_dot_product_attention="no_max_subtraction",
            softmax_with_temperature="no_max_subtraction",
            cross_entropy_grad="no_max_subtraction",
        ).bytes(),
        24.3745,
        {
            "scaled_dot_product_attention": failed(3.6364, "no_max_subtraction"),
            "softmax_with_temperature": failed(2.6667, "no_max_subtraction"),
            "attention_vjp": failed(4.5, "no_max_subtraction"),
            "cross_entropy_grad": failed(2.5714, "no_max_subtraction"),
        },
    ),
    Entry(
        "s007",
        ADDITIVE,
        "Right values, at a cost that the contract rules out.",
        lambda: with_slips(
            ADDITIVE,
            additive_scores="loops_over_queries",
            bilinear_scores="keeps_all_products",
            AdditiveAttention="loops_over_queries",
        ).bytes(),
        30.2143,
        {
            "additive_scores": failed(3, "loops_over_queries"),
            "bilinear_scores": failed(1.7143, "keeps_all_products"),
            "AdditiveAttention": failed(4.5, "loops_over_queries"),
        },
    ),
    Entry(
        "s007",
        SCALED,
        "Right values, at a cost that the contract rules out.",
        lambda: with_slips(SCALED, softmax_vjp="through_the_jacobian", attention_vjp="through_the_jacobian").bytes(),
        24.5,
        {
            "softmax_vjp": failed(2, "through_the_jacobian"),
            "attention_vjp": failed(4.5, "through_the_jacobian"),
        },
    ),
    Entry(
        "s008",
        ADDITIVE,
        "A different mistake in every exercise.",
        lambda: with_slips(
            ADDITIVE,
            softmax="ignores_the_axis",
            additive_scores="divides_by_the_root_of_the_width",
            bilinear_scores="normalises_the_scores",
            attend="empty_rows_uniform",
            AdditiveAttention="other_parameter_names",
            BahdanauDecoderStep="context_before_embedding",
            hard_alignment="last_of_equal_weights",
            steps_to_connect="rounds_down",
        ).bytes(),
        7.6508,
        {
            "softmax": failed(0.3333, "ignores_the_axis"),
            "additive_scores": failed(0, "divides_by_the_root_of_the_width"),
            "bilinear_scores": failed(0, "normalises_the_scores"),
            "attend": failed(3.8889, "empty_rows_uniform"),
            "AdditiveAttention": Expected("crashed", 0, "other_parameter_names"),
            "BahdanauDecoderStep": Expected("crashed", 0),
            "hard_alignment": failed(3.4286, "last_of_equal_weights"),
            "steps_to_connect": failed(0, "rounds_down"),
        },
    ),
    Entry(
        "s008",
        SCALED,
        "A different mistake in every exercise.",
        lambda: with_slips(
            SCALED,
            scaled_dot_product_attention="scale_ignored",
            softmax_with_temperature="first_winner_takes_all",
            softmax_jacobian="sign_flipped",
            softmax_vjp="changes_upstream",
            causal_mask="top_left_aligned",
            padding_mask="lengths_unchecked",
            attention_vjp="order_of_results",
            cross_entropy_grad="smoothing_ignored",
            effective_support="zero_times_log_zero",
        ).bytes(),
        10.045,
        {
            "scaled_dot_product_attention": failed(1.4545, "scale_ignored"),
            "softmax_with_temperature": failed(2.6667, "first_winner_takes_all"),
            "softmax_jacobian": failed(0, "sign_flipped"),
            "softmax_vjp": failed(2.6667, "changes_upstream"),
            "causal_mask": failed(0.4, "top_left_aligned"),
            "padding_mask": failed(1.3333, "lengths_unchecked"),
            "attention_vjp": failed(0, "order_of_results"),
            "cross_entropy_grad": failed(0.8571, "smoothing_ignored"),
            "effective_support": failed(0.6667, "zero_times_log_zero"),
        },
    ),
    Entry(
        "s007",
        LINEAR,
        "Right numbers, but all pairs are formed after all.",
        lambda: with_slips(
            LINEAR,
            linear_attention="forms_all_pairs",
            causal_linear_recurrent="masks_all_pairs",
            causal_linear_chunked="one_chunk_for_all",
            performer_attention="forms_all_pairs_of_features",
            linformer_attention="mixes_the_scores",
        ).bytes(),
        42.0189,
        {
            "linear_attention": failed(2.3333, "forms_all_pairs"),
            "causal_linear_recurrent": failed(3.1429, "masks_all_pairs"),
            "causal_linear_chunked": failed(4.5882, "one_chunk_for_all"),
            "performer_attention": failed(2.5, "forms_all_pairs_of_features"),
            "linformer_attention": failed(2.4545, "mixes_the_scores"),
        },
    ),
    Entry(
        "s008",
        LINEAR,
        "A different mistake in every exercise.",
        lambda: with_slips(
            LINEAR,
            elu_feature_map="rounds_to_zero",
            linear_attention="eps_is_a_floor",
            causal_linear_recurrent="writes_into_the_callers_state",
            causal_linear_chunked="future_inside_the_chunk",
            orthogonal_random_features="signs_of_qr_kept",
            favor_features="keys_as_if_queries",
            performer_attention="all_as_queries",
            linformer_attention="projections_exchanged",
            attention_spectrum="not_squared",
            gated_linear_attention="divides_by_vanishing_products",
            delta_rule="one_answer_for_the_chunk",
            decoding_state_bytes="normaliser_not_counted",
        ).bytes(),
        15.597,
        {
            "elu_feature_map": failed(1.7143, "rounds_to_zero"),
            "linear_attention": failed(0, "eps_is_a_floor"),
            "causal_linear_recurrent": failed(3.7143, "writes_into_the_callers_state"),
            "causal_linear_chunked": failed(0, "future_inside_the_chunk"),
            "orthogonal_random_features": failed(2.8, "signs_of_qr_kept"),
            "favor_features": failed(1, "keys_as_if_queries"),
            "performer_attention": failed(0, "all_as_queries"),
            "linformer_attention": failed(0, "projections_exchanged"),
            "attention_spectrum": failed(0, "not_squared"),
            "gated_linear_attention": failed(5.3684, "divides_by_vanishing_products"),
            "delta_rule": failed(0, "one_answer_for_the_chunk"),
            "decoding_state_bytes": failed(1, "normaliser_not_counted"),
        },
    ),
    Entry(
        "s008",
        POSITIONS,
        "A different mistake in every exercise.",
        lambda: with_slips(
            POSITIONS,
            sinusoidal_encoding="odd_width_loses_its_last_column",
            shift_matrix="accepts_odd_widths",
            LearnedPositions="no_error_past_the_end",
            TokenEmbedding="scaled_head",
            shaw_relative_attention="a_vector_for_each_pair",
            relative_shift="future_left_in",
            transformer_xl_scores="no_scale",
            t5_relative_buckets="rounded_to_the_nearest",
            apply_rope="layouts_exchanged",
            rope_frequencies="attention_factor_forgotten",
            alibi_bias="rest_in_a_row",
            sincos_2d="column_half_first",
            relative_bias_2d="key_minus_query",
        ).bytes(),
        15.5579,
        {
            "sinusoidal_encoding": failed(2.5, "odd_width_loses_its_last_column"),
            "shift_matrix": failed(2.5, "accepts_odd_widths"),
            "LearnedPositions": failed(2.25, "no_error_past_the_end"),
            "TokenEmbedding": failed(0.8, "scaled_head"),
            "shaw_relative_attention": failed(4.2857, "a_vector_for_each_pair"),
            "relative_shift": failed(0, "future_left_in"),
            "transformer_xl_scores": failed(0, "no_scale"),
            "t5_relative_buckets": failed(0, "rounded_to_the_nearest"),
            "apply_rope": failed(0, "layouts_exchanged"),
            "rope_frequencies": failed(2.2222, "attention_factor_forgotten"),
            "alibi_bias": failed(1, "rest_in_a_row"),
            "sincos_2d": failed(0, "column_half_first"),
            "relative_bias_2d": failed(0, "key_minus_query"),
        },
    ),
    Entry("s009", ADDITIVE, "Handed in as released.", lambda: Paper(ADDITIVE).bytes(), 0, rest="not_attempted"),
    Entry(
        "s009",
        SCALED,
        "Half finished.",
        half_finished,
        12,
        {name: Expected("passed", points) for name, points in FIRST_FOUR.items()} | {"causal_mask": failed(0)},
        rest="not_attempted",
    ),
    Entry("s010", ADDITIVE, "A syntax error in one cell.", syntax_error, 30, {"bilinear_scores": NOT_ATTEMPTED}),
    Entry("s010", SCALED, "An exception in one cell.", exception_in_a_cell, 24, {"padding_mask": NOT_ATTEMPTED}),
    Entry(
        "s011",
        ADDITIVE,
        "An endless loop inside a function.",
        endless_function,
        29,
        {"steps_to_connect": Expected("timeout", 0)},
    ),
    Entry(
        "s011",
        SCALED,
        "An endless loop at the top level of a cell.",
        endless_cell,
        24,
        {"causal_mask": Expected("timeout", 0)},
    ),
    Entry(
        "s012", ADDITIVE, "`os._exit` in a function.", kills_its_process, 28, {"hard_alignment": Expected("crashed", 0)}
    ),
    Entry("s012", SCALED, "`sys.exit` in a cell; it ends the cell and nothing else.", exits_a_cell, 26),
    Entry(
        "s012",
        POSITIONS,
        "A recursion without end.",
        endless_recursion,
        45,
        {"alibi_bias": Expected("crashed", 0)},
    ),
    Entry(
        "s013",
        ADDITIVE,
        "A function that keeps asking for memory.",
        memory_hog,
        28,
        {"hard_alignment": Expected("memory", 0)},
    ),
    Entry("s013", SCALED, "A function under another name.", renamed_function, 23, {"softmax_vjp": NOT_ATTEMPTED}),
    Entry(
        "s014",
        ADDITIVE,
        "A PDF that is called `exercises.ipynb`.",
        not_a_notebook,
        0,
        rest="invalid_notebook",
        outcome="invalid_notebook",
    ),
    Entry("s014", SCALED, "An empty file.", lambda: b"", 0, rest="invalid_notebook", outcome="invalid_notebook"),
    Entry("s015", ADDITIVE, "No metadata at all.", without_metadata, 32),
    Entry("s015", SCALED, "Scratch cells everywhere: magics, installs, plots, a failing assert.", extra_cells, 26),
    Entry(
        "s016",
        ADDITIVE,
        "Only answers are left, and one of them was deleted with the rest.",
        deleted_cells,
        30,
        {"bilinear_scores": NOT_ATTEMPTED},
    ),
    Entry("s016", SCALED, "Cells moved, split, and an answer in a cell at the end.", moved_cells, 26),
    Entry(
        "s017",
        ADDITIVE,
        "A kernel that exists elsewhere only; one slip.",
        wrong_kernel,
        28,
        {"additive_scores": failed(0, "no_tanh")},
    ),
    Entry("s017", SCALED, "Prints, warnings and stderr in every function.", talkative, 26),
    Entry("s018", ADDITIVE, "A forbidden call.", calls_the_library, 29, {"softmax": Expected("forbidden", 0)}),
    Entry(
        "s018",
        SCALED,
        "A forbidden call, through a helper and an alias.",
        calls_the_library_through_a_helper,
        24,
        {"causal_mask": Expected("forbidden", 0)},
    ),
    Entry("s019", ADDITIVE, "Saved on Windows: CRLF and a byte order mark.", from_windows, 32),
    Entry(
        "s019",
        SCALED,
        "nbformat 4.2, cells without ids; one slip.",
        from_an_old_jupyter,
        23,
        {"cross_entropy_grad": failed(0, "sum_not_mean")},
    ),
    Entry("s001", SELF, "Everything right, as the reference has it.", lambda: solved(SELF).bytes(), 33),
    Entry("s002", SELF, "Everything right, in other ways.", lambda: with_alternatives(SELF).bytes(), 33),
    Entry(
        "s005",
        SELF,
        "Gets masks, lengths and edges the wrong way round.",
        lambda: with_slips(
            SELF, SelfAttention="mask_inverted", CrossAttention="reads_one_too_many", graph_attention="edges_reversed"
        ).bytes(),
        18.9667,
        {
            "SelfAttention": failed(1.1667, "mask_inverted"),
            "CrossAttention": failed(0.8, "reads_one_too_many"),
            "graph_attention": failed(0, "edges_reversed"),
        },
    ),
    Entry(
        "s007",
        SELF,
        "Right values, at a cost that the contract rules out.",
        lambda: with_slips(
            SELF,
            SelfAttention="scores_through_all_pairs",
            value_weighted_attribution="through_all_contributions",
        ).bytes(),
        32.0417,
        {
            "SelfAttention": failed(6.4167, "scores_through_all_pairs"),
            "value_weighted_attribution": failed(2.625, "through_all_contributions"),
        },
    ),
    Entry(
        "s008",
        SELF,
        "A different mistake in every exercise.",
        lambda: with_slips(
            SELF,
            project_qkv="equal_thirds",
            SelfAttention="scale_of_d_model",
            CrossAttention="padding_set_to_zero",
            graph_attention="scores_set_to_zero",
            convolution_as_attention="kernel_flipped",
            attention_rollout="layers_in_reverse",
            value_weighted_attribution="squared_norms",
            layer_costs="path_through_floats",
        ).bytes(),
        6.175,
        {
            "project_qkv": failed(0.3333, "equal_thirds"),
            "SelfAttention": failed(1.1667, "scale_of_d_model"),
            "CrossAttention": failed(0.8, "padding_set_to_zero"),
            "graph_attention": failed(0, "scores_set_to_zero"),
            "convolution_as_attention": failed(1.25, "kernel_flipped"),
            "attention_rollout": failed(0, "layers_in_reverse"),
            "value_weighted_attribution": failed(0, "squared_norms"),
            "layer_costs": failed(2.625, "path_through_floats"),
        },
    ),
    Entry(
        "s012",
        SELF,
        "A function that raises on what the contract promises.",
        crashes_on_a_list,
        29,
        {"attention_rollout": Expected("crashed", 0)},
    ),
    Entry("s001", SPARSE, "Everything right, as the reference has it.", lambda: solved(SPARSE).bytes(), 56),
    Entry("s002", SPARSE, "Everything right, in other ways.", lambda: with_alternatives(SPARSE).bytes(), 56),
    Entry(
        "s003",
        SPARSE,
        "Good, in a style of its own, with one slip.",
        loops_of_their_own,
        53,
        {"mask_cost": failed(0)},
    ),
    Entry(
        "s004",
        SPARSE,
        "Lets query i stand at position i, however many keys there are.",
        lambda: with_slips(
            SPARSE, sliding_window_mask="top_left", dilated_mask="top_left", banded_attention="top_left"
        ).bytes(),
        50.2667,
        {
            "sliding_window_mask": failed(1.3333, "top_left"),
            "dilated_mask": failed(1.3333, "top_left"),
            "banded_attention": failed(1.6, "top_left"),
        },
    ),
    Entry(
        "s007",
        SPARSE,
        "Right values, at a cost that the contract rules out: all scores, and a mask.",
        lambda: with_slips(
            SPARSE,
            banded_attention="masks_the_whole_matrix",
            longformer_attention="masks_the_whole_matrix_too",
            block_sparse_attention="masks_the_whole_matrix_by_blocks",
            chunked_block_local_attention="masks_the_whole_matrix_by_pairs_of_blocks",
            lsh_attention="masks_the_whole_matrix_by_buckets",
            routing_attention="all_pairs_scored_first",
        ).bytes(),
        44.8332,
        {
            "banded_attention": failed(4, "masks_the_whole_matrix"),
            "longformer_attention": failed(4, "masks_the_whole_matrix_too"),
            "block_sparse_attention": failed(3.6923, "masks_the_whole_matrix_by_blocks"),
            "chunked_block_local_attention": failed(3.2727, "masks_the_whole_matrix_by_pairs_of_blocks"),
            "lsh_attention": failed(5.7143, "masks_the_whole_matrix_by_buckets"),
            "routing_attention": failed(4.1538, "all_pairs_scored_first"),
        },
    ),
    Entry(
        "s012",
        SPARSE,
        "A NumPy array where a tensor is asked for; one exercise not begun.",
        numpy_where_torch_is_asked_for,
        45,
        {"bigbird_layout": failed(0), "lsh_attention": NOT_ATTEMPTED},
    ),
    Entry("s001", FLASH, "Everything right, as the reference has it.", lambda: solved(FLASH).bytes(), 50),
    Entry("s002", FLASH, "Everything right, in other ways.", lambda: with_alternatives(FLASH).bytes(), 50),
    Entry(
        "s003",
        FLASH,
        "FlashAttention as it is often retold: each piece by itself, and the results added up.",
        lambda: with_slips(
            FLASH,
            merge_partials="added_up",
            chunked_lazy_attention="chunks_added_up",
            blockwise_attention="softmax_of_each_tile_added_up",
            flash_attention_backward="softmax_of_each_tile",
            split_kv_decode="parts_added_up",
        ).bytes(),
        18,
        {
            "merge_partials": failed(0, "added_up"),
            "chunked_lazy_attention": failed(0, "chunks_added_up"),
            "blockwise_attention": failed(0, "softmax_of_each_tile_added_up"),
            "flash_attention_backward": failed(0, "softmax_of_each_tile"),
            "FlashAttention": failed(0),
            "split_kv_decode": failed(0, "parts_added_up"),
        },
    ),
    Entry(
        "s006",
        FLASH,
        "Exponentiates raw scores: right on small numbers only.",
        lambda: with_slips(
            FLASH,
            merge_partials="raw_exponentials",
            chunked_lazy_attention="no_maximum",
            blockwise_attention="no_running_maximum",
            split_kv_decode="raw_exponentials",
            mixed_precision_attention="no_maximum_taken_off",
        ).bytes(),
        44.6061,
        {
            "merge_partials": failed(2.6667, "raw_exponentials"),
            "chunked_lazy_attention": failed(4.6667, "no_maximum"),
            "blockwise_attention": failed(7.6364, "no_running_maximum"),
            "split_kv_decode": failed(3.6364, "raw_exponentials"),
            "mixed_precision_attention": failed(0, "no_maximum_taken_off"),
        },
    ),
    Entry(
        "s007",
        FLASH,
        "Right values, at a cost that the contract rules out.",
        lambda: with_slips(
            FLASH,
            online_softmax="chunks_put_together",
            chunked_lazy_attention="in_one_go",
            blockwise_attention="in_one_go",
            flash_attention_backward="future_tiles_are_computed",
            FlashAttention="weights_saved",
            split_kv_decode="whole_cache_read_again",
        ).bytes(),
        39.1507,
        {
            "online_softmax": failed(1.7143, "chunks_put_together"),
            "chunked_lazy_attention": failed(3, "in_one_go"),
            "blockwise_attention": failed(4.7273, "in_one_go"),
            "flash_attention_backward": failed(6.8, "future_tiles_are_computed"),
            "FlashAttention": failed(2, "weights_saved"),
            "split_kv_decode": failed(2.9091, "whole_cache_read_again"),
        },
    ),
    Entry(
        "s008",
        FLASH,
        "A different mistake in every exercise.",
        lambda: with_slips(
            FLASH,
            online_softmax="sum_not_rescaled",
            merge_partials="plain_average",
            chunked_lazy_attention="last_chunk_of_keys_dropped",
            causal_block_schedule="skipped_by_the_first_query",
            blockwise_attention="lse_in_base_two",
            flash_attention_backward="delta_missing",
            FlashAttention="causal_forgotten_in_backward",
            hbm_accesses="output_not_read_back",
            choose_blocks="scores_forgotten",
            split_kv_decode="last_keys_dropped",
            mixed_precision_attention="accumulated_in_compute",
        ).bytes(),
        5.3106,
        {
            "online_softmax": failed(0, "sum_not_rescaled"),
            "merge_partials": failed(0, "plain_average"),
            "chunked_lazy_attention": failed(0.6667, "last_chunk_of_keys_dropped"),
            "causal_block_schedule": failed(0.75, "skipped_by_the_first_query"),
            "blockwise_attention": failed(0, "lse_in_base_two"),
            "flash_attention_backward": failed(0, "delta_missing"),
            "FlashAttention": failed(0.5),
            "hbm_accesses": failed(1.7778, "output_not_read_back"),
            "choose_blocks": failed(0, "scores_forgotten"),
            "split_kv_decode": failed(0.7273, "last_keys_dropped"),
            "mixed_precision_attention": failed(0.8889, "accumulated_in_compute"),
        },
    ),
    Entry("s001", FLASH_GPU, "Everything right, as the reference has it.", lambda: solved(FLASH_GPU).bytes(), 62),
    Entry("s002", FLASH_GPU, "Everything right, in other ways.", other_kernels, 62),
    Entry(
        "s007",
        FLASH_GPU,
        "Right values, at a cost that the contract rules out; the window suffers from the forward kernel's waste.",
        lambda: with_slips(
            FLASH_GPU,
            flash_forward="visits_skipped_tiles",
            flash_forward_gqa="keys_repeated_in_memory",
            flash_decode="splits_ignored",
            block_sparse_kernel="visits_all_blocks",
        ).bytes(),
        54.3827,
        {
            "flash_forward": failed(7.6923, "visits_skipped_tiles"),
            "flash_forward_gqa": failed(2.8571, "keys_repeated_in_memory"),
            "flash_forward_window": failed(3.3333, "visits_tiles_outside_the_window"),
            "flash_decode": failed(6.3, "splits_ignored"),
            "block_sparse_kernel": failed(4.2, "visits_all_blocks"),
        },
    ),
    Entry(
        "s008",
        FLASH_GPU,
        "A different mistake in every exercise.",
        lambda: with_slips(
            FLASH_GPU,
            vector_scale="store_without_a_mask",
            row_softmax="outside_counts_as_zero",
            scores_kernel="heads_of_k_as_long_as_those_of_q",
            flash_forward="causal_ignored",
            flash_forward_gqa="all_read_the_first_head",
            flash_forward_window="causal_sees_one_more",
            flash_backward="delta_missing",
            flash_decode="parts_averaged",
            linear_attention_chunk_kernel="no_normaliser",
            block_sparse_kernel="columns_count_keys",
            autotune_space="exact_fits_left_out",
        ).bytes(),
        5.2617,
        {
            "vector_scale": Expected("crashed", 0, "store_without_a_mask"),
            "row_softmax": failed(0, "outside_counts_as_zero"),
            "scores_kernel": failed(1.1429, "heads_of_k_as_long_as_those_of_q"),
            "flash_forward": failed(2.3077, "causal_ignored"),
            "flash_forward_gqa": failed(0, "all_read_the_first_head"),
            "flash_forward_window": failed(1.1111, "causal_sees_one_more"),
            "flash_backward": failed(0, "delta_missing"),
            "flash_decode": failed(0.7, "parts_averaged"),
            "linear_attention_chunk_kernel": failed(0, "no_normaliser"),
            "block_sparse_kernel": failed(0, "columns_count_keys"),
            "autotune_space": failed(0, "exact_fits_left_out"),
        },
    ),
)


# ----------------------------------------------------------------------------------------------- what is written


def table() -> str:
    """The class as a Markdown table: who handed in what, and what must come out."""
    rows = ["| student | chapter | what was handed in | score | not passed |", "| --- | --- | --- | --- | --- |"]
    for entry in CLASS:
        score = f"{entry.score:g} / {course.sheet(entry.slug).points:g}"
        rows.append(f"| {entry.student} | {entry.slug} | {entry.what} | {score} | {_not_passed(entry)} |")
    return "\n".join(rows)


def _not_passed(entry: Entry) -> str:
    if entry.rest != "passed" and not entry.but:
        return f"everything: {entry.rest}"
    words = []
    for exercise in course.sheet(entry.slug).exercises:
        expected = entry.expected()[exercise.name]
        if expected.outcome != "passed":
            mistake = f" *{expected.mistake}*" if expected.mistake else ""
            score = f", {expected.score:g} of {exercise.points:g}" if expected.score else ""
            words.append(f"`{exercise.name}`: {expected.outcome}{mistake}{score}")
    return "<br>".join(words)


def page() -> str:
    """`README.md` with the present table between its markers."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        sys.exit(f"{README.name} lacks the lines {BEGIN} and {END}, between which the table belongs")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def files() -> Iterator[tuple[Path, bytes]]:
    """Every file of the class, and the README."""
    for entry in CLASS:
        yield entry.path, entry.make()
    yield README, page().encode()


def stale() -> list[Path]:
    """What is out of date, missing, or nobody's."""
    made = dict(files())
    old = [path for path, data in made.items() if not path.is_file() or path.read_bytes() != data]
    strangers = [path for path in SUBMITTED.rglob("*") if path.is_file() and path not in made]
    return sorted(old + strangers)


def main() -> None:
    """Write the class, or check it."""
    parser = argparse.ArgumentParser(description="Make the sample class.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    check = parser.parse_args().check
    places = stale()
    for path in places:
        print(f"{path.relative_to(HERE.parent)}  {'out of date' if check else 'written'}")
    if check and places:
        sys.exit("run: python examples/make_class.py")
    if not check and places:
        shutil.rmtree(SUBMITTED, ignore_errors=True)
        for path, data in files():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


if __name__ == "__main__":
    main()
