"""YAML files and `key=value` words become one checked dataclass.

1. Each file's `extends:` is followed, parents first (`paltrain.config.layers`);
2. the layers, then the command line, are merged into the schema leaf by leaf (mappings merge by
   key, everything else is replaced); what does not fit is written down and the merge goes on;
3. keys that must be said and were not are written down;
4. the schema's checks (`paltrain.config.validate`) look at what belongs together.

So a user sees every fault of a configuration at once, each with the file or `command line` that
says it, its dotted key, its value and the remedy. `${key}` and `${oc.env:NAME}` are resolved.
Costs milliseconds; imports no torch.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from paltrain.config.layers import parse_overrides, read_layers
from paltrain.config.report import Fault, KeyPath, Report, show
from paltrain.config.validate import faults_of
from paltrain.errors import near_hint
from paltrain.files import write_atomically

T = TypeVar("T")


def load_config(
    schema: type[T],
    paths: Sequence[Path | str] = (),
    overrides: Sequence[str] = (),
    *,
    check: Callable[[Any], Iterable[Fault]] = faults_of,
) -> T:
    """The configuration that `paths` (merged in order) and `overrides` (`key=value`) describe.

    schema: a dataclass. check: names what cannot go together, given an instance of `schema`.
    Raises ConfigError with all faults.
    """
    report = Report([str(path) for path in paths])
    layers = [layer for path in paths for layer in read_layers(Path(path), report)]
    all_were_read = not report.faults
    tree = OmegaConf.structured(schema)
    for source, values in [*layers, *parse_overrides(overrides, report)]:
        _Merge(source, report).mapping(tree, schema, values, ())
    config = _settle(tree, check, report) if all_were_read else None
    report.raise_if_any()
    return cast("T", config)


def to_yaml(config: Any) -> str:
    """The configuration as YAML that `load_config` reads back to an equal one."""
    values = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(values, dict)
    values.pop("extends", None)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def save_config(config: Any, path: Path | str) -> None:
    """Write `to_yaml(config)`; a reader sees the old file or the whole new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_yaml(config))


# ---- 2. merge ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Merge:
    """Merges one source's values into the tree; what does not fit goes to the report."""

    source: str
    report: Report

    def mapping(
        self, node: DictConfig, hint: Any, values: Mapping[Any, Any], path: KeyPath
    ) -> None:
        """Merge `values` into `node`, whose type is `hint`: a dataclass or dict[str, element]."""
        hints = get_type_hints(hint) if is_dataclass(hint) else None
        for key, value in values.items():
            here = (*path, str(key))
            if hints is None:
                self._entry(node, str(key), get_args(hint)[1], value, here)
            elif key in hints and here != ("extends",):
                self._entry(node, key, hints[key], value, here)
            else:
                valid = [name for name in hints if name != "extends"]
                self.report.add(self.source, here, _unknown_key(str(key), value, valid))

    def _entry(self, node: DictConfig, key: str, hint: Any, value: Any, path: KeyPath) -> None:
        kind = _without_none(hint)
        self.report.said_by[path] = self.source
        if isinstance(value, Mapping) and (is_dataclass(kind) or get_origin(kind) is dict):
            if node.get(key) is None:
                node.merge_with({key: {}})
            self.mapping(node[key], kind, value, path)
        elif kind is str and isinstance(value, bool):
            self._refuse(path, hint, value)
        else:
            self._leaf(node, key, hint, value, path)

    def _leaf(self, node: DictConfig, key: str, hint: Any, value: Any, path: KeyPath) -> None:
        try:
            if hint is Any:
                node[key] = value
            else:
                node.merge_with({key: value})
        except OmegaConfBaseException as error:
            if isinstance(value, str) and "${" in value:
                sentence = f"{show(value)} cannot be resolved: {str(error).splitlines()[0]}"
                self.report.add(self.source, path, sentence)
            else:
                self._refuse(path, hint, value)

    def _refuse(self, path: KeyPath, hint: Any, value: Any) -> None:
        near = _near_choice(hint, value)
        self.report.add(self.source, path, f"must be {_expected(hint)}, is {show(value)}{near}")


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else hint
    return hint


def _expected(hint: Any) -> str:
    """What a value of type `hint` looks like to a person."""
    kind, origin = _without_none(hint), get_origin(_without_none(hint))
    plain = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    if kind in plain:
        said = plain[kind]
    elif isinstance(kind, type) and issubclass(kind, Enum):
        said = "one of " + ", ".join(member.name for member in kind)
    elif origin is list:
        said = f"a list, each {_expected(get_args(kind)[0])}"
    else:
        said = "a mapping (`key: value` lines)"
    return said if kind is hint else f"{said}, or null"


def _near_choice(hint: Any, value: Any) -> str:
    kind = _without_none(hint)
    if not (isinstance(kind, type) and issubclass(kind, Enum) and isinstance(value, str)):
        return ""
    return near_hint(value.lower(), [member.name for member in kind])


def _unknown_key(key: str, value: Any, valid: list[str]) -> str:
    hint = near_hint(key, valid)
    return f"unknown key{hint}, set to {show(value)}; valid here: {', '.join(valid)}"


# ---- 3. what must be said, 4. what belongs together --------------------------------------


def _settle(tree: DictConfig, check: Callable[[Any], Iterable[Fault]], report: Report) -> Any:
    """The tree as an instance of its schema, after reporting what is unsettled or cannot work."""
    _report_unsettled(tree, report)
    config = OmegaConf.to_object(tree)
    for fault in check(config):
        if not report.is_faulty(fault.path):
            report.add(report.source_of(fault.path), fault.path, fault.sentence)
    return config


def _report_unsettled(tree: DictConfig, report: Report) -> None:
    """Report keys that were not said or name what does not exist.

    A stand-in is put there, so that the checks can look at all the rest.
    """
    for path, fault in list(_unsettled(tree, ())):
        if fault is not None:
            report.add(report.source_of(path), path, fault)
        elif not report.is_faulty(path):
            sentence = f"must be said: in a file, or {'.'.join(path)}=... on the command line"
            report.add(report.source_of(path), path, sentence)
        _fill(tree, path)


def _unsettled(node: DictConfig, path: KeyPath) -> Iterator[tuple[KeyPath, str | None]]:
    """(path, None) of each missing key, (path, why) of each `${...}` that cannot be resolved."""
    for key in map(str, node):
        here = (*path, key)
        if OmegaConf.is_missing(node, key):
            yield here, None
            continue
        try:
            value = node[key]
            if isinstance(value, ListConfig):
                OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException as error:
            yield here, f"cannot be resolved: {str(error).splitlines()[0]}"
        else:
            if isinstance(value, DictConfig) and not OmegaConf.is_interpolation(node, key):
                yield from _unsettled(value, here)


def _fill(tree: DictConfig, path: KeyPath) -> None:
    node: Any = tree
    for key in path[:-1]:
        node = node[key]
    stand_ins: tuple[Any, ...] = ("unsaid", ["unsaid"], 1, False, {})
    for stand_in in stand_ins:
        try:
            node.merge_with({path[-1]: stand_in})
        except OmegaConfBaseException:
            continue
        return
