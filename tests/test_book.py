"""The built book in a real browser: every page, in light and dark, on a wide and a narrow screen, by keyboard alone."""

from __future__ import annotations

import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import matplotlib

matplotlib.use("agg")

import nbformat
import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from browsing import ROOT, needs_chromium, serving
from bs4 import BeautifulSoup
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from playwright.sync_api import Browser, Page
from pypdf import PdfReader

from autograder.authoring import book as book_module
from autograder.authoring import leaks
from autograder.authoring.book import BookError, build_book
from autograder.authoring.lite import build_lite, numpy_edition
from autograder.authoring.pdf import toc_pages
from ext import data, lesson
from ext.exercise_pages import colab_address

SHOTS = ROOT / "_build" / "screenshots"
WIDTHS = (1280, 768, 360)

pytestmark = pytest.mark.browser


def _toc_pages() -> list[str]:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files: list[str] = [toc["root"]]

    def walk(entries: list[dict]) -> None:
        for entry in entries:
            files.append(entry["file"])
            walk(entry.get("sections", []))

    for part in toc["parts"]:
        walk(part["chapters"])
    return [f"{file.removesuffix('.ipynb')}.html" for file in files]


PAGES = [*_toc_pages(), "search.html", "genindex.html"]


def _violations(page: Page, only: str | None = None) -> list[str]:
    # preload: axe would fetch imported stylesheets by itself, and look for them in the wrong place. Formulas and plots
    # are thousands of letters that it would look at one by one, and so is the code of a lesson; the same colours of
    # code are looked at on the exercise pages.
    options: dict[str, Any] = {"preload": False, "resultTypes": ["violations"]}
    if only:
        options["runOnly"] = [only]
    apart = ["mjx-container", "svg.aid-svg g", *(["div.highlight"] if page.url.endswith("/lesson.html") else [])]
    found = Axe().run(page, context={"exclude": [[one] for one in apart]}, options=options).response["violations"]
    return [
        f"{one['id']}: {one['help']}: " + " | ".join(node["html"][:160] for node in one["nodes"][:4])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@contextmanager
def _visit(
    browser: Browser, address: str, path: str, scheme: str = "light", width: int = 1280, **options
) -> Iterator[Page]:
    """A page in a context of its own; what goes wrong on it fails the test."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
    page = context.new_page()
    faults: list[str] = []
    page.on(
        "request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else faults.append(f"asks {r.url}")
    )
    page.on("response", lambda r: faults.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.on("requestfailed", lambda r: faults.append(f"failed {r.url}"))
    page.on("console", lambda m: faults.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.goto(address + path, wait_until="networkidle")
    try:
        yield page
        assert not faults, f"{path}: {faults}"
    finally:
        context.close()


@needs_chromium
@pytest.mark.parametrize("path", [*PAGES, "404.html"])
def test_a_page_stands_alone_and_anyone_can_use_it(browser: Browser, site: str, path: str) -> None:
    """No request goes elsewhere, nothing fails, pictures are described, axe finds nothing serious. In light and
    dark, on a desk, a tablet and a phone, only tables and figures in frames of their own are wider than the screen.
    """
    SHOTS.mkdir(parents=True, exist_ok=True)
    with _visit(browser, site, path, has_touch=True) as page:
        page.wait_for_function("!document.querySelector('.math') || !!window.MathJax?.startup?.promise")
        page.evaluate("window.MathJax?.startup?.promise")
        silent = page.locator(".bd-article").locator(
            "img:not([alt]), img[alt=''], svg[role=img]:not([aria-label], [aria-hidden=true])"
        )
        assert silent.count() == 0, f"{path}: pictures without words: {silent.first.evaluate('e => e.outerHTML')[:200]}"
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                assert wide <= 1, f"{path} is {wide} pixels too wide for a screen of {width}"
                name = f"{path.removesuffix('.html').replace('/', '_')}-{width}-{scheme}.jpg"
                high = min(page.evaluate("document.documentElement.scrollHeight"), 2400)
                area = {"x": 0, "y": 0, "width": width, "height": high}
                page.screenshot(path=SHOTS / name, type="jpeg", quality=60, full_page=True, clip=area)
            page.set_viewport_size({"width": WIDTHS[0], "height": 900})
            if path != "search.html":
                assert _violations(page, "color-contrast" if scheme == "dark" else None) == [], f"{path} in {scheme}"


@needs_chromium
def test_an_address_that_leads_nowhere_leads_home(browser: Browser, site: str) -> None:
    """The page for lost readers works at any depth and looks for its words in the book."""
    page = browser.new_page()
    answer = page.goto(f"{site}chapters/no/such/page.html")
    assert answer is not None and answer.status == 404
    page.get_by_role("searchbox").fill("softmax")
    page.get_by_role("button").click()
    page.wait_for_url(f"{site}search.html?q=softmax")
    page.goto(f"{site}nothing/here")
    page.get_by_role("link", name="front page").click()
    page.wait_for_url(site)
    assert page.get_by_role("heading", name="Attention in Depth").is_visible()
    page.close()


@needs_chromium
def test_search_finds_english_and_chinese(browser: Browser, site: str) -> None:
    """A term, a part of a Chinese term, and a term of two characters all lead to the line of the glossary."""
    terms = data.read_yaml(ROOT / "chapters" / "appendix" / "data" / "glossary.yaml")
    long = next(str(term["chinese"]) for term in terms if len(str(term["chinese"])) > 4)
    short = next(str(term["chinese"]) for term in terms if len(str(term["chinese"])) == 2)
    english = str(next(term["term"] for term in terms if str(term["term"]).isalpha()))
    for words, part in ((english, english), (long, long), (short, short), (long[1:4], long)):
        with _visit(browser, site, f"search.html?q={quote(words)}") as page:
            found = page.locator("#search-results li a[href*='glossary.html']").first
            found.wait_for()
            if words == part:
                assert "#term-" in (found.get_attribute("href") or ""), f"{words!r} leads to the page, not to the line"
            found.click()
            page.locator("table.aid-glossary").wait_for()
            assert page.locator("table.aid-glossary tbody tr", has_text=part).count(), words
    with _visit(browser, site, "search.html?q=zzqqxx") as page:
        page.get_by_text("did not match any documents").wait_for()


@needs_chromium
def test_a_new_reader_on_a_phone_gets_from_the_front_page_to_a_finished_exercise(
    browser: Browser, site: str, tmp_path: Path
) -> None:
    """The first chapter, its list, the notebook, its checks; what is ticked off is remembered, kept and forgotten."""
    with _visit(browser, site, "", width=360, has_touch=True, accept_downloads=True) as page:
        page.get_by_role("article").get_by_role("link", name="Alignment").first.click()
        page.locator("table.aid-exercises a").first.click()
        page.wait_for_url("**/additive/exercises.html#exercise-additive-softmax")
        page.get_by_text("How to open and use it").click()
        assert page.get_by_text("jupyter lab exercises.ipynb").is_visible()
        assert (page.get_by_role("link", name="Open in Colab").get_attribute("href") or "").endswith(
            "/attention-exercises/blob/main/additive/exercises.ipynb"
        )
        with page.expect_download() as download:
            page.get_by_role("link", name="Download the notebook").click()
        notebook = tmp_path / "exercises.ipynb"
        download.value.save_as(notebook)
        _finish_softmax(notebook)

        hint = page.locator("details", has_text="keepdims").first
        assert not hint.evaluate("e => e.open")
        box = page.locator("aid-done[exercise='additive-softmax'] input")
        box.check()
        assert page.locator(".aid-start .aid-howfar").inner_text() == "1 of 8 done"
        page.goto(f"{site}chapters/additive/lesson.html")
        assert page.locator("table.aid-exercises input").evaluate_all("all => all.map((one) => one.checked)") == [
            True,
            *[False] * 7,
        ]
        page.goto(site)
        whole = page.locator("aid-progress[keep]")
        assert whole.locator(".aid-howfar").inner_text().startswith("1 of ")
        with page.expect_download() as download:
            whole.get_by_role("button", name="Save").click()
        kept = tmp_path / "progress.json"
        download.value.save_as(kept)
        assert list(json.loads(kept.read_text(encoding="utf-8"))["done"]) == ["additive-softmax"]
        page.on("dialog", lambda dialog: dialog.accept())
        whole.get_by_role("button", name="Start over").click()
        assert whole.locator(".aid-howfar").inner_text().startswith("0 of ")
        whole.locator("input[type=file]").set_input_files(notebook)
        whole.get_by_text("no file of progress").wait_for()
        whole.locator("input[type=file]").set_input_files(kept)
        whole.get_by_text("Restored 1.").wait_for()
        assert whole.locator(".aid-howfar").inner_text().startswith("1 of ")


def _finish_softmax(path: Path) -> None:
    """Do the first exercise in the downloaded notebook as a student would, and run it up to its checks."""
    notebook = nbformat.read(path, as_version=4)
    places = {cell.metadata.get("nbgrader", {}).get("grade_id"): k for k, cell in enumerate(notebook.cells)}
    checks = places["additive-softmax-tests"]
    notebook.cells = notebook.cells[: checks + 1]
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": path.parent}})
    with pytest.raises(CellExecutionError, match="NotImplementedError"):
        client.execute()
    cell = notebook.cells[places["additive-softmax"]]
    body = "e = np.exp(scores - scores.max(axis=axis, keepdims=True))\n    return e / e.sum(axis=axis, keepdims=True)"
    cell.source = cell.source.replace("raise NotImplementedError", body)
    client.execute()
    assert "pass" in notebook.cells[checks].outputs[-1].text


@needs_chromium
def test_the_whole_book_prints_into_one_file(book: Path, tmp_path: Path) -> None:
    """Every page is there and in the outline, links lead within the file, and formulas are set."""
    # In a process of its own: this one has a browser open already.
    start = "import sys; from pathlib import Path; from autograder.authoring.pdf import print_book"
    start += "; print_book(Path(sys.argv[1]), Path(sys.argv[2]))"
    subprocess.run([sys.executable, "-c", start, str(ROOT), str(tmp_path / "book.pdf")], check=True, cwd=ROOT)
    reader = PdfReader(tmp_path / "book.pdf")
    outline = [entry for entry in reader.outline if not isinstance(entry, list)]
    names = toc_pages(ROOT)
    assert [f"{name}.html" for name in names] == _toc_pages()
    assert len(outline) == len(names)
    for name, entry in zip(names, outline, strict=True):
        page = BeautifulSoup((book / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
        heading = page.select_one("article h1")
        assert heading is not None
        assert entry.title.split() == heading.get_text().replace("#", "").split()
    links = [link.get_object() for page in reader.pages for link in page.get("/Annots", [])]
    outside = [str(link["/A"]["/URI"]) for link in links if "/URI" in link.get("/A", {})]
    assert not [address for address in outside if "127.0.0.1" in address]
    assert len(links) - len(outside) > 200
    text = "".join(page.extract_text() for page in reader.pages)
    assert "\\frac" not in text and "\\operatorname" not in text
    assert "Save to a file" not in text


# --- the widgets, on a page of their own


EVERY = {
    "matrix": {
        "rows": ["a", "b"],
        "columns": ["x", "y", "z"],
        "layers": [
            {"name": "before", "values": [[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]},
            {"name": "after", "values": [[0.0, 0.0, 1.0], [0.5, -0.5, None]]},
        ],
        "row_title": "query",
        "column_title": "key",
        "value_title": "weight",
    },
    "softmax": {"labels": ["cat", "dog", "mat"], "scores": [2.0, 1.0, 0.1], "temperature": 1.0},
    "frames": {
        "x": [1, 2, 3],
        "x_title": "key",
        "y_title": "weight",
        "slider_title": "width",
        "frames": [
            {"name": "d = 8", "series": [{"name": "raw", "values": [0.1, 0.2, 0.7]}]},
            {"name": "d = 64", "series": [{"name": "raw", "values": [0.0, 0.0, 1.0]}]},
        ],
    },
    "mask": {"q_seq": 3, "kv_seq": 4, "lengths": 3, "window": 2},
    "stepper": {
        "steps": [
            {
                "title": "First",
                "text": "Take `m`.",
                "matrices": [{"name": "S", "values": [[1, 2]], "highlight": [[0, 1]]}],
            },
            {"title": "Second", "text": "Rescale.", "matrices": []},
            {"title": "Third", "text": "Done."},
        ]
    },
}


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page with one widget of each kind, served with the book's own styles and modules."""
    folder = tmp_path_factory.mktemp("bench")
    for file in (ROOT / "web").iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    written: list[str] = []
    original, lesson._write = lesson._write, written.append
    try:
        for kind, content in EVERY.items():
            lesson.widget(kind, content, label=f"bench-{kind}", alt=f"A widget of kind {kind} to try.")
    finally:
        lesson._write = original
    costs = json.loads((ROOT / "chapters" / "appendix" / "data" / "costs.json").read_text(encoding="utf-8"))
    written.append(
        '<aid-costs role="group" aria-label="Costs"><script type="application/json">'
        f'{json.dumps(costs)}</script><div class="aid-static">table</div></aid-costs>'
    )
    lines = "".join(f'<tr data-kind="{kind}"><td>line {kind}</td></tr>' for kind in ("red", "blue", "red"))
    written.append(
        f'<aid-filter keys="kind"><table><thead><tr><th>a</th></tr></thead><tbody>{lines}</tbody></table></aid-filter>'
    )
    (folder / "index.html").write_text(
        '<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>Bench</title>'
        '<link rel="icon" href="favicon.svg"><link rel="stylesheet" href="widgets.css">'
        '<script type="module" src="widgets.js"></script></head>'
        f'<body style="background: white"><main><h1>Bench</h1>{"".join(written)}</main></body></html>',
        encoding="utf-8",
    )
    with serving(folder) as address:
        yield address


@needs_chromium
def test_the_matrix_is_read_by_arrow_keys_and_keeps_its_place_between_layers(browser: Browser, bench: str) -> None:
    with _visit(browser, bench, "") as page:
        box = page.locator("aid-matrix")
        box.locator("td[tabindex='0']").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        reading = box.locator(".aid-reading")
        assert reading.inner_text() == "query b, key y: weight 0.3"
        page.keyboard.press("End")
        assert "key z" in reading.inner_text()
        page.keyboard.press("ArrowRight")  # at the edge: stays
        assert "key z" in reading.inner_text()
        box.locator("input[type=radio]").first.focus()
        page.keyboard.press("ArrowRight")
        assert reading.inner_text() == "query b, key z: weight –"
        assert box.locator("td[tabindex='0']").count() == 1, "one stop for the Tab key"


@needs_chromium
def test_softmax_follows_its_sliders(browser: Browser, bench: str) -> None:
    with _visit(browser, bench, "") as page:
        box = page.locator("aid-softmax")
        weights = box.locator(".aid-barvalue")
        assert weights.all_inner_texts() == ["0.659", "0.242", "0.099"]
        assert "effective support 2.33 of 3" in box.locator(".aid-reading").inner_text()
        heat = box.get_by_label("temperature")
        heat.focus()
        page.keyboard.press("Home")  # temperature 0: the largest takes all
        assert weights.all_inner_texts() == ["1.000", "0.000", "0.000"]
        assert "effective support 1 of 3" in box.locator(".aid-reading").inner_text()
        page.keyboard.press("End")
        assert float(weights.first.inner_text()) < 0.5
        assert heat.get_attribute("aria-valuetext") == "5.00"


@needs_chromium
def test_frames_step_and_are_read_off(browser: Browser, bench: str) -> None:
    with _visit(browser, bench, "") as page:
        box = page.locator("aid-frames")
        before = box.locator("path.aid-line").get_attribute("d")
        box.get_by_label("width").focus()
        page.keyboard.press("ArrowRight")
        assert box.locator("path.aid-line").get_attribute("d") != before
        box.get_by_label("read off at key").focus()
        page.keyboard.press("End")
        assert box.locator(".aid-reading").inner_text() == "d = 64, key 3: raw 1"


@needs_chromium
def test_bars_on_a_logarithmic_scale_are_all_seen(browser: Browser, site: str) -> None:
    """The cache of nine models: every bar has a height at every length, every model its name, one decade one step."""
    with _visit(browser, site, "chapters/multi_head/lesson.html") as page:
        box = page.locator("aid-frames").filter(has=page.get_by_label("read off at model"))
        lengths = int(box.get_by_role("slider", name="length").get_attribute("max") or 0)
        names = box.locator("svg text[transform*='rotate(-35)']").all_text_contents()
        assert len(names) == 9 and len(set(names)) == 9
        box.get_by_role("slider", name="length").focus()
        grew = []
        for _ in range(lengths):
            heights = [float(bar.get_attribute("height") or 0) for bar in box.locator("svg rect").all()]
            assert len(heights) == 18 and min(heights) > 1
            page.keyboard.press("ArrowRight")
            after = [float(bar.get_attribute("height") or 0) for bar in box.locator("svg rect").all()]
            grew.append({round(b - a, 1) for a, b in zip(heights, after, strict=True)})
        assert all(len(steps) == 1 for steps in grew), "on this scale the same factor is the same height for all"


@needs_chromium
def test_masks_combine_as_the_course_defines_them(browser: Browser, bench: str) -> None:
    with _visit(browser, bench, "") as page:
        box = page.locator("aid-mask")
        count = box.locator(".aid-count")
        assert count.inner_text().startswith("9 of 12 pairs")  # causal, bottom-right: 2 + 3 + 4
        box.get_by_label("padding").focus()
        page.keyboard.press("Space")
        assert count.inner_text().startswith("8 of 12 pairs")
        box.get_by_label("window", exact=True).focus()
        page.keyboard.press("Space")
        assert count.inner_text().startswith("5 of 12 pairs")
        box.get_by_label("valid keys").focus()
        page.keyboard.press("Home")
        assert "Nothing to attend to for query 0, 1, 2" in count.inner_text()


@needs_chromium
def test_the_stepper_goes_both_ways_and_keeps_the_focus(browser: Browser, bench: str) -> None:
    with _visit(browser, bench, "") as page:
        box = page.locator("aid-stepper")
        assert box.locator("td.aid-lit").inner_text() == "2"
        box.get_by_role("button", name="next").focus()
        page.keyboard.press("Enter")
        page.keyboard.press("ArrowRight")
        assert box.locator("h4").inner_text() == "Third"
        assert box.get_by_role("button", name="next").is_disabled()
        page.keyboard.press("ArrowLeft")
        assert "step 2 of 3" in box.locator(".aid-where").inner_text()


@needs_chromium
def test_the_calculator_agrees_with_the_formulas(browser: Browser, bench: str) -> None:
    with _visit(browser, bench, "") as page:
        box = page.locator("aid-costs")
        first = box.locator("tbody tr").first.locator("td")
        assert first.all_inner_texts() == ["825 billion", "1 GiB", "67.1 million", "64 MiB", "201 million"]
        box.get_by_label("length n").focus()
        page.keyboard.press("ArrowRight")
        assert first.nth(1).inner_text() == "4 GiB"
        box.get_by_label("formulas of").select_option("linear attention")
        assert "b*(d*d/h + d)*e" in box.locator("dl").inner_text()


@needs_chromium
def test_the_filter_hides_what_does_not_fit_and_says_how_much_is_left(browser: Browser, bench: str) -> None:
    with _visit(browser, bench, "") as page:
        box = page.locator("aid-filter")
        box.get_by_label("kind").select_option("blue")
        assert box.locator("tbody tr:visible").all_inner_texts() == ["line blue"]
        box.get_by_label("words").fill("nothing")
        assert box.locator(".aid-count").inner_text() == "0 of 3 lines"


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_the_widgets(browser: Browser, bench: str, scheme: str) -> None:
    with _visit(browser, bench, "", scheme) as page:
        assert _violations(page) == []


@needs_chromium
def test_without_javascript_there_is_something_to_read(browser: Browser, bench: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(bench)
    for kind in EVERY:
        assert len(page.locator(f"aid-{kind} .aid-static").inner_text().strip()) > 20 or (
            page.locator(f"aid-{kind} .aid-static svg").count() == 1
        )
    context.close()


# --- what needs no browser


class _Anchors(HTMLParser):
    """The ids and the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name == "id":
                self.ids.append(value)
            elif (tag, name) in {("a", "href"), ("img", "src"), ("script", "src"), ("link", "href")}:
                self.links.append(value)


@cache
def _anchors(path: Path) -> _Anchors:
    parser = _Anchors()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


@pytest.mark.parametrize("path", PAGES)
def test_every_link_within_the_book_leads_somewhere(book: Path, path: str) -> None:
    page = book / path
    broken = []
    for link in _anchors(page).links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        target = target / "index.html" if target.is_dir() else target
        is_page = target.is_file() and target.suffix == ".html"
        lost = bool(parts.fragment) and is_page and unquote(parts.fragment) not in _anchors(target).ids
        if not target.is_file() or lost:
            broken.append(link)
    assert not broken, f"{path}: {sorted(set(broken))}"


@pytest.mark.parametrize("path", PAGES)
def test_no_id_stands_twice_on_a_page(book: Path, path: str) -> None:
    ids = _anchors(book / path).ids
    assert sorted({one for one in ids if ids.count(one) > 1}) == []


def test_the_exercise_page_offers_the_very_notebook(book: Path) -> None:
    for page in sorted(book.glob("chapters/*/exercises.html")):
        source = ROOT / "chapters" / page.parent.name / "exercises.ipynb"
        offered = [
            page.parent / link for link in _anchors(page).links if "_downloads" in link and link.endswith(".ipynb")
        ]
        assert offered and all(path.read_bytes() == source.read_bytes() for path in offered)


def test_nothing_hidden_is_in_the_book(book: Path) -> None:
    """No file of the grader or the solutions, and no line that only they hold; what students are given is no secret."""
    hidden = [*(ROOT / "autograder" / "suites").glob("test_*.py"), *(ROOT / "autograder" / "answers").glob("*.py")]
    for file in [*hidden, *(ROOT / "solutions").glob("*.py")]:
        assert not list(book.rglob(file.name)), file.name
    given = "\n".join("\n".join(leaks._strings(json.loads(path.read_text(encoding="utf-8"))))
                      for path in (ROOT / "chapters").glob("*/exercises.ipynb"))  # fmt: skip
    lines: set[str] = set()
    for file in hidden:
        for line in file.read_text(encoding="utf-8").splitlines():
            line = line.strip()
            if len(line) > 60 and not line.startswith(("from ", "import ", "#", '"""')) and line not in given:
                lines.add(line)
    assert len(lines) > 2000
    for page in [*book.rglob("*.html"), *book.rglob("*.ipynb"), *book.rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        text = html.unescape(re.sub(r"<[^>]+>", "", text)) if page.suffix == ".html" else text
        assert not {line for line in lines if line in text}, page


def test_a_chapter_has_one_number_everywhere(book: Path) -> None:
    """Title, sidebar and the map of the front page number a chapter alike, also where chapters before it are coming."""
    front = (book / "index.html").read_text(encoding="utf-8")
    seen = 0
    for number, chapter in enumerate(data.chapters(), start=1):
        page = book / "chapters" / chapter.slug / "lesson.html"
        if not chapter.lesson().is_file():
            continue
        seen += 1
        title = re.search(r'<h1><span class="section-number">([\d.]+?)\.? </span>', page.read_text(encoding="utf-8"))
        assert title is not None and title[1] == str(number), chapter.slug
        beside = re.search(rf'href="chapters/{chapter.slug}/lesson.html">\s*(\d+)\. ', front)
        assert beside is not None and beside[1] == str(number), chapter.slug
        assert f">{number}. {chapter.title.split()[0]}" in front, f"{chapter.slug} on the map"
    assert seen >= 5


def test_a_build_that_cannot_work_says_why(tmp_path: Path) -> None:
    with pytest.raises(BookError, match=r"_config\.yml"):
        build_book(root=tmp_path, report=lambda line: None)
    for name in ("_config.yml", "_toc.yml", "index.md", "chapters/demo/exercises.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(BookError, match="attn build demo"):
        build_book(root=tmp_path, report=lambda line: None)


# --- a small copy of the book, to plant faults in


LESSON = """---
file_format: mystnb
kernelspec:
  name: python3
  display_name: Python 3
---

# A lesson

One sentence.

$$ a = b $$ (named)

Equation {eq}`named` is cited {cite:p}`one`.

```{code-cell} ipython3
:label: additive-sum
print(20 + 3)
```

```{bibliography}
:filter: docname in docnames
```
"""
FAULTS = {
    "broken link": ("[there](nowhere.md)", r"nowhere"),
    "broken reference": ("See {ref}`no-such-place`.", r"no-such-place"),
    "missing alt text": ("![](../../web/favicon.svg)", r"without alternative text"),
    "undefined citation": ("So they say {cite:p}`nobody2099`.", r"nobody2099"),
    "unreferenced label": ("(lonely)=\n## A place\n", r"refers to the label 'lonely'"),
    "unreferenced equation": ("$$ c = d $$ (alone)", r"refers to the label 'alone'"),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A book of three pages with the real settings, extension and data."""
    root = tmp_path_factory.mktemp("small")
    for folder in ("web", "chapters/appendix/data"):
        shutil.copytree(ROOT / folder, root / folder)
    shutil.copy(ROOT / "_config.yml", root)
    chapter = {"file": "chapters/additive/lesson"}
    toc = {
        "format": "jb-book",
        "root": "index",
        "parts": [{"caption": "Part", "chapters": [chapter, {"file": "terms"}]}],
    }
    (root / "_toc.yml").write_text(yaml.safe_dump(toc), encoding="utf-8")
    (root / "index.md").write_text("# Small\n\nA front page.\n", encoding="utf-8")
    (root / "terms.md").write_text("# Terms\n\n```{index} quokka\n```\n\nAn animal.\n", encoding="utf-8")
    (root / "references.bib").write_text(
        "@misc{one, author={Ada Byron}, title={Notes}, year={1843}}\n", encoding="utf-8"
    )
    (root / "chapters" / "additive").mkdir()
    (root / "chapters" / "additive" / "lesson.md").write_text(LESSON, encoding="utf-8")
    return root


def _told(root: Path) -> str:
    lines: list[str] = []
    build_book(strict=True, root=root, report=lines.append)
    return "\n".join(lines)


def test_building_again_runs_only_what_changed_and_forgets_no_page(small: Path) -> None:
    lesson_page = small / "chapters" / "additive" / "lesson.md"
    assert "running chapters/additive/lesson" in _told(small)
    for old, new, runs in (("One sentence.", "Another sentence.", False), ("20 + 3", "20 + 5", True)):
        lesson_page.write_text(lesson_page.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
        told = _told(small)
        assert "writing chapters/additive/lesson" in told
        assert ("running chapters/additive/lesson" in told) == runs
    html = small / "_build" / "html"
    page = (html / "chapters" / "additive" / "lesson.html").read_text(encoding="utf-8")
    assert "Another sentence." in page and "25" in page
    base = yaml.safe_load((small / "_config.yml").read_text(encoding="utf-8"))["html"]["baseurl"]
    addresses = re.findall("<loc>(.*)</loc>", (html / "sitemap.xml").read_text(encoding="utf-8"))
    assert addresses == [f"{base}{page}.html" for page in ("chapters/additive/lesson", "index", "terms")]
    card = re.search(f'property="og:image" content="{base}([^"]+)"', page)
    assert card is not None and (html / card[1]).is_file()
    assert "issues/new?title=Error%20on%20chapters%2Fadditive%2Flesson" in page


def test_search_still_leads_to_the_line_after_a_rebuild(small: Path) -> None:
    """A page that a later build leaves as it is keeps its entries in the search index."""
    lesson_page = small / "chapters" / "additive" / "lesson.md"
    _told(small)
    lesson_page.write_text(lesson_page.read_text(encoding="utf-8").replace("sentence", "phrase"), encoding="utf-8")
    told = _told(small)
    assert "writing chapters/additive/lesson" in told and "writing terms" not in told
    index = (small / "_build" / "html" / "searchindex.js").read_text(encoding="utf-8")
    entries = re.search(r'"indexentries": \{.*?\}', index)
    assert entries is not None and '"quokka"' in entries[0]


def test_each_planted_fault_fails_the_build(small: Path, tmp_path: Path) -> None:
    """One build with all of them: each is named, with the page where it is."""
    root = tmp_path / "faulty"
    shutil.copytree(small, root, ignore=shutil.ignore_patterns("_build"))
    planted = "\n\n".join(text for text, _ in FAULTS.values())
    (root / "chapters" / "additive" / "lesson.md").write_text(f"{LESSON}\n{planted}\n", encoding="utf-8")
    with pytest.raises(BookError) as failure:
        build_book(strict=True, root=root, report=lambda line: None)
    problems = str(failure.value).splitlines()
    for fault, (_, words) in FAULTS.items():
        told = [line for line in problems if re.search(words, line)]
        assert told, f"{fault} went unnoticed"
        assert "chapters/additive/lesson" in told[0], told


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("checking consistency... WARNING: a.bib: nothing", ["checking consistency...", "WARNING: a.bib: nothing"]),
        ("reading sources... [ 25%] chapters/x/lesson", ["reading sources... [ 25%] chapters/x/lesson"]),
        (
            "reading sources... [ 5%] a/b {root}/a/b.md:3: WARNING: c",
            ["reading sources... [ 5%] a/b", "{root}/a/b.md:3: WARNING: c"],
        ),
        (
            "looking for now-outdated files... {root}/a.md: WARNING: c",
            ["looking for now-outdated files...", "{root}/a.md: WARNING: c"],
        ),
        ("{root}/a.md: WARNING: one... two", ["{root}/a.md: WARNING: one... two"]),
    ],
)
def test_a_problem_behind_progress_on_one_line_is_seen(line: str, parts: list[str], tmp_path: Path) -> None:
    told = line.replace("{root}", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", f"print({told!r})"], stdout=subprocess.PIPE, text=True) as process:
        found = list(book_module._lines(process, tmp_path))
    assert found == [part.replace("{root}", str(tmp_path)) for part in parts]
    assert bool(book_module.PROBLEM.match(found[-1])) == ("WARNING" in line)


def test_plain_sphinx_builds_the_same_tree(small: Path, tmp_path: Path) -> None:
    """Without jupyter-book: its settings written out once, its own extensions left out."""
    root = tmp_path / "plain"
    shutil.copytree(small, root, ignore=shutil.ignore_patterns("_build"))
    (root / "chapters" / "additive" / "lesson.md").write_text(LESSON, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "config", "sphinx", str(root)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    settings = (root / "conf.py").read_text(encoding="utf-8")
    for own in ("jupyter_book", "sphinx_jupyterbook_latex", "sphinx_thebe", "sphinx_comments"):
        settings = settings.replace(f"'{own}', ", "")
    (root / "conf.py").write_text(settings, encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "-n", "--keep-going", str(root), str(root / "html")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (root / "html" / "chapters" / "additive" / "lesson.html").read_text(encoding="utf-8")
    assert "23" in page and "Byron 1843" in page and (root / "html" / "404.html").is_file()


# --- the exercises that run in a page


def test_the_numpy_edition_leaves_out_torch_and_what_builds_on_it() -> None:
    """What is left names no torch and keeps its checks; a chapter that is torch throughout has no edition."""
    notebook = nbformat.read(ROOT / "chapters" / "additive" / "exercises.ipynb", as_version=4)
    edition = numpy_edition(notebook)
    assert edition is not None
    nbformat.validate(edition)
    code = "\n".join(cell.source for cell in edition.cells if cell.cell_type == "code")
    assert "def softmax(" in code and "def attend(" in code
    assert "import torch" not in code and "AdditiveAttention" not in code and "BahdanauDecoderStep" not in code
    kept = {cell.metadata.get("nbgrader", {}).get("grade_id") for cell in edition.cells}
    assert {"additive-softmax", "additive-softmax-tests"} <= kept
    only_torch = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("import torch\n\ndef helper(x):\n    return torch.relu(x)"),
            nbformat.v4.new_markdown_cell("## 1. One"),
            nbformat.v4.new_code_cell("def one(x):\n    return helper(x)"),
        ]
    )
    assert numpy_edition(only_torch) is None


@needs_chromium
@pytest.mark.skipif(
    not importlib.util.find_spec("jupyterlite_core"), reason="pip install jupyterlite-core jupyterlite-pyodide-kernel"
)
def test_the_lite_site_opens_a_notebook_and_asks_one_host_alone(browser: Browser, tmp_path: Path) -> None:
    """The site shows the notebook without a network; only its kernel asks the host that the page names."""
    shutil.copytree(ROOT / "chapters" / "additive", tmp_path / "chapters" / "additive")
    built = build_lite(tmp_path, lambda line: None)
    assert json.loads((built / "chapters.json").read_text(encoding="utf-8")) == ["additive"]
    with serving(built) as address:
        page = browser.new_page()
        asked: set[str | None] = set()
        page.on("request", lambda request: asked.add(urlsplit(request.url).hostname))
        page.goto(f"{address}lab/index.html?path=additive/exercises.ipynb")
        page.locator(".jp-Notebook h2", has_text="Softmax").wait_for(timeout=120_000)
        assert asked - {"127.0.0.1", None} <= {"cdn.jsdelivr.net"}
        page.close()


def test_colab_opens_what_is_on_github_alone() -> None:
    assert colab_address("https://github.com/uni/attention.git", "v2", "additive") == (
        "https://colab.research.google.com/github/uni/attention/blob/v2/additive/exercises.ipynb"
    )
    assert colab_address("https://gitlab.com/uni/attention", "main", "additive") is None
    assert colab_address("", "main", "additive") is None
