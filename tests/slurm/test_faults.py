"""What goes wrong on a cluster: an error in one rank, a dead node, cut links, a full disk."""

import json
import subprocess
import sys

import pytest

from cluster.folder import JobFolder
from tests.slurm.runs import (
    ROOT,
    cancel,
    describe,
    events,
    first_steps,
    log_of,
    pids_of,
    steps,
    submitted,
    wait_for,
    wait_for_state,
    wait_for_step,
    write_profile,
    write_run,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slurm_long, pytest.mark.distributed]

# Put into every process of a job by PYTHONPATH: rank 1 raises when the file `strike` is there.
RAISES_IN_RANK_1 = """
import ctypes, os, pathlib, threading, time
def strike():
    while not pathlib.Path(__file__).with_name("strike").exists():
        time.sleep(0.2)
    raised = ctypes.py_object(ZeroDivisionError)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(main), raised)
if os.environ.get("SLURM_PROCID") == "1":
    main = threading.main_thread().ident
    threading.Thread(target=strike, daemon=True).start()
"""


@pytest.fixture
def saving_run(slurm, tmp_path):
    """A run of two nodes that saves every 20 steps; it does not outlive its test."""
    config = write_run(tmp_path, checkpoint={"every_steps": 20})
    folder, job_id = submitted(write_profile(tmp_path), config)
    wait_for_step(folder, 25)
    yield folder, job_id
    subprocess.run(["scancel", job_id], check=False)
    wait_for_state(job_id, "CANCELLED", "COMPLETED", "FAILED", "GONE")


def assert_goes_on_from_a_checkpoint(folder: JobFolder, within_s: float) -> None:
    wait_for(lambda: len(first_steps(folder)) == 2, within_s=within_s, why="a second attempt")
    resumed = first_steps(folder)[1]
    assert resumed > 20
    assert resumed % 20 == 1
    wait_for_step(folder, resumed + 3)
    done = steps(folder)
    assert done == list(range(1, len(done) + 1))


def test_a_rank_that_raises_ends_the_job_in_seconds_and_its_traceback_stands_first(
    slurm, tmp_path, record_property
):
    (tmp_path / "inject").mkdir()
    (tmp_path / "inject" / "sitecustomize.py").write_text(RAISES_IN_RANK_1)
    profile = write_profile(tmp_path, setup=[f"export PYTHONPATH={tmp_path}/inject:$PYTHONPATH"])
    folder, job_id = submitted(profile, write_run(tmp_path))
    wait_for_step(folder, 3)
    (tmp_path / "inject" / "strike").touch()
    wait_for_state(job_id, "FAILED")
    failure = json.loads(folder.run.failure.read_text())
    (end,) = events(folder, "end")
    seconds = end["time"] - failure["time"]
    record_property("seconds from a rank's error to the job's end", round(seconds, 1))
    assert seconds < 30
    first, second = log_of(folder, job_id).splitlines()[:2]
    assert first.startswith(f"job {job_id} failed: rank 1 on node2: ZeroDivisionError")
    assert second.startswith("Traceback")
    assert folder.run.status.read()["state"] == "failed"


def test_a_node_that_dies_leads_to_a_requeue_on_others(slurm, saving_run):
    folder, _ = saving_run
    dead = "node2" if "node2" in events(folder, "start")[0]["nodes"] else "node1"
    slurm.crash(dead)
    try:
        assert_goes_on_from_a_checkpoint(folder, within_s=150)
    finally:
        slurm.boot(dead)


def test_a_node_that_loses_its_links_leads_to_a_requeue_on_others(slurm, saving_run):
    folder, _ = saving_run
    slurm.set_links("node2", "down")
    try:
        assert_goes_on_from_a_checkpoint(folder, within_s=180)
    finally:
        slurm.set_links("node2", "up")


def test_a_job_without_progress_between_two_restarts_stops_and_says_why(slurm, tmp_path):
    """Its processes are killed before they reach a step."""
    folder, job_id = submitted(write_profile(tmp_path), write_run(tmp_path, launch={"nodes": 1}))
    for attempt in range(2):
        wait_for(lambda n=attempt: len(events(folder, "start")) == n + 1, why="a start")
        (victim,) = wait_for(lambda: pids_of(slurm, "cluster.slurm_task"), why="its process")
        slurm.shell(f"kill -9 {victim}")
        wait_for(lambda n=attempt: len(events(folder, "end")) == n + 1, why="its end")
    wait_for_state(job_id, "FAILED")
    assert "no progress between two restarts" in log_of(folder, job_id)
    assert "no progress" in folder.run.status.read()["error"]


def test_a_full_disk_during_a_save_ends_the_run_and_spares_the_last_checkpoint(slurm, tmp_path):
    """Somebody else fills the disk while the run trains, but for room for some log lines."""
    root = slurm.small / "runs"
    config = write_run(tmp_path, run={"root": str(root)}, checkpoint={"every_steps": 25})
    said = slurm.shell(
        f"cd {ROOT} && PYTHONPATH={ROOT} CUDA_VISIBLE_DEVICES= {sys.executable} tools/launch.py "
        f"--cluster {write_profile(tmp_path)} {config}"
    )
    assert "submitted as job" in said, said
    job_id = said.split("submitted as job ")[1].split()[0]
    folder = JobFolder(slurm.root / str(root / "base").lstrip("/"))
    wait_for(lambda: (folder.run.checkpoints / "latest").exists(), why="a checkpoint")
    ballast = slurm.small / "ballast"
    slurm.shell(f"dd if=/dev/zero of={ballast} bs=1k; truncate -s -100K {ballast}")
    wait_for_state(job_id, "FAILED")
    assert "checkpoint" in log_of(folder, job_id), describe(folder)
    assert "is unharmed" in log_of(folder, job_id)
    last = (folder.run.checkpoints / "latest").read_text().strip()
    assert (folder.run.checkpoints / last / "checkpoint.json").exists()


def test_a_cancelled_run_goes_on_when_asked_for_again(saving_run):
    folder, job_id = saving_run
    cancel(job_id)
    wait_for_state(job_id, "CANCELLED")
    base = folder.path.parents[1]
    again, second_id = submitted(base / "lab.yaml", base / "base.yaml")
    reached = steps(folder)[-1]
    wait_for(lambda: len(first_steps(again)) == 2, why="the second job")
    cancel(second_id)
    assert first_steps(again)[1] == reached + 1
    wait_for_state(second_id, "CANCELLED")
