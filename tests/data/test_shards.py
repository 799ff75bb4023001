"""The feature store: round trip, plain WebDataset, damage named, new clips in new shards."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import webdataset

from paltrain.data.assignment import assign_shards
from paltrain.data.duplicates import read_duplicates
from paltrain.data.shard_writer import claim_store, write_shard
from paltrain.data.shards import FeatureStore, read_assignment, shard_index_path, shard_path
from paltrain.errors import StoreError
from tests.data.conftest import tiny_clips, tiny_features, write_store

N_STORES = 40
ROOT = Path(__file__).resolve().parents[2]


def random_features(n: int = 12, width: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        f"clip.{number}/ü": rng.normal(size=(1 + number, width)).astype(np.float16)
        for number in range(n)
    }


def test_what_is_written_is_read_back_in_any_order(tmp_path: Path) -> None:
    features = random_features()
    write_store(tmp_path, features)
    store = FeatureStore.open(tmp_path)
    for clip_id in reversed(features):
        np.testing.assert_array_equal(store.read(clip_id), features[clip_id])
    rows = store.rows_of([*features, "none"])
    assert rows[-1] == -1
    assert store.n_frames[rows[:-1]].tolist() == [len(f) for f in features.values()]
    assert store.shard_of[rows[:-1]].tolist() == [n // 5 for n in range(12)]


def test_a_store_is_plain_webdataset(tmp_path: Path) -> None:
    features = random_features()
    write_store(tmp_path, features)
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["json"]["id"] for sample in samples] == list(features)
    for sample in samples:
        np.testing.assert_array_equal(sample["npy"], features[sample["json"]["id"]])


def test_an_int8_store_is_half_as_large_and_read_as_float16(tmp_path: Path) -> None:
    features = random_features(width=200)
    whole = write_store(tmp_path / "float16", features)
    store = write_store(tmp_path / "int8", features, dtype="int8")
    assert len(store) == len(whole)
    assert store.stamp["dtype"] == "int8"
    for clip_id, frames in features.items():
        got = store.read(clip_id)
        assert got.dtype == np.float16
        step = np.abs(frames.astype(np.float32)).max(axis=1, keepdims=True) / 127
        assert (np.abs(got.astype(np.float32) - frames) <= 0.51 * step + np.abs(got) / 1024).all()


def test_an_int8_store_is_plain_webdataset_of_values_and_scales(tmp_path: Path) -> None:
    features = random_features()
    store = write_store(tmp_path, features, dtype="int8")
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["json"]["id"] for sample in samples] == list(features)
    for s in samples:
        frames = s["npy"]["values"] * s["npy"]["scale"][:, None]
        assert s["json"]["n_frames"] == len(frames)
        np.testing.assert_allclose(frames, store.read(s["json"]["id"]), rtol=1e-3, atol=1e-6)


def test_a_flipped_byte_of_an_int8_clip_is_found(tmp_path: Path) -> None:
    write_store(tmp_path, random_features(), dtype="int8")
    store = FeatureStore.open(tmp_path)
    tar, entry = shard_path(tmp_path, 1), store._index[int(store.rows_of(["clip.7/ü"])[0])]
    content = bytearray(tar.read_bytes())
    content[int(entry["offset"]) + 1] ^= 1  # of a scale
    tar.write_bytes(content)
    with pytest.raises(StoreError, match=r"clip 'clip\.7/ü' are not those that were written"):
        store.read("clip.7/ü")
    assert store.read("clip.6/ü").shape == (7, 3)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_features_that_float16_cannot_say_are_refused_by_clip(tmp_path: Path, dtype: str) -> None:
    store = write_store(tmp_path, random_features(5), dtype=dtype)
    assign_shards(tmp_path, ["good", "loud"], clips_per_shard=2)
    loud = np.ones((4, 3), np.float32)
    loud[2, 1] = 1e5
    with pytest.raises(StoreError, match=r"'loud' cannot be stored: frame 2 holds 100000, and 65"):
        write_shard(tmp_path, 1, [("good", np.ones((2, 3))), ("loud", loud)], dtype=dtype)
    assert [path.name for path in tmp_path.glob("*shard-000001*")] == []
    assert len(FeatureStore.open(tmp_path)) == len(store) == 5


def test_stores_of_another_dtype_are_not_mixed(tmp_path: Path) -> None:
    store = write_store(tmp_path, random_features(5), dtype="int8")
    with pytest.raises(StoreError, match=r"dtype: 'int8' != 'float16'; there != here"):
        write_store(tmp_path, random_features(5))
    with pytest.raises(StoreError, match=r"dtype: 'int8' != 'float16'\): name the right store"):
        store.check_stamp({**store.stamp, "dtype": "float16"})
    (tmp_path / "store.json").write_text((tmp_path / "store.json").read_text().replace("t8", "t4"))
    with pytest.raises(StoreError, match=r"unknown dtype of a feature store 'int4'.*valid: float1"):
        FeatureStore.open(tmp_path)


def test_added_clips_get_new_shards_and_the_old_ones_stay_as_they_are(tmp_path: Path) -> None:
    features = random_features()
    few = dict(list(features.items())[:7])
    write_store(tmp_path, few)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")}
    assert len(FeatureStore.open(tmp_path)) == 7
    rest = {clip: f for clip, f in features.items() if clip not in few}
    shards = assign_shards(tmp_path, list(features), clips_per_shard=5)
    assert [len(shard) for shard in shards] == [5, 2, 5]
    assert shards == read_assignment(tmp_path)
    write_shard(tmp_path, 2, rest.items())
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    store = FeatureStore.open(tmp_path)
    for clip_id, frames in features.items():
        np.testing.assert_array_equal(store.read(clip_id), frames)


def test_the_same_features_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_store(tmp_path / name, random_features())
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_flipped_byte_is_found_and_the_clip_named(tmp_path: Path) -> None:
    features = random_features()
    write_store(tmp_path, features)
    tar = shard_path(tmp_path, 1)
    content = bytearray(tar.read_bytes())
    at = bytes(content).find(features["clip.7/ü"].tobytes())
    content[at + 3] ^= 1
    tar.write_bytes(content)
    with pytest.raises(StoreError, match=r"clip 'clip\.7/ü' are not those that were written"):
        FeatureStore.open(tmp_path).read("clip.7/ü")
    assert FeatureStore.open(tmp_path, verify=False).read("clip.7/ü").shape == (8, 3)
    assert FeatureStore.open(tmp_path).read("clip.6/ü").shape == (7, 3)


def test_a_torn_a_missing_and_an_index_less_shard_are_named_with_the_remedy(tmp_path: Path) -> None:
    write_store(tmp_path, random_features())
    store = FeatureStore.open(tmp_path)
    tar = shard_path(tmp_path, 2)
    tar.write_bytes(tar.read_bytes()[:1600])
    with pytest.raises(StoreError, match=r"shard-000002\.tar is torn: of clip 'clip\.11/ü'"):
        store.read("clip.11/ü")
    tar.unlink()
    with pytest.raises(StoreError, match=r"cannot be opened.*remove the shard and its index"):
        store.read("clip.11/ü")
    with pytest.raises(StoreError, match=r"'clip\.11/ü' has no features"):
        FeatureStore.open(tmp_path).read("clip.11/ü")
    shard_index_path(tmp_path, 0).unlink()
    with pytest.raises(StoreError, match=r"shard-000000\.tar has lost its index"):
        FeatureStore.open(tmp_path)


def test_another_encoders_store_is_refused_by_the_fields_that_differ(tmp_path: Path) -> None:
    store = write_store(tmp_path, random_features())
    store.check_stamp({**store.stamp, "versions": {"numpy": "0"}})
    moved = {**store.stamp["encoder"], "path": "/elsewhere"}
    store.check_stamp({**store.stamp, "encoder": moved})
    with pytest.raises(StoreError, match=r"frame_rate_hz: 50\.0 != 25\.0; width: 3 != 4"):
        store.check_stamp({**store.stamp, "width": 4, "frame_rate_hz": 25.0})


def test_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no feature store.*precompute_features\.py CONFIG"):
        FeatureStore.open(tmp_path)


def test_a_merged_index_that_is_gone_is_made_again(tmp_path: Path) -> None:
    write_store(tmp_path, tiny_features(tiny_clips()))
    (tmp_path / "index.npy").unlink()
    store = FeatureStore.open(tmp_path)
    assert len(store) == 23
    assert (tmp_path / "index.npy").exists()


READ_ONLY = """
import os, sys
from pathlib import Path
import numpy as np
from paltrain.data.shard_writer import claim_store, write_shard
from paltrain.data.shards import FeatureStore
from paltrain.errors import StoreError
if os.getuid() == 0:
    os.setuid(65534)  # root may write everywhere
folder = Path(sys.argv[1])
store = FeatureStore.open(folder)
print(len(store), store.read("clip.7/ü").shape)
for write in (
    lambda: write_shard(folder, 3, [("new", np.ones((2, 3)))]),
    lambda: claim_store(folder / "below", store.stamp),
):
    try:
        write()
    except StoreError as error:
        print(error)
claim_store(folder, store.stamp)
"""


def test_a_read_only_store_is_read_and_writing_to_it_is_refused() -> None:
    with TemporaryDirectory(prefix="paltrain-") as scratch:  # where everybody may look
        folder = Path(scratch) / "store"
        write_store(folder, random_features())
        (folder / "index.npy").unlink()  # and cannot be kept
        there = sorted(path.name for path in folder.iterdir())
        for path in (Path(scratch), folder):
            path.chmod(0o555)
        words = [sys.executable, "-c", READ_ONLY, str(folder)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
        for path in (Path(scratch), folder):
            path.chmod(0o755)
        assert done.stderr == ""
        read, shard, claim = done.stdout.splitlines()
        assert read == "12 (8, 3)"
        remedy = "make room there, or take write permission"
        assert f"shard-000003.tar cannot be written: Permission denied; {remedy} and run" in shard
        assert "below/store.json cannot be written: Permission denied; name another" in claim
        assert sorted(path.name for path in folder.iterdir()) == there


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_full_disk_takes_a_shard_away_and_keeps_the_others(tmp_path: Path, dtype: str) -> None:
    """A limit on file size stands for the full disk."""
    features = random_features(5)
    write_store(tmp_path, features, dtype=dtype)
    assign_shards(tmp_path, ["large"], clips_per_shard=5)
    before = sorted(path.name for path in tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(
            StoreError, match=r"shard-000001\.tar cannot be written: File too large"
        ):
            write_shard(tmp_path, 1, [("large", np.ones((30_000, 3)))], dtype=dtype)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    store = FeatureStore.open(tmp_path)
    assert [store.read(clip).shape for clip in features] == [(1 + n, 3) for n in range(5)]
    write_shard(tmp_path, 1, [("large", np.ones((30_000, 3)))], dtype=dtype)  # room was made
    assert FeatureStore.open(tmp_path).read("large").min() == 1


def test_a_store_is_not_touched_by_a_claim_of_another_encoder(tmp_path: Path) -> None:
    features = random_features()
    store = write_store(tmp_path, features)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = {**store.stamp, "weight_hash": "1", "width": 9}
    with pytest.raises(StoreError, match=r"holds features of another encoder \(weight_hash: '0'"):
        claim_store(tmp_path, other)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_message_does_without_the_name_if_the_assignment_is_gone(tmp_path: Path) -> None:
    store = write_store(tmp_path, random_features())
    tar = shard_path(tmp_path, 2)
    tar.write_bytes(tar.read_bytes()[:1600])
    (tmp_path / "shards.jsonl").write_text("{half", encoding="utf-8")
    with pytest.raises(StoreError, match=r"torn: of clip 'number 1[01]' \d+ of \d+ bytes"):
        store.read("clip.11/ü")
    (tmp_path / "shards.jsonl").unlink()
    with pytest.raises(StoreError, match=r"torn: of clip 'number 1[01]'"):
        store.read("clip.11/ü")


def test_a_disk_that_fails_is_an_error_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_store(tmp_path, random_features())

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(StoreError, match=r"shard-000001\.tar cannot be read: Input/output error"):
        store.read("clip.7/ü")


def test_a_shard_that_comes_with_an_older_time_is_seen(tmp_path: Path) -> None:
    features = random_features()
    write_store(tmp_path / "all", features)
    write_store(tmp_path / "part", dict(list(features.items())[:5]))  # shard 0 alone, indexed
    for number in (2, 1):  # as `rsync -a` brings them
        for path in (shard_path, shard_index_path):
            shutil.copy2(path(tmp_path / "all", number), path(tmp_path / "part", number))
            os.utime(path(tmp_path / "part", number), (0, 0))
        store = FeatureStore.open(tmp_path / "part")
        assert set(store.shard_of.tolist()) == {0, 2, number}
    np.testing.assert_array_equal(store.read("clip.7/ü"), features["clip.7/ü"])


def test_an_up_to_date_merged_index_is_mapped_and_another_made_again(tmp_path: Path) -> None:
    write_store(tmp_path, random_features(6), per_shard=1)
    merged = tmp_path / "index.npy"
    written = merged.read_bytes()
    stamp = merged.stat().st_mtime_ns
    index = FeatureStore.open(tmp_path)._index
    assert isinstance(index, np.memmap)
    assert merged.stat().st_mtime_ns == stamp
    for other in (written[:-7], written[:100], b"", b"PK\x03\x04nothing"):
        merged.write_bytes(other)
        assert len(FeatureStore.open(tmp_path)) == 6
        assert merged.read_bytes() == written
    np.save(merged, np.array(index))  # as it was before: as many rows as there are shards
    assert len(FeatureStore.open(tmp_path)) == 6
    assert merged.read_bytes() == written


def test_empty_shards_are_covered(tmp_path: Path) -> None:
    """All recordings of a shard may be unreadable."""
    store = write_store(tmp_path, random_features(2))
    assign_shards(tmp_path, ["x", "y"], clips_per_shard=1)
    write_shard(tmp_path, 1, [])
    before = (tmp_path / "index.npy").read_bytes()
    assert len(FeatureStore.open(tmp_path)) == len(store)
    assert (tmp_path / "index.npy").read_bytes() != before
    assert isinstance(FeatureStore.open(tmp_path)._index, np.memmap)
    for path in (shard_path, shard_index_path):
        path(tmp_path, 0).unlink()
    assert len(FeatureStore.open(tmp_path)) == 0
    assert len(FeatureStore.open(tmp_path)) == 0


def test_a_shard_that_was_made_again_is_read_as_it_is_now(tmp_path: Path) -> None:
    """Same size, other frames: the index beside it would not show it."""
    write_store(tmp_path, random_features())
    for path in (shard_path, shard_index_path):
        path(tmp_path, 1).unlink()
    frames = np.ones((6, 3), np.float16)
    write_shard(tmp_path, 1, ((f"clip.{n}/ü", frames[: 1 + n]) for n in range(5, 10)))
    np.testing.assert_array_equal(FeatureStore.open(tmp_path).read("clip.5/ü"), frames)


def test_of_two_processes_that_make_one_shard_the_first_ones_stays_whole(tmp_path: Path) -> None:
    """Two machines' GPUs may differ in the last bits."""
    write_store(tmp_path, {"a": np.zeros((2, 3), np.float16)})
    assign_shards(tmp_path, ["b"], clips_per_shard=1)
    first, second = np.full((5, 3), 1, np.float16), np.full((5, 3), 2, np.float16)

    def overtaken() -> Iterator[tuple[str, np.ndarray]]:
        yield "b", second
        write_shard(tmp_path, 1, [("b", first)])

    write_shard(tmp_path, 1, overtaken())
    np.testing.assert_array_equal(FeatureStore.open(tmp_path).read("b"), first)
    assert not list(tmp_path.glob(".shard*"))


def test_commands_with_different_manifests_lose_none_of_each_others_clips(tmp_path: Path) -> None:
    write_store(tmp_path, {"a": np.zeros((2, 3), np.float16)})
    race([partial(_assign_many, tmp_path, name) for name in "bcd"], tmp_path / "meet")
    shards = read_assignment(tmp_path)
    clips = [clip for shard in shards for clip in shard]
    assert sorted(clips) == sorted(["a", *(f"{name}{n}" for name in "bcd" for n in range(40))])
    assert len(shards) == 1 + 3 * 40


def test_commands_with_manifests_that_share_recordings_give_each_one_place(
    tmp_path: Path,
) -> None:
    assign_shards(tmp_path, ["a"], clips_per_shard=1)
    race([partial(_assign_shared, tmp_path, name) for name in "bcd"], tmp_path / "meet")
    duplicates = read_duplicates(tmp_path)
    clips = [clip for shard in read_assignment(tmp_path) for clip in shard]
    assert len(clips) == len(set(clips)) == 1 + 40
    assert len(duplicates) == 80
    assert not set(clips) & set(duplicates)
    assert all(clip[1:] == same_as[1:] for clip, same_as in duplicates.items())
    assert set(duplicates.values()) <= set(clips)


def test_of_two_encoders_that_claim_a_store_at_once_one_gets_it(tmp_path: Path) -> None:
    outcomes = race([partial(_claim_many, tmp_path, width) for width in (1, 2)], tmp_path / "meet")
    assert sorted(a + b for a, b in zip(*outcomes, strict=True)) == [1] * N_STORES


def race(jobs: Sequence[Callable[[], list[int]]], meet: Path) -> list[list[int]]:
    """Run the jobs in processes that start together, having met in a folder; what they return."""
    meet.mkdir()
    with ProcessPoolExecutor(len(jobs), mp_context=get_context("spawn")) as pool:
        runners = [pool.submit(_when_all_are_there, meet, len(jobs), job) for job in jobs]
        return [runner.result() for runner in runners]


def _when_all_are_there(meet: Path, n: int, job: Callable[[], list[int]]) -> list[int]:
    (meet / str(os.getpid())).touch()
    while len(os.listdir(meet)) < n:
        time.sleep(0)
    return job()


def _assign_many(folder: Path, name: str) -> list[int]:
    return [len(assign_shards(folder, [f"{name}{n}"], clips_per_shard=1)) for n in range(40)]


def _assign_shared(folder: Path, name: str) -> list[int]:
    """Forty recordings that every process has under names of its own."""
    return [
        len(assign_shards(folder, {f"{name}{n}": f"{n + 1:016x}"}, clips_per_shard=1))
        for n in range(40)
    ]


def _claim_many(folder: Path, width: int) -> list[int]:
    """For each store, 1 if it is now one of this width."""
    won = []
    for number in range(N_STORES):
        try:
            claim_store(folder / str(number), {"width": width})
            won.append(1)
        except StoreError:
            won.append(0)
    return won


def test_a_file_system_without_locks_is_warned_of_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    store = write_store(tmp_path, random_features())
    assert len(store) == 12
    (record,) = caplog.records
    assert "has no file locks (Function not implemented): do not start two" in record.message
