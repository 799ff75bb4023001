"""Every test runs offline and single-threaded: two processes share two cores without a fight."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A real Slurm cluster of four nodes, its commands on PATH.

    Where Slurm is not installed these tests are skipped, unless PALTRAIN_REQUIRE_SLURM is set.
    """
    from tests.slurm.lab import HOW_TO_GET, cluster_on_path, missing

    if absent := missing():
        sentence = f"no Slurm here ({', '.join(absent)} not found): {HOW_TO_GET}"
        if os.environ.get("PALTRAIN_REQUIRE_SLURM"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    with cluster_on_path(tmp_path_factory.mktemp("slurm")) as lab:
        yield lab
