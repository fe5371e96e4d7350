"""The lines of Table 3: how many of an ad's nearest are of its category, by an encoder and by what it must beat."""

import json
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import polars as pl
from safetensors.numpy import load_file

from leadre import tables
from leadre.inspection import accuracy
from leadre.inspection.accuracy import Shares, Task
from leadre.inspection.neighbors import Rows, Vectors
from leadre.settings import settings

VERSION = 1
KS = (1, 10, 50, 100)
NUM_CATEGORIES, NUM_ADS = 48, 100
WIDTH = 64
"""Of random vectors."""
SYSTEM = "encoder"
"""What `scores.json` calls whatever is counted."""

PAPER = {
    "hunyuan": (98.03, 96.46, 86.61, 65.67),
    "e5_large_instruct": (97.21, 96.48, 87.42, 66.38),
    "bge_m3": (95.00, 91.07, 78.76, 59.64),
    "bert_chinese": (97.24, 92.65, 74.12, 50.20),
    "electra_chinese": (94.60, 85.98, 63.09, 43.62),
    "sentence_bert_l12": (95.40, 90.11, 70.15, 48.44),
    "sentence_bert_l6": (81.97, 72.65, 53.61, 37.97),
    "xlnet_chinese": (80.31, 63.32, 38.27, 26.14),
    "clip_32": (80.32, 67.91, 45.90, 29.87),
    "clip_16": (81.57, 67.40, 45.20, 30.33),
    "t5": (67.10, 51.22, 33.90, 23.89),
}
"""Table 3 of the paper, in percent, on Tencent's private ads: the order can be compared, the numbers cannot."""

Pool = Literal["sample", "catalog"]
Texts = Literal["all", "distinct"]
Kind = Literal["embedding", "exchanged", "random_texts", "random_ads", "at_most", "chance"]
Tasks = dict[tuple[Pool, Texts], Task]


@settings
class LineConfig:
    """What is counted.

    Attributes:
        kind: An encoder's nearest ads, or what they are held against: the first ads of a random order of the pool
            (``chance``), the most there is (``at_most``), the nearest by a random vector a text or an ad, and by an
            encoder whose texts have each other's vectors (``exchanged``): the same vectors and the same copies, and
            nothing of what a text says.
        category: Of which level the categories are.
        sample: The seed that draws the ads that are asked about.
        seed: Of random vectors and exchanges; None for all else.
    """

    kind: Kind
    category: Literal["second", "first"]
    sample: int
    seed: int | None


class Ads(NamedTuple):
    """The ads of a world, by ad_id.

    Attributes:
        rows: ``(N,)`` where each stands in the world's table, and in its embeddings.
        categories: Their categories' names; null for none.
        texts: ``(N,)`` number of each ad's text.
    """

    rows: Rows
    categories: pl.Series
    texts: Rows


def read_ads(world: Path, *, category: str) -> Ads:
    """The ads of a world, sorted by ad_id, so that ties go by it."""
    ads = tables.read(tables.ADS, world / "ads.parquet").with_row_index("row").sort("ad_id")
    texts = ads["description"].rank("dense").cast(pl.Int64).to_numpy() - 1
    return Ads(ads["row"].cast(pl.Int64).to_numpy(), ads[f"{category}_category"], texts)


def tasks(ads: Ads, *, seed: int) -> Tasks:
    """Both pools, over all ads and over one ad a text.

    Raises:
        ValueError: If no category has two ads.
    """
    numbers = ads.categories.rank("dense").cast(pl.Int64).fill_null(0).to_numpy() - 1
    first = np.sort(np.unique(ads.texts, return_index=True)[1])
    found: Tasks = {}
    for texts in get_args(Texts):
        rows = np.arange(len(numbers)) if texts == "all" else first
        generator = np.random.default_rng(seed)
        drawn = accuracy.sample(numbers[rows], categories=NUM_CATEGORIES, ads=NUM_ADS, generator=generator)
        queries = rows[drawn]
        if not len(queries):
            raise ValueError(f"{ads.categories.name}: no category has two ads, so nothing can be found; use the other")
        found |= {("sample", texts): Task(queries, queries, numbers), ("catalog", texts): Task(queries, rows, numbers)}
    return found


def column(pool: Pool, texts: Texts, k: int) -> str:
    """The name of a score.

    Example:
        >>> column("sample", "all", 10), column("catalog", "distinct", 1)
        ('Top10', 'Top1 distinct catalog')
    """
    return " ".join([f"Top{k}", *([texts] if texts != "all" else []), *([pool] if pool != "sample" else [])])


def columns(found: Tasks, pool: Pool, texts: Texts) -> tuple[str, ...]:
    """The scores for which the pool is large enough."""
    return tuple(column(pool, texts, k) for k in KS if k < len(found[pool, texts].pool))


def count(config: LineConfig, world: Path, embeddings: Path | None = None, *, out: Path) -> None:
    """Write ``scores.json`` and ``per_user.parquet``, as the stage ``scores`` writes them; a "user" is a text.

    What is drawn again for intervals are texts, each with all its ads that are asked about: ads of one text share
    their neighbors, so that a hundred of them say no more than one. The mean over texts is the mean over a category's
    ads, then over the categories.

    Args:
        config: What is counted.
        world: Reads ``ads.parquet``.
        embeddings: Reads ``vectors.safetensors``; for an encoder, and for the exchange of its texts.
        out: The folder of the result.
    """
    ads = read_ads(world, category=config.category)
    x = None if embeddings is None else load_file(embeddings / "vectors.safetensors")["x"][ads.rows]
    per_text = pl.DataFrame({"user_id": np.unique(ads.texts)})
    scores: dict[str, float | None] = {}
    for (pool, texts), task in tasks(ads, seed=config.sample).items():
        names = [column(pool, texts, k) for k in KS]
        values = shares(config, task, ads.texts, x)
        means = accuracy.macro(values, task)
        scores |= {name: None if np.isnan(mean) else float(mean) for name, mean in zip(names, means, strict=True)}
        units, of_units = by_text(values, task, ads.texts)
        table = {"user_id": units} | dict(zip(names, of_units.T, strict=True))
        per_text = per_text.join(pl.DataFrame(table), on="user_id", how="left")
    asked = per_text.filter(~pl.all_horizontal(pl.exclude("user_id").is_null()))
    told = {"users": asked.height, "systems": {SYSTEM: scores}}
    (out / "scores.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    asked.with_columns(pl.col("user_id").cast(pl.String), system=pl.lit(SYSTEM)).write_parquet(out / "per_user.parquet")


def shares(config: LineConfig, task: Task, texts: Rows, x: Vectors | None) -> Shares:
    """The share of each query's first K ads that have its category: ``(Q, len(KS))``, NaN beyond the pool.

    Args:
        config: What is counted.
        task: The queries and the pool.
        texts: ``(N,)`` number of each ad's text.
        x: ``(N, D)``; for an encoder, and for the exchange of its texts.

    Raises:
        ValueError: If vectors are needed and there are none.
    """
    if config.kind == "at_most":
        return accuracy.ceiling(task, KS)
    if config.kind == "chance":
        return accuracy.chance(task, KS)
    generator = np.random.default_rng(config.seed)
    if config.kind in {"random_texts", "random_ads"}:
        x = generator.standard_normal((len(texts), WIDTH)).astype(np.float32)
        x = x[texts] if config.kind == "random_texts" else x
    if x is None:
        raise ValueError(f"kind is {config.kind!r}, which needs an encoder's vectors: give embeddings")
    if config.kind == "exchanged":
        x = exchanged(x, texts, generator)
    return accuracy.accuracy(task, accuracy.found(task, x, most=KS[-1]), KS)


def exchanged(x: Vectors, texts: Rows, generator: np.random.Generator) -> Vectors:
    """Each text with the vector of another: ads of one text still share theirs.

    Args:
        x: ``(N, D)``, equal for equal texts.
        texts: ``(N,)`` number of each ad's text.
        generator: Draws which text has whose vector.
    """
    _, first, text = np.unique(texts, return_index=True, return_inverse=True)
    return np.asarray(x[generator.permutation(first)[text]])


def next_best(encoder: str, k: int) -> str:
    """Who follows an encoder in a column of the paper.

    Example:
        >>> next_best("hunyuan", 10), next_best("hunyuan", 50)
        ('bert_chinese', 'bge_m3')
    """
    own, place = PAPER[encoder], KS.index(k)
    return max((name for name in PAPER if PAPER[name][place] < own[place]), key=lambda name: PAPER[name][place])


def by_text(values: Shares, task: Task, texts: Rows) -> tuple[Rows, Shares]:
    """What each text adds to `accuracy.macro`: values whose mean over texts is that, and whose spread is its error.

    A text stands for its queries' distances from their category's mean, so that texts with many ads sway a mean no
    more than they do (the linear part of a ratio of sums), and what all ads share has no error.

    Args:
        values: ``(Q, V)``.
        task: The queries.
        texts: ``(N,)`` number of each ad's text.

    Returns:
        ``(T,)`` numbers of the texts that have queries, and ``(T, V)``.
    """
    category, queries = task.category[task.queries], texts[task.queries]
    _, stratum, sizes = np.unique(category, return_inverse=True, return_counts=True)
    units, unit = np.unique(queries, return_inverse=True)
    means = np.stack([np.bincount(stratum, weights=one) / sizes for one in values.T], axis=1)
    weights = len(units) / len(sizes) / sizes[stratum]
    rest = weights[:, None] * (values - means[stratum])
    sums = np.stack([np.bincount(unit, weights=one, minlength=len(units)) for one in rest.T], axis=1)
    added = np.round(means.mean(axis=0) + sums, 12)  # equal values stay equal, so that they are drawn together
    return units, np.asarray(added)


def paper_row(encoder: str) -> dict[str, float]:
    """The paper's numbers of an encoder, by column; empty where it has none.

    Example:
        >>> paper_row("t5")
        {'Top1': 0.671, 'Top10': 0.5122, 'Top50': 0.339, 'Top100': 0.2389}
    """
    return {
        column("sample", "all", k): round(share / 100, 4) for k, share in zip(KS, PAPER.get(encoder, ()), strict=False)
    }
