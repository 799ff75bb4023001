"""How long each phase took: `phases.jsonl`, one line a call, appended by whoever drives the phases.

    {"phase": "train LAL", "command": "tools/launch.py ...", "seconds": 141.2, "exit_code": 0}

A phase that was called again (a rerun skips what is done, a killed one resumes) has several lines;
its time is their sum, since that is what it took.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

PHASES_FILE = "phases.jsonl"


@dataclass(frozen=True)
class PhaseCall:
    """One call of one phase. exit_code: 0 where it succeeded."""

    phase: str
    command: str
    seconds: float
    exit_code: int


@dataclass(frozen=True)
class PhaseTime:
    """A phase's whole time over `n_calls` calls; `finished` if the last one succeeded."""

    phase: str
    seconds: float
    n_calls: int
    finished: bool
    command: str


def append_phase(path: Path, call: PhaseCall) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(call), ensure_ascii=False) + "\n")


def read_phases(path: Path) -> list[PhaseTime]:
    """The phases in the order of their first call; empty where there is no file."""
    if not path.exists():
        return []
    calls: dict[str, list[PhaseCall]] = {}
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            call = PhaseCall(**json.loads(line))
            calls.setdefault(call.phase, []).append(call)
    return [
        PhaseTime(
            phase=phase,
            seconds=round(sum(call.seconds for call in of_phase), 3),
            n_calls=len(of_phase),
            finished=of_phase[-1].exit_code == 0,
            command=of_phase[-1].command,
        )
        for phase, of_phase in calls.items()
    ]
