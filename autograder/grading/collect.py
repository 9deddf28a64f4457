"""Finds submissions: in folders, in single notebooks and in the zips that Canvas and Moodle hand out.

What it accepts, at any depth, inside the course or outside:

- ``<student>/<slug>/exercises.ipynb``, the layout of nbgrader;
- ``<student>/exercises.ipynb`` and flat folders of ``<student>.ipynb``;
- Canvas: ``lastfirst_12345_67890_exercises.ipynb``, perhaps with ``LATE``;
- Moodle: ``Full Name_1234567_assignsubmission_file_/exercises.ipynb``, or the same flat;
- all of these in a zip, as downloaded or unpacked.

Nothing found here is trusted. Names are cleaned, links are not followed, sizes are capped before anything is
read, and whatever cannot be used becomes a ``Problem`` that says which file, why, and what to do about it. So does
a folder in which a student left files, but no notebook.

Errors::

    CollectError            a file could not be read after all, or an option makes no sense
     └─ RosterError         the roster CSV cannot be used
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import re
import stat
import unicodedata
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from autograder import CourseError
from autograder.grading.intake import MAX_BYTES, bounded

READ_BYTES = MAX_BYTES + 1
"""So much of a notebook is read: the byte too many makes intake refuse it, however large it is."""
ARCHIVE_BYTES = 8 * 2**30
ARCHIVE_ENTRIES = 50_000
RATIO = 200
"""Notebooks shrink 3 to 20 times in a zip; only a bomb shrinks more than this (asked above 1 MiB)."""
FOLDER_DEPTH = 24
TIMESTAMP_BYTES = 200

Kind: TypeAlias = Literal["unreadable", "unsafe", "unknown", "duplicate", "time", "empty"]

_Parts: TypeAlias = tuple[str, ...]
"""The names on the way from a place to a file or folder in it."""

_CANVAS = re.compile(r"(?P<name>[^_]+)(?P<late>_LATE)?_(?P<id>\d{1,18})_\d{1,18}_(?P<file>.+)", re.IGNORECASE)
_MOODLE = re.compile(r"(?P<name>.+)_(?P<id>\d{1,18})_assignsubmission_(?:file|onlinetext)_?(?P<file>.*)")
_ATTEMPT = re.compile(r"-(\d{1,3})$")
_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_GENERIC_STEM = re.compile(
    r"(?:exercises?|notebook|submission|assignment|untitled)[\s_.-]*(?:copy)?\(?\d{0,3}\)?", re.IGNORECASE
)

_NBGRADER_STEPS = frozenset({"source", "source_with_tests", "release", "autograded", "feedback", "solution"})
_NEVER_A_STUDENT = _NBGRADER_STEPS | {"submitted", "chapters", "course"}
_COURSE_SOURCES = frozenset(
    {
        "autograder",
        "benchmarks",
        "chapters",
        "examples",
        "ext",
        "report",
        "results",
        "solutions",
        "tests",
        "web",
        "_build",
    }
)
_READ_ERRORS = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)


class CollectError(CourseError):
    """Something about the submissions given cannot be used; the message says what and what to do."""


class RosterError(CollectError):
    """The roster is not a CSV with the column ``student`` and one row a student."""


# --------------------------------------------------------------------------------------------- what comes out


@dataclass(frozen=True)
class Problem:
    """Something that was not graded as given: which file, and why, with the remedy in the same sentence."""

    path: str
    reason: str
    kind: Kind = "unreadable"
    student: str | None = None
    slug: str | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Submission:
    """One notebook of one student; ``read`` brings its bytes, so that a class never sits in memory at once.

    ``timestamp`` is the time of submission as far as anyone declared it (UTC, without a zone, as nbgrader
    stores it); ``modified`` is the file's own time and serves only to tell which of two is newer.
    """

    student: str
    slug: str
    path: Path
    timestamp: datetime | None
    source: str
    member: str | None = None
    modified: datetime = datetime.min
    late: bool = False
    name: str | None = None
    upload: str = ""
    """What the LMS put before the file's name; feedback that goes back to it is named the same."""
    archive: Archive | None = field(default=None, compare=False, repr=False)

    @property
    def place(self) -> str:
        """Where it lies, as shown to people."""
        return _shown(self.path) if self.member is None else f"{_shown(self.path)} › {_printable(self.member)}"

    def read(self) -> bytes:
        """The notebook's bytes; of one that is too large, as many as it takes to be refused for it.

        Raises:
            CollectError: it cannot be read.
        """
        if self.archive is not None and self.member is not None:
            return self.archive.read(self.member)
        return _read_file(self.path, READ_BYTES)


@dataclass
class Collected:
    """The submissions in the order of (slug, student), and everything that was left out."""

    submissions: list[Submission] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    skipped: int = 0
    """Notebooks of other assignments, passed over because one assignment was asked for."""
    archives: list[Archive] = field(default_factory=list, repr=False)

    def close(self) -> None:
        """Closes the zips; a later ``Submission.read`` opens them again."""
        for archive in self.archives:
            archive.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


# ------------------------------------------------------------------------------------------------- the roster


@dataclass(frozen=True)
class RosterEntry:
    """One student of the roster; what is not known is an empty string."""

    student: str
    name: str = ""
    canvas_id: str = ""
    moodle_id: str = ""
    email: str = ""
    section: str = ""
    sis_id: str = ""


class Roster:
    """Who is who: maps the numbers and names of an LMS to the students of this course."""

    def __init__(self, entries: Sequence[RosterEntry] = ()) -> None:
        self.entries = tuple(entries)
        self.by_student = {entry.student: entry for entry in self.entries}
        self._canvas = {entry.canvas_id: entry for entry in self.entries if entry.canvas_id}
        self._moodle = {entry.moodle_id: entry for entry in self.entries if entry.moodle_id}
        self._names = _unique_by_name(self.entries)

    @classmethod
    def read(cls, path: Path) -> Roster:
        """Reads a CSV with the column ``student`` and any of ``name, canvas_id, sis_id, moodle_id, email, section``.

        Raises:
            RosterError: the file is missing, is no CSV, or names a student twice.
        """
        try:
            with path.open(encoding="utf-8-sig", newline="") as lines:
                rows = list(csv.DictReader(lines))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise RosterError(f"{path}: the roster cannot be read ({error}); save it as CSV in UTF-8") from error
        if not rows or "student" not in rows[0]:
            raise RosterError(f"{path}: the roster needs a header with the column 'student' and at least one row")
        entries = [_roster_entry(row, path, line) for line, row in enumerate(rows, start=2)]
        twice = sorted(student for student, rows in Counter(entry.student for entry in entries).items() if rows > 1)
        if twice:
            raise RosterError(f"{path}: named twice in the roster: {', '.join(twice)}; keep one row a student")
        return cls(entries)

    def canvas(self, number: str) -> RosterEntry | None:
        """The student with this Canvas id."""
        return self._canvas.get(number)

    def moodle(self, number: str, name: str) -> RosterEntry | None:
        """The student with this Moodle number, or else the only one with this name.

        Moodle numbers a participant anew for each assignment, so the name is the steadier key.
        """
        return self._moodle.get(number) or self._names.get(_folded(name))


def _roster_entry(row: Mapping[str, Any], path: Path, line: int) -> RosterEntry:
    value = {key: str(row.get(key) or "").strip() for key in RosterEntry.__dataclass_fields__}
    if not _PLAIN_ID.fullmatch(value["student"]):
        wanted = "use letters, digits, '.', '_' and '-'"
        raise RosterError(f"{path}, line {line}: {value['student']!r} is no student id; {wanted}")
    return RosterEntry(**value)


def _unique_by_name(entries: Sequence[RosterEntry]) -> dict[str, RosterEntry]:
    found: dict[str, RosterEntry] = {}
    namesakes: set[str] = set()
    for entry in entries:
        name = _folded(entry.name)
        if name in found:
            namesakes.add(name)
        elif name:
            found[name] = entry
    return {name: entry for name, entry in found.items() if name not in namesakes}


# ------------------------------------------------------------------------------------------------------- zips


class Archive:
    """A zip, opened when first read; travels to another process as its path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: zipfile.ZipFile | None = None

    def entries(self) -> list[zipfile.ZipInfo]:
        """What the zip lists, files only.

        Raises:
            CollectError: it is no zip, or lists more than any class would hand in.
        """
        try:
            infos = [info for info in self._file().infolist() if not info.filename.endswith("/")]
        except _READ_ERRORS as error:
            raise CollectError(f"cannot be opened as a zip ({_because(error)}); download it again") from error
        if len(infos) > ARCHIVE_ENTRIES:
            raise CollectError(f"lists {len(infos):,} files, more than {ARCHIVE_ENTRIES:,}; split it, or unpack it")
        total = sum(info.file_size for info in infos if _is_notebook(info.filename))
        if total > ARCHIVE_BYTES:
            raise CollectError(f"would unpack to {total:,} bytes of notebooks, more than {ARCHIVE_BYTES:,}; split it")
        return infos

    def read(self, member: str) -> bytes:
        """The bytes of one entry, at most ``READ_BYTES``.

        Raises:
            CollectError: the entry is damaged.
        """
        try:
            with self._file().open(member) as entry:
                return entry.read(READ_BYTES)
        except (*_READ_ERRORS, KeyError) as error:
            place = f"{_shown(self.path)} › {_printable(member)}"
            raise CollectError(f"{place}: is damaged ({_because(error)}); download it again") from error

    def close(self) -> None:
        """Closes the file; reading opens it again."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _file(self) -> zipfile.ZipFile:
        if self._open is None:
            self._open = zipfile.ZipFile(self.path)
        return self._open

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.__init__(path)  # type: ignore[misc]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _entry_trouble(info: zipfile.ZipInfo) -> str | None:
    """Why an entry is not read, if so; nothing has been unpacked at this point."""
    name = info.filename
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", name) or "\0" in info.orig_filename:
        return "has a path that leaves the archive; nothing legitimate does: ask where this zip comes from"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a symbolic link, not a notebook; ask the student for the file itself"
    if info.flag_bits & 0x1:
        return "is encrypted; unpack the zip with its password and give the folder"
    if info.file_size > 2**20 and info.file_size > RATIO * max(info.compress_size, 1):
        times = info.file_size // max(info.compress_size, 1)
        return f"would grow {times} times when unpacked, which no notebook does; ask where this zip comes from"
    return None


# ---------------------------------------------------------------------------------------------- finding files


@dataclass(frozen=True)
class _Found:
    """A notebook somewhere, before anyone knows whose it is."""

    parts: tuple[str, ...]
    depth: int | None
    """Folders between the place given and the file; None where the file itself was given."""
    path: Path
    modified: datetime
    archive: Archive | None = None
    member: str | None = None

    @property
    def place(self) -> str:
        return _shown(self.path) if self.member is None else f"{_shown(self.path)} › {_printable(self.member)}"

    def read(self) -> bytes:
        if self.archive is not None and self.member is not None:
            return self.archive.read(self.member)
        return _read_file(self.path, READ_BYTES)


def find_submissions(
    paths: Sequence[Path],
    assignment: str | None = None,
    *,
    known: Collection[str],
    roster: Roster | None = None,
    file_times: bool = False,
) -> Collected:
    """Every submission below the paths, the newest where a student handed in twice, and what was left out.

    Args:
        paths: notebooks, folders and zips, in any mixture.
        assignment: only this one; also the answer where neither folder nor notebook names an assignment.
        known: the assignments there are (see ``known_assignments``).
        roster: maps LMS numbers to students; without it, an id is made of the LMS's name and number.
        file_times: take a file's own time as the time of submission where no ``timestamp.txt`` declares one.
            Off by default: a download or a copy renews those times, and then everyone would be late.

    Raises:
        CollectError: ``assignment`` is not one of ``known``.
    """
    if assignment is not None and assignment not in known:
        raise CollectError(f"there is no assignment {assignment!r}; known are: {', '.join(sorted(known)) or 'none'}")
    out = Collected()
    chosen: _Chosen = {}
    seen: set[tuple[Path, str | None]] = set()
    rules = _Rules(assignment, frozenset(known), roster or Roster(), file_times)
    for path in paths:
        for found in _find(Path(path), rules, out):
            key = (found.path, found.member)
            if key in seen:  # two of the paths given overlap
                continue
            seen.add(key)
            _place(found, rules, out, chosen)
    out.submissions = [submission for _, submission in chosen.values()]
    out.submissions.sort(key=lambda submission: (submission.slug, submission.student))
    out.problems.sort(key=lambda problem: (problem.path, problem.reason))
    return out


def known_assignments(root: Path) -> list[str]:
    """The slugs of a course: its chapters with exercises, and what lies in ``course/source``."""
    chapters = {path.parent.name for path in root.glob("chapters/*/exercises.md")}
    sources = {path.parent.name for path in root.glob("course/source/*/exercises.ipynb")}
    return sorted(chapters | sources)


def _find(path: Path, rules: _Rules, out: Collected) -> Iterator[_Found]:
    """The notebooks in one of the places given, in the order of their names."""
    shown = _shown(path)
    try:
        place = path.expanduser().resolve(strict=True)
        mode = place.stat().st_mode
    except (OSError, RuntimeError, ValueError) as error:
        out.problems.append(Problem(shown, f"is not there or cannot be opened ({_because(error)}); check the path"))
        return
    before = len(out.problems)
    count = 0
    if stat.S_ISDIR(mode):
        found = _search(place, rules, out)
    elif not stat.S_ISREG(mode):
        reason = "is neither a file nor a folder; give a notebook, a folder or a zip"
        out.problems.append(Problem(shown, reason, "unsafe"))
        return
    elif _is_zip(place):
        found = _unzip(place, rules, out)
    elif _is_notebook(place.name):
        found = iter([_Found(place.parts, None, place, _file_time(place))])
    else:
        out.problems.append(Problem(shown, "is neither a notebook (.ipynb), a folder nor a zip; give one of these"))
        return
    for one in found:
        count += 1
        yield one
    if count == 0 and len(out.problems) == before:
        reason = "holds no notebook; expected <student>/<assignment>/exercises.ipynb, notebooks, or an LMS zip"
        out.problems.append(Problem(shown, reason, "empty"))


def _search(root: Path, rules: _Rules, out: Collected) -> Iterator[_Found]:
    """The notebooks in and below a folder, and a word on whoever left other files alone."""
    given = _Given(rules)
    yield from _walk(root, (), given, out)
    out.problems += given.without_a_notebook(f"{_shown(root)}/")


def _walk(folder: Path, inside: _Parts, given: _Given, out: Collected) -> Iterator[_Found]:
    """Depth first, by name; links are named and left alone, so there is no way round in circles."""
    if len(inside) > FOLDER_DEPTH:
        reason = f"lies more than {FOLDER_DEPTH} folders deep; give a folder nearer to it"
        given.named(inside)
        out.problems.append(Problem(_shown(folder), reason))
        return
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        given.named(inside)
        out.problems.append(Problem(_shown(folder), f"cannot be listed ({_because(error)}); check its permissions"))
        return
    left_out = _not_submissions({entry.name for entry in entries})
    for entry in entries:
        place, parts = Path(entry.path), (*inside, entry.name)
        if entry.name in left_out:
            continue
        if entry.name.startswith("."):
            given.other(parts)
        elif entry.is_symlink():
            if _is_notebook(entry.name) or _leads_to_folder(place):
                reason = "is a symbolic link and was not followed; give the place it points to"
                given.named(parts)
                out.problems.append(Problem(_shown(place), reason, "unsafe"))
            else:
                given.other(parts)
        elif entry.is_dir():
            yield from _walk(place, parts, given, out)
        elif _is_notebook(entry.name):
            given.notebook(parts)
            yield _Found(place.parts, len(inside), place, _file_time(place))
        elif _is_zip(place):
            given.named(parts)
            if not inside:
                yield from _unzip(place, given.rules, out)
            else:
                reason = "is a zip among submissions; unpack it there, or give it by itself"
                out.problems.append(Problem(_shown(place), reason))
        else:
            given.other(parts)


def _not_submissions(names: set[str]) -> frozenset[str]:
    """Folders that are the course's own: beside ``submitted`` lie nbgrader's other steps."""
    own: frozenset[str] = frozenset()
    if "submitted" in names:
        own |= _NBGRADER_STEPS | {"results", "report"}
    if "nbgrader_config.py" in names:
        own |= _COURSE_SOURCES
    return own


def _unzip(path: Path, rules: _Rules, out: Collected) -> Iterator[_Found]:
    """The notebooks of a zip; nothing is written to disk."""
    archive = Archive(path)
    out.archives.append(archive)
    try:
        infos = archive.entries()
    except CollectError as error:
        out.problems.append(Problem(_shown(path), str(error)))
        return
    notebooks = []
    given = _Given(rules)
    for info in infos:
        parts = _components(info.filename)
        if not parts or parts[0] == "__MACOSX":
            continue
        hidden = next((depth for depth, part in enumerate(parts, 1) if part.startswith(".")), None)
        if (hidden is not None and ".." not in parts) or not _is_notebook(info.filename):
            given.other(parts[:hidden])
            continue
        trouble = _entry_trouble(info)
        if trouble:
            given.named(parts)
            out.problems.append(Problem(f"{_shown(path)} › {_printable(info.filename)}", trouble, "unsafe"))
        else:
            given.notebook(parts)
            notebooks.append((parts, info))
    out.problems += given.without_a_notebook(f"{_shown(path)} › ")
    if not given.served and not given.others:
        out.problems.append(Problem(_shown(path), "is a zip with nothing in it; download it again", "empty"))
    top = _common_folders([parts for parts, _ in notebooks], rules.known)
    for parts, info in sorted(notebooks, key=lambda pair: pair[1].filename):
        depth = len(parts) - 1 - top
        yield _Found((path.stem, *parts), depth, path, _zip_time(info), archive, info.filename)


@dataclass
class _Given:
    """What lies in one place beside its notebooks, so that in the end whoever gave no notebook can be named.

    A file that is no notebook belongs to an owner: the student whose number an LMS put into its name, the notebook
    that it is under another ending (``exercises.ipynb.txt``), or else the folder that it lies in.
    """

    rules: _Rules
    others: dict[_Parts, list[_Parts]] = field(default_factory=dict)
    served: set[_Parts] = field(default_factory=set)
    """Owners that gave a notebook, or that a problem names; folders also where it lies further down."""
    whole: set[_Parts] = field(default_factory=set)
    """Folders that are one submission: what else lies in them, a figure say, is the student's own affair."""

    def notebook(self, parts: _Parts) -> None:
        """Note a notebook."""
        self.named(parts)
        folder, stem = parts[:-1], _stem(parts)
        self.served.add((*folder, stem))
        if folder and _is_generic(stem, self.rules.known):
            self.whole.add(folder)

    def named(self, parts: _Parts) -> None:
        """Note something of which a problem is told anyway."""
        self.served.update((_owner(parts), *(parts[:depth] for depth in range(len(parts)))))

    def other(self, parts: _Parts) -> None:
        """Note a file that is no notebook, or a folder that nobody looks into."""
        self.others.setdefault(_owner(parts), []).append(parts)

    def without_a_notebook(self, before: str) -> Iterator[Problem]:
        """A problem for each owner without a notebook; ``before`` is how people know the place."""
        for owner, files in self.others.items():
            folder = files[0][:-1]
            at = next((depth for depth, part in reversed([*enumerate(folder)]) if part in self.rules.known), None)
            slug = None if at is None else folder[at]
            if owner in self.served or self._beside_a_notebook(folder):
                continue
            if slug is not None and self.rules.assignment not in (None, slug):
                continue
            remedy = "ask for the .ipynb, and where only the name is wrong, rename it to exercises.ipynb"
            if owner == folder:
                names = ", ".join(parts[-1] for parts in files[:3]) + (", …" if len(files) > 3 else "")
                place, reason = folder, f"holds no notebook, only {_printable(names)}; {remedy}"
            else:
                place, reason = files[0], f"is not a notebook, and this student handed in no other file; {remedy}"
            student = student_id(folder[at - 1]) if at else None
            yield Problem(_printable((before + "/".join(place)).rstrip("/ ›")), reason, "empty", student, slug)

    def _beside_a_notebook(self, folder: _Parts) -> bool:
        """Whether a folder lies in one that is a submission, and does not itself lead to another assignment."""
        return any(
            folder[:depth] in self.whole and not any(part in self.rules.known for part in folder[depth:])
            for depth in range(1, len(folder) + 1)
        )


def _owner(parts: _Parts) -> _Parts:
    """Whose a file is: written as if each student and each notebook had a folder."""
    for depth, part in enumerate(parts):
        if match := _MOODLE.fullmatch(part):
            return *parts[:depth], f"moodle {match['id']}"
    *folder, name = parts or ("",)
    if match := _CANVAS.fullmatch(name):
        return *folder, f"canvas {match['id']}"
    stem, misnamed, _ = name.partition(".ipynb.")
    return (*folder, stem) if misnamed and stem else tuple(folder)


def _stem(parts: _Parts) -> str:
    """A notebook's name without its ending."""
    return parts[-1][: -len(".ipynb")]


def _is_generic(stem: str, known: Collection[str]) -> bool:
    """Whether a notebook's name says nothing of its student."""
    return _GENERIC_STEM.fullmatch(stem) is not None or stem in known


def _components(name: str) -> tuple[str, ...]:
    """The components of an entry's name, whichever slash the packer used."""
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _common_folders(all_parts: list[tuple[str, ...]], known: Collection[str]) -> int:
    """How many leading folders are mere wrapping: a zip of a folder starts with that folder's name.

    None are, once an assignment's folder is seen: then the layout is nbgrader's, and every folder has its meaning.
    """
    folders = [parts[:-1] for parts in all_parts]
    if not folders or any(names and names[-1] in known for names in folders):
        return 0
    if len(folders) == 1:
        return max(len(folders[0]) - 1, 0)
    shared = 0
    while all(len(names) > shared for names in folders) and len({names[shared] for names in folders}) == 1:
        shared += 1
    return shared


# ------------------------------------------------------------------------------------- whose, and which chapter


@dataclass(frozen=True)
class _Rules:
    assignment: str | None
    known: frozenset[str]
    roster: Roster
    file_times: bool


@dataclass(frozen=True)
class _Identity:
    """Whose a notebook is, as its place says."""

    student: str
    source: str
    slug: str | None = None
    name: str | None = None
    late: bool = False
    attempt: int = 0
    upload: str = ""


_Rank: TypeAlias = tuple[datetime, int, str]
"""Newer is greater: by time, then by the LMS's count of attempts, then by place, so that ties never depend on luck."""
_Chosen: TypeAlias = dict[tuple[str, str], tuple[_Rank, Submission]]


class _Unclear(Exception):
    """The place does not say whose the notebook is; the message goes into a Problem."""


def _place(found: _Found, rules: _Rules, out: Collected, chosen: _Chosen) -> None:
    """Adds one notebook to the chosen ones, or says why not."""
    try:
        identity = _identify(found, rules)
        slug = identity.slug or _slug_within(found, rules)
    except _Unclear as reason:
        out.problems.append(Problem(found.place, str(reason), "unknown"))
        return
    except CollectError as error:
        out.problems.append(Problem(found.place, str(error).removeprefix(f"{found.place}: ")))
        return
    if rules.assignment is not None and slug != rules.assignment:
        if found.depth is None:
            other = (
                f"belongs to {slug!r}, not to the assignment asked for; leave --assignment out or set it to {slug!r}"
            )
            out.problems.append(Problem(found.place, other, "unknown", identity.student, slug))
        else:
            out.skipped += 1
        return
    timestamp = _timestamp(found, rules, out)
    submission = Submission(
        student=identity.student,
        slug=slug,
        path=found.path,
        timestamp=timestamp,
        source=identity.source,
        member=found.member,
        modified=found.modified,
        late=identity.late,
        name=identity.name,
        upload=identity.upload,
        archive=found.archive,
    )
    rank = (timestamp or found.modified, identity.attempt, found.place)
    _keep_newest(submission, rank, out, chosen)


def _keep_newest(submission: Submission, rank: _Rank, out: Collected, chosen: _Chosen) -> None:
    key = (submission.student, submission.slug)
    if key not in chosen:
        chosen[key] = (rank, submission)
        return
    other_rank, other = chosen[key]
    newer, older = (submission, other) if rank > other_rank else (other, submission)
    chosen[key] = max((rank, submission), (other_rank, other), key=lambda pair: pair[0])
    reason = f"is not graded: {submission.student} handed in {submission.slug} again, and {newer.place} is newer"
    out.problems.append(Problem(older.place, reason, "duplicate", submission.student, submission.slug))


def _identify(found: _Found, rules: _Rules) -> _Identity:
    """Whose notebook this is, from the names on the way to it."""
    stem = _stem(found.parts)
    folders = found.parts[:-1]
    parent = folders[-1] if folders else ""
    named = parent if parent in rules.known else None
    for part in reversed(found.parts):
        match = _MOODLE.fullmatch(part)
        if match:
            return _from_lms("moodle", match, rules, _nearest_slug(folders, rules))
    match = _CANVAS.fullmatch(stem)
    if match:
        return _from_lms("canvas", match, rules, _nearest_slug(folders, rules))
    if len(folders) >= 3 and folders[-3] == "submitted":
        return _from_layout(folders[-2], parent, rules)
    generic = _is_generic(stem, rules.known)
    if named and generic:
        if len(folders) < 2:
            raise _Unclear(f"lies in {parent!r} with no student's folder above; expected <student>/{parent}/…")
        return _from_layout(folders[-2], parent, rules)
    if generic:
        if found.depth is not None and found.depth >= 2:
            raise _Unclear(
                f"lies in {_printable(parent)!r}, which is no assignment (known: {', '.join(sorted(rules.known))}); "
                "rename the folder, or give the folder right above the students' folders"
            )
        return _student(parent, "folder", slug=stem if stem in rules.known else None)
    student, hinted = _split_stem(stem, rules.known)
    return _student(student, "flat", slug=named or hinted)


def _from_layout(student: str, slug: str, rules: _Rules) -> _Identity:
    if slug not in rules.known:
        known = ", ".join(sorted(rules.known))
        raise _Unclear(f"lies in {_printable(slug)!r}, which is no assignment (known: {known}); rename the folder")
    return _student(student, "nbgrader", slug=slug)


def _from_lms(lms: str, match: re.Match[str], rules: _Rules, slug: str | None) -> _Identity:
    number, name = match["id"], match["name"]
    entry = rules.roster.canvas(number) if lms == "canvas" else rules.roster.moodle(number, name)
    attempt = _ATTEMPT.search(match["file"])
    groups = match.groupdict()
    return _Identity(
        student=entry.student if entry else student_id(f"{name}_{number}"),
        source=lms,
        slug=slug,
        name=(entry.name if entry else None) or name,
        late=bool(groups.get("late")),
        attempt=int(attempt[1]) if attempt else 0,
        upload=_printable(match.string[: match.start("file")]),
    )


def _student(raw: str, source: str, slug: str | None = None) -> _Identity:
    if raw in _NEVER_A_STUDENT:
        raise _Unclear(f"lies in the course's own {raw!r}, which is no student; give the folder with the submissions")
    return _Identity(student_id(raw), source, slug)


def _nearest_slug(folders: tuple[str, ...], rules: _Rules) -> str | None:
    return next((folder for folder in reversed(folders) if folder in rules.known), None)


def _split_stem(stem: str, known: Collection[str]) -> tuple[str, str | None]:
    """A flat file's student, and the assignment if the name has that too: ``s001_additive`` → s001, additive."""
    for slug in sorted(known, key=lambda slug: (-len(slug), slug)):
        around = re.fullmatch(rf"(?:(?P<after>.+?)[-_. ]+)?{re.escape(slug)}(?:[-_. ]+(?P<before>.+))?", stem)
        if around and bool(around["after"]) != bool(around["before"]):
            return around["after"] or around["before"], slug
    return stem, None


def student_id(raw: str) -> str:
    """A name that nbgrader and every file system accept; two different names never give the same one.

    A name that is fine already stays as it is. Otherwise it is reduced to letters, digits, ``.``, ``_`` and
    ``-``, and six letters of its hash keep it apart from other names that reduce to the same.
    """
    if _PLAIN_ID.fullmatch(raw):
        return raw
    reduced = unicodedata.normalize("NFKD", raw).encode("ascii", "ignore").decode()
    reduced = re.sub(r"[^A-Za-z0-9._-]+", "-", reduced).strip("-._")[:48]
    mark = hashlib.sha256(raw.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{reduced or 'student'}-{mark}"


def _slug_within(found: _Found, rules: _Rules) -> str:
    """The assignment that the notebook's own cells name, or the one asked for."""
    try:
        counts = _slugs_of_cells(found.read(), rules.known)
    except CollectError:
        if rules.assignment is None:
            raise
        counts = {}
    best = sorted(counts, key=lambda slug: (-counts[slug], slug))
    if len(best) > 1 and counts[best[0]] == counts[best[1]]:
        both = f"{best[0]!r} and {best[1]!r}"
        raise _Unclear(f"holds as many cells of {both}; put it into a folder named after its assignment")
    if best:
        return best[0]
    if rules.assignment is not None:
        return rules.assignment
    raise _Unclear("names no assignment, neither by its folder nor in its cells; say which with --assignment")


def _slugs_of_cells(data: bytes, known: Collection[str]) -> dict[str, int]:
    """How many cells of each known assignment a notebook has; an unreadable one has none."""
    counts: dict[str, int] = {}
    if not bounded(data):
        return counts
    try:
        cells = json.loads(data)["cells"]
        ids = [cell["metadata"]["nbgrader"]["grade_id"] for cell in cells if _has_grade_id(cell)]
    except (ValueError, KeyError, TypeError, RecursionError):
        return counts
    for grade_id in ids:
        slug = str(grade_id).split("-", 1)[0]
        if slug in known:
            counts[slug] = counts.get(slug, 0) + 1
    return counts


def _has_grade_id(cell: Any) -> bool:
    try:
        return isinstance(cell["metadata"]["nbgrader"]["grade_id"], str)
    except (KeyError, TypeError):
        return False


# ------------------------------------------------------------------------------------------------------- times


def _timestamp(found: _Found, rules: _Rules, out: Collected) -> datetime | None:
    """When it was handed in, if ``timestamp.txt`` beside it says so."""
    try:
        text = _declared_time(found)
        if text is not None and text.strip():
            return parse_timestamp(text)
    except (CollectError, ValueError, OverflowError) as error:
        reason = (
            f"has a timestamp.txt that names no time ({_because(error)}); it is graded without one: correct the file"
        )
        out.problems.append(Problem(found.place, reason, "time"))
    return found.modified if rules.file_times else None


def _declared_time(found: _Found) -> str | None:
    if found.archive is not None and found.member is not None:
        beside = "/".join([*found.member.split("/")[:-1], "timestamp.txt"])
        try:
            data = found.archive.read(beside)
        except CollectError:
            return None  # most zips have none
    else:
        place = found.path.with_name("timestamp.txt")
        if not place.is_file() or place.is_symlink():
            return None
        data = _read_file(place, TIMESTAMP_BYTES)
    return data[:TIMESTAMP_BYTES].decode("utf-8", "replace")


def parse_timestamp(text: str) -> datetime:
    """A time as nbgrader writes it ("2026-10-01 12:00:00.0 Europe/Berlin", or any ISO form), in UTC without zone.

    Raises:
        ValueError: it names no time.
    """
    from dateutil import parser, tz

    parts = text.split()
    zones = {}
    if len(parts) == 3:
        zone = tz.gettz(parts[2]) if not re.fullmatch(r"[+-]\d{4}", parts[2]) else None
        zones = {"TZ": zone} if zone else {}
        text = " ".join([*parts[:2], "TZ" if zone else parts[2]])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", parser.UnknownTimezoneWarning)
            moment: datetime = parser.parse(text, tzinfos=zones)
    except parser.UnknownTimezoneWarning:
        raise ValueError("its time zone is unknown") from None
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def _file_time(path: Path) -> datetime:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC).replace(tzinfo=None)
    except (OSError, ValueError, OverflowError):
        return datetime.min


def _zip_time(info: zipfile.ZipInfo) -> datetime:
    try:
        return datetime(*info.date_time)
    except ValueError:
        return datetime.min


# ------------------------------------------------------------------------------------------------------- files


def _read_file(path: Path, limit: int) -> bytes:
    """A regular file's bytes, at most ``limit``; a link, a pipe or a device is refused even if it came in between."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise CollectError(f"{_shown(path)}: is no regular file; ask for the notebook itself")
            return stream.read(limit)
    except (OSError, ValueError) as error:
        raise CollectError(f"{_shown(path)}: cannot be read ({_because(error)}); check its permissions") from error


def _is_notebook(name: str) -> bool:
    return name.lower().endswith(".ipynb") and not name.replace("\\", "/").rsplit("/", 1)[-1].startswith(".")


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def _leads_to_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _because(error: BaseException) -> str:
    """The reason inside an error, without the path that the caller names anyway."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return _printable(str(text))[:200]


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _printable(text: str) -> str:
    """Text that any terminal and any file can take: no control characters, no half characters."""
    text = text.encode("utf-8", "replace").decode()
    return "".join(char if char.isprintable() else "�" for char in text)


def _shown(path: Path) -> str:
    """A path as people know it: from where they stand, if it lies below."""
    with contextlib.suppress(ValueError, OSError):
        path = path.relative_to(Path.cwd())
    return _printable(str(path))
