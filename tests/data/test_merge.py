"""Slices of a feature store put together, or told what they lack; by the command line, too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from paltrain.data.index import Corpus
from paltrain.data.manifest import Clip, write_manifest
from paltrain.data.merge import MergeReport, merge_features
from paltrain.data.shards import FeatureStore
from paltrain.errors import IncompleteError, StoreError
from tests.data.test_precompute import ASKED, ROOT, contents, make_corpus, run, write_config
from tools import precompute_features

N_CLIPS = 26  # 7 shards of 4


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Of its recordings two cannot be read: in shards 1 and 3, so in slices 1 and 0 of 3."""
    corpus = make_corpus(tmp_path, N_CLIPS)
    (tmp_path / "13.flac").unlink()
    (tmp_path / "6.flac").write_bytes(b"no recording")
    return corpus


def merge(corpus: Corpus, store: Path, *, n_slices: int, encoder: str = "logmel") -> MergeReport:
    return merge_features(
        corpus,
        store,
        encoder_type=encoder,
        clips_per_shard=4,
        n_slices=n_slices,
        command=f"make slice=I/{n_slices}",
    )


def everything(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir()}


def test_merged_slices_are_the_store_that_one_process_makes(corpus: Corpus, tmp_path: Path) -> None:
    run(corpus, tmp_path / "whole")
    FeatureStore.open(tmp_path / "whole")
    for which in (2, 0, 1):
        run(corpus, tmp_path / "store", slice_of=(which, 3))
    assert (tmp_path / "store/rejected.001-of-003.jsonl").exists()
    assert merge(corpus, tmp_path / "store", n_slices=3) == MergeReport(26, 24, 2, 7)
    assert everything(tmp_path / "store") == everything(tmp_path / "whole")
    assert merge(corpus, tmp_path / "store", n_slices=5) == MergeReport(26, 24, 2, 7)


def test_a_merge_names_what_is_missing_and_changes_nothing(corpus: Corpus, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(IncompleteError, match=r"slice 0 lacks 4 of 4 shards\n  slice 1 lacks 3"):
        merge(corpus, store, n_slices=2)
    assert not store.exists()
    run(corpus, store, slice_of=(1, 3))
    before = everything(store)
    with pytest.raises(IncompleteError, match="incomplete: 2 of 3") as caught:
        merge(corpus, store, n_slices=3)
    assert everything(store) == before
    assert "slice 0 lacks 3 of 3 shards\n  slice 2 lacks 2 of 2 shards\n" in str(caught.value)
    assert "I being 0,2" in str(caught.value)
    with pytest.raises(IncompleteError, match="slice 3 lacks 1 of 1 shards"):
        merge(corpus, store, n_slices=7)


def test_clips_that_came_since_are_missed(corpus: Corpus, tmp_path: Path) -> None:
    run(corpus, tmp_path / "store")
    more = make_corpus(tmp_path, N_CLIPS + 3)
    with pytest.raises(IncompleteError, match=r"slice 1 lacks 1 of 4 shards\n"):
        merge(more, tmp_path / "store", n_slices=2)


def test_slices_of_other_numbers_and_a_repeated_one_list_each_recording_once(
    corpus: Corpus, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    run(corpus, store, slice_of=(1, 3))
    for path in (store / "shard-000001.tar", store / "shard-000001.index.npy"):
        path.unlink()
    run(corpus, store, slice_of=(1, 2))
    run(corpus, store, slice_of=(0, 2))
    assert len(list(store.glob("rejected.*"))) == 2
    merge(corpus, store, n_slices=2)
    lines = (store / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["clip"] for line in lines] == ["c6", "c13"]


def test_a_merge_names_the_shards_that_wait_for_other_manifests(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Shard 6 is for c24, c25; of shard 3's clips the second manifest has two."""
    store = tmp_path / "store"
    run(corpus, store, slice_of=(0, 2))
    clips = [
        Clip(f"c{number}", f"../{number}.flac", 0.1, "d", "train", ASKED)
        for number in (0, 14, 15, 24)
    ]
    (tmp_path / "part").mkdir()
    write_manifest(tmp_path / "part/manifest.jsonl", clips)
    part = Corpus.open([tmp_path / "part/manifest.jsonl"])
    report = run(part, store)
    assert (report.n_clips, report.n_there_before, report.n_waiting) == (4, 2, 2)
    assert "shard 3 is for clips of other manifests, too ('c12', ...)" in caplog.text
    with pytest.raises(IncompleteError, match="slice 1 lacks 1 of 1 shards") as caught:
        merge(part, store, n_slices=2)
    assert str(caught.value).endswith(
        "\nshard 3 is for clips of other manifests, too ('c12', ...): name those manifests as well"
    )
    run(corpus, store)
    assert merge(part, store, n_slices=2).n_encoded == 4


def test_another_encoders_store_is_not_merged(corpus: Corpus, tmp_path: Path) -> None:
    run(corpus, tmp_path / "store")
    with pytest.raises(StoreError, match="features of encoder 'logmel', not of 'whisper'"):
        merge(corpus, tmp_path / "store", n_slices=2, encoder="whisper")


def test_recordings_without_features_and_reason_are_told(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(corpus, tmp_path / "store")
    (tmp_path / "store/rejected.jsonl").unlink()
    merge(corpus, tmp_path / "store", n_slices=2)
    assert "2 recordings have neither features nor a line in rejected.jsonl (c6" in caplog.text


def test_slices_that_run_at_once_share_the_work(corpus: Corpus, tmp_path: Path) -> None:
    """Real processes, all at once, with a whole run among them that makes the same shards."""
    run(corpus, tmp_path / "whole")
    command = write_config(tmp_path, clips_per_shard=4)
    words = [f"slice={which}/3" for which in range(3)] + ["workers=0"]
    tasks = [
        subprocess.Popen(
            [*command, word],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
        for word in words
    ]
    assert [task.wait(timeout=120) for task in tasks] == [0, 0, 0, 0]
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    assert merge(corpus, tmp_path / "store", n_slices=3) == MergeReport(26, 24, 2, 7)


def test_sigterm_loses_at_most_the_shard_being_made(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, 400)
    run(corpus, tmp_path / "whole", clips_per_shard=2)
    command = write_config(tmp_path, clips_per_shard=2)
    status = tmp_path / "status.json"
    with subprocess.Popen(
        [*command, "--heartbeat", str(status)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        deadline = time.monotonic() + 60
        while len(contents(tmp_path / "store")) < 4 and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(child.pid, signal.SIGTERM)
        _, stderr = child.communicate(timeout=60)
    assert child.returncode == 143
    assert stderr == "terminated: the same command goes on from here\n"
    told = json.loads(status.read_text())
    assert told["state"] == "stopped"
    n_shards = len(list((tmp_path / "store").glob("*.tar")))
    assert 4 <= told["done"] == 2 * n_shards
    assert not list((tmp_path / "store").glob(".shard*"))
    done = subprocess.run(
        [*command, "--heartbeat", str(status)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"400 recordings: {2 * n_shards} there before" in done.stdout
    assert json.loads(status.read_text())["state"] == "finished"
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_by_the_command_line(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, *_ = write_config(tmp_path, clips_per_shard=4)[2:]
    status = tmp_path / "status/1.json"
    precompute_features.main([config, "slice=1/2", "workers=0", "--heartbeat", str(status)])
    assert "slice 1/2: 12 recordings: 0 there before, 10 encoded" in capsys.readouterr().out
    told = json.loads(status.read_text())
    assert (told["state"], told["done"], told["total"]) == ("finished", 12, 12)
    again = "python tools/precompute_features.py .*features.yaml workers=0 --slice I/2$"
    with pytest.raises(IncompleteError, match=again):
        precompute_features.main([config, "workers=0", "--merge", "2", "--heartbeat", str(status)])
    assert json.loads(status.read_text())["state"] == "failed"
    precompute_features.main([config, "workers=0", "slice=0/2"])
    precompute_features.main([config, "--merge", "2"])
    assert "is whole: 24 of 26 recordings have features; 2 set aside" in capsys.readouterr().out
    np.testing.assert_array_equal(
        FeatureStore.open(tmp_path / "store").rows_of(["c6", "c13"]), [-1, -1]
    )


def test_a_merge_loads_no_torch(corpus: Corpus, tmp_path: Path) -> None:
    run(corpus, tmp_path / "store")
    tool, config = write_config(tmp_path, clips_per_shard=4)[1:]
    program = (
        "import runpy, sys\n"
        f"sys.argv = [{tool!r}, {config!r}, '--merge', '2']\n"
        "try:\n"
        f"    runpy.run_path({tool!r}, run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)
