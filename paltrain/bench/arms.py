"""The arms of the step benchmark: the same conversations, connector and decoder, by three ways.

    lal            audio as keys and values (packed)
    plits_packed   audio as rows, through the same packed path
    plits_plain    audio as rows of `inputs_embeds` in the untouched `transformers` model. All
                   conversations are equally long, so it pads nothing, needs no mask and computes
                   its logits at the targets only: as fast as it can be.

A conversation is `N_BEFORE` text tokens, the clip, and the other text, which ends in the targets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from paltrain.batch import Batch, BatchBuilder, PackedFeatures
from paltrain.model.connectors import build_connector
from paltrain.model.modeling import PalModel

N_BEFORE = 8
MAX_TARGETS = 40
STREAM = "audio"
ARMS = ("lal", "plits_packed", "plits_plain")


@dataclass(frozen=True)
class Workload:
    """One step's conversations, all equally long (tokens). width: of the encoder's frames."""

    n_conversations: int
    n_audio: int
    n_text: int
    width: int
    frame_stack: int = 1

    @property
    def n_targets(self) -> int:
        """Of one conversation."""
        return n_targets_of(self.n_text)


def n_targets_of(n_text: int) -> int:
    """40, or as many as a conversation's text allows; one token must hear the clip."""
    return min(MAX_TARGETS, n_text // 2, n_text - N_BEFORE - 1)


@dataclass(frozen=True)
class Arm:
    """step: one forward and backward."""

    name: str
    module: nn.Module
    step: Callable[[], Tensor]

    def zero_gradients(self) -> None:
        """Gradients become zeros, not None: they are there before a step, as under accumulation."""
        self.module.zero_grad(set_to_none=False)

    @property
    def weight_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.module.parameters())

    def held(self, batch: Batch) -> list[Tensor]:
        parameters = list(self.module.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        features = [f.values for f in batch.features.values()]
        return [*parameters, *gradients, *self.module.buffers(), *features, batch.token_ids]


def build_batch(work: Workload, *, vocab_size: int, dtype: torch.dtype, seed: int = 0) -> Batch:
    """Random tokens and features of the workload's lengths."""
    n_frames = work.n_audio * work.frame_stack
    lengths = [(n_frames, work.n_text)] * work.n_conversations
    return build_uneven_batch(
        lengths, width=work.width, vocab_size=vocab_size, dtype=dtype, seed=seed
    )


def build_uneven_batch(
    lengths: Sequence[tuple[int, int]],
    *,
    width: int,
    vocab_size: int,
    dtype: torch.dtype,
    seed: int = 0,
) -> Batch:
    """The same of conversations of any lengths: (frames, text tokens) of each."""
    generator = np.random.Generator(np.random.Philox(seed))
    builder = BatchBuilder()
    for n_frames, n_text in lengths:
        ids = generator.integers(0, vocab_size, n_text)
        clip = builder.add_clip({STREAM: n_frames}, builder.add_text(ids[:N_BEFORE]))
        piece = builder.add_text(ids[N_BEFORE:], clip)
        n_after = n_text - N_BEFORE
        builder.add_targets(piece, np.arange(n_after) >= n_after - n_targets_of(n_text))
    n_frames = sum(frames for frames, _ in lengths)
    values = torch.from_numpy(generator.standard_normal((n_frames, width), np.float32))
    return builder.build({STREAM: values.to(dtype)})


def build_arms(
    llm_config: Any,
    work: Workload,
    *,
    batch: Batch,
    device: torch.device,
    dtype: torch.dtype,
    backend: str = "auto",
    names: tuple[str, ...] = ARMS,
) -> list[Arm]:
    """The arms, each with its own copy of one random decoder and its gradients allocated."""
    torch.manual_seed(0)
    connector = {"type": "mlp", "frame_stack": work.frame_stack, "hidden_width": None}
    batch = batch.to(device)
    arms = []
    for name in names:
        config = copy.deepcopy(llm_config)
        if name == "plits_plain":
            arms.append(_plain_arm(config, work, batch, connector, device=device, dtype=dtype))
        else:
            route = name.split("_")[0]
            spec = {
                "route": route,
                "width": work.width,
                "connector": connector,
                "layers": "all",
                "layer_projection": "shared",
            }
            with device:  # so that its weights are drawn there
                llm = AutoModelForCausalLM.from_config(config, dtype=dtype)
                model = PalModel.from_llm(
                    llm, streams={STREAM: spec}, dtype=dtype, attention_backend=backend
                )
            arms.append(Arm(name, model, _packed_step(model, batch)))
    for arm in arms:
        arm.step()
        arm.zero_gradients()
    return arms


def _packed_step(model: PalModel, batch: Batch) -> Callable[[], Tensor]:
    def step() -> Tensor:
        loss: Tensor = model(batch).loss_sum
        torch.autograd.backward(loss)
        return loss.detach()

    return step


class PlainPlits(nn.Module):
    """Untouched `transformers` decoder with audio tokens in its `inputs_embeds`."""

    def __init__(self, llm: nn.Module, connector: nn.Module) -> None:
        super().__init__()
        self.llm: Any = llm
        self.connector = connector

    def forward(self, token_ids: Tensor, features: PackedFeatures, n_targets: int) -> Tensor:
        """token_ids: (B, T). Returns the summed loss of each row's last `n_targets` tokens."""
        text = self.llm.get_input_embeddings()(token_ids)
        audio = self.connector(features).unflatten(0, (len(token_ids), -1))
        embeddings = torch.cat([text[:, :N_BEFORE], audio, text[:, N_BEFORE:]], dim=1)
        length = embeddings.shape[1]
        keep = torch.arange(length - n_targets - 1, length - 1, device=token_ids.device)
        logits = self.llm(inputs_embeds=embeddings, use_cache=False, logits_to_keep=keep).logits
        targets = token_ids[:, -n_targets:]
        return cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")


def _plain_arm(
    config: Any,
    work: Workload,
    batch: Batch,
    connector: dict[str, Any],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Arm:
    with device:
        llm = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        joined = build_connector(connector, width=work.width, model_width=config.hidden_size)
    model = PlainPlits(llm, joined.to(dtype))
    ids = batch.token_ids.view(work.n_conversations, work.n_text)
    features = batch.features[STREAM]

    def step() -> Tensor:
        loss: Tensor = model(ids, features, work.n_targets)
        torch.autograd.backward(loss)
        return loss.detach()

    return Arm("plits_plain", model, step)
