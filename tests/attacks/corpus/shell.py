"""Taking over the notebook's shell: transformers, hooks, magics."""

from corpus import MARK, RIGHT_MASK, WITNESS, WRONG_MASK, attack, raid

_ASIDE = "Once the cells have run, the shell is asked for nothing; the workbench calls the functions themselves."


@attack(
    tries="An input transformer turns every later cell into `pass`, hidden tests among them.",
    stopped="No hidden test is a cell; who rewrites later cells loses what they define.",
    wrong={"padding_mask": "not_attempted"},
    full="causal_mask",
)
def transforms_later_cells_away():
    return (
        RIGHT_MASK,
        "get_ipython().input_transformers_post.append(lambda lines: ['pass\\n'])",
        WITNESS,
    )


@attack(
    tries="An AST transformer turns comparisons, asserts and raises of later cells into nothing.",
    stopped=_ASIDE,
)
def transforms_the_syntax_tree():
    return (
        """
import ast
class Soften(ast.NodeTransformer):
    def visit_Assert(self, node): return ast.copy_location(ast.Pass(), node)
    def visit_Compare(self, node): return ast.copy_location(ast.Constant(True), node)
""",
        WITNESS,
        WRONG_MASK,
        "get_ipython().ast_transformers.append(Soften())",
        "assert 1 == 2",
    )


@attack(
    tries="Silences tracebacks and replaces display hook, exception hook, run_cell and all events of the shell.",
    stopped=_ASIDE,
)
def replaces_the_hooks_of_the_shell():
    return (
        """
import sys
ip = get_ipython()
ip.set_custom_exc((BaseException,), lambda *a, **k: None)
ip.showtraceback = ip._showtraceback = lambda *a, **k: None
for event in ("pre_execute", "pre_run_cell", "post_execute", "post_run_cell"):
    ip.events.register(event, lambda *a, **k: None)
sys.displayhook = sys.excepthook = ip.displayhook = lambda *a: None
""",
        WRONG_MASK,
        WITNESS,
        "get_ipython().run_cell = get_ipython().run_cell_async = lambda *a, **k: None",
        "raise ValueError",
    )


@attack(
    tries="Replaces the code of the child that runs cells and answers: serve, send, receive, describe.",
    stopped=_ASIDE + " What else it replaces can return values only.",
    outcome=("failed", "crashed"),
    full="",
)
def replaces_the_childs_own_code():
    return (
        """
import sys
child = sys.modules["autograder.sandbox.child"]
child._run_cell = lambda shell, index, source: None
child.receive = lambda *a: {"op": "seed", "seed": 1}
child.describe = lambda error: {"bases": [], "outcome": "passed"}
sys.modules["autograder.sandbox.protocol"].send.__defaults__ = (1, 2, 3)
""",
        WRONG_MASK,
    )


@attack(
    tries="Runs programs with !, %%bash, %sx, os.system, subprocess, posix_spawn and os.exec.",
    stopped="The system-call filter refuses to start any program.",
)
def runs_programs():
    return raid(
        f"""
import os, subprocess, sys
attempt("sx", lambda: get_ipython().run_line_magic("sx", "cat /etc/passwd"))
attempt("system", lambda: os.system("touch /tmp/{MARK}-program") == 0 and os.path.exists("/tmp/{MARK}-program"))
attempt("popen", lambda: subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True).stdout)
def replaced():
    child = os.fork()
    if child == 0:
        try:
            os.execv("/bin/sh", ["sh", "-c", "exit 0"])
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0
attempt("exec", replaced)
attempt("spawn", lambda: os.waitpid(os.posix_spawn(sys.executable, [sys.executable, "-V"], {{}}), 0)[1] == 0)
""",
        f"!touch /tmp/{MARK}-shell\n!!ls /\nfiles = !ls /root\nattempt('capture', lambda: files)",
        f"%%bash\ntouch /tmp/{MARK}-bash",
        "import os\nattempt('made', lambda: [name for name in os.listdir('/tmp') if 'red' in name])",
        count=7,
    )


@attack(
    tries="Defines the exercises' names in builtins and in the shell's hidden namespaces.",
    stopped="A name counts only if the notebook's own namespace holds it when the cells have run.",
    wrong={"causal_mask": "not_attempted"},
)
def defines_names_where_they_do_not_count():
    return (
        """
import builtins
builtins.causal_mask = lambda q, k: np.tri(q, k, dtype=bool)
get_ipython().user_global_ns.pop("causal_mask", None)
get_ipython().user_ns_hidden["causal_mask"] = builtins.causal_mask
""",
        WITNESS,
    )
