"""Names of the model hub as local folders: compute nodes reach no internet.

What a job reads is then fixed at submission, to the very revision, and the checks look at the files
that the job will read.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cluster.job import AnyConfig
from cluster.profiles import Profile
from paltrain.config.schema import EvalConfig, TrainConfig

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
    if not profile.offline or isinstance(config, EvalConfig):
        return config
    if isinstance(config, TrainConfig):
        model = config.model
        local = replace(model, llm=local_folder(model.llm), tokenizer=local_folder(model.tokenizer))
        return replace(config, model=local)
    encoder = config.encoder
    return replace(
        config, encoder=replace(encoder, path=local_folder(encoder.path, encoder.revision))
    )


def local_folder(name: str | None, revision: str | None = None) -> str | None:
    """Where a hub name's files lie on this machine; the name itself if they are not here."""
    if name is None or Path(name).exists():
        return name
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(name, revision=revision, local_files_only=True)
    except (HFValidationError, LocalEntryNotFoundError):
        return name
