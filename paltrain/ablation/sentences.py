"""What an ablation's numbers say, in plain sentences made from them and from nothing else.

A difference counts where it is larger than the seeds' spread: the larger one of the two arms'
standard deviations over seeds. With one seed no spread is known, and every difference is told as
such.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum

from paltrain.ablation.results import Results, Row, Share

HEARING_TASK = "which_sound"  # the first thing that a model that hears can do
HEARING_SHARE = 0.85  # of its questions that an arm is expected to answer right


class Verdict(Enum):
    loses = "loses to"
    wins = "wins over"
    even = "is within the seeds' spread of"


def sentences(results: Results) -> list[str]:
    """One for each row but the baseline's, and one for each that hears little."""
    compared = (sentence for row in results.rows for sentence in _compared(row, results))
    return [*compared, *_hear_little(results.rows)]


def verdict(own: Share, other: Share) -> Verdict:
    """How a share of right answers stands to another."""
    difference = own.mean - other.mean
    if abs(difference) <= (spread(own, other) or 0.0):
        return Verdict.even
    return Verdict.wins if difference > 0 else Verdict.loses


def spread(own: Share, other: Share) -> float | None:
    """The larger standard deviation over seeds, None where neither has two seeds."""
    return max((s.std for s in (own, other) if s.std is not None), default=None)


def _compared(row: Row, results: Results) -> Iterator[str]:
    baseline = results.baseline_of(row)
    if baseline is None:
        return
    both = {
        task: (row.heard[task], baseline.heard[task])
        for task in results.tasks
        if task in row.heard and task in baseline.heard
    }
    if not both:
        yield f"{row.variant.name}: no results to hold against {baseline.variant.name}."
        return
    parts = [
        f"{each.value} {baseline.variant.name} on {told}"
        for each in Verdict
        if (told := _told(both, each))
    ]
    yield f"{row.variant.name} " + "; it ".join(parts) + "."


def _told(both: Mapping[str, tuple[Share, Share]], wanted: Verdict) -> str:
    return ", ".join(
        f"{task} ({_difference(own, other)})"
        for task, (own, other) in both.items()
        if verdict(own, other) is wanted
    )


def _difference(own: Share, other: Share) -> str:
    between = spread(own, other)
    seeds = "one seed" if between is None else f"seeds' standard deviation {100 * between:.1f}"
    return (
        f"{100 * own.mean:.1f} against {100 * other.mean:.1f}, a difference of "
        f"{100 * abs(own.mean - other.mean):.1f} points, {seeds}"
    )


def _hear_little(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        share = row.heard.get(HEARING_TASK)
        if share is not None and share.mean < HEARING_SHARE:
            noted = row.variant.note or "nothing that would explain it."
            yield (
                f"{row.variant.name} answers {100 * share.mean:.1f} % of {HEARING_TASK} right, "
                f"under {100 * HEARING_SHARE:.0f} %; noted of it: {noted}"
            )
