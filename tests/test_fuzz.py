"""Thousands of damaged and odd notebooks, archives and folders: each is read as it was meant, or named with a reason.

    python -m pytest tests/test_fuzz.py                  parsing and intake, the same cases each time
    python -m pytest tests/test_fuzz.py -m soak          whole gradings of damaged notebooks (some minutes)

`FUZZ_SEED=7` in front of either draws other damage, and `FUZZ_CASES=5000` more whole gradings.
"""

import copy
import json
import os
import random
import re
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import nbformat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_collect import KNOWN, collected, notebook, pack, pairs

from autograder import course
from autograder.grading.collect import (
    CollectError,
    Problem,
    _not_submissions,
    _printable,
    _shown,
    student_id,
)
from autograder.grading.intake import MAX_BYTES, MAX_CODE, MAX_PIECES, InvalidNotebook, Notebook, read_notebook
from autograder.reporting.graded import Unreadable, readable

SUBMITTED = course.ROOT / "examples" / "submitted"
SLUG = "additive"
STUDENTS = ("s002", "s004", "s009", "s011", "s015", "s016", "s019")
ORIGINALS = [(SUBMITTED / student / SLUG / "exercises.ipynb").read_bytes() for student in STUDENTS]
MEMORY = 700 * 2**20  # with the interpreter and its libraries
SECONDS = 5  # of CPU; the slowest takes a fiftieth of it
SEED = int(os.environ.get("FUZZ_SEED", "0"))
CASES = int(os.environ.get("FUZZ_CASES", "300"))  # of whole gradings
same_each_time = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def read(data):
    """What intake makes of these bytes: a notebook, or the reason why it is none. Nothing else may happen."""
    start = time.process_time()
    try:
        found = read_notebook(data, SLUG)
    except InvalidNotebook as error:
        found = str(error)
        assert 10 < len(found) < 300
        assert found.isprintable()
    assert time.process_time() - start < SECONDS
    return found


def holds(found, data):
    """What holds of everything that was read, and that the graded copy can be made of it."""
    if isinstance(found, Notebook):
        assert all(isinstance(source, str) and source.encode() is not None for source in found.cells)
        assert len(found.cells) == len(found.grade_ids)
        assert sum(map(len, found.cells)) <= MAX_CODE
        nbformat.validate(readable(data))
    else:
        try:
            readable(data)
        except Unreadable as error:
            assert str(error) == found
        else:
            # The cells can be shown, but not be judged.
            assert "of code" in found or "source is not text" in found


# ----------------------------------------------------------------------------------------- damage to the bytes


def flip(data, draw):
    damaged = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5, 50))):
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
    return bytes(damaged)


def cut(data, draw):
    return data[: draw.randrange(len(data))]


def tear(data, draw):
    first, last = sorted(draw.randrange(len(data)) for _ in range(2))
    return data[:first] + data[last:]


def repeat(data, draw):
    first = draw.randrange(len(data))
    piece = data[first : first + draw.choice((1, 20, 3000))]
    return data[:first] + piece * draw.choice((2, 3, 100)) + data[first + len(piece) :]


def insert(data, draw):
    odd = (b"\x00", b"\xff\xfe", b"\\u0000", b"\\ud800", b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 5000)
    place = draw.randrange(len(data))
    return data[:place] + draw.choice((*odd, b'"', b"}", b"{", b",", b"\r", b"\xe2\x80\xa8")) + data[place:]


def swap(data, draw):
    pairs = ((b'"', b"'"), (b":", b"="), (b"\n", b"\r"), (b"cells", b"Cells"), (b"nbformat", b"nb_format"), (b",", b""))
    old, new = draw.choice(pairs)
    return data.replace(old, new, draw.choice((1, 10, -1)))


def encode(data, draw):
    how = draw.choice(("utf-16", "utf-16-le", "utf-32", "utf-7", "latin-1", "cp1252", "cp037", "zlib", "twice"))
    if how == "zlib":
        return zlib.compress(data)
    if how == "twice":
        return json.dumps(data.decode()).encode()
    return data.decode().encode(how, "replace")


def stain(data, draw):
    """Letters of another encoding inside, as an old editor leaves them."""
    return data.replace(b"e", draw.choice((b"\xe9", b"\x8e", b"\xc3")), draw.choice((1, 100)))


BYTES = (flip, cut, tear, repeat, insert, swap, encode, stain)


@pytest.mark.parametrize("damage", BYTES, ids=lambda damage: damage.__name__)
def test_bytes_that_are_damaged(damage):
    seen = {True: 0, False: 0}
    for case in range(100):
        draw = random.Random(f"{SEED} {damage.__name__} {case}")
        data = damage(ORIGINALS[case % len(ORIGINALS)], draw)
        found = read(data)
        holds(found, data)
        seen[isinstance(found, Notebook)] += 1
    assert seen[False] > 0  # the damage does damage


# -------------------------------------------------------------------------------------- damage to the structure


def places(tree, at=()):
    """Every place of a JSON tree, as the way to it."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        yield (*at, key)
        yield from places(child, (*at, key))


def nested(depth):
    tree: list = []
    for _ in range(depth):
        tree = [tree]
    return tree


ODD = (
    *(None, True, False, 0, -1, 3, 4, 5, 10**30, 1e308, "", "code", "additive-softmax", "\ud800", "a\x00b", "é\u2028‮"),
    *([], {}, [[]], [None], ["a", 1, None], {"": ""}, {"cells": 1}, [{}], nested(200), "x" * 300_000, ["x\n"] * 3000),
)


def wreck(tree, draw):
    """Puts odd values, holes and repetitions into a JSON tree."""
    for _ in range(draw.choice((1, 1, 2, 6))):
        *way, last = draw.choice([place for place in places(tree) if len(place) < draw.choice((3, 4, 9))])
        parent = tree
        for key in way:
            parent = parent[key]
        kind = draw.choice(("replace", "replace", "delete", "double", "rename"))
        if kind == "replace":
            parent[last] = copy.deepcopy(draw.choice(ODD))
        elif kind == "delete":
            del parent[last]
        elif isinstance(parent, list):
            parent += [copy.deepcopy(parent[last])] * draw.choice((1, 3, 50))
        else:
            parent[f"{last}_"] = parent.pop(last)
        if not tree:
            break
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def old(data, minor=0):
    """The same notebook in the format of 2014, as nbformat's own converter writes it."""
    notebook = nbformat.reads(data.decode("utf-8-sig"), as_version=4)
    return nbformat.writes(nbformat.v4.downgrade(notebook), version=3).encode()


@pytest.mark.parametrize("form", [4, 3])
def test_notebooks_whose_structure_is_damaged(form):
    originals = ORIGINALS if form == 4 else [old(data) for data in ORIGINALS]
    seen = {True: 0, False: 0}
    for case in range(400 if form == 4 else 200):
        draw = random.Random(f"{SEED} structure {form} {case}")
        data = wreck(json.loads(originals[case % len(originals)].decode("utf-8-sig")), draw)
        found = read(data)
        holds(found, data)
        seen[isinstance(found, Notebook)] += 1
    assert min(seen.values()) > 0


# ---------------------------------------------------------------------------- odd, and yet the same notebook


def crlf_in_cells(tree, draw):
    for cell in tree["cells"]:
        cell["source"] = "".join(cell["source"]).replace("\r\n", "\n").replace("\n", "\r\n")


def sources_as_text(tree, draw):
    for cell in tree["cells"]:
        cell["source"] = "".join(cell["source"])


def sources_as_lines(tree, draw):
    for cell in tree["cells"]:
        cell["source"] = "".join(cell["source"]).splitlines(keepends=True)


def another_minor(tree, draw):
    tree["nbformat_minor"] = draw.randrange(6)
    if tree["nbformat_minor"] < 5:
        for cell in tree["cells"]:
            cell.pop("id", None)


def no_metadata_but_nbgraders(tree, draw):
    tree["metadata"] = {}
    for cell in tree["cells"]:
        cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key == "nbgrader"}


def unicode_names(tree, draw):
    tree["metadata"]["authors"] = [{"name": draw.choice(("Zoë Ångström", "学生", "محمد", "👩🏽‍🎓", "e\u0301"))}]
    tree["metadata"]["kernelspec"] = {"name": "питон", "display_name": "Python ✓", "language": "python"}


def outputs_of_megabytes(tree, draw):
    code = [cell for cell in tree["cells"] if cell["cell_type"] == "code"]
    for cell in draw.sample(code, 2):
        text = draw.choice(("1.234 " * 50_000, "\x1b[31mé\x1b[0m\n" * 20_000, "A" * 1_000_000))
        image = {"output_type": "display_data", "metadata": {}, "data": {"image/png": text}}
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": text}, image]


def broken_outputs(tree, draw):
    for cell in tree["cells"]:
        cell["outputs"] = draw.choice((None, "text", [None], [{"output_type": "nonsense"}], {"a": []}))
        cell["execution_count"] = draw.choice((None, "one", -1, 1e300))


def more_fields(tree, draw):
    tree["signature"], tree["metadata"]["widgets"] = "sha256:0", {"state": {"x": [1, 2, {"y": None}]}}
    for cell in tree["cells"]:
        cell["attachments"], cell["collapsed"], cell["prompt_number"] = {}, True, 7


def prose_of_megabytes(tree, draw):
    text = {"cell_type": "markdown", "metadata": {}, "source": "ü" * 1_000_000, "id": "long"}
    tree["cells"].insert(draw.randrange(len(tree["cells"])), text)


TREES = (
    *(crlf_in_cells, sources_as_text, sources_as_lines, another_minor, no_metadata_but_nbgraders, unicode_names),
    *(outputs_of_megabytes, broken_outputs, more_fields, prose_of_megabytes),
)
WRITERS = {
    "plain": lambda tree: json.dumps(tree).encode(),
    "indented, in Unicode": lambda tree: json.dumps(tree, indent=4, ensure_ascii=False).encode(),
    "sorted": lambda tree: json.dumps(tree, sort_keys=True).encode(),
    "with a byte order mark": lambda tree: b"\xef\xbb\xbf" + json.dumps(tree).encode(),
    "with Windows line ends": lambda tree: json.dumps(tree, indent=1).replace("\n", "\r\n").encode(),
    "with white space around": lambda tree: b" \r\n\t" + json.dumps(tree).encode() + b"\n\n ",
}


@settings(same_each_time, max_examples=300)
@given(
    which=st.integers(0, len(ORIGINALS) - 1),
    changes=st.lists(st.sampled_from(TREES), max_size=4, unique=True),
    writer=st.sampled_from(list(WRITERS)),
    draw=st.randoms(use_true_random=False),
)
def test_a_notebook_that_only_looks_odd_is_the_same_notebook(which, changes, writer, draw):
    expected = read_notebook(ORIGINALS[which], SLUG)
    tree = json.loads(ORIGINALS[which].decode("utf-8-sig"))
    for change in changes:
        change(tree, draw)
    data = WRITERS[writer](tree)
    found = read(data)
    assert (found.cells, found.grade_ids) == (expected.cells, expected.grade_ids)
    holds(found, data)


@pytest.mark.parametrize("student", STUDENTS)
def test_the_format_of_2014_holds_the_same_cells(student):
    data = ORIGINALS[STUDENTS.index(student)]
    expected, found = read_notebook(data, SLUG), read(old(data))
    assert (found.cells, found.grade_ids) == (expected.cells, expected.grade_ids)
    assert [cell.source for cell in readable(old(data)).cells if cell.cell_type == "code"] == [
        cell.source for cell in readable(data).cells if cell.cell_type == "code"
    ]


# ------------------------------------------------------------------------------------------- time and memory

FOUR, THREE = b'{"nbformat": 4, "cells": ', b'{"nbformat": 3, "worksheets": '
MIB = 2**20
EXTREMES = {  # made one at a time
    "brackets": (lambda: b"[" * MAX_BYTES, "pieces"),
    "small lists": (lambda: FOUR + b"[" + b"[]," * (12 * MIB) + b"[]]}", "pieces"),
    "small cells": (lambda: FOUR + b"[" + b"{}," * (MAX_PIECES - 9) + b"{}]}", "cells"),
    "small old cells": (lambda: THREE + b'[{"cells": [' + b"{}," * (MAX_PIECES - 9) + b"{}]}]}", "cells"),
    "worksheets": (lambda: THREE + b"[" + b"{}," * (MAX_PIECES - 9) + b"{}]}", "not a list"),
    "numbers": (lambda: FOUR + b"[" + b"1.5," * (9 * MIB) + b"1]}", "not a list"),
    "one string": (lambda: FOUR + b'"' + b"x" * (39 * MIB) + b'"}', "not a list"),
    "one number": (lambda: b'{"nbformat": ' + b"9" * (39 * MIB) + b"}", "not JSON"),
    "escapes": (lambda: FOUR + b'"' + rb"\ud83d\ude00" * (3 * MIB) + b'"}', "not a list"),
    "white space": (lambda: b" " * MAX_BYTES, "empty"),
    "zeros": (lambda: b"\0" * MAX_BYTES, "not JSON"),
    "too large": (lambda: b" " * MAX_BYTES + b"{", "MiB"),
    "code": (lambda: FOUR + b'[{"cell_type": "code", "source": "' + b"#" * (2 * MIB) + b'"}]}', "of code"),
    "depth": (lambda: FOUR + b"[" + b"[" * 90_000 + b"]" * 90_000 + b"]}", "not JSON"),
}


def test_no_file_takes_much_time_or_memory():
    """In a process that may have this much memory: the limit is the system's, not a measurement of ours."""
    code = f"import resource, test_fuzz; resource.setrlimit(resource.RLIMIT_DATA, ({MEMORY},) * 2)\n"
    code += "for name in test_fuzz.EXTREMES: test_fuzz.read_extreme(name)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=course.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def read_extreme(name):
    make, words = EXTREMES[name]
    found = read(make())
    assert isinstance(found, str), name
    assert words in found, (name, found)


# ---------------------------------------------------------------------------------- archives and folders

SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
ODD_NAMES = (
    *(
        "additive",
        "nonsense",
        "s001",
        "S 2",
        "..",
        ".",
        "",
        "submitted",
        "source",
        "exercises.ipynb",
        "é",
        "学生",
        "a/b",
    ),
    *(
        "x_LATE_1_2_exercises.ipynb",
        "A B_12_assignsubmission_file_",
        "x_1_2_n.ipynb",
        "\x01",
        "-x.ipynb",
        "timestamp.txt",
        "report.pdf",
        "exercises.ipynb.txt",
        ".exercises.ipynb",
    ),
)
PARTS = st.one_of(
    st.sampled_from(ODD_NAMES),
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=12),
)
PATHS = st.lists(PARTS, min_size=1, max_size=5).map("/".join)
CONTENTS = st.one_of(
    st.sampled_from([notebook(), notebook("scaled_dot_product"), notebook(None), b"{}", b"[" * 50_000, b"\xff", b""]),
    st.binary(max_size=64),
    st.recursive(st.none() | st.integers() | st.text(max_size=4), lambda inner: st.lists(inner, max_size=3)).map(
        lambda value: json.dumps({"cells": value}).encode()
    ),
)


def check(found, given=()):
    """What holds for everything that was ever found, and that each notebook of those given is accounted for."""
    assert found.submissions == sorted(found.submissions, key=lambda each: (each.slug, each.student))
    assert len({(each.student, each.slug) for each in found.submissions}) == len(found.submissions)
    for each in found.submissions:
        assert SAFE.fullmatch(each.student)
        assert each.slug in KNOWN
        assert ".." not in Path(each.student).parts
        try:
            assert isinstance(each.read(), bytes)
        except CollectError as error:
            assert str(error).startswith(each.place)
    spoken_of = {each.place for each in found.submissions} | {problem.path for problem in found.problems}
    unspoken = [place for place in given if place not in spoken_of]
    assert len(unspoken) <= found.skipped, unspoken
    for problem in found.problems:
        assert isinstance(problem, Problem)
        assert str(problem).isprintable()
        str(problem).encode()
    found.close()


@settings(same_each_time, max_examples=300)
@given(entries=st.lists(st.tuples(PATHS, CONTENTS), max_size=6), assignment=st.sampled_from([None, "additive"]))
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")  # zipfile warns the packer; we are the reader
def test_no_archive_of_names_and_bytes_causes_a_traceback(tmp_path, entries, assignment):
    place = pack(tmp_path / "fuzz.zip", [(name or "/", data) for name, data in entries])
    with zipfile.ZipFile(place) as archive:
        given = [f"{_shown(place)} › {_printable(name)}" for name in archive.namelist() if seen_in_a_zip(name)]
    first = collected(place, assignment=assignment)
    check(first, given)
    second = collected(place, assignment=assignment)
    assert (pairs(first), first.problems) == (pairs(second), second.problems)
    check(second, given)


def seen_in_a_zip(name):
    """Whether an entry is a notebook that nobody hid."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    hidden = any(part.startswith(".") for part in parts) and ".." not in parts
    is_notebook = name.lower().endswith(".ipynb") and not parts[-1].startswith(".")
    return is_notebook and not hidden and parts[0] != "__MACOSX"


@settings(same_each_time, max_examples=300)
@given(
    flips=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 400),
)
def test_no_damaged_archive_causes_a_traceback(tmp_path, flips, cut):
    entries = [("onestudent_1_2_exercises.ipynb", notebook()), ("s001/additive/exercises.ipynb", notebook())]
    data = bytearray(pack(tmp_path / "whole.zip", entries).read_bytes())
    for position, value in flips:
        data[position % len(data)] = value
    (tmp_path / "damaged.zip").write_bytes(data[: len(data) - cut] if cut < 100 else data)
    check(collected(tmp_path / "damaged.zip"))


@settings(same_each_time, max_examples=150)
@given(paths=st.lists(PATHS, max_size=6), contents=st.lists(CONTENTS, min_size=6, max_size=6))
def test_no_folder_causes_a_traceback(tmp_path_factory, paths, contents):
    root = tmp_path_factory.mktemp("fuzz")
    for name, data in zip(paths, contents, strict=False):
        place = root / "in" / name.lstrip("/")
        if root / "in" not in Path(os.path.normpath(place)).parents:
            continue
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        except (OSError, ValueError):
            continue
    found, files = collected(root / "in"), seen_in_a_folder(root / "in")
    check(found, [str(file) for file in files if file.name.lower().endswith(".ipynb")])
    named = [Path(problem.path) for problem in found.problems]
    spoken_of = [Path(each.place) for each in found.submissions] + named
    for file in files:  # no folder of files without a word on it
        assert (
            any(file.parent in place.parents or place in (file, *file.parents) for place in spoken_of)
            or any(place.stem == "exercises" and place.parent in file.parents for place in spoken_of)  # one submission
        ), (file, spoken_of)


def seen_in_a_folder(root):
    """All files that nobody hid and that lie in none of nbgrader's other folders, by the names that people see."""
    files = []
    for folder, below, names in os.walk(root):
        left_out = _not_submissions({*below, *names})
        below[:] = [name for name in below if not name.startswith(".") and name not in left_out]
        files += [Path(folder, name) for name in names if not name.startswith(".") and name not in left_out]
    return [Path(_shown(file)) for file in files]


@settings(same_each_time, max_examples=300)
@given(st.text(max_size=80), st.text(max_size=80))
def test_ids_are_safe_and_different_names_stay_different(one, other):
    assert SAFE.fullmatch(student_id(one))
    assert len(student_id(one)) <= 64
    assert (student_id(one) == student_id(other)) == (one == other)
    assert student_id(student_id(one)) == student_id(one)


# ---------------------------------------------------------------------------------------- whole gradings


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_class_of_damaged_notebooks_is_graded_to_the_last(tmp_path):
    """Damaged bytes, damaged structure, and notebooks that only look odd: those keep their score to the point."""
    from autograder.grading.run import grade
    from autograder.reporting import write_report

    sound = [data for student, data in zip(STUDENTS, ORIGINALS, strict=True) if student != "s011"]  # it loops for ever
    expected, handed_in = {}, 0
    inbox = tmp_path / "inbox"
    for number, data in enumerate(sound):
        hand_in(inbox, f"plain{number}", data)
    for case in range(CASES):
        draw = random.Random(f"{SEED} whole {case}")
        which = case % len(sound)
        kind = ("bytes", "structure", "odd")[case % 3]
        if kind == "bytes":
            data = draw.choice(BYTES)(sound[which], draw)
        else:
            tree = json.loads(sound[which].decode("utf-8-sig"))
            if kind == "structure":
                data = wreck(tree, draw)
            else:
                for change in draw.sample(TREES, 2):
                    change(tree, draw)
                data = WRITERS[draw.choice(list(WRITERS))](tree)
                expected[f"case{case:04}"] = f"plain{which}"
        hand_in(inbox, f"case{case:04}", data)
        handed_in += 1
    run = grade([inbox], root=tmp_path / "course", workers=2)
    results = {result.student: result for result in run.results}
    assert len(results) == handed_in + len(sound)
    assert run.problems == []
    for result in results.values():
        assert result.status == "graded", result
        assert result.outcome in ("ok", "invalid_notebook")
        assert 0 <= result.score <= result.max_score
        assert result.message or result.outcome == "ok"
    for student, same in expected.items():
        assert results[student].score == results[same].score, student
    page, _ = write_report(tmp_path / "course")
    assert "case0000" in page.read_text()


def hand_in(inbox, student, data):
    place = inbox / student / SLUG / "exercises.ipynb"
    place.parent.mkdir(parents=True)
    place.write_bytes(data)
