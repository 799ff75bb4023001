"""The batch script as a pure function of a job, and what its tasks make of Slurm's variables."""

import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.job import Role, jobs_of
from cluster.profiles import GpuRequest, Profile, Scheduler, SerialPlace, load_profile
from cluster.slurm import command_of, parameters_of, refusal, sbatch_text
from cluster.slurm_env import FIRST_PORT, N_PORTS, free_port, meeting_point, rank_variables
from paltrain.config.schema import (
    ArrayConfig,
    EvalConfig,
    LaunchConfig,
    RunIdentity,
    StageConfig,
    TrainConfig,
)

NODE = Profile(scheduler=Scheduler.slurm, max_nodes=8, gpus_per_node=4, cpus_per_node=32)


def training(tmp_path, profile, **launch):
    config = TrainConfig(
        run=RunIdentity(name="stage2", root=str(tmp_path)),
        stage=StageConfig(steps=1),
        launch=LaunchConfig(**launch),
    )
    (job,) = jobs_of(config, profile, source=Path("stage2.yaml"))
    return job


def evaluation(tmp_path, profile, **launch):
    config = EvalConfig(
        runs=["r"], manifests=["m"], launch=ArrayConfig(root=str(tmp_path), **launch)
    )
    return jobs_of(config, profile, source=Path("configs/mine/evaluate.yaml"))


def text_of(job, *, account=None, after=None) -> str:
    parameters = parameters_of(job, account=account, after=after)
    return sbatch_text(parameters, command=command_of(job), folder=job.folder.slurm)


def test_the_sbatch_text_of_leonardo(tmp_path):
    text = text_of(
        training(tmp_path, load_profile("leonardo"), nodes=8), account="IscrB", after="41"
    )
    for line in (
        "#SBATCH --nodes=8",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --gres=gpu:4",
        "#SBATCH --mem=494000M",
        "#SBATCH --account=IscrB",
        "#SBATCH --partition=boost_usr_prod",
        "#SBATCH --time=1440",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --requeue",
        "#SBATCH --dependency=afterok:41",
        "#SBATCH --kill-on-invalid-dep=yes",
        "export SRUN_CPUS_PER_TASK=8",
        "export OMP_NUM_THREADS=8",
        "export HF_HUB_OFFLINE=1",
    ):
        assert line in text.splitlines(), line
    (srun,) = [line for line in text.splitlines() if line.startswith("srun ")]
    assert "--kill-on-bad-exit=1 --wait=60" in srun
    assert f"--output={tmp_path}/stage2/ranks/rank-%t.log" in srun


def test_the_batch_script_is_valid_shell_whatever_the_path(tmp_path):
    folder = tmp_path / 'it\'s 100% "mine"'
    jobs = [training(folder, NODE), *evaluation(folder, NODE, array_tasks=3)]
    for job in jobs:
        text = text_of(job)
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        assert "100%% " in text, "Slurm would read % as a pattern"


def test_part_of_a_node_is_asked_for_with_its_share_of_memory(tmp_path):
    profile = replace(NODE, mem_mb_per_node=400_000)
    text = text_of(training(tmp_path, profile, gpus_per_node=1))
    assert "#SBATCH --mem=100000M" in text
    assert "#SBATCH --gpus-per-node=1" in text
    by_gres = text_of(training(tmp_path, replace(profile, gpu_request=GpuRequest.gres)))
    assert "#SBATCH --gres=gpu:4" in by_gres
    assert "--gpus-per-node" not in by_gres


def test_what_a_profile_adds_reaches_sbatch_and_srun(tmp_path):
    profile = replace(
        NODE,
        cpu_bind="map_cpu:49,57",
        sbatch={"hint": "nomultithread"},
        modules=["cuda/12"],
        environment={"NCCL_SOCKET_IFNAME": "ib0,ib1"},
        setup=["ulimit -c 0"],
    )
    lines = text_of(training(tmp_path, profile)).splitlines()
    assert "#SBATCH --hint=nomultithread" in lines
    assert "module load cuda/12" in lines
    assert "export NCCL_SOCKET_IFNAME=ib0,ib1" in lines
    assert "ulimit -c 0" in lines
    assert not any("SRUN_CPUS_PER_TASK" in line for line in lines), "the map says it all"
    part = text_of(training(tmp_path, profile, gpus_per_node=2))
    assert "--cpu-bind" not in part
    assert "SRUN_CPUS_PER_TASK=8" in part
    assert any("srun " in line and "--cpu-bind=map_cpu:49,57" in line for line in lines)


def test_an_evaluation_becomes_an_array_and_a_merge_that_waits_for_every_end(tmp_path):
    profile = replace(NODE, serial=SerialPlace(partition="serial", time_min=30, mem_mb=8000))
    array, merge = evaluation(tmp_path, profile, array_tasks=64, array_parallelism=16)
    assert [array.role, merge.role] == [Role.array, Role.merge]
    text = text_of(array)
    assert "#SBATCH --array=0-63%16" in text
    assert "#SBATCH --gpus-per-node=1" in text
    assert 'slice="$SLURM_ARRAY_TASK_ID/64"' in text
    assert f"{tmp_path}/mine-evaluate/slurm/%A_%a.log" in text
    text = text_of(merge, after="7")
    assert "#SBATCH --dependency=afterany:7" in text
    assert "#SBATCH --partition=serial" in text
    assert "#SBATCH --mem=8000M" in text
    assert "--gpus" not in text
    assert "--merge 64" in text


def test_a_merge_leaves_the_queue_with_an_array_that_never_could_start(tmp_path):
    _, merge = evaluation(tmp_path, NODE, array_tasks=2)
    parameters = parameters_of(merge, account=None, after="7", first="6")
    assert parameters["dependency"] == "afterany:7,afterok:6"


def test_a_merge_beside_the_other_jobs_has_their_qos_as_where_one_is_mandatory(tmp_path):
    _, merge = evaluation(tmp_path, replace(NODE, qos="acc_ehpc"), array_tasks=2)
    assert "#SBATCH --qos=acc_ehpc" in text_of(merge)
    serial = replace(NODE, qos="acc_ehpc", serial=SerialPlace(partition="serial"))
    assert "--qos" not in text_of(evaluation(tmp_path, serial, array_tasks=2)[1])


def test_one_task_is_no_array(tmp_path):
    (job,) = evaluation(tmp_path, NODE)
    assert job.role is Role.run
    assert "--array" not in text_of(job)
    assert "slice=" not in text_of(job)


def test_a_refusal_says_what_slurm_said_and_where_to_look():
    said = "sbatch: error: invalid partition specified: nope\nsbatch: error: No submission"
    assert refusal("stage1", said) == (
        "Slurm refuses the job 'stage1': invalid partition specified: nope; No submission. Look "
        "at account, partition, qos and sizes in the profile and in launch.*"
    )


def test_a_slurm_task_knows_its_rank():
    slurm = {
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_NTASKS": "8",
        "SLURM_NTASKS_PER_NODE": "4",
    }
    assert rank_variables(slurm) == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "4",
    }


def test_processes_meet_on_the_first_host_at_a_port_that_is_free():
    slurm = {"SLURM_JOB_ID": "1234567", "PALTRAIN_MASTER_SUFFIX": "i"}
    point = meeting_point(slurm, first_host="jwb0001")
    assert point["MASTER_ADDR"] == "jwb0001i"
    first = int(point["MASTER_PORT"])
    assert FIRST_PORT <= first < FIRST_PORT + N_PORTS
    with socket.socket() as taken:
        taken.bind(("", first))
        assert free_port(1234567) != first


@pytest.mark.parametrize("job_id", [1, 2, 10_000_000])
def test_neighbouring_jobs_look_at_different_ports(job_id):
    assert free_port(job_id) != free_port(job_id + 1)
