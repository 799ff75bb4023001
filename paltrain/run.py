"""A run: its folder, its identity, and the process `python -m paltrain.run FOLDER`.

    runs/NAME/
        config.yaml       resolved; the process reads nothing else
        launch.json       code version, command line
        status.json       state (running, stopped, failed, finished), step, total_steps, error
        metrics.jsonl     one line a step
        checkpoints/      see paltrain.train.checkpoint
        tokenizer/        where the run trained one
        model/            the exported model, once finished
        log.txt, ranks/   what the ranks said

`run.name` is the identity: the same command again goes on where the run stands, if its
configuration is the same in everything that shapes the result. Importing this needs no torch.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from paltrain.config.load import load_config, save_config, to_yaml
from paltrain.config.schema import TrainConfig
from paltrain.errors import EXIT_USER_ERROR, ConfigError, PaltrainError
from paltrain.log import get_logger, setup_logging
from paltrain.status import FAILED, FINISHED, RUNNING, STOPPED, StatusFile, write_json

log = get_logger("paltrain.run")  # not __name__, which is __main__ in a rank

# What may change when a run goes on: none of it shapes the result.
FREE_KEYS = ("launch.", "logging.", "checkpoint.keep", "checkpoint.every_steps", "run.fresh")


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

    @property
    def is_finished(self) -> bool:
        return self.status.read().get("state") == FINISHED


def prepare_run(config: TrainConfig, *, launch: Mapping[str, Any] | None = None) -> RunFolder:
    """Make or reopen the run's folder and write its configuration.

    launch: kept as `launch.json`. With `run.fresh` an old folder is moved aside.
    Raises ConfigError listing the keys that differ from those the run was started with.
    """
    folder = RunFolder.of(config)
    if config.run.fresh and folder.path.exists():
        log.info("run.fresh: moved %s to %s", folder.path, _move_aside(folder.path))
    if folder.config.exists():
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


def check_same(folder: RunFolder, config: TrainConfig) -> None:
    """Raises ConfigError listing the keys that shape the result and differ from the run's own."""
    old = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    changed = differences(old, yaml.safe_load(to_yaml(config)))
    if changed:
        raise ConfigError(
            f"the run {folder.path} was started with another configuration:\n  "
            + "\n  ".join(changed)
            + "\nrestore it, choose another run.name, or start anew with run.fresh=true"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`key: old value -> new value` for every dotted key that shapes a run's result and differs."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    keys = [k for k in {**before, **after} if not k.startswith(FREE_KEYS)]
    return [
        f"{key}: {before.get(key, 'absent')!r} -> {after.get(key, 'absent')!r}"
        for key in keys
        if before.get(key, "absent") != after.get(key, "absent")
    ]


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
                f"stage.init_from: the run '{name}' has not finished ({run.standing()}): launch it "
                "again first, it goes on from there"
            )
        return run.model
    if (Path(name) / "config.json").exists():
        return Path(name)
    raise ConfigError(
        f"stage.init_from: '{name}' is neither a run in {config.run.root}/ nor a model folder: "
        f"launch the stage with run.name={name} first, or give a folder with config.json"
    )


def main(run_folder: Path) -> int:
    """Train the run in `run_folder` as one of its ranks; returns the process's exit code.

    0: finished. 2: something a user can mend. 85: saved after a signal, to go on later. 130: saved
    after Ctrl-C.
    """
    folder = RunFolder(run_folder)
    setup_logging(file=folder.log)
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        with _sole_owner(folder) if is_first else nullcontext():
            return _train(folder)
    except Exception as error:
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not isinstance(error, PaltrainError) and not is_full:
            raise
        log.error("%s", error)
        if not is_first:
            print(f"error: {error}", file=sys.stderr)  # the launcher shows this rank's last lines
        return EXIT_USER_ERROR


@contextmanager
def _sole_owner(folder: RunFolder) -> Iterator[None]:
    """Hold the run's lock, which ends with the process however it ends; note why it failed.

    Raises ConfigError if another process trains the run. A file system without locks goes without.
    """
    with folder.lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{folder.path} is being trained by another process: wait for it, or end it"
            ) from error
        except OSError as error:
            log.warning("no locks here (%s): let only one job train %s", error, folder.path)
        try:
            yield
        except Exception as error:
            _note_failure(folder, error)
            raise


def _train(folder: RunFolder) -> int:
    config = load_config(TrainConfig, [folder.config])
    init_folder = find_init_folder(config)
    from paltrain.train.build import Paths, build_training
    from paltrain.train.signals import EXIT_CODE

    paths = Paths(
        tokenizer=folder.tokenizer,
        checkpoints=folder.checkpoints,
        metrics=folder.metrics,
        bad_samples=folder.bad_samples,
        wandb=folder.path,
        model=folder.model,
    )
    with build_training(
        config, paths, init_folder=init_folder, code_version=_code_version(folder)
    ) as job:
        first = job.comm.rank == 0
        if first:
            folder.status.write(RUNNING, step=job.step, total_steps=job.total_steps)
        wanted = job.train()
        if not wanted:
            job.export()
        if first:
            state = STOPPED if wanted else FINISHED
            folder.status.write(state, step=job.step, total_steps=job.total_steps)
            log.info("%s at step %d of %d: %s", state, job.step, job.total_steps, folder.path)
        job.comm.barrier()
        return EXIT_CODE[wanted] if wanted else 0


def _note_failure(folder: RunFolder, error: Exception) -> None:
    status = folder.status.read()
    status |= {"error": str(error)}
    try:
        folder.status.write(
            FAILED, **{k: v for k, v in status.items() if k not in ("state", "time")}
        )
    except OSError as full:  # the disk that failed the run may fail its status too
        log.error("cannot write %s either: %s", folder.status.path, full)


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


def _code_version(folder: RunFolder) -> str:
    if not folder.launch.exists():
        return "unknown"
    return str(json.loads(folder.launch.read_text(encoding="utf-8")).get("code_version", "unknown"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print("usage: python -m paltrain.run RUN_FOLDER", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    sys.exit(main(Path(sys.argv[1])))
