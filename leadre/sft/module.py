"""The LightningModule of supervised fine-tuning: steps, optimizer, validation by constrained lists."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from leadre.decoding.beam_search import beam_search
from leadre.lm.config import Support
from leadre.lm.logprob import TrieSupport, head_logprobs, siblings
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
        catalog: Its codes, for the lists of validation users.
        support: What a code's probability is taken among in the loss: ``vocab`` all tokens; ``trie`` the codes that
            lead from those before it to an ad, so that an S-ID's is a probability among the catalog's ads.
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
        catalog: TrieSupport,
        support: Support,
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
        self.catalog = catalog
        self.support = support
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

    def on_train_start(self) -> None:
        """Have the catalog where the model is."""
        self.catalog = self.catalog.to(self.device)

    def training_step(self, batch: Batch) -> Tensor:
        """The batch's share of the step's mean negative log-likelihood."""
        support = self.catalog if self.support == "trie" else None
        loss = -(batch.weights * learned_logprobs(self.model, batch, support)).sum() / batch.total
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
            trie=self.catalog.trie,
            sid_tokens=self.catalog.sid_tokens,
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


def learned_logprobs(model: PreTrainedModel, batch: Batch, support: TrieSupport | None = None) -> Tensor:
    """Log-probability of each learned token given those before it in its own row, ``(P,)`` float32.

    The head is applied at these tokens alone.

    Args:
        model: A causal language model.
        batch: Its learned tokens are codes of whole S-IDs where there is a ``support``.
        support: What a code's probability is taken among, see `feasible`; None is the whole vocabulary.
    """
    hidden = model.base_model(
        input_ids=batch.ids,
        position_ids=batch.positions,
        attention_mask=None if batch.ends is None else attention_mask(batch.ends, dtype=model.dtype),
        use_cache=False,
    ).last_hidden_state  # (B, T, D)
    learned = batch.ids[batch.rows, batch.places]
    among = None if support is None else feasible(batch, support)
    return head_logprobs(model, hidden[batch.rows, batch.before], learned, among)


def feasible(batch: Batch, support: TrieSupport) -> Tensor:
    """The tokens that may stand in the place of each learned code, given the codes of its S-ID before it.

    Returns:
        ``(P, K)`` token ids, -1 fills up: an argument of `leadre.lm.logprob.head_logprobs`.

    Raises:
        ValueError: If a learned token is no code of a whole S-ID, or an S-ID none of the catalog.
    """
    learned = batch.ids[batch.rows, batch.places]
    number = torch.full_like(batch.ids, -1)  # of the learned token that stands there
    number[batch.rows, batch.places] = torch.arange(len(learned), device=learned.device)
    last = support.sid_tokens[-1]
    codes = [((learned >= last.start) & (learned < last.stop)).nonzero().squeeze(1)]
    for _ in support.sid_tokens[1:]:  # in a tree of rows S-IDs may share their first codes: go back from the last
        codes.insert(0, number[batch.rows[codes[0]], batch.before[codes[0]]])
    whole = torch.stack(codes, dim=1)  # (S, L) learned tokens of each S-ID
    if len(torch.unique(whole)) < len(learned) or bool((whole < 0).any()):
        raise ValueError(
            "sft.tuning.support is 'trie', but a learned token is no code of a whole S-ID: use sft.tuning.support=vocab"
        )
    found = siblings(support, learned[whole])
    among = learned.new_full((len(learned), found.shape[-1]), -1)
    among[whole] = found
    return among
