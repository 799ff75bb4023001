"""The mark of a trial that was run to its end: TRIAL/done.json, a hash of its configurations.

By it a changed configuration is told from the one that what lies in the folder came of.
"""

from __future__ import annotations

import json
from pathlib import Path

from paltrain.ablation.build import Trial
from paltrain.files import write_json

DONE_FILE = "done.json"


def mark_done(trial: Trial, *, seconds: float) -> None:
    write_json(_file(trial), {"of": trial.identity, "seconds": round(seconds, 1)})


def is_marked(trial: Trial) -> bool:
    """Whether this very trial, by its configurations, was run to its end."""
    return _mark(trial) == trial.identity


def is_of_another(trial: Trial) -> bool:
    """Whether what lies in the trial's folder came of other configurations; one that was run by
    hand has no mark, and is taken as it is."""
    return _mark(trial) not in (None, trial.identity)


def _file(trial: Trial) -> Path:
    return trial.folder / DONE_FILE


def _mark(trial: Trial) -> str | None:
    try:
        return str(json.loads(_file(trial).read_text(encoding="utf-8"))["of"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
