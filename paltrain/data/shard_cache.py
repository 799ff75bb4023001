"""Copies of a store's shards on a fast disk of the node's own, made while training reads.

    read a clip ──> copy there?  yes: read it there
                                 no:  read the original; one thread copies the shard meanwhile

Guarantees: what is read is what the store holds. A copy appears by rename when it is whole; its
name covers the original's path, size and time, so that a shard that was made again has another; a
copy whose checksum fails is dropped. The folder stays within its limit: copies give way to others
by the time of their last use, but for those in use now (KEEP_S). Of the processes that share the
folder one copies a given shard, and a killed one blocks no other. A disk that is full or
read-only is warned of once; training goes on with the originals.

Pays where the same shards are read again and again by few nodes: several epochs of a store that
fits the limit. Shards are copied whole, and a node of a big job reads only its share of each. Then,
or with one epoch, or a limit below `data.window_shards` shards, it moves more bytes than it saves.

Costs: two short calls to the local disk for each clip; a shard is looked up on the shared one once
a process.
"""

from __future__ import annotations

import fcntl
import math
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

import xxhash

from paltrain.files import locked
from paltrain.log import get_logger

log = get_logger(__name__)

CHUNK = 8 << 20  # bytes; how soon a copy that nobody wants any more ends
KEEP_S = 60.0  # a copy used so lately does not give way, or a small cache would do nothing but copy
TOUCH_S = 10.0  # how exactly the last use is noted
RETRY_S = 10.0  # until a shard is asked for again that another process copies, or that had no room
OURS = re.compile(r"[0-9a-f]{16}-.+\.(tar|part)")  # what the cache may delete


def open_cache(folder: str | None, limit_gb: float) -> ShardCache | None:
    """The cache in `folder`, `$VARIABLES` and `~` in it replaced; None without one.

    A folder that cannot be is warned of, and done without.
    """
    if folder is None:
        return None
    path = os.path.expanduser(os.path.expandvars(folder))
    try:
        if "$" in path:
            raise FileNotFoundError(None, "a variable in it is not set here")
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        log.warning("no cache in data.cache_dir=%s (%s): going on without", folder, error.strerror)
        return None
    return ShardCache(Path(path), int(limit_gb * 1e9))


class ShardCache:
    """Says where to read a shard, and brings it nearer. Threads and processes may share it."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self._limit = folder, limit_bytes
        self._copies: dict[Path, Path] = {}  # by original
        self._used_at: dict[Path, float] = {}  # by copy, as noted on the disk
        self._ask_after: dict[Path, float] = {}  # by original
        self._dropped: set[Path] = set()  # originals
        self._told_too_large = False
        self._asked: SimpleQueue[Path | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def path_of(self, shard: Path) -> Path:
        """The local copy of a shard, else the shard itself, which is then copied meanwhile."""
        try:
            copy = self._copies.get(shard)
            if copy is None:
                copy = self._copies[shard] = self._copy_of(shard, shard.stat())
        except OSError:  # reading it will say why
            return shard
        if not os.path.exists(copy):
            self._ask_for(shard)
            return shard
        if time.monotonic() - self._used_at.get(copy, -math.inf) > TOUCH_S:
            self._used_at[copy] = time.monotonic()
            with suppress(OSError):  # given way just now
                os.utime(copy)
        return copy

    def drop(self, shard: Path) -> None:
        """Remove a copy that is not what its original is; it is not made again by this process."""
        copy = self._copies[shard]
        try:
            os.unlink(copy)
        except OSError:  # given way just now
            return
        self._dropped.add(shard)
        log.warning("%s was not what %s is, and is removed: is its disk well?", copy, shard)

    def close(self) -> None:
        """End the thread; a copy under way is given up."""
        self._stop.set()
        self._asked.put(None)
        if self._thread is not None:
            self._thread.join()

    def _copy_of(self, shard: Path, seen: os.stat_result) -> Path:
        """Where the copy of a shard belongs that was seen so."""
        known_by = f"{shard.absolute()} {seen.st_size} {seen.st_mtime_ns}"
        return self._folder / f"{xxhash.xxh3_64_hexdigest(known_by.encode())}-{shard.name}"

    def _ask_for(self, shard: Path) -> None:
        with self._lock:
            if self._stop.is_set() or shard in self._dropped:
                return
            if time.monotonic() < self._ask_after.get(shard, -math.inf):
                return
            self._ask_after[shard] = math.inf  # until the thread is done with it
            self._asked.put(shard)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shard-cache", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        """The thread: copies what is asked for, in order, until the disk fails it."""
        while (shard := self._asked.get()) is not None and not self._stop.is_set():
            try:
                if self._bring(shard):
                    self._ask_after[shard] = time.monotonic() + RETRY_S
            except OSError as error:
                self._stop.set()
                log.warning(
                    "no more copies in data.cache_dir=%s (%s): going on with those that are there",
                    self._folder,
                    error.strerror,
                )

    def _bring(self, shard: Path) -> bool:
        """Copy a shard, or leave it to another process or time; False: it is too large.

        Raises OSError if the cache's disk fails.
        """
        copy = self._copies[shard]
        try:
            original = open(shard, "rb", buffering=0)  # noqa: SIM115 - other errors are the cache's
        except OSError:  # reading it will say why
            return True
        with original, _claimed(copy.with_suffix(".part")) as part:
            seen = os.fstat(original.fileno())
            if seen.st_size > self._limit:
                if not self._told_too_large:
                    self._told_too_large = True
                    log.warning(
                        "%s has %d bytes, over data.cache_gb=%g, and is not copied, nor is any "
                        "other shard as large: raise data.cache_gb",
                        shard,
                        seen.st_size,
                        self._limit / 1e9,
                    )
                return False
            if part is not None and not copy.exists() and self._reserve(part, seen.st_size):
                whole = self._fill(part, original) == seen.st_size
                if whole and self._copy_of(shard, os.fstat(original.fileno())) == copy:
                    os.replace(copy.with_suffix(".part"), copy)
        return True

    def _reserve(self, part: BinaryIO, n_bytes: int) -> bool:
        """Give the file its size, old copies making way; False: what is there is in use."""
        with locked(self._folder):
            used, copies = self._contents()
            unused_since = time.time() - KEEP_S
            give_way = []
            for used_at, size, copy in sorted(copies):
                if used + n_bytes > self._limit and used_at < unused_since:
                    give_way.append(copy)
                    used -= size
            if used + n_bytes > self._limit:
                return False
            for copy in give_way:
                copy.unlink(missing_ok=True)
            os.posix_fallocate(part.fileno(), 0, n_bytes)
        return True

    def _contents(self) -> tuple[int, list[tuple[float, int, Path]]]:
        """Bytes of all copies, whole and under way; of the whole ones last use, bytes and path."""
        used, copies = 0, []
        for kind in ("*.part", "*.tar"):  # in this order what becomes whole now is not missed
            for path in self._folder.glob(kind):
                if OURS.fullmatch(path.name) and not _was_abandoned(path):
                    with suppress(FileNotFoundError):  # whole just now, or dropped
                        seen = path.stat()
                        used += seen.st_size
                        copies.append((seen.st_mtime, seen.st_size, path))
        return used, [copy for copy in copies if copy[2].suffix == ".tar"]

    def _fill(self, part: BinaryIO, original: BinaryIO) -> int:
        """Copy what the original holds; bytes copied, fewer if it cannot be read or at `close`."""
        n_bytes = 0
        while not self._stop.is_set():
            try:
                chunk = original.read(CHUNK)
            except OSError:  # the store's disk; reading the shard will say why
                break
            if not chunk:
                break
            part.write(chunk)
            n_bytes += len(chunk)
        part.flush()
        return n_bytes


@contextmanager
def _claimed(part: Path) -> Iterator[BinaryIO | None]:
    """The file for this process alone, None while another one has it; unless renamed, it goes.

    The claim falls with its process.
    """
    with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        if not _is_at(part, file):  # finished by another process just now
            yield None
            return
        try:
            yield file
        finally:
            if _is_at(part, file):
                part.unlink()


def _was_abandoned(entry: Path) -> bool:
    """Whether it was the part of a process that is no more; it is removed then."""
    if entry.suffix != ".part":
        return False
    try:
        with open(entry, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(entry, file):
                entry.unlink()
    except FileNotFoundError:  # whole just now
        return True
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, file: BinaryIO) -> bool:
    """Whether the open file is the one of this name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
