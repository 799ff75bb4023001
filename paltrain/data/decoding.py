"""Recordings decoded in worker processes, ahead of what encodes them.

A work is some recordings and the shards, one of each store, that they become; stores that lack the
same clips share the decoding. A recording is decoded once and resampled to every rate asked for.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

from paltrain.encoders.audio import Waveform, read_audio, resample
from paltrain.errors import AudioError, ConfigError

DECODED_PER_TASK = 16  # recordings a worker decodes at a time
WORKS_AHEAD = 2
LOOK_S = 0.5  # how often it is told that nothing is ready yet

Recording = tuple[str, Path]  # clip id, file
Decoded = Mapping[int, Waveform] | str  # by sample rate, or why there is none


@dataclass
class Work:
    """Recordings that are decoded together. shards: (number of the store, of its shard)."""

    recordings: Sequence[Recording]
    shards: list[tuple[int, int]] = field(default_factory=list)


def decode_ahead(
    works: Sequence[Work], rates_hz: Sequence[int], workers: int
) -> Generator[tuple[Work, list[Decoded]] | None, None, None]:
    """Each work decoded, the next two under way, and None while none is ready; workers = 0: in this
    process.

    Raises:
        ConfigError: a worker process was killed.
    """
    decode = partial(_decode, rates_hz)
    if workers == 0:
        for work in works:
            yield work, decode([path for _, path in work.recordings])
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_leave_signals)
    under_way: deque[tuple[Work, list[Future[list[Decoded]]]]] = deque()
    try:
        for work in works:
            paths = [path for _, path in work.recordings]
            firsts = range(0, len(paths), DECODED_PER_TASK)
            parts = [pool.submit(decode, paths[at : at + DECODED_PER_TASK]) for at in firsts]
            under_way.append((work, parts))
            if len(under_way) > WORKS_AHEAD:
                yield from _results(*under_way.popleft())
        while under_way:
            yield from _results(*under_way.popleft())
    except BrokenProcessPool as error:
        raise ConfigError(
            f"one of workers={workers} decoding processes was killed, perhaps for lack of memory: "
            "give the job more, or lower workers, and run the same command again; whole shards are "
            "kept"
        ) from error
    finally:  # on a signal, too: what nobody will encode is not decoded
        pool.shutdown(cancel_futures=True)


def _results(
    work: Work, parts: Sequence[Future[list[Decoded]]]
) -> Iterator[tuple[Work, list[Decoded]] | None]:
    while wait(parts, LOOK_S).not_done:
        yield None
    yield work, list(chain.from_iterable(part.result() for part in parts))


def _leave_signals() -> None:
    """In a worker: what is sent to the whole group is answered by the parent, which ends it."""
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _decode(rates_hz: Sequence[int], paths: Sequence[Path]) -> list[Decoded]:
    decoded: list[Decoded] = []
    for path in paths:
        try:
            waveform, rate = read_audio(path)
            decoded.append({hz: resample(waveform, rate, hz) for hz in rates_hz})
        except AudioError as error:
            decoded.append(str(error))
    return decoded
