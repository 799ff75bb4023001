"""A benchmark's figures: rows for people and for JSON, and the machine they were measured on.

{"machine": "...", "rows": [{"metric": ..., "value": ..., "unit": ..., "reference": ..., "goal":
...}]}
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from paltrain.files import write_json

STEP_RATIO = "step_time_ratio_plits_over_lal"
MEMORY_RATIO = "peak_memory_ratio_lal_over_plits"

# Of the forms of an ablation, each followed by `.VARIANT`.
FORM_TRAINED, FORM_PARAMETERS = "n_trained", "n_parameters"
FORM_TIME, FORM_MEMORY = "step_time", "peak_memory"


@dataclass(frozen=True)
class BenchRow:
    """One figure. reference: what it is compared with, goal: what to reach, both in words."""

    metric: str
    value: float
    unit: str
    reference: str | None = None
    goal: str | None = None


def write_rows(path: Path, rows: Sequence[BenchRow], *, machine: str) -> None:
    """Write the figures beside `path`, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "rows": [asdict(row) for row in rows]}
    write_json(path, content)


def read_rows(path: Path) -> tuple[list[BenchRow], str]:
    """The figures and the machine."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [BenchRow(**row) for row in content["rows"]], content["machine"]


def print_rows(rows: Sequence[BenchRow], *, machine: str, console: Console | None = None) -> None:
    table = Table(title=machine, title_justify="left", header_style="bold")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name in ("unit", "reference", "goal"):
        table.add_column(name)
    for row in rows:
        table.add_row(row.metric, f"{row.value:.4g}", row.unit, row.reference or "", row.goal or "")
    (console or Console()).print(table)


def describe_machine(*, device: str = "cpu") -> str:
    """Processor or GPU, threads and versions; never a host's name."""
    import torch
    import transformers

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, {versions}"
    return f"{_processor()}, {torch.get_num_threads()} threads, {versions}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    found = (line.split(":", 1)[1].strip() for line in names if line.startswith("model name"))
    return next(found, platform.machine())
