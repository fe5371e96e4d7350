"""How much there is to learn in a synthetic world: simple models between popularity and the oracle.

A world is chosen by this table alone, before LEADRE is trained on it.

    python -m experiments.headroom data/world=small seeds=0,1,2

Without ``data/world`` the world is ``small``. Other arguments are Hydra overrides of the world or the baselines, such
as ``data.world.contents.signal=0.0``.
"""

import logging
import sys
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import polars as pl

from leadre.adworld.config import WorldConfig
from leadre.adworld.simulate import World, simulate
from leadre.baselines.config import BaselinesConfig
from leadre.baselines.features import Tables
from leadre.baselines.popularity import own_history_lists, popular_lists, train_counts
from leadre.baselines.recommend import linear_lists
from leadre.command_line import check, configured
from leadre.data.config import SyntheticData
from leadre.data.split import histories, leave_one_out

K = 8
MIN_ADS = 3


class Settings(NamedTuple):
    """What a run needs."""

    world: WorldConfig
    baselines: BaselinesConfig


def settings(overrides: list[str]) -> Settings:
    """Compose the world and the baselines with Hydra overrides; ``data/world=<name>`` is one of them.

    Raises:
        ConfigError: If an override is wrong.
        ValueError: If an argument is no override, or the data are not simulated.
    """
    if unread := [text for text in overrides if "=" not in text]:
        raise ValueError(f"{unread[0]} is no override: write key=value, such as data/world=small")
    given = ["data=synthetic", *overrides]
    check(given)
    config = configured(given)
    if not isinstance(config.data, SyntheticData):
        raise ValueError(f"data is {config.data.kind}, but headroom needs a simulated world: leave data out")
    return Settings(config.data.world, config.baselines)


def seeds_of(text: str) -> list[int]:
    """The seeds in ``0,1,2``.

    Raises:
        ValueError: If one is no whole number of 0 or more.
    """
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"seeds is {text!r}, but must be whole numbers of 0 or more: write seeds=0,1,2")
    return [int(part) for part in parts]


def hit_rates(run: Settings, world: World, seed: int) -> dict[str, float]:
    """HR@8 of each system over the users with a test target."""
    known = Tables(world.ads, world.users, world.contents, world.behaviors)
    split = leave_one_out(world.behaviors, min_ads=MIN_ADS)
    test = split.filter(pl.col("role") == "test").sort("user_id")
    users, ads = test["user_id"].to_list(), sorted(world.ads["ad_id"].to_list())
    counts, window = train_counts(split, ads), run.baselines.window_days
    past = histories(world.behaviors, test, window)
    lists = {
        "popularity": popular_lists(users, ads, counts, size=K),
        "own history": own_history_lists(users, ads, counts, past, size=K),
    }
    for name, content in (("linear, no content", False), ("linear", True)):
        config = replace(run.baselines.linear, content_behaviors=content)
        lists[name] = linear_lists(config, known, split, ads, size=K, window_days=window, seed=seed)
    lists["oracle"] = world.oracle
    return {name: _hit_rate(frame, test) for name, frame in lists.items()}


def ranges(world: World) -> dict[str, float]:
    """The sanity ranges of a world: rates, counts and concentration of clicks."""
    ads = world.behaviors.filter(pl.col("domain") == "ad")
    clicks = ads.filter(pl.col("action") == "click")
    per_user = world.users.join(ads.group_by("user_id").len(), on="user_id", how="left")["len"].fill_null(0)
    per_ad = np.zeros(world.ads.height)
    counted = clicks.group_by("item_id").len()["len"].sort(descending=True).to_numpy()
    per_ad[: len(counted)] = counted
    return {
        "CTR %": 100 * clicks.height / world.impressions.height,
        "CVR %": 100 * (ads.height - clicks.height) / clicks.height,
        "ads/user mean": float(per_user.to_numpy().mean()),
        "users >= 3 %": 100 * float((per_user >= MIN_ADS).to_numpy().mean()),
        "content per ad": (world.behaviors.height - ads.height) / ads.height,
        "top 1 % of ads %": 100 * per_ad[: max(1, len(per_ad) // 100)].sum() / per_ad.sum(),
        "top 20 % of ads %": 100 * per_ad[: len(per_ad) // 5].sum() / per_ad.sum(),
        "never clicked %": 100 * float((per_ad == 0).mean()),
    }


def table(columns: dict[str, dict[str, float]]) -> str:
    """A Markdown table: one row a quantity, one column a seed, and the mean."""
    names = list(next(iter(columns.values())))
    lines = ["| | " + " | ".join(f"seed {seed}" for seed in columns) + " | mean |", "|---" * (len(columns) + 2) + "|"]
    for name in names:
        values = [column[name] for column in columns.values()]
        cells = " | ".join(f"{value:.3f}" for value in [*values, float(np.mean(values))])
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> str:
    """Measure each seed and return the table; a wrong argument ends the program with its fault."""
    typed = [text.removeprefix("seeds=") for text in arguments if text.startswith("seeds=")] or ["0"]
    try:
        seeds = seeds_of(typed[-1])
        run = settings([text for text in arguments if not text.startswith("seeds=")])
    except ValueError as error:
        sys.exit(str(error))
    columns = {}
    for seed in seeds:
        world = simulate(run.world, seed)
        columns[str(seed)] = {f"HR@{K} {name}": rate for name, rate in hit_rates(run, world, seed).items()}
        columns[str(seed)] |= ranges(world)
    return table(columns)


def _hit_rate(lists: pl.DataFrame, test: pl.DataFrame) -> float:
    hits = lists.filter(pl.col("rank") <= K).join(test, on=["user_id", "ad_id"], how="semi")
    return hits.height / test.height


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.stdout.write(main(sys.argv[1:]) + "\n")
