"""paltrain: train audio-LLMs that listen through attention (PAL, arXiv 2506.10423).

Public names are imported on first use, so that `import paltrain` costs nothing on a login node.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "PalConfig": "paltrain.model.configuration",
    "PalModel": "paltrain.model.modeling",
    "PalProcessor": "paltrain.model.processing",
}
__all__ = ["PalConfig", "PalModel", "PalProcessor", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'paltrain' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)
