"""Every start and end of a job, and the rule that bounds restarts: by progress, not by count.

A job may be restarted as often as it likes, as long as each restart finds that something was done
since the one before. Steps are counted by the furthest ever reached: a run that dies at step 40
again and again makes no progress, though it repeats steps 31 to 40 from its checkpoint each time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from cluster.folder import JobFolder, Part, add_line, read_lines
from paltrain.errors import ClusterError


def reached(status: Mapping[str, Any]) -> int:
    """How far a process has come: optimizer steps, or units of an array task's slice."""
    return int(status.get("step", status.get("done", 0)))


def note_start(part: Part, *, job_id: str, restart: int, nodes: str) -> None:
    """Record a start.

    restart: how often Slurm has restarted this job. nodes: those that run it, for people.

    Raises:
        ClusterError: the restart before this one brought nothing.
    """
    starts = _starts_since_asked(part, job_id)
    now = reached(part.status.read())
    so_far = max((start["reached"] for start in starts), default=-1)
    add_line(
        part.attempts,
        {"event": "start", "time": time.time(), "job": job_id, "restart": restart,
         "reached": now, "nodes": nodes},
    )  # fmt: skip
    if len(starts) > 1 and now <= so_far:
        raise ClusterError(
            f"no progress between two restarts: {now} steps or units were done at this start and "
            f"at the one before, so the job stops; look at {part.path / 'ranks'} and the logs "
            "beside it, then start it again with tools/launch.py or tools/jobs.py requeue"
        )


def note_end(part: Part, *, exit_code: int, verdict: str) -> None:
    """Record an end and what becomes of the job."""
    add_line(
        part.attempts,
        {"event": "end", "time": time.time(), "exit_code": exit_code, "verdict": verdict,
         "reached": reached(part.status.read())},
    )  # fmt: skip


def note_asked(part: Part) -> None:
    """Record that a person asked for the next start, so earlier ones do not count against it."""
    add_line(part.attempts, {"event": "asked", "time": time.time()})


def note_submission(folder: JobFolder, submission: Mapping[str, Any]) -> None:
    """Keep a line of jobs.jsonl, and that a person asked for what it starts.

    submission: `id`, `role`, `after`, `n_tasks` of the whole array, `time_min`, `name`; `tasks`
    where only these of the array go again.
    """
    add_line(folder.jobs, {**submission, "time": time.time()})
    if submission["n_tasks"] is None:
        note_asked(folder.merge if submission["role"] == "merge" else folder.whole)
        return
    tasks = submission.get("tasks")
    for task in range(submission["n_tasks"]) if tasks is None else tasks:
        folder.task(task).ranks.mkdir(parents=True, exist_ok=True)
        note_asked(folder.task(task))


def n_restarts(part: Part) -> int:
    """Starts after the first."""
    n_starts = len([line for line in read_lines(part.attempts) if line["event"] == "start"])
    return max(0, n_starts - 1)


def _starts_since_asked(part: Part, job_id: str) -> list[dict[str, Any]]:
    """The earlier starts of this Slurm job since a person last asked for one."""
    starts: list[dict[str, Any]] = []
    for line in read_lines(part.attempts):
        if line["event"] == "asked":
            starts = []
        elif line["event"] == "start" and line["job"] == job_id:
            starts.append(line)
    return starts
