"""What the learned baselines share: training, validation on one sample of users, and lists."""

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from leadre.baselines.config import LearnedConfig
from leadre.baselines.lists import CHUNK, frame
from leadre.baselines.past import Ints, Known, Ragged, nothing, past
from leadre.baselines.ranking import Rank, exact
from leadre.metrics.retrieval import Retrieval
from leadre.training.batches import Batches
from leadre.training.config import ComputeConfig, LoggerConfig
from leadre.training.device import set_up_device
from leadre.training.fit import fit
from leadre.training.optimizer import adamw

KS = (1, 4, 8, 10)
"""Cut-offs of the logged ``valid/hr@k`` and ``valid/ndcg@k``."""
log = logging.getLogger(__name__)


class Learner(NamedTuple):
    """What is trained, on what, and how it is asked.

    Attributes:
        network: Has ``loss(batch)``, the part's share of the step's mean loss.
        batches: Of the whole training.
        known: Its ads are in the order of the network's columns.
        inputs: Of targets (``user_id``, ``time``): of some of their rows, what the network reads to rank ads.
        rank: How lists are made; by default all ads are ranked by the network's ``scores``.
        users_at_once: How many users are ranked at once.
        ks: Cut-offs of the validation, ascending.
        gradient_clip: The largest gradient norm.
    """

    network: nn.Module
    batches: Batches
    known: Known
    inputs: Callable[[pl.DataFrame], Callable[[Ints], Any]]
    rank: Rank = exact
    users_at_once: int = CHUNK
    ks: Sequence[int] = KS
    gradient_clip: float | None = None


class Retriever(LightningModule):
    """Trains a network whose batches know the step they are part of, so that no split over ranks changes it.

    Args:
        network: Has ``loss(batch)``, the part's share of the step's mean loss.
        rank: How its lists are made.
        ks: Cut-offs of the logged ``valid/hr@k`` and ``valid/ndcg@k``, ascending.
        learning_rate: Highest rate of AdamW, reached after the warm-up.
        min_learning_rate: Where the cosine ends.
        warmup_share: Share of the steps in which the rate rises.
        weight_decay: On matrices alone.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        rank: Rank,
        ks: Sequence[int],
        learning_rate: float,
        min_learning_rate: float,
        warmup_share: float,
        weight_decay: float,
    ) -> None:
        super().__init__()
        self.network: Any = network
        self.rank = partial(rank, size=ks[-1])
        self.optimizer_of = partial(
            adamw,
            learning_rate=learning_rate,
            min_learning_rate=min_learning_rate,
            warmup_share=warmup_share,
            weight_decay=weight_decay,
        )
        self.retrieval = Retrieval(ks=ks)

    def training_step(self, batch: Any) -> Tensor:  # noqa: ANN401  # each network has batches of its own
        """The batch's share of the step's mean loss."""
        loss: Tensor = self.network.loss(batch)
        self.log("train/loss", loss.detach(), sync_dist=True, reduce_fx="sum")
        return loss * self.trainer.world_size  # Lightning takes the mean over the ranks; the share wants the sum

    def validation_step(self, batch: tuple[Any, Tensor, Tensor]) -> None:
        """Make lists for some users: see `Rank` for their inputs and what is left out, then their ``(B,)`` true ads."""
        inputs, left_out, targets = batch
        self.retrieval.update(self.rank(self.network, inputs, left_out).ads, targets)

    def on_validation_epoch_end(self) -> None:
        """Log HR@K and NDCG@K over all validation targets."""
        self.log_dict({f"valid/{name}": value for name, value in self.retrieval.compute().items()})
        self.retrieval.reset()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with a linear warm-up and a cosine to the minimum rate."""
        return self.optimizer_of(self.parameters(), num_steps=int(self.trainer.estimated_stepping_batches))


def train_and_list(
    config: LearnedConfig, learner: Learner, *, out: Path, compute: ComputeConfig, logger: LoggerConfig
) -> pl.DataFrame:
    """Train the network, validating as it learns, and make lists for the test users (LISTS).

    ``budget.json`` tells the steps, and the rows of all batches.
    """
    plan = learner.batches.plan
    valid = list(_asked(learner, _valid_targets(config, learner.known), exclude_seen=config.exclude_seen))
    fit(
        Retriever(
            learner.network,
            rank=learner.rank,
            ks=learner.ks,
            learning_rate=config.learning_rate,
            min_learning_rate=config.min_learning_rate,
            warmup_share=config.warmup_share,
            weight_decay=config.weight_decay,
        ),
        learner.batches,
        out=out,
        compute=compute,
        logger=logger,
        name=f"baseline.{config.kind}",
        valid=valid or None,
        valid_every_steps=math.ceil(len(plan) / config.validations) if valid else None,
        gradient_clip=learner.gradient_clip,
        seed=config.seed,
    )
    (out / "budget.json").write_text(json.dumps({"steps": len(plan), "rows": sum(map(len, plan))}))
    lists = _lists(learner, size=config.list_length, exclude_seen=config.exclude_seen, device=set_up_device(compute))
    log.info("baseline %s: %s steps, lists of %s users", config.kind, len(plan), lists["user_id"].n_unique())
    return lists


def _valid_targets(config: LearnedConfig, known: Known) -> pl.DataFrame:
    """The first ``valid_users`` of an order that every baseline of a seed shares; none without validations."""
    targets = known.targets("valid")
    chosen = np.random.default_rng(config.seed).permutation(targets.height)[: config.valid_users]
    return targets[np.sort(chosen)] if config.validations else targets.clear()


@torch.no_grad()
def _lists(learner: Learner, *, size: int, exclude_seen: bool, device: torch.device) -> pl.DataFrame:
    """The best ads of the users with a test target (LISTS), in the order of the users; fewer where others were seen."""
    network, targets = learner.network.to(device).eval(), learner.known.targets("test")
    users, names = (np.array(list(ids), dtype=object) for ids in (targets["user_id"], learner.known.ads))
    parts, done = [frame(users[:0], np.zeros(0, np.int64), names[:0], np.zeros(0))], 0
    for batch in _asked(learner, targets, exclude_seen=exclude_seen):
        inputs, left_out, columns = move_data_to_device(batch, device)
        found = learner.rank(network, inputs, left_out, size=size)
        ads, scores = found.ads.cpu().numpy(), found.scores.cpu().numpy()
        user, place = np.nonzero(ads >= 0)
        parts.append(frame(users[done + user], place + 1, names[ads[user, place]], scores[user, place]))
        done += len(columns)
    return pl.concat(parts)


def _asked(learner: Learner, targets: pl.DataFrame, *, exclude_seen: bool) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """The targets' users in batches: inputs and what is left out, see `Rank`, and the columns of the true ads."""
    inputs_of, seen = learner.inputs(targets), nothing(targets.height)
    if exclude_seen:
        seen = past(learner.known.tables.behaviors, targets, learner.known.ads, domain="ad")
    columns = torch.from_numpy(targets["column"].to_numpy(writable=True))
    for start in range(0, targets.height, learner.users_at_once):
        rows = np.arange(start, min(start + learner.users_at_once, targets.height))
        yield inputs_of(rows), _pairs(seen, rows), columns[rows]


def _pairs(seen: Ragged, rows: Ints) -> Tensor:
    """``(2, X)``: place in ``rows``, and column of the ad."""
    counts = seen.offsets[rows + 1] - seen.offsets[rows]
    columns = [seen.values[seen.offsets[row] : seen.offsets[row + 1]] for row in rows]
    return torch.from_numpy(np.stack([np.repeat(np.arange(len(rows)), counts), np.concatenate([*columns, rows[:0]])]))
