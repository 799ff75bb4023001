"""The faults found in a configuration, and which source said each key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from paltrain.errors import ConfigError

COMMAND_LINE = "command line"
KeyPath = tuple[str, ...]


@dataclass(frozen=True)
class Fault:
    """`sentence` says what is wrong with the key `path` and how to mend it."""

    path: KeyPath
    sentence: str


def show(value: Any) -> str:
    """`value` as a message prints it: short."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass
class Report:
    """The faults so far, and which source said each key."""

    paths: Sequence[str]  # the CONFIGs that were asked for
    faults: list[str] = field(default_factory=list)
    faulty: set[KeyPath] = field(default_factory=set)
    said_by: dict[KeyPath, str] = field(default_factory=dict)

    def add(self, source: str, path: KeyPath, sentence: str) -> None:
        self.faults.append(f"{source}: {'.'.join(path)}{': ' if path else ''}{sentence}")
        self.faulty.add(path)

    def source_of(self, path: KeyPath) -> str:
        """The source that said `path` or what holds it, else the last CONFIG."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.said_by:
                return self.said_by[path[:end]]
        return self.paths[-1] if self.paths else COMMAND_LINE

    def is_faulty(self, path: KeyPath) -> bool:
        """Whether `path` lies in, or directly above, a key that has a fault already."""
        return any(path[: len(key)] == key or key[:-1] == path for key in self.faulty if key)

    def raise_if_any(self) -> None:
        if not self.faults:
            return
        if len(self.faults) == 1:
            raise ConfigError(self.faults[0])
        what = " + ".join(self.paths) or COMMAND_LINE
        lines = "".join(f"\n  {fault}" for fault in self.faults)
        raise ConfigError(f"{len(self.faults)} faults in {what}:{lines}")
