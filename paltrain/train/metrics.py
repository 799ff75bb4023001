"""What a run measures: one JSON line a step in `metrics.jsonl`, units in the keys.

The console and wandb are views of it. On resume the file is cut back to the checkpoint's step, so
each step stands in it once. A number that is not finite is written as null (strict JSON).

    {"step": 12, "epoch": 0.37, "loss": 1.93, "grad_norm": 0.8, "lr": 0.0003, ...}
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from paltrain.files import write_atomically
from paltrain.log import get_logger
from paltrain.status import StatusFile

log = get_logger(__name__)

# Dense bf16 peak in TFLOP/s of one device, from the vendors' data sheets.
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "A40": 150.0,
    "L40S": 362.0,
    "V100": 125.0,
    "RTX 4090": 165.0,
    "MI250": 181.0,
    "MI300X": 1307.0,
}
GIB = 2**30


class MetricsLog:
    """Appends records to `metrics.jsonl`; a line is there as soon as it is written."""

    def __init__(self, path: Path, *, after_step: int = 0) -> None:
        """after_step: the last step whose records stay; later ones did not happen."""
        cut_back(path, after_step)
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(_finite(record)) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole records of a metrics file; a line that a crash cut off is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            log.warning("%s: leaving out a line that was cut off: %.40s", path, line)
    return records


def cut_back(path: Path, step: int) -> None:
    """Drop the records of steps after `step`; the file changes whole, by rename."""
    records = read_metrics(path)
    kept = [record for record in records if record["step"] <= step]
    if path.exists():
        write_atomically(path, "".join(json.dumps(r) + "\n" for r in kept))


def device_peak_tflops(device: torch.device) -> float | None:
    """The known dense bf16 peak of a device, None for one that isn't in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_TFLOPS.items() if key in name), None)


def peak_memory_gib(device: torch.device) -> float:
    """Largest memory so far: of the device's allocator, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


class Heartbeat:
    """Tells the run's status file, now and then, how far the run is and how fast."""

    SHOWN = ("loss", "questions_per_s", "step_time_s")

    def __init__(self, status: StatusFile, *, total_steps: int) -> None:
        self._status, self._total = status, total_steps

    def write(self, record: Mapping[str, Any]) -> None:
        shown = _finite({key: record[key] for key in self.SHOWN})
        self._status.beat(step=record["step"], total_steps=self._total, **shown)

    def close(self) -> None:
        """Nothing to close."""


class WandbCopy:
    """Sends the same records to wandb; at its first failure it warns and falls silent."""

    def __init__(self, folder: Path, *, name: str, project: str, mode: str, config: Any) -> None:
        self._run: Any = None
        try:
            import wandb

            start: Any = wandb.init
            self._run = start(
                dir=str(folder), name=name, id=name.replace("/", "-"), project=project,
                mode=mode, resume="allow", config=config,
            )  # fmt: skip
        except Exception as error:  # whatever a third party raises, training goes on
            self._fall_silent(error)

    def write(self, record: Mapping[str, Any]) -> None:
        if self._run is not None:
            try:
                self._run.log(dict(record), step=record["step"])
            except Exception as error:  # as above
                self._fall_silent(error)

    def close(self) -> None:
        if self._run is not None:
            try:
                self._run.finish()
            except Exception as error:  # as above
                self._fall_silent(error)

    def _fall_silent(self, error: Exception) -> None:
        self._run = None
        log.warning("wandb is off for this run (metrics.jsonl has everything): %s", error)


def _finite(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
