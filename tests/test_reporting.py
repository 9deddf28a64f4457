"""What students and instructors read, and what other systems import."""

import csv
import io
import json
import re
import zipfile
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser

import pytest
from nbgrader.api import Gradebook
from test_record import SLUG, invalid, judged, make_course, submission, ungraded

from autograder.grading.collect import Problem, Roster, RosterEntry
from autograder.grading.record import Recorder, RecordError, result_path
from autograder.grading.result import OUTCOMES
from autograder.reporting import words, write_report
from autograder.reporting.class_report import class_page, correlation, histogram, summarize, write_class_report
from autograder.reporting.exports import CANVAS_COLUMNS, MOODLE_COLUMNS, write_exports
from autograder.reporting.feedback import (
    exercise_comment,
    exercise_html,
    exercise_text,
    feedback_page,
    inert,
    next_steps,
)
from autograder.reporting.similarity import COMMON, alike, write_similarity

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
            recorder.record(judged(data, f"s{number:03}", scores), data, timestamp=datetime(2026, 10, 1))
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
    assert len(assignment.slowest) == 5


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
    assert tuple(header) == (*CANVAS_COLUMNS, "Additive (998)")
    assert possible == ["    Points Possible", "", "", "", "", "5"]
    assert rows[0] == ["Student One", "12345", "", "s001", "A", "4"]
    assert rows[1][0].startswith("'=")  # a formula stays a text
    assert rows[1][-1] == "2.75"
    assert "s014" not in {row[3] for row in rows}


def test_moodle_takes_the_file_as_it_is(report):
    header, *rows = rows_of(report / "moodle-additive.csv")
    assert tuple(header) == MOODLE_COLUMNS
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
