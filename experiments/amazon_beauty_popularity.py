"""Check the evaluator: popularity on Amazon Beauty must give the row that the literature prints.

``python -m experiments.amazon_beauty_popularity data.root=PATH``

Popularity is counted over whole sequences, the user's earlier items are masked, and the full catalog is ranked. The
published row is HR@5 .0080, NDCG@5 .0044, HR@10 .0152, NDCG@10 .0068. Counting the test items too is a leak: it is the
row's protocol, kept here for the comparison alone; the popularity baseline of the main job does not.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from leadre.data.config import AmazonBeautyData
from leadre.data.importers import amazon_beauty
from leadre.metrics.ranking import hit_rate, ndcg

CONFIG = Path(__file__).parents[1] / "conf" / "data" / "amazon_beauty.yaml"
WIDTH = 10

Rows = NDArray[np.int64]


def main(overrides: Sequence[str]) -> None:
    """Print the four numbers."""
    given = OmegaConf.merge({"data": OmegaConf.load(CONFIG)}, OmegaConf.from_dotlist(list(overrides)))
    config = TypeAdapter(AmazonBeautyData).validate_json(json.dumps(OmegaConf.to_container(given.data)))
    found = amazon_beauty.load(config.root, language=config.language)
    for name, value in popularity_scores(found.behaviors).items():
        print(f"{name:<8}{value:.4f}")


def popularity_scores(behaviors: pl.DataFrame) -> Mapping[str, float]:
    """HR and NDCG at 5 and 10 of popularity on each user's last item.

    Args:
        behaviors: ``user_id``, ``item_id`` and ``time``; every row is an ad behavior.
    """
    counted = behaviors.group_by("item_id", maintain_order=True).len().sort("len", descending=True, maintain_order=True)
    rank = counted.select("item_id").with_row_index("rank")
    rows = behaviors.sort("user_id", "time").join(rank, on="item_id", maintain_order="left")
    rows = rows.with_columns(pl.col("user_id").rle_id().cast(pl.Int64).alias("user"), pl.col("rank").cast(pl.Int64))
    is_last = pl.col("user") != pl.col("user").shift(-1, fill_value=-1)
    truths = rows.filter(is_last)["rank"].to_numpy().reshape(-1, 1)
    seen = rows.filter(~is_last)
    lists = top_unseen(seen["user"].to_numpy(), seen["rank"].to_numpy(), num_users=len(truths), width=WIDTH)
    return {
        f"{name}@{k}": float(score(lists, truths, k=k).mean())
        for k in (5, 10)
        for name, score in (("HR", hit_rate), ("NDCG", ndcg))
    }


def top_unseen(user: Rows, item: Rows, *, num_users: int, width: int) -> Rows:
    """The first ``width`` items, numbered 0, 1, ... from the most popular, that each user has not seen.

    Args:
        user: ``(B,)`` user of each thing seen, 0..num_users-1.
        item: ``(B,)`` number of the item seen.
        num_users: U.
        width: How many items a list has; the catalog must hold that many unseen ones.

    Returns:
        ``(U, width)``.

    Example:
        >>> top_unseen(np.array([0, 0]), np.array([0, 2]), num_users=2, width=2).tolist()
        [[1, 3], [0, 1]]
    """
    # A list ends before width + (most things seen by a user): farther items need no look.
    reach = width + int(np.bincount(user, minlength=num_users).max(initial=0))
    is_seen = np.zeros((num_users, reach), dtype=bool)
    near = item < reach
    is_seen[user[near], item[near]] = True
    return np.argsort(is_seen, axis=1, kind="stable")[:, :width]


if __name__ == "__main__":
    main(sys.argv[1:])
