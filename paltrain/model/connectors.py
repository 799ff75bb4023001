"""Connectors: an encoder's frames become audio tokens of the LLM's width.

`mlp` joins `frame_stack` neighbouring frames into one token (two linear layers, LLaVA's form);
`resampler` lets learned latents look at the clip's frames (Perceiver / Q-Former's form), so that
every clip has `n_latents` tokens. `summary` has `n_summary` tokens a clip, by such latents
(`queries`) or by means over equal windows of time (`windows`). Clips are packed end to end and
never padded into the LLM.

Notation: F frames and A audio tokens of all clips of a stream, C clips, W encoder width, D the
LLM's width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paltrain.batch import IntArray, PackedFeatures
from paltrain.errors import ModelError, unknown_name
from paltrain.model.audio_tokens import FIXED


def build_connector(
    connector: Mapping[str, Any], *, width: int, model_width: int, stream: str | None = None
) -> nn.Module:
    """connector: the fields of `ConnectorConfig`. width: W; model_width: D. stream: its name, for
    messages.

    Raises:
        ModelError: there is no such type, or its heads do not divide the LLM's width.
    """
    kind, hidden = connector["type"], connector.get("hidden_width") or model_width
    if kind == "mlp":
        return MlpConnector(width, model_width, hidden=hidden, frame_stack=connector["frame_stack"])
    if kind == "summary" and connector["summary_by"] == "windows":
        return WindowMeans(width, model_width, hidden=hidden, n_windows=connector["n_summary"])
    where = "" if stream is None else f"stream '{stream}': "
    if kind not in FIXED:
        raise ModelError(where + unknown_name("connector", kind, ["mlp", *FIXED]))
    if model_width % connector["n_heads"]:
        raise ModelError(
            f"{where}connector.n_heads={connector['n_heads']} must divide the LLM's width "
            f"{model_width}: choose a divisor"
        )
    return Resampler(
        width,
        model_width,
        n_latents=connector[FIXED[kind]],
        n_heads=connector["n_heads"],
        n_layers=connector["n_layers"],
    )


class MlpConnector(nn.Module):
    """(F, W) -> (A, D): stacked frames through two linear layers; a clip's last stack is filled
    with zeros."""

    def __init__(self, width: int, model_width: int, *, hidden: int, frame_stack: int) -> None:
        super().__init__()
        self.frame_stack = frame_stack
        self.up = nn.Linear(width * frame_stack, hidden)
        self.down = nn.Linear(hidden, model_width)

    def forward(self, features: PackedFeatures) -> Tensor:
        frames = features.values.to(self.up.weight.dtype)
        if self.frame_stack > 1:
            frames = self._stack(frames, features.n_frames)
        hidden: Tensor = self.up(frames)
        out: Tensor = self.down(nn.functional.gelu(hidden))
        return out

    def _stack(self, frames_FW: Tensor, n_frames: IntArray) -> Tensor:
        """(A, frame_stack * W); places behind a clip's end take an appended zero frame."""
        n_tokens = -(-n_frames // self.frame_stack)
        first = np.repeat(np.cumsum(n_frames) - n_frames, n_tokens)
        last = np.repeat(np.cumsum(n_frames), n_tokens)
        within = np.arange(n_tokens.sum()) - np.repeat(np.cumsum(n_tokens) - n_tokens, n_tokens)
        index = first[:, None] + within[:, None] * self.frame_stack + np.arange(self.frame_stack)
        index = np.where(index < last[:, None], index, len(frames_FW))
        padded = torch.cat([frames_FW, frames_FW.new_zeros(1, frames_FW.shape[1])])
        return padded[torch.from_numpy(index).to(padded.device)].flatten(1)


class WindowMeans(nn.Module):
    """(F, W) -> (C' * n_windows, D), C' the clips that have frames: the means of their frames over
    equal windows, which overlap by a frame where they do not divide a clip, through an MLP."""

    def __init__(self, width: int, model_width: int, *, hidden: int, n_windows: int) -> None:
        super().__init__()
        self.n_windows = n_windows
        self.mlp = MlpConnector(width, model_width, hidden=hidden, frame_stack=1)

    def forward(self, features: PackedFeatures) -> Tensor:
        lengths = features.n_frames[features.n_frames > 0]
        clips = features.values.to(self.mlp.up.weight.dtype).split(lengths.tolist())
        means = [nn.functional.adaptive_avg_pool1d(clip.T, self.n_windows).T for clip in clips]
        of_clips = np.full(len(means), self.n_windows, np.int64)
        out: Tensor = self.mlp(PackedFeatures(torch.cat(means), of_clips))
        return out


class Resampler(nn.Module):
    """(F, W) -> (C' * n_latents, D), C' the clips that have frames: latents look at their clip's
    frames."""

    def __init__(
        self, width: int, model_width: int, *, n_latents: int, n_heads: int, n_layers: int
    ) -> None:
        super().__init__()
        self.project = nn.Linear(width, model_width)
        self.latents = nn.Parameter(torch.randn(n_latents, model_width) * model_width**-0.5)
        self.layers = nn.ModuleList(ResamplerLayer(model_width, n_heads) for _ in range(n_layers))

    def forward(self, features: PackedFeatures) -> Tensor:
        frames, is_padding = self._pad(features)
        latents = self.latents.expand(len(frames), -1, -1)
        for layer in self.layers:
            latents = layer(latents, frames, is_padding)
        return latents.flatten(0, 1)

    def _pad(self, features: PackedFeatures) -> tuple[Tensor, Tensor]:
        """(C', longest, D) frames with their sinusoidal positions, and (C', longest) True at
        padding."""
        lengths = features.n_frames[features.n_frames > 0]
        projected: Tensor = self.project(features.values.to(self.project.weight.dtype))
        clips = projected.split(lengths.tolist())
        frames = nn.utils.rnn.pad_sequence(list(clips), batch_first=True)
        positions = torch.arange(frames.shape[1], device=frames.device)
        is_padding = positions >= torch.from_numpy(lengths).to(frames.device)[:, None]
        return frames + sinusoids(frames.shape[1], frames.shape[2], frames), is_padding


class ResamplerLayer(nn.Module):
    """Latents (C, L, D) attend to frames (C, longest, D), then pass an FFN; pre-norm, residual."""

    def __init__(self, model_width: int, n_heads: int) -> None:
        super().__init__()
        self.norm_latents = nn.LayerNorm(model_width)
        self.norm_frames = nn.LayerNorm(model_width)
        self.attention = nn.MultiheadAttention(model_width, n_heads, batch_first=True)
        self.norm_ffn = nn.LayerNorm(model_width)
        self.up = nn.Linear(model_width, 4 * model_width)
        self.down = nn.Linear(4 * model_width, model_width)

    def forward(self, latents: Tensor, frames: Tensor, is_padding: Tensor) -> Tensor:
        keys = self.norm_frames(frames)
        heard, _ = self.attention(
            self.norm_latents(latents), keys, keys, key_padding_mask=is_padding, need_weights=False
        )
        latents = latents + heard
        hidden = nn.functional.gelu(self.up(self.norm_ffn(latents)))
        out: Tensor = latents + self.down(hidden)
        return out


class LayerProjection(nn.Module):
    """P_l of LAL: the audio states (A, D) of one layer, from the connector's output."""

    def __init__(self, model_width: int, kind: str) -> None:
        super().__init__()
        hidden = model_width
        self.up = nn.Linear(model_width, hidden)
        self.down = nn.Linear(hidden, model_width) if kind == "mlp" else None

    def forward(self, audio_AD: Tensor) -> Tensor:
        out: Tensor = self.up(audio_AD)
        return out if self.down is None else self.down(nn.functional.gelu(out))


def sinusoids(length: int, width: int, like: Tensor) -> Tensor:
    """(length, width) sine and cosine positions (Attention Is All You Need, 3.5), dtype and
    device of `like`."""
    steps = torch.arange(0, width, 2, device=like.device, dtype=torch.float64)
    rates = torch.exp(-math.log(10000.0) * steps / width)
    angles = torch.arange(length, device=like.device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width].to(like.dtype)
