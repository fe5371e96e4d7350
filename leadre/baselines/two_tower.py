"""The two-tower model over ids: in-batch softmax with the logQ correction (Yi 2019), exact top-K.

It is the paper's "conventional retrieval" (LEADRE 5.3). An ad is its id, categories, SPU and attributes, a content its
id, category and SPU; each name has one embedding, and an item is the sum of its names'. No text is read.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from leadre.baselines.config import TwoTowerConfig
from leadre.baselines.names import NO_NAME, Names, name_all, places
from leadre.baselines.past import NONE, Ints, Known, nothing, past
from leadre.baselines.retriever import Learner
from leadre.training.batches import Batches, shuffled_plan


class Inputs(NamedTuple):
    """What the user tower reads of B users.

    Attributes:
        profiles: ``(B, H)`` names.
        ads: ``(B, A)`` columns of the latest ads, the oldest first, -1 behind the last.
        contents: ``(B, C)`` the same for contents; ``(B, 0)`` where content is not read.
    """

    profiles: Tensor
    ads: Tensor
    contents: Tensor


class Batch(NamedTuple):
    """A part of a step: P users, and the ads of all B targets of the step, among which each finds its own.

    Attributes:
        inputs: Of the P users.
        places: ``(P,)`` where the user's own ad stands in ``ads``.
        ads: ``(B,)`` columns.
    """

    inputs: Inputs
    places: Tensor
    ads: Tensor


class TwoTower(nn.Module):
    """Cosines of users and ads, over a temperature.

    Our choice: the history is a mean whose weights are learned by place from the latest behavior, ads and contents
    apart; the user tower is a perceptron over profile and histories, the ad tower a linear map.

    Args:
        ads: ``(N, F)`` names of the ads.
        contents: ``(C, G)`` names of the contents.
        num_names: How many there are.
        log_q: ``(N,)`` log share of each ad among the train targets.
        max_ads: Longest history of ads.
        max_contents: Longest history of contents.
        width: D.
        hidden: Of the perceptron.
        dropout: On what the perceptron reads and holds.
        temperature: Of the softmax.
    """

    ad_names: Tensor
    content_names: Tensor
    log_q: Tensor

    def __init__(
        self,
        ads: Tensor,
        contents: Tensor,
        num_names: int,
        log_q: Tensor,
        *,
        max_ads: int,
        max_contents: int,
        width: int,
        hidden: int,
        dropout: float,
        temperature: float,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        for name, value in (("ad_names", ads), ("content_names", contents), ("log_q", log_q)):
            self.register_buffer(name, value, persistent=False)
        self.names = nn.Embedding(num_names, width, padding_idx=NO_NAME)
        nn.init.normal_(self.names.weight, std=width**-0.5)
        with torch.no_grad():
            self.names.weight[NO_NAME] = 0
        self.ad_recency = nn.Parameter(torch.zeros(max_ads))
        self.content_recency = nn.Parameter(torch.zeros(max_contents))
        self.user_tower = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(3 * width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.ad_tower = nn.Linear(width, width)

    def users(self, inputs: Inputs) -> Tensor:
        """``(B, D)`` of length 1."""
        read = [
            self.names(inputs.profiles).sum(dim=1),
            self._mean(inputs.ads, self.ad_names, self.ad_recency),
            self._mean(inputs.contents, self.content_names, self.content_recency),
        ]
        return functional.normalize(self.user_tower(torch.cat(read, dim=1)), dim=1)

    def ads(self, columns: Tensor) -> Tensor:
        """``(B, D)`` of length 1, of ``(B,)`` columns."""
        return functional.normalize(self.ad_tower(self.names(self.ad_names[columns]).sum(dim=1)), dim=1)

    def loss(self, batch: Batch) -> Tensor:
        """`in_batch_softmax` of the part's users, summed, by the step's."""
        logits = self.users(batch.inputs) @ self.ads(batch.ads).T / self.temperature  # (P, B)
        return in_batch_softmax(logits, self.log_q[batch.ads], batch.places) / len(batch.ads)

    def scores(self, inputs: Inputs) -> Tensor:
        """``(B, N)``, exact."""
        every = torch.arange(len(self.ad_names), device=self.ad_names.device)
        return self.users(inputs) @ self.ads(every).T / self.temperature

    def _mean(self, items: Tensor, names: Tensor, recency: Tensor) -> Tensor:
        """The weighted mean ``(B, D)`` of histories ``(B, L)``; 0 where there is none."""
        if not items.numel():
            return self.names.weight.new_zeros(len(items), self.names.embedding_dim)
        inside = items != NONE
        used, place = torch.unique(items, return_inverse=True)  # an item that many have is summed up once
        vectors = self.names(names[used.clamp(min=0)]).sum(dim=1)  # (V, D)
        ago = inside.sum(dim=1, keepdim=True) - 1 - torch.arange(items.shape[1], device=items.device)
        weights = torch.where(inside, recency[ago.clamp(min=0)].exp(), 0.0)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
        mean: Tensor = (weights[:, :, None] * vectors[place]).sum(dim=1)
        return mean


def in_batch_softmax(logits: Tensor, log_q: Tensor, places: Tensor) -> Tensor:
    """Cross-entropy among the ads of a batch, corrected for how often each is drawn into one, summed (Yi 2019, eq. 6).

    An ad is drawn by its share q of the train targets, so popular ads would be punished as negatives; with
    ``logits - log q`` the sum over the batch estimates the sum over all ads. Our choice: q is counted, where the
    original estimates it from a stream.

    Args:
        logits: ``(P, B)``.
        log_q: ``(B,)`` of the batch's ads.
        places: ``(P,)`` each user's own ad among them.
    """
    return functional.cross_entropy(logits - log_q, places, reduction="sum")


def prepare_two_tower(config: TwoTowerConfig, known: Known) -> Learner:
    """The two towers, and the train targets that they learn from."""
    names, train = name_all(known.tables, known.ads), known.targets("train")
    columns = train["column"].to_numpy(writable=True)
    counts = np.bincount(columns, minlength=len(known.ads))
    network = TwoTower(
        torch.from_numpy(names.ads),
        torch.from_numpy(names.contents),
        names.total,
        torch.from_numpy(np.log(np.maximum(counts, 1) / len(columns)).astype(np.float32)),
        max_ads=config.max_ads,
        max_contents=config.max_contents,
        width=config.width,
        hidden=config.hidden,
        dropout=config.dropout,
        temperature=config.temperature,
    )

    def inputs(targets: pl.DataFrame) -> Callable[[Ints], Inputs]:
        return inputs_of(config, known, names, targets)

    plan = shuffled_plan(len(columns), batch_size=config.batch_size, epochs=config.epochs, seed=config.seed)
    of_train = inputs(train)

    def collate(part: Ints, whole: Ints) -> Batch:
        order = np.argsort(whole)
        own = order[np.searchsorted(whole, part, sorter=order)]
        return Batch(of_train(part), torch.from_numpy(own), torch.from_numpy(columns[whole]))

    return Learner(network, Batches(plan, collate), known, inputs)


def inputs_of(config: TwoTowerConfig, known: Known, names: Names, targets: pl.DataFrame) -> Callable[[Ints], Inputs]:
    """Of some rows of the targets, what the user tower reads."""
    behaviors, window = known.tables.behaviors, config.window_days
    ads = past(behaviors, targets, known.ads, domain="ad", window_days=window)
    contents = nothing(targets.height)
    if config.content_behaviors:
        items = known.tables.contents["item_id"].to_list()
        contents = past(behaviors, targets, items, domain="content", window_days=window)
    users = places(targets["user_id"], known.tables.users["user_id"])

    def made(rows: Ints) -> Inputs:
        parts = (
            names.users[users[rows]],
            ads.latest(rows, most=config.max_ads),
            contents.latest(rows, most=config.max_contents),
        )
        return Inputs(*(torch.from_numpy(part) for part in parts))

    return made
