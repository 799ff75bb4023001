"""Jobs as a table: for a terminal of any width, and whole where the output goes into a file.

    RUN     JOB   STATE     STEP       LOSS  Q/S  ETA   BEAT  RESTARTS
    stage1  1042  running   1200/5000  1.93  812  2h05  4s    1
    feats   1043  running   310/480                 3m    2s    4
        tasks: 2 done, 2 running, 1 queued; merge queued (Dependency)

A name that is too long for the terminal stands on a line of its own; nothing is cut off. Columns
that no job fills are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from cluster.monitor.parts import PartView
from cluster.monitor.state import State, shortened, span
from cluster.monitor.view import JobView

HEADS = ("RUN", "JOB", "STATE", "STEP", "LOSS", "Q/S", "ETA", "BEAT", "RESTARTS")
GAP = 2
INDENT = "    "
COLOURS = {
    State.running: "green",
    State.finished: "bold green",
    State.starting: "cyan",
    State.ending: "cyan",
    State.silent: "bold yellow",
    State.failed: "bold red",
    State.lost: "bold red",
    State.cancelled: "yellow",
    State.stopped: "yellow",
}


def console_for_output() -> Console:
    """Without colours where the output is no terminal, and then without a width."""
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = 10_000
    return console


def table_of(views: Sequence[JobView], *, width: int | None) -> Group:
    """The jobs, one below the other. width: of the terminal, None where there is none."""
    is_narrow = width is not None and _needed([cells(view) for view in views]) > width
    rows = [cells(view, short=is_narrow) for view in views]
    keep = [i for i in range(len(HEADS)) if any(row[i] for row in rows)]
    heads = [HEADS[i] for i in keep]
    picked = [[row[i] for i in keep] for row in rows]
    widths = _widths([heads, *picked])
    if width is not None:  # names take what the others leave
        others = sum(widths[1:]) + GAP * (len(widths) - 1)
        widths[0] = min(widths[0], max(len(INDENT) - GAP, width - others))
    lines = [_line(heads, widths, style="bold")]
    for view, row in zip(views, picked, strict=True):
        lines += [_line(row, widths, state=view.state)]
        lines += [Text(INDENT + note, style="dim") for note in notes(view, short=is_narrow)]
    return Group(*(_folded(line, width) for line in lines))


def cells(view: JobView, *, short: bool = False) -> list[str]:
    """A job's row, by HEADS. short: without the reason beside the state."""
    return [
        view.name,
        ",".join(view.ids),
        view.state.value + (f" ({view.detail})" if _is_short(view) and not short else ""),
        progress(view),
        "" if view.loss is None else f"{view.loss:.4g}",
        "" if view.questions_per_s is None else f"{view.questions_per_s:.3g}"
        if view.questions_per_s < 1000 else f"{view.questions_per_s:.0f}",
        "" if view.eta_s is None else span(view.eta_s),
        "" if view.beat_s is None else span(view.beat_s),
        str(view.restarts) if view.restarts else "",
    ]  # fmt: skip


def notes(view: JobView, *, short: bool = False) -> list[str]:
    """What stands below a job's row: why it is as it is, and an array's tasks."""
    found = [shortened(view.detail)] if view.detail and (short or not _is_short(view)) else []
    if view.tasks:
        merge = f"; merge {word(view.merge)}" if view.merge else ""
        found.append(f"tasks: {counts(view)}{merge}")
    return found


def _is_short(view: JobView) -> bool:
    """Whether a word beside the state explains it: what a job waits for, how long it has begun."""
    return bool(view.detail) and (view.state.waits or view.state is State.starting)


def word(part: PartView) -> str:
    """A part's state with what explains it: `queued (Priority)`."""
    return part.state.value + (f" ({shortened(part.detail)})" if part.detail else "")


def counts(view: JobView) -> str:
    """`12 done, 3 running, 1 failed, 48 queued`: what waits comes last."""
    works = [state for state in State if state.works]
    ended = [state for state in State if state.has_ended and state is not State.finished]
    found = []
    for state in dict.fromkeys([State.finished, State.running, *works, *ended, *State]):
        if n := len(view.tasks_in(state)):
            found.append(f"{n} {'done' if state is State.finished else state.value}")
    return ", ".join(found)


def progress(view: JobView) -> str:
    """`1200/5000`; with a `+` where tasks have not said yet how much they will do."""
    if view.done is None:
        return ""
    if not view.total:
        return str(view.done) if view.done else ""
    return f"{view.done}/{view.total}{'' if view.is_total_whole else '+'}"


def _needed(rows: Sequence[Sequence[str]]) -> int:
    """The width of a table of these rows."""
    keep = [i for i in range(len(HEADS)) if any(row[i] for row in rows)]
    widths = _widths([HEADS, *rows])
    return sum(widths[i] + GAP for i in keep) - GAP


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _line(
    row: Sequence[str], widths: Sequence[int], *, style: str = "", state: State | None = None
) -> Text:
    """A row; a name that is too long for its column stands above the rest."""
    name, *rest = row
    text = Text(style=style)
    text.append(name, style="bold")
    text.append("\n" + " " * widths[0] if len(name) > widths[0] else " " * (widths[0] - len(name)))
    for cell, width in zip(rest, widths[1:], strict=True):
        is_state = state is not None and cell.partition(" ")[0] == state.value
        text.append(" " * GAP)
        text.append(cell.ljust(width), style=COLOURS.get(state, "") if is_state and state else "")
    text.rstrip()
    return text


def _folded(line: Text, width: int | None) -> Text | Table:
    """A line that is longer than the terminal goes on below, indented as it began."""
    n_blank = len(line.plain) - len(line.plain.lstrip(" "))
    if width is None or "\n" in line.plain or line.cell_len <= width or not n_blank:
        return line
    grid = Table.grid(padding=0)
    grid.add_column(width=n_blank)
    grid.add_column(overflow="fold")
    grid.add_row("", Text(line.plain.lstrip(), style=line.style))
    return grid
