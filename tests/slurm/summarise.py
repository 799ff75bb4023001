"""From a test report to docs/results/slurm.md: `python -m tests.slurm.summarise REPORT.xml OUT.md`.

The report is pytest's (--junitxml) of the tests marked `slurm`.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

HEAD = """# The Slurm scenarios, as last run

`make test-slurm` runs them on a real Slurm (four nodes in network namespaces of one machine,
`tests/slurm/lab.sh`) and writes this page. Training is by gloo on the CPU, the model tiny: the
seconds say how long starting, stopping and requeueing take on this machine, nothing of a cluster.

{machine}

| scenario | outcome | seconds |
|---|---|---|
"""


def summary(report: Path) -> str:
    """The page, from pytest's XML."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    rows = [
        f"| {_name(case)} | {_outcome(case)} | {float(case.get('time', 0)):.0f} |" for case in cases
    ]
    measured = [
        f"- {p.get('name')}: {p.get('value')}" for case in cases for p in case.iter("property")
    ]
    counts = {o: [_outcome(c) for c in cases].count(o) for o in ("passed", "failed", "skipped")}
    total = ", ".join(f"{n} {outcome}" for outcome, n in counts.items() if n)
    parts = [
        HEAD.format(machine=_machine()) + "\n".join(rows),
        "Measured:\n\n" + "\n".join(measured),
    ]
    return "\n\n".join([*parts, f"{total}."]) + "\n"


def _name(case: ElementTree.Element) -> str:
    module = case.get("classname", "").rpartition(".")[2].removeprefix("test_").replace("_", " ")
    return f"{module}: {case.get('name', '').removeprefix('test_').replace('_', ' ')}"


def _outcome(case: ElementTree.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "skipped" if case.find("skipped") is not None else "passed"


def _machine() -> str:
    slurm = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True)
    names = ("torch", "deepspeed", "submitit")
    return (
        f"{slurm.stdout.strip()}, {', '.join(f'{name} {version(name)}' for name in names)}, Python "
        f"{platform.python_version()}, {len(os.sched_getaffinity(0))} cores."
    )


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(summary(Path(sys.argv[1])), encoding="utf-8")
