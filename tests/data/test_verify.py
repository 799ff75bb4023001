"""Damaged stores: every fault is found at once, with its remedy; repair keeps all the rest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from paltrain.cli import main_guard
from paltrain.data.assignment import assign_shards
from paltrain.data.overview import overview
from paltrain.data.repair import repair_store
from paltrain.data.shard_index import COVERED, covered_shards
from paltrain.data.shard_writer import write_shard
from paltrain.data.shards import (
    FeatureStore,
    finished_shards,
    missing_shards,
    read_assignment,
    shard_index_path,
    shard_path,
)
from paltrain.data.verify import Cure, Finding, require_whole, verify_store
from paltrain.errors import StoreError
from paltrain.files import beside
from tests.data.conftest import write_store
from tests.data.test_merge import everything
from tests.data.test_precompute import ROOT, contents, make_corpus, run
from tests.data.test_shards import random_features
from tools import precompute_features

Damage = Callable[[Path], object]
N = 12  # clips; shards of 5, 5 and 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_store(tmp_path / "store", random_features(N))
    assert verify_store(tmp_path / "store") == []
    return tmp_path / "store"


def cut(path: Path, n_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:n_bytes])


def flip(path: Path, at: int | bytes) -> None:
    """Flip a bit at a byte, or in the first byte of what is found."""
    content = bytearray(path.read_bytes())
    content[content.index(at) if isinstance(at, bytes) else at] ^= 1
    path.write_bytes(content)


def frames_of(clip: int) -> bytes:
    return bytes(random_features(N)[f"clip.{clip}/ü"].tobytes())


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, [*map(str, findings)]
    return findings[0]


def readable(folder: Path) -> set[str]:
    """The clips that are read back as they were written."""
    store, there = FeatureStore.open(folder), set()
    for clip_id, frames in random_features(N).items():
        if store.rows_of([clip_id])[0] >= 0:
            np.testing.assert_array_equal(store.read(clip_id), frames)
            there.add(clip_id)
    return there


def clips(*numbers: int) -> set[str]:
    return {f"clip.{number}/ü" for number in numbers}


TORN_TARS: dict[str, tuple[Damage, str]] = {
    "in a clip": (lambda tar: cut(tar, tar.stat().st_size // 2), "torn"),
    "in a header": (lambda tar: cut(tar, 1024 + 100), "torn"),
    "behind a member": (lambda tar: cut(tar, 2048), "torn"),
    "before its end": (lambda tar: cut(tar, tar.read_bytes().rstrip(b"\0").__len__()), "torn"),
    "empty": (lambda tar: cut(tar, 0), "torn"),
    "a header flipped": (lambda tar: flip(tar, b"000001-000003.npy"), "torn or damaged"),
    "a name flipped": (lambda tar: flip(tar, b'{"id": "clip.7'), "names no clip"),
    "an id flipped": (lambda tar: flip(tar, b'7/\\u00fc"'), "clip 'clip.6/ü' stands where"),
    "a shape flipped": (lambda tar: flip(tar, b"(8, 3)"), "is no array"),
    "an array flipped": (lambda tar: flip(tar, b"\x93NUMPY"), "is no array"),
    "nothing but noise": (lambda tar: tar.write_bytes(b"noise" * 4000), "torn or damaged"),
}


@pytest.mark.parametrize("damage", TORN_TARS, ids=str)
def test_a_damaged_tar_is_found_moved_aside_and_made_again(folder: Path, damage: str) -> None:
    harm, says = TORN_TARS[damage]
    whole = contents(folder)
    harm(shard_path(folder, 1))
    finding = only(verify_store(folder))
    assert finding.cure is Cure.ASIDE
    assert "shard-000001.tar" in str(finding)
    assert says in str(finding)
    damaged = shard_path(folder, 1).read_bytes()
    assert repair_store(folder).left == []
    assert (folder / "aside/shard-000001.tar").read_bytes() == damaged
    assert (folder / "aside/shard-000001.index.npy").exists()
    assert verify_store(folder) == []
    assert readable(folder) == clips(0, 1, 2, 3, 4, 10, 11)
    write_store(folder, random_features(N))  # a rerun
    assert contents(folder) == whole
    assert verify_store(folder) == []


def test_no_flipped_bit_is_called_whole(tmp_path: Path) -> None:
    """In samples, that is; a header may lose its mtime and still be read by everybody."""
    folder = tmp_path / "store"
    write_store(folder, random_features(2))
    tar = shard_path(folder, 0)
    whole = tar.read_bytes()
    with tarfile.open(tar) as members:
        samples = [n for m in members for n in range(m.offset_data, m.offset_data + m.size)]
    for at in range(0, len(whole), 13):
        flip(tar, at)
        findings = verify_store(folder)
        assert at not in samples or only(findings).path == tar, at
        tar.write_bytes(whole)


def test_a_hole_in_a_tar_is_no_end(folder: Path) -> None:
    tar = shard_path(folder, 1)
    content = bytearray(tar.read_bytes()) + bytes(20 * 1024)
    content[2048 : len(content) - 2048] = bytes(len(content) - 4096)
    tar.write_bytes(content)
    assert "damaged" in only(verify_store(folder)).fault


def test_flipped_frames_are_found_by_clip_and_kept_aside(folder: Path) -> None:
    for clip in (6, 8):
        flip(shard_path(folder, 1), frames_of(clip))
    finding = only(verify_store(folder))
    assert "clips 'clip.6/ü', 'clip.8/ü' are not those that were written" in finding.fault
    repair_store(folder)
    assert verify_store(folder) == []
    assert readable(folder) == clips(0, 1, 2, 3, 4, 10, 11)


LOST_INDEXES: dict[str, Damage] = {
    "lost": Path.unlink,
    "torn": lambda path: cut(path, 100),
    "empty": lambda path: cut(path, 0),
    "not an index": lambda path: np.save(path, np.zeros(3)),
    "a header flipped": lambda path: flip(path, b"descr"),
    "a parenthesis flipped": lambda path: flip(path, b"(5,)"),
    "its number of clips flipped": lambda path: flip(path, b"5,)"),
    "another shard's": lambda path: path.write_bytes(shard_index_path(path.parent, 0).read_bytes()),
    "of fewer clips": lambda path: np.save(path, np.load(path)[:-1]),
}


@pytest.mark.parametrize("damage", LOST_INDEXES, ids=str)
def test_an_index_is_made_again_from_the_tar(folder: Path, damage: str) -> None:
    whole = everything(folder)
    LOST_INDEXES[damage](shard_index_path(folder, 1))
    assert only(verify_store(folder)).cure is Cure.INDEX
    report = repair_store(folder)
    assert "damage done before cannot be told" in report.deeds[0]
    assert report.left == []
    FeatureStore.open(folder)
    shutil.rmtree(folder / "aside", ignore_errors=True)
    assert everything(folder) == whole


@pytest.mark.parametrize("at", [b"(5,)", b"5,)", b"checksum", b"\x93NUMPY"], ids=str)
def test_a_flipped_header_of_an_index_is_an_error_of_the_store(folder: Path, at: bytes) -> None:
    flip(shard_index_path(folder, 1), at)
    assert readable(folder) == clips(*range(N))  # the merged index has it all
    (folder / "index.npy").unlink()
    with pytest.raises(StoreError, match=r"000001\.index\.npy cannot be read .* makes it again"):
        FeatureStore.open(folder)
    assert overview(folder).n_without_index == 1
    assert only(verify_store(folder)).cure is Cure.INDEX


def test_a_merged_index_with_a_flipped_header_is_made_again(folder: Path) -> None:
    whole = (folder / "index.npy").read_bytes()
    second = whole.rindex(b"\x93NUMPY")
    for at in [*range(0, second), *range(second, whole.index(b"}", second))]:
        flip(folder / "index.npy", at)
        covered_shards(folder / "index.npy")
        assert len(FeatureStore.open(folder)) == N
        assert verify_store(folder) == [], at
        (folder / "index.npy").write_bytes(whole)


def test_an_int8_store_is_verified_and_repaired_like_another(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = write_store(folder, random_features(N), dtype="int8")
    assert verify_store(folder) == []
    whole, before = everything(folder), store.read("clip.3/ü")
    for stamped in (True, False):  # the tar says itself what it holds
        shard_index_path(folder, 0).unlink()
        stamp = (folder / "store.json").read_bytes()
        if not stamped:
            (folder / "store.json").unlink()
        assert "made again from the tar" in repair_store(folder).deeds[0]
        (folder / "store.json").write_bytes(stamp)
        FeatureStore.open(folder)
        assert everything(folder) == whole
    flip(shard_path(folder, 1), int(store._index["offset"][6]) + 2)
    finding = only(verify_store(folder))
    assert "clip 'clip.6/ü' are not those that were written" in finding.fault
    assert repair_store(folder).left == []
    np.testing.assert_array_equal(FeatureStore.open(folder).read("clip.3/ü"), before)


def test_a_shard_of_another_dtype_than_the_stamps_is_found(folder: Path) -> None:
    stamp = (folder / "store.json").read_text()
    (folder / "store.json").write_text(stamp.replace("float16", "int8"))
    findings = verify_store(folder)
    assert len(findings) == 3
    assert "of clip 'clip.0/ü' is float16 x 1 x 3, not int8 x 1 x 3" in findings[0].fault


def test_a_merged_index_that_lies_is_found_and_made_again(folder: Path) -> None:
    whole = (folder / "index.npy").read_bytes()
    flip(folder / "index.npy", len(whole) - 20)
    assert only(verify_store(folder)).cure is Cure.MERGED_INDEX
    repair_store(folder)
    assert (folder / "index.npy").read_bytes() == whole
    with open(folder / "index.npy", "wb") as file:  # of other shards: every reader makes it again
        np.save(file, np.zeros(1, COVERED))
    assert verify_store(folder) == []


def test_what_a_killed_process_left_is_moved_aside_and_what_is_young_is_not(folder: Path) -> None:
    half, young = folder / ".shard-000002.tar.0a", folder / ".shard-000003.tar.0b"
    for path in (half, young):
        path.write_bytes(b"half")
    lonely = shard_index_path(folder, 2)
    shard_path(folder, 2).unlink()
    assert verify_store(folder) == []  # it may have been renamed just now
    for path in (half, lonely):
        os.utime(path, (0, 0))
    assert [finding.path.name for finding in verify_store(folder)] == [half.name, lonely.name]
    assert repair_store(folder).left == []
    assert (folder / "aside" / half.name.lstrip(".")).read_bytes() == b"half"
    assert young.exists()
    assert readable(folder) == clips(*range(10))


def test_a_shard_that_no_assignment_knows_is_told_and_left_alone(folder: Path) -> None:
    lines = (folder / "shards.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "shards.jsonl").write_text("".join(lines[:2]), encoding="utf-8")
    before = everything(folder)
    report = repair_store(folder)
    assert "shard-000002.tar: no line of shards.jsonl is for it" in str(only(report.left))
    assert report.deeds == []
    assert everything(folder) == before


def test_a_lost_assignment_is_refused_and_made_again_from_the_shards(folder: Path) -> None:
    whole = (folder / "shards.jsonl").read_bytes()
    (folder / "shards.jsonl").unlink()
    names = [*random_features(N), "more"]
    with pytest.raises(StoreError, match=r"has 3 shards, but no shards\.jsonl says .* repair "):
        assign_shards(folder, names, clips_per_shard=5)
    assert "missing: nothing says" in only(verify_store(folder)).fault
    report = repair_store(folder)
    assert report.left == []
    assert "0 lines were whole, 3 are from the shards" in report.deeds[0]
    assert (folder / "shards.jsonl").read_bytes() == whole
    assert verify_store(folder) == []
    assert assign_shards(folder, names, clips_per_shard=5)[3:] == [["more"]]


@pytest.mark.parametrize("harm", ["cut", "flipped", "without a line"])
def test_a_torn_assignment_is_an_error_of_the_store_and_mended(folder: Path, harm: str) -> None:
    file = folder / "shards.jsonl"
    whole, shards = file.read_bytes(), read_assignment(folder)
    lines = whole.splitlines(keepends=True)
    for path in (shard_path, shard_index_path):
        path(folder, 0).unlink()
    if harm == "cut":
        cut(file, len(whole) - 5)
    elif harm == "flipped":
        flip(file, len(lines[0]))
    else:
        file.write_bytes(lines[0] + lines[2])
    for read in (read_assignment, partial(assign_shards, clips=["a"], clips_per_shard=5)):
        with pytest.raises(StoreError, match=r"shards\.jsonl cannot be read .* repair .* again"):
            read(folder)
    finding = only(verify_store(folder))
    assert finding.cure is Cure.ASSIGNMENT
    assert "shards.jsonl: cannot be read" in str(finding)
    assert repair_store(folder).left == []
    assert read_assignment(folder) == shards
    assert (folder / "aside/shards.jsonl").exists()
    with pytest.raises(StoreError, match=r"2 of 3 shards are there .* not there: 0: run the"):
        require_whole(folder, verify_store(folder))


def test_of_damaged_shards_that_nothing_assigns_the_other_clips_get_new_places(
    folder: Path,
) -> None:
    (folder / "shards.jsonl").unlink()
    flip(shard_path(folder, 1), b'{"id": "clip.7')
    for path in (shard_path, shard_index_path):
        path(folder, 0).unlink()
    assert repair_store(folder).left == []
    assert [len(shard) for shard in read_assignment(folder)] == [0, 2, 2]
    assert missing_shards(folder) == [1]
    for number, names in enumerate(assign_shards(folder, [*random_features(N)], clips_per_shard=5)):
        write_shard(folder, number, ((name, random_features(N)[name]) for name in names))
    assert readable(folder) == clips(*range(N))
    assert verify_store(folder) == []


def test_a_copy_of_a_shard_is_no_shard(folder: Path) -> None:
    for name in ("shard-000000 (copy).tar", "shard-00000.tar", "shard-0000001.tar", "shard-a.tar"):
        shutil.copy(shard_path(folder, 0), folder / name)
    assert finished_shards(folder) == [0, 1, 2]
    assert verify_store(folder) == []
    shard_path(folder, 1_234_567).touch()
    assert finished_shards(folder)[-1] == 1_234_567


@pytest.mark.parametrize(
    "name",
    [
        "shards.jsonl",
        "store.json",
        "duplicates.jsonl",
        "rejected.jsonl",
        "rejected.001-of-002.jsonl",
    ],
)
def test_what_a_killed_writer_left_of_a_list_is_moved_aside(folder: Path, name: str) -> None:
    half = beside(folder / name)
    half.write_text("half")
    assert verify_store(folder) == []
    os.utime(half, (0, 0))
    assert "half-written, left by a process" in only(verify_store(folder)).fault
    assert repair_store(folder).left == []
    assert not half.exists()
    assert verify_store(folder) == []


def test_rejected_recordings_are_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three of 14 recordings, in two of four shards; two come back, and later the third."""
    corpus, folder = make_corpus(tmp_path), tmp_path / "store"
    run(corpus, tmp_path / "whole")
    was = {name: (tmp_path / name).read_bytes() for name in ("1.flac", "2.flac", "9.flac")}
    for name in was:
        (tmp_path / name).write_bytes(b"no recording")
    run(corpus, folder)
    for name in ("1.flac", "9.flac"):
        (tmp_path / name).write_bytes(was[name])

    def tool(*words: str) -> tuple[int, str]:
        code = main_guard(precompute_features.main, [*words, str(folder)])
        said = capsys.readouterr()
        return code, said.out + said.err

    code, said = tool("repair", "--rejected")
    assert code == 0
    assert f"3 rejected recordings in 2 shards, moved to {folder}/aside: 0,2; run the comm" in said
    assert not (folder / "rejected.jsonl").exists()
    assert "not there: 0,2" in tool("verify")[1]
    report = run(corpus, folder)
    assert (report.n_encoded, report.n_rejected) == (7, 1)
    assert tool("verify")[0] == 0
    assert "1 rejected recordings in 1 shards" in tool("repair", "--rejected")[1]
    (tmp_path / "2.flac").write_bytes(was["2.flac"])
    run(corpus, folder)
    assert contents(folder) == contents(tmp_path / "whole")
    assert "no recording was rejected" in tool("repair", "--rejected")[1]
    with pytest.raises(SystemExit):
        tool("verify", "--rejected")


def test_clips_without_features_or_reason_are_named(folder: Path) -> None:
    shards = read_assignment(folder)
    shards[1] += ["lost"]
    lines = [json.dumps({"shard": n, "clips": clips}) + "\n" for n, clips in enumerate(shards)]
    (folder / "shards.jsonl").write_text("".join(lines), encoding="utf-8")
    assert "clip 'lost' not there, nor in rejected.jsonl" in only(verify_store(folder)).fault
    (folder / "rejected.001-of-003.jsonl").write_text('{"clip": "lost"}\n', encoding="utf-8")
    assert verify_store(folder) == []


@pytest.mark.parametrize(
    ("stamp", "says"),
    [
        (None, "store.json: missing"),
        ("{half", "store.json: cannot be read"),
        ("[]", "it names no encoder"),
        ({"width": 4}, "says no weight_hash, sample_rate_hz, frame_rate_hz"),
        ({"width": -1}, "width is -1: it must be positive"),
        ({"dtype": "float32"}, "dtype is 'float32', not float16 or int8"),
    ],
)
def test_a_stamp_that_cannot_serve_is_told_and_the_rest_is_checked(
    folder: Path, stamp: dict[str, object] | str | None, says: str
) -> None:
    file = folder / "store.json"
    was = json.loads(file.read_text())
    if stamp is None:
        file.unlink()
    elif stamp == {"width": 4}:
        file.write_text(json.dumps({"encoder": was["encoder"], "width": 3, "dtype": "float16"}))
    else:
        file.write_text(stamp if isinstance(stamp, str) else json.dumps({**was, **stamp}))
    cut(shard_path(folder, 2), 700)
    told = [str(finding) for finding in verify_store(folder)]
    assert any(says in line for line in told)
    assert any("shard-000002.tar: torn" in line for line in told)
    assert (folder / "store.json").exists() == (stamp is not None)


def test_a_width_other_than_the_stamps_is_found(folder: Path) -> None:
    stamp = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps({**stamp, "width": 4}))
    assert len(verify_store(folder)) == 3


def test_all_faults_come_in_one_report_with_code_2_and_a_repaired_store_is_made_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, folder = make_corpus(tmp_path), tmp_path / "store"
    run(corpus, folder)
    whole = contents(folder)
    shard_index_path(folder, 0).unlink()
    flip(shard_path(folder, 1), shard_path(folder, 1).stat().st_size // 2)
    cut(shard_path(folder, 3), 1000)

    def tool(*words: str) -> tuple[int, str]:
        code = main_guard(precompute_features.main, [*words, str(folder)])
        said = capsys.readouterr()
        return code, said.out + said.err

    code, said = tool("verify")
    assert code == 2
    assert f"error: 3 faults in {folder}:" in said
    assert all(name in said for name in ("000000.tar", "000001.tar", "000003.tar: torn"))
    code, said = tool("repair")
    assert code == 0
    assert "shard-000000.index.npy made again from the tar, 4 clips" in said
    code, said = tool("verify")
    assert code == 2
    assert (
        f"{folder}: 2 of 4 shards are there and are what was written; not there: 1,3: run" in said
    )
    flip(folder / "store.json", 0)
    code, said = tool("verify")
    assert code == 2
    assert "store.json: cannot be read" in said
    assert "\n  shards not there: 1,3: run the command" in said
    flip(folder / "store.json", 0)
    code, said = tool("show")
    assert code == 0
    assert "2 of 4 done; missing: 1,3" in said
    assert run(corpus, folder).n_encoded == 6
    assert contents(folder) == whole
    assert "4 shards are what was written" in tool("verify")[1]
    assert "nothing to repair" in tool("repair")[1]
    assert "4 of 4 done\n" in tool("show")[1]


def test_an_overview_counts_what_is_there_and_what_is_to_come(folder: Path) -> None:
    n_bytes = [shard_path(folder, number).stat().st_size for number in range(3)]
    shard_path(folder, 0).unlink()
    shard_index_path(folder, 0).unlink()
    shard_index_path(folder, 2).unlink()
    (folder / "rejected.jsonl").write_text('{"clip": "clip.1/ü"}\n', encoding="utf-8")
    seen = overview(folder)
    assert (seen.n_shards, seen.n_shards_done, list(seen.missing)) == (3, 2, [0])
    assert (seen.n_clips, seen.n_clips_done, seen.n_rejected) == (12, 5, 1)
    assert seen.n_without_index == 1
    assert seen.n_bytes == n_bytes[1] + n_bytes[2]
    assert seen.n_bytes_to_come == round(5 * seen.n_bytes / 7)
    assert seen.n_bytes_free > 0


def test_no_folder_is_one_clear_line(tmp_path: Path) -> None:
    for check in (verify_store, repair_store):
        with pytest.raises(StoreError, match="there is no folder"):
            check(tmp_path / "none")
    with pytest.raises(StoreError, match="no feature store"):
        overview(tmp_path)


@pytest.mark.parametrize("module", ["verify", "repair", "overview"])
def test_a_login_node_needs_no_torch_for_it(module: str) -> None:
    program = f"import sys, paltrain.data.{module}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
