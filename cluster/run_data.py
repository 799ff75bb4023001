"""What the files say of a training run's data: corpus, stores, length table, plan. No torch.

What is absent is named, with how to get it; what does not need it is known all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.preflight.weights import CONFIG, encoder_stamp, local_folder, read_json
from paltrain.config.schema import FeaturesConfig, TrainConfig
from paltrain.data.build import DataPlan, build_plan
from paltrain.data.context import ContextLimit
from paltrain.data.packing import CostModel
from paltrain.data.summary import PlanSummary, plan_summary
from paltrain.errors import PaltrainError
from paltrain.model.audio_tokens import in_the_sequence
from paltrain.run_folder import RunFolder, find_init_folder

if TYPE_CHECKING:
    from paltrain.data.index import Corpus
    from paltrain.data.lengths import LengthTable
    from paltrain.data.shards import FeatureStore

T = TypeVar("T")


class Unknown(Exception):  # noqa: N818 - it is printed, not an error
    """Why a figure cannot be said yet, and how to get what is missing."""


@dataclass(frozen=True)
class RunData:
    """A run's data, as far as they are known.

    no_stores: by stream without a store, why. plan, summary: None where there can be no plan,
    `no_plan` says why. no_text, no_audio: why the plan knows no text tokens, no audio tokens; empty
    where it does. guessed_cost: why the cost of a visit is a guess.
    """

    corpus: Corpus
    stores: Mapping[str, FeatureStore]
    no_stores: Mapping[str, str]
    plan: DataPlan | None = None
    summary: PlanSummary | None = None
    no_plan: str = ""
    no_text: str = ""
    no_audio: str = ""
    guessed_cost: str = ""


def look_at(
    config: TrainConfig, *, world_size: int, n_nodes: int = 1, earlier: Sequence[str] = ()
) -> RunData | Unknown:
    """The data of a run of `world_size` ranks on `n_nodes`; Unknown where it has no manifests.

    earlier: names of the runs before it in the chain.
    """
    try:
        corpus = _corpus(config)
    except Unknown as error:
        return error
    stores, no_stores = _stores(config)
    hears = bool(config.model.streams)
    lengths, no_text = _try(lambda: _lengths(config, corpus, earlier, hears=hears))
    cost, guessed_cost = _try(lambda: _cost(config, stores, earlier))
    context, _ = _try(lambda: _context(config, earlier))
    data = RunData(
        corpus,
        stores,
        no_stores,
        no_text=no_text,
        no_audio="; ".join(no_stores.values()) or no_text,
        guessed_cost=guessed_cost,
    )
    plan, no_plan = _try(lambda: _plan(config, corpus, stores, lengths, cost, context))
    if plan is None:
        return replace(data, no_plan=no_plan)
    summary = plan_summary(plan, world_size=world_size, n_nodes=n_nodes, audio_known=not no_stores)
    return replace(data, plan=plan, summary=summary)


def stream_stamps(
    config: TrainConfig, makers: Sequence[FeaturesConfig] = ()
) -> dict[str, Mapping[str, Any] | Unknown]:
    """By stream, what its store is stamped with; or will be, by one of the earlier `makers`."""
    return {
        name: _stamp(Path(stream.features), makers) for name, stream in config.model.streams.items()
    }


def _stamp(store: Path, makers: Sequence[FeaturesConfig]) -> Mapping[str, Any] | Unknown:
    from paltrain.data.shards import read_stamp

    try:
        if (store / "store.json").is_file():
            return known(lambda: read_stamp(store))
        for config in makers:
            for name, folder in config.stores().items():
                if Path(folder).absolute() == store.absolute():
                    encoder = config.encoders[name]
                    return known(lambda: encoder_stamp(encoder, environment=os.environ))  # noqa: B023
    except Unknown as error:
        return error
    return Unknown(f"no feature store {store}; make it with tools/precompute_features.py CONFIG")


def known(act: Callable[[], T]) -> T:
    """`act()`, what a user can mend turned into Unknown."""
    try:
        return act()
    except PaltrainError as error:
        raise Unknown(str(error)) from error


def _try(act: Callable[[], T]) -> tuple[T | None, str]:
    """`act()`, or why it is unknown."""
    try:
        return known(act), ""
    except Unknown as error:
        return None, str(error)


def _corpus(config: TrainConfig) -> Corpus:
    from paltrain.data.index import Corpus

    paths = [Path(path) for path in config.data.manifests]
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        raise Unknown(f"no manifest {', '.join(absent)}; make it with tools/prepare_data.py")
    return known(lambda: Corpus.open(paths))


def _stores(config: TrainConfig) -> tuple[dict[str, FeatureStore], dict[str, str]]:
    """Each stream's store, or why it has none."""
    stores, absent = {}, {}
    for name, stream in config.model.streams.items():
        try:
            stores[name] = _store(stream.features)
        except Unknown as error:
            absent[name] = str(error)
    return stores, absent


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
    from paltrain.model.build import template_fields
    from paltrain.model.tokenization import template_hash, tokenizer_hash

    tokenizer = known(lambda: tokenizer_hash(_tokenizer(config, earlier)))
    template = template_hash(asdict(template_fields(config))) + ("" if hears else "-text")
    table = find_length_table(corpus, tokenizer_hash=tokenizer, template_hash=template)
    if table is None:
        raise Unknown(
            "no length table for this tokenizer and template; a launch makes it, or "
            "tools/plan_data.py CONFIG --lengths"
        )
    return table


def _tokenizer(config: TrainConfig, earlier: Sequence[str] = ()) -> str:
    """Folder or hub name of the run's tokenizer."""
    from paltrain.model.build import tokenizer_source

    start = config.stage.init_from
    before = RunFolder(Path(config.run.root) / (start or ""))
    if start in earlier and not before.is_finished and not config.model.tokenizer:
        raise Unknown(f"the tokenizer comes from the run {start}, which comes first")
    source = tokenizer_source(config, known(lambda: find_init_folder(config)))
    own = RunFolder.of(config).tokenizer
    if source is None and not own.exists():
        raise Unknown("the tokenizer is trained by the run itself, when it is launched")
    return source or str(own)


def make_lengths(config: TrainConfig) -> None:
    """Write the length table that is missing; loads the tokenizer, and with it torch.

    Raises:
        Unknown: there are no manifests, or no tokenizer yet.
        PaltrainError: the tokenizer cannot be loaded, or no question can be trained on.
    """
    from paltrain.data.lengths import QuestionRenderer, build_length_table, find_length_table
    from paltrain.model.build import build_template
    from paltrain.model.tokenization import load_tokenizer, tokenizer_hash

    corpus, source = _corpus(config), _tokenizer(config)
    template = build_template(config, load_tokenizer(source))
    render = QuestionRenderer(template, hears=bool(config.model.streams))
    hashed = tokenizer_hash(source)
    if find_length_table(corpus, tokenizer_hash=hashed, template_hash=render.hash) is None:
        build_length_table(corpus, render, tokenizer_hash=hashed, template_hash=render.hash)


def _plan(
    config: TrainConfig,
    corpus: Corpus,
    stores: dict[str, FeatureStore],
    lengths: LengthTable | None,
    cost: CostModel | None,
    context: ContextLimit | None,
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
        context=context,
    )


def _context(config: TrainConfig, earlier: Sequence[str]) -> ContextLimit | None:
    routes = {name: stream.route.value for name, stream in config.model.streams.items()}
    n_positions = _llm_fields(config, earlier).get("max_position_embeddings")
    return ContextLimit.of(n_positions, in_the_sequence(routes))


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
