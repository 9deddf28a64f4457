"""The widgets in a real browser: each is driven by keyboard, pointer and touch; models in the page equal torch."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import numpy as np
import pytest
import test_book
import torch
from browsing import needs_chromium, serving
from matplotlib import pyplot as plt
from playwright.sync_api import Browser, Page
from safetensors import safe_open
from safetensors.torch import load_file
from test_book import _violations, _visit

from ext import lesson, live
from ext.freshness import CODE

ROOT = Path(__file__).resolve().parents[1]
LESSON = ROOT / "chapters" / "additive" / "lesson.md"
MODEL = "additive-date-live"

pytestmark = pytest.mark.browser


# --- models in the page


def definitions() -> dict[str, Any]:
    """What the lesson's own cells define: the alphabets, `encode`, `pair`, the modules."""
    names: dict[str, Any] = {}
    cells = {match[1]: cell["body"] for cell in CODE.finditer(LESSON.read_text(encoding="utf-8"))
             if (match := re.search(r"^:label: (\S+)$", cell["body"], re.M))}  # fmt: skip
    imports = next(CODE.finditer(LESSON.read_text(encoding="utf-8")))["body"]
    wanted = [imports, *(cells[f"additive-{name}"] for name in ("decoder", "date-data", "date-model"))]
    for body in wanted:
        exec(re.sub(r"^:.*$", "", body, flags=re.M), names)
    return names


@pytest.fixture(scope="session")
def additive() -> dict[str, Any]:
    return definitions()


def inputs(names: dict[str, Any], count: int) -> list[str]:
    """Half dates in all the ways that the lesson knows, half whatever characters come."""
    rng = np.random.default_rng(20)
    dates = [names["pair"](rng, rng.integers(36_525))[0] for _ in range(count // 2)]
    letters = list(names["SOURCE"])
    return dates + ["".join(rng.choice(letters, size=rng.integers(1, 31))) for _ in range(count - len(dates))]


RUN = """async ([kind, folder, file, asked]) => {
  const { readTensors } = await import(folder + "tensor.js");
  const { forwards } = await import(folder + "forward.js");
  const { tensors, settings } = readTensors(await (await fetch(file)).arrayBuffer());
  return asked.map(([text, switches]) => {
    const begin = performance.now();
    const { output, logits, weights } = forwards[kind].run(tensors, settings, text, switches);
    const ms = performance.now() - begin;
    return { output, ms, logits: Array.from(logits.data), weights: Array.from(weights.data) };
  });
}"""


def first_answer(page: Page) -> float:
    """Milliseconds from the page being shown (first contentful paint) to the first answer of its model."""
    page.wait_for_function("performance.getEntriesByName('aid-live-first').length")
    return page.evaluate(
        """() => performance.getEntriesByName("aid-live-first")[0].startTime
        - performance.getEntriesByName("first-contentful-paint")[0].startTime"""
    )


def compare(page: Page, folder: str, file: Path, names: dict[str, Any], count: int) -> tuple[float, list[float]]:
    """Largest difference between browser and torch in logits and weights, on the weights of the file; milliseconds."""
    with safe_open(file, "pt") as content:
        settings = json.loads(content.metadata()["settings"])
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    cases = [(0, True, False), (1, True, False), (1, False, False), (0, True, True), (1, True, True)]
    models = []
    for number, scaled, even in cases:
        entry = settings["models"][number]
        model = names["DateTranslator"](
            attention=names["DotAttention"] if "scale" in entry else names["additive"].AdditiveAttention
        )
        state = {
            name.removeprefix(entry["prefix"]): value
            for name, value in tensors.items()
            if name.startswith(entry["prefix"])
        }
        model.load_state_dict(state)
        if "scale" in entry and not scaled:
            model.decoder.step.attention.scale = 1.0
        if even:
            model.decoder.step.attention = names["EvenAttention"]()
        models.append((model, {"model": number, "scaled": scaled, "even": even}))
    worst, texts = 0.0, inputs(names, count)
    asked = [[text, models[k % len(models)][1]] for k, text in enumerate(texts)]
    found = page.evaluate(RUN, ["translator", folder, file.name, asked])
    assert len({answer["output"] for answer in found}) > count // 5, "the answers hardly differ"
    for k, (text, answer) in enumerate(zip(texts, found, strict=True)):
        with torch.no_grad():
            logits, weights = models[k % len(models)][0](*names["encode"]([(text, "0" * 10)]), taught=False)
        for ours, theirs in ((answer["logits"], logits), (answer["weights"], weights)):
            assert len(ours) == theirs.numel()
            worst = max(worst, float(np.abs(np.array(ours) - theirs.numpy().ravel()).max()))
    return worst, [answer["ms"] for answer in found]


@needs_chromium
def test_a_model_in_the_browser_gives_the_numbers_of_torch(
    browser: Browser, bench: str, bench_folder: Path, additive: dict[str, Any]
) -> None:
    """250 inputs, both scores, every switch, on weights so large that gates and softmax leave their middle."""
    with _visit(browser, bench, "") as page:
        difference, times = compare(page, bench, bench_folder / f"{MODEL}.safetensors", additive, 250)
        assert difference < 1e-4 and np.median(times) < 50


@needs_chromium
def test_the_models_of_the_lesson_answer_fast_and_right(
    browser: Browser, site: str, book: Path, additive: dict[str, Any]
) -> None:
    """The file is small, equals torch and answers days held out; the first answer comes within a second of the page."""
    file = book / "chapters" / "additive" / f"{MODEL}.safetensors"
    assert file.stat().st_size <= live.LIMIT
    assert "octet-stream" not in (file.parent / "lesson.html").read_text(encoding="utf-8"), "the page carries no bytes"
    times = []
    for _ in range(2):
        with _visit(browser, site, "chapters/additive/lesson.html") as page:
            times.append(first_answer(page))
    with _visit(browser, site, "chapters/additive/lesson.html") as page:
        # Other programs may hold the machine up at any moment; that is not the page's doing.
        assert min(*times, first_answer(page)) < 1000
        assert compare(page, f"{site}_static/", file, additive, 250)[0] < 1e-4
        box = page.locator("aid-live")
        rng = np.random.default_rng(21)
        held_out = [additive["pair"](rng, day) for day in additive["days"][:1000][:40]]
        right, times = 0, []
        for written, iso in held_out:
            box.locator("input[type=text]").fill(written)
            page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            right += box.locator("output.aid-output").inner_text() == iso
            times.append(page.evaluate("performance.getEntriesByName('aid-live').at(-1).duration"))
        assert right >= 36, f"{right} of 40 days that the model has never seen"
        assert np.median(times) < 50, "milliseconds from a keystroke's frame to its picture"


def referent_definitions() -> dict[str, Any]:
    """Vocabulary, task and module of the pronoun task, from the lesson's cell; what that cell trains is left out."""
    text = (ROOT / "chapters" / "multi_head" / "lesson.md").read_text(encoding="utf-8")
    cells = [re.sub(r"^:.*$", "", match["body"], flags=re.M) for match in CODE.finditer(text)]
    cell = ast.parse(next(body for body in cells if "class Referent(" in body))
    kept = [
        node
        for node in cell.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        or (isinstance(node, ast.Assign) and all(name.id.isupper() for name in ast.walk(node.targets[0])
                                                 if isinstance(name, ast.Name)))
    ]  # fmt: skip
    names: dict[str, Any] = {}
    exec(cells[0], names)
    exec(compile(ast.Module(kept, []), "lesson", "exec"), names)
    return names


@needs_chromium
def test_the_model_that_finds_referents_equals_torch_and_answers_as_one_types(
    browser: Browser, site: str, book: Path
) -> None:
    """200 texts, each head shown and silenced: logits and weights of torch on the file's weights, and right answers."""
    names = referent_definitions()
    file = book / "chapters" / "multi_head" / "multi_head-pronoun-live.safetensors"
    assert file.stat().st_size <= live.LIMIT
    model = names["Referent"](names["HEADS"])
    model.load_state_dict({key.removeprefix("referent."): value.float() for key, value in load_file(file).items()})
    words, whom = names["stories"](np.random.default_rng(22), 200)
    texts = [" ".join(names["WORDS"][word] for word in line[: 1 + k % len(line)]) for k, line in enumerate(words)]
    switches = [{"head": k % names["HEADS"], "silent": k % 3 == 0} for k in range(len(texts))]
    with _visit(browser, site, "chapters/multi_head/lesson.html") as page:
        asked = [list(one) for one in zip(texts, switches, strict=True)]
        found = page.evaluate(RUN, ["referent", f"{site}_static/", file.name, asked])
        for line, text, switch, answer in zip(words, texts, switches, found, strict=True):
            with torch.no_grad():
                silent = (switch["head"],) if switch["silent"] else ()
                logits, weights = model(line[None, : len(text.split())], silent=silent)
            shown = weights[0, switch["head"]]
            for ours, theirs in ((answer["logits"], logits), (answer["weights"], shown)):
                assert np.abs(np.array(ours) - theirs.numpy().ravel()).max() < 1e-4, text
        box = page.locator("aid-live")
        asked_for, right = 0, 0
        for line, who in zip(words[:30], whom[:30], strict=True):
            box.locator("input[type=text]").fill(" ".join(names["WORDS"][word] for word in line))
            page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            said = box.locator("output.aid-output").inner_text().split(", ")
            meant = [int(one) for word, one in zip(line, who, strict=True) if names["WORDS"][word] in names["PRONOUNS"]]
            for one, person in zip(said, meant, strict=True) if meant else ():
                if person >= 0:
                    asked_for += 1
                    right += one.endswith(f"→ {names['PEOPLE'][person]}")
        assert asked_for > 30 and right >= 0.9 * asked_for, f"{right} of {asked_for} pronouns"


def test_the_file_holds_the_rounded_weights_and_the_page_lets_it_go(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(3, 4), "b": torch.randn(5)}
    content = live.pack({"one": state}, {"source": "äb"})
    page = f"<p>before</p>{live.embedded(content, 'demo-one.safetensors')}<p>after</p>"
    assert live.extract(page, tmp_path / "beside") == ("<p>before</p><p>after</p>", ["demo-one.safetensors"])
    loaded = load_file(tmp_path / "beside" / "demo-one.safetensors")
    assert loaded.keys() == {"one.a.weight", "one.b"}
    for name, tensor in live.rounded(state).items():
        assert torch.equal(loaded[f"one.{name}"].float(), tensor) and not torch.equal(tensor, state[name])
    assert live.pack({"one": state}, {"source": "äb"}) == content, "the same weights give the same bytes"
    with pytest.raises(ValueError, match="smaller"):
        live.pack({"one": {"w": torch.zeros(500, 500)}}, {})
    with pytest.raises(ValueError, match="not finite"):
        live.pack({"one": {"w": torch.full((2,), 1e6)}}, {})


# --- one of each kind, on a page of their own


def masks(size: int, window: int) -> np.ndarray:
    back = np.subtract.outer(np.arange(size), np.arange(size))
    return (back >= 0) & (back < window)


EVERY: dict[str, dict[str, Any]] = {
    "attention": {
        "queries": ["the", "cat", "sat"],
        "keys": ["the", "cat", "sat"],
        "layers": [
            {"name": "first", "heads": [
                {"name": "one", "weights": [[0.2, 0.3, 0.5], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]]},
                {"name": "two", "weights": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}]},
            {"name": "second", "heads": [
                {"name": "one", "weights": [[0, 0, 1], [0, 0, 1], [0, 0, 1]]},
                {"name": "two", "weights": [[0.5, 0.5, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]]}]},
        ],
        "masks": True,
    },
    "hands": {
        "thetas": [1.0, 0.1, 0.01], "query": [1.0, 0.0, 0.5, 0.5, 0.0, 1.0], "key": [0.8, 0.2, 1.0, 0.0, 0.3, 0.9],
        "positions": 17,
    },
    "patterns": {
        "sizes": [8, 16], "windows": [2, 4],
        "patterns": [
            {"name": "sliding window", "says": "Each token reads itself and those just before it.",
             "masks": [[masks(n, w) for w in (2, 4)] for n in (8, 16)]},
            {"name": "all before", "says": "Each token reads all before it.",
             "masks": [[masks(n, n) for _ in (2, 4)] for n in (8, 16)]},
        ],
    },
    "stepper": {
        "steps": [
            {"title": "Load", "text": "A tile comes in.", "counters": {"reads, tiled": 64, "reads, naive": 256},
             "matrices": [{"name": "state", "values": [[0.0, -2.0], [1.0, 4.0]], "shade": True}]},
            {"title": "Store", "text": "A tile goes out.", "counters": {"reads, tiled": 128, "reads, naive": 1024}},
        ]
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def bench_folder(tmp_path_factory: pytest.TempPathFactory, additive: dict[str, Any]) -> Path:
    """A page with these widgets and a model of large random weights, beside the book's own styles and modules."""
    folder = tmp_path_factory.mktemp("widgets")
    for file in (ROOT / "web").iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    written: list[str] = []
    torch.manual_seed(5)
    kinds = {"additive": additive["additive"].AdditiveAttention, "dot": additive["DotAttention"]}
    states = {}
    for name, kind in kinds.items():
        state = additive["DateTranslator"](attention=kind).state_dict()
        states[name] = {part: 4 * value for part, value in state.items()}
        states[name]["decoder.read.bias"].zero_()  # so that it is the input that decides what is written
    settings = {
        "source": additive["SOURCE"], "target": additive["TARGET"], "length": 10, "longest": 30,
        "models": [{"name": "additive", "prefix": "additive.", "score": "additive"},
                   {"name": "dot product", "prefix": "dot.", "score": "dot", "scale": 40**-0.5}],
    }  # fmt: skip
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    original, lesson._write = lesson._write, written.append
    try:
        for kind, content in {**test_book.EVERY, **EVERY}.items():
            lesson.widget(kind, content, label=f"bench-{kind}", alt=f"A widget of kind {kind} to try.")
        lesson.live(
            "translator", states, settings, label=MODEL, alt="A model to try out here.", static=figure,
            examples=["3 march 98", "1/2"], input_title="a date", output_title="the model writes",
        )  # fmt: skip
    finally:
        lesson._write = original
    page = (
        '<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>Bench</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="favicon.svg">'
        '<link rel="stylesheet" href="widgets.css"><script type="module" src="widgets.js"></script></head>'
        f'<body style="background: white"><main><h1>Bench</h1>{"".join(written)}</main></body></html>'
    )
    (folder / "index.html").write_text(live.extract(page, folder)[0], encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def bench(bench_folder: Path) -> Iterator[str]:
    with serving(bench_folder) as address:
        yield address


@needs_chromium
def test_a_live_model_follows_the_typing_and_its_switches(browser: Browser, bench: str) -> None:
    with _visit(browser, bench, "") as page:
        box = page.locator("aid-live")
        field, output = box.get_by_label("a date"), box.locator("output.aid-output")
        before = output.inner_text()
        assert len(before) == 10 and box.locator("tbody tr").count() == 10
        assert box.locator("tbody tr").first.locator("td").count() == len("3 march 98")
        field.focus()
        page.keyboard.press("End")
        page.keyboard.type("7")
        page.wait_for_function("document.querySelector('aid-live tbody tr').children.length === 12")
        field.fill("3 März 98")  # one character that the model does not know
        page.wait_for_function("document.querySelector('aid-live .aid-said').textContent.includes('left out')")
        field.fill("")
        page.wait_for_function("document.querySelector('aid-live .aid-output').textContent === '–'")
        box.get_by_role("button", name="3 march 98").click()
        assert output.inner_text() == before
        scaled = box.get_by_label("divide dot products by √d")
        assert not scaled.is_visible(), "the additive score has nothing to divide"
        box.get_by_label("additive").focus()
        page.keyboard.press("ArrowRight")
        dot = box.locator("tbody").inner_html()
        scaled.focus()
        page.keyboard.press("Space")
        assert box.locator("tbody").inner_html() != dot
        box.get_by_label("attention off").check()
        box.locator("td[tabindex='0']").focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("End")
        assert re.fullmatch(
            r"writing \S+ \(place 2\), looking at 8 \(place 10\): weight 0\.1", box.locator(".aid-reading").inner_text()
        )


@needs_chromium
def test_a_model_that_cannot_be_had_leaves_the_picture(browser: Browser, bench: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.route("**/*.safetensors", lambda route: route.abort())
    page.goto(bench, wait_until="networkidle")
    assert page.locator("aid-live .aid-static svg").is_visible() and page.locator("aid-live input").count() == 0
    context.close()


@needs_chromium
def test_the_explorer_shows_layers_heads_temperature_and_masks(browser: Browser, bench: str) -> None:
    with _visit(browser, bench, "") as page:
        box = page.locator("aid-attention")
        reading, cells = box.locator(".aid-reading"), box.locator("td")
        assert reading.inner_text() == "query the: most on sat, 0.5 · effective support 2.8 of 3"
        box.locator("td[tabindex='0']").focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        assert reading.inner_text().startswith("query cat: weight of cat 0.8")
        heat = box.get_by_label("temperature")
        heat.focus()
        page.keyboard.press("Home")  # T = 1/4: fourth powers
        assert heat.get_attribute("aria-valuetext") == "0.25"
        powers = np.array([0.2, 0.3, 0.5]) ** 4
        assert cells.all_inner_texts()[:3] == [f"{w:.2f}" for w in powers / powers.sum()]
        heat.fill("0")
        box.get_by_label("causal").check()
        assert cells.all_inner_texts()[:6] == ["1.00", "0.00", "0.00", "0.11", "0.89", "0.00"]
        box.get_by_label("two").check()
        box.get_by_label("second").check()
        assert cells.all_inner_texts()[6:] == ["0.50", "0.50", "0.00"]
        box.get_by_label("not itself").check()
        assert cells.all_inner_texts()[3:6] == ["1.00", "0.00", "0.00"]
        cells.nth(8).hover()
        assert reading.inner_text().startswith("query sat: weight of sat 0 ")
        assert box.locator(".aid-token").all_inner_texts() == ["the", "cat", "sat"]


@needs_chromium
def test_the_hands_turn_and_the_score_depends_on_the_distance_alone(browser: Browser, bench: str) -> None:
    content = EVERY["hands"]
    query, key = (np.array(content[name]).reshape(-1, 2) @ np.array([1, 1j]) for name in ("query", "key"))

    def score(back: int) -> float:
        return float((query * key.conj() * np.exp(1j * back * np.array(content["thetas"]))).real.sum())

    with _visit(browser, bench, "") as page:
        box = page.locator("aid-hands")
        reading = box.locator(".aid-reading")

        def shown() -> float:
            return float(reading.inner_text().split("score ")[1].replace("−", "-"))

        ask, answer = box.get_by_label("position of the query"), box.get_by_label("position of the key")
        assert shown() == pytest.approx(score(4), rel=1e-3)
        ask.focus()
        page.keyboard.press("ArrowRight")
        assert shown() == pytest.approx(score(5), rel=1e-3)
        hand = box.locator(".aid-keyhand").first
        before = shown(), hand.get_attribute("x2")
        box.get_by_label("move both together").check()
        ask.focus()
        page.keyboard.press("ArrowRight")
        assert (ask.input_value(), answer.input_value()) == ("6", "1")
        assert shown() == before[0] and hand.get_attribute("x2") != before[1]
        page.keyboard.press("End")  # the key stops where the query does, the distance stays
        assert (ask.input_value(), answer.input_value()) == ("16", "11") and shown() == before[0]


@needs_chromium
def test_the_patterns_count_pairs_and_layers(browser: Browser, bench: str) -> None:
    with _visit(browser, bench, "") as page:
        box = page.locator("aid-patterns")
        count = box.locator(".aid-count")
        assert count.inner_text() == (
            "15 of 64 pairs (23 %), at most 2 keys for a query; 7 layers reach all but 28 pairs."
        )
        box.get_by_label("window", exact=True).fill("1")
        assert "26 of 64 pairs" in count.inner_text() and "3 layers reach all" in count.inner_text()
        box.get_by_label("tokens").fill("1")
        assert box.locator("td").count() == 256
        box.locator("td[tabindex='0']").focus()
        for _ in range(7):
            page.keyboard.press("ArrowDown")
        assert box.locator(".aid-reading").inner_text() == "query 7, key 0: not read; reached after 3 layers"
        cell = box.locator("tr").nth(7).locator("td").first
        assert cell.evaluate("e => e.style.background") == "none"
        box.get_by_label("and after how many layers").check()
        cell = box.locator("tr").nth(7).locator("td").first
        assert "aid-green" in cell.get_attribute("style")
        box.get_by_label("all before").check()
        assert "136 of 256 pairs" in count.inner_text() and "1 layer reaches" in count.inner_text()


@needs_chromium
def test_the_stepper_counts(browser: Browser, bench: str) -> None:
    with _visit(browser, bench, "") as page:
        box = page.locator("aid-stepper")
        counters, bars = box.locator(".aid-counters"), box.locator(".aid-bar")
        assert counters.inner_text().split("\n") == ["reads, tiled", "64", "reads, naive", "256"]
        assert bars.nth(1).evaluate("e => e.style.width") == "25%"
        assert box.locator("td").nth(1).evaluate("e => e.style.background").count("orange") == 1
        box.get_by_role("button", name="next").click()
        assert counters.inner_text().split("\n") == ["reads, tiled", "128", "reads, naive", "1024"]


@needs_chromium
def test_a_finger_is_enough(browser: Browser, bench: str) -> None:
    """On a phone: taps choose cells, switches and buttons; a drag moves a slider; nothing is wider than the screen."""
    with _visit(browser, bench, "", width=360, has_touch=True, is_mobile=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 361
        page.locator("aid-attention td").nth(4).tap()
        assert page.locator("aid-attention .aid-reading").inner_text().startswith("query cat: weight of cat 0.8")
        page.locator("aid-hands").get_by_text("move both together").tap()
        assert page.locator("aid-hands").get_by_label("move both together").is_checked()
        page.locator("aid-patterns td").nth(9).tap()
        assert "query 1, key 1" in page.locator("aid-patterns .aid-reading").inner_text()
        page.locator("aid-stepper").get_by_role("button", name="next").tap()
        assert "Store" in page.locator("aid-stepper").inner_text()
        page.locator("aid-live").get_by_role("button", name="1/2").tap()
        assert page.locator("aid-live tbody tr").first.locator("td").count() == 3
        page.locator("aid-mask").get_by_text("padding").tap()
        assert page.locator("aid-mask .aid-count").inner_text().startswith("8 of 12 pairs")
        page.locator("aid-frames svg").tap(position={"x": 290, "y": 40})
        assert "key 3: raw 0.7" in page.locator("aid-frames .aid-reading").inner_text()
        page.locator("aid-softmax").get_by_label("temperature").tap(position={"x": 1, "y": 16})
        assert page.locator("aid-softmax .aid-barvalue").first.inner_text() == "1.000"
        slider = page.locator("aid-hands").get_by_label("position of the query")
        slider.scroll_into_view_if_needed()
        edge = slider.bounding_box()
        assert edge is not None
        touch = page.context.new_cdp_session(page)
        middle = edge["y"] + edge["height"] / 2
        start = edge["x"] + edge["width"] * 4 / 16

        def send(kind: str, *points: float) -> None:
            touch.send(
                "Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": middle} for x in points]}
            )

        send("touchStart", start)
        for share in (0.4, 0.6, 0.8, 1.0):
            send("touchMove", edge["x"] + (edge["width"] - 4) * share)
        send("touchEnd")
        assert slider.input_value() == "16"


@needs_chromium
def test_who_asked_for_less_motion_gets_none(browser: Browser, bench: str) -> None:
    moving = """() => [...document.querySelectorAll('.aid-widget *')].map((e) => getComputedStyle(e)).filter(
        (style) => parseFloat(style.transitionDuration) || style.animationName !== 'none').length"""
    with _visit(browser, bench, "", reduced_motion="no-preference") as page:
        assert page.evaluate(moving) > 0
    with _visit(browser, bench, "", reduced_motion="reduce") as page:
        assert page.evaluate(moving) == 0


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Browser, bench: str, scheme: str) -> None:
    with _visit(browser, bench, "", scheme) as page:
        if scheme == "dark":
            page.evaluate("document.documentElement.dataset.theme = 'dark'")
            page.evaluate("document.body.style = 'background: #14171c; color: #e8e8e8'")
        assert _violations(page) == []


@needs_chromium
def test_without_scripts_there_is_a_picture_or_a_table(browser: Browser, bench: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(bench)
    for kind in [*test_book.EVERY, *EVERY, "live"]:
        static = page.locator(f"aid-{kind} .aid-static")
        assert static.locator("svg, table, ol").first.is_visible(), kind
        assert "reads, naive 1\u202f024" in page.locator("aid-stepper").inner_text()
        assert page.locator(f"aid-{kind} .aid-widget").count() == 0
    context.close()


@pytest.fixture
def page_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    written: list[str] = []
    monkeypatch.setattr(lesson, "_write", written.append)
    return written


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("hands", {"query": [1.0]}, "differ in number"),
        ("attention", {"keys": ["a"]}, "differ in number"),
        ("attention", {"layers": []}, "at least one"),
        ("patterns", {"sizes": [8]}, "differ in number"),
        ("patterns", {"sizes": [64], "windows": [2], "patterns": [{"name": "w", "masks": [[masks(64, 2)]]}]}, "small"),
    ],
)  # fmt: skip
def test_data_that_would_fail_in_the_browser_is_refused(
    page_of: list[str], kind: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        lesson.widget(kind, {**EVERY[kind], **change}, label="bench-x", alt="one two three")


def test_every_module_is_a_few_kilobytes() -> None:
    for file in (ROOT / "web").glob("*.js"):
        assert file.stat().st_size < 8_000, file.name
