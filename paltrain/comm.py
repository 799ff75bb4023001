"""The ranks of a run and what they tell each other: one small class over `torch.distributed`.

Every process of a run builds one `Comm` from the variables that a launcher sets (RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR, MASTER_PORT). A process started without them is a world of one. Collectives
are for a handful of numbers or a small object a step; gradients travel inside the engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from paltrain.errors import ClusterError, PaltrainError

T = TypeVar("T")

WORLD_OF_ONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}


@dataclass(frozen=True)
class Comm:
    """One rank's view of the group. device: where its model and its collectives live."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @classmethod
    def from_environment(cls, *, timeout_s: float) -> Comm:
        """Join the group that the environment describes; gloo on CPU, NCCL on CUDA.

        timeout_s: a collective that waits longer raises, since a rank is then lost.
        """
        alone = "RANK" not in os.environ
        if alone:
            os.environ.update(WORLD_OF_ONE)
        rank, world_size, local_rank = (
            int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        )
        cuda = torch.cuda.is_available()
        device = _cuda_device(local_rank) if cuda else torch.device("cpu")
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
            store=cast(Any, dist).HashStore() if alone else None,
            device_id=device if cuda else None,
        )
        return cls(rank, world_size, local_rank, device)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each number added up over the ranks, in float64."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: Sequence[float]) -> list[float]:
        """Each number's largest over the ranks."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def gather(self, value: T) -> list[T]:
        """Every rank's (picklable) object, in rank order, on every rank."""
        gathered: list[T | None] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return cast(list[T], gathered)

    def broadcast(self, value: T | None) -> T:
        """Rank 0's (picklable) object, on every rank."""
        box: list[T | None] = [value]
        dist.broadcast_object_list(box, src=0)
        return cast(T, box[0])

    def rank_0_first(self, act: Callable[[], T]) -> T:
        """Every rank's `act()`, rank 0's before the others'.

        For what makes a file where there is none. A PaltrainError of rank 0 is raised on all.
        """
        result: T | None = None
        fault: PaltrainError | None = None
        if self.rank == 0:
            try:
                result = act()
            except PaltrainError as error:
                fault = error
        (fault,) = self.broadcast((fault,))
        if fault is not None:
            raise fault
        return cast(T, result) if self.rank == 0 else act()

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.sum([0.0])

    def close(self) -> None:
        """Leave the group; later collectives are errors."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _reduce(self, values: Sequence[float], op: dist.ReduceOp.RedOpType) -> list[float]:
        numbers = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(numbers, op=op)
        return cast(list[float], numbers.tolist())


def _cuda_device(local_rank: int) -> torch.device:
    """The rank's GPU, which DeepSpeed finds by LOCAL_RANK as well."""
    device = torch.device("cuda", gpu_of(local_rank, torch.cuda.device_count()))
    torch.cuda.set_device(device)
    os.environ["LOCAL_RANK"] = str(device.index)
    return device


def gpu_of(local_rank: int, n_visible: int) -> int:
    """Of the GPUs that a process sees the one of its number on the node, or the only one: there
    each process sees its own.

    Raises:
        ClusterError: there is none of its number.
    """
    if n_visible > 1 and local_rank >= n_visible:
        raise ClusterError(
            f"process {local_rank} of this node (LOCAL_RANK, from 0) has no GPU of its own: it "
            f"sees {n_visible}; start at most {n_visible} a node (launch.processes_per_node)"
        )
    return local_rank if n_visible > 1 else 0
