"""Child processes that end with their parent, and their share of a machine.

Each is the leader of a session of its own, so that Ctrl-C on the console reaches this process
alone, which then ends its children in order: a signal to their whole group, time to save, SIGKILL.
If this process dies, they get SIGTERM (Linux).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from cluster.freeze import PROJECT
from cluster.local import die_with_parent

SAVE_S = 60.0  # for a run to come to its step's end and save
POLL_S = 0.1
OF_AN_ARRAY = ("SLURM_", "SLURMD_")  # a child is no task of the array that this process is


@dataclass(frozen=True)
class Share:
    """What one of `n` children at once may use: threads, and devices by their ids (None: there are
    none)."""

    threads: int
    devices: str | None

    @classmethod
    def of(cls, slot: int, n: int, *, cores: int, devices: Sequence[str]) -> Share:
        """Devices are dealt out; with fewer than children, one serves several."""
        own = devices[slot::n] or ([devices[slot % len(devices)]] if devices else [])
        return cls(max(1, cores // n), ",".join(own) if devices else None)

    @property
    def n_devices(self) -> int:
        return len(self.devices.split(",")) if self.devices else 0

    @property
    def environment(self) -> dict[str, str]:
        visible = {} if self.devices is None else {"CUDA_VISIBLE_DEVICES": self.devices}
        return {"OMP_NUM_THREADS": str(self.threads), **visible}


def start(
    command: Sequence[str], share: Share | None = None, log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command of this code with its share of the machine (None: all), its output at the end
    of `log` (None: on the console)."""
    return subprocess.Popen(
        list(command),
        env=_environment(share.environment if share else {}),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT if log else None,
        start_new_session=True,
        preexec_fn=die_with_parent if sys.platform == "linux" else None,
    )


def run(command: Sequence[str], log: IO[bytes] | None = None) -> int:
    """Run a command to its end; returns its exit code. log: as in `start`."""
    process = start(command, log=log)
    try:
        return process.wait()
    finally:
        end_all([process])


def end_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Tell the processes to stop, give them time to save, and kill what is left (at once on a
    second Ctrl-C)."""
    try:
        _signal(processes, signal.SIGTERM)
        deadline = time.monotonic() + SAVE_S
        while any(each.poll() is None for each in processes) and time.monotonic() < deadline:
            time.sleep(POLL_S)
    finally:
        _signal(processes, signal.SIGKILL)
        for each in processes:
            each.wait()


def _signal(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for each in processes:
        if each.poll() is None:
            os.killpg(each.pid, number)


def _environment(share: Mapping[str, str]) -> dict[str, str]:
    old = {name: v for name, v in os.environ.items() if not name.startswith(OF_AN_ARRAY)}
    paths = [str(PROJECT), *filter(None, old.get("PYTHONPATH", "").split(os.pathsep))]
    return {**old, **share, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
