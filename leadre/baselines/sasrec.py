"""SASRec: self-attention over the user's ads (Kang 2018), with the full softmax cross-entropy of its tuned re-runs.

A user's train targets share one pass: each reads the state of the last ad strictly before it, so that no target sees
an ad of its own time, as nowhere else here. Our choice: a learned start stands before the first ad, so that the first
target and a user without history are ranked too; the original leaves them out.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from leadre.baselines.config import SasrecConfig
from leadre.baselines.past import NONE, Ints, Known, past
from leadre.baselines.retriever import Learner
from leadre.baselines.softmax import cross_entropy_over_all
from leadre.training.batches import Batches, bucketed_plan


class Sequences(NamedTuple):
    """S sequences of T train targets, in their order; a sequence's ads and targets lie together.

    Attributes:
        columns: ``(T,)`` the ad of each target.
        states: ``(T,)`` after how many ads of its sequence a target comes; 0 is the start.
        ads: ``(S, 2)`` where the ads that a sequence reads begin and end in ``columns``.
        targets: ``(S, 2)`` the same for its targets.
    """

    columns: Ints
    states: Ints
    ads: Ints
    targets: Ints


class Batch(NamedTuple):
    """Sequences, and the targets that are learned in them.

    Attributes:
        ads: ``(B, L)`` columns, the oldest first, -1 behind the last.
        rows: ``(P,)`` the sequence of each target.
        states: ``(P,)`` the state that it reads.
        targets: ``(P,)`` its column.
        total: Targets of the whole step.
    """

    ads: Tensor
    rows: Tensor
    states: Tensor
    targets: Tensor
    total: int


class Sasrec(nn.Module):
    """Causal self-attention over ads; an ad's score is the product of the state and its embedding.

    Args:
        num_ads: N.
        max_ads: Longest history.
        width: D.
        heads: Of each layer.
        inner: Width of the feed-forward layers.
        layers: How many.
        dropout: Everywhere.
    """

    def __init__(
        self, num_ads: int, *, max_ads: int, width: int, heads: int, inner: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.num_ads = num_ads
        self.ads = nn.Embedding(num_ads + 1, width)  # the last is the start, and fills up behind the last ad
        self.places = nn.Embedding(max_ads + 1, width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, inner, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        for weight in (self.ads.weight, self.places.weight, *self.layers.parameters()):
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.02)

    def forward(self, ads: Tensor) -> Tensor:
        """States ``(B, L + 1, D)`` of ``(B, L)`` columns: state s knows the first s ads."""
        ids = functional.pad(ads, (1, 0), value=NONE)
        ids = ids.masked_fill(ids == NONE, self.num_ads)
        scale = math.sqrt(self.ads.embedding_dim)  # else what a layer adds would drown the ad (Kang 2018, its code)
        x = self.dropout(scale * (self.ads(ids) + self.places.weight[: ids.shape[1]]))
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], device=ids.device)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        states: Tensor = self.norm(x)
        return states

    def loss(self, batch: Batch) -> Tensor:
        """Softmax cross-entropy over all ads, summed over the part's targets, by the step's."""
        states = self(batch.ads)[batch.rows, batch.states]  # (P, D)
        return cross_entropy_over_all(states, self.ads.weight[:-1], batch.targets) / batch.total

    def scores(self, ads: Tensor) -> Tensor:
        """``(B, N)`` of histories ``(B, L)``."""
        last = (ads != NONE).sum(dim=1)
        scores: Tensor = self(ads)[torch.arange(len(ads), device=ads.device), last] @ self.ads.weight[:-1].T
        return scores


def prepare_sasrec(config: SasrecConfig, known: Known) -> Learner:
    """SASRec, and the sequences that it learns from."""
    sequences = sequences_of(known.targets("train"), max_ads=config.max_ads)
    lengths, sizes = (np.diff(spans, axis=1)[:, 0] for spans in (sequences.ads, sequences.targets))
    plan = bucketed_plan(lengths, sizes, batch_size=config.batch_size, epochs=config.epochs, seed=config.seed)
    network = Sasrec(
        len(known.ads),
        max_ads=config.max_ads,
        width=config.width,
        heads=config.heads,
        inner=config.inner,
        layers=config.layers,
        dropout=config.dropout,
    )

    def inputs(targets: pl.DataFrame) -> Callable[[Ints], Tensor]:
        before = past(known.tables.behaviors, targets, known.ads, domain="ad")
        return lambda rows: torch.from_numpy(before.latest(rows, most=config.max_ads))

    batches = Batches(plan, lambda part, whole: collate(sequences, part, whole))
    return Learner(network, batches, known, inputs)


def sequences_of(targets: pl.DataFrame, *, max_ads: int) -> Sequences:
    """Cut the train targets of each user into sequences that read at most ``max_ads`` ads.

    Args:
        targets: ``user_id``, ``time`` and ``column``, by user and time.
        max_ads: L. A later sequence of a user begins where the one before it ends, and knows nothing before.

    Example:
        >>> ads = pl.DataFrame({"user_id": ["u"] * 4, "time": [1, 2, 2, 3], "column": [5, 6, 7, 8]})
        >>> found = sequences_of(ads, max_ads=2)
        >>> found.states.tolist(), found.ads.tolist(), found.targets.tolist()
        ([0, 1, 1, 1], [[0, 1], [2, 3]], [[0, 3], [3, 4]])
    """
    rows = np.arange(targets.height)
    user = targets.select(pl.col("user_id").rle_id())["user_id"].to_numpy()
    moment = targets.select(pl.struct("user_id", "time").rle_id())["user_id"].to_numpy()
    start, before = (np.searchsorted(ids, ids, side="left") for ids in (user, moment))
    known = before - start  # ads of the user strictly before each target
    block = np.maximum(known - 1, 0) // max_ads
    states = known - block * max_ads
    firsts = np.flatnonzero(np.diff(user, prepend=-1).astype(bool) | np.diff(block, prepend=-1).astype(bool))
    stops = np.append(firsts[1:], len(rows))
    begins = (start + block * max_ads)[firsts]
    reads = np.stack([begins, begins + states[stops - 1]], axis=1)
    return Sequences(targets["column"].to_numpy(writable=True), states, reads, np.stack([firsts, stops], axis=1))


def collate(sequences: Sequences, part: Ints, whole: Ints) -> Batch:
    """The batch of some sequences, ``part``, of a step's, ``whole``."""
    reads, learned = sequences.ads[part], sequences.targets[part]
    lengths, counts = reads[:, 1] - reads[:, 0], learned[:, 1] - learned[:, 0]
    places = np.arange(lengths.max(initial=0))[None, :]
    at = np.minimum(reads[:, :1] + places, len(sequences.columns) - 1)
    ads = np.where(places < lengths[:, None], sequences.columns[at], NONE)
    targets = np.concatenate([np.arange(*span) for span in learned] + [part[:0]])
    return Batch(
        torch.from_numpy(ads),
        torch.from_numpy(np.repeat(np.arange(len(part)), counts)),
        torch.from_numpy(sequences.states[targets]),
        torch.from_numpy(sequences.columns[targets]),
        int((sequences.targets[whole, 1] - sequences.targets[whole, 0]).sum()),
    )
