"""Ends a process that hangs, after writing what each of its threads was doing."""

from __future__ import annotations

import faulthandler
from types import TracebackType

STDERR = 2


class Watchdog:
    """While entered, the process must call `step_done` within `timeout_s`, again and again.

    Otherwise every thread's stack goes to stderr and the process exits with code 1. On a lost peer
    all ranks hang alike, so every rank's log then says where. timeout_s: choose less than the
    collectives' own limit, which would only raise.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s

    def step_done(self) -> None:
        """The process gets on: wait another `timeout_s`."""
        faulthandler.dump_traceback_later(self.timeout_s, exit=True, file=STDERR)

    def __enter__(self) -> Watchdog:
        self.step_done()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
