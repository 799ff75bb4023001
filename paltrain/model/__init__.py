"""The audio-LLM: packed attention, LAL inside unmodified `transformers` decoders, and PLITS."""
