"""The words, marks and numbers that every report uses alike."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape


@dataclass(frozen=True)
class Outcome:
    """How one outcome is shown: never by colour alone, always with its mark and its word."""

    mark: str
    word: str
    meaning: str
    advice: str
    tone: str


OUTCOMES = {
    "passed": Outcome("✓", "passed", "Every claim about it holds.", "", "good"),
    "failed": Outcome(
        "✗",
        "not yet right",
        "An answer came back, and it is wrong.",
        "Read the first claim that does not hold, and try it by hand on the smallest case you can think of.",
        "bad",
    ),
    "not_attempted": Outcome(
        "○",
        "not attempted",
        "The name is missing, or still raises NotImplementedError.",
        "Start with the worked example of the exercise, and make the visible checks pass one by one.",
        "idle",
    ),
    "crashed": Outcome(
        "!",
        "raised an error",
        "The code raised, or its process ended.",
        "Run the notebook from the top in a fresh kernel: the error will meet you there too.",
        "bad",
    ),
    "timeout": Outcome(
        "◷",
        "took too long",
        "The limit on computing time was reached.",
        "Look for a loop over positions that one tensor operation could replace.",
        "bad",
    ),
    "memory": Outcome(
        "▣",
        "needed too much memory",
        "The limit on memory was reached.",
        "Look for the largest array made on the way: does all of it have to exist at once?",
        "bad",
    ),
    "forbidden": Outcome(
        "⊘",
        "uses what the contract rules out",
        "It calls something that the exercise asks you to write yourself.",
        "Read the contract's list of calls that are not allowed, and write that step yourself.",
        "bad",
    ),
    "invalid_notebook": Outcome(
        "⊘",
        "unreadable notebook",
        "The file cannot be read as a notebook.",
        "Open the file in JupyterLab, save it, and hand in that file.",
        "bad",
    ),
    "infrastructure": Outcome(
        "…",
        "not graded",
        "The grader is at fault, not the student; it will be graded again.",
        "Nothing to do: it will be graded again.",
        "idle",
    ),
}
_UNKNOWN = Outcome("?", "unknown", "This version does not know this outcome.", "", "idle")


def outcome(name: str) -> Outcome:
    """How this outcome is shown; one that a later version added shows as unknown rather than not at all."""
    return OUTCOMES.get(name, _UNKNOWN)


def number(value: float) -> str:
    """Points as people write them: at most two decimals, none that are zero.

    >>> number(2.0), number(1.5), number(1 / 3)
    ('2', '1.5', '0.33')
    """
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def percent(share: float | None) -> str:
    """A share as whole percent; nothing known is a dash.

    >>> percent(0.625), percent(None)
    ('62 %', '–')
    """
    return "–" if share is None else f"{100 * share:.0f} %"


def chapter(slug: str) -> str:
    """A slug as a title.

    >>> chapter("scaled_dot_product")
    'Scaled dot product'
    """
    words = slug.replace("_", " ")
    return words[:1].upper() + words[1:]


@lru_cache(maxsize=1024)
def prose(text: str) -> Markup:
    """Text with `code` in backticks as code, and everything else as it stands.

    >>> prose("`axis` < 2")
    Markup('<code>axis</code> &lt; 2')
    """
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def unnumbered(title: str) -> str:
    """A title without the number that its notebook gives it.

    >>> unnumbered("7. Reading an alignment")
    'Reading an alignment'
    """
    return re.sub(r"^\d+\.\s+", "", title)


@lru_cache(maxsize=1)
def templates() -> jinja2.Environment:
    """The environment of all templates: everything is escaped, and a missing value is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent, chapter=chapter, prose=prose, unnumbered=unnumbered)
    environment.globals["outcome"] = outcome
    return environment


def render(template: str, **values: Any) -> str:
    """One template with its values, as text."""
    return templates().get_template(template).render(**values)
