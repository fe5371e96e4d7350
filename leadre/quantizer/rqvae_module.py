"""Training of the RQ-VAE: losses, moving averages, codes that nothing uses, learning rate, metrics."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from leadre.quantizer import diagnostics, ema
from leadre.quantizer.residual import Quantized
from leadre.quantizer.rqvae import RQVAE, RQVAEResult
from leadre.training.optimizer import rate


class RQVAEModule(LightningModule):
    """Trains an RQ-VAE on batches of embeddings ``(B, D)``.

    Every ``restart_every_steps`` steps, a code that no ad of those steps had is moved to a residual of the batch
    at hand, drawn from (seed, step). All state is in the checkpoint, so a resumed training repeats bit by bit.

    Args:
        network: The RQ-VAE, its codebooks set to where they start.
        beta_quant: Weight of the encoder's half of the quantization loss.
        rotation: Whether the gradient passes the quantization by rotation, not straight through.
        ema_decay: None: the codebooks learn by gradient. Else they take none, and each code is the moving average,
            with this decay, of the residuals that took it.
        quantize: How a training batch gets its codes; what is coded for good always gets the nearest.
        learning_rate: Of AdamW, after the warmup; it falls to 0 along a half cosine.
        weight_decay: On the perceptrons' weights, not on the codebooks.
        warmup_steps: Steps of linear warmup.
        steps: Steps of the whole training.
        restart_every_steps: How long a code may go unused.
        seed: Of the restarts.
    """

    uses: Tensor
    sizes: Tensor
    sums: Tensor

    def __init__(
        self,
        network: RQVAE,
        *,
        beta_quant: float,
        rotation: bool,
        ema_decay: float | None,
        quantize: Callable[[Tensor, Tensor], Quantized],
        learning_rate: float,
        weight_decay: float,
        warmup_steps: int,
        steps: int,
        restart_every_steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.beta_quant = beta_quant
        self.rotation = rotation
        self.ema_decay = ema_decay
        self.quantize = quantize
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.steps = steps
        self.restart_every_steps = restart_every_steps
        self.seed = seed
        self.register_buffer("uses", torch.zeros(network.codebooks.shape[:2], dtype=torch.int64))
        network.codebooks.requires_grad_(ema_decay is None)
        if ema_decay is not None:  # each code starts as the average of one vector
            self.register_buffer("sizes", torch.ones(network.codebooks.shape[:2]))
            self.register_buffer("sums", network.codebooks.detach().clone())
        self.valid_codes: list[Tensor] = []

    def training_step(self, batch: Tensor) -> Tensor:
        """The loss of one batch; restarts unused codes first, when it is time."""
        # Here and not after the step: a checkpoint of that step is written before Lightning's hook would run.
        if self.global_step and self.global_step % self.restart_every_steps == 0:
            self._restart_unused(batch)
        result: RQVAEResult = self.network(
            batch, beta_quant=self.beta_quant, rotation=self.rotation, quantize=self.quantize
        )
        codes = result.quantized.codes
        counts = diagnostics.code_counts(codes, self.uses.shape[1])
        taken = self._summed(counts)
        self.uses += taken
        if self.ema_decay is not None:
            self._follow(result.quantized, taken, decay=self.ema_decay)
        # Lightning keeps the metrics of every n-th step alone, and to log the rest takes a quarter of the training.
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it without declaring it
        if (self.global_step + 1) % every == 0:
            self.log("train/reconstruction_loss", result.reconstruction_loss)
            self.log("train/quantization_loss", result.quantization_loss)
            self.log("train/collision_rate", diagnostics.collisions(codes).rate)
            self._log_codebooks("train", counts)
        return result.reconstruction_loss + result.quantization_loss

    def validation_step(self, batch: Tensor) -> None:
        """Encode one batch of the ads."""
        result: RQVAEResult = self.network(batch, beta_quant=self.beta_quant)
        self.valid_codes.append(result.quantized.codes.cpu())
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
        groups: list[dict[str, Any]] = [{"params": perceptrons}]
        if self.ema_decay is None:
            groups.append({"params": [self.network.codebooks], "weight_decay": 0.0})
        optimizer = AdamW(groups, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)
        factor = partial(rate, num_steps=self.steps, warmup_share=self.warmup_steps / self.steps, floor=0.0)
        schedule = LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def _follow(self, quantized: Quantized, taken: Tensor, *, decay: float) -> None:
        """Move averages and codebooks by one batch, of which ``taken`` ``(M, K)`` vectors took each code."""
        sums = self._summed(ema.code_sums(quantized.codes, quantized.residuals.detach(), taken.shape[1]))
        self.sizes.lerp_(taken.to(self.sizes.dtype), 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        self.network.codebooks.copy_(ema.averaged(self.sizes, self.sums))

    def _summed(self, counts: Tensor) -> Tensor:
        """The sum over the ranks of a distributed training."""
        summed: Tensor = self.trainer.strategy.reduce(counts, reduce_op="sum")
        return summed

    @torch.no_grad()
    def _restart_unused(self, batch: Tensor) -> None:
        generator = torch.Generator().manual_seed(self.seed + self.global_step)
        residuals = self.network.quantize(batch).residuals
        # Under DDP the ranks have different batches: all take the rows of the first.
        residuals = self.trainer.strategy.broadcast(residuals).to(batch.device)
        for level, (codebook, residual, uses) in enumerate(
            zip(self.network.codebooks, residuals, self.uses, strict=True)
        ):
            rows = torch.randperm(len(residual), generator=generator)
            unused = torch.nonzero(uses == 0).flatten()[: len(rows)]
            codebook[unused] = residual[rows[: len(unused)].to(residual.device)]
            if self.ema_decay is not None:
                self.sizes[level, unused] = 1.0
                self.sums[level, unused] = codebook[unused]
        self.uses.zero_()

    def _log_codebooks(self, split: str, counts: Tensor) -> None:
        shares, effective = diagnostics.usage(counts), diagnostics.perplexity(counts)
        for level in range(len(counts)):
            self.log(f"{split}/usage_{level + 1}", shares[level].float())
            self.log(f"{split}/perplexity_{level + 1}", effective[level].float())
