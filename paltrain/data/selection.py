"""Which questions a run can train on, and how many frames each of their clips has in every store.

A question is in use if its clip is of the split, the filters let it pass (filters.py), every clip
that it hears has features in every stream's store, the length table has not set it aside, and a
part of the mixture asks for it (mixture.py). What is left out is counted by its first reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from numpy.typing import NDArray

from paltrain.data.order import Int32Array, Int64Array
from paltrain.errors import StoreError

if TYPE_CHECKING:
    from paltrain.data.index import Corpus
    from paltrain.data.shards import FeatureStore

AudioTokens = Callable[[Int64Array], Int64Array]  # frames of clips -> tokens they take in the LLM
CLIPS_PER_PSEUDO_SHARD = 512  # clips without features are shuffled in runs of so many


@dataclass(frozen=True)
class StreamFeatures:
    """One stream's store, joined to the corpus.

    rows: (C,) row of each clip in the store, -1 where it has none. n_frames: (C,) frames to read,
    which may be fewer than stored (truncated); 0 where there are none.
    """

    name: str
    store: FeatureStore
    rows: Int32Array
    n_frames: Int32Array

    @property
    def width(self) -> int:
        width: int = self.store.width
        return width

    def hash_of(self, clips: NDArray[np.integer]) -> str:
        """Names the features of these clips, and which of them have none."""
        rows = self.rows[clips]
        has = rows >= 0
        return f"{self.store.hash_of(rows[has])}-{xxhash.xxh3_64_hexdigest(has.tobytes())[:4]}"

    def read_into(self, clip: int, out: NDArray[np.float16]) -> None:
        """Fill `out` (n_frames[clip], width); raises StoreError where the store is torn."""
        if not len(out):
            return
        row = int(self.rows[clip])
        stored = int(self.store.n_frames[row])
        if stored == len(out):
            self.store.read_into(row, out)
            return
        whole = np.empty((stored, self.width), np.float16)
        self.store.read_into(row, whole)
        out[:] = whole[: len(out)]


def join_store(
    name: str,
    store: FeatureStore,
    corpus: Corpus,
    *,
    max_frames: int | None = None,
    truncate: bool = False,
) -> tuple[StreamFeatures, NDArray[np.bool_]]:
    """The stream over the whole corpus, and (C,) clips over `max_frames` (none, if truncated)."""
    rows = np.asarray(store.rows_of(corpus.clip_id_array))
    has = (rows >= 0) & np.asarray(corpus.has_audio)
    n_frames = np.zeros(corpus.n_clips, np.int32)
    n_frames[has] = np.asarray(store.n_frames)[rows[has]]
    over = n_frames > (np.iinfo(np.int32).max if max_frames is None else max_frames)
    if truncate and max_frames is not None:
        np.minimum(n_frames, max_frames, out=n_frames)
        over[:] = False
    return StreamFeatures(name, store, np.where(has, rows, -1).astype(np.int32), n_frames), over


def most_frames(name: str, audio_tokens: AudioTokens, max_audio_tokens: int, longest: int) -> int:
    """The most frames, up to `longest`, of which a clip takes at most `max_audio_tokens`."""
    fits = np.flatnonzero(audio_tokens(np.arange(longest + 1)) <= max_audio_tokens)
    if not len(fits) or fits[-1] == 0:
        least = int(audio_tokens(np.ones(1, np.int64))[0])
        raise StoreError(
            f"a clip takes at least {least} audio tokens by stream '{name}', over "
            f"data.max_audio_tokens={max_audio_tokens}: raise it"
        )
    return int(fits[-1])


def further_clips(corpus: Corpus) -> tuple[Int64Array, Int64Array]:
    """Every further clip of a question: (K,) questions and (K,) clips, in corpus numbering."""
    pairs = [(question, clip) for question, clips in corpus.extra_clips.items() for clip in clips]
    both = np.array(pairs, np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def hears_only(corpus: Corpus, clips: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(Q,) questions whose clips are all True in (C,) `clips`, the further ones recordings."""
    kept = np.repeat(clips, np.diff(corpus.first_question))
    questions, further = further_clips(corpus)
    kept[questions[~(clips & np.asarray(corpus.has_audio))[further]]] = False
    return kept


@dataclass(frozen=True)
class Selected:
    """The questions in use, clip by clip; repeats stand in layers, one copy of a clip in each.

    questions: (Q',). clips: (U,) their clips. clip_start: (U + 1,) where each clip's questions
    start. layer: (U,) 0 for a clip itself, r for its r-th copy.
    """

    questions: Int32Array
    clips: Int32Array
    clip_start: Int32Array
    layer: Int32Array


class Selector:
    """Narrows down a corpus's questions and counts by what each was left out."""

    def __init__(self, corpus: Corpus) -> None:
        self._first_question = np.asarray(corpus.first_question)
        self.kept = np.ones(corpus.n_questions, bool)
        self.left_out: dict[str, int] = {}

    @property
    def n_kept(self) -> int:
        return int(self.kept.sum())

    def keep(self, questions: NDArray[np.bool_], otherwise: str) -> None:
        """Keep the questions where (Q,) is True; `otherwise` says why not the others."""
        dropped = int((self.kept & ~questions).sum())
        if dropped:
            self.left_out[otherwise] = self.left_out.get(otherwise, 0) + dropped
            self.kept &= questions

    def keep_clips(self, clips: NDArray[np.bool_], otherwise: str) -> None:
        """The same for all questions of the clips where (C,) is True."""
        if not clips.all():
            self.keep(np.repeat(clips, np.diff(self._first_question)), otherwise)

    def selected(self, times: Int32Array | None = None) -> Selected:
        """What is left; `times`: (Q,) how often each question is asked (default: once)."""
        if times is None:
            layers = [self._clips_of(self.kept)]
        else:
            times = np.where(self.kept, times, 0)
            layers = [self._clips_of(times > n) for n in range(int(times.max(initial=0)))]
        sizes = [len(clips) for _, clips, _ in layers]
        before = np.cumsum([0, *(len(questions) for questions, _, _ in layers)])
        starts = [start + first for (_, _, start), first in zip(layers, before, strict=False)]
        return Selected(
            questions=_joined([questions for questions, _, _ in layers]),
            clips=_joined([clips for _, clips, _ in layers]),
            clip_start=_joined([*starts, before[-1:]]),
            layer=np.repeat(np.arange(len(layers), dtype=np.int32), sizes),
        )

    def _clips_of(self, asked: NDArray[np.bool_]) -> tuple[Int32Array, Int32Array, Int32Array]:
        """The questions where (Q,) is True, their clips, and where each clip's start."""
        questions = np.flatnonzero(asked).astype(np.int32)
        starts = np.searchsorted(questions, self._first_question.astype(np.int32)).astype(np.int32)
        clips = np.flatnonzero(np.diff(starts)).astype(np.int32)
        return questions, clips, starts[clips]


def _joined(arrays: list[Int32Array]) -> Int32Array:
    return np.concatenate([np.zeros(0, np.int32), *arrays]).astype(np.int32, copy=False)


def shard_numbers(selected: Selected, streams: Mapping[str, StreamFeatures]) -> Int32Array:
    """(U,) the first stream's shard of each clip; clips without features have their own.

    The copies of a shard's clips are shards of their own, so that they come at another time of the
    epoch and still lie together.
    """
    clips = selected.clips
    shard = -1 - clips // CLIPS_PER_PSEUDO_SHARD
    for stream in list(streams.values())[:1]:
        rows = stream.rows[clips]
        shard[rows >= 0] = np.asarray(stream.store.shard_of)[rows[rows >= 0]]
    span = int(shard.max(initial=0)) - int(shard.min(initial=0)) + 1
    return (shard + selected.layer * span).astype(np.int32)
