"""How runs stand: Slurm's state and the status file of each folder, together."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.folder import JobFolder


def follow(folders: Sequence[JobFolder]) -> int:
    """Show the jobs until all have ended; returns 0 if all succeeded."""
    return 0
