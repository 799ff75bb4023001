"""Mends a feature store as far as it can be mended without its recordings; deletes no features.

    lost or wrong index          made again from the tar; its checksums then vouch for nothing older
    torn or damaged shard        moved to STORE/aside, with its index; a rerun makes it again
    left by a killed process     moved to STORE/aside
    merged index                 made again

What needs a person (a lost stamp, a shard that no assignment knows) stays as it is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paltrain.data.shard_tar import read_tar
from paltrain.data.shards import FeatureStore, merged_index_path, shard_index_path
from paltrain.data.verify import AGAIN, Cure, Finding, Progress, verify_store
from paltrain.errors import StoreError
from paltrain.files import beside, locked


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
        raise StoreError(
            f"{folder} cannot be repaired ({error}): make room there, or take write permission"
        ) from error
    return RepairReport([*deeds, _merge(folder)], left)


def _mend(folder: Path, finding: Finding) -> str:
    if finding.cure is Cure.INDEX:
        return _index_again(folder, finding.path)
    if finding.cure is Cure.MERGED_INDEX:
        return f"{finding.path.name} ({finding.fault}) is taken away"
    moved = [_move_aside(folder, finding.path)]
    if finding.path.suffix == ".tar" and not finding.path.name.startswith("."):
        index = shard_index_path(folder, _number(finding.path))
        if index.exists():
            moved.append(_move_aside(folder, index))
        return f"{' and '.join(moved)}: {finding.fault}; {AGAIN}"
    return f"{moved[0]}: {finding.fault}"


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


def _number(tar: Path) -> int:
    return int(tar.stem.removeprefix("shard-"))
