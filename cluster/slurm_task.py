"""What a Slurm task runs: take the rank from Slurm's variables, then train."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cluster.slurm_env import first_host, rank_variables


def run_task(run_folder: str) -> None:
    """Train the run in `run_folder` as this task's rank; leaves with the run's exit code."""
    host = first_host(os.environ["SLURM_JOB_NODELIST"])
    os.environ.update(rank_variables(os.environ, first_host=host))
    from paltrain.run import main

    code = main(Path(run_folder))
    if code:
        sys.exit(code)
