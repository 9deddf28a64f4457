"""Nothing hidden leaves: what is planted is found, the real bundle is clean, and a release harms no folder."""

import json
import re
import shutil

import nbformat
import pytest
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from autograder import CourseError, course
from autograder.answers import shelf
from autograder.authoring.leaks import leak_problems
from autograder.authoring.release import ReleaseError, release
from autograder.grading.suite import SUITES

BESIDE = {"release.json", "README.md", ".gitignore", "requirements.txt"}
SLUG, NAME = "scaled_dot_product", "causal_mask"


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The course's chapters in a folder of their own, so that nothing is written to the real ones."""
    for slug in course.slugs():
        shutil.copytree(course.CHAPTERS / slug, tmp_path / "chapters" / slug)
    for name in ("CHAPTERS", "SOURCE", "RELEASE", "BUILD"):
        monkeypatch.setattr(course, name, tmp_path / name.lower())
    return tmp_path


def suite_line():
    """A line of the hidden suite that says something."""
    lines = (SUITES / f"test_{SLUG}.py").read_text().splitlines()
    return next(line.strip() for line in lines if "student." in line and "close(" in line and len(line.strip()) > 60)


def body():
    """The lines of the longest solution below its docstring."""
    definitions = course.solution(SLUG).definitions.values()
    return max((re.split(r'"""\n', d.source)[-1] for d in definitions), key=len)


def secrets():
    return {
        "a line of the suite": (suite_line(), f"suites/test_{SLUG}.py"),
        "a hint of a mistake": (shelf(SLUG).mistakes[NAME][0].hint, f"answers/{SLUG}.py"),
        "a solution": (body(), "holds the solution of"),
    }


SECRETS = ("a line of the suite", "a hint of a mistake", "a solution")


def as_text(path, secret):
    path.with_suffix(".md").write_text(f"Before.\n\n    {secret}\n\nAfter.\n")


def as_notebook(path, secret):
    cells = [nbformat.v4.new_markdown_cell("Harmless."), nbformat.v4.new_code_cell(f"if True:\n{secret}")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path.with_suffix(".ipynb"))


def as_ascii_json(path, secret):
    path.with_suffix(".json").write_text(json.dumps({"a": [{secret: 1}]}, ensure_ascii=True))


def as_page(path, secret):
    page = highlight(secret, PythonLexer(), HtmlFormatter())
    assert "<span" in page
    path.with_suffix(".html").write_text(f"<html><body><p>Harmless</p>{page}</body></html>")


@pytest.mark.parametrize("write", [as_text, as_notebook, as_ascii_json, as_page])
@pytest.mark.parametrize("what", SECRETS)
def test_what_is_planted_is_found(tmp_path, what, write):
    secret, origin = secrets()[what]
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "planted", secret)
    problems = leak_problems([SLUG], [tmp_path])
    assert any(origin in problem and "planted" in problem for problem in problems), problems


def test_text_with_escapes_is_found_in_a_notebook(tmp_path, monkeypatch):
    line = r'assert student.f("a\tb\n") == "\\alpha → \"β\"", "a telling line"'
    monkeypatch.setattr("autograder.authoring.leaks._secrets", lambda slug: ([(line, "a suite")], {}))
    as_notebook(tmp_path / "planted", line)
    as_ascii_json(tmp_path / "other", line)
    assert len(leak_problems([SLUG], [tmp_path])) == 2


def test_what_is_public_is_no_leak(tmp_path):
    for slug in course.slugs():
        for path in course.CHAPTERS.joinpath(slug).glob("*.*"):
            shutil.copy(path, tmp_path / f"{slug}-{path.name}")
    (tmp_path / "stub.py").write_text("def causal_mask(q_seq, kv_seq):\n    raise NotImplementedError\n")
    (tmp_path / "picture.bin").write_text(suite_line())  # not a file that anybody reads
    assert leak_problems(course.slugs(), [tmp_path]) == []


def test_the_real_bundle_is_clean_and_complete(copied):
    slugs = course.slugs()
    folder = release(slugs, copied / "bundle")
    assert leak_problems(slugs, [folder]) == []
    said = json.loads((folder / "release.json").read_text())
    assert said["schema"] == 1
    assert list(said["assignments"]) == slugs
    for slug in slugs:
        text = (folder / slug / "exercises.ipynb").read_text()
        assert text == (course.CHAPTERS / slug / "exercises.ipynb").read_text()
        assert text == (course.RELEASE / slug / "exercises.ipynb").read_text()
        assert "BEGIN SOLUTION" not in text
        entry = said["assignments"][slug]
        assert entry["release"] == json.loads(text)["metadata"]["attention_in_depth"]["release"]
        assert (entry["points"], entry["exercises"]) == (course.sheet(slug).points, len(course.sheet(slug).exercises))
    assert {path.name for path in folder.iterdir()} == {*slugs, *BESIDE}


def test_a_second_release_replaces_the_first_and_keeps_the_repository(copied):
    folder = copied / "bundle"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    release([SLUG], folder)  # a fresh repository is no foreign folder
    (folder / "old.txt").write_text("of an older release")
    (folder / "old").mkdir()
    release([SLUG], folder)
    assert (folder / ".git" / "HEAD").read_text() == "ref: refs/heads/main\n"
    assert not (folder / "old.txt").exists()
    assert not (folder / "old").exists()


def test_a_folder_that_no_release_wrote_is_left_alone(copied):
    folder = copied / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    with pytest.raises(ReleaseError, match="is not empty and holds no release"):
        release([SLUG], folder)
    assert (folder / "chapter.txt").read_text() == "years of work"
    assert [path.name for path in folder.iterdir()] == ["chapter.txt"]


def test_a_bundle_that_would_leak_is_not_left_behind(copied):
    folder = copied / "bundle"
    (folder / ".git").mkdir(parents=True)
    data = course.CHAPTERS / SLUG / "data"
    data.mkdir()
    (data / "notes.txt").write_text(suite_line())
    with pytest.raises(ReleaseError, match="nothing was released") as error:
        release([SLUG], folder)
    assert f"notes.txt holds a line of suites/test_{SLUG}.py" in str(error.value)
    assert [path.name for path in folder.iterdir()] == [".git"]


def test_a_wrong_source_leaves_the_last_release_in_place(copied, monkeypatch):
    folder = release([SLUG], copied / "bundle")
    before = (folder / "release.json").read_text()
    with pytest.raises(CourseError):
        release([SLUG, "no_such_chapter"], folder)
    assert (folder / "release.json").read_text() == before
    assert (folder / SLUG / "exercises.ipynb").is_file()


def test_the_built_book_is_clean(book):
    assert leak_problems(course.slugs(), [book]) == []
