import json

import polars as pl
import pytest
from rich.console import Console

from leadre import tables
from leadre.report.generation import Listing, figures_of, read_lists, show_generation

GENERATION = {
    "users": 12345,
    "users_per_second": 67.89,
    "invalid_rate": 0.0,
    "duplicate_rate": 0.0,
    "users_without_list": 3,
}


@pytest.fixture
def folders(tmp_path):
    """Two parts of lists; of the first part's four users the last one did nothing."""
    world, audience, lists = (tmp_path / name for name in ("world", "audience", "generations/lists"))
    for folder in (world, audience, lists):
        folder.mkdir(parents=True)
    ads = [{"ad_id": "A", "name": "Tea", "description": "x"}, {"ad_id": "B", "description": "x"}]
    _write(tables.ADS, [ad | {"attributes": []} for ad in ads], world)
    _write(tables.CONTENTS, [{"item_id": "c", "title": "a review"}], world)
    behaviors = [("u0", "c", "content", "read", time) for time in range(9)]
    behaviors += [("u0", "B", "ad", "click", 9), ("u0", "A", "ad", "click", 10), ("u2", "A", "ad", "click", 1)]
    _write(tables.BEHAVIORS, [dict(zip(tables.BEHAVIORS.columns, row, strict=True)) for row in behaviors], world)
    (audience / "prompts.json").write_text(json.dumps({"as_of": 10}))
    for part, users in enumerate((["u0", "u1", "u2", "u3"], ["v"])):
        rows = [(user, rank, ad, -rank / 2) for user in users for rank, ad in enumerate("BA", start=1)]
        frame = pl.DataFrame(rows, schema=tables.LISTS.schema, orient="row")
        tables.write(tables.LISTS, frame, lists / f"part-{part:05d}.parquet")
    return world, audience, lists.parent


def _write(table, rows, folder):
    complete = [{name: row.get(name) for name in table.columns} for row in rows]
    tables.write(table, pl.DataFrame(complete, schema=table.schema), folder / f"{table.name}.parquet")


def test_sample_users_are_evenly_spaced_and_told_by_names_as_of_the_time_of_the_lists(folders):
    first, second = read_lists(*folders, num_users=2, num_ads=5)
    assert first == Listing("u0", ["read a review"] * 5 + ["click B"], [("B", -0.5), ("Tea", -1.0)])
    assert second == Listing("u2", ["click Tea"], [("B", -0.5), ("Tea", -1.0)])


def test_of_prompts_that_were_given_no_behavior_and_no_name_is_known(folders, capsys):
    first, second = read_lists(None, *folders[1:], num_users=2, num_ads=5)
    assert first == Listing("u0", None, [("B", -0.5), ("A", -1.0)])
    show_generation(GENERATION, [first, second], reused=False, left_out=None, console=Console(width=80))
    assert "User u0\n  1. B  -0.500\n  2. A  -1.000\nUser u2\n" in capsys.readouterr().out


@pytest.mark.parametrize(("users", "ads", "shape"), [(0, 5, []), (9, 1, [1, 1, 1, 1]), (3, 2, [2, 2, 2])])
def test_no_more_users_and_ads_are_shown_than_asked_for(folders, users, ads, shape):
    assert [len(listing.ads) for listing in read_lists(*folders, num_users=users, num_ads=ads)] == shape


def test_the_console_shows_users_figures_and_brackets_as_they_are(capsys):
    listings = [Listing("[u]", ["click [red]Tea"], [("A", -0.25)]), Listing("v", [], [])]
    show_generation(GENERATION, listings, reused=False, left_out=54, console=Console(width=80))
    text = capsys.readouterr().out
    assert "User [u]: click [red]Tea\n  1. A  -0.250\nUser v: no behavior\n" in text
    assert all(number in text for number in ("12,345", "67.9", "0%", " 3 ", " 54 "))
    assert "–" not in text


@pytest.mark.parametrize(("changes", "reused", "left_out"), [({"users_per_second": None}, False, 1), ({}, True, 1)])
def test_no_pace_of_this_run_is_a_dash(changes, reused, left_out, capsys):
    show_generation(GENERATION | changes, [], reused=reused, left_out=left_out, console=Console(width=80))
    text = capsys.readouterr().out
    assert text.count("–") == 1
    assert "67.9" not in text


def test_users_left_out_by_who_knows_are_a_dash(capsys):
    show_generation(GENERATION, [], reused=False, left_out=None, console=Console(width=80))
    assert capsys.readouterr().out.count("–") == 1


def test_the_figures_of_a_run_are_users_pace_and_rates():
    rates = {"Invalid": 0.0, "Duplicate": 0.0}
    assert figures_of(GENERATION, reused=False) == {"users": 12345, "users/s": 67.89, **rates}
    assert figures_of(GENERATION, reused=True) == {"users": 12345, "users/s": None, **rates}
