"""The trained ranker: how it is kept, and what it says of ads."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy.special import expit

from leadre.ltr import known as worlds
from leadre.ltr.features import describe, interests
from leadre.ltr.known import Ints, Known
from leadre.ltr.network import Network, predict
from leadre.ltr.statistics import Floats, Statistics
from leadre.settings import settings

PAIRS_AT_ONCE = 1 << 19
"""Pairs of a target and an ad that are described at once: about 100 MB."""
REMEDY = "give a longer log, more users, or a higher ltr.train_share"
"""Where there is nothing to learn from."""


@settings
class Terms:
    """The few numbers that a ranker is made with."""

    world: str
    """``Known.fingerprint`` of the world that it was trained on."""
    window_days: int
    half_lives_days: tuple[float, ...]
    interest_smoothing: float
    hidden_size: int
    log_odds: float
    """Added to the logits of value and click: of the rows without a click only some were learned from."""
    mean_ecpm: float
    """Of clicks: a value of 1 in the loss."""
    log_ecpm_mean: float
    log_ecpm_deviation: float
    """0 where no ECPM was learned from; every estimate is then the same."""
    log_smear: float
    """The log of the mean ECPM over the mean of its estimate's exponential, for a mean log is not the log of a mean."""


class Ranker(NamedTuple):
    """The other retrieval strategy, frozen."""

    network: Network
    statistics: Statistics
    terms: Terms


class Estimates(NamedTuple):
    """What the ranker says of T targets and N ads: ``(T, N)`` float32 each."""

    click: Floats
    """The probability of a click."""
    ecpm: Floats
    """The ECPM, in the log's own unit."""
    value: Floats
    """What labels are ranked by: the odds of a click, each weighed by its ECPM."""


def save(ranker: Ranker, folder: Path) -> None:
    """Write ``ranker.safetensors`` and ``ranker.json``."""
    weights = {f"network.{name}": tensor.numpy() for name, tensor in ranker.network.state_dict().items()}
    counted = {f"statistics.{name}": array for name, array in ranker.statistics._asdict().items()}
    save_file({name: np.ascontiguousarray(array) for name, array in (weights | counted).items()}, _arrays(folder))
    (folder / "ranker.json").write_text(json.dumps(asdict(ranker.terms), indent=1) + "\n")


def load(folder: Path) -> Ranker:
    """Read what `save` wrote.

    Raises:
        ValueError: If the folder has no ranker, since nobody was there to learn from.
    """
    if not (folder / "ranker.json").exists():
        why = json.loads((folder / "ltr.json").read_text())["no_ranker"]
        raise ValueError(f"ltr has no ranker.json, since {why}: use alignment=none, or {REMEDY}")
    told = json.loads((folder / "ranker.json").read_text())
    terms = Terms(**told | {"half_lives_days": tuple(told["half_lives_days"])})
    arrays = load_file(_arrays(folder))
    weights = {name: torch.from_numpy(arrays[f"network.{name}"]) for name in _names(arrays, "network.")}
    network = Network(weights["mean"], weights["deviation"], terms.hidden_size)
    network.load_state_dict(weights)
    counted = Statistics(**{name: arrays[f"statistics.{name}"] for name in _names(arrays, "statistics.")})
    return Ranker(network, counted, terms)


def estimate(ranker: Ranker, known: Known, targets: pl.DataFrame, ads: Sequence[str]) -> Estimates:
    """Estimate click probability, ECPM and value of showing each ad to each target's user at the target's time.

    Only behaviors strictly before a target's time are seen. The answer takes 12 bytes a pair of a target and an ad:
    give some targets at a time.

    Args:
        ranker: What `load` gives.
        known: The world that it was trained on, by numbers.
        targets: T rows with columns ``user_id`` and ``time``; a user without profile or behaviors is the average user.
        ads: N ad_ids of the world.

    Raises:
        ValueError: If the world is another one, or does not have an ad.
    """
    if known.fingerprint != ranker.terms.world:
        raise ValueError(
            f"the world has the fingerprint {known.fingerprint}, but the ranker was trained on {ranker.terms.world}: "
            "its numbers are of that world's ads and profiles; train it anew"
        )
    ad = worlds.codes(pl.Series(ads, dtype=pl.String()), known.ads)
    if (ad < 0).any():
        missing = [name for name, code in zip(ads, ad, strict=True) if code < 0]
        raise ValueError(f"ad {missing[0]!r} (one of {len(missing)}) is not in the world: give ads of its ads.parquet")
    user = worlds.codes(targets["user_id"], known.users)
    answers = np.empty((targets.height, len(ad), 3), dtype=np.float32)
    step = max(1, PAIRS_AT_ONCE // max(1, len(ad)))
    for start in range(0, targets.height, step):
        told = _described(ranker, known, targets[start : start + step], user[start : start + step], ad)
        answers[start : start + step] = predict(ranker.network, told)
    return estimates(ranker.terms, answers)


def estimates(terms: Terms, heads: NDArray[Any]) -> Estimates:
    """Turn the network's numbers ``(..., 3)`` into probabilities and money."""
    value, click = heads[..., 0] + terms.log_odds, heads[..., 1] + terms.log_odds
    log_ecpm = terms.log_ecpm_mean + terms.log_ecpm_deviation * heads[..., 2] + terms.log_smear
    return Estimates(
        click=expit(click).astype(np.float32),
        ecpm=np.exp(log_ecpm).astype(np.float32),
        value=(terms.mean_ecpm * np.exp(value)).astype(np.float32),
    )


def _described(ranker: Ranker, known: Known, targets: pl.DataFrame, user: Ints, ad: Ints) -> Floats:
    """Features of all pairs of T targets and N ads, ``(T, N, F)``."""
    terms = ranker.terms
    done = interests(known, targets, window_days=terms.window_days, half_lives_days=terms.half_lives_days)
    return describe(
        known,
        ranker.statistics,
        done,
        fold=np.zeros(1, dtype=np.int64),
        target=np.arange(targets.height)[:, None],
        user=user[:, None],
        ad=ad[None, :],
        smoothing=terms.interest_smoothing,
    )


def _arrays(folder: Path) -> Path:
    return folder / "ranker.safetensors"


def _names(arrays: dict[str, NDArray[Any]], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in arrays if name.startswith(prefix)]
