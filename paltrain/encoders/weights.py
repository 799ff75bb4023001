"""Weights of encoders: loaded from a folder or hub name, refused where they do not fit, hashed.

`transformers` fills weights that a file lacks with random numbers and a warning, and features of
those would be worthless; here they are refused by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors import SafetensorError

from paltrain.errors import ConfigError, ModelError, unknown_name

COMPUTE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
NOT_NEEDED = ("masked_spec_embed", "position_ids", "num_batches_tracked")  # by no forward here
MOST_NAMES = 6
LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)


def compute_dtype_of(name: str) -> torch.dtype:
    """Raises ConfigError where there is none of this name."""
    if name not in COMPUTE_DTYPES:
        raise ConfigError(unknown_name("compute_dtype", name, list(COMPUTE_DTYPES)))
    return COMPUTE_DTYPES[name]


def check_output(type: str, output: str, valid: Iterable[str]) -> None:
    """Raises ConfigError where an encoder has no such output."""
    if output not in valid:
        raise ConfigError(unknown_name(f"output of encoder '{type}'", output, list(valid)))


def need_path(type: str, path: str | None, *, example: str) -> str:
    """Raises ConfigError where an encoder was given no path."""
    if path is None:
        raise ConfigError(f"encoder '{type}' needs its path: a folder or hub name, e.g. {example}")
    return path


def named(
    type: str, *, path: str | None, revision: str | None, options: Mapping[str, tuple[Any, Any]]
) -> dict[str, Any]:
    """What `build_encoder` takes. options: name -> (value, default); defaults are left out, so that
    a further option does not change the stamp of what was made before it."""
    changed = {name: value for name, (value, default) in options.items() if value != default}
    return {"type": type, "path": path, "revision": revision, "options": changed}


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
            f"{listed('missing', missing)}. Give the folder of such a model"
        )
    return model.eval()


def cannot_load(path: str, error: Exception) -> str:
    """The sentence for a folder or hub name that holds no such model."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return (
        f"'{path}' cannot be loaded: {reason}. Give a folder that `save_pretrained` wrote, or a "
        "hub name that is in the local cache"
    )


def listed(what: str, keys: Iterable[str]) -> str:
    """'missing: a, b, c and 12 more'."""
    keys = sorted(keys)
    more = f" and {len(keys) - MOST_NAMES} more" if len(keys) > MOST_NAMES else ""
    return f"{what}: {', '.join(keys[:MOST_NAMES])}{more}"


def hash_of(model: torch.nn.Module) -> str:
    """16 hex digits over names and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        data = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(data.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
