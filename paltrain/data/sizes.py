"""What questions, clips and visits take: tokens, and what weighs in their cost.

    clip      audio tokens of all streams (the budget counts these)
              rows: those among them that have queries (PLITS)
              keys: those that text looks at and that look at nothing (LAL), mean over the layers
              cost: what they cost by themselves, whatever is asked about them
    question  a row of the length table; its clips are its own and its further ones
    visit     its questions, an equal trunk and the clips in it once

All plain arrays. Costs: 16 bytes a clip beside the length table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paltrain.data.order import Int64Array

FloatArray = NDArray[np.float64]

CLIP_FIELDS = ("audio", "rows", "keys", "cost")
CLIP = np.dtype(list(zip(CLIP_FIELDS, ("<i4", "<i4", "<f4", "<f4"), strict=True)))


@dataclass(frozen=True)
class StreamCost:
    """What a stream's audio costs, in the unit of `CostModel.text`.

    token: an audio token. frame: a frame, besides. rows, keys: the share of the LLM's layers in
    which a token is a query and a key (PLITS), or a key alone (LAL). The defaults are a guess.
    """

    token: float = 0.25
    frame: float = 0.0
    rows: float = 0.0
    keys: float = 1.0


def clip_sizes(
    n_clips: int, streams: Iterable[tuple[NDArray[Any], NDArray[Any], StreamCost]]
) -> NDArray[Any]:
    """(C,) of CLIP. streams: the audio tokens (C,) and frames (C,) of each, and what they cost."""
    clips = np.zeros(n_clips, CLIP)
    for tokens, frames, cost in streams:
        clips["audio"] += tokens.astype(np.int32)
        clips["rows"] += (cost.rows * tokens).astype(np.int32)
        clips["keys"] += (cost.keys * tokens).astype(np.float32)
        clips["cost"] += (cost.token * tokens + cost.frame * frames).astype(np.float32)
    return clips


def further_sizes(
    clips: NDArray[Any], questions: Int64Array, heard: Int64Array
) -> tuple[Int64Array, NDArray[Any]]:
    """`QuestionSizes.further`, from (K,) questions and (K,) one further clip of each."""
    numbers, which = np.unique(questions, return_inverse=True)
    sizes = np.zeros(len(numbers), CLIP)
    for name in CLIP_FIELDS:
        np.add.at(sizes[name], which, clips[name][heard])
    return numbers, sizes


@dataclass(frozen=True)
class VisitSizes:
    """Of some visits, each (n,): text, target and audio tokens; rows, keys and cost as of clips."""

    text: Int64Array
    target: Int64Array
    audio: Int64Array
    rows: Int64Array
    keys: FloatArray
    cost: FloatArray


@dataclass(frozen=True)
class QuestionSizes:
    """Sizes of any question, in corpus numbering.

    lengths: (Q,) rows of `lengths.COLUMNS`. first_question: (C + 1,). clips: (C,) of CLIP. further:
    the questions that hear more than one clip, ascending, and the sum of their further clips'
    sizes, of CLIP.
    """

    lengths: NDArray[Any]
    first_question: Int64Array
    clips: NDArray[Any]
    further: tuple[Int64Array, NDArray[Any]] | None = None

    def clip_of(self, questions: NDArray[np.integer]) -> Int64Array:
        return np.searchsorted(self.first_question, questions, side="right") - 1

    def heard_by(self, questions: NDArray[np.integer]) -> NDArray[Any]:
        """(n,) of CLIP: what each question hears, asked alone."""
        heard: NDArray[Any] = self.clips[self.clip_of(questions)]
        at, more = self.more_heard_by(questions)
        for name in CLIP_FIELDS if len(at) else ():
            heard[name][at] += more[name]
        return heard

    def more_heard_by(self, questions: NDArray[np.integer]) -> tuple[Int64Array, NDArray[Any]]:
        """Where in `questions` further clips are heard, and their sizes."""
        numbers, sizes = self.further or (np.zeros(0, np.int64), np.zeros(0, CLIP))
        if not len(numbers):
            return numbers, sizes
        nearest = np.minimum(np.searchsorted(numbers, questions), len(numbers) - 1)
        at = np.flatnonzero(numbers[nearest] == questions)
        return at, sizes[nearest[at]]

    def of_visits(self, questions: Int64Array, starts: Int64Array) -> VisitSizes:
        """questions: the visits' questions end to end; starts: (n + 1,) where each visit's begin.

        An equal trunk counts once a visit, and its clips with it.
        """
        rows = self.lengths[questions]
        n = len(starts) - 1
        visit = np.repeat(np.arange(n), np.diff(starts))
        key = (visit.astype(np.int64) << 32) | rows["trunk_key"]
        _, first = np.unique(key, return_index=True)
        heard, hearer = self.heard_by(questions[first]), visit[first]

        def of_clips(name: str) -> FloatArray:
            return np.asarray(np.bincount(hearer, heard[name], n), np.float64)

        trunk = np.bincount(hearer, rows["trunk"][first], n)
        return VisitSizes(
            text=(np.bincount(visit, rows["branch"], n) + trunk).astype(np.int64),
            target=np.bincount(visit, rows["target"], n).astype(np.int64),
            audio=of_clips("audio").astype(np.int64),
            rows=of_clips("rows").astype(np.int64),
            keys=of_clips("keys"),
            cost=of_clips("cost"),
        )
