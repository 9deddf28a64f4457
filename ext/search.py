"""Search that finds English and Chinese terms.

Sphinx cuts text at white space, so that a Chinese sentence is one word, and a term within it is never found. Here a run
of Chinese characters is indexed by its characters and its pairs of neighbours, and a query is cut in the same way: any
term is found wherever it stands, without a dictionary that the browser would need too. English is stemmed as usual.
"""

from __future__ import annotations

import re

from sphinx.search.en import SearchEnglish

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
