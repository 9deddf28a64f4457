"""The command line: help, exit codes, JSON in every case, and Ctrl-C."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from test_jail import FORBID, need_own_namespace
from typer.testing import CliRunner

from autograder import CourseError, cli, course
from autograder.authoring import build as building
from autograder.doctor import Finding
from autograder.sandbox import probes

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("build", "check", "release", "grade", "report", "book", "doctor", "demo", "deadline")


def attn(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


# Help and usage


def test_help_lists_every_command():
    said = attn("--help")
    assert said.exit_code == 0
    assert all(command in said.output for command in COMMANDS)
    assert attn().exit_code == 2  # no command is a usage error, with the same help
    assert "Usage" in attn().output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    said = attn(command, "--help")
    assert said.exit_code == 0
    assert f"attn {command}" in said.output.replace("root", "attn")
    flat = " ".join(said.output.split())
    assert getattr(cli, command).__doc__.split(".")[0].split(",")[0][:40] in flat


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "no_such"], "no_such"),
        (["check", "no_such"], "no_such"),
        (["release", "no_such"], "no_such"),
        (["grade", "no_such.ipynb"], "no_such.ipynb"),
        (["grade", "--assignment", "no_such"], "no_such"),
        (["grade", "--workers", "0"], "--workers"),
        (["check", "--seeds", "0"], "--seeds"),
        (["check", "--seeds", "many"], "--seeds"),
        (["build", "--no-such-option"], "no-such-option"),
        (["report", "--anonymous", "--similarity"], "names names"),
        (["report", "--canvas-id", "additive"], "SLUG=NUMBER"),
        (["report", "--canvas-id", "no_such=1"], "no_such"),
        (["deadline", "no_such"], "no_such"),
        (["deadline", "additive", "2026-10-01", "--remove"], "contradict"),
        (["no_such"], "no_such"),
    ],
)
def test_a_usage_error_is_2_and_says_what_is_wrong(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    said = attn(*arguments)
    assert said.exit_code == 2
    assert words in said.output
    assert "Traceback" not in said.output
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_chapter_is_told_the_right_ones():
    said = attn("check", "no_such")
    assert all(slug in " ".join(said.output.split()) for slug in course.slugs())


# Exit codes and JSON

PLACES = (
    ("ROOT", ""),
    ("CHAPTERS", "chapters"),
    ("COURSE", "course"),
    ("SOURCE", "course/source"),
    ("BUILD", "_build"),
)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The course's sources in a folder of their own, which also takes all that is written."""
    for slug in course.slugs():
        shutil.copytree(course.CHAPTERS / slug, tmp_path / "chapters" / slug)
    shutil.copytree(ROOT / "solutions", tmp_path / "solutions", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_toc.yml", "nbgrader_config.py", "references.bib"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name, folder in PLACES:
        monkeypatch.setattr(course, name, tmp_path / folder)
    monkeypatch.setenv("ATTN_SECRET_FILE", str(tmp_path / "secret"))
    return tmp_path


def test_build_checks_writes_and_checks_again(copied):
    assert attn("build", "--check").exit_code == 0
    stale = course.slugs()[0]
    notebook = copied / "chapters" / stale / "exercises.ipynb"
    text = notebook.read_text()
    notebook.write_text(text + " ")
    said = attn("build", "--check")
    assert said.exit_code == 1
    assert f"chapters/{stale}/exercises.ipynb  out of date" in said.output
    assert notebook.read_text() == text + " "
    assert attn("build", stale).exit_code == 0
    assert notebook.read_text() == text
    assert attn("build", "--check").exit_code == 0


def test_a_known_fault_is_one_message_and_1(monkeypatch):
    def make(slug, *, check):
        raise CourseError("chapters/x: [bold] is wrong")

    monkeypatch.setattr(building, "build", make)
    said = attn("build")
    assert said.exit_code == 1
    assert "attn: chapters/x:" in said.output
    assert "Traceback" not in said.output


def test_the_doctors_findings_are_json(tmp_path, monkeypatch):
    for state, code in (("ok", 0), ("missing", 0), ("broken", 1)):
        monkeypatch.setattr("autograder.doctor.examine", lambda state=state: [Finding("thing", state, "why")])
        file = tmp_path / "deep" / f"{state}.json"
        assert attn("doctor", "--json", file).exit_code == code
        assert json.loads(file.read_text()) == [{"name": "thing", "state": state, "detail": "why"}]


def really(command, *arguments, wrapper=()):
    """The command in a process of its own, wrapped in another: its exit code, its JSON, and its words."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "out.json"
        words = [*wrapper, sys.executable, "-m", "autograder.cli", command, *map(str, arguments), "--json", str(file)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240)
        return done.returncode, json.loads(file.read_text()), done.stdout + done.stderr


def test_the_doctor_proves_every_wall_of_the_jail_that_grades(monkeypatch):
    monkeypatch.delenv("ATTN_JAIL", raising=False)
    code, findings, said = really("doctor")
    walls = {found["name"]: found for found in findings if found["name"].startswith("warm jail: ")}
    expected = {*probes.PROBES, "a call", "wall time", "a large answer", "memory readings"}
    assert set(walls) == {f"warm jail: {name}" for name in expected}, said
    assert {found["state"] for found in walls.values()} == {"ok"}, walls
    names = {found["name"] for found in findings}
    assert {"Python", "torch", "cold jail", "GPU", "browser", "gradebook", "course secret"} <= names
    assert code == int(any(found["state"] == "broken" for found in findings)) == 0


def test_where_the_kernel_refuses_the_doctor_says_what_and_nothing_is_graded(copied, monkeypatch, tmp_path):
    need_own_namespace()
    monkeypatch.delenv("ATTN_JAIL", raising=False)
    monkeypatch.setenv("ATTN_ROOT", str(copied))
    code, findings, said = really("doctor", wrapper=FORBID)
    (jail,) = (found for found in findings if found["name"].startswith("warm jail"))
    assert (code, jail["state"]) == (1, "broken"), said
    assert jail["detail"].startswith("user namespace: ")
    assert "/proc/sys/user/max_user_namespaces = 0" in jail["detail"]

    work = tmp_path / "class" / "s001" / "scaled_dot_product" / "exercises.ipynb"
    work.parent.mkdir(parents=True)
    shutil.copy(next((ROOT / "examples" / "submitted").glob("*/scaled_dot_product/exercises.ipynb")), work)
    code, results, said = really("grade", tmp_path / "class", "--db", f"sqlite:///{tmp_path}/g.db", wrapper=FORBID)
    assert code == 1, said
    (result,) = results
    assert (result["status"], result["outcome"], result["score"]) == ("ungraded", "infrastructure", 0)
    assert {exercise["outcome"] for exercise in result["exercises"]} == {"infrastructure"}
    with contextlib.closing(sqlite3.connect(tmp_path / "g.db")) as gradebook:
        assert gradebook.execute("select count(*) from grade where auto_score is not null").fetchone() == (0,)


def test_json_is_written_when_a_check_cannot_finish(copied, tmp_path, monkeypatch):
    def judge(*arguments, **options):
        raise CourseError("a source is wrong")

    monkeypatch.setattr("autograder.authoring.check.check", judge)
    said = attn("check", "--json", tmp_path / "check.json")
    assert said.exit_code == 1
    assert "a source is wrong" in said.output
    report = json.loads((tmp_path / "check.json").read_text())
    assert report["problems"] == ["the check did not finish"]
    assert not (tmp_path / "_build").exists()


def test_json_is_written_when_there_is_nothing_to_grade(copied, tmp_path):
    (tmp_path / "no.zip").write_bytes(b"this is no archive")
    said = attn("grade", tmp_path / "no.zip", "--db", f"sqlite:///{tmp_path}/g.db", "--json", tmp_path / "grade.json")
    assert said.exit_code in (0, 1)
    assert json.loads((tmp_path / "grade.json").read_text()) == []
    assert "no.zip" in " ".join(said.output.split())


def test_a_deadline_is_set_shown_and_taken_back(copied, tmp_path):
    def said(*arguments, code=0):
        done = attn("deadline", "additive", *arguments, "--db", f"sqlite:///{tmp_path}/g.db")
        assert done.exit_code == code, done.output
        return " ".join(done.output.split())

    assert "no deadline" in said()
    assert "attn grade" in said("2026-10-01 23:59 Europe/Berlin", "--extend", "s001=48h")
    assert "due 2026-10-01 21:59 UTC s001: 2 days" in said()
    assert "is no moment" in said("some day", code=1)
    assert "is no extension" in said("--extend", "s001", code=1)
    assert "s001" not in said("--extend", "s001=0")
    assert "no deadline" in said("--remove")


def test_progress_says_how_many_how_fast_and_how_long(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(cli, "errors", Console(file=screen, force_terminal=True, width=120))
    with cli._progress("submissions", None) as step:
        for number in range(6):
            time.sleep(0.15)
            step(f"s{number:03}", total=10)
    shown = screen.getvalue()
    assert "6/10" in shown
    assert re.search(r"\d\.\d/s", shown)
    assert re.search(r"0:00:0\d", shown)


def test_a_log_gets_a_line_now_and_then(monkeypatch):
    said = io.StringIO()
    monkeypatch.setattr(cli, "errors", Console(file=said, width=100))
    monkeypatch.setattr(cli, "SECONDS_BETWEEN_LINES", 0.0)
    with cli._progress("submissions", None) as step:
        step("s001", total=2)
    assert re.fullmatch(r"1 of 2 submissions after 0 s: s001\n", said.getvalue())
    monkeypatch.setattr(cli, "SECONDS_BETWEEN_LINES", 60.0)
    with cli._progress("submissions", 2) as step:
        step("s002")
    assert "s002" not in said.getvalue()


# Ctrl-C


def descendants(process):
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def at_work(process):
    """Whether one of its processes has a jail's keeper, so that it is in the middle of judging."""
    for child in descendants(process):
        try:
            if "autograder.sandbox.server" in child.cmdline() and child.children():
                return True
        except psutil.Error:
            continue
    return False


def gone(processes):
    """Whether all have ended; one whose parent has died waits only for somebody to read its status."""
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                return False
        except psutil.Error:
            continue
    return True


@pytest.fixture
def class_of_many(copied, tmp_path):
    """A class large enough that a run is still going when it is interrupted."""
    notebook = next((ROOT / "examples" / "submitted").glob("*/scaled_dot_product/exercises.ipynb")).read_bytes()
    for number in range(400):
        place = tmp_path / "class" / f"s{number:03}" / "scaled_dot_product" / "exercises.ipynb"
        place.parent.mkdir(parents=True)
        place.write_bytes(notebook)
    return tmp_path / "class"


@pytest.fixture(params=["check", "grade"])
def interrupted(request, copied, tmp_path):
    """A real run, stopped by Ctrl-C in the middle of its work: exit code, words, JSON, and who is left."""
    command = ["check", "--seeds", "50", "--workers", "2"]
    environment = os.environ | {"ATTN_ROOT": str(copied)}
    if request.param == "grade":
        command = ["grade", str(request.getfixturevalue("class_of_many")), "--workers", "2"]
        command += ["--db", f"sqlite:///{tmp_path}/gradebook.db"]
    command += ["--json", str(tmp_path / "out.json")]
    # Where the tests run in the background, Ctrl-C is ignored, and what they start would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "autograder.cli", *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    with process:
        deadline = time.monotonic() + 240
        while not at_work(process):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        family = descendants(process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said = process.communicate(timeout=240)[0]
    until = time.monotonic() + 20
    while not gone(family) and time.monotonic() < until:
        time.sleep(0.1)
    return process.returncode, said, json.loads((tmp_path / "out.json").read_text()), family


@pytest.mark.slow
def test_ctrl_c_ends_everything_with_130_and_words(interrupted):
    code, said, result, family = interrupted
    assert code == 130, said
    assert result == [] or "problems" in result or result[0]["schema"] == 1
    assert len(family) >= 3  # workers and keepers there were
    assert gone(family)
    assert "Traceback" not in said
    assert "Nothing that was done is lost" in " ".join(said.split())
