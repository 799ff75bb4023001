"""From configuration, corpus, stores and length table to the plan of a run's data (a builder).

Torch-free, so that a dry run can ask what a run would do; what is not there yet (a store, a length
table) leaves the figures that need it out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paltrain.config.schema import DataConfig, MixtureConfig, QuestionFilter
from paltrain.data.context import ContextLimit, questions_within
from paltrain.data.filters import BoolArray, asked_for, passing
from paltrain.data.lengths import LengthTable
from paltrain.data.mixture import Part, PartShare, mix
from paltrain.data.order import Int32Array, Int64Array, VisitOrder
from paltrain.data.packing import CostModel
from paltrain.data.plan import Planner, questions_that_fit
from paltrain.data.selection import (
    AudioTokens,
    Selected,
    Selector,
    StreamFeatures,
    further_clips,
    hears_only,
    join_store,
    most_frames,
    shard_numbers,
)
from paltrain.data.sizes import QuestionSizes, StreamCost, clip_sizes, further_sizes
from paltrain.errors import ConfigError, ManifestError, unknown_name
from paltrain.log import get_logger

if TYPE_CHECKING:
    from paltrain.data.index import Corpus
    from paltrain.data.shards import FeatureStore

log = get_logger(__name__)

AT_LEAST_ONE = (
    "questions_per_visit",
    "batch_questions",
    "text_token_budget",
    "audio_token_budget",
    "window_shards",
)


@dataclass(frozen=True)
class DataPlan:
    """A run's data: what is in use, and how it is cut into steps.

    streams: by name, in config order. lengths: None where the table is not built yet. left_out:
    questions not in use, by reason. n_clips: clips in use. mixture: what each part is of an epoch.
    """

    corpus: Corpus
    planner: Planner
    streams: Mapping[str, StreamFeatures]
    lengths: LengthTable | None
    left_out: Mapping[str, int]
    n_clips: int
    mixture: Mapping[str, PartShare]


def build_plan(
    config: DataConfig,
    *,
    corpus: Corpus,
    stores: Mapping[str, FeatureStore],
    lengths: LengthTable | None,
    audio_tokens: Mapping[str, AudioTokens],
    seed: int,
    cost: CostModel | None = None,
    context: ContextLimit | None = None,
) -> DataPlan:
    """The plan of a run's data.

    stores: by stream name in config order; empty for a run on text alone. audio_tokens: by stream
    name, from frames of clips to the tokens they take in the LLM. seed: of the order. context: how
    long a question may be, where that is known.

    Raises:
        ConfigError: settings that cannot go together.
        ManifestError: an unknown split, task or dataset, no question left, or one over a budget.
    """
    _check(config)
    selector = Selector(corpus)
    _keep_asked_for(selector, config, corpus)
    streams = _join(selector, config, corpus, stores, audio_tokens)
    if lengths is not None:
        selector.keep(lengths.usable, "set aside by the length table (too long, or no answer)")
    if lengths is not None and context is not None:
        within = questions_within(context, corpus, lengths, streams, audio_tokens)
        selector.keep(within, context.reason)
    if not selector.kept.any():
        raise ManifestError(f"no question is left to train on: {_told(selector.left_out)}")
    times, shares = _mix(selector, config, corpus)
    selected = selector.selected(times)
    if selector.left_out:
        log.info("%d questions in use; left out: %s", selector.n_kept, _told(selector.left_out))
    cost = cost or CostModel()
    sizes = None if lengths is None else _sizes(corpus, lengths, streams, audio_tokens, cost)
    order = VisitOrder(
        selected.questions,
        clip_start=selected.clip_start,
        shard=shard_numbers(selected, streams),
        questions_per_visit=_questions_per_visit(config, corpus, selected, sizes),
        window_shards=config.window_shards,
        seed=seed,
    )
    planner = Planner(
        order,
        sizes=sizes,
        batch_questions=config.batch_questions,
        text_budget=config.text_token_budget,
        audio_budget=config.audio_token_budget,
        cost=cost,
        fingerprint=_fingerprint(config, corpus, selected, lengths, streams, sizes),
    )
    n_clips = int((selected.layer == 0).sum())
    return DataPlan(corpus, planner, streams, lengths, selector.left_out, n_clips, shares)


def _check(config: DataConfig) -> None:
    for key in AT_LEAST_ONE:
        if getattr(config, key) < 1:
            raise ConfigError(f"data.{key} is {getattr(config, key)}: it must be at least 1")
    if config.questions_per_visit > config.batch_questions:
        raise ConfigError(
            f"data.questions_per_visit={config.questions_per_visit} is over "
            f"data.batch_questions={config.batch_questions}: a visit belongs to one step; lower it"
        )


def _questions_per_visit(
    config: DataConfig, corpus: Corpus, selected: Selected, sizes: QuestionSizes | None
) -> Int32Array | int:
    """As configured, fewer for clips of which so many might not fit the budgets together."""
    if sizes is None:
        return config.questions_per_visit
    return questions_that_fit(
        sizes,
        selected.questions,
        selected.clip_start,
        questions_per_visit=config.questions_per_visit,
        text_budget=config.text_token_budget,
        audio_budget=config.audio_token_budget,
        name=partial(_name, corpus, sizes.first_question),
    )


def _keep_asked_for(selector: Selector, config: DataConfig, corpus: Corpus) -> None:
    """The split's clips, and the questions that the filters let pass."""
    splits = list(corpus.splits)
    if config.split not in splits:
        raise ManifestError(unknown_name("data.split", config.split, splits))
    in_split = np.asarray(corpus.clip_split) == splits.index(config.split)
    selector.keep_clips(in_split, f"not of split '{config.split}'")
    for questions, otherwise in asked_for(corpus, "data", **filters_of(config)):
        selector.keep(questions, otherwise)


def filters_of(config: QuestionFilter) -> dict[str, Any]:
    """What `asked_for` takes."""
    return {field.name: getattr(config, field.name) for field in fields(QuestionFilter)}


def parts_of(
    corpus: Corpus, mixture: Mapping[str, MixtureConfig], *, kept: BoolArray
) -> list[Part]:
    """The parts of a mixture, each with those of the `kept` questions (Q,) that it selects.

    Raises:
        ManifestError: an unknown task, dataset or manifest.
    """
    return [
        Part(
            name,
            kept
            & passing(corpus, f"data.mixture.{name}", manifest=part.manifest, **filters_of(part)),
            part.weight,
            part.max_questions,
        )
        for name, part in mixture.items()
    ]


def _mix(
    selector: Selector, config: DataConfig, corpus: Corpus
) -> tuple[Int32Array | None, dict[str, PartShare]]:
    """(Q,) how often each question is asked (None: once), and the shares of the mixture's parts."""
    if not config.mixture:
        return None, {}
    parts = parts_of(corpus, config.mixture, kept=selector.kept)
    selector.keep(np.any([part.asked for part in parts], axis=0), "in no part of data.mixture")
    times, shares = mix(parts, np.asarray(corpus.first_question))
    selector.keep(times > 0, "beyond weight or max_questions of their part of data.mixture")
    for name, share in shares.items():
        log.info(
            "mixture: %s asks %d questions about %d clips, %d times an epoch: %.1f %% of it",
            *(name, share.n_questions, share.n_clips, share.n_asked, 100 * share.share),
        )
    return times, shares


def _join(
    selector: Selector,
    config: DataConfig,
    corpus: Corpus,
    stores: Mapping[str, FeatureStore],
    audio_tokens: Mapping[str, AudioTokens],
) -> dict[str, StreamFeatures]:
    """Every stream over the corpus; leaves out questions on clips without features or too long."""
    streams = {}
    for name, store in stores.items():
        limit = None
        if config.max_audio_tokens is not None and len(store.n_frames):
            longest = int(np.asarray(store.n_frames).max())
            limit = most_frames(name, audio_tokens[name], config.max_audio_tokens, longest)
        streams[name], over = join_store(
            name, store, corpus, max_frames=limit, truncate=config.truncate_audio
        )
        missing = np.asarray(corpus.has_audio) & (streams[name].rows < 0)
        selector.keep(
            hears_only(corpus, ~missing),
            f"no features of stream '{name}' (tools/precompute_features.py makes them)",
        )
        selector.keep(hears_only(corpus, ~over), f"over data.max_audio_tokens by stream '{name}'")
    return streams


def _sizes(
    corpus: Corpus,
    lengths: LengthTable,
    streams: Mapping[str, StreamFeatures],
    audio_tokens: Mapping[str, AudioTokens],
    cost: CostModel,
) -> QuestionSizes:
    clips = clip_sizes(
        corpus.n_clips,
        (
            (
                audio_tokens[name](stream.n_frames.astype(np.int64)),
                stream.n_frames,
                cost.streams.get(name, StreamCost()),
            )
            for name, stream in streams.items()
        ),
    )
    first_question = np.asarray(corpus.first_question, np.int64)
    further = further_sizes(clips, *further_clips(corpus))
    return QuestionSizes(lengths.rows, first_question, clips, further)


def _fingerprint(
    config: DataConfig,
    corpus: Corpus,
    selected: Selected,
    lengths: LengthTable | None,
    streams: Mapping[str, StreamFeatures],
    sizes: QuestionSizes | None,
) -> str:
    """Everything that fixes order and plan, part by part, so that a difference can be named."""
    plan = (
        config.questions_per_visit,
        config.batch_questions,
        config.text_token_budget,
        config.audio_token_budget,
        config.window_shards,
    )
    heard = _heard(corpus, selected)
    features = [f"{name}={stream.hash_of(heard)}" for name, stream in streams.items()]
    parts = {
        "manifests": corpus.fingerprint.encode(),
        "questions": selected.questions.tobytes(),
        "plan": repr(plan).encode(),
        "tokens": lengths.fingerprint.encode() if lengths else b"",
        "features": " ".join(features).encode(),
        "audio_tokens": sizes.clips["audio"][heard].tobytes() if sizes else b"",
    }
    return " ".join(
        f"{name}:{hashlib.sha256(data).hexdigest()[:12]}" for name, data in parts.items()
    )


def _heard(corpus: Corpus, selected: Selected) -> Int64Array:
    """The clips in use, and the further ones of the questions in use."""
    questions, further = further_clips(corpus)
    return np.concatenate([selected.clips, further[np.isin(questions, selected.questions)]])


def _name(corpus: Corpus, first_question: NDArray[np.int64], question: int) -> str:
    """A question for messages."""
    number = int(np.searchsorted(first_question, question, side="right")) - 1
    clip = corpus.clip(number)
    return f"question {clip.questions[question - int(first_question[number])].id} of clip {clip.id}"


def _told(left_out: Mapping[str, int]) -> str:
    return "; ".join(f"{n} {reason}" for reason, n in left_out.items()) or "the manifests hold none"
