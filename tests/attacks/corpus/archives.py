"""Files that are handed in: paths, links and bombs in archives. Nothing is unpacked, and no name is believed."""

import io
import stat
import zipfile

from corpus import MARK, archive

NOTEBOOK = b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}'
HONEST = "s001/scaled_dot_product/exercises.ipynb"


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    """A zip of these entries, and an honest notebook first."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(HONEST, NOTEBOOK)
        for name, data in entries:
            made.writestr(name, data)
    return out.getvalue()


@archive(
    tries="Names entries with .., absolute paths, drive letters and backslashes.",
    stopped="Such entries are refused and named.",
    alone=True,
)
def climbs_out_of_the_archive():
    names = (
        "../" * 9 + f"tmp/{MARK}.ipynb",
        f"/tmp/{MARK}.ipynb",
        f"C:\\{MARK}.ipynb",
        f"a\\..\\..\\{MARK}.ipynb",
        f"s/../../{MARK}.ipynb",
    )
    return zipped(*((name, NOTEBOOK) for name in names))


@archive(
    tries="Packs symbolic links to the gradebook, the secret and /etc/passwd.",
    stopped="Links are refused and named.",
    alone=True,
)
def packs_links():
    made = []
    for number, target in enumerate(("/etc/passwd", "../../../../course/secret", "../../../course/gradebook.db")):
        info = zipfile.ZipInfo(f"link{number}/scaled_dot_product/exercises.ipynb")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.append((info, target.encode()))
    return zipped(*made)


@archive(
    tries="Packs 200 MB of zeros into 200 kB.", stopped="What would grow beyond reason is refused before it is opened."
)
def packs_a_bomb():
    return zipped(("s002/scaled_dot_product/exercises.ipynb", b"\0" * 200_000_000))


@archive(
    tries="Packs an archive into an archive into an archive.",
    stopped="Only notebooks are read, and only from the archive that was given.",
    said=False,
)
def packs_archives_into_archives():
    inner = zipped()
    for _ in range(30):
        inner = zipped((f"{MARK}.zip", inner), (f"{MARK}.ipynb.zip", inner[:1000]))
    return zipped((f"s002/scaled_dot_product/{MARK}.zip", inner))


@archive(
    tries="Takes the places of others: ids that differ by case, spaces, Unicode forms or invisible letters.",
    stopped="Ids are made safe; two that were different stay different.",
)
def takes_the_places_of_others():
    names = ("S001", "s001 ", "s001\u200b", "ѕ001", "s001/../s001", "s001.", "CON", "-rf", "s001\n")
    return zipped(*((f"{name}/scaled_dot_product/exercises.ipynb", b'{"forged": true}') for name in names))


@archive(
    tries="Lies about sizes: an entry that says it has 10 bytes and has 100 MB.",
    stopped="No entry is read further than a notebook may be long.",
)
def lies_about_sizes():
    data = bytearray(zipped(("s002/scaled_dot_product/exercises.ipynb", b" " * 100_000_000)))
    return bytes(data.replace((100_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
