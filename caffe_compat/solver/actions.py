"""SIGINT and SIGHUP during training: stop with a snapshot, or snapshot and go on, as Caffe's flags ask."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType

from ..errors import SolverError


class Action(Enum):
    """What a training loop is asked to do after the current iteration (SolverAction)."""

    NONE = "none"
    STOP = "stop"
    SNAPSHOT = "snapshot"


def parse_action(name: str, flag: str) -> Action:
    """The action called `stop`, `snapshot` or `none`."""
    try:
        return Action(name)
    except ValueError:
        raise SolverError(f'{flag} is "{name}", expected stop, snapshot or none') from None


class ActionQueue:
    """Requests waiting to be carried out; `request` may be called from a signal handler."""

    def __init__(self) -> None:
        self._waiting: list[Action] = []

    def request(self, action: Action) -> None:
        """Asks for `action`; Action.NONE asks for nothing."""
        if action is not Action.NONE:
            self._waiting.append(action)

    def take(self) -> Action:
        """The next request, or Action.NONE."""
        return self._waiting.pop(0) if self._waiting else Action.NONE


@contextmanager
def on_signals(queue: ActionQueue, on_interrupt: Action = Action.STOP, on_hangup: Action = Action.SNAPSHOT) -> Iterator[None]:
    """Turns SIGINT and SIGHUP into requests while the block runs; the handlers from before come back after it."""
    effects = {signal.SIGINT: on_interrupt}
    if hasattr(signal, "SIGHUP"):
        effects[signal.SIGHUP] = on_hangup

    def handle(number: int, frame: FrameType | None) -> None:
        queue.request(effects[signal.Signals(number)])

    previous = {number: signal.signal(number, handle) for number in effects}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
