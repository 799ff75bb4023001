"""What a schema's types cannot say: ranges, choices, and values that cannot go together.

Each check yields `Fault`s (the dotted key's parts and a sentence: rule, actual value, remedy);
`load_config` puts them into one report with the faults of spelling and type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from os.path import normpath
from typing import Any

from paltrain.config.report import Fault, KeyPath, show
from paltrain.config.rules import (
    ABOVE_ZERO,
    AT_LEAST_ONE,
    NOT_EMPTY,
    NOT_NEGATIVE,
    SHARE,
    Rule,
    look,
    one_of,
)
from paltrain.config.schema import (
    AblationConfig,
    EvalConfig,
    FeaturesConfig,
    QuestionFilter,
    TrainConfig,
)
from paltrain.config.validate_model import faults_of_model, faults_of_stream

ENGINES = ["deepspeed"]
WANDB_MODES = ["offline", "online", "disabled"]

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
DEVICE = re.compile(r"cpu|cuda(:\d+)?")
SLICE = re.compile(r"(\d+)/(\d+)")


def faults_of(config: Any) -> Iterator[Fault]:
    """What is wrong with an instance of one of the schemas; nothing for a type without checks."""
    checks: Mapping[type, Callable[[Any], Iterable[Fault]]] = {
        TrainConfig: _train,
        FeaturesConfig: _features,
        EvalConfig: _evaluation,
        AblationConfig: _ablation,
    }
    if type(config) in checks:
        yield from checks[type(config)](config)


# ---- one training run ----------------------------------------------------------------------

TRAIN_RULES: Mapping[str, Rule] = {
    "run.seed": NOT_NEGATIVE,
    "model.lora.rank": NOT_NEGATIVE,
    "model.lora.alpha": ABOVE_ZERO,
    "model.lora.target_modules": NOT_EMPTY,
    "data.manifests": NOT_EMPTY,
    "data.questions_per_visit": AT_LEAST_ONE,
    "data.batch_questions": AT_LEAST_ONE,
    "data.text_token_budget": AT_LEAST_ONE,
    "data.audio_token_budget": AT_LEAST_ONE,
    "data.max_text_tokens": AT_LEAST_ONE,
    "data.max_audio_tokens": AT_LEAST_ONE,
    "data.window_shards": AT_LEAST_ONE,
    "data.prefetch_steps": AT_LEAST_ONE,
    "data.max_bad_samples": NOT_NEGATIVE,
    "data.cache_dir": NOT_EMPTY,
    "data.cache_gb": ABOVE_ZERO,
    "data.reader_threads": AT_LEAST_ONE,
    "stage.trainable": NOT_EMPTY,
    "stage.steps": AT_LEAST_ONE,
    "stage.epochs": ABOVE_ZERO,
    "optimizer.lr": ABOVE_ZERO,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.eps": ABOVE_ZERO,
    "optimizer.max_grad_norm": NOT_NEGATIVE,
    "optimizer.warmup_steps": NOT_NEGATIVE,
    "optimizer.min_lr_ratio": SHARE,
    "engine.zero_stage": ("must be 0, 1, 2 or 3", lambda value: value in range(4)),
    "engine.param_persistence_threshold": NOT_NEGATIVE,
    "engine.timeout_s": ABOVE_ZERO,
    "engine.max_nonfinite_steps": NOT_NEGATIVE,
    "checkpoint.every_steps": AT_LEAST_ONE,
    "checkpoint.keep": AT_LEAST_ONE,
    "logging.every_steps": AT_LEAST_ONE,
    "logging.peak_tflops": ABOVE_ZERO,
    "launch.time_min": AT_LEAST_ONE,
    "launch.nodes": AT_LEAST_ONE,
    "launch.gpus_per_node": AT_LEAST_ONE,
    "launch.processes_per_node": AT_LEAST_ONE,
    "launch.threads_per_process": AT_LEAST_ONE,
}


def _train(config: TrainConfig) -> Iterator[Fault]:
    yield from look(config, TRAIN_RULES)
    if not RUN_NAME.fullmatch(config.run.name):
        yield Fault(
            ("run", "name"),
            f"names a folder: letters, digits, '.', '_' and '-' only, is {show(config.run.name)}",
        )
    yield from faults_of_model(config)
    for name, stream in config.model.streams.items():
        yield from faults_of_stream(config.model, name, stream)
    yield from _data(config)
    yield from _stage(config)
    yield from _optimizer(config)
    yield from one_of(("engine", "name"), "engine", config.engine.name, ENGINES)
    mode = config.logging.wandb_mode
    yield from one_of(("logging", "wandb_mode"), "wandb mode", mode, WANDB_MODES)


FILTER_RULES: Mapping[str, Rule] = {
    "tasks": NOT_EMPTY,
    "datasets": NOT_EMPTY,
    "min_duration_s": NOT_NEGATIVE,
    "max_duration_s": NOT_NEGATIVE,
}
MOST_WEIGHT = 1000
PART_RULES: Mapping[str, Rule] = {
    "weight": (
        f"must be above 0 and at most {MOST_WEIGHT} (a weight is how often a question is asked in "
        "an epoch; max_questions caps their number)",
        lambda weight: 0 < weight <= MOST_WEIGHT,
    ),
    "max_questions": AT_LEAST_ONE,
}


def _filter(filter_: QuestionFilter, path: KeyPath) -> Iterator[Fault]:
    yield from look(filter_, FILTER_RULES, path)
    least, most = filter_.min_duration_s, filter_.max_duration_s
    if least is not None and most is not None and least > most:
        sentence = f"must not exceed {'.'.join(path)}.max_duration_s={most:g}, is {least:g}"
        yield Fault((*path, "min_duration_s"), sentence)


def _data(config: TrainConfig) -> Iterator[Fault]:
    data = config.data
    yield from _filter(data, ("data",))
    for name, part in data.mixture.items():
        path = ("data", "mixture", name)
        yield from _filter(part, path)
        yield from look(part, PART_RULES, path)
        if part.manifest is not None:
            kind = "manifest (one of data.manifests)"
            valid = [normpath(manifest) for manifest in data.manifests]
            yield from one_of((*path, "manifest"), kind, normpath(part.manifest), valid)
    if data.questions_per_visit > data.batch_questions:
        yield Fault(
            ("data", "questions_per_visit"),
            f"must not exceed data.batch_questions={data.batch_questions}, "
            f"is {data.questions_per_visit}",
        )
    for limit, budget, truncate in (
        ("max_text_tokens", "text_token_budget", "truncate_text"),
        ("max_audio_tokens", "audio_token_budget", "truncate_audio"),
    ):
        most, room = getattr(data, limit), getattr(data, budget)
        if most is not None and most > room:
            yield Fault(
                ("data", limit), f"must fit into data.{budget}={room}, is {most}: raise the budget"
            )
        if getattr(data, truncate) and most is None:
            yield Fault(("data", truncate), f"needs a length to cut at: set data.{limit}")


def _stage(config: TrainConfig) -> Iterator[Fault]:
    stage = config.stage
    if (stage.steps is None) == (stage.epochs is None):
        said = f"steps is {stage.steps} and epochs is {stage.epochs}"
        yield Fault(("stage",), f"must say exactly one of steps and epochs; {said}")
    if any(pattern.startswith("encoder") for pattern in stage.trainable):
        yield Fault(
            ("stage", "trainable"),
            "encoders cannot train: their features are computed beforehand; drop 'encoder'",
        )
    if "lora" in stage.trainable and not config.model.lora.rank:
        sentence = "adapters cannot train without any: set model.lora.rank, e.g. to 8"
        yield Fault(("stage", "trainable"), sentence)
    if "connectors" in stage.trainable and not config.model.streams:
        yield Fault(
            ("stage", "trainable"),
            "connectors cannot train without audio: add a stream to model.streams, or drop "
            "'connectors'",
        )


def _optimizer(config: TrainConfig) -> Iterator[Fault]:
    optimizer, steps = config.optimizer, config.stage.steps
    if len(optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in optimizer.betas):
        yield Fault(
            ("optimizer", "betas"),
            f"must be two numbers of at least 0 and below 1, is {show(optimizer.betas)}",
        )
    for pattern, lr in optimizer.lr_by_pattern.items():
        if not ABOVE_ZERO[1](lr):
            yield Fault(("optimizer", "lr_by_pattern", pattern), f"{ABOVE_ZERO[0]}, is {lr}")
    if steps is not None and optimizer.warmup_steps > steps:
        yield Fault(
            ("optimizer", "warmup_steps"),
            f"must not exceed stage.steps={steps}, is {optimizer.warmup_steps}",
        )


# ---- features, evaluation ------------------------------------------------------------------

SLICE_RULE: Rule = ("must be I/N with 0 <= I < N, e.g. 3/64", lambda text: _is_slice(text))
ARRAY_RULES: Mapping[str, Rule] = {
    "slice": SLICE_RULE,
    "launch.array_tasks": AT_LEAST_ONE,
    "launch.array_parallelism": AT_LEAST_ONE,
    "launch.gpus_per_task": NOT_NEGATIVE,
    "launch.time_min": AT_LEAST_ONE,
}


def _features(config: FeaturesConfig) -> Iterator[Fault]:
    rules: Mapping[str, Rule] = {
        "manifests": NOT_EMPTY,
        "encoders": NOT_EMPTY,
        "only": NOT_EMPTY,
        "clips_per_shard": AT_LEAST_ONE,
        "batch_clips": AT_LEAST_ONE,
        "batch_audio_s": ABOVE_ZERO,
        "workers": NOT_NEGATIVE,
        "devices": (
            "must be a list of devices: cpu, cuda or cuda:N",
            lambda names: bool(names) and all(map(DEVICE.fullmatch, names)),
        ),
    }
    yield from look(config, {**rules, **ARRAY_RULES})
    for name, encoder in config.encoders.items():
        path = ("encoders", name)
        if not RUN_NAME.fullmatch(name):
            yield Fault(path, "names a folder: letters, digits, '.', '_' and '-' only; rename it")
        yield from look(encoder, {"pool": AT_LEAST_ONE}, path)
    for name in config.only or ():
        yield from one_of(("only",), "encoder", name, list(config.encoders))


def _is_slice(text: str) -> bool:
    match = SLICE.fullmatch(text)
    return match is not None and int(match[1]) < int(match[2])


def _evaluation(config: EvalConfig) -> Iterator[Fault]:
    rules: Mapping[str, Rule] = {
        "runs": NOT_EMPTY,
        "manifests": NOT_EMPTY,
        "tasks": NOT_EMPTY,
        "max_questions": AT_LEAST_ONE,
        "batch_questions": AT_LEAST_ONE,
        "max_new_tokens": AT_LEAST_ONE,
        "seed": NOT_NEGATIVE,
    }
    yield from look(config, {**rules, **ARRAY_RULES})


# ---- ablations -----------------------------------------------------------------------------


def _ablation(config: AblationConfig) -> Iterator[Fault]:
    rules: Mapping[str, Rule] = {"arms": NOT_EMPTY, "seeds": NOT_EMPTY, "parallel": AT_LEAST_ONE}
    yield from look(config, {**rules, **ARRAY_RULES})
    for name, arm in config.arms.items():
        if not RUN_NAME.fullmatch(name):
            yield Fault(
                ("arms", name),
                "names folders: letters, digits, '.', '_' and '-' only; rename it",
            )
        yield from look(arm, {"stages": NOT_EMPTY}, ("arms", name))
    if config.baseline_arm is not None:
        yield from one_of(("baseline_arm",), "arm", config.baseline_arm, list(config.arms))
    for task, share in config.expect.items():
        if not SHARE[1](share):
            yield Fault(("expect", task), f"{SHARE[0]}, is {share:g}")
    for seed in config.seeds:
        if seed < 0:
            yield Fault(("seeds",), f"{NOT_NEGATIVE[0]}, one is {seed}")
    yield from _distinct(("seeds",), config.seeds)
    for axis, values in config.axes.items():
        if not values:
            yield Fault(("axes", axis), "must have at least one value; drop the axis otherwise")
        yield from _distinct(("axes", axis), values)


def _distinct(path: KeyPath, values: list[Any]) -> Iterator[Fault]:
    """A value that stands there twice would be the same trial twice."""
    seen = list(map(repr, values))
    if twice := [text for text in dict.fromkeys(seen) if seen.count(text) > 1]:
        yield Fault(path, f"must be different, but {', '.join(twice)} stands there twice")
