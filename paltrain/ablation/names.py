"""Values of axes as parts of folders' names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


def slug(key: str, value: Any) -> str:
    """A value of an axis as part of a folder's name; a number takes its key's last word with it.

    >>> slug("model.streams.sslam.layers", {"start": 4})
    'start4'
    >>> slug("model.streams.sslam_summary.connector.n_summary", 16)
    'n_summary16'
    """
    if isinstance(value, Mapping):
        text = "_".join(f"{name}{each}" for name, each in value.items())
    elif isinstance(value, str):
        text = value
    elif isinstance(value, list):
        text = key.rpartition(".")[2] + "_".join(map(str, value))
    else:
        text = f"{key.rpartition('.')[2]}{value}"
    return NOT_IN_NAMES.sub("_", text)
