"""What a website needs beside its pages: a page for addresses that lead nowhere, a sitemap, cards for links,
a way to report an error.
"""

from __future__ import annotations

import html
import json
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from sphinx.application import Sphinx

from ext.exercise_pages import LITE

CARD = "_build/card.png"

# It stands alone, because the address at which a host shows it says nothing about where the book's files are.
LOST = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="robots" content="noindex">
<title>No such page – {title}</title>
<link rel="icon" href="data:image/svg+xml,{icon}">
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1.05rem/1.6 system-ui, sans-serif; max-width: 34rem; margin: 12vh auto; padding: 0 1.5rem; }}
h1 {{ font-weight: 600; line-height: 1.25; }}
form {{ display: flex; gap: 0.5rem; flex-wrap: wrap; }}
input {{ flex: 1; min-width: 10rem; font: inherit; padding: 0.35rem 0.6rem; }}
button {{ font: inherit; padding: 0.35rem 1rem; }}
body {{ background: light-dark(#fff, #14171c); color: light-dark(#20262e, #d9dee6); }}
a {{ color: light-dark(#1c64b4, #79b4f0); }}
</style>
</head>
<body>
<main>
<h1>There is no page at this address</h1>
<p>It may have moved, or the link has a slip. Go to the <a href="{base}">front page</a>,
or look for what you wanted:</p>
<form action="{base}search.html">
<input type="search" name="q" aria-label="Search the book" required><button>Search</button>
</form>
</main>
<script>
// The book may lie elsewhere than its configuration says: on a server of one's own, or in another folder.
const {{ pathname }} = location;
const known = {known}, published = {base_text};
const at = Math.min(...known.map((folder) => pathname.indexOf(`/${{folder}}/`)).filter((place) => place >= 0));
const base = at < Infinity ? pathname.slice(0, at + 1) : pathname.startsWith(published) ? published : "/";
document.querySelector("a").href = base;
document.querySelector("form").action = `${{base}}search.html`;
</script>
</body>
</html>
"""


def write_lost_page(app: Sphinx, error: Exception | None) -> None:
    """Write 404.html, which static hosts show at any address that leads nowhere."""
    if error is not None or app.builder.name != "html":
        return
    base = urlsplit(app.config.html_baseurl).path or "/"
    icon = Path(app.srcdir, app.config.html_favicon or "")
    page = LOST.format(
        title=html.escape(app.config.html_title),
        icon=quote(icon.read_text(encoding="utf-8")) if icon.is_file() else "",
        base=html.escape(base, quote=True),
        base_text=json.dumps(base),
        known=json.dumps(sorted({docname.split("/")[0] for docname in app.env.found_docs if "/" in docname})),
    )
    Path(app.outdir, "404.html").write_text(page, encoding="utf-8")


def write_sitemap(app: Sphinx, error: Exception | None) -> None:
    """Write sitemap.xml with every page of the book, whichever of them this build wrote."""
    if error is not None or app.builder.name != "html" or not app.config.html_baseurl:
        return
    base = app.config.html_baseurl.rstrip("/")
    addresses = [f"{base}/{quote(app.builder.get_target_uri(docname))}" for docname in sorted(app.env.found_docs)]
    lines = "".join(f"<url><loc>{html.escape(address)}</loc></url>\n" for address in addresses)
    Path(app.outdir, "sitemap.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{lines}</urlset>\n',
        encoding="utf-8",
    )


def take_in_lite(app: Sphinx, error: Exception | None) -> None:
    """Put the JupyterLite site, where one was built, beside the pages; without copying where the disk allows it."""
    built, target = Path(app.srcdir, "_build", LITE), Path(app.outdir, LITE)
    if error is not None or app.builder.name != "html":
        return
    shutil.rmtree(target, ignore_errors=True)
    if app.config.aid_lite:
        shutil.copytree(built, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def add_report_link(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """End a page with a link by which a reader tells of an error on it."""
    if doctree is None or not app.config.aid_report:
        return
    address = app.config.aid_report.format(page=quote(pagename, safe=""))
    context["body"] += (
        f'<p class="aid-report"><a href="{html.escape(address, quote=True)}">Report an error on this page</a></p>'
    )


def draw_card(target: Path) -> None:
    """The small picture on the cards that other sites show for a link: a causal attention matrix."""
    import numpy as np
    from matplotlib.image import imsave

    n = 6
    scores = np.where(np.tri(n) > 0, -0.55 * np.abs(np.subtract.outer(np.arange(n), np.arange(n))), -np.inf)
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    shade = np.clip(weights / 0.62, 0, 1)[..., None]
    picture = np.array([1.0, 1.0, 1.0]) * (1 - shade) + np.array([28, 100, 180]) / 255 * shade
    target.parent.mkdir(parents=True, exist_ok=True)
    imsave(target, np.kron(picture, np.ones((20, 20, 1))))


def settings(app: Sphinx) -> None:
    """Register the setting of the report link, and connect what this module does."""
    app.add_config_value("aid_report", "", "html", str)
    app.connect("html-page-context", add_report_link, priority=800)
    app.connect("build-finished", write_lost_page)
    app.connect("build-finished", write_sitemap)
    app.connect("build-finished", take_in_lite)


def configure(app: Sphinx, config: Any) -> None:
    """Tell the extension that writes Open Graph tags where the book is published, and what its cards look like."""
    config.ogp_site_url, config.ogp_site_name = config.html_baseurl, config.html_title
    config.ogp_social_cards = {"line_color": "#1c64b4", "image_mini": CARD}
    card = Path(app.srcdir, CARD)
    if not card.is_file():
        draw_card(card)
