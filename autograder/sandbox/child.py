"""What runs inside the jail: the notebook's cells in a real IPython shell, then the workbench.

Once the cells have run, IPython is no longer asked for anything: a submission can hook it.
"""

from __future__ import annotations

import contextlib
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

TIMES = 10  # that answers are rehearsed: the interpreter adapts its code as it runs, and what it writes a child copies

_shell: Any = None
_stage: dict[str, Any] = {}  # what rehearsals call, apart from the names that a notebook sees


def warm_up() -> None:
    """Import what submissions import, and run it once, so that no child pays for lazy first uses."""
    global _shell
    import matplotlib

    matplotlib.use("Agg")
    import jaxtyping  # noqa: F401
    import matplotlib.pyplot
    import torch
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    from autograder.sandbox.cells import IDLE, Transformer

    torch.set_num_threads(1)
    settings = Config()
    settings.HistoryManager.enabled = False  # its writer is a thread, and a thread does not survive a fork
    settings.HistoryManager.hist_file = ":memory:"
    settings.InteractiveShell.colors = "nocolor"
    settings.InteractiveShell.xmode = "Minimal"
    _shell = InteractiveShell.instance(config=settings)
    _shell.input_transformer_manager = Transformer()
    _shell.automagic = False  # a line that is no Python is a mistake, whatever its first word
    # What is shown goes nowhere, and a traceback is costly to draw.
    _shell.showtraceback = _shell.showsyntaxerror = lambda *arguments, **options: None
    # Nothing can be installed, started or shown in the jail. A cell that tries goes on with its other lines.
    _shell.system = _shell.getoutput = lambda *command, **options: None
    # IPython compiles each cell to learn whether it waits for anything; the words tell as much.
    waits = _shell.should_run_async
    _shell.should_run_async = lambda cell, **options: ("await" in cell or "async" in cell) and waits(cell, **options)
    for name in IDLE:
        _shell.magics_manager.magics["line"][name] = lambda line: None
    _rehearse_cells(_shell)
    for _ in range(TIMES):
        rehearse()
    if kernels.FOUND:
        # In the shell, because Triton asks for the text of a kernel, and the shell keeps that.
        _shell.run_cell(_KERNEL, store_history=False, silent=True)
    _shell.reset(new_session=False)
    gc.collect()
    gc.freeze()  # a child's garbage collector would otherwise touch, and so copy, every page it inherits


def _rehearse_cells(shell: Any) -> None:
    """Run cells of the kinds that chapters have: what is loaded on first use is loaded here."""
    with contextlib.redirect_stdout(io.StringIO()):
        for source in _REHEARSAL:
            result = shell.run_cell(source, store_history=False, silent=True)
            result.raise_error()
        shell.run_cell("raise NotImplementedError", store_history=False, silent=True)
        exec("\n".join(_REHEARSAL), _stage)  # once more, because the shell forgets its names


def rehearse() -> None:
    """Answer requests of all kinds."""
    import torch

    from autograder.sandbox.protocol import encode

    bench = Workbench(_stage)

    def ask(op: str, *arguments: Any, **more: Any) -> None:
        options = more.pop("options", {})
        reply = bench.answer({"op": op, "arguments": encode((arguments, options)), **more})
        assert "error" not in reply, reply

    x, state = torch.ones(2, 3, 4), torch.ones(2, 4)
    ask("call", [1.0], name="rehearse_numpy", seed=0)
    ask("after", _stage["array"], name="rehearse_numpy")
    ask("trace", _stage["array"], name="rehearse_numpy")
    ask("pace", x, name="rehearse_torch")
    ask("trace", x, name="rehearse_torch")
    ask("call", 4, name="Rehearsal")
    ask("call", handle=1, method="state_dict")
    ask("call", _stage["module"].state_dict(), handle=1, method="load_state_dict")
    for op, options in (("call", {}), ("trace", {}), ("vjp", {"__upstream__": x, "__wrt__": [0, 1]})):
        ask(op, x, state, options=options, handle=1)


_REHEARSAL = (
    "import math\nimport numpy as np\nimport torch\nfrom jaxtyping import Float, Int\nfrom torch import nn",
    """
array = np.linspace(0.0, 1.0, 12).reshape(3, 4)
def rehearse_numpy(x: Float[np.ndarray, "seq dim"]) -> Float[np.ndarray, "seq dim"]:
    x = np.asarray(x)
    with np.errstate(all="ignore"):
        x = np.where(x > 5, -np.inf, x - x.max(axis=-1, keepdims=True))
        x = np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
    return np.tanh(x)
""",
    """
assert np.allclose(rehearse_numpy(array).shape, array.shape)
assert np.allclose(np.einsum("ij,kj->ik", array, array), array @ np.swapaxes(array, -1, -2))
print(array, array.argmax(axis=-1), np.array([True]), np.array([1, 2]), math.pi, f"{array[0, 0]:.3f}")
""",
    """
class Rehearsal(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, dim)
        self.proj = nn.Linear(dim, dim, bias=False)
        self.norm = nn.LayerNorm(dim)
        self.cell = nn.GRUCell(dim, dim)

    def forward(self, x: Float[torch.Tensor, "batch seq dim"], state: Float[torch.Tensor, "batch dim"]):
        scores = self.proj(x) @ self.norm(x).mT / math.sqrt(x.shape[-1])
        mask = torch.arange(x.shape[1])[None, :] <= torch.arange(x.shape[1])[:, None]
        weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1).masked_fill(~mask, 0.0)
        context = torch.tanh((weights @ x)[:, 0]) + torch.sigmoid(state)
        state = self.cell(context, state) + self.embedding(torch.zeros(x.shape[0], dtype=torch.long))
        return torch.cat([x[:, :-1], state[:, None]], dim=1)
""",
    """
def rehearse_torch(x: Float[torch.Tensor, "batch seq dim"]) -> Float[torch.Tensor, "batch seq dim"]:
    order = x.sum(dim=-1).sort(dim=-1, stable=True).indices.unsqueeze(-1).expand_as(x)
    x = torch.zeros_like(x).scatter_add(1, order, x.gather(1, order).cumsum(dim=1).clamp(min=1e-9).log())
    pairs = torch.einsum("bid,bjd->bij", x, x.topk(2, dim=-1).values.repeat(1, 1, 2))
    pairs = torch.where(torch.tril(torch.ones_like(pairs)) > 0, pairs, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.nn.functional.pad(pairs.exp() * x, (0, 1)).unfold(-1, 2, 1).flip(-1).amax(dim=-1).double() + x.norm()
""",
    """
module, x = Rehearsal(4), torch.ones(2, 3, 4)
print(module(x, torch.ones(2, 4)), torch.tensor([1, 2]), torch.tensor([True]), x.shape, module)
assert torch.allclose(x, x) and torch.equal(x, x)
torch.einsum("bij,bkj->bik", x, x).sum(dim=(1, 2)).unsqueeze(-1).expand(2, 3).reshape(3, 2).transpose(0, 1).tolist()
torch.stack([x.split(2, dim=-1)[0].max(dim=-1).values, x.mean(dim=-1), x[..., 0].cumsum(dim=-1)])
module(x, torch.ones(2, 4)).sum().backward()
""",
)


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
    shell, error = _shell, None
    for index, source in enumerate(order["cells"]):
        if index not in order["skip"]:
            send(connection, {"cell": index, "error": error})  # what the cell before it raised
            error = _run_cell(shell, index, source)
    send(connection, {"ready": True, "error": error})
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
