"""CLAP: equal to `transformers`, in order of time, deterministic with fusion, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    ClapAudioConfig,
    ClapAudioModel,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
)

from paltrain.encoders import build_encoder
from paltrain.encoders.windows import encode_all
from paltrain.errors import ConfigError, ModelError
from tests.encoders.conftest import Noise, saved

RATE = 48_000
WIDTH = 32
CELLS, STEPS = 2, 32


def tiny_config(fusion: bool) -> ClapAudioConfig:
    """The released shape of a spectrogram (1001 x 64, folded to 256 x 256), but narrow blocks."""
    return ClapAudioConfig(
        spec_size=256,
        num_mel_bins=64,
        patch_embeds_hidden_size=4,
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        hidden_size=WIDTH,
        enable_fusion=fusion,
        drop_path_rate=0.0,
    )


def extractor(fusion: bool, padding: str = "repeatpad") -> ClapFeatureExtractor:
    truncation = "fusion" if fusion else "rand_trunc"
    return ClapFeatureExtractor(
        frequency_min=50, frequency_max=14_000, truncation=truncation, padding=padding
    )


@pytest.fixture(scope="module", params=[False, True], ids=["unfused", "fused"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = ClapAudioModel(tiny_config(request.param))
    return saved(model, extractor(request.param), tmp_path_factory.mktemp("clap"))


def expected_of(folder: Path, waveforms: list[np.ndarray]):
    extract = ClapFeatureExtractor.from_pretrained(folder)
    model = ClapAudioModel.from_pretrained(folder).eval()
    inputs = extract(waveforms, sampling_rate=RATE, return_tensors="pt")
    with torch.inference_mode():
        return model(
            input_features=inputs.input_features,
            is_longer=torch.zeros_like(inputs.is_longer, dtype=torch.bool),
        )


def test_tokens_equal_transformers_in_order_of_time_and_are_trimmed(
    folder: Path, noise: Noise
) -> None:
    encoder = build_encoder("clap", path=str(folder))
    assert (encoder.sample_rate_hz, encoder.window_s, encoder.width) == (RATE, 10, WIDTH)
    assert (encoder.frame_rate_hz, encoder.tokens_per_step) == (6.4, CELLS)
    waveforms = [noise(10.0, RATE), noise(3.4, RATE)]
    expected = expected_of(folder, waveforms).last_hidden_state.numpy()
    assert expected.shape == (2, WIDTH, CELLS, STEPS)
    whole, short = encoder.encode(waveforms)
    assert (whole.shape, short.shape) == ((64, WIDTH), (22, WIDTH))
    for step in range(STEPS):
        for cell in range(CELLS):
            token = CELLS * step + cell
            np.testing.assert_allclose(whole[token], expected[0, :, cell, step], atol=1e-5)
            if token < len(short):
                np.testing.assert_allclose(short[token], expected[1, :, cell, step], atol=1e-5)


def test_pooled_equals_transformers_and_is_a_frame_a_window(folder: Path, noise: Noise) -> None:
    encoder = build_encoder("clap", path=str(folder), options={"output": "pooled"})
    waveforms = [noise(10.0, RATE), noise(2.0, RATE)]
    expected = expected_of(folder, waveforms).pooler_output.numpy()
    np.testing.assert_allclose(np.concatenate(encoder.encode(waveforms)), expected, atol=1e-5)
    assert encoder.frame_rate_hz == 0.1
    lengths = [len(frames) for frames in encode_all(encoder, [noise(s, RATE) for s in (26, 14)])]
    assert lengths == [3, 1]


@pytest.mark.parametrize("padding", ["repeat", "repeatpad", "pad"])
def test_spectrograms_equal_the_feature_extractors(
    tmp_path: Path, noise: Noise, padding: str
) -> None:
    for fusion in (False, True):
        torch.manual_seed(0)
        extract = extractor(fusion, padding)
        path = saved(ClapAudioModel(tiny_config(fusion)), extract, tmp_path / str(fusion))
        encoder = build_encoder("clap", path=str(path))
        waveforms = [noise(10.0, RATE), noise(3.3, RATE), np.zeros(RATE, np.float32)]
        theirs = extract(waveforms, sampling_rate=RATE, return_tensors="pt").input_features
        ours = encoder._spectrograms(waveforms)
        assert ours.shape == theirs.shape == (3, 4 if fusion else 1, 1001, 64)
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-3)


def test_a_sound_is_in_the_frames_of_its_time(folder: Path) -> None:
    """What changes in one second changes its own steps most, across HTSAT's folds."""
    encoder = build_encoder("clap", path=str(folder))
    rng = np.random.default_rng(0)
    base = (0.01 * rng.normal(size=10 * RATE)).astype(np.float32)
    (before,) = encoder.encode([base])
    for second in (1, 4, 8):
        louder = base.copy()
        louder[second * RATE : (second + 1) * RATE] *= 30
        (after,) = encoder.encode([louder])
        change = np.abs(after - before).reshape(STEPS, -1).sum(1)
        assert abs((np.argmax(change) + 0.5) * 10 / STEPS - (second + 0.5)) < 1


def test_features_depend_neither_on_chance_nor_on_the_batch(folder: Path, noise: Noise) -> None:
    encoder = build_encoder("clap", path=str(folder))
    waveforms = [noise(1.0, RATE), noise(2.5, RATE), np.zeros(4800, np.float32)]
    np.random.seed(0)
    together = encoder.encode(waveforms)
    np.random.seed(5)
    for frames, again in zip(together, encoder.encode(waveforms), strict=True):
        np.testing.assert_array_equal(frames, again)
    for frames, waveform in zip(together, waveforms, strict=True):
        np.testing.assert_allclose(frames, encoder.encode([waveform])[0], atol=1e-5)
        assert np.isfinite(frames).all()


@pytest.mark.parametrize(
    ("n_samples", "n_steps"), [(1, 1), (100, 1), (25 * RATE, 80), (487_000, 32), (488_000, 33)]
)
def test_a_recording_of_any_length_has_the_steps_of_its_duration(
    folder: Path, n_samples: int, n_steps: int, noise: Noise
) -> None:
    (frames,) = encode_all(build_encoder("clap", path=str(folder)), [noise(n_samples / RATE, RATE)])
    assert frames.shape == (n_steps * CELLS, WIDTH)
    assert np.isfinite(frames).all()


def test_a_whole_clap_gives_the_weights_of_its_audio_half(tmp_path: Path, noise: Noise) -> None:
    text = ClapTextConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    torch.manual_seed(0)
    config = ClapConfig(
        text_config=text.to_dict(), audio_config=tiny_config(False).to_dict(), projection_dim=8
    )
    model = ClapModel(config)
    whole = saved(model, extractor(False), tmp_path / "whole")
    model.audio_model.save_pretrained(tmp_path / "half")
    extractor(False).save_pretrained(tmp_path / "half")
    waveform = noise(1.0, RATE)
    of_whole, of_half = (
        build_encoder("clap", path=str(path)) for path in (whole, tmp_path / "half")
    )
    assert of_whole.provenance()["weight_hash"] == of_half.provenance()["weight_hash"]
    np.testing.assert_array_equal(of_whole.encode([waveform])[0], of_half.encode([waveform])[0])


def test_a_clap_is_rebuilt_from_its_provenance(folder: Path, noise: Noise) -> None:
    options = {"output": "pooled", "compute_dtype": "bfloat16"}
    encoder = build_encoder("clap", path=str(folder), options=options)
    stamp = encoder.provenance()
    assert stamp["encoder"]["options"] == options
    assert build_encoder(**stamp["encoder"]).provenance() == stamp


def test_what_cannot_be_a_clap_says_why(folder: Path, whisper_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="encoder 'clap' needs its path"):
        build_encoder("clap")
    with pytest.raises(ModelError, match="'.*none' cannot be loaded"):
        build_encoder("clap", path=str(tmp_path / "none"))
    with pytest.raises(ModelError, match="cannot be loaded|of type 'whisper'"):
        build_encoder("clap", path=str(whisper_folder))
    with pytest.raises(ConfigError, match="unknown output of encoder 'clap' 'token'.*'tokens'"):
        build_encoder("clap", path=str(folder), options={"output": "token"})
    with pytest.raises(ConfigError, match="option of encoder 'clap' 'layer'"):
        build_encoder("clap", path=str(folder), options={"layer": 3})
    with pytest.raises(ConfigError, match="unknown compute_dtype 'half'"):
        build_encoder("clap", path=str(folder), options={"compute_dtype": "half"})


@pytest.mark.parametrize("fusion", [False, True])
def test_a_preprocessor_of_another_kind_of_clap_is_refused(fusion: bool, tmp_path: Path) -> None:
    saved(ClapAudioModel(tiny_config(fusion)), extractor(not fusion), tmp_path)
    with pytest.raises(
        ModelError, match=f"enable_fusion is {fusion}, but the preprocessor's trunc"
    ):
        build_encoder("clap", path=str(tmp_path))


def test_missing_weights_are_named(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    del weights["audio_encoder.norm.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"missing: audio_encoder\.norm\.bias"):
        build_encoder("clap", path=str(tmp_path))
