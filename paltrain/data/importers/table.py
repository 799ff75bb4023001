"""A folder of recordings and a CSV of questions become a manifest.

Columns: `audio` (path under the folder), `question`, `answer`; optional `task` (default: answer),
`split` (default: drawn by recording, so that no recording is in two splits) and `options`
(separated by |). A row that cannot be used is set aside in `rejected.jsonl` with its line and
reason.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from paltrain.data.importers.aside import write_rejected
from paltrain.data.importers.rows import read_lines, records
from paltrain.data.manifest import Clip, Question, write_manifest
from paltrain.encoders.audio import is_silent, load_audio
from paltrain.errors import AudioError, ManifestError, unknown_name

REQUIRED = ("audio", "question", "answer")
OPTIONAL = ("task", "split", "options")
CHECK_RATE_HZ = 16_000
DEFAULT_TASK = "answer"


@dataclass(frozen=True)
class Row:
    """One line of the table that has all it needs."""

    line: int
    audio: str
    question: str
    answer: str
    task: str
    split: str | None
    options: tuple[str, ...] | None


@dataclass
class Imported:
    """What `import_table` did."""

    manifest: Path
    n_rows: int = 0
    n_silent: int = 0
    rejected: list[dict[str, str | int]] = field(default_factory=list)

    def set_aside(self, line: int, reason: str) -> None:
        self.rejected.append({"line": line, "reason": reason})

    def report(self) -> str:
        """A few lines for people: what was taken, what was set aside, and why."""
        lines = [
            f"{self.n_rows} rows taken, {len(self.rejected)} set aside; "
            f"{self.n_silent} recordings are silent"
        ]
        if self.rejected:
            lines.append(f"set aside in {self.manifest.with_name('rejected.jsonl')}:")
            lines += [f"  line {entry['line']}: {entry['reason']}" for entry in self.rejected[:10]]
            more = len(self.rejected) - 10
            lines += [f"  and {more} more"] if more > 0 else []
        return "\n".join(lines)


def import_table(
    table: Path, *, audio_dir: Path, out: Path, test_fraction: float = 0.1, seed: int = 0
) -> Imported:
    """Write `out/manifest.jsonl` (and `out/rejected.jsonl` if need be).

    Raises:
        ManifestError: the table or folder is missing, columns are missing or unknown, or no row
        can be used.
    """
    if not audio_dir.is_dir():
        raise ManifestError(f"--audio-dir {audio_dir} is no folder: name where the recordings lie")
    if not 0 <= test_fraction < 1:
        raise ManifestError(f"--test-fraction must be from 0 up to 1, is {test_fraction}")
    imported = Imported(out / "manifest.jsonl")
    by_audio: dict[str, list[Row]] = {}
    for row in _rows(table, imported):
        by_audio.setdefault(row.audio, []).append(row)
    tested = _drawn(sorted(by_audio), test_fraction, seed)
    clips = list(_clips(by_audio, audio_dir, out, tested, imported))
    imported.n_rows = sum(len(clip.questions) for clip in clips)
    out.mkdir(parents=True, exist_ok=True)
    imported.rejected.sort(key=lambda entry: entry["line"])
    write_rejected(imported.manifest.with_name("rejected.jsonl"), imported.rejected)
    if not clips:
        first = imported.rejected[0]["reason"] if imported.rejected else "the table has no rows"
        raise ManifestError(f"no row of {table} can be used; the first because {first}")
    write_manifest(imported.manifest, clips)
    return imported


def _rows(table: Path, imported: Imported) -> Iterator[Row]:
    """The rows that have all they need; the others are set aside."""
    try:
        lines = read_lines(table)
    except ManifestError as error:
        raise ManifestError(f"--table {error}") from error
    columns = _columns(table, lines)
    for number, fields in records(lines, imported.set_aside):
        if number == 1 or not any(fields):
            continue
        if len(fields) != len(columns):
            imported.set_aside(
                number, f"{len(fields)} fields for {len(columns)} columns: quote fields with commas"
            )
            continue
        values = {name: text.strip() for name, text in zip(columns, fields, strict=True)}
        empty = [name for name in REQUIRED if not values[name]]
        if empty:
            imported.set_aside(number, f"no {' and no '.join(empty)}: fill in the field")
            continue
        options = tuple(o.strip() for o in values.get("options", "").split("|") if o.strip())
        yield Row(
            number,
            values["audio"],
            values["question"],
            values["answer"],
            values.get("task") or DEFAULT_TASK,
            values.get("split") or None,
            options or None,
        )


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


def _drawn(audio: list[str], test_fraction: float, seed: int) -> set[str]:
    """The recordings that are kept for the test."""
    return set(Random(seed).sample(audio, round(len(audio) * test_fraction)))


def _clips(
    by_audio: dict[str, list[Row]],
    audio_dir: Path,
    out: Path,
    tested: set[str],
    imported: Imported,
) -> Iterator[Clip]:
    for audio, rows in by_audio.items():
        path = audio_dir / audio
        try:
            waveform = load_audio(path, sample_rate_hz=CHECK_RATE_HZ)
        except AudioError as error:
            for row in rows:
                imported.set_aside(row.line, str(error))
            continue
        imported.n_silent += is_silent(waveform)
        splits = {row.split for row in rows if row.split}
        if len(splits) > 1:
            for row in rows:
                imported.set_aside(
                    row.line, f"{audio} stands in splits {sorted(splits)}: a recording is in one"
                )
            continue
        yield Clip(
            id=audio,
            audio=os.path.relpath(path, out),
            duration_s=len(waveform) / CHECK_RATE_HZ,
            dataset=audio_dir.name,
            split=next(iter(splits), "test" if audio in tested else "train"),
            questions=tuple(_questions(audio, rows)),
        )


def _questions(audio: str, rows: list[Row]) -> Iterator[Question]:
    seen: Counter[str] = Counter()
    for row in rows:
        seen[row.task] += 1
        name = f"{audio}/{row.task}-{seen[row.task]}"
        yield Question(name, row.task, row.question, row.answer, row.options)
