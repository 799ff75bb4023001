"""What a Slurm task of a training run does: take the rank from Slurm's variables, then train."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cluster.slurm_env import rank_variables
from paltrain.run import run_process

if __name__ == "__main__":
    os.environ.update(rank_variables(os.environ))
    run_process(Path(sys.argv[1]), is_restart=os.environ.get("SLURM_RESTART_COUNT", "0") != "0")
