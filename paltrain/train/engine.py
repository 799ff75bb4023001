"""What the loop asks of an engine: whatever shards the model, all it sees is this.

One optimizer step is any number of `forward_backward` calls (the last one says so) and one `step`:

    for i, batch in enumerate(batches, start=1):
        loss += engine.forward_backward(batch, scale=1 / n_targets, last=i == len(batches))
    grad_norm = engine.step(lr_factor)

Gradients are summed over ranks and micro-batches, never averaged. State goes out and in as full
float32 tensors by parameter name, so a checkpoint knows nothing of how the engine shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from paltrain.comm import Comm
from paltrain.config.schema import TrainConfig
from paltrain.errors import ConfigError, unknown_name
from paltrain.train.stages import ParameterGroup

ParameterState = Mapping[str, Tensor]
"""One parameter's `param`, `exp_avg` and `exp_avg_sq`: float32, of the parameter's full shape."""

STATE_KEYS = ("param", "exp_avg", "exp_avg_sq")


class Engine(Protocol):
    """A model that trains on all ranks together. Every method but `trainable` is collective."""

    n_applied_steps: int
    """Steps that moved the weights: Adam's own count, which a skipped step leaves as it was."""

    @property
    def trainable(self) -> Mapping[str, int]:
        """Elements of every trainable parameter, by name, in the model's order."""
        ...

    def forward_backward(self, batch: Any, *, scale: float, last: bool) -> Tensor:
        """Add the gradient of `scale * loss_sum`; returns `loss_sum` (0-d, this rank's, detached).

        last: no further micro-batch of this step follows. Every rank gives equally many.
        """
        ...

    def step(self, factor: float) -> float:
        """Clip and apply the gradients at `factor` times each group's peak learning rate.

        Returns the norm of the gradients before clipping; where that is not finite nothing was
        applied.
        """
        ...

    def state(self) -> Iterator[tuple[str, ParameterState]]:
        """Every trainable parameter's state; a tensor is valid until the next item."""
        ...

    def load_state(self, read: Callable[[str], ParameterState], *, n_applied_steps: int) -> None:
        """Take over the state that `read(name)` gives for every trainable parameter."""
        ...

    def buffers(self) -> dict[str, Tensor]:
        """Persistent buffers by name, on the host."""
        ...

    def load_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Overwrite persistent buffers."""
        ...

    def full_weights(self) -> dict[str, Tensor]:
        """All parameters and persistent buffers, on rank 0's host (elsewhere empty)."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


def build_engine(
    config: TrainConfig, model: nn.Module, groups: list[ParameterGroup], comm: Comm
) -> Engine:
    """The engine that `config.engine.name` asks for. Raises ConfigError for an unknown one."""
    if config.engine.name != "deepspeed":
        raise ConfigError(
            "`engine.name`: " + unknown_name("engine", config.engine.name, ["deepspeed"])
        )
    from paltrain.train.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(
        model,
        groups,
        comm,
        zero_stage=config.engine.zero_stage,
        dtype=config.model.dtype.value,
        betas=(config.optimizer.betas[0], config.optimizer.betas[1]),
        eps=config.optimizer.eps,
        max_grad_norm=config.optimizer.max_grad_norm,
        param_persistence_threshold=config.engine.param_persistence_threshold,
    )
