"""The local launcher, on processes that do next to nothing."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from cluster.local import rank_environment, run_processes

ROOT = Path(__file__).resolve().parents[2]


def run(program: str, folder: Path, *, world_size: int = 2) -> int:
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return run_processes(command, world_size=world_size, threads=1, log_folder=folder)


def test_every_rank_knows_who_it_is(tmp_path):
    names = list(rank_environment(0, 2, port=1, threads=1))
    code = run(
        f"""
        import json, os
        values = {{name: os.environ[name] for name in {names}}}
        open(f"{tmp_path}/" + os.environ["RANK"], "w").write(json.dumps(values))
        """,
        tmp_path / "logs",
    )
    assert code == 0
    seen = [json.loads((tmp_path / str(rank)).read_text()) for rank in (0, 1)]
    assert [s["RANK"] for s in seen] == [s["LOCAL_RANK"] for s in seen] == ["0", "1"]
    assert {s["WORLD_SIZE"] for s in seen} == {s["LOCAL_WORLD_SIZE"] for s in seen} == {"2"}
    assert len({s["MASTER_PORT"] for s in seen}) == 1
    assert {s["OMP_NUM_THREADS"] for s in seen} == {"1"}


def test_rank_0_speaks_on_the_console_and_others_to_their_files(tmp_path, capfd):
    assert run("import os; print('I am', os.environ['RANK'], flush=True)", tmp_path) == 0
    assert capfd.readouterr().out == "I am 0\n"
    assert (tmp_path / "rank-1.log").read_text() == "I am 1\n"


def test_a_failing_rank_ends_the_rest_and_its_last_lines_are_shown(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("cluster.local.GRACE_S", 0.3)
    before = time.monotonic()
    children = set(psutil.Process().children())
    code = run(
        """
        import os, sys, time
        if os.environ["RANK"] == "1":
            raise ValueError("the reason")
        time.sleep(60)
        """,
        tmp_path,
    )
    assert code == 1
    assert time.monotonic() - before < 10
    shown = capfd.readouterr().err
    assert "rank 1 ended with exit code 1" in shown
    assert "ValueError: the reason" in shown
    assert set(psutil.Process().children()) <= children


def test_a_killed_rank_is_named_as_the_cause(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("cluster.local.GRACE_S", 0.3)
    program = """
        import os, signal, sys, time
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
        """
    assert run(program, tmp_path) == 128 + signal.SIGKILL
    assert "rank 1 was killed by signal 9" in capfd.readouterr().err


def launcher(program: str, folder: Path) -> subprocess.Popen[str]:
    """A launcher of its own, to be signalled; its ranks say `ready` in files."""
    call = (
        "import sys; from pathlib import Path; from cluster.local import run_processes\n"
        f"sys.exit(run_processes([sys.executable, '-c', {textwrap.dedent(program)!r}], "
        f"world_size=2, threads=1, log_folder=Path({str(folder)!r})))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FOLDER": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-c", call], env=environment, text=True, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 20
    while len(list(folder.glob("ready-*"))) < 2:
        assert time.monotonic() < deadline, "the ranks did not start"
        time.sleep(0.05)
    return process


WAITS_FOR_A_SIGNAL = """
    import os, pathlib, signal, sys, time
    caught = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, frame: caught.append(n))
    pathlib.Path(os.environ["FOLDER"], "ready-" + os.environ["RANK"]).touch()
    while not caught:
        time.sleep(0.02)
    sys.exit(85 if caught == [signal.SIGTERM] else 130)
    """


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 85), (signal.SIGINT, 130)])
def test_a_signal_reaches_all_ranks_and_their_code_comes_back(tmp_path, number, code):
    process = launcher(WAITS_FOR_A_SIGNAL, tmp_path)
    process.send_signal(number)
    assert process.wait(20) == code


def test_a_second_signal_ends_ranks_that_do_not_listen(tmp_path):
    process = launcher(
        """
        import os, pathlib, signal, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        pathlib.Path(os.environ["FOLDER"], "ready-" + os.environ["RANK"]).touch()
        time.sleep(60)
        """,
        tmp_path,
    )
    ranks = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 128 + signal.SIGKILL
    assert not any(rank.is_running() for rank in ranks)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_ranks_do_not_outlive_their_launcher(tmp_path):
    process = launcher(WAITS_FOR_A_SIGNAL, tmp_path)
    ranks = psutil.Process(process.pid).children()
    process.kill()
    process.wait(20)
    gone, alive = psutil.wait_procs(ranks, timeout=10)
    assert (len(gone), alive) == (2, [])
