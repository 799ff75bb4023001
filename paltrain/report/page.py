"""Turns what was gathered into one self-contained HTML page: no script, no request to anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from paltrain.bench.record import MEMORY_RATIO, STEP_RATIO
from paltrain.eval.table import ScoreTable, build_table, percent, strays
from paltrain.report import charts
from paltrain.report.clips import PlayableClip
from paltrain.report.collect import ReportData

TEMPLATE_FOLDER = Path(__file__).parent
TEMPLATE = "page.html.jinja"


def render_page(data: ReportData, clips: Sequence[PlayableClip], *, title: str) -> str:
    """The whole page as text."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "clock": charts.clock}
    return environment.get_template(TEMPLATE).render(
        title=title,
        data=data,
        missing=data.missing,
        clips=clips,
        table=_table(data),
        strays=strays([e for e in data.evaluations if not e.shuffled]),
        headline=_headline(data),
        charts={name: Markup(svg) for name, svg in _charts(data).items()},
        total_seconds=sum(phase.seconds for phase in data.phases),
        f1=_token_f1(data),
    )


def _charts(data: ReportData) -> Mapping[str, str]:
    drawn: dict[str, str] = {}
    if data.runs:
        drawn["loss"] = charts.loss_curves(data.runs)
    if data.evaluations:
        drawn["accuracy"] = charts.accuracy_by_task(data.evaluations, baseline=data.baseline)
    if data.phases:
        drawn["phases"] = charts.phase_bars(data.phases)
    for name, prefix, unit, scale in [
        ("step_time", "step_time.", "ms", 1e3),
        ("peak_memory", "peak_memory.", "MiB", 1.0),
    ]:
        values = {
            _arm(row.metric.removeprefix(prefix)): row.value * scale
            for row in data.bench
            if row.metric.startswith(prefix) and "@" not in row.metric
        }
        if values:
            label = name.replace("_", " ").capitalize()
            drawn[name] = charts.bars(values, unit=unit, name=name, label=label)
    return drawn


def _arm(name: str) -> str:
    """'plits_plain' as 'PLITS plain'."""
    route, *rest = name.split("_")
    return " ".join([route.upper(), *rest])


def _table(data: ReportData) -> ScoreTable | None:
    if not data.evaluations:
        return None
    return build_table(data.evaluations, baseline=data.baseline or None)


def _headline(data: ReportData) -> list[dict[str, Any]]:
    """The few figures that open the page; a figure that was not measured is left out."""
    speed, memory = data.bench_value(STEP_RATIO), data.bench_value(MEMORY_RATIO)
    tiles = []
    for e in data.evaluations:
        if not e.shuffled and e.by_task:
            n_correct = sum(score.n_correct for score in e.by_task.values())
            tiles.append(
                {
                    "figure": f"{percent(n_correct / e.n_questions)} %",
                    "what": f"of {e.n_questions} test questions answered right by {e.model}",
                }
            )
    if speed is not None:
        tiles.append(
            {"figure": f"{speed:.1f}x", "what": "as fast: a LAL training step beside PLITS's"}
        )
    if memory is not None:
        tiles.append(
            {
                "figure": f"{percent(1 - memory)} %",
                "what": "less peak memory beyond weights and gradients in a LAL step",
            }
        )
    return tiles


def _token_f1(data: ReportData) -> list[str]:
    return [
        f"{e.model}, {task}: {percent(score.token_f1)} % token F1"
        for e in data.evaluations
        for task, score in e.by_task.items()
        if score.token_f1 is not None and not e.shuffled
    ]
