"""A bounded pool of threads that share the reading of a micro-batch.

Reading waits for a disk, and for a checksum, without Python's lock, so that threads help. The
caller is one of them: one thread is no pool. Costs: a wake-up a thread and micro-batch, since each
takes the next piece of work itself until none is left.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, TypeVar

T = TypeVar("T")


class Readers:
    """`n_threads` in all, started when first needed."""

    def __init__(self, n_threads: int) -> None:
        self._n_helpers = n_threads - 1
        self._pool: ThreadPoolExecutor | None = None

    def map(self, act: Callable[[int], T], n: int) -> list[T]:
        """[act(0), ..., act(n - 1)]; an exception of `act` is raised once all threads are done."""
        results: list[Any] = [None] * n
        next_place = count()

        def work() -> None:
            while (place := next(next_place)) < n:
                results[place] = act(place)

        if self._n_helpers and self._pool is None:
            self._pool = ThreadPoolExecutor(self._n_helpers, thread_name_prefix="reader")
        n_helpers = min(self._n_helpers, n - 1)
        helpers = [self._pool.submit(work) for _ in range(n_helpers)] if self._pool else []
        try:
            work()
        finally:
            for helper in helpers:
                helper.result()
        return results

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
