"""Triton kernels on the bench: they run in Triton's interpreter, inside the jail and for our own answers alike.

Importing this module chooses the interpreter, which Triton asks for when it is imported; nothing may import Triton
before. To the interpreter it adds what a grader needs:

* a read or write outside of the tensors that a launch was given is an error; left alone, it returns whatever lies in
  memory, or ends the process;
* memory that nobody has written holds NaN, so that what a kernel leaves out is seen, and is the same on every run;
* a product of bfloat16 is an error; left alone, it is wrong without a word;
* launches, programs and multiplications are counted;
* the language is patched once a launch, and no longer once a call of a device function: that took a third of the time.

What is counted here is counted inside, so a submission could lie about it. Suites put values beside it that only come
out right where the counts are true: tiles that must not be visited hold NaN.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

os.environ["TRITON_INTERPRET"] = "1"
FOUND = importlib.util.find_spec("triton") is not None  # it exists for Linux only; the rest of the course needs none

# What a student may be told beyond the type of an error, by the word that travels; see ``word_of``.
WORDS = {
    "reads": "a kernel reads outside of its tensors",
    "writes": "a kernel writes outside of its tensors",
    "bfloat16": "the interpreter multiplies bfloat16 wrongly; use float32 or float16",
}


class OutsideError(IndexError):
    """A kernel reads or writes (which one is its argument) outside of the tensors that it was given."""


class BfloatError(TypeError):
    """A kernel multiplies bfloat16, which the interpreter does wrongly."""

    def __init__(self) -> None:
        super().__init__("bfloat16")


@dataclass
class Meter:
    """What ran while it was open: kernels launched, programs of all launches, multiplications in ``tl.dot``."""

    launches: int = 0
    programs: int = 0
    multiplications: int = 0


_meter = Meter()


@contextmanager
def metering() -> Iterator[Meter]:
    """Count from here on."""
    global _meter
    before, _meter = _meter, Meter()
    try:
        yield _meter
    finally:
        _meter = before


def cause(error: BaseException) -> BaseException:
    """The error itself, where Triton's interpreter wrapped one of its own around it."""
    while type(error).__name__ == "InterpreterError" and error.__cause__ is not None:
        error = error.__cause__
    return error


def word_of(error: BaseException) -> str:
    """The word under which outside finds what the student may be told, or nothing."""
    return str(error.args[0]) if isinstance(error, (OutsideError, BfloatError)) else ""


def among(namespace: Mapping[str, Any]) -> bool:
    """Whether a namespace holds kernels."""
    return any(str(type(value).__module__).startswith("triton.runtime") for value in list(namespace.values()))


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill new memory with NaN while a notebook that holds kernels is asked for something."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # `torch.use_deterministic_algorithms` does the same, and imports torch's compiler first.
    torch._C._set_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(before[0], warn_only=before[1])


class _Memory:
    """The tensors of the launch that runs now, as ranges of addresses."""

    def __init__(self, values: Any) -> None:
        ranges = sorted(set(_ranges(values)))
        self._starts = np.array([start for start, _ in ranges], dtype=np.uint64)
        self._ends = np.array([end for _, end in ranges], dtype=np.uint64)

    def check(self, pointers: Any, mask: Any, deed: str) -> None:
        """Raise OutsideError unless every element that the mask lets through lies in one of the tensors."""
        size = np.uint64(max(pointers.get_element_ty().primitive_bitwidth // 8, 1))
        found = np.broadcast_to(pointers.data, np.broadcast_shapes(pointers.data.shape, mask.shape))
        wanted = found[np.broadcast_to(mask.astype(bool), found.shape)]
        if wanted.size == 0:
            return
        at = np.searchsorted(self._starts, wanted, side="right") - 1
        if (at < 0).any() or (wanted + size > self._ends[at]).any():
            raise OutsideError(deed)


def _ranges(value: Any) -> Iterator[tuple[int, int]]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _ranges(item)
    elif hasattr(value, "block_shape") and hasattr(value, "base"):  # a tensor descriptor
        yield from _ranges(value.base)
    elif hasattr(value, "untyped_storage"):
        storage = value.untyped_storage()
        yield storage.data_ptr(), storage.data_ptr() + storage.nbytes()


def _install() -> None:
    import triton.language as tl
    from triton.runtime import interpreter

    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    memory: list[_Memory] = []
    patched: list[Any] = []

    def arguments(self: Any, args: Any, kwargs: Any) -> Any:
        memory.append(_Memory([*args, *kwargs.values()]))
        return args, kwargs  # they lie on the host already, and need not be copied there and back

    def launch(self: Any, *args: Any, run: Any = executor.__call__, **kwargs: Any) -> None:
        _meter.launches += 1
        depth, tracer, traced = len(memory), sys.gettrace(), tracemalloc.is_tracing()
        # The interpreter's steps and arrays are not the submission's, and noting each of them takes most of the time.
        sys.settrace(None)
        tracemalloc.stop()
        try:
            run(self, *args, **kwargs)
        finally:
            sys.settrace(tracer)
            if traced:
                tracemalloc.start()
            del memory[depth:]

    def start_program(self: Any, *place: int, run: Any = builder.set_grid_idx) -> None:
        _meter.programs += 1
        run(self, *place)

    def product(self: Any, a: Any, b: Any, *rest: Any, run: Any = builder.create_dot) -> Any:
        if tl.bfloat16 in (a.dtype.scalar, b.dtype.scalar):
            raise BfloatError
        _meter.multiplications += int(a.data.size * b.data.shape[-1])
        return run(self, a, b, *rest)

    def patch(function: Any, run: Any = interpreter._patch_lang) -> Any:
        if patched:
            return SimpleNamespace(restore=lambda: None)
        scope = run(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
        patched.append(scope)

        def restore() -> None:
            scope.restore()
            patched.clear()

        return SimpleNamespace(restore=restore)

    def checked(name: str, masked: Any) -> Any:
        run = getattr(builder, name)

        def access(self: Any, *args: Any, **options: Any) -> Any:
            pointers, mask = masked(args)
            if memory:
                # Descriptors store under a bare mask; everywhere else it is wrapped.
                deed = "reads" if name == "create_masked_load" else "writes"
                memory[-1].check(pointers, mask if isinstance(mask, np.ndarray) else mask.data, deed)
            return run(self, *args, **options)

        return access

    executor.__call__, executor._init_args_hst = launch, arguments
    executor._restore_args_dev = lambda self, *args: None
    builder.set_grid_idx, builder.create_dot = start_program, product
    interpreter._patch_lang = patch
    for name, masked in {
        "create_masked_load": lambda args: (args[0], args[1]),
        "create_masked_store": lambda args: (args[0], args[2]),
        "create_atomic_rmw": lambda args: (args[1], args[3]),
        "create_atomic_cas": lambda args: (args[0], np.ones_like(args[0].data, dtype=bool)),
    }.items():
        setattr(builder, name, checked(name, masked))


if FOUND:
    _install()
