"""CPU time of what one thread does, with the wall time beside it.

On a quiet machine the two agree; on a shared one the wall time counts the others, too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Times:
    """Seconds of each call: CPU (user and system, all threads) and wall."""

    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)

    def add(self, call: Callable[[], Any]) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        self.cpu_s.append(time.process_time() - cpu)
        self.wall_s.append(time.perf_counter() - wall)

    @property
    def median_s(self) -> float:
        """Of CPU time."""
        return statistics.median(self.cpu_s)

    @property
    def wall_median_s(self) -> float:
        return statistics.median(self.wall_s)

    def told(self, *, per_s: float = 1.0, unit: str = "s") -> str:
        """The spread, and the wall time, for a row's reference."""
        cpu, wall = ([per_s * s for s in times] for times in (self.cpu_s, self.wall_s))
        return (
            f"CPU {min(cpu):.3g} to {max(cpu):.3g} {unit}, wall {statistics.median(wall):.3g} "
            f"({min(wall):.3g} to {max(wall):.3g}) {unit}"
        )


def times_of(call: Callable[[], Any], *, n: int = 1) -> Times:
    times = Times()
    for _ in range(n):
        times.add(call)
    return times
