"""Search that finds English and Chinese terms.

Sphinx cuts text at white space, so that a Chinese sentence is one word, and a term within it is never found. Here a run
of Chinese characters is indexed by its characters and its pairs of neighbours, and a query is cut in the same way: any
term is found wherever it stands, without a dictionary that the browser would need too. English is stemmed as usual.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish
from sphinx.util.index_entries import split_index_msg

CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
PIECES = re.compile(rf"[{CHINESE}]+|[^\W{CHINESE}]+")


class CourseSearch(SearchEnglish):
    """English words, and pairs of Chinese characters."""

    lang = "course"
    language_name = "English and Chinese"
    js_splitter_code = f"""
function splitQuery(query) {{
  const runs = /[{CHINESE}]+|(?:(?![{CHINESE}])[\\p{{Letter}}\\p{{Number}}_\\p{{Emoji_Presentation}}])+/gu;
  const pieces = query.match(runs) || [];
  return pieces.flatMap((piece) => {{
    if (piece.length < 2 || !/^[{CHINESE}]/u.test(piece)) return [piece];
    return Array.from({{ length: piece.length - 1 }}, (_, k) => piece.slice(k, k + 2));
  }});
}}
"""

    def split(self, input: str) -> list[str]:
        """The words of a text; of Chinese, every character and every pair.

        Example:
            >>> CourseSearch({}).split("attention 注意力")
            ['attention', '注', '意', '力', '注意', '意力']
        """
        words = []
        for piece in PIECES.findall(input):
            if re.match(rf"[{CHINESE}]", piece):
                words += [*piece, *(piece[k : k + 2] for k in range(len(piece) - 1))]
            else:
                words.append(piece)
        return words


def keep_index_entries(app: Sphinx) -> Iterable[tuple[str, dict[str, Any], str]]:
    """Give the search index the entries of every page, also of those that this build did not write.

    Sphinx takes words and titles of unchanged pages from the last build's index, and forgets their entries: after a
    rebuild, a term of the glossary would lead to the page and no longer to its line.

    Returns:
        No page of its own; the event that calls this asks for pages.
    """
    indexer = getattr(app.builder, "indexer", None)
    if indexer is not None:
        for page, entries in app.env.get_domain("index").data["entries"].items():
            indexer._index_entries[page] = sorted(
                (word, target or "", main or "")
                for kind, value, target, main, _ in entries
                for word in split_index_msg(kind, value)
            )
    return ()
