"""The sample class of `examples/`, graded end to end: outcomes, named mistakes and scores as written there."""

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from nbgrader.api import Gradebook

from autograder import course
from autograder.grading.record import COURSE_ID, database_url, read_result, result_path
from autograder.grading.result import OUTCOMES, SubmissionResult
from autograder.grading.run import grade

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "make_class.py"
pytestmark = pytest.mark.slow


def load_script():
    spec = importlib.util.spec_from_file_location("make_class", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_class"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


make_class = load_script()
CLASS = make_class.CLASS
IDS = [f"{entry.student}-{entry.slug}" for entry in CLASS]


@pytest.fixture(scope="module", autouse=True)
def secret(tmp_path_factory):
    """A secret of our own: numbers that do not change from run to run, and none of a real course's."""
    path = tmp_path_factory.mktemp("secret") / "secret"
    path.write_text("5a" * 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTN_SECRET_FILE", str(path))
        patch.delenv("ATTN_DB", raising=False)
        yield


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """The whole class, graded once: where, and the run."""
    root = tmp_path_factory.mktemp("class") / "course"
    return root, grade([make_class.SUBMITTED], root=root, workers=2)


def result_of(graded, entry) -> SubmissionResult:
    _, run = graded
    return next(r for r in run.results if (r.student, r.assignment) == (entry.student, entry.slug))


# ------------------------------------------------------------------------------------------------ what lies there


def test_the_class_is_up_to_date():
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_class_is_small_and_large_enough():
    assert len(CLASS) >= 28
    assert {entry.slug for entry in CLASS} == set(course.slugs()), "every chapter has submissions"
    assert sum(path.stat().st_size for path in make_class.SUBMITTED.rglob("*.ipynb")) <= 9e4 * len(CLASS)


@pytest.mark.parametrize("entry", CLASS, ids=IDS)
def test_the_table_adds_up(entry):
    expected = entry.expected()
    assert entry.but.keys() <= expected.keys(), "an exercise of that name does not exist"
    assert sum(e.score for e in expected.values()) == pytest.approx(entry.score, abs=5e-4)


# ------------------------------------------------------------------------------------------------ what comes out


def test_everyone_is_graded(graded):
    _, run = graded
    assert not run.problems
    assert not run.ungraded
    assert (run.judged, run.reused) == (len(CLASS), 0)


@pytest.mark.parametrize("entry", CLASS, ids=IDS)
def test_each_submission_comes_out_as_written(graded, entry):
    result = result_of(graded, entry)
    assert (result.status, result.outcome) == ("graded", entry.outcome), result.message
    seen = {exercise.id.removeprefix(f"{entry.slug}-"): exercise for exercise in result.exercises}
    wanted = entry.expected()
    came_out = {name: (exercise.outcome, exercise.mistake) for name, exercise in seen.items()}
    assert came_out == {name: (expected.outcome, expected.mistake) for name, expected in wanted.items()}
    assert {n: e.score for n, e in seen.items()} == pytest.approx({n: e.score for n, e in wanted.items()}, abs=1e-4)
    assert result.score == pytest.approx(entry.score, abs=1e-4)
    assert result.max_score == course.sheet(entry.slug).points


@pytest.mark.parametrize("entry", CLASS, ids=IDS)
def test_each_result_has_the_promised_form(graded, entry):
    root, _ = graded
    data = json.loads(json.dumps(result_of(graded, entry).as_json()))
    assert data["schema"] == 1
    assert data["notebook_sha256"] == hashlib.sha256(entry.path.read_bytes()).hexdigest()
    assert re.fullmatch("[0-9a-f]{16}", data["seed"])
    assert data["status"] in ("graded", "ungraded")
    assert data["outcome"] in ("ok", "invalid_notebook", "infrastructure")
    assert isinstance(data["seconds"], float)
    sheet = course.sheet(entry.slug)
    assert [exercise["id"] for exercise in data["exercises"]] == [exercise.id for exercise in sheet.exercises]
    for exercise, source in zip(data["exercises"], sheet.exercises, strict=True):
        assert exercise["outcome"] in OUTCOMES
        assert 0 <= exercise["score"] <= exercise["max_score"] == source.points
        assert exercise["mistake"] is None or exercise["says"]
        if entry.outcome == "ok":
            assert sum(test["max_points"] for test in exercise["tests"]) == pytest.approx(source.points, abs=1e-4)
            assert sum(test["points"] for test in exercise["tests"]) == pytest.approx(exercise["score"], abs=1e-4)
        for test in exercise["tests"]:
            assert test.keys() >= {"name", "claim", "outcome", "points", "max_points", "message", "hint"}
            assert test["outcome"] in OUTCOMES
            assert test["claim"]
            assert test["points"] == 0 or test["outcome"] == "passed"
    assert read_result(result_path(root, entry.slug, entry.student)).as_json() == data


RAW = re.compile(r"array\(|tensor\(|nan,|\[[^\]]*\d\.\d[^\]]*,|(-?\d+\.\d+[,\s]+){3}")


@pytest.mark.parametrize("entry", CLASS, ids=IDS)
def test_no_message_shows_hidden_values(graded, entry):
    root, _ = graded
    result = result_of(graded, entry)
    for exercise in result.exercises:
        for text in [exercise.message, *(test.message for test in exercise.tests)]:
            assert not RAW.search(text), text
            assert len(text) < 400
    if entry.make is make_class.talkative:
        assert "am I doing this right" not in json.dumps(result.as_json())
        page = (root / "feedback" / entry.student / entry.slug / "feedback.html").read_text(encoding="utf-8")
        assert "here we go" not in page


def test_a_broken_cell_is_explained(graded):
    explained = {
        make_class.syntax_error: ("bilinear_scores", "SyntaxError"),
        make_class.exception_in_a_cell: ("padding_mask", "NameError (line 2)"),
        make_class.endless_cell: ("causal_mask", "did not finish"),
    }
    for entry in CLASS:
        if entry.make in explained:
            name, words = explained[entry.make]
            exercise = next(e for e in result_of(graded, entry).exercises if e.id.endswith(f"-{name}"))
            assert words in exercise.message


def test_an_exercise_that_builds_on_a_broken_one_says_so(graded):
    entry = next(entry for entry in CLASS if (entry.student, entry.slug) == ("s004", "additive"))
    step = next(e for e in result_of(graded, entry).exercises if e.id.endswith("-BahdanauDecoderStep"))
    assert "AdditiveAttention" in step.message


# ---------------------------------------------------------------------------------------------- what is recorded


def test_the_gradebook_holds_every_score(graded):
    root, run = graded
    with Gradebook(database_url(root), COURSE_ID) as gradebook:
        for result in run.results:
            submission = gradebook.find_submission(result.assignment, result.student)
            assert submission.score == pytest.approx(result.score, abs=1e-4)
            assert submission.max_score == pytest.approx(result.max_score)
            assert not submission.needs_manual_grade


def test_everyone_finds_their_papers(graded):
    root, _ = graded
    for entry in CLASS:
        place = Path(entry.student) / entry.slug
        assert (root / "submitted" / place / "exercises.ipynb").read_bytes() == entry.path.read_bytes()
        assert (root / "autograded" / place / "exercises.ipynb").is_file()
        assert (root / "feedback" / place / "feedback.html").is_file()


# ------------------------------------------------------------------------------------------------ graded again


def steady(result, *also):
    """A result without what may differ between two gradings of the same."""
    return {key: value for key, value in result.as_json().items() if key not in ("seconds", *also)}


@pytest.fixture(scope="module")
def careless():
    """A submission with failures of every kind, whose messages carry sizes of errors."""
    return next(entry for entry in CLASS if (entry.student, entry.slug) == ("s008", "scaled_dot_product"))


def test_nothing_is_judged_twice(graded, careless):
    root, first = graded
    again = grade([careless.path], root=root, workers=1)
    assert (again.judged, again.reused) == (0, 1)
    assert again.results[0].as_json() == result_of((root, first), careless).as_json()
    whole = grade([make_class.SUBMITTED], root=root, workers=2)
    assert (whole.judged, whole.reused) == (0, len(CLASS))


def test_a_regrade_repeats_every_number(graded, careless):
    root, first = graded
    before = result_of((root, first), careless)
    again = grade([careless.path], root=root, workers=1, force=True)
    assert again.judged == 1
    assert not again.changed
    assert steady(again.results[0]) == steady(before)


def test_white_space_rerolls_nothing(graded, careless, tmp_path):
    _, first = graded
    notebook = json.loads(careless.path.read_bytes())
    for cell in notebook["cells"]:
        cell["source"] = [*cell["source"], "\n", "\n", "   \n"]
    path = tmp_path / "moved" / careless.student / careless.slug / "exercises.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(notebook, indent=2))
    again = grade([tmp_path / "moved"], root=tmp_path / "course", workers=1)
    differing = ("notebook_sha256", "fingerprint")
    assert again.results[0].notebook_sha256 != hashlib.sha256(careless.path.read_bytes()).hexdigest()
    assert steady(again.results[0], *differing) == steady(result_of((None, first), careless), *differing)
