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

from paltrain.errors import ModelError, cannot_load, first_line, some_of

LOADING_ERRORS = (OSError, ValueError, SafetensorError)


def load_llm(name_or_path: str, *, dtype: torch.dtype) -> PreTrainedModel:
    """A pretrained decoder by folder or hub name.

    Weights that its architecture does not have are left unread, as some released folders hold them.

    Raises:
        ModelError: it cannot be loaded, or weights are missing or of other shapes.
    """
    llm: PreTrainedModel
    try:
        llm, info = AutoModelForCausalLM.from_pretrained(
            name_or_path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except LOADING_ERRORS as error:
        raise ModelError(cannot_load(name_or_path, error, what="LLM")) from error
    if faults := _faults({**info, "unexpected_keys": ()}):
        raise ModelError(
            f"the weights of LLM '{name_or_path}' do not fit its config.json: {'; '.join(faults)}. "
            "Its folder is incomplete or another model's: download or copy it again"
        )
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
    except LOADING_ERRORS as error:
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
    reason = first_line(error)
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
    return [f"{kind}: {some_of(names)}" for kind, names in kinds.items() if names]


def _shape(size: Iterable[int]) -> str:
    return " x ".join(map(str, size))
