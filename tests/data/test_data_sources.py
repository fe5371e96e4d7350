import gzip
import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from experiments.amazon_beauty_popularity import popularity_scores, top_unseen
from leadre.data.config import AmazonBeautyData, CompleteJourneyData
from leadre.data.fingerprint import fingerprint
from leadre.data.gather import gather
from leadre.data.importers import amazon_beauty, completejourney
from leadre.data.split import histories

DATA = Path(os.environ.get("LEADRE_DATA", Path(__file__).parents[3] / "shared" / "data"))
has_journey = pytest.mark.skipif(
    not (DATA / "completejourney").is_dir(), reason="completejourney is not in the folder LEADRE_DATA"
)
has_beauty = pytest.mark.skipif(
    not (DATA / "amazon_beauty").is_dir(), reason="amazon_beauty is not in the folder LEADRE_DATA"
)

SMALL_JOURNEY = {
    "products": "100,7,GROCERY,National,SOUP,CANNED SOUP,12 OZ\n9e+05,8,GROCERY,National,SOUP,CANNED SOUP,\n"
    "300,9,MEAT,Private,,,\n",
    "demographics": "1,45-54,50-74K,Renter,Married,2,2 Adults No Kids,0\n",
    "campaigns": "13,1\n",
    "campaign_descriptions": "13,Type A,2017-03-01,2017-03-02\n",
    "coupons": "5000,9e+05,13\n5000,9e+05,13\n",
    "coupon_redemptions": "1,5000,13,2017-03-02\n",
}
MARCH_2_AT_LAST_SECOND_IN_NEW_YORK = 1488517199
PURCHASES = [  # household, product, sales value, retail, coupon and match discount, time
    (1, 100, 2.0, 0.5, 0, 0, 1488300000),
    (1, 100, 2.0, 0, 0, 0, 1488300001),
    (1, 900000, 3.0, 0, 0, 0, MARCH_2_AT_LAST_SECOND_IN_NEW_YORK),
    (1, 900000, 3.0, 0, 0, 0, MARCH_2_AT_LAST_SECOND_IN_NEW_YORK + 1),
    (2, 900000, 4.0, 0, 0.1, 0, MARCH_2_AT_LAST_SECOND_IN_NEW_YORK),
    (2, 300, 1.0, 0, 0, 0.1, 1488300000),
    (2, 555, 1.0, 1, 0, 0, 1488300000),
]


@pytest.fixture
def small_journey(tmp_path):
    lines = "".join(
        f"{household},1,2,{product},1.0,{value},{retail},{coupon},{match},1,{time},then\n"
        for household, product, value, retail, coupon, match, time in PURCHASES
    )
    for name, text in {**SMALL_JOURNEY, "transactions_sample": lines}.items():
        header = ",".join(completejourney.COLUMNS[name].split())
        (tmp_path / f"{name}.csv.gz").write_bytes(gzip.compress(f"{header}\n{text}".encode()))
    return tmp_path


def journey(root, **changed):
    given = {"domain": "broad", "ads_by": "product", "min_ad_events": 1, "language": "en", **changed}
    return completejourney.load(str(root), **given)


def events(found):
    return found.behaviors.sort("line").select("user_id", "item_id", "domain", "action").rows()


def test_purchases_at_any_discount_are_the_broad_ad_domain(small_journey):
    assert events(journey(small_journey)) == [
        ("1", "100", "ad", "buy promoted product"),
        ("1", "100", "content", "buy product"),
        ("1", "900000", "content", "buy product"),
        ("1", "900000", "content", "buy product"),
        ("2", "900000", "ad", "buy promoted product"),
        ("2", "300", "ad", "buy promoted product"),
    ]


def test_a_mailed_coupon_makes_the_targeted_ad_domain_to_the_last_second_of_its_last_day(small_journey):
    found = journey(small_journey, domain="targeted")
    assert [row for row in events(found) if row[2] == "ad"] == [("1", "900000", "ad", "redeem coupon")]
    assert found.impressions.select("user_id", "ad_id", "ecpm", "clicked").rows() == [("1", "900000", 3.0, True)]


def test_rare_ads_are_content(small_journey):
    assert not [row for row in events(journey(small_journey, min_ad_events=2)) if row[2] == "ad"]


def test_a_standard_product_unit_may_be_the_ad(small_journey):
    found = journey(small_journey, ads_by="spu", min_ad_events=2)
    assert found.ads.select("ad_id", "name", "attributes").rows() == [
        ("GROCERY|SOUP|CANNED SOUP|National", "CANNED SOUP National", ["brand_National"])
    ]


def test_an_undescribed_product_is_refused_and_counted(small_journey, tmp_path):
    found = journey(small_journey)
    assert found.refused.select("file", "line", "reason").rows() == [
        ("transactions_sample.csv.gz", 8, "unknown product")
    ]
    assert found.totals["transactions_sample.csv.gz"] == 7 == found.behaviors.height + found.refused.height


def test_features_and_profiles_come_from_the_sources_columns(small_journey):
    found = journey(small_journey)
    soup, other, meat = found.ads.drop("file", "line", "start_time", "end_time").rows()
    spu = "GROCERY|SOUP|CANNED SOUP|National"
    attributes = ["brand_National", "package size_12 OZ", "manufacturer_7"]
    assert soup == ("100", "CANNED SOUP National 12 OZ", "CANNED SOUP", "GROCERY", "SOUP", attributes, spu)
    assert other[5] == ["brand_National", "manufacturer_8"]
    assert meat[1:5] == ("Private", None, "MEAT", None)
    assert found.users.drop("file", "line").rows() == [("1", "45-54", None, None, None, None, "50-74K")]
    assert found.contents["item_id"].to_list() == ["100", "900000"]


def test_a_missing_source_is_told_with_where_it_comes_from(tmp_path):
    with pytest.raises(
        ValueError, match=r"lacks transactions_sample.csv.gz.*bradleyboehmke/completejourney.*data.root="
    ):
        journey(tmp_path)
    with pytest.raises(ValueError, match=r"lacks items.jsonl.gz and sequential.*Wenyueh/LLM-RecSys-ID.*data.root="):
        amazon_beauty.load(str(tmp_path), language="en")


@pytest.fixture
def small_beauty(tmp_path):
    items = [
        {"item_id": 1, "asin": "x", "title_words": "red polish", "attributes": ["OPI", "Makeup", "Nails", "Polish"]},
        {"item_id": 2, "asin": "y", "title_words": "", "attributes": ["Hair Care"]},
        {"item_id": 3, "asin": "z", "title_words": "mask", "attributes": ["Unknown", "Skin Care", "Face", "M", "Clay"]},
    ]
    text = "".join(json.dumps(item) + "\n" for item in items)
    (tmp_path / amazon_beauty.ITEMS).write_bytes(gzip.compress(text.encode()))
    (tmp_path / amazon_beauty.SEQUENCES).write_bytes(gzip.compress(b"1 1 2 3 1\n2 3 9 1 2\n3\n"))
    return tmp_path


def test_the_nth_item_of_a_line_happens_on_day_n(small_beauty):
    found = amazon_beauty.load(str(small_beauty), language="en")
    mine = found.behaviors.filter(user_id="1")
    assert mine["item_id"].to_list() == ["1", "2", "3", "1"]
    assert mine["time"].to_list() == [0, 86_400, 2 * 86_400, 3 * 86_400]


def test_the_brand_is_told_from_the_category_path(small_beauty):
    ads = amazon_beauty.load(str(small_beauty), language="en").ads
    columns = ("product_type", "first_category", "second_category", "attributes")
    assert ads.select(columns).rows() == [
        ("Polish", "Makeup", "Nails", ["brand_OPI"]),
        ("Hair Care", "Hair Care", None, []),
        ("Clay", "Skin Care", "Face", ["M"]),
    ]


def test_an_unknown_item_and_a_line_without_items_are_refused(small_beauty, tmp_path):
    config = AmazonBeautyData(kind="amazon_beauty", root=str(small_beauty), language="en", min_ads=3, max_bad_share=1.0)
    out = tmp_path / "out"
    out.mkdir()
    gather(config, out=out)
    told = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in told] == [
        (2, "unknown ad"),
        (3, "the line is no user followed by items"),
    ]
    split = pl.read_parquet(out / "split.parquet")
    assert split["role"].to_list() == ["train", "train", "valid", "test", "train", "valid", "test"]


def test_popularity_masks_what_was_seen_by_hand():
    rows = [("u", "a", 0), ("u", "b", 1), ("v", "b", 0), ("v", "a", 1), ("w", "b", 0), ("w", "c", 1)]
    scores = popularity_scores(pl.DataFrame(rows, schema=["user_id", "item_id", "time"], orient="row"))
    # b (3) before a (2) before c (1): u has a behind, so b is first; v likewise a; w is left a, then c at place two.
    assert scores["HR@5"] == 1.0
    assert scores["NDCG@5"] == pytest.approx((1 + 1 + 1 / 1.584962500721156) / 3)


def test_lists_are_filled_beyond_what_was_seen():
    assert top_unseen(np.array([0, 0, 1]), np.array([0, 1, 5]), num_users=2, width=2).tolist() == [[2, 3], [0, 1]]


@has_beauty
def test_popularity_on_amazon_beauty_is_the_published_row():
    found = amazon_beauty.load(str(DATA / "amazon_beauty"), language="en")
    scores = {name: round(value, 4) for name, value in popularity_scores(found.behaviors).items()}
    assert scores == {"HR@5": 0.0080, "NDCG@5": 0.0044, "HR@10": 0.0152, "NDCG@10": 0.0068}


@has_beauty
def test_amazon_beauty_has_the_counts_of_its_source(tmp_path):
    root = str(DATA / "amazon_beauty")
    gather(AmazonBeautyData(kind="amazon_beauty", root=root, language="en", min_ads=3, max_bad_share=0.0), out=tmp_path)
    world = json.loads((tmp_path / "world.json").read_text())
    assert (world["counts"]["users"], world["counts"]["ads"], world["counts"]["ad_behaviors"]) == (
        22_363,
        12_101,
        198_502,
    )
    assert world["users_with_test"] == 22_363
    assert pl.read_parquet(tmp_path / "ads.parquet")["description"].n_unique() == 12_101


@pytest.fixture(scope="module")
def real_journey():
    return completejourney.read(str(DATA / "completejourney"))


def promotions(source, domain):
    """Promoted purchases before undescribed products are refused."""
    purchases = source.purchases.filter(completejourney.promoted(source, domain=domain))
    return purchases.join(source.products.select("product_id", "spu"), on="product_id", how="left")


@has_journey
@pytest.mark.slow
@pytest.mark.parametrize(
    ("domain", "num_events", "num_households", "with_three"),
    [("targeted", 10_142, 1_262, 964), ("broad", 38_099, 2_279, 1_968)],
)
def test_the_ad_domain_has_the_counts_of_its_source(real_journey, domain, num_events, num_households, with_three):
    events = promotions(real_journey, domain)
    by_household = events.group_by("household_id").len()
    assert (events.height, by_household.height) == (num_events, num_households)
    assert by_household.filter(pl.col("len") >= 3).height == with_three
    if domain == "targeted":
        assert events["product_id"].n_unique() == 4_332
        assert events.join(real_journey.demographics, on="household_id", how="semi")["household_id"].n_unique() == 701


@has_journey
@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "num_ads", "num_households", "hit_rate"),
    [("product_id", 3_781, 1_832, 0.067), ("spu", 1_203, 1_960, 0.159)],
)
def test_popularity_on_the_last_promoted_purchase_is_the_reference(
    real_journey, key, num_ads, num_households, hit_rate
):
    events = promotions(real_journey, "broad").with_columns(pl.col("spu").fill_null("undescribed"))
    events = events.filter(pl.len().over(key) >= 3)
    events = events.filter(pl.len().over("household_id") >= 3).sort("household_id", "transaction_timestamp", "line")
    is_last = pl.col("household_id") != pl.col("household_id").shift(-1, fill_value="")
    last, before = events.filter(is_last), events.filter(~is_last)
    top = before.group_by(key).len().sort("len", key, descending=[True, False]).head(10)[key]
    assert (events[key].n_unique(), last.height) == (num_ads, num_households)
    assert round(last[key].is_in(top.implode()).mean(), 3) == hit_rate


@has_journey
@pytest.mark.slow
def test_the_world_of_completejourney_has_the_documented_counts_and_no_leak(tmp_path):
    config = CompleteJourneyData(
        kind="completejourney",
        root=str(DATA / "completejourney"),
        domain="broad",
        ads_by="product",
        min_ad_events=3,
        language="en",
        min_ads=3,
        max_bad_share=0.01,
    )
    gather(config, out=tmp_path)
    world = json.loads((tmp_path / "world.json").read_text())
    counts = world["counts"]
    assert (counts["ads"], counts["ad_behaviors"], world["users_with_test"]) == (3_781, 27_991, 1_830)
    assert world["quarantined"] == {"unknown product": 222}
    assert counts["ad_behaviors"] + counts["content_behaviors"] + 222 == 75_000
    assert len(fingerprint(config)) == 64
    split = pl.read_parquet(tmp_path / "split.parquet")
    history = histories(pl.read_parquet(tmp_path / "behaviors.parquet"), split, 90)
    assert (history["time"] < split["time"][history["target"]]).all()
