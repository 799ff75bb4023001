"""A trial as commands that a user can give, over the files that the ablation names: nothing need be
written for them.

    python tools/launch.py STAGE1 STAGE2 EVALUATION run.root=TRIAL run.seed=0 runs=[...] ...

is one chain, which a cluster queues at once. Words go to every CONFIG that knows their key, so
where the stages of a trial do not take the same ones, each stage has a line of its own, and the
lines are to be run one after the other.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from typing import Any

import yaml

from cluster.ablation.commands import LAUNCH
from paltrain.ablation.build import Trial
from paltrain.config.load import load_config
from paltrain.config.schema import AblationConfig, EvalConfig, TrainConfig

JOB = "evaluation"  # the folder of the evaluation's job, below the trial's


def commands_to_give(trial: Trial, config: AblationConfig) -> list[str]:
    """What runs a trial, a line each."""
    files = config.arms[trial.variant.arm].stages
    words = [words_for(stage, file) for stage, file in zip(trial.stages, files, strict=True)]
    evaluated = words_of_evaluation(trial, config.evaluate)
    if all(each == words[0] for each in words):
        return [_launch(*files, config.evaluate, *words[0], *evaluated)]
    lines = [_launch(file, *own) for file, own in zip(files, words, strict=True)]
    return [*lines, _launch(config.evaluate, *evaluated)]


def words_for(stage: TrainConfig, file: str) -> list[str]:
    """`key=value` words with which a stage's file says what the trial's stage is."""
    own = [f"run.root={_text(stage.run.root)}", f"run.seed={stage.run.seed}"]
    return [*own, *_differences(load_config(TrainConfig, [file], own), stage, ())]


def words_of_evaluation(trial: Trial, file: str) -> list[str]:
    """The same of a trial's evaluation, with a job's folder of its own."""
    own = [f"launch.root={_text(str(trial.folder))}", f"launch.name={JOB}"]
    plain = load_config(EvalConfig, [file], own)
    differing = _differences(plain, trial.evaluation, ())
    return [*own, *(word for word in differing if not word.startswith("launch."))]


def _launch(*words: str) -> str:
    return shlex.join(["python", LAUNCH, *words])


def _differences(plain: Any, wanted: Any, path: Sequence[str]) -> Iterator[str]:
    """A word for each leaf of `wanted` that is not as in `plain`, of the same schema. No word takes
    an entry of a mapping away, as none that made `wanted` did."""
    for name in [field.name for field in fields(wanted) if field.name != "extends"]:
        old, new, here = getattr(plain, name), getattr(wanted, name), (*path, name)
        if old == new:
            continue
        if is_dataclass(old) and is_dataclass(new):
            yield from _differences(old, new, here)
        elif _has_entries(old) and _has_entries(new):
            for key, entry in new.items():
                yield from _differences(old[key], entry, (*here, key))
        else:
            yield f"{'.'.join(here)}={_text(new)}"


def _has_entries(value: Any) -> bool:
    """Whether it is a mapping to dataclasses, such as the streams."""
    return isinstance(value, Mapping) and any(is_dataclass(entry) for entry in value.values())


def _text(value: Any) -> str:
    """A value as a word says it: text as it is where YAML takes it for text, else JSON."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, str) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else asdict(value)
