"""Audio encoders by type. Each is one module behind `AudioEncoder`, imported when it is asked for.

A further one is a module with such a class and a line in `ENCODERS`; a class of your own needs no
line: its type is where it can be imported from, `my_package.my_module:MyEncoder`. The module
imports torch and transformers only where it builds and encodes: what its `facts` says is asked
where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from inspect import BoundArguments, Parameter, signature
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from paltrain.errors import ConfigError, ModelError, unknown_name

if TYPE_CHECKING:
    from paltrain.encoders.base import AudioEncoder
    from paltrain.encoders.facts import Facts, Files

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
    build = _class_of(type)
    taken = _arguments(type, build, path, revision, options or {})
    encoder: AudioEncoder = build(*taken.args, **taken.kwargs)
    if pool == 1:
        return encoder
    from paltrain.encoders.pooled import PooledEncoder

    return PooledEncoder(encoder, pool)


def encoder_facts(
    type: str,
    *,
    files: Files,
    path: str | None = None,
    revision: str | None = None,
    options: Mapping[str, Any] | None = None,
    pool: int = 1,
) -> Facts:
    """What `build_encoder` of the same arguments will be. Needs no torch, and reads no weights.

    files: reads a JSON file of its folder, by name.

    Raises:
        ConfigError: there is no such type, or it does not take these options.
        ModelError: its files are missing, or another model's.
    """
    described = _class_of(type)
    if not hasattr(described, "facts"):
        raise ConfigError(
            f"encoder type '{type}' does not say its `facts`: give the class that method, as "
            "CONTRIBUTING.md shows, or take another encoder"
        )
    taken = _arguments(type, described, path, revision, options or {})
    taken.apply_defaults()
    arguments = {key: value for key, value in taken.arguments.items() if key != "revision"}
    try:
        facts: Facts = described.facts(files, **arguments)
    except KeyError as error:
        raise ModelError(
            f"encoder '{type}': the configuration files of '{path}' do not say {error}: they are "
            "another model's, or not whole; copy or download them again"
        ) from error
    if pool == 1:
        return facts
    from paltrain.encoders.pooled import pooled_rate_hz

    return replace(facts, frame_rate_hz=pooled_rate_hz(facts, pool))


def _class_of(type: str) -> Any:
    if type not in ENCODERS and ":" not in type:
        raise ConfigError(unknown_name("encoder type", type, [*ENCODERS, "MODULE:CLASS"]))
    module, _, name = _place_of(type).partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        if type in ENCODERS:
            raise
        raise ConfigError(
            f"encoder type '{type}': {error}; it names a class as MODULE:CLASS, importable where "
            "this runs (PYTHONPATH)"
        ) from error


def _place_of(type: str) -> str:
    return ENCODERS.get(type, type)


def _arguments(
    type: str,
    described: Any,
    path: str | None,
    revision: str | None,
    options: Mapping[str, Any],
) -> BoundArguments:
    """What an encoder's class is called with; raises ConfigError where it does not take it."""
    weights = {"path": path, "revision": revision}
    given = {key: value for key, value in weights.items() if value is not None}
    where = f"see {_place_of(type).partition(':')[0]}"
    if weights.keys() & options.keys():
        raise ConfigError(
            f"encoder '{type}': path and revision stand beside options, not in them: move them out"
        )
    taking = signature(described).parameters
    valid = [name for name in taking if name not in weights]
    takes_any = any(each.kind is Parameter.VAR_KEYWORD for each in taking.values())
    for name in options:
        if name not in valid and not takes_any:
            kind = f"option of encoder '{type}'"
            raise ConfigError(f"{unknown_name(kind, name, valid or ['none'])}; {where}")
    try:
        taken = signature(described).bind(**given, **options)
    except TypeError as error:
        raise ConfigError(f"encoder '{type}': {error}; {where}") from error
    checks = _checks_of(described)
    for name in sorted(options.keys() & checks.keys()):
        try:
            checks[name].validate_python(options[name], strict=True)
        except ValidationError as error:
            raise ConfigError(
                f"encoder '{type}': options.{name} is {options[name]!r}: "
                f"{error.errors()[0]['msg']}; {where}"
            ) from error
    return taken


def _checks_of(described: Any) -> dict[str, TypeAdapter[Any]]:
    """By argument of a class, what its hint allows; those whose hints mean nothing here are left
    out."""
    try:
        hints = get_type_hints(described.__init__)
    except NameError:  # names that only a type checker imports
        return {}
    checks = {}
    for name, hint in hints.items():
        with suppress(PydanticUserError):
            checks[name] = TypeAdapter(hint)
    return checks
