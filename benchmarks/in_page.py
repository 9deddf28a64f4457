"""The models that run in the reader's browser: how large, how fast, how far from torch.

    python benchmarks/in_page.py --json FILE           needs the built book and Chromium; about half a minute

Measures with the code of `tests/test_widgets.py`, on the page of the built book. Times are the browser's own marks.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

from playwright.sync_api import sync_playwright  # noqa: E402
from provenance import provenance  # noqa: E402
from test_book import CHROMIUM, FLAGS, HTML, _serving, _visit  # noqa: E402
from test_widgets import MODEL, compare, definitions, first_answer  # noqa: E402

LOADS, INPUTS = 5, 400


def measure():
    """The figures of the date translator of chapter `additive`."""
    page_path = "chapters/additive/lesson.html"
    file = HTML / "chapters" / "additive" / f"{MODEL}.safetensors"
    modules = ("widgets.js", "kit.js", "live.js", "forward.js", "tensor.js")
    with _serving(HTML) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        version, first = browser.version, []
        for _ in range(LOADS):
            with _visit(browser, address, page_path) as page:
                first.append(first_answer(page))
        with _visit(browser, address, page_path) as page:
            difference, times = compare(page, f"{address}_static/", file, definitions(), INPUTS)
        browser.close()
    return {
        "chromium": version,
        "model_bytes": file.stat().st_size,
        "page_bytes": (HTML / page_path).stat().st_size,
        "module_bytes": {name: (ROOT / "web" / name).stat().st_size for name in modules},
        "inputs": INPUTS,
        "largest_difference_from_torch": difference,
        "first_answer_after_paint_ms": {"median": statistics.median(first), "largest": max(first)},
        "answer_ms": {"median": statistics.median(times), "largest": max(times)},
    }


def main():
    """Measure, print, and write the file asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    options = parser.parse_args()
    result = {"schema": 1, **provenance(), **measure()}
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
