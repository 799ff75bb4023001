"""What an importer could not use, with its place and the reason: `rejected.jsonl`, one JSON line
each."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from paltrain.files import write_atomically

MISSING = "missing file"
UNREADABLE = "unreadable recording"
AMBIGUOUS = "ambiguous file name"
BROKEN = "broken line"
EMPTY = "empty label or text"
DUPLICATE = "duplicate"
TWO_SPLITS = "in two splits"
CONTRADICTION = "contradiction"
NO_OPTION = "answer not among the options"

MAX_SHOWN = 3  # of each kind


class Aside:
    """Lines, clips and files that are set aside, in the order in which they were met."""

    def __init__(self) -> None:
        self.entries: list[dict[str, str | int]] = []

    def add(self, kind: str, reason: str, *, file: str, line: int | None = None) -> None:
        """kind: one of this module's names. file: relative to the data set's folder."""
        place: dict[str, str | int] = {"file": _utf8(file)}
        if line is not None:
            place["line"] = line
        self.entries.append({**place, "kind": kind, "reason": _utf8(reason)})

    def write(self, folder: Path) -> None:
        """`folder/rejected.jsonl`; where nothing is set aside, there is none."""
        write_rejected(folder / "rejected.jsonl", self.entries)

    def report(self, folder: Path) -> str:
        """How many of each kind, with the first of each; empty where nothing is set aside."""
        if not self.entries:
            return ""
        by_kind: dict[str | int, list[str]] = defaultdict(list)
        for entry in self.entries:
            by_kind[entry["kind"]].append(f"    {_place(entry)}: {entry['reason']}")
        lines = [f"set aside in {folder / 'rejected.jsonl'}:"]
        for kind, shown in sorted(by_kind.items(), key=lambda item: -len(item[1])):
            lines += [f"  {kind}: {len(shown)}", *shown[:MAX_SHOWN]]
            lines += ["    ..."] if len(shown) > MAX_SHOWN else []
        return "\n".join(lines)


def write_rejected(file: Path, entries: Sequence[Mapping[str, str | int]]) -> None:
    """One JSON line an entry; without entries the file is removed."""
    if not entries:
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
    write_atomically(file, "".join(lines))


def _utf8(text: str) -> str:
    """Names of files may be other bytes; these become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _place(entry: Mapping[str, str | int]) -> str:
    return f"{entry['file']}:{entry['line']}" if "line" in entry else str(entry["file"])
