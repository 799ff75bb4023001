"""Job arrays: features of real recordings in slices, and their merge."""

import re

import numpy as np
import pytest
import soundfile
import yaml

from cluster.folder import JobFolder, read_lines
from paltrain.data.manifest import Clip, write_manifest
from paltrain.data.shards import FeatureStore
from tests.cluster.material import question
from tests.slurm.runs import cancel, launch, pids_of, wait_for, wait_for_state, write_profile

pytestmark = [pytest.mark.slurm, pytest.mark.distributed]

N_TASKS = 3


@pytest.fixture
def config(tmp_path):
    """Features of 12 recordings in 6 shards, as an array of 3 tasks."""
    noise = np.random.default_rng(0)
    clips = []
    for i in range(12):
        soundfile.write(tmp_path / f"r{i}.flac", 0.1 * noise.normal(size=8000), 16000)
        clips.append(Clip(f"r{i}", f"r{i}.flac", 0.5, "r", "train", (question(f"r{i}", "noise"),)))
    write_manifest(tmp_path / "manifest.jsonl", clips)
    path = tmp_path / "features.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "manifests": [str(tmp_path / "manifest.jsonl")],
                "folder": str(tmp_path),
                "encoders": {"store": {"type": "logmel"}},
                "clips_per_shard": 2,
                "workers": 0,
                "launch": {
                    "name": "features", "root": str(tmp_path / "runs"), "array_tasks": N_TASKS,
                    "array_parallelism": 2, "gpus_per_task": 0,
                },
            }
        )
    )  # fmt: skip
    return path


def submit(tmp_path, config) -> tuple[JobFolder, str, str]:
    said = launch(write_profile(tmp_path), config)
    array, merge = re.findall(r"submitted as job (\d+)", said)
    return JobFolder(tmp_path / "runs" / "features"), array, merge


def n_starts(folder: JobFolder, task: int) -> int:
    lines = read_lines(folder.task(task).attempts)
    return sum(line["event"] == "start" for line in lines)


@pytest.mark.slurm_long
def test_a_task_that_dies_is_requeued_alone_and_the_merge_waits_for_it(slurm, tmp_path, config):
    folder, _, merge = submit(tmp_path, config)
    (victim, *_) = wait_for(lambda: pids_of(slurm, "slice=1/3"), why="task 1")
    slurm.shell(f"kill -9 {victim}")
    wait_for_state(merge, "COMPLETED")
    assert [n_starts(folder, task) for task in range(N_TASKS)] == [1, 2, 1]
    assert len(FeatureStore.open(tmp_path / "store")) == 12
    assert folder.merge.status.read()["state"] == "finished"


@pytest.mark.slurm_long
def test_the_merge_says_what_is_missing_and_a_rerun_does_only_that(slurm, tmp_path, config):
    slurm.hold("normal")
    folder, array, merge = submit(tmp_path, config)
    cancel(f"{array}_1")
    slurm.release("normal")
    wait_for_state(merge, "FAILED")
    assert "slice 1 lacks 2 of 2 shards" in (folder.merge.ranks / "rank-0.log").read_text()
    states = [folder.task(task).status.read().get("state") for task in range(N_TASKS)]
    assert states == ["finished", None, "finished"]
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("*.tar")}
    assert len(made) == 4
    _, _, merge = submit(tmp_path, config)
    wait_for_state(merge, "COMPLETED")
    assert len(FeatureStore.open(tmp_path / "store")) == 12
    assert all(path.stat().st_mtime_ns == before for path, before in made.items())
