"""From an evaluation's configuration to answers and scores of each of its runs (a builder).

run folder ──> exported model, processor ──┐
manifests  ──> corpus ──> questions ───────┼──> answers.jsonl, scores.json in RUN/eval/<split>
stores of the model's streams ─────────────┘
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from omegaconf import OmegaConf

from paltrain.config.schema import EvalConfig
from paltrain.data.index import Corpus
from paltrain.data.selection import StreamFeatures, join_store, most_frames
from paltrain.data.shards import FeatureStore
from paltrain.errors import ConfigError, ModelError
from paltrain.eval.answer import Answerer, answer_all
from paltrain.eval.baseline import RecordedSpectra, StoredSpectra, average_spectrum_baseline
from paltrain.eval.questions import choose_questions, heard_clips
from paltrain.eval.records import (
    BASELINE_FILE,
    SHUFFLED_SUFFIX,
    AnswerFile,
    EvalScores,
    write_json,
)
from paltrain.log import get_logger
from paltrain.model.modeling import PalModel
from paltrain.model.processing import PalProcessor

log = get_logger(__name__)


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


@dataclass(frozen=True)
class LoadedRun:
    """A run's model in memory and the features that its streams listen to."""

    run: RunToEvaluate
    model: PalModel
    streams: Sequence[StreamFeatures]

    @classmethod
    def load(
        cls, run: RunToEvaluate, corpus: Corpus, given: Mapping[str, str], *, device: str | None
    ) -> LoadedRun:
        model = load_model(run.model_folder, device=device)
        return cls(run, model, open_streams(run, model, corpus, given))


def evaluate_run(
    config: EvalConfig, loaded: LoadedRun, *, corpus: Corpus, shuffled: bool
) -> EvalScores:
    """One run's answers and scores, continued where an earlier evaluation stopped."""
    found, model, streams = loaded.run, loaded.model, loaded.streams
    chosen = choose_questions(
        corpus,
        split=config.split,
        tasks=config.tasks,
        streams=streams,
        max_questions=config.max_questions,
        seed=config.seed,
    )
    missing = {why: n for why, n in chosen.left_out.items() if "no features" in why}
    if missing:
        log.warning("%s: questions left out: %s", found.name, missing)
    heard = heard_clips(corpus, chosen.questions, shuffle_seed=config.seed if shuffled else None)
    answerer = Answerer(
        model,
        PalProcessor.from_pretrained(found.model_folder),
        corpus,
        streams,
        config.max_new_tokens,
        config.among_options,
    )
    file = AnswerFile(
        output_folder(config, found, shuffled=shuffled),
        identity={
            "model": model_hash(found.model_folder),
            "manifests": corpus.fingerprint,
            "questions": xxhash.xxh3_64_hexdigest(chosen.questions.tobytes()),
            "heard": xxhash.xxh3_64_hexdigest(heard.tobytes()),
            "features": {stream.name: stream.store.fingerprint for stream in streams},
            "max_new_tokens": config.max_new_tokens,
            "among_options": config.among_options,
        },
    )
    label = f"{found.name}, deaf control" if shuffled else found.name
    seconds = answer_all(
        answerer,
        file,
        chosen.questions,
        heard,
        batch_questions=config.batch_questions,
        label=label,
    )
    return file.score(
        model=found.name,
        split=config.split,
        shuffled=shuffled,
        seconds=seconds,
        manifests=list(config.manifests),
    )


def output_folder(config: EvalConfig, run: RunToEvaluate, *, shuffled: bool) -> Path:
    """RUN/eval/<split>, or OUT/<run>/eval/<split>; the control's beside it."""
    root = Path(config.out) / run.name if config.out else run.folder
    return root / "eval" / (config.split + (SHUFFLED_SUFFIX if shuffled else ""))


def load_model(folder: Path, *, device: str | None = None) -> PalModel:
    """An exported model, on the GPU if there is one.

    Raises:
        ModelError: it cannot be loaded, or is a bare LLM.
    """
    try:
        config = PalModel.config_class.from_pretrained(folder)
        if config.model_type != "pal" or not config.streams:
            raise ModelError(f"{folder} is a bare LLM: it has no audio streams to listen with")
        model: PalModel = PalModel.from_pretrained(folder, dtype="auto")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the model in {folder} cannot be loaded: {str(error).splitlines()[0]}; export it "
            "again (tools/export.py), or let its run finish"
        ) from error
    model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model


def open_streams(
    run: RunToEvaluate, model: PalModel, corpus: Corpus, given: Mapping[str, str]
) -> list[StreamFeatures]:
    """Every stream's store, checked against the stamp that the model was trained with."""
    for name in given:
        if name not in model.config.streams:
            raise ConfigError(
                f"features.{name}: {run.folder} has no such stream; it has "
                f"{', '.join(model.config.streams)}"
            )
    data = run.training.get("data", {})
    streams = []
    for name, spec in model.config.streams.items():
        store = FeatureStore.open(Path(run.store_folder(name, given)))
        store.check_stamp(spec["encoder"])
        limit = None
        if data.get("truncate_audio") and data.get("max_audio_tokens"):
            longest = int(store.n_frames.max(initial=0))
            limit = most_frames(
                name,
                lambda frames, name=name: model.n_audio_tokens(frames, name),  # type: ignore[misc]
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


@dataclass(frozen=True)
class Evaluated:
    """All of an evaluation's scores. baseline: accuracy by task, None where it was not computed."""

    evaluations: Sequence[EvalScores]
    baseline: Mapping[str, float] | None
    folders: Sequence[Path]


def evaluate_all(
    config: EvalConfig, *, with_control: bool, with_baseline: bool, device: str | None = None
) -> Evaluated:
    """Every run of the configuration, and with `with_control` each of them deaf as well."""
    if not config.runs:
        raise ConfigError("runs is empty: name at least one run folder or exported model")
    runs = [RunToEvaluate.find(run) for run in config.runs]
    corpus = Corpus.open([Path(manifest) for manifest in config.manifests])
    evaluations, folders, baseline = [], [], None
    for run in runs:
        loaded = LoadedRun.load(run, corpus, config.features, device=device)
        for shuffled in (False, True) if with_control else (False,):
            evaluations.append(evaluate_run(config, loaded, corpus=corpus, shuffled=shuffled))
            folders.append(output_folder(config, run, shuffled=shuffled))
        if with_baseline and baseline is None:
            baseline = _baseline(config, corpus, loaded.streams)
    if baseline is not None:
        for run in runs:
            write_json(output_folder(config, run, shuffled=False) / BASELINE_FILE, baseline)
    return Evaluated(evaluations, baseline and baseline["accuracy"], folders)


def _baseline(
    config: EvalConfig, corpus: Corpus, streams: Sequence[StreamFeatures]
) -> dict[str, Any] | None:
    """Accuracy by task of the average-spectrum classifier; None where nothing can be fitted on."""
    if "train" not in corpus.splits:
        log.info("no average-spectrum baseline: the manifests have no split 'train'")
        return None
    mels = [stream for stream in streams if stream.store.stamp["encoder"]["type"] == "logmel"]
    spectrum_of = StoredSpectra(mels[0]) if mels else RecordedSpectra(corpus)
    accuracy = average_spectrum_baseline(
        corpus, spectrum_of, test_split=config.split, tasks=config.tasks
    )
    return {"accuracy": accuracy, "manifests": corpus.fingerprint, "split": config.split}
