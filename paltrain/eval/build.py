"""From an evaluation's configuration to answers and scores of each of its runs (a builder).

run folder ──> exported model, processor ──┐
manifests  ──> corpus ──> questions ───────┼──> answers.jsonl, scores.json in RUN/eval/<split>
stores of the model's streams ─────────────┘

1. every run is found and its questions are chosen, hearing and deaf: an `Evaluation` each
2. answers that are there already are taken over, those of slices too
3. the model is loaded if any is missing, and gives it
4. the answers are put in the order of the questions and scored; a slice's are only put in order

Merging slices is 1, 2 and 4, if nothing is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import xxhash

from paltrain.config.schema import EvalConfig
from paltrain.data.duplicates import warn_of_leaks
from paltrain.data.index import Corpus
from paltrain.errors import ConfigError
from paltrain.eval.answer import Answerer, Asker, answer_all
from paltrain.eval.baseline import (
    FITTED_ON,
    RecordedSpectra,
    StoredSpectra,
    average_spectrum_baseline,
)
from paltrain.eval.evaluation import Evaluation, lacks_of, other_numbers, part_of
from paltrain.eval.questions import choose_questions, clips_in_use, heard_clips, keys_of
from paltrain.eval.records import (
    BASELINE_FILE,
    AnswerFile,
    EvalScores,
    answers_elsewhere,
    evaluation_folder,
    slice_folder,
)
from paltrain.eval.runs import RunToEvaluate, load_model, model_hash, open_streams
from paltrain.files import write_json
from paltrain.log import get_logger
from paltrain.slices import EVERYTHING, Slice, incomplete, parse_slice

log = get_logger(__name__)

Progress = Callable[[int, int], None]  # questions done, of so many, over all runs


@dataclass(frozen=True)
class Evaluated:
    """All of an evaluation's scores. baseline: accuracy by task, None where it was not computed."""

    evaluations: Sequence[EvalScores]
    baseline: Mapping[str, float] | None
    folders: Sequence[Path]


@dataclass(frozen=True)
class SliceAnswered:
    """A slice's part of one evaluation: its questions, and how many had been answered before."""

    label: str
    folder: Path
    n_questions: int
    n_there_before: int


def evaluate_all(
    config: EvalConfig,
    *,
    with_control: bool,
    with_baseline: bool,
    device: str | None = None,
    progress: Progress | None = None,
) -> Evaluated:
    """Every run of the configuration, and with `with_control` each of them deaf as well.

    Raises:
        ConfigError, ManifestError, ModelError, StoreError: as `plan_evaluations`.
    """
    corpus, evaluations = plan_evaluations(config, with_control=with_control)
    scores = [
        _score(config, done.evaluation, done.file, seconds=done.seconds)
        for done in _answered(config, corpus, evaluations, EVERYTHING, device, progress)
    ]
    baseline = _baseline(config, corpus, evaluations) if with_baseline else None
    return Evaluated(scores, baseline, [each.folder for each in evaluations])


def evaluate_slice(
    config: EvalConfig,
    *,
    with_control: bool,
    device: str | None = None,
    progress: Progress | None = None,
) -> list[SliceAnswered]:
    """The questions of `config.slice`, of every run, in the slice's own folders.

    Raises:
        ConfigError, ManifestError, ModelError, StoreError: as `plan_evaluations`.
    """
    corpus, evaluations = plan_evaluations(config, with_control=with_control)
    slice_of = parse_slice(config.slice)
    return [
        SliceAnswered(done.evaluation.label, done.file.folder, done.n_questions, done.n_before)
        for done in _answered(config, corpus, evaluations, slice_of, device, progress)
    ]


def merge_slices(
    config: EvalConfig, *, n_slices: int, command: str, with_control: bool, with_baseline: bool
) -> Evaluated:
    """What `evaluate_all` gives, from the answers of slices; loads no model.

    command: makes a slice, with I for its number.

    Raises:
        IncompleteError: answers are missing; names the slices, of n_slices, that would give them.
    """
    corpus, evaluations = plan_evaluations(config, with_control=with_control)
    there = [answers_elsewhere(each.folder, each.identity) for each in evaluations]
    keys = [keys_of(corpus, each.questions.tolist()) for each in evaluations]
    if lacks := lacks_of(corpus, evaluations, there, keys, n_slices):
        note = other_numbers(evaluations, n_slices)
        raise incomplete(lacks, n_slices=n_slices, what="questions", command=command, note=note)
    scores = []
    for each, known, wanted in zip(evaluations, there, keys, strict=True):
        start = time.perf_counter()
        file = AnswerFile(each.folder, identity=each.identity)
        file.adopt(known, wanted)
        file.put_in_order(wanted)
        scores.append(_score(config, each, file, seconds=time.perf_counter() - start))
    baseline = _baseline(config, corpus, evaluations) if with_baseline else None
    return Evaluated(scores, baseline, [each.folder for each in evaluations])


def plan_evaluations(config: EvalConfig, *, with_control: bool) -> tuple[Corpus, list[Evaluation]]:
    """The corpus, and what each run is asked, hearing and (with_control) deaf. Loads no model.

    Raises:
        ConfigError: no run is named, or a stream's store is not known.
        ManifestError: a manifest cannot be read, or no question is left to ask.
        ModelError: a run has no exported model, or a bare LLM.
        StoreError: a store is missing, torn, or another encoder's.
    """
    if not config.runs:
        raise ConfigError("runs is empty: name at least one run folder or exported model")
    runs = [RunToEvaluate.find(run) for run in config.runs]
    corpus = Corpus.open([Path(manifest) for manifest in config.manifests])
    warn_of_leaks(corpus)
    return corpus, [
        evaluation
        for run in runs
        for evaluation in _evaluations_of(config, corpus, run, with_control=with_control)
    ]


def output_folder(config: EvalConfig, run: RunToEvaluate, *, shuffled: bool) -> Path:
    """RUN/eval/<split>, or OUT/<run>/eval/<split>; the control's beside it."""
    root = Path(config.out) / run.name if config.out else run.folder
    return evaluation_folder(root, config.split, shuffled=shuffled)


def _evaluations_of(
    config: EvalConfig, corpus: Corpus, run: RunToEvaluate, *, with_control: bool
) -> Iterator[Evaluation]:
    streams = open_streams(run, corpus, config.features)
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
        log.warning("%s: questions left out: %s", run.name, missing)
    hash_of_model = model_hash(run.model_folder)
    for shuffled in (False, True) if with_control else (False,):
        seed = config.seed if shuffled else None
        heard = heard_clips(corpus, chosen.questions, shuffle_seed=seed)
        in_use = clips_in_use(corpus, chosen.questions)
        identity = {
            "model": hash_of_model,
            "manifests": corpus.fingerprint,
            "questions": xxhash.xxh3_64_hexdigest(chosen.questions.tobytes()),
            "heard": xxhash.xxh3_64_hexdigest(heard.tobytes()),
            "features": {stream.name: stream.hash_of(in_use) for stream in streams},
            "max_new_tokens": config.max_new_tokens,
            "among_options": config.among_options,
        }
        folder = output_folder(config, run, shuffled=shuffled)
        yield Evaluation(run, shuffled, folder, chosen.questions, heard, streams, identity)


@dataclass(frozen=True)
class _Done:
    """An evaluation, or a slice of it, with all its answers in order."""

    evaluation: Evaluation
    file: AnswerFile
    n_questions: int
    n_before: int
    seconds: float


class _Answerers:
    """A run's answerer, loaded when it is first needed."""

    def __init__(
        self, config: EvalConfig, corpus: Corpus, evaluation: Evaluation, device: str | None
    ) -> None:
        self.run = evaluation.run
        self._config, self._corpus, self._device = config, corpus, device
        self._streams = evaluation.streams

    @cached_property
    def answerer(self) -> Answerer:
        folder = self.run.model_folder
        return Answerer(
            load_model(folder, device=self._device),
            Asker.of(folder, self._corpus, self._streams),
            self._streams,
            self._config.max_new_tokens,
            self._config.among_options,
        )


def _answered(
    config: EvalConfig,
    corpus: Corpus,
    evaluations: Sequence[Evaluation],
    slice_of: Slice,
    device: str | None,
    progress: Progress | None,
) -> Iterator[_Done]:
    """Each evaluation, or a slice of it, once all its questions have been asked."""
    parts = [part_of(corpus, each, slice_of) for each in evaluations]
    n_all, n_earlier, loaded = sum(map(len, parts)), 0, None
    for each, questions in zip(evaluations, parts, strict=True):
        if loaded is None or loaded.run is not each.run:
            loaded = _Answerers(config, corpus, each, device)
        keys = keys_of(corpus, questions)
        file = AnswerFile(slice_folder(each.folder, slice_of), identity=each.identity)
        file.adopt(answers_elsewhere(each.folder, each.identity), keys)
        waiting = [q for q, key in zip(questions, keys, strict=True) if key not in file.answered]
        seconds, n_before = 0.0, len(questions) - len(waiting)

        def tell(done: int, n_earlier: int = n_earlier) -> None:
            if progress:
                progress(n_earlier + done, n_all)

        tell(n_before)
        if waiting:
            seconds = answer_all(
                loaded.answerer,
                file,
                waiting,
                each.heard,
                batch_questions=config.batch_questions,
                n_questions=len(questions),
                label=each.label,
                progress=tell,
            )
        if n_left_out := len(keys) - file.put_in_order(keys):
            log.warning(
                "%s: %d of %d questions were left out of the scores, each for a reason said above",
                each.label, n_left_out, len(keys),
            )  # fmt: skip
        n_earlier += len(questions)
        yield _Done(each, file, len(questions), n_before, seconds)


def _score(
    config: EvalConfig, evaluation: Evaluation, file: AnswerFile, *, seconds: float
) -> EvalScores:
    return file.score(
        model=evaluation.run.name,
        split=config.split,
        shuffled=evaluation.shuffled,
        seconds=seconds,
        manifests=list(config.manifests),
    )


def _baseline(
    config: EvalConfig, corpus: Corpus, evaluations: Sequence[Evaluation]
) -> Mapping[str, float] | None:
    """Accuracy by task of the average-spectrum classifier, saved beside each run's answers.

    None where nothing can be fitted on.
    """
    if config.split == FITTED_ON:
        log.info("no average-spectrum baseline: it is fitted on split '%s' itself", FITTED_ON)
        return None
    if FITTED_ON not in corpus.splits:
        log.info("no average-spectrum baseline: the manifests have no split '%s'", FITTED_ON)
        return None
    streams = evaluations[0].streams
    mels = [stream for stream in streams if stream.store.stamp["encoder"]["type"] == "logmel"]
    spectrum_of = StoredSpectra(mels[0]) if mels else RecordedSpectra(corpus)
    accuracy = average_spectrum_baseline(
        corpus, spectrum_of, test_split=config.split, tasks=config.tasks
    )
    saved = {"accuracy": accuracy, "manifests": corpus.fingerprint, "split": config.split}
    for evaluation in evaluations:
        if not evaluation.shuffled:
            write_json(evaluation.folder / BASELINE_FILE, saved)
    return accuracy
