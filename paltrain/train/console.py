"""What a person sees of a run: a live bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

WINDOW_STEPS = 20  # speeds and ETA are means over so many steps


class TrainingConsole:
    """Shows step, loss, speeds and time left. Rank 0 uses it; `quiet` shows nothing.

    every_steps: how often a line appears where the output is no terminal.
    """

    def __init__(
        self, *, name: str, total_steps: int, every_steps: int, quiet: bool = False
    ) -> None:
        self._name, self._total, self._every = name, total_steps, max(every_steps, 1)
        self._quiet = quiet
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=WINDOW_STEPS)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_line_at = 0.0

    def __enter__(self) -> TrainingConsole:
        if not self._quiet and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[text]}"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._total, text="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, record: Mapping[str, Any]) -> None:
        """Take in a step's record (the keys of `metrics.jsonl`)."""
        if self._quiet:
            return
        self._recent.append(record)
        step = record["step"]
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, text=self._text())
        elif step % self._every == 0 or step in (1, self._total):
            print(
                f"{time.strftime('%H:%M:%S')} {self._name} {self._text()}",
                file=sys.stderr,
                flush=True,
            )

    def _text(self) -> str:
        last = self._recent[-1]
        loss = _mean(self._recent, "loss")
        left_s = (self._total - last["step"]) * _mean(self._recent, "step_time_s")
        return (
            f"step {last['step']}/{self._total} · loss {loss:.3f} · lr {last['lr']:.1e} · "
            f"{_short(_mean(self._recent, 'questions_per_s'))} questions/s · "
            f"{_short(_mean(self._recent, 'text_tokens_per_s'))} text + "
            f"{_short(_mean(self._recent, 'audio_tokens_per_s'))} audio tokens/s · "
            f"ETA {duration(left_s)}"
        )


def duration(seconds: float) -> str:
    """
    >>> duration(75), duration(4000), duration(200000)
    ('1:15', '1:06:40', '2d 7:33:20')
    """
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    clock = f"{h}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
    return f"{days}d {clock}" if days else clock


def _mean(records: deque[Mapping[str, Any]], key: str) -> float:
    values = [record[key] for record in records if record[key] is not None]
    return sum(values) / len(values) if values else 0.0


def _short(number: float) -> str:
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{unit}"
    return f"{number:.0f}"
