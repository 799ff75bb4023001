"""Start one process per device on this machine, and end them together.

    launcher ──┬── rank 0   console: goes straight through
               ├── rank 1   output in LOG_FOLDER/rank-1.log
               └── ...

Guarantees: when a rank fails the others get a moment to end by themselves and are then killed, by
the process groups that were started here and no others; the code returned is that of the rank that
failed first, 128 + n for one killed by signal n. SIGINT and SIGTERM are passed on, so that ranks
can save and stop; a second one kills. If the launcher itself dies, ranks get SIGTERM (Linux).
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from paltrain.errors import EXIT_USER_ERROR
from paltrain.train.signals import EXIT_INTERRUPTED, EXIT_REQUEUE

POLL_S = 0.05
GRACE_S = 5.0  # for ranks to end by themselves after one failed
TAIL_LINES = 25
PR_SET_PDEATHSIG = 1
# glibc maps every large tensor anew and gives it back at once, so each step touches fresh pages;
# kept, a step on a CPU is a tenth to a sixth shorter.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


def rank_environment(
    rank: int, world_size: int, *, port: int, threads: int, address: str = "127.0.0.1"
) -> dict[str, str]:
    """The variables that tell a process of a one-machine run who it is."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
    }


def own_environment() -> dict[str, str]:
    """This process's variables, and those that make a CPU process faster."""
    return {**ALLOCATOR, **os.environ}


def run_processes(
    command: Sequence[str],
    *,
    world_size: int,
    threads: int,
    log_folder: Path,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run `command` once per rank and wait; returns 0, or the first failed rank's exit code.

    environment: variables for every rank beyond this process's own.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    with ExitStack() as files:
        ranks = []
        for rank in range(world_size):
            variables = {
                **own_environment(),
                **(environment or {}),
                **rank_environment(rank, world_size, port=port, threads=threads),
            }
            log_file = log_folder / f"rank-{rank}.log"
            out = files.enter_context(log_file.open("w")) if rank else None
            process = subprocess.Popen(
                list(command),
                env=variables,
                stdout=out,
                stderr=subprocess.STDOUT if rank else None,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
            ranks.append(_Rank(rank, process, log_file))
        return _Group(ranks).wait()


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    log_file: Path

    def signal(self, number: int) -> None:
        """Send a signal to the rank and what it started; nothing happens if it has ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def tail(self) -> str:
        lines = self.log_file.read_text(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:])


@dataclass
class _Group:
    ranks: list[_Rank]
    signals_seen: int = 0
    _old_handlers: dict[int, Any] = field(default_factory=dict)

    def wait(self) -> int:
        """Until all have ended; passes signals on, ends the rest when one fails."""
        for number in PASSED_ON:
            self._old_handlers[number] = signal.signal(number, self._pass_on)
        try:
            while not (failed := self._failed()) and self._running():
                time.sleep(POLL_S)
            if not failed:
                return 0
            first = _first(failed)
            self._end_rest()
            console = self.ranks[0].process.returncode
            _report(first, is_said=first.process.returncode == console == EXIT_USER_ERROR)
            return _exit_code(first)
        finally:
            self._kill_rest()
            for passed, handler in self._old_handlers.items():
                signal.signal(passed, handler)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.signals_seen += 1
        for rank in self.ranks:
            rank.signal(number if self.signals_seen == 1 else signal.SIGKILL)

    def _running(self) -> list[_Rank]:
        return [rank for rank in self.ranks if rank.process.poll() is None]

    def _failed(self) -> list[_Rank]:
        return [rank for rank in self.ranks if rank.process.poll()]

    def _end_rest(self) -> None:
        deadline = time.monotonic() + GRACE_S
        while self._running() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        self._kill_rest()

    def _kill_rest(self) -> None:
        for rank in self._running():
            rank.signal(signal.SIGKILL)
            rank.process.wait()


def _first(failed: list[_Rank]) -> _Rank:
    """Of ranks seen failed together, one killed by a signal is the cause of the others."""
    return min(failed, key=lambda rank: (rank.process.returncode > 0, rank.process.returncode))


def _report(rank: _Rank, *, is_said: bool) -> None:
    """Say on the console why the run ended; is_said: rank 0 has said the same there."""
    code = rank.process.returncode
    if is_said or code in (EXIT_REQUEUE, EXIT_INTERRUPTED):
        return
    ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    tail = f"; its last lines ({rank.log_file}):\n{rank.tail()}" if rank.number else ""
    if tail or code < 0:
        print(f"rank {rank.number} {ended}{tail}", file=sys.stderr)


def _exit_code(rank: _Rank) -> int:
    code = rank.process.returncode
    return 128 - code if code < 0 else code


def die_with_parent() -> None:
    """For `preexec_fn`: the child gets SIGTERM when the thread that started it ends (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
