import polars as pl
import pytest

from leadre import tables
from leadre.report.samples import read_samples


@pytest.fixture
def folders(tmp_path):
    """Two users, u1 and u2; u1 clicked ad a1 at time 30 after two behaviors, and saw something later."""
    world, lists = tmp_path / "world", tmp_path / "lists"
    world.mkdir()
    (lists / "lists").mkdir(parents=True)
    ad = dict.fromkeys(tables.ADS.columns) | {"attributes": [], "description": "text"}
    ads = [ad | {"ad_id": "a1", "name": "Trail shoes"}, ad | {"ad_id": "a2"}]
    tables.write(tables.ADS, pl.DataFrame(ads, schema=tables.ADS.schema), world / "ads.parquet")
    contents = pl.DataFrame([("c1", "A marathon diary", None, None)], schema=tables.CONTENTS.schema, orient="row")
    tables.write(tables.CONTENTS, contents, world / "contents.parquet")
    behaviors = [
        ("u1", "c1", "content", "read article", 10),
        ("u1", "a2", "ad", "click", 20),
        ("u1", "a1", "ad", "click", 30),
        ("u1", "c1", "content", "search", 40),
        ("u2", "a2", "ad", "click", 50),
    ]
    frame = pl.DataFrame(behaviors, schema=tables.BEHAVIORS.schema, orient="row")
    tables.write(tables.BEHAVIORS, frame, world / "behaviors.parquet")
    split = [("u1", "train", "a2", 20), ("u1", "test", "a1", 30), ("u2", "test", "a2", 50)]
    tables.write(tables.SPLIT, pl.DataFrame(split, schema=tables.SPLIT.schema, orient="row"), world / "split.parquet")
    rows = [("u1", 1, "a2", -0.1), ("u1", 2, "a1", -0.2), ("u2", 1, "a1", -0.1)]
    part = lists / "lists" / "part-00000.parquet"
    tables.write(tables.LISTS, pl.DataFrame(rows, schema=tables.LISTS.schema, orient="row"), part)
    return world, lists


def test_a_sample_tells_by_names_what_came_before_and_where_the_clicked_ad_stands(folders):
    first, second = read_samples(*folders, num_users=2)
    assert first.behaviors == ["read article A marathon diary", "click a2"]
    assert (first.recommended, first.clicked, first.rank) == (["a2", "Trail shoes"], "Trail shoes", 2)
    assert (second.behaviors, second.clicked, second.rank) == ([], "a2", None)


@pytest.mark.parametrize(("num_users", "found"), [(0, 0), (1, 1), (9, 2)])
def test_there_are_at_most_as_many_samples_as_users(folders, num_users, found):
    assert len(read_samples(*folders, num_users=num_users)) == found
