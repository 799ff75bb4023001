"""Work in slices: `slice=3/64` is one task's part, and a merge wants all 64 of them.

    0 .. n-1        slices count from 0, as the tasks of a Slurm array do
    3/64            slice 3 of 64; (3, 64) inside
    3,17,40-42      several of them, in the words of `sbatch --array`

What a slice made is never lost by a merge that finds others incomplete.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from paltrain.errors import ConfigError, IncompleteError

Slice = tuple[int, int]  # (i, n): slice i of n, i from 0

EVERYTHING: Slice = (0, 1)
MOST_LINES = 20  # of a report; its last line has all numbers


def parse_slice(text: str | None) -> Slice:
    """`3/64` -> (3, 64), None -> everything; the configuration has been checked already."""
    if text is None:
        return EVERYTHING
    number, n_slices = text.split("/")
    return int(number), int(n_slices)


def slice_of_array() -> str | None:
    """The slice of this process as a task of a Slurm array, by the array's own variables.

    None outside an array.

    Raises:
        ConfigError: the array has gaps (`--array=3,17`), so that no task knows its slice.
    """
    if "SLURM_ARRAY_TASK_COUNT" not in os.environ:
        return None
    defaults = {"ID": "0", "COUNT": "1", "MIN": "0", "MAX": "0", "STEP": "1"}
    task, n_tasks, first, last, step = (
        int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", value)) for name, value in defaults.items()
    )
    if first + (n_tasks - 1) * step != last:
        raise ConfigError(
            f"this is task {task} of a Slurm array with gaps ({n_tasks} tasks from {first} to "
            f"{last}): say which slice it makes, e.g. --slice $SLURM_ARRAY_TASK_ID/64"
        )
    return f"{(task - first) // step}/{n_tasks}" if n_tasks > 1 else None


@dataclass(frozen=True)
class Lack:
    """A slice that is incomplete: it has not made `n_lacking` of its `n` shards, or answers."""

    number: int
    n_lacking: int
    n: int


def incomplete(
    lacks: Sequence[Lack], *, n_slices: int, what: str, command: str, note: str = ""
) -> IncompleteError:
    """The error of a merge that finds slices incomplete, naming each and how to make it.

    lacks: ascending. what: they lack. command: makes a slice, with I for its number. note: a last
    line.
    """
    lines = [f"  slice {lack.number} lacks {lack.n_lacking} of {lack.n} {what}" for lack in lacks]
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"  and {len(lines) - MOST_LINES} more"]
    numbers = number_ranges(lack.number for lack in lacks)
    return IncompleteError(
        f"a merge needs every slice whole; incomplete: {len(lacks)} of {n_slices}\n"
        + "\n".join(lines)
        + f"\nNothing was changed. Make what is missing, I being {numbers}, and merge again:\n"
        f"  {command}" + (f"\n{note}" if note else "")
    )


def number_ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers as `sbatch --array` takes them.

    >>> number_ranges([3, 17, 40, 41, 42])
    '3,17,40-42'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
