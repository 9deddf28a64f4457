"""The process in which a submission's kernels run natively: started for one submission, ended after it.

It serves ``native.Worker`` on the socket whose number is its argument, and imports nothing of the grader but the
protocol. The device comes second on the command line; on a CPU, where tests run it, Triton interprets.
"""

from __future__ import annotations

import importlib.util
import socket
import sys
from pathlib import Path
from typing import Any

import torch

from autograder.sandbox.protocol import decode, encode, receive, send


def main() -> None:
    """Load the submission from ``submission.py`` in the working directory, then answer until the socket closes."""
    connection, device = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    place = Path("submission.py").resolve()
    spec = importlib.util.spec_from_file_location("submission", place)
    assert spec is not None and spec.loader is not None
    submission = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(submission)
    send(connection, {"ready": True})
    inputs: list[Any] = []
    while True:
        request = receive(connection)
        if request["op"] == "inputs":
            inputs = [x.to(device) if isinstance(x, torch.Tensor) else x for x in decode(request["values"])]
            send(connection, {"ready": True})
        else:
            result = chain(getattr(submission, request["name"]), inputs, int(request["times"]), bool(request["poison"]))
            send(connection, {"value": encode(result.cpu())})


def chain(function: Any, inputs: list[Any], times: int, poison: bool) -> torch.Tensor:
    """Feed each output back as the next query: whoever leaves a call out, or answers from memory, ends elsewhere."""
    query, *rest = inputs
    torch.use_deterministic_algorithms(poison, warn_only=True)  # fills new memory with NaN
    for _ in range(times):
        result = function(query, *rest)
        query = result[0] if isinstance(result, tuple) else result
    if query.is_cuda:
        torch.cuda.synchronize()
    return query


if __name__ == "__main__":
    main()
