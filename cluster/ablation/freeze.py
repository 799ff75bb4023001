"""An ablation as its job's folder keeps it: later edits of the arms' files do not reach it.

    FOLDER/config.yaml                  its arms name the files below, its name is said
    FOLDER/arms/ARM/1-RUN.yaml, ...     an arm's stages, resolved, with the `set` words
    FOLDER/arms/evaluate.yaml           the evaluation, resolved

What it prepares are jobs of their own, before it.
"""

from __future__ import annotations

from dataclasses import replace

from cluster.ablation.commands import save_stages
from cluster.folder import JobFolder
from paltrain.ablation.build import arm_stages
from paltrain.config.load import save_config
from paltrain.config.schema import AblationConfig


def freeze_ablation(config: AblationConfig, folder: JobFolder) -> None:
    """Write all of it.

    Raises:
        ConfigError: with all faults of its arms, axes and files.
    """
    stages, evaluation = arm_stages(config)
    arms = folder.path / "arms"
    arms.mkdir(parents=True, exist_ok=True)
    own = {
        name: replace(arm, stages=list(map(str, save_stages(stages[name], arms / name))), set=[])
        for name, arm in config.arms.items()
    }
    save_config(evaluation, arms / "evaluate.yaml")
    launch = replace(config.launch, name=folder.name)
    frozen = replace(
        config, arms=own, set=[], evaluate=str(arms / "evaluate.yaml"), prepare=[], launch=launch
    )
    save_config(frozen, folder.config)
