"""Every tool explains itself: quickly, with an example, and without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py") if path.name != "__init__.py")
SECONDS = 10.0  # on two busy cores; torch alone would take longer than a quiet --help


def call(tool: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"tools/{tool}", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("tool", TOOLS)
def test_help_is_quick_and_shows_an_example(tool: str) -> None:
    start = time.monotonic()
    done = call(tool, "--help")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < SECONDS
    assert f"tools/{tool}" in done.stdout.replace("usage: ", "")
    assert "python tools/" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("tool", TOOLS)
def test_help_imports_no_torch(tool: str) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['tools/{tool}', '--help']\n"
        "try:\n"
        f"    runpy.run_path('tools/{tool}', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr.strip() == "False"


@pytest.mark.parametrize(
    ("tool", "words", "says"),
    [
        ("evaluate.py", ["configs/none.yaml"], "none.yaml"),
        ("evaluate.py", ["configs/quickstart/evaluate.yaml", "rnus=[a]"], "rnus"),
        ("report.py", ["--runs", "runs/none"], "no such run folder"),
        ("chat.py", ["runs/none", "--ask", "What?"], "no exported model in runs/none"),
        ("export.py", ["runs/none", "--out", "/tmp/none"], "no exported model in runs/none"),
        ("bench.py", ["step", "--nt", "4"], "at least 10 text tokens"),
    ],
)
def test_bad_input_ends_in_one_clear_line(tool: str, words: list[str], says: str) -> None:
    done = call(tool, *words)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")


def test_the_quickstart_lists_ordinary_commands_that_exist() -> None:
    done = call("quickstart.py", "--list")
    commands = [line.removeprefix("$ python ").split() for line in done.stdout.splitlines()]
    assert len(commands) == 8
    for tool, *words in commands:
        assert (ROOT / tool).is_file()
        for config in (word for word in words if word.endswith(".yaml")):
            assert (ROOT / config).is_file()
