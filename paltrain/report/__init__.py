"""The report: one self-contained page and one small JSON about some runs."""
