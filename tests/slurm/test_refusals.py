"""What Slurm or the profile refuses is told before anything waits in the queue."""

import pytest

from tests.slurm.lab import NEEDED_FOR_ACCOUNTING, cluster_on_path, missing
from tests.slurm.runs import launch, write_profile, write_run

pytestmark = [pytest.mark.slurm, pytest.mark.slurm_long]


@pytest.fixture(scope="module")
def accounting(tmp_path_factory):
    """A second cluster, which knows accounts and QoS."""
    if absent := missing(NEEDED_FOR_ACCOUNTING):
        pytest.skip(f"{', '.join(absent)} not found: apt-get install slurmdbd mariadb-server")
    with cluster_on_path(tmp_path_factory.mktemp("accounting"), accounting=True) as lab:
        yield lab


@pytest.mark.parametrize(
    ("word", "slurm_says"),
    [
        ("launch.account=nobody", "Invalid account"),
        ("launch.qos=nope", "Invalid qos"),
        ("launch.partition=nope", "invalid partition"),
    ],
)
def test_a_wrong_account_qos_or_partition(accounting, tmp_path, word, slurm_says):
    said = launch(write_profile(tmp_path), write_run(tmp_path), word, code=2)
    assert slurm_says in said
    assert not (tmp_path / "runs").exists()


def test_an_account_that_must_be_named(slurm, tmp_path, monkeypatch):
    monkeypatch.delenv("PALTRAIN_ACCOUNT", raising=False)
    profile = write_profile(tmp_path, account_variable="PALTRAIN_ACCOUNT")
    said = launch(profile, write_run(tmp_path), code=2)
    assert "export PALTRAIN_ACCOUNT=NAME" in said


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--nodes", 5], "--nodes 5 is over max_nodes=4"),
        (["launch.time_min=61"], "launch.time_min=61 is over the 60 minutes"),
        (["--gpus-per-node", 5], "--gpus-per-node 5 is over gpus_per_node=4"),
    ],
)
def test_what_would_wait_for_ever(slurm, tmp_path, words, fault):
    said = launch(write_profile(tmp_path), write_run(tmp_path), *words, code=2)
    assert fault in said
    assert not (tmp_path / "runs").exists()
