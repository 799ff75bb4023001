"""How a process stands, in one small JSON file: its state, its progress and a heartbeat.

    {"state": "running", "time": 1789000000.0, "step": 12, "total_steps": 100, "loss": 1.93}

`time` is when it was written, in seconds since 1970: for a process that writes as it gets on, a
heartbeat. A reader sees the old or the new content whole. Imports no torch: login nodes read it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from paltrain.files import write_json

RUNNING, STOPPED, FAILED, FINISHED = "running", "stopped", "failed", "finished"
HEARTBEAT_S = 5.0  # a process that gets on says so no more often


class StatusFile:
    """One process writes it (rank 0 of a run, the tool of an array task), anybody reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last_beat_s = float("-inf")

    def read(self) -> dict[str, Any]:
        """What was written last; {} before that, or where a full disk or a person cut it off."""
        try:
            status: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}
        return status

    def write(self, state: str, **fields: Any) -> None:
        """Replace the content."""
        write_json(self.path, {"state": state, "time": time.time(), **fields})

    def beat(self, **fields: Any) -> None:
        """Say that the process gets on; most calls write nothing, so call it as often as you like.

        A file that cannot be written now is left as it is: a heartbeat must not end a run.
        """
        if time.monotonic() - self._last_beat_s < HEARTBEAT_S:
            return
        self._last_beat_s = time.monotonic()
        try:
            self.write(RUNNING, **fields)
        except OSError:
            return
