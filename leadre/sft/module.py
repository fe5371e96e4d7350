"""The LightningModule of supervised fine-tuning: steps, optimizer, validation by constrained lists."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from leadre.catalog.trie import Trie
from leadre.decoding.beam_search import beam_search
from leadre.lm.logprob import head_logprobs
from leadre.metrics.retrieval import Retrieval
from leadre.sft.batches import Batch
from leadre.sft.trees import attention_mask
from leadre.training.optimizer import adamw
from leadre.training.strategy import shard


class Tuner(LightningModule):
    """Next-token training of a language model on the learned tokens of its rows (LEADRE 4.3.1, 5.1.3).

    The loss is the mean negative log-likelihood over the learned tokens of an optimizer step, whatever ranks and
    micro-batches it is split over.

    Args:
        model: A causal language model.
        trie: The catalog's trie, for the lists of validation users.
        sid_tokens: Token ids of each level's codes.
        learning_rate: Highest rate of AdamW, reached after the warm-up.
        min_learning_rate: Where the cosine ends.
        warmup_share: Share of the steps in which the rate rises.
        weight_decay: On matrices alone.
        beam_width: Of the validation lists.
        ks: Cut-offs of the logged ``valid/hr@k`` and ``valid/ndcg@k``.
        frozen: Tokens whose embeddings stay as they are, weight decay included.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        trie: Trie,
        sid_tokens: Sequence[range],
        learning_rate: float,
        min_learning_rate: float,
        warmup_share: float,
        weight_decay: float,
        beam_width: int,
        ks: Sequence[int],
        frozen: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.trie = trie
        self.sid_tokens = sid_tokens
        self.optimizer_of = partial(
            adamw,
            learning_rate=learning_rate,
            min_learning_rate=min_learning_rate,
            warmup_share=warmup_share,
            weight_decay=weight_decay,
        )
        self.beam_width = beam_width
        self.retrieval = Retrieval(ks=tuple(ks))
        self.frozen = list(frozen)
        self.held = embeddings(model)[self.frozen].detach().clone()
        self.losses: list[Tensor] = []  # of the micro-batches of the step under way

    def configure_model(self) -> None:
        """Share the weights out over the devices where that is asked for."""
        shard(self)

    def training_step(self, batch: Batch) -> Tensor:
        """The batch's share of the step's mean negative log-likelihood."""
        loss = -(batch.weights * learned_logprobs(self.model, batch)).sum() / batch.total
        self.losses.append(loss.detach())
        if len(self.losses) == self.trainer.accumulate_grad_batches:
            self.log("train/loss", torch.stack(self.losses).sum(), sync_dist=True, reduce_fx="sum")
            self.losses.clear()
        # Lightning divides by the micro-batches and takes the mean over the ranks; the share wants the sum of both.
        return loss * self.trainer.accumulate_grad_batches * self.trainer.world_size

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # Lightning's own signature is long
        """One step of the optimizer, after which frozen tokens are what they were."""
        super().optimizer_step(*args, **kwargs)
        if self.frozen:
            with torch.no_grad():
                weight = embeddings(self.model)
                weight[self.frozen] = self.held.to(weight)

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> None:
        """Decode constrained lists for some users: ``(ids (B, T) left-padded, mask (B, T), targets (B,))``."""
        ids, mask, targets = batch
        beams = beam_search(
            self.model,
            ids,
            mask,
            trie=self.trie,
            sid_tokens=self.sid_tokens,
            beam_width=self.beam_width,
            normalizer="trie",
        )
        self.retrieval.update(beams.rows, targets)

    def on_validation_epoch_end(self) -> None:
        """Log HR@K and NDCG@K over all validation users."""
        self.log_dict({f"valid/{name}": value for name, value in self.retrieval.compute().items()})
        self.retrieval.reset()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with a linear warm-up and a cosine to the minimum rate."""
        return self.optimizer_of(self.model.parameters(), num_steps=int(self.trainer.estimated_stepping_batches))


def embeddings(model: PreTrainedModel) -> Tensor:
    """The model's token embeddings, ``(V, D)``."""
    return cast(nn.Embedding, model.get_input_embeddings()).weight


def learned_logprobs(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Log-probability of each learned token given those before it in its own row, ``(P,)`` float32.

    The head is applied at these tokens alone.
    """
    hidden = model.base_model(
        input_ids=batch.ids,
        position_ids=batch.positions,
        attention_mask=None if batch.ends is None else attention_mask(batch.ends, dtype=model.dtype),
        use_cache=False,
    ).last_hidden_state  # (B, T, D)
    return head_logprobs(model, hidden[batch.rows, batch.before], batch.ids[batch.rows, batch.places])
