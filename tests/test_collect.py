"""Finding submissions: every layout that instructors have, and everything that students and archives can do wrong."""

import io
import json
import os
import pickle
import socket
import stat
import struct
import zipfile
from datetime import datetime
from pathlib import Path

import pytest

from autograder.grading import collect
from autograder.grading.collect import (
    CollectError,
    Roster,
    RosterError,
    find_submissions,
    known_assignments,
    parse_timestamp,
)
from autograder.grading.intake import MAX_BYTES, InvalidNotebook, read_notebook

KNOWN = ("additive", "scaled_dot_product")


def notebook(slug="additive", filler=""):
    """A notebook whose cells say which assignment it is."""
    ids = (f"{slug}-softmax", f"{slug}-softmax-tests") if slug else ()
    cells = [
        {"cell_type": "code", "metadata": {"nbgrader": {"grade_id": each}}, "source": filler, "outputs": []}
        for each in ids
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode()


def put(root, *names, data=None):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(notebook() if data is None else data)
    return root


def pack(path, entries):
    """A zip of (name or ZipInfo, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def collected(*paths, assignment=None, **options):
    return find_submissions([Path(path) for path in paths], assignment, known=KNOWN, **options)


def pairs(found):
    return [(each.student, each.slug) for each in found.submissions]


# ------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s001/additive/exercises.ipynb", ("s001", "additive")),
        ("year/term/s001/additive/exercises.ipynb", ("s001", "additive")),
        ("s001/scaled_dot_product/exercises.ipynb", ("s001", "scaled_dot_product")),
        ("s001/exercises.ipynb", ("s001", "additive")),
        ("s001.ipynb", ("s001", "additive")),
        ("s001_additive.ipynb", ("s001", "additive")),
        ("additive-s001.ipynb", ("s001", "additive")),
        ("additive/s001.ipynb", ("s001", "additive")),
        ("s001/additive/exercises (1).ipynb", ("s001", "additive")),
        ("onestudent_12345_67890_exercises.ipynb", ("onestudent_12345", "additive")),
        ("onestudent_LATE_12345_67890_exercises.ipynb", ("onestudent_12345", "additive")),
        ("Student One_1234567_assignsubmission_file_/exercises.ipynb", ("Student-One_1234567-", "additive")),
        ("Student One_1234567_assignsubmission_file_exercises.ipynb", ("Student-One_1234567-", "additive")),
        ("Student One_1234567_assignsubmission_file_/deep/er/exercises.ipynb", ("Student-One_1234567-", "additive")),
    ],
)
@pytest.mark.parametrize("form", ["folder", "zip", "zip of a folder"])
def test_every_layout_is_understood_as_folder_and_as_zip(tmp_path, name, expected, form):
    if form == "folder":
        place = put(tmp_path / "inbox", name)
    else:
        wrapping = "download/" if form == "zip of a folder" else ""
        place = pack(tmp_path / "inbox.zip", [(wrapping + name, notebook())])
    with collected(place) as found:
        assert found.problems == []
        ((student, slug),) = pairs(found)
        assert slug == expected[1]
        assert student == expected[0] or (expected[0].endswith("-") and student.startswith(expected[0]))
        assert found.submissions[0].read() == notebook()


@pytest.mark.parametrize("start", ["", "s001", "s001/additive", "s001/additive/exercises.ipynb"])
def test_any_place_above_or_at_the_notebook_will_do(tmp_path, start):
    put(tmp_path / "work", "s001/additive/exercises.ipynb")
    found = collected(tmp_path / "work" / start)
    assert pairs(found) == [("s001", "additive")]
    assert found.problems == []


def test_a_class_comes_in_the_same_order_whatever_the_disk_says(tmp_path):
    names = [f"s{number:03}/{slug}/exercises.ipynb" for number in (3, 1, 2) for slug in KNOWN]
    put(tmp_path, *names)
    expected = [(f"s{number:03}", slug) for slug in KNOWN for number in (1, 2, 3)]
    assert pairs(collected(tmp_path)) == expected
    assert pairs(collected(*sorted(tmp_path.iterdir(), reverse=True))) == expected
    assert pairs(collected(pack(tmp_path / "z" / "all.zip", [(name, notebook()) for name in names]))) == expected


def test_beside_submitted_lie_the_courses_own_folders(tmp_path):
    steps = ("source/.", "release/.", "autograded/s009", "feedback/s009", "submitted/s001")
    put(tmp_path / "course", *(f"{step}/additive/exercises.ipynb" for step in steps))
    put(tmp_path, "chapters/additive/exercises.ipynb", "nbgrader_config.py", "_build/additive/exercises.ipynb")
    for start in (tmp_path, tmp_path / "course", tmp_path / "course" / "submitted"):
        found = collected(start)
        assert pairs(found) == [("s001", "additive")]
        assert found.problems == []
    refused = collected(tmp_path / "chapters")
    assert refused.submissions == []
    assert "no student" in str(refused.problems[0])


def test_hidden_files_and_checkpoints_are_no_submissions(tmp_path):
    put(tmp_path, "s001/additive/exercises.ipynb", "s001/additive/.ipynb_checkpoints/exercises-checkpoint.ipynb")
    put(tmp_path, "s001/additive/._exercises.ipynb", ".git/x.ipynb")
    assert len(collected(tmp_path).submissions) == 1
    mac = pack(
        tmp_path / "m" / "mac.zip", [("__MACOSX/s001/._exercises.ipynb", b""), ("s001/exercises.ipynb", notebook())]
    )
    assert pairs(collected(mac)) == [("s001", "additive")]


def test_only_the_assignment_asked_for(tmp_path):
    put(tmp_path, "s001/additive/exercises.ipynb", "s001/scaled_dot_product/exercises.ipynb")
    found = collected(tmp_path, assignment="additive")
    assert pairs(found) == [("s001", "additive")]
    assert (found.skipped, found.problems) == (1, [])
    alone = collected(tmp_path / "s001/scaled_dot_product/exercises.ipynb", assignment="additive")
    assert alone.submissions == []
    assert "leave --assignment out" in str(alone.problems[0])
    with pytest.raises(CollectError, match="known are: additive, scaled_dot_product"):
        collected(tmp_path, assignment="unheard_of")


def test_a_notebook_that_names_no_assignment_takes_the_one_asked_for(tmp_path):
    put(tmp_path, "s001.ipynb", data=notebook(slug=None))
    put(tmp_path, "s002.ipynb", data=b"not even a notebook")
    assert pairs(collected(tmp_path, assignment="additive")) == [("s001", "additive"), ("s002", "additive")]
    found = collected(tmp_path)
    assert found.submissions == []
    assert all("--assignment" in problem.reason for problem in found.problems)


@pytest.mark.parametrize("name", ["submitted/s001/nonsense/exercises.ipynb", "x/s001/nonsense/exercises.ipynb"])
def test_an_unknown_assignment_is_named_with_the_known_ones(tmp_path, name):
    (problem,) = collected(put(tmp_path, name)).problems
    assert problem.kind == "unknown"
    assert "nonsense" in problem.reason
    assert "additive, scaled_dot_product" in problem.reason


def test_cells_of_two_assignments_are_counted(tmp_path):
    one, two = json.loads(notebook("additive")), json.loads(notebook("scaled_dot_product"))
    put(tmp_path, "s001.ipynb", data=json.dumps(one | {"cells": one["cells"] + two["cells"][:1]}).encode())
    put(tmp_path, "s002.ipynb", data=json.dumps(one | {"cells": one["cells"] + two["cells"]}).encode())
    found = collected(tmp_path)
    assert pairs(found) == [("s001", "additive")]
    assert "as many cells of" in str(found.problems[0])


# ------------------------------------------------------------------------------------------- who, when, how often


def test_the_newer_of_two_wins_and_the_other_is_named(tmp_path):
    put(tmp_path, "a/s001/additive/exercises.ipynb", "b/s001/additive/exercises.ipynb")
    (tmp_path / "a/s001/additive/timestamp.txt").write_text("2026-10-02 12:00:00 UTC")
    (tmp_path / "b/s001/additive/timestamp.txt").write_text("2026-10-02 13:00:00 +0200")
    found = collected(tmp_path)
    assert [each.path.parts[-4] for each in found.submissions] == ["a"]
    assert found.submissions[0].timestamp == datetime(2026, 10, 2, 12)
    (problem,) = found.problems
    assert (problem.kind, problem.student) == ("duplicate", "s001")
    assert "is newer" in problem.reason


def test_canvas_counts_attempts(tmp_path):
    names = [
        "onestudent_1_2_exercises.ipynb",
        "onestudent_1_3_exercises-1.ipynb",
        "onestudent_LATE_1_4_exercises-2.ipynb",
    ]
    found = collected(pack(tmp_path / "c.zip", [(name, notebook(filler=name)) for name in names]))
    (submission,) = found.submissions
    assert submission.read() == notebook(filler=names[2])
    assert submission.late
    assert len(found.problems) == 2


def test_the_same_file_given_twice_is_one(tmp_path):
    put(tmp_path, "s001/additive/exercises.ipynb")
    found = collected(tmp_path, tmp_path / "s001", tmp_path / "s001/additive/exercises.ipynb")
    assert (len(found.submissions), found.problems) == (1, [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-10-01 12:00:00.250000 UTC", datetime(2026, 10, 1, 12, 0, 0, 250000)),
        ("2026-10-01 12:00:00 Europe/Berlin", datetime(2026, 10, 1, 10)),
        ("2026-10-01 12:00:00 +0200", datetime(2026, 10, 1, 10)),
        ("2026-10-01T12:00:00Z", datetime(2026, 10, 1, 12)),
        ("2026-10-01 12:00:00", datetime(2026, 10, 1, 12)),
    ],
)
def test_times_are_read_as_nbgrader_reads_them(text, expected):
    from nbgrader.utils import parse_utc

    assert parse_timestamp(text) == expected
    if "+" not in text:  # nbgrader takes an offset for so many seconds
        assert parse_utc(text) == expected


@pytest.mark.parametrize(
    "text", ["yesterday, I think", "2026-10-01 12:00:00 XYZ", "9999-12-31 23:59:59 -2300", "1" * 500]
)
def test_a_time_that_is_none_is_said_and_does_not_stop_the_grade(tmp_path, text):
    put(tmp_path, "s001/additive/exercises.ipynb")
    (tmp_path / "s001/additive/timestamp.txt").write_text(text)
    found = collected(tmp_path)
    assert found.submissions[0].timestamp is None
    assert found.problems[0].kind == "time"
    (tmp_path / "s001/additive/timestamp.txt").unlink()
    assert collected(tmp_path).submissions[0].timestamp is None
    assert collected(tmp_path, file_times=True).submissions[0].timestamp is not None


def test_a_zip_may_carry_times(tmp_path):
    entries = [
        ("s001/additive/exercises.ipynb", notebook()),
        ("s001/additive/timestamp.txt", b"2026-10-01 12:00:00 UTC"),
    ]
    assert collected(pack(tmp_path / "c.zip", entries)).submissions[0].timestamp == datetime(2026, 10, 1, 12)


def test_the_roster_says_who_is_who(tmp_path):
    table = tmp_path / "roster.csv"
    table.write_text("﻿student,canvas_id,moodle_id,name\ns001,12345,,Student One\ns002,,77,Student Two\n")
    roster = Roster.read(table)
    names = [
        "onestudent_12345_1_exercises.ipynb",
        "Student Two_77_assignsubmission_file_/exercises.ipynb",
        "unknown_9_9_exercises.ipynb",
    ]
    with collected(pack(tmp_path / "c.zip", [(name, notebook()) for name in names]), roster=roster) as found:
        assert [(each.student, each.name) for each in found.submissions] == [
            ("s001", "Student One"),
            ("s002", "Student Two"),
            ("unknown_9", "unknown"),
        ]
    other_number = pack(tmp_path / "d.zip", [("student  one_5_assignsubmission_file_/exercises.ipynb", notebook())])
    with collected(other_number, roster=roster) as found:
        assert pairs(found) == [("s001", "additive")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "needs a header"),
        ("name,id\nA,1\n", "needs a header"),
        ("student\ns001\ns001\n", "named twice"),
        ("student\n../x\n", "line 2"),
        ("student\n\xff\n", "UTF-8"),
    ],
)
def test_a_roster_that_is_none_is_said(tmp_path, text, words):
    (tmp_path / "roster.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(RosterError, match=words):
        Roster.read(tmp_path / "roster.csv")
    with pytest.raises(RosterError, match="cannot be read"):
        Roster.read(tmp_path / "missing.csv")


def test_the_assignments_of_a_course_are_its_chapters(tmp_path):
    put(tmp_path, "chapters/additive/exercises.md", "course/source/linear/exercises.ipynb", "chapters/appendix/x.md")
    assert known_assignments(tmp_path) == ["additive", "linear"]


# ---------------------------------------------------------------------------------------- what must never do harm


def test_links_pipes_and_sockets_are_not_followed(tmp_path):
    outside = put(tmp_path / "outside", "secret.ipynb") / "secret.ipynb"
    inbox = put(tmp_path / "inbox", "s001/additive/exercises.ipynb")
    (inbox / "s002").mkdir()
    (inbox / "s002" / "exercises.ipynb").symlink_to(outside)
    (inbox / "s003").symlink_to(tmp_path / "outside")
    (inbox / "loop").symlink_to(inbox)
    os.mkfifo(inbox / "s004.ipynb")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(inbox / "s005.ipynb"))
        found = collected(inbox)
    assert pairs(found) == [("s001", "additive")]
    assert len([problem for problem in found.problems if "symbolic link" in problem.reason]) == 3
    assert {Path(problem.path).name for problem in found.problems} >= {"s004.ipynb", "s005.ipynb"}


def test_a_file_that_becomes_a_link_is_refused_when_it_is_read(tmp_path):
    put(tmp_path, "s001/additive/exercises.ipynb", "other.txt")
    (submission,) = collected(tmp_path / "s001").submissions
    submission.path.unlink()
    submission.path.symlink_to(tmp_path / "other.txt")
    with pytest.raises(CollectError, match="cannot be read"):
        submission.read()


@pytest.mark.parametrize(
    "name",
    ["../s001/additive/exercises.ipynb", "/etc/exercises.ipynb", "a/../../x.ipynb", "C:\\x.ipynb", "..\\x.ipynb"],
)
def test_paths_that_leave_the_archive_are_refused(tmp_path, name):
    found = collected(pack(tmp_path / "c.zip", [(name, notebook())]))
    assert found.submissions == []
    assert found.problems[0].kind == "unsafe"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.zip"]


def test_links_and_encrypted_entries_are_refused(tmp_path):
    link = zipfile.ZipInfo("s001/additive/exercises.ipynb")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert "symbolic link" in str(collected(pack(tmp_path / "l.zip", [(link, "/etc/passwd")])).problems[0])
    path = pack(tmp_path / "e.zip", [("s001.ipynb", notebook())])
    data = bytearray(path.read_bytes())
    for header, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(header) + offset] |= 1
    path.write_bytes(data)
    assert "encrypted" in str(collected(path).problems[0])


def test_bombs_are_refused_before_they_are_opened(tmp_path, monkeypatch):
    bomb = pack(tmp_path / "bomb.zip", [("s001/additive/exercises.ipynb", b" " * 20_000_000)])
    assert "would grow" in str(collected(bomb).problems[0])
    monkeypatch.setattr(collect, "ARCHIVE_ENTRIES", 3)
    many = pack(tmp_path / "many.zip", [(f"s{number}.ipynb", b"{}") for number in range(4)])
    assert "lists 4 files" in str(collected(many).problems[0])
    monkeypatch.setattr(collect, "ARCHIVE_BYTES", 100)
    assert "would unpack to" in str(collected(bomb).problems[0])


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_notebook_that_is_too_large_is_a_submission_that_is_refused_for_it(tmp_path, form):
    data = notebook() + os.urandom(MAX_BYTES + 1000)
    if form == "folder":
        place = put(tmp_path / "inbox", "s001/additive/exercises.ipynb", data=data)
    else:
        place = pack(tmp_path / "inbox.zip", [("s001/additive/exercises.ipynb", data)])
    with collected(place) as found:
        assert (pairs(found), found.problems) == ([("s001", "additive")], [])
        read = found.submissions[0].read()
    assert read == data[: MAX_BYTES + 1]
    with pytest.raises(InvalidNotebook, match="more than 40 MiB"):
        read_notebook(read, "additive")


def test_an_entry_that_lies_about_its_size_cannot_be_read(tmp_path):
    path = pack(tmp_path / "c.zip", [("s001/additive/exercises.ipynb", b" " * 500_000)])
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 10)
    path.write_bytes(data)
    with collected(path) as found, pytest.raises(CollectError, match=r"is damaged .*; download it again"):
        found.submissions[0].read()


def test_what_cannot_be_read_belongs_to_the_assignment_asked_for(tmp_path):
    os.mkfifo(tmp_path / "s001.ipynb")
    assert pairs(collected(tmp_path, assignment="additive")) == [("s001", "additive")]
    (problem,) = collected(tmp_path).problems
    assert "is no regular file" in problem.reason


def test_folders_too_deep_are_said(tmp_path):
    deep = tmp_path.joinpath(*["d"] * 40)
    put(deep, "s001/additive/exercises.ipynb")
    assert "folders deep" in str(collected(tmp_path).problems[0])


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("missing.ipynb", None, "is not there"),
        ("notes.txt", b"x", "neither a notebook"),
        ("broken.zip", b"not a zip", "as a zip"),
        ("empty.zip", b"", "as a zip"),
    ],
)
def test_a_path_that_cannot_be_used_is_a_problem(tmp_path, name, data, words):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    (problem,) = collected(tmp_path / name).problems
    assert words in problem.reason
    assert name in problem.path


def test_an_empty_folder_and_a_device_are_problems(tmp_path):
    assert collected(tmp_path).problems[0].kind == "empty"
    assert collected("/dev/null").problems[0].kind == "unsafe"
    assert "is not there" in str(collected("\0").problems[0])


def test_a_folder_that_may_not_be_listed_is_a_problem(tmp_path, monkeypatch):
    put(tmp_path, "closed/s001/additive/exercises.ipynb", "s002/additive/exercises.ipynb")
    real = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(collect.os, "scandir", scandir)
    found = collected(tmp_path)
    assert pairs(found) == [("s002", "additive")]
    assert "Permission denied" in str(found.problems[0])


OTHER_FILES = {
    "another ending": ("s003/additive/exercises.ipynb.txt", "s003/additive/exercises.ipynb.txt", "is not a notebook"),
    "JSON": ("s003/additive/exercises.json", "s003/additive", "only exercises.json"),
    "HTML": ("s003/additive/exercises.html", "s003/additive", "only exercises.html"),
    "an archive": ("s003/additive/work.tar.gz", "s003/additive", "only work.tar.gz"),
    "checkpoints": ("s003/additive/.ipynb_checkpoints/exercises-checkpoint.ipynb", "s003/additive", "only .ipynb_ch"),
    "a hidden file": ("s003/additive/.exercises.ipynb", "s003/additive", "only .exercises.ipynb"),
    "nothing but the time": ("s003/additive/timestamp.txt", "s003/additive", "only timestamp.txt"),
    "further down": ("s003/additive/my/own/report.pdf", "s003/additive/my/own", "only report.pdf"),
    "no folder of an assignment": ("s003/report.pdf", "s003", "only report.pdf"),
    "a flat file": ("s003.ipynb.json", "s003.ipynb.json", "is not a notebook"),
    "from Canvas": ("one_1_2_report.pdf", "one_1_2_report.pdf", "is not a notebook"),
    "from Moodle": ("A B_12_assignsubmission_file_/x.pdf", "A B_12_assignsubmission_file_/x.pdf", "is not a notebook"),
}


@pytest.mark.parametrize("case", OTHER_FILES)
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_who_gave_no_notebook_is_named(tmp_path, case, form):
    name, place, words = OTHER_FILES[case]
    beside = ("s001/additive/exercises.ipynb", "s002.ipynb", "two_3_4_exercises.ipynb", "roster.csv")
    if form == "folder":
        inbox = put(tmp_path / "inbox", name, *beside)
    else:
        inbox = pack(tmp_path / "inbox.zip", [(each, notebook()) for each in (name, *beside)])
    with collected(inbox) as found:
        assert pairs(found) == [("s001", "additive"), ("s002", "additive"), ("two_3", "additive")]
        (problem,) = found.problems
    assert problem.path.removeprefix(str(inbox)).lstrip("/ ›") == place
    assert words in problem.reason
    assert "ask for the .ipynb" in problem.reason
    known = ("s003", "additive") if name.startswith("s003/additive") else (None, None)
    assert (problem.kind, problem.student, problem.slug) == ("empty", *known)
    with collected(inbox, assignment="scaled_dot_product") as found:
        assert len(found.problems) == (known == (None, None))


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_what_lies_beside_a_notebook_is_not_spoken_of(tmp_path, form):
    names = (
        *("s001/additive/exercises.ipynb", "s001/additive/exercises.ipynb.bak", "s001/additive/figures/one.png"),
        *("s001/cover.pdf", "s002/exercises.ipynb", "s002/more/notes.txt", "s003.ipynb", "s003.ipynb.txt"),
        *("a_1_2_exercises.ipynb", "a_1_3_report.pdf", "s001/additive/.ipynb_checkpoints/x-checkpoint.ipynb"),
    )
    if form == "folder":
        inbox = put(tmp_path / "inbox", *names)
    else:
        inbox = pack(tmp_path / "inbox.zip", [(each, notebook()) for each in names])
    with collected(inbox) as found:
        assert [each.student for each in found.submissions] == ["a_1", "s001", "s002", "s003"]
        assert found.problems == []


def test_a_student_served_in_one_assignment_is_named_in_another(tmp_path):
    put(tmp_path, "s001/exercises.ipynb", "s001/scaled_dot_product/report.pdf")
    (problem,) = collected(tmp_path).problems
    assert (problem.student, problem.slug) == ("s001", "scaled_dot_product")


def test_a_zip_with_nothing_in_it_is_a_problem(tmp_path):
    put(tmp_path, "s001.ipynb")
    pack(tmp_path / "empty.zip", [])
    (problem,) = collected(tmp_path).problems
    assert "nothing in it" in problem.reason


def test_a_zip_among_submissions_is_said_and_one_at_the_top_is_read(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("exercises.ipynb", notebook())
    put(tmp_path, "s001/work.zip", data=inner.getvalue())
    put(tmp_path, "s002.zip", data=inner.getvalue())
    found = collected(tmp_path)
    assert pairs(found) == [("s002", "additive")]
    assert "unpack it" in str(found.problems[0])


def test_submissions_travel_and_read_again_after_closing(tmp_path):
    with collected(pack(tmp_path / "c.zip", [("s001.ipynb", notebook())])) as found:
        travelled = pickle.loads(pickle.dumps(found.submissions[0]))
    assert found.submissions[0].read() == travelled.read() == notebook()
    travelled.archive.close()
    found.close()
