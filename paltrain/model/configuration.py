"""`PalConfig`: the LLM's own configuration, and one entry for each audio stream."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from paltrain.errors import ModelError

MODEL_FORMAT = 1  # of a model folder; raised when code that knows the former would misread it
STAGES_OF_LLM = "paltrain_stages"  # where a bare LLM's config.json keeps them

ROUTES = ("plits", "lal", "xattn")


class PalConfig(PretrainedConfig):  # type: ignore[misc]
    """The configuration of a `PalModel`.

    llm_config: a `transformers` decoder's configuration (or its dictionary).
    streams: by name, in the order in which they stand within a clip:
        route ("plits", "lal" or "xattn"), width (of the encoder's features), connector (the fields
        of `ConnectorConfig`), layers ("all", {"start": k}, {"every": n} or a list),
        layer_projection ("shared", "linear", "mlp"), encoder (the stamp of the feature store, so
        that a processor can rebuild the encoder).
    plits_sees_lal: whether audio tokens of PLITS streams look at LAL keys.
    lora: rank, alpha and target_modules of the LLM's adapters, None without.
    attention_backend: `auto`, `flash_attn`, `torch` or `sdpa`.
    template: the fields of `TemplateFields` that training used.
    stages: a plain record of each training stage, the first one first (`paltrain.train.export`);
        taken over from an LLM that this code trained.
    format: of the folder; absent it is 1.
    """

    model_type = "pal"
    sub_configs = {"llm_config": AutoConfig}  # noqa: RUF012 (transformers' own form)

    def __init__(
        self,
        llm_config: PretrainedConfig | dict[str, Any] | None = None,
        streams: dict[str, dict[str, Any]] | None = None,
        attention_backend: str = "auto",
        template: dict[str, Any] | None = None,
        plits_sees_lal: bool = True,
        lora: dict[str, Any] | None = None,
        stages: list[dict[str, Any]] | None = None,
        format: int = 1,
        **kwargs: Any,
    ) -> None:
        _check_format(format)
        if isinstance(llm_config, dict) or llm_config is None:
            llm_config = AutoConfig.for_model(**(llm_config or {"model_type": "llama"}))
        self.llm_config: Any = llm_config
        self.streams = streams or {}
        self.attention_backend = attention_backend
        self.template = template or {}
        self.plits_sees_lal = plits_sees_lal
        self.lora = lora
        self.stages = stages or list(getattr(llm_config, STAGES_OF_LLM, []))
        self.format = MODEL_FORMAT
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            kwargs.setdefault(token, getattr(llm_config, token, None))
        tied = getattr(self.llm_config, "tie_word_embeddings", False)
        kwargs.setdefault("tie_word_embeddings", tied)
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Raises ModelError for the folder of a bare LLM or of another kind of model."""
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ModelError(
                f"the folder holds a bare LLM or another model (model_type '{model_type}'), which "
                "has no audio streams to listen with: load it with transformers' own "
                "AutoModelForCausalLM, or name a PalModel's folder"
            )
        return super().from_dict(config_dict, **kwargs)

    @property
    def n_positions(self) -> int | None:
        """Positions that the LLM knows, text and audio tokens together; None where it does not say
        it."""
        return getattr(self.llm_config, "max_position_embeddings", None)

    def get_text_config(self, *_: Any, **__: Any) -> PretrainedConfig:
        """The LLM's configuration."""
        return self.llm_config


def _check_format(format: Any) -> None:
    if not isinstance(format, int):
        raise ModelError(
            f"the model folder's format must be a number, is {format!r}: config.json was edited; "
            "export the model again"
        )
    if format > MODEL_FORMAT:
        raise ModelError(
            f"the model folder has format {format}, but this paltrain reads formats up to "
            f"{MODEL_FORMAT}: it was saved by a newer version, so update paltrain"
        )
