"""The end of a job's logs: what a rank said, and what the batch script said of its end."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import deque
from pathlib import Path
from typing import TextIO

from cluster.folder import JobFolder, Part
from cluster.monitor.parts import PartView
from cluster.monitor.report import attempts_of
from cluster.monitor.state import State
from cluster.monitor.table import word
from cluster.monitor.view import JobView, read_views
from paltrain.errors import ConfigError
from paltrain.slices import number_ranges

VERDICT_LINES = 12
VERDICT = re.compile(r"^job \S+ ")  # as `cluster.batch` begins its last word
POLL_S = 0.5
LOOK_S = 5.0  # between two questions whether a followed job has ended


def tail(
    folder: JobFolder,
    name: str,
    *,
    n_lines: int,
    rank: int,
    task: int | None = None,
    follows: bool = False,
) -> int:
    """Print the end of a rank's log and, of a job that is over, what the batch script said of it.

    task: of an array; None: one that failed, else one that works, else the merge.
    """
    views, _ = read_views({name: folder})
    label, part, standing = _chosen(views[0], task)
    log = _log_of(folder, part, rank)
    if log is None:
        print(f"{label}: no log of rank {rank} yet in {part.ranks}; it is {word(standing)}")
    else:
        print(f"==> {log} <==", flush=True)
        with log.open(encoding="utf-8", errors="replace") as file:
            sys.stdout.writelines(deque(file, maxlen=max(0, n_lines)))
            if follows:
                _follow(file, folder, name, task)
    if follows:
        views, _ = read_views({name: folder})
        label, part, standing = _chosen(views[0], task)
    print(f"==> {label}: {word(standing)}")
    _print_verdict(folder, part, standing, rank)
    return 0


def _chosen(view: JobView, task: int | None) -> tuple[str, Part, PartView]:
    """Which part's log a person wants to see."""
    folder = view.folder
    if view.whole:
        return view.name, folder.whole, view.whole
    if task is None:
        order = (State.failed, State.lost, State.silent, State.running, State.starting)
        merge_matters = view.merge and (view.merge.state.works or view.merge.state.has_ended)
        bad = [n for state in order[:2] for n in view.tasks_in(state)]
        task = next(iter(bad), None)
        if task is None and merge_matters and view.merge:
            return f"{view.name}, merge", folder.merge, view.merge
        if task is None:
            task = next((n for state in order for n in view.tasks_in(state)), min(view.tasks))
    if task not in view.tasks:
        raise ConfigError(
            f"--task {task}: {view.name} has the tasks {number_ranges(sorted(view.tasks))}"
        )
    return f"{view.name}, task {task}", folder.task(task), view.tasks[task]


def _log_of(folder: JobFolder, part: Part, rank: int) -> Path | None:
    """The latest log of a rank: here, rank 0 of a run writes none of its own."""
    paths = [part.ranks / f"rank-{rank}.log"]
    if rank == 0 and part == folder.whole:
        paths.append(folder.run.log)
    there = [path for path in paths if path.exists()]
    if not there and part.ranks.exists() and (others := sorted(part.ranks.glob("rank-*.log"))):
        numbers = sorted(int(path.stem.removeprefix("rank-")) for path in others)
        raise ConfigError(
            f"--rank {rank}: {part.ranks} has logs of the ranks {number_ranges(numbers)}"
        )
    return max(there, key=lambda path: path.stat().st_mtime, default=None)


def _follow(file: TextIO, folder: JobFolder, name: str, task: int | None) -> None:
    """Print what is added, until the job has ended; a file that was begun anew is read anew."""
    looked = time.monotonic()
    while True:
        if Path(file.name).stat().st_size < file.tell():
            file.seek(0)
        if text := file.read():
            print(text, end="", flush=True)
            continue
        if time.monotonic() - looked > LOOK_S:
            looked = time.monotonic()
            views, _ = read_views({name: folder})
            if _chosen(views[0], task)[2].state.has_ended:
                return
        time.sleep(POLL_S)


def _print_verdict(folder: JobFolder, part: Part, standing: PartView, rank: int) -> None:
    if part.failure.exists():
        failed = json.loads(part.failure.read_text(encoding="utf-8"))["rank"]
        if failed != rank:
            print(f"rank {failed} failed first: --rank {failed} shows its log")
    attempts = attempts_of(part)
    job = attempts[-1].job if attempts else standing.job
    log = folder.batch_log(job) if job else None
    if log and log.exists():
        print(f"==> {log} <==", *_last_words(log.read_text(errors="replace")), sep="\n")


def _last_words(log: str) -> list[str]:
    """The batch script's verdict on the latest attempt, and the log's last lines."""
    said = [text for text in log.splitlines() if text.strip(" ^~")]
    verdicts = [number for number, text in enumerate(said) if VERDICT.match(text)]
    latest = said[verdicts[-1] :] if verdicts else said
    if len(latest) <= VERDICT_LINES:
        return latest
    head = latest[:1] if verdicts else []
    return [*head, "...", *latest[-VERDICT_LINES:]]
