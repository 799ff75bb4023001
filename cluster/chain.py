"""From a command line to the jobs of a chain: which kind each CONFIG is, and what applies to it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from cluster.hub import made_local
from cluster.job import AnyConfig, Job, folder_of, jobs_of
from cluster.profiles import load_profile
from paltrain.config.layers import read_layers
from paltrain.config.load import load_config, to_yaml
from paltrain.config.report import Report
from paltrain.config.schema import AblationConfig, EvalConfig, FeaturesConfig, TrainConfig
from paltrain.errors import ConfigError

MARK_OF: dict[type[Any], str] = {
    FeaturesConfig: "encoders",
    EvalConfig: "runs",
    AblationConfig: "arms",
}


def read_chain(arguments: argparse.Namespace) -> list[Job]:
    """The jobs that a command line of `tools/launch.py` asks for, in order.

    Raises:
        ConfigError: a configuration is wrong, or two share a folder.
    """
    profile = load_profile(arguments.cluster)
    links = [(path, made_local(config, profile)) for path, config in _configs(arguments)]
    jobs = [
        job
        for path, config in links
        for job in jobs_of(_sized(config, arguments), profile, source=path)
    ]
    _check_folders(links)
    return jobs


def kind_of(path: Path) -> type[Any]:
    """The schema of a configuration file, by the keys that it and what it extends say."""
    report = Report([str(path)])
    keys = {key for _, values in read_layers(path, report) for key in values}
    report.raise_if_any()
    return next((schema for schema, mark in MARK_OF.items() if mark in keys), TrainConfig)


def _configs(arguments: argparse.Namespace) -> list[tuple[Path, AnyConfig]]:
    """Each CONFIG as its schema's object, what an ablation prepares before it; an override goes to
    those that know its key."""
    kinds = {path: kind_of(path) for path in arguments.configs}
    known = {
        word: {kind for kind in kinds.values() if _knows(kind, word.partition("=")[0].split("."))}
        for word in arguments.overrides
    }
    links: list[tuple[Path, AnyConfig]] = []
    for path in arguments.configs:
        kind = kinds[path]
        words = [word for word in arguments.overrides if kind in (known[word] or {kind})]
        config = load_config(kind, [path], words)
        links += [*_prepared(config, links), (path, config)]
    if arguments.show_config:
        print("---\n".join(to_yaml(config) for _, config in links), end="")
        raise SystemExit(0)
    return links


def _prepared(
    config: AnyConfig, before: Sequence[tuple[Path, AnyConfig]]
) -> Iterator[tuple[Path, AnyConfig]]:
    """What an ablation's trials start from, as far as the chain has it not yet."""
    there = {path.resolve() for path, _ in before}
    for path in map(Path, config.prepare if isinstance(config, AblationConfig) else ()):
        if path.resolve() not in there:
            yield path, load_config(kind_of(path), [path])


def _knows(schema: Any, keys: Sequence[str]) -> bool:
    """Whether a dotted key exists in a schema, as far as the schema says."""
    if not keys or not is_dataclass(schema):
        return True
    hints = get_type_hints(schema)
    return keys[0] in hints and _knows(hints[keys[0]], keys[1:])


def _sized(config: AnyConfig, arguments: argparse.Namespace) -> AnyConfig:
    """The configuration with what --nodes and --gpus-per-node say of it."""
    if not isinstance(config, TrainConfig):
        return config
    said = {"nodes": arguments.nodes, "gpus_per_node": arguments.gpus_per_node}
    changes = {key: value for key, value in said.items() if value is not None}
    for key, value in changes.items():
        if value < 1:
            raise ConfigError(f"--{key.replace('_', '-')} must be at least 1, is {value}")
    return replace(config, launch=replace(config.launch, **changes))


def _check_folders(links: Sequence[tuple[Path, AnyConfig]]) -> None:
    """Raises ConfigError where two configurations would share a folder."""
    owners: dict[Path, Path] = {}
    for path, config in links:
        folder = folder_of(config, path).path
        if folder in owners:
            raise ConfigError(
                f"{owners[folder]} and {path} share the folder {folder}: give each its run.name "
                "(a tool's: launch.name)"
            )
        owners[folder] = path
