"""Preflight of what the tools do as jobs: computing features, evaluating runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from cluster.job import Job
from cluster.preflight.chain import Chain, Findings, Need
from cluster.preflight.context import look_at_context
from cluster.preflight.data import Wanted, look_at_data
from cluster.preflight.model import llm_fields, other_encoder, start_of, stream_specs
from cluster.preflight.weights import (
    CONFIG,
    encoder_folder,
    encoder_stamp,
    facts_of,
    faults_of_weights,
    read_json,
)
from paltrain.config.schema import EncoderConfig, EvalConfig, FeaturesConfig, TrainConfig
from paltrain.data.coverage import coverage
from paltrain.data.shards import (
    COMPARED,
    read_stamp,
    stamp_differences,
)
from paltrain.encoders.facts import frames_in_words
from paltrain.errors import ConfigError, ModelError, PaltrainError, StoreError
from paltrain.run_folder import RunFolder

if TYPE_CHECKING:
    from paltrain.data.index import Corpus

RECORDINGS_LOOKED_FOR = 16


# ---- features ------------------------------------------------------------------------------------


def look_at_features(job: Job, chain: Chain, findings: Findings) -> None:
    config = job.config
    assert isinstance(config, FeaturesConfig)
    corpus = findings.attempt(lambda: chain.corpus(config.manifests))
    if corpus is not None:
        _look_at_recordings(corpus, config, findings)
    for name, store in config.stores().items():
        encoder = config.encoders[name]
        stamp = findings.attempt(partial(encoder_stamp, encoder, environment=job.environment))
        if stamp is None:
            continue
        findings.good.append(f"encoder {name}: {frames_in_words(stamp)}")
        findings.attempt(partial(check_claim, Path(store), stamp))
        _look_at_weights(job, encoder, chain, findings)
        if corpus is not None:
            n_bytes = coverage(corpus, Path(store)).n_bytes_to_come(stamp)
            chain.needs.append(Need(job.name, Path(store), n_bytes, f"features of {name}"))


def check_claim(store: Path, stamp: dict[str, Any]) -> None:
    """Raises StoreError where the store is another encoder's, as far as the stamps say."""
    if not (store / "store.json").is_file():
        return
    there = read_stamp(store)
    known = {field: stamp.get(field, there.get(field)) for field in COMPARED}
    if differences := stamp_differences(there, {**known, "encoder": stamp["encoder"]}):
        raise StoreError(
            f"{store} holds features of another encoder ({'; '.join(differences)}): choose another "
            "store, or move it away"
        )


def _look_at_weights(job: Job, encoder: EncoderConfig, chain: Chain, findings: Findings) -> None:
    """Whether its weights are there and whole, and torch and transformers can be imported."""
    if encoder.path is None:
        return
    file = facts_of(encoder, environment=job.environment).weights_file  # None: drawn by chance

    def look() -> list[str]:
        if file is None:
            return []
        return list(faults_of_weights(encoder_folder(encoder, file, environment=job.environment)))

    findings.problems += findings.attempt(look) or []

    def tell(said: dict[str, Any]) -> None:
        if "error" in said:
            findings.problems.append(f"transformers cannot be imported: {said['error']}")

    chain.child.ask({"what": "import", "name": "transformers"}, tell)


def has_all_features(config: FeaturesConfig) -> bool:
    """Whether every recording's shard is whole, so that computing again would do nothing."""
    from paltrain.data.index import Corpus

    if not all(Path(path).exists() for path in config.manifests):
        return False
    corpus = Corpus.open(config.manifests)
    return all(not coverage(corpus, Path(store)).n_missing for store in config.stores().values())


def _look_at_recordings(corpus: Corpus, config: FeaturesConfig, findings: Findings) -> None:
    """A few of the recordings: a file that is missing stops nothing, but a folder that is does."""
    lacking = [coverage(corpus, Path(store)).missing for store in config.stores().values()]
    todo = np.unique(np.concatenate(lacking))
    if not len(todo):
        findings.good.append(f"{corpus.n_clips} clips, all recordings have features already")
        return
    places = np.linspace(0, len(todo) - 1, min(len(todo), RECORDINGS_LOOKED_FOR)).astype(int)
    looked = [corpus.audio_path(int(clip)) for clip in todo[places]]
    missing = [path for path in looked if not path.is_file()]
    if len(missing) == len(looked):
        findings.problems.append(
            f"none of {len(looked)} recordings looked for is there ({missing[0]}, ...): all would "
            "be set aside; put the recordings where the manifest says, or make it anew"
        )
        return
    absent = f", {len(missing)} missing" if missing else ""
    findings.good.append(
        f"{len(todo)} recordings to encode; looked for {len(looked)} of them{absent}"
    )


# ---- evaluation ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluated:
    """A run to evaluate. llm: fields of its LLM's configuration. streams: as its model keeps them.
    stores: by stream. where: in words."""

    where: str
    llm: Mapping[str, Any]
    streams: Mapping[str, Mapping[str, Any]]
    stores: Mapping[str, str | None]


def look_at_evaluation(job: Job, chain: Chain, findings: Findings) -> None:
    config = job.config
    assert isinstance(config, EvalConfig)
    wanted = Wanted(config.manifests, config.split, config.tasks)
    runs = [
        found
        for run in config.runs
        if (found := findings.attempt(partial(_find, run, config, job, chain, findings)))
    ]
    folders = {Path(store): name for run in runs for name, store in run.stores.items() if store}
    stores = {_label(name, folder, folders): folder for folder, name in folders.items()}
    stamps = look_at_data(wanted, stores, job, chain, findings)
    of_folder = {folder: stamps[label] for label, folder in stores.items()}
    for run in runs:
        for name, store in run.stores.items():
            if store is None:
                findings.problems.append(
                    f"{run.where} does not say where the features of stream '{name}' lie: name "
                    f"their store in features.{name}"
                )
            else:
                trained_on = run.streams[name].get("encoder")
                findings.problems += other_encoder(
                    name, store, of_folder[Path(store)], trained_on, run.where
                )
        _look_at_length(run, wanted, chain, findings)


def _look_at_length(run: Evaluated, wanted: Wanted, chain: Chain, findings: Findings) -> None:
    stores = {name: Path(store) for name, store in run.stores.items() if store}
    look_at_context(
        run.llm,
        {name: spec for name, spec in run.streams.items() if name in stores},
        stores,
        wanted,
        consequence=f"the questions about them that do not fit are not put to {run.where}",
        chain=chain,
        findings=findings,
    )


def _llm_of(run: Job, chain: Chain) -> Mapping[str, Any]:
    try:
        return llm_fields(run, start_of(run, chain))
    except (PaltrainError, OSError):  # said of that job
        return {}


def _label(name: str, folder: Path, folders: Mapping[Path, str]) -> str:
    """The stream's name, with its store's where runs have several of that name."""
    return name if list(folders.values()).count(name) == 1 else f"{name} ({folder})"


def _find(run: str, config: EvalConfig, job: Job, chain: Chain, findings: Findings) -> Evaluated:
    """A run that is there, or that the chain will have trained.

    Raises:
        ModelError: it is neither, or has no streams.
    """
    before = chain.run_before(job, Path(run))
    if before is not None:
        training = before.config
        assert isinstance(training, TrainConfig)
        stamps = chain.stamps.get(before.folder.name, {})
        streams: Mapping[str, Any] = stream_specs(training, stamps)
        llm = _llm_of(before, chain)
        features = {name: stream.features for name, stream in training.model.streams.items()}
        where = f"the run {before.folder.name} of this chain"
    else:
        model = _model_folder(run)
        fields = read_json(model / CONFIG)
        streams = fields.get("streams", {}) if fields.get("model_type") == "pal" else {}
        llm = fields.get("llm_config", {})
        features, where = _trained_on(Path(run)), str(model)
        findings.problems += faults_of_weights(model)
    if not streams:
        raise ModelError(f"runs: {where} is a bare LLM: it has no audio streams to listen with")
    strange = [name for name in config.features if name not in streams]
    if strange:
        raise ConfigError(
            f"features.{strange[0]}: {where} has no such stream; it has {', '.join(streams)}"
        )
    findings.good.append(f"{where}: streams {', '.join(streams)}")
    stores = {name: config.features.get(name) or features.get(name) for name in streams}
    return Evaluated(where, llm, streams, stores)


def _model_folder(run: str) -> Path:
    folder = Path(run)
    for model in (RunFolder(folder).model, folder):
        if (model / CONFIG).is_file():
            return model
    if RunFolder(folder).config.is_file():
        raise ModelError(
            f"runs: {run} has no exported model yet ({RunFolder(folder).standing()}): launch it "
            "again first, or name its configuration before this one"
        )
    raise ModelError(
        f"runs: there is no exported model in {run}: name a run that has finished, or a folder "
        "that tools/export.py wrote, or the run's configuration before this one"
    )


def _trained_on(run: Path) -> dict[str, str]:
    """The stores that a run's own configuration names, by stream."""
    file = RunFolder(run).config
    if not file.is_file():
        return {}
    training = yaml.safe_load(file.read_text(encoding="utf-8"))
    streams = training.get("model", {}).get("streams", {})
    return {name: stream.get("features") for name, stream in streams.items()}
