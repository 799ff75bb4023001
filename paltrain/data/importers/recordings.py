"""Recordings on disk: found by name, measured by their headers, and told apart by their bytes.

Cost: `AudioFolder` walks its folder once. `measure` opens every file and reads its header, so a
recording that is cut off is noticed only when features are computed, which set it aside.
`same_bytes` reads nothing of a file whose size is its own, 64 KiB of one that shares its size, and
the whole of one that shares these as well: duplicates, in practice. The same sound in two encodings
is not noticed.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol, TypeVar

import xxhash

from paltrain.data.importers.aside import MISSING, UNREADABLE
from paltrain.encoders.audio import probe
from paltrain.errors import AudioError, ManifestError

# The first is taken where a name has several. The last ones cannot be read, and are found so that
# the reason says so.
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".mp4", ".webm")
BLOCK_BYTES = 1 << 16
FILES_PER_CALL = 64
T = TypeVar("T")
Progress = Callable[[int, int], None]


class Map(Protocol):
    """What `map` does, over files."""

    def __call__(self, work: Callable[[Path], T], paths: Sequence[Path], /) -> Iterator[T]: ...


@dataclass(frozen=True, slots=True)
class Measured:
    """duration_s: as the header says. n_bytes: of the file."""

    duration_s: float
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Unusable:
    """kind: as in `aside`."""

    kind: str
    reason: str


class AudioFolder:
    """The recordings below a folder, by name without suffix."""

    def __init__(self, folder: Path, *, option: str = "--audio-dir") -> None:
        """Raises ManifestError where there is no such folder. option: that named it."""
        if not folder.is_dir():
            raise ManifestError(f"{option} {folder} is no folder: name where the recordings lie")
        self.folder = folder

    def find(self, *names: str) -> list[Path]:
        """Recordings of the first of `names` that has any; one for each folder it lies in."""
        for name in names:
            if name in self._by_stem:
                return [self.folder / path for path in self._by_stem[name]]
        return []

    @cached_property
    def _by_stem(self) -> Mapping[str, Sequence[str]]:
        found: dict[str, dict[str, str]] = {}
        for path in audio_below(self.folder):
            stem, suffix = os.path.splitext(os.path.basename(path))
            in_folders = found.setdefault(stem, {})
            before = in_folders.get(os.path.dirname(path))
            if before is None or _rank(suffix) < _rank(os.path.splitext(before)[1]):
                in_folders[os.path.dirname(path)] = path
        return {stem: sorted(paths.values()) for stem, paths in found.items()}


def audio_below(folder: Path) -> Iterator[str]:
    """Recordings below a folder, relative to it, in the order of their names."""
    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            if os.path.splitext(file)[1].lower() in SUFFIXES and not file.startswith("."):
                yield os.path.relpath(os.path.join(here, file), folder)


@contextmanager
def in_processes(workers: int) -> Iterator[Map]:
    """A `map` over files that works in so many processes; they start with the first long list."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:

        def over_files(work: Callable[[Path], T], paths: Sequence[Path]) -> Iterator[T]:
            if len(paths) <= FILES_PER_CALL:
                return map(work, paths)
            return pool.map(work, paths, chunksize=FILES_PER_CALL)

        yield over_files


def measure(
    paths: Sequence[Path], *, over_files: Map = map, progress: Progress | None = None
) -> list[Measured | Unusable]:
    """What every recording's header says, in order."""
    measured = []
    for done, result in enumerate(over_files(_measure, paths), 1):
        measured.append(result)
        if progress:
            progress(done, len(paths))
    return measured


def same_bytes(sizes: Mapping[Path, int], *, over_files: Map = map) -> list[list[Path]]:
    """Groups of two and more files with the same content, in the order of `sizes`."""
    groups = _grouped((n_bytes, path) for path, n_bytes in sizes.items())
    for digest in (_block_digest, _digest):
        paths = [path for group in groups for path in group]
        keys = dict(zip(paths, over_files(digest, paths), strict=True))
        groups = [
            part
            for group in groups
            for part in _grouped((keys[path], path) for path in group if keys[path])
        ]
    return groups


def _measure(path: Path) -> Measured | Unusable:
    try:
        return Measured(probe(path).duration_s, path.stat().st_size)
    except AudioError as error:
        return Unusable(UNREADABLE if path.is_file() else MISSING, str(error))


def _block_digest(path: Path) -> str:
    return _digest(path, whole=False)


def _digest(path: Path, *, whole: bool = True) -> str:
    """Of the content, or of a block in its middle; empty where it cannot be read."""
    digest = xxhash.xxh3_128()
    try:
        with open(path, "rb") as file:
            if not whole:
                file.seek(max(0, path.stat().st_size - BLOCK_BYTES) // 2)
                return str(xxhash.xxh3_128_hexdigest(file.read(BLOCK_BYTES)))
            while block := file.read(BLOCK_BYTES * 16):
                digest.update(block)
    except OSError:
        return ""
    return str(digest.hexdigest())


def _grouped(pairs: Iterable[tuple[object, Path]]) -> list[list[Path]]:
    """The paths that share their key with another."""
    groups: dict[object, list[Path]] = defaultdict(list)
    for key, path in pairs:
        groups[key].append(path)
    return [group for group in groups.values() if len(group) > 1]


def _rank(suffix: str) -> int:
    return SUFFIXES.index(suffix.lower())
