"""The `student` that hidden tests see: arguments go in, values come out, nothing else.

``student.causal_mask(3, 5)`` calls the submission's function on the other side of a transport. Two transports exist: a
jailed process (:mod:`autograder.sandbox.session`), and :class:`Direct`, a namespace of our own (references, named
mistakes) in this process. Both go through the same bytes, so a suite cannot tell them apart.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from autograder.sandbox.errors import Crashed, NotAttempted, OutOfMemory, Raised, StudentError
from autograder.sandbox.kernels import WORDS
from autograder.sandbox.protocol import Encoder, Handle, builtin_bases, decode
from autograder.sandbox.workbench import Workbench

SAMPLE = 2**16  # elements of an array that a journal keeps
KEPT = 2**20  # bytes of arrays in the exchanges that a journal keeps


@dataclass(frozen=True)
class Reading:
    """What a call has cost, read from outside: growth of the process's peak memory (None where it was not asked for, or
    there is no process of its own), and CPU seconds of all its threads, arguments and result included."""

    bytes: int | None
    seconds: float


class Call:
    """Arguments of one call among several: ``Call(x, axis=0)``. A tuple stands for a call without keywords."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


Calls = Iterable[Call | tuple[Any, ...]]


def whole(calls: Calls) -> Iterator[Call]:
    """Each of them with its keywords."""
    return (call if isinstance(call, Call) else Call(*call) for call in calls)


class Transport(Protocol):
    """Carries one request to a workbench and brings its reply."""

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """The workbench's reply.

        Raises:
            StudentError: none came.
        """
        ...

    def requests(self, messages: Sequence[dict[str, Any]], past_errors: bool = False) -> Iterator[dict[str, Any]]:
        """The workbench's replies to requests that do not wait for each other's. Unless they are to go ``past_errors``,
        what follows one is left out, or is not to be asked for."""
        ...

    def measure(self, message: dict[str, Any], memory: bool) -> tuple[dict[str, Any], Reading]:
        """The reply, and what making it has cost; in memory too, if asked for."""
        ...


class Direct:
    """A transport to a namespace in this process: for code that is ours."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self._bench = Workbench(namespace)

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """See :class:`Transport`."""
        return self._bench.answer(message)

    def requests(self, messages: Sequence[dict[str, Any]], past_errors: bool = False) -> Iterator[dict[str, Any]]:
        """See :class:`Transport`; each is answered when its reply is asked for, so nothing need be left out."""
        return map(self.request, messages)

    def measure(self, message: dict[str, Any], memory: bool) -> tuple[dict[str, Any], Reading]:
        """See :class:`Transport`; without a process there is no reading of its memory."""
        before = time.process_time()
        reply = self.request(message)
        return reply, Reading(None, time.process_time() - before)


@dataclass(frozen=True)
class Pace:
    """How one call went: ``steps``, the lines of Python that it ran, are counted inside, so a submission can lie about
    them; ``outside_seconds``, CPU time, are read from outside, and coarse."""

    result: Any
    steps: int
    outside_seconds: float


@dataclass(frozen=True)
class Trace:
    """What one call cost.

    ``steps`` Python line events; ``peak_bytes`` peak of traced allocations; ``largest`` elements of the largest torch
    tensor made; ``flops`` of torch's matrix products; ``elements`` that torch's operations wrote, which is the work of
    those that are no products; ``calls`` names of torch operations; ``launches`` of Triton kernels, ``programs`` of all
    launches, and ``multiplications`` in their products of tiles. These are counted inside, so a submission can lie
    about them. Read from outside, and coarse: ``outside_bytes``, growth of the process's peak memory (``peak_bytes``
    where there is no process), and ``outside_seconds``, CPU time of the call.
    """

    result: Any
    steps: int
    peak_bytes: int
    largest: int
    flops: int
    elements: int
    calls: tuple[str, ...]
    launches: int
    programs: int
    multiplications: int
    outside_bytes: int
    outside_seconds: float


@dataclass
class Journal:
    """Every call of one test and what came back, for the search of the mistake behind a failure.

    Of large arrays a sample is kept: enough to tell answers apart, and replays of many mistakes fit into memory.
    ``exchanges`` are the requests and replies themselves, from which the calls can be repeated without the test; None
    where they cannot: some replies also say what the call has cost, and large arrays are not kept.
    """

    entries: list[tuple[str, Any]] = field(default_factory=list)
    exchanges: list[tuple[dict[str, Any], dict[str, Any]]] | None = field(default_factory=list)
    _bytes: int = 0

    def note(self, value: Any) -> None:
        """Enter a value that came back."""
        self.entries.append(("value", _sample(value)))

    def keep(self, request: dict[str, Any], reply: dict[str, Any]) -> None:
        """Keep one exchange, if it can be repeated."""
        if self.exchanges is None:
            return
        self._bytes += _array_bytes(request["arguments"]) + _array_bytes(reply.get("value"))
        if request["op"] in ("pace", "trace") or self._bytes > KEPT:
            self.exchanges = None
        else:
            self.exchanges.append((request, reply))

    def note_error(self, error: StudentError) -> None:
        """Enter an error that came back, or that came instead."""
        bases = f"{error.bases[0]} {error.says}".rstrip() if isinstance(error, Raised) and error.bases else ""
        self.entries.append(("error", f"{error.outcome}:{bases}"))


def _array_bytes(encoded: Any) -> int:
    if not isinstance(encoded, dict):
        return 0
    arrays, tensors = encoded.get("numpy"), encoded.get("torch")
    return (len(arrays) if isinstance(arrays, bytes) else 0) + (len(tensors) if isinstance(tensors, bytes) else 0)


def _sample(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_sample(item) for item in value)
    if isinstance(value, dict):
        return {key: _sample(item) for key, item in value.items()}
    if not isinstance(value, (np.ndarray, torch.Tensor)) or (size := math.prod(value.shape)) <= SAMPLE:
        return value
    return tuple(value.shape), value.reshape(-1)[:: -(-size // SAMPLE)]


class Student:
    """A submission, seen from a hidden test.

    Args:
        transport: where the submission runs.
        seed: of the random numbers that the submission itself may draw; planted before the first call, so that
            parameters which a module draws for itself are the same on every run, and in a replay.
    """

    def __init__(self, transport: Transport, seed: int | None = None) -> None:
        self._transport = transport
        self._seed = seed
        self._before: list[dict[str, Any]] = []  # requests that travel with the next one
        self._made = 0
        self.journal = Journal()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.call(name, *args, **kwargs)

    def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """What the submission's ``name`` returns for these arguments."""
        return self._ask("call", {"name": name}, args, kwargs)

    def each(self, name: str, calls: Calls, /) -> Iterator[Any]:
        """What ``name`` returns for one call after the other.

        The calls travel together, which takes a fraction of the time of as many journeys. So none of them may depend on
        what another returned, nothing else may be asked before the last value is taken, and after one that raises there
        is no further value. All are made before the first value is looked at: where a wrong answer to one may let
        another hang, ask one by one.
        """
        return self._each("call", {"name": name}, calls)

    def each_counted(self, name: str, calls: Calls, /) -> Iterator[tuple[Any, int]]:
        """As :meth:`each`: what a call returns, and how many lines of Python it ran, which it can lie about."""
        return self._each_counted({"name": name}, calls)

    def outcomes(self, name: str, calls: Calls, /) -> list[Any]:
        """What came of one call after the other, as :meth:`each`: its value, or the :class:`Raised` it ended in."""
        self._flush()
        messages = self._messages("call", {"name": name}, calls)
        replies = self._transport.requests(messages, past_errors=True)
        found: list[Any] = []
        for message in messages:
            try:
                found.append(self._read(message, lambda: next(replies)))
            except Raised as error:
                found.append(error)
        return found

    def make(self, name: str, /, *args: Any, **kwargs: Any) -> Module:
        """The object that the submission's class ``name`` makes of these arguments.

        It is made when something is asked of it, which saves a journey; what making it raises is raised then.
        """
        self._made -= 1  # numbers that the other side gives are positive
        self._ask_later("call", {"name": name, "as": self._made}, args, kwargs)
        return Module(self, Handle(self._made, name))

    def after(self, name: str, /, *args: Any, **kwargs: Any) -> tuple[Any, tuple[Any, ...]]:
        """What ``name`` returns, and its positional arguments as they are afterwards."""
        result, arguments = self._pair(self._ask("after", {"name": name}, args, kwargs), 2)
        return result, arguments

    def vjp(
        self, name: str, /, *args: Any, upstream: Any, wrt: Sequence[int] = (0,), **kwargs: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        """Output, and the vector-Jacobian products for the positional arguments ``wrt`` (None: no gradient)."""
        kwargs |= {"__upstream__": upstream, "__wrt__": list(wrt)}
        output, gradients, _ = self._pair(self._ask("vjp", {"name": name}, args, kwargs), 3)
        return output, gradients

    def pace(self, name: str, /, *args: Any, **kwargs: Any) -> Pace:
        """What the call returns, and how it went; a trace says more, and takes ten times as long of a small call."""
        return self._pace({"name": name}, args, kwargs)

    def trace(self, name: str, /, *args: Any, **kwargs: Any) -> Trace:
        """What the call returns and costs."""
        return self._trace({"name": name}, args, kwargs)

    # What follows is shared with the handles of modules.

    def _ask(self, op: str, target: dict[str, Any], args: Any, kwargs: Any) -> Any:
        message = self._message(op, target, args, kwargs)
        if not self._before:
            return self._read(message, lambda: self._transport.request(message))
        *_, value = self._read_all([message])
        return value

    def _ask_later(self, op: str, target: dict[str, Any], args: Any, kwargs: Any) -> None:
        """Ask for something whose value nobody needs: it is sent, and what it raises is raised, with the next call."""
        self._before.append(self._message(op, target, args, kwargs))

    def _each(self, op: str, target: dict[str, Any], calls: Calls) -> Iterator[Any]:
        messages = self._messages(op, target, calls)
        return itertools.islice(self._read_all(messages), len(self._before), None)

    def _each_counted(self, target: dict[str, Any], calls: Calls) -> Iterator[tuple[Any, int]]:
        return map(_counted, self._each("pace", target, calls))

    def _messages(self, op: str, target: dict[str, Any], calls: Calls) -> list[dict[str, Any]]:
        return [self._message(op, target, call.args, call.kwargs) for call in whole(calls)]

    def _flush(self) -> None:
        for _ in self._read_all([]):
            pass

    def _read_all(self, messages: list[dict[str, Any]]) -> Iterator[Any]:
        messages, self._before = self._before + messages, []
        replies = self._transport.requests(messages)
        for message in messages:
            yield self._read(message, lambda: next(replies))

    def _message(self, op: str, target: dict[str, Any], args: Any, kwargs: Any) -> dict[str, Any]:
        seed, self._seed = self._seed, None  # the first call plants it
        return {"op": op, **target, "arguments": _Arguments().encode((args, kwargs)), "seed": seed}

    def _measured(self, op: str, target: dict[str, Any], args: Any, kwargs: Any) -> tuple[Any, Reading]:
        self._flush()  # what comes before is no part of the cost
        message = self._message(op, target, args, kwargs)
        readings: list[Reading] = []

        def measured() -> dict[str, Any]:
            reply, reading = self._transport.measure(message, memory=op == "trace")
            readings.append(reading)
            return reply

        # One call for all readings: of two, the second could be answered from what the first left behind.
        return self._read(message, measured), readings[0]

    def _pace(self, target: dict[str, Any], args: Any, kwargs: Any) -> Pace:
        found, reading = self._measured("pace", target, args, kwargs)
        return Pace(*_counted(found), reading.seconds)

    def _trace(self, target: dict[str, Any], args: Any, kwargs: Any) -> Trace:
        cost, reading = self._measured("trace", target, args, kwargs)
        try:
            peak = int(cost["peak_bytes"])
            return Trace(
                result=cost["result"],
                steps=int(cost["steps"]),
                peak_bytes=peak,
                largest=int(cost["largest"]),
                flops=int(cost["flops"]),
                elements=int(cost["elements"]),
                calls=tuple(str(name) for name in cost["calls"]),
                launches=int(cost["launches"]),
                programs=int(cost["programs"]),
                multiplications=int(cost["multiplications"]),
                outside_bytes=peak if reading.bytes is None else reading.bytes,
                outside_seconds=reading.seconds,
            )
        except Exception:
            raise Crashed("its process sent an answer that is none") from None

    def entry(self, reply: dict[str, Any]) -> tuple[str, Any]:
        """What a journal holds of a reply."""
        noted = Journal()
        try:
            noted.note(self._understood(reply))
        except StudentError as error:
            noted.note_error(error)
        return noted.entries[0]

    def _read(self, message: dict[str, Any], request: Callable[[], dict[str, Any]]) -> Any:
        try:
            reply = request()
            self.journal.keep(message, reply)
            value = self._understood(reply)
        except StudentError as error:
            if not isinstance(error, (Raised, NotAttempted)):  # the process may be another one from here on
                self._seed = message["seed"]
            self.journal.note_error(error)
            raise
        self.journal.note(value)
        return value

    def _understood(self, reply: dict[str, Any]) -> Any:
        """The value in a reply. Whatever goes wrong here was sent by the submission."""
        try:
            if "error" in reply:
                raise _error(reply["error"])
            return self._wrap(decode(reply["value"]))
        except StudentError:
            raise
        except Exception:
            raise Crashed("its process sent an answer that is none") from None

    def _wrap(self, value: Any) -> Any:
        if isinstance(value, Handle):
            return Module(self, value)
        if isinstance(value, tuple):
            return tuple(self._wrap(item) for item in value)
        if isinstance(value, list):
            return [self._wrap(item) for item in value]
        if isinstance(value, dict):
            return {key: self._wrap(item) for key, item in value.items()}
        return value

    @staticmethod
    def _pair(value: Any, length: int) -> Any:
        if not isinstance(value, tuple) or len(value) != length:
            raise Crashed("its process sent an answer that is none")
        return value


class Module:
    """An object of the submission that stays inside: call it, load it, ask for its gradients."""

    def __init__(self, student: Student, handle: Handle) -> None:
        self._student, self.handle = student, handle

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the object returns when called."""
        return self._student._ask("call", {"handle": self.handle.number}, args, kwargs)

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """What one of its methods returns; an attribute that is no method comes back as it is."""
        return self._student._ask("call", {"handle": self.handle.number, "method": method}, args, kwargs)

    def each(self, calls: Calls, /) -> Iterator[Any]:
        """What the object returns for one call after the other; see :meth:`Student.each`."""
        return self._student._each("call", {"handle": self.handle.number}, calls)

    def each_counted(self, calls: Calls, /) -> Iterator[tuple[Any, int]]:
        """See :meth:`Student.each_counted`."""
        return self._student._each_counted({"handle": self.handle.number}, calls)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give a torch module these parameters, before it is next called."""
        self._later("load_state_dict", dict(state))

    def state_dict(self) -> dict[str, Any]:
        """A torch module's parameters and buffers by name."""
        return dict(self.call("state_dict"))

    def train(self) -> None:
        """Switch a torch module to training mode, before it is next called."""
        self._later("train")

    def eval(self) -> None:
        """Switch a torch module to evaluation mode, before it is next called."""
        self._later("eval")

    def _later(self, method: str, *args: Any) -> None:
        self._student._ask_later("call", {"handle": self.handle.number, "method": method}, args, {})

    def vjp(
        self, *args: Any, upstream: Any, wrt: Sequence[int] = (0,), **kwargs: Any
    ) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """Output, the gradients of the inputs ``wrt``, and those of the parameters by name."""
        kwargs |= {"__upstream__": upstream, "__wrt__": list(wrt)}
        answer = self._student._ask("vjp", {"handle": self.handle.number}, args, kwargs)
        output, by_input, by_parameter = Student._pair(answer, 3)
        return output, by_input, by_parameter

    def pace(self, *args: Any, **kwargs: Any) -> Pace:
        """What a call of the object returns, and how it went."""
        return self._student._pace({"handle": self.handle.number}, args, kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> Trace:
        """What a call of the object returns and costs."""
        return self._student._trace({"handle": self.handle.number}, args, kwargs)

    def trace_call(self, method: str, /, *args: Any, **kwargs: Any) -> Trace:
        """What a call of one of its methods returns and costs."""
        return self._student._trace({"handle": self.handle.number, "method": method}, args, kwargs)


def _counted(found: Any) -> tuple[Any, int]:
    """Result and steps, as a workbench that is what it should be sends them."""
    try:
        return found["result"], int(found["steps"])
    except Exception:
        raise Crashed("its process sent an answer that is none") from None


class _Arguments(Encoder):
    """Sends a module back as the handle that it stands for, wherever it is among the arguments."""

    def other(self, value: Any) -> Any:
        return self._node(value.handle, 0) if isinstance(value, Module) else super().other(value)


def _error(error: dict[str, Any]) -> StudentError:
    bases = builtin_bases(error)
    if "NotImplementedError" in bases:
        return NotAttempted("it is not written yet")
    if error.get("memory"):
        return OutOfMemory("it asked for more memory than a test may use")
    cell, line = error.get("cell"), error.get("line")
    return Raised(
        str(error.get("type"))[:80],
        bases,
        cell if isinstance(cell, int) else None,
        line if isinstance(line, int) else None,
        WORDS.get(str(error.get("word")), ""),
    )
