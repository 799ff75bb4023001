"""What `tools/ablate.py` does: list, run, merge, and the table.

run     prepare ──> trials ──> costs ──> table      the whole ablation
        trials                                      a slice of it
merge   costs ──> table                             if all trials have results
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.ablation import children
from cluster.ablation.commands import BENCH, LAUNCH, TrialFiles, prepare_command, tool
from cluster.ablation.listing import commands_to_give
from cluster.ablation.runner import Failure, Progress, progress_of, run_trials
from cluster.job import folder_of
from paltrain.ablation.build import Plan, Trial, plan_of
from paltrain.ablation.report import accuracy_table, write_report
from paltrain.ablation.results import COSTS_FILE, collect, has_results, has_some_results
from paltrain.config.load import save_config
from paltrain.config.schema import AblationConfig
from paltrain.errors import ConfigError, IncompleteError
from paltrain.slices import EVERYTHING, Lack, incomplete, parse_slice

EXIT_FAILED = 1
REPORT_NAME = "report"


@dataclass(frozen=True)
class Work:
    """An ablation's configuration with its plan. command: makes it, as its report says."""

    config: AblationConfig
    plan: Plan
    command: str

    @classmethod
    def of(cls, config: AblationConfig, source: Path, *, command: str) -> Work:
        """source: the configuration's file, which names it where nothing else does.

        Raises:
            ConfigError: with all faults of its arms, axes and files.
        """
        return cls(config, plan_of(config, name=folder_of(config, source).name), command)

    def list(self) -> int:
        """Print the trials with the commands of each; writes nothing."""
        if self.config.prepare:
            print("# before all trials")
            print(shlex.join(["python", LAUNCH, *self.config.prepare]))
        for trial in self.plan.trials:
            standing = "done" if TrialFiles(trial).is_done else trial.last.standing()
            print(f"# {trial.name}: {standing}")
            print("\n".join(commands_to_give(trial, self.config)))
        self._say_remarks()
        return 0

    def run(self, told: Progress) -> int:
        """Everything that is missing; of a slice only its trials. Returns the exit code."""
        part = parse_slice(self.config.slice)
        self._say_remarks()
        if part == EVERYTHING and self.config.prepare:
            self._prepare()
        trials = self.plan.trials[part[0] :: part[1]]
        failures = run_trials(trials, parallel=self.config.parallel, told=told)
        if part == EVERYTHING:
            self._measure_costs()
            if any(map(has_some_results, trials)):
                self.write_table()
        for failure in failures:
            say_failure(failure)
        return EXIT_FAILED if failures else 0

    def merge(self, n_slices: int, told: Progress) -> int:
        """The table, if every trial has results.

        Raises:
            IncompleteError: some have none; names their slices.
        """
        lacks = [
            Lack(number, sum(not has_results(trial) for trial in own), len(own))
            for number in range(n_slices)
            for own in [self.plan.trials[number::n_slices]]
        ]
        if lacking := [lack for lack in lacks if lack.n_lacking]:
            raise incomplete(
                lacking,
                n_slices=n_slices,
                what="trials",
                command=f"{self.command} --slice I/{n_slices}",
                note="or make the table of what is there: --table",
            )
        self._measure_costs()
        told(*progress_of(self.plan.trials))
        return self.write_table()

    def write_table(self) -> int:
        """The table of what is there, in `report`.md and .json (default ROOT/NAME/report).

        Raises:
            IncompleteError: nothing is.
        """
        results = collect(self.plan, expect=self.config.expect)
        if not results.are_there:
            raise IncompleteError(
                "there is no result yet: a table needs one trial's at least, but none of "
                f"{len(results.missing)} in {self.plan.folder} has any; run them first: "
                f"{self.command}"
            )
        path = Path(self.config.report or self.plan.folder / REPORT_NAME)
        written = write_report(
            path,
            results,
            title=self.config.title,
            caption=self.config.caption,
            command=self.command,
        )
        accuracy_table(results).print(title="right answers, %")
        if results.missing:
            print(f"without results, a dash in the table: {', '.join(results.missing)}")
        print("wrote " + ", ".join(map(str, written)))
        return 0

    def _say_remarks(self) -> None:
        for remark in self.plan.remarks:
            print(remark)

    def _prepare(self) -> None:
        command = prepare_command(self.config.prepare)
        if code := children.run(command):
            raise ConfigError(
                f"what the trials start from could not be made (exit code {code}, said above): "
                f"{shlex.join(command)}"
            )

    def _measure_costs(self) -> None:
        """Time the arms' steps, unless that has been done since they were trained."""
        out = self.plan.folder / COSTS_FILE
        measured = self.plan.first_trained
        if not measured or _is_newer(out, measured):
            return
        config = self.plan.folder / "measured.yaml"
        save_config(self._named(), config)
        command = [*tool(BENCH), "forms", "--ablation", str(config), "--json", str(out)]
        print(f"timing a step of each of {len(measured)} rows: {out}", flush=True)
        with out.with_suffix(".log").open("wb") as log:
            code = children.run(command, log)
        if code:
            print(
                f"step times and memory are missing from the table: {shlex.join(command)} ended "
                f"with exit code {code} (log: {log.name})",
                file=sys.stderr,
            )

    def _named(self) -> AblationConfig:
        """The configuration with its name, which its file's place would say otherwise."""
        return replace(self.config, launch=replace(self.config.launch, name=self.plan.name))


def say_failure(failure: Failure) -> None:
    name = failure.trial.name
    print(f"{name}: {failure.reason} (log: {failure.log})", file=sys.stderr)


def _is_newer(out: Path, trials: Sequence[Trial]) -> bool:
    models = [trial.last.model / "config.json" for trial in trials]
    if not out.exists():
        return False
    return all(model.stat().st_mtime <= out.stat().st_mtime for model in models)
