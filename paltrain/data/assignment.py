"""Which clip lies in which shard of a feature store, and which slice makes each shard.

It is recorded before anything is encoded (`shards.jsonl`) and depends on the manifests alone, never
on how many workers make the shards. Clips that come later get new shards, so what is there is never
rewritten. Of recordings with the same bytes one gets a place (see `duplicates`). Shard k is made by
slice k modulo n:

    shard      0  1  2  3  4  5  6
    slice/3    0  1  2  0  1  2  0

Cost: linear in the clips, those recorded and those asked for.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from paltrain.data.duplicates import by_stored_clip, read_duplicates, write_duplicates
from paltrain.data.index import Corpus
from paltrain.data.shards import ShardLine, assignment_path, finished_shards, read_shard_lines
from paltrain.errors import StoreError
from paltrain.files import locked, write_atomically
from paltrain.log import get_logger
from paltrain.slices import Slice, number_ranges

log = get_logger(__name__)

Contents = Mapping[str, str | None]  # by clip id, in order: the recording's content, if it is known
Seconds = Mapping[str, float]  # by clip id: what its recording lasts, where that is known

SHARD_AUDIO_S = 4 * 3600.0  # a shard is decoded and encoded in memory: 0.9 GB at 16 kHz


@dataclass
class Assignment:
    """What a store records of its clips, and what some clips add to that.

    lines: of shards.jsonl. duplicates: by clip, the clip that it is stored as. changed: clips
    recorded with another content. is_new: whether anything is added.
    """

    lines: list[ShardLine]
    duplicates: dict[str, str]
    changed: list[str] = field(default_factory=list)
    is_new: bool = False

    @property
    def shards(self) -> list[list[str]]:
        """The clip ids of every shard."""
        return [line["clips"] for line in self.lines]

    def add(self, clips: Contents, *, clips_per_shard: int, seconds: Seconds) -> None:
        """A place, or a stored clip of the same content, for each clip that has neither."""
        recorded = {
            clip: content
            for line in self.lines
            for clip, content in zip(line["clips"], _contents_of(line), strict=True)
        }
        stored_as = {content: clip for clip, content in recorded.items() if content}
        new = []
        for clip, content in clips.items():
            stored = self.duplicates.get(clip, clip)
            if stored in recorded:
                if content and recorded[stored] not in (None, content):
                    self.changed.append(clip)
            elif content and stored_as.setdefault(content, clip) != clip:
                self.duplicates[clip] = stored_as[content]
                self.is_new = True
            else:
                self.duplicates.pop(clip, None)  # of a clip that no shard is for
                new.append(clip)
        for shard in _cut(new, clips_per_shard, seconds):
            self._add_shard({clip: clips[clip] for clip in shard})

    def _add_shard(self, clips: Contents) -> None:
        line: ShardLine = {"shard": len(self.lines), "clips": list(clips)}
        if any(clips.values()):
            line["contents"] = list(clips.values())
        self.lines.append(line)
        self.is_new = True


def assignment_of(folder: Path, corpus: Corpus, *, clips_per_shard: int) -> Assignment:
    """What the store records, and what the corpus would add; nothing is written."""
    clips, seconds = _contents(corpus), _seconds(corpus)
    return _extended(folder, clips, clips_per_shard=clips_per_shard, seconds=seconds)


def assign_corpus(
    folder: Path, corpus: Corpus, *, clips_per_shard: int
) -> tuple[list[list[str]], dict[str, int]]:
    """The clip ids of every shard, recorded and new ones for clips that have none yet; and the
    corpus's recordings by the ids that they are stored under, each with the number of its clip.

    Commands with different manifests may call it at the same time: each adds to what is there.

    Raises:
        StoreError: shards are there, but what they are for is not recorded, or cannot be read.
    """
    clips, seconds = _contents(corpus), _seconds(corpus)
    shards = assign_shards(folder, clips, clips_per_shard=clips_per_shard, seconds=seconds)
    return shards, by_stored_clip(clips_with_audio(corpus), read_duplicates(folder))


def assign_shards(
    folder: Path,
    clips: Sequence[str] | Contents,
    *,
    clips_per_shard: int,
    seconds: Seconds | None = None,
) -> list[list[str]]:
    """The same of clips by their ids. Of those with the same content one gets a place, the others a
    line in duplicates.jsonl. A shard holds `clips_per_shard` of them, or SHARD_AUDIO_S of audio."""
    contents = clips if isinstance(clips, Mapping) else dict.fromkeys(clips)
    extended = partial(
        _extended, folder, contents, clips_per_shard=clips_per_shard, seconds=seconds or {}
    )
    assignment = extended()
    if assignment.is_new:
        with locked(folder):
            assignment = extended()
            if assignment.is_new:
                _write(folder, assignment)
    _warn_of_changed(folder, assignment.changed)
    return assignment.shards


def clips_with_audio(corpus: Corpus) -> dict[str, int]:
    """The clips of the corpus that have a recording: their numbers by id, in order."""
    has_audio = np.flatnonzero(corpus.has_audio)
    return dict(zip(corpus.clip_id_array[has_audio].tolist(), has_audio.tolist(), strict=True))


def shards_of_slice(
    shards: Sequence[Sequence[str]], ours: Container[str], slice_of: Slice
) -> list[int]:
    """Numbers of the slice's shards that are for any of our clips."""
    which, n_slices = slice_of
    return [
        number
        for number in range(which, len(shards), n_slices)
        if any(clip_id in ours for clip_id in shards[number])
    ]


def unfinished(
    folder: Path, shards: Sequence[Sequence[str]], ours: Container[str], wanted: Sequence[int]
) -> tuple[list[int], dict[int, str]]:
    """Which of the shards `wanted` are not whole yet.

    First those to be made, which are for clips of ours alone; then those that wait for other
    manifests, by number, each with a clip of these.
    """
    finished = set(finished_shards(folder))
    todo, waiting = [], {}
    for number in wanted:
        if number in finished:
            continue
        other = next((clip_id for clip_id in shards[number] if clip_id not in ours), None)
        if other is None:
            todo.append(number)
        else:
            waiting[number] = other
    return todo, waiting


def waiting_note(waiting: Mapping[int, str]) -> str:
    """Why shards wait, by number with a clip of other manifests, and what to do; "" for none."""
    if not waiting:
        return ""
    which = f"shard{'s' if len(waiting) > 1 else ''} {number_ranges(sorted(waiting))}"
    return (
        f"{which} {'are' if len(waiting) > 1 else 'is'} for clips of other manifests, too "
        f"('{waiting[min(waiting)]}', ...): name those manifests as well"
    )


def _extended(
    folder: Path, clips: Contents, *, clips_per_shard: int, seconds: Seconds
) -> Assignment:
    lines = read_shard_lines(folder)
    if not lines and (shards := finished_shards(folder)):
        raise StoreError(
            f"{folder} has {len(shards)} shards, but no {assignment_path(folder).name} says which "
            f"clips they are for: `tools/precompute_features.py repair {folder}` makes it again "
            "from them"
        )
    assignment = Assignment(lines, read_duplicates(folder))
    assignment.add(clips, clips_per_shard=clips_per_shard, seconds=seconds)
    return assignment


def _cut(clips: Sequence[str], clips_per_shard: int, seconds: Seconds) -> Iterator[list[str]]:
    """Runs of at most `clips_per_shard` clips and SHARD_AUDIO_S; a longer recording is alone."""
    shard: list[str] = []
    total_s = 0.0
    for clip in clips:
        lasts = seconds.get(clip, 0.0)
        if shard and (len(shard) == clips_per_shard or total_s + lasts > SHARD_AUDIO_S):
            yield shard
            shard, total_s = [], 0.0
        shard.append(clip)
        total_s += lasts
    if shard:
        yield shard


def _seconds(corpus: Corpus) -> dict[str, float]:
    lasts = np.asarray(corpus.duration_s)[np.asarray(corpus.has_audio)].tolist()
    return dict(zip(clips_with_audio(corpus), lasts, strict=True))


def _contents(corpus: Corpus) -> dict[str, str | None]:
    """The corpus's recordings, contents as in a manifest's text."""
    contents = np.asarray(corpus.content)[np.asarray(corpus.has_audio)].tolist()
    known = [f"{content:016x}" if content else None for content in contents]
    return dict(zip(clips_with_audio(corpus), known, strict=True))


def _contents_of(line: ShardLine) -> Sequence[str | None]:
    return line.get("contents") or [None] * len(line["clips"])


def write_shard_lines(folder: Path, lines: Sequence[ShardLine]) -> None:
    """All of shards.jsonl; the caller holds the store's lock."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomically(assignment_path(folder), text)


def _write(folder: Path, assignment: Assignment) -> None:
    """A kill in between leaves clips without a place that the next call finds to be duplicates."""
    write_shard_lines(folder, assignment.lines)
    if assignment.duplicates != read_duplicates(folder):
        write_duplicates(folder, assignment.duplicates)


def _warn_of_changed(folder: Path, clips: Sequence[str]) -> None:
    if clips:
        log.warning(
            "the recordings of %d clips are others than when %s was given them (%s, ...), and keep "
            "the features of the old ones: give them other ids, or name another store",
            len(clips),
            folder,
            clips[0],
        )
