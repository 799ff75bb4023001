"""Which faults are the machines', and what a hanging process leaves behind."""

import errno
import subprocess
import sys
import time

import pytest
import torch.distributed as dist

from paltrain.errors import TrainingError
from paltrain.train.faults import is_environment


@pytest.mark.parametrize(
    "error",
    [
        dist.DistNetworkError("The client socket has failed to connect"),
        dist.DistBackendError("NCCL communicator was aborted"),
        RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.1]"),
        ConnectionResetError("Connection reset by peer"),
        OSError(errno.ESTALE, "Stale file handle"),
    ],
)
def test_lost_peers_and_file_systems_are_the_machines_fault(error):
    assert is_environment(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        TrainingError("step 3 had loss nan"),
        OSError(errno.ENOSPC, "No space left on device"),
        KeyError("gloo"),
    ],
)
def test_errors_of_code_and_data_are_not(error):
    assert not is_environment(error)


HANGS = """
import time
from paltrain.train.watchdog import Watchdog

def wait_for_a_peer():
    time.sleep(60)

with Watchdog(timeout_s=0.5) as watchdog:
    for _ in range(3):
        time.sleep(0.3)
        watchdog.step_done()
    print("three steps", flush=True)
    wait_for_a_peer()
"""


def test_a_process_that_hangs_says_where_and_ends():
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, check=False, timeout=50
    )
    assert time.monotonic() - started < 40
    assert done.returncode == 1
    assert done.stdout == "three steps\n"
    assert "wait_for_a_peer" in done.stderr


def test_a_process_that_gets_on_is_left_alone():
    program = (
        HANGS.replace("    wait_for_a_peer()\n", "").replace("0.3", "0.05") + "\ntime.sleep(1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stderr) == (0, "")
