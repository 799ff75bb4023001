"""Audio encoders by type. Each is one module behind `AudioEncoder`, imported when it is built."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from paltrain.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from paltrain.encoders.base import AudioEncoder

ENCODERS = {
    "clap": "paltrain.encoders.clap:ClapEncoder",
    "logmel": "paltrain.encoders.logmel:LogMelEncoder",
    "sslam": "paltrain.encoders.sslam:SslamEncoder",
    "transformers": "paltrain.encoders.pretrained:TransformersEncoder",
    "whisper": "paltrain.encoders.whisper:WhisperEncoder",
}


def build_encoder(
    type: str,
    *,
    path: str | None = None,
    revision: str | None = None,
    options: Mapping[str, Any] | None = None,
    pool: int = 1,
) -> AudioEncoder:
    """The encoder of a type. path: folder or hub name of its weights; options: of its class; pool:
    so many neighbouring frames are averaged into one.

    Raises:
        ConfigError: there is no such type, or it does not take these options.
        ModelError: its weights cannot be loaded.
    """
    if type not in ENCODERS:
        raise ConfigError(unknown_name("encoder type", type, list(ENCODERS)))
    module, _, name = ENCODERS[type].partition(":")
    build = getattr(import_module(module), name)
    weights = {"path": path, "revision": revision}
    given = {key: value for key, value in weights.items() if value is not None}
    try:
        encoder: AudioEncoder = build(**given, **(options or {}))
    except TypeError as error:
        raise ConfigError(f"encoder '{type}': {error}; see {module}") from error
    if pool == 1:
        return encoder
    from paltrain.encoders.pooled import PooledEncoder

    return PooledEncoder(encoder, pool)
