"""From a configuration to a run that can train: model, data, engine, checkpoint (a builder).

1. corpus, stores       rank 0 first: it compiles what is missing beside the files
2. tokenizer, template  rank 0 trains the tokenizer where the run has none
3. length table         rank 0 builds it where there is none
4. model                every rank alike; what trains is marked before it is sharded
5. engine               shards it
6. data plan, loader    from where the checkpoint says
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import yaml
from transformers.utils import logging as transformers_logging

from paltrain.comm import Comm
from paltrain.config.load import to_yaml
from paltrain.config.schema import TrainConfig
from paltrain.data.build import DataPlan, build_plan
from paltrain.data.context import ContextLimit
from paltrain.data.duplicates import warn_of_leaks
from paltrain.data.index import Corpus
from paltrain.data.lengths import (
    LengthTable,
    QuestionRenderer,
    build_length_table,
    find_length_table,
)
from paltrain.data.loader import build_loader
from paltrain.data.packing import CostModel
from paltrain.data.plan import DataState
from paltrain.data.shard_cache import open_cache
from paltrain.data.shards import FeatureStore
from paltrain.log import get_logger
from paltrain.model.audio_tokens import in_the_sequence
from paltrain.model.build import (
    audio_token_counts,
    build_model,
    build_template,
    build_tokenizer,
    tokenizer_source,
)
from paltrain.model.cost import visit_costs
from paltrain.model.modeling import PalModel
from paltrain.model.tokenization import load_tokenizer, tokenizer_hash
from paltrain.train.checkpoint import Checkpoints, Progress, frozen_hash
from paltrain.train.console import TrainingConsole
from paltrain.train.engine import Engine, build_engine
from paltrain.train.flops import token_flops
from paltrain.train.job import Parts, Paths, TrainingJob
from paltrain.train.loop import Loop, LoopSettings, Sink, TokenFlops
from paltrain.train.metrics import Heartbeat, MetricsLog, WandbCopy, device_peak_tflops
from paltrain.train.schedule import lr_factor
from paltrain.train.signals import StopFlag
from paltrain.train.stages import parameter_groups, set_trainable
from paltrain.train.watchdog import Watchdog

log = get_logger(__name__)
T = TypeVar("T")

HANGS_AFTER = 0.9  # of the collectives' time limit: stacks are written before they raise


def build_training(
    config: TrainConfig,
    paths: Paths,
    *,
    init_folder: Path | None,
    code_version: str,
    stop: StopFlag | None = None,
) -> TrainingJob:
    """Everything a rank needs to train `config`, standing where the newest checkpoint left it.

    init_folder: the model to start from, where the stage names one. stop: catches signals already.
    """
    transformers_logging.disable_progress_bar()
    comm = Comm.from_environment(timeout_s=config.engine.timeout_s)
    _seed(config.run.seed, deterministic=config.engine.deterministic)
    parts = make_parts(config, comm, paths, init_folder)
    model, plan = parts.model, parts.plan
    set_trainable(model, config.stage.trainable)
    flops = token_flops(model, config.logging.peak_tflops or device_peak_tflops(comm.device))
    base = comm.broadcast(frozen_hash(model) if comm.rank == 0 else None)
    engine = _engine(config, model, comm)
    _seed(config.run.seed + comm.rank, deterministic=config.engine.deterministic)

    start = _start(config, plan, comm, frozen_hash=base, code_version=code_version)
    checkpoints = Checkpoints(paths.checkpoints, comm, keep=config.checkpoint.keep)
    progress = _resume(checkpoints, engine, start)
    settings = _settings(config, plan.planner.steps_per_epoch, flops)
    loader = build_loader(
        plan,
        config.data,
        render=parts.render,
        rank=comm.rank,
        world_size=comm.world_size,
        state=DataState.from_dict(progress.data),
        n_steps=settings.total_steps - progress.step,
        bad_samples=paths.bad_samples,
    )
    console = TrainingConsole(
        name=config.run.name,
        total_steps=settings.total_steps,
        every_steps=config.logging.every_steps,
        quiet=comm.rank != 0,
    )
    sinks = _sinks(config, paths, progress, settings.total_steps) if comm.rank == 0 else []
    loop = Loop(
        engine,
        comm,
        checkpoints,
        settings,
        progress,
        model.dummy_batch,
        sinks,
        console,
        stop=stop or StopFlag(),
        watchdog=Watchdog(HANGS_AFTER * config.engine.timeout_s),
    )
    _tell(config, loop)
    return TrainingJob(loop, loader, parts, paths.model)


def steps_of(config: TrainConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    if config.stage.steps is not None:
        return config.stage.steps
    assert config.stage.epochs is not None, "the schema sees to one of steps and epochs"
    return max(1, math.ceil(config.stage.epochs * steps_per_epoch))


def question_texts(corpus: Corpus, split: str) -> Iterator[str]:
    """All instructions and answers of a split: what a fresh tokenizer is trained on."""
    in_split = np.flatnonzero(np.asarray(corpus.clip_split) == list(corpus.splits).index(split))
    for clip in in_split.tolist():
        for question in corpus.clip(clip).questions:
            for turn in question.turns or [(question.instruction, question.answer)]:
                yield from (part for part in turn if part)


def make_parts(config: TrainConfig, comm: Comm, paths: Paths, init_folder: Path | None) -> Parts:
    """The run's tokenizer, model and data, as every rank has them before anything is sharded."""
    corpus, stores = _open_data(config, comm)
    tokenizer, source = _tokenizer(config, comm, corpus, paths.tokenizer, init_folder)
    render = QuestionRenderer(build_template(config, tokenizer), hears=bool(stores))
    stamps = {name: store.stamp for name, store in stores.items()}
    model = build_model(config, stamps, tokenizer=tokenizer, init_folder=init_folder)
    _check_stamps(model, stores)
    cost = CostModel.of(visit_costs(model.config.llm_config, model.config.streams))
    routes = {name: spec["route"] for name, spec in model.config.streams.items()}
    context = ContextLimit.of(model.config.n_positions, in_the_sequence(routes))
    plan = _plan(config, comm, corpus, stores, render, tokenizer_hash(source), cost, context)
    return Parts(tokenizer, render, model, plan)


def _open_data(config: TrainConfig, comm: Comm) -> tuple[Corpus, dict[str, FeatureStore]]:
    manifests = [Path(path) for path in config.data.manifests]
    corpus = comm.rank_0_first(lambda: Corpus.open(manifests))
    if comm.rank == 0:
        warn_of_leaks(corpus)
    data, streams = config.data, config.model.streams
    cache = open_cache(data.cache_dir, data.cache_gb)
    by_folder = {
        folder: FeatureStore.open(folder, verify=data.verify_checksums, cache=cache)
        for folder in dict.fromkeys(stream.features for stream in streams.values())
    }
    return corpus, {name: by_folder[stream.features] for name, stream in streams.items()}


def _tokenizer(
    config: TrainConfig, comm: Comm, corpus: Corpus, folder: Path, init_folder: Path | None
) -> tuple[Any, str]:
    """The run's tokenizer, and the folder or hub name it can be found by again."""
    source = tokenizer_source(config, init_folder)
    if source is not None:
        return load_tokenizer(source), source

    def train_or_load() -> Any:
        if not (folder / "tokenizer.json").exists():
            texts = question_texts(corpus, config.data.split)
            build_tokenizer(config, texts=texts).save_pretrained(folder)
        return load_tokenizer(str(folder))

    return comm.rank_0_first(train_or_load), str(folder)


def _check_stamps(model: PalModel, stores: Mapping[str, FeatureStore]) -> None:
    """A model that has heard one encoder is not trained on another's features."""
    for name, store in stores.items():
        store.check_stamp(model.config.streams[name]["encoder"])


def _plan(
    config: TrainConfig,
    comm: Comm,
    corpus: Corpus,
    stores: Mapping[str, FeatureStore],
    render: QuestionRenderer,
    tokenizer: str,
    cost: CostModel,
    context: ContextLimit | None,
) -> DataPlan:
    def find_or_build() -> LengthTable:
        found = find_length_table(corpus, tokenizer_hash=tokenizer, template_hash=render.hash)
        return found or build_length_table(
            corpus, render, tokenizer_hash=tokenizer, template_hash=render.hash
        )

    return build_plan(
        config.data,
        corpus=corpus,
        stores=stores,
        lengths=comm.rank_0_first(find_or_build),
        audio_tokens=audio_token_counts(config),
        seed=config.run.seed,
        cost=cost,
        context=context,
    )


def _engine(config: TrainConfig, model: PalModel, comm: Comm) -> Engine:
    groups = parameter_groups(
        model,
        lr=config.optimizer.lr,
        weight_decay=config.optimizer.weight_decay,
        lr_by_pattern=config.optimizer.lr_by_pattern,
    )
    return build_engine(config, model, groups, comm)


def _start(
    config: TrainConfig, plan: DataPlan, comm: Comm, *, frozen_hash: str, code_version: str
) -> Progress:
    """Where a run stands that has done nothing."""
    return Progress(
        step=0,
        data=plan.planner.start().to_dict(),
        n_applied_steps=0,
        n_nonfinite=0,
        frozen_hash=frozen_hash,
        world_size=comm.world_size,
        config=yaml.safe_load(to_yaml(config)),
        code_version=code_version,
    )


def _resume(checkpoints: Checkpoints, engine: Engine, start: Progress) -> Progress:
    """Where the run stands: at its newest checkpoint (the engine takes it over), else `start`."""
    checkpoints.clean()
    newest = checkpoints.latest()
    if newest is None:
        return start
    saved = checkpoints.load(newest, engine, frozen_hash=start.frozen_hash)
    log.info("going on from %s (saved by %d ranks)", newest, saved.world_size)
    return replace(
        start,
        step=saved.step,
        data=saved.data,
        n_applied_steps=saved.n_applied_steps,
        n_nonfinite=saved.n_nonfinite,
    )


def _settings(config: TrainConfig, steps_per_epoch: int, flops: TokenFlops) -> LoopSettings:
    total_steps = steps_of(config, steps_per_epoch)
    factor = partial(
        lr_factor,
        schedule=config.optimizer.schedule.value,
        total_steps=total_steps,
        warmup_steps=config.optimizer.warmup_steps,
        min_lr_ratio=config.optimizer.min_lr_ratio,
    )
    return LoopSettings(
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        save_every_steps=config.checkpoint.every_steps,
        max_nonfinite_steps=config.engine.max_nonfinite_steps,
        lr_factor=factor,
        peak_lr=config.optimizer.lr,
        flops=flops,
    )


def _sinks(config: TrainConfig, paths: Paths, progress: Progress, total_steps: int) -> list[Sink]:
    sinks: list[Sink] = [
        MetricsLog(paths.metrics, after_step=progress.step),
        Heartbeat(paths.status, total_steps=total_steps),
    ]
    if config.logging.wandb:
        sinks.append(
            WandbCopy(
                paths.wandb,
                name=config.run.name,
                project=config.logging.wandb_project,
                mode=config.logging.wandb_mode,
                config=progress.config,
            )
        )
    return sinks


def _seed(seed: int, *, deterministic: bool) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=False)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _tell(config: TrainConfig, loop: Loop) -> None:
    log.info(
        "%s: %d parameters train (%s), steps %d to %d of %d questions, %d rank(s) on %s, ZeRO %d",
        config.run.name,
        sum(loop.engine.trainable.values()),
        ", ".join(config.stage.trainable),
        loop.progress.step + 1,
        loop.settings.total_steps,
        config.data.batch_questions,
        loop.comm.world_size,
        loop.comm.device,
        config.engine.zero_stage,
    )
