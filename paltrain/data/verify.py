"""Is a feature store what was written? Everything that is not, in one list, each with its remedy.

1. the stamp, the assignment and the list of duplicates can be read, and agree
2. every tar is read from end to end: whole samples, of the clips that it was made for
3. every shard's index says what its tar says, and the frames have the checksums recorded there
4. the merged index says what the shards' indexes say
5. what a killed process left behind

Guarantees: the store is left as it is (but for `index.npy`, which every reader may make again); one
fault hides no other shard's. A shard that is to come is no finding; `require_whole` says so.
Costs: every byte is read once. No torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from paltrain.data.duplicates import duplicates_path, read_duplicates
from paltrain.data.frames import DTYPES
from paltrain.data.rejected import read_rejected
from paltrain.data.shard_index import NO_ARRAY, read_shard_index
from paltrain.data.shard_tar import Expected, TarContents, read_tar
from paltrain.data.shards import (
    COMPARED,
    COMPARED_OF_ENCODER,
    ENCODER_DEFAULTS,
    FeatureStore,
    assignment_path,
    finished_shards,
    merged_index_path,
    missing_shards,
    read_assignment,
    read_stamp,
    shard_index_path,
    shard_path,
)
from paltrain.errors import StoreError
from paltrain.slices import number_ranges

LEFT_BEHIND_S = 600.0  # a file beside the final one that was not written to for so long
HALF_WRITTEN = (  # names beside the final ones (`files.beside`)
    ".shard-*",
    *(f".{name}.*" for name in ("shards.jsonl", "duplicates.jsonl", "index.npy", "store.json")),
    ".rejected*.jsonl.*",
)
MOST_CLIPS = 3  # named in one finding
AGAIN = "run the command that made the store again"
SHARD_AGAIN = f"`repair` moves it aside; then {AGAIN}"
FROM_A_COPY = "restore it from a copy of the store"
ASSIGNMENT_AGAIN = f"{FROM_A_COPY}, or `repair` makes it again from the shards"
BY_HAND = f"move it and its index out of the store and {AGAIN}"

Progress = Callable[[int, int], None]  # shards read, of so many


class Cure(Enum):
    """What `repair` does about a finding."""

    NOTHING = 0
    INDEX = 1  # made again from the tar
    ASIDE = 2
    MERGED_INDEX = 3
    ASSIGNMENT = 4  # made again from the tars


@dataclass(frozen=True)
class Finding:
    """One fault. path: the file; for Cure.INDEX and Cure.ASIDE of a shard, its tar."""

    path: Path
    fault: str
    remedy: str
    cure: Cure = Cure.NOTHING

    def __str__(self) -> str:
        return f"{self.path.name}: {self.fault}; {self.remedy}"


def verify_store(folder: Path, *, progress: Progress | None = None) -> list[Finding]:
    """All faults of a store. Raises StoreError where there is no folder."""
    if not folder.is_dir():
        raise StoreError(f"there is no folder {folder}: name a feature store")
    findings, expected = _check_stamp(folder)
    numbers = finished_shards(folder)
    assignment = _check_assignment(folder, numbers, findings)
    findings += _check_duplicates(folder, assignment)
    lists = sorted(folder.glob("rejected*.jsonl"))
    rejected = {
        clip for file in lists for clip in _read_each(file, read_rejected, file, findings) or {}
    }
    for place, number in enumerate(numbers):
        contents = read_tar(folder, number, expected=expected)
        findings += _check_shard(folder, number, contents, assignment, rejected)
        if progress:
            progress(place + 1, len(numbers))
    if not any(finding.cure is Cure.INDEX for finding in findings):
        findings += _check_merged(folder, numbers)
    return findings + list(_left_behind(folder))


def _read_each(
    file: Path, read: Callable[[Path], Any], argument: Path, findings: list[Finding]
) -> Any:
    """What `read(argument)` says; None, and a finding, where `file` cannot be read."""
    try:
        return read(argument)
    except (OSError, ValueError, KeyError, TypeError) as error:
        findings.append(Finding(file, f"cannot be read ({error!r})", FROM_A_COPY))
        return None


def _check_assignment(
    folder: Path, numbers: Sequence[int], findings: list[Finding]
) -> Sequence[Sequence[str]] | None:
    """The clips of every shard; None where nobody knows."""
    file, fault = assignment_path(folder), "missing: nothing says what each shard is for"
    try:
        assignment = read_assignment(folder)
    except StoreError as error:
        fault = f"cannot be read ({error.__cause__!r})"
        if isinstance(error.__cause__, OSError):
            findings.append(Finding(file, fault, FROM_A_COPY))
            return None
    else:
        if assignment or not numbers:
            return assignment
    findings.append(Finding(file, fault, ASSIGNMENT_AGAIN, Cure.ASSIGNMENT))
    return None


def _check_duplicates(
    folder: Path, assignment: Sequence[Sequence[str]] | None
) -> Iterator[Finding]:
    """Every duplicate is of a clip that some shard is for."""
    file, remedy = duplicates_path(folder), f"remove those lines and {AGAIN}"
    try:
        duplicates = read_duplicates(folder)
    except StoreError as error:
        yield Finding(file, f"cannot be read ({error.__cause__!r})", f"remove it and {AGAIN}")
        return
    if assignment is not None:
        assigned = {clip for clips in assignment for clip in clips}
        strays = [clip for clip, same_as in duplicates.items() if same_as not in assigned]
        if strays:
            yield Finding(file, f"names for {_named(strays)} a clip that no shard is for", remedy)


def _check_stamp(folder: Path) -> tuple[list[Finding], Expected]:
    """Faults of `store.json`, and what it says of the frames."""
    file = folder / "store.json"
    remedy = f"restore it, or move it away and {AGAIN}, which writes it"
    try:
        stamp = read_stamp(folder)
    except StoreError as error:
        fault = f"cannot be read ({error.__cause__})" if file.exists() else "missing"
        return [Finding(file, fault, remedy)], Expected()
    if not isinstance(stamp, dict) or not isinstance(stamp.get("encoder"), dict):
        return [Finding(file, "no stamp: it names no encoder", remedy)], Expected()
    lacking = [key for key in COMPARED if key not in stamp]
    encoder = {**ENCODER_DEFAULTS, **stamp["encoder"]}
    lacking += [f"encoder.{key}" for key in COMPARED_OF_ENCODER if key not in encoder]
    findings = [Finding(file, f"says no {', '.join(lacking)}", remedy)] if lacking else []
    dtype = stamp.get("dtype")
    if "dtype" in stamp and dtype not in DTYPES:
        findings.append(Finding(file, f"dtype is {dtype!r}, not {' or '.join(DTYPES)}", remedy))
    for key in ("width", "frame_rate_hz"):
        value = stamp.get(key, 1)
        if not isinstance(value, int | float) or value <= 0:
            findings.append(Finding(file, f"{key} is {value!r}: it must be positive", remedy))
    width = stamp.get("width")
    return findings, Expected(
        width if isinstance(width, int) and width > 0 else None, dtype if dtype in DTYPES else None
    )


def _check_shard(
    folder: Path,
    number: int,
    contents: TarContents,
    assignment: Sequence[Sequence[str]] | None,
    rejected: set[str],
) -> list[Finding]:
    tar = shard_path(folder, number)
    if contents.fault:
        return [Finding(tar, contents.fault, SHARD_AGAIN, Cure.ASIDE)]
    findings = []
    if assignment is not None and number >= len(assignment):
        findings.append(
            Finding(tar, "no line of shards.jsonl is for it", f"restore that, or {BY_HAND}")
        )
    elif assignment is not None:
        if strange := _out_of_place(contents.clips, assignment[number]):
            fault = f"{_named(strange)} stands where shards.jsonl has another"
            return [Finding(tar, fault, SHARD_AGAIN, Cure.ASIDE)]
        there = rejected.union(contents.clips)
        if lost := [clip for clip in assignment[number] if clip not in there]:
            fault = f"{_named(lost)} not there, nor in rejected.jsonl"
            findings.append(Finding(tar, fault, BY_HAND))
    return findings + _check_index(folder, number, contents)


def _out_of_place(clips: Sequence[str], assigned: Sequence[str]) -> list[str]:
    """The first clip that breaks the order of the assignment, of which clips may be left out."""
    following = iter(assigned)
    return next(([clip] for clip in clips if clip not in following), [])


def _check_index(folder: Path, number: int, contents: TarContents) -> list[Finding]:
    tar, path = shard_path(folder, number), shard_index_path(folder, number)
    index, fault = load_index(path)
    if index is not None:
        located = ["id_hash", "offset", "n_frames", "shard"]
        if not np.array_equal(index[located], contents.index[located]):
            fault = f"{path.name} says otherwise than the tar"
        else:
            flipped = np.flatnonzero(index["checksum"] != contents.index["checksum"])
            if not len(flipped):
                return []
            names = _named([contents.clips[row] for row in flipped])
            fault = f"the frames of {names} are not those that were written (checksum)"
            return [Finding(tar, fault, SHARD_AGAIN, Cure.ASIDE)]
    return [Finding(tar, str(fault), "`repair` makes its index from the tar", Cure.INDEX)]


def load_index(path: Path) -> tuple[NDArray[Any] | None, str | None]:
    """A shard's index, or why there is none."""
    try:
        return read_shard_index(path), None
    except FileNotFoundError:
        return None, f"it has lost its index ({path.name})"
    except (OSError, *NO_ARRAY) as error:
        return None, f"{path.name} cannot be read ({error})"


def _check_merged(folder: Path, numbers: Sequence[int]) -> list[Finding]:
    """A merged index of other shards is made again by whoever reads; one of other rows is not."""
    indexes = [load_index(shard_index_path(folder, number))[0] for number in numbers]
    whole = [index for index in indexes if index is not None]
    if not whole or len(whole) < len(indexes):
        return []
    try:
        store = FeatureStore.open(folder)
    except (StoreError, KeyError, TypeError, ValueError):  # the stamp; there is a finding of it
        return []
    if store.index_hash == xxhash.xxh3_64_hexdigest(np.concatenate(whole).tobytes()):
        return []
    return [
        Finding(
            merged_index_path(folder),
            "says otherwise than the shards' indexes",
            "`repair` makes it again",
            Cure.MERGED_INDEX,
        )
    ]


def _left_behind(folder: Path) -> Iterator[Finding]:
    """Half-written files, and indexes without a tar; young ones may be under way."""
    lonely = [
        path
        for path in folder.glob("shard-*.index.npy")
        if not path.with_name(path.name.replace(".index.npy", ".tar")).exists()
    ]
    half = [path for pattern in HALF_WRITTEN for path in folder.glob(pattern)]
    for path in sorted([*lonely, *half]):
        try:
            age_s = time.time() - path.stat().st_mtime
        except FileNotFoundError:  # a process that is at work has just renamed it
            continue
        if age_s > LEFT_BEHIND_S:
            what = "half-written" if path.name.startswith(".") else "an index without its tar"
            remedy = "`repair` moves it aside"
            yield Finding(path, f"{what}, left by a process that was killed", remedy, Cure.ASIDE)


def _named(clips: Sequence[str]) -> str:
    names = ", ".join(f"'{clip}'" for clip in clips[:MOST_CLIPS])
    more = f" and {len(clips) - MOST_CLIPS} more" if len(clips) > MOST_CLIPS else ""
    return f"clip{'s' if len(clips) > 1 else ''} {names}{more}"


def require_whole(folder: Path, findings: Sequence[Finding]) -> str:
    """That a verified store is whole, as a message.

    Raises:
        StoreError: all findings, and the shards that are recorded and not there.
    """
    there = finished_shards(folder)
    try:
        missing = missing_shards(folder)
    except StoreError:  # there is a finding of it
        missing = []
    remedy = f"not there: {number_ranges(missing)}: {AGAIN}"
    if findings:
        lacking = f"\n  shards {remedy}" if missing else ""
        raise StoreError(report_of(folder, findings) + lacking)
    if missing:
        raise StoreError(
            f"{folder}: {len(there)} of {len(there) + len(missing)} shards are there and are what "
            f"was written; {remedy}"
        )
    return f"{folder}: {len(there)} shards are what was written"


def report_of(folder: Path, findings: Sequence[Finding]) -> str:
    """All findings as one message."""
    n = len(findings)
    lines = "".join(f"\n  {finding}" for finding in findings)
    return f"{n} fault{'s' if n > 1 else ''} in {folder}:{lines}"
