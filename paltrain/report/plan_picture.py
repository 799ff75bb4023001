"""A picture of a run's data: how long its questions and clips are. Torch-free."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from paltrain.data.build import DataPlan
from paltrain.data.selection import AudioTokens

INK, MUTED, RULE = "#1d2125", "#646c75", "#dcdcd6"  # those of page.css
TEXT, COLOUR_OF_ROUTE = "#7a6bb5", {"lal": "#0b7a8c", "plits": "#d1610f"}
N_BINS = 40
PANELS_A_ROW = 3
STYLE: Any = {
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titlepad": 24,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


@dataclass(frozen=True)
class Panel:
    """A histogram of tokens, one value each of what `counted` names; without values, why."""

    title: str
    counted: str
    colour: str
    tokens: NDArray[np.integer] | str


def panels_of(
    plan: DataPlan,
    *,
    routes: Mapping[str, str],
    audio_tokens: Mapping[str, AudioTokens],
    no_text: str,
    no_stores: Mapping[str, str],
) -> list[Panel]:
    """Text and target tokens of an epoch's questions, audio tokens of its clips by stream.

    routes: by stream. no_text, no_stores: why tokens of text, or of a stream, are unknown.
    """
    asked = np.asarray(plan.planner.order.questions)
    text: NDArray[Any] | str = no_text
    target: NDArray[Any] | str = no_text
    if plan.lengths is not None:
        rows = plan.lengths.rows[asked]
        text, target = rows["trunk"] + rows["branch"], rows["target"]
    panels = [
        Panel("Text tokens per question", "questions", TEXT, text),
        Panel("Target tokens per question", "questions", TEXT, target),
    ]
    first = np.asarray(plan.corpus.first_question)
    clips = np.unique(np.searchsorted(first, asked, side="right") - 1)
    for name, route in routes.items():
        tokens: NDArray[Any] | str = no_stores.get(name, "")
        if name in plan.streams:
            frames = plan.streams[name].n_frames[clips].astype(np.int64)
            tokens = np.asarray(audio_tokens[name](frames[frames > 0]))
        title = f"Audio tokens per clip: {name}, by {route}"
        panels.append(Panel(title, "clips", COLOUR_OF_ROUTE.get(route, MUTED), tokens))
    return panels


def draw(panels: Sequence[Panel], path: Path, *, title: str, subtitle: str) -> None:
    """Write the picture; the file's ending says as what."""
    n_rows = -(-len(panels) // PANELS_A_ROW)
    n_columns = -(-len(panels) // n_rows)
    with mpl.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        figure = Figure(figsize=(4.8 * n_columns, 0.8 + 3.6 * n_rows), layout=layout)
        axes = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
        for axis, panel in zip(axes, panels, strict=False):
            _draw_panel(axis, panel)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        lines = [title, *textwrap.wrap(subtitle, width=50 * n_columns)]
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=13)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def _draw_panel(axis: Axes, panel: Panel) -> None:
    axis.set_title(panel.title)
    if isinstance(panel.tokens, str) or not len(panel.tokens):
        why = panel.tokens if isinstance(panel.tokens, str) else f"no {panel.counted}"
        axis.set_axis_off()
        axis.text(0, 1.02, textwrap.fill(f"unknown: {why}", 44), va="top", color=MUTED, fontsize=10)
        return
    low, high = int(panel.tokens.min()), int(panel.tokens.max())
    step = -(-(high - low + 1) // N_BINS)
    edges = [at - 0.5 for at in range(low, high + step + 1, step)]
    axis.hist(panel.tokens, edges, color=panel.colour)
    median, most = np.percentile(panel.tokens, [50, 95])
    told = f"median {median:,.0f}, 95 % up to {most:,.0f}, at most {high:,}"
    axis.annotate(told, (0, 1), (0, 7), "axes fraction", "offset points", color=MUTED, fontsize=10)
    axis.set(xlabel="tokens", ylabel=panel.counted)
    axis.grid(visible=False, axis="x")
    for direction in (axis.xaxis, axis.yaxis):
        direction.set_major_locator(MaxNLocator(6, integer=True))
        direction.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
