"""From an ablation's configuration to its trials (a builder). Needs no torch.

    arms x values of the axes ──> variants      a row of the table each
    variants x seeds          ──> trials        a folder each: ROOT/NAME/VARIANT-seedK

1. each stage's file is read as it stands, and with the `set` words (of all arms, then the arm's
   own) and the axes' values, for the keys that it has a place for; an axis that none of an arm's
   stages has a place for is no axis of that arm
2. in a trial the stages' root is the trial's folder, so that `stage.init_from: NAME` means the
   trial's own stage of that name; another run that a stage starts from is pinned to where the
   stage's own file says it is (ROOT/NAME/model)
3. the evaluation is that of the last stage

All faults are told at once, before anything is written.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from paltrain.ablation.knowledge import Known, Place, best_of, place_of
from paltrain.ablation.names import slug
from paltrain.config.load import load_config, to_yaml
from paltrain.config.report import COMMAND_LINE
from paltrain.config.schema import AblationConfig, ArmConfig, EvalConfig, TrainConfig
from paltrain.errors import ConfigError
from paltrain.run_folder import RunFolder

OF_A_PLACE = ("launch", "logging")  # of a run's keys: where it runs, not what it comes to
OWN_KEYS = ("run.root", "run.name", "run.seed")  # what tells one trial's runs from another's


@dataclass(frozen=True)
class Variant:
    """A row of the table: an arm with one value of each axis that it knows."""

    name: str
    arm: str
    values: Mapping[str, Any]
    note: str | None = None
    reason: str | None = None  # why it may stay under what is expected


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

    @property
    def identity(self) -> str:
        """Names what the trial comes to: its configurations, but for where they run."""
        parts = [yaml.safe_load(to_yaml(each)) for each in (*self.stages, self.evaluation)]
        for part in parts:
            for key in OF_A_PLACE:
                part.pop(key, None)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


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
        known = {arm: self._places(arm, each) for arm, each in self.config.arms.items()}
        self._check_axes(known)
        self._check_common_words()
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
        axes = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        words = [*self.config.set, *arm.set, *axes]
        stages = []
        for path in arm.stages:
            plain = self._load(path, name)
            if plain is not None:
                fitting = [word for word in words if _place(plain, word).known is Known.yes]
                stages.append(self._load(path, name, *fitting))
        return [stage for stage in stages if stage is not None]

    def _load(self, path: str, arm: str, *words: str) -> TrainConfig | None:
        key = (path, *words)
        if key not in self._read:
            self._read[key] = None
            try:
                self._read[key] = load_config(TrainConfig, [path], list(words))
            except ConfigError as error:
                for line in _faults_of(error):
                    self._fault(self._named(line, path, arm, words))
        return self._read[key]

    def _named(self, line: str, path: str, arm: str, words: Sequence[str]) -> str:
        """A fault of a stage with `words`, named after what says it in the ablation's file."""
        source, key, sentence = (*line.split(": ", 2), "", "")[:3]
        said = next((w for w in reversed(words) if _is_below(key, w.partition("=")[0])), None)
        if source != COMMAND_LINE or said is None:
            with_words = f" with {' '.join(words)}" if words else ""
            return f"arms.{arm}.stages: {path}{with_words}: {line.removeprefix(f'{path}: ')}"
        if said.partition("=")[0] in self.config.axes:
            return f"axes.{key}: {sentence}"
        where = f"arms.{arm}.set" if said in self.config.arms[arm].set else "set"
        return f"{where}: '{said}': {key}: {sentence}"

    def _places(self, name: str, arm: ArmConfig) -> dict[str, Place]:
        """How an arm knows each axis; what is wrong with its stages and `set` words is noted."""
        stages = self._plain(name, arm)
        if len(stages) < len(arm.stages):
            return {}
        names = [stage.run.name for stage in stages]
        if len(set(names)) < len(names):
            self._fault(
                f"arms.{name}.stages: two of them have the same run.name ({', '.join(names)}) and "
                "would share a folder: give each its own"
            )
        for word in arm.set:
            place = best_of(_place(stage, word) for stage in stages)
            if self._is_word(f"arms.{name}.set", word) and place.known is not Known.yes:
                self._fault(f"arms.{name}.set: '{word}': {place.fault(f'arm {name} has no')}")
        axes = self.config.axes
        return {axis: best_of(place_of(stage, axis) for stage in stages) for axis in axes}

    def _plain(self, name: str, arm: ArmConfig) -> list[TrainConfig]:
        """An arm's stages as their files say, as far as they can be read."""
        return [stage for path in arm.stages if (stage := self._load(path, name))]

    def _is_word(self, where: str, word: str) -> bool:
        """Whether a `set` word is one, whatever its key; what is wrong is noted."""
        key, equals, _ = word.partition("=")
        if not equals or not key:
            self._fault(f"{where}: '{word}' must be key=value, e.g. optimizer.lr=1e-4")
        elif key in OWN_KEYS:
            self._fault(f"{where}: {key} is the ablation's own, not an arm's: leave it out")
        return bool(equals and key) and key not in OWN_KEYS

    def _check_common_words(self) -> None:
        """The `set` words of all arms."""
        stages = {name: self._plain(name, arm) for name, arm in self.config.arms.items()}
        for word in self.config.set:
            if self._is_word("set", word):
                of_arms = {
                    name: best_of(_place(stage, word) for stage in own)
                    for name, own in stages.items()
                    if own
                }
                self._check_places(
                    f"set: '{word}'", word.partition("=")[0], of_arms, "that setting"
                )

    def _check_axes(self, known: Mapping[str, Mapping[str, Place]]) -> None:
        for axis in self.config.axes:
            if axis in OWN_KEYS:
                self._fault(f"axes.{axis}: tells trials apart and is no axis; seeds has the seeds")
                continue
            of_arms = {arm: places[axis] for arm, places in known.items() if axis in places}
            self._check_places(f"axes.{axis}", axis, of_arms, "that axis")

    def _check_places(self, where: str, key: str, of_arms: Mapping[str, Place], what: str) -> None:
        """A key that no arm knows is a fault, one that some do not know a remark. what: it is."""
        best = best_of(of_arms.values())
        if of_arms and best.known is not Known.yes:
            self._fault(f"{where}: {best.fault('no arm has a')}")
            return
        self.remarks += [
            f"{arm} has no place for {key}: {what} is left out for it"
            for arm, place in of_arms.items()
            if place.known is not Known.yes
        ]

    def _variants(self, name: str, arm: ArmConfig, known: Mapping[str, Place]) -> Iterator[Variant]:
        axes = [axis for axis in self.config.axes if known[axis].known is Known.yes]
        for values in itertools.product(*(self.config.axes[axis] for axis in axes)):
            chosen = dict(zip(axes, values, strict=True))
            parts = [slug(axis, value) for axis, value in chosen.items()]
            yield Variant("-".join([name, *parts]), name, chosen, arm.note, arm.reason)

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
                remedy = "rename an arm"
                if trial.variant.arm == other.variant.arm:
                    remedy = "give the axes values that differ in letters, digits, '.', '_' or '-'"
                self._fault(
                    f"two trials share the folder {trial.folder}: arms.{other.variant.arm} with "
                    f"{dict(other.variant.values)} and arms.{trial.variant.arm} with "
                    f"{dict(trial.variant.values)}: {remedy}"
                )

    def _fault(self, sentence: str) -> None:
        if sentence not in self.faults:
            self.faults.append(sentence)

    def _raise_if_any(self) -> None:
        if self.faults:
            raise ConfigError("the ablation cannot be run:\n  " + "\n  ".join(self.faults))


def _faults_of(error: ConfigError) -> list[str]:
    """The faults of a configuration that could not be loaded, a line each."""
    first, *lines = str(error).split("\n  ")
    return lines or [first]


def _is_below(key: str, other: str) -> bool:
    """Whether a dotted key is `other`, or below it."""
    return f"{key}.".startswith(f"{other}.")


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


def _place(stage: TrainConfig, word: str) -> Place:
    return place_of(stage, word.partition("=")[0])
