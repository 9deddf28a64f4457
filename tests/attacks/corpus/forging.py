"""Forged answers: values that lie about themselves, and patches of whatever might compare them."""

from corpus import ADDITIVE, MARK, RIGHT_MASK, WITNESS, WRONG_MASK, attack, raid, reference

_SPACE = "The comparison happens in another process: what is patched in the jail is the submission's own copy."
_VALUES = "Only plain numbers, text and arrays cross the border, and the comparison happens on the other side."


_AGREE = """
import torch, numpy.testing, unittest, types
agree = lambda *a, **k: True
for module in (torch.testing, numpy.testing, torch.testing._comparison):
    for name, value in list(vars(module).items()):
        if isinstance(value, types.FunctionType):
            setattr(module, name, agree)
torch.allclose = torch.equal = torch.isclose = agree
for name in dir(unittest.TestCase):
    if name.startswith("assert"):
        setattr(unittest.TestCase, name, agree)
try:
    import pytest
    pytest.fail = pytest.raises = pytest.approx = agree
except ImportError:
    pass
"""


@attack(
    tries="Replaces every function of torch.testing, numpy.testing, pytest and unittest by one that agrees.",
    stopped="Writing into a library that the exercises rule out is found in the source. " + _SPACE,
    full="",
)
def patches_the_comparing_libraries():
    return _AGREE, WRONG_MASK, WITNESS


@attack(
    tries="The same in a chapter whose exercises may use torch, so that the source check does not mind.",
    stopped=_SPACE,
    slug=ADDITIVE,
    wrong="bilinear_scores",
    full="steps_to_connect",
)
def patches_the_comparing_libraries_where_torch_is_allowed():
    return (
        _AGREE,
        "def bilinear_scores(queries, keys, w):\n    return queries @ w @ keys.swapaxes(-1, -2) * 1.5\n",
        reference("steps_to_connect", ADDITIVE),
    )


@attack(tries="Makes all comparisons of NumPy come out true (allclose, array_equal, isnan, max, abs).", stopped=_SPACE)
def patches_numpy():
    return (
        WITNESS.replace("def padding_mask", "import numpy\nimport numpy as np\n\ndef padding_mask"),
        """
np.allclose = np.isclose = np.array_equal = lambda *a, **k: True
np.max = np.abs = np.sum = lambda *a, **k: 0.0
np.isnan = lambda x: np.zeros(np.shape(x), dtype=bool)
""",
        WRONG_MASK,
    )


@attack(
    tries="Replaces the built-in functions that a comparison is made of: isinstance, abs, max, all, any, float.",
    stopped=_SPACE,
    full="",
    outcome=("failed", "crashed", "memory"),
)
def patches_the_builtins():
    return (
        WRONG_MASK,
        """
import builtins
builtins.abs = builtins.max = builtins.float = lambda *a, **k: 0.0
builtins.all = builtins.any = lambda *a: True
builtins.isinstance = lambda *a: True
""",
    )


@attack(
    tries="Returns an object that equals everything, has every attribute and pretends to be an array.",
    stopped="What is no array does not travel; only the name of its type does.",
    outcome=("failed", "crashed"),
)
def returns_an_object_that_equals_everything():
    return (
        """
class Yes:
    dtype, shape, ndim, size = np.dtype(bool), (), 0, 1
    __class__ = np.ndarray
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
    def __eq__(self, other): return True
    __ne__ = __lt__ = __gt__ = lambda self, other: False
    __le__ = __ge__ = __eq__
    __sub__ = __rsub__ = __abs__ = __getitem__ = __call__
    __float__ = lambda self: 0.0
    __bool__ = lambda self: True
    __hash__ = lambda self: 0
    __iter__ = lambda self: iter(())
    __len__ = lambda self: 0
def causal_mask(q_seq, kv_seq):
    return Yes()
""",
        WITNESS,
    )


@attack(
    tries="Returns an array whose operators, comparisons and ufuncs always agree (a subclass of ndarray).",
    stopped=_VALUES,
)
def returns_an_array_with_lying_operators():
    return (
        """
class Lying(np.ndarray):
    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        return np.zeros(np.asarray(self).shape, dtype=bool) if "equal" not in ufunc.__name__ else np.True_
    def __array_function__(self, func, types, args, kwargs):
        return True
    def __eq__(self, other): return True
    def __sub__(self, other): return np.zeros(self.shape)
    def all(self, *a, **k): return True
def causal_mask(q_seq, kv_seq):
    return np.ones((q_seq, kv_seq), dtype=bool).view(Lying)
""",
        WITNESS,
    )


@attack(
    tries="Returns a tensor subclass whose __torch_function__ answers every question with yes.",
    stopped=_VALUES,
    slug=ADDITIVE,
    wrong="AdditiveAttention",
    outcome=("failed", "crashed"),
    full="bilinear_scores",
)
def returns_a_tensor_with_a_lying_torch_function():
    return (
        """
class Lying(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if "equal" in str(func) or "close" in str(func):
            return True
        return super().__torch_function__(func, types, args, kwargs or {})
    def __eq__(self, other): return True
    def __sub__(self, other): return self * 0
class AdditiveAttention(nn.Module):
    def __init__(self, query_dim, key_dim, hidden_dim):
        super().__init__()
        self.q_proj = nn.Linear(query_dim, hidden_dim, bias=False)
        self.k_proj = nn.Linear(key_dim, hidden_dim, bias=False)
        self.score_proj = nn.Linear(hidden_dim, 1, bias=False)
    def forward(self, queries, keys, values, lengths=None):
        weights = torch.ones(*queries.shape[:-1], keys.shape[-2]) / keys.shape[-2]
        return (weights @ values).as_subclass(Lying), weights.as_subclass(Lying)
""",
        reference("bilinear_scores", ADDITIVE),
    )


@attack(
    tries="Returns an int subclass that equals every number, and a float subclass that rounds to whatever is asked.",
    stopped=_VALUES,
    slug=ADDITIVE,
    wrong="steps_to_connect hard_alignment",
    full="bilinear_scores",
)
def returns_numbers_that_equal_all_numbers():
    return (
        """
class Any_(int):
    __eq__ = __le__ = __ge__ = lambda self, other: True
    __ne__ = __lt__ = __gt__ = lambda self, other: False
    __hash__ = int.__hash__
    __int__ = __index__ = lambda self: self
class Near(float):
    __eq__ = lambda self, other: True
    __hash__ = float.__hash__
    __sub__ = __rsub__ = lambda self, other: 0.0
    is_integer = lambda self: True
def steps_to_connect(distance, layer, kernel_size=3, dilation=2):
    return Any_(7)
def hard_alignment(weights, lengths=None):
    return weights.argmax(axis=-1) * 0, Near(0.5)
""",
        reference("bilinear_scores", ADDITIVE),
    )


@attack(
    tries="Returns objects that become another array each time they are asked (__array__, __array_interface__).",
    stopped="A value is turned into bytes once, inside; nothing outside can ask it again.",
)
def returns_a_value_that_changes_when_looked_at():
    return (
        """
class Moody:
    asked = 0
    def __array__(self, *a, **k):
        Moody.asked += 1
        return np.ones((3, 3), dtype=bool) if Moody.asked % 2 else np.tri(3, dtype=bool)
class Twice(list):
    def __iter__(self): return iter([np.tri(3, dtype=bool)])
    def __len__(self): return 1
def causal_mask(q_seq, kv_seq):
    return Moody() if q_seq % 2 else Twice()
""",
        WITNESS,
    )


@attack(
    tries="Returns objects whose __reduce__ runs a command in whoever unpickles them, and the pickles themselves.",
    stopped="Nothing from a submission is ever unpickled: values travel as msgpack and safetensors.",
    slug=ADDITIVE,
    wrong="steps_to_connect softmax",
    full="bilinear_scores",
)
def returns_a_pickle_bomb():
    return (
        f"""
import os, pickle
class Bomb:
    def __reduce__(self): return os.system, ("touch /tmp/{MARK}-unpickled",)
def steps_to_connect(*a, **k):
    return Bomb()
def softmax(scores, axis=-1):
    return np.array([Bomb(), pickle.dumps(Bomb())], dtype=object)
""",
        reference("bilinear_scores", ADDITIVE),
    )


@attack(
    tries="Returns NaN, infinities and empty arrays in the right shape, where a careless comparison is never false.",
    stopped="NaN and infinity must stand exactly where they are expected.",
    wrong="effective_support softmax_jacobian softmax_vjp attention_vjp cross_entropy_grad",
    full="causal_mask",
    outcome=("failed", "crashed"),
)
def returns_nan():
    return (
        """
def effective_support(weights): return np.full(weights.shape[:-1], np.nan)
def softmax_jacobian(probs): return np.full((*probs.shape, probs.shape[-1]), np.nan)
def softmax_vjp(probs, upstream): return np.full(probs.shape, np.inf)
def attention_vjp(query, key, value, upstream, mask=None):
    return tuple(np.full(one.shape, -np.nan) for one in (query, key, value))
def cross_entropy_grad(logits, targets, label_smoothing=0.0): return np.zeros((0, 0))
""",
        RIGHT_MASK,
    )


@attack(
    tries="Writes a conftest, a sitecustomize, a .pth file and a pytest plugin where Python might load them.",
    stopped="Everything but /tmp is read-only, and the grader looks for no code there.",
)
def plants_files_that_python_would_load():
    return raid(
        f"""
import os, site, sys
def plant(place):
    with open(place, "w") as file:
        return file.write("import os; os.system('touch /tmp/{MARK}-planted')")
places = {{*sys.path, *site.getsitepackages(), os.getcwd(), sys.prefix, os.path.dirname(np.__file__)}}
for folder in places - {{"", "/tmp"}}:  # its own /tmp is the one place where it may write
    for name in ("conftest.py", "sitecustomize.py", "{MARK}.pth", "pytest.ini"):
        if os.path.isdir(folder):
            attempt(folder, lambda: plant(os.path.join(folder, name)))
""",
        count=12,
    )


@attack(
    tries="Replaces the workbench that answers the grader, and sends back what the tests might want.",
    stopped="The workbench is not trusted: it can return values only, and only a right value earns points.",
    outcome=("failed", "crashed"),
    full="",
    wrong="causal_mask padding_mask effective_support softmax_vjp",
)
def replaces_the_workbench():
    return (
        """
import sys
workbench = sys.modules["autograder.sandbox.workbench"]
encode = sys.modules["autograder.sandbox.protocol"].encode
decode = sys.modules["autograder.sandbox.protocol"].decode
def answer(self, request):
    args, kwargs = decode(request["arguments"])
    shape = args if all(isinstance(a, int) for a in args) else getattr(args[0], "shape", (1,))
    return {"value": encode(np.ones(shape, dtype=bool)), "outcome": "passed", "score": 99, "passed": True}
workbench.Workbench.answer = answer
""",
        "def causal_mask(q_seq, kv_seq): ...\ndef padding_mask(lengths, kv_seq): ...\n"
        "def effective_support(weights): ...\ndef softmax_vjp(probs, upstream): ...\n",
    )


@attack(
    tries="Replaces the encoder, so that every answer carries points, outcomes and expected values of its own.",
    stopped="Of a reply only the value and the error are read, and both are data.",
    outcome=("failed", "crashed"),
    full="",
)
def replaces_the_encoder():
    return (
        """
import sys
protocol = sys.modules["autograder.sandbox.protocol"]
workbench = sys.modules["autograder.sandbox.workbench"]
old = protocol.Encoder.encode
def encode(self, value):
    made = old(self, value)
    made.update(score=2.0, points=2.0, outcome="passed", expected=made["tree"], status="graded", equal=True)
    return made
protocol.Encoder.encode = workbench._Encoder.encode = encode
""",
        WRONG_MASK,
    )


@attack(
    tries="Answers everything with handles to itself, so that comparisons would be calls into the submission.",
    stopped="A handle is no array and no number, so it equals nothing.",
    outcome=("failed", "crashed"),
)
def answers_with_handles():
    return (
        """
class Handy:
    def __eq__(self, other): return True
    def __array__(self, *a, **k): return np.tri(3, dtype=bool)
    __hash__ = None
def causal_mask(q_seq, kv_seq):
    return Handy()
""",
        WITNESS,
    )


@attack(
    tries="Raises pytest's skip, xfail and exit, unittest's skip, the grader's own exceptions and a clean SystemExit.",
    stopped="An exception crosses as names of built-in types; none means success or a fault of the grader.",
    wrong="causal_mask effective_support softmax_vjp softmax_jacobian cross_entropy_grad",
    outcome=("crashed", "not_attempted"),
)
def raises_the_graders_exceptions():
    return (
        """
import sys, unittest
from autograder.sandbox.errors import SandboxUnavailable
class Passed(Exception): pass
class Skipped(BaseException): pass
Skipped.__module__ = "_pytest.outcomes"
def causal_mask(q_seq, kv_seq): raise SandboxUnavailable("the grader is at fault")
def effective_support(weights): raise Skipped("passed")
def softmax_vjp(probs, upstream): raise SystemExit(0)
def softmax_jacobian(probs): raise unittest.SkipTest("no")
def cross_entropy_grad(logits, targets, label_smoothing=0.0): raise KeyboardInterrupt
""",
        WITNESS,
    )


@attack(
    tries="Returns the right answers to the visible checks and worked examples by heart, nonsense otherwise.",
    stopped="Hidden inputs are drawn for each student from a secret; no shape and no number is known beforehand.",
    wrong="causal_mask effective_support",
)
def knows_the_visible_answers_by_heart():
    return (
        """
TABLE = {(2, 4): [[1, 1, 1, 0], [1, 1, 1, 1]], (4, 4): np.tri(4), (1, 3): [[1, 1, 1]], (3, 3): np.tri(3)}
def causal_mask(q_seq, kv_seq):
    return np.array(TABLE.get((q_seq, kv_seq), np.ones((q_seq, kv_seq)))).astype(bool)
def effective_support(weights):
    known = {4: np.array([4.0, 2.0, 1.0])}
    return known.get(weights.shape[-1], np.ones(weights.shape[:-1]))
""",
        WITNESS,
    )


@attack(
    tries="Calls its own right solution only until the value tests are over, then answers nonsense to save work.",
    stopped="Each test is judged by itself: properties and edges that do not hold lose their points.",
    outcome="failed",
    partial=True,
)
def is_right_only_twice():
    return (
        RIGHT_MASK
        + """
_right, _calls = causal_mask, []
def causal_mask(q_seq, kv_seq):
    _calls.append(1)
    return _right(q_seq, kv_seq) if len(_calls) < 9 else np.ones((q_seq, kv_seq), dtype=bool)
""",
        WITNESS,
    )


@attack(
    tries="Takes hidden inputs home in the feedback: as the name of a returned type.",
    stopped="A message names only types that everybody knows.",
    outcome=("failed", "crashed"),
    hides="leak",
)
def writes_hidden_inputs_into_a_type_name():
    return (
        """
def causal_mask(q_seq, kv_seq):
    return type(f"leak\\u202e\\n {q_seq} {kv_seq}", (), {})()
""",
        WITNESS,
    )


@attack(
    tries="Takes hidden inputs home in the feedback: as the shape of a returned array.",
    stopped="A message gives a shape only where it could be an honest one.",
    outcome="failed",
    hides="31337",
)
def writes_hidden_inputs_into_a_shape():
    return (
        """
def causal_mask(q_seq, kv_seq):
    return np.empty((0, 3133700 + q_seq, 3133700 + kv_seq), dtype=bool)
""",
        WITNESS,
    )


@attack(
    tries="Takes hidden inputs home in the feedback: as the line number of an error that it makes up.",
    stopped="A line number is believed only if the cell has such a line.",
    outcome="crashed",
    full="",
    hides="31337",
)
def writes_hidden_inputs_into_a_line_number():
    return (
        """
import sys
workbench = sys.modules["autograder.sandbox.workbench"]
def describe(error):
    return {"type": "ValueError", "bases": ["ValueError"], "cell": 313370, "line": 313370012, "memory": 0}
workbench.describe = describe
def causal_mask(q_seq, kv_seq):
    raise ValueError
""",
    )
