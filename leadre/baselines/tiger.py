"""TIGER (Rajput et al. 2023): an encoder-decoder that writes the S-ID of the next ad, on the S-IDs that LEADRE has.

What LEADRE adds to it, a language model, texts and profiles, is then what the two differ by. Every train target with an
ad behavior before it is learned. Our choice: AdamW with a cosine, where the paper has Adafactor's inverse root.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch

from leadre import tables
from leadre.baselines.config import TigerConfig
from leadre.baselines.past import Ints, Known, past
from leadre.baselines.retriever import KS, Learner
from leadre.baselines.tiger_network import Tiger
from leadre.baselines.tiger_readings import Readings, batch, readings, tokens_of
from leadre.baselines.tiger_search import Inputs, search
from leadre.catalog import trie
from leadre.training.batches import Batches, bucketed_plan

USERS_AT_ONCE = 128
"""Users whose beams are searched at once."""
GRADIENT_CLIP = 1.0


def prepare_tiger(config: TigerConfig, known: Known, catalog: Path) -> Learner:
    """TIGER, which reads the user's latest ads and his token, and makes lists by a beam over the catalog's trie.

    Args:
        config: The network and its training.
        known: Gives behaviors and targets.
        catalog: Gives the S-IDs.

    Raises:
        ValueError: If no train target can be learned from, or lists are to be longer than the beam is wide.
    """
    if config.list_length > config.beam_width:
        raise ValueError(
            f"list_length is {config.list_length}, but a beam of beam_width {config.beam_width} finds no more ads "
            "than that: raise beam_width"
        )
    listed = tables.read(tables.SIDS, catalog / "sids.parquet")
    known = known._replace(ads=listed["ad_id"].to_list())  # in the order of the trie's leaves
    user_tokens = max(config.user_tokens, 1)
    network = _network(config, listed, json.loads((catalog / "tokens.json").read_text())["levels"], user_tokens)
    train = known.targets("train")
    before = past(known.tables.behaviors, train, known.ads, domain="ad")
    of = readings(before, train, max_ads=config.max_ads, user_tokens=user_tokens)

    def inputs(targets: pl.DataFrame) -> Callable[[Ints], Inputs]:
        before = past(known.tables.behaviors, targets, known.ads, domain="ad")
        users = tokens_of(targets["user_id"].to_list(), number=user_tokens)
        return lambda rows: Inputs(
            torch.from_numpy(users[rows]), torch.from_numpy(before.latest(rows, most=config.max_ads))
        )

    return Learner(
        network,
        Batches(step_plan(of, batch_size=config.batch_size, steps=config.steps, seed=config.seed), partial(batch, of)),
        known,
        inputs,
        rank=partial(search, beam_width=config.beam_width),
        users_at_once=USERS_AT_ONCE,
        ks=[k for k in KS if k <= config.beam_width],
        gradient_clip=GRADIENT_CLIP,
    )


def _network(config: TigerConfig, listed: pl.DataFrame, num_codes: list[int], user_tokens: int) -> Tiger:
    sids = tables.matrix(listed["sid"], len(num_codes)).astype(np.int64)
    told = telling_levels(sids)
    return Tiger(
        trie=trie.build(torch.from_numpy(sids[:, told])),
        codes=[num_codes[level] for level in told],
        user_tokens=user_tokens,
        max_ads=config.max_ads,
        width=config.width,
        heads=config.heads,
        head_width=config.head_width,
        inner=config.inner,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        dropout=config.dropout,
    )


def telling_levels(sids: Ints) -> list[int]:
    """The levels ``(N, L)`` at which ads differ; the others, such as an extra code that nobody needs, are not written.

    Example:
        >>> telling_levels(np.array([[1, 0, 4], [2, 0, 4]]))
        [0]
    """
    return np.flatnonzero(np.ptp(sids, axis=0)).tolist() or [0]


def step_plan(train: Readings, *, batch_size: int, steps: int, seed: int) -> list[Ints]:
    """The readings of each step: about ``batch_size`` targets, readings of like length together.

    Raises:
        ValueError: If there is none.
    """
    if not len(train.users):
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
