"""A run on the cluster that is stopped, killed or cancelled, and goes on or stays where it is."""

import subprocess

import pytest

from paltrain.train.signals import EXIT_REQUEUE
from tests.slurm.runs import (
    assert_no_step_lost_or_repeated,
    cancel,
    events,
    first_steps,
    log_of,
    pids_of,
    state,
    steps,
    submitted,
    wait_for,
    wait_for_state,
    wait_for_step,
    write_profile,
    write_run,
)

pytestmark = [pytest.mark.slurm, pytest.mark.distributed]


@pytest.fixture
def run(slurm, tmp_path):
    """A run of two nodes that trains until it is told to stop; it does not outlive its test."""
    folder, job_id = submitted(write_profile(tmp_path), write_run(tmp_path))
    wait_for_step(folder, 3)
    yield folder, job_id
    subprocess.run(["scancel", job_id], check=False)
    wait_for_state(job_id, "CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "GONE")


def test_cancelled_it_saves_and_stays_cancelled(run):
    folder, job_id = run
    cancel(job_id)
    wait_for_state(job_id, "CANCELLED")
    (end,) = events(folder, "end")
    assert end["exit_code"] == EXIT_REQUEUE
    saved = (folder.run.checkpoints / "latest").read_text().strip()
    assert saved == f"step-{steps(folder)[-1]:08d}"
    assert folder.run.status.read()["state"] == "stopped"
    assert "was told to stop and saved" in log_of(folder, job_id)
    assert "over, unless Slurm takes it back" in log_of(folder, job_id)


def test_preempted_it_saves_and_goes_on_with_the_next_step(run):
    folder, _ = run
    urgent = subprocess.run(
        ["sbatch", "--parsable", "-p", "urgent", "-N4", "--exclusive", "-o", "/dev/null",
         "--wrap", "sleep 2"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    wait_for_state(urgent, "RUNNING", "COMPLETED", within_s=60)
    (end,) = events(folder, "end")
    assert end["exit_code"] == EXIT_REQUEUE
    wait_for(lambda: len(first_steps(folder)) == 2, why="the second attempt")
    wait_for_step(folder, end["reached"] + 2)
    assert_no_step_lost_or_repeated(folder)


@pytest.mark.slurm_long
def test_a_killed_rank_ends_the_job_in_seconds_and_it_goes_on_from_the_last_checkpoint(
    slurm, tmp_path
):
    config = write_run(tmp_path, checkpoint={"every_steps": 20})
    folder, job_id = submitted(write_profile(tmp_path), config)
    wait_for_step(folder, 25)
    (victim,) = pids_of(slurm, "cluster.slurm_task", node="node2")
    slurm.shell(f"kill -9 {victim}")
    wait_for(lambda: events(folder, "end"), within_s=30, why="the end of the attempt")
    (end,) = events(folder, "end")
    assert "lost a process" in end["verdict"]
    wait_for(lambda: len(first_steps(folder)) == 2, why="the second attempt")
    reached = end["reached"]
    resumed = first_steps(folder)[1]
    assert resumed % 20 == 1
    assert reached - 20 <= resumed
    wait_for_step(folder, reached + 1)
    cancel(job_id)
    done = steps(folder)
    assert done == list(range(1, len(done) + 1))


@pytest.mark.slurm_long
def test_told_before_its_time_is_up_it_saves_and_goes_on_in_the_next_job(slurm, tmp_path):
    config = write_run(tmp_path, launch={"time_min": 1})
    folder, job_id = submitted(write_profile(tmp_path), config)
    wait_for(lambda: len(first_steps(folder)) == 2, within_s=150, why="the second attempt")
    end = events(folder, "end")[0]
    assert end["exit_code"] == EXIT_REQUEUE
    assert state(job_id) == "RUNNING"
    cancel(job_id)
    wait_for_state(job_id, "CANCELLED")
    assert_no_step_lost_or_repeated(folder)
