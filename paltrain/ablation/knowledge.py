"""Whether a configuration has a place for a dotted key: an axis must not make up a stream.

model.streams.sslam.layers    yes       where the run has a stream sslam
                              absent    where it has none: the key is right, but not here
model.streems.sslam.layers    no        nowhere
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints


class Known(Enum):
    yes = "yes"
    absent = "absent"  # the schema knows it, below an entry (a stream, ...) that is not there
    no = "no"


def known_to(config: Any, key: str) -> Known:
    """Whether `key=value` changes something that `config` (an instance of a schema) has."""
    return _walk(type(config), config, key.split("."))


def _walk(hint: Any, node: Any, keys: Sequence[str]) -> Known:
    if not keys or hint is Any:
        return Known.yes
    key, *rest = keys
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        if key not in hints or key == "extends":
            return Known.no
        return _walk(hints[key], getattr(node, key, None), rest)
    if get_origin(hint) is dict:
        return _walk_entry(get_args(hint)[1], node, key, rest)
    plain = [kind for kind in get_args(hint) if kind is not type(None)]
    if len(plain) == 1 and type(None) in get_args(hint):  # T | None
        return _walk(plain[0], node, keys)
    return Known.no


def _walk_entry(element: Any, node: Any, key: str, rest: Sequence[str]) -> Known:
    """Below a mapping: entries that are plain values may be made, those with keys of their own
    must be there."""
    if not is_dataclass(element):
        return Known.yes
    is_there = isinstance(node, Mapping) and key in node
    below = _walk(element, node[key] if is_there else None, rest)
    return below if is_there or below is Known.no else Known.absent
