"""Both ends of a batch script: `python -m cluster.batch begin|end FOLDER ROLE [EXIT_CODE]`.

begin   notes the start in the job's folder, refuses a restart that cannot help, and prints shell
        lines that say where the processes meet
end     says why the job ended, first thing in its log, and puts it back into the queue if it can go
        on from what is saved

What becomes of a job, by how it ended:

    finished (0), a user's mistake (2)                   it is over
    told to stop (85: and saved; 143, 140: a tool)       requeued, unless somebody cancelled it
    lost a process or a device, as a node that dies      requeued
    a training run raised                                over; its traceback is in the log
    a task of an array failed otherwise                  requeued, alone

A restart that makes no progress is refused at its begin (`cluster.attempts`). When a whole node
fails, Slurm requeues by itself; this script has died with it or finds the job no longer its own.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.attempts import note_end, note_start, reached, unit_of
from cluster.folder import JobFolder, Part, read_lines
from cluster.job import Role
from cluster.slurm_env import first_host, meeting_point
from paltrain.errors import EXIT_USER_ERROR, ClusterError
from paltrain.status import FAILED, STOPPED
from paltrain.train.signals import EXIT_INTERRUPTED, EXIT_REQUEUE

SIGNALLED = 128  # a shell's exit code of a process that signal n killed is 128 + n
N_ASKED, ASKED_EVERY_S = 30, 10.0  # how long a silent controller is waited for
TOLD_TO_STOP = (EXIT_REQUEUE, SIGNALLED + signal.SIGTERM, SIGNALLED + signal.SIGUSR2)


@dataclass(frozen=True)
class Verdict:
    """Why a job ended, for people, and whether it should go on."""

    text: str
    goes_on: bool
    details: str = ""


def begin(folder: JobFolder, role: Role) -> int:
    """Note the start; prints `export` lines. Returns the exit code."""
    part = part_of(folder, role)
    part.failure.unlink(missing_ok=True)
    _srun_log(folder).unlink(missing_ok=True)
    if _said_by_the_job(part):  # of an earlier attempt
        part.status.write(STOPPED, **_progress(part))
    part.ranks.mkdir(parents=True, exist_ok=True)
    nodes = os.environ["SLURM_JOB_NODELIST"]
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    try:
        note_start(part, job_id=_job_name(), restart=restart, nodes=nodes)
    except ClusterError as error:
        print(f"job {_job_name()} stops: {error}", file=sys.stderr)
        part.status.write(FAILED, **_progress(part), error=str(error))
        return EXIT_USER_ERROR
    for name, value in meeting_point(os.environ, first_host=first_host(nodes)).items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def end(folder: JobFolder, role: Role, exit_code: int) -> int:
    """Say why the job ended and requeue it if it can go on."""
    part = part_of(folder, role)
    failure = _failure(part)
    verdict = judge(
        exit_code,
        failure,
        is_training=_is_training(folder),
        said=_said_by_the_job(part),
        killed=_killed(folder),
    )
    is_cancelled = _is_cancelled(folder)
    requeues = verdict.goes_on and not is_cancelled and _is_running()
    becomes = "requeued" if requeues else "over"
    if is_cancelled:
        becomes = "over, as asked"
    elif verdict.goes_on and not requeues:
        becomes = "over, unless Slurm takes it back: it has ended it (cancelled, out of time, ...)"
    try:
        _tell(folder, part, verdict, exit_code, becomes=becomes)
    except OSError as error:  # a full disk has ended the job, and takes no last words either
        print(f"cannot write to {folder.path}: {error}", file=sys.stderr)
    if requeues:
        _requeue(part, exit_code)
    return 0


def _requeue(part: Part, exit_code: int) -> None:
    """Put the job back into the queue; a refusal is told, since nothing else would go on."""
    asked = subprocess.run(
        ["scontrol", "requeue", _job_name()], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        said = f"could not be requeued: {asked.stderr.strip()}; tools/jobs.py requeue submits it"
        print(f"job {_job_name()} {said}", flush=True)
        note_end(part, exit_code=exit_code, verdict=said)


def _tell(folder: JobFolder, part: Part, verdict: Verdict, exit_code: int, *, becomes: str) -> None:
    """Say in the job's log, its history and its status why it ended and what comes."""
    progress = f"at {reached(part.status.read())} {unit_of(part)}"
    print(f"job {_job_name()} {verdict.text} ({progress}): {becomes}", flush=True)
    if verdict.details:
        print(verdict.details.rstrip(), flush=True)
    _print_srun_log(folder)
    note_end(part, exit_code=exit_code, verdict=f"{verdict.text}: {becomes}")
    if exit_code not in (0, EXIT_INTERRUPTED, *TOLD_TO_STOP) and not _said_by_the_job(part):
        part.status.write(FAILED, **_progress(part), error=verdict.text)


def judge(
    exit_code: int,
    failure: Mapping[str, Any] | None,
    *,
    is_training: bool,
    said: str = "",
    killed: str = "",
) -> Verdict:
    """Why it ended and whether to go on.

    failure: `failure.json` of the attempt, None where no process could write one. said: the error
    in a tool's own status. killed: srun's words about a killed task.
    """
    if exit_code == 0:
        return Verdict("finished", goes_on=False)
    if exit_code in TOLD_TO_STOP and failure is None:
        saved = " and saved" if exit_code == EXIT_REQUEUE or not is_training else ""
        return Verdict(f"was told to stop{saved}", goes_on=True)
    if exit_code == EXIT_INTERRUPTED:
        return Verdict("was interrupted and saved", goes_on=False)
    if failure and not failure["is_environment"]:
        text = f"failed: rank {failure['rank']} on {failure['host']}: {failure['message']}"
        is_mistake = failure["traceback"] is None
        goes_on = not is_training and not is_mistake
        return Verdict(text, goes_on=goes_on, details=failure["traceback"] or "")
    if exit_code == EXIT_USER_ERROR:
        words = f"failed: {said}" if said else "failed; its message is in the log of rank 0"
        return Verdict(words, goes_on=False)
    if killed:
        return Verdict(f"lost a process ({killed})", goes_on=True)
    if failure:
        seen = f"rank {failure['rank']} on {failure['host']} saw {failure['message']}"
        return Verdict(f"lost a process, a link or a device ({seen})", goes_on=True)
    if exit_code > SIGNALLED:
        return Verdict(f"lost a process to signal {exit_code - SIGNALLED}", goes_on=True)
    return Verdict(f"failed with exit code {exit_code}", goes_on=True)


def part_of(folder: JobFolder, role: Role) -> Part:
    """The part of the folder that this batch script is about."""
    if role is Role.array:
        return folder.task(int(os.environ["SLURM_ARRAY_TASK_ID"]))
    return folder.merge if role is Role.merge else folder.whole


def _failure(part: Part) -> dict[str, Any] | None:
    """`failure.json`; None where there is none, or its writer was cut off."""
    try:
        failure: dict[str, Any] = json.loads(part.failure.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return failure


def _said_by_the_job(part: Part) -> str:
    """The error in the status, if the job itself has written it there."""
    status = part.status.read()
    return str(status.get("error", "")) if status.get("state") == FAILED else ""


def _killed(folder: JobFolder) -> str:
    """What srun says of a task that was killed in this attempt, e.g. `node1: task 0: Killed`."""
    log = _srun_log(folder)
    text = log.read_text(errors="replace") if log.exists() else ""
    found = re.findall(
        r"error: (\S+: tasks? [\d,-]+: (?:Killed|Segmentation fault|Bus error))", text
    )
    return found[-1] if found else ""


def _job_name() -> str:
    """The id by which Slurm requeues this job: of an array, one task alone."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def _is_cancelled(folder: JobFolder) -> bool:
    """Whether tools/jobs.py has noted that a person wants the job's end."""
    id_ = _job_name().partition("_")[0]
    return any(line["id"] == id_ and "cancelled" in line for line in read_lines(folder.jobs))


def _srun_log(folder: JobFolder) -> Path:
    """What srun itself has said in this attempt."""
    return folder.slurm / f"srun-{os.environ['SLURM_JOB_ID']}.log"


def _is_running() -> bool:
    """Whether the job is still Slurm's to run: a cancelled one is completing by now.

    A controller that does not answer is asked again for some minutes.
    """
    for _ in range(N_ASKED):
        asked = subprocess.run(
            ["scontrol", "-o", "show", "job", _job_name()],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if asked.returncode == 0:
            return "JobState=RUNNING" in asked.stdout
        time.sleep(ASKED_EVERY_S)
    return True  # asking for a requeue then says what is wrong


def _is_training(folder: JobFolder) -> bool:
    return folder.read_launch().get("kind") == "training"


def _progress(part: Part) -> dict[str, Any]:
    """What the status says beyond state and time."""
    return {k: v for k, v in part.status.read().items() if k not in ("state", "time", "error")}


def _print_srun_log(folder: JobFolder) -> None:
    log = _srun_log(folder)
    if log.exists():
        print(log.read_text(errors="replace").rstrip(), flush=True)


def main(words: list[str]) -> int:
    event, path, role = words[:3]
    folder = JobFolder(Path(path))
    return begin(folder, Role(role)) if event == "begin" else end(folder, Role(role), int(words[3]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
