"""The errors a user can cause. Each message says the rule, the actual value and the remedy.

A tool that meets one of these prints its message as one clear line and exits with
`EXIT_USER_ERROR`; everything else is a bug and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

EXIT_USER_ERROR = 2
MOST_NAMED = 6


class PaltrainError(Exception):
    """Base of everything a user can cause and mend."""


class ConfigError(PaltrainError):
    """A configuration is refused: unknown keys, wrong types, values that cannot go together."""


class AudioError(PaltrainError):
    """A recording cannot be read as declared: missing, empty, cut off, or not a number."""


class ManifestError(PaltrainError):
    """A manifest, a table of questions or their length table is malformed or missing."""


class StoreError(PaltrainError):
    """A feature store is missing, torn, or was made with another encoder."""


class IncompleteError(PaltrainError):
    """What is to be put together is not all there yet."""


class ModelError(PaltrainError):
    """A model, tokenizer or attention backend cannot serve what was asked of it."""


class CheckpointError(PaltrainError):
    """A checkpoint is missing, torn, or belongs to another run."""


class TrainingError(PaltrainError):
    """Training cannot go on: non-finite loss, too many bad samples, no progress."""


class ClusterError(PaltrainError):
    """Slurm refuses a job, or a job cannot go on where it runs."""


def unknown_name(kind: str, name: str, valid: list[str]) -> str:
    """The sentence for a name that does not exist: names the nearest valid one and lists them all.

    >>> unknown_name("route", "lall", ["plits", "lal"])
    "unknown route 'lall' (did you mean 'lal'?); valid: plits, lal"
    """
    return f"unknown {kind} '{name}'{near_hint(name, valid)}; valid: {', '.join(valid)}"


def near_hint(name: str, valid: Iterable[str]) -> str:
    """' (did you mean ...?)' with the nearest valid name, empty where none is near.

    >>> near_hint("optimzer", ["optimizer", "data"])
    " (did you mean 'optimizer'?)"
    """
    near = get_close_matches(name, list(valid), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def some_of(names: Iterable[str]) -> str:
    """'a, b, c', of many names the first ones.

    >>> some_of("abcdefgh")
    'a, b, c, d, e, f and 2 more'
    """
    names = list(names)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def first_line(error: Exception) -> str:
    """What an error of a library says, in one line.

    >>> first_line(ValueError("torn.\\nTry again.")), first_line(KeyError())
    ('torn', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def cannot_load(
    path: str, error: Exception, *, what: str = "", holds: str = "that `save_pretrained` wrote"
) -> str:
    """The sentence where `transformers` cannot load `what` from a folder or hub name."""
    is_folder = path.startswith(("/", ".", "~"))
    reason = first_line(error)
    if is_folder and not Path(path).exists():
        reason = "there is no such folder"
    return (
        f"{what} '{path}' cannot be loaded: {reason}. Give a folder {holds}, or a hub name that is "
        "in the local cache"
    ).lstrip()
