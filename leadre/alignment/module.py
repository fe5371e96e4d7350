"""Preference alignment as one Lightning module: any loss of log-probabilities, what is logged, and the guard."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from leadre.alignment.observed import MEANS, Observed, observe, running_names
from leadre.alignment.rows import Batch
from leadre.decoding.beam_search import beam_search
from leadre.lm.logprob import TrieSupport, answer_logprobs
from leadre.training.optimizer import adamw
from leadre.training.strategy import shard

Loss = Callable[[Tensor, Batch], Tensor]
"""Token log-probabilities ``(B, R, L)`` of a batch's answers, and the batch; out comes a loss a row, ``(B,)``."""
Measure = Callable[[NDArray[np.int64]], dict[str, float]]
"""Lists of catalog rows ``(U, W)`` of the validation users, in their order; out come figures by name."""

MEMORY = 256
"""Rows that a running mean looks back over. One batch of a few rows may lie nats off: the mean of so many does not."""


class Aligner(LightningModule):
    """A tuned model that learns from preferences (LEADRE 4.3.2).

    The model runs without dropout, as the reference did. Training stops when preferred ads become less likely than
    ``max_chosen_drop`` allows, in the mean of about the last 256 rows over all ranks: DPO widens a margin also where
    both log-probabilities fall (likelihood displacement), and then the curves look well while the lists go bad.

    Args:
        model: The tuned model, from which the batches' reference log-probabilities were taken.
        loss: The method.
        catalog: The catalog's codes, for the lists of validation users.
        support: What a code's probability is taken among in training: ``vocab`` all tokens, ``trie`` the codes that
            continue the S-ID to one of the catalog.
        reward_scale: See `leadre.alignment.observed.observe`.
        max_chosen_drop: Nats by which the chosen ads' mean log-probability may lie below the reference's.
        batch_size: Rows of an optimizer step.
        valid: Prompts of validation users, ``(ids (B, T) left-padded, mask (B, T))``; their lists are measured before
            the first step too.
        measure: What is told of the lists.
        beam_width: Of the lists.
        learning_rate: The highest learning rate.
        min_learning_rate: The last one.
        warmup_share: Share of the steps in which it rises.
        weight_decay: AdamW's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        loss: Loss,
        catalog: TrieSupport,
        support: str,
        reward_scale: float,
        max_chosen_drop: float,
        batch_size: int,
        valid: Sequence[tuple[Tensor, Tensor]],
        measure: Measure,
        beam_width: int,
        learning_rate: float,
        min_learning_rate: float,
        warmup_share: float,
        weight_decay: float,
    ) -> None:
        super().__init__()
        self.model = model.train()
        self.loss = loss
        self.catalog = catalog
        self.support = support
        self.reward_scale = reward_scale
        self.max_chosen_drop = max_chosen_drop
        self.keep = max(0.0, 1 - batch_size / MEMORY)
        self.valid = valid
        self.measure = measure
        self.beam_width = beam_width
        self.optimizer_of = partial(
            adamw,
            learning_rate=learning_rate,
            min_learning_rate=min_learning_rate,
            warmup_share=warmup_share,
            weight_decay=weight_decay,
        )
        # Sums and counts of what was seen, the past ever fainter; plain numbers, which no precision rounds.
        self.running = dict.fromkeys(running_names(len(catalog.sid_tokens)), (0.0, 0.0))
        self.seen: list[Observed] = []  # of the micro-batches of the step under way
        self.lists: list[Tensor] = []  # of the validation under way

    def configure_model(self) -> None:
        """Share the weights out over the devices where that is asked for."""
        shard(self)

    def on_train_start(self) -> None:
        """Switch dropout off (done earlier, Lightning would warn), and measure the lists before the first step."""
        self.model.eval()
        self.catalog = self.catalog.to(self.device)
        if self.global_step == 0 and self.valid:
            with self.trainer.precision_plugin.val_step_context():
                for ids, mask in self.valid:
                    self.validation_step((ids.to(self.device), mask.to(self.device)))
            values = self._measured()
            for sink in self.loggers:
                sink.log_metrics(values, step=0)

    def training_step(self, batch: Batch) -> Tensor:
        """The batch's share of the step's mean loss.

        Raises:
            ValueError: If the chosen ads' log-probability has fallen too far.
        """
        support = self.catalog if self.support == "trie" else None
        logprobs = answer_logprobs(self.model, batch.prompts, batch.lengths, batch.answers, support)
        losses = self.loss(logprobs, batch)
        self.seen.append(observe(losses.detach(), logprobs.detach(), batch, reward_scale=self.reward_scale))
        if len(self.seen) == self.trainer.accumulate_grad_batches:
            self._tell()
        share = (batch.weights * losses).sum()  # no matrix product, which autocast would round to bfloat16
        # Lightning divides by the micro-batches and takes the mean over the ranks; the share wants the sum of both.
        return share * self.trainer.accumulate_grad_batches * self.trainer.world_size

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Decode constrained lists for some users."""
        beams = beam_search(
            self.model,
            *batch,
            trie=self.catalog.trie,
            sid_tokens=self.catalog.sid_tokens,
            beam_width=self.beam_width,
            normalizer="trie",
        )
        self.lists.append(beams.rows.cpu())

    def on_validation_epoch_end(self) -> None:
        """Log what the lists are like."""
        self.log_dict(self._measured(), sync_dist=True)  # every rank has seen the same users

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up."""
        return self.optimizer_of(self.model.parameters(), num_steps=int(self.trainer.estimated_stepping_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the guard remembers."""
        checkpoint["running"] = dict(self.running)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        self.running = checkpoint["running"]

    def _measured(self) -> dict[str, float]:
        lists = torch.cat(self.lists).numpy()
        self.lists.clear()
        return {f"valid/{name}": value for name, value in self.measure(lists).items()}

    def remember(self, sums: Sequence[float], counts: Sequence[float]) -> dict[str, float]:
        """Add a step to the running means; out come those of which anything was seen.

        Args:
            sums: Of the step, in the order of `leadre.alignment.observed.running_names`.
            counts: Over how many rows or pairs.
        """
        for (name, (total, seen)), more, number in zip(self.running.items(), sums, counts, strict=True):
            self.running[name] = (self.keep * total + more, self.keep * seen + number)
        return {name: total / seen for name, (total, seen) in self.running.items() if seen > 0}

    def _tell(self) -> None:
        """Log the step as all ranks saw it together, and stop where it has gone wrong: on all of them, or on none."""
        mine = torch.cat([torch.stack(parts).sum(0) for parts in zip(*self.seen, strict=True)])
        self.seen.clear()
        ours = self.trainer.strategy.reduce(mine, reduce_op="sum").tolist()
        self.log_dict({f"train/{name}": value for name, value in zip(MEANS, ours, strict=False)})
        half = len(MEANS) + len(self.running)
        latest = self.remember(ours[len(MEANS) : half], ours[half:])
        self.log_dict({f"train/{name}": value for name, value in latest.items()})
        if latest["chosen_drop"] > self.max_chosen_drop:  # what is no number `fit` tells of, before the step
            raise ValueError(
                f"max_chosen_drop is {self.max_chosen_drop}, but at step {self.global_step} the chosen ads' "
                f"log-probability is {latest['chosen_drop']:.3g} nats below the reference's: the model unlearns what "
                "it should prefer; lower tuning.learning_rate, or raise sft_weight or beta where the method has them"
            )
