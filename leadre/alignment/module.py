"""DPO and RRHF as Lightning modules: a step, what it logs, and the optimizer."""

from functools import partial

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from transformers import PreTrainedModel

from leadre.alignment.losses import dpo_loss, rrhf_loss
from leadre.alignment.rows import Batch
from leadre.lm.logprob import answer_logprobs
from leadre.training.optimizer import adamw


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
            adamw,
            learning_rate=learning_rate,
            min_learning_rate=min_learning_rate,
            warmup_share=warmup_share,
            weight_decay=weight_decay,
        )

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
        return self.optimizer_of(self.model.parameters(), num_steps=int(self.trainer.estimated_stepping_batches))

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
        warmup_share: float,
        weight_decay: float,
    ) -> None:
        super().__init__()
        self.model = model.train()
        self.sft_weight = sft_weight
        self.optimizer_of = partial(
            adamw,
            learning_rate=learning_rate,
            min_learning_rate=min_learning_rate,
            warmup_share=warmup_share,
            weight_decay=weight_decay,
        )

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
        return self.optimizer_of(self.model.parameters(), num_steps=int(self.trainer.estimated_stepping_batches))


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
