"""DPO and RRHF as Lightning modules: a step, what it logs, and the optimizer."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from transformers import PreTrainedModel

from leadre.alignment.losses import dpo_loss, rrhf_loss
from leadre.alignment.rows import Batch
from leadre.lm.logprob import answer_logprobs

Schedule = Literal["linear", "cosine"]


class Dpo(LightningModule):
    """DPO with a likelihood term on the chosen ad: ``L = L_DPO + sft_weight * -log p(chosen)`` (LEADRE 4.3.2).

    DPO alone widens the margin also where both log-probabilities fall, and says nothing about the codes that two
    S-IDs share; the likelihood term holds both. Our choice: the paper does not speak of it. The model runs without
    dropout, as the reference did.

    Args:
        model: The tuned model, from which the batches' reference log-probabilities were taken.
        beta: See `dpo_loss`.
        label_smoothing: See `dpo_loss`.
        sft_weight: Weight of the chosen response's negative log-probability (summed over its tokens); 0 is plain DPO.
        max_chosen_drop: Nats by which the chosen ads' mean log-probability in a batch may lie below the reference's.
        learning_rate: The highest learning rate.
        min_learning_rate: The last one.
        schedule: How it falls.
        warmup_share: Share of the steps in which it rises.
        weight_decay: AdamW's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        beta: float,
        label_smoothing: float,
        sft_weight: float,
        max_chosen_drop: float,
        learning_rate: float,
        min_learning_rate: float,
        schedule: Schedule,
        warmup_share: float,
        weight_decay: float,
    ) -> None:
        super().__init__()
        self.model = model.train()
        self.beta = beta
        self.label_smoothing = label_smoothing
        self.sft_weight = sft_weight
        self.max_chosen_drop = max_chosen_drop
        self.optimizer_of = partial(
            adamw, learning_rate=learning_rate, min_learning_rate=min_learning_rate, schedule=schedule,
            warmup_share=warmup_share, weight_decay=weight_decay,
        )  # fmt: skip

    def on_train_start(self) -> None:
        """Switch dropout off; not before, as Lightning warns of a model that does not look like training."""
        self.model.eval()

    def training_step(self, batch: Batch) -> Tensor:
        """The loss of a batch."""
        chosen, rejected = _responses(self.model, batch).sum(dim=-1).unbind(dim=1)
        reference_chosen, reference_rejected = batch.reference.unbind(dim=1)
        loss = dpo_loss(
            chosen,
            rejected,
            reference_chosen=reference_chosen,
            reference_rejected=reference_rejected,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
        )
        loss = loss - self.sft_weight * chosen.mean()
        margin = self.beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
        self.log_dict(_logged(loss, chosen, rejected, margin), batch_size=len(chosen))
        self._stop_if_displaced((reference_chosen - chosen).mean().item())
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up."""
        return self.optimizer_of(self.model, int(self.trainer.estimated_stepping_batches))

    def _stop_if_displaced(self, drop: float) -> None:
        """Refuse to go on when preferred ads become unlikely (likelihood displacement), or nothing is a number."""
        if not drop <= self.max_chosen_drop:
            raise ValueError(
                f"max_chosen_drop is {self.max_chosen_drop}, but at step {self.global_step} the chosen ads' "
                f"log-probability is {drop:.3g} nats below the reference's: the model unlearns what it should prefer; "
                "raise sft_weight or beta, or lower learning_rate"
            )


class Rrhf(LightningModule):
    """RRHF: the chosen ad's mean token log-probability is to exceed the rejected one's; no reference.

    Args:
        model: The tuned model.
        sft_weight: See `rrhf_loss`.
        learning_rate: The highest learning rate.
        min_learning_rate: The last one.
        schedule: How it falls.
        warmup_share: Share of the steps in which it rises.
        weight_decay: AdamW's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        sft_weight: float,
        learning_rate: float,
        min_learning_rate: float,
        schedule: Schedule,
        warmup_share: float,
        weight_decay: float,
    ) -> None:
        super().__init__()
        self.model = model.train()
        self.sft_weight = sft_weight
        self.optimizer_of = partial(
            adamw, learning_rate=learning_rate, min_learning_rate=min_learning_rate, schedule=schedule,
            warmup_share=warmup_share, weight_decay=weight_decay,
        )  # fmt: skip

    def on_train_start(self) -> None:
        """Switch dropout off; not before, as Lightning warns of a model that does not look like training."""
        self.model.eval()

    def training_step(self, batch: Batch) -> Tensor:
        """The loss of a batch; the margin that is logged is in nats a token."""
        logprobs = _responses(self.model, batch)
        loss = rrhf_loss(logprobs, batch.ecpms, sft_weight=self.sft_weight)
        chosen, rejected = logprobs.sum(dim=-1).unbind(dim=1)
        margin = (chosen - rejected) / logprobs.shape[-1]
        self.log_dict(_logged(loss, chosen, rejected, margin), batch_size=len(chosen))
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up."""
        return self.optimizer_of(self.model, int(self.trainer.estimated_stepping_batches))


def _responses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Token log-probabilities ``(B, 2, L)``."""
    return answer_logprobs(model, batch.prompts, batch.lengths, batch.answers)


def _logged(loss: Tensor, chosen: Tensor, rejected: Tensor, margin: Tensor) -> dict[str, Tensor]:
    return {
        "train/loss": loss.detach(),
        "train/chosen_logp": chosen.detach().mean(),
        "train/rejected_logp": rejected.detach().mean(),
        "train/reward_margin": margin.detach().mean(),
        "train/reward_accuracy": (margin > 0).float().mean(),
    }


def adamw(
    model: torch.nn.Module,
    num_steps: int,
    *,
    learning_rate: float,
    min_learning_rate: float,
    schedule: Schedule,
    warmup_share: float,
    weight_decay: float,
) -> OptimizerLRSchedulerConfig:
    """AdamW over all weights, its learning rate set anew at every step by `rate`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    factor: Callable[[int], float] = partial(
        rate,
        num_steps=num_steps,
        num_warmup=round(warmup_share * num_steps),
        floor=min_learning_rate / learning_rate,
        schedule=schedule,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def rate(step: int, *, num_steps: int, num_warmup: int, floor: float, schedule: Schedule) -> float:
    """Share of the highest learning rate that step ``step`` (from 0) uses.

    It rises in equal parts to 1 at the last warm-up step, then falls to ``floor`` at the last step of all.

    Raises:
        ValueError: If ``floor`` is above 1.

    Example:
        >>> [round(rate(t, num_steps=6, num_warmup=2, floor=0.1, schedule="linear"), 3) for t in range(6)]
        [0.5, 1.0, 0.775, 0.55, 0.325, 0.1]
    """
    if floor > 1:
        raise ValueError(
            f"floor is {floor:g}, but the learning rate falls to it: give a min_learning_rate of at most learning_rate"
        )
    if step < num_warmup:
        return (step + 1) / num_warmup
    start = max(num_warmup - 1, 0)
    done = min((step - start) / max(num_steps - 1 - start, 1), 1.0)
    left = 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return floor + (1 - floor) * left
