"""The lesson kit: what it writes is valid, themed, described, and the same every time."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import numpy as np
import pytest
import torch
import yaml
from matplotlib import pyplot as plt

from autograder.authoring.coverage import coverage_problems
from ext import data, freshness, lesson, pages
from ext.appendix import evaluate
from ext.lesson import palette, seeded, show, table, widget


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the kit writes, piece by piece."""
    written: list[str] = []
    monkeypatch.setattr(lesson, "_write", written.append)
    return written


def figure(title: str = "Title"):
    fig, axes = plt.subplots()
    axes.plot([1, 2, 3], [3, 1, 2], label="loss")
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.legend()
    axes.grid()
    return fig


def test_a_figure_is_svg_with_text_that_follows_the_theme(page):
    show(figure(), label="additive-loss", alt="A line that falls and rises again.", caption="Loss of `f` at $n$.")
    svg = ET.fromstring(re.search(r"<svg.*</svg>", page[0], re.S)[0])
    assert svg.get("role") == "img" and svg.get("aria-label") == "A line that falls and rises again."
    assert "step" in page[0] and "<text" in page[0], "text must stay text"
    assert "#000000" not in page[0] and "currentColor" in page[0]
    assert "DejaVu" not in page[0]
    assert "fill: #ffffff" not in page[0], "the background must be left out"
    assert "<code>f</code>" in page[0] and "\\(n\\)" in page[0]
    assert not plt.get_fignums(), "show closes its figure"


def test_ids_are_unique_over_figures_and_every_reference_leads_somewhere(page):
    for name in ("additive-one", "additive-two"):
        show(figure(), label=name, alt="A line that falls and rises again.")
    whole = "".join(page)
    ids = re.findall(r'\sid="([^"]+)"', whole)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', whole)) <= set(ids)


def test_the_same_figure_gives_the_same_bytes(page):
    for _ in range(2):
        show(figure(), label="additive-same", alt="A line that falls and rises again.")
    assert page[0] == page[1]


@pytest.mark.parametrize(
    ("label", "alt"), [("Additive", "three good words"), ("additive-x", ""), ("a b", "one two three")]
)
def test_a_label_or_alt_that_will_not_do_is_refused(page, label, alt):
    fig = figure()
    with pytest.raises(ValueError):
        show(fig, label=label, alt=alt)
    plt.close(fig)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (16_777_216, "16\u202f777\u202f216"),
        (-3, "\u22123"),
        (0.25, "0.25"),
        (0.1 + 0.2, "0.3"),
        (1234.5678, "1\u202f235"),
        (2e-7, "2×10<sup>\u22127</sup>"),
        (float("nan"), "NaN"),
        (float("inf"), "∞"),
        (0.0, "0"),
        (np.float32(0.5), "0.5"),
        (torch.tensor(2.5), "2.5"),
        (None, "–"),
        (True, "yes"),
        ("a < b", "a &lt; b"),
    ],
)
def test_numbers_in_tables_are_written_for_people(value, text):
    assert lesson._cell(value)[0] == text


def test_a_table_has_heads_a_caption_and_is_reachable(page):
    table([["dot", 3], ["additive", None]], ["score", "count"], caption="What it costs")
    assert page[0].count('scope="col"') == 2 and "<caption>What it costs</caption>" in page[0]
    assert 'tabindex="0"' in page[0]
    assert page[0].count("aid-number") == 3, "a column of numbers and blanks is set flush right"
    with pytest.raises(ValueError, match="2 heads"):
        table([[1, 2, 3]], ["a", "b"])


WIDGETS = {
    "matrix": {"rows": ["a", "b"], "columns": ["x"], "layers": [{"name": "one", "values": np.ones((2, 1))}]},
    "softmax": {"labels": ["a", "b"], "scores": torch.tensor([1.0, 2.0])},
    "frames": {"x": [1, 2], "frames": [{"name": "T = 1", "series": [{"name": "w", "values": [0.5, float("nan")]}]}]},
    "mask": {"q_seq": 2, "kv_seq": 3},
    "stepper": {"steps": [{"title": "One", "text": "`x` </script> $y$", "matrices": [{"name": "S", "values": [[1]]}]}]},
}


@pytest.mark.parametrize("kind", WIDGETS)
def test_a_widget_carries_its_data_and_something_to_see_without_javascript(page, kind):
    widget(kind, WIDGETS[kind], label=f"additive-{kind}", alt="A thing to touch here.")
    script = re.search(r'<script type="application/json">(.*?)</script>', page[0], re.S)
    assert json.loads(script[1])
    assert f"<aid-{kind} " in page[0] and page[0].rstrip().endswith("</figure>")
    assert len(re.search(r'<div class="aid-static">(.*?)</div></aid-', page[0], re.S)[1]) > 40
    assert (Path(data.ROOT) / "web" / f"{kind}.js").is_file()


def test_widgets_refuse_data_that_would_fail_in_the_browser(page):
    with pytest.raises(ValueError, match="no widget"):
        widget("pie", {}, label="additive-x", alt="one two three")
    with pytest.raises(ValueError, match="needs layers"):
        widget("matrix", {"rows": [], "columns": []}, label="additive-x", alt="one two three")
    wrong = {**WIDGETS["matrix"], "columns": ["x", "y"]}
    with pytest.raises(ValueError, match="differ in number"):
        widget("matrix", wrong, label="additive-x", alt="one two three")
    with pytest.raises(ValueError, match='"linear" or "log"'):
        widget("frames", {**WIDGETS["frames"], "scale": "root"}, label="additive-x", alt="one two three")
    zero = {"x": [1], "scale": "log", "frames": [{"name": "f", "series": [{"name": "w", "values": [0.0]}]}]}
    with pytest.raises(ValueError, match="'w': values: a logarithmic scale"):
        widget("frames", zero, label="additive-x", alt="one two three")


def test_seeded_fixes_every_source_of_chance():
    first = (seeded(3).normal(), np.random.rand(), torch.rand(1).item())
    assert first == (seeded(3).normal(), np.random.rand(), torch.rand(1).item())


def luminance(colour: str) -> float:
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("background", ["#ffffff", "#14171c"])
def test_every_colour_of_the_palette_can_be_told_from_both_backgrounds(background):
    for name, colour in zip(palette.names, palette, strict=True):
        high, low = sorted((luminance(colour), luminance(background)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 3, name


def test_the_stylesheet_has_the_colours_of_the_palette():
    css = (data.ROOT / "web" / "widgets.css").read_text(encoding="utf-8")
    for name in palette.names:
        assert f"--aid-{name}: {palette[name]};" in css


def test_ink_on_a_colour_is_readable():
    for colour in [*palette, "#ffffff", "#000000", "#0d3563", "#f4f7fb"]:
        high, low = sorted((luminance(colour), luminance(palette.on(colour))), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, colour


# --- the course's data


def test_every_claim_and_mechanism_is_there_once():
    slugs = [chapter.slug for chapter in data.chapters()]
    claims = [claim.id for slug in slugs for claim in data.claims(slug)]
    every = [one for slug in [*slugs, data.APPENDIX] for one in data.mechanisms(slug)]
    assert len(slugs) == 14 and len(claims) == len(set(claims)) == 302
    assert sum(one.kind == "mechanism" for one in every) == 176
    assert len({one.id for one in every}) == len(every)


def test_the_notes_of_the_atlas_name_mechanisms_and_exercises_that_exist():
    known = {one.id for slug in [c.slug for c in data.chapters()] for one in data.mechanisms(slug)}
    for note in data.notes().values():
        assert note.id in known
        if note.exercise:
            slug, _, name = note.exercise.partition("-")
            source = data.ROOT / "chapters" / slug / "exercises.md"
            assert name in {one.name for one in pages.exercises(source)}, note.exercise


def test_the_glossary_has_sixty_terms_in_both_languages():
    terms = yaml.safe_load((data.data_folder() / "glossary.yaml").read_text(encoding="utf-8"))
    assert len(terms) >= 60
    slugs = {chapter.slug for chapter in data.chapters()}
    for term in terms:
        assert term["term"] and term["means"] and term["chapter"] in slugs
        assert re.search(r"[\u4e00-\u9fff]", term["chinese"]), term["term"]


def test_the_cost_formulas_can_all_be_computed_and_agree_with_what_is_known():
    content = json.loads((data.data_folder() / "costs.json").read_text(encoding="utf-8"))
    sizes = {size["name"]: float(size["value"]) for size in content["sizes"]}
    for size in content["sizes"]:
        assert size["value"] in size["options"]
    values = {
        one["name"]: {c["key"]: evaluate(one[c["key"]], sizes) for c in content["columns"] if one[c["key"]]}
        for one in content["mechanisms"]
    }
    full, flash = values["multi-head attention"], values["FlashAttention"]
    assert full["flops"] == flash["flops"] and flash["largest"] < full["largest"]
    assert values["multi-query attention"]["cache"] * sizes["h"] == full["cache"]
    assert full["weights"] == 4 * sizes["d"] ** 2
    # The claim c001-66: 12 heads of 64 over 256 positions make 100 663 296 multiplications.
    bert = {**sizes, "n": 256.0, "d": 768.0, "h": 12.0}
    full_flops = next(one["flops"] for one in content["mechanisms"] if one["name"] == "multi-head attention")
    assert evaluate(full_flops, bert) / 2 == 603_979_776 + 100_663_296


def test_a_formula_may_not_do_anything_else():
    for text in ("__import__('os')", "n.real", "n < 2", "'a' * 3", "print(n)"):
        with pytest.raises((data.DataError, KeyError)):
            evaluate(text, {"n": 1.0})


# --- coverage


@pytest.fixture
def course(tmp_path):
    folder = tmp_path / "chapters" / "appendix" / "data"
    for kind in ("claims", "mechanisms"):
        (folder / kind).mkdir(parents=True)
    (tmp_path / "references.bib").write_text("@article{known2017, title = {T}}\n", encoding="utf-8")
    claim = {"id": "c000-01", "article": 0, "line": "9", "claim": "so", "verdict": "right"}
    entries = [{**claim, "cell": "demo-cell"}, {**claim, "id": "c000-02", "citation": "known2017"}]
    (folder / "claims" / "demo.yaml").write_text(yaml.safe_dump(entries), encoding="utf-8")
    (folder / "mechanisms" / "demo.yaml").write_text("[]\n", encoding="utf-8")
    (tmp_path / "chapters" / "demo").mkdir()
    return tmp_path


def test_a_chapter_without_a_lesson_owes_nothing(course):
    assert coverage_problems("demo", course) == []


def test_coverage_finds_missing_cells_and_sources(course):
    page = course / "chapters" / "demo" / "lesson.md"
    page.write_text("```{code-cell} ipython3\n:label: demo-cell\n1 + 1\n```\n", encoding="utf-8")
    assert coverage_problems("demo", course) == []
    page.write_text(
        "```{code-cell} ipython3\n:tags: [x]\n:label: demo-other\n1\n```\n\n:label: demo-cell\n", encoding="utf-8"
    )
    (course / "references.bib").write_text("", encoding="utf-8")
    problems = coverage_problems("demo", course)
    assert len(problems) == 2 and "demo-cell" in problems[0] and "known2017" in problems[1]
    path = course / "chapters" / "appendix" / "data" / "claims" / "demo.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("cell: demo-cell", "cell: null"), encoding="utf-8")
    assert "neither a cell" in coverage_problems("demo", course)[0]


# --- when a lesson runs again

LESSON = """---
file_format: mystnb
kernelspec: {name: python3, display_name: Python 3}
---
# Title

```{code-cell} ipython3
:label: demo-cell
import helper
from package import part
open("data.json")
```
"""


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "chapters").mkdir()
    (tmp_path / "helper.py").write_text("import deeper\n", encoding="utf-8")
    (tmp_path / "deeper.py").write_text("VALUE = 1\n", encoding="utf-8")
    (tmp_path / "package" / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "package" / "part.py").write_text("", encoding="utf-8")
    (tmp_path / "chapters" / "data.json").write_text("1", encoding="utf-8")
    return tmp_path


def mark(tree: Path, text: str = LESSON) -> str:
    return freshness.fingerprint(text, tree / "chapters", tree)


def test_a_lesson_depends_on_what_its_code_imports_and_names(tree):
    found = {path.relative_to(tree).as_posix() for path in freshness.dependencies(LESSON, tree / "chapters", tree)}
    assert found == {"helper.py", "deeper.py", "package/__init__.py", "package/part.py", "chapters/data.json"}


def test_a_change_of_prose_or_comments_runs_nothing(tree):
    before = mark(tree)
    assert mark(tree, LESSON.replace("# Title", "# Another title\n\nAnd a sentence.")) == before
    (tree / "deeper.py").write_text("# why\nVALUE   =  1\n", encoding="utf-8")
    assert mark(tree) == before


@pytest.mark.parametrize(("name", "text"), [("deeper.py", "VALUE = 2\n"), ("chapters/data.json", "22")])
def test_a_change_in_a_dependency_runs_the_lesson_again(tree, name, text):
    before = mark(tree)
    (tree / name).write_text(text, encoding="utf-8")
    assert mark(tree) != before


def test_the_mark_goes_into_the_header_and_moves_no_line(tree):
    text = freshness.with_fingerprint(LESSON, "abc")
    assert text.count("\n") == LESSON.count("\n")
    header = yaml.safe_load(text.split("---")[1])
    assert header["kernelspec"] == {"name": "python3", "display_name": "Python 3", "depends_on": "abc"}
    assert text.splitlines().index("# Title") == LESSON.splitlines().index("# Title")


def test_exercises_are_read_from_their_source():
    source = data.ROOT / "chapters" / "additive" / "exercises.md"
    found = pages.exercises(source)
    assert [one.name for one in found][:2] == ["softmax", "additive_scores"]
    assert all(one.points > 0 and one.minutes > 0 and one.difficulty in pages.DIFFICULTY for one in found)
