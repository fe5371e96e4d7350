"""How much there is to learn in a synthetic world: simple models between popularity and the oracle.

A world is chosen by this table alone, before LEADRE is trained on it.

    python -m experiments.headroom data/world=small seeds=0,1,2

Other arguments are Hydra overrides of the world or the baselines, such as ``data.world.contents.signal=0.0``.
"""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from leadre.adworld.config import WorldConfig
from leadre.adworld.simulate import World, simulate
from leadre.baselines.config import BaselinesConfig
from leadre.baselines.features import Tables
from leadre.baselines.popularity import own_history_lists, popular_lists, train_counts
from leadre.baselines.recommend import linear_lists
from leadre.data.split import histories, leave_one_out

CONF = Path(__file__).resolve().parents[1] / "conf"
K = 8
MIN_ADS = 3


class Settings(NamedTuple):
    """What a run needs."""

    world: WorldConfig
    baselines: BaselinesConfig


def settings(overrides: list[str]) -> Settings:
    """Compose the world and the baselines with Hydra overrides; ``data/world=<name>`` is one of them."""
    groups = ["+baselines=default", "+seed=0", *(_added(text) for text in overrides)]
    with initialize_config_dir(str(CONF), version_base=None):
        composed = OmegaConf.to_container(compose(overrides=groups), resolve=True)
    assert isinstance(composed, dict)
    return Settings(
        TypeAdapter(WorldConfig).validate_json(json.dumps(composed["data"]["world"]), strict=True),
        TypeAdapter(BaselinesConfig).validate_json(json.dumps(composed["baselines"]), strict=True),
    )


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
    """Measure each seed and return the table."""
    seeds = [text.removeprefix("seeds=") for text in arguments if text.startswith("seeds=")] or ["0"]
    run = settings([text for text in arguments if not text.startswith("seeds=")])
    columns = {}
    for seed in seeds[-1].split(","):
        world = simulate(run.world, int(seed))
        columns[seed] = {f"HR@{K} {name}": rate for name, rate in hit_rates(run, world, int(seed)).items()}
        columns[seed] |= ranges(world)
    return table(columns)


def _hit_rate(lists: pl.DataFrame, test: pl.DataFrame) -> float:
    hits = lists.filter(pl.col("rank") <= K).join(test, on=["user_id", "ad_id"], how="semi")
    return hits.height / test.height


def _added(override: str) -> str:
    """A group is added to the empty configuration; a value is overridden."""
    return f"+{override}" if override.startswith("data/") else override


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.stdout.write(main(sys.argv[1:]) + "\n")
