"""Kernels on a real GPU: are they right there, and how fast beside PyTorch's own attention?

A GPU cannot be reached from the jail, so a submission that runs natively runs outside of it, with the rights of whoever
grades. That is never done unasked: ``ATTN_NATIVE=1`` asks for it. What is found goes into the notes of a result and
never into its points, which come from the interpreter on every machine.

One process a submission, timed from outside. A measurement is the difference between a long and a short chain of calls,
each of which feeds its output to the next as query; the last output travels out and is compared before the time counts.
So a call that is left out, a result from memory, or a missing synchronisation changes the value, or is in the time.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from autograder.sandbox.protocol import Closed, ProtocolError, decode, encode, receive, send

VARIABLE = "ATTN_NATIVE"
STARTING, ANSWERING = 120.0, 60.0  # seconds; the first launch of a kernel compiles and tunes it
ROUNDS, SHORT, LONG = 3, 2, 12
LIMIT = 2e-2  # relative to the largest value: float16, twelve times over
BASELINE = """
import torch.nn.functional as F
def attention(q, k, v, causal):
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=k.shape[1] != q.shape[1])
"""


@dataclass(frozen=True)
class Case:
    """What is run of one exercise: sizes, further arguments, and the attention that it should be."""

    heads: int
    kv_heads: int
    further: tuple[Any, ...]
    causal: bool
    window: int | None = None

    def inputs(self, seq: int) -> list[Any]:
        """Fresh inputs; q, k and v of equal length, so that outputs can be queries."""
        shapes = [(1, heads, seq, 64) for heads in (self.heads, self.kv_heads, self.kv_heads)]
        return [*(torch.randn(shape).half() for shape in shapes), *self.further]

    def expected(self, inputs: Sequence[Any], times: int) -> torch.Tensor:
        """The end of the chain, computed by PyTorch in float32."""
        q, k, v = (x.float() for x in inputs[:3])
        k, v = (x.repeat_interleave(self.heads // self.kv_heads, 1) for x in (k, v))
        gap = torch.arange(q.shape[-2])[:, None] - torch.arange(q.shape[-2])
        mask = (gap >= 0) & (gap < (self.window or len(gap)))
        for _ in range(times):
            q = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).half().float()
        return q


CASES = {
    "flash_forward": Case(8, 8, (True,), True),
    "flash_forward_gqa": Case(8, 2, (True,), True),
    "flash_forward_window": Case(8, 8, (256,), True, 256),
}


class NativeError(Exception):
    """A submission gave no right answer natively; the message says how."""


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
        self._answer(STARTING)

    def put(self, values: Sequence[Any]) -> None:
        """Give it inputs, which move to the device now and cost no time later."""
        send(self._connection, {"op": "inputs", "values": encode(list(values))})
        self._answer(ANSWERING)

    def chain(self, name: str, times: int, *, poison: bool = False) -> tuple[torch.Tensor, float]:
        """The end of a chain of calls, and the seconds until it had arrived here."""
        begin = time.perf_counter()
        send(self._connection, {"op": "chain", "name": name, "times": times, "poison": poison})
        reply = self._answer(ANSWERING)
        seconds = time.perf_counter() - begin
        try:
            value = decode(reply["value"])
        except (ProtocolError, KeyError, TypeError):
            value = None
        if not isinstance(value, torch.Tensor):
            raise NativeError("it returned no tensor")
        return value, seconds

    def _answer(self, seconds: float) -> dict[str, Any]:
        self._connection.settimeout(seconds)
        try:
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


def found(cells: Sequence[str], name: str, device: str = "cuda", seq: int = 1024) -> str:
    """What happened to one exercise, in words."""
    try:
        ours = milliseconds("\n\n".join(cells), name, CASES[name], device, seq)
    except NativeError as error:
        return f"not right, {error}"
    theirs = milliseconds(BASELINE, "attention", replace(CASES[name], further=(True,), window=None), device, seq)
    return f"right, {ours:.3g} ms a call; PyTorch's causal attention takes {theirs:.3g} ms"


def milliseconds(source: str, name: str, case: Case, device: str, seq: int) -> float:
    """Time of one call, right before the clock runs and on the very inputs that were timed.

    Raises:
        NativeError: it was wrong, before or while it was timed.
    """
    with Worker(source, device) as worker:
        worker.start()
        inputs = case.inputs(seq)
        worker.put(inputs)
        _require(worker.chain(name, 1, poison=True)[0], case, inputs, 1)
        rounds = []
        for _ in range(ROUNDS):
            inputs = case.inputs(seq)
            worker.put(inputs)
            took = {}
            for times in (SHORT, LONG):
                value, took[times] = worker.chain(name, times)
                _require(value, case, inputs, times)
            rounds.append((took[LONG] - took[SHORT]) / (LONG - SHORT))
    return 1e3 * max(statistics.median(rounds), 0.0)


def _require(value: torch.Tensor, case: Case, inputs: Sequence[Any], times: int) -> None:
    expected = case.expected(inputs, times)
    if value.shape != expected.shape or value.dtype != torch.float16:
        raise NativeError("its output has the wrong shape or dtype")
    error = (value.float() - expected).abs().max().item() / expected.abs().max().item()
    if not error <= LIMIT:
        raise NativeError(f"after {times} calls its output is off by {error:.2g}, where {LIMIT:g} is allowed")
