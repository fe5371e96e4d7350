"""Shared by all tests: no network, quiet logs, one thread, and the settings that every training needs."""

import gc
import io
import logging
import os
from pathlib import Path
from typing import NamedTuple

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false"}  # before any import
if not Path("/dev/nvidia0").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run in Triton's interpreter, where it is installed

import pytest
import torch

from leadre.training.config import ComputeConfig, FileLogs

STAGES = ("world", "catalog", "pairs", "base", "tokens")
SMALL = ("data/world=tiny", "data.world.users.num_users=60", "quantizer=tiny", "embedding=hashing", "compute.threads=1")
MODEL = ("lm.hidden_size=32", "lm.layers=1", "lm.intermediate_size=32", "lm.text_tokens=600")


class SmallRun(NamedTuple):
    """A store, the folders of its stages by name, and what the command that shows a prompt printed when it made it."""

    root: Path
    folders: dict[str, Path]
    printed: str
    arguments: list[str]


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


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> SmallRun:
    """The stages up to the tokens of a small world; a test may add results to the store, but changes none."""
    from leadre.prompts.show import main

    root = tmp_path_factory.mktemp("small_run")
    arguments = [*SMALL, *MODEL, f"store.root={root}"]
    with pytest.MonkeyPatch.context() as patch:
        printed = io.StringIO()
        patch.setattr("sys.stdout", printed)
        main(arguments)
    folders = {stage: next((root / stage).glob("*/manifest.json")).parent for stage in STAGES}
    return SmallRun(root, folders, printed.getvalue(), arguments)
