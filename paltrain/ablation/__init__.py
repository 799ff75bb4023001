"""Ablations: which trials a configuration asks for, and the table of what they came to."""
