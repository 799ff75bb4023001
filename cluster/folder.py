"""What a launch keeps in a job's folder, beside what the run itself writes (`paltrain.run_folder`).

runs/NAME/
    config.yaml       resolved; what the job reads
    launch.json       commit, command line, working directory, cluster
    profile.yaml      the cluster's profile as it was
    packages.txt      versions of everything installed
    code/             the code that runs; code.diff: what the commit lacks
    jobs.jsonl        every Slurm job submitted for it
    slurm/            JOB.log: what the batch script said; JOB_submission.sh: what sbatch was given
    ranks/            rank-N.log: what each process said
    status.json       state, progress, heartbeat
    attempts.jsonl    every start and end, with what had been reached
    failure.json      what ended the latest attempt, if it failed
    tasks/3/, merge/  the same four for a task of a job array, and for the job that merges them
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paltrain.errors import ConfigError, near_hint
from paltrain.run_folder import RunFolder
from paltrain.status import StatusFile

MERGE = "merge"
LAUNCH = RunFolder(Path()).launch.name


@dataclass(frozen=True)
class Part:
    """Where one process group of a job (a run, an array's task, a merge) says how it stands."""

    path: Path

    @property
    def status(self) -> StatusFile:
        return RunFolder(self.path).status

    @property
    def failure(self) -> Path:
        return RunFolder(self.path).failure

    @property
    def attempts(self) -> Path:
        return self.path / "attempts.jsonl"

    @property
    def ranks(self) -> Path:
        return RunFolder(self.path).ranks


@dataclass(frozen=True)
class JobFolder:
    """Where everything of a job lies; `path` is absolute."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.path)

    @property
    def config(self) -> Path:
        return self.run.config

    @property
    def launch(self) -> Path:
        return self.run.launch

    @property
    def code(self) -> Path:
        return self.path / "code"

    @property
    def code_diff(self) -> Path:
        return self.path / "code.diff"

    @property
    def profile(self) -> Path:
        return self.path / "profile.yaml"

    @property
    def packages(self) -> Path:
        return self.path / "packages.txt"

    @property
    def slurm(self) -> Path:
        return self.path / "slurm"

    @property
    def jobs(self) -> Path:
        return self.path / "jobs.jsonl"

    @property
    def whole(self) -> Part:
        """The run's own part, or that of a job without slices."""
        return Part(self.path)

    @property
    def merge(self) -> Part:
        return Part(self.path / MERGE)

    def task(self, index: int) -> Part:
        """The part of an array's task."""
        return Part(self.path / "tasks" / str(index))

    def script(self, job_id: str) -> Path:
        """What sbatch was given for a job (submitit's name for it)."""
        return self.slurm / f"{job_id}_submission.sh"

    def batch_log(self, job: str) -> Path:
        """What the batch script of a job said; of an array's task, `ARRAY_TASK`."""
        return self.slurm / f"{job}.log"

    def submissions(self) -> dict[str, dict[str, Any]]:
        """The latest Slurm job of each role (`run`, `array`, `merge`), in the order submitted."""
        latest: dict[str, dict[str, Any]] = {}
        for line in read_lines(self.jobs):
            latest.pop(line["role"], None)
            latest[line["role"]] = line
        return latest

    def read_launch(self) -> dict[str, Any]:
        """`launch.json`, {} where there is none."""
        try:
            launch: dict[str, Any] = json.loads(self.launch.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return launch


def jobs_below(root: Path) -> dict[str, JobFolder]:
    """Every job's folder below `root`, by its path from there, sorted; those inside one are not
    looked for."""
    found = {}
    for path, names, files in os.walk(root):
        if LAUNCH in files:
            found[os.path.relpath(path, root)] = JobFolder(Path(path).absolute())
            names.clear()
        names[:] = sorted(name for name in names if not name.startswith("."))
    return found


def find_job(name: str, root: Path) -> tuple[str, JobFolder]:
    """The job that `name` means, a folder or a name below `root`, with its name for people.

    Raises:
        ConfigError: no such job, or several, and which there are.
    """
    for path in (Path(name), root / name):
        if (path / LAUNCH).exists():
            return path.absolute().name, JobFolder(path.absolute())
    jobs = jobs_below(root)
    fitting = [key for key in jobs if Path(key).name == name]
    if len(fitting) == 1:
        return fitting[0], jobs[fitting[0]]
    if fitting:
        raise ConfigError(f"'{name}' could be each of {', '.join(fitting)} in {root}: say which")
    known = {Path(key).name for key in jobs} | set(jobs)
    raise ConfigError(
        f"no job '{name}' in {root}{near_hint(name, sorted(known))}: tools/jobs.py list shows what "
        "is there, --root DIR looks elsewhere"
    )


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON-lines file; none where it is missing; a line cut off is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def add_line(path: Path, record: dict[str, Any]) -> None:
    """Append one record, on a line of its own even if the one before was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        is_torn = end > 0 and file.read(1) != b"\n"
        file.write(b"\n" * is_torn + json.dumps(record).encode() + b"\n")
