"""A saved model is loaded whole or not at all.

`transformers` warns of weights that a folder lacks and leaves those parameters random; of others it
says only that something is wrong. Here a folder whose weights do not fit its `config.json`, a lost
shard or a torn file is refused, and the message names what does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from paltrain.errors import ModelError

N_NAMED = 6  # parameters that a message names


def load_llm(name_or_path: str, *, dtype: torch.dtype) -> PreTrainedModel:
    """A pretrained decoder by folder or hub name."""
    try:
        llm: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"LLM '{name_or_path}' cannot be loaded: {str(error).splitlines()[0]}. Give a folder "
            "that `save_pretrained` wrote, or a hub name that is in the local cache"
        ) from error
    return llm


def load_whole(
    load: Callable[..., Any], folder: str | Path, *arguments: Any, **options: Any
) -> Any:
    """What `load`, a model class's own `from_pretrained`, makes of `folder`.

    Raises:
        ModelError: there is no such folder, a file of it is lost or torn, or its weights are not
            those that its configuration asks for.
    """
    wants_info = options.pop("output_loading_info", False)
    options.setdefault("ignore_mismatched_sizes", True)  # so that they are named below
    try:
        model, info = load(folder, *arguments, output_loading_info=True, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreadable(folder, error) from error
    faults = _faults(info)
    if faults:
        raise ModelError(
            f"the weights in {folder} do not fit its config.json: {'; '.join(faults)}. The folder "
            "was edited or is incomplete: copy it again, or export it again from its run "
            "(tools/export.py)"
        )
    return (model, info) if wants_info else model


def _unreadable(folder: str | Path, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()[0]
    torn = [path.name for path in sorted(Path(folder).glob("*.safetensors")) if not _opens(path)]
    if torn:
        reason = f"{', '.join(torn)} is torn ({reason})"
    return ModelError(
        f"the model in {folder} cannot be loaded: {reason}; copy the whole folder again, export it "
        "again (tools/export.py), or let its run finish"
    )


def _opens(file: Path) -> bool:
    from safetensors import safe_open

    try:
        with safe_open(str(file), framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _faults(info: dict[str, Any]) -> list[str]:
    mismatched = [
        f"{name} ({_shape(saved)} there, {_shape(wanted)} by the configuration)"
        for name, saved, wanted in sorted(info["mismatched_keys"])
    ]
    kinds = {
        "missing": sorted(info["missing_keys"]),
        "not of this form": sorted(info["unexpected_keys"]),
        "of another shape": mismatched,
    }
    return [f"{kind}: {_some(names)}" for kind, names in kinds.items() if names]


def _some(names: Iterable[str]) -> str:
    names = list(names)
    others = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
    return ", ".join(names[:N_NAMED]) + others


def _shape(size: Iterable[int]) -> str:
    return " x ".join(map(str, size))
