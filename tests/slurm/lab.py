"""A real Slurm cluster on this machine, for as long as a test session: four nodes, in a second.

Needs Debian's `slurm-wlm`, `munge` and `iproute2`, and the right to make namespaces; with accounts
also `slurmdbd` and `mariadb-server`. Its commands
(`sbatch`, `squeue`, ...) are put on PATH as small scripts that enter the cluster's login node.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
COMMANDS = ("sbatch", "srun", "scancel", "squeue", "scontrol", "sinfo", "sacct")
NEEDED = ("slurmctld", "slurmd", "munged", "ip", "nsenter", "unshare", *COMMANDS)
NEEDED_FOR_ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacctmgr")
HOW_TO_GET = "apt-get install slurm-wlm munge iproute2"
UP_WITHIN_S = 60
ENTERS = ".enters-a-lab"  # marks a folder of commands that enter a cluster

# A command of the cluster for use from outside. It takes itself off PATH, or the jobs, which
# inherit the environment, would call it instead of Slurm's own.
COMMAND_SCRIPT = """#!/bin/sh
PATH=$(printf %s "$PATH" | sed "s,{folder}:,,g")
export PATH SLURM_CONF={conf}
exec {enter} --wdns="$PWD" {command} "$@"
"""


def missing(names: Sequence[str] = NEEDED) -> list[str]:
    """What of Slurm is not installed here."""
    return [name for name in names if shutil.which(name) is None]


def path_inside() -> str:
    """PATH without the scripts that enter a cluster: whoever is inside calls Slurm's own."""
    paths = os.environ["PATH"].split(os.pathsep)
    return os.pathsep.join(path for path in paths if not (Path(path) / ENTERS).exists())


@contextmanager
def cluster_on_path(folder: Path, *, accounting: bool = False) -> Iterator[SlurmLab]:
    """A cluster whose commands are found first, while entered; others may come and go meanwhile."""
    lab = SlurmLab.start(folder, accounting=accounting)
    os.environ["PATH"] = os.pathsep.join([str(lab.bin), os.environ["PATH"]])
    try:
        yield lab
    finally:
        paths = os.environ["PATH"].split(os.pathsep)
        os.environ["PATH"] = os.pathsep.join(path for path in paths if path != str(lab.bin))
        lab.stop()


@dataclass
class SlurmLab:
    """A running cluster of nodes `node1` to `nodeN` with partitions `normal` and `urgent`."""

    folder: Path
    process: subprocess.Popen[bytes]
    enter: list[str]  # command that enters its namespaces
    up_s: float

    @classmethod
    def start(cls, folder: Path, *, n_nodes: int = 4, accounting: bool = False) -> SlurmLab:
        started = time.monotonic()
        is_root = os.geteuid() == 0
        as_user = [] if is_root else ["--user", "--map-current-user", "--keep-caps"]
        own = ["--net", "--mount", "--uts", "--pid"]
        with (folder / "up.log").open("w") as log:
            process = subprocess.Popen(
                ["unshare", *as_user, *own, "--fork", "--kill-child", "--mount-proc",
                 "bash", str(HERE / "lab.sh"), str(folder), str(n_nodes)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PATH": path_inside(), "ACCOUNTING": str(int(accounting))},
            )  # fmt: skip
        while not (folder / "ready").exists():
            if process.poll() is not None or time.monotonic() - started > UP_WITHIN_S:
                process.kill()
                raise RuntimeError("no Slurm: " + (folder / "up.log").read_text()[-2000:])
            time.sleep(0.02)
        child = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
        enter = ["nsenter", "-t", child, *([] if is_root else ["--user", "--preserve-credentials"])]
        lab = cls(folder, process, [*enter, *own], time.monotonic() - started)
        lab._write_commands()
        return lab

    @property
    def small(self) -> Path:
        """A file system of 6 MB, by the name it has on the cluster."""
        return self.folder / "small"

    @property
    def root(self) -> Path:
        """The cluster's file system as seen from outside."""
        return Path(f"/proc/{self.enter[2]}/root")

    @property
    def bin(self) -> Path:
        """What to put first on PATH."""
        return self.folder / "bin"

    def shell(self, script: str) -> str:
        """What a script prints that runs on the login node."""
        done = subprocess.run(
            [*self.enter, "bash", "-c", script], capture_output=True, text=True, check=False,
            env={**os.environ, "PATH": path_inside(), "SLURM_CONF": self._conf},
        )  # fmt: skip
        return done.stdout + done.stderr

    def crash(self, node: str) -> None:
        """Kill every process of a node at once, its daemon too."""
        self.shell(f"ip netns pids {node} | xargs -r kill -9")

    def boot(self, node: str) -> None:
        """Start the daemon of a node that has crashed."""
        self.shell(f"{self.bin}/start_{node}")

    def set_links(self, node: str, state: str) -> None:
        """Both links of a node `down` or `up`."""
        number = node.removeprefix("node")
        self.shell(f"ip link set eth{number} {state}; ip link set ib{number} {state}")

    def hold(self, partition: str) -> None:
        """Let no job of a partition start."""
        self.shell(f"scontrol update PartitionName={partition} State=DOWN")

    def release(self, partition: str) -> None:
        self.shell(f"scontrol update PartitionName={partition} State=UP")

    def stop(self) -> None:
        """End the cluster and whatever runs on it."""
        self.process.send_signal(
            signal.SIGKILL
        )  # unshare ignores SIGTERM; --kill-child does the rest
        self.process.wait()

    @property
    def _conf(self) -> str:
        return str(self.folder / "etc/slurm.conf")

    def _write_commands(self) -> None:
        for name in COMMANDS:
            script = COMMAND_SCRIPT.format(
                folder=self.bin,
                conf=self._conf,
                enter=" ".join(self.enter),
                command=shutil.which(name, path=path_inside()),
            )
            (self.bin / name).write_text(script)
            (self.bin / name).chmod(0o755)
        (self.bin / ENTERS).touch()
