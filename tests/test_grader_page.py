"""The page "How good is this grader?": its tables come from the data files, and it says where there are none."""

import importlib.util
import json
import shutil
import subprocess
import sys

import pytest
from bs4 import BeautifulSoup
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from autograder import course
from ext import course_ext, data, judged

CHECK = {
    "schema": 1,
    "caught": 3,
    "total": 4,
    "seeds": 5,
    "problems": [],
    "exercises": [
        {
            "id": "additive-softmax",
            "seeds": 2,
            "alternatives": [{"name": "a", "outcome": "passed"}, {"name": "b", "outcome": "failed"}],
            "mistakes": [{"name": f"slip_{n}", "caught": n != 3, "named": n != 3} for n in range(4)],
            "problems": ["b is not accepted"],
        }
    ],
}
SPEED = {
    "ratio_vs_nbgrader": 31.4159,
    "ratio_vs_bare_fork": 2.345,
    "two_worker_speedup": 1.87,
    "provenance": {
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "uncommitted_changes": False,
        "date": "2026-10-01T00:00:00+00:00",
        "machine": "2 CPU cores",
        "versions": {"python": "3.12.1"},
        "command": "python benchmarks/grading.py --students 200",
    },
}
ORIGIN = SPEED["provenance"]
SOAK = {
    "kills": {"what": "Kills.", "held": True, "seconds": 347, "kills": 50, "provenance": ORIGIN},
    "scale": {
        "what": "Memory.",
        "held": True,
        "seconds": 300,
        "classes": [{"students": 200, "peak_mib": 418.2}, {"students": 5000, "peak_mib": 426.1}],
        "provenance": ORIGIN,
    },
    "check_additive": {
        "what": "Answers.",
        "held": False,
        "seconds": 3000,
        "caught": 1399,
        "total": 1401,
        "seeds": 20,
        "provenance": ORIGIN,
    },
}
PAGE = "\n\n".join(
    ["# Page", *(f"```{{{name}}}\n```" for name in ("grader-report", "attack-table", "soak-report", "grading-speed"))]
)


def built(root, files, attacks=None):
    """The page made of these files, by a real build of a book that has no other."""
    shutil.copytree(course.CHAPTERS / "appendix" / "data", root / "chapters" / "appendix" / "data", dirs_exist_ok=True)
    if attacks is not None:
        (root / "chapters" / "appendix" / "data" / "attacks.yaml").write_text(attacks)
    (root / "index.md").write_text(PAGE)
    (root / "_toc.yml").write_text("root: index\n")
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))
    settings = {"extensions": ["myst_parser", "ext.pages", "ext.appendix"], "exclude_patterns": ["chapters"]}
    with patch_docutils(), docutils_namespace():
        app = Sphinx(
            str(root), None, str(root / "out"), str(root / "trees"), "html", settings, status=None, warningiserror=True
        )
        app.build()
    return BeautifulSoup((root / "out" / "index.html").read_text(encoding="utf-8"), "html.parser")


def words_of(root, files):
    return " ".join(built(root, files).get_text(" ").split())


def with_sources(root, slug="additive"):
    """Copies of what decides the judging of a chapter, and of the grader."""
    for path in [*judged.files(slug, course.ROOT), judged.sheet(slug, course.ROOT), *judged.files(None, course.ROOT)]:
        copy = root / path.relative_to(course.ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return root


def append(path, line):
    path.write_text(f"{path.read_text()}{line}\n")


def script(name):
    """A benchmark's module, as it is when it is run."""
    spec = importlib.util.spec_from_file_location(name, course.ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(course.ROOT / "benchmarks"))
        spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_without_recorded_runs_the_page_says_so_and_lists_the_attacks(tmp_path):
    page = built(tmp_path, {})
    words = " ".join(page.get_text(" ").split())
    assert "once attn check has run" in words
    assert "is recorded yet, so this page says nothing about speed" in words
    assert "No run of make soak is recorded yet" in words
    table = page.find("aid-filter", attrs={"keys": "kind outcome"})
    rows = table.select("tbody tr")
    attacks = data.attacks(course.ROOT)
    assert len(rows) == len(attacks) > 100
    assert {row["data-kind"] for row in rows} == {attack.theme for attack in attacks}
    assert [row.find("strong").get_text().replace("’", "'") for row in rows] == [attack.name for attack in attacks]
    for row, attack in zip(rows, attacks, strict=True):
        assert row["data-outcome"] == row.find_all("td")[-1].get_text() == attack.outcome


ROW = "- {{name: {}, theme: shell, tries: This., stopped: That.{}}}\n"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_attack_that_gained_something_is_shown_as_open(tmp_path):
    table = ROW.format("one", ", outcome: gains nothing") + ROW.format("other", ", outcome: open")
    page = built(tmp_path, {}, attacks=table)
    words = " ".join(page.get_text(" ").split())
    assert "1 of 2 attacks gain nothing. Those that still earn points they should not are marked as open: 1." in words
    marked = page.select_one('tr[data-outcome="open"]')
    assert (marked.find("strong").get_text(), marked.find_all("td")[-1].get_text()) == ("other", "open")


def test_an_attack_whose_outcome_nobody_measured_is_not_shown(tmp_path):
    file = tmp_path / "chapters" / "appendix" / "data" / "attacks.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(ROW.format("one", ", outcome: gains nothing") + ROW.format("other", ""))
    with pytest.raises(data.DataError, match="entry 2"):
        data.attacks(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_figure_is_that_of_a_file(tmp_path):
    page = built(tmp_path, {"_build/check.json": CHECK, "benchmarks/results/grading.json": SPEED})
    words = " ".join(page.get_text(" ").split())
    assert (
        "3 of 4 (75 %) mistakes are caught and named , each over 5 sets (2 where there are kernels) of hidden" in words
    )
    assert [cell.get_text(strip=True) for cell in page.select("td.aid-number")[1:4]] == ["3 of 4", "3 of 4", "1 of 2"]
    row = page.select_one('tr[data-chapter="additive"]')
    assert row.find_all("td")[-1].get_text(strip=True) == "slip_3"
    assert [cell.get_text(strip=True) for cell in page.select("td.aid-number")[-3:]] == ["31", "2.3", "1.9"]
    for said in ("2026-10-01", "2 CPU cores", "Python 3.12.1", "python benchmarks/grading.py --students 200"):
        assert said in words


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_long_tests_are_shown_as_recorded(tmp_path):
    page = built(tmp_path, {"benchmarks/results/soak.json": SOAK})
    words = " ".join(page.get_text(" ").split())
    for said in (
        "50 kills held 2026-10-01, 6 min",
        "200 students: 418 MiB; 5000 students: 426 MiB held",
        "additive : 1399 of 1401 mistakes caught and named, over 20 sets of numbers did not hold 2026-10-01, 50 min",
        "Run on 2 CPU cores, Python 3.12.1, with make soak",
    ):
        assert said in words


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_record_of_a_real_check_is_shown_with_its_origin_and_until_something_changed(tmp_path):
    record = tmp_path / "benchmarks" / "results" / "check.json"
    command = [sys.executable, "benchmarks/check.py", "--json", str(record), "--seeds", "1", "additive"]
    done = subprocess.run(command, cwd=course.ROOT, capture_output=True, text=True, check=False)
    assert record.exists(), done.stderr[-3000:]
    found = json.loads(record.read_text())
    assert done.returncode == bool(found["problems"] or any(each["problems"] for each in found["exercises"]))
    mistakes = [mistake for exercise in found["exercises"] for mistake in exercise["mistakes"]]
    assert len(mistakes) == found["total"] == found["caught"] > 100
    assert {tuple(mistake) for mistake in mistakes} == {("name", "caught", "named")}

    words = words_of(with_sources(tmp_path), {})
    assert f"{found['total']} of {found['total']} (100 %) mistakes are caught and named" in words
    commit, day = found["provenance"]["commit"], found["provenance"]["date"][:10]
    assert f"Recorded on {day} from commit {commit[:12]}" in words
    assert "with python benchmarks/check.py --json check.json --seeds 1 additive" in words
    assert "Since then" not in words
    append(tmp_path / "autograder" / "suites" / "kit.py", "# another kit")
    assert "Since then hidden tests, answers or references changed in additive ." in words_of(tmp_path, {})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_check_that_ran_here_is_shown_only_while_it_tells_of_what_is_here(tmp_path, tmp_path_factory):
    here, record = "_build/check.json", "benchmarks/results/check.json"
    kept = {**CHECK, "caught": 2, "judged": {"additive": "0"}, "provenance": ORIGIN}
    fresh = {**CHECK, "judged": {"additive": judged.mark("additive", with_sources(tmp_path))}}

    words = words_of(tmp_path, {here: fresh, record: kept})
    assert "3 of 4 (75 %)" in words
    assert "what attn check came to where this book was built" in words
    assert "Since then" not in words

    sheet = judged.sheet("additive", tmp_path)
    sheet.write_text(sheet.read_text().replace('"points": 3', '"points": 4'))
    words = words_of(tmp_path, {})
    assert "2 of 4 (50 %)" in words
    assert "Recorded on 2026-10-01 from commit 0123456789ab , on 2 CPU cores, Python 3.12.1, with" in words
    assert "changed in additive ." in words

    unfinished = {**CHECK, "exercises": [], "caught": 0, "total": 0}
    assert "once attn check has run" in words_of(tmp_path_factory.mktemp("elsewhere"), {here: unfinished})
    (tmp_path / "chapters" / "flash").mkdir()
    judged.sheet("flash", tmp_path).write_text("# No exercise yet")
    assert "No run is recorded for flash ." in words_of(tmp_path, {here: fresh})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_long_test_is_older_than_what_it_judged_once_that_has_changed(tmp_path):
    with_sources(tmp_path)
    marks = {"kills": judged.mark(None, tmp_path), "check_additive": judged.mark("additive", tmp_path)}
    record = {part: {**SOAK[part], "judged": mark} for part, mark in marks.items()}

    def told():
        page = built(tmp_path, {"benchmarks/results/soak.json": record})
        (table,) = (table for table in page.find_all("table") if "what it judged" in table.get_text())
        return [row.find_all("td")[-1].get_text() for row in table.select("tbody tr")]

    assert told() == ["as it is now"] * 2
    append(tmp_path / "autograder" / "answers" / "additive.py", "# another answer")
    assert told() == ["as it is now", "older than the suite"]
    append(tmp_path / "autograder" / "sandbox" / "jail.py", "# another jail")
    assert told() == ["older than the grader", "older than the suite"]
    record = {part: SOAK[part] for part in marks}  # as they were recorded before there were digests
    assert told() == ["older than the grader", "older than the suite"]


def test_a_part_of_the_soak_records_what_it_judged_unless_that_changed_meanwhile(tmp_path, monkeypatch):
    soak = script("soak")
    monkeypatch.setattr(soak, "ROOT", with_sources(tmp_path))
    answers = tmp_path / "solutions" / "additive.py"
    for program, known in (("", True), (f"open({str(answers)!r}, 'a').write('#')", False)):
        command = [sys.executable, "-c", program]
        monkeypatch.setitem(soak.PARTS, "check_additive", lambda folder, command=command: (command, {}, dict))
        now = judged.mark("additive", tmp_path)
        part = soak.run("check_additive", tmp_path)
        assert part["held"]
        assert part["judged"] == (now if known else None)


def test_finished_parts_of_the_soak_take_the_place_of_older_ones(tmp_path):
    def part(day, **more):
        return {"held": True, **more, "provenance": {**ORIGIN, "date": f"2026-11-{day}T00:00:00+00:00"}}

    ran = {
        "check_additive": part(20, held=False, caught=1),
        "kills": part(20),
        "scale": part(20, held=False, no_report="there is none"),
        "check_sparse": part(20),
    }
    kept = {"check_sparse": part(21), "kills": part(19), "scale": part(18), "check_of_a_chapter_that_is_gone": part(1)}
    (tmp_path / "ran.json").write_text(json.dumps(ran))
    (tmp_path / "kept.json").write_text(json.dumps(kept))
    command = [sys.executable, "benchmarks/soak.py", "--json", tmp_path / "ran.json", "--into", tmp_path / "kept.json"]
    said = subprocess.run(command, cwd=course.ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.partition(" on ")[0] for line in said.splitlines()] == ["check_additive: did not hold", "kills: held"]
    merged = json.loads((tmp_path / "kept.json").read_text())
    assert list(merged.items()) == [
        ("kills", ran["kills"]),
        ("scale", kept["scale"]),
        ("check_additive", ran["check_additive"]),
        ("check_sparse", kept["check_sparse"]),
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_hundred_per_cent_means_all(tmp_path):
    almost = {**CHECK, "caught": 1399, "total": 1401}
    words = " ".join(built(tmp_path, {"_build/check.json": almost}).get_text(" ").split())
    assert "1399 of 1401 (99.8 %) mistakes" in words


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_page_that_waits_for_a_file_is_read_again_once_it_is_there(tmp_path):
    shutil.copytree(course.CHAPTERS / "appendix" / "data", tmp_path / "chapters" / "appendix" / "data")
    (tmp_path / "index.md").write_text("# Page\n\n```{soak-report}\n```\n")
    (tmp_path / "_toc.yml").write_text("root: index\n")
    settings = {"extensions": ["myst_parser", "ext.pages", "ext.appendix"], "exclude_patterns": ["chapters"]}

    def read():
        """What a build reads."""
        seen = []
        with patch_docutils(), docutils_namespace():
            places = [str(tmp_path), None, str(tmp_path / "out"), str(tmp_path / "trees")]
            app = Sphinx(*places, "html", settings, status=None, warningiserror=True)
            app.connect("env-get-outdated", course_ext.freshen)
            app.connect("env-before-read-docs", lambda app, env, docnames: seen.extend(docnames))
            app.build()
        return seen

    assert read() == ["index"]
    assert read() == []
    record = tmp_path / "benchmarks" / "results" / "soak.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps(SOAK))
    assert read() == ["index"]
    assert "50 kills" in (tmp_path / "out" / "index.html").read_text()
    assert read() == []
    with_sources(tmp_path)
    assert read() == ["index"]
    assert read() == []
    append(tmp_path / "autograder" / "suites" / "kit.py", "# another kit")
    assert read() == ["index"]
