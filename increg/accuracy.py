"""Which outputs of a test net are accuracies."""

from __future__ import annotations

from collections.abc import Iterable


def accuracy_outputs(outputs: Iterable[str], chosen: str = "") -> list[str]:
    """The output `chosen` (accuracy_output), or those with "ccuracy" in their names, as the reference has it: of several the
    least is top-1, the largest top-5. None if there is no such output."""
    return [name for name in outputs if (name == chosen if chosen else "ccuracy" in name)]
