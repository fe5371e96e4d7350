"""LEADRE on Amazon Beauty: item texts and S-IDs, EX -> IM -> Main, and lists over all items that a user did not have.

``python -m experiments.amazon_beauty_leadre data.root=PATH``         the valid targets
``python -m experiments.amazon_beauty_leadre data.root=PATH test``    the test targets too

The targets and the ranking are those of ``experiments.amazon_beauty_baselines``, whose learned baselines stand beside.
Settings are chosen on the valid targets, and the test targets are told only where that is asked for, once the choice
is made. Other arguments are Hydra overrides of the main job, such as ``quantizer=letter quantizer.path=PATH`` for the
codes that LETTER published; results are in the store, so a second call with ``test`` trains nothing anew.
"""

import dataclasses
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import polars as pl

from experiments.amazon_beauty_baselines import TEST, line, ranked
from leadre import command_line, tables
from leadre.artifacts import Store
from leadre.config import ConfigError, RunConfig
from leadre.job import quiet_libraries
from leadre.pipeline import index_ads, list_ads, prepare, train
from leadre.report.table import OURS
from leadre.settings import settings

SETTINGS = (
    "data=amazon_beauty",
    "alignment=none",
    "quantizer=medium",
    "prompts.reuse_every=null",
    "sft.tuning.support=trie",
    "decoding=trie",
    "decoding.num_ads=10",
)
"""A prompt a user, the loss on each item of its history, among the codes that lead to an item (docs/journal.md)."""
Role = Literal["valid", "test"]
VERSION = 2
"""Of `ask`."""


@settings
class Asked:
    """Whose targets are ranked."""

    role: Role


def main(arguments: Sequence[str]) -> None:
    """Print one line, as the baselines have."""
    run = configured([text for text in arguments if text != TEST])
    store = Store(Path(run.store.root))
    prepared = prepare(run, store, index_ads(run, store))
    model = train(run, store, prepared)
    told = {}
    for role in get_args(Role) if TEST in arguments else ("valid",):
        asked = store.make("asked", ask, Asked(role=role), prepared.world, prepared.pairs)
        decoding = dataclasses.replace(run.decoding, filters=str(asked.path / "filters"))
        lists = list_ads(decoding, store, model, prepared.catalog, asked, compute=run.compute)
        told[role] = ranked(prepared.world, tables.read(tables.LISTS, lists.path / "lists"), role)
    print(line(OURS, told, model))


def configured(overrides: Sequence[str]) -> RunConfig:
    """The main job's settings on Amazon Beauty.

    Raises:
        ConfigError: If an override is wrong, or filters are given: what a user had is left out, and nothing else.
    """
    given = [*SETTINGS, *overrides]
    command_line.check(given)
    run = command_line.configured(given)
    if run.decoding.filters:
        raise ConfigError(f"decoding.filters is {run.decoding.filters!r}, but the protocol leaves out what a user had")
    return run


def ask(config: Asked, world: Path, pairs: Path, *, out: Path) -> None:
    """Leave the prompts of all targets of a role as those to be tested, and as a filter what each user had before."""
    shutil.copy(pairs / f"main.{config.role}.parquet", out / "main.test.parquet")
    shutil.copy(pairs / "prompts.json", out)
    targets = tables.read(tables.SPLIT, world / "split.parquet").filter(pl.col("role") == config.role)
    behaviors = tables.read(tables.BEHAVIORS, world / "behaviors.parquet").filter(pl.col("domain") == "ad")
    had = behaviors.join(targets.select("user_id", until="time"), on="user_id").filter(pl.col("time") < pl.col("until"))
    (out / "filters").mkdir()
    seen = had.select("user_id", ad_id="item_id").unique(maintain_order=True)
    tables.write(tables.SEEN, seen, out / "filters" / "seen.parquet")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quiet_libraries()
    main(sys.argv[1:])
