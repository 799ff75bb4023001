"""A run ready to train, as one rank holds it: what it is made of, where its things lie, the job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from paltrain.data.build import DataPlan
from paltrain.data.lengths import QuestionRenderer
from paltrain.data.loader import Loader
from paltrain.model.modeling import PalModel
from paltrain.run_folder import RunFolder
from paltrain.status import StatusFile
from paltrain.train.export import export_model, stage_record
from paltrain.train.loop import Loop


@dataclass(frozen=True)
class Paths:
    """Where a run's things lie (`paltrain.run_folder` decides)."""

    tokenizer: Path
    checkpoints: Path
    metrics: Path
    bad_samples: Path
    wandb: Path
    model: Path
    status: StatusFile

    @classmethod
    def of(cls, folder: RunFolder) -> Paths:
        return cls(
            tokenizer=folder.tokenizer,
            checkpoints=folder.checkpoints,
            metrics=folder.metrics,
            bad_samples=folder.bad_samples,
            wandb=folder.path,
            model=folder.model,
            status=folder.status,
        )


@dataclass(frozen=True)
class Parts:
    """What a run is made of, before anything is sharded."""

    tokenizer: Any
    render: QuestionRenderer
    model: PalModel
    plan: DataPlan


class TrainingJob:
    """A run ready to train, as one rank holds it. As a context manager it ends what it began."""

    def __init__(self, loop: Loop, loader: Loader, parts: Parts, model_folder: Path) -> None:
        self.comm = loop.comm
        self._loop, self._loader = loop, loader
        self._parts, self._model_folder = parts, model_folder

    @property
    def step(self) -> int:
        return self._loop.progress.step

    @property
    def total_steps(self) -> int:
        return self._loop.settings.total_steps

    def train(self) -> int:
        """See `Loop.run`."""
        return self._loop.run(self._loader)

    def export(self) -> None:
        """Write the model folder (collective)."""
        loop, weights = self._loop, self._loop.engine.full_weights()
        if self.comm.rank == 0:
            stage = stage_record(
                loop.progress.config,
                steps=loop.progress.step,
                steps_per_epoch=loop.settings.steps_per_epoch,
                questions_per_epoch=self._parts.plan.planner.order.n_questions,
                n_trained=sum(loop.engine.trainable.values()),
                code_version=loop.progress.code_version,
            )
            model, tokenizer = self._parts.model, self._parts.tokenizer
            export_model(model, weights, tokenizer, self._model_folder, stage=stage)
        self.comm.barrier()

    def __enter__(self) -> TrainingJob:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loader.close()
        for sink in self._loop.sinks:
            sink.close()
        if error is None:  # after an error other ranks may be gone, and leaving waits for them
            self._loop.engine.close()
            self.comm.close()
