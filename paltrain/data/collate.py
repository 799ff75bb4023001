"""Visits become a packed micro-batch: rendered, their shared pieces joined, features read in place.

    a visit of three questions    pieces   0 "system user" --- 1 <clip> ---+-- 2 "which ..."
                                                                           +-- 3 "how many ..."
                                                                           +-- 4 "contains ..."

    1. Each question is rendered; its trunk (text and clips before the branch) is shared with the
       visit's other questions whose token ids, clips and targets there are equal.
    2. The clips' frames are read into one buffer a stream, end to end in piece order, by several
       threads; streams that hear the same frames of one store share it. A clip that can't be
       read leaves zeros and makes its questions weigh nothing: it keeps its place in the plan.
    3. Targets: those of a shared piece weigh as many times as it has questions.

Costs: one copy from file to buffer; buffers are used again once no tensor looks at them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from paltrain.batch import Batch, BatchBuilder, RenderedQuestion
from paltrain.data.lengths import Render, measure
from paltrain.data.plan import Visit
from paltrain.data.readers import Readers
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

    clip: int  # corpus number
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
        free = [i for i in range(len(self._buffers)) if _references(self._buffers, i) <= UNUSED]
        if not free:
            free = [len(self._buffers)]
            self._buffers.append(np.empty(size, np.float16))
        if self._buffers[free[0]].size < size:
            self._buffers[free[0]] = np.empty(size, np.float16)
        return self._buffers[free[0]][:size].reshape(n_frames, width)


def _references(buffers: list[FloatBuffer], number: int) -> int:
    return sys.getrefcount(buffers[number])


UNUSED = _references([np.empty(0, np.float16)], 0)  # what a buffer counts that only the list holds


@dataclass
class _Trunk:
    """Pieces that questions share: the last of them (-1: none), texts and clips as in `_Placed`."""

    end: int
    texts: list[tuple[int, int]]
    clips: list[int]


@dataclass(frozen=True)
class _Placed:
    """Where a question went: (piece, number) of its texts, its clips' places among the batch's."""

    asked: Asked
    texts: list[tuple[int, int]]
    clips: list[int]


@dataclass(frozen=True)
class _Fault:
    """A clip that could not be read: its place among the batch's clips, stream and reason."""

    number: int
    stream: str
    error: StoreError


class Collator:
    """Packs visits. `on_bad` hears of every clip that could not be read.

    streams: in config order, empty for text alone. lengths: (Q,) rows of the length table, against
    which every rendering is checked. reader_threads: that read clips at once.
    """

    def __init__(
        self,
        *,
        corpus: Corpus,
        render: Render,
        lengths: NDArray[np.void],
        streams: Sequence[StreamFeatures],
        on_bad: Callable[[BadSample], None],
        reader_threads: int = 1,
    ) -> None:
        self._corpus = corpus
        self._render = render
        self._lengths = lengths
        self._streams = streams
        self._on_bad = on_bad
        self._pool = BufferPool()
        self._readers = Readers(reader_threads)

    def __call__(self, visits: Sequence[Visit]) -> Batch:
        """One micro-batch. Raises TrainingError where a rendering differs from the length table."""
        asked = [self._ask(visit) for visit in visits]
        return pack(
            asked, self._streams, pool=self._pool, readers=self._readers, on_bad=self._on_bad
        )

    def close(self) -> None:
        """End the threads that read."""
        self._readers.close()

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
    readers: Readers | None = None,
    on_bad: Callable[[BadSample], None] | None = None,
) -> Batch:
    """A micro-batch of visits, each a list of questions that share what they have in common.

    Without `on_bad` a clip that can't be read raises its StoreError. Raises ManifestError where a
    question has not as many clips as placeholders.
    """
    forest = _Forest(streams)
    placed = [question for visit in visits for question in forest.place(visit)]
    features, faults = _read(forest.clips, streams, pool or BufferPool(), readers or Readers(1))
    if on_bad:
        _report(faults, placed, on_bad)
    elif faults:
        raise faults[0].error
    _add_targets(forest.builder, placed, bad={fault.number for fault in faults})
    tensors = {id(values): torch.from_numpy(values) for values in features.values()}
    return forest.builder.build({name: tensors[id(values)] for name, values in features.items()})


class _Forest:
    """Grows the batch's pieces; within a visit an equal trunk is there once."""

    def __init__(self, streams: Sequence[StreamFeatures]) -> None:
        self.builder = BatchBuilder()
        self.clips: list[int] = []  # corpus number of each clip piece
        self._streams = streams

    def place(self, visit: Sequence[Asked]) -> list[_Placed]:
        trunks: dict[tuple[object, ...], _Trunk] = {}
        placed = []
        for asked in visit:
            rendered = asked.rendered
            if rendered.n_clips != len(asked.clips):
                raise ManifestError(
                    f"question {asked.id} has {rendered.n_clips} audio placeholders and "
                    f"{len(asked.clips)} clips: give it as many of one as of the other"
                )
            arrays = (*rendered.texts[:-1], *rendered.targets[:-1])
            key = (asked.clips, *(array.tobytes() for array in arrays))
            if key not in trunks:
                trunks[key] = self._add_trunk(asked)
            trunk = trunks[key]
            branch = self.builder.add_text(rendered.texts[-1], trunk.end)
            texts = [*trunk.texts, (branch, rendered.n_clips)]
            placed.append(_Placed(asked, texts, trunk.clips))
            self.builder.add_id(asked.id)
        return placed

    def _add_trunk(self, asked: Asked) -> _Trunk:
        trunk = _Trunk(-1, [], [])
        for number, clip in enumerate(asked.clips):
            ids = asked.rendered.texts[number]
            if len(ids):
                trunk.end = self.builder.add_text(ids, trunk.end)
                trunk.texts.append((trunk.end, number))
            frames = {stream.name: int(stream.n_frames[clip]) for stream in self._streams}
            trunk.end = self.builder.add_clip(frames, trunk.end)
            trunk.clips.append(len(self.clips))
            self.clips.append(clip)
        return trunk


def _read(
    clips: list[int], streams: Sequence[StreamFeatures], pool: BufferPool, readers: Readers
) -> tuple[dict[str, FloatBuffer], list[_Fault]]:
    """Every stream's frames of `clips`, end to end; what could not be read, in that order."""
    features: dict[str, FloatBuffer] = {}
    wanted = []
    for stream in streams:
        twin = next(other for other in streams if _same(stream, other, clips))
        if twin.name in features:
            features[stream.name] = features[twin.name]
            continue
        ends = np.cumsum([stream.n_frames[clip] for clip in clips], dtype=np.int64)
        values = pool.take(int(ends[-1]) if len(ends) else 0, stream.width)
        for number, clip in enumerate(clips):
            out = values[ends[number] - int(stream.n_frames[clip]) : ends[number]]
            wanted.append((stream, number, clip, out))
        features[stream.name] = values

    def read(place: int) -> _Fault | None:
        stream, number, clip, out = wanted[place]
        try:
            stream.read_into(clip, out)
        except StoreError as error:
            out[:] = 0
            return _Fault(number, stream.name, error)
        return None

    faults = [fault for fault in readers.map(read, len(wanted)) if fault is not None]
    wanted.clear()  # a thread may not have let go of it yet, and the pool counts who looks
    return features, faults


def _same(stream: StreamFeatures, other: StreamFeatures, clips: list[int]) -> bool:
    """Whether two streams hear the same frames of `clips`."""
    return stream.store is other.store and np.array_equal(
        stream.n_frames[clips], other.n_frames[clips]
    )


def _report(
    faults: list[_Fault], placed: list[_Placed], on_bad: Callable[[BadSample], None]
) -> None:
    for fault in faults:
        hit = [question for question in placed if fault.number in question.clips]
        clip = hit[0].asked.clips[hit[0].clips.index(fault.number)]
        questions = tuple(question.asked.id for question in hit)
        on_bad(BadSample(clip, fault.stream, questions, str(fault.error)))


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
