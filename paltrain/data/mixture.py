"""Mixtures: how often each question is asked in an epoch.

A part selects questions, keeps `max_questions` of them and asks for them `weight` times: as often
as the whole number below it, and a fixed share of them once more. Parts add up.

    part               questions        times        0 1 2 3 4 5 6 7
    speech, 2.5        0 1 2 3                        2 3 2 3 . . . .
    sounds, 0.5              2 3 4 5                  . . 1 . . 1 . .
    an epoch                                          2 3 3 3 . 1 . .     6 and 7 are left out

Guarantees: exactly `round(share * n)` questions of a part are asked once more; which ones depends
on the part's name and the questions that it selects (Philox, order.py), never on a run's seed; more
weight or more questions keep those that less would have. Costs: a sort of each part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from paltrain.data.order import Int32Array, Int64Array, shuffle_within
from paltrain.errors import ManifestError


@dataclass(frozen=True)
class Part:
    """asked: (Q,) the questions that it selects. See the module for weight and max_questions."""

    name: str
    asked: NDArray[np.bool_]
    weight: float = 1.0
    max_questions: int | None = None


@dataclass(frozen=True)
class PartShare:
    """What a part is of an epoch.

    n_questions: different ones. n_clips: that they are about. n_asked: with their repeats. share:
    of all that the epoch asks.
    """

    n_questions: int
    n_clips: int
    n_asked: int
    share: float


def mix(
    parts: Sequence[Part], first_question: Int64Array
) -> tuple[Int32Array, dict[str, PartShare]]:
    """(Q,) how often each question is asked in an epoch, and what each part is of it.

    first_question: (C + 1,) where each clip's questions start.

    Raises:
        ManifestError: a part selects nothing.
    """
    times = np.zeros(int(first_question[-1]), np.int32)
    counts = {}
    for part in parts:
        of_part = _draw(part)
        times += of_part
        asked = np.flatnonzero(of_part)
        clip = np.searchsorted(first_question, asked, side="right")
        counts[part.name] = (len(asked), 1 + int(np.count_nonzero(np.diff(clip))), of_part.sum())
    total = int(times.sum())
    return times, {
        name: PartShare(n_questions, n_clips, int(n_asked), int(n_asked) / total)
        for name, (n_questions, n_clips, n_asked) in counts.items()
    }


def _draw(part: Part) -> Int32Array:
    """(Q,) how often a part asks each question."""
    questions = np.flatnonzero(part.asked)
    if not len(questions):
        raise ManifestError(
            f"data.mixture.{part.name} selects no question of those that the run can use: widen "
            "its filters, or take it out"
        )
    key = np.array([xxhash.xxh3_64_intdigest(part.name.encode()), 0], np.uint64)
    shuffled = shuffle_within(np.zeros(len(questions), np.int32), np.random.Philox(key=key))
    questions = questions[shuffled[: part.max_questions]]
    n_whole = int(part.weight)
    n_more = round((part.weight - n_whole) * len(questions))
    if n_whole + n_more == 0:
        raise ManifestError(
            f"data.mixture.{part.name}.weight={part.weight:g} of {len(questions)} questions is "
            "none: raise it"
        )
    times = np.zeros(len(part.asked), np.int32)
    times[questions] = n_whole
    times[questions[:n_more]] += 1
    return times
