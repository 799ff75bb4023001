"""A folder of recordings and a CSV of questions become a manifest.

Columns: `audio` (path under the folder), `question`, `answer`; optional `task` (default: answer),
`split` (default: drawn by recording, so that no recording is in two splits) and `options`
(separated by |; the answer must be one of them, letter by letter). Every recording is decoded,
unless --no-decode says otherwise, so that what is cut off or silent is told at once.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from paltrain.data.importers.aside import BROKEN, EMPTY, Aside
from paltrain.data.importers.ask import Draft
from paltrain.data.importers.collect import Found
from paltrain.data.importers.recordings import AudioFolder
from paltrain.data.importers.rows import read_lines, records
from paltrain.errors import ManifestError, unknown_name

SPLITS = ()  # any
REQUIRED = ("audio", "question", "answer")
OPTIONAL = ("task", "split", "options")
DEFAULT_TASK = "answer"


@dataclass(frozen=True)
class Row:
    """One line of the table that has all it needs."""

    line: int
    audio: str
    split: str | None
    draft: Draft


def read(
    table: Path,
    aside: Aside,
    splits: Sequence[str],
    *,
    audio_dir: Path,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> Iterator[Found]:
    """test_fraction, seed: of the recordings drawn for the test, where no row of theirs names a
    split.

    Raises:
        ManifestError: the table or folder is missing, columns are missing or unknown.
    """
    AudioFolder(audio_dir)
    if not 0 <= test_fraction < 1:
        raise ManifestError(f"--test-fraction must be from 0 up to 1, is {test_fraction}")
    rows = list(_rows(table, aside))
    tested = _drawn(sorted({row.audio for row in rows}), test_fraction, seed)
    named = {row.audio: row.split for row in rows if row.split}
    for row in rows:
        drawn = "test" if row.audio in tested else "train"
        split = row.split or named.get(row.audio, drawn)
        yield Found(row.audio, audio_dir / row.audio, split, (row.draft,), table.name, row.line)


def _rows(table: Path, aside: Aside) -> Iterator[Row]:
    """The rows that have all they need; the others are set aside."""

    def set_aside(line: int, reason: str, kind: str = BROKEN) -> None:
        aside.add(kind, reason, file=table.name, line=line)

    try:
        lines = read_lines(table)
    except ManifestError as error:
        raise ManifestError(f"--table {error}") from error
    columns = _columns(table, lines)
    for number, fields in records(lines, set_aside):
        if number == 1 or not any(fields):
            continue
        if len(fields) != len(columns):
            set_aside(
                number, f"{len(fields)} fields for {len(columns)} columns: quote fields with commas"
            )
            continue
        values = {name: text.strip() for name, text in zip(columns, fields, strict=True)}
        empty = [name for name in REQUIRED if not values[name]]
        if empty:
            set_aside(number, f"no {' and no '.join(empty)}: fill in the field", EMPTY)
            continue
        options = tuple(o.strip() for o in values.get("options", "").split("|") if o.strip())
        task = values.get("task") or DEFAULT_TASK
        draft = Draft(task, values["question"], values["answer"], options or None)
        yield Row(number, values["audio"], values.get("split") or None, draft)


def _columns(table: Path, lines: list[bytes]) -> list[str]:
    header = lines[0].decode("utf-8-sig", errors="replace").strip()
    columns = [name.strip().lower() for name in next(csv.reader([header]), [])]
    for name in columns:
        if name not in REQUIRED + OPTIONAL:
            raise ManifestError(f"{table}: {unknown_name('column', name, [*REQUIRED, *OPTIONAL])}")
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise ManifestError(
            f"{table} has no column {', '.join(missing)}: its first line must name "
            f"{', '.join(REQUIRED)} and may name {', '.join(OPTIONAL)}"
        )
    return columns


def _drawn(audio: Sequence[str], test_fraction: float, seed: int) -> set[str]:
    """The recordings that are kept for the test."""
    return set(Random(seed).sample(audio, round(len(audio) * test_fraction)))
