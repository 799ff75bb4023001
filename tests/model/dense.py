"""An independent reference for all routes: one conversation, one dense mask, the decoder written
out.

It shares no code with `paltrain.model`: tokens of all kinds stand in one sequence in position
order; a place of LAL audio takes its keys and values from P_l of the connector's output at every
layer; a mask says who sees whom. Cross-attended audio stands beside the sequence.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paltrain.batch import Batch, PackedFeatures


def conversation_logits(model: Any, batch: Batch, leaf: int) -> Tensor:
    """(text tokens on the path to `leaf`, V), pieces from the root on."""
    states, kinds = tokens_of(model, batch, leaf)
    hidden = decode(model, states, kinds, crossed_by(model, batch, leaf))
    is_text = torch.tensor([kind == "text" for kind in kinds])
    return hidden[is_text] @ model.llm.lm_head.weight.T


def tokens_of(model: Any, batch: Batch, leaf: int) -> tuple[Tensor, list[str]]:
    """Embeddings and audio tokens (positions, D), and each one's kind: "text" or its stream."""
    embed = model.llm.get_input_embeddings().weight
    texts = iter(batch.token_ids.split(batch.n_tokens[~batch.is_clip].tolist()))
    text_of = {p: next(texts) for p in range(len(batch.parent)) if not batch.is_clip[p]}
    clips = [p for p in range(len(batch.parent)) if batch.is_clip[p]]
    streams = model.config.streams
    order = [s for s in streams if streams[s]["route"] == "lal"]
    order += [s for s in streams if streams[s]["route"] == "plits"]
    states, kinds = [], []
    for piece in batch.path(leaf):
        if piece in text_of:
            states.append(embed[text_of[piece]])
            kinds += ["text"] * len(text_of[piece])
            continue
        for name in order:
            states.append(tokens_of_clip(model, batch, name, clips.index(piece)))
            kinds += [name] * len(states[-1])
    return torch.cat(states), kinds


def tokens_of_clip(model: Any, batch: Batch, name: str, clip: int) -> Tensor:
    features = batch.features[name]
    frames = features.values.split(features.n_frames.tolist())[clip]
    return connect(model.streams[name].connector, frames)


Crossed = dict[str, tuple[Tensor, Tensor, list[int]]]


def crossed_by(model: Any, batch: Batch, leaf: int) -> Crossed:
    """By stream of cross-attention: its audio tokens (A, D), and from which position of the
    sequence on each is heard (A,), and its place in its clip."""
    clips = [p for p in range(len(batch.parent)) if batch.is_clip[p]]
    streams = model.config.streams
    crossed: Crossed = {}
    for name in (s for s in streams if streams[s]["route"] == "xattn"):
        tokens, since, places, n_before = [], [], [], 0
        for piece in batch.path(leaf):
            n_before += int(batch.n_tokens[piece])
            if not batch.is_clip[piece]:
                continue
            clip = clips.index(piece)
            tokens.append(tokens_of_clip(model, batch, name, clip))
            since += [n_before] * len(tokens[-1])
            places += range(len(tokens[-1]))
            inside = (s for s in streams if streams[s]["route"] != "xattn")
            n_before += sum(len(tokens_of_clip(model, batch, s, clip)) for s in inside)
        if tokens:
            crossed[name] = (torch.cat(tokens), torch.tensor(since), places)
    return crossed


def sinusoids_of(places: list[int], width: int) -> Tensor:
    rates = 10000.0 ** (-torch.arange(0, width, 2).double() / width)
    angles = torch.tensor(places)[:, None].double() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def cross(
    block: Any, x: Tensor, tokens: Tensor, since: Tensor, places: list[int], n_heads: int
) -> Tensor:
    """Flamingo's gated block, for the rows behind a clip."""
    audio = block.norm_audio(tokens) + sinusoids_of(places, x.shape[1])
    visible = torch.arange(len(x))[:, None] >= since
    hears = visible.any(1)
    rows, visible = block.norm_rows(x[hears]), visible[hears]
    heads = []
    for q, k, v in zip(
        *(
            (states @ getattr(block, f"{which}_proj").weight.T).chunk(n_heads, dim=1)
            for which, states in (("q", rows), ("k", audio), ("v", audio))
        ),
        strict=True,
    ):
        scores = (q @ k.T / math.sqrt(q.shape[1])).masked_fill(~visible, -math.inf)
        heads.append(torch.softmax(scores, dim=-1) @ v)
    y = x[hears] + block.attention_gate.tanh() * (torch.cat(heads, 1) @ block.o_proj.weight.T)
    hidden = torch.nn.functional.gelu(block.norm_ffn(y) @ block.up.weight.T)
    out = x.clone()
    out[hears] = y + block.ffn_gate.tanh() * (hidden @ block.down.weight.T)
    return out


def connect(connector: Any, frames: Tensor) -> Tensor:
    """The MLP connector with frame stacking, written out; others clip by clip by their module
    (tests/model/test_connectors.py looks at those)."""
    if not hasattr(connector, "frame_stack"):
        return connector(PackedFeatures(frames, np.array([len(frames)])))
    stack = connector.frame_stack
    frames = torch.cat([frames, frames.new_zeros(-len(frames) % stack, frames.shape[1])])
    hidden = frames.reshape(len(frames) // stack, -1) @ connector.up.weight.T + connector.up.bias
    return torch.nn.functional.gelu(hidden) @ connector.down.weight.T + connector.down.bias


def decode(model: Any, x: Tensor, kinds: list[str], crossed: Crossed) -> Tensor:
    """x: (positions, D). Returns the final hidden states; at LAL places they mean nothing."""
    z, n = x, len(kinds)
    streams = model.config.streams
    lal = {name for name in streams if streams[name]["route"] == "lal"}
    is_lal = torch.tensor([kind in lal for kind in kinds])[:, None]
    decoder = model.llm.get_decoder()
    plits = [k for k in streams if streams[k]["route"] == "plits"]
    for number, layer in enumerate(decoder.layers):
        for name, heard_by in crossed.items():
            if number in reach(streams[name]["layers"], len(decoder.layers)):
                block = model.streams[name].blocks[str(number)]
                x = cross(block, x, *heard_by, model.llm.config.num_attention_heads)
        heard = torch.stack(
            [p_l(model, kind, number, state) for kind, state in zip(kinds, z, strict=True)]
        )
        present = torch.tensor(
            [
                k not in lal or number in reach(streams[k]["layers"], len(decoder.layers))
                for k in kinds
            ]
        )
        visible = torch.ones(n, n, dtype=torch.bool).tril() & present
        if not model.config.plits_sees_lal:
            of_plits = torch.tensor([kind in plits for kind in kinds])
            visible &= ~(of_plits[:, None] & is_lal[:, 0])
        x = layer_of(layer, x, torch.where(is_lal, heard, x), visible, model.llm.config)
    return decoder.norm(x)


def layer_of(layer: Any, x: Tensor, source: Tensor, visible: Tensor, config: Any) -> Tensor:
    """A decoder layer. source: (n, D) what keys and values are made of, x itself but for LAL."""
    if hasattr(layer, "input_layernorm"):  # norms before attention and FFN
        x = x + attention(layer.self_attn, layer.input_layernorm(source), visible, config)
        return x + layer.mlp(layer.post_attention_layernorm(x))
    heard = attention(layer.self_attn, source, visible, config)  # behind them, as OLMo 2's
    x = x + layer.post_attention_layernorm(heard)
    return x + layer.post_feedforward_layernorm(layer.mlp(x))


def p_l(model: Any, kind: str, layer: int, state: Tensor) -> Tensor:
    if kind == "text" or str(layer) not in model.streams[kind].layer_projections:
        return state
    return model.streams[kind].layer_projections[str(layer)](state)


def reach(layers: Any, n_layers: int) -> range | list[int]:
    if layers == "all":
        return range(n_layers)
    if isinstance(layers, dict):
        return range(layers.get("start", 0), n_layers, layers.get("every", 1))
    return layers


def attention(module: Any, x: Tensor, visible: Tensor, config: Any) -> Tensor:
    """x: (n, D); visible: (n, n). Grouped-query attention with RoPE at positions 0 .. n - 1."""
    heads = []
    q, k, v = (getattr(module, f"{name}_proj")(x) for name in "qkv")
    whole = hasattr(module, "q_norm") and module.q_norm.weight.numel() == q.shape[-1]
    if whole:  # a norm over all heads at once
        q, k = module.q_norm(q), module.k_norm(k)
    q, k, v = (states.unflatten(-1, (-1, module.head_dim)) for states in (q, k, v))
    if hasattr(module, "q_norm") and not whole:
        q, k = module.q_norm(q), module.k_norm(k)
    q, k = rotate(q, config), rotate(k, config)
    group = q.shape[1] // k.shape[1]
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head // group].T / math.sqrt(module.head_dim)
        weights = torch.softmax(scores.masked_fill(~visible, -math.inf), dim=-1)
        heads.append(weights @ v[:, head // group])
    return module.o_proj(torch.cat(heads, dim=-1))


def rotate(x: Tensor, config: Any) -> Tensor:
    """RoPE of (n, heads, H): halves (a, b) -> (a cos - b sin, b cos + a sin)."""
    n, _, dim = x.shape
    theta = config.rope_parameters["rope_theta"]
    rates = theta ** (-torch.arange(0, dim, 2).float() / dim)
    angles = (torch.arange(n)[:, None].float() * rates)[:, None, :]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., : dim // 2], x[..., dim // 2 :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
