"""Recordings on disk: found by name, measured by their headers, and told apart by their bytes.

Cost: `AudioFolder` walks its folder once. `measure` opens every file and reads its header; with
contents it reads the whole file (AudioSet-2M as flac: some 700 GB, an hour at 200 MB/s), and with
decoding it decodes it, too. Without decoding, a recording that is cut off is noticed only when
features are computed, which set it aside. The same sound in two encodings is not noticed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol, TypeVar

import xxhash

from paltrain.data.importers.aside import MISSING, UNREADABLE
from paltrain.encoders.audio import is_silent, load_audio, probe
from paltrain.errors import AudioError, ManifestError

# The first is taken where a name has several. The last ones cannot be read, and are found so that
# the reason says so.
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".mp4", ".webm")
BLOCK_BYTES = 1 << 20
FILES_PER_CALL = 64
DECODED_RATE_HZ = 16_000
T = TypeVar("T")
Progress = Callable[[int, int], None]


class Map(Protocol):
    """What `map` does, over files."""

    def __call__(self, work: Callable[[Path], T], paths: Sequence[Path], /) -> Iterator[T]: ...


@dataclass(frozen=True, slots=True)
class Look:
    """How closely recordings are looked at. contents: at all bytes. decoded: at all samples."""

    contents: bool = True
    decoded: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """duration_s: as the header says, or of what was decoded. content: as in a manifest, None where
    nobody looked. is_silent: decoded, and without a sound."""

    duration_s: float
    content: str | None = None
    is_silent: bool = False


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


def is_utf8(text: str) -> bool:
    """Whether it is text, as manifests and libsndfile need it, and has no half characters."""
    return text.isascii() or text == text.encode("utf-8", "replace").decode()


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
    paths: Sequence[Path], look: Look, *, over_files: Map = map, progress: Progress | None = None
) -> list[Measured | Unusable]:
    """What is seen of every recording, in order."""
    measured = []
    for done, result in enumerate(over_files(partial(_measure, look), paths), 1):
        measured.append(result)
        if progress:
            progress(done, len(paths))
    return measured


def content_of(path: Path) -> str:
    """16 hex digits of the xxh3 of a file's bytes."""
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return str(digest.hexdigest())


def _measure(look: Look, path: Path) -> Measured | Unusable:
    try:
        if look.decoded:
            waveform = load_audio(path, sample_rate_hz=DECODED_RATE_HZ)
            measured = Measured(len(waveform) / DECODED_RATE_HZ, None, is_silent(waveform))
        else:
            measured = Measured(probe(path).duration_s)
        return replace(measured, content=content_of(path)) if look.contents else measured
    except (AudioError, OSError) as error:
        return Unusable(UNREADABLE if os.path.exists(path) else MISSING, str(error))


def _rank(suffix: str) -> int:
    return SUFFIXES.index(suffix.lower())
