"""The ranker's network: three heads on one hidden layer, trained by Adam."""

import logging
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

log = logging.getLogger(__name__)


class Sample(NamedTuple):
    """R rows."""

    features: Tensor
    """``(R, F)``."""
    clicked: Tensor
    """``(R,)`` 0 or 1."""
    worth: Tensor
    """``(R,)`` weight in the loss of the value: ECPM over its mean for a click, else 1."""
    log_ecpm: Tensor
    """``(R,)`` standardized; NaN where there is none."""

    def part(self, rows: Tensor) -> "Sample":
        """Some of the rows."""
        return Sample._make(column[rows] for column in self)


class Network(nn.Module):
    """Features ``(..., F)`` to three numbers ``(..., 3)``: logits of value and click, log ECPM.

    Features are standardized by ``mean`` and ``deviation``, which are kept with the weights.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.hidden = nn.Linear(len(mean), hidden_size)
        self.heads = nn.Linear(hidden_size, 3)

    def forward(self, features: Tensor) -> Tensor:
        """``(..., F)`` to ``(..., 3)``."""
        heads: Tensor = self.heads(functional.silu(self.hidden((features - self.mean) / self.deviation)))
        return heads


def loss(heads: Tensor, rows: Sample) -> Tensor:
    """Logistic loss of clicks weighed by worth, the same unweighted, and half the squared error of the log ECPM.

    Args:
        heads: ``(R, 3)`` as the network gives them.
        rows: What happened.

    Returns:
        A mean over rows; of the log ECPM over those that have one.
    """
    value, click, log_ecpm = heads.unbind(-1)
    known = ~rows.log_ecpm.isnan()
    error = torch.where(known, log_ecpm - rows.log_ecpm.nan_to_num(), 0.0)
    return (
        functional.binary_cross_entropy_with_logits(value, rows.clicked, weight=rows.worth)
        + functional.binary_cross_entropy_with_logits(click, rows.clicked)
        + error.square().sum() / (2 * known.sum().clamp(min=1))
    )


def fit(
    train: Sample,
    valid: Sample,
    *,
    hidden_size: int,
    learning_rate: float,
    batch_size: int,
    max_epochs: int,
    patience: int,
    seed: int,
) -> Network:
    """Train on ``train`` until the loss on ``valid`` is no better for ``patience`` epochs; give back the best.

    The same rows and seed give the same weights. Without rows in ``valid`` those of ``train`` stop the training.

    Raises:
        ValueError: If no epoch has a finite loss.
    """
    generator = torch.Generator().manual_seed(seed)
    network = _started(train.features, hidden_size, seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    judge = valid if len(valid.clicked) else train
    best, best_loss, waited = dict[str, Tensor](), float("inf"), 0
    for epoch in range(max_epochs):
        for batch in torch.split(torch.randperm(len(train.clicked), generator=generator), batch_size):
            rows = train.part(batch)
            optimizer.zero_grad()
            loss(network(rows.features), rows).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            found = loss(network(judge.features), judge).item()
        waited = 0 if found < best_loss else waited + 1
        if found < best_loss:
            best, best_loss = {name: tensor.clone() for name, tensor in network.state_dict().items()}, found
        log.info("ltr epoch %s: loss %.4f on held-out users", epoch, found)
        if waited >= patience:
            break
    if not best:
        raise ValueError(f"ltr: no epoch has a finite loss: lower ltr.learning_rate ({learning_rate})")
    network.load_state_dict(best)
    return network


def _started(features: Tensor, hidden_size: int, seed: int) -> Network:
    deviation = features.std(dim=0, correction=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(features.mean(dim=0), torch.where(deviation > 0, deviation, 1.0), hidden_size)


def predict(network: Network, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(..., F)`` to ``(..., 3)`` without gradients."""
    with torch.no_grad():
        return np.asarray(network(torch.from_numpy(features)).numpy())
