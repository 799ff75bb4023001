"""How far features are: what each encoder's store has and lacks, and the room for the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.preflight.tools import check_claim
from cluster.preflight.weights import encoder_stamp
from paltrain.config.schema import FeaturesConfig
from paltrain.data.coverage import coverage
from paltrain.data.index import Corpus
from paltrain.data.shards import read_stamp
from paltrain.disk import room_at
from paltrain.encoders.facts import frames_in_words
from paltrain.errors import PaltrainError, StoreError

GB = 1e9


def check_encoders(config: FeaturesConfig) -> None:
    """Raises StoreError where a store is another encoder's, as far as files say without torch."""
    for name, store in config.stores().items():
        _check_encoder(config, name, Path(store))


def status_lines(config: FeaturesConfig) -> Iterator[str]:
    """A line for each encoder, and one for the disk."""
    corpus = Corpus.open(config.manifests)
    to_come = 0
    for name, store in config.stores().items():
        seen = coverage(corpus, Path(store))
        try:
            stamp = _stamp(config, name, Path(store))
            n_bytes = seen.n_bytes_to_come(stamp)
            to_come += n_bytes
            needed = f"{n_bytes / GB:.3g} GB to come ({stamp['dtype']}, {frames_in_words(stamp)})"
        except StoreError as error:
            needed = f"NOT OF THIS ENCODER: {error}"
        except PaltrainError as error:
            needed = f"size unknown: {error}"
        yield (
            f"{name}: {seen.n_clips - seen.n_missing} of {seen.n_clips} recordings done, "
            f"{seen.n_missing} missing ({seen.missing_s / 3600:.3g} h), {seen.n_rejected} set "
            f"aside; {needed} -> {store}"
        )
    yield _room(Path(config.folder), to_come)


def _stamp(config: FeaturesConfig, name: str, store: Path) -> dict[str, Any]:
    """The store's, which must be the encoder's; the encoder's, if there is none."""
    if not (store / "store.json").is_file():
        return encoder_stamp(config.encoders[name], environment=os.environ)
    _check_encoder(config, name, store)
    return read_stamp(store)


def _check_encoder(config: FeaturesConfig, name: str, store: Path) -> None:
    try:
        stamp = encoder_stamp(config.encoders[name], environment=os.environ)
    except PaltrainError:  # its weights are not here, and nothing can be compared
        return
    check_claim(store, stamp)


def _room(folder: Path, to_come: int) -> str:
    room = room_at(folder)
    quota = (
        "quota unknown (neither `lfs quota` nor `quota` tells)"
        if room.n_bytes_of_quota is None
        else f"{room.n_bytes_of_quota / GB:.3g} GB left of the quota"
    )
    short = ": NO ROOM" if to_come > room.n_bytes else ""
    return f"{to_come / GB:.3g} GB to come; {room.n_bytes_free / GB:.3g} GB free, {quota}{short}"
