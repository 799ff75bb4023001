"""The process of a run: `python -m paltrain.run FOLDER`, once for each rank.

It reads the folder's `config.yaml` and nothing else, trains to the end, a signal or a fault, and
says in the folder how it stands (`paltrain.run_folder`). Importing this needs no torch.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, NoReturn

from paltrain.config.load import load_config
from paltrain.config.schema import TrainConfig
from paltrain.errors import EXIT_USER_ERROR, ConfigError, PaltrainError
from paltrain.log import get_logger, setup_logging
from paltrain.run_folder import RunFolder, find_init_folder
from paltrain.status import FAILED, FINISHED, RUNNING, STOPPED
from paltrain.train.faults import is_environment
from paltrain.train.signals import EXIT_CODE, StopFlag, ignore_stops

LOCK_TRIED_EVERY_S = 1.0
EXIT_BUG = 1

log = get_logger("paltrain.run")  # not __name__, which is __main__ in a rank


def main(run_folder: Path, *, is_restart: bool = False) -> int:
    """Train the run in `run_folder` as one of its ranks; returns the process's exit code.

    is_restart: a process of an earlier attempt may still hold the run, on a node that was cut off;
    it is waited for, since its watchdog ends it.

    0: finished. 2: something a user can mend. 85: saved after a signal, to go on later. 130: saved
    after Ctrl-C.
    """
    folder = RunFolder(run_folder)
    setup_logging(file=folder.log)
    is_first = os.environ.get("RANK", "0") == "0"
    with StopFlag() as stop:
        try:
            patience_s = _patience_s(folder) if is_restart else 0.0
            owner = _sole_owner(folder, patience_s) if is_first else nullcontext()
            with owner, _noted_failure(folder):
                return _train(folder, stop)
        except Exception as error:
            if not _is_mistake(error):
                raise
            log.error("%s", error)
            if not is_first:
                print(f"error: {error}", file=sys.stderr)  # the launcher shows its last lines
            return EXIT_USER_ERROR


@contextmanager
def _sole_owner(folder: RunFolder, patience_s: float) -> Iterator[None]:
    """Hold the run's lock, which ends with the process however it ends.

    Raises ConfigError if another process trains the run and does not end within `patience_s`. A
    file system without locks goes without.
    """
    with folder.lock.open("w") as file:
        deadline = time.monotonic() + patience_s
        while not _has_locked(file, folder):
            if time.monotonic() >= deadline:
                raise ConfigError(
                    f"{folder.path} is being trained by another process: wait for it, or end it"
                )
            time.sleep(LOCK_TRIED_EVERY_S)
        yield


def _has_locked(file: IO[str], folder: RunFolder) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("no locks here (%s): let only one job train %s", error, folder.path)
    return True


def _patience_s(folder: RunFolder) -> float:
    """How long a rank of an earlier attempt may live on: as long as its collectives wait."""
    config = load_config(TrainConfig, [folder.config])
    return 0.95 * config.engine.timeout_s


@contextmanager
def _noted_failure(folder: RunFolder) -> Iterator[None]:
    """Note what ends the run, if an error does: the first rank to fail is the one that counts."""
    try:
        yield
    except Exception as error:
        try:
            _note_failure(folder, error)
        except OSError as full:  # the disk that failed the run may fail its status too
            log.error("cannot write to %s either: %s", folder.path, full)
        raise


def _note_failure(folder: RunFolder, error: Exception) -> None:
    note = {
        "time": time.time(),
        "rank": int(os.environ.get("RANK", "0")),
        "host": socket.gethostname(),
        "message": f"{type(error).__name__}: {error}" if not _is_mistake(error) else str(error),
        "is_environment": is_environment(error),
        "traceback": None if _is_mistake(error) else traceback.format_exc(),
    }
    try:
        with folder.failure.open("x", encoding="utf-8") as file:
            json.dump(note, file, indent=1)
    except FileExistsError:
        return
    status = {k: v for k, v in folder.status.read().items() if k not in ("state", "time")}
    folder.status.write(FAILED, **{**status, "error": note["message"]})


def _is_mistake(error: Exception) -> bool:
    """Whether a user can mend it, so that its message says all."""
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, PaltrainError) or is_full


def _train(folder: RunFolder, stop: StopFlag) -> int:
    config = load_config(TrainConfig, [folder.config])
    init_folder = find_init_folder(config)
    from paltrain.train.build import build_training
    from paltrain.train.job import Paths

    with build_training(
        config,
        Paths.of(folder),
        init_folder=init_folder,
        code_version=folder.code_version(),
        stop=stop,
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


def run_process(run_folder: Path, *, is_restart: bool = False) -> NoReturn:
    """`main`, and the end of the process with its exit code (1: a bug, with its traceback).

    After an error the process group is not taken apart: with peers gone that aborts now and then,
    and the exit code is lost.
    """
    try:
        exit_code = main(run_folder, is_restart=is_restart)
    except Exception:
        traceback.print_exc()
        exit_code = EXIT_BUG
    ignore_stops()
    if exit_code in (EXIT_BUG, EXIT_USER_ERROR):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print("usage: python -m paltrain.run RUN_FOLDER", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    run_process(Path(sys.argv[1]))
