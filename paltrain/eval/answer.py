"""Lets a model answer questions of a corpus, many at a time.

1. Questions about the same clip stand together and share its audio (`paltrain.data.collate.pack`).
2. One packed prefill and greedy decoding per batch (`PalModel.generate_answers`).
3. Every batch's answers are appended to `answers.jsonl` at once, so a killed run continues there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from paltrain.data.collate import Asked, BufferPool, pack
from paltrain.data.context import ContextLimit
from paltrain.data.selection import StreamFeatures
from paltrain.errors import ManifestError
from paltrain.eval.options import AmongOptions, Choices
from paltrain.eval.questions import IntArray, by_clip
from paltrain.eval.records import Answer, AnswerFile
from paltrain.eval.runs import model_config
from paltrain.log import get_logger
from paltrain.model.audio_tokens import in_the_sequence, n_audio_tokens
from paltrain.model.modeling import PalModel
from paltrain.model.processing import PalProcessor

if TYPE_CHECKING:
    from paltrain.batch import RenderedQuestion
    from paltrain.data.index import Corpus
    from paltrain.data.manifest import Clip, Question

log = get_logger(__name__)


@dataclass(frozen=True)
class Asker:
    """Puts a corpus's questions into a model's words. Needs no weights.

    limit: what the LLM's positions hold, None where it does not say. positions_of_clips: (C,) those
    that the audio of each clip takes.
    """

    processor: PalProcessor
    corpus: Corpus
    limit: ContextLimit | None
    positions_of_clips: IntArray

    @classmethod
    def of(cls, folder: Path, corpus: Corpus, streams: Sequence[StreamFeatures]) -> Asker:
        """For the exported model in `folder`, which hears `streams`."""
        config = model_config(folder)
        routes = {name: spec["route"] for name, spec in config.streams.items()}
        limit = ContextLimit.of(config.n_positions, in_the_sequence(routes))
        of_clips = np.zeros(corpus.n_clips, np.int64)
        if limit is not None:
            of_clips = limit.positions_of_clips(
                corpus.n_clips,
                {stream.name: stream for stream in streams},
                {
                    name: partial(n_audio_tokens, connector=spec["connector"])
                    for name, spec in config.streams.items()
                },
            )
        return cls(PalProcessor.from_pretrained(folder), corpus, limit, of_clips)

    def ask(self, clip_number: int, number: int, heard: IntArray) -> AskedOf | None:
        """A question as the model is asked it; None, with a warning, if it cannot be rendered or
        has no room before the LLM's last position.

        heard: (C,) the clip to hear in place of each.
        """
        clip = self.corpus.clip(clip_number)
        question = clip.questions[number - int(self.corpus.first_question[clip_number])]
        clips = [int(heard[c]) for c in self.corpus.clips_of(number)]
        turns = [(t[0], t[1]) for t in question.turns or [(question.instruction, question.answer)]]
        try:
            rendered = self._render(turns, None, n_clips=len(clips))
            n_prompt = rendered.n_branch_tokens
            choices = [
                self._render(turns, option, n_clips=len(clips)).texts[-1][n_prompt:].tolist()
                for option in question.options or ()
            ]
            self._check_length(rendered, clips, max(map(len, choices), default=1))
        except ManifestError as error:
            log.warning("question %s of clip %s is left out: %s", question.id, clip.id, error)
            return None
        heard_id = self.corpus.clip(clips[0]).id if clips else None
        asked = Asked(question.id, rendered, tuple(clips))
        return AskedOf(asked, clip, question, heard_id, choices if len(choices) > 1 else None)

    def askable(self, questions: Sequence[int], heard: IntArray) -> list[int]:
        """Those of the questions (corpus numbers, in order) that can be asked."""
        return [
            number
            for clip, of_clip in by_clip(self.corpus, questions)
            for number in of_clip
            if self.ask(clip, number, heard)
        ]

    def _check_length(self, prompt: RenderedQuestion, clips: Sequence[int], n_answer: int) -> None:
        """n_answer: tokens that the answer has at least."""
        if self.limit is None:
            return
        n_text = sum(map(len, prompt.texts))
        n_audio = int(self.positions_of_clips[list(clips)].sum())
        if n_text + n_audio + n_answer > self.limit.n_positions:
            raise ManifestError(
                f"{n_text} tokens of text, {n_audio} of audio and an answer of {n_answer} or more "
                f"are beyond the LLM's {self.limit.n_positions} positions"
            )

    def _render(
        self, turns: Sequence[tuple[str, str]], answer: str | None, *, n_clips: int
    ) -> RenderedQuestion:
        """The dialogue with another last answer, or None: the prompt."""
        return self.processor.template.render([*turns[:-1], (turns[-1][0], answer)], n_clips)


@dataclass(frozen=True)
class Answerer:
    """A model with all it needs to answer questions. streams: in its order."""

    model: PalModel
    asker: Asker
    streams: Sequence[StreamFeatures]
    max_new_tokens: int
    among_options: bool = True  # see `paltrain.eval.options`

    def answer(self, questions: Sequence[int], heard: IntArray) -> list[Answer]:
        """Answers of the questions (corpus numbers, in order).

        heard: (C,) the clip to hear in place of each. A question that cannot be asked is left out
        with a warning.
        """
        visits = [
            [one for q in of_clip if (one := self.asker.ask(clip, q, heard))]
            for clip, of_clip in by_clip(self.asker.corpus, questions)
        ]
        asked_of = [each for visit in visits for each in visit]
        if not asked_of:
            return []
        batch = pack(
            [[each.asked for each in visit] for visit in visits if visit],
            self.streams,
            pool=BufferPool(),
        )
        processor = self.asker.processor
        eos = processor.tokenizer.eos_token_id
        choices = [each.choices if self.among_options else None for each in asked_of]
        tokens = self.model.generate_answers(
            batch.to(self.model.device),
            max_new_tokens=self.max_new_tokens,
            eos_token_id=eos,
            prefix_allowed_tokens_fn=AmongOptions(
                choices, vocab_size=self.model.config.llm_config.vocab_size, eos=eos
            )
            if any(choices)
            else None,
        )
        given = [processor.decode(answer) for answer in tokens]
        return [each.answered(text) for each, text in zip(asked_of, given, strict=True)]


@dataclass(frozen=True)
class AskedOf:
    """A question as asked, and the record that its answer will be. choices: its options' tokens."""

    asked: Asked
    clip: Clip
    question: Question
    heard_clip_id: str | None
    choices: Choices | None

    def answered(self, given: str) -> Answer:
        question = self.question
        last = question.turns[-1] if question.turns else (question.instruction, question.answer)
        return Answer(
            question_id=question.id,
            clip_id=self.clip.id,
            heard_clip_id=self.heard_clip_id,
            task=question.task,
            instruction=last[0],
            options=tuple(question.options) if question.options else None,
            expected=last[1],
            references=tuple(question.references or ()),
            given=given,
        )


def answer_all(
    answerer: Answerer,
    file: AnswerFile,
    waiting: Sequence[int],
    heard: IntArray,
    *,
    batch_questions: int,
    n_questions: int,
    label: str,
    progress: Callable[[int], None] | None = None,
) -> float:
    """Answer `waiting`, what `file` lacks of `n_questions`; returns the seconds it took.

    progress: told how many of n_questions are done; a progress bar shows it, too.
    """
    start = time.perf_counter()
    answerer.model.eval()
    done = n_questions - len(waiting)
    with _progress() as bar:
        task = bar.add_task(label, total=n_questions, completed=done)
        for first in range(0, len(waiting), batch_questions):
            chunk = waiting[first : first + batch_questions]
            with torch.inference_mode():
                file.append(answerer.answer(chunk, heard))
            done += len(chunk)
            bar.update(task, completed=done)
            if progress:
                progress(done)
    return time.perf_counter() - start


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )
