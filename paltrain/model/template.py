"""A question as tokens: the chat template's text, cut at the audio placeholders, answers marked as
targets.

    system, user, assistant turns ──chat template──> text ──cut──> runs of text between clips ──>
    token ids

    "<|user|>Listen: " <|audio|> " Which sound?<|assistant|>"   "a bell<|eos|>"
     texts[0]            clip      texts[1] ..................... and its targets

The placeholder is split out before tokenisation and is no token: the vocabulary stays as it was.
Prompt and answer are tokenised apart, as they are when the model answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from paltrain.batch import RenderedQuestion
from paltrain.errors import ManifestError, ModelError
from paltrain.model.tokenization import TemplateFields as TemplateFields
from paltrain.model.tokenization import template_hash

AUDIO_PLACEHOLDER = "<|audio|>"

Span = tuple[str, bool]  # text, and whether it is to be predicted
Turns = Sequence[tuple[str, str | None]]  # (instruction, answer); an open prompt's last is None


class ChatTemplate:
    """Renders questions with one tokenizer. `fields` and `hash` say how."""

    def __init__(
        self, tokenizer: Any, fields: TemplateFields | None = None, **changes: Any
    ) -> None:
        """tokenizer: a `transformers` tokenizer. fields or changes: of `TemplateFields`.

        Raises:
            ModelError: there is no chat template, or the tokenizer has no end token.
        """
        self.tokenizer = tokenizer
        self.fields = TemplateFields(**(asdict(fields or TemplateFields()) | changes))
        self.hash = template_hash(asdict(self.fields))
        if not (self.fields.chat_template or tokenizer.chat_template):
            raise ModelError(
                "the tokenizer has no chat template: name a jinja file in template.chat_template"
            )
        if tokenizer.eos_token is None:
            raise ModelError(
                "the tokenizer has no end token (eos_token), which ends every answer: set "
                "eos_token in its tokenizer_config.json"
            )

    def render(self, turns: Turns, n_clips: int) -> RenderedQuestion:
        """Turns of (instruction, answer) about `n_clips` clips; a last answer None leaves the
        prompt open.

        Raises:
            ManifestError: placeholders and clips differ in number, or the text is over
            max_text_tokens. ModelError: the chat template cannot be cut into prompts and answers.
        """
        spans = self._spans(_with_placeholders(turns, n_clips))
        texts, targets = [], []
        for run in _cut_at_clips(spans):
            tokens = [self._tokenize(text) for text, _ in run]
            texts.append(np.array([t for part in tokens for t in part], np.int64))
            is_target = [
                is_answer for (_, is_answer), part in zip(run, tokens, strict=True) for _ in part
            ]
            targets.append(np.array(is_target, bool))
            if targets[-1][:1].any():
                raise ModelError(
                    "an answer follows a clip at once: no text token in between has heard the "
                    "clip; the chat template must put one there"
                )
            if self.fields.loss_on_prompt:
                targets[-1][1:] = True
        return self._within_budget(texts, targets)

    def _spans(self, turns: Turns) -> list[Span]:
        """The templated conversation as prompts and answers in turn."""
        messages = [{"role": "system", "content": self.fields.system}] if self.fields.system else []
        spans: list[Span] = []
        done = ""
        for instruction, answer in turns:
            messages.append({"role": "user", "content": instruction})
            prompt = self._apply(messages, generation_prompt=True)
            spans.append((_rest(prompt, done), False))
            if answer is None:
                return spans
            messages.append({"role": "assistant", "content": answer})
            done = self._apply(messages, generation_prompt=False)
            spans.append((_rest(done, prompt), True))
        spans[-1] = (self._up_to_end_token(spans[-1][0]), True)
        return spans

    def _apply(self, messages: list[dict[str, str]], *, generation_prompt: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=generation_prompt,
            chat_template=self.fields.chat_template,
            date_string=self.fields.date_string,
        )
        return text

    def _up_to_end_token(self, answer: str) -> str:
        """What a template puts behind the last end token (a line break) is not learnt."""
        end = self.tokenizer.eos_token
        return answer[: answer.rindex(end) + len(end)] if end in answer else answer + end

    def _tokenize(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return ids

    def _within_budget(self, texts: list[Any], targets: list[Any]) -> RenderedQuestion:
        limit, n_tokens = self.fields.max_text_tokens, sum(map(len, texts))
        if limit is not None and n_tokens > limit:
            n_cut = n_tokens - limit
            n_answer = int(targets[-1].sum())
            if not self.fields.truncate_text or n_cut >= n_answer:
                raise ManifestError(
                    f"prompt and answer are {n_tokens} tokens ({n_answer} of them the answer), "
                    "over "
                    f"max_text_tokens={limit}: raise it, or set truncate_text to cut the answer"
                )
            texts[-1], targets[-1] = texts[-1][:-n_cut], targets[-1][:-n_cut]
        return RenderedQuestion(tuple(texts), tuple(targets))


def turns_of(text: str | Sequence[Mapping[str, str]], *, system: str | None = None) -> Turns:
    """A prompt's turns from an instruction, or from a conversation's messages.

    text: {"role", "content"} each: user and assistant in turn, the user first and last. A message
    of the system at the start must say what training said (`system`).

    Raises:
        ModelError: the messages are no such conversation.
    """
    if isinstance(text, str):
        return [(text, None)]
    messages = [(message["role"], message["content"]) for message in text]
    if messages[:1] == [("system", system)]:
        messages = messages[1:]
    roles = [role for role, _ in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        told = f"the model was trained with {system!r}" if system else "it was trained without"
        raise ModelError(
            f"a conversation goes user, assistant, ..., user, but this one is {', '.join(roles)}: "
            f"leave other messages out (of the system, {told})"
        )
    contents = [content for _, content in messages]
    return list(zip(contents[::2], [*contents[1::2], None], strict=True))


def _with_placeholders(turns: Turns, n_clips: int) -> list[tuple[str, str | None]]:
    """Turns that hold one placeholder a clip: where none is written, all stand before the first
    instruction."""
    written = sum(instruction.count(AUDIO_PLACEHOLDER) for instruction, _ in turns)
    if any(answer is not None and AUDIO_PLACEHOLDER in answer for _, answer in turns):
        raise ManifestError(
            f"an answer contains {AUDIO_PLACEHOLDER}: clips stand in instructions only"
        )
    _check_number(written, n_clips)
    if written == n_clips:
        return list(turns)
    (instruction, answer), *rest = turns
    return [(_behind_clips(instruction, n_clips), answer), *rest]


def with_clips(instruction: str, n_clips: int) -> str:
    """An instruction that says where its clips stand, as `render` takes it.

    Raises:
        ManifestError: it has placeholders, and another number of them.
    """
    written = instruction.count(AUDIO_PLACEHOLDER)
    _check_number(written, n_clips)
    return instruction if written == n_clips else _behind_clips(instruction, n_clips)


def _check_number(written: int, n_clips: int) -> None:
    if written not in (0, n_clips):
        raise ManifestError(
            f"instructions have {written} {AUDIO_PLACEHOLDER} for {n_clips} clips: write one a "
            "clip, or none"
        )


def _behind_clips(instruction: str, n_clips: int) -> str:
    return AUDIO_PLACEHOLDER * n_clips + "\n" + instruction


def _cut_at_clips(spans: Sequence[Span]) -> list[list[Span]]:
    """n_clips + 1 runs of spans."""
    runs: list[list[Span]] = [[]]
    for text, is_answer in spans:
        first, *others = text.split(AUDIO_PLACEHOLDER)
        runs[-1].append((first, is_answer))
        runs += [[(other, is_answer)] for other in others]
    return runs


def _rest(text: str, beginning: str) -> str:
    if not text.startswith(beginning):
        raise ModelError(
            "the chat template rewrites earlier turns when a later one is added, so prompt and "
            "answer cannot be told apart: use one that only appends, through template.chat_template"
        )
    return text[len(beginning) :]
