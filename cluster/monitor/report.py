"""One job, in full: what a person needs when something went wrong; its wandb runs."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.folder import JobFolder, Part, read_lines
from cluster.monitor.parts import PartView
from cluster.monitor.state import State, first_line, shortened, span
from cluster.monitor.table import counts, progress, word
from cluster.monitor.view import JobView, offline_runs, read_views
from paltrain.slices import number_ranges

LABEL_WIDTH = 12
MOST_TASKS = 10  # whose failures are shown in full
GPUS_ASKED = re.compile(r"^#SBATCH --(?:gpus-per-node=|gres=gpu:)(?:\w+:)?(\d+)", re.M)
NODES_ASKED = re.compile(r"^#SBATCH --nodes=(\d+)", re.M)


@dataclass(frozen=True)
class Attempt:
    """One start of a part, and its end, if it was noted. reached: at the end, else at the start."""

    job: str
    restart: int
    nodes: str
    started: float
    ended: float | None
    reached: int
    verdict: str


def print_report(folder: JobFolder, name: str) -> int:
    """Print all that is known of a job."""
    views, queue = read_views({name: folder})
    print("\n".join(report_lines(views[0])))
    if not queue.is_there and views[0].ids:
        print("Slurm does not answer: the state is that of the status files alone")
    return 0


def report_lines(view: JobView, *, now: float | None = None) -> Iterator[str]:
    """The report, line by line."""
    now = time.time() if now is None else now
    folder = view.folder
    yield f"{view.name} ({folder.path})"
    yield from _standing(view, now=now)
    yield from _origin(folder)
    yield from _attempts(view)
    yield from _failures(view)
    yield from _logs(view)
    if offline_runs(folder):
        yield line("wandb", f"kept for later; to send it: {shlex.join(sync_command(folder))}")


def line(label: str, text: str) -> str:
    return f"  {label:<{LABEL_WIDTH}}{text}".rstrip()


def attempts_of(part: Part) -> list[Attempt]:
    """Every start of a part, in order."""
    found: list[Attempt] = []
    for record in read_lines(part.attempts):
        if record["event"] == "start":
            found.append(
                Attempt(record["job"], record["restart"], record["nodes"], record["time"], None,
                        record["reached"], "")
            )  # fmt: skip
        elif record["event"] == "end" and found and found[-1].ended is None:
            last = found.pop()
            found.append(
                Attempt(last.job, last.restart, last.nodes, last.started, record["time"],
                        record["reached"], first_line(record["verdict"]))
            )  # fmt: skip
    return found


def gpu_hours(view: JobView, *, now: float) -> tuple[float, int]:
    """GPU-hours of all attempts, and how many could not be counted, since their end is unknown."""
    hours, n_open = 0.0, 0
    for part, standing in _parts(view):
        attempts = attempts_of(part)
        for attempt in attempts:
            ended = attempt.ended
            if ended is None and attempt is attempts[-1] and standing:
                is_on = standing.state.works and standing.job == attempt.job
                ended = now if is_on else standing.status.get("time")
            if ended is None or ended < attempt.started:
                n_open += 1
                continue
            gpus = _gpus_asked(view.folder.script(attempt.job.partition("_")[0]))
            hours += gpus * (ended - attempt.started) / 3600
    return hours, n_open


def sync_command(folder: JobFolder) -> list[str]:
    """wandb sends the parts of a resumed run in order of time, and leaves out what it has sent."""
    return [sys.executable, "-m", "wandb", "sync", *map(str, offline_runs(folder))]


def sync_wandb(folder: JobFolder, name: str, *, dry_run: bool) -> int:
    """Send what wandb has kept; returns wandb's exit code."""
    if not offline_runs(folder):
        print(f"{name}: nothing to send, {folder.path / 'wandb'} has no offline-run-*")
        return 0
    command = sync_command(folder)
    print(shlex.join(command), flush=True)
    return 0 if dry_run else subprocess.run(command, check=False).returncode


def _standing(view: JobView, *, now: float) -> Iterator[str]:
    beat = f"; heartbeat {span(view.beat_s)} ago" if view.beat_s is not None else ""
    detail = f": {shortened(view.detail)}" if view.detail else ""
    yield line("state", f"{view.state.value}{detail}{beat}")
    if view.tasks:
        yield line("tasks", counts(view))
        for state in State:
            if state is not State.finished and (numbers := view.tasks_in(state)):
                yield line("", f"{state.value}: {number_ranges(numbers)}")
        yield line("merge", word(view.merge) if view.merge else "never submitted")
    if view.done is not None:
        yield line("done", f"{progress(view)} {view.unit}s")
    if view.loss is not None:
        yield line("loss", f"{view.loss:.4g}")
    if view.questions_per_s and view.step_time_s:
        yield line(
            "speed", f"{view.questions_per_s:.4g} questions/s, {view.step_time_s:.3g} s/step"
        )
    if view.eta_s is not None:
        yield line("ETA", f"{span(view.eta_s)}, {_clock(now + view.eta_s)}")
    hours, n_open = gpu_hours(view, now=now)
    if hours or n_open:
        beyond = f", and {n_open} attempts whose end nobody noted" if n_open else ""
        yield line("GPU-hours", f"{hours:.2f} so far{beyond}")
    for part in view.parts[:1] if not view.tasks else ():
        if part.job:
            yield line("Slurm job", part.job + (f" on {part.nodes}" if part.nodes else ""))
    if view.tasks:
        yield line("Slurm jobs", ", ".join(view.ids))


def _origin(folder: JobFolder) -> Iterator[str]:
    launch = folder.read_launch()
    if not launch:
        return
    sizes = [
        f"{launch[key]} {unit}{'' if launch[key] == 1 else 's'}"
        for key, unit in (("nodes", "node"), ("world_size", "process"), ("array_tasks", "task"))
        if launch.get(key)
    ]
    sizes = [size.replace("processs", "processes") for size in sizes]
    limit = (
        [f"{launch['time_min']} min at most"]
        if launch.get("time_min") and folder.jobs.exists()
        else []
    )
    yield line("cluster", ", ".join([launch.get("cluster", "unknown"), *sizes, *limit]))
    frozen = f", frozen in {folder.code.name}/" if folder.code.exists() else ""
    yield line("code", f"{launch.get('code_version', 'unknown')}{frozen}")
    words = launch.get("arguments", [])
    yield line("command", shlex.join(["python", *words]))
    yield line("", f"in {launch.get('directory', 'an unknown place')}, {launch.get('time', '')}")


def _attempts(view: JobView) -> Iterator[str]:
    """Of a run and a merge each, of an array those of tasks that are in trouble."""
    bad = view.tasks_in(State.failed, State.lost, State.requeued, State.silent)[:MOST_TASKS]
    shown = [(f"task {n}", view.folder.task(n), view.tasks[n]) for n in bad]
    if view.whole:
        shown.append(("", view.folder.whole, view.whole))
    if view.merge:
        shown.append(("merge", view.folder.merge, view.merge))
    head = "attempts"
    for label, part, standing in shown:
        attempts = attempts_of(part)
        for number, attempt in enumerate(attempts, start=1):
            is_on = standing.state.works and number == len(attempts)
            yield line(head, _attempt_text(attempt, number, label, is_on=is_on))
            head = ""


def _attempt_text(attempt: Attempt, number: int, label: str, *, is_on: bool) -> str:
    who = f"{label}, " if label else ""
    took = f", {span(attempt.ended - attempt.started)}" if attempt.ended else ""
    verdict = shortened(attempt.verdict) or ("goes on" if is_on else "no end was noted")
    return (
        f"{who}{number}. {_clock(attempt.started)}{took}, job {attempt.job} on {attempt.nodes}, "
        f"reached {attempt.reached}: {verdict}"
    )


def _failures(view: JobView) -> Iterator[str]:
    shown = 0
    for label, part in _labelled(view):
        if not part.failure.exists() or shown == MOST_TASKS:
            continue
        shown += 1
        failure = json.loads(part.failure.read_text(encoding="utf-8"))
        where = f"rank {failure['rank']} on {failure['host']}, {_clock(failure['time'])}"
        yield line("failure", f"{label}, {where}" if label else where)
        yield from (f"    {text}" for text in _failure_text(failure))
    for number in view.tasks_in(State.failed)[:MOST_TASKS]:
        yield line("failure", f"task {number}: {view.tasks[number].detail}")
    if view.merge and view.merge.state is State.failed:
        error = str(view.merge.status.get("error", view.merge.detail))
        yield line("failure", "merge")
        yield from (f"    {text}" for text in error.splitlines())


def _failure_text(failure: Mapping[str, Any]) -> list[str]:
    lines = str(failure["traceback"] or failure["message"]).rstrip().splitlines()
    return [text for text in lines if text.strip(" ^~")]


def _logs(view: JobView) -> Iterator[str]:
    folder = view.folder
    places = [
        (folder.run.log, "what rank 0 said, in all attempts"),
        (folder.run.ranks, "rank-N.log: what each process said"),
        (folder.path / "tasks", "N/ranks/rank-0.log: what task N said"),
        (folder.merge.ranks, "rank-0.log: what the merge said"),
        (folder.slurm, "JOB.log: what the batch script said; JOB_submission.sh: the script"),
    ]
    head = "logs"
    for path, what in places:
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            relative = f"{path.relative_to(folder.path)}{'/' if path.is_dir() else ''}"
            yield line(head, f"{relative:<{LABEL_WIDTH}}{what}")
            head = ""


def _parts(view: JobView) -> list[tuple[Part, PartView | None]]:
    if not view.tasks:
        return [(view.folder.whole, view.whole)]
    tasks = [(view.folder.task(number), part) for number, part in view.tasks.items()]
    return [*tasks, (view.folder.merge, view.merge)]


def _labelled(view: JobView) -> list[tuple[str, Part]]:
    if not view.tasks:
        return [("", view.folder.whole)]
    tasks = [(f"task {number}", view.folder.task(number)) for number in view.tasks]
    return [*tasks, ("merge", view.folder.merge)]


def _gpus_asked(script: Path) -> int:
    """GPUs that a batch script asks for, on all its nodes."""
    text = script.read_text(encoding="utf-8") if script.exists() else ""
    gpus, nodes = GPUS_ASKED.search(text), NODES_ASKED.search(text)
    return int(gpus[1]) * (int(nodes[1]) if nodes else 1) if gpus else 0


def _clock(seconds: float) -> str:
    return time.strftime("%a %d %b %H:%M:%S", time.localtime(seconds))
