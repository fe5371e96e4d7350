import json
from pathlib import Path

import polars as pl
import pytest

from experiments.seeds import compare, main, systems_of
from experiments.study import of_users
from leadre.artifacts import Result


def _scores(folder: Path, ranks: dict[str, list[int | None]], hr: float) -> Result:
    folder.mkdir()
    rows = [
        {"user_id": f"u{i}", "system": system, "rank": rank} for system in ranks for i, rank in enumerate(ranks[system])
    ]
    pl.DataFrame(rows, schema={"user_id": pl.String, "system": pl.String, "rank": pl.Int32}).write_parquet(
        folder / "per_user.parquet"
    )
    (folder / "scores.json").write_text(json.dumps({"systems": {"LEADRE": {"HR@8": hr}}}))
    return Result("scores", folder.name, folder, 0.0, False)


@pytest.fixture
def results(tmp_path):
    """Two seeds, four users: LEADRE finds u0 in both, u1 in one; popularity finds u3."""
    popularity = [None, 9, None, 2]
    return [
        _scores(tmp_path / "one", {"LEADRE": [1, 8, None, None], "popularity": popularity}, 0.5),
        _scores(tmp_path / "two", {"LEADRE": [3, 9, None, None], "popularity": popularity}, 0.25),
    ]


def test_a_users_hits_are_the_share_of_the_seeds_that_hit(results):
    assert of_users(results, "LEADRE", "HR@8").tolist() == [1.0, 0.5, 0.0, 0.0]


def test_scores_are_means_over_the_seeds(results):
    assert systems_of(results) == {"LEADRE": {"HR@8": 0.375}}


def test_the_comparison_holds_the_mean_difference_inside_its_interval(results):
    found = compare(results, "popularity", 8)
    assert found["mean"] == pytest.approx(0.125)
    assert found["ratio"] == pytest.approx(1.5)
    assert found["low"] <= 0.125 <= found["high"]


def test_a_wrong_override_is_told_before_anything_runs():
    with pytest.raises(SystemExit, match=r"quantizer\.levels: Input should be greater than or equal to 1 \(got 0\)"):
        main(["seeds=0,1", "quantizer.levels=0"])
