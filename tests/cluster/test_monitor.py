"""How jobs stand: from real folders with hand-written files, and from what Slurm would say."""

from __future__ import annotations

import json
import time
from io import StringIO

import pytest
from rich.console import Console

from cluster.attempts import note_asked, note_submission
from cluster.folder import JobFolder, add_line, find_job, jobs_below
from cluster.monitor import follow
from cluster.monitor.state import State, span
from cluster.monitor.table import table_of
from cluster.monitor.view import read_views, view
from cluster.queue import Queue, QueueState
from paltrain.errors import ConfigError
from paltrain.files import write_json
from paltrain.status import FAILED, FINISHED, RUNNING, STOPPED

NOW = 1_800_000_000.0
SUBMITTED, STARTED = NOW - 7200, NOW - 3600
GONE = None


def make(folder, name="base", **launch) -> JobFolder:
    job = JobFolder(folder / name)
    job.path.mkdir(parents=True)
    write_json(job.launch, {"kind": "training", **launch})
    return job


def submit(job, id_="12", role="run", n_tasks=None, **fields):
    line = {"id": id_, "role": role, "after": None, "n_tasks": n_tasks, "time_min": 10,
            "name": job.name, "time": SUBMITTED, **fields}  # fmt: skip
    note_submission(job, line)


def start(part, job="12", at=STARTED, reached=0):
    add_line(part.attempts, {"event": "start", "time": at, "job": job, "restart": 0,
                             "reached": reached, "nodes": "node1"})  # fmt: skip


def end(part, verdict, at=NOW - 10):
    add_line(part.attempts, {"event": "end", "time": at, "exit_code": 1, "verdict": verdict,
                             "reached": 40})  # fmt: skip


def say(part, state, *, age_s, **fields):
    part.path.mkdir(parents=True, exist_ok=True)
    write_json(part.status.path, {"state": state, "time": NOW - age_s, **fields})


def queue_of(*states, is_there=True) -> Queue:
    """states: (id, Slurm's word, reason)."""
    return Queue({s[0]: QueueState(*s) for s in states}, is_there=is_there)


STEPS = {"step": 40, "total_steps": 100, "step_time_s": 2.0, "loss": 1.5}


@pytest.mark.parametrize(
    ("slurm", "started", "status", "state", "detail"),
    [
        (("12", "PENDING", "Priority"), False, None, State.queued, "Priority"),
        (("12", "PENDING", "BeginTime"), True, (RUNNING, 60), State.requeued, "BeginTime"),
        (("12", "CONFIGURING"), False, None, State.starting, ""),
        (("12", "RUNNING"), False, None, State.starting, ""),
        (("12", "RUNNING"), True, None, State.starting, "60m"),
        (("12", "RUNNING"), True, (RUNNING, 4000), State.starting, "60m"),  # an earlier start's
        (("12", "RUNNING"), True, (RUNNING, 60), State.running, ""),
        (("12", "RUNNING"), True, (RUNNING, 600), State.silent, "no word for 10m: slow or hanging"),
        (("12", "RUNNING"), True, (FINISHED, 1), State.ending, "finished"),
        (("12", "COMPLETING"), True, (STOPPED, 1), State.ending, ""),
        (("12", "SUSPENDED"), True, (RUNNING, 60), State.suspended, ""),
        (GONE, True, (FINISHED, 60), State.finished, ""),
        (("12", "FAILED"), True, (FAILED, 60), State.failed, "no such clip"),
        (GONE, True, (FAILED, 60), State.failed, "no such clip"),
        (GONE, True, (STOPPED, 60), State.stopped, ""),
        (("12", "CANCELLED"), True, (STOPPED, 60), State.cancelled, ""),
        (("12", "CANCELLED", "DependencyNeverSatisfied"), False, None, State.cancelled,
         "the job before it did not succeed"),
        (("12", "NODE_FAIL"), True, (RUNNING, 60), State.failed, "Slurm says NODE_FAIL"),
        (("12", "FAILED"), False, (FINISHED, 9000), State.failed, "Slurm says FAILED"),
        (GONE, False, None, State.lost, "Slurm no longer knows job 12, and it has said nothing"),
        (GONE, True, (RUNNING, 3000), State.lost,
         "Slurm no longer knows job 12; it last said 'running', 50m ago"),
        (("12", "COMPLETED"), True, (RUNNING, 60), State.lost,
         "Slurm says COMPLETED; it last said 'running', 60s ago"),
    ],
)  # fmt: skip
def test_a_run_on_slurm(tmp_path, slurm, started, status, state, detail):
    job = make(tmp_path)
    submit(job)
    if started:
        start(job.whole)
    if status:
        error = {"error": "failed: no such clip\nsecond line"} if status[0] == FAILED else {}
        say(job.whole, status[0], age_s=status[1], **STEPS, **error)
    found = view(job, queue_of(slurm) if slurm else queue_of(), now=NOW)
    assert (found.state, found.detail) == (state, detail)
    assert found.ids == ("12",)


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ((RUNNING, 60), State.running),
        ((RUNNING, 600), State.silent),
        ((STOPPED, 600), State.stopped),
        ((FAILED, 600), State.failed),
        ((FINISHED, 600), State.finished),
        (None, State.unknown),
    ],
)
def test_a_run_on_this_machine(tmp_path, status, state):
    job = make(tmp_path)
    if status:
        say(job.whole, status[0], age_s=status[1], **STEPS)
    found = view(job, queue_of(is_there=False), now=NOW)
    assert found.state is state
    assert found.ids == ()


def test_steps_that_take_long_are_not_silence(tmp_path):
    job = make(tmp_path)
    say(job.whole, RUNNING, age_s=600, **(STEPS | {"step_time_s": 61.0}))
    assert view(job, queue_of(), now=NOW).state is State.running


def test_without_an_answer_from_slurm_the_status_file_speaks(tmp_path):
    job = make(tmp_path)
    submit(job)
    absent = queue_of(is_there=False)
    assert view(job, absent, now=NOW).state is State.unknown
    start(job.whole)
    say(job.whole, RUNNING, age_s=60, **STEPS)
    assert view(job, absent, now=NOW).state is State.running
    say(job.whole, STOPPED, age_s=60, **STEPS)
    assert view(job, absent, now=NOW).state is State.stopped


def test_a_cancellation_is_remembered_when_slurm_has_forgotten(tmp_path):
    job = make(tmp_path)
    submit(job)
    submit(job, cancelled=NOW - 100)
    assert view(job, queue_of(), now=NOW).state is State.cancelled
    start(job.whole)
    say(job.whole, FAILED, age_s=200, error="it had failed before that")
    assert view(job, queue_of(), now=NOW).state is State.failed


def test_figures_of_a_running_job(tmp_path):
    job = make(tmp_path)
    submit(job)
    start(job.whole, at=NOW - 9000)
    start(job.whole)
    say(job.whole, RUNNING, age_s=5, **STEPS)
    records = [{"step": n, "loss": 1.5, "step_time_s": 2.0 if n % 2 else 4.0,
                "questions_per_s": 50.0} for n in range(300)]  # fmt: skip
    job.run.metrics.write_text("".join(json.dumps(r) + "\n" for r in records) + '{"torn": ')
    found = view(job, queue_of(("12", "RUNNING")), now=NOW)
    assert (found.done, found.total, found.loss, found.restarts) == (40, 100, 1.5, 1)
    assert (found.beat_s, found.questions_per_s) == (5.0, 50.0)
    assert found.eta_s == 60 * 3.0  # the median of the last twenty steps


def an_array(folder):
    """Five tasks: done, running, failed, and two in the queue; the merge waits."""
    job = make(folder, "feats")
    submit(job, "20", "array", n_tasks=5)
    submit(job, "21", "merge")
    for task, (state, done) in enumerate([(FINISHED, 6), (RUNNING, 3), (FAILED, 1)]):
        start(job.task(task), f"20_{task}")
        say(job.task(task), state, age_s=0, done=done, total=6, error="disk full")
    queue = queue_of(
        ("20_1", "RUNNING"),
        ("20_3", "PENDING", "JobArrayTaskLimit"),
        ("20_4", "PENDING", "JobArrayTaskLimit"),
        ("21", "PENDING", "Dependency"),
    )
    return job, queue  # fmt: skip


def test_an_array_is_counted(tmp_path):
    job, queue = an_array(tmp_path)
    found = view(job, queue, now=NOW)
    assert found.state is State.running
    assert (found.done, found.total, found.is_total_whole) == (10, 18, False)
    assert found.tasks_in(State.failed) == [2]
    assert found.tasks_in(State.queued) == [3, 4]
    assert found.merge
    assert found.merge.state is State.queued
    said = "tasks: 1 done, 1 running, 1 failed, 2 queued; merge queued (Dependency)"
    assert said in drawn([found], None)


def test_a_task_that_was_submitted_again_counts_by_its_latest_job(tmp_path):
    job, _ = an_array(tmp_path)
    submit(job, "30", "array", n_tasks=5, tasks=[2, 4])
    submit(job, "31", "merge")
    start(job.task(3), "20_3")
    for task in (1, 3):
        say(job.task(task), FINISHED, age_s=0, done=6, total=6)
    queue = queue_of(("30_2", "RUNNING"), ("30_4", "PENDING", ""), ("31", "PENDING", "Dependency"))
    found = view(job, queue, now=NOW)
    assert [found.tasks[n].state for n in range(5)] == [
        State.finished, State.finished, State.starting, State.finished, State.queued
    ]  # fmt: skip
    assert found.ids == ("30", "31")


@pytest.mark.parametrize(
    ("merge", "state"),
    [(FINISHED, State.finished), (FAILED, State.failed), (RUNNING, State.running)],
)
def test_an_array_ends_with_its_merge(tmp_path, merge, state):
    job = make(tmp_path, "feats")
    submit(job, "20", "array", n_tasks=2)
    submit(job, "21", "merge")
    for task in range(2):
        start(job.task(task), f"20_{task}")
        say(job.task(task), FINISHED, age_s=9, done=6, total=6)
    start(job.merge, "21")
    say(job.merge, merge, age_s=5)
    queue = queue_of(("21", "RUNNING")) if merge == RUNNING else queue_of()
    assert view(job, queue, now=NOW).state is state


def test_a_task_that_never_started_and_left_no_trace_was_cancelled(tmp_path):
    job, queue = an_array(tmp_path)
    del queue.states["20_4"]
    assert view(job, queue, now=NOW).tasks[4].state is State.cancelled


def test_a_name_finds_its_folder(tmp_path):
    for name in ("base", "quick/lal", "quick/plits", "slow/lal"):
        make(tmp_path, name)
    assert list(jobs_below(tmp_path)) == ["base", "quick/lal", "quick/plits", "slow/lal"]
    assert find_job("plits", tmp_path)[1].path == tmp_path / "quick" / "plits"
    assert find_job("quick/lal", tmp_path)[1].path == tmp_path / "quick" / "lal"
    assert find_job(str(tmp_path / "base"), tmp_path)[0] == "base"
    with pytest.raises(ConfigError, match="could be each of quick/lal, slow/lal"):
        find_job("lal", tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'plits'"):
        find_job("plit", tmp_path)


LONG = "a-name-that-is-longer-than-any-column-of-a-table-should-be-seed-0"


@pytest.mark.parametrize("width", [80, 120, None])
def test_a_table_cuts_nothing_off_and_keeps_to_the_width(tmp_path, width):
    found = []
    for name in ("base", LONG):
        job = make(tmp_path, name)
        submit(job, "1234567")
        start(job.whole, "1234567")
        say(job.whole, RUNNING, age_s=4, **(STEPS | {"step": 120_000, "total_steps": 400_000}))
        found.append(view(job, queue_of(("1234567", "RUNNING")), now=NOW))
    job, queue = an_array(tmp_path)
    found.append(view(job, queue, now=NOW))
    failed = make(tmp_path, "failed")
    say(failed.whole, FAILED, age_s=4, error="word " * 30)
    found.append(view(failed, queue, now=NOW))
    text = drawn(found, width)
    assert LONG in text
    assert "1234567" in text
    assert "120000/400000" in text
    assert " ".join(text.split()).count("word") == 30
    assert "\x1b" not in text
    assert width is None or max(map(len, text.splitlines())) <= width


def drawn(views, width) -> str:
    out = StringIO()
    Console(file=out, width=width or 10_000).print(table_of(views, width=width))
    return out.getvalue()


def test_spans_are_short():
    assert [span(s) for s in (4.6, 180, 7500, 280_000)] == ["5s", "3m", "2h05", "3d05h"]


def test_the_list_is_whole_in_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm
    job = make(tmp_path, LONG)
    submit(job)
    follow.show_list(tmp_path)
    out = capsys.readouterr().out
    assert LONG in out
    assert "Slurm does not answer" in out
    with pytest.raises(ConfigError, match="does not exist"):
        follow.show_list(job.whole.path.parent / "none")


@pytest.mark.parametrize(("last", "code"), [(FINISHED, 0), (FAILED, 1)])
def test_following_tells_each_change_and_how_it_ended(tmp_path, capsys, monkeypatch, last, code):
    job = make(tmp_path)
    submit(job)
    looks = iter(
        [
            (("12", "PENDING", "Priority"), None),
            (("12", "RUNNING"), None),
            (("12", "RUNNING"), RUNNING),
            (("12", "RUNNING"), RUNNING),
            (("12", "PENDING", "BeginTime"), STOPPED),
            (("12", "RUNNING"), RUNNING),
            (GONE, last),
            (GONE, last),
        ]
    )

    def look(cls):
        slurm, status = next(looks)
        if status:
            start(job.whole, at=time.time() - 1)
            write_json(job.whole.status.path, {"state": status, "time": time.time(), **STEPS})
        return queue_of(slurm) if slurm else queue_of()

    monkeypatch.setattr(Queue, "read", classmethod(look))
    monkeypatch.setattr(Queue, "look_up", lambda self, ids: list(ids))
    assert follow.follow([job], every_s=0) == code
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "base: queued (Priority)",
        "base: starting",
        "base: running, 40/100",
        "base: requeued (BeginTime), 40/100",
        "base: running, 40/100",
        f"base: {last}, 40/100",
    ]


def test_following_does_not_take_silence_of_slurm_for_the_end(tmp_path, capsys, monkeypatch):
    job = make(tmp_path)
    submit(job)
    start(job.whole, at=time.time() - 1)
    write_json(job.whole.status.path, {"state": STOPPED, "time": time.time(), **STEPS})
    answers = iter([False, False, False, True, True])
    monkeypatch.setattr(Queue, "read", classmethod(lambda cls: queue_of(is_there=next(answers))))
    monkeypatch.setattr(Queue, "look_up", lambda self, ids: list(ids))
    assert follow.follow([job], every_s=0) == 1
    assert next(answers, None) is None


def test_ctrl_c_ends_the_watching_alone(tmp_path, capsys, monkeypatch):
    job = make(tmp_path)
    submit(job)

    def interrupt(cls):
        raise KeyboardInterrupt

    monkeypatch.setattr(Queue, "read", classmethod(interrupt))
    assert follow.follow([job]) == 130
    assert "the jobs go on" in capsys.readouterr().err


def test_what_has_ended_is_asked_of_slurm_once(tmp_path, monkeypatch):
    job = make(tmp_path)
    submit(job)
    start(job.whole)
    asked = []

    def look_up(self, ids):
        for id_ in ids:
            if id_ not in self.states:
                asked.append(id_)
                self.states[id_] = QueueState(id_, "CANCELLED")

    monkeypatch.setattr(Queue, "read", classmethod(lambda cls: queue_of()))
    monkeypatch.setattr(Queue, "look_up", look_up)
    past: dict[str, QueueState] = {}
    for _ in range(3):
        assert read_views({"base": job}, past=past)[0][0].state is State.cancelled
    assert asked == ["12"]


def test_a_person_who_asks_is_no_restart(tmp_path):
    job = make(tmp_path)
    submit(job)
    start(job.whole)
    note_asked(job.whole)
    end(job.whole, "was told to stop and saved: over, since it was cancelled or is out of time")
    say(job.whole, STOPPED, age_s=5, **STEPS)
    found = view(job, queue_of(("12", "CANCELLED")), now=NOW)
    assert found.restarts == 0
    assert found.detail == "was told to stop and saved"
