"""What students and instructors read, and what other systems import."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from nbgrader.api import Gradebook
from test_record import ROOT, SLUG, invalid, judged, make_course, submission, ungraded
from typer.testing import CliRunner

from autograder import cli
from autograder.grading.collect import Problem, Roster, RosterEntry
from autograder.grading.judge import judge_notebook
from autograder.grading.record import Recorder, RecordError, result_path
from autograder.grading.result import OUTCOMES
from autograder.reporting import words, write_report
from autograder.reporting.class_report import class_page, correlation, histogram, summarize, write_class_report
from autograder.reporting.exports import write_exports
from autograder.reporting.feedback import (
    exercise_comment,
    exercise_html,
    exercise_text,
    feedback_page,
    inert,
    next_steps,
)
from autograder.reporting.similarity import COMMON, alike, write_similarity
from autograder.sandbox import client

VOID = {"meta", "link", "br", "hr", "img", "input"}
ROSTER = Roster(
    [
        RosterEntry("s001", "Student One", canvas_id="12345", moodle_id="77", email="s001@example.org", section="A"),
        RosterEntry("s002", "=HYPERLINK(1)"),
    ]
)


class Page(HTMLParser):
    """Reads a page strictly: every element closed, every id used once, nothing fetched from anywhere."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.text, self.tags = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))
        assert all(link.startswith("#") and link[1:] in self.ids for link in self.links), self.links
        assert not {"script", "link", "img", "iframe", "object"} & set(self.tags)
        assert not re.search(r"@import|url\(|https?:", text)
        self.words = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        self.links += [values[key] for key in ("href", "src") if key in values]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.text.append(data)


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """Twelve graded students, one unreadable notebook, one that the grader could not grade."""
    made = make_course(tmp_path_factory.mktemp("class"))
    data = submission()
    with Recorder(made, roster=ROSTER) as recorder:
        for number in range(1, 13):
            scores = (3.0, 2.0) if number % 3 == 0 else (3.0, 1.0) if number % 3 == 1 else (1.0, 1.0)
            result = judged(data, f"s{number:03}", scores, seconds=float(5 * number % 13))
            recorder.record(result, data, timestamp=datetime(2026, 10, 1))
        recorder.record(invalid(b"no notebook", "s013"), b"no notebook")
        recorder.record(ungraded(data, "s014"), data)
    return made


def rows_of(path):
    return list(csv.reader(io.StringIO(path.read_bytes().decode())))


# ----------------------------------------------------------------------------------------------------- feedback


def test_feedback_says_what_happened_and_what_to_do_next():
    page = Page(feedback_page(judged(b"", scores=(1.0, 2.0)), name="Student"))
    for text in (
        "Feedback for Student",
        "3 of 5 points",
        "What to do next",
        "You return x itself, not 2 * x.",
        "Multiply by two.",
    ):
        assert text in page.words
    for text in (
        "off by a factor of 2",
        "Hint: What is twice two?",
        "1 of 2 exercises pass.",
        "Twice the input <comes> out.",
    ):
        assert text in page.words
    assert page.links == ["#additive-softmax"]


def test_feedback_names_no_hidden_test_and_escapes_every_word():
    evil = "<script>alert(1)</script>"
    result = judged(b"")
    exercise = replace(result.exercises[1], says=evil, message=evil, mistake_hint=evil, title=evil)
    text = feedback_page(replace(result, exercises=(exercise,), message=evil, notes=(evil,)), name=evil)
    Page(text)
    assert "<script" not in text
    assert "secret_name" not in text
    assert "<script" not in exercise_html(exercise)
    assert "secret_name" not in exercise_html(exercise) + exercise_text(exercise)


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_every_outcome_has_its_words_on_a_valid_page(outcome):
    result = judged(b"", scores=(0.0, 0.0))
    tests = tuple(replace(test, outcome=outcome) for test in result.exercises[0].tests)
    exercise = replace(result.exercises[0], outcome=outcome, says=None, mistake_hint=None, tests=tests)
    page = Page(feedback_page(replace(result, exercises=(exercise,))))
    assert words.OUTCOMES[outcome].word in page.words
    comment = exercise_comment(exercise)
    assert (comment is None) == (outcome == "passed")


def test_an_outcome_of_a_later_version_is_shown_and_not_dropped():
    exercise = replace(judged(b"").exercises[0], outcome="something_new")
    assert "unknown" in exercise_html(exercise)


def test_all_right_has_no_next_step_and_a_late_penalty_is_said():
    result = judged(b"", scores=(3.0, 2.0))
    assert next_steps(result) == []
    page = Page(feedback_page(result, penalty=1.5))
    assert "3.5 of 5 points" in page.words
    assert "1.5 were taken off" in page.words
    assert "What to do next" not in page.words


def test_what_was_not_graded_shows_no_score():
    page = Page(feedback_page(ungraded(b"")))
    assert "of 5 points" not in page.words
    assert "no sandbox" in page.words
    unreadable = Page(feedback_page(invalid(b"")))
    assert "0 of 5 points" in unreadable.words
    assert "the file is not JSON" in unreadable.words


def test_where_there_is_no_jail_the_page_says_which_wall_lacks_and_shows_no_traceback(monkeypatch):
    monkeypatch.setenv(client.VARIABLE, "warm")
    monkeypatch.setattr(client, "_servers", {})
    monkeypatch.setattr(client, "ENVIRONMENT", client.ENVIRONMENT | {"TOKEN": "x"})  # which the keeper refuses
    data = (ROOT / "examples" / "submitted" / "s009" / SLUG / "exercises.ipynb").read_bytes()
    result = judge_notebook(data, SLUG, "s009", secret=b"secret")
    assert (result.status, result.outcome, result.score) == ("ungraded", "infrastructure", 0.0)
    assert result.message == (
        "the sandbox's server did not start: environment: start the keeper with jail.ENVIRONMENT alone, without "
        "['TOKEN']; `attn doctor` says more"
    )
    assert "did not start: environment: start the keeper" in Page(feedback_page(result)).words
    assert client._servers == {}


@pytest.mark.parametrize(
    ("log", "why"),
    [
        (
            "Traceback (most recent call last):\n  File x\nModuleNotFoundError: No module named 'torch'\n",
            "ModuleNotFound",
        ),
        ("JailError: one: this\n\nDuring handling of the above, another:\n\nOSError: gone\n", "one: this"),
        ("", "it said nothing"),
    ],
)
def test_why_a_server_did_not_start_is_one_line_of_its_log(log, why):
    said = client._last_words(log)
    assert said.startswith(why)
    assert "\n" not in said


@pytest.mark.parametrize("text", ["<b>", "**x**", "[a](b)", "$x$", "a\x00b", "\ud800", "`c`", "<!--"])
def test_comments_carry_no_markup(text):
    made = inert(text)
    assert not set(made) & set("<>*[]`$\x00\ud800")


def test_numbers_are_written_as_people_do():
    assert [words.number(value) for value in (0.0, 2.0, 2.5, 1 / 3, -0.001)] == ["0", "2", "2.5", "0.33", "0"]


# ------------------------------------------------------------------------------------------------- class report


def test_the_class_report_counts_what_happened(course):
    page = Page(write_class_report(course, roster=ROSTER, problems=[Problem("inbox/x.zip", "is no zip")]).read_text())
    for text in ("13 students", "13 graded submissions", "Student One (s001)", "inbox/x.zip: is no zip", "no sandbox"):
        assert text in page.words
    for text in ("You return x itself, not 2 * x.", "the file is not JSON", "s014", "In need of a look"):
        assert text in page.words


def test_numbers_of_the_class_report(course):
    (assignment,), problems = summarize(course)
    assert problems == []
    softmax, score = assignment.exercises.values()
    assert (softmax.count, softmax.passed) == (12, 8 / 12)
    assert (score.passed, score.mean) == (4 / 12, (4 + 8 * 0.5) / 12)
    assert assignment.common_mistakes[0].count == 8
    assert [bar.count for bar in assignment.histogram] == [1, 0, 0, 0, 4, 0, 0, 0, 4, 4]
    assert 0 < softmax.discrimination <= 1


def test_the_slowest_submissions_come_first_and_five_are_named(course):
    (assignment,), _ = summarize(course)
    slowest = [(12.0, "s005"), (11.0, "s010"), (10.0, "s002"), (9.0, "s007"), (8.0, "s012")]
    assert assignment.slowest == slowest
    named = "Slowest to grade: 12.0 s (s005), 11.0 s (s010), 10.0 s (s002), 9.0 s (s007), 8.0 s (s012)."
    assert named in Page(class_page([assignment])).words
    nameless = "Slowest to grade: 12.0 s, 11.0 s, 10.0 s, 9.0 s, 8.0 s."
    assert nameless in Page(class_page([assignment], names=False)).words


def test_without_names_no_student_is_on_the_page(course):
    problem = Problem("inbox/s001/additive/exercises.ipynb", "is a link")
    path = write_class_report(course, names=False, roster=ROSTER, problems=[problem])
    page = Page(path.read_text())
    assert not re.search(r"\bs0\d\d\b|Student One", path.read_text())
    assert "1 file could not be used" in page.words


def test_an_empty_course_has_a_report_too(tmp_path):
    assert "Nothing has been graded yet" in Page(write_class_report(tmp_path / "course").read_text()).words


def test_a_damaged_result_is_named_in_the_report(tmp_path):
    course = make_course(tmp_path)
    path = result_path(course, SLUG, "s001")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert "delete it and grade again" in Page(write_class_report(course).read_text()).words


def test_a_large_class_fits_on_the_page():
    from autograder.reporting.class_report import Assignment

    assignment = Assignment(SLUG)
    for number in range(2000):
        assignment.add(judged(b"", f"s{number:04}", (float(number % 4), 1.0)))
    assignment.finish()
    text = class_page([assignment])
    Page(text)
    assert len(text) < 2_000_000


def test_statistics_that_are_none_are_none():
    assert correlation([1.0] * 20, list(map(float, range(20)))) is None
    assert correlation([1.0, 2.0], [1.0, 2.0]) is None
    assert sum(bar.count for bar in histogram([-0.1, 0.3, 0.3, 1.0, 1.2])) == 5
    assert [bar.count for bar in histogram([])] == [0] * 10


def test_one_call_makes_the_report_and_the_exports(tmp_path):
    course = make_course(tmp_path)
    data = submission()
    with Recorder(course) as recorder:
        recorder.record(judged(data), data)
    table = tmp_path / "roster.csv"
    table.write_text("student,name\ns001,Student One\n")
    page, exports = write_report(course, roster=table)
    assert "Student One" in page.read_text()
    assert {path.name for path in exports} >= {
        "canvas.csv",
        "questions.csv",
        "moodle-additive.csv",
        "feedback-additive.zip",
    }
    page, _ = write_report(course, anonymous=True, roster=table)
    assert "Student One" not in page.read_text()


# ------------------------------------------------------------------------------------------------- the commands


def test_attn_report_writes_the_page_and_the_exports_and_says_where(course, tmp_path, monkeypatch):
    folder = shutil.copytree(course, tmp_path / "course")
    monkeypatch.setattr("autograder.course.COURSE", folder)
    monkeypatch.delenv("ATTN_DB", raising=False)
    table = tmp_path / "roster.csv"
    table.write_text("student,name,canvas_id\ns001,Student One,12345\n")

    def attn_report(*options):
        done = CliRunner().invoke(cli.app, ["report", "--roster", str(table), *options])
        assert done.exit_code == 0, done.output
        return done.output, (folder / "report" / "index.html").read_text()

    said, page = attn_report("--canvas-id", "additive=998", "--similarity")
    for name in ("index.html", "similarity.html", "questions.csv", "canvas.csv", "moodle-additive.csv"):
        assert (folder / "report" / name).stat().st_size > 0
        assert str(folder / "report" / name) in said
    assert "Student One (s001)" in Page(page).words
    header, _, first, *_ = rows_of(folder / "report" / "canvas.csv")
    assert (header[-1], first[0]) == ("Additive (998)", "Student One")

    said, page = attn_report("--anonymous")
    assert not re.search(r"\bs0\d\d\b|Student One", page)
    assert "13 students" in Page(page).words
    header, _, first, *_ = rows_of(folder / "report" / "canvas.csv")
    assert (header[-1], first[0]) == ("Additive", "Student One")


@pytest.mark.slow
def test_attn_demo_grades_its_class_into_a_folder_and_a_gradebook_of_its_own(tmp_path):
    shutil.copytree(ROOT / "chapters" / SLUG, tmp_path / "chapters" / SLUG)
    for student in ("s001", "s009"):
        work = Path("examples", "submitted", student, SLUG)
        shutil.copytree(ROOT / work, tmp_path / work)
    shutil.copytree(ROOT / "solutions", tmp_path / "solutions", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_toc.yml", "nbgrader_config.py", "references.bib"):
        shutil.copy(ROOT / name, tmp_path / name)
    own = {
        "ATTN_ROOT": str(tmp_path),
        "ATTN_SECRET_FILE": str(tmp_path / "secret"),
        "ATTN_DB": f"sqlite:///{tmp_path / 'the_courses.db'}",
    }
    command = [sys.executable, "-m", "autograder.cli", "demo", "--workers", "1", "--json", str(tmp_path / "demo.json")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "demo.json").read_text())
    assert [(result["student"], result["status"]) for result in results] == [("s001", "graded"), ("s009", "graded")]
    assert [result["score"] for result in results] == [results[0]["max_score"], 0.0]
    demo = tmp_path / "_build" / "demo"
    assert str(demo / "report" / "index.html") in done.stdout
    assert "2 graded submissions" in Page((demo / "report" / "index.html").read_text()).words
    assert [row[3:] for row in rows_of(demo / "report" / "canvas.csv")[2:]] == [["s001", "", "32"], ["s009", "", "0"]]
    assert (demo / "gradebook.db").is_file()
    assert not (tmp_path / "the_courses.db").exists()
    assert not (tmp_path / "course" / "results").exists()


# ------------------------------------------------------------------------------------------------------ exports


@pytest.fixture(scope="module")
def report(course):
    """The exports, after a person has set one score by hand."""
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}", "attention-in-depth") as book:
        book.find_grade("additive-score-tests", "exercises", SLUG, "s002").manual_score = 1.75
        book.db.commit()
    write_exports(course, roster=ROSTER, canvas_ids={SLUG: "998"})
    return course / "report"


def test_canvas_takes_the_file_as_it_is(report):
    header, possible, *rows = rows_of(report / "canvas.csv")
    assert header == ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "Additive (998)"]
    assert possible == ["    Points Possible", "", "", "", "", "5"]
    assert rows[0] == ["Student One", "12345", "", "s001", "A", "4"]
    assert rows[1][0].startswith("'=")  # a formula stays a text
    assert rows[1][-1] == "2.75"
    assert "s014" not in {row[3] for row in rows}


def test_moodle_takes_the_file_as_it_is(report):
    header, *rows = rows_of(report / "moodle-additive.csv")
    assert header == [
        "Identifier",
        "Full name",
        "Email address",
        "Status",
        "Grade",
        "Maximum Grade",
        "Grade can be changed",
        "Last modified (submission)",
        "Last modified (grade)",
        "Feedback comments",
    ]
    assert rows[0][:6] == [
        "Participant 77",
        "Student One",
        "s001@example.org",
        "Submitted for grading - Graded",
        "4.00",
        "5.00",
    ]
    missing = next(row for row in rows if row[1] == "s014")
    assert missing[4] == ""


def test_each_question_is_a_row_with_the_automatic_and_the_final_score(report):
    header, *rows = rows_of(report / "questions.csv")
    assert header == [
        "assignment",
        "student",
        "exercise",
        "title",
        "outcome",
        "mistake",
        "auto_score",
        "score",
        "max_score",
    ]
    table = {(row[1], row[2]): dict(zip(header, row, strict=True)) for row in rows}
    changed = table["s002", "additive-score"]
    assert (changed["auto_score"], changed["score"], changed["max_score"]) == ("1", "1.75", "2")
    assert changed["mistake"] == "forgot_the_factor"
    assert table["s014", "additive-score"]["score"] == ""


def test_gradescope_reads_the_results(report):
    data = json.loads((report / "gradescope/additive/s002/results.json").read_text())
    assert data["score"] == 2.75
    assert [test["score"] for test in data["tests"]] == [1.0, 1.75]
    assert all(test["status"] in ("passed", "failed") for test in data["tests"])
    assert "secret_name" not in json.dumps(data)
    assert "score" not in json.loads((report / "gradescope/additive/s014/results.json").read_text())


def test_feedback_to_hand_back_is_one_file_a_student_and_always_the_same(course, report):
    path = report / "feedback-additive.zip"
    before = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(before)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"s{number:03}/feedback.html" for number in range(1, 14)]
    write_exports(course, roster=ROSTER, canvas_ids={SLUG: "998"})
    assert path.read_bytes() == before


def test_ids_made_of_canvas_names_keep_canvas_numbers(tmp_path):
    course = make_course(tmp_path)
    data = submission()
    with Recorder(course) as recorder:
        recorder.record(judged(data, "exampleada_4711"), data)
    write_exports(course)
    assert rows_of(course / "report/canvas.csv")[2][:2] == ["exampleada_4711", "4711"]


def test_exports_of_nothing_are_empty_tables(tmp_path):
    course = make_course(tmp_path)
    written = write_exports(course)
    assert [path.name for path in written] == ["questions.csv", "canvas.csv"]


def test_a_gradebook_that_cannot_be_read_is_said(tmp_path):
    course = make_course(tmp_path)
    data = submission()
    with Recorder(course) as recorder:
        recorder.record(judged(data), data)
    (course / "gradebook.db").write_bytes(b"not a database" * 100)
    with pytest.raises(RecordError, match="move it away"):
        write_exports(course)


def test_feedback_goes_back_under_the_names_that_an_lms_handed_out(tmp_path):
    course = make_course(tmp_path)
    data = submission()
    uploads = {
        "s001": "onestudent_12345_67890_",
        "s002": "twostudent_LATE_222_333_",
        "s003": "Student Three_4711_assignsubmission_file_",
        "s004": "",
        "s005": "",
    }
    with Recorder(course) as recorder:
        for student, upload in uploads.items():
            recorder.record(replace(judged(data, student), upload=upload), data)
    roster = Roster([RosterEntry("s003", moodle_id="9"), RosterEntry("s004", "Four_Student", moodle_id="44")])
    write_exports(course, roster=roster)

    def names(name):
        with zipfile.ZipFile(course / "report" / name) as archive:
            return archive.namelist()

    assert names("feedback-additive-canvas.zip") == [
        "onestudent_12345_67890_feedback.html",
        "twostudent_LATE_222_333_feedback.html",
    ]
    assert names("feedback-additive-moodle.zip") == [
        "Student Three_4711_assignsubmission_file_/feedback.html",
        "Four Student_44_assignsubmission_file_/feedback.html",
    ]
    assert names("feedback-additive.zip") == [f"s00{number}/feedback.html" for number in range(1, 6)]
    canvas = {row[3]: row[1] for row in rows_of(course / "report/canvas.csv")[2:]}
    assert canvas == {"s001": "12345", "s002": "222", "s003": "", "s004": "", "s005": ""}
    moodle = {row[1]: row[0] for row in rows_of(course / "report/moodle-additive.csv")[1:]}
    # Moodle's number on the upload goes before that of the roster: each assignment has its own.
    assert (moodle["s003"], moodle["Four_Student"]) == ("Participant 4711", "Participant 44")


# --------------------------------------------------------------------------------------------------- similarity

ODD_ANSWER = """def softmax(x):
    parts = []
    for row in x:
        top = max(row)
        raised = [2.718281828 ** (value - top) for value in row]
        parts.append([value / sum(raised) for value in raised])
    return parts
"""
RENAMED = ODD_ANSWER.replace("row", "zeile").replace("raised", "potenzen").replace("parts", "teile")
OTHER_ANSWER = """def softmax(x):
    import numpy as np
    shifted = np.asarray(x) - np.max(x, axis=-1, keepdims=True)
    return np.exp(shifted) / np.sum(np.exp(shifted), axis=-1, keepdims=True)
"""


def test_answers_that_were_passed_on_are_found_although_names_and_comments_changed(tmp_path):
    course = make_course(tmp_path)
    texts = {
        "s001": ODD_ANSWER,
        "s002": RENAMED.replace("    teile = []", "    # meine Loesung\n    teile = []", 1),
        "s003": OTHER_ANSWER,
        "s004": "def softmax(x):\n    raise NotImplementedError",
        "s005": "def softmax(x):\n    raise NotImplementedError",
        "s006": "def softmax(x:\n    '<script>" + "(" * 300,
        "s007": "",
    }
    with Recorder(course) as recorder:
        for student, text in texts.items():
            tree = json.loads(submission())
            for cell in tree["cells"]:
                if cell["metadata"].get("nbgrader", {}).get("grade_id") == "additive-softmax":
                    cell["source"] = text
            data = json.dumps(tree).encode()
            recorder.record(judged(data, student), data)
    path, count = write_similarity(course)
    page = Page(path.read_text())
    assert count == 1
    assert "s001 and s002" in page.words
    assert "Likeness proves nothing" in page.words
    assert not {"s003", "s004", "s006"} & set(page.words.split())


def test_what_many_wrote_or_everyone_was_given_counts_as_nobodys():
    assert list(alike({"s001": ODD_ANSWER, "s002": RENAMED, "s003": OTHER_ANSWER}, "")) == [("s001", "s002")]
    assert alike({f"s{number:03}": ODD_ANSWER for number in range(COMMON + 1)}, "") == {}
    assert len(alike({f"s{number:03}": ODD_ANSWER for number in range(COMMON)}, "")) == COMMON * (COMMON - 1) // 2
    assert alike({"s001": ODD_ANSWER, "s002": ODD_ANSWER}, stub=ODD_ANSWER) == {}
    assert alike({"s001": "", "s002": ""}, "") == {}
    assert alike({"s001": "return x + 1", "s002": "return x + 1"}, "") == {}
