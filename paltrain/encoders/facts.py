"""What is known of an encoder before its weights are loaded: frames, width, options. No torch.

Every encoder's class answers it by `facts`, from its options and the small files beside its
weights, and takes its own numbers from there. So plans, checks and `--status` know what a store
will hold on a login node, in milliseconds, and wrong options are refused there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from paltrain.errors import ConfigError, unknown_name

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")  # of torch

Files = Callable[[str], Mapping[str, Any]]  # a JSON file of the encoder's folder, by its name


@dataclass(frozen=True)
class Facts:
    """The numbers of `AudioEncoder`, and further what its stamp and its weights are.

    options: as the stamp keeps them. weights_file: a file of its folder by which weights are found,
    None where it needs none.
    """

    sample_rate_hz: int
    frame_rate_hz: float
    width: int
    tokens_per_step: int = 1
    window_s: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    weights_file: str | None = None


def frames_in_words(stamp: Mapping[str, Any]) -> str:
    """What a store's frames are. stamp: of the store, or of an encoder."""
    rate, cells = float(stamp["frame_rate_hz"]), int(stamp.get("tokens_per_step", 1))
    steps = f" ({rate / cells:g} time steps of {cells} frequency cells)" if cells > 1 else ""
    return f"{rate:g} frames of width {stamp['width']} per second{steps}"


def changed(**options: tuple[Any, Any]) -> dict[str, Any]:
    """name -> (value, default): those that differ, so that a further option does not change the
    stamp of what was made before it."""
    return {name: value for name, (value, default) in options.items() if value != default}


def check_output(type: str, output: str, valid: Iterable[str]) -> None:
    """Raises ConfigError where an encoder has no such output."""
    if output not in valid:
        raise ConfigError(unknown_name(f"output of encoder '{type}'", output, list(valid)))


def check_compute_dtype(name: str) -> None:
    """Raises ConfigError where there is none of this name."""
    if name not in COMPUTE_DTYPES:
        raise ConfigError(unknown_name("compute_dtype", name, list(COMPUTE_DTYPES)))


def need_path(type: str, path: str | None, *, example: str) -> str:
    """Raises ConfigError where an encoder was given no path."""
    if path is None:
        raise ConfigError(f"encoder '{type}' needs its path: a folder or hub name, e.g. {example}")
    return path
