"""The main job with several training seeds on one world: means over seeds, and paired intervals over users.

Choices are made on validation; this table is the test users', once.

    python -m experiments.seeds                       # seeds 0,1,2 of the quickstart
    python -m experiments.seeds seeds=0,1,2,3,4 data=completejourney data.root=PATH
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from leadre import pipeline
from leadre.artifacts import Result, Store
from leadre.config import CONF, ConfigError, RunConfig, check, load
from leadre.job import quiet_libraries
from leadre.metrics.uncertainty import paired_bootstrap

K = 8
METRICS = ("HR@1", "HR@4", "HR@8", "NDCG@4", "NDCG@8", "LTRR@8", "Diversity@8")


def run(overrides: list[str], seed: int) -> Result:
    """The scores of the main job with one training seed; whatever is in the store is reused."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: RunConfig = load(compose("run", [*overrides, f"seed={seed}"]))
    store = Store(Path(config.store.root))
    prepared = pipeline.prepare(config, store)
    return pipeline.evaluate(config, store, prepared, pipeline.train(config, store, prepared)).scores


def systems_of(results: list[Result]) -> dict[str, dict[str, float]]:
    """The mean over seeds of every score of every system."""
    rows = [pipeline.read_scores(result)["systems"] for result in results]
    return {
        system: {
            name: float(np.mean([row[system][name] for row in rows])) for name in METRICS if name in rows[0][system]
        }
        for system in rows[0]
    }


def hits_of(results: list[Result], system: str, k: int) -> NDArray[np.float64]:
    """For each user, the share of the seeds whose list has the clicked ad among its first k, ``(N,)``."""
    frames = [
        pl.read_parquet(result.path / "per_user.parquet").filter(pl.col("system") == system).sort("user_id")
        for result in results
    ]
    hits = [(frame["rank"].fill_null(0).is_between(1, k)).to_numpy().astype(float) for frame in frames]
    return np.asarray(np.mean(hits, axis=0), dtype=np.float64)


def compare(results: list[Result], rival: str, k: int) -> dict[str, float]:
    """LEADRE against a rival: HR@k of both, their ratio, and the interval of the difference over users."""
    ours, theirs = (hits_of(results, system, k)[:, None] for system in ("LEADRE", rival))
    found = paired_bootstrap(ours, theirs, samples=2000, confidence=0.95, generator=np.random.default_rng(0))
    return {name: float(value[0]) for name, value in found._asdict().items()}


def show(results: list[Result], seeds: list[int]) -> dict[str, Any]:
    """Print both tables and return what they hold."""
    systems = systems_of(results)
    console = Console(width=None if sys.stdout.isatty() else 120)
    means = Table("", *METRICS, title=f"Means over the training seeds {', '.join(map(str, seeds))}")
    for system, row in systems.items():
        means.add_row(system, *(f"{row[name]:.4f}" if name in row else "-" for name in METRICS))
    console.print(means)
    rivals = {rival: compare(results, rival, K) for rival in systems if rival != "LEADRE"}
    table = Table("LEADRE against", "times the hits", f"difference of HR@{K}", "95 % interval over users")
    for rival, row in rivals.items():
        table.add_row(rival, f"{row['ratio']:.2f}", f"{row['mean']:+.4f}", f"{row['low']:+.4f} to {row['high']:+.4f}")
    console.print(table)
    return {"seeds": seeds, "systems": systems, "against": rivals}


def main(arguments: list[str]) -> None:
    """Run all seeds, then print the tables, and as the last line the same as JSON."""
    chosen = [text for text in arguments if text.startswith("seeds=")]
    overrides = [text for text in arguments if not text.startswith("seeds=")]
    seeds = [int(seed) for seed in (chosen or ["seeds=0,1,2"])[0].removeprefix("seeds=").split(",")]
    try:
        check(overrides)
    except ConfigError as error:
        sys.exit(str(error))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    quiet_libraries()
    results = [run(overrides, seed) for seed in seeds]
    print(json.dumps(show(results, seeds)))


if __name__ == "__main__":
    main(sys.argv[1:])
