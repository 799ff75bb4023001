"""The report's charts, as inline SVG that follows the page's light or dark colours.

Every colour is drawn with a stand-in hex value and rewritten to one of the page's CSS variables,
text stays text, and ids carry the chart's name, since all charts share one document.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from paltrain.eval.records import EvalScores
from paltrain.report.collect import RunCurve
from paltrain.report.phases import PhaseTime

CSS_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--rule)",
    "#040404": "var(--lal)",
    "#050505": "var(--plits)",
    "#060606": "var(--text-run)",
    "#070707": "var(--paper)",
    "#080808": "var(--other)",
}
INK, MUTED, RULE, LAL, PLITS, TEXT_RUN, PAPER, OTHER = CSS_COLOURS
BY_ROUTE = {"lal": LAL, "plits": PLITS, "text": TEXT_RUN}
STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}


def loss_curves(runs: Sequence[RunCurve]) -> str:
    """Loss over steps; runs whose names differ only by their route share a panel."""
    panels: dict[str, list[RunCurve]] = {}
    for run in runs:
        panels.setdefault(stage_of(run), []).append(run)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.9), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (stage, of_stage) in zip(axes, panels.items(), strict=True):
            for run in of_stage:
                _draw_curve(axis, run)
            axis.set(title=stage, xlabel="optimizer step", ylim=(0, None))
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axis.legend(fontsize=9)
        axes[0].set_ylabel("loss (nats a token)")
        return to_svg(figure, name="loss", label="Training loss over optimizer steps")


def accuracy_by_task(evaluations: Sequence[EvalScores], *, baseline: dict[str, float]) -> str:
    """Rows are tasks; a dot with its interval for each model, hollow where it was deaf."""
    tasks = list(dict.fromkeys(task for e in evaluations for task in e.by_task))
    models = list(dict.fromkeys(e.model for e in evaluations))
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(9, 0.9 + 0.34 * len(tasks) * (len(models) + 1)), layout="constrained"
        )
        axis = figure.subplots()
        for e in evaluations:
            _draw_scores(axis, e, tasks, models)
        _draw_references(axis, evaluations, tasks, baseline)
        axis.set(
            yticks=range(len(tasks)), yticklabels=tasks, xlim=(-1, 101), xlabel="right answers"
        )
        axis.set_ylim(len(tasks) - 0.5, -0.5)
        axis.xaxis.set_major_formatter(PercentFormatter())
        axis.grid(visible=False, axis="y")
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        figure.legend(loc="outside upper left", ncols=6, fontsize=9, handletextpad=0.3)
        return to_svg(figure, name="accuracy", label="Accuracy by task")


def bars(values: dict[str, float], *, unit: str, name: str, label: str) -> str:
    """Horizontal bars with their values; a bar's colour is its route's, by its name."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 0.5 + 0.36 * len(values)), layout="constrained")
        axis = figure.subplots()
        colours = [BY_ROUTE.get(key.split()[0].lower(), OTHER) for key in values]
        drawn = axis.barh(list(values), list(values.values()), color=colours, height=0.62)
        axis.bar_label(drawn, [f"{value:.3g} {unit}" for value in values.values()], padding=4)
        axis.invert_yaxis()
        axis.margins(x=0.25)
        _only_labels(axis)
        return to_svg(figure, name=name, label=label)


def phase_bars(phases: Sequence[PhaseTime]) -> str:
    """Seconds by phase, in order."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.4 + 0.3 * len(phases)), layout="constrained")
        axis = figure.subplots()
        drawn = axis.barh(
            [phase.phase for phase in phases],
            [phase.seconds for phase in phases],
            color=OTHER,
            height=0.6,
        )
        axis.bar_label(drawn, [clock(phase.seconds) for phase in phases], padding=4)
        axis.invert_yaxis()
        axis.margins(x=0.1)
        _only_labels(axis)
        return to_svg(figure, name="phases", label="Seconds by phase")


def clock(seconds: float) -> str:
    """'48 s', '3 min 05 s'."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def stage_of(run: RunCurve) -> str:
    """A run's name without its route: 'lal_stage1' and 'plits_stage1' are both 'stage1'."""
    words = [word for word in re.split(r"[-_ ]", run.name) if word.lower() not in BY_ROUTE]
    return " ".join(words) or run.name


def smooth(values: Sequence[float], *, width: int) -> np.ndarray:
    """Centred running mean; shorter windows at the ends, so that nothing is padded."""
    padded = np.concatenate([[0.0], np.cumsum(values)])
    i = np.arange(len(values))
    low, high = np.maximum(0, i - width // 2), np.minimum(len(values), i + width // 2 + 1)
    means: np.ndarray = (padded[high] - padded[low]) / (high - low)
    return means


def to_svg(figure: Figure, *, name: str, label: str) -> str:
    """The figure as one `<svg>` element that scales to its container."""
    out = io.BytesIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(
            out, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = out.getvalue().decode()
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', _opening(label), svg, count=1)
    svg = re.sub(r"(font: [^']*?)'[^;\"]*", r"\1var(--font)", svg)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for stand_in, variable in CSS_COLOURS.items():
        svg = svg.replace(stand_in, variable)
    return svg


def _opening(label: str) -> str:
    return (
        r'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        rf'viewBox="\1" role="img" aria-label="{label}">'
    )


def _draw_curve(axis: Axes, run: RunCurve) -> None:
    colour = BY_ROUTE.get(run.route, OTHER)
    axis.plot(run.steps, run.loss, color=colour, alpha=0.2, linewidth=0.8)
    smoothed = smooth(run.loss, width=max(1, len(run.loss) // 25))
    axis.plot(run.steps, smoothed, color=colour, linewidth=1.6, label=run.name)


def _draw_scores(
    axis: Axes, evaluation: EvalScores, tasks: Sequence[str], models: Sequence[str]
) -> None:
    place = models.index(evaluation.model)
    colour = _model_colour(evaluation.model, place)
    offset = (place - (len(models) - 1) / 2) * 0.26
    rows = [(i, evaluation.by_task[t]) for i, t in enumerate(tasks) if t in evaluation.by_task]
    for i, score in rows:
        low, high = score.interval
        if not evaluation.shuffled:
            axis.plot([100 * low, 100 * high], [i + offset] * 2, color=colour, linewidth=1.4)
    axis.plot(
        [100 * score.accuracy for _, score in rows],
        [i + offset for i, _ in rows],
        linestyle="none",
        marker="o",
        markersize=6,
        color=colour,
        markerfacecolor=PAPER if evaluation.shuffled else colour,
        label=f"{evaluation.model}, deaf" if evaluation.shuffled else evaluation.model,
    )


def _draw_references(
    axis: Axes, evaluations: Sequence[EvalScores], tasks: Sequence[str], baseline: dict[str, float]
) -> None:
    chances = {t: s.chance.accuracy for e in evaluations for t, s in e.by_task.items()}
    for i, task in enumerate(tasks):
        label = "chance" if i == 0 else None
        axis.plot([100 * chances[task]] * 2, [i - 0.36, i + 0.36], color=MUTED, label=label)
    known = [(100 * baseline[task], i) for i, task in enumerate(tasks) if task in baseline]
    if known:
        x, y = zip(*known, strict=True)
        axis.plot(
            x, y, linestyle="none", marker="D", markersize=5, color=OTHER, label="average spectrum"
        )


def _model_colour(model: str, place: int) -> str:
    words = re.split(r"[-_ ]", model.lower())
    known = [BY_ROUTE[word] for word in words if word in BY_ROUTE]
    return known[0] if known else (LAL, PLITS, TEXT_RUN)[place % 3]


def _only_labels(axis: Axes) -> None:
    axis.xaxis.set_visible(False)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.tick_params(axis="y", length=0, labelcolor=INK)
