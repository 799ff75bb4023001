"""Soundscapes: scenes of synthesised events, recorded to flac, and questions about them.

`events.py` makes single sounds, `scene.py` mixes them, `questions.py` asks, `dataset.py` writes.
"""
