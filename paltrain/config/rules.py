"""Rules about one value of a configuration: a sentence, and whether a value holds to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from paltrain.config.report import Fault, KeyPath, show
from paltrain.errors import unknown_name

Rule = tuple[str, Callable[[Any], bool]]

AT_LEAST_ONE: Rule = ("must be at least 1", lambda value: value >= 1)
NOT_NEGATIVE: Rule = (
    "must be a finite number of at least 0",
    lambda value: math.isfinite(value) and value >= 0,
)
ABOVE_ZERO: Rule = (
    "must be a finite number above 0",
    lambda value: math.isfinite(value) and value > 0,
)
SHARE: Rule = ("must lie between 0 and 1", lambda value: 0 <= value <= 1)
NOT_EMPTY: Rule = ("must not be empty", lambda value: len(value) > 0)


def look(config: Any, rules: Mapping[str, Rule], prefix: KeyPath = ()) -> Iterator[Fault]:
    """Hold each dotted key of `config` to its rule; null stands for a default and is right."""
    for key, (sentence, holds) in rules.items():
        value, path = config, tuple(key.split("."))
        for name in path:
            value = getattr(value, name)
        if value is not None and not holds(value):
            yield Fault((*prefix, *path), f"{sentence}, is {show(value)}")


def one_of(path: KeyPath, kind: str, name: str, valid: list[str]) -> Iterator[Fault]:
    if name not in valid:
        yield Fault(path, unknown_name(kind, name, valid))
