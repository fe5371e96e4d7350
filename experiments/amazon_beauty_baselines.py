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
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
from hydra import compose, initialize_config_dir

from leadre import tables
from leadre.artifacts import Result, Store
from leadre.config import CONF, ConfigError, RunConfig, check, load
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
            told["test"] = on_test(indexed.world, learned)
        steps = json.loads((learned.path / "budget.json").read_text())["steps"]
        scores = "  ".join(f"{role} {' '.join(f'{k} {v:.4f}' for k, v in of.items())}" for role, of in told.items())
        print(f"{name}  {scores}  {steps} steps, {learned.seconds:.0f} s, {learned.path}")


def configured(overrides: Sequence[str]) -> RunConfig:
    """The main job's settings on Amazon Beauty, where all valid targets are ranked and seen items are left out.

    Raises:
        ConfigError: If an override is wrong, or a baseline is never validated.
    """
    given = [*OURS, *overrides]
    check(given)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("run", given)
        for name in composed.baselines.learned:
            given += [f"baselines.learned.{name}.{setting}" for setting in _protocol(composed, name, overrides)]
        run: RunConfig = load(compose("run", given))
    for name, learned in run.baselines.learned.items():
        if not learned.validations:
            raise ConfigError(
                f"baselines.learned.{name}.validations is 0, but the valid targets are told here: give 1 or more"
            )
    return run


def _protocol(composed: object, name: str, overrides: Sequence[str]) -> list[str]:
    wanted = ("exclude_seen=true", "list_length=10", "valid_users=100000")
    typed = {text.partition("=")[0] for text in overrides}
    return [text for text in wanted if f"baselines.learned.{name}.{text.partition('=')[0]}" not in typed]


def on_valid(learned: Result) -> Mapping[str, float]:
    """HR@10 and NDCG@10 of the last validation."""
    last = [row for row in read_metrics(learned.path / "metrics.jsonl") if f"valid/hr@{K}" in row][-1]
    return {f"{name}@{K}": float(last[f"valid/{name.lower()}@{K}"]) for name in ("HR", "NDCG")}


def on_test(world: Result, learned: Result) -> Mapping[str, float]:
    """HR@10 and NDCG@10 over all users with a test target."""
    lists = tables.read(tables.LISTS, learned.path / "lists.parquet").filter(pl.col("rank") <= K)
    targets = tables.read(tables.SPLIT, world.path / "split.parquet").filter(pl.col("role") == "test")
    hits = targets.join(lists, on=["user_id", "ad_id"], how="inner")["rank"]
    gains = pl.select((1 / (hits + 1).log(2)).sum()).item() if len(hits) else 0.0
    return {f"HR@{K}": len(hits) / targets.height, f"NDCG@{K}": gains / targets.height}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1:])
