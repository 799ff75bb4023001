"""A one-process engine in plain PyTorch, a model of two numbers, and steps for it.

For what does not depend on sharding: the loop's guards and signals, the checkpoint's files.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paltrain.comm import WORLD_OF_ONE, Comm
from paltrain.train.engine import ParameterState


@dataclass(frozen=True)
class State:
    """Where the data stand: the number of steps taken."""

    taken: int

    def to_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}


@dataclass(frozen=True)
class Point:
    """A batch: the loss is (line(x) - y) ** 2; y may be NaN."""

    x: float
    y: float
    ids: tuple[str, ...] = ("q",)

    def to(self, device: torch.device) -> Point:
        return self


@dataclass(frozen=True)
class PointStep:
    batches: list[Point | None]
    state_after: State
    n_questions: int = 2
    n_target_tokens: int = 2
    data_wait_s: float = 0.0
    stats: Mapping[str, float] = field(
        default_factory=lambda: {
            "text_tokens": 6.0,
            "audio_tokens": 0.0,
            "imbalance": 1.0,
            "padding_share": 0.0,
        }
    )


def point_steps(*, first: int = 0, bad: frozenset[int] = frozenset()) -> Iterator[PointStep]:
    """Steps without end; those numbered in `bad` hold a NaN in their second micro-batch."""
    number = first
    while True:
        y = math.nan if number in bad else 2.0 * number % 5
        batches: list[Point | None] = [
            Point(1.0, 3.0, (f"good-{number}",)),
            Point(float(number), y, (f"q-{number}",)),
        ]
        yield PointStep(batches, State(number + 1))
        number += 1


class PlainEngine:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(1, 1)
        self.model.register_buffer("seen", torch.zeros(()))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.n_applied_steps = 0
        self.load_state(
            lambda name: {
                "param": dict(self.model.named_parameters())[name].detach().clone(),
                "exp_avg": torch.zeros(1),
                "exp_avg_sq": torch.zeros(1),
            },
            n_applied_steps=0,
        )

    @property
    def trainable(self) -> Mapping[str, int]:
        return {name: p.numel() for name, p in self.model.named_parameters()}

    def forward_backward(self, batch: Point, *, scale: float, last: bool) -> Tensor:
        self.model.seen += 1
        loss = (self.model(torch.tensor([batch.x])) - batch.y).square().sum()
        (loss * scale).backward()
        return loss.detach()

    def step(self, factor: float) -> float:
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), math.inf))
        if math.isfinite(norm):
            self.optimizer.param_groups[0]["lr"] = 0.1 * factor
            self.optimizer.step()
            self.n_applied_steps += 1
        self.optimizer.zero_grad()
        return norm

    def state(self) -> Iterator[tuple[str, ParameterState]]:
        for name, parameter in self.model.named_parameters():
            moments = self.optimizer.state[parameter]
            yield (
                name,
                {"param": parameter.detach(), **{k: moments[k] for k in ("exp_avg", "exp_avg_sq")}},
            )

    def load_state(self, read: Callable[[str], ParameterState], *, n_applied_steps: int) -> None:
        for name, parameter in self.model.named_parameters():
            state = read(name)
            parameter.data.copy_(state["param"].view_as(parameter))
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(n_applied_steps)),
                "exp_avg": state["exp_avg"].view_as(parameter).clone(),
                "exp_avg_sq": state["exp_avg_sq"].view_as(parameter).clone(),
            }
        self.n_applied_steps = n_applied_steps

    def buffers(self) -> dict[str, Tensor]:
        return {"seen": self.model.seen.clone()}

    def load_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        self.model.seen.copy_(buffers["seen"])

    def full_weights(self) -> dict[str, Tensor]:
        return {
            name: p.detach().clone() for name, p in self.model.named_parameters()
        } | self.buffers()

    def close(self) -> None:
        return


@pytest.fixture
def comm():
    """A real group of one."""
    group = Comm.from_environment(timeout_s=30)
    yield group
    group.close()
    for name in WORLD_OF_ONE:
        del os.environ[name]
