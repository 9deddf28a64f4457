"""Directives for the pages that are made from data: front page, atlas, claims index, glossary, costs, grader.

Each one reads its files at build time and notes them as dependencies, so that a page is renewed when its data changes.
"""

from __future__ import annotations

import ast
import hashlib
import html
import json
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

from ext import data, diagrams, exercise_pages, judged, pages

COMING = "coming"
BRANCHES = {
    "What attention computes": (
        "Scoring and read-out",
        "Softmax, scaling and loss",
        "Multi-head",
        "Head and axis variants",
    ),
    "Where things are": ("Embeddings and positions", "Channel and spatial attention"),
    "Fewer pairs": ("Sparse patterns", "Adaptive sparsity"),
    "The same pairs, cheaper": ("Efficient exact and approximate computation", "Hardware-aware", "Counting cost"),
    "Around it": ("Block plumbing, regularisation, deployment", "Against other architectures", "Models named"),
}


def lessons_mark(env: BuildEnvironment) -> str:
    """What the data pages see of the lessons: which there are, and the labels of their cells, not their prose."""
    root = Path(env.srcdir)
    seen = [
        (
            chapter.slug,
            f"chapters/{chapter.slug}/lesson" in env.found_docs,
            sorted(data.cell_labels(chapter.slug, root)),
        )
        for chapter in data.chapters(root)
    ]
    return hashlib.sha256(repr(seen).encode()).hexdigest()


class Page(SphinxDirective):
    """What the directives share: the course's root, chapters, and links to what shows a thing."""

    has_content = False

    @property
    def root(self) -> Path:
        """The course's root, which is where the book is built from."""
        return Path(self.env.srcdir)

    def note_file(self, path: Path) -> bool:
        """Renew this page when the file changes, or when it comes to be; whether it is there."""
        there = path.is_file()
        if there:
            self.env.note_dependency(str(path))
        else:  # Sphinx takes a dependency that is missing for one that has changed, every time
            vars(self.env).setdefault("aid_awaited", {}).setdefault(str(path), set()).add(self.env.docname)
        return there

    def note_data(self) -> None:
        """Renew this page when a data file changes, or which lessons and labelled cells there are."""
        for path in data.data_files(self.root):
            self.env.note_dependency(str(path))
        self.env.note_dependency(str(self.root / "_toc.yml"))
        vars(self.env).setdefault("aid_data_pages", {})[self.env.docname] = lessons_mark(self.env)

    def judged_now(self, slug: str | None) -> str:
        """The digest of what judges a chapter, or of the grader; this page is renewed when one of its files changes."""
        for path in [*judged.files(slug, self.root), *([judged.sheet(slug, self.root)] if slug else [])]:
            self.note_file(path)
        return judged.mark(slug, self.root)

    def written(self, slug: str) -> bool:
        """Is the chapter's lesson a page of this book?"""
        return f"chapters/{slug}/lesson" in self.env.found_docs

    def chapter_of(self, slug: str, text: str | None = None) -> list[nodes.Node]:
        """A link to a chapter, or its name where it is still coming."""
        chapter = {chapter.slug: chapter for chapter in data.chapters(self.root)}.get(slug)
        words = text or (chapter.title if chapter else "Appendix")
        if not self.written(slug):
            return [nodes.Text(words)]
        return [pages.link_to(self.env.docname, f"chapters/{slug}/lesson", "", [nodes.Text(words)])]

    def shown(self, slug: str, entry: data.Claim | data.Mechanism) -> list[nodes.Node]:
        """Where a claim or mechanism is shown: the cell, the source, or that its chapter is coming."""
        if entry.cell and self.written(slug) and entry.cell in data.cell_labels(slug, self.root):
            page = f"chapters/{slug}/lesson"
            return [pages.link_to(self.env.docname, page, entry.cell, [nodes.Text("see the cell")])]
        if entry.citation:
            return [*self.cite(entry.citation)]
        if slug == data.APPENDIX:
            return [nodes.Text("named only")]
        # The cell of a lesson that is written but does not name it yet is a problem that `attn check` reports.
        return [nodes.inline("", COMING, classes=["aid-soon"])]

    def cite(self, key: str) -> list[nodes.Node]:
        """A citation, as the `cite` role would make it."""
        found, messages = self.parse_inline(f"{{cite:p}}`{key}`")
        return [*found, *messages]

    def filtered(self, keys: str, children: list[nodes.Node]) -> list[nodes.Node]:
        """Children within an element that offers to filter them by `keys`."""
        return [pages.raw(f'<aid-filter keys="{keys}">'), *children, pages.raw("</aid-filter>")]


class ChapterMap(Page):
    """The picture of which chapter needs which."""

    def run(self) -> list[nodes.Node]:
        """The diagram, with links to the chapters that are there."""
        self.note_data()

        def link(chapter: data.Chapter) -> str | None:
            page = f"chapters/{chapter.slug}/lesson"
            return self.env.app.builder.get_relative_uri(self.env.docname, page) if self.written(chapter.slug) else None

        svg = diagrams.chapter_map(data.chapters(self.root), link)
        return [
            pages.raw(
                '<div class="aid-scroll aid-map" role="region" tabindex="0" aria-label="Map of the chapters">'
                f"{svg}</div>"
            )
        ]


class ChapterList(Page):
    """All chapters by part, with what they are about and the exercises behind them."""

    def run(self) -> list[nodes.Node]:
        """One table a part."""
        self.note_data()
        result: list[nodes.Node] = []
        chapters = data.chapters(self.root)
        for part in dict.fromkeys(chapter.part for chapter in chapters):
            rows: list[list[pages.Cell]] = []
            for number, chapter in enumerate(chapters, start=1):
                if chapter.part != part:
                    continue
                source = self.root / "chapters" / chapter.slug / "exercises.md"
                if self.written(chapter.slug):
                    self.env.note_dependency(str(source))
                    found = pages.exercises(source)
                    status: list[nodes.Node] = [
                        nodes.Text(f"{len(found)} exercises, {pages.duration(found)} "),
                        exercise_pages.progress(chapter.slug, found),
                    ]
                else:
                    status = [nodes.inline("", COMING, classes=["aid-soon"])]
                title: list[nodes.Node] = [nodes.Text(f"{number}. "), *self.chapter_of(chapter.slug)]
                rows.append([title, chapter.about, status])
            result.append(nodes.rubric("", part))
            result.append(pages.table(["chapter", "what it is about", "exercises"], rows, classes=["aid-chapters"]))
        return result


class Atlas(Page):
    """Every mechanism and figure by chapter, with its paper and where the course shows it."""

    def run(self) -> list[nodes.Node]:
        """One section a chapter, all within a filter."""
        self.note_data()
        homes = [(chapter.slug, chapter.title) for chapter in data.chapters(self.root)] + [
            (data.APPENDIX, "Named only")
        ]
        sections: list[nodes.Node] = []
        notes = data.notes(self.root)
        for number, (slug, title) in enumerate(homes, start=1):
            found = data.mechanisms(slug, self.root)
            if not found:
                continue
            rows: list[list[pages.Cell]] = []
            marks = []
            for one in found:
                name: list[nodes.Node] = [nodes.strong("", one.name)]
                note = notes.get(one.id, data.Note(one.id))
                if note.cost:
                    name += [nodes.inline("", f"Cost: {note.cost}.", classes=["aid-note"])]
                if one.build:
                    name += [nodes.inline("", one.build, classes=["aid-note"])]
                where: list[nodes.Node] = self.shown(slug, one)
                where += self.exercise(note.exercise)
                rows.append([name, self.papers(one), str(self.year(one) or ""), where])
                marks.append({"ids": [f"mechanism-{one.id}"], "marks": {"chapter": title, "kind": one.kind}})
            section = nodes.section(ids=[f"atlas-{slug}"], names=[])
            label = title if slug == data.APPENDIX else f"{number}. {title}"
            section += nodes.title("", label)
            heads = ["what, and how to build or measure it", "paper", "year", "where"]
            section += pages.table(heads, rows, classes=["aid-atlas"], attributes=marks)
            sections.append(section)
        return self.filtered("chapter kind", sections)

    def exercise(self, identifier: str | None) -> list[nodes.Node]:
        """A link to the exercise in which a mechanism is built, if its chapter is written."""
        if identifier is None:
            return []
        slug, _, name = identifier.partition("-")
        page = f"chapters/{slug}/exercises"
        if page not in self.env.found_docs:
            return []
        link = pages.link_to(self.env.docname, page, pages.exercise_anchor(slug, name), [nodes.literal("", name)])
        return [nodes.inline("", "", nodes.Text("exercise "), link, classes=["aid-note"])]

    def papers(self, one: data.Mechanism) -> list[nodes.Node]:
        """The papers as text with links to arXiv."""
        parts: list[nodes.Node] = []
        for paper in one.papers:
            title = f"{paper.title}"
            who = f"{paper.authors}: "
            rest = f", {paper.where}" if paper.where else ""
            place: nodes.Node = nodes.emphasis("", title)
            if paper.arxiv:
                place = pages.outside(f"https://arxiv.org/abs/{paper.arxiv}", title)
            note = nodes.inline("", "", nodes.Text(who), place, nodes.Text(rest), classes=["aid-paper"])
            parts.append(note)
        if one.section:
            parts.append(nodes.inline("", _articles(one.section), classes=["aid-note"]))
        return parts

    @staticmethod
    def year(one: data.Mechanism) -> int | None:
        """The year of the first paper that has one."""
        return next((paper.year for paper in one.papers if paper.year), None)


class Diagram(Page):
    """The timeline or the taxonomy of the mechanisms."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The diagram in a frame that scrolls where it is wider than the page."""
        self.note_data()
        every = [
            (one, chapter.part)
            for chapter in data.chapters(self.root)
            for one in data.mechanisms(chapter.slug, self.root)
        ]
        if self.arguments[0] == "timeline":
            svg, label = diagrams.timeline(every), "Timeline of mechanisms"
        elif self.arguments[0] == "taxonomy":
            svg, label = diagrams.taxonomy(every, BRANCHES), "Tree of mechanisms"
        else:
            raise self.error(f"no diagram {self.arguments[0]!r}")
        return [pages.raw(f'<div class="aid-scroll" role="region" tabindex="0" aria-label="{label}">{svg}</div>')]


class ClaimsSummary(Page):
    """How many claims of each article got which verdict."""

    def run(self) -> list[nodes.Node]:
        """A table of counts."""
        self.note_data()
        counts = Counter(
            (claim.article, claim.verdict)
            for chapter in data.chapters(self.root)
            for claim in data.claims(chapter.slug, self.root)
        )
        rows: list[list[pages.Cell]] = []
        for article in sorted({article for article, _ in counts}):
            numbers = [counts[article, verdict] for verdict in data.VERDICTS]
            cited: list[nodes.Node] = [nodes.Text(f"{article} "), *self.cite(f"article{article}")]
            rows.append([cited, *map(str, numbers), str(sum(numbers))])
        every = [sum(counts[article, verdict] for article in range(5)) for verdict in data.VERDICTS]
        rows.append([[nodes.strong("", "all")], *map(str, every), str(sum(every))])
        return [pages.table(["article", *data.VERDICTS, "all"], rows, numbers=range(1, 6))]


class ClaimsIndex(Page):
    """Every claim of the articles with its verdict, what is right, and the cell that shows it."""

    def run(self) -> list[nodes.Node]:
        """One table within a filter."""
        self.note_data()
        rows: list[list[pages.Cell]] = []
        marks = []
        entries = [
            (chapter, claim) for chapter in data.chapters(self.root) for claim in data.claims(chapter.slug, self.root)
        ]
        for chapter, claim in sorted(entries, key=lambda pair: pair[1].id):
            verdict = nodes.inline("", claim.verdict, classes=["aid-verdict", f"aid-{claim.verdict.split()[0]}"])
            right: list[nodes.Node] = self.text(claim.correct or "")
            if claim.show:
                right.append(nodes.inline("", "", *self.text(f"Shown by: {claim.show}"), classes=["aid-note"]))
            place = nodes.inline("", f"article {claim.article}, line {claim.line}", classes=["aid-note"])
            where = [*self.chapter_of(chapter.slug, chapter.slug), nodes.Text(": "), *self.shown(chapter.slug, claim)]
            rows.append(
                [[nodes.literal("", claim.id), place], pages.inline(claim.claim), [verdict], right, where],
            )
            marks.append(
                {
                    "ids": [claim.id],
                    "marks": {
                        "verdict": claim.verdict,
                        "article": str(claim.article),
                        "chapter": chapter.slug,
                        "shown": "shown" if claim.cell else "cited" if claim.citation else COMING,
                    },
                }
            )
        heads = ["claim", "what the article says", "verdict", "what is right", "where"]
        table = pages.table(heads, rows, classes=["aid-claims"], attributes=marks)
        return self.filtered("verdict article chapter shown", [table])

    def text(self, words: str) -> list[nodes.Node]:
        """Text with code, and with links from [N07] to the numerical check of that number."""
        result: list[nodes.Node] = []
        for part in re.split(r"(\[N\d\d\])", words):
            if re.fullmatch(r"\[N\d\d\]", part):
                result.append(
                    pages.link_to(self.env.docname, self.env.docname, f"check-{part[1:-1]}", [nodes.Text(part)])
                )
            else:
                result += pages.inline(part)
        return result


class NumericalChecks(Page):
    """The measurements that claims refer to by number."""

    def run(self) -> list[nodes.Node]:
        """A table with a place for each check."""
        self.note_data()
        checks = data.read_yaml(data.data_folder(self.root) / "checks.yaml")
        rows: list[list[pages.Cell]] = [[check["id"], check["set_up"], check["result"]] for check in checks]
        marks: list[dict[str, Any]] = [{"ids": [f"check-{check['id']}"], "marks": {}} for check in checks]
        return [pages.table(["number", "set-up", "result"], rows, classes=["aid-checks"], attributes=marks)]


class Glossary(Page):
    """The terms of the course, English and Chinese side by side."""

    def run(self) -> list[nodes.Node]:
        """One table in alphabetical order, within a filter."""
        self.note_data()
        path = data.data_folder(self.root) / "glossary.yaml"
        terms = sorted(data.read_yaml(path), key=lambda term: str(term["term"]).lower())
        rows: list[list[pages.Cell]] = []
        marks = []
        entries: list[tuple[str, str, str, str, str | None]] = []
        for term in terms:
            chinese = nodes.inline("", term["chinese"], classes=["aid-chinese"])
            rows.append(
                [
                    [nodes.strong("", term["term"])],
                    [chinese],
                    term["means"],
                    self.chapter_of(term["chapter"], term["chapter"]),
                ]
            )
            anchor = nodes.make_id(f"term-{term['term']}")
            marks.append({"ids": [anchor], "marks": {"chapter": term["chapter"]}})
            # Search puts entries of the index first, and leads to the very line.
            entries.append(("single", str(term["term"]), anchor, "main", None))
            entries.append(("single", str(term["chinese"]), anchor, "main", "中文"))
        table = pages.table(
            ["term", "中文", "what it means", "chapter"], rows, classes=["aid-glossary"], attributes=marks
        )
        return [addnodes.index(entries=entries), *self.filtered("chapter", [table])]


class CostCalculator(Page):
    """The calculator, and the same table at its first sizes for readers without JavaScript."""

    def run(self) -> list[nodes.Node]:
        """The widget with its data."""
        self.note_data()
        content = json.loads((data.data_folder(self.root) / "costs.json").read_text(encoding="utf-8"))
        sizes = {size["name"]: float(size["value"]) for size in content["sizes"]}
        heads = "".join(f'<th scope="col" class="aid-number">{html.escape(c["name"])}</th>' for c in content["columns"])
        lines = ""
        for one in content["mechanisms"]:
            cells = "".join(
                f'<td class="aid-number">{_amount(evaluate(one[c["key"]], sizes), c["unit"])}</td>'
                if one[c["key"]]
                else '<td class="aid-number">–</td>'
                for c in content["columns"]
            )
            lines += f'<tr><th scope="row">{html.escape(one["name"])}</th>{cells}</tr>'
        at = ", ".join(f"{size['label']} {size['value']}" for size in content["sizes"])
        static = (
            '<div class="aid-scroll" role="region" tabindex="0" aria-label="Costs at the first sizes">'
            f'<table class="aid-table"><caption>At {html.escape(at)}</caption>'
            f'<thead><tr><th scope="col">mechanism</th>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
        )
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
        return [
            pages.raw(
                '<aid-costs role="group" aria-label="Cost calculator: choose sizes and compare mechanisms">'
                f'<script type="application/json">{text}</script><div class="aid-static">{static}</div></aid-costs>'
            )
        ]


class GraderReport(Page):
    """What `attn check` proved of the graders.

    That is `_build/check.json` where it tells of the files that the book is built from, else the committed record,
    `benchmarks/results/check.json`.
    """

    def run(self) -> list[nodes.Node]:
        """Sentences, a table by chapter and one by exercise, or a line that says how to get them."""
        here, kept = self.root / "_build" / "check.json", self.root / "benchmarks" / "results" / "check.json"
        found = [json.loads(path.read_text(encoding="utf-8")) for path in (here, kept) if self.note_file(path)]
        found = [content for content in found if content["exercises"]]
        chapters = judged.chapters(self.root)
        now = {slug: self.judged_now(slug) for slug in chapters}
        if not found:
            return [_note("The figures appear here once `attn check` has run and the book is built again.")]
        content = next((one for one in found if one.get("judged") == now), found[-1])
        by_chapter: dict[str, list[dict[str, Any]]] = {}
        for exercise in content["exercises"]:
            by_chapter.setdefault(exercise["id"].split("-", 1)[0], []).append(exercise)
        rows: list[list[pages.Cell]] = []
        for slug, found in by_chapter.items():
            mistakes = [mistake for exercise in found for mistake in exercise["mistakes"]]
            right = [one for exercise in found for one in exercise["alternatives"]]
            rows.append(
                [
                    self.chapter_of(slug),
                    str(len(found)),
                    _of(sum(m["caught"] for m in mistakes), len(mistakes)),
                    _of(sum(m["caught"] and m["named"] for m in mistakes), len(mistakes)),
                    _of(sum(one["outcome"] == "passed" for one in right), len(right)),
                    str(sum(len(exercise["problems"]) for exercise in found)),
                ]
            )
        heads = [
            "chapter",
            "exercises",
            "caught",
            "and named",
            "right accepted",
            "problems",
        ]
        seeds = ""
        if "seeds" in content:
            fewest = min(exercise.get("seeds", content["seeds"]) for exercise in content["exercises"])
            seeds = f", each over {_sets(content['seeds'], fewest)} of hidden numbers"
        summary = nodes.paragraph()
        summary += nodes.strong("", f"{_share(content['caught'], content['total'])} mistakes are caught and named")
        summary += nodes.Text(f"{seeds}. ")
        if "provenance" in content:
            summary += pages.inline(_recorded(content["provenance"]))
        else:
            summary += pages.inline("That is what `attn check` came to where this book was built.")
        then = content.get("judged", {})
        if changed := [f"`{slug}`" for slug in by_chapter if then.get(slug) != now.get(slug)]:
            summary += pages.inline(f" Since then hidden tests, answers or references changed in {', '.join(changed)}.")
        if lacking := [f"`{slug}`" for slug in chapters if slug not in by_chapter]:
            summary += pages.inline(f" No run is recorded for {', '.join(lacking)}.")
        result: list[nodes.Node] = [summary, pages.table(heads, rows, numbers=range(1, 6))]
        detail: list[list[pages.Cell]] = []
        marks = []
        for exercise in content["exercises"]:
            missed = [m["name"] for m in exercise["mistakes"] if not (m["caught"] and m["named"])]
            names = ", ".join(f"`{m['name']}`" for m in exercise["mistakes"])
            detail.append(
                [[nodes.literal("", exercise["id"])], names, ", ".join(f"`{name}`" for name in missed) or "none"]
            )
            marks.append({"marks": {"chapter": exercise["id"].split("-", 1)[0]}})
        result.append(nodes.rubric("", "Exercise by exercise"))
        table = pages.table(["exercise", "mistakes tried", "not caught or not named"], detail, attributes=marks)
        return result + self.filtered("chapter", [table])


class AttackTable(Page):
    """Every attack of the tests' corpus: what it tries, the wall that stops it, and what it came to."""

    def run(self) -> list[nodes.Node]:
        """A sentence with the counts, and one table within a filter."""
        self.note_data()
        attacks = data.attacks(self.root)
        still_open = [attack for attack in attacks if attack.outcome != "gains nothing"]
        stopped = f"{len(attacks) - len(still_open)} of {len(attacks)} attacks gain nothing."
        known = f" Those that still earn points they should not are marked as open: {len(still_open)}." * bool(
            still_open
        )
        summary = nodes.paragraph()
        summary += nodes.strong("", stopped)
        summary += nodes.Text(known)
        rows: list[list[pages.Cell]] = []
        marks = []
        for attack in attacks:
            rows.append([[nodes.strong("", attack.name)], attack.tries, attack.stopped, attack.outcome])
            marks.append({"marks": {"kind": attack.theme, "outcome": attack.outcome}})
        heads = ["attack", "what it tries", "what stops it", "outcome"]
        return [summary, *self.filtered("kind outcome", [pages.table(heads, rows, attributes=marks)])]


SPEED = (
    ("ratio_vs_nbgrader", "times less processor time than nbgrader needs for the same submissions", "more is better"),
    ("ratio_vs_bare_fork", "times the processor time of a bare process that runs the same cells", "1 costs nothing"),
    ("two_worker_speedup", "times as fast with two workers on two cores as with one", "2 is the most there is"),
)


class GradingSpeed(Page):
    """How fast the grader is, from the recorded run in `benchmarks/results/grading.json`."""

    def run(self) -> list[nodes.Node]:
        """A table with where it was measured, or a line that says that no run is recorded."""
        path = self.root / "benchmarks" / "results" / "grading.json"
        if not self.note_file(path):
            return [_note("No run of `benchmarks/grading.py` is recorded yet, so this page says nothing about speed.")]
        content = json.loads(path.read_text(encoding="utf-8"))
        rows: list[list[pages.Cell]] = [
            [f"{content[key]:.2g}" if content[key] < 10 else f"{content[key]:.0f}", words, reading]
            for key, words, reading in SPEED
            if key in content
        ]
        origin = content["provenance"]
        where = nodes.paragraph()
        where += pages.inline(
            f"Measured on {origin['date'][:10]} on {origin['machine']}, Python {origin['versions']['python']}, "
            f"with `{origin['command']}`."
        )
        return [pages.table(["measured", "what", "how to read it"], rows, numbers=[0]), where]


def _came_to(part: str, found: dict[str, Any]) -> str:
    """What one of the long tests came to, in words."""
    if part.startswith("check_"):
        slug, caught = part.removeprefix("check_"), _of(found["caught"], found["total"])
        sets = _sets(found["seeds"], found.get("fewest_seeds", found["seeds"]))
        return f"`{slug}`: {caught} mistakes caught and named, over {sets} of numbers"
    if part == "scale":
        return "; ".join(f"{each['students']} students: {each['peak_mib']:.0f} MiB" for each in found["classes"])
    return f"{found['kills']} kills" if part == "kills" else f"{found['cases']} notebooks"


class SoakReport(Page):
    """What the tests came to that are too long for every change, from `benchmarks/results/soak.json`."""

    def run(self) -> list[nodes.Node]:
        """A table with where it was run, or a line that says that no run is recorded."""
        path = self.root / "benchmarks" / "results" / "soak.json"
        if not self.note_file(path):
            return [_note("No run of `make soak` is recorded yet.")]
        record = json.loads(path.read_text(encoding="utf-8"))
        rows: list[list[pages.Cell]] = [
            [
                found["what"],
                _came_to(part, found),
                "held" if found["held"] else "did not hold",
                f"{found['provenance']['date'][:10]}, {found['seconds'] / 60:.0f} min",
                self.still(part, found),
            ]
            for part, found in record.items()
        ]
        chapters = [chapter.slug for chapter in data.chapters(self.root) if self.written(chapter.slug)]
        lacking = [f"`{slug}`" for slug in chapters if f"check_{slug}" not in record]
        machines = dict.fromkeys(
            f"{found['provenance']['machine']}, Python {found['provenance']['versions']['python']}"
            for found in record.values()
        )
        where = nodes.paragraph()
        where += pages.inline(f"Run on {'; '.join(machines)}, with `make soak`.")
        if lacking:
            where += pages.inline(f" No whole run over many sets is recorded for {', '.join(lacking)}.")
        return [pages.table(["what", "how much", "outcome", "when", "what it judged"], rows), where]

    def still(self, part: str, found: dict[str, Any]) -> str:
        """Whether what a part judged is still what it judged; a record that does not tell is taken for an old one."""
        slug = part.removeprefix("check_") if part.startswith("check_") else None
        if found.get("judged") == self.judged_now(slug):
            return "as it is now"
        return "older than the suite" if slug else "older than the grader"


def _recorded(origin: dict[str, Any]) -> str:
    """Where a recorded run comes from."""
    commit = f" from commit `{origin['commit'][:12]}`" if origin["commit"] else ""
    changes = " and changes that are not committed" if origin["uncommitted_changes"] else ""
    machine = f"{origin['machine']}, Python {origin['versions']['python']}"
    return f"Recorded on {origin['date'][:10]}{commit}{changes}, on {machine}, with `{origin['command']}`."


def _note(words: str) -> nodes.note:
    paragraph = nodes.paragraph()
    paragraph += pages.inline(words)
    note = nodes.note()
    note += paragraph
    return note


def _sets(seeds: int, fewest: int) -> str:
    """How many sets of numbers; kernels, which the interpreter runs slowly, meet fewer."""
    return f"{seeds} sets" + (f" ({fewest} where there are kernels)" if fewest < seeds else "")


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole}"


def _share(part: int, whole: int) -> str:
    """Both numbers and the percentage, which says 100 only where nothing is missing."""
    return _of(part, whole) + (f" ({math.floor(1000 * part / whole) / 10:g} %)" if whole else "")


def _articles(section: str) -> str:
    return f"articles: {section}" if re.search(r"[;,] ?\d|all", section) else f"article {section}"


OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min, "max": max, "ceil": math.ceil, "floor": math.floor, "log2": math.log2, "sqrt": math.sqrt,
}  # fmt: skip


def evaluate(formula: str, names: dict[str, float]) -> float:
    """The value of an arithmetic formula over named sizes, as `web/costs.js` evaluates it too.

    Args:
        formula: sums, products, powers (`**`), brackets, and min, max, ceil, floor, log2, sqrt.
        names: the sizes.

    Example:
        >>> evaluate("2*n**2 + max(n, 3)", {"n": 2.0})
        11.0
    """

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
            return float(node.value)
        if isinstance(node, ast.Name):
            return names[node.id]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return FUNCTIONS[node.func.id](*map(value, node.args))
        raise data.DataError(f"costs.json: cannot read the formula {formula!r}")

    return value(ast.parse(formula, mode="eval").body)


def _amount(value: float, unit: str) -> str:
    steps = [(1024.0, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"])] if unit == "bytes" else [
        (1000.0, ["", "thousand", "million", "billion", "trillion", "·10¹⁵", "·10¹⁸"])
    ]  # fmt: skip
    (base, units), k = steps[0], 0
    while value >= base and k < len(units) - 1:
        value, k = value / base, k + 1
    return f"{value:.3g} {units[k]}".strip()


def directives() -> Iterator[tuple[str, type[SphinxDirective]]]:
    """The names of the directives."""
    yield "chapter-map", ChapterMap
    yield "chapter-list", ChapterList
    yield "mechanism-atlas", Atlas
    yield "mechanism-diagram", Diagram
    yield "claims-summary", ClaimsSummary
    yield "claims-index", ClaimsIndex
    yield "numerical-checks", NumericalChecks
    yield "course-glossary", Glossary
    yield "cost-calculator", CostCalculator
    yield "grader-report", GraderReport
    yield "attack-table", AttackTable
    yield "soak-report", SoakReport
    yield "grading-speed", GradingSpeed


def setup(app: Sphinx) -> None:
    """Register the directives."""
    for name, directive in directives():
        app.add_directive(name, directive)
