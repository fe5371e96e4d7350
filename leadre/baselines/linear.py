"""A multinomial linear model over all ads of the catalog: the plain yardstick of what the data hold."""

import logging
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from leadre.baselines.features import Bags

log = logging.getLogger(__name__)


class LinearModel(nn.Module):
    """``logit_a = b_a + sum_f x_f (W_fa + sum_g W_fg)`` over the groups g (categories) that ad a is in.

    The shared group columns let rare ads learn from their category; the model stays linear in x and in W.
    """

    def __init__(self, num_features: int, groups: Tensor, num_groups: int) -> None:
        """Zero weights.

        Args:
            num_features: F.
            groups: ``(G, N)`` int, the group of each ad in each of G ways of grouping.
            num_groups: The number of groups, all ways together.
        """
        super().__init__()
        self.num_ads = groups.shape[1]
        self.weights = nn.EmbeddingBag(num_features, self.num_ads + num_groups, mode="sum")
        nn.init.zeros_(self.weights.weight)
        self.bias = nn.Parameter(torch.zeros(self.num_ads))
        self.groups: Tensor
        self.register_buffer("groups", groups)

    def forward(self, index: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
        """Logits of all ads, ``(B, N)``; ``offsets`` ``(B,)`` are the starts of the rows."""
        sums: Tensor = self.weights(index, offsets, per_sample_weights=weight)
        logits, shared = sums[:, : self.num_ads] + self.bias, sums[:, self.num_ads :]
        for grouping in self.groups:
            logits = logits + shared[:, grouping]
        return logits


class Fit(NamedTuple):
    """How a training went."""

    epochs: int
    valid_loss: float  # of the kept epoch; nan without valid targets


def rows(bags: Bags, chosen: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """Some rows of the bags as ``(index, weight, offsets)`` for `LinearModel`."""
    starts, ends = bags.offsets[chosen], bags.offsets[chosen + 1]
    lengths = ends - starts
    offsets = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    place = np.repeat(starts - offsets, lengths) + np.arange(lengths.sum())
    return torch.from_numpy(bags.feature[place]), torch.from_numpy(bags.weight[place]), torch.from_numpy(offsets)


def fit(
    model: LinearModel,
    train: Bags,
    train_ads: NDArray[np.int64],
    valid: Bags,
    valid_ads: NDArray[np.int64],
    *,
    learning_rate: float,
    batch_size: int,
    max_epochs: int,
    patience: int,
    seed: int,
) -> Fit:
    """Minimize the softmax cross-entropy of the train targets with Adam; keep the epoch of best valid loss.

    Args:
        model: Changed in place.
        train: T rows of features.
        train_ads: Their ads as columns of the model, ``(T,)``.
        valid: Rows that decide when to stop; test targets must not be here.
        valid_ads: Their ads; without any the last epoch is kept.
        learning_rate: Of Adam.
        batch_size: Rows a step.
        max_epochs: At most so many passes.
        patience: Stop after so many epochs without a better valid loss.
        seed: Of the order of the rows.

    Raises:
        ValueError: If there are valid targets and no epoch has a finite loss on them.
    """
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    best, best_state, best_epoch, epoch = np.inf, _copy(model), 0, 0
    for epoch in range(1, max_epochs + 1):
        order = rng.permutation(train.num_rows)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            loss = functional.cross_entropy(model(*rows(train, chosen)), torch.from_numpy(train_ads[chosen]))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
        if not len(valid_ads):
            continue
        valid_loss = _loss(model, valid, valid_ads, batch_size)
        if valid_loss < best:
            best, best_state, best_epoch = valid_loss, _copy(model), epoch
        elif epoch - best_epoch >= patience:
            break
    if not len(valid_ads):
        log.info("linear model: no valid targets to stop by, so the last of %s epochs is kept", epoch)
        return Fit(epoch, float("nan"))
    if not np.isfinite(best):
        raise ValueError(
            f"none of {epoch} epochs of the linear model has a finite valid loss with "
            f"baselines.linear.learning_rate={learning_rate:g}: lower it"
        )
    model.load_state_dict(best_state)
    log.info("linear model: best of %s epochs is %s with valid loss %.4f", epoch, best_epoch, best)
    return Fit(best_epoch, float(best))


@torch.no_grad()
def predict(model: LinearModel, bags: Bags, *, batch_size: int) -> NDArray[np.float64]:
    """Log-probabilities of all ads for each row, ``(T, N)``."""
    parts = [
        functional.log_softmax(model(*rows(bags, chosen)), dim=-1).double().numpy()
        for chosen in _batches(bags.num_rows, batch_size)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, model.num_ads))


@torch.no_grad()
def _loss(model: LinearModel, bags: Bags, ads: NDArray[np.int64], batch_size: int) -> float:
    total = 0.0
    for chosen in _batches(bags.num_rows, batch_size):
        logits = model(*rows(bags, chosen))
        total += float(functional.cross_entropy(logits, torch.from_numpy(ads[chosen]), reduction="sum"))
    return total / len(ads)


def _batches(count: int, batch_size: int) -> list[NDArray[np.int64]]:
    return [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def _copy(model: LinearModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}
