"""How much may be written to a place: free space, and the quota where the site's commands tell it.

`lfs quota` is asked on Lustre, `quota` elsewhere; both count in KiB:

    $ lfs quota -q -u $USER /scratch
         /scratch  1200  2000  3000       -     12       0       0       -
    $ quota -w -f /home
    Disk quotas for user ada (uid 1000):
         Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
    nas:/home         1200*    2000    3000              12       0       0
"""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

KIB = 1024
ASK_S = 10.0  # a file server that does not answer does not hold up a user
USED_SOFT_HARD = re.compile(r"\s(\d+)\*?\s+(\d+)\s+(\d+)(?=\s)")


@dataclass(frozen=True)
class Room:
    """n_bytes_free: of the file system. n_bytes_of_quota: left of the user's, None: unknown."""

    n_bytes_free: int
    n_bytes_of_quota: int | None

    @property
    def n_bytes(self) -> int:
        """What may be written."""
        if self.n_bytes_of_quota is None:
            return self.n_bytes_free
        return min(self.n_bytes_free, self.n_bytes_of_quota)


def room_at(path: Path) -> Room:
    """Room at `path`, or at the nearest folder above it that exists."""
    while not path.exists():
        path = path.absolute().parent
    return Room(shutil.disk_usage(path).free, _left_of_quota(path))


def _left_of_quota(path: Path) -> int | None:
    for command in (
        ["lfs", "quota", "-q", "-u", getpass.getuser(), str(path)],
        ["quota", "-w", "-f", str(path)],
    ):
        if shutil.which(command[0]) is None:
            continue
        try:
            told = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if (found := USED_SOFT_HARD.search(told.stdout + "\n")) is not None:
            used, soft, hard = (int(number) * KIB for number in found.groups())
            if soft or hard:
                return max(0, (hard or soft) - used)
    return None
