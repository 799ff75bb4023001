"""Lines of CSV, TSV and JSON files as published: what is broken is set aside with its line number,
and the rest goes on."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from paltrain.data.importers.aside import BROKEN, Aside
from paltrain.errors import ManifestError

CHUNK_CHARS = 1 << 20


@dataclass(frozen=True)
class Format:
    """How a file separates its fields. columns: their names, where the file has no header."""

    delimiter: str = ","
    columns: tuple[str, ...] | None = None
    is_quoted: bool = True
    skips_spaces: bool = False  # after a delimiter
    comment: str | None = None  # lines that begin so are left out


CSV = Format()


@dataclass(frozen=True)
class Row:
    """One line: its number from 1 on, and its fields by column."""

    line: int
    values: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.values[column]


def read_rows(
    path: Path, *, needs: Sequence[str], aside: Aside, name: str, form: Format = CSV
) -> Iterator[Row]:
    """The rows of a file that have all columns. name: of the file, in what is set aside.

    Raises:
        ManifestError: the file cannot be read, or has not all the columns in `needs`.
    """

    def set_aside(line: int, reason: str) -> None:
        aside.add(BROKEN, reason, file=name, line=line)

    columns = form.columns
    for line, fields in records(read_lines(path), set_aside, form):
        if not any(fields) or (form.comment and fields[0].startswith(form.comment)):
            continue
        if columns is None:
            columns = tuple(field.strip() for field in fields)
            _check_columns(path, columns, needs)
        elif len(fields) != len(columns):
            set_aside(line, f"{len(fields)} fields for the columns {', '.join(columns)}")
        else:
            yield Row(line, dict(zip(columns, fields, strict=True)))
    if columns is None:
        raise ManifestError(f"{path} is empty: its first line must name {', '.join(needs)}")


def read_lines(path: Path) -> list[bytes]:
    """Raises ManifestError where there is no such file."""
    try:
        return path.read_bytes().split(b"\n")
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}") from error


def records(
    lines: Sequence[bytes], set_aside: Callable[[int, str], None], form: Format = CSV
) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields); lines that are no UTF-8 are set aside and come without fields."""

    def decoded() -> Iterator[str]:
        for number, line in enumerate(lines, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r") + "\n"
            except UnicodeDecodeError:
                set_aside(number, "is not UTF-8: save the table in that encoding")
                yield "\n"

    reader = csv.reader(
        decoded(),
        delimiter=form.delimiter,
        quoting=csv.QUOTE_MINIMAL if form.is_quoted else csv.QUOTE_NONE,
        skipinitialspace=form.skips_spaces,
    )
    start = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            set_aside(start, f"is no CSV ({error})")
            fields = []
        yield start, fields
        start = reader.line_num + 1


def read_json(path: Path) -> Any:
    """A whole JSON file. Raises ManifestError where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ManifestError(f"{path} is no JSON; {error}: download it again") from error


def read_json_list(path: Path) -> Iterator[tuple[int, Any]]:
    """(number from 1 on, entry) of a JSON list, one entry in memory at a time.

    Raises:
        ManifestError: the file cannot be read, is no JSON list, or ends too early.
    """
    try:
        with open(path, encoding="utf-8") as file:
            yield from enumerate(_entries(file, path), 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error


def _entries(file: TextIO, path: Path) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    text = file.read(CHUNK_CHARS).lstrip()
    if not text.startswith("["):
        raise ManifestError(f"{path} must be a JSON list of objects, begins {text[:20]!r}")
    at = 1
    while not text.startswith("]", at := _skip(text, at)):
        entry, end = _decoded(decoder, text, at)
        if -1 < end < len(text):
            yield entry
            at = end
            continue
        more = file.read(max(CHUNK_CHARS, len(text)))  # the chunk may have cut the entry
        if not more:
            raise ManifestError(
                f"{path} breaks off, or is no JSON, at {text[at : at + 60]!r}: download it again"
            )
        text, at = text[at:] + more, 0


def _skip(text: str, at: int) -> int:
    """Past spaces and the comma between entries."""
    while at < len(text) and text[at] in " \t\r\n,":
        at += 1
    return at


def _decoded(decoder: json.JSONDecoder, text: str, at: int) -> tuple[Any, int]:
    """(entry, its end), end -1 where it is not whole."""
    try:
        return decoder.raw_decode(text, at)
    except ValueError:
        return None, -1


def _check_columns(path: Path, columns: Sequence[str], needs: Sequence[str]) -> None:
    missing = [name for name in needs if name not in columns]
    if missing:
        raise ManifestError(
            f"{path} has no column {', '.join(missing)}: its first line must name "
            f"{', '.join(needs)}, names {', '.join(columns)}"
        )
