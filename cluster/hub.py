"""Names of the model hub as local folders: compute nodes reach no internet.

What a job reads is then fixed at submission, to the very revision, and the checks look at the files
that the job will read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cluster.job import AnyConfig
from cluster.profiles import Profile
from paltrain.config.schema import AblationConfig, EvalConfig, TrainConfig
from paltrain.errors import ModelError

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "offline",
}


def made_local(config: AnyConfig, profile: Profile) -> AnyConfig:
    """The configuration with every hub name that is on this machine as its folder.

    A name that is not here stays; the check before submission says how to get it.
    """
    if not profile.offline or isinstance(config, EvalConfig | AblationConfig):
        return config
    if isinstance(config, TrainConfig):
        model = config.model
        llm = _folder_or_name(model.llm, profile)
        tokenizer = _folder_or_name(model.tokenizer, profile, file="tokenizer.json")
        return replace(config, model=replace(model, llm=llm, tokenizer=tokenizer))
    encoders = {
        name: replace(
            encoder, path=_folder_or_name(encoder.path, profile, revision=encoder.revision)
        )
        for name, encoder in config.encoders.items()
    }
    return replace(config, encoders=encoders)


def find_in_cache(
    name: str, *, file: str, environment: Mapping[str, str], revision: str | None = None
) -> Path | None:
    """The folder of a hub name in the local cache, None if it has no such file there.

    environment: a job's variables, which may say where the cache is.

    Raises:
        ModelError: it cannot be a hub name.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    cache = _hub_cache(environment)
    try:
        found = try_to_load_from_cache(name, file, cache_dir=cache, revision=revision)
    except HFValidationError as error:
        raise ModelError(
            f"there is no folder {name}, and a hub name it cannot be either: correct it"
        ) from error
    return Path(found).parent if isinstance(found, str) else None


def _folder_or_name(
    name: str | None, profile: Profile, *, file: str = "config.json", revision: str | None = None
) -> str | None:
    if name is None or Path(name).exists():
        return name
    try:
        found = find_in_cache(name, file=file, environment=profile.environment, revision=revision)
    except ModelError:
        return name
    return str(found or name)


def _hub_cache(environment: Mapping[str, str]) -> str | None:
    """The hub's cache in a job; None: where this process has its own."""
    if "HF_HUB_CACHE" in environment:
        return os.path.expandvars(environment["HF_HUB_CACHE"])
    if "HF_HOME" in environment:
        return os.path.join(os.path.expandvars(environment["HF_HOME"]), "hub")
    return None
