"""What becomes of a job, by how it ended and by what it had reached."""

import pytest

from cluster.attempts import n_restarts, note_asked, note_end, note_start, reached
from cluster.batch import judge
from cluster.folder import Part
from paltrain.errors import ClusterError

RAISED = {
    "rank": 3,
    "host": "node2",
    "message": "KeyError: 'x'",
    "is_environment": False,
    "traceback": "Traceback ...",
}
MISTAKE = {**RAISED, "message": "lower optimizer.lr", "traceback": None}
LOST_PEER = {**RAISED, "message": "RuntimeError: gloo", "is_environment": True}


@pytest.mark.parametrize(
    ("exit_code", "failure", "is_training", "goes_on", "text"),
    [
        (0, None, True, False, "finished"),
        (85, None, True, True, "was told to stop and saved"),
        (143, None, False, True, "was told to stop and saved"),
        (143, None, True, True, "was told to stop"),
        (130, None, True, False, "was interrupted and saved"),
        (137, RAISED, True, False, "failed: rank 3 on node2: KeyError: 'x'"),
        (1, RAISED, False, True, "failed: rank 3"),
        (2, MISTAKE, True, False, "lower optimizer.lr"),
        (2, None, False, False, "failed; its message is in the log of rank 0"),
        (137, LOST_PEER, True, True, "lost a process, a link or a device (rank 3 on node2 saw"),
        (137, None, True, True, "lost a process to signal 9"),
        (1, None, True, True, "failed with exit code 1"),
    ],
)
def test_what_becomes_of_a_job(exit_code, failure, is_training, goes_on, text):
    verdict = judge(exit_code, failure, is_training=is_training)
    assert text in verdict.text
    assert verdict.goes_on == goes_on
    is_environment = bool(failure) and failure["is_environment"]
    traceback = "" if is_environment else (failure or {}).get("traceback") or ""
    assert verdict.details == traceback


def start(part: Part, restart: int, job_id: str = "7") -> None:
    note_start(part, job_id=job_id, restart=restart, nodes="node1")


def test_restarts_may_go_on_as_long_as_each_brings_something(tmp_path):
    part = Part(tmp_path)
    for restart in range(20):
        part.status.write("running", step=restart)
        start(part, restart)
    assert n_restarts(part) == 19


def test_a_restart_without_progress_since_the_one_before_is_refused(tmp_path):
    part = Part(tmp_path)
    start(part, 0)
    start(part, 1)
    with pytest.raises(ClusterError, match="no progress between two restarts: 0 steps are done"):
        start(part, 2)


def test_repeating_steps_from_a_checkpoint_is_no_progress(tmp_path):
    part = Part(tmp_path)
    for restart, step in enumerate((0, 40)):
        part.status.write("running", step=step)
        start(part, restart)
    part.status.write("running", step=38)
    with pytest.raises(ClusterError, match="no progress"):
        start(part, 2)


def test_a_person_who_asks_again_gets_a_new_chance_and_so_does_another_job(tmp_path):
    part = Part(tmp_path)
    start(part, 0)
    start(part, 1)
    note_asked(part)
    start(part, 2)
    start(part, 3)
    start(part, 0, job_id="8")
    assert n_restarts(part) == 0, "of the latest job"


def test_a_history_whose_last_line_was_cut_off_is_read_up_to_it(tmp_path):
    part = Part(tmp_path)
    start(part, 0)
    note_end(part, exit_code=85, verdict="was told to stop")
    with part.attempts.open("a") as file:
        file.write('{"event": "sta')
    assert n_restarts(part) == 0
    start(part, 1)
    assert n_restarts(part) == 1


def test_progress_is_steps_or_units_of_a_slice():
    assert [reached({"step": 4}), reached({"done": 5, "total": 9}), reached({})] == [4, 5, 0]
