"""paltrain: train audio-LLMs that listen through attention (PAL, arXiv 2506.10423).

Public names are imported on first use, so that `import paltrain` costs nothing on a login node.
With the first of them (`from paltrain import PalModel`, say) `transformers` learns to read a
model's folder: `AutoConfig`, `AutoModel` and `AutoProcessor` give PalConfig, PalModel and
PalProcessor.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Conversation": "paltrain.model.conversation",
    "PalConfig": "paltrain.model.configuration",
    "PalModel": "paltrain.model.modeling",
    "PalProcessor": "paltrain.model.processing",
}
_REGISTERING = ("paltrain.model.modeling", "paltrain.model.processing")  # with the Auto classes
__all__ = ["Conversation", "PalConfig", "PalModel", "PalProcessor", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'paltrain' has no attribute '{name}'")
    for module in _REGISTERING:
        import_module(module)
    return getattr(import_module(_PUBLIC[name]), name)
