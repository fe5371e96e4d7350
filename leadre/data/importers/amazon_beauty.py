"""Amazon Beauty 5-core (McAuley, 2014) as the generative-retrieval papers split it: users' items in order, no times."""

from pathlib import Path

import polars as pl

from leadre import tables
from leadre.data import check, files, quarantine
from leadre.data.check import Found
from leadre.data.split import DAY

ITEMS = "items.jsonl.gz"
SEQUENCES = "sequential_data.txt.gz"

_TEXT = tables.Column(pl.String(), nullable=True)
_ITEMS_TABLE = tables.Table(
    "items",
    {
        "item_id": tables.Column(pl.String()),
        "asin": _TEXT,
        "title_words": _TEXT,
        "attributes": tables.Column(pl.List(pl.String())),
    },
)
_DEPARTMENTS = ["Makeup", "Skin Care", "Hair Care", "Fragrance", "Bath & Body", "Tools & Accessories"]
_ACTIONS = {"en": "review product", "zh": "评论商品"}


def sources(root: str) -> list[Path]:
    """The files of the benchmark.

    Raises:
        ValueError: If one is missing.
    """
    paths = [Path(root) / ITEMS, Path(root) / SEQUENCES]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"data.root is {root!r}, but the folder lacks {' and '.join(missing)}. {SEQUENCES} is data/beauty/"
            "sequential_data.txt of GitHub Wenyueh/LLM-RecSys-ID, gzipped: one line a user, `user item item ...`; "
            f"{ITEMS} has one JSON object an item: item_id, asin, title_words, attributes (brand, then the category "
            "path), made from McAuley's Amazon product data of 2014. Name the folder with data.root=PATH"
        )
    return paths


def load(root: str, *, language: str) -> Found:
    """Read the benchmark: every item is an ad, and a user's n-th item (from 0) happens on day n after 1970 began.

    There are no profiles, contents or impressions. The last level of an item's category path is its product type, the
    first two are its categories; the attributes hold the brand, if known, and the levels between.
    """
    items_path, sequences_path = sources(root)
    items = files.read(items_path, _ITEMS_TABLE)
    behaviors, refused, total = _behaviors(sequences_path, _ACTIONS[language])
    return Found(
        ads=items.frame.select("file", "line", *_features()),
        users=check.empty(tables.USERS),
        contents=check.empty(tables.CONTENTS),
        behaviors=behaviors,
        impressions=check.empty(tables.IMPRESSIONS),
        refused=pl.concat([items.refused, refused]),
        totals={items_path.name: items.total, sequences_path.name: total},
    )


def _features() -> list[pl.Expr]:
    words = pl.col("attributes")
    # The brand stands before the path, or is left out: the path begins with a department.
    has_brand = ~words.list.first().is_in(_DEPARTMENTS)
    path = pl.when(has_brand).then(words.list.slice(1)).otherwise(words)
    brand = pl.when(has_brand & (words.list.first() != "Unknown")).then("brand_" + words.list.first())
    middle = path.list.slice(2).list.reverse().list.slice(1).list.reverse()
    return [
        pl.col("item_id").alias("ad_id"),
        pl.col("title_words").alias("name"),
        path.list.last().alias("product_type"),
        path.list.first().alias("first_category"),
        path.list.get(1, null_on_oob=True).alias("second_category"),
        pl.concat_list(brand, middle).list.drop_nulls().alias("attributes"),
        pl.lit(None, dtype=pl.String()).alias("spu"),
        pl.lit(None, dtype=pl.Int64()).alias("start_time"),
        pl.lit(None, dtype=pl.Int64()).alias("end_time"),
    ]


def _behaviors(path: Path, action: str) -> tuple[pl.DataFrame, pl.DataFrame, int]:
    """One row an item of a line; a line without a user and an item is refused."""
    lines = files.read_text(path)
    words = lines.frame.with_columns(pl.col("text").str.extract_all(r"\S+").alias("words"))
    good, short = quarantine.sift(words, {"the line is no user followed by items": pl.col("words").list.len() < 2})
    items = good.select("file", "line", pl.col("words").list.first().alias("user_id"), pl.col("words").list.slice(1))
    place = pl.int_ranges(0, pl.col("words").list.len())
    rows = items.with_columns(place.alias("place")).explode("words", "place")
    behaviors = rows.select(
        "file",
        "line",
        "user_id",
        pl.col("words").alias("item_id"),
        pl.lit("ad").alias("domain"),
        pl.lit(action).alias("action"),
        (pl.col("place") * DAY).alias("time"),
    )
    return behaviors, pl.concat([lines.refused, short]), lines.total
