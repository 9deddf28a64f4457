"""What runs inside the jail: the notebook's cells in a real IPython shell, then the workbench.

Once the cells have run, IPython is no longer asked for anything: a submission can hook it.
"""

from __future__ import annotations

import gc
import io
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

from autograder.sandbox import kernels
from autograder.sandbox.protocol import ProtocolError, receive, send
from autograder.sandbox.workbench import CELL_FILE, Workbench, describe

_shell: Any = None


def warm_up() -> None:
    """Import what submissions import, and run it once, so that no child pays for lazy first uses."""
    global _shell
    import matplotlib

    matplotlib.use("Agg")
    import jaxtyping  # noqa: F401
    import matplotlib.pyplot
    import numpy as np
    import torch
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    torch.set_num_threads(1)
    settings = Config()
    settings.HistoryManager.enabled = False  # its writer is a thread, and a thread does not survive a fork
    settings.HistoryManager.hist_file = ":memory:"
    settings.InteractiveShell.colors = "nocolor"
    settings.InteractiveShell.xmode = "Minimal"
    _shell = InteractiveShell.instance(config=settings)
    # Nothing can be installed, started or shown in the jail. A cell that tries goes on with its other lines.
    _shell.system = _shell.getoutput = lambda *command, **options: None
    for name in ("pip", "conda", "mamba", "uv", "matplotlib", "config"):
        _shell.magics_manager.magics["line"][name] = lambda line: None
    _shell.run_cell("import numpy, torch", store_history=False, silent=True)
    namespace: dict[str, Any] = {}
    exec(_REHEARSAL, namespace)
    bench = Workbench(namespace)
    from autograder.sandbox.protocol import encode

    x = torch.ones(2, 2)
    for op, options in (("call", {}), ("trace", {}), ("vjp", {"__upstream__": x, "__wrt__": [0]})):
        bench.answer({"op": op, "name": "rehearsal", "arguments": encode(((x,), options)), "seed": 0})
    bench.answer({"op": "call", "name": "rehearsal", "arguments": encode(((np.ones(3),), {}))})
    if kernels.FOUND:
        # In the shell, because Triton asks for the text of a kernel, and the shell keeps that.
        _shell.run_cell(_KERNEL, store_history=False, silent=True)
    _shell.reset(new_session=False)
    gc.collect()
    gc.freeze()  # a child's garbage collector would otherwise touch, and so copy, every page it inherits


_REHEARSAL = """
import torch
def rehearsal(x):
    if not isinstance(x, torch.Tensor):
        return x
    layer, cell = torch.nn.Linear(2, 2), torch.nn.GRUCell(2, 2)
    return torch.softmax(layer(x) @ x.mT, -1).masked_fill(x > 3, 0.0).tanh() + cell(x, x)
"""


_KERNEL = """
import torch, triton
import triton.language as tl
@triton.jit
def rehearsal(x, SIZE: tl.constexpr):
    at = x + tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tile = tl.load(at, mask=tl.arange(0, SIZE)[:, None] < SIZE, other=0.0)
    tl.store(at, tl.where(tile > 0, tl.dot(tile, tile.T), tl.exp2(tile)) / tl.sum(tile, 1)[:, None])
rehearsal[(1,)](torch.ones(16, 16), SIZE=16)
"""


def prepare_cold(order: dict[str, str]) -> None:
    """Warm up in a cold jail, where matplotlib finds no list of fonts and torch no /proc/cpuinfo to read."""
    folder = Path("/tmp/prepare")
    shutil.copytree(order["fonts"], folder / "matplotlib")
    settings = {"MPLCONFIGDIR": str(folder / "matplotlib"), "IPYTHONDIR": str(folder / "ipython")}
    os.environ.update(settings, ATEN_CPU_CAPABILITY=order["capability"])
    warm_up()
    del os.environ["ATEN_CPU_CAPABILITY"]
    shutil.rmtree(folder)


def serve_cold(descriptor: int, order: dict[str, str]) -> None:
    """See ``serve``."""
    serve(descriptor)


def serve(descriptor: int) -> None:
    """Run cells and answer requests that arrive on the socket until it closes; never returns an answer to IPython."""
    connection = socket.socket(fileno=descriptor)
    _silence()
    order = receive(connection)
    shell = _shell
    for index, source in enumerate(order["cells"]):
        if index in order["skip"]:
            continue
        send(connection, {"cell": index})
        send(connection, {"done": index, "error": _run_cell(shell, index, source)})
    send(connection, {"ready": True})
    bench = Workbench(shell.user_ns)
    while True:
        try:
            send(connection, bench.answer(receive(connection)))
        except ProtocolError:
            os._exit(0)


def _run_cell(shell: Any, index: int, source: str) -> dict[str, Any] | None:
    """Run one cell; None, or what it raised."""
    # A stable file name, so that an error can be traced to the cell and line of the notebook.
    shell.compile.get_code_name = lambda raw, transformed, number: CELL_FILE.format(index)
    try:
        result = shell.run_cell(source, store_history=False, silent=True)
    except BaseException as error:
        return describe(error)
    raised = result.error_before_exec or result.error_in_exec
    return describe(raised) if raised is not None else None


def _silence() -> None:
    """Student output goes nowhere: it can neither flood the grader nor carry hidden inputs into feedback."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), _Nowhere(), _Nowhere()


class _Nowhere(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)
