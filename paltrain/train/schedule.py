"""The learning rate as a pure function of the step, so that resuming restores nothing.

  1 |    ______        warm-up: linear, (step + 1) / warmup_steps
    |   /      \\__     then constant, or a cosine or straight line that would
min |  /          \\   reach min_lr_ratio in the step after the last
    +-------------> step
"""

from __future__ import annotations

import math

SCHEDULES = ("constant", "cosine", "linear")


def lr_factor(
    step: int, *, schedule: str, total_steps: int, warmup_steps: int, min_lr_ratio: float
) -> float:
    """What the peak learning rate is multiplied by in `step` (0-based: the first step is 0).

    Beyond `total_steps` the factor stays at its last value.
    """
    assert schedule in SCHEDULES, schedule
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    decay_steps = max(total_steps - warmup_steps, 1)
    progress = min((step - warmup_steps) / decay_steps, 1.0)
    shape = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return min_lr_ratio + (1.0 - min_lr_ratio) * shape
