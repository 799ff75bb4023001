"""What a Slurm task of a training run does: take the rank from Slurm's variables, then train."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cluster.slurm_env import rank_variables
from paltrain.train.signals import ignore_stops


def main(run_folder: str) -> int:
    """Train the run in `run_folder` as this task's rank; returns the exit code."""
    os.environ.update(rank_variables(os.environ))
    from paltrain.run import main as train

    is_restart = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    exit_code = train(Path(run_folder), is_restart=is_restart)
    ignore_stops()
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
