"""The manifest: one JSON object a line, a clip and the questions about it. For people it is text.

    {"id": "scene-7", "audio": "audio/scene-7.flac", "duration_s": 3.2, "dataset": "soundscapes",
     "split": "train", "questions": [{"id": "scene-7/0", "task": "which_sound",
     "instruction": "Which sound is heard?", "answer": "a bell", "options": ["a bell", "a siren"]}]}

Audio paths are relative to the manifest's folder; `audio: null` is a conversation without sound.
`content` (optional) is the xxh3 of the recording's bytes, 16 hex digits; importers write it.
Optional fields of a question: `options` (the answers to choose from), `turns` (instruction and
answer pairs instead of the one), `labels`, `references` (further right answers), `clips` (ids of
further clips, in placeholder order). Fields that are null are left out when writing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from paltrain.errors import ManifestError, unknown_name

MAX_FAULTS_SHOWN = 20
LONGEST_S = 1e9


@dataclass(frozen=True)
class Question:
    """One question about a clip and the answer that is right."""

    id: str
    task: str
    instruction: str
    answer: str
    options: tuple[str, ...] | None = None
    turns: tuple[tuple[str, str], ...] | None = None
    labels: tuple[str, ...] | None = None
    references: tuple[str, ...] | None = None
    clips: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Clip:
    """A recording (audio: path relative to the manifest, None: text alone) and its questions.

    content: 16 hex digits of the xxh3 of the recording's bytes, where it is known.
    """

    id: str
    audio: str | None
    duration_s: float
    dataset: str
    split: str
    questions: tuple[Question, ...]
    content: str | None = None


def read_manifest(path: str | Path) -> Iterator[Clip]:
    """Every clip of a manifest, in order.

    Raises:
        ManifestError: the file is missing, or lines are malformed (all of them named, up to 20).
    """
    for _, clip in read_lines(path):
        yield clip


def read_lines(path: str | Path) -> Iterator[tuple[int, Clip]]:
    """(byte offset of its line, clip) of every clip; errors as `read_manifest`, at the end."""
    faults: list[str] = []
    try:
        with open(path, "rb") as file:
            offset = 0
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield offset, parse_clip(line, f"{path}:{number}")
                    except ManifestError as error:
                        faults.append(str(error))
                offset += len(line)
    except OSError as error:
        raise ManifestError(
            f"manifest {path} cannot be read: {error.strerror}; tools/prepare_data.py makes one"
        ) from error
    if faults:
        more = len(faults) - MAX_FAULTS_SHOWN
        shown = faults[:MAX_FAULTS_SHOWN] + ([f"and {more} more"] if more > 0 else [])
        raise ManifestError("\n".join(shown))


def write_manifest(path: str | Path, clips: Iterable[Clip]) -> int:
    """Write clips beside `path` and rename; returns how many."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    n_clips = 0
    try:
        with open(beside, "w", encoding="utf-8") as file:
            for clip in clips:
                file.write(json.dumps(_without_none(asdict(clip)), ensure_ascii=False) + "\n")
                n_clips += 1
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return n_clips


def parse_clip(line: bytes | str, where: str) -> Clip:
    """One line of a manifest. where: `file:line`, for messages.

    Raises:
        ManifestError: it is no JSON object, a field is missing, unknown or of a wrong type.
    """
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ManifestError(f"{where}: a line must be one JSON object; {error}") from error
    _check_characters(line, values, where)
    values = _checked(values, Clip, where)
    questions = [
        _question(question, f"{where}: questions[{number}]")
        for number, question in enumerate(values["questions"])
    ]
    return Clip(
        id=_text(values["id"], f"{where}: id"),
        audio=None if values["audio"] is None else _text(values["audio"], f"{where}: audio"),
        duration_s=_duration(values["duration_s"], where),
        dataset=str(values["dataset"]),
        split=_text(values["split"], f"{where}: split"),
        questions=tuple(questions),
        content=_content(values.get("content"), f"{where}: content"),
    )


def _check_characters(line: bytes | str, values: Any, where: str) -> None:
    """Refuse what JSON can escape and text cannot hold: halves of characters, and NUL in an id."""
    escaped = line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass")
    if b"\\u" not in escaped:
        return
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ManifestError(
            f"{where}: holds half a character ({error.object[error.start]!a}, a surrogate alone): "
            "write that text again"
        ) from error
    if isinstance(values, dict) and "\0" in str(values.get("id")):
        raise ManifestError(f"{where}: id must hold no NUL, is {values['id']!a:.80}")


def _question(values: Any, where: str) -> Question:
    values = _checked(values, Question, where)
    turns = values.get("turns")
    if turns is not None and not all(isinstance(t, list) and len(t) == 2 for t in turns):
        raise ManifestError(f"{where}: turns must be a list of [instruction, answer], is {turns!r}")
    lists = {key: _texts(values.get(key), f"{where}: {key}") for key in LIST_FIELDS}
    return Question(
        id=_text(values["id"], f"{where}: id"),
        task=_text(values["task"], f"{where}: task"),
        instruction=_text(values["instruction"], f"{where}: instruction"),
        answer=_text(values["answer"], f"{where}: answer"),
        turns=tuple((str(a), str(b)) for a, b in turns) if turns else None,
        **lists,
    )


LIST_FIELDS = ("options", "labels", "references", "clips")
OPTIONAL_FIELDS = (*LIST_FIELDS, "turns", "content")
CONTENT = re.compile(r"[0-9a-f]{16}")


def _checked(values: Any, schema: type, where: str) -> Mapping[str, Any]:
    """`values` as an object with all required and no unknown fields of `schema`."""
    if not isinstance(values, dict):
        raise ManifestError(f"{where}: must be a JSON object, is {values!r:.80}")
    names = [field.name for field in fields(schema)]
    for name in values:
        if name not in names:
            raise ManifestError(f"{where}: {unknown_name('field', name, names)}")
    missing = [name for name in names if name not in values and name not in OPTIONAL_FIELDS]
    if missing:
        raise ManifestError(f"{where}: missing {', '.join(missing)}; a line needs them all")
    if schema is Clip and not isinstance(values["questions"], list):
        raise ManifestError(f"{where}: questions must be a list, is {values['questions']!r:.80}")
    return values


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ManifestError(f"{where} must be a text that is not empty, is {value!r:.80}")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise ManifestError(f"{where} must be a list of texts, is {value!r:.80}")
    return tuple(_text(entry, where) for entry in value)


def _content(value: Any, where: str) -> str | None:
    if value is not None and not (isinstance(value, str) and CONTENT.fullmatch(value)):
        raise ManifestError(
            f"{where} must be 16 hex digits (xxh3 of the recording's bytes), is {value!r:.80}; "
            "leave it out if it is not known"
        )
    return value


def _duration(value: Any, where: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= LONGEST_S:
        raise ManifestError(f"{where}: duration_s must be seconds from 0 on, is {value!r:.80}")
    return float(value)


def _without_none(values: Any) -> Any:
    if isinstance(values, dict):
        return {
            key: _without_none(value)
            for key, value in values.items()
            if value is not None or key == "audio"
        }
    if isinstance(values, list | tuple):
        return [_without_none(value) for value in values]
    return values
