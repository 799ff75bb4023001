"""A job as Slurm text (a pure function), and its submission, through submitit.

The batch script runs on the first node of the job:

    1. setup     modules, environment, the frozen code on PYTHONPATH
    2. begin     `cluster.batch begin`: notes the start, refuses a restart that cannot help, says
                 where the processes meet
    3. srun      one task a GPU; `--kill-on-bad-exit=1 --wait=60` ends all when one fails
    4. end       `cluster.batch end`: says why it ended, and puts it back into the queue if it can
                 go on
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.hub import OFFLINE
from cluster.job import Job, Role
from cluster.profiles import GpuRequest
from paltrain.config.schema import TrainConfig
from paltrain.errors import ClusterError, ConfigError

KEPT_VARIABLES = ("SLURM_CONF", "SBATCH_ACCOUNT")
COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "sinfo")
SRUN_ARGUMENTS = (
    "--export=ALL",
    "--unbuffered",
    "--kill-on-bad-exit=1",
    "--wait=60",
    "--open-mode=append",
)


def parameters_of(
    job: Job, *, account: str | None, after: str | None = None, first: str | None = None
) -> dict[str, Any]:
    """submitit's parameters of a job (time in minutes).

    after: id of the job before it in the chain. first: of the job before its array, for a merge.
    """
    profile, shape = job.profile, job.shape
    by_gres = profile.gpu_request is GpuRequest.gres
    share = shape.gpus_per_node / profile.gpus_per_node if profile.gpus_per_node else 1.0
    memory_mb = profile.mem_mb_per_node and int(profile.mem_mb_per_node * share)
    is_serial = job.role is Role.merge and profile.serial is not None
    if job.role is Role.merge:
        memory_mb = profile.serial.mem_mb if profile.serial else None
    parameters: dict[str, Any] = {
        "job_name": job.name,
        "partition": job.placement.partition or profile.partition,
        "qos": job.placement.qos or (None if is_serial else profile.qos),
        "account": account,
        "nodes": shape.nodes,
        "ntasks_per_node": shape.processes_per_node,
        "cpus_per_task": shape.cpus_per_process,
        "gres": f"gpu:{shape.gpus_per_node}" if by_gres and shape.gpus_per_node else None,
        "gpus_per_node": None if by_gres else shape.gpus_per_node or None,
        "mem": f"{memory_mb}M" if memory_mb else None,
        "time": job.time_min,
        "signal_delay_s": min(profile.signal_delay_s, max(1, job.time_min * 60 - 30)),
        "dependency": _dependency(job, after, first),
        "stderr_to_stdout": True,
        "use_srun": False,  # srun stands in the command
        "setup": _setup(job),
        "teardown": [f'{_batch(job, "end")} "$exit_code"', 'exit "$exit_code"'],
        "map_count": job.n_tasks,
        "array_parallelism": parallelism(job),
        "additional_parameters": _further_options(job),
    }
    known = {key: value for key, value in parameters.items() if value is not None}
    return {**known, "wckey": None}  # submitit's own default is a key that clusters may refuse


def sbatch_text(parameters: dict[str, Any], *, command: str, folder: Path) -> str:
    """What sbatch is given. folder: where submitit puts its files."""
    from submitit.slurm.slurm import _make_sbatch_string

    text: str = _make_sbatch_string(command=command, folder=folder, **parameters)
    return text


def command_of(job: Job) -> str:
    """The batch script's middle: begin, then srun."""
    log = escape(job.shell_folder) + "/ranks/rank-%t.log"
    srun_log = shlex.quote(str(job.folder.slurm)) + '/srun-"$SLURM_JOB_ID".log'
    bind = _cpu_bind(job)
    srun = shlex.join(["srun", *SRUN_ARGUMENTS, *([f"--cpu-bind={bind}"] if bind else [])])
    return "\n".join(
        [
            f'variables=$({_batch(job, "begin")}) || exit "$?"',
            'eval "$variables"',
            "trap : TERM  # the tasks get it too; this script outlives them to say what came of it",
            f"{srun} --output={log} {job.shell_command} 2>> {srun_log}",
            "exit_code=$?",
        ]
    )


def submit(
    job: Job, *, account: str | None, after: str | None = None, first: str | None = None
) -> str:
    """Submit the job and return its id. after, first: as in `parameters_of`.

    Raises:
        ClusterError: Slurm refuses it, and why.
    """
    check_installed()
    import submitit

    parameters = parameters_of(job, account=account, after=after, first=first)
    n_tasks = parameters.pop("map_count", None)
    job.folder.slurm.mkdir(parents=True, exist_ok=True)
    executor = submitit.SlurmExecutor(folder=job.folder.slurm)
    executor.update_parameters(**parameters)
    if n_tasks is not None:
        executor.parameters["map_count"] = n_tasks
    try:
        with outside_of_jobs():
            return str(executor._submit_command(command_of(job)).job_id)
    except submitit.core.utils.FailedJobError as error:
        raise ClusterError(refusal(job.name, str(error))) from error


def refusal(name: str, said: str) -> str:
    """The sentence for a job that sbatch refuses. said: what sbatch printed."""
    lines = [line for line in said.splitlines() if "error:" in line] or [said]
    reason = "; ".join(line.partition("error: ")[2] or line for line in lines)
    return (
        f"Slurm refuses the job '{name}': {reason}. Look at account, partition, qos and sizes in "
        "the profile and in launch.*"
    )


def check_installed() -> None:
    """Raises ConfigError where Slurm's commands are missing."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"Slurm is not installed here ({', '.join(missing)} not found): submit from a login "
            "node, or leave out --cluster and --nodes to train on this machine"
        )


@contextmanager
def outside_of_jobs() -> Iterator[None]:
    """Without the variables of a job that this process may run in, which sbatch would hand on, and
    without sbatch's own, which would override the script.

    What stays: SLURM_CONF, by which commands of some clusters find their controller, and
    SBATCH_ACCOUNT, by which users of some name who pays.
    """
    old = {name: os.environ.pop(name) for name in list(os.environ) if _is_of_a_job(name)}
    try:
        yield
    finally:
        os.environ.update(old)


def _is_of_a_job(name: str) -> bool:
    return name.startswith(("SLURM_", "SLURMD_", "SBATCH_")) and name not in KEPT_VARIABLES


def _dependency(job: Job, after: str | None, first: str | None) -> str | None:
    """A merge starts however its array has ended, unless the array never could start."""
    if after is None:
        return None
    if not job.waits_for_any_end:
        return f"afterok:{after}"
    return f"afterany:{after}" + (f",afterok:{first}" if first else "")


def parallelism(job: Job) -> int | None:
    """How many tasks of an array may run at once; None for a job that is none."""
    if job.n_tasks is None or isinstance(job.config, TrainConfig):
        return None
    return job.config.launch.array_parallelism or job.n_tasks


def _further_options(job: Job) -> dict[str, Any]:
    log = "%A_%a.log" if job.n_tasks else "%j.log"
    return {
        "requeue": True,
        "kill-on-invalid-dep": "yes",
        "chdir": str(Path.cwd()),
        "output": escape(str(job.folder.slurm)) + "/" + log,
        **job.profile.sbatch,
    }


def escape(path: str) -> str:
    """A path in which Slurm sees no pattern."""
    return path.replace("%", "%%")


def _cpu_bind(job: Job) -> str | None:
    """How srun binds tasks: as the profile says, where a job has whole nodes, a task a GPU."""
    shape, profile = job.shape, job.profile
    is_whole = shape.gpus_per_node == shape.processes_per_node == profile.gpus_per_node
    return profile.cpu_bind if is_whole else None


def _setup(job: Job) -> list[str]:
    profile, bind = job.profile, _cpu_bind(job)
    # Since 22.05 sbatch's --cpus-per-task stays with sbatch. A mask or map says it all by itself.
    cpus = "" if bind and bind.startswith(("mask_", "map_")) else str(job.shape.cpus_per_process)
    exports = {
        "SRUN_CPUS_PER_TASK": cpus,
        "OMP_NUM_THREADS": str(job.shape.threads),
        "PALTRAIN_MASTER_SUFFIX": profile.master_suffix,
        **(OFFLINE if profile.offline else {}),
        **profile.environment,
    }
    return [
        *(f"module load {module}" for module in profile.modules),
        *(f"export {name}={shlex.quote(value)}" for name, value in exports.items() if value),
        *profile.setup,
        f"export PYTHONPATH={shlex.quote(str(job.folder.code))}${{PYTHONPATH:+:$PYTHONPATH}}",
    ]


def _batch(job: Job, event: str) -> str:
    """The shell command of the batch script's begin or end."""
    python = shlex.join([sys.executable, "-P", "-m", "cluster.batch", event, str(job.folder.path)])
    return f"{python} {job.role.value}"
