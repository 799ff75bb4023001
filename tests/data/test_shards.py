"""The feature store: round trip, plain WebDataset, damage named, new clips in new shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import webdataset

from paltrain.data.shards import FeatureStore, read_assignment, shard_index_path, shard_path
from paltrain.errors import StoreError
from tests.data.conftest import tiny_clips, tiny_features, write_store


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


def test_added_clips_get_new_shards_and_the_old_ones_stay_as_they_are(tmp_path: Path) -> None:
    features = random_features()
    few = dict(list(features.items())[:7])
    write_store(tmp_path, few)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")}
    assert len(FeatureStore.open(tmp_path)) == 7
    rest = {clip: f for clip, f in features.items() if clip not in few}
    from paltrain.data.shard_writer import assign_shards, write_shard

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


def test_a_read_only_store_is_read(tmp_path: Path) -> None:
    write_store(tmp_path, tiny_features(tiny_clips()))
    (tmp_path / "index.npy").unlink()
    store = FeatureStore.open(tmp_path)
    assert len(store) == 23
    assert (tmp_path / "index.npy").exists()
