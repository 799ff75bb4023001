"""The deaf control: every question hears another clip than its own.

    asked about   a  b  c  d
    heard         c  a  d  b      no clip stays in place

A model that listens must fall to about chance; one that does not was answering from the question
alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paltrain.errors import ManifestError


def derangement(n: int, *, seed: int) -> NDArray[np.int64]:
    """(n,) a seeded random permutation without fixed points, the same on every machine.

    Drawn by rejection, so every derangement is equally likely; about e draws on average.
    Raises ManifestError for n = 1, which has none.
    """
    if n == 1:
        raise ManifestError(
            "the deaf control needs at least 2 clips with audio, but there is 1: leave "
            "--with-control (shuffle_audio) out, or ask about more recordings"
        )
    generator = np.random.Generator(np.random.Philox(seed))
    identity = np.arange(n)
    while True:
        order = generator.permutation(n)
        if not (order == identity).any():
            return order
