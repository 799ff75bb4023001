import pytest

from cluster.profiles import (
    FOLDER,
    Profile,
    Scheduler,
    Shape,
    account_of,
    load_profile,
    shape_of,
    visible_accelerators,
)
from cluster.slurm import sbatch_text, slurm_parameters
from cluster.slurm_env import rank_variables
from paltrain.config.schema import LaunchConfig
from paltrain.errors import ConfigError


@pytest.mark.parametrize("name", [path.stem for path in FOLDER.glob("*.yaml")])
def test_every_profile_is_read_and_named_as_its_file(name):
    assert load_profile(name).name == name


def test_an_unknown_cluster_lists_the_known_ones():
    with pytest.raises(ConfigError, match="did you mean 'leonardo'.*local, slurm"):
        load_profile("leonrado")


def test_a_profile_can_be_the_users_own_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("{name: mine, scheduler: slurm, max_nodes: 3}")
    assert load_profile(str(tmp_path / "mine.yaml")).scheduler is Scheduler.slurm


def test_a_process_an_accelerator_and_the_cores_shared_among_them():
    profile = Profile(scheduler=Scheduler.slurm, max_nodes=8, gpus_per_node=4, cpus_per_node=32)
    assert shape_of(profile, LaunchConfig(nodes=2)) == Shape(2, 4, 8)
    assert shape_of(profile, LaunchConfig(nodes=2)).world_size == 8
    asked = LaunchConfig(processes_per_node=2, threads_per_process=3)
    assert shape_of(profile, asked) == Shape(1, 2, 3)


def test_a_machine_without_accelerators_runs_one_process():
    profile = Profile(gpus_per_node=0, cpus_per_node=6)
    assert shape_of(profile, LaunchConfig()) == Shape(1, 1, 6)


@pytest.mark.parametrize(("value", "n"), [("0,1", 2), ("", 0), ("-1", 0), ("3", 1)])
def test_hidden_accelerators_do_not_count(monkeypatch, value, n):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_accelerators() == n


def test_several_nodes_need_a_cluster():
    with pytest.raises(ConfigError, match="--nodes 8 needs a cluster.*--cluster NAME"):
        shape_of(load_profile("local"), LaunchConfig(nodes=8))


def test_more_nodes_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="max_nodes=64"):
        shape_of(load_profile("leonardo"), LaunchConfig(nodes=65))


def test_leonardo_asks_for_an_account(monkeypatch):
    leonardo = load_profile("leonardo")
    monkeypatch.delenv("PALTRAIN_ACCOUNT", raising=False)
    with pytest.raises(ConfigError, match="export PALTRAIN_ACCOUNT=NAME"):
        account_of(leonardo)
    monkeypatch.setenv("PALTRAIN_ACCOUNT", "IscrB_pal")
    assert account_of(leonardo) == "IscrB_pal"
    assert account_of(load_profile("slurm")) is None


def test_the_sbatch_text_of_leonardo(tmp_path):
    leonardo = load_profile("leonardo")
    shape = shape_of(leonardo, LaunchConfig(nodes=8))
    parameters = slurm_parameters(leonardo, shape, job_name="stage2", account="IscrB", after="41")
    text = sbatch_text(parameters, folder=tmp_path)
    for line in (
        "#SBATCH --nodes=8",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=494GB",
        "#SBATCH --account=IscrB",
        "#SBATCH --partition=boost_usr_prod",
        "#SBATCH --time=1440",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --requeue",
        "#SBATCH --dependency=afterok:41",
        "#SBATCH --kill-on-invalid-dep=yes",
        "module load cuda",
        "export SRUN_CPUS_PER_TASK=8",
        "export OMP_NUM_THREADS=8",
        "export HF_HUB_OFFLINE=1",
        'if [ "$exit_code" -eq 85 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
    ):
        assert line in text.splitlines(), line
    (srun,) = [line for line in text.splitlines() if line.startswith("srun ")]
    assert "--kill-on-bad-exit=1 --wait=60" in srun


def test_gres_stands_in_where_gpus_per_node_is_unknown():
    profile = Profile(scheduler=Scheduler.slurm, gpus_per_node=4, gres="gpu:4")
    parameters = slurm_parameters(profile, Shape(1, 4, 1), job_name="j", account=None)
    assert parameters["gres"] == "gpu:4"
    assert "gpus_per_node" not in parameters


def test_a_slurm_task_knows_its_rank():
    slurm = {
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_NTASKS": "8",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_JOB_ID": "1234567",
        "PALTRAIN_MASTER_SUFFIX": "i",
    }
    assert rank_variables(slurm, first_host="jwb0001") == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "jwb0001i",
        "MASTER_PORT": "34567",
    }
