"""Every start and end of a job, and the rule that bounds restarts: by progress, not by count.

A job may be restarted as often as it likes, as long as each restart finds that something was done
since the one before: a step beyond the furthest ever reached, or a newer checkpoint. A run that
dies at step 40 again and again makes no progress, though it repeats steps 31 to 40 each time.
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


def saved(part: Part) -> int:
    """The step of a run's newest checkpoint; -1 where there is none."""
    latest = part.path / "checkpoints" / "latest"  # `paltrain.train.checkpoint`
    name = latest.read_text(encoding="utf-8").strip() if latest.exists() else ""
    return int(name.removeprefix("step-")) if name.startswith("step-") else -1


def unit_of(part: Part) -> str:
    """What its progress counts: a run's steps, or units of a slice."""
    return "units" if "done" in part.status.read() else "steps"


def note_start(part: Part, *, job_id: str, restart: int, nodes: str) -> None:
    """Record a start.

    restart: how often Slurm has restarted this job. nodes: those that run it, for people.

    Raises:
        ClusterError: the restart before this one brought nothing.
    """
    starts = _starts_since_asked(part, job_id)
    now, now_saved = reached(part.status.read()), saved(part)
    so_far = max((start["reached"] for start in starts), default=-1)
    saved_so_far = max((start.get("saved", -1) for start in starts), default=-1)
    add_line(
        part.attempts,
        {"event": "start", "time": time.time(), "job": job_id, "restart": restart,
         "reached": now, "saved": now_saved, "nodes": nodes},
    )  # fmt: skip
    if len(starts) > 1 and now <= so_far and now_saved <= saved_so_far:
        raise ClusterError(
            f"no progress between two restarts: {now} {unit_of(part)} are done, and {so_far} were "
            "at an earlier start, so the job stops; see why it ended (tools/jobs.py show, tail), "
            "then tools/jobs.py requeue"
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
    """How often Slurm has restarted the latest of its jobs."""
    starts = [line for line in read_lines(part.attempts) if line["event"] == "start"]
    return sum(line["job"] == starts[-1]["job"] for line in starts) - 1 if starts else 0


def _starts_since_asked(part: Part, job_id: str) -> list[dict[str, Any]]:
    """The earlier starts of this Slurm job since a person last asked for one."""
    starts: list[dict[str, Any]] = []
    for line in read_lines(part.attempts):
        if line["event"] == "asked":
            starts = []
        elif line["event"] == "start" and line["job"] == job_id:
            starts.append(line)
    return starts
