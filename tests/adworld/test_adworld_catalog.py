import numpy as np
import pytest

from leadre.adworld import words
from leadre.adworld.auction import pools
from leadre.adworld.catalog import START, ads_frame, alive, draw_catalog


@pytest.fixture(scope="module")
def catalog(world_config):
    return draw_catalog(world_config(name="paper").ads, 90, 0)


def test_there_are_48_categories_in_8_super_groups_and_no_brand_is_in_two():
    assert (words.NUM_CATEGORIES, words.NUM_GROUPS) == (48, 8)
    assert len({name for _, name in words.CATEGORIES}) == 48
    assert all(words.CATEGORIES[c][0] == words.CATEGORIES[c % 8][0] for c in range(48))
    brands = [words.brand(c, b) for c in range(48) for b in range(words.MAX_BRANDS)]
    assert len(set(brands)) == 48 * 12


def test_spus_of_a_brand_have_different_names():
    assert len({words.spu(c, b, s) for c in range(48) for b in range(12) for s in range(8)}) == 48 * 12 * 8


def test_bids_say_nothing_about_vector_or_quality(catalog):
    hidden = np.column_stack([catalog.vector, catalog.quality])
    correlation = np.corrcoef(np.log(catalog.bid), hidden, rowvar=False)[0, 1:]
    # A category's vector and its bid are shared by 100 ads, so chance correlations are those of 48 draws.
    assert np.abs(correlation).max() < 4 / np.sqrt(48)
    centered = np.log(catalog.bid) - np.repeat(np.log(catalog.bid).reshape(48, 100).mean(axis=1), 100)
    assert np.abs(np.corrcoef(centered, hidden, rowvar=False)[0, 1:]).max() < 4 / np.sqrt(4800)


def test_other_bids_leave_vectors_quality_and_popularity_as_they_are(world_config, catalog):
    other = draw_catalog(world_config("ads.bid_spread=2.0", "ads.bid_category_spread=3.0", name="paper").ads, 90, 0)
    assert not np.array_equal(other.bid, catalog.bid)
    for name in ("vector", "quality", "weight", "category", "brand", "spu", "start_day"):
        np.testing.assert_array_equal(getattr(other, name), getattr(catalog, name))


def test_ads_of_a_category_are_nearer_to_each_other_than_to_others(catalog):
    unit = catalog.vector / np.linalg.norm(catalog.vector, axis=1, keepdims=True)
    cosine = unit[::10] @ unit[::10].T
    same = catalog.category[::10, None] == catalog.category[None, ::10]
    assert cosine[same].mean() > cosine[~same].mean() + 0.5


def test_the_text_is_free_of_hidden_variables(world_config):
    plain = world_config().ads
    other = world_config(
        "ads.quality_spread=3.0",
        "ads.bid_spread=3.0",
        "ads.bid_category_spread=3.0",
        "ads.ad_spread=3.0",
        "ads.brand_spread=3.0",
        "ads.exposure_exponent=2.0",
    ).ads
    first = ads_frame(draw_catalog(plain, 45, 0), plain, 45, 0)
    second = ads_frame(draw_catalog(other, 45, 0), other, 45, 0)
    assert first.equals(second)


def test_an_ad_reads_like_an_ad(world_config):
    config = world_config("ads.missing_share=0.0").ads
    row = ads_frame(draw_catalog(config, 45, 0), config, 45, 0).row(0, named=True)
    assert row["second_category"] in words.GROUPS[row["first_category"]]
    assert row["product_type"] == f"{row['first_category']} Products"
    brand, line = row["spu"].split()
    assert brand in row["name"]
    assert line in row["name"]
    assert row["attributes"][:2] == [f"brand_{brand}", f"series_{row['spu']}"]


def test_a_missing_share_of_one_leaves_no_attribute_and_no_spu(world_config):
    config = world_config("ads.missing_share=1.0").ads
    frame = ads_frame(draw_catalog(config, 45, 0), config, 45, 0)
    assert frame["spu"].null_count() == frame.height
    assert frame["attributes"].list.len().sum() == 0


def test_ads_come_and_go_and_about_as_many_live_at_any_time(catalog):
    living = [alive(catalog, day).sum() for day in (0, 30, 60, 89)]
    assert min(living) > 0.8 * max(living)
    assert (alive(catalog, 0) & ~alive(catalog, 89)).any()
    assert (~alive(catalog, 0) & alive(catalog, 89)).any()


def test_without_churn_no_ad_has_a_bound(world_config):
    config = world_config("ads.churn_per_day=0.0").ads
    frame = ads_frame(draw_catalog(config, 45, 0), config, 45, 0)
    assert frame["start_time"].null_count() == frame["end_time"].null_count() == frame.height


def test_life_spans_of_the_table_are_within_the_world(world_config, catalog):
    frame = ads_frame(catalog, world_config(name="paper").ads, 90, 0)
    assert frame["start_time"].drop_nulls().is_between(START, START + 90 * 86_400).all()
    assert (frame["end_time"].drop_nulls() < START + 90 * 86_400).all()


def test_a_world_in_which_no_ad_lives_is_refused(catalog):
    with pytest.raises(ValueError, match=r"no ad lives on day 3: lower data\.world\.ads\.churn_per_day or raise data"):
        pools(catalog._replace(end_day=np.full(4800, 2.0)), 3)
