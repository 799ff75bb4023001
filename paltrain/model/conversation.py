"""`Conversation`: several turns with one model, whose clips are encoded once.

    conversation = Conversation(model, processor)
    conversation.ask("Which sound is heard?", audio="scene.wav")      encodes scene.wav
    conversation.ask("And how often?")                                goes on about it
    conversation.ask("Is this one louder?", audio="other.wav")        a second clip joins

A clip's features stay with the conversation. Keys and values do not: each turn runs the whole
conversation once through connector and LLM, as its text is tokenised in training, since the tokens
that a model gave need not be those that its answer's text becomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from paltrain.model.modeling import PalModel
from paltrain.model.processing import Features, Heard, PalProcessor, recordings_of
from paltrain.model.template import AUDIO_PLACEHOLDER, with_clips


@dataclass
class Conversation:
    """A model, what was said, and what was heard.

    max_new_tokens: of an answer. options: further ones of `transformers`' `generate` (do_sample,
    temperature, num_beams, ...). messages: {"role", "content"} so far; `<|audio|>` stands in them
    where a clip was heard.
    """

    model: PalModel
    processor: PalProcessor
    max_new_tokens: int = 64
    options: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)
    clips: list[Features] = field(default_factory=list)

    def ask(self, text: str, audio: Heard | Sequence[Heard] | None = None) -> str:
        """The model's answer, which becomes part of the conversation.

        text: `<|audio|>` says where this turn's recordings stand (default: before it).

        Nothing is remembered of a turn that fails.

        Raises:
            AudioError: a recording cannot be read.
            ManifestError: placeholders and recordings differ in number.
            ModelError: features are not this model's, a waveform came without its rate, or the
                conversation is longer than the LLM knows positions.
        """
        heard = [self.processor.features(each) for each in recordings_of(audio)]
        asked = {"role": "user", "content": with_clips(text, len(heard))}
        messages, clips = [*self.messages, asked], [*self.clips, *heard]
        answer = self._answer(messages, clips)
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        self.clips = clips
        return answer

    def forget(self) -> None:
        """Start anew with nothing said and nothing heard."""
        self.messages, self.clips = [], []

    def _answer(self, messages: list[dict[str, str]], clips: Sequence[Features]) -> str:
        batch = self.processor(text=messages, audio=[clips]).to(self.model.device)
        with torch.inference_mode():
            (tokens,) = self.model.generate_answers(
                batch,
                max_new_tokens=self.max_new_tokens,
                eos_token_id=self.processor.tokenizer.eos_token_id,
                **self.options,
            )
        # A text that names a clip would be counted as one when it is read again.
        return self.processor.decode(tokens).replace(AUDIO_PLACEHOLDER, "")
