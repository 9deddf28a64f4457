"""The lesson kit: what a lesson uses to put figures, tables and widgets on its page.

A lesson imports `show`, `table`, `widget`, `live`, `rounded`, `seeded` and `palette`, and nothing else that has to do
with the page:

- `show(fig, label=..., alt=..., caption=...)` writes a matplotlib figure as inline SVG that follows the page's theme;
- `table(rows, columns, caption=...)` writes a table with well-formatted numbers;
- `widget(kind, data, label=..., alt=..., caption=...)` writes an interactive figure that needs no kernel, with a
  static picture or table for readers without JavaScript;
- `live(kind, models, settings, label=..., ...)` lets models that the page's cells trained run in the reader's browser;
  `rounded(state)` gives the weights as the browser will have them;
- `seeded(seed)` fixes every source of chance and gives a NumPy generator;
- `palette` holds colours that stay legible on a light and on a dark page, also for colour-blind readers.

How theming works: whatever is drawn in black (matplotlib's own choice for text, axes and ticks) becomes
`currentColor`, the page's text colour, and the background is left out. Colours from `palette` are kept. Text on a
filled area must not follow the page: colour it with `palette.on(colour of the area)`.

Captions and table cells may hold `code` in backticks and maths between dollar signs.
"""

from __future__ import annotations

import html
import io
import json
import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from IPython.display import HTML, display
from matplotlib import pyplot as plt
from matplotlib.colors import LinearSegmentedColormap, to_rgb

from ext.live import embedded, pack, rounded

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

__all__ = ["WIDGET_KINDS", "live", "palette", "rounded", "seeded", "show", "table", "widget"]

LABEL = re.compile(r"[a-z][a-z0-9_]*(?:-[a-z0-9_]+)*")
FONT = "var(--aid-figure-font, system-ui, sans-serif)"
MATRIX, ATTENTION, SOFTMAX, FRAMES, MASK = "matrix", "attention", "softmax", "frames", "mask"
STEPPER, HANDS, PATTERNS = "stepper", "hands", "patterns"

# What the data of each kind of widget must hold; web/<kind>.js reads exactly this.
WIDGET_KINDS: Mapping[str, tuple[str, ...]] = {
    MATRIX: ("rows", "columns", "layers"),
    SOFTMAX: ("labels", "scores"),
    FRAMES: ("x", "frames"),
    MASK: ("q_seq", "kv_seq"),
    STEPPER: ("steps",),
    ATTENTION: ("queries", "keys", "layers"),
    HANDS: ("thetas", "query", "key", "positions"),
    PATTERNS: ("patterns", "sizes", "windows"),
}


class Palette:
    """Colours with a contrast of at least 3:1 against white and against the dark page, in a fixed order.

    `palette[0]`, `palette["blue"]` and `palette.blue` are the same colour; iteration gives all of them in order.
    `palette.sequential` and `palette.diverging` are colour maps, `palette.ink` follows the page's text colour, and
    `palette.on(colour)` is the ink for text that stands on that colour.
    """

    ink = "#000000"
    blue = "#2d7dd2"
    orange = "#d3660c"
    green = "#17906a"
    pink = "#b65ba5"
    red = "#d64550"
    cyan = "#1b8fb0"
    olive = "#8a8420"
    grey = "#7c8189"
    names = ("blue", "orange", "green", "pink", "red", "cyan", "olive", "grey")

    def __init__(self) -> None:
        self.sequential = LinearSegmentedColormap.from_list(
            "aid_sequential", ["#f4f7fb", "#c3d9f0", "#82b3e0", "#3d85cc", "#1d5a9e", "#0d3563"]
        )
        self.diverging = LinearSegmentedColormap.from_list(
            "aid_diverging", ["#8a3f04", "#d3660c", "#f0b98c", "#f7f6f4", "#9cc4ea", "#2d7dd2", "#123f73"]
        )

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterable[str]:
        return iter([self[name] for name in self.names])

    def __getitem__(self, key: int | str) -> str:
        """The colour by number (counted round and round) or by name."""
        name = key if isinstance(key, str) else self.names[key % len(self.names)]
        if name not in (*self.names, "ink"):
            raise KeyError(f"the palette has no {name!r}; it has {', '.join(self.names)}")
        colour: str = getattr(self, name)
        return colour

    @staticmethod
    def on(colour: Any) -> str:
        """Black or white, whichever reads better on `colour` (always 4.5:1 or more); neither follows the page."""
        luminance = sum(
            share * (channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4)
            for share, channel in zip((0.2126, 0.7152, 0.0722), to_rgb(colour), strict=True)
        )
        # A black one step off, since black itself follows the page.
        return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000001"


palette = Palette()


def _set_style() -> None:
    """Give every figure of the book the same calm look; called once, on import."""
    mpl.rcParams.update(
        {
            "svg.fonttype": "none",
            "figure.figsize": (6.8, 3.6),
            "figure.constrained_layout.use": True,
            "font.size": 10.5,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.8,
            "axes.prop_cycle": cycler(color=[palette[name] for name in palette.names]),
            "lines.linewidth": 2.0,
            "lines.markersize": 5,
            "grid.color": palette.grey,
            "grid.alpha": 0.25,
            "grid.linewidth": 0.7,
            "legend.frameon": False,
            "image.cmap": "viridis",
            "image.interpolation": "nearest",
        }
    )
    for colour_map in (palette.sequential, palette.diverging):
        mpl.colormaps.register(colour_map, force=True)
    mpl.rcParams["image.cmap"] = palette.sequential.name


_set_style()


def seeded(seed: int = 0) -> np.random.Generator:
    """A NumPy generator, after Python's, NumPy's and torch's own chance were fixed to the same seed.

    Args:
        seed: any integer ≥ 0; the same seed gives the same page.

    Returns:
        `numpy.random.default_rng(seed)`.

    Example:
        >>> seeded(7).integers(100, size=3).tolist() == seeded(7).integers(100, size=3).tolist()
        True
    """
    import torch  # here, so that a lesson in plain NumPy pays for torch only when it asks for chance

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


def show(fig: Figure, *, label: str, alt: str, caption: str = "") -> None:
    """Puts a matplotlib figure on the page as inline SVG, and closes it.

    Args:
        fig: the figure; text, axes and everything else in black will follow the page's theme.
        label: unique in the book, starting with the chapter's slug, such as `additive-decay`.
        alt: what the figure shows, in words, for those who cannot see it.
        caption: the line below the figure; may be empty.

    Raises:
        ValueError: if the label is malformed or the alternative text is missing.
    """
    _check(label, alt)
    _write(_figure(label, f'<div class="aid-plot">{_svg(fig, label, alt)}</div>', caption))


def table(rows: Iterable[Sequence[Any]], columns: Sequence[str], *, caption: str = "") -> None:
    """Puts a table on the page, with numbers written for people.

    Args:
        rows: the lines; a cell is a string, a number, a truth value or None.
        columns: the heads.
        caption: the line above the table; may be empty.

    Raises:
        ValueError: if a line has not as many cells as there are heads.

    Example:
        >>> table([["dot", 16_777_216, 0.25]], ["score", "multiplications", "share"])  # doctest: +SKIP
    """
    _write(_table(rows, columns, caption))


def widget(
    kind: str,
    data: Mapping[str, Any],
    *,
    label: str,
    alt: str,
    caption: str = "",
    static: Figure | None = None,
) -> None:
    """Puts an interactive figure on the page, which needs no kernel and falls back to a static one.

    Args:
        kind: one of `WIDGET_KINDS`; CONTRIBUTING.md says what each is for.
        data: what the page's own cell computed; arrays and NumPy numbers are welcome. The keys that must be there are
            listed in `WIDGET_KINDS`.
        label: unique in the book, starting with the chapter's slug.
        alt: what can be seen and done, in words.
        caption: the line below.
        static: the picture for readers without JavaScript; without it, a table or plot is made from the data.

    Raises:
        ValueError: if the kind is unknown, a key is missing, the label is malformed or `alt` is empty.
    """
    _check(label, alt)
    if kind not in WIDGET_KINDS:
        raise ValueError(f"no widget of kind {kind!r}; there are {', '.join(WIDGET_KINDS)}")
    missing = [key for key in WIDGET_KINDS[kind] if key not in data]
    if missing:
        raise ValueError(f"the data of a {kind!r} widget needs {', '.join(missing)}")
    plain = _plain(data)
    _check_shapes(kind, plain)
    fallback = _fallback(kind, plain, label, alt) if static is None else _svg(static, f"{label}-static", alt)
    body = _element(kind, plain, "", fallback, alt)
    _write(_figure(label, body, caption))


def live(
    kind: str,
    models: Mapping[str, Mapping[str, torch.Tensor]],
    settings: Mapping[str, Any],
    *,
    label: str,
    alt: str,
    static: Figure,
    examples: Sequence[str],
    caption: str = "",
    input_title: str = "type here",
    output_title: str = "output",
    row_title: str = "output",
    column_title: str = "input",
) -> None:
    """Puts trained models on the page, to run in the reader's browser while they type.

    Args:
        kind: the forward pass, a name in the registry of `web/forward.js`, such as "translator".
        models: the state of each model by name. The weights are rounded to 16 bits (`rounded`); all of them together
            make one file beside the page, of at most `ext.live.LIMIT` bytes.
        settings: what that forward pass needs beside the weights; `web/forward.js` says what.
        label: unique in the book, starting with the chapter's slug; the file is called `<label>.safetensors`.
        alt: what can be seen and done, in words.
        static: the picture for readers without JavaScript.
        examples: inputs to offer; the first is shown at the start.
        caption: the line below.
        input_title: the name of the field.
        output_title: the name of what comes out.
        row_title: what a row of the matrix of weights is.
        column_title: what a column is.

    Raises:
        ValueError: if the label is malformed, `alt` or `examples` is empty, or the models are too large.
    """
    _check(label, alt)
    if not examples:
        raise ValueError(f"{label}: give at least one example to start with")
    file = f"{label}.safetensors"
    data = {"kind": kind, "file": file, "examples": list(examples)}
    data |= {"input_title": input_title, "output_title": output_title}
    data |= {"row_title": row_title, "column_title": column_title}
    body = _element(
        "live", data, embedded(pack(models, _plain(settings)), file), _svg(static, f"{label}-static", alt), alt
    )
    _write(_figure(label, body, caption))


def _element(kind: str, data: dict[str, Any], extra: str, fallback: str, alt: str) -> str:
    """The custom element with its data, and what stands in its place without JavaScript."""
    # "</" would end the script element early, whatever it stands in.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    return (
        f'<aid-{kind} role="group" aria-label="{html.escape(alt)}">'
        f'<script type="application/json">{text}</script>{extra}'
        f'<div class="aid-static">{fallback}</div></aid-{kind}>'
    )


def _check(label: str, alt: str) -> None:
    if not LABEL.fullmatch(label):
        raise ValueError(f"label {label!r}: small letters, digits and _, in parts joined by -, the slug first")
    if len(alt.split()) < 3:
        raise ValueError(f"{label}: say in alt what the figure shows (at least a few words)")


def _write(markup: str) -> None:
    display(HTML(markup))  # type: ignore[no-untyped-call]


def _figure(label: str, body: str, caption: str) -> str:
    foot = f"<figcaption>{_inline(caption)}</figcaption>" if caption else ""
    return f'<figure class="aid-figure" id="{label}-figure">{body}{foot}</figure>'


def _inline(text: str) -> str:
    """HTML of a line of text with `code` and $maths$."""
    parts = re.split(r"(`[^`]+`|(?<!\\)\$[^$]+\$)", text)
    return "".join(
        f"<code>{html.escape(part[1:-1])}</code>"
        if part.startswith("`") and len(part) > 2
        else f'<span class="math notranslate">\\({html.escape(part[1:-1])}\\)</span>'
        if part.startswith("$") and len(part) > 2
        else html.escape(part.replace("\\$", "$"), quote=False)
        for part in parts
    )


def _svg(fig: Figure, label: str, alt: str) -> str:
    """The figure as SVG text that stands alone in a page among others: own ids, no size, no background, page's ink."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": label, "svg.fonttype": "none"}):
        fig.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(fig)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, count=1, flags=re.S)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)
    wanted = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))

    def own_id(match: re.Match[str]) -> str:
        return f' id="{label}-{match[1]}"' if match[1] in wanted else ""

    svg = re.sub(r'\sid="([^"]+)"', own_id, svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{label}-", svg)
    svg = re.sub(r"#000000\b", "currentColor", svg)
    # The page's own font in place of matplotlib's long list, in both forms that matplotlib writes.
    svg = re.sub(r"(font: [^'\"]*?[\d.]+px|font-family:) '[^;\"]*", rf"\1 {FONT}", svg)
    width, height = (float(number) for number in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())  # type: ignore[union-attr]
    style = f"width: 100%; max-width: {width * 4 / 3:.0f}px; height: auto; stroke-linejoin: round"
    head = (
        f'<svg class="aid-svg" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(alt)}" '
        f'fill="currentColor" style="{style}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    # A style block inside an SVG is global to the page; what matplotlib puts there is set on the element instead.
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.S)
    return head + re.sub(r"\s*\n\s*", " ", svg[svg.index(">") + 1 :]).replace("<g >", "<g>")


def _number(value: Any) -> str:
    """A number as people write it: thin spaces between thousands, four digits that matter, powers of ten."""
    if isinstance(value, (int, np.integer)):
        return f"{int(value):,}".replace(",", "\u202f").replace("-", "\u2212")
    number = float(value)
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "\u221e" if number > 0 else "\u2212\u221e"
    if number == 0:
        return "0"
    if 1e-3 <= abs(number) < 1e15 and (abs(number) < 1e6 or number == int(number)):
        digits = max(0, 3 - math.floor(math.log10(abs(number))))
        text = f"{number:,.{digits}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return text.replace(",", "\u202f").replace("-", "\u2212")
    mantissa, power = f"{number:.2e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".").replace("-", "\u2212")
    return f"{mantissa}\u00d710<sup>{str(int(power)).replace('-', chr(0x2212))}</sup>"


def _cell(value: Any) -> tuple[str, bool]:
    """The HTML of a table cell, and whether it is a number."""
    if value is None:
        return "–", False
    if isinstance(value, (bool, np.bool_)):
        return ("yes" if value else "no"), False
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, (int, float, np.integer, np.floating)):
        return _number(value), True
    return _inline(str(value)), False


def _table(rows: Iterable[Sequence[Any]], columns: Sequence[str], caption: str = "", head_column: bool = False) -> str:
    lines = [list(row) for row in rows]
    for number, line in enumerate(lines):
        if len(line) != len(columns):
            raise ValueError(f"line {number} has {len(line)} cells for {len(columns)} heads")
    cells = [[_cell(value) for value in line] for line in lines]
    # A column is set flush right when all that stands in it is numbers.
    right = [
        bool(cells) and all(numeric or text == "–" for text, numeric in (line[k] for line in cells))
        for k in range(len(columns))
    ]

    def mark(k: int) -> str:
        return ' class="aid-number"' if right[k] else ""

    head = "".join(f'<th scope="col"{mark(k)}>{_inline(str(name))}</th>' for k, name in enumerate(columns))
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{text}</th>' if head_column and k == 0 else f"<td{mark(k)}>{text}</td>"
            for k, (text, _) in enumerate(line)
        )
        + "</tr>"
        for line in cells
    )
    name = html.escape(re.sub(r"[`$]", "", caption) or "Table")
    title = f"<caption>{_inline(caption)}</caption>" if caption else ""
    # A table wider than a phone scrolls by itself; the keyboard must be able to reach it then.
    return (
        f'<div class="aid-scroll" role="region" tabindex="0" aria-label="{name}">'
        f'<table class="aid-table">{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _plain(value: Any) -> Any:
    """The value made of what JSON knows; floats keep six digits, what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple, range)):
        return [_plain(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        number = float(f"{float(value):.6g}")
        if not math.isfinite(number):
            return None
        return int(number) if number == int(number) and abs(number) < 2**53 else number
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"a widget cannot hold a {type(value).__name__}; give lists, arrays, numbers and strings")


def _check_shapes(kind: str, data: dict[str, Any]) -> None:
    """Fail in the lesson, with the place, rather than in the reader's browser."""
    if kind == MATRIX:
        for layer in data["layers"]:
            _same(len(layer["values"]), len(data["rows"]), f"layer {layer['name']!r}: lines of values and row labels")
            for line in layer["values"]:
                _same(len(line), len(data["columns"]), f"layer {layer['name']!r}: values in a line and column labels")
    elif kind == SOFTMAX:
        _same(len(data["scores"]), len(data["labels"]), "scores and labels")
    elif kind == FRAMES:
        if data.setdefault("kind", "line") not in ("line", "bar"):
            raise ValueError(f'frames are "line" or "bar", not {data["kind"]!r}')
        if data.setdefault("scale", "linear") not in ("linear", "log"):
            raise ValueError(f'the scale of frames is "linear" or "log", not {data["scale"]!r}')
        for frame in data["frames"]:
            for series in frame["series"]:
                what = f"frame {frame['name']!r}, {series['name']!r}: values and x"
                _same(len(series["values"]), len(data["x"]), what)
                if data["scale"] == "log" and any(value is not None and value <= 0 for value in series["values"]):
                    raise ValueError(f"{what.removesuffix(' and x')}: a logarithmic scale shows positive numbers only")
    elif kind == STEPPER:
        for step in data["steps"]:
            if not {"title", "text"} <= step.keys():
                raise ValueError('every step needs a "title" and a "text"')
            step["text"] = _inline(step["text"])
    elif kind == ATTENTION:
        for layer in data["layers"]:
            _same(len(layer["heads"]), len(data["layers"][0]["heads"]), "heads of the layers")
            for head in layer["heads"]:
                what = f"layer {layer['name']!r}, head {head['name']!r}: weights and"
                _same(len(head["weights"]), len(data["queries"]), f"{what} queries")
                for line in head["weights"]:
                    _same(len(line), len(data["keys"]), f"{what} keys")
    elif kind == HANDS:
        for name in ("query", "key"):
            _same(len(data[name]), 2 * len(data["thetas"]), f"the {name}'s numbers, and twice the angles")
    elif kind == PATTERNS:
        for pattern in data["patterns"]:
            masks = pattern.pop("masks")
            _same(len(masks), len(data["sizes"]), f"pattern {pattern['name']!r}: masks and sizes")
            for row in masks:
                _same(len(row), len(data["windows"]), f"pattern {pattern['name']!r}: masks and windows")
            pattern["layers"] = [[_layers(np.array(mask, dtype=bool)) for mask in row] for row in masks]
    entries = {MATRIX: "layers", ATTENTION: "layers", FRAMES: "frames", STEPPER: "steps", PATTERNS: "patterns"}
    if kind in entries and not data[entries[kind]]:
        raise ValueError(f"a {kind!r} widget needs at least one entry")


def _layers(mask: np.ndarray) -> list[str]:
    """How many layers until key j has reached query i: a digit of base 36 for each pair, "." for never."""
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    count, reached = np.where(mask, 1, 0), mask
    for layer in range(2, len(mask) + 1):
        reached = (reached.astype(int) @ mask.astype(int)) > 0
        new = reached & (count == 0)
        if new.any() and layer >= len(digits):
            raise ValueError(f"a pattern that needs {layer} layers to reach a token; choose a smaller size")
        count[new] = layer
    return ["".join(digits[k] if k else "." for k in row) for row in count]


def _same(left: int, right: int, what: str) -> None:
    if left != right:
        raise ValueError(f"{what} differ in number: {left} and {right}")


def _fallback(kind: str, data: dict[str, Any], label: str, alt: str) -> str:
    """What a reader without JavaScript sees: the first state of the widget."""
    if kind == MATRIX:
        layer = data["layers"][0]
        rows = [[name, *values] for name, values in zip(data["rows"], layer["values"], strict=True)]
        heads = [data.get("row_title", ""), *[str(name) for name in data["columns"]]]
        return _table(rows, heads, layer["name"], head_column=True)
    if kind == ATTENTION:
        layer, head = data["layers"][0], data["layers"][0]["heads"][0]
        rows = [[name, *weights] for name, weights in zip(data["queries"], head["weights"], strict=True)]
        heads = [data.get("row_title", ""), *[str(name) for name in data["keys"]]]
        return _table(rows, heads, f"{layer['name']}, {head['name']}", head_column=True)
    if kind == HANDS:
        return _svg(_draw_hands(data), f"{label}-static", alt)
    if kind == PATTERNS:
        return _svg(_draw_patterns(data), f"{label}-static", alt)
    if kind == SOFTMAX:
        scores = np.array(data["scores"], dtype=float) / float(data.get("temperature", 1.0))
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        return _table(zip(data["labels"], data["scores"], weights, strict=True), ["", "score", "weight"], "Softmax")
    if kind == MASK:
        q_seq, kv_seq = data["q_seq"], data["kv_seq"]
        rows = [[f"query {i}", *["●" if j <= i + kv_seq - q_seq else "·" for j in range(kv_seq)]] for i in range(q_seq)]
        return _table(rows, ["", *[f"key {j}" for j in range(kv_seq)]], "Causal mask", head_column=True)
    if kind == STEPPER:
        return f"<ol>{''.join(map(_step, data['steps']))}</ol>"
    frame = data["frames"][0]
    fig, axes = plt.subplots()
    places = range(len(data["x"]))
    for series in frame["series"]:
        values = [math.nan if value is None else value for value in series["values"]]
        if data["kind"] == "bar":
            axes.bar(places, values, alpha=0.7, label=series["name"])
        else:
            axes.plot(places, values, label=series["name"])
    ticks = np.unique(np.linspace(0, len(data["x"]) - 1, 6).round().astype(int))
    axes.set_xticks(ticks, [str(data["x"][k]) for k in ticks])
    axes.set(xlabel=data.get("x_title", ""), ylabel=data.get("y_title", ""), title=frame["name"], yscale=data["scale"])
    axes.legend()
    return _svg(fig, f"{label}-static", alt)


def _step(step: dict[str, Any]) -> str:
    """A step in words: title, text, and where the counters stand."""
    counters = "; ".join(f"{_inline(name)} {_number(value)}" for name, value in step.get("counters", {}).items())
    end = f" ({counters})" if counters else ""
    return f"<li><strong>{_inline(step['title'])}.</strong> {step['text']}{end}</li>"


def _draw_hands(data: dict[str, Any]) -> Figure:
    """The score of a rotated query and a rotated key over their distance."""
    query, key = (np.array(data[name]).reshape(-1, 2) @ np.array([1, 1j]) for name in ("query", "key"))
    distance = np.arange(1 - data["positions"], data["positions"])
    turned = query * key.conj() * np.exp(1j * np.outer(distance, data["thetas"]))
    fig, axes = plt.subplots(figsize=(6.8, 2.6))
    axes.plot(distance, turned.real.sum(axis=-1), color=palette.green)
    axes.set(xlabel="position of the query − position of the key", ylabel="score")
    return fig


def _draw_patterns(data: dict[str, Any]) -> Figure:
    """Who reads whom, in every pattern at the first size and window."""
    patterns = data["patterns"]
    width = min(4, len(patterns))
    height = -(-len(patterns) // width)
    fig, panels = plt.subplots(height, width, figsize=(1.75 * width, 1.95 * height), squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    for panel, pattern in zip(panels.flat, patterns, strict=False):
        panel.set_axis_on()
        panel.imshow(
            np.array([[digit == "1" for digit in row] for row in pattern["layers"][0][0]], dtype=float), vmax=1.3
        )
        panel.set(title=pattern["name"], xticks=[], yticks=[])
    return fig
