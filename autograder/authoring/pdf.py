"""The whole book as one PDF: the built pages joined into one, and printed by a headless Chromium.

Joining what was built, rather than building again for print, shows every page as readers know it: formulas set, widgets
at their first state, links between pages as links within the file, and an outline from the headings.
"""

from __future__ import annotations

import posixpath
import shutil
import subprocess
import threading
from collections.abc import Callable
from html import escape
from pathlib import Path
from urllib.parse import urldefrag, urlsplit

import yaml
from bs4 import BeautifulSoup, Tag

from autograder.authoring.book import BookError, server

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WHOLE = "whole.html"
FOOTER = (
    '<div style="font: 8px sans-serif; color: #565e6a; width: 100%; padding: 0 15mm; display: flex; '
    'justify-content: space-between"><span>{title}</span><span class="pageNumber"></span></div>'
)
# Formulas are set before anything is printed, and hints and answers are unfolded. Code that a page folds stays out: it
# draws the figures that are there.
READY = """async () => {
  document.querySelectorAll("details:not(.hide)").forEach((one) => { one.open = true; });
  const waiting = () => document.querySelector(".math") && !window.MathJax?.startup?.promise;
  while (waiting()) await new Promise((go) => setTimeout(go, 50));
  await window.MathJax?.startup.promise;
  await document.fonts.ready;
}"""


def toc_pages(root: Path) -> list[str]:
    """The names of the book's pages, without suffix, in the order of `_toc.yml`."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    found: list[str] = [toc["root"]]

    def walk(entries: list[dict[str, object]]) -> None:
        for entry in entries:
            found.append(str(entry["file"]).removesuffix(".ipynb").removesuffix(".md"))
            walk(entry.get("sections", []))  # type: ignore[arg-type]

    for part in toc.get("parts", [toc]):
        walk(part.get("chapters", []))
    return found


def join(html: Path, names: list[str]) -> str:
    """The articles of all pages as one page, whose links lead from one to the other.

    Args:
        html: the folder of the built book.
        names: its pages in order, the front page first.

    Raises:
        BookError: one of them is not there.
    """
    missing = [name for name in names if not (html / f"{name}.html").is_file()]
    if missing:
        raise BookError(f"the built book lacks {', '.join(missing)}: run `attn book` first")
    whole = BeautifulSoup("<!doctype html>", "html.parser")
    root = whole.new_tag("html", attrs={"lang": "en", "data-theme": "light", "data-mode": "light"})
    head, body = whole.new_tag("head"), whole.new_tag("main", attrs={"class": "bd-article aid-whole"})
    seen: set[str] = set()
    for number, name in enumerate(names):
        page = BeautifulSoup((html / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
        article = page.select_one("article.bd-article")
        if article is None:
            raise BookError(f"{name}.html has no article")
        for tag in article.select("script[src], .headerlink, .aid-report, .aid-keep, aid-progress, aid-done"):
            tag.decompose()
        # Styles, formulas and widgets; the theme's scripts look for a sidebar that a print does not have.
        for tag in page.select("meta[charset], title, link[rel=stylesheet], style, script"):
            wanted = tag.name != "script" or any(part in str(tag) for part in ("mathjax", "MathJax", "widgets.js"))
            if wanted and tag.find_parent(["article", "noscript"]) is None:
                _readdress(tag, name, names)
                if str(tag) not in seen and (tag.name != "title" or not number):
                    head.append(tag.extract())
                    seen.add(str(tag))
        for tag in article.find_all(True):
            _rename(tag, number)
            _readdress(tag, name, names)
        article.name = "section"
        article["id"] = f"page{number}"
        body.append(article)
    root.extend([head, body])
    whole.append(root)
    return str(whole)


def _rename(tag: Tag, number: int) -> None:
    """Make an id, and what refers to it, unique in the whole; drawings have names of their own."""
    if tag.name == "svg" or tag.find_parent("svg") is not None:
        return
    for key in ("id", "for", "aria-labelledby", "aria-describedby"):
        if tag.get(key):
            tag[key] = f"page{number}-{tag[key]}"


def _readdress(tag: Tag, name: str, names: list[str]) -> None:
    """Make an address on the page `name` one on the whole, where links between pages stay within it."""
    for key in ("href", "src"):
        address = tag.get(key)
        if not isinstance(address, str) or urlsplit(address).scheme or address.startswith("//"):
            continue
        path, place = urldefrag(address)
        target = (
            posixpath.normpath(posixpath.join(posixpath.dirname(name), urlsplit(path).path)) if path else f"{name}.html"
        )
        known = target.removesuffix(".html")
        if tag.name == "a" and known in names:
            tag[key] = f"#page{names.index(known)}-{place}" if place else f"#page{names.index(known)}"
        elif path:
            tag[key] = f"{target}#{place}" if place else target


def print_book(root: Path, target: Path, report: Callable[[str], None] = print) -> Path:
    """Print the built book into one PDF.

    Args:
        root: the course's root, with a built book in `_build/html`.
        target: the file to write.
        report: called with each line of progress.

    Raises:
        BookError: no browser, no built book, or the browser failed.
    """
    from playwright.sync_api import Error, sync_playwright

    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise BookError("printing needs Chromium: `make system`, or `apt-get install chromium`")
    html = root / "_build" / "html"
    names = toc_pages(root)
    title = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["title"]
    if not _output_of("fc-list", ":lang=zh"):
        report("No Chinese font here: Chinese terms print as boxes. On Debian: apt-get install fonts-noto-cjk")
    report(f"joining {len(names)} pages")
    page_file = html / WHOLE
    page_file.write_text(join(html, names), encoding="utf-8")
    serving = server(html)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    try:
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
            page = chromium.new_page(viewport={"width": 1000, "height": 1400})
            page.set_default_timeout(600_000)
            page.goto(f"http://127.0.0.1:{serving.server_address[1]}/{WHOLE}", wait_until="networkidle")
            report("setting formulas")
            page.evaluate(READY)
            report("printing")
            page.pdf(
                path=target,
                format="A4",
                margin={"top": "16mm", "bottom": "18mm", "left": "15mm", "right": "15mm"},
                print_background=True,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=FOOTER.format(title=escape(title)),
                tagged=True,
                outline=True,
            )
            chromium.close()
    except Error as error:
        raise BookError(f"Chromium could not print the book: {error}") from error
    finally:
        serving.shutdown()
        serving.server_close()
        page_file.unlink(missing_ok=True)
    return target


def _output_of(*command: str) -> str:
    """What a command prints; nothing where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
