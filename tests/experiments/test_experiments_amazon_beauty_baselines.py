import json
import math

import polars as pl
import pytest

from experiments.amazon_beauty_baselines import configured, on_valid, ranked
from leadre import tables
from leadre.artifacts import Result
from leadre.config import ConfigError


def _result(path):
    path.mkdir()
    return Result("stage", "key", path, 1.0, reused=False)


def test_scores_by_hand(tmp_path):
    """One first, one third, one sixth, one behind the cut, one missing."""
    world = _result(tmp_path / "world")
    split = [(f"u{n}", "test", f"a{n}", 1) for n in range(5)] + [("u3", "train", "a9", 0)]
    tables.write(tables.SPLIT, pl.DataFrame(split, tables.SPLIT.schema, orient="row"), world.path / "split.parquet")
    ranks = [
        ("u0", 1, "a0", 1.0),
        ("u1", 3, "a1", 0.5),
        ("u2", 6, "a2", 0.1),
        ("u3", 11, "a3", 0),
        ("u3", 1, "a9", 1.0),
    ]
    lists = pl.DataFrame(ranks, tables.LISTS.schema, orient="row")
    scores = ranked(world, lists, "test")
    assert scores == {
        "HR@5": 0.4,
        "NDCG@5": pytest.approx((1 + 1 / 2) / 5),
        "HR@10": 0.6,
        "NDCG@10": pytest.approx((1 + 1 / 2 + 1 / math.log2(7)) / 5),
    }


def test_the_last_validation_counts(tmp_path):
    learned = _result(tmp_path / "learned")
    rows = [{"step": step, "valid/hr@10": step / 10, "valid/ndcg@10": step / 20} for step in (1, 2)]
    (learned.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 3}]))
    assert on_valid(learned) == {"HR@10": 0.2, "NDCG@10": 0.1}


def test_the_protocol_is_the_published_one_unless_another_is_typed():
    sasrec = configured(["data.root=somewhere"]).baselines.learned["sasrec"]
    assert (sasrec.exclude_seen, sasrec.list_length, sasrec.valid_users) == (True, 10, 100_000)
    typed = configured(["data.root=somewhere", "baselines.learned.sasrec.exclude_seen=false"]).baselines.learned
    assert (typed["sasrec"].exclude_seen, typed["sasrec"].list_length) == (False, 10)


def test_a_baseline_that_is_never_validated_is_refused():
    with pytest.raises(ConfigError, match=r"learned.sasrec.validations is 0, but the valid targets are told here"):
        configured(["data.root=somewhere", "baselines.learned.sasrec.validations=0"])


def test_a_wrong_override_is_told():
    with pytest.raises(ConfigError, match="unknown key"):
        configured(["data.root=somewhere", "baselines.learned.sasrec.widht=3"])
