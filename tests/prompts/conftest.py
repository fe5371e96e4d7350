"""Tiny worlds, written by hand as the stages before the prompts would leave them."""

import json
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest

from leadre import tables
from leadre.prompts.config import PromptsConfig

DAY = 86_400
NOW = 1_700_000_000


class World(NamedTuple):
    """The two folders that `compose` reads, and the one it writes."""

    world: Path
    catalog: Path
    out: Path

    def pairs(self, name):
        return tables.read(tables.PAIRS, self.out / f"{name}.parquet")

    def about(self):
        return json.loads((self.out / "prompts.json").read_text())


@pytest.fixture
def config():
    def make(**changes):
        values = {
            "profile": True,
            "summary": True,
            "summary_by": ("category",),
            "summary_negatives": False,
            "ad_behaviors": True,
            "content_behaviors": True,
            "soft_tokens": 1,
            "arrangement": ("profile", "summary", "behaviors"),
            "summary_categories": 5,
            "window_days": 90,
            "max_tokens": 2096,
            "max_ad_behaviors": None,
            "max_content_behaviors": None,
            "times": "ago",
            "content_title": "title_spu",
            "reuse_every": 1,
            "reuse_seed": None,
            "template_seed": None,
            "profile_seed": None,
            "next_n": 1,
            "next_n_control": None,
            "content_control": None,
            "summary_control": None,
            "description_control": None,
        }
        return PromptsConfig(**(values | changes))

    return make


@pytest.fixture
def write(tmp_path):
    """Write a world of ``ads {ad_id: (category, description, spu or nothing)}``, ``sids {ad_id: codes}``, and so on."""

    def write(*, ads, sids, behaviors, split, contents=(), users=(), negatives=None, language="en"):
        folders = World(tmp_path / "world", tmp_path / "catalog", tmp_path / "pairs")
        for folder in folders:
            folder.mkdir()
        rows = [
            {"ad_id": ad_id, "first_category": category, "spu": spu, "attributes": [], "description": description}
            for ad_id, (category, description, spu) in ((ad_id, (*values, None)[:3]) for ad_id, values in ads.items())
        ]
        _write(tables.ADS, rows, folders.world)
        _write(
            tables.CONTENTS, [dict(zip(tables.CONTENTS.columns, row, strict=True)) for row in contents], folders.world
        )
        _write(tables.USERS, list(users), folders.world)
        seen = [dict(zip(tables.BEHAVIORS.columns, row, strict=True)) for row in behaviors]
        _write(tables.BEHAVIORS, sorted(seen, key=lambda row: (row["user_id"], row["time"])), folders.world)
        if negatives is not None:
            shown = [dict(zip(tables.NEGATIVES.columns, row, strict=True)) for row in negatives]
            _write(tables.NEGATIVES, sorted(shown, key=lambda row: (row["user_id"], row["time"])), folders.world)
        _write(tables.SPLIT, [dict(zip(tables.SPLIT.columns, row, strict=True)) for row in split], folders.world)
        (folders.world / "world.json").write_text(json.dumps({"name": "tiny", "language": language}))
        named = [
            {
                "ad_id": ad_id,
                "sid": list(sid),
                "name": " ".join(f"<{level}_{code}>" for level, code in zip("abcdefgh", sid, strict=False)),
            }
            for ad_id, sid in sorted(sids.items(), key=lambda item: item[1])
        ]
        _write(tables.SIDS, named, folders.catalog)
        return folders

    return write


def _write(table, rows, folder):
    complete = [{name: row.get(name) for name in table.columns} for row in rows]
    tables.write(table, pl.DataFrame(complete, schema=table.schema), folder / f"{table.name}.parquet")
