"""The table of an evaluation: tasks down, models with their controls, baseline and chance across.

    task          questions   lal_stage2         lal_stage2, deaf   average spectrum   chance
    which_sound   600         93.1 (90.8-94.9)   11.0 (8.7-13.8)    61.2               10.4

Figures are percent; the brackets hold the 95 % Wilson interval. What is not there reads as a dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from paltrain.eval.records import EvalScores
from paltrain.eval.tasks import TaskScore
from paltrain.markdown import ABSENT, markdown_table

LOG_WIDTH = 140


@dataclass(frozen=True)
class ScoreTable:
    """Cells as text: `header` of m + 1 names, `rows` of m + 1 cells, the first being the task."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_markdown(self) -> str:
        return markdown_table(self.header, self.rows, of_figures=True)

    def print(self, console: Console | None = None, *, title: str | None = None) -> None:
        table = Table(title=title, title_justify="left", header_style="bold")
        for i, name in enumerate(self.header):
            table.add_column(name, justify="right" if i else "left", no_wrap=not i)
        for row in self.rows:
            table.add_row(*row)
        if console is None:
            console = Console()
            if not console.is_terminal:  # a log file has no width of its own
                console = Console(width=LOG_WIDTH)
        console.print(table)


def percent(share: float | None) -> str:
    return ABSENT if share is None else f"{100 * share:.1f}"


def with_interval(score: TaskScore | None) -> str:
    """'93.1 (90.6-95.0)', a dash where there is no score."""
    if score is None:
        return ABSENT
    low, high = score.interval
    return f"{percent(score.accuracy)} ({percent(low)}-{percent(high)})"


def build_table(
    evaluations: Sequence[EvalScores], *, baseline: Mapping[str, float] | None = None
) -> ScoreTable:
    """The table of some evaluations: each model's column followed by its deaf control's.

    baseline: accuracy by task of the average-spectrum classifier.
    """
    tasks = list(dict.fromkeys(task for e in evaluations for task in e.by_task))
    columns = {_name(e): e for e in sorted(evaluations, key=lambda e: _place(e, evaluations))}
    extra = ["average spectrum"] if baseline else []
    rows = []
    for task in tasks:
        scores = [e.by_task.get(task) for e in columns.values()]
        first = next(score for score in scores if score is not None)
        cells = [task, str(first.n), *map(with_interval, scores)]
        cells += [percent(baseline.get(task))] if baseline else []
        rows.append((*cells, percent(first.chance.accuracy)))
    return ScoreTable(("task", "questions", *columns, *extra, "chance"), tuple(rows))


def strays(evaluations: Sequence[EvalScores]) -> list[str]:
    """A sentence for each model and task whose answers were not among the options, if any."""
    return [
        f"{_name(e)}, {task}: {percent(score.not_among_options)} % of answers not among the options"
        for e in evaluations
        for task, score in e.by_task.items()
        if score.not_among_options
    ]


def _name(evaluation: EvalScores) -> str:
    return f"{evaluation.model}, deaf" if evaluation.shuffled else evaluation.model


def _place(evaluation: EvalScores, among: Sequence[EvalScores]) -> tuple[int, bool]:
    models = [e.model for e in among]
    return models.index(evaluation.model), evaluation.shuffled
