"""Configuration: dataclasses are the schema (`schema.py`), YAML files the choices (`load.py`)."""

from paltrain.config.load import load_config, save_config, to_yaml
from paltrain.config.schema import EvalConfig, FeaturesConfig, TrainConfig

__all__ = ["EvalConfig", "FeaturesConfig", "TrainConfig", "load_config", "save_config", "to_yaml"]
