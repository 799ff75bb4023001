"""What a training run would do with its data, as text: step plan, shard audit. No torch.

A figure that needs something absent reads `unknown: what is missing, how to get it`; the rest is
said all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cluster.preflight.weights import CONFIG, local_folder, read_json
from paltrain.config.schema import TrainConfig
from paltrain.data.build import DataPlan, build_plan
from paltrain.data.mixture import PartShare
from paltrain.data.packing import CostModel
from paltrain.data.summary import PlanSummary, plan_summary
from paltrain.errors import PaltrainError
from paltrain.run_folder import RunFolder, find_init_folder

if TYPE_CHECKING:
    from paltrain.data.index import Corpus
    from paltrain.data.lengths import LengthTable
    from paltrain.data.shards import FeatureStore

T = TypeVar("T")
LABEL_WIDTH = 20


class Unknown(Exception):  # noqa: N818 - it is printed, not an error
    """Why a figure cannot be said yet, and how to get what is missing."""


def plan_lines(config: TrainConfig, *, world_size: int, earlier: Sequence[str]) -> Iterator[str]:
    """Step plan and shard audit of a run, as far as files allow.

    earlier: names of the runs before it in the chain.
    """
    try:
        corpus = _corpus(config)
    except Unknown as error:
        yield line("step plan", f"unknown: {error}")
        yield line("shard audit", f"unknown: {error}")
        return
    stores, missing = {}, {}
    for name, stream in config.model.streams.items():
        try:
            stores[name] = _store(stream.features)
        except Unknown as error:
            missing[name] = f"unknown: {error}"
    lengths: LengthTable | None = None
    why_no_lengths = ""
    try:
        lengths = _lengths(config, corpus, earlier, hears=bool(config.model.streams))
    except Unknown as error:
        why_no_lengths = f"unknown: {error}"
    cost, why_guessed = None, ""
    try:
        cost = _cost(config, stores, earlier)
    except Unknown as error:
        why_guessed = f"guessed: {error}"
    try:
        plan = known(lambda: _plan(config, corpus, stores, lengths, cost))
        summary = plan_summary(plan, world_size=world_size, audio_known=not missing)
        audio_reason = "; ".join(missing.values()) or why_no_lengths
        yield from _plan_lines(config, summary, why_no_lengths, audio_reason)
        if why_guessed and summary.imbalance is not None:
            yield line("  cost of a visit", why_guessed)
    except Unknown as error:
        yield line("step plan", f"unknown: {error}")
    yield line("shard audit", "" if config.model.streams else "no streams: text only")
    for name in config.model.streams:
        found = missing.get(name) or _audit(corpus, stores[name], config.data.split)
        yield line(f"  {name}", found)


def _corpus(config: TrainConfig) -> Corpus:
    from paltrain.data.index import Corpus

    paths = [Path(path) for path in config.data.manifests]
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        raise Unknown(f"no manifest {', '.join(absent)}; make it with tools/prepare_data.py")
    return known(lambda: Corpus.open(paths))


def _store(folder: str) -> FeatureStore:
    from paltrain.data.shards import FeatureStore

    if not Path(folder).exists():
        raise Unknown(
            f"no feature store {folder}; make it with tools/precompute_features.py CONFIG"
        )
    return known(lambda: FeatureStore.open(Path(folder)))


def _lengths(
    config: TrainConfig, corpus: Corpus, earlier: Sequence[str], *, hears: bool
) -> LengthTable:
    from paltrain.data.lengths import find_length_table
    from paltrain.model.build import template_fields, tokenizer_source
    from paltrain.model.tokenization import template_hash, tokenizer_hash

    how = "a launch builds it, or tools/prepare_data.py lengths CONFIG"
    start = config.stage.init_from
    before = RunFolder(Path(config.run.root) / (start or ""))
    if start in earlier and not before.is_finished and not config.model.tokenizer:
        raise Unknown(f"the tokenizer comes from the run {start}; {how}")
    init_folder = known(lambda: find_init_folder(config))
    source = tokenizer_source(config, init_folder)
    own = RunFolder.of(config).tokenizer
    if source is None and not own.exists():
        raise Unknown(f"the tokenizer is trained by the run itself; {how}")
    tokenizer = known(lambda: tokenizer_hash(source or str(own)))
    template = template_hash(asdict(template_fields(config))) + ("" if hears else "-text")
    table = find_length_table(corpus, tokenizer_hash=tokenizer, template_hash=template)
    if table is None:
        raise Unknown(f"no length table for this tokenizer and template; {how}")
    return table


def _plan(
    config: TrainConfig,
    corpus: Corpus,
    stores: dict[str, FeatureStore],
    lengths: LengthTable | None,
    cost: CostModel | None,
) -> DataPlan:
    from paltrain.model.build import audio_token_counts

    return build_plan(
        config.data,
        corpus=corpus,
        stores=stores,
        lengths=lengths,
        audio_tokens=audio_token_counts(config),
        seed=config.run.seed,
        cost=cost,
    )


def _cost(
    config: TrainConfig, stores: dict[str, FeatureStore], earlier: Sequence[str]
) -> CostModel:
    """What the run's LLM makes of text and audio, by its sizes."""
    from paltrain.model.build import stream_spec
    from paltrain.model.cost import visit_costs

    fields = _llm_fields(config, earlier)
    specs = {
        name: stream_spec(config.model.streams[name], store.stamp) for name, store in stores.items()
    }
    return known(lambda: CostModel.of(visit_costs(fields, specs)))


def _llm_fields(config: TrainConfig, earlier: Sequence[str]) -> dict[str, Any]:
    """The LLM's configuration."""
    start = config.stage.init_from
    before = RunFolder(Path(config.run.root) / (start or ""))
    if start in earlier and not before.is_finished:
        raise Unknown(f"the model comes from the run {start}")
    folder = known(lambda: find_init_folder(config))
    llm = config.model.llm
    if folder is None and llm is None:
        n_tokens = config.model.tokenizer_vocab_size or 1  # the head is a small part of the cost
        return {"vocab_size": n_tokens, **(config.model.architecture or {})}
    if folder is None:
        folder = known(lambda: local_folder(str(llm), "model.llm", environment={}))
    fields = known(lambda: read_json(folder / CONFIG))
    return dict(fields.get("llm_config", fields))


def _plan_lines(
    config: TrainConfig, plan: PlanSummary, why_no_lengths: str, why_no_audio: str
) -> Iterator[str]:
    steps = config.stage.steps or max(1, round(plan.steps_per_epoch * (config.stage.epochs or 0)))
    epochs = steps / plan.steps_per_epoch
    yield line("step plan", "")
    rows: list[tuple[str, object, str]] = [
        ("questions", f"{plan.n_questions} of {plan.n_clips} clips, {plan.n_visits} visits", ""),
        ("left out", "; ".join(f"{n} {why}" for why, n in plan.left_out.items()) or "none", ""),
        ("steps", f"{steps} ({epochs:.2f} epochs of {plan.steps_per_epoch})", ""),
        ("text tokens", plan.n_text_tokens, why_no_lengths),
        ("target tokens", plan.n_target_tokens, why_no_lengths),
        ("audio tokens", plan.n_audio_tokens, why_no_audio),
        ("micro-batches", plan.micro_batches_per_step, why_no_audio),
        ("imbalance", plan.imbalance, why_no_audio),
        ("padding share", plan.padding_share, why_no_audio),
    ]
    rows += [(f"part {name}", _share(share), "") for name, share in plan.mixture.items()]
    unknown: dict[str, list[str]] = {}
    for label, value, reason in rows:
        if value is None:
            unknown.setdefault(reason, []).append(label)
        else:
            shown = f"{value:.3f}" if isinstance(value, float) else str(value)
            yield line("  " + label, shown)
    for reason, labels in unknown.items():
        yield f"  {', '.join(labels)}: {reason}"


def _share(part: PartShare) -> str:
    asked = f"asked {part.n_asked} times, {part.share:.1%} of an epoch"
    return f"{part.n_questions} questions of {part.n_clips} clips, {asked}"


def _audit(corpus: Corpus, store: FeatureStore, split: str) -> str:
    n_shards = len(np.unique(np.asarray(store.shard_of)))
    rows = store.rows_of(corpus.clip_id_array)
    wanted = np.asarray(corpus.has_audio)
    if split in list(corpus.splits):
        wanted = wanted & (np.asarray(corpus.clip_split) == list(corpus.splits).index(split))
    absent = int((wanted & (rows < 0)).sum())
    return (
        f"{len(store.n_frames)} clips in {n_shards} shard(s); of {int(wanted.sum())} '{split}' "
        f"clips with audio {absent} lack features"
        + ("; run tools/precompute_features.py again" if absent else "")
    )


def known(act: Callable[[], T]) -> T:
    """`act()`, what a user can mend turned into Unknown."""
    try:
        return act()
    except PaltrainError as error:
        raise Unknown(str(error)) from error


def say(act: Callable[[], str]) -> str:
    """`act()`, or why it is unknown."""
    try:
        return act()
    except Unknown as error:
        return f"unknown: {error}"


def line(label: str, value: str) -> str:
    """A line of the report."""
    return f"{label:<{LABEL_WIDTH}} {value}".rstrip()
