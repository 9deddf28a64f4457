"""Which answers are much alike: pairs to look at, exercise by exercise, with both texts side by side.

Fingerprints and overlaps are copydetect's, the method of MOSS: comments and white space do not count, names are all one
name, and what remains is cut into overlapping pieces of 25 characters. Left out is what says nothing: the given cells
and visible checks, the text of the stub, short answers, and every piece that more than ten students wrote.

Likeness proves nothing. An exercise with one natural answer makes honest pairs; the page says so.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from autograder.grading.intake import InvalidNotebook, Notebook, read_notebook
from autograder.grading.record import NOTEBOOK, load_config, read_results, released_assignment, write_report
from autograder.reporting.words import render

THRESHOLD = 0.8
"""A pair is listed when at least this share of each answer stands in the other too."""
COMMON = 10
"""A piece that more students than this wrote counts as nobody's."""
SHORT = 60
"""Below this many characters in common, names and comments not counted, answers are alike by nature."""
LONG = 20_000
"""Characters of an answer that are looked at; the longest reference has a tenth of that."""
_PIECE = 25


@dataclass(frozen=True)
class Pair:
    """Two students whose answers to one exercise are much alike."""

    assignment: str
    exercise: str
    title: str
    students: tuple[str, str]
    share: float
    sources: tuple[str, str]


@dataclass(frozen=True)
class Couple:
    """Two students with all exercises of one assignment in which they are alike."""

    assignment: str
    students: tuple[str, str]
    pairs: tuple[Pair, ...]


def write_similarity(course: Path, progress: Callable[[str], None] = lambda _: None) -> tuple[Path, int]:
    """Writes ``course/report/similarity.html`` and returns its path and the number of pairs on it.

    Args:
        course: the course's folder; its graded submissions are compared.
        progress: called with an exercise's id when it is done.

    Raises:
        RecordError: an assignment's source notebook is missing.
    """
    slugs = sorted({path.parent.name for path in (course / "results").glob("*/*.json")})
    pairs = [pair for slug in slugs for pair in similar_pairs(course, slug, progress)]
    page = render(
        "similarity.html.j2", couples=couples(pairs), threshold=THRESHOLD, common=COMMON, pairs=len(pairs), slugs=slugs
    )
    return write_report(course, "similarity.html", page.encode("utf-8", "replace")), len(pairs)


def similar_pairs(course: Path, slug: str, progress: Callable[[str], None] = lambda _: None) -> list[Pair]:
    """The pairs of one assignment, by exercise and the most alike first."""
    stubs = {
        name: str(cell.source)
        for name, cell in released_assignment(
            course, slug, load_config(course.parent / "nbgrader_config.py")
        ).cells.items()
    }
    answers: dict[str, dict[str, str]] = defaultdict(dict)
    titles: dict[str, str] = {}
    for result in read_results(course, slug, problems=[]):
        if result.status != "graded" or result.outcome != "ok":
            continue
        try:
            data = (course / "submitted" / result.student / slug / f"{NOTEBOOK}.ipynb").read_bytes()
            notebook = read_notebook(data, slug)
        except (OSError, InvalidNotebook):
            continue  # the class report names what cannot be read
        for exercise in result.exercises:
            titles[exercise.id] = exercise.title
            source = answer_in(notebook, exercise.id)
            if source is not None:
                answers[exercise.id][result.student] = source
    found = []
    for exercise_id, of_students in answers.items():
        for (one, other), share in alike(of_students, stubs.get(exercise_id, "")).items():
            sources = (of_students[one], of_students[other])
            found.append(Pair(slug, exercise_id, titles[exercise_id], (one, other), share, sources))
        progress(exercise_id)
    return found


def answer_in(notebook: Notebook, exercise: str) -> str | None:
    """The cell that holds the answer: the exercise's own, or the last one that defines the name."""
    name = re.escape(exercise.split("-", 1)[-1])
    defines = re.compile(rf"^(?:def|class)\s+{name}\b", re.MULTILINE)
    own = [
        source
        for source, identity in zip(notebook.cells, notebook.grade_ids, strict=True)
        if identity == exercise and defines.search(source)
    ]
    found = own or [source for source in notebook.cells if defines.search(source)]
    return found[-1] if found else None


def alike(answers: Mapping[str, str], stub: str) -> dict[tuple[str, str], float]:
    """The pairs of students whose answers are alike, with the share that they have in common, the largest first.

    Args:
        answers: source by student.
        stub: the text that everyone was given.
    """
    from copydetect import CodeFingerprint, compare_files
    from copydetect.utils import get_token_coverage

    def fingerprint(source: str) -> Any:
        # A window of one keeps every piece: nothing depends on how Python happens to hash.
        return CodeFingerprint("answer.py", _PIECE, 1, fp=io.StringIO(source[:LONG]), language="python")

    given = fingerprint(stub).hashes
    prints = {student: fingerprint(source) for student, source in answers.items()}
    writers: dict[int, list[str]] = defaultdict(list)
    for student, made in sorted(prints.items()):
        for piece in made.hashes - given:
            writers[piece].append(student)
    own = {piece for piece, students in writers.items() if len(students) <= COMMON}
    for made in prints.values():
        made.hashes = made.hashes & own
        made.hash_idx = {piece: made.hash_idx[piece] for piece in made.hashes}
        made.token_coverage = get_token_coverage(made.hash_idx, _PIECE, len(made.filtered_code))
    candidates = {couple for piece in own for couple in combinations(writers[piece], 2)}
    found = {}
    for one, other in candidates:
        overlap, shares, _ = compare_files(prints[one], prints[other])
        share = min(1.0, *map(float, shares))
        if overlap >= SHORT and share >= THRESHOLD:
            found[one, other] = share
    return dict(sorted(found.items(), key=lambda each: (-each[1], each[0])))


def couples(pairs: Iterable[Pair]) -> Sequence[Couple]:
    """The pairs gathered by the two students; those alike in most exercises come first."""
    gathered: dict[tuple[str, tuple[str, str]], list[Pair]] = defaultdict(list)
    for pair in pairs:
        gathered[pair.assignment, pair.students].append(pair)
    found = [Couple(slug, students, tuple(each)) for (slug, students), each in gathered.items()]
    return sorted(found, key=lambda couple: (-len(couple.pairs), couple.assignment, couple.students))
