import json
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from leadre.adworld.config import WorldConfig
from leadre.adworld.simulate import World, simulate

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.fixture(scope="session")
def world_config():
    """The tiny world, with overrides such as ``clicks.intent=0.0``."""

    @cache
    def configure(*overrides: str, name: str = "tiny") -> WorldConfig:
        with initialize_config_dir(str(CONF), version_base=None):
            composed = compose(overrides=[f"+data/world={name}", *(f"data.world.{text}" for text in overrides)])
        return TypeAdapter(WorldConfig).validate_json(
            json.dumps(OmegaConf.to_container(composed.data.world)), strict=True
        )

    return configure


@pytest.fixture(scope="session")
def tiny_world(world_config) -> World:
    return simulate(world_config(), 0)
