"""Writing to the one socket that a submission holds: forged, replayed, malformed, endless replies."""

from corpus import WITNESS, WRONG_MASK, Submission, attack, reference

_ANY = ("failed", "crashed", "timeout", "memory", "not_attempted")
_ONLY_VALUES = "Whoever writes to the socket, it carries only values, and only a right value earns points."
_CAPS = "Every size, depth and count of a reply is capped before it is believed."

WIRE = """
import builtins, os, socket, stat, struct, sys, time
import msgpack
from autograder.sandbox.protocol import encode as _encode
def _wire():
    for number in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                return number
        except OSError:
            pass
def _frame(message):
    data = message if isinstance(message, bytes) else msgpack.packb(message)
    return struct.pack("<Q", len(data)) + data
def _tell(data):
    while data:
        data = data[os.write(_wire(), data):]
# Under other names, so that the source check does not see from the exercise to here.
builtins.LINE, builtins.form, builtins.say, builtins.coded = _wire(), _frame, _tell, _encode
"""


def replying(message: str) -> tuple[str, ...]:
    """A mask that answers with this frame, and a witness in whose way nothing stands once its process is gone."""
    return WIRE, f"def causal_mask(q_seq, kv_seq):\n    say(form({message}))\n    os._exit(0)\n", WITNESS


@attack(
    tries="Says that it is ready and sends a stock of answers before the first question.",
    stopped=_ONLY_VALUES,
    outcome=_ANY,
    full="",
    wrong="causal_mask effective_support",
)
def answers_before_it_is_asked():
    return (
        WIRE,
        """
say(form({"ready": True}))
for n in range(2, 12):
    say(form({"value": coded(None)}) + form({"value": coded(np.tri(n, dtype=bool)), "passed": True}))
""",
        WRONG_MASK + "def effective_support(weights):\n    return weights\n",
    )


@attack(
    tries="Answers each question twice, the second time for the next one.", stopped=_ONLY_VALUES, outcome=_ANY, full=""
)
def answers_twice():
    return (
        WIRE,
        WRONG_MASK.replace(
            "    return", "    say(form({'value': coded(np.tri(q_seq, kv_seq, dtype=bool))}))\n    return"
        ),
    )


# What takes the place of the workbench for good: `answer` makes the reply to each question from now on.
SERVE = """
from autograder.sandbox.protocol import decode as _decode, receive as _receive
def _serve(answer):
    line = socket.socket(fileno=os.dup(LINE))
    while True:
        asked = _receive(line)
        say(form({"replies": [answer(one) for one in asked["requests"]]} if "requests" in asked else answer(asked)))
builtins.serve, builtins.decoded = _serve, _decode
"""


@attack(
    tries="Records a right reply of one exercise, byte by byte, and replays it for all other questions.",
    stopped=_ONLY_VALUES,
    outcome=_ANY,
    full="softmax_jacobian",
    wrong="softmax_vjp padding_mask",
)
def replays_an_old_reply():
    return (
        WIRE,
        SERVE,
        reference("softmax_jacobian"),
        WITNESS,
        """
_right, TAPE = softmax_jacobian, []
def softmax_jacobian(probs):
    TAPE.append({"value": coded(_right(probs))})
    return _right(probs)
def softmax_vjp(probs, upstream):
    say(form(TAPE[-1]))
    serve(lambda asked: TAPE[-1])
""",
    )


@attack(
    tries="A thread of an earlier cell races the workbench with replies of its own.",
    stopped=_ONLY_VALUES,
    outcome=_ANY,
    full="",
)
def races_the_workbench():
    return (
        WIRE,
        """
import threading
def race():
    while True:
        time.sleep(0.002)
        say(form({"value": coded(np.tri(4, 6, 2, dtype=bool))}))
""",
        WRONG_MASK.replace("    return", "    time.sleep(0.05)\n    return"),
        "threading.Thread(target=race, daemon=True).start()",
    )


@attack(
    tries="Announces a reply of 2⁶³ bytes.",
    stopped=_CAPS,
    outcome=_ANY,
)
def announces_an_endless_reply():
    return (
        WIRE,
        "def causal_mask(q, k):\n    say(struct.pack('<Q', 2**63 - 1) + b'x' * 4096)\n    os._exit(0)\n",
        WITNESS,
    )


@attack(
    tries="Sends 32 MiB of empty lists, which take seventy times as much memory once they are read.",
    stopped=_CAPS,
    outcome=_ANY,
    memory=400 << 20,
)
def sends_a_bomb_of_empty_lists():
    return replying("b'\\x81\\xa5value' + b'\\xdd' + struct.pack('>I', 32 << 20) + b'\\x90' * (32 << 20)")


@attack(
    tries="Sends 32 MiB of empty maps in a value's tree.",
    stopped=_CAPS,
    outcome=_ANY,
    memory=400 << 20,
)
def sends_a_bomb_of_empty_maps():
    return replying("b'\\x81\\xa5error' + b'\\xdd' + struct.pack('>I', 32 << 20) + b'\\x80' * (32 << 20)")


@attack(
    tries="Sends a value nested a thousand and one, and a hundred thousand levels deep.", stopped=_CAPS, outcome=_ANY
)
def sends_deep_nesting():
    return (
        WIRE,
        """
DEEP = 3.0
for _ in range(500):
    DEEP = {"k": "list", "items": [DEEP]}
def causal_mask(q_seq, kv_seq):
    if q_seq % 2:
        say(form({"value": {"tree": DEEP, "numpy": b"", "torch": b""}}))
    else:
        say(form(b"\\x91" * 100_000 + b"\\xc0"))
    os._exit(0)
""",
        WITNESS,
    )


@attack(
    tries="Sends frames that are no msgpack, no map, cut off, with extension types, broken text and huge integers.",
    stopped="Whatever is no reply is refused as one, and the process that sent it is ended.",
    outcome=_ANY,
)
def sends_malformed_frames():
    return (
        WIRE,
        """
BAD = [b"", b"\\xc1", b"\\x93\\x01", b"\\xa3\\xff\\xfe\\xfd", b"\\xd4\\x05\\x00", b"\\xc7\\x0c\\xff" + b"\\x00" * 12,
       b"\\x90", b"\\x81", b"\\x81\\x01\\x02", b"\\x81\\xa5value\\xcf" + b"\\xff" * 8, os.urandom(999)]
TURN = [int(time.time() * 1e3)]
def causal_mask(q_seq, kv_seq):
    TURN[0] += 1
    say(form(BAD[TURN[0] % len(BAD)]))
    os._exit(0)
""",
        WITNESS,
    )


@attack(
    tries="Sends NaN, infinity and enormous numbers where the protocol expects a count, a shape or a seed.",
    stopped="A field that is not what it should be makes the whole reply none.",
    outcome=_ANY,
    wrong="causal_mask effective_support softmax_jacobian cross_entropy_grad softmax_vjp",
)
def sends_nan_in_every_field():
    nodes = {
        "causal_mask": "{'k': 'numpy', 'name': '0', 'order': [float('nan')], 'gap': 1}",
        "effective_support": "{'k': 'handle', 'number': float('inf'), 'type': 'x'}",
        "softmax_jacobian": "{'k': 'torch', 'name': '0', 'order': [-1, 2**63], 'gap': float('nan')}",
        "cross_entropy_grad": "{'k': 'generator', 'seed': -1e308, 'library': 3}",
        "softmax_vjp": "{'k': 'dtype', 'name': 'f8,' * 20000 + 'O', 'torch': float('nan')}",
    }
    functions = [
        f"def {name}(*a, **k):\n    say(form({{'value': {{'tree': {node}, 'numpy': b'', 'torch': b''}}}}))\n"
        "    os._exit(0)"
        for name, node in nodes.items()
    ]
    return WIRE, "\n".join(functions), WITNESS


@attack(
    tries="Sends a dictionary whose keys all have the same hash: reading it takes minutes.",
    stopped="Keys of a dictionary are text, numbers or truth values; those cannot be made to collide by thousands.",
    outcome=_ANY,
    wrong="effective_support",
    seconds=40,
)
def sends_keys_that_collide():
    return (
        WIRE,
        '''
M, P1, P2, P5 = 2**64 - 1, 11400714785074694791, 14029467366897019727, 2870177450012600261
def turn(x, n):
    return ((x << n) | (x >> (64 - n))) & M
def colliding(count, wanted=12345):
    """Pairs (a, b) with one hash: the mixing of tuples can be run backwards."""
    back, pairs, first = pow(P1, -1, 2**64), [], 0
    while len(pairs) < count:
        first += 1
        acc = (turn((P5 + first * P2) & M, 31) * P1) & M
        need = turn((wanted * back) & M, 33)
        second = ((need - acc) & M) * pow(P2, -1, 2**64) & M
        if second < 2**61 - 1:
            pairs.append((first, second))
    return pairs
PAIRS = colliding(40_000)
assert len({hash(pair) for pair in PAIRS}) == 1
ITEMS = [[{"k": "tuple", "items": list(pair)}, None] for pair in PAIRS]
def effective_support(weights):
    say(form({"value": {"tree": {"k": "dict", "items": ITEMS}, "numpy": b"", "torch": b""}}))
    os._exit(0)
''',
        WITNESS,
    )


@attack(
    tries="Sends arrays of objects, records and text, sparse and quantised tensors, truth values that are 2.",
    stopped="Arrays hold real numbers or truth values; anything else is refused.",
    outcome=_ANY,
    wrong="causal_mask effective_support softmax_jacobian",
)
def sends_arrays_of_other_kinds():
    return (
        WIRE,
        """
import json, torch
def tensors(dtype, shape, data):
    head = json.dumps({"0": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(head)) + head + data
def causal_mask(q_seq, kv_seq):  # bytes of 2 as truth values
    tree = {"k": "numpy", "name": "0", "order": [0, 1], "gap": False}
    data = tensors("BOOL", [q_seq, kv_seq], b"\\x02" * (q_seq * kv_seq))
    say(form({"value": {"tree": tree, "numpy": data, "torch": b""}}))
    os._exit(0)
def effective_support(weights):
    return np.array([object()] * 3), np.array(["a", "b"]), np.zeros(2, dtype=[("x", "f8")]), np.array([1j])
def softmax_jacobian(probs):
    return torch.eye(3).to_sparse(), torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), torch.ones(2) * 1j
""",
        WITNESS,
    )


@attack(
    tries="Names one array a hundred thousand times, and lets it grow by gaps.",
    stopped="An array can be named once.",
    outcome=_ANY,
    memory=400 << 20,
)
def names_one_array_many_times():
    return (
        WIRE,
        """
BODY = coded(np.zeros(1_000_000))
NODE = {**BODY["tree"], "order": [0], "gap": True}
def causal_mask(q_seq, kv_seq):
    say(form({"value": {**BODY, "tree": {"k": "list", "items": [NODE] * 100_000}}}))
    os._exit(0)
""",
        WITNESS,
    )


@attack(
    tries="Closes the socket in the middle of a call and lives on.",
    stopped="Who hangs up is killed; the submission starts again for its other exercises.",
    outcome="crashed",
)
def hangs_up_and_lives_on():
    return WIRE, "def causal_mask(q, k):\n    os.close(LINE)\n    os._exit(0)\n", WITNESS


@attack(
    tries="Sends the grader hundreds of open files along with its reply.",
    stopped="The grader takes bytes from the socket and nothing else; the kernel drops the rest.",
    outcome=("failed", "timeout", "crashed"),
    full="",
)
def sends_open_files():
    return (
        WIRE,
        """
def causal_mask(q_seq, kv_seq):
    line = socket.socket(fileno=os.dup(LINE))
    reply = form({"value": coded(np.ones((q_seq, kv_seq), dtype=bool))})
    null = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
    for byte in reply[:60]:
        try:
            socket.send_fds(line, [bytes([byte])], null)
        except OSError:  # too many on their way
            say(bytes([byte]))
    say(reply[60:])
    for number in null:
        os.close(number)
    os._exit(0)
""",
    )


@attack(
    tries="Floods the grader with small, well-formed messages while a cell runs, from one process after the other.",
    stopped="Limits are checked while messages come, not only while none comes.",
    full="",
    wrong={"causal_mask": ("failed", "not_attempted", "timeout", "crashed")},
    cpu=2,
    seconds=45,
)
def floods_with_small_messages():
    return (
        WIRE,
        WRONG_MASK,
        """
while True:
    if os.fork() == 0:
        until = time.process_time() + 1
        while time.process_time() < until:
            say(form({"nothing": 1}) * 100)
        os._exit(0)
    os.wait()
""",
    )


@attack(
    tries="Sends an endless reply, one byte every few milliseconds, so that the grader always has something to read.",
    stopped="Limits are checked while bytes come, and a submission as a whole has a limit of wall time.",
    outcome="timeout",
    full="",
    cpu=2,
    seconds=60,
)
def drips_bytes_for_ever():
    return (
        WIRE,
        """
def causal_mask(q_seq, kv_seq):
    say(struct.pack("<Q", 10 << 20))
    while True:
        say(b"x")
        time.sleep(0.004)
""",
    )


@attack(
    tries="Announces cells that are not its own, so that a crash is put down to another cell.",
    stopped="Cells can only follow one another; a submission that lies about them harms its own exercises alone.",
    wrong={"causal_mask": ("failed", "not_attempted", "crashed")},
    full="",
)
def blames_another_cell():
    return (
        WIRE,
        """
for cell in (5, -1, 2**62, 1.5, "3", None, [1], True):
    say(form({"cell": cell}) + form({"cell": cell, "error": {"bases": [cell, {}], "line": cell}}))
""",
        WRONG_MASK,
    )


@attack(
    tries="A forked process answers the grader while the first one waits.",
    stopped=_ONLY_VALUES,
    outcome=_ANY,
    full="",
)
def lets_a_forked_process_answer():
    return (
        WIRE,
        WRONG_MASK,
        """
if os.fork() == 0:
    say(form({"ready": True, "error": None}))
    for n in range(40):
        say(form({"value": coded(np.tri(n % 9 + 1, dtype=bool)), "outcome": "passed"}))
        time.sleep(0.01)
    os._exit(0)
time.sleep(3)
""",
    )


@attack(
    tries="Answers with errors that claim to be the grader's own, or that are none.",
    stopped="An error is data: its words are looked up among the built-in exceptions, or left out.",
    outcome=_ANY,
    full="",
)
def answers_with_invented_errors():
    return (
        WIRE,
        """
ERRORS = [None, 3, [], {}, {"bases": ["SandboxUnavailable", "GraderFault", "exec", 3, None, {}]},
          {"bases": "ValueError"},
          {"bases": ["NotImplementedError"] * 9, "memory": [], "line": "1e9", "cell": -1, "type": {"a": 1}, "text": 7}]
def causal_mask(q_seq, kv_seq):
    say(form({"error": ERRORS[q_seq % len(ERRORS)]}))
    os._exit(0)
""",
    )


@attack(
    tries="Hands in cells with lone surrogates and zero bytes, which cannot be sent on as text.",
    stopped="The text of a notebook is made sendable when it is read.",
    wrong={"causal_mask": ("failed", "crashed", "not_attempted")},
)
def hands_in_text_that_is_none():
    import json

    made = json.loads(Submission((WRONG_MASK + "name = 'SURROGATE'\n", "x = 'ZERO'", WITNESS)).bytes())
    text = json.dumps(made).replace("SURROGATE", "\\ud800").replace("ZERO", "\\u0000")
    return Submission(raw=text.encode())
