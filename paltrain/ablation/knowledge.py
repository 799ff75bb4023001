"""Whether a configuration has a place for a dotted key: an axis must not make up a stream.

model.streams.sslam.layers    yes       where the run has a stream sslam
                              absent    where it has none: the key is right, but not here
model.streems.sslam.layers    no        nowhere
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

from paltrain.errors import near_hint


class Known(Enum):
    yes = "yes"
    absent = "absent"  # the schema knows it, below an entry (a stream, ...) that is not there
    no = "no"


@dataclass(frozen=True)
class Place:
    """How a key is known; where it is not, it leaves the configuration below the key `parent` with
    the word `name`, which is none of `valid`."""

    known: Known
    parent: str = ""
    name: str = ""
    valid: tuple[str, ...] = ()

    def fault(self, who: str) -> str:
        """What is wrong, what there is instead. who: has no such entry, e.g. "no arm has a"."""
        hint = near_hint(self.name, self.valid)
        if self.known is Known.absent:
            kind = self.parent.rpartition(".")[2]
            there = ", ".join(self.valid) or "none"
            return f"{who} {kind.removesuffix('s')} '{self.name}'{hint}; {kind}: {there}"
        if not self.valid:
            return f"{self.parent} is a value and has no key '{self.name}' below it"
        where = self.parent or "a training run"
        return f"{where} has no key '{self.name}'{hint}; valid there: {', '.join(self.valid)}"


def place_of(config: Any, key: str) -> Place:
    """Whether `key=value` changes something that `config` (an instance of a schema) has, and
    where the key goes wrong."""
    return _walk(type(config), config, (), key.split("."))


def best_of(places: Iterable[Place]) -> Place:
    """How well a key is known to some configurations: by the one that knows it best."""
    places = list(places)
    best = min(places, key=lambda place: list(Known).index(place.known), default=Place(Known.no))
    alike = [place for place in places if place.known is best.known]
    return replace(best, valid=tuple(dict.fromkeys(n for place in alike for n in place.valid)))


def _walk(hint: Any, node: Any, before: Sequence[str], keys: Sequence[str]) -> Place:
    """before: the keys above `node`; keys: those that are left."""
    if not keys or hint is Any:
        return Place(Known.yes)
    key, *rest = keys
    if is_dataclass(hint):
        hints = {name: kind for name, kind in get_type_hints(hint).items() if name != "extends"}
        if key not in hints:
            return Place(Known.no, ".".join(before), key, tuple(hints))
        return _walk(hints[key], getattr(node, key, None), (*before, key), rest)
    if get_origin(hint) is dict:
        return _walk_entry(get_args(hint)[1], node, before, keys)
    plain = [kind for kind in get_args(hint) if kind is not type(None)]
    if len(plain) == 1 and type(None) in get_args(hint):  # T | None
        return _walk(plain[0], node, before, keys)
    return Place(Known.no, ".".join(before), key)


def _walk_entry(element: Any, node: Any, before: Sequence[str], keys: Sequence[str]) -> Place:
    """Below a mapping: entries that are plain values may be made, those with keys of their own
    must be there."""
    if not is_dataclass(element):
        return Place(Known.yes)
    key, *rest = keys
    entries = node if isinstance(node, Mapping) else {}
    below = _walk(element, entries.get(key), (*before, key), rest)
    if key in entries or below.known is Known.no:
        return below
    return Place(Known.absent, ".".join(before), key, tuple(entries))
