"""Randomness inside a training as a function of (seed, batch) alone, so that a resumed one draws the same."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class Seeding(Callback):
    """Seed the global generators of PyTorch before each micro-batch: dropout is what they are for.

    Args:
        seed: 0 is a seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        """Each batch has a seed of its own, and so has each rank."""
        drawn = np.random.SeedSequence([self.seed, batch_idx, trainer.global_rank])
        number = int(drawn.generate_state(1, np.uint64)[0])
        torch.default_generator.manual_seed(number)  # `torch.manual_seed` looks at every kind of device: 0.3 ms
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(number)
