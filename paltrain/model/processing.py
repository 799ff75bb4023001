"""`PalProcessor`: text and recordings in, a prompt batch out; token ids in, text out.

It reads all it needs from an exported model's folder: the tokenizer, the template's fields, and for
each stream the stamp of its features, from which the encoder is rebuilt. So a model hears at answer
time what it heard in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paltrain.batch import Batch, BatchBuilder
from paltrain.encoders import build_encoder
from paltrain.encoders.audio import load_audio, resample
from paltrain.encoders.base import AudioEncoder
from paltrain.encoders.windows import encode_all
from paltrain.errors import ModelError
from paltrain.model.configuration import PalConfig
from paltrain.model.template import ChatTemplate, TemplateFields
from paltrain.model.tokenization import load_tokenizer

Recording = (
    str | Path | tuple[NDArray[np.float32], int]
)  # a file, or (waveform (n,), sample rate in Hz)
Features = Mapping[str, NDArray[np.float32]]  # by stream, (n_frames, width)


class PalProcessor:
    """Prepares prompts for a `PalModel` and reads its answers."""

    def __init__(self, config: PalConfig, tokenizer: Any) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer, TemplateFields(**config.template))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> PalProcessor:
        """The processor of an exported model."""
        return cls(PalConfig.from_pretrained(folder), load_tokenizer(str(folder)))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer; template and encoders stand in the model's config, which is
        written too."""
        self.tokenizer.save_pretrained(folder)
        self.config.save_pretrained(folder)

    def __call__(
        self,
        text: str | Sequence[str],
        audio: Sequence[Recording | Sequence[Recording] | None] | Recording | None = None,
    ) -> Batch:
        """A prompt batch: one conversation a text, each about its recordings.

        text: instructions; `<|audio|>` says where a clip stands (default: before the instruction).
        audio: one entry a text: a recording, several, or None. A single text takes a single
        recording too.

        Raises:
            AudioError: a recording cannot be read. ManifestError: placeholders and recordings
            differ in number.
        """
        texts = [text] if isinstance(text, str) else list(text)
        recordings = _per_text(audio, len(texts))
        builder, clips = BatchBuilder(), []
        for instruction, heard in zip(texts, recordings, strict=True):
            features = [self.encode(recording) for recording in heard]
            rendered = self.template.render([(instruction, None)], n_clips=len(features))
            piece = builder.add_text(rendered.texts[0])
            for clip, following in zip(features, rendered.texts[1:], strict=True):
                piece = builder.add_clip(
                    {name: len(values) for name, values in clip.items()}, piece
                )
                piece = builder.add_text(following, piece)
            clips += features
            builder.add_id(instruction)
        return builder.build(self._packed(clips))

    def encode(self, recording: Recording) -> Features:
        """Every stream's features of one recording, (n_frames, width) each."""
        features = {}
        for name, encoder in self.encoders.items():
            if isinstance(recording, str | Path):
                waveform = load_audio(recording, sample_rate_hz=encoder.sample_rate_hz)
            else:
                waveform = resample(*recording, encoder.sample_rate_hz)
            features[name] = encode_all(encoder, [waveform])[0]
        return features

    def decode(self, token_ids: Sequence[int]) -> str:
        """An answer's tokens as text."""
        text: str = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        return text.strip()

    @cached_property
    def encoders(self) -> dict[str, AudioEncoder]:
        """By stream, the encoder that made its training features."""
        return {
            name: build_encoder(**_encoder_fields(name, spec))
            for name, spec in self.config.streams.items()
        }

    def _packed(self, clips: Sequence[Features]) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(np.concatenate([clip[name] for clip in clips]))
            for name in self.config.streams
            if clips
        }


def _per_text(audio: Any, n_texts: int) -> list[list[Recording]]:
    """By text, the list of its recordings."""
    if audio is None:
        return [[] for _ in range(n_texts)]
    if isinstance(audio, str | Path) or _is_waveform(audio):
        audio = [audio]
    if len(audio) != n_texts:
        raise ModelError(
            f"{len(audio)} entries of audio for {n_texts} texts: give one a text (None where there "
            "is none)"
        )
    lists: list[list[Recording]] = []
    for entry in audio:
        if entry is None:
            lists.append([])
        elif isinstance(entry, str | Path) or _is_waveform(entry):
            lists.append([entry])
        else:
            lists.append(list(entry))
    return lists


def _is_waveform(entry: Any) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], np.ndarray)


def _encoder_fields(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    stamp = spec.get("encoder") or {}
    if "encoder" not in stamp:
        raise ModelError(
            f"stream '{name}' does not say which encoder made its features: export the model from "
            "its run again"
        )
    return dict(stamp["encoder"])
