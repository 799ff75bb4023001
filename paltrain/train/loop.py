"""The training loop: one optimizer step after the other to the last, a signal or a fault.

A step, on every rank alike:

    1. data       the next step of the plan; a rank without a visit runs a dummy
    2. gradients  forward and backward over its micro-batches, loss / the step's target tokens
    3. agree      one all-reduce: the loss of all ranks, and whether any was asked to stop
    4. update     clip and step at this step's learning rate; not finite: skipped and counted
    5. record     metrics.jsonl, console, wandb (rank 0)
    6. save       every so often, at the last step, and when asked to stop

So all ranks save, stop and fail in the same step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from paltrain.comm import Comm
from paltrain.errors import TrainingError
from paltrain.log import get_logger
from paltrain.train.checkpoint import Checkpoints, Progress
from paltrain.train.console import TrainingConsole
from paltrain.train.engine import Engine
from paltrain.train.metrics import peak_memory_gib
from paltrain.train.signals import NOTHING, StopFlag
from paltrain.train.watchdog import Watchdog

log = get_logger(__name__)


class Step(Protocol):
    """What the loader gives for one optimizer step (`paltrain.data.loader.Step`).

    stats, of all ranks together: text_tokens, audio_tokens, imbalance, padding_share.
    """

    @property
    def batches(self) -> Sequence[Any | None]:
        """This rank's micro-batches; None: a dummy."""
        ...

    @property
    def n_questions(self) -> int: ...
    @property
    def n_target_tokens(self) -> int: ...
    @property
    def data_wait_s(self) -> float: ...
    @property
    def state_after(self) -> DataState: ...
    @property
    def stats(self) -> Mapping[str, float]: ...


class DataState(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


class Sink(Protocol):
    """Where records go: metrics.jsonl, wandb."""

    def write(self, record: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class TokenFlops:
    """Training FLOPs of a text and of an audio token, and one device's peak (None: unknown)."""

    text: float
    audio: float
    peak_tflops: float | None

    def mfu(
        self, *, n_text: float, n_audio: float, step_time_s: float, world_size: int
    ) -> float | None:
        """The share of the devices' peak that the step's matrix products used."""
        if self.peak_tflops is None:
            return None
        useful = n_text * self.text + n_audio * self.audio
        return useful / (step_time_s * world_size * self.peak_tflops * 1e12)


@dataclass(frozen=True)
class LoopSettings:
    """lr_factor: of the 0-based step, times `peak_lr`. steps_per_epoch: for the `epoch` column."""

    total_steps: int
    steps_per_epoch: int
    save_every_steps: int
    max_nonfinite_steps: int
    lr_factor: Callable[[int], float]
    peak_lr: float
    flops: TokenFlops


@dataclass
class Loop:
    """Everything a step needs.

    progress: where the run stands. dummy: makes an empty batch. stop: has caught signals since the
    process began, if its caller entered it.
    """

    engine: Engine
    comm: Comm
    checkpoints: Checkpoints
    settings: LoopSettings
    progress: Progress
    dummy: Callable[[], Any]
    sinks: Sequence[Sink]
    console: TrainingConsole
    stop: StopFlag = field(default_factory=StopFlag)
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(timeout_s=1800.0))

    def run(self, steps: Iterator[Step]) -> int:
        """Train to the last step; returns NOTHING, or what a signal asked for after saving.

        Raises TrainingError on every rank after too many non-finite steps, CheckpointError if one
        cannot save.
        """
        with self.stop, self.watchdog, self.console:
            while self.progress.step < self.settings.total_steps:
                started = time.perf_counter()
                step = next(steps)  # 1
                losses = self._gradients(step)  # 2
                loss, wanted = self._agree(losses, step)  # 3
                grad_norm = self._update()  # 4
                self.progress = self._after(step)
                self._guard(loss, grad_norm, losses, step)
                self._record(step, loss, grad_norm, time.perf_counter() - started)  # 5
                if self._is_due() or wanted:  # 6
                    self.checkpoints.save(self.engine, self.progress)
                self.watchdog.step_done()
                if wanted:
                    return wanted
        return NOTHING

    def _gradients(self, step: Step) -> list[float]:
        """The loss sums of this rank's micro-batches."""
        losses = []
        for i, batch in enumerate(step.batches):
            batch = self.dummy() if batch is None else batch
            last = i == len(step.batches) - 1
            on_device = batch.to(self.comm.device)
            scale = 1.0 / max(step.n_target_tokens, 1)
            losses.append(self.engine.forward_backward(on_device, scale=scale, last=last))
        return [float(loss) for loss in losses]

    def _agree(self, losses: list[float], step: Step) -> tuple[float, int]:
        asked = [float(self.stop.wanted == kind) for kind in (1, 2)]
        loss_sum, *any_asked = self.comm.sum([sum(losses), *asked])
        wanted = max(
            (kind for kind, n in zip((1, 2), any_asked, strict=True) if n), default=NOTHING
        )
        return loss_sum / max(step.n_target_tokens, 1), wanted

    def _update(self) -> float:
        return self.engine.step(self.settings.lr_factor(self.progress.step))

    def _after(self, step: Step) -> Progress:
        return replace(
            self.progress,
            step=self.progress.step + 1,
            data=step.state_after.to_dict(),
            n_applied_steps=self.engine.n_applied_steps,
        )

    def _guard(self, loss: float, grad_norm: float, losses: list[float], step: Step) -> None:
        """Count a step that was skipped; raise when there were too many."""
        if math.isfinite(grad_norm):
            return
        n = self.progress.n_nonfinite + 1
        self.progress = replace(self.progress, n_nonfinite=n)
        suspects = self._suspects(losses, step)
        what = f"step {self.progress.step} had loss {loss} and gradient norm {grad_norm}"
        if n > self.settings.max_nonfinite_steps:
            raise TrainingError(
                f"{what}: {n} steps were not finite, over "
                f"engine.max_nonfinite_steps={self.settings.max_nonfinite_steps}; lower "
                f"optimizer.lr, or look at these samples: {suspects}"
            )
        log.warning("%s and was skipped (%d so far); its samples: %s", what, n, suspects)

    def _suspects(self, losses: list[float], step: Step) -> str:
        """Ids of the questions in micro-batches with a non-finite loss, else of all."""
        pairs = [(loss, batch) for loss, batch in zip(losses, step.batches, strict=True) if batch]
        bad = [batch.ids for loss, batch in pairs if not math.isfinite(loss)]
        gathered = self.comm.gather((bad, [batch.ids for _, batch in pairs]))
        groups = [ids for bad, _ in gathered for ids in bad] or [
            ids for _, all_ in gathered for ids in all_
        ]
        names = [name for ids in groups for name in ids]
        return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")

    def _record(self, step: Step, loss: float, grad_norm: float, step_time_s: float) -> None:
        if self.comm.rank != 0:
            return
        settings, n, stats = self.settings, self.progress.step, step.stats
        record = {
            "step": n,
            "epoch": n / settings.steps_per_epoch,
            "loss": loss,
            "grad_norm": grad_norm,
            "lr": settings.peak_lr * settings.lr_factor(n - 1),
            "step_time_s": step_time_s,
            "questions_per_s": step.n_questions / step_time_s,
            "text_tokens_per_s": stats["text_tokens"] / step_time_s,
            "audio_tokens_per_s": stats["audio_tokens"] / step_time_s,
            "target_tokens": step.n_target_tokens,
            "data_wait_share": step.data_wait_s / step_time_s,
            "padding_share": stats["padding_share"],
            "rank_imbalance": stats["imbalance"],
            "mfu": settings.flops.mfu(
                n_text=stats["text_tokens"],
                n_audio=stats["audio_tokens"],
                step_time_s=step_time_s,
                world_size=self.comm.world_size,
            ),
            "peak_tflops": settings.flops.peak_tflops,
            "peak_memory_gib": peak_memory_gib(self.comm.device),
            "nonfinite_steps": self.progress.n_nonfinite,
        }
        for sink in self.sinks:
            sink.write(record)
        self.console.show(record)

    def _is_due(self) -> bool:
        n = self.progress.step
        return n % self.settings.save_every_steps == 0 or n == self.settings.total_steps
