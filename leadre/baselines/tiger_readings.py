"""What TIGER reads: users' histories in pieces, and the ads that followed them."""

from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from leadre.data.split import histories

Ints = NDArray[np.int64]
EVER = 100_000
"""Days of a window that leaves nothing out."""


class Readings(NamedTuple):
    """R readings and their M targets.

    Attributes:
        ads: ``(T,)`` catalog rows of all behaviors, those of a user together, oldest first.
        user: ``(R,)`` the token of each reading's user.
        own: ``(R,)`` where in ``ads`` the user's behaviors begin.
        first: ``(R,)`` where the reading begins.
        last: ``(R,)`` where it ends, which is where its latest target begins.
        offsets: ``(R + 1,)`` where each reading's targets begin.
        seen: ``(M,)`` how many of the reading's ads come before each target.
        target: ``(M,)`` catalog rows.
    """

    ads: Ints
    user: Ints
    own: Ints
    first: Ints
    last: Ints
    offsets: Ints
    seen: Ints
    target: Ints

    @property
    def lengths(self) -> Ints:
        """Ads of each reading, ``(R,)``."""
        return self.last - self.first

    @property
    def sizes(self) -> Ints:
        """Targets of each reading, ``(R,)``."""
        return np.diff(self.offsets)


class Batch(NamedTuple):
    """Some readings, padded on the right.

    Attributes:
        users: ``(B,)`` tokens.
        ads: ``(B, A)`` catalog rows; A is at least 1.
        seen: ``(B, P)`` ads before each target.
        targets: ``(B, P)`` catalog rows.
        weights: ``(B, P)`` 1 at a target, 0 at padding.
        total: Targets of the whole step, which the loss is the mean over.
    """

    users: Tensor
    ads: Tensor
    seen: Tensor
    targets: Tensor
    weights: Tensor
    total: int


class Asked(NamedTuple):
    """Users to make lists for: see `leadre.baselines.tiger_search.search`; ``targets`` ``(B,)`` are catalog rows."""

    users: Tensor
    ads: Tensor
    seen: Tensor
    spent: Tensor
    targets: Tensor


def readings(
    behaviors: pl.DataFrame,
    targets: pl.DataFrame,
    catalog: Sequence[str],
    *,
    max_ads: int,
    user_tokens: int,
    shared: bool,
) -> Readings:
    """Cut histories into readings of at most ``max_ads`` ads.

    Behaviors that are no ads of the catalog are left out; a target sees what came strictly before it. A user's token
    is a hash of the id (Rajput et al. 2023, 3.2).

    Args:
        behaviors: A BEHAVIORS frame.
        targets: A SPLIT frame.
        catalog: The catalog's ads, in the order of its rows.
        max_ads: Ads of a reading.
        user_tokens: Number of users' tokens.
        shared: Targets of a user share readings, which begin every ``max_ads / 2`` ads: a target takes the first that
            has room, and so sees all ads before it, or at least the half of ``max_ads``. Else each target has a reading
            of its own: the latest ``max_ads`` ads.
    """
    row = {ad: place for place, ad in enumerate(catalog)}
    known = behaviors.filter((pl.col("domain") == "ad") & pl.col("item_id").is_in(list(catalog)))
    known = known.sort("user_id", "time", maintain_order=True)
    targets = targets.sort("user_id", "time", maintain_order=True)
    past = histories(known, targets, EVER)
    before = np.bincount(past["target"].to_numpy(), minlength=targets.height).astype(np.int64)
    if shared:  # without any ad, there is nothing to be learned from
        targets, before = targets.filter(before > 0), before[before > 0]
    starts = known.with_row_index("own").group_by("user_id").agg(pl.col("own").min().cast(pl.Int64))
    own = targets.join(starts, on="user_id", how="left", maintain_order="left")["own"].fill_null(0).to_numpy()
    # 1. Where each target's reading begins, as ads after the user's first.
    step = max(max_ads // 2, 1) if shared else 1
    skipped = -(-np.maximum(before - max_ads, 0) // step) * step
    # 2. Targets of a user that begin alike, which stand together, share a reading.
    users = targets["user_id"].to_numpy()
    opens = np.ones(targets.height, dtype=bool)
    if shared:
        opens[1:] = (users[1:] != users[:-1]) | (skipped[1:] != skipped[:-1])
    heads = np.flatnonzero(opens)
    offsets = np.append(heads, targets.height)
    latest = offsets[1:] - 1  # the latest target of each reading
    return Readings(
        ads=np.array([row[ad] for ad in known["item_id"]], dtype=np.int64),
        user=np.array([crc32(user.encode()) % user_tokens for user in users[heads]], dtype=np.int64),
        own=own[heads],
        first=(own + skipped)[heads],
        last=(own + before)[latest],
        offsets=offsets,
        seen=before - skipped,
        target=np.array([row.get(ad, -1) for ad in targets["ad_id"]], dtype=np.int64),
    )


def batch(of: Readings, which: Ints, whole: Ints) -> Batch:
    """Make a batch of some readings.

    Args:
        of: All readings.
        which: The readings of this batch; where there are none, one stands in and weighs nothing.
        whole: All readings of the optimizer step.
    """
    shown = which if len(which) else whole[:1]
    counts = of.sizes[shown]
    target, real = _spread(of.offsets[shown], counts)
    weights = real if len(which) else np.zeros_like(real)
    return Batch(
        users=torch.from_numpy(of.user[shown]),
        ads=_ads(of, shown),
        seen=torch.from_numpy(np.where(real, of.seen[target], 0)),
        targets=torch.from_numpy(of.target[target]),
        weights=torch.from_numpy(weights.astype(np.float32)),
        total=int(of.sizes[whole].sum()),
    )


def asked(of: Readings, which: Ints, *, num_ads: int, exclude_seen: bool) -> Asked:
    """Some readings of one target each, to make lists for.

    Args:
        of: All readings.
        which: The readings of this batch.
        num_ads: N.
        exclude_seen: Nobody gets an ad of his history, however long ago.
    """
    spent = np.zeros(0, dtype=np.int64)
    if exclude_seen:
        place, real = _spread(of.own[which], (of.last - of.own)[which])
        keys = np.arange(len(which))[:, None] * num_ads + of.ads[place] if real.size else spent
        spent = np.unique(keys[real]) if real.size else spent
    return Asked(
        users=torch.from_numpy(of.user[which]),
        ads=_ads(of, which),
        seen=torch.from_numpy(of.seen[of.offsets[which]]),
        spent=torch.from_numpy(spent),
        targets=torch.from_numpy(of.target[of.offsets[which]]),
    )


def _ads(of: Readings, which: Ints) -> Tensor:
    """The readings' ads, ``(B, A)``; any where there is no further one, and A is at least 1."""
    place, real = _spread(of.first[which], of.lengths[which])
    rows = of.ads[place] if real.size else np.zeros((len(which), 1), dtype=np.int64)
    return torch.from_numpy(rows)


def _spread(starts: Ints, counts: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Places ``start + 0, 1, ...`` in rows of equal width, the start again as padding; and which are no padding."""
    steps = np.arange(counts.max(initial=0))
    real = steps < counts[:, None]
    return np.where(real, starts[:, None] + steps, starts[:, None]), real
