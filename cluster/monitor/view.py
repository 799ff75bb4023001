"""How a job stands: Slurm's word and the folder's status files, as plain values for people.

Everything here only reads.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from cluster.folder import JobFolder, read_lines
from cluster.monitor.parts import PartView, says_its_end, view_part
from cluster.monitor.state import State
from cluster.queue import Queue, QueueState

RECENT_STEPS = 20  # of which the median step gives speed and what is left
TAIL_BYTES = 32768


@dataclass(frozen=True)
class JobView:
    """How everything stands that a folder's launch asked for."""

    folder: JobFolder
    name: str
    state: State
    detail: str = ""
    ids: tuple[str, ...] = ()  # the Slurm jobs that are in the queue, else the latest ones
    done: int | None = None
    total: int | None = None
    is_total_whole: bool = True  # False while tasks have not said yet how much they will do
    loss: float | None = None
    questions_per_s: float | None = None
    step_time_s: float | None = None
    eta_s: float | None = None
    beat_s: float | None = None
    restarts: int = 0
    whole: PartView | None = None  # of a job without slices
    tasks: Mapping[int, PartView] = field(default_factory=dict)
    merge: PartView | None = None

    @property
    def parts(self) -> list[PartView]:
        return [part for part in (self.whole, *self.tasks.values(), self.merge) if part]

    @property
    def unit(self) -> str:
        return "step" if self.whole and "step" in self.whole.status else "unit"

    def tasks_in(self, *states: State) -> list[int]:
        """Numbers of an array's tasks in any of the states."""
        return [number for number, part in self.tasks.items() if part.state in states]


def read_views(
    folders: Mapping[str, JobFolder], *, past: dict[str, QueueState] | None = None
) -> tuple[list[JobView], Queue]:
    """How the folders stand now, and Slurm's queue as it was read for that.

    past: what is known of jobs that have left the queue, filled here; a caller that asks again and
    again keeps it, so that Slurm is asked about each of them once.
    """
    submitted = [folder for folder in folders.values() if folder.jobs.exists()]
    queue = Queue.read() if submitted else Queue()
    if past is not None:
        queue.states = past | queue.states
    queue.look_up(id_ for folder in submitted for id_ in _undecided(folder))
    if past is not None:
        past |= {id_: state for id_, state in queue.states.items() if not state.is_active}
    now = time.time()
    return [view(folder, queue, name=name, now=now) for name, folder in folders.items()], queue


def view(
    folder: JobFolder, queue: Queue, *, name: str | None = None, now: float | None = None
) -> JobView:
    """How one folder stands.

    queue: with what is known of jobs that have left it.
    """
    now = time.time() if now is None else now
    name, submissions = name or folder.name, list(read_lines(folder.jobs))
    merge = _latest(submissions, "merge")
    of_task = task_submissions(folder)
    if not of_task:
        whole = view_part(folder.whole, _latest(submissions, "run"), queue, now=now)
        return _view_of_whole(folder, name, whole)
    tasks = {
        task: view_part(folder.task(task), line, queue, task=task, now=now)
        for task, line in of_task.items()
    }
    merged = view_part(folder.merge, merge, queue, now=now) if merge else None
    return _view_of_array(folder, name, tasks, merged)


def task_submissions(folder: JobFolder) -> dict[int, dict[str, Any]]:
    """The latest submission of each task of an array; {} for a job that is none."""
    latest: dict[int, dict[str, Any]] = {}
    for line in read_lines(folder.jobs):
        if line["role"] == "array":
            chosen = line.get("tasks")
            if chosen is None:  # the whole array: what an earlier one of another size did is past
                latest = {}
            latest |= dict.fromkeys(range(line["n_tasks"]) if chosen is None else chosen, line)
    return dict(sorted(latest.items()))


def recent_metrics(folder: JobFolder, n: int = RECENT_STEPS) -> list[dict[str, Any]]:
    """The last records of a run's metrics, read from the file's end."""
    path = folder.run.metrics
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines(keepends=True)
    records = []
    for line in lines[-n - 1 :]:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue  # cut off at either end
    return records[-n:]


def _latest(lines: Sequence[dict[str, Any]], role: str) -> dict[str, Any] | None:
    return next((line for line in reversed(lines) if line["role"] == role), None)


def _view_of_whole(folder: JobFolder, name: str, whole: PartView) -> JobView:
    status = whole.status
    recent = recent_metrics(folder) if "step" in status else []
    times = [record["step_time_s"] for record in recent if record.get("step_time_s")]
    speeds = [record["questions_per_s"] for record in recent if record.get("questions_per_s")]
    step_time_s = median(times) if times else status.get("step_time_s")
    works = whole.state in (State.running, State.silent)
    eta_s = None
    if works and whole.total is not None and whole.done is not None:
        rate = 1 / step_time_s if step_time_s else whole.units_per_s
        eta_s = (whole.total - whole.done) / rate if rate else None
    return JobView(
        folder=folder,
        name=name,
        state=whole.state,
        detail=whole.detail,
        ids=(whole.job,) if whole.job else (),
        done=whole.done,
        total=whole.total,
        loss=status.get("loss", recent[-1].get("loss") if recent else None),
        questions_per_s=median(speeds) if speeds and works else None,
        step_time_s=step_time_s,
        eta_s=eta_s,
        beat_s=whole.beat_s,
        restarts=whole.restarts,
        whole=whole,
    )


def _view_of_array(
    folder: JobFolder, name: str, tasks: Mapping[int, PartView], merge: PartView | None
) -> JobView:
    parts = [*tasks.values(), *([merge] if merge else [])]
    state, detail = _state_of_array(tasks, merge)
    done = [part.done or 0 for part in tasks.values()]
    totals = [part.total for part in tasks.values()]
    rates = [part.units_per_s for part in tasks.values() if part.units_per_s]
    total, is_whole = sum(total or 0 for total in totals), None not in totals
    has_eta = is_whole and rates and state.works
    beats = [part.beat_s for part in parts if part.beat_s is not None]
    return JobView(
        folder=folder,
        name=name,
        state=state,
        detail=detail,
        ids=_ids(parts),
        done=sum(done),
        total=total,
        is_total_whole=is_whole,
        eta_s=(total - sum(done)) / sum(rates) if has_eta else None,
        beat_s=max(beats) if beats else None,
        restarts=sum(part.restarts for part in parts),
        tasks=tasks,
        merge=merge,
    )


def _ids(parts: Iterable[PartView]) -> tuple[str, ...]:
    """Slurm's ids without task numbers: of the jobs that are in the queue, else of all."""
    listed = list(parts)
    active = [part for part in listed if part.job and not part.state.has_ended]
    chosen = active or [part for part in listed if part.job]
    return tuple(dict.fromkeys(str(part.job).partition("_")[0] for part in chosen))


def _state_of_array(tasks: Mapping[int, PartView], merge: PartView | None) -> tuple[State, str]:
    """What an array and its merge come to."""
    if (
        merge
        and merge.state is State.finished
        and not any(not part.state.has_ended for part in tasks.values())
    ):
        return State.finished, ""
    found = {part.state for part in tasks.values()}
    for state in (State.running, State.silent, State.starting, State.ending):
        if state in found:
            return state, ""
    for state in (State.queued, State.requeued, State.suspended, State.unknown):
        if state in found:
            return state, _first_detail(tasks, state)
    if merge and not merge.state.has_ended:
        return merge.state, "merge" + (f": {merge.detail}" if merge.detail else "")
    for state in (State.failed, State.lost, State.cancelled, State.stopped):
        if state in found:
            return state, _first_detail(tasks, state)
    if merge:
        return merge.state, "merge" + (f": {merge.detail}" if merge.detail else "")
    return State.stopped, "all tasks are done, and no merge was submitted"


def _first_detail(tasks: Mapping[int, PartView], state: State) -> str:
    number, part = next(item for item in tasks.items() if item[1].state is state)
    return f"task {number}: {part.detail}" if part.detail and state.has_ended else part.detail


def _undecided(folder: JobFolder) -> list[str]:
    """Ids of the jobs whose end the folder itself does not tell, of tasks ARRAY_TASK."""
    submissions = list(read_lines(folder.jobs))
    found = [
        (str(line["id"]), part)
        for role, part in (("run", folder.whole), ("merge", folder.merge))
        if (line := _latest(submissions, role))
    ]
    found += [
        (f"{line['id']}_{task}", folder.task(task))
        for task, line in task_submissions(folder).items()
    ]
    return [job for job, part in found if not says_its_end(part, job)]


def offline_runs(folder: JobFolder) -> list[Path]:
    """What wandb has kept here to be sent later."""
    return sorted((folder.path / "wandb").glob("offline-run-*"))
