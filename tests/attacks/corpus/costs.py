"""Lying about what a call costs: the values are right, the work is not, and the gate must not be passed."""

from corpus import ADDITIVE, SCALED, attack, reference

_TWICE = "A gate on cost has a reading from outside, of the very call whose result is judged."
_STEPS = "Loops are also counted from outside, as CPU time on a large case."

# Right values, by a loop over the rows.
_LOOP = """
def softmax_vjp(probs, upstream):
    flat, up = probs.reshape(-1, probs.shape[-1]), upstream.reshape(-1, probs.shape[-1])
    out = np.empty_like(flat)
    for row in range(len(flat)):
        total = flat.dtype.type(0)
        for j in range(flat.shape[1]):
            total += flat[row, j] * up[row, j]
        for j in range(flat.shape[1]):
            out[row, j] = flat[row, j] * (up[row, j] - total)
    return out.reshape(probs.shape)
"""

# Right values, by the full Jacobian.
_JACOBIAN = """
def softmax_vjp(probs, upstream):
    jacobian = probs[..., :, None] * (np.eye(probs.shape[-1], dtype=probs.dtype) - probs[..., None, :])
    return (jacobian @ upstream[..., None])[..., 0]
"""

_CALL_QUIETLY = """
_slow = softmax_vjp
def softmax_vjp(probs, upstream):
    {before}
    try:
        return {call}
    finally:
        {after}
"""


def _lying(slow: str, before: str = "pass", call: str = "_slow(probs, upstream)", after: str = "pass") -> str:
    return slow + _CALL_QUIETLY.format(before=before, call=call, after=after)


def cost(tries: str, stopped: str):
    return attack(
        tries=tries,
        stopped=stopped,
        wrong={"softmax_vjp": ("failed", "crashed", "timeout", "memory")},
        partial=True,
        full="softmax_jacobian",
        cpu=20,
    )


WITNESS = reference("softmax_jacobian", SCALED)


@cost("Does what is wasteful, without any lie.", _TWICE)
def wastes_openly():
    return _JACOBIAN, WITNESS


@cost("Switches the counting of Python steps off before its loop.", _STEPS)
def switches_tracing_off():
    return "import sys\n" + _lying(_LOOP, "sys.settrace(None)"), WITNESS


@cost("Loops in a thread of its own, where no step is counted.", _STEPS)
def loops_in_another_thread():
    return (
        "from concurrent.futures import ThreadPoolExecutor\n"
        + _lying(_LOOP, call="ThreadPoolExecutor(1).submit(_slow, probs, upstream).result()"),
        WITNESS,
    )


@cost("Remembers the result of the first call, and returns it when the same call is measured.", _TWICE)
def remembers_the_first_call():
    return "SEEN = {}\n" + _lying(
        _LOOP,
        "key = (probs.tobytes(), upstream.tobytes())",
        "SEEN[key] if key in SEEN else SEEN.setdefault(key, _slow(probs, upstream))",
    ), WITNESS


@cost("Replaces the workbench's measurements by zeros.", _STEPS)
def replaces_the_measurements():
    return (
        _LOOP,
        WITNESS,
        """
from autograder.sandbox import workbench
def trace(target, args, kwargs, options):
    return {"result": target(*args, **kwargs), "steps": 0, "peak_bytes": 0, "largest": 0, "flops": 0, "calls": []}
workbench._trace = trace
""",
    )


@cost("Starts a thread in a cell, which loops for the call while the call only waits.", _STEPS)
def loops_in_a_thread_that_was_there_before():
    return (
        "import queue, threading\nTODO, DONE = queue.SimpleQueue(), queue.SimpleQueue()\n"
        + _lying(_LOOP, call="(TODO.put((probs, upstream)), DONE.get())[1]"),
        WITNESS,
        """
def work():
    while True:
        DONE.put(_slow(*TODO.get()))
threading.Thread(target=work, daemon=True).start()
""",
    )


@cost(
    "Loops, with measurements replaced by zeros, and answers large inputs with nonsense that takes no time.",
    "The result of the very call that is measured is judged too, in places that nobody knows beforehand.",
)
def answers_large_inputs_with_nonsense():
    return (
        _LOOP
        + """
_honest_loop = softmax_vjp
def softmax_vjp(probs, upstream):
    return _honest_loop(probs, upstream) if probs.size < 50_000 else probs * upstream
""",
        WITNESS,
        """
from autograder.sandbox import workbench
def trace(target, args, kwargs, options):
    return {"result": target(*args, **kwargs), "steps": 0, "peak_bytes": 0, "largest": 0, "flops": 0, "calls": []}
workbench._trace = trace
""",
    )


@cost("Stops tracemalloc while it fills the memory.", _TWICE)
def stops_counting_memory():
    return "import tracemalloc\n" + _lying(_JACOBIAN, "tracemalloc.stop()", after="tracemalloc.start()"), WITNESS


@cost(
    "Holds a large block of memory beforehand and lets go of it in the call, so that the peak does not grow.",
    "Where it does not lie, what is allocated is counted inside as well; no gate on memory stands alone.",
)
def inflates_itself_beforehand():
    return (
        "import tracemalloc\nBALLOON = [np.ones(1 << 26)]\n"
        + _lying(
            _JACOBIAN,
            "probs.size > 3000 and (tracemalloc.stop(), BALLOON.clear())",
            after="tracemalloc.is_tracing() or tracemalloc.start()",
        ),
        WITNESS,
    )


@cost(
    "Forks, does the wasteful work in the other process, and sends the result back through a pipe.",
    "While a call is measured, no process can be started; older ones are gone.",
)
def works_in_another_process():
    return (
        """
import os
def elsewhere(probs, upstream):
    inside, outside = os.pipe()
    if os.fork() == 0:
        data = _slow(probs, upstream).tobytes()
        while data:
            data = data[os.write(outside, data):]
        os._exit(0)
    os.close(outside)
    with os.fdopen(inside, "rb") as pipe:
        data = pipe.read()
    os.wait()
    return np.frombuffer(data, dtype=probs.dtype).reshape(probs.shape).copy()
"""
        + _lying(_JACOBIAN, call="elsewhere(probs, upstream)"),
        WITNESS,
    )


@cost(
    "Lets its first thread end while another goes on, so that the kernel shows no memory for the process.",
    "A call whose memory cannot be read is no answer.",
)
def hides_its_memory_from_the_kernel():
    return (
        _JACOBIAN,
        WITNESS,
        """
import ctypes, os, platform, socket, stat, threading, time
from autograder.sandbox import child, protocol, workbench
def trace(target, args, kwargs, options):
    return {"result": target(*args, **kwargs), "steps": 0, "peak_bytes": 0, "largest": 0, "flops": 0, "calls": []}
workbench._trace = trace
space = globals()
for number in range(3, 64):
    try:
        if stat.S_ISSOCK(os.fstat(number).st_mode):
            wire = number
            break
    except OSError:
        pass
def serve():
    line = socket.socket(fileno=wire)
    time.sleep(0.2)
    protocol.send(line, {"ready": True, "error": None})
    bench = workbench.Workbench(space)
    while True:
        protocol.send(line, bench.answer(protocol.receive(line)))
threading.Thread(target=serve).start()
ctypes.CDLL(None).syscall(60 if platform.machine() == "x86_64" else 93, 0)
""",
    )


@attack(
    tries="Hides loops over positions inside map, reduce and vectorize, with the counting of steps switched off.",
    stopped=_STEPS,
    slug=ADDITIVE,
    wrong="additive_scores bilinear_scores",
    partial=True,
    full="softmax",
    cpu=20,
)
def loops_over_positions_unseen():
    return (
        """
import sys
def additive_scores(queries, keys, w_q, w_k, v):
    sys.settrace(None)
    out = np.empty((*queries.shape[:-1], keys.shape[-2]), dtype=queries.dtype)
    for index in np.ndindex(out.shape):
        out[index] = np.tanh(queries[index[:-1]] @ w_q + keys[(*index[:-2], index[-1])] @ w_k) @ v
    return out
def bilinear_scores(queries, keys, w):
    sys.settrace(None)
    out = np.empty((*queries.shape[:-1], keys.shape[-2]), dtype=queries.dtype)
    for index in np.ndindex(out.shape[:-2]):
        out[index] = queries[index] @ w @ keys[index].T
    return out
""",
        reference("softmax", ADDITIVE),
    )


@attack(
    tries="Loops over positions inside map: few steps, no lie, and the least that a loop in Python can take.",
    stopped=_STEPS,
    slug=ADDITIVE,
    wrong="additive_scores bilinear_scores",
    partial=True,
    full="softmax",
    cpu=20,
)
def loops_inside_map():
    return (
        """
def by_map(function, *arrays):
    lead = np.broadcast_shapes(*(array.shape[:-2] for array in arrays))
    flat = [np.broadcast_to(a, (*lead, *a.shape[-2:])).reshape(-1, *a.shape[-2:]) for a in arrays]
    found = list(map(function, *flat))
    shape = (*lead, arrays[0].shape[-2], arrays[1].shape[-1])
    return np.array(found).reshape(shape) if found else np.zeros(shape, arrays[0].dtype)
def additive_scores(queries, keys, w_q, w_k, v):
    query_part, key_part = (queries @ w_q)[..., None, :], (keys @ w_k)[..., None, :, :]
    rows = key_part.shape[:-3] + (query_part.shape[-3],) + key_part.shape[-2:]
    keys_again = np.broadcast_to(key_part, rows).reshape(-1, *rows[-2:])
    hidden = list(map(np.add, query_part.reshape(-1, 1, w_q.shape[1]), keys_again))
    found = list(map(np.matmul, map(np.tanh, hidden), [v] * len(hidden)))
    return np.array(found).reshape(*queries.shape[:-1], keys.shape[-2])
def bilinear_scores(queries, keys, w):
    return by_map(np.matmul, queries @ w, keys.swapaxes(-1, -2))
""",
        reference("softmax", ADDITIVE),
    )
