"""What goes wrong while a class is graded: kills, lost workers, full disks, locks. Nothing is lost, doubled or changed.

Every run here is a real one: coordinators of their own that are really killed, a Dask cluster whose workers are
processes in network namespaces of their own (where the machine allows it), a disk that is really full.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from nbgrader.api import Gradebook
from servers import Cluster, Coordinators, dask_cluster, end_group, postgres_programs, postgres_server

from autograder import doctor
from autograder.grading.record import COURSE_ID, database_url
from autograder.grading.run import _executors
from autograder.grading.secret import SecretError, course_secret

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "submitted"
SLUG = "scaled_dot_product"
KILLS = int(os.environ.get("ATTN_KILLS", "10"))
SEED = int(os.environ.get("ATTN_KILLS_SEED", time.time_ns()))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + 60 * KILLS)]


# --------------------------------------------------------------------------------------------- the class, the crew


@pytest.fixture(scope="module", autouse=True)
def secret(tmp_path_factory):
    path = tmp_path_factory.mktemp("secret") / "secret"
    path.write_text("5a" * 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTN_SECRET_FILE", str(path))
        patch.delenv("ATTN_DB", raising=False)
        yield


@pytest.fixture(scope="module")
def small_class(tmp_path_factory):
    """Six students: right, partly right with named mistakes, untouched, and two files that are no notebooks."""
    folder = tmp_path_factory.mktemp("class")
    for student in ("s001", "s004", "s008", "s009"):
        shutil.copytree(EXAMPLES / student / SLUG, folder / student / SLUG)
    for student, text in (("s020", "this is no notebook"), ("s021", "")):
        (folder / student / SLUG).mkdir(parents=True)
        (folder / student / SLUG / "exercises.ipynb").write_text(text)
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    with dask_cluster(tmp_path_factory.mktemp("dask")) as running:
        yield running


@pytest.fixture(scope="module")
def coordinators(tmp_path_factory, secret) -> Iterator[Coordinators]:
    made = Coordinators(tmp_path_factory.mktemp("coordinators"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def undisturbed(coordinators, cluster, small_class, tmp_path_factory):
    """The class graded once in peace, on the cluster."""
    root = tmp_path_factory.mktemp("undisturbed") / "course"
    assert coordinators.run([small_class], root, scheduler=cluster.address) == 0, coordinators.said
    found = everything(root)
    assert len(found["results"]) == len(found["grades"]) == 6
    return found


def test_every_worker_has_a_network_of_its_own(cluster):
    if not cluster.namespaces:
        pytest.skip("NOT RUN: `ip` can make no network namespaces here, so the faults below had one network for all")
    processes = [os.getpid(), *(worker.pid for worker in cluster.workers)]
    assert len({os.readlink(f"/proc/{pid}/ns/net") for pid in processes}) == len(processes)


def steady(result: dict) -> dict:
    return {key: value for key, value in result.items() if key not in ("seconds", "changed")}


def results_in(root: Path) -> dict[str, dict]:
    return {path.stem: steady(json.loads(path.read_text())) for path in root.glob("results/*/*.json")}


def grades_in(url: str) -> dict[str, dict]:
    """All that the gradebook says of each submission."""
    grades = {}
    with Gradebook(url, COURSE_ID) as gradebook:
        for assignment in gradebook.assignments:
            for submission in assignment.submissions:
                (notebook,) = submission.notebooks
                assert submission.student.id not in grades, "a submission stands twice"
                grades[submission.student.id] = {
                    "score": submission.score,
                    "grades": sorted((grade.name, grade.auto_score, grade.manual_score) for grade in notebook.grades),
                    "comments": sorted((comment.name, comment.comment) for comment in notebook.comments),
                }
    return grades


def everything(root: Path) -> dict[str, dict]:
    """What a run leaves: results, the gradebook, and the three trees, byte by byte."""
    trees = ("submitted", "autograded", "feedback")
    files = {str(p.relative_to(root)): p for tree in trees for p in sorted((root / tree).rglob("*")) if p.is_file()}
    assert not list(root.glob(".tmp/*"))
    return {
        "results": results_in(root),
        "grades": grades_in(database_url(root)),
        "files": {name: path.read_bytes() for name, path in files.items()},
    }


def has_tables(gradebook: Path) -> bool:
    if not gradebook.is_file():
        return False
    with closing(sqlite3.connect(gradebook)) as book:
        return bool(book.execute("SELECT * FROM sqlite_master").fetchall())


def nothing_is_wrong_so_far(root: Path, undisturbed: dict) -> None:
    """What an interrupted run has left is whole, and as an undisturbed run has it."""
    for student, result in results_in(root).items():
        assert result == undisturbed["results"][student]
    if has_tables(root / "gradebook.db"):
        for student, row in grades_in(database_url(root)).items():
            assert row == undisturbed["grades"][student]


# ------------------------------------------------------------------------------------------- the same on every run


def test_a_local_pool_of_any_size_gives_what_the_cluster_gives(coordinators, small_class, undisturbed, tmp_path):
    for workers, force in ((1, False), (2, True)):
        assert coordinators.run([small_class], tmp_path, workers=workers, force=force) == 0, coordinators.said
        assert "6 graded (" in coordinators.said
        assert "→" not in coordinators.said
        assert everything(tmp_path) == undisturbed
        listed = json.loads(coordinators.json.read_text())
        assert [steady(entry) for entry in listed] == [
            undisturbed["results"][name] for name in sorted(results_in(tmp_path))
        ]


def test_a_class_in_postgresql(coordinators, cluster, small_class, undisturbed, tmp_path):
    programs = postgres_programs()
    if None in programs:
        pytest.skip("PostgreSQL not tested: its programs initdb and pg_ctl are not installed")
    with postgres_server(*programs) as url:
        for graded in (6, 0):
            assert coordinators.run([small_class], tmp_path, scheduler=cluster.address, db=url) == 0, coordinators.said
            assert f"{graded} graded (" in coordinators.said
            assert grades_in(url) == undisturbed["grades"]
    assert not (tmp_path / "gradebook.db").exists()
    assert coordinators.run([small_class], tmp_path, scheduler=cluster.address, db=url) == 1
    assert "check that the database server runs" in coordinators.said


# ----------------------------------------------------------------------------------------------------------- kills


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    return not [p for p in psutil.wait_procs(processes, timeout=seconds)[1] if p.status() != psutil.STATUS_ZOMBIE]


def test_a_coordinator_killed_at_any_moment(coordinators, cluster, small_class, undisturbed, tmp_path):
    """Most on the cluster; every fifth with workers of its own, of which all die with it, killed or not.

    Half of the moments are any of the time that a run takes. The others come soon after some results are on disk, so
    that most of those runs die in the middle of their work. Give `ATTN_KILLS_SEED` to draw the same again.
    """
    print(f"ATTN_KILLS_SEED={SEED}")
    chance = random.Random(SEED)
    lasts = {}
    for local in (False, True):
        begin = time.monotonic()
        where = {"workers": 1} if local else {"scheduler": cluster.address}
        assert coordinators.run([small_class], tmp_path / f"whole-{local}", **where) == 0, coordinators.said
        lasts[local] = time.monotonic() - begin
    moments = []
    for number in range(KILLS):
        root, local = tmp_path / f"killed-{number}", number % 5 == 4
        where = {"workers": 1} if local else {"scheduler": cluster.address}
        begin = time.monotonic()
        pid = coordinators.start([small_class], root, **where)
        if number % 2:
            time.sleep(chance.uniform(0, lasts[local]))
        else:
            enough = chance.randrange(1, 5)
            while len(list(root.glob("results/*/s*.json"))) < enough and time.monotonic() - begin < 60:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.02))
        moment = time.monotonic() - begin
        family = []
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # it may have ended by itself
            family = psutil.Process(pid).children(recursive=True)
            if number % 3:
                end_group(pid)
            else:
                os.kill(pid, signal.SIGKILL)
        ended = coordinators.finish()
        assert ended in (-signal.SIGKILL, 0), coordinators.said
        assert gone(family, 30), "a worker has outlived its coordinator"
        moments.append((round(moment, 2), ended, len(results_in(root))))
        nothing_is_wrong_so_far(root, undisturbed)
        assert coordinators.run([small_class], root, scheduler=cluster.address) == 0, coordinators.said
        assert everything(root) == undisturbed
        shutil.rmtree(root)
    print("seconds to the kill, how it ended, results on disk by then:", moments)
    in_the_middle = [ended != 0 and 0 < results < len(undisturbed["results"]) for _, ended, results in moments]
    assert sum(in_the_middle) >= KILLS // 3, moments


def test_a_worker_killed_in_the_middle(coordinators, cluster, tmp_path):
    submissions = tmp_path / "class"
    for student in range(1, 11):
        shutil.copytree(EXAMPLES / f"s{student:03}" / SLUG, submissions / f"s{student:03}" / SLUG)
    root = tmp_path / "course"
    coordinators.start([submissions], root, scheduler=cluster.address)
    deadline = time.monotonic() + 120
    while len(results_in(root)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    busy = cluster.workers[-1]
    busy.kill()  # what it is in the middle of goes to the other
    busy.wait()
    left = len(results_in(root))
    assert coordinators.finish() == 0, coordinators.said
    assert 2 <= left < 10, "the worker was killed too late to matter"
    assert "10 graded (" in coordinators.said
    listed = json.loads(coordinators.json.read_text())
    assert [entry["student"] for entry in listed] == sorted(path.name for path in submissions.iterdir())
    assert all(entry["status"] == "graded" for entry in listed)
    assert {s: row["score"] for s, row in grades_in(database_url(root)).items()} == pytest.approx(
        {entry["student"]: entry["score"] for entry in listed}
    )
    # One worker is left: make it one with many threads, which must not mix submissions up.
    cluster.add_worker(threads=3)
    cluster.wait_for_workers(2)
    cluster.workers[0].kill()
    cluster.workers[0].wait()
    again = tmp_path / "again"
    assert coordinators.run([submissions], again, scheduler=cluster.address) == 0, coordinators.said
    assert results_in(again) == results_in(root)


# ---------------------------------------------------------------------------------------------------------- faults


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    place.mkdir(exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("a full disk not tested: this machine lets nobody mount one")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)  # also where a failure has left a file open


@pytest.mark.parametrize("left", [16_384, 400_000, 600_000])
def test_a_full_disk(coordinators, cluster, small_class, undisturbed, tmp_path, left):
    with small_disk(tmp_path / "disk", "8m"):
        root, ballast = tmp_path / "disk" / "course", tmp_path / "disk" / "ballast"
        free = shutil.disk_usage(tmp_path / "disk").free
        ballast.write_bytes(bytes(free - left))
        assert coordinators.run([small_class], root, scheduler=cluster.address) == 1, coordinators.said
        said = " ".join(coordinators.said.split())
        assert "attn: " in said
        assert "free some space on the disk, then run this again: nothing is lost" in said
        assert "Traceback" not in said, coordinators.said
        ballast.unlink()
        nothing_is_wrong_so_far(root, undisturbed)
        assert coordinators.run([small_class], root, scheduler=cluster.address) == 0, coordinators.said
        assert everything(root) == undisturbed


# ------------------------------------------------------------------------------------------- the secret's first run

_KILLED_BEFORE_EACH_LINE = """
import os, signal, sys
from autograder.grading import secret

def dies_before(number):
    seen = 0
    def trace(frame, event, _):
        nonlocal seen
        if frame.f_code.co_filename in (secret.__file__, os.__file__, secret.tempfile.__file__):
            seen += event == "line"
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace
    return trace

for number in range(1, 1000):
    path = secret.Path(sys.argv[1], str(number), "secret")
    os.environ["ATTN_SECRET_FILE"] = str(path)
    child = os.fork()
    if not child:
        sys.settrace(dies_before(number))
        secret.course_secret()
        os._exit(0)
    if not os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        break
    left = path.read_text() if path.exists() else None
    after = secret.course_secret()
    assert len(after) == 32 and left in (None, after.hex()), (number, left)
    assert path.stat().st_mode & 0o077 == 0
    print(number, left is not None)
"""


def test_a_first_run_killed_before_any_line_leaves_a_whole_secret_or_none(tmp_path):
    command = [sys.executable, "-c", _KILLED_BEFORE_EACH_LINE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = [line.split()[1] == "True" for line in done.stdout.splitlines()]
    assert made == sorted(made)
    assert made.count(False) > 10 and made.count(True) > 3, "the kills did not fall around the making"


_MAKE_A_SECRET = "from autograder.grading.secret import course_secret as s; input(); print(s().hex())"


def test_first_runs_side_by_side_have_one_secret(tmp_path):
    environment = {**os.environ, "ATTN_SECRET_FILE": str(tmp_path / "course" / "secret")}
    command = [sys.executable, "-c", _MAKE_A_SECRET]
    with ExitStack() as stack:
        pipe = subprocess.PIPE
        runs = [
            stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment))
            for _ in range(6)
        ]
        time.sleep(1)  # they have loaded what they need, and wait
        for run in runs:
            run.stdin.write("\n")
            run.stdin.close()
        made = {run.stdout.read().strip() for run in runs}
    assert made == {(tmp_path / "course" / "secret").read_text()}
    assert os.listdir(tmp_path / "course") == ["secret"]


def test_a_first_run_whose_disk_is_full_says_so_and_the_next_makes_the_secret(coordinators, small_class, tmp_path):
    place = Path(os.environ["ATTN_SECRET_FILE"])
    with small_disk(place.parent, "1m"):  # over the folder in which every other test has its secret
        ballast = place.with_name("ballast")
        ballast.write_bytes(bytes(shutil.disk_usage(place.parent).free))
        assert coordinators.run([small_class / "s020"], tmp_path, workers=1) == 1
        said = " ".join(coordinators.said.split())
        assert f"attn: {place}: the course secret cannot be read or made (No space left on device)" in said
        assert "free some space" in said
        assert "Traceback" not in said, coordinators.said
        assert os.listdir(place.parent) == ["ballast"]
        ballast.unlink()
        assert coordinators.run([small_class / "s020"], tmp_path, workers=1) == 0, coordinators.said
        assert len(bytes.fromhex(place.read_text())) == 32


@pytest.mark.parametrize("text", ["", "5a" * 31, "5a" * 33, "5a" * 31 + "xy", "é" * 64])
def test_a_secret_that_is_none_is_refused(tmp_path, monkeypatch, text):
    place = tmp_path / "secret"
    place.write_text(text)
    monkeypatch.setenv("ATTN_SECRET_FILE", str(place))
    with pytest.raises(SecretError, match="put back your copy") as refused:
        course_secret()
    assert str(place) in str(refused.value)
    assert place.read_text() == text
    assert doctor._secret().state == "broken"


_LOCKER = """
import sqlite3, sys
book = sqlite3.connect(sys.argv[1])
book.execute("BEGIN EXCLUSIVE")
print(1, flush=True)
sys.stdin.read()
"""


def test_a_gradebook_that_another_program_has_locked(coordinators, cluster, small_class, undisturbed, tmp_path):
    url = f"{database_url(tmp_path)}?timeout=0.5"
    first = small_class / "s001"
    assert coordinators.run([first], tmp_path, scheduler=cluster.address, db=url) == 0, coordinators.said
    command = [sys.executable, "-c", _LOCKER, str(tmp_path / "gradebook.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.read(1)
        assert coordinators.run([small_class], tmp_path, scheduler=cluster.address, db=url) == 1
        said = " ".join(coordinators.said.split())
        assert "locked" in said
        assert "close formgrader and other nbgrader programs, then run this again: nothing is lost" in said
        other.stdin.close()
    nothing_is_wrong_so_far(tmp_path, undisturbed)
    assert coordinators.run([small_class], tmp_path, scheduler=cluster.address, db=url) == 0, coordinators.said
    assert everything(tmp_path) == undisturbed


@pytest.mark.parametrize(
    ("place", "folder"),
    [(f"results/{SLUG}/s004.json", True), ("gradebook.db", True), ("feedback", False), ("source", False)],
)
def test_something_else_where_a_file_is_meant(coordinators, cluster, small_class, undisturbed, tmp_path, place, folder):
    stone = tmp_path / "course" / place
    stone.parent.mkdir(parents=True, exist_ok=True)
    stone.mkdir() if folder else stone.write_text("")
    root = tmp_path / "course"
    assert coordinators.run([small_class], root, scheduler=cluster.address) == 1
    said = " ".join(coordinators.said.split())
    assert Path(place).name in said
    assert "move it away" in said or "check that its folder exists and is writable" in said
    assert "Traceback" not in said, coordinators.said
    stone.rmdir() if folder else stone.unlink()
    assert coordinators.run([small_class], root, scheduler=cluster.address) == 0, coordinators.said
    assert everything(root) == undisturbed


def test_a_damaged_result_is_made_again(coordinators, cluster, small_class, undisturbed, tmp_path):
    assert coordinators.run([small_class], tmp_path, scheduler=cluster.address) == 0, coordinators.said
    (tmp_path / "results" / SLUG / "s004.json").write_text('{"schema": 1, "assig')
    (tmp_path / "autograded" / "s008" / SLUG / "exercises.ipynb").unlink()
    with closing(sqlite3.connect(tmp_path / "gradebook.db")) as book:
        book.execute("UPDATE grade SET auto_score = 0 WHERE auto_score > 0 AND rowid % 7 = 0")
        book.commit()
    assert coordinators.run([small_class], tmp_path, scheduler=cluster.address) == 0, coordinators.said
    assert "1 graded (" in coordinators.said
    assert everything(tmp_path) == undisturbed


def test_a_run_that_stops_while_results_are_on_their_way_says_nothing_of_it(cluster, caplog):
    """Connections cut under large results: each would print a traceback over the one line that says why."""
    for moment in range(8):
        with _executors(2, cluster.address) as crew:
            executor = crew.start()
            for size in range(4):
                crew.flying[executor.submit(bytes, 100_000_000 + 10 * moment + size)] = None
            time.sleep(0.05 + 0.03 * moment)
    assert caplog.messages == []


def test_a_cluster_that_dies(coordinators, cluster, small_class, tmp_path):
    """The last test of this file: it ends the scheduler."""
    coordinators.start([EXAMPLES], tmp_path, scheduler=cluster.address)
    deadline = time.monotonic() + 120
    while not results_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert cluster.scheduler is not None
    end_group(cluster.scheduler.pid)
    assert coordinators.finish() == 1, coordinators.said
    assert "the Dask scheduler" in coordinators.said
    assert "nothing is lost" in coordinators.said
    assert len(json.loads(coordinators.json.read_text())) == len(list(tmp_path.glob("results/*/*.json")))
