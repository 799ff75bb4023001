"""Threads that make shards: one for each device encodes, and as many write in the background.

    decoded works  ->  encode (a batch at a time)  ->  write (tar, index, rename)
                       device 0, device 1, ...         at most one shard waits for each device

Encoders and checksums let go of the interpreter's lock, so threads do, and features are not copied
between processes.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paltrain.data.decoding import Decoded, Recording, Work
from paltrain.data.frames import FLOAT16, fault_of
from paltrain.data.rejected import note_rejected, rejected_path
from paltrain.data.shard_writer import write_shard
from paltrain.data.shards import shard_path
from paltrain.encoders.audio import Waveform, is_silent
from paltrain.encoders.base import AudioEncoder
from paltrain.errors import AudioError, ConfigError, ModelError
from paltrain.slices import Slice

MANY = 16  # recordings of which not all can be bad by chance
LOOK_S = 0.5  # how often progress is told, and how soon a thread notices that it shall end

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Target:
    """A store to make. encoders: the same one on each device. dtype: of the stored features."""

    folder: Path
    encoders: Sequence[AudioEncoder]
    dtype: str = FLOAT16


@dataclass
class PrecomputeReport:
    """What a run did for one store; rejected and silent count this run's clips alone.

    n_clips: the recordings of the slice. n_there_before, n_rejected_before: of them, those that
    another run encoded and set aside. n_waiting: those in shards that wait for other manifests.
    """

    n_clips: int = 0
    n_there_before: int = 0
    n_encoded: int = 0
    n_rejected: int = 0
    n_silent: int = 0
    audio_s: float = 0.0
    n_bytes: int = 0
    n_waiting: int = 0
    n_rejected_before: int = 0

    @property
    def n_done(self) -> int:
        before = self.n_there_before + self.n_rejected_before
        return before + self.n_encoded + self.n_rejected

    def add(self, made: PrecomputeReport) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(made, each.name))


Made = tuple[int, PrecomputeReport]  # number of the target, what to add to its report


class GivenUp(Exception):  # noqa: N818
    """Ends a thread whose work nobody waits for any more."""


class Makers:
    """Makes the targets' shards of decoded works.

    As a context manager: on leaving, what is being encoded is given up after its batch, and what is
    being written is written. encode: (encoder, waveforms, on_batch=) -> features. slice_of: whose
    list takes what cannot be used. audio_s: seconds encoded so far.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        encode: Callable[..., list[Features]],
        *,
        slice_of: Slice,
    ) -> None:
        self.audio_s = 0.0
        self._targets, self._encode, self._slice_of = targets, encode, slice_of
        self._n_devices = len(targets[0].encoders)
        self._made: SimpleQueue[Made] = SimpleQueue()
        self._devices: SimpleQueue[int] = SimpleQueue()
        for device in range(self._n_devices):
            self._devices.put(device)
        self._encoding = ThreadPoolExecutor(self._n_devices, thread_name_prefix="encode")
        self._writing = ThreadPoolExecutor(self._n_devices, thread_name_prefix="write")
        self._room = threading.BoundedSemaphore(2 * self._n_devices)  # being written, and waiting
        self._counting = threading.Lock()
        self._stop = threading.Event()
        self._failure: BaseException | None = None  # of a shard's writing

    def __enter__(self) -> Makers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._encoding.shutdown(cancel_futures=True)
        self._writing.shutdown()

    def make_all(self, decoded: Iterable[tuple[Work, list[Decoded]] | None]) -> Iterator[None]:
        """Make them; gives a moment, now and then, to look at what is done.

        decoded: None for a moment in which nothing was. An error of any thread is raised here.
        """
        encoding: set[Future[Any]] = set()
        writing: set[Future[Any]] = set()
        for ready in decoded:
            if ready is not None:
                encoding.add(self._encoding.submit(self._make, *ready))
            _wait_for_any(encoding, writing, at_most_s=0.0)
            yield
            while len(encoding) > self._n_devices:
                _wait_for_any(encoding, writing)
                yield
        while encoding or writing:
            _wait_for_any(encoding, writing)
            yield

    def take_made(self) -> Iterator[Made]:
        """The shards that became whole since the last time."""
        while not self._made.empty():
            yield self._made.get()

    def _make(self, work: Work, decoded: Sequence[Decoded]) -> list[Future[None]]:
        """In a thread: the shards of a work, encoded; they are being written when it returns."""
        _check_folder(work.recordings, decoded)
        device = self._devices.get()
        try:
            return [
                self._make_shard(work.recordings, decoded, which, number, device)
                for which, number in work.shards
            ]
        finally:
            self._devices.put(device)

    def _make_shard(
        self,
        recordings: Sequence[Recording],
        decoded: Sequence[Decoded],
        which: int,
        number: int,
        device: int,
    ) -> Future[None]:
        target, made = self._targets[which], PrecomputeReport()
        if shard_path(target.folder, number).exists():  # another process was faster
            made.n_there_before = len(recordings)
            return self._writing.submit(self._made.put, (which, made))
        encoder = target.encoders[device]
        samples, reasons = self._encoded(recordings, decoded, encoder, made)
        made.n_encoded, made.n_rejected = len(samples), len(reasons)
        readable = {clip for clip, _ in samples}
        _set_aside(rejected_path(target.folder, self._slice_of), reasons, readable)
        while not self._room.acquire(timeout=LOOK_S):
            self._look()
        return self._writing.submit(self._write, which, number, samples, made)

    def _encoded(
        self,
        recordings: Sequence[Recording],
        decoded: Sequence[Decoded],
        encoder: AudioEncoder,
        made: PrecomputeReport,
    ) -> tuple[list[tuple[str, Features]], dict[Recording, str]]:
        """Clip ids and features of what can be used, and why the rest cannot."""
        heard, reasons = _told_apart(recordings, decoded, encoder.sample_rate_hz)
        features = self._features(encoder, list(heard.values()))
        samples = []
        for (recording, waveform), frames in zip(heard.items(), features, strict=True):
            if fault := _fault_of(frames, encoder):
                reasons[recording] = f"its features cannot be stored: {fault}"
                continue
            samples.append((recording[0], frames))
            made.n_silent += is_silent(waveform)
            made.audio_s += len(waveform) / encoder.sample_rate_hz
        if len(heard) >= MANY and not samples:
            raise ModelError(
                f"none of {len(heard)} recordings has usable features ({recordings[0][0]}, ...): "
                f"{reasons[next(iter(heard))]}; is the encoder whole, and its precision enough?"
            )
        return samples, reasons

    def _features(self, encoder: AudioEncoder, waveforms: Sequence[Waveform]) -> list[Features]:
        try:
            return self._encode(encoder, waveforms, on_batch=self._count)
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            raise ConfigError(
                f"the device has not the memory for a batch ({str(error).splitlines()[0]}): lower "
                "batch_clips or batch_audio_s and run the same command again; whole shards are kept"
            ) from error

    def _count(self, audio_s: float) -> None:
        self._look()
        with self._counting:
            self.audio_s += audio_s

    def _look(self) -> None:
        if self._stop.is_set():
            raise self._failure or GivenUp

    def _write(
        self,
        which: int,
        number: int,
        samples: Sequence[tuple[str, Features]],
        made: PrecomputeReport,
    ) -> None:
        target = self._targets[which]
        try:
            made.n_bytes = write_shard(target.folder, number, samples, dtype=target.dtype)
        except BaseException as error:  # what is being encoded is given up, too
            self._failure = error
            self._stop.set()
            raise
        finally:
            self._room.release()
        self._made.put((which, made))


def _wait_for_any(
    encoding: set[Future[Any]], writing: set[Future[Any]], at_most_s: float = LOOK_S
) -> None:
    """Wait for something, at most a moment; what is done leaves both sets, its error is raised."""
    wait(encoding | writing, at_most_s, FIRST_COMPLETED)
    for encoded in [future for future in encoding if future.done()]:
        encoding.remove(encoded)
        writing.update(encoded.result())
    for written in [future for future in writing if future.done()]:
        writing.remove(written)
        written.result()


def _check_folder(recordings: Sequence[Recording], decoded: Sequence[Decoded]) -> None:
    """Refuse to set aside what is only away, or a shard would be whole without its recordings.

    Raises:
        AudioError: not one file of many is there, or not even the folder of a few.
    """
    if not all(isinstance(why_not, str) for why_not in decoded):
        return
    paths = [path for _, path in recordings]
    looked_for = paths if len(paths) >= MANY else [path.parent for path in paths]
    if looked_for and not any(map(os.path.exists, looked_for)):
        raise AudioError(
            f"none of {len(paths)} recordings of a shard is there ({paths[0]}, ...): is their "
            "folder mounted? Nothing of them was set aside: the same command goes on from here"
        )


def _fault_of(frames: Features, encoder: AudioEncoder) -> str | None:
    if not len(frames) or frames.shape[1:] != (encoder.width,):
        return f"their shape is {frames.shape}, not (at least 1, {encoder.width})"
    return fault_of(frames)


def _told_apart(
    recordings: Sequence[Recording], decoded: Sequence[Decoded], rate_hz: int
) -> tuple[dict[Recording, Waveform], dict[Recording, str]]:
    """What can be heard, and why the rest cannot."""
    heard, reasons = {}, {}
    for recording, waveforms in zip(recordings, decoded, strict=True):
        if isinstance(waveforms, str):
            reasons[recording] = waveforms
        else:
            heard[recording] = waveforms[rate_hz]
    return heard, reasons


def _set_aside(file: Path, reasons: dict[Recording, str], readable: set[str]) -> None:
    """A line for each, in the order of the shard; none for what is readable now."""
    lines = {}
    for (clip, path), reason in reasons.items():
        entry = {"clip": clip, "audio": str(path), "reason": reason}
        lines[clip] = json.dumps(entry, ensure_ascii=False)
    note_rejected(file, lines, readable=readable)
