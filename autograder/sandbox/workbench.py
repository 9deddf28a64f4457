"""What answers inside the jail: calls of the student's names, gradients, and traces of what a call cost.

The same workbench serves references and named mistakes outside the jail, so that one suite judges them all alike.
Nothing that comes out of here is trusted: it is values, and values are compared outside.
"""

from __future__ import annotations

import builtins
import random
import sys
import traceback
import tracemalloc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autograder.sandbox import kernels  # isort: skip  # before the next line imports Triton
from torch.utils.flop_counter import flop_registry

from autograder.sandbox.protocol import Encoder, Handle, ProtocolError, decode

CELL_FILE = "<cell {}>"


class _Encoder(Encoder):
    """Keeps what does not travel on the bench and sends a handle."""

    def __init__(self, handles: dict[int, Any]) -> None:
        super().__init__()
        self._handles = handles

    def other(self, value: Any) -> Any:
        number = len(self._handles) + 1
        self._handles[number] = value
        return {"k": "handle", "number": number, "type": type(value).__name__[:80]}


class Workbench:
    """Serves requests against one namespace (the one in which a notebook's cells ran)."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self._namespace = namespace
        self._handles: dict[int, Any] = {}
        self._has_kernels = kernels.among(namespace)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """One reply to one request: ``{"value": …}`` or ``{"error": …}``.

        A request holds ``op`` (call, after, vjp, pace, trace), ``name`` or ``handle`` with an optional ``method``, the
        encoded ``arguments`` (a pair of positional and keyword arguments), and perhaps a ``seed`` to plant before; with
        ``as`` the value stays here under this number. Or it holds ``requests``, whose ``replies`` go as far as the
        first error, or to the end where ``past_errors`` says so.
        """
        try:
            if "requests" in request:
                return {"replies": self._answers(request["requests"], request["past_errors"])}
            if request.get("seed") is not None:  # a test begins, which knows nothing of what others have made
                _seed(int(request["seed"]))
                self._handles.clear()
            args, kwargs = decode(request["arguments"], handles=self._handles, generators=True)
            operation = {"call": _call, "after": _after, "vjp": _vjp, "pace": _pace, "trace": _trace}[request["op"]]
            target = self._target(request)
            with kernels.poisoned() if self._has_kernels else nullcontext():
                value = operation(target, args, kwargs, request.get("options", {}))
                if "as" in request:
                    self._handles[int(request["as"])] = value
                    value = None
                return {"value": self._encode(value)}
        except BaseException as error:
            return {"error": describe(error)}

    def _answers(self, requests: list[dict[str, Any]], past_errors: bool) -> list[dict[str, Any]]:
        replies: list[dict[str, Any]] = []
        for request in requests:
            replies.append(self.answer(request))
            if "error" in replies[-1] and not past_errors:
                break
        return replies

    def _encode(self, value: Any) -> dict[str, Any]:
        return _Encoder(self._handles).encode(value)

    def _target(self, request: dict[str, Any]) -> Callable[..., Any]:
        if "handle" not in request:
            if request["name"] not in self._namespace:
                raise NotImplementedError(f"{request['name']} is not defined")
            return self._namespace[request["name"]]
        owner = self._handles[request["handle"]]
        method = request.get("method")
        if method is None:
            return owner
        attribute = getattr(owner, method)
        return attribute if callable(attribute) else lambda: attribute


def describe(error: BaseException) -> dict[str, Any]:
    """An exception as data: its type's names, and the deepest cell and line of the notebook that it passed through."""
    error = kernels.cause(error)
    bases = [cls.__name__ for cls in type(error).__mro__ if getattr(builtins, cls.__name__, None) is cls]
    cell = line = None
    try:
        for frame, number in traceback.walk_tb(error.__traceback__):
            if (found := _cell_of(frame.f_code.co_filename)) is not None:
                cell, line = found, number
        if cell is None and isinstance(error, SyntaxError):
            line = error.lineno
        text = str(error)
        if "not implemented for" in text:  # torch says so of a dtype, which is no untouched stub
            bases = [name for name in bases if name != "NotImplementedError"]
    except BaseException:
        text = ""
    out_of_memory = isinstance(error, MemoryError) or "can't allocate memory" in text or "Unable to allocate" in text
    return {
        "type": type(error).__name__[:80],
        "bases": bases,
        "cell": cell,
        "line": line if isinstance(line, int) else None,
        "memory": bool(out_of_memory),
        "word": kernels.word_of(error),
        # Only for a missing or untouched name; any other message could carry the inputs out.
        "text": text[:200] if isinstance(error, (NotImplementedError, ProtocolError)) else "",
    }


def _cell_of(filename: str) -> int | None:
    if filename.startswith("<cell ") and filename.endswith(">"):
        number = filename[6:-1]
        return int(number) if number.isdigit() else None
    return None


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed notes the whole call stack, for GPUs, each time


def _call(target: Callable[..., Any], args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
    return _shallow(target(*args, **kwargs))


def _shallow(result: Any) -> Any:
    """load_state_dict returns a named tuple of lists, which is noise."""
    return None if type(result).__name__ == "_IncompatibleKeys" else result


def _after(target: Callable[..., Any], args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
    result = target(*args, **kwargs)
    return result, tuple(args)


def _vjp(target: Callable[..., Any], args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
    upstream, wrt = kwargs.pop("__upstream__"), kwargs.pop("__wrt__")
    inputs = list(args)
    for index in wrt:
        inputs[index] = inputs[index].detach().clone().requires_grad_(True)
    output = target(*inputs, **kwargs)
    pairs = _paired(output, upstream)
    parameters = dict(target.named_parameters()) if isinstance(target, torch.nn.Module) else {}
    wanted = [inputs[index] for index in wrt] + list(parameters.values())
    # Their products' sum has these gradients; where torch is handed the upstreams, it imports a whole algebra system.
    total = torch.stack([(one * up).sum() for one, up in pairs]).sum()
    gradients = torch.autograd.grad(total, wanted, allow_unused=True)
    by_input, by_parameter = gradients[: len(wrt)], dict(zip(parameters, gradients[len(wrt) :], strict=True))
    return output, tuple(by_input), by_parameter


def _paired(output: Any, upstream: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    if isinstance(upstream, (tuple, list)):
        pairs = [(o, u) for o, u in zip(output, upstream, strict=True) if u is not None]
    else:
        pairs = [(output[0] if isinstance(output, (tuple, list)) else output, upstream)]
    if any(one.shape != up.shape for one, up in pairs):
        raise ValueError("an output of another shape than the gradient that comes to it")
    return pairs


class _Recorder(TorchDispatchMode):
    """Notes every tensor operation that runs under it, the tensors that it makes, and the work of products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest, self.flops, self.elements, self.calls = 0, 0, 0, set[str]()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # The wrapper that torch would put around us imports its compiler: many seconds, for something not used here.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        counting = sys.gettrace()
        sys.settrace(None)  # these lines are ours, and would be counted as the submission's
        try:
            result = func(*args, **kwargs or {})
            self._note(_operation(func), args, kwargs or {}, result)
            return result
        finally:
            sys.settrace(counting)

    def _note(self, operation: _Operation, args: Any, kwargs: Any, result: Any) -> None:
        self.calls.add(operation.name)
        if operation.work is not None:
            self.flops += int(operation.work(args, kwargs, result))
        if not operation.is_view:
            self.elements += _written(operation, args, kwargs, result)
        for item in result if isinstance(result, (tuple, list)) else (result,):
            # A view or a broadcast costs no memory, so what counts is the storage behind it.
            if isinstance(item, torch.Tensor) and item.layout is torch.strided:
                self.largest = max(self.largest, item.untyped_storage().nbytes() // max(item.element_size(), 1))


@dataclass(frozen=True)
class _Operation:
    """What is known of one of torch's operations; ``work`` counts the floating-point operations of a product."""

    name: str
    is_view: bool
    at_places: bool
    work: Callable[[Any, Any, Any], int] | None


@cache
def _operation(func: Any) -> _Operation:
    name = str(func.overloadpacket).removeprefix("aten.")
    at_places = func._schema.is_mutable and name.startswith(("index_", "_index_put", "scatter", "masked_scatter"))
    return _Operation(name, bool(func.is_view), at_places, _work(flop_registry.get(func.overloadpacket)))


def _work(count: Any) -> Callable[[Any, Any, Any], int] | None:
    """One of torch's formulas as a function of arguments and result."""
    if count is None:
        return None
    formula = getattr(count, "__wrapped__", None)
    if formula is None:
        return lambda args, kwargs, result: count(*args, **kwargs, out_val=result)
    # What torch wraps a formula in looks for tensors at any depth, and takes longer than the product itself.
    return lambda args, kwargs, result: formula(
        *map(_shape, args), **{name: _shape(value) for name, value in kwargs.items()}, out_shape=_shape(result)
    )


def _shape(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.shape
    return type(value)(map(_shape, value)) if type(value) in (tuple, list) else value


def _written(operation: _Operation, args: Any, kwargs: Any, result: Any) -> int:
    """How many elements an operation writes: those of its results, or, where it writes at some places, of these.

    What writes at places (``out[rows] = …``) hands back all of the tensor, however few they are.
    """
    made = _elements(result)
    if operation.at_places:
        places = [_elements(item) for item in (*args[1:], *kwargs.values())]
        return min(max(places, default=made), made)
    return made


def _elements(value: Any) -> int:
    """Of a tensor, or of the largest one in a list."""
    if isinstance(value, torch.Tensor):
        return value.numel()
    return max(map(_elements, value), default=0) if isinstance(value, (tuple, list)) else 0


def _counted(target: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, int]:
    """What a call returns, and how many lines of Python it ran."""
    steps = 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        steps += event == "line"
        return count

    previous = sys.gettrace()
    sys.settrace(count)
    try:
        result = target(*args, **kwargs)
    finally:
        sys.settrace(previous)
    return result, steps


def _pace(target: Callable[..., Any], args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
    result, steps = _counted(target, args, kwargs)
    return {"result": result, "steps": steps}


def _trace(target: Callable[..., Any], args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
    recorder = _Recorder()
    already = tracemalloc.is_tracing()
    if not already:
        tracemalloc.start()
    try:
        with recorder, kernels.metering() as meter:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            result, steps = _counted(target, args, kwargs)
            peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        if not already:
            tracemalloc.stop()
    return {
        "result": result,
        "steps": steps,
        "peak_bytes": max(peak, 0),
        "largest": recorder.largest,
        "flops": recorder.flops,
        "elements": recorder.elements,
        "calls": sorted(recorder.calls),
        "launches": meter.launches,
        "programs": meter.programs,
        "multiplications": meter.multiplications,
    }


__all__ = ["Handle", "Workbench", "describe"]
