"""What an evaluation leaves on disk, and how it is read back.

    RUN/eval/test/answers.jsonl     one line an answered question, appended as answers come
    RUN/eval/test/answers.of.json   what the answers belong to: model, questions, decoding
    RUN/eval/test/scores.json       scores by task, written when all questions are answered
    RUN/eval/test/baseline.json     accuracy by task of the average-spectrum classifier
    RUN/eval/test-shuffled/...      the same with the recordings shuffled among the questions
    RUN/eval/test/slice-003-of-064/ answers.jsonl and answers.of.json of one slice's questions

Guarantees: a run that is killed loses at most the line that it was writing; the next run drops that
torn line and goes on. Answers of another model, other questions or other decoding are never mixed
in: they are moved aside to `answers.other.jsonl`. A finished `answers.jsonl` has the order of the
questions, whoever answered them.

What an evaluation's answers depend on (`answers.of.json`) is the same for all its slices, so an
answer counts wherever it lies: in the whole evaluation's folder, or a slice's of whatever number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paltrain.errors import IncompleteError
from paltrain.eval.tasks import Chance, Scoring, TaskScore, is_correct, score_by_task
from paltrain.files import write_atomically, write_json
from paltrain.log import get_logger
from paltrain.slices import EVERYTHING, Slice

ANSWERS_FILE = "answers.jsonl"
IDENTITY_FILE = "answers.of.json"
SCORES_FILE = "scores.json"
OTHER_FILE = "answers.other.jsonl"
BASELINE_FILE = "baseline.json"
SHUFFLED_SUFFIX = "-shuffled"

Key = tuple[str, str]  # ids of a question's clip and of the question

log = get_logger(__name__)


@dataclass(frozen=True)
class Answer:
    """A question and what a model said; in the deaf control it heard another clip than its own."""

    question_id: str
    clip_id: str
    heard_clip_id: str | None
    task: str
    instruction: str
    options: tuple[str, ...] | None
    expected: str
    references: tuple[str, ...]
    given: str

    @property
    def correct(self) -> bool:
        return is_correct(self.given, self.expected, self.references)

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "correct": self.correct}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Answer:
        fields = json.loads(line)
        fields.pop("correct", None)
        fields["options"] = None if fields["options"] is None else tuple(fields["options"])
        fields["references"] = tuple(fields.get("references") or ())
        return cls(**fields)


@dataclass(frozen=True)
class EvalScores:
    """The scores of one model on one set of questions."""

    model: str
    split: str
    shuffled: bool
    n_questions: int
    seconds: float
    by_task: Mapping[str, TaskScore]
    manifests: Sequence[str] = ()

    def save(self, folder: Path) -> None:
        tasks = {name: _score_to_dict(score) for name, score in self.by_task.items()}
        write_json(folder / SCORES_FILE, {**vars(self), "by_task": tasks})

    @classmethod
    def load(cls, folder: Path) -> EvalScores:
        """Raises IncompleteError where the file is torn, or of other code."""
        file = folder / SCORES_FILE
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
            by_task = {name: _score_from_dict(each) for name, each in fields.pop("by_task").items()}
            return cls(**fields, by_task=by_task)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise IncompleteError(
                f"{file} cannot be read ({error}): remove it, and evaluate again"
            ) from error


class AnswerFile:
    """The answers of one evaluation, appended one by one; opening it again continues.

    identity: what the answers depend on; answers written under another identity are moved aside.
    """

    def __init__(self, folder: Path, *, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.path = folder / ANSWERS_FILE
        folder.mkdir(parents=True, exist_ok=True)
        self._set_aside_others(dict(identity))
        _drop_torn_line(self.path)
        self.answered = set(_lines_by_key(folder))

    def append(self, answers: Iterable[Answer]) -> None:
        lines = [answer.to_json() + "\n" for answer in answers]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))

    def adopt(self, elsewhere: Mapping[Key, Sequence[str]], keys: Iterable[Key]) -> None:
        """Take over the answers to `keys` that `answers_elsewhere` has and this file lacks."""
        wanted = dict.fromkeys(key for key in keys if key not in self.answered)
        found = [key for key in wanted if key in elsewhere]
        if not found:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(line for key in found for line in elsewhere[key]))
        self.answered.update(found)

    def put_in_order(self, keys: Iterable[Key]) -> int:
        """Give the answers the order of `keys`; one that two processes gave stays once. Returns how
        many there are."""
        lines = _lines_by_key(self.folder)
        ordered = [lines[key].pop(0) for key in keys if lines.get(key)]
        text = "".join(ordered)
        if self.path.exists() and self.path.read_text(encoding="utf-8") != text:
            write_atomically(self.path, text)
        return len(ordered)

    def score(
        self,
        *,
        model: str,
        split: str,
        shuffled: bool,
        seconds: float,
        manifests: Sequence[str] = (),
    ) -> EvalScores:
        """Scores of what is there, saved beside it. seconds: what the latest call took."""
        answers = list(read_answers(self.folder))
        scores = EvalScores(
            model=model,
            split=split,
            shuffled=shuffled,
            n_questions=len(answers),
            seconds=round(seconds, 3),
            by_task=score_by_task(answers),
            manifests=list(manifests),
        )
        scores.save(self.folder)
        return scores

    def _set_aside_others(self, identity: dict[str, Any]) -> None:
        known = self.folder / IDENTITY_FILE
        if known.exists() and not _has_identity(self.folder, identity):
            (self.folder / SCORES_FILE).unlink(missing_ok=True)
            if self.path.exists():
                os.replace(self.path, self.folder / OTHER_FILE)
                log.info("%s: answers of another model or other questions moved aside", self.path)
        write_json(known, identity)


def evaluation_folder(run: Path, split: str, *, shuffled: bool) -> Path:
    """RUN/eval/<split>; the deaf control's beside it."""
    return run / "eval" / (split + (SHUFFLED_SUFFIX if shuffled else ""))


def slice_folder(folder: Path, slice_of: Slice) -> Path:
    """Where a slice of the evaluation in `folder` leaves its answers."""
    if slice_of == EVERYTHING:
        return folder
    return folder / f"slice-{slice_of[0]:03d}-of-{slice_of[1]:03d}"


def answers_elsewhere(folder: Path, identity: Mapping[str, Any]) -> dict[Key, list[str]]:
    """Whole lines of all answers of this identity: the evaluation's in `folder`, and its slices'.

    Changes nothing, so other slices may be answering.
    """
    lines: dict[Key, list[str]] = {}
    for place in _slices_of(folder, identity):
        lines |= _lines_by_key(place)
    if _has_identity(folder, identity):
        lines |= _lines_by_key(folder)
    return lines


def numbers_of_slices(folder: Path, identity: Mapping[str, Any]) -> list[int]:
    """Of how many slices there are answers of this identity."""
    return sorted({int(place.name.split("-")[3]) for place in _slices_of(folder, identity)})


def _slices_of(folder: Path, identity: Mapping[str, Any]) -> list[Path]:
    named = sorted(folder.glob("slice-*-of-*"))
    return [place for place in named if _has_identity(place, identity)]


def _has_identity(folder: Path, identity: Mapping[str, Any]) -> bool:
    known = folder / IDENTITY_FILE
    return known.exists() and json.loads(known.read_text(encoding="utf-8")) == identity


def _lines_by_key(folder: Path) -> dict[Key, list[str]]:
    """The whole lines of a folder's answers: one to a question, or more if more were given."""
    path, lines = folder / ANSWERS_FILE, dict[Key, list[str]]()
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    fields = json.loads(line)
                    lines.setdefault((fields["clip_id"], fields["question_id"]), []).append(line)
    return lines


def read_answers(folder: Path) -> Iterator[Answer]:
    """The answers of an evaluation folder in the order in which they were given, if any."""
    path = folder / ANSWERS_FILE
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield Answer.from_json(line)


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        log.warning("%s: dropped a torn last line of %d bytes", path, len(content) - whole)
        with path.open("r+b") as file:
            file.truncate(whole)


def _score_to_dict(score: TaskScore) -> dict[str, Any]:
    return {**asdict(score), "scoring": score.scoring.value}


def _score_from_dict(fields: Mapping[str, Any]) -> TaskScore:
    return TaskScore(
        **{
            **fields,
            "scoring": Scoring(fields["scoring"]),
            "interval": tuple(fields["interval"]),
            "chance": Chance(**fields["chance"]),
        }
    )
