"""Which questions an evaluation asks, which clip each of them hears, and whose slice it is in.

A question is asked if its clip is of the split, its task is wanted and every clip that it hears has
features in every store. Of more than `max_questions` a seeded sample is taken, the same for every
model and for the deaf control. No torch here.

Slices are dealt a clip at a time, always to the one with the fewest questions, so that they get the
same mixture, and a clip's questions share its audio in one of them:

    clip        a a a  b  c c  d d
    slice of 2  0 0 0  1  1 1  0 0
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from paltrain.data.selection import Selector, StreamFeatures, further_clips
from paltrain.errors import ManifestError, unknown_name
from paltrain.eval.shuffle import derangement

if TYPE_CHECKING:
    from paltrain.data.index import Corpus

IntArray = NDArray[np.int64]

MOST_TOGETHER = 64  # of a clip's questions: further ones would be another batch's anyway


@dataclass(frozen=True)
class QuestionSet:
    """questions: (Q,) corpus numbers in corpus order. left_out: questions not asked, by reason."""

    questions: IntArray
    left_out: Mapping[str, int]


def choose_questions(
    corpus: Corpus,
    *,
    split: str,
    tasks: Sequence[str] | None,
    streams: Sequence[StreamFeatures],
    max_questions: int | None,
    seed: int,
) -> QuestionSet:
    """The questions to ask.

    Raises:
        ManifestError: no such split or task, or no question is left.
    """
    selector = Selector(corpus)
    in_split = np.asarray(corpus.clip_split) == _number("split=...", split, corpus.splits)
    selector.keep_clips(in_split, f"not of split '{split}'")
    if tasks is not None:
        wanted = [_number("tasks=[...]", task, corpus.tasks) for task in tasks]
        selector.keep(np.isin(corpus.question_task, wanted), "not of the wanted tasks")
    _keep_heard(selector, corpus, streams)
    questions = np.flatnonzero(selector.kept)
    if not len(questions):
        told = "; ".join(f"{n} {why}" for why, n in selector.left_out.items())
        raise ManifestError(
            f"no question is left to ask: {told or 'the manifests hold none'}; choose another "
            "split or further tasks, or make the features that are missing"
        )
    if max_questions is not None and max_questions < len(questions):
        generator = np.random.Generator(np.random.Philox(seed))
        questions = np.sort(generator.choice(questions, max_questions, replace=False))
    return QuestionSet(questions, selector.left_out)


def heard_clips(corpus: Corpus, questions: IntArray, *, shuffle_seed: int | None) -> IntArray:
    """(C,) the clip that is heard in place of each: itself, or for the control another.

    Only clips with audio that `questions` hear change places.
    """
    heard = np.arange(corpus.n_clips)
    if shuffle_seed is None:
        return heard
    in_use = clips_in_use(corpus, questions)
    heard[in_use] = in_use[derangement(len(in_use), seed=shuffle_seed)]
    return heard


def clips_in_use(corpus: Corpus, questions: IntArray) -> IntArray:
    """The clips with audio that `questions` hear, ascending."""
    heard = sorted({clip for q in questions for clip in corpus.clips_of(int(q))})
    return np.array([clip for clip in heard if corpus.has_audio[clip]], np.int64)


def slice_numbers(corpus: Corpus, questions: IntArray, n_slices: int) -> IntArray:
    """(Q,) the slice, of n_slices, that answers each question."""
    numbers = np.empty(len(questions), np.int64)
    heap = [(0, number) for number in range(n_slices)]  # (questions so far, slice)
    at = 0
    for _, of_clip in by_clip(corpus, [int(q) for q in questions]):
        for first in range(0, len(of_clip), MOST_TOGETHER):
            n = len(of_clip[first : first + MOST_TOGETHER])
            so_far, number = heap[0]
            heapq.heapreplace(heap, (so_far + n, number))
            numbers[at : at + n] = number
            at += n
    return numbers


def keys_of(corpus: Corpus, questions: Sequence[int]) -> list[tuple[str, str]]:
    """Ids of each question's clip and of the question: how an answer names it."""
    keys = []
    for clip_number, of_clip in by_clip(corpus, questions):
        clip = corpus.clip(clip_number)
        first = int(corpus.first_question[clip_number])
        keys += [(clip.id, clip.questions[number - first].id) for number in of_clip]
    return keys


def by_clip(corpus: Corpus, questions: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """(clip, its questions), neighbours joined; what shares a clip shares its audio."""
    if not len(questions):
        return
    first = np.asarray(corpus.first_question)
    clips = np.searchsorted(first, questions, side="right") - 1
    starts = np.flatnonzero(np.diff(clips, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(clips)], strict=True):
        yield int(clips[start]), [int(q) for q in questions[int(start) : int(end)]]


def _keep_heard(selector: Selector, corpus: Corpus, streams: Sequence[StreamFeatures]) -> None:
    has_audio = np.asarray(corpus.has_audio)
    for stream in streams:
        there = ~has_audio | (stream.rows >= 0)
        why = f"a clip has no features of stream '{stream.name}'"
        selector.keep_clips(there, why)
        questions, further = further_clips(corpus)
        if len(questions):
            kept = np.ones(corpus.n_questions, bool)
            kept[questions[~there[further]]] = False
            selector.keep(kept, why)


def _number(word: str, name: str, valid: Sequence[str]) -> int:
    """Of a split or task. word: says it."""
    if name not in valid:
        kind = word.partition("=")[0].removesuffix("s")
        raise ManifestError(f"{unknown_name(kind, name, list(valid))}; choose by {word}")
    return list(valid).index(name)
