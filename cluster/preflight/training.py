"""Preflight of a training run: data, model, what must be importable, folder and room."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cluster.folder import read_lines
from cluster.job import Job
from cluster.preflight.chain import Chain, Findings, Need, Stamp, is_done
from cluster.preflight.context import look_at_context
from cluster.preflight.data import Wanted, look_at_data
from cluster.preflight.model import (
    form_of,
    llm_fields,
    look_at_model,
    start_of,
    stream_specs,
)
from cluster.queue import Queue
from paltrain.config.schema import ConnectorType, Dtype, TrainConfig
from paltrain.data.build import filters_of
from paltrain.errors import ConfigError, PaltrainError
from paltrain.run_folder import check_same

ENGINE_MODULES = {"deepspeed": "deepspeed"}
CHECKPOINT_BYTES = 12  # a trainable parameter: itself and Adam's two averages in float32
EXPORT_BYTES = {Dtype.float32: 4, Dtype.bfloat16: 2}


def look_at_training(job: Job, chain: Chain, findings: Findings) -> None:
    config = job.config
    assert isinstance(config, TrainConfig)
    findings.attempt(partial(_check_folder, job, config))
    if is_done(job):
        findings.good.append("finished already: it is left alone")
        return
    data, filters = config.data, filters_of(config.data)
    tasks = filters.pop("tasks")
    wanted = Wanted(data.manifests, data.split, tasks, filters, data.mixture)
    stores = {name: Path(stream.features) for name, stream in config.model.streams.items()}
    stamps = look_at_data(wanted, stores, job, chain, findings)
    chain.stamps[job.folder.name] = stamps
    findings.warnings += mixed_cells(config, stamps)
    look_at_model(job, stamps, chain, findings)
    _look_at_length(job, config, wanted, stores, chain, findings)
    _look_at_imports(job, config, chain, findings)
    _look_at_size(job, config, stamps, chain, findings)


def _look_at_length(
    job: Job, config: TrainConfig, wanted: Wanted, stores: Mapping[str, Path], chain: Chain,
    findings: Findings,
) -> None:  # fmt: skip
    try:
        llm = llm_fields(job, start_of(job, chain))
    except (PaltrainError, OSError):  # said already
        return
    look_at_context(
        llm,
        stream_specs(config, {}),
        stores,
        wanted,
        consequence="training sets the questions about them aside",
        chain=chain,
        findings=findings,
        most=config.data.max_audio_tokens,
    )


def mixed_cells(config: TrainConfig, stamps: Mapping[str, Stamp | None]) -> Iterator[str]:
    """Where stacked frames are of several time steps and not of all their frequencies.

    Frames of a step stand side by side, low frequencies first: of 8, a stack of 2 or 4 joins
    neighbouring bands, one of 16 two steps; one of 3 the top of a step and the bottom of the next.
    """
    for name, stream in config.model.streams.items():
        cells = int((stamps.get(name) or {}).get("tokens_per_step", 1))
        stack = stream.connector.frame_stack
        if stream.connector.type is ConnectorType.mlp and stack % cells and cells % stack:
            yield (
                f"model.streams.{name}.connector.frame_stack={stack} joins frequencies of "
                f"different time steps: a step has {cells} frames, low frequencies first; take a "
                f"divisor or a multiple of {cells}"
            )


def _check_folder(job: Job, config: TrainConfig) -> None:
    """Raises ConfigError where a launch would refuse the run's folder."""
    folder = job.folder.run
    if config.run.fresh or not folder.path.is_dir():
        return
    if folder.config.exists():
        if not folder.is_untrained or _is_queued(job):
            check_same(folder, config)
    elif any(folder.path.iterdir()):
        raise ConfigError(
            f"{folder.path} exists, but is no run (it has no {folder.config.name}): choose "
            "another run.name, or move it away"
        )


def _is_queued(job: Job) -> bool:
    """Whether a job of the folder may be in the queue: also where Slurm does not answer."""
    lines = list(read_lines(job.folder.jobs))
    queue = Queue.read() if lines else Queue()
    return bool(lines) and (not queue.is_there or any(map(queue.active_id, lines)))


def _look_at_imports(job: Job, config: TrainConfig, chain: Chain, findings: Findings) -> None:
    """The engine, the attention backend and wandb, as far as they are asked for by name."""

    def tell(label: str, remedy: str, said: dict[str, Any]) -> None:
        if "error" in said:
            findings.problems.append(f"{label} cannot be used: {said['error']}{remedy}")
        else:
            version = said["answer"].get("version", "")
            findings.good.append(f"{label} can be imported {version}".rstrip())

    module = ENGINE_MODULES.get(config.engine.name, config.engine.name)
    remedy = f": `{sys.executable} -m pip install {{}}`, in the environment that launches"
    chain.child.ask(
        {"what": "import", "name": module},
        partial(tell, f"engine.name={config.engine.name}", remedy.format(module)),
    )
    backend = config.model.attention_backend
    if backend != "auto":
        device = "cuda" if job.shape.gpus_per_node else "cpu"
        chain.child.ask(
            {"what": "attention", "backend": backend, "device": device,
             "dtype": config.model.dtype.value},
            partial(tell, f"model.attention_backend={backend}", ""),
        )  # fmt: skip
    if config.logging.wandb:
        chain.child.ask(
            {"what": "import", "name": "wandb"},
            partial(tell, "wandb", f"{remedy.format('wandb')}, or set logging.wandb=false"),
        )


def _look_at_size(
    job: Job, config: TrainConfig, stamps: Mapping[str, Stamp | None], chain: Chain,
    findings: Findings,
) -> None:  # fmt: skip
    """What the model is, what of it trains, and how much room both take."""
    try:
        start = start_of(job, chain)
    except (PaltrainError, OSError):  # said already
        findings.unknown.append(
            "what trains, and room for checkpoints: for want of the model it starts from"
        )
        return
    unknown = [name for name in config.model.streams if not stamps.get(name)]

    def tell(said: dict[str, Any]) -> None:
        if "error" in said:
            findings.problems.append(f"the model cannot be built or trained: {said['error']}")
            return
        total, trainable = said["answer"]["n_parameters"], said["answer"]["n_trainable"]
        at_least = f", without the connectors of {', '.join(unknown)}" if unknown else ""
        findings.good.append(f"{trainable:,} of {total:,} parameters train{at_least}")
        n_bytes = (config.checkpoint.keep + 1) * CHECKPOINT_BYTES * trainable
        n_bytes += EXPORT_BYTES[config.model.dtype] * total
        what = f"{config.checkpoint.keep} + 1 checkpoints and the exported model"
        there = 0 if config.run.fresh else _n_bytes_there(job)
        chain.needs.append(Need(job.name, job.folder.path, max(0, n_bytes - there), what))

    chain.child.ask(
        {
            "what": "model",
            "llm": llm_fields(job, start),
            **form_of(config, stamps),
            "trainable": config.stage.trainable,
            "lr_by_pattern": config.optimizer.lr_by_pattern,
        },
        tell,
    )


def _n_bytes_there(job: Job) -> int:
    """What earlier attempts of the run have written of it already."""
    folders = (job.folder.run.checkpoints, job.folder.run.model)
    return sum(
        file.stat().st_size
        for folder in folders
        for file in folder.rglob("*.safetensors")
        if file.is_file()
    )
