"""How many tokens every question takes: a table per (corpus, tokenizer, template).

    question            "system user" <clip> "which sound? bell"
                         trunk               branch         targets: bell, end

The trunk is what precedes the last clip; questions of a visit with an equal trunk (`trunk_key`)
share it. A question without targets is set aside: its rendering failed (too long, no answer), and
why stands in `<table>.rejected.jsonl`. Plans and dry runs read the table alone, so they need no
tokenizer and no torch.

Costs: 16 bytes a question, memory-mapped; building renders every question once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from paltrain.errors import ManifestError
from paltrain.log import get_logger

if TYPE_CHECKING:
    from paltrain.batch import RenderedQuestion
    from paltrain.data.index import Corpus
    from paltrain.data.manifest import Clip, Question

log = get_logger(__name__)

COLUMNS = np.dtype([("trunk", "<i4"), ("branch", "<i4"), ("target", "<i4"), ("trunk_key", "<u4")])
FORMAT = 1  # changes when a table means something else

Render = Callable[["Clip", "Question"], "RenderedQuestion"]


class Template(Protocol):
    """What renders turns into tokens: `paltrain.model.template.ChatTemplate`."""

    @property
    def hash(self) -> str: ...

    def render(self, turns: Sequence[tuple[str, str | None]], n_clips: int) -> RenderedQuestion: ...


@dataclass(frozen=True)
class QuestionRenderer:
    """A manifest's question as tokens; with `hears=False` (a run without streams) as text alone."""

    template: Template
    hears: bool = True

    @property
    def hash(self) -> str:
        """Names the template and whether clips are heard: the length table's `template_hash`."""
        return self.template.hash if self.hears else f"{self.template.hash}-text"

    def __call__(self, clip: Clip, question: Question) -> RenderedQuestion:
        n_clips = (clip.audio is not None) + len(question.clips or ()) if self.hears else 0
        turns = question.turns or [(question.instruction, question.answer)]
        return self.template.render([(turn[0], turn[1]) for turn in turns], n_clips)


@dataclass(frozen=True)
class LengthTable:
    """Token counts of all questions of a corpus, in corpus numbering.

    rows: (Q,) of `COLUMNS`, memory-mapped. fingerprint: names corpus, tokenizer and template.
    """

    rows: NDArray[Any]
    fingerprint: str

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(Q,) questions that have something to predict; the others are set aside."""
        return np.asarray(self.rows["target"] > 0)


def measure(rendered: RenderedQuestion, clips: Sequence[str] = ()) -> tuple[int, int, int, int]:
    """A question's row: trunk, branch and target tokens, and a key that a shared trunk has too.

    Only what `BatchBuilder.add_targets` keeps is counted: the first token behind a clip, or of a
    conversation, has no row that could predict it.
    """
    targets = sum(int(mask[1:].sum()) for mask in rendered.targets)
    key = 0
    for text, mask in zip(rendered.texts[:-1], rendered.targets[:-1], strict=True):
        key = crc32(np.asarray(text, np.int64).tobytes() + mask.tobytes(), key)
    key = crc32("|".join(clips).encode(), key)
    return rendered.n_trunk_tokens, rendered.n_branch_tokens, targets, key


def build_length_table(
    corpus: Corpus,
    render: Render,
    *,
    tokenizer_hash: str,
    template_hash: str,
    progress: Callable[[int], None] | None = None,
) -> LengthTable:
    """Render every question and write the table; `progress` is told the clips done so far.

    A question that cannot be rendered is set aside with its reason. Raises ManifestError if none is
    left.
    """
    rows = np.zeros(corpus.n_questions, COLUMNS)
    rejected: list[dict[str, str]] = []
    for number in range(corpus.n_clips):
        clip = corpus.clip(number)
        first = int(corpus.first_question[number])
        for at, question in enumerate(clip.questions, first):
            try:
                rows[at] = measure(render(clip, question), question.clips or ())
            except ManifestError as error:
                rejected.append({"clip": clip.id, "question": question.id, "reason": str(error)})
        if progress:
            progress(number + 1)
    if len(rows) and not (rows["target"] > 0).any():
        reason = rejected[0]["reason"] if rejected else "no question has an answer"
        raise ManifestError(
            f"none of {len(rows)} questions can be trained on: the first because {reason}"
        )
    path = table_path(corpus, tokenizer_hash=tokenizer_hash, template_hash=template_hash)
    _write(path, rows, rejected)
    return LengthTable(rows, path.stem)


def find_length_table(
    corpus: Corpus, *, tokenizer_hash: str, template_hash: str
) -> LengthTable | None:
    """The table that was built before, memory-mapped; None if there is none for these hashes."""
    path = table_path(corpus, tokenizer_hash=tokenizer_hash, template_hash=template_hash)
    if not path.exists():
        return None
    rows = np.load(path, mmap_mode="r")
    if rows.dtype != COLUMNS or len(rows) != corpus.n_questions:
        raise ManifestError(
            f"{path} has {len(rows)} rows for {corpus.n_questions} questions: remove it and build "
            "it again"
        )
    return LengthTable(rows, path.stem)


def table_path(corpus: Corpus, *, tokenizer_hash: str, template_hash: str) -> Path:
    """Where the table lies: beside the corpus's first manifest, named by what it depends on."""
    parts = f"{FORMAT}|{corpus.fingerprint}|{tokenizer_hash}|{template_hash}"
    name = hashlib.sha256(parts.encode()).hexdigest()[:16]
    manifest = corpus.manifests[0]
    return manifest.with_name(f"{manifest.name}.lengths") / f"{name}.npy"


def _write(path: Path, rows: NDArray[Any], rejected: list[dict[str, str]]) -> None:
    """The table appears whole by rename, what was set aside before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if rejected:
        log.warning(
            "%d of %d questions are set aside: see %s.rejected.jsonl",
            len(rejected),
            len(rows),
            path.with_suffix(""),
        )
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in rejected)
    path.with_suffix(".rejected.jsonl").write_text(lines, encoding="utf-8")
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    with beside.open("wb") as file:
        np.save(file, rows)
    beside.replace(path)
