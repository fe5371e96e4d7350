"""TIGER (Rajput et al. 2023): an encoder-decoder that writes the S-ID of the next ad, on the S-IDs that LEADRE has.

What LEADRE adds to it, a language model, texts and profiles, is then what the two differ by.
"""

import json
import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch

from leadre import tables
from leadre.baselines.config import TigerConfig
from leadre.baselines.lists import frame
from leadre.baselines.tiger_module import TigerTraining
from leadre.baselines.tiger_network import Tiger
from leadre.baselines.tiger_readings import Asked, Ints, Readings, asked, batch, readings
from leadre.baselines.tiger_search import search
from leadre.catalog import trie
from leadre.training.batches import Batches, bucketed_plan
from leadre.training.config import ComputeConfig, LoggerConfig
from leadre.training.device import set_up_device
from leadre.training.fit import fit

VALID_KS = (1, 4, 8, 10)
ASKED_BATCH = 128
GRADIENT_CLIP = 1.0
log = logging.getLogger(__name__)


def learn_tiger(
    config: TigerConfig, world: Path, catalog: Path, *, out: Path, compute: ComputeConfig, logger: LoggerConfig
) -> pl.DataFrame:
    """Train TIGER on the train targets and make lists for the users with a test target (LISTS).

    Every train target with an ad behavior before it is learned. Our choice: AdamW with a cosine, where the paper has
    Adafactor's inverse root, and the last weights are kept, so that nothing is chosen on the way; the valid targets
    give the curve in ``metrics.jsonl`` alone.

    Args:
        config: The network and its training.
        world: Gives behaviors and targets.
        catalog: Gives the S-IDs; only its ads are recommended.
        out: Gets ``budget.json``.
        compute: Devices, threads, checkpoints.
        logger: Where metrics go beside the files.

    Raises:
        ValueError: If no train target can be learned from, or lists are to be longer than the beam is wide.
    """
    if config.list_length > config.beam_width:
        raise ValueError(
            f"list_length is {config.list_length}, but a beam of beam_width {config.beam_width} finds no more ads "
            "than that: raise beam_width"
        )
    listed = tables.read(tables.SIDS, catalog / "sids.parquet")
    num_codes = json.loads((catalog / "tokens.json").read_text())["levels"]
    sids = tables.matrix(listed["sid"], len(num_codes)).astype(np.int64)
    told = telling_levels(sids)
    of = _Catalog(listed["ad_id"].to_list(), sids[:, told], [num_codes[level] for level in told])
    behaviors = tables.read(tables.BEHAVIORS, world / "behaviors.parquet")
    split = tables.read(tables.SPLIT, world / "split.parquet")
    module = _module(config, of)
    steps = _train(config, module, of, behaviors, split, out=out, compute=compute, logger=logger)
    lists = _lists(config, module.network, of, behaviors, split, device=set_up_device(compute))
    (out / "budget.json").write_text(json.dumps(steps))
    log.info("tiger: lists of %s users", lists["user_id"].n_unique())
    return lists


class _Catalog(NamedTuple):
    """The catalog at the levels that tell ads apart.

    Attributes:
        ads: N ads, in the order of the catalog's rows.
        sids: ``(N, L)``.
        num_codes: Of each level.
    """

    ads: list[str]
    sids: Ints
    num_codes: list[int]


def telling_levels(sids: Ints) -> list[int]:
    """The levels ``(N, L)`` at which ads differ; the others, such as an extra code that nobody needs, are not written.

    Example:
        >>> telling_levels(np.array([[1, 0, 4], [2, 0, 4]]))
        [0]
    """
    return np.flatnonzero(np.ptp(sids, axis=0)).tolist() or [0]


def _module(config: TigerConfig, of: _Catalog) -> TigerTraining:
    torch.manual_seed(config.seed)  # the first weights
    network = Tiger(
        trie=trie.build(torch.from_numpy(of.sids)),
        codes=of.num_codes,
        user_tokens=max(config.user_tokens, 1),
        max_ads=config.max_ads,
        width=config.width,
        heads=config.heads,
        head_width=config.head_width,
        inner=config.inner,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        dropout=config.dropout,
    )
    return TigerTraining(
        network,
        learning_rate=config.learning_rate,
        min_learning_rate=config.min_learning_rate,
        warmup_share=config.warmup_share,
        weight_decay=config.weight_decay,
        beam_width=config.beam_width,
        ks=[k for k in VALID_KS if k <= config.beam_width],
    )


def _train(
    config: TigerConfig,
    module: TigerTraining,
    of: _Catalog,
    behaviors: pl.DataFrame,
    split: pl.DataFrame,
    *,
    out: Path,
    compute: ComputeConfig,
    logger: LoggerConfig,
) -> dict[str, int]:
    """Train; the steps, targets and tokens that it took."""
    learned = split.filter(pl.col("ad_id").is_in(of.ads))
    train = _readings(config, of, behaviors, learned.filter(pl.col("role") == "train"), shared=True)
    plan = step_plan(train, batch_size=config.batch_size, steps=config.steps, seed=config.seed)
    valid = _asked(config, of, behaviors, _some(learned.filter(pl.col("role") == "valid"), config))
    valid = valid if config.validations else []
    fit(
        module,
        Batches(plan, partial(batch, train)),
        out=out,
        compute=compute,
        logger=logger,
        name="tiger",
        valid=valid or None,
        valid_every_steps=-(-len(plan) // config.validations) if valid else None,
        gradient_clip=GRADIENT_CLIP,
        seed=config.seed,
    )
    seen = np.concatenate(plan)
    targets, ads = int(train.sizes[seen].sum()), int(train.lengths[seen].sum())
    levels = of.sids.shape[1]
    return {"steps": len(plan), "targets": targets, "tokens": len(seen) + levels * (ads + targets)}


def _readings(
    config: TigerConfig, of: _Catalog, behaviors: pl.DataFrame, targets: pl.DataFrame, *, shared: bool
) -> Readings:
    return readings(
        behaviors,
        targets,
        of.ads,
        max_ads=config.max_ads,
        user_tokens=max(config.user_tokens, 1),
        shared=shared,
    )


def _some(targets: pl.DataFrame, config: TigerConfig) -> pl.DataFrame:
    """A fixed random sample of the valid targets."""
    size = min(config.valid_users, targets.height)
    chosen = np.random.default_rng(config.seed).choice(targets.height, size, replace=False)
    return targets[np.sort(chosen)]


def _asked(config: TigerConfig, of: _Catalog, behaviors: pl.DataFrame, targets: pl.DataFrame) -> list[Asked]:
    """The users of some targets in batches, sorted by user."""
    told = _readings(config, of, behaviors, targets, shared=False)
    starts = range(0, targets.height, ASKED_BATCH)
    which = (np.arange(start, min(start + ASKED_BATCH, targets.height)) for start in starts)
    return [asked(told, users, num_ads=len(of.ads), exclude_seen=config.exclude_seen) for users in which]


def _lists(
    config: TigerConfig,
    network: Tiger,
    of: _Catalog,
    behaviors: pl.DataFrame,
    split: pl.DataFrame,
    *,
    device: torch.device,
) -> pl.DataFrame:
    """Lists of the users with a test target (LISTS), in the order of the users."""
    test = split.filter(pl.col("role") == "test").sort("user_id", maintain_order=True)
    network = network.to(device).eval()
    users, names = np.array(test["user_id"].to_list(), dtype=object), np.array(of.ads, dtype=object)
    parts, done = [frame(users[:0], np.zeros(0, np.int64), names[:0], np.zeros(0))], 0
    for some in _asked(config, of, behaviors, test):
        given = (tensor.to(device) for tensor in some[:-1])
        found = search(network, *given, beam_width=config.beam_width)
        rows = found.rows[:, : config.list_length].cpu().numpy()
        scores = found.scores[:, : config.list_length].double().cpu().numpy()
        user, place = np.nonzero(rows >= 0)
        parts.append(frame(users[done + user], place + 1, names[rows[user, place]], scores[user, place]))
        done += len(rows)
    return pl.concat(parts)


def step_plan(train: Readings, *, batch_size: int, steps: int, seed: int) -> list[Ints]:
    """The readings of each step: about ``batch_size`` targets, readings of like length together.

    Raises:
        ValueError: If there is none.
    """
    if not len(train.user):
        raise ValueError(
            "0 train targets have an ad behavior before them: TIGER needs some to learn from; lower data.min_ads or "
            "leave tiger out of baselines.learned"
        )
    plan: list[Ints] = []
    epochs = 1
    while len(plan) < steps:  # how many steps an epoch has hangs on how its readings fall into batches
        plan = bucketed_plan(train.lengths, train.sizes, batch_size=batch_size, epochs=epochs, seed=seed)
        epochs *= 2
    return plan[:steps]
