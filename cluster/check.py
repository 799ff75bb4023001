"""Before a job queues: what would fail, or wait for ever, after it."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.job import Job
from paltrain.errors import EXIT_USER_ERROR, ConfigError


def problems_of(jobs: Sequence[Job]) -> list[str]:
    """Everything found, a sentence each: rule, actual value, remedy."""
    return []


def require(jobs: Sequence[Job]) -> None:
    """Raises ConfigError with everything that was found."""
    problems = problems_of(jobs)
    if problems:
        raise ConfigError(f"{len(problems)} problem(s):\n  " + "\n  ".join(problems))


def report(jobs: Sequence[Job]) -> int:
    """Print what was found; returns the exit code."""
    problems = problems_of(jobs)
    for problem in problems:
        print(problem)
    return EXIT_USER_ERROR if problems else 0
