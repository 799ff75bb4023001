"""The random generators of a process (torch's, Python's, numpy's) as byte tensors and back."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_state() -> dict[str, Tensor]:
    """Where every generator stands: `torch`, `host` (Python and numpy) and, with a GPU, `cuda`."""
    numpy: Any = np.random.get_state(legacy=True)
    host = json.dumps([random.getstate(), [numpy[0], numpy[1].tolist(), *numpy[2:]]]).encode()
    state = {
        "torch": torch.get_rng_state(),
        "host": torch.frombuffer(bytearray(host), dtype=torch.uint8),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Bring every generator to where `random_state` found it."""
    torch.set_rng_state(state["torch"])
    (version, words, gauss), numpy = json.loads(bytes(state["host"].tolist()))
    random.setstate((version, tuple(words), gauss))
    np.random.set_state((numpy[0], np.array(numpy[1], np.uint32), *numpy[2:]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
