"""How one process group stands: a run, a task of an array, a merge.

A status counts for a Slurm job only from that job's latest start on, by `attempts.jsonl`: both are
written by the job's own clock. A run on this machine has no Slurm job: its status file says all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.attempts import n_restarts, reached
from cluster.folder import Part, read_lines
from cluster.monitor.state import (
    State,
    first_line,
    state_after,
    state_here,
    state_in_queue,
    state_unasked,
)
from cluster.queue import Queue
from paltrain.status import FAILED, FINISHED


@dataclass(frozen=True)
class PartView:
    """How one process group stands: a run, a task of an array, a merge."""

    state: State
    detail: str = ""  # why, in one line
    job: str | None = None  # Slurm's id, of an array's task ARRAY_TASK
    nodes: str = ""
    status: Mapping[str, Any] = field(default_factory=dict)
    beat_s: float | None = None  # age of the last heartbeat, while it works
    units_per_s: float | None = None  # steps or units, since its start
    restarts: int = 0

    @property
    def done(self) -> int | None:
        return reached(self.status) if "step" in self.status or "done" in self.status else None

    @property
    def total(self) -> int | None:
        total = self.status.get("total_steps", self.status.get("total"))
        return None if total is None else int(total)


def view_part(
    part: Part,
    submission: Mapping[str, Any] | None,
    queue: Queue,
    *,
    task: int | None = None,
    now: float,
) -> PartView:
    """How one part stands. submission: the line of jobs.jsonl that asked for it; None: it runs
    here."""
    status = part.status.read()
    attempts = list(read_lines(part.attempts))
    if submission is None:
        state, detail = state_here(status, now=now)
        return _part_view(state, detail, status, attempts, part, now=now)
    job = str(submission["id"]) if task is None else f"{submission['id']}_{task}"
    start = _latest_start(attempts, job)
    fresh = status if start and status and status["time"] >= start["time"] else {}
    slurm = queue.states.get(job)
    if slurm and slurm.is_active:
        state, detail = state_in_queue(slurm, fresh, start, now=now)
    elif not queue.is_there:
        state, detail = state_unasked(fresh, now=now)
    else:
        leaves_no_trace = (
            start is None and task is not None and bool(queue.of(str(submission["id"])))
        )
        state, detail = state_after(
            slurm, submission, fresh, job=job, leaves_no_trace=leaves_no_trace, now=now
        )
        if detail == "" and state in (State.stopped, State.cancelled):
            detail = _verdict(attempts)
    nodes = (slurm.nodes if slurm else "") or (start["nodes"] if start else "")
    return _part_view(state, detail, status, attempts, part, now=now, job=job, nodes=nodes)


def says_its_end(part: Part, job: str) -> bool:
    """Whether the folder itself tells how a job ended, so that Slurm need not be asked."""
    status = part.status.read()
    start = _latest_start(list(read_lines(part.attempts)), job)
    return bool(
        start
        and status
        and status["time"] >= start["time"]
        and status["state"] in (FINISHED, FAILED)
    )


def _verdict(attempts: Sequence[Mapping[str, Any]]) -> str:
    """What was said of the latest start's end."""
    events = [line for line in attempts if line["event"] in ("start", "end")]
    if not events or events[-1]["event"] == "start":
        return ""
    return first_line(events[-1]["verdict"]).partition(": over")[0]


def _latest_start(attempts: Sequence[dict[str, Any]], job: str) -> dict[str, Any] | None:
    starts = [line for line in attempts if line["event"] == "start" and line["job"] == job]
    return starts[-1] if starts else None


def _part_view(
    state: State,
    detail: str,
    status: Mapping[str, Any],
    attempts: Sequence[Mapping[str, Any]],
    part: Part,
    *,
    now: float,
    job: str | None = None,
    nodes: str = "",
) -> PartView:
    has_beat = state in (State.running, State.silent) and status
    return PartView(
        state=state,
        detail=detail,
        job=job,
        nodes=nodes,
        status=status,
        beat_s=max(0.0, now - status["time"]) if has_beat else None,
        units_per_s=_rate(status, attempts) if has_beat else None,
        restarts=n_restarts(part),
    )


def _rate(status: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]]) -> float | None:
    """Steps or units a second since the latest start."""
    starts = [line for line in attempts if line["event"] == "start"]
    if not starts or status["time"] <= starts[-1]["time"]:
        return None
    rate = (reached(status) - starts[-1]["reached"]) / (status["time"] - starts[-1]["time"])
    return rate if rate > 0 else None
