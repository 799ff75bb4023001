"""Whatever is written to a store is read back, whatever the clips are called and in any order."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from paltrain.data.frames import DTYPES, Unpacker, pack_frames
from paltrain.data.shard_index import COVERED
from paltrain.data.shards import FeatureStore
from paltrain.data.verify import verify_store
from tests.data.conftest import write_store

# JSON and a hash of UTF-8 hold every text but lone surrogates
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
ODD_NAMES = st.sampled_from(
    ["a.b.c", "../x", "ü", "ü", "\\0", "\n", '"', "音/声", " ", "clip", "0"]
)


@st.composite
def stores(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], int]:
    """Features of some clips, and how many lie in a shard."""
    names = draw(st.lists(NAMES | ODD_NAMES, min_size=1, max_size=9, unique=True))
    width = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    scale = draw(st.sampled_from([0.0, 1e-4, 1.0, 300.0, 60000.0]))
    features = {}
    for name in names:
        n_frames = draw(st.integers(1, 3) | st.integers(60, 140))
        frames = rng.uniform(-scale, scale, size=(n_frames, width))
        features[name] = frames.astype(draw(st.sampled_from([np.float16, np.float32])))
    return features, draw(st.integers(1, 4))


def stored(frames: np.ndarray, dtype: str) -> np.ndarray:
    """What reading gives of frames that were written."""
    if dtype == "float16":
        return frames.astype(np.float16)
    out = np.empty(frames.shape, np.float16)
    Unpacker().unpack(pack_frames(frames, dtype), out)
    return out


@settings(max_examples=60, deadline=None)
@given(stores(), st.sampled_from(DTYPES), st.randoms(use_true_random=False))
def test_what_is_written_is_read_by_any_order(given_, dtype, random) -> None:
    features, per_shard = given_
    names = list(features)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_store(folder, features, per_shard=per_shard, dtype=dtype)
        store = FeatureStore.open(folder)
        assert len(store) == len(names)
        rows = store.rows_of(names)
        assert store.shard_of[rows].tolist() == [n // per_shard for n in range(len(names))]
        assert store.n_frames[rows].tolist() == [len(frames) for frames in features.values()]
        for name in random.choices(names, k=2 * len(names)):
            np.testing.assert_array_equal(store.read(name), stored(features[name], dtype))
        assert store.rows_of(["not there, I say"]).tolist() == [-1]
        assert verify_store(folder) == []


@settings(max_examples=25, deadline=None)
@given(stores(), st.sampled_from(DTYPES), st.data())
def test_a_store_that_grows_in_any_steps_is_one_made_at_once(given_, dtype, data) -> None:
    features, _ = given_
    names = list(features)
    cut = data.draw(st.integers(1, len(names)))
    with TemporaryDirectory() as scratch:
        once = write_store(Path(scratch) / "once", features, per_shard=1, dtype=dtype)
        for last in (cut, len(names)):  # the merged index is made again when it has grown
            part = {name: features[name] for name in names[:last]}
            store = write_store(Path(scratch) / "steps", part, per_shard=1, dtype=dtype)
        assert store.index_hash == once.index_hash
        with open(Path(scratch) / "steps" / "index.npy", "rb") as file:
            covered = np.lib.format.read_array(file)
        assert covered.dtype == COVERED
        assert covered["shard"].tolist() == list(range(len(names)))
