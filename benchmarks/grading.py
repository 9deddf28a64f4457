"""Whole grading runs side by side: `attn grade`, nbgrader by itself, and a bare fork that only runs cells and tests.

    python benchmarks/grading.py --students 200 --json FILE              a class of 200, three rounds
    python benchmarks/grading.py --students 3 --nbgrader 1 --rounds 1    does it run? (its figures mean little)

The class hands in one chapter that imports torch. Each exercise of each notebook is, with equal chances, the reference,
another right answer, or a named mistake. What each side does with it:

- `attn grade`: the command as an instructor runs it: jail, cells, hidden tests, named mistakes, run log, gradebook,
  autograded notebooks, feedback pages, JSON.
- nbgrader: `nbgrader autograde` and `nbgrader generate_feedback` with nbgrader's own settings. A kernel runs the
  notebook and the visible checks that stand in it, which is far less testing than the hidden suite does.
- bare fork: a process that has imported torch, the shell and the suite forks once a submission; the child runs the same
  cells in the same shell and the same hidden tests with the same numbers, calls the functions directly, and writes
  nothing.

Time is the CPU time of a whole process tree, and the time on the clock beside it. One-time start-up is taken off: each
command runs once over its first submissions alone and once with the others added, and the difference counts.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "examples")]

GOALS = {"ratio_vs_nbgrader": (">=", 20.0), "ratio_vs_bare_fork": ("<=", 4.0), "two_worker_speedup": (">=", 1.7)}
FIRST = 2  # submissions of the short run; as many as the most workers, so that each has started
PROFILED = 40  # submissions taken apart for `where_the_time_goes`
NBGRADER_CONFIG = """c = get_config()
c.CourseDirectory.course_id = "benchmark"
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError"}
"""


# ---------------------------------------------------------------------------------------------------------------------
# The class, and the courses it hands in to
# ---------------------------------------------------------------------------------------------------------------------


def make_class(folder: Path, slug: str, count: int, draw: random.Random) -> None:
    """`count` notebooks at `folder/<student>/<slug>/exercises.ipynb`."""
    from make_class import Paper, named, reference

    from autograder import course
    from autograder.answers import shelf

    for number in range(count):
        paper = Paper(slug)
        for exercise in course.sheet(slug).exercises:
            kind = draw.choice(("reference", "alternatives", "mistakes"))
            if kind == "reference":
                paper[exercise.name] = reference(slug, exercise.name)
            else:
                answer = draw.choice(getattr(shelf(slug), kind)[exercise.name])
                paper[exercise.name] = named(slug, kind, exercise.name, answer.name)
        place = folder / f"s{number:04}" / slug
        place.mkdir(parents=True)
        (place / "exercises.ipynb").write_bytes(paper.bytes())


def our_course(folder: Path) -> Path:
    """What `attn` needs of the repository, in a place where it may write."""
    from autograder import course

    for slug in course.slugs():
        place = folder / "chapters" / slug
        place.mkdir(parents=True)
        for name in ("exercises.md", "exercises.ipynb"):
            shutil.copy(course.CHAPTERS / slug / name, place)
    shutil.copytree(course.SOLUTIONS, folder / "solutions", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_toc.yml", "nbgrader_config.py"):
        shutil.copy(course.ROOT / name, folder)
    return folder


def nbgrader_course(folder: Path, slug: str) -> Path:
    """A course as nbgrader wants it: its own settings, the visible checks as tests, the assignment generated."""
    import nbformat

    from autograder.authoring.build import instructor_notebook

    place = folder / "source" / slug
    place.mkdir(parents=True)
    nbformat.write(instructor_notebook(slug), place / "exercises.ipynb")
    (folder / "nbgrader_config.py").write_text(NBGRADER_CONFIG)
    run(nbgrader("generate_assignment", slug), folder)
    return folder


def hand_in(students: Sequence[Path], folder: Path) -> Path:
    """A copy of these students' folders."""
    for student in students:
        shutil.copytree(student, folder / student.name)
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What one command took: CPU seconds of its whole process tree, seconds on the clock, CPU seconds of others."""

    cpu: float
    wall: float
    others: float

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.cpu - other.cpu, self.wall - other.wall, self.others - other.others)

    def as_json(self) -> dict[str, float]:
        """For the record."""
        return {"cpu_s": round(self.cpu, 3), "wall_s": round(self.wall, 3), "others_cpu_s": round(self.others, 2)}


def run(command: Sequence[str], folder: Path, cores: int | None = None, **environment: str) -> Cost:
    """Run a command to its end, pinned to this many cores.

    Raises:
        SystemExit: it failed.
    """
    before, busy, start = _children_cpu(), _machine_cpu(), time.monotonic()
    with tempfile.TemporaryFile() as said, pinned(cores):
        process = subprocess.Popen(
            command, cwd=folder, env=_environment() | environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
        code = process.wait()
        with suppress(ChildProcessError):  # what outlived it is ours to wait for, and counts
            while True:
                os.waitpid(-1, 0)
        wall = time.monotonic() - start
        if code:
            said.seek(0)
            sys.exit(f"{' '.join(map(str, command))} ended with status {code}:\n{said.read().decode()[-3000:]}")
    cpu = _children_cpu() - before
    return Cost(cpu, wall, max(0.0, _machine_cpu() - busy - cpu))


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ATTN_", "JUPYTER", "PYTHON"))}
    path = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )  # nbgrader calls alembic
    # As the Makefile has it: threads that spin while they wait would be counted as work.
    return kept | {"OMP_WAIT_POLICY": "PASSIVE", "PATH": path}


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _machine_cpu() -> float:
    """CPU seconds that the whole machine has spent so far: user, nice, system, interrupts."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return sum(fields[index] for index in (0, 1, 2, 5, 6)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def pinned(cores: int | None) -> Iterator[None]:
    """Give this process, and what it starts, the last `cores` cores alone."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[-cores:] if cores else allowed)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def nbgrader(*arguments: str) -> list[str]:
    """The command line of one nbgrader command."""
    return [sys.executable, "-m", "nbgrader", *arguments]


# ---------------------------------------------------------------------------------------------------------------------
# The sides
# ---------------------------------------------------------------------------------------------------------------------


class Bench:
    """One class, and the runs over it; everything written lies in one folder that is thrown away."""

    def __init__(self, folder: Path, slug: str, students: int, with_nbgrader: int) -> None:
        self.folder, self.slug, self.count, self.with_nbgrader = folder, slug, students, with_nbgrader
        self.secret = folder / "secret"
        self.secret.write_text("5e" * 32)
        make_class(folder / "class", slug, FIRST + max(students, with_nbgrader), random.Random(2014))
        self.students = sorted((folder / "class").iterdir())
        self.short = hand_in(self.students[:FIRST], folder / "short")
        self.long = hand_in(self.students[: FIRST + students], folder / "long")
        self.nbgrader_course = nbgrader_course(folder / "nbgrader", slug)
        self._runs = 0

    def _fresh(self) -> Path:
        self._runs += 1
        return self.folder / f"run{self._runs}"

    def ours(self, workers: int) -> tuple[dict[str, object], list[dict]]:
        """`attn grade` on as many pinned cores as workers; the results of the long run."""
        costs = []
        for submissions in (self.short, self.long):
            course = our_course(self._fresh())
            attn = [str(Path(sys.executable).with_name("attn")), "grade", str(submissions)]
            options = ["--workers", str(workers), "--json", str(course / "out.json")]
            environment = {"ATTN_ROOT": str(course), "ATTN_SECRET_FILE": str(self.secret)}
            costs.append(run([*attn, *options], course, cores=workers, **environment))
        results = json.loads((course / "out.json").read_text())
        row = _row(*costs, FIRST, self.count) | {"written": self._written(course)}
        shutil.rmtree(course)
        return row, results

    def _written(self, course: Path) -> dict[str, int]:
        """How many of each thing lie there after a run."""
        course = course / "course"
        with sqlite3.connect(course / "gradebook.db") as book:
            rows = book.execute("SELECT count(*) FROM submitted_assignment").fetchone()[0]
        book.close()
        globs = {
            "results": "results/*/*.json",
            "feedback": "feedback/*/*/feedback.html",
            "autograded": "autograded/*/*/exercises.ipynb",
            "submitted": "submitted/*/*/exercises.ipynb",
        }
        return {"gradebook": rows} | {name: len(list(course.glob(pattern))) for name, pattern in globs.items()}

    def nbgrader(self) -> dict[str, object]:
        """`nbgrader autograde` and `nbgrader generate_feedback` on one pinned core: one submission, then the others."""
        steps: dict[str, list[Cost]] = {"autograde": [], "generate_feedback": []}
        for count in (1, 1 + self.with_nbgrader):
            course = shutil.copytree(self.nbgrader_course, self._fresh())
            hand_in(self.students[:count], course / "submitted")
            for step, costs in steps.items():
                costs.append(run(nbgrader(step, self.slug), course, cores=1))
            assert len(list(course.glob(f"feedback/*/{self.slug}/exercises.html"))) == count
        parts = {step: _row(*costs, 1, self.with_nbgrader) for step, costs in steps.items()}
        total = {key: round(sum(part[key] for part in parts.values()), 4)
                 for key in ("cpu_s_per_submission", "wall_s_per_submission", "start_up_cpu_s")}  # fmt: skip
        with sqlite3.connect(course / "gradebook.db") as book:
            scores = book.execute("SELECT sum(auto_score) FROM grade GROUP BY notebook_id").fetchall()
        book.close()
        shutil.rmtree(course)
        return total | {"parts": parts, "mean_score": round(statistics.mean(score for (score,) in scores), 2)}

    def bare(self, processes: int = 1) -> dict[str, object]:
        """The bare fork over the long class, in one process or in several that share the class and as many cores."""
        reports = [self._fresh().with_suffix(".json") for _ in range(processes)]
        command = [sys.executable, __file__, "--slug", self.slug, "--students", str(self.count)]
        with pinned(processes):
            started = [
                subprocess.Popen(
                    [*command, "--role", f"bare {index}/{processes}", "--class", str(self.long), "--json", str(report)],
                    env=_environment() | {"ATTN_SECRET_FILE": str(self.secret), "OPENBLAS_NUM_THREADS": "1"},
                )
                for index, report in enumerate(reports)
            ]
            codes = [process.wait() for process in started]
        if any(codes):
            sys.exit("the bare fork failed")
        found = [json.loads(report.read_text()) for report in reports]
        return {
            "cpu_s_per_submission": round(sum(f["cpu_s"] for f in found) / sum(f["submissions"] for f in found), 5),
            "wall_s_per_submission": round(1 / sum(f["submissions"] / f["wall_s"] for f in found), 5),
            "start_up_cpu_s": found[0]["start_up_cpu_s"],
            "passed": {student: names for f in found for student, names in f["passed"].items()},
        }

    def profile(self) -> dict[str, object]:
        """Where the CPU time of one submission goes, by part."""
        report = self._fresh().with_suffix(".json")
        command = [sys.executable, __file__, "--slug", self.slug, "--role", "profile"]
        course = our_course(self._fresh())
        run([*command, "--class", str(self.long), "--json", str(report)], course, cores=1,
            ATTN_ROOT=str(course), ATTN_SECRET_FILE=str(self.secret))  # fmt: skip
        return json.loads(report.read_text())


def _row(short: Cost, long: Cost, first: int, more: int) -> dict[str, object]:
    """Per submission, from a run over the `first` ones and a run over those and `more`."""
    rest = long - short
    return {
        "cpu_s_per_submission": round(rest.cpu / more, 4),
        "wall_s_per_submission": round(rest.wall / more, 4),
        "start_up_cpu_s": round(short.cpu - first * rest.cpu / more, 2),
        "short_run": {"submissions": first, **short.as_json()},
        "long_run": {"submissions": first + more, **long.as_json()},
    }


# ---------------------------------------------------------------------------------------------------------------------
# The whole
# ---------------------------------------------------------------------------------------------------------------------


def benchmark(slug: str, students: int, with_nbgrader: int, rounds: int) -> dict[str, object]:
    """All sides, round by round; the ratios are medians over the rounds, each formed within one round."""
    from provenance import provenance

    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: whatever a command leaves running comes to us
    origin = provenance()
    done = []
    with tempfile.TemporaryDirectory(prefix="attn-bench-") as name:
        bench = Bench(Path(name), slug, students, with_nbgrader)
        for number in range(1, rounds + 1):
            load = os.getloadavg()[0]
            bare = bench.bare()
            one, results = bench.ours(1)
            two, _ = bench.ours(2)
            theirs = bench.nbgrader()
            pair = bench.bare(2)
            verdicts, told = bare.pop("passed"), pair.pop("passed")
            agree = sum(set(verdicts[r["student"]]) == _passed(r) for r in results if r["student"] in verdicts)
            if agree < len(verdicts):
                sys.exit(f"for {len(verdicts) - agree} of {len(verdicts)} students the bare fork has other verdicts")
            done.append({
                "load_before": round(load, 2), "ours_one_worker": one, "ours_two_workers": two, "nbgrader": theirs,
                "bare_fork": bare, "bare_fork_in_two_processes": pair,
                "ratio_vs_nbgrader": theirs["cpu_s_per_submission"] / one["cpu_s_per_submission"],
                "ratio_vs_nbgrader_wall": theirs["wall_s_per_submission"] / one["wall_s_per_submission"],
                "ratio_vs_bare_fork": one["cpu_s_per_submission"] / bare["cpu_s_per_submission"],
                "ratio_vs_bare_fork_wall": one["wall_s_per_submission"] / bare["wall_s_per_submission"],
                "two_worker_speedup": one["wall_s_per_submission"] / two["wall_s_per_submission"],
                "two_core_ceiling": bare["wall_s_per_submission"] / pair["wall_s_per_submission"],
                "same_verdicts_as_bare_fork": agree, "bare_fork_repeats_itself": told == verdicts,
            })  # fmt: skip
            say(f"round {number} of {rounds}", done[-1])
        profile = bench.profile()
    ratios = {key: round(statistics.median(each[key] for each in done), 3) for key in done[0] if _is_ratio(key)}
    goals = [{"goal": f"{key} {sign} {limit:g}", "value": ratios[key],
              "met": ratios[key] >= limit if sign == ">=" else ratios[key] <= limit}
             for key, (sign, limit) in GOALS.items()]  # fmt: skip
    return {
        "schema": 1, "provenance": origin, "chapter": slug, "students": students, "nbgrader_students": with_nbgrader,
        **ratios, "goals": goals, "the_class": _describe(results), "where_the_time_goes": profile, "rounds": done,
        "what_each_side_does": " ".join(__doc__.partition("What each side does with it:")[2].split()),
    }  # fmt: skip


def _is_ratio(key: str) -> bool:
    return key.startswith(("ratio_", "two_"))


def _passed(result: dict) -> set[str]:
    return {
        test["name"] for exercise in result["exercises"] for test in exercise["tests"] if test["outcome"] == "passed"
    }


def _describe(results: list[dict]) -> dict[str, object]:
    """What the class came to, for a reader who wants to know how hard its notebooks were to grade."""
    exercises = [exercise for result in results for exercise in result["exercises"]]
    return {
        "submissions": len(results),
        "graded": sum(result["status"] == "graded" for result in results),
        "mean_score": round(statistics.mean(result["score"] for result in results), 2),
        "max_score": results[0]["max_score"],
        "outcomes": dict(Counter(exercise["outcome"] for exercise in exercises)),
        "mistakes_named": sum(exercise["mistake"] is not None for exercise in exercises),
    }


def say(title: str, row: dict) -> None:
    """One round on screen."""
    cpu = {side: row[side]["cpu_s_per_submission"]
           for side in ("ours_one_worker", "ours_two_workers", "nbgrader", "bare_fork")}  # fmt: skip
    print(f"{title}: CPU s a submission " + ", ".join(f"{side} {value:.3f}" for side, value in cpu.items()))
    print("   " + ", ".join(f"{key} {value:.2f}" for key, value in row.items() if _is_ratio(key)), flush=True)


def main() -> int:
    """Exit status 0; whether the goals are met is in the result, because it depends on the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", type=int, default=200, help="submissions that ours and the bare fork grade")
    parser.add_argument("--nbgrader", type=int, default=12, help="submissions that nbgrader grades")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slug", default="additive", help="the chapter; it should import torch")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--role", default="", help=argparse.SUPPRESS)
    parser.add_argument("--class", type=Path, dest="folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role.startswith("bare"):
        from bare import bare_fork

        part, parts = map(int, arguments.role.removeprefix("bare ").split("/"))
        report = bare_fork(sorted(arguments.folder.iterdir())[FIRST:][part::parts], arguments.slug)
    elif arguments.role == "profile":
        from where import profile

        report = profile(sorted(arguments.folder.iterdir())[: FIRST + PROFILED], arguments.slug, warm=FIRST)
    else:
        report = benchmark(arguments.slug, arguments.students, arguments.nbgrader, arguments.rounds)
        for goal in report["goals"]:
            print(f"{'met   ' if goal['met'] else 'MISSED'} {goal['goal']}: {goal['value']:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
