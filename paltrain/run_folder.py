"""A run: its folder and its identity.

    runs/NAME/
        config.yaml       resolved; the process reads nothing else
        launch.json       code version, command line
        status.json       state (running, stopped, failed, finished), step, loss, heartbeat
        failure.json      what ended the latest attempt, if it failed: rank, host, traceback
        metrics.jsonl     one line a step
        checkpoints/      see paltrain.train.checkpoint
        tokenizer/        where the run trained one
        model/            the exported model, once finished
        log.txt, ranks/   what the ranks said

`run.name` is the identity: the same command again goes on where the run stands, if its
configuration is the same in everything that shapes the result; until it has come to a step it may
be corrected. Importing this needs no torch.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from paltrain.config.load import load_config, save_config, to_yaml
from paltrain.config.schema import TrainConfig
from paltrain.errors import ConfigError
from paltrain.files import write_json
from paltrain.log import get_logger
from paltrain.status import FINISHED, RUNNING, StatusFile

log = get_logger(__name__)

# What may change when a run goes on: none of it shapes the result.
FREE_KEYS = (
    *("launch.", "logging.", "checkpoint.keep", "checkpoint.every_steps", "run.fresh"),
    *("data.cache_", "data.reader_threads", "data.prefetch_steps"),
)


@dataclass(frozen=True)
class RunFolder:
    """Where everything of a run lies; the paths are written here and nowhere else."""

    path: Path

    @classmethod
    def of(cls, config: TrainConfig) -> RunFolder:
        return cls(Path(config.run.root) / config.run.name)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def launch(self) -> Path:
        return self.path / "launch.json"

    @property
    def status(self) -> StatusFile:
        return StatusFile(self.path / "status.json")

    @property
    def failure(self) -> Path:
        return self.path / "failure.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def bad_samples(self) -> Path:
        return self.path / "bad_samples.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def ranks(self) -> Path:
        return self.path / "ranks"

    def standing(self) -> str:
        """How far the run is, for people: `stopped at step 12 of 100`."""
        status = self.status.read()
        if not status:
            return "not started"
        text = self.metrics.read_text(encoding="utf-8") if self.metrics.exists() else ""
        n_steps, total = text.count("\n"), status.get("total_steps", "an unknown number")
        return f"{status['state']} at step {n_steps} of {total}"

    def code_version(self) -> str:
        """The commit that `launch.json` names."""
        if not self.launch.exists():
            return "unknown"
        launch = json.loads(self.launch.read_text(encoding="utf-8"))
        return str(launch.get("code_version", "unknown"))

    @property
    def is_finished(self) -> bool:
        return self.status.read().get("state") == FINISHED

    @property
    def is_untrained(self) -> bool:
        """Whether no attempt has come to a step, and none is under way as far as the files say."""
        return (
            self.status.read().get("state") not in (RUNNING, FINISHED)
            and not (self.metrics.exists() and self.metrics.stat().st_size)
            and not (self.checkpoints.is_dir() and any(self.checkpoints.iterdir()))
        )


def check_idle(folder: RunFolder) -> None:
    """Raises ConfigError if a process trains the run now."""
    if not folder.lock.exists():
        return
    with folder.lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{folder.path} is being trained by another process: wait for it, or end it"
            ) from error
        except OSError:
            return  # a file system without locks


def prepare_run(config: TrainConfig, *, launch: Mapping[str, Any] | None = None) -> RunFolder:
    """Make or reopen the run's folder and write its configuration.

    launch: kept as `launch.json`. With `run.fresh` an old folder is moved aside; an untrained run
    takes over a changed configuration, so none of its jobs may be in a queue.
    Raises ConfigError listing the keys that differ from those the run was started with, or if it is
    being trained.
    """
    folder = RunFolder.of(config)
    check_idle(folder)
    if config.run.fresh and folder.path.exists():
        log.info("run.fresh: moved %s to %s", folder.path, _move_aside(folder.path))
    if folder.config.exists():
        if folder.is_untrained:
            _take_over(folder, config)
        check_same(folder, config)
    elif folder.path.exists() and any(folder.path.iterdir()):
        raise ConfigError(
            f"{folder.path} exists, but is no run (it has no {folder.config.name}): choose "
            "another run.name, or move it away"
        )
    folder.path.mkdir(parents=True, exist_ok=True)
    save_config(replace(config, run=replace(config.run, fresh=False)), folder.config)
    if launch is not None:
        write_json(folder.launch, dict(launch))
    return folder


def _take_over(folder: RunFolder, config: TrainConfig) -> None:
    """Correct the configuration of a run that never trained, as far as it is another."""
    changed = _changes(folder, config)
    if changed:
        log.info("%s never trained: it takes over %s", folder.path, "; ".join(changed))
        shutil.rmtree(folder.tokenizer, ignore_errors=True)  # of the former texts and size
        save_config(config, folder.config)


def _changes(folder: RunFolder, config: TrainConfig) -> list[str]:
    """`differences` between the run's own configuration and another."""
    return differences(_saved(folder.config), yaml.safe_load(to_yaml(config)))


def check_same(folder: RunFolder, config: TrainConfig) -> None:
    """Raises ConfigError listing the keys that shape the result and differ from the run's own."""
    changed = _changes(folder, config)
    if changed:
        raise ConfigError(
            f"the run {folder.path} was started with another configuration:\n  "
            + "\n  ".join(changed)
            + "\nrestore it, choose another run.name, or start anew with run.fresh=true"
        )


def _saved(file: Path) -> Any:
    """A saved configuration; a key that has come into the schema since has its default there."""
    try:
        return yaml.safe_load(to_yaml(load_config(TrainConfig, [file], [])))
    except ConfigError:  # a key that has gone since: shown as it stands
        return yaml.safe_load(file.read_text(encoding="utf-8"))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`key: old value -> new value` for every dotted key that shapes a run's result and differs."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    keys = [k for k in {**before, **after} if not k.startswith(FREE_KEYS)]
    return [
        f"{key}: {before.get(key, 'absent')!r} -> {after.get(key, 'absent')!r}"
        for key in keys
        if before.get(key, "absent") != after.get(key, "absent")
    ]


def init_runs(config: TrainConfig) -> list[Path]:
    """The folders of the runs that `stage.init_from` may mean, whether they are there or not: it
    names a run, or a run's exported model by its path."""
    name = config.stage.init_from
    if name is None:
        return []
    run = Path(config.run.root, name).absolute()
    path = Path(name).absolute()
    return [run, *([path.parent] if path == RunFolder(path.parent).model else [])]


def find_init_folder(config: TrainConfig) -> Path | None:
    """The model folder that `stage.init_from` means: a finished run's, or one given by its path.

    Raises ConfigError if it is not there, saying what to run first.
    """
    name = config.stage.init_from
    if name is None:
        return None
    run = RunFolder(Path(config.run.root) / name)
    if run.config.exists():
        if not run.is_finished:
            raise ConfigError(
                f"stage.init_from: the run '{name}' has not finished ({run.standing()}): wait for "
                "it, launch it again if it has stopped, or name its configuration before this one"
            )
        return run.model
    if (Path(name) / "config.json").exists():
        return Path(name)
    made_by = f"the run {Path(name).parent}" if "/" in name else f"the stage with run.name={name}"
    raise ConfigError(
        f"stage.init_from: '{name}' is neither a run in {config.run.root}/ nor a model folder: "
        f"launch {made_by} first, or give a folder with config.json"
    )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value


def _move_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    return path.rename(aside)
