"""What the trials have come to, read from their folders; what is not there is None, never made up.

    TRIAL/RUN/eval/<split>/scores.json              hearing
    TRIAL/RUN/eval/<split>-shuffled/scores.json     the deaf control
    FOLDER/forms.json                               step times, memory, parameters (a benchmark)

A run that has not finished has no results, whatever an earlier one left there; nor has a trial
whose folder holds those of other configurations (marks.py), nor one whose scores are torn.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paltrain.ablation.build import Plan, Trial, Variant
from paltrain.ablation.marks import is_of_another
from paltrain.bench.record import (
    FORM_MEMORY,
    FORM_PARAMETERS,
    FORM_TIME,
    FORM_TRAINED,
    BenchRow,
    read_rows,
)
from paltrain.errors import IncompleteError
from paltrain.eval.records import SCORES_FILE, EvalScores, evaluation_folder
from paltrain.log import get_logger

log = get_logger(__name__)

COSTS_FILE = "forms.json"


@dataclass(frozen=True)
class Share:
    """Shares of right answers (0..1) over seeds. n_answers: those of all seeds together. std: of
    the seeds (n - 1); None of one seed."""

    by_seed: Mapping[int, float]
    n_answers: int

    @property
    def mean(self) -> float:
        return statistics.fmean(self.by_seed.values())

    @property
    def std(self) -> float | None:
        values = list(self.by_seed.values())
        return statistics.stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Costs:
    """What a variant's last stage costs. Sizes in parameters, times in s, memory in MiB."""

    n_trained: int | None = None
    n_parameters: int | None = None
    step_time_s: float | None = None
    memory_mib: float | None = None  # peak beyond weights and gradients


@dataclass(frozen=True)
class Row:
    """A variant's results, by task."""

    variant: Variant
    n_trials: int
    heard: Mapping[str, Share]
    deaf: Mapping[str, Share]
    costs: Costs

    @property
    def mean(self) -> float | None:
        """Accuracy, the mean over the tasks."""
        return statistics.fmean(s.mean for s in self.heard.values()) if self.heard else None


@dataclass(frozen=True)
class Results:
    """All rows. chance: by task. machine: where steps were timed. commits: of the trials' code.
    expect: shares of right answers by task that every row is expected to reach."""

    rows: Sequence[Row]
    baseline_arm: str
    tasks: Sequence[str]
    chance: Mapping[str, float]
    n_questions: Mapping[str, int]
    missing: Sequence[str]  # trials without results
    commits: Sequence[str]
    machine: str | None
    remarks: Sequence[str] = ()
    cost_reference: str | None = None  # on what the steps were timed, in words
    expect: Mapping[str, float] = field(default_factory=dict)

    @property
    def are_there(self) -> bool:
        """Whether any trial has one."""
        return any(row.heard for row in self.rows)

    def baseline_of(self, row: Row) -> Row | None:
        """The row that a row is held against: the baseline arm's with the same values of the axes
        that both know, and for the baseline arm's own its first; None for that one."""
        known = row.variant.values
        rows = [each for each in self.rows if each.variant.arm == self.baseline_arm]
        if row in rows:
            return None if row is rows[0] else rows[0]
        fitting = [
            each
            for each in rows
            if all(known.get(axis, value) == value for axis, value in each.variant.values.items())
        ]
        return next(iter(fitting or rows), None)


def collect(plan: Plan, *, expect: Mapping[str, float] | None = None) -> Results:
    """The results of a plan's trials, as far as they are there. expect: see `Results`."""
    scores = {trial.name: _Scores.of(trial) for trial in plan.trials}
    there = [each.heard for each in scores.values() if each.heard]
    costs, machine, reference = read_costs(plan.folder / COSTS_FILE)
    tasks = list(dict.fromkeys(task for each in there for task in each.by_task))
    first = {task: next(s.by_task[task] for s in there if task in s.by_task) for task in tasks}
    rows = [
        _row(plan, variant, scores, tasks, costs.get(variant.name, Costs()))
        for variant in plan.variants
    ]
    return Results(
        rows=rows,
        baseline_arm=plan.baseline_arm,
        tasks=tasks,
        chance={task: score.chance.accuracy for task, score in first.items()},
        n_questions={task: score.n for task, score in first.items()},
        missing=[trial.name for trial in plan.trials if not scores[trial.name].is_whole],
        commits=sorted({t.last.code_version() for t in plan.trials if scores[t.name].heard}),
        machine=machine,
        remarks=plan.remarks,
        cost_reference=reference,
        expect=expect or {},
    )


def has_results(trial: Trial) -> bool:
    """Whether a trial has been trained and evaluated."""
    return _Scores.of(trial).is_whole


def has_some_results(trial: Trial) -> bool:
    """Whether there is a figure of a trial to show."""
    return _Scores.of(trial).heard is not None


@dataclass(frozen=True)
class _Scores:
    heard: EvalScores | None = None
    deaf: EvalScores | None = None
    with_control: bool = field(default=False)

    @classmethod
    def of(cls, trial: Trial) -> _Scores:
        control = trial.evaluation.shuffle_audio
        if not trial.last.is_finished or is_of_another(trial):
            return cls(with_control=control)
        heard, deaf = (_load(trial, shuffled=shuffled) for shuffled in (False, True))
        return cls(heard, deaf if control else None, control)

    @property
    def is_whole(self) -> bool:
        return self.heard is not None and (self.deaf is not None or not self.with_control)


def _load(trial: Trial, *, shuffled: bool) -> EvalScores | None:
    split = trial.evaluation.split
    folder = evaluation_folder(trial.last.path, split, shuffled=shuffled)
    if not (folder / SCORES_FILE).is_file():
        return None
    try:
        return EvalScores.load(folder)
    except IncompleteError as error:
        log.warning("%s", error)
        return None


def _row(
    plan: Plan,
    variant: Variant,
    scores: Mapping[str, _Scores],
    tasks: Sequence[str],
    costs: Costs,
) -> Row:
    trials = plan.trials_of(variant)
    heard = {trial.seed: scores[trial.name].heard for trial in trials}
    deaf = {trial.seed: scores[trial.name].deaf for trial in trials}
    return Row(variant, len(trials), _shares(heard, tasks), _shares(deaf, tasks), costs)


def _shares(by_seed: Mapping[int, EvalScores | None], tasks: Sequence[str]) -> dict[str, Share]:
    shares = {}
    for task in tasks:
        there = {
            seed: scores.by_task[task]
            for seed, scores in by_seed.items()
            if scores is not None and task in scores.by_task
        }
        if there:
            accuracy = {seed: score.accuracy for seed, score in there.items()}
            shares[task] = Share(accuracy, sum(score.n for score in there.values()))
    return shares


# ---- costs: what `tools/bench.py forms` writes -------------------------------------------------


def read_costs(path: Path) -> tuple[dict[str, Costs], str | None, str | None]:
    """By variant, and the machine and the workload; nothing where there was no benchmark."""
    if not path.is_file():
        return {}, None, None
    rows, machine = read_rows(path)
    figures: dict[str, dict[str, float]] = {}
    for row in rows:
        what, _, variant = row.metric.partition(".")
        figures.setdefault(variant, {})[what] = row.value
    costs = {variant: _costs(each) for variant, each in figures.items()}
    return costs, machine, _reference(rows)


def _costs(figures: Mapping[str, float]) -> Costs:
    def whole(name: str) -> int | None:
        return int(figures[name]) if name in figures else None

    return Costs(
        whole(FORM_TRAINED),
        whole(FORM_PARAMETERS),
        figures.get(FORM_TIME),
        figures.get(FORM_MEMORY),
    )


def _reference(rows: Sequence[BenchRow]) -> str | None:
    return next((row.reference for row in rows if row.metric.startswith(FORM_TIME)), None)


def first_accuracy(trial: Trial) -> str:
    """`which_sound 93.1 %, ` of the evaluation's first task; nothing where there is no result."""
    heard = _Scores.of(trial).heard
    for task, score in heard.by_task.items() if heard else ():
        return f"{task} {100 * score.accuracy:.1f} %, "
    return ""
