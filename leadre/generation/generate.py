"""The verb ``generate``: a list of ads for every test user."""

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from safetensors.numpy import load_file
from torch import Tensor, nn

from leadre import tables
from leadre.catalog import trie as tries
from leadre.decoding.beam_search import Beams, beam_search, sid_tokens
from leadre.decoding.config import DecodingConfig
from leadre.lm.encode import RESPONSE
from leadre.lm.model import AdLM
from leadre.lm.model import load as load_model
from leadre.training.config import ComputeConfig
from leadre.training.device import set_up_device

log = logging.getLogger(__name__)

VERSION = 1


class Prompts(NamedTuple):
    """The prompts of all users, one after the other.

    Attributes:
        ids: ``(T,)`` int32 token ids.
        offsets: ``(N + 1,)`` int64; prompt ``n`` is ``ids[offsets[n] : offsets[n + 1]]``.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]


def generate(
    config: DecodingConfig, model: Path, catalog: Path, pairs: Path, tokens: Path, *, out: Path, compute: ComputeConfig
) -> None:
    """Generate ``num_ads`` ads for every test user by constrained decoding (LEADRE 3.4, A.3).

    Reads the model, the catalog, and the users and prompts of ``main.test``. Writes ``lists.parquet``
    (in the order of the users) and ``generation.json``, which counts what is wrong with the written lists.

    Raises:
        ValueError: If the inputs do not belong together, or as for `leadre.decoding.beam_search.beam_search`.
    """
    device = set_up_device(compute)
    lm = load_model(model)
    ads = tables.read(tables.SIDS, catalog / "sids.parquet")["ad_id"]
    trie = tries.move(tries.load(catalog / "trie.safetensors"), device)
    num_codes = json.loads((catalog / "tokens.json").read_text(encoding="utf-8"))["levels"]
    users = tables.read(tables.PAIRS, pairs / "main.test.parquet")["user_id"]
    prompts = read_prompts(tokens / "main.test.safetensors")
    _check_inputs(users, prompts, leaves=len(trie.codes[-1]), ads=len(ads))

    log.info("generation: %s users, beam width %s, on %s", len(users), config.beam_width, device)
    beams = _decode(config, lm, trie, num_codes, prompts, device, progress=compute.progress)
    lists = _lists(beams, users, ads, num_ads=config.num_ads)
    tables.write(tables.LISTS, lists, out / "lists.parquet")
    summary = check_lists(lists, users, ads)
    (out / "generation.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    log.info("generation: %s", summary)


def read_prompts(path: Path) -> Prompts:
    """Read an encoded file without the responses, so that no list can be made from the answer."""
    arrays = load_file(path)
    kept = arrays["kinds"] != RESPONSE
    before = np.concatenate([[0], np.cumsum(kept)])  # (T + 1,) how many tokens are kept before each
    return Prompts(arrays["ids"][kept], before[arrays["offsets"]].astype(np.int64))


def batches(lengths: NDArray[np.int64], tokens_per_batch: int) -> Iterator[NDArray[np.int64]]:
    """Cut prompts into batches of similar length, each of at most ``tokens_per_batch`` tokens with its padding.

    A prompt that is longer than that makes a batch of its own. Longest first, so that a batch that does not
    fit into memory fails at once.

    Args:
        lengths: ``(N,)`` tokens a prompt.
        tokens_per_batch: The budget.

    Example:
        >>> [batch.tolist() for batch in batches(np.array([2, 5, 2, 4]), 8)]
        [[1], [3, 0], [2]]
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, tokens_per_batch // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size


def check_lists(lists: pl.DataFrame, users: pl.Series, ads: pl.Series) -> dict[str, int]:
    """Count what must not be: ads outside of the catalog, ads twice in a list, and users without a list."""
    return {
        "users": len(users),
        "invalid_ads": int((~lists["ad_id"].is_in(ads.implode())).sum()),
        "duplicate_ads": lists.height - lists.select("user_id", "ad_id").n_unique(),
        "users_without_list": int((~users.is_in(lists["user_id"].implode())).sum()),
    }


def _decode(
    config: DecodingConfig,
    lm: AdLM,
    trie: tries.Trie,
    num_codes: list[int],
    prompts: Prompts,
    device: torch.device,
    *,
    progress: bool,
) -> Beams:
    nn.Module.to(lm.model, device)  # Transformers' own `to` hides its arguments
    plan = list(batches(np.diff(prompts.offsets), config.tokens_per_batch))
    rows = torch.full((len(prompts.offsets) - 1, config.beam_width), -1)
    scores = torch.full(rows.shape, -torch.inf)
    console = Console(stderr=True)
    for batch in track(plan, "Generating", console=console, disable=not (progress and sys.stderr.isatty())):
        ids, mask = _padded(prompts, batch)
        found = beam_search(
            lm.model,
            ids.to(device),
            mask.to(device),
            trie=trie,
            sid_tokens=sid_tokens(lm.sid_offsets, num_codes),
            beam_width=config.beam_width,
            normalizer=config.normalizer,
        )
        rows[batch], scores[batch] = found.rows.cpu(), found.scores.cpu()
    return Beams(rows, scores)


def _padded(prompts: Prompts, batch: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """The prompts of a batch, ``(B, T)`` and padded on the right, and their mask."""
    starts = prompts.offsets[batch][:, None]
    lengths = prompts.offsets[batch + 1][:, None] - starts
    column = np.arange(lengths.max())[None, :]
    mask = column < lengths
    ids = prompts.ids[np.where(mask, starts + column, 0)]
    return torch.from_numpy(np.where(mask, ids, 0).astype(np.int64)), torch.from_numpy(mask.astype(np.int64))


def _lists(beams: Beams, users: pl.Series, ads: pl.Series, *, num_ads: int) -> pl.DataFrame:
    rows, scores = beams.rows[:, :num_ads].numpy(), beams.scores[:, :num_ads].numpy()
    user, place = np.nonzero(rows >= 0)
    return pl.DataFrame(
        {
            "user_id": users.gather(user),
            "rank": (place + 1).astype(np.int32),
            "ad_id": ads.gather(rows[user, place]),
            "score": scores[user, place].astype(np.float64),
        }
    )


def _check_inputs(users: pl.Series, prompts: Prompts, *, leaves: int, ads: int) -> None:
    if len(users) != len(prompts.offsets) - 1:
        raise ValueError(
            f"tokens holds {len(prompts.offsets) - 1} prompts, but pairs holds {len(users)} users: "
            "encode these same pairs"
        )
    if leaves != ads:
        raise ValueError(f"catalog has a trie of {leaves} ads, but sids.parquet has {ads}: index it anew")
    if users.null_count() or users.is_duplicated().any():
        raise ValueError("pairs has a test row without a user or a user twice: a user gets one list")
