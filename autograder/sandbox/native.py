"""Kernels on a real GPU: are they right there, and how fast beside what PyTorch has for the same thing?

A GPU cannot be reached from the jail, so a submission that runs natively runs outside of it, with the rights of whoever
grades. That is never done unasked: ``ATTN_NATIVE=1`` asks for it. What is found goes into the notes of a result and
never into its points, which come from the interpreter on every machine.

Covered are all exercises of the chapter flash_gpu that have a kernel, in float16; what is kept in float32, as an lse,
is compared too, and lengths are no multiples of a tile. Where PyTorch has nothing of the kind (linear attention), a
plain formulation in PyTorch is timed instead.

One process for each exercise of a submission, timed from outside. A measurement is the difference between a long and a
short chain of calls, each of which feeds the next; the clock stops at a digest of the last outputs, and they are
compared before the time counts. So a call that is left out, a result from memory, or a missing synchronisation changes
the value, or is in the time.
"""

from __future__ import annotations

import functools
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from autograder.sandbox.native_cases import BASELINES, CASES, NativeError
from autograder.sandbox.native_worker import digest
from autograder.sandbox.protocol import Closed, ProtocolError, decode, encode, receive, send

VARIABLE = "ATTN_NATIVE"
STARTING, TUNING, ANSWERING = 120.0, 300.0, 60.0  # seconds; the first launch of a kernel compiles and tunes it
ROUNDS, SHORT, LONG = 3, 2, 12


class Worker:
    """One submission in a process of its own, outside of the jail."""

    def __init__(self, source: str, device: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="attn-native-")
        Path(self._folder.name, "submission.py").write_text(source, encoding="utf-8")
        self._connection, theirs = socket.socketpair()
        kept = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        environment |= {
            "HOME": self._folder.name,
            "PYTHONDONTWRITEBYTECODE": "1",
            "TRITON_INTERPRET": "1" if device == "cpu" else "0",
        }
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-W",
                    "ignore",
                    "-m",
                    "autograder.sandbox.native_worker",
                    str(theirs.fileno()),
                    device,
                ],
                pass_fds=[theirs.fileno()],
                cwd=self._folder.name,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self._folder.cleanup()

    def start(self) -> None:
        """Wait until the submission is loaded."""
        self._ask(None, STARTING)

    def put(self, values: Sequence[Any]) -> None:
        """Give it inputs, which move to the device now and cost no time later."""
        self._ask({"op": "inputs", "values": encode(list(values))}, ANSWERING)

    def chain(self, name: str, rule: str, times: int, *, poison: bool = False) -> tuple[list[Any], list[Any], float]:
        """All outputs at the end of a chain of calls, their digest, and the seconds until that had arrived here.

        With poison, new memory is filled with NaN: so runs the first call, which also compiles and tunes.
        """
        request = {"op": "chain", "name": name, "rule": rule, "times": times, "poison": poison}
        begin = time.perf_counter()
        reply = self._ask(request, TUNING if poison else ANSWERING)
        seconds = time.perf_counter() - begin
        return _tensors(self._ask({"op": "outputs"}, ANSWERING)), _tensors(reply), seconds

    def _ask(self, message: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
        self._connection.settimeout(seconds)
        try:
            if message is not None:
                send(self._connection, message)
            return receive(self._connection)
        except TimeoutError:
            raise NativeError(f"no answer came within {seconds:g} s") from None
        except (OSError, Closed, ProtocolError):
            raise NativeError("its process ended") from None


def gpu() -> str:
    """The name of the GPU, or nothing."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def asked_for() -> bool:
    """Whether native checks shall run where they can."""
    return os.environ.get(VARIABLE) == "1"


def notes(cells: Sequence[str], exercises: Sequence[str]) -> Iterator[str]:
    """What native checks found, one sentence for each exercise; or that, and why, they were not run."""
    wanted = [name for name in exercises if name in CASES]
    if not wanted:
        return
    if not gpu():
        yield "Native checks were not run: there is no GPU here. Kernels were judged in Triton's interpreter."
    elif not asked_for():
        yield f"Native checks were not run: they need {VARIABLE}=1, because they run outside of the jail."
    else:
        for name in wanted:
            yield f"{name} on {gpu()}: {found(cells, name)}"


def found(cells: Sequence[str], name: str, device: str = "cuda", seq: int = 4000) -> str:
    """What happened to one exercise, in words."""
    try:
        ours = milliseconds("\n\n".join(cells), name, device, seq)
        return f"right, {ours:.3g} ms a call; {CASES[name].beside} {beside(name, device, seq)}"
    except NativeError as error:
        return f"not right, {error}"
    except torch.OutOfMemoryError:
        return "not checked, there is too little memory on it"
    finally:
        torch.cuda.empty_cache()


@functools.cache
def beside(name: str, device: str, seq: int) -> str:
    """How long the baseline takes, in words; measured once."""
    try:
        return f"takes {milliseconds(BASELINES, name, device, seq, partial=True):.3g} ms"
    except NativeError as error:
        return f"could not be timed: {error}"


def milliseconds(source: str, name: str, device: str, seq: int, *, partial: bool = False) -> float:
    """Time of one call, right before the clock runs and on the very inputs that were timed; no input is seen twice.

    Args:
        partial: further outputs than the first may be missing; PyTorch's attention keeps its lse.

    Raises:
        NativeError: it was wrong, before or while it was timed.
    """
    case = CASES[name]
    with Worker(source, device) as worker:
        worker.start()

        def seconds(times: int, *, poison: bool = False) -> float:
            inputs = case.inputs(seq)
            worker.put(inputs)
            outputs, told, took = worker.chain(name, case.rule, times, poison=poison)
            expected = case.expected(inputs, times, device)
            case.require(outputs, expected[: len(outputs)] if partial else expected, times)
            if not _close(told, digest(outputs)):
                raise NativeError("its output was not there yet when the clock stopped")
            return took

        seconds(1, poison=True)
        rounds = [(-seconds(SHORT) + seconds(LONG)) / (LONG - SHORT) for _ in range(ROUNDS)]
    return 1e3 * max(statistics.median(rounds), 0.0)


def _close(told: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> bool:
    """Whether two digests are of the same outputs, added up in different order."""
    return len(told) == len(found) and all(
        one.shape == other.shape and bool((one - other).abs().max() <= 1e-4 * (1 + other.abs().max()))
        for one, other in zip(told, found, strict=True)
    )


def _tensors(reply: dict[str, Any]) -> list[Any]:
    try:
        values = decode(reply["value"])
    except (ProtocolError, KeyError, TypeError):
        values = None
    if not isinstance(values, list) or not values or not all(isinstance(x, torch.Tensor) for x in values):
        raise NativeError("it returned something else than tensors")
    return values
