"""Local copies of shards: what is read is what the store holds, whatever becomes of a copy."""

from __future__ import annotations

import fcntl
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from paltrain.data import shard_cache
from paltrain.data.shard_cache import ShardCache, open_cache
from paltrain.data.shard_writer import write_shard
from paltrain.data.shards import FeatureStore, shard_index_path, shard_path
from paltrain.errors import StoreError
from tests.data.conftest import write_store
from tests.data.test_precompute import ROOT
from tests.data.test_shards import random_features

PATIENCE_S = 20.0
PLENTY = 1 << 30
FEATURES = random_features()  # shards of 5, 5 and 2 clips, each 20 KiB


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_cache, "RETRY_S", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_store(tmp_path / "store", FEATURES)
    (tmp_path / "cache").mkdir()
    return tmp_path / "store"


@pytest.fixture
def open_with(folder: Path) -> Iterator[Callable[..., tuple[FeatureStore, ShardCache]]]:
    """The store with a cache beside it; every call is like another process."""
    opened = []

    def build(limit_bytes: int = PLENTY) -> tuple[FeatureStore, ShardCache]:
        cache = ShardCache(folder.with_name("cache"), limit_bytes)
        opened.append(cache)
        return FeatureStore.open(folder, cache=cache), cache

    yield build
    for cache in opened:
        cache.close()


def wait_for(done: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.005)


def copies(folder: Path) -> dict[str, Path]:
    """The cache's copies by the shard's name."""
    found = folder.with_name("cache").glob("*.tar")
    return {path.name.partition("-")[2]: path for path in found}


def bring(store: FeatureStore, cache: ShardCache, *numbers: int) -> None:
    """Have shards copied, one after the other."""
    for number in numbers:
        shard = shard_path(store.folder, number)
        wait_for(lambda shard=shard: cache.path_of(shard) != shard, f"a copy of {shard.name}")


def assert_reads(store: FeatureStore) -> None:
    for clip_id, frames in FEATURES.items():
        np.testing.assert_array_equal(store.read(clip_id), frames)


def test_a_shard_is_copied_while_it_is_read_and_then_read_from_the_copy(
    folder: Path, open_with
) -> None:
    store, cache = open_with()
    assert_reads(store)  # the originals
    wait_for(lambda: len(copies(folder)) == 3, "a copy of each")
    for name, copy in copies(folder).items():
        assert copy.read_bytes() == (folder / name).read_bytes()
        (folder / name).unlink()
    assert_reads(store)
    assert not list(folder.with_name("cache").glob("*.part"))
    cache.close()
    assert_reads(store)


def test_the_copies_serve_the_next_run_too(folder: Path, open_with) -> None:
    bring(*open_with(), 0, 1, 2)
    made = {path: path.stat().st_ino for path in copies(folder).values()}
    store, cache = open_with()
    assert {cache.path_of(shard_path(folder, n)) for n in range(3)} == set(made)
    assert_reads(store)
    assert {path: path.stat().st_ino for path in copies(folder).values()} == made


def test_the_least_recently_used_copy_gives_way_and_the_limit_holds(
    folder: Path, open_with
) -> None:
    limit = sum(shard_path(folder, n).stat().st_size for n in (0, 1))
    store, cache = open_with(limit)
    bring(store, cache, 0, 1)
    there = copies(folder)
    os.utime(there["shard-000000.tar"], (500, 500))
    os.utime(there["shard-000001.tar"], (400, 400))
    bring(store, cache, 2)
    assert set(copies(folder)) == {"shard-000000.tar", "shard-000002.tar"}
    assert sum(path.stat().st_size for path in copies(folder).values()) <= limit
    assert_reads(store)


def test_copies_in_use_do_not_give_way(folder: Path, open_with) -> None:
    store, cache = open_with(sum(shard_path(folder, n).stat().st_size for n in (0, 1)))
    bring(store, cache, 0, 1)
    made = {path: path.stat().st_ino for path in copies(folder).values()}
    for _ in range(20):
        assert_reads(store)
    assert {path: path.stat().st_ino for path in copies(folder).values()} == made


def test_using_a_copy_keeps_it(folder: Path, open_with) -> None:
    bring(*open_with(), 0)
    (copy,) = copies(folder).values()
    os.utime(copy, (500, 500))
    store, _ = open_with()
    store.read("clip.0/ü")
    assert copy.stat().st_mtime > time.time() - 60


def test_a_limit_below_a_shard_is_said_once(
    folder: Path, open_with, caplog: pytest.LogCaptureFixture
) -> None:
    store, cache = open_with(1000)
    for _ in range(3):
        assert_reads(store)
    wait_for(lambda: set(cache._ask_after.values()) == {math.inf}, "a question for each shard")
    wait_for(cache._asked.empty, "an answer to each")
    assert_reads(store)
    cache.close()
    assert len(caplog.records) == 1
    assert "raise data.cache_gb" in caplog.text
    assert copies(folder) == {}


def test_what_another_process_copies_is_left_to_it_and_taken_over_when_it_is_gone(
    folder: Path, open_with
) -> None:
    store, cache = open_with()
    shard = shard_path(folder, 0)
    copy = cache._copy_of(shard, shard.stat())
    other = open(copy.with_suffix(".part"), "wb")  # noqa: SIM115 - closed as a kill would
    fcntl.flock(other, fcntl.LOCK_EX)
    other.write(b"half")
    other.flush()
    bring(store, cache, 1)
    for _ in range(3):
        np.testing.assert_array_equal(store.read("clip.0/ü"), FEATURES["clip.0/ü"])
    time.sleep(0.1)
    assert set(copies(folder)) == {"shard-000001.tar"}
    assert copy.with_suffix(".part").read_bytes() == b"half"
    other.close()
    bring(store, cache, 0)
    assert copy.read_bytes() == shard.read_bytes()


def test_what_a_killed_process_left_takes_no_room(folder: Path, open_with) -> None:
    store, cache = open_with(shard_path(folder, 0).stat().st_size)
    left = folder.with_name("cache") / "0123456789abcdef-shard-000007.part"
    left.write_bytes(bytes(10_000))
    strange = folder.with_name("cache") / "letters-to-a-friend.tar"
    strange.write_bytes(bytes(10_000))
    bring(store, cache, 0)
    assert not left.exists()
    assert strange.exists()


READER = """
import sys
from pathlib import Path
import numpy as np
from paltrain.data import shard_cache
from paltrain.data.shard_cache import ShardCache
from paltrain.data.shards import FeatureStore
shard_cache.RETRY_S = shard_cache.KEEP_S = 0.0
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
cache = ShardCache(folder.with_name("cache"), limit)
hits = 0
def path_of(shard):
    global hits
    copy = ShardCache.path_of(cache, shard)
    hits += copy != shard
    return copy
cache.path_of = path_of
store = FeatureStore.open(folder, cache=cache)
random = np.random.default_rng(int(sys.argv[3]))
total = 0.0
for row in random.permutation(np.tile(np.arange(len(store)), 150)).tolist():
    frames = np.empty((int(store.n_frames[row]), store.width), np.float16)
    store.read_into(row, frames)
    total += float(frames.astype(float).sum())
cache.close()
print(round(total, 6), hits)
"""


def start_reader(folder: Path, *words: object, setup: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", setup + READER, str(folder), *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def total() -> float:
    return round(150 * sum(float(f.astype(float).sum()) for f in FEATURES.values()), 6)


def test_processes_that_share_a_folder_too_small_for_them_read_right(folder: Path) -> None:
    """Copies come and go all the time, since here those in use give way, too."""
    limit = sum(shard_path(folder, n).stat().st_size for n in (0, 1))
    readers = [start_reader(folder, limit, seed) for seed in range(3)]
    hits = []
    for reader in readers:
        out, err = reader.communicate(timeout=60)
        assert err == ""
        assert float(out.split()[0]) == pytest.approx(total())
        hits.append(int(out.split()[1]))
    assert 0 < sum(hits) < 3 * 150 * len(FEATURES)
    assert sum(path.stat().st_size for path in copies(folder).values()) <= limit
    assert not list(folder.with_name("cache").glob("*.part"))


def test_a_full_disk_is_warned_of_once_and_training_goes_on(folder: Path) -> None:
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
    out, err = start_reader(folder, PLENTY, 0, setup=full).communicate(timeout=60)
    assert float(out.split()[0]) == pytest.approx(total())
    assert err.count("no more copies in data.cache_dir=") == 1
    assert "File too large): going on with those that are there" in err
    assert copies(folder) == {}
    assert not list(folder.with_name("cache").glob("*.part"))


def test_a_folder_that_goes_away_is_warned_of_once(
    folder: Path, open_with, caplog: pytest.LogCaptureFixture
) -> None:
    store, cache = open_with()
    folder.with_name("cache").rmdir()
    for _ in range(3):
        assert_reads(store)
    wait_for(lambda: caplog.records, "a warning")
    assert_reads(store)
    cache.close()
    (record,) = caplog.records
    assert "No such file or directory): going on" in record.message


def test_a_copy_that_another_process_makes_again_meanwhile_is_kept(
    folder: Path, open_with, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives way between being named and being opened, and is there again a moment later."""
    store, cache = open_with()
    bring(store, cache, 0)
    shard, copy = shard_path(folder, 0), copies(folder)[shard_path(folder, 0).name]
    content, named, read_from = copy.read_bytes(), cache.path_of, store._read_from

    def gives_way(asked: Path) -> Path:
        found = named(asked)
        if asked == shard:
            copy.unlink()
        return found

    def comes_back(path: Path, *rest: object) -> None:
        if path == shard:
            copy.write_bytes(content)
        read_from(path, *rest)

    monkeypatch.setattr(cache, "path_of", gives_way)
    monkeypatch.setattr(store, "_read_from", comes_back)
    assert_reads(store)
    assert copy.read_bytes() == content
    assert "was not what" not in caplog.text


@pytest.mark.parametrize("harm", ["flipped", "cut", "emptied"])
def test_a_damaged_copy_is_dropped_and_the_original_read(
    folder: Path, open_with, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    store, cache = open_with()
    bring(store, cache, 1)
    (copy,) = copies(folder).values()
    content = bytearray(copy.read_bytes())
    content[content.find(FEATURES["clip.7/ü"].tobytes())] ^= 1
    copy.write_bytes(
        {"flipped": bytes(content), "cut": bytes(content[:3000]), "emptied": b""}[harm]
    )
    for _ in range(2):
        assert_reads(store)
    assert not copy.exists()
    (record,) = (r for r in caplog.records if r.levelname == "WARNING")
    assert "shard-000001.tar is, and is removed: is its disk well?" in record.message
    assert_reads(store)
    time.sleep(0.1)
    assert not copy.exists()  # a disk that damages files is not asked again


def test_a_true_copy_of_a_damaged_original_stays_and_the_original_is_named(
    folder: Path, open_with
) -> None:
    shard = shard_path(folder, 1)
    content = bytearray(shard.read_bytes())
    content[content.find(FEATURES["clip.7/ü"].tobytes())] ^= 1
    shard.write_bytes(content)
    store, cache = open_with()
    bring(store, cache, 1)
    with pytest.raises(StoreError, match=f"{shard}: the frames of clip 'clip.7/ü' are not those"):
        store.read("clip.7/ü")
    np.testing.assert_array_equal(store.read("clip.6/ü"), FEATURES["clip.6/ü"])
    assert set(copies(folder)) == {shard.name}


def test_a_copy_that_gives_way_between_the_question_and_the_reading_does_no_harm(
    folder: Path, open_with, caplog: pytest.LogCaptureFixture
) -> None:
    store, cache = open_with()
    bring(store, cache, 0, 1, 2)

    def path_of(shard: Path) -> Path:
        copy = ShardCache.path_of(cache, shard)
        for brought in copies(folder).values():
            brought.unlink()
        return copy

    cache.path_of = path_of
    assert_reads(store)
    assert caplog.records == []


def test_a_shard_that_was_made_again_is_never_served_as_it_was(folder: Path, open_with) -> None:
    """Same size, same clips, other frames."""
    old, cache = open_with()
    bring(old, cache, 0)
    frames = np.full((1, 3), 5, np.float16)
    for path in (shard_path, shard_index_path):
        path(folder, 0).unlink()
    write_shard(folder, 0, ((f"clip.{n}/ü", np.repeat(frames, 1 + n, axis=0)) for n in range(5)))
    again = FeatureStore.open(folder, cache=cache)  # the same process, which knows the old copy
    np.testing.assert_array_equal(again.read("clip.0/ü"), frames)
    store, other_cache = open_with()
    bring(store, other_cache, 0)
    shard_path(folder, 0).unlink()
    np.testing.assert_array_equal(store.read("clip.0/ü"), frames)


def test_a_cache_is_opened_by_its_variables_and_does_without_what_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_cache(None, 100.0) is None
    monkeypatch.setenv("FAST_DISK", str(tmp_path / "fast"))
    cache = open_cache("$FAST_DISK/shards", 0.5)
    assert (tmp_path / "fast" / "shards").is_dir()
    assert (cache._folder, cache._limit) == (tmp_path / "fast" / "shards", 500_000_000)
    assert caplog.records == []
    assert open_cache("${NO_SUCH_DISK}/shards", 1.0) is None
    assert "cache_dir=${NO_SUCH_DISK}/shards (a variable in it is not set here)" in caplog.text
    (tmp_path / "file").touch()
    assert open_cache(str(tmp_path / "file" / "shards"), 1.0) is None
    assert "file/shards (Not a directory): going on without" in caplog.text
    assert open_cache(str(tmp_path / "file"), 1.0) is None
    assert "file (File exists): going on without" in caplog.text


def test_a_closed_cache_copies_nothing_more(folder: Path, open_with) -> None:
    store, cache = open_with()
    cache.close()
    assert_reads(store)
    cache.close()
    assert copies(folder) == {}
