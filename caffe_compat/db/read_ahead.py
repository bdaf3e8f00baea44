"""`ReadAhead`: a background thread that makes what the caller will ask for next."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class ReadAhead(Generic[Item]):
    """Calls `produce` in a background thread and keeps up to `depth` of its results ready for `get`.

    The thread starts at the first `get` and sleeps until half of the results are gone, so that with small batches it
    wakes up rarely. It ends with `close`, with this object, or with an exception, which `get` raises in its caller's
    thread. `produce` must not refer to this object.
    """

    def __init__(self, produce: Callable[[], Item], depth: int) -> None:
        self._shelf: _Shelf[Item] = _Shelf(max(1, depth))
        self._thread = threading.Thread(target=_fill, args=(self._shelf, produce), daemon=True, name="read-ahead")
        # At exit the thread is joined, too: a daemon thread that is inside a library while Python goes down can crash.
        self._finalizer = weakref.finalize(self, _stop, self._shelf, self._thread)

    def get(self) -> Item:
        """The next result, in the order they were made; raises what `produce` raised when it made it."""
        if self._thread.ident is None:
            self._thread.start()
        return self._shelf.take()

    def close(self) -> None:
        """Ends the thread and drops the results that nobody asked for."""
        self._finalizer()


class _Shelf(Generic[Item]):
    """The results between the two threads."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.stopped = False
        self._items: deque[Item] = deque()
        self._error: BaseException | None = None
        self._refill = True
        # Re-entrant, because garbage collection may call `stop` in a thread that is inside one of these methods.
        self._changed = threading.Condition(threading.RLock())

    def take(self) -> Item:
        with self._changed:
            while not self._items:
                if self._error is not None:
                    raise self._error
                if self.stopped:
                    raise RuntimeError("this reader is closed")
                self._changed.wait()
            item = self._items.popleft()
            if not self._refill and len(self._items) <= self.depth // 2:
                self._refill = True
                self._changed.notify_all()
            return item

    def put(self, item: Item) -> None:
        with self._changed:
            self._items.append(item)
            if len(self._items) == 1:
                self._changed.notify_all()
            self._refill = len(self._items) < self.depth

    def fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def wait_for_room(self) -> bool:
        """Waits until results are wanted; False if none ever will be."""
        with self._changed:
            while not (self._refill or self.stopped):
                self._changed.wait()
            return not self.stopped

    def stop(self) -> None:
        with self._changed:
            self.stopped = True
            self._items.clear()
            self._changed.notify_all()


def _fill(shelf: _Shelf[Item], produce: Callable[[], Item]) -> None:
    try:
        while shelf.wait_for_room():
            shelf.put(produce())
    except BaseException as error:  # whatever it is, it belongs to the thread that waits for the results
        shelf.fail(error)


def _stop(shelf: _Shelf[Item], thread: threading.Thread) -> None:
    shelf.stop()
    if thread.ident is not None and thread is not threading.current_thread():
        thread.join()
