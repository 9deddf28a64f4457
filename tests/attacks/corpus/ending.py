"""Ending and surviving: exits, signals, daemons, threads."""

from corpus import MARK, RIGHT_MASK, WITNESS, WRONG_MASK, attack

_AGAIN = "A process that dies in a cell is replaced, without that cell; one that dies in a call fails that test."
_DIES = "The submission is process 1 of its own pid namespace: when it dies, all that it started dies with it."


@attack(
    tries="Ends the process with os._exit(0) in a cell, before anything is judged.",
    stopped=_AGAIN,
    wrong=None,
    full="causal_mask padding_mask",
)
def exits_in_a_cell():
    return RIGHT_MASK, "import os\nos._exit(0)", "import sys\nsys.exit(0)", "quit()", "raise KeyboardInterrupt", WITNESS


@attack(
    tries="Ends the process in every call of one exercise; the others are right.",
    stopped=_AGAIN,
    outcome="crashed",
    wrong="scaled_dot_product_attention softmax_with_temperature softmax_jacobian",
    full="causal_mask padding_mask effective_support",
    cpu=20,
)
def exits_in_every_call():
    from corpus import reference

    return (
        "import os\ndef scaled_dot_product_attention(*a, **k):\n    os._exit(0)\n"
        "softmax_with_temperature = softmax_jacobian = scaled_dot_product_attention",
        RIGHT_MASK,
        WITNESS,
        reference("effective_support"),
    )


@attack(
    tries="Exits from inside a call, by SystemExit, an atexit handler and the C library's own exit.",
    stopped=_AGAIN,
    wrong="causal_mask effective_support softmax_jacobian",
    outcome="crashed",
)
def leaves_through_the_front_door():
    return (
        """
import atexit, ctypes, os, sys
atexit.register(os._exit, 0)
def causal_mask(q_seq, kv_seq): sys.exit(0)
def effective_support(weights): ctypes.CDLL(None).exit(0)
def softmax_jacobian(probs): atexit._run_exitfuncs()
""",
        WITNESS,
    )


@attack(
    tries="Kills its parent, its process group, everything in reach, and the numbers next to its own.",
    stopped="A pid namespace: there is nobody else to send a signal to.",
)
def kills_whatever_it_can():
    return (
        """
import os, signal
for pid in (os.getppid(), 0, -1, *range(2, 60), *range(-60, -1)):
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            if pid not in (0, 1) or sign != signal.SIGKILL:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                os.kill(pid, sign)
        except OSError:
            pass
""",
        WRONG_MASK,
        WITNESS,
    )


@attack(
    tries="Stops itself with SIGSTOP, blocks and ignores all signals, and sets timers that interrupt the workbench.",
    stopped="Process 1 of a namespace cannot be stopped from inside; SIGKILL from outside is never ignored.",
    outcome=("failed", "crashed"),
    full="",
)
def plays_with_signals():
    return (
        """
import os, signal
def ring(number, frame): raise RuntimeError("interrupted")
def causal_mask(q_seq, kv_seq):
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGALRM})
    os.kill(os.getpid(), signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.003)
    return np.ones((q_seq, kv_seq), dtype=bool)
""",
    )


@attack(
    tries="Leaves a daemon behind (double fork, new session, signals ignored) that writes on after the grade.",
    stopped=_DIES,
)
def leaves_a_daemon_behind():
    return (
        f"""
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for sign in set(signal.Signals) - {{signal.SIGKILL, signal.SIGSTOP}}:
            signal.signal(sign, signal.SIG_IGN)
        while True:
            try:
                open("/tmp/{MARK}-daemon", "a").write("alive")
            except OSError:
                pass
            time.sleep(0.05)
    os._exit(0)
os.wait()
""",
        WRONG_MASK,
        WITNESS,
    )


@attack(
    tries="Forks from a thread, which then ends, and has the child answer for it after the cells have run.",
    stopped="What the cells left running is found whichever thread started it, and ended before the first call.",
    outcome=("failed", "crashed"),
)
def leaves_a_process_behind_in_a_thread():
    return (
        """
import os, threading, time
alive, beat = os.pipe()
def start():
    if os.fork() == 0:
        while True:
            os.write(beat, b"!")
            time.sleep(0.02)
    time.sleep(1e6)
threading.Thread(target=start, daemon=True).start()
os.read(alive, 1)
os.close(beat)
def causal_mask(q_seq, kv_seq):
    os.set_blocking(alive, False)
    time.sleep(0.2)
    while True:
        try:
            if not os.read(alive, 1 << 16):  # the other end is closed: the process is dead
                return np.ones((q_seq, kv_seq), dtype=bool)
            time.sleep(0.05)
        except BlockingIOError:
            return np.arange(kv_seq) <= (np.arange(q_seq) + kv_seq - q_seq)[:, None]
""",
        WITNESS,
    )


@attack(
    tries="Runs away from whoever kills what is left: each process forks the next one and ends.",
    stopped="A notebook whose processes cannot be ended loses the cell that started them.",
    outcome=("failed", "crashed"),
    cpu=12,
)
def runs_away_by_forking():
    return (
        WRONG_MASK,
        WITNESS,
        """
import os
if os.fork() == 0:
    while True:
        try:
            if os.fork():
                os._exit(0)
        except OSError:
            pass
""",
    )


@attack(
    tries="Threads that outlive their cell change the exercise's function while it is judged.",
    stopped="It is judged by what it returns; a value that is right some of the time fails some test.",
    outcome=("failed", "not_attempted", "crashed"),
    partial=True,
)
def changes_its_functions_while_it_is_judged():
    return (
        WITNESS,
        WRONG_MASK,
        """
import threading, time
def flicker(space):
    while True:
        space["causal_mask"] = lambda q, k: np.zeros((q, k), dtype=bool)
        time.sleep(0.001)
        space["causal_mask"] = lambda q, k: np.full((q, k), np.nan)
        time.sleep(0.001)
threading.Thread(target=flicker, args=(globals(),), daemon=True).start()
""",
    )


@attack(
    tries="Brings the interpreter down: a null pointer, a broken stack, an abort, an object written over.",
    stopped=_AGAIN,
    wrong="causal_mask effective_support softmax_jacobian softmax_vjp",
    outcome="crashed",
    cpu=20,
)
def brings_the_interpreter_down():
    return (
        """
import ctypes, os, sys
def causal_mask(q_seq, kv_seq): ctypes.string_at(0)
def effective_support(weights): os.abort()
def softmax_jacobian(probs): return ctypes.memset(id(probs), 255, 64) and probs.sum()
def softmax_vjp(probs, upstream):
    sys.setrecursionlimit(10**9)
    def down(n): return [*map(down, [n + 1])]
    down(0)
""",
        WITNESS,
    )
