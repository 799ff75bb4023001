"""What state a job is in: Slurm's word and its own status file, together.

    Slurm says         the folder says                 state
    waiting            never started / started before  queued / requeued
    running            nothing since this start        starting
                       running, lately / not lately    running / silent
                       anything else                   ending
    ended, or nothing  finished, failed, stopped       the same
                       running, or nothing             cancelled or failed, as Slurm says; lost

A run on this machine has no Slurm job: its status file says all. Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from cluster.queue import QueueState
from paltrain.status import FAILED, FINISHED, RUNNING, STOPPED

SILENT_S = 300.0  # a heartbeat older than this, and than so many steps, is worth a word
SILENT_STEPS = 10
SHOWN_CHARACTERS = 200


class State(Enum):
    queued = "queued"
    requeued = "requeued"
    suspended = "suspended"
    starting = "starting"
    running = "running"
    silent = "silent"
    ending = "ending"
    finished = "finished"
    stopped = "stopped"
    failed = "failed"
    cancelled = "cancelled"
    lost = "lost"
    unknown = "unknown"  # Slurm was asked to run it, and does not answer here

    @property
    def waits(self) -> bool:
        return self in (State.queued, State.requeued, State.suspended)

    @property
    def works(self) -> bool:
        return self in (State.starting, State.running, State.silent, State.ending)

    @property
    def has_ended(self) -> bool:
        return not self.waits and not self.works and self is not State.unknown


WORDS_OF_SLURM = {
    "CONFIGURING": State.starting,
    "COMPLETING": State.ending,
    "SUSPENDED": State.suspended,
    "STOPPED": State.suspended,
    "REQUEUED": State.requeued,
    "CANCELLED": State.cancelled,
}


def state_here(status: Mapping[str, Any], *, now: float) -> tuple[State, str]:
    if not status:
        return State.unknown, "nothing has been said yet: it is starting, or ended without a word"
    if status["state"] != RUNNING:
        return State(status["state"]), first_line(status.get("error", ""))
    quiet = _quiet(status, now=now)
    return (State.silent, f"{quiet}: slow, hanging or gone") if quiet else (State.running, "")


def state_in_queue(
    slurm: QueueState, status: Mapping[str, Any], start: Mapping[str, Any] | None, *, now: float
) -> tuple[State, str]:
    if slurm.state == "PENDING":
        return (State.requeued if start else State.queued), slurm.reason
    if slurm.state != "RUNNING":
        return WORDS_OF_SLURM.get(slurm.state, State.ending), ""
    if not status:
        return State.starting, span(now - start["time"]) if start else ""
    if status["state"] != RUNNING:
        return State.ending, first_line(status.get("error", "")) or f"{status['state']}"
    quiet = _quiet(status, now=now)
    return (State.silent, f"{quiet}: slow or hanging") if quiet else (State.running, "")


def state_after(
    slurm: QueueState | None,
    submission: Mapping[str, Any],
    status: Mapping[str, Any],
    *,
    job: str,
    leaves_no_trace: bool,
    now: float,
) -> tuple[State, str]:
    """Of a job that has left the queue; slurm: its last word of it, if it still knows one.

    leaves_no_trace: Slurm knows other tasks of its array, and would know it had it ever started.
    """
    said = status.get("state")
    error = first_line(status.get("error", ""))
    cancelled = submission.get("cancelled")
    if said == FINISHED:
        return State.finished, ""
    if slurm and slurm.state == "CANCELLED":
        return State.cancelled, "" if cancelled else _why_cancelled(slurm)
    if cancelled and not (said == FAILED and status["time"] < cancelled):
        return State.cancelled, ""
    if said in (FAILED, STOPPED):
        return State(said), error
    if slurm is None and leaves_no_trace:
        return State.cancelled, "taken out of the queue before it started"
    if slurm and slurm.state != "COMPLETED":
        return State.failed, f"Slurm says {slurm.state}"
    word = f"Slurm says {slurm.state}" if slurm else f"Slurm no longer knows job {job}"
    if not status:
        return State.lost, f"{word}, and it has said nothing"
    return State.lost, f"{word}; it last said '{said}', {span(now - status['time'])} ago"


def state_unasked(status: Mapping[str, Any], *, now: float) -> tuple[State, str]:
    """Where Slurm does not answer."""
    if status and status["state"] != RUNNING:
        return State(status["state"]), first_line(status.get("error", ""))
    if status and not _quiet(status, now=now):
        return State.running, ""
    return State.unknown, "Slurm does not answer here" + (
        f"; {_quiet(status, now=now)}" if status else ""
    )


def first_line(text: object) -> str:
    """The first line that says something, without the word that the state says already."""
    line = next((line.strip() for line in str(text).splitlines() if line.strip()), "")
    return line.removeprefix("failed: ")


def shortened(text: str, most: int = SHOWN_CHARACTERS) -> str:
    """A text that stands among others; whole if it is not long."""
    return text if len(text) <= most else text[: most - 4].rstrip() + " ..."


def span(seconds: float) -> str:
    """5s, 3m, 2h05, 3d04h: short, for a table."""
    s = max(0, round(seconds))
    if s < 100:
        return f"{s}s"
    if s < 100 * 60:
        return f"{s // 60}m"
    if s < 48 * 3600:
        return f"{s // 3600}h{s % 3600 // 60:02}"
    return f"{s // 86400}d{s % 86400 // 3600:02}h"


def _why_cancelled(slurm: QueueState) -> str:
    is_chained = "Dependency" in slurm.reason
    return "the job before it did not succeed" if is_chained else ""


def _quiet(status: Mapping[str, Any], *, now: float) -> str:
    """How long nothing has been said, where that is long; else empty."""
    limit = max(SILENT_S, SILENT_STEPS * float(status.get("step_time_s") or 0.0))
    age = now - status["time"]
    return f"no word for {span(age)}" if age > limit else ""
