"""Weights of encoders: loaded from a folder or hub name, refused where they do not fit, hashed.

`transformers` fills weights that a file lacks with random numbers and a warning, and features of
those would be worthless; here they are refused by name.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from safetensors import SafetensorError

from paltrain.encoders.facts import check_compute_dtype
from paltrain.errors import ModelError, cannot_load, some_of

NOT_NEEDED = ("masked_spec_embed", "position_ids", "num_batches_tracked")  # by no forward here
LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)


def compute_dtype_of(name: str) -> torch.dtype:
    """Raises ConfigError where there is none of this name."""
    check_compute_dtype(name)
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_part(loader: Any, path: str, *, revision: str | None = None, **options: Any) -> Any:
    """`loader.from_pretrained`: a configuration or feature extractor.

    Raises:
        ModelError: it cannot be loaded.
    """
    try:
        return loader.from_pretrained(path, revision=revision, **options)
    except LOADING_ERRORS as error:
        raise ModelError(cannot_load(path, error)) from error


def load_model(loader: Any, path: str, *, dtype: torch.dtype, revision: str | None = None) -> Any:
    """A `transformers` model for inference, all of whose weights come from its files.

    Raises:
        ModelError: it cannot be loaded, or weights are missing.
    """
    model, info = load_part(loader, path, revision=revision, dtype=dtype, output_loading_info=True)
    missing = [key for key in info["missing_keys"] if not key.endswith(NOT_NEEDED)]
    if missing:
        raise ModelError(
            f"the weights in '{path}' are not those of a {type(model).__name__}: "
            f"missing: {some_of(sorted(missing))}. Give the folder of such a model"
        )
    return model.eval()


def hash_of(model: torch.nn.Module) -> str:
    """16 hex digits over names and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        data = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(data.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
