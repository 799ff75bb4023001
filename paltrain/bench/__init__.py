"""Benchmarks: every arm of a comparison measured in one run, written as JSON rows."""
