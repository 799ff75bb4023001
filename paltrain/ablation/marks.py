"""The mark of a trial that was run to its end: TRIAL/done.json, a hash of its configurations.

By it a changed configuration is told from the one that what lies in the folder came of.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from paltrain.ablation.build import Trial
from paltrain.config.load import to_yaml
from paltrain.files import write_json

DONE_FILE = "done.json"
OF_A_PLACE = ("launch", "logging")  # of a stage's keys: where it runs, not what it comes to


def mark_done(trial: Trial, *, seconds: float) -> None:
    write_json(_file(trial), {"of": _identity(trial), "seconds": round(seconds, 1)})


def is_marked(trial: Trial) -> bool:
    """Whether this very trial, by its configurations, was run to its end."""
    return _mark(trial) == _identity(trial)


def is_of_another(trial: Trial) -> bool:
    """Whether what lies in the trial's folder came of other configurations; one that was run by
    hand has no mark, and is taken as it is."""
    return _mark(trial) not in (None, _identity(trial))


def _file(trial: Trial) -> Path:
    return trial.folder / DONE_FILE


def _mark(trial: Trial) -> str | None:
    try:
        return str(json.loads(_file(trial).read_text(encoding="utf-8"))["of"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _identity(trial: Trial) -> str:
    """Names what a trial comes to: its configurations, but for where they run."""
    parts: list[Any] = [yaml.safe_load(to_yaml(each)) for each in trial.stages]
    parts.append(yaml.safe_load(to_yaml(trial.evaluation)))
    for part in parts:
        for key in OF_A_PLACE:
            part.pop(key, None)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
