"""The source check: which forbidden calls an exercise's code can reach.

What it leads to is for `reading` to say; here the dotted names in it are compared with what the exercise's contract
rules out. `exec`, `eval`, `ctypes`, importing by string and their like are ruled out in every exercise. What lies
elsewhere in the notebook and could reach an exercise unseen is for `alone` to leave out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

from autograder.grading.reading import (
    BARE,
    Reach,
    Reading,
    Scope,
    Statement,
    dotted,
    imported,
    library_object,
    root,
)

# Ruled out in every exercise: what makes code or names out of text, or leads to what runs the notebook.
EVERYWHERE = (
    *BARE,
    *(f"builtins.{name}" for name in ("exec", "eval", "compile", "__import__", "globals", "vars")),
    "__main__",
    "autograder",
    "code",
    "codeop",
    "ctypes",
    "gc",
    "importlib",
    "inspect",
    "marshal",
    "multiprocessing",
    "numpy.ctypeslib",
    "numpy.load",
    "pickle",
    "pkgutil",
    "runpy",
    "sys.modules",
    "sys.path",
    "sys.setprofile",
    "sys.settrace",
    "threading",
    "torch._C",
    "torch.hub",
    "torch.load",
    "torch.utils._python_dispatch",
    "torch.utils.cpp_extension",
    "tracemalloc",
    "triton.runtime",
    "types.CodeType",
    "types.FunctionType",
    "types.LambdaType",
    "unittest",
)
# Attributes by which code, names and frames can be reached, whatever they are attributes of.
BACKDOORS = (
    *("__annotations__", "__builtins__", "__closure__", "__code__", "__defaults__", "__dict__", "__globals__"),
    *("__kwdefaults__", "__loader__", "__self__", "__spec__", "__subclasses__", "_evaluate", "_ip"),
    *("cr_frame", "f_back", "f_builtins", "f_globals", "f_locals", "gi_frame", "tb_frame"),
)
COMPUTED = "an attribute by a computed name"
HANDED_ON = "a module handed on as a value"
PRIVATE = "a private name of a library"
# Ruled out besides where a contract rules anything out: other roads to what it names. `*` stands for any end.
STRICT = (
    *BACKDOORS,
    COMPUTED,
    HANDED_ON,
    PRIVATE,
    *("logging.config", "numpy.f2py", "numpy.lib.format", "numpy.testing", "string.Formatter", "sys._getframe"),
    *(
        "sys.meta_path",
        "sys.path_hooks",
        "torch._*",
        "torch.ao",
        "torch.classes",
        "torch.fx",
        "torch.jit",
        "torch.lib*",
    ),
    *("torch.nn.modules.module.register_*", "torch.onnx", "torch.ops", "torch.overrides", "torch.package"),
    *("torch.testing", "torch.utils.benchmark", "typing.ForwardRef", "typing.get_type_hints"),
)
# The packages that a solution may use where a contract rules anything out. Too many others evaluate text or import.
PACKAGES = (
    *("__future__", "abc", "array", "bisect", "builtins", "cmath", "collections", "contextlib", "copy", "dataclasses"),
    *("decimal", "enum", "fractions", "functools", "heapq", "io", "itertools", "jaxtyping", "json", "logging", "math"),
    *("numbers", "numpy", "operator", "os", "pprint", "random", "re", "solutions", "statistics", "string", "sys"),
    *("textwrap", "time", "torch", "triton", "types", "typing", "warnings"),
)
# What a contract rules out with a name: what is built from it, or computes the same.
RELATIVES = {
    "torch.nn.MultiheadAttention": (
        *("torch.nn.modules.transformer.*", "torch.nn.functional.multi_head_attention_forward", "torch.nn.attention"),
    ),
    "torch.autograd": (".grad_fn", ".next_functions"),
    ".roll": ("numpy.roll",),
    ".gather": ("numpy.take_along_axis",),
    ".take_along_dim": ("numpy.take_along_axis",),
    "torch.softmax": (
        *("torch.log_softmax", "torch.nn.functional.log_softmax", "torch.nn.functional.softmin", ".log_softmax"),
        *("torch.nn.modules.activation.LogSoftmax", "torch.nn.modules.activation.Soft*", "torch.special"),
    ),
    "torch.matmul": (
        *("torch.addbmm", "torch.addmm", "torch.baddbmm", "torch.chain_matmul", "torch.inner", "torch.linalg"),
        *("torch.nn.functional.linear", "torch.nn.modules.linear.*", "torch.tensordot"),
        *(".addbmm", ".addmm", ".baddbmm"),
    ),
}


@dataclass(frozen=True)
class Finding:
    """A forbidden name, as the contract writes it, and the line of its cell."""

    name: str
    line: int


def forbidden_calls(reach: Reach, exercise: str, forbids: Sequence[str], judged: Collection[str] = ()) -> list[Finding]:
    """What the exercise's code can reach of the forbidden names.

    Args:
        reach: the notebook's code (see :func:`read`).
        exercise: name of the function or class.
        forbids: dotted names (`torch.softmax`); one that starts with a dot is a method (`.softmax`); `@` the operator.
        judged: other exercises that it may call and that answer for themselves.
    """
    wanted = ruled_out(forbids)
    found = [hit for statement in reach.reachable(exercise, judged) for hit in findings(statement, wanted, reach)]
    for statement in reach.patches:
        found += findings(statement, tuple(forbids), reach)
    return found


def ruled_out(forbids: Sequence[str]) -> tuple[str, ...]:
    """The names that an exercise may not use whose contract forbids these."""
    if not forbids:
        return EVERYWHERE
    return (*forbids, *(relative for name in forbids for relative in RELATIVES.get(name, ())), *EVERYWHERE, *STRICT)


def findings(statement: Statement, wanted: tuple[str, ...], reach: Reach) -> list[Finding]:
    """Which of these names one statement uses."""
    reading = reach.read(statement)
    if reach.stars:  # what a bare name is depends on the whole notebook
        return list(_found(reading, wanted, reach))
    if wanted not in reading.findings:
        reading.findings[wanted] = list(_found(reading, wanted, reach))
    return reading.findings[wanted]


_SPEAKING = (  # nodes that can stand for a library's name; most of a tree are others
    *(ast.Attribute, ast.AugAssign, ast.BinOp, ast.Call, ast.Global, ast.Import, ast.ImportFrom, ast.MatchClass),
    *(ast.Name, ast.Subscript),
)


def _found(reading: Reading, wanted: tuple[str, ...], reach: Reach) -> Iterator[Finding]:
    strict = HANDED_ON in wanted
    for node, scope in reading.walk:
        line = getattr(node, "lineno", 0)
        if not isinstance(node, _SPEAKING):
            continue
        if strict:
            yield from (Finding(name, line) for name in _elsewhere(node, scope, reading, reach, wanted))
        if id(node) in reading.asked:
            continue
        # What no cell imports is no module, whatever it is called, unless a star brought it.
        named = root(node)
        here = wanted if named is None or named in scope.aliases or reach.stars else _but_modules(wanted)
        for name in _library_names(node, scope, reach, reading):
            if name == f"?.{COMPUTED}" and any(forbid.startswith(".") for forbid in wanted):
                name = COMPUTED  # of a tensor it may be the method that is ruled out
            hit = (_hit if len(name) <= _MOST_LETTERS else _hit.__wrapped__)(name, here)
            if hit is not None and not (hit == "__dict__" and named == "self"):
                yield Finding(hit, line)


def _elsewhere(node: ast.AST, scope: Scope, reading: Reading, reach: Reach, wanted: tuple[str, ...]) -> Iterator[str]:
    """Ways out of what reading can follow: other packages, modules as values, attributes by computed names."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        dotted_names = [dotted_name for _, dotted_name in imported(node)] or [getattr(node, "module", None) or ""]
        for dotted_name in dotted_names:
            package = dotted_name.partition(".")[0]
            if package not in PACKAGES:
                yield package or "a relative import"
            elif id(node) in reading.of_classes and _holds(dotted_name, wanted):
                yield HANDED_ON
    elif isinstance(node, (ast.Name, ast.Attribute)) and id(node) not in reading.owners:
        names = dotted(node, scope) if root(node) in scope.aliases else []
        yield from (p for p in (name.partition(".")[0] for name in names) if p in reach.imported and p not in PACKAGES)
        yield from (PRIVATE for name in names if re.match(r"(?!(?:os|sys|torch)\.).*\._(?!_)", name))
        if id(node) in reading.handed_on and any(_holds(name, wanted) for name in names):
            yield HANDED_ON
    if isinstance(node, ast.Name) and id(node) in reading.handed_on and _GETATTR & set(dotted(node, scope)):
        yield COMPUTED
    if isinstance(node, ast.Global) and any(name in reach.scope.aliases for name in node.names):
        yield COMPUTED
    if isinstance(node, ast.Subscript) and any(name.startswith("jaxtyping.") for name in dotted(node.value, scope)):
        texts = [part.value for part in ast.walk(node.slice) if isinstance(part, ast.Constant)]
        yield from (COMPUTED for text in texts if isinstance(text, str) and "(" in text)  # it would be evaluated


def _holds(name: str, wanted: tuple[str, ...]) -> bool:
    """Whether a name is that of a module in which something forbidden lies."""
    return isinstance(library_object(name), ModuleType) and any(forbid.startswith(f"{name}.") for forbid in wanted)


@lru_cache(maxsize=256)
def _but_modules(wanted: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in wanted if name in (*BARE, *BACKDOORS) or name not in (*EVERYWHERE, *STRICT))


_MOST_LETTERS = 200  # of a name that is remembered: a notebook could make each of them as long as it is itself


@lru_cache(maxsize=4096)
def _hit(name: str, wanted: tuple[str, ...]) -> str | None:
    """The first of the forbidden names that this one is, or that what it stands for has as well."""
    thing, names = library_object(name), {name, _by_its_module(name)}
    if isinstance(thing, type) and thing.__module__.startswith("torch.nn."):
        names.add(f"{thing.__module__}.{thing.__qualname__}")
    places, shapes, things = _by_kind(wanted)
    found = [places[part] for one in names for part in _beginnings(one) if part in places]
    found += [place for place, forbid in shapes if any(_matches(one, forbid) for one in names)]
    found += [things[id(thing)]] if id(thing) in things else []
    if not found:
        return None
    forbid = wanted[min(found)]
    return name if forbid.endswith("*") else forbid


@lru_cache(maxsize=256)
def _by_kind(wanted: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[int, str]], dict[int, int]]:
    """Forbidden names by their places: those that rule out all below them, those of another shape, what they are."""
    places: dict[str, int] = {}
    shapes: list[tuple[int, str]] = []
    things: dict[int, int] = {}
    for place, forbid in enumerate(wanted):
        if forbid.startswith(".") or forbid.endswith("*") or forbid in BARE or forbid in BACKDOORS:
            shapes.append((place, forbid))
        else:
            places.setdefault(forbid, place)
        if callable(thing := library_object(forbid)):
            things.setdefault(id(thing), place)
    return places, shapes, things


def _beginnings(name: str) -> Iterator[str]:
    """A dotted name and all names of what it lies in."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _by_its_module(name: str) -> str:
    """A name that goes through one module into another, by the name of the last (`os.sys.path` as `sys.path`)."""
    parts = name.split(".")
    for end in range(len(parts), 1, -1):
        if isinstance(module := library_object(".".join(parts[:end])), ModuleType):
            return ".".join([module.__name__, *parts[end:]])
    return name


def _matches(name: str, forbid: str) -> bool:
    """Whether a name has the shape that is ruled out: a method, a name of Python's own, a back door, a beginning."""
    if forbid.startswith("."):
        root, _, method = name.rpartition(".")
        return "." + method == forbid and root not in ("", "numpy", "math")
    if forbid in BARE:
        return name == forbid
    if forbid in BACKDOORS:
        return name.rpartition(".")[2] == forbid
    return name.startswith(forbid[:-1])


def _library_names(node: ast.AST, scope: Scope, reach: Reach, reading: Reading) -> Iterator[str]:
    """Dotted names that one node stands for."""
    if isinstance(node, (ast.Attribute, ast.Name)):
        yield from dotted(node, scope)
        free = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in scope.hidden
        if isinstance(node, ast.Name) and free:
            yield from reach.from_stars(node.id)
    elif isinstance(node, ast.Call):
        yield from _by_string(node, scope, reach, reading)
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, ast.MatMult):
        yield "@"
    elif isinstance(node, ast.MatchClass):
        yield from (name for attribute in node.kwd_attrs for name in _of_anything(attribute, scope))
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)


def _by_string(call: ast.Call, scope: Scope, reach: Reach, reading: Reading) -> Iterator[str]:
    """`getattr(torch, "softmax")`, and `attrgetter("softmax")(torch)`."""
    names = set(dotted(call.func, scope))
    if names & _GETATTR:
        owner, texts = next(iter(call.args), None), _texts(call.args[1:2], reading)
        if owner is not None and texts:
            yield from (f"{name}.{text}" for text in texts for name in dotted(owner, scope) or ["?"])
        elif owner is None or any(name.partition(".")[0] in reach.imported for name in dotted(owner, scope)):
            yield COMPUTED
        elif not (isinstance(owner, ast.Name) and owner.id == "self"):
            yield f"?.{COMPUTED}"
    elif any(name.rpartition(".")[2] in ("attrgetter", "methodcaller", "__getattribute__") for name in names):
        texts = _texts(call.args, reading)
        yield from (name for text in texts for name in _of_anything(text, scope))
        yield from () if texts else (COMPUTED,)


def _texts(arguments: Sequence[ast.expr], reading: Reading) -> Sequence[str]:
    """The texts among these arguments, and those that a variable runs through; none where the first is none."""
    found: list[str] = []
    for argument in arguments:
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            found.append(argument.value)
        elif isinstance(argument, ast.Name) and argument.id in reading.loops:
            found += reading.loops[argument.id]
        elif not found:
            return ()
    return found


def _of_anything(attribute: str, scope: Scope) -> Iterator[str]:
    """An attribute of something that is not named there: of each library that the notebook knows, or a method."""
    libraries = {value for values in scope.aliases.values() for value in values}
    yield from (f"{owner}.{attribute}" for owner in (*libraries, "?"))


_GETATTR = {"getattr", "builtins.getattr"}
