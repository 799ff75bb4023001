"""What Slurm takes and would never start is told by the check."""

import pytest

from cluster.preflight.slurm import minutes_of
from tests.slurm.runs import launch, write_profile, write_run


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("1-12:00:00", 2160), ("24:00:00", 1440), ("30:00", 30), ("infinite", None), ("n/a", None)],
)
def test_a_limit_of_slurm_in_minutes(limit, minutes):
    assert minutes_of(limit) == minutes


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
def test_more_time_than_the_partition_gives_is_told_before_it_waits_for_ever(tmp_path):
    profile = write_profile(tmp_path, max_time_min=None)
    said = launch(profile, "--check", write_run(tmp_path), "launch.time_min=3000", code=2)
    assert "3000 minutes are over the 1440 of the partition 'normal'" in said
