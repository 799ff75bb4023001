"""An ablation as a job array on a real Slurm: what it prepares, its trials, its merge."""

from __future__ import annotations

import re

import pytest

from cluster.folder import JobFolder
from tests.ablation.material import stages_of, write_ablation, write_world
from tests.slurm.runs import launch, wait_for_state, write_profile

pytestmark = [pytest.mark.slurm, pytest.mark.slurm_long, pytest.mark.distributed]

N_TASKS = 2


def test_an_array_runs_the_trials_as_they_were_at_submission_and_a_merge_the_table(slurm, tmp_path):
    write_world(tmp_path)
    stage = stages_of(tmp_path, "plits")[:1]
    config = write_ablation(
        tmp_path,
        arms={"plits": {"stages": stage}},
        seeds=[0, 1],
        launch={"root": str(tmp_path / "runs"), "name": "forms", "array_tasks": N_TASKS,
                "gpus_per_task": 0},
    )  # fmt: skip
    slurm.hold("normal")
    said = launch(write_profile(tmp_path), config)
    base, features, array, merge = re.findall(r"submitted as job (\d+)", said)
    assert len({base, features, array, merge}) == 4
    (tmp_path / "plits_stage1.yaml").write_text("no: configuration\n")
    slurm.release("normal")
    wait_for_state(merge, "COMPLETED", within_s=240)
    folder = JobFolder(tmp_path / "runs" / "forms")
    states = [folder.task(task).status.read().get("state") for task in range(N_TASKS)]
    assert states == ["finished", "finished"]
    text = (folder.path / "report.md").read_text()
    assert re.search(r"\| plits \| 2 \| \d", text)
    assert "Not there yet" not in text
    assert (folder.path / "forms.json").exists()
