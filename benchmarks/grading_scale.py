"""How much memory the coordinator of `attn grade` needs as a class grows: a real run with one judged notebook.

Everything runs as in a class of that size (collecting, the local pool, the run log, the gradebook, the pages) but for
one thing: each worker judges the sample notebook once and hands the same result in for every student, because what is
measured is not the judge. Every student's notebook lies on disk as a file of its own.

    python benchmarks/grading_scale.py --students 200 5000 --json FILE
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

from provenance import provenance

ROOT = Path(__file__).resolve().parent.parent
SLUG = "additive"
NOTEBOOK = ROOT / "examples" / "submitted" / "s004" / SLUG / "exercises.ipynb"
GROWTH_KIB = 4.0
"""What one more student may cost the coordinator: names, times and places, but no notebook and no result."""


@cache
def judged_once(data, slug, secret):
    """The notebook, judged for real by this worker."""
    from autograder.grading.judge import judge_notebook

    return judge_notebook(data, slug, "s004", secret=secret)


def work(data, slug, student, secret, known):
    """What a worker does in place of `autograder.grading.run._work`."""
    from autograder.grading.cache import basis, fingerprint
    from autograder.grading.secret import student_seed

    mark, seed = fingerprint(slug, student, data, secret), student_seed(secret, slug, student)
    result = replace(judged_once(data, slug, secret), student=student, seed=seed, fingerprint=mark, basis=basis(slug))
    return result, len(result.exercises)


def resident_mib():
    """This process's resident memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def grade_class(students, folder):
    """Grade so many students into `folder`; what the coordinator needed, in this process."""
    from autograder.grading import run

    notebook = NOTEBOOK.read_bytes()
    for number in range(students):
        place = folder / "class" / f"s{number:05}" / SLUG
        place.mkdir(parents=True)
        (place / "exercises.ipynb").write_bytes(notebook)
    run._work = work
    samples = []

    def progress(step):
        if step.done % max(step.total // 10, 1) == 0:
            samples.append(round(resident_mib(), 1))
            print(f"{step.done} of {step.total}: {samples[-1]} MiB", file=sys.stderr, flush=True)

    start = time.perf_counter()
    done = run.grade([folder / "class"], root=folder / "course", workers=2, progress=progress)
    seconds = time.perf_counter() - start
    assert (done.judged, len(done.ungraded)) == (students, 0)
    first = time.perf_counter()
    again = run.grade([folder / "class"], root=folder / "course", workers=2)
    assert (again.judged, again.reused) == (0, students)
    return {
        "students": students,
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "resident_mib_at_each_tenth": samples,
        "seconds": round(seconds, 1),
        "seconds_to_find_nothing_changed": round(time.perf_counter() - first, 1),
        "bytes_of_one_notebook": len(notebook),
        "bytes_of_one_result": next((folder / "course" / "results" / SLUG).glob("*.json")).stat().st_size,
    }


def main():
    """Measure each class size in a process of its own and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--students", type=int, nargs="+", default=[200, 5000])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(grade_class(arguments.students[0], arguments.one)))
        return
    rows = []
    for students in arguments.students:
        folder = Path(tempfile.mkdtemp(prefix="attn-scale-"))
        try:
            command = [sys.executable, __file__, "--students", str(students), "--one", str(folder)]
            environment = os.environ | {"ATTN_SECRET_FILE": str(folder / "secret")}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
        finally:
            shutil.rmtree(folder)
    few, many = rows[0], rows[-1]
    growth = 1024 * (many["peak_mib"] - few["peak_mib"]) / max(many["students"] - few["students"], 1)
    record = {
        "what": "memory of the coordinator of attn grade, by the size of the class",
        "judge": "each worker judges one real notebook once and hands its result in for every student",
        "classes": rows,
        "growth_kib_per_student": round(growth, 2),
        "allowed_kib_per_student": GROWTH_KIB,
        "provenance": provenance(),
    }
    text = json.dumps(record, indent=1) + "\n"
    print(text)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text)
    if growth > GROWTH_KIB:
        sys.exit(f"the coordinator grows by {growth:.1f} KiB a student; at most {GROWTH_KIB:g} are allowed")


if __name__ == "__main__":
    main()
