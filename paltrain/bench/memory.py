"""Peak memory of a step beyond what was there before it (weights, gradients, the batch).

On CUDA the allocator counts. On a CPU the process's resident size says little (allocators keep what
was freed), so the bytes of all tensors born during the step are counted as they come and go: the
same figure, but for scratch space inside kernels. It is exact and repeatable.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

MIB = 2**20


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of storages born while it is entered; `peak` is their most at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._seen = WeakIdKeyDictionary()

    def ignore(self, tensors: Any) -> None:
        """Leave out these tensors, which were there before."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                self._seen[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._track(tensor.untyped_storage())
        return out

    def _track(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen[storage] = True
        n_bytes = storage.nbytes()
        self.live += n_bytes
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, n_bytes).atexit = False

    def _release(self, n_bytes: int) -> None:
        self.live -= n_bytes


def peak_bytes(step: Callable[[], Any], *, there_before: Any, device: torch.device) -> int:
    """Peak bytes that `step` holds beyond `there_before` (tensors in any nesting)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    counter = LiveTensors()
    counter.ignore(there_before)
    with counter:
        step()
    return counter.peak


def how_counted(device: torch.device) -> str:
    return "CUDA allocator" if device.type == "cuda" else "live tensors, without kernels' scratch"
