"""Being asked to stop: a signal sets a flag that the next step tells all ranks, so that they stop together."""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """True once this rank got SIGINT or SIGTERM. The second SIGINT is not caught and ends the process at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def __bool__(self) -> bool:
        return self.asked

    def restore(self) -> None:
        """Leave the signals as they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
