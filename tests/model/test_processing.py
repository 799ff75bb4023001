"""PalProcessor: the features of training, prompts of text and recordings, answers as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from paltrain import PalModel, PalProcessor
from paltrain.encoders import build_encoder
from paltrain.errors import AudioError, ManifestError, ModelError
from paltrain.model.processing import recordings_of
from paltrain.model.template import AUDIO_PLACEHOLDER
from tests.exported import export_tiny_model

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model that listens to log-mel frames."""
    folder = tmp_path_factory.mktemp("model")
    texts = ["Which sound is heard?", "a bell"] * 9
    encoder = build_encoder("logmel", options={"n_mels": 8})
    export_tiny_model(folder, encoder, texts, system="Listen.")
    return folder


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).normal(size=8_000), 8_000)
    return tmp_path / "a.wav"


def test_a_waveform_without_its_rate_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"without its sample rate \(ndarray of shape \(16000,\)\)"
    ):
        recordings_of(np.zeros(16_000, np.float32))


def test_a_prompt_has_the_encoders_features_of_the_recording(folder: Path, recording: Path) -> None:
    processor = PalProcessor.from_pretrained(folder)
    batch = processor(text="Which sound is heard?", audio=recording)
    assert batch.is_clip.tolist() == [False, True, False]
    assert batch.features["mel"].n_frames.tolist() == [50]
    frames = processor.encode(recording)["mel"]
    assert batch.features["mel"].values.shape == frames.shape == (50, 8)
    text = processor.tokenizer.decode(batch.token_ids)
    assert "Listen." in text
    assert text.endswith("Which sound is heard?<|assistant|>")


def test_a_waveform_gives_the_features_of_its_file(folder: Path, recording: Path) -> None:
    processor = PalProcessor.from_pretrained(folder)
    samples, rate = soundfile.read(recording, dtype="float32")
    np.testing.assert_array_equal(
        processor.encode((samples, rate))["mel"], processor.encode(recording)["mel"]
    )


def test_conversations_with_no_one_and_two_recordings_are_answered_in_one_batch(
    folder: Path, recording: Path
) -> None:
    processor, model = PalProcessor.from_pretrained(folder), PalModel.from_pretrained(folder)
    texts = ["Hello?", "What?", f"Is {AUDIO_PLACEHOLDER} like {AUDIO_PLACEHOLDER}?"]
    batch = processor(text=texts, audio=[None, recording, [recording, recording]])
    assert batch.n_clips == 3
    eos = processor.tokenizer.eos_token_id
    together = model.eval().generate_answers(batch, max_new_tokens=4, eos_token_id=eos)
    assert len(together) == 3
    alone = processor(text=texts[1], audio=recording)
    assert model.generate_answers(alone, max_new_tokens=4, eos_token_id=eos) == [together[1]]
    assert all(isinstance(processor.decode(tokens), str) for tokens in together)


def test_what_cannot_be_prepared_says_why(folder: Path, recording: Path) -> None:
    processor = PalProcessor.from_pretrained(folder)
    with pytest.raises(AudioError, match="gone.wav is missing"):
        processor(text="What?", audio=recording.with_name("gone.wav"))
    with pytest.raises(ManifestError, match="1 <.audio.> for 2 clips"):
        processor(text=f"{AUDIO_PLACEHOLDER}?", audio=[[recording, recording]])
    with pytest.raises(ModelError, match="1 entries of audio for 2 texts"):
        processor(text=["a", "b"], audio=[recording])
