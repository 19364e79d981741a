"""Being told to stop: a signal is noted, and obeyed where the run can be taken up again."""

import signal
from types import FrameType


class Stopped(Exception):
    """The run was asked to stop (SIGTERM, SIGINT); its checkpoint is written.

    status: what a process ends with that was stopped so, 143 or 130: other than 0, so that no scheduler takes the work
        for done.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.status = 128 + number


class Signals:
    """While this context is open, SIGTERM and SIGINT are noted in `asked`; a second SIGINT interrupts at once.

    Outside the main thread nothing is changed: there signals are someone else's.
    """

    def __init__(self) -> None:
        self.asked = 0

    def __enter__(self) -> "Signals":
        try:
            self.before = {n: signal.signal(n, self._note) for n in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:
            self.before = {}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number
