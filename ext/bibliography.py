"""How the book lists and cites its sources: under names and year.

`{cite:p}` gives "(Vaswani et al. 2017)", `{cite:t}` gives "Vaswani et al. (2017)". A source without an author goes by
the `key` field of its entry, so that the five articles are "(Article 3)".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.richtext import Text
from pybtex.style import FormattedEntry
from pybtex.style.formatting.unsrt import Style
from pybtex.style.labels import BaseLabelStyle
from sphinxcontrib.bibtex.plugin import register_plugin as register_reference_style
from sphinxcontrib.bibtex.style.referencing import BracketStyle
from sphinxcontrib.bibtex.style.referencing.author_year import AuthorYearReferenceStyle
from sphinxcontrib.bibtex.style.referencing.basic_author_year import (
    BasicAuthorYearParentheticalReferenceStyle,
    BasicAuthorYearTextualReferenceStyle,
)
from sphinxcontrib.bibtex.style.template import entry_label, join, join2, node, post_text, pre_text, reference


def label(entry: Entry) -> str:
    """`Vaswani et al. 2017`; where nobody is named, the entry's `key` field."""
    people = entry.persons.get("author") or entry.persons.get("editor") or []
    names = [str(Text.from_latex(" ".join([*person.prelast_names, *person.last_names]))) for person in people]
    if not names:
        who = entry.fields.get("key", entry.key)
    elif len(names) > 2 or names[-1] == "others":
        who = f"{names[0]} et al."
    else:
        who = " and ".join(names)
    return f"{who} {entry.fields.get('year', '')}".strip()


class Labels(BaseLabelStyle):
    """Names and year, and the letter of the key (`touvron2023b`) where it has one: the same label on every page."""

    def format_labels(self, sorted_entries: Iterable[Entry]) -> Iterator[str]:
        """The labels in the order of the entries."""
        for entry in sorted_entries:
            letter = re.search(r"\d{4}([b-z])$", entry.key)
            yield label(entry) + (letter[1] if letter else "")


_composed: dict[tuple[str, str], FormattedEntry] = {}


class CourseStyle(Style):
    """The plain style of BibTeX with these labels."""

    default_label_style = Labels
    default_sorting_style = "author_year_title"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["label_style"] = Labels
        super().__init__(*args, **kwargs)

    def format_entry(self, label: str, entry: Entry, bib_data: Any = None) -> FormattedEntry:
        """One source as a list shows it: composed once, although chapters and tooltips ask for most of them often."""
        asked = (label, repr(entry))
        if asked not in _composed:
            _composed[asked] = super().format_entry(label, entry, bib_data)
        return _composed[asked]


@node
def _names_and_year(children: Any, context: dict[str, Any]) -> Any:
    """`Vaswani et al. (2017)`, the year being the link; where there is no year, the label is."""
    entry, text = context["entry"], context["formatted_entry"].label
    year = entry.fields.get("year")
    notes = join2(sep1=" ", sep2=", ")
    if not year:
        return notes[pre_text, reference[entry_label], post_text].format_data(context)
    who, _, when = text.rpartition(" ")
    return Text(who, " (", notes[pre_text, reference[when], post_text].format_data(context), ")")


class Parenthetical(BasicAuthorYearParentheticalReferenceStyle):
    """`(Vaswani et al. 2017, section 3.2)`."""

    def inner(self, role_name: str) -> Any:
        """One source within the brackets."""
        return join2(sep1=" ", sep2=", ")[pre_text, reference[entry_label], post_text]


class Textual(BasicAuthorYearTextualReferenceStyle):
    """`Vaswani et al. (2017)`."""

    def inner(self, role_name: str) -> Any:
        """One source as part of the sentence."""
        return join[_names_and_year]


def _round_brackets() -> BracketStyle:
    return BracketStyle(left="(", right=")", sep="; ")


@dataclass
class CourseReferences(AuthorYearReferenceStyle):
    """References by names and year, in round brackets."""

    bracket_parenthetical: BracketStyle = field(default_factory=_round_brackets)

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        ours = {
            BasicAuthorYearParentheticalReferenceStyle: Parenthetical(bracket=self.bracket_parenthetical),
            BasicAuthorYearTextualReferenceStyle: Textual(bracket=self.bracket_textual),
        }
        self.styles = [ours.get(type(style), style) for style in self.styles]
        self.role_style = {name: style for style in self.styles for name in style.role_names()}


def setup() -> None:
    """Make the styles known under the name that `_config.yml` uses."""
    register_plugin("pybtex.style.formatting", "course", CourseStyle, force=True)
    register_reference_style("sphinxcontrib.bibtex.style.referencing", "course", CourseReferences, force=True)
