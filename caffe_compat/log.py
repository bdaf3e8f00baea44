"""Log lines as glog writes them, so that parsers of Caffe's logs go on working.

    I1120 19:16:52.634130 16884 solver.py:45] Iteration 0, lr = 0.01
"""

from __future__ import annotations

import logging
import sys
from datetime import datetime
from typing import TextIO

_LETTERS = {logging.DEBUG: "I", logging.INFO: "I", logging.WARNING: "W", logging.ERROR: "E", logging.CRITICAL: "F"}


class GlogFormatter(logging.Formatter):
    """Severity letter, month and day, time, process number, source file and line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one glog line (a message of several lines keeps them)."""
        stamp = datetime.fromtimestamp(record.created).strftime("%m%d %H:%M:%S.%f")
        letter = _LETTERS.get(record.levelno, "I")
        return f"{letter}{stamp} {record.process} {record.filename}:{record.lineno}] {record.getMessage()}"


class StderrHandler(logging.StreamHandler):
    """Writes to whatever sys.stderr is at the time."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(GlogFormatter())

    @property
    def stream(self) -> TextIO:
        """Standard error, looked up for every line."""
        return sys.stderr


def show(level: int = logging.INFO) -> None:
    """Sends the package's log to standard error, as the command line does. Without it only warnings are shown."""
    root = logging.getLogger("caffe_compat")
    if not any(isinstance(handler, StderrHandler) for handler in root.handlers):
        root.addHandler(StderrHandler())
        root.propagate = False
    root.setLevel(level)
