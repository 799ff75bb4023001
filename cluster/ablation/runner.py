"""Run trials, some at once; one that fails stops no other.

    waiting ──> a free slot ──> launch, evaluate ──> done.json, or a failure with its log
                (its share of threads and GPUs)

Each trial has a line on the console when it starts and one when it ends; everything else goes to
its log. The same trials again: what is done is skipped, the rest goes on from where it stands.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.ablation.children import POLL_S, Share, end_all, start
from cluster.ablation.commands import TrialFiles, commands_of
from cluster.profiles import visible_devices
from paltrain.ablation.build import Trial
from paltrain.ablation.marks import DONE_FILE, mark_done
from paltrain.ablation.results import first_accuracy
from paltrain.run_folder import RunFolder
from paltrain.status import HEARTBEAT_S
from paltrain.train.signals import EXIT_INTERRUPTED, EXIT_REQUEUE

Progress = Callable[[int, int], None]  # steps done, of so many that are known
STOPPED = (EXIT_INTERRUPTED, EXIT_REQUEUE)
TAIL_BYTES = 4000


@dataclass(frozen=True)
class Failure:
    """A trial that did not come to its end. reason: its log's last words."""

    trial: Trial
    reason: str
    log: Path


def run_trials(
    trials: Sequence[Trial], *, parallel: int, told: Progress | None = None
) -> list[Failure]:
    """Run what is not done, `parallel` at a time; returns the failures, in order of the trials.

    Ends its children whatever ends it, Ctrl-C too.
    """
    done = [trial for trial in trials if TrialFiles(trial).is_done]
    waiting = [trial for trial in trials if trial not in done]
    if done:
        print(f"{len(done)} of {len(trials)} trials are done already", flush=True)
    runner = _Runner(deque(waiting), len(waiting), parallel, list(trials), told)
    try:
        runner.run()
    finally:
        end_all([each.process for each in runner.running])
        for each in runner.running:
            each.log.close()
    order = {trial.name: place for place, trial in enumerate(trials)}
    return sorted(runner.failures, key=lambda failure: order[failure.trial.name])


class _Running:
    """A trial under way in a slot, at one of its commands."""

    def __init__(self, trial: Trial, number: int, slot: int, share: Share) -> None:
        self.trial, self.number, self.slot, self.share = trial, number, slot, share
        self.files = TrialFiles(trial)
        self.files.write_configs()
        self.log = self.files.log.open("ab")
        self.began_s = time.monotonic()
        self._commands = deque(commands_of(trial, share))
        self.process: subprocess.Popen[bytes] = self._next()

    def _next(self) -> subprocess.Popen[bytes]:
        command = self._commands.popleft()
        self.log.write(f"$ {' '.join(command)}\n".encode())
        self.log.flush()
        return start(command, self.share, self.log)

    def has_ended(self) -> bool:
        """Whether all its commands have, or one has failed; starts the next one."""
        code = self.process.poll()
        if code == 0 and self._commands:
            self.process = self._next()
            return False
        return code is not None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began_s


@dataclass
class _Runner:
    waiting: deque[Trial]
    n: int
    parallel: int
    trials: list[Trial]
    told: Progress | None
    running: list[_Running] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    _told_s: float = float("-inf")

    def run(self) -> None:
        while self.waiting or self.running:
            self._fill()
            for each in [each for each in self.running if each.has_ended()]:
                self.running.remove(each)
                self._end(each)
            self._tell()
            time.sleep(POLL_S)
        self._tell(at_once=True)

    def _fill(self) -> None:
        """Start a waiting trial in each free slot."""
        cores, devices = len(os.sched_getaffinity(0)), visible_devices()
        for slot in set(range(self.parallel)) - {each.slot for each in self.running}:
            if self.waiting:
                share = Share.of(slot, self.parallel, cores=cores, devices=devices)
                number = self.n - len(self.waiting) + 1
                each = _Running(self.waiting.popleft(), number, slot, share)
                self.running.append(each)
                self._say(each, f"started (log: {each.files.log})")

    def _end(self, each: _Running) -> None:
        each.log.close()
        code = each.process.returncode
        if code == 0:
            mark_done(each.trial, seconds=each.seconds)
            self._say(each, f"{first_accuracy(each.trial)}{minutes(each.seconds)}")
            return
        what = "was stopped" if code in STOPPED else f"failed with exit code {code}"
        self.failures.append(Failure(each.trial, last_words(each.files.log), each.files.log))
        self._say(each, f"{what} after {minutes(each.seconds)} (log: {each.files.log})")

    def _say(self, each: _Running, what: str) -> None:
        print(f"[{each.number}/{self.n}] {each.trial.name}: {what}", flush=True)

    def _tell(self, *, at_once: bool = False) -> None:
        if self.told and (at_once or time.monotonic() - self._told_s > HEARTBEAT_S):
            self._told_s = time.monotonic()
            self.told(*progress_of(self.trials))


def progress_of(trials: Sequence[Trial]) -> tuple[int, int]:
    """Training steps done, and how many there are as far as is known; a finished trial's
    evaluation counts as one."""
    done = total = 0
    for trial in trials:
        for stage in trial.stages:
            status = RunFolder.of(stage).status.read()
            done += int(status.get("step", 0))
            total += int(status.get("total_steps", stage.stage.steps or 0))
        done, total = done + (trial.folder / DONE_FILE).exists(), total + 1
    return done, total


def last_words(log: Path) -> str:
    """The last `error: ` line of the latest command, else its last line."""
    text = log.read_bytes()[-TAIL_BYTES:].decode(errors="replace") if log.exists() else ""
    *_, latest = re.split(r"^\$ .*$", text, flags=re.MULTILINE)
    lines = [line.strip() for line in latest.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1]


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
