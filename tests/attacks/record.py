"""Writes the book's table of attacks: every attack is handed in, and its outcome stands beside its words.

``python tests/attacks/record.py`` hands in all of them, which takes some minutes; with names of themes, those alone,
and the others keep their rows. Exits 1 where an attack gains something: its row says "open".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

import yaml
from corpus import Attack, load

from autograder import course

TABLE = course.CHAPTERS / "appendix" / "data" / "attacks.yaml"
HEAD = "# Written by `python tests/attacks/record.py`, which hands every attack in. Not for editing.\n"


def recorded() -> dict[str, str]:
    """The outcome of each attack by its name, as it was last written down."""
    content = yaml.safe_load(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else []
    return {row["name"]: row["outcome"] for row in content if "outcome" in row}


def rows(outcomes: Mapping[str, str]) -> list[dict[str, str]]:
    """The rows of the attacks whose outcome is known, in the order of the corpus."""
    attacks, archives = load()
    return [
        {
            "name": one.name,
            "theme": one.theme,
            "tries": one.tries,
            "stopped": one.stopped,
            "outcome": outcomes[one.name],
        }
        for one in (*attacks, *archives)
        if one.name in outcomes
    ]


def text(table: list[dict[str, str]]) -> str:
    """The file's content."""
    entries = ("\n".join(f"  {key}: {_scalar(value)}" for key, value in row.items()) for row in table)
    return HEAD + "".join(f"\n-{entry[1:]}\n" for entry in entries)


def _scalar(value: str) -> str:
    """Plain where YAML reads that as it stands, quoted otherwise."""
    try:
        plain = yaml.safe_load(f"key: {value}") == {"key": value}
    except yaml.YAMLError:
        plain = False
    return value if plain else json.dumps(value, ensure_ascii=False)


def main() -> int:
    """Measure and write; the exit status."""
    from measuring import OPEN, measure, measure_archive, watching

    attacks, archives = load()
    wanted = sys.argv[1:] or sorted({one.theme for one in (*attacks, *archives)})
    outcomes = recorded()
    with watching() as watch:
        for one in (*attacks, *archives):
            if one.theme not in wanted:
                continue
            measured = measure(one, watch) if isinstance(one, Attack) else measure_archive(one)
            outcomes[one.name] = measured.outcome
            print(f"{one.theme}: {one.name}: {measured.outcome}", *measured.complaints, sep="\n    ", flush=True)
        watch.world()
    table = rows(outcomes)
    TABLE.write_text(text(table), encoding="utf-8")
    return int(any(row["outcome"] == OPEN for row in table))


if __name__ == "__main__":
    sys.exit(main())
