import polars as pl
import pytest

from experiments.amazon_beauty_leadre import Asked, ask, configured, main
from leadre import tables
from leadre.config import ConfigError


def test_all_that_a_user_had_before_the_target_is_left_out_and_nothing_of_later(small_run, tmp_path):
    world, pairs = small_run.folders["world"], small_run.folders["pairs"]
    split = tables.read(tables.SPLIT, world / "split.parquet")
    rows = tables.read(tables.BEHAVIORS, world / "behaviors.parquet").rows(named=True)
    for role in ("valid", "test"):
        (tmp_path / role).mkdir()
        ask(Asked(role=role), world, pairs, out=tmp_path / role)
        until = {row["user_id"]: row["time"] for row in split.filter(role=role).rows(named=True)}
        had = {
            (row["user_id"], row["item_id"])
            for row in rows
            if row["domain"] == "ad" and row["time"] < until.get(row["user_id"], -1)
        }
        seen = tables.read(tables.SEEN, tmp_path / role / "filters" / "seen.parquet")
        assert had
        assert set(seen.rows()) == had
        assert seen.is_unique().all()


def test_the_prompts_are_those_of_the_role(small_run, tmp_path):
    pairs = small_run.folders["pairs"]
    ask(Asked(role="valid"), small_run.folders["world"], pairs, out=tmp_path)
    found = pl.read_parquet(tmp_path / "main.test.parquet")
    assert found.equals(pl.read_parquet(pairs / "main.valid.parquet"))


def test_filters_of_ones_own_are_refused(tmp_path):
    pl.DataFrame(schema=tables.SEEN.schema).write_parquet(tmp_path / "seen.parquet")
    with pytest.raises(ConfigError, match=r"decoding.filters is .*, but the protocol leaves out what a user had"):
        configured(["data.root=somewhere", f"decoding.filters={tmp_path}"])


@pytest.mark.slow
def test_the_whole_command_ranks_items_that_a_user_did_not_have(tmp_path, capsys):
    """On a handful of made-up users, whose files are as the benchmark's."""
    import gzip
    import json

    items = [
        {
            "item_id": str(n),
            "asin": f"A{n}",
            "title_words": f"thing {n}",
            "attributes": ["Makeup", "Lips", f"kind {n % 3}"],
        }
        for n in range(1, 21)
    ]
    with gzip.open(tmp_path / "items.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(item) + "\n" for item in items))
    with gzip.open(tmp_path / "sequential_data.txt.gz", "wt") as file:
        file.write("".join(f"{u} " + " ".join(str((u + n) % 20 + 1) for n in range(6)) + "\n" for u in range(1, 31)))
    small = ["embedding=hashing", "quantizer=tiny", "lm.hidden_size=32", "lm.layers=1", "lm.intermediate_size=32"]
    stages = "sft.stages=[{explicit: 1},{implicit: 1},{main: 1}]"
    main([f"data.root={tmp_path}", f"store.root={tmp_path / 'store'}", "compute.threads=1", *small, stages, "test"])
    printed = capsys.readouterr().out.strip().splitlines()[-1]
    assert printed.startswith("LEADRE  valid HR@5 ")
    assert "  test HR@5 " in printed
    lists = pl.concat([pl.read_parquet(path) for path in (tmp_path / "store").glob("generations/*/lists/*.parquet")])
    had = {(str(u), str((u + n) % 20 + 1)) for u in range(1, 31) for n in range(4)}
    assert len(lists)
    assert not had & set(lists.select("user_id", "ad_id").rows())
