"""A bounded pool of threads that share a micro-batch's reading where that waits for a disk.

The caller begins alone. Once it has waited for WAIT_S, its helpers join in, each taking the next
piece of work itself until none is left. So what lies in memory is read by one thread, which is
faster there: several would only pass Python's lock to and fro.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import count
from typing import Any, TypeVar

T = TypeVar("T")

WAIT_S = 0.001  # of a micro-batch's reading, on the disk and not on the processor


class Readers:
    """`n_threads` in all, the caller among them; the others are started when first needed."""

    def __init__(self, n_threads: int) -> None:
        self._n_helpers = n_threads - 1
        self._pool: ThreadPoolExecutor | None = None

    def map(self, act: Callable[[int], T], n: int) -> list[T]:
        """[act(0), ..., act(n - 1)]; an exception of `act` is raised once all threads are done."""
        results: list[Any] = [None] * n
        next_place = count()
        helpers: list[Future[None]] = []

        def work() -> None:
            while (place := next(next_place)) < n:
                results[place] = act(place)

        began_s = _waited_s()
        try:
            while (place := next(next_place)) < n:
                results[place] = act(place)
                if self._n_helpers and not helpers and _waited_s() - began_s > WAIT_S:
                    helpers = [self._submit(work) for _ in range(min(self._n_helpers, n - 1))]
        finally:
            wait(helpers)
        for helper in helpers:
            helper.result()
        return results

    def _submit(self, work: Callable[[], None]) -> Future[None]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._n_helpers, thread_name_prefix="reader")
        return self._pool.submit(work)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _waited_s() -> float:
    """How long this thread has not been on the processor, from some moment on."""
    return time.perf_counter() - time.thread_time()
