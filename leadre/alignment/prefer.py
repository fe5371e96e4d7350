"""Stage: a tuned model and a log come in, pairs of ads of which one is worth more go out (LEADRE 4.3.2)."""

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import nn

from leadre import tables
from leadre.alignment.candidates import Candidates, beamed, click_floor, logged, nothing
from leadre.alignment.config import PreferenceConfig, Worth
from leadre.alignment.preferences import Preferences, preferences
from leadre.alignment.rows import last_rows
from leadre.catalog import trie as tries
from leadre.decoding.beam_search import beam_search, sid_tokens
from leadre.lm.model import load
from leadre.lm.rows import Rows, left_padded, prompts_of, read_rows
from leadre.ltr import known, ranker
from leadre.ltr.ranker import Estimates
from leadre.training.config import ComputeConfig
from leadre.training.device import set_up_device

log = logging.getLogger(__name__)
VERSION = 3
TOKENS = 16_384
"""Tokens of prompts that are read at a time, with their padding."""
CELLS = 4_000_000
"""Estimates (users x ads) in memory at a time."""

_BEAMS = {"user_id": pl.String(), "ad_id": pl.String(), "place": pl.Int64(), "time": pl.Int64()}
_ESTIMATES = {"user_id": pl.String(), "ad_id": pl.String(), "click": pl.Float64(), "estimate": pl.Float64()}

Beam = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""Rows of the tokens file ``(N,)``; out come rows of the catalog ``(N, W)``, best first, -1 where there is no ad."""
Estimate = Callable[[pl.DataFrame, Sequence[str]], Estimates]
"""Targets with user_id and time, and ads; features are of the time strictly before each target's."""


def prefer(
    config: PreferenceConfig,
    model: Path,
    world: Path,
    catalog: Path,
    pairs: Path,
    tokens: Path,
    ltr: Path,
    *,
    out: Path,
    compute: ComputeConfig,
) -> None:
    """Write ``preferences.parquet``, pairs of ads, and ``preferences.json``, what was left out and why.

    Pairs are made of the users alone that the ranker has learned from: on the others LTRR is measured. The ads of the
    model's own beam are those that it generates for a user's last training prompt; the frozen ranker estimates their
    worth at the time of that prompt's target. Neither is loaded where the source ``beam`` is not asked for.

    Args:
        config: Which pairs.
        model: The tuned model.
        world: Gives ads, impressions and split; the ranker reads more of it.
        catalog: Gives S-IDs and trie.
        pairs: Gives the users and targets of the training prompts.
        tokens: Gives the training prompts.
        ltr: Gives the ranker and its users.
        out: The folder of the result.
        compute: The device that the model runs on.

    Raises:
        ValueError: If no pair is left, or the inputs do not belong together.
    """
    sids = tables.read(tables.SIDS, catalog / "sids.parquet")
    split = tables.read(tables.SPLIT, world / "split.parquet")
    learners = tables.read(tables.LTR_USERS, ltr / "users.parquet").filter(pl.col("role") == "train")["user_id"]
    rows = pl.read_parquet(pairs / "main.train.parquet", columns=["user_id", "ad_id"])
    prompts = last_prompts(rows, split)
    of_log, of_beam = nothing(), nothing()
    if "log" in config.sources:
        of_log = _logged(config, world, split, sids, learners=learners, prompted=prompts["user_id"])
    if "beam" in config.sources:
        asked = prompts.join(learners.to_frame("user_id"), on="user_id", how="semi")
        encoded = read_rows(tokens / "main.train.safetensors", num_rows=rows.height)
        beam = _beam(
            model, catalog, encoded, width=config.beam_width, num_ads=sids.height, device=set_up_device(compute)
        )
        found = judged(
            asked,
            of_log.funnel.rows,
            sids["ad_id"],
            beam=beam,
            width=config.beam_width,
            estimate=_ranker(ltr, world),
            worth=config.worth,
        )
        of_log = of_log._replace(funnel=of_log.funnel._replace(rows=found.log))
        of_beam = beamed(
            found.beams,
            split,
            tables.scan(tables.ADS, world / "ads.parquet").select("ad_id", "start_time", "end_time").collect(),
            found.log,
            floor=click_floor(found.clicks, config.min_pctr_quantile),
            train_targets=config.train_targets,
        )
    _write(preferences(of_log, of_beam, sids, config=config), out)


def _logged(
    config: PreferenceConfig,
    world: Path,
    split: pl.DataFrame,
    sids: pl.DataFrame,
    *,
    learners: pl.Series,
    prompted: pl.Series,
) -> Candidates:
    return logged(
        tables.read(tables.IMPRESSIONS, world / "impressions.parquet"),
        split,
        sids,
        learners=learners,
        prompted=prompted,
        min_pctr_quantile=config.min_pctr_quantile,
        train_targets=config.train_targets,
    )


def _write(found: Preferences, out: Path) -> None:
    tables.write(tables.PREFERENCES, found.pairs, out / "preferences.parquet")
    account = found.account()
    (out / "preferences.json").write_text(json.dumps(account, indent=2) + "\n", encoding="utf-8")
    log.info("%s preference pairs of %s users: %s", account["pairs"], account["users"], account["sources"])


def last_prompts(pairs: pl.DataFrame, split: pl.DataFrame) -> pl.DataFrame:
    """The last training prompt of each user, sorted by user: user_id, row, and the target's ad_id and time.

    Args:
        pairs: ``user_id`` and ``ad_id`` of the training pairs, in the order of the tokens file.
        split: A SPLIT table.
    """
    last = last_rows(pairs["user_id"])
    last = last.with_columns(ad_id=pairs["ad_id"].gather(last["row"]))
    times = split.filter(pl.col("role") == "train").group_by("user_id", "ad_id").agg(pl.col("time").max())
    return last.join(times, on=["user_id", "ad_id"], how="inner").sort("user_id")


class Judged(NamedTuple):
    """What the ranker says of the model's beams, of the ads of the log, and of clicked ads.

    Attributes:
        beams: As `leadre.alignment.candidates.beamed` takes them.
        log: The rows given, with ``estimate``; null for users who were not asked.
        clicks: The estimated click probability of each user's target.
    """

    beams: pl.DataFrame
    log: pl.DataFrame
    clicks: pl.Series


def judged(
    asked: pl.DataFrame, log: pl.DataFrame, ads: pl.Series, *, beam: Beam, width: int, estimate: Estimate, worth: Worth
) -> Judged:
    """Make the beams of some users and ask the ranker about them, so many users at a time as fit.

    Of so many users, only the ads are estimated that any of them is asked about: those of the beams and of the log, and
    the targets.

    All is estimated at the time of a user's last training target. The target itself, which the user clicked then, is
    the clicked ad that the floor is taken from (our choice: one set of features serves both).

    Args:
        asked: One row a user, as `last_prompts` gives them.
        log: The plausible ads of the log.
        ads: The ads of the catalog, row by row.
        beam: The model's search.
        width: The most ads of a beam.
        estimate: The ranker.
        worth: What is estimated beside the click probability.
    """
    of_log = log.group_by("user_id").agg(shown="ad_id")
    asked = asked.join(of_log, on="user_id", how="left").sort("user_id")
    beams, estimates = [pl.DataFrame(schema=_BEAMS)], [pl.DataFrame(schema=_ESTIMATES)]
    most = 1 + width + max(of_log["shown"].list.len().to_list(), default=0)
    for users in asked.iter_slices(_users_at_once(most, len(ads))):
        beams.append(_beams(beam(users["row"].to_numpy()), users, ads))
        shown = users.select("user_id", ad_id="shown").explode("ad_id").drop_nulls()
        pairs = pl.concat([part.select("user_id", "ad_id") for part in (beams[-1], users, shown)])
        estimates.append(_estimates(pairs.unique().sort("user_id", "ad_id"), users, estimate, worth))
    said = pl.concat(estimates)
    return Judged(
        _with(pl.concat(beams), said),
        _with(log.drop("estimate"), said.drop("click")),
        _with(asked, said)["click"],
    )


def _users_at_once(most_ads: int, num_ads: int) -> int:
    """How many users who each ask about so many ads make no more than `CELLS` pairs of a user and an ad of any."""
    return max(1, CELLS // num_ads, math.isqrt(CELLS // most_ads))


def _with(rows: pl.DataFrame, said: pl.DataFrame) -> pl.DataFrame:
    return rows.join(said, on=["user_id", "ad_id"], how="left", maintain_order="left")


def _beams(rows: NDArray[np.int64], users: pl.DataFrame, ads: pl.Series) -> pl.DataFrame:
    user, place = np.nonzero(rows >= 0)
    found = users[user].select("user_id", "time")
    return found.with_columns(ad_id=ads.gather(rows[user, place]), place=pl.Series(place)).select(list(_BEAMS))


def _estimates(pairs: pl.DataFrame, users: pl.DataFrame, estimate: Estimate, worth: Worth) -> pl.DataFrame:
    """What the ranker says of some pairs of user and ad, each at the time of its user."""
    ads = pairs["ad_id"].unique().sort()
    said = estimate(users.select("user_id", "time"), ads.to_list())
    at = users["user_id"].search_sorted(pairs["user_id"]).to_numpy(), ads.search_sorted(pairs["ad_id"]).to_numpy()
    found = {"click": said.click[at].astype(np.float64), "estimate": getattr(said, worth)[at].astype(np.float64)}
    return pairs.with_columns(**{name: pl.Series(values) for name, values in found.items()})


def _beam(model: Path, catalog: Path, encoded: Rows, *, width: int, num_ads: int, device: torch.device) -> Beam:
    """The model's constrained beam search for rows of the tokens file.

    Our choice: probabilities are taken among the whole vocabulary, as ``decoding=default`` does.
    """
    lm = load(model)
    nn.Module.to(lm.model, device)  # Transformers' own `to` hides its arguments
    codes = sid_tokens(lm.sid_offsets, json.loads((catalog / "tokens.json").read_text(encoding="utf-8"))["levels"])
    trie = tries.move(tries.load(catalog / "trie.safetensors"), device)
    if len(trie.codes[-1]) != num_ads:
        raise ValueError(
            f"catalog has a trie of {len(trie.codes[-1])} ads, but sids.parquet has {num_ads}: index it anew"
        )

    def beam(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        prompts = prompts_of(encoded, rows)
        found = np.full((len(rows), width), -1, dtype=np.int64)
        for batch in _batches(np.array([len(prompt) for prompt in prompts])):
            ids, mask = (part.to(device) for part in left_padded([prompts[n] for n in batch]))
            ads = beam_search(
                lm.model, ids, mask, trie=trie, sid_tokens=codes, beam_width=width, normalizer="full"
            ).rows
            found[batch] = ads.cpu().numpy()
        return found

    return beam


def _batches(lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Prompts of like length together, the longest first: what does not fit into memory fails at once."""
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        size = max(1, TOKENS // max(1, int(lengths[order[0]])))
        yield order[:size]
        order = order[size:]


def _ranker(ltr: Path, world: Path) -> Estimate:
    return partial(ranker.estimate, ranker.load(ltr), known.read(world))  # the world is read once
