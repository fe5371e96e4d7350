"""Shared by all tests: no network, quiet logs, one thread, and the settings that every training needs."""

import logging
import os

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false"}  # before any import

import pytest
import torch

from leadre.training.config import ComputeConfig, FileLogs


@pytest.fixture(autouse=True)
def _one_thread_and_quiet_logs():
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture
def compute() -> ComputeConfig:
    return ComputeConfig(
        accelerator="cpu",
        devices=1,
        num_nodes=1,
        strategy="auto",
        threads=1,
        checkpoint_every_steps=3,
        progress=False,
    )


@pytest.fixture
def logger() -> FileLogs:
    return FileLogs(kind="csv")
