"""A picture of a run's data: how long its questions and clips are, and what each part of a mixture
is of an epoch. Torch-free.

A question counts as often as an epoch asks it, a clip once. A long-tailed axis ends where 99.5 % of
the values have come; its last bar, lighter, counts those beyond.
"""

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
TAIL = 1.5  # an axis is cut where it were longer than so many times what is shown
SHOWN = 99.5  # percent of a panel's values that its axis is for
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
    """A histogram of tokens, one value each of what `counted` names; without values, why.

    once: in a few words, how often a question or clip is counted.
    """

    title: str
    counted: str
    colour: str
    tokens: NDArray[np.integer] | str
    once: str = "each once"


@dataclass(frozen=True)
class Shares:
    """A bar for each part of a mixture: its share of an epoch."""

    title: str
    shares: Mapping[str, float]


def panels_of(
    plan: DataPlan,
    *,
    routes: Mapping[str, str],
    audio_tokens: Mapping[str, AudioTokens],
    no_text: str,
    no_stores: Mapping[str, str],
) -> list[Panel | Shares]:
    """Text and target tokens of an epoch's questions, audio tokens of its clips by stream; the
    shares of a mixture's parts.

    routes: by stream. no_text, no_stores: why tokens of text, or of a stream, are unknown.
    """
    asked = np.asarray(plan.planner.order.questions)
    text: NDArray[Any] | str = no_text
    target: NDArray[Any] | str = no_text
    if plan.lengths is not None:
        rows = plan.lengths.rows[asked]
        text, target = rows["trunk"] + rows["branch"], rows["target"]
    counted, once = ("askings", "repeats count") if plan.mixture else ("questions", "each once")
    panels: list[Panel | Shares] = [
        Panel("Text tokens per question", counted, TEXT, text, once),
        Panel("Target tokens per question", counted, TEXT, target, once),
    ]
    first = np.asarray(plan.corpus.first_question)
    clips = np.unique(np.searchsorted(first, asked, side="right") - 1)
    for name, route in routes.items():
        tokens: NDArray[Any] | str = no_stores.get(name, "")
        if name in plan.streams:
            frames = plan.streams[name].n_frames[clips].astype(np.int64)
            tokens = np.asarray(audio_tokens[name](frames[frames > 0]))
        title = f"Audio tokens per clip: {name}, by {route}"
        colour = COLOUR_OF_ROUTE.get(route, MUTED)
        panels.append(Panel(title, "clips", colour, tokens, "each once"))
    if plan.mixture:
        shares = {name: part.share for name, part in plan.mixture.items()}
        panels.append(Shares("Parts of the mixture", shares))
    return panels


def draw(panels: Sequence[Panel | Shares], path: Path, *, title: str, subtitle: str) -> None:
    """Write the picture; the file's ending says as what."""
    n_rows = -(-len(panels) // PANELS_A_ROW)
    n_columns = -(-len(panels) // n_rows)
    with mpl.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        figure = Figure(figsize=(4.8 * n_columns, 0.8 + 3.6 * n_rows), layout=layout)
        axes = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
        for axis, panel in zip(axes, panels, strict=False):
            if isinstance(panel, Panel):
                _draw_panel(axis, panel)
            else:
                _draw_shares(axis, panel)
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
    high = int(panel.tokens.max())
    edges, cut = _edges(panel.tokens)
    counts, _ = np.histogram(np.minimum(panel.tokens, cut + 1), edges)
    bars = axis.bar(edges[:-1], counts, np.diff(edges), align="edge", color=panel.colour)
    if len(bars) == 1:
        axis.set_xlim(edges[0] - 2, edges[1] + 2)
    label = "tokens"
    if high > cut:
        bars[-1].set_alpha(0.4)
        label = f"tokens; last bar: {counts[-1]:,} of {len(panel.tokens):,} above {cut:,}"
    median, most = np.percentile(panel.tokens, [50, 95])
    _tell(axis, f"median {median:,.0f}, 95 % up to {most:,.0f}, at most {high:,}")
    axis.set(xlabel=label, ylabel=f"{panel.counted} ({panel.once})")
    axis.grid(visible=False, axis="x")
    for direction in (axis.xaxis, axis.yaxis):
        direction.set_major_locator(MaxNLocator(6, integer=True))
        direction.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _edges(tokens: NDArray[np.integer]) -> tuple[NDArray[np.float64], int]:
    """Edges of the bars, and the last value that they show: where that is not the longest, a bar
    for those beyond comes last."""
    low, high = int(tokens.min()), int(tokens.max())
    shown = int(np.percentile(tokens, SHOWN, method="lower"))
    if high - low <= TAIL * max(shown - low, N_BINS):
        shown = high
    step = -(-(shown - low + 1) // N_BINS)
    n_bars = -(-(shown - low + 1) // step)
    last = low + n_bars * step - 1
    return low - 0.5 + step * np.arange(n_bars + 1 + (high > last), dtype=np.float64), last


def _draw_shares(axis: Axes, panel: Shares) -> None:
    names = [textwrap.shorten(name, 24, placeholder="…") for name in panel.shares]
    percent = [100 * share for share in panel.shares.values()]
    axis.set_title(panel.title)
    bars = axis.barh(range(len(names)), percent, height=0.6, color=TEXT)
    axis.bar_label(bars, fmt="%.1f %%", padding=4, color=MUTED, fontsize=10)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set(xlabel="% of the questions that an epoch asks", xlim=(0, 1.2 * max(percent)))
    axis.grid(visible=False, axis="y")


def _tell(axis: Axes, told: str) -> None:
    """A line between title and axis."""
    axis.annotate(told, (0, 1), (0, 7), "axes fraction", "offset points", color=MUTED, fontsize=10)
