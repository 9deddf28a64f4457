"""The page for instructors: its commands are commands, its settings work, and nbgrader's exchange leads to a grade."""

import os
import re
import shlex
import subprocess
import sys
import zipfile
from datetime import UTC, datetime, timedelta

import nbformat
import pytest
import typer
from nbgrader.api import Gradebook
from nbgrader.apps.nbgraderapp import NbGraderApp
from nbgrader.utils import get_username
from test_collect import pack
from test_record import SLUG, make_course

from autograder import cli, course
from autograder.authoring.build import instructor_notebook
from autograder.grading.collect import Roster
from autograder.grading.deadlines import PenaltyPerDay, write_deadline
from autograder.grading.record import _late_penalties, load_config
from autograder.grading.run import grade
from autograder.reporting import write_report

PAGE = (course.CHAPTERS / "appendix" / "teaching.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


LINES = [line for block in blocks("bash") for line in block.splitlines()]


@pytest.mark.parametrize("line", LINES)
def test_every_command_on_the_page_is_one(line):
    program, word, *arguments = shlex.split(line)
    if program == "nbgrader":
        assert word in NbGraderApp.subcommands
        return
    assert program == "attn"
    commands = typer.main.get_command(cli.app).commands
    with commands[word].make_context(word, arguments) as context:  # reads the options and runs nothing
        assert context.params
        named = context.params.get("assignment") or context.params.get("slug") or []
        assert {named} <= set(course.slugs()) if isinstance(named, str) else set(named) <= set(course.slugs())


def test_an_option_that_is_none_would_be_noticed():
    command = typer.main.get_command(cli.app).commands["report"]
    with pytest.raises(Exception, match="no-such-option"):
        command.make_context("report", ["--no-such-option"])


def test_the_pages_roster_and_settings_are_read(tmp_path):
    (tmp_path / "roster.csv").write_text(blocks("text")[0])
    (entry,) = Roster.read(tmp_path / "roster.csv").entries
    assert (entry.canvas_id, entry.moodle_id, entry.section) == ("12345", "1234567", "A")
    make_course(tmp_path)
    config = tmp_path / "nbgrader_config.py"
    config.write_text(config.read_text() + blocks("python")[0])
    plugin = _late_penalties(load_config(config)).plugin_inst
    assert isinstance(plugin, PenaltyPerDay)
    assert (plugin.percent, plugin.grace_minutes) == (10, 15)


def test_work_from_an_lms_keeps_its_name_and_says_that_it_has_no_time(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTN_SECRET_FILE", str(tmp_path / "secret"))
    work = (course.ROOT / "examples" / "submitted" / "s009" / SLUG / "exercises.ipynb").read_bytes()
    uploads = {"onestudent_12345_67890_": work, "twostudent_LATE_222_333_": b"no notebook"}
    inbox = pack(tmp_path / "inbox.zip", [(f"{upload}exercises.ipynb", data) for upload, data in uploads.items()])
    root = tmp_path / "course"
    first = grade([inbox], assignment=SLUG, root=root)
    assert [(result.student, result.outcome) for result in first.results] == [
        ("onestudent_12345", "ok"),
        ("twostudent_222", "invalid_notebook"),
    ]
    assert first.problems == []
    write_deadline(root, SLUG, due=datetime(2026, 1, 1), config=course.ROOT / "nbgrader_config.py")
    again = grade([inbox], assignment=SLUG, root=root)
    assert (again.judged, again.reused) == (0, 2)
    (problem,) = again.problems
    assert "the LMS marks as late: twostudent_222" in problem.reason
    assert grade([], root=root).judged == 0  # from the course's own copy, which knows no upload
    page, _ = write_report(root)
    assert "--file-times" in page.read_text()
    with zipfile.ZipFile(root / "report" / f"feedback-{SLUG}-canvas.zip") as archive:
        assert archive.namelist() == [f"{upload}feedback.html" for upload in uploads]


@pytest.mark.slow
def test_what_nbgraders_exchange_collects_is_graded_with_its_time(tmp_path, monkeypatch):
    """Released, fetched, submitted and collected by nbgrader's own commands, as on a shared machine; then graded."""
    monkeypatch.setenv("ATTN_SECRET_FILE", str(tmp_path / "secret"))
    monkeypatch.delenv("ATTN_DB", raising=False)
    made = make_course(tmp_path / "teacher")
    nbformat.write(instructor_notebook(SLUG), made / "source" / SLUG / "exercises.ipynb")
    work = (course.ROOT / "examples" / "submitted" / "s001" / SLUG / "exercises.ipynb").read_bytes()  # all is right
    exchange, student = tmp_path / "exchange", tmp_path / "student"
    exchange.mkdir()
    exchange.chmod(0o777)
    student.mkdir()
    more = f"\nc.Exchange.root = {str(exchange)!r}\nc.Exchange.cache = {str(tmp_path / 'cache')!r}\n"
    for folder in (made.parent, student):
        with (folder / "nbgrader_config.py").open("a") as config:
            config.write(
                ("c = get_config()\nc.CourseDirectory.course_id = 'attention-in-depth'" if folder == student else "")
                + more
            )

    def nbgrader(folder, *arguments):
        environment = {key: value for key, value in os.environ.items() if key not in ("ATTN_ROOT", "ATTN_DB")}
        environment |= {"PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])}
        done = subprocess.run(
            [sys.executable, "-m", "nbgrader", *arguments],
            cwd=folder,
            env=environment | {"PYTHONPATH": str(course.ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    nbgrader(made.parent, "generate_assignment", SLUG)
    nbgrader(made.parent, "release_assignment", SLUG)
    nbgrader(student, "fetch_assignment", SLUG)
    (student / SLUG / "exercises.ipynb").write_bytes(work)
    nbgrader(student, "submit", SLUG)
    nbgrader(made.parent, "collect", SLUG)
    run = grade([], assignment=SLUG, workers=1, root=made)
    assert run.problems == []
    (result,) = run.results
    assert (result.student, result.assignment, result.outcome) == (get_username(), SLUG, "ok")
    assert result.score == result.max_score == course.sheet(SLUG).points
    with Gradebook(f"sqlite:///{made / 'gradebook.db'}", "attention-in-depth") as book:
        entry = book.find_submission(SLUG, get_username())
        assert entry.score == result.score
        assert abs(entry.timestamp - datetime.now(UTC).replace(tzinfo=None)) < timedelta(minutes=10)
