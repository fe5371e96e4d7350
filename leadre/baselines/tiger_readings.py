"""What TIGER reads: users' histories in pieces, and the ads that followed them."""

from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np
import polars as pl
import torch
from torch import Tensor

from leadre.baselines.past import NONE, Ints, Ragged


class Readings(NamedTuple):
    """R readings and their M targets.

    Attributes:
        users: ``(R,)`` the token of each reading's user.
        ads: Catalog rows of each reading's ads, oldest first.
        targets: Catalog rows of each reading's targets.
        seen: ``(M,)`` how many of the reading's ads come before each target.
    """

    users: Ints
    ads: Ragged
    targets: Ragged
    seen: Ints

    @property
    def lengths(self) -> Ints:
        """Ads of each reading, ``(R,)``."""
        return np.diff(self.ads.offsets)

    @property
    def sizes(self) -> Ints:
        """Targets of each reading, ``(R,)``."""
        return np.diff(self.targets.offsets)


class Batch(NamedTuple):
    """Some readings, padded on the right.

    Attributes:
        users: ``(B,)`` tokens.
        ads: ``(B, A)`` catalog rows, -1 behind the last.
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


def readings(before: Ragged, targets: pl.DataFrame, *, max_ads: int, user_tokens: int) -> Readings:
    """Cut histories into readings of at most ``max_ads`` ads, which targets of a user share.

    Readings begin every ``max_ads / 2`` ads: a target takes the first that has room, and so sees all ads before it, or
    at least the half of ``max_ads``. A target without any ad before it is left out.

    Args:
        before: Catalog rows of the ads strictly before each target.
        targets: ``user_id`` and ``column``, the target's catalog row; by user and time.
        max_ads: Ads of a reading.
        user_tokens: Number of users' tokens.
    """
    counts = np.diff(before.offsets)
    rows = np.flatnonzero(counts)  # without any ad, there is nothing to be learned from
    counts, targets = counts[rows], targets[rows]
    # 1. Where each target's reading begins, as ads after the user's first.
    step = max(max_ads // 2, 1)
    skipped = -(-np.maximum(counts - max_ads, 0) // step) * step
    seen = counts - skipped
    # 2. Targets of a user that begin alike, which stand together, share a reading: it ends where the latest begins.
    users = targets["user_id"].to_numpy()
    opens = np.ones(len(rows), dtype=bool)
    opens[1:] = (users[1:] != users[:-1]) | (skipped[1:] != skipped[:-1])
    offsets = np.append(np.flatnonzero(opens), len(rows))
    latest = offsets[1:] - 1
    ads = before.latest(rows[latest], most=seen[latest])
    return Readings(
        users=tokens_of(users[offsets[:-1]], number=user_tokens),
        ads=Ragged(ads[ads != NONE], np.concatenate([[0], np.cumsum(seen[latest])])),
        targets=Ragged(targets["column"].to_numpy(), offsets),
        seen=seen,
    )


def tokens_of(users: Sequence[str], *, number: int) -> Ints:
    """The users' tokens: a hash of the id, so that many users share one (Rajput et al. 2023, 3.2)."""
    return np.array([crc32(user.encode()) % number for user in users], dtype=np.int64)


def batch(of: Readings, part: Ints, whole: Ints) -> Batch:
    """Make a batch of some readings.

    Args:
        of: All readings.
        part: The readings of this batch; where there are none, one stands in and weighs nothing.
        whole: All readings of the optimizer step.
    """
    shown = part if len(part) else whole[:1]
    sizes = of.sizes[shown]
    targets = of.targets.latest(shown, most=sizes)
    seen = of.targets._replace(values=of.seen).latest(shown, most=sizes)
    weights = (targets != NONE) & bool(len(part))
    return Batch(
        users=torch.from_numpy(of.users[shown]),
        ads=torch.from_numpy(of.ads.latest(shown, most=of.lengths[shown])),
        seen=torch.from_numpy(np.maximum(seen, 0)),
        targets=torch.from_numpy(np.maximum(targets, 0)),
        weights=torch.from_numpy(weights.astype(np.float32)),
        total=int(of.sizes[whole].sum()),
    )
