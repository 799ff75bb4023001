"""Mixtures: how often each question is asked in an epoch.

A part selects questions, keeps `max_questions` of them and asks for them `weight` times: as often
as the whole number below it, and a fixed share of them once more. Parts add up.

    part               questions        times        0 1 2 3 4 5 6 7
    speech, 2.5        0 1 2 3                        2 3 2 3 . . . .
    sounds, 0.5              2 3 4 5                  . . 1 . . 1 . .
    an epoch                                          2 3 3 3 . 1 . .     6 and 7 are left out

Guarantees: exactly `round(share * n)` questions of a part are asked once more; which ones depends
on the part's name and the questions that it selects (Philox, order.py), never on a run's seed; more
weight or more questions keep those that less would have. An epoch asks at most MOST_ASKED times.
Costs: a sort of each part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from paltrain.data.order import Int32Array, Int64Array, shuffle_within
from paltrain.errors import ManifestError

MOST_ASKED = np.iinfo(np.int32).max  # positions of an epoch's questions are int32 (order.py)


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
        ManifestError: a part selects nothing, or an epoch would ask more than MOST_ASKED times.
    """
    drawn = {part.name: _draw(part) for part in parts}
    total = sum(each.n_asked for each in drawn.values())
    if total > MOST_ASKED:
        most = max(drawn, key=lambda name: drawn[name].n_asked)
        raise ManifestError(
            f"data.mixture asks {total} questions an epoch, over {MOST_ASKED}: lower the weights, "
            f"first that of {most} (it asks {drawn[most].n_asked}); max_questions caps the "
            "questions of a part"
        )
    times = np.zeros(int(first_question[-1]), np.int32)
    for each in drawn.values():
        times[each.questions] += each.n_whole
        times[each.questions[: each.n_more]] += 1
    return times, {
        name: PartShare(
            len(each.asked),
            _n_clips(each.asked, first_question),
            each.n_asked,
            each.n_asked / total,
        )
        for name, each in drawn.items()
    }


@dataclass(frozen=True)
class _Drawn:
    """questions: a part's, as shuffled; all `n_whole` times, the first `n_more` once more."""

    questions: Int64Array
    n_whole: int
    n_more: int

    @property
    def n_asked(self) -> int:
        return self.n_whole * len(self.questions) + self.n_more

    @property
    def asked(self) -> Int64Array:
        """Those that are asked at all."""
        return self.questions if self.n_whole else self.questions[: self.n_more]


def _draw(part: Part) -> _Drawn:
    """Which questions a part asks, and how often."""
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
    return _Drawn(questions, n_whole, n_more)


def _n_clips(questions: Int64Array, first_question: Int64Array) -> int:
    clips = np.searchsorted(first_question, np.sort(questions), side="right")
    return 1 + int(np.count_nonzero(np.diff(clips)))
