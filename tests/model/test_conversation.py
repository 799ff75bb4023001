"""Several turns over clips that are encoded once, and prompts of messages and features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from paltrain import Conversation, PalModel, PalProcessor
from paltrain.encoders import build_encoder
from paltrain.errors import AudioError, ManifestError, ModelError
from paltrain.model.template import AUDIO_PLACEHOLDER
from tests.exported import export_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    texts = ["Which sound is heard?", "a bell", "How many?", "two"] * 9
    encoder = build_encoder("logmel", options={"n_mels": 8})
    export_tiny_model(folder, encoder, texts, system="Listen.", max_text_tokens=40)
    for name, seconds in (("a", 1.0), ("b", 0.4)):
        noise = np.random.default_rng(int(10 * seconds)).normal(size=int(8_000 * seconds))
        soundfile.write(folder / f"{name}.wav", 0.1 * noise, 8_000)
    return folder


class Counting:
    """Counts the waveforms that an encoder is given."""

    def __init__(self, encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n, self._encode = 0, encoder.encode
        monkeypatch.setattr(encoder, "encode", self)

    def __call__(self, waveforms: Any) -> Any:
        self.n += len(waveforms)
        return self._encode(waveforms)


def test_a_clip_is_encoded_once_for_all_turns_and_each_answer_is_that_to_the_whole_dialogue(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = PalModel.from_pretrained(folder), PalProcessor.from_pretrained(folder)
    calls = Counting(processor.encoders["mel"], monkeypatch)
    talk = Conversation(model, processor, max_new_tokens=5)
    answers = [
        talk.ask("Which sound is heard?", audio=folder / "a.wav"),
        talk.ask("How many?"),
        talk.ask("Is this louder?", audio=folder / "b.wav"),
        talk.ask("Sure?"),
    ]
    assert calls.n == 2
    assert [m["content"] for m in talk.messages if m["role"] == "assistant"] == answers
    a, b = (processor.encode(folder / f"{name}.wav") for name in "ab")
    turns = [
        (f"{AUDIO_PLACEHOLDER}\nWhich sound is heard?", answers[0]),
        ("How many?", answers[1]),
        (f"{AUDIO_PLACEHOLDER}\nIs this louder?", answers[2]),
        ("Sure?", None),
    ]
    rendered = processor._prompts.render(turns, n_clips=2)
    batch = processor(text=talk.messages[:-1], audio=[[a, b]])
    assert batch.token_ids.tolist() == np.concatenate(rendered.texts).tolist()
    assert batch.is_clip.tolist() == [False, True, False, True, False]
    assert batch.features["mel"].n_frames.tolist() == [50, 20]
    (tokens,) = model.generate_answers(
        batch, max_new_tokens=5, eos_token_id=processor.tokenizer.eos_token_id
    )
    assert processor.decode(tokens) == answers[3]


def test_text_alone_is_a_conversation_and_forgetting_starts_anew(folder: Path) -> None:
    model, processor = PalModel.from_pretrained(folder), PalProcessor.from_pretrained(folder)
    talk = Conversation(model, processor, max_new_tokens=4)
    first = talk.ask("How many?")
    talk.ask("Sure?", audio=[folder / "a.wav", folder / "b.wav"])
    assert len(talk.clips) == 2
    talk.forget()
    assert talk.ask("How many?") == first
    assert talk.clips == []


def test_a_turn_that_fails_leaves_the_conversation_as_it_was(folder: Path) -> None:
    model, processor = PalModel.from_pretrained(folder), PalProcessor.from_pretrained(folder)
    talk = Conversation(model, processor, max_new_tokens=2)
    talk.ask("Which sound is heard?", audio=folder / "a.wav")
    before = list(talk.messages)
    with pytest.raises(AudioError, match=r"gone\.wav"):
        talk.ask("And here?", audio=folder / "gone.wav")
    with pytest.raises(ManifestError, match="2 <.audio.> for 1 clips"):
        talk.ask(AUDIO_PLACEHOLDER * 2, audio=folder / "a.wav")
    assert talk.messages == before
    assert len(talk.clips) == 1


def test_features_messages_and_recordings_mix_in_one_batch(folder: Path) -> None:
    processor = PalProcessor.from_pretrained(folder)
    features = processor.encode(folder / "a.wav")
    messages = [
        {"role": "system", "content": "Listen."},
        {"role": "user", "content": "Which sound is heard?"},
        {"role": "assistant", "content": "a bell"},
        {"role": "user", "content": "How many?"},
    ]
    batch = processor(text=["Hello?", messages, "What?"], audio=[None, features, folder / "b.wav"])
    assert batch.features["mel"].n_frames.tolist() == [50, 20]
    assert len(batch.leaves) == 3
    assert processor(text=messages, audio=features).n_clips == 1


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (["user", "assistant"], "this one is user, assistant"),
        (["assistant", "user"], "this one is assistant, user"),
        (["system", "user"], "of the system, the model was trained with 'Listen.'"),
    ],
)
def test_messages_that_are_no_conversation_are_refused(
    folder: Path, roles: list[str], message: str
) -> None:
    processor = PalProcessor.from_pretrained(folder)
    with pytest.raises(ModelError, match=message):
        processor(text=[{"role": role, "content": "x"} for role in roles])


def test_features_of_other_streams_are_refused(folder: Path) -> None:
    processor = PalProcessor.from_pretrained(folder)
    with pytest.raises(ModelError, match="of whisper, but the model.s streams are mel"):
        processor(text="What?", audio={"whisper": np.zeros((3, 8), np.float32)})


def test_streams_of_one_encoder_encode_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = PalProcessor.from_pretrained(folder)
    spec = processor.config.streams["mel"]
    other = {**spec["encoder"], "encoder": {"type": "logmel", "options": {"n_mels": 4}}}
    processor.config.streams = {
        "whole": spec,
        "summary": {**spec, "route": "plits", "encoder": {**spec["encoder"], "dtype": "int8"}},
        "coarse": {**spec, "encoder": {**other, "weight_hash": None}, "width": 4},
    }
    assert processor.encoders["whole"] is processor.encoders["summary"]
    calls = Counting(processor.encoders["whole"], monkeypatch)
    features = processor.encode(folder / "a.wav")
    assert calls.n == 1
    assert {name: f.shape for name, f in features.items()} == {
        "whole": (50, 8),
        "summary": (50, 8),
        "coarse": (50, 4),
    }


def test_an_encoder_with_other_weights_than_in_training_is_refused(folder: Path) -> None:
    processor = PalProcessor.from_pretrained(folder)
    spec = processor.config.streams["mel"]
    stamp = {**spec["encoder"], "weight_hash": "0123"}
    processor.config.streams = {"mel": {**spec, "encoder": stamp}}
    with pytest.raises(ModelError, match=r"weights 0123, but .* encoder_paths=\{'mel': FOLDER\}"):
        processor.encode(folder / "a.wav")
