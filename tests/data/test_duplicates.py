"""The same recording under two ids, in two manifests: its features are stored once, and both read
them; whoever comes first, together or later, and whatever becomes of the original."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from paltrain.data.assignment import assign_shards
from paltrain.data.coverage import coverage
from paltrain.data.duplicates import by_stored_clip, read_duplicates, warn_of_leaks
from paltrain.data.importers.recordings import content_of
from paltrain.data.index import Corpus
from paltrain.data.manifest import Clip, Question, write_manifest
from paltrain.data.merge import MergeReport, merge_features
from paltrain.data.overview import overview
from paltrain.data.rejected import rejected_clips
from paltrain.data.selection import join_store
from paltrain.data.shards import FeatureStore, read_assignment, read_shard_lines
from paltrain.data.verify import verify_store
from paltrain.errors import IncompleteError, StoreError
from tests.data.test_precompute import contents, run
from tools import precompute_features

ASKED = (Question("q", "t", "What?", "a sound"),)
SHARED = {"caps/1": 2, "caps/2": 5, "caps/3": 2}  # which sound of the first manifest it is


def record(path: Path, sound: int) -> Path:
    """Noise of its own for every number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(sound).normal(size=1600 * (1 + sound % 3))
    soundfile.write(path, noise, 16_000)
    return path


def manifest(
    folder: Path, sounds: Mapping[str, int], *, split: str = "train", known: bool = True
) -> Path:
    """A manifest of recordings that lie in its own folder. known: with their contents."""
    clips = []
    for clip, sound in sounds.items():
        path = record(folder / f"{clip.replace('/', '-')}.wav", sound)
        content = content_of(path) if known else None
        clips.append(Clip(clip, path.name, 0.1, folder.name, split, ASKED, content))
    write_manifest(folder / "manifest.jsonl", clips)
    return folder / "manifest.jsonl"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Ten recordings."""
    return manifest(tmp_path / "set", {f"set/{n}": n for n in range(10)})


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Three of those under other ids, two of these the same, and one of its own."""
    return manifest(tmp_path / "caps", {**SHARED, "caps/own": 90})


def stored(folder: Path) -> list[str]:
    return sorted(clip for clips in read_assignment(folder) for clip in clips)


def assert_reads_as_alone(folder: Path, paths: Mapping[str, Path], alone: Path) -> None:
    """Every clip has the features of its own recording. alone: where these are made."""
    corpus = Corpus.open([*paths.values()])
    plain = [
        manifest(alone / name, {clip: sound for clip, sound in SOUNDS.items() if name in clip},
                 known=False)
        for name in paths
    ]  # fmt: skip
    run(Corpus.open(plain), alone / "store")
    expected, store = FeatureStore.open(alone / "store"), FeatureStore.open(folder)
    assert len(expected) == corpus.n_clips == len(SOUNDS)
    for clip in corpus.clip_id_array.tolist():
        np.testing.assert_array_equal(store.read(clip), expected.read(clip))


SOUNDS = {**{f"set/{n}": n for n in range(10)}, **SHARED, "caps/own": 90}


@pytest.mark.parametrize("order", ["together", "one after the other", "the other way round"])
def test_shared_recordings_are_stored_once_and_read_by_both_ids(
    tmp_path: Path, whole: Path, shared: Path, order: str
) -> None:
    store = tmp_path / "store"
    corpora = {
        "together": [[whole, shared]],
        "one after the other": [[whole], [shared]],
        "the other way round": [[shared], [whole]],
    }[order]
    for paths in corpora:
        run(Corpus.open(paths), store)
    assert len(FeatureStore.open(store)) == len(stored(store)) == 11
    duplicates = read_duplicates(store)
    if order == "the other way round":
        assert duplicates == {"caps/3": "caps/1", "set/2": "caps/1", "set/5": "caps/2"}
    else:
        assert duplicates == {"caps/1": "set/2", "caps/2": "set/5", "caps/3": "set/2"}
    assert_reads_as_alone(store, {"set": whole, "caps": shared}, tmp_path / "alone")
    assert verify_store(store) == []
    before = contents(store)
    again = run(Corpus.open([shared, whole]), store)
    assert (again.n_clips, again.n_there_before, again.n_encoded) == (11, 11, 0)
    assert contents(store) == before


def test_a_manifest_of_known_recordings_alone_makes_no_shard(tmp_path: Path, whole: Path) -> None:
    store = tmp_path / "store"
    run(Corpus.open([whole]), store)
    before = contents(store)
    copy = manifest(tmp_path / "copy", {f"copy/{n}": n for n in range(10)})
    report = run(Corpus.open([copy]), store)
    assert (report.n_clips, report.n_encoded) == (10, 0)
    assert contents(store) == before
    opened = FeatureStore.open(store)
    ids = [f"{name}/{n}" for n in range(10) for name in ("set", "copy")]
    rows = opened.rows_of([*ids, "none"])
    np.testing.assert_array_equal(rows[:-1:2], rows[1::2])
    assert rows[-1] == -1
    joined, _ = join_store("mel", opened, Corpus.open([whole, copy]))
    np.testing.assert_array_equal(joined.n_frames[:10], joined.n_frames[10:])
    assert (joined.n_frames > 0).all()


def test_without_contents_every_clip_has_its_own_features(tmp_path: Path, whole: Path) -> None:
    store = tmp_path / "store"
    run(Corpus.open([whole]), store)
    copy = manifest(tmp_path / "copy", {f"copy/{n}": n for n in range(10)}, known=False)
    assert run(Corpus.open([copy]), store).n_encoded == 10
    assert read_duplicates(store) == {}
    assert [len(line.get("contents", ())) for line in read_shard_lines(store)] == [4, 4, 2, 0, 0, 0]


def test_a_store_made_before_contents_were_recorded_stays_as_it_is(
    tmp_path: Path, whole: Path, shared: Path
) -> None:
    store = tmp_path / "store"
    run(Corpus.open([whole]), store)
    lines = [{**line} for line in read_shard_lines(store)]
    for line in lines:
        line.pop("contents")
    (store / "shards.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = contents(store)
    run(Corpus.open([whole, shared]), store)
    assert {name: contents(store)[name] for name in before} == before
    assert read_duplicates(store) == {"caps/3": "caps/1"}
    assert_reads_as_alone(store, {"set": whole, "caps": shared}, tmp_path / "alone")


def test_slices_and_their_merge_count_duplicates_as_recordings_with_features(
    tmp_path: Path, whole: Path, shared: Path
) -> None:
    store, corpus = tmp_path / "store", Corpus.open([whole, shared])
    merge = partial(
        merge_features, encoder_type="logmel", clips_per_shard=4, n_slices=2, command="make I"
    )
    run(corpus, store, slice_of=(1, 2))
    with pytest.raises(IncompleteError, match="slice 0 lacks 2 of 2 shards"):
        merge(corpus, store)
    run(corpus, store, slice_of=(0, 2))
    assert merge(corpus, store) == MergeReport(14, 14, 0, 3, n_duplicates=3)
    copy = manifest(tmp_path / "copy", {"copy/1": 1})
    assert merge(Corpus.open([copy]), store) == MergeReport(1, 1, 0, 3, n_duplicates=1)
    np.testing.assert_array_equal(*map(FeatureStore.open(store).read, ("copy/1", "set/1")))


def test_a_manifest_alone_waits_for_the_shards_that_its_duplicates_lie_in(
    tmp_path: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, twin = tmp_path / "store", manifest(tmp_path / "twin", {"twin/9": 9, "twin/5": 5})
    run(Corpus.open([whole]), store, slice_of=(0, 3))
    report = run(Corpus.open([twin]), store)
    assert (report.n_clips, report.n_there_before, report.n_waiting) == (2, 0, 2)
    said = "shards 1-2 are for clips of other manifests, too ('set/4', ...): name those manifests"
    assert said in caplog.text
    missing = coverage(Corpus.open([twin]), store).missing
    assert missing.tolist() == [0, 1]
    rest = manifest(tmp_path / "rest", {"rest/8": 8, "rest/9": 9})
    assert run(Corpus.open([rest]), store).n_encoded == 2  # all that shard 2 is for
    assert coverage(Corpus.open([twin]), store).missing.tolist() == [1]
    run(Corpus.open([whole]), store)
    assert coverage(Corpus.open([twin, whole]), store).n_missing == 0
    assert len(FeatureStore.open(store)) == 10


def test_duplicates_of_a_rejected_recording_are_rejected_with_it(tmp_path: Path) -> None:
    store = tmp_path / "store"
    paths = [
        manifest(tmp_path / "set", {f"set/{n}": n for n in range(6)}),
        manifest(tmp_path / "twin", {"twin/3": 3, "twin/4": 4}),
    ]
    for recording in ("set/set-3.wav", "twin/twin-3.wav"):
        path = tmp_path / recording
        path.write_bytes(path.read_bytes()[:900])  # cut off, since its content was noted
    corpus = Corpus.open(paths)
    report = run(corpus, store)
    assert (report.n_encoded, report.n_rejected) == (5, 1)
    assert FeatureStore.open(store).rows_of(["set/3", "twin/3"]).tolist() == [-1, -1]
    assert rejected_clips(store) == {"set/3", "twin/3"}
    merged = merge_features(
        corpus, store, encoder_type="logmel", clips_per_shard=4, n_slices=1, command=""
    )
    assert merged == MergeReport(8, 6, 2, 2, n_duplicates=2)
    seen = coverage(corpus, store)
    assert (seen.n_missing, seen.n_rejected) == (0, 2)
    assert (overview(store).n_rejected, overview(store).n_duplicates) == (1, 2)
    assert verify_store(store) == []


def test_a_kill_between_the_two_records_is_mended_by_the_next_call(
    tmp_path: Path, whole: Path, shared: Path
) -> None:
    store = tmp_path / "store"
    run(Corpus.open([whole, shared]), store)
    duplicates = read_duplicates(store)
    (store / "duplicates.jsonl").unlink()
    run(Corpus.open([shared]), store)
    assert read_duplicates(store) == duplicates


def test_a_recording_that_was_replaced_is_told(
    tmp_path: Path, whole: Path, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    run(Corpus.open([whole, shared]), store)
    assert not caplog.records
    changed = manifest(tmp_path / "caps", {**SHARED, "caps/2": 77, "caps/own": 90})
    run(Corpus.open([changed]), store)
    assert "the recordings of 1 clips are others than when " in caplog.text
    assert "(caps/2, ...), and keep the features of the old ones" in caplog.text


def test_a_duplicate_of_what_no_shard_is_for_is_found_and_given_a_place(
    tmp_path: Path, whole: Path, shared: Path
) -> None:
    store = tmp_path / "store"
    run(Corpus.open([whole, shared]), store)
    file = store / "duplicates.jsonl"
    text = file.read_text()
    file.write_text(text.replace('"set/5"', '"set/50"'))
    (finding,) = verify_store(store)
    assert str(finding).startswith(
        "duplicates.jsonl: names for clip 'caps/2' a clip that no shard is for; remove those lines"
    )
    run(Corpus.open([shared]), store)
    assert verify_store(store) == []
    assert_reads_as_alone(store, {"set": whole, "caps": shared}, tmp_path / "alone")
    file.write_text(text[:-9])
    (finding,) = verify_store(store)
    assert "duplicates.jsonl: cannot be read (JSONDecodeError" in str(finding)
    with pytest.raises(StoreError, match=r"duplicates\.jsonl cannot be read .*: remove it and run"):
        FeatureStore.open(store).read("caps/1")
    os.unlink(file)
    run(Corpus.open([shared]), store)
    assert verify_store(store) == []


def test_a_duplicate_whose_content_nobody_knows_gets_a_place_if_its_original_has_none(
    tmp_path: Path,
) -> None:
    (tmp_path / "duplicates.jsonl").write_text('{"clip": "a", "same_as": "gone"}\n')
    assert assign_shards(tmp_path, ["a", "b"], clips_per_shard=1) == [["a"], ["b"]]
    assert read_duplicates(tmp_path) == {}


def test_recordings_go_by_the_ids_that_they_are_stored_under() -> None:
    duplicates = {"b": "a", "c": "x", "d": "x", "e": "y"}
    assert by_stored_clip({"a": 0, "b": 1, "c": 2, "d": 3}, duplicates) == {"a": 0, "x": 2}


def test_the_same_recording_in_two_splits_is_warned_of(
    tmp_path: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    harmless = manifest(tmp_path / "more", {"more/1": 1, "more/70": 70})
    warn_of_leaks(Corpus.open([whole, harmless]))
    unknown = manifest(tmp_path / "old", {"old/1": 1}, split="test", known=False)
    warn_of_leaks(Corpus.open([whole, unknown]))
    assert not caplog.records
    leaking = manifest(tmp_path / "caps", {**SHARED, "caps/own": 90}, split="test")
    warn_of_leaks(Corpus.open([leaking]))
    assert not caplog.records
    warn_of_leaks(Corpus.open([whole, leaking]))
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("2 recordings are in two splits at once, under different ids ('")
    assert " of split 'test' is 'set/" in said


def test_the_tool_tells_how_many_are_copies(
    tmp_path: Path, whole: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        f"manifests=[{whole},{shared}]", f"folder={tmp_path}", "encoders.logmel.type=logmel",
        "workers=0",
    ]  # fmt: skip
    precompute_features.main(["configs/quickstart/features.yaml", *words])
    precompute_features.main(["configs/quickstart/features.yaml", *words, "--merge", "1"])
    precompute_features.main(["show", str(tmp_path / "logmel")])
    said = capsys.readouterr().out
    assert "logmel: 11 recordings: 0 there before, 11 encoded" in said
    assert "14 of 14 recordings have features; 0 set aside; 3 are copies of others; 1 sh" in said
    assert "clips     11 of 11 have features, 0 were set aside; 3 more are copies of others" in said
