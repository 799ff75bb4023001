"""Watch jobs: a table once, a table that is drawn again and again, or a line at each change."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from cluster.folder import JobFolder, jobs_below
from cluster.monitor.state import State, shortened
from cluster.monitor.table import console_for_output, counts, progress, table_of, word
from cluster.monitor.view import JobView, read_views
from cluster.queue import Queue, QueueState
from paltrain.cli import EXIT_INTERRUPTED
from paltrain.errors import ConfigError

REFRESH_S = 5.0  # Slurm's controller serves all users of a cluster
N_TO_BE_SURE = 2  # looks that must agree that all have ended: between two states none may be known


def show_list(root: Path) -> int:
    """Print the jobs below `root` once."""
    views, queue = read_views(_jobs_in(root))
    console = console_for_output()
    console.print(_picture(views, queue, console))
    return 0


def watch_list(root: Path, *, every_s: float = REFRESH_S) -> int:
    """Draw the jobs below `root` until Ctrl-C; once, where the output is no terminal."""
    if not console_for_output().is_terminal:
        return show_list(root)
    _jobs_in(root)
    try:
        _draw(lambda: _jobs_in(root), lambda views, queue: False, every_s=every_s)
    except KeyboardInterrupt:
        return 0
    return 0


def follow(folders: Sequence[JobFolder], *, every_s: float = REFRESH_S) -> int:
    """Show the jobs until all have ended; returns 0 if all succeeded, else 1.

    On a terminal a table, else a line whenever a job's state changes. Ctrl-C ends the watching and
    nothing else.
    """
    named = {folder.name: folder for folder in folders}
    jobs = named if len(named) == len(folders) else {str(f.path): f for f in folders}
    watch = _draw if console_for_output().is_terminal else _tell
    agreed = 0

    def has_ended(views: Sequence[JobView], queue: Queue) -> bool:
        nonlocal agreed
        ended = queue.is_there and all(view.state.has_ended for view in views)
        agreed = agreed + 1 if ended else 0
        return agreed >= N_TO_BE_SURE or (ended and _are_finished(views))

    try:
        views = watch(lambda: jobs, has_ended, every_s=every_s)
    except KeyboardInterrupt:
        print(
            "\nno longer watching; the jobs go on. Look again with tools/jobs.py list --watch or "
            "show RUN, end one with tools/jobs.py cancel RUN",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    return 0 if _are_finished(views) else 1


def change_line(view: JobView) -> str:
    """A job's state in one line: `base: running, 120/400`."""
    parts = [
        view.state.value + (f" ({shortened(view.detail)})" if view.detail else ""),
        progress(view),
    ]
    if view.tasks:
        parts += [f"tasks: {counts(view)}", f"merge {word(view.merge)}" if view.merge else ""]
    return f"{view.name}: {', '.join(part for part in parts if part)}"


def _draw(
    jobs: Callable[[], Mapping[str, JobFolder]],
    is_enough: Callable[[Sequence[JobView], Queue], bool],
    *,
    every_s: float,
) -> list[JobView]:
    past: dict[str, QueueState] = {}
    console = console_for_output()
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            views, queue = read_views(jobs(), past=past)
            live.update(_fitting(views, queue, console), refresh=True)
            if is_enough(views, queue):
                return views
            time.sleep(every_s)


def _tell(
    jobs: Callable[[], Mapping[str, JobFolder]],
    is_enough: Callable[[Sequence[JobView], Queue], bool],
    *,
    every_s: float,
) -> list[JobView]:
    past: dict[str, QueueState] = {}
    told: dict[str, object] = {}
    while True:
        views, queue = read_views(jobs(), past=past)
        for view in views:
            standing = (view.state, counts(view), view.merge and view.merge.state)
            if told.get(view.name) != standing:
                told[view.name] = standing
                print(f"{time.strftime('%H:%M:%S')} {change_line(view)}", flush=True)
        if is_enough(views, queue):
            return views
        time.sleep(every_s)


def _picture(
    views: Sequence[JobView],
    queue: Queue,
    console: Console,
    *,
    clock: bool = False,
    n_hidden: int = 0,
) -> Group:
    lines: list[Group | Text] = [table_of(views, width=_width(console))]
    if n_hidden:
        lines.append(Text(f"and {n_hidden} older that have ended: tools/jobs.py list", "dim"))
    if not queue.is_there:
        lines.append(Text("Slurm does not answer: states are those of the status files alone"))
    if clock:
        lines.append(Text(f"{time.strftime('%H:%M:%S')}, Ctrl-C ends the watching only", "dim"))
    return Group(*lines)


def _fitting(views: Sequence[JobView], queue: Queue, console: Console) -> Group:
    """The picture without the oldest jobs that have ended, as far as the terminal is too low."""
    shown = list(views)
    while True:
        picture = _picture(shown, queue, console, clock=True, n_hidden=len(views) - len(shown))
        excess = len(console.render_lines(picture)) - console.height + 1
        ended = [view for view in shown if view.state.has_ended]
        if excess <= 0 or not ended:
            return picture
        hidden = ended[: max(1, excess // 3)]
        shown = [view for view in shown if view not in hidden]


def _width(console: Console) -> int | None:
    return console.width if console.is_terminal else None


def _jobs_in(root: Path) -> dict[str, JobFolder]:
    jobs = jobs_below(root)
    if not jobs:
        there = "holds no job (no folder with launch.json)" if root.is_dir() else "does not exist"
        raise ConfigError(f"{root} {there}: start one with tools/launch.py, or say --root DIR")
    return dict(sorted(jobs.items(), key=lambda item: _asked_s(item[1])))


def _asked_s(folder: JobFolder) -> float:
    """When somebody last asked for the job, so that the latest stand nearest to the prompt."""
    path = folder.jobs if folder.jobs.exists() else folder.launch
    return path.stat().st_mtime


def _are_finished(views: Sequence[JobView]) -> bool:
    return all(view.state is State.finished for view in views)
