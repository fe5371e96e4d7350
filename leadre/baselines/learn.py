"""The verb ``learn``: train one learned baseline and write its lists."""

from pathlib import Path
from typing import assert_never

import torch

from leadre import tables
from leadre.baselines.config import LearnedConfig, SasrecConfig, TigerConfig, TwoTowerConfig
from leadre.baselines.past import Known, read_known
from leadre.baselines.retriever import Learner, train_and_list
from leadre.baselines.sasrec import prepare_sasrec
from leadre.baselines.tiger import prepare_tiger
from leadre.baselines.two_tower import prepare_two_tower
from leadre.training.config import ComputeConfig, LoggerConfig

VERSION = 3


def learn(
    config: LearnedConfig, world: Path, catalog: Path, *, out: Path, compute: ComputeConfig, logger: LoggerConfig
) -> None:
    """Train a baseline on train targets; write ``lists.parquet`` (LISTS) for the users with a test target.

    It is validated on valid targets as it learns, see ``metrics.jsonl``; the last weights are kept, so how long it
    learns is a setting like any other. Test targets are read for their users and times alone.

    Raises:
        ValueError: If no train target is an ad of the catalog, or the training diverges.
    """
    learner = prepare(config, read_known(world, catalog), catalog)
    lists = train_and_list(config, learner, out=out, compute=compute, logger=logger)
    tables.write(tables.LISTS, lists, out / "lists.parquet")


def prepare(config: LearnedConfig, known: Known, catalog: Path) -> Learner:
    """The untrained network of a baseline, with its first weights, and what it is trained on."""
    torch.manual_seed(config.seed)
    match config:
        case TwoTowerConfig():
            return prepare_two_tower(config, known)
        case SasrecConfig():
            return prepare_sasrec(config, known)
        case TigerConfig():
            return prepare_tiger(config, known, catalog)
        case _:
            assert_never(config)
