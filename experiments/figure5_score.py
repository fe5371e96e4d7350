"""The stage of Figure 5 that compares the lists of shortened sequences with those of whole ones (LEADRE 5.2.5)."""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
from pydantic import Field

from experiments.figure5_shorten import FULL
from leadre import tables
from leadre.metrics import ranking, similarity
from leadre.metrics.ranking import NO_AD, Rows, Scores
from leadre.settings import settings

VERSION = 1


@settings
class CompareConfig:
    """Where lists are cut.

    Attributes:
        hr_ks: K of HR@K.
        ndcg_ks: K of NDCG@K.
        k: Where lists are cut that are compared with one another.
        rbo_p: How much each place counts of the one before it.
    """

    hr_ks: tuple[Annotated[int, Field(ge=1)], ...]
    ndcg_ks: tuple[Annotated[int, Field(ge=1)], ...]
    k: Annotated[int, Field(ge=1)]
    rbo_p: Annotated[float, Field(gt=0, lt=1)]


def compare(
    config: CompareConfig, world: Path, catalog: Path, shortened: Path, generations: Path, *, out: Path
) -> None:
    """Write ``scores.json`` and ``per_user.parquet`` in the form of `leadre.metrics.score.score`, a system a cut.

    ``per_user.parquet`` has Dice@K and RBO@K of each list and the one of the same user's whole sequence, and how many
    ``ads`` and ``contents`` that sequence has.

    Raises:
        TableError: If a table is not as declared.
    """
    sids = tables.read(tables.SIDS, catalog / "sids.parquet")
    ads = sids.select("ad_id").with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    asked = pl.read_parquet(shortened / "shortened.parquet")
    targets = tables.read(tables.SPLIT, world / "split.parquet").filter(pl.col("role") == "test")
    listed = targets.join(ads, on="ad_id").select("user_id", "row")
    prompts = asked.select(pl.col("prompt").unique().sort()).with_row_index("place")
    lists = _rows(tables.read(tables.LISTS, generations / "lists"), prompts, ads)
    asked = asked.join(prompts, on="prompt").join(listed, on="user_id").sort("user_id")
    parts = {name: asked.filter(pl.col("system") == name) for name in asked["system"].unique().sort()}
    rows = {name: lists[part["place"].to_numpy()] for name, part in parts.items()}
    truths = parts[FULL]["row"].to_numpy()[:, None]
    measured = {name: _per_user(config, found, rows[FULL], truths) for name, found in rows.items()}
    result = {
        "users": len(truths),
        "excluded": {
            "not_drawn": listed.height - len(truths),
            "target_outside_catalog": targets.height - listed.height,
        },
        "ads": ads.height,
        "chance": {f"HR@{k}": min(1.0, k / ads.height) for k in config.hr_ks},
        "systems": {
            name: {score: float(of.mean()) for score, of in values.items()} for name, values in measured.items()
        },
    }
    (out / "scores.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    alike = (f"Dice@{config.k}", f"RBO@{config.k}")
    by_user = pl.concat(
        part.select(
            "user_id",
            "system",
            pl.Series("rank", ranking.rank_of(rows[name], truths), dtype=pl.Int32).replace(0, None),
            *(pl.Series(score, measured[name][score]) for score in alike),
            "ads",
            "contents",
        )
        for name, part in parts.items()
    )
    by_user.write_parquet(out / "per_user.parquet")


def _per_user(config: CompareConfig, lists: Rows, whole: Rows, truths: Rows) -> dict[str, Scores]:
    """Each score's ``(N,)`` numbers."""
    return (
        {f"HR@{k}": ranking.hit_rate(lists, truths, k=k) for k in config.hr_ks}
        | {f"NDCG@{k}": ranking.ndcg(lists, truths, k=k) for k in config.ndcg_ks}
        | {f"Dice@{config.k}": similarity.dice(lists, whole, k=config.k)}
        | {f"RBO@{config.k}": similarity.rbo(lists, whole, k=config.k, p=config.rbo_p)}
    )


def _rows(lists: pl.DataFrame, prompts: pl.DataFrame, ads: pl.DataFrame) -> Rows:
    """The lists of all prompts as ``(P, W)`` catalog rows by rank, -1 where there is no ad."""
    told = lists.join(prompts, left_on="user_id", right_on="prompt").join(ads, on="ad_id")
    ranks = told["rank"].to_numpy()
    rows = np.full((prompts.height, int(ranks.max(initial=1))), NO_AD, dtype=np.int64)
    rows[told["place"].to_numpy(), ranks - 1] = told["row"].to_numpy()
    return rows
