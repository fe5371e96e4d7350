"""The verb index: the catalog's files from a world and codes."""

import json
import logging
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from pydantic import TypeAdapter, ValidationError

from leadre import tables
from leadre.catalog import trie as tries
from leadre.catalog.config import CatalogConfig
from leadre.catalog.index import index


@pytest.fixture
def folders(tmp_path):
    world, codes, out = (tmp_path / name for name in ("world", "codes", "out"))
    for folder in (world, codes, out):
        folder.mkdir()
    spans = {"a": (None, None), "b": (0, 101), "c": (50, 100), "d": (101, None)}
    ads = [
        {"ad_id": ad, "attributes": [], "start_time": start, "end_time": end, "description": ad}
        for ad, (start, end) in spans.items()
    ]
    tables.write(tables.ADS, pl.DataFrame(ads, schema=tables.ADS.schema), world / "ads.parquet")
    behaviors = [
        {"user_id": "u", "item_id": ad, "domain": "ad", "action": "click", "time": time}
        for ad, time in [("a", 60), ("c", 70), ("b", 100)]
    ]
    tables.write(tables.BEHAVIORS, pl.DataFrame(behaviors, schema=tables.BEHAVIORS.schema), world / "behaviors.parquet")
    split = [("u", "train", "a", 60), ("u", "valid", "c", 70), ("u", "test", "b", 100)]
    tables.write(tables.SPLIT, pl.DataFrame(split, schema=tables.SPLIT.schema, orient="row"), world / "split.parquet")
    rows = {"ad_id": ["a", "b", "c", "d"], "codes": [[4, 0], [1, 3], [4, 0], [0, 5]]}
    tables.write(tables.CODES, pl.DataFrame(rows, schema=tables.CODES.schema), codes / "codes.parquet")
    return world, codes, out


def config(include="all", max_extra_codes=4):
    return CatalogConfig(include=include, max_extra_codes=max_extra_codes)


def test_the_three_files_tell_of_the_same_catalog(folders):
    world, codes, out = folders
    index(config(), world, codes, out=out)
    sids = tables.read(tables.SIDS, out / "sids.parquet")
    assert sids["ad_id"].to_list() == ["d", "b", "a", "c"]
    assert sids["sid"].to_list() == [[0, 5, 0], [1, 3, 0], [4, 0, 0], [4, 0, 1]]
    assert sids["name"][3] == "<a_4> <b_0> <c_1>"
    trie = tries.load(out / "trie.safetensors")
    rebuilt = tries.build(torch.tensor(sids["sid"].to_list()))
    assert all(torch.equal(x, y) for x, y in zip(trie.codes, rebuilt.codes, strict=True))
    tokens = json.loads((out / "tokens.json").read_text())
    assert tokens["levels"] == [5, 6, 2]
    assert tokens["tokens"][0] == "<a_0>"
    assert tokens["tokens"][-1] == "<c_1>"
    assert len(tokens["tokens"]) == 13


def test_active_ads_are_those_whose_life_span_holds_the_last_behavior(folders, caplog):
    world, codes, out = folders
    with caplog.at_level(logging.INFO):
        index(config(include="active"), world, codes, out=out)
    assert tables.read(tables.SIDS, out / "sids.parquet")["ad_id"].to_list() == ["b", "a"]
    assert "2 of 4 ads are active at 100" in caplog.text
    assert "1 valid targets are ads outside of it" in caplog.text
    assert json.loads((out / "tokens.json").read_text())["levels"] == [5, 6, 2]


def test_the_same_input_gives_the_same_bytes(folders, tmp_path):
    world, codes, out = folders
    again = tmp_path / "again"
    again.mkdir()
    index(config(), world, codes, out=out)
    index(config(), world, codes, out=again)
    for name in ("sids.parquet", "trie.safetensors", "tokens.json"):
        assert (out / name).read_bytes() == (again / name).read_bytes()


def test_no_active_ad_is_refused(folders):
    world, codes, out = folders
    ads = tables.read(tables.ADS, world / "ads.parquet").with_columns(end_time=pl.lit(1, pl.Int64()))
    tables.write(tables.ADS, ads, world / "ads.parquet")
    with pytest.raises(ValueError, match="include is 'active', but no ad's life span"):
        index(config(include="active"), world, codes, out=out)


def test_ads_without_codes_are_refused(folders):
    world, codes, out = folders
    rows = tables.read(tables.CODES, codes / "codes.parquet")
    tables.write(tables.CODES, rows.head(3), codes / "codes.parquet")
    with pytest.raises(ValueError, match=r"1 ads without codes .one is 'd'."):
        index(config(), world, codes, out=out)


def test_codes_of_no_ad_are_refused(folders):
    world, codes, out = folders
    ads = tables.read(tables.ADS, world / "ads.parquet")
    tables.write(tables.ADS, ads.head(2), world / "ads.parquet")
    with pytest.raises(ValueError, match=r"2 codes of no ad .one is 'c'."):
        index(config(), world, codes, out=out)


def test_a_group_above_the_limit_stops_indexing(folders):
    world, codes, out = folders
    with pytest.raises(ValueError, match="2 ads share the codes <a_4> <b_0>"):
        index(config(max_extra_codes=1), world, codes, out=out)


def test_the_shipped_configuration_is_valid():
    values = yaml.safe_load(Path("conf/catalog/default.yaml").read_text(encoding="utf-8"))
    assert TypeAdapter(CatalogConfig).validate_json(json.dumps(values)).include == "all"
    active = yaml.safe_load(Path("conf/catalog/active.yaml").read_text(encoding="utf-8"))
    assert active.pop("defaults") == ["default", "_self_"]
    assert TypeAdapter(CatalogConfig).validate_json(json.dumps(values | active)).include == "active"


def test_unknown_choices_are_refused():
    with pytest.raises(ValidationError, match="include"):
        config(include="some")
    with pytest.raises(ValidationError, match="max_extra_codes"):
        config(max_extra_codes=0)
