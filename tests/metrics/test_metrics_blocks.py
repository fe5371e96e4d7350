import json

import numpy as np
import polars as pl
import pytest

from leadre import tables
from leadre.metrics import score as score_stage
from leadre.metrics.blocks import Catalog, Range, blocks, read_lists, read_values, source
from leadre.metrics.config import MetricsConfig

CONFIG = MetricsConfig(
    hr_ks=(1, 4),
    ndcg_ks=(4,),
    ltrr_ks=(2,),
    value_ks=(2,),
    diversity_k=4,
    confidence=0.95,
    bootstrap_samples=50,
    seed=0,
)
ADS = [f"ad_{i}" for i in range(12)]
FOLDERS = ("world", "catalog", "baselines", "ltr", "generations", "values")


def table(of, rows):
    return pl.DataFrame(rows, schema=of.schema, orient="row")


def write_world(root, users=60, seed=0):
    """Users by name, some without a test target or with one that is gone, and lists of some with gone ads."""
    draw = np.random.default_rng(seed)
    for name in (*FOLDERS, "generations/lists", "out"):
        (root / name).mkdir(parents=True)
    names = [f"user_{i:03d}" for i in range(users)]
    ads = [{"ad_id": ad, "first_category": ad[-1], "attributes": [], "description": ""} for ad in [*ADS, "gone"]]
    tables.write(tables.ADS, pl.DataFrame(ads, schema=tables.ADS.schema), root / "world/ads.parquet")
    sids = [(ad, [i, 0], "") for i, ad in enumerate(ADS[::-1])]
    tables.write(tables.SIDS, table(tables.SIDS, sids), root / "catalog/sids.parquet")
    every = [*ADS, "gone"]
    split = [(name, "train" if draw.random() < 0.1 else "test", draw.choice(every), 1) for name in names]
    tables.write(tables.SPLIT, table(tables.SPLIT, split), root / "world/split.parquet")

    def lists(share, length):
        chosen = [name for name in [*names, "stranger"] if draw.random() < share]
        return table(
            tables.LISTS,
            [
                (name, rank, str(ad), float(draw.random()))
                for name in chosen
                for rank, ad in enumerate(draw.choice(every, size=draw.integers(1, length + 1)), start=1)
            ],
        )

    tables.write(tables.LISTS, lists(0.9, 5), root / "generations/lists/part-0.parquet")
    tables.write(tables.LISTS, lists(1.0, 4), root / "baselines/popularity.parquet")
    tables.write(tables.LISTS, lists(1.0, 9), root / "world/oracle.parquet")
    labels = lists(0.5, 6).unique(["user_id", "ad_id"], maintain_order=True)
    tables.write(tables.LISTS, labels, root / "ltr/labels.parquet")
    values = labels.select("user_id", "ad_id", value="score").sample(fraction=0.5, seed=1).sort("user_id", "ad_id")
    tables.write(tables.VALUES, values, root / "values/values.parquet")
    return root


@pytest.fixture
def root(tmp_path):
    return write_world(tmp_path)


def files_of_scores(root):
    score_stage.score(CONFIG, *(root / name for name in FOLDERS), out=root / "out")
    per_user = pl.read_parquet(root / "out/per_user.parquet")
    return (root / "out/scores.json").read_text(), per_user.sort("system", "user_id", maintain_order=True)


def numbers(value):
    """A JSON text, with rounding forgiven."""

    def leaves(item):
        if isinstance(item, dict):
            return {key: leaves(inner) for key, inner in item.items()}
        if isinstance(item, list):
            return [leaves(inner) for inner in item]
        return None if item is None else pytest.approx(item, rel=1e-12, abs=1e-12)

    return leaves(json.loads(value))


@pytest.mark.parametrize("size", [3, 20])
def test_the_size_of_the_blocks_changes_nothing(root, monkeypatch, size):
    whole, of_users = files_of_scores(root)
    monkeypatch.setattr(score_stage, "USERS_AT_ONCE", size)
    in_blocks, of_block_users = files_of_scores(root)
    assert numbers(in_blocks) == numbers(whole)
    assert of_block_users.equals(of_users)


def test_the_order_of_rows_and_their_files_change_nothing(root, monkeypatch):
    monkeypatch.setattr(score_stage, "USERS_AT_ONCE", 9)
    before = files_of_scores(root)[0]
    path = root / "generations/lists/part-0.parquet"
    mixed = pl.read_parquet(path).sample(fraction=1.0, shuffle=True, seed=3)
    for number, part in enumerate(mixed.iter_slices(17)):
        tables.write(tables.LISTS, part, path.with_name(f"part-{number}.parquet"))
    for name in ("baselines/popularity", "world/split", "ltr/labels", "world/oracle"):
        frame = pl.read_parquet(root / f"{name}.parquet")
        frame.sample(fraction=1.0, shuffle=True, seed=4).write_parquet(root / f"{name}.parquet", row_group_size=11)
    assert numbers(files_of_scores(root)[0]) == numbers(before)


def test_blocks_are_ranges_that_have_every_user_once(root):
    catalog = Catalog(pl.Series(ADS))
    found = list(blocks(root / "world/split.parquet", catalog, size=8))
    assert len(found) > 4
    assert [block.range.first for block in found] == [None, *(block.range.end for block in found[:-1])]
    assert found[-1].range.end is None
    split = pl.read_parquet(root / "world/split.parquet")
    tested = split.filter((pl.col("role") == "test") & pl.col("ad_id").is_in(ADS)).sort("user_id")
    assert pl.concat([block.users["user_id"] for block in found]).to_list() == tested["user_id"].to_list()
    targets = np.concatenate([block.targets[:, 0] for block in found])
    assert [ADS[row] for row in targets] == tested["ad_id"].to_list()
    left_out = sum(sum(block.excluded.values()) for block in found)
    assert left_out == len(split) - len(tested)


@pytest.fixture
def small(tmp_path):
    """Three scored users, the lists and the values of whom are read below."""
    split = [("u1", "test", "a", 1), ("u2", "test", "b", 1), ("u3", "test", "b", 1)]
    tables.write(tables.SPLIT, table(tables.SPLIT, split), tmp_path / "split.parquet")
    catalog = Catalog(pl.Series(["b", "a"]))
    (block,) = blocks(tmp_path / "split.parquet", catalog, size=100)
    return tmp_path, catalog, block


def test_lists_by_hand(small):
    root, catalog, block = small
    rows = [("u2", 2, "b", 0.0), ("u9", 1, "a", 0.0), ("u1", 1, "gone", 0.0), ("u2", 1, "a", 0.0), ("u1", 2, "b", 0.0)]
    tables.write(tables.LISTS, table(tables.LISTS, rows), root / "lists.parquet")
    lists = read_lists(source(tables.LISTS, root / "lists.parquet"), block, catalog)
    assert lists.rows.tolist() == [[-1, 0], [1, 0], [-1, -1]]
    assert (lists.invalid, lists.other_users) == (1, 1)
    moved = read_lists(source(tables.LISTS, root / "lists.parquet"), block, catalog, drop_outside=True)
    assert moved.rows.tolist() == [[0, -1], [1, 0], [-1, -1]]
    assert moved.invalid == 0


def test_values_by_hand(small):
    root, catalog, block = small
    rows = [("u1", "gone", 9.0), ("u1", "a", 2.0), ("u3", "b", 3.0), ("u1", "b", 4.0), ("u9", "a", 5.0)]
    tables.write(tables.VALUES, table(tables.VALUES, rows), root / "values.parquet")
    ads, worth = read_values(source(tables.VALUES, root / "values.parquet"), "value", block, catalog)
    assert ads.tolist() == [[1, 0], [-1, -1], [0, -1]]
    assert worth.tolist() == [[2, 4], [0, 0], [3, 0]]


def test_only_files_about_the_users_are_read(small):
    root, *_ = small
    (root / "lists").mkdir()
    for name in ("a", "k", "x"):
        tables.write(tables.LISTS, table(tables.LISTS, [(name, 1, "a", 0.0)]), root / f"lists/{name}.parquet")
    lists = source(tables.LISTS, root / "lists")
    (root / "lists/k.parquet").unlink()
    assert lists.read(Range(None, "k"))["user_id"].to_list() == ["a"]
    assert lists.read(Range("l", None))["user_id"].to_list() == ["x"]
    with pytest.raises(FileNotFoundError):
        lists.read(Range("k", "l"))


def test_broken_tables_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(tables.TableError, match="empty is no lists table: the folder holds no"):
        source(tables.LISTS, tmp_path / "empty")
    path = tmp_path / "lists.parquet"
    pl.DataFrame({"user_id": ["u"]}).write_parquet(path)
    with pytest.raises(tables.TableError, match="column 'rank' is missing"):
        source(tables.LISTS, path)
    table(tables.LISTS, [(None, 1, "a", 0.0)]).write_parquet(path)
    with pytest.raises(tables.TableError, match="column 'user_id' has 1 nulls, may have none"):
        source(tables.LISTS, path)
    table(tables.LISTS, [("u", 1, None, 0.0)]).write_parquet(path)
    with pytest.raises(tables.TableError, match="column 'ad_id' has 1 nulls, may have none"):
        source(tables.LISTS, path).read(Range(None, None))
