"""How much of a corpus a feature store has, and the room that the rest will take. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paltrain.data.duplicates import read_duplicates
from paltrain.data.frames import dtype_of, frame_bytes
from paltrain.data.index import Corpus
from paltrain.data.rejected import rejected_clips
from paltrain.data.shards import finished_shards, read_assignment

TAR_BYTES_PER_CLIP = 2560  # headers and padding of a sample's two members, and the array's header


@dataclass(frozen=True)
class Coverage:
    """Recordings of a corpus in a store. A clip is done when its shard is whole.

    missing: (n,) numbers of the clips to come. missing_s: seconds of audio in them.
    """

    n_clips: int
    n_rejected: int
    missing: NDArray[np.int64]
    missing_s: float

    @property
    def n_missing(self) -> int:
        return len(self.missing)

    def n_bytes_to_come(self, stamp: Mapping[str, Any]) -> int:
        """What the missing clips' features will take, trimmed to the clips' durations."""
        per_second = float(stamp["frame_rate_hz"]) * frame_bytes(
            int(stamp["width"]), dtype_of(stamp)
        )
        return round(self.missing_s * per_second) + self.n_missing * TAR_BYTES_PER_CLIP


def coverage(corpus: Corpus, folder: Path) -> Coverage:
    """Of the store in `folder`, which need not be there yet."""
    finished = set(finished_shards(folder)) if folder.is_dir() else set()
    shards = read_assignment(folder)
    done = {clip for number, clips in enumerate(shards) if number in finished for clip in clips}
    done |= {clip for clip, same_as in read_duplicates(folder).items() if same_as in done}
    has_audio = np.flatnonzero(np.asarray(corpus.has_audio))
    ids = corpus.clip_id_array[has_audio].tolist()
    is_missing = np.array([clip not in done for clip in ids], bool)
    rejected = rejected_clips(folder)
    missing = has_audio[is_missing]
    return Coverage(
        n_clips=len(ids),
        n_rejected=sum(clip in rejected for clip in ids),
        missing=missing,
        missing_s=float(np.asarray(corpus.duration_s, np.float64)[missing].sum()),
    )
