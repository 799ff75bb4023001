"""Encoders: independent references, trimming, batching, rebuilding from their provenance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import WhisperFeatureExtractor, WhisperModel

from paltrain.encoders import build_encoder, fbank
from paltrain.encoders.windows import batches_of_like_length, encode_all
from paltrain.errors import ConfigError, ModelError

RNG = np.random.default_rng(0)
FBANK = {
    "sample_rate_hz": 16_000,
    "n_mels": 40,
    "frame_shift_ms": 20.0,
    "f_min_hz": 20.0,
    "f_max_hz": 8000.0,
}


def noise(duration_s: float) -> np.ndarray:
    return (0.1 * RNG.normal(size=round(duration_s * 16_000))).astype(np.float32)


def kaldi_written_out(waveform: np.ndarray) -> np.ndarray:
    """Kaldi's fbank in numpy: 25 ms Hann frames every 20 ms, mean removed, pre-emphasis 0.97,
    mel."""
    shift, window, n_fft, n_mels = 320, 400, 512, 40
    n_frames = (len(waveform) + shift // 2) // shift
    index = np.arange(n_frames)[:, None] * shift + shift // 2 - window // 2 + np.arange(window)
    index = np.where(index < 0, -index - 1, index)
    index = np.where(index >= len(waveform), 2 * len(waveform) - 1 - index, index)
    frames = waveform[index].astype(np.float64)
    frames -= frames.mean(1, keepdims=True)
    frames -= 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / (window - 1))
    power = np.abs(np.fft.rfft(frames * hann, n_fft)) ** 2
    mel = lambda hz: 1127 * np.log(1 + np.asarray(hz) / 700)  # noqa: E731
    edges = np.linspace(mel(20), mel(8000), n_mels + 2)
    bins = mel(np.arange(n_fft // 2 + 1) * 16_000 / n_fft)
    rising = (bins[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - bins[:, None]) / np.diff(edges)[1:]
    weights = np.maximum(0, np.minimum(rising, falling))
    weights[-1] = 0  # Kaldi leaves the Nyquist bin out
    return np.log(np.maximum(power @ weights, np.finfo(np.float32).eps))


def fbank_backends() -> list:
    present = [fbank.with_kaldi_native_fbank]
    if fbank.backend() is fbank.with_torchaudio:
        present.append(fbank.with_torchaudio)
    return present


@pytest.mark.parametrize("backend", fbank_backends(), ids=lambda f: f.__name__)
def test_log_mel_equals_kaldis_definition_written_out(backend) -> None:
    waveform = noise(0.7)
    np.testing.assert_allclose(backend(waveform, **FBANK), kaldi_written_out(waveform), atol=2e-3)


def test_logmel_frames_last_as_long_as_the_recording_and_show_when_a_tone_sounds() -> None:
    encoder = build_encoder("logmel", options={"frame_rate_hz": 25, "n_mels": 32})
    waveform = np.zeros(32_000, np.float32)
    waveform[16_000:] = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
    (frames,) = encoder.encode([waveform])
    assert frames.shape == (50, 32)
    loudness = frames.max(1)
    assert loudness[:24].max() < -1 < 1 < loudness[26:].min()


@pytest.mark.parametrize("duration_s", [0.1, 0.33, 2.0])
def test_logmel_trims_to_the_duration_and_does_not_depend_on_the_batch(duration_s: float) -> None:
    encoder = build_encoder("logmel")
    waveform = noise(duration_s)
    alone = encoder.encode([waveform])[0]
    assert alone.shape == (round(duration_s * 50), 64)
    np.testing.assert_array_equal(encoder.encode([noise(1.0), waveform])[1], alone)


def test_whisper_equals_transformers_and_is_trimmed(whisper_folder: Path) -> None:
    encoder = build_encoder("whisper", path=str(whisper_folder))
    waveforms = [noise(1.3), noise(2.0)]
    extract = WhisperFeatureExtractor.from_pretrained(whisper_folder)
    features = extract(waveforms, sampling_rate=16_000, return_tensors="pt").input_features
    model = WhisperModel.from_pretrained(whisper_folder).get_encoder().eval()
    with torch.inference_mode():
        expected = model(features).last_hidden_state.numpy()
    first, second = encoder.encode(waveforms)
    assert encoder.frame_rate_hz == 50
    np.testing.assert_allclose(first, expected[0, :65], atol=1e-6)
    np.testing.assert_allclose(second, expected[1], atol=1e-6)


def test_whisper_equals_transformers_on_each_window_of_a_long_recording(
    whisper_folder: Path,
) -> None:
    encoder = build_encoder("whisper", path=str(whisper_folder))
    waveform = noise(5.0)
    windows = [waveform[:32_000], waveform[32_000:64_000], waveform[64_000:]]
    extract = WhisperFeatureExtractor.from_pretrained(whisper_folder)
    inputs = extract(windows, sampling_rate=16_000, return_tensors="pt").input_features
    model = WhisperModel.from_pretrained(whisper_folder).get_encoder().eval()
    with torch.inference_mode():
        hidden = model(inputs).last_hidden_state.numpy()
    expected = np.concatenate([hidden[0], hidden[1], hidden[2, :50]])
    np.testing.assert_allclose(encode_all(encoder, [waveform])[0], expected, atol=1e-6)


def test_every_example_of_features_names_an_encoder_and_options_it_takes() -> None:
    for file in sorted((Path(__file__).parents[2] / "configs/features").glob("*.yaml")):
        for fields in yaml.safe_load(file.read_text()).get("encoders", {}).values():
            fields = {**fields, "path": "/no/such/folder"}
            with pytest.raises(ModelError, match="'/no/such/folder' cannot be loaded"):
                build_encoder(**fields)


def test_missing_weights_are_named(whisper_folder: Path, tmp_path: Path) -> None:
    for file in whisper_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(whisper_folder / "model.safetensors")
    del weights["encoder.conv1.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"missing: encoder\.conv1\.weight\. Give"):
        build_encoder("whisper", path=str(tmp_path))


def test_a_long_recording_is_heard_window_by_window(whisper_folder: Path) -> None:
    encoder = build_encoder("whisper", path=str(whisper_folder))
    waveform, short = noise(5.0), noise(0.7)
    batches: list[float] = []
    long, other = encode_all(encoder, [waveform, short], batch_clips=3, on_batch=batches.append)
    windows = encoder.encode([waveform[:32_000], waveform[32_000:64_000], waveform[64_000:]])
    assert long.shape == (250, 16)
    np.testing.assert_allclose(long, np.concatenate(windows), atol=1e-6)
    np.testing.assert_allclose(other, encoder.encode([short])[0], atol=1e-6)
    assert batches == pytest.approx([0.7 + 1 + 2, 2])
    for n, n_frames in ((64_000, 200), (64_100, 200), (64_200, 201), (10, 1)):
        (frames,) = encode_all(encoder, [noise(5.0)[:n]])
        assert len(frames) == n_frames


def test_batches_keep_to_both_limits_and_are_of_like_length() -> None:
    lengths = [5, 1, 9, 2, 30, 2, 9]
    batches = list(batches_of_like_length(lengths, batch_clips=3, batch_samples=20))
    assert [[lengths[place] for place in batch] for batch in batches] == [
        [1, 2, 2],
        [5, 9],
        [9],
        [30],
    ]


@pytest.mark.parametrize("pool", [2, 4])
def test_pooled_frames_are_means_of_neighbours(whisper_folder: Path, pool: int) -> None:
    for fields in (
        {"type": "logmel", "options": {"n_mels": 16}},
        {"type": "whisper", "path": str(whisper_folder)},
    ):
        encoder, pooled = build_encoder(**fields), build_encoder(**fields, pool=pool)
        assert pooled.frame_rate_hz == encoder.frame_rate_hz / pool
        waveform = noise(1.3)  # 65 frames
        (frames,), (few,) = encoder.encode([waveform]), pooled.encode([waveform])
        assert few.shape == (-(-65 // pool), encoder.width)
        np.testing.assert_allclose(few[3], frames[3 * pool : 4 * pool].mean(0), atol=1e-5)
        np.testing.assert_allclose(few[-1], frames[-1], atol=1e-5)
        assert build_encoder(**pooled.provenance()["encoder"]).provenance() == pooled.provenance()


def test_a_pool_that_does_not_divide_a_window_is_refused(whisper_folder: Path) -> None:
    with pytest.raises(ConfigError, match="pool=3 must divide the encoder's 100 time steps"):
        build_encoder("whisper", path=str(whisper_folder), pool=3)


def test_whisper_in_half_precision_is_near_and_stamped(whisper_folder: Path) -> None:
    encoder = build_encoder("whisper", path=str(whisper_folder))
    options = {"compute_dtype": "bfloat16"}
    half = build_encoder("whisper", path=str(whisper_folder), options=options)
    waveform = noise(1.0)
    np.testing.assert_allclose(half.encode([waveform])[0], encoder.encode([waveform])[0], atol=0.1)
    assert half.provenance()["encoder"]["options"] == options
    with pytest.raises(ConfigError, match="unknown compute_dtype 'int4'"):
        build_encoder("whisper", path=str(whisper_folder), options={"compute_dtype": "int4"})


def test_an_encoder_is_rebuilt_from_its_provenance(whisper_folder: Path) -> None:
    for encoder in (
        build_encoder("logmel", options={"n_mels": 16}),
        build_encoder("whisper", path=str(whisper_folder)),
    ):
        stamp = encoder.provenance()
        again = build_encoder(**stamp["encoder"])
        assert again.provenance() == stamp
        waveform = noise(0.5)
        np.testing.assert_array_equal(encoder.encode([waveform])[0], again.encode([waveform])[0])


def test_what_cannot_be_built_says_what_can(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown encoder type 'wisper'.*did you mean 'whisper'"):
        build_encoder("wisper")
    fault = "unknown option of encoder 'logmel' 'mels' .did you mean 'n_mels'.*; valid: .*f_min_hz"
    with pytest.raises(ConfigError, match=fault):
        build_encoder("logmel", options={"mels": 3})
    for beside in ("path", "revision"):
        with pytest.raises(ConfigError, match="path and revision stand beside options, not in"):
            build_encoder("whisper", path="a", options={beside: "b"})
    with pytest.raises(ConfigError, match="'logmel': options.n_mels is '80': .* valid integer"):
        build_encoder("logmel", options={"n_mels": "80"})
    with pytest.raises(ConfigError, match="0 < f_min_hz < f_max_hz <= 8000, not 20"):
        build_encoder("logmel", options={"f_max_hz": 9000})
    with pytest.raises(ConfigError, match="logmel cannot make n_mels=500 bands from 20 to 8000"):
        build_encoder("logmel", options={"n_mels": 500})
    with pytest.raises(ConfigError, match=r"needs its path"):
        build_encoder("whisper")
    with pytest.raises(ModelError, match="cannot be loaded"):
        build_encoder("whisper", path=str(tmp_path / "none"))
