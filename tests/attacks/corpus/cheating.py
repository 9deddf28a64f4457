"""The forbidden library function by other roads. Each form is right; honest judging gives it nothing."""

from corpus import ADDITIVE, Submission, attack, reference

_CHECK = "The source check follows names through the whole notebook and knows this road."
_ALONE = "What the exercise may not use lies in another cell; the exercise is judged once more, without it."
_WITHOUT = ("failed", "crashed", "not_attempted")  # what is left of an exercise that lived by something else


def road(*cells: str) -> Submission:
    """A softmax that the library computes, and a witness without guilt."""
    return Submission((*cells, reference("bilinear_scores", ADDITIVE)))


def _softmax(body: str) -> str:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"def softmax(scores, axis=-1):\n{lines}"


def _enter(
    name: str, tries: str, *cells: str, stopped: str = _CHECK, outcome: str | tuple[str, ...] = "forbidden"
) -> None:
    """Enter a form."""

    def make() -> Submission:
        return road(*cells)

    make.__name__ = name.replace(" ", "_")
    make.__module__ = __name__
    attack(
        tries=tries,
        stopped=stopped,
        wrong="softmax",
        outcome=outcome,
        full="bilinear_scores",
        slug=ADDITIVE,
    )(make)


_T = "torch.from_numpy(scores)"

_enter(
    "imports it under another name",
    "Calls torch's softmax through import … as, from … import, and a second name for that.",
    "from torch.nn import functional as tools\nfrom torch import softmax as helper\nagain = helper\n"
    + _softmax(f"return again({_T}, axis).numpy()"),
)
_enter(
    "imports it inside the function",
    "Imports the function where it is used.",
    _softmax(f"from torch import special as s\nreturn s.softmax({_T}, axis).numpy()"),
)
_enter(
    "imports everything with a star",
    "Gets the function from a star import.",
    "from torch.nn.functional import *\n" + _softmax(f"return softmin(-{_T}, axis).numpy()"),
)
_enter("uses the method form", "Calls the method of a tensor.", _softmax(f"return {_T}.softmax(axis).numpy()"))
_enter(
    "gets the attribute by its name",
    "Uses getattr with the name as text.",
    _softmax(f"return getattr(torch, 'softmax')({_T}, axis).numpy()"),
)
_enter(
    "puts the name together at run time",
    "Uses getattr with a name that is put together from pieces.",
    _softmax(f"return getattr(torch, 'soft' + 'max')({_T}, axis).numpy()"),
    stopped="getattr with a name that is not written out is ruled out.",
)
_enter(
    "asks the C library of Python for it",
    "Gets the function through ctypes: PyImport_ImportModule and PyObject_GetAttrString.",
    "import ctypes\n"
    "api = ctypes.pythonapi\n"
    "api.PyImport_ImportModule.restype = api.PyObject_GetAttrString.restype = ctypes.py_object\n"
    "api.PyObject_GetAttrString.argtypes = (ctypes.py_object, ctypes.c_char_p)\n"
    + _softmax(
        "lib = api.PyImport_ImportModule(b'torch')\n"
        "get = lambda name: api.PyObject_GetAttrString(lib, name)\n"
        "return get(b'softmax')(get(b'from_numpy')(scores), dim=axis).numpy()"
    ),
)

_enter(
    "goes through torch ops",
    "Calls the operator below the function (torch.ops.aten).",
    _softmax(f"return torch.ops.aten.softmax.int({_T}, axis).numpy()"),
)
_enter(
    "goes through the private function",
    "Calls torch._softmax and torch._C.",
    _softmax(f"return torch._softmax({_T}, axis, False).numpy()"),
)
_enter(
    "takes a relative of it",
    "Takes the logarithm of softmax from the library and exponentiates it.",
    _softmax(f"return torch.nn.functional.log_softmax({_T}, axis).exp().numpy()"),
    stopped="The contract rules out the whole family, not one name.",
)
_enter(
    "lets attention compute it",
    "Calls the library's attention with a query and identity matrices that make it return a softmax.",
    _softmax(
        "t = torch.from_numpy(np.moveaxis(scores, axis, -1).copy())\n"
        "t, shape = t.reshape(-1, 1, t.shape[-1]), t.shape\n"
        "eye = torch.eye(t.shape[-1], dtype=t.dtype).expand(len(t), -1, -1)\n"
        "out = torch.nn.functional.scaled_dot_product_attention(t, eye, eye, scale=1.0)\n"
        "return np.moveaxis(out.reshape(shape).numpy(), -1, axis)"
    ),
    stopped="The contract rules out the library that could compute it, not one name.",
)
_enter(
    "wraps it with partial",
    "Wraps the function with functools.partial.",
    "import functools\nwrapped = functools.partial(torch.softmax)\n" + _softmax(f"return wrapped({_T}, axis).numpy()"),
)
_enter(
    "asks operator for the attribute",
    "Uses operator.attrgetter.",
    "import operator\nget = operator.attrgetter('softmax')\n" + _softmax(f"return get(torch)({_T}, axis).numpy()"),
)
_enter(
    "asks operator for the method",
    "Uses operator.methodcaller.",
    "import operator\n" + _softmax(f"return operator.methodcaller('softmax', axis)({_T}).numpy()"),
)
_enter(
    "looks into the module's dictionary",
    "Uses vars(torch) and torch.__dict__.",
    _softmax(f"return torch.__dict__['softmax']({_T}, axis).numpy()"),
)
_enter(
    "looks into globals",
    "Uses globals() to find the library.",
    _softmax(f"return globals()['torch'].softmax({_T}, axis).numpy()"),
)
_enter(
    "looks into the loaded modules",
    "Uses sys.modules.",
    "import sys\n" + _softmax(f"return sys.modules['torch'].softmax({_T}, axis).numpy()"),
)
_enter(
    "imports by a computed name",
    "Uses importlib and __import__.",
    "import importlib\n" + _softmax(f"return importlib.import_module('tor' + 'ch').softmax({_T}, axis).numpy()"),
)
_enter(
    "runs text",
    "Uses exec and eval on text that names the function.",
    _softmax(f"return eval('torch.soft' + 'max')({_T}, axis).numpy()"),
)
_enter(
    "unpickles it",
    "Unpickles a reference to the function.",
    "import pickle\n" + _softmax(f"return pickle.loads(b'ctorch\\nsoftmax\\n.')({_T}, axis).numpy()"),
    stopped="Modules that make code out of data are ruled out everywhere.",
)
_enter(
    "builds a function from code",
    "Builds a function from a code object of another one.",
    "import types\n"
    + _softmax(
        f"code = (lambda t, a: torch.special.log_softmax(t, a).exp()).__code__\n"
        f"return types.FunctionType(code, {{'torch': torch}})({_T}, axis).numpy()"
    ),
)
_enter(
    "hangs it on numpy in another cell",
    "Another cell hangs the function on NumPy under a harmless name.",
    "np.steady = lambda s, a: torch.softmax(torch.from_numpy(s), a).numpy()",
    _softmax("return np.steady(scores, axis)"),
)
_enter(
    "hangs it on builtins in another cell",
    "Another cell puts the function among the built-in names.",
    "import builtins\nbuiltins.steady = lambda s, a: torch.softmax(torch.from_numpy(s), a).numpy()",
    _softmax("return steady(scores, axis)"),
)
_enter(
    "hangs it up with setattr in another cell",
    "Another cell uses setattr to hang the function on NumPy.",
    "setattr(np, 'steady', lambda s, a: torch.softmax(torch.from_numpy(s), a).numpy())",
    _softmax("return np.steady(scores, axis)"),
)
_enter(
    "keeps it in a container",
    "Another cell puts the function into a dictionary or a list that the exercise reads.",
    "TOOLS = {}\nSHELF = []",
    "TOOLS['a'] = torch.softmax\nSHELF.append(torch.softmax)",
    _softmax(f"return (TOOLS.get('a') or SHELF[0])({_T}, axis).numpy()"),
)
_enter(
    "hides the alias behind a later import",
    "Binds the library as a default, and gives its name to NumPy afterwards, in a function that nobody calls.",
    "import torch as lib\n"
    + _softmax(f"return inner({_T}, axis)")
    + "def inner(t, axis, lib=lib):\n    return lib.softmax(t, axis).numpy()\n",
    "def unused():\n    import numpy as lib\n    import numpy as torch\n",
)
_enter(
    "hides in a cell that only IPython reads",
    "Ends the cell with a line of help, which plain Python cannot parse.",
    _softmax(f"return torch.softmax({_T}, axis).numpy()") + "\nnp.exp?\n",
)
_enter(
    "hides in a cell magic",
    "Defines the function under %%time.",
    "%%time\n" + _softmax(f"return torch.softmax({_T}, axis).numpy()"),
)
_enter(
    "hides behind deep nesting",
    "Raises the recursion limit, and puts the function into a cell that a parser with the usual limit gives up.",
    "import sys\nsys.setrecursionlimit(1_000_000)",
    _softmax(f"return torch.softmax({_T}, axis).numpy()") + "deep = " + "+".join(["1"] * 4000) + "\n",
    stopped=_ALONE,
    outcome=_WITHOUT,
)
_enter(
    "writes a module and imports it",
    "Writes a file with the call to /tmp, and imports it.",
    "import sys\nsys.path.append('/tmp')\n"
    "open('/tmp/mine.py', 'w').write('import torch\\ndef work(s, a): return torch.softmax(s, a)')",
    "import mine\n" + _softmax(f"return mine.work({_T}, axis).numpy()"),
    stopped="An exercise may import libraries, not files that the notebook wrote.",
)
_enter(
    "borrows the grader's own import",
    "Takes the library from a module of the sandbox that has imported it.",
    "from autograder.sandbox import workbench\n"
    + _softmax("t = workbench.torch\nreturn t.softmax(t.from_numpy(scores), axis).numpy()"),
    stopped="The sandbox's modules are ruled out everywhere.",
)
_enter(
    "transforms the text of its own cell",
    "An input transformer writes the forbidden name over a harmless one before the cell runs.",
    "get_ipython().input_transformers_post.append(\n"
    "    lambda lines: [line.replace('np.fine', 'torch.softmax') for line in lines])",
    _softmax(f"return np.fine({_T}, axis).numpy()"),
    stopped=_ALONE,
    outcome=_WITHOUT,
)
_enter(
    "uses a class as a detour",
    "Calls the function from __call__, __getattr__ or a property of a class.",
    "class Detour:\n    def __getattr__(self, name):\n"
    "        return lambda s, a: getattr(torch, name)(torch.from_numpy(s), a).numpy()\n",
    _softmax("return Detour().softmax(scores, axis)"),
)
_enter(
    "decorates itself",
    "A decorator replaces the honest function by the library's.",
    "def better(function):\n    return lambda scores, axis=-1: torch.softmax(torch.from_numpy(scores), axis).numpy()\n",
    "@better\n" + _softmax("return np.exp(scores) / np.exp(scores).sum(axis, keepdims=True)"),
)
_enter(
    "replaces itself when first called",
    "The first call rebinds the exercise's name to the library's function.",
    _softmax(
        "global softmax\nsoftmax = lambda s, axis=-1: torch.softmax(torch.from_numpy(s), axis).numpy()\n"
        "return softmax(scores, axis)"
    ),
)


# Honest to the eye: the exercise itself names nothing that is forbidden, and another cell gives it what it names.

_WRONG = _softmax("return np.exp(scores)")
_LIB = "import torch\ndef lib(s, axis=-1):\n    return torch.softmax(torch.from_numpy(s), axis).numpy()\n"
_CALLS_HELPER = _softmax("return helper(scores, axis)")


def _unseen(name: str, tries: str, *cells: str) -> None:
    """Enter a form that no reading of the exercise finds."""
    _enter(name, tries, *cells, stopped=_ALONE, outcome=_WITHOUT)


_unseen(
    "runs text in another cell",
    "Another cell defines a helper with exec, and the exercise calls it.",
    _LIB + "exec('helper = lib')",
    _CALLS_HELPER,
)
_unseen(
    "asks the C library of Python to define it",
    "Another cell has the C library run text that puts a helper among the built-in names.",
    _LIB + "import ctypes\n"
    "text = 'import builtins, torch; builtins.helper = lambda s, a: torch.softmax(torch.from_numpy(s), a).numpy()'\n"
    "ctypes.pythonapi.PyRun_SimpleString(text.encode())",
    _CALLS_HELPER,
)
_unseen(
    "writes into the names of the shell",
    "Another cell writes into get_ipython().user_ns and globals().",
    _WRONG,
    _LIB + "get_ipython().user_ns['softmax'] = lib\nglobals()['softmax'] = lib",
)
_unseen(
    "rebinds the exercise from inside a function",
    "A function that comes before the exercise rebinds it when it is called, after the exercise.",
    _LIB + "def late():\n    global softmax\n    softmax = lib",
    _WRONG,
    "late()",
)
_unseen(
    "assigns it in a line magic",
    "Another cell binds the exercise's name under %time.",
    _WRONG,
    _LIB,
    "%time softmax = lib",
)
_unseen(
    "patches it by its name",
    "Another cell has unittest.mock replace the exercise in __main__.",
    _WRONG,
    _LIB + "from unittest import mock\nmock.patch('__main__.softmax', lib).start()",
)
_unseen(
    "reaches the loaded modules through another one",
    "Another cell finds sys.modules as os.sys.modules.",
    _WRONG,
    _LIB + "import os\nos.sys.modules['__main__'].softmax = lib",
)
_unseen(
    "hands the library to a function that hangs names",
    "A function hangs a helper on whatever it is given, as if on itself, and is given NumPy.",
    _LIB + "def hang(self):\n    self.helper = lib\nhang(np)",
    _softmax("return np.helper(scores, axis)"),
)
_unseen(
    "hangs it up through the type",
    "Another cell uses type(np).__setattr__ and np.__dict__.",
    _LIB + "type(np).__setattr__(np, 'helper', lib)\nnp.__dict__.update(helper=lib)",
    _softmax("return np.helper(scores, axis)"),
)
_unseen(
    "has a function fill a container",
    "A function puts what it is given on a shelf that the exercise reads.",
    _LIB + "SHELF = []\ndef put(thing):\n    SHELF.append(thing)",
    _softmax("return SHELF[0](scores, axis)"),
    "put(lib)",
)
_unseen(
    "keeps it in a default",
    "A helper keeps what it is given in a default value, and gives it to the exercise.",
    _LIB
    + "def tool(thing=None, box=[]):\n    if thing:\n        box.append(thing)\n    return box[0] if box else np.exp",
    _softmax("return tool()(scores, axis)"),
    "tool(lib)",
)
_unseen(
    "keeps it in a closure",
    "Two functions share a hidden box: a cell fills it, the exercise empties it.",
    _LIB + "def make():\n    box = []\n    return box.append, lambda: box[0]\nput, get = make()",
    _softmax("return get()(scores, axis)"),
    "put(lib)",
)
_unseen(
    "keeps what a helper was before",
    "A helper is defined with the library, kept under a second name, and defined anew, harmlessly.",
    _LIB + "def tool(s, axis):\n    return lib(s, axis)\nkept = tool",
    "def tool(s, axis):\n    return np.exp(s)",
    _softmax("return kept(scores, axis)"),
)
_enter(
    "binds it by matching",
    "A match statement binds the exercise's name.",
    _WRONG,
    _LIB + "match lib:\n    case softmax:\n        pass",
)
_enter(
    "writes another function's code into it",
    "Another cell gives the exercise the code object of a function that uses the library.",
    _WRONG,
    _LIB + "setattr(softmax, '__code__', lib.__code__)",
)
_enter(
    "hands getattr on",
    "Lets functools.reduce call getattr.",
    "import functools\n"
    + _softmax(f"return functools.reduce(getattr, ['special', 'softmax'], torch)({_T}, axis).numpy()"),
)
