"""Sources in, student notebook out: stubs, metadata, hints, the same bytes again; a wrong source is named."""

import ast
import json
import subprocess
import sys

import nbformat
import pytest
from nbgrader.nbgraderformat import MetadataValidator

from autograder import CourseError, course
from autograder.authoring.build import build, clear_solutions, instructor_notebook, marked
from autograder.course import Definition
from autograder.sandbox.session import Session
from autograder.sandbox.student import Student

SOLUTIONS = '''"""What the module says of itself is not for students."""

from __future__ import annotations

import functools
import math
import numpy as np
from jaxtyping import Float

__all__ = ["area"]
TAU = 2 * math.pi


def helper(x):
    """Given to students."""
    return x + 1


def area(
    radius: Float[np.ndarray, " n"],
    *,
    scale: float = 1.0,  # of the drawing
) -> float:
    """The area of a circle.

    Example:
        >>> area(1.0)
    """

    # secret: half of tau
    def square(x):
        """Of a side."""
        return x * x

    return scale * TAU / 2 * square(radius)


def one_line(x):
    return helper(x) * 3


@functools.lru_cache(maxsize=None)
@functools.wraps(helper)
def cached(x: int) -> int:
    """x + 1, remembered."""
    return helper(x)


@functools.total_ordering
class Money:
    """An amount."""

    currency = "EUR"

    def __init__(self, amount):
        """Takes an amount."""
        self.amount = amount

    # the order matters here

    def __eq__(self, other):
        return self.amount == other.amount

    @property
    def cents(self):
        """In cents."""
        # secret: a hundred
        return 100 * self.amount

    def __lt__(self, other):
        """Less."""
        return self.amount < other.amount


after = helper(1)
'''


def block(name, *, points=2, more="", **metadata):
    head = {"exercise": name, "points": points, "minutes": 5, "difficulty": 1, "forbids": [], "uses": []} | metadata
    return f"""+++ {json.dumps(head)}

## The {name}

**Contract.** Write it.

```{{code-cell}} ipython3
:tags: [solution]
```

```{{code-cell}} ipython3
:tags: [checks]
assert {name} is not None
```
{more}
+++ {{"hints": "{name}"}}

1. Think of {name}.
2. Think on,
   and *on*.
3. Write.

"""


FRONT = """---
file_format: mystnb
kernelspec:
  name: python3
  display_name: Python 3
---

# Shapes and sums

Welcome.

"""
GIVEN = """
```{code-cell} ipython3
:tags: [given]
table = {"a": after}
```
"""
SHEET = (
    FRONT
    + block("area", points=2.5, forbids=["math.pi"])
    + block("one_line", more=GIVEN)
    + block("cached", uses=["area", "one_line"])
    + block("Money", points=1)
)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A course of one chapter; call it to change a source."""
    for name, folder in (
        ("ROOT", ""),
        ("CHAPTERS", "chapters"),
        ("SOLUTIONS", "solutions"),
        ("SOURCE", "course/source"),
        ("BUILD", "_build"),
    ):
        monkeypatch.setattr(course, name, tmp_path / folder)

    def write(sheet=SHEET, solutions=SOLUTIONS):
        for path, text in (("chapters/tiny/exercises.md", sheet), ("solutions/tiny.py", solutions)):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        forget()
        return tmp_path

    def forget():
        for cached in (course.sheet, course.solution, course.current_release):
            cached.cache_clear()

    yield write
    forget()


@pytest.fixture
def notebook(tiny):
    """The cells of the tiny course's student notebook by grade_id, and the notebook."""
    tiny()
    made = nbformat.reads(build("tiny").text, as_version=4)
    return {c.metadata.nbgrader.grade_id: c for c in made.cells if "nbgrader" in c.metadata}, made


def written_by_hand(source):
    """The stub a careful author would write: each body replaced, docstrings and all else kept."""
    tree = ast.parse(source)
    for node in [tree.body[0]] if isinstance(tree.body[0], ast.FunctionDef) else tree.body[0].body:
        if isinstance(node, ast.FunctionDef):
            documented = ast.get_docstring(node) is not None
            node.body = [*node.body[:documented], *ast.parse("raise NotImplementedError").body]
    return ast.unparse(tree)


@pytest.mark.parametrize("name", ["area", "one_line", "cached", "Money"])
def test_a_stub_is_signature_docstring_and_raise(notebook, name):
    source = notebook[0][f"tiny-{name}"].source
    original = course.solution("tiny").definitions[name].source
    assert ast.unparse(ast.parse(source)) == written_by_hand(original)
    assert "secret" not in source
    assert "SOLUTION" not in source


def test_signatures_and_decorators_stay_to_the_letter(notebook):
    area, money = notebook[0]["tiny-area"].source, notebook[0]["tiny-Money"].source
    head = SOLUTIONS[SOLUTIONS.index("def area(") : SOLUTIONS.index("    # secret: half")].rstrip()
    assert area == head + "\n    raise NotImplementedError"
    assert money.startswith('@functools.total_ordering\nclass Money:\n    """An amount."""\n\n    currency = "EUR"\n')
    assert "    # the order matters here\n" in money
    assert money.count("raise NotImplementedError") == 4
    assert notebook[0]["tiny-cached"].source.startswith(
        "@functools.lru_cache(maxsize=None)\n@functools.wraps(helper)\n"
    )


def test_what_exercises_share_is_given_and_what_is_graded_is_not(notebook):
    given = notebook[0]["tiny-given"].source
    for text in (
        "import math",
        "TAU = 2 * math.pi",
        'def helper(x):\n    """Given to students."""',
        "after = helper(1)",
    ):
        assert text in given
    for text in ("__future__", "__all__", "What the module says", "def area", "class Money", "secret"):
        assert text not in given
    assert notebook[0]["tiny-one_line-given-1"].source == 'table = {"a": after}'


def test_metadata_is_nbgraders_own(notebook):
    cells, made = notebook
    MetadataValidator().validate_nb(made)
    roles = {
        name: (c.metadata.nbgrader.grade, c.metadata.nbgrader.solution, c.metadata.nbgrader.locked)
        for name, c in cells.items()
    }
    names = ("area", "one_line", "cached", "Money")
    assert roles == (
        {f"tiny-{name}": (False, True, False) for name in names}
        | {f"tiny-{name}-tests": (True, False, True) for name in names}
        | {"tiny-given": (False, False, True), "tiny-one_line-given-1": (False, False, True)}
    )
    points = {name: c.metadata.nbgrader.points for name, c in cells.items() if c.metadata.nbgrader.grade}
    assert points == {"tiny-area-tests": 2.5, "tiny-one_line-tests": 2, "tiny-cached-tests": 2, "tiny-Money-tests": 1}
    assert {c.metadata.nbgrader.schema_version for c in cells.values()} == {3}
    assert all(c.metadata.nbgrader.checksum for c in cells.values())
    assert len({c.id for c in made.cells}) == len(made.cells)
    assert all(c.outputs == [] and c.execution_count is None for c in made.cells if c.cell_type == "code")
    assert made.metadata.attention_in_depth.assignment == "tiny"


def test_headlines_say_the_terms_and_hints_are_folded(notebook):
    text = "\n".join(c.source for c in notebook[1].cells if c.cell_type == "markdown")
    assert "## The area\n\n`area` · **2.5 points** · about 5 minutes · warm-up\n\nNot allowed here: `math.pi`." in text
    assert "**1 point** ·" in text
    assert "May call `area`, `one_line` from above; the grader runs it with yours." in text
    assert text.count("<details>") == text.count("</details>") == 12
    assert "<summary>Hint 2 of 3</summary>\n\nThink on,\nand *on*.\n\n</details>" in text
    assert "\n1. Think" not in text


def test_rebuilding_changes_no_byte_and_check_writes_nothing(tiny):
    root = tiny()
    path, instructor = root / "chapters/tiny/exercises.ipynb", root / "course/source/tiny/exercises.ipynb"
    assert not build("tiny", check=True).up_to_date
    assert not path.exists()
    first = build("tiny")
    assert not first.up_to_date
    before = [(p.read_bytes(), p.stat().st_mtime_ns) for p in (path, instructor)]
    again = build("tiny")
    assert again.up_to_date
    assert again.text == first.text
    assert [(p.read_bytes(), p.stat().st_mtime_ns) for p in (path, instructor)] == before
    path.write_text(path.read_text() + " ")
    assert not build("tiny", check=True).up_to_date
    assert path.read_bytes() != before[0][0]
    build("tiny")
    assert path.read_bytes() == before[0][0]


def test_another_process_makes_the_same_bytes(tiny):
    root = tiny()
    here = build("tiny").text
    program = "from autograder.authoring.build import build; print(build('tiny', check=True).up_to_date)"
    environment = {"ATTN_ROOT": str(root), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert (root / "chapters/tiny/exercises.ipynb").read_text() == here


def test_the_release_stamp_follows_what_students_see_and_not_the_answer(tiny):
    def stamp(**changes):
        tiny(**changes)
        return instructor_notebook("tiny").metadata["attention_in_depth"]["release"]

    first = stamp()
    assert stamp() == first
    assert stamp(solutions=SOLUTIONS.replace("scale * TAU / 2", "TAU / 2 * scale")) == first
    assert stamp(solutions=SOLUTIONS.replace("The area of a circle", "The surface")) != first
    assert stamp(sheet=SHEET.replace("Welcome", "Hello")) != first
    assert stamp(solutions=SOLUTIONS.replace("TAU = 2", "TAU = 2.0")) != first


def test_the_instructors_notebook_solves_and_the_students_does_not(tiny):
    tiny()
    student = nbformat.reads(build("tiny").text, as_version=4)
    for made, right in ((instructor_notebook("tiny"), True), (student, False)):
        code = [c.source for c in made.cells if c.cell_type == "code"]
        with Session(code) as session:
            session.allow(20)
            assert session.faults == {}
            if right:
                assert Student(session).area(1.0) == pytest.approx(3.14159, abs=1e-4)
                assert Student(session).one_line(1) == 6
                assert Student(session).Money(3).call("cents") == 300
    by_nbgrader = [c.source for c in student.cells]
    assert by_nbgrader == [clear_solutions(c.source) for c in instructor_notebook("tiny").cells]


WRONG = {
    "a missing tag": (
        {"sheet": SHEET.replace(":tags: [checks]\nassert area", "assert area")},
        r"chapters/tiny/exercises\.md: the code cell `assert area is not None` needs exactly one tag",
    ),
    "two tags": ({"sheet": SHEET.replace("[checks]", "[checks, example]", 1)}, "needs exactly one tag"),
    "two solution cells": (
        {"sheet": FRONT + block("area", more="\n```{code-cell} ipython3\n:tags: [solution]\n```\n")},
        "exercise area: it has 2 solution cells and needs one",
    ),
    "no checks": ({"sheet": FRONT + block("area").replace("[checks]", "[example]")}, "it has 0 checks cells"),
    "no hints": ({"sheet": FRONT + block("area").replace("hints", "other")}, "it has 0 hints cells"),
    "missing points": ({"sheet": SHEET.replace('"points": 2.5, ', "")}, 'area: its block needs a number "points"'),
    "points that are no number": ({"sheet": FRONT + block("area", points=[2])}, 'needs a number "points"'),
    "metadata that is no JSON": (
        {"sheet": SHEET.replace('{"hints": "area"}', "{hints area")},
        r"chapters/tiny/exercises\.md cannot be read as a MyST",
    ),
    "points of text": ({"sheet": FRONT + block("area", points="2")}, 'needs a number "points"'),
    "an unknown difficulty": ({"sheet": FRONT + block("area", difficulty=9)}, "exercise area: .*difficulty"),
    "an unknown function": (
        {"sheet": FRONT + block("volume")},
        r"solutions/tiny\.py defines no volume, which chapters/tiny/exercises\.md asks for",
    ),
    "an exercise twice": ({"sheet": SHEET + block("area")}, "an exercise stands twice among area"),
    "hints that are no list": (
        {"sheet": FRONT + block("area").replace("1. Think of area.", "Think of area.")},
        "hints must be a numbered list; found 'Think of area.'",
    ),
    "nothing to write": ({"solutions": SOLUTIONS.replace("return self.amount ==", "pass  # ")}, "__eq__ has no body"),
    "a body on the line of its signature": (
        {"solutions": SOLUTIONS.replace("def one_line(x):\n   ", "def one_line(x):")},
        "one_line: the body of one_line needs lines of its own",
    ),
    "a syntax error": ({"solutions": SOLUTIONS.replace("def area(", "def area((")}, r"solutions/tiny\.py.*line"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_source_is_named_with_its_place(tiny, case):
    changes, words = WRONG[case]
    tiny(**changes)
    with pytest.raises(CourseError, match=words):
        build("tiny")


def test_missing_files_are_named(tiny):
    root = tiny()
    (root / "solutions/tiny.py").unlink()
    with pytest.raises(CourseError, match=r"solutions/tiny\.py does not exist"):
        build("tiny")
    with pytest.raises(CourseError, match=r"chapters/none/exercises\.md does not exist"):
        build("none")


def test_markers_stand_around_what_is_to_be_written():
    head = 'class A:\n    """Doc."""\n\n    def f(self):\n        """F."""\n'
    source = head + "\n        # first\n        return 1\n\n    x = 1\n"
    assert marked(Definition("A", source, ast.parse(source).body[0])) == (
        head + "        ### BEGIN SOLUTION\n        # first\n        return 1\n        ### END SOLUTION\n\n    x = 1"
    )


@pytest.mark.parametrize("slug", course.slugs())
def test_the_committed_notebook_is_what_its_sources_make(slug):
    assert build(slug, check=True).up_to_date, f"run `attn build {slug}`"
