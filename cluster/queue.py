"""What Slurm says of jobs, asked once for all: `squeue`, then `sacct` or `scontrol` for the rest.

Works where `sacct` is absent, as on clusters without accounting: a job that has left the queue is
then known to `scontrol` for some minutes, and after that only by its folder.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

ACTIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "STOPPED")
SQUEUE_FORMAT = "%i|%T|%r|%N|%S"
LIMIT_S = 20.0  # a controller that answers later than this is taken for absent


@dataclass(frozen=True)
class QueueState:
    """A job's or an array task's state in Slurm's words. reason: why it waits."""

    id: str
    state: str
    reason: str = ""
    nodes: str = ""

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE

    @property
    def is_ending(self) -> bool:
        """Whether its processes end now, however they do."""
        return self.state == "COMPLETING"


@dataclass
class Queue:
    """The user's jobs, by id; tasks of arrays as `ARRAY_TASK`."""

    states: dict[str, QueueState] = field(default_factory=dict)
    is_there: bool = True  # whether Slurm answered

    @classmethod
    def read(cls) -> Queue:
        """All that are in the queue now; an empty queue where there is no Slurm."""
        text = _ask("squeue", "--me", "--array", "--all", "--noheader", "-o", SQUEUE_FORMAT)
        if text is None:
            return cls(is_there=False)
        rows = (line.split("|") for line in text.splitlines())
        states = [QueueState(row[0], row[1], _reason(row[2]), row[3]) for row in rows if row[3:]]
        return cls({state.id: state for state in states})

    def of(self, id_: str) -> list[QueueState]:
        """The states of a job, or of all tasks of an array that are known."""
        return [state for key, state in self.states.items() if key.partition("_")[0] == id_]

    def active_id(self, submission: Mapping[str, Any] | None) -> str | None:
        """The id of a submission (a line of jobs.jsonl) that is still in the queue."""
        if submission is None:
            return None
        id_ = str(submission["id"])
        return id_ if self.active(id_) else None

    def active(self, id_: str) -> list[QueueState]:
        """The states of a job, or of an array's tasks, that are still in the queue."""
        return [state for state in self.of(id_) if state.is_active]

    def look_up(self, ids: Iterable[str]) -> None:
        """Add what is known of jobs, or of tasks `ARRAY_TASK`, that have left the queue."""
        gone = [id_ for id_ in ids if id_ not in self.states and ("_" in id_ or not self.of(id_))]
        jobs = list(dict.fromkeys(id_.partition("_")[0] for id_ in gone))
        if not jobs or not self.is_there:
            return
        found = _from_sacct(jobs)
        for job in jobs:
            states = [s for s in found if s.id.partition("_")[0] == job] or _from_scontrol(job)
            ended = {state.id: state for state in states if not state.is_active}
            self.states = ended | self.states  # of what runs and waits, squeue has the last word


def _from_sacct(ids: list[str]) -> list[QueueState]:
    text = _ask("sacct", "-n", "-X", "-P", "-j", ",".join(ids), "-o", "JobID,State,NodeList")
    rows = (line.split("|") for line in (text or "").splitlines())
    return [QueueState(row[0], row[1].split()[0], "", row[2]) for row in rows if row[2:] and row[1]]


def _from_scontrol(id_: str) -> list[QueueState]:
    states = []
    for line in (_ask("scontrol", "-o", "show", "job", id_) or "").splitlines():
        fields = dict(re.findall(r"(\w+)=(\S*)", line))
        if "JobState" in fields:
            task = fields.get("ArrayTaskId")
            name = f"{fields['ArrayJobId']}_{task}" if task else fields["JobId"]
            states.append(
                QueueState(name, fields["JobState"], _reason(fields.get("Reason", "")),
                           fields.get("NodeList", ""))
            )  # fmt: skip
    return states


def _reason(text: str) -> str:
    return "" if text in ("None", "(null)") else text.strip("()")


def _ask(*command: str) -> str | None:
    """What a command of Slurm prints; None where it is missing, fails or does not answer."""
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, check=False, timeout=LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
