"""What makes the lists of a shard of users: a model on its device, a trie, filters and a search."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leadre import tables
from leadre.catalog import trie as tries
from leadre.decoding.beam_search import Beams, sid_tokens
from leadre.decoding.config import DecodingConfig
from leadre.generation.requests import filter_of, read_rules, requests_of
from leadre.generation.search import Batch, Kept, quantize, search_of
from leadre.generation.shards import Plan, write_part
from leadre.generation.users import RowGroup, read, user_ids
from leadre.lm.encode import Prompts, encode_prompts
from leadre.lm.fragments import Fragments
from leadre.lm.model import AdLM
from leadre.lm.model import load as load_model
from leadre.lm.vocabulary import Vocabulary
from leadre.training.config import ComputeConfig
from leadre.training.device import set_up_device

CALIBRATION_USERS = 64
"""The first users of the whole input: what 8-bit weights are calibrated on, whatever the shard."""
TEXTS = 50_000
"""Distinct texts whose token ids are kept; with more, all are forgotten, so that memory does not grow with users."""


class Job(NamedTuple):
    """What lists are made from.

    Attributes:
        config: The settings of decoding.
        model: The folder of the model.
        catalog: The folder of the catalog.
        groups: The prompts, as `leadre.generation.users.row_groups` gives them.
        max_tokens: Tokens of a prompt and of one ad together.
        soft_tokens: Learnable tokens of a prompt.
        compute: Where it runs.
        closed: Ids of ads of the catalog that nobody is shown, besides what the filters say.
    """

    config: DecodingConfig
    model: Path
    catalog: Path
    groups: list[RowGroup]
    max_tokens: int
    soft_tokens: int
    compute: ComputeConfig
    closed: pl.Series


class Worker:
    """Makes lists, a shard of users at a time; the model is loaded once.

    Attributes:
        kept: What 8-bit weights do to lists; None with weights as trained.

    Raises:
        ValueError: If the model, the catalog, the filters and the settings do not belong together.
    """

    kept: Kept | None = None

    def __init__(self, job: Job) -> None:
        self._job = job
        self._device = set_up_device(job.compute)
        lm = load_model(job.model)
        nn.Module.to(lm.model, self._device)  # Transformers' own `to` hides its arguments
        self._sids = tables.read(tables.SIDS, job.catalog / "sids.parquet")
        self._trie = tries.move(tries.load(job.catalog / "trie.safetensors"), self._device)
        _check(lm, leaves=len(self._trie.codes[-1]), ads=len(self._sids), soft_tokens=job.soft_tokens)
        self._vocabulary = Vocabulary(lm.tokenizer, lm.sid_offsets, lm.soft_ids)
        self._fragments = Fragments(self._vocabulary, self._sids)
        self._first_text = len(self._fragments.lengths)
        folder = job.config.filters
        self._rules = None
        if folder or len(job.closed):
            self._rules = read_rules(Path(folder) if folder else None, self._sids["ad_id"], self._trie, job.closed)
        num_codes = json.loads((job.catalog / "tokens.json").read_text(encoding="utf-8"))["levels"]
        tokens = sid_tokens(lm.sid_offsets, num_codes)
        weights = job.config.weights
        if weights != "as_trained":
            first = self._prompts(range(CALIBRATION_USERS))
            calibration = [self._batch(first, batch) for batch in self._plan(first)]
            self.kept = quantize(job.config, weights, lm.model, self._trie, tokens, calibration)
        self._search = search_of(job.config, lm.model, self._trie, tokens)

    def lists(
        self, users: range, *, done: Callable[[int], object] = lambda _: None
    ) -> tuple[pl.DataFrame, dict[str, int]]:
        """The lists of some users, a table LISTS in their order, and how many of them have a filter of their own.

        Args:
            users: Which ones, counted over the whole input.
            done: Told after each batch how many users it had.
        """
        ids = user_ids(self._job.groups, users)
        prompts = self._prompts(users)
        requests = requests_of(self._rules, ids) if self._rules else None
        rows = torch.full((len(ids), self._job.config.num_ads), -1)
        scores = torch.full(rows.shape, -torch.inf)
        for batch in self._plan(prompts):
            allowed = filter_of(self._rules, requests, batch, self._trie) if self._rules and requests else None
            found = self._search(*self._batch(prompts, batch), allowed)
            rows[batch], scores[batch] = (part[:, : rows.shape[1]].cpu() for part in found)
            done(len(batch))
        return _table(Beams(rows, scores), ids, self._sids["ad_id"]), requests.counts if requests else {}

    def _prompts(self, users: range) -> Prompts:
        if len(self._fragments.lengths) - self._first_text > TEXTS:
            self._fragments = Fragments(self._vocabulary, self._sids)
        columns = list(tables.PROMPTS.columns)
        return _joined(
            [
                encode_prompts(batch, self._fragments, max_tokens=self._job.max_tokens)
                for batch in read(self._job.groups, users, columns)
            ]
        )

    def _plan(self, prompts: Prompts) -> Iterator[NDArray[np.int64]]:
        return batches(np.diff(prompts.offsets), self._job.config.tokens_per_batch)

    def _batch(self, prompts: Prompts, batch: NDArray[np.int64]) -> Batch:
        ids, mask = _padded(prompts, batch)
        return ids.to(self._device), mask.to(self._device)


def make_part(worker: Worker, plan: Plan, shard: int, *, done: Callable[[int], object] = lambda _: None) -> None:
    """Make and write the lists of a shard; ``done`` is told after each batch how many users it had."""
    lists, filtered = worker.lists(plan.shards[shard], done=done)
    write_part(plan, shard, lists, told={"kept": worker.kept and worker.kept._asdict(), "filtered": filtered})


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


def _padded(prompts: Prompts, batch: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """The prompts of a batch, ``(B, T)`` and padded on the right, and their mask."""
    starts = prompts.offsets[batch][:, None]
    lengths = prompts.offsets[batch + 1][:, None] - starts
    column = np.arange(lengths.max())[None, :]
    mask = column < lengths
    ids = prompts.ids[np.where(mask, starts + column, 0)]
    return torch.from_numpy(np.where(mask, ids, 0).astype(np.int64)), torch.from_numpy(mask.astype(np.int64))


def _joined(parts: Sequence[Prompts]) -> Prompts:
    lengths = [np.diff(part.offsets) for part in parts]
    return Prompts(
        ids=np.concatenate([np.empty(0, np.int32), *(part.ids for part in parts)]),
        offsets=np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths])),
    )


def _table(beams: Beams, users: pl.Series, ads: pl.Series) -> pl.DataFrame:
    rows, scores = beams.rows.numpy(), beams.scores.numpy()
    user, place = np.nonzero(rows >= 0)
    return pl.DataFrame(
        {
            "user_id": users.gather(user),
            "rank": (place + 1).astype(np.int32),
            "ad_id": ads.gather(rows[user, place]),
            "score": scores[user, place].astype(np.float64),
        }
    )


def _check(lm: AdLM, *, leaves: int, ads: int, soft_tokens: int) -> None:
    if leaves != ads:
        raise ValueError(f"catalog has a trie of {leaves} ads, but sids.parquet has {ads}: index it anew")
    if len(lm.soft_ids) < soft_tokens:
        raise ValueError(
            f"the model has {len(lm.soft_ids)} learnable tokens, but prompts.soft_tokens is {soft_tokens}: compose the "
            "prompts with the settings that the model was trained with"
        )
