"""Mends a feature store as far as it can be mended without its recordings; deletes no features.

    lost or wrong index          made again from the tar; its checksums then vouch for nothing older
    torn or damaged shard        moved to STORE/aside, with its index; a rerun makes it again
    left by a killed process     moved to STORE/aside
    merged index                 made again
    lost or torn shards.jsonl    made again from its whole lines and the tars: clips that have no
                                 features get new places; contents that are not there are unknown

`retry_rejected` moves shards with rejected recordings aside, so that a rerun tries these again.

What needs a person (a lost stamp, a shard that no assignment knows) stays as it is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paltrain.data.assignment import write_shard_lines
from paltrain.data.rejected import drop_rejected, listed_clips
from paltrain.data.shard_tar import read_tar
from paltrain.data.shards import (
    FeatureStore,
    ShardLine,
    finished_shards,
    merged_index_path,
    parse_shard_line,
    read_assignment,
    read_stamp,
    shard_index_path,
    shard_path,
)
from paltrain.data.verify import AGAIN, Cure, Finding, Progress, verify_store
from paltrain.errors import StoreError
from paltrain.files import beside, locked
from paltrain.slices import number_ranges


@dataclass(frozen=True)
class RepairReport:
    """deeds: what was done, a line each. left: findings that need a person."""

    deeds: list[str]
    left: list[Finding]


def repair_store(folder: Path, *, progress: Progress | None = None) -> RepairReport:
    """Verify the store, and mend what can be mended.

    Raises:
        StoreError: there is no folder, or it cannot be written.
    """
    findings = verify_store(folder, progress=progress)
    todo = [finding for finding in findings if finding.cure is not Cure.NOTHING]
    left = [finding for finding in findings if finding.cure is Cure.NOTHING]
    if not todo:
        return RepairReport([], left)
    try:
        with locked(folder):
            deeds = [_mend(folder, finding) for finding in todo]
            merged_index_path(folder).unlink(missing_ok=True)
    except OSError as error:
        raise _not_written(folder, error) from error
    return RepairReport([*deeds, _merge(folder)], left)


def retry_rejected(folder: Path) -> str:
    """Move whole shards with rejected recordings aside, and drop these recordings' lines; says so.

    Raises:
        StoreError: there is no store, nothing says what its shards are for, or it cannot be
            written.
    """
    read_stamp(folder)
    try:
        with locked(folder):
            rejected = listed_clips(folder)
            finished = set(finished_shards(folder))
            numbers = [
                number
                for number, clips in enumerate(read_assignment(folder))
                if number in finished and not rejected.isdisjoint(clips)
            ]
            if numbers:
                merged_index_path(folder).unlink(missing_ok=True)
            for number in numbers:
                _shard_aside(folder, number)
            drop_rejected(folder, rejected)
    except OSError as error:
        raise _not_written(folder, error) from error
    if not rejected:
        return f"{folder}: no recording was rejected"
    moved = f"moved to {folder / 'aside'}: {number_ranges(numbers)}; " if numbers else ""
    return f"{len(rejected)} rejected recordings in {len(numbers)} shards, {moved}{AGAIN}"


def _mend(folder: Path, finding: Finding) -> str:
    if finding.cure is Cure.INDEX:
        return _index_again(folder, finding.path)
    if finding.cure is Cure.ASSIGNMENT:
        return _assignment_again(folder, finding.path)
    if finding.cure is Cure.MERGED_INDEX:
        return f"{finding.path.name} ({finding.fault}) is taken away"
    if finding.path.suffix == ".tar" and not finding.path.name.startswith("."):
        return f"{_shard_aside(folder, _number(finding.path))}: {finding.fault}; {AGAIN}"
    return f"{_move_aside(folder, finding.path)}: {finding.fault}"


def _shard_aside(folder: Path, number: int) -> str:
    moved = [_move_aside(folder, shard_path(folder, number))]
    index = shard_index_path(folder, number)
    if index.exists():
        moved.append(_move_aside(folder, index))
    return " and ".join(moved)


def _assignment_again(folder: Path, file: Path) -> str:
    """From the lines that are whole, and the tars for the others; what is there is kept aside."""
    whole = _whole_lines(file)
    numbers = finished_shards(folder)
    lines: list[ShardLine] = []
    for number in range(max([*numbers, *whole], default=-1) + 1):
        clips = read_tar(folder, number).clips if number in numbers else []
        lines.append(whole.get(number) or {"shard": number, "clips": clips})
    if file.exists():
        _move_aside(folder, file)
    write_shard_lines(folder, lines)
    return (
        f"{file.name} made again: {len(whole)} lines were whole, {len(lines) - len(whole)} are "
        f"from the shards; {AGAIN}, which gives every other clip a place"
    )


def _whole_lines(file: Path) -> dict[int, ShardLine]:
    """By shard, the lines of shards.jsonl that can be read."""
    whole: dict[int, ShardLine] = {}
    if file.exists():
        texts = file.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, text in enumerate(texts):
            try:
                line = parse_shard_line(text)
            except (ValueError, KeyError, TypeError):
                continue
            if line["shard"] == number:
                whole[number] = line
    return whole


def _index_again(folder: Path, tar: Path) -> str:
    """A shard's index from its tar; one that is there but wrong is kept aside."""
    number = _number(tar)
    contents = read_tar(folder, number)
    assert contents.fault is None, contents.fault
    path = shard_index_path(folder, number)
    if path.exists():
        _move_aside(folder, path)
    written = beside(path)
    with open(written, "wb") as file:
        np.save(file, contents.index)
    os.replace(written, path)
    return (
        f"{path.name} made again from the tar, {len(contents.clips)} clips; its checksums are of "
        "the frames as they are now: damage done before cannot be told from it"
    )


def _move_aside(folder: Path, path: Path) -> str:
    """`aside/NAME`, or the first `aside/NAME.1`, `.2`, ... that is not taken."""
    aside = folder / "aside"
    aside.mkdir(exist_ok=True)
    name, n = path.name.lstrip("."), 0
    while (to := aside / (f"{name}.{n}" if n else name)).exists():
        n += 1
    os.rename(path, to)
    return f"{path.name} moved to {to.relative_to(folder)}"


def _merge(folder: Path) -> str:
    try:
        n_clips = len(FeatureStore.open(folder))
    except (StoreError, KeyError, TypeError, ValueError) as error:
        return f"no merged index was made: {error}"
    return f"{merged_index_path(folder).name} made again: {n_clips} clips"


def _not_written(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{folder} cannot be repaired ({error}): make room there, or take write permission"
    )


def _number(tar: Path) -> int:
    return int(tar.stem.removeprefix("shard-"))
