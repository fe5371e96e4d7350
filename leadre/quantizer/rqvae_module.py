"""Training of the RQ-VAE: losses, codes that nothing uses, learning rate, metrics."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from leadre.quantizer import diagnostics
from leadre.quantizer.rqvae import RQVAE


class RQVAEModule(LightningModule):
    """Trains an RQ-VAE on batches of embeddings ``(B, D)``.

    Every ``restart_every_steps`` steps, a code that no ad of those steps had is moved to a residual of the batch
    at hand, drawn from (seed, step). All state is in the checkpoint, so a resumed training repeats bit by bit.

    Args:
        network: The RQ-VAE.
        learning_rate: Of AdamW, after the warmup; it falls to 0 along a half cosine.
        weight_decay: On the perceptrons' weights, not on the codebooks.
        warmup_steps: Steps of linear warmup.
        steps: Steps of the whole training.
        restart_every_steps: How long a code may go unused.
        seed: Of the restarts.
    """

    uses: Tensor

    def __init__(
        self,
        network: RQVAE,
        *,
        learning_rate: float,
        weight_decay: float,
        warmup_steps: int,
        steps: int,
        restart_every_steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.steps = steps
        self.restart_every_steps = restart_every_steps
        self.seed = seed
        self.register_buffer("uses", torch.zeros(network.codebooks.shape[:2], dtype=torch.int64))
        self.valid_codes: list[Tensor] = []

    def training_step(self, batch: Tensor) -> Tensor:
        """The loss of one batch; restarts unused codes first, when it is time."""
        # Here and not after the step: a checkpoint of that step is written before Lightning's hook would run.
        if self.global_step and self.global_step % self.restart_every_steps == 0:
            self._restart_unused(batch)
        result = self.network(batch)
        counts = diagnostics.code_counts(result.codes, self.uses.shape[1])
        self.uses += self.trainer.strategy.reduce(counts, reduce_op="sum")
        # Lightning keeps the metrics of every n-th step alone, and to log the rest takes a quarter of the training.
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it without declaring it
        if (self.global_step + 1) % every == 0:
            self.log("train/reconstruction_loss", result.reconstruction_loss)
            self.log("train/quantization_loss", result.quantization_loss)
            self.log("train/collision_rate", diagnostics.collisions(result.codes).rate)
            self._log_codebooks("train", counts)
        loss: Tensor = result.reconstruction_loss + result.quantization_loss
        return loss

    def validation_step(self, batch: Tensor) -> None:
        """Encode one batch of the ads."""
        result = self.network(batch)
        self.valid_codes.append(result.codes.cpu())
        self.log("valid/reconstruction_loss", result.reconstruction_loss, batch_size=len(batch))

    def on_validation_epoch_end(self) -> None:
        """Log how many ads share their codes, and how evenly the codes are used."""
        codes = torch.cat(self.valid_codes)
        self.valid_codes.clear()
        self.log("valid/collision_rate", diagnostics.collisions(codes).rate)
        self._log_codebooks("valid", diagnostics.code_counts(codes, self.uses.shape[1]))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with a linear warmup and a half cosine."""
        perceptrons = [*self.network.encoder.parameters(), *self.network.decoder.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": perceptrons},
            {"params": [self.network.codebooks], "weight_decay": 0.0},
        ]
        optimizer = AdamW(groups, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)
        schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup=self.warmup_steps, steps=self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def _restart_unused(self, batch: Tensor) -> None:
        generator = torch.Generator().manual_seed(self.seed + self.global_step)
        residuals = self.network.quantize(batch).residuals
        # Under DDP the ranks have different batches: all take the rows of the first.
        residuals = self.trainer.strategy.broadcast(residuals)
        for codebook, residual, uses in zip(self.network.codebooks, residuals, self.uses, strict=True):
            rows = torch.randperm(len(residual), generator=generator)
            unused = torch.nonzero(uses == 0).flatten()[: len(rows)]
            codebook[unused] = residual[rows[: len(unused)].to(residual.device)]
        self.uses.zero_()

    def _log_codebooks(self, split: str, counts: Tensor) -> None:
        shares, effective = diagnostics.usage(counts), diagnostics.perplexity(counts)
        for level in range(len(counts)):
            self.log(f"{split}/usage_{level + 1}", shares[level].float())
            self.log(f"{split}/perplexity_{level + 1}", effective[level].float())


def warmup_cosine(step: int, *, warmup: int, steps: int) -> float:
    """Factor of the learning rate: a line from 0 to 1 over the warmup, then a half cosine to 0 at ``steps``.

    Example:
        >>> [round(warmup_cosine(step, warmup=2, steps=6), 3) for step in range(7)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
