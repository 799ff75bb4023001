"""`PalConfig`: the LLM's own configuration, and one entry for each audio stream."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

ROUTES = ("plits", "lal")


class PalConfig(PretrainedConfig):  # type: ignore[misc]
    """The configuration of a `PalModel`.

    llm_config: a `transformers` decoder's configuration (or its dictionary).
    streams: by name, in the order in which they stand within a clip:
        route ("plits" or "lal"), width (of the encoder's features), connector (the fields of
        `ConnectorConfig`), layers ("all", {"start": k} or a list), layer_projection ("shared",
        "linear", "mlp"), encoder (the stamp of the feature store, so that a processor can rebuild
        the encoder).
    attention_backend: `auto`, `flash_attn`, `torch` or `sdpa`.
    template: the fields of `ChatTemplate` that training used.
    """

    model_type = "pal"
    sub_configs = {"llm_config": AutoConfig}  # noqa: RUF012 (transformers' own form)

    def __init__(
        self,
        llm_config: PretrainedConfig | dict[str, Any] | None = None,
        streams: dict[str, dict[str, Any]] | None = None,
        attention_backend: str = "auto",
        template: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(llm_config, dict) or llm_config is None:
            llm_config = AutoConfig.for_model(**(llm_config or {"model_type": "llama"}))
        self.llm_config: Any = llm_config
        self.streams = streams or {}
        self.attention_backend = attention_backend
        self.template = template or {}
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            kwargs.setdefault(token, getattr(llm_config, token, None))
        tied = getattr(self.llm_config, "tie_word_embeddings", False)
        kwargs.setdefault("tie_word_embeddings", tied)
        super().__init__(**kwargs)

    def get_text_config(self, *_: Any, **__: Any) -> PretrainedConfig:
        """The LLM's configuration."""
        return self.llm_config
