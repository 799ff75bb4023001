"""Steps of packed micro-batches, read ahead by a thread (a builder).

    plan step k ──> this rank's visits ──> collate ──> queue of `prefetch_steps` ──> training loop

Every rank plans every step and reads only its own micro-batches; ranks get equally many, `None`
where there is nothing to do. An error in the thread is raised in the loop. Use as a context
manager, or call `close`: the thread ends before it returns. Importing this needs no torch; building
a loader does.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING

from paltrain.config.schema import DataConfig
from paltrain.data.build import DataPlan
from paltrain.data.lengths import Render
from paltrain.data.plan import DataState, Planner, StepPlan, Visit
from paltrain.data.summary import padding_share
from paltrain.errors import ManifestError, TrainingError
from paltrain.log import get_logger

if TYPE_CHECKING:
    from paltrain.batch import Batch
    from paltrain.data.collate import BadSample
    from paltrain.data.index import Corpus

log = get_logger(__name__)

POLL_S = 0.1  # how soon the thread notices that nobody wants its steps any more


@dataclass(frozen=True)
class Step:
    """One optimizer step as one rank sees it.

    batches: this rank's micro-batches; None: run a dummy. n_target_tokens (the loss's denominator)
    and n_questions: of all ranks together. state_after: where the data stand once it is done.
    data_wait_s: how long the loop waited for it. stats: of all ranks together (visits, text_tokens,
    audio_tokens, imbalance, idle_share, padding_share), and bad_samples: this rank's so far.
    """

    batches: list[Batch | None]
    n_target_tokens: int
    n_questions: int
    state_after: DataState
    data_wait_s: float
    stats: Mapping[str, float]


class BadSamples:
    """Writes what could not be read to a file; too many end the run."""

    def __init__(self, corpus: Corpus, file: Path | None, *, at_most: int, rank: int) -> None:
        self.count = 0
        self._corpus = corpus
        self._file = file
        self._at_most = at_most
        self._rank = rank

    def __call__(self, sample: BadSample) -> None:
        self.count += 1
        clip = self._corpus.clip(sample.clip).id
        log.warning("clip %s cannot be read and weighs nothing: %s", clip, sample.reason)
        if self._file is not None:
            line = json.dumps(
                asdict(sample) | {"clip": clip, "rank": self._rank}, ensure_ascii=False
            )
            with self._file.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        if self.count > self._at_most:
            raise TrainingError(
                f"{self.count} clips could not be read, over data.max_bad_samples={self._at_most}; "
                f"the last: {sample.reason}; mend the store (bad_samples.jsonl lists them), or "
                "raise the limit"
            )


class Loader:
    """Iterates over a run's steps from `state` on: `n_steps` of them, or without end.

    collate: packs one micro-batch's visits. n_bad: bad samples so far. on_close: called when the
    thread has ended.
    """

    def __init__(
        self,
        planner: Planner,
        collate: Callable[[list[Visit]], Batch],
        *,
        rank: int,
        world_size: int,
        state: DataState,
        n_steps: int | None = None,
        prefetch_steps: int = 4,
        n_bad: Callable[[], int] = lambda: 0,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        planner.check(state)
        self.state = state
        self.steps_per_epoch = planner.steps_per_epoch
        self._planner = planner
        self._collate = collate
        self._rank, self._world_size = rank, world_size
        self._n_steps = n_steps
        self._n_bad = n_bad
        self._on_close = on_close
        self._queue: Queue[Step | BaseException | None] = Queue(max(1, prefetch_steps))
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Loader:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        if self._stop.is_set():
            raise StopIteration
        self._start()
        began = time.perf_counter()
        item = self._queue.get()
        waited = time.perf_counter() - began
        if item is None or isinstance(item, BaseException):
            self.close()
            raise item or StopIteration
        self.state = item.state_after
        return replace(item, data_wait_s=waited)

    def close(self) -> None:
        """End the thread; what it has read ahead is dropped."""
        self._stop.set()
        while self._thread is not None and self._thread.is_alive():
            self._drain()
            self._thread.join(POLL_S)
        self._drain()
        self._on_close()

    def _drain(self) -> None:
        try:
            while True:
                self._queue.get_nowait()
        except Empty:
            return

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        """The thread: steps in order, then None or the error that ended them."""
        end: BaseException | None = None
        try:
            state, done = self.state, 0
            while not self._stop.is_set() and (self._n_steps is None or done < self._n_steps):
                plan = self._planner.step(state, world_size=self._world_size)
                self._put(self._step(plan))
                state, done = plan.state_after, done + 1
        except BaseException as error:  # raised again in the consumer
            end = error
        self._put(end)

    def _put(self, item: Step | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=POLL_S)
            except Full:
                continue
        return None

    def _step(self, plan: StepPlan) -> Step:
        batches = [self._collate(visits) if visits else None for visits in plan.of_rank(self._rank)]
        return Step(
            batches=batches,
            n_target_tokens=plan.n_target_tokens,
            n_questions=plan.n_questions,
            state_after=plan.state_after,
            data_wait_s=0.0,
            stats={
                "visits": len(plan.visits),
                "text_tokens": plan.n_text_tokens,
                "audio_tokens": plan.n_audio_tokens,
                "imbalance": plan.balance.imbalance,
                "idle_share": plan.balance.idle_share,
                "padding_share": padding_share(plan),
                "bad_samples": self._n_bad(),
            },
        )


def build_loader(
    plan: DataPlan,
    config: DataConfig,
    *,
    render: Render,
    rank: int,
    world_size: int,
    state: DataState | None = None,
    n_steps: int | None = None,
    bad_samples: Path | None = None,
) -> Loader:
    """One rank's loader of a plan.

    state: where to go on (None: from the beginning). n_steps: how many steps to yield from there
    (None: without end). bad_samples: file that unreadable clips are appended to.

    Raises:
        TrainingError: `state` belongs to another order.
        ManifestError: the plan has no length table.
    """
    from paltrain.data.collate import Collator

    if plan.lengths is None:
        raise ManifestError(
            "there is no length table for these manifests, tokenizer and template: make it with "
            "tools/plan_data.py CONFIG --lengths"
        )
    bad = BadSamples(plan.corpus, bad_samples, at_most=config.max_bad_samples, rank=rank)
    collate = Collator(
        corpus=plan.corpus,
        render=render,
        lengths=plan.lengths.rows,
        streams=list(plan.streams.values()),
        on_bad=bad,
        reader_threads=config.reader_threads,
    )
    return Loader(
        plan.planner,
        collate,
        rank=rank,
        world_size=world_size,
        state=state or plan.planner.start(),
        n_steps=n_steps,
        prefetch_steps=config.prefetch_steps,
        n_bad=lambda: bad.count,
        on_close=collate.close,
    )
