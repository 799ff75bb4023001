"""DeepSpeed ZeRO 0 to 3 behind `Engine`; the only file that names DeepSpeed (0.19).

What DeepSpeed does of its own accord and this file undoes:
- it averages gradients over ranks: the loss is scaled by the world size first;
- its accumulation divides by a configured count and steps on a modulo, while ours varies from step
  to step: `scale_wrt_gas=False`, and the boundary is set on every micro-batch;
- it clips at 1.0 when `gradient_clipping` is absent: it is always given;
- on CPU it compiles a shared-memory extension at start-up (a minute, and a lock if killed):
  switched off, as are its own Adam kernels, by handing it torch's AdamW;
- its checkpoints are bound to the world size: state goes out and in by name, as full tensors.

Where the state lives: ZeRO keeps float32 master copies in flat tensors, one a parameter group (or
sub-group), each rank its piece; Adam's state hangs on those. `_masters` lists them.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paltrain.comm import Comm
from paltrain.errors import ConfigError
from paltrain.train.engine import ParameterState
from paltrain.train.stages import ParameterGroup


class DeepSpeedEngine:
    """See `paltrain.train.engine.Engine`.

    model: `model(batch)` gives an object with `loss_sum`; its trainable parameters require
    gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: list[ParameterGroup],
        comm: Comm,
        *,
        zero_stage: int,
        dtype: str,
        betas: tuple[float, float],
        eps: float,
        max_grad_norm: float,
        param_persistence_threshold: int,
    ) -> None:
        _check(zero_stage, dtype)
        if zero_stage == 1 and dtype == "bfloat16":
            zero_stage = (
                2  # DeepSpeed's stage 1 in bfloat16 is another optimizer; 2 computes the same
            )
        self.comm, self.zero_stage, self.max_grad_norm = comm, zero_stage, max_grad_norm
        self.n_applied_steps = 0
        self._buffer_names = [n for n, _ in model.named_buffers() if n in model.state_dict()]
        self._parameters = dict(model.named_parameters())
        self._sizes = {n: p.numel() for n, p in self._parameters.items() if p.requires_grad}
        self._shapes = {name: p.shape for name, p in self._parameters.items()}
        optimizer = torch.optim.AdamW(
            [
                {
                    "params": [self._parameters[name] for name in group.names],
                    "lr": group.lr,
                    "peak_lr": group.lr,
                    "weight_decay": group.weight_decay,
                }
                for group in groups
            ],
            betas=betas,
            eps=eps,
        )
        self._engine = _initialize(
            model,
            optimizer,
            comm,
            _ds_config(zero_stage, dtype, max_grad_norm, param_persistence_threshold),
        )
        self._make_adam_state()

    @property
    def trainable(self) -> Mapping[str, int]:
        return self._sizes

    def forward_backward(self, batch: Any, *, scale: float, last: bool) -> Tensor:
        self._engine.set_gradient_accumulation_boundary(last)
        loss_sum: Tensor = self._engine(batch).loss_sum
        # A loss of infinity can have finite gradients: made NaN, so that every rank skips the step.
        guard = torch.where(torch.isfinite(loss_sum.detach()), 1.0, torch.nan)
        self._engine.backward(
            loss_sum * (scale * self.comm.world_size) * guard, scale_wrt_gas=False
        )
        return loss_sum.detach()

    def step(self, factor: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]
        if self.zero_stage == 0:
            grad_norm = self._clip_unsharded()
            if not math.isfinite(grad_norm):
                self._engine.zero_grad()
                return grad_norm
        self._engine.step()
        if self.zero_stage > 0:
            grad_norm = float(self._engine.get_global_grad_norm())
        self.n_applied_steps += math.isfinite(grad_norm)
        return grad_norm

    def state(self) -> Iterator[tuple[str, ParameterState]]:
        for name in self._sizes:
            yield name, self._read(self._parameters[name])

    def load_state(self, read: Callable[[str], ParameterState], *, n_applied_steps: int) -> None:
        for name in self._sizes:
            self._write(self._parameters[name], read(name))
        for master in self._masters():
            self._adam_state[master]["step"].fill_(float(n_applied_steps))
        self._spread_masters()
        self.n_applied_steps = n_applied_steps

    def buffers(self) -> dict[str, Tensor]:
        buffers = dict(self._engine.module.named_buffers())
        return {name: buffers[name].detach().cpu().clone() for name in self._buffer_names}

    def load_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        mine = dict(self._engine.module.named_buffers())
        for name, value in buffers.items():
            mine[name].copy_(value)

    def full_weights(self) -> dict[str, Tensor]:
        keep = self.comm.rank == 0
        weights = {}
        for name, parameter in self._parameters.items():
            full = self._gathered(parameter)
            if keep:
                weights[name] = full.detach().to("cpu", copy=True)
        return weights | self.buffers() if keep else {}

    def close(self) -> None:
        self._engine.destroy()

    # -- where ZeRO keeps what --------------------------------------------------------------------

    @property
    def _adam_state(self) -> Any:
        optimizer = self._engine.optimizer
        return optimizer.state if self.zero_stage == 0 else optimizer.optimizer.state

    def _masters(self) -> list[Tensor]:
        """The float32 tensors that AdamW steps on, this rank's pieces."""
        optimizer = self._engine.optimizer
        if self.zero_stage == 3:
            return list(optimizer.fp32_partitioned_groups_flat)
        if self.zero_stage > 0:
            return list(optimizer.single_partition_of_fp32_groups)
        return [self._parameters[name] for name in self._sizes]

    def _make_adam_state(self) -> None:
        """What AdamW would make at its first step: moments of zero and a count each.

        Made at once, for saving before and loading without a step; and ZeRO 1 and 2 link parameters
        to it after the first GROUP has stepped, when the other groups' does not exist yet.
        """
        for master in self._masters():
            self._adam_state[master].update(
                step=torch.tensor(0.0),
                exp_avg=torch.zeros_like(master),
                exp_avg_sq=torch.zeros_like(master),
            )
        if self.zero_stage in (1, 2):
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _read(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        if self.zero_stage == 0:
            moments = self._adam_state[parameter]
            return {
                "param": parameter.detach(),
                "exp_avg": moments["exp_avg"],
                "exp_avg_sq": moments["exp_avg_sq"],
            }
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        return {
            "param": safe_get_full_fp32_param(parameter),
            "exp_avg": safe_get_full_optimizer_state(parameter, "exp_avg"),
            "exp_avg_sq": safe_get_full_optimizer_state(parameter, "exp_avg_sq"),
        }

    def _write(self, parameter: nn.Parameter, state: ParameterState) -> None:
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        moments = {key: state[key] for key in ("exp_avg", "exp_avg_sq")}
        if self.zero_stage == 3:
            # The full setter slices past the end of a tensor whose size the world does not divide.
            safe_set_local_fp32_param(parameter, self._piece(parameter, state["param"]))
            for key, value in moments.items():
                safe_set_local_optimizer_state(parameter, self._piece(parameter, value), key)
        elif self.zero_stage > 0:
            safe_set_full_fp32_param(parameter, state["param"])
            for key, value in moments.items():
                safe_set_full_optimizer_state(parameter, value, key)
        else:
            parameter.data.copy_(state["param"])
            for key, value in moments.items():
                self._adam_state[parameter][key].copy_(value)

    def _piece(self, parameter: Any, full: Tensor) -> Tensor:
        """This rank's piece of a ZeRO-3 parameter, zero-padded at the tensor's end."""
        size = parameter.ds_tensor.numel()
        piece = full.flatten()[size * self.comm.rank : size * (self.comm.rank + 1)]
        return nn.functional.pad(piece, (0, size - piece.numel()))

    def _spread_masters(self) -> None:
        """Bring the weights that the forward pass uses in line with the float32 masters."""
        optimizer = self._engine.optimizer
        if self.zero_stage == 3:
            for sub_group in range(len(optimizer.fp32_partitioned_groups_flat)):
                optimizer._reassign_or_swap_out_partitioned_parameters(sub_group)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
        elif self.zero_stage > 0:
            optimizer.update_lp_params()

    def _gathered(self, parameter: nn.Parameter) -> Tensor:
        if self.zero_stage < 3:
            return parameter
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    def _clip_unsharded(self) -> float:
        parameters = [self._parameters[name] for name in self._sizes]
        norm = nn.utils.clip_grad_norm_(parameters, self.max_grad_norm or math.inf)
        return float(norm)


def _check(zero_stage: int, dtype: str) -> None:
    if zero_stage not in (0, 1, 2, 3):
        raise ConfigError(f"`engine.zero_stage` must be 0, 1, 2 or 3, but is {zero_stage}")
    if zero_stage == 0 and dtype != "float32":
        raise ConfigError(
            "`engine.zero_stage: 0` keeps no float32 master weights, but `model.dtype` is "
            f"{dtype}: choose zero_stage 1, 2 or 3"
        )


def _ds_config(
    zero_stage: int, dtype: str, max_grad_norm: float, param_persistence_threshold: int
) -> dict[str, Any]:
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm if zero_stage > 0 else 0.0,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "zero_optimization": {"stage": zero_stage},
    }
    if zero_stage == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = (
            param_persistence_threshold
        )
    if dtype == "bfloat16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _initialize(
    model: nn.Module, optimizer: torch.optim.Optimizer, comm: Comm, config: dict[str, Any]
) -> Any:
    if comm.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if comm.device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="gloo" if comm.device.type == "cpu" else "nccl",
        auto_mpi_discovery=False,
        verbose=False,
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine
