"""Lists of a fixed sample of validation users: hits, the other retrieval strategy's labels, and what the ads are worth.

Relevance and value are told side by side, as alignment buys the one with the other.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from leadre.lm.rows import left_padded, prompts_of, read_rows
from leadre.metrics.ranking import hit_rate, ndcg, recall

BATCH = 32
"""Users whose lists are decoded, or whose ads are estimated, at a time."""

Ecpms = Callable[[pl.DataFrame, Sequence[str]], NDArray[np.float32]]
"""Users with user_id and time ``(T)``, and ads ``(N)``; out come the ECPMs ``(T, N)`` that the ranker estimates."""


class Sample(NamedTuple):
    """Some validation users.

    Attributes:
        prompts: Batches of like length: ids and mask ``(B, T)``, left-padded.
        users: ``user_id`` and ``time`` of their validation targets, in the order of the prompts.
        targets: ``(U, 1)`` catalog rows.
        labels: ``(U, G)`` catalog rows of the other strategy's ads, -1 fills up; users it learned from have none.
    """

    prompts: list[tuple[Tensor, Tensor]]
    users: pl.DataFrame
    targets: NDArray[np.int64]
    labels: NDArray[np.int64]


def sample(
    tokens: Path,
    users: pl.Series,
    split: pl.DataFrame,
    labels: pl.DataFrame,
    sids: pl.DataFrame,
    *,
    num_users: int,
    seed: int,
) -> Sample:
    """Draw validation users.

    Args:
        tokens: The tokens file of the validation pairs.
        users: Their user_id column; row n belongs to row n of ``tokens``.
        split: A SPLIT table: when each user's validation target was.
        labels: A LISTS table: the other retrieval strategy's ads at that time.
        sids: The catalog.
        num_users: The most that are drawn.
        seed: 0 is a seed.
    """
    rows = read_rows(tokens, num_rows=len(users))
    times = split.filter(pl.col("role") == "valid").select("user_id", "time")
    known = users.to_frame("user_id").with_row_index("row").join(times, on="user_id", maintain_order="left")
    drawn = known[np.random.default_rng(seed).permutation(len(known))[:num_users]]
    drawn = drawn[np.argsort(rows.lengths[drawn["row"].to_numpy()], kind="stable")]
    which = drawn["row"].to_numpy()
    texts = prompts_of(rows, which)
    return Sample(
        prompts=[left_padded(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)],
        users=drawn.select("user_id", "time"),
        targets=rows.targets[which].astype(np.int64)[:, None],
        labels=_label_rows(drawn, labels, sids),
    )


def measure(
    lists: NDArray[np.int64], chosen: Sample, ads: Sequence[str], ecpms: Ecpms, *, ks: Sequence[int]
) -> dict[str, float]:
    """HR@K, NDCG@K, LTRR@K (of the users with labels) and value@K of the users' lists.

    Value@K is the mean ECPM, as the frozen ranker estimates it, over the first K places; an empty place is worth 0.
    Our choice: in training the ranker stands for the world. It has never seen a list of this model, but it is not the
    truth: a model that has found its errors gains here and not in the world.

    Args:
        lists: ``(U, W)`` catalog rows, best first, -1 where there is no ad.
        chosen: The users.
        ads: The ads of the catalog, row by row.
        ecpms: The ranker.
        ks: The cuts, at most W.
    """
    worth = _worth(lists, chosen.users, ads, ecpms)
    has_labels = (chosen.labels >= 0).any(axis=1)
    figures = {}
    for k in ks:
        figures[f"hr@{k}"] = float(hit_rate(lists, chosen.targets, k=k).mean())
        figures[f"ndcg@{k}"] = float(ndcg(lists, chosen.targets, k=k).mean())
        if has_labels.any():
            figures[f"ltrr@{k}"] = float(recall(lists[has_labels], chosen.labels[has_labels], k=k).mean())
        figures[f"value@{k}"] = float(worth[:, :k].mean())
    return figures


def _worth(lists: NDArray[np.int64], users: pl.DataFrame, ads: Sequence[str], ecpms: Ecpms) -> NDArray[np.float64]:
    """The estimated ECPM of each place ``(U, W)``; only ads of some users' lists are estimated at a time."""
    worth = np.zeros(lists.shape)
    for start in range(0, len(lists), BATCH):
        rows = lists[start : start + BATCH]
        shown = np.unique(rows[rows >= 0])
        if not len(shown):
            continue
        found = ecpms(users[start : start + BATCH], [ads[row] for row in shown])
        places = np.searchsorted(shown, np.maximum(rows, shown[0]))
        worth[start : start + BATCH] = np.where(rows >= 0, np.take_along_axis(found, places, axis=1), 0.0)
    return worth


def _label_rows(users: pl.DataFrame, labels: pl.DataFrame, sids: pl.DataFrame) -> NDArray[np.int64]:
    """The catalog rows of each user's labels ``(U, G)``, -1 fills up."""
    rows = sids.select("ad_id").with_row_index("leaf")
    lists = labels.join(rows, on="ad_id").group_by("user_id").agg(pl.col("leaf").cast(pl.Int64).sort_by("rank"))
    of_users = users.select("user_id").join(lists, on="user_id", how="left", maintain_order="left")["leaf"].to_list()
    result = np.full((len(users), max([1, *(len(leaves) for leaves in of_users if leaves)])), -1, dtype=np.int64)
    for row, leaves in enumerate(of_users):
        result[row, : len(leaves or [])] = leaves or []
    return result
