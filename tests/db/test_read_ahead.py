"""The background thread: order, errors, and its end."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable

import pytest

from caffe_compat.db.read_ahead import ReadAhead


@pytest.fixture
def threads() -> Callable[[], int]:
    """Counts the threads that the test has made; nets of other tests may still read."""
    before = set(threading.enumerate())
    return lambda: sum(thread.name == "read-ahead" for thread in set(threading.enumerate()) - before)


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_results_come_in_order_and_not_too_far_ahead(depth, threads):
    made = itertools.count()
    ahead = ReadAhead(lambda: next(made), depth)
    assert threads() == 0
    assert [ahead.get() for _ in range(50)] == list(range(50))
    time.sleep(0.05)
    assert next(made) <= 50 + depth
    ahead.close()
    assert threads() == 0
    with pytest.raises(RuntimeError, match="closed"):
        ahead.get()


def test_error_comes_after_the_results_before_it():
    made = iter([1, 2])
    ahead = ReadAhead(lambda: next(made), 5)
    assert [ahead.get(), ahead.get()] == [1, 2]
    for _ in range(2):
        with pytest.raises(StopIteration):
            ahead.get()
    ahead.close()


def test_thread_ends_when_nobody_refers_to_it(threads):
    ahead = ReadAhead(lambda: 1, 3)
    ahead.get()
    gone = weakref.ref(ahead)
    del ahead
    gc.collect()
    assert gone() is None and threads() == 0


def test_closing_before_the_first_result(threads):
    ReadAhead(lambda: 1, 3).close()
    assert threads() == 0


def test_interpreter_ends_while_the_thread_is_busy():
    code = ("import numpy as np, time; from caffe_compat.db.read_ahead import ReadAhead\n"
            "ahead = ReadAhead(lambda: np.ones(10**6).sum(), 10**6)\n"
            "ahead.get(); time.sleep(0.05); print('done')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
