"""Runs on the test cluster: how they are launched, waited for and looked at."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from cluster.folder import JobFolder, read_lines
from paltrain.train.metrics import read_metrics
from tests.cluster.material import write_config, write_texts
from tests.slurm.lab import SlurmLab

ROOT = Path(__file__).resolve().parents[2]
FOR_EVER = 1_000_000  # steps; such a run ends when it is told to
PROFILE: dict[str, Any] = {
    "name": "lab",
    "scheduler": "slurm",
    "partition": "normal",
    "max_nodes": 4,
    "max_time_min": 60,
    "gpus_per_node": 4,
    "cpus_per_node": 32,
    "time_min": 10,
    "signal_delay_s": 20,
    "offline": True,
}


def write_profile(folder: Path, **changes: Any) -> Path:
    """The test cluster as a profile."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lab.yaml"
    path.write_text(yaml.safe_dump(PROFILE | changes))
    return path


def write_run(folder: Path, **changes: dict[str, Any]) -> Path:
    """A run `base` of 2 nodes x 1 process on the folder's manifest, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "manifest.jsonl").exists():
        write_texts(folder)
    defaults: dict[str, dict[str, Any]] = {
        "stage": {"steps": FOR_EVER},
        "checkpoint": {"every_steps": FOR_EVER},
        "optimizer": {"lr": 1e-3, "warmup_steps": 0},
        "launch": {"nodes": 2, "processes_per_node": 1, "threads_per_process": 1},
    }
    for section, values in changes.items():
        defaults[section] = defaults.get(section, {}) | values
    return write_config(folder, **defaults)


def launch(profile: Path, *words: Any, code: int = 0) -> str:
    """What tools/launch.py says; it must end with `code`."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/launch.py"), "--cluster", str(profile),
         *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    return said


def submitted(profile: Path, config: Path, *words: Any) -> tuple[JobFolder, str]:
    """Submit one run; its folder and its job's id."""
    said = launch(profile, config, *words)
    (found,) = re.findall(r"submitted as job (\d+) \((.*)\)", said)
    return JobFolder(Path(found[1])), found[0]


def wait_for(
    what: Callable[[], Any], *, within_s: float = 90, why: str | Callable[[], str] = ""
) -> Any:
    """The first true value of `what()`. why: what is waited for, or what to say when it is late."""
    deadline = time.monotonic() + within_s
    while not (value := what()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {why() if callable(why) else why}")
        time.sleep(0.1)
    return value


def steps(folder: JobFolder) -> list[int]:
    """The steps that metrics.jsonl tells of, in order."""
    return [record["step"] for record in read_metrics(folder.run.metrics)]


def wait_for_step(folder: JobFolder, step: int) -> None:
    wait_for(lambda: len(steps(folder)) >= step, why=lambda: f"step {step}: {describe(folder)}")


def state(job_id: str) -> str:
    """Slurm's word for a job, or for an array's task."""
    done = subprocess.run(
        ["scontrol", "-o", "show", "job", job_id], capture_output=True, text=True, check=False
    )
    found = re.search(r"JobState=(\S+)", done.stdout)
    return found[1] if found else "GONE"


def wait_for_state(job_id: str, *wanted: str, within_s: float = 90) -> None:
    wait_for(
        lambda: state(job_id) in wanted,
        within_s=within_s,
        why=lambda: f"{wanted}: {state(job_id)}",
    )


def cancel(job_id: str) -> None:
    subprocess.run(["scancel", job_id], check=True)


def events(folder: JobFolder, kind: str) -> list[dict[str, Any]]:
    """The starts or ends in the history of a run."""
    return [line for line in read_lines(folder.whole.attempts) if line["event"] == kind]


def log_of(folder: JobFolder, job_id: str) -> str:
    """What the batch script said."""
    path = folder.slurm / f"{job_id}.log"
    return path.read_text() if path.exists() else ""


def first_steps(folder: JobFolder) -> list[int]:
    """The step with which each attempt began, as its rank 0 said."""
    log = folder.run.log.read_text() if folder.run.log.exists() else ""
    return [int(n) for n in re.findall(r"rank 0 .*steps (\d+) to", log)]


def describe(folder: JobFolder) -> str:
    """What a person would look at first, for messages of failed tests."""
    logs = [*folder.slurm.glob("*.log"), *folder.run.ranks.glob("*.log"), folder.whole.attempts]
    return "\n".join(
        f"--- {path.name}\n{path.read_text()[-1500:]}" for path in logs if path.exists()
    )


def assert_no_step_lost_or_repeated(folder: JobFolder) -> None:
    """Each attempt began with the step after the last one done before it."""
    done = steps(folder)
    assert done == list(range(1, len(done) + 1))
    ends = [end["reached"] for end in events(folder, "end")]
    starts = first_steps(folder)
    assert starts[0] == 1
    assert starts[1:] == [reached + 1 for reached in ends[: len(starts) - 1]], describe(folder)


def pids_of(slurm: SlurmLab, words: str, *, node: str | None = None) -> list[str]:
    """Processes of a node, or of all, with such words in their command line.

    They are numbered as the cluster does: for `slurm.shell`.
    """
    nodes = [node] if node else ["node1", "node2", "node3", "node4"]
    found = []
    for name in nodes:
        pids = slurm.shell(f"ip netns pids {name}").split()
        lines = slurm.shell(f"ps -ww -o pid=,args= -p {','.join(pids)}").splitlines()
        found += [line.split()[0] for line in lines if words in line and "srun" not in line]
    return found
