"""Recordings of the same bytes under several ids: of manifests, and in a feature store.

A store keeps the features of such recordings once, under the id that came first. The others are in
its `duplicates.jsonl`, which `FeatureStore.rows_of` follows; `assignment` writes it:

    shards.jsonl       {"shard": 0, "clips": ["audioset/a", "audioset/b"],
                        "contents": ["9b1f2a6c00d1e2f3", null]}
    duplicates.jsonl   {"clip": "audiocaps/1", "same_as": "audioset/a"}

What is the same is told by the manifests' field `content`; clips without it are never duplicates.
`same_as` lies in a shard, so that one step leads to the features; where its recording was rejected,
so are its duplicates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paltrain.errors import StoreError
from paltrain.files import write_atomically
from paltrain.log import get_logger

if TYPE_CHECKING:
    from paltrain.data.index import Corpus

log = get_logger(__name__)


def duplicates_path(folder: Path) -> Path:
    return folder / "duplicates.jsonl"


def read_duplicates(folder: Path) -> dict[str, str]:
    """By clip, the clip whose features in the store are its own, too; none where there is no list.

    Raises:
        StoreError: the list cannot be read.
    """
    file = duplicates_path(folder)
    try:
        entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return {entry["clip"]: entry["same_as"] for entry in entries}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{file} cannot be read ({error!r}): remove it and run "
            "tools/precompute_features.py again, which writes it from shards.jsonl"
        ) from error


def write_duplicates(folder: Path, duplicates: Mapping[str, str]) -> None:
    """The whole list; the caller holds the store's lock."""
    lines = [json.dumps({"clip": clip, "same_as": same_as}) for clip, same_as in duplicates.items()]
    write_atomically(duplicates_path(folder), "".join(line + "\n" for line in lines))


def by_stored_clip(numbers: Mapping[str, int], duplicates: Mapping[str, str]) -> dict[str, int]:
    """The corpus's numbers of clips by the ids that a store keeps their features under.

    Where the corpus has both, the number is that of the stored clip itself.
    """
    stored = {clip: number for clip, number in numbers.items() if clip not in duplicates}
    for clip, same_as in duplicates.items():
        if clip in numbers:
            stored.setdefault(same_as, numbers[clip])
    return stored


def warn_of_leaks(corpus: Corpus) -> None:
    """Warn where the same recording is in two splits: one manifest may train on another's test.

    Within one manifest the importers see to it. Costs a sort of (C,), with several manifests alone.
    """
    if len(corpus.manifests) == 1:
        return
    content, split = np.asarray(corpus.content), np.asarray(corpus.clip_split)
    clips = np.lexsort((split, content))
    here, there = clips[:-1], clips[1:]
    leaks = (content[here] == content[there]) & (split[here] != split[there]) & (content[here] > 0)
    if not leaks.any():
        return
    first = [
        (corpus.clip_id_array[n], corpus.splits[split[n]])
        for n in (here[leaks][0], there[leaks][0])
    ]
    log.warning(
        "%d recordings are in two splits at once, under different ids ('%s' of split '%s' is "
        "'%s' of split '%s', ...): scores on what was trained on mean nothing; take these clips "
        "out of one of the manifests %s",
        len(np.unique(content[here][leaks])),
        *first[0],
        *first[1],
        ", ".join(map(str, corpus.manifests)),
    )
