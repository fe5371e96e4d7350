import numpy as np
import polars as pl
import pytest

from leadre import tables
from leadre.adworld.catalog import START
from leadre.adworld.contents import NUM_TOPICS, draw_habits
from leadre.adworld.simulate import simulate
from leadre.adworld.state import begin, next_day, ramp, tire
from leadre.adworld.streams import stream
from leadre.adworld.users import draw_users, users_frame


def test_the_same_seed_gives_the_same_world_and_another_seed_another(world_config, tiny_world):
    again, other = simulate(world_config(), 0), simulate(world_config(), 1)
    for name, frame in tiny_world._asdict().items():
        if name != "hidden":
            assert frame.equals(getattr(again, name)), name
    assert tiny_world.hidden.keys() == again.hidden.keys()
    for name, array in tiny_world.hidden.items():
        np.testing.assert_array_equal(array, again.hidden[name], err_msg=name)
    for name in ("ads", "users", "behaviors", "impressions", "oracle"):
        assert not getattr(tiny_world, name).equals(getattr(other, name)), name


def test_a_change_of_clicks_leaves_ads_users_and_content_as_they_are(world_config, tiny_world):
    other = simulate(world_config("clicks.intercept=-4.0"), 0)
    content = pl.col("domain") == "content"
    columns = ["user_id", "item_id", "action"]
    first = tiny_world.behaviors.filter(content).select(columns).sort(columns)
    assert first.equals(other.behaviors.filter(content).select(columns).sort(columns))
    assert tiny_world.ads.equals(other.ads)
    assert tiny_world.users.equals(other.users)


def test_streams_are_told_apart_by_name_and_day():
    draws = {float(stream(0, name, day).random()) for name in ("a", "b") for day in (0, 1)}
    assert len(draws) == 4


def test_every_table_is_as_declared(tiny_world, tmp_path):
    described = tiny_world.ads.with_columns(description=pl.lit(""))
    tables.write(tables.ADS, described.select(list(tables.ADS.columns)), tmp_path / "ads.parquet")
    for table, frame in (
        (tables.USERS, tiny_world.users),
        (tables.CONTENTS, tiny_world.contents),
        (tables.BEHAVIORS, tiny_world.behaviors),
        (tables.IMPRESSIONS, tiny_world.impressions),
        (tables.LISTS, tiny_world.oracle),
    ):
        tables.write(table, frame, tmp_path / f"{table.name}.parquet")


def test_times_of_a_user_are_distinct_and_within_the_world(tiny_world, world_config):
    assert not tiny_world.behaviors.select("user_id", "time").is_duplicated().any()
    assert tiny_world.behaviors["time"].is_between(START, START + world_config().days * 86_400 - 1).all()


def test_every_click_is_an_impression_and_every_conversion_follows_a_click(tiny_world):
    ads = tiny_world.behaviors.filter(pl.col("domain") == "ad").rename({"item_id": "ad_id"})
    clicks, bought = ads.filter(pl.col("action") == "click"), ads.filter(pl.col("action") == "conversion")
    shown = tiny_world.impressions.filter("clicked")
    keys = ["user_id", "ad_id", "time"]
    assert shown.select(keys).sort(keys).equals(clicks.select(keys).sort(keys))
    first = clicks.group_by("user_id", "ad_id").agg(clicked_at=pl.col("time").min())
    joined = bought.join(first, on=["user_id", "ad_id"], how="left")
    assert (joined["time"] > joined["clicked_at"]).all()
    assert not bought.is_empty()


def test_ads_are_shown_in_their_life_span_only(tiny_world):
    joined = tiny_world.impressions.join(tiny_world.ads, on="ad_id")
    assert (joined["time"] >= joined["start_time"].fill_null(0)).all()
    # A day's ads are those that live at its first second.
    assert (joined["time"] < joined["end_time"].fill_null(2**60) + 86_400).all()


def test_nobody_pays_more_than_his_ecpm_and_probabilities_are_probabilities(tiny_world):
    assert (tiny_world.truth["price"] <= tiny_world.impressions["ecpm"]).all()
    assert tiny_world.impressions["pctr"].is_between(0, 1).all()
    assert tiny_world.truth["click_probability"].is_between(0, 1).all()


def test_clicks_come_with_their_true_probability(tiny_world):
    probability, clicked = tiny_world.truth["click_probability"], tiny_world.impressions["clicked"]
    deviation = float(np.sqrt((probability * (1 - probability)).sum()))
    assert abs(clicked.sum() - probability.sum()) < 4 * deviation


def test_the_oracle_ranks_fifty_ads_for_users_with_two_ad_behaviors(tiny_world):
    counts = tiny_world.behaviors.filter(pl.col("domain") == "ad").group_by("user_id").len()
    asked = counts.filter(pl.col("len") >= 2)["user_id"]
    lists = tiny_world.oracle
    assert sorted(lists["user_id"].unique()) == sorted(asked)
    assert (lists.group_by("user_id").len()["len"] == 50).all()
    assert not lists.select("user_id", "ad_id").is_duplicated().any()
    falls = lists.select((pl.col("score").diff().over("user_id").fill_null(0) <= 0).all()).item()
    assert falls


def test_the_oracle_is_good_but_not_certain(tiny_world):
    last = tiny_world.behaviors.filter(pl.col("domain") == "ad").group_by("user_id", maintain_order=True).last()
    hits = tiny_world.oracle.filter(pl.col("rank") <= 8).join(
        last, left_on=["user_id", "ad_id"], right_on=["user_id", "item_id"], how="semi"
    )
    share = hits.height / tiny_world.oracle["user_id"].n_unique()
    assert 0.4 < share < 1.0


def test_rates_and_counts_are_those_of_a_display_ad_log(world_config):
    world = simulate(world_config("users.num_users=600", "ads.ads_per_category=12", "days=60"), 3)
    ads = world.behaviors.filter(pl.col("domain") == "ad")
    clicks = ads.filter(pl.col("action") == "click")
    assert 0.008 < clicks.height / world.impressions.height < 0.025
    assert 0.03 < 1 - clicks.height / ads.height < 0.08
    assert 15 < (world.behaviors.height - ads.height) / ads.height < 45


def test_a_profile_does_not_single_out_most_users(world_config):
    config = world_config(name="small").users
    frame = users_frame(draw_users(config, 16, 0), config, 0).drop("user_id")
    assert frame.is_unique().mean() < 0.3
    assert min(frame.null_count().row(0)) > 0


def test_an_intent_raises_no_ad_on_its_first_day_and_all_after_the_ramp(world_config):
    config = world_config("users.num_users=2")
    state = begin(draw_users(config.users, 16, 0), np.eye(48, 16, dtype=np.float32))
    wanting = state._replace(intent=np.array([5, -1]))
    assert ramp(wanting, 2.0).tolist() == [0.0, 0.0]
    assert ramp(wanting._replace(age=np.array([1, 1])), 2.0).tolist() == [0.5, 0.0]
    assert ramp(wanting._replace(age=np.array([9, 9])), 2.0).tolist() == [1.0, 0.0]


def test_intents_start_age_and_end(world_config):
    config = world_config("users.num_users=2", "intents.start_probability=0.0")
    users = draw_users(config.users, 16, 0)
    vectors = np.eye(48, 16, dtype=np.float32)
    state = begin(users, vectors)._replace(intent=np.array([5, -1]), days_left=np.array([2.0, 0.0], dtype=np.float32))
    second = next_day(state, users, vectors, config=config, seed=0, day=0)
    assert (second.intent.tolist(), second.age.tolist()) == ([5, -1], [1, 0])
    assert next_day(second, users, vectors, config=config, seed=0, day=1).intent.tolist() == [-1, -1]
    always = world_config("users.num_users=2", "intents.start_probability=1.0")
    assert (next_day(state, users, vectors, config=always, seed=0, day=0).intent >= 0).all()


def test_fatigue_counts_todays_ads_and_decays(world_config):
    config = world_config("users.num_users=2")
    state = begin(draw_users(config.users, 16, 0), np.eye(48, 16, dtype=np.float32))
    tired = tire(state, np.array([0, 0, 1]), np.array([3, 3, 4]), 0.5)
    assert (tired.fatigue[0, 3], tired.fatigue[1, 4], tired.fatigue.sum()) == (1.0, 0.5, 1.5)


def test_content_precedes_ads(world_config):
    """Content of intents alone, always telling; clicks of intents alone: no click without content about it before."""
    config = world_config(
        "contents.base_per_day=0.0",
        "contents.intent_per_day=12.0",
        "contents.signal=1.0",
        "clicks.intercept=-14.0",
        "clicks.intent=12.0",
        "conversions.intercept=-30.0",
    )
    world = simulate(config, 0)
    clicks = _category_of(world, "ad")
    assert clicks.height > 50
    first = _category_of(world, "content").group_by("user_id", "category").agg(read_at=pl.col("time").min())
    joined = clicks.join(first, on=["user_id", "category"], how="left")
    assert (joined["read_at"].fill_null(2**60) < joined["time"]).mean() > 0.97


@pytest.mark.parametrize(("signal", "low", "high"), [(0.0, -0.02, 0.02), (0.8, 0.1, 1.0)])
def test_content_tells_the_next_ad_with_a_signal_and_nothing_without(world_config, signal, low, high):
    """Share of recent commercial content in the clicked ad's category, less that with the clicks of random others."""
    world = simulate(world_config("users.num_users=500", f"contents.signal={signal}"), 0)
    clicks = _category_of(world, "ad").with_row_index("click")
    shuffled = clicks["category"].shuffle(seed=0)
    read = _category_of(world, "content").rename({"category": "read", "time": "read_at"})
    pairs = clicks.with_columns(other=shuffled).join(read, on="user_id")
    recent = pairs.filter(pl.col("read_at").is_between(pl.col("time") - 4 * 86_400, pl.col("time"), closed="left"))
    commercial = recent.filter(pl.col("read").is_in(world.ads["second_category"].unique().implode()))
    same = (commercial["read"] == commercial["category"]).mean()
    assert low < same - (commercial["read"] == commercial["other"]).mean() < high


def test_habits_are_probabilities_even_when_sparse(world_config):
    config = world_config("contents.topic_concentration=0.001")
    habits = draw_habits(draw_users(config.users, 16, 0), config.contents, 0)
    assert habits.shape == (config.users.num_users, NUM_TOPICS)
    assert np.isfinite(habits).all()
    np.testing.assert_array_equal(habits[:, -1], 1.0)


def _category_of(world, domain):
    """Columns user_id, time, category of the clicks, or of the content."""
    items = {
        "ad": world.ads.select(item_id="ad_id", category="second_category"),
        "content": world.contents.select("item_id", "category"),
    }[domain]
    chosen = world.behaviors.filter((pl.col("domain") == domain) & (pl.col("action") != "conversion"))
    return chosen.join(items, on="item_id").select("user_id", "time", "category")


def test_a_world_without_anybody_to_test_has_an_empty_oracle(world_config, tmp_path):
    world = simulate(world_config("days=1", "users.num_users=1"), 0)
    assert world.oracle.is_empty()
    tables.write(tables.LISTS, world.oracle, tmp_path / "oracle.parquet")


def test_a_world_whose_first_user_has_an_unknown_profile_field_is_made_like_any_other(world_config):
    users = world_config().users
    first = [users_frame(draw_users(users, 4, seed), users, seed).row(0) for seed in range(12)]
    assert any(None in fields for fields in first)
