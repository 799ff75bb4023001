"""From an ablation's configuration to its trials (a builder). Needs no torch.

    arms x values of the axes ──> variants      a row of the table each
    variants x seeds          ──> trials        a folder each: ROOT/NAME/VARIANT-seedK

1. each stage's file is read as it stands, and with the arm's `set` words and the axes' values, for
   the keys that it has a place for; an axis that none of an arm's stages has a place for is no axis
   of that arm
2. in a trial the stages' root is the trial's folder, so that `stage.init_from: NAME` means the
   trial's own stage of that name; another run that a stage starts from is pinned to where the
   stage's own file says it is (ROOT/NAME/model)
3. the evaluation is that of the last stage

All faults are told at once, before anything is written.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paltrain.ablation.knowledge import Known, known_to
from paltrain.config.load import load_config
from paltrain.config.schema import AblationConfig, ArmConfig, EvalConfig, TrainConfig
from paltrain.errors import ConfigError
from paltrain.run_folder import RunFolder

OWN_KEYS = ("run.root", "run.name", "run.seed")  # what tells one trial's runs from another's
NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Variant:
    """A row of the table: an arm with one value of each axis that it knows."""

    name: str
    arm: str
    values: Mapping[str, Any]
    note: str | None = None


@dataclass(frozen=True)
class Trial:
    """One variant with one seed. stages: resolved, to be trained in order, below `folder`."""

    name: str
    variant: Variant
    seed: int
    folder: Path
    stages: tuple[TrainConfig, ...]
    evaluation: EvalConfig

    @property
    def last(self) -> RunFolder:
        """The run that is evaluated."""
        return RunFolder.of(self.stages[-1])


@dataclass(frozen=True)
class Plan:
    """All trials, variant by variant. remarks: what a user should know of the plan, a sentence
    each."""

    name: str
    folder: Path
    trials: tuple[Trial, ...]
    baseline_arm: str
    remarks: tuple[str, ...] = ()

    @property
    def variants(self) -> list[Variant]:
        return list({trial.variant.name: trial.variant for trial in self.trials}.values())

    def trials_of(self, variant: Variant) -> list[Trial]:
        """By seed."""
        return [trial for trial in self.trials if trial.variant.name == variant.name]

    @property
    def first_trained(self) -> list[Trial]:
        """Of each variant the first trial that has a model, where there is one."""
        of_variants = [self.trials_of(variant) for variant in self.variants]
        there = [[trial for trial in own if trial.last.is_finished] for own in of_variants]
        return [own[0] for own in there if own]


def plan_of(config: AblationConfig, *, name: str) -> Plan:
    """The trials of an ablation in ROOT/`name`.

    Raises:
        ConfigError: with all faults of its arms, axes and files.
    """
    return _Planner(config, Path(config.launch.root) / name).plan(name)


def arm_stages(config: AblationConfig) -> tuple[dict[str, list[TrainConfig]], EvalConfig]:
    """Each arm's stages with its `set` words but no axis, and the evaluation.

    Raises:
        ConfigError: as `plan_of`.
    """
    planner = _Planner(config, Path(config.launch.root))
    planner.plan("")
    evaluation = planner.evaluation()
    assert evaluation is not None, "the plan has no fault"
    return {name: planner.stages(name, arm, {}) for name, arm in config.arms.items()}, evaluation


@dataclass
class _Planner:
    config: AblationConfig
    folder: Path
    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    _read: dict[tuple[str, ...], TrainConfig | None] = field(default_factory=dict)

    def plan(self, name: str) -> Plan:
        known = {arm: self._known_keys(arm, each) for arm, each in self.config.arms.items()}
        self._check_axes(known)
        evaluation = self.evaluation()
        self._raise_if_any()
        assert evaluation is not None, "a missing evaluation is a fault"
        trials = [
            trial
            for arm_name, arm in self.config.arms.items()
            for variant in self._variants(arm_name, arm, known[arm_name])
            for trial in self._trials(variant, arm, evaluation)
        ]
        self._check_names(trials)
        self._raise_if_any()
        baseline = self.config.baseline_arm or next(iter(self.config.arms))
        return Plan(name, self.folder, tuple(trials), baseline, tuple(self.remarks))

    def evaluation(self) -> EvalConfig | None:
        """As its file says, but for what is the ablation's to say."""
        try:
            read = load_config(EvalConfig, [self.config.evaluate], ["runs=[later]"])
        except ConfigError as error:
            self._fault(f"evaluate: {error}")
            return None
        return replace(read, out=None, slice=None, shuffle_audio=self.config.with_control)

    def stages(self, name: str, arm: ArmConfig, values: Mapping[str, Any]) -> list[TrainConfig]:
        """An arm's stages with its `set` words and the axes' values, where they have a place."""
        words = [*arm.set, *(f"{key}={json.dumps(value)}" for key, value in values.items())]
        stages = []
        for path in arm.stages:
            plain = self._load(path, name)
            if plain is not None:
                fitting = [word for word in words if _knows(plain, word) is Known.yes]
                stages.append(self._load(path, name, *fitting))
        return [stage for stage in stages if stage is not None]

    def _load(self, path: str, arm: str, *words: str) -> TrainConfig | None:
        key = (path, *words)
        if key not in self._read:
            self._read[key] = None
            try:
                self._read[key] = load_config(TrainConfig, [path], list(words))
            except ConfigError as error:
                with_words = f" with {' '.join(words)}" if words else ""
                self._fault(f"arms.{arm}.stages: {path}{with_words}: {error}")
        return self._read[key]

    def _known_keys(self, name: str, arm: ArmConfig) -> dict[str, Known]:
        """How an arm knows each axis; what is wrong with its stages and `set` words is noted."""
        stages = [stage for path in arm.stages if (stage := self._load(path, name))]
        if len(stages) < len(arm.stages):
            return {}
        names = [stage.run.name for stage in stages]
        if len(set(names)) < len(names):
            self._fault(
                f"arms.{name}.stages: two of them have the same run.name ({', '.join(names)}) and "
                "would share a folder: give each its own"
            )
        for word in arm.set:
            self._check_word(name, stages, word)
        return {axis: _best(known_to(stage, axis) for stage in stages) for axis in self.config.axes}

    def _check_word(self, arm: str, stages: Sequence[TrainConfig], word: str) -> None:
        key, equals, _ = word.partition("=")
        known = _best(_knows(stage, word) for stage in stages)
        if not equals or not key:
            self._fault(f"arms.{arm}.set: '{word}' must be key=value, e.g. optimizer.lr=1e-4")
        elif key in OWN_KEYS:
            self._fault(f"arms.{arm}.set: {key} is the ablation's own, not an arm's: leave it out")
        elif known is not Known.yes:
            self._fault(f"arms.{arm}.set: {key} {_why(known)} ({', '.join(_streams(stages))})")

    def _check_axes(self, known: Mapping[str, Mapping[str, Known]]) -> None:
        for axis in self.config.axes:
            of_arms = {arm: keys[axis] for arm, keys in known.items() if axis in keys}
            if axis in OWN_KEYS:
                self._fault(f"axes.{axis}: tells trials apart and is no axis; seeds has the seeds")
            elif of_arms and Known.yes not in of_arms.values():
                self._fault(f"axes.{axis}: {_why(_best(of_arms.values()))}, of no arm")
            else:
                without = [arm for arm, how in of_arms.items() if how is not Known.yes]
                self.remarks += [
                    f"{arm} has no place for {axis}: that axis is left out for it"
                    for arm in without
                ]

    def _variants(self, name: str, arm: ArmConfig, known: Mapping[str, Known]) -> Iterator[Variant]:
        axes = [axis for axis in self.config.axes if known[axis] is Known.yes]
        for values in itertools.product(*(self.config.axes[axis] for axis in axes)):
            chosen = dict(zip(axes, values, strict=True))
            parts = [slug(axis, value) for axis, value in chosen.items()]
            yield Variant("-".join([name, *parts]), name, chosen, arm.note)

    def _trials(self, variant: Variant, arm: ArmConfig, evaluation: EvalConfig) -> Iterator[Trial]:
        stages = self.stages(variant.arm, arm, variant.values)
        if len(stages) < len(arm.stages):
            return
        for seed in self.config.seeds:
            name = f"{variant.name}-seed{seed}"
            own = _below(stages, self.folder / name, seed)
            heard = replace(evaluation, runs=[str(RunFolder.of(own[-1]).path)])
            yield Trial(name, variant, seed, self.folder / name, own, heard)

    def _check_names(self, trials: Sequence[Trial]) -> None:
        owners: dict[str, Trial] = {}
        for trial in trials:
            other = owners.setdefault(trial.name, trial)
            if other is not trial:
                self._fault(
                    f"two trials share the folder {trial.folder}: arms.{other.variant.arm} with "
                    f"{dict(other.variant.values)} and arms.{trial.variant.arm} with "
                    f"{dict(trial.variant.values)}: rename an arm"
                )

    def _fault(self, sentence: str) -> None:
        if sentence not in self.faults:
            self.faults.append(sentence)

    def _raise_if_any(self) -> None:
        if self.faults:
            raise ConfigError("the ablation cannot be run:\n  " + "\n  ".join(self.faults))


def slug(key: str, value: Any) -> str:
    """A value of an axis as part of a folder's name; a number takes its key's last word with it.

    >>> slug("model.streams.sslam.layers", {"start": 4})
    'start4'
    >>> slug("model.streams.sslam_summary.connector.n_summary", 16)
    'n_summary16'
    """
    if isinstance(value, Mapping):
        text = "_".join(f"{name}{each}" for name, each in value.items())
    elif isinstance(value, str):
        text = value
    elif isinstance(value, list):
        text = key.rpartition(".")[2] + "_".join(map(str, value))
    else:
        text = f"{key.rpartition('.')[2]}{value}"
    return NOT_IN_NAMES.sub("_", text)


def _below(stages: Sequence[TrainConfig], folder: Path, seed: int) -> tuple[TrainConfig, ...]:
    """The stages as runs below a trial's folder, with its seed."""
    own: list[TrainConfig] = []
    for stage in stages:
        start = stage.stage.init_from
        if start is not None and start not in [each.run.name for each in own]:
            start = _pinned(start, stage.run.root)
        run = replace(stage.run, root=str(folder), seed=seed)
        own.append(replace(stage, run=run, stage=replace(stage.stage, init_from=start)))
    return tuple(own)


def _pinned(start: str, root: str) -> str:
    """What `stage.init_from` means outside of the trial: a run of the file's own root by its
    exported model, a folder as it is."""
    if "/" in start or (Path(start) / "config.json").exists():
        return start
    return str(RunFolder(Path(root) / start).model)


def _knows(stage: TrainConfig, word: str) -> Known:
    return known_to(stage, word.partition("=")[0])


def _best(known: Any) -> Known:
    """How well a key is known to some stages: by the one that knows it best."""
    return min(known, key=list(Known).index, default=Known.no)


def _why(known: Known) -> str:
    if known is Known.no:
        return "is no key of a training run"
    return "lies below a stream or part that no stage has"


def _streams(stages: Sequence[TrainConfig]) -> list[str]:
    names = dict.fromkeys(name for stage in stages for name in stage.model.streams)
    return [f"streams: {', '.join(names) or 'none'}"]
