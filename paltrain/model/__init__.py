"""The audio-LLM: audio by LAL, PLITS or gated cross-attention in unmodified `transformers`
decoders."""
