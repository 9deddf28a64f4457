"""The long tests, one after the other, and a record of what they came to; `make soak` runs them.

    python benchmarks/soak.py --json _build/soak/soak.json                 all of them; two hours on two cores
    python benchmarks/soak.py --json _build/soak/soak.json --only kills    one
    python benchmarks/soak.py --json _build/soak/soak.json --into benchmarks/results/soak.json

What each prints lies beside the record. A part that the record holds for the same commit is not run again, so a run
that was stopped goes on where it was; `--again` runs it all the same. `--into` runs nothing: it puts the parts that
have come to their end into the record that the book shows, each in the place of an older one.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path

from provenance import provenance

from ext.judged import mark

ROOT = Path(__file__).resolve().parent.parent
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "junit_family=xunit2"]
KILLS, SEEDS, CASES, STUDENTS = 50, 20, 300, (200, 5000)


def kills(folder):
    """The coordinator killed at random moments; every grade must be there afterwards, once and unchanged."""
    command = [
        *PYTEST,
        "tests/test_faults.py",
        "-k",
        "killed_at_any_moment",
        "-s",
        f"--junitxml={folder / 'kills.xml'}",
    ]
    return command, {"ATTN_KILLS": str(KILLS)}, lambda: tests_in(folder / "kills.xml") | {"kills": KILLS}


def check(folder, slug):
    """All answers of a chapter judged over many sets of hidden numbers."""
    file = folder / f"check_{slug}.json"
    command = [sys.executable, "-m", "autograder.cli", "check", slug, "--seeds", str(SEEDS), "--json", str(file)]

    def figures():
        found = json.loads(file.read_text())
        problems = found["problems"] + [problem for each in found["exercises"] for problem in each["problems"]]
        fewest = min(each["seeds"] for each in found["exercises"])
        return {key: found[key] for key in ("caught", "total", "seeds")} | {
            "fewest_seeds": fewest,
            "problems": problems,
        }

    return command, {}, figures


def fuzz(folder):
    """Whole gradings of damaged and odd notebooks."""
    command = [*PYTEST, "tests/test_fuzz.py", "-m", "soak", f"--junitxml={folder / 'fuzz.xml'}"]
    return command, {"FUZZ_CASES": str(CASES)}, lambda: tests_in(folder / "fuzz.xml") | {"cases": CASES}


def scale(folder):
    """Memory of the coordinator with a small class and with a large one."""
    file = folder / "grading_scale.json"
    command = [sys.executable, "benchmarks/grading_scale.py", "--students", *map(str, STUDENTS), "--json", str(file)]

    def figures():
        found = json.loads(file.read_text())
        return {key: found[key] for key in ("classes", "growth_kib_per_student", "allowed_kib_per_student")}

    return command, {}, figures


SLUGS = sorted(path.parent.name for path in ROOT.glob("chapters/*/exercises.md"))
PARTS = {"kills": kills, "fuzz": fuzz, "scale": scale} | {f"check_{slug}": partial(check, slug=slug) for slug in SLUGS}


def tests_in(report):
    """How many tests a report of pytest holds, and what became of them."""
    suite = ElementTree.parse(report).getroot().find("testsuite")
    return {word: int(suite.get(word)) for word in ("tests", "failures", "errors", "skipped")}


def judged_by(name):
    """The digest of what a part judges, a chapter or the grader; by it the book says whether that has changed since."""
    return mark(name.removeprefix("check_") if name.startswith("check_") else None, ROOT)


def run(name, folder):
    """Run a part to its end; what came of it, JSON-ready."""
    command, environment, figures = PARTS[name](folder)
    judged = judged_by(name)
    what = (check if name.startswith("check_") else PARTS[name]).__doc__
    print(f"{name}: {what} What it prints: {folder / name}.txt", flush=True)
    start = time.monotonic()
    with (folder / f"{name}.txt").open("w") as said:
        done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, stdout=said, stderr=subprocess.STDOUT)
    seconds = round(time.monotonic() - start)
    try:
        found = figures()
    except (OSError, ValueError, ElementTree.ParseError) as error:
        found = {"no_report": str(error)}
    print(f"{name}: {'held' if done.returncode == 0 else 'did not hold'} after {seconds} s", flush=True)
    return {
        "what": what,
        "held": done.returncode == 0,
        "seconds": seconds,
        "load_before": round(os.getloadavg()[0], 1),
        **found,
        "judged": judged if judged == judged_by(name) else None,
        "provenance": provenance(),
    }


def merge(record, kept):
    """The kept record with the finished parts of another, wherever these are newer, in the order in which they run.

    A part that came to no figures is not finished; one that did not hold is, and is kept as such.
    """
    finished = {name: found for name, found in record.items() if "no_report" not in found}
    for name, found in finished.items():
        if name not in kept or kept[name]["provenance"]["date"] < found["provenance"]["date"]:
            print(f"{name}: {'held' if found['held'] else 'did not hold'} on {found['provenance']['date']}")
            kept = kept | {name: found}
    return {name: kept[name] for name in PARTS if name in kept}


def main():
    """Run the parts that the record lacks and write it after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True, help="the record; what the parts print lies beside it")
    parser.add_argument(
        "--only", choices=PARTS, metavar="PART", nargs="+", default=[*PARTS], help=f"these parts: {', '.join(PARTS)}"
    )
    parser.add_argument("--again", action="store_true", help="run also what the record holds for this commit")
    parser.add_argument("--into", type=Path, metavar="FILE", help="run nothing; put finished parts into this record")
    arguments = parser.parse_args()
    folder = arguments.json.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    record = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    if arguments.into:
        kept = json.loads(arguments.into.read_text()) if arguments.into.exists() else {}
        arguments.into.write_text(json.dumps(merge(record, kept), indent=1) + "\n")
        return
    commit = provenance()["commit"]
    for name in arguments.only:
        known = record.get(name)
        if known and known["held"] and known["provenance"]["commit"] == commit and not arguments.again:
            print(f"{name}: held for this commit on {known['provenance']['date']}; not run again")
            continue
        record[name] = run(name, folder)
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    failed = [name for name in arguments.only if not record[name]["held"]]
    if failed:
        sys.exit(f"did not hold: {', '.join(failed)}; see {folder}")


if __name__ == "__main__":
    main()
