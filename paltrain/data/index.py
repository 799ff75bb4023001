"""The compiled index of manifests: what the trainer asks of millions of clips, memory-mapped.

JSON lines of 1.5 M clips take seconds and 1.3 GB to load, so each manifest is compiled once into
arrays beside it, under a name that is the hash of its text:

    manifest.jsonl
    manifest.jsonl.index/current.json        size, mtime and hash of the text it stands for
    manifest.jsonl.index/<hash>/meta.json    tasks, splits, datasets, questions with further clips
                               /*.npy        line offsets, clip ids, first questions, tasks, ...

An index is written beside and renamed, so processes may compile at the same time; it is made again
when the text changes. A `Corpus` numbers clips and questions over several manifests, in order.
Costs: opening is a few memory maps; a clip is one `pread` and one JSON line.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from paltrain.data.manifest import Clip, parse_clip, read_lines
from paltrain.errors import ManifestError
from paltrain.files import beside, write_atomically

FORMAT = 2
ARRAYS = (
    "line_offset",  # (C + 1,) int64, bytes
    "clip_id",  # (C,) utf-8 bytes
    "id_hash",  # (C,) uint64, xxh3 of the id
    "clip_split",  # (C,) int8, into meta's splits
    "clip_dataset",  # (C,) int16, into meta's datasets
    "content",  # (C,) uint64, the recording's content hash; 0: not recorded
    "has_audio",  # (C,) bool
    "duration_s",  # (C,) float32
    "first_question",  # (C + 1,) int64
    "question_task",  # (Q,) int16, into meta's tasks
)


@dataclass(frozen=True)
class ManifestIndex:
    """One manifest's arrays (see ARRAYS); meta: hash, tasks, splits, datasets, further_clips."""

    path: Path
    arrays: dict[str, NDArray[Any]]
    meta: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> ManifestIndex:
        """The index of the manifest as it is now, compiled if need be.

        Raises:
            ManifestError: the manifest is missing, malformed or names a clip twice.
        """
        path = Path(path)
        folder = path.with_name(path.name + ".index")
        content = _content_hash(path, folder)
        if not (folder / content / "meta.json").is_file():
            _compile(path, folder / content, content)
        meta = json.loads((folder / content / "meta.json").read_text(encoding="utf-8"))
        arrays = {name: np.load(folder / content / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        return cls(path, arrays, meta)


class Corpus:
    """Several manifests as one numbering of clips (0 .. C-1) and questions (0 .. Q-1).

    manifests: their paths. n_clips, n_questions. tasks, splits, datasets: names. clip_split (C,)
    into splits, clip_dataset (C,) into datasets; question_task (Q,) into tasks; has_audio (C,)
    bool; duration_s (C,) float32, seconds; content (C,) uint64, equal for recordings of the same
    bytes, 0 where the manifest does not say; first_question (C + 1,) int64: clip c has the
    questions first_question[c] .. [c + 1] - 1.
    """

    def __init__(self, indexes: Sequence[ManifestIndex]) -> None:
        self._indexes = list(indexes)
        self.manifests = [index.path for index in indexes]
        self._files = [os.open(index.path, os.O_RDONLY) for index in indexes]
        n_clips = [len(index.arrays["clip_id"]) for index in indexes]
        self._first_clip = np.concatenate([[0], np.cumsum(n_clips)]).astype(np.int64)
        self.n_clips = int(self._first_clip[-1])
        self.tasks = sorted({task for index in indexes for task in index.meta["tasks"]})
        self.splits = sorted({split for index in indexes for split in index.meta["splits"]})
        self.datasets = sorted({name for index in indexes for name in index.meta["datasets"]})
        self.question_task = self._renumbered("question_task", "tasks", self.tasks)
        self.clip_split = self._renumbered("clip_split", "splits", self.splits)
        self.clip_dataset = self._renumbered("clip_dataset", "datasets", self.datasets)
        self.n_questions = len(self.question_task)
        self.has_audio = self._joined("has_audio")
        self.duration_s = self._joined("duration_s")
        self.content = self._joined("content")
        self.first_question = self._first_questions()
        self._refuse_duplicates()

    @classmethod
    def open(cls, manifests: Sequence[str | Path]) -> Corpus:
        """Errors as `ManifestIndex.open`; a clip id that two manifests share is one too."""
        if not manifests:
            raise ManifestError("no manifest is named: data.manifests needs at least one")
        return cls([ManifestIndex.open(path) for path in manifests])

    def __del__(self) -> None:
        for file in getattr(self, "_files", []):
            os.close(file)

    @cached_property
    def fingerprint(self) -> str:
        """Names the texts of all manifests, in order."""
        hashes = "|".join(index.meta["hash"] for index in self._indexes)
        return xxhash.xxh3_64_hexdigest(f"{FORMAT}|{hashes}".encode())

    @cached_property
    def clip_id_array(self) -> NDArray[np.str_]:
        """(C,) the clips' ids."""
        return np.concatenate(
            [np.char.decode(index.arrays["clip_id"], "utf-8") for index in self._indexes]
        )

    @cached_property
    def extra_clips(self) -> dict[int, tuple[int, ...]]:
        """By question, the numbers of its further clips (`Question.clips`)."""
        wanted = [
            (int(self.first_question[first]) + int(question), ids)
            for first, index in zip(self._first_clip, self._indexes, strict=False)
            for question, ids in index.meta["further_clips"].items()
        ]
        if not wanted:
            return {}
        number_of = {clip_id: number for number, clip_id in enumerate(self.clip_id_array.tolist())}
        for question, ids in wanted:
            for clip_id in ids:
                if clip_id not in number_of:
                    raise ManifestError(
                        f"question {question} names the further clip '{clip_id}', which no "
                        "manifest of this run has: add its manifest"
                    )
        return {question: tuple(number_of[i] for i in ids) for question, ids in wanted}

    @cached_property
    def clip_manifest(self) -> NDArray[np.int16]:
        """(C,) the number of each clip's manifest in `manifests`."""
        return np.repeat(np.arange(len(self.manifests), dtype=np.int16), np.diff(self._first_clip))

    def clips_of(self, question: int) -> tuple[int, ...]:
        """The clips that a question hears, in placeholder order."""
        own = int(np.searchsorted(self.first_question, question, side="right")) - 1
        heard = (own,) if self.has_audio[own] else ()
        return heard + self.extra_clips.get(question, ())

    def clip(self, number: int) -> Clip:
        """A clip and its questions, read from the manifest's text."""
        which = int(np.searchsorted(self._first_clip, number, side="right")) - 1
        at = number - int(self._first_clip[which])
        offsets = self._indexes[which].arrays["line_offset"]
        start, stop = int(offsets[at]), int(offsets[at + 1])
        line = os.pread(self._files[which], stop - start, start)
        return parse_clip(line, f"{self.manifests[which]}: clip {at}")

    def audio_path(self, number: int) -> Path:
        """Where a clip's recording lies."""
        which = int(np.searchsorted(self._first_clip, number, side="right")) - 1
        audio = self.clip(number).audio
        if audio is None:
            raise ManifestError(f"clip {self.clip(number).id} has no recording: it is text alone")
        return self.manifests[which].parent / audio

    def _joined(self, name: str) -> NDArray[Any]:
        return np.concatenate([index.arrays[name] for index in self._indexes])

    def _renumbered(self, name: str, names: str, all_names: Sequence[str]) -> NDArray[np.int16]:
        """Codes into one manifest's names become codes into all names."""
        parts = []
        for index in self._indexes:
            codes = [list(all_names).index(each) for each in index.meta[names]]
            parts.append(np.array(codes, np.int16)[index.arrays[name]])
        return np.concatenate(parts)

    def _first_questions(self) -> NDArray[np.int64]:
        counts = [np.diff(index.arrays["first_question"]) for index in self._indexes]
        return np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)

    def _refuse_duplicates(self) -> None:
        if len(self._indexes) == 1:
            return
        hashes, counts = np.unique(self._joined("id_hash"), return_counts=True)
        if (counts > 1).any():
            twice = int(np.flatnonzero(self._joined("id_hash") == hashes[counts > 1][0])[1])
            raise ManifestError(
                f"clip id '{self.clip_id_array[twice]}' stands in more than one manifest of "
                f"{', '.join(map(str, self.manifests))}: an id names one clip"
            )


def _content_hash(path: Path, folder: Path) -> str:
    """Hash of the manifest's text; that of last time, where size and mtime are the same."""
    current = folder / "current.json"
    try:
        stat = os.stat(path)
        seen = {"format": FORMAT, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        if current.is_file():
            last: dict[str, Any] = json.loads(current.read_text(encoding="utf-8"))
            if {key: last.get(key) for key in seen} == seen:
                return str(last["hash"])
        with open(path, "rb") as file:
            digest = xxhash.xxh3_64(str(FORMAT).encode())
            while block := file.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise ManifestError(
            f"manifest {path} cannot be read: {error.strerror}; tools/prepare_data.py makes one"
        ) from error
    folder.mkdir(exist_ok=True)
    write_atomically(current, json.dumps({**seen, "hash": digest.hexdigest()}))
    return digest.hexdigest()


def _compile(path: Path, folder: Path, content: str) -> None:
    """Write the arrays of `path` to `folder`, beside and renamed; older indexes go."""
    columns: dict[str, list[Any]] = {name: [] for name in ARRAYS}
    columns["first_question"].append(0)
    tasks: dict[str, int] = {}
    splits: dict[str, int] = {}
    datasets: dict[str, int] = {}
    further: dict[int, tuple[str, ...]] = {}
    seen: set[str] = set()
    for offset, clip in read_lines(path):
        if clip.id in seen:
            raise ManifestError(f"{path}: clip id '{clip.id}' stands there twice: an id names one")
        seen.add(clip.id)
        columns["line_offset"].append(offset)
        columns["clip_id"].append(clip.id.encode())
        columns["id_hash"].append(xxhash.xxh3_64_intdigest(clip.id.encode()))
        columns["clip_split"].append(splits.setdefault(clip.split, len(splits)))
        columns["clip_dataset"].append(datasets.setdefault(clip.dataset, len(datasets)))
        columns["content"].append(int(clip.content, 16) if clip.content else 0)
        columns["has_audio"].append(clip.audio is not None)
        columns["duration_s"].append(clip.duration_s)
        for question in clip.questions:
            if question.clips:
                further[len(columns["question_task"])] = question.clips
            columns["question_task"].append(tasks.setdefault(question.task, len(tasks)))
        columns["first_question"].append(len(columns["question_task"]))
    if not seen:
        raise ManifestError(f"manifest {path} has no clip: tools/prepare_data.py makes one")
    columns["line_offset"].append(os.stat(path).st_size)
    meta = {
        "hash": content,
        "tasks": [*tasks],
        "splits": [*splits],
        "datasets": [*datasets],
        "further_clips": further,
    }
    _write(folder, _as_arrays(columns), meta)


def _as_arrays(columns: dict[str, list[Any]]) -> dict[str, NDArray[Any]]:
    dtypes = {
        "line_offset": np.int64,
        "clip_id": np.bytes_,
        "id_hash": np.uint64,
        "clip_split": np.int8,
        "clip_dataset": np.int16,
        "content": np.uint64,
        "has_audio": np.bool_,
        "duration_s": np.float32,
        "first_question": np.int64,
        "question_task": np.int16,
    }
    return {name: np.array(columns[name], dtypes[name]) for name in ARRAYS}


def _write(folder: Path, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> None:
    written = beside(folder)
    written.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(written / f"{name}.npy", array)
    (written / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    try:
        os.rename(written, folder)
    except OSError:  # another process was first with the same text
        shutil.rmtree(written)
        if not (folder / "meta.json").is_file():
            raise
