"""One run's evaluation, the part of it that a slice answers, and what slices lack for a merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paltrain.data.selection import StreamFeatures
from paltrain.eval.answer import Asker
from paltrain.eval.questions import IntArray, slice_numbers
from paltrain.eval.records import Key, numbers_of_slices
from paltrain.eval.runs import RunToEvaluate
from paltrain.slices import Lack, Slice

if TYPE_CHECKING:
    from paltrain.data.index import Corpus


@dataclass(frozen=True)
class Evaluation:
    """One run, hearing or deaf: its questions, and where its answers go.

    questions: (Q,) corpus numbers, ascending. heard: (C,) the clip to hear in place of each.
    identity: what the answers depend on.
    """

    run: RunToEvaluate
    shuffled: bool
    folder: Path
    questions: IntArray
    heard: IntArray
    streams: Sequence[StreamFeatures]
    identity: Mapping[str, Any]

    @property
    def label(self) -> str:
        return f"{self.run.name}, deaf control" if self.shuffled else self.run.name


def part_of(corpus: Corpus, evaluation: Evaluation, slice_of: Slice) -> list[int]:
    """The questions (corpus numbers, ascending) of slice i of n."""
    number, n_slices = slice_of
    mine = slice_numbers(corpus, evaluation.questions, n_slices) == number
    return [int(question) for question in evaluation.questions[mine]]


def lacks_of(
    corpus: Corpus,
    evaluations: Sequence[Evaluation],
    there: Sequence[Mapping[Key, Any]],
    keys: Sequence[Sequence[Key]],
    n_slices: int,
) -> list[Lack]:
    """Slices that have not answered all their questions of all evaluations.

    there, keys: of each evaluation, the answers that are there, and what its questions are called.
    A question that cannot be asked at all is not lacking.
    """
    n_lacking, n_all = np.zeros((2, n_slices), int)
    for each, known, wanted in zip(evaluations, there, keys, strict=True):
        numbers = slice_numbers(corpus, each.questions, n_slices)
        n_all += np.bincount(numbers, minlength=n_slices)
        absent = [int(q) for q, key in zip(each.questions, wanted, strict=True) if key not in known]
        if absent:
            asker = Asker.of(each.run.model_folder, corpus, each.streams)
            lacking = np.isin(each.questions, asker.askable(absent, each.heard))
            n_lacking += np.bincount(numbers[lacking], minlength=n_slices)
    return [
        Lack(number, int(n_lacking[number]), int(n_all[number]))
        for number in np.flatnonzero(n_lacking).tolist()
    ]


def other_numbers(evaluations: Sequence[Evaluation], n_slices: int) -> str:
    """A hint where slices of another number have answered; '' where none have."""
    there = {n for each in evaluations for n in numbers_of_slices(each.folder, each.identity)}
    others = " and of ".join(str(n) for n in sorted(there - {n_slices}))
    return others and (
        f"There are answers of slices of {others}, too. They count; but if you meant those, say so "
        "in --merge."
    )
