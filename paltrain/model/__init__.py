"""The audio-LLM: attention, layout, LAL inside unmodified `transformers` decoders, PLITS beside it."""
