"""`PalModel`: a `transformers` decoder that listens.

    batch (a forest of pieces)
      1. connectors:  features (F, W) -> audio tokens (A, D), per stream
      2. layout:      rows, positions, and which keys each run of rows may look at
      3. rows:        text embeddings, and the audio tokens of PLITS streams, (1, R, D)
      4. decoder:     the unmodified LLM; LAL streams join as keys and values (`.lal`),
                      others by blocks of cross-attention before layers (`.xattn`)
      5. loss:        cross-entropy of the target rows only, summed

Every audio module runs for every batch: a stream without audio is fed one zero frame, which no
segment gathers (LAL) or which is added times zero (PLITS, xattn). So all ranks of a sharded run do
the same work in the same order.

Notation: T text tokens, R rows, A audio tokens, M targets, B conversations, D the LLM's width, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from paltrain.batch import Batch, BatchBuilder, IntArray
from paltrain.errors import ModelError
from paltrain.model import adapters, lal, xattn
from paltrain.model.audio_tokens import n_audio_tokens
from paltrain.model.cache import ConversationCache
from paltrain.model.configuration import ROUTES, PalConfig
from paltrain.model.context import BlocksAt, DecodeContext, PackedContext
from paltrain.model.cost import DecoderShape
from paltrain.model.generation import (
    LastPosition,
    check_room,
    finished_answers,
    without_last_tokens,
)
from paltrain.model.layout import Layout
from paltrain.model.loading import load_llm, load_whole
from paltrain.model.segments import DevicePlan
from paltrain.model.streams import AudioStream, check_features


@dataclass
class PalOutput:
    """loss_sum: scalar float32, the weighted sum of cross-entropies."""

    loss_sum: Tensor


class PalModel(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """An LLM with audio streams, each by its route. See the module's docstring for the five
    steps."""

    config_class = PalConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: PalConfig, llm: PreTrainedModel | None = None) -> None:
        """llm: an already loaded decoder; without one a random one is made from
        `config.llm_config`."""
        super().__init__(config)
        self.llm: Any = (
            llm if llm is not None else AutoModelForCausalLM.from_config(config.llm_config)
        )
        self._keys_and_values = lal.install(self.llm)
        shape = DecoderShape.of(config.llm_config)
        self.streams = nn.ModuleDict(
            {name: AudioStream(name, spec, shape=shape) for name, spec in config.streams.items()}
        )
        self._streams_at = tuple(
            tuple(s.name for s in self._audio_streams("lal") if layer in s.layers)
            for layer in range(shape.n_layers)
        )
        xattn.install(self.llm.get_decoder().layers, self._blocks_at())
        self.post_init()
        if config.lora:  # last, for post_init would give B random weights
            adapters.add(self.llm, config.lora)

    @classmethod
    def from_llm(
        cls,
        llm: str | PreTrainedModel,
        *,
        streams: Mapping[str, Mapping[str, Any]] | None = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> PalModel:
        """A PalModel around a pretrained LLM (folder, hub name or module) with fresh connectors.

        options: further fields of `PalConfig`.

        Raises:
            ModelError: the LLM cannot be loaded or its family is not supported.
        """
        if isinstance(llm, str):
            llm = load_llm(llm, dtype=dtype)
        config = PalConfig(
            llm_config=llm.config,
            streams={name: dict(spec) for name, spec in (streams or {}).items()},
            **options,
        )
        model = cls(config, llm=llm)
        model.streams.to(dtype)  # a partitioned bf16 LLM with float32 connectors dies in DeepSpeed
        return model

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, **options: Any) -> Any:
        """The model that `save_pretrained` left in `folder`.

        Raises:
            ModelError: its weights are not all there, or not those of its configuration.
        """
        return load_whole(super().from_pretrained, folder, *args, **options)

    def add_adapters(self, lora: Mapping[str, Any]) -> None:
        """Put LoRA adapters into the LLM, which at first change nothing. lora: as in `PalConfig`.

        Raises:
            ModelError: the model has some already, or not the modules that they are for.
        """
        if self.config.lora:
            raise ModelError("the model has adapters already: merge them first (tools/export.py)")
        adapters.add(self.llm, lora)
        self.config.lora = dict(lora)

    # ---- forward ---------------------------------------------------------------------------------

    def forward(
        self,
        batch: Batch | None = None,
        *,
        input_ids: Tensor | None = None,
        past_key_values: ConversationCache | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> PalOutput | CausalLMOutputWithPast:
        """The loss of a packed batch; or, for `generate`, one more token for each cached
        conversation.

        input_ids: (B, 1), with past_key_values: their cache. attention_mask: what `generate` makes
        of it, all ones; each layer's cache knows its lengths, so it is not read.
        """
        if batch is None:
            assert input_ids is not None
            assert past_key_values is not None
            return self._decode(input_ids, past_key_values)
        logits = self._run(batch, self.layout(batch), batch.target_rows)
        losses = F.cross_entropy(logits.float(), batch.target_ids, reduction="none")
        return PalOutput((losses * batch.target_weights).sum())

    def text_logits(self, batch: Batch) -> Tensor:
        """(T, V): the logits at every text token."""
        every = torch.arange(len(batch.token_ids), device=batch.token_ids.device)
        return self._run(batch, self.layout(batch), every)

    def layout(self, batch: Batch) -> Layout:
        """Where everything of `batch` lies, by this model's streams and connectors."""
        tokens: dict[str, dict[str, IntArray]] = {route: {} for route in ROUTES}
        for name in self.config.streams:
            features = batch.features.get(name)
            n_frames = np.zeros(batch.n_clips, np.int64) if features is None else features.n_frames
            route = self.config.streams[name]["route"]
            tokens[route][name] = self.n_audio_tokens(n_frames, name)
        return Layout(batch, **tokens, plits_sees_lal=self.config.plits_sees_lal)

    def n_audio_tokens(self, n_frames: IntArray, stream: str) -> IntArray:
        """Audio tokens of clips that have `n_frames` frames in `stream`."""
        return n_audio_tokens(n_frames, self.config.streams[stream]["connector"])

    def _run(
        self,
        batch: Batch,
        layout: Layout,
        text_tokens: Tensor,
        cache: ConversationCache | None = None,
    ) -> Tensor:
        """Logits (M, V) at `text_tokens` (M,), numbered as in `batch.token_ids`."""
        check_features(batch, self.config.streams)
        audio = {name: stream(batch.features.get(name)) for name, stream in self.streams.items()}
        embeddings = self._embed(batch, layout, audio)
        out = self.llm(
            inputs_embeds=embeddings,
            position_ids=torch.from_numpy(layout.row_positions).to(embeddings.device)[None],
            use_cache=False,
            logits_to_keep=torch.from_numpy(layout.text_rows).to(text_tokens.device)[text_tokens],
            pal=self._context(layout, audio, cache, embeddings.device),
        )
        logits: Tensor = out.logits[0]
        return logits

    def _embed(self, batch: Batch, layout: Layout, audio: Mapping[str, Tensor]) -> Tensor:
        """(1, R, D): text embeddings and PLITS audio tokens in their rows."""
        text: Tensor = self.llm.get_input_embeddings()(batch.token_ids)
        heard = {name: rows for name, rows in layout.plits_rows.items() if len(rows)}
        for name in layout.plits_rows.keys() - heard.keys():
            text = text + 0.0 * audio[name].sum()  # the dummy of a stream without audio
        if not heard:
            return text[None]
        order = np.argsort(np.concatenate([layout.text_rows, *heard.values()]))
        rows_RD = torch.cat([text, *(audio[name] for name in heard)])
        return rows_RD.index_select(0, torch.from_numpy(order).to(text.device))[None]

    def _context(
        self,
        layout: Layout,
        audio: Mapping[str, Tensor],
        cache: ConversationCache | None,
        device: torch.device,
    ) -> PackedContext:
        n_keys = {name: len(states) for name, states in audio.items()}
        decoder = self.llm.get_decoder()
        return PackedContext(
            streams_at=self._streams_at,
            plans={
                names: DevicePlan.of(
                    layout.attention_plan(names, n_keys), device, for_cache=cache is not None
                )
                for names in set(self._streams_at)
            },
            audio={
                stream.name: stream.lal_states(audio[stream.name], layout, decoder.rotary_emb)
                for stream in self._audio_streams("lal")
            },
            layers=decoder.layers,
            keys_and_values=self._keys_and_values,
            blocks=self._blocks_at(),
            cross={
                stream.name: stream.cross_audio(
                    audio[stream.name], layout, for_cache=cache is not None
                )
                for stream in self._audio_streams("xattn")
            },
            span=int(layout.end_positions.max(initial=0)),
            backend=self.config.attention_backend,
            cache=cache,
        )

    def _audio_streams(self, route: str) -> list[AudioStream]:
        """The streams of a route, in config order."""
        streams: Any = self.streams.values()
        return [stream for stream in streams if stream.spec["route"] == route]

    def _blocks_at(self) -> BlocksAt:
        blocks: dict[int, dict[str, Any]] = {}
        for stream in self._audio_streams("xattn"):
            for layer in stream.layers:
                blocks.setdefault(layer, {})[stream.name] = stream.blocks[str(layer)]
        return blocks

    # ---- generation ------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, batch: Batch, **options: Any) -> Tensor:
        """Continue every conversation (leaf) of `batch` by `transformers`' own generation loop.

        batch: prompts; each leaf ends in at least one text token.
        options: of `transformers`' `generate` (max_new_tokens, do_sample, temperature, num_beams,
        ...).

        Returns:
            (B, longest) int64, the new tokens only, in the order of `batch.leaves`. An answer also
            ends at the LLM's last position: padding follows it, as behind an end token (with
            eos_token_id=None `transformers` pads nothing, and what follows is worth nothing).

        Raises:
            ModelError: a prompt ends in a clip or is longer than the LLM's positions, or all are a
                single text token.
        """
        prompts, last_tokens = without_last_tokens(batch)
        cache = self._fill_cache(prompts)
        if (n_positions := self.config.n_positions) is not None:
            criteria = [
                *(options.get("stopping_criteria") or ()),
                LastPosition(cache.next_positions + 1, n_positions),
            ]
            options["stopping_criteria"] = StoppingCriteriaList(criteria)
        out: Tensor = super().generate(
            input_ids=last_tokens[:, None],
            attention_mask=torch.ones_like(last_tokens)[:, None],
            past_key_values=cache,
            **options,
        )
        return out[:, 1:]

    def generate_answers(
        self,
        batch: Batch,
        *,
        max_new_tokens: int,
        eos_token_id: int,
        do_sample: bool = False,
        **options: Any,
    ) -> list[list[int]]:
        """`generate`, each answer cut at its end token (left out)."""
        tokens = self.generate(
            batch,
            max_new_tokens=max_new_tokens,
            eos_token_id=eos_token_id,
            pad_token_id=eos_token_id,
            do_sample=do_sample,
            **options,
        )
        return finished_answers(tokens, eos_token_id)

    def _fill_cache(self, prompts: Batch) -> ConversationCache:
        """Run the prompts once, shared beginnings once, and keep every conversation's keys and
        values."""
        layout = self.layout(prompts)
        end = layout.end_positions[prompts.leaves]
        check_room(end + 1, self.config.n_positions)
        if not layout.n_rows:
            raise ModelError(
                "every prompt is a single text token: one of the batch must have two, or an audio "
                "token among its text (PLITS); begin with the template's, or a start token"
            )
        cache = ConversationCache(
            self.config.llm_config.num_hidden_layers,
            torch.from_numpy(end).to(prompts.token_ids.device),
        )
        self._run(prompts, layout, prompts.target_rows, cache)
        return cache

    def _decode(self, input_ids: Tensor, cache: ConversationCache) -> CausalLMOutputWithPast:
        out: CausalLMOutputWithPast = self.llm(
            input_ids=input_ids,
            position_ids=cache.next_positions[:, None],
            past_key_values=cache,
            use_cache=True,
            pal=DecodeContext(cache, self.config.attention_backend, self._blocks_at()),
        )
        cache.advance()
        return CausalLMOutputWithPast(logits=out.logits, past_key_values=cache)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: ConversationCache | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Every step is a decoding step: the prompts are in the cache already."""
        return {"input_ids": input_ids[:, -1:], "past_key_values": past_key_values}

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, **model_kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Beams and several samples a prompt: the cache's rows are repeated too."""
        if expand_size > 1:
            model_kwargs["past_key_values"].batch_repeat_interleave(expand_size)
        expanded: tuple[Tensor | None, dict[str, Any]] = super()._expand_inputs_for_generation(
            expand_size=expand_size, **model_kwargs
        )
        return expanded

    # ---- the rest that transformers and training ask for -----------------------------------------

    def dummy_batch(self) -> Batch:
        """One text token with a target of weight 0: what a rank without a visit runs."""
        builder = BatchBuilder()
        piece = builder.add_text(np.zeros(2, np.int64))
        builder.add_targets(piece, np.array([False, True]), weight=0.0)
        return builder.build()

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.llm.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.llm.get_output_embeddings()
        return head

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.llm.set_input_embeddings(value)

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.llm.set_output_embeddings(value)


AutoConfig.register("pal", PalConfig, exist_ok=True)
AutoModel.register(PalConfig, PalModel, exist_ok=True)
