"""Where a configuration's values come from: files, their `extends:`, and the command line.

A layer is (source, values): the file that says them, or `command line`. Layers stand in the order
of merging, so a file's parents come before it. A parent may be reached twice, but never through
itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from paltrain.config.report import COMMAND_LINE, Report, show
from paltrain.errors import near_hint

Layer = tuple[str, Mapping[str, Any]]


def read_layers(path: Path, report: Report, children: tuple[Path, ...] = ()) -> Iterator[Layer]:
    """(source, values) of the parents, then of the file itself; `children` led here."""
    if path.resolve() in [child.resolve() for child in children]:
        chain = " -> ".join(str(each) for each in (*children, path))
        report.add(str(children[-1]), ("extends",), f"goes in a circle: {chain}; take one link out")
        return
    values = _read_yaml(path, report, children)
    parents = values.pop("extends", None) or []
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        sentence = f"must be a path or a list of paths, is {show(parents)}"
        report.add(str(path), ("extends",), sentence)
        parents = []
    for parent in parents:
        yield from read_layers(_relative(path.parent / parent), report, (*children, path))
    yield str(path), values


def _relative(path: Path) -> Path:
    """`path` without `..`, as short as it can be said from here."""
    return Path(os.path.normpath(path))


def _read_yaml(path: Path, report: Report, children: tuple[Path, ...]) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(OmegaConf.load(path)) if path.stat().st_size else {}
    except FileNotFoundError:
        source, key = (str(children[-1]), ("extends",)) if children else (str(path), ())
        report.add(source, key, f"there is no file {path}{_near_file(path)}")
    except (OSError, UnicodeDecodeError) as error:
        report.add(str(path), (), f"cannot be read: {error}")
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        report.add(str(path), (), f"is not valid YAML: {' '.join(str(error).split())}")
    else:
        if isinstance(values, dict) and all(isinstance(key, str) for key in values):
            return cast("dict[str, Any]", values)
        report.add(str(path), (), f"must hold `key: value` lines, holds {show(values)}")
    return {}


def _near_file(path: Path) -> str:
    folder = path.parent
    names = [file.name for file in folder.glob("*.y*ml")] if folder.is_dir() else []
    return near_hint(path.name, names)


def parse_overrides(words: Sequence[str], report: Report) -> Iterator[Layer]:
    """One layer for each `key=value`; the value is read as YAML."""
    for word in words:
        key, equals, _ = word.partition("=")
        if not equals or not key:
            report.add(COMMAND_LINE, (), f"'{word}' must be key=value, e.g. run.seed=1")
        elif key == "extends":
            sentence = "stands in a file; name the parent as a CONFIG instead"
            report.add(COMMAND_LINE, ("extends",), sentence)
        else:
            try:
                values = OmegaConf.to_container(OmegaConf.from_dotlist([word]))
            except (yaml.YAMLError, OmegaConfBaseException) as error:
                message = " ".join(str(error).split())
                report.add(COMMAND_LINE, (key,), f"the value is not valid YAML: {message}")
            else:
                yield COMMAND_LINE, cast("dict[str, Any]", values)
