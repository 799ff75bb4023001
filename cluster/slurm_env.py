"""Slurm's variables as the launcher's own (RANK, WORLD_SIZE, ...), each mapped once."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

FIRST_PORT, N_PORTS = 20000, 20000  # below Linux's ephemeral ports, chosen by job id


def rank_variables(slurm: Mapping[str, str], *, first_host: str) -> dict[str, str]:
    """What a task of a Slurm step needs to join its group.

    slurm: the task's environment. first_host: name of the job's first node.
    """
    local_world_size = slurm["SLURM_NTASKS_PER_NODE"]
    suffix = slurm.get("PALTRAIN_MASTER_SUFFIX", "")
    return {
        "RANK": slurm["SLURM_PROCID"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "WORLD_SIZE": slurm["SLURM_NTASKS"],
        "LOCAL_WORLD_SIZE": local_world_size,
        "MASTER_ADDR": first_host + suffix,
        "MASTER_PORT": str(FIRST_PORT + int(slurm["SLURM_JOB_ID"]) % N_PORTS),
    }


def first_host(node_list: str) -> str:
    """The first node of a Slurm node list such as `lrdn[0012-0015]`."""
    done = subprocess.run(
        ["scontrol", "show", "hostnames", node_list], capture_output=True, text=True, check=True
    )
    return done.stdout.split()[0]
