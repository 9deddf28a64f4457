"""How long the book takes to build, how heavy its pages are, and how soon a reader sees them.

    python benchmarks/book.py --json benchmarks/results/book.json

Builds run in a copy of the course: cold (nothing cached, every lesson runs), unchanged, and after one sentence changed.
Pages are then loaded from this machine, each in a fresh browser context, so that nothing is cached.
"""

import argparse
import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

from playwright.sync_api import sync_playwright
from provenance import ROOT, provenance
from pypdf import PdfReader

from autograder.authoring.book import build_book, server
from autograder.authoring.pdf import BROWSERS, print_book, toc_pages

SOURCES = ("_config.yml", "_toc.yml", "index.md", "references.bib", "chapters", "ext", "web", "solutions", "benchmarks")
# The largest thing painted so far, as the browser itself reports it.
PAINTED = """() => new Promise((done) => {
  new PerformanceObserver((list) => done(list.getEntries().at(-1).startTime))
    .observe({ type: "largest-contentful-paint", buffered: true });
  setTimeout(() => done(null), 5000);
})"""


def builds(root):
    """Seconds of a cold build, of one with nothing changed, and of one after a sentence changed in each lesson."""

    def seconds():
        start = time.perf_counter()
        build_book(strict=True, root=root, report=lambda line: None)
        return round(time.perf_counter() - start, 2)

    found = {"cold": seconds(), "unchanged": seconds(), "one_sentence": {}}
    for lesson in sorted(root.glob("chapters/*/lesson.md")):
        lesson.write_text(lesson.read_text(encoding="utf-8") + "\nOne more sentence.\n", encoding="utf-8")
        found["one_sentence"][lesson.parent.name] = seconds()
    return found


def pages(html, names):
    """For each page: bytes asked for on a first visit, in all and of the page alone, and the largest paint."""
    serving = server(html)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{serving.server_address[1]}/"
    browser_path = next(path for name in BROWSERS if (path := shutil.which(name)))
    found = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        for name in names:
            page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            answers = []
            page.on("response", lambda answer, answers=answers: answers.append(answer))
            page.goto(f"{address}{name}.html", wait_until="networkidle")
            sizes = {answer.url: len(answer.body()) for answer in answers}
            painted = page.evaluate(PAINTED)
            # What the theme and the formulas need is the same for every page, and cached after the first.
            ours = {path.name for path in (ROOT / "web").iterdir()}
            own = sum(size for url, size in sizes.items() if "/_static/" not in url or url.rpartition("/")[2] in ours)
            found[name] = {
                "kilobytes_page_and_widgets": round(own / 1000, 1),
                "kilobytes_first_visit": round(sum(sizes.values()) / 1000, 1),
                "largest_paint_seconds": None if painted is None else round(painted / 1000, 3),
            }
            page.context.close()
        browser.close()
    serving.shutdown()
    serving.server_close()
    return found


def main():
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    file = parser.parse_args().json
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in SOURCES:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            else:
                shutil.copy(source, root)
        record = {"builds_seconds": builds(root), "pages": pages(root / "_build" / "html", toc_pages(root))}
        start = time.perf_counter()
        pdf = print_book(root, root / "book.pdf", lambda line: None)
        seconds = round(time.perf_counter() - start, 1)
        printed = {"pages": len(PdfReader(pdf).pages), "megabytes": round(pdf.stat().st_size / 1e6, 2)}
        record["pdf"] = {"seconds": seconds, **printed}
    record = {"schema": 1, "provenance": provenance(), **record}
    text = json.dumps(record, indent=1) + "\n"
    print(text)
    if file is not None:
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
