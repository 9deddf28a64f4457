"""Attackers and honest students in one run of the grader, with workers and a gradebook; and in the other jail."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from corpus import ADDITIVE, MARK, SCALED, WRONG_MASK, Attack, load
from measuring import SECRET, Bait, complaints, course_files, listening, marked_files, undoubted, without_seconds
from nbgrader.api import Gradebook

from autograder import course
from autograder.authoring.build import instructor_notebook
from autograder.grading.judge import judge_notebook
from autograder.grading.record import COURSE_ID
from autograder.grading.run import GradeRun, grade
from autograder.sandbox import client
from autograder.sandbox.jail import NOBODY

ATTACKS, ARCHIVES = load()
# Some of each theme; the last of them meets the cold jail as well. (Bubblewrap cannot limit how many files /tmp holds.)
PICKED = {
    "cheating": ["imports it under another name"],
    "costs": ["wastes openly"],
    "ending": ["leaves a daemon behind"],
    "exhaustion": ["fills the disk", "opens every file"],
    "forging": ["plants files that python would load"],
    "network": ["writes outside its folder", "reaches for the network"],
    "reading": ["leaves a note for a friend", "looks for a friends note"],
    "shell": ["runs programs"],
    "wire": ["replays an old reply"],
}
NAMES = [name for names in PICKED.values() for name in names]
ATTACKERS = {f"s{100 + 2 * n}": attack for n, attack in enumerate(a for a in ATTACKS if a.name in NAMES)}
HONEST = [f"s{101 + 2 * n}" for n in range(4)]  # their names lie between those of the attackers, and so do their turns


def test_every_theme_has_its_attack() -> None:
    assert sorted(PICKED) == sorted({attack.theme for attack in ATTACKS})
    assert sorted(attack.name for attack in ATTACKERS.values()) == sorted(NAMES)


def hand_in(inbox: Path, student: str, slug: str, data: bytes) -> None:
    place = inbox / student / slug / "exercises.ipynb"
    place.parent.mkdir(parents=True)
    place.write_bytes(data)


def written(folder: Path) -> dict[str, str]:
    """Digests of all files below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def libraries() -> dict[str, object]:
    """Size and time of each source file of NumPy and torch, the digests of some; the interpreter; what lies beside."""
    state: dict[str, object] = {}
    for package in (np, torch):
        folder = Path(package.__file__).parent
        for number, path in enumerate(sorted(folder.rglob("*.py"))):
            about = path.stat()
            digest = (
                hashlib.sha256(path.read_bytes()).hexdigest() if number % 20 == 0 or "testing" in path.parts else ""
            )
            state[str(path)] = (about.st_size, about.st_mtime_ns, about.st_mode, digest)
        state[str(folder.parent)] = sorted(path.name for path in folder.parent.iterdir() if path.name != "__pycache__")
    python = Path(sys.executable).resolve()
    return state | {str(python): hashlib.sha256(python.read_bytes()).hexdigest()}


def strangers() -> set[str]:
    """Files of the submissions' user in the places that everybody may write to."""
    places = [Path(place) for place in ("/tmp", "/var/tmp", "/dev/shm") if Path(place).is_dir()]
    return {str(path) for place in places for path in place.iterdir() if path.lstat().st_uid == NOBODY}


def grades(db: Path, slug: str, students: list[str]) -> list[tuple]:
    """What the gradebook holds of these students' work."""
    with Gradebook(f"sqlite:///{db}", course_id=COURSE_ID) as book:
        found = [each for each in book.assignment_submissions(slug) if each.student.id in students]
        return sorted(
            (each.student.id, each.timestamp, grade.name, grade.auto_score, grade.manual_score)
            for each in found
            for notebook in each.notebooks
            for grade in notebook.grades
        )


@dataclass
class Class:
    """Two runs over one course: the honest alone, who handed in an earlier assignment too; then all together."""

    root: Path
    alone: dict[str, dict]
    together: GradeRun
    before: dict[str, object]
    after: dict[str, object]


def world(root: Path, home: Path) -> dict[str, object]:
    earlier = {
        str(path.relative_to(root)): written(path)
        for path in root.glob(f"*/*/{ADDITIVE}")
        if path.parent.name in HONEST
    }
    return {
        "libraries": libraries(),
        "home": written(home),
        "real home": sorted(os.listdir(pwd.getpwuid(os.getuid()).pw_dir)),
        "strangers": strangers(),
        "marked": marked_files(),
        "listening": listening(),
        "course": course_files(),
        "secret": (root / "secret").read_text(),
        "earlier work": earlier,
        "earlier results": {name: written(root / "results" / ADDITIVE)[f"{name}.json"] for name in HONEST},
        "earlier grades": grades(root / "gradebook.db", ADDITIVE, HONEST),
    }


@pytest.fixture(scope="module")
def bait() -> Iterator[Bait]:
    with closing(Bait()) as bait:
        yield bait


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory, bait: Bait) -> Iterator[Class]:
    base = tmp_path_factory.mktemp("class")
    root, home = base / "course", base / "home"
    for folder in (root, home, base / "tmp"):
        folder.mkdir()
    (root / "secret").write_text(SECRET.hex())
    (home / ".netrc").write_text("machine grades.example password open\n")
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    for number, student in enumerate(HONEST):
        notebook = instructor_notebook(SCALED)
        notebook.cells += [nbformat.v4.new_code_cell(WRONG_MASK)] * (number % 2)  # they have made mistakes, too
        hand_in(base / "honest", student, SCALED, nbformat.writes(notebook).encode())
        hand_in(base / "earlier", student, ADDITIVE, nbformat.writes(instructor_notebook(ADDITIVE)).encode())
    for student, attack in ATTACKERS.items():
        hand_in(base / "hostile", student, attack.slug, bait.fill(attack.data))
    (base / "class.zip").write_bytes(next(one.data for one in ARCHIVES if one.name == "climbs out of the archive"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "ATTN_SECRET_FILE": str(root / "secret"),
            "HOME": str(home),
            "TMPDIR": str(base / "tmp"),
            "XDG_CACHE_HOME": cache,
        }.items():
            patch.setenv(name, value)
        patch.delenv("ATTN_DB", raising=False)
        first = grade([base / "honest", base / "earlier"], root=root, workers=2)
        alone = {result.student: without_seconds(result) for result in first.results if result.assignment == SCALED}
        before = world(root, home)
        everybody = [base / name for name in ("honest", "hostile", "class.zip")]
        together = grade(everybody, root=root, workers=2, force=True)
        assert not bait.visited()
        yield Class(root, alone, together, before, world(root, home))
    shutil.rmtree(base)


def test_honest_students_have_the_same_grades_among_attackers(graded: Class) -> None:
    assert [result["score"] for result in graded.alone.values()] != [0] * len(HONEST)
    assert len({result["score"] for result in graded.alone.values()}) == 2
    found = {one.student: one for one in graded.together.results if one.assignment == SCALED and one.student in HONEST}
    assert {student: without_seconds(result) for student, result in found.items()} == graded.alone
    assert graded.together.judged == len(HONEST) + len(ATTACKERS) + 1  # and the honest notebook of the archive
    assert graded.together.changed == []


def test_attackers_have_no_grade_that_they_did_not_earn(graded: Class) -> None:
    found = {one.student: one for one in graded.together.results if one.student in ATTACKERS}
    assert len(graded.together.ungraded) == 0
    said = [one for student, attack in ATTACKERS.items() for one in complaints(attack, found[student])]
    # The witnesses of a raid live by what its other cells count, and those are left out in the second look.
    assert [one for one in said if not one.endswith("where full marks are due")] == []
    assert MARK in " ".join(map(str, graded.together.problems))  # what would have climbed out of the archive is named


def test_the_gradebook_holds_what_was_found(graded: Class) -> None:
    with Gradebook(f"sqlite:///{graded.root / 'gradebook.db'}", course_id=COURSE_ID) as book:
        for slug in (SCALED, ADDITIVE):
            for each in book.assignment_submissions(slug):
                found = next(
                    (
                        one
                        for one in graded.together.results
                        if (one.assignment, one.student) == (slug, each.student.id)
                    ),
                    None,
                )
                assert found is None or each.score == pytest.approx(found.score)
    assert len(graded.before["earlier grades"]) == len(HONEST) * len(course.sheet(ADDITIVE).exercises)  # type: ignore[arg-type]


def test_nothing_else_is_another_than_before(graded: Class) -> None:
    assert len(graded.before["earlier work"]) == 3 * len(HONEST)  # type: ignore[arg-type]  # as handed in, graded, and told
    changed = {kind for kind in graded.before if graded.before[kind] != graded.after[kind]}
    assert changed == set()


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="NOT RUN: bubblewrap is not installed (make system)")
@pytest.mark.parametrize("theme", PICKED)
def test_the_cold_jail_stops_one_of_each_theme(theme: str, bait: Bait, monkeypatch: pytest.MonkeyPatch) -> None:
    attack: Attack = next(one for one in ATTACKS if one.name == PICKED[theme][-1])
    monkeypatch.setenv("ATTN_JAIL", "cold")
    with undoubted(theme):
        result = judge_notebook(bait.fill(attack.data), attack.slug, "s900", secret=SECRET)
    assert list(complaints(attack, result)) == []
    assert not bait.visited()
    assert not client.server()._running  # type: ignore[attr-defined]
