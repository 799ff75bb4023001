"""End jobs, and restart them: a running one where it is, an ended one from its frozen script.

What is submitted again is `slurm/JOB_submission.sh`, so the code and configuration frozen beside it
run. Of an array only the tasks go again that have ended unfinished, and the merge after them. A job
that waited for another in its chain waits for it again, if that is still to come.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from cluster.attempts import note_asked, note_submission
from cluster.folder import JobFolder, add_line, jobs_below, read_lines
from cluster.monitor.parts import PartView
from cluster.monitor.state import State
from cluster.monitor.table import word
from cluster.monitor.view import JobView, read_views, task_submissions
from cluster.queue import Queue
from cluster.slurm import check_installed, outside_of_jobs, refusal
from paltrain.errors import ClusterError
from paltrain.slices import number_ranges

ARRAY_OPTION = re.compile(r"^#SBATCH --array=[^%\n]*(%\d+)?$", re.M)
DEPENDENCY_OPTION = re.compile(r"^#SBATCH --dependency=.*\n", re.M)


def cancel(folder: JobFolder, name: str) -> int:
    """Take all of a job's entries out of the queue; training that runs gets the time to save.

    Slurm's own cancelling leaves it KillWait seconds, which a long step or a large checkpoint
    outlasts; so it is told as before its time limit. Asked again, it is ended at once.
    """
    check_installed()
    queue = Queue.read()
    _check_answers(queue)
    submissions = list(read_lines(folder.jobs))
    active = [line for line in submissions if queue.active_id(line)]
    active = list({line["id"]: line for line in active}.values())
    if not active:
        (view,), _ = read_views({name: folder})
        print(f"{name}: nothing to cancel, it is {view.state.value}")
        return 0
    ids = [str(line["id"]) for line in active]
    saving = [
        str(line["id"])
        for line in active
        if folder.read_launch().get("kind") == "training"
        and "cancelled" not in line
        and any(state.state == "RUNNING" for state in queue.active(str(line["id"])))
    ]
    ending = [id_ for id_ in ids if id_ not in saving]
    for line in active:  # first, so that nobody takes the end for something else
        add_line(folder.jobs, {**line, "cancelled": time.time()})
    if saving:
        _call("scancel", "--signal=USR2", *saving)
        print(f"{name}: {_jobs(saving)} will save after its step and stop; the same command again "
              "ends it at once")  # fmt: skip
    if ending:
        _call("scancel", *ending)
        print(f"{name}: cancelled {_jobs(ending)}; what tools had finished is kept")
    print(f"What waits for it leaves the queue. It goes on with: tools/jobs.py requeue {name}")
    return 0


def requeue(folder: JobFolder, name: str) -> int:
    """Restart what runs, or submit again what has ended unfinished."""
    check_installed()
    (view,), queue = read_views({name: folder})
    _check_answers(queue)
    if not folder.jobs.exists():
        raise ClusterError(
            f"{name} was never submitted to Slurm, but ran on this machine: go on with the command "
            f"that started it ({folder.launch})"
        )
    if view.state is State.finished:
        print(f"{name}: finished already, nothing to do")
    elif view.tasks:
        _requeue_array(view)
    else:
        _requeue_run(view, queue)
    return 0


def script_again(text: str, *, tasks: Sequence[int] | None, dependency: str | None) -> str:
    """A batch script for another submission: for these tasks alone, waiting for that alone."""
    text = DEPENDENCY_OPTION.sub("", text)
    if tasks is not None:
        chosen = number_ranges(tasks)
        text = ARRAY_OPTION.sub(lambda m: f"#SBATCH --array={chosen}{m[1] or ''}", text)
    if dependency:
        text = text.replace("\n#SBATCH ", f"\n#SBATCH --dependency={dependency}\n#SBATCH ", 1)
    return text


def _requeue_run(view: JobView, queue: Queue) -> None:
    folder, whole = view.folder, view.whole
    assert whole
    if whole.state.waits:
        print(f"{view.name}: is in the queue already, job {whole.job} is {word(whole)}")
    elif whole.state.works:
        note_asked(folder.whole)
        _call("scontrol", "requeue", str(whole.job))
        print(f"{view.name}: job {whole.job} was {word(whole)} and is requeued; it goes on from "
              "its last checkpoint")  # fmt: skip
    else:
        submission = folder.submissions()["run"]
        dependency = _dependency_again(folder, submission, queue)
        id_ = _submit_again(folder, submission, dependency=dependency)
        print(f"{view.name}: was {word(whole)}; submitted again as job {id_}"
              + (f", which waits for {dependency}" if dependency else ""))  # fmt: skip
        _name_those_behind(folder, submission)


def _requeue_array(view: JobView) -> None:
    folder, merge = view.folder, view.merge
    ended = [
        n for n, p in view.tasks.items() if p.state.has_ended and p.state is not State.finished
    ]
    silent = view.tasks_in(State.silent)
    for task in silent:
        note_asked(folder.task(task))
        _call("scontrol", "requeue", str(view.tasks[task].job))
        print(f"{view.name}: task {task} was {word(view.tasks[task])} and is requeued")
    again = _submit_tasks(view, ended) if ended else []
    if again:
        print(f"{view.name}: tasks {number_ranges(ended)} submitted again as {_jobs(again)}")
    if merge is None:
        print(f"{view.name}: no merge was ever submitted: launch it again, with the same command")
    elif merge.state.has_ended:
        _submit_merge(view, again)
    elif again and merge.state.waits:
        active = _active_arrays(view, again)
        _call("scontrol", "update", f"JobId={merge.job}", f"Dependency={_after(active)}")
        print(f"{view.name}: the merge, job {merge.job}, waits for {_jobs(active)}")
    elif again:
        _submit_merge(view, [*again, str(merge.job)])
    elif not silent:
        print(f"{view.name}: nothing has ended unfinished, the rest is in the queue already")


def _submit_tasks(view: JobView, tasks: Sequence[int]) -> list[str]:
    """Submit tasks again, each from the script it had; returns the new jobs' ids."""
    folder, lines = view.folder, task_submissions(view.folder)
    ids = []
    for script in dict.fromkeys(str(lines[task]["id"]) for task in tasks):
        chosen = [task for task in tasks if str(lines[task]["id"]) == script]
        ids.append(_submit_again(folder, lines[chosen[0]], tasks=chosen))
    return ids


def _submit_merge(view: JobView, again: Sequence[str]) -> None:
    active = _active_arrays(view, again)
    submission = view.folder.submissions()["merge"]
    id_ = _submit_again(view.folder, submission, dependency=_after(active) if active else None)
    behind = f", after {_jobs(active)}" if active else ""
    print(f"{view.name}: merge submitted again as job {id_}{behind}")


def _active_arrays(view: JobView, again: Sequence[str]) -> list[str]:
    """Jobs that the merge is to wait for."""
    before = [p.job.partition("_")[0] for p in view.tasks.values()
              if p.job and not p.state.has_ended]  # fmt: skip
    return list(dict.fromkeys([*before, *again]))


def _submit_again(
    folder: JobFolder,
    submission: Mapping[str, Any],
    *,
    tasks: Sequence[int] | None = None,
    dependency: str | None = None,
) -> str:
    """Submit a job's own script again and note it; returns the new id.

    Raises:
        ClusterError: the script is gone, or Slurm refuses it.
    """
    script = folder.script(str(submission["id"]))
    if not script.exists():
        raise ClusterError(
            f"{submission['name']} cannot be submitted again: its batch script {script} is gone; "
            f"launch it again with the command in {folder.launch}"
        )

    text = script_again(script.read_text(encoding="utf-8"), tasks=tasks, dependency=dependency)
    waiting = folder.slurm / f".again-{uuid4().hex}.sh"
    waiting.write_text(text, encoding="utf-8")
    directory = Path(folder.read_launch().get("directory", folder.path))
    with outside_of_jobs():
        done = subprocess.run(
            ["sbatch", "--parsable", str(waiting)],
            cwd=directory if directory.is_dir() else folder.path,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        waiting.unlink()
        raise ClusterError(refusal(str(submission["name"]), done.stderr))
    id_ = done.stdout.strip().partition(";")[0]
    waiting.rename(folder.script(id_))
    kept = {key: value for key, value in submission.items() if key not in ("cancelled", "tasks")}
    chosen = {} if tasks is None else {"tasks": list(tasks)}
    after = dependency.partition(":")[2] if dependency else None
    note_submission(folder, {**kept, "id": id_, "after": after, **chosen})
    return id_


def _dependency_again(folder: JobFolder, submission: Mapping[str, Any], queue: Queue) -> str | None:
    """What a job of a chain has to wait for, once more.

    Raises:
        ClusterError: the job before it in the chain has ended without success.
    """
    first = _first_after(folder, submission)
    if first is None:
        return None
    for name, before in _neighbours(folder).items():
        roles = [line["role"] for line in read_lines(before.jobs) if str(line["id"]) == first]
        if roles:
            (view,), _ = read_views({name: before})
            part = view.merge if roles[0] == "merge" else view.whole
            return _wait_for(part, name) if part else None
    return None


def _wait_for(part: PartView, name: str) -> str | None:
    if part.state is State.finished:
        return None
    if part.state.has_ended:
        raise ClusterError(
            f"it starts from what {name} leaves, and {name} is {word(part)}: requeue {name} first"
        )
    return f"afterok:{part.job}"


def _first_after(folder: JobFolder, submission: Mapping[str, Any]) -> str | None:
    """The id that a job waited for when it was first submitted, or last waited for."""
    lines = [line for line in read_lines(folder.jobs) if line["role"] == submission["role"]]
    waited = [str(line["after"]) for line in lines if line["after"]]
    return waited[-1] if waited else None


def _name_those_behind(folder: JobFolder, submission: Mapping[str, Any]) -> None:
    """Say which jobs left the queue with this one."""
    ids = {str(line["id"]) for line in read_lines(folder.jobs)}
    behind = {
        name: job
        for name, job in _neighbours(folder).items()
        if job.path != folder.path
        and any(str(line["after"]) in ids for line in job.submissions().values())
    }
    views, _ = read_views(behind)
    left = [view.name for view in views if view.state.has_ended and view.state != State.finished]
    if left:
        print(f"{', '.join(left)} waited for it and left the queue: requeue in this order")


def _neighbours(folder: JobFolder) -> dict[str, JobFolder]:
    return jobs_below(folder.path.parent)


def _after(ids: Sequence[str]) -> str:
    return "afterany:" + ":".join(ids)


def _jobs(ids: Sequence[str]) -> str:
    return f"job{'' if len(ids) == 1 else 's'} {', '.join(ids)}"


def _check_answers(queue: Queue) -> None:
    if not queue.is_there:
        raise ClusterError("Slurm does not answer (squeue failed): try again, or ask `sinfo` why")


def _call(*command: str) -> None:
    done = subprocess.run(list(command), capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip()
        raise ClusterError(f"{' '.join(command)} failed: {said}")
