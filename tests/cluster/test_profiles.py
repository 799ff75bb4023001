import pytest

from cluster.profiles import (
    FOLDER,
    Limits,
    Profile,
    Scheduler,
    SerialPlace,
    Shape,
    account_of,
    faults_of_size,
    load_profile,
    shape_of_merge,
    shape_of_run,
    shape_of_slice,
    time_of,
    visible_devices,
)
from paltrain.config.schema import ArrayConfig, LaunchConfig, Placement
from paltrain.errors import ConfigError

NODE = Profile(scheduler=Scheduler.slurm, max_nodes=8, gpus_per_node=4, cpus_per_node=32)


@pytest.mark.parametrize("name", [path.stem for path in FOLDER.glob("*.yaml")])
def test_every_profile_is_read_and_named_as_its_file(name):
    assert load_profile(name).name == name


def test_an_unknown_cluster_lists_the_known_ones():
    with pytest.raises(ConfigError, match="did you mean 'leonardo'.*local, .*slurm"):
        load_profile("leonrado")


def test_a_profile_can_be_the_users_own_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("{name: mine, scheduler: slurm, max_nodes: 3}")
    assert load_profile(str(tmp_path / "mine.yaml")).scheduler is Scheduler.slurm


def test_auto_is_this_machine_where_there_is_no_slurm_and_else_what_the_user_named(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PALTRAIN_CLUSTER", raising=False)
    assert load_profile("auto").name == "local"
    (tmp_path / "sbatch").write_text("#!/bin/sh")
    (tmp_path / "sbatch").chmod(0o755)
    assert load_profile("auto").name == "slurm"
    monkeypatch.setenv("PALTRAIN_CLUSTER", "leonardo")
    assert load_profile("auto").name == "leonardo"
    (tmp_path / "sbatch").unlink()
    assert load_profile("auto").name == "leonardo", "a dry run needs no Slurm"


def test_a_process_an_accelerator_and_the_cores_shared_among_them():
    assert shape_of_run(NODE, LaunchConfig(nodes=2)) == Shape(2, 4, 8, 4, 8)
    assert shape_of_run(NODE, LaunchConfig(nodes=2)).world_size == 8
    asked = LaunchConfig(processes_per_node=2, threads_per_process=3)
    assert shape_of_run(NODE, asked) == Shape(1, 2, 3, 2, 8)


def test_fewer_gpus_of_a_node_come_with_their_share_of_its_cores():
    assert shape_of_run(NODE, LaunchConfig(gpus_per_node=1)) == Shape(1, 1, 8, 1, 8)
    with pytest.raises(ConfigError, match=r"--gpus-per-node 5 is over gpus_per_node=4"):
        shape_of_run(NODE, LaunchConfig(gpus_per_node=5))


def test_a_slice_gets_one_gpu_and_its_share_a_merge_none():
    assert shape_of_slice(NODE, ArrayConfig()) == Shape(1, 1, 8, 1, 8)
    assert shape_of_slice(NODE, ArrayConfig(gpus_per_task=0)).gpus_per_node == 0
    assert shape_of_merge(NODE) == Shape(1, 1, 1, 0, 1)
    serial = Profile(serial=SerialPlace(partition="cpu", cpus=2))
    assert shape_of_merge(serial) == Shape(1, 1, 2, 0, 2)


def test_a_machine_without_accelerators_runs_one_process():
    profile = Profile(gpus_per_node=0, cpus_per_node=6)
    assert shape_of_run(profile, LaunchConfig()) == Shape(1, 1, 6, 0, 6)


@pytest.mark.parametrize(("value", "n"), [("0,1", 2), ("", 0), ("-1", 0), ("3", 1)])
def test_hidden_accelerators_do_not_count(monkeypatch, value, n):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert len(visible_devices()) == n


def test_on_one_machine_each_process_has_a_gpu_of_its_own_or_none_has(monkeypatch, caplog):
    launch, local = LaunchConfig(processes_per_node=2), load_profile("local")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    shape = shape_of_run(local, launch)
    assert (shape.processes_per_node, shape.gpus_per_node) == (1, 1)
    assert "launch.processes_per_node=2, but there are 1 GPU(s)" in caplog.text
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert shape_of_run(local, launch).processes_per_node == 2


def test_several_nodes_need_a_cluster():
    with pytest.raises(ConfigError, match="--nodes 8 needs a cluster.*--cluster NAME"):
        shape_of_run(load_profile("local"), LaunchConfig(nodes=8))


def test_what_no_queue_would_ever_start_is_named_all_at_once_with_what_would_take_it():
    profile = Profile(name="big", max_nodes=4, max_time_min=60, qos_limits={"long": Limits(2, 600)})
    nodes, minutes = faults_of_size(
        profile, Placement(time_min=90), Shape(5, 1, 1), is_training=True
    )
    assert "--nodes 5 is over max_nodes=4 of the profile 'big'" in nodes
    assert "or raise it there" in nodes
    assert "launch.time_min=90 is over the 60 minutes" in minutes
    assert "launch.qos=long" in minutes
    assert not faults_of_size(
        profile, Placement(qos="long", time_min=90), Shape(2, 1, 1), is_training=True
    )
    (fault,) = faults_of_size(profile, Placement(qos="long"), Shape(3, 1, 1), is_training=True)
    assert "max_nodes=2 of the QoS 'long'" in fault


def test_time_not_asked_for_stays_within_the_limit_of_its_qos():
    profile = Profile(time_min=1440, qos_limits={"debug": Limits(2, 30)})
    assert time_of(profile, Placement()) == 1440
    assert time_of(profile, Placement(qos="debug")) == 30
    assert time_of(profile, Placement(time_min=7)) == 7


def test_leonardo_asks_for_an_account(monkeypatch):
    leonardo = load_profile("leonardo")
    monkeypatch.delenv("PALTRAIN_ACCOUNT", raising=False)
    with pytest.raises(ConfigError, match="export PALTRAIN_ACCOUNT=NAME.*saldo -b"):
        account_of(leonardo, Placement())
    assert account_of(leonardo, Placement(account="said")) == "said"
    monkeypatch.setenv("PALTRAIN_ACCOUNT", "IscrB_pal")
    assert account_of(leonardo, Placement()) == "IscrB_pal"
    assert account_of(load_profile("slurm"), Placement()) is None


def test_a_training_process_has_one_gpu_and_a_tools_process_all_of_its_task():
    profile = load_profile("leonardo")
    shape = Shape(nodes=1, processes_per_node=1, threads=32, gpus_per_node=4)
    (fault,) = faults_of_size(profile, Placement(), shape, is_training=True)
    assert "processes_per_node=1 on 4 GPUs" in fault
    assert not faults_of_size(profile, Placement(), shape, is_training=False)
