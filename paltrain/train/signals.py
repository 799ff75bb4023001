"""Signals that ask a run to stop, as a flag that all ranks read at a step boundary.

The handler does nothing but set the flag: a rank inside a collective must not act alone. Slurm
sends SIGTERM (preemption) or SIGUSR2 (time limit, through submitit); a person presses Ctrl-C
(SIGINT).
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

EXIT_REQUEUE = 85  # saved, not finished: the batch script turns it into a requeue
EXIT_INTERRUPTED = 130  # saved, not finished: a person wanted it to stop

NOTHING, REQUEUE, INTERRUPT = 0, 1, 2
EXIT_CODE = {REQUEUE: EXIT_REQUEUE, INTERRUPT: EXIT_INTERRUPTED}
MEANING = {
    signal.SIGTERM: REQUEUE,
    signal.SIGUSR2: REQUEUE,
    signal.SIGINT: INTERRUPT,
}


def ignore_stops() -> None:
    """For a process that is about to end with its own exit code.

    When the first rank has ended, Slurm tells the others to stop; one that has saved and is on its
    way out must not die of that.
    """
    for number in MEANING:
        signal.signal(number, signal.SIG_IGN)


class StopFlag:
    """Catches the signals while entered; `wanted` is NOTHING, REQUEUE or INTERRUPT.

    It may be entered again inside, so that a process catches them from its start, before there is a
    step at whose end it could stop.
    """

    def __init__(self) -> None:
        self.wanted = NOTHING
        self._depth = 0
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopFlag:
        self._depth += 1
        if self._depth == 1:
            for number in MEANING:
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            for number, handler in self._old.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.wanted = max(self.wanted, MEANING[signal.Signals(number)])
