"""The lists of recordings that could not be read, in a feature store: one JSON line each, with why.

    rejected.jsonl              {"clip": ..., "audio": ..., "reason": ...}
    rejected.003-of-064.jsonl   what slice 3 of 64 met, until a merge joins it into the whole list

A list is replaced as a whole, so no kill leaves half a line. A recording that gets features after
all loses its line.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from paltrain.data.duplicates import read_duplicates
from paltrain.files import locked, write_atomically
from paltrain.slices import EVERYTHING, Slice


def rejected_path(folder: Path, slice_of: Slice) -> Path:
    """Where a slice lists what it could not read; everything's is the whole list."""
    number, n_slices = slice_of
    part = "" if slice_of == EVERYTHING else f".{number:03d}-of-{n_slices:03d}"
    return folder / f"rejected{part}.jsonl"


def read_rejected(file: Path) -> dict[str, str]:
    """The whole lines of a list by clip; none where there is no list."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:  # or joined just now
        return {}
    return {json.loads(line)["clip"]: line for line in lines}


def listed_clips(folder: Path) -> set[str]:
    """The clips of every list in a store."""
    return {clip for file in folder.glob("rejected*.jsonl") for clip in read_rejected(file)}


def rejected_clips(folder: Path) -> set[str]:
    """The clips of every list in a store, and those of the same recordings (`duplicates`)."""
    listed = listed_clips(folder)
    duplicates = read_duplicates(folder).items()
    return listed | {clip for clip, same_as in duplicates if same_as in listed}


def note_rejected(file: Path, lines: Mapping[str, str], *, readable: Collection[str]) -> None:
    """Add lines, by clip, to a list, and drop those of clips in `readable` from every list.

    Other processes may do so as well; each clip is listed once. Where there is nothing to do no
    lock is taken, and a list without lines goes.
    """
    if not lines and not any(_listed(file.parent, readable)):
        return
    with locked(file.parent):
        drop_rejected(file.parent, readable)
        if lines:
            _write(file, [*(read_rejected(file) | dict(lines)).values()])


def drop_rejected(folder: Path, clips: Collection[str]) -> None:
    """Drop the lines of clips from every list; the caller holds the store's lock."""
    for file, lines in _listed(folder, clips):
        _write(file, [line for clip, line in lines.items() if clip not in clips])


def _listed(folder: Path, clips: Collection[str]) -> Iterator[tuple[Path, dict[str, str]]]:
    """The lists that have any of the clips."""
    for file in sorted(folder.glob("rejected*.jsonl")):
        lines = read_rejected(file)
        if not lines.keys().isdisjoint(clips):
            yield file, lines


def join_rejected(folder: Path, shards: Sequence[Sequence[str]]) -> dict[str, str]:
    """Join all slices' lists into the whole one, in the order of the shards, each clip once."""
    whole = rejected_path(folder, EVERYTHING)
    with locked(folder):
        parts = sorted(folder.glob("rejected.*-of-*.jsonl"))
        lines = {
            clip: line for path in [*parts, whole] for clip, line in read_rejected(path).items()
        }
        if parts:
            place = {clip: at for at, clip in enumerate(chain.from_iterable(shards))}
            ordered = sorted(lines, key=lambda clip: place.get(clip, len(place)))
            _write(whole, [lines[clip] for clip in ordered])
            for part in parts:
                part.unlink()
    return lines


def _write(file: Path, lines: Sequence[str]) -> None:
    """Bytes of a file's name that are no UTF-8 become escapes, as JSON has them."""
    if not lines:
        file.unlink(missing_ok=True)
        return
    text = "".join(line + "\n" for line in lines)
    write_atomically(file, text.encode("utf-8", "backslashreplace").decode())
