"""What the two-tower model and SASRec share: training, validation by exact rankings of all ads, and lists."""

import json
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from leadre.baselines.config import SasrecConfig, TwoTowerConfig
from leadre.baselines.lists import CHUNK, ranked_in_chunks
from leadre.baselines.past import Ints, Known, Ragged, nothing, past
from leadre.metrics.retrieval import Retrieval
from leadre.training.batches import Batches
from leadre.training.config import ComputeConfig, LoggerConfig
from leadre.training.fit import fit
from leadre.training.optimizer import adamw

KS = (1, 4, 8, 10)
"""Cut-offs of the logged ``valid/hr@k`` and ``valid/ndcg@k``."""
VALID_BATCH = 512
log = logging.getLogger(__name__)

Inputs = Callable[[pl.DataFrame], Callable[[Ints], Any]]
"""Of targets (``user_id``, ``time``): of some of their rows, what a network's ``scores`` takes."""


class Retriever(LightningModule):
    """Trains a network whose batches know the step they are part of, so that no split over ranks changes it.

    Args:
        network: Has ``loss(batch)``, the part's share of the step's mean loss, and ``scores(inputs)``, ``(B, N)``.
        learning_rate: Highest rate of AdamW, reached after the warm-up.
        min_learning_rate: Where the cosine ends.
        warmup_share: Share of the steps in which the rate rises.
        weight_decay: On matrices alone.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        learning_rate: float,
        min_learning_rate: float,
        warmup_share: float,
        weight_decay: float,
    ) -> None:
        super().__init__()
        self.network: Any = network
        self.optimizer_of = partial(
            adamw,
            learning_rate=learning_rate,
            min_learning_rate=min_learning_rate,
            warmup_share=warmup_share,
            weight_decay=weight_decay,
        )
        self.retrieval = Retrieval(ks=KS)

    def training_step(self, batch: Any) -> Tensor:  # noqa: ANN401  # each network has batches of its own
        """The batch's share of the step's mean loss."""
        loss: Tensor = self.network.loss(batch)
        self.log("train/loss", loss.detach(), sync_dist=True, reduce_fx="sum")
        return loss * self.trainer.world_size  # Lightning takes the mean over the ranks; the share wants the sum

    def validation_step(self, batch: tuple[Any, Tensor, Tensor]) -> None:
        """Rank all ads: ``scores``' inputs, ``(2, S)`` rows and ads that are left out, and the ``(B,)`` true ads."""
        inputs, seen, targets = batch
        scores = self.network.scores(inputs)
        scores[seen[0], seen[1]] = -torch.inf
        best = scores.topk(min(KS[-1], scores.shape[1]))
        self.retrieval.update(best.indices.masked_fill(best.values.isneginf(), -1), targets)

    def on_validation_epoch_end(self) -> None:
        """Log HR@K and NDCG@K over all validation targets."""
        self.log_dict({f"valid/{name}": value for name, value in self.retrieval.compute().items()})
        self.retrieval.reset()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with a linear warm-up and a cosine to the minimum rate."""
        return self.optimizer_of(self.parameters(), num_steps=int(self.trainer.estimated_stepping_batches))


def train_and_list(
    config: TwoTowerConfig | SasrecConfig,
    network: nn.Module,
    batches: Batches,
    known: Known,
    inputs: Inputs,
    *,
    out: Path,
    compute: ComputeConfig,
    logger: LoggerConfig,
) -> pl.DataFrame:
    """Train the network, validating as it learns, and rank all ads for the test users (LISTS).

    ``budget.json`` tells the steps, and the rows of all batches.
    """
    valid = _valid_batches(config, known, inputs)
    fit(
        Retriever(
            network,
            learning_rate=config.learning_rate,
            min_learning_rate=config.min_learning_rate,
            warmup_share=config.warmup_share,
            weight_decay=config.weight_decay,
        ),
        batches,
        out=out,
        compute=compute,
        logger=logger,
        name=f"baseline.{config.kind}",
        valid=valid or None,
        valid_every_steps=math.ceil(len(batches.plan) / config.validations) if valid else None,
        seed=config.seed,
    )
    (out / "budget.json").write_text(json.dumps({"steps": len(batches.plan), "rows": sum(map(len, batches.plan))}))
    test = known.targets("test")
    log.info("baseline %s: %s steps, lists of %s users", config.kind, len(batches.plan), test.height)
    return _lists(network, known, test, inputs(test), size=config.list_length, exclude_seen=config.exclude_seen)


def _valid_batches(
    config: TwoTowerConfig | SasrecConfig, known: Known, inputs: Inputs
) -> list[tuple[Any, Tensor, Tensor]]:
    """A fixed random sample of the valid targets."""
    targets = known.targets("valid")
    if not config.validations or targets.is_empty():
        return []
    chosen = np.random.default_rng(config.seed).permutation(targets.height)[: config.valid_users]
    targets = targets[np.sort(chosen)]
    inputs_of, seen = inputs(targets), _seen(known, targets, exclude_seen=config.exclude_seen)
    columns = torch.from_numpy(targets["column"].to_numpy(writable=True))
    parts = [np.arange(i, min(i + VALID_BATCH, targets.height)) for i in range(0, targets.height, VALID_BATCH)]
    return [(inputs_of(part), _pairs(seen, part), columns[part]) for part in parts]


@torch.no_grad()
def _lists(
    network: nn.Module,
    known: Known,
    targets: pl.DataFrame,
    inputs_of: Callable[[Ints], Any],
    *,
    size: int,
    exclude_seen: bool,
) -> pl.DataFrame:
    """The exact best ads of each target's user (LISTS), ties by ad_id; fewer where all others were seen."""
    network.eval().cpu()
    seen = _seen(known, targets, exclude_seen=exclude_seen)

    def scores(start: int, stop: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        rows = np.arange(start, stop)
        found: Tensor = network.scores(inputs_of(rows)).double()  # type: ignore[operator]  # a Module may have any
        left_out = _pairs(seen, rows)
        found[left_out[0], left_out[1]] = -torch.inf
        return found.numpy()

    lists = ranked_in_chunks(targets["user_id"].to_list(), known.ads, scores, size=size, chunk=CHUNK)
    return lists.filter(pl.col("score").is_finite())


def _seen(known: Known, targets: pl.DataFrame, *, exclude_seen: bool) -> Ragged:
    if exclude_seen:
        return past(known.tables.behaviors, targets, known.ads, domain="ad")
    return nothing(targets.height)


def _pairs(seen: Ragged, rows: Ints) -> Tensor:
    """``(2, S)``: place in ``rows``, and column of the ad."""
    counts = seen.offsets[rows + 1] - seen.offsets[rows]
    columns = [seen.values[seen.offsets[row] : seen.offsets[row + 1]] for row in rows]
    return torch.from_numpy(np.stack([np.repeat(np.arange(len(rows)), counts), np.concatenate([*columns, rows[:0]])]))
