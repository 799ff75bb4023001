"""A run as a Slurm job: its sbatch text (a pure function) and its submission, by submitit.

One task per device. `srun --kill-on-bad-exit=1 --wait=60` ends all tasks when one fails; exit code
85 (saved, not finished) puts the job back into the queue.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from cluster.profiles import Profile, Shape
from paltrain.errors import ConfigError
from paltrain.train.signals import EXIT_REQUEUE

SRUN_ARGUMENTS = ("--kill-on-bad-exit=1", "--wait=60")
TEARDOWN = (
    "exit_code=$?",
    f'if [ "$exit_code" -eq {EXIT_REQUEUE} ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
    'exit "$exit_code"',
)


def slurm_parameters(
    profile: Profile, shape: Shape, *, job_name: str, account: str | None, after: str | None = None
) -> dict[str, Any]:
    """submitit's parameters of a job (time in minutes).

    after: id of the job that must succeed before this one.
    """
    cpus_per_task = max(
        1, (profile.cpus_per_node or shape.processes_per_node) // shape.processes_per_node
    )
    parameters: dict[str, Any] = {
        "job_name": job_name,
        "partition": profile.partition,
        "qos": profile.qos,
        "account": account,
        "nodes": shape.nodes,
        "ntasks_per_node": shape.processes_per_node,
        "cpus_per_task": cpus_per_task,
        "gres": profile.gres,
        "gpus_per_node": None if profile.gres else profile.gpus_per_node,
        "mem": f"{profile.mem_gb_per_node:g}GB" if profile.mem_gb_per_node else None,
        "time": profile.time_min,
        "signal_delay_s": profile.signal_delay_s,
        "dependency": f"afterok:{after}" if after else None,
        "stderr_to_stdout": True,
        "srun_args": list(SRUN_ARGUMENTS),
        "setup": _setup(profile, cpus_per_task, shape.threads),
        "teardown": list(TEARDOWN),
        "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes"},
    }
    known = {key: value for key, value in parameters.items() if value is not None}
    return {**known, "wckey": None}  # submitit's own default is a key that clusters may refuse


def sbatch_text(parameters: dict[str, Any], *, folder: Path) -> str:
    """What sbatch would be given; `folder` is where submitit puts its files."""
    from submitit.slurm.slurm import _make_sbatch_string

    command = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(folder)])
    text: str = _make_sbatch_string(command=command, folder=folder, **parameters)
    return text


def submit(parameters: dict[str, Any], *, run_folder: Path, folder: Path) -> str:
    """Submit the run; returns the job's id. Raises ConfigError if Slurm refuses it."""
    check_installed()
    import submitit

    from cluster.slurm_task import run_task

    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(**parameters)
    try:
        return str(executor.submit(run_task, str(run_folder)).job_id)
    except submitit.core.utils.FailedJobError as error:
        raise ConfigError(
            f"Slurm refused the job: {error}; look at partition, account, qos and sizes in the "
            "profile"
        ) from error


def check_installed() -> None:
    """Raises ConfigError where Slurm's commands are missing."""
    missing = [name for name in ("sbatch", "srun", "scontrol") if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"Slurm is not installed here ({', '.join(missing)} not found): submit from a login "
            "node, or leave out --cluster and --nodes to train on this machine"
        )


def _setup(profile: Profile, cpus_per_task: int, threads: int) -> list[str]:
    exports = {
        "SRUN_CPUS_PER_TASK": str(
            cpus_per_task
        ),  # since 22.05 sbatch's --cpus-per-task stays with sbatch
        "OMP_NUM_THREADS": str(threads),
        "PALTRAIN_MASTER_SUFFIX": profile.master_suffix,
        **profile.environment,
    }
    return [
        *(f"module load {module}" for module in profile.modules),
        *(f"export {name}={shlex.quote(value)}" for name, value in exports.items() if value),
        *profile.setup,
    ]
