"""`AudioStream`: one encoder's way into the LLM, whatever its route.

Notation: A audio tokens, D the LLM's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paltrain.batch import Batch, PackedFeatures
from paltrain.errors import ModelError, unknown_name
from paltrain.model.configuration import ROUTES
from paltrain.model.connectors import LayerProjection, build_connector, sinusoids
from paltrain.model.cost import DecoderShape
from paltrain.model.form import STREAM_FIELDS
from paltrain.model.lal import AudioStates
from paltrain.model.layers import layers_of_stream
from paltrain.model.layout import Layout
from paltrain.model.segments import DevicePlan
from paltrain.model.xattn import CrossAudio, GatedCrossAttention


class AudioStream(nn.Module):
    """A connector, for LAL the P_l of the layers that take its audio, for cross-attention the
    blocks before them. spec: as in `PalConfig`. layers: that take the audio."""

    def __init__(self, name: str, spec: Mapping[str, Any], *, shape: DecoderShape) -> None:
        """Raises ModelError for a route, name or layer that cannot be."""
        super().__init__()
        self.name, self.spec = name, dict(spec)
        _check_fields(name, spec)
        self.layers = _checked_layers(name, spec, shape.n_layers)
        self.connector = build_connector(
            spec["connector"], width=spec["width"], model_width=shape.width, stream=name
        )
        kind, route = spec["layer_projection"], spec["route"]
        projected = self.layers if route == "lal" and kind != "shared" else ()
        self.layer_projections = nn.ModuleDict(
            {str(layer): LayerProjection(shape.width, kind) for layer in projected}
        )
        self.blocks = nn.ModuleDict(
            {
                str(layer): GatedCrossAttention(
                    shape.width, n_heads=shape.n_heads, head_dim=shape.head_dim
                )
                for layer in (self.layers if route == "xattn" else ())
            }
        )

    def forward(self, features: PackedFeatures | None) -> Tensor:
        """(A, D); for a batch without this stream's audio, the tokens of one zero frame."""
        if features is None or not features.n_frames.sum():
            like = next(self.connector.parameters())
            frame = torch.zeros(1, self.spec["width"], device=like.device, dtype=like.dtype)
            features = PackedFeatures(frame, np.ones(1, np.int64))
        out: Tensor = self.connector(features)
        return out

    def lal_states(self, states_AD: Tensor, layout: Layout, rotary: nn.Module) -> AudioStates:
        """What the layers need of this stream by LAL. rotary: the decoder's own."""
        positions = layout.lal_positions[self.name]
        if len(positions) < len(states_AD):  # the dummy of a stream without audio
            positions = np.zeros(len(states_AD), np.int64)
        cos, sin = rotary(states_AD, torch.from_numpy(positions).to(states_AD.device)[None])
        return AudioStates(states_AD, (cos, sin), dict(self.layer_projections.items()))

    def cross_audio(self, states_AD: Tensor, layout: Layout, *, for_cache: bool) -> CrossAudio:
        """What the blocks need of this stream by cross-attention. for_cache: whether one is
        filled."""
        positions = layout.positions_in_clip(self.name)
        if len(positions) < len(states_AD):  # the dummy of a stream without audio
            positions = np.arange(len(states_AD))
        table = sinusoids(int(positions.max()) + 1, states_AD.shape[1], states_AD)
        plan = DevicePlan.of(layout.cross_plan(self.name), states_AD.device, for_cache=for_cache)
        index = torch.from_numpy(positions).to(states_AD.device)
        return CrossAudio(states_AD, table.index_select(0, index), plan)


def check_features(batch: Batch, streams: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ModelError where a batch's features are of no stream, or of another width."""
    for name, features in batch.features.items():
        if name not in streams:
            raise ModelError(unknown_name("stream", name, list(streams)))
        width = streams[name]["width"]
        if features.values.shape[-1] != width:
            raise ModelError(
                f"stream '{name}' takes features of width {width}, but they have width "
                f"{features.values.shape[-1]}: use the store that the model was trained with"
            )


def _check_fields(name: str, spec: Mapping[str, Any]) -> None:
    for field in STREAM_FIELDS:
        if field not in spec:
            raise ModelError(
                f"stream '{name}' does not say its {field} (streams have "
                f"{', '.join(STREAM_FIELDS)}): config.json was edited, or is of other code; export "
                "the model again"
            )


def _checked_layers(name: str, spec: Mapping[str, Any], n_layers: int) -> tuple[int, ...]:
    if spec["route"] not in ROUTES:
        raise ModelError(f"stream '{name}': {unknown_name('route', spec['route'], list(ROUTES))}")
    if "." in name:
        raise ModelError(f"stream '{name}': a name has no dots, for parameters are named after it")
    return layers_of_stream(spec["layers"], n_layers=n_layers, stream=name)
