"""The page "How good is this grader?": its tables come from the data files, and it says where there are none."""

import json
import shutil

import pytest
from bs4 import BeautifulSoup
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from autograder import course
from ext import course_ext, data

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
    shutil.copytree(course.CHAPTERS / "appendix" / "data", root / "chapters" / "appendix" / "data")
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
