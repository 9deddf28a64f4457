"""Models that a page's own cells trained, as files beside the page for `web/live.js`.

A cell's output holds the file's bytes, so that the notebook cache keeps them like any other output. When Sphinx writes
the page, `lay_out` moves them into a file beside it and leaves the page light.

The file is in the safetensors format: matrices of 16-bit floats, and the settings as JSON in its metadata. Sixteen bits
halve the download; what that costs in accuracy, a lesson measures on the weights that `rounded` gives.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save

if TYPE_CHECKING:
    import torch
    from sphinx.application import Sphinx

LIMIT = 400_000  # bytes of a model's file
MODULES = ("kit.js", "forward.js", "tensor.js")  # what live.js imports
MODEL = re.compile(r'<script type="application/octet-stream" data-file="([\w-]+\.safetensors)">([^<]*)</script>')


def rounded(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights that the reader's browser will have: rounded to 16 bits, kept as 32-bit floats."""
    return {name: tensor.detach().half().float() for name, tensor in state.items()}


def pack(models: Mapping[str, Mapping[str, torch.Tensor]], settings: Mapping[str, Any]) -> bytes:
    """The file of one or more models.

    Args:
        models: the state of each model by name; its tensors are called `<name>.<name in the state>`.
        settings: what the forward pass needs beside the tensors; anything that JSON knows.

    Returns:
        A safetensors file with 16-bit floats.

    Raises:
        ValueError: if a weight does not fit into 16 bits or the file is larger than `LIMIT`.
    """
    tensors = {}
    for name, state in models.items():
        for part, tensor in state.items():
            values = tensor.detach().cpu().half().numpy()
            if not np.isfinite(values).all():
                raise ValueError(f"{name}.{part}: a weight is not finite in 16 bits")
            tensors[f"{name}.{part}"] = values
    content = save(tensors, {"settings": json.dumps(settings, ensure_ascii=False, sort_keys=True)})
    if len(content) > LIMIT:
        raise ValueError(f"the models take {len(content):,} bytes; a page may carry {LIMIT:,}: train a smaller one")
    return content


def embedded(content: bytes, file: str) -> str:
    """The markup that carries a file until the page is written."""
    text = base64.b64encode(content).decode("ascii")
    return f'<script type="application/octet-stream" data-file="{file}">{text}</script>'


def extract(body: str, folder: Path) -> tuple[str, list[str]]:
    """The page's HTML without the files it carries, and their names; they are written into `folder`."""
    files = MODEL.findall(body)
    for name, content in files:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(base64.b64decode(content))
    return MODEL.sub("", body), [name for name, _ in files]


def lay_out(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Put the models of a page beside it, and let the browser fetch them early (Sphinx event `html-page-context`)."""
    if "body" not in context:
        return
    context["body"], files = extract(context["body"], Path(app.outdir, PurePosixPath(pagename).parent))
    if not files:
        return
    # Fetched while the page is still being read, so that live.js finds the bytes there.
    fetched = ",".join(f'"{name}":fetch("{name}").then((answer)=>answer.arrayBuffer())' for name in files)
    links = [f"<script>window.aidFiles={{{fetched}}}</script>"]
    links += [f'<link rel="modulepreload" href="{context["pathto"](f"_static/{name}", 1)}">' for name in MODULES]
    # First among the page's scripts: the theme's would keep the reader waiting.
    links.append(f'<script type="module" src="{context["pathto"]("_static/live.js", 1)}"></script>')
    context["metatags"] = context.get("metatags", "") + "".join(links)
