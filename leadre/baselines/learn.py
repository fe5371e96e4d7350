"""The verb ``learn``: train one learned baseline and write its lists."""

from pathlib import Path
from typing import assert_never

from leadre import tables
from leadre.baselines.config import LearnedConfig, SasrecConfig, TigerConfig, TwoTowerConfig
from leadre.baselines.sasrec import learn_sasrec
from leadre.baselines.tiger import learn_tiger
from leadre.baselines.two_tower import learn_two_tower
from leadre.training.config import ComputeConfig, LoggerConfig

VERSION = 2


def learn(
    config: LearnedConfig, world: Path, catalog: Path, *, out: Path, compute: ComputeConfig, logger: LoggerConfig
) -> None:
    """Train a baseline on train targets; write ``lists.parquet`` (LISTS) for the users with a test target.

    It is validated on valid targets as it learns, see ``metrics.jsonl``; the last weights are kept, so how long it
    learns is a setting like any other. Test targets are read for their users and times alone.

    Raises:
        ValueError: If no train target is an ad of the catalog, or the training diverges.
    """
    match config:
        case TwoTowerConfig():
            lists = learn_two_tower(config, world, catalog, out=out, compute=compute, logger=logger)
        case SasrecConfig():
            lists = learn_sasrec(config, world, catalog, out=out, compute=compute, logger=logger)
        case TigerConfig():
            lists = learn_tiger(config, world, catalog, out=out, compute=compute, logger=logger)
        case _:
            assert_never(config)
    tables.write(tables.LISTS, lists, out / "lists.parquet")
