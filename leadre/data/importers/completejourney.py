"""Complete Journey 2.0 (84.51°): a year of purchases at a grocer; purchases on promotion are the ad domain."""

from pathlib import Path
from typing import Literal, NamedTuple

import polars as pl

from leadre import tables
from leadre.data import files, quarantine
from leadre.data.ad_text import cleaned
from leadre.data.check import Found
from leadre.data.quarantine import FILE, LINE

COLUMNS = {
    "transactions_sample": (
        "household_id store_id basket_id product_id quantity sales_value retail_disc coupon_disc coupon_match_disc "
        "week transaction_timestamp transaction_time_utc"
    ),
    "products": "product_id manufacturer_id department brand product_category product_type package_size",
    "demographics": ("household_id age income home_ownership marital_status household_size household_comp kids_count"),
    "campaigns": "campaign_id household_id",
    "campaign_descriptions": "campaign_id campaign_type start_date end_date",
    "coupons": "coupon_upc product_id campaign_id",
    "coupon_redemptions": "household_id coupon_upc campaign_id redemption_date",
}
"""File, without ``.csv.gz`` -> its columns."""

_TYPES = {
    "transaction_timestamp": pl.Int64(),
    **dict.fromkeys(("sales_value", "retail_disc", "coupon_disc", "coupon_match_disc"), pl.Float64()),
}
_SPU = ("department", "product_category", "product_type", "brand")
_STORE_ZONE = "America/New_York"
"""The dates of campaigns and coupons are days of this zone, in which the source prints its times."""

_ACTIONS = {
    "en": {"bought": "buy product", "promoted": "buy promoted product", "redeemed": "redeem coupon"},
    "zh": {"bought": "购买商品", "promoted": "购买促销商品", "redeemed": "使用优惠券"},
}


class Journey(NamedTuple):
    """The source's tables, their ids in one spelling; ``products`` has ``spu``, ``purchases`` has ``date``.

    Attributes:
        refused: The quarantine table of lines that could not be read.
        totals: File -> its number of rows.
    """

    purchases: pl.DataFrame
    products: pl.DataFrame
    demographics: pl.DataFrame
    campaigns: pl.DataFrame
    campaign_descriptions: pl.DataFrame
    coupons: pl.DataFrame
    coupon_redemptions: pl.DataFrame
    refused: pl.DataFrame
    totals: dict[str, int]


def sources(root: str) -> list[Path]:
    """The seven files.

    Raises:
        ValueError: If one is missing.
    """
    paths = [Path(root) / f"{name}.csv.gz" for name in COLUMNS]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"data.root is {root!r}, but the folder lacks {', '.join(missing)}. The tables are those of GitHub "
            "bradleyboehmke/completejourney (CC0), written as gzipped CSV under their own names (docs/data.md tells "
            "the columns). Name the folder with data.root=PATH"
        )
    return paths


def load(
    root: str,
    *,
    domain: Literal["targeted", "broad"],
    ads_by: Literal["product", "spu"],
    min_ad_events: int,
    language: str,
) -> Found:
    """Read the source as an ad world.

    A purchase on promotion of an ad with at least ``min_ad_events`` such purchases is an ad behavior and a clicked
    impression whose ECPM is the sales value (our choice: revenue, no bid); any other is a content behavior. A purchase
    of a product that ``products`` does not describe is refused.
    """
    journey = read(root)
    on_promotion = promoted(journey, domain=domain)
    purchases = journey.purchases.with_columns(on_promotion).join(
        journey.products.select("product_id", "spu"), on="product_id", how="left", maintain_order="left"
    )
    known, unknown = quarantine.sift(purchases, {"unknown product": pl.col("spu").is_null()})
    ad_id = pl.col("product_id" if ads_by == "product" else "spu")
    is_ad = pl.col("promoted") & (pl.col("promoted").sum().over(ad_id) >= min_ad_events)
    known = known.with_columns(ad_id.alias("ad_id"), is_ad.alias("is_ad"), _is_redeemed(journey, known))
    return Found(
        ads=_ads(journey.products, known.filter("is_ad"), ads_by),
        users=_users(journey.demographics),
        contents=_contents(journey.products, known.filter(~pl.col("is_ad"))),
        behaviors=_behaviors(known, language),
        impressions=_impressions(known.filter("is_ad")),
        refused=pl.concat([journey.refused, unknown]),
        totals=journey.totals,
    )


def read(root: str) -> Journey:
    """Read the seven tables; ids in scientific notation (``9e+05``) are written out."""
    rows = {path.name.removesuffix(".csv.gz"): path for path in sources(root)}
    found = {name: files.read(path, _table(name)) for name, path in rows.items()}
    frames = {name: each.frame.with_columns(_plain_ids(each.frame)) for name, each in found.items()}
    # The store's day of a purchase is compared with the days of campaigns and coupons.
    moment = pl.from_epoch("transaction_timestamp").dt.replace_time_zone("UTC")
    date = moment.dt.convert_time_zone(_STORE_ZONE).dt.date().alias("date")
    spu = cleaned(pl.concat_str([pl.col(name).fill_null("") for name in _SPU], separator="|")).alias("spu")
    return Journey(
        purchases=frames.pop("transactions_sample").with_columns(date),
        products=frames.pop("products").with_columns(spu),
        **frames,
        refused=pl.concat([each.refused for each in found.values()]),
        totals={rows[name].name: each.total for name, each in found.items()},
    )


def promoted(journey: Journey, *, domain: Literal["targeted", "broad"]) -> pl.Series:
    """Whether each purchase belongs to the ad domain.

    ``broad``: any retail, coupon or match discount. ``targeted``: a coupon of a campaign that was mailed to the
    household covers the product, and the store's day lies in the campaign, its first and last day included.
    """
    purchases = journey.purchases
    if domain == "broad":
        discounts = pl.max_horizontal("retail_disc", "coupon_disc", "coupon_match_disc")
        return purchases.select((discounts > 0).alias("promoted")).to_series()
    start, end = pl.col("start_date").str.to_date(strict=False), pl.col("end_date").str.to_date(strict=False)
    mailed = journey.campaigns.join(journey.campaign_descriptions, on="campaign_id")
    covered = (
        purchases.select(LINE, "household_id", "product_id", "date")
        .join(mailed.select("campaign_id", "household_id", start, end), on="household_id")
        .filter(pl.col("date").is_between("start_date", "end_date"))
        .join(journey.coupons, on=["campaign_id", "product_id"], how="semi")
    )
    return purchases[LINE].is_in(covered[LINE].implode()).alias("promoted")


def _table(name: str) -> tables.Table:
    columns = {column: tables.Column(_TYPES.get(column, pl.String())) for column in COLUMNS[name].split()}
    return tables.Table(name, columns)


def _plain_ids(frame: pl.DataFrame) -> list[pl.Expr]:
    ids = [name for name in ("household_id", "product_id", "coupon_upc", "campaign_id") if name in frame.columns]
    return [pl.col(name).cast(pl.Float64, strict=False).cast(pl.Int64, strict=False).cast(pl.String) for name in ids]


def _is_redeemed(journey: Journey, purchases: pl.DataFrame) -> pl.Series:
    """Whether the household redeemed, on the very day, a coupon that covers the product."""
    day = pl.col("redemption_date").str.to_date(strict=False).alias("date")
    redemptions = journey.coupon_redemptions.select("household_id", "coupon_upc", "campaign_id", day)
    keys = ["household_id", "product_id", "date"]
    redeemed = redemptions.join(journey.coupons, on=["coupon_upc", "campaign_id"]).select(keys).unique()
    found = purchases.select(*keys).join(
        redeemed.with_columns(redeemed=pl.lit(value=True)), on=keys, how="left", maintain_order="left"
    )
    return found["redeemed"].fill_null(value=False)


def _ads(products: pl.DataFrame, purchases: pl.DataFrame, ads_by: str) -> pl.DataFrame:
    whole_product = ads_by == "product"
    key = "product_id" if whole_product else "spu"
    bought = products.filter(pl.col(key).is_in(purchases["ad_id"].implode())).unique(
        key, keep="first", maintain_order=True
    )
    name = ["product_type", "brand"] + (["package_size"] if whole_product else [])
    attributes = {"brand": "brand"}
    if whole_product:
        attributes |= {"package size": "package_size", "manufacturer": "manufacturer_id"}
    return bought.select(
        FILE,
        LINE,
        pl.col(key).alias("ad_id"),
        pl.concat_str(name, separator=" ", ignore_nulls=True).alias("name"),
        "product_type",
        pl.col("department").alias("first_category"),
        pl.col("product_category").alias("second_category"),
        pl.concat_list(pl.lit(f"{word}_") + pl.col(column) for word, column in attributes.items())
        .list.drop_nulls()
        .alias("attributes"),
        pl.col("spu"),
        pl.lit(None, dtype=pl.Int64()).alias("start_time"),
        pl.lit(None, dtype=pl.Int64()).alias("end_time"),
    )


def _users(demographics: pl.DataFrame) -> pl.DataFrame:
    unknown = [name for name in tables.USERS.columns if name not in {"user_id", "age", "consumption_level"}]
    users = demographics.select(
        FILE,
        LINE,
        pl.col("household_id").alias("user_id"),
        "age",
        pl.col("income").alias("consumption_level"),
        *(pl.lit(None, dtype=pl.String()).alias(name) for name in unknown),
    )
    return users.select(FILE, LINE, *tables.USERS.columns)


def _contents(products: pl.DataFrame, purchases: pl.DataFrame) -> pl.DataFrame:
    bought = products.join(purchases, on="product_id", how="semi", maintain_order="left")
    return bought.select(
        FILE,
        LINE,
        pl.col("product_id").alias("item_id"),
        pl.col("product_type").alias("title"),
        pl.col("product_category").alias("category"),
        "spu",
    )


def _behaviors(purchases: pl.DataFrame, language: str) -> pl.DataFrame:
    words = _ACTIONS[language]
    on_promotion = pl.when("redeemed").then(pl.lit(words["redeemed"])).otherwise(pl.lit(words["promoted"]))
    return purchases.select(
        FILE,
        LINE,
        pl.col("household_id").alias("user_id"),
        pl.when("is_ad").then("ad_id").otherwise("product_id").alias("item_id"),
        pl.when("is_ad").then(pl.lit("ad")).otherwise(pl.lit("content")).alias("domain"),
        pl.when("is_ad").then(on_promotion).otherwise(pl.lit(words["bought"])).alias("action"),
        pl.col("transaction_timestamp").alias("time"),
    )


def _impressions(purchases: pl.DataFrame) -> pl.DataFrame:
    return purchases.select(
        FILE,
        LINE,
        pl.col("household_id").alias("user_id"),
        "ad_id",
        pl.col("transaction_timestamp").alias("time"),
        pl.col("sales_value").alias("ecpm"),
        pl.lit(None, dtype=pl.Float64()).alias("pctr"),
        pl.lit(value=True).alias("clicked"),
    )
