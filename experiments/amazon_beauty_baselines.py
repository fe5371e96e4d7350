"""Check the learned baselines against their published rows on Amazon Beauty: full ranking of each user's last item.

``python -m experiments.amazon_beauty_baselines data.root=PATH baselines=sasrec``         the valid targets
``python -m experiments.amazon_beauty_baselines data.root=PATH baselines=sasrec test``    the test targets too

Settings are chosen on the valid targets, all of which are ranked, and the test targets are told only where that is
asked for, once the choice is made. Items that a user had are not recommended again, as in the published rows (SASRec
HR@10 .0605 and NDCG@10 .0318 in S3-Rec, .0740 and .0423 tuned in cornac; TIGER .0648 and .0384). Other arguments are
Hydra overrides of the main job; results are in the store, so a second call with ``test`` trains nothing anew.
"""

import json
import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import polars as pl

from experiments.content import of_rank
from leadre import command_line, tables
from leadre.artifacts import Result, Store
from leadre.config import ConfigError, RunConfig
from leadre.pipeline import index_ads, learn_baselines
from leadre.training.logs import read_metrics

OURS = ("data=amazon_beauty", "alignment=none", "quantizer=medium", "baselines=sasrec")
K = 10
TEST = "test"


def main(arguments: Sequence[str]) -> None:
    """Print a line a baseline."""
    run = configured([text for text in arguments if text != TEST])
    store = Store(Path(run.store.root))
    indexed = index_ads(run, store)
    for name, learned in learn_baselines(run, store, indexed.world, indexed.catalog).items():
        told = {"valid": on_valid(learned)}
        if TEST in arguments:
            lists = tables.read(tables.LISTS, learned.path / "lists.parquet")
            told["test"] = ranked(indexed.world, lists, TEST)
        print(line(name, told, learned))


def configured(overrides: Sequence[str]) -> RunConfig:
    """The main job's settings on Amazon Beauty, where all valid targets are ranked and seen items are left out.

    Raises:
        ConfigError: If an override is wrong, or a baseline is never validated.
    """
    given = [*OURS, *overrides]
    command_line.check(given)
    names = command_line.configured(given).baselines.learned
    run = command_line.configured([*given, *_protocol(names, overrides)])
    for name, learned in run.baselines.learned.items():
        if not learned.validations:
            raise ConfigError(
                f"baselines.learned.{name}.validations is 0, but the valid targets are told here: give 1 or more"
            )
    return run


def _protocol(names: Collection[str], overrides: Sequence[str]) -> list[str]:
    """The published protocol, unless another is typed."""
    wanted = {"exclude_seen": "true", "list_length": str(K), "valid_users": "100000"}
    keys = [(f"baselines.learned.{name}.{setting}", value) for name in names for setting, value in wanted.items()]
    typed = {text.partition("=")[0] for text in overrides}
    return [f"{key}={value}" for key, value in keys if key not in typed]


def on_valid(learned: Result) -> Mapping[str, float]:
    """HR@10 and NDCG@10 of the last validation."""
    last = [row for row in read_metrics(learned.path / "metrics.jsonl") if f"valid/hr@{K}" in row][-1]
    return {f"{name}@{K}": float(last[f"valid/{name.lower()}@{K}"]) for name in ("HR", "NDCG")}


def ranked(world: Result, lists: pl.DataFrame, role: str) -> Mapping[str, float]:
    """HR and NDCG at 5 and 10 of lists (LISTS) over all users with a target of a role."""
    targets = tables.read(tables.SPLIT, world.path / "split.parquet").filter(pl.col("role") == role)
    found = targets.join(lists, on=["user_id", "ad_id"], how="left")
    names = [f"{kind}@{k}" for k in (5, K) for kind in ("HR", "NDCG")]
    return found.select(of_rank(name).cast(pl.Float64).mean().alias(name) for name in names).row(0, named=True)


def line(name: str, told: Mapping[str, Mapping[str, float]], trained: Result) -> str:
    """A system's scores by role, its steps (of a model tuned in stages those of the last), seconds and folder."""
    steps = json.loads((trained.path / "budget.json").read_text())["steps"]
    scores = "  ".join(f"{role} {' '.join(f'{k} {v:.4f}' for k, v in of.items())}" for role, of in told.items())
    return f"{name}  {scores}  {steps} steps, {trained.seconds:.0f} s, {trained.path}"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1:])
