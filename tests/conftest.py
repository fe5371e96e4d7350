"""Shared by all tests: no network, quiet logs, one thread, and the settings that every training needs."""

import gc
import logging
import os
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false"}  # before any import
if not Path("/dev/nvidia0").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run in Triton's interpreter, where it is installed

import pytest
import torch

from leadre.training.config import ComputeConfig, FileLogs


def pytest_collection_finish() -> None:
    gc.freeze()  # a million objects of imported libraries stay to the end: no collection need walk through them


@pytest.fixture(autouse=True)
def _one_thread_and_quiet_logs():
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def compute() -> ComputeConfig:
    return ComputeConfig(
        accelerator="cpu",
        devices=1,
        num_nodes=1,
        strategy="auto",
        compile=False,
        threads=1,
        checkpoint_every_steps=3,
        progress=False,
    )


@pytest.fixture(scope="session")
def logger() -> FileLogs:
    return FileLogs(kind="csv")
