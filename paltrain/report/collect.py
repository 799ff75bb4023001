"""Gathers what a report shows from the files that runs, evaluations and benchmarks leave behind.

    RUN/metrics.jsonl               a curve for each run
    RUN/eval/<split>[-shuffled]/    scores and answers; baseline.json beside them
    OUT/bench.json                  LAL's training step beside PLITS's
    OUT/phases.jsonl                seconds by phase

Whatever is absent becomes a sentence that says how to make it, never a zero.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paltrain.bench.record import MEMORY_RATIO, STEP_RATIO, BenchRow, read_rows
from paltrain.eval.records import BASELINE_FILE, SCORES_FILE, SHUFFLED_SUFFIX, EvalScores
from paltrain.report.phases import PhaseTime, read_phases

METRICS_FILE = "metrics.jsonl"
BENCH_FILE = "bench.json"
WARMUP_STEPS = 3  # of each run, left out of its median step time


@dataclass(frozen=True)
class RunCurve:
    """One run's training as recorded. Lists are by logged step; absent values are None."""

    name: str
    folder: Path
    route: str  # "text", "lal", "plits", "lal+plits"
    steps: list[int]
    loss: list[float]
    step_time_s: float | None
    peak_memory_gib: float | None


@dataclass
class ReportData:
    """All that a report shows. `missing`: by section, how to make what is not there."""

    runs: list[RunCurve] = field(default_factory=list)
    evaluations: list[EvalScores] = field(default_factory=list)
    eval_folders: list[Path] = field(default_factory=list)  # not the shuffled ones
    baseline: dict[str, float] = field(default_factory=dict)
    bench: list[BenchRow] = field(default_factory=list)
    machine: str | None = None
    phases: list[PhaseTime] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def bench_value(self, metric: str) -> float | None:
        return next((row.value for row in self.bench if row.metric == metric), None)


def find_runs(folder: Path) -> list[Path]:
    """Run folders under `folder`: those with metrics, oldest first (the order of training)."""
    found = [path.parent for path in folder.glob(f"**/{METRICS_FILE}")]
    return sorted(found, key=lambda run: ((run / METRICS_FILE).stat().st_mtime, run.name))


def collect(runs: Sequence[Path], *, bench: Path, phases: Path, split: str = "test") -> ReportData:
    """Everything that is there about `runs`, and a remedy for everything that is not."""
    data = ReportData(
        runs=[curve for run in runs if (curve := read_curve(run)) is not None],
        phases=read_phases(phases),
    )
    for run in runs:
        _add_evaluations(data, run, split)
    if bench.exists():
        data.bench, data.machine = read_rows(bench)
    data.missing = _missing(data, bench, phases)
    return data


def read_curve(run: Path) -> RunCurve | None:
    """A run's curve; None where it has logged no step yet."""
    path = run / METRICS_FILE
    records = list(_records(path)) if path.exists() else []
    steps = [record for record in records if record.get("loss") is not None]
    if not steps:
        return None
    return RunCurve(
        name=run.name,
        folder=run,
        route=_route(run),
        steps=[int(record["step"]) for record in steps],
        loss=[float(record["loss"]) for record in steps],
        step_time_s=_median(record.get("step_time_s") for record in steps[WARMUP_STEPS:]),
        peak_memory_gib=_largest(record.get("peak_memory_gib") for record in steps),
    )


def to_summary(data: ReportData) -> dict[str, Any]:
    """The report's figures as plain JSON; what was not measured is null.

    accuracy, chance, control_shuffled: by model, then by task, shares in 0..1. seconds: by phase.
    """
    heard = [e for e in data.evaluations if not e.shuffled]
    deaf = [e for e in data.evaluations if e.shuffled]
    return {
        "accuracy": _by_model(heard, "accuracy"),
        "interval_95": _by_model(heard, "interval"),
        "chance": {
            e.model: {task: round(s.chance.accuracy, 4) for task, s in e.by_task.items()}
            for e in heard
        },
        "control_shuffled": _by_model(deaf, "accuracy"),
        "average_spectrum_baseline": data.baseline or None,
        STEP_RATIO: data.bench_value(STEP_RATIO),
        MEMORY_RATIO: data.bench_value(MEMORY_RATIO),
        "seconds": {phase.phase: phase.seconds for phase in data.phases},
        "missing": data.missing,
    }


def _by_model(evaluations: Iterable[EvalScores], figure: str) -> dict[str, dict[str, Any]]:
    def rounded(value: Any) -> Any:
        return [round(v, 4) for v in value] if isinstance(value, tuple) else round(value, 4)

    return {
        e.model: {task: rounded(getattr(score, figure)) for task, score in e.by_task.items()}
        for e in evaluations
    }


def _add_evaluations(data: ReportData, run: Path, split: str) -> None:
    folder = run / "eval" / split
    if (folder / SCORES_FILE).exists():
        data.evaluations.append(EvalScores.load(folder))
        data.eval_folders.append(folder)
    shuffled = folder.with_name(split + SHUFFLED_SUFFIX)
    if (shuffled / SCORES_FILE).exists():
        data.evaluations.append(EvalScores.load(shuffled))
    if (folder / BASELINE_FILE).exists():
        data.baseline = json.loads((folder / BASELINE_FILE).read_text(encoding="utf-8"))["accuracy"]


def _missing(data: ReportData, bench: Path, phases: Path) -> dict[str, str]:
    heard = [e for e in data.evaluations if not e.shuffled]
    deaf = [e for e in data.evaluations if e.shuffled]
    remedies = {
        "curves": (data.runs, "train with `tools/launch.py CONFIG`"),
        "accuracy": (heard, "answer the test questions with `tools/evaluate.py CONFIG`"),
        "control": (deaf, "`tools/evaluate.py CONFIG --with-control` shuffles the recordings"),
        "baseline": (
            data.baseline,
            "`tools/evaluate.py CONFIG` fits it where there is a train split",
        ),
        "bench": (
            data.bench,
            f"`tools/bench.py step --json {bench}` measures both routes in one run",
        ),
        "phases": (data.phases, f"`tools/quickstart.py` writes {phases}"),
    }
    return {what: remedy for what, (there, remedy) in remedies.items() if not there}


def _route(run: Path) -> str:
    """The routes of a run's streams, from its saved configuration."""
    from omegaconf import OmegaConf

    config = run / "config.yaml"
    if not config.exists():
        return "unknown"
    streams = OmegaConf.select(OmegaConf.load(config), "model.streams") or {}
    routes = sorted({str(stream.get("route", "lal")) for stream in streams.values()})
    return "+".join(routes) or "text"


def _records(path: Path) -> Iterable[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def _median(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
