from pathlib import Path

import numpy as np
import polars as pl
import pytest

from leadre import tables
from leadre.data.split import leave_one_out
from leadre.ltr.config import LtrConfig
from leadre.ltr.learn_to_rank import learn_to_rank

DAY = 86_400
NUM_USERS, NUM_ADS = 60, 12
SETTINGS = {
    "train_share": 0.5,
    "labels": 4,
    "window_days": 90,
    "half_lives_days": (2.0, 20.0),
    "interest_smoothing": 1.0,
    "click_smoothing": 5.0,
    "folds": 3,
    "negatives": 3,
    "hidden_size": 8,
    "learning_rate": 0.02,
    "batch_size": 64,
    "max_epochs": 8,
    "patience": 2,
    "seed": 0,
}


def table(declared, rows):
    return pl.DataFrame(rows, schema=declared.schema, orient="row")


@pytest.fixture(scope="session", name="table")
def _table():
    return table


@pytest.fixture(scope="session")
def config():
    return LtrConfig(**SETTINGS)


def ads_of(count=NUM_ADS):
    """Ads of three categories, each with its own price; the last has neither category nor SPU."""
    rows = [
        (f"a{n:02d}", f"name {n}", None, f"G{n % 3 % 2}", f"X{n % 3}", [], f"S{n % 6}", None, None, "")
        for n in range(count - 1)
    ]
    return [*rows, ("zz", None, None, None, None, [], None, None, None, "")]


@pytest.fixture(scope="session")
def frames():
    """A world in which a user reads about a category, then clicks its ads; ads of more number have a higher ECPM."""
    rng = np.random.default_rng(0)
    ads, behaviors, impressions = ads_of(), [], []
    for number in range(NUM_USERS):
        user, taste = f"u{number:03d}", number % 3
        for day in range(1, 15):
            behaviors.append((user, f"c{taste}", "content", "read", day * DAY))
            for ad in rng.choice(NUM_ADS, 3, replace=False):
                time = day * DAY + 100 + int(ad)
                clicked = bool(rng.random() < (0.5 if ads[ad][4] == f"X{taste}" else 0.05))
                impressions.append((user, ads[ad][0], time, 1.0 + 2.0 * int(ad), 0.1, clicked))
                if clicked:
                    behaviors.append((user, ads[ad][0], "ad", "click", time))
    frame = table(tables.BEHAVIORS, behaviors).sort("user_id", "time")
    return {
        "ads": table(tables.ADS, ads),
        "users": table(
            tables.USERS,
            [(f"u{n:03d}", "18-24" if n % 2 else None, f"g{n % 3}", None, None, None, None) for n in range(NUM_USERS)],
        ),
        "contents": table(tables.CONTENTS, [(f"c{n}", "t", f"X{n}", f"S{n}") for n in range(3)]),
        "behaviors": frame,
        "impressions": table(tables.IMPRESSIONS, impressions),
        "split": leave_one_out(frame, min_ads=3),
    }


def written(frames, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        tables.write(getattr(tables, name.upper()), frame, folder / f"{name}.parquet")
    return folder


def catalog_of(ads, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    sids = table(tables.SIDS, [(ad, [n, 0], f"<a_{n}> <b_0>") for n, ad in enumerate(ads)])
    tables.write(tables.SIDS, sids, folder / "sids.parquet")
    return folder


@pytest.fixture(scope="session", name="written")
def _written():
    return written


@pytest.fixture(scope="session", name="catalog_of")
def _catalog_of():
    return catalog_of


@pytest.fixture(scope="session")
def world(frames, tmp_path_factory) -> Path:
    return written(frames, tmp_path_factory.mktemp("ltr") / "world")


@pytest.fixture(scope="session")
def catalog(frames, tmp_path_factory) -> Path:
    return catalog_of(frames["ads"]["ad_id"].to_list()[::-1], tmp_path_factory.mktemp("ltr_catalog"))


@pytest.fixture(scope="session")
def trained(config, world, catalog, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    learn_to_rank(config, world, catalog, out=out)
    return out
