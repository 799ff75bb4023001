"""Finds a trained run and what it needs to be asked: its exported model, and its streams' features.

Whatever needs no weights (the streams, what the model is called and hashed to) loads none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash
from omegaconf import OmegaConf

from paltrain.data.index import Corpus
from paltrain.data.selection import StreamFeatures, join_store, most_frames
from paltrain.data.shards import FeatureStore
from paltrain.errors import ConfigError, ModelError, first_line
from paltrain.model.audio_tokens import n_audio_tokens
from paltrain.model.configuration import PalConfig
from paltrain.model.modeling import PalModel


@dataclass(frozen=True)
class RunToEvaluate:
    """A run's exported model, and what its training configuration says about its data, if any."""

    name: str
    folder: Path  # the run's, or the exported model's own
    model_folder: Path
    training: Mapping[str, Any]

    @classmethod
    def find(cls, run: str) -> RunToEvaluate:
        """From a run folder or an exported model's folder.

        Raises:
            ModelError: neither is there.
        """
        folder = Path(run)
        model = folder / "model" if (folder / "model" / "config.json").is_file() else folder
        if not (model / "config.json").is_file():
            raise ModelError(
                f"no exported model in {folder}: name a run that has finished, or a folder that "
                "tools/export.py wrote"
            )
        saved = folder / "config.yaml"
        training: Any = OmegaConf.to_container(OmegaConf.load(saved)) if saved.is_file() else {}
        return cls(folder.resolve().name, folder, model, training)

    def store_folder(self, stream: str, given: Mapping[str, str]) -> str:
        """Where a stream's features lie: as given, else where training read them."""
        known = self.training.get("model", {}).get("streams", {}).get(stream, {}).get("features")
        folder = given.get(stream) or known
        if not folder:
            raise ConfigError(
                f"{self.folder} does not say where the features of stream '{stream}' lie: name "
                f"their store in features.{stream}"
            )
        return str(folder)


def model_config(folder: Path) -> PalConfig:
    """An exported model's configuration.

    Raises:
        ModelError: it cannot be read, or is that of a bare LLM.
    """
    try:
        config: PalConfig = PalConfig.from_pretrained(folder)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the model in {folder} cannot be loaded: {first_line(error)}; export it again "
            " (tools/export.py), or let its run finish"
        ) from error
    if not config.streams:
        raise ModelError(
            f"{folder} is a bare LLM: it has no audio streams to listen with; name a run that has"
        )
    return config


def load_model(folder: Path, *, device: str | None = None) -> PalModel:
    """An exported model, on the GPU if there is one.

    Raises:
        ModelError: it cannot be loaded, or is a bare LLM.
    """
    model_config(folder)
    model: PalModel = PalModel.from_pretrained(folder, dtype="auto")
    model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model


def open_streams(
    run: RunToEvaluate, corpus: Corpus, given: Mapping[str, str]
) -> list[StreamFeatures]:
    """Every stream's store, checked against the stamp that the model was trained with.

    given: stores that are not where training read them, by stream. Loads no model.

    Raises:
        ConfigError: a store is given for no stream of the model, or a stream's is not known.
        ModelError: the model's configuration cannot be read, or is that of a bare LLM.
        StoreError: a store is missing, torn, or another encoder's.
    """
    specs = model_config(run.model_folder).streams
    for name in given:
        if name not in specs:
            raise ConfigError(
                f"features.{name}: {run.folder} has no such stream; it has {', '.join(specs)}"
            )
    data = run.training.get("data", {})
    stores: dict[str, FeatureStore] = {}
    streams = []
    for name, spec in specs.items():
        folder = run.store_folder(name, given)
        store = stores.setdefault(folder, FeatureStore.open(Path(folder)))
        store.check_stamp(spec["encoder"])
        limit = None
        if data.get("truncate_audio") and data.get("max_audio_tokens"):
            longest = int(store.n_frames.max(initial=0))
            limit = most_frames(
                name,
                partial(n_audio_tokens, connector=spec["connector"]),
                int(data["max_audio_tokens"]),
                longest,
            )
        stream, _ = join_store(name, store, corpus, max_frames=limit, truncate=limit is not None)
        streams.append(stream)
    return streams


def model_hash(folder: Path) -> str:
    """Names an exported model by what its files hold."""
    digest = xxhash.xxh3_128()
    for file in sorted(folder.glob("*")):
        if file.suffix in {".json", ".safetensors", ".jinja"}:
            digest.update(file.name.encode())
            with file.open("rb") as content:
                while block := content.read(1 << 24):
                    digest.update(block)
    return digest.hexdigest()
