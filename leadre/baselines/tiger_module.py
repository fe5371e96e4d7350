"""The LightningModule of TIGER: steps, optimizer, validation by constrained lists."""

from collections.abc import Sequence
from functools import partial

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from leadre.baselines.tiger_network import Tiger
from leadre.baselines.tiger_readings import Asked, Batch
from leadre.baselines.tiger_search import search
from leadre.metrics.retrieval import Retrieval
from leadre.training.optimizer import adamw


class TigerTraining(LightningModule):
    """The mean negative log-likelihood of the targets' S-IDs, and lists of validation users.

    Args:
        network: What is trained.
        learning_rate: Highest rate of AdamW, reached after the warm-up.
        min_learning_rate: Where the cosine ends.
        warmup_share: Share of the steps in which the rate rises.
        weight_decay: On matrices alone.
        beam_width: Of the validation lists.
        ks: Cut-offs of the logged ``valid/hr@k`` and ``valid/ndcg@k``.
    """

    def __init__(
        self,
        network: Tiger,
        *,
        learning_rate: float,
        min_learning_rate: float,
        warmup_share: float,
        weight_decay: float,
        beam_width: int,
        ks: Sequence[int],
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer_of = partial(
            adamw,
            learning_rate=learning_rate,
            min_learning_rate=min_learning_rate,
            warmup_share=warmup_share,
            weight_decay=weight_decay,
        )
        self.beam_width = beam_width
        self.retrieval = Retrieval(ks=tuple(ks))

    def training_step(self, batch: Batch) -> Tensor:
        """The batch's share of the step's mean negative log-likelihood of an S-ID."""
        told = self.network(batch.users, batch.ads, batch.seen, batch.targets)
        loss: Tensor = -(batch.weights * told).sum() / batch.total
        self.log("train/loss", loss.detach(), sync_dist=True, reduce_fx="sum")
        return loss * self.trainer.world_size  # Lightning takes the mean over the ranks; the share wants the sum

    def validation_step(self, batch: Asked) -> None:
        """Make constrained lists for some users."""
        found = search(
            self.network,
            batch.users,
            batch.ads,
            batch.seen,
            batch.spent,
            beam_width=self.beam_width,
        )
        self.retrieval.update(found.rows, batch.targets)

    def on_validation_epoch_end(self) -> None:
        """Log HR@K and NDCG@K over all validation users."""
        self.log_dict({f"valid/{name}": value for name, value in self.retrieval.compute().items()})
        self.retrieval.reset()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with a linear warm-up and a cosine to the minimum rate."""
        return self.optimizer_of(self.network.parameters(), num_steps=int(self.trainer.estimated_stepping_batches))
