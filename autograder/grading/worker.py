"""What a process that judges does first, so that it judges on one core and does not look through its libraries again.

Nothing large may be imported above: a worker begins here, and numeric libraries read how many threads to use when they
are loaded.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from functools import cache

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def begin() -> None:
    """Make a fresh worker leave Ctrl-C to its parent, and end when that is killed: nobody else would end it.

    The arrays that suites compute on are small, and a second thread that waits for work is counted as work.
    """
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def settle(slug: str) -> None:
    """Get ready for a submission: what judging its chapter needs is loaded, and what the last one left is gone."""
    _load(slug)
    sweep()
    # What is left now, the libraries and what they loaded when first used, lives as long as the process. Going through
    # a million objects before each submission would take as long as many tests.
    gc.freeze()


def sweep() -> None:
    """Let go of arrays that hang in cycles, of an error and its frames: the thresholds would let gigabytes wait."""
    gc.collect()


@cache
def _load(slug: str) -> None:
    from autograder.answers import shelf
    from autograder.grading.suite import suite

    suite(slug)
    shelf(slug)
    gc.set_threshold(20_000, 20, 20)
