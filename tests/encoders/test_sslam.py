"""SSLAM: the ViT and its input against independent ones, released names, trimming, what is
refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import ASTFeatureExtractor

from paltrain.encoders import build_encoder
from paltrain.encoders.spectrogram import kaldi_fbank, kaldi_mel_filters
from paltrain.encoders.windows import encode_all
from paltrain.errors import ConfigError, ModelError
from tests.encoders.conftest import Noise

WIDTH, DEPTH, N_HEADS = 24, 3, 3
SIZES = {"width": WIDTH, "depth": DEPTH, "n_heads": N_HEADS}
RATE = 16_000

Weights = dict[str, torch.Tensor]


def released_weights() -> Weights:
    """Random ones, named and shaped as the files of ta012/SSLAM_pretrain and worstchan/EAT-*."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return 0.2 * torch.randn(shape, generator=generator)

    weights = {
        "model.extra_tokens": random(1, 1, WIDTH),
        "model.fixed_positional_encoder.positions": random(1, 768 * 8, WIDTH),
        "model.local_encoder.proj.weight": random(WIDTH, 1, 16, 16),
        "model.local_encoder.proj.bias": random(WIDTH),
        "model.pre_norm.weight": 1 + random(WIDTH),
        "model.pre_norm.bias": random(WIDTH),
    }
    layers = {
        "norm1": (WIDTH,),
        "norm2": (WIDTH,),
        "attn.qkv": (3 * WIDTH, WIDTH),
        "attn.proj": (WIDTH, WIDTH),
        "mlp.fc1": (4 * WIDTH, WIDTH),
        "mlp.fc2": (WIDTH, 4 * WIDTH),
    }
    for i in range(DEPTH):
        for layer, shape in layers.items():
            weights[f"model.blocks.{i}.{layer}.weight"] = random(*shape)
            weights[f"model.blocks.{i}.{layer}.bias"] = random(shape[0])
    return weights


@pytest.fixture
def weights() -> Weights:
    return released_weights()


@pytest.fixture
def folder(tmp_path: Path, weights: Weights) -> Path:
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


def fbank_written_out(waveform: np.ndarray) -> np.ndarray:
    """`transformers`' own loop over frames, unnormalised: (1024, 128), zeros behind the sound."""
    extract = ASTFeatureExtractor(num_mel_bins=128, max_length=1024, do_normalize=False)
    (bank,) = extract([waveform - waveform.mean()], sampling_rate=RATE)["input_values"]
    return np.asarray(bank)


def vit_written_out(w: Weights, image: torch.Tensor) -> torch.Tensor:
    """(1024, 128) -> (512, WIDTH): EAT's forward, patch by patch and head by head."""
    w = {key.removeprefix("model."): value.double() for key, value in w.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    kernel = w["local_encoder.proj.weight"].reshape(WIDTH, 256)
    tokens = [w["extra_tokens"][0, 0]]
    for step in range(64):
        for band in range(8):
            patch = image[16 * step : 16 * step + 16, 16 * band : 16 * band + 16].double()
            token = kernel @ patch.reshape(256) + w["local_encoder.proj.bias"]
            tokens.append(token + w["fixed_positional_encoder.positions"][0, 8 * step + band])
    x = norm(torch.stack(tokens), "pre_norm")
    size = WIDTH // N_HEADS
    for i in range(DEPTH):
        qkv = linear(x, f"blocks.{i}.attn.qkv")
        heads = []
        for head in range(N_HEADS):
            q, k, v = (
                qkv[:, part * WIDTH + head * size : part * WIDTH + (head + 1) * size]
                for part in range(3)
            )
            heads.append(torch.softmax(q @ k.T / math.sqrt(size), dim=-1) @ v)
        x = norm(x + linear(torch.cat(heads, 1), f"blocks.{i}.attn.proj"), f"blocks.{i}.norm1")
        inner = linear(x, f"blocks.{i}.mlp.fc1")
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = norm(x + linear(inner, f"blocks.{i}.mlp.fc2"), f"blocks.{i}.norm2")
    return x[1:]


def test_the_filter_bank_equals_that_of_transformers_loop_over_frames(noise: Noise) -> None:
    waveforms = torch.from_numpy(np.stack([noise(0.7, RATE) + 0.3, noise(0.7, RATE)]))
    filters = kaldi_mel_filters(128, sample_rate_hz=RATE, n_fft=512)
    banks = kaldi_fbank(waveforms, filters, frame=400, shift=160).numpy()
    for bank, waveform in zip(banks, waveforms, strict=True):
        assert len(bank) == 1 + (11_200 - 400) // 160
        np.testing.assert_allclose(
            bank, fbank_written_out(waveform.numpy())[: len(bank)], atol=1e-4
        )


def test_the_filter_bank_equals_kaldis_where_kaldi_makes_one(noise: Noise) -> None:
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.window_type, options.frame_opts.dither = "hanning", 0.0
    options.mel_opts.num_bins = 64
    computer = kaldi_native_fbank.OnlineFbank(options)
    waveform = noise(0.5, RATE)
    computer.accept_waveform(RATE, waveform)
    computer.input_finished()
    theirs = np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])
    filters = kaldi_mel_filters(64, sample_rate_hz=RATE, n_fft=512)
    (ours,) = kaldi_fbank(torch.from_numpy(waveform)[None], filters, frame=400, shift=160).numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_features_equal_the_reference_written_out(
    folder: Path, weights: Weights, noise: Noise
) -> None:
    encoder = build_encoder("sslam", path=str(folder), options=SIZES)
    for duration_s, n_steps in ((3.0, 19), (10.24, 64)):
        waveform = noise(duration_s, RATE) + np.float32(0.2)
        image = (torch.from_numpy(fbank_written_out(waveform)) + 4.268) / (2 * 4.569)
        expected = vit_written_out(weights, image)[: 8 * n_steps].float().numpy()
        (frames,) = encoder.encode([waveform])
        np.testing.assert_allclose(frames, expected, atol=1e-5)


def test_time_pooled_is_the_mean_over_the_bands_of_a_step(folder: Path, noise: Noise) -> None:
    waveform = noise(2.0, RATE)
    encoder = build_encoder("sslam", path=str(folder), options=SIZES)
    pooled = build_encoder("sslam", path=str(folder), options={**SIZES, "output": "time_pooled"})
    assert (encoder.frame_rate_hz, encoder.tokens_per_step) == (50, 8)
    assert (pooled.frame_rate_hz, pooled.tokens_per_step) == (6.25, 1)
    (frames,), (steps,) = encoder.encode([waveform]), pooled.encode([waveform])
    np.testing.assert_allclose(steps, frames.reshape(-1, 8, WIDTH).mean(1), atol=1e-6)
    assert encoder.provenance() != pooled.provenance()


@pytest.mark.parametrize(
    ("n_samples", "n_steps"),
    [(1, 1), (100, 1), (16_000, 6), (400_000, 156), (163_840 + 1270, 64), (163_840 + 1300, 65)],
)
def test_a_recording_of_any_length_has_the_steps_of_its_duration(
    n_samples: int, n_steps: int, noise: Noise
) -> None:
    waveform = noise(n_samples / RATE, RATE)
    for output, cells in (("frames", 8), ("time_pooled", 1)):
        encoder = build_encoder("sslam", options={**SIZES, "random_seed": 0, "output": output})
        (frames,) = encode_all(encoder, [waveform])
        assert frames.shape == (n_steps * cells, WIDTH)
        assert np.isfinite(frames).all()


def test_pooling_averages_over_time_and_never_over_frequency(folder: Path, noise: Noise) -> None:
    waveform = noise(1.1, RATE)  # 7 steps
    fields = {"path": str(folder), "options": SIZES}
    encoder, pooled = build_encoder("sslam", **fields), build_encoder("sslam", **fields, pool=2)
    (frames,), (few,) = encoder.encode([waveform]), pooled.encode([waveform])
    steps = frames.reshape(7, 8, WIDTH)
    expected = [steps[0:2].mean(0), steps[2:4].mean(0), steps[4:6].mean(0), steps[6]]
    np.testing.assert_allclose(few, np.concatenate(expected), atol=1e-6)
    assert pooled.frame_rate_hz == 25


def test_features_do_not_depend_on_the_batch_and_silence_has_some(
    folder: Path, noise: Noise
) -> None:
    encoder = build_encoder("sslam", path=str(folder), options=SIZES)
    short, long, silence = noise(0.5, RATE), noise(4.0, RATE), np.zeros(8000, np.float32)
    together = encoder.encode([short, long, silence])
    for frames, waveform in zip(together, (short, long, silence), strict=True):
        np.testing.assert_allclose(frames, encoder.encode([waveform])[0], atol=1e-5)
        assert np.isfinite(frames).all()


def test_a_seed_gives_the_same_weights_and_is_stamped(noise: Noise) -> None:
    def seeded(seed: int):
        return build_encoder("sslam", options={**SIZES, "random_seed": seed})

    torch.manual_seed(1)
    one = seeded(3)
    torch.manual_seed(2)
    same, other = seeded(3), build_encoder(**one.provenance()["encoder"])
    assert one.provenance() == same.provenance() == other.provenance()
    assert one.provenance()["encoder"]["options"]["random_seed"] == 3
    assert one.provenance()["weight_hash"] != seeded(0).provenance()["weight_hash"]
    waveform = noise(0.5, RATE)
    np.testing.assert_array_equal(one.encode([waveform])[0], other.encode([waveform])[0])


def test_random_positions_tell_band_and_step_apart() -> None:
    positions = build_encoder("sslam", options={**SIZES, "random_seed": 0})._model.positions[0]
    grid = positions.reshape(64, 8, WIDTH)
    half, rate = WIDTH // 2, 10_000 ** -(1 / (WIDTH // 4))
    torch.testing.assert_close(grid[0, :, :half], grid[9, :, :half])
    torch.testing.assert_close(grid[:, 0, half:], grid[:, 5, half:])
    assert grid[0, 3, 1].item() == pytest.approx(math.sin(3 * rate), abs=1e-6)
    assert grid[9, 0, half + 1].item() == pytest.approx(math.sin(9 * rate), abs=1e-6)
    assert grid[9, 0, half + WIDTH // 4].item() == pytest.approx(math.cos(9), abs=1e-6)


def test_half_precision_is_near(folder: Path, noise: Noise) -> None:
    options = {**SIZES, "compute_dtype": "bfloat16"}
    half = build_encoder("sslam", path=str(folder), options=options)
    whole = build_encoder("sslam", path=str(folder), options=SIZES)
    waveform = noise(1.0, RATE)
    difference = half.encode([waveform])[0] - whole.encode([waveform])[0]
    assert 0 < np.abs(difference).mean() < 0.05


def test_weights_that_are_missing_or_unknown_are_named(tmp_path: Path, weights: Weights) -> None:
    file = tmp_path / "model.safetensors"
    faults = {
        "missing: model.blocks.1.norm2.bias": {
            key: value for key, value in weights.items() if key != "model.blocks.1.norm2.bias"
        },
        "unknown: model.head.bias": {**weights, "model.head.bias": torch.zeros(527)},
        r"model.extra_tokens of shape \\(1, 2, 24\\)": {
            **weights,
            "model.extra_tokens": torch.zeros(1, 2, WIDTH),
        },
        r"positions of shape \\(1, 100, 24\\)": {
            **weights,
            "model.fixed_positional_encoder.positions": torch.zeros(1, 100, WIDTH),
        },
    }
    for fault, held in faults.items():
        save_file(held, file)
        with pytest.raises(ModelError, match=fault.replace("\\\\", "\\")):
            build_encoder("sslam", path=str(tmp_path), options=SIZES)
    save_file(weights, file)
    with pytest.raises(ModelError, match=r"unknown: model.blocks.2.attn.proj.bias, .* and 6 more"):
        build_encoder("sslam", path=str(tmp_path), options={**SIZES, "depth": 2})
    with pytest.raises(ModelError, match=r"give its sizes as options width, depth and n_heads"):
        build_encoder("sslam", path=str(tmp_path), options={**SIZES, "width": 48})


def test_what_cannot_be_an_sslam_says_why(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the folder has no model.safetensors"):
        build_encoder("sslam", path=str(tmp_path))
    with pytest.raises(ModelError, match="'no/such/folder' cannot be loaded"):
        build_encoder("sslam", path="no/such/folder")
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="cannot be loaded"):
        build_encoder("sslam", path=str(tmp_path))
    with pytest.raises(ConfigError, match="either a path .* or random_seed, not path=None"):
        build_encoder("sslam")
    with pytest.raises(ConfigError, match="either a path"):
        build_encoder("sslam", path="a", options={"random_seed": 1})
    with pytest.raises(ConfigError, match="unknown output of encoder 'sslam' 'frame' .*'frames'"):
        build_encoder("sslam", path="a", options={"output": "frame"})
    with pytest.raises(ConfigError, match="multiple of 4 and of n_heads, not width=10"):
        build_encoder("sslam", options={"random_seed": 1, "width": 10, "n_heads": 5})
    with pytest.raises(ConfigError, match="option of encoder 'sslam' 'patch'.*valid: "):
        build_encoder("sslam", options={"patch": 8})
    with pytest.raises(ConfigError, match="pool=3 must divide the encoder's 64 time steps"):
        build_encoder("sslam", options={**SIZES, "random_seed": 1}, pool=3)
