"""Slurm's variables as the launcher's own (RANK, WORLD_SIZE, ...), each mapped once."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Mapping

FIRST_PORT, N_PORTS = 20000, 10000  # below Linux's ephemeral ports


def rank_variables(slurm: Mapping[str, str]) -> dict[str, str]:
    """What a task of a Slurm step needs to know itself in its group.

    slurm: the task's environment.
    """
    return {
        "RANK": slurm["SLURM_PROCID"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "WORLD_SIZE": slurm["SLURM_NTASKS"],
        "LOCAL_WORLD_SIZE": slurm["SLURM_NTASKS_PER_NODE"],
    }


def meeting_point(slurm: Mapping[str, str], *, first_host: str) -> dict[str, str]:
    """Where the processes of a job meet; asked on the job's first node, where rank 0 will listen.

    The port is the first free one from a place that the job's id chooses, so that two jobs that
    start together on a node do not look at the same ones.
    """
    suffix = slurm.get("PALTRAIN_MASTER_SUFFIX", "")
    return {
        "MASTER_ADDR": first_host + suffix,
        "MASTER_PORT": str(free_port(int(slurm["SLURM_JOB_ID"]))),
    }


def free_port(job_id: int) -> int:
    """A port nobody listens on."""
    for offset in range(N_PORTS):
        port = FIRST_PORT + (job_id * 7 + offset) % N_PORTS
        with socket.socket() as listener:
            try:
                listener.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port from {FIRST_PORT} to {FIRST_PORT + N_PORTS - 1}")


def first_host(node_list: str) -> str:
    """The first node of a Slurm node list such as `lrdn[0012-0015]`."""
    done = subprocess.run(
        ["scontrol", "show", "hostnames", node_list], capture_output=True, text=True, check=True
    )
    return done.stdout.split()[0]
