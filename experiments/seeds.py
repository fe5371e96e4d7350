"""The main job with several training seeds on one world: means over seeds, and paired intervals over users.

Choices are made on validation; this table is the test users', once.

    python -m experiments.seeds                       # seeds 0,1,2 of the quickstart
    python -m experiments.seeds seeds=0,1,2,3,4 data=completejourney data.root=PATH
"""

import json
import logging
import sys
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.study import OURS, difference, of_users, scored, seeds_and_overrides
from leadre import pipeline
from leadre.artifacts import Result
from leadre.config import ConfigError, check
from leadre.job import quiet_libraries

K = 8
METRICS = ("HR@1", "HR@4", "HR@8", "NDCG@4", "NDCG@8", "LTRR@8", "Diversity@8")


def systems_of(results: list[Result]) -> dict[str, dict[str, float]]:
    """The mean over seeds of every score of every system."""
    rows = [pipeline.read_scores(result)["systems"] for result in results]
    return {
        system: {
            name: float(np.mean([row[system][name] for row in rows])) for name in METRICS if name in rows[0][system]
        }
        for system in rows[0]
    }


def compare(results: list[Result], rival: str, k: int) -> dict[str, float]:
    """LEADRE against a rival: HR@k of both, their ratio, and the interval of the difference over users."""
    return difference(*(of_users(results, system, f"HR@{k}") for system in (OURS, rival)))


def show(results: list[Result], seeds: list[int]) -> dict[str, Any]:
    """Print both tables and return what they hold."""
    systems = systems_of(results)
    console = Console(width=None if sys.stdout.isatty() else 120)
    means = Table("", *METRICS, title=f"Means over the training seeds {', '.join(map(str, seeds))}")
    for system, row in systems.items():
        means.add_row(system, *(f"{row[name]:.4f}" if name in row else "-" for name in METRICS))
    console.print(means)
    rivals = {rival: compare(results, rival, K) for rival in systems if rival != OURS}
    table = Table("LEADRE against", "times the hits", f"difference of HR@{K}", "95 % interval over users")
    for rival, row in rivals.items():
        table.add_row(rival, f"{row['ratio']:.2f}", f"{row['mean']:+.4f}", f"{row['low']:+.4f} to {row['high']:+.4f}")
    console.print(table)
    return {"seeds": seeds, "systems": systems, "against": rivals}


def main(arguments: list[str]) -> None:
    """Run all seeds, then print the tables, and as the last line the same as JSON."""
    try:
        seeds, overrides = seeds_and_overrides(arguments)
        check(overrides)
    except ConfigError as error:
        sys.exit(str(error))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    quiet_libraries()
    results = [scored(overrides, seed) for seed in seeds]
    print(json.dumps(show(results, seeds)))


if __name__ == "__main__":
    main(sys.argv[1:])
