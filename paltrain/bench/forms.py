"""The training step of each form of an ablation: time, peak memory, size (a builder).

Method: each form's model is what its last stage has trained, with what that stage trains marked;
all forms are fed the very same micro-batches, the first step of the first form's training data,
collated for each form's own streams. A step is forward and backward of all of them, optimizer
apart. Forms take turns, so that a slow moment of the machine meets all of them; a time is the
median over the rounds. On a GPU only the model whose turn it is lies there, and an untimed step
comes before the timed one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from paltrain.batch import Batch
from paltrain.bench.memory import MIB, how_counted, peak_bytes
from paltrain.bench.record import (
    FORM_MEMORY,
    FORM_PARAMETERS,
    FORM_TIME,
    FORM_TRAINED,
    BenchRow,
    describe_machine,
)
from paltrain.comm import Comm
from paltrain.config.load import load_config
from paltrain.config.schema import TrainConfig
from paltrain.data.collate import BadSample, Collator
from paltrain.data.plan import Visit
from paltrain.errors import ConfigError, ModelError, TrainingError
from paltrain.model.modeling import PalModel
from paltrain.run_folder import RunFolder
from paltrain.train.build import make_parts
from paltrain.train.job import Parts, Paths
from paltrain.train.stages import set_trainable

MicroBatches = list[list[Visit]]


@dataclass(frozen=True)
class Form:
    """A name, and the finished run whose model and stage are measured."""

    name: str
    run: Path


@dataclass
class Arm:
    """A form's model with its own view of the micro-batches."""

    name: str
    model: PalModel
    batches: list[Batch]

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def n_trained(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def step(self) -> None:
        """Forward and backward of all micro-batches."""
        for batch in self.batches:
            torch.autograd.backward(self.model(batch).loss_sum)

    def zero_gradients(self) -> None:
        """Gradients are there before a step, as under accumulation."""
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)

    def held(self) -> list[Tensor]:
        """What is there before a step."""
        parameters = list(self.model.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        features = [f.values for batch in self.batches for f in batch.features.values()]
        ids = [batch.token_ids for batch in self.batches]
        return [*parameters, *gradients, *self.model.buffers(), *features, *ids]

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """With model and batches there, gradients zero; afterwards the model is where it was."""
        here = self.batches
        self.model.to(device)
        self.batches = [batch.to(device) for batch in here]
        self.zero_gradients()
        try:
            yield
        finally:
            self.model.zero_grad(set_to_none=True)
            self.model.to("cpu")
            self.batches = here


def measure_forms(
    forms: Sequence[Form], *, n_rounds: int = 10, threads: int | None = None
) -> tuple[list[BenchRow], str]:
    """Rows of each form, and the machine. The first form's data are what all are fed.

    Raises:
        ConfigError: no forms, or forms trained on other manifests than the first.
        ModelError: a run has no exported model.
    """
    if not forms:
        raise ConfigError("no form has a trained model yet: run the ablation's trials first")
    torch.set_num_threads(threads or torch.get_num_threads())
    comm = Comm.from_environment(timeout_s=600)
    try:
        arms, what = _build(forms, comm)
        seconds = _time_in_turns(arms, comm.device, n_rounds=n_rounds)
        memory = {arm.name: _peak(arm, comm.device) for arm in arms}
        machine = describe_machine(device=comm.device.type)
    finally:
        comm.close()
    counted = how_counted(comm.device)
    rows = [row for arm in arms for row in _rows(arm, seconds, memory, what, counted)]
    return rows, machine


def _rows(
    arm: Arm, seconds: dict[str, float], memory: dict[str, int], what: str, counted: str
) -> list[BenchRow]:
    def row(metric: str, value: float, unit: str, reference: str | None = None) -> BenchRow:
        return BenchRow(f"{metric}.{arm.name}", value, unit, reference)

    return [
        row(FORM_TRAINED, arm.n_trained, "parameters"),
        row(FORM_PARAMETERS, arm.n_parameters, "parameters"),
        row(FORM_TIME, seconds[arm.name], "s", what),
        row(FORM_MEMORY, memory[arm.name] / MIB, "MiB", counted),
    ]


def _build(forms: Sequence[Form], comm: Comm) -> tuple[list[Arm], str]:
    """Every form's arm, and the workload in words."""
    arms: list[Arm] = []
    micro_batches, fingerprint, n_questions = MicroBatches(), "", 0
    for form in forms:
        config, parts = _parts(form, comm)
        if not arms:
            plan = parts.plan.planner.step(parts.plan.planner.start(), world_size=1)
            micro_batches = [visits for visits in plan.of_rank(0) if visits]
            fingerprint, n_questions = parts.plan.corpus.fingerprint, plan.n_questions
        elif parts.plan.corpus.fingerprint != fingerprint:
            raise ConfigError(
                f"{form.name} was trained on other manifests than {forms[0].name}: steps can be "
                "compared on the same questions only"
            )
        set_trainable(parts.model, config.stage.trainable)
        arms.append(Arm(form.name, parts.model.train(), _collated(config, parts, micro_batches)))
    return arms, f"a step has {n_questions} questions, micro-batches: {len(micro_batches)}"


def _parts(form: Form, comm: Comm) -> tuple[TrainConfig, Parts]:
    """A run's configuration, and its parts with the model that it has exported."""
    folder = RunFolder(form.run)
    if not (folder.model / "config.json").is_file():
        raise ModelError(f"no exported model in {folder.path}: let its run finish")
    config = load_config(TrainConfig, [folder.config])
    return config, make_parts(config, comm, Paths.of(folder), folder.model)


def _collated(config: TrainConfig, parts: Parts, micro_batches: MicroBatches) -> list[Batch]:
    plan = parts.plan
    assert plan.lengths is not None, "a run's parts have a length table"
    collate = Collator(
        corpus=plan.corpus,
        render=parts.render,
        lengths=plan.lengths.rows,
        streams=list(plan.streams.values()),
        on_bad=_refuse,
        reader_threads=config.data.reader_threads,
    )
    try:
        return [collate(visits) for visits in micro_batches]
    finally:
        collate.close()


def _refuse(sample: BadSample) -> None:
    raise TrainingError(f"a clip cannot be read, so arms would not do the same: {sample.reason}")


def _time_in_turns(arms: Sequence[Arm], device: torch.device, *, n_rounds: int) -> dict[str, float]:
    """Median seconds of a step by arm. Of the first round nothing counts."""
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for round_ in range(n_rounds + 1):
        for arm in arms:
            with arm.on(device):
                if device.type == "cuda":
                    arm.step()
                    torch.cuda.synchronize(device)
                start = time.perf_counter()
                arm.step()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if round_:
                    seconds[arm.name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _peak(arm: Arm, device: torch.device) -> int:
    with arm.on(device):
        return peak_bytes(arm.step, there_before=arm.held(), device=device)
