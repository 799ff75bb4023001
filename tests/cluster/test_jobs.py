"""tools/jobs.py as a user calls it: on folders alone, and on a real Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.attempts import note_submission
from cluster.folder import JobFolder, add_line, read_lines
from cluster.monitor.report import attempts_of, gpu_hours, report_lines
from cluster.monitor.state import State
from cluster.monitor.view import read_views, view
from cluster.queue import Queue, QueueState
from cluster.requeue import script_again
from paltrain.files import write_json
from paltrain.status import FAILED, FINISHED, RUNNING
from tests.slurm.runs import (
    launch,
    submitted,
    wait_for,
    wait_for_state,
    wait_for_step,
    write_profile,
    write_run,
)

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_800_000_000.0

SCRIPT = """#!/bin/bash

# Parameters
#SBATCH --array=0-4%2
#SBATCH --chdir=/work
#SBATCH --dependency=afterok:7
#SBATCH --gpus-per-node=4
#SBATCH --nodes=2

# command
echo '#SBATCH --dependency=no option'
"""


def call(*words: Any, code: int = 0, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "tools/jobs.py", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert "Traceback" not in done.stderr
    return said


@pytest.fixture
def failed(tmp_path) -> JobFolder:
    """A run that lost a node, went on, and failed on rank 1; it was queued twice for eight GPUs."""
    job = JobFolder(tmp_path / "base")
    job.slurm.mkdir(parents=True)
    job.run.ranks.mkdir()
    (job.path / "wandb" / "offline-run-1").mkdir(parents=True)
    arguments = ["tools/launch.py", "--nodes", "2", "my runs/base.yaml"]
    write_json(job.launch, {"kind": "training", "code_version": "abc1234", "arguments": arguments,
                            "directory": "/work", "time": "2026-01-01", "cluster": "leonardo",
                            "nodes": 2, "world_size": 8, "time_min": 1440})  # fmt: skip
    note_submission(job, {"id": "12", "role": "run", "after": None, "n_tasks": None,
                          "time_min": 1440, "name": "base"})  # fmt: skip
    job.script("12").write_text(SCRIPT)
    attempts = job.whole.attempts
    at = NOW - 7200
    for restart, (reached, verdict) in enumerate([(40, "lost a process"), (70, "failed: rank 1")]):
        add_line(attempts, {"event": "start", "time": at, "job": "12", "restart": restart,
                            "reached": 0, "nodes": "lrdn[0001-0002]"})  # fmt: skip
        at += 1800
        add_line(attempts, {"event": "end", "time": at, "exit_code": 1, "reached": reached,
                            "verdict": f"{verdict}: over"})  # fmt: skip
        at += 600
    write_json(job.whole.status.path, {"state": FAILED, "time": at, "step": 70, "total_steps": 100,
                                       "error": "RuntimeError: shapes differ"})  # fmt: skip
    trace = "Traceback:\n  x = y\n      ^\nshapes"
    write_json(job.whole.failure, {"time": at, "rank": 1, "host": "lrdn0002", "message": "shapes",
                                   "is_environment": False, "traceback": trace})  # fmt: skip
    (job.run.ranks / "rank-0.log").write_text("".join(f"line {n}\n" for n in range(100)))
    (job.run.ranks / "rank-1.log").write_text("shapes differ\n")
    said = "job 12 lost a process: requeued\nold\njob 12 failed: rank 1: over\nTraceback\nshapes\n"
    job.batch_log("12").write_text(said)
    return job


def test_show_tells_what_a_person_needs(failed):
    said = call("show", failed.path)
    for words in (
        "failed: RuntimeError: shapes differ",
        "70/100 steps",
        "abc1234",
        "leonardo, 2 nodes, 8 processes, 1440 min at most",
        "python tools/launch.py --nodes 2 'my runs/base.yaml'",
        "1. ", "30m, job 12 on lrdn[0001-0002], reached 40: lost a process: over",
        "2. ", "reached 70: rank 1: over",
        "rank 1 on lrdn0002",
        "x = y",
        "ranks/",
        f"-m wandb sync {failed.path}/wandb/offline-run-1",
    ):  # fmt: skip
        assert words in said
    assert "^" not in said


def test_gpu_hours_are_those_that_were_asked_for(failed):
    found = view(failed, Queue(), now=NOW)
    assert gpu_hours(found, now=NOW) == (pytest.approx(8.0), 0)  # twice half an hour, 2 x 4 GPUs


def test_an_attempt_goes_on_until_now_or_has_an_unknown_end(failed):
    add_line(failed.whole.attempts, {"event": "start", "time": NOW - 3600, "job": "12",
                                     "restart": 2, "reached": 70, "nodes": "n"})  # fmt: skip
    write_json(failed.whole.status.path, {"state": RUNNING, "time": NOW - 5, "step": 80,
                                          "total_steps": 100})  # fmt: skip
    running = Queue({"12": QueueState("12", "RUNNING")})
    found = view(failed, running, now=NOW)
    assert gpu_hours(found, now=NOW) == (pytest.approx(16.0), 0)
    assert any("goes on" in line for line in report_lines(found, now=NOW))
    add_line(failed.whole.attempts, {"event": "start", "time": NOW, "job": "12", "restart": 3,
                                     "reached": 80, "nodes": "n"})  # fmt: skip
    assert [attempt.ended is None for attempt in attempts_of(failed.whole)] == [False] * 2 + [
        True
    ] * 2
    assert gpu_hours(view(failed, running, now=NOW), now=NOW)[1] == 1


def test_tail_shows_a_rank_and_the_verdict(failed):
    said = call("tail", failed.path, "-n", 3)
    assert "line 97\nline 98\nline 99\n" in said
    assert "line 96" not in said
    assert "--rank 1 shows its log" in said
    assert said.endswith("job 12 failed: rank 1: over\nTraceback\nshapes\n")
    assert "shapes differ\n" in call("tail", failed.path, "--rank", 1)
    assert "has logs of the ranks 0-1" in call("tail", failed.path, "--rank", 7, code=2)


def test_tail_of_an_array_shows_a_task_that_failed(tmp_path):
    job = JobFolder(tmp_path / "feats")
    job.path.mkdir()
    write_json(job.launch, {"kind": "features"})
    note_submission(job, {"id": "20", "role": "array", "after": None, "n_tasks": 3,
                          "time_min": 10, "name": "feats.array"})  # fmt: skip
    for task, state in enumerate((FINISHED, FAILED, FINISHED)):
        part = job.task(task)
        add_line(part.attempts, {"event": "start", "time": NOW, "job": f"20_{task}", "restart": 0,
                                 "reached": 0, "nodes": "n"})  # fmt: skip
        write_json(part.status.path, {"state": state, "time": NOW, "done": 3, "total": 6,
                                      "error": "no such file a.flac"})  # fmt: skip
        (part.ranks / "rank-0.log").write_text(f"I am task {task}\n")
    assert "I am task 1\n" in call("tail", job.path)
    assert "I am task 2\n" in call("tail", job.path, "--task", 2)
    assert "has the tasks 0-2" in call("tail", job.path, "--task", 3, code=2)
    shown = call("show", job.path)
    assert "failed: 1\n" in shown
    assert "task 1: no such file a.flac" in shown


def test_sync_says_what_it_would_run(failed):
    assert "wandb sync" in call("sync", failed.path, "--dry-run")
    (failed.path / "wandb" / "offline-run-1").rmdir()
    assert "nothing to send" in call("sync", failed.path)


def test_without_slurm_a_job_is_neither_cancelled_nor_requeued(failed, tmp_path):
    for command in ("cancel", "requeue"):
        said = call(command, failed.path, code=2, PATH=str(tmp_path))
        assert said.startswith("error: Slurm is not installed here")


def test_an_unknown_name_is_answered_with_a_near_one(failed):
    said = call("show", "bsae", "--root", failed.path.parent, code=2)
    assert "did you mean 'base'?" in said


def test_a_script_for_some_tasks_waits_for_nothing_old():
    text = script_again(SCRIPT, tasks=[1, 3, 4], dependency=None)
    assert "#SBATCH --array=1,3-4%2\n" in text
    assert "afterok:7" not in text
    assert "no option" in text
    assert script_again(SCRIPT, tasks=None, dependency=None).count("--array=0-4%2\n") == 1


def test_a_script_may_wait_for_another_job_again():
    text = script_again(SCRIPT, tasks=None, dependency="afterok:9")
    options = [line for line in text.splitlines() if line.startswith("#SBATCH --dep")]
    assert options == ["#SBATCH --dependency=afterok:9"]
    assert text.startswith("#!/bin/bash\n")


@pytest.mark.slurm
@pytest.mark.slurm_long
@pytest.mark.distributed
def test_a_run_is_listed_cancelled_and_goes_on_from_its_frozen_script(slurm, tmp_path):
    config = write_run(tmp_path, checkpoint={"every_steps": 5})
    folder, first = submitted(write_profile(tmp_path), config)
    root = ("--root", folder.path.parent)
    wait_for_step(folder, 10)
    listed = call("list", *root)
    assert "base" in listed
    assert "running" in listed
    assert "is queued already" not in call("requeue", "base", *root)  # restarts it where it is
    wait_for(lambda: standing(folder) is State.requeued, why="requeued")
    assert "in the queue already" in call("requeue", "base", *root)
    assert f"cancelled job {first}" in call("cancel", "base", *root)
    wait_for(lambda: standing(folder) is State.cancelled, why="cancelled")
    assert "nothing to cancel, it is cancelled" in call("cancel", "base", *root)
    reached = folder.whole.status.read()["step"]

    config.write_text("a later edit that reaches no frozen run")
    assert "submitted again as job" in call("requeue", "base", *root)
    again = str(folder.submissions()["run"]["id"])
    assert again != first
    wait_for(lambda: folder.whole.status.read().get("step", 0) > reached, why="it goes on")
    assert f"job {again}" in call("show", "base", *root)
    call("cancel", "base", *root)
    wait_for_state(again, "CANCELLED", "COMPLETED", "FAILED", "GONE")


@pytest.mark.slurm
@pytest.mark.slurm_long
def test_a_chain_is_requeued_in_order_and_waits_again(slurm, tmp_path):
    first = write_run(tmp_path, run={"name": "first", "root": str(tmp_path / "runs")})
    second = write_run(tmp_path, run={"name": "second", "root": str(tmp_path / "runs")},
                       stage={"init_from": "first", "steps": 10})  # fmt: skip
    launch(write_profile(tmp_path), first, second)
    root = ("--root", tmp_path / "runs")
    call("cancel", "first", *root)
    behind = JobFolder(tmp_path / "runs" / "second")
    wait_for(lambda: standing(behind) is State.cancelled, why="it cannot start any more")
    assert "requeue first first" in call("requeue", "second", *root, code=2)
    assert "second waited for it" in call("requeue", "first", *root)
    before = JobFolder(tmp_path / "runs" / "first").submissions()["run"]["id"]
    assert f"waits for afterok:{before}" in call("requeue", "second", *root)
    assert standing(behind) is State.queued
    for name in ("second", "first"):
        call("cancel", name, *root)


@pytest.mark.slurm
@pytest.mark.slurm_long
def test_only_unfinished_tasks_of_an_array_go_again_and_the_merge_after_them(slurm, tmp_path):
    """The batch script stands in for a tool: it says what the tool's status file would say."""
    job = JobFolder(tmp_path / "runs" / "feats")
    job.slurm.mkdir(parents=True)
    write_json(job.launch, {"kind": "features", "directory": str(tmp_path)})
    ids = {}
    for role, option in (("array", "#SBATCH --array=0-3%2\n"), ("merge", "")):
        place = f"{job.path}/tasks/$SLURM_ARRAY_TASK_ID" if option else str(job.merge.path)
        after = f"#SBATCH --dependency=afterany:{ids['array']}\n" if role == "merge" else ""
        script = tmp_path / f"{role}.sh"
        script.write_text(
            f"#!/bin/bash\n#SBATCH --output=/dev/null\n{option}{after}\nmkdir -p {place}\n"
            f'[ "$SLURM_ARRAY_TASK_ID" = 2 ] && [ ! -e {tmp_path}/mended ] && exit 1\n'
            f"job=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}\n"
            f'echo \'{{"event": "start", "time": 1, "job": "\'${{job:-$SLURM_JOB_ID}}\'", '
            f'"restart": 0, "reached": 0, "nodes": "n"}}\' >> {place}/attempts.jsonl\n'
            f'echo \'{{"state": "finished", "time": 2, "done": 1, "total": 1}}\' '
            f"> {place}/status.json\n"
        )
        done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True,
                              check=True)  # fmt: skip
        ids[role] = done.stdout.strip()
        script.rename(job.script(ids[role]))
        note_submission(
            job,
            {"id": ids[role], "role": role, "after": None, "time_min": 10, "name": f"feats.{role}",
             "n_tasks": 4 if option else None},
        )  # fmt: skip
    wait_for(lambda: [n for n, s in tasks(job) if s is State.failed] == [2], why="task 2 fails")
    wait_for(lambda: [n for n, s in tasks(job) if s is State.finished] == [0, 1, 3], why="rest")
    wait_for_state(ids["merge"], "COMPLETED")
    job.merge.status.path.unlink()

    (tmp_path / "mended").touch()
    said = call("requeue", job.path)
    assert "tasks 2 submitted again" in said
    lines = list(read_lines(job.jobs))[2:]
    assert [(line["role"], line.get("tasks"), line["after"]) for line in lines] == [
        ("array", [2], None),
        ("merge", None, lines[0]["id"]),
    ]
    wait_for(lambda: standing(job) is State.finished, why="merged")
    assert "finished already" in call("requeue", job.path)


@pytest.mark.slurm
@pytest.mark.slurm_long
def test_following_a_launch_ends_with_the_runs(slurm, tmp_path):
    config = write_run(tmp_path, stage={"steps": 5})
    said = launch(write_profile(tmp_path), config, "--follow")
    assert "base: running" in said or "base: starting" in said
    assert said.rstrip().endswith("base: finished, 5/5")


def standing(job: JobFolder) -> State:
    return read_views({job.name: job})[0][0].state


def tasks(job: JobFolder) -> list[tuple[int, State]]:
    time.sleep(0.2)
    return [(n, part.state) for n, part in read_views({job.name: job})[0][0].tasks.items()]


def test_failures_of_a_merge_are_shown_whole(tmp_path):
    job = JobFolder(tmp_path / "feats")
    job.path.mkdir()
    job.launch.write_text(json.dumps({"kind": "features"}))
    for id_, role, n_tasks in (("20", "array", 1), ("21", "merge", None)):
        note_submission(job, {"id": id_, "role": role, "after": None, "n_tasks": n_tasks,
                              "time_min": 10, "name": role})  # fmt: skip
    job.merge.path.mkdir(exist_ok=True)
    add_line(job.merge.attempts, {"event": "start", "time": NOW, "job": "21", "restart": 0,
                                  "reached": 0, "nodes": "n"})  # fmt: skip
    error = "a merge needs every slice\n  slice 3"
    write_json(job.merge.status.path, {"state": FAILED, "time": NOW, "error": error})
    said = call("show", job.path)
    assert "merge       failed (a merge needs every slice)" in said
    assert "    a merge needs every slice\n      slice 3" in said
