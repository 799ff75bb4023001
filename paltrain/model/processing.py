"""`PalProcessor`: text and recordings in, a prompt batch out; token ids in, text out.

It reads all it needs from an exported model's folder: the tokenizer, the template's fields, and for
each stream the stamp of its features, from which the encoder is rebuilt. So a model hears at answer
time what it heard in training. A recording is encoded once for all streams of the same encoder, and
what `encode` gave can be passed in place of the recording.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoProcessor

from paltrain.batch import Batch, BatchBuilder
from paltrain.encoders import build_encoder
from paltrain.encoders.audio import load_audio, resample
from paltrain.encoders.base import AudioEncoder
from paltrain.encoders.windows import encode_all
from paltrain.errors import ModelError
from paltrain.model.configuration import PalConfig
from paltrain.model.template import ChatTemplate, TemplateFields, Turns, turns_of
from paltrain.model.tokenization import load_tokenizer

Recording = (
    str | Path | tuple[NDArray[np.float32], int]
)  # a file, or (waveform (n,), sample rate in Hz)
Features = Mapping[str, NDArray[np.float32]]  # by stream, (n_frames, width)
Heard = Recording | Features
Text = str | Sequence[Mapping[str, str]]  # an instruction, or a conversation's messages


class PalProcessor:
    """Prepares prompts for a `PalModel` and reads its answers."""

    def __init__(
        self, config: PalConfig, tokenizer: Any, *, encoder_paths: Mapping[str, str] | None = None
    ) -> None:
        """encoder_paths: by stream, where the encoder's weights lie on this machine, if not where
        they lay in training."""
        self.config = config
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer, TemplateFields(**config.template))
        self._prompts = ChatTemplate(tokenizer, self.template.fields, max_text_tokens=None)
        self._encoder_paths = dict(encoder_paths or {})

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, encoder_paths: Mapping[str, str] | None = None, **_: Any
    ) -> PalProcessor:
        """The processor of an exported model. Other keywords are those of `AutoProcessor`.

        Raises:
            ModelError: the folder was saved by a newer version, or has no tokenizer.
        """
        config = PalConfig.from_pretrained(folder)
        return cls(config, load_tokenizer(str(folder)), encoder_paths=encoder_paths)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer; template and encoders stand in the model's config, which is
        written too."""
        self.tokenizer.save_pretrained(folder)
        self.config.save_pretrained(folder)

    def __call__(
        self,
        text: Text | Sequence[Text],
        audio: Sequence[Heard | Sequence[Heard] | None] | Heard | None = None,
    ) -> Batch:
        """A prompt batch: one conversation a text, each about its recordings.

        Training's max_text_tokens, a matter of memory, does not bind prompts.

        text: instructions, or conversations: lists of {"role", "content"} that end with the user;
        `<|audio|>` in an instruction says where a clip stands (default: before the first one).
        audio: one entry a text: a recording, several, or None. A single text takes a single
        recording too. What `encode` gave stands for its recording.

        Raises:
            AudioError: a recording cannot be read. ManifestError: placeholders and recordings
            differ in number. ModelError: a conversation is none, or features are not this model's.
        """
        texts = _as_list(text)
        heard = _per_text(audio, len(texts))
        builder, clips = BatchBuilder(), []
        for each, recordings in zip(texts, heard, strict=True):
            turns = turns_of(each, system=self.template.fields.system)
            features = [self.features(recording) for recording in recordings]
            self._add(builder, turns, features)
            clips += features
        return builder.build(self._packed(clips))

    def encode(self, recording: Recording) -> Features:
        """Every stream's features of one recording, (n_frames, width) each."""
        by_encoder: dict[int, NDArray[np.float32]] = {}
        for encoder in self.encoders.values():
            if id(encoder) not in by_encoder:
                waveform = _waveform(recording, encoder.sample_rate_hz)
                by_encoder[id(encoder)] = encode_all(encoder, [waveform])[0]
        return {name: by_encoder[id(encoder)] for name, encoder in self.encoders.items()}

    def features(self, heard: Heard) -> Features:
        """What `encode` gives, or gave. Raises ModelError for features of other streams."""
        if not isinstance(heard, Mapping):
            return self.encode(heard)
        names = list(self.config.streams)
        if set(heard) != set(names):
            raise ModelError(
                f"features are of {', '.join(heard) or 'no stream'}, but the model's streams are "
                f"{', '.join(names)}: pass what this processor's `encode` gave"
            )
        return heard

    def decode(self, token_ids: Sequence[int]) -> str:
        """An answer's tokens as text."""
        text: str = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        return text.strip()

    @cached_property
    def encoders(self) -> dict[str, AudioEncoder]:
        """By stream, the encoder that made its training features; streams with the same share it.

        Raises:
            ModelError: its weights are not here, or are not those of training.
        """
        built: list[tuple[dict[str, Any], AudioEncoder]] = []
        by_stream = {}
        for name, spec in self.config.streams.items():
            stamp = self._stamp(name, spec)
            shared = next((encoder for other, encoder in built if other == stamp), None)
            by_stream[name] = shared or _build(name, stamp)
            built.append((stamp, by_stream[name]))
        return by_stream

    def _stamp(self, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        """What made a stream's features, the weights looked for where this machine has them."""
        stamp = dict(spec.get("encoder") or {})
        if "encoder" not in stamp:
            raise ModelError(
                f"stream '{name}' does not say which encoder made its features: export the model "
                "from its run again"
            )
        stamp.pop("dtype", None)  # of the store alone
        if name in self._encoder_paths:
            stamp["encoder"] = {**stamp["encoder"], "path": self._encoder_paths[name]}
        return stamp

    def _add(self, builder: BatchBuilder, turns: Turns, features: Sequence[Features]) -> None:
        rendered = self._prompts.render(turns, n_clips=len(features))
        piece = builder.add_text(rendered.texts[0])
        for clip, following in zip(features, rendered.texts[1:], strict=True):
            piece = builder.add_clip({name: len(values) for name, values in clip.items()}, piece)
            piece = builder.add_text(following, piece)
        builder.add_id(turns[-1][0])

    def _packed(self, clips: Sequence[Features]) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(np.concatenate([clip[name] for clip in clips]))
            for name in self.config.streams
            if clips
        }


def _as_list(text: Any) -> list[Text]:
    """One instruction or one conversation becomes a list of it."""
    is_conversation = bool(text) and isinstance(text[0], Mapping)
    return [text] if isinstance(text, str) or is_conversation else list(text)


def _per_text(audio: Any, n_texts: int) -> list[list[Heard]]:
    """By text, the list of its recordings."""
    if audio is None:
        return [[] for _ in range(n_texts)]
    if _is_one(audio):
        audio = [audio]
    if len(audio) != n_texts:
        raise ModelError(
            f"{len(audio)} entries of audio for {n_texts} texts: give one a text (None where there "
            "is none)"
        )
    return [recordings_of(entry) for entry in audio]


def recordings_of(entry: Any) -> list[Heard]:
    """One text's audio as a list: of None, one recording or several.

    Raises ModelError for a waveform without its rate.
    """
    if isinstance(entry, np.ndarray | torch.Tensor):
        raise ModelError(
            f"a waveform came without its sample rate ({type(entry).__name__} of shape "
            f"{tuple(entry.shape)}): give (waveform, sample_rate_hz), a NumPy array first"
        )
    return [] if entry is None else [entry] if _is_one(entry) else list(entry)


def _is_one(entry: Any) -> bool:
    """Whether it is one recording: a file, a waveform with its rate, or features."""
    is_waveform = isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], np.ndarray)
    return is_waveform or isinstance(entry, str | Path | Mapping)


def _waveform(recording: Recording, sample_rate_hz: int) -> NDArray[np.float32]:
    if isinstance(recording, str | Path):
        return load_audio(recording, sample_rate_hz=sample_rate_hz)
    return resample(*recording, sample_rate_hz)


def _build(name: str, stamp: Mapping[str, Any]) -> AudioEncoder:
    encoder = build_encoder(**stamp["encoder"])
    trained, here = stamp.get("weight_hash"), encoder.provenance().get("weight_hash")
    if trained is not None and here != trained:
        raise ModelError(
            f"stream '{name}' was trained on features of an encoder with weights {trained}, but "
            f"those of '{stamp['encoder'].get('path')}' here are {here}: name the same weights in "
            f"encoder_paths={{'{name}': FOLDER}}"
        )
    return encoder.to("cuda" if torch.cuda.is_available() else "cpu")


AutoProcessor.register(PalConfig, PalProcessor, exist_ok=True)
