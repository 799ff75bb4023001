"""What an importer could not use, with its place and the reason: `rejected.jsonl`, one JSON line
each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from paltrain.data.files import write_atomically

MISSING = "missing file"
UNREADABLE = "unreadable recording"
AMBIGUOUS = "ambiguous file name"
BROKEN = "broken line"
EMPTY = "empty label or text"
DUPLICATE = "duplicate"
TWO_SPLITS = "in two splits"
CONTRADICTION = "contradiction"

MAX_SHOWN = 10


class Aside:
    """Lines, clips and files that are set aside, in the order in which they were met."""

    def __init__(self) -> None:
        self.entries: list[dict[str, str | int]] = []

    def add(self, kind: str, reason: str, *, file: str, line: int | None = None) -> None:
        """kind: one of this module's names. file: relative to the data set's folder."""
        place: dict[str, str | int] = (
            {"file": file} if line is None else {"file": file, "line": line}
        )
        self.entries.append({**place, "kind": kind, "reason": reason})

    def write(self, folder: Path) -> None:
        """`folder/rejected.jsonl`; where nothing is set aside, there is none."""
        write_rejected(folder / "rejected.jsonl", self.entries)

    def report(self, folder: Path) -> str:
        """How many of each kind, and the first reasons; empty where nothing is set aside."""
        if not self.entries:
            return ""
        counts = Counter(str(entry["kind"]) for entry in self.entries)
        by_kind = ", ".join(f"{kind} {n}" for kind, n in counts.most_common())
        lines = [f"set aside in {folder / 'rejected.jsonl'}: {by_kind}"]
        lines += [f"  {_place(entry)}: {entry['reason']}" for entry in self.entries[:MAX_SHOWN]]
        more = len(self.entries) - MAX_SHOWN
        return "\n".join(lines + ([f"  and {more} more"] if more > 0 else []))


def write_rejected(file: Path, entries: Sequence[Mapping[str, str | int]]) -> None:
    """One JSON line an entry; without entries the file is removed."""
    if not entries:
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
    write_atomically(file, "".join(lines))


def _place(entry: Mapping[str, str | int]) -> str:
    return f"{entry['file']}:{entry['line']}" if "line" in entry else str(entry["file"])
