"""Visits become a packed micro-batch: rendered, their shared pieces joined, features read in place.

    a visit of three questions    pieces   0 "system user" --- 1 <clip> ---+-- 2 "which ..."
                                                                           +-- 3 "how many ..."
                                                                           +-- 4 "contains ..."
                                                                                      4 "contains
                                                                                      ..."

    1. Each question is rendered; text and clips before its branch are joined with what an earlier
       question of the visit has put there, if token ids, clips and targets are equal.
    2. The clips' frames are read into one buffer a stream, end to end in piece order. A clip that
       can't be read leaves zeros and makes its questions weigh nothing: it keeps its place in the
       plan.
    3. Targets: those of a shared piece weigh as many times as it has questions.

Costs: one copy from file to buffer; buffers are used again once no tensor looks at them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from paltrain.batch import Batch, BatchBuilder, RenderedQuestion
from paltrain.data.lengths import Render, measure
from paltrain.data.plan import Visit
from paltrain.data.selection import StreamFeatures
from paltrain.errors import ManifestError, StoreError, TrainingError

if TYPE_CHECKING:
    from paltrain.data.index import Corpus

FloatBuffer = NDArray[np.float16]


@dataclass(frozen=True)
class Asked:
    """A rendered question and the clips (corpus numbers) that stand in its placeholders."""

    id: str
    rendered: RenderedQuestion
    clips: tuple[int, ...]


@dataclass(frozen=True)
class BadSample:
    """A clip whose features could not be read, and the questions that lost their weight by it."""

    clip: int  # corpus number; `reason` has its id
    stream: str
    questions: tuple[str, ...]
    reason: str


class BufferPool:
    """Feature buffers that are used again: a fresh one costs a page fault every 4 KiB.

    A buffer is free once nothing but the pool refers to it; the tensors over it do, so nothing that
    anyone still holds is overwritten.
    """

    def __init__(self) -> None:
        self._buffers: list[FloatBuffer] = []

    def take(self, n_frames: int, width: int) -> FloatBuffer:
        """(n_frames, width) float16, uninitialised."""
        size = n_frames * width
        for number, buffer in enumerate(self._buffers):
            if sys.getrefcount(buffer) > REFERENCES_WHEN_FREE:
                continue
            if buffer.size < size:
                self._buffers[number] = buffer = np.empty(size, np.float16)
            return buffer[:size].reshape(n_frames, width)
        buffer = np.empty(size, np.float16)
        self._buffers.append(buffer)
        return buffer[:size].reshape(n_frames, width)


REFERENCES_WHEN_FREE = 3  # the pool's list, the loop's name, and getrefcount's own argument


@dataclass
class _Placed:
    """Where one question's texts went, and the clips on its path."""

    asked: Asked
    texts: list[tuple[int, int]] = field(default_factory=list)  # (piece, number of the text)
    clips: list[int] = field(default_factory=list)  # numbers in the batch's order of clips


class Collator:
    """Packs visits. `on_bad` hears of every clip that could not be read.

    streams: in config order, empty for text alone. lengths: (Q,) rows of the length table, against
    which every rendering is checked.
    """

    def __init__(
        self,
        *,
        corpus: Corpus,
        render: Render,
        lengths: NDArray[np.void],
        streams: Sequence[StreamFeatures],
        on_bad: Callable[[BadSample], None],
    ) -> None:
        self._corpus = corpus
        self._render = render
        self._lengths = lengths
        self._streams = streams
        self._on_bad = on_bad
        self._pool = BufferPool()

    def __call__(self, visits: Sequence[Visit]) -> Batch:
        """One micro-batch. Raises TrainingError where a rendering differs from the length table."""
        asked = [self._ask(visit) for visit in visits]
        return pack(asked, self._streams, pool=self._pool, on_bad=self._on_bad)

    def _ask(self, visit: Visit) -> list[Asked]:
        clip = self._corpus.clip(visit.clip)
        first = int(self._corpus.first_question[visit.clip])
        asked = []
        for number in visit.questions:
            question = clip.questions[number - first]
            rendered = self._render(clip, question)
            row = measure(rendered, question.clips or ())
            if row != tuple(self._lengths[number].tolist()):
                raise TrainingError(
                    f"question {question.id} of clip {clip.id} has {row[:3]} trunk, branch and "
                    f"target tokens, its length table says {self._lengths[number].tolist()[:3]}: "
                    "the tokenizer changed; remove the folder MANIFEST.lengths and start again"
                )
            clips = self._corpus.clips_of(number) if rendered.n_clips else ()
            asked.append(Asked(question.id, rendered, tuple(clips)))
        return asked


def pack(
    visits: Sequence[Sequence[Asked]],
    streams: Sequence[StreamFeatures],
    *,
    pool: BufferPool | None = None,
    on_bad: Callable[[BadSample], None] | None = None,
) -> Batch:
    """A micro-batch of visits, each a list of questions that share what they have in common.

    Without `on_bad` a clip that can't be read raises its StoreError. Raises ManifestError where a
    question has not as many clips as placeholders.
    """
    forest = _Forest(streams)
    placed = [question for visit in visits for question in forest.place(visit)]
    features, faults = _read(
        forest.clips, streams, pool or BufferPool(), tolerate=on_bad is not None
    )
    if on_bad:
        _report(faults, placed, on_bad)
    _add_targets(forest.builder, placed, bad={clip for clip, _, _ in faults})
    return forest.builder.build(
        {name: torch.from_numpy(values) for name, values in features.items()}
    )


class _Forest:
    """Grows the batch's pieces; within a visit equal beginnings become one piece."""

    def __init__(self, streams: Sequence[StreamFeatures]) -> None:
        self.builder = BatchBuilder()
        self.clips: list[int] = []  # corpus number of each clip piece
        self._streams = streams

    def place(self, visit: Sequence[Asked]) -> list[_Placed]:
        texts: dict[tuple[int, bytes, bytes], int] = {}
        clips: dict[tuple[int, int], tuple[int, int]] = {}
        return [self._place(asked, texts, clips) for asked in visit]

    def _place(
        self,
        asked: Asked,
        texts: dict[tuple[int, bytes, bytes], int],
        clips: dict[tuple[int, int], tuple[int, int]],
    ) -> _Placed:
        rendered = asked.rendered
        if rendered.n_clips != len(asked.clips):
            raise ManifestError(
                f"question {asked.id} has {rendered.n_clips} audio placeholders and "
                f"{len(asked.clips)} clips: give it as many of one as of the other"
            )
        parent, placed = -1, _Placed(asked)
        for number, clip in enumerate(asked.clips):
            ids, mask = rendered.texts[number], rendered.targets[number]
            if len(ids):
                key = (parent, ids.tobytes(), mask.tobytes())
                if key not in texts:
                    texts[key] = self.builder.add_text(ids, parent)
                parent = texts[key]
                placed.texts.append((parent, number))
            if (parent, clip) not in clips:
                clips[parent, clip] = self._add_clip(clip, parent)
            parent, in_order = clips[parent, clip]
            placed.clips.append(in_order)
        placed.texts.append((self.builder.add_text(rendered.texts[-1], parent), rendered.n_clips))
        self.builder.add_id(asked.id)
        return placed

    def _add_clip(self, clip: int, parent: int) -> tuple[int, int]:
        """The new piece, and its number among the batch's clips."""
        frames = {stream.name: int(stream.n_frames[clip]) for stream in self._streams}
        self.clips.append(clip)
        return self.builder.add_clip(frames, parent), len(self.clips) - 1


def _read(
    clips: list[int], streams: Sequence[StreamFeatures], pool: BufferPool, *, tolerate: bool
) -> tuple[dict[str, FloatBuffer], list[tuple[int, str, str]]]:
    """Every stream's frames of `clips`, end to end; faults as (clip's number, stream, reason)."""
    features, faults = {}, []
    for stream in streams:
        ends = np.cumsum([stream.n_frames[clip] for clip in clips], dtype=np.int64)
        values = pool.take(int(ends[-1]) if len(ends) else 0, stream.width)
        for number, clip in enumerate(clips):
            out = values[ends[number] - int(stream.n_frames[clip]) : ends[number]]
            try:
                stream.read_into(clip, out)
            except StoreError as error:
                if not tolerate:
                    raise
                out[:] = 0
                faults.append((number, stream.name, str(error)))
        features[stream.name] = values
    return features, faults


def _report(
    faults: list[tuple[int, str, str]], placed: list[_Placed], on_bad: Callable[[BadSample], None]
) -> None:
    for number, stream, reason in faults:
        hit = [question for question in placed if number in question.clips]
        clip = hit[0].asked.clips[hit[0].clips.index(number)]
        on_bad(BadSample(clip, stream, tuple(question.asked.id for question in hit), reason))


def _add_targets(builder: BatchBuilder, placed: list[_Placed], *, bad: set[int]) -> None:
    """Each text's targets once, weighing as much as there are questions behind it that count."""
    masks: dict[int, NDArray[np.bool_]] = {}
    weights: dict[int, float] = {}
    for question in placed:
        weight = 0.0 if bad.intersection(question.clips) else 1.0
        for piece, number in question.texts:
            masks[piece] = question.asked.rendered.targets[number]
            weights[piece] = weights.get(piece, 0.0) + weight
    for piece, mask in masks.items():
        builder.add_targets(piece, mask, weights[piece])
