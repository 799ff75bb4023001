"""Collectives between two real processes."""

import json
import sys
import time
from pathlib import Path

import pytest

from cluster.local import run_processes
from paltrain.comm import gpu_of
from paltrain.errors import ClusterError

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import json, os, sys
from paltrain.comm import Comm
comm = Comm.from_environment(timeout_s=5)
said = {
    "sum": comm.sum([1.0, comm.rank]),
    "max": comm.max([comm.rank, -comm.rank]),
    "gather": comm.gather({"rank": comm.rank}),
    "broadcast": comm.broadcast("from 0" if comm.rank == 0 else None),
    "device": str(comm.device),
}
comm.barrier()
open(sys.argv[1] + "/" + str(comm.rank), "w").write(json.dumps(said))
if comm.rank == 0:
    try:
        comm.barrier()  # the other does not come
    except RuntimeError as error:
        open(sys.argv[1] + "/lost", "w").write(str(error))
os._exit(0)  # as a lost rank does: without leaving the group
"""


@pytest.mark.distributed
def test_two_ranks_agree_and_a_lost_one_is_noticed(tmp_path):
    before = time.monotonic()
    code = run_processes(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        world_size=2,
        threads=1,
        log_folder=tmp_path / "logs",
        environment={"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert code == 0
    assert time.monotonic() - before < 40
    said = [json.loads((tmp_path / str(rank)).read_text()) for rank in (0, 1)]
    assert (
        said[0]
        == said[1]
        == {
            "sum": [2.0, 1.0],
            "max": [1.0, 0.0],
            "gather": [{"rank": 0}, {"rank": 1}],
            "broadcast": "from 0",
            "device": "cpu",
        }
    )
    assert (tmp_path / "lost").exists()


def test_a_process_takes_the_gpu_of_its_number_or_the_only_one_that_it_sees():
    assert [gpu_of(rank, 4) for rank in range(4)] == [0, 1, 2, 3]
    assert [gpu_of(rank, 1) for rank in range(4)] == [0, 0, 0, 0]
    with pytest.raises(ClusterError, match=r"process 2 .* sees 2; start at most 2 a node"):
        gpu_of(2, 2)
